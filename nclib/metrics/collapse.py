"""Class statistics and the neural-collapse metrics NC1-NC4.

Conventions (result 1): ``μ_k`` class means, ``μ_G`` the mean over *samples*,

    Σ_W = (1/N) Σ_i (h_i - μ_{y_i})(h_i - μ_{y_i})ᵀ,   Σ_B = (1/K) Σ_k (μ_k - μ_G)(μ_k - μ_G)ᵀ,

so Σ_B weighs all classes alike, also when they are imbalanced.  NC1 lives far below the rounding
error of the features themselves; it is computed from residuals about a shift that is already close
to the class mean, and Σ_W is only formed inside the span of the class means: N·d·K operations
instead of N·d².
"""

import warnings

import torch

from nclib import checks, frames

_ROWS = 2048  # rows per block: large enough for a fast product, small enough to stay in cache


class ClassStatistics:
    """Counts, class means and within-class scatter in **one streaming pass**, mergeable.

    >>> statistics = ClassStatistics(num_classes=10, dim=512)
    >>> for features, labels in batches:  # doctest: +SKIP
    ...     statistics.update(features, labels)
    >>> statistics.metrics(weight, bias)  # doctest: +SKIP

    Each class is shifted by its mean in the first batch that holds it, before anything is squared:
    nothing cancels when the features have collapsed.  Sums are float64, products are in the dtype
    of the features (at least float32).  Memory: d² + 2·K·d float64 numbers.
    """

    def __init__(self, num_classes, dim, *, device=None):
        self.num_classes = checks.integer("num_classes", num_classes, 2)
        self.dim = checks.integer("dim", dim)
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.shift, self._offset = zeros(num_classes, dim), zeros(num_classes, dim)
        self._scatter = zeros(dim, dim)
        self._eps = torch.finfo(torch.float64).eps

    def update(self, features, labels):
        """Add a batch: ``features (B, d)``, ``labels (B,)``.  Returns ``self``."""
        features = checks.matrix("features", features, columns=self.dim).detach()
        labels, _ = checks.labels(labels, self.num_classes, length=len(features))
        self._eps = max(self._eps, torch.finfo(features.dtype).eps)
        features, labels = features.to(self.shift.device), labels.to(self.shift.device)
        for x, y in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
            counts = torch.bincount(y, minlength=self.num_classes)
            new = (self.counts == 0) & (counts > 0)
            if new.any():
                sums = torch.zeros_like(self.shift).index_add_(0, y, x.double())
                first = sums / counts.clamp(min=1).unsqueeze(1)
                # Rounded to the dtype of the features: the subtraction below is then exact.
                self.shift[new] = first[new].to(x.dtype).double()
            residual = x - self.shift.to(x.dtype)[y]
            self._offset.index_add_(0, y, residual.double())
            self._scatter += (residual.T @ residual).double()
            self.counts += counts
        return self

    def merge(self, other):
        """Add the statistics of other samples (Chan's update).  Returns ``self``."""
        if (other.num_classes, other.dim) != (self.num_classes, self.dim):
            raise checks.InputError(
                f"cannot merge statistics of {other.num_classes} classes in dimension {other.dim} "
                f"into {self.num_classes} classes in dimension {self.dim}"
            )
        device = self.shift.device
        here = self.counts.clamp(min=1).unsqueeze(1).double()
        there = other.counts.to(device).clamp(min=1).unsqueeze(1).double()
        both = ((self.counts > 0) & (other.counts.to(device) > 0)).unsqueeze(1)
        # Sum the two scatters about their own means, plus the scatter between those means ...
        gap = (other.shift.to(device) - self.shift) + (
            other._offset.to(device) / there - self._offset / here
        )
        rows = torch.where(both, gap * (here * there / (here + there)).sqrt(), 0.0)
        within = self._centred() + other._centred().to(device) + rows.T @ rows
        # ... and express the result about our shift again.
        empty = (self.counts == 0).unsqueeze(1)
        shift = torch.where(empty, other.shift.to(device), self.shift)
        moved = other._offset.to(device) + other.counts.to(device).unsqueeze(1) * (
            other.shift.to(device) - shift
        )
        self._offset = torch.where(empty, other._offset.to(device), self._offset + moved)
        self.shift = shift
        self.counts = self.counts + other.counts.to(device)
        scaled = self._offset / self.counts.clamp(min=1).double().sqrt().unsqueeze(1)
        self._scatter = within + scaled.T @ scaled
        self._eps = max(self._eps, other._eps)
        return self

    def _centred(self):
        scaled = self._offset / self.counts.clamp(min=1).double().sqrt().unsqueeze(1)
        return self._scatter - scaled.T @ scaled

    @property
    def means(self):
        """Class means ``(K, d)``, float64; rows of classes not seen yet are zero."""
        return self.shift + self._offset / self.counts.clamp(min=1).unsqueeze(1)

    @property
    def global_mean(self):
        """Mean over samples ``(d,)``."""
        return self.counts.double() @ self.means / self.counts.sum()

    @property
    def within_covariance(self):
        """Σ_W ``(d, d)``, float64."""
        return self._centred() / self.counts.sum()

    @property
    def between_covariance(self):
        """Σ_B ``(d, d)``, uniform over classes, float64."""
        centred = self.means - self.global_mean
        return centred.T @ centred / self.num_classes

    def metrics(self, weight=None, bias=None):
        """The metrics of :func:`nc_metrics` but ``ncc_disagreement``, which needs the samples."""
        _nonempty(self.counts)
        within = self.within_covariance
        return _metrics(
            self.counts,
            self.means,
            self._eps,
            lambda basis: ((basis.T @ within) * basis.T).sum(1),
            float(within.trace()),
            *_classifier(weight, bias, self.num_classes, self.dim),
        )


