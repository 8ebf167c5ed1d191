r"""Two-layer ReLU training solved exactly: one input dimension, and scalar targets in the plane.

A balanced neuron :math:`v\,(w^\top x+b)_+` costs :math:`\|w\||v|`, so training with weight decay is
a Lasso over all ramps.  In one dimension (biases unpenalised) the dual constraint is piecewise
linear in the knot :math:`-b/w`: knots at the data suffice (claims 6.C16-6.C19).  In the plane
(no biases) it is one sinusoid between two activation boundaries: its maximum is exact, and ramps
that violate it enter the Lasso until none is left (claims 6.C4, 6.C20).  Same optimum as the finite
program over activation patterns (Pilanci & Ergen 2020), without a cone solver.

Inputs are tensors, arrays or lists; the work is numpy float64.  Sources: Ergen & Pilanci 2021; the
closed form of the interpolation norm and where the deep law stops are this project's.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linprog, minimize_scalar, nnls

from nclib import checks

# --- the Lasso -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lasso:
    """A solved Lasso: weights, offset, the residual ``y - fit``, primal and dual value."""

    weights: np.ndarray
    offset: float
    residual: np.ndarray
    value: float
    dual_value: float


def lasso(dictionary, targets, beta, *, intercept=False):
    r"""The Lasso for ``dictionary`` D (n, m), ``targets`` y (n,), as the projection its dual is.

    .. math:: \min_{w,b} \tfrac12\|Dw + b\mathbf 1 - y\|^2 + \beta\|w\|_1
       = \max_\lambda \tfrac12\|y\|^2 - \tfrac12\|\lambda - y\|^2
       \quad\text{s.t. } |D^\top\lambda|\le\beta,\ \mathbf 1^\top\lambda = 0

    ``intercept=True`` adds the unpenalised constant b (else the last constraint is absent).
    Returns a :class:`Lasso` whose ``dual_value`` is feasible by construction: it certifies.
    """
    mean = targets.mean() if intercept else 0.0
    columns = dictionary - dictionary.mean(0) if intercept else dictionary
    y = targets - mean
    weights = np.zeros(dictionary.shape[1])
    if np.abs(columns.T @ y).max(initial=0) > beta:
        weights = _refit(columns, y, beta, _project(columns, y, beta))
    offset = mean - (dictionary.mean(0) @ weights if intercept else 0.0)
    residual = y - columns @ weights
    value = residual @ residual / 2 + beta * np.abs(weights).sum()
    point = residual - residual.mean() if intercept else residual
    # The point is orthogonal to constants: centred targets give the same value, and its digits.
    bound = _dual_value(point, y, beta, np.abs(dictionary.T @ point).max(initial=0))
    return Lasso(weights, float(offset), residual, float(value), bound)


def _dual_value(residual, targets, beta, size):
    """Lower bound from a residual: shrunk until its constraint, ``size`` now, is at most beta."""
    point = residual * (min(1.0, beta / size) if size > 0 else 1.0)
    return float(point @ targets - point @ point / 2)


def _project(columns, y, beta):
    """Lasso weights by least distance programming (Lawson & Hanson) on ``G z >= h``, with
    z = (residual - y) / ||y||: one call to non-negative least squares.

    The constraints are scaled to unit length first; without that small ``beta`` breaks the solver.
    """
    scale = np.linalg.norm(y)
    G = np.concatenate([-columns.T, columns.T])
    h = (G @ -y - beta) / scale
    length = np.linalg.norm(np.column_stack([G, h]), axis=1)
    system = np.concatenate([G.T, h[None]]) / length
    u, _ = nnls(system, np.eye(len(system))[-1], maxiter=50 * len(length))
    positive, negative = np.split(u / length, 2)
    return scale * (positive - negative) / (1 - system[-1] @ u)


def _refit(columns, y, beta, weights):
    """Solve the optimality conditions on the support once more; kept if signs and value agree."""
    support = np.flatnonzero(weights)
    signs = np.sign(weights[support])
    Q, R = np.linalg.qr(columns[:, support])
    if R.shape[0] < R.shape[1] or np.abs(np.diag(R)).min() < 1e-12 * np.abs(R).max():
        return weights
    better = np.zeros_like(weights)
    better[support] = np.linalg.solve(R, Q.T @ y - beta * np.linalg.solve(R.T, signs))
    values = [
        ((y - columns @ w) ** 2).sum() / 2 + beta * np.abs(w).sum() for w in (better, weights)
    ]
    return better if (better[support] * signs > 0).all() and values[0] <= values[1] else weights


# --- one input dimension -------------------------------------------------------------------------


@dataclass(frozen=True)
class Spline:
    """``f(x) = offset + sum_i weights[i] (orientation[i] (x - knots[i]))_+`` with its certificate.

    ``value`` is the optimal cost, ``dual_value`` a lower bound on it, certified by ``dual`` (n,);
    ``residual`` = y - f(x).  Both in the order of the data given.
    """

    knots: np.ndarray
    orientation: np.ndarray
    weights: np.ndarray
    offset: float
    residual: np.ndarray
    dual: np.ndarray
    value: float
    dual_value: float

    @property
    def gap(self):
        """Duality gap: how far ``value`` can be from the optimum."""
        return self.value - self.dual_value

    @property
    def norm(self):
        """l1 norm of the weights: half the squared weights of the balanced network."""
        return float(np.abs(self.weights).sum())

    def __call__(self, x):
        x = np.asarray(x, dtype=float)
        ramps = np.maximum(self.orientation * (x[..., None] - self.knots), 0)
        return ramps @ self.weights + self.offset

    def network(self):
        """Balanced two-layer network: ``(input_weight, hidden_bias, output_weight, output_bias)``.

        Neuron i computes ``output_weight[i] (input_weight[i] x + hidden_bias[i])_+``.
        """
        size = np.sqrt(np.abs(self.weights))
        input_weight = self.orientation * size
        return input_weight, -input_weight * self.knots, np.sign(self.weights) * size, self.offset


def with_knots(knots, weights, offset):
    """The function ``offset + sum_i weights[i] (x - knots[i])_+`` as a :class:`Spline` without a
    certificate."""
    none = np.full(0, np.nan)
    knots, weights = (np.asarray(v, dtype=float) for v in (knots, weights))
    return Spline(knots, np.ones(len(knots)), weights, offset, none, none, np.nan, np.nan)


def interpolation_norm(x, y):
    r"""Least ``1/2 ||weights||^2`` of a two-layer ReLU net through the points (claim 6.C16).

    :math:`R^* = \max(T, (T+S)/2)` with T the total change of slope between neighbours and S the
    absolute sum of the first and last slope.  Two points: the absolute slope.  One: 0.
    """
    x, y = _sorted_unique(*_vectors(x, y))
    if len(x) == 1:
        return 0.0
    slopes = np.diff(y) / np.diff(x)
    total, ends = np.abs(np.diff(slopes)).sum(), abs(slopes[0] + slopes[-1])
    return float(max(total, (total + ends) / 2))


def interpolation_spline(x, y):
    """The same minimum as a linear program (HiGHS), with its knots: a :class:`Spline`.

    Raises RuntimeError where HiGHS fails, as it may for spacings below 1e-7 of the range."""
    x, y = _vectors(x, y)
    _sorted_unique(x, y)
    knots, orientation, ramps = _dictionary(x)
    n, m = ramps.shape
    # HiGHS has absolute tolerances: solve for data of unit size.
    middle, height, reach = y.mean(), np.ptp(y) or 1.0, np.ptp(x) or 1.0
    ramps, unit = ramps / reach, (y - middle) / height
    # Variables: positive part, negative part, offset.
    cost = np.concatenate([np.ones(2 * m), [0.0]])
    equations = np.column_stack([ramps, -ramps, np.ones(n)])
    found = linprog(cost, A_eq=equations, b_eq=unit, bounds=[(0, None)] * 2 * m + [(None, None)])
    if found.status != 0:
        raise RuntimeError(f"the interpolation program was not solved: {found.message}")
    weights, offset, dual = found.x[:m] - found.x[m : 2 * m], found.x[-1], found.eqlin.marginals
    residual, slope = height * (unit - ramps @ weights - offset), height / reach
    # Shrink the multipliers into the feasible set, so that the dual value is a true lower bound.
    dual = dual - dual.mean()
    dual = dual / max(1.0, np.abs(ramps.T @ dual).max())
    value, bound = slope * found.fun, slope * float(dual @ unit)
    solved = Lasso(slope * weights, middle + height * offset, residual, value, bound)
    return _spline(knots, orientation, solved, dual / reach)


def fit_spline(x, y, beta):
    """Globally optimal two-layer ReLU fit at weight decay ``beta``: a :class:`Spline` (6.C18).

    Repeated ``x`` with different ``y`` are fine here.  For a few dozen points its ``gap`` is below
    1e-3 of the value down to 1e-6 of :func:`constant_threshold`; a smaller ``beta`` costs digits.
    """
    x, y = _vectors(x, y)
    beta = checks.real("beta", beta, above=0)
    knots, orientation, ramps = _dictionary(x)
    found = lasso(ramps, y, beta, intercept=True)
    return _spline(knots, orientation, found, found.residual)


def constant_threshold(x, y):
    """Smallest ``beta`` at which the optimal 1-D fit is the constant mean (claim 6.C18)."""
    x, y = _vectors(x, y)
    return float(np.abs(_dictionary(x)[2].T @ (y - y.mean())).max())


def deep_spline(x, y, beta, depth):
    r"""Best spline for :math:`\tfrac12\|f-y\|^2+\beta\tfrac L2R(f)^{2/L}` (claim 6.C19).

    Returns a :class:`Spline`; ``value`` is that cost and ``dual_value`` is nan (the problem is not
    convex for ``depth`` >= 3).  The optimum lies on the Lasso path; the path is scanned at 400
    points and refined.  It is the optimal network value only for x >= 0 with a bias in the last
    hidden layer alone: networks with biases everywhere go below it.
    """
    beta, depth = checks.real("beta", beta, above=0), checks.integer("depth", depth, 2)
    x, y = _vectors(x, y)
    highest = max(constant_threshold(x, y), np.finfo(float).tiny)
    constant = fit_spline(x, y, 2 * highest)  # at the threshold itself rounding would decide

    def cost(spline):
        return spline.residual @ spline.residual / 2 + beta * depth / 2 * spline.norm ** (2 / depth)

    def along_path(log_penalty):
        return cost(fit_spline(x, y, float(np.exp(log_penalty))))

    # A stationary point has penalty = beta R^(2/L-1), and R is at most the interpolation norm.
    knots, group = np.unique(x, return_inverse=True)
    largest = interpolation_norm(knots, np.bincount(group, y) / np.bincount(group))
    candidates = [constant]
    if largest > 0 and (lowest := beta * largest ** (2 / depth - 1)) < highest:
        points = np.linspace(np.log(lowest) - 1e-9, np.log(highest), 400)
        costs = np.array([along_path(p) for p in points])
        padded = np.concatenate([[np.inf], costs, [np.inf]])
        for i in np.flatnonzero((costs <= padded[:-2]) & (costs <= padded[2:])):
            bounds = points[max(i - 1, 0)], points[min(i + 1, len(points) - 1)]
            options = {"method": "bounded", "options": {"xatol": 1e-12}}
            best = minimize_scalar(along_path, bounds=bounds, **options)
            candidates += [fit_spline(x, y, float(np.exp(p))) for p in (best.x, points[i])]
    best = min(candidates, key=cost)
    return replace(best, value=float(cost(best)), dual_value=float("nan"))


def _dictionary(x):
    """Knots at the distinct data, both orientations: ``(knots, orientation, ramps (n, 2m))``."""
    points = np.unique(x)
    knots = np.concatenate([points, points])
    orientation = np.repeat([1.0, -1.0], len(points))
    return knots, orientation, np.maximum(orientation * (x[:, None] - knots), 0)


def _spline(knots, orientation, found, dual):
    used = found.weights != 0
    return Spline(
        knots[used], orientation[used], found.weights[used], float(found.offset), found.residual,
        dual, float(found.value), found.dual_value,
    )  # fmt: skip


def _vectors(x, y):
    x, y = (checks.tensor(name, v).detach() for name, v in (("x", x), ("y", y)))
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise checks.InputError(
            "x and y must be vectors of one length with at least one point, got shapes "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    return (checks.finite(n, v.double()).numpy(force=True) for n, v in (("x", x), ("y", y)))


def _sorted_unique(x, y):
    """Points in order; repeated points are merged, contradicting ones refused."""
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    same = np.diff(x) == 0
    clash = np.flatnonzero(same & (np.diff(y) != 0))
    if clash.size:
        raise checks.InputError(
            f"no function passes through two values at x = {x[clash[0]]:g} "
            f"({y[clash[0]]:g} and {y[clash[0] + 1]:g}); use fit_spline(x, y, beta) instead"
        )
    keep = np.concatenate([[True], ~same])
    return x[keep], y[keep]


# --- the plane -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlanarNetwork:
    """Optimal network: unit ``directions`` (m, 2) of the hidden weights, signed ``weights`` (m,).

    Neuron j is balanced: hidden weight ``sqrt|weights_j| directions_j``, output weight
    ``sign(weights_j) sqrt|weights_j|``.  ``residual`` = targets - outputs (n,).
    """

    directions: np.ndarray
    weights: np.ndarray
    residual: np.ndarray
    value: float
    dual_value: float

    @property
    def gap(self):
        """Duality gap of the returned network."""
        return self.value - self.dual_value


ROUNDS = 60  # of adding the ramps that violate the dual constraint


def two_layer_relu(inputs, targets, beta):
    """Global optimum of two-layer scalar ReLU training for planar ``inputs`` (n, 2) (claim 6.C20).

    ``targets`` (n,), ``beta`` > 0.  Returns a :class:`PlanarNetwork`, the one with the smallest
    duality gap met; the search ends when that is below 1e-12 of ``1/2 ||targets||^2``.
    RuntimeError if it stays above a millionth of that scale (near-interpolation of many points).
    """
    X, y = _planar(inputs, targets)
    beta, sectors, scale = checks.real("beta", beta, above=0), _sectors(X), y @ y / 2
    directions, weights, best = np.empty((0, 2)), np.empty(0), None
    for _ in range(ROUNDS):
        residual = y - np.maximum(X @ directions.T, 0) @ weights
        candidates, sizes = _sector_maxima(X, residual, sectors)
        value = residual @ residual / 2 + beta * np.abs(weights).sum()
        bound = _dual_value(residual, y, beta, sizes.max(initial=0))
        network = PlanarNetwork(directions, weights, residual, float(value), bound)
        best = min(best or network, network, key=lambda found: found.gap)
        if best.gap <= 1e-12 * scale:
            break
        directions = np.concatenate([directions, candidates[sizes > beta]])
        fitted = lasso(np.maximum(X @ directions.T, 0), y, beta)
        directions, weights = _merge(directions, fitted.weights, sectors)
    if best.gap > 1e-6 * scale:
        raise RuntimeError(f"duality gap still {best.gap:.1e} after {ROUNDS} rounds; raise beta")
    return best


def largest_activation(inputs, residual):
    """``sup |residual' (inputs u)_+|`` over unit u, exact in the plane; ``residual`` (n,).

    At a global optimum of two-layer training it equals beta, attained by every hidden weight
    (claim 6.C4).
    """
    X, residual = _planar(inputs, residual)
    return float(_sector_maxima(X, residual, _sectors(X))[1].max(initial=0))


def _planar(inputs, targets):
    X = checks.matrix("inputs", inputs, columns=2)
    y = checks.vector("targets", targets, len(X))
    return (v.detach().double().numpy(force=True) for v in (X, y))


def _sectors(X):
    """Sorted angles at which some sample switches on or off; a sector lies between neighbours."""
    X = X[(X != 0).any(1)]
    normal = np.arctan2(X[:, 1], X[:, 0])
    return np.unique(np.mod(np.concatenate([normal + np.pi / 2, normal - np.pi / 2]), 2 * np.pi))


def _sector_maxima(X, residual, sectors):
    """Per sector the unit direction with the largest ``|residual' (X u)_+|``, and that size.

    Inside a sector the map is linear in u, ``M'u``: the candidates are plus and minus M, when they
    lie inside, and the two ends.
    """
    if not sectors.size:
        return np.empty((0, 2)), np.empty(0)
    start, end = sectors, np.append(sectors[1:], sectors[0] + 2 * np.pi)
    active = X @ _unit((start + end) / 2).T > 0
    M = np.einsum("n,ns,nd->sd", residual, active, X)
    angle = np.arctan2(M[:, 1], M[:, 0])
    inside = [start + np.mod(a - start, 2 * np.pi) for a in (angle, angle + np.pi)]
    directions = _unit(np.stack([start, end] + [np.where(a < end, a, start) for a in inside]))
    sizes = np.abs(np.einsum("sd,csd->cs", M, directions))
    best = sizes.argmax(0), np.arange(len(sectors))
    return directions[best], sizes[best]


def _merge(directions, weights, sectors):
    """Neurons of one sign in one sector add up to a single neuron: same outputs, smaller norm."""
    angle = np.mod(np.arctan2(directions[:, 1], directions[:, 0]), 2 * np.pi)
    sector = np.searchsorted(sectors, angle, side="right") % len(sectors)
    group = np.where(weights == 0, 0, np.sign(weights) * (1 + sector))
    merged = np.array(
        [np.abs(weights[group == g]) @ directions[group == g] for g in np.unique(group[group != 0])]
    ).reshape(-1, 2)
    size = np.linalg.norm(merged, axis=1)
    return merged / size[:, None], np.sign(np.unique(group[group != 0])) * size


def _unit(angle):
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)
