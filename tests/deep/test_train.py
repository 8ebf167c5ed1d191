import math
import re
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nclib import checks, losses
from nclib.deep import collect, nets, train
from nclib.deep.data import Data
from nclib.metrics import nc_metrics
from tests.device_guard import Accelerator


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
    cells = [  # losses and seeds in no order, one without training
        train.Cell(loss, seed, epochs)
        for loss, seed, epochs in (
            (CE, 0, 6), (MSE, 1, 6), (CE, 1, 3), (MSE, 0, 3), (CE, 0, 0), (CE, 1, 6),
        )
    ]  # fmt: skip
    measure = lambda net, cell, epoch: {"accuracy": collect.accuracy(net, points)}
    options = {"measure": measure, "measure_at": [0, 1]}
    stacked = train.grid(build, cells, points, recipe, **options)
    apart = train.grid(build, cells, points, recipe, together=False, **options)
    for one, two in zip(stacked, apart, strict=True):
        assert one.cell == two.cell
        assert torch.allclose(weights(one.net), weights(two.net), atol=1e-10)
        for name, value in one.net.state_dict().items():
            assert torch.allclose(value.double(), two.net.state_dict()[name].double(), atol=1e-10)
        pd.testing.assert_frame_equal(one.history, two.history, atol=1e-10)
        assert list(one.history["epoch"]) == ([0, 1, one.cell.epochs] if one.cell.epochs else [0])
    start = weights(nets.seeded(0, build))
    assert not torch.allclose(weights(stacked[0].net), start, atol=1e-3)


def fixed_head():
    net = build()
    net.head.weight.requires_grad_(False)
    return net


