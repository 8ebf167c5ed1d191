r"""Extended unconstrained-features model: M linear layers on free features, squared error.

The papers (Tirer & Bruna 2022; Dang et al. 2023; Zhou et al. 2022; Súkeník et al. 2023/24) write
features as columns, ``W_M … W_1 H``.  Here one row is one sample and weights have torch layout, so
the objective, with N samples, K classes and one-hot targets Y (N, K), reads

    f = 1/(2N) ‖H W_1ᵀ … W_Mᵀ + 1 bᵀ − Y‖² + Σ_i λ_i/2 ‖W_i‖² + λ_H/2 ‖H‖²  (+ λ_b/2 ‖b‖²).

The factors 1/(2N) and ½ are part of every formula below.  M = 1 is the plain model, M = 2 the
"extended" one; with a ReLU between the two layers the optimal value is the same (claim 5.E7).

Everything decouples over the singular directions of the target: a direction with singular value s
carries s·u, and u minimises a function of one number κ,

    φ(u) = (1−u)²/2 + (M+1)/2 · κ · u^{2/(M+1)},     κ = N Λ^{1/(M+1)} s^{−2M/(M+1)},

with Λ = λ_H Π λ_i.  Balanced classes: s = √n and κ = K (nΛ)^{1/(M+1)} for every direction.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import helmert
from scipy.optimize import brentq

from nclib import checks

__all__ = [
    "GraphChain",
    "StationaryPoint",
    "chain_cost",
    "chain_point",
    "complete_graph_chain",
    "critical_point",
    "existence_threshold",
    "global_scale",
    "graph_competitor",
    "hessian_index",
    "kappa",
    "late_phase_rates",
    "local_scale",
    "lowest_curvature",
    "minority_threshold",
    "optimum",
    "orbit_dimension",
    "realise",
    "relu_point",
    "scalar_loss",
    "segment_chain",
    "threshold",
    "two_layer_ratio",
]

_TIE = 1e-9  # relative gap below which two target singular values count as equal


# --- the scalar problem (spec 3.1, 3.2) ----------------------------------------------------------


def threshold(M):
    """κ*: above it the zero solution is the global minimum (claims 5.E5, 5.E6, 5.E14).

    κ* = (1/M) ((M−1)/M)^{(M−1)/(M+1)}: 1, 0.39685, 0.27217, 0.21037 for M = 1..4.
    """
    M = checks.integer("M (number of layers)", M)
    return ((M - 1) / M) ** ((M - 1) / (M + 1)) / M


def existence_threshold(M):
    """κ_ex ≥ κ*: up to here a non-zero local minimum exists (claim 5.E14); M = 1: equal to κ*."""
    M = checks.integer("M (number of layers)", M)
    return ((M - 1) / (2 * M)) ** ((M - 1) / (M + 1)) * (M + 1) / (2 * M)


def scalar_loss(u, kappa, M):
    """φ(u) = (1−u)²/2 + (M+1)/2 · κ · u^{2/(M+1)}; a float, for floats u ≥ 0, κ ≥ 0."""
    return (1 - u) ** 2 / 2 + (M + 1) / 2 * kappa * u ** (2 / (M + 1))


def local_scale(kappa, M):
    """u of the non-zero local minimum of φ (the largest root), or nan if κ > κ_ex: there is none.

    With v = u^{1/(M+1)} the stationary points are the roots of v^{2M} − v^{M−1} + κ.
    """
    M = checks.integer("M (number of layers)", M)
    kappa = checks.real("kappa", kappa, at_least=0)
    if kappa > existence_threshold(M) * (1 + 1e-15):
        return math.nan
    if M == 1:
        return max(0.0, 1 - kappa)

    def polynomial(v):
        return v ** (2 * M) - v ** (M - 1) + kappa

    turning = ((M - 1) / (2 * M)) ** (1 / (M + 1))
    v = brentq(polynomial, turning, 1, xtol=1e-15) if polynomial(turning) < 0 else turning
    for _ in range(3):
        slope = 2 * M * v ** (2 * M - 1) - (M - 1) * v ** (M - 2)
        if slope > 1e-6:  # at κ_ex the root is double and Newton would only add noise
            v = min(v - polynomial(v) / slope, 1.0)
    return v ** (M + 1)


def global_scale(kappa, M):
    """u of the global minimum of φ over u ≥ 0: the largest root if κ ≤ κ*, else 0.

    At κ = κ* both are global minima (M ≥ 2: u jumps from (M−1)/M to 0); the non-zero one is given.
    """
    return local_scale(kappa, M) if kappa <= threshold(M) else 0.0


def kappa(*, num_classes, n, lambdas, lambda_h):
    """κ = K (nΛ)^{1/(M+1)} of the balanced problem: the one number that rules everything."""
    K = checks.integer("num_classes", num_classes, 2)
    n = checks.integer("n (samples per class)", n)
    lambdas, lambda_h = check_decays(lambdas, lambda_h)
    return K * _geometric(n, lambdas, lambda_h)


def check_decays(lambdas, lambda_h):
    lambdas = _listed("lambdas", lambdas, "one weight decay per layer, [λ_1, …, λ_M]")
    if not lambdas:
        raise checks.InputError("lambdas is empty: the depth M must be at least 1, e.g. [0.005]")
    lambdas = [checks.real(f"lambdas[{i}]", v, above=0) for i, v in enumerate(lambdas)]
    return lambdas, checks.real("lambda_h", lambda_h, above=0)


def _listed(name, value, meaning):
    """``value`` (list, tuple, array, tensor) as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        raise checks.InputError(f"{name} must list {meaning}; got {value!r}")
    return list(value)


