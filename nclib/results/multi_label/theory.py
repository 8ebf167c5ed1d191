"""Result 3: closed forms for pick-all-label training with several labels per sample.

Setting (Li, Li, Wang & Qu, ICML 2024).  A sample has a *label set* S of m = |S| labels, its
*multiplicity*.  The pick-all-label loss is ``Σ_{k∈S} [logsumexp(z) - z_k]`` (``reduction="sum"``)
or that divided by m (``"mean"``), and the unconstrained-features problem, without factors ½, is ::

    f(W, H, b) = (1/N) Σ_i loss(W h_i + b, S_i) + lambda_w ‖W‖² + lambda_h ‖H‖² + lambda_b ‖b‖²

With every m-subset of the K classes equally frequent (``counts[m]`` samples per label set;
different m may differ, and be absent), the global minimum is known up to a rotation of feature
space: with P = I - 11ᵀ/K, ::

    W Wᵀ = α² P,    h_S = (s_m/α²) Σ_{k∈S} w_k,    logits z_S = s_m P y_S,    b = 0

so W is a simplex ETF, the features of single labels are aligned with it, and the features of a set
are a *tag-wise average*: ``h_S = C_m Σ_{k∈S} h_{k}`` with ``C_m = s_m/s_1``.  The *margins* s_m
solve scalar equations.  Papers write features as columns; here ``features`` has one row per label
set. Everything is float64 and nothing is trained.  Row ids such as 3.L5 are those of the claims.
"""

from dataclasses import dataclass, field
from itertools import combinations
from math import comb, log, sqrt

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit

from nclib import checks, frames

REDUCTIONS = ("sum", "mean")


def label_weight(m, reduction):
    """Weight ω_m of a sample with m labels: 1 for ``"sum"``, 1/m for ``"mean"``."""
    return 1.0 if checks.choice("reduction", reduction, REDUCTIONS) == "sum" else 1.0 / m


def label_sets(K, m):
    """All ``comb(K, m)`` label sets of multiplicity m as multi-hot rows, float64, lexicographic."""
    K, m = _multiplicity(K, m)
    rows = np.array(list(combinations(range(K), m)))
    return torch.zeros(len(rows), K, dtype=torch.float64).scatter_(1, torch.from_numpy(rows), 1.0)


def balance_weight(K, m, n):
    """q_m with ``Σ_{|S|=m} n P y_S y_Sᵀ P = q_m P``: ``n comb(K-2, m-1)``; 0 for m = K."""
    return n * comb(K - 2, m - 1)


def sample_loss(margin, *, K, m, reduction="sum"):
    """Loss of a sample whose logits are ``margin * P y_S``:
    ``ω_m m log(m + (K-m) exp(-margin))``."""
    with np.errstate(over="ignore"):
        decay = np.exp(-np.asarray(margin, dtype=float))
    return label_weight(m, reduction) * m * np.log(m + (K - m) * decay)


def loss_floor(m, reduction="sum"):
    """Infimum of the loss of a sample with m labels: ``m log m`` ("sum") or ``log m`` ("mean").

    It is not 0 for m >= 2: a softmax cannot give probability one to two labels at once.
    """
    return label_weight(m, reduction) * m * log(m)


def set_mass(margin, *, K, m):
    """Softmax probability of the true label set at logits ``margin * P y_S`` (the "soft IoU")."""
    if m == K:
        return np.ones_like(np.asarray(margin, dtype=float))
    return expit(np.asarray(margin, dtype=float) + log(m) - log(K - m))


# ---------------------------------------------------------------------------------------------
# The scale equations


def _margin(log_c, K, m):
    """Unique s >= 0 with ``s (m exp(s) + K - m) = exp(log_c)``, elementwise; 0 for m = K.

    Newton in u = log s on ``u + log(m exp(e^u) + K - m) - log_c``, which is convex with slope >= 1,
    started above the root, hence monotone: no bracket and no overflow.
    """
    log_c = np.asarray(log_c, dtype=float)
    if m == K:
        return np.zeros_like(log_c)
    positive = log_c > -np.inf
    c = np.where(positive, log_c, 0.0)
    u = np.minimum(c - log(K), np.log(np.maximum(c - log(m), 1.0)))
    for _ in range(100):
        s = np.exp(u)
        value = u + np.logaddexp(log(m) + s, log(K - m)) - c
        step = value / (1 + s * expit(s + log(m) - log(K - m)))
        u = u - step
        if np.all(np.abs(step) <= 1e-15 * (1 + np.abs(u))):
            break
    return np.where(positive, np.exp(u), 0.0)


