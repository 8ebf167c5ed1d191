"""Network studies of result 5 on tiny data."""

import pytest
import torch

from nclib.checks import InputError
from nclib.deep import collect, nets, train
from nclib.deep.data import Data
from nclib.metrics import frame_distances
from nclib.metrics.geometry import class_means, trace_ratio
from nclib.results.extended_ufm import training as depth_study
from nclib.results.extended_ufm.nets import block_features


@pytest.fixture
def blobs():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(8)
    centres = 3 * torch.randn(3, 6, generator=generator)
    inputs = centres[labels] + torch.randn(24, 6, generator=generator)
    return Data("blobs", inputs.reshape(24, 1, 2, 3), labels, 3)


def test_measure_points():
    assert depth_study.measure_points(100, 5) == [0, 1, 3, 10, 32, 100]
    assert depth_study.measure_points(1, 4) == [0, 1]


def test_backbone_is_linear_at_the_end():
    net = depth_study.backbone([4, 5, 2])
    assert [type(m).__name__ for m in net] == ["Flatten", "Linear", "ReLU", "Linear"]
    with pytest.raises(InputError, match="width"):
        depth_study.backbone([4, 0])


def test_bridge_stays_above_its_floor(blobs):
    heads = {
        "plain": {"lambdas": [0.02], "lambda_h": 0.003},
        "two": {"lambdas": [0.02, 0.01], "lambda_h": 0.003, "bias": "free"},
    }
    recipe = train.Recipe(400, 1e-2, None, optimizer="adam", schedule="cosine")
    table = depth_study.bridge(blobs, heads, recipe, widths=[16, 5], points=5)
    assert list(table["head"].unique()) == ["plain", "two"]
    assert (table["loss"] >= table["floor"] - 1e-6).all()
    last = table.groupby("head").last()
    assert (last["excess"] < 0.2).all()
    ratio = (last["loss"] / last["floor"] - 1 - last["excess"]).abs().max()
    assert ratio < 1e-12
    assert (last["norm_sq"] / last["norm_sq_theory"] - 1).abs().max() < 0.1


def test_depth_profile_measures_what_the_net_does(blobs):
    recipe = train.Recipe(4, 0.05, 8, weight_decay=1e-3)
    nets_asked = {"a": ("mse", False), "b": ("ce", True)}
    deep, overall = depth_study.depth_profile(
        blobs, blobs, nets_asked, recipe, architecture="mlp", width=5, points=3, seed=3
    )
    assert list(deep["block"].unique()) == [1, 2, 3]
    assert set(overall["epoch"]) == set(depth_study.measure_points(4, 3))
    net = nets.seeded(3, lambda: nets.mlp([6, 5, 5, 5], 3, bias=False))  # before training
    features = collect.features(net, blobs.inputs)
    row = deep[(deep["net"] == "a") & (deep["epoch"] == 0) & (deep["block"] == 3)].iloc[0]
    assert row["nc1"] == pytest.approx(trace_ratio(features, blobs.labels))
    shallow = block_features(net, blobs.inputs, [deep["layer"].iloc[0]])[deep["layer"].iloc[0]]
    first = deep[(deep["net"] == "a") & (deep["epoch"] == 0) & (deep["block"] == 1)].iloc[0]
    expected = frame_distances(class_means(shallow, blobs.labels)[0])["of"]
    assert first["of"] == pytest.approx(expected)
    start = overall[(overall["net"] == "a") & (overall["epoch"] == 0)].iloc[0]
    logits = collect.logits(net, blobs.inputs)
    error = (logits - torch.eye(3)[blobs.labels]).square().sum() / 48
    decay = 1e-3 / 2 * sum(float(p.detach().square().sum()) for p in net.parameters())
    assert start["objective"] == pytest.approx(float(error) + decay, rel=1e-5)
    assert start["of_w"] == pytest.approx(frame_distances(net.weight)["of"])
    curves = depth_study.last_two_blocks(deep, overall, "a")
    assert set(curves["layer"]) == {"H1", "H2"}
    last = curves[(curves["layer"] == "H2") & (curves["epoch"] == 0)].iloc[0]
    assert last["nc1"] == pytest.approx(row["nc1"])
    assert last["excess"] == pytest.approx(start["objective"])


@pytest.mark.parametrize(("architecture", "width"), [("cnn", 2), ("resnet18", 1 / 32)])
def test_convolutional_nets(architecture, width):
    labels = torch.arange(2).repeat(4)
    inputs = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = Data("noise", inputs, labels, 2)
    deep, _ = depth_study.depth_profile(
        data, data, {"a": ("mse", True)}, train.Recipe(1, 0.01, 4), architecture=architecture,
        width=width, points=2,
    )  # fmt: skip
    assert deep["block"].max() == {"cnn": 3, "resnet18": 4}[architecture]


def test_bad_requests(blobs):
    recipe = train.Recipe(1, 0.01, 8)
    for change, message in (
        ({"architecture": "tree"}, "architecture"),
        ({"names": ["nowhere"]}, "names"),
    ):
        with pytest.raises(InputError, match=message):
            depth_study.depth_profile(
                blobs,
                blobs,
                {"a": ("mse", True)},
                recipe,
                **({"architecture": "mlp", "width": 4} | change),
            )
    with pytest.raises(InputError, match="loss"):
        depth_study.depth_profile(
            blobs, blobs, {"a": ("hinge", True)}, recipe, architecture="mlp", width=4
        )