class Tied(torch.nn.Module):
    """The same weight under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Linear(5, 5, bias=False).double() for _ in range(2))
        self.second.weight = self.first.weight
        self.head = torch.nn.Linear(5, 3).double()

    def forward(self, x):
        return self.head(self.second(torch.relu(self.first(x))))


@pytest.mark.parametrize("build", [fixed_head, Tied])
def test_a_stacked_grid_keeps_what_is_fixed_and_what_is_tied(tmp_path, monkeypatch, build):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    cells = [train.Cell(CE, 0, 3), train.Cell(MSE, 1, 2), train.Cell(CE, 1, 1)]
    measure = lambda net, cell, epoch: {"norm": float(weights(net).norm())}
    options = {"measure": measure, "measure_at": [2]}
    apart = train.grid(build, cells, data(), RECIPE, together=False, **options)

    def dying(net, cell, epoch):
        if epoch == 3:
            raise Killed
        return measure(net, cell, epoch)

    path = tmp_path / "grid.pt"
    with pytest.raises(Killed):
        train.grid(build, cells, data(), RECIPE, checkpoint=path, **options | {"measure": dying})
    resumed = train.grid(build, cells, data(), RECIPE, checkpoint=path, **options)
    whole = train.grid(build, cells, data(), RECIPE, **options)
    for one, two, three in zip(resumed, whole, apart, strict=True):
        assert torch.equal(weights(one.net), weights(two.net))
        assert torch.allclose(weights(two.net), weights(three.net), atol=1e-10)
        pd.testing.assert_frame_equal(one.history, two.history)
        pd.testing.assert_frame_equal(two.history, three.history, atol=1e-10)
        start = nets.seeded(one.cell.seed, build)
        for p, q in zip(start.parameters(), two.net.parameters(), strict=True):
            assert p.requires_grad == q.requires_grad == (not torch.equal(p, q))


def test_a_grid_keeps_the_losses_also_without_a_measure():
    cells = [train.Cell(CE, 0, 2), train.Cell(MSE, 1, 3)]
    for measure_at, epochs in ([(), ([2], [3])], [[1], ([1, 2], [1, 3])]):
        options = {"measure_at": measure_at}
        stacked = train.grid(build, cells, data(), RECIPE, **options)
        apart = train.grid(build, cells, data(), RECIPE, together=False, **options)
        for one, two, wanted in zip(stacked, apart, epochs, strict=True):
            assert one.history["epoch"].tolist() == wanted
            pd.testing.assert_frame_equal(one.history, two.history, atol=1e-10)


@pytest.mark.parametrize("together", [True, False])
def test_an_unknown_option_of_a_grid_is_an_error(together):
    with pytest.raises(TypeError, match="mesure"):
        train.grid(build, [train.Cell(CE, 0, 1)], data(), RECIPE, together=together, mesure=None)


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


@pytest.mark.parametrize("together", [True, False])
def test_a_killed_grid_goes_on_on_an_accelerator(tmp_path, monkeypatch, together):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    cells = [train.Cell(CE, 0, 4), train.Cell(MSE, 1, 2), train.Cell(CE, 1, 4)]
    want = train.grid(build, cells, data(), RECIPE, together=together)

    def dying(net, cell, epoch):
        if cell.seed == 1 and epoch == 3:
            raise Killed
        return {}

    with Accelerator() as gpu:
        points = data().to(gpu)
        options = {"measure_at": [3], "checkpoint": tmp_path / "grid.pt", "together": together}
        with pytest.raises(Killed):
            train.grid(build, cells, points, RECIPE, measure=dying, **options)
        assert list(tmp_path.glob("grid*"))
        got = train.grid(build, cells, points, RECIPE, **options)
        for one, two in zip(got, want, strict=True):
            assert next(one.net.parameters()).device == gpu
            assert torch.allclose(weights(one.net).cpu(), weights(two.net), atol=1e-12)


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


def other(points, recipe, kind):
    """``(data, recipe, seed)`` of another training."""
    if kind == "seed":
        return points, recipe, 1
    if kind == "inputs":
        return replace(points, inputs=points.inputs + 1), recipe, 0
    if kind == "labels":
        return replace(points, labels=points.labels.flip(0)), recipe, 0
    return points, replace(recipe, **kind), 0


def other_net(kind):
    """The net of another training."""
    if kind == "wider":
        return nets.mlp([5, 9, 6], 3).double()
    net = nets.mlp([5, 5, 5], 3).double() if kind == "tied" else build()
    layers = [module for module in net.modules() if isinstance(module, torch.nn.Linear)]
    if kind == "tied":
        layers[1].weight = layers[0].weight
    if kind == "frozen":
        layers[0].weight.requires_grad_(False)
    return net


OTHERS = ["seed", "inputs", "labels", {"lr": 0.01}, {"weight_decay": 0.5}, {"momentum": 0.0}]
OTHERS += [{"schedule": "cosine"}, {"epochs": 7}]


@pytest.mark.parametrize("kind", OTHERS)
def test_a_checkpoint_of_other_data_seed_or_recipe_is_moved_aside(tmp_path, kind):
    path = tmp_path / "net.pt"
    train.fit(nets.seeded(0, build), data(), OBJECTIVE, RECIPE, checkpoint=path)
    points, recipe, seed = other(data(), RECIPE, kind)
    net, whole = nets.seeded(0, build), nets.seeded(0, build)
    want = train.fit(whole, points, OBJECTIVE, recipe, seed=seed)
    with pytest.warns(RuntimeWarning, match=r"net.pt is damaged or of another training"):
        got = train.fit(net, points, OBJECTIVE, recipe, seed=seed, checkpoint=path)
    assert torch.equal(weights(net), weights(whole))
    pd.testing.assert_frame_equal(got, want)


def test_a_longer_training_at_a_constant_rate_goes_on_where_the_shorter_one_ended(tmp_path):
    path, recipe = tmp_path / "net.pt", replace(RECIPE, schedule="constant")
    net, whole = nets.seeded(0, build), nets.seeded(0, build)
    want = train.fit(whole, data(), OBJECTIVE, recipe)
    train.fit(nets.seeded(0, build), data(), OBJECTIVE, replace(recipe, epochs=4), checkpoint=path)
    fast = replace(recipe, fast=False)  # changes rounding only, on a GPU
    got = train.fit(net, data(), OBJECTIVE, fast, checkpoint=path, measure=None)
    assert torch.equal(weights(net), weights(whole))
    pd.testing.assert_frame_equal(got, want)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["inputs", {"lr": 0.01}, "loss", "epochs", "order"])
def test_a_checkpoint_of_another_grid_is_moved_aside(tmp_path, together, kind):
    cells = [train.Cell(CE, 0, 3), train.Cell(MSE, 1, 3)]
    options = {"together": together}
    train.grid(build, cells, data(), RECIPE, checkpoint=tmp_path / "grid.pt", **options)
    points, recipe = data(), RECIPE
    if kind == "loss":  # the same to four digits
        cells[1] = replace(cells[1], loss=losses.get("mse", tau=None, scale=5.0000001))
    elif kind == "epochs":
        cells[1] = replace(cells[1], epochs=4)
    elif kind == "order":
        cells = cells[::-1]
    else:
        points, recipe, _ = other(points, recipe, kind)
    want = train.grid(build, cells, points, recipe, **options)
    with pytest.warns(RuntimeWarning, match="damaged or of another training"):
        got = train.grid(build, cells, points, recipe, checkpoint=tmp_path / "grid.pt", **options)
    for one, two in zip(got, want, strict=True):
        assert torch.equal(weights(one.net), weights(two.net))
        pd.testing.assert_frame_equal(one.history, two.history)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["wider", "frozen", "tied"])
def test_a_checkpoint_of_another_net_is_moved_aside(tmp_path, together, kind):
    def untied():
        return nets.mlp([5, 5, 5], 3).double()

    def changed():
        return other_net(kind)

    first, cells = untied if kind == "tied" else build, [train.Cell(CE, 0, 3)]
    options = {"checkpoint": tmp_path / "grid.pt", "together": together}
    train.grid(first, cells, data(), RECIPE, **options)
    want = train.grid(changed, cells, data(), RECIPE, together=together)
    with pytest.warns(RuntimeWarning, match="damaged or of another training"):
        got = train.grid(changed, cells, data(), RECIPE, **options)
    assert torch.equal(weights(got[0].net), weights(want[0].net))


def foreign(state, kind):
    """What a file may hold that loads, but is no checkpoint of this training."""
    if kind == "list":
        return [1, 2, 3]
    if kind == "tensor":
        return torch.zeros(3)
    if kind == "empty dict":
        return {}
    if kind == "other dict":
        return {"model": state["net"], "epoch": 3}
    if kind == "part of the net":
        return state | {"net": dict(list(state["net"].items())[:-1])}
    if kind == "more epochs":
        return state | {"epoch": RECIPE.epochs + 1}
    if kind == "numbers for words":
        return dict.fromkeys(state, 1)
    return {key: value for key, value in state.items() if key != kind}


FOREIGN = ["list", "tensor", "empty dict", "other dict", "part of the net", "more epochs"]
FOREIGN += ["numbers for words"]
KEYS = ["of", "net", "optimizer", "generator", "global", "epoch", "at", "history"]


@pytest.mark.parametrize("kind", FOREIGN + KEYS)
def test_a_file_that_is_no_checkpoint_of_this_training_is_moved_aside(tmp_path, kind):
    points, path = data(), tmp_path / "net.pt"
    whole = nets.seeded(0, build)
    want = train.fit(whole, points, OBJECTIVE, RECIPE, checkpoint=path)
    state = torch.load(path)
    assert set(state) == set(KEYS)
    torch.save(foreign(state, kind), path)
    net = nets.seeded(0, build)
    with pytest.warns(RuntimeWarning, match=r"checkpoint net.pt .* moved aside as net.corrupt"):
        got = train.fit(net, points, OBJECTIVE, RECIPE, checkpoint=path)
    assert torch.equal(weights(net), weights(whole))
    pd.testing.assert_frame_equal(got, want)
    again = train.fit(nets.seeded(1, build), points, OBJECTIVE, RECIPE, checkpoint=path)
    pd.testing.assert_frame_equal(again, want)  # the new file is in order


GRID_KEYS = ["of", "alive", "done", "epoch", "histories", "params", "buffers", "velocity"]
GRID_KEYS += ["generators"]
GRID = ["list", "tensor", "empty dict", "numbers for words"]


@pytest.mark.parametrize("kind", ["empty file", "half a file", *GRID, *GRID_KEYS])
def test_a_file_that_is_no_checkpoint_of_this_grid_is_moved_aside(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    points, path, recipe = data(), tmp_path / "grid.pt", replace(RECIPE, epochs=4)
    cells = [train.Cell(CE, 0, 4), train.Cell(MSE, 1, 2), train.Cell(CE, 1, 4)]

    def dying(net, cell, epoch):
        if epoch == 3:
            raise Killed
        return {}

    with pytest.raises(Killed):  # two nets are under way, one is done
        train.grid(build, cells, points, recipe, measure=dying, measure_at=[3], checkpoint=path)
    state = torch.load(path)
    assert set(state) == set(GRID_KEYS) and len(state["params"]) == 2
    if kind.endswith("file"):
        path.write_bytes(b"" if kind == "empty file" else path.read_bytes()[:-300])
    else:
        torch.save(foreign(state, kind), path)
    options = {"measure": lambda net, cell, epoch: {"norm": float(weights(net).norm())}}
    want = train.grid(build, cells, points, recipe, **options)
    with pytest.warns(RuntimeWarning, match=r"checkpoint grid.pt .* moved aside as grid.corrupt"):
        got = train.grid(build, cells, points, recipe, checkpoint=path, **options)
    for one, two in zip(got, want, strict=True):
        assert torch.equal(weights(one.net), weights(two.net))
        pd.testing.assert_frame_equal(one.history, two.history)


def breaking(step, value):
    """The objective, whose value at this step (counted from 0) is ``value``."""
    seen = []

    def objective(net, x, y):
        seen.append(1)
        return OBJECTIVE(net, x, y) * (value if len(seen) == step + 1 else 1)

    return objective


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("step", "where"), [(1, "epoch 1, step 2"), (16, "epoch 6, step 2")])
@pytest.mark.parametrize("there", [False, True])
def test_training_stops_at_a_loss_that_is_not_finite(step, where, value, there):
    net, recipe = nets.seeded(0, build), replace(RECIPE, lr=0.25)
    with Accelerator() if there else nullcontext():
        points = data().to("cuda" if there else "cpu")
        net.to("cuda" if there else "cpu")
        with pytest.raises(checks.InputError) as caught:
            train.fit(net, points, breaking(step, value), recipe, label="blocks")
    rate = "0.25" if step == 1 else "0.0025"
    text = f"blocks: the loss is NaN or infinite at {where} of 3, learning rate {rate}; training"
    assert str(caught.value).startswith(text) and "smaller learning rate" in str(caught.value)
    if not there:  # at once: the weights are those before the step
        assert weights(net).isfinite().all()


def test_a_loss_that_was_never_finite_is_no_matter_of_the_rate():
    with pytest.raises(checks.InputError, match="epoch 1, step 1 of 3.*before any step: look for"):
        train.fit(build(), data(), breaking(0, math.nan), RECIPE)


@pytest.mark.parametrize("there", [False, True])
def test_a_grid_names_the_net_that_diverged(there):
    wild = losses.get("mse", tau=1e150, scale=5.0)
    cells = [train.Cell(CE, 0, 6), train.Cell(wild, 1, 6, {"loss": "wild"}), train.Cell(CE, 2, 6)]
    with Accelerator() if there else nullcontext():
        points = data().to("cuda" if there else "cpu")
        for together in (True, False):
            with pytest.raises(checks.InputError) as caught:
                train.grid(build, cells, points, replace(RECIPE, clip=None), together=together)
            assert re.search("epoch 1, step [23] of 3, learning rate 0.05", str(caught.value))
            want = f"grid, {wild}, seed 1, loss wild: " if together else "grid 2/3: "
            assert str(caught.value).startswith(want)


@pytest.mark.parametrize("there", [False, True])
def test_no_checkpoint_is_saved_after_a_loss_that_is_not_finite(tmp_path, monkeypatch, there):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    path, want = tmp_path / "net.pt", nets.seeded(0, build)
    train.fit(want, data(), OBJECTIVE, RECIPE)
    with Accelerator() if there else nullcontext():
        points = data().to("cuda" if there else "cpu")
        net = nets.seeded(0, build).to("cuda" if there else "cpu")
        with pytest.raises(checks.InputError, match="epoch 2, step 2 of 3"):
            train.fit(net, points, breaking(4, math.nan), RECIPE, checkpoint=path)
        state = torch.load(path)
        assert (state["epoch"], state["at"]["step"]) == (1, 1)
        train.fit(net, points, OBJECTIVE, RECIPE, checkpoint=path)  # goes on from there
        assert torch.allclose(weights(net).cpu(), weights(want), atol=1e-12)


class Waits(TorchDispatchMode):
    """Counts the operations at which a GPU would have to wait for its results."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket
        self.count += name in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("together", [False, True])