def margins_at(gamma, *, K, multiplicities, reduction="sum"):
    """Margins ``{m: s_m}`` for the common constant gamma: ``s_m (m e^{s_m} + K - m) = ω_m gamma``.

    ``gamma`` is a number or an array >= 0 (claim 3.L5).  A set of all K labels has margin 0: there
    is no label outside it, and its feature vanishes.
    """
    K = checks.integer("K", K, 2)
    gamma = np.asarray(gamma, dtype=float)
    if not np.all(gamma >= 0):
        raise checks.InputError("gamma must be non-negative numbers")
    with np.errstate(divide="ignore"):
        log_gamma = np.log(gamma)
    margins = {}
    for m in multiplicities:
        _multiplicity(K, m)
        margins[m] = _scalar(_margin(log_gamma + log(label_weight(m, reduction)), K, m))
    return margins


def scale_at(margin, *, K, m, reduction="sum"):
    """C_m as a function of the singles' margin s_1: the parameter-free prediction (claim 3.L18).

    The regularization and the counts enter C_m only through s_1, so a measured s_1 predicts the
    ratio between the features of m-label sets and the sum of their singles.  ``margin``: number or
    array >= 0.  The limits are ω_m at s_1 = 0 and 1 for s_1 → ∞.
    """
    K, m = _multiplicity(K, m)
    s1 = np.asarray(margin, dtype=float)
    if not np.all(s1 >= 0):
        raise checks.InputError("the margin of the single labels must be non-negative")
    weight = label_weight(m, reduction)
    if m == 1:
        return _scalar(np.ones_like(s1))
    positive = np.where(s1 > 0, s1, 1.0)
    log_c = log(weight) + np.log(positive) + np.logaddexp(positive, log(K - 1))
    limit = 0.0 if m == K else weight
    return _scalar(np.where(s1 > 0, _margin(log_c, K, m) / positive, limit))


def scale_dip(K, m):
    """``(s_1, C_m)`` where the ``"sum"`` curve C_m(s_1) is smallest (claim 3.L18); 2 <= m < K."""
    K, m = _multiplicity(K, m)
    if not 2 <= m < K:
        raise checks.InputError(f"C_m has a dip only for 2 <= m < K, got m={m}, K={K}")
    bounds = (0.1, 10 + 2 * log(K))
    found = minimize_scalar(
        lambda s: scale_at(s, K=K, m=m), bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x), float(found.fun)


# ---------------------------------------------------------------------------------------------
# Optima


@dataclass(frozen=True)
class Optimum:
    """A balanced optimum.  Made by :func:`optimum`, :func:`frozen_optimum`,
    :func:`nonnegative_optimum`.

    Attributes
    ----------
    value : float
        Objective value.  For a frozen classifier without the constant ``lambda_w ‖W‖²``.
    margins : dict
        ``{m: s_m}``: in-set minus out-of-set logit.  0 for m = K, and for all m when ``collapsed``.
    scales : dict
        ``{m: C_m}`` relative to the smallest multiplicity present, so ``s_m/s_1`` where singles
        exist.  NaN when undetermined (zero solution).
    classifier_scale : float
        α² in ``W Wᵀ = α² P``; each row of W has squared norm ``α² (K-1)/K``.
    threshold : float or None
        The solution is W = H = 0 exactly when ``2 √(lambda_w lambda_h) >= threshold`` (claim 3.L9).
        None for a frozen classifier, which has no such threshold.
    collapsed : bool
        Whether this is the zero solution.
    K, counts, lambda_w, lambda_h, reduction, nonnegative
        The problem; ``lambda_w`` is None for a frozen classifier.
    """

    K: int
    counts: dict
    lambda_h: float
    lambda_w: float | None
    reduction: str
    value: float
    margins: dict
    classifier_scale: float
    threshold: float | None = None
    nonnegative: bool = False
    scales: dict = field(init=False)

    def __post_init__(self):
        first = self.margins[min(self.margins)]
        scales = {m: s / first if first > 0 else float("nan") for m, s in self.margins.items()}
        object.__setattr__(self, "scales", scales)

    @property
    def collapsed(self):
        return self.classifier_scale == 0

    @property
    def num_samples(self):
        """N, all samples."""
        return _num_samples(self.K, self.counts)

    @property
    def gamma(self):
        """The constant of the scale equations, ``K α² / (2 N lambda_h)``."""
        return self.K * self.classifier_scale / (2 * self.num_samples * self.lambda_h)

    @property
    def weight_norm(self):
        """Frobenius norm of W, ``α √(K-1)``."""
        return sqrt(self.classifier_scale * (self.K - 1))

    def feature_norm(self, m):
        """Euclidean norm of h_S for a set of m labels."""
        if self.collapsed:
            return 0.0
        size = m if self.nonnegative else m * (self.K - m) / self.K
        return self.margins[m] * sqrt(size / self.classifier_scale)


