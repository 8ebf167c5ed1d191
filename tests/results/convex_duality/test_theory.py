"""Closed forms of result 6 against their definitions and against training."""

import math

import numpy as np
import pytest
import torch

from nclib import checks
from nclib.metrics.certified import collapsed_value, dual_bound
from nclib.results.convex_duality import theory
from nclib.results.convex_duality.nets import BatchNormNetwork, Network, lowest
from tests.results.convex_duality.test_nets import gaussian, labels_of


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


# --- the collapsed network


@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_collapsed_network_has_its_geometry(depth, beta):
    """The network itself: one neuron per class, layers of equal norm."""
    counts = torch.tensor([4, 1, 3])
    labels, X = labels_of([4, 1, 3]), whitened(1, 8, 9)
    shape = theory.collapse(counts, beta, depth)
    root = shape.strengths ** (1 / depth)
    first = (root / counts**0.5)[:, None] * (one_hot(labels).T @ X)
    layers = [first, *[torch.diag(root)] * (depth - 1)]
    value, H = cost(layers, X, one_hot(labels), beta)
    assert value == pytest.approx(shape.value, rel=1e-12)
    assert value == pytest.approx(collapsed_value(counts, beta, depth), rel=1e-12)
    np.testing.assert_allclose(H @ H.T, shape.gram(labels), atol=1e-12)
    np.testing.assert_allclose(H[[0, 4, 5]].norm(dim=1), shape.mean_norms, atol=1e-12)
    np.testing.assert_allclose(layers[-1].norm(dim=1), shape.weight_norms, atol=1e-12)
    outputs = H @ layers[-1].T
    np.testing.assert_allclose(outputs, one_hot(labels) * shape.outputs, atol=1e-12)


def test_class_dies_at_the_root_of_its_size():
    for beta in (1.999, 2.001):
        outputs = theory.collapse([9, 4, 1], beta).outputs.tolist()
        assert outputs == pytest.approx([1 - beta / 3, max(0, 1 - beta / 2), 0], abs=1e-12)


@pytest.mark.slow
def test_depth_three_training_finds_nothing_better():
    """Claim 6.C13, the part that holds."""
    labels, X = labels_of([3, 2, 2]), whitened(2, 7, 8)
    network = Network(X, one_hot(labels), 0.3, (8, 8))
    best = lowest(network, 5, max_iter=1000, scale=1.5)
    value = collapsed_value([3, 2, 2], 0.3, 3)
    assert value - 1e-12 <= best.value <= value + 1e-5


# --- whitening


def test_whitening():
    X = gaussian(4, 6, 9)
    matrix = theory.whitening(X)
    white = X @ matrix
    np.testing.assert_allclose(white @ white.T, np.eye(6), atol=1e-12)
    assert int(torch.linalg.matrix_rank(matrix)) == 6  # nothing outside the span survives
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    with pytest.raises(checks.InputError, match="at most as many samples"):
        theory.whitening(gaussian(7, 9, 6))
    with pytest.raises(checks.InputError, match="full row rank"):
        theory.whitening(torch.cat([X, X[:1]]))


def test_whitened_prediction_is_the_network():
    X, new, labels, beta = gaussian(8, 7, 12), gaussian(9, 5, 12), labels_of([3, 2, 2]), 0.6
    matrix, Y = theory.whitening(X), one_hot(labels_of([3, 2, 2]))
    hidden = (new @ matrix @ (X @ matrix).T @ Y / Y.sum(0) ** 0.5).clamp(min=0)
    direct = hidden * (Y.sum(0).sqrt() - beta).clamp(min=0)
    np.testing.assert_allclose(theory.whitened_prediction(X, labels, beta, new), direct, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.05, 0.5, 1.5, 5.0])
def test_whitened_scalar_output(beta):
    """Claim 6.C10."""
    X, y = whitened(10, 9, 10), gaussian(11, 9)
    best = lowest(Network(X, y, beta, (12,)), 4, max_iter=500).value
    assert best == pytest.approx(theory.whitened_relu_value(y, beta), abs=1e-7)


# --- batch norm


