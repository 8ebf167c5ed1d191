"""Sphere classifiers, their three ways of training, floors, films: penalties by hand."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nclib.checks import InputError
from nclib.deep import collect, data, nets, train
from nclib.results.normalized import nets as normalized
from nclib.results.normalized import theory
from nclib.results.normalized.metrics import sphere_metrics

RECIPE = train.Recipe(epochs=30, lr=0.05, batch_size=32)


@pytest.fixture(scope="module")
def digits():
    whole, test = data.load("digits", train_per_class=12, seed=0)
    return normalized.first_classes(whole, 4), normalized.first_classes(test, 4)


def build(mode, digits, width=32, dim=8, seed=0, **options):
    make = lambda: normalized.SphereClassifier(
        normalized.backbone("mlp", digits, width=width, dim=dim, **options), mode
    )
    return nets.seeded(seed, make)


class TestMode:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": "penalised"}, "mode must be one of normalized, hybrid, regularized"),
            ({"name": "normalized", "scale": 0}, "scale must be greater than 0"),
            ({"name": "normalized", "feature_decay": 0.1}, "unit features is constant"),
            ({"name": "hybrid", "lambda_w": 0.1}, "unit classifiers is constant"),
            ({"name": "regularized", "lambda_w": -1.0}, "lambda_w must be at least 0"),
        ],
    )
    def test_bad_input(self, arguments, message):
        with pytest.raises(InputError, match=message):
            normalized.Mode(**arguments)

    def test_published_penalties(self):
        hybrid = normalized.published("hybrid", weight_decay=1e-4, batch_size=128)
        assert (hybrid.feature_decay, hybrid.lambda_w, hybrid.scale) == (0.0128, 0.0, 1.0)
        both = normalized.published("regularized", weight_decay=1e-4, batch_size=64)
        assert (both.feature_decay, both.lambda_w) == (0.0064, 1e-4)
        with pytest.raises(InputError, match="hybrid, regularized"):
            normalized.published("normalized")

    @pytest.mark.parametrize("n", [1, 7])
    def test_matched_penalties_give_the_scale(self, n):
        """The mean-feature penalty in the UFM's terms: lambda_h = feature_decay / N."""
        hybrid = normalized.matched("hybrid", 5, 3.0)
        assert abs(theory.hybrid_optimum(5, hybrid.feature_decay).scale - 3) < 1e-12
        both = normalized.matched("regularized", 5, 3.0)
        found = theory.regularized_optimum(5, n, both.lambda_w, both.feature_decay / (5 * n))
        assert abs(found.scale - 3) < 1e-12
        assert normalized.matched("normalized", 5, 3.0).scale == 3.0


class TestObjective:
    @pytest.mark.parametrize(
        "mode",
        [
            normalized.Mode("normalized", scale=2.5),
            normalized.Mode("hybrid", feature_decay=0.3),
            normalized.Mode("regularized", lambda_w=0.2, feature_decay=0.3),
        ],
    )
    def test_by_hand(self, mode, digits):
        train_data, _ = digits
        net = build(mode, train_data).eval()
        with torch.no_grad():
            raw, W = net.backbone(train_data.inputs), net.head.weight
            if mode.name == "normalized":
                logits = 2.5 * (raw / raw.norm(dim=1, keepdim=True)) @ W.T
                expected = F.cross_entropy(logits, train_data.labels)
            else:
                expected = F.cross_entropy(raw @ W.T, train_data.labels)
                expected += 0.15 * (raw**2).sum() / len(raw)
                if mode.name == "regularized":
                    expected += 0.1 * (W**2).sum()
            found = normalized.objective(mode)(net, train_data.inputs, train_data.labels)
        assert abs(float(found - expected)) < 1e-5

    def test_every_penalty_has_a_gradient(self, digits):
        """The published code penalised features that were already normalised: gradient zero."""
        train_data, _ = digits
        for plain, penalised in (
            (normalized.Mode("hybrid"), normalized.Mode("hybrid", feature_decay=0.3)),
            (normalized.Mode("regularized"), normalized.Mode("regularized", lambda_w=0.3)),
        ):
            gradients = []
            for mode in (plain, penalised):
                net = build(mode, train_data).eval()
                loss = normalized.objective(mode)(net, train_data.inputs, train_data.labels)
                loss.backward()
                gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
            assert float((gradients[1] - gradients[0]).norm()) > 1e-3

    def test_head_is_linear_in_the_scale_and_has_no_bias(self, digits):
        train_data, _ = digits
        net = build(normalized.Mode("normalized", scale=4.0), train_data).eval()
        features = collect.features(net, train_data.inputs)
        assert net.bias is None
        assert torch.allclose(features.norm(dim=1), torch.ones(len(features)), atol=1e-6)
        expected = 4 * features @ net.weight.T
        assert torch.allclose(net(train_data.inputs), expected, atol=1e-5)


