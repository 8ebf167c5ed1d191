r"""Closed forms of the extended unconstrained-features model: M layers, squared error.

The papers (Tirer & Bruna 2022; Dang et al. 2023; Zhou et al. 2022; Súkeník et al. 2023/24) write
features as columns, ``W_M … W_1 H``.  Here one row is one sample and weights have torch layout, so
the objective of :func:`problem`, with N samples, K classes and one-hot targets Y (N, K), reads

    f = 1/(2N) ‖H W_1ᵀ … W_Mᵀ + 1 bᵀ − Y‖² + Σ_i λ_i/2 ‖W_i‖² + λ_H/2 ‖H‖²  (+ λ_b/2 ‖b‖²).

The factors 1/(2N) and ½ are part of every formula below, and decays are always listed in the order
of the data's way, (λ_H, λ_1, …, λ_M).  M = 1 is the plain model, M = 2 the "extended" one; with a
ReLU between the two layers the optimal value is the same for few classes, and lower for many
(claim 5.E7).

Everything decouples over the singular directions of the target: a direction with singular value s
carries s·u, and u minimises the scalar problem (:mod:`nclib.ufm.scalar` with M + 1 factors)

    φ(u) = (1−u)²/2 + (M+1)/2 · κ · u^{2/(M+1)},     κ = N Λ^{1/(M+1)} s^{−2M/(M+1)},

with Λ = λ_H Π λ_i.  Balanced classes: s = √n and κ = K (nΛ)^{1/(M+1)} for every direction.
"""

import math
from dataclasses import dataclass, replace
from itertools import accumulate, product

import torch

from nclib import checks, frames
from nclib.losses import MeanSquaredError
from nclib.metrics import geometry
from nclib.ufm import landscape, scalar
from nclib.ufm.model import UFM

_TIE = 1e-9  # relative gap below which two target singular values count as equal


def problem(counts, decays, *, widths, bias=None, relu=False):
    """The model of this result, as a :class:`~nclib.ufm.model.UFM` with one row per sample.

    ``counts``: samples per class, n_1, …, n_K.  ``decays``: λ_H, λ_1, …, λ_M.  ``widths``: d of the
    features, then d_1, …, d_{M−1} (an int: all equal).  ``bias``: None, 0.0 (free) or its decay.
    """
    options = {"widths": widths, "decays": _positive(decays), "bias": bias, "relu": relu}
    return UFM.classes(counts, MeanSquaredError(), **options)


def kappa(K, n, decays):
    """κ = K (nΛ)^{1/(M+1)} of K balanced classes: the one number that rules everything."""
    K, n = checks.integer("K", K, 2), checks.real("n", n, above=0)
    return K * n ** (1 / len(decays)) * _geometric(decays)


def thresholds(M):
    """``(κ*, κ_ex)``: above κ* zero is the global minimum (claims 5.E5, E6), and up to κ_ex a
    non-zero local minimum exists (claim 5.E14); equal for M = 1.

    κ* = (1/M) ((M−1)/M)^{(M−1)/(M+1)}: 1, 0.39685, 0.27217, 0.21037 for M = 1..4.
    """
    return scalar.thresholds(1.0, M + 1)


def _geometric(decays):
    """Λ^{1/(M+1)} through logarithms, so that tiny decays do not underflow."""
    return math.exp(math.fsum(map(math.log, _positive(decays))) / len(decays))


def _positive(decays):
    return [checks.real(f"decays[{i}]", lam, above=0) for i, lam in enumerate(decays)]


# --- stationary points of the matrix problem -----------------------------------------------------


