"""Networks of result 3: parameter counts, frozen heads, objectives, measurements, decoding."""

import numpy as np
import pandas as pd
import pytest
import torch

from nclib import frames
from nclib.checks import InputError
from nclib.deep import collect, nets, train
from nclib.deep.data import Data
from nclib.metrics import multi_label_metrics
from nclib.results.multi_label import data as multi_label_data
from nclib.results.multi_label import nets as study
from nclib.results.multi_label import theory


@pytest.mark.parametrize(
    ("architecture", "share"),
    [("resnet18", 0.2071), ("resnet50", 0.0445), ("vgg16", 0.1575), ("vgg19", 0.1158)],
)
def test_published_parameter_savings(architecture, share):
    assert study.parameters_saved(architecture)["saved"] == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize("architecture", study.ARCHITECTURES)
@pytest.mark.parametrize("frozen", [False, True])
def test_shapes(architecture, frozen):
    size = 16 if architecture in ("cnn", "mlp") else 32
    net = nets.seeded(0, study.build, architecture, 5, in_channels=2, inputs=2 * size * size,
                      frozen=frozen).eval()  # fmt: skip
    x = torch.rand(3, 2, size, size)
    with torch.no_grad():
        features = net.features(x)
        assert net(x).shape == (3, 5)
    d = {"cnn": 64, "mlp": 32, "resnet50": 2048}.get(architecture, 512)
    assert features.shape == (3, 5 if frozen else d)
    if architecture != "mlp":
        assert float(features.min()) >= 0
    assert net.head.weight.requires_grad is not frozen
    assert net.head.bias.requires_grad


def test_frozen_head_is_the_unit_etf_and_stays():
    net = nets.seeded(0, study.build, "mlp", 4, inputs=16, feature_dim=6, frozen=True)
    weight = net.weight.double()
    assert torch.allclose(weight.norm(dim=1), torch.ones(4).double(), rtol=0, atol=1e-6)
    gram = weight @ weight.T
    assert float((gram / gram.norm() - frames.etf_gram(4)).norm()) < 1e-6
    assert float(weight[:, 4:].abs().max()) == 0
    before, bias = net.head.weight.clone(), net.head.bias.detach().clone()
    data = toy()
    study.run(net, data, train.Recipe(epochs=1, lr=0.1, batch_size=16, weight_decay=1e-2))
    assert torch.equal(net.head.weight, before)
    assert not torch.equal(net.head.bias, bias)
    with pytest.raises(InputError, match="d >= K=4"):
        study.build("mlp", 4, inputs=16, feature_dim=3, frozen=True)


def toy(n=12, noise=0.05):
    """4x4 images, one bright row per class, pairs with two."""
    generator = torch.Generator().manual_seed(0)
    rows = theory.balanced_sets(4, {1: 1, 2: 1})[0].float().repeat(n, 1)
    images = rows[:, None, :, None].expand(-1, 1, 4, 4)
    images = images + noise * torch.randn(images.shape, generator=generator)
    return multi_label_data.MultiLabelData("toy", images.contiguous(), rows)


def test_objective_is_loss_plus_feature_penalty():
    data, net = toy(), nets.seeded(0, study.build, "mlp", 4, inputs=16)
    net.eval()
    x, y = data.inputs[:7], data.labels[:7]
    features, logits = net.features(x), net(x)
    p = logits.log_softmax(1)
    penalty = 0.3 * (features**2).sum() / 7
    for reduction, weights in (("sum", y), ("mean", y / y.sum(1, keepdim=True))):
        value = study.objective("pal", reduction=reduction, feature_decay=0.3)(net, x, y)
        expected = -(weights * p).sum() / 7 + penalty
        assert torch.isclose(value, expected, rtol=1e-5)
    value = study.objective("bce", feature_decay=0.3)(net, x, y)
    s = logits.sigmoid()
    expected = -(y * s.log() + (1 - y) * (1 - s).log()).sum() / 7 + penalty
    assert torch.isclose(value, expected, rtol=1e-4)


def test_feature_penalty_has_a_gradient():
    data, net = toy(), nets.seeded(0, study.build, "mlp", 4, inputs=16).eval()
    first = next(net.parameters())
    values = []
    for decay in (0.0, 1.0):
        loss = study.objective(feature_decay=decay)(net, data.inputs, data.labels)
        values.append(torch.autograd.grad(loss, first)[0])
    assert float((values[0] - values[1]).abs().max()) > 1e-3


def test_measure_agrees_with_the_metrics():
    data, net = toy(), nets.seeded(1, study.build, "mlp", 4, inputs=16)
    found = study.measure(net, data)
    features = collect.features(net, data.inputs)
    direct = multi_label_metrics(features, data.labels, net.weight, net.bias)
    official = multi_label_metrics(features, data.labels, net.weight, convention="official")
    for name in ("nc1", "nc2_centered", "nc2_means", "nc3"):
        assert found[name] == pytest.approx(direct[name], rel=1e-6)
    assert found["scale_2"] == pytest.approx(direct["scale"][2], rel=1e-6)
    assert found["angle_2"] == pytest.approx(direct["angle"][2].ratio, rel=1e-6)
    assert found["degrees_2"] == pytest.approx(direct["angle"][2].degrees, rel=1e-6)
    assert found["official_angle"] == pytest.approx(official["angle"][2].ratio, rel=1e-6)
    assert found["official_nc1"] == pytest.approx(official["nc1"], rel=1e-4)
    logits = collect.logits(net, data.inputs).numpy()
    y = data.labels.numpy().astype(bool)
    for m in (1, 2):
        own = [z[s].mean() - z[~s].mean() for z, s in zip(logits, y, strict=True) if s.sum() == m]
        assert found[f"margin_{m}"] == pytest.approx(np.mean(own), rel=1e-4)
    log_p = torch.tensor(logits).double().log_softmax(1)
    assert found["data_loss"] == pytest.approx(float(-(data.labels * log_p).sum(1).mean()), 1e-5)


