"""The options that make training fast change nothing but rounding."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from nclib import losses
from nclib.deep import collect, nets, train
from nclib.deep.data import Data, crop_and_flip
from nclib.metrics import nc_metrics

CE, MSE = losses.get("ce"), losses.get("mse", tau=None, scale=5.0)
RECIPE = train.Recipe(epochs=3, lr=0.05, batch_size=16, weight_decay=1e-3, schedule="cosine")
OBJECTIVE = lambda net, x, y: CE(net(x), y)


def images(N=60, size=8, channels=2, K=3):
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(N) % K
    means = torch.randn(K, channels, size, size, generator=draw)
    inputs = means[labels] + 0.5 * torch.randn(N, channels, size, size, generator=draw)
    return Data("images", inputs, labels, K)


def build():
    return nets.cnn([4, 8, 6], 3, in_channels=2)


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def plain_loop(net, data, recipe, seed, augment):
    """Plain float32 training, as in the documentation of PyTorch."""
    draw = torch.Generator().manual_seed(seed)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[recipe.optimizer]
    momentum = {"momentum": 0.9} if recipe.optimizer == "sgd" else {}
    optimizer = kind(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, **momentum)
    net.train()
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.rate(epoch)
        for index in torch.randperm(len(data), generator=draw).split(recipe.batch_size):
            inputs = data.inputs[index]
            if augment:
                inputs = augment(inputs, draw)
            loss = torch.nn.functional.cross_entropy(net(inputs), data.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net


@pytest.mark.parametrize("augment", [None, crop_and_flip])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("fast", [False, True])
def test_the_engine_agrees_with_a_plain_loop(augment, optimizer, fast):
    data = images()
    lr = 0.05 if optimizer == "sgd" else 0.003
    recipe = replace(RECIPE, optimizer=optimizer, lr=lr, fast=fast)
    want = plain_loop(nets.seeded(2, build), data, recipe, 5, augment)
    net = nets.seeded(2, build)
    train.fit(net, data, OBJECTIVE, recipe, seed=5, augment=augment)
    assert torch.allclose(weights(net), weights(want), atol=2e-4)
    assert not torch.allclose(weights(net), weights(nets.seeded(2, build)), atol=1e-2)
    layout = net.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert layout == fast


@pytest.mark.slow
def test_bf16_stays_within_the_spread_of_seeds():
    data = images(N=120)
    recipe = replace(RECIPE, epochs=25, batch_size=40)

    def outcome(seed, bf16):
        net = nets.seeded(seed, build)
        train.fit(net, data, OBJECTIVE, replace(recipe, bf16=bf16), seed=seed, measure_at=())
        features = collect.features(net, data.inputs)
        assert features.dtype == torch.float32
        found = nc_metrics(features, data.labels, net.weight, net.bias)
        return torch.tensor([found["nc1"], found["nc2_means"], found["nc3"]]).log()

    single = torch.stack([outcome(seed, False) for seed in range(5)])
    half = torch.stack([outcome(seed, True) for seed in range(5)])
    assert not torch.equal(single, half)
    spread = single.std(0)
    assert ((half.mean(0) - single.mean(0)).abs() < 2 * spread).all()


def test_head_and_loss_are_float32_under_autocast():
    net, inputs = build(), images().inputs
    with torch.autocast("cpu", torch.bfloat16):
        assert net.backbone[:2](inputs).dtype == torch.bfloat16
        assert net.features(inputs).dtype == torch.float32
        logits = net(inputs)
    assert logits.dtype == torch.float32
    linear = nets.Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 4)), None)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear.features(inputs).dtype == torch.float32


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 4, 6, 10])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_killed_within_an_epoch_repeats_no_step(
    tmp_path, monkeypatch, kill_at, optimizer
):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    data, recipe = images(), replace(RECIPE, optimizer=optimizer, lr=0.01)
    dropped = lambda: nets.Classifier(
        torch.nn.Sequential(build().backbone, torch.nn.Dropout(0.3)), torch.nn.Linear(6, 3)
    )
    steps = []

    def objective(net, x, y):
        if len(steps) == kill_at and not any(step == "killed" for step in steps):
            steps.append("killed")
            raise Killed
        steps.append("done")
        return OBJECTIVE(net, x, y)

    options = {"seed": 3, "augment": crop_and_flip}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the dropout
        whole = nets.seeded(0, dropped)
        want = train.fit(whole, data, OBJECTIVE, recipe, **options)
    path = tmp_path / "net.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with pytest.raises(Killed):
            train.fit(nets.seeded(0, dropped), data, objective, recipe, checkpoint=path, **options)
        torch.manual_seed(99)
        net = nets.seeded(7, dropped)
        got = train.fit(net, data, objective, recipe, checkpoint=path, **options)
    assert torch.equal(weights(net), weights(whole))
    pd.testing.assert_frame_equal(got, want)
    assert steps.count("done") == 3 * 4


def test_checkpoints_go_by_the_clock(tmp_path, monkeypatch):
    saves = []
    monkeypatch.setattr(train, "_save", lambda path, state: saves.append(state["epoch"]))
    train.fit(build(), images(), OBJECTIVE, RECIPE, checkpoint=tmp_path / "net.pt")
    assert saves == [3]  # nothing was due but the end


@pytest.mark.parametrize("bf16", [False, True])
def test_a_stacked_grid_augments_and_casts_like_single_trainings(bf16):
    data = images()
    cells = [train.Cell(loss, seed, 2) for loss in (CE, MSE) for seed in (0, 1)]
    recipe = replace(RECIPE, bf16=bf16)
    stacked, apart = (
        train.grid(build, cells, data, recipe, together=together, augment=crop_and_flip)
        for together in (True, False)
    )
    for one, two in zip(stacked, apart, strict=True):
        start = weights(nets.seeded(one.cell.seed, build))
        travelled = (weights(two.net) - start).norm()
        apart_by = (weights(one.net) - weights(two.net)).norm()
        assert apart_by < (0.15 if bf16 else 1e-4) * travelled
    plain = train.grid(build, cells, data, recipe)
    assert not torch.allclose(weights(plain[0].net), weights(stacked[0].net), atol=1e-3)
