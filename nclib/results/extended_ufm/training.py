"""Result 5 on networks: a head with a known floor, and collapse block by block.

Both studies return tidy DataFrames, one row per measured epoch (and block).
"""

import pandas as pd
import torch
from torch import nn

from nclib import checks
from nclib.deep import collect, nets, train
from nclib.deep.data import Data
from nclib.metrics import frame_distances
from nclib.metrics.geometry import class_means
from nclib.results.extended_ufm.metrics import layer_table
from nclib.results.extended_ufm.nets import (
    RegularisedHead,
    block_features,
    blocks,
    half_squared_error,
)

ARCHITECTURES = ("mlp", "cnn", "resnet18")
LOSSES = {"mse": half_squared_error, "ce": nn.functional.cross_entropy}

__all__ = [
    "ARCHITECTURES",
    "LOSSES",
    "backbone",
    "bridge",
    "depth_profile",
    "last_two_blocks",
    "measure_points",
]


def backbone(widths):
    """Plain fully connected net ``[inputs, hidden…, d]``: ReLU between, linear at the end."""
    layers = [nn.Flatten()]
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        checks.integer("width", outputs)
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def measure_points(epochs, count):
    """About ``count`` log-spaced epochs from 1 to ``epochs``, and 0."""
    return sorted({0} | {round(epochs ** (i / max(count - 1, 1))) for i in range(count)})


def bridge(data, heads, recipe, *, widths, points=24, seed=0, checkpoint=None):
    """A network trained on the objective of the theory: ``features`` from it, head regularised.

    Args:
        data: training data, its classes of any sizes.
        heads: name -> keyword arguments of :class:`~nets.RegularisedHead` (``lambdas,
            lambda_h`` and maybe ``bias, relu``); hidden layers of a head have the feature width.
        recipe: :class:`~nclib.deep.train.Recipe`; full batch for an exact floor.
        widths: hidden widths and feature dimension of the network.

    Columns: ``head, epoch, loss, floor, excess`` = loss / floor − 1, ``norm_sq`` and its
    ``norm_sq_theory`` (means over classes), ``of, etf`` of the class means, ``of_w, etf_w`` of the
    end-to-end weight.
    """
    counts = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    inputs, tables = data.inputs[0].numel(), []
    for name, options in heads.items():

        def build(options=options):
            shape = [widths[-1]] * len(options["lambdas"])
            head = RegularisedHead(shape, counts, **options)
            return nets.Classifier(backbone([inputs, *widths]), head)

        net = nets.seeded(seed, build).to(data.inputs.device)
        history = train.fit(
            net,
            data,
            lambda net, x, y: net.head.loss(net.features(x), y),
            recipe,
            seed=seed,
            measure=lambda net, _: _against_floor(net, data),
            measure_at=measure_points(recipe.epochs, points),
            checkpoint=checkpoint and checkpoint(name),
            label=name,
        )
        tables.append(history.assign(head=name))
    return pd.concat(tables, ignore_index=True)


def _against_floor(net, data):
    features = collect.features(net, data.inputs)
    with torch.no_grad():
        loss = float(net.head.loss(features, data.labels))
    point, means = net.head.optimum(), class_means(features, data.labels)[0]
    weight = frame_distances(net.head.weight.detach(), centre=False)
    return {
        "loss": loss,
        "floor": point.value,
        "excess": loss / point.value - 1,
        "norm_sq": means.square().sum(1).mean(),
        "norm_sq_theory": point.feature_norms_sq.mean(),
        **frame_distances(means),
        "of_w": weight["of"],
        "etf_w": weight["etf"],
    }


def _net(architecture, data, bias, width):
    checks.choice("architecture", architecture, ARCHITECTURES)
    K, channels = data.num_classes, data.inputs.shape[1]
    if architecture == "mlp":
        return nets.mlp([data.inputs[0].numel(), *[int(width)] * 3], K, bias=bias)
    if architecture == "cnn":
        channels_out = [int(width), 2 * int(width), 4 * int(width)]
        return nets.cnn(channels_out, K, in_channels=channels, bias=bias)
    return nets.resnet(18, K, width=width, in_channels=channels, bias=bias)


