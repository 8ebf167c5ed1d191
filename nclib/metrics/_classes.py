"""What class means and classifier decide without looking at a sample."""

import math
import warnings

import torch

from nclib.metrics._rows import squarable
from nclib.metrics.geometry import etf_error, gram_distance, sample_mean

TABLE = 2048  # classes up to which K×K products are at hand also for K > d + 1
TILE = 2**23  # numbers held at a time
_MANY = 256  # classes from which the spectrum of their means comes from a Gram matrix
_PAIRED = 4096  # classes above which ``cdnv`` is the mean over the pairs of some of them


class Classes:
    """``means (K, d)`` with their ``counts``, and a classifier or None.

    ``centred`` are the means minus the global mean, ``rows`` the weights minus their mean row.
    With more classes than ``TABLE`` and dimensions nothing of size K×K is built: distances of K×K
    Gram matrices follow from d×d ones.
    """

    def __init__(self, means, counts, weight, bias):
        self.counts, self.means = counts, (means := squarable("features", means))
        self.centre = sample_mean(means, counts)
        self.centred = means - self.centre
        self.equal = not bool(self.centred.any())  # all class means
        self.weight = weight = None if weight is None else weight.to(means.device)
        K, d = means.shape
        self.small = d + 1 >= K  # then K×K products are not larger than d×d ones
        if self.small or K <= TABLE:
            self.gram = self.centred @ self.centred.T
        if weight is not None:
            row = weight.mean(0)
            self.rows = rows = weight - row
            if self.small or K <= TABLE:
                self.rows_gram, self.cross = rows @ rows.T, rows @ self.centred.T
                # The products of the weights as they are: adding that row back cancels nothing.
                along = rows @ row
                self.weight_gram = self.rows_gram + along[:, None] + along + row @ row
                self.weight_cross = self.cross + self.centred @ row
            # Logits of the global mean.
            self.logits = weight @ self.centre + (0.0 if bias is None else bias.to(means.device))

    def between_basis(self, eps):
        """Nonzero spectrum of Σ_B: eigenvalues ``(r,)`` and eigenvectors ``(d, r)``.

        Directions that are only rounding noise of the computation (relative eigenvalue below
        ``max(K, d)·ε²``, and never below float64's ``max(K, d)·ε``) are cut.
        """
        centred, (K, d) = self.centred, self.centred.shape
        if _MANY <= K <= d:
            # The Gram matrix has the same spectrum and one known null direction, the counts.  It
            # squares the condition number, so it serves where that costs no digit that matters.
            values, vectors = torch.linalg.eigh(self.gram)
            if values[1] > 1e-6 * values[-1]:
                basis = centred.T @ (vectors[:, 1:] / values[1:].sqrt())
                return values[1:].flip(0) / K, basis.flip(1)
        # A QR factorisation first: the same accuracy, half the time, no K×d factors.
        if d > K:
            orthogonal, centred = torch.linalg.qr(centred.T)
            vectors, singular, _ = torch.linalg.svd(centred, full_matrices=False)
            vectors = (orthogonal @ vectors).T
        else:
            _, triangle = torch.linalg.qr(centred, mode="r")
            _, singular, vectors = torch.linalg.svd(triangle, full_matrices=False)
        spectrum = singular.square() / K
        cut = max(K, d) * max(eps**2, torch.finfo(torch.float64).eps)
        keep = spectrum > cut * spectrum[0]
        return spectrum[keep], vectors[keep].T

    def above_rounding(self, spectrum, basis, storage, trace_within):
        """Which eigenvalues of Σ_B are more than the rounding of the features stored."""
        floor = storage.floor(self.means, int(self.counts.sum()), trace_within, basis)
        return spectrum * len(self.counts) > floor**2

    def metrics(self, spectrum, basis, moments, trace_within, variances, storage):
        """The metrics from the spectrum of Σ_B and Σ_W's ``moments`` along its eigenvectors,
        ``basis (d, r)``."""
        K = len(self.counts)
        if not math.isfinite(trace_within):
            squarable("features", self.means.new_tensor([trace_within]))
        kept = self.above_rounding(spectrum, basis, storage, trace_within)
        if not kept.any():
            warnings.warn("all class means are equal: NC1 is undefined (NaN)", RuntimeWarning, 5)
        ratios = (moments / spectrum)[kept]
        result = {
            "nc1": float(ratios.sum()) / K if len(ratios) else math.nan,
            "nc1_ratio": self.ratio(trace_within),
            "cdnv": self._cdnv(variances),
            "nc2_means": self._distance("gram", "the Gram matrix of class means"),
        }
        if self.weight is None:
            return result
        for suffix, gram, cross in (
            ("", "weight_gram", "weight_cross"),
            ("_centered", "rows_gram", "cross"),
        ):
            result["nc2" + suffix] = self._distance(gram, "the Gram matrix of W")
            result["nc3" + suffix] = self._distance(cross, "the product of W and M")
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

    def _distance(self, name, what):
        """Distance of one of the K×K products to the ETF's, from d×d products if K is large."""
        if self.small:
            distance = gram_distance(getattr(self, name))
        else:
            weight = {"gram": "centred", "weight_gram": "weight", "rows_gram": "rows"}
            weight |= {"weight_cross": "weight", "cross": "rows"}
            left, right = getattr(self, weight[name]), self.centred
            distance = etf_error(left, right if "cross" in name else left)
        if math.isnan(distance):
            warnings.warn(f"{what} is zero: its metric is undefined (NaN)", RuntimeWarning, 6)
        return distance

    def _cdnv(self, variances):
        K = len(variances)
        if self.equal:
            return math.nan
        classes = None
        if K > _PAIRED:
            classes = torch.randperm(K, generator=torch.Generator().manual_seed(0))[: _PAIRED // 4]
        gram = self.gram if K <= _PAIRED and hasattr(self, "gram") else None
        return float(cdnv_by_class(self.centred, variances, classes, gram=gram).mean())


def cdnv_by_class(means, variances, classes=None, *, gram=None):
    """Class-distance normalised variance of each class (or of ``classes``): the mean over the
    other classes j of ``(v_k + v_j) / (2 ‖μ_k - μ_j‖²)`` (Galanti et al. 2022), ``(K,)``.

    ``means (K, d)``, ``variances (K,)``: ``E ‖h - μ_k‖²``.  In tiles; infinite if two means
    coincide, unless both classes have no variance.  ``gram``: the means' Gram matrix, if at hand.
    """
    K = len(means)
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
