from dataclasses import replace

import pandas as pd
import pytest
import torch

from nclib import losses
from nclib.deep import collect, nets, train
from nclib.deep.data import Data
from nclib.metrics import nc_metrics


def data(N=60, K=3, d=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(K).repeat(N // K)
    means = 2 * torch.randn(K, d, generator=g, dtype=dtype)
    inputs = means[labels] + torch.randn(N, d, generator=g, dtype=dtype)
    return Data("toy", inputs, labels, K)


def build():
    return nets.mlp([5, 8, 6], 3).double()


RECIPE = train.Recipe(
    epochs=6, lr=0.05, batch_size=20, weight_decay=1e-3, schedule="steps", clip=0.5
)
CE, MSE = losses.get("ce"), losses.get("mse", tau=None, scale=5.0)
OBJECTIVE = lambda net, x, y: CE(net(x), y)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_one_plain_sgd_epoch_by_hand():
    points = data()
    net, other = nets.seeded(3, build), nets.seeded(3, build)
    recipe = train.Recipe(epochs=2, lr=0.1, batch_size=None, momentum=0.0, weight_decay=0.01)
    train.fit(net, points, OBJECTIVE, recipe)
    for _ in range(2):
        other.train()
        gradients = torch.autograd.grad(CE(other(points.inputs), points.labels), other.parameters())
        with torch.no_grad():
            for p, g in zip(other.parameters(), gradients, strict=True):
                p -= 0.1 * (g + 0.01 * p)
    assert torch.allclose(weights(net), weights(other), atol=1e-14)


@pytest.mark.parametrize(
    ("nesterov", "clip"), [(False, None), (True, None), (False, 0.05), (False, 0.5), (True, 1e6)]
)
def test_a_stacked_grid_equals_separate_trainings(nesterov, clip):
    points, recipe = data(), replace(RECIPE, nesterov=nesterov, clip=clip)
    cells = [  # losses and seeds in no order
        train.Cell(loss, seed, epochs)
        for loss, seed, epochs in (
            (CE, 0, 6), (MSE, 1, 6), (CE, 1, 3), (MSE, 0, 3), (CE, 0, 3), (CE, 1, 6),
        )
    ]  # fmt: skip
    measure = lambda net, cell, epoch: {"accuracy": collect.accuracy(net, points)}
    options = {"measure": measure, "measure_at": [0, 2]}
    stacked = train.grid(build, cells, points, recipe, **options)
    apart = train.grid(build, cells, points, recipe, together=False, **options)
    for one, two in zip(stacked, apart, strict=True):
        assert one.cell == two.cell
        assert torch.allclose(weights(one.net), weights(two.net), atol=1e-10)
        for name, value in one.net.state_dict().items():
            assert torch.allclose(value.double(), two.net.state_dict()[name].double(), atol=1e-10)
        pd.testing.assert_frame_equal(one.history, two.history, atol=1e-10)
        assert list(one.history["epoch"]) == [0, 2, one.cell.epochs]
    start = weights(nets.seeded(0, build))
    assert not torch.allclose(weights(stacked[0].net), start, atol=1e-3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 3, 5])
def test_a_killed_training_resumes_to_the_same_result(tmp_path, monkeypatch, kill_at):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    points = data()
    measure = lambda net, epoch: {"accuracy": collect.accuracy(net, points)}
    whole = nets.seeded(0, build)
    want = train.fit(whole, points, OBJECTIVE, RECIPE, measure=measure)

    def dying(net, epoch):
        if epoch == kill_at + 1:
            raise Killed
        return measure(net, epoch)

    path = tmp_path / "net.pt"
    with pytest.raises(Killed):
        net = nets.seeded(0, build)
        train.fit(net, points, OBJECTIVE, RECIPE, measure=dying, checkpoint=path)
    net = nets.seeded(5, build)  # what is loaded decides, not the fresh weights
    got = train.fit(net, points, OBJECTIVE, RECIPE, measure=measure, checkpoint=path)
    assert torch.equal(weights(net), weights(whole))
    pd.testing.assert_frame_equal(got, want)


def test_a_killed_grid_resumes_to_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    points = data()
    cells = [train.Cell(CE, 0, 6), train.Cell(MSE, 1, 3), train.Cell(CE, 1, 6)]
    options = {"measure": lambda net, cell, epoch: {"norm": float(weights(net).norm())}}
    want = train.grid(build, cells, points, RECIPE, measure_at=[1, 5], **options)
    count = []

    def dying(net, cell, epoch):
        count.append(epoch)
        if epoch == 5:
            raise Killed
        return options["measure"](net, cell, epoch)

    path = tmp_path / "grid.pt"
    with pytest.raises(Killed):
        train.grid(build, cells, points, RECIPE, measure=dying, measure_at=[1, 5], checkpoint=path)
    got = train.grid(build, cells, points, RECIPE, measure_at=[1, 5], checkpoint=path, **options)
    for one, two in zip(got, want, strict=True):
        assert torch.equal(weights(one.net), weights(two.net))
        pd.testing.assert_frame_equal(one.history, two.history)


def test_a_finished_training_is_not_repeated(tmp_path):
    points, path, calls = data(), tmp_path / "net.pt", []

    def objective(net, x, y):
        calls.append(1)
        return OBJECTIVE(net, x, y)

    first = train.fit(nets.seeded(0, build), points, objective, RECIPE, checkpoint=path)
    seen = len(calls)
    second = train.fit(nets.seeded(0, build), points, objective, RECIPE, checkpoint=path)
    assert len(calls) == seen
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_moved_aside_and_training_restarts(tmp_path, damage):
    points, path = data(), tmp_path / "net.pt"
    whole = nets.seeded(0, build)
    train.fit(whole, points, OBJECTIVE, RECIPE, checkpoint=path)
    content = path.read_bytes()[:-200] if damage is None else damage
    path.write_bytes(content)
    net = nets.seeded(0, build)
    with pytest.warns(RuntimeWarning, match=r"checkpoint net.pt is damaged .* moved aside"):
        train.fit(net, points, OBJECTIVE, RECIPE, checkpoint=path)
    assert torch.equal(weights(net), weights(whole))
    assert (tmp_path / "net.corrupt").read_bytes() == content


def test_schedules():
    steps = train.Recipe(epochs=70, lr=1.0, schedule="steps")
    assert [steps.rate(e) for e in (0, 29, 30, 49, 50, 69)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    cosine = train.Recipe(epochs=10, lr=2.0, schedule="cosine", final=0.1)
    assert cosine.rate(0) == pytest.approx(2.0)
    assert cosine.rate(5) == pytest.approx(2.0 * 0.55)
    assert cosine.rate(10) == pytest.approx(0.2)
    assert steps.rate(3, epochs=7) == pytest.approx(0.1)


def test_batches_cover_the_data_once():
    recipe = train.Recipe(epochs=1, lr=1.0, batch_size=8)
    parts = recipe.batches(41, torch.Generator().manual_seed(0))
    # a last batch of one sample would break batch norm: it is left out
    assert sorted(len(p) for p in parts) == [8] * 5
    parts = recipe.batches(43, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(43))
    whole = train.Recipe(epochs=1, lr=1.0, batch_size=None).batches(5, None)
    assert [p.tolist() for p in whole] == [[0, 1, 2, 3, 4]]


def test_training_collapses_features():
    points = data()
    recipe = train.Recipe(epochs=150, lr=0.1, batch_size=30, weight_decay=5e-3, schedule="steps")
    net = nets.seeded(0, build)
    nc1 = lambda: nc_metrics(collect.features(net, points.inputs), points.labels)["nc1"]
    before = nc1()
    train.fit(net, points, OBJECTIVE, recipe)
    assert nc1() < 0.1 * before
    assert net.training  # collecting restores the mode


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0"),
        ({"lr": 0.0}, "lr must be greater than 0"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of sgd, adam, adamw"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_recipes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        train.Recipe(**({"epochs": 1, "lr": 0.1} | change))