@dataclass(frozen=True)
class StationaryPoint:
    """A stationary point, up to rotations of the hidden layers.  Tensors are float64.

    Directions i = 1..m are those of the target: the classes in order (no bias), the K−1 directions
    that the bias cannot fit (free bias), or these followed by the mean direction (decayed bias).
    A bottleneck that cuts through a tie (equal classes) leaves a choice: scales and value show one
    such point, and ``nan`` marks the Gram matrix and logits that the choice would decide.
    """

    problem: UFM
    value: float  #: f at this point
    scales: torch.Tensor  #: (m,) u_i: the share of the target that direction i carries
    kappas: torch.Tensor  #: (m,) κ_i; direction i is worth keeping iff κ_i <= κ*
    target: torch.Tensor  #: (m,) singular values s_i of the target
    layer_scales: torch.Tensor  #: (m,) t_i² = λ_j σ_i(W_j)² = λ_H σ_i(H)², the same for every j
    mean_gram: torch.Tensor  #: (K, K) inner products of the class means
    class_logits: torch.Tensor  #: (K, K) row j: logits (bias included) of the samples of class j
    bias: torch.Tensor | None  #: (K,) or None
    left: torch.Tensor  #: (K, m) singular vectors of the target, logit side
    right: torch.Tensor  #: (K, m) singular vectors of the target, sample side, over √n_k

    @property
    def depth(self):
        """M, the number of weight matrices."""
        return len(self.problem.decays) - 1

    @property
    def is_zero(self):
        """Whether features and weights all vanish (decay too large)."""
        return not bool((self.scales > 0).any())

    @property
    def feature_norms_sq(self):
        """(K,) ‖h‖² of the samples of each class."""
        return self.mean_gram.diagonal()

    @property
    def weight_norms_sq(self):
        """(M,) ‖W_j‖²; λ_j ‖W_j‖² is the same for all of them."""
        return self.layer_scales.sum() / torch.tensor(self.problem.decays[1:], dtype=torch.float64)


def optimum(problem):
    """Global minimum of the M-layer linear problem (claims 5.E1, E3–E6, E15–E17).

    For any class sizes, decays, widths and bias; unequal classes with a decayed bias have no known
    closed form and raise :class:`~nclib.checks.InputError`.  Where decay is too large the result is
    the zero solution, no error.  As far as known the value holds for a ReLU between the layers too,
    without a bias and with widths of at least K, if K = 2 (claim 5.E19), or M = 2 and K <= 4 (claim
    5.E7): elsewhere a ReLU can do better or worse, and that is an error.
    """
    target = _Target.of(problem)
    u, width = scalar.shrink(1.0, target.kappas, len(problem.decays))[1], min(problem.widths)
    tied = torch.zeros(len(u), dtype=torch.bool)
    if width < int((u > 0).sum()):  # those that f loses most without: the largest
        shares = target.shares
        order = shares.argsort(descending=True, stable=True)
        last, first_lost = shares[order[width - 1]], shares[order[width]]
        if last - first_lost <= _TIE * last:
            tied = (shares - last).abs() <= _TIE * last
        u[order[width:]] = 0.0
    return target.point(u, tied)


def critical_point(problem, keep):
    """The stationary point that keeps the directions ``keep`` (indices) and zeroes the others.

    Each kept direction sits at its local minimum (claims 5.E12, E13: levels f_r = (rφ(u)+(K−r)/2)/K
    in the balanced bias-free case).  Raises where a kept direction has κ_i > κ_ex.
    """
    target, keep = _Target.of(problem), list(keep)
    u = torch.zeros(len(target.kappas), dtype=torch.float64)
    if len(set(keep)) < len(keep) or not set(keep) <= set(range(len(u))):
        raise checks.InputError(
            f"keep must hold distinct directions in 0..{len(u) - 1}, got {keep}"
        )
    _fits(min(problem.widths), len(keep))
    u[keep] = scalar.local(1.0, target.kappas[keep], len(problem.decays))
    if not bool((u[keep] > 0).all()):
        raise checks.InputError(
            f"a direction cannot be kept: κ = {target.kappas[keep].max():.4g} exceeds "
            f"κ_ex = {thresholds(len(problem.decays) - 1)[1]:.4g}; use smaller decays"
        )
    return target.point(u, torch.zeros(len(u), dtype=torch.bool))


