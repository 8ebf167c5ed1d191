"""Result 2's metrics: angles in degrees, and NC1-NC3 in the convention of normalized features.

Empty classes are left out (their own entries are NaN).
"""

from math import acos, degrees, nan, sqrt

import torch

from nclib import checks, frames
from nclib.metrics import geometry
from nclib.metrics.geometry import class_means
from nclib.metrics.precision import Storage, exact

NC = ("nc1", "nc2", "nc3")

# Relative eigenvalue of the between-class covariance below which a direction is rounding noise.
CUT = {torch.float64: 1e-10, torch.float32: 1e-5}


def simplex_angle(K):
    """Angle of a simplex ETF in degrees, ``arccos(-1/(K-1))``: 120 for K = 3."""
    return degrees(acos(-1 / (checks.integer("K", K, 2) - 1)))


@exact
def simplex_deviation(vectors):
    """``(mean, max)`` distance in degrees of all pairwise angles from the simplex ETF's.

    ``vectors (K, d)``, K >= 2; rows of zeros are left out of the pairs, not of K.
    """
    vectors = checks.matrix("vectors", vectors, dtype=torch.float64)
    K = len(vectors)
    left, right = torch.triu_indices(K, K, 1)
    angles = geometry.angles_between(vectors[left], vectors[right])
    deviation = (angles - simplex_angle(K)).abs()
    deviation = deviation[~deviation.isnan()]
    if not len(deviation):
        return nan, nan
    return float(deviation.mean()), float(deviation.max())


@exact
def within_class_angles(features, labels, *, num_classes=None):
    """Mean angle in degrees between the samples of a class and its mean, ``(K,)``; NaN if empty."""
    features = checks.matrix("features", features, dtype=torch.float64)
    labels, K = checks.labels(labels, num_classes, length=len(features))
    means, counts = class_means(features, labels, K)
    angles = geometry.angles_between(features, means[labels.to(features.device)])
    sums = torch.zeros_like(means[:, 0]).index_add_(0, labels.to(features.device), angles)
    return sums / counts


@exact
def truncated_nc1(features, labels, *, num_classes=None):
    """:func:`nclib.metrics.geometry.nc1` with this result's cut-off: ``tr(Σ_W Σ_B⁺)/K``.

    Only eigenvalues of Σ_B above 1e-10 of the largest (1e-5 for float32 features) and above the
    rounding of the stored features are inverted: a default cut-off keeps rounding noise, and its
    inverse.  NaN if all class means are equal.
    """
    storage, features = Storage.of(features), checks.matrix("features", features)
    cut = sqrt(CUT.get(features.dtype, 1e-5))
    return geometry.nc1(features, labels, cut=cut, K=num_classes, precision=storage)


@exact
def sphere_metrics(features, labels, weight):
    """The metrics of result 2 as a dict of floats (claims 2.L2, 2.L11, 2.L13).

    ``features (N, d)``, ``labels (N,)``, ``weight (K, d)``; the scale does not matter.

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
    stored, features = features, checks.matrix("features", features)
    weight = checks.matrix("weight", weight, columns=features.shape[1], dtype=torch.float64).to(
        features.device
    )
    K = checks.integer("number of weight rows", len(weight), 2)
    labels, _ = checks.labels(labels, K, length=len(features))
    nc1 = truncated_nc1(stored, labels, num_classes=K)
    # The rest does not depend on the scale: no square may under- or overflow.
    features, weight = geometry.scaled(features.double()), geometry.scaled(weight)
    means, counts = class_means(features, labels, K)
    present = counts > 0
    head, means = weight[present], means[present]
    centred = means - features.mean(0)
    alignment = geometry.angles_between(head, means)
    within = within_class_angles(features, labels, num_classes=K)[present]
    weight_angle, means_angle = simplex_deviation(weight), simplex_deviation(centred)
    return {
        "nc1": nc1,
        "nc2": geometry.gram_distance(weight @ weight.T),
        "nc3": geometry.gram_distance(head @ means.T),
        "nc3_centered": geometry.gram_distance(head @ centred.T),
        "nc2_floor": frames.nc2_floor(K, features.shape[1]),
        "weight_angle": weight_angle[0],
        "weight_angle_max": weight_angle[1],
        "means_angle": means_angle[0],
        "means_angle_max": means_angle[1],
        "alignment": float(alignment.mean()),
        "alignment_max": float(alignment.max()),
        "within_angle": float(within.mean()),
    }
