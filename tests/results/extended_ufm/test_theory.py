"""Closed forms of the extended unconstrained-features model against independent oracles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from nclib.checks import InputError
from nclib.results.extended_ufm import theory


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def objective(variables, class_counts, lambdas, lambda_h, bias="none", relu=False):
    """The objective written down once more, column convention of the papers."""
    labels = np.repeat(np.arange(len(class_counts)), class_counts)
    N, K = len(labels), len(class_counts)
    Y = torch.zeros(K, N, dtype=torch.float64)
    Y[labels, np.arange(N)] = 1
    hidden = variables["features"].T
    total = lambda_h / 2 * (hidden**2).sum()
    for j, lam in enumerate(lambdas, start=1):
        W = variables[f"weight_{j}"]
        hidden = W @ hidden
        if relu and j < len(lambdas):
            hidden = torch.clamp(hidden, min=0)
        total = total + lam / 2 * (W**2).sum()
    if "bias" in variables:
        hidden = hidden + variables["bias"][:, None]
        if bias != "free":
            total = total + bias / 2 * (variables["bias"] ** 2).sum()
    return total + ((hidden - Y) ** 2).sum() / (2 * N)


def value_and_slopes(variables, **setting):
    variables = {k: v.clone().requires_grad_() for k, v in variables.items()}
    value = objective(variables, **setting)
    slopes = torch.autograd.grad(value, list(variables.values()))
    return value.item(), max(s.abs().max().item() for s in slopes)


# --- scalar problem ------------------------------------------------------------------------------


def test_thresholds_of_the_spec():
    expected = [1, 0.396850263, 0.272165527, 0.210366590]
    existence = [1, 0.472470394, 0.384900179, 0.346975474]
    polynomial = [1, 1 / 16, 4 / 729, 27 / 65536]  # bounds on K^{M+1} nΛ = κ^{M+1}
    for M in range(1, 5):
        assert theory.threshold(M) == pytest.approx(expected[M - 1], abs=1e-9)
        assert theory.existence_threshold(M) == pytest.approx(existence[M - 1], abs=1e-9)
        assert theory.threshold(M) ** (M + 1) == pytest.approx(polynomial[M - 1], abs=1e-13)


@pytest.mark.parametrize("M", [1, 2, 3, 5, 9])
def test_thresholds_are_where_the_scalar_problem_changes(M):
    def lowest(kappa):
        grid = np.linspace(1e-4, 1, 200)
        start = grid[np.argmin((1 - grid) ** 2 / 2 + (M + 1) / 2 * kappa * grid ** (2 / (M + 1)))]
        found = minimize_scalar(
            lambda u: (1 - u) ** 2 / 2 + (M + 1) / 2 * kappa * u ** (2 / (M + 1)),
            bounds=(max(start - 0.02, 1e-9), start + 0.02),
            method="bounded",
            options={"xatol": 1e-12},
        )
        return found.fun

    star = theory.threshold(M)
    assert lowest(star * (1 - 1e-3)) < 0.5 - 1e-8
    assert lowest(star * (1 + 1e-3)) >= 0.5 - 1e-8
    # number of real roots of the stationarity polynomial in (0, 1) drops to none beyond κ_ex
    if M > 1:
        for factor, roots in ((1 - 1e-6, 2), (1 + 1e-6, 0)):
            coefficients = np.zeros(2 * M + 1)
            coefficients[0], coefficients[M + 1] = 1, -1
            coefficients[-1] += factor * theory.existence_threshold(M)
            found = np.roots(coefficients)
            real = found[(abs(found.imag) < 1e-9) & (found.real > 0)]
            assert len(real) == roots


@settings(max_examples=60, deadline=None)
@given(M=st.integers(1, 8), share=st.floats(0.001, 0.999))
def test_local_scale_is_the_largest_root_of_the_stationarity_condition(M, share):
    kappa = share * theory.existence_threshold(M)
    u = theory.local_scale(kappa, M)
    assert u ** (M - 1) * (1 - u) ** (M + 1) == pytest.approx(kappa ** (M + 1), rel=1e-7)
    coefficients = np.zeros(2 * M + 1)
    coefficients[0] += 1
    coefficients[M + 1] -= 1
    coefficients[-1] += kappa
    roots = np.roots(coefficients)
    largest = max(r.real for r in roots if abs(r.imag) < 1e-6 and r.real < 1 + 1e-9)
    assert u == pytest.approx(largest ** (M + 1), abs=2e-6)


@settings(max_examples=40, deadline=None)
@given(M=st.integers(1, 6), kappa=st.floats(0, 1.5))
def test_global_scale_beats_a_grid(M, kappa):
    u = theory.global_scale(kappa, M)
    grid = np.linspace(0, 1.2, 4001)
    values = (1 - grid) ** 2 / 2 + (M + 1) / 2 * kappa * grid ** (2 / (M + 1))
    assert theory.scalar_loss(u, kappa, M) <= values.min() + 1e-15
    assert theory.scalar_loss(u, kappa, M) == pytest.approx(values.min(), abs=1e-4)


def test_between_the_thresholds_the_local_minimum_is_not_the_global_one():
    for M in (2, 3, 4):
        kappa = (theory.threshold(M) + theory.existence_threshold(M)) / 2
        u = theory.local_scale(kappa, M)
        assert theory.global_scale(kappa, M) == 0
        assert theory.scalar_loss(u, kappa, M) > 0.5
        assert theory.local_scale(theory.threshold(M), M) == pytest.approx((M - 1) / M, abs=1e-10)
        edge = theory.local_scale(theory.existence_threshold(M), M)
        assert edge == pytest.approx((M - 1) / (2 * M), abs=1e-6)
        assert math.isnan(theory.local_scale(theory.existence_threshold(M) * 1.001, M))


@pytest.mark.parametrize("M", [1, 2, 5])
def test_vanishing_decay_fits_perfectly(M):
    assert theory.local_scale(0, M) == 1
    assert theory.local_scale(1e-14, M) == pytest.approx(1 - 1e-14, abs=1e-15)


# --- optimum -------------------------------------------------------------------------------------

REFERENCE = [  # K=4, n=50, all decays 5e-3: κ, u, f*, f* with free bias, ‖h‖²
    (1, 0.1414213562, 0.8585786438, 0.1314213562, 0.0985660172, 0.1214213562),
    (2, 0.0736806300, 0.9243621315, 0.1077357156, 0.0808017867, 0.0699167814),
    (3, 0.0531829590, 0.9452999557, 0.1049119463, 0.0786839597, None),
]


@pytest.mark.parametrize(("M", "kappa", "u", "value", "biased", "norm"), REFERENCE)
def test_reference_values(M, kappa, u, value, biased, norm):
    setting = {"class_counts": [50] * 4, "lambdas": [5e-3] * M, "lambda_h": 5e-3}
    plain, free = theory.optimum(**setting), theory.optimum(**setting, bias="free")
    assert plain.kappas.tolist() == pytest.approx([kappa] * 4, abs=1e-10)
    assert theory.kappa(num_classes=4, n=50, lambdas=[5e-3] * M, lambda_h=5e-3) == pytest.approx(
        kappa, abs=1e-10
    )
    assert plain.singular_scales.tolist() == pytest.approx([u] * 4, abs=1e-10)
    assert free.singular_scales.tolist() == pytest.approx([u] * 3, abs=1e-10)
    assert plain.value == pytest.approx(value, abs=1e-10)
    assert free.value == pytest.approx(biased, abs=1e-10)
    if norm:
        assert plain.feature_norms_sq.tolist() == pytest.approx([norm] * 4, abs=1e-10)
        assert free.feature_norms_sq.tolist() == pytest.approx([norm * 3 / 4] * 4, abs=1e-10)


def test_one_layer_formulas_of_the_paper():
    n, K, lam_w, lam_h = 7, 5, 0.011, 0.004
    c = K * math.sqrt(n * lam_w * lam_h)
    point = theory.optimum(class_counts=[n] * K, lambdas=[lam_w], lambda_h=lam_h)
    assert point.value == pytest.approx(c - c**2 / 2, abs=1e-14)
    expected = (1 - c) * math.sqrt(lam_w / (n * lam_h))
    assert point.feature_norms_sq.tolist() == pytest.approx([expected] * K, rel=1e-12)
    made = theory.realise(point, widths=6, generator=gen())
    means = made["features"][::n]
    scaled = math.sqrt(n * lam_h / lam_w) * means
    torch.testing.assert_close(made["weight_1"], scaled, atol=1e-12, rtol=0)


SETTINGS = [
    {"class_counts": [3] * 3, "lambdas": [0.02], "lambda_h": 0.03},
    {"class_counts": [4] * 4, "lambdas": [0.02, 0.03], "lambda_h": 0.01, "bias": "free"},
    {"class_counts": [6, 3, 1], "lambdas": [0.02, 0.01, 0.03], "lambda_h": 0.01},
    {"class_counts": [6, 3, 1], "lambdas": [0.012, 0.02], "lambda_h": 0.01, "bias": "free"},
    {"class_counts": [3] * 4, "lambdas": [0.02, 0.03], "lambda_h": 0.01, "bias": 0.4},
    {"class_counts": [3] * 4, "lambdas": [0.05], "lambda_h": 0.01, "bias": 0.05},
    {"class_counts": [9, 1], "lambdas": [0.03], "lambda_h": 0.02, "bias": "free"},
    {"class_counts": [30, 2, 2], "lambdas": [0.03, 0.04], "lambda_h": 0.02},
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_realised_point_attains_the_value_and_is_stationary(setting):
    point = theory.optimum(**setting)
    M, K = len(setting["lambdas"]), len(setting["class_counts"])
    made = theory.realise(point, widths=list(range(K + 1, K + 1 + M)), generator=gen(3))
    value, slope = value_and_slopes(made, **setting)
    assert value == pytest.approx(point.value, abs=1e-13)
    assert slope < 1e-12
    first = np.cumsum([0, *setting["class_counts"]])[:-1]
    means = made["features"][first]
    torch.testing.assert_close(means @ means.T, point.mean_gram, atol=1e-12, rtol=0)
    norms = means.square().sum(1)
    torch.testing.assert_close(norms, point.feature_norms_sq, atol=1e-12, rtol=0)
    hidden = means
    for j in range(1, M + 1):
        hidden = hidden @ made[f"weight_{j}"].T
        norm_sq = made[f"weight_{j}"].square().sum()
        torch.testing.assert_close(norm_sq, point.weight_norms_sq[j - 1], atol=1e-12, rtol=0)
    if "bias" in made:
        hidden = hidden + made["bias"]
    torch.testing.assert_close(hidden, point.class_logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if len(s["lambdas"]) == 1])
def test_one_layer_optimum_solves_the_convex_problem(setting):
    """Oracle: min ‖Z + b1ᵀ − Y‖²/(2N) + √(λ_W λ_H) ‖Z‖_* (+ λ_b/2 ‖b‖²), by cvxpy."""
    cp = pytest.importorskip("cvxpy")
    counts = np.array(setting["class_counts"])
    N, K = counts.sum(), len(counts)
    Y = np.eye(K)[np.repeat(np.arange(K), counts)].T
    Z, b = cp.Variable((K, N)), cp.Variable((K, 1))
    bias = setting.get("bias", "none")
    fit = Z + b @ np.ones((1, N)) if bias != "none" else Z
    weight = math.sqrt(setting["lambdas"][0] * setting["lambda_h"])
    loss = cp.sum_squares(fit - Y) / (2 * N) + weight * cp.normNuc(Z)
    if not isinstance(bias, str):
        loss = loss + bias / 2 * cp.sum_squares(b)
    best = cp.Problem(cp.Minimize(loss)).solve(solver=cp.CLARABEL)
    assert theory.optimum(**setting).value == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("M", [2, 3])
def test_deep_optimum_beats_random_schatten_candidates(M):
    """Oracle: no Z near or far does better in the Schatten form of the problem (spec 3.1)."""
    counts, lambdas, lam_h = [5, 3, 2], [0.01, 0.02, 0.015][:M], 0.02
    point = theory.optimum(class_counts=counts, lambdas=lambdas, lambda_h=lam_h)
    big = lam_h * math.prod(lambdas)
    Y, rng, N = np.diag(np.sqrt(counts)), np.random.default_rng(0), 10

    def f(Z):
        s = np.linalg.svd(Z, compute_uv=False)
        penalty = (M + 1) / 2 * big ** (1 / (M + 1)) * (s ** (2 / (M + 1))).sum()
        return ((Y - Z) ** 2).sum() / (2 * N) + penalty

    best = Y * point.singular_scales.numpy()
    assert f(best) == pytest.approx(point.value, abs=1e-14)
    for _ in range(300):
        size = 10 ** rng.uniform(-3, 0.5)
        assert f(best + size * rng.standard_normal((3, 3))) >= point.value
        found = minimize(lambda z: f(z.reshape(3, 3)), rng.standard_normal(9)) if size > 2 else None
        assert found is None or found.fun >= point.value - 1e-9


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    order=st.randoms(use_true_random=False),
    M=st.integers(1, 4),
    bias=st.sampled_from(["none", "free"]),
)
def test_relabelling_and_swapping_decays(counts, order, M, bias):
    lambdas = [0.001 * (j + 1) for j in range(M)]
    point = theory.optimum(class_counts=counts, lambdas=lambdas, lambda_h=0.002, bias=bias)
    shuffle = list(range(len(counts)))
    order.shuffle(shuffle)
    other = theory.optimum(
        class_counts=[counts[i] for i in shuffle],
        lambdas=lambdas[::-1],
        lambda_h=0.002,
        bias=bias,
    )
    assert other.value == pytest.approx(point.value, abs=1e-12)
    torch.testing.assert_close(other.mean_gram, point.mean_gram[shuffle][:, shuffle])
    assert other.weight_norms_sq.tolist() == pytest.approx(point.weight_norms_sq.tolist()[::-1])


def test_symmetric_imbalance_reduces_to_balanced_and_counts_may_be_arrays():
    setting = {"lambdas": np.array([0.01, 0.02]), "lambda_h": 0.02, "bias": "free"}
    a = theory.optimum(class_counts=torch.tensor([5, 5, 5]), **setting)
    b = theory.optimum(class_counts=np.array([5, 5, 5]), **setting)
    assert a.value == b.value


def test_nearly_balanced_is_close_to_balanced():
    """The exact basis used for equal counts agrees with the singular value decomposition."""
    setting = {"lambdas": [0.01, 0.02], "lambda_h": 1e-6, "bias": "free"}
    even = theory.optimum(class_counts=[10**6] * 3, **setting)
    odd = theory.optimum(class_counts=[10**6, 10**6, 10**6 + 1], **setting)
    assert odd.value == pytest.approx(even.value, rel=1e-6)
    torch.testing.assert_close(odd.mean_gram, even.mean_gram, rtol=1e-4, atol=0)


def test_free_bias_fits_the_class_frequencies():
    point = theory.optimum(class_counts=[6, 3, 1], lambdas=[9.0], lambda_h=9.0, bias="free")
    assert point.is_zero
    assert point.bias.tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert point.value == pytest.approx((1 - 0.36 - 0.09 - 0.01) / 2)
    balanced = theory.optimum(class_counts=[2] * 5, lambdas=[9.0], lambda_h=9.0, bias="free")
    assert balanced.value == pytest.approx(4 / 10)


def test_zero_solution_is_returned_with_its_threshold():
    for M in (1, 2, 3):
        point = theory.optimum(class_counts=[4] * 3, lambdas=[1.0] * M, lambda_h=1.0)
        assert point.is_zero
        assert point.value == 0.5
        assert point.threshold == theory.threshold(M)
        assert (point.kappas > point.threshold).all()
        assert point.feature_norms_sq.tolist() == [0, 0, 0]
        made = theory.realise(point, widths=2)
        assert all(not t.any() for t in made.values())


@pytest.mark.parametrize("M", [1, 2])
def test_bias_decay_interpolates_between_etf_and_orthogonal_frame(M):
    setting = {"class_counts": [4] * 3, "lambdas": [0.02] * M, "lambda_h": 0.02}
    free = theory.optimum(**setting, bias="free")
    none = theory.optimum(**setting)
    assert theory.optimum(**setting, bias=1e-9).value == pytest.approx(free.value, abs=1e-8)
    assert theory.optimum(**setting, bias=1e9).value == pytest.approx(none.value, abs=1e-8)
    kappa, star = float(none.kappas[0]), theory.threshold(M)
    edge = kappa / (star - kappa)  # κ(1 + 1/λ_b) = κ*
    below, above = (theory.optimum(**setting, bias=edge * f) for f in (0.999, 1.001))
    mean_direction = torch.ones(3, dtype=torch.float64)
    assert (below.mean_gram @ mean_direction).abs().max() < 1e-12
    assert float(mean_direction @ above.mean_gram @ mean_direction) > 1e-4
    if M == 1:
        assert edge == pytest.approx(kappa / (1 - kappa))
        for lam_b in (0.3, 2.0):
            point = theory.optimum(**setting, bias=lam_b)
            u_mean = max(0, 1 - kappa - kappa / lam_b)
            assert float(point.singular_scales[-1]) == pytest.approx(u_mean, abs=1e-14)
            assert point.bias.tolist() == pytest.approx([(1 - u_mean) / (1 + lam_b) / 3] * 3)


def test_imbalance_keeps_large_classes_and_drops_small_ones():
    lambdas, lam_h = [0.012, 0.012], 0.012
    counts = [40, 20, 4, 1]
    point = theory.optimum(class_counts=counts, lambdas=lambdas, lambda_h=lam_h)
    assert point.surviving_classes == (0, 1, 2)
    bound = theory.minority_threshold(num_samples=65, lambdas=lambdas, lambda_h=lam_h)
    assert [n < bound for n in counts] == [False, False, False, True]
    kappa_at_bound = 65 * (0.012**3) ** (1 / 3) * bound ** (-2 / 3)
    assert kappa_at_bound == pytest.approx(theory.threshold(2))
    assert point.class_logits.diagonal()[3] == 0
    assert float(point.singular_scales[0]) > float(point.singular_scales[2])


def test_small_classes_have_long_features_and_short_weights():
    point = theory.optimum(class_counts=[400, 200, 100], lambdas=[1e-4] * 2, lambda_h=1e-4)
    norms = point.feature_norms_sq.tolist()
    assert norms == sorted(norms)
    assert point.layer_scales.tolist() == sorted(point.layer_scales.tolist(), reverse=True)


def test_bottleneck_width():
    setting = {"class_counts": [4] * 4, "lambdas": [0.01, 0.02], "lambda_h": 0.02}
    phi = theory.optimum(**setting).value
    for r in (1, 2, 3):
        point = theory.optimum(**setting, width=r)
        assert point.value == pytest.approx((r * phi + (4 - r) / 2) / 4, abs=1e-14)
        assert int((point.singular_scales > 0).sum()) == r
        assert point.feature_norms_sq.isnan().all()  # any rank-r projection will do
        made = theory.realise(point, widths=(8, r), generator=gen())
        value, slope = value_and_slopes(made, **setting)
        assert value == pytest.approx(point.value, abs=1e-13)
        assert slope < 1e-12
    free = theory.optimum(**setting, bias="free", width=2)
    assert free.value == pytest.approx((2 * phi + 1 / 2) / 4, abs=1e-14)
    assert theory.optimum(**setting, bias="free", width=3).feature_norms_sq.isfinite().all()
    assert theory.optimum(**setting, width=4).value == phi
    uneven = {"class_counts": [5, 2, 2, 9], "lambdas": [0.01], "lambda_h": 0.02}
    two = theory.optimum(**uneven, width=2)
    assert two.surviving_classes == (0, 3)
    assert two.feature_norms_sq.isfinite().all()
    three = theory.optimum(**uneven, width=3)
    assert three.feature_norms_sq.isnan().tolist() == [False, True, True, False]


# --- landscape -----------------------------------------------------------------------------------


def hessian_eigenvalues(variables, **setting):
    names, shapes = list(variables), [v.shape for v in variables.values()]
    flat = torch.cat([v.reshape(-1) for v in variables.values()])

    def f(x):
        parts = torch.split(x, [math.prod(s) for s in shapes])
        return objective(
            {n: p.reshape(s) for n, p, s in zip(names, parts, shapes, strict=True)}, **setting
        )

    return torch.linalg.eigvalsh(torch.func.hessian(f)(flat))


LANDSCAPE = [
    ({"class_counts": [2] * 3, "lambdas": [0.05], "lambda_h": 0.08}, [4], []),
    ({"class_counts": [2] * 3, "lambdas": [0.05], "lambda_h": 0.08}, [4], [0]),
    ({"class_counts": [2] * 3, "lambdas": [0.05], "lambda_h": 0.08}, [4], [0, 2]),
    ({"class_counts": [2] * 3, "lambdas": [0.05], "lambda_h": 0.08}, [4], [0, 1, 2]),
    ({"class_counts": [4, 2, 1], "lambdas": [0.03], "lambda_h": 0.04}, [4], [1]),
    ({"class_counts": [4, 2, 1], "lambdas": [0.03], "lambda_h": 0.04}, [4], [2]),
    ({"class_counts": [2] * 3, "lambdas": [0.05], "lambda_h": 0.03, "bias": "free"}, [4], [1]),
    ({"class_counts": [2] * 3, "lambdas": [0.02, 0.04], "lambda_h": 0.03}, [4, 3], []),
    ({"class_counts": [2] * 3, "lambdas": [0.02, 0.04], "lambda_h": 0.03}, [4, 3], [1]),
    ({"class_counts": [2] * 3, "lambdas": [0.02, 0.04], "lambda_h": 0.03}, [4, 3], [0, 1]),
    ({"class_counts": [2] * 3, "lambdas": [0.02, 0.04], "lambda_h": 0.03}, [4, 3], [0, 1, 2]),
    ({"class_counts": [3, 2, 2], "lambdas": [0.02, 0.04], "lambda_h": 0.03}, [3, 3], [1, 2]),
    ({"class_counts": [2] * 3, "lambdas": [0.02] * 3, "lambda_h": 0.02}, [3, 3, 4], [0, 2]),
]


@pytest.mark.parametrize(("setting", "widths", "keep"), LANDSCAPE)
def test_hessian_index_and_nullity(setting, widths, keep):
    point = theory.critical_point(**setting, keep=keep)
    made = theory.realise(point, widths=widths, generator=gen(1))
    value, slope = value_and_slopes(made, **setting)
    assert value == pytest.approx(point.value, abs=1e-13)
    assert slope < 1e-12
    eigenvalues = hessian_eigenvalues(made, **setting)
    assert int((eigenvalues < -1e-9).sum()) == theory.hessian_index(point, widths=widths)
    nullity = theory.orbit_dimension(point, widths=widths)
    assert int((eigenvalues.abs() <= 1e-9).sum()) == nullity
    if len(setting["lambdas"]) == 1 and len(keep) < len(point.kappas):
        lowest = theory.lowest_curvature(point)
        assert float(eigenvalues[0]) == pytest.approx(lowest, abs=1e-11)


def test_balanced_index_is_the_published_count():
    setting = {"class_counts": [2] * 3, "lambdas": [0.05], "lambda_h": 0.08}
    counts = [
        theory.hessian_index(theory.critical_point(**setting, keep=range(r)), widths=4)
        for r in range(4)
    ]
    assert counts == [12, 6, 2, 0]
    deep = {"class_counts": [2] * 3, "lambdas": [0.03] * 2, "lambda_h": 0.03}
    for r in range(3):
        point = theory.critical_point(**deep, keep=range(r))
        phi = theory.optimum(**deep).value
        assert point.value == pytest.approx((r * phi + (3 - r) / 2) / 3, abs=1e-14)
        assert theory.hessian_index(point, widths=4) == 0


def test_late_phase_rates_are_sums_of_decays():
    rates = theory.late_phase_rates(lambdas=[0.01, 0.02, 0.05], lambda_h=0.1)
    assert rates == pytest.approx([-0.2, -0.22, -0.26])


# --- ReLU ----------------------------------------------------------------------------------------


def simplex(K):
    return (torch.eye(K) * K - 1).double() / (K - 1)


def antipodal(K):
    return torch.kron(torch.eye(K // 2).double(), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double())


SHAPES = {
    "orthogonal": torch.eye(4).double(),
    "etf": simplex(4),
    "antipodal": antipodal(4),
    "obtuse": torch.eye(4).double() * 1.2 - 0.2,
}
RELU = {"lambdas": [0.01, 0.02], "lambda_h": 0.005}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("generator", [None, 5])
def test_relu_minimisers_attain_the_linear_value(shape, generator):
    generator = None if generator is None else gen(generator)
    n, S = 3, SHAPES[shape]
    made = theory.relu_point(S, n=n, **RELU, widths=(5, 9), generator=generator)
    setting = {"class_counts": [n] * 4, **RELU}
    value, _ = value_and_slopes(made, **setting, relu=True)
    assert value == pytest.approx(theory.optimum(**setting).value, abs=1e-14)
    means = made["features"][::n]
    gram = means @ means.T
    torch.testing.assert_close(gram / gram[0, 0], S, atol=1e-12, rtol=0)
    hidden = (means @ made["weight_1"].T).relu()
    gram = hidden @ hidden.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(4).double(), atol=1e-12, rtol=0)
    assert (made["weight_2"] >= 0).all()
    # one-sided: no small step in any random direction goes down
    for seed in range(20):
        moved = {
            k: v + 1e-4 * torch.randn(v.shape, generator=gen(seed), dtype=torch.float64)
            for k, v in made.items()
        }
        assert objective(moved, **setting, relu=True) > value - 1e-15


def test_relu_point_is_worse_at_acute_angles():
    S = torch.eye(4).double() * 0.8 + 0.2
    with pytest.raises(InputError, match="acute"):
        theory.relu_point(S, n=3, **RELU, widths=8)
    made = theory.relu_point(S, n=3, **RELU, widths=8, require_obtuse=False)
    setting = {"class_counts": [3] * 4, **RELU}
    value, _ = value_and_slopes(made, **setting, relu=True)
    assert value > theory.optimum(**setting).value + 1e-3


def test_relu_point_beyond_the_threshold_is_zero():
    made = theory.relu_point(torch.eye(3), n=2, lambdas=[1.0, 1.0], lambda_h=1.0, widths=4)
    assert all(not t.any() for t in made.values())


@settings(max_examples=60, deadline=None)
@given(K=st.integers(2, 6), extra=st.integers(0, 6), seed=st.integers(0, 10**6))
def test_two_layer_ratio_is_at_least_one(K, extra, seed):
    rng = np.random.default_rng(seed)
    assert theory.two_layer_ratio(rng.standard_normal((K, K + extra))) >= 1 - 1e-12
    circle = np.cos(2 * np.pi * np.subtract.outer(np.arange(K), np.arange(K)) / K)
    assert theory.two_layer_ratio(circle) >= 1 - 1e-12


def test_two_layer_ratio_by_hand():
    for S in SHAPES.values():
        assert theory.two_layer_ratio(3 * S) == pytest.approx(1, abs=1e-12)
    # Z = diag(1, 2): ‖Z⁻¹‖² ‖Z‖_*² / 8 = (1 + 1/4) · 9 / 8
    assert theory.two_layer_ratio([[1.0, 0.0], [0.0, 2.0]]) == pytest.approx(1.25 * 9 / 8)
    assert theory.two_layer_ratio(-np.eye(3)) == math.inf


@pytest.mark.parametrize(
    ("L", "r", "q"),
    [
        (3, 4, 1.0561),
        (3, 5, 1.0444),
        (4, 4, 0.9633),
        (4, 5, 0.9014),
        (4, 6, 0.8569),
        (5, 5, 0.8170),
    ],
)
def test_low_rank_chain_costs_of_the_spec(L, r, q):
    assert theory.chain_cost(*theory.complete_graph_chain(r, L)) == pytest.approx(q, abs=6e-5)


@pytest.mark.parametrize(("L", "r"), [(3, 4), (4, 4), (5, 3)])
def test_low_rank_chain_at_its_best_scale(L, r):
    n, lambdas, lam_h = 2, [1e-3 * (j + 1) for j in range(L)], 2e-3
    means, weights = theory.complete_graph_chain(r, L)
    decays = {"n": n, "lambdas": lambdas, "lambda_h": lam_h}
    value, made = theory.chain_point(means, weights, **decays)
    setting = {"class_counts": [n] * len(means), "lambdas": lambdas, "lambda_h": lam_h}
    assert float(objective(made, **setting, relu=True)) == pytest.approx(value, abs=1e-13)

    def scaled(logs):  # oracle: an optimiser over the scale of every factor
        return float(
            objective(
                {k: v * math.exp(x) for (k, v), x in zip(made.items(), logs, strict=True)},
                **setting,
                relu=True,
            )
        )

    found = minimize(scaled, 0.1 * np.random.default_rng(0).standard_normal(L + 1))
    assert found.fun == pytest.approx(value, abs=1e-8)
    result = theory.graph_competitor(r, **decays)
    assert (result.value, result.num_classes, result.hidden_rank) == (value, r * (r - 1) // 2, r)
    assert result.dnc_value == theory.optimum(**setting).value
    if r > 3:  # K = 3 classes on 3 nodes is not low rank
        assert (result.ratio < 1) == (result.cost < 1)
    hidden = made["features"][::n]
    for j in range(1, L - 1):
        hidden = (hidden @ made[f"weight_{j}"].T).relu()
        assert torch.linalg.matrix_rank(hidden) == r


@pytest.mark.parametrize(("L", "q"), [(3, 1.0817), (4, 0.9819), (5, 0.9205)])
def test_segment_chain(L, q):
    means, weights = theory.segment_chain(L)
    cost = theory.chain_cost(means, weights)
    assert cost == pytest.approx(q, abs=6e-5)
    for change in ({"middle": 0.85}, {"middle": 0.95}, {"tilt": 0.6}, {"tilt": 0.8}):
        assert theory.chain_cost(*theory.segment_chain(L, **change)) > cost
    lambdas = [1e-3 * (j + 1) for j in range(L)]
    value, made = theory.chain_point(means, weights, n=2, lambdas=lambdas, lambda_h=2e-3)
    setting = {"class_counts": [2] * 3, "lambdas": lambdas, "lambda_h": 2e-3}
    assert float(objective(made, **setting, relu=True)) == pytest.approx(value, abs=1e-13)
    assert torch.linalg.matrix_rank(made["features"]) == 2


def test_deep_collapse_is_a_chain_of_cost_one():
    identity = torch.eye(4).double()
    for L in (2, 3, 5):
        assert theory.chain_cost(
            2 * identity, [identity, 3 * identity, identity] + [identity] * (L - 2)
        ) == (pytest.approx(1))


# --- bad input -----------------------------------------------------------------------------------

GOOD = {"class_counts": [2, 2], "lambdas": [0.1], "lambda_h": 0.1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_counts": [2, 0]}, r"class_counts\[1\]"),
        ({"class_counts": [2, -1]}, "at least 1"),
        ({"class_counts": [2, 1.5]}, "integer"),
        ({"class_counts": [5]}, "two classes"),
        ({"class_counts": 5}, "class_counts must list"),
        ({"class_counts": "22"}, "class_counts must list"),
        ({"lambdas": []}, "depth"),
        ({"lambdas": 0.1}, "lambdas must list"),
        ({"lambdas": [0.1, 0.0]}, r"lambdas\[1\] must be greater than 0"),
        ({"lambdas": [-0.1]}, "greater than 0"),
        ({"lambdas": [math.nan]}, "finite"),
        ({"lambdas": ["0.1"]}, "finite number"),
        ({"lambdas": [True]}, "finite number"),
        ({"lambda_h": 0}, "lambda_h must be greater than 0"),
        ({"lambda_h": math.inf}, "finite"),
        ({"bias": "yes"}, "bias must be one of"),
        ({"bias": 0.0}, "free"),
        ({"bias": -1}, "lambda_b > 0"),
        ({"bias": None}, "bias must be"),
        ({"bias": True}, "bias must be"),
        ({"class_counts": [3, 2], "bias": 0.1}, "unequal class_counts"),
        ({"width": 0}, "width"),
        ({"width": 2.5}, "width"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(InputError, match=message):
        theory.optimum(**(GOOD | change))


def test_bad_arguments_elsewhere():
    point = theory.optimum(**GOOD)
    for call, message in (
        (lambda: theory.threshold(0), "at least 1"),
        (lambda: theory.existence_threshold(1.5), "integer"),
        (lambda: theory.local_scale(-0.1, 2), "kappa"),
        (lambda: theory.realise(point, widths=1), "cannot hold a solution of rank 2"),
        (lambda: theory.realise(point, widths=[3, 3]), "1 widths"),
        (lambda: theory.critical_point(**GOOD, keep=[0, 0]), "distinct"),
        (lambda: theory.critical_point(**GOOD, keep=[2]), "distinct directions in 0..1"),
        (
            lambda: theory.critical_point(
                class_counts=[2, 2], lambdas=[1, 1], lambda_h=1, keep=[0]
            ),
            "exceeds",
        ),
        (lambda: theory.lowest_curvature(point), "no direction is missing"),
        (lambda: theory.kappa(num_classes=1, n=2, lambdas=[1], lambda_h=1), "num_classes"),
        (lambda: theory.relu_point(torch.eye(2), n=1, lambdas=[1], lambda_h=1, widths=2), "λ_2"),
        (
            lambda: theory.relu_point(
                torch.eye(3) - 1 + torch.eye(3), n=1, lambdas=[1, 1], lambda_h=1, widths=3
            ),
            "positive semidefinite",
        ),
        (lambda: theory.relu_point(torch.eye(3), n=1, **RELU, widths=(3, 2)), "width 2"),
        (lambda: theory.chain_cost(torch.eye(2), [-torch.eye(2)] * 2), "multiple of I_K"),
        (lambda: theory.complete_graph_chain(4, 2), "depth"),
        (lambda: theory.minority_threshold(num_samples=0, lambdas=[1], lambda_h=1), "num_samples"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    biased = theory.optimum(**GOOD, bias=0.3)
    with pytest.raises(InputError, match="landscape"):
        theory.hessian_index(biased, widths=3)
    with pytest.raises(InputError, match="without a bias"):
        _ = biased.surviving_classes