@dataclass(frozen=True)
class _Target:
    """The singular directions of the target that the bias leaves over."""

    problem: UFM
    sizes: torch.Tensor  # (K,) samples per class
    left: torch.Tensor
    s: torch.Tensor
    right: torch.Tensor
    kappas: torch.Tensor
    shares: torch.Tensor  # weight of φ(u_i) in f

    @classmethod
    def of(cls, problem):
        sizes, bound = _sizes(problem), problem.fixed or hasattr(problem.bias, "__len__")
        checks.require(
            problem.loss == MeanSquaredError() and problem.scale == 1 and min(problem.decays) > 0
            and not (bound or problem.sphere or problem.nonnegative) and bool((sizes > 0).all()),
            "closed forms are known for results.extended_ufm.theory.problem only",
        )  # fmt: skip
        K, M, widths = problem.K, len(problem.decays) - 1, problem.widths
        checks.require(
            not _rectified(problem)
            or (problem.bias is None and min(widths) >= K and (M == 2 and K <= 4 or K == 2)),
            "with a ReLU the closed form needs two layers and at most four classes, or K = 2; "
            f"no bias; widths of at least K; got {M} layers, K={K}, bias {problem.bias}, widths "
            f"{widths}",
        )
        left, s, right = _directions(sizes, problem.bias)
        N, factors, decay = sizes.sum(), len(problem.decays), problem.bias
        kappas, shares = N * _geometric(problem.decays) * s ** (2 / factors - 2), s**2 / N
        if decay:
            kappas[-1] *= 1 + 1 / decay
            shares[-1] *= decay / (1 + decay)
        return cls(problem, sizes, left, s, right, kappas, shares)

    def point(self, u, tied):
        """The stationary point with scales ``u``; ``tied`` directions are a free choice."""
        decays, sizes, N = self.problem.decays, self.sizes, self.sizes.sum()
        factors, roots = len(decays), self.sizes.sqrt()
        t2 = _geometric(decays) * (self.s * u) ** (2 / factors)
        own = torch.where(tied, torch.nan, 1.0)  # nan spreads to all that a tie leaves open
        bias, decay = None, self.problem.bias
        if decay is None:  # a direction is a class: the classes outside a tie are known
            gram, logits = torch.diag(t2 * own / (sizes * decays[0])), torch.diag(u * own)
        else:
            gram = (self.right * (t2 * own)) @ self.right.T / torch.outer(roots, roots) / decays[0]
            bias = sizes / N if decay == 0 else (1 - u[-1:]) / (1 + decay) * sizes / N
            logits = (self.right * (self.s * u * own)) @ self.left.T / roots[:, None] + bias
        value = float(self.shares @ scalar.value(u, 1.0, self.kappas, factors))
        return StationaryPoint(
            self.problem, value, u, self.kappas, self.s, t2, gram, logits, bias,
            self.left, self.right / roots[:, None],
        )  # fmt: skip


def _rectified(problem):
    """Whether there is a ReLU: one layer has none."""
    return problem.relu and len(problem.decays) > 2


def _sizes(problem):
    """(K,) samples per class."""
    sizes = torch.zeros(problem.K, dtype=torch.float64)
    return sizes.index_add_(0, problem.targets, problem.counts)


def _directions(sizes, decay):
    """Left vectors (K, m), singular values (m,), right vectors (K, m) of what the bias leaves over.

    Right vectors are in class coordinates: sample i of class j has entry right[j] / √n_j.
    """
    K, roots = len(sizes), sizes.sqrt()
    if decay is None:
        identity = torch.eye(K, dtype=torch.float64)
        return identity, roots, identity
    if sizes.min() == sizes.max():  # exact basis of the complement of 1, then 1 itself
        basis = frames.simplex_etf(K) * ((K - 1) / K) ** 0.5
        if decay > 0:
            basis = torch.cat([basis, basis.new_full((K, 1), K**-0.5)], 1)
        return basis, roots[:1].repeat(basis.shape[1]), basis
    if decay > 0:
        raise checks.InputError(
            "no closed form is known for a decayed bias with unequal class sizes; use bias=None, "
            "bias=0.0, equal counts, or minimise with nclib.ufm.solve.best"
        )
    left, s, right = torch.linalg.svd(roots.diag() - torch.outer(sizes, roots) / sizes.sum())
    return left[:, :-1], s[:-1], right[:-1].T


def realise(point, generator=None):
    """A point of ``point.problem`` that attains a :class:`StationaryPoint`.

    Hidden frames are random orthonormal if there is a ``generator``, else unit vectors.  Of tied
    points one is made.  Raises if a width is below the rank.
    """
    kept = (point.scales > 0).nonzero().flatten()
    t, decays = point.layer_scales[kept].sqrt(), point.problem.decays
    first, *rest = point.problem.widths
    hidden = _nonnegative_frame if _rectified(point.problem) else _frame
    bases = [_frame(first, len(kept), generator), *(hidden(d, len(kept), generator) for d in rest)]
    samples = point.right[point.problem.targets][:, kept]
    found = {"features": samples * (t / math.sqrt(decays[0])) @ bases[0].T}
    outputs = [*bases[1:], point.left[:, kept]]
    for name, into, out, lam in zip(point.problem.layers, bases, outputs, decays[1:], strict=True):
        found[name] = out * (t / math.sqrt(lam)) @ into.T
    return found | ({} if point.bias is None else {"bias": point.bias.clone()})


