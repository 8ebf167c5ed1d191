"""Networks of result 3: learned and frozen classifiers, their objective, their collapse.

A network is trained with the pick-all-label loss (or binary cross-entropy) plus weight decay and a
feature penalty ``feature_decay * mean ‖h‖²``; in the terms of the theory ``lambda_w`` is
``weight_decay/2`` and ``lambda_h`` is ``feature_decay/N``.
"""

import re
from dataclasses import dataclass
from itertools import product
from math import prod

import pandas as pd
import torch
from torch import nn

from nclib import checks, frames
from nclib.deep import collect, nets, train
from nclib.losses import pick_all_labels
from nclib.metrics.multi_label import multi_label_metrics
from nclib.results.multi_label import theory
from nclib.table import extreme

# Architectures and what a figure calls them.
NAMES = {
    "cnn": "CNN, ReLU features, pooled",
    "mlp": "MLP, linear features",
    "mlp_relu": "MLP, ReLU features",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "vgg16": "VGG-16",
    "vgg19": "VGG-19",
}
DIMS = {"cnn": 64, "mlp": 32, "mlp_relu": 32, "resnet50": 2048}  # features; the others: 512
WITH, WITHOUT = "trained on pairs", "never saw a pair"
LOSSES = ("pal", "bce")


def build(architecture, K, shape, *, channels=(32, 64, 128), feature_dim=None, frozen=False):
    """A :class:`nclib.deep.nets.Classifier` of K classes for images of this ``shape (C, h, w)``.

    ``cnn``: ``channels`` and then ``feature_dim`` (default 64) channels; ``mlp``: pixels-512-512-
    ``feature_dim`` (32) with *linear* features, ``mlp_relu`` the same with batch norm and ReLU
    features; the others as in the paper, 3×3 stem, 512 features (ResNet-50: 2048).

    ``frozen=True`` fixes W at the simplex ETF with unit rows and, unless ``feature_dim`` says
    otherwise, shrinks the last block to d = K features: the paper's parameter-efficient training.
    The bias stays trainable.
    """
    checks.choice("architecture", architecture, NAMES)
    in_channels, usual = shape[0], DIMS.get(architecture, 512)
    d = feature_dim or (K if frozen else usual)
    if architecture == "cnn":
        strides = [1] + [2] * (len(channels) - 1) + [1]
        net = nets.cnn([*channels, d], K, in_channels=in_channels, strides=strides)
    elif architecture.startswith("mlp"):
        relu = architecture == "mlp_relu"
        widths = [prod(shape), 512, 512, d]
        net = nets.mlp(widths, K, final_relu=relu, final_norm=relu)
    elif architecture.startswith("resnet"):
        net = nets.resnet(int(architecture[6:]), K, in_channels=in_channels)
        if d != usual:
            _shrink_resnet(net, d)
    else:
        net = _vgg(int(architecture[3:]), K, in_channels, d)
    if frozen:
        freeze_simplex(net)
    # Twice as fast as the default layout for small convolutions on a CPU, and right on a GPU.
    return net.to(memory_format=torch.channels_last)


def freeze_simplex(net):
    """Fix ``net.head.weight`` at ``√(K/(K-1)) (I - 11ᵀ/K)`` in the first K feature coordinates.

    In these coordinates the aligned features are nonnegative, so ReLU features can reach them.
    """
    K, d = net.head.weight.shape
    if d < K:
        raise checks.InputError(f"a frozen simplex ETF needs d >= K={K} features, got d={d}")
    etf = frames.centring(K) * (K / (K - 1)) ** 0.5
    with torch.no_grad():
        net.head.weight.copy_(nn.functional.pad(etf, (0, d - K)))
    net.head.weight.requires_grad_(False)


