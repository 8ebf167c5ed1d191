import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks
from nclib.results.convex_duality import metrics, theory
from nclib.results.convex_duality import ufm as convex


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(counts):
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_path_norm(seed):
    first, second = gaussian(seed, 5, 3), gaussian(seed + 1, 2, 5)
    expected = sum(float(first[j].norm() * second[:, j].norm()) for j in range(5))
    found = metrics.path_norm(first, second)
    half = float(first.square().sum() + second.square().sum()) / 2
    assert found == pytest.approx(expected) and found <= half
    scale = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    assert metrics.path_norm(scale[:, None] * first, second / scale) == pytest.approx(found)
    balance = (second.norm(dim=0) / first.norm(dim=1)).sqrt()
    first, second = balance[:, None] * first, second / balance
    half = float(first.square().sum() + second.square().sum()) / 2
    assert half == pytest.approx(found)


@pytest.mark.parametrize("depth", [2, 4])
def test_trained_linear_layers_are_balanced_and_aligned(depth):
    """Claims 6.C2 and 6.C6 on an L-BFGS solution."""
    X, Y = torch.linalg.qr(gaussian(0, 9, 6))[0].T, gaussian(1, 6, 3)
    network = convex.Network(X, Y, 0.2, (5,) * (depth - 1), "linear")
    best = convex.best_of(network, 3, max_iter=2000).best
    layers = network.layers(best.variables)
    assert metrics.balancedness(layers) < 1e-5
    frobenius, operator = metrics.layer_norms(layers)
    assert np.ptp(frobenius) < 1e-5 and np.ptp(operator) < 1e-5
    assert operator == pytest.approx([float(torch.linalg.matrix_norm(w, 2)) for w in layers])
    assert frobenius == pytest.approx([float(w.norm()) for w in layers])
    assert metrics.alignment(layers) == pytest.approx(1, abs=1e-6)
    assert metrics.alignment(layers, rank=3) == pytest.approx(1, abs=1e-6)
    assert {metrics.numerical_rank(w) for w in layers} == {3}
    start = network.layers(network.start(torch.Generator().manual_seed(0)))
    assert metrics.balancedness(start) > 0.1 and metrics.alignment(start) < 0.99


def test_trained_relu_layers_are_balanced_on_the_diagonal():
    X, labels = torch.linalg.qr(gaussian(2, 9, 7))[0].T, labels_of([3, 2, 2])
    Y = torch.nn.functional.one_hot(labels).double()
    network = convex.Network(X, Y, 0.2, (6,))
    layers = network.layers(convex.best_of(network, 2, max_iter=1000).best.variables)
    assert metrics.balancedness(layers, relu=True) < 1e-5
    assert metrics.path_norm(*layers) == pytest.approx(
        sum(float(w.square().sum()) for w in layers) / 2, abs=1e-5
    )


def test_balancedness_by_hand():
    first, second = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 2.0]])
    assert metrics.balancedness([first, second]) == 0
    assert metrics.balancedness([first, 2 * second]) == 12
    assert metrics.balancedness([first, torch.tensor([[1.0, -2.0]])]) == 4
    assert metrics.balancedness([first, torch.tensor([[1.0, -2.0]])], relu=True) == 0


def test_numerical_rank():
    matrix = torch.diag(torch.tensor([2.0, 1e-3, 1e-8]))
    assert metrics.numerical_rank(matrix) == 2
    assert metrics.numerical_rank(matrix, tolerance=1e-2, relative=True) == 1
    assert metrics.numerical_rank(torch.zeros(3, 2)) == 0


def test_alignment_by_hand():
    angle = 0.3
    rotation = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    layers = [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([5.0, 1.0])) @ rotation]
    assert metrics.alignment(layers) == pytest.approx(math.cos(angle), rel=1e-6)
    assert metrics.alignment(layers, rank=2) == pytest.approx(1)