def _geometric(factor, lambdas, lambda_h):
    """(factor · λ_H Π λ_i)^{1/(M+1)} through logarithms, so that tiny decays do not underflow."""
    logs = [math.log(factor), math.log(lambda_h), *map(math.log, lambdas)]
    return math.exp(math.fsum(logs) / (len(lambdas) + 1))


# --- stationary points of the matrix problem -----------------------------------------------------


@dataclass(frozen=True)
class StationaryPoint:
    """A stationary point, up to rotations of the hidden layers.  Tensors are float64.

    Directions i = 1..m are those of the target: the classes in order (no bias), the K−1 directions
    that the bias cannot fit (free bias), or these followed by the mean direction (decayed bias).
    A bottleneck that cuts through a tie (equal classes) leaves a choice: scales and value show one
    such point, and ``nan`` marks the Gram matrix, norms and logits that the choice would decide.
    """

    value: float  #: f at this point
    singular_scales: torch.Tensor  #: (m,) u_i: the share of the target that direction i carries
    kappas: torch.Tensor  #: (m,) κ_i; direction i is worth keeping iff κ_i <= threshold
    threshold: float  #: κ*(M)
    target_singular_values: torch.Tensor  #: (m,) s_i
    layer_scales: torch.Tensor  #: (m,) t_i² = λ_j σ_i(W_j)² = λ_H σ_i(H)², the same for every j
    feature_norms_sq: torch.Tensor  #: (K,) ‖h‖² of the samples of each class
    mean_gram: torch.Tensor  #: (K, K) inner products of the class means
    class_logits: torch.Tensor  #: (K, K) row j: logits (bias included) of the samples of class j
    bias: torch.Tensor | None  #: (K,) or None
    class_counts: tuple
    lambdas: tuple
    lambda_h: float
    lambda_b: float | None  #: decay of the bias; 0 for a free one, None without bias
    left: torch.Tensor  #: (K, m) singular vectors of the target, logit side
    right: torch.Tensor  #: (K, m) singular vectors of the target, sample side (per class)

    @property
    def depth(self):
        """M, the number of weight matrices."""
        return len(self.lambdas)

    @property
    def is_zero(self):
        """Whether features and weights all vanish (decay too large)."""
        return not bool((self.singular_scales > 0).any())

    @property
    def surviving_classes(self):
        """Bias-free problem: indices of the classes that are not dropped (claim 5.E15)."""
        if self.lambda_b is not None:
            raise checks.InputError(
                "directions are classes only without a bias; look at class_logits"
            )
        return tuple(int(i) for i in (self.singular_scales > 0).nonzero().flatten())

    @property
    def weight_norms_sq(self):
        """‖W_j‖² of the layers j = 1..M; λ_j ‖W_j‖² is the same for all of them."""
        return self.layer_scales.sum() / torch.tensor(self.lambdas, dtype=torch.float64)


