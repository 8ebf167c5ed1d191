import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks, metrics
from nclib.metrics import certified


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(counts):
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


class Head(torch.nn.Module):
    """What a user has: BatchNorm1d, ReLU, Linear."""

    def __init__(self, width, K, bias=False, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.norm = torch.nn.BatchNorm1d(width).double()
        self.last = torch.nn.Linear(width, K, bias=bias).double()
        with torch.no_grad():
            self.norm.bias.add_(0.3)

    def forward(self, features):
        return self.last(torch.relu(self.norm(features)))

    def certificate(self, features, labels, **options):
        return metrics.certified_gap(
            features,
            labels,
            self.last.weight,
            bn_weight=self.norm.weight,
            bn_bias=self.norm.bias,
            bias=self.last.bias,
            eps=self.norm.eps,
            **options,
        )

    def decayed(self, decay):
        parameters = (self.norm.weight, self.norm.bias, self.last.weight)
        return decay / 2 * sum(p.square().sum() for p in parameters)


def loss_of(name, outputs, labels):
    K = outputs.shape[1]
    if name == "cross_entropy":
        return torch.nn.functional.cross_entropy(outputs, labels)
    loss = torch.nn.functional.mse_loss(outputs, torch.nn.functional.one_hot(labels, K).double())
    return loss * (K / 2 if name == "half_mse" else 1)


@pytest.mark.parametrize("name", ["mse", "half_mse", "cross_entropy"])
@pytest.mark.parametrize("bias", [False, True])
def test_objective_is_the_one_pytorch_trains(name, bias):
    features, labels = gaussian(0, 12, 7), labels_of([4, 4, 4])
    head = Head(7, 3, bias)
    found = head.certificate(features, labels, weight_decay=0.02, loss=name)
    expected = loss_of(name, head(features), labels) + head.decayed(0.02)
    assert found.objective == pytest.approx(expected.item(), rel=1e-12)
    assert found.lower_bound < found.objective and found.gap > 0
    assert found.relative_gap == pytest.approx(found.gap / found.lower_bound)
    assert math.isnan(found.dual) == (name == "cross_entropy" and bias)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bias", "counts"),
    [
        ("mse", False, [4, 4, 4]),
        ("mse", False, [6, 4, 2]),
        ("half_mse", False, [6, 4, 2]),
        ("mse", True, [4, 4, 4]),
        ("mse", True, [7, 5]),
        ("cross_entropy", False, [4, 4, 4]),
    ],
)
def test_training_the_head_closes_the_gap(name, bias, counts):
    """Bound and units at once: torch modules, torch loss, torch optimiser, any features."""
    labels, K = labels_of(counts), len(counts)
    n = len(labels)
    features, decay = gaussian(1, n, 20), 0.03
    head = Head(12, K, bias)
    head.norm.eps = 1e-12
    hidden = torch.nn.Linear(20, 12, bias=False).double()
    model = torch.nn.Sequential(hidden, head)
    parameters = list(model.parameters())
    # Adam ends within 1 % of the optimum; a wrong unit (n, K, a root) is off by far more.
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        loss = loss_of(name, model(features), labels) + head.decayed(decay)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    found = head.certificate(hidden(features), labels, weight_decay=decay, loss=name)
    assert -1e-10 <= found.gap < 1e-2 * found.objective
    assert math.isnan(found.dual) or found.dual <= found.optimum + 1e-10
    assert found.duality_gap < 0.05 * found.objective


