"""Cosine heads, margin losses, running class means, resumed trainings."""

import math

import pytest
import torch

from nclib import checks, frames
from nclib.deep import data, train
from nclib.metrics import known_margins
from nclib.results.large_class import experiments, nets


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cosine_head_returns_cosines_and_ignores_norms():
    head = nets.CosineHead(3, 5)
    features = normal(7, 3)
    found = head(features)
    for i in range(7):
        for k in range(5):
            w, h = head.weight[k].detach(), features[i]
            assert float(found[i, k].detach()) == pytest.approx(
                float(w @ h / w.norm() / h.norm()), abs=1e-6
            )
    torch.testing.assert_close(head(5 * features), found)
    assert head.bias is None
    norms = nets.CosineHead(400, 50).weight.norm(dim=1)  # about 1, by at most 1/sqrt(800) each
    assert float(norms.mean().detach()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_cosines_are_not_rounded_under_autocast(momentum):
    head, features = nets.cosine_head(3, 5, momentum=momentum), normal(7, 3).bfloat16().float()
    expected = head(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head(features.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_running_means_of_half_precision_features():
    exact, rounded = (nets.ClassMeanHead(3, 2) for _ in range(2))
    features = normal(6, 3).bfloat16()
    labels = torch.tensor([0, 1, 0, 1, 1, 1])
    exact.update(features.float(), labels)
    rounded.update(features, labels)
    torch.testing.assert_close(rounded.weight, exact.weight, atol=1e-6, rtol=0)


def test_losses_refuse_what_they_would_not_train():
    for margin, kind in ((1.6, "arcface"), (-0.1, "cosface")):
        with pytest.raises(checks.InputError, match="margin"):
            nets.NormalizedSoftmax(1.0, margin=margin, margin_type=kind)
    for order in ((0, 0, 1), (1, 2, 3)):
        with pytest.raises(checks.InputError, match="each row"):
            nets.NormalizedSoftmax(1.0, order=order)


def test_fixed_code_is_not_trained():
    code = frames.icosahedron()
    head = nets.CosineHead(3, 12, code)
    assert list(head.parameters()) == []
    torch.testing.assert_close(head.weight.double(), code, atol=1e-7, rtol=0)
    with pytest.raises(checks.InputError, match="12 rows"):
        nets.CosineHead(3, 12, code[:5])
    with pytest.raises(checks.InputError, match="not both"):
        nets.cosine_head(3, 12, code=code, momentum=0.5)


def test_running_class_means_by_hand():
    head = nets.ClassMeanHead(2, 3, momentum=0.75)
    start = head.weight[2].clone()
    first = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.0, 3.0]])
    head.update(first, torch.tensor([0, 1, 1]))
    torch.testing.assert_close(head.weight[0], torch.tensor([1.0, 0.0]))  # set, not averaged
    torch.testing.assert_close(head.weight[1], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(head.weight[2], start)  # not seen yet
    head.update(torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 0, 0]))
    torch.testing.assert_close(head.weight[0], torch.tensor([0.75 + 0.25 / 3, 0.25 * 2 / 3]))
    torch.testing.assert_close(head.weight[1], torch.tensor([0.0, 1.0]))  # not in this batch
    assert head.seen.tolist() == [True, True, False]
    assert list(head.parameters()) == []
    for momentum in (-0.1, 1.0):
        with pytest.raises(checks.InputError, match="momentum"):
            nets.ClassMeanHead(2, 3, momentum=momentum)


def test_class_means_do_not_depend_on_how_often_a_class_occurs():
    """The released update adds sums: there, a class twice in the batch moves twice as far."""
    once, often = (nets.ClassMeanHead(2, 2, momentum=0.5) for _ in range(2))
    for head in (once, often):
        head.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    once.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    often.update(torch.tensor([[0.0, 1.0]] * 5), torch.tensor([0] * 5))
    torch.testing.assert_close(once.weight[0], often.weight[0])


def test_class_means_move_in_training_only_and_survive_a_checkpoint():
    net = nets.sphere_mlp(6, 3, 4, hidden=(8,), momentum=0.9)
    layers = [type(layer).__name__ for layer in net.backbone]
    assert layers == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    loss = nets.objective(nets.NormalizedSoftmax(0.2))
    inputs, labels = normal(12, 6), torch.arange(12) % 4
    net.eval()
    before = net.weight.clone()
    loss(net, inputs, labels)
    assert torch.equal(net.weight, before)
    net.train()
    value = loss(net, inputs, labels)
    assert not torch.equal(net.weight, before) and bool(net.head.seen.all())
    value.backward()
    assert all(p.grad is not None for p in net.backbone.parameters())
    other = nets.sphere_mlp(6, 3, 4, hidden=(8,), momentum=0.9)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.weight, net.weight)


