"""The pick-all-label loss against torch's soft-target cross-entropy (claim 3.L1)."""

import math

import pytest
import torch
import torch.nn.functional as F

from nclib.checks import InputError
from nclib.losses import PickAllLabels, pick_all_labels


def all_sets(K):
    """Every non-empty label set of K classes."""
    codes = torch.arange(1, 2**K)
    return ((codes[:, None] >> torch.arange(K)) & 1).double()


def test_equals_soft_target_cross_entropy_for_every_label_set():
    targets = all_sets(5)
    logits = 4 * torch.randn(len(targets), 5, generator=torch.Generator().manual_seed(0)).double()
    soft = targets / targets.sum(1, keepdim=True)
    assert abs(pick_all_labels(logits, targets) - F.cross_entropy(logits, targets)) < 1e-12
    assert abs(pick_all_labels(logits, targets, "mean") - F.cross_entropy(logits, soft)) < 1e-12
    with pytest.raises(InputError, match="sum, mean"):
        pick_all_labels(logits, targets, "none")


def test_the_loss_object_is_the_same_in_stacks_with_classes_second():
    targets = all_sets(4)
    logits = torch.randn(3, len(targets), 4, generator=torch.Generator().manual_seed(5)).double()
    for reduction in ("sum", "mean"):
        loss = PickAllLabels(reduction)
        stack = loss.per_sample(logits.mT, targets.mT.expand(3, -1, -1))
        for i in range(3):
            want = pick_all_labels(logits[i], targets, reduction)
            assert float(stack[i].mean()) == pytest.approx(float(want), rel=1e-14)


def test_gradient_is_m_softmax_minus_targets():
    targets = all_sets(4)
    logits = torch.randn(len(targets), 4, generator=torch.Generator().manual_seed(2)).double()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(pick_all_labels(logits, targets) * len(targets), logits)
    expected = targets.sum(1, keepdim=True) * logits.softmax(1) - targets
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-14)


def test_dtypes_and_masked_logits():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([list(map(float, row)) for row in all_sets(4)[:6]])
    value = pick_all_labels(logits, targets)
    assert value.dtype == torch.float32
    for other in (targets.bool(), targets.long(), targets.double()):
        assert torch.equal(pick_all_labels(logits, other), value)
    whole = logits.round()
    assert pick_all_labels(whole.long(), targets) == pick_all_labels(whole.tolist(), targets)
    masked = torch.tensor([[1.0, 0.0, -math.inf]])
    assert torch.isfinite(pick_all_labels(masked, torch.tensor([[1, 1, 0]])))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([[1, 0, 0], [0, 0, 0]]), "without a label"),
        (torch.tensor([[0.5, 0.5, 0], [1, 0, 0]]), "only 0 and 1"),
        (torch.tensor([[2, 0, 0], [1, 0, 0]]), "only 0 and 1"),
        (torch.tensor([[float("nan"), 1, 0], [1, 0, 0]]), "only 0 and 1"),
        (torch.tensor([[1, 0], [1, 0]]), "shape"),
        (torch.tensor([1, 0, 0]), "multi-hot"),
        (torch.zeros(0, 3), "non-empty"),
    ],
)
def test_bad_targets(targets, message):
    with pytest.raises(InputError, match=message):
        pick_all_labels(torch.zeros(2, 3), targets)
