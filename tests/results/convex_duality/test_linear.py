import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks
from nclib.results.convex_duality import linear as theory
from nclib.results.convex_duality import ufm as convex
from nclib.ufm import solve


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.05, 0.7, 4.0])
@pytest.mark.parametrize("shape", [(6, 9, 3), (12, 5, 4), (7, 7, 2)])
def test_linear_value_against_cvxpy(shape, beta):
    cp = pytest.importorskip("cvxpy")
    n, d, K = shape
    X, Y = gaussian(n, n, d), gaussian(n + 1, n, K)
    W = cp.Variable((d, K))
    miss = cp.sum_squares(X.numpy() @ W - Y.numpy()) / 2
    expected = cp.Problem(cp.Minimize(miss + beta * cp.normNuc(W))).solve(solver=cp.CLARABEL)
    found = theory.linear_map(X, Y, beta)
    assert theory.linear_value(X.numpy(), Y.tolist(), beta) == found.value
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert 0 <= found.gap + 1e-12 < 1e-9
    cost = (X @ found.weight.T - Y).square().sum() / 2
    cost += beta * torch.linalg.matrix_norm(found.weight, "nuc")
    assert float(cost) == pytest.approx(found.value, rel=1e-12)


def test_linear_value_is_what_factors_reach():
    """Claim 6.C3: the non-convex factored problem has the convex value."""
    X, Y = gaussian(1, 8, 5), gaussian(2, 8, 3)
    best = convex.best_of(convex.Network(X, Y, 0.5, (5,), "linear"), 2).best.value
    assert best == pytest.approx(theory.linear_value(X, Y, 0.5), abs=1e-9)


def test_zero_threshold():
    X, Y = gaussian(3, 6, 4), gaussian(4, 6, 2)
    threshold = theory.zero_threshold(X, Y)
    assert threshold == pytest.approx(float(torch.linalg.matrix_norm(X.T @ Y, 2)))
    assert theory.linear_value(X, Y, 1.0001 * threshold) == pytest.approx(float((Y**2).sum() / 2))
    assert theory.linear_map(X, Y, 0.999 * threshold).weight.norm() > 0


def test_low_rank_inputs_and_unreachable_targets():
    X = gaussian(5, 9, 2) @ gaussian(6, 2, 6)
    Y = gaussian(7, 9, 2)
    found = theory.linear_map(X, Y, 0.3)
    assert abs(found.gap) < 1e-9
    best = convex.best_of(convex.Network(X, Y, 0.3, (4,), "linear"), 2).best.value
    assert found.value == pytest.approx(best, abs=1e-8)
    nothing = theory.linear_value(torch.zeros(3, 2), Y[:3], 0.1)
    assert nothing == pytest.approx(float((Y[:3] ** 2).sum() / 2), rel=1e-14)


@given(seed=st.integers(0, 1000), beta=st.floats(0.05, 2))
@settings(max_examples=15, deadline=None)
def test_dual_bound_is_below(seed, beta):
    X, Y, W = gaussian(seed, 6, 4), gaussian(seed + 1, 6, 2), gaussian(seed + 2, 2, 4)
    value = theory.linear_value(X, Y, beta)
    assert theory.linear_dual_bound(X, Y - 0.1 * X @ W.T, Y, beta) <= value + 1e-9
    best = theory.linear_map(X, Y, beta)
    assert theory.linear_dual_bound(X, Y - X @ best.weight.T, Y, beta) == pytest.approx(
        value, abs=1e-8
    )


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("beta", [0.05, 0.4])
def test_whitened_value_against_training(depth, beta):
    X = torch.linalg.qr(gaussian(8, 9, 6))[0].T
    Y = gaussian(9, 6, 3)
    network = convex.Network(X, Y, beta, (4,) * (depth - 1), "linear")
    best = convex.best_of(network, 8, max_iter=3000)
    assert best.best.value == pytest.approx(theory.whitened_linear_value(Y, beta, depth), abs=1e-9)
    product = torch.linalg.multi_dot(network.layers(best.best.variables)[::-1])
    np.testing.assert_allclose(
        torch.linalg.svdvals(product)[:3],
        theory.whitened_singular_values(Y, beta, depth),
        atol=1e-5,
    )


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_minimum_norm(depth):
    X, Y = gaussian(10, 5, 8), gaussian(11, 5, 3)
    layers = theory.minimum_norm_layers(X, Y, depth)
    assert len(layers) == depth
    out = X
    for layer in layers:
        out = out @ layer.T
    assert torch.allclose(out, Y, atol=1e-10)
    value = theory.minimum_norm_value(X, Y, depth)
    assert sum(float(w.square().sum()) for w in layers) / 2 == pytest.approx(value, rel=1e-12)
    s = np.linalg.svd(np.linalg.pinv(X) @ Y.numpy(), compute_uv=False)
    assert value == pytest.approx(depth / 2 * (s ** (2 / depth)).sum(), rel=1e-10)
    # Independent: P/beta of the trained network tends to it from below as beta -> 0.
    start = {f"weight{i + 1}": w + 0.01 * gaussian(20 + i, *w.shape) for i, w in enumerate(layers)}
    network = convex.Network(X, Y, 1e-4, (3,) * (depth - 1), "linear")
    trained = solve.minimize(network.objective, start).value / 1e-4
    assert trained <= value and trained == pytest.approx(value, rel=1e-3)


