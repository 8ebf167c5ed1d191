"""Cosine heads, margin losses, running class means, assignment, data."""

import itertools
import math

import numpy as np
import pytest
import torch

from nclib import checks
from nclib.deep import data, train
from nclib.results.large_class import codes, theory
from nclib.results.large_class import nets as large_class
from nclib.results.large_class import training as gnc_study


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cosine_head_returns_cosines_and_ignores_norms():
    head = large_class.CosineHead(3, 5)
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


def test_fixed_code_is_not_trained():
    code = codes.icosahedron()
    head = large_class.CosineHead(3, 12, code)
    assert list(head.parameters()) == []
    torch.testing.assert_close(head.weight.double(), code, atol=1e-7, rtol=0)
    with pytest.raises(checks.InputError, match="12 rows"):
        large_class.CosineHead(3, 12, code[:5])
    with pytest.raises(checks.InputError, match="not both"):
        large_class.cosine_head(3, 12, code=code, momentum=0.5)


def test_running_class_means_by_hand():
    head = large_class.ClassMeanHead(2, 3, momentum=0.75)
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
            large_class.ClassMeanHead(2, 3, momentum=momentum)


def test_class_means_do_not_depend_on_how_often_a_class_occurs():
    """The released update adds sums: there, a class twice in the batch moves twice as far."""
    once, often = (large_class.ClassMeanHead(2, 2, momentum=0.5) for _ in range(2))
    for head in (once, often):
        head.update(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    once.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    often.update(torch.tensor([[0.0, 1.0]] * 5), torch.tensor([0] * 5))
    torch.testing.assert_close(once.weight[0], often.weight[0])


def test_class_means_move_in_training_only_and_survive_a_checkpoint():
    net = large_class.sphere_mlp(6, 3, 4, hidden=(8,), momentum=0.9)
    loss = large_class.objective(large_class.NormalizedSoftmax(0.2))
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
    other = large_class.sphere_mlp(6, 3, 4, hidden=(8,), momentum=0.9)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.weight, net.weight)


def test_plain_loss_is_cross_entropy_of_cosines_over_the_temperature():
    cosines, labels = normal(9, 4).tanh(), torch.arange(9) % 4
    found = large_class.NormalizedSoftmax(0.2)(cosines, labels)
    expected = torch.nn.functional.cross_entropy(5 * cosines, labels)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["cosface", "arcface"])
def test_margins_by_hand(kind):
    cosines = torch.tensor([[0.3, -0.2, 0.7], [0.9, 0.1, -0.5]], dtype=torch.float64)
    labels = torch.tensor([0, 2])
    loss = large_class.NormalizedSoftmax(0.1, margin=0.4, margin_type=kind)
    changed = cosines.clone()
    for i, y in enumerate(labels.tolist()):
        c = float(cosines[i, y])
        changed[i, y] = c - 0.4 if kind == "cosface" else math.cos(math.acos(c) + 0.4)
    expected = torch.nn.functional.cross_entropy(changed / 0.1, labels, reduction="none")
    torch.testing.assert_close(loss.per_sample(cosines, labels), expected)
    torch.testing.assert_close(loss.logits(cosines), cosines / 0.1)  # predictions: no margin


def test_arcface_falls_with_the_angle_and_has_finite_gradients():
    angles = torch.linspace(0, math.pi, 200, dtype=torch.float64)
    cosine = angles.cos().unsqueeze(1).requires_grad_()
    loss = large_class.NormalizedSoftmax(1.0, margin=0.5, margin_type="arcface")
    lowered = loss._lowered(cosine)
    assert bool((lowered.diff(dim=0) < 1e-12).all())
    (gradient,) = torch.autograd.grad(lowered.sum(), cosine)
    assert bool(torch.isfinite(gradient).all()) and bool((gradient > 0).all())


def test_order_moves_classes_to_vertices():
    cosines = torch.tensor([[0.1, 0.2, 0.3]])
    loss = large_class.NormalizedSoftmax(1.0, order=(2, 0, 1))
    torch.testing.assert_close(loss.logits(cosines), torch.tensor([[0.3, 0.1, 0.2]]))


