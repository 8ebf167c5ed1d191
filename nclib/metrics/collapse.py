"""The neural-collapse metrics NC1-NC4 of features in memory.

Conventions (result 1): ``μ_k`` class means, ``μ_G`` the mean over *samples*,

    Σ_W = (1/N) Σ_i (h_i - μ_{y_i})(h_i - μ_{y_i})ᵀ,   Σ_B = (1/K) Σ_k (μ_k - μ_G)(μ_k - μ_G)ᵀ,

so Σ_B weighs all classes alike, also when they are imbalanced.  NC1 lives far below the rounding
error of the features themselves; it is computed from residuals about a shift that is already close
to the class mean.  Two facts make it cheap: NC1 needs Σ_W only inside the span of the class means
(N·d·K operations instead of N·d²), and a sample nearer to its class mean than any decision boundary
needs no logits.
"""

import math

import torch

from nclib import checks
from nclib.metrics import _rows
from nclib.metrics._classes import Classes
from nclib.metrics._rows import Rows
from nclib.metrics.agreement import Agreement, Rules
from nclib.metrics.geometry import between
from nclib.metrics.precision import Storage, exact

# How far from collapse is that?  Values of networks as PyTorch initialises them (ReLU, K = 10) and
# at collapse.
REFERENCE = {
    name: {"untrained": value, "collapsed": 0.0}
    for name, value in {
        "nc1": 0.9,
        "nc1_ratio": 1.7,
        "cdnv": 0.9,
        "nc2_means": 0.7,
        "nc2": 0.4,
        "nc3": 1.4,
        "nc2_centered": 0.25,
        "nc3_centered": 1.4,
        "residual": 0.25,
        "residual_centered": 0.25,
        "ncc_disagreement": 0.9,
    }.items()
}


@exact
def nc_metrics(
    features, labels, weight=None, bias=None, *, num_classes=None, precision=None, missing="error"
):
    """Neural-collapse metrics of features held in memory, in every published convention.

    Args:
        features: ``(N, d)`` last-layer features, any float dtype (half precision is upcast).
        labels: ``(N,)`` class indices 0..K-1, one-hot rows, or names (see
            :func:`nclib.checks.labels`); every class must occur.
        weight: ``(K, d)`` classifier; ``None`` leaves out the metrics that need one.
        bias: ``(K,)``, or ``None`` for no bias.
        num_classes: K, or the K names in order, if it cannot be read off ``weight`` or the labels.
        precision: dtype in which the features were stored, if it is not theirs: ``"bfloat16"`` for
            bfloat16 features that were cast to float32 before.  NC1 inverts Σ_B, and directions in
            which the class means differ by rounding only are left out: by that of their storage,
            or by less than ``√max(K, d)·ε`` of the longest one, the rounding of the network that
            made them (ε: float32's, an eighth of it for float64).
        missing: ``"error"``, or ``"skip"`` to leave classes without samples out of everything,
            their rows of the classifier and K included.

    Returns a dict of floats:

    =====================  ======================================================================
    ``nc1``                ``tr(Σ_W Σ_B⁺)/K`` (variability collapse)
    ``nc1_ratio``          ``tr Σ_W / tr Σ_B``, no pseudo-inverse
    ``cdnv``               class-distance normalised variance, mean over pairs of classes of
                           ``(v_i + v_j) / (2 ‖μ_i - μ_j‖²)``, ``v_k = E ‖h - μ_k‖²`` (Galanti,
                           György & Hutter, ICLR 2022); above 4096 classes, over the pairs of 1024
                           of them, drawn at random, with all others
    ``nc2``                ``‖WWᵀ/‖WWᵀ‖ - Ê‖``, W as it is (2021 code, printed formula)
    ``nc2_centered``       the same for W minus its mean row (official multi-loss code)
    ``nc2_means``          the same for the class means minus the global mean
    ``nc3``                ``‖WMᵀ/‖WMᵀ‖ - Ê‖``, W as it is, M centred class means (self-duality)
    ``nc3_centered``       both centred
    ``residual``           ``‖W μ_G + b‖`` (called NC4 in the official code)
    ``residual_centered``  the same after removing its mean over classes
    ``ncc_disagreement``   share of samples whose nearest class mean is not the predicted class
    =====================  ======================================================================

    ``Ê = (I - 11ᵀ/K)/√(K-1)`` is the simplex ETF's Gram matrix, all norms are Frobenius norms.
    All are 0 at collapse; :data:`nclib.metrics.REFERENCE` has values of an untrained network.
    Where a matrix to be normalised is zero (W = 0, all class means equal) the metric is NaN and a
    ``RuntimeWarning`` says which.  Source: result 1, claims 1.L16 and 1.L18.

    Raises :class:`~nclib.checks.InputError` for NaN features, entries whose squares leave double
    precision, labels out of range, an empty class, fewer than two classes, or shapes that do not
    fit.
    """
    rows, counts, present, storage, _ = _whole(
        features, labels, weight, num_classes, precision, missing
    )
    weight, bias = _rows.classifier(weight, bias, len(counts), rows.dim)
    return measure(rows, counts, present, weight, bias, storage)


