"""Search for softmax codes: many random starts on one tensor, then a certified polish.

The margin ``rho(W) = min_k dist_k`` is not smooth and its landscape is full of local optima, so two
smooth energies are run from many starts at once and cooled:

* ``"pair"``: ``T log sum_{k != j} exp(<w_k, w_j> / T)`` over W, which ends at a Tammes code;
* ``"margin"``: ``T log sum_{k, j} exp(<w_j - w_k, h_k> / T)`` over W and H, cold cross-entropy;

each both slowly from a high temperature ("slow") and straight from a low one ("quench").  No
single stream finds every optimum: slow cooling finds (14, 4) or (15, 4) from most starts but never
(13, 3) or (13, 5), where a hot minimiser of another shape catches it (claim 4.G12), and quenching
does.  The best candidates are polished by linear programmes to about 1e-12, and the winner is the
one with the largest *certified* margin.
"""

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_array

from nclib import checks, frames
from nclib.metrics import known_margins, margins
from nclib.results.large_class import codes

ENERGIES = ("pair", "margin")
SCHEDULES = {"slow": {"hot": 0.3, "rate": 0.1}, "quench": {"hot": 0.02, "rate": 0.05}}
POLISH_SIZE = 150  # largest K d that is polished: the linear programmes grow fast
LOGITS = 2**24  # K x K logits that are held at once
CONSTRUCT_SIZE = 500_000  # above this K d, a Gold code is taken without any search


def solve(K, d, *, seed=0, starts=None):
    """Unit rows ``(K, d)``, float64: the best softmax code known or found.

    ``starts``: random starts in each stream (default 64 for small codes, fewer as K d grows).
    Proven optima and explicitly known codes are returned without search, rows of a larger one where
    the search stays below its margin.  With the defaults every
    tabulated optimum is reached to 1e-9, except (21, 3), whose dozens of local
    optima within 1e-5 of each other hide the best one from most seeds: there to 1e-5.
    """
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    checks.integer("seed", seed, 0)
    if starts is not None:
        checks.integer("starts", starts)
    explicit = construction(K, d)
    if explicit is not None:
        return explicit
    gold = codes.gold_code(K, d) if known_margins.gold_margin(K, d) else None
    if gold is not None and K * d > CONSTRUCT_SIZE and starts is None:
        return gold
    found = best(search(K, d, seed=seed, starts=starts))
    found = found if gold is None else max(found, gold, key=_certified)
    larger = _rows_of_larger(K, d, above=_certified(found))
    return found if larger is None else larger


def _rows_of_larger(K, d, *, above):
    """``K`` rows of the best explicit code of more classes or fewer dimensions, whose margin they
    have at least; None if none is known with a margin ``above`` that."""
    known = known_margins.TABLE | known_margins.LOWER_BOUNDS
    larger = [size for size in known if size[0] >= K and size[1] <= d and known[size] > above]
    for size in sorted(larger, key=known.get, reverse=True):
        if (code := construction(*size)) is not None:
            return torch.nn.functional.pad(code[:K], (0, d - size[1]))
    return None


def best(candidates):
    """The one with the largest certified margin; small codes are polished.

    A few linear programmes tell the local optima apart, and only the best two get all of them.
    """
    if candidates[0].numel() <= POLISH_SIZE:
        rough = sorted((polish(c, steps=8, trust=0.01) for c in candidates), key=_certified)
        candidates = [polish(c, trust=1e-3) for c in rough[-2:]]
    return max(candidates, key=_certified)


def _certified(code):
    return margins.margin(code, tol=1e-10).value


def construction(K, d):
    """A code whose margin is proven, tabulated or a known bound, without search; else None."""
    if d >= K - 1:
        return frames.simplex_etf(K, d)
    _require_room(K, d)
    if d == 2:
        return frames.polygon(K)
    if 2 * d >= K:
        return frames.cross_polytope(d, K)
    if (K, d) in ((14, 5), (15, 5)):
        return codes.half_cube()[:K]
    sharp = frames.icosahedron()[:K] if (K, d) == (11, 3) else codes.sharp_code(K, d)
    return codes.good_code(K, d) if sharp is None else sharp


def _require_room(K, d):
    text = f"K={K} distinct classes do not fit on a line (d=1); use d >= 2"
    checks.require(d > 1 or K == 2, text)


