"""Softmax codes: K classes on the unit sphere of dimension d, K as large as you like (result 4).

A *softmax code* is a classifier W (K, d) with unit rows that maximises the one-vs-rest margin
``rho(W) = min_k dist(w_k, conv{w_j : j != k})``; its optimal value is ``rho*(K, d)``.  It is what
cross-entropy on the sphere tends to at low temperature (claim 4.G1).  Tammes codes maximise the
smallest angle instead; in every tabulated case both agree, ``rho* = 1 - cos theta*`` (4.G7).

Rows are vectors throughout; the paper (arXiv 2310.05351) writes them as columns.  ``temperature``
divides the logits; the released code's variable of that name is its inverse.

This module holds the facts; the explicit codes are in :mod:`codes`, the certified
distances in :mod:`margins`, energies at finite temperature in
:mod:`energies`, the optimiser in :mod:`search`.
"""

from math import e, exp, expm1, lgamma, log, pi, sqrt

import numpy as np
import torch
from scipy.linalg import null_space
from scipy.sparse.csgraph import connected_components
from scipy.special import logsumexp

from nclib import checks
from nclib.metrics.known_margins import LOWER_BOUNDS as LOWER_BOUNDS
from nclib.metrics.known_margins import TABLE as TABLE
from nclib.metrics.known_margins import KnownMargin as KnownMargin
from nclib.metrics.known_margins import best_known as best_known
from nclib.metrics.known_margins import closed_form
from nclib.metrics.known_margins import known_margin as known_margin
from nclib.metrics.margins import MarginBracket as MarginBracket
from nclib.metrics.margins import OneVsRest as OneVsRest
from nclib.metrics.margins import hard_margin as hard_margin
from nclib.metrics.margins import hull_projections as hull_projections
from nclib.metrics.margins import margin as margin
from nclib.metrics.margins import max_cosine as max_cosine
from nclib.metrics.margins import min_angle as min_angle
from nclib.metrics.margins import one_vs_rest as one_vs_rest
from nclib.metrics.margins import optimal_features as optimal_features
from nclib.metrics.margins import rattlers as rattlers
from nclib.metrics.margins import unit_rows as unit_rows


def lower_bound(K, d):
    """``1/2 [sqrt(pi)/K Gamma((d+1)/2) / Gamma(d/2+1)]^(2/(d-1)) <= rho*`` (claim 4.G8), d >= 2."""
    K, d = _bound_sizes(K, d)
    inner = 0.5 * log(pi) - log(K) + lgamma((d + 1) / 2) - lgamma(d / 2 + 1)
    return 0.5 * exp(2 / (d - 1) * inner)


def upper_bound(K, d):
    """``rho* <= 2 [2 sqrt(pi)/K Gamma((d+1)/2) / Gamma(d/2)]^(1/(d-1))`` (claim 4.G8), d >= 2.

    Stated for ``K >= bound_threshold(d)``.  Often larger than 1, while ``rho* <= 1`` for
    K >= d + 2: :func:`margin_range` combines everything proven.
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


def margin_range(K, d):
    """``(lower, upper)`` on ``rho*(K, d)`` from everything proven or certified here.

    Upper: closed forms, ``rho* <= 1`` for K >= d + 2, claim 4.G8.  Lower: closed forms, certified
    codes, claim 4.G8.
    """
    closed = closed_form(K, d)
    if closed is not None:
        return closed, closed
    stated = bound_threshold(d) <= K
    best = best_known(K, d)
    lows = [0.0] + ([lower_bound(K, d)] if stated else []) + ([best.value] if best else [])
    return max(lows), min([1.0] + ([upper_bound(K, d)] if stated else []))


def angle_to_margin_range(cosine):
    """``1 - c <= rho(W) <= sqrt(2 - 2 c)`` for any W with largest cosine c (claim 4.G7)."""
    c = checks.real("cosine", cosine, at_least=-1, at_most=1)
    return 1 - c, sqrt(2 - 2 * c)


def tammes_angle(margin_value):
    """Angle in radians of a code with ``rho = 1 - cos theta`` (the tabulated codes)."""
    return float(np.arccos(1 - checks.real("margin_value", margin_value, at_least=0, at_most=2)))


def welch_bound(K, d):
    """Smallest possible rms off-diagonal cosine of K unit rows (claim 4.G9), 0 for K <= d.

    Reached exactly by tight frames.  The *mean* cosine says nothing: it is ``-1/(K-1)`` for every
    centred W.
    """
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    return sqrt(max(0, K - d) / (d * (K - 1)))


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


def log_ce(weight, features, temperature, labels=None):
    """Logarithm of the CE-UFM loss of unit rows, without underflow at low temperature.

    ``features`` (N, d) with ``labels`` (N,); without labels row k belongs to class k.
    """
    temperature = checks.real("temperature", temperature, above=0)
    weight = unit_rows("weight", weight)
    features = unit_rows("features", features, minimum_rows=1)
    labels = torch.arange(len(weight)) if labels is None else labels
    labels, _ = checks.labels(labels, len(weight), length=len(features))
    gaps = (features @ weight.T - (features * weight[labels]).sum(1, keepdim=True)) / temperature
    gaps[torch.arange(len(labels)), labels] = -torch.inf
    rivals = torch.logsumexp(gaps, 1).numpy()
    terms = np.where(rivals < -36, rivals, np.log(np.logaddexp(0.0, np.maximum(rivals, -40))))
    return float(logsumexp(terms) - log(len(terms)))


def radon_point(weight):
    """``(part, other, point)``: two disjoint class lists whose hulls share ``point`` (d,).

    Exists for K >= d + 2 and proves ``rho(W) <= 1`` there (spec 3.4): some class of a part has
    ``dist_k^2 <= 1 - |point|^2``.
    """
    weight = unit_rows("weight", weight).numpy()
    K, d = weight.shape
    if d > K - 2:
        raise checks.InputError(f"Radon's theorem needs K >= d + 2, got K={K}, d={d}")
    dependence = null_space(np.vstack([weight.T, np.ones(K)]))[:, 0]
    dependence[np.abs(dependence) < 1e-12] = 0
    part, other = np.flatnonzero(dependence > 0), np.flatnonzero(dependence < 0)
    share = dependence[part] / dependence[part].sum()
    return part.tolist(), other.tolist(), torch.from_numpy(share @ weight[part])


def orthogonal_groups(weight, *, tol=1e-9):
    """Classes split into mutually orthogonal groups (spec 3.4): list of ascending lists."""
    weight = unit_rows("weight", weight)
    linked = (weight @ weight.T).abs().numpy() > tol
    count, group = connected_components(linked, directed=False)
    return [np.flatnonzero(group == g).tolist() for g in range(count)]


def cmf_saving(parameters, K, d):
    """Share of a network's ``parameters`` saved by a classifier that is not learned (4.G21)."""
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    return K * d / checks.integer("parameters", parameters, K * d)


def solve(K, d, *, seed=0, starts=None):
    """The best softmax code known or found for (K, d): float64 unit rows ``(K, d)``.

    Where the optimum is proven (K <= 2 d, d = 2) or a code is known explicitly, that code; else
    the best of many random ``starts``, see :func:`search.solve`.
    """
    from nclib.results.large_class import (
        search as softmax_code_solver,  # theory never optimises; loaded on demand
    )

    return softmax_code_solver.solve(K, d, seed=seed, starts=starts)
