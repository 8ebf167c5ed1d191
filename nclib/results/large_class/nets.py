"""Networks on the sphere: cosine heads, margin losses, class-mean classifiers, a language model.

Features and classifier rows are normalised, logits are cosines divided by a ``temperature`` (the
released code's ``temperature`` is its inverse and multiplies).  No bias.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nclib import checks, losses
from nclib.deep import nets

MARGINS = ("none", "cosface", "arcface")


class CosineHead(nn.Module):
    """Cosines ``(B, K)`` between normalised features and normalised rows of ``weight (K, d)``.

    ``code``: unit rows to use as a fixed classifier (a buffer: no gradient, no weight decay);
    without it the rows are learned from N(0, 1/d).
    """

    bias = None

    def __init__(self, dim, num_classes, code=None):
        super().__init__()
        if code is None:
            weight = torch.randn(checks.integer("num_classes", num_classes, 2), dim) / dim**0.5
            self.weight = nn.Parameter(weight)
        else:
            code = checks.matrix("code", code, rows=num_classes, columns=dim, dtype=torch.float32)
            self.register_buffer("weight", nn.functional.normalize(code, dim=1))

    def forward(self, features):
        """Cosines of ``features`` ``(B, d)``, in the precision of the rows also under autocast.

        In bfloat16 a cosine is wrong by up to 4e-3, a logit at temperature .02 by .2.
        """
        with torch.autocast(features.device.type, enabled=False):
            rows = nn.functional.normalize(self.weight, dim=1)
            return nn.functional.normalize(features.to(rows.dtype), dim=1) @ rows.T


class ClassMeanHead(CosineHead):
    """Class-mean-feature classifier (claim 4.G19): row k is the running mean feature of class k.

    ``weight`` holds the running means of the *normalised* features and is no parameter.
    :meth:`update` moves row k by ``m <- momentum m + (1 - momentum) * (mean of the batch's
    features of class k)``; the first batch with class k sets it, classes not in the batch keep
    theirs.  (The released class adds the batch's *sum* to rows that start at zero, so that its
    momentum depends on how often a class occurs in a batch.)
    """

    def __init__(self, dim, num_classes, momentum=0.9):
        start = torch.randn(checks.integer("num_classes", num_classes, 2), dim)
        super().__init__(dim, num_classes, code=start)
        self.momentum = checks.real("momentum", momentum, at_least=0, below=1)
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, features, labels):
        """Move the running means towards a batch: ``features (B, d)``, ``labels (B,)``."""
        features = nn.functional.normalize(features.detach().to(self.weight), dim=1)
        count = torch.bincount(labels, minlength=len(self.weight))
        sums = torch.zeros_like(self.weight).index_add_(0, labels, features)
        means = sums / count.clamp(min=1).unsqueeze(1)
        keep = torch.where(self.seen, self.momentum, 0.0).unsqueeze(1)
        moved = keep * self.weight + (1 - keep) * means
        present = count > 0
        self.weight.copy_(torch.where(present.unsqueeze(1), moved, self.weight))
        self.seen |= present


@dataclass(frozen=True)
class NormalizedSoftmax(losses._Loss):
    """Cross-entropy of cosines over a temperature, with an optional margin on the true class.

    ``margin_type`` ``"cosface"``: the true cosine is lowered by ``margin``; ``"arcface"``: its
    angle is raised by ``margin`` <= pi / 2 radians.  A CosFace loss can only tend to zero if
    ``margin`` is below ``rho*(K, d)``.  ``order``: class k uses row ``order[k]`` of the classifier.

    Raises :class:`~nclib.checks.InputError` for other values and an order that names a row twice.
    """

    temperature: float
    margin: float = 0.0
    margin_type: str = "none"
    order: tuple | None = None
    name = "normalized_softmax"

    def __post_init__(self):
        checks.real("temperature", self.temperature, above=0)
        checks.choice("margin_type", self.margin_type, MARGINS)
        # Beyond pi / 2 what ArcFace trains would no longer fall with the angle.
        most = np.pi / 2 if self.margin_type == "arcface" else np.inf
        checks.real("margin", self.margin, at_least=0, at_most=most)
        if self.order is not None:
            straight = sorted(self.order) == list(range(len(self.order)))
            checks.require(straight, f"order {self.order} must name each row 0..K-1 once")

    def __str__(self):
        text = f"normalized softmax, temperature {self.temperature:g}"
        return text if self.margin_type == "none" else f"{text}, {self.margin_type} {self.margin:g}"

    def logits(self, cosines):
        """What the net predicts with: cosines in class order over the temperature."""
        picked = cosines if self.order is None else cosines[..., list(self.order)]
        return picked / self.temperature

    def per_sample(self, cosines, labels):
        """Losses ``(N,)`` of cosines ``(N, K)``."""
        logits = self.logits(cosines)
        if self.margin_type != "none":
            own = torch.nn.functional.one_hot(labels, logits.shape[-1]).bool()
            cosine = (logits * own).sum(-1, keepdim=True) * self.temperature
            lowered = self._lowered(cosine) / self.temperature
            logits = torch.where(own, lowered, logits)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    def _lowered(self, cosine):
        if self.margin_type == "cosface":
            return cosine - self.margin
        # cos(angle + m) without arccos, whose slope is infinite at 1; beyond angle + m = pi the
        # cosine would rise again, so it goes on linearly (CosFace with m sin m) as is usual.
        sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()
        turned = cosine * np.cos(self.margin) - sine * np.sin(self.margin)
        beyond = cosine < -np.cos(self.margin)
        return torch.where(beyond, cosine - self.margin * np.sin(self.margin), turned)


@dataclass(frozen=True)
class HardMax(losses._Loss):
    """Largest wrong cosine minus the true one, times ``scale``: the limit of temperature 0.

    The mean over samples is trained; the paper's HardMax problem is the maximum over them.
    """

    scale: float = 1.0
    name = "hard_max"

    def per_sample(self, cosines, labels):
        """Losses ``(N,)`` of cosines ``(N, K)``."""
        own = labels.unsqueeze(-1)
        rival = cosines.scatter(-1, own, -torch.inf).amax(-1)
        return self.scale * (rival - cosines.gather(-1, own).squeeze(-1))


def sphere_mlp(inputs, dim, num_classes, *, hidden=(256, 256), code=None, momentum=None):
    """(Linear, BatchNorm, ReLU) per hidden width, Linear to ``dim``, then a cosine head.

    The head is learned, or fixed to ``code``, or the running class means if ``momentum`` is given.
    """
    net = nets.mlp([inputs, *hidden, dim], num_classes, final_relu=False, final_norm=False)
    net.head = cosine_head(dim, num_classes, code=code, momentum=momentum)
    return net


def sphere_resnet(dim, num_classes, *, in_channels=3, momentum=None):
    """ResNet-18 for small images, average pooling, a linear layer to ``dim`` without ReLU."""
    net = nets.resnet(18, num_classes, in_channels=in_channels)
    width = net.head.in_features
    net.backbone = nn.Sequential(net.backbone, nn.Linear(width, dim))
    net.head = cosine_head(dim, num_classes, momentum=momentum)
    return net


def cosine_head(dim, num_classes, *, code=None, momentum=None):
    """The learned, fixed or class-mean head."""
    if momentum is None:
        return CosineHead(dim, num_classes, code)
    if code is not None:
        raise checks.InputError(
            "a head is either fixed to a code or a running class mean, not both"
        )
    return ClassMeanHead(dim, num_classes, momentum)


def language_net(words, num_classes, dim, *, context, hidden):
    """Embedding of ``words`` ids, one hidden layer, ``dim`` features, a cosine head."""
    backbone = nn.Sequential(
        nn.Embedding(words, 64),
        nn.Flatten(),
        nn.Linear(context * 64, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, dim),
    )
    return nets.Classifier(backbone, CosineHead(dim, num_classes))


def objective(loss):
    """``(net, inputs, labels) -> mean loss`` for :func:`nclib.deep.train.fit`.

    A class-mean head is moved to the batch before its loss is taken, in training mode only.
    """

    def mean_loss(net, inputs, labels):
        features = net.features(inputs)
        if net.training and isinstance(net.head, ClassMeanHead):
            net.head.update(features, labels)
        return loss(net.head(features), labels)

    return mean_loss


class Standardize(nn.Module):
    """Bytes to standardised floats, per channel, as the first layer of a network."""

    def __init__(self, images):
        super().__init__()
        sample = images[:10_000].float()
        self.register_buffer("mean", sample.mean((0, 2, 3), keepdim=True))
        self.register_buffer("std", sample.std((0, 2, 3), keepdim=True).clamp(min=1e-6))

    def forward(self, images):
        """Floats of the same shape ``(B, C, H, W)``."""
        return (images.float() - self.mean) / self.std