def optimum(*, class_counts, lambdas, lambda_h, bias="none", width=None):
    """Global minimum of the M-layer linear problem (claims 5.E1, E3–E6, E15–E17).

    ``class_counts``: n_k, K integers ≥ 1.  ``lambdas``: [λ_1, …, λ_M] > 0.  ``bias``: ``"none"``,
    ``"free"`` (not penalised) or its decay λ_b > 0 (balanced classes only: no closed form is known
    otherwise).  ``width``: the smallest hidden width, None for wide enough (≥ K).

    Returns a :class:`StationaryPoint`; where decay is too large it is the zero solution, not an
    error.  The value holds for a ReLU between the layers too if M = 2 without bias (claim 5.E7),
    or if K = 2 at any depth (claim 5.E19).
    """
    setting = _Setting.parse(class_counts, lambdas, lambda_h, bias)
    if width is not None:
        width = checks.integer("width (smallest hidden width)", width)
    M = setting.depth
    u = np.array([global_scale(k, M) for k in setting.kappas])
    gain = setting.shares * (
        0.5 - np.array([scalar_loss(*p, M) for p in zip(u, setting.kappas, strict=True)])
    )
    undetermined = np.zeros(len(u), dtype=bool)
    if width is not None and width < np.count_nonzero(u):
        order = np.argsort(-gain, kind="stable")
        last, first_lost = gain[order[width - 1]], gain[order[width]]
        if last - first_lost <= _TIE * last:
            undetermined = np.abs(gain - last) <= _TIE * last
        u[order[width:]] = 0.0
    return setting.point(u, undetermined)


def critical_point(*, class_counts, lambdas, lambda_h, keep, bias="none"):
    """The stationary point that keeps the directions ``keep`` (indices) and zeroes the others.

    Each kept direction sits at its local minimum (claims 5.E12, E13: levels f_r = (rφ(u)+(K−r)/2)/K
    in the balanced bias-free case).  Raises where a kept direction has κ_i > κ_ex.
    """
    setting = _Setting.parse(class_counts, lambdas, lambda_h, bias)
    m = len(setting.kappas)
    keep = [checks.integer("keep (direction index)", i, 0) for i in keep]
    if len(set(keep)) < len(keep) or any(i >= m for i in keep):
        raise checks.InputError(f"keep must hold distinct directions in 0..{m - 1}, got {keep}")
    u = np.zeros(m)
    for i in keep:
        u[i] = local_scale(setting.kappas[i], setting.depth)
        if not u[i] > 0:
            raise checks.InputError(
                f"direction {i} cannot be kept: κ = {setting.kappas[i]:.4g} exceeds "
                f"κ_ex = {existence_threshold(setting.depth):.4g}; use smaller decays"
            )
    return setting.point(u, np.zeros(m, dtype=bool))