def nc_metrics(features, labels, weight=None, bias=None, *, num_classes=None):
    """Neural-collapse metrics of features held in memory, in every published convention.

    Args:
        features: ``(N, d)`` last-layer features, any float dtype (half precision is upcast).
        labels: ``(N,)`` class indices 0..K-1; every class must occur.
        weight: ``(K, d)`` classifier; ``None`` leaves out the metrics that need one.
        bias: ``(K,)``, or ``None`` for no bias.
        num_classes: K, if it cannot be read off ``weight`` or the labels.

    Returns a dict of floats:

    =====================  ======================================================================
    ``nc1``                ``tr(Σ_W Σ_B⁺)/K`` (variability collapse)
    ``nc1_ratio``          ``tr Σ_W / tr Σ_B``, no pseudo-inverse
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
    Where a matrix to be normalised is zero (W = 0, all class means equal) the metric is NaN and a
    ``RuntimeWarning`` says which.  Source: result 1, claims 1.L16 and 1.L18.

    Raises :class:`~nclib.checks.InputError` for NaN features, labels out of range, an empty class,
    fewer than two classes, or shapes that do not fit.
    """
    features = checks.matrix("features", features).detach()
    N, d = features.shape
    if weight is not None and num_classes is None:
        num_classes = len(torch.as_tensor(weight))
    labels, K = checks.labels(labels, num_classes, length=N)
    if K < 2:
        raise checks.InputError("neural collapse needs at least two classes, the labels hold one")
    counts = _nonempty(torch.bincount(labels, minlength=K)).to(features.device)
    labels = labels.to(features.device)
    weight, bias = _classifier(weight, bias, K, d)

    blocks = list(zip(features.split(_ROWS), labels.split(_ROWS), strict=True))
    shift = _class_sums(blocks, K) / counts.unsqueeze(1)
    shift = shift.to(features.dtype)
    centre = shift.mean(0)
    basis = _between_basis(shift.double(), counts, torch.finfo(features.dtype).eps)[1]
    cast = basis.to(features.dtype)
    if weight is not None:
        # Logits and nearest-mean scores in one product, both up to terms without the sample.
        scores = torch.cat([weight.to(features), 2 * (shift - centre)]).T.contiguous()
        constant = weight.to(centre) @ centre + (0.0 if bias is None else bias.to(centre))
        constant = torch.cat([constant, -(shift - centre).square().sum(1)])
    offset = torch.zeros(K, d, dtype=torch.float64, device=features.device)
    squares = torch.zeros((), dtype=torch.float64, device=features.device)
    moments = torch.zeros(basis.shape[1], dtype=torch.float64, device=features.device)
    disagreements = 0
    for x, y in blocks:
        residual = x - shift[y]
        offset += torch.zeros_like(shift).index_add_(0, y, residual)
        squares += residual.square().sum(1).double().sum()
        moments += (residual @ cast).double().square().sum(0)
        if weight is not None:
            predicted, nearest = torch.addmm(constant, x - centre, scores).split(K, 1)
            disagreements += int((predicted.argmax(1) != nearest.argmax(1)).sum())
    # The shift is the class mean up to rounding; take the remaining offset out exactly.
    means = shift.double() + offset / counts.unsqueeze(1)
    scaled = offset / counts.double().sqrt().unsqueeze(1)
    moments -= (scaled @ cast.double()).square().sum(0)
    trace = float(squares - scaled.square().sum()) / N
    result = _metrics(
        counts, means, torch.finfo(features.dtype).eps, lambda _: moments / N, trace, weight, bias
    )
    if weight is not None:
        result["ncc_disagreement"] = disagreements / N
    return result


