import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

from nclib import losses
from nclib.checks import InputError
from nclib.results.multi_loss import theory

CE = ("ce", {})
LS = ("ls", {"alpha": 0.1})
FL = ("fl", {"gamma": 3.0})
MSE = ("mse", {})
SMALL = {"K": 10, "n": 10, "lambda_w": 5e-4, "lambda_h": 5e-4}
M4 = {"K": 4, "n": 3, "lambda_w": 0.01, "lambda_h": 0.004}


@pytest.mark.parametrize(
    ("name", "params", "setting", "margin", "value", "bias"),
    [
        ("ce", {}, SMALL, 6.435277, 0.1059080738, 0),
        ("ls", {"alpha": 0.05}, SMALL, 4.962491, 0.3549864126, 0),
        ("ls", {"alpha": 0.1}, SMALL, 4.348306, 0.5632968507, 0),
        ("fl", {"gamma": 0.0}, SMALL, 6.435277, 0.1059080738, 0),
        ("fl", {"gamma": 1.0}, SMALL, 4.569739, 0.0726324806, 0),
        ("fl", {"gamma": 3.0}, SMALL, 3.290712, 0.0513950734, 0),
        ("ce", {}, dict(K=3, n=2, lambda_w=0.002, lambda_h=0.008), 5.163509, 0.0697966325, 0),
        (
            "fl",
            {"gamma": 3.0},
            dict(K=20, n=2, lambda_w=0.01, lambda_h=0.02, lambda_b=0.01),
            2.513650,
            1.1625651459,
            0,
        ),
        ("mse", {}, M4, 0.956182, 0.0321433535, 0.25),
        ("mse", {}, M4 | {"lambda_b": 0.05}, 0.956182, 0.0380578046, 0.219089),
        ("mse", {}, M4 | {"lambda_b": None}, 0.956182, 0.0428578046, 0),
        (
            "mse",
            {"tau": 0.2, "scale": 15.0},
            dict(K=10, n=2, lambda_w=0.02, lambda_h=0.01),
            14,
            2.61,
            1.5,
        ),
        (
            "mse",
            {"tau": 0.4, "kappa": 15.0},
            dict(K=5, n=3, lambda_w=0.004, lambda_h=0.006),
            0.973130,
            0.0334851255,
            0.215839,
        ),
    ],
)
def test_reference_values(name, params, setting, margin, value, bias):
    best = theory.optimum(name, **setting, **params)
    assert best.value == pytest.approx(value, abs=1e-10)
    assert best.margin == pytest.approx(margin, abs=1e-6)
    assert best.bias == pytest.approx(bias, abs=1e-6)


@pytest.mark.parametrize(
    ("lambda_b", "value", "bias"),
    [(None, 0.1505307621, 0), (0.05, 0.0314831431, 1 / 4.2), (0.0, 0.0255307621, 1 / 4)],
)
def test_mse_in_dimension_K_minus_1(lambda_b, value, bias):
    setting = {"K": 4, "n": 3, "lambda_w": 0.005, "lambda_h": 0.005, "lambda_b": lambda_b}
    best = theory.optimum("mse", d=3, **setting)
    assert best.value == pytest.approx(value, abs=1e-10)
    assert best.bias == pytest.approx(bias, abs=1e-12)


def scalar_oracle(name, params, K, c, lambda_b):
    """min over (s, u, v) of the symmetric problem by brute numerical search, all terms spelled out:
    logits s(e_y - 1/K) + b + v, penalty c((K-1)s + K|v|) + K lambda_b b²/2."""
    loss = losses.get(name, **params)
    label = torch.tensor([0])

    def value(x):
        s, b, v = abs(x[0]), (0.0 if lambda_b is None else x[1]), x[2]
        z = torch.full((1, K), -s / K + b + v, dtype=torch.float64)
        z[0, 0] += s
        penalty = c * ((K - 1) * s + K * abs(v)) + K * (lambda_b or 0.0) * b * b / 2
        return float(loss(z, label)) + penalty

    best = np.inf
    options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 1500, "maxfev": 1500}
    for s in (0.0, 4.0):
        found = minimize(value, [s, 0.1, 0.1], method="Nelder-Mead", options=options)
        found = minimize(value, found.x, method="Nelder-Mead", options=options)
        best = min(best, found.fun)
    return best


@pytest.mark.parametrize(
    ("name", "params"),
    [CE, LS, FL, ("fl", {"gamma": 0.5}), MSE, ("mse", {"tau": 0.5, "scale": 2.0, "kappa": 4.0})],
)
@pytest.mark.parametrize(
    ("lambda_b", "K", "c"), [(0.0, 6, 0.07), (0.03, 3, 0.02), (1.0, 5, 0.1), (None, 3, 0.5)]
)
def test_value_is_the_minimum_of_the_symmetric_problem(name, params, lambda_b, K, c):
    best = theory.optimum(name, K=K, n=1, lambda_w=c, lambda_h=c, lambda_b=lambda_b, **params)
    oracle = scalar_oracle(name, params, K, c, lambda_b)
    assert best.value == pytest.approx(oracle, abs=2e-9)
    assert best.c == pytest.approx(c)