def _frame(d, r, generator):
    """Random (d, r) matrix with orthonormal columns; the first r unit vectors without generator."""
    _fits(d, r)
    if generator is None:
        return torch.eye(d, dtype=torch.float64)[:, :r]
    return frames.random_rotation(d, generator=generator)[:, :r]


def _fits(d, r):
    checks.require(r <= d, f"a width of {d} cannot hold a solution of rank {r}; widen it")


# --- landscape and dynamics ----------------------------------------------------------------------


def hessian_index(point):
    """Number of negative Hessian eigenvalues at ``point`` (claims 5.E12, E13).

    M = 1: a missing direction with κ < 1 opens d − r descent directions, r the rank of the point.
    Any M: one more for every pair (missing, kept) with a larger target singular value missing.
    So balanced M = 1 gives (d−r)(K−r), and balanced M ≥ 2 none: spurious local minima.
    No bias or free bias, no ReLU.
    """
    missing, kept = _split(point)
    s = point.target
    pairs = int((s[missing, None] > s[kept] * (1 + _TIE)).sum())
    if point.depth > 1:
        return pairs
    return pairs + int((point.kappas[missing] < 1).sum()) * (point.problem.widths[0] - len(kept))


def lowest_curvature(point):
    """Smallest curvature along a missing direction and a spare dimension, M = 1:
    (λ_W+λ_H)/2 − √((λ_W−λ_H)²/4 + s²/N²), s the largest missing singular value.
    Where it is negative it is the smallest eigenvalue of the Hessian (claim 5.E12).
    """
    if point.depth != 1:
        raise checks.InputError(f"this curvature is known for M = 1 only, got M = {point.depth}")
    missing, kept = _split(point)
    if not len(missing):
        raise checks.InputError("no direction is missing: the point is the global minimum")
    if len(kept) == point.problem.widths[0]:
        raise checks.InputError(
            f"no dimension is spare at rank d = {len(kept)}; widen the features"
        )
    lam_h, lam = point.problem.decays
    s, N = float(point.target[missing].max()), float(point.problem.counts.sum())
    return (lam + lam_h) / 2 - math.sqrt((lam - lam_h) ** 2 / 4 + (s / N) ** 2)


def orbit_dimension(point):
    """Dimension of the set of equivalent points: Σ_j (d_j r − r(r+1)/2), plus tied swaps.

    Every hidden frame turns freely; every pair (missing, kept) of equal target singular values adds
    one more (r(K−r) if balanced).  Equals the Hessian's nullity, but for one more with each
    kept direction whose root is a double one (κ_i = κ_ex, M ≥ 2) and, M = 1, missing one with
    κ_i = 1 (claim 5.E13).
    """
    missing, kept = _split(point)
    s = point.target
    ties = int(((s[kept] - s[missing, None]).abs() <= _TIE * s[missing, None]).sum())
    return sum(landscape.orbit(d, len(kept)) for d in point.problem.widths) + ties


def _split(point):
    checks.require(
        not point.problem.bias and not _rectified(point.problem),
        "the landscape is worked out for linear layers without bias or with a free one only",
    )
    positive = point.scales > 0
    return (~positive).nonzero().flatten(), positive.nonzero().flatten()


def minority_threshold(N, decays):
    """Class size below which a class of N samples in all is dropped, bias-free (claim 5.E15):
    κ_k > κ* iff n_k < n_min = (N^{M+1} Λ / κ*^{M+1})^{1/M}.
    """
    M, N = len(decays) - 1, checks.integer("N", N)
    return (N * _geometric(decays) / thresholds(M)[0]) ** ((M + 1) / M)


def late_phase_rates(decays):
    """Exponential rates of log NC1 (trace ratio) of H_1, …, H_M in the late phase, linear layers
    that are all wider than K.

    Gradient flow shrinks what the loss does not see by weight decay alone: the unused directions of
    H at rate λ_H and of W_i at rate λ_i, so those of H_j fall like e^{−S_{j−1} t} with
    S_j = λ_H+λ_1+…+λ_j.  From the unused directions of H_m the layer W_m also leads into the used
    ones, and that block falls at rate λ_{m−1}+λ_m (λ_0 = λ_H); from there on nothing damps.  The
    slowest way counts, NC1 falls at twice its rate: 2 S_{j−1}, or 2 (S_m+λ_{m−1}), m < j, which is
    never smaller for two layers (claim 5.E10; gradient descent: t = step size × steps).
    """
    decays = _positive(decays)
    S = list(accumulate(decays))
    ways = [
        [S[j], *(S[m] + decays[m - 1] for m in range(1, j + 1))] for j in range(len(decays) - 1)
    ]
    return [-2 * float(min(rates)) for rates in ways]


