"""Result 2's metrics: angles in degrees, and NC1-NC3 in the convention of normalized features.

Angles are Kahan's ``2 atan2(‖u-v‖, ‖u+v‖)`` of unit vectors: exact near 0° and near 180°, where the
arccos of a cosine loses half its digits.  Empty classes are left out (their own entries are NaN).
"""

from math import acos, degrees, nan

import torch

from nclib import checks, frames
from nclib.metrics.precision import Storage, exact

# Relative eigenvalue of the between-class covariance below which a direction is rounding noise.
CUT = {torch.float64: 1e-10, torch.float32: 1e-5}


def _unit(vectors):
    """Rows scaled to norm 1; rows of zeros become NaN, their direction is undefined."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


@exact
def angles_between(u, v):
    """Angles in degrees between the rows of ``u`` and ``v`` ``(..., d)``, which broadcast."""
    u, v = _unit(torch.as_tensor(u).double()), _unit(torch.as_tensor(v).double())
    return torch.rad2deg(2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)))


@exact
def pairwise_angles(vectors):
    """Angles in degrees between all rows of ``vectors (K, d)``: ``(K, K)``, symmetric.

    NaN in the rows and columns of zero vectors.
    """
    vectors = checks.matrix("vectors", vectors, dtype=torch.float64)
    return angles_between(vectors[:, None], vectors[None])


def simplex_angle(K):
    """Angle of a simplex ETF in degrees, ``arccos(-1/(K-1))``: 120 for K = 3."""
    return degrees(acos(-1 / (checks.integer("K", K, 2) - 1)))


@exact
def simplex_deviation(vectors):
    """``(mean, max)`` distance in degrees of all pairwise angles from the simplex ETF's.

    ``vectors (K, d)``, K >= 2; rows of zeros are left out of the pairs, not of K.
    """
    angles = pairwise_angles(vectors)
    pairs = angles[tuple(torch.triu_indices(len(angles), len(angles), 1))]
    deviation = (pairs - simplex_angle(len(angles))).abs()
    deviation = deviation[~deviation.isnan()]
    if not len(deviation):
        return nan, nan
    return float(deviation.mean()), float(deviation.max())


@exact
def class_means(features, labels, num_classes):
    """``(means (K, d), counts (K,))`` in float64; the mean of an empty class is NaN."""
    features = checks.matrix("features", features, dtype=torch.float64)
    labels, K = checks.labels(labels, num_classes, length=len(features))
    labels = labels.to(features.device)
    counts = torch.bincount(labels, minlength=K)
    sums = torch.zeros(K, features.shape[1], dtype=torch.float64, device=features.device)
    return sums.index_add_(0, labels, features) / counts[:, None], counts


@exact
def alignment_angles(weight, means):
    """Angle in degrees between each classifier row and its class mean, ``(K,)``.

    0 at self-duality; ``arccos √((K-1)/K)`` at the optimum of nonnegative features (claim 2.L13).
    """
    weight = checks.matrix("weight", weight, dtype=torch.float64)
    means = torch.as_tensor(means).double()
    if weight.shape != means.shape:
        raise checks.InputError(
            f"weight and means must have the same shape, got {tuple(weight.shape)} and "
            f"{tuple(means.shape)}"
        )
    return angles_between(weight.to(means.device), means)


@exact
def within_class_angles(features, labels, *, num_classes=None):
    """Mean angle in degrees between the samples of a class and its mean, ``(K,)``; NaN if empty."""
    features = checks.matrix("features", features, dtype=torch.float64)
    labels, K = checks.labels(labels, num_classes, length=len(features))
    means, counts = class_means(features, labels, K)
    angles = angles_between(features, means[labels.to(features.device)])
    sums = torch.zeros_like(means[:, 0]).index_add_(0, labels.to(features.device), angles)
    return sums / counts


def _gram_distance(gram):
    norm = gram.norm()
    target = frames.etf_gram(len(gram), dtype=gram.dtype, device=gram.device)
    return float((gram / norm - target).norm()) if norm > 0 else nan


@exact
def truncated_nc1(features, labels, *, num_classes=None, precision=None):
    """``tr(Σ_W Σ_B⁺)/K`` with the pseudo-inverse cut to directions that can carry classes.

    Only eigenvalues of Σ_B above 1e-10 of the largest (1e-5 for float32 features) and above the
    rounding of the means and of the stored features (``precision`` as in
    :func:`~nclib.metrics.nc_metrics`) are inverted, never more than ``min(d, K-1)``: a default
    cut-off keeps rounding noise, and its inverse.
    Σ_W is over samples, Σ_B over classes alike, about the mean of the samples; classes without a
    sample are left out.  NaN if all class means are equal.
    """
    storage, features = Storage.of(features, precision), checks.matrix("features", features)
    cut, features = CUT.get(features.dtype, 1e-5), features.double()
    labels, K = checks.labels(labels, num_classes, length=len(features))
    means, counts = class_means(features, labels, K)
    present = counts > 0
    if present.sum() < 2:
        raise checks.InputError("NC1 needs samples of at least two classes, the labels hold one")
    residual = features - means[labels.to(features.device)]
    spread = float(residual.square().sum()) / len(features)
    floor = storage.floor(means[present], len(features), spread)
    spectrum, basis = _between(means[present], features.mean(0), cut, floor)
    if not len(spectrum):
        return nan
    residual = residual @ basis
    return float((residual.square().mean(0) / spectrum).sum() / present.sum())


def _between(means, centre, cut, floor):
    """Leading eigenvalues ``(r,)`` and eigenvectors ``(d, r)`` of Σ_B, ``r <= min(d, K-1)``."""
    K = len(means)
    centred = means - centre
    _, singular, vectors = torch.linalg.svd(centred, full_matrices=False)
    # Means that differ by their own rounding only are equal.
    floor = max(floor, torch.finfo(torch.float64).eps * 8 * float(means.abs().max()) * K**0.5)
    keep = (singular.square() > cut * singular[0].square()) & (singular > floor)
    return singular[keep].square() / K, vectors[keep].T


@exact
def sphere_metrics(features, labels, weight, *, precision=None):
    """The metrics of result 2 as a dict of floats (claims 2.L2, 2.L11, 2.L13).

    ``features (N, d)``, ``labels (N,)``, ``weight (K, d)``; the scale does not matter.
    ``precision`` as in :func:`~nclib.metrics.nc_metrics`.

    =====================  ======================================================================
    ``nc1``                :func:`truncated_nc1`
    ``nc2``                ``‖WWᵀ/‖WWᵀ‖ - T‖``, T the Gram matrix of a simplex ETF of norm 1
    ``nc3``                ``‖WMᵀ/‖WMᵀ‖ - T‖`` with **uncentred** class means M (the paper's code)
    ``nc3_centered``       the same with means about the mean of all samples (other repositories)
    ``nc2_floor``          smallest NC2 of any K vectors in dimension d; 0 for ``d >= K-1``
    ``weight_angle``       mean deviation of classifier angles from the simplex ETF's, degrees
    ``weight_angle_max``   the largest
    ``means_angle``        the same for centred class means, mean
    ``means_angle_max``    and largest
    ``alignment``          mean angle between classifier and class mean, degrees
    ``alignment_max``      the largest
    ``within_angle``       mean angle of a sample to its class mean, averaged over classes, degrees
    =====================  ======================================================================

    Classes without a sample are left out of everything but ``nc2`` and ``weight_angle``.
    """
    storage, features = Storage.of(features, precision), checks.matrix("features", features)
    weight = checks.matrix("weight", weight, columns=features.shape[1], dtype=torch.float64).to(
        features.device
    )
    K = checks.integer("number of weight rows", len(weight), 2)
    labels, _ = checks.labels(labels, K, length=len(features))
    means, counts = class_means(features, labels, K)
    present = counts > 0
    nc1 = truncated_nc1(features, labels, num_classes=K, precision=storage)
    head, means = weight[present], means[present]
    centred = means - features.double().mean(0)
    alignment = alignment_angles(head, means)
    within = within_class_angles(features, labels, num_classes=K)[present]
    weight_angle, means_angle = simplex_deviation(weight), simplex_deviation(centred)
    return {
        "nc1": nc1,
        "nc2": _gram_distance(weight @ weight.T),
        "nc3": _gram_distance(head @ means.T),
        "nc3_centered": _gram_distance(head @ centred.T),
        "nc2_floor": frames.nc2_floor(K, features.shape[1]),
        "weight_angle": weight_angle[0],
        "weight_angle_max": weight_angle[1],
        "means_angle": means_angle[0],
        "means_angle_max": means_angle[1],
        "alignment": float(alignment.mean()),
        "alignment_max": float(alignment.max()),
        "within_angle": float(within.mean()),
    }
