"""Deep linear networks: closed forms against cvxpy and against training."""

import math

import numpy as np
import pytest
import torch

from nclib import checks
from nclib.results.convex_duality import linear
from nclib.results.convex_duality.nets import Network, lowest
from nclib.ufm import solve


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.05, 0.7, 4.0])
@pytest.mark.parametrize("shape", [(6, 9, 3), (12, 5, 4), (7, 7, 2)])
def test_linear_map_against_cvxpy(shape, beta):
    cp = pytest.importorskip("cvxpy")
    n, d, K = shape
    X, Y = gaussian(n, n, d), gaussian(n + 1, n, K)
    W = cp.Variable((d, K))
    miss = cp.sum_squares(X.numpy() @ W - Y.numpy()) / 2
    expected = cp.Problem(cp.Minimize(miss + beta * cp.normNuc(W))).solve(solver=cp.CLARABEL)
    found = linear.linear_map(X.numpy(), Y.tolist(), beta)
    assert found.value == pytest.approx(expected, abs=1e-6)
    assert 0 <= found.gap + 1e-12 < 1e-9
    cost = (X @ found.weight.T - Y).square().sum() / 2
    cost += beta * torch.linalg.matrix_norm(found.weight, "nuc")
    assert float(cost) == pytest.approx(found.value, rel=1e-12)


def test_shared_layer_norms():
    """Layers diag(t^(1/L)) of the optimum, by hand at L = 2: soft thresholding."""
    frobenius, operator = linear.whitened_layer_norms(torch.diag(torch.tensor([3.0, 2, 0.5])), 1, 2)
    assert frobenius == pytest.approx(math.sqrt(2 + 1)) and operator == pytest.approx(math.sqrt(2))


def test_low_rank_inputs_and_unreachable_targets():
    X = gaussian(5, 9, 2) @ gaussian(6, 2, 6)
    Y = gaussian(7, 9, 2)
    found = linear.linear_map(X, Y, 0.3)
    assert abs(found.gap) < 1e-9
    best = lowest(Network(X, Y, 0.3, (4,), "linear"), 2).value
    assert found.value == pytest.approx(best, abs=1e-8)
    nothing = linear.linear_map(torch.zeros(3, 2), Y[:3], 0.1).value
    assert nothing == pytest.approx(float((Y[:3] ** 2).sum() / 2), rel=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [2, 3, 4, 5])
@pytest.mark.parametrize("beta", [0.05, 0.4])
def test_whitened_value_against_training(depth, beta):
    X = torch.linalg.qr(gaussian(8, 9, 6))[0].T
    Y = gaussian(9, 6, 3)
    network = Network(X, Y, beta, (4,) * (depth - 1), "linear")
    best = lowest(network, 8, max_iter=3000)
    assert best.value == pytest.approx(linear.whitened_linear_value(Y, beta, depth), abs=1e-9)
    product = torch.linalg.multi_dot(network.layers(best.point)[::-1])
    expected = linear.whitened_singular_values(Y, beta, depth)
    np.testing.assert_allclose(torch.linalg.svdvals(product)[:3], expected, atol=1e-5)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_minimum_norm(depth):
    X, Y = gaussian(10, 5, 8), gaussian(11, 5, 3)
    layers = linear.minimum_norm_layers(X, Y, depth)
    assert len(layers) == depth
    out = X
    for layer in layers:
        out = out @ layer.T
    assert torch.allclose(out, Y, atol=1e-10)
    value = linear.minimum_norm_value(X, Y, depth)
    assert sum(float(w.square().sum()) for w in layers) / 2 == pytest.approx(value, rel=1e-12)
    s = np.linalg.svd(np.linalg.pinv(X) @ Y.numpy(), compute_uv=False)
    assert value == pytest.approx(depth / 2 * (s ** (2 / depth)).sum(), rel=1e-10)
    # Independent: P/beta of the trained network tends to it from below as beta -> 0.
    network = Network(X, Y, 1e-4, (3,) * (depth - 1), "linear")
    near = [w + 0.01 * gaussian(20 + i, *w.shape) for i, w in enumerate(layers)]
    trained = solve.minimize(network, dict(zip(network.names, near, strict=True))).value / 1e-4
    assert trained <= value and trained == pytest.approx(value, rel=1e-3)


