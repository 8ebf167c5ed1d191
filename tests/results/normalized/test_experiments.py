"""The tables of result 2: columns, and numbers that can be had another way."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from nclib import frames
from nclib.results.normalized import experiments as study
from nclib.results.normalized import theory
from nclib.table import over
from nclib.ufm import landscape


def test_solvers_end_at_the_closed_forms():
    problems = {
        "normalized": (theory.normalized([2] * 4, 1.5, 5), theory.optimum(4, 1.5).value),
        "regularized": (
            theory.regularized([2] * 4, 5e-3, 2e-3, 5),
            theory.regularized_optimum(4, 2, 5e-3, 2e-3).value,
        ),
    }
    history = study.convergence(problems, seeds=[0], max_iter=500)
    ends = history.groupby(["problem", "method"]).last()
    assert len(ends) == 4
    assert ends["gap"].abs().max() < 1e-11
    assert ends[["nc2", "nc3"]].max().max() < 1e-4
    start = history.query("iteration == 0").groupby("problem")["gap"].nunique()
    assert (start == 1).all()  # the same start for both solvers
    newton = history.query("method == 'trust-region'").groupby("problem")["iteration"].max()
    assert newton.max() <= 40
    at_rounding = history["gap"] < 1e-12
    assert at_rounding.groupby([history["problem"], history["method"]]).sum().max() <= 1


def test_trust_region_points_by_their_gradient():
    problem = theory.normalized([2] * 3, 1.0, 4)
    start = study.unit_start(problem, 0)
    path = study.pymanopt_path(problem, start, "trust-region", max_iter=100)
    assert all(torch.equal(path[0][name], start[name]) for name in start)
    assert study.gradient_norm(problem, path[-1]) < 1e-6
    for rows in path[-1].values():
        assert (rows.norm(dim=1) - 1).abs().max() < 1e-12


def test_steps_until_counts_and_says_when_it_is_not_reached():
    problem = theory.normalized([2] * 4, 2.0, 5)
    start = study.unit_start(problem, 0)
    low = theory.optimum(4, 2.0).value

    def near(point):
        return float(problem.value(point)) < low + 1e-3

    count = study.steps_until(problem, start, near, most=400, every=5, rate=3.0)
    assert 0 < count < 400
    assert count % 5 == 0
    assert study.steps_until(problem, start, near, most=100, every=5, rate=1e-4) == math.inf
    free = theory.regularized([2] * 4, 5e-4, 1e-4, 5)
    assert math.isnan(study.steps_until(free, start, near, most=400, every=5, rate=1e6))


@pytest.mark.parametrize("every", [1, 3])
def test_steps_until_does_not_go_past_the_last(every):
    """Against a loop that takes every step by itself."""
    problem, rate = theory.normalized([2] * 4, 2.0, 5), 3.0
    start, goal = study.unit_start(problem, 0), theory.optimum(4, 2.0).value + 1e-9
    point, first = problem.place(start), 0
    while float(problem.value(point)) >= goal:
        slopes = problem.gradient(point)
        point = problem.place({name: x - rate * slopes[name] for name, x in point.items()})
        first += 1
    assert 20 < first < 200

    def near(point):
        return float(problem.value(point)) < goal

    def steps(most):
        return study.steps_until(problem, start, near, most=most, every=every, rate=rate)

    assert [steps(first - 1), steps(first)] == [math.inf, first]
    assert steps(500) == -(-first // every) * every


def test_race_and_its_ratios():
    fast = study.race("normalized", 3.0, 0, K=10, n=5, d=20)["steps"]
    slow = study.race("hybrid", 3.0, 0, K=10, n=5, d=20)["steps"]
    assert fast < slow
    table = pd.DataFrame({"name": ["normalized", "hybrid", "regularized"] * 2, "seed": 0})
    table = table.assign(scale=[1.0] * 3 + [2.0] * 3, steps=[30, 60, 40, 30, 300, 90])
    assert study.sphere_ratios(table, "steps") == {"hybrid": 0.5, "regularized": 0.75}
    lost = table.assign(steps=[30, 60, 40, math.nan, 300, 90])  # a descent that left the numbers
    assert all(math.isnan(ratio) for ratio in study.sphere_ratios(lost, "steps").values())
    other = table.assign(seed=1, steps=[60, 60, 40, 30, 300, 90])
    both = study.sphere_ratios(pd.concat([table, other]), "steps")
    assert both == {"hybrid": 1.0, "regularized": 1.5}
    assert study.sphere_ratios(table.query("scale == 2"), "steps") == {
        "hybrid": 0.1,
        "regularized": 30 / 90,
    }


def test_steps_to_collapse_wait_for_all_three():
    problem = theory.matched_problems(6, 2, 2.0, 7)["hybrid"]
    point, worst = problem.place(study.unit_start(problem, 0)), []
    steps = study.steps_to_collapse(problem, 0)
    for step in range(steps + 1):
        if step in (steps - 10, steps):
            found = study.collapse(problem, point)
            worst.append(max(found[name] for name in ("nc1", "nc2", "nc3")))
        slopes = problem.gradient(point)
        point = problem.place({name: x - 10 * slopes[name] for name, x in point.items()})
    assert worst[0] >= 0.01 > worst[1]


def test_logits_of_problems_that_are_not_matched_differ(monkeypatch):
    right = theory.matched_problems
    wrong = lambda K, n, scale, d: right(K, n, scale, d) | {"hybrid": right(K, n, 3.0, d)["hybrid"]}
    monkeypatch.setattr(theory, "matched_problems", wrong)
    assert study.matched_logits(2.0, K=4, n=2, d=5) > 0.1


def test_conditioning_of_matched_problems():
    setting = {"K": 4, "n": 2, "d": 5}
    table = over(study.conditioning, name=["normalized", "regularized"], scale=[2.0], **setting)
    kappa = table.set_index("name")["kappa"]
    assert kappa["normalized"] == pytest.approx(theory.condition_number(4, 2, 5, 2.0))
    assert table["gradient"].max() < 1e-14
    # weight decay curves the within-class directions by lambda_h
    low = table.set_index("name")["low"]
    assert low["regularized"] == pytest.approx(theory.matched_penalties(4, 2, 2.0).lambda_h)
    assert study.matched_logits(2.0, **setting) < 1e-6
    assert 300 < study.conditioning("hybrid", 7.37, K=5, n=2, d=6)["kappa"] < 330


def test_spectrum_rates_and_block_steps():
    table = study.spectrum(2.0, K=4, n=2, d=4)
    assert (table["measured"] - table["theory"]).abs().max() < 1e-13
    row = study.contraction(0.7, K=5, n=2, d=6)
    assert abs(row["measured"] - row["predicted"]) < 1e-5
    steps = {
        (n, block): study.block_steps(n, block, K=4, d=5, scale=2.0)["iterations"]
        for n in (1, 10)
        for block in (False, True)
    }
    assert steps[1, True] == steps[1, False]
    assert steps[10, True] <= 1.5 * steps[1, True]
    assert steps[10, False] > 3 * steps[10, True]


def test_best_scales_by_measured_hessians():
    measured = study.measured_best_scales(4, 1, 4)
    assert np.allclose(measured, theory.best_scale(4, 1, 4), rtol=1e-4)
    assert study.best_scales((4, 1, 4))["formula"] == pytest.approx(measured[1] / 1.5)
    assert study.best_scales((3, 2, 4))["off"] > 0.1


def test_best_scales_hold_the_measured_against_the_closed_ones(monkeypatch):
    monkeypatch.setattr(study, "measured_best_scales", lambda K, n, d: (2.0, 3.0))
    curved, conditioned = theory.best_scale(4, 1, 3)
    found = study.best_scales((4, 1, 3))
    expected = {"curvature": 2 / curved, "conditioning": 3 / conditioned, "formula": 3 / 1.5}
    assert found == pytest.approx(expected | {"off": conditioned / 1.5 - 1})


def test_budget_is_best_in_the_middle():
    table = over(study.budget, scale=[0.1, 2.0, 12.0], K=6, n=3, d=8)
    assert table["nc2"].idxmin() == 1


def test_budget_by_hand():
    """Three hundred steps, features n times as fast."""
    problem = theory.normalized([3] * 4, 0.5, 5)
    rows = problem.place(study.unit_start(problem, 0))
    for _ in range(300):
        slopes = problem.gradient(rows)
        rates = {"features": 6.0, "weight": 2.0}
        rows = {n: F.normalize(x - rates[n] * slopes[n], dim=1) for n, x in rows.items()}
    expected = study.collapse(problem, rows)
    found = study.budget(0.5, K=4, n=3, d=5)
    assert found["nc2"] == pytest.approx(expected["nc2"], rel=1e-6)
    assert found["nc3"] == pytest.approx(expected["nc3"], rel=1e-6)


def test_minima_tell_the_lowest_from_the_others():
    """On the circle at scale 12 one start in ten is caught: in the largest, not in the lowest."""
    caught = (study.minima(3, 1, 2, 12.0, seed=seed) for seed in range(40))
    found = next(row for row in caught if row["starts"] > 0.05)
    assert found["value"] < 1e-9
    assert found["starts"] == pytest.approx(0.4569019405, abs=1e-6)
    assert found["nc2"] > 0.3


def test_minima_are_collapse():
    found = study.minima(4, 2, 4, 2.0)
    assert found["value"] < 1e-12
    assert found["starts"] < 1e-9
    assert max(found[name] for name in study.NC) < 1e-5


def test_saddles():
    table = study.saddles(4, 2, 6, 1.0)
    assert (table["measured"] - table["predicted"]).abs().max() < 1e-13
    assert (table["value"] - table["loss"]).abs().max() < 1e-14
    assert (table["certificate"] < 0).all()
    assert (table["negative"] > 0).all()
    assert table["name"].is_unique
    signs = study.sign_patterns(3, 4, 1.0)
    assert len(signs) == 64
    assert abs(signs["low"].max() + 0.28397) < 5e-6
    found = study.critical_points(3, 4, 1.0, starts=20)
    others = found.query("gap > 1e-9")
    assert len(others) > 5
    assert (others["low"] < -0.28).all()
    ways = study.saddle_curvatures(100.0, K=3, n=2, d=4)
    assert (ways["low"] < -0.05).all()
    predicted = [point.min_eigenvalue / 100 for point in theory.zoo(3, 2, 4, 100.0)]
    assert ways["low"].iloc[:-1].to_list() == pytest.approx(predicted)
    counts = study.saddles(4, 3, 6, 2.0)["negative"]
    assert counts.iloc[:3].to_list() == [15, 10, 4]


def test_least_gradient_vanishes_at_critical_points_only():
    problem = theory.normalized([1] * 3, 2.0, 4)
    least = study.LeastGradient(problem)
    etf = theory.minimum(3, 1, 4)
    assert float(least(**etf)) < 1e-30
    start = study.unit_start(problem, 0)
    assert float(least(**start)) == pytest.approx(study.gradient_norm(problem, start) ** 2 / 2)
    scaled = {name: 3 * x for name, x in start.items()}
    assert float(least(**scaled)) == pytest.approx(float(least(**start)))


def test_starts_that_end_at_no_critical_point_are_left_out(monkeypatch):
    minimum = theory.minimum(3, 1, 4)
    near = {name: F.normalize(x, dim=1) for name, x in study.shaken(minimum, 1e-3, 0).items()}
    points = {name: torch.stack([near[name], minimum[name]]) for name in near}
    ends = SimpleNamespace(points=points)
    monkeypatch.setattr(study, "best", lambda *arguments, **options: ends)
    (gap,) = study.critical_points(3, 4, 2.0, starts=2)["gap"]
    assert abs(gap) < 1e-12


def test_collapse_and_equal_classifiers():
    setting = {"K": 3, "n": 2, "scale": 1.0}
    table = over(study.collapse_angles, d=[2, 4], angle=[0.0, 1.0, math.pi / 2], **setting)
    assert (table["measured"] - table["predicted"]).abs().max() < 1e-13
    row = study.equal_classifiers((3, 2, 4), 50.0)
    assert row["gradient"] < 1e-14
    generator = torch.Generator().manual_seed(0)
    point = theory.equal_classifiers(3, 2, 4, 50.0, generator=generator)
    where = point.features, point.weight, point.labels
    assert row["low"] <= theory.certificate(*where, 50.0) / 50 + 1e-12 < 0


def test_escapes_grow_at_the_predicted_rate():
    table = study.escapes(1e-7, K=4, n=3, d=6, scale=2.0, steps=50)
    grown = table["gradient_norm"].iloc[45] / table["gradient_norm"].iloc[35]
    assert abs(grown ** (1 / 10) / table["growth"].iloc[0] - 1) < 1e-4
    assert (table["predicted"] / table["gradient_norm"] - 1).abs().max() < 0.02
    assert table["predicted"].notna().sum() > 20


def test_false_minimum_and_its_lift():
    for seed in range(5):  # one start in about ten ends there
        table, points = study.ends(1, 2, K=3, scale=12.0, starts=60, seed=seed)
        false = study.false_minimum(table, points, K=3, scale=12.0, above=0.05)
        if false:
            break
    assert abs(false["value"] - 0.4569019405) < 1e-8
    assert abs(false["lifted"] - false["certificate"]) < 1e-9
    assert abs(false["strict"] - 1.5528751e-3) < 1e-8
    labels, where = torch.arange(3), false["point"]
    lowest = landscape.spectrum(theory.normalized([1] * 3, 12.0, 2), where)[0]
    assert abs(float(lowest)) < 1e-9
    assert theory.certificate(*where.values(), labels, 12.0) < -1
    assert study.caught(table, 0.05) > 0
    space, points = study.ends(1, 3, K=3, scale=12.0, starts=40)
    assert space["value"].max() < 1e-7
    assert study.caught(space, 0.05) == 0
    assert study.false_minimum(space, points, K=3, scale=12.0, above=0.05) is None


def test_caught_counts_critical_ends_only():
    table = pd.DataFrame({"value": [0.4, 0.4, 0.0, 0.1], "gradient": [1e-9, 1e-3, 1e-9, 1e-9]})
    assert study.caught(table, 0.05) == 0.5


def test_worst_is_the_largest():
    problem = theory.normalized([1] * 4, 1.0, 4)
    eye = torch.eye(4, dtype=torch.float64)
    found = study.collapse(problem, {"features": eye, "weight": eye})
    assert found["nc1"] == 0
    assert found["worst"] == max(found["nc2"], found["nc3"]) > 0.1


def test_a_search_that_got_stuck_ends_above(monkeypatch):
    rows = study.shaken(theory.minimum(3, 2, 4), 0.1, 0)
    point = {name: F.normalize(x.abs(), dim=1) for name, x in rows.items()}
    stuck = SimpleNamespace(value=1.0, point=point)
    monkeypatch.setattr(study, "best", lambda *arguments, **options: stuck)
    row = study.nonnegative_minimum(3, 2, 4, 2.0)
    floor = math.log(1 + 2 * math.exp(-2 * math.sqrt(1.5)))
    assert row["above"] == pytest.approx(1 - floor)
    assert row["gap"] == pytest.approx(1 - floor)


def test_the_largest_angle_and_the_spread_of_a_search(monkeypatch):
    weight = frames.polygon(3)
    turned = torch.tensor([[0, 0.3], [0, 0], [0, 0]])  # the first one
    rows = F.normalize(weight + turned, dim=1)
    point, values = {"features": rows, "weight": weight}, torch.tensor([1.0, 4.0, 3.5])
    found = SimpleNamespace(value=1.0, values=values, point=point)
    monkeypatch.setattr(study, "best", lambda *arguments, **options: found)
    monkeypatch.setattr(theory, "certificate", lambda *arguments: 0.0)  # of critical points only
    angle = math.degrees(math.atan(0.3))
    assert study.dimension(3, 2, scale=2.0)["alignment"] == pytest.approx(angle)
    assert study.imbalance([([1, 1, 1], 2, 2.0)])[0]["spread"].item() == 3


def test_antipodes():
    table = over(study.antipode, scale=[1.0, 3.0, 5.0], K=4, n=2)
    assert (table["measured"] - table["predicted"]).abs().max() < 1e-13
    assert (np.sign(table["measured"].round(12)) == [-1, 0, 1]).all()
    assert (table["across"] < 0).all()


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_maps_contain_the_minimum(scale):
    table = over(study.circle_map, turn=[0.0, 120.0], K=3, scale=scale)
    assert abs(table["excess"].min()) < 1e-12
    wells = study.feature_wells(scale, K=3)
    assert abs(wells["value"].min() - theory.optimum(3, scale).value) < 1e-12
    best = theory.hybrid_optimum(3, 0.05)
    radial = over(study.radial_map, radius=list(np.linspace(0.1, 7, 241)), K=3, decay=0.05)
    assert 0 <= radial["excess"].min() < 1e-3
    assert abs(radial.loc[radial["excess"].idxmin(), "radius"] - best.feature_norm) < 0.03


def test_dimensions_and_codes():
    table = study.dimensions([4], 2.0).set_index("d")
    assert table.index.tolist() == [2, 3, 4]
    assert table.loc[2, "gap"] > 1e-2
    assert table.loc[3:, "gap"].abs().max() < 1e-12
    cases = [("square", frames.polygon(4), 2.0), ("bipyramid", frames.bipyramid(5), 10.0)]
    square, bipyramid = study.codes(cases).itertuples()
    assert abs(square.found - theory.polygon_value(4, 2.0)) < 1e-12
    assert bipyramid.gap < -1e-3
    cosines = sorted((frames.bipyramid(5) @ frames.bipyramid(5).T)[0].tolist())
    assert np.allclose(cosines, [-0.5, -0.5, 0, 0, 1])


def test_features_leave_their_classifier_on_codes_without_symmetry():
    """Tied to their classifier, nine classes in space end higher: plain L-BFGS over codes alone."""
    scale = 3.0

    def tied(x):
        x = torch.tensor(x, requires_grad=True)
        code = F.normalize(x.view(9, 3), dim=1)
        value = F.cross_entropy(scale * code @ code.T, torch.arange(9))
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    starts = np.random.default_rng(0).normal(size=(12, 27))
    options = {"method": "L-BFGS-B", "jac": True, "options": {"ftol": 0, "gtol": 1e-9}}
    lowest = min(minimize(tied, start, **options).fun for start in starts)
    free = study.dimension(9, 3, scale=scale)
    assert free["alignment"] > 0.1
    assert 1e-6 < lowest - theory.optimum(9, scale).value - free["gap"] < 1e-4
    assert study.dimension(6, 3, scale=scale)["alignment"] < 1e-4
    square, pyramid = study.codes(
        [("square", frames.polygon(4), 2.0), ("pyramid", frames.bipyramid(5), 10.0)]
    )["alignment"]
    assert square < 1e-4 < pyramid


@pytest.mark.parametrize(("K", "n", "d"), [(3, 1, 2), (4, 2, 4), (6, 1, 6)])
def test_free_norms_never_condition_better(K, n, d):
    """The sphere's Hessian over the scale is the penalised one's on tangent directions."""
    size = {"K": K, "n": n, "d": d}
    for scale in (0.2, 1.1, 1.75, 4.0):
        sphere, free = (study.conditioning(m, scale, **size) for m in ("normalized", "regularized"))
        assert free["kappa"] > sphere["kappa"] * (1 - 1e-9)
        assert free["low"] < sphere["low"] / scale * (1 + 1e-9)


def test_imbalance_and_nonnegative():
    table, grams = study.imbalance([([5, 3, 1], 5, 2.0)])
    assert abs(table["value"].iloc[0] - 0.0894508790) < 1e-9
    assert table["certificate"].iloc[0] > -1e-9
    assert table["etf"].iloc[0] > 1e-3
    assert abs(float(grams[0][0, 0]) - 1) < 1e-12
    assert table["closer"].iloc[0] == pytest.approx(float(grams[0][1, 2]) + 0.5)
    assert float(grams[0][1, 2]) > float(grams[0][0, 1])
    row = study.nonnegative_minimum(3, 2, 4, 2.0)
    assert abs(row["gap"]) < 1e-9
    assert abs(row["above"]) < 1e-9
    assert row["above_etf"] > 0.05
    assert row["orthonormal"] < 1e-4


def test_derivatives(monkeypatch):
    errors = study.derivative_errors([3, 1, 2], 3, 2.0)
    assert errors["gradient"] < 1e-12
    assert errors["hessian"] < 1e-10
    right = theory.multipliers
    half_wrong = lambda *where: (right(*where)[0], 2 * right(*where)[1], *right(*where)[2:])
    monkeypatch.setattr(theory, "multipliers", half_wrong)
    assert study.derivative_errors([3, 1, 2], 3, 2.0)["gradient"] > 0.1
