r"""Two-layer ReLU training on planar data, solved exactly (paper 6, claims 6.C4 and 6.C20).

.. math:: \min \tfrac12\|\sum_j (Xw_j)_+ v_j - y\|^2 + \tfrac\beta2\sum_j(\|w_j\|^2+v_j^2)
   \;=\; \min_{\mu} \tfrac12\Big\|\int (Xu)_+\,d\mu(u) - y\Big\|^2 + \beta\|\mu\|

The right side is a Lasso over all directions u of the circle, convex, with dual constraint
:math:`\max_{\|u\|\le 1} |\lambda^\top (Xu)_+| \le \beta`.  Between two consecutive activation
boundaries the constraint is one sinusoid, so its maximum is exact; directions that violate it
enter the Lasso until none is left.  Same optimum as the paper's finite program over activation
patterns (cones with a group norm), without a cone solver.
"""

from dataclasses import dataclass

import numpy as np

from nclib import checks
from nclib.results.convex_duality import lasso as solver


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


def two_layer_relu(inputs, targets, beta, *, tolerance=1e-12, max_rounds=60):
    """Global optimum of two-layer scalar ReLU training for planar ``inputs`` (n, 2) (claim 6.C20).

    ``targets`` (n,), ``beta`` > 0.  Returns a :class:`PlanarNetwork`, the one with the smallest
    duality gap met; the search ends when that is below ``tolerance * 1/2 ||targets||^2``.
    RuntimeError if it stays above a millionth of that scale (near-interpolation of many points).
    """
    X, Y = _data(inputs, targets)
    if Y.shape[1] != 1:
        raise checks.InputError(
            f"targets must be one column, got {Y.shape[1]}; for several outputs only the lower "
            "bound relu_dual_bound is available"
        )
    y, beta = Y[:, 0], checks.real("beta", beta, above=0)
    sectors, scale = _sectors(X), y @ y / 2
    directions, weights, best = np.empty((0, 2)), np.empty(0), None
    for _ in range(max_rounds):
        residual = y - np.maximum(X @ directions.T, 0) @ weights
        candidates, sizes = _sector_maxima(X, residual[:, None], sectors)
        value = residual @ residual / 2 + beta * np.abs(weights).sum()
        bound = _dual_value(residual, y, beta, sizes.max(initial=0))
        network = PlanarNetwork(directions, weights, residual, float(value), bound)
        best = min(best or network, network, key=lambda found: found.gap)
        if best.gap <= tolerance * scale:
            break
        directions = np.concatenate([directions, candidates[sizes > beta]])
        fitted = solver.lasso(np.maximum(X @ directions.T, 0), y, beta)
        directions, weights = _merge(directions, fitted.weights, sectors)
    if best.gap > 1e-6 * scale:
        raise RuntimeError(
            f"duality gap still {best.gap:.1e} after {max_rounds} rounds; raise beta or max_rounds"
        )
    return best


def largest_activation(inputs, residual):
    """``(sup, direction)``: sup over unit u of ``||residual' (inputs u)_+||``, exact in the plane.

    At a global optimum of two-layer training it equals beta, attained by every hidden weight
    (claim 6.C4).  ``residual`` (n,) or (n, K).
    """
    X, E = _data(inputs, residual, name="residual")
    directions, sizes = _sector_maxima(X, E, _sectors(X))
    if not sizes.size:
        return 0.0, np.array([1.0, 0.0])
    return float(sizes.max()), directions[sizes.argmax()]


def relu_dual_bound(inputs, residual, targets, beta):
    """Lower bound on two-layer ReLU training from the residual of any network on planar data.

    ``residual`` = targets - outputs, (n,) or (n, K), any K (section 3.8).
    """
    _, E = _data(inputs, residual, name="residual")
    _, Y = _data(inputs, targets)
    if E.shape != Y.shape:
        raise checks.InputError(f"residual {E.shape} and targets {Y.shape} must have one shape")
    beta = checks.real("beta", beta, above=0)
    return _dual_value(E.ravel(), Y.ravel(), beta, largest_activation(inputs, residual)[0])


def _dual_value(residual, targets, beta, size):
    point = residual * (min(1.0, beta / size) if size > 0 else 1.0)
    return float(point @ targets - point @ point / 2)


def _sectors(X):
    """Sorted angles at which some sample switches on or off; a sector lies between neighbours."""
    X = X[(X != 0).any(1)]
    normal = np.arctan2(X[:, 1], X[:, 0])
    return np.unique(np.mod(np.concatenate([normal + np.pi / 2, normal - np.pi / 2]), 2 * np.pi))


def _sector_maxima(X, E, sectors):
    """Per sector the unit direction with the largest ``||E' (X u)_+||``, and that size.

    Inside a sector the map is linear in u, ``M u``: the candidates are plus and minus its leading
    singular direction, when they lie inside, and the two ends.
    """
    if not sectors.size:
        return np.empty((0, 2)), np.empty(0)
    start, end = sectors, np.append(sectors[1:], sectors[0] + 2 * np.pi)
    active = X @ _unit((start + end) / 2).T > 0
    M = np.einsum("nk,ns,nd->skd", E, active, X)
    leading = np.linalg.svd(M)[2][:, 0]
    angle = np.arctan2(leading[:, 1], leading[:, 0])
    inside = [start + np.mod(a - start, 2 * np.pi) for a in (angle, angle + np.pi)]
    angles = np.stack([start, end] + [np.where(a < end, a, start) for a in inside])
    directions = _unit(angles)
    sizes = np.linalg.norm(np.einsum("skd,csd->csk", M, directions), axis=2)
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


def _data(inputs, targets, name="targets"):
    X = checks.matrix("inputs", inputs, columns=2)
    targets = checks.matrix(name, _as_columns(name, targets), rows=len(X))
    return (v.detach().cpu().double().numpy() for v in (X, targets))


def _as_columns(name, values):
    values = checks.tensor(name, values)
    return values[:, None] if values.ndim == 1 else values