def test_plain_loss_is_cross_entropy_of_cosines_over_the_temperature():
    cosines, labels = normal(9, 4).tanh(), torch.arange(9) % 4
    found = nets.NormalizedSoftmax(0.2)(cosines, labels)
    expected = torch.nn.functional.cross_entropy(5 * cosines, labels)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_margins_by_hand(kind):
    cosines = [[0.3, -0.2, 0.7], [0.9, 0.1, -0.5], [-0.95, 0.1, 0.2]]
    cosines, labels = torch.tensor(cosines, dtype=torch.float64), torch.tensor([0, 2, 0])
    loss = nets.NormalizedSoftmax(0.1, margin=0.4, margin_type=kind)
    changed = cosines.clone()
    for i, y in enumerate(labels.tolist()):
        c = float(cosines[i, y])
        changed[i, y] = c - 0.4 if kind == "cosface" else math.cos(math.acos(c) + 0.4)
        if kind == "arcface" and math.acos(c) + 0.4 > math.pi:  # where the cosine rises again
            changed[i, y] = c - 0.4 * math.sin(0.4)
    expected = torch.nn.functional.cross_entropy(changed / 0.1, labels, reduction="none")
    torch.testing.assert_close(loss.per_sample(cosines, labels), expected)
    torch.testing.assert_close(loss.logits(cosines), cosines / 0.1)  # predictions: no margin


def test_arcface_falls_with_the_angle_and_has_finite_gradients():
    angles = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    cosine = angles.cos().unsqueeze(1).requires_grad_()
    loss = nets.NormalizedSoftmax(1.0, margin=0.5, margin_type="arcface")
    lowered = loss._lowered(cosine)
    assert bool((lowered.diff(dim=0) < 1e-12).all())
    (gradient,) = torch.autograd.grad(lowered.sum(), cosine)
    assert bool(torch.isfinite(gradient).all()) and bool((gradient > 0).all())


def test_order_moves_classes_to_vertices():
    cosines = torch.tensor([[0.1, 0.2, 0.3]])
    loss = nets.NormalizedSoftmax(1.0, order=(2, 0, 1))
    torch.testing.assert_close(loss.logits(cosines), torch.tensor([[0.3, 0.1, 0.2]]))


def test_cosface_cannot_tend_to_zero_beyond_the_best_margin():
    """At the optimal code the loss falls with the temperature only below rho*."""
    code = frames.icosahedron()
    rho = known_margins.known_margin(12, 3)
    for margin, sign in ((rho - 0.05, -1), (rho + 0.05, 1)):
        values = [
            float(
                nets.NormalizedSoftmax(T, margin=margin, margin_type="cosface")(
                    code @ code.T, torch.arange(12)
                )
            )
            for T in (0.02, 0.01)
        ]
        assert (values[1] - values[0]) * sign > 0


def test_hard_max_by_hand_is_the_limit_of_low_temperature():
    cosines = torch.tensor([[0.3, -0.2, 0.7], [0.9, 0.1, -0.5]], dtype=torch.float64)
    labels = torch.tensor([0, 2])
    found = nets.HardMax(scale=2.0).per_sample(cosines, labels)
    torch.testing.assert_close(found, torch.tensor([0.8, 2.8], dtype=torch.float64))
    T = 1e-3
    soft = T * nets.NormalizedSoftmax(T).per_sample(cosines, labels)
    torch.testing.assert_close(soft, found / 2, atol=1e-3, rtol=0)


def test_language_net_reads_words_and_shows_features():
    net = nets.language_net(50, 7, 3, context=4, hidden=8)
    contexts = torch.randint(0, 50, (5, 4), generator=torch.Generator().manual_seed(0))
    assert net(contexts).shape == (5, 7) and net.features(contexts).shape == (5, 3)
    assert float(net(contexts).detach().abs().max()) <= 1 + 1e-6


def test_resuming_a_class_mean_training_changes_nothing(tmp_path, monkeypatch):
    labels = torch.arange(60) % 6
    points = data.Data("points", normal(6, 5)[labels] + 0.2 * normal(60, 5, seed=1), labels, 6)
    loss, settings = nets.objective(nets.NormalizedSoftmax(0.2)), experiments.recipe(epochs=15)
    build = experiments.builder("mlp", points, 3, hidden=(8,))
    plain = train.nets.seeded(0, build, 0.9)
    train.fit(plain, points, loss, settings)
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)

    class Stop(Exception):
        pass

    def stop(net, epoch):
        if epoch == 8:
            raise Stop
        return {}

    resumed = train.nets.seeded(0, build, 0.9)
    with pytest.raises(Stop):
        train.fit(resumed, points, loss, settings, checkpoint=tmp_path / "c.pt", measure=stop)
    resumed = train.nets.seeded(5, build, 0.9)
    train.fit(resumed, points, loss, settings, checkpoint=tmp_path / "c.pt")
    torch.testing.assert_close(resumed.weight, plain.weight)