@dataclass(frozen=True)
class _Setting:
    """Checked arguments with the singular directions of the target that the bias leaves over."""

    counts: np.ndarray
    lambdas: tuple
    lambda_h: float
    lambda_b: float | None
    left: np.ndarray
    s: np.ndarray
    right: np.ndarray
    kappas: np.ndarray
    shares: np.ndarray  # weight of φ(u_i) in f

    @property
    def depth(self):
        return len(self.lambdas)

    @classmethod
    def parse(cls, class_counts, lambdas, lambda_h, bias):
        counts = check_counts(class_counts)
        lambdas, lambda_h = check_decays(lambdas, lambda_h)
        lambda_b = check_bias(bias)
        left, s, right = _target_directions(counts, lambda_b)
        N, M = counts.sum(), len(lambdas)
        kappas = N * _geometric(1, lambdas, lambda_h) * s ** (-2 * M / (M + 1))
        shares = s**2 / N
        if lambda_b:
            kappas[-1] *= 1 + 1 / lambda_b
            shares[-1] *= lambda_b / (1 + lambda_b)
        return cls(counts, tuple(lambdas), lambda_h, lambda_b, left, s, right, kappas, shares)

    def point(self, u, undetermined):
        """The stationary point with scales ``u``; ``undetermined`` directions are part of a tie."""
        M, N, counts = self.depth, self.counts.sum(), self.counts
        phi = np.array([scalar_loss(a, k, M) for a, k in zip(u, self.kappas, strict=True)])
        t2 = _geometric(1, self.lambdas, self.lambda_h) * (self.s * u) ** (2 / (M + 1))
        own = np.where(undetermined, np.nan, 1.0)  # nan spreads to all that a tie leaves open
        roots = np.sqrt(counts)
        if self.lambda_b is None:  # a direction is a class: the classes outside a tie are known
            gram = np.diag(t2 * own) / (counts * self.lambda_h)
            logits = np.diag(u * own)
        else:
            gram = (self.right * (t2 * own)) @ self.right.T / np.outer(roots, roots) / self.lambda_h
            logits = (self.right * (self.s * u * own)) @ self.left.T / roots[:, None]
        bias = None
        if self.lambda_b is not None:
            u_mean = u[-1] if self.lambda_b else 0.0
            bias = counts / N * (1 - u_mean) / (1 + self.lambda_b)
            logits = logits + bias
        as_tensor = torch.as_tensor
        return StationaryPoint(
            value=float(np.dot(self.shares, phi)),
            singular_scales=as_tensor(u),
            kappas=as_tensor(self.kappas.copy()),
            threshold=threshold(M),
            target_singular_values=as_tensor(self.s.copy()),
            layer_scales=as_tensor(t2),
            feature_norms_sq=as_tensor(np.diag(gram).copy()),
            mean_gram=as_tensor(gram),
            class_logits=as_tensor(logits),
            bias=None if bias is None else as_tensor(bias),
            class_counts=tuple(int(c) for c in counts),
            lambdas=self.lambdas,
            lambda_h=self.lambda_h,
            lambda_b=self.lambda_b,
            left=as_tensor(self.left.copy()),
            right=as_tensor(self.right.copy()),
        )


def check_counts(class_counts):
    counts = _listed("class_counts", class_counts, "the samples per class, [n_1, …, n_K]")
    if len(counts) < 2:
        raise checks.InputError(f"class_counts needs at least two classes, got {counts}")
    return np.array([checks.integer(f"class_counts[{k}]", n) for k, n in enumerate(counts)], float)


def check_bias(bias):
    if isinstance(bias, str):
        return {"none": None, "free": 0.0}[checks.choice("bias", bias, ("none", "free"))]
    try:
        return checks.real("bias", bias, above=0)
    except checks.InputError:
        raise checks.InputError(
            f"bias must be 'none', 'free' (not penalised) or a decay lambda_b > 0, got {bias!r}"
        ) from None


def _target_directions(counts, lambda_b):
    """Left vectors (K, m), singular values (m,), right vectors (K, m) of what the bias leaves over.

    Right vectors are in class coordinates: sample i of class j has entry right[j] / √n_j.
    """
    K, roots = len(counts), np.sqrt(counts)
    if lambda_b is None:
        return np.eye(K), roots, np.eye(K)
    if counts.min() == counts.max():  # exact basis of the complement of 1, then 1 itself
        basis = helmert(K, full=True).T  # first column 1/√K
        basis = basis[:, 1:] if lambda_b == 0 else np.roll(basis, -1, axis=1)
        return basis, np.full(basis.shape[1], roots[0]), basis
    if lambda_b > 0:
        raise checks.InputError(
            "no closed form is known for a penalised bias with unequal class_counts; use "
            "bias='none', bias='free', equal counts, or minimise with results.extended_ufm.ufm"
        )
    target = np.diag(roots) - np.outer(counts, roots) / counts.sum()
    left, s, right_t = np.linalg.svd(target)
    return left[:, :-1], s[:-1], right_t[:-1].T