def test_knots():
    x, y = np.linspace(-1, 2, 6), np.array([0.0, 1, 0, 2, 2, 1])
    spline = theory.fit_spline(x, y, 0.05)
    w, b, v, _ = spline.network()
    positions, masses = metrics.knots(w, b, v)
    assert masses.sum() == pytest.approx(spline.norm)
    assert metrics.mass_near(positions, masses, x) == 1
    assert set(np.round(positions, 9)) == set(np.round(spline.knots, 9))
    # Two neurons on one knot are one knot; a dead neuron is none.
    positions, masses = metrics.knots([2.0, -1.0, 0.0], [-1.0, 0.5, 3.0], [1.0, 3.0, 1.0])
    assert positions.tolist() == [0.5] and masses.tolist() == [5.0]
    positions, masses = metrics.knots(
        torch.tensor([[1.0], [1.0]]),
        torch.tensor([-1.0, -3.0]),
        torch.tensor([[3.0, 0.0], [4.0, 1.0]]),
    )
    assert positions.tolist() == [1.0, 3.0] and masses.tolist() == [5.0, 1.0]
    assert metrics.mass_near(positions, masses, [1.0005]) == pytest.approx(5 / 6)
    assert math.isnan(metrics.mass_near([], [], [0.0]))
    assert metrics.knots([0.0], [1.0], [1.0])[0].size == 0


def test_collapse_error():
    counts, beta = [5, 3, 1], 1.2
    labels = labels_of(counts)
    shape = theory.collapse(counts, beta)
    n = torch.tensor(counts, dtype=torch.float64)
    # Class means sqrt((sqrt(n_k) - beta)_+ / n_k) on orthogonal axes (section 3.6).
    H = torch.diag(((n.sqrt() - beta).clamp(min=0) / n).sqrt())[labels]
    assert metrics.collapse_error(H, labels, shape) < 1e-14
    rotation = torch.linalg.qr(gaussian(3, 3, 3))[0]
    assert metrics.collapse_error(H @ rotation, labels, shape) < 1e-14
    assert metrics.collapse_error(math.sqrt(2) * H, labels, shape) == pytest.approx(1)
    assert metrics.collapse_error(0 * H, labels, shape) == pytest.approx(1)
    with pytest.raises(checks.InputError, match="dropped"):
        metrics.collapse_error(H, labels, theory.collapse(counts, 5.0))


def test_cosine_deviations():
    labels = labels_of([2, 2, 2])
    frame = torch.eye(3, dtype=torch.float64)[labels]
    found = metrics.cosine_deviations(frame, labels)
    assert found == pytest.approx(dict(orthogonal=0, simplex=0, nc1=0, dropped=0), abs=1e-14)
    etf = frame - 1 / 3
    found = metrics.cosine_deviations(etf, labels)
    assert found["orthogonal"] == pytest.approx(0.5) and found["simplex"] < 1e-14
    # Brute force on noise; the third class is dropped.
    H = gaussian(4, 7, 4)
    labels = labels_of([3, 2, 2])
    H[labels == 2] = 0
    found = metrics.cosine_deviations(H, labels)
    a, b = H[:3].mean(0), H[3:5].mean(0)
    assert found["dropped"] == 1
    assert found["orthogonal"] == pytest.approx(abs(float(a @ b / a.norm() / b.norm())))
    assert found["simplex"] < 1e-12  # two means: centred cosine is -1
    grand = (a + b) / 3
    within = sum(float((H[i] - (a, b, 0 * a)[labels[i]]).square().sum()) for i in range(7)) / 7
    between = sum(float((m - grand).square().sum()) for m in (a, b, 0 * a)) / 3
    assert found["nc1"] == pytest.approx(within / between)
    zero = metrics.cosine_deviations(torch.zeros(4, 3), labels_of([2, 2]))
    assert zero["dropped"] == 2 and math.isnan(zero["orthogonal"]) and math.isnan(zero["nc1"])


def test_bad_input():
    a, b = gaussian(5, 3, 2), gaussian(6, 2, 4)
    for call in (
        lambda: metrics.path_norm(a, b),
        lambda: metrics.balancedness([a, b]),
        lambda: metrics.alignment([a, b]),
        lambda: metrics.alignment([a], rank=0),
        lambda: metrics.knots([1.0, 2.0], [1.0], [1.0, 2.0]),
        lambda: metrics.cosine_deviations(a, [0, 2, 2]),
        lambda: metrics.collapse_error(a, [0, 0, 1], theory.collapse([2], 0.1)),
    ):
        with pytest.raises(checks.InputError):
            call()
