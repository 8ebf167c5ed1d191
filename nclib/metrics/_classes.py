"""What class means and classifier decide without looking at a sample."""

import math
import warnings

import torch

from nclib import checks
from nclib.metrics._rows import squarable
from nclib.metrics.geometry import etf_error, sample_mean, sum_of_ratios

TABLE = 2048  # classes up to which K×K products are at hand
TILE = 2**23  # numbers held at a time
_PAIRED = 4096  # classes above which ``cdnv`` is the mean over the pairs of some of them


class Classes:
    """``means (K, d)`` with their ``counts``, and a classifier or None.

    ``centred`` are the means minus the global mean, ``rows`` the weights minus their mean row.
    With more classes than ``TABLE`` nothing of size K×K is built.
    """

    def __init__(self, means, counts, weight, bias):
        self.counts, self.means = counts, (means := squarable("features", means))
        self.centre = sample_mean(means, counts)
        self.centred = means - self.centre
        self.equal = not bool(self.centred.any())  # all class means
        self.weight = weight = None if weight is None else weight.to(means.device)
        tabled = len(means) <= TABLE
        if tabled:
            self.gram = self.centred @ self.centred.T
        if weight is not None:
            self.rows = weight - weight.mean(0)
            if tabled:
                self.rows_gram, self.cross = self.rows @ self.rows.T, weight @ self.centred.T
            # Logits of the global mean.
            self.logits = weight @ self.centre + (0.0 if bias is None else bias.to(means.device))

    def above_rounding(self, spectrum, basis, storage, trace_within):
        """Which eigenvalues of Σ_B are more than the rounding of the features stored."""
        floor = storage.floor(self.means, int(self.counts.sum()), trace_within, basis)
        return spectrum * len(self.counts) > floor**2

    def metrics(self, spectrum, basis, moments, trace_within, variances, storage, sums=False):
        """The metrics from the spectrum of Σ_B and Σ_W's ``moments`` along its eigenvectors,
        ``basis (d, r)``; ``sums``: which come from Σ_W."""
        K = len(self.counts)
        if not math.isfinite(trace_within):
            squarable("features", self.means.new_tensor([trace_within]))
        kept = self.above_rounding(spectrum, basis, storage, trace_within)
        if not kept.any():
            warnings.warn("all class means are equal: NC1 is undefined (NaN)", RuntimeWarning, 5)
        result = {
            "nc1": sum_of_ratios(moments[kept], spectrum[kept], trace_within if sums else 0.0) / K,
            "nc1_ratio": self.ratio(trace_within),
            "cdnv": self._cdnv(variances),
            "nc2_means": _etf_error("the Gram matrix of class means", self.centred),
        }
        if self.weight is None:
            return result
        for suffix, rows in (("", self.weight), ("_centered", self.rows)):
            result["nc2" + suffix] = _etf_error("the Gram matrix of W", rows)
            result["nc3" + suffix] = _etf_error("the product of W and M", rows, self.centred)
        result["residual"] = float(self.logits.norm())
        result["residual_centered"] = float((self.logits - self.logits.mean()).norm())
        return result

    def by_class(self, variances):
        """``nc1_ratio`` and ``cdnv`` of each class."""
        cdnv = cdnv_by_class(self.means, variances)
        return {"nc1_ratio": self.ratio(variances), "cdnv": cdnv * math.nan if self.equal else cdnv}

    def ratio(self, traces):
        """Traces over the one of Σ_B; NaN if all class means are equal."""
        between = float(self.centred.square().sum()) / len(self.counts)
        return traces * math.nan if self.equal else traces / between

    def _cdnv(self, variances):
        K = len(variances)
        if self.equal:
            return math.nan
        classes = None
        if K > _PAIRED:
            classes = torch.randperm(K, generator=torch.Generator().manual_seed(0))[: _PAIRED // 4]
        gram = getattr(self, "gram", None)
        return float(cdnv_by_class(self.centred, variances, classes, gram=gram).mean())


def _etf_error(what, left, right=None):
    distance = etf_error(left, right)
    if math.isnan(distance):
        warnings.warn(f"{what} is zero: its metric is undefined (NaN)", RuntimeWarning, 6)
    return distance


def cdnv_by_class(means, variances, classes=None, *, gram=None):
    """Class-distance normalised variance of each class (or of ``classes``): the mean over the
    other classes j of ``(v_k + v_j) / (2 ‖μ_k - μ_j‖²)`` (Galanti et al. 2022), ``(K,)``.

    ``means (K, d)``, ``variances (K,)``: ``E ‖h - μ_k‖²``.  In tiles; infinite if two means
    coincide, unless both classes have no variance.  ``gram``: the means' Gram matrix, if at hand.
    Raises :class:`~nclib.checks.InputError` for shapes that do not fit.
    """
    means = checks.matrix("means", means, dtype=torch.float64)
    K = len(means)
    variances = checks.vector("variances", variances, K, dtype=torch.float64)
    classes = torch.arange(K) if classes is None else classes
    found = []
    for rows in classes.to(means.device).split(max(32, TILE // 8 // K)):
        squared = squared_distances(means, rows, gram=gram)
        spread = (variances[rows, None] + variances[None]) / 2
        ratio = torch.where(spread > 0, spread / squared, 0.0).scatter_(1, rows[:, None], 0.0)
        found.append(ratio.sum(1) / (K - 1))
    return torch.cat(found)


def squared_distances(rows, index, *, gram=None):
    """``‖a_i - a_j‖²`` for i in ``index`` and all j; exact differences where the two are close."""
    picked, squares = rows[index], rows.square().sum(1)
    products = picked @ rows.T if gram is None else gram[index]
    squared = squares[index, None] + squares - 2 * products
    i, j = (squared < 1e-8 * squares.max()).nonzero(as_tuple=True)
    squared[i, j] = (picked[i] - rows[j]).square().sum(1)
    return squared
