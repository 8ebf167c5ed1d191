"""Result 3: collapse metrics for several labels per sample.

``targets (N, K)`` is multi-hot; the row of a sample is its *label set* S, its number of labels the
*multiplicity* m.  M_k is the mean feature of the samples with the single label k, μ the mean of the
M_k (each class counts once), μ_S the mean feature of label set S (each sample counts once), and
T = (I - 11ᵀ/K)/√(K-1).  All work is float64.
"""

import warnings
from dataclasses import dataclass
from functools import partial
from itertools import combinations, islice
from math import comb, frexp
from typing import NamedTuple

import numpy as np
import torch

from nclib import checks
from nclib.metrics import geometry
from nclib.metrics._rows import squarable
from nclib.metrics.geometry import etf_error
from nclib.metrics.precision import Storage, exact

CONVENTIONS = ("clean", "official")
_MAX_PAIRS, _MAX_SETS, _DRAWN = 30_000_000, 2**20, 2**17


class Angle(NamedTuple):
    """Mean angle of a label set's mean to its tag-wise sum: ``degrees``, and its ``ratio`` to the
    mean angle over all pairs of (possible set, observed set).  Also ``angle["degrees"]``.

    The mean over pairs is exact up to 30 million pairs and 2²⁰ possible sets; beyond, 2¹⁷ possible
    sets are drawn at random, or as many as make 30 million pairs.
    """

    degrees: float
    ratio: float

    def __getitem__(self, key):
        return getattr(self, key) if isinstance(key, str) else tuple(self)[key]


class TagwiseFit(NamedTuple):
    """Least-squares fit ``μ_S = offset + scale Σ_{k∈S} direction_k`` over the label sets of one
    multiplicity.

    ``scale`` C_m; ``offset (d,)``; ``residual`` = ``Σ‖r_S‖² / Σ‖μ_S - offset‖²``; ``degrees (R,)``
    the angle of ``μ_S - offset`` to the tag-wise sum for each of the R sets; ``ratio`` as in
    :class:`Angle`; ``label_sets (R, K)`` bool; ``sample_counts (R,)``.  NaN where undetermined.
    """

    scale: float
    offset: torch.Tensor
    residual: float
    degrees: torch.Tensor
    ratio: float
    label_sets: torch.Tensor
    sample_counts: torch.Tensor


@dataclass(frozen=True)
class LabelSetStatistics:
    """Counts, means and scatter of the features of every label set; see :meth:`of`.

    ``label_sets (R, K)`` bool, ``counts (R,)``, ``means (R, d)``, ``scatter (R,)`` with
    ``Σ‖h - μ_S‖²``, ``within (d, d)``, the scatter matrix of all single-label samples, and
    ``storage``, the precision in which the features were stored.
    """

    label_sets: torch.Tensor
    counts: torch.Tensor
    means: torch.Tensor
    scatter: torch.Tensor
    within: torch.Tensor
    storage: Storage

    @classmethod
    @exact
    def of(cls, features, targets, *, precision=None):
        """The statistics of features ``(N, d)`` with multi-hot targets ``(N, K)``.

        ``precision`` as in :func:`~nclib.metrics.nc_metrics`.  Scatter is that about the means:
        nothing cancels when features have collapsed.
        """
        storage = Storage.of(features, precision)
        features = squarable("features", checks.matrix("features", features).double())
        targets = checks.label_sets(targets)
        if len(targets) != len(features):
            raise checks.InputError(
                f"targets must have shape {(len(features), targets.shape[1])}, got "
                f"{tuple(targets.shape)}"
            )
        checks.integer("num_classes", targets.shape[1], 2)
        sets, inverse = targets.to(features.device).bool().unique(dim=0, return_inverse=True)
        counts = torch.bincount(inverse).to(features)
        sums = features.new_zeros(len(sets), features.shape[1]).index_add_(0, inverse, features)
        means = sums / counts[:, None]
        centred = features - means[inverse]
        scatter = features.new_zeros(len(sets)).index_add_(0, inverse, centred.square().sum(1))
        single = centred[sets[inverse].sum(1) == 1]
        return cls(sets, counts, means, scatter, single.T @ single, storage)

    @property
    def K(self):
        """Number of classes."""
        return self.label_sets.shape[1]

    @property
    def multiplicities(self):
        """Multiplicities present, ascending."""
        return sorted({int(m) for m in self.label_sets.sum(1)})

    def rows(self, m):
        """Rows of the label sets of multiplicity m, lexicographic by their labels."""
        rows = (self.label_sets.sum(1) == m).nonzero().flatten()
        absent = ~self.label_sets[rows].cpu().numpy()
        order = np.lexsort(absent.T[::-1])
        return rows[torch.from_numpy(order).to(rows.device)]

    @property
    def classes_without_singles(self):
        """Classes of which there is no sample with that label alone."""
        single = self.label_sets[self.label_sets.sum(1) == 1].any(0)
        return (~single).nonzero().flatten().tolist()

    @property
    def class_means(self):
        """M_k ``(K, d)``: mean feature of the samples labelled k alone; all must exist."""
        missing = self.classes_without_singles
        if missing:
            raise checks.InputError(
                f"class {', '.join(map(str, missing[:8]))}{', …' * (len(missing) > 8)} has no "
                "sample with that label alone, so nc1, nc2_means, nc3, nc3_centered and the "
                "tag-wise fit to the singles' means are undefined; with reference='weight' they "
                "are left out as NaN, and nc2, nc2_centered, nc1_ratio, soft_iou and the fit to "
                "the classifier rows (scale, tagwise_residual, angle) remain"
            )
        return self.means[self.rows(1)]