def optimum(*, K, counts, lambda_w, lambda_h, reduction="sum"):
    """Global minimum of the balanced pick-all-label problem (claims 3.L3–3.L9).

    Parameters
    ----------
    K : int >= 2
        Classes; the feature dimension must be at least K-1 for the minimum to be reached.
    counts : mapping {m: n_m}
        Samples *per label set* of multiplicity m, 1 <= m <= K.  Zero means absent; gaps and missing
        singles are fine.
    lambda_w, lambda_h : float > 0
        Regularization, without factor ½ (weight decay wd is ``lambda_w = wd/2``).  ``lambda_b``
        does not matter: the bias is 0 at the minimum.
    reduction : "sum" or "mean"
        Whether a sample's loss adds up or averages over its labels.

    Returns an :class:`Optimum`.  Its value is the minimum over s >= 0 of the convex function
    ``(1/N) Σ N_m ω_m ℓ_m(s_m) + 2 √(lambda_w lambda_h) (K-1) √(Σ q_m s_m²)``.
    """
    K, counts = _counts(K, counts)
    lambda_w, lambda_h = _positive(lambda_w=lambda_w, lambda_h=lambda_h)
    N = _num_samples(K, counts)
    quadratic = {m: balance_weight(K, m, n) / N**2 for m, n in counts.items()}
    price = 2 * sqrt(lambda_w * lambda_h) * N
    margins, radius, threshold, value = _shared_margins(
        K, counts, reduction, quadratic, price * (K - 1)
    )
    alpha_squared = sqrt(lambda_h / lambda_w) * N * radius
    return Optimum(
        K=K, counts=counts, lambda_h=lambda_h, lambda_w=lambda_w, reduction=reduction, value=value,
        margins=margins, classifier_scale=alpha_squared, threshold=threshold / (N * (K - 1)),
    )  # fmt: skip


def nonnegative_optimum(*, K, counts, lambda_w, lambda_h, reduction="sum"):
    """The symmetric solution with nonnegative (post-ReLU) features, d >= K (claim 3.L19).

    W stays a simplex ETF, ``h_S = (s_m/α) Σ_{k∈S} q_k`` with orthonormal q_k >= 0, and the tag-wise
    average is exact without centring.  Arguments as in :func:`optimum`.  That this solution is the
    global minimum of the constrained problem is numerical evidence, not a theorem.
    """
    K, counts = _counts(K, counts)
    lambda_w, lambda_h = _positive(lambda_w=lambda_w, lambda_h=lambda_h)
    N = _num_samples(K, counts)
    quadratic = {m: m * n * comb(K, m) / N for m, n in counts.items()}
    price = 2 * sqrt(lambda_w * lambda_h * N)
    margins, radius, threshold, value = _shared_margins(
        K, counts, reduction, quadratic, price * sqrt(K - 1)
    )
    alpha_squared = sqrt(lambda_h * N / (lambda_w * (K - 1))) * radius
    return Optimum(
        K=K, counts=counts, lambda_h=lambda_h, lambda_w=lambda_w, reduction=reduction, value=value,
        margins=margins, classifier_scale=alpha_squared, nonnegative=True,
        threshold=threshold / sqrt(N * (K - 1)),
    )  # fmt: skip


def frozen_optimum(*, K, counts, lambda_h, classifier_scale=None, reduction="sum"):
    """Optimal features for a classifier frozen at ``W Wᵀ = classifier_scale * P`` (claim 3.L20).

    ``classifier_scale`` defaults to K/(K-1), the simplex ETF with unit rows.  Every margin then
    solves its own equation, whatever the counts, and stays bounded: the loss does not reach its
    floor, although every label set is decoded correctly.
    """
    K, counts = _counts(K, counts)
    (lambda_h,) = _positive(lambda_h=lambda_h)
    default = K / (K - 1) if classifier_scale is None else classifier_scale
    alpha_squared = checks.real("classifier_scale", default, above=0)
    N = _num_samples(K, counts)
    gamma = K * alpha_squared / (2 * N * lambda_h)
    margins = margins_at(gamma, K=K, multiplicities=counts, reduction=reduction)
    features = sum(
        n * comb(K, m) * margins[m] ** 2 * m * (K - m) / K / alpha_squared
        for m, n in counts.items()
    )
    value = _mean_loss(K, counts, reduction, margins) + lambda_h * features
    return Optimum(
        K=K, counts=counts, lambda_h=lambda_h, lambda_w=None, reduction=reduction, value=value,
        margins=margins, classifier_scale=alpha_squared,
    )  # fmt: skip


