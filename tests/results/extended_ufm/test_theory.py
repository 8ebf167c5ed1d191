"""Closed forms of the extended unconstrained-features model against independent oracles."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nclib import losses
from nclib.checks import InputError
from nclib.results.extended_ufm import theory
from nclib.ufm.model import UFM


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(counts, decays, widths=20, **options):
    return theory.problem(counts, decays, widths=widths, **options)


def objective(point, problem):
    """The objective written down once more, column convention of the papers."""
    N, K = len(problem.targets), problem.K
    Y = torch.zeros(K, N, dtype=torch.float64)
    Y[problem.targets, torch.arange(N)] = 1
    lambda_h, *lambdas = problem.decays
    hidden = point["features"].T
    total = lambda_h / 2 * (hidden**2).sum()
    for name, lam in zip(problem.layers, lambdas, strict=True):
        hidden = point[name] @ hidden
        if problem.relu and name != "weight":
            hidden = torch.clamp(hidden, min=0)
        total = total + lam / 2 * (point[name] ** 2).sum()
    if "bias" in point:
        hidden = hidden + point["bias"][:, None]
        total = total + problem.bias / 2 * (point["bias"] ** 2).sum()
    return total + ((hidden - Y) ** 2).sum() / (2 * N)


def value_and_slope(point, problem):
    point = {k: v.clone().requires_grad_() for k, v in point.items()}
    value = objective(point, problem)
    slopes = torch.autograd.grad(value, list(point.values()))
    return value.item(), max(s.abs().max().item() for s in slopes)


# --- optimum -------------------------------------------------------------------------------------


def test_thresholds_of_the_papers():
    expected = [1, 0.396850263, 0.272165527, 0.210366590]
    existence = [1, 0.472470394, 0.384900179, 0.346975474]
    polynomial = [1, 1 / 16, 4 / 729, 27 / 65536]  # bounds on K^{M+1} nΛ = κ^{M+1}
    for M in range(1, 5):
        star, exists = theory.thresholds(M)
        assert star == pytest.approx(expected[M - 1], abs=1e-9)
        assert exists == pytest.approx(existence[M - 1], abs=1e-9)
        assert star ** (M + 1) == pytest.approx(polynomial[M - 1], abs=1e-13)


REFERENCE = [  # K=4, n=50, all decays 5e-3: κ, u, f*, f* with free bias, ‖h‖²
    (1, 0.1414213562, 0.8585786438, 0.1314213562, 0.0985660172, 0.1214213562),
    (2, 0.0736806300, 0.9243621315, 0.1077357156, 0.0808017867, 0.0699167814),
    (3, 0.0531829590, 0.9452999557, 0.1049119463, 0.0786839597, None),
]


@pytest.mark.parametrize(("M", "kappa", "u", "value", "biased", "norm"), REFERENCE)
def test_reference_values(M, kappa, u, value, biased, norm):
    decays = [5e-3] * (M + 1)
    plain, free = (theory.optimum(problem([50] * 4, decays, bias=b)) for b in (None, 0.0))
    assert plain.kappas.tolist() == pytest.approx([kappa] * 4, abs=1e-10)
    assert theory.kappa(4, 50, decays) == pytest.approx(kappa, abs=1e-10)
    assert plain.scales.tolist() == pytest.approx([u] * 4, abs=1e-10)
    assert free.scales.tolist() == pytest.approx([u] * 3, abs=1e-10)
    assert plain.value == pytest.approx(value, abs=1e-10)
    assert free.value == pytest.approx(biased, abs=1e-10)
    if norm:
        assert plain.feature_norms_sq.tolist() == pytest.approx([norm] * 4, abs=1e-10)
        assert free.feature_norms_sq.tolist() == pytest.approx([norm * 3 / 4] * 4, abs=1e-10)


def test_one_layer_formulas_of_the_paper():
    n, K, lam_w, lam_h = 7, 5, 0.011, 0.004
    c = K * math.sqrt(n * lam_w * lam_h)
    point = theory.optimum(problem([n] * K, [lam_h, lam_w], widths=6))
    assert point.value == pytest.approx(c - c**2 / 2, abs=1e-14)
    expected = (1 - c) * math.sqrt(lam_w / (n * lam_h))
    assert point.feature_norms_sq.tolist() == pytest.approx([expected] * K, rel=1e-12)
    made = theory.realise(point, gen())
    scaled = math.sqrt(n * lam_h / lam_w) * made["features"][::n]
    torch.testing.assert_close(made["weight"], scaled, atol=1e-12, rtol=0)


SETTINGS = [
    ([3] * 3, [0.03, 0.02], None),
    ([4] * 4, [0.01, 0.02, 0.03], 0.0),
    ([6, 3, 1], [0.01, 0.02, 0.01, 0.03], None),
    ([6, 3, 1], [0.01, 0.012, 0.02], 0.0),
    ([3] * 4, [0.01, 0.02, 0.03], 0.4),
    ([3] * 4, [0.01, 0.05], 0.05),
    ([9, 1], [0.02, 0.03], 0.0),
    ([30, 2, 2], [0.02, 0.03, 0.04], None),
]


@pytest.mark.parametrize(("counts", "decays", "bias"), SETTINGS)
def test_realised_point_attains_the_value_and_is_stationary(counts, decays, bias):
    K, M = len(counts), len(decays) - 1
    asked = problem(counts, decays, widths=[K + 1 + j for j in range(M)], bias=bias)
    point = theory.optimum(asked)
    made = theory.realise(point, gen(3))
    value, slope = value_and_slope(made, asked)
    assert value == pytest.approx(point.value, abs=1e-13)
    assert slope < 1e-12
    hidden = means = made["features"][np.cumsum([0, *counts])[:-1]]
    torch.testing.assert_close(means @ means.T, point.mean_gram, atol=1e-12, rtol=0)
    for name, norm_sq in zip(asked.layers, point.weight_norms_sq, strict=True):
        hidden = hidden @ made[name].T
        torch.testing.assert_close(made[name].square().sum(), norm_sq, atol=1e-12, rtol=0)
    logits = hidden + made.get("bias", 0.0)
    torch.testing.assert_close(logits, point.class_logits, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("counts", "decays", "decay"), [s for s in SETTINGS if len(s[1]) == 2])
def test_one_layer_optimum_solves_the_convex_problem(counts, decays, decay):
    """Oracle: min ‖Z + b1ᵀ − Y‖²/(2N) + √(λ_W λ_H) ‖Z‖_* (+ λ_b/2 ‖b‖²), by cvxpy."""
    cp = pytest.importorskip("cvxpy")
    N, K = sum(counts), len(counts)
    Y = np.eye(K)[np.repeat(np.arange(K), counts)].T
    Z, b = cp.Variable((K, N)), cp.Variable((K, 1))
    fit = Z if decay is None else Z + b @ np.ones((1, N))
    loss = cp.sum_squares(fit - Y) / (2 * N) + math.sqrt(math.prod(decays)) * cp.normNuc(Z)
    loss = loss + (decay or 0.0) / 2 * cp.sum_squares(b)
    best = cp.Problem(cp.Minimize(loss)).solve(solver=cp.CLARABEL)
    found = theory.optimum(problem(counts, decays, bias=decay)).value
    assert found == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("M", [2, 3])
def test_deep_optimum_beats_random_schatten_candidates(M):
    """Oracle: no Z near or far does better in the Schatten form of the problem."""
    counts, decays = [5, 3, 2], [0.02, 0.01, 0.02, 0.015][: M + 1]
    point = theory.optimum(problem(counts, decays))
    Y, rng, N = np.diag(np.sqrt(counts)), np.random.default_rng(0), 10

    def f(Z):
        s = np.linalg.svd(Z, compute_uv=False)
        penalty = (M + 1) / 2 * math.prod(decays) ** (1 / (M + 1)) * (s ** (2 / (M + 1))).sum()
        return ((Y - Z) ** 2).sum() / (2 * N) + penalty

    best = Y * point.scales.numpy()
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
    bias=st.sampled_from([None, 0.0]),
)
def test_relabelling_and_swapping_decays(counts, order, M, bias):
    decays = [0.002, *(0.001 * (j + 1) for j in range(M))]
    point = theory.optimum(problem(counts, decays, bias=bias))
    shuffle = list(range(len(counts)))
    order.shuffle(shuffle)
    swapped = [decays[0], *decays[:0:-1]]
    other = theory.optimum(problem([counts[i] for i in shuffle], swapped, bias=bias))
    assert other.value == pytest.approx(point.value, abs=1e-12)
    torch.testing.assert_close(other.mean_gram, point.mean_gram[shuffle][:, shuffle])
    assert other.weight_norms_sq.tolist() == pytest.approx(point.weight_norms_sq.tolist()[::-1])


def test_shared_rows_and_nearly_balanced_classes():
    """One row per class is the same problem, and the exact basis used for equal counts agrees with
    the singular value decomposition."""
    setting = {"widths": 4, "decays": (1e-6, 0.01, 0.02), "bias": 0.0, "shared": True}
    even, odd = (
        theory.optimum(UFM.classes(counts, losses.MeanSquaredError(), **setting))
        for counts in ([10**6] * 3, [10**6, 10**6, 10**6 + 1])
    )
    assert odd.value == pytest.approx(even.value, rel=1e-6)
    torch.testing.assert_close(odd.mean_gram, even.mean_gram, rtol=1e-4, atol=0)
    made = theory.realise(odd)
    assert float(odd.problem.value(made)) == pytest.approx(odd.value, abs=1e-13)


def test_free_bias_fits_the_class_frequencies():
    point = theory.optimum(problem([6, 3, 1], [9.0, 9.0], bias=0.0))
    assert point.is_zero
    assert point.bias.tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert point.value == pytest.approx((1 - 0.36 - 0.09 - 0.01) / 2)


def test_zero_solution_where_decay_is_too_large():
    for M in (1, 2, 3):
        point = theory.optimum(problem([4] * 3, [1.0] * (M + 1), widths=2))
        assert point.is_zero
        assert point.value == 0.5
        assert point.feature_norms_sq.tolist() == [0, 0, 0]
        assert all(not t.any() for t in theory.realise(point).values())


@pytest.mark.parametrize("M", [1, 2])
def test_bias_decay_interpolates_between_etf_and_orthogonal_frame(M):
    at = lambda bias: theory.optimum(problem([4] * 3, [0.02] * (M + 1), bias=bias))
    assert at(1e-9).value == pytest.approx(at(0.0).value, abs=1e-8)
    assert at(1e9).value == pytest.approx(at(None).value, abs=1e-8)
    kappa, star = float(at(None).kappas[0]), theory.thresholds(M)[0]
    edge = kappa / (star - kappa)  # κ(1 + 1/λ_b) = κ*
    below, above = (at(edge * f) for f in (0.999, 1.001))
    mean_direction = torch.ones(3, dtype=torch.float64)
    assert (below.mean_gram @ mean_direction).abs().max() < 1e-12
    assert float(mean_direction @ above.mean_gram @ mean_direction) > 1e-4
    for lam_b in (0.3, 2.0) if M == 1 else ():
        u_mean = max(0, 1 - kappa - kappa / lam_b)
        assert float(at(lam_b).scales[-1]) == pytest.approx(u_mean, abs=1e-14)
        assert at(lam_b).bias.tolist() == pytest.approx([(1 - u_mean) / (1 + lam_b) / 3] * 3)


def test_imbalance_drops_small_classes_and_orders_the_norms():
    counts, decays = [40, 20, 4, 1], [0.012] * 3
    point = theory.optimum(problem(counts, decays))
    assert (point.scales > 0).tolist() == [True, True, True, False]
    bound = theory.minority_threshold(65, decays)
    assert [n < bound for n in counts] == [False, False, False, True]
    assert 65 * 0.012 * bound ** (-2 / 3) == pytest.approx(theory.thresholds(2)[0])  # κ_k = κ*
    assert point.class_logits.diagonal()[3] == 0
    light = theory.optimum(problem([400, 200, 100], [1e-4] * 3))
    assert light.feature_norms_sq.diff().min() > 0
    assert light.layer_scales.diff().max() < 0


def test_bottleneck_width():
    decays = [0.02, 0.01, 0.02]
    at = lambda r, bias=None: theory.optimum(problem([4] * 4, decays, widths=(8, r), bias=bias))
    phi = at(4).value
    for r in (1, 2, 3):
        point = at(r)
        assert point.value == pytest.approx((r * phi + (4 - r) / 2) / 4, abs=1e-14)
        assert int((point.scales > 0).sum()) == r
        assert point.feature_norms_sq.isnan().all()  # any rank-r projection will do
        value, slope = value_and_slope(theory.realise(point, gen()), point.problem)
        assert value == pytest.approx(point.value, abs=1e-13)
        assert slope < 1e-12
    assert at(2, 0.0).value == pytest.approx((2 * phi + 1 / 2) / 4, abs=1e-14)
    assert at(3, 0.0).feature_norms_sq.isfinite().all()
    two, three = (theory.optimum(problem([5, 2, 2, 9], [0.02, 0.01], widths=r)) for r in (2, 3))
    assert (two.scales > 0).tolist() == [True, False, False, True]
    assert two.feature_norms_sq.isfinite().all()
    assert three.feature_norms_sq.isnan().tolist() == [False, True, True, False]


# --- landscape -----------------------------------------------------------------------------------


def hessian_eigenvalues(point, problem):
    sizes = [v.numel() for v in point.values()]

    def f(x):
        parts = zip(point, torch.split(x, sizes), strict=True)
        return objective({n: p.reshape(point[n].shape) for n, p in parts}, problem)

    flat = torch.cat([v.reshape(-1) for v in point.values()])
    return torch.linalg.eigvalsh(torch.func.hessian(f)(flat))


LANDSCAPE = [
    ([2] * 3, [0.08, 0.05], None, [4], []),
    ([2] * 3, [0.08, 0.05], None, [4], [0]),
    ([2] * 3, [0.08, 0.05], None, [4], [0, 1, 2]),
    ([4, 2, 1], [0.04, 0.03], None, [4], [1]),
    ([4, 2, 1], [0.04, 0.03], None, [4], [2]),
    ([4, 2, 1], [0.04, 0.03], None, [2], [2]),
    ([4, 2, 1], [0.04, 0.03], None, [2], [0, 2]),
    ([2] * 3, [0.03, 0.05], 0.0, [4], [1]),
    ([2] * 3, [0.03, 0.02, 0.04], None, [4, 3], []),
    ([2] * 3, [0.03, 0.02, 0.04], None, [4, 3], [0, 1]),
    ([2] * 3, [0.03, 0.02, 0.04], None, [4, 3], [0, 1, 2]),
    ([3, 2, 2], [0.03, 0.02, 0.04], None, [3, 3], [1, 2]),
    ([2] * 3, [0.02] * 4, None, [3, 3, 4], [0, 2]),
]


@pytest.mark.parametrize(("counts", "decays", "bias", "widths", "keep"), LANDSCAPE)
def test_hessian_index_and_nullity(counts, decays, bias, widths, keep):
    point = theory.critical_point(problem(counts, decays, widths, bias=bias), keep)
    made = theory.realise(point, gen(1))
    value, slope = value_and_slope(made, point.problem)
    assert value == pytest.approx(point.value, abs=1e-13)
    assert slope < 1e-12
    eigenvalues = hessian_eigenvalues(made, point.problem)
    assert int((eigenvalues < -1e-9).sum()) == theory.hessian_index(point)
    assert int((eigenvalues.abs() <= 1e-9).sum()) == theory.orbit_dimension(point)
    if point.depth == 1 and len(keep) < min(len(point.kappas), widths[0]):
        assert float(eigenvalues[0]) == pytest.approx(theory.lowest_curvature(point), abs=1e-11)


def test_balanced_index_is_the_published_count_and_levels_are_evenly_spaced():
    at = lambda decays, r: theory.critical_point(problem([2] * 3, decays, widths=4), range(r))
    assert [theory.hessian_index(at([0.08, 0.05], r)) for r in range(4)] == [12, 6, 2, 0]
    deep = [0.03] * 3
    phi = theory.optimum(problem([2] * 3, deep)).value
    for r in range(3):
        assert at(deep, r).value == pytest.approx((r * phi + (3 - r) / 2) / 3, abs=1e-14)
        assert theory.hessian_index(at(deep, r)) == 0


# --- ReLU ----------------------------------------------------------------------------------------

IDENTITY = torch.eye(4, dtype=torch.float64)
OPPOSITE = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
SHAPES = {
    "orthogonal": IDENTITY,
    "etf": (4 * IDENTITY - 1) / 3,
    "antipodal": torch.block_diag(OPPOSITE, OPPOSITE),
    "obtuse": 1.2 * IDENTITY - 0.2,
}
RELU = {"counts": [3] * 4, "decays": [0.005, 0.01, 0.02], "relu": True}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [None, 5])
def test_relu_minimisers_attain_the_linear_value(shape, seed):
    asked, S = problem(**RELU, widths=(5, 9)), SHAPES[shape]
    made = theory.relu_point(asked, S, None if seed is None else gen(seed))
    value, _ = value_and_slope(made, asked)
    assert value == pytest.approx(theory.optimum(asked).value, abs=1e-14)
    collapsed = theory.realise(theory.optimum(asked), None if seed is None else gen(seed))
    assert value_and_slope(collapsed, asked)[0] == pytest.approx(value, abs=1e-14)
    means = made["features"][::3]
    gram = means @ means.T
    torch.testing.assert_close(gram / gram[0, 0], S, atol=1e-12, rtol=0)
    hidden = (means @ made["hidden_1"].T).relu()
    gram = hidden @ hidden.T
    torch.testing.assert_close(gram, gram[0, 0] * IDENTITY, atol=1e-12, rtol=0)
    assert (made["weight"] >= 0).all()
    for kick in range(20):  # one-sided: no small step in any random direction goes down
        noise = {k: torch.randn(v.shape, generator=gen(kick)).double() for k, v in made.items()}
        moved = {k: v + 1e-4 * noise[k] for k, v in made.items()}
        assert objective(moved, asked) > value - 1e-15


@pytest.mark.parametrize(("counts", "S", "widths"), [
    ([3] * 4, SHAPES["antipodal"], (2, 8)), ([3] * 2, OPPOSITE, (1, 8)),
])  # fmt: skip
def test_a_relu_needs_half_the_width_where_the_linear_model_has_no_closed_form(counts, S, widths):
    asked = problem(counts, RELU["decays"], widths=widths, relu=True)
    value, _ = value_and_slope(theory.relu_point(asked, S), asked)
    wide, narrow = (theory.optimum(problem(counts, RELU["decays"], w)).value for w in (4, widths))
    assert value == pytest.approx(wide, abs=1e-14)
    assert value < narrow - 0.1
    with pytest.raises(InputError, match="widths of at least K"):
        theory.optimum(asked)


@pytest.mark.parametrize(("n", "decays"), [(1, (1, 1, 1)), (3, (1, 2, 0.5))])
@pytest.mark.parametrize(("share", "below"), [(0.9, False), (0.95, True), (1.0, True)])
def test_a_hexagon_is_lower_than_the_linear_optimum_near_the_threshold(n, decays, share, below):
    """Oracle: eigenvalues of circulants.  In units of κ, f = Σ κ/(12 (c² + κ)) + κ ‖Z‖_*/6."""
    kappa = share * 0.5 ** (4 / 3)
    lam = kappa / (6 * (n * math.prod(decays)) ** (1 / 3))
    asked = problem([n] * 6, [lam * x for x in decays], widths=7, relu=True)
    made = theory.hexagon_point(asked)
    value, _ = value_and_slope(made, asked)
    row = 0.42 * np.array([1, 1, 0, -1, -1, 0])
    z, c = (np.abs(np.fft.fft(x)) for x in (row, row.clip(0)))
    assert value == pytest.approx((kappa / (12 * (c**2 + kappa))).sum() + kappa * z.sum() / 6)
    assert (value < theory.optimum(replace(asked, relu=False)).value) == below
    assert torch.linalg.matrix_rank(made["features"]) == 2
    gain = theory.nuclear_gain(made["features"] @ made["hidden_1"].T)
    assert gain == pytest.approx((2 + 3**0.5) / (2 * 3**0.5))
    weight = made["weight"].requires_grad_()
    (slope,) = torch.autograd.grad(objective(made, asked), weight)
    assert slope.abs().max() < 1e-14  # the classifier is optimal


def test_relu_point_is_worse_at_acute_angles_and_zero_beyond_the_threshold():
    asked = problem(**RELU, widths=8)
    value, _ = value_and_slope(theory.relu_point(asked, 0.8 * IDENTITY + 0.2), asked)
    assert value > theory.optimum(asked).value + 1e-3
    heavy = problem([2] * 3, [1.0] * 3, widths=4, relu=True)
    made = theory.relu_point(heavy, torch.eye(3))
    assert all(not t.any() for t in made.values())


COSTS = [(3, 4, 1.0561), (3, 5, 1.0444), (4, 4, 0.9633), (4, 5, 0.9014), (5, 5, 0.8170)]
SEGMENTS = [(3, 1.0817), (4, 0.9819), (5, 0.9205)]
CHAINS = [(theory.complete_graph_chain(r, L), r, q) for L, r, q in COSTS]
CHAINS += [(theory.segment_chain(3, L), 2, q) for L, q in SEGMENTS]
# S = σ(Z) has SSᵀ = a + bA + cD of the triangular graph; q³ = tr (SSᵀ)⁻¹ ‖Z‖_*² / K³
CHAINS += [(theory.halves_chain(r), r - 1, q3 ** (1 / 3)) for r, q3 in ((6, 26 / 27), (8, 23 / 24))]


@pytest.mark.parametrize(("chain", "rank", "q"), CHAINS)
def test_low_rank_chain_at_its_best_scale(chain, rank, q):
    means, weights = chain
    K, L = len(means), len(weights)
    assert theory.chain_cost(means, weights) == pytest.approx(q, abs=6e-5)
    decays = [2e-3, *(1e-3 * (j + 1) for j in range(L))]
    width = max(K, *map(len, weights)) + 1
    asked = problem([2] * K, decays, widths=width, relu=True)
    value, made = theory.chain_point(asked, means, weights)
    assert float(objective(made, asked)) == pytest.approx(value, abs=1e-13)
    assert (value < theory.optimum(replace(asked, relu=False)).value) == (q < 1)

    def scaled(logs):  # oracle: an optimiser over the scale of every factor
        factors = zip(made.items(), logs, strict=True)
        return float(objective({k: v * math.exp(x) for (k, v), x in factors}, asked))

    found = minimize(scaled, 0.1 * np.random.default_rng(0).standard_normal(L + 1))
    assert found.fun == pytest.approx(value, abs=1e-8)
    hidden = made["features"][::2]
    for name in asked.layers[:-2]:
        hidden = (hidden @ made[name].T).relu()
        assert torch.linalg.matrix_rank(hidden) == rank


def test_segment_chain_carries_further_orthogonal_classes_and_deep_collapse_costs_one():
    for K in (4, 7):  # three classes cost q_3, every other one as much as in deep collapse
        means, weights = theory.segment_chain(K, 4)
        assert theory.chain_cost(means, weights) == pytest.approx(
            (3 * 0.98188 + K - 3) / K, abs=1e-5
        )
        assert torch.linalg.matrix_rank(means) == K - 1
    weights = [IDENTITY, 3 * IDENTITY, IDENTITY]
    for L in (2, 3):
        assert theory.chain_cost(2 * IDENTITY, weights[:L]) == pytest.approx(1)


def test_nuclear_norm_that_a_relu_raises():
    """Eigenvalues of the circulant max(cos, 0) by the FFT; its sum tends to 2/π + 1/2."""
    for K in (6, 21):
        row = np.cos(2 * np.pi * np.arange(K) / K)
        gain = np.abs(np.fft.fft(row.clip(0))).sum() / np.abs(np.fft.fft(row)).sum()
        assert theory.nuclear_gain(theory.circle(K)) == pytest.approx(gain, abs=1e-12)
    assert theory.nuclear_gain(theory.circle(400)) == pytest.approx(2 / np.pi + 0.5, abs=1e-3)
    assert theory.nuclear_gain([[1.0, 0.0], [0.0, -3.0]]) == pytest.approx(0.25)


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decays": [0.1, 0.0]}, r"decays\[1\] must be greater than 0"),
        ({"decays": [math.nan, 0.1]}, r"decays\[0\] must be a finite number"),
        ({"decays": ["0.1", 0.1]}, "finite number"),
        ({"counts": [3, 2], "bias": 0.1}, "unequal class sizes"),
    ],
)
def test_bad_settings(change, message):
    good = {"counts": [2, 2], "decays": [0.1, 0.1]}
    with pytest.raises(InputError, match=message):
        theory.optimum(problem(**(good | change)))


def test_bad_arguments_elsewhere():
    good = problem([2, 2], [0.1, 0.1])
    point = theory.optimum(good)
    heavy = problem([2, 2], [1.0] * 3)
    relu = problem([1] * 3, [0.1] * 3, widths=(3, 2), relu=True)
    other = UFM.classes([2, 2], losses.CrossEntropy(), widths=2, decays=(0.1, 0.1))
    deep = lambda K, d, **options: problem([2] * K, [0.01] * 4, d, relu=True, **options)
    with_relu = lambda *a, **options: theory.optimum(problem(*a, relu=True, **options))
    known, near = "closed forms are known for", [0.06] * 3  # κ = 0.36, κ* = 0.397
    squared, layer = losses.MeanSquaredError(), {"widths": 2, "decays": (0.1, 0.1)}
    for change in ({"scale": 2.0}, {"nonnegative": True}, {"fixed": {"weight": torch.eye(2)}},
                   {"bias": [0.1, 0.2]}, {"targets": [0, 2]}):  # fmt: skip
        with pytest.raises(InputError, match=known):
            theory.optimum(UFM(**{"loss": squared, "targets": [0, 1]} | layer | change))
    for call, message in (
        (lambda: theory.optimum(other), known),
        (lambda: with_relu([2] * 3, [0.01] * 4), "two layers and at most four classes, or K = 2"),
        (lambda: with_relu([2] * 3, [0.01] * 3, bias=0.0), "no bias"),
        (lambda: with_relu([1] * 5, near), "at most four"),
        (lambda: theory.hexagon_point(problem([1] * 5, near, relu=True)), "six classes"),
        (lambda: theory.critical_point(problem([2] * 3, [0.01] * 2, 2), [0, 1, 2]), "width of 2"),
        (lambda: theory.kappa(1, 2, near), "K must be at least 2"),
        (lambda: theory.kappa(3, 2, [0.1, 0.0]), "greater than 0"),
        (lambda: theory.minority_threshold(-3, near), "N must be at least 1"),
        (lambda: theory.late_phase_rates([0.1, -0.1]), "greater than 0"),
        (lambda: theory.circle(0), "K must be at least 1"),
        (lambda: theory.chain_cost(torch.eye(2), [torch.eye(3)]), "2 columns"),
        (lambda: theory.critical_point(good, [0, 0]), "distinct"),
        (lambda: theory.critical_point(good, [2]), "distinct directions in 0..1"),
        (lambda: theory.critical_point(heavy, [0]), "exceeds"),
        (lambda: theory.lowest_curvature(point), "no direction is missing"),
        (lambda: theory.lowest_curvature(theory.optimum(heavy)), "M = 1 only"),
        (lambda: theory.lowest_curvature(theory.optimum(problem([2, 1], [0.1, 0.1], 1))), "spare"),
        (lambda: theory.relu_point(relu, 2 * torch.eye(3) - 1), "positive semidefinite"),
        (lambda: theory.relu_point(relu, torch.eye(2)), r"symmetric \(3, 3\)"),
        (lambda: theory.relu_point(relu, torch.eye(3)), "width of 2"),
        (lambda: theory.chain_cost(torch.eye(2), [-torch.eye(2)] * 2), "multiple of I_K"),
        (
            lambda: theory.relu_point(problem([1, 2], [0.1] * 3, relu=True), torch.eye(2)),
            "balanced",
        ),
        (lambda: theory.relu_point(problem([2, 2], [0.1] * 3), torch.eye(2)), "relu=True"),
        (
            lambda: theory.relu_point(problem([2, 2], [0.1] * 2, relu=True), torch.eye(2)),
            "3 decays",
        ),
        (lambda: theory.chain_point(relu, *theory.segment_chain(3, 3)), "4 decays"),
        (lambda: theory.chain_point(deep(3, 2), *theory.segment_chain(3, 3)), "does not fit"),
        (lambda: theory.chain_point(deep(4, 9), *theory.segment_chain(3, 3)), "does not fit"),
        (lambda: theory.chain_point(deep(3, 9, bias=0.0), *theory.segment_chain(3, 3)), "no bias"),
        (lambda: theory.complete_graph_chain(4, 2), "depth"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    for other in (problem([2, 2], [0.1, 0.1], bias=0.3), problem([2, 2], [0.1] * 3, relu=True)):
        with pytest.raises(InputError, match="landscape"):
            theory.hessian_index(theory.optimum(other))
