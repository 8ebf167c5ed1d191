import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks
from nclib.metrics import certified_gap
from nclib.results.convex_duality import theory
from nclib.results.convex_duality import ufm as convex
from nclib.results.multi_loss import theory as multi_loss
from nclib.ufm import solve


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(counts):
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def one_hot(labels):
    return torch.nn.functional.one_hot(labels).double()


def whitened(seed, n, d):
    return torch.linalg.qr(gaussian(seed, d, n))[0].T


def cost(layers, X, Y, beta):
    """Objective of a plain ReLU network, written out."""
    h = X
    for layer in layers[:-1]:
        h = (h @ layer.T).clamp(min=0)
    miss = h @ layers[-1].T - Y
    return float((miss**2).sum() / 2 + beta / 2 * sum((w**2).sum() for w in layers)), h


def test_names_promised_to_users():
    for name in (
        *("collapsed_value", "depth_scalar", "thresholds", "linear_value"),
        *("interpolation_norm", "lasso_1d", "batch_norm_head", "dual_bound"),
    ):
        assert callable(getattr(theory, name))


# --- collapsed value and geometry


def test_collapsed_value_reference():
    """Figures of the specification."""
    assert theory.collapsed_value([5] * 10, 0.3) == pytest.approx(6.2582, abs=5e-5)
    assert theory.collapsed_value([20] * 10, 1.8) == pytest.approx(64.29845, abs=5e-6)
    assert theory.collapsed_value([1] * 6, 0.05, 5) == pytest.approx(0.7422612245, abs=1e-10)
    assert theory.collapsed_value([1] * 10, 0.05, 5) == pytest.approx(1.2371020409, abs=1e-10)


@pytest.mark.parametrize("beta", [0.2, 1.2, 1.5, 2.1, 3.0])
def test_whitened_relu_is_trained_to_the_collapsed_value(beta):
    """Claim 6.C11, classes of sizes 5, 3, 2, 1: some are dropped."""
    counts = [5, 3, 2, 1]
    labels, X = labels_of(counts), whitened(0, 11, 14)
    network = convex.Network(X, one_hot(labels), beta, (8,))
    best = convex.best_of(network, 3, max_iter=3000).best
    shape = theory.collapse(counts, beta)
    assert best.value == pytest.approx(theory.collapsed_value(counts, beta), abs=1e-7)
    assert shape.value == theory.collapsed_value(counts, beta)
    H, W = network.hidden(best.variables), best.variables["weight2"]
    np.testing.assert_allclose(H @ H.T, shape.gram(labels), atol=1e-4)
    np.testing.assert_allclose(W @ W.T, np.diag(shape.weight_norms**2), atol=1e-4)
    outputs = one_hot(labels) * shape.outputs
    np.testing.assert_allclose(network.outputs(best.variables), outputs, atol=1e-4)
    expected = [max(0, 1 - beta / math.sqrt(n)) for n in counts]
    np.testing.assert_allclose(shape.outputs, expected, atol=1e-14)
    assert shape.alive.tolist() == [math.sqrt(n) > beta for n in counts]


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_whitened_layers_have_the_collapsed_cost(depth, beta):
    counts = [4, 1, 3]
    labels, X = labels_of(counts), whitened(1, 8, 9)
    layers = theory.whitened_layers(X, labels, beta, depth)
    value, H = cost(layers, X, one_hot(labels), beta)
    assert len(layers) == depth
    assert value == pytest.approx(theory.collapsed_value(counts, beta, depth), rel=1e-12)
    shape = theory.collapse(counts, beta, depth)
    np.testing.assert_allclose(H @ H.T, shape.gram(labels), atol=1e-12)
    np.testing.assert_allclose(H[[0, 4, 5]].norm(dim=1), shape.mean_norms, atol=1e-12)
    np.testing.assert_allclose(layers[-1].norm(dim=1), shape.weight_norms, atol=1e-12)
    for left, right in zip(layers, layers[1:], strict=False):
        np.testing.assert_allclose(left @ left.T, right.T @ right, atol=1e-12)


@pytest.mark.slow
def test_depth_three_training_finds_nothing_better():
    """Claim 6.C13, the part that holds."""
    labels, X = labels_of([3, 2, 2]), whitened(2, 7, 8)
    network = convex.Network(X, one_hot(labels), 0.3, (8, 8))
    best = convex.best_of(network, 5, max_iter=1000, scale=1.5)
    value = theory.collapsed_value([3, 2, 2], 0.3, 3)
    assert value - 1e-12 <= best.best.value <= value + 1e-5