@exact
def by_class(features, labels, weight=None, bias=None, *, num_classes=None, precision=None):
    """Metrics of each class, a data frame with one row a class (index ``class``: its name if the
    labels are names); arguments as in :func:`nc_metrics`, classes without samples are NaN.

    =================  ==========================================================================
    ``count``          samples
    ``nc1``            ``tr(Σ_k Σ_B⁺)/K``, Σ_k the covariance of class k; its mean over samples is
                       ``nc1``
    ``nc1_ratio``      ``tr Σ_k / tr Σ_B``; its mean over samples is ``nc1_ratio``
    ``cdnv``           mean over the other classes j of ``(v_k + v_j) / (2 ‖μ_k - μ_j‖²)``; its
                       mean over classes is ``cdnv``
    ``ncc_error``      share of its samples whose nearest class mean is another one
    ``error``          share of its samples predicted as another class (with a classifier), among
                       the classes with samples
    =================  ==========================================================================
    """
    rows, counts, present, storage, names = _whole(
        features, labels, weight, num_classes, precision, "skip"
    )
    weight, bias = _rows.classifier(weight, bias, len(counts), rows.dim)
    return table(rows, counts, present, weight, bias, storage, names)


def _whole(features, labels, weight, num_classes, precision, missing):
    """Checked :class:`Rows`, counts, classes to measure, storage and class names."""
    storage = Storage.of(features, precision)
    features = checks.matrix("features", features).detach()
    if weight is not None and num_classes is None:
        num_classes = len(checks.matrix("weight", weight))
    labels, names = checks.named(labels, num_classes)
    K = num_classes if names is None else len(names)
    labels, K = checks.labels(labels, K if names is None or K > 1 else None, length=len(features))
    if K < 2:
        raise checks.InputError("neural collapse needs at least two classes, the labels hold one")
    counts = torch.bincount(labels, minlength=K).to(features.device)
    present = _rows.measured(counts, missing)
    return Rows.of(features, labels.to(features.device)), counts, present, storage, names


class _Pass:
    """What a pass over :class:`Rows` begins with: class means, and residuals about them.

    Residuals about the mean rounded to the dtype of the features are exact; the rest of the mean,
    ``rounding``, is taken out of the sums in the end.
    """

    def __init__(self, rows, counts, present, weight, bias, storage):
        self.rows, self.counts, self.dtype = rows, counts[present], rows.dtype
        self.place = None
        if len(present) < len(counts):
            self.place = _rows.places(present, len(counts))
        means = self.means(0.0)
        if rows.dtype == torch.float64:  # sums of doubles round: once more, about the means
            means = means + self.means(means)
        weight, bias = (_rows.pick(value, present) for value in (weight, bias))
        self.classes = Classes(means, self.counts, weight, bias)
        cut = storage.cut(means)
        self.spectrum, self.basis = between(self.classes.centred, cut=cut)
        self.dtype = _rows.product_dtype(means, rows.dtype)
        self.shift = means.to(self.dtype)
        self.rounding = means - self.shift.double()

    def means(self, about):
        """Class means ``(K, d)`` of the features minus ``about``, 0 or a row for each class."""
        K, d, zero = len(self.counts), self.rows.dim, isinstance(about, float)
        blocks = ((x if zero else x - about[y], y) for x, y in self.blocks())
        return _rows.class_sums(blocks, K, d) / self.counts[:, None]

    def blocks(self):
        """``(features, place of the class)``."""
        for x, y in self.rows.blocks():
            yield x.to(self.dtype), y if self.place is None else self.place[y]

    def residuals(self):
        """``(features, residuals, place of the class)``; the residuals' memory is used again."""
        room = self.shift.new_empty(self.rows.size, self.rows.dim)
        for x, y in self.blocks():
            residual = torch.index_select(self.shift, 0, y, out=room[: len(x)])
            yield x, torch.sub(x, residual, out=residual), y


