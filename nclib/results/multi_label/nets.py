"""Result 3 on networks: learned and frozen classifiers, collapse curves, decoders.

A network is trained with the pick-all-label loss (or binary cross-entropy) plus weight decay and a
feature penalty ``feature_decay * mean ‖h‖²``; in the terms of the theory ``lambda_w`` is
``weight_decay/2`` and ``lambda_h`` is ``feature_decay/N``.
"""

from dataclasses import dataclass
from math import comb

import pandas as pd
import torch
from torch import nn

from nclib import checks, frames
from nclib.deep import collect, nets, train
from nclib.losses import pick_all_labels
from nclib.metrics.multi_label import LabelSetStatistics, multi_label_metrics, tagwise_fit
from nclib.results.multi_label import decoders, theory

ARCHITECTURES = ("cnn", "mlp", "resnet18", "resnet50", "vgg16", "vgg19")
LOSSES = ("pal", "bce")


# Networks ---------------------------------------------------------------------------------------


def build(
    architecture,
    num_classes,
    *,
    in_channels=1,
    inputs=256,
    feature_dim=None,
    frozen=False,
    channels=(32, 64, 128),
):
    """A :class:`nclib.deep.nets.Classifier` of one of :data:`ARCHITECTURES`.

    ``cnn``: ``channels`` and then ``feature_dim`` (default 64) channels; ``mlp``: inputs-512-512-
    ``feature_dim`` (32) with *linear* features, since a fully connected ReLU feature layer breaks
    the tag-wise average; the others as in the paper, 3×3 stem, 512 features (ResNet-50: 2048).

    ``frozen=True`` fixes W at the simplex ETF with unit rows and, unless ``feature_dim`` says
    otherwise, shrinks the last block to d = K features: the paper's parameter-efficient training.
    The bias stays trainable.
    """
    K = checks.integer("num_classes", num_classes, 2)
    checks.choice("architecture", architecture, ARCHITECTURES)
    d = feature_dim if feature_dim is not None else (K if frozen else None)
    if architecture == "cnn":
        strides = [1] + [2] * (len(channels) - 1) + [1]
        net = nets.cnn([*channels, d or 64], K, in_channels=in_channels, strides=strides)
    elif architecture == "mlp":
        net = nets.mlp([inputs, 512, 512, d or 32], K, final_relu=False, final_norm=False)
    elif architecture.startswith("resnet"):
        net = nets.resnet(int(architecture[6:]), K, in_channels=in_channels)
        if d is not None:
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
    if d is not None:  # the last convolution, before its batch norm, ReLU and pooling
        layers[-4], layers[-3] = nn.Conv2d(512, d, 3, padding=1), nn.BatchNorm2d(d)
    backbone = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nets.Classifier(backbone, nn.Linear(d or 512, K))


def parameters_saved(architecture, K=10, *, in_channels=3):
    """Trainable parameters with a learned classifier and with a frozen one of d = K, as a dict:
    ``learned``, ``frozen``, ``saved`` (share)."""
    sizes = {"in_channels": in_channels}
    with torch.device("meta"):  # shapes only
        learned = nets.parameter_count(build(architecture, K, **sizes))
        frozen = nets.parameter_count(build(architecture, K, **sizes, frozen=True))
    return {"learned": learned, "frozen": frozen, "saved": 1 - frozen / learned}


# Training ---------------------------------------------------------------------------------------


def objective(loss="pal", *, reduction="sum", feature_decay=0.0):
    """``(net, inputs, targets) -> loss + feature_decay * mean ‖h‖²`` for the trainer.

    ``loss`` "pal", or "bce": binary cross-entropy per label, summed over the classes.
    """
    checks.choice("loss", loss, LOSSES)
    checks.real("feature_decay", feature_decay, at_least=0)

    def evaluate(net, inputs, targets):
        features = net.features(inputs)
        penalty = feature_decay * features.square().sum(1).mean()
        return _data_loss(net.head(features), targets, loss, reduction) + penalty

    return evaluate


def _data_loss(logits, targets, loss, reduction):
    if loss == "pal":
        return pick_all_labels(logits, targets, reduction)
    mean = nn.functional.binary_cross_entropy_with_logits(logits, targets)
    return mean * targets.shape[1]