# --- ReLU ----------------------------------------------------------------------------------------


def relu_point(problem, correlation, generator=None):
    """Explicit point of the balanced two-layer ReLU problem for a Gram shape S of H_1 (claim 5.E8).

    ``correlation``: S (K, K) ⪰ 0 with unit diagonal; the means of H_1 have Gram matrix ∝ S, those
    of H_2 are a non-negative orthogonal frame.  At the linear optimum iff no off-diagonal entry is
    positive: S = I (orthogonal frame), the simplex ETF and antipodal pairs all tie.  Needs
    d ≥ rank S and d_1 ≥ K.  ``generator``: random supports for the frame of H_2 and a random frame
    for H_1; without it, unit vectors.  Zero tensors if κ > κ*.
    """
    S, K = checks.matrix("correlation", correlation, dtype=torch.float64), problem.K
    if S.shape != (K, K) or (S - S.T).abs().max() > 1e-12:
        raise checks.InputError(f"correlation must be a symmetric ({K}, {K}) matrix")
    values, vectors = torch.linalg.eigh(S)
    if values[0] < -1e-12 or (S.diagonal() - 1).abs().max() > 1e-12:
        raise checks.InputError("correlation must be positive semidefinite with unit diagonal")
    n, (lam_h, lam_1, lam_2), (d, d_1) = _per_class(problem, 2), problem.decays, problem.widths
    point = optimum(replace(problem, widths=K, relu=False))
    rank = int((values > 1e-12).sum())
    root = vectors[:, K - rank :] * values[K - rank :].sqrt()  # (K, rank), S = root rootᵀ
    shape = root @ _frame(d, rank, generator).T  # (K, d), Gram S
    frame = _nonnegative_frame(d_1, K, generator)  # (d_1, K), disjoint supports
    u, w = float(point.scales[0]), math.sqrt(float(point.layer_scales[0]) / lam_2)
    a = u / w if u else 0.0
    mix = (n * lam_h / lam_1) ** 0.25
    return {
        "features": (math.sqrt(a) / mix * shape)[problem.targets],
        "hidden_1": math.sqrt(a) * mix * frame @ shape,
        "weight": w * frame.T.contiguous(),
    }


def hexagon_point(problem):
    """Explicit point of the balanced two-layer ReLU problem with six classes: from 0.924 to
    1.025 κ* it lies below the linear optimum (claim 5.E7, this project).

    The classes stand on a hexagon and each of six neurons is on for two neighbours: Z = W_1H_1 is a
    multiple of the circulant (1, 1, 0, −1, −1, 0), of rank 2.  The ReLU raises its nuclear norm by
    the factor (2 + √3)/(2√3) = 1.077.  W_2 is optimal for it; its size is best near κ*.
    """
    n, (lam_h, lam_1, lam_2), K = _per_class(problem, 2), problem.decays, problem.K
    checks.require(K == 6, f"a hexagon has six classes, got {K}")
    row = torch.tensor([1.0, 1.0, 0.0, -1.0, -1.0, 0.0], dtype=torch.float64)
    scale = 0.42 * math.sqrt(K * lam_2 / kappa(K, n, problem.decays))
    Z = scale * torch.stack([row.roll(k) for k in range(K)])
    left, s, right = torch.linalg.svd(Z)
    mix, root = (n * lam_h / lam_1) ** 0.25, s[:2].sqrt()
    active = Z.relu()
    ridge = active.T @ active + K * lam_2 * torch.eye(K, dtype=torch.float64)
    weights = [mix * (root[:, None] * right[:2]).T, torch.linalg.solve(ridge, active.T).T]
    return _padded(problem, left[:, :2] * root / mix, weights)