@given(
    counts=st.lists(st.integers(1, 50), min_size=2, max_size=8),
    beta=st.floats(0.01, 9),
    depth=st.integers(2, 5),
)
@settings(max_examples=40, deadline=None)
def test_collapsed_value_properties(counts, beta, depth):
    value = theory.collapsed_value(counts, beta, depth)
    assert theory.collapsed_value(counts[::-1], beta, depth) == pytest.approx(value, rel=1e-12)
    assert 0 < value <= sum(counts) / 2 * (1 + 1e-12)
    assert theory.collapsed_value(counts, 1.1 * beta, depth) >= value * (1 - 1e-12)
    parts = sum(theory.collapsed_value([n], beta, depth) for n in counts)
    assert parts == pytest.approx(value, rel=1e-12)


def test_balanced_closed_form():
    """P* = n (rho - rho^2/2), rho = beta/sqrt(n/K) (section 3.6)."""
    for K, n_k, beta in ((4, 9, 0.7), (10, 5, 2.0), (3, 4, 2.0), (3, 4, 2.5)):
        rho = min(1.0, beta / math.sqrt(n_k))
        expected = K * n_k * (rho - rho**2 / 2)
        assert theory.collapsed_value([n_k] * K, beta) == pytest.approx(expected, rel=1e-13)


def test_centred_means_are_a_simplex_etf():
    """Claim 6.C12: orthogonal frame, ETF after centring if balanced, not if unbalanced."""
    for counts, etf in (([5, 5, 5, 5], True), ([9, 4, 2, 2], False)):
        labels = labels_of(counts)
        head = theory.batch_norm_head(gaussian(3, len(labels), 40), labels, 0.5)
        H = head.hidden(gaussian(3, len(labels), 40))
        means = torch.stack([H[labels == k].mean(0) for k in range(4)])
        raw = means @ means.T / torch.outer(means.norm(dim=1), means.norm(dim=1))
        np.testing.assert_allclose(raw, np.eye(4), atol=1e-10)
        centred = means - means.mean(0)
        cosine = centred @ centred.T / torch.outer(centred.norm(dim=1), centred.norm(dim=1))
        deviation = float((cosine + 1 / 3)[~torch.eye(4, dtype=bool)].abs().max())
        assert (deviation < 1e-10) == etf


def test_class_thresholds():
    assert theory.class_thresholds([9, 4, 1]).tolist() == [3, 2, 1]
    for depth in (2, 3, 5):
        for k, threshold in enumerate(theory.class_thresholds([9, 4, 1], depth).tolist()):
            alive = [theory.collapse([9, 4, 1], s * threshold, depth).alive[k] for s in (0.999, 1)]
            assert alive == [True, False]


@pytest.mark.parametrize(
    ("counts", "word"),
    [([5, 0, 5], "class 1"), ([5, -1], "class 1"), ([], "list"), ([1.5, 2], "whole"), (7, "list")],
)
def test_bad_counts(counts, word):
    with pytest.raises(checks.InputError, match=word):
        theory.collapsed_value(counts, 0.1)


# --- whitening


def test_whitening():
    X, new = gaussian(4, 6, 9), gaussian(5, 3, 9)
    apply = theory.whitening(X)
    white = apply(X)
    np.testing.assert_allclose(white @ white.T, np.eye(6), atol=1e-12)
    # Nothing outside the span of the training inputs survives; inside it is the same linear map.
    coefficients = gaussian(6, 2, 6)
    np.testing.assert_allclose(apply(coefficients @ X), coefficients @ white, atol=1e-12)
    assert apply(new).shape == (3, 9)
    with pytest.raises(checks.InputError, match="at most as many samples"):
        theory.whitening(gaussian(7, 9, 6))
    with pytest.raises(checks.InputError, match="full row rank"):
        theory.whitening(torch.cat([X, X[:1]]))
    with pytest.raises(checks.InputError, match="not whitened"):
        theory.whitened_layers(X, labels_of([3, 3]), 0.1)


def test_whitened_prediction_is_the_network():
    X, new, labels = gaussian(8, 7, 12), gaussian(9, 5, 12), labels_of([3, 2, 2])
    apply = theory.whitening(X)
    layers = theory.whitened_layers(apply(X), labels, 0.6)
    direct = (apply(new) @ layers[0].T).clamp(min=0) @ layers[1].T
    np.testing.assert_allclose(theory.whitened_prediction(X, labels, 0.6, new), direct, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.05, 0.5, 1.5, 5.0])