@exact
def multi_label_metrics(
    features, targets, weight, bias=None, *, convention="clean", reference="means", precision=None
):
    """All multi-label collapse metrics of features ``(N, d)``, targets ``(N, K)``, classifier
    ``(K, d)``.

    Returns a dict.  Multiplicity 1 (claims 3.L3, 3.L4, 3.L11):

    ``nc1``            ``tr(Σ_W Σ_B⁺)/K`` of the single-label samples around the M_k and μ
    ``nc2``            ``‖WWᵀ/‖·‖ - T‖`` (Frobenius, as all below), W as it is
    ``nc2_centered``   the same with the mean row of W subtracted
    ``nc2_means``      the same for the rows M_k - μ
    ``nc3``            ``‖W Aᵀ/‖·‖ - T‖`` with rows M_k - μ in A, W as it is
    ``nc3_centered``   the same with the mean row of W subtracted

    and mappings over the multiplicities m present (3.L2, 3.L5):

    ``nc1_ratio``         ``tr Σ_W / tr Σ_B`` over the label sets of multiplicity m
    ``scale``             C_m of the tag-wise fit, m >= 2 (:class:`TagwiseFit`)
    ``tagwise_residual``  its relative squared residual
    ``angle``             :class:`Angle`, degrees and ratio
    ``soft_iou``          softmax probability of the true label set, mean over samples

    ``reference="weight"`` fits the tag-wise sums of the centred rows of W instead of the M_k - μ;
    then classes without singles are allowed, and what needs them is NaN.

    ``convention="official"`` follows the authors' published code and returns ``nc1, nc2, nc2_means,
    nc3, angle[2], soft_iou``.  It differs in four ways, which are errors or traps there: μ is the
    sum of the single-label features divided by the number of *all* samples, so Σ_B has a spurious
    direction and nc1 and nc3 are biased; Σ_B is inverted in float32; nc2_means uses *uncentred*
    means, so it stays far from 0 for ReLU features; angles are uncentred, without offset, and for
    pairs only.  Its overwriting of the first stored feature of each class is a memory slip and is
    not imitated.

    ``precision``: dtype in which the features were stored, if it is not theirs, as in
    :func:`~nclib.metrics.nc_metrics`; directions of its rounding are not inverted in ``nc1``.

    Features that are all equal ("collapsed to zero") give NaN and a RuntimeWarning.
    """
    checks.choice("convention", convention, CONVENTIONS)
    statistics = LabelSetStatistics.of(features, targets, precision=precision)
    found = statistics_metrics(statistics, weight, convention=convention, reference=reference)
    weight = checks.matrix("weight", weight).to(statistics.means)
    logits = checks.matrix("features", features).to(weight) @ weight.T
    if bias is not None:
        logits = logits + checks.vector("bias", bias, len(weight)).to(weight)
    return found | {"soft_iou": soft_iou(logits, targets)}