def require_layers(architecture, **names):
    """Raise :class:`~nclib.checks.InputError` unless the network has modules of these names.

    ``names``: name of a parameter -> its value, as for :func:`depth_profile`; None is the default.
    """
    pixel = Data("one pixel", torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64), 2)
    for parameter, listed in names.items():
        if listed is not None:  # modules depend neither on the width nor on the data
            modules = dict(_net(architecture, pixel, True, 1).named_modules())
            for name in listed:
                checks.choice(f"parameter {parameter}", name, list(modules)[1:])


def depth_profile(
    train_data, test_data, configurations, recipe, *, architecture, width, names=None,
    points=12, seed=0, augment=None, checkpoint=None
):  # fmt: skip
    """Collapse block by block, for several losses: ``(per block, per epoch)`` tables.

    Args:
        configurations: name -> (``"mse"`` or ``"ce"``, bias of the last layer: bool).
        architecture, width: ``mlp`` (three blocks Linear-BatchNorm-ReLU of ``width``), ``cnn``
            (``width``, 2·``width``, 4·``width`` channels) or ``resnet18`` (``width``: factor).
        names: modules to look at; default: stages or ReLUs, feature maps averaged over positions.

    Columns per block: ``net, epoch, layer, block`` (1, 2, …) and those of
    :func:`~metrics.layer_table`.  Per epoch: ``net, epoch, train_loss, objective``
    (loss plus weight decay on the training set), ``of_w, etf_w``, accuracies in percent.
    """
    deep, overall = [], []
    for name, (loss, bias) in configurations.items():
        loss_of = LOSSES[checks.choice("loss", loss, LOSSES)]
        net = nets.seeded(seed, lambda bias=bias: _net(architecture, train_data, bias, width))
        net = net.to(train_data.inputs.device)
        probed = blocks(net) if names is None else list(names)

        def measure(net, epoch, loss_of=loss_of, probed=probed):
            found = _profile(net, train_data, probed)
            logits = collect.logits(net, train_data.inputs)
            decay = (
                recipe.weight_decay
                / 2
                * sum(float(p.detach().square().sum()) for p in net.parameters())
            )
            weight = frame_distances(net.weight, centre=False)
            correct = (logits.argmax(1) == train_data.labels).double().mean()
            return found | {
                "objective": float(loss_of(logits, train_data.labels)) + decay,
                "of_w": weight["of"],
                "etf_w": weight["etf"],
                "train_accuracy": 100 * float(correct),
                "test_accuracy": 100 * collect.accuracy(net, test_data),
            }

        history = train.fit(
            net,
            train_data,
            lambda net, x, y, loss_of=loss_of: loss_of(net(x), y),
            recipe,
            seed=seed,
            measure=measure,
            measure_at=measure_points(recipe.epochs, points),
            checkpoint=checkpoint and checkpoint(name),
            augment=augment,
            label=name,
        )
        flat = [column for column in history if "|" in column]
        overall.append(history.drop(columns=flat).assign(net=name))
        deep.append(_unfold(history[["epoch", *flat]]).assign(net=name))
    return pd.concat(deep, ignore_index=True), pd.concat(overall, ignore_index=True)


def last_two_blocks(deep, overall, net):
    """Curves of one net for a comparison with the two-layer model: the last block as layer ``H2``,
    the one before as ``H1``; columns ``epoch, layer, excess`` (the objective itself), ``nc1, of``.
    """
    own, top = deep[deep["net"] == net], deep["block"].max()
    own = own[own["block"] >= top - 1]
    layer = own["block"].map({top: "H2", top - 1: "H1"})
    objective = overall[overall["net"] == net].set_index("epoch")["objective"]
    table = own.assign(layer=layer, excess=own["epoch"].map(objective))
    return table[["epoch", "layer", "excess", "nc1", "of"]].reset_index(drop=True)


def _profile(net, data, probed):
    """The layer table as one flat dict ``block|layer|metric`` -> value (what ``fit`` can store)."""
    table = layer_table(block_features(net, data.inputs, probed), data.labels)
    return {
        f"{row + 1}|{table['layer'][row]}|{metric}": table[metric][row]
        for row in range(len(table))
        for metric in table.columns[1:]
    }


def _unfold(history):
    long = history.melt(id_vars="epoch")
    long[["block", "layer", "metric"]] = long["variable"].str.split("|", expand=True)
    long["block"] = long["block"].astype(int)
    wide = long.pivot(index=["epoch", "block", "layer"], columns="metric", values="value")
    return wide.reset_index().rename_axis(columns=None)