def measure(net, data, *, loss="pal", reduction="sum"):
    """Collapse of ``net`` on ``data`` in eval mode, as a flat dict of floats.

    ``data_loss`` (without penalties), ``nc1, nc2_centered, nc2_means, nc3``; per multiplicity m of
    the data ``margin_m`` (in-set minus out-of-set logit) and, for m >= 2, ``scale_m, residual_m,
    angle_m, degrees_m``; the official code's ``official_nc1, official_nc2_means, official_nc3,
    official_angle`` (nc2 agrees).
    """
    features = collect.features(net, data.inputs)
    with collect.evaluation(net):
        logits = net.head(features)
    found = {"data_loss": float(_data_loss(logits, data.labels, loss, reduction))}
    clean = multi_label_metrics(features, data.labels, net.weight, net.bias)
    official = multi_label_metrics(
        features, data.labels, net.weight, net.bias, convention="official"
    )
    found |= {name: clean[name] for name in ("nc1", "nc2_centered", "nc2_means", "nc3")}
    for m, angle in clean["angle"].items():
        found |= {f"angle_{m}": angle.ratio, f"degrees_{m}": angle.degrees}
        found |= {f"scale_{m}": clean["scale"][m], f"residual_{m}": clean["tagwise_residual"][m]}
    found |= {f"official_{name}": official[name] for name in ("nc1", "nc2_means", "nc3")}
    if 2 in official["angle"]:
        found["official_angle"] = official["angle"][2].ratio
    return found | {f"margin_{m}": s for m, s in margins(logits, data.labels).items()}


def margins(logits, targets):
    """``{m: mean over samples of (mean in-set logit - mean out-of-set logit)}``, m < K."""
    targets = checks.label_sets(targets, shape=tuple(logits.shape)).to(logits)
    sizes = targets.sum(1)
    inside = (logits * targets).sum(1) / sizes
    outside = (logits * (1 - targets)).sum(1) / (targets.shape[1] - sizes)
    gap = (inside - outside).double()
    present = [int(m) for m in sizes.unique().tolist() if m < targets.shape[1]]
    return {m: float(gap[sizes == m].mean()) for m in present}


@dataclass(frozen=True)
class Trained:
    """A trained net, its history (one row per measured epoch) and its training set."""

    net: nn.Module
    history: pd.DataFrame
    data: object

    @property
    def final(self):
        """The last row of the history."""
        return self.history.iloc[-1]


def run(
    net,
    data,
    recipe,
    *,
    loss="pal",
    reduction="sum",
    feature_decay=0.0,
    every=None,
    seed=0,
    checkpoint=None,
    label="training",
):
    """Train ``net`` in place on multi-label ``data`` and measure its collapse; a :class:`Trained`.

    ``every``: epochs between measurements (``None``: after the last one only).  A feature penalty
    that is too strong drives all features to zero: :class:`~nclib.checks.InputError` says so.
    """
    points = {recipe.epochs}
    if every is not None:
        points |= set(range(0, recipe.epochs, checks.integer("every", every))) - {0} | {1}
    history = train.fit(
        net,
        data,
        objective(loss, reduction=reduction, feature_decay=feature_decay),
        recipe,
        seed=seed,
        measure=lambda net, epoch: measure(net, data, loss=loss, reduction=reduction),
        measure_at=points,
        checkpoint=checkpoint,
        label=label,
    )
    return Trained(net, history, data)


# Tables -----------------------------------------------------------------------------------------


def loss_floor(data, reduction="sum"):
    """Infimum of the mean pick-all-label loss over all nets, for the label sets of ``data``."""
    sizes = data.labels.sum(1).long().tolist()
    return sum(theory.loss_floor(m, reduction) for m in sizes) / len(sizes)


