"""On a GPU: training and metrics against plain code, start-up and steady state apart.

``python -m tests.benchmarks.gpu [--out DIR] [--only PART]`` first checks that a replayed training
is the training, then prints tables and writes them as ``gpu.csv``.  Two minutes, in one process.
``floor_s`` is the roofline: the larger of operations over the card's rate and bytes over its
bandwidth, both measured.
"""

import contextlib
import time
import warnings
from dataclasses import replace
from pathlib import Path

import click
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nclib import losses
from nclib.deep import graphs, nets, train
from nclib.metrics import nc_metrics
from tests.benchmarks import metrics
from tests.benchmarks.nets import LOSSES, images, plain_training

CE = losses.get("ce")
RECIPE = train.Recipe(3, 0.05, 128, weight_decay=5e-4)
OBJECTIVE = lambda net, x, y: CE(net(x), y)
RESNET = lambda: nets.resnet(18, 10, in_channels=1)
DROPPED = lambda: nets.Classifier(
    nn.Sequential(nets.cnn([8, 16, 64], 10).backbone, nn.Dropout(0.1)), nn.Linear(64, 10)
)
MLP = lambda: nets.mlp([784, 64, 32], 10)


def weights(net):
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


def apart(found, wanted, start):
    """Distance of two trained nets over the way from their start."""
    return float(
        (weights(found) - weights(wanted)).norm() / (weights(start) - weights(wanted)).norm()
    )


def checks(device):
    """Nets of replayed and of ordinary trainings: their distance relative to the way they went."""
    data = images(3000, 28, device=device)

    def trained(fast, build, objective, **changes):
        torch.manual_seed(0)  # of the dropout
        net = nets.seeded(0, build).to(device)
        train.fit(net, data, objective, replace(RECIPE, fast=fast, clip=1.0, **changes))
        return net

    def looks(net, x, y):  # at a number: cannot be recorded
        loss = CE(net(x), y)
        return loss if loss.item() < 1e9 else 2 * loss

    watch = graphs.Watch
    for name, build, objective, changes in (
        ("cnn with dropout", DROPPED, OBJECTIVE, {}),
        ("ResNet-18", RESNET, OBJECTIVE, {"epochs": 1, "lr": 1e-3}),
        ("Adam", DROPPED, OBJECTIVE, {"optimizer": "adam", "lr": 1e-3}),
        ("not recorded", DROPPED, looks, {}),
        ("failed recording", DROPPED, looks, {}),
        ("after it", DROPPED, OBJECTIVE, {}),
    ):
        graphs.Watch = contextlib.nullcontext if name == "failed recording" else watch
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pair = [trained(fast, build, objective, **changes) for fast in (True, False)]
        said = [str(one.message) for one in caught if "CUDA graph" in str(one.message)]
        print(f"  {name:40}", apart(*pair, nets.seeded(0, build).to(device)), said, flush=True)
    cells = [train.Cell(loss, seed, 2 + seed) for loss in LOSSES for seed in (0, 1)]
    flat = data.flat()
    pair = [train.grid(MLP, cells, flat, RECIPE, together=together) for together in (True, False)]
    for one, two in zip(*pair, strict=True):
        start = nets.seeded(one.cell.seed, MLP).to(device)
        print(
            f"  {f'stack, {one.cell.loss}, seed {one.cell.seed}':40}",
            apart(one.net, two.net, start),
        )


def epochs(train_for):
    """``(seconds before the second epoch, seconds per epoch after it, seconds in all)``."""
    torch.cuda.synchronize()
    times = [time.perf_counter()]

    def tick(*_):
        torch.cuda.synchronize()
        times.append(time.perf_counter())
        return {}

    train_for(tick)
    steps = [b - a for a, b in zip(times[1:], times[2:], strict=False)][1:]
    steady = min(steps)
    return times[2] - times[0] - steady, steady, times[-1] - times[0]