def _shrink_resnet(net, d):
    """Let the last residual block put out d channels, with a projected shortcut."""
    block, K = net.backbone.layer4[-1], net.head.out_features
    last = 3 if hasattr(block, "conv3") else 2
    conv = getattr(block, f"conv{last}")
    narrow = nn.Conv2d(conv.in_channels, d, conv.kernel_size, padding=conv.padding, bias=False)
    shortcut = nn.Conv2d(block.conv1.in_channels, d, 1, bias=False)
    for layer in (narrow, shortcut):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    setattr(block, f"conv{last}", narrow)
    setattr(block, f"bn{last}", nn.BatchNorm2d(d))
    block.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(d))
    net.head = nn.Linear(d, K)


def _vgg(depth, K, in_channels, d):
    from torchvision import models

    layers = models.vgg16_bn().features if depth == 16 else models.vgg19_bn().features
    layers[0] = nn.Conv2d(in_channels, 64, 3, padding=1)
    if d != 512:  # the last convolution, before its batch norm, ReLU and pooling
        layers[-4], layers[-3] = nn.Conv2d(512, d, 3, padding=1), nn.BatchNorm2d(d)
    backbone = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nets.Classifier(backbone, nn.Linear(d, K))


def objective(loss="pal", *, reduction="sum", feature_decay=0.0):
    """``(net, inputs, targets) -> loss + feature_decay * mean ‖h‖²`` for the trainer.

    ``loss`` "pal", or "bce": binary cross-entropy per label, summed over the classes.
    """
    checks.choice("loss", loss, LOSSES)
    checks.real("feature_decay", feature_decay, at_least=0)

    def evaluate(net, inputs, targets):
        features = net.features(inputs)
        penalty = feature_decay * features.square().sum(1).mean()
        return data_loss(net.head(features), targets, loss, reduction) + penalty

    return evaluate


def data_loss(logits, targets, loss="pal", reduction="sum"):
    """The mean loss of a batch without penalties, one of :data:`LOSSES`."""
    if loss == "pal":
        return pick_all_labels(logits, targets, reduction)
    mean = nn.functional.binary_cross_entropy_with_logits(logits, targets)
    return mean * targets.shape[1]


def outputs(net, inputs):
    """``(features, logits)`` in eval mode."""
    features = collect.features(net, inputs)
    with collect.evaluation(net):
        return features, net.head(features)


def measure(net, data, *, loss="pal", reduction="sum"):
    """Collapse of ``net`` on ``data`` in eval mode, as a flat dict of floats.

    ``data_loss`` (without penalties), ``nc1, nc2_centered, nc2_means, nc3``; per multiplicity m of
    the data ``margin_m`` (in-set minus out-of-set logit), ``soft_iou_m`` and, for m >= 2,
    ``scale_m, residual_m, angle_m, degrees_m``; the official code's ``official_nc1,
    official_nc2_means, official_nc3, official_angle`` (nc2 agrees).
    """
    features, logits = outputs(net, data.inputs)
    found = {"data_loss": float(data_loss(logits, data.labels, loss, reduction))}
    head = (net.weight, net.bias)
    clean = multi_label_metrics(features, data.labels, *head)
    official = multi_label_metrics(features, data.labels, *head, convention="official")
    found |= {name: clean[name] for name in ("nc1", "nc2_centered", "nc2_means", "nc3")}
    for m, angle in clean["angle"].items():
        found |= {f"angle_{m}": angle.ratio, f"degrees_{m}": angle.degrees}
        found |= {f"scale_{m}": clean["scale"][m], f"residual_{m}": clean["tagwise_residual"][m]}
    found |= {f"official_{name}": official[name] for name in ("nc1", "nc2_means", "nc3")}
    if 2 in official["angle"]:
        found["official_angle"] = official["angle"][2].ratio
    margins = theory.logit_margins(logits, data.labels)
    found |= {f"margin_{m}": margin for m, margin in margins.items()}
    return found | {f"soft_iou_{m}": mass for m, mass in clean["soft_iou"].items()}


