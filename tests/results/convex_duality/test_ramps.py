"""One-dimensional and planar ReLU training against cvxpy, linear programs and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks
from nclib.results.convex_duality import ramps


def data(seed, n, low=-2, high=2):
    rng = np.random.default_rng(seed)
    return rng.uniform(low, high, n), rng.standard_normal(n)


def kinks(x, knots):
    difference = x[:, None] - knots
    return np.concatenate([np.maximum(difference, 0), np.maximum(-difference, 0)], 1)


def interpolation_oracle(x, y, knots):
    """cvxpy: least l1 norm of ramps with an offset through the points."""
    cp = pytest.importorskip("cvxpy")
    D = kinks(x, knots)
    w, b = cp.Variable(D.shape[1]), cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.norm1(w)), [D @ w + b == y])
    return problem.solve(solver=cp.CLARABEL)


def lasso_oracle(x, y, beta, knots):
    cp = pytest.importorskip("cvxpy")
    D = kinks(x, knots)
    w, b = cp.Variable(D.shape[1]), cp.Variable()
    return cp.Problem(cp.Minimize(cp.sum_squares(D @ w + b - y) / 2 + beta * cp.norm1(w))).solve(
        solver=cp.CLARABEL
    )


@pytest.mark.parametrize("seed", range(6))
def test_interpolation_norm_is_the_program(seed):
    x, y = data(seed, 3 + seed)
    expected = interpolation_oracle(x, y, np.sort(x))
    assert ramps.interpolation_norm(x, y) == pytest.approx(expected, rel=1e-6)
    program = ramps.interpolation_spline(x, y)
    assert program.value == pytest.approx(ramps.interpolation_norm(x, y), rel=1e-9)
    assert abs(program.gap) < 1e-9 * program.value
    assert np.abs(program(x) - y).max() < 1e-8
    assert program.norm == pytest.approx(program.value, rel=1e-9)


@pytest.mark.parametrize(("height", "reach"), [(1e-6, 1), (1e-9, 1e-5), (1e9, 1e-6), (1, 1e9)])
def test_interpolation_program_at_any_scale(height, reach):
    """The solver's tolerances are absolute, the answer's must not be."""
    x, y = data(4, 12)
    x, y = reach * x, height * y + 3 * height
    program, slopes = (
        ramps.interpolation_spline(x, y),
        np.diff(y[np.argsort(x)]) / np.diff(np.sort(x)),
    )
    total, ends = np.abs(np.diff(slopes)).sum(), abs(slopes[0] + slopes[-1])
    assert program.value == pytest.approx(max(total, (total + ends) / 2), rel=1e-8)
    assert abs(program.gap) < 1e-8 * program.value
    assert np.abs(program(x) - y).max() < 1e-7 * height
    assert np.abs(y - program(x) - program.residual).max() < 1e-9 * height
    assert np.abs(kinks(x, x).T @ program.dual).max() == pytest.approx(1, rel=1e-9)
    assert program.dual @ y == pytest.approx(program.value, rel=1e-8)


def test_knots_off_the_data_do_not_help():
    x, y = data(11, 6)
    dense = np.linspace(x.min() - 3, x.max() + 3, 200)
    w = interpolation_oracle(x, y, np.concatenate([x, dense]))
    assert ramps.interpolation_norm(x, y) == pytest.approx(w, rel=1e-6)


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
    assert ramps.interpolation_norm(x, y) == norm


@given(
    seed=st.integers(0, 10_000),
    shift=st.floats(-5, 5),
    scale=st.floats(0.2, 5),
    factor=st.floats(-4, 4),
)
@settings(max_examples=25, deadline=None)
def test_norm_is_a_seminorm_of_the_curve(seed, shift, scale, factor):
    x, y = data(seed, 6)
    norm = ramps.interpolation_norm(x, y)
    assert ramps.interpolation_norm(scale * x + shift, factor * y + shift) == pytest.approx(
        abs(factor) / scale * norm, rel=1e-7, abs=1e-9
    )
    assert ramps.interpolation_norm(-x, y) == pytest.approx(norm, rel=1e-12)


@pytest.mark.parametrize("beta", [1e-4, 0.01, 0.1, 0.7, 3.0])
@pytest.mark.parametrize("seed", [0, 3])
def test_lasso_against_cvxpy(seed, beta):
    x, y = data(seed, 7)
    found = ramps.fit_spline(x, y, beta)
    assert found.value == pytest.approx(lasso_oracle(x, y, beta, x), abs=1e-6)
    assert abs(found.gap) < 1e-9
    assert ramps.fit_spline(torch.tensor(x), torch.tensor(y), beta).value == found.value
    np.testing.assert_allclose(found.residual, y - found(x), atol=1e-10)
    # The certificate is feasible for every knot position, not only those at the data.
    lam = found.residual
    dense = np.linspace(-4, 4, 4001)
    assert abs(lam.sum()) < 1e-10
    assert np.abs(kinks(x, dense).T @ lam).max() <= beta + 1e-9


def test_network_of_the_spline_has_its_cost():
    x, y = data(2, 8)
    found = ramps.fit_spline(x, y, 0.05)
    w, b, v, offset = found.network()
    outputs = np.maximum(np.outer(x, w) + b, 0) @ v + offset
    cost = ((outputs - y) ** 2).sum() / 2 + 0.05 / 2 * (w @ w + v @ v)
    assert cost == pytest.approx(found.value, rel=1e-12)
    assert np.allclose(w**2, v**2)


def test_repeated_inputs():
    x, y = [0.0, 0.0, 1.0], [0.0, 2.0, 5.0]
    assert ramps.fit_spline(x, y, 0.1).value == pytest.approx(
        lasso_oracle(np.array(x), np.array(y), 0.1, np.array([0.0, 1.0])), abs=1e-7
    )
    with pytest.raises(checks.InputError, match="fit_spline"):
        ramps.interpolation_norm(x, y)
    with pytest.raises(checks.InputError, match="fit_spline"):
        ramps.interpolation_spline(x, y)


@pytest.mark.parametrize("offset", [1e5, -1e8])
def test_the_gap_certifies_whatever_the_offset_of_the_targets(offset):
    x, y = data(0, 9)
    found, plain = (ramps.fit_spline(x, values, 0.1) for values in (y + offset, y))
    rounding = 1e-15 * abs(offset) * np.abs(y).sum()
    assert found.value == pytest.approx(plain.value, abs=rounding)
    assert abs(found.gap) < 1e-12


def test_constant_threshold_is_sharp():
    x, y = data(5, 9)
    threshold = ramps.constant_threshold(x, y)
    assert ramps.fit_spline(x, y, threshold * 1.001).norm == 0
    assert ramps.fit_spline(x, y, threshold * 0.999).norm > 0
    variance = ((y - y.mean()) ** 2).sum() / 2
    assert ramps.fit_spline(x, y, 2 * threshold).value == pytest.approx(variance, rel=1e-14)
    assert ramps.fit_spline([1.0, 2.0], [3.0, 3.0], 1.0).value == 0


def test_small_beta_reaches_the_interpolation_norm_from_below():
    x, y = data(7, 6)
    norm = ramps.interpolation_norm(x, y)
    ratios = [ramps.fit_spline(x, y, beta).value / beta for beta in (1e-2, 1e-4, 1e-6)]
    assert ratios == sorted(ratios) and ratios[-1] < norm
    assert ratios[-1] == pytest.approx(norm, rel=1e-3)


def test_deep_spline_against_a_scan_of_its_definition():
    cp = pytest.importorskip("cvxpy")
    x, y = data(4, 7, 0, 3)
    for depth in (2, 3, 4):
        found = ramps.deep_spline(x, y, 0.05, depth)
        # Oracle: least squares under ||w||_1 <= R by cvxpy, scanned over R.
        D = kinks(x, x)
        w, b, R = cp.Variable(D.shape[1]), cp.Variable(), cp.Parameter(nonneg=True)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(D @ w + b - y) / 2), [cp.norm1(w) <= R])
        scan = []
        for radius in np.linspace(0, ramps.interpolation_norm(x, y), 60):
            R.value = radius
            scan.append(
                problem.solve(solver=cp.CLARABEL) + 0.05 * depth / 2 * radius ** (2 / depth)
            )
        assert found.value <= min(scan) + 1e-6
        assert found.value >= min(scan) - 0.05
        exact = (found.residual**2).sum() / 2 + 0.05 * depth / 2 * found.norm ** (2 / depth)
        assert found.value == pytest.approx(exact, rel=1e-12)
    assert ramps.deep_spline(x, y, 0.05, 2).value == pytest.approx(
        ramps.fit_spline(x, y, 0.05).value, rel=1e-12
    )


def test_deep_spline_gives_up_past_its_threshold():
    x, y = data(4, 6, 0, 3)
    found = ramps.deep_spline(x, y, 1e3, 3)
    assert found.norm == 0 and found.value == pytest.approx(((y - y.mean()) ** 2).sum() / 2)
    assert ramps.deep_spline([1.0, 1.0], [0.0, 2.0], 0.1, 3).value == pytest.approx(1.0)


@pytest.mark.parametrize("beta", [1e-6, 1e-3, 0.1])
def test_lasso_solver_without_intercept(beta):
    cp = pytest.importorskip("cvxpy")
    rng = np.random.default_rng(3)
    D, y = rng.standard_normal((8, 20)), rng.standard_normal(8)
    found = ramps.lasso(D, y, beta)
    w = cp.Variable(20)
    oracle = cp.Problem(cp.Minimize(cp.sum_squares(D @ w - y) / 2 + beta * cp.norm1(w)))
    assert found.value == pytest.approx(oracle.solve(solver=cp.CLARABEL), abs=1e-7)
    assert abs(found.value - found.dual_value) < 1e-10 and found.offset == 0


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
        ramps.fit_spline(x, y, beta)


# --- the plane


def plane(seed, n):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 2)), rng.standard_normal(n)


def pattern_oracle(X, y, beta):
    """The paper's finite program: one cone pair per activation pattern (claim 6.C20)."""
    cp = pytest.importorskip("cvxpy")
    angles = np.linspace(0, 2 * np.pi, 20_001)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    patterns = np.unique((X @ directions.T >= 0).T, axis=0)
    fit, penalty, cones = 0, 0, []
    for pattern in patterns:
        v, w = cp.Variable(2), cp.Variable(2)
        active = pattern.astype(float)[:, None] * X
        signed = (2 * pattern.astype(float) - 1)[:, None] * X
        fit, penalty = fit + active @ (v - w), penalty + cp.norm(v) + cp.norm(w)
        cones += [signed @ v >= 0, signed @ w >= 0]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(fit - y) / 2 + beta * penalty), cones)
    return problem.solve(solver=cp.CLARABEL)


