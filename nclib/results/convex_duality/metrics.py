"""Metrics of result 6: layer balance and alignment, knots of 1-D nets, distance to closed forms.

``layers`` are lists of torch-layout weight matrices (out, in), first layer first.
"""

import itertools
import math

import numpy as np
import torch

from nclib import checks
from nclib.metrics.precision import exact


@exact
def path_norm(first, second):
    """``sum_j ||w_j|| ||v_j||`` over hidden neurons: two layers' decay, best rescaled (6.C1).

    ``first`` (m, d), ``second`` (K, m).  At most half the sum of squares, with equality iff every
    neuron is balanced.
    """
    first = _matrix("first", first)
    second = _matrix("second", second, columns=len(first))
    return float(first.norm(dim=1) @ second.norm(dim=0))


@exact
def balancedness(layers, *, relu=False):
    """Largest entry of ``W_l W_l' - W_{l+1}' W_{l+1}`` over the hidden layers (claim 6.C2).

    Zero at stationary points with equal decay on all layers; with ``relu`` only the diagonal is.
    """
    worst = 0.0
    for left, right in itertools.pairwise(_layers(layers)):
        difference = left @ left.mT - right.mT @ right
        worst = max(worst, float((difference.diagonal() if relu else difference).abs().max()))
    return worst


@exact
def numerical_rank(matrix, *, tolerance=1e-6, relative=False):
    """Singular values above ``tolerance`` (1e-6 suits L-BFGS), or above ``tolerance * largest``."""
    singular = torch.linalg.svdvals(_matrix("matrix", matrix))
    cut = tolerance * (float(singular.max()) if relative else 1.0)
    return int((singular > cut).sum())


@exact
def layer_norms(layers):
    """``(frobenius, operator)``: two lists of norms, one entry per layer (claim 6.C2)."""
    singular = [torch.linalg.svdvals(layer) for layer in _layers(layers)]
    return [float(s.norm()) for s in singular], [float(s.max()) for s in singular]


@exact
def alignment(layers, *, rank=1):
    """Smallest cosine between the top-``rank`` output space of a layer and input space of the next.

    1 for aligned layers (claims 6.C6, 6.C9).  ``rank`` compares whole subspaces (principal angles),
    which is right when singular values coincide.
    """
    worst, rank = 1.0, checks.integer("rank", rank)
    for left, right in itertools.pairwise(_layers(layers)):
        out = torch.linalg.svd(left, full_matrices=False)[0][:, :rank]
        into = torch.linalg.svd(right, full_matrices=False)[2][:rank]
        worst = min(worst, float(torch.linalg.svdvals(into @ out).min()))
    return min(worst, 1.0)


def knots(input_weight, hidden_bias, output_weight, *, merge=1e-6, smallest=1e-9):
    """``(positions, masses)`` of a 1-D two-layer ReLU net, sorted (claims 6.C16-6.C18).

    Neuron j bends at ``-hidden_bias_j / input_weight_j`` with mass ``|input_j| ||output_j||``.
    ``input_weight`` (m,) or (m, 1), ``output_weight`` (m,) or (K, m).  Knots closer than ``merge``
    are added up, masses below ``smallest`` are left out.
    """
    w, b = (
        checks.tensor("weights", v).detach().double().ravel() for v in (input_weight, hidden_bias)
    )
    v = checks.tensor("output_weight", output_weight).detach().double()
    v = _matrix("output_weight", v[None] if v.ndim == 1 else v, columns=len(w))
    if w.shape != b.shape:
        raise checks.InputError(f"{len(w)} input weights but {len(b)} hidden biases")
    mass = (w.abs() * v.norm(dim=0)).numpy(force=True)
    used = mass > smallest
    position = (-b[used] / w[used]).numpy(force=True)
    order = np.argsort(position)
    position, mass = position[order], mass[used][order]
    if not position.size:
        return position, mass
    group = np.concatenate([[0], np.cumsum(np.diff(position) > merge)])
    total = np.bincount(group, mass)
    return np.bincount(group, mass * position) / total, total


def mass_near(positions, masses, points, *, distance=1e-3):
    """Share of the knot mass within ``distance`` of one of the ``points`` (nan without knots)."""
    positions, points = np.asarray(positions, dtype=float), np.asarray(points, dtype=float)
    if not np.sum(masses) > 0:
        return math.nan
    near = np.abs(positions[:, None] - points).min(1) <= distance
    return float(np.asarray(masses)[near].sum() / np.sum(masses))


@exact
def collapse_error(features, labels, collapse):
    """``||HH' - closed form|| / ||closed form||`` of hidden ``features`` (N, m) (section 3.6).

    ``collapse``: :func:`theory.collapse` of the same class counts.  One number
    for NC1, NC2 and the norms; sees the scale, so the network must be in balanced scaling.
    """
    H = _matrix("features", features)
    labels, _ = checks.labels(labels, len(collapse.class_counts), length=len(H))
    wanted = collapse.gram(labels).to(H.device)
    if not float(wanted.norm()) > 0:
        raise checks.InputError("every class is dropped at this beta: the closed form is zero")
    return float((H @ H.mT - wanted).norm() / wanted.norm())


@exact
def cosine_deviations(features, labels, *, num_classes=None, zero=1e-6):
    """Deviation of the class means from the two frames, and how many means vanish.

    ``orthogonal``: largest ``|cos|`` between raw means, the primary one for ReLU features without
    output bias.  ``simplex``: largest ``|cos + 1/(K-1)|`` between means minus their mean.
    ``dropped``: number of classes whose mean norm is at most ``zero`` times the largest; K counts
    the others, and with fewer than two of them the deviations are ``nan``.
    ``nc1``: trace ratio of within-class to between-class variance, without 1/K.
    """
    H = _matrix("features", features)
    labels, K = checks.labels(labels, num_classes, length=len(H))
    counts = checks.class_counts(labels, K).to(H)
    labels = labels.to(H.device)
    means = torch.zeros(K, H.shape[1], dtype=H.dtype, device=H.device).index_add_(0, labels, H)
    means = means / counts[:, None]
    norms = means.norm(dim=1)
    kept = means[norms > zero * norms.max()]
    scatter = (means - means.mean(0)).square().sum(1).mean()
    within = (H - means[labels]).square().sum(1).mean()
    return {
        "orthogonal": _largest_cosine(kept, 0.0),
        "simplex": _largest_cosine(kept - kept.mean(0), -1 / max(len(kept) - 1, 1)),
        "nc1": float(within / scatter) if scatter > 0 else math.nan,
        "dropped": K - len(kept),
    }


def _largest_cosine(rows, target):
    if len(rows) < 2:
        return math.nan
    rows = rows / rows.norm(dim=1, keepdim=True)
    off = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return float((rows @ rows.mT - target)[off].abs().max())


def _layers(layers):
    layers = [_matrix(f"layer {i + 1}", layer) for i, layer in enumerate(layers)]
    for i, (left, right) in enumerate(itertools.pairwise(layers), start=1):
        if len(left) != right.shape[1]:
            raise checks.InputError(
                f"layer {i} has {len(left)} outputs but layer {i + 1} takes {right.shape[1]} "
                "inputs; layers are torch-layout matrices (out, in), first layer first"
            )
    return layers


def _matrix(name, value, **shape):
    return checks.matrix(name, checks.tensor(name, value).detach(), dtype=torch.float64, **shape)