def test_minimum_norm_certificate():
    X, Y = gaussian(12, 5, 8), gaussian(13, 5, 3)
    certificate = linear.minimum_norm_certificate(X, Y)
    assert float(torch.linalg.matrix_norm(X.T @ certificate, 2)) == pytest.approx(1, abs=1e-12)
    assert float((certificate * Y).sum()) == pytest.approx(linear.minimum_norm_value(X, Y, 2))
    with pytest.raises(checks.InputError, match="range"):
        linear.minimum_norm_value(gaussian(14, 8, 3), gaussian(15, 8, 2))


def test_fixed_norm_gap():
    """Claim 6.C8: r^(L/2-1) at equal singular values, no gap for L = 2 or rank one."""
    X = torch.eye(4, dtype=torch.float64)
    for rank in (1, 2, 3):
        Y = 2.0 * torch.eye(4, rank, dtype=torch.float64)
        for depth in (2, 3, 4, 5):
            primal, dual = linear.fixed_norm_values(X, Y, depth, 1.3)
            assert primal / dual == pytest.approx(rank ** (depth / 2 - 1), rel=1e-12)
            assert dual == pytest.approx(1.3 ** (2 - depth) * 2 * rank, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2])
def test_rank_one_of_both_signs(K):
    c, a, Y = gaussian(23, 8), gaussian(24, 3), gaussian(25, 8, K)
    assert (c > 0).any() and (c < 0).any()
    value = linear.rank_one_value(c, a, Y, 0.2)
    network = Network(c[:, None] * a, Y, 0.2, (6,), "relu")
    assert lowest(network, 10, max_iter=2000).value == pytest.approx(value, abs=1e-9)
    both = linear.linear_map(c[:, None] * a, Y, 0.2).value
    assert linear.rank_one_value(c, a, Y, 0.2, relu=False) == pytest.approx(both, abs=1e-9)
    with pytest.raises(checks.InputError, match="both signs"):
        linear.rank_one_value(c, a, Y, 0.2, 3)


def test_bad_input():
    X, Y = gaussian(0, 4, 3), gaussian(1, 4, 2)
    for call in (
        lambda: linear.linear_map(X, Y[:3], 0.1),
        lambda: linear.linear_map(X, Y, 0.0),
        lambda: linear.linear_map(X[0], Y, 0.1),
        lambda: linear.linear_map(X * float("nan"), Y, 0.1),
        lambda: linear.rank_one_value([1, 2], [1.0], [1, 2, 3], 0.1),
        lambda: linear.minimum_norm_value(Y.T, X.T[:2], 1),
    ):
        with pytest.raises(checks.InputError):
            call()


@pytest.mark.parametrize("shape", [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_empty_data_is_one_clear_error(shape):
    n, d, K = shape
    X, Y = torch.ones(n, d), torch.ones(n, K)
    for call in (
        lambda: linear.linear_map(X, Y, 0.1),
        lambda: linear.minimum_norm_layers(X, Y, 3),
        lambda: linear.whitened_layer_norms(Y[:0], 0.1, 3),
    ):
        with pytest.raises(checks.InputError, match="empty"):
            call()


@pytest.mark.parametrize("size", [1e-160, 1e-8, 1e8, 1e160])
def test_rank_one_inputs_of_any_size(size):
    """Scaling the inputs by ``size`` and the decay by ``size^(2/L)`` changes nothing."""
    c, a, Y = gaussian(23, 8), gaussian(24, 3), gaussian(25, 8, 2)
    for depth, coefficients in ((2, c), (3, c.abs())):
        plain = linear.rank_one_value(coefficients, a, Y, 0.3, depth)
        beta = 0.3 * size ** (2 / depth)
        scaled = linear.rank_one_value(size * coefficients, a, Y, beta, depth)
        assert scaled == pytest.approx(plain, rel=1e-12)
        assert plain < float(Y.square().sum()) / 2


@pytest.mark.parametrize("depth", [2, 4, 10])
def test_rank_one_interpolators_of_badly_conditioned_inputs(depth):
    """Rounding of X⁺Y grows with the condition of X, and s^(2/L) would count it."""
    rng = np.random.default_rng(0)
    frame = lambda n, m: np.linalg.qr(rng.standard_normal((n, m)))[0]
    X = frame(4, 4) @ np.diag(np.geomspace(1, 1e-2, 4)) @ frame(8, 4).T
    W = X.T @ rng.standard_normal((4, 1)) @ rng.standard_normal((1, 3))
    known = depth / 2 * np.linalg.norm(W) ** (2 / depth)
    found = linear.minimum_norm_value(X, X @ W, depth)
    assert found == pytest.approx(known, rel=1e-9)
    assert linear.minimum_norm_layers(X, X @ W, depth)[0].shape == (1, 8)