def _padded(problem, means, weights):
    """The point of ``problem`` with these class means and weights; further neurons are zero."""
    widths = [weight.shape[1] for weight in weights]
    checks.require(
        len(means) == problem.K
        and all(own <= d for own, d in zip(widths, problem.widths, strict=True)),
        f"a chain of {len(means)} classes and widths {widths} does not fit a problem of "
        f"{problem.K} classes and widths {problem.widths}",
    )
    found = {"features": means[problem.targets], **dict(zip(problem.layers, weights, strict=True))}
    for name, x in found.items():
        found[name] = torch.zeros(problem.shapes[name], dtype=torch.float64)
        found[name][: len(x), : x.shape[1]] = x
    return found


def _per_class(problem, depth):
    """n of a balanced problem with ``depth`` layers, ReLU in between and no bias."""
    sizes = _sizes(problem)
    checks.require(
        problem.relu and problem.bias is None and len(problem.decays) == depth + 1
        and sizes.min() == sizes.max(),
        f"needs balanced classes, relu=True, no bias and {depth + 1} decays, got class sizes "
        f"{sizes.tolist()}, relu={problem.relu}, bias={problem.bias}, decays {problem.decays}",
    )  # fmt: skip
    return float(sizes[0])


def _nonnegative_frame(d, K, generator):
    """(d, K) non-negative with orthonormal columns, hence disjoint supports."""
    _fits(d, K)
    if generator is None:
        return torch.eye(d, dtype=torch.float64)[:, :K]
    owner = torch.arange(d)[torch.randperm(d, generator=generator)] % K
    frame = torch.zeros(d, K, dtype=torch.float64)
    frame[torch.arange(d), owner] = 0.2 + torch.rand(d, generator=generator, dtype=torch.float64)
    return frame / frame.norm(dim=0)


def nuclear_gain(preactivations):
    """‖σ(Z)‖_* / ‖Z‖_* of pre-activations Z (rows, d_1); 1 at the minimum is what Theorem 4.2
    assumes (claim 5.X8)."""
    Z = geometry.scaled(checks.matrix("preactivations", preactivations, dtype=torch.float64))
    return float(torch.linalg.svdvals(Z.relu()).sum() / torch.linalg.svdvals(Z).sum())


def circle(K):
    """Cosines of the angles between K points on a circle, (K, K): a Z whose nuclear norm a ReLU
    raises, by 2/π + ½ as K → ∞ (the Fourier coefficients of the positive part of cos)."""
    angles = 2 * math.pi * torch.arange(checks.integer("K", K), dtype=torch.float64) / K
    return torch.cos(angles[:, None] - angles)


# --- low-rank competitors of deep neural collapse ------------------------------------------------


def chain_cost(means, weights):
    """q of a ReLU chain whose logits are a multiple of the identity (claim 5.E20).

    ``means`` (K, d), ``weights`` [W_1, …, W_L] in torch layout, ReLU after all but the last.  At
    the best scale the loss is φ_L(u(κq), κq), against φ_L(u(κ), κ) for deep neural collapse, so
    q < 1 beats it.  q = (Π ‖factor‖²)^{1/(L+1)} / (K · output scale^{2/(L+1)}).
    """
    means = checks.matrix("means", means, dtype=torch.float64)
    K, logits, norms = len(means), means, [float(means.square().sum())]
    for j, weight in enumerate(weights):
        hidden = logits.relu() if j else logits
        options = {"columns": hidden.shape[1], "dtype": torch.float64}
        weight = checks.matrix(f"weights[{j}]", weight, **options)
        logits = hidden @ weight.T
        norms.append(float(weight.square().sum()))
    scale, identity = float(logits.diagonal().mean()), torch.eye(K, dtype=torch.float64)
    if logits.shape != (K, K) or scale <= 0 or (logits / scale - identity).abs().max() > 1e-9:
        raise checks.InputError("the chain must map the K means to a positive multiple of I_K")
    return _geometric(norms) / K * scale ** (-2 / len(norms))


def chain_point(problem, means, weights):
    """``(value, point)``: a ReLU chain rescaled to its best point, and its loss (claim 5.E20).

    ``problem``: balanced, with one decay per factor and layers at least as wide as the chain's;
    unused neurons stay zero.  All is zero where decay exceeds the chain's own threshold.
    """
    factors, n = (means, *weights), _per_class(problem, len(weights))
    effective = chain_cost(means, weights) * kappa(problem.K, n, problem.decays)
    value, u = scalar.shrink(1.0, effective, len(factors))
    # every decayed squared norm equals κ q u^{2/(L+1)} (equipartition)
    share = effective * u ** (2 / len(factors))
    decays = [n * problem.decays[0], *problem.decays[1:]]
    factors = [torch.as_tensor(x, dtype=torch.float64) for x in factors]
    first, *rest = (
        x * (math.sqrt(share / lam) / float(x.norm()))
        for x, lam in zip(factors, decays, strict=True)
    )
    return value, _padded(problem, first, rest)