@pytest.mark.parametrize("beta", [1e-3, 0.1, 0.5])
@pytest.mark.parametrize(("seed", "n"), [(0, 3), (1, 8)])
def test_value_is_the_programs(seed, n, beta):
    X, y = plane(seed, n)
    found = ramps.two_layer_relu(X, y, beta)
    assert found.value == pytest.approx(pattern_oracle(X, y, beta), abs=2e-7)
    assert abs(found.gap) < 1e-9


def test_network_has_its_cost():
    X, y = plane(2, 10)
    found = ramps.two_layer_relu(torch.tensor(X), torch.tensor(y), 0.2)
    hidden = np.sqrt(np.abs(found.weights))[:, None] * found.directions
    output = np.sign(found.weights) * np.sqrt(np.abs(found.weights))
    miss = np.maximum(X @ hidden.T, 0) @ output - y
    cost = miss @ miss / 2 + 0.1 * ((hidden**2).sum() + output @ output)
    assert cost == pytest.approx(found.value, rel=1e-12)
    assert np.allclose(np.linalg.norm(found.directions, axis=1), 1)
    assert len(found.weights) <= len(y) + 1


def test_supremum_against_a_fine_grid():
    rng = np.random.default_rng(5)
    for n in (1, 4, 9):
        X, e = rng.standard_normal((n, 2)), rng.standard_normal(n)
        if n == 9:
            X[3] = 0
        angles = np.linspace(0, 2 * np.pi, 200_001)
        u = np.stack([np.cos(angles), np.sin(angles)], 1)
        grid, supremum = np.abs(np.maximum(u @ X.T, 0) @ e).max(), ramps.largest_activation(X, e)
        assert grid <= supremum + 1e-12  # kinks lie between grid points
        assert supremum == pytest.approx(grid, rel=1e-5)