@pytest.mark.parametrize(("n", "w", "h"), [(1, 0.02, 0.02), (4, 0.005, 0.02), (16, 0.001, 0.025)])
def test_only_c_decides_the_logits_and_the_norms_share_the_penalty(n, w, h):
    base = theory.optimum("fl", K=6, n=1, lambda_w=0.02, lambda_h=0.02, gamma=2.0)
    best = theory.optimum("fl", K=6, n=n, lambda_w=w, lambda_h=h, gamma=2.0)
    assert best.margin == pytest.approx(base.margin, rel=1e-12)
    assert w * best.weight_norm**2 == pytest.approx(h * best.feature_norm**2)
    # Both penalties together are the nuclear norm term c (K-1) s.
    half = (w * best.weight_norm**2 + h * best.feature_norm**2) / 2
    assert half == pytest.approx(0.02 * 5 * best.margin)


@pytest.mark.parametrize(
    ("alpha", "K", "c"), itertools.product((0.01, 0.1, 0.4), (2, 5, 30), (1e-4, 5e-3))
)
def test_label_smoothing_is_cross_entropy_with_more_regularisation(alpha, K, c):
    smooth = theory.optimum("ls", alpha=alpha, K=K, n=1, lambda_w=c, lambda_h=c)
    plain = theory.optimum("ce", K=K, n=1, lambda_w=c + alpha / K, lambda_h=c + alpha / K)
    assert smooth.margin == pytest.approx(plain.margin, abs=1e-12)
    assert smooth.value == pytest.approx(plain.value, abs=1e-12)
    assert smooth.equivalent_c == pytest.approx(c + alpha / K, rel=1e-12)


def test_value_is_the_entropy_of_the_optimal_softmax():
    best = theory.optimum("ls", **SMALL, alpha=0.1)
    p = torch.softmax(torch.tensor([best.margin] + [0.0] * 9, dtype=torch.float64), 0)
    assert best.value == pytest.approx(float(-(p * p.log()).sum()), abs=1e-12)
    assert best.probability == pytest.approx(float(p[0]), abs=1e-14)
    assert best.probability == pytest.approx(0.8958, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "params"), [CE, LS, FL, MSE, ("mse", {"kappa": 3.0, "scale": 2.0})]
)
@pytest.mark.parametrize("lambda_b", [0.0, 0.4, None])
@pytest.mark.parametrize("K", [2, 5, 18, 30])
def test_thresholds_separate_zero_from_collapse(name, params, lambda_b, K):
    c = theory.threshold(name, K=K, lambda_b=lambda_b, **params)
    zero = theory.value_at_zero(name, K=K, lambda_b=lambda_b, **params)
    for factor in (0.998, 1.002):  # nearer its tie the focal loss has none with a bias
        best = theory.optimum(
            name, K=K, n=1, lambda_w=factor * c, lambda_h=factor * c, lambda_b=lambda_b, **params
        )
        alive = best.margin > 0 or best.mean_component > 1e-12
        assert alive == (factor < 1)
        assert best.value <= zero * (1 + 1e-14)
        if not alive:
            assert best.value == pytest.approx(zero, abs=1e-14)


@pytest.mark.parametrize(
    ("K", "local", "glob", "jump", "p"),
    [
        (10, 0.128852818, 0.128852818, 0, 0.1),
        (20, 0.063146113, 0.063215566, 0.2184, 0.0615),
        (30, 0.040703977, 0.041228888, 0.8146, 0.0722),
        (100, 0.011057048, 0.011752116, 2.3731, 0.0978),
        (1000, 0.001017685, 0.001108580, 4.965, 0.1255),
    ],
)
def test_focal_thresholds_table(K, local, glob, jump, p):
    got = theory.focal_thresholds(K, 3.0)
    assert got[0] == pytest.approx(local, abs=1e-9)
    assert got[1] == pytest.approx(glob, abs=1e-9)
    assert got[2] == pytest.approx(jump, abs=1e-3)
    assert 1 / (1 + (K - 1) * math.exp(-got[2])) == pytest.approx(p, abs=1e-4)