def complete_graph_chain(r, depth):
    """Low-rank competitor of deep neural collapse: K = r(r−1)/2 classes, hidden rank r.

    Classes are the edges of the complete graph on r nodes; features carry the edge-node incidence
    B, which passes unchanged through r-wide identity layers; the last hidden layer reads
    "both ends active" as BᵀB − J, whose positive part is the identity.  Needs ``depth`` L ≥ 3.
    Idea: Súkeník et al. 2024; cost: this project.  Returns ``(means, weights)`` for
    :func:`chain_cost` and :func:`chain_point`.
    """
    incidence = frames.pairs(checks.integer("r (graph nodes)", r, 3))
    both_ends = incidence @ incidence.T - 1  # (K, K): 1 on the diagonal, else 0 or −1
    last_hidden = both_ends @ torch.linalg.pinv(incidence).T
    return _chain(incidence, last_hidden, torch.eye(len(incidence), dtype=torch.float64), depth)


def halves_chain(r):
    """Two layers below deep neural collapse at every decay, K = r(r−1)/2 classes, r even and at
    least 6: hidden rank r − 1 (claim 5.E7, this project).

    Classes are the edges of the complete graph on r nodes, neurons the choices of half its nodes:
    Z = W_1H_1 is 1 for an edge inside the half, −1 for one outside, 0 for one that crosses, and has
    r − 1 equal singular values.  q³ = ‖σ(Z)⁺‖_F² ‖Z‖_*² / K³ = 26/27, 23/24 for r = 6, 8; with
    K' − K orthogonal classes beside it q_K' = (K q + K' − K)/K', so every K' ≥ 15 has such a point.
    (r = 4 are the antipodal pairs of :func:`relu_point`.)  Returns ``(means, weights)`` as
    :func:`complete_graph_chain`.
    """
    checks.require(checks.integer("r (nodes)", r, 4) % 2 == 0, f"r must be even, got {r}")
    sides = torch.tensor([x for x in product((-0.5, 0.5), repeat=r) if sum(x) == 0]).double()
    means = frames.pairs(r) - 2 / r
    return means, [sides, torch.linalg.pinv((means @ sides.T).round().relu()).T]


def segment_chain(K, depth):
    """Low-rank competitor for K ≥ 3 classes: three of them at hidden points (1, 0), (m, m), (0, 1),
    the others orthogonal; hidden rank K − 1.

    The last hidden layer reads the two differences and, weighted by ``tilt``, the sum; any positive
    m and tilt give a valid chain, these nearly minimise its cost q_3 = 1.0817, 0.9819, 0.9205 for
    depth L = 3, 4, 5.  With all norms balanced, q_K = (3 q_3 + K − 3)/K: from L = 4 on every K ≥ 3
    has a point below deep neural collapse (claim 5.E20, this project).  Returns ``(means,
    weights)`` as :func:`complete_graph_chain` does.
    """
    m, tilt, others = 0.9034845, 0.6958518, checks.integer("K (classes)", K, 3) - 3
    points = torch.tensor([[1.0, 0.0], [m, m], [0.0, 1.0]], dtype=torch.float64)
    readout = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [tilt, tilt]], dtype=torch.float64)
    last = torch.linalg.inv((points @ readout.T).relu()).T
    means, weights = _chain(points, readout, last, depth)
    cost = 3 * chain_cost(means, weights)  # of all factors at output scale 1
    rest = torch.eye(others, dtype=torch.float64)
    means, *weights = (
        torch.block_diag(x * (cost**0.5 / float(x.norm())), rest) for x in (means, *weights)
    )
    return means, weights


def _chain(points, readout, last, depth):
    """Means and weights that carry ``points`` (K, r) at the least cost through L − 3 identities."""
    L, r = checks.integer("depth", depth, 3), points.shape[1]
    left, s, right = torch.linalg.svd(points, full_matrices=False)
    first, identity = (s.sqrt()[:, None] * right).T, torch.eye(r, dtype=torch.float64)
    return left * s.sqrt(), [first, *[identity] * (L - 3), readout, last]
