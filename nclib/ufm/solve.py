"""Solvers for unconstrained-features problems, and their Hessians.

An *objective* is any function of named float64 tensors that returns a scalar tensor, for example
``f(features=H, weight=W, bias=b)``.  The solvers take the starting tensors as a mapping with the
same names.  Quasi-Newton steps are scipy's L-BFGS-B with gradients from autograd; a few Newton
steps with the pseudo-inverse Hessian then bring the variables themselves, not only the value, to
machine precision.
"""

from dataclasses import dataclass
from math import prod

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

    def unpack(self, vector):
        parts = torch.split(vector, self.sizes)
        return {n: p.reshape(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}

    def objective(self, objective):
        return lambda vector: objective(**self.unpack(vector))


def _start(start):
    for name, tensor in start.items():
        checks.finite(name, tensor)
    return _Flat(start), _Flat(start).pack(start)


def minimize(objective, start, *, gtol=1e-13, max_iter=20_000, memory=50, restarts=2, newton=0):
    """Local minimum of ``objective`` from ``start`` by L-BFGS, then ``newton`` polishing steps.

    ``start``: mapping name -> tensor (any float dtype; the work is float64).  L-BFGS is restarted
    up to ``restarts`` times from where its line search gave up, which is what takes the value to
    1e-15.  Returns a :class:`Solution`.
    """
    flat, x = _start(start)
    fun = flat.objective(objective)

    def value_and_gradient(vector):
        point = torch.from_numpy(vector.copy()).requires_grad_()
        value = fun(point)
        (gradient,) = torch.autograd.grad(value, point)
        return float(value.detach()), gradient.numpy()

    options = {"maxiter": max_iter, "maxfun": 4 * max_iter, "maxcor": memory}
    options |= {"ftol": 0.0, "gtol": gtol}
    x, iterations, best = x.numpy(), 0, np.inf
    for _ in range(restarts + 1):
        found = scipy_minimize(value_and_gradient, x, jac=True, method="L-BFGS-B", options=options)
        iterations += found.nit
        stalled = not found.fun < best
        if found.fun <= best:
            x, best = found.x, found.fun
        if stalled or np.abs(found.jac).max() <= gtol:
            break
    variables = flat.unpack(torch.from_numpy(x.copy()))
    return newton_polish(objective, variables, steps=newton, iterations=iterations)


@dataclass(frozen=True)
class Solutions:
    """Stationary points of one objective from many starts: everything has a leading axis B."""

    variables: dict
    values: torch.Tensor
    gradient_norms: torch.Tensor
    iterations: int


def minimize_many(objective, starts, *, gtol=1e-9, max_iter=3000, memory=20):
    """Local minima from many starts at once: L-BFGS with all starts in one program.

    ``starts`` maps names to tensors with a leading axis B of starts; ``objective`` is the function
    of *one* start, as for :func:`minimize` (it is ``torch.func.vmap``-ed).  A gradient of max-norm
    ``gtol`` puts the value within about ``gtol²`` of the minimum.  Runs on the device of the
    starts.  Returns :class:`Solutions`.
    """
    for name, tensor in starts.items():
        checks.finite(name, tensor)
    one = {name: tensor[0] for name, tensor in starts.items()}
    flat, count = _Flat(one), len(next(iter(starts.values())))
    x = torch.cat([starts[n].detach().double().reshape(count, -1) for n in flat.shapes], 1)
    fun = torch.vmap(flat.objective(objective))

    def value_and_gradient(point):
        point = point.detach().requires_grad_()
        values = fun(point)
        (gradients,) = torch.autograd.grad(values.sum(), point)
        return values.detach(), gradients

    f, g = value_and_gradient(x)
    result = [x.clone(), f.clone(), g.abs().amax(1)]
    live = torch.arange(count, device=x.device)  # the starts still moving; others leave the batch
    steps, changes, weights = [], [], []  # the L-BFGS memory: s, y and 1/sᵀy of each live start
    going = g.abs().amax(1) > gtol
    iteration = 0
    while True:
        if not bool(going.all()):
            live, x, f, g = (t[going] for t in (live, x, f, g))
            for history in (steps, changes, weights):
                history[:] = [t[going] for t in history]
        if len(live) == 0 or iteration == max_iter:
            break
        iteration += 1
        d = _two_loops(g, steps, changes, weights)
        slope = (d * g).sum(1)
        bad = ~(slope < 0)  # not a descent direction: fall back to the gradient
        d[bad], slope = -g[bad], torch.where(bad, -g.square().sum(1), slope)
        t = torch.ones_like(f) if steps else 1 / g.norm(dim=1).clamp(min=1.0)
        new_x, new_f, new_g, stuck = _line_search(value_and_gradient, x, f, d, slope, t)
        new_x[stuck], new_f[stuck], new_g[stuck] = x[stuck], f[stuck], g[stuck]
        s, y = new_x - x, new_g - g
        x, f, g = new_x, new_f, new_g
        for whole, part in zip(result, (x, f, g.abs().amax(1)), strict=True):
            whole[live] = part
        curvature = (s * y).sum(1)
        useful = curvature > 1e-12 * s.norm(dim=1) * y.norm(dim=1)
        steps.append(torch.where(useful[:, None], s, 0.0))
        changes.append(torch.where(useful[:, None], y, 0.0))
        weights.append(torch.where(useful, 1 / curvature, 0.0))
        for history in (steps, changes, weights):
            del history[:-memory]
        going = g.abs().amax(1) > gtol
        going[stuck] = False
    x, f, gradient_norms = result
    variables = {
        name: part.reshape(count, *shape)
        for (name, shape), part in zip(
            flat.shapes.items(), torch.split(x, flat.sizes, 1), strict=True
        )
    }
    return Solutions(variables, f, gradient_norms, iteration)


def _line_search(value_and_gradient, x, f, d, slope, t):
    """Halve the steps ``t`` until each start descends enough; only those that do not are evaluated
    again.  Returns points, values, gradients, and the indices of the starts that found no step.
    """
    limit = f + 4e-16 * (1 + f.abs())  # rounding of f: an increase below it is not one
    new_x = x + t[:, None] * d
    new_f, new_g = value_and_gradient(new_x)
    waiting = (~(new_f <= limit + 1e-4 * t * slope)).nonzero().flatten()
    for _ in range(29):
        if len(waiting) == 0:
            break
        t[waiting] /= 2
        new_x[waiting] = x[waiting] + t[waiting, None] * d[waiting]
        new_f[waiting], new_g[waiting] = value_and_gradient(new_x[waiting])
        enough = new_f[waiting] <= (limit + 1e-4 * t * slope)[waiting]
        waiting = waiting[~enough]
    return new_x, new_f, new_g, waiting


def _two_loops(gradient, steps, changes, weights):
    """The L-BFGS direction of every start."""
    q, alphas = -gradient, []
    for s, y, rho in zip(reversed(steps), reversed(changes), reversed(weights), strict=True):
        alpha = rho * (s * q).sum(1)
        q = q - alpha[:, None] * y
        alphas.append(alpha)
    if steps:
        ratio = (steps[-1] * changes[-1]).sum(1) / changes[-1].square().sum(1)
        q = q * torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)[:, None]
    else:
        q = q.clone()
    for s, y, rho, alpha in zip(steps, changes, weights, reversed(alphas), strict=True):
        q = q + (alpha - rho * (y * q).sum(1))[:, None] * s
    return q