@exact
def statistics_metrics(statistics, weight, *, convention="clean", reference="means"):
    """:func:`multi_label_metrics` from :class:`LabelSetStatistics`, without ``soft_iou``."""
    checks.choice("convention", convention, CONVENTIONS)
    checks.choice("reference", reference, ("means", "weight"))
    K, d = statistics.K, statistics.means.shape[1]
    weight = checks.matrix("weight", weight, rows=K, columns=d).to(statistics.means)
    weight = squarable("weight", weight)
    if convention == "official":
        return _official(statistics, weight)

    centred_weight = weight - weight.mean(0)
    found = {"nc2": etf_error(weight), "nc2_centered": etf_error(centred_weight)}
    single = ("nc1", "nc2_means", "nc3", "nc3_centered")
    directions = centred_weight
    if reference == "means" or not statistics.classes_without_singles:
        means = statistics.class_means
        centred = _centred(means)
        found |= {
            "nc1": _nc1(statistics, centred),
            "nc2_means": etf_error(centred),
            "nc3": etf_error(weight, centred),
            "nc3_centered": etf_error(centred_weight, centred),
        }
        directions = centred if reference == "means" else centred_weight
    else:
        found |= dict.fromkeys(single, float("nan"))
    found["nc1_ratio"] = {m: _nc1_ratio(statistics, m) for m in statistics.multiplicities}
    fits = {m: _fit(statistics, m, directions) for m in statistics.multiplicities if m > 1}
    found["scale"] = {m: fit.scale for m, fit in fits.items()}
    found["tagwise_residual"] = {m: fit.residual for m, fit in fits.items()}
    found["angle"] = {m: Angle(float(f.degrees.mean()), f.ratio) for m, f in fits.items()}
    return found


@exact
def tagwise_fit(statistics, m, *, weight=None):
    """The :class:`TagwiseFit` of multiplicity m >= 2 (claim 3.L5).

    The directions are M_k - μ, or the centred rows of ``weight (K, d)`` if one is given.  The
    angles per label set answer which sets, for instance rare ones, leave the tag-wise average.
    """
    if checks.integer("m", m) < 2 or m not in statistics.multiplicities:
        present = [p for p in statistics.multiplicities if p > 1]
        raise checks.InputError(f"no label sets of multiplicity m={m} >= 2; present: {present}")
    if weight is None:
        return _fit(statistics, m, _centred(statistics.class_means))
    weight = checks.matrix("weight", weight, rows=statistics.K, columns=statistics.means.shape[1])
    return _fit(statistics, m, _centred(weight.to(statistics.means)))


@exact
def soft_iou(logits, targets):
    """``{m: mean over the samples with m labels of the softmax probability of their label set}``.

    The official code prints its mean over all samples as "iou"; it is no Jaccard index.
    """
    logits = checks.matrix("logits", logits, dtype=torch.float64)
    targets = checks.label_sets(targets, shape=tuple(logits.shape)).to(logits)
    mass, sizes = (torch.softmax(logits, 1) * targets).sum(1), targets.sum(1).long()
    return {m: float(mass[sizes == m].mean()) for m in sorted(set(sizes.tolist()))}


def _centred(rows):
    centred = geometry.centred(rows)
    if not centred.any():
        warnings.warn(
            "all class means, or all classifier rows, are equal (collapsed to zero?): metrics that "
            "need them are NaN",
            RuntimeWarning,
            stacklevel=4,
        )
        return torch.full_like(rows, float("nan"))
    return centred


def _nc1(statistics, centred):
    """``tr(Σ_W Σ_B⁺)/K`` of the single-label samples, their means about the mean of the means."""
    if not torch.isfinite(centred).all():
        return float("nan")
    K, N = statistics.K, statistics.counts[statistics.rows(1)].sum()
    spread = float(statistics.within.trace() / N)
    means, storage = statistics.class_means, statistics.storage
    floor = partial(storage.floor, means, int(N), spread)
    spectrum, basis = geometry.between(centred, cut=storage.cut(means), floor=floor)
    moments = ((basis.T @ statistics.within) * basis.T).sum(1) / N
    return geometry.sum_of_ratios(moments, spectrum, spread) / K


