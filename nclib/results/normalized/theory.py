"""Result 2 in closed form: cross-entropy over unit features and unit classifier rows.

The problem (Yaras, Wang, Zhu, Balzano, Qu 2022) is

    min f(H, W) = mean_i CE(scale · W h_i, y_i)    over H (N, d) and W (K, d) with unit rows,

a smooth function on a product of N + K spheres.  ``scale > 0`` **multiplies** the logits (the
paper's τ: a large scale is a sharp softmax).  The paper stacks features and classifiers as columns;
here, as in all of nclib, they are rows, and its Gram matrix ``WᵀW`` is ``weight @ weight.T``.

What is here: the global minimum and its floors, the whole Riemannian Hessian spectrum at the
minimum and the scales that condition it best, a zoo of critical points with their curvature, the
certificate of global optimality, and the penalised problems that have the same minimiser.
Claims are rows of result 2's table, for example "2.L4".
"""

from dataclasses import dataclass
from math import comb, cos, exp, hypot, log, log1p, sin, sqrt

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq, minimize_scalar

from nclib import checks, frames, losses
from nclib.frames import simplex_etf
from nclib.ufm import scalar
from nclib.ufm.model import UFM

LOSS = losses.ExactCrossEntropy()
BOTH = ("features", "weight")

TINY = float(np.finfo(float).tiny)
UNIT_TOLERANCE = 1e-5  # how far from 1 the norm of a row may be: float32 rounding, nothing more


def _sizes(K, n, d=None, *, rank=0, what="this point"):
    K, n = checks.integer("K", K, 2), checks.integer("n", n)
    if d is None:
        return K, n
    d = checks.integer("d", d, 2)
    if d < rank:
        raise checks.InputError(f"{what} needs d >= {rank} for K={K}, got d={d}")
    return K, n, d


def _scale(scale):
    return checks.real("scale", scale, above=0)


def _wrong_probability(K, margin):
    """``1 / (e^margin + K - 1)``, also where ``e^margin`` overflows."""
    if margin > 0:
        return exp(-margin) / (1 + (K - 1) * exp(-margin))
    return 1 / (exp(margin) + K - 1)


def _softplus(x):
    return float(np.logaddexp(0.0, x))


# ------------------------------------------------------------------------------------------------
# The problem and its penalised relatives


def normalized(counts, scale, d, **options):
    """The problem as a :class:`~nclib.ufm.model.UFM`: unit features and unit classifier rows.

    ``counts[k]`` samples of class k.  ``options``: ``nonnegative`` features (claim 2.L13), or
    ``log`` to minimise log f: the same critical points, for scales at which f is as small as
    ``e^{-scale}``.
    """
    return UFM.classes(
        counts, LOSS, widths=d, decays=(0, 0), scale=_scale(scale), sphere=BOTH, **options
    )


def hybrid(counts, feature_decay, d):
    """Unit classifiers, free features with penalty ``feature_decay/2 · mean ‖h‖²`` (2.L10)."""
    decay = checks.real("feature_decay", feature_decay, above=0)
    decay /= len(normalized(counts, 1.0, d).targets)
    return UFM.classes(counts, LOSS, widths=d, decays=(decay, 0), sphere="weight")


def regularized(counts, lambda_w, lambda_h, d):
    """Free classifiers and features with penalties ``λ/2`` on their squared norms (2.L10)."""
    lambda_w = checks.real("lambda_w", lambda_w, above=0)
    lambda_h = checks.real("lambda_h", lambda_h, above=0)
    return UFM.classes(counts, LOSS, widths=d, decays=(lambda_h, lambda_w))


# ------------------------------------------------------------------------------------------------
# The global minimum


@dataclass(frozen=True)
class Optimum:
    """The lowest mean cross-entropy, and what the softmax looks like there.

    ``margin`` is the logit gap between the true and each other class, ``wrong_probability`` the
    probability q of each wrong class, ``cosine`` the cosine between a feature and its classifier.
    """

    value: float
    wrong_probability: float
    margin: float
    cosine: float


def optimum(K, scale, *, nonnegative=False):
    """Global minimum over unit rows for balanced classes and any scale (claims 2.L1, 2.L13).

    ``f* = log(1 + (K-1) e^{-m})`` with margin ``m = scale·K/(K-1)``, attained if and only if
    ``d >= K-1``, by features equal to their classifier and a simplex ETF; for smaller d it is a
    strict lower bound.  ``nonnegative=True`` is the floor for features with no negative entry
    (after a ReLU, ``d >= K``): ``m = scale·√(K/(K-1))``, class features orthonormal.

    Returns an :class:`Optimum`.  Raises :class:`~nclib.checks.InputError` for K < 2, scale <= 0.
    """
    K, scale = checks.integer("K", K, 2), _scale(scale)
    margin = scale * (sqrt(K / (K - 1)) if nonnegative else K / (K - 1))
    return Optimum(
        value=_softplus(log(K - 1) - margin),
        wrong_probability=_wrong_probability(K, margin),
        margin=margin,
        cosine=sqrt((K - 1) / K) if nonnegative else 1.0,
    )


