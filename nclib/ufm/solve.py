# ruff: noqa: E501
"""Solvers for unconstrained-features problems, and their Hessians.

An *objective* is any function of named float64 tensors that returns a scalar tensor, for example
``f(features=H, weight=W, bias=b)``.  The solvers take the starting tensors as a mapping with the
same names.  Quasi-Newton steps are scipy's L-BFGS-B with gradients from autograd; a few Newton
steps with the pseudo-inverse Hessian then bring the variables themselves, not only the value, to
machine precision.
"""

from dataclasses import dataclass, replace
from math import log10, prod

import numpy as np
import torch
from scipy.optimize import minimize as scipy_minimize

from nclib import checks


@dataclass(frozen=True)
class Solution:
    """A stationary point: ``variables`` (name -> tensor), ``value``, max-norm of the gradient."""

    variables: dict
    value: float
    gradient_norm: float
    iterations: int


class _Flat:
    """Packs named tensors into one vector and back."""

    def __init__(self, variables):
        self.shapes = {name: tuple(t.shape) for name, t in variables.items()}
        self.sizes = [prod(shape) for shape in self.shapes.values()]

    def pack(self, variables):
        return torch.cat([variables[name].detach().double().reshape(-1) for name in self.shapes])

    def unpack(self, vectors):
        """Named tensors of a vector ``(P,)``, or of a stack ``(B, P)``."""
        parts, lead = torch.split(vectors, self.sizes, -1), vectors.shape[:-1]
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape((*lead, *shape)) for (name, shape), part in named}

    def objective(self, objective):
        return lambda vector: objective(**self.unpack(vector))

    def many(self, objective):
        """``(B, P) -> ((B,), (B, P))``: values and gradients of a stack of vectors."""
        if hasattr(objective, "many"):
            values_of = self.objective(objective.many)
        else:
            values_of = torch.vmap(self.objective(objective))

        def value_and_gradient(vectors):
            vectors = vectors.detach().requires_grad_()
            values = values_of(vectors)
            (gradients,) = torch.autograd.grad(values.sum(), vectors)
            return values.detach(), gradients

        return value_and_gradient


def _start(start):
    for name, tensor in start.items():
        checks.finite(name, tensor)
    return _Flat(start), _Flat(start).pack(start)


def minimize(objective, start, *, gtol=1e-13, max_iter=20_000, restarts=2, newton=0):
    """Local minimum of ``objective`` from ``start`` by L-BFGS, then ``newton`` polishing steps.

    ``start``: mapping name -> tensor (any float dtype; the work is float64).  L-BFGS is restarted
    up to ``restarts`` times from where its line search gave up, which is what takes the value to
    1e-15.  Returns a :class:`Solution`.
    """
    flat, x = _start(start)
    fun = flat.objective(objective)

    def value_and_gradient(vector):
        point = torch.from_numpy(vector.copy()).to(device).requires_grad_()
        value = fun(point)
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.cpu().numpy()

    limits = {"maxiter": max_iter, "maxfun": 4 * max_iter}
    options = limits | {"maxcor": 50, "ftol": 0.0, "gtol": gtol}
    device, x, iterations, best = x.device, x.cpu().numpy(), 0, np.inf
    for _ in range(restarts + 1):
        found = scipy_minimize(value_and_gradient, x, jac=True, method="L-BFGS-B", options=options)
        iterations += found.nit
        stalled = not found.fun < best
        if found.fun <= best:
            x, best = found.x, found.fun
        if stalled or np.abs(found.jac).max() <= gtol:
            break
    variables = flat.unpack(torch.from_numpy(x.copy()).to(device))
    return replace(newton_polish(objective, variables, steps=newton), iterations=iterations)


@dataclass(frozen=True)
class Solutions:
    """Stationary points of one objective from many starts: everything has a leading axis B."""

    variables: dict
    values: torch.Tensor
    gradient_norms: torch.Tensor
    iterations: int


