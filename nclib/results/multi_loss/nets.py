"""Result 1 on networks: one net per loss, width, training length and seed, compared.

Every (loss, width, epochs, seed) is its own run with its own learning-rate schedule; the nets of
one seed share initial weights and batches, whatever their loss.
"""

from dataclasses import dataclass

import pandas as pd
import torch

from nclib import checks
from nclib.deep import collect, nets, train
from nclib.deep import data as image_data
from nclib.metrics import nc_metrics

ARCHITECTURES = ("mlp", "cnn", "resnet18", "resnet50")


@dataclass(frozen=True)
class Study:
    """``runs``: one row per net (accuracies, metrics, agreement with cross-entropy); ``curves``:
    metrics against epochs, where they were asked for; ``nets``: (loss, width, epochs, seed) -> net.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    nets: dict


def require(architecture, *, widths, dataset, train_per_class, validation):
    """Say now what :func:`study` would say later: for a notebook's first cell.

    The arguments are the notebook's parameters.  Raises :class:`~nclib.checks.InputError` for
    widths that the architecture does not have, for a data set that is not here or too small, and
    for a validation share that leaves too little on either side.
    """
    nets.require_widths(architecture, widths=widths)
    image_data.require(dataset, {"train_per_class": train_per_class})
    images = image_data.smallest_class(dataset, train_per_class)[0]
    if validation and (validation * images < 1 or (1 - validation) * images < 10):
        raise checks.InputError(
            "parameter validation must leave one image per class to validate and ten to train, "
            f"got {validation} of {images}; raise train_per_class or set validation=0"
        )


def builder(architecture, width, data):
    """``() -> net`` for one of :data:`ARCHITECTURES`; the feature dimension ignores ``width``.

    ``mlp``: inputs-width-32; ``cnn``: width-2·width-64 channels; the ResNets as in
    :func:`nclib.deep.nets.resnet` (ResNet-18 scales its feature dimension too).
    """
    checks.choice("architecture", architecture, ARCHITECTURES)
    K, channels = data.num_classes, data.inputs.shape[1]
    if architecture == "mlp":
        inputs = data.inputs[0].numel()
        return lambda: nets.mlp([inputs, int(width), 32], K)
    if architecture == "cnn":
        shape = [int(width), 2 * int(width), 64]
        return lambda: nets.cnn(shape, K, in_channels=channels, strides=[2, 2, 2])
    depth = int(architecture.removeprefix("resnet"))
    return lambda: nets.resnet(depth, K, width=width, in_channels=channels)


def study(
    named_losses,
    train_data,
    test_data,
    recipe,
    *,
    architecture,
    widths,
    epochs,
    seeds,
    validation=0.0,
    curve_points=12,
    checkpoint=None,
    augment=None,
):
    """Train all combinations and compare them; returns a :class:`Study`.

    Args:
        named_losses: name -> loss of :mod:`nclib.losses`.
        train_data, test_data: :class:`nclib.deep.data.Data`.
        recipe: :class:`nclib.deep.train.Recipe`; its ``epochs`` is replaced by each of ``epochs``.
        widths, epochs, seeds: the grid.
        validation: share of the training data held out; if positive, the accuracy kept is that of
            the measured epoch with the best validation accuracy (the first one, if tied), else
            that of the last epoch.
        curve_points: epochs (log-spaced) at which the longest runs of the widest net are measured.
        checkpoint: ``width -> path``, or ``None``.
    """
    held_out = None
    if validation:
        generator = torch.Generator().manual_seed(0)
        held_out, train_data = train_data.split(validation, generator=generator)
    cells = [
        train.Cell(loss, seed, length, {"loss": name})
        for length in epochs
        for name, loss in named_losses.items()
        for seed in seeds
    ]
    longest = max(epochs)
    points = sorted({round(longest ** (i / (curve_points - 1))) for i in range(curve_points)})

    def measure(net, cell, epoch):
        found = {"test_accuracy": 100 * collect.accuracy(net, test_data)}
        if held_out is not None:
            found["validation_accuracy"] = 100 * collect.accuracy(net, held_out)
        if epoch and (epoch == cell.epochs or cell.epochs == longest):
            found |= _collapse(net, train_data)
        return found

    runs, curves, found_nets = [], [], {}
    for width in widths:
        trained = train.grid(
            builder(architecture, width, train_data),
            cells,
            train_data,
            recipe,
            measure=measure,
            measure_at=points if width == max(widths) or validation else (),
            checkpoint=checkpoint and checkpoint(width),
            together=architecture == "mlp",
            augment=augment,
            label=f"width {width}",
        )
        for one in trained:
            key = {"loss": one.cell.tags["loss"], "width": width}
            key |= {"epochs": one.cell.epochs, "seed": one.cell.seed}
            found_nets[tuple(key.values())] = one.net
            runs.append(key | _row(one.history))
            if width == max(widths) and one.cell.epochs == longest:
                curves.append(one.history.query("epoch > 0").assign(**key))
    runs = pd.DataFrame(runs)
    runs["agreement"] = _agreement(runs, found_nets, train_data)
    return Study(runs, pd.concat(curves, ignore_index=True), found_nets)


def _row(history):
    """The last measured epoch; its test accuracy that of the best epoch, if one was validated."""
    kept = history.iloc[-1]
    if "validation_accuracy" in history:
        kept = history.iloc[history["validation_accuracy"].argmax()]
    final = history.iloc[-1].drop(["epoch", "lr"]).to_dict()
    return final | {"test_accuracy": kept["test_accuracy"]}


def _collapse(net, data):
    features = collect.features(net, data.inputs)
    logits = collect.in_batches(net.head, features)
    own = torch.log_softmax(logits.detach(), 1).gather(1, data.labels[:, None]).exp()
    return nc_metrics(features, data.labels, net.weight, net.bias) | {
        "train_accuracy": 100 * float((logits.argmax(1) == data.labels).double().mean()),
        # 0.0585 bounds the focal loss's convexity threshold t_c for every gamma (claim 1.L10).
        "share_below_threshold": float((own < 0.0585).double().mean()),
        "median_probability": float(own.median()),
    }


def class_logits(net, data):
    """Mean logits of each class, centred over outputs and scaled to norm 1: ``(K, K)``."""
    logits = collect.logits(net, data.inputs).double()
    sums = torch.zeros(data.num_classes, data.num_classes, dtype=torch.float64)
    means = sums.to(logits.device).index_add_(0, data.labels, logits)
    means = means / torch.bincount(data.labels)[:, None]
    centred = means - means.mean(1, keepdim=True)
    return centred / centred.norm()


def _agreement(runs, found_nets, data):
    """Distance of the normalised class logits to those of cross-entropy, same cell and seed."""
    distances = []
    for row in runs.itertuples():
        own = class_logits(found_nets[row.loss, row.width, row.epochs, row.seed], data)
        other = class_logits(found_nets["ce", row.width, row.epochs, row.seed], data)
        distances.append(float((own - other).norm()))
    return distances


def equivalence(runs):
    """Per width and epochs, over losses × seeds (claim 1.L17).

    ``variance``: population variance of the test accuracy over all nets; ``largest_gap``: largest
    ``|mean accuracy of cross-entropy - mean of another loss|`` in points; ``f_statistic``: variance
    between losses over variance between seeds (expected value 1 if losses do not matter).
    """
    rows = []
    for (width, epochs), part in runs.groupby(["width", "epochs"]):
        table = part.pivot(index="loss", columns="seed", values="test_accuracy")
        means = table.mean(axis=1)
        within = table.var(axis=1, ddof=1).mean() if table.shape[1] > 1 else float("nan")
        rows.append(
            {
                "width": width,
                "epochs": epochs,
                "variance": float(table.to_numpy().var()),
                "largest_gap": float((means - means["ce"]).abs().max()),
                "f_statistic": float(table.shape[1] * means.var(ddof=1) / within),
            }
        )
    return pd.DataFrame(rows)


def gaps(runs):
    """``|Acc_CE - Acc_loss|`` in points, means over seeds: one row per loss, width, epochs."""
    means = runs.groupby(["loss", "width", "epochs"])["test_accuracy"].mean().reset_index()
    plain = means.query("loss == 'ce'").drop(columns="loss")
    joined = means.merge(plain, on=["width", "epochs"], suffixes=("", "_ce"))
    joined["gap"] = (joined["test_accuracy"] - joined["test_accuracy_ce"]).abs()
    return joined