def predictions(runs, *, reduction="sum", weight_decay, feature_decay):
    """The theory's end of training, without free parameters: columns net, margin_m, scale_m.

    ``runs``: ``{name: Trained}``; "frozen" uses the frozen classifier's equations.  The counts per
    multiplicity are averages over label sets, which is exact when the data is balanced.
    """
    rows = []
    for name, trained in runs.items():
        data = trained.data
        K, sizes = data.num_classes, data.labels.sum(1).long()
        counts = {
            m: max(1, round(int((sizes == m).sum()) / comb(K, m)))
            for m in sorted(set(sizes.tolist()))
        }
        case = {"K": K, "counts": counts, "lambda_h": feature_decay / len(data)}
        if name == "frozen":
            exact = theory.frozen_optimum(**case, reduction=reduction)
        else:
            exact = theory.optimum(**case, lambda_w=weight_decay / 2, reduction=reduction)
        rows.append(
            {"net": name}
            | {f"margin_{m}": s for m, s in exact.margins.items()}
            | {f"scale_{m}": c for m, c in exact.scales.items()}
        )
    return pd.DataFrame(rows)


def decode(trained, test, *, reduction="sum", bce=False):
    """``{decoder: predictions}`` on ``test``: ONN (Euclidean, cosine), largest gap, top-m with the
    true m, and the sign; for binary cross-entropy (``bce=True``) only the sign."""
    net = trained.net
    features = collect.features(net, test.inputs)
    with collect.evaluation(net):
        logits = net.head(features)
    if bce:
        return {"BCE sign": decoders.sign(logits, centred=False)}
    multiplicities = sorted(set(trained.data.labels.sum(1).long().tolist()))
    book = decoders.tagwise_codebook(
        collect.features(net, trained.data.inputs),
        trained.data.labels,
        net.weight,
        multiplicities=multiplicities,
        reduction=reduction,
    )
    return {
        "nearest codeword": decoders.nearest_codeword(features, book),
        "nearest codeword, cosine": decoders.nearest_codeword(features, book, metric="cosine"),
        "largest gap": decoders.largest_gap(
            logits, most=min(max(multiplicities), test.num_classes - 1)
        ),
        "top m (m known)": decoders.top_m(logits, test.labels.sum(1).long()),
        "sign": decoders.sign(logits),
    }


def accuracy_table(runs, test, *, reduction="sum"):
    """:func:`decoders.score_table` of several nets; ``runs``: ``{name: Trained}``, where
    the name "bce" marks binary cross-entropy.  Adds the column ``net``."""
    tables = []
    for name, trained in runs.items():
        predictions = decode(trained, test, reduction=reduction, bce=name == "bce")
        tables.append(decoders.score_table(predictions, test.labels).assign(net=name))
    return pd.concat(tables, ignore_index=True)


def unseen_table(runs, test, unseen, *, reduction="sum"):
    """Exact match on label sets that training never had (``unseen``) and on the other sets of the
    same sizes: columns net, decoder, sets ("never trained", "trained"), samples, exact_match."""
    sizes = {len(S) for S in unseen}
    new = torch.zeros(len(test), dtype=torch.bool, device=test.labels.device)
    for S in unseen:
        new |= test.labels[:, list(S)].all(1) & (test.labels.sum(1) == len(S))
    same_size = torch.isin(test.labels.sum(1).long(), torch.tensor(sorted(sizes)).to(new.device))
    parts = {"never trained": new, "trained": same_size & ~new}
    tables = []
    for label, mask in parts.items():
        part = accuracy_table(runs, test.take(mask), reduction=reduction)
        tables.append(part.assign(sets=label))
    return pd.concat(tables, ignore_index=True)[
        ["net", "decoder", "sets", "samples", "exact_match"]
    ]


def group_angles(trained, m=2):
    """Mean angle of the m-label means to their tag-wise sum, by samples per label set: columns
    samples, sets, degrees (claim 3.L12 on a net)."""
    features = collect.features(trained.net, trained.data.inputs)
    fit = tagwise_fit(LabelSetStatistics.of(features, trained.data.labels), m)
    table = pd.DataFrame({"samples": fit.sample_counts.long().cpu(), "degrees": fit.degrees.cpu()})
    found = table.groupby("samples")["degrees"].agg(["size", "mean"]).reset_index()
    return found.set_axis(["samples", "sets", "degrees"], axis=1)
