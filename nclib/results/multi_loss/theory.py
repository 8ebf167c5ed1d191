"""Closed forms of result 1: the same geometry for cross-entropy, label smoothing, focal and MSE.

Balanced unconstrained-features model with K classes, n samples each, N = nK::

    f(H, W, b) = (1/N) Σ_i L(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖²

Every global minimum has class logits ``Z = s (I - 11ᵀ/K) + u 11ᵀ`` up to the features' rotation: a
simplex ETF of *margin* ``s = z_y - z_j``; only ``s`` depends on the loss.  Of all of n, λ_W, λ_H
only ``c = √(n λ_W λ_H)`` decides the logits.  The papers write H as d×N columns; here samples are
rows.  Losses are named as in :func:`nclib.losses.get`.

Sources: Zhou et al., NeurIPS 2022 (the contrastive property and its theorems), Zhou et al., ICML
2022 (MSE), Zhu et al. 2021 (certificate and way out of saddles), this project for the rest.
"""

import math
from dataclasses import dataclass

from scipy.optimize import brentq, minimize_scalar

from nclib import checks, losses
from nclib.ufm import landscape, scalar


@dataclass(frozen=True)
class Optimum:
    """The global minimum: value, margin, bias, Frobenius norms, and the scalars behind them.

    ``mean_component`` v is the part of the mean logit ``u = bias + v`` that W and H carry (it takes
    one more dimension of features).
    ``probability`` is softmax's probability of the true class.  At ``margin == 0`` and
    ``mean_component == 0`` the minimiser is W = 0, H = 0.  Where any subspace is as good, the MSE
    without bias at d = K-1, ``mean_component`` is NaN and ``margin`` the size of each direction.
    """

    loss: str
    K: int
    n: int
    c: float
    value: float
    margin: float
    bias: float
    mean_component: float
    weight_norm: float
    feature_norm: float

    @property
    def probability(self):
        """Softmax probability of the true class, ``1/(1 + (K-1)e^{-s})``."""
        return 1 / (1 + (self.K - 1) * math.exp(-self.margin))

    @property
    def equivalent_c(self):
        """The c at which cross-entropy has this margin: ``(1 - p)/(K - 1)`` (claim 1.L5)."""
        return math.exp(-self.margin) * self.probability


def strength(n, lambda_w, lambda_h):
    """``c = √(n λ_W λ_H)``, the only combination that fixes the logits."""
    n = checks.integer("n", n)
    lambda_w = checks.real("lambda_w", lambda_w, above=0)
    lambda_h = checks.real("lambda_h", lambda_h, above=0)
    return checks.real(
        "c = √(n λ_W λ_H)", math.sqrt(n) * math.sqrt(lambda_w) * math.sqrt(lambda_h), above=0
    )


def optimum(loss, *, K, n, lambda_w, lambda_h, lambda_b=0.0, d=None, **params):
    """The global minimum of the unconstrained-features model.

    Args:
        loss: ``"ce"``, ``"ls"``, ``"fl"``, ``"mse"`` (with ``params``), or a loss object.
        K, n: classes, samples per class.
        lambda_w, lambda_h: weight of ``½‖W‖²`` and ``½‖H‖²``, positive.
        lambda_b: weight of ``½‖b‖²``; 0 is a free bias, ``None`` no bias at all.
        d: feature dimension, at least K-1; default large enough.  It matters only for the MSE at
            d = K-1, where W and H have no room for a mean component (claim 1.L13).

    Returns an :class:`Optimum`.  For a free bias and a shift-invariant loss the bias is any
    multiple of the vector of ones; 0 is reported.  Raises :class:`~nclib.checks.InputError` for
    values out of range, and where no closed form exists: for d < K-1 (claim 1.L14), for the MSE
    with kappa != 1 where d = K-1 has no room for its mean component, and for the focal loss with a
    bias and K > 1/t_c close to its tie, where partly collapsed points lie lower (claim 1.L3).
    """
    loss = _loss(loss, params)
    K = checks.integer("K", K, 2)
    c = strength(n, lambda_w, lambda_h)
    lambda_b = _penalty(lambda_b)
    d = K if d is None else checks.integer("d", d)
    if d < K - 1:
        raise checks.InputError(
            f"no closed form for d={d} < K-1={K - 1}: there is no simplex ETF; minimise it with "
            "nclib.ufm.solve.best"
        )
    b = v = 0.0
    if isinstance(loss, losses.Focal):
        if lambda_b is not None:
            _require_no_tie(loss.gamma, K, c)
        value, s = _focal(loss.gamma, K, c)
    elif not isinstance(loss, losses.MeanSquaredError):
        value, s = scalar.cross_entropy(c, K, getattr(loss, "alpha", 0.0))
    else:
        value, s, b, v = _mse(loss, K, c, lambda_b)
        if v > 0 and d == K - 1:
            value, s, b, v = _mse_truncated(loss, K, c, lambda_b)
    nuclear = math.sqrt(n) * (K - 1) * s  # of W Hᵀ; without its mean component if that is NaN
    nuclear += 0.0 if math.isnan(v) else math.sqrt(n) * K * v
    weight_norm = math.sqrt(math.sqrt(lambda_h / lambda_w) * nuclear)
    feature_norm = math.sqrt(math.sqrt(lambda_w / lambda_h) * nuclear)
    return Optimum(str(loss), K, n, c, value, s, b, v, weight_norm, feature_norm)