class TestTraining:
    def test_rows_stay_where_the_mode_puts_them(self, digits):
        train_data, _ = digits
        norms = {}
        for mode in (
            normalized.Mode("normalized", scale=3.0),
            normalized.published("hybrid"),
            normalized.published("regularized"),
        ):
            cell = normalized.Cell(mode, 32, 8)
            recipe = replace(RECIPE, epochs=3)
            net, _ = normalized.train_cell(cell, "mlp", train_data, recipe)
            features = collect.features(net, train_data.inputs)
            norms[mode.name] = net.weight.norm(dim=1), features.norm(dim=1)
        one = torch.ones(4)
        assert torch.allclose(norms["normalized"][0], one, atol=1e-6)
        assert torch.allclose(norms["normalized"][1], torch.ones(48), atol=1e-6)
        assert torch.allclose(norms["hybrid"][0], one, atol=1e-6)
        assert float((norms["hybrid"][1] - 1).abs().min()) > 1e-4
        assert float((norms["regularized"][0] - 1).abs().max()) > 1e-2

    def test_study_collapses_above_its_floor(self, digits, tmp_path):
        train_data, test_data = digits
        cells = [
            normalized.Cell(normalized.Mode("normalized", scale=2.0), 64, 16),
            normalized.Cell(normalized.published("regularized"), 64, 16),
            normalized.Cell(normalized.Mode("normalized", scale=2.0), 64, 16, random_labels=True),
        ]
        path = lambda cell: tmp_path / f"{cells.index(cell)}.pt"
        arguments = cells, "mlp", train_data, test_data, RECIPE
        study = normalized.train_nets(*arguments, every=20, checkpoint=path)
        assert list(study.curves.query("cell == 0")["epoch"]) == [0, 20, 30]
        assert list(study.final["epoch"]) == [30, 30, 30]
        sphere, free, random = (study.final.iloc[i] for i in range(3))
        floor = theory.optimum(4, 2.0).value
        assert study.curves.query("cell != 1")["loss"].min() > floor
        assert sphere["loss"] < floor + 0.05
        assert sphere["nc1"] < free["nc1"]
        assert sphere["test_accuracy"] > 85
        assert math.isnan(random["test_accuracy"])
        assert random["nc1"] > sphere["nc1"]
        own = normalized.random_labels(train_data)
        assert random["train_accuracy"] == 100 * collect.accuracy(study.nets[2], own)
        assert random["train_accuracy"] != 100 * collect.accuracy(study.nets[2], train_data)
        again = normalized.train_nets(*arguments, every=20, checkpoint=path)
        assert again.final["nc1"].equals(study.final["nc1"])

    def test_same_seed_same_result_and_seeds_differ(self, digits, monkeypatch):
        train_data, _ = digits
        recipe = replace(RECIPE, epochs=2)
        run = lambda seed: normalized.train_cell(
            normalized.Cell(normalized.Mode("normalized"), 16, 4, seed), "mlp", train_data, recipe
        )[1]["nc2"].tolist()
        first = run(0)
        assert first == run(0)
        assert first[0] != run(1)[0]  # other weights at the start
        seeded = nets.seeded
        monkeypatch.setattr(nets, "seeded", lambda seed, build: seeded(0, build))
        assert first[0] == run(1)[0] and first[-1] != run(1)[-1]  # another order of the batches

    def test_measure_by_hand(self, digits):
        train_data, test_data = digits
        net = build(normalized.Mode("regularized", feature_decay=0.1), train_data).eval()
        found = normalized.measure(net.train(), train_data, test_data)
        sphere = build(normalized.Mode("normalized", scale=2.5), train_data)
        found_scale = normalized.measure(sphere, train_data)["effective_scale"]
        assert found_scale == pytest.approx(2.5, rel=1e-5)
        net.eval()
        logits = collect.logits(net, train_data.inputs)
        assert abs(found["loss"] - float(F.cross_entropy(logits, train_data.labels))) < 1e-6
        features = collect.features(net, train_data.inputs)
        scale = float(features.norm(dim=1).mean() * net.head.weight.detach().norm(dim=1).mean())
        assert abs(found["effective_scale"] - scale) < 1e-5
        tested = collect.features(net, test_data.inputs)
        tested = sphere_metrics(tested, test_data.labels, net.head.weight.detach())
        for name in ("nc1", "nc3"):
            assert found["test_" + name] == pytest.approx(tested[name])
            assert found["test_" + name] != pytest.approx(found[name])
        correct = (net(test_data.inputs).argmax(1) == test_data.labels).double().mean()
        assert abs(found["test_accuracy"] - 100 * float(correct)) < 1e-9

    @pytest.mark.parametrize(
        ("architecture", "dim"), [("mlp", 8), ("cnn", 8), ("resnet18", 32), ("resnet50", 2048)]
    )
    def test_backbones_have_no_bias_in_the_head(self, digits, architecture, dim):
        train_data, _ = digits
        width = {"mlp": 16, "cnn": 4, "resnet18": 1 / 16, "resnet50": 1 / 16}[architecture]
        base = normalized.backbone(architecture, train_data, width=width, dim=8).eval()
        assert base.bias is None
        net = normalized.SphereClassifier(base, normalized.Mode("normalized")).eval()
        assert net.features(train_data.inputs[:2]).shape == (2, dim)
        layers = [
            m.weight.shape[0] for m in base.modules() if isinstance(m, (nn.Linear, nn.Conv2d))
        ]
        assert architecture != "mlp" or isinstance(base.backbone[-1], nn.Linear)
        if architecture in ("mlp", "cnn"):
            assert layers == {"mlp": [16, 16, 8, 4], "cnn": [4, 8, 16, 8, 4]}[architecture]

    def test_relu_features_are_nonnegative(self, digits):
        train_data, _ = digits
        cell, recipe = (
            normalized.Cell(normalized.Mode("normalized"), 32, 8),
            replace(RECIPE, epochs=1),
        )
        for options in ({}, {"feature_relu": True}):
            net, _ = normalized.train_cell(cell, "mlp", train_data, recipe, **options)
            least = float(collect.features(net, train_data.inputs).min())
            assert least >= 0 if options else least < 0