@pytest.mark.parametrize("depth", [2, 3])
def test_whitened_scalar_output(beta, depth):
    """Claim 6.C10 and its deep version in C13."""
    X, y = whitened(10, 9, 10), gaussian(11, 9)
    network = convex.Network(X, y, beta, (12,) * (depth - 1))
    best = convex.best_of(network, 4 if depth == 2 else 5, max_iter=500).best.value
    value = theory.whitened_relu_value(y, beta, depth)
    # Depth 3 crawls along kinks: its best start is 1e-5 above, never below.
    assert value - 1e-12 <= best <= value + (1e-7 if depth == 2 else 1e-5)


def test_whitened_scalar_output_takes_one_column_and_no_more():
    y = gaussian(14, 6)
    assert theory.whitened_relu_value(y[:, None], 0.3) == theory.whitened_relu_value(y, 0.3)
    with pytest.raises(checks.InputError, match="1 columns"):
        theory.whitened_relu_value(gaussian(14, 6, 2), 0.3)


@pytest.mark.slow
def test_whitened_bracket():
    X, Y = whitened(12, 6, 8), gaussian(13, 6, 3)
    lower, upper = theory.whitened_relu_bracket(Y, 0.4)
    trained = convex.best_of(convex.Network(X, Y, 0.4, (12,)), 2, max_iter=400).best.value
    assert lower < trained < upper
    labels = labels_of([3, 2, 4])
    lower, upper = theory.whitened_relu_bracket(one_hot(labels), 0.4)
    assert lower == pytest.approx(upper, rel=1e-13)
    assert lower == pytest.approx(theory.collapsed_value([3, 2, 4], 0.4), rel=1e-13)


def test_general_inputs_have_the_collapsed_value_as_bound():
    """Claim 6.C21: beta is divided by the largest singular value of the inputs."""
    X, labels = gaussian(14, 12, 5), labels_of([6, 4, 2])
    bound = theory.collapsed_value([6, 4, 2], 0.5 / float(torch.linalg.matrix_norm(X, 2)))
    network = convex.Network(X, one_hot(labels), 0.5, (10,))
    assert bound < convex.best_of(network, 1, max_iter=300).best.value


# --- batch norm


def head_cost(head, A, Y, beta):
    """The BN objective from its definition, hidden weights as given."""
    z = A @ head.hidden_weight.T
    z = z - z.mean(0)
    normalised = z / z.norm(dim=0)
    hidden = (head.gamma * normalised + head.alpha / math.sqrt(len(A))).clamp(min=0)
    out = hidden @ head.weight.T
    penalty = (head.gamma**2).sum() + (head.alpha**2).sum() + (head.weight**2).sum()
    return float(((out - Y) ** 2).sum() / 2 + beta / 2 * penalty), out


@pytest.mark.parametrize("beta", [0.1, 0.7, 1.8, 2.2, 3.0])
def test_batch_norm_head(beta):
    counts = [6, 4, 3]
    labels, A = labels_of(counts), gaussian(15, 13, 20)
    head = theory.batch_norm_head(A, labels, beta)
    value, out = head_cost(head, A, one_hot(labels), beta)
    assert value == pytest.approx(head.value, rel=1e-12)
    assert head.value == theory.collapsed_value(counts, beta)
    np.testing.assert_allclose(head(A), out, atol=1e-12)
    residual = one_hot(labels) - out
    assert theory.dual_bound(residual, one_hot(labels), beta) == pytest.approx(value, rel=1e-12)
    strength = torch.tensor([max(0, math.sqrt(n) - beta) for n in counts], dtype=torch.float64)
    np.testing.assert_allclose(head.weight.diagonal() ** 2, strength, atol=1e-12)
    np.testing.assert_allclose(head.gamma**2 + head.alpha**2, strength, atol=1e-12)
    share = torch.tensor(counts) / 13
    np.testing.assert_allclose(head.alpha**2, strength * share, atol=1e-12)


def test_balanced_head_has_gamma_over_alpha():
    head = theory.batch_norm_head(gaussian(16, 12, 15), labels_of([3] * 4), 0.5)
    np.testing.assert_allclose(head.gamma / head.alpha, math.sqrt(3), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.3, 1.5])
def test_training_a_batch_norm_head(beta):
    labels, A = labels_of([4, 3, 2]), gaussian(17, 9, 10)
    network = convex.BatchNormNetwork(A, one_hot(labels), beta, 6)
    trained = convex.best_of(network, 6, max_iter=2000).best.value
    assert trained == pytest.approx(theory.collapsed_value([4, 3, 2], beta), abs=1e-8)