def test_cosface_cannot_tend_to_zero_beyond_the_best_margin():
    """At the optimal code the loss falls with the temperature only below rho*."""
    code = codes.icosahedron()
    rho = theory.known_margin(12, 3)
    for margin, sign in ((rho - 0.05, -1), (rho + 0.05, 1)):
        values = [
            float(
                large_class.NormalizedSoftmax(T, margin=margin, margin_type="cosface")(
                    code @ code.T, torch.arange(12)
                )
            )
            for T in (0.02, 0.01)
        ]
        assert (values[1] - values[0]) * sign > 0


def brute_force(distances, code):
    vertices = torch.cdist(code, code)
    K = len(code)
    return max(
        sum(float(distances[i, j] * vertices[o[i], o[j]]) for i in range(K) for j in range(K))
        for o in itertools.permutations(range(K))
    )


def test_assignment_is_optimal_for_few_classes():
    for K, code in ((4, codes.polygon(4)), (6, codes.cross_polytope(3))):
        points = normal(K, 3, seed=K).double()
        distances = torch.cdist(points, points)
        order = large_class.assign_classes(distances, code)
        assert sorted(order) == list(range(K))
        score = large_class.assignment_score(distances, code, order)
        assert score == pytest.approx(brute_force(distances, code), rel=1e-9)


def test_assignment_of_many_classes_beats_random_ones():
    code = codes.icosahedron()
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    distances = torch.cdist(code, code)[shuffled][:, shuffled]  # a perfect placement exists
    order = large_class.assign_classes(distances, code)
    perfect = float(torch.cdist(code, code).square().sum())
    score = large_class.assignment_score(distances, code, order)
    assert score == pytest.approx(perfect, rel=1e-9)
    rng = np.random.default_rng(0)
    others = [large_class.assignment_score(distances, code, rng.permutation(12)) for _ in range(50)]
    assert max(others) < score


def test_similar_classes_are_put_next_to_each_other():
    points, _ = large_class.similar_pairs(seed=3)
    distances = large_class.class_distances(points.inputs, points.labels, 4)
    for i, j in itertools.combinations(range(4), 2):
        gap = points.inputs[points.labels == i].mean(0) - points.inputs[points.labels == j].mean(0)
        assert float(distances[i, j]) == pytest.approx(float(gap.norm()), rel=1e-5)
    order = large_class.assign_classes(distances, codes.polygon(4))
    square = codes.polygon(4)[list(order)]
    assert float(square[0] @ square[1]) > -0.5 and float(square[2] @ square[3]) > -0.5


def test_assignment_bad_input():
    square = codes.polygon(4)
    with pytest.raises(checks.InputError, match="symmetric"):
        large_class.assign_classes(normal(4, 4), square)
    with pytest.raises(checks.InputError, match="rows"):
        large_class.assign_classes(torch.zeros(4, 4), codes.polygon(5))
    with pytest.raises(checks.InputError, match="no sample"):
        large_class.class_distances(normal(3, 2), [0, 1, 1], 3)


def test_synthetic_data():
    points, test = large_class.clusters(5, dim=8, per_class=400, noise=0.5, test_per_class=3)
    assert points.inputs.shape == (2000, 8) and len(test) == 15 and points.num_classes == 5
    means = torch.stack([points.inputs[points.labels == k].mean(0) for k in range(5)])
    residual = points.inputs - means[points.labels]
    assert float(residual.std()) == pytest.approx(0.5, rel=0.05)
    again, _ = large_class.clusters(5, dim=8, per_class=400, noise=0.5, test_per_class=3)
    assert torch.equal(points.inputs, again.inputs)
    four, _ = large_class.similar_pairs(noise=0.0)
    distances = large_class.class_distances(four.inputs, four.labels, 4)
    assert float(distances[0, 1]) == pytest.approx(1.8, abs=1e-5)
    assert float(distances[0, 2]) == pytest.approx(math.sqrt(16 + 2 * 0.81), abs=1e-5)


