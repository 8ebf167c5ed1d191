r"""One-dimensional ReLU networks with weight decay are linear splines (claims 6.C16-6.C19).

Two layers, hidden and output biases unpenalised.  A neuron :math:`v\,(wx+b)_+` costs
:math:`|wv|` once its weights are balanced, and its only other parameter is the knot
:math:`-b/w`.  The dual constraint is piecewise linear in the knot, so knots at the data suffice and
training is a finite Lasso.  Inputs are tensors, arrays or lists; the work is numpy float64.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linprog, minimize_scalar

from nclib import checks
from nclib.results.convex_duality import lasso as solver


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


def interpolation_norm(x, y):
    r"""Least ``1/2 ||weights||^2`` of a two-layer ReLU net through the points (claim 6.C16).

    :math:`R^* = \max(T, (T+S)/2)` with T the total change of slope between neighbours and S the
    absolute sum of the first and last slope.  Two points: the absolute slope.  One: 0.
    """
    x, y = _sorted_unique(*_data(x, y))
    if len(x) == 1:
        return 0.0
    slopes = np.diff(y) / np.diff(x)
    total, ends = np.abs(np.diff(slopes)).sum(), abs(slopes[0] + slopes[-1])
    return float(max(total, (total + ends) / 2))


def interpolation_spline(x, y):
    """The same minimum as a linear program (HiGHS), with its knots: a :class:`Spline`."""
    x, y = _data(x, y)
    _sorted_unique(x, y)
    knots, orientation, ramps = _dictionary(x)
    n, m = ramps.shape
    # Variables: positive part, negative part, offset.
    cost = np.concatenate([np.ones(2 * m), [0.0]])
    equations = np.column_stack([ramps, -ramps, np.ones(n)])
    found = linprog(cost, A_eq=equations, b_eq=y, bounds=[(0, None)] * 2 * m + [(None, None)])
    if found.status != 0:
        raise RuntimeError(f"the interpolation program was not solved: {found.message}")
    weights, multipliers = found.x[:m] - found.x[m : 2 * m], found.eqlin.marginals
    # Shrink the multipliers into the feasible set, so that the dual value is a true lower bound.
    multipliers = multipliers - multipliers.mean()
    multipliers = multipliers / max(1.0, np.abs(ramps.T @ multipliers).max())
    fit = ramps @ weights + found.x[-1]
    bound = float(multipliers @ y)
    return _spline(knots, orientation, weights, found.x[-1], y - fit, multipliers, found.fun, bound)


def fit_spline(x, y, beta):
    """Globally optimal two-layer ReLU fit at weight decay ``beta``: a :class:`Spline` (6.C18).

    Repeated ``x`` with different ``y`` are fine here.  Its ``gap`` is at rounding level.
    """
    x, y = _data(x, y)
    beta = checks.real("beta", beta, above=0)
    knots, orientation, ramps = _dictionary(x)
    found = solver.lasso(ramps, y, beta, intercept=True)
    return _spline(
        knots,
        orientation,
        found.weights,
        found.offset,
        found.residual,
        found.residual,
        found.value,
        found.dual_value,
    )


def lasso_1d(x, y, beta):
    """Optimal value ``1/2 ||f(x) - y||^2 + beta/2 ||weights||^2`` of a 1-D net (claim 6.C18)."""
    return fit_spline(x, y, beta).value


def constant_threshold(x, y):
    """Smallest ``beta`` at which the optimal 1-D fit is the constant mean (claim 6.C18)."""
    x, y = _data(x, y)
    return float(np.abs(_dictionary(x)[2].T @ (y - y.mean())).max())


def spline_dual_bound(x, residual, targets, beta):
    """Lower bound on :func:`lasso_1d` from any 1-D network's ``targets - outputs``."""
    x, y = _data(x, targets)
    _, residual = _data(x, residual, name="residual")
    beta = checks.real("beta", beta, above=0)
    return solver.dual_value(_dictionary(x)[2], residual, y, beta, intercept=True)


def deep_spline(x, y, beta, depth, *, grid=400):
    r"""Best spline for :math:`\tfrac12\|f-y\|^2+\beta\tfrac L2R(f)^{2/L}` (claim 6.C19).

    Returns a :class:`Spline`; ``value`` is that cost and ``dual_value`` is nan (the problem is not
    convex for ``depth`` >= 3).  The optimum lies on the Lasso path; the path is scanned at ``grid``
    points and refined.  It is the optimal network value only for x >= 0 with a bias in the last
    hidden layer alone: networks with biases everywhere go below it.
    """
    beta, depth = checks.real("beta", beta, above=0), checks.integer("depth", depth, 2)
    x, y = _data(x, y)
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
        points = np.linspace(np.log(lowest) - 1e-9, np.log(highest), grid)
        costs = np.array([along_path(p) for p in points])
        padded = np.concatenate([[np.inf], costs, [np.inf]])
        for i in np.flatnonzero((costs <= padded[:-2]) & (costs <= padded[2:])):
            bounds = points[max(i - 1, 0)], points[min(i + 1, grid - 1)]
            best = minimize_scalar(
                along_path, bounds=bounds, method="bounded", options={"xatol": 1e-12}
            )
            candidates += [fit_spline(x, y, float(np.exp(p))) for p in (best.x, points[i])]
    best = min(candidates, key=cost)
    return replace(best, value=float(cost(best)), dual_value=float("nan"))


def _dictionary(x):
    """Knots at the distinct data, both orientations: ``(knots, orientation, ramps (n, 2m))``."""
    points = np.unique(x)
    knots = np.concatenate([points, points])
    orientation = np.repeat([1.0, -1.0], len(points))
    return knots, orientation, np.maximum(orientation * (x[:, None] - knots), 0)


def _spline(knots, orientation, weights, offset, residual, dual, value, dual_value):
    used = weights != 0
    return Spline(
        knots[used],
        orientation[used],
        weights[used],
        float(offset),
        residual,
        dual,
        float(value),
        dual_value,
    )


def _data(x, y, name="y"):
    x, y = (np.asarray(v.detach().cpu() if hasattr(v, "detach") else v) for v in (x, y))
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise checks.InputError(
            f"x and {name} must be vectors of one length with at least one point, "
            f"got shapes {x.shape} and {y.shape}"
        )
    x, y = x.astype(float), y.astype(float)
    for label, values in (("x", x), (name, y)):
        if not np.isfinite(values).all():
            raise checks.InputError(f"{label} has NaN or infinite entries; drop those points")
    return x, y


def _sorted_unique(x, y):
    """Points in order; repeated points are merged, contradicting ones refused."""
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    same = np.diff(x) == 0
    clash = np.flatnonzero(same & (np.diff(y) != 0))
    if clash.size:
        raise checks.InputError(
            f"no function passes through two values at x = {x[clash[0]]:g} "
            f"({y[clash[0]]:g} and {y[clash[0] + 1]:g}); use lasso_1d(x, y, beta) instead"
        )
    keep = np.concatenate([[True], ~same])
    return x[keep], y[keep]