@pytest.mark.parametrize(("share", "lower"), [(-0.03, True), (0.004, True), (-0.17, False)])
def test_focal_optimum_refuses_where_partly_collapsed_points_are_cheaper(share, lower):
    """K = 30, γ = 3: ``share`` of the window below or above the tie; m classes are an ETF."""
    K = 30
    local, globally, jump = theory.focal_thresholds(K, 3.0)
    c = globally + share * (globally - local)
    without = theory.optimum("fl", K=K, n=1, lambda_w=c, lambda_h=c, lambda_b=None, gamma=3.0)

    def value(x, m):  # the margin of the m classes and their bias over that of the others
        s, b = x
        z = np.zeros((2, K))
        z[:, :m] = b
        z[0, :m] -= s / m
        z[0, 0] += s
        log_p = z[[0, 1], [0, -1]] - logsumexp(z, axis=1)
        return -np.array([m, K - m]) / K @ (np.expm1(log_p) ** 3 * -log_p) + c * (m - 1) * abs(s)

    options = {"method": "Nelder-Mead", "options": {"fatol": 1e-13}}
    partly = min(minimize(value, [jump + 2, 0.3], (m,), **options).fun for m in range(20, K))
    assert (partly < without.value - 1e-8) == lower
    setting = {"K": K, "n": 1, "lambda_w": c, "lambda_h": c, "gamma": 3.0}
    if lower:
        with pytest.raises(InputError, match="lambda_b=None"):
            theory.optimum("fl", **setting)
    else:
        assert theory.optimum("fl", **setting).value == without.value


@pytest.mark.parametrize(
    ("gamma", "t"),
    [(0.5, 0.0176629), (1, 0.0432022), (2, 0.0578464), (2.5, 0.0584006), (3, 0.0574969),
     (5, 0.0502360), (10, 0.0356779), (2.38186, 0.0584444), (0, 0)],
)  # fmt: skip
def test_focal_convexity_threshold_table(gamma, t):
    assert theory.focal_convexity_threshold(gamma) == pytest.approx(t, abs=1e-7)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0, 10.0])
def test_the_slope_of_the_focal_loss_is_lowest_at_the_sufficient_threshold(gamma):
    t, options = theory.focal_sufficient_threshold(gamma), {"xatol": 1e-9}
    found = minimize_scalar(
        lambda x: theory.focal_slope(gamma, x),
        bounds=(1e-6, 0.3),
        method="bounded",
        options=options,
    )
    assert t == pytest.approx(found.x, abs=1e-6)
    assert theory.focal_sufficient_threshold(0.0) == pytest.approx(0.2031878700, abs=1e-9)


@pytest.mark.parametrize("lambda_b", [0.05, 0.4, None])
@pytest.mark.parametrize("d", [3, 4])
def test_the_mse_scales_with_tau_and_all_decays(d, lambda_b):
    setting = {"K": 4, "n": 3, "d": d}
    one, two = (
        theory.optimum(
            "mse", tau=a, lambda_w=a * 0.01, lambda_h=a * 0.004, **setting,
            lambda_b=lambda_b and a * lambda_b,
        )
        for a in (1.0, 2.0)
    )  # fmt: skip
    assert two.value == pytest.approx(2 * one.value, rel=1e-13)
    assert [two.margin, two.bias] == pytest.approx([one.margin, one.bias], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0, 5.0])
def test_focal_loss_is_convex_exactly_above_the_threshold(gamma):
    rng = np.random.default_rng(int(10 * gamma))
    loss, label = losses.get("fl", gamma=gamma), torch.tensor([0])
    t_c = theory.focal_convexity_threshold(gamma)
    seen = {True: 0, False: 0}
    for _ in range(150):
        K = int(rng.integers(2, 9))
        t = float(np.exp(rng.uniform(np.log(t_c / 8), np.log(min(0.9, 8 * t_c)))))
        others = rng.dirichlet(np.ones(K - 1)) * (1 - t)
        z = torch.tensor(np.log(np.r_[t, others]))
        H = torch.func.hessian(lambda v: loss(v[None], label))(z)
        lowest = float(torch.linalg.eigvalsh(H)[0]) / float(H.abs().max())
        if abs(t / t_c - 1) > 1e-3:
            assert (lowest > -1e-9) == (t > t_c), (t, t_c, lowest)
            seen[t > t_c] += 1
    assert min(seen.values()) > 20


@pytest.mark.parametrize(("name", "params"), [CE, LS, FL, ("fl", {"gamma": 0.5})])
def test_scalar_loss_is_the_loss_at_equal_wrong_logits(name, params):
    for s in (-600.0, -1.0, 0.0, 0.7, 5.0, 40.0):
        z = torch.zeros(1, 7, dtype=torch.float64)
        z[0, 3] = s
        want = float(losses.get(name, **params)(z, torch.tensor([3])))
        assert theory.scalar_loss(name, s, K=7, **params) == pytest.approx(want, rel=1e-12)