def newton_polish(objective, variables, *, steps=2, cut=1e-8, iterations=0):
    """Newton steps with the pseudo-inverse Hessian (eigenvalues below ``cut`` * max are dropped).

    Kept only while the gradient shrinks, so a polish never spoils a point.  Returns a
    :class:`Solution`; ``steps=0`` just evaluates the point.
    """
    flat, x = _start(variables)
    fun = flat.objective(objective)
    gradient_of = torch.func.grad(fun)
    gradient = gradient_of(x)
    for _ in range(steps):
        eigenvalues, vectors = torch.linalg.eigh(_hessian(fun, x))
        keep = eigenvalues.abs() > cut * eigenvalues.abs().max()
        inverse = torch.where(keep, 1 / eigenvalues, 0.0)
        candidate = x - vectors @ (inverse * (vectors.T @ gradient))
        new = gradient_of(candidate)
        if not new.abs().max() < gradient.abs().max():
            break
        x, gradient = candidate, new
    return Solution(flat.unpack(x), float(fun(x)), float(gradient.abs().max()), iterations)


def _hessian(fun, x):
    matrix = torch.func.hessian(fun)(x)
    return (matrix + matrix.T) / 2


def gradient(objective, variables):
    """Gradient of ``objective`` at ``variables``, as a mapping with the same names and shapes."""
    flat, x = _start(variables)
    return flat.unpack(torch.func.grad(flat.objective(objective))(x))


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
    slope = lambda point: torch.func.jvp(flat.objective(objective), (point,), (along,))[1]
    return float(torch.func.jvp(slope, (x,), (along,))[1])
