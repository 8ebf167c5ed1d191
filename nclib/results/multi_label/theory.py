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
from scipy.optimize import brentq, minimize, minimize_scalar, root
from scipy.special import expit

from nclib import checks, frames
from nclib.losses import PickAllLabels
from nclib.ufm.model import UFM

REDUCTIONS = ("sum", "mean")


# ---------------------------------------------------------------------------------------------
# The problem itself


def problem(
    targets, d, *, lambda_w, lambda_h, lambda_b=None, counts=None, reduction="sum", **options
):
    """f as a :class:`~nclib.ufm.model.UFM`: the one place where the paper's λ, which carry no
    factor ½, become the kernel's, which do.

    ``targets (R, K)`` multi-hot rows; ``counts (R,)`` samples per row (default 1); ``lambda_b``:
    ``None`` no bias, 0 a free one; ``options`` those of the UFM, such as ``nonnegative``.  Samples
    of one label set share their feature at every critical point (claim 3.L2), so one row per label
    set is exact.
    """
    targets = checks.label_sets(targets).double()
    loss = PickAllLabels(checks.choice("reduction", reduction, REDUCTIONS))
    lambda_w, lambda_h = _positive(lambda_w=lambda_w, lambda_h=lambda_h)
    bias = None if lambda_b is None else 2 * checks.real("lambda_b", lambda_b, at_least=0)
    decays = (2 * lambda_h, 2 * lambda_w)
    return UFM(loss, targets, d, decays, counts=counts, bias=bias, **options)


def balanced(d, *, K, counts, per_sample=False, **decays):
    """The :func:`problem` with every m-subset present ``counts[m]`` times, as in :func:`optimum`;
    ``per_sample``: one row per sample instead of one per label set."""
    targets, counts = balanced_sets(K, counts)
    if per_sample:
        targets, counts = targets.repeat_interleave(counts.long(), 0), None
    return problem(targets, d, counts=counts, **decays)


def from_table(table, d, *, K, **decays):
    """The :func:`problem` of a table ``{label tuple: samples}``, such as ``{(0,): 9, (0, 3): 7}``:
    the geometry that co-occurring or imbalanced labels will have, before any training."""
    targets = torch.zeros(len(table), checks.integer("K", K, 2), dtype=torch.float64)
    for row, (labels, count) in enumerate(table.items()):
        checks.integer(f"the count of {labels}", count)
        if not labels or len(set(labels)) < len(labels) or not set(labels) <= set(range(K)):
            raise checks.InputError(
                f"label set {labels} must be distinct classes in 0..{K - 1}, at least one"
            )
        targets[row, list(labels)] = 1.0
    return problem(targets, d, counts=torch.tensor(list(table.values())), **decays)


def label_weight(m, reduction):
    """Weight ω_m of a sample with m labels: 1 for ``"sum"``, 1/m for ``"mean"``."""
    m = checks.integer("multiplicity", m)
    return 1.0 if checks.choice("reduction", reduction, REDUCTIONS) == "sum" else 1.0 / m


def label_sets(K, m):
    """All ``comb(K, m)`` label sets of multiplicity m as multi-hot rows, float64, lexicographic."""
    K, m = _multiplicity(K, m)
    rows = np.array(list(combinations(range(K), m)))
    return torch.zeros(len(rows), K, dtype=torch.float64).scatter_(1, torch.from_numpy(rows), 1.0)


def balance_weight(K, m, n):
    """q_m with ``Σ_{|S|=m} n P y_S y_Sᵀ P = q_m P``: ``n comb(K-2, m-1)``; 0 for m = K."""
    K, m = _multiplicity(K, m)
    return checks.real("n", n, at_least=0) * comb(K - 2, m - 1)


def sample_loss(margin, *, K, m, reduction="sum"):
    """Loss of a sample whose logits are ``margin * P y_S``:
    ``ω_m m log(m + (K-m) exp(-margin))``."""
    K, m = _multiplicity(K, m)
    others = log(K - m) if m < K else -np.inf
    total = np.logaddexp(log(m), others - np.asarray(margin, dtype=float))
    return label_weight(m, reduction) * m * total


def loss_floor(m, reduction="sum"):
    """Infimum of the loss of a sample with m labels: ``m log m`` ("sum") or ``log m`` ("mean").

    It is not 0 for m >= 2: a softmax cannot give probability one to two labels at once.
    """
    return label_weight(m, reduction) * m * log(m)


