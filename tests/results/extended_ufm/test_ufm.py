"""Objective, solver and flows of the extended unconstrained-features model."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from nclib.checks import InputError
from nclib.metrics import frame_distances, nc_metrics
from nclib.metrics.geometry import trace_ratio
from nclib.results.extended_ufm import theory
from nclib.results.extended_ufm.metrics import obtuse_distance
from nclib.results.extended_ufm.ufm import (
    ExtendedUFM,
    balancedness,
    central_path,
    descend,
    perturbed,
    settle,
    solve,
    sweep,
)
from nclib.ufm.solve import hessian_eigenvalues, minimize


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def means_of(problem, features):
    return torch.stack([features[problem.labels == k].mean(0) for k in problem.labels.unique()])


# --- objective and gradient ----------------------------------------------------------------------


def test_objective_by_hand():
    problem = ExtendedUFM([1, 1], [0.1, 0.2], 0.4, bias=0.6, widths=1, relu=True)
    variables = {
        "features": torch.tensor([[2.0], [-1.0]]).double(),
        "weight_1": torch.tensor([[3.0]]).double(),
        "weight_2": torch.tensor([[0.5], [-1.0]]).double(),
        "bias": torch.tensor([0.25, 0.0]).double(),
    }
    # hidden 6, 0 (rectified); logits (3.25, -6), (0.25, 0); residuals (2.25, -6), (0.25, -1)
    data = (2.25**2 + 36 + 0.25**2 + 1) / 4
    decay = 0.05 * 9 + 0.1 * 1.25 + 0.2 * 5 + 0.3 * 0.0625
    assert float(problem.objective(**variables)) == pytest.approx(data + decay)
    layers = problem.layers(variables)
    assert list(layers) == ["H1", "W1H1", "H2"]
    assert layers["W1H1"].flatten().tolist() == [6, -3]
    assert layers["H2"].flatten().tolist() == [6, 0]


def test_first_use_inside_a_transform_leaves_the_problem_usable():
    problem = ExtendedUFM([2, 1], [0.1], 0.2, widths=2)
    variables = problem.start(0.5, generator=gen())
    hessian_eigenvalues(problem.objective, variables)
    minimize(problem.objective, variables)


@pytest.mark.parametrize("bias", ["none", "free", 0.3])
@pytest.mark.parametrize(("M", "relu"), [(1, False), (2, False), (3, False), (2, True), (4, True)])
def test_hand_written_gradient_is_autograd(bias, M, relu):
    lambdas = [0.1 * (j + 1) for j in range(M)]
    problem = ExtendedUFM([2, 3, 1], lambdas, 0.7, bias=bias, relu=relu, widths=range(4, 4 + M))
    variables = problem.start(0.8, generator=gen(), batch=(2, 3))
    variables = {k: (v + 0.1).requires_grad_() for k, v in variables.items()}
    value = problem.objective(**variables)
    assert value.shape == (2, 3)
    slopes = torch.autograd.grad(value.sum(), list(variables.values()))
    found = problem.gradient({k: v.detach() for k, v in variables.items()})
    for name, slope in zip(variables, slopes, strict=True):
        torch.testing.assert_close(found[name], slope, atol=1e-13, rtol=1e-13)


def test_optimum_and_critical_points_are_those_of_the_problem():
    problem = ExtendedUFM([4, 2, 1], [0.02, 0.03], 0.01, bias="free", widths=(5, 2))
    made = theory.realise(problem.optimum(), widths=problem.widths, generator=gen())
    assert float(problem.objective(**made)) == pytest.approx(problem.optimum().value, abs=1e-14)
    made = theory.realise(problem.critical_point([1]), widths=problem.widths)
    assert max(float(g.abs().max()) for g in problem.gradient(made).values()) < 1e-13


# --- closed forms against the solver (done-when: 1e-10 for M = 1, 2, 3) --------------------------

GRID = [
    {"class_counts": [3] * 3, "lambdas": [0.02], "lambda_h": 0.03, "widths": 5},
    {"class_counts": [3] * 3, "lambdas": [0.02], "lambda_h": 0.03, "widths": 2, "bias": "free"},
    {"class_counts": [4, 2, 1], "lambdas": [0.03], "lambda_h": 0.02, "widths": 4, "bias": "free"},
    {"class_counts": [4, 2, 1], "lambdas": [0.05], "lambda_h": 0.08, "widths": 4},
    {"class_counts": [2] * 4, "lambdas": [0.04], "lambda_h": 0.05, "widths": 4, "bias": 0.3},
    {"class_counts": [2] * 4, "lambdas": [0.04], "lambda_h": 0.05, "widths": 2, "bias": 9.0},
    {"class_counts": [3] * 3, "lambdas": [0.02, 0.03], "lambda_h": 0.01, "widths": 5},
    {"class_counts": [3] * 3, "lambdas": [0.02, 0.03], "lambda_h": 0.01, "widths": (5, 2)},
    {
        "class_counts": [3] * 3,
        "lambdas": [0.02, 0.03],
        "lambda_h": 0.01,
        "widths": 4,
        "bias": "free",
    },
    {"class_counts": [3] * 3, "lambdas": [0.02, 0.03], "lambda_h": 0.01, "widths": 5, "bias": 0.5},
    {"class_counts": [3] * 3, "lambdas": [0.02, 0.03], "lambda_h": 0.01, "widths": 5, "bias": 0.05},
    {"class_counts": [5, 3, 1], "lambdas": [0.02, 0.01], "lambda_h": 0.03, "widths": 4},
    {
        "class_counts": [5, 3, 1],
        "lambdas": [0.01, 0.02],
        "lambda_h": 0.02,
        "widths": 4,
        "bias": "free",
    },
    {"class_counts": [2] * 3, "lambdas": [0.02, 0.03, 0.01], "lambda_h": 0.01, "widths": 4},
    {
        "class_counts": [5, 3, 1],
        "lambdas": [0.01, 0.01, 0.02],
        "lambda_h": 0.01,
        "widths": 4,
        "bias": "free",
    },
    {"class_counts": [2] * 3, "lambdas": [0.02] * 3, "lambda_h": 0.02, "widths": 4, "bias": 0.2},
    {"class_counts": [3] * 2, "lambdas": [0.01, 0.02], "lambda_h": 0.02, "widths": 8, "relu": True},
    {
        "class_counts": [3, 2, 1],
        "lambdas": [0.01, 0.01],
        "lambda_h": 0.01,
        "widths": 12,
        "relu": True,
    },
    {"class_counts": [2] * 2, "lambdas": [0.02] * 3, "lambda_h": 0.02, "widths": 10, "relu": True},
]


@pytest.mark.parametrize("setting", GRID)
def test_solver_agrees_with_the_closed_form(setting):
    problem = ExtendedUFM(**setting)
    found = solve(problem, restarts=5, init_scale=0.5, seed=1)
    point = problem.optimum()
    assert found.best.value == pytest.approx(point.value, abs=1e-10)
    assert (found.values >= point.value - 1e-10).all()
    if problem.relu:
        return
    means = means_of(problem, found.best.variables["features"])
    if point.mean_gram.isfinite().all():
        torch.testing.assert_close(means @ means.T, point.mean_gram, atol=1e-6, rtol=0)
        assert trace_ratio(found.best.variables["features"], problem.labels) < 1e-10
    if "bias" in found.best.variables:
        torch.testing.assert_close(found.best.variables["bias"], point.bias, atol=1e-6, rtol=0)


def test_collapse_geometry_at_the_solution():
    """Claims 5.E1-E3, E5: frame distances at the minimiser found, not at the constructed one."""
    plain = ExtendedUFM([3] * 4, [0.02, 0.01], 0.01, widths=6)
    found = solve(plain, restarts=4, init_scale=0.5, seed=0).best.variables
    assert frame_distances(means_of(plain, found["features"]))["of"] < 1e-6
    hidden = found["features"] @ found["weight_1"].T
    assert frame_distances(means_of(plain, hidden))["of"] < 1e-6
    biased = ExtendedUFM([3] * 4, [0.02], 0.01, bias="free", widths=6)
    found = solve(biased, restarts=1).best.variables
    means = means_of(biased, found["features"])
    distances = frame_distances(means)
    assert distances["etf"] < 1e-6
    assert distances["of"] == pytest.approx(0.5176, abs=1e-4)
    assert means.sum(0).abs().max() < 1e-6
    assert (found["bias"] - 0.25).abs().max() < 1e-6


def test_relu_first_layer_is_obtuse_not_orthogonal():
    """Claims 5.E7, E8."""
    problem = ExtendedUFM([2] * 4, [0.02, 0.02], 0.02, relu=True, widths=(8, 24))
    found = solve(problem, restarts=6, init_scale=0.4, seed=2)
    point = problem.optimum()
    assert found.best.value == pytest.approx(point.value, abs=1e-9)
    assert (found.values > point.value - 1e-9).all()
    layers = problem.layers(found.best.variables)
    first = means_of(problem, layers["H1"])
    assert frame_distances(means_of(problem, layers["H2"]))["of"] < 1e-3
    assert frame_distances(first)["of"] > 0.02
    assert obtuse_distance(first) < 1e-3
    assert trace_ratio(layers["H1"], problem.labels) < 1e-4


def test_rank_deficient_levels_are_local_minima_for_two_layers_and_saddles_for_one():
    """Claims 5.E12, E13."""
    for lambdas, width, trapped in (([0.03], 4, False), ([0.03] * 2, 4, True)):
        problem = ExtendedUFM([2] * 3, lambdas, 0.03, widths=width)
        for r in range(3):
            point = problem.critical_point(range(r))
            start = theory.realise(point, widths=problem.widths, generator=gen(r))
            noise = problem.start(1e-3, generator=gen(7))
            _, value = settle(problem, {k: start[k] + noise[k] for k in start})
            if trapped:
                assert value == pytest.approx(point.value, abs=1e-9)
                assert float(hessian_eigenvalues(problem.objective, start)[0]) > -1e-9
            else:
                assert value == pytest.approx(problem.optimum().value, abs=1e-9)


def test_small_initialisation_ends_at_the_origin_for_two_layers_only():
    for lambdas, value in (([0.02], None), ([0.02] * 2, 0.5)):
        problem = ExtendedUFM([2] * 3, lambdas, 0.02, widths=5)
        start = problem.start(0.01, generator=gen())
        run = descend(problem, start, lr=0.5, steps=2000, record=2)
        expected = problem.optimum().value if value is None else value
        assert float(run.values[-1]) == pytest.approx(expected, abs=1e-3)


# --- flows ---------------------------------------------------------------------------------------


def test_descend_is_gradient_descent():
    problem = ExtendedUFM([2, 1], [0.1], 0.2, widths=2)
    start = problem.start(0.5, generator=gen())
    variables = {k: v.clone() for k, v in start.items()}
    for _ in range(3):
        slopes = problem.gradient(variables)
        variables = {k: v - 0.3 * slopes[k] for k, v in variables.items()}
    run = descend(problem, start, lr=0.3, steps=3, record=[1])
    assert run.steps == (1, 3)
    torch.testing.assert_close(run.final["features"], variables["features"])
    assert float(run.values[-1]) == pytest.approx(float(problem.objective(**variables)))
    full = descend(problem, start, lr=0.3, steps=50, record=10)
    assert full.steps[0] == 0
    assert full.steps[-1] == 50
    assert float(full.values[0]) == pytest.approx(float(problem.objective(**start)))
    heavy = descend(problem, start, lr=0.1, steps=2, record=2, momentum=0.9).final["features"]
    first = {k: problem.gradient(start)[k] for k in start}
    second = problem.gradient({k: start[k] - 0.1 * first[k] for k in start})["features"]
    by_hand = start["features"] - 0.1 * (1.9 * first["features"] + second)  # v ← 0.9 v + slope
    torch.testing.assert_close(heavy, by_hand)


def test_batched_descent_equals_single_runs():
    problem = ExtendedUFM([3] * 3, [0.02, 0.03], 0.01, relu=True, widths=5)
    start = problem.start(0.4, generator=gen(), batch=(4,))
    together = descend(problem, start, lr=0.2, steps=40, record=2)
    alone = descend(problem, {k: v[2] for k, v in start.items()}, lr=0.2, steps=40, record=2)
    torch.testing.assert_close(together.values[:, 2], alone.values, atol=1e-14, rtol=0)


def test_late_phase_slopes():
    """Claim 5.E10, unequal decays and three layers: log NC1~ falls at the theory's rate."""
    lambdas, lambda_h, lr = [0.004, 0.002, 0.003], 0.003, 0.5
    problem = ExtendedUFM([3] * 3, lambdas, lambda_h, widths=8)
    start = theory.realise(problem.optimum(), widths=8, generator=gen())
    noise = problem.start(0.05, generator=gen(1))
    run = descend(
        problem, {k: start[k] + noise[k] for k in start}, lr=lr, steps=3000, record=[1500, 3000]
    )
    logs = [
        [math.log(trace_ratio(h, problem.labels)) for h in problem.layers(shot).values()]
        for shot in run.snapshots
    ]
    slopes = (np.array(logs[1]) - np.array(logs[0])) / 1500
    rates = theory.late_phase_rates(lambdas=lambdas, lambda_h=lambda_h)
    assert slopes.tolist() == pytest.approx([lr * r for r in rates], rel=0.03)