def _loss(loss, params):
    if isinstance(loss, str):
        return losses.get(loss, **params)
    if params:
        raise checks.InputError("parameters belong to a loss given by name")
    if not isinstance(loss, tuple(losses.LOSSES.values())):
        raise checks.InputError(
            f"closed forms are known for {', '.join(losses.LOSSES)}, not {loss!r}"
        )
    return loss


def _penalty(lambda_b):
    return None if lambda_b is None else checks.real("lambda_b", lambda_b, at_least=0)


def _require_no_tie(gamma, K, c):
    """Refuse strengths at which some classes at zero, the others an ETF, may be cheapest.

    Found by minimising over such points for γ from .5 to 1000 and K from 18 to 10 000: from .08 of
    the window ``c_loc < c < c_glob`` below its end to .08 above it.
    """
    local, globally, _ = focal_thresholds(K, gamma)
    window = globally - local
    checks.require(
        not abs(c - globally) < 0.15 * window,
        f"no closed form at c = √(n λ_W λ_H) = {c:g} for the focal loss with a bias, K = {K}: "
        f"too near its tie at {globally:g} (claim 1.L3); change the decays, or take lambda_b=None",
    )


def _focal(gamma, K, c):
    zero = (1 - 1 / K) ** gamma * math.log(K), 0.0
    q_max = min(1 - 1 / K, 1 - focal_convexity_threshold(gamma))

    def slope(q):  # increasing on [0, q_max]; stationary where it is c(K-1)
        return q**gamma * (q - gamma * (1 - q) * math.log1p(-q)) - c * (K - 1)

    if slope(q_max) <= 0:
        return zero
    q = brentq(slope, 0.0, q_max, xtol=1e-300, rtol=1e-15, maxiter=1000)
    s = math.log((K - 1) * (1 - q) / q)
    value = -(q**gamma) * math.log1p(-q) + c * (K - 1) * s
    return (value, s) if s > 0 and value < zero[0] else zero


def _mse(loss, K, c, lambda_b):
    """Minimise over the margin s >= 0 and the mean logit u >= 0; convex, piecewise quadratic.

    The mean logit costs ``K·h(u)``, the cheaper of bias and W, H: ``h = λ_b u²/2`` up to
    ``u = c/λ_b``, from there on it grows with slope c.
    """
    tau, M, kappa = loss.weight(K), loss.scale, loss.kappa
    ss = tau * (kappa * ((K - 1) / K) ** 2 + (K - 1) / K**2)  # second derivative in s
    if lambda_b is None:
        split = 0.0
    else:
        split = math.inf if lambda_b == 0 else c / lambda_b

    def value(s, u):
        fit = kappa * (s * (K - 1) / K + u - M) ** 2 + (K - 1) * (u - s / K) ** 2
        held = min(u, split)
        quadratic = (lambda_b or 0.0) * held**2 / 2
        linear = c * (u - split) if u > split else 0.0
        return tau / 2 * fit + c * (K - 1) * s + K * (quadratic + linear)

    def stationary(free_s, curvature, slope):
        # [ss su; su uu] (s, u) = right-hand side, for h(u) = curvature u²/2 + slope u.
        su = tau * (kappa - 1) * (K - 1) / K
        uu = tau * (kappa + K - 1) + K * curvature
        rs = tau * kappa * M * (K - 1) / K - c * (K - 1)
        ru = tau * kappa * M - K * slope
        if not free_s:
            return 0.0, ru / uu
        determinant = ss * uu - su * su
        return (rs * uu - su * ru) / determinant, (ss * ru - su * rs) / determinant

    # The minimum lies on one piece of h, or on the kink at u = 0 that the absence of a bias makes.
    candidates = []
    for free_s in (True, False):
        if split > 0:
            candidates.append(stationary(free_s, lambda_b, 0.0))
        if split < math.inf:
            candidates.append(stationary(free_s, 0.0, c))
    right = tau * kappa * M * (K - 1) / K - c * (K - 1)
    candidates.append((max(0.0, right / ss), 0.0))
    feasible = [(value(s, u), s, u) for s, u in candidates if s >= 0 and u >= 0]
    best, s, u = min(feasible)
    b = min(u, split) if lambda_b is not None else 0.0
    return best, s, b, u - b