@pytest.mark.parametrize("beta", [0.1, 0.7, 1.8, 2.2, 3.0])
def test_batch_norm_head(beta):
    counts = [6, 4, 3]
    labels, A = labels_of(counts), gaussian(15, 13, 20)
    head, Y = theory.batch_norm_head(A, labels, beta), one_hot(labels)
    z = A @ head["hidden_weight"].T  # the BN objective from its definition
    z = z - z.mean(0)
    hidden = (head["gamma"] * z / z.norm(dim=0) + head["alpha"] / math.sqrt(13)).clamp(min=0)
    out = hidden @ head["weight"].T
    penalty = sum((head[name] ** 2).sum() for name in ("gamma", "alpha", "weight"))
    value = float(((out - Y) ** 2).sum() / 2 + beta / 2 * penalty)
    assert value == pytest.approx(collapsed_value(counts, beta), rel=1e-12)
    assert dual_bound(Y - out, Y, beta) == pytest.approx(value, rel=1e-12)
    strength = torch.tensor([max(0, math.sqrt(n) - beta) for n in counts], dtype=torch.float64)
    np.testing.assert_allclose(head["weight"].diagonal() ** 2, strength, atol=1e-12)
    np.testing.assert_allclose(head["gamma"] ** 2 + head["alpha"] ** 2, strength, atol=1e-12)
    np.testing.assert_allclose(head["alpha"] ** 2, strength * Y.mean(0), atol=1e-12)


@pytest.mark.parametrize(("size", "shift"), [(1.0, 1e4), (1.0, -1e6), (1e-8, 0.0), (1e8, 0.0)])
def test_batch_norm_head_of_features_in_any_units(size, shift):
    counts, beta = [5, 2, 1], 0.6
    labels, A = labels_of(counts), size * gaussian(21, 8, 9) + shift
    head = theory.batch_norm_head(A, labels, beta)
    z = A @ head["hidden_weight"].T
    z = z - z.mean(0)
    hidden = (head["gamma"] * z / z.norm(dim=0) + head["alpha"] / math.sqrt(8)).clamp(min=0)
    expected = one_hot(labels) * (1 - beta / torch.tensor(counts).double().sqrt())
    np.testing.assert_allclose(hidden @ head["weight"].T, expected, atol=1e-6)


@pytest.mark.slow
def test_batch_norm_head_without_rank():
    labels, A = labels_of([6, 4, 3]), gaussian(18, 13, 5)
    with pytest.raises(checks.InputError, match="only a lower bound"):
        theory.batch_norm_head(A, labels, 0.5)
    trained = lowest(BatchNormNetwork(A, one_hot(labels), 0.5, 8), 2, max_iter=500).value
    assert trained > 1.1 * collapsed_value([6, 4, 3], 0.5)
    # What is needed is not full rank: one separating direction per class is enough.
    theory.batch_norm_head(one_hot(labels) @ gaussian(19, 3, 7), labels, 0.5)


def test_two_classes_on_one_neuron_are_stationary_and_dearer():
    """Where a BN head can stop above the closed form: one direction for the first two classes."""
    K, n_k, rho = 4, 5, 0.4
    labels, A, beta = labels_of([n_k] * K), gaussian(22, 20, 24), 0.4 * math.sqrt(5)
    merged = theory.batch_norm_head(A, torch.clamp(labels - 1, min=0), beta)
    problem = BatchNormNetwork(A, one_hot(labels), beta, K - 1)
    root = math.sqrt(math.sqrt(n_k) - beta)  # the singular value of the pair is sqrt(n_k), too
    shares = torch.tensor([2, 1, 1], dtype=torch.float64) / K
    rows = torch.tensor([[0.5**0.5, 0, 0], [0.5**0.5, 0, 0], [0, 1, 0], [0, 0, 1]]).double()
    point = {"gamma": root * (1 - shares).sqrt(), "alpha": root * shares.sqrt()}
    point |= {"hidden_weight": merged["hidden_weight"], "weight": root * rows}
    for tensor in point.values():
        tensor.requires_grad_()
    value = problem(**point)
    expected = (1 - rho) ** 2 / (K * rho * (2 - rho))
    assert value.item() / collapsed_value([n_k] * K, beta) - 1 == pytest.approx(expected, rel=1e-5)
    free = [point[name] for name in ("gamma", "weight")]
    gradients = torch.autograd.grad(value, free)
    assert max(float(g.abs().max()) for g in gradients) < 1e-6


# --- deeper than the theorem


LOW_RANK = {
    **{(p, L): theory.pair_layers(p, L) for p, L in ((4, 3), (4, 4), (4, 5), (5, 5), (6, 6))},
    **{(3, L): theory.triple_layers(L) for L in (3, 4, 5, 7)},
}


@pytest.mark.parametrize(("points", "depth"), LOW_RANK)
def test_low_rank_networks(points, depth):
    """Identity through a bottleneck; cheaper where the formula says so, at the best scale."""
    beta, layers = 0.05, LOW_RANK[points, depth]
    K, rank = len(layers[-1]), 2 if points == 3 else points
    identity = torch.eye(K, dtype=torch.float64)
    best = theory.best_scaled(layers, beta)
    value, hidden = cost(best, identity, identity, beta)
    assert value == pytest.approx(theory.bottleneck_value(layers, beta), rel=1e-12)
    assert int(torch.linalg.matrix_rank(layers[0])) == rank and len(layers) == depth
    outputs = hidden @ best[-1].T
    np.testing.assert_allclose(outputs, outputs[0, 0] * identity, atol=1e-12)
    s = points
    known = (
        58.2795 * 2 ** (depth - 3) / 3**depth if s == 3 else s / 2 * (2 / (s - 1)) ** (depth - 3)
    )
    assert theory.norm_ratio(layers) == pytest.approx(known, rel=1e-5)
    assert (value < collapsed_value([1] * K, beta, depth)) == (known < 1) == (depth > 4)
    for factor in (0.98, 1.02):  # the scaling is the best one
        assert cost([factor * w for w in best], identity, identity, beta)[0] > value