def test_nothing_to_fit():
    X, y = plane(7, 5)
    supremum = ramps.largest_activation(X, y)
    found = ramps.two_layer_relu(X, y, 1.001 * supremum)
    assert len(found.weights) == 0 and found.value == pytest.approx(y @ y / 2)
    assert len(ramps.two_layer_relu(X, y, 0.999 * supremum).weights) == 1
    assert ramps.two_layer_relu(np.zeros((3, 2)), [1.0, 2.0, 3.0], 0.1).value == 7
    assert ramps.two_layer_relu(X, np.zeros(5), 0.1).value == 0


def test_rotation_changes_nothing():
    X, y = plane(8, 7)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    before, after = (ramps.two_layer_relu(Z, y, 0.05).value for Z in (X, X @ turn))
    assert before == pytest.approx(after, abs=1e-10)


@pytest.mark.parametrize(
    ("X", "y", "beta"),
    [
        (np.ones((3, 3)), np.ones(3), 0.1),
        (np.ones((3, 2)), np.ones(4), 0.1),
        (np.ones((3, 2)), np.ones((3, 2)), 0.1),
        (np.ones((3, 2)), np.ones(3), 0.0),
        (np.full((3, 2), np.nan), np.ones(3), 0.1),
    ],
)
def test_bad_planar_input(X, y, beta):
    with pytest.raises(checks.InputError):
        ramps.two_layer_relu(X, y, beta)