def _mse_truncated(loss, K, c, lambda_b):
    """At d = K-1, where K equal singular values or a mean component do not fit.

    With a bias the mean direction is given up: the bias holds some of it.  Without, any one is.
    """
    checks.require(
        loss.kappa == 1,
        "no closed form for the MSE with kappa != 1 at d = K-1 if its mean component has no room; "
        "take d >= K or a smaller lambda_b",
    )
    tau, M = loss.weight(K), loss.scale
    kept = max(0.0, M - K * c / tau)  # singular value / √n of each kept direction
    lost = 1.0 if lambda_b is None else lambda_b / (tau + lambda_b)  # of the direction given up
    value = (K - 1) * (tau / (2 * K) * (kept - M) ** 2 + c * kept) + lost * tau / (2 * K) * M**2
    return value, kept, (1 - lost) * M / K, math.nan if lambda_b is None else 0.0


def threshold(loss, *, K, lambda_b=0.0, **params):
    """The strength c from which on W = H = 0 is the global minimum (claim 1.L4).

    For the focal loss with a bias and K > 1/t_c partly collapsed points are the minimum for up to
    another .08 of its window (claim 1.L3).
    """
    loss, K, lambda_b = _loss(loss, params), checks.integer("K", K, 2), _penalty(lambda_b)
    if isinstance(loss, losses.Focal):
        return focal_thresholds(K, loss.gamma)[1]
    if isinstance(loss, losses.MeanSquaredError):
        tau, M, kappa = loss.weight(K), loss.scale, loss.kappa
        if lambda_b is None:
            return tau * kappa * M / K
        u = tau * kappa * M / (tau * (kappa + K - 1) + K * lambda_b)
        # The mean component dies earlier: λ_b u = τ(κ(M - u) - (K-1)u)/K is smaller than this.
        return tau * (kappa * (M - u) + u) / K
    return (1 - getattr(loss, "alpha", 0.0)) / K


def value_at_zero(loss, *, K, lambda_b=0.0, **params):
    """Value of the collapsed-to-zero solution W = H = 0 with the best bias."""
    loss, K, lambda_b = _loss(loss, params), checks.integer("K", K, 2), _penalty(lambda_b)
    if isinstance(loss, losses.MeanSquaredError):
        tau, M, kappa = loss.weight(K), loss.scale, loss.kappa
        if lambda_b is None:
            return tau * kappa * M**2 / 2
        u = tau * kappa * M / (tau * (kappa + K - 1) + K * lambda_b)
        fit = kappa * (u - M) ** 2 + (K - 1) * u**2
        return tau / 2 * fit + K * lambda_b * u**2 / 2
    gamma = getattr(loss, "gamma", 0.0)
    return (1 - 1 / K) ** gamma * math.log(K)


def scalar_loss(loss, s, *, K, **params):
    """The loss of a sample with margin ``s`` over equal wrong logits: φ (claim 1.L2).

    In the paper's variable ``t = Σ_{j≠y}(z_j - z_y) = -(K-1)s`` it is the lower bound of the
    *contrastive property*.  For the MSE it is the loss at its best shift, ``mean(z) = M/K`` for
    kappa = 1.
    """
    loss, K, s = _loss(loss, params), checks.integer("K", K, 2), checks.real("s", s)
    if isinstance(loss, losses.MeanSquaredError):
        tau, M, kappa = loss.weight(K), loss.scale, loss.kappa
        u = (kappa * (M - s * (K - 1) / K) + (K - 1) * s / K) / (kappa + K - 1)
        return tau / 2 * (kappa * (s * (K - 1) / K + u - M) ** 2 + (K - 1) * (u - s / K) ** 2)
    log_p = -math.log1p((K - 1) * math.exp(-s)) if s > -500 else s - math.log(K - 1)
    if isinstance(loss, losses.Focal):
        log_q = log_p - s + math.log(K - 1)
        return -math.exp(loss.gamma * log_q) * log_p
    alpha = getattr(loss, "alpha", 0.0)
    return -log_p + alpha * (K - 1) / K * s


