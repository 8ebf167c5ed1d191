"""Class statistics and the neural-collapse metrics NC1-NC4.

Conventions (result 1): ``μ_k`` class means, ``μ_G`` the mean over *samples*,

    Σ_W = (1/N) Σ_i (h_i - μ_{y_i})(h_i - μ_{y_i})ᵀ,   Σ_B = (1/K) Σ_k (μ_k - μ_G)(μ_k - μ_G)ᵀ,

so Σ_B weighs all classes alike, also when they are imbalanced.  NC1 lives far below the rounding
error of the features themselves; it is computed from residuals about a shift that is already close
to the class mean.  Three facts make it cheap: NC1 needs Σ_W only inside the span of the class means
(N·d·K operations instead of N·d²); where that does not pay, Σ_W is symmetric, and five eighths of
it are enough; and a sample nearer to its class mean than any decision boundary needs no logits.
"""

import warnings

import torch

from nclib import checks, frames

_ROWS = 1024  # rows per block: large enough for a fast product, small enough to stay in cache
_EXACT_ROWS = 2048  # rows whose products are summed in the dtype of the features, before float64
_SMALL = 128  # up to this dimension products are float64: they cost little, and average little
_MANY = 256  # classes from which the spectrum of their means comes from a Gram matrix
_PANELS = 4  # column panels of a symmetric product; 4 panels need 10/16 of its entries


class ClassStatistics:
    """Counts, class means and within-class scatter in **one streaming pass**, mergeable.

    >>> statistics = ClassStatistics(num_classes=10, dim=512)
    >>> for features, labels in batches:  # doctest: +SKIP
    ...     statistics.update(features, labels)
    >>> statistics.metrics(weight, bias)  # doctest: +SKIP

    Each class is shifted by its mean in the first batch that holds it, before anything is squared:
    nothing cancels when the features have collapsed.  Sums are float64, products are in the widest
    dtype of the features seen (at least float32; float64 for d ≤ 128).  Memory: d² + 2·K·d float64
    numbers, and d² + K·d in the dtype of the features.
    """

    def __init__(self, num_classes, dim, *, device=None):
        self.num_classes = checks.integer("num_classes", num_classes, 2)
        self.dim = checks.integer("dim", dim)
        zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.shift, self._offset = zeros(num_classes, dim), zeros(num_classes, dim)
        self._near = None  # the shift in the dtype of the features
        self._scatter, self._recent, self._recent_rows = zeros(dim, dim), None, 0
        self._eps = torch.finfo(torch.float64).eps

    def update(self, features, labels):
        """Add a batch: ``features (B, d)``, ``labels (B,)``.  Returns ``self``."""
        features = checks.matrix("features", features, columns=self.dim).detach()
        labels, _ = checks.labels(labels, self.num_classes, length=len(features))
        self._eps = max(self._eps, torch.finfo(features.dtype).eps)
        features, labels = features.to(self.shift.device), labels.to(self.shift.device)
        self._use_dtype(features.dtype)
        features = features.to(self._near.dtype)
        for x, y in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
            counts = torch.bincount(y, minlength=self.num_classes)
            self._begin_classes(x, y, counts)
            residual = x - self._near.index_select(0, y)
            self._offset.index_add_(0, y, residual.double())
            _add_products(self._recent, residual.to(self._recent.dtype))
            self.counts += counts
            self._recent_rows += len(x)
            if self._recent_rows >= _EXACT_ROWS:
                self._flush()
        return self

    def _use_dtype(self, dtype):
        """Products and shifts in ``dtype``, unless wider features came before."""
        if self._near is not None:
            dtype = torch.promote_types(dtype, self._near.dtype)
            if dtype == self._near.dtype:
                return
            self._flush()
        self._near = self.shift.to(dtype)
        self._recent = torch.zeros_like(self._scatter, dtype=_product_dtype(self.dim, dtype))

    def _begin_classes(self, x, y, counts):
        new = (self.counts == 0) & (counts > 0)
        if new.any():
            sums = torch.zeros_like(self.shift).index_add_(0, y, x.double())
            first = sums / counts.clamp(min=1).unsqueeze(1)
            # Rounded to the dtype of the features: subtracting it from them is then exact.
            self._near[new] = first[new].to(x.dtype)
            self.shift[new] = self._near[new].double()

    def _flush(self):
        if self._recent_rows:
            self._scatter += self._recent
            self._recent.zero_()
            self._recent_rows = 0

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
        self._near = None if self._near is None else shift.to(self._near.dtype)
        self.counts = self.counts + other.counts.to(device)
        scaled = self._offset / self.counts.clamp(min=1).double().sqrt().unsqueeze(1)
        self._scatter = within + scaled.T @ scaled
        self._eps = max(self._eps, other._eps)
        return self

    def _centred(self):
        self._flush()
        scaled = self._offset / self.counts.clamp(min=1).double().sqrt().unsqueeze(1)
        return _symmetric(self._scatter) - scaled.T @ scaled

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
        weight, bias = _classifier(weight, bias, self.num_classes, self.dim)
        within, classes = self.within_covariance, _Classes(self.means, self.counts, weight, bias)
        spectrum, basis = classes.between_basis(self._eps)
        moments = ((basis.T @ within) * basis.T).sum(1)
        return classes.metrics(spectrum, moments, float(within.trace()))


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
    means = _class_sums(blocks, K) / counts.unsqueeze(1)
    classes = _Classes(means, counts, weight, bias)
    spectrum, basis = classes.between_basis(torch.finfo(features.dtype).eps)
    # Residuals about the mean rounded to the dtype of the features are exact; the rest of the mean
    # is taken out of the sums in the end.
    shift = means.to(features.dtype)
    scaled = (means - shift.double()) * counts.double().sqrt().unsqueeze(1)
    inside = 2 * basis.shape[1] < d * (1 + 1 / _PANELS)  # cheaper than d×d products?
    exact = _product_dtype(d, features.dtype)
    directions = (basis if inside else basis[:, :0]).T.to(exact).contiguous()
    moments = torch.zeros(len(directions), dtype=torch.float64, device=features.device)
    squares = torch.zeros((), dtype=torch.float64, device=features.device)
    scatter = None if inside else torch.zeros(d, d, dtype=torch.float64, device=features.device)
    rule = None
    if weight is not None:
        whole = inside and len(spectrum) == min(K - 1, d)  # the span holds every class mean
        span = directions if whole else None
        rule = _Agreement(classes, shift.to(exact), span)
    projected, room = None, torch.empty_like(blocks[0][0])  # one block's residuals, used again
    for x, y in blocks:
        residual = torch.index_select(shift, 0, y, out=room[: len(x)])
        residual = torch.sub(x, residual, out=residual).to(exact)
        norms = torch.linalg.vector_norm(residual, dim=1)
        squares += norms.double().square().sum()
        if inside:
            projected = directions @ residual.T
            moments += torch.linalg.vector_norm(projected, dim=1).double().square()
        else:
            _add_products(scatter, residual)
        if rule is not None:
            rule.update(residual, projected.T if whole else residual, y, norms)
    if inside:
        moments -= (scaled @ basis).square().sum(0)
    else:
        within = _symmetric(scatter) - scaled.T @ scaled
        moments = ((basis.T @ within) * basis.T).sum(1)
    trace = float(squares - scaled.square().sum()) / N
    result = classes.metrics(spectrum, moments / N, trace)
    if rule is not None:
        result["ncc_disagreement"] = rule.disagreements / N
    return result


