r"""The scalar problem behind every decoupled network of depth L (paper 6, section 3.1 of the spec).

.. math:: h_{\beta,L}(s) = \min_{t\ge 0} \tfrac12 (t-s)^2 + \beta \tfrac L2\, t^{2/L}

``t`` is a product of L equal layer norms :math:`t^{1/L}`, so the penalty is weight decay written in
terms of what the layers produce together.  L = 2 is the Huber function (soft threshold); for
L >= 3 the penalty is concave at 0 and shrinkage becomes selection: the minimiser jumps to zero.
"""

import torch

from nclib import checks


def depth_scalar(s, beta, depth):
    """``(value, minimiser)`` of the depth-``depth`` scalar problem at signal ``s`` (claim 6.C7).

    ``s`` >= 0 is a number (two floats come back) or a tensor (two float64 tensors of its shape);
    ``beta`` > 0, ``depth`` >= 2.  At a tie, ``beta`` equal to the critical value, the minimiser is
    0.
    """
    beta, depth = checks.real("beta", beta, above=0), checks.integer("depth", depth, 2)
    signal = _signal(s)
    t = _minimiser(signal, beta, depth)
    value = (t - signal) ** 2 / 2 + beta * depth / 2 * t ** (2 / depth)
    return _like(s, value), _like(s, t)


def thresholds(s, depth):
    r"""``(beta_c, beta_sp)``: where the non-zero solution stops being global, and stops existing.

    For ``beta >= beta_c`` the global minimiser is 0; for ``beta < beta_sp`` a non-zero local
    minimum exists.  Both equal ``s`` at depth 2; for depth >= 3 gradient descent shows hysteresis
    between them.  At ``beta_c`` the minimiser leaps from ``s (L-2)/(L-1)`` to 0.
    """
    depth, signal = checks.integer("depth", depth, 2), _signal(s)
    spinodal = _power_law(signal, depth, depth / (2 * (depth - 1)), (depth - 2) / (2 * (depth - 1)))
    return _like(s, _critical(signal, depth)), _like(s, spinodal)


def _critical(s, depth):
    return _power_law(s, depth, 1 / (depth - 1), (depth - 2) / (depth - 1))


def _power_law(s, depth, outer, inner):
    return outer * s * (inner * s) ** (1 - 2 / depth)


def _minimiser(s, beta, depth):
    """Largest root of ``t - s + beta t^(2/L - 1)``, or 0 where ``beta`` is past the threshold.

    In units of ``s`` the left side is convex and increasing between the root and 1, so Newton from
    1 descends monotonically onto the root, and its slope there is at least ``1 - 1/L``.
    """
    alive = beta < _critical(s, depth)
    scaled = beta * torch.where(alive, s, 1.0) ** (2 / depth - 2)
    u = torch.ones_like(s)
    for _ in range(30):
        slope = 1 - scaled * (1 - 2 / depth) * u ** (2 / depth - 2)
        step = (u - 1 + scaled * u ** (2 / depth - 1)) / slope
        u = torch.where(alive, u - step, 1.0)
        if not (step.abs()[alive] > 1e-16).any():
            break
    return torch.where(alive, s * u, 0.0)


def _signal(s):
    signal = checks.tensor("s", s)
    signal = signal if signal.is_complex() else signal.to(torch.float64)
    if (
        isinstance(s, bool)
        or signal.is_complex()
        or not bool(((signal >= 0) & signal.isfinite()).all())
    ):
        raise checks.InputError(f"s must be finite and not negative (a singular value), got {s!r}")
    return signal


def _like(s, result):
    return result if isinstance(s, torch.Tensor) else result.item() if result.ndim == 0 else result
