"""Result 2 on networks: unit features and unit classifier rows, against penalised training.

Three ways to train the last layer (:data:`MODES`), all without a bias:

- ``normalized``: features are divided by their norm and multiplied by ``scale``; after every step
  the classifier rows are put back on the sphere.  No penalty.
- ``hybrid``: classifier rows on the sphere, features free with a penalty.  This is what the
  published "regularized" baseline runs, because its code renormalises W in that mode too.
- ``regularized``: both free, both penalised; what the paper describes.
"""

from dataclasses import dataclass, replace
from math import log

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from nclib import checks
from nclib.deep import collect, nets, train
from nclib.results.normalized import theory
from nclib.results.normalized.metrics import NC, sphere_metrics

MODES = ("normalized", "hybrid", "regularized")


@dataclass(frozen=True)
class Mode:
    """How the last layer is trained.

    ``scale`` multiplies the logits (1 unless normalized); ``lambda_w/2 ‖W‖²`` and
    ``feature_decay/2 · mean ‖h‖²`` over a batch are added to the loss where W or the features are
    free.  A mean over the batch, not a sum: the strength does not depend on the batch size.
    """

    name: str
    scale: float = 1.0
    lambda_w: float = 0.0
    feature_decay: float = 0.0
    label: str = ""

    def __post_init__(self):
        checks.choice("mode", self.name, MODES)
        checks.real("scale", self.scale, above=0)
        for penalty in ("lambda_w", "feature_decay"):
            checks.real(penalty, getattr(self, penalty), at_least=0)
        if self.unit_features and self.feature_decay:
            raise checks.InputError(
                "a penalty on unit features is constant: feature_decay must be 0"
            )
        if self.unit_weight and self.lambda_w:
            raise checks.InputError("a penalty on unit classifiers is constant: lambda_w must be 0")

    def __str__(self):
        return self.label or (
            f"normalized, τ = {self.scale:g}" if self.unit_features else self.name
        )

    @property
    def unit_features(self):
        """Whether features lie on the sphere."""
        return self.name == "normalized"

    @property
    def unit_weight(self):
        """Whether classifier rows lie on the sphere."""
        return self.name != "regularized"


def published(name, *, weight_decay=1e-4, batch_size=128):
    """The published baseline: penalty ``weight_decay/2 (‖W‖² + Σ_batch ‖h‖²)`` as a :class:`Mode`.

    ``name``: ``"hybrid"`` (what the code does) or ``"regularized"`` (what it describes).
    """
    checks.choice("mode", name, MODES[1:])
    lambda_w = weight_decay if name == "regularized" else 0.0
    return Mode(name, lambda_w=lambda_w, feature_decay=weight_decay * batch_size)


def matched(name, K, scale):
    """The :class:`Mode` whose minimum, with free features, has the logits of ``scale`` (2.L10)."""
    penalties = theory.matched_penalties(K, 1, scale)
    label = f"{name}, matched to τ = {scale:g}"
    if name == "normalized":
        return Mode(name, scale=scale)
    if name == "hybrid":
        return Mode(name, feature_decay=penalties.feature_decay, label=label)
    # lambda_h/2 Σ ‖h‖² over N samples is N·lambda_h/2 · mean ‖h‖²
    return Mode(
        name, lambda_w=penalties.lambda_w, feature_decay=K * penalties.lambda_h, label=label
    )


class SphereClassifier(nets.Classifier):
    """The backbone of a :class:`nclib.deep.nets.Classifier` with a new head trained by ``mode``.

    Logits ``scale · features @ W.T`` without bias; features and rows of W on the sphere or free.
    ``features(x)`` are what the head sees, of norm 1 if the mode says so.  If rows of W are on the
    sphere, call :meth:`retract` after every optimiser step.  Features that are exactly zero stay
    zero.
    """

    def __init__(self, net, mode):
        K, dim = net.head.weight.shape
        super().__init__(net.backbone, nn.Linear(checks.integer("dim", dim, 2), K, bias=False))
        self.scale = mode.scale
        self.unit_features, self.unit_weight = mode.unit_features, mode.unit_weight
        self.retract()

    def features(self, inputs):
        """Last-layer features ``(N, d)``."""
        found = self.backbone(inputs)
        return F.normalize(found, dim=1) if self.unit_features else found

    def logits(self, features):
        """Logits ``(N, K)`` of features as :meth:`features` returns them."""
        return self.scale * self.head(features)

    def forward(self, inputs):
        """Logits ``(N, K)``."""
        return self.logits(self.features(inputs))

    @torch.no_grad()
    def retract(self):
        """Scale the classifier rows back to norm 1, where they live on the sphere."""
        if self.unit_weight:
            self.head.weight.copy_(F.normalize(self.head.weight, dim=1))