@pytest.mark.slow
def test_batch_norm_head_without_rank():
    labels, A = labels_of([6, 4, 3]), gaussian(18, 13, 5)
    with pytest.raises(checks.InputError, match="only a lower bound"):
        theory.batch_norm_head(A, labels, 0.5)
    network = convex.BatchNormNetwork(A, one_hot(labels), 0.5, 8)
    trained = convex.best_of(network, 2, max_iter=500).best.value
    assert trained > 1.1 * theory.collapsed_value([6, 4, 3], 0.5)
    # What is needed is not full rank: one separating direction per class is enough.
    theory.batch_norm_head(one_hot(labels) @ gaussian(19, 3, 7), labels, 0.5)


def test_batch_norm_head_bad_input():
    A = gaussian(20, 6, 8)
    for labels, beta in (([0, 0, 0, 2, 2, 2], 0.1), ([0] * 6, 0.1), ([0, 1, 0, 1, 0, 1], 0.0)):
        with pytest.raises(checks.InputError):
            theory.batch_norm_head(A, labels, beta)
    with pytest.raises(checks.InputError, match="6 samples"):
        theory.batch_norm_head(A, [0, 1], 0.1)


def test_the_closed_form_has_gap_zero():
    counts = [6, 4, 3]
    labels, A = labels_of(counts), gaussian(2, 13, 20)
    decay = 0.04
    beta = theory.pytorch_beta(13, 3, decay)
    head = theory.batch_norm_head(A, labels, beta)
    bn_weight, bn_bias, weight = head.pytorch()
    arguments = dict(bn_weight=bn_weight, bn_bias=bn_bias, weight_decay=decay, eps=0.0)
    found = certified_gap(A @ head.hidden_weight.T, labels, weight, **arguments)
    assert found.beta == pytest.approx(beta, rel=1e-13)
    assert abs(found.gap) < 1e-13 and abs(found.duality_gap) < 1e-13
    quick = certified_gap(A @ head.hidden_weight.T, labels, weight, dual=False, **arguments)
    assert math.isnan(quick.dual) and math.isnan(quick.duality_gap) and abs(quick.gap) < 1e-13
    # float32 parameters and a positive eps only move the objective up.
    rounded = certified_gap(
        (A @ head.hidden_weight.T).float(),
        labels,
        weight.float(),
        bn_weight=bn_weight.float(),
        bn_bias=bn_bias.float(),
        weight_decay=decay,
    )
    assert 0 < rounded.gap < 1e-3


# --- deeper than the theorem


def test_pair_network_interpolates():
    for points, depth in ((4, 3), (3, 4), (4, 5), (5, 6)):
        K = math.comb(points, 2)
        layers = theory.pair_network(points, depth)
        identity = torch.eye(K, dtype=torch.float64)
        _, hidden = cost(layers, identity, identity, 1.0)
        assert len(layers) == depth and torch.allclose(hidden @ layers[-1].T, identity)
        ranks = [int(torch.linalg.matrix_rank(layer)) for layer in layers]
        assert max(ranks[:-1]) == points and ranks[-1] == K
        product = math.prod(float((layer**2).sum()) for layer in layers)
        assert product / K**depth == pytest.approx(theory.pair_ratio(points, depth), rel=1e-12)


@pytest.mark.parametrize(("points", "depth"), [(4, 3), (4, 4), (4, 5), (5, 5), (6, 6)])
def test_scaled_pair_network(points, depth):
    K, beta = math.comb(points, 2), 0.05
    identity = torch.eye(K, dtype=torch.float64)
    value, _ = cost(theory.scaled_pair_network(points, depth, beta), identity, identity, beta)
    assert value == pytest.approx(theory.pair_value(points, depth, beta), rel=1e-12)
    cheaper = theory.pair_ratio(points, depth) < 1
    assert (value < theory.collapsed_value([1] * K, beta, depth)) == cheaper
    # The scaling is the best one.
    layers = theory.scaled_pair_network(points, depth, beta)
    for factor in (0.98, 1.02):
        other, _ = cost([factor * w for w in layers], identity, identity, beta)
        assert other > value


def test_pair_reference():
    """Figures of the specification (claim 6.C13)."""
    assert theory.pair_value(4, 5, 0.05) == pytest.approx(0.7251620064, abs=1e-10)
    assert theory.pair_value(5, 5, 0.05) == pytest.approx(1.1271964566, abs=1e-10)
    assert theory.pair_ratio(4, 5) == pytest.approx(8 / 9)
    assert theory.pair_ratio(5, 5) == pytest.approx(5 / 8)
    for points, depth in ((2, 5), (4, 2)):
        with pytest.raises(checks.InputError):
            theory.pair_network(points, depth)


# --- units


