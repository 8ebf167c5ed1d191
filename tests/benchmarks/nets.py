"""Rows: grids of small nets, and the training engine against a plain loop."""

import multiprocessing
from dataclasses import replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nclib import losses
from nclib.deep import nets, train
from nclib.deep.data import Data
from tests.benchmarks.harness import Row, Task

LOSSES = (
    losses.get("ce"),
    losses.get("ls", alpha=0.1),
    losses.get("fl", gamma=3.0),
    losses.get("mse", tau=None, scale=15.0),
)


def images(N, size, channels=1, device="cpu"):
    """Random images around ten class means."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % 10
    means = torch.randn(10, channels, size, size, generator=draw)
    inputs = means[labels] + torch.randn(N, channels, size, size, generator=draw)
    return Data("images", inputs.to(device), labels.to(device), 10)


def plain_training(net, data, loss, recipe, seed):
    """A training loop as in any tutorial; returns the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(
        net.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay
    )
    order = torch.Generator().manual_seed(seed)
    net.train()
    for epoch in range(recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(epoch)
        total, count = 0.0, 0
        for index in torch.randperm(len(data), generator=order).split(recipe.batch_size):
            value = loss(net(data.inputs[index]), data.labels[index])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total, count = total + value.item(), count + 1
    return total / count


def builder(architecture, size):
    if architecture == "mlp":
        return lambda: nets.mlp([size * size, 64, 32], 10)
    return lambda: nets.cnn([8, 16, 64], 10, strides=[2, 2, 2])


def grid(architecture, way, N, size, epochs, seeds):
    data = images(N, size)
    data = data.flat() if architecture == "mlp" else data
    build = builder(architecture, size)
    fast = architecture == "cnn" and way != "together"
    recipe = train.Recipe(epochs, 0.05, 100, weight_decay=5e-4, schedule="cosine", fast=fast)
    cells = [train.Cell(loss, seed, epochs) for loss in LOSSES for seed in range(seeds)]
    name = lambda cell: f"{cell.loss}-{cell.seed}"

    def ours():
        if way == "processes":
            stacked = architecture == "mlp"
            halves = [(architecture, size, cells[i::2], data, recipe, stacked) for i in range(2)]
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                parts = pool.starmap(_half, halves)
            return {key: value for part in parts for key, value in part.items()}
        measure = lambda net, cell, epoch: {}
        found = train.grid(build, cells, data, recipe, measure=measure, together=way == "together")
        return {name(t.cell): t.history["train_loss"].iloc[-1] for t in found}

    def baseline():
        return {
            name(cell): plain_training(
                nets.seeded(cell.seed, build), data, cell.loss, recipe, cell.seed
            )
            for cell in cells
        }

    return Task(ours, baseline)


def _half(architecture, size, cells, data, recipe, together):
    torch.set_num_threads(1)
    build = builder(architecture, size)
    found = train.grid(
        build, cells, data, recipe, measure=lambda *_: {}, together=together, label="half"
    )
    return {f"{t.cell.loss}-{t.cell.seed}": t.history["train_loss"].iloc[-1] for t in found}


def engine(N, size, depth, epochs):
    """One net: :func:`nclib.deep.train.fit` against a DataLoader."""
    data = images(N, size)
    recipe = train.Recipe(epochs, 0.05, 128, weight_decay=5e-4)
    make = lambda: nets.seeded(0, nets.cnn, [depth, 2 * depth, 64], 10, strides=[2, 2, 2])
    loss = losses.get("ce")

    def ours():
        fast = replace(recipe, fast=True)
        history = train.fit(make(), data, lambda net, x, y: loss(net(x), y), fast)
        return {"train_loss": history["train_loss"].iloc[-1]}

    def baseline():
        order = torch.Generator().manual_seed(0)
        rows = torch.utils.data.TensorDataset(data.inputs, data.labels)
        loader = torch.utils.data.DataLoader(rows, batch_size=128, shuffle=True, generator=order)
        net = make().train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        for _ in range(epochs):
            total = 0.0
            for x, y in loader:
                value = nn.functional.cross_entropy(net(x), y)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                total += value.item()
        return {"train_loss": total / len(loader)}

    with FlopCounterMode(display=False) as counter:
        loss(make()(data.inputs[:128]), data.labels[:128]).backward()
    flops = counter.get_total_flops() * len(data) / min(128, len(data)) * epochs
    return Task(ours, baseline, flops=flops)


TOY = {"N": 200, "size": 8, "epochs": 2, "seeds": 1}
MLP = {"N": 600, "size": 8, "epochs": 40, "seeds": 3}
CNN = {"N": 600, "size": 28, "epochs": 4, "seeds": 3}
WAYS = (
    ("mlp", "together", "4 losses × 3 seeds of a small MLP, stacked in one program", MLP, 2),
    (
        "mlp",
        "processes",
        "4 losses × 12 seeds of a small MLP, stacked in two processes, with start",
        MLP | {"seeds": 12, "epochs": 240},
        4,
    ),
    ("cnn", "together", "4 losses × 3 seeds of a small CNN, stacked in one program", CNN, 1),
    ("cnn", "apart", "4 losses × 3 seeds of a small CNN, one by one, channels-last", CNN, 1),
    (
        "cnn",
        "processes",
        "4 losses × 6 seeds of a small CNN, two processes, with start",
        CNN | {"seeds": 6, "epochs": 24},
        1.5,
    ),
)
ROWS = [
    Row(
        f"grid-{architecture}-{way}",
        f"{words}; baseline: a plain loop",
        grid,
        {"architecture": architecture, "way": way} | full,
        {"architecture": architecture, "way": way} | TOY,
        goal=goal,
        tolerance=0.05,  # float32 trainings of different rounding part in the long run
    )
    for architecture, way, words, full, goal in WAYS
] + [
    Row(
        "engine",
        "one net on 6000 images, twice; baseline: DataLoader",
        engine,
        {"N": 6000, "size": 28, "depth": 16, "epochs": 2},
        {"N": 256, "size": 8, "depth": 4, "epochs": 1},
        goal=1,
        tolerance=0.05,
    )
]  # fmt: skip