def realise(point, *, widths, generator=None):
    """Tensors that attain a :class:`StationaryPoint`: ``features``, ``weight_1``, …, and ``bias``.

    ``widths``: d of the features, then d_1, …, d_{M−1} of the hidden layers (an int: the same for
    all), each at least the rank of the point.  Hidden frames are random orthonormal if there is a
    ``generator``, else unit vectors.  Samples come sorted by class.  Of tied points one is made.
    """
    M = point.depth
    widths = check_widths(widths, M)
    kept = (point.singular_scales > 0).nonzero().flatten()
    t = point.layer_scales[kept].sqrt()
    frames = [_frame(d, len(kept), generator) for d in widths]
    counts = torch.tensor(point.class_counts)
    per_class = point.right[:, kept] / counts.double().sqrt()[:, None]
    samples = per_class.repeat_interleave(counts, dim=0)
    variables = {"features": samples * (t / math.sqrt(point.lambda_h)) @ frames[0].T}
    outputs = [*frames[1:], point.left[:, kept]]
    for j, (into, out, lam) in enumerate(zip(frames, outputs, point.lambdas, strict=True), start=1):
        variables[f"weight_{j}"] = out * (t / math.sqrt(lam)) @ into.T
    if point.bias is not None:
        variables["bias"] = point.bias.clone()
    return variables


def check_widths(widths, depth):
    """The widths of H_1, …, H_M: an int stands for all of them."""
    widths = (
        _listed("widths", widths, "d, d_1, …") if hasattr(widths, "__iter__") else [widths] * depth
    )
    if len(widths) != depth:
        raise checks.InputError(f"widths must list {depth} widths (features first), got {widths}")
    return [checks.integer("widths", w) for w in widths]


def _frame(d, r, generator):
    """Random (d, r) matrix with orthonormal columns; the first r unit vectors without generator."""
    if d < r:
        raise checks.InputError(f"a width of {d} cannot hold a solution of rank {r}; widen it")
    if generator is None:
        return torch.eye(d, dtype=torch.float64)[:, :r]
    return torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=torch.float64)).Q


# --- landscape (spec 3.5) ------------------------------------------------------------------------


def hessian_index(point, *, widths):
    """Number of negative Hessian eigenvalues at ``point`` (claims 5.E12, E13).

    M = 1: a missing direction with κ < 1 opens d − r descent directions, r the rank of the point.
    Any M: one more for every pair (missing, kept) with a larger target singular value missing.
    So balanced M = 1 gives (d−r)(K−r), and balanced M ≥ 2 none: spurious local minima.
    No bias or free bias.
    """
    missing, kept = _split(point)
    s, pairs = point.target_singular_values, 0
    for i in missing:
        pairs += int((s[i] > s[kept] * (1 + _TIE)).sum())
    if point.depth > 1:
        return pairs
    open_directions = int((point.kappas[missing] < 1).sum())
    (d,) = check_widths(widths, 1)
    return pairs + open_directions * (d - len(kept))


def lowest_curvature(point):
    """Smallest eigenvalue of the block that a missing direction contributes, M = 1 (spec 3.5).

    (λ_W+λ_H)/2 − √((λ_W−λ_H)²/4 + s²/N²), s the largest missing singular value.
    """
    if point.depth != 1:
        raise checks.InputError(f"this curvature is known for M = 1 only, got M = {point.depth}")
    missing, _ = _split(point)
    if not len(missing):
        raise checks.InputError("no direction is missing: the point is the global minimum")
    (lam,), lam_h = point.lambdas, point.lambda_h
    s = float(point.target_singular_values[missing].max())
    N = sum(point.class_counts)
    return (lam + lam_h) / 2 - math.sqrt((lam - lam_h) ** 2 / 4 + (s / N) ** 2)