def _shared_margins(K, counts, reduction, quadratic, price):
    """Minimise ``mean loss(s) + price √(Σ a_m s_m²)`` over margins s >= 0, ``a = quadratic``.

    Stationarity is ``s_m (m e^{s_m} + K - m) = ω_m κ_m r`` with ``r = √(Σ a_m s_m²)``; r is the
    root of a decreasing function of log r.  Returns margins, r, the price from which on s = 0, the
    value.
    """
    N = _num_samples(K, counts)
    pull = {m: n * comb(K, m) / N * m * (K - m) for m, n in counts.items()}
    active = [m for m in counts if m < K]
    weights = {m: label_weight(m, reduction) for m in counts}
    threshold = sqrt(sum((weights[m] * pull[m] / K) ** 2 / quadratic[m] for m in active))

    def margins(log_radius):
        found = dict.fromkeys(counts, 0.0)
        for m in active:
            constant = log(weights[m] * pull[m] / (price * quadratic[m]))
            found[m] = float(_margin(log_radius + constant, K, m))
        return found

    def excess(log_radius):
        s = margins(log_radius)
        return log(sum(quadratic[m] * s[m] ** 2 for m in active)) / 2 - log_radius

    solved, radius = dict.fromkeys(counts, 0.0), 0.0
    low, high = -300.0, 0.0
    if price < threshold and excess(low) > 0:
        while excess(high) > 0:
            high += 5.0
        root = brentq(excess, low, high, xtol=1e-15, rtol=1e-15, maxiter=500)
        solved, radius = margins(root), float(np.exp(root))
    return solved, radius, threshold, _mean_loss(K, counts, reduction, solved) + price * radius


def _mean_loss(K, counts, reduction, margins):
    N = _num_samples(K, counts)
    parts = (
        n * comb(K, m) / N * sample_loss(margins[m], K=K, m=m, reduction=reduction)
        for m, n in counts.items()
    )
    return float(sum(parts))


# ---------------------------------------------------------------------------------------------
# The minimiser itself


@dataclass(frozen=True)
class Configuration:
    """Weights and features of an optimum: one feature row per label set.

    ``weight (K, d)``, ``features (sets, d)``, ``targets (sets, K)`` multi-hot,
    ``sample_counts (sets,)``.
    """

    weight: torch.Tensor
    features: torch.Tensor
    targets: torch.Tensor
    sample_counts: torch.Tensor


def balanced_sets(K, counts):
    """``(targets, sample_counts)``: every label set of every multiplicity present, and its
    count."""
    K, counts = _counts(K, counts)
    blocks = [label_sets(K, m) for m in counts]
    repeats = [
        torch.full((len(b),), float(n)) for b, n in zip(blocks, counts.values(), strict=True)
    ]
    return torch.cat(blocks), torch.cat(repeats).double()


def configuration(optimum, *, d=None, generator=None):
    """A minimiser that belongs to ``optimum``, in dimension d (default: the smallest possible, K-1,
    or K for nonnegative features), turned at random if a ``torch.Generator`` is given.

    All other minimisers are rotations of it; nonnegative features are never turned.
    """
    K = optimum.K
    alpha = sqrt(optimum.classifier_scale)
    targets, sample_counts = balanced_sets(K, optimum.counts)
    margins = torch.tensor([optimum.margins[int(m)] for m in targets.sum(1)], dtype=torch.float64)
    if optimum.nonnegative:
        frame = frames.orthogonal_frame(K, d)
        weight = alpha * frames.centring(K) @ frame
        gain, directions = (margins / alpha if alpha else margins), targets @ frame
    else:
        weight = alpha * sqrt((K - 1) / K) * frames.simplex_etf(K, d, generator=generator)
        gain = margins / optimum.classifier_scale if alpha else margins
        directions = targets @ weight
    return Configuration(weight, gain[:, None] * directions, targets, sample_counts)


# ---------------------------------------------------------------------------------------------
# Landscape