@pytest.mark.parametrize("relu", [False, True])
def test_balancedness_decays_like_a_clock(relu):
    lam, lr, steps = 0.01, 0.05, 2000
    problem = ExtendedUFM([3] * 3, [lam, lam], lam, relu=relu, widths=8)
    start = problem.start(0.3, generator=gen())
    run = descend(problem, start, lr=lr, steps=steps, record=[0, steps])
    before, after = (balancedness(problem, shot) for shot in run.snapshots)
    for a, b in zip(before, after, strict=True):
        assert math.log(b / a) == pytest.approx(-2 * lam * lr * steps, rel=0.03)


@pytest.mark.parametrize("relu", [False, True])
def test_balancedness_vanishes_at_critical_points(relu):
    problem = ExtendedUFM([3] * 3, [0.02, 0.01], 0.03, relu=relu, widths=12)
    found = solve(problem, restarts=2, init_scale=0.5, seed=0).best.variables
    assert max(balancedness(problem, found)) < 1e-6
    norms = [problem.lambda_h * float(found["features"].square().sum())]
    norms += [
        lam * float(found[f"weight_{j + 1}"].square().sum())
        for j, lam in enumerate(problem.lambdas)
    ]
    assert norms == pytest.approx([norms[0]] * 3, abs=1e-9)  # equipartition