def test_margins_leave_out_full_sets():
    logits = torch.tensor([[2.0, 0.0, -1.0], [1.0, 1.0, 1.0]])
    assert study.margins(logits, torch.tensor([[1, 0, 0], [1, 1, 1]])) == {1: 2.5}


@pytest.mark.slow
def test_a_trained_net_collapses_towards_the_theory_and_decodes_unseen_pairs():
    """A toy where the unconstrained-features model fits well: linear features, separable images."""
    data = toy(n=20)
    recipe = train.Recipe(epochs=60, lr=0.1, batch_size=50, weight_decay=2e-3, schedule="cosine",
                          final=1e-3)  # fmt: skip
    options = {"feature_decay": 1e-2, "every": 30}
    seen = study.run(nets.seeded(0, study.build, "mlp", 4, inputs=16), data, recipe, **options)
    assert list(seen.history["epoch"]) == [1, 30, 60]
    assert seen.final["nc1"] < 0.05
    assert seen.final["angle_2"] < 0.1
    expected = study.predictions({"learned": seen}, weight_decay=2e-3, feature_decay=1e-2).iloc[0]
    for name in ("margin_1", "margin_2", "scale_2"):
        assert seen.final[name] == pytest.approx(expected[name], rel=0.15)
    unseen = [(0, 1)]
    part = data.keep({S: n for S, n in data.table().items() if S not in unseen})
    assert len(part) == len(data) - 20
    other = study.run(nets.seeded(0, study.build, "mlp", 4, inputs=16), part, recipe,
                      feature_decay=1e-2)  # fmt: skip
    table = study.unseen_table({"learned": other}, data, unseen)
    best = table.query("decoder == 'nearest codeword'").set_index("sets")
    assert best["samples"].to_dict() == {"never trained": 20, "trained": 100}
    assert best.loc["never trained", "exact_match"] > 0.9
    scores = study.accuracy_table({"learned": seen}, data)
    assert set(scores["decoder"]) == {
        "nearest codeword", "nearest codeword, cosine", "largest gap", "top m (m known)", "sign",
    }  # fmt: skip
    assert scores.query("decoder == 'nearest codeword'")["exact_match"].min() > 0.95


def test_predictions_are_the_theory_at_the_training_settings():
    data = toy(n=10)
    trained = study.Trained(None, pd.DataFrame(), data)
    table = study.predictions(
        {"learned": trained, "frozen": trained}, weight_decay=4e-3, feature_decay=0.02
    ).set_index("net")
    case = {"K": 4, "counts": {1: 10, 2: 10}, "lambda_h": 0.02 / 100}
    exact = theory.optimum(**case, lambda_w=2e-3)
    frozen = theory.frozen_optimum(**case)
    assert table.loc["learned", "margin_2"] == exact.margins[2]
    assert table.loc["learned", "scale_2"] == exact.scales[2]
    assert table.loc["frozen", "margin_1"] == frozen.margins[1]


def test_loss_floor():
    data = toy(n=1)
    assert study.loss_floor(data) == pytest.approx((6 * 2 * np.log(2)) / 10)
    assert study.loss_floor(data, "mean") == pytest.approx((6 * np.log(2)) / 10)


def test_resuming_gives_the_same_history(tmp_path):
    data, recipe = toy(), train.Recipe(epochs=2, lr=0.05, batch_size=16)
    build = lambda: nets.seeded(0, study.build, "mlp", 4, inputs=16)  # noqa: E731
    plain = study.run(build(), data, recipe, every=1)
    path = tmp_path / "net.pt"
    first = study.run(build(), data, recipe, every=1, checkpoint=path)
    again = study.run(build(), data, recipe, every=1, checkpoint=path)
    pd.testing.assert_frame_equal(first.history, plain.history)
    pd.testing.assert_frame_equal(again.history, plain.history)


def test_group_angles():
    generator = torch.Generator().manual_seed(0)
    source = Data("toy", torch.rand(80, 1, 4, 4, generator=generator), torch.arange(80) % 4, 4)
    table = multi_label_data.label_set_table(4, {1: 8, 2: [6, 3]}, generator=generator)
    data = multi_label_data.compose(source, table)
    net = nets.seeded(0, study.build, "mlp", 4, inputs=64)
    found = study.group_angles(study.Trained(net, pd.DataFrame(), data))
    assert found["samples"].tolist() == [3, 6]
    assert found["sets"].tolist() == [3, 3]
    total = study.measure(net, data)["degrees_2"]
    assert float(found["degrees"].mean()) == pytest.approx(total, rel=1e-6)


def test_bad_input():
    with pytest.raises(InputError, match="cnn, mlp"):
        study.build("lenet", 4)
    with pytest.raises(InputError, match="pal, bce"):
        study.objective("mse")
    with pytest.raises(InputError, match="feature_decay"):
        study.objective(feature_decay=-1.0)
    with pytest.raises(InputError, match="digits, fashion"):
        multi_label_data.prepare("imagenet")