def search(K, d, *, seed=0, starts=None, steps=None, energies=ENERGIES, keep=6):
    """The ``keep`` best distinct codes of all streams, best first: a list of unit rows ``(K, d)``.

    All starts of a stream are one tensor ``(starts, K, d)``.  Not polished.
    """
    K, d = checks.integer("K", K, 2), checks.integer("d", d)
    _require_room(K, d)
    starts = _default(starts, "starts", 2e5 / K**2 if K > 50 else 64, 1, 64)
    steps = _default(steps, "steps", 1e12 / (starts * K**2 * (d + 20)), 300, 1000)
    if K * K > LOGITS:  # only the pair energy works in tiles, one start at a time
        energies, starts = ("pair",), 1
    # Quenching pays off only where a polish can repair what it leaves unfinished.
    schedules = SCHEDULES if K * d <= POLISH_SIZE else {"slow": SCHEDULES["slow"]}
    hot, rate = (
        torch.tensor([schedule[name] for schedule in schedules.values()]).repeat_interleave(starts)
        for name in ("hot", "rate")
    )
    generator = torch.Generator().manual_seed(checks.integer("seed", seed, 0))
    pool, estimates = [], []
    for energy in energies:
        start = torch.randn(len(hot), K, d, generator=generator, dtype=torch.float64)
        weight, estimate = descend(energy, start, steps=steps, hot=hot, rate=rate)
        pool.append(weight)
        estimates.append(estimate)
    pool, estimates = torch.cat(pool), torch.cat(estimates)
    kept = []
    for i in estimates.argsort(descending=True).tolist():
        # Runs that reach the same optimum differ by less than this before the polish.
        if len(kept) < keep and all(abs(estimates[i] - estimates[j]) > 2e-5 for j in kept):
            kept.append(i)
    return [pool[i].clone() for i in kept]


def _default(value, name, wanted, low, high):
    return int(np.clip(wanted, low, high)) if value is None else checks.integer(name, value)


def descend(energy, start, *, steps=1000, hot=0.3, cold=5e-4, rate=0.1):
    """Cool the starts ``(S, K, d)``; returns ``(weight (S, K, d), margin estimates (S,))``.

    Riemannian Adam with geometric cooling from ``hot`` to ``cold`` at learning ``rate`` (numbers,
    or one of each per start); the gradients are closed forms, so nothing larger than the S x K x K
    logits is stored, and of a single large code only tiles of them.
    """
    checks.choice("energy", energy, ENERGIES)
    W = torch.nn.functional.normalize(start, dim=-1)
    point = (W,) if energy == "pair" else (W, W.clone())
    gradient = _pair_gradient if energy == "pair" else _margin_gradient
    moments = [torch.zeros_like(p) for p in point]
    scales = [torch.zeros_like(p[..., :1]) for p in point]
    hot, rate = (torch.as_tensor(v).to(W).reshape(-1, 1, 1) for v in (hot, rate))
    for step, progress in enumerate(np.linspace(0, 1, steps), start=1):
        temperature = hot * (cold / hot) ** progress
        pace = rate * (temperature / hot) ** 0.75
        moved = []
        for i, (p, g) in enumerate(zip(point, gradient(*point, temperature), strict=True)):
            g = g - (g * p).sum(-1, keepdim=True) * p
            moments[i] = 0.9 * moments[i] + 0.1 * g
            scales[i] = 0.98 * scales[i] + 0.02 * (g * g).mean((-1, -2), keepdim=True)
            size = (scales[i] / (1 - 0.98**step)).sqrt() + 1e-12
            move = p - pace * moments[i] / (1 - 0.9**step) / size
            moved.append(torch.nn.functional.normalize(move, dim=-1))
        point = tuple(moved)
    return point[0], _estimates(*point)


def _pair_gradient(W, temperature):
    if W.shape[1] ** 2 > LOGITS:
        return (_tiled_pair_gradient(W[0], float(temperature))[None],)
    logits = _without_diagonal(W @ W.mT) / temperature
    share = torch.softmax(logits.flatten(1), 1).view_as(logits)
    return (2 * share @ W,)


