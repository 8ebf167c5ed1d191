"""Softmax codes: K classes on the unit sphere of dimension d, K as large as you like (result 4).

A *softmax code* is a classifier W (K, d) with unit rows that maximises the one-vs-rest margin
``rho(W) = min_k dist(w_k, conv{w_j : j != k})``; its optimal value is ``rho*(K, d)``.  It is what
cross-entropy on the sphere tends to at low temperature (claim 4.G1).  Tammes codes maximise the
smallest angle instead; in every tabulated case both agree, ``rho* = 1 - cos theta*`` (4.G7).

Rows are vectors throughout; the paper (Jiang et al., ICML 2024, arXiv 2310.05351) writes them as
columns.  ``temperature`` divides the logits; the released code's variable of that name is its
inverse.  Facts and the model at finite temperature are here, explicit codes in :mod:`codes`,
certified distances in :mod:`nclib.metrics.margins`, known margins in
:mod:`nclib.metrics.known_margins`, the search for codes in :mod:`search`.
"""

from math import cos, e, exp, expm1, lgamma, log, pi, sqrt

import numpy as np
import torch
from scipy.optimize import brentq, minimize

from nclib import checks
from nclib.losses import ExactCrossEntropy
from nclib.metrics import margins
from nclib.results.large_class import codes
from nclib.ufm import flow, landscape, solve
from nclib.ufm.model import UFM


def lower_bound(K, d):
    """``1/2 [sqrt(pi)/K Gamma((d+1)/2) / Gamma(d/2+1)]^(2/(d-1)) <= rho*`` (claim 4.G8), d >= 2."""
    K, d = _bound_sizes(K, d)
    inner = 0.5 * log(pi) - log(K) + lgamma((d + 1) / 2) - lgamma(d / 2 + 1)
    return 0.5 * exp(2 / (d - 1) * inner)


def upper_bound(K, d):
    """``rho* <= 2 [2 sqrt(pi)/K Gamma((d+1)/2) / Gamma(d/2)]^(1/(d-1))`` (claim 4.G8), d >= 2.

    Stated for ``K >= bound_threshold(d)``.  Often larger than 1, while ``rho* <= 1`` for
    K >= d + 2.
    """
    K, d = _bound_sizes(K, d)
    inner = log(2) + 0.5 * log(pi) - log(K) + lgamma((d + 1) / 2) - lgamma(d / 2)
    return 2 * exp(1 / (d - 1) * inner)


def bound_threshold(d):
    """The K from which the bounds of claim 4.G8 are stated, ``sqrt(2 pi sqrt(e d))``."""
    return sqrt(2 * pi * sqrt(e * checks.integer("d", d)))


def _bound_sizes(K, d):
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    if d == 1:
        raise checks.InputError("the bounds of claim 4.G8 need d >= 2; for d = 1 see known_margin")
    return K, d


# The model at a finite temperature ------------------------------------------------------------


def model(K, d, temperature, *, samples=1, margin=0.0):
    """The problem of result 4: log cross-entropy of cosines over ``temperature``, all rows unit.

    N = ``samples`` K features.  The logarithm, because the loss is 1e-5 ... 1e-100 at low
    temperature; ``temperature`` times it tends to the HardMax loss ``-rho`` (claim 4.G1).
    ``margin`` is CosFace's: the true cosine is lowered by it, HardMax only shifted.
    """
    T = checks.real("temperature", temperature, above=0)
    loss = ExactCrossEntropy(checks.real("margin", margin, at_least=0) / T)
    counts = torch.full((checks.integer("K", K, 2),), checks.integer("samples", samples))
    sphere = ("features", "weight")
    return UFM.classes(counts, loss, widths=d, decays=(0, 0), scale=1 / T, sphere=sphere, log=True)


def self_dual(code):
    """The point of :func:`model` with one feature per class, equal to its row of ``code``."""
    return {"features": code, "weight": code}


def log_energy(code, temperature):
    """Logarithm of the cross-entropy of a code with features equal to its rows."""
    return float(model(*code.shape, temperature).value(self_dual(code)))


