"""Exact and certified one-vs-rest margins of a classifier with unit rows.

``dist_k = dist(w_k, conv{w_j : j != k})`` is the largest margin any unit feature of class k can
have, ``dist_k = max_{|h|=1} min_j <w_k - w_j, h>`` (spec 3.1, claim 4.G2); the margin of the whole
classifier is ``rho(W) = min_k dist_k``.  Every number here is bracketed: a convex combination of
the other rows bounds the distance from above, a unit feature bounds it from below, whatever solver
produced them.  Rows are normalised first; rounding errors are inside the bracket.

Nothing of size K x K x d, nor K x K, is ever built: :func:`margin` walks over tiles of rows.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from nclib import checks

TILE_ENTRIES = 2**20  # logits held at a time: 8 MiB in float64, about a cache
_FEW = 128  # up to so many classes all are solved exactly: passes over them would cost as much
_MIX = 0.15  # how far a soft pass moves the features
_EPS = np.finfo(np.float64).eps


@dataclass(frozen=True)
class OneVsRest:
    """Bracketed distances of some rows to the convex hull of all others.

    ``classes`` (C,) int64; ``lower, upper`` (C,); ``nearest`` (C, d) the projections ``p_k``;
    ``direction`` (C, d) the optimal features ``u_k = (w_k - p_k) / dist_k`` (NaN for duplicates,
    which have none).
    """

    classes: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    nearest: torch.Tensor
    direction: torch.Tensor

    @property
    def distance(self):
        """Midpoint of the bracket, (C,)."""
        return (self.lower + self.upper) / 2

    @property
    def duplicates(self):
        """The classes whose row occurs twice (distance 0, no optimal feature)."""
        return self.classes[self.direction.isnan().any(1)].tolist()


@dataclass(frozen=True)
class MarginBracket:
    """``lower <= rho(W) <= upper``, the class that attains ``upper``, and how many were solved."""

    lower: float
    upper: float
    worst_class: int
    solved: int

    @property
    def value(self):
        """Midpoint of the bracket."""
        return (self.lower + self.upper) / 2


def unit_rows(name, weight, *, minimum_rows=2):
    """``weight`` as float64 unit rows ``(K, d)``; zero rows are refused by number."""
    weight = checks.matrix(name, weight, dtype=torch.float64).detach()
    if weight.shape[0] < minimum_rows or weight.shape[1] < 1:
        raise checks.InputError(
            f"{name} needs at least {minimum_rows} rows and 1 column, got {tuple(weight.shape)}"
        )
    largest = weight.abs().amax(dim=1, keepdim=True)  # dividing by it first avoids underflow
    zero = (largest[:, 0] == 0).nonzero().flatten().tolist()
    if zero:
        raise checks.InputError(
            f"{name} has {len(zero)} zero rows ({_some(zero)}), which have no direction; "
            "drop those rows and relabel"
        )
    return torch.nn.functional.normalize(weight / largest, dim=1)


def one_vs_rest(weight, *, tol=1e-9):
    """Certified distances of each row to the convex hull of the others, spec 3.1.

    ``weight`` (K, d), any float type.  Returns float64 ``(K, 2)``: lower and upper bound, ``upper -
    lower <= tol``, rounding included.  Duplicate rows have distance 0 and cause a warning that
    names them; half precision is upcast with a warning, because it moves the rows by up to 1e-2.
    """
    kind = str(getattr(weight, "dtype", ""))
    if kind.endswith("float16"):
        warnings.warn(
            f"weight is {kind}: upcast to float64, but its rows were rounded to half precision; "
            "pass the float32 weights",
            stacklevel=2,
        )
    found = hull_projections(weight, tol=tol)
    if found.duplicates:
        warnings.warn(
            f"weight has duplicate rows (classes {_some(found.duplicates)}): their margin is 0",
            stacklevel=2,
        )
    return torch.stack([found.lower, found.upper], 1)


def optimal_features(weight):
    """The HardMax features ``u_k`` (K, d) of a fixed classifier (claim 4.G4), unit rows.

    Duplicate rows have none and are refused with their numbers.
    """
    found = hull_projections(weight)
    if found.duplicates:
        raise checks.InputError(
            f"classes {_some(found.duplicates)} have duplicate rows: their margin is 0 and no "
            "optimal feature exists; merge those classes or drop the duplicates"
        )
    return found.direction


def rattlers(weight):
    """Classes with ``dist_k > rho + 1e-8`` (claim 4.G5), ascending list."""
    distance = hull_projections(weight).distance
    return (distance > distance.min() + 1e-8).nonzero().flatten().tolist()


def hard_margin(weight, features, labels=None):
    """``m(W, H) = min_i min_{j != y_i} <w_{y_i} - w_j, h_i>``, the negative HardMax loss.

    ``features`` (N, d) with ``labels`` (N,); without labels row k belongs to class k.  Both are
    row-normalised first.  Never exceeds ``rho(W)`` (4.G2).
    """
    weight = unit_rows("weight", weight)
    features = unit_rows("features", features, minimum_rows=1)
    if features.shape[1] != weight.shape[1]:
        raise checks.InputError(
            f"features have {features.shape[1]} columns but weight has {weight.shape[1]}"
        )
    labels = torch.arange(len(weight)) if labels is None else labels
    labels, _ = checks.labels(labels, len(weight), length=len(features))
    weight, labels = weight.to(features.device), labels.to(features.device)
    return min(
        float((own - rival).min()) for own, rival in _own_and_rival(weight, features, labels)
    )


def max_cosine(weight):
    """Largest cosine between two rows, ``cos theta`` of the Tammes problem."""
    weight = unit_rows("weight", weight)
    labels = torch.arange(len(weight))
    largest = max(float(rival.max()) for _, rival in _own_and_rival(weight, weight, labels))
    return min(1.0, max(-1.0, largest))


def min_angle(weight):
    """Smallest angle between two rows in radians, accurate also for nearly equal rows."""
    weight = unit_rows("weight", weight)
    smallest = torch.tensor(torch.inf, dtype=torch.float64)
    for rows in torch.arange(len(weight)).split(_tile_rows(len(weight))):
        cosines = weight[rows] @ weight.T
        cosines[torch.arange(len(rows)), rows] = -2
        nearest, place = cosines.max(1)
        half = torch.linalg.vector_norm(weight[rows] - weight[place], dim=1) / 2
        for i in (nearest > 1 - 1e-12).nonzero().flatten().tolist():  # which one, no cosine says
            norms = torch.linalg.vector_norm(weight - weight[rows[i]], dim=1)
            norms[rows[i]] = 2.0
            half[i] = norms.min() / 2
        smallest = torch.minimum(smallest, 2 * half.clamp(max=1).asin().min())
    return float(smallest)


def hull_projections(weight, *, tol=1e-9, classes=None):
    """:class:`OneVsRest` of all rows, or of those listed in ``classes``.

    Active-set quadratic programmes on the nearest rows, checked against all rows and extended by
    the violators.  The fast solver (scipy's nnls) is only a proposal: whatever fails its bracket is
    solved again by Wolfe's min-norm-point algorithm.
    """
    tol = checks.real("tol", tol, at_least=1e-12)
    rows = unit_rows("weight", weight).cpu().numpy()
    classes, _ = checks.labels(
        torch.arange(len(rows)) if classes is None else classes, len(rows), name="classes"
    )
    results = [_project_row(rows, int(k), tol) for k in classes.tolist()]
    lower, upper, nearest, direction = (
        torch.from_numpy(np.stack(r)) for r in zip(*results, strict=True)
    )
    return OneVsRest(classes.cpu(), lower, upper, nearest, direction)


def margin(weight, *, tol=1e-9, max_solves=None):
    """Certified :class:`MarginBracket` of ``rho(W) = min_k dist_k``, in tiles.

    Passes of soft features (spec 3.2, temperature falling from .04 to .002) bracket every class at
    the cost of two matrix products each; after each pass the most promising class is solved
    exactly and those that cannot be the minimum drop out; what remains is solved exactly.  Stops
    as soon as ``upper - lower <= tol``, or after ``max_solves`` exact solutions with the bracket
    reached by then.  Few classes are all solved exactly, without passes.
    """
    tol = checks.real("tol", tol, at_least=1e-12)
    limit = np.inf if max_solves is None else checks.integer("max_solves", max_solves, 0)
    weight = unit_rows("weight", weight)
    rows, features, K = weight.cpu().numpy(), weight.clone(), len(weight)
    if min(_FEW, limit) >= K:
        lower, upper = np.array([_project_row(rows, k, tol)[:2] for k in range(K)]).T
        worst = int(upper.argmin())
        return MarginBracket(float(lower.min()), float(upper[worst]), worst, K)
    lower, upper = torch.zeros(K, dtype=torch.float64), torch.full((K,), 2.0, dtype=torch.float64)
    alive, solved = torch.arange(K), 0
    temperatures = iter(np.geomspace(0.04, 0.002, 40))
    while len(alive) and upper.min() - lower.min() > tol:
        temperature = next(temperatures, None)
        if temperature is not None:
            _soft_pass(weight, features, alive, temperature, lower, upper)
        elif solved >= limit:
            break
        if solved < limit:
            k = int(alive[lower[alive].argmin()])
            lower[k], upper[k] = (float(b) for b in _project_row(rows, k, tol)[:2])
            solved += 1
        alive = alive[lower[alive] < upper.min() - tol]
    worst = int(upper.argmin())
    return MarginBracket(float(lower.min()), float(upper[worst]), worst, solved)


def _soft_pass(weight, features, classes, temperature, lower, upper):
    """Tighten ``lower, upper`` (K,) in place and move ``features`` one damped fixed-point step."""
    pad = _rounding(weight.shape[1])
    for rows in classes.split(_tile_rows(len(weight))):
        h, at = features[rows], (torch.arange(len(rows)), rows)
        logits = h @ weight.T
        target = logits[at].clone()
        logits[at] = -torch.inf
        low = target - logits.amax(1) - pad
        residual = weight[rows] - torch.softmax(logits / temperature, 1) @ weight
        norm = torch.linalg.vector_norm(residual, dim=1)
        lower[rows] = torch.maximum(lower[rows], low.cpu())
        upper[rows] = torch.minimum(upper[rows], (norm + pad).cpu())
        step = residual / norm.clamp(min=1e-300)[:, None]
        features[rows] = torch.nn.functional.normalize((1 - _MIX) * h + _MIX * step, dim=1)


def _project_row(rows, k, tol):
    """``(lower, upper, p_k, u_k)`` of row k; raises when float64 cannot reach ``tol``."""
    K, d = rows.shape
    pad = _rounding(d)
    target = rows[k]
    closeness = rows @ target - (rows * rows).sum(1) / 2  # order of Euclidean closeness
    closeness[k] = -np.inf
    working = _largest(closeness, min(K - 1, max(d, 32)))
    if np.linalg.norm(rows[working] - target, axis=1).min() <= 16 * _EPS * np.linalg.norm(target):
        return np.float64(0), np.float64(pad), target, np.full(d, np.nan)
    best = None
    for _ in range(60):
        for solver in (_by_nnls, _by_wolfe):
            found = solver(target - rows[working], 0.1 * tol)
            if found is None:
                continue
            support, alpha, h = found
            away = alpha @ (target - rows[working[support]])
            upper = np.linalg.norm(away)
            margins = target @ h - rows @ h
            margins[k] = np.inf
            best = _tighter(best, margins.min(), upper, target - away, h)
            known = best[1] - best[0] + 2 * pad <= tol and best[0] > pad  # and a direction with it
            if known or margins[working].min() >= upper - 0.1 * tol:
                break
        if best[1] - best[0] + 2 * pad <= tol:
            break
        violators = np.setdiff1d(np.flatnonzero(margins < margins[working].min()), working)
        if not len(violators):
            break
        worst = violators[_largest(-margins[violators], min(len(violators), max(d, 32)))]
        working = (
            np.union1d(working[support], worst)
            if len(working) > 4 * d
            else np.union1d(working, worst)
        )
    low, high, nearest, direction = best
    low, high = max(low - pad, 0.0), high + pad
    direction = direction if low > 0 else np.full(d, np.nan)
    if high - low > tol:
        raise checks.InputError(
            f"the distance of class {k} is only known to lie in [{low:.3e}, {high:.3e}], wider "
            f"than tol={tol:g}: float64 cannot do better for these rows; pass a larger tol"
        )
    return np.float64(low), np.float64(high), nearest, direction


def _tighter(best, lower, upper, nearest, direction):
    """Combine two brackets of the same distance, keeping the better certificate of each side."""
    if best is None:
        return lower, upper, nearest, direction
    if lower <= best[0]:
        lower, direction = best[0], best[3]
    if upper >= best[1]:
        upper, nearest = best[1], best[2]
    return lower, upper, nearest, direction


def _by_nnls(vectors, tol):
    """Min-norm point of conv(rows of ``vectors``): min |V'x|^2 + (sum x - 1)^2 over x >= 0."""
    from scipy.optimize import nnls  # not for measuring a model

    system = np.vstack([vectors.T, np.ones(len(vectors))])
    try:
        x, _ = nnls(system, np.append(np.zeros(vectors.shape[1]), 1.0))
    except RuntimeError:  # its iteration limit
        return None
    support = np.flatnonzero(x)
    if not len(support):
        return None
    alpha = x[support] / x[support].sum()
    away = alpha @ vectors[support]
    norm = np.linalg.norm(away)
    return (support, alpha, away / norm) if norm > 0 else (support, alpha, away)


def _by_wolfe(vectors, tol):
    """The same by Wolfe's algorithm: an affinely independent corral, grown and shrunk."""
    support = [int((vectors**2).sum(1).argmin())]
    alpha = np.ones(1)
    _, h, norm = _affine_minimum(vectors[support])
    for _ in range(20 * (vectors.shape[1] + len(vectors))):
        heights = vectors @ h
        entering = int(heights.argmin())
        if norm == 0 or norm - heights[entering] <= tol or entering in support:
            break
        support, alpha = [*support, entering], np.append(alpha, 0.0)
        while True:
            affine, h, norm = _affine_minimum(vectors[support])
            if (affine > 0).all():
                alpha = affine
                break
            leaving = affine <= 0
            step = (alpha[leaving] / (alpha[leaving] - affine[leaving])).min()
            alpha = (1 - step) * alpha + step * affine
            keep = alpha > 1e-15
            keep[np.flatnonzero(leaving)[(alpha[leaving]).argmin()]] = False
            support, alpha = [s for s, kept in zip(support, keep, strict=True) if kept], alpha[keep]
            alpha = alpha / alpha.sum()
    return np.array(support), alpha, h


def _affine_minimum(vectors):
    """``(weights, unit normal, distance)`` of the affine hull of affinely independent rows.

    The normal is orthogonalised twice, so it stays right when the distance is tiny.
    """
    first, edges = vectors[0], vectors[1:] - vectors[0]
    basis, triangle = np.linalg.qr(edges.T)
    weights = -np.linalg.lstsq(triangle, basis.T @ first)[0]
    h = first - basis @ (basis.T @ first)
    norm = np.linalg.norm(h)
    if norm > 0:
        h = h / norm
        h = h - basis @ (basis.T @ h)
        h = h / np.linalg.norm(h)
    return np.append(1 - weights.sum(), weights), h, abs(float(h @ first))


def _own_and_rival(weight, features, labels):
    """Tiles of ``(<w_y, h>, max_{j != y} <w_j, h>)``."""
    for rows in torch.arange(len(features)).split(_tile_rows(len(weight))):
        logits = features[rows] @ weight.T
        at = (torch.arange(len(rows)), labels[rows])
        own = logits[at].clone()
        logits[at] = -torch.inf
        yield own, logits.amax(1)


def _tile_rows(K):
    return max(32, TILE_ENTRIES // K)  # rows enough for a fast product


def _rounding(d):
    """Bound on the rounding error of a difference of two dot products of unit vectors."""
    return (d + 4) * _EPS


def _largest(values, count):
    return np.argpartition(-values, count - 1)[:count]


def _some(numbers):
    return ", ".join(map(str, numbers[:8])) + ("…" if len(numbers) > 8 else "")