def minimize_many(objective, starts, *, gtol=1e-9, max_iter=3000, memory=10):
    """Local minima from many starts at once: L-BFGS with all starts in one program.

    ``starts`` maps names to tensors with a leading axis B of starts; ``objective`` is the function
    of *one* start, as for :func:`minimize`.  Its method ``many``, if it has one, takes the whole
    stack and returns the B values; otherwise it is ``torch.func.vmap``-ed.  A gradient of max-norm
    ``gtol`` puts the value within about ``gtol²`` of the minimum.  Runs on the device of the
    starts.  Returns :class:`Solutions`.
    """
    for name, tensor in starts.items():
        checks.finite(name, tensor)
    one = {name: tensor[0] for name, tensor in starts.items()}
    flat, count = _Flat(one), len(next(iter(starts.values())))
    x = torch.cat([starts[n].detach().double().reshape(count, -1) for n in flat.shapes], 1)
    value_and_gradient = flat.many(objective)

    f, g = value_and_gradient(x)
    result = [torch.empty_like(t) for t in (x, f, g)]
    live = torch.arange(count, device=x.device)  # the starts in the batch
    least = g.abs().amax(1)  # the smallest gradient of each start, and for how long nothing fell
    idle = torch.zeros_like(live)
    going = least > gtol  # those still moving; the others leave when they are many
    pairs, iteration = _Pairs(memory), 0

    def store():
        for whole, part in zip(result, (x, f, g), strict=True):
            whole[live] = part

    while bool(going.any()) and iteration < max_iter:
        if int(going.sum()) <= 0.75 * len(going):
            store()
            live, x, f, g, least, idle = (t[going] for t in (live, x, f, g, least, idle))
            pairs.keep(going)
            going = going[going]
        iteration += 1
        d = pairs.apply(g).neg_()
        slope = _dot(d, g)
        bad = ~(slope < 0)  # not a descent direction: fall back to the gradient
        if bool(bad.any()):
            d[bad], slope[bad] = -g[bad], -_dot(g, g)[bad]
        if not bool(going.all()):
            d[~going] = 0
        t = torch.ones_like(f) if iteration > 1 else 1 / g.norm(dim=1).clamp(min=1.0)
        new_x, new_f, new_g, stuck = _line_search(value_and_gradient, x, f, d, slope, t, going)
        if len(stuck):
            new_x[stuck], new_f[stuck], new_g[stuck] = x[stuck], f[stuck], g[stuck]
        pairs.add(new_x - x, new_g - g)
        steepest = new_g.abs().amax(1)
        idle = torch.where((new_f < f - _rounding(f)) | (steepest < least), 0, idle + 1)
        x, f, g, least = new_x, new_f, new_g, torch.minimum(steepest, least)
        going &= (steepest > gtol) & (idle < _PATIENCE)
        going[stuck] = False
    store()
    x, f, g = result
    return Solutions(flat.unpack(x), f, g.abs().amax(1), iteration)


_PATIENCE = 100  # steps without progress after which a start has no way down (a kink, say)


def _rounding(f):
    """A change of the value ``f`` that is none."""
    return 4e-16 * (1 + f.abs())


def _dot(a, b):
    return torch.linalg.vecdot(a, b)