def minimum(K, n, d):
    """The global minimum at every scale: features on their classifier, a simplex ETF."""
    K, n, d = _sizes(K, n, d)
    weight = simplex_etf(K, d)
    return {"features": weight[_balanced_labels(K, n)], "weight": weight}


def code_value(code, scale):
    """Loss when every feature equals its classifier and these are the unit rows of ``code (K, d)``.

    With a simplex ETF this is ``optimum(K, scale).value``; with other codes the candidates for
    ``K > d + 1`` (claim 2.L14).
    """
    code = on_sphere("code", code)
    problem = normalized([1] * len(code), scale, code.shape[1])
    return float(problem.value({"features": code, "weight": code}))


def polygon_value(K, scale):
    """Loss of the regular K-gon, ``log Σ_j exp(scale (cos(2πj/K) - 1))``: the floor for d = 2.

    That nothing on the circle is lower is proved for K <= 3 (it is the ETF) and numerical beyond
    (claim 2.L14).
    """
    return code_value(frames.polygon(checks.integer("K", K, 2)), scale)


# ------------------------------------------------------------------------------------------------
# The Hessian at the minimum


@dataclass(frozen=True)
class Block:
    """One eigenvalue of the Hessian: where it lives, its value, how often it occurs."""

    name: str
    eigenvalue: float
    multiplicity: int


def _pair(trace, determinant):
    """Both eigenvalues of a symmetric 2 x 2 matrix, ascending, without cancellation."""
    root = sqrt(max(0.0, trace * trace / 4 - determinant))
    large = trace / 2 + (root if trace >= 0 else -root)
    small = determinant / large if large else 0.0
    return min(small, large), max(small, large)


