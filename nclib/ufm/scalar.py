r"""The scalar problems behind every decoupled model.

.. math:: h_{\beta,L}(s) = \min_{t\ge 0} \tfrac12 (t-s)^2 + \beta \tfrac L2\, t^{2/L}

``t`` is a product of L = ``factors`` equal norms :math:`t^{1/L}` (features and M layers: L = M+1),
so the penalty is weight decay written in terms of what the factors produce together.  L = 2 is the
Huber function (soft threshold); for L >= 3 the penalty is concave at 0 and shrinkage becomes
selection: the minimiser jumps to zero.  Tirer & Bruna 2022, Dang et al. 2023 (s = 1), Ergen &
Pilanci 2021; claims 5.E5, 5.E14, 6.C7.

``s`` >= 0 and ``beta`` >= 0 are numbers (floats come back) or tensors that broadcast (float64
tensors come back); anything else raises :class:`~nclib.checks.InputError`.
"""

import math

import torch

from nclib import checks


def value(t, s, beta, factors):
    """The objective at ``t`` >= 0 (numbers or tensors that broadcast), unchecked."""
    return (t - s) ** 2 / 2 + beta * factors / 2 * t ** (2 / factors)


def shrink(s, beta, factors):
    """``(value, minimiser)`` of the problem at signal ``s``; at a tie the minimiser is 0."""
    signal, strength, L = _problem(s, beta, factors)
    t = torch.where(strength < _critical(signal, L), _root(signal, strength, L), 0.0)
    return _like((s, beta), value(t, signal, strength, L)), _like((s, beta), t)


def local(s, beta, factors):
    """The non-zero local minimiser, global or not: the largest root of ``t - s + beta t^(2/L-1)``.

    NaN where there is none (``beta`` above the spinodal value of :func:`thresholds`).
    """
    signal, strength, L = _problem(s, beta, factors)
    exists = strength <= _spinodal(signal, L) * (1 + 1e-15)
    return _like((s, beta), torch.where(exists, _root(signal, strength, L), torch.nan))


def thresholds(s, factors):
    r"""``(critical, spinodal)``: where the non-zero solution stops being global, and existing.

    For ``beta >= critical`` the global minimiser is 0; for ``beta < spinodal`` a non-zero local
    minimum exists.  Both equal ``s`` for two factors; for more, gradient descent shows hysteresis
    between them.  At the critical value the minimiser leaps from ``s (L-2)/(L-1)`` to 0.
    """
    signal, _, L = _problem(s, 0.0, factors)
    return _like((s,), _critical(signal, L)), _like((s,), _spinodal(signal, L))


def cross_entropy(c, K, alpha=0.0):
    r"""``(value, margin)``: minimum over s >= 0 of ``CE(s) + c (K-1) s``, K classes.

    ``CE(s)`` is the cross-entropy of a true logit that exceeds K-1 equal ones by the margin s, with
    label smoothing ``alpha``, and ``c`` > 0 the strength :math:`\sqrt{n λ_W λ_H}` of n samples per
    class: the optimum of every balanced problem with one layer.  The margin is 0 for ``c`` from
    ``(1-alpha)/K`` on.  Zhu et al. 2021, Zhou et al. 2022 (NeurIPS); claims 1.L1, 1.L5.
    """
    c, K = checks.real("c", c, above=0), checks.integer("K", K, 2)
    e = c + checks.real("alpha", alpha, at_least=0, below=1) / K  # smoothing acts like more decay
    if c >= (1 - alpha) / K:
        return math.log(K), 0.0
    rest = (K - 1) * e  # probability of the other classes
    margin = math.log1p((1 - alpha - K * c) / e)  # log((1 - rest)/e), exact at the threshold
    return -(1 - rest) * math.log1p(-rest) - rest * math.log(e), margin


def _problem(s, beta, factors):
    return _positive("s", s), _positive("beta", beta), checks.integer("factors", factors, 2)


def _critical(s, L):
    return _power_law(s, L, 1 / (L - 1), (L - 2) / (L - 1))


def _spinodal(s, L):
    return _power_law(s, L, L / (2 * (L - 1)), (L - 2) / (2 * (L - 1)))


def _power_law(s, L, outer, inner):
    return outer * s * (inner * s) ** (1 - 2 / L)


def _root(s, beta, L):
    """Largest root of ``t - s + beta t^(2/L - 1)`` where it exists (elsewhere anything finite).

    In units of ``s`` the left side is convex with its minimum at ``turn`` and increasing from there
    to 1, so Newton from 1 descends monotonically onto the root.
    """
    if L == 2:
        return (s - beta).clamp(min=0)
    scaled = beta * torch.where(s > 0, s, 1.0) ** (2 / L - 2)
    turn = (scaled * (1 - 2 / L)) ** (L / (2 * L - 2))
    u = torch.ones_like(scaled)
    for _ in range(100):  # a double root, at the spinodal value, halves the error at each step
        slope = 1 - scaled * (1 - 2 / L) * u ** (2 / L - 2)
        step = (u - 1 + scaled * u ** (2 / L - 1)) / slope.clamp(min=1e-12)
        new = torch.minimum(u, torch.maximum(u - step, turn))
        done, u = torch.equal(new, u), new
        if done:
            break
    return s * u


def _positive(name, value):
    found = checks.tensor(name, value)
    found = found if found.is_complex() else found.to(torch.float64)
    good = not found.is_complex() and bool(((found >= 0) & found.isfinite()).all())
    if isinstance(value, bool) or not good:
        raise checks.InputError(f"{name} must be finite and not negative, got {value!r}")
    return found


def _like(given, result):
    tensors = any(isinstance(value, torch.Tensor) for value in given)
    return result if tensors or result.ndim else result.item()