def splits(K, d):
    """All sizes ``m_1 <= m_2 <= ...`` of orthogonal simplices with K vertices spanning d.

    There are ``K - d`` of them in each split; for ``d + 2 <= K <= 2 d`` all have margin 1.
    """
    K, d = checks.integer("K", K, 2), checks.integer("d", d)

    def partitions(total, parts, smallest):
        if parts == 1:
            return [(total,)] if total >= smallest else []
        return [
            (m, *rest)
            for m in range(smallest, total // parts + 1)
            for rest in partitions(total - m, parts - 1, m)
        ]

    return partitions(K, K - d, 2) if d < K <= 2 * d else []


def best_tilt(singles, temperature):
    """The :func:`codes.tilted_cross_polytope` of lowest energy, found from a small tilt.

    Where it is the lowest code for K = d + 2, the minimum of the model itself has the same energy
    up to 1e-8 in T log CE (claim 4.G12); above, it is only the best of its family.
    """
    q = checks.integer("singles", singles)

    def code(x):
        height = abs(cos(x[1])) if q > 1 else None
        return codes.tilted_cross_polytope(q, abs(np.sin(x[0])), height)

    start = np.array([0.1] + [np.arccos(q**-0.5) + 0.03] * (q > 1))
    corners = np.array([start, *(start + 0.05 * np.eye(len(start)))])
    found = minimize(
        lambda x: log_energy(code(x), temperature),
        start,
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-13, "initial_simplex": corners},
    )
    return code(found.x)


def exchange_temperature(first, second, low, high):
    """The temperature in ``[low, high]`` at which two codes have equal energy.

    ``first``, ``second``: codes, or functions ``T -> code``.  None if one of them is lower at both
    ends.
    """

    def gap(T):
        one, two = (log_energy(c(T) if callable(c) else c, T) for c in (first, second))
        return T * (one - two)

    if gap(low) * gap(high) > 0:
        return None
    return float(brentq(gap, low, high, xtol=1e-10))


def segment_phase(d):
    """``(low, high)``: where segment plus simplex (2, d) is the lowest code known for K = d + 2.

    Above, two balanced simplices win; below, the tilted vertices of the cross-polytope.  ``d >= 4``
    (for d = 3 the first two are the same code, and only ``low`` is meant: high is infinite).
    """
    segment, half = codes.orthogonal_simplices([2, checks.integer("d", d, 3)]), (d + 2) // 2
    low = exchange_temperature(lambda T: best_tilt(d - 2, T), segment, 0.1 / d, 0.6 / d)
    balanced = codes.orthogonal_simplices([half, d + 2 - half])
    return low, exchange_temperature(segment, balanced, 0.3, 1.0) if d > 3 else np.inf


def lowest_curvature(code, temperature):
    """Smallest Hessian eigenvalue of the model at a self-dual critical code, rotations left out.

    For d >= 2: on the line nothing moves.  :class:`~nclib.checks.InputError` for a code that is
    not critical.
    """
    K, d = code.shape
    checks.integer("d", d, 2)
    problem, point = model(K, d, temperature), self_dual(code)
    values = landscape.spectrum(problem, point)
    slopes = flow.slopes(problem, problem.coordinates(point)).values()
    checks.require(
        max(float(slope.abs().max()) for slope in slopes) <= 1e-6 * float(values.abs().max()),
        f"the code is not critical at temperature {temperature:g}",
    )
    zero = values.abs().argsort()[: landscape.orbit(d, int(torch.linalg.matrix_rank(code)))]
    return float(values[torch.isin(torch.arange(len(values)), zero, invert=True)].min())


def stable_phase(code, cold, warm):
    """``(low, high)``: the temperatures at which ``code`` turns from a saddle into a minimum and
    back, by the sign of :func:`lowest_curvature`, within 2 % of the guesses ``cold`` and ``warm``;
    :class:`~nclib.checks.InputError` where there is no change of sign."""

    def edge(T):
        ends = 0.98 * T, 1.02 * T
        signs = {lowest_curvature(code, end) > 0 for end in ends}
        checks.require(len(signs) == 2, f"no curvature changes its sign within 2 % of T={T:g}")
        return brentq(lambda t: lowest_curvature(code, t), *ends, xtol=1e-7)

    return edge(cold), edge(warm)


