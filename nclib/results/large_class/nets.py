"""Networks on the sphere: cosine heads, margin losses, class-mean classifiers, class assignment.

Features and classifier rows are normalised, logits are cosines divided by a ``temperature`` (the
released code's ``temperature`` is its inverse and multiplies).  No bias.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from scipy.optimize import quadratic_assignment
from torch import nn

from nclib import checks, losses
from nclib.deep import nets
from nclib.deep.data import Data

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
        """Cosines of ``features`` ``(B, d)``."""
        rows = nn.functional.normalize(self.weight, dim=1)
        return nn.functional.normalize(features, dim=1) @ rows.T


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
        features = nn.functional.normalize(features.detach(), dim=1).to(self.weight)
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
    angle is raised by ``margin`` radians.  A CosFace loss can only tend to zero if ``margin`` is
    below ``rho*(K, d)``.  ``order``: class k uses row ``order[k]`` of the classifier.
    """

    temperature: float
    margin: float = 0.0
    margin_type: str = "none"
    order: tuple | None = None
    name = "normalized_softmax"

    def __post_init__(self):
        checks.real("temperature", self.temperature, above=0)
        checks.choice("margin_type", self.margin_type, MARGINS)
        checks.real("margin", self.margin, at_least=0)

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


def sphere_mlp(inputs, dim, num_classes, *, hidden=(256, 256), code=None, momentum=None):
    """(Linear, BatchNorm, ReLU) per hidden width, Linear to ``dim``, then a cosine head.

    The head is learned, or fixed to ``code``, or the running class means if ``momentum`` is given.
    """
    net = nets.mlp([inputs, *hidden, dim], num_classes, final_relu=False, final_norm=False)
    net.head = cosine_head(dim, num_classes, code=code, momentum=momentum)
    return net


def sphere_resnet(dim, num_classes, *, in_channels=3, code=None, momentum=None):
    """ResNet-18 for small images, average pooling, a linear layer to ``dim`` without ReLU."""
    net = nets.resnet(18, num_classes, in_channels=in_channels)
    width = net.head.in_features
    net.backbone = nn.Sequential(net.backbone, nn.Linear(width, dim))
    net.head = cosine_head(dim, num_classes, code=code, momentum=momentum)
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


# Assignment of classes to the vertices of a code --------------------------------------------------


def class_distances(features, labels, num_classes):
    """Euclidean distances ``(K, K)`` between the class means of ``features`` ``(N, D)``."""
    features = checks.matrix("features", features, dtype=torch.float64)
    labels, K = checks.labels(labels, num_classes, length=len(features))
    labels = labels.to(features.device)
    counts = checks.class_counts(labels, K).unsqueeze(1)
    sums = features.new_zeros(K, features.shape[1]).index_add_(0, labels, features)
    return torch.cdist(sums / counts, sums / counts, compute_mode="donot_use_mm_for_euclid_dist")


def assignment_score(distances, code, order):
    """``sum_ij D_ij |v_order(i) - v_order(j)|``: large when distant classes are far apart."""
    vertices = _vertex_distances(code)[np.ix_(order, order)]
    return float((checks.tensor("distances", distances).numpy(force=True) * vertices).sum())


def assign_classes(distances, code, *, seed=0):
    """``order`` with class k on row ``order[k]`` of ``code`` that maximises the score above.

    Similar classes come to lie next to each other (claim 4.G18).  A quadratic assignment: exact for
    K <= 7, else the best of scipy's FAQ, refined by 2-opt, from several starts.  Returns a tuple.
    """
    distances = checks.matrix("distances", distances, dtype=torch.float64)
    K = len(distances)
    if distances.shape != (K, K) or not torch.allclose(distances, distances.T):
        raise checks.InputError("distances must be a symmetric (K, K) matrix")
    code = checks.matrix("code", code, rows=K, dtype=torch.float64)
    first, second = distances.numpy(force=True), _vertex_distances(code)
    if K <= 7:
        orders = np.array(list(permutations(range(K))))
        scores = (first * second[orders[:, :, None], orders[:, None, :]]).sum((1, 2))
        return tuple(orders[scores.argmax()].tolist())
    options = {"maximize": True, "rng": np.random.default_rng(seed)}
    found = []
    for _ in range(4):
        rough = quadratic_assignment(first, second, options=options | {"P0": "randomized"})
        guess = np.column_stack([np.arange(K), rough.col_ind])
        found.append(
            quadratic_assignment(
                first, second, method="2opt", options=options | {"partial_guess": guess}
            )
        )
    return tuple(max(found, key=lambda f: f.fun).col_ind.tolist())


def _vertex_distances(code):
    code = torch.as_tensor(code, dtype=torch.float64)
    distances = torch.cdist(code, code, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.numpy(force=True)


# Data ---------------------------------------------------------------------------------------------


def clusters(num_classes, *, dim=32, per_class=20, noise=0.9, seed=0, test_per_class=None):
    """``(train, test)``: Gaussian clusters around class means drawn from N(0, I_dim)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(checks.integer("num_classes", num_classes, 2), dim, generator=generator)
    return _around(means, per_class, test_per_class or per_class, noise, generator, "clusters")


def similar_pairs(*, dim=20, per_class=60, test_per_class=250, noise=1.0, seed=0):
    """``(train, test)`` of four classes in two similar pairs, {0, 1} and {2, 3}.

    Means ``2a +- .9 b`` and ``-2a +- .9 c`` with orthonormal a, b, c.
    """
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.linalg.qr(torch.randn(dim, 3, generator=generator))[0].T
    means = torch.stack([2 * a + 0.9 * b, 2 * a - 0.9 * b, -2 * a + 0.9 * c, -2 * a - 0.9 * c])
    return _around(means, per_class, test_per_class, noise, generator, "similar pairs")


def _around(means, per_class, test_per_class, noise, generator, name):
    checks.real("noise", noise, at_least=0)
    parts = []
    for n in (per_class, test_per_class):
        labels = torch.arange(len(means)).repeat_interleave(checks.integer("per_class", n))
        spread = noise * torch.randn(len(labels), means.shape[1], generator=generator)
        parts.append(Data(name, means[labels] + spread, labels, len(means)))
    return tuple(parts)


def image_folder(path, *, size=50, test_share=0.1, seed=0):
    """``(train, test)`` of a folder with one sub-folder of images per class, as uint8 tensors.

    For face identities and the like: images are resized and cropped to ``size`` pixels and kept as
    bytes ``(N, 3, size, size)``; put :class:`Standardize` in front of the network.
    """
    from torchvision import transforms

    checks.real("test_share", test_share, above=0, below=1)
    steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]
    folder = open_folder(path, transforms.Compose(steps))
    images = torch.stack([image for image, _ in folder])
    data = Data("image folder", images, torch.tensor(folder.targets), len(folder.classes))
    train, test = data.split(1 - test_share, generator=torch.Generator().manual_seed(seed))
    return train, test


def open_folder(path, transform=None):
    """torchvision's ``ImageFolder``, nothing read yet.

    Raises :class:`~nclib.checks.InputError` if there are not at least two sub-folders of images.
    """
    from torchvision import datasets

    try:
        folder = datasets.ImageFolder(path, transform)
        if len(folder.classes) < 2:
            raise FileNotFoundError("a single class")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise checks.InputError(
            f"no image folder at {str(path)!r} ({error}); expected one sub-folder of images per "
            "class"
        ) from None
    return folder


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