def test_a_gpu_does_not_wait_at_every_step(together):
    cells, found = [train.Cell(CE, 0, 2), train.Cell(CE, 1, 2)], []
    for size in (30, 6):  # two and ten steps
        recipe = replace(RECIPE, epochs=2, batch_size=size)
        with Accelerator() as gpu:
            points = data().to(gpu)
            with Waits() as waits:
                train.grid(build, cells, points, recipe, together=together)
        found.append(waits.count)
    assert found[0] == found[1] > 0


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
    late = train.Recipe(epochs=90, lr=1.0, schedule="steps", milestones=(0.7,))
    assert [late.rate(e) for e in (62, 63)] == [1, 0.1]  # 0.7 * 90 < 63 in floats
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
        ({"momentum": 1.0}, "momentum must be less than 1"),
        ({"clip": 0.0}, "clip must be greater than 0"),
        ({"factor": 0.0}, "factor must be greater than 0"),
        ({"final": -0.1}, "final must be at least 0"),
        ({"milestones": (0.5, 20)}, "milestones must be at most 1"),
    ],
)
def test_bad_recipes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        train.Recipe(**({"epochs": 1, "lr": 0.1} | change))


def test_history_of_a_grid_is_one_tagged_table():
    cells = [train.Cell(CE, seed, 2, {"loss": "ce", "width": 7}) for seed in (3, 4)]
    measured = lambda net, cell, epoch: {"seconds": 0.0}
    trained = train.grid(build, cells, data(), RECIPE, measure=measured, measure_at=[0, 2])
    table = train.history(trained)
    assert list(table.columns) == [*trained[0].history.columns, "seed", "loss", "width"]
    assert table["seed"].tolist() == [3, 3, 4, 4] and set(table["width"]) == {7}
    assert table["epoch"].tolist() == [0, 2, 0, 2]
    assert table["train_loss"].tolist()[3] == trained[1].history["train_loss"].tolist()[1]


def test_a_grid_without_cells_is_refused():
    for together in (True, False):
        with pytest.raises(checks.InputError, match="cells is empty"):
            train.grid(build, [], data(), RECIPE, together=together)
