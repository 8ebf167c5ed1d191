"""Networks with a BN-ReLU-linear head on any backbone, trained with a certificate; whitened images.

Result 6 bounds the training objective of such a head from below, whatever the backbone (claims
6.C14, 6.C15).  Here the objective is PyTorch's: ``nn.MSELoss()`` or cross-entropy plus
``weight_decay/2`` times the squared BN weight, BN bias and last layer.  Nothing else is decayed.
"""

import contextlib
import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from nclib import checks
from nclib.deep import collect, nets, train
from nclib.deep import data as image_data
from nclib.deep.data import Data
from nclib.metrics import certified_gap
from nclib.results.convex_duality import theory
from nclib.results.convex_duality.metrics import cosine_deviations

ARCHITECTURES = ("mlp", "resnet18")
LOSSES = ("mse", "cross_entropy")


class BatchNormNet(nets.Classifier):
    """``backbone -> Linear -> BatchNorm1d -> ReLU -> Linear`` without output bias.

    ``feature_dim``: outputs of the backbone; ``width``: neurons of the head, at least K for the
    bound to be reachable.
    """

    def __init__(self, backbone, feature_dim, width, num_classes, *, eps=1e-5):
        hidden = nn.Linear(feature_dim, width, bias=False)
        head = nn.Linear(width, num_classes, bias=False)
        layers = nn.Sequential(backbone, hidden, nn.BatchNorm1d(width, eps=eps), nn.ReLU())
        super().__init__(layers, head)

    @property
    def norm(self):
        """The BatchNorm1d layer."""
        return self.backbone[2]

    def pre_activations(self, inputs):
        """What enters the BatchNorm1d layer: ``(N, width)``."""
        return self.backbone[:2](inputs)

    def decayed(self):
        """The parameters of the penalty: BN weight, BN bias, last layer."""
        return self.norm.weight, self.norm.bias, self.head.weight

    def certificate(self, data, weight_decay, *, loss="mse", dual=True):
        """:class:`~nclib.metrics.Certificate` on ``data`` as one batch, in training mode."""
        with batch_statistics(self):
            return certified_gap(
                self.pre_activations(data.inputs),
                data.labels,
                self.head.weight,
                bn_weight=self.norm.weight,
                bn_bias=self.norm.bias,
                weight_decay=weight_decay,
                loss=loss,
                eps=self.norm.eps,
                dual=dual,
            )