def test_scalar_loss_of_the_mse_is_at_the_best_shift():
    loss = losses.get("mse", tau=0.7, scale=2.0, kappa=3.0)
    for s in (0.0, 1.3):
        z = torch.tensor([[s, 0.0, 0.0, 0.0]], dtype=torch.float64)
        found = minimize_scalar(lambda u, z=z: float(loss(z + u, torch.tensor([0]))), tol=1e-14)
        got = theory.scalar_loss("mse", s, K=4, tau=0.7, scale=2.0, kappa=3.0)
        assert got == pytest.approx(found.fun, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(K=1), "K must be at least 2"),
        (dict(n=0), "n must be at least 1"),
        (dict(n=2.5), "n must be an integer"),
        (dict(lambda_w=0), "lambda_w must be greater than 0"),
        (dict(lambda_h=-1), "lambda_h must be greater than 0"),
        (dict(lambda_b=-1), "lambda_b must be at least 0"),
        (dict(lambda_w=float("nan")), "lambda_w must be a finite number"),
        (dict(d=2), "no closed form for d=2 < K-1=3"),
        (dict(loss="mse", kappa=0.2, lambda_b=2.0, d=3), "kappa != 1 at d = K-1"),
        (dict(loss="mse", kappa=0.2, lambda_b=None, d=3), "kappa != 1 at d = K-1"),
        (dict(gamma=2), "no parameter 'gamma'"),
        (dict(loss="hinge"), "loss must be one of"),
    ],
)
def test_bad_input_is_named(arguments, message):
    setting = {"loss": "ce", "K": 4, "n": 3, "lambda_w": 0.01, "lambda_h": 0.01} | arguments
    with pytest.raises(ValueError, match=message):
        theory.optimum(**setting)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.threshold("mse", K=4, lambda_b=-0.1), "lambda_b must be at least 0"),
        (lambda: theory.value_at_zero("mse", K=1), "K must be at least 2"),
        (lambda: theory.scalar_loss("ce", math.nan, K=3), "s must be a finite number"),
        (lambda: theory.focal_slope(1.0, 1.5), "t must be less than 1"),
        (lambda: theory.focal_thresholds(4, -1.0), "gamma must be at least 0"),
        (lambda: theory.flat_directions("mse", d=3, **M4 | {"lambda_b": None}), "one orbit"),
    ],
)
def test_bad_input_of_the_other_functions_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_tiny_bias_penalty_is_none():
    free, tiny = (theory.optimum("mse", **M4, lambda_b=x) for x in (0.0, 1e-300))
    assert tiny.value == pytest.approx(free.value, rel=1e-14)
    assert tiny.bias == pytest.approx(0.25, rel=1e-14)


@pytest.mark.parametrize("gamma", [0.0015, 0.005, 0.01, 0.015])
def test_the_focal_loss_of_tiny_gamma_has_its_thresholds(gamma):
    t = theory.focal_convexity_threshold(gamma)
    assert 0 <= t < 0.01
    found = theory.optimum("fl", K=5, n=3, lambda_w=1e-2, lambda_h=1e-2, gamma=gamma)
    plain = theory.optimum("ce", K=5, n=3, lambda_w=1e-2, lambda_h=1e-2)
    assert found.value == pytest.approx(plain.value, rel=5 * gamma)


def test_a_partly_collapsed_point_beyond_the_tie_is_not_overlooked():
    """K = 300, gamma = 30: 80 classes as an ETF with a bias, the others at zero, in plain numpy."""
    K, gamma, some, s, b = 300, 30.0, 80, 2.03266, 0.197615
    local, globally, _ = theory.focal_thresholds(K, gamma)
    c = globally + 0.025 * (globally - local)

    def loss(logits, y):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        return -((1 - p[y]) ** gamma) * np.log(p[y])

    bias = np.zeros(K)
    bias[:some] = b
    own = bias.copy()
    own[:some] += s * (np.arange(some) == 0) - s / some
    value = (some * loss(own, 0) + (K - some) * loss(bias, K - 1)) / K
    value += c * (some - 1) * s  # singular values of the logits: some - 1 times s
    zero = (1 - 1 / K) ** gamma * math.log(K)
    found = {"K": K, "n": 1, "lambda_w": c, "lambda_h": c, "gamma": gamma}
    assert theory.optimum("fl", **found, lambda_b=None).value == pytest.approx(zero)
    assert zero - value > 1e-3
    with pytest.raises(InputError, match="too near its tie"):
        theory.optimum("fl", **found)


@pytest.mark.parametrize("loss", [torch.nn.MSELoss(), losses.ExactCrossEntropy(3.0), losses.Focal])
def test_losses_without_a_closed_form_are_refused(loss):
    for call in (theory.threshold, theory.value_at_zero):
        with pytest.raises(InputError, match="closed forms are known for ce, ls, fl, mse"):
            call(loss, K=4)


def test_the_strength_of_tiny_and_huge_decays():
    for size in (1e-170, 1e-162, 1e200):
        assert theory.strength(3, size, size) == pytest.approx(3**0.5 * size, rel=1e-14)