def test_the_scales_of_the_triple_are_nearly_the_best():
    def product(b2, r):
        return 2 * (1 + b2) * (4 + 2 * r**2) * (2 + 1 / (2 * b2) + 1 / (4 * b2 * r**2))

    b2, r = np.meshgrid(np.linspace(0.3, 1.5, 241), np.linspace(0.3, 1.5, 241))
    found = theory.norm_ratio(theory.triple_layers(3)) * 27
    assert product(b2, r).min() == pytest.approx(found, rel=1e-3)


# --- units


@pytest.mark.parametrize("K", [2, 5])
def test_weight_decay_in_the_units_of_pytorch(K):
    """With torch's own modules: objective, and gradients that vanish at the closed form."""
    n_k, rho = 3, 0.3
    decay, beta = theory.weight_decay_for(K, rho), rho * math.sqrt(n_k)
    labels, n = labels_of([n_k] * K), n_k * K
    A = gaussian(29, n, n + 3)
    head = theory.batch_norm_head(A, labels, beta)
    norm = torch.nn.BatchNorm1d(K, eps=1e-14).double()
    last = torch.nn.Linear(K, K, bias=False).double()
    parameters = [norm.weight, norm.bias, last.weight]
    with torch.no_grad():  # equal decay on both modules moves a factor n^(1/4) between them
        for parameter, name in zip(parameters, ("gamma", "alpha", "weight"), strict=True):
            parameter.copy_(head[name] * n**-0.25)
    out = last(torch.relu(norm(A @ head["hidden_weight"].T)))
    loss = torch.nn.functional.mse_loss(out, one_hot(labels))
    objective = loss + decay / 2 * sum(p.square().sum() for p in parameters)
    assert objective.item() == pytest.approx(2 / K * (rho - rho**2 / 2), rel=1e-12)
    gradients = torch.autograd.grad(objective, [norm.weight, last.weight])
    assert max(float(g.abs().max()) for g in gradients) < 1e-12


def test_bad_input():
    A = gaussian(20, 6, 8)
    for call, message in (
        (lambda: theory.ufm_beta(3, -1.0, 0.1), "lambda_w must be at least 0"),
        (lambda: theory.ufm_beta(3, 1.0, -0.1), "lambda_h must be at least 0"),
        (lambda: theory.whitened_relu_value(2.0, 0.1), "targets must have shape"),
        (lambda: theory.hat_network(-1.0), "beta must be at least 0, got -1.0"),
        (lambda: theory.hat_network(0.1, math.nan), "shift"),
        (lambda: theory.odd_pair_value(-1.0, 3), "beta must be at least 0, got -1.0"),
        (lambda: theory.odd_pair_value("a", 3), "beta must be a finite number"),
        (lambda: theory.norm_ratio([]), "layers is empty"),
        (lambda: theory.bottleneck_value([2 * torch.eye(2)] * 2, 0.1), "do not map I_K to itself"),
        (lambda: theory.best_scaled([torch.ones(2, 2)] * 2, 0.1), "do not map I_K to itself"),
        (lambda: theory.batch_norm_head(A, [0, 0, 0, 2, 2, 2], 0.1), "class"),
        (lambda: theory.batch_norm_head(A, [0] * 6, 0.1), "two classes"),
        (lambda: theory.batch_norm_head(A, [0, 1] * 3, 0.0), "beta"),
        (lambda: theory.batch_norm_head(A, [0, 1], 0.1), "6 samples"),
        (lambda: theory.pair_layers(2, 5), "points must be at least 3"),
        (lambda: theory.pair_layers(4, 2), "depth must be at least 3"),
        (lambda: theory.triple_layers(2), "depth must be at least 3"),
        (lambda: theory.bottleneck_value([], 0.1), "layers is empty"),
        (lambda: theory.whitening(torch.zeros(0, 3)), "inputs is empty"),
        (lambda: theory.whitened_prediction(torch.zeros(0, 3), [], 0.1, [[1.0, 2, 3]]), "empty"),
        (lambda: theory.collapse([2, 1], 0.1).gram([0, 0, 2]), "labels must lie in 0..1"),
    ):
        with pytest.raises(checks.InputError, match=message):
            call()