def test_image_folder(tmp_path):
    from PIL import Image

    for k, name in enumerate(("ann", "bob")):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.new("RGB", (20, 14), (40 * k, 10 * i, 0)).save(tmp_path / name / f"{i}.png")
    faces, test = large_class.image_folder(tmp_path, size=8, test_share=0.2)
    assert faces.inputs.shape == (8, 3, 8, 8) and faces.inputs.dtype == torch.uint8
    assert len(test) == 2 and faces.num_classes == 2
    layer = large_class.Standardize(faces.inputs)
    assert abs(float(layer(faces.inputs)[:, 0].mean())) < 1e-5
    build = gnc_study.builder("resnet18", faces, 3)
    assert build()(faces.inputs[:2]).shape == (2, 2)
    with pytest.raises(checks.InputError, match="one sub-folder of images per class"):
        large_class.image_folder(tmp_path / "missing")


def tiny():
    points, test = large_class.clusters(6, dim=5, per_class=10, noise=0.2)
    return points, test, gnc_study.recipe(epochs=15, batch_size=20)


def test_temperature_sweep_collapses_easy_data():
    points, test, settings = tiny()
    build = gnc_study.builder("mlp", points, 3, hidden=(32,))
    table, trained = gnc_study.temperature_sweep(
        build, points, test, settings, temperatures=[0.5, 0.2], seeds=[0, 1], measure_at=[0]
    )
    assert sorted(set(table["epoch"])) == [0, 15] and len(table) == 8 and len(trained) == 4
    by = table.groupby("epoch")[["gnc1", "train_accuracy"]].mean()
    assert by.loc[15, "gnc1"] < 0.3 * by.loc[0, "gnc1"]
    assert by.loc[15, "train_accuracy"] > 0.95


def test_measure_uses_the_normalised_classifier():
    points, test, _ = tiny()
    net = gnc_study.builder("mlp", points, 3, hidden=(8,))()
    before = gnc_study.measure(net, points, test)
    with torch.no_grad():
        net.head.weight.mul_(torch.tensor([[1.0], [9.0], [1.0], [1.0], [3.0], [1.0]]))
    after = gnc_study.measure(net, points, test)
    for name, value in before.items():
        assert after[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name


def test_assignment_study_and_class_means():
    four, test = large_class.similar_pairs(per_class=20, test_per_class=20)
    table = gnc_study.assignment_study(
        four, test, codes.polygon(4), gnc_study.square_assignments(),
        gnc_study.recipe(epochs=3, batch_size=20), temperature=0.2, seeds=[0], hidden=(16,),
    )  # fmt: skip
    assert list(table["assignment"]) == ["1 opposite 0", "2 opposite 0", "3 opposite 0"]
    for name, order in gnc_study.square_assignments().items():
        square = codes.polygon(4)[list(order)]
        assert float(square[0] @ square[int(name[0])]) == pytest.approx(-1)
    points, test, settings = tiny()
    compared = gnc_study.classifier_study(
        gnc_study.builder("mlp", points, 3, hidden=(16,)), points, test, settings,
        temperature=0.2, seeds=[0], momenta=[0.9],
    )  # fmt: skip
    assert list(compared["classifier"]) == ["learned", "class means, momentum 0.9"]
    learned, means = compared["parameters"]
    assert learned - means == 6 * 3
    assert compared["gnc3"].iloc[1] < 0.05


def test_parameter_count_of_the_face_network():
    assert gnc_study.face_network_parameters(10_000, 512) == pytest.approx(16.55e6, rel=2e-3)


def test_loading():
    points, test = gnc_study.load("clusters", num_classes=7, train_per_class=3)
    assert points.num_classes == 7 and len(points) == 21
    digits, _ = gnc_study.load("digits", train_per_class=20)
    assert len(digits) == 200
    with pytest.raises(checks.InputError, match="dataset"):
        gnc_study.load("nothing")
    with pytest.raises(checks.InputError, match="architecture"):
        gnc_study.builder("vgg", points, 3)


def test_resuming_a_class_mean_training_changes_nothing(tmp_path, monkeypatch):
    points, _, settings = tiny()
    loss = large_class.objective(large_class.NormalizedSoftmax(0.2))
    build = gnc_study.builder("mlp", points, 3, hidden=(8,))
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
    assert isinstance(points, data.Data)