def parameters_saved(architecture):
    """Trainable parameters for ten classes of colour images of 32 × 32 pixels, with a learned
    classifier and with a frozen one of d = K:
    ``learned``, ``frozen``, ``saved`` (share)."""
    with torch.device("meta"):  # shapes only
        learned = nets.parameter_count(build(architecture, 10, (3, 32, 32)))
        frozen = nets.parameter_count(build(architecture, 10, (3, 32, 32), frozen=True))
    return {"learned": learned, "frozen": frozen, "saved": 1 - frozen / learned}


# Training -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A trained net and its training set."""

    net: torch.nn.Module
    data: object


@dataclass(frozen=True)
class Nets:
    """What :func:`train_nets` made: ``nets[name, seed]`` and their tidy ``curves``."""

    nets: dict
    curves: pd.DataFrame

    @property
    def final(self):
        """The last row of every net's curve."""
        return self.curves.groupby(["net", "seed"], sort=False).tail(1).reset_index(drop=True)

    def ratio(self, name, other):
        """One row: every final metric, largest over the seeds, of ``name`` over that of
        ``other``."""
        worst = extreme(self.final.drop(columns="seed").groupby("net"), "max")
        return worst.loc[[name]] / worst.loc[other]

    def controls(self):
        """The final rows of the nets made by :func:`with_control`: task, net, pairs, metrics."""
        final = self.final
        parts = final["net"].str.split(" | ", regex=False, expand=True)
        final[["task", "net", "pairs"]] = parts
        return final


def train_nets(arms, recipe, *, seeds, checkpoint, every=None, reduction="sum", feature_decay=0.0):
    """Train one net per arm and seed; every one is measured on the training images.

    ``arms``: name -> ``{"data": training set, "architecture": …}`` and optionally what
    :func:`build` takes, ``loss`` ("pal", "bce"), and ``watch``, other images to measure on: a
    control that never saw a pair is measured on pairs.  ``checkpoint(name, **config)`` is where a
    training is kept.  ``every``: epochs between measurements (``None``: after the last one only).
    A feature penalty that is too strong drives all features to zero:
    :class:`~nclib.checks.InputError` says so.  Returns :class:`Nets`.
    """
    points = {recipe.epochs}
    if every is not None:
        points |= set(range(0, recipe.epochs, checks.integer("every", every))) - {0} | {1}
    found, curves = {}, []
    for (name, arm), seed in product(arms.items(), seeds):
        arm = {"loss": "pal", "watch": arm["data"]} | arm
        data, watch, loss = (arm.pop(key) for key in ("data", "watch", "loss"))
        terms = {"loss": loss, "reduction": reduction}
        net = nets.seeded(seed, build, K=data.num_classes, shape=data.inputs.shape[1:], **arm)
        sets = {"of": data.name, "sets": str(data.table()), "watch": str(watch.table())}
        config = {"seed": seed, "decay": feature_decay, "recipe": vars(recipe), "every": every}
        file = checkpoint(re.sub(r"\W+", "-", f"{name} {seed}"), **terms, **arm, **sets, **config)
        history = train.fit(
            net.to(data.inputs.device),
            data,
            objective(feature_decay=feature_decay, **terms),
            recipe,
            seed=seed,
            measure=lambda net, _, watch=watch, terms=terms: measure(net, watch, **terms),
            measure_at=points,
            checkpoint=file,
            label=f"{name}, seed {seed}",
        )
        found[name, seed] = Trained(net, data)
        curves.append(history.assign(net=name, seed=seed))
    return Nets(found, pd.concat(curves, ignore_index=True))


def with_control(task, architecture, data, **options):
    """Two arms for :func:`train_nets`, named by task, net and pairs: trained on all of ``data``,
    and on its single labels only but measured on all of it."""
    name = f"{task} | {NAMES[architecture]} | "
    arm = {"architecture": architecture} | options
    return {
        name + WITH: arm | {"data": data},
        name + WITHOUT: arm | {"data": data.singles, "watch": data},
    }