def test_balancedness_by_hand():
    problem = ExtendedUFM([1, 1], [2.0, 3.0], 5.0, widths=1)
    ones = {
        "features": torch.ones(2, 1).double(),
        "weight_1": torch.ones(1, 1).double(),
        "weight_2": torch.ones(2, 1).double(),
    }
    assert balancedness(problem, ones) == pytest.approx([8.0, 4.0])  # |2 − 5·2|, |3·2 − 2|


@pytest.mark.parametrize(("lambda_w", "lambda_h"), [(0.05, 0.0), (0.02, 0.01), (0.3, 0.05)])
def test_central_path_is_monotone(lambda_w, lambda_h):
    """Claim 5.E11."""
    K, n, d = 3, 4, 5
    labels = torch.arange(K).repeat(n)  # not sorted
    start = torch.randn(K * n, d, generator=gen(), dtype=torch.float64)
    times = np.linspace(0, 4, 30)
    path = central_path(start, labels, lambda_w=lambda_w, lambda_h=lambda_h, times=times)
    metrics = nc_metrics(torch.from_numpy(path.features[7]), labels)
    assert path.nc1[7] == pytest.approx(metrics["nc1_ratio"], rel=1e-9)
    seen = path.nc1 > 1e-9
    grow = np.exp(2 * K * n * lambda_h * times)
    assert (np.diff(np.log(path.nc1[seen])) < 0).all()
    assert (np.diff((grow * path.within)[seen]) <= 1e-9).all()
    assert (np.diff((grow * path.between)[seen]) > 0).all()


