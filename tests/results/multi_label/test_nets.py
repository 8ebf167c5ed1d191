"""Networks of result 3: parameter counts, frozen heads, objectives, measurements, training."""

from functools import partial
from math import log

import numpy as np
import pandas as pd
import pytest
import torch

from nclib import frames
from nclib.checks import InputError
from nclib.deep import collect, train
from nclib.deep import nets as deep
from nclib.deep.data import Data
from nclib.metrics import multi_label_metrics
from nclib.results.multi_label import data as images
from nclib.results.multi_label import experiments as study
from nclib.results.multi_label import nets, theory

SHAPE = (1, 4, 4)
nowhere = lambda *_, **__: None
fit = partial(nets.train_nets, seeds=[0], checkpoint=nowhere, feature_decay=1e-2)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50", "vgg16", "vgg19"])
def test_parameters_saved_are_those_of_the_shrunk_layers(architecture):
    """Counted by hand: last convolution and norm, a shortcut for ResNets, and the classifier."""
    d, K = (2048 if architecture == "resnet50" else 512), 10
    if architecture == "resnet50":
        layer = lambda width: 512 * width + 2 * width  # 1x1 convolution, norm
        more = 2048 * K + 2 * K  # the shortcut's convolution and norm
    elif architecture == "resnet18":
        layer, more = (lambda width: 9 * 512 * width + 2 * width), 512 * K + 2 * K
    else:
        layer, more = (lambda width: 9 * 512 * width + width + 2 * width), 0
    found = nets.parameters_saved(architecture)
    assert found["learned"] - found["frozen"] == layer(d) - layer(K) - more + d * K
    assert 0.04 < found["saved"] < 0.21


@pytest.mark.parametrize("architecture", nets.NAMES)
@pytest.mark.parametrize("frozen", [False, True])
def test_shapes(architecture, frozen):
    size = 16 if architecture in ("cnn", "mlp", "mlp_relu") else 32
    shape = (2, size, size)
    net = deep.seeded(0, nets.build, architecture, 5, shape, frozen=frozen).eval()
    with torch.no_grad():
        features = net.features(torch.rand(3, *shape))
        assert net(torch.rand(3, *shape)).shape == (3, 5)
    d = {"cnn": 64, "mlp": 32, "mlp_relu": 32, "resnet50": 2048}.get(architecture, 512)
    assert features.shape == (3, 5 if frozen else d)
    assert (float(features.min()) >= 0) is (architecture != "mlp")
    assert net.head.weight.requires_grad is not frozen
    assert net.head.bias.requires_grad


def test_frozen_at_equal_dimension_is_the_same_backbone():
    for architecture in ("cnn", "resnet18"):
        d = nets.DIMS.get(architecture, 512)
        learned, frozen = (
            deep.parameter_count(nets.build(architecture, 10, (1, 16, 16), **options))
            for options in ({}, {"frozen": True, "feature_dim": d})
        )
        assert learned - frozen == 10 * d


def test_frozen_head_is_the_unit_etf_and_stays():
    data = toy()
    found = fit({"net": frozen_mlp(data)}, train.Recipe(1, 0.1, 16, weight_decay=1e-2))
    weight = found.nets["net", 0].net.weight.double()
    assert torch.allclose(weight.norm(dim=1), torch.ones(4).double(), rtol=0, atol=1e-6)
    gram = weight @ weight.T
    assert float((gram / gram.norm() - frames.etf_gram(4)).norm()) < 1e-6
    assert float(weight[:, 4:].abs().max()) == 0
    with pytest.raises(InputError, match="d >= K=4"):
        nets.build("mlp", 4, SHAPE, feature_dim=3, frozen=True)


def frozen_mlp(data):
    return {"data": data, "architecture": "mlp", "frozen": True, "feature_dim": 6}


def toy(n=12, noise=0.05):
    """4x4 images, one bright row per class, pairs with two."""
    generator = torch.Generator().manual_seed(0)
    rows = theory.balanced_sets(4, {1: 1, 2: 1})[0].float().repeat(n, 1)
    pictures = rows[:, None, :, None].expand(-1, 1, 4, 4)
    pictures = pictures + noise * torch.randn(pictures.shape, generator=generator)
    return images.MultiLabelData("toy", pictures.contiguous(), rows)


def small():
    return deep.seeded(1, nets.build, "mlp", 4, SHAPE)


def test_objective_is_loss_plus_feature_penalty():
    data, net = toy(), small().eval()
    x, y = data.inputs[:7], data.labels[:7]
    features, logits = net.features(x), net(x)
    p, penalty = logits.log_softmax(1), 0.3 * (features**2).sum() / 7
    for reduction, weights in (("sum", y), ("mean", y / y.sum(1, keepdim=True))):
        value = nets.objective("pal", reduction=reduction, feature_decay=0.3)(net, x, y)
        assert torch.isclose(value, -(weights * p).sum() / 7 + penalty, rtol=1e-5)
    s = logits.sigmoid()
    expected = -(y * s.log() + (1 - y) * (1 - s).log()).sum() / 7 + penalty
    assert torch.isclose(nets.objective("bce", feature_decay=0.3)(net, x, y), expected, rtol=1e-4)