def _nonempty(counts):
    return checks.class_counts(torch.repeat_interleave(counts.cpu()), len(counts)).to(counts.device)


def _classifier(weight, bias, K, d):
    if weight is None:
        if bias is not None:
            raise checks.InputError("a bias was given without a weight")
        return None, None
    weight = checks.matrix("weight", weight, rows=K, columns=d, dtype=torch.float64).detach()
    if bias is not None:
        bias = checks.vector("bias", bias, K, dtype=torch.float64).detach()
    return weight, bias


def _class_sums(blocks, K):
    """Sum of the features of each class ``(K, d)`` in float64; blocks add up in their dtype."""
    x, _ = blocks[0]
    sums = torch.zeros(K, x.shape[1], dtype=torch.float64, device=x.device)
    for x, y in blocks:
        sums += torch.zeros(K, x.shape[1], dtype=x.dtype, device=x.device).index_add_(0, y, x)
    return sums


def _between_basis(means, counts, eps):
    """Nonzero spectrum of Σ_B: eigenvalues ``(r,)`` and eigenvectors ``(d, r)``.

    Directions that are only rounding noise of the features (relative eigenvalue below
    ``max(K, d)·ε²`` of their dtype, and never below float64's ``max(K, d)·ε``) are cut.
    """
    K, d = means.shape
    centred = means - counts.double() @ means / counts.sum()
    _, singular, vectors = torch.linalg.svd(centred, full_matrices=False)
    spectrum = singular.square() / K
    cut = max(K, d) * max(eps**2, torch.finfo(torch.float64).eps)
    keep = spectrum > cut * spectrum[0]
    return spectrum[keep], vectors[keep].T


def _normalised_distance(gram, what):
    """``‖G/‖G‖ - Ê‖``; NaN with a warning for G = 0."""
    norm = gram.norm()
    if not norm > 0:
        warnings.warn(f"{what} is zero: its metric is undefined (NaN)", RuntimeWarning, 4)
        return float("nan")
    target = frames.etf_gram(len(gram), dtype=gram.dtype, device=gram.device)
    return float((gram / norm - target).norm())


def _metrics(counts, means, eps, moments_in, trace_within, weight, bias):
    K = len(counts)
    global_mean = counts.double() @ means / counts.sum()
    centred = means - global_mean
    spectrum, basis = _between_basis(means, counts, eps)
    total = float(centred.square().sum()) / K
    if len(spectrum) == 0:
        warnings.warn("all class means are equal: NC1 is undefined (NaN)", RuntimeWarning, 3)
    result = {
        "nc1": float((moments_in(basis) / spectrum).sum()) / K if len(spectrum) else float("nan"),
        "nc1_ratio": trace_within / total if total > 0 else float("nan"),
        "nc2_means": _normalised_distance(centred @ centred.T, "the Gram matrix of class means"),
    }
    if weight is None:
        return result
    weight = weight.to(means.device)
    recentred = weight - weight.mean(0)
    logits = weight @ global_mean + (0.0 if bias is None else bias.to(means.device))
    for suffix, rows in (("", weight), ("_centered", recentred)):
        result["nc2" + suffix] = _normalised_distance(rows @ rows.T, "the Gram matrix of W")
        result["nc3" + suffix] = _normalised_distance(rows @ centred.T, "the product of W and M")
    result["residual"] = float(logits.norm())
    result["residual_centered"] = float((logits - logits.mean()).norm())
    return result
