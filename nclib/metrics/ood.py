"""Neural collapse against out-of-distribution samples: NC5 and the scores NECO and NCI.

All three need the :class:`~nclib.metrics.ClassStatistics` of the *training* features only, no
features; scores are larger the more a sample looks like the training data.
"""

import torch

from nclib import checks
from nclib.metrics._rows import classifier, squarable
from nclib.metrics.geometry import scaled, unit
from nclib.metrics.precision import exact


@exact
def nc5(statistics, outliers):
    """Orthogonality of class means and outliers: mean over k of ``|cos(μ_k, μ_O)|``, a float.

    ``outliers (M, d)``: features of out-of-distribution samples, ``μ_O`` their mean; all means are
    uncentred.  0: orthogonal, which Ammar et al. observe to come with collapse (NECO: Neural
    Collapse based out-of-distribution detection, ICLR 2024, "NC5", deviation from orthogonality).
    NaN if a mean is zero.  Raises :class:`~nclib.checks.InputError` for an empty class, or features
    that do not fit.
    """
    checks.nonempty(statistics.counts)
    outliers = _features("outliers", outliers, statistics)
    if not len(outliers):
        raise checks.InputError("outliers holds no sample")
    return float((unit(statistics.means) @ unit(scaled(outliers).mean(0))).abs().mean())


@exact
def neco(statistics, features, *, components=None, standardize=True, logits=None):
    """NECO, the share of a feature inside the leading principal components: ``(M,)`` float64.

        NECO(h) = ‖P z‖ / ‖z‖,   z = (h - μ_G)/σ  columnwise,

    P the projection on the ``components`` leading principal axes of the training features' z
    (default K - 1, the dimension that collapsed class means span; at most d).  With
    ``standardize=False`` z = h - μ_G.  ``logits (M, K)``: the score times the largest logit, as
    the paper does for networks other than transformers.  NaN for z = 0.

    Ammar et al., NECO: Neural Collapse based out-of-distribution detection, ICLR 2024, eq. 6 and
    the authors' code, which standardises.  ``features (M, d)``.  Raises
    :class:`~nclib.checks.InputError` for bad shapes.
    """
    features = _features("features", features, statistics)
    d = statistics.dim
    components = min(statistics.num_classes - 1, d) if components is None else components
    components = checks.integer("components", components)
    if components > d:
        raise checks.InputError(f"components must be at most d={d}, got {components}")
    share = statistics.counts.double() / statistics.counts.sum()
    squarable("features", statistics.within_covariance.diagonal().clamp(min=0).sqrt())
    centred = squarable("features", statistics.means) - statistics.global_mean
    covariance = statistics.within_covariance + centred.T @ (share[:, None] * centred)
    z = features - statistics.global_mean
    if standardize:
        scale = covariance.diagonal().clamp(min=0).sqrt()
        # Constant columns keep their scale, as with scikit-learn's StandardScaler.
        rounding = 1e-14 * statistics.global_mean.abs()
        scale = torch.where(scale > rounding, scale, 1.0)
        covariance, z = covariance / scale / scale[:, None], z / scale
    _, axes = torch.linalg.eigh(covariance)
    score = (z @ axes[:, d - components :]).norm(dim=1) / z.norm(dim=1)
    if logits is None:
        return score
    logits = checks.matrix("logits", logits, rows=len(features), dtype=torch.float64)
    return score * logits.detach().to(score.device).amax(1)


@exact
def nci(statistics, features, weight, bias=None, *, alpha=0.0):
    """NCI, closeness of a feature to the classifier row of its predicted class: ``(M,)`` float64.

        NCI(h) = ⟨w_c, h - μ_G⟩ / ‖h - μ_G‖₂ + α ‖h‖₁,   c = argmax_k (W h + b)_k.

    The second term filters samples near the origin; the paper tunes α for each network, 0 leaves
    the first alone.  NaN for h = μ_G.  Liu & Qin, Detecting out-of-distribution through the lens
    of neural collapse, CVPR 2025.  ``features (M, d)``, ``weight (K, d)``, ``bias (K,)`` or None.
    Raises :class:`~nclib.checks.InputError` for bad shapes or a negative ``alpha``.
    """
    alpha = checks.real("alpha", alpha, at_least=0)
    features = _features("features", features, statistics)
    checks.require(weight is not None, "NCI needs the weight of the classifier, got None")
    weight, bias = classifier(weight, bias, statistics.num_classes, statistics.dim)
    weight = weight.to(features.device)
    logits = features @ weight.T + (0.0 if bias is None else bias.to(features.device))
    z = features - statistics.global_mean
    own = weight[logits.argmax(1)]
    return (unit(z) * own).sum(1) + alpha * features.abs().sum(1)


def _features(name, value, statistics):
    checks.require(
        bool(statistics.counts.any()), "the statistics hold no sample: call update first"
    )
    value = checks.matrix(name, value, columns=statistics.dim, dtype=torch.float64).detach()
    return value.to(statistics.counts.device)
