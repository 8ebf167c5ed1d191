"""Lower bounds of result 6 against training, brute force and their definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks
from nclib.metrics import certified
from nclib.ufm import solve
from tests.metrics.test_certified import gaussian, labels_of


def one_hot(labels):
    return torch.nn.functional.one_hot(labels).double()


def whitened(seed, n, d):
    return torch.linalg.qr(gaussian(seed, d, n))[0].T


@given(seed=st.integers(0, 1000), beta=st.floats(0.1, 4), size=st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_dual_bound_is_below_the_optimum(seed, beta, size):
    """Claim 6.C15: whatever the residual, the bound is below the collapsed value."""
    counts = [5, 3, 2]
    Y = one_hot(labels_of(counts))
    residual = Y - size * gaussian(seed, 10, 3).clamp(min=0)
    bound = certified.dual_bound(residual, Y, beta)
    assert bound <= certified.collapsed_value(counts, beta) + 1e-10
    # The definition, written out.
    G = (residual @ residual.T).clamp(min=0)
    top = float(torch.linalg.eigvalsh(G).max())
    c = min(1.0, beta / math.sqrt(top)) if top > 0 else 1.0
    expected = float((Y**2).sum() / 2 - ((c * residual - Y) ** 2).sum() / 2)
    assert bound == pytest.approx(expected, abs=1e-11)


def test_dual_point_is_feasible_on_the_nonnegative_sphere():
    residual = gaussian(21, 12, 4)
    top = certified._top_eigenvalue(residual)
    u = gaussian(22, 20_000, 12).abs()
    u = u / u.norm(dim=1, keepdim=True)
    assert float((u @ residual).norm(dim=1).max()) <= math.sqrt(top)


def test_large_residuals_use_blocks(monkeypatch):
    residual = gaussian(23, 700, 5)
    exact = float(torch.linalg.eigvalsh((residual @ residual.T).clamp(min=0))[-1])
    monkeypatch.setattr(certified, "_BLOCK", 64)
    assert certified._top_eigenvalue(residual) == pytest.approx(exact, rel=1e-12)
    blocks = one_hot(labels_of([300, 200])).repeat_interleave(2, 1)  # reducible matrix
    exact = float(torch.linalg.eigvalsh(blocks @ blocks.T)[-1])
    assert certified._top_eigenvalue(blocks) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("rows", [40, 700])
@pytest.mark.parametrize("size", [0.0, 1e-310, 1e-160, 1e-20, 1e20, 1e160])
def test_dual_bound_of_residuals_of_any_size(rows, size):
    """A residual that is too large is scaled down to the same point, a small one is used as is."""
    residual = gaussian(24, rows, 3)
    residual, Y = residual / residual.abs().max(), one_hot(labels_of([10, 15, rows - 25]))
    found = certified.dual_bound(size * residual, Y, 0.3)
    if size > 1:
        assert found == pytest.approx(certified.dual_bound(residual, Y, 0.3), rel=1e-12)
    else:
        assert found == pytest.approx(size * float((residual * Y).sum()), rel=1e-12, abs=1e-315)


def test_dual_bound_vectors_and_errors():
    y = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    assert certified.dual_bound(y, y, 100.0) == pytest.approx(float(y @ y / 2))
    assert certified.dual_bound(torch.zeros(3), y, 1.0) == 0
    for residual, targets, beta in ((y[:2], y, 1.0), (y, y, 0.0), (y * math.nan, y, 1.0)):
        with pytest.raises(checks.InputError):
            certified.dual_bound(residual, targets, beta)


@pytest.mark.slow
def test_cross_entropy_optimum():
    """Claim 6.C22: value against training, dual bound tight there and below elsewhere."""
    labels, X = labels_of([3] * 4), whitened(24, 12, 14)
    for beta in (0.2, 0.9, 1.6):
        value = certified.cross_entropy_value(3, 4, beta)

        def objective(first, second, beta=beta):
            logits = (X @ first.T).clamp(min=0) @ second.T
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            return loss + beta / 2 * (first.square().sum() + second.square().sum())

        starts = [dict(first=gaussian(i, 9, 14), second=gaussian(i + 9, 4, 9)) for i in range(4)]
        found = min((solve.minimize(objective, s) for s in starts), key=lambda s: s.value)
        assert found.value == pytest.approx(value, abs=1e-6)
        first, second = found.variables["first"], found.variables["second"]
        logits = (X @ first.T).clamp(min=0) @ second.T
        margin = certified.cross_entropy_margin(3, 4, beta)
        correct = logits.gather(1, labels[:, None])[:, 0]
        rest = (logits.sum(1) - correct) / 3
        np.testing.assert_allclose(correct - rest, margin, atol=1e-3)
        ideal = margin * one_hot(labels)
        assert certified.cross_entropy_dual_bound(ideal, labels, beta) == pytest.approx(value)
        other = ideal + 0.3 * gaussian(25, 12, 4)
        assert certified.cross_entropy_dual_bound(other, labels, beta) < value
    threshold = math.sqrt(3 * 3 / 4)
    assert certified.cross_entropy_margin(3, 4, threshold * 1.0001) == 0
    assert certified.cross_entropy_margin(3, 4, threshold * 0.9999) > 0
    assert certified.cross_entropy_value(3, 4, 9.0) == pytest.approx(12 * math.log(4))


def test_cross_entropy_bound_uses_fenchel_conjugate():
    """The bound is -loss*(-Lambda): brute-force the conjugate of one sample."""
    logits, labels = gaussian(26, 5, 3), torch.tensor([0, 1, 2, 0, 1])
    beta = 0.4
    E = one_hot(labels) - torch.softmax(logits, 1)
    top = float(torch.linalg.eigvalsh((E @ E.T).clamp(min=0))[-1])
    point = min(1, beta / math.sqrt(top)) * E
    total = 0.0
    for row, label in zip(point, labels, strict=True):
        f = lambda z, row=row, label=label: (
            -(torch.logsumexp(z, 0) - z[label] + row @ z)
        )  # maximise -loss - lambda'z
        total += solve.minimize(lambda z, f=f: -f(z), {"z": torch.zeros(3)}).value
    assert certified.cross_entropy_dual_bound(logits, labels, beta) == pytest.approx(
        total, rel=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize("K", [2, 4])
def test_free_bias_balanced(K):
    """Section 3.6: closed form, against training with an output bias."""
    n_k = 3
    labels, X = labels_of([n_k] * K), whitened(27, n_k * K, n_k * K + 2)
    for beta in (0.3, 1.0, 2.0):
        s = max(0.0, 1 - beta * math.sqrt(K / ((K - 1) * n_k)))
        expected = (K - 1) * n_k * (1 - s**2) / 2
        lower, upper = certified.free_bias_bounds([n_k] * K, beta)
        assert lower == pytest.approx(expected, rel=1e-12)
        assert upper == pytest.approx(expected, rel=1e-12)

        def objective(first, second, bias, beta=beta):
            out = (X @ first.T).clamp(min=0) @ second.T + bias
            decay = first.square().sum() + second.square().sum()
            return (out - one_hot(labels)).square().sum() / 2 + beta / 2 * decay

        starts = [
            dict(
                first=gaussian(i, 9, X.shape[1]), second=gaussian(i + 9, K, 9), bias=torch.zeros(K)
            )
            for i in range(2)
        ]
        best = min(solve.minimize(objective, s, max_iter=1500).value for s in starts)
        assert best == pytest.approx(expected, abs=1e-7)


@pytest.mark.slow
def test_free_bias_unbalanced_sandwiches_training():
    counts, beta = [7, 4, 2], 0.8
    labels, X = labels_of(counts), whitened(28, 13, 14)
    lower, upper = certified.free_bias_bounds(counts, beta)

    def objective(first, second, bias):
        out = (X @ first.T).clamp(min=0) @ second.T + bias
        decay = first.square().sum() + second.square().sum()
        return (out - one_hot(labels)).square().sum() / 2 + beta / 2 * decay

    starts = [
        dict(first=gaussian(i, 9, 14), second=gaussian(i + 9, 3, 9), bias=torch.zeros(3))
        for i in range(3)
    ]
    best = min(solve.minimize(objective, s, max_iter=1500).value for s in starts)
    assert lower - 1e-9 <= best <= upper + 1e-7
    assert upper < certified.collapsed_value(counts, beta)
    two = certified.free_bias_bounds([7, 2], 0.5)
    assert two[0] == pytest.approx(two[1], rel=1e-12)