def test_feature_penalty_has_a_gradient():
    data, net = toy(), small().eval()
    first, values = next(net.parameters()), []
    for decay in (0.0, 1.0):
        loss = nets.objective(feature_decay=decay)(net, data.inputs, data.labels)
        values.append(torch.autograd.grad(loss, first)[0])
    assert float((values[0] - values[1]).abs().max()) > 1e-3


def test_measure_agrees_with_the_metrics():
    data, net = toy(), small()
    found = nets.measure(net, data)
    features = collect.features(net, data.inputs)
    direct = multi_label_metrics(features, data.labels, net.weight, net.bias)
    official = multi_label_metrics(features, data.labels, net.weight, convention="official")
    for name in ("nc1", "nc2_centered", "nc2_means", "nc3"):
        assert found[name] == pytest.approx(direct[name], rel=1e-6)
    assert found["scale_2"] == pytest.approx(direct["scale"][2], rel=1e-6)
    assert found["residual_2"] == pytest.approx(direct["tagwise_residual"][2], rel=1e-6)
    for name in ("nc1", "nc2_means", "nc3"):
        assert found[f"official_{name}"] == pytest.approx(official[name], rel=1e-6)
    assert found["angle_2"] == pytest.approx(direct["angle"][2].ratio, rel=1e-6)
    assert found["official_angle"] == pytest.approx(official["angle"][2].ratio, rel=1e-6)
    logits, y = collect.logits(net, data.inputs).numpy(), data.labels.numpy().astype(bool)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for m in (1, 2):
        own = [z[s].mean() - z[~s].mean() for z, s in zip(logits, y, strict=True) if s.sum() == m]
        assert found[f"margin_{m}"] == pytest.approx(np.mean(own), rel=1e-4)
        mass = [q[s].sum() for q, s in zip(p, y, strict=True) if s.sum() == m]
        assert found[f"soft_iou_{m}"] == pytest.approx(np.mean(mass), rel=1e-4)
    log_p = torch.tensor(logits).double().log_softmax(1)
    assert found["data_loss"] == pytest.approx(float(-(data.labels * log_p).sum(1).mean()), 1e-5)


@pytest.mark.slow
def test_a_trained_net_collapses_towards_the_theory_and_decodes_unseen_pairs():
    """A toy where the unconstrained-features model fits well: linear features, separable images."""
    data, mlp = toy(n=20), {"architecture": "mlp"}
    recipe = train.Recipe(60, 0.1, 50, weight_decay=2e-3, schedule="cosine", final=1e-3)
    part = data.keep({S: n for S, n in data.table().items() if S != (0, 1)})
    assert len(part) == len(data) - 20
    arms = {"all": mlp | {"data": data}, "part": mlp | {"data": part}}
    found = fit(arms, recipe, every=30)
    last = found.final.set_index("net").loc["all"]
    assert list(found.curves["epoch"]) == [1, 30, 60] * 2
    assert last["nc1"] < 0.05
    assert last["angle_2"] < 0.1
    expected = study.prediction(data, weight_decay=2e-3, feature_decay=1e-2)
    for name in ("margin_1", "margin_2", "scale_2"):
        assert last[name] == pytest.approx(expected[name], rel=0.15)
    table = study.scores(found.nets["part", 0], data, unseen=[(0, 1)])
    pairs = table.query("decoder == 'codeword' and m == 2").set_index("sets")
    assert pairs["samples"].to_dict() == {"never trained": 20, "trained": 100}
    assert pairs.loc["never trained", "exact_match"] > 0.9
    scores = study.scores(found.nets["all", 0], data)
    assert scores.query("decoder == 'codeword'")["exact_match"].min() > 0.95
    without = study.scores(found.nets["all", 0], data, bce=True)
    assert set(scores["decoder"]) - set(without["decoder"]) == {"codeword"}


