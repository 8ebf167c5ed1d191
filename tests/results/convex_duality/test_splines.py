import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from nclib import checks
from nclib.results.convex_duality import lasso as solver
from nclib.results.convex_duality import splines


def data(seed, n, low=-2, high=2):
    rng = np.random.default_rng(seed)
    return rng.uniform(low, high, n), rng.standard_normal(n)


def ramps(x, knots):
    difference = x[:, None] - knots
    return np.concatenate([np.maximum(difference, 0), np.maximum(-difference, 0)], 1)


def interpolation_oracle(x, y, knots):
    """cvxpy: least l1 norm of ramps with an offset through the points."""
    cp = pytest.importorskip("cvxpy")
    D = ramps(x, knots)
    w, b = cp.Variable(D.shape[1]), cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.norm1(w)), [D @ w + b == y])
    return problem.solve(solver=cp.CLARABEL)


def lasso_oracle(x, y, beta, knots):
    cp = pytest.importorskip("cvxpy")
    D = ramps(x, knots)
    w, b = cp.Variable(D.shape[1]), cp.Variable()
    return cp.Problem(cp.Minimize(cp.sum_squares(D @ w + b - y) / 2 + beta * cp.norm1(w))).solve(
        solver=cp.CLARABEL
    )


@pytest.mark.parametrize("seed", range(6))
def test_interpolation_norm_is_the_program(seed):
    x, y = data(seed, 3 + seed)
    expected = interpolation_oracle(x, y, np.sort(x))
    assert splines.interpolation_norm(x, y) == pytest.approx(expected, rel=1e-6)
    program = splines.interpolation_spline(x, y)
    assert program.value == pytest.approx(splines.interpolation_norm(x, y), rel=1e-9)
    assert abs(program.gap) < 1e-9 * program.value
    assert np.abs(program(x) - y).max() < 1e-8
    assert program.norm == pytest.approx(program.value, rel=1e-9)


def test_knots_off_the_data_do_not_help():
    x, y = data(11, 6)
    dense = np.linspace(x.min() - 3, x.max() + 3, 200)
    w = interpolation_oracle(x, y, np.concatenate([x, dense]))
    assert splines.interpolation_norm(x, y) == pytest.approx(w, rel=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "norm"),
    [
        ([0, 1, 2, 3], [0, 1, 3, 6], 3.0),  # claim 6.C17
        ([0, 1, 2], [0, 1, 0], 2.0),  # claim 6.C16
        ([0, 1], [0, 3], 3.0),  # a straight line of slope s costs |s|
        ([5.0], [2.0], 0.0),
        ([0, 1, 2, 3], [1, 1, 1, 1], 0.0),
        ([2, 0, 3, 1], [3, 0, 6, 1], 3.0),  # unsorted
        ([0, 1, 1, 2], [0, 1, 1, 0], 2.0),  # a point given twice
    ],
)
def test_interpolation_norm_by_hand(x, y, norm):
    assert splines.interpolation_norm(x, y) == norm


def test_equal_slope_changes_leave_the_knot_free():
    """Claim 6.C17: u + 2 (u - 1.5)_+ passes through the points at the same cost."""
    x = np.array([0.0, 1, 2, 3])
    assert np.array_equal(x + 2 * np.maximum(x - 1.5, 0), [0, 1, 3, 6])
    assert splines.interpolation_norm(x, [0, 1, 3, 6]) == 1 + 2


def test_without_output_bias_the_norm_is_only_an_infimum():
    """Data (0,1,0): 3 with knots at the data, then 2.09, 2.001 with one far knot (claim 6.C16)."""
    x, y = np.array([0.0, 1, 2]), np.array([0.0, 1, 0])
    costs = []
    for far in ([], [-10.0], [-1e3]):
        D = ramps(x, np.concatenate([x, far]))
        found = linprog(np.ones(2 * D.shape[1]), A_eq=np.hstack([D, -D]), b_eq=y, bounds=(0, None))
        costs.append(found.fun)
    assert costs == pytest.approx([3, 2.09, 2.001], abs=1e-2)
    assert splines.interpolation_norm(x, y) == 2


@given(
    seed=st.integers(0, 10_000),
    shift=st.floats(-5, 5),
    scale=st.floats(0.2, 5),
    factor=st.floats(-4, 4),
)
@settings(max_examples=25, deadline=None)
def test_norm_is_a_seminorm_of_the_curve(seed, shift, scale, factor):
    x, y = data(seed, 6)
    norm = splines.interpolation_norm(x, y)
    assert splines.interpolation_norm(scale * x + shift, factor * y + shift) == pytest.approx(
        abs(factor) / scale * norm, rel=1e-7, abs=1e-9
    )
    assert splines.interpolation_norm(-x, y) == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("beta", [1e-4, 0.01, 0.1, 0.7, 3.0])
@pytest.mark.parametrize("seed", [0, 3])
def test_lasso_against_cvxpy(seed, beta):
    x, y = data(seed, 7)
    found = splines.fit_spline(x, y, beta)
    assert found.value == pytest.approx(lasso_oracle(x, y, beta, x), abs=1e-6)
    assert abs(found.gap) < 1e-9
    assert splines.lasso_1d(torch.tensor(x), torch.tensor(y), beta) == found.value
    np.testing.assert_allclose(found.residual, y - found(x), atol=1e-10)
    # The certificate is feasible for every knot position, not only those at the data.
    lam = found.residual
    dense = np.linspace(-4, 4, 4001)
    assert abs(lam.sum()) < 1e-10
    assert np.abs(ramps(x, dense).T @ lam).max() <= beta + 1e-9