def measure(rows, counts, present, weight, bias, storage):
    """The metrics of :class:`Rows`; ``present (K',)``: the classes measured."""
    this = _Pass(rows, counts, present, weight, bias, storage)
    classes, basis, counts = this.classes, this.basis, this.counts
    K, N = len(counts), int(counts.sum())
    directions = basis.T.to(this.dtype).contiguous()
    moments, squares = basis.new_zeros(len(directions)), basis.new_zeros(K)
    rules = None
    if weight is not None:
        whole = basis.shape[1] == min(K - 1, rows.dim)  # the span holds every class mean
        rules = Rules(classes, this.shift, directions if whole else None)
    for x, residual, y in this.residuals():
        lengths = _rows.norms(residual)
        squares.index_add_(0, y, lengths.double().square())
        projected = directions @ residual.T
        moments += torch.linalg.vector_norm(projected, dim=1).double().square()
        if rules is not None:
            rules.update(x, residual, projected.T if whole else residual, y, lengths)
    scaled = this.rounding * counts.double().sqrt()[:, None]
    moments -= (scaled @ basis).square().sum(0)
    squares -= scaled.square().sum(1)
    variances, trace = squares.clamp(min=0) / counts, float(squares.sum()) / N
    found = classes.metrics(this.spectrum, basis, moments / N, trace, variances, storage)
    if rules is not None:
        found["ncc_disagreement"] = math.nan if rules.equal else rules.disagreements / N
    return found


def table(rows, counts, present, weight, bias, storage, names):
    """The data frame of :func:`by_class` of :class:`Rows`."""
    this = _Pass(rows, counts, present, weight, bias, storage)
    classes, basis, n = this.classes, this.basis, this.counts[:, None]
    squares, moments = basis.new_zeros(len(n)), basis.new_zeros(len(n), basis.shape[1])
    for _, residual, y in this.residuals():
        squares.index_add_(0, y, residual.double().square().sum(1))
        moments.index_add_(0, y, (residual @ basis.to(this.dtype)).double().square())
    variances = (squares / n[:, 0] - this.rounding.square().sum(1)).clamp(min=0)
    moments = moments / n - (this.rounding @ basis).square()
    trace = float(squares.sum()) / int(n.sum())
    kept = classes.above_rounding(this.spectrum, basis, storage, trace)
    nc1 = (moments / this.spectrum)[:, kept].sum(1) / len(n)
    found = {"nc1": nc1 if kept.any() else nc1 + math.nan} | classes.by_class(variances)
    rules = Rules(classes, this.shift, None)
    second = Agreement(rules, present, len(counts), None)
    for x, y in rows.blocks():
        second.update(x, y)
    found |= {name: value[present] for name, value in second.by_class().items()}
    return frame(found, counts, present, names)


def frame(found, counts, present, names):
    """A data frame of values of the ``present`` classes: one row a class, NaN for the others."""
    import pandas as pd

    index = pd.Index(range(len(counts)) if names is None else names, name="class")
    result = pd.DataFrame({"count": counts.tolist()}, index=index)
    for name, value in found.items():
        column = pd.Series(math.nan, index=index)
        column.iloc[present.tolist()] = value.tolist()
        result[name] = column
    return result