def test_a_control_is_trained_on_singles_and_measured_on_pairs():
    arms = nets.with_control("toy task", "mlp", toy())
    found = fit(arms, train.Recipe(1, 0.1, 16))
    table = found.controls().set_index("pairs")
    assert set(table.index) == {nets.WITH, nets.WITHOUT}
    assert set(table["task"]) == {"toy task"}
    trained = {name: one.data.table() for (name, _), one in found.nets.items()}
    assert [max(map(len, sets)) for sets in trained.values()] == [2, 1]
    for name, row in found.final.set_index("net").iterrows():
        again = nets.measure(found.nets[name, 0].net, toy())
        assert row["angle_2"] == pytest.approx(again["angle_2"], rel=1e-6)
    beside = study.against_controls(found.controls())
    assert list(beside.index) == [("toy task", "mlp")]
    single = table.loc[nets.WITH, ["nc1", "nc2_centered", "nc2_means", "nc3"]].tolist()
    assert beside[["nc1", "nc2", "nc2_means", "nc3"]].iloc[0].tolist() == single
    assert beside["singles"].tolist() == [max(single)]
    ratio = table.loc[nets.WITH, "angle_2"] / table.loc[nets.WITHOUT, "angle_2"]
    assert beside["difference"].tolist() == pytest.approx([ratio])
    other = table.reset_index().assign(angle_2=lambda rows: 2 * rows["angle_2"])  # another seed
    worst = study.against_controls(pd.concat([table.reset_index(), other]))
    assert worst["difference"].tolist() == pytest.approx([2 * ratio])
    assert worst["angle"].tolist() == pytest.approx((2 * beside["angle"]).tolist())
    assert found.ratio(*arms)["angle_2"].tolist() == pytest.approx([ratio])


def test_predictions_are_the_theory_at_the_training_settings():
    data, decays = toy(n=10), {"weight_decay": 4e-3, "feature_decay": 0.02}
    case = {"K": 4, "counts": {1: 10, 2: 10}, "lambda_h": 0.02 / 100}
    for frozen in (False, True):
        found = study.prediction(data, frozen=frozen, **decays)
        exact = theory.frozen_optimum(**case) if frozen else theory.optimum(**case, lambda_w=2e-3)
        assert (found["margin_2"], found["scale_2"]) == (exact.margins[2], exact.scales[2])
        z = exact.margins[1] * (torch.eye(4)[0] - 0.25)
        assert found["soft_iou_1"] == pytest.approx(float(z.softmax(0)[0]), rel=1e-6)


def test_loss_floor():
    data = toy(n=1)
    assert study.loss_floor(data) == pytest.approx((6 * 2 * log(2)) / 10)
    assert study.loss_floor(data, "mean") == pytest.approx((6 * log(2)) / 10)


def test_resuming_gives_the_same_history(tmp_path):
    arms = {"net": {"data": toy(), "architecture": "mlp"}}
    recipe, runs = train.Recipe(2, 0.05, 16), []
    for checkpoint in (nowhere, *[lambda name, **_: tmp_path / f"{name}.pt"] * 2):
        runs.append(fit(arms, recipe, every=1, checkpoint=checkpoint).curves)
    for other in runs[1:]:
        pd.testing.assert_frame_equal(other, runs[0])


def test_settings_that_change_a_net_change_its_checkpoint():
    """Everything that decides the numbers is in the configuration that names the file."""
    seen = []
    keep = lambda name, **config: seen.append((name, str(config)))
    data = toy()
    for arm in (
        {"data": data},
        {"data": data.singles},
        {"data": data, "frozen": True},
        {"data": data, "loss": "bce"},
        {"data": data.singles, "watch": data},
    ):
        fit({"net": arm | {"architecture": "mlp"}}, train.Recipe(1, 0.05, 16), checkpoint=keep)
    assert len(set(seen)) == 5


def test_angles_by_samples_per_pair():
    generator = torch.Generator().manual_seed(0)
    source = Data("toy", torch.rand(80, 1, 4, 4, generator=generator), torch.arange(80) % 4, 4)
    table = images.label_set_table(4, {1: 8, 2: [6, 3]}, generator=generator)
    data = images.compose(source, table)
    net = deep.seeded(0, nets.build, "mlp", 4, data.inputs.shape[1:])
    found = study.group_angles(net, data)
    assert found["samples"].tolist() == [3, 6]
    assert found["sets"].tolist() == [3, 3]
    total = nets.measure(net, data)["angle_2"]
    assert float(found["ratio"].mean()) == pytest.approx(total, rel=1e-6)
    many = pd.DataFrame({"samples": range(9), "ratio": np.arange(9.0)})
    thirds = study.by_samples(many)
    assert thirds["samples"].tolist() == [1, 4, 7]
    assert thirds["ratio"].tolist() == [1.0, 4.0, 7.0]


def test_bad_input():
    with pytest.raises(InputError, match="cnn, mlp"):
        nets.build("lenet", 4, SHAPE)
    with pytest.raises(InputError, match="pal, bce"):
        nets.objective("mse")
    with pytest.raises(InputError, match="feature_decay"):
        nets.objective(feature_decay=-1.0)
    with pytest.raises(InputError, match="digits, fashion"):
        images.prepare("imagenet", {1: 1, 2: 1}, {1: 1, 2: 1}, recipe="cifar")
    with pytest.raises(InputError, match="digits/mlp"):
        study.cells(["digits/transformer"])
    with pytest.raises(InputError, match="one label"):
        study.require_minimum(K=4, counts={2: 1}, lambda_w=1e-3, lambda_h=1e-3)
    with pytest.raises(InputError, match="so large"):
        study.require_minimum(K=4, counts={1: 1}, lambda_w=1.0, lambda_h=1.0)