class TestData:
    def test_random_labels_keep_the_class_sizes(self, digits):
        train_data, _ = digits
        found = normalized.random_labels(train_data)
        assert torch.equal(found.labels.bincount(), train_data.labels.bincount())
        assert torch.equal(found.inputs, train_data.inputs)
        share = float((found.labels == train_data.labels).double().mean())
        assert share < 0.6
        order = torch.randperm(len(train_data), generator=torch.Generator().manual_seed(0))
        assert torch.equal(found.labels, train_data.labels[order])

    def test_first_classes(self, digits):
        train_data, _ = digits
        two = normalized.first_classes(train_data, 2)
        assert (two.num_classes, len(two), int(two.labels.max())) == (2, 24, 1)
        with pytest.raises(InputError, match="digits has 4 classes, 5 were asked for"):
            normalized.first_classes(train_data, 5)


class TestFilm:
    def test_frames(self, digits):
        train_data, _ = digits
        cell = normalized.Cell(normalized.Mode("normalized", scale=2.0), 16, dim=3)
        recipe = replace(RECIPE, epochs=4)
        film, net = normalized.film(cell, "mlp", train_data, recipe, epochs=[0, 2, 4])
        assert sorted(film["epoch"].unique()) == [0, 2, 4]
        assert len(film) == 3 * (48 + 4)
        last = film.query("epoch == 4 and kind == 'classifier'")[["x0", "x1", "x2"]].to_numpy()
        assert abs(last - net.weight.double().numpy()).max() < 1e-6
        labels = [*train_data.labels.tolist(), 0, 1, 2, 3]
        assert film["label"].tolist() == 3 * labels
        norms = (film[["x0", "x1", "x2"]] ** 2).sum(axis=1)
        assert (norms - 1).abs().max() < 1e-5