def set_mass(margin, *, K, m):
    """Softmax probability of the true label set at logits ``margin * P y_S`` (the "soft IoU")."""
    K, m = _multiplicity(K, m)
    if m == K:
        return np.ones_like(np.asarray(margin, dtype=float))
    return expit(np.asarray(margin, dtype=float) + log(m) - log(K - m))


def logit_margins(logits, targets):
    """``{m: mean over samples of (mean in-set logit - mean out-of-set logit)}``, m < K."""
    logits = checks.matrix("logits", logits)
    targets = checks.label_sets(targets, shape=logits.shape).to(logits)
    sizes, K = targets.sum(1), targets.shape[1]
    inside = (logits * targets).sum(1) / sizes
    gap = (inside - (logits * (1 - targets)).sum(1) / (K - sizes)).double()
    return {m: float(gap[sizes == m].mean()) for m in sizes.long().unique().tolist() if m < K}


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
    if not np.all((gamma >= 0) & (gamma < np.inf)):
        raise checks.InputError("gamma must be finite non-negative numbers")
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
    if not np.all((s1 >= 0) & (s1 < np.inf)):
        raise checks.InputError("the margin of the single labels must be finite and non-negative")
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
    """A balanced optimum, made by :func:`optimum`, :func:`frozen_optimum`,
    :func:`nonnegative_optimum` from the problem in its first five fields.

    ``value`` of f (frozen classifier: without the constant ``lambda_w ‖W‖²``); ``margins``
    ``{m: s_m}``, in-set minus out-of-set logit, 0 for m = K; ``classifier_scale`` α² in
    ``W Wᵀ = α² P``, 0 for the zero solution; ``threshold``: the solution is W = H = 0 exactly when
    ``2 √(lambda_w lambda_h) >= threshold`` (3.L9; a frozen classifier has none); ``blocks``: see
    :func:`nonnegative_optimum`; ``scales`` ``{m: C_m}`` relative to the smallest multiplicity
    present, NaN for the zero solution.
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
    blocks: dict | None = None
    scales: dict = field(init=False)

    def __post_init__(self):
        first = self.margins[min(self.margins)]
        scales = {m: s / first if first > 0 else float("nan") for m, s in self.margins.items()}
        object.__setattr__(self, "scales", scales)

    @property
    def collapsed(self):
        """Whether this is the zero solution."""
        return self.classifier_scale == 0

    @property
    def weight_norm(self):
        """Frobenius norm of W, ``α √(K-1)``."""
        return sqrt(self.classifier_scale * (self.K - 1))


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
    quadratic = {m: (K - 1) ** 2 * balance_weight(K, m, n) for m, n in counts.items()}
    price = 2 * sqrt(lambda_w) * sqrt(lambda_h)
    margins, norm, threshold, value = _shared_margins(K, counts, reduction, quadratic, price)
    return Optimum(
        K, counts, lambda_h, lambda_w, reduction, value, margins,
        classifier_scale=sqrt(lambda_h) / sqrt(lambda_w) * norm / (K - 1), threshold=threshold,
    )  # fmt: skip


def nonnegative_optimum(*, K, counts, lambda_w, lambda_h, reduction="sum"):
    """The minimum with nonnegative (post-ReLU) features in many dimensions (claims 3.L19, 3.L21).

    Arguments as in :func:`optimum`.  The logits are again ``s_m P y_S`` and W is a simplex ETF, but
    the nuclear norm becomes a gauge with atoms ``u vᵀ``, u >= 0.  With one direction per t-subset T
    of the classes, ``v_T ∝ P 1_T``, a feature has the coordinates ``(v_Tᵀ y_S)_+`` for the sizes t
    in ``blocks``, whose weights (they sum to one) are chosen best:

    ``{1: 1.0}``    all m <= K/2: ``h_S ∝ Σ_{k∈S} q_k`` with orthonormal q_k >= 0, tag-wise
    ``{K-1: 1.0}``  all m >= K/2: one axis per class, h_S along those of the classes *outside* S
    otherwise       another size or a mixture of sizes (of more sizes than there are m: one of many
                    with the same logits), and no tag-wise average.

    Why: with ``(x)_+² = (x² + x|x|)/2`` the best direction maximises ``Σ g_m² Σ_S v_S|v_S|`` over
    unit v in 1⊥, and ``v_S = -v_{Sᶜ}`` turns m into K-m.  For K <= 4 only ``Σ_k v_k|v_k|`` is left,
    whose extremes are t = 1 and K-1.  For K >= 5 that subset directions suffice is numerical
    evidence where all m lie on one side of K/2.  Mixtures across K/2 are searched for a better
    direction, which exists for K = 7 and counts ``{2: 8, 4: 12, 6: 199}`` (it has three values);
    where one is found, and for K > 10, where none can be sought, :class:`~nclib.checks.InputError`
    says so.
    """
    K, counts = _counts(K, counts)
    lambda_w, lambda_h = _positive(lambda_w=lambda_w, lambda_h=lambda_h)
    price = 2 * sqrt(lambda_w) * sqrt(lambda_h)
    size = {m: comb(K, m) * sqrt(n) * m * (K - m) / K for m, n in counts.items() if m < K}
    sizes = range(1, K) if K > 4 else sorted({1, K - 1})
    overlaps = np.array([[_overlap(K, t, m) for m in size] for t in sizes])

    def solve(weights):
        mixed = np.asarray(weights) @ overlaps
        quadratic = {m: size[m] ** 2 / c for m, c in zip(size, mixed, strict=True)}
        found = _shared_margins(K, counts, reduction, quadratic, price)
        push = np.array([(size[m] * found[0][m]) ** 2 for m in size]) / mixed**2
        return *found, overlaps @ push / max(found[1] ** 2, 1e-300)  # > 1: a block that would help

    corners = [(*solve(corner), corner) for corner in np.eye(len(sizes))]
    margins, norm, _, value, help_, weights = min(corners, key=lambda found: found[3])
    if help_.max() > 1 + 1e-12:

        def lowered(weights):
            _, norm, _, value, help_ = solve(weights)
            return value, -price * norm / 2 * help_

        whole = {"type": "eq", "fun": lambda weights: weights.sum() - 1, "jac": np.ones_like}
        found = minimize(
            lowered, np.full(len(sizes), 1 / len(sizes)), jac=True, method="SLSQP",
            constraints=[whole], bounds=[(0, 1)] * len(sizes),
            options={"ftol": 1e-16, "maxiter": 300},
        )  # fmt: skip
        kept = found.x > 1e-7
        weights = np.where(kept, found.x, 0.0)

        def unequal(part):  # the value tells them to 1e-7 only; where all help alike they are exact
            weights[kept] = part
            return solve(weights)[-1][kept] - 1

        weights[kept] = np.maximum(root(unequal, found.x[kept], tol=1e-12).x, 0.0)
        margins, norm, _, value, _ = solve(weights / weights.sum())
    if K > 4 and size and min(size) < K / 2 < max(size):
        push = [
            sqrt(n) * label_weight(m, reduction) * K / (m * np.exp(margins[m]) + K - m)
            * (label_sets(K, m) - m / K)
            for m, n in counts.items() if m < K <= 10
        ]  # fmt: skip
        bound = price * _num_samples(K, counts) * (1 + 1e-6)
        if not push or _steepest(torch.cat(push)) > bound:
            raise checks.InputError(
                f"for counts {counts} of K={K} classes directions other than those of subsets "
                f"{'are' if push else 'may be'} better, and the minimum with nonnegative features "
                "has no known form: look for it with nclib.ufm.solve.best(theory.balanced(…, "
                "nonnegative=True))"
            )
    return Optimum(
        K, counts, lambda_h, lambda_w, reduction, value, margins,
        classifier_scale=sqrt(lambda_h) / sqrt(lambda_w) * norm / (K - 1),
        threshold=max(found[2] for found in corners),
        blocks={t: float(w) for t, w in zip(sizes, weights / weights.sum(), strict=True) if w > 0},
    )  # fmt: skip


def _overlap(K, t, m):
    """``Σ_S (vᵀ y_S)_+²`` over all m-subsets S, for the unit vector v along ``P 1_T``, |T| = t."""
    shared = range(max(0, m + t - K), min(t, m) + 1)  # how many classes S and T share
    total = sum(comb(t, j) * comb(K - t, m - j) * max(j - m * t / K, 0.0) ** 2 for j in shared)
    return total * K / (t * (K - t))


def certificate(problem, point):
    """Distance from global optimality with nonnegative features, for any data (claim 3.L21).

    ``max ‖Gᵀu‖`` over unit u >= 0, G the gradient of the loss in the logits, minus ``√(λ_H λ_W)``
    of the kernel: <= 0 at a critical point proves that it is global in every dimension.  The
    maximum of a convex function is searched by ascent from random starts and from every two-valued
    direction (K <= 12), so the proof is as good as the search.
    """
    bound = len(problem.decays) > 2 or problem.sphere or problem.log or problem.fixed
    if bound or not problem.nonnegative or bool((point["features"] < 0).any()):
        raise checks.InputError(
            "the certificate is for one layer, free features that are nonnegative and a free weight"
        )
    reach = problem.scale * _steepest(-problem.logit_gradient(point))
    return reach - (problem.decays[0] * problem.decays[1]) ** 0.5


def _steepest(push):
    """The largest ``‖pushᵀu‖`` over unit u >= 0 that ascent finds; ``push (R, K)``."""
    K = push.shape[1]
    v = torch.randn(200, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if K <= 12:
        v = torch.cat([v, *(label_sets(K, t) - t / K for t in range(1, K))])
    for _ in range(300):
        u = torch.nn.functional.normalize((v @ push.T).relu(), dim=1)
        v = u @ push
    return float(v.norm(dim=1).max())


def frozen_optimum(*, K, counts, lambda_h, reduction="sum"):
    """Optimal features for a classifier frozen at the simplex ETF with unit rows (claim 3.L20).

    Every margin then solves its own equation with a known γ, in which the counts appear only
    through N, and stays bounded: the loss does not reach its floor, although every label set is
    decoded correctly.
    """
    K, counts = _counts(K, counts)
    (lambda_h,) = _positive(lambda_h=lambda_h)
    N, alpha_squared = _num_samples(K, counts), K / (K - 1)
    gamma = K * alpha_squared / (2 * N * lambda_h)
    margins = margins_at(gamma, K=K, multiplicities=counts, reduction=reduction)
    features = sum(
        n * comb(K, m) * margins[m] ** 2 * m * (K - m) / K / alpha_squared
        for m, n in counts.items()
    )
    value = _mean_loss(K, counts, reduction, margins) + lambda_h * features
    return Optimum(K, counts, lambda_h, None, reduction, value, margins, alpha_squared)


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


def balanced_sets(K, counts):
    """``(targets, counts)``: all label sets of every multiplicity present, samples of each."""
    K, counts = _counts(K, counts)
    targets = torch.cat([label_sets(K, m) for m in counts])
    samples = [torch.full((comb(K, m),), n, dtype=torch.float64) for m, n in counts.items()]
    return targets, torch.cat(samples)


@dataclass(frozen=True)
class Configuration:
    """Weights and features of an optimum: ``weight (K, d)``, one row per label set in
    ``features (R, d)``, multi-hot ``targets (R, K)`` and ``sample_counts (R,)``."""

    weight: torch.Tensor
    features: torch.Tensor
    targets: torch.Tensor
    sample_counts: torch.Tensor


def configuration(optimum):
    """A minimiser that belongs to ``optimum``; all others are rotations of it.

    In the smallest dimension, K-1; with nonnegative features in as many as its blocks have subsets.
    """
    K, alpha = optimum.K, sqrt(optimum.classifier_scale)
    targets, counts = balanced_sets(K, optimum.counts)
    sizes = targets.sum(1).long()
    margins = torch.tensor([optimum.margins[int(m)] for m in sizes], dtype=torch.float64)
    if optimum.blocks is None:
        weight = alpha * sqrt((K - 1) / K) * frames.simplex_etf(K)
        gain = margins / optimum.classifier_scale if alpha else margins
        return Configuration(weight, gain[:, None] * (targets @ weight), targets, counts)
    columns, features = [], []
    mixed = {
        m: sum(w * _overlap(K, t, m) for t, w in optimum.blocks.items()) for m in optimum.counts
    }
    for t, share in optimum.blocks.items():
        v = torch.nn.functional.normalize(label_sets(K, t) - t / K, dim=1)
        size = sqrt(share / comb(K, t))
        columns.append(alpha * sqrt(K - 1) * size * v)
        features.append(size * (targets @ v.T).relu())
    wanted = [comb(K, int(m)) * m * (K - m) / K / (mixed[int(m)] or 1.0) for m in sizes.tolist()]
    gain = margins * torch.tensor(wanted, dtype=torch.float64) / (alpha * sqrt(K - 1) or 1.0)
    features = gain[:, None] * torch.cat(features, 1)
    return Configuration(torch.cat(columns).T, features, targets, counts)


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
    if _num_samples(K, present) > 1e100:
        raise checks.InputError(f"counts {counts} are more samples of K={K} classes than 1e100")
    return K, present


def _num_samples(K, counts):
    return sum(n * comb(K, m) for m, n in counts.items())


def _positive(**values):
    for name, value in values.items():
        checks.real(name, value, above=0)
    return tuple(float(v) for v in values.values())


def _scalar(array):
    return float(array) if np.ndim(array) == 0 else np.asarray(array)