def test_central_path_velocity_is_the_total_gradient():
    """Envelope theorem, by finite differences of min_W f, W found by an optimiser."""
    K, n, d, lambda_w, lambda_h = 2, 2, 3, 0.1, 0.05
    labels = torch.tensor([0, 1, 0, 1])
    start = np.random.default_rng(0).standard_normal((K * n, d))
    step = 1e-5
    path = central_path(start, labels, lambda_w=lambda_w, lambda_h=lambda_h, times=[0, step])
    targets = np.eye(K)[labels]

    def reduced(H):
        def f(w):
            W = w.reshape(K, d)
            return (
                ((H @ W.T - targets) ** 2).sum() / (2 * K * n)
                + lambda_w / 2 * (W**2).sum()
                + lambda_h / 2 * (H**2).sum()
            )

        return scipy_minimize(f, np.zeros(K * d), tol=1e-12).fun

    for index in ((0, 0), (3, 2)):
        bump = np.zeros_like(start)
        bump[index] = 1e-3
        slope = (reduced(start + bump) - reduced(start - bump)) / 2e-3
        moved = (path.features[1] - path.features[0])[index] / step
        assert moved == pytest.approx(-K * n * slope, abs=2e-4)


def test_sweeps_up_and_down_take_different_branches():
    """Claim 5.E14 (hysteresis) for M = 2; M = 1 has one branch."""
    star = theory.threshold(2)

    def problem_at(depth):
        def at(kappa):
            lam = kappa / (3 * 2 ** (1 / (depth + 1)))
            return ExtendedUFM([2] * 3, [lam] * depth, lam, widths=4)

        return at

    for depth, kappas in ((2, [0.3, 0.38, 0.43, 0.445, 0.46, 0.49]), (1, [0.6, 0.8, 0.95, 1.1])):
        at = problem_at(depth)
        assert float(at(kappas[0]).optimum().kappas[0]) == pytest.approx(kappas[0])
        start = theory.realise(at(kappas[0]).optimum(), widths=4)
        up = sweep(at, kappas, start)
        origin = {k: torch.zeros_like(v) for k, v in start.items()}
        down = sweep(at, kappas[::-1], origin)[::-1]
        for a, b in zip(up, down, strict=True):
            local = theory.local_scale(a["kappa"], depth)
            assert a["scale"] == pytest.approx(0 if math.isnan(local) else local, abs=1e-5)
            assert b["scale"] == pytest.approx(
                0 if depth == 2 else max(0, 1 - b["kappa"]), abs=1e-5
            )
        assert depth == 1 or up[2]["value"] > 0.5 > up[1]["value"]
        assert depth == 1 or kappas[1] < star < kappas[2]