def certificate_gap(gradient, *, lambda_w, lambda_h):
    """``‖G‖₂ - 2 √(lambda_w lambda_h)`` for ``gradient = ∂loss/∂logits`` (N, K) at a critical
    point.

    At a critical point (in W, H and the bias) it is >= 0 up to rounding unless W = H = 0, and the
    point is a *global* minimum exactly when it is <= 0.  Needs no balance: it tells for any data
    whether a run has found the optimum (claims 3.L10, 3.L13).
    """
    lambda_w, lambda_h = _positive(lambda_w=lambda_w, lambda_h=lambda_h)
    gradient = checks.matrix("gradient", gradient, dtype=torch.float64)
    return float(torch.linalg.matrix_norm(gradient, 2)) - 2 * sqrt(lambda_w * lambda_h)


def escape_curvature(gradient, *, lambda_w, lambda_h):
    """Second derivative of f along :func:`escape_direction`:
    ``-2 ‖G‖₂ + 4 √(lambda_w lambda_h)``."""
    return -2 * certificate_gap(gradient, lambda_w=lambda_w, lambda_h=lambda_h)


def escape_direction(weight, gradient, *, lambda_w, lambda_h):
    """The direction out of a critical point with a spare dimension (claim 3.L10).

    With a unit vector a, ``W a = 0``, and the leading singular pair of the gradient (N, K), it is
    ``dW = c u aᵀ``, ``dH = -v aᵀ / c``, ``c = (lambda_h/lambda_w)^¼``.  Returns
    ``(dW (K, d), dH (N, d))``. Raises if W has full column rank: then there is no such a.
    """
    lambda_w, lambda_h = _positive(lambda_w=lambda_w, lambda_h=lambda_h)
    weight = checks.matrix("weight", weight, dtype=torch.float64)
    gradient = checks.matrix("gradient", gradient, columns=len(weight), dtype=torch.float64)
    _, singular, axes = torch.linalg.svd(weight, full_matrices=True)
    rank = int((singular > 1e-6 * max(float(singular[0]), 1e-6)).sum())
    if rank == weight.shape[1]:
        raise checks.InputError(
            f"weight has full column rank {rank}: no spare dimension to escape into; use d > {rank}"
        )
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    c, spare = (lambda_h / lambda_w) ** 0.25, axes[-1]
    return c * torch.outer(right[0], spare), -torch.outer(left[:, 0], spare) / c


def flat_directions(K, d):
    """Zero eigenvalues of the Hessian at the global minimum: ``(K-1) d - K (K-1)/2`` (rotations).

    One more if the bias is not regularized (adding a constant to all logits).
    """
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    if d < K - 1:
        raise checks.InputError(f"the minimum has rank K-1, so d must be at least {K - 1}, got {d}")
    return (K - 1) * d - K * (K - 1) // 2


# ---------------------------------------------------------------------------------------------
# Input


def _multiplicity(K, m):
    K = checks.integer("K", K, 2)
    m = checks.integer("multiplicity", m)
    if m > K:
        raise checks.InputError(f"a label set of K={K} classes has at most {K} labels, got m={m}")
    return K, m


def _counts(K, counts):
    """K and the multiplicities with samples, ascending, as plain ints."""
    K = checks.integer("K", K, 2)
    if not hasattr(counts, "items"):
        raise checks.InputError(
            f"counts must map multiplicity to samples per label set, such as {{1: 100, 2: 20}}, "
            f"got {counts!r}"
        )
    for m, n in counts.items():
        _multiplicity(K, m)
        checks.integer(f"counts[{m}]", n, 0)
    present = {int(m): int(counts[m]) for m in sorted(counts) if counts[m] > 0}
    if not present:
        raise checks.InputError("counts has no sample: give at least one multiplicity a count >= 1")
    return K, present


def _num_samples(K, counts):
    return sum(n * comb(K, m) for m, n in counts.items())


def _positive(**values):
    for name, value in values.items():
        checks.real(name, value, above=0)
    return tuple(float(v) for v in values.values())


def _scalar(array):
    return float(array) if np.ndim(array) == 0 else np.asarray(array)


__all__ = [
    "Configuration", "Optimum", "balance_weight", "balanced_sets", "certificate_gap",
    "configuration", "escape_curvature", "escape_direction", "flat_directions", "frozen_optimum",
    "label_sets", "label_weight", "loss_floor", "margins_at", "nonnegative_optimum", "optimum",
    "sample_loss", "scale_at", "scale_dip", "set_mass",
]  # fmt: skip