class _Classes:
    """What the class means and the classifier alone decide, from three products of K×d matrices.

    ``centred`` are the means minus the global mean, ``rows`` the weights minus their mean row; the
    products of the weights as they are follow by adding that row back, which cancels nothing.
    """

    def __init__(self, means, counts, weight, bias):
        self.counts, self.means = counts, means
        self.centre = counts.double() @ means / counts.sum()
        self.centred = means - self.centre
        self.gram = self.centred @ self.centred.T
        self.weight = weight = None if weight is None else weight.to(means.device)
        if weight is not None:
            row = weight.mean(0)
            rows = weight - row
            self.rows_gram, self.cross = rows @ rows.T, rows @ self.centred.T
            along = rows @ row
            self.weight_gram = self.rows_gram + along[:, None] + along + row @ row
            self.weight_cross = self.cross + self.centred @ row
            # Logits of the global mean.
            self.logits = weight @ self.centre + (0.0 if bias is None else bias.to(means.device))

    def between_basis(self, eps):
        """Nonzero spectrum of Σ_B: eigenvalues ``(r,)`` and eigenvectors ``(d, r)``.

        Directions that are only rounding noise of the features (relative eigenvalue below
        ``max(K, d)·ε²`` of their dtype, and never below float64's ``max(K, d)·ε``) are cut.
        """
        centred, (K, d) = self.centred, self.centred.shape
        if _MANY <= K <= d:
            # The Gram matrix has the same spectrum and one known null direction, the counts.  It
            # squares the condition number, so it serves where that costs no digit that matters.
            values, vectors = torch.linalg.eigh(self.gram)
            if values[1] > 1e-6 * values[-1]:
                basis = centred.T @ (vectors[:, 1:] / values[1:].sqrt())
                return values[1:].flip(0) / K, basis.flip(1)
        if d > K:  # a QR factorisation first: the same accuracy, half the time
            orthogonal, centred = torch.linalg.qr(centred.T)
            vectors, singular, _ = torch.linalg.svd(centred, full_matrices=False)
            vectors = (orthogonal @ vectors).T
        else:
            _, singular, vectors = torch.linalg.svd(centred, full_matrices=False)
        spectrum = singular.square() / K
        cut = max(K, d) * max(eps**2, torch.finfo(torch.float64).eps)
        keep = spectrum > cut * spectrum[0]
        return spectrum[keep], vectors[keep].T

    def metrics(self, spectrum, moments, trace_within):
        """The metrics from the spectrum of Σ_B and Σ_W's ``moments`` along its eigenvectors."""
        K = len(self.counts)
        total = float(self.centred.square().sum()) / K
        if len(spectrum) == 0:
            warnings.warn("all class means are equal: NC1 is undefined (NaN)", RuntimeWarning, 3)
        result = {
            "nc1": float((moments / spectrum).sum()) / K if len(spectrum) else float("nan"),
            "nc1_ratio": trace_within / total if total > 0 else float("nan"),
            "nc2_means": _normalised_distance(self.gram, "the Gram matrix of class means"),
        }
        if self.weight is None:
            return result
        for suffix, gram, cross in (
            ("", self.weight_gram, self.weight_cross),
            ("_centered", self.rows_gram, self.cross),
        ):
            result["nc2" + suffix] = _normalised_distance(gram, "the Gram matrix of W")
            result["nc3" + suffix] = _normalised_distance(cross, "the product of W and M")
        result["residual"] = float(self.logits.norm())
        result["residual_centered"] = float((self.logits - self.logits.mean()).norm())
        return result