@contextlib.contextmanager
def batch_statistics(net):
    """Training mode without gradients; running statistics and mode are restored afterwards."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    was_training = net.training
    net.train()
    try:
        with torch.no_grad():
            yield net
    finally:
        for name, buffer in net.named_buffers():
            buffer.copy_(buffers[name])
        net.train(was_training)


def build(architecture, data, *, hidden=(256,), width=40, normalise=True, seed=0):
    """A :class:`BatchNormNet` for ``data``.

    ``"mlp"``: a Linear-BatchNorm-ReLU layer per entry of ``hidden`` (``normalise=False``: without
    BatchNorm); ``"resnet18"``: torchvision's, for small images.  The initial BN weight is small,
    because 1 means a huge penalty at the decays of interest.
    """
    checks.choice("architecture", architecture, ARCHITECTURES)
    channels = data.inputs.shape[1]

    def make():
        if architecture == "resnet18":
            trunk = nets.resnet(18, data.num_classes, in_channels=channels)
            backbone, dimension = trunk.backbone, trunk.head.in_features
        else:
            sizes = [data.inputs[0].numel(), *hidden]
            layers = [nn.Flatten()]
            for before, after in zip(sizes, sizes[1:], strict=False):
                norm = [nn.BatchNorm1d(after)] if normalise else []
                layers += [nn.Linear(before, after), *norm, nn.ReLU()]
            backbone, dimension = nn.Sequential(*layers), sizes[-1]
        net = BatchNormNet(backbone, dimension, width, data.num_classes)
        nn.init.constant_(net.norm.weight, 0.3)
        return net

    return nets.seeded(seed, make).to(data.inputs.device)


def objective(weight_decay, loss="mse"):
    """``(net, inputs, labels) -> loss + decay``, for :func:`nclib.deep.train.fit`."""
    checks.choice("loss", loss, LOSSES)
    decay = checks.real("weight_decay", weight_decay, above=0)

    def value(net, inputs, labels):
        outputs = net(inputs)
        if loss == "mse":
            targets = nn.functional.one_hot(labels, outputs.shape[1]).to(outputs)
            data_term = nn.functional.mse_loss(outputs, targets)
        else:
            data_term = nn.functional.cross_entropy(outputs, labels)
        return data_term + decay / 2 * sum(p.square().sum() for p in net.decayed())

    return value


def weight_decay_for(counts, rho):
    """PyTorch weight decay at which ``beta`` is ``rho`` times the root of the mean class size.

    Balanced classes: ``2 rho / K^(3/2)`` for every batch size; ``rho = 1`` collapses everything.
    """
    counts = [checks.integer("counts", int(count)) for count in counts]
    rho = checks.real("rho", rho, above=0)
    return rho * theory.collapse_weight_decay(len(counts))


@dataclass(frozen=True)
class CertifiedRun:
    """``history``: one row per measured epoch; ``means`` (K, width) class means of the hidden
    features and ``outputs`` (K,) mean true-class output, at the end, in training mode."""

    history: pd.DataFrame
    means: torch.Tensor
    outputs: torch.Tensor
    net: BatchNormNet


def certified_training(
    net,
    data,
    recipe,
    weight_decay,
    *,
    loss="mse",
    test=None,
    points=60,
    dual=True,
    certify_on=None,
    checkpoint=None,
    seed=0,
    label="training",
):
    """Train ``net`` and certify it along the way: a :class:`CertifiedRun`.

    ``recipe.weight_decay`` must be 0, the penalty is in the objective.  ``certify_on``: the batch
    on which objective and bounds are compared, default all of ``data``; with mini-batches take one
    with equally many samples per class.  History columns: epoch, lr, train_loss, objective,
    optimum, dual, nc1, orthogonal, simplex, dropped, gamma_over_alpha (median over used neurons),
    and test_accuracy if ``test`` is given; nan where a bound is unknown.
    """
    if recipe.weight_decay:
        raise checks.InputError(
            "recipe.weight_decay must be 0: the decay of the head is part of the objective"
        )
    batch = certify_on or data

    def measure(net, epoch):
        found = net.certificate(batch, weight_decay, loss=loss, dual=dual)
        row = {name: getattr(found, name) for name in ("objective", "optimum", "dual")}
        row = {name: math.nan if value is None else value for name, value in row.items()}
        with batch_statistics(net):
            hidden = net.features(batch.inputs)
        cosines = cosine_deviations(hidden, batch.labels, num_classes=batch.num_classes, zero=1e-2)
        used = net.norm.weight.detach().abs() > 0.1 * net.norm.weight.detach().abs().max()
        ratio = (net.norm.weight / net.norm.bias).detach()[used].median()
        row |= cosines | {"gamma_over_alpha": float(ratio)}
        if test is not None:
            row["test_accuracy"] = collect.accuracy(net, test)
        return row

    history = train.fit(
        net,
        data,
        objective(weight_decay, loss),
        recipe,
        seed=seed,
        measure=measure,
        measure_at=log_spaced(recipe.epochs, points),
        checkpoint=checkpoint,
        label=label,
    )
    with batch_statistics(net):
        hidden = net.features(batch.inputs).double()
        outputs = net.head(net.features(batch.inputs)).double()
    Y = nn.functional.one_hot(batch.labels, batch.num_classes).to(hidden)
    counts = Y.sum(0)
    means = Y.mT @ hidden / counts[:, None]
    return CertifiedRun(history, means.cpu(), ((outputs * Y).sum(0) / counts).cpu(), net)


def log_spaced(epochs, points):
    """About ``points`` epochs from 0 to ``epochs``, denser at the beginning."""
    return {0} | {round(epochs ** (i / max(points - 1, 1))) for i in range(points)}


def class_cosines(run):
    """Cosines between the class means of a run: columns kind (raw, centred), row, column, value."""
    rows = []
    for kind, means in (("raw", run.means), ("centred", run.means - run.means.mean(0))):
        unit = means / means.norm(dim=1, keepdim=True)
        rows += [
            {"kind": kind, "row": i, "column": j, "value": value}
            for i, line in enumerate((unit @ unit.mT).tolist())
            for j, value in enumerate(line)
        ]
    return pd.DataFrame(rows)


def class_outputs(run, counts, beta):
    """Mean true-class outputs of a run: columns label, count, output, theory, mean_norm."""
    exact = theory.collapse(counts, beta)
    return pd.DataFrame(
        {
            "label": range(len(counts)),
            "count": list(counts),
            "output": run.outputs.tolist(),
            "theory": exact.outputs.tolist(),
            "mean_norm": run.means.norm(dim=1).tolist(),
        }
    )


# --- whitened images -----------------------------------------------------------------------------


@dataclass(frozen=True)
class WhitenedImages:
    """Whitened training images and test images under the same map, float64 rows."""

    inputs: torch.Tensor
    labels: torch.Tensor
    test_inputs: torch.Tensor
    test_labels: torch.Tensor


def whitened_images(data: Data, test: Data):
    """:class:`WhitenedImages` of at most as many training images as pixels."""
    X = data.inputs.flatten(1).double()
    whiten = theory.whitening(X)
    return WhitenedImages(
        whiten(X), data.labels, whiten(test.inputs.flatten(1).double()), test.labels
    )


def require_whitening(dataset, seed, **per_class):
    """Say now whether so many images of each class can be whitened: for a notebook's first cell.

    ``per_class``: name of a parameter -> its value, a number or a list.  The images must span as
    many dimensions as there are; those of digits do up to five per class.
    """
    train = image_data.load(dataset, seed=seed)[0]
    for name, value in per_class.items():
        part = train.per_class(max(value) if isinstance(value, list) else value)
        rank = int(torch.linalg.matrix_rank(part.inputs.flatten(1).double()))
        checks.require(
            rank == len(part),
            f"parameter {name} = {value} is too large to whiten {dataset}: {len(part)} images span "
            f"only {rank} dimensions",
        )


def closed_form_accuracy(data, test, per_class, rho):
    """Test accuracy of the closed-form whitened net against the training set size (section 3.9c).

    One row per entry of ``per_class``, the first images of each class; ``beta = rho sqrt(n_k)``.
    Columns n, accuracy, condition (of the raw inputs).
    """
    rows = []
    for n_k in per_class:
        part = data.per_class(n_k)
        X = part.inputs.flatten(1).double()
        outputs = theory.whitened_prediction(
            X, part.labels, rho * math.sqrt(n_k), test.inputs.flatten(1).double()
        )
        singular = torch.linalg.svdvals(X)
        right = (outputs.argmax(1) == test.labels).double().mean()
        condition = float(singular.max() / singular.min())
        rows.append({"n": len(part), "accuracy": float(right), "condition": condition})
    return pd.DataFrame(rows)