def _tiled_pair_gradient(W, temperature):
    """The same for one code (K, d) by an online softmax over tiles of rows."""
    gradient, total, top = torch.zeros_like(W), 0.0, -torch.inf
    for rows in torch.arange(len(W), device=W.device).split(max(1, LOGITS // 2 // len(W))):
        logits = W[rows] @ W.T
        logits[torch.arange(len(rows)), rows] = -torch.inf
        new = max(top, float(logits.max()))
        shrink = np.exp((top - new) / temperature)
        share = ((logits - new) / temperature).exp_()
        gradient *= shrink
        gradient[rows] += share @ W
        total, top = shrink * total + float(share.sum()), new
    return 2 * gradient / total


def _margin_gradient(W, H, temperature):
    logits = H @ W.mT
    logits = _without_diagonal(logits - logits.diagonal(dim1=1, dim2=2).unsqueeze(2)) / temperature
    share = torch.softmax(logits.flatten(1), 1).view_as(logits)
    total = share.sum(2, keepdim=True)
    return share.mT @ H - total * H, share @ W - total * W


def _without_diagonal(logits):
    K = logits.shape[-1]
    eye = torch.eye(K, dtype=torch.bool, device=logits.device)
    return logits.masked_fill(eye, -torch.inf)


def _estimates(W, H=None):
    """Hard margin of each start: at H, or ``1 - max cosine`` (that is, at H = W)."""
    if H is None and W.shape[1] ** 2 > LOGITS:
        return torch.tensor([1 - margins.max_cosine(W[0])], dtype=W.dtype, device=W.device)
    logits = (W if H is None else H) @ W.mT
    own = logits.diagonal(dim1=1, dim2=2)
    return (own - _without_diagonal(logits).amax(2)).amin(1)


def polish(weight, *, goal="margin", steps=60, trust=0.05):
    """Local ascent by linear programmes; never returns a worse code.

    ``goal="margin"``: the exact ``rho(W)``.  Each step linearises the margins ``<w_k - w_j, h_k>``
    of the near-active pairs in tangent moves of W and H, with H the exact optimal features of W,
    inside a trust region.  ``goal="angle"``: ``1 - max cosine``, the Tammes problem.  It stops when
    the linear programme predicts a gain below 1e-14: a first-order certificate of local
    optimality.
    """
    checks.choice("goal", goal, ("margin", "angle"))
    weight = margins.unit_rows("weight", weight)
    value, features = _state(weight, goal)
    for _ in range(steps):
        if value <= 0:  # duplicate rows: there is no direction to go
            return weight
        move, gain = _linear_step(weight.numpy(), features, trust)
        if gain is None:  # HiGHS gives up on some degenerate programmes; a smaller one is another
            trust /= 4
            continue
        if gain < 1e-14:
            break
        candidate = torch.nn.functional.normalize(weight + torch.from_numpy(move), dim=1)
        reached, there = _state(candidate, goal)
        actual = reached - value
        if actual > 0:
            weight, value, features = candidate, reached, there
        if actual < 0.25 * gain:
            trust /= 4
        elif actual > 0.75 * gain:
            trust = min(2 * trust, 0.2)
        if trust < 1e-15:
            break
    return weight


def _state(weight, goal):
    """The value to raise, and the optimal features (None for the angle, where h_k = w_k)."""
    if goal == "angle":
        return 1 - margins.max_cosine(weight), None
    found = margins.hull_projections(weight)
    value = 0.0 if found.duplicates else float(found.distance.min())
    return value, found.direction.numpy()


def _tangents(rows):
    """Orthonormal bases ``(K, d, d - 1)`` of the tangent spaces at unit rows."""
    return np.linalg.qr(rows[:, :, None], mode="complete")[0][:, :, 1:]


def _along(vectors, bases):
    """Coordinates ``(P, d - 1)`` of vectors ``(P, d)`` in tangent bases ``(P, d, d - 1)``."""
    return np.einsum("pi,pia->pa", vectors, bases)


def _linear_step(W, H, trust):
    """``(moves of W (K, d), predicted gain)`` of the linearised margins in a trust region.

    Both are None where the linear programme was not solved.
    """
    K, d = W.shape
    features = W if H is None else H
    slack = (W * features).sum(1)[:, None] - features @ W.T
    np.fill_diagonal(slack, np.inf)
    k, j = np.nonzero(slack <= slack.min() + 8 * trust)
    bases_w = _tangents(W)
    if H is None:  # the margin 1 - <w_k, w_j>
        blocks = [(k, -_along(W[j], bases_w[k])), (j, -_along(W[k], bases_w[j]))]
    else:
        bases_h = _tangents(H)
        blocks = [
            (k, _along(H[k], bases_w[k])),
            (j, -_along(H[k], bases_w[j])),
            (K + k, _along(W[k] - W[j], bases_h[k])),
        ]
    width = d - 1
    size = (K if H is None else 2 * K) * width
    rows = np.arange(len(k))
    row = np.concatenate([np.repeat(rows, width)] * len(blocks) + [rows])
    column = [(at[:, None] * width + np.arange(width)).ravel() for at, _ in blocks]
    column = np.concatenate([*column, np.full(len(k), size)])
    value = np.concatenate([*(-slope.ravel() for _, slope in blocks), np.ones(len(k))])
    constraints = coo_array((value, (row, column)), shape=(len(k), size + 1)).tocsr()
    # In units of the trust region, so that the solver's absolute tolerances shrink with it.
    programme = linprog(
        np.append(np.zeros(size), -1.0),
        A_ub=constraints,
        b_ub=(slack[k, j] - slack.min()) / trust,
        bounds=[(-1, 1)] * size + [(0, None)],
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if programme.status != 0:
        return None, None
    moves = trust * programme.x[: K * width].reshape(K, width)
    return np.einsum("kia,ka->ki", bases_w, moves), trust * float(programme.x[-1])
