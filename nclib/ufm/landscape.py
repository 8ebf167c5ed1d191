"""Critical points of a :class:`~nclib.ufm.model.UFM`: spectrum, saddles, the way out, balance."""

from dataclasses import replace
from itertools import pairwise

import torch
import torch.nn.functional as F

from nclib import checks
from nclib.ufm import solve


def spectrum(problem, point):
    """Hessian eigenvalues at a critical point in the coordinates, ascending, float64 ``(P,)``.

    Each row on a sphere adds one exact zero, its radial direction: these are left out.
    """
    values = solve.hessian_eigenvalues(problem, problem.coordinates(point))
    radial = sum(problem.shapes[name][0] for name in problem.sphere if name in problem.shapes)
    return values[values.abs().argsort()][radial:].sort().values


def saddle(problem, rank, *, seed=0, starts=1, newton=0):
    """A critical point of rank ``rank``: a minimum in that dimension, padded with zeros.

    Of ``starts`` minima the lowest; ``newton`` steps polish it.  One layer, 0 <= ``rank`` <
    min(d, K-1); :class:`~nclib.checks.InputError` otherwise.  Zhu et al. 2021; claims 1.L8, 3.L10.
    """
    _one_layer(problem)
    (d,), largest = problem.widths, min(problem.widths[0], problem.K - 1) - 1
    if not 0 <= checks.integer("rank", rank, 0) <= largest:
        raise checks.InputError(f"rank must be in 0..{largest}, got {rank}")
    small = replace(problem, widths=max(rank, 1))
    start = small.start(torch.Generator().manual_seed(seed), 0.5, batch=(starts,))
    if rank == 0:  # exact zeros stay zero: only the bias moves
        start |= {name: torch.zeros_like(start[name]) for name in ("features", "weight")}
    found = solve.best(small, start, newton=newton).point
    spare = (0, d - max(rank, 1))
    return {name: x if name == "bias" else F.pad(x, spare) for name, x in found.items()}


def escape(problem, point):
    """``(direction, curvature)``: the way out of a critical point of rank < d.

    ``direction``: a mapping like the coordinates (√n_r h_r for rows of n_r samples) along which the
    second derivative of f is ``curvature`` = -2 :meth:`~nclib.ufm.model.UFM.certificate`: negative,
    for a convex loss, unless the point is a global minimum.  One layer, λ_H and λ_W positive, a
    spare column of the weight; :class:`~nclib.checks.InputError` otherwise.  Zhu et al. 2021;
    claims 1.L8, 3.L10.
    """
    _one_layer(problem)
    if not all(problem.decays):
        raise checks.InputError(f"the way out needs positive decays, got {problem.decays}")
    weight = point["weight"]
    _, singular, axes = torch.linalg.svd(weight, full_matrices=True)
    rank = int((singular > 1e-8 * max(1.0, float(singular[0]))).sum())
    if rank == weight.shape[1]:
        raise checks.InputError(
            f"weight has full column rank {rank}: no spare dimension; use d > {rank}"
        )
    left, _, right = torch.linalg.svd(-problem.logit_gradient(point))
    balance, spare = (problem.decays[0] / problem.decays[1]) ** 0.25, axes[-1]
    direction = {name: torch.zeros_like(point[name]) for name in problem.shapes}
    direction["features"] = torch.outer(left[:, 0], spare) / balance
    direction["weight"] = balance * torch.outer(right[0], spare)
    return direction, -2 * problem.certificate(point)


def curvature(problem, point, direction):
    """Second derivative of f at ``point`` along ``direction`` (a mapping like the coordinates)."""
    return solve.curvature(problem, problem.coordinates(point), direction)


def orbit(d, r):
    """Dimension ``d r - r(r+1)/2`` of the rotations in d dimensions that move a rank-r point.

    The Hessian of a problem without spheres has this many zeros at a minimum that is unique up to
    rotation, such as r = K-1 for cross-entropy (Zhu et al. 2021; claims 1.L9, 3.L9, 5.E13).
    """
    d, r = checks.integer("d", d), checks.integer("r", r, 0)
    checks.require(r <= d, f"a point in dimension d={d} has rank at most {d}, got r={r}")
    return d * r - r * (r + 1) // 2


def balancedness(layers, decays=None, *, relu=False):
    """Largest entry of ``λ_{j+1} W_{j+1}ᵀ W_{j+1} - λ_j W_j W_jᵀ``, one float per pair of layers.

    ``layers``: matrices (out, in), first first; features (R, d) enter transposed, times √n_r.
    ``decays``: one λ_j each, default equal.  Zero at critical points and, for equal ones, conserved
    by gradient flow of the data term (Arora et al. 2018; claims 5.X5, 6.C2); with ReLU only the
    diagonals are.
    """
    decays = [1.0] * len(layers) if decays is None else list(decays)
    if len(decays) != len(layers):
        raise checks.InputError(f"{len(layers)} layers need as many decays, got {len(decays)}")
    residuals = []
    for (left, below), (right, above) in pairwise(zip(layers, decays, strict=True)):
        if left.shape[0] != right.shape[1]:
            raise checks.InputError(
                f"a layer (out, in) {tuple(right.shape)} cannot follow {tuple(left.shape)}"
            )
        gap = above * right.mT @ right - below * left @ left.mT
        residuals.append(float((gap.diagonal() if relu else gap).abs().max()))
    return residuals


def _one_layer(problem):
    if len(problem.widths) > 1 or problem.sphere or problem.nonnegative or problem.fixed:
        raise checks.InputError(
            "saddles of lower rank and their way out are known for one layer whose features and "
            "weight are free"
        )