def orbit_dimension(point, *, widths):
    """Dimension of the set of equivalent points: Σ_j (d_j r − r(r+1)/2), plus tied swaps.

    Every hidden frame turns freely; every pair (missing, kept) of equal target singular values adds
    one more (r(K−r) if balanced).  Equals the Hessian's nullity for κ_i ≠ κ* (claim 5.E13).
    """
    missing, kept = _split(point)
    widths = check_widths(widths, point.depth)
    r, s = len(kept), point.target_singular_values
    ties = sum(int(((s[kept] - s[i]).abs() <= _TIE * s[i]).sum()) for i in missing)
    return sum(d * r - r * (r + 1) // 2 for d in widths) + ties


def _split(point):
    if point.lambda_b:
        raise checks.InputError("the landscape is worked out for bias='none' and bias='free' only")
    positive = point.singular_scales > 0
    return (~positive).nonzero().flatten(), positive.nonzero().flatten()


def minority_threshold(*, num_samples, lambdas, lambda_h):
    """Class size below which a class is dropped, bias-free (claim 5.E15): κ_k > κ* iff n_k < this.

    n_min = (N^{M+1} Λ / κ*^{M+1})^{1/M}.
    """
    N = checks.integer("num_samples", num_samples)
    lambdas, lambda_h = check_decays(lambdas, lambda_h)
    M = len(lambdas)
    return (N * _geometric(1, lambdas, lambda_h) / threshold(M)) ** ((M + 1) / M)


def late_phase_rates(*, lambdas, lambda_h):
    """Exponential rates of log NC1 (trace ratio) of H_1, …, H_M in the late phase, linear layers.

    Gradient flow shrinks what the loss does not see by weight decay alone: the unused directions of
    H at rate λ_H and of W_i at rate λ_i, so NC1 of layer j falls like e^{−2(λ_H+λ_1+…+λ_{j−1})t}
    (claim 5.E10; gradient descent: t = step size × steps).  Returns a list of M negative floats.
    """
    lambdas, lambda_h = check_decays(lambdas, lambda_h)
    return [-2 * (lambda_h + math.fsum(lambdas[:j])) for j in range(len(lambdas))]


# --- ReLU (spec 3.6, 3.7) ------------------------------------------------------------------------


def relu_point(correlation, *, n, lambdas, lambda_h, widths, generator=None, require_obtuse=True):
    """Explicit global minimiser of the two-layer ReLU problem for a Gram shape S (claim 5.E8).

    ``correlation``: S (K, K) ⪰ 0 with unit diagonal and off-diagonals ≤ 0; H̄_1 has Gram ∝ S.
    S = I (orthogonal frame), the simplex ETF and antipodal pairs all give the same value.
    ``widths`` = (d, d_1) with d ≥ rank S, d_1 ≥ K.  ``generator``: random supports for the
    non-negative frame of H_2 and a random frame for H_1; without it, unit vectors.
    ``require_obtuse=False`` builds the same tensors for any correlation matrix (not a minimiser).
    Returns the tensors ``features, weight_1, weight_2``; zero tensors if κ > κ*.
    """
    S = checks.matrix("correlation", correlation, dtype=torch.float64)
    K = len(S)
    lambdas, lambda_h = check_decays(lambdas, lambda_h)
    if len(lambdas) != 2:
        raise checks.InputError(f"lambdas must be [λ_1, λ_2] here, got {len(lambdas)} values")
    d, d_1 = check_widths(widths, 2)
    values, vectors = torch.linalg.eigh(S)
    off = S - torch.diag(S.diagonal())
    if S.shape != (K, K) or (S - S.T).abs().max() > 1e-12 or values[0] < -1e-12:
        raise checks.InputError(
            "correlation must be a symmetric positive semidefinite (K, K) matrix"
        )
    if (S.diagonal() - 1).abs().max() > 1e-12 or (require_obtuse and off.max() > 1e-12):
        raise checks.InputError(
            "correlation must have unit diagonal and off-diagonal entries <= 0, largest found "
            f"{float(off.max()):.3g}: class means at acute angles are not optimal"
        )
    point = optimum(class_counts=[n] * K, lambdas=lambdas, lambda_h=lambda_h)
    u, t = float(point.singular_scales[0]), math.sqrt(float(point.layer_scales[0]))
    rank = int((values > 1e-12).sum())
    root = vectors[:, K - rank :] * values[K - rank :].sqrt()  # (K, rank), S = root rootᵀ
    shape = root @ _frame(d, rank, generator).T  # (K, d), Gram S
    frame = _nonnegative_frame(d_1, K, generator)  # (d_1, K), disjoint supports
    w = t / math.sqrt(lambdas[1])
    a = u / w if u else 0.0
    mix = (n * lambda_h / lambdas[0]) ** 0.25
    means = math.sqrt(a) / mix * shape
    return {
        "features": means.repeat_interleave(n, dim=0),
        "weight_1": math.sqrt(a) * mix * frame @ shape,
        "weight_2": w * frame.T.contiguous(),
    }


def _nonnegative_frame(d, K, generator):
    """(d, K) non-negative with orthonormal columns, hence disjoint supports."""
    if d < K:
        raise checks.InputError(f"a ReLU layer of width {d} cannot hold {K} orthogonal classes")
    if generator is None:
        return torch.eye(d, dtype=torch.float64)[:, :K]
    owner = torch.arange(d)[torch.randperm(d, generator=generator)] % K
    size = 0.2 + torch.rand(d, generator=generator, dtype=torch.float64)
    frame = torch.zeros(d, K, dtype=torch.float64)
    frame[torch.arange(d), owner] = size
    return frame / frame.norm(dim=0)


def two_layer_ratio(preactivations):
    """‖σ(Z)⁺‖_F² ‖Z‖_*² / K³ for class-mean pre-activations Z (K, d_1): ≥ 1 (claim 5.E7).

    The small-decay limit of the two-layer ReLU loss relative to deep neural collapse, whatever the
    scales; 1 at Z = aSPᵀ.  ``inf`` where σ(Z) cannot separate the classes (rank < K).
    """
    Z = checks.matrix("preactivations", preactivations, dtype=torch.float64)
    K = len(Z)
    active = torch.linalg.svdvals(Z.relu())
    if len(active) < K or active[-1] <= 1e-12 * active[0]:
        return math.inf
    return float((1 / active**2).sum() * torch.linalg.svdvals(Z).sum() ** 2 / K**3)


def chain_cost(means, weights):
    """q of a ReLU chain whose logits are a multiple of the identity (spec 3.7).

    ``means`` (K, d), ``weights`` [W_1, …, W_L] in torch layout, ReLU after all but the last.  At
    the best scale the loss is φ_L(u(κq), κq), against φ_L(u(κ), κ) for deep neural collapse, so
    q < 1 beats it.  q = (Π ‖factor‖²)^{1/(L+1)} / (K · output scale^{2/(L+1)}).
    """
    means = checks.matrix("means", means, dtype=torch.float64)
    weights = [
        checks.matrix(f"weights[{i}]", w, dtype=torch.float64) for i, w in enumerate(weights)
    ]
    K, hidden = len(means), means
    for weight in weights[:-1]:
        hidden = (hidden @ weight.T).relu()
    logits = hidden @ weights[-1].T
    scale = float(logits.diagonal().mean())
    identity = torch.eye(K, dtype=torch.float64)
    if logits.shape != (K, K) or scale <= 0 or (logits / scale - identity).abs().max() > 1e-9:
        raise checks.InputError("the chain must map the K means to a positive multiple of I_K")
    logs = sum(2 * math.log(float(x.norm())) for x in (means, *weights)) - 2 * math.log(scale)
    return math.exp(logs / (len(weights) + 1)) / K


def chain_point(means, weights, *, n, lambdas, lambda_h):
    """``(value, tensors)``: a ReLU chain rescaled to its best point, and its loss (claim 5.E20).

    Arguments as in :func:`chain_cost`; every layer but its scale is kept.  The tensors
    (``features``, ``weight_1``, …) are zero where decay exceeds the chain's own threshold.
    """
    lambdas, lambda_h = check_decays(lambdas, lambda_h)
    q = chain_cost(means, weights)
    K, L = len(means), len(weights)
    if len(lambdas) != L:
        raise checks.InputError(f"lambdas must list {L} weight decays, got {len(lambdas)}")
    effective = q * kappa(num_classes=K, n=n, lambdas=lambdas, lambda_h=lambda_h)
    u = global_scale(effective, L)
    # every decayed squared norm equals κ q u^{2/(L+1)} (equipartition)
    share = effective * u ** (2 / (L + 1))
    factors = [torch.as_tensor(x, dtype=torch.float64) for x in (means, *weights)]
    decays = [n * lambda_h, *lambdas]
    scaled = [
        x * (math.sqrt(share / lam) / float(x.norm()))
        for x, lam in zip(factors, decays, strict=True)
    ]
    variables = {"features": scaled[0].repeat_interleave(n, dim=0)}
    variables |= {f"weight_{j}": w for j, w in enumerate(scaled[1:], start=1)}
    return scalar_loss(u, effective, L), variables


def complete_graph_chain(r, depth):
    """Low-rank competitor of deep neural collapse: K = r(r−1)/2 classes, hidden rank r (spec 3.7).

    Classes are the edges of the complete graph on r nodes; features carry the edge-node incidence
    B, which passes unchanged through r-wide identity layers; the last hidden layer reads
    "both ends active" as BᵀB − J, whose positive part is the identity.  Needs ``depth`` L ≥ 3.
    Returns ``(means, weights)`` for :func:`chain_cost` and :func:`chain_point`.
    """
    r = checks.integer("r (graph nodes)", r, 3)
    L = checks.integer("depth", depth, 3)
    edges = torch.combinations(torch.arange(r), 2)
    K = len(edges)
    incidence = torch.zeros(K, r, dtype=torch.float64).scatter_(1, edges, 1.0)
    left, s, right_t = torch.linalg.svd(incidence, full_matrices=False)
    means, first = left * s.sqrt(), (s.sqrt()[:, None] * right_t).T
    both_ends = incidence @ incidence.T - 1  # (K, K): 1 on the diagonal, else 0 or −1
    last_hidden = both_ends @ torch.linalg.pinv(incidence).T
    identity = torch.eye(r, dtype=torch.float64)
    return means, [first, *[identity] * (L - 3), last_hidden, torch.eye(K, dtype=torch.float64)]


def segment_chain(depth, *, middle=0.9034845, tilt=0.6958518):
    """Low-rank competitor for K = 3 classes: hidden points (1, 0), (m, m), (0, 1), rank 2.

    The last hidden layer reads the two differences and, weighted by ``tilt``, the sum; any positive
    ``middle`` m and ``tilt`` give a valid chain, these nearly minimise its cost.  From ``depth``
    L = 4 on it beats deep neural collapse: q = 1.0817, 0.9819, 0.9205 for L = 3, 4, 5 (claim
    5.E20).
    Returns ``(means, weights)`` as :func:`complete_graph_chain` does.
    """
    L = checks.integer("depth", depth, 3)
    m, tilt = checks.real("middle", middle, above=0), checks.real("tilt", tilt, above=0)
    points = torch.tensor([[1.0, 0.0], [m, m], [0.0, 1.0]], dtype=torch.float64)
    left, s, right_t = torch.linalg.svd(points, full_matrices=False)
    readout = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [tilt, tilt]], dtype=torch.float64)
    last = torch.linalg.inv((points @ readout.T).relu()).T
    identity = torch.eye(2, dtype=torch.float64)
    first = (s.sqrt()[:, None] * right_t).T
    return left * s.sqrt(), [first, *[identity] * (L - 3), readout, last]


@dataclass(frozen=True)
class GraphChain:
    """Low-rank competitor against deep neural collapse (DNC) at equal decays."""

    num_classes: int
    hidden_rank: int
    cost: float  #: q, the limit of ``ratio`` for vanishing decay
    value: float  #: loss of the low-rank chain
    dnc_value: float  #: loss of deep neural collapse

    @property
    def ratio(self):
        """value / dnc_value; below 1 deep neural collapse is not optimal."""
        return self.value / self.dnc_value


def graph_competitor(r, *, n, lambdas, lambda_h):
    """Loss of the complete-graph chain on K = r(r−1)/2 classes, L = len(lambdas) (claim 5.E20)."""
    lambdas, lambda_h = check_decays(lambdas, lambda_h)
    means, weights = complete_graph_chain(r, len(lambdas))
    value, _ = chain_point(means, weights, n=n, lambdas=lambdas, lambda_h=lambda_h)
    dnc = optimum(class_counts=[n] * len(means), lambdas=lambdas, lambda_h=lambda_h).value
    return GraphChain(len(means), r, chain_cost(means, weights), value, dnc)