class _Agreement:
    """Counts samples whose nearest class mean is not the predicted class.

    Both are the largest of K affine scores of a sample.  ``reach`` is the distance from the shift
    of a class to the nearest boundary of either rule, positive where both choose that class: a
    sample within reach agrees and needs no scores.  ``span (r, d)``: an orthonormal basis of the
    span of the centred means, if the projections on it are at hand.
    """

    def __init__(self, classes, shift, span):
        dtype = shift.dtype
        self.weight, self.directions = classes.weight.to(dtype), (2 * classes.centred).to(dtype)
        # From the means, whose scores are at hand, to the shift: a rounding error away.
        gap = (shift.double() - classes.means).to(dtype)
        nearest = 2 * classes.gram - classes.gram.diagonal()
        nearest = nearest + (gap @ self.directions.T).double()
        logits = classes.weight_cross.T + classes.logits
        logits = logits + (gap @ self.weight.T).double()
        reach = torch.minimum(
            _boundary(logits, classes.rows_gram), _boundary(nearest, 4 * classes.gram)
        )
        self.reach = (0.999 * reach).to(dtype)  # for the rounding of norms
        if span is not None:
            self.directions = self.directions @ span.T
        self.logits, self.nearest = logits.to(dtype), nearest.to(dtype)
        self.disagreements = 0

    def update(self, residual, inside, labels, norms):
        """Add samples: residuals about the shift ``(B, d)``, these in the span ``(B, r)`` (or as
        they are, without a span), classes, and norms of the residuals.
        """
        unsure = (norms >= self.reach[labels]).nonzero().flatten()
        if len(unsure) == 0:
            return
        if len(unsure) < len(labels):
            labels, residual, inside = labels[unsure], residual[unsure], inside[unsure]
        predicted = torch.addmm(self.logits[labels], residual, self.weight.T)
        nearest = torch.addmm(self.nearest[labels], inside, self.directions.T)
        self.disagreements += int((predicted.argmax(1) != nearest.argmax(1)).sum())


def _boundary(scores, gram):
    """Distance from point k, whose affine scores are ``scores[k]``, to the nearest point where
    class k has not the largest score; at most 0 if it has not at point k itself.

    ``gram``: inner products of the K gradients of the scores, up to a common shift of them.
    """
    squares = gram.diagonal()
    gaps = squares[:, None] + squares - 2 * gram
    gaps += 1e-12 * (squares[:, None] + squares)  # rounding: never too small
    margins = (scores.diagonal()[:, None] - scores) / gaps.clamp(min=1e-300).sqrt()
    return margins.fill_diagonal_(torch.inf).amin(1)


def _product_dtype(d, dtype):
    return torch.float64 if d <= _SMALL else dtype


def _add_products(total, rows):
    """Add the upper column panels of ``rowsᵀ rows`` to ``total (d, d)``; see :func:`_symmetric`."""
    d = len(total)
    step = -(-d // _PANELS)
    for i in range(0, d, step):
        part, left, right = total[i : i + step, i:], rows[:, i : i + step].T, rows[:, i:]
        if total.dtype == rows.dtype:
            part.addmm_(left, right)
        else:
            part += left @ right


def _symmetric(upper):
    """The symmetric matrix with this upper triangle."""
    return upper.triu() + upper.triu(1).T


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
    """Sum of the features of each class ``(K, d)``, in float64 throughout."""
    x, _ = blocks[0]
    wide = torch.empty_like(x, dtype=torch.float64)
    sums = torch.zeros(K, x.shape[1], dtype=torch.float64, device=x.device)
    for x, y in blocks:
        sums.index_add_(0, y, wide[: len(x)].copy_(x))
    return sums


def _normalised_distance(gram, what):
    """``‖G/‖G‖ - Ê‖``; NaN with a warning for G = 0."""
    norm = gram.norm()
    if not norm > 0:
        warnings.warn(f"{what} is zero: its metric is undefined (NaN)", RuntimeWarning, 4)
        return float("nan")
    target = frames.etf_gram(len(gram), dtype=gram.dtype, device=gram.device)
    return float((gram / norm - target).norm())
