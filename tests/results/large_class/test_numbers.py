"""Each number of a table recomputed by hand, where an optimum would hide a wrong formula."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nclib import frames
from nclib.deep import data as images
from nclib.deep import train
from nclib.metrics import known_margins, margins
from nclib.metrics.generalized import random_margin
from nclib.results.large_class import codes, data, experiments, nets, search, theory
from nclib.results.large_class.assignment import SQUARE


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(
        torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1
    )


def test_searched_away_from_the_optimum(monkeypatch):
    code = nn.functional.normalize(frames.icosahedron() + 0.02 * unit(12, 3), dim=1)
    monkeypatch.setattr(experiments, "found_code", lambda *size, **options: code)
    row = experiments.searched(12, 3)
    u, distance = margins.optimal_features(code), margins.hull_projections(code).distance
    worst = int(distance.argmin())
    assert row["margin"] == pytest.approx(float(distance[worst]), abs=1e-12)
    assert row["duality_gap"] == pytest.approx(1 - float(u[worst] @ code[worst]), abs=1e-12)
    assert row["duality_gap"] > 1e-6 and row["rattlers"] == 11
    assert row["hard_margin"] == pytest.approx(row["margin"], abs=1e-9)  # at its own features
    assert row["angle_margin"] == pytest.approx(1 - 5**-0.5, abs=1e-9)  # polished, margin is not


def test_moved_features_name_the_smallest_mean_loss():
    """A pair and a triangle, perpendicular: every distance is 1, the losses differ."""
    code, rng = codes.orthogonal_simplices([2, 3]).numpy(), np.random.default_rng(1)
    means = []
    for k in range(5):  # here the optimal feature of a class is its row
        h = rng.standard_normal((4000, 3))
        h = code[k] + 1e-3 * h / np.linalg.norm(h, axis=1, keepdims=True)
        h /= np.linalg.norm(h, axis=1, keepdims=True)
        reached = (h @ (code[k] - np.delete(code, k, 0)).T).min(1)
        means.append(np.maximum(1 - reached, 0).mean())
    assert max(means) > 1.2 * min(means)
    found = experiments.moved_features(torch.from_numpy(code))["tight"]
    assert found == pytest.approx(min(means), rel=0.1)


def test_lone_rows_against_as_many_random_ones():
    """A row at cosine .95 of another is no twin, but not alone either."""
    base = frames.cross_polytope(6, 8)
    near = 0.95 * base[0] + (1 - 0.95**2) ** 0.5 * base[1]
    found = experiments.lone_rows(torch.cat([base, near[None]]))
    assert found["twins"] == 0 and found["margin"] == pytest.approx(1, abs=1e-3)
    expected = margins.margin(experiments.random_classifier(7, 6)).value  # all but that pair
    assert found["random"] == pytest.approx(expected, abs=1e-3)


def test_minimum_reports_the_worst_class_and_the_mean_spread(monkeypatch):
    W, H = unit(4, 3), unit(8, 3, seed=1)
    point = SimpleNamespace(point={"weight": W, "features": H}, value=-1.0, gradient_norm=0.0)
    monkeypatch.setattr(experiments, "best", lambda *arguments, **options: point)
    found = experiments.minimum(4, 3, 0.5, samples=2)
    gaps = [1 - float(W[i // 2] @ H[i]) for i in range(8)]
    assert found["duality_gap"] == pytest.approx(max(gaps), abs=1e-12)
    spread = [float((H[2 * k] - H[2 * k + 1]).square().sum()) / 4 for k in range(4)]
    assert found["within_class"] == pytest.approx(np.mean(spread), abs=1e-12)
    rivals = [float((W[i // 2] - W[j]) @ H[i]) for i in range(8) for j in range(4) if j != i // 2]
    assert found["hard_margin"] == pytest.approx(min(rivals), abs=1e-12)


def test_cold_limit_by_its_formulas():
    code, T = search.solve(7, 3, starts=16), 0.05
    row, found = experiments.cold_limit(code, T), experiments.minimum(7, 3, T, start=code)
    rho, m = 0.7898616872694, margins.hard_margin(found["weight"], found["features"])
    logits = (found["features"] @ found["weight"].T).numpy() / T
    losses = np.log(np.exp(logits - np.diag(logits)[:, None]).sum(1))
    log_ce = np.log(losses.mean())
    x = 7 * np.log1p(6 * np.exp(-rho / T))
    expected = {
        "margin_ratio": margins.margin(found["weight"]).value / rho,
        "hard_margin": m,
        "slack": (rho - m) / T,
        "value_rate": (T * log_ce + rho) / T,
        "floor": -T * np.log(np.expm1(x)),
        "scaled": T * log_ce,
        "scaled_low": T * np.log(np.log1p(np.exp(-rho / T)) / 7),
        "scaled_high": T * np.log(np.log1p(6 * np.exp(-rho / T))),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-8)


def test_warm_minimum_in_units_of_the_scaled_value():
    row, T = experiments.warm_minimum(0.15, starts=8), 0.15
    found = experiments.minimum(7, 3, T, starts=8)
    lower = theory.log_energy(frames.bipyramid(7), T) - found["log_ce"]
    assert row["excess"] == pytest.approx(T * lower, rel=1e-6)
    rho = known_margins.known_margin(7, 3)
    assert row["bipyramid"] == pytest.approx((1 - np.cos(np.radians(72))) / rho, abs=1e-9)
    assert row["margin_ratio"] == pytest.approx(found["margin"] / rho, abs=1e-6)


def test_model_margin_is_that_of_the_minimum_at_this_temperature():
    """For (5, 3) the codes of largest margin have 1; below T = .145 the minimum tilts."""
    found = experiments.model_margin(5, 3, 0.1)["margin"]
    assert found == pytest.approx(margins.margin(theory.best_tilt(1, 0.1)).value, abs=1e-4)
    assert found < 1 - 1e-3


def test_model_margin_is_that_of_the_lowest_minimum_and_the_same_every_time():
    """(13, 5) at T = .4: next to the good code is a minimum, of margin .802, that is not it."""
    found = experiments.model_margin(13, 5, 0.4)
    lowest = experiments.minimum(13, 5, 0.4, starts=12)
    assert found["margin"] == pytest.approx(lowest["margin"], abs=1e-5)
    assert found["margin"] == pytest.approx(0.691, abs=1e-3)
    assert found["scaled"] == pytest.approx(0.4 * lowest["log_ce"], abs=1e-9)
    assert experiments.model_margin(13, 5, 0.4) == found


@pytest.mark.parametrize(("K", "starts"), [(20, 8), (200, 5), (400, 1)])
def test_many_classes_get_fewer_starts_and_always_the_good_code(K, starts, monkeypatch):
    code, seen = unit(K, 3), []
    monkeypatch.setattr(experiments.search, "search", lambda *size, **options: [2 * code])
    monkeypatch.setattr(experiments.search, "descend", lambda energy, start, **options: (start, 0))

    def stay(problem, point, **options):
        seen.append(point["weight"])
        return SimpleNamespace(variables=point, values=torch.arange(2.0, 2.0 + len(seen[0])))

    monkeypatch.setattr(experiments, "minimize_many", stay)
    assert experiments.model_margin(K, 3, 0.25)["scaled"] == 0.5
    assert len(seen[0]) == starts
    torch.testing.assert_close(seen[0][0], code)


def test_order_of_three_phases():
    names = ["tilted vertices", "segment + simplex", "balanced simplices"]
    table = pd.DataFrame({"d": 4, "temperature": [0.05, 0.3, 0.6], "family": names})
    assert experiments.in_order(table)
    assert not experiments.in_order(table.iloc[:2])
    assert not experiments.in_order(table.assign(temperature=[0.3, 0.05, 0.6]))


def test_sharp_gap_is_the_largest(monkeypatch):
    lopsided, sharp = frames.polygon(12)[[0, 2, 4, 8]], codes.sharp_code
    pick = lambda K, d: lopsided if (K, d) == (56, 7) else sharp(12, 3)
    monkeypatch.setattr(experiments.codes, "sharp_code", pick)
    gap = margins.margin(lopsided).value - (1 - margins.max_cosine(lopsided))
    assert experiments.sharp_gap() == pytest.approx(abs(gap), abs=1e-9)


def test_certificate_has_both_distances():
    weight = unit(30, 4)
    cosines = (weight @ weight.T).fill_diagonal_(-1)
    found = experiments.certificate(weight)
    assert found["one_vs_one"] == pytest.approx(1 - float(cosines.max()), abs=1e-12)


def test_collapse_is_that_of_the_worst_seed():
    table = pd.DataFrame(
        {
            "seed": [0, 0, 1, 1],
            "epoch": [5, 0, 0, 5],
            "gnc1": [1.0, 10.0, 4.0, 1.0],
            "gnc3": [1.0, 2.0, 2.0, 1.6],
            "gnc2": [0.5, 0.0, 0.0, 0.6],
            "train_accuracy": [1.0, 0.1, 0.1, 0.9],
        }
    )
    expected = {"gnc1": 0.25, "gnc3": 0.8, "code": 0.625, "accuracy": 0.9}
    assert experiments.collapse(table, code=0.8) == pytest.approx(expected)


def test_recipe_is_the_published_one():
    settings = experiments.recipe(epochs=7)
    told = (settings.momentum, settings.nesterov, settings.schedule, settings.drop_last)
    assert told == (0.9, True, "cosine", True)
    assert (settings.epochs, settings.lr, settings.weight_decay) == (7, 0.1, 5e-4)


def points(classes):
    labels = torch.arange(4 * classes) % classes
    inputs = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(0))
    return images.Data("points", inputs, labels, classes)


def test_other_last_layers_have_their_own_heads_and_losses(monkeypatch):
    seen = []
    monkeypatch.setattr(
        experiments.train, "fit",
        lambda net, part, loss, *rest, seed, **options: seen.append((net, loss, seed)),
    )  # fmt: skip
    part = points(6)
    experiments.classifiers(
        "mlp", part, part, experiments.recipe(epochs=1), dim=3, hidden=(8,), temperature=0.2,
        seeds=[0, 3], reference=1.0, momenta=[0.25],
    )  # fmt: skip
    assert [seed for *_, seed in seen] == [0, 3] * 3
    first = [next(net.backbone.parameters()) for net, *_ in seen]
    assert not any(torch.equal(a, b) for a, b in zip(first[::2], first[1::2], strict=True))
    seen = [found[:2] for found in seen[::2]]
    kinds = [type(net.head) for net, _ in seen]
    assert kinds == [nn.Linear, nets.CosineHead, nets.ClassMeanHead]
    assert seen[0][0].head.bias is None and seen[2][0].head.momentum == 0.25
    labels = part.labels
    scores = [net.eval()(part.inputs) for net, _ in seen]
    expected = [
        nn.functional.cross_entropy(scores[0], labels),
        nets.HardMax().per_sample(scores[1], labels).mean() / 0.2,
        nn.functional.cross_entropy(scores[2] / 0.2, labels),
    ]
    for (net, loss), value in zip(seen, expected, strict=True):
        torch.testing.assert_close(loss(net, part.inputs, labels), value)


def test_class_means_move_in_training_only():
    net, part = nets.sphere_mlp(5, 3, 4, hidden=(8,), momentum=0.5), points(4)
    loss = nets.objective(nets.NormalizedSoftmax(0.5))
    before = net.head.weight.clone()
    loss(net.eval(), part.inputs, part.labels)
    assert torch.equal(net.head.weight, before)
    loss(net.train(), part.inputs, part.labels)
    assert not torch.equal(net.head.weight, before)


def test_learned_opposites_read_the_learned_rows(monkeypatch):
    """Class 2 is the least aligned with class 0, whatever the lengths."""
    part = points(4)
    wrong = images.Data("wrong", part.inputs, part.labels.roll(1), 4)
    net = nets.sphere_mlp(5, 2, 4, hidden=(8,))
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[2.0, 0], [-3, 4], [-0.5, 0.1], [0, -9]]))
    one = SimpleNamespace(net=net, cell=train.Cell(nets.NormalizedSoftmax(0.5), 7, 1))
    monkeypatch.setattr(experiments.train, "grid", lambda *arguments, **options: [one])
    monkeypatch.setattr(experiments.collect, "accuracy", lambda net, some: some.name == "points")
    found = experiments.learned_opposites(
        part, wrong, experiments.recipe(epochs=1), temperature=0.5, seeds=[7], hidden=(8,)
    )
    assert found[["seed", "opposite"]].to_numpy().tolist() == [[7, 2]]
    assert found["train_accuracy"].item() and not found["test_accuracy"].item()


def test_placements_are_judged_in_their_own_order(monkeypatch):
    """A net that puts class k on the vertex of one placement is right in this one alone."""
    vertices, part = frames.polygon(4).float(), points(4)
    net = nets.sphere_mlp(5, 2, 4, hidden=(8,), code=vertices)
    order = SQUARE[2]
    cosines = vertices[list(order)][part.labels] @ vertices.T
    cell = lambda o: train.Cell(nets.NormalizedSoftmax(0.2, order=o), 0, 1, {"opposite": 2})
    trained = [SimpleNamespace(net=net, cell=cell(o)) for o in (order, SQUARE[1])]
    monkeypatch.setattr(experiments.train, "grid", lambda *arguments, **options: trained)
    monkeypatch.setattr(experiments.collect, "logits", lambda net, inputs: cosines)
    wrong = images.Data("wrong", part.inputs, part.labels.roll(1), 4)
    found = experiments.assignments(
        part, wrong, vertices, experiments.recipe(epochs=1), temperature=0.2, seeds=[0], hidden=(8,)
    )
    assert found["train_accuracy"].iloc[0] == 1 and found["train_accuracy"].iloc[1] < 1
    assert found["test_accuracy"].iloc[0] == 0


def test_transfer_takes_other_kinds(monkeypatch):
    monkeypatch.setattr(experiments, "PER_CLASS", 4)
    monkeypatch.setattr(experiments, "PRETRAIN_PER_CLASS", 3)
    source, part, test = experiments._transfer("digits", 0)
    whole = images.load("digits", train_per_class=data.DIGITS, seed=0)
    kinds = [
        {row.numpy().tobytes(): int(k) for row, k in zip(w.inputs, w.labels, strict=True)}
        for w in whole
    ]
    assert torch.bincount(source.labels).tolist() == [3] * 60
    for inputs, label in zip(source.inputs, source.labels.tolist(), strict=True):
        if label < 5:  # not moved
            assert kinds[0][inputs.numpy().tobytes()] == label
    assert torch.bincount(part.labels).tolist() == [4] * 5
    for found, known in ((part, kinds[0]), (test, kinds[1])):
        for inputs, label in zip(found.inputs, found.labels.tolist(), strict=True):
            assert known[inputs.numpy().tobytes()] == label + 5
    assert len(test) == int((whole[1].labels >= 5).sum())


def test_three_ways_to_fine_tune(monkeypatch):
    """Who is trained on what, from where, how fast; and that the second accuracy is the spoiled."""
    for name, small in {"PER_CLASS": 5, "PRETRAIN_PER_CLASS": 5, "HIDDEN": (16,)}.items():
        monkeypatch.setattr(experiments, name, small)
    calls, tested = [], []

    def fit(net, part, loss, settings, **options):
        first = next(iter(net.backbone.parameters()))
        head = net.head.weight.detach().clone()
        tuned = part.num_classes, first.requires_grad, settings.lr
        calls.append((*tuned, first.detach().clone(), head))
        with torch.no_grad():
            first.add_(1.0)

    def accuracy(net, part):
        tested.append(part.name)
        return 0.5

    monkeypatch.setattr(experiments.train, "fit", fit)
    monkeypatch.setattr(experiments.collect, "accuracy", accuracy)
    found = experiments.fine_tunings("digits", experiments.recipe(epochs=1), seeds=[0, 1])
    assert [call[:2] for call in calls] == 2 * [
        (60, True), (5, True), (5, False), (5, True), (5, True),
    ]  # fmt: skip
    assert [call[2] for call in calls] == pytest.approx(2 * ([0.1] + [0.01] * 4))
    assert not torch.equal(calls[1][4], calls[6][4])  # each seed has a new head of its own
    base = calls[0][3] + 1
    for at, more in ((1, 0), (2, 0), (3, 1), (4, 0)):
        torch.testing.assert_close(calls[at][3], base + more)
    assert list(found["tuning"]) == 2 * list(experiments.TUNINGS)
    assert ["spoiled" in name for name in tested] == [False, True] * 6


def test_language_model_has_its_yardsticks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 20, (60, 3), generator=generator)
    text = images.Data("words", inputs, torch.arange(60) % 12, 12)
    settings = experiments.recipe(epochs=2, batch_size=20)
    history, net = experiments.language_model(
        text, settings, dim=4, hidden=8, temperature=0.2, reference=0.7
    )
    assert list(history["epoch"]) == [0, 2] and set(history["text"]) == {"words"}
    assert history["gnc2_random"].tolist() == [random_margin(12, 4, 1)] * 2
    own = margins.margin(net.head.weight).value
    assert history["gnc2"].iloc[-1] == pytest.approx(own, abs=1e-6)
    np.testing.assert_allclose(history["gnc2_ratio"], history["gnc2"] / 0.7)
    seeded = experiments.seeded
    monkeypatch.setattr(experiments, "seeded", lambda seed, *args, **kw: seeded(0, *args, **kw))
    other, _ = experiments.language_model(
        text, settings, dim=4, hidden=8, temperature=0.2, reference=0.7, seed=1
    )
    same = (other["gnc2"] == history["gnc2"]).tolist()
    assert same == [True, False]  # the same start, another order of the batches


def test_standardize_by_hand():
    images_ = torch.randint(0, 256, (40, 2, 3, 3), generator=torch.Generator().manual_seed(0))
    found = nets.Standardize(images_.byte())(images_.byte())
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(2), atol=1e-5, rtol=0)
