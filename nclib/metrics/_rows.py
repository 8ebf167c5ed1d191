"""Features and labels as they come in: checks, blocks that stay in cache, sums of products."""

import numpy as np
import torch

from nclib import checks
from nclib.metrics.precision import Storage

BLOCK = 1024  # rows: large enough for a fast product, small enough to stay in cache
_ENTRIES = 2**24  # of a block on a GPU, where what costs is the number of operations
_FEW = 128  # classes up to which a GPU sums by a product: additions to few rows wait for each other
PANELS = 4  # column panels of a symmetric product; 4 panels need 10/16 of its entries
_SMALL = 128  # up to this dimension products are float64: they cost little, and average little


def block(dim, device):
    """Number of rows that are worked on at a time."""
    return BLOCK if device.type == "cpu" else max(BLOCK, _ENTRIES // max(dim, BLOCK))


class Rows:
    """Features and labels in blocks of ``size`` rows: views of what is in memory, or copies."""

    def __init__(self, dim, device):
        self.dim, self.device, self.dtype = dim, device, None
        self.size = block(dim, device)
        self.count, self._given, self._blocks = 0, 0, []

    @classmethod
    def of(cls, features, labels):
        """The features ``(N, d)`` and labels ``(N,)`` themselves, no copies."""
        rows = cls(features.shape[1], features.device)
        rows.dtype, rows.count = features.dtype, len(features)
        parts = (features.split(rows.size), labels.split(rows.size))
        rows._blocks = list(zip(*parts, strict=True))
        return rows

    def bytes(self, x=None):
        """Bytes of the features; if ``x`` came in addition."""
        dtype, more = (self.dtype, 0) if x is None else (self._widest(x), len(x))
        return 0 if dtype is None else (self.count + more) * self.dim * dtype.itemsize

    def _widest(self, x):
        return x.dtype if self.dtype is None else torch.promote_types(x.dtype, self.dtype)

    def append(self, x, y):
        """Add copies of ``x (B, d)`` and ``y (B,)``."""
        if (dtype := self._widest(x)) != self.dtype:
            self.dtype = dtype
            self._blocks = [(a.to(dtype), b) for a, b in self._blocks]
        while len(x):
            i, used = divmod(self.count, self.size)
            if i == len(self._blocks):
                rows = self.size * min(max(i, 1), max(16 * BLOCK // self.size, 1))
                labels = torch.empty(rows, dtype=torch.int64).to(self.device)
                room = _room(rows, self.dim, dtype, self.device)
                self._blocks += zip(room.split(self.size), labels.split(self.size), strict=True)
            n = min(len(x), self.size - used)
            a, b = self._blocks[i]
            a[used : used + n], b[used : used + n] = x[:n], y[:n]
            x, y, self.count = x[n:], y[n:], self.count + n

    def blocks(self, start=0):
        """``(features, labels)`` block by block, from row ``start`` on."""
        for i, (a, b) in enumerate(self._blocks):
            before = i * self.size
            first, last = max(start - before, 0), min(self.count - before, self.size)
            if first < last:
                yield a[first:last], b[first:last]

    def new(self):
        """Blocks that were not asked for before."""
        start, self._given = self._given, self.count
        return self.blocks(start)

    def to(self, device):
        """Move everything to ``device``."""
        self.device = torch.empty(0, device=device).device
        self._blocks = [(a.to(device), b.to(device)) for a, b in self._blocks]


def _room(rows, dim, dtype, device):
    """An empty tensor ``(rows, dim)``; on the CPU from numpy, which asks for large memory pages."""
    if device.type != "cpu":
        return torch.empty(rows, dim, dtype=dtype, device=device)
    room = np.empty(rows * dim * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(room).view(dtype).view(rows, dim)


# Checks -----------------------------------------------------------------------------------------


def batch(features, labels, K, d, ignore_index):
    """Checked features ``(N, d)``, labels ``(N,)`` or None, and how the features were stored."""
    storage = Storage.of(features)
    features = checks.tensor("features", features).detach()
    if features.ndim > 2 and labels is not None:
        labels = checks.tensor("labels", labels)
        if labels.shape == features.shape[:-1]:
            features, labels = features.flatten(0, -2), labels.flatten()
    if ignore_index is not None and labels is not None:
        labels = checks.tensor("labels", labels)
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
        kept = labels != checks.integer("ignore_index", ignore_index, -(2**63))
        if kept.shape != features.shape[:1]:
            raise checks.InputError(
                f"labels have shape {tuple(labels.shape)}, features {tuple(features.shape)}; with "
                "ignore_index labels are class indices"
            )
        features, labels = features[kept.to(features.device)], labels[kept]
    features = checks.matrix("features", features, columns=d)
    if labels is None or not len(features) and ignore_index is not None:
        return features, labels, storage
    if checks.named(labels, K)[1] is not None:  # another batch would number them differently
        raise checks.InputError("labels are names: pass all names, in order, as num_classes")
    labels, _ = checks.labels(labels, K, length=len(features))
    return features, labels, storage


def squarable(name, value):
    """The tensor ``value``; :class:`~nclib.checks.InputError` if squares leave double precision."""
    largest = float(value.abs().max()) if value.numel() else 0.0
    if largest != 0 and not 1e-130 <= largest <= 1e140:
        raise checks.InputError(
            f"the squares of {name} leave double precision, the largest entry is {largest:.3g}: "
            "divide by it, measures of collapse do not depend on the scale"
        )
    return value


def classifier(weight, bias, K, d):
    """Checked ``weight (K, d)`` and ``bias (K,)`` in float64, or None."""
    if weight is None:
        if bias is not None:
            raise checks.InputError("a bias was given without a weight")
        return None, None
    weight = checks.matrix("weight", weight, rows=K, columns=d, dtype=torch.float64).detach()
    weight = squarable("weight", weight)
    if bias is not None:
        bias = checks.vector("bias", bias, K, dtype=torch.float64).detach()
    return weight, bias


def measured(counts, missing):
    """The classes that are measured ``(K',)``: all, each with samples; ``"skip"``: those with some.

    Raises :class:`~nclib.checks.InputError` for an empty class, and for fewer than two.
    """
    if checks.choice("missing", missing, ("error", "skip")) == "error":
        checks.nonempty(counts, 'pass samples of every class, or missing="skip"')
    present = (counts > 0).nonzero().flatten()
    if len(present) < 2:
        raise checks.InputError(
            f"only {len(present)} of {len(counts)} classes has samples; neural collapse needs two"
        )
    return present


def places(present, K):
    """Place among the ``present`` of K classes ``(K,)``; -1 for the others."""
    place = torch.full((K,), -1, device=present.device)
    place[present] = torch.arange(len(present), device=present.device)
    return place


def pick(value, present):
    """The rows of a classifier that belong to the ``present`` classes."""
    return value if value is None or len(value) == len(present) else value[present.to(value.device)]


# Sums -------------------------------------------------------------------------------------------


def norms(rows):
    """Norms of the rows."""
    return torch.linalg.vector_norm(rows, dim=1)


def class_sums(blocks, K, d):
    """Sum of the features of each class ``(K, d)``, in float64 throughout."""
    sums = wide = None
    for x, y in blocks:
        if sums is None:
            sums = torch.zeros(K, d, dtype=torch.float64, device=x.device)
        if wide is None or len(wide) < len(x):
            wide = torch.empty(len(x), d, dtype=torch.float64, device=x.device)
        values = wide[: len(x)].copy_(x)
        if x.device.type != "cpu" and K <= _FEW:
            sums.addmm_(torch.nn.functional.one_hot(y, K).double().T, values)
        else:
            sums.index_add_(0, y, values)
    return sums


def product_dtype(means, dtype):
    """The dtype of products of features of this dtype with class means ``(K, d)``."""
    # Squares may over- or underflow in float32.
    fits = 1e-8 < float(means.abs().max()) < 1e15
    return dtype if fits and means.shape[1] > _SMALL else torch.float64


def add_products(total, rows):
    """Add the upper column panels of ``rowsᵀ rows`` to ``total (d, d)``; see :func:`symmetric`."""
    d = len(total)
    step = -(-d // PANELS)
    for i in range(0, d, step):
        total[i : i + step, i:].addmm_(rows[:, i : i + step].T, rows[:, i:])


def symmetric(upper):
    """The symmetric matrix with this upper triangle."""
    return upper.triu() + upper.triu(1).T