def test_minimum_norm_certificate():
    X, Y = gaussian(12, 5, 8), gaussian(13, 5, 3)
    certificate = theory.minimum_norm_certificate(X, Y)
    assert float(torch.linalg.matrix_norm(X.T @ certificate, 2)) == pytest.approx(1, abs=1e-12)
    assert float((certificate * Y).sum()) == pytest.approx(theory.minimum_norm_value(X, Y, 2))
    with pytest.raises(checks.InputError, match="range"):
        theory.minimum_norm_value(gaussian(14, 8, 3), gaussian(15, 8, 2))


def test_fixed_norm_gap():
    """Claim 6.C8: r^(L/2-1) at equal singular values, no gap for L = 2 or rank one."""
    X = torch.eye(4, dtype=torch.float64)
    for rank in (1, 2, 3):
        Y = 2.0 * torch.eye(4, rank, dtype=torch.float64)
        for depth in (2, 3, 4, 5):
            primal, dual = theory.fixed_norm_values(X, Y, depth, 1.3)
            assert primal / dual == pytest.approx(rank ** (depth / 2 - 1), rel=1e-12)
            assert dual == pytest.approx(1.3 ** (2 - depth) * 2 * rank, rel=1e-12)


@pytest.mark.slow
def test_fixed_norm_primal_is_reached_by_training():
    """Cost on the last two layers, first layer confined to a ball of radius t (depth 3)."""
    X, Y, t = torch.linalg.qr(gaussian(16, 6, 4))[0].T, gaussian(17, 4, 3), 1.3

    def objective(first, second, third):
        first = t * first / first.norm()
        out = X @ first.T @ second.T @ third.T
        return (out - Y).square().sum() / (2e-5) + (
            second.square().sum() + third.square().sum()
        ) / 2

    best = min(
        solve.minimize(
            objective,
            dict(
                first=gaussian(i, 4, 6), second=gaussian(i + 50, 4, 4), third=gaussian(i + 90, 3, 4)
            ),
            max_iter=4000,
        ).value
        for i in range(4)
    )
    primal, dual = theory.fixed_norm_values(X, Y, 3, t)
    assert best == pytest.approx(primal, rel=1e-3) and best > 1.1 * dual


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("beta", [0.05, 0.5, 50.0])
def test_scalar_output_against_training(depth, beta):
    X, y = gaussian(18, 8, 5), gaussian(19, 8)
    found = theory.scalar_output(X, y, beta, depth)
    network = convex.Network(X, y, beta, (3,) * (depth - 1), "linear")
    best = convex.best_of(network, 8, max_iter=3000).best.value
    assert found.value == pytest.approx(best, abs=1e-8)
    w = found.weight[0]
    cost = (X @ w - y).square().sum() / 2 + beta * depth / 2 * w.norm() ** (2 / depth)
    assert float(cost) == pytest.approx(found.value, rel=1e-10)
    if depth == 2:
        assert found.value == pytest.approx(theory.linear_value(X, y, beta), abs=1e-9)
        assert abs(found.gap) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("K", [1, 3])
def test_rank_one_against_training(activation, depth, K):
    c, a, Y = gaussian(20, 7).abs(), gaussian(21, 4), gaussian(22, 7, K)
    value = theory.rank_one_value(c, a, Y, 0.3, depth, relu=activation == "relu")
    network = convex.Network(c[:, None] * a, Y, 0.3, (3,) * (depth - 1), activation)
    assert convex.best_of(network, 10, max_iter=2000).best.value == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("K", [1, 2])
def test_rank_one_of_both_signs(K):
    c, a, Y = gaussian(23, 8), gaussian(24, 3), gaussian(25, 8, K)
    assert (c > 0).any() and (c < 0).any()
    value = theory.rank_one_value(c, a, Y, 0.2)
    network = convex.Network(c[:, None] * a, Y, 0.2, (6,), "relu")
    assert convex.best_of(network, 10, max_iter=2000).best.value == pytest.approx(value, abs=1e-9)
    assert theory.rank_one_value(c, a, Y, 0.2, relu=False) == pytest.approx(
        theory.linear_value(c[:, None] * a, Y, 0.2), abs=1e-9
    )
    with pytest.raises(checks.InputError, match="both signs"):
        theory.rank_one_value(c, a, Y, 0.2, 3)


def test_bad_input():
    X, Y = gaussian(0, 4, 3), gaussian(1, 4, 2)
    for call in (
        lambda: theory.linear_value(X, Y[:3], 0.1),
        lambda: theory.linear_value(X, Y, 0.0),
        lambda: theory.linear_value(X[0], Y, 0.1),
        lambda: theory.linear_value(X * float("nan"), Y, 0.1),
        lambda: theory.linear_dual_bound(X, Y[:, :1], Y, 0.1),
        lambda: theory.scalar_output(X, Y, 0.1),
        lambda: theory.rank_one_value([1, 2], [1.0], [1, 2, 3], 0.1),
        lambda: theory.minimum_norm_value(Y.T, X.T[:2], 1),
    ):
        with pytest.raises(checks.InputError):
            call()