@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    decay=st.floats(1e-3, 1.0),
    size=st.floats(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_bounds_hold_for_any_head(seed, counts, decay, size):
    labels = labels_of(counts)
    if len(labels) < 3:
        return
    features, K = gaussian(seed, len(labels), 4), len(counts)
    arguments = dict(bn_weight=gaussian(seed + 1, 4), bn_bias=gaussian(seed + 2, 4))
    for bias in (None, gaussian(seed + 3, K)):
        found = metrics.certified_gap(
            features,
            labels,
            size * gaussian(seed + 4, K, 4),
            weight_decay=(decay, 0.3),
            bias=bias,
            **arguments,
        )
        assert found.dual <= found.objective + 1e-10
        assert found.optimum <= found.objective + 1e-10
        if bias is None:
            assert found.dual <= found.optimum + 1e-10
            assert found.lower_bound == pytest.approx(found.optimum)


def test_dropped_classes():
    """beta = sqrt(n) K decay / 2 between the roots of the class sizes."""
    counts = [16, 9, 4, 1]
    labels = labels_of(counts)
    features, weight = gaussian(3, 30, 5), gaussian(4, 4, 5)
    for beta, dropped in ((0.9, ()), (1.5, (3,)), (2.5, (2, 3)), (9.0, (0, 1, 2, 3))):
        found = metrics.certified_gap(
            features,
            labels,
            weight,
            bn_weight=torch.ones(5),
            bn_bias=torch.zeros(5),
            weight_decay=2 * beta / (4 * math.sqrt(30)),
        )
        assert found.beta == pytest.approx(beta) and found.dropped == dropped


def test_absent_class_contributes_nothing():
    labels = torch.tensor([0, 0, 2, 2, 2])
    features, weight = gaussian(5, 5, 4), gaussian(6, 3, 4)
    options = dict(bn_weight=torch.ones(4), bn_bias=torch.zeros(4), weight_decay=0.1)
    found = metrics.certified_gap(features, labels, weight, **options)
    beta = math.sqrt(5) * 3 * 0.1 / 2
    expected = 2 / (5 * 3) * certified.collapsed_value([2, 3], beta)
    assert found.optimum == pytest.approx(expected, rel=1e-12)
    with_bias = metrics.certified_gap(features, labels, weight, bias=torch.zeros(3), **options)
    assert with_bias.lower_bound < found.lower_bound
    one = metrics.certified_gap(
        features, torch.zeros(5), weight, bias=torch.tensor([1.0, 0, 0]), **options
    )
    assert one.optimum == 0 and one.lower_bound == 0 and math.isinf(one.relative_gap)


def test_different_decays_enter_as_geometric_mean():
    features, labels, weight = gaussian(7, 8, 4), labels_of([4, 4]), gaussian(8, 2, 4)
    options = dict(bn_weight=torch.ones(4), bn_bias=torch.zeros(4))
    one = metrics.certified_gap(features, labels, weight, weight_decay=0.06, **options)
    two = metrics.certified_gap(features, labels, weight, weight_decay=(0.09, 0.04), **options)
    assert one.optimum == pytest.approx(two.optimum, rel=1e-13)
    expected = one.objective + (0.03 * 4 - 0.02 * float(weight.square().sum())) / 2
    assert two.objective == pytest.approx(expected)


def test_constant_neuron():
    """A neuron without variance outputs its bias, also at eps = 0."""
    features = torch.tensor([[1.0, 2.0], [1.0, 3.0], [1.0, 5.0], [1.0, 4.0]])
    found = metrics.certified_gap(
        features,
        [0, 0, 1, 1],
        torch.eye(2),
        bn_weight=torch.ones(2),
        bn_bias=torch.tensor([0.5, 0.0]),
        weight_decay=0.1,
        eps=0.0,
    )
    assert math.isfinite(found.objective)


def test_bad_input():
    z, y, W = gaussian(9, 6, 4), labels_of([3, 3]), gaussian(10, 2, 4)
    good = dict(bn_weight=torch.ones(4), bn_bias=torch.zeros(4), weight_decay=0.1)
    metrics.certified_gap(z, y, W, **good)
    for change in (
        dict(weight_decay=0.0),
        dict(weight_decay=-1.0),
        dict(weight_decay=(0.1, 0.1, 0.1)),
        dict(weight_decay="0.1"),
        dict(bn_weight=torch.ones(3)),
        dict(bn_bias=torch.ones(4, 1)),
        dict(bias=torch.zeros(3)),
        dict(loss="hinge"),
        dict(eps=-1.0),
    ):
        with pytest.raises(checks.InputError):
            metrics.certified_gap(z, y, W, **(good | change))
    for features, labels, weight in (
        (z[:, :3], y, W),
        (z, y[:5], W),
        (z, y + 1, W),
        (z * math.nan, y, W),
    ):
        with pytest.raises(checks.InputError):
            metrics.certified_gap(features, labels, weight, **good)
    with pytest.raises(checks.InputError, match="equally many samples"):
        metrics.certified_gap(
            z, [0, 0, 0, 0, 1, 1], W, bias=torch.zeros(2), loss="cross_entropy", **good
        )