def _unit_blocks(K, n, t, q):
    """Eigenvalues over ``c = scale·q`` as (name, value, multiplicity per normal direction, rest).

    Rows with value ``None`` are null by symmetry (rotations), not by accident.  ``t`` may be
    negative: features opposite to their classifier see minus the scale.
    """
    values = [
        ("normal, within class", 1 / n, K * (n - 1), 0),
        ("normal, centred pairs, rotation", None, K - 1, 0),
        ("normal, centred pairs", 1 + 1 / n, K - 1, 0),
        ("normal, mean classifier", 1.0, 1, 0),
        ("normal, mean feature", 1 / n, 1, 0),
    ]
    if K == 2:  # the span of W is a line: a unit vector cannot move inside it
        return values
    symmetric = _pair((1 + t) * (1 + 1 / n), 4 * t / n)
    first = 1 + t - t * q * K * (K - 2) / (K - 1)
    off = ((t - 1) / (K - 1)) ** 2
    standard = _pair(first + (1 + t) / n, (first * (1 + t) - off) / n)
    return [
        *values,
        ("span, within class", (1 + t) / n, 0, K * (n - 1) * (K - 2)),
        ("span, symmetric, low", symmetric[0], 0, K * (K - 3) // 2),
        ("span, symmetric, high", symmetric[1], 0, K * (K - 3) // 2),
        ("span, antisymmetric, rotation", None, 0, comb(K - 1, 2)),
        ("span, antisymmetric", (1 + t) * (1 + 1 / n), 0, comb(K - 1, 2)),
        ("span, standard, low", standard[0], 0, K - 1),
        ("span, standard, high", standard[1], 0, K - 1),
    ]


def _blocks(K, n, d, scale, block_steps=False):
    q = optimum(K, scale).wrong_probability if scale > 0 else _antipodal_probability(K, -scale)
    unit = _unit_blocks(K, 1 if block_steps else n, scale / (K - 1), q)
    multiplicities = _unit_blocks(K, n, scale / (K - 1), q)
    counts = [normal * (d - K + 1) + span for _, _, normal, span in multiplicities]
    return scale * q, [(name, v, m) for (name, v, *_), m in zip(unit, counts, strict=True) if m]


def hessian_blocks(K, n, d, scale):
    """The distinct eigenvalues of the Riemannian Hessian at the minimum, as :class:`Block`s.

    Balanced classes of n samples, ``d >= K-1`` (claim 2.L8).
    """
    K, n, d = _sizes(K, n, d, rank=checks.integer("K", K, 2) - 1, what="the minimum")
    c, blocks = _blocks(K, n, d, _scale(scale))
    return [Block(name, 0.0 if v is None else c * v, m) for name, v, m in blocks]


def hessian_spectrum(K, n, d, scale):
    """All ``(d-1)(K + nK)`` Riemannian Hessian eigenvalues at the global minimum, ascending.

    Float64 tensor.  The null space has dimension ``d(K-1) - K(K-1)/2``, the rotations of the ETF;
    everything else is positive (claim 2.L8).
    """
    blocks = hessian_blocks(K, n, d, scale)
    values = torch.tensor([b.eigenvalue for b in blocks], dtype=torch.float64)
    counts = torch.tensor([b.multiplicity for b in blocks])
    return torch.repeat_interleave(values, counts).sort().values


def _extremes(K, n, d, scale, block_steps=False):
    """``c``, and smallest positive and largest eigenvalue in units of c."""
    c, blocks = _blocks(K, n, d, scale, block_steps)
    positive = [value for _, value, _ in blocks if value is not None]
    return c, min(positive), max(positive)


def curvature_range(K, n, d, scale, *, block_steps=False):
    """``(smallest positive, largest)`` eigenvalue at the minimum (claim 2.L9).

    ``block_steps=True``: of what gradient descent sees when its step for features is n times the
    one for classifiers, the spectrum for n = 1 (claim 2.L8).
    """
    K, n, d = _sizes(K, n, d, rank=checks.integer("K", K, 2) - 1, what="the minimum")
    c, low, high = _extremes(K, n, d, _scale(scale), block_steps)
    return c * low, c * high


def condition_number(K, n, d, scale):
    """Largest over smallest positive Hessian eigenvalue at the minimum (claim 2.L9).

    Also at scales at which both underflow.
    """
    K, n, d = _sizes(K, n, d, rank=checks.integer("K", K, 2) - 1, what="the minimum")
    _, low, high = _extremes(K, n, d, _scale(scale))
    return high / low


def descent_rate(K, n, d, scale):
    """Factor by which the distance to the minimum shrinks per step of gradient descent with step
    one over the largest eigenvalue (claim 2.L8)."""
    return 1 - 1 / condition_number(K, n, d, scale)


def best_scale(K, n, d):
    """The temperature advisor: ``(scale of largest curvature, scale of best conditioning)``.

    The first maximises the smallest positive Hessian eigenvalue at the minimum: fastest at a fixed
    step.  The second minimises the condition number, fastest at the step that suits it; for K >= 4
    and d >= K, and only then, it is :func:`best_conditioning`.  For K = 2 the condition number is
    n + 1 at every scale and the tie goes to the first (claim 2.L9).
    """
    K, n, d = _sizes(K, n, d, rank=checks.integer("K", K, 2) - 1, what="the minimum")

    def log_curvature(x):
        c, low, _ = _extremes(K, n, d, exp(x))
        return log(c) + log(low)

    def log_conditioning(x):
        _, low, high = _extremes(K, n, d, exp(x))
        return log(low) - log(high)

    curvature = _maximise(log_curvature, log(1e-2), log(50 + 2 * log(K)))
    if K == 2:
        return exp(curvature), exp(curvature)
    return exp(curvature), exp(_maximise(log_conditioning, log(1e-2), log(50.0 * K)))


def best_conditioning(K, n):
    """``(K-1) n/(3n-1)``, the best-conditioned scale **if** K >= 4 and d >= K (2.L9)."""
    K, n = _sizes(K, n)
    return (K - 1) * n / (3 * n - 1)


def _maximise(fun, low, high):
    """Argument of the maximum of ``fun`` on an interval: a grid, then golden sections."""
    grid = np.linspace(low, high, 300)
    best = int(np.argmax([fun(x) for x in grid]))
    if best in (0, len(grid) - 1):
        return float(grid[best])
    bracket = tuple(grid[best - 1 : best + 2])
    return float(minimize_scalar(lambda x: -fun(x), bracket=bracket, method="golden", tol=1e-13).x)


# ------------------------------------------------------------------------------------------------
# Points on the product of spheres


def on_sphere(name, value, *, columns=None):
    """``value`` as a float64 matrix whose rows have norm 1 up to float32 rounding."""
    value = checks.matrix(name, value, columns=columns, dtype=torch.float64)
    deviation = (value.detach().norm(dim=1) - 1).abs()
    if len(deviation) and deviation.max() > UNIT_TOLERANCE:
        worst = int(deviation.argmax())
        raise checks.InputError(
            f"{name} must have rows on the unit sphere: row {worst} has norm "
            f"{float(value[worst].detach().norm()):.6g} (off by {float(deviation[worst]):.2g}, "
            f"{int((deviation > UNIT_TOLERANCE).sum())} of {len(deviation)} rows are off); use "
            "torch.nn.functional.normalize(x, dim=1)"
        )
    return value


def sphere_point(features, weight, labels, scale):
    """Check a point of the problem: ``(features (N, d), weight (K, d), labels (N,), scale)``.

    Float64; unit rows, d >= 2, every class with a sample, scale > 0, or an
    :class:`~nclib.checks.InputError` that says what is wrong.
    """
    features = on_sphere("features", features)
    N, d = features.shape
    if d < 2:
        raise checks.InputError(f"the sphere needs dimension d >= 2, got features of d={d}")
    weight = on_sphere("weight", weight, columns=d).to(features.device)
    if len(weight) < 2:
        raise checks.InputError(f"weight must have K >= 2 rows, one per class, got {len(weight)}")
    labels, K = checks.labels(labels, len(weight), length=N)
    checks.class_counts(labels, K)
    return features, weight, labels.to(features.device), _scale(scale)


def multipliers(features, weight, labels, scale):
    """Riemannian gradients, radial parts, and G: ``(grad_features, grad_weight, beta, alpha, G)``.

    ``G (N, K)`` is the gradient with respect to the cosines ``features @ weight.T``; ``alpha (K,)``
    and ``beta (N,)`` are the inner products of the Euclidean gradients with the rows they belong
    to, the Lagrange multipliers of the unit norms at a critical point (claim 2.L3).  The arguments
    are those of :func:`sphere_point`.
    """
    features, weight, labels, scale = sphere_point(features, weight, labels, scale)
    problem = UFM(
        LOSS, labels, weight.shape[1], (0, 0), K=len(weight), scale=scale, sphere=BOTH
    )  # fmt: skip
    G = scale * problem.logit_gradient({"features": features, "weight": weight})
    grad_features, grad_weight = G @ weight, G.mT @ features
    beta, alpha = (features * grad_features).sum(1), (weight * grad_weight).sum(1)
    grad_features = grad_features - beta[:, None] * features
    return grad_features, grad_weight - alpha[:, None] * weight, beta, alpha, G


def hessian_product(features, weight, labels, scale, along_features, along_weight):
    """Riemannian Hessian times a direction, a pair in the order of the arguments (2.L3).

    ``features (N, d)``, ``weight (K, d)``: unit rows; of ``along_features`` and ``along_weight``
    the tangent part counts.  Costs about two gradients: for iterative eigenvalue solvers.
    """
    features, weight, labels, scale = sphere_point(features, weight, labels, scale)
    E = _direction("along_features", along_features, features)
    D = _direction("along_weight", along_weight, weight)
    *_, beta, alpha, G = multipliers(features, weight, labels, scale)
    P = (scale * features @ weight.T).softmax(1)
    moved = scale * (features @ D.T + E @ weight.T)
    moved = moved - moved.gather(1, labels[:, None])  # against the true class: no digit cancels
    G_dot = scale / len(features) * P * (moved - (P * moved).sum(1, keepdim=True))
    return (
        tangent(features, G @ D + G_dot @ weight) - beta[:, None] * E,
        tangent(weight, G.T @ E + G_dot.T @ features) - alpha[:, None] * D,
    )


def _direction(name, value, rows):
    N, d = rows.shape
    value = checks.matrix(name, value, rows=N, columns=d, dtype=torch.float64).to(rows.device)
    return tangent(rows, value)


def tangent(rows, vectors):
    """``vectors`` without their parts along the unit ``rows``."""
    return vectors - (vectors * rows).sum(1, keepdim=True) * rows


def dual_matrix(features, weight, labels, scale):
    """``S = [[-diag α, Gᵀ], [G, -diag β]]``, ``(K+N, K+N)``, classes first (claim 2.L4)."""
    *_, beta, alpha, G = multipliers(features, weight, labels, scale)
    return _dual_matrix(G, alpha, beta)


def _dual_matrix(G, alpha, beta):
    K = len(alpha)
    S = torch.diag(-torch.cat([alpha, beta]))
    S[K:, :K], S[:K, K:] = G, G.T
    return S


def certificate(features, weight, labels, scale, *, gtol=1e-6):
    """Smallest eigenvalue of the certificate S at a **critical** point (claims 2.L4, 2.L12).

    ``features (N, d)``, ``weight (K, d)``: unit rows.  Any class counts.

    - ``>= 0`` (up to rounding): the point is a global minimum, over every dimension.
    - ``< 0``: it is not.  If some direction is orthogonal to all rows, the Hessian is at
      least as negative: a strict saddle.  If none is, a further dimension would help.

    The point counts as critical if its Riemannian gradient norm is at most
    ``gtol · max(‖G‖, 0.01)``, G the gradient with respect to the cosines (``gtol · ‖G‖`` where
    that is no less than ‖G‖ itself, as at large scales); otherwise an
    :class:`~nclib.checks.InputError` says how large it is.  :func:`gap_bound` works at any point.
    """
    grad_features, grad_weight, beta, alpha, G = multipliers(features, weight, labels, scale)
    norm = hypot(float(grad_features.norm()), float(grad_weight.norm()))
    gtol, size = checks.real("gtol", gtol, above=0), float(G.norm())
    allowed = gtol * (max(size, 1e-2) if size > 1e-2 * gtol else size)
    if norm > allowed:
        raise checks.InputError(
            f"the point is not critical: its Riemannian gradient has norm {norm:.3g}, more than "
            f"{allowed:.3g}, and the certificate speaks of critical points only; minimise further "
            "(nclib.ufm.solve.best) or ask gap_bound"
        )
    return float(torch.linalg.eigvalsh(_dual_matrix(G, alpha, beta))[0])


def gap_bound(features, weight, labels, scale):
    """Upper bound on ``f - min f`` at **any** point of the spheres: ``-(K+N)/2 · λ_min(S)``.

    Cross-entropy is convex in the cosines and every Gram matrix of unit rows has trace K + N, so
    ``f(other) >= f + ½⟨Gram(other), S⟩``.  Zero at a global minimum, never too small.
    """
    S = dual_matrix(features, weight, labels, scale)
    return max(0.0, -len(S) / 2 * float(torch.linalg.eigvalsh(S)[0]))


# ------------------------------------------------------------------------------------------------
# A zoo of critical points that are not minima


@dataclass(frozen=True)
class CriticalPoint:
    """A critical point: rows on the sphere, its loss, its smallest Hessian eigenvalue.

    ``min_eigenvalue`` is ``None`` where no closed form is known (no direction is orthogonal to all
    rows, or the family is too general).
    """

    name: str
    features: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    scale: float
    value: float
    min_eigenvalue: float | None


def _balanced_labels(K, n):
    return torch.arange(K).repeat_interleave(n)


def _paired(name, weight, n, scale, value, A, B, *, rank):
    """The point with every feature on its classifier; closed form if d exceeds the rank."""
    K, d = weight.shape
    curvature = None
    if d > rank:
        # (scale/2K) [A(1+1/n) - root], with the difference of squares written out: at a large scale
        # A and B are tiny, and their squares underflow
        root = hypot(A * (1 - 1 / n), 2 * B / sqrt(n))
        curvature = scale * 2 / (K * n) * (A - B) * ((A + B) / (A * (1 + 1 / n) + root))
    labels = _balanced_labels(K, n)
    return CriticalPoint(name, weight[labels], weight, labels, scale, value, curvature)


def total_collapse(K, n, d, scale, *, angle=0.0):
    """All classifiers equal, all features equal, ``angle`` radians apart (claim 2.L6).

    ``λ_min = -scale/(K√n)`` with multiplicity ``(K-1)(d-1)`` for features on ± the classifier, and
    at least d - 2 times K - 1 for any angle when d >= 3.  On the circle (d = 2) it rises with the
    angle and is 0 at a right angle: the only degenerate case.
    """
    K, n, d = _sizes(K, n, d)
    scale, angle = _scale(scale), checks.real("angle", angle)
    weight = torch.zeros(K, d, dtype=torch.float64)
    weight[:, 0] = 1
    features = torch.zeros(K * n, d, dtype=torch.float64)
    features[:, 0], features[:, 1] = cos(angle), sin(angle)
    curvature = -scale / (K * sqrt(n))
    if d == 2:
        across = scale * sin(angle) ** 2
        curvature = -scale / K * 2 * cos(angle) ** 2 / n
        curvature /= across + sqrt(across**2 + 4 * cos(angle) ** 2 / n)
    name = "total collapse" if angle == 0 else f"total collapse, {np.degrees(angle):.3g}° apart"
    return CriticalPoint(
        name, features, weight, _balanced_labels(K, n), scale, log(K), curvature + 0.0
    )


def merged_classes(K, n, d, scale, *, groups):
    """K classes glued into ``groups`` equal groups that sit on a smaller simplex ETF (2.L4)."""
    groups = checks.integer("groups", groups, 2)
    K, n, d = _sizes(K, n, d, rank=groups - 1, what=f"a simplex of {groups} groups")
    scale = _scale(scale)
    if K % groups or groups == K:
        raise checks.InputError(f"groups must be a proper divisor of K={K}, got {groups}")
    size, gap = K // groups, scale * groups / (groups - 1)
    weight = simplex_etf(groups, d)[torch.arange(K) // size]
    outside = exp(-gap) / (size + (K - size) * exp(-gap))
    value = log(size) + _softplus(log((K - size) / size) - gap)
    name = f"{groups} groups of {size}"
    return _paired(name, weight, n, scale, value, K * outside, 1.0, rank=groups - 1)


def orthoplex_point(K, n, d, scale):
    """Classes on the vertices ``±e_j``, features on them; even K >= 4 (claim 2.L4)."""
    K, n, d = _sizes(checks.integer("K", K, 4), n, d)
    if K % 2 or d < K // 2:
        raise checks.InputError(f"an orthoplex needs an even K and d >= K/2, got K={K}, d={d}")
    weight, scale = F.pad(frames.cross_polytope(K // 2), (0, d - K // 2)), _scale(scale)
    others = exp(-2 * scale) + (K - 2) * exp(-scale)
    opposite, other = exp(-2 * scale) / (1 + others), exp(-scale) / (1 + others)
    A, B = 2 * opposite + (K - 2) * other, K * other
    return _paired("orthoplex", weight, n, scale, log1p(others), A, B, rank=K // 2)


def polygon_point(K, n, d, scale):
    """Classes on a regular K-gon, K >= 4, features on them (claims 2.L4, 2.L14)."""
    K, n, d = _sizes(checks.integer("K", K, 4), n, d)
    scale = _scale(scale)
    j = np.arange(K)
    p = np.exp(-2 * scale * np.sin(np.pi * j / K) ** 2)
    p /= p.sum()
    A, *others = (float(p @ (2 * np.sin(np.pi * j * r / K) ** 2)) for r in range(1, K // 2 + 1))
    value, code = polygon_value(K, scale), frames.polygon(K, d)
    return _paired("regular polygon", code, n, scale, value, A, max(others), rank=2)


def _antipodal_probability(K, scale):
    """Probability of each wrong class when features sit opposite to their classifier."""
    return _wrong_probability(K, -scale * K / (K - 1))


def antipodal_etf(K, n, d, scale):
    """Simplex ETF with every feature **opposite** to its classifier: a saddle, not a maximum.

    Turning all features round turns the scale into minus the scale, so its whole Hessian spectrum
    is :func:`hessian_spectrum` at minus the scale (claim 2.L4).
    """
    K, n, d = _sizes(K, n, d, rank=checks.integer("K", K, 2) - 1, what="a simplex ETF")
    scale = _scale(scale)
    weight, labels = simplex_etf(K, d), _balanced_labels(K, n)
    c, blocks = _blocks(K, n, d, -scale)
    value = _softplus(log(K - 1) + scale * K / (K - 1))
    curvature = min(0.0 if v is None else c * v for _, v, _ in blocks)
    return CriticalPoint("antipodal ETF", -weight[labels], weight, labels, scale, value, curvature)


def flipped_features(K, n, d, scale, *, flips):
    """Simplex ETF with ``flips`` of the n features of each class on minus their classifier (2.L4).

    Critical by symmetry, so that a class with wrong samples can rest.  The curvature is closed
    (a 3 x 3 matrix) for ``d >= K``.
    """
    K, n, d = _sizes(K, n, d, rank=checks.integer("K", K, 2) - 1, what="a simplex ETF")
    scale, flips = _scale(scale), checks.integer("flips", flips)
    if flips >= n:
        raise checks.InputError(f"flips must be less than n={n} samples of a class, got {flips}")
    weight, labels = simplex_etf(K, d), _balanced_labels(K, n)
    signs = torch.ones(n, dtype=torch.float64)
    signs[:flips] = -1
    good, bad = optimum(K, scale), _softplus(log(K - 1) + scale * K / (K - 1))
    value = ((n - flips) * good.value + flips * bad) / n
    curvature = None
    if d >= K:
        right = scale * good.wrong_probability / n
        wrong = scale * _antipodal_probability(K, scale) / n
        # S on "same for all classes" is diagonal, on "sums to zero over classes" it is this.
        alpha = -(n - flips) * right + flips * wrong
        a, b = -right * sqrt(n - flips), -wrong * sqrt(flips)
        reduced = np.array([[-alpha, a, b], [a, right, 0], [b, 0, -wrong]])
        curvature = float(np.linalg.eigvalsh(reduced)[0])  # at most -alpha and -wrong
    features = signs.repeat(K)[:, None] * weight[labels]
    return CriticalPoint(
        f"{flips} of {n} features flipped", features, weight, labels, scale, value, curvature
    )


def collinear(class_signs, feature_signs, labels, d, scale):
    """All rows on one line: ``class_signs (K,)`` and ``feature_signs (N,)`` of ±1 (claim 2.L4).

    Critical for every choice of signs, and the Hessian is the certificate S on each of the d - 1
    directions across the line, so that ``λ_min`` is S's smallest eigenvalue.
    """
    d, scale = checks.integer("d", d, 2), _scale(scale)
    signs = [torch.as_tensor(s, dtype=torch.float64) for s in (class_signs, feature_signs)]
    for name, s in zip(("class_signs", "feature_signs"), signs, strict=True):
        if s.ndim != 1 or not bool((s.abs() == 1).all()):
            raise checks.InputError(f"{name} must be a vector of +1 and -1")
    weight, features = (F.pad(s[:, None], (0, d - 1)) for s in signs)
    features, weight, labels, scale = sphere_point(features, weight, labels, scale)
    logits = scale * torch.outer(signs[1], signs[0])
    value = float(F.cross_entropy(logits, labels))
    curvature = float(torch.linalg.eigvalsh(dual_matrix(features, weight, labels, scale))[0])
    return CriticalPoint("collinear", features, weight, labels, scale, value, curvature)


def equal_classifiers(K, n, d, scale, *, generator=None):
    """All classifiers equal to one w, random features with equal class sums modulo w (2.L7).

    Needs n >= 2 and d >= 3: pairs of features share their sum, and only it.  ``λ_min`` has no
    closed form but is negative at every scale.
    """
    K, n, d = _sizes(K, checks.integer("n", n, 2), d, rank=3, what="this family")
    scale = _scale(scale)

    def random(*shape):
        return torch.randn(*shape, d, generator=generator, dtype=torch.float64)

    w = F.normalize(random(), dim=0)
    rows = []
    for _ in range(n // 2):
        # The sum of a pair, s + (its own multiple of w), has norm < 1.5 < 2.
        shared = 0.9 * torch.rand((), generator=generator) * F.normalize(random(), dim=0)
        along = 0.5 * torch.rand(K, 1, generator=generator, dtype=torch.float64) * w
        total = shared + along
        squared = total.square().sum(1, keepdim=True)
        across = random(K)
        across -= (across * total).sum(1, keepdim=True) / squared * total
        half = (1 - squared / 4).sqrt() * F.normalize(across, dim=1)
        rows += [total / 2 + half, total / 2 - half]
    if n % 2:
        rows.append(F.normalize(random(), dim=0).expand(K, d))
    features = torch.stack(rows, 1).reshape(K * n, d)
    return CriticalPoint(
        "equal classifiers",
        features,
        w.expand(K, d).clone(),
        _balanced_labels(K, n),
        scale,
        log(K),
        None,
    )


def zoo(K, n, d, scale):
    """The critical points above that exist for these sizes with a closed-form curvature.

    ``d >= K`` gives them all.  Each is a strict saddle: ``min_eigenvalue < 0`` (claim 2.L4).
    """
    K, n, d = _sizes(K, n, d)
    points = [total_collapse(K, n, d, scale)]
    points += [
        merged_classes(K, n, d, scale, groups=m) for m in range(2, K) if K % m == 0 and m <= d
    ]
    if K % 2 == 0 and K >= 4 and d >= K // 2:
        points.append(orthoplex_point(K, n, d, scale))
    if K >= 5:
        points.append(polygon_point(K, n, d, scale))
    if d >= K - 1:
        points.append(antipodal_etf(K, n, d, scale))
        points += [flipped_features(K, n, d, scale, flips=r) for r in range(1, n)]
    if K > 2 and K % 2:  # for even K these are two groups
        signs = (torch.arange(K) % 2 == 0).double() * 2 - 1
        labels = _balanced_labels(K, n)
        points.append(collinear(signs, signs[labels], labels, d, scale))
    return [point for point in points if point.min_eigenvalue is not None]


def escape_growth(K, n, scale, step):
    """Factor per gradient step by which a perturbation of total collapse grows (result 2, 3.3)."""
    K, n = _sizes(K, n)
    return 1 + checks.real("step", step, above=0) * _scale(scale) / (K * sqrt(n))


def antipode_curvature(K, n, scale):
    """Curvature at ``h = -w_k`` of the loss over **one** feature, W a fixed ETF (claim 2.L16).

    Along the span of W; positive (a local minimum when d = K-1) if and only if ``scale > K-1``.
    """
    K, n = _sizes(checks.integer("K", K, 3), n)
    scale = _scale(scale)
    wrong = _antipodal_probability(K, scale)
    return scale * wrong / n * (scale / (K - 1) - 1)


def circle_slice(turn, offset, K, scale):
    """Loss on a two-angle slice of the circle, broadcasting over arrays of radians.

    Classifier k sits at ``k·turn``, its features at ``k·turn + offset``.  For K = 3 the minima are
    the two orientations of the ETF, ``turn = ±120°``, ``offset = 0``.
    """
    K, scale = checks.integer("K", K, 2), _scale(scale)
    turn, offset = np.broadcast_arrays(np.asarray(turn, float), np.asarray(offset, float))
    k = np.arange(K)
    gap = (k[None, :] - k[:, None]).reshape(K, K, *[1] * turn.ndim)
    logits = scale * (np.cos(gap * turn - offset) - np.cos(offset))
    return np.logaddexp.reduce(logits, axis=1).mean(0)


# ------------------------------------------------------------------------------------------------
# Penalised problems with the same minimiser


@dataclass(frozen=True)
class PenalisedOptimum:
    """Minimum of a penalised problem: its value, and the product ``‖w‖‖h‖`` as equivalent scale.

    ``scale = 0`` (with both norms 0) means the penalty is so strong that zero is the minimiser.
    """

    value: float
    scale: float
    weight_norm: float
    feature_norm: float


def regularized_optimum(K, n, lambda_w, lambda_h):
    """Global minimum of ``CE + lambda_w/2 ‖W‖² + lambda_h/2 ‖H‖²``, features and W free (2.L10).

    Mean CE over N = nK samples without bias, penalties on the whole matrices, ``d >= K-1``.
    """
    K, n = _sizes(K, n)
    lambda_w = checks.real("lambda_w", lambda_w, above=0)
    lambda_h = checks.real("lambda_h", lambda_h, above=0)
    # Roots apart: no product or quotient of two extreme penalties over- or underflows.
    root_w, root_h = sqrt(lambda_w), sqrt(n) * sqrt(lambda_h)
    value, margin = scalar.cross_entropy(root_w * root_h, K)
    scale = margin * (K - 1) / K
    ratio = sqrt(root_h) / sqrt(root_w)  # ‖w‖ / √scale
    return PenalisedOptimum(value, scale, sqrt(scale) * ratio, sqrt(scale) / ratio)


def hybrid_optimum(K, feature_decay):
    """Global minimum of ``CE + feature_decay/2 · mean ‖h‖²`` with unit classifier rows (2.L10).

    What the published "regularized" training solves, since it renormalises W after every step.
    """
    K = checks.integer("K", K, 2)
    decay = checks.real("feature_decay", feature_decay, above=0)

    def slope(b):
        return K * _wrong_probability(K, b * K / (K - 1)) - decay * b

    # K q(b) is at most 1, and at most K exp(-bK/(K-1))
    high = min(2 / decay, max(1.0, (K - 1) / K * (log(K) - log(decay))))
    norm = brentq(slope, 0.0, high, xtol=TINY, rtol=1e-15)
    value = _softplus(log(K - 1) - norm * K / (K - 1)) + decay * norm * norm / 2
    return PenalisedOptimum(value, norm, 1.0, norm)


@dataclass(frozen=True)
class Matched:
    """Penalties under which the three problems have the same logits at their minimum."""

    lambda_w: float
    lambda_h: float
    feature_decay: float


def matched_penalties(K, n, scale):
    """The penalties whose minimiser has ``‖w‖‖h‖ = scale``, for a fair comparison (claim 2.L10).

    ``lambda_w = n·lambda_h = q`` (equal norms of w and h) and ``feature_decay = K q / scale``, q
    the wrong-class probability of :func:`optimum`.  Raises an :class:`~nclib.checks.InputError` for
    scales at which it underflows (about 700): no penalty that small can be stated.
    """
    K, n = _sizes(K, n)
    q = optimum(K, scale).wrong_probability
    checks.require(q / n >= TINY, f"scale = {scale} needs penalties that underflow; use less")
    return Matched(q, q / n, K * q / _scale(scale))


def matched_problems(K, n, scale, d):
    """The problems ``normalized``, ``hybrid``, ``regularized`` with these penalties (2.L10)."""
    penalties, counts = matched_penalties(K, n, scale), [n] * K
    return {
        "normalized": normalized(counts, scale, d),
        "hybrid": hybrid(counts, penalties.feature_decay, d),
        "regularized": regularized(counts, penalties.lambda_w, penalties.lambda_h, d),
    }


def matched_points(K, n, scale, d):
    """Their minima: the same simplex ETF, with the norms (1, 1), (scale, 1), (√scale, √scale)."""
    point, scale = minimum(K, n, d), _scale(scale)
    norms = {"normalized": (1, 1), "hybrid": (scale, 1), "regularized": (sqrt(scale),) * 2}
    return {
        name: {"features": h * point["features"], "weight": w * point["weight"]}
        for name, (h, w) in norms.items()
    }


def temperature_bound(K, d):
    """``2(d-2)/(1 + (K mod 2)/K)``: the published landscape theorem's bound on the scale, quoted
    second hand, without the text at hand; claims 2.L4 and 2.L7 need none."""
    K, _, d = _sizes(K, 1, d)
    return 2 * (d - 2) / (1 + (K % 2) / K)
