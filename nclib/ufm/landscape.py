"""Critical points of a one-layer :class:`~nclib.ufm.model.UFM`: spectrum, saddles, ways out."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from nclib import checks
from nclib.ufm import solve
from nclib.ufm.solve import best


def spectrum(problem, point, *, drop_radial=True):
    """Hessian eigenvalues at a critical point, ascending, in the coordinates; rows on spheres add
    one exact zero each, which is left out."""
    values = solve.hessian_eigenvalues(problem, problem.coordinates(point))
    radial = sum(problem.shapes[name][0] for name in problem.sphere if name in problem.shapes)
    return (
        values[values.abs().argsort()][radial:].sort().values if radial and drop_radial else values
    )


def saddle(problem, rank, *, seed=0, starts=1, newton=0):
    """A critical point of the given rank: a minimum in dimension ``rank``, padded with zeros."""
    (d,) = problem.widths
    if not 0 <= rank < min(d, problem.K - 1):
        raise checks.InputError(f"rank must be in 0..{min(d, problem.K - 1) - 1}, got {rank}")
    small = replace(problem, widths=max(rank, 1))
    start = small.start(torch.Generator().manual_seed(seed), 0.5, batch=(starts,))
    if rank == 0:  # exact zeros stay zero: only the bias moves
        start |= {name: torch.zeros_like(start[name]) for name in ("features", "weight")}
    found = best(small, start, newton=newton).point
    pad = lambda name, x: x if name == "bias" else F.pad(x, (0, d - max(rank, 1)))
    return {name: pad(name, x) for name, x in found.items()}


def escape(problem, point):
    """``(direction, curvature)``: the way out of a critical point with a spare dimension, and the
    second derivative ``-2 (‖∇g‖₂ - √(λ_H λ_W))`` along it (claims 1.L8, 3.L10)."""
    _, singular, axes = torch.linalg.svd(point["weight"], full_matrices=True)
    rank = int((singular > 1e-8 * max(1.0, float(singular[0]))).sum())
    if rank == point["weight"].shape[1]:
        raise checks.InputError(
            f"weight has full column rank {rank}: no spare dimension; use d > {rank}"
        )
    left, _, right = torch.linalg.svd(-problem.logit_gradient(point))
    balance, spare = (problem.decays[0] / problem.decays[1]) ** 0.25, axes[-1]
    direction = {name: torch.zeros_like(x) for name, x in point.items()}
    direction["features"] = torch.outer(left[:, 0], spare) / balance
    direction["weight"] = balance * torch.outer(right[0], spare)
    return direction, -2 * problem.certificate(point)


def curvature(problem, point, direction):
    """Second derivative of f along ``direction``, in the coordinates."""
    return solve.curvature(problem, problem.coordinates(point), direction)