def _nc1_ratio(statistics, m):
    rows = statistics.rows(m)
    within = statistics.scatter[rows].sum() / statistics.counts[rows].sum()
    means = statistics.means[rows]
    between = (means - means.mean(0)).square().sum(1).mean()
    if between <= 1e-24 * means.square().sum(1).max():
        return float("nan")
    return float(within / between)


def _fit(statistics, m, directions):
    rows = statistics.rows(m)
    sets, counts, means = (
        statistics.label_sets[rows],
        statistics.counts[rows],
        statistics.means[rows],
    )
    sums = sets.to(means) @ directions
    x, y = sums - sums.mean(0), means - means.mean(0)
    scale = (x * y).sum() / x.square().sum() if len(rows) > 1 else x.new_tensor(float("nan"))
    offset = means.mean(0) - scale * sums.mean(0)
    centred = means - offset
    if not torch.isfinite(scale):
        centred = torch.full_like(centred, float("nan"))
    residual = float((centred - scale * sums).square().sum() / centred.square().sum())
    degrees, ratio = _angles(sets, sums, centred, directions, m)
    return TagwiseFit(float(scale), offset, residual, degrees, ratio, sets, counts)


def _angles(sets, sums, centred, directions, m):
    """Angle per observed set in degrees, and mean over those / mean over all pairs."""
    degrees, b = geometry.angles_between(sums, centred), geometry.unit(centred)
    total = parts = 0
    if degrees.isnan().any():
        return degrees, float("nan")
    for subsets in _possible_sets(sets.shape[1], m, _MAX_PAIRS // len(sets), sets.device):
        cosines = geometry.unit(subsets.to(directions) @ directions) @ b.T
        total = total + torch.rad2deg(cosines.clamp(-1, 1).arccos()).sum()
        parts += cosines.numel()
    return degrees, float(degrees.mean() / (total / parts))


def _possible_sets(K, m, most, device):
    """Multi-hot blocks of all m-subsets of K classes, or of some drawn at random if these are more
    than ``most``."""
    if comb(K, m) <= min(most, _MAX_SETS):
        subsets = combinations(range(K), m)
        blocks = iter(lambda: list(islice(subsets, 1024)), [])
    else:
        generator = torch.Generator().manual_seed(0)
        sizes = torch.arange(min(most, _DRAWN)).split(1024)
        blocks = (torch.rand(len(size), K, generator=generator).argsort(1)[:, :m] for size in sizes)
    for block in blocks:
        block = torch.as_tensor(block)
        yield torch.zeros(len(block), K).scatter_(1, block, 1.0).to(device)


def _official(statistics, weight):
    """The metrics as the authors' code defines them; see :func:`multi_label_metrics`."""
    from scipy.linalg import pinv  # not for measuring a model

    K, rows = statistics.K, statistics.rows(1)
    means, counts = statistics.class_means, statistics.counts[rows]
    wrong_mean = (counts[:, None] * means).sum(0) / statistics.counts.sum()
    shifted = means - wrong_mean
    between, within = shifted.T @ shifted / K, statistics.within / counts.sum()
    unit = 2.0 ** frexp(float(between.abs().max()))[1]  # for the range of single precision
    between, within = ((x / unit).float().cpu().numpy() for x in (between, within))
    found = {
        "nc1": float(np.trace(within @ pinv(between)) / K),
        "nc2": etf_error(weight),
        "nc2_means": etf_error(means),
        "nc3": etf_error(weight, shifted),
        "angle": {},
    }
    if 2 in statistics.multiplicities:
        pairs = statistics.rows(2)
        sets, pair_means = statistics.label_sets[pairs], statistics.means[pairs]
        degrees, ratio = _angles(sets, sets.to(means) @ means, pair_means, means, 2)
        found["angle"][2] = Angle(float(degrees.mean()), ratio)
    return found


__all__ = [
    "Angle", "LabelSetStatistics", "TagwiseFit", "multi_label_metrics", "soft_iou",
    "statistics_metrics", "tagwise_fit",
]  # fmt: skip