class _Pairs:
    """The inverse Hessian of L-BFGS for B starts, from the last ``memory`` pairs (s, y) of each.

    In compact form (Byrd, Nocedal & Schnabel 1994): with the pairs scaled to sᵀy = 1 (H does not
    depend on their scale), R the upper triangle of SᵀY, oldest pair first, and γ = sᵀy/yᵀy of the
    last pair,

        H g = γg + S R⁻ᵀ[(I + γYᵀY) R⁻¹Sᵀg - γYᵀg] - γY R⁻¹Sᵀg,

    two passes over the pairs where the two-loop recursion makes 4·memory small steps.  A pair
    without curvature counts as none.
    """

    def __init__(self, memory):
        self.memory, self.order, self.pairs = memory, [], None

    def _begin(self, s):
        B, P = s.shape
        self.pairs = s.new_zeros(B, 2, self.memory, P)
        self.cross, self.squares = (s.new_zeros(B, self.memory, self.memory) for _ in "RY")
        self.ratio = s.new_ones(B)

    def keep(self, rows):
        """Drop the other starts."""
        if self.pairs is not None:
            for name in ("pairs", "cross", "squares", "ratio"):
                setattr(self, name, getattr(self, name)[rows])

    def add(self, s, y):
        """The newest pair of every start, ``(B, P)`` each."""
        if self.pairs is None:
            self._begin(s)
        slot = len(self.order) if len(self.order) < self.memory else self.order.pop(0)
        self.order.append(slot)
        curvature, squares = _dot(s, y), _dot(y, y)
        useful = curvature > 1e-12 * (_dot(s, s) * squares).sqrt()
        scale = torch.where(useful, curvature.clamp(min=1e-300).rsqrt(), 0.0)[:, None]
        self.ratio = torch.where(useful, curvature / squares, self.ratio)
        torch.mul(s, scale, out=self.pairs[:, 0, slot])
        y = torch.mul(y, scale, out=self.pairs[:, 1, slot])
        with_y = self._products(y)
        self.cross[:, :, slot] = with_y[:, 0]
        self.cross[:, slot, slot] = 1.0
        self.squares[:, slot, :] = self.squares[:, :, slot] = with_y[:, 1]

    def _products(self, v):
        """Products with every s and y, ``(B, 2, memory)``."""
        B, _, m, P = self.pairs.shape
        return (v[:, None] @ self.pairs.view(B, 2 * m, P).mT).view(B, 2, m)

    def apply(self, g):
        """``H g`` of every start ``(B, P)``."""
        if not self.order:
            return g.clone()
        order = torch.tensor(self.order, device=g.device)
        ratio = self.ratio[:, None, None]
        with_s, with_y = self._products(g)[:, :, order, None].unbind(1)
        cross = self.cross[:, order][:, :, order]
        u = torch.linalg.solve_triangular(cross.triu(), with_s, upper=True)
        v = u + ratio * (self.squares[:, order][:, :, order] @ u - with_y)
        v = torch.linalg.solve_triangular(cross.triu().mT, v, upper=False)
        weights = torch.zeros_like(self.pairs[..., 0])
        weights[:, 0, order], weights[:, 1, order] = v[..., 0], -(ratio * u)[..., 0]
        B, _, m, P = self.pairs.shape
        pairs = self.pairs.view(B, 2 * m, P)
        return torch.addcmul((weights.view(B, 1, 2 * m) @ pairs)[:, 0], ratio[:, 0], g)


def _line_search(value_and_gradient, x, f, d, slope, t, going):
    """Cut the steps ``t`` until each start descends enough; only those that do not are evaluated
    again.  Returns points, values, gradients, and the indices of the starts that found no step.
    """
    limit = f + _rounding(f)
    new_x = torch.addcmul(x, t[:, None], d)
    new_f, new_g = value_and_gradient(new_x)
    waiting = (going & ~(new_f <= limit + 1e-4 * t * slope)).nonzero().flatten()
    for _ in range(29):
        if len(waiting) == 0:
            break
        # The minimum of the parabola through f, its slope and new_f; half where new_f is NaN.
        fall = -t[waiting] * slope[waiting]
        shorter = fall / (2 * (new_f[waiting] - f[waiting] + fall))
        t[waiting] *= shorter.nan_to_num(0.5).clamp(0.1, 0.5)
        new_x[waiting] = x[waiting] + t[waiting, None] * d[waiting]
        new_f[waiting], new_g[waiting] = value_and_gradient(new_x[waiting])
        enough = new_f[waiting] <= (limit + 1e-4 * t * slope)[waiting]
        waiting = waiting[~enough]
    return new_x, new_f, new_g, waiting


def newton_polish(objective, variables, *, steps=2):
    """Newton steps with the pseudo-inverse Hessian (eigenvalues below 1e-8 * max are dropped).

    Kept only while the gradient shrinks, so a polish never spoils a point.  Returns a
    :class:`Solution`; ``steps=0`` just evaluates the point.
    """
    flat, x = _start(variables)
    fun = flat.objective(objective)
    gradient_of = torch.func.grad(fun)
    gradient = gradient_of(x)
    for _ in range(steps):
        eigenvalues, vectors = torch.linalg.eigh(_hessian(fun, x))
        keep = eigenvalues.abs() > 1e-8 * eigenvalues.abs().max()
        inverse = torch.where(keep, 1 / eigenvalues, 0.0)
        candidate = x - vectors @ (inverse * (vectors.T @ gradient))
        new = gradient_of(candidate)
        if not new.abs().max() < gradient.abs().max():
            break
        x, gradient = candidate, new
    return Solution(flat.unpack(x), float(fun(x)), float(gradient.abs().max()), 0)


def _hessian(fun, x):
    matrix = torch.func.hessian(fun)(x)
    return (matrix + matrix.T) / 2


def hessian(objective, variables):
    """Dense symmetric Hessian ``(P, P)``, P the number of variables in the order of the mapping."""
    flat, x = _start(variables)
    return _hessian(flat.objective(objective), x)