def objective(mode):
    """``(net, inputs, labels) -> loss`` of a :class:`SphereClassifier`: mean CE plus penalties."""

    def loss(net, inputs, labels):
        features = net.features(inputs)
        value = F.cross_entropy(net.logits(features), labels)
        if mode.feature_decay:
            value = value + mode.feature_decay / 2 * features.square().sum(1).mean()
        if mode.lambda_w:
            value = value + mode.lambda_w / 2 * net.head.weight.square().sum()
        return value

    return loss


def random_labels(data):
    """The same inputs with labels permuted by seed 0: no signal, the same class sizes."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    order = order.to(data.labels.device)
    return replace(data, labels=data.labels[order])


def first_classes(data, K):
    """The samples of classes 0..K-1."""
    K = checks.integer("K", K, 2)
    if data.num_classes < K:
        raise checks.InputError(f"{data.name} has {data.num_classes} classes, {K} were asked for")
    return replace(data.take((data.labels < K).nonzero().flatten()), num_classes=K)


def backbone(architecture, data, *, width, dim, feature_relu=False):
    """A bias-free net by :func:`nclib.deep.nets.build`.

    ``mlp``: inputs-width-width-dim, batch norm and ReLU on hidden layers, a linear feature layer
    (or with ReLU).  ``cnn``: channels width-2·width-4·width-dim with average pooling.  ``resnet18``
    has 64·width base channels and ignores ``dim``, as does ``resnet50``; these three end with ReLU
    and average pooling, so that features have no negative entry.
    """
    first, options = int(width), {"final_relu": feature_relu, "final_norm": False}
    sizes = {"mlp": [first, first, dim], "cnn": [first, 2 * first, 4 * first, dim]}
    return nets.build(architecture, data, sizes.get(architecture, width), bias=False, **options)


@dataclass(frozen=True)
class Cell:
    """One network: how its last layer is trained, its width and feature dimension, its seed."""

    mode: Mode
    width: float
    dim: int = 64
    seed: int = 0
    random_labels: bool = False


def measure(net, data, test_data=None):
    """Collapse metrics on ``data`` in eval mode, loss, accuracies (percent) and effective scale.

    ``effective_scale`` is ``scale · mean ‖w‖ · mean ‖h‖``: what multiplies the cosines.  With
    ``test_data`` also ``test_accuracy``, ``test_nc1`` and ``test_nc3``.
    """
    features = collect.features(net, data.inputs)
    with torch.no_grad():
        logits = net.logits(features)
    norms = net.weight.norm(dim=1).mean() * features.norm(dim=1).mean()
    found = sphere_metrics(features, data.labels, net.weight) | {
        "loss": float(F.cross_entropy(logits.double(), data.labels)),
        "train_accuracy": 100 * float((logits.argmax(1) == data.labels).double().mean()),
        "effective_scale": float(net.scale * norms),
    }
    if test_data is not None:
        tested = sphere_metrics(
            collect.features(net, test_data.inputs), test_data.labels, net.weight
        )
        found["test_accuracy"] = 100 * collect.accuracy(net, test_data)
        found |= {f"test_{name}": tested[name] for name in ("nc1", "nc3")}
    return found


def train_cell(cell, architecture, data, recipe, *, feature_relu=False, watch=None, **options):
    """Train one :class:`Cell` from weights drawn with its seed; ``(net, history)``.

    ``data`` is trained on as it is; ``watch(net, epoch) -> dict`` is measured; ``options`` go to
    :func:`nclib.deep.train.fit`.
    """

    def build():
        shape = {"width": cell.width, "dim": cell.dim, "feature_relu": feature_relu}
        return SphereClassifier(backbone(architecture, data, **shape), cell.mode)

    net = nets.seeded(cell.seed, build).to(data.inputs.device)
    watch = watch or (lambda net, epoch: measure(net, data))
    history = train.fit(
        net,
        data,
        objective(cell.mode),
        recipe,
        seed=cell.seed,
        measure=watch,
        after_step=SphereClassifier.retract,
        label=str(cell.mode),
        **options,
    )
    return net, history


@dataclass(frozen=True)
class Nets:
    """``curves``: one row per cell and measured epoch; ``final``: the last ones; ``nets``."""

    curves: pd.DataFrame
    nets: list

    @property
    def final(self):
        """The last measured epoch of each cell, in their order."""
        return self.curves.groupby("cell", sort=True).last().reset_index()


def train_nets(
    cells,
    architecture,
    train_data,
    test_data,
    recipe,
    *,
    feature_relu=False,
    every=1,
    checkpoint=None,
):
    """Train all ``cells``, one after the other and each with its own checkpoint; :class:`Nets`.

    ``every``: measure every so many epochs, and the first and last.  ``checkpoint``: ``cell ->
    path`` or ``None``.  Curves have the columns of :func:`measure` and ``cell, name, label, scale,
    width, dim, seed, labels`` (true or random).
    """
    points = set(range(0, recipe.epochs + 1, every)) | {recipe.epochs}
    curves, found = [], []
    for i, cell in enumerate(cells):
        own = random_labels(train_data) if cell.random_labels else train_data
        tested = None if cell.random_labels else test_data
        net, history = train_cell(
            cell,
            architecture,
            own,
            recipe,
            feature_relu=feature_relu,
            watch=lambda net, epoch, own=own, tested=tested: measure(net, own, tested),
            measure_at=points,
            checkpoint=checkpoint and checkpoint(cell),
        )
        tags = {"cell": i, "name": cell.mode.name, "label": str(cell.mode)}
        tags |= {"scale": cell.mode.scale, "width": cell.width, "dim": cell.dim, "seed": cell.seed}
        tags |= {"labels": "random" if cell.random_labels else "true"}
        curves.append(history.assign(**tags))
        found.append(net)
    return Nets(pd.concat(curves, ignore_index=True), found)


def film(cell, architecture, data, recipe, *, epochs):
    """Features and classifiers at the given ``epochs`` of one training, for pictures.

    Returns a DataFrame with ``epoch``, ``kind`` (``feature`` or ``classifier``), ``label`` and the
    coordinates ``x0, x1, …``; and the trained net.
    """
    rows = []

    def watch(net, epoch):
        for kind, points, labels in (
            ("feature", collect.features(net, data.inputs), data.labels),
            ("classifier", net.weight, torch.arange(data.num_classes)),
        ):
            table = pd.DataFrame(points.double().cpu().numpy()).add_prefix("x")
            rows.append(table.assign(epoch=epoch, kind=kind, label=labels.cpu().numpy()))
        return {}

    net, _ = train_cell(cell, architecture, data, recipe, watch=watch, measure_at=epochs)
    return pd.concat(rows, ignore_index=True), net


def share_above(loss, low, K):
    """How much of the way from log K down to ``low`` a loss has left."""
    return (loss - low) / (log(K) - low)


def share_above_floor(curves, classes, *, nonnegative):
    """:func:`share_above` the floor of :func:`theory.optimum` (2.L1, 2.L13) for each scale of the
    normalized nets, the largest over seeds; a mapping from the scale as a text."""
    final = curves[curves["name"] == "normalized"].groupby(["scale", "seed"])["loss"].last()
    found = {}
    for scale, losses in final.groupby("scale"):
        low = theory.optimum(classes, scale, nonnegative=nonnegative).value
        found[f"{scale:g}"] = share_above(losses.max(), low, classes)
    return found


def ratios(final, ours, theirs, names=NC):
    """Metrics of the nets labelled ``ours`` over those of ``theirs``, the largest over seeds."""
    means = final.groupby(["label", "seed"])[list(names)].last()
    return (means.loc[ours] / means.loc[theirs]).max(skipna=False).to_dict()


def gains(final, ours, theirs):
    """How much larger the test accuracy of ``ours`` is in percent, the smallest over seeds."""
    values = final.groupby(["label", "seed"])["test_accuracy"].last()
    return float((values[ours] - values[theirs]).min(skipna=False))


def best_scale(table):
    """The scale with the smallest max(NC1, NC2, NC3), the mean over seeds."""
    worst = table[[*NC]].max(axis=1).groupby(table["scale"]).mean()
    return float(worst.idxmin())
