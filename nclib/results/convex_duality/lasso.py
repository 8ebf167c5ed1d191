r"""The Lasso to machine precision, as the projection that its dual is.

.. math:: \min_{w,b} \tfrac12\|Dw + b\mathbf 1 - y\|^2 + \beta\|w\|_1
   \;=\; \max_\lambda \tfrac12\|y\|^2 - \tfrac12\|\lambda - y\|^2
   \quad\text{s.t. } |D^\top\lambda|\le\beta,\ \mathbf 1^\top\lambda = 0

The dual point is the projection of y onto a polytope: Lawson and Hanson's *least distance
programming*, one call to scipy's non-negative least squares.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True)
class Lasso:
    """A solved Lasso: weights, offset, the residual ``y - fit``, primal and dual value."""

    weights: np.ndarray
    offset: float
    residual: np.ndarray
    value: float
    dual_value: float

    @property
    def gap(self):
        return self.value - self.dual_value


def lasso(dictionary, targets, beta, *, intercept=False):
    """Solve the Lasso for ``dictionary`` (n, m) and ``targets`` (n,), numpy float64.

    ``intercept=True`` adds an unpenalised constant.  Returns a :class:`Lasso` whose ``dual_value``
    is feasible by construction, so its ``gap`` certifies the solution.
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
    return Lasso(
        weights,
        float(offset),
        residual,
        float(value),
        dual_value(dictionary, residual, targets, beta, intercept=intercept),
    )


def dual_value(dictionary, residual, targets, beta, *, intercept=False):
    """Lower bound from any residual: centred, shrunk until it is feasible, put into the dual."""
    residual = residual - residual.mean() if intercept else residual
    worst = np.abs(dictionary.T @ residual).max(initial=0)
    point = residual * min(1.0, beta / worst) if worst > 0 else residual
    return float(point @ targets - point @ point / 2)


def _project(columns, y, beta):
    """Lasso weights by least distance programming on ``G z >= h``, z = (residual - y) / ||y||.

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
    value = lambda w: ((y - columns @ w) ** 2).sum() / 2 + beta * np.abs(w).sum()  # noqa: E731
    return (
        better
        if (better[support] * signs > 0).all() and value(better) <= value(weights)
        else weights
    )