def hessian_eigenvalues(objective, variables):
    """All eigenvalues of the dense Hessian, ascending, float64.  Meant for P up to ~4000."""
    return torch.linalg.eigvalsh(hessian(objective, variables))


def curvature(objective, variables, direction):
    """Second derivative of ``objective`` along ``direction`` (mapping with the same names)."""
    flat, x = _start(variables)
    along = flat.pack(direction)

    def slope(point):
        return torch.func.jvp(flat.objective(objective), (point,), (along,))[1]

    return float(torch.func.jvp(slope, (x,), (along,))[1])


@dataclass(frozen=True)
class Best:
    """The lowest of several local minima, and all of them.

    ``point``, ``value`` and ``gradient_norm`` (largest entry, in the coordinates) of the lowest;
    ``values (B,)`` and ``points``, stacked ``(B, …)`` but for fixed variables, of all starts.
    """

    point: dict
    value: float
    gradient_norm: float
    values: torch.Tensor
    points: dict

    def share(self, value):
        """Share of the starts that ended at most 1e-6 above ``value``."""
        return float((self.values <= value + 1e-6).double().mean())


def best(
    problem,
    starts=6,
    *,
    seed=0,
    scale=(0.1, 1.0),
    gtol=1e-9,
    max_iter=3000,
    refine=False,
    newton=0,
    together=True,
):
    """Local minima of ``problem`` from many random starts, the lowest one first: a :class:`Best`.

    Args:
        problem: a :class:`~nclib.ufm.model.UFM`, or what has ``start(generator, scale, batch)`` and
            ``place(coordinates)`` and whose call is the value at named coordinates.
        starts: how many, or coordinates with a leading axis of starts.
        seed: of the starts.
        scale: size of the Gaussian starts; two numbers are the ends of a logarithmic spread.
        gtol, max_iter: see :func:`minimize_many` (``gtol``: of several starts; one goes to scipy,
            to 1e-13); the value is exact to about ``gtol²``, but near
            kinks (a unit of a ReLU that is 0 at the minimum), where a start may stop 1e-8 above it.
        refine: take the lowest one on to 1e-13 with scipy.
        newton: that, and as many Newton steps (exact variables, not only an exact value).
        together: all starts in one batch; ``False``: one by one with scipy, to 1e-13, which is
            better at kinks (1-D ReLU networks).

    Raises :class:`~nclib.checks.InputError` for bad arguments and starts that are not finite.
    """
    if not isinstance(starts, dict):
        starts = _random_starts(problem, checks.integer("starts", starts), seed, scale)
    count = len(next(iter(starts.values())))
    if together and count > 1:
        memory = 40 if getattr(problem, "nonnegative", False) else 10  # x² is badly conditioned
        found = minimize_many(problem, starts, gtol=gtol, max_iter=max_iter, memory=memory)
        points, values, norms = found.variables, found.values, found.gradient_norms
    else:  # scipy is also quicker than a batch of one
        points, values, norms = _one_by_one(problem, starts, max_iter)
    i = int(values.argmin())
    if refine or newton:
        lowest = {name: stack[i] for name, stack in points.items()}
        one = minimize(problem, lowest, max_iter=max_iter, newton=newton)
        if one.value <= float(values[i] + _rounding(values[i])):
            values[i], norms[i] = one.value, one.gradient_norm
            for name, tensor in one.variables.items():
                points[name][i] = tensor
    point = problem.place({name: stack[i] for name, stack in points.items()})
    return Best(point, float(values[i]), float(norms[i]), values, problem.place(points))


def stacked(points):
    """Coordinates of several starts as one batch: ``[{name: (…)}]`` to ``{name: (starts, …)}``."""
    return {name: torch.stack([point[name] for point in points]) for name in points[0]}


def _random_starts(problem, count, seed, scale):
    low, high = scale if isinstance(scale, tuple | list) else (scale, scale)
    ends = (log10(checks.real("scale", end, above=0)) for end in (low, high))
    sizes = torch.logspace(*ends, count, dtype=torch.float64)
    return problem.start(torch.Generator().manual_seed(seed), sizes, (count,))


def _one_by_one(problem, starts, max_iter):
    each = [
        dict(zip(starts, tensors, strict=True)) for tensors in zip(*starts.values(), strict=True)
    ]
    runs = [minimize(problem, start, max_iter=max_iter) for start in each]
    points = stacked([run.variables for run in runs])
    reached = torch.tensor([[run.value, run.gradient_norm] for run in runs], dtype=torch.float64)
    return points, *reached.T