# Focal loss: where it is convex, and where that fails -------------------------------------------


def focal_slope(gamma, t):
    """ψ(t), 0 < t < 1: the gradient of the focal loss in the logits is ``ψ(p_y)(e_y - p)``."""
    gamma, t = checks.real("gamma", gamma, at_least=0), checks.real("t", t, above=0, below=1)
    return gamma * t * (1 - t) ** (gamma - 1) * math.log(t) - (1 - t) ** gamma


def focal_convexity_threshold(gamma):
    """t_c(γ): the focal loss is convex at logits exactly where ``p_y >= t_c`` (claim 1.L10).

    Independent of K and of the other probabilities; 0 for γ = 0; never above 0.0585.
    """
    gamma = checks.real("gamma", gamma, at_least=0)

    def curvature(t):
        return (2 * gamma + 1) * (1 - t) + gamma * (1 - (gamma + 1) * t) * math.log(t)

    return _first_root(curvature)


def focal_sufficient_threshold(gamma):
    """Where ψ of :func:`focal_slope` begins to increase: convex from there on (claim 1.L10).

    The Hessian is ``ψ'(p) p (e_y - p)(e_y - p)ᵀ - ψ(p)(diag p - ppᵀ)`` at ``p = p_y`` with ψ < 0,
    so ψ' >= 0 suffices.  Largest as γ → 0 (what γ = 0 gives, though cross-entropy itself is convex
    everywhere), the root .2032 of ``log t + 2(1 - t)``: the 0.21 of Zhou et al., NeurIPS 2022,
    holds for every γ.
    """
    gamma = checks.real("gamma", gamma, at_least=0)

    def increase(t):  # of the sign of ψ'
        return (1 - gamma * t) * math.log(t) + 2 * (1 - t)

    return _first_root(increase)


def _first_root(function):
    """Root below 0.3 of a function that is positive there; 0 if the root is below any float."""
    ends = 1e-300, 0.3
    options = {"xtol": 1e-300, "rtol": 1e-15, "maxiter": 2000}
    return brentq(function, *ends, **options) if function(ends[0]) < 0 else 0.0


def focal_thresholds(K, gamma):
    """``(c_loc, c_glob, s_jump)`` of the focal loss (claims 1.L3, L11).

    Zero is a local minimum from ``c_loc`` on and, without a bias, the global one from ``c_glob`` on
    (with one a little later, see :func:`threshold`); at ``c_glob``
    the margin jumps from ``s_jump`` to 0.  Between the two, spurious local minima exist.  The
    jump is 0 and the two coincide exactly if ``K <= 1/t_c(γ)``; for all γ if K <= 17.
    """
    K = checks.integer("K", K, 2)
    local = -focal_slope(gamma, 1 / K) / K
    if focal_convexity_threshold(gamma) <= 1 / K:
        return local, local, 0.0
    zero = scalar_loss("fl", 0.0, K=K, gamma=gamma)

    def gain(s):  # the c at which margin s ties with zero
        return (zero - scalar_loss("fl", s, K=K, gamma=gamma)) / ((K - 1) * s)

    best = minimize_scalar(
        lambda s: -gain(s), bounds=(1e-6, 40.0), method="bounded", options={"xatol": 1e-12}
    )
    return local, -best.fun, best.x


# Symmetry ----------------------------------------------------------------------------------------


def flat_directions(loss, *, d, lambda_b=0.0, **setting):
    """Dimension of the set of global minimisers = zero Hessian eigenvalues at each (claim 1.L15).

    Rotations of a (K-1)-frame, of a K-frame if there is a mean component, none at W = H = 0; one
    more if the bias is free and the loss ignores shifts.  Arguments of :func:`optimum`; refused
    where any subspace is as good (claim 1.L13).
    """
    exact = optimum(loss, d=d, lambda_b=lambda_b, **setting)
    checks.require(
        not math.isnan(exact.mean_component),
        "the minimisers of the MSE without bias at d = K-1 are more than one orbit (claim 1.L13)",
    )
    rank = (exact.K - 1) * (exact.margin > 0) + (exact.mean_component > 0)
    return landscape.orbit(d, rank) + (lambda_b == 0 and not exact.loss.startswith("mse"))