def curves():
    """Two labels, two seeds, two epochs."""
    rows = []
    for label, factor in (("a", 1.0), ("b", 2.0)):
        for seed in (0, 1):
            for epoch in (0, 9):
                value = factor * (1 + seed) if epoch else 50.0
                rows.append({"label": label, "name": "normalized", "scale": factor, "seed": seed}
                            | {"epoch": epoch, "nc1": value, "nc2": 1.0, "nc3": value**2}
                            | {"loss": 1.5, "test_accuracy": 90 + 3 * factor * seed})  # fmt: skip
    return pd.DataFrame(rows)


def test_comparisons_take_the_worst_seed_at_the_end():
    table = curves()
    assert normalized.ratios(table, "b", "a") == {"nc1": 2.0, "nc2": 1.0, "nc3": 4.0}
    assert normalized.ratios(table, "a", "b", ["nc1"]) == {"nc1": 0.5}
    assert normalized.gains(table, "b", "a") == 0.0
    assert normalized.gains(table, "a", "b") == -3.0
    lost = table.assign(test_accuracy=math.nan, nc1=math.nan, nc2=1.0, nc3=1.0)
    assert math.isnan(normalized.gains(lost, "a", "b"))
    assert math.isnan(normalized.ratios(lost, "a", "b")["nc1"])
    assert normalized.best_scale(table[table["epoch"] == 9]) == 1.0


def test_comparisons_are_not_means():
    """One seed decides; a metric that is small does not hide the largest."""
    table = curves()
    table = table[table["epoch"] == 9]
    uneven = table.assign(nc1=table["nc1"] * (1 + table["seed"] * (table["label"] == "b")))
    assert normalized.ratios(uneven, "b", "a", ["nc1"]) == {"nc1": 4.0}
    hidden = table.assign(nc1=table["scale"], nc2=3 - table["scale"], nc3=0.0)
    hidden.loc[hidden["scale"] == 1, "nc3"] = 5.0
    assert normalized.best_scale(hidden) == 2.0
    spread = table.assign(nc1=3.0, nc2=0.0, nc3=0.0)
    spread.loc[spread["scale"] == 1, "nc1"] = [1.0, 9.0]
    assert normalized.best_scale(spread) == 2.0


@pytest.mark.parametrize("nonnegative", [False, True])
def test_share_above_floor_by_hand(nonnegative):
    """The worst seed, normalized nets only."""
    table = curves()
    table["loss"] += 0.1 * (table["seed"] == 0) * (table["epoch"] == 9)
    other = table.assign(name="hybrid", loss=9.0, scale=5.0)
    table = pd.concat([table, other])
    share = normalized.share_above_floor(table, 4, nonnegative=nonnegative)
    assert share.keys() == {"1", "2"}
    for scale in (1.0, 2.0):
        margin = scale * (math.sqrt(4 / 3) if nonnegative else 4 / 3)
        low = math.log(1 + 3 * math.exp(-margin))
        assert share[f"{scale:g}"] == pytest.approx((1.6 - low) / (math.log(4) - low))
