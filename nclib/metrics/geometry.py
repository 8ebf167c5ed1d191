"""Class means and the shapes they make: what the metrics of several results are built from.

Rows are classes or samples.  All work is float64 on the device of the features; what zero features
leave undefined is NaN.
"""

import math
import warnings
from functools import partial

import torch

from nclib import checks, frames
from nclib.metrics.precision import Storage, exact

_EPS = torch.finfo(torch.float64).eps


@exact
def class_means(features, labels, K=None):
    """``(means (K, d), counts (K,))`` of the rows of ``features (N, d)`` with ``labels (N,)``.

    Float64; the mean of a class without samples is NaN.
    """
    features = checks.matrix("features", features, dtype=torch.float64).detach()
    labels, K = checks.labels(labels, K, length=len(features))
    labels = labels.to(features.device)
    counts = torch.bincount(labels, minlength=K)
    means = features.new_zeros(K, features.shape[1])
    for _ in range(2):  # once more about the means: equal features get exactly equal ones
        residual = features - means[labels]
        means = means + torch.zeros_like(means).index_add_(0, labels, residual) / counts[:, None]
    return means, counts


def sample_mean(means, counts):
    """Mean over samples ``(d,)`` from class ``means (K, d)`` and ``counts (K,)``; exactly the
    class mean where all classes with samples have the same."""
    one = means[counts.argmax()]
    away = torch.where(counts[:, None] > 0, means - one, 0.0)
    return one + counts.to(means) @ away / counts.sum()


def centred(rows):
    """``rows (K, d)`` minus their mean; exactly zero where they differ by rounding only."""
    moved = rows - rows.mean(0)
    return moved * 0 if moved.abs().max() <= 16 * _EPS * rows.abs().max() else moved


def scaled(rows):
    """``rows`` over their largest entry, so that no square under- or overflows; zero stays zero."""
    return rows / rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny)


def unit(rows):
    """``rows (…, d)`` over their norms, at any scale of each; NaN for a zero row."""
    rows = rows / rows.abs().amax(-1, keepdim=True)
    return rows / rows.norm(dim=-1, keepdim=True)


def cosines(rows):
    """Cosines ``(K, K)`` between ``rows (K, d)``; 0 with a zero row."""
    directions = torch.where(rows.any(1, keepdim=True), unit(rows), 0.0)
    return directions @ directions.mT


def gram_distance(gram, target=None):
    """``‖G/‖G‖ - T‖`` (Frobenius) of ``gram (K, K)``; NaN for G = 0.

    ``target``: T, of norm 1 (:mod:`nclib.frames`); default that of the simplex ETF.
    """
    if not gram.abs().max() > 0:
        return math.nan
    if target is None:
        target = frames.etf_gram(len(gram))
    gram = scaled(gram)
    return float((gram / gram.norm() - target.to(gram)).norm())


def etf_error(left, right=None):
    """:func:`gram_distance` of ``G = left rightᵀ`` (both ``(K, d)``; ``right``: default ``left``)
    to the simplex ETF, through d×d products where K is larger; NaN for G = 0.
    """
    right, K = left if right is None else right, len(left)
    left, right = scaled(left), scaled(right)
    if left.shape[1] + 1 >= K:
        return gram_distance(left @ right.T)
    # √(2 - 2⟨G/‖G‖, T⟩) keeps its digits: with K > d + 1 it is at least about 1/√K.
    ours = left.T @ left
    norm = (ours * (right.T @ right)).sum().clamp(min=0).sqrt()
    if not norm > 0:
        return math.nan
    overlap = (left * right).sum() - left.sum(0) @ right.sum(0) / K
    return float((2 - 2 * overlap / (norm * math.sqrt(K - 1))).clamp(min=0).sqrt())


@exact
def frame_distances(means, *, centre=True):
    """``{"of": …, "etf": …}``: distance of a Gram matrix to an orthogonal frame and to an ETF.

    ``means (K, d)``: class means, or a classifier's weight.  With G the Gram matrix of the rows,

        of  = ‖G/‖G‖ - I/√K‖ (rows as they are),
        etf = ‖G/‖G‖ - (I - J/K)/√(K-1)‖ (rows centred first; ``centre=False``: as they are,
        the usual choice for a weight).

    An orthogonal frame has of = etf = 0, since centring makes it an ETF; an ETF has etf = 0 and
    of = √(2 - 2√((K-1)/K)).  For K = 2 the centred etf is identically 0.  NaN where the (centred)
    rows vanish.  Claims 5.E1-5.E3 (Tirer & Bruna 2022; Dang et al. 2023).
    """
    means = _rows("means", means, 2)
    means = scaled(means)
    rows = centred(means) if centre else means
    orthogonal = frames.orthogonal_gram(len(means))
    return {"of": gram_distance(means @ means.T, orthogonal), "etf": gram_distance(rows @ rows.T)}


