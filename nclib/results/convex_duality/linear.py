r"""Deep linear networks with weight decay as spectral problems (paper 6, claims 6.C2-6.C9).

The end-to-end map ``weight`` has torch layout (K, d), outputs ``inputs @ weight.T``; the paper
writes its transpose.  Layers are lists of torch-layout matrices, first layer first.  The cost is
:math:`\tfrac12\|f(X)-Y\|_F^2+\tfrac\beta2\sum_l\|W_l\|_F^2`, **without 1/n**.
"""

import math
from dataclasses import dataclass

import torch

from nclib import checks
from nclib.ufm.scalar import shrink

STEPS = 50_000  # of the proximal gradient


@dataclass(frozen=True)
class LinearMap:
    """An end-to-end map ``weight`` (K, d) with its cost and a lower bound on the optimal cost."""

    weight: torch.Tensor
    value: float
    dual_value: float

    @property
    def gap(self):
        """Duality gap: how far ``value`` can be from the optimum."""
        return self.value - self.dual_value


def linear_map(inputs, targets, beta):
    r"""Minimise :math:`\tfrac12\|XW-Y\|_F^2+\beta\|W\|_*`: a :class:`LinearMap` (claim 6.C3).

    Two-layer weight decay is this convex problem.  Restarted accelerated proximal gradient in the
    row space of ``inputs`` (n, d), until the duality gap is below 1e-13 of ``1/2 ||Y||^2`` or,
    near rounding level, no longer halves.  RuntimeError if it stays above 1e-8 of that scale.
    """
    X, Y = _data(inputs, targets)
    beta = checks.real("beta", beta, above=0)
    U, S, Vh = _thin_svd(X)
    if not len(S):  # nothing can be fitted
        half = float((Y**2).sum() / 2)
        return LinearMap(Y.new_zeros(Y.shape[1], X.shape[1]), half, half)
    A, B, scale = S[:, None], U.mT @ Y, float((Y**2).sum() / 2)
    # Only the part of Y inside range(X) can be fitted; the rest is a constant of the cost.
    constant, step = scale - float((B**2).sum() / 2), 1 / float(S.max()) ** 2
    W = Z = torch.zeros_like(B)
    momentum, best, reference = 1.0, None, math.inf
    for iteration in range(STEPS):
        if iteration % 10 == 0:
            residual = B - A * W
            bound = constant + _dual_value(A * residual, residual, B, beta)
            value = constant + float((residual**2).sum() / 2 + beta * torch.linalg.svdvals(W).sum())
            found = LinearMap(W.mT @ Vh, value, bound)
            best = min(best or found, found, key=lambda solution: solution.gap)
            if best.gap <= 1e-13 * scale:
                return best
        if iteration % 2000 == 1999:
            if best.gap < 1e-9 * scale and best.gap > reference / 2:
                return best
            reference = best.gap
        new = _soft_threshold(Z + step * A * (B - A * Z), step * beta)
        restart = float(((Z - new) * (new - W)).sum()) > 0
        following = 1.0 if restart else (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        Z = new + (0.0 if restart else (momentum - 1) / following) * (new - W)
        W, momentum = new, following
    if best.gap > 1e-8 * scale:
        raise RuntimeError(
            f"duality gap still {best.gap:.1e} after {STEPS} iterations: the inputs have "
            f"condition number {float(S.max() / S.min()):.0e}; raise beta"
        )
    return best


def whitened_linear_value(targets, beta, depth=2):
    """Optimal cost of a deep linear network on whitened inputs, ``X X' = I_n`` (claim 6.C7).

    It decouples over the singular values of ``targets`` (n, K).
    """
    return float(shrink(torch.linalg.svdvals(_columns(targets)), beta, depth)[0].sum())


def whitened_singular_values(targets, beta, depth=2):
    """Singular values of the optimal end-to-end map on whitened inputs, descending (claim 6.C7)."""
    return shrink(torch.linalg.svdvals(_columns(targets)), beta, depth)[1]


def whitened_layer_norms(targets, beta, depth):
    """Frobenius and operator norm that all layers share at that optimum (claim 6.C2)."""
    t = whitened_singular_values(targets, beta, depth)
    return float((t ** (2 / depth)).sum().sqrt()), float(t[0] ** (1 / depth))


def minimum_norm_value(inputs, targets, depth=2):
    r"""Least ``1/2 sum ||W_l||^2`` of a deep linear interpolator (claims 6.C5, 6.C6).

    :math:`\tfrac L2\sum_i\sigma_i(X^+Y)^{2/L}`, a Schatten quasi-norm; the nuclear norm at L = 2.
    ``targets`` must lie in the range of ``inputs``.
    """
    depth = checks.integer("depth", depth, 2)
    s = _interpolator(inputs, targets)[1]
    return float(depth / 2 * (s ** (2 / depth)).sum())


def minimum_norm_layers(inputs, targets, depth=2):
    """Layers that attain :func:`minimum_norm_value`: torch layout, hidden width = rank.

    Aligned: the left singular vectors of each layer are the right ones of the next (claim 6.C6);
    the inner frames, which are arbitrary, are coordinate axes here.
    """
    depth = checks.integer("depth", depth, 2)
    left, s, right = _interpolator(inputs, targets)
    root = torch.diag(s ** (1 / depth))
    return [root @ left.mT, *[root.clone() for _ in range(depth - 2)], right.mT @ root]


def minimum_norm_certificate(inputs, targets):
    """Dual optimum ``(X^+)' U V'`` (n, K) of two-layer interpolation (claim 6.C5).

    It is feasible, ``sigma_max(X' certificate) = 1``, and ``<certificate, Y>`` is the nuclear norm.
    """
    X, _ = _data(inputs, targets)
    left, _, right = _interpolator(inputs, targets)
    return torch.linalg.pinv(X).mT @ left @ right


def fixed_norm_values(inputs, targets, depth, norm=1.0):
    """``(primal, dual)`` of the variant with ``||W_l||_F <= norm`` on the first L-2 layers (6.C8).

    Only the last two layers are paid for.  They differ unless L = 2 or the interpolator has rank
    one: strong duality fails for vector outputs, by ``rank^(L/2 - 1)`` at equal singular values.
    """
    depth, norm = checks.integer("depth", depth, 2), checks.real("norm", norm, above=0)
    s = _interpolator(inputs, targets)[1]
    paid = norm ** (2 - depth)
    return float(paid * (s ** (2 / depth)).sum() ** (depth / 2)), float(paid * s.sum())


def rank_one_value(coefficients, direction, targets, beta, depth=2, *, relu=True):
    """Optimal cost on rank-one inputs ``coefficients direction'`` (claim 6.C9).

    ``coefficients`` (n,), ``direction`` (d,), ``targets`` (n,) or (n, K).  With ``relu`` and
    coefficients of both signs only two layers have a closed form (the two halves decouple); deeper
    networks are refused.  Non-negative coefficients: linear and ReLU agree at every depth.
    """
    beta, depth = checks.real("beta", beta, above=0), checks.integer("depth", depth, 2)
    c = _columns(coefficients, "coefficients")
    a, Y = _columns(direction, "direction"), _columns(targets)
    if c.shape[1] != 1 or a.shape[1] != 1 or len(Y) != len(c):
        raise checks.InputError(
            f"coefficients {tuple(c.shape)} and direction {tuple(a.shape)} must be vectors, "
            f"targets {tuple(Y.shape)} must have one row per coefficient"
        )
    c = c[:, 0] * torch.linalg.vector_norm(a)
    mixed = relu and bool((c > 0).any()) and bool((c < 0).any())
    if mixed and depth > 2:
        raise checks.InputError(
            "a deep ReLU network on coefficients of both signs has no closed form; "
            "use depth=2, relu=False, or shift the data to one sign"
        )
    value = (Y**2).sum() / 2
    for half in [c.clamp(min=0), c.clamp(max=0)] if mixed else [c]:
        if (top := float(half.abs().max())) > 0:  # squares of the entries may overflow
            length = float(torch.linalg.vector_norm(half / top))
            s = float(torch.linalg.vector_norm(half / top @ Y)) / length
            value += shrink(s, beta * (top * length) ** (-2 / depth), depth)[0] - s**2 / 2
    return float(value)


def _interpolator(inputs, targets):
    """Truncated SVD ``U (d, r), s (r,), V' (r, K)`` of the minimum-norm interpolator ``X^+ Y``."""
    X, Y = _data(inputs, targets)
    cpu = X.device.type == "cpu"  # there lstsq is exact to the last digits
    W = torch.linalg.lstsq(X, Y, driver="gelsd").solution if cpu else torch.linalg.pinv(X) @ Y
    miss = float(torch.linalg.matrix_norm(X @ W - Y))
    if miss > 1e-8 * float(torch.linalg.matrix_norm(Y)):
        raise checks.InputError(
            f"targets are not in the range of inputs (distance {miss:.2g}): a linear network "
            "cannot interpolate them; use linear_map with a beta instead"
        )
    sigma = _thin_svd(X)[1]  # rounding of W grows with the condition of X
    condition = float(sigma.max() / sigma.min()) if len(sigma) else 1.0
    return _thin_svd(W, max(X.shape) * condition)


def _data(inputs, targets):
    X = checks.matrix("inputs", inputs, dtype=torch.float64)
    checks.require(X.numel(), f"inputs is empty, got shape {tuple(X.shape)}")
    Y = _columns(targets)
    if len(Y) != len(X):
        raise checks.InputError(f"targets has {len(Y)} rows for {len(X)} inputs")
    return X, Y


def _columns(values, name="targets"):
    values = checks.tensor(name, values)
    values = values[:, None] if values.ndim == 1 else values
    checks.require(values.numel(), f"{name} is empty, got shape {tuple(values.shape)}")
    return checks.matrix(name, values, dtype=torch.float64)


def _thin_svd(M, growth=1.0):
    """SVD without the singular values at rounding level; returns ``U, s, V'``."""
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    keep = s > max(growth, *M.shape) * torch.finfo(M.dtype).eps * s.max()
    return U[:, keep], s[keep], Vh[keep]


def _soft_threshold(M, amount):
    U, s, Vh = torch.linalg.svd(M, full_matrices=False)
    return U * (s - amount).clamp(min=0) @ Vh


def _dual_value(correlation, residual, targets, beta):
    """Dual value of ``residual``, shrunk until ``correlation`` = X'residual has norm beta."""
    worst = float(torch.linalg.svdvals(correlation).max())
    point = residual * (min(1.0, beta / worst) if worst > 0 else 1.0)
    return float((point * targets).sum() - (point**2).sum() / 2)
