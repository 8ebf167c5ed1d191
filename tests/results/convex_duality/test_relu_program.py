import numpy as np
import pytest
import torch

from nclib import checks
from nclib.results.convex_duality import relu_program as program


def data(seed, n):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 2)), rng.standard_normal(n)


def pattern_oracle(X, y, beta):
    """The paper's finite program: one cone pair per activation pattern (section 3.8)."""
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
    X, y = data(seed, n)
    found = program.two_layer_relu(X, y, beta)
    assert found.value == pytest.approx(pattern_oracle(X, y, beta), abs=2e-7)
    assert abs(found.gap) < 1e-9


def test_network_has_its_cost():
    X, y = data(2, 10)
    found = program.two_layer_relu(torch.tensor(X), torch.tensor(y)[:, None], 0.2)
    hidden = np.sqrt(np.abs(found.weights))[:, None] * found.directions
    output = np.sign(found.weights) * np.sqrt(np.abs(found.weights))
    miss = np.maximum(X @ hidden.T, 0) @ output - y
    cost = miss @ miss / 2 + 0.1 * ((hidden**2).sum() + output @ output)
    assert cost == pytest.approx(found.value, rel=1e-12)
    assert np.allclose(np.linalg.norm(found.directions, axis=1), 1)
    assert len(found.weights) <= len(y) + 1


@pytest.mark.parametrize("seed", range(4))
def test_active_neurons_are_extreme_points(seed):
    """Claim 6.C4: every neuron attains the maximum of the dual constraint, which is beta."""
    X, y = data(seed, 8)
    beta = 0.1
    found = program.two_layer_relu(X, y, beta)
    reached = found.residual @ np.maximum(X @ found.directions.T, 0)
    np.testing.assert_allclose(reached, np.sign(found.weights) * beta, rtol=1e-6)
    assert program.largest_activation(X, found.residual)[0] == pytest.approx(beta, rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_supremum_against_a_fine_grid(outputs):
    rng = np.random.default_rng(5)
    for n in (1, 4, 9):
        X, E = rng.standard_normal((n, 2)), rng.standard_normal((n, outputs))
        if n == 9:
            X[3] = 0
        angles = np.linspace(0, 2 * np.pi, 200_001)
        u = np.stack([np.cos(angles), np.sin(angles)], 1)
        grid = np.linalg.norm(np.maximum(u @ X.T, 0) @ E, axis=1).max()
        supremum, direction = program.largest_activation(X, E)
        assert grid <= supremum + 1e-12 and supremum == pytest.approx(
            grid, rel=1e-5
        )  # kinks lie between grid points
        attained = np.linalg.norm(np.maximum(X @ direction, 0) @ E)
        assert attained == pytest.approx(supremum, rel=1e-12)


def test_dual_bound_below_the_optimum():
    X, y = data(6, 9)
    best = program.two_layer_relu(X, y, 0.3)
    assert program.relu_dual_bound(X, best.residual, y, 0.3) == pytest.approx(best.value, rel=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = best.residual + rng.normal(0, 0.3, len(y))
        assert program.relu_dual_bound(X, other, y, 0.3) <= best.value + 1e-12


def test_nothing_to_fit():
    X, y = data(7, 5)
    supremum, _ = program.largest_activation(X, y)
    found = program.two_layer_relu(X, y, 1.001 * supremum)
    assert len(found.weights) == 0 and found.value == pytest.approx(y @ y / 2)
    assert len(program.two_layer_relu(X, y, 0.999 * supremum).weights) == 1
    assert program.two_layer_relu(np.zeros((3, 2)), [1.0, 2.0, 3.0], 0.1).value == 7
    assert program.two_layer_relu(X, np.zeros(5), 0.1).value == 0


def test_rotation_changes_nothing():
    X, y = data(8, 7)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    before, after = (program.two_layer_relu(Z, y, 0.05).value for Z in (X, X @ turn))
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
def test_bad_input(X, y, beta):
    with pytest.raises(checks.InputError):
        program.two_layer_relu(X, y, beta)