def test_pytorch_units():
    """Section 3.9b with torch's own modules: objective and gradients vanish at the closed form."""
    counts, decay = [4, 3, 2], 0.05
    labels, A = labels_of(counts), gaussian(29, 9, 12)
    n, K = 9, 3
    beta = theory.pytorch_beta(n, K, decay)
    assert beta == pytest.approx(math.sqrt(n) * K * decay / 2)
    head = theory.batch_norm_head(A, labels, beta)
    norm = torch.nn.BatchNorm1d(K, eps=1e-14).double()
    last = torch.nn.Linear(K, K, bias=False).double()
    with torch.no_grad():
        for parameter, value in zip(
            (norm.weight, norm.bias, last.weight), head.pytorch(), strict=True
        ):
            parameter.copy_(value)
    out = last(torch.relu(norm(A @ head.hidden_weight.T)))
    np.testing.assert_allclose(out.detach(), head(A), atol=1e-12)
    loss = torch.nn.functional.mse_loss(out, one_hot(labels))
    parameters = [norm.weight, norm.bias, last.weight]
    objective = loss + decay / 2 * sum(p.square().sum() for p in parameters)
    assert objective.item() == pytest.approx(theory.pytorch_objective(head.value, n, K), rel=1e-12)
    gradients = torch.autograd.grad(objective, [norm.weight, last.weight])
    assert max(float(g.abs().max()) for g in gradients) < 1e-12


def test_balanced_pytorch_threshold():
    for K in (2, 5, 10):
        decay = theory.collapse_weight_decay(K)
        for n_k in (3, 20):
            beta = theory.pytorch_beta(n_k * K, K, decay)
            assert beta == pytest.approx(math.sqrt(n_k), rel=1e-12)
        rho = K**1.5 * 0.3 * decay / 2
        value = theory.collapsed_value([7] * K, theory.pytorch_beta(7 * K, K, 0.3 * decay))
        assert theory.pytorch_objective(value, 7 * K, K) == pytest.approx(
            2 / K * (rho - rho**2 / 2), rel=1e-12
        )


@pytest.mark.slow
def test_ufm_units_against_nonnegative_features():
    """Section 3.9a: nonnegative unconstrained features, trained; and the linear UFM of result 1."""
    K, n_k, lambda_w, lambda_h = 3, 4, 0.02, 0.005
    n, labels = K * n_k, labels_of([n_k] * K)
    beta = theory.ufm_beta(n, lambda_w, lambda_h)

    def objective(root, weight):
        features = root**2
        miss = (features @ weight.T - one_hot(labels)).square().sum() / (2 * n)
        decay = lambda_w * weight.square().sum() + lambda_h * features.square().sum()
        return miss + decay / 2

    starts = [dict(root=gaussian(i, n, 6), weight=gaussian(i + 9, K, 6)) for i in range(2)]
    best = min(solve.minimize(objective, start).value for start in starts)
    assert theory.collapsed_value([n_k] * K, beta) / n == pytest.approx(best, abs=1e-8)
    # Without bias the features of the linear UFM are an orthogonal frame too: same value.
    linear = multi_loss.optimum(
        "mse", K=K, n=n_k, lambda_w=lambda_w, lambda_h=lambda_h, lambda_b=None, tau=1.0
    )
    assert theory.collapsed_value([n_k] * K, beta) / n == pytest.approx(linear.value, rel=1e-10)


def test_different_decay_per_layer():
    """One decay per layer acts as the geometric mean, for two and three layers."""
    Y = gaussian(30, 4, 3)
    X = whitened(31, 4, 5)
    for decays in ((0.3, 0.02), (0.3, 0.02, 0.1)):
        depth = len(decays)

        def objective(decays=decays, **layers):
            product = torch.linalg.multi_dot([layers[k] for k in sorted(layers)][::-1])
            decay = sum(
                d * layers[k].square().sum() for d, k in zip(decays, sorted(layers), strict=True)
            )
            return (X @ product.T - Y).square().sum() / 2 + decay / 2

        sizes = [5, *([4] * (depth - 1)), 3]
        starts = [
            {f"w{j}": gaussian(10 * i + j, sizes[j + 1], sizes[j]) for j in range(depth)}
            for i in range(4)
        ]
        best = min(solve.minimize(objective, start).value for start in starts)
        value = theory.whitened_linear_value(Y, theory.layer_beta(decays), depth)
        assert best == pytest.approx(value, abs=1e-8)
    with pytest.raises(checks.InputError):
        theory.layer_beta([])
    with pytest.raises(checks.InputError):
        theory.ufm_beta(10, 0.0, 1.0)