def test_perturbed_features_are_pulled_towards_the_anchor():
    problem = ExtendedUFM([3] * 3, [0.02], 0.02, widths=4)
    anchor = torch.randn(9, 4, generator=gen(), dtype=torch.float64)
    start = problem.start(0.3, generator=gen(1))
    ratios = []
    for beta in (0.01, 1.0, 100.0):
        objective = perturbed(problem, anchor, beta)
        found = minimize(objective, start)
        ratios.append(trace_ratio(found.variables["features"], problem.labels))
    assert ratios == sorted(ratios)
    assert ratios[-1] < trace_ratio(anchor, problem.labels)
    extra = perturbed(problem, anchor, 3.0)(**start) - problem.objective(**start)
    assert float(extra) == pytest.approx(
        3.0 / 18 * float((start["features"] - anchor).square().sum())
    )


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_counts": [1, 0]}, r"class_counts\[1\]"),
        ({"lambdas": []}, "depth"),
        ({"lambdas": [0.1, -1]}, r"lambdas\[1\]"),
        ({"lambda_h": 0}, "lambda_h"),
        ({"bias": "no"}, "bias"),
        ({"widths": 0}, "widths"),
        ({"widths": (3, 3)}, "1 widths"),
        ({"relu": True}, "two layers"),
    ],
)
def test_bad_problems(change, message):
    good = {"class_counts": [2, 2], "lambdas": [0.1], "lambda_h": 0.1}
    with pytest.raises(InputError, match=message):
        ExtendedUFM(**(good | change))


def test_bad_runs():
    problem = ExtendedUFM([2, 2], [0.1], 0.1, widths=3)
    start = problem.start(0.1, generator=gen())
    with pytest.raises(InputError, match="diverged"):
        descend(problem, start, lr=1e4, steps=200)
    with pytest.raises(InputError, match="lr"):
        descend(problem, start, lr=0, steps=3)
    with pytest.raises(InputError, match="restarts"):
        solve(problem, restarts=0)
    with pytest.raises(InputError, match="equal sizes"):
        central_path(torch.ones(3, 2), [0, 0, 1], lambda_w=1.0, lambda_h=0.0, times=[0, 1])
    with pytest.raises(InputError, match="beta"):
        perturbed(problem, start["features"], -1)