@exact
def trace_ratio(features, labels):
    """``tr Σ_W / tr Σ_B`` of ``features (N, d)``, ``labels (N,)``; a float ≥ 0, without 1/K.

    Σ_W = (1/N) Σ (h - μ_k)(h - μ_k)ᵀ over samples, Σ_B = (1/K) Σ (μ_k - μ)(μ_k - μ)ᵀ with μ the
    mean of the class means.  Unlike tr(Σ_W Σ_B⁺)/K it sees noise orthogonal to the span of the
    means.  NaN if all class means coincide; raises :class:`~nclib.checks.InputError` for an empty
    class.  Claim 5.E10 (NC1~ of Tirer, Huang & Niles-Weed 2023).
    """
    features = _in_range(_rows("features", features, 1))
    labels, K = checks.labels(labels, length=len(features))
    checks.class_counts(labels, K)
    means, _ = class_means(features, labels, K)
    between = float(centred(means).square().sum()) / K
    within = (features - means[labels.to(features.device)]).square().sum()
    return float(within) / len(features) / between if between > 0 else math.nan


@exact
def nc1(features, labels, *, cut, K=None, precision=None):
    """``tr(Σ_W Σ_B⁺)/K`` of ``features (N, d)``, ``labels (N,)``, Σ_B about the mean of samples.

    ``cut`` and rounding decide what is inverted, see :func:`between`.  ``precision``: dtype in
    which the features were stored, as in :func:`~nclib.metrics.nc_metrics`.  Classes without
    samples are left out.  NaN if all class means are equal; raises
    :class:`~nclib.checks.InputError` for fewer than two classes.
    """
    storage = Storage.of(features, precision)
    features = _in_range(_rows("features", features, 1))
    labels, K = checks.labels(labels, K, length=len(features))
    means, counts = class_means(features, labels, K)
    if (counts > 0).sum() < 2:
        raise checks.InputError("NC1 needs samples of at least two classes, the labels hold one")
    residual = features - means[labels.to(features.device)]
    means, spread = means[counts > 0], float(residual.square().sum()) / len(features)
    floor = partial(storage.floor, means, len(features), spread)
    spectrum, basis = between(means - features.mean(0), cut=cut, floor=floor)
    return sum_of_ratios((residual @ basis).square().mean(0), spectrum) / len(means)


def between(centred_means, *, cut, floor=None):
    """Eigenvalues ``(r,)`` and eigenvectors ``(d, r)`` of ``Σ_B = MᵀM/K``, M the means ``(K, d)``
    about their centre: the at most K - 1 directions that can carry classes.

    Those are left out whose singular value of M is at most ``cut`` of the largest or the rounding
    of this decomposition, or at most ``floor(directions (d, r)) -> (r,)``: they hold rounding
    noise (:class:`nclib.metrics.precision.Storage`), which the inverse would blow up.
    """
    K, d = centred_means.shape
    # A QR factorisation first: the same accuracy, half the time.
    if d < K:
        rows = torch.linalg.qr(centred_means, mode="r").R
        _, singular, vectors = torch.linalg.svd(rows, full_matrices=False)
    else:
        orthogonal, columns = torch.linalg.qr(centred_means.T)
        turned, singular, _ = torch.linalg.svd(columns, full_matrices=False)
        vectors = (orthogonal @ turned).T
    singular, vectors = singular[: K - 1], vectors[: K - 1]
    keep = singular > max(cut, max(K, d) * _EPS) * singular[0]
    if floor is not None:
        keep &= singular > floor(vectors.T)
    return singular[keep].square() / K, vectors[keep].T


def sum_of_ratios(moments, spectrum, trace=0.0):
    """``Σ_i vᵢᵀ Σ_W vᵢ / λᵢ``, K times NC1, from the ``moments (r,)`` of Σ_W along the eigenvectors
    of Σ_B and their eigenvalues; NaN without any.

    ``trace``: tr Σ_W if the moments come from Σ_W, whose entries round at its scale.  Then NaN, and
    a RuntimeWarning, if more than a thousandth of the sum may be rounding.
    """
    total = float((moments / spectrum).sum()) if len(spectrum) else math.nan
    if float((8 * _EPS * trace / spectrum).sum()) > 1e-3 * total:
        warnings.warn(
            "class means differ along directions too short for sums of products, NC1 is NaN: keep "
            "the features (ClassStatistics, keep=), or divide columns by their size",
            RuntimeWarning,
            stacklevel=5,
        )
        return math.nan
    return total


@exact
def angles_between(u, v):
    """Angles in degrees between the rows of ``u`` and ``v (…, d)``, which broadcast; NaN for zero.

    Kahan's ``2 atan2(‖u-v‖, ‖u+v‖)`` of unit vectors: exact near 0° and near 180°, where the arccos
    of a cosine loses half its digits.
    """
    u, v = (torch.as_tensor(x, dtype=torch.float64) for x in (u, v))
    u, v = unit(u), unit(v)
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)))


@exact
def rank(matrix, *, cut, relative=True):
    """Number of singular values above ``cut`` × the largest one (``relative=False``: above
    ``cut``); 0 for a zero matrix."""
    values = torch.linalg.svdvals(_rows("matrix", matrix, 1))
    return int((values > cut * (float(values[0]) if relative else 1.0)).sum())


def _in_range(rows):
    """``rows``, scaled if their squares leave double precision."""
    return rows if 1e-100 < float(rows.abs().max()) < 1e100 else scaled(rows)


def _rows(name, value, minimum):
    value = checks.matrix(name, checks.tensor(name, value).detach(), dtype=torch.float64)
    if len(value) < minimum:
        raise checks.InputError(f"{name} must have at least {minimum} rows, got {len(value)}")
    return value