def test_network_of_the_spline_has_its_cost():
    x, y = data(2, 8)
    found = splines.fit_spline(x, y, 0.05)
    w, b, v, offset = found.network()
    outputs = np.maximum(np.outer(x, w) + b, 0) @ v + offset
    cost = ((outputs - y) ** 2).sum() / 2 + 0.05 / 2 * (w @ w + v @ v)
    assert cost == pytest.approx(found.value, rel=1e-12)
    assert np.allclose(w**2, v**2)


def test_repeated_inputs():
    x, y = [0.0, 0.0, 1.0], [0.0, 2.0, 5.0]
    assert splines.lasso_1d(x, y, 0.1) == pytest.approx(
        lasso_oracle(np.array(x), np.array(y), 0.1, np.array([0.0, 1.0])), abs=1e-7
    )
    with pytest.raises(checks.InputError, match="lasso_1d"):
        splines.interpolation_norm(x, y)
    with pytest.raises(checks.InputError, match="lasso_1d"):
        splines.interpolation_spline(x, y)


def test_constant_threshold_is_sharp():
    x, y = data(5, 9)
    threshold = splines.constant_threshold(x, y)
    assert splines.fit_spline(x, y, threshold * 1.001).norm == 0
    assert splines.fit_spline(x, y, threshold * 0.999).norm > 0
    variance = ((y - y.mean()) ** 2).sum() / 2
    assert splines.lasso_1d(x, y, 2 * threshold) == pytest.approx(variance, rel=1e-14)
    assert splines.lasso_1d([1.0, 2.0], [3.0, 3.0], 1.0) == 0


def test_small_beta_reaches_the_interpolation_norm_from_below():
    x, y = data(7, 6)
    norm = splines.interpolation_norm(x, y)
    ratios = [splines.lasso_1d(x, y, beta) / beta for beta in (1e-2, 1e-4, 1e-6)]
    assert ratios == sorted(ratios) and ratios[-1] < norm
    assert ratios[-1] == pytest.approx(norm, rel=1e-3)


def test_dual_bound_below_every_network():
    x, y = data(9, 8)
    beta = 0.2
    best = splines.fit_spline(x, y, beta)
    assert splines.spline_dual_bound(x, best.residual, y, beta) == pytest.approx(
        best.value, rel=1e-11
    )
    rng = np.random.default_rng(1)
    for _ in range(20):
        residual = best.residual + rng.normal(0, 0.2, len(x))
        assert splines.spline_dual_bound(x, residual, y, beta) <= best.value + 1e-12


def test_deep_spline_against_a_scan_of_its_definition():
    cp = pytest.importorskip("cvxpy")
    x, y = data(4, 7, 0, 3)
    for depth in (2, 3, 4):
        found = splines.deep_spline(x, y, 0.05, depth)
        # Oracle: least squares under ||w||_1 <= R by cvxpy, scanned over R.
        D = ramps(x, x)
        w, b, R = cp.Variable(D.shape[1]), cp.Variable(), cp.Parameter(nonneg=True)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(D @ w + b - y) / 2), [cp.norm1(w) <= R])
        scan = []
        for radius in np.linspace(0, splines.interpolation_norm(x, y), 60):
            R.value = radius
            scan.append(
                problem.solve(solver=cp.CLARABEL) + 0.05 * depth / 2 * radius ** (2 / depth)
            )
        assert found.value <= min(scan) + 1e-6
        assert found.value >= min(scan) - 0.05
        exact = (found.residual**2).sum() / 2 + 0.05 * depth / 2 * found.norm ** (2 / depth)
        assert found.value == pytest.approx(exact, rel=1e-12)
    assert splines.deep_spline(x, y, 0.05, 2).value == pytest.approx(
        splines.lasso_1d(x, y, 0.05), rel=1e-12
    )


def test_deep_spline_gives_up_past_its_threshold():
    x, y = data(4, 6, 0, 3)
    found = splines.deep_spline(x, y, 1e3, 3)
    assert found.norm == 0 and found.value == pytest.approx(((y - y.mean()) ** 2).sum() / 2)
    assert splines.deep_spline([1.0, 1.0], [0.0, 2.0], 0.1, 3).value == pytest.approx(1.0)


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 0.1])
def test_lasso_solver_without_intercept(beta):
    cp = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(3)
    D, y = rng.standard_normal((8, 20)), rng.standard_normal(8)
    found = solver.lasso(D, y, beta)
    w = cp.Variable(20)
    oracle = cp.Problem(cp.Minimize(cp.sum_squares(D @ w - y) / 2 + beta * cp.norm1(w)))
    assert found.value == pytest.approx(oracle.solve(solver=cp.CLARABEL), abs=1e-7)
    assert abs(found.gap) < 1e-10 and found.offset == 0


@pytest.mark.parametrize(
    ("x", "y", "beta"),
    [
        ([0, 1], [0, 1], 0.0),
        ([0, 1], [0, 1], -1.0),
        ([0, 1, 2], [0, 1], 1.0),
        ([], [], 1.0),
        ([[0.0, 1.0]], [[0.0, 1.0]], 1.0),
        ([0, np.nan], [0, 1], 1.0),
        ([0, 1], [0, np.inf], 1.0),
    ],
)
def test_bad_input(x, y, beta):
    with pytest.raises(checks.InputError):
        splines.lasso_1d(x, y, beta)