def plain(net, data, count, tick):
    """A DataLoader loop as in any tutorial."""
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.inputs.cpu(), data.labels.cpu()),
        batch_size=128, shuffle=True, pin_memory=True,
    )  # fmt: skip
    optimizer = torch.optim.SGD(net.train().parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    tick()
    for _ in range(count):
        for x, y in loader:
            loss = nn.functional.cross_entropy(net(x.cuda()), y.cuda())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        tick()


def single(tf32):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32


def engines(device, rates):
    """Rows: ResNet-18 on 60 000 images at batches of 128; an epoch's floor is of its products."""
    data, found = images(60_000, 28, device=device), []
    with FlopCounterMode(display=False) as products:
        OBJECTIVE(RESNET().to(device), data.inputs[:100], data.labels[:100]).backward()
    floor = 600 * products.get_total_flops() / rates["half"]
    for name, tf32 in (("plain loop, float32", False), ("plain loop, TF32", True)):
        single(tf32)
        net = nets.seeded(0, RESNET).to(device)
        found.append((name, *epochs(lambda tick, net=net: plain(net, data, 2, tick))))
    for name, changes in (
        ("train.fit", {}),
        ("train.fit, bf16", {"bf16": True}),
        ("train.fit, not replayed", {"fast": False}),
    ):
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False
        net, recipe = nets.seeded(0, RESNET).to(device), replace(RECIPE, epochs=10, **changes)
        recipe = replace(recipe, epochs=2) if "fast" in changes else recipe
        fit = lambda tick, net=net, recipe=recipe: train.fit(
            net, data, OBJECTIVE, recipe, measure=tick
        )
        found.append((name, *epochs(fit)))
    found = pd.DataFrame(found, columns=["what", "start_s", "epoch_s", "all_s"])
    return found.assign(floor_s=floor)


def median(function, *arguments, repeats=9):
    function(*arguments)
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        function(*arguments)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def measures(device, rates):
    """Rows: NC1-NC4 of features on the device, ours and the peer's algorithm there."""
    found = []
    for N, d, K in ((60_000, 512, 10), (60_000, 512, 100), (50_000, 2048, 1000)):
        inputs, labels, weight = (x.to(device) for x in metrics.features(N, d, K, 0.01))
        batches = list(zip(inputs.split(1024), labels.split(1024), strict=True))
        ours = nc_metrics(inputs, labels, weight)
        seconds = median(nc_metrics, inputs, labels, weight)
        with device:  # so that the baseline makes its tensors there
            theirs = metrics.plain(batches, weight, N, d, K)
            slower = median(metrics.plain, batches, weight, N, d, K, repeats=3)
        gap = max(abs(ours[key] / theirs[key] - 1) for key in theirs if theirs[key])
        task = metrics.in_memory(N, d, K, 0.01)
        floor = max(task.bytes / rates["bandwidth"], task.flops / rates["single"])
        found.append((f"NC1-NC4, N={N}, d={d}, K={K}", seconds, slower, floor, gap))
    return pd.DataFrame(found, columns=["what", "ours_s", "baseline_s", "floor_s", "difference"])


def stacks(device, rates):
    """Rows: 4 losses × 3 seeds of a small MLP, stacked, against plain loops."""
    data = images(6000, 28, device=device).flat()
    recipe = replace(RECIPE, epochs=5)
    cells = [train.Cell(loss, seed, 5) for loss in LOSSES for seed in range(3)]
    ours = median(train.grid, MLP, cells, data, recipe, repeats=2)

    def loops():
        for cell in cells:
            net = nets.seeded(cell.seed, MLP).to(device)
            plain_training(net, data, cell.loss, recipe, cell.seed)

    found = [("12 MLPs, 5 epochs of 6 000 images, with start", ours, median(loops, repeats=1))]
    return pd.DataFrame(found, columns=["what", "ours_s", "baseline_s"])


def card(device):
    """Memory bandwidth (read and written) and rates of products in bfloat16 and float32."""
    many, square = torch.randn(2**29, device=device), torch.randn(8192, 8192, device=device)
    other, half = torch.empty_like(many), square.bfloat16()
    return {
        "bandwidth": 2 * many.nbytes / median(lambda: other.copy_(many)),
        "half": 2 * 8192**3 / median(lambda: half @ half),
        "single": 2 * 8192**3 / median(lambda: square @ square),
    }


PARTS = {"engines": engines, "stacks": stacks, "measures": measures}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("."))
@click.option("--only", multiple=True, type=click.Choice(["checks", *PARTS]))
def main(out, only):
    device = torch.device("cuda")
    print(torch.cuda.get_device_name(), torch.__version__, torch.version.cuda, flush=True)
    rates, tables = card(device), []
    print(rates, flush=True)
    if not only or "checks" in only:
        checks(device)
    for name, rows in PARTS.items():
        if not only or name in only:
            tables.append(rows(device, rates))
            print(tables[-1].to_string(), flush=True)
            pd.concat(tables).assign(**rates).to_csv(out / "gpu.csv", index=False)


if __name__ == "__main__":
    main()