def log_ce_range(K, samples, margin_value, temperature):
    """Logarithms of both sides of ``log(1+e^(-rho/T))/N <= CE_min <= log(1+(K-1)e^(-rho/T))``.

    ``margin_value`` is ``rho*``, ``samples`` is N = n K (claim 4.G1).
    """
    K, N, T = _sandwich_sizes(K, samples, temperature)
    exponent = -margin_value / T
    return _log_softplus(exponent) - log(N), _log_softplus(log(K - 1) + exponent)


def hard_margin_floor(K, samples, margin_value, temperature):
    """A hard margin every CE minimiser reaches: ``-T log(exp(N log(1+(K-1)e^(-rho/T))) - 1)``.

    Tends to ``rho*`` as T -> 0, about ``rho* - T log(N (K - 1))`` (claim 4.G1).
    """
    K, N, T = _sandwich_sizes(K, samples, temperature)
    log_x = log(N) + log_ce_range(K, N, margin_value, T)[1]
    if log_x > log(30):  # exp(x) - 1 is exp(x)
        return -T * exp(log_x)
    return -T * (log_x if log_x < -30 else log(expm1(exp(log_x))))


def _sandwich_sizes(K, samples, temperature):
    K = checks.integer("K", K, 2)
    N = checks.integer("samples", samples, K)
    return K, N, checks.real("temperature", temperature, above=0)


def _log_softplus(x):
    return x if x < -36 else log(np.logaddexp(0.0, x))


def approach_rate(weight):
    """``(margin rate, value rate)``: how CE approaches its cold limit (this project, claim 4.G13).

    Near a cold optimum W with active pairs (k, j), moving rows by ``T x`` changes each margin by
    ``T (J x)_kj`` to first order, and CE minimisation becomes the convex problem
    ``min_x log sum exp(-J x)``.  Its dual picks the multipliers y of largest entropy S(y) among
    all those that prove optimality (``J'y = 0, sum y = 1``).  Hence, as T -> 0,

        (rho* - m(W_T, H_T)) / T  ->  S(y) + log max y,
        (T log CE + rho*) / T     ->  S(y) - log K.

    The first is 0 exactly when y is uniform over the active pairs.  This needs a rigid code: where
    optimal codes form a continuum (d + 2 <= K < 2 d) second-order moves matter and the approach is
    slower.  A rattler counts for nothing only where ``T`` is far below its ``dist_k - rho*``: .003
    for (20, 3), so its limit is not seen at the temperatures of the notebook.  Active are
    pairs up to 1e-5; 1e-7 |x|^2 / 2 keeps x bounded when W carries rounding errors.
    :class:`~nclib.checks.InputError` if a move to first order raises every margin: no such y.
    """
    weight = margins.unit_rows("weight", weight)
    features = margins.optimal_features(weight)
    gaps = (features * weight).sum(1, keepdim=True) - features @ weight.T
    gaps.fill_diagonal_(torch.inf)
    k, j = (gaps < gaps.min() + 1e-5).nonzero(as_tuple=True)

    def change(weight_move, feature_move):
        move_w = weight_move - (weight_move * weight).sum(1, keepdim=True) * weight
        move_h = feature_move - (feature_move * features).sum(1, keepdim=True) * features
        along_w = ((move_w[k] - move_w[j]) * features[k]).sum(1)
        return along_w + ((weight[k] - weight[j]) * move_h[k]).sum(1)

    def size(moves):
        return sum(move.square().sum() for move in moves.values())

    def smooth(**moves):
        return torch.logsumexp(-change(**moves), 0) + 1e-7 / 2 * size(moves)

    zero = {"weight_move": torch.zeros_like(weight), "feature_move": torch.zeros_like(weight)}
    x = solve.minimize(smooth, zero).variables
    # |J'y| at the end: 1e-6 and less at codes found by a search, .06 and more elsewhere.
    checks.require(
        1e-7 * float(size(x).sqrt()) < 1e-3,
        "weight is no optimal code: a move to first order raises every margin",
    )
    y = torch.softmax(-change(**x), 0)
    entropy = float(-(y * y.log()).sum())
    return entropy + float(y.log().max()), entropy - float(np.log(len(weight)))
