"""Result 6: trained networks next to their convex optimum, as tables.

Rows and tables hold the trained ``value``, the closed form ``optimum`` and ``excess = value -
optimum``; ``converged`` says whether the search agreed with itself (:func:`nets.lowest`), whatever
the closed form is.
"""

import itertools
import math
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linprog
from torch import nn

from nclib import checks, losses
from nclib.deep import collect, train
from nclib.deep import data as images
from nclib.metrics import certified, geometry, nc_metrics
from nclib.results.convex_duality import linear, ramps, theory
from nclib.results.convex_duality.nets import (
    ACTIVATIONS,
    BatchNormNetwork,
    Interpolation,
    Network,
    Sweep,
    batch_statistics,
    build,
    lowest,
)
from nclib.table import log_spaced, matrices
from nclib.ufm import flow, landscape, solve
from nclib.ufm.model import UFM
from nclib.ufm.scalar import thresholds

LARGE = 2.0  # size of the starts of deep linear nets: smaller ones fall into the minimum at zero


def gaussian(generator, *shape):
    """Standard normal float64 tensor."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def whitened(generator, n, d):
    """Random whitened inputs (n, d), ``X X' = I_n``; ``n <= d``."""
    checks.require(n <= d, f"{n} whitened samples need as many dimensions, got d = {d}")
    return torch.linalg.qr(gaussian(generator, d, n))[0].mT


def of_rank(singular, n, d, generator):
    """Random matrix (n, d) with these singular values."""
    left, right = (whitened(generator, len(singular), size) for size in (n, d))
    return (left.mT * torch.tensor(singular, dtype=torch.float64)) @ right


def class_labels(counts):
    """Labels (n,) of classes with these sizes, at least 1 each, in order."""
    checks.require(len(counts), "counts is empty: give the size of each class")
    sizes = torch.tensor(
        [checks.integer("counts", int(n) if float(n).is_integer() else n) for n in counts]
    )
    return torch.arange(len(sizes)).repeat_interleave(sizes)


def one_hot(labels):
    """One-hot targets, float64."""
    return nn.functional.one_hot(labels).double()


def _row(value, optimum, **columns):
    return columns | {"value": value, "optimum": optimum, "excess": value - optimum}


def _found(found, optimum, **columns):
    return _row(found.value, optimum, **columns) | {"converged": found.converged}


# --- metrics -------------------------------------------------------------------------------------


def path_norm(first, second):
    """``sum_j ||w_j|| ||v_j||`` over hidden neurons: two layers' decay, best rescaled (6.C1).

    ``first`` (m, d), ``second`` (K, m).  At most half the sum of squares, with equality iff every
    neuron is balanced.
    """
    first = checks.matrix("first", first)
    second = checks.matrix("second", second, columns=len(first), dtype=first.dtype)
    return float(first.norm(dim=1) @ second.norm(dim=0))


def alignment(layers, *, rank=1):
    """Smallest cosine between the top-``rank`` output space of a layer and input space of the next.

    1 for aligned layers (claims 6.C6, 6.C9).  ``rank`` compares whole subspaces (principal angles),
    which is right when singular values coincide.
    """
    worst, layers = 1.0, [checks.matrix("layers", layer) for layer in layers]
    for left, right in itertools.pairwise(layers):
        out = torch.linalg.svd(left, full_matrices=False)[0][:, :rank]
        into = torch.linalg.svd(right, full_matrices=False)[2][:rank]
        worst = min(worst, float(torch.linalg.svdvals(into @ out).min()))
    return worst


def knots(input_weight, hidden_bias, output_weight):
    """``(positions, masses)`` of a 1-D two-layer ReLU net, sorted (claims 6.C16-6.C18).

    Neuron j of ``input_weight``, ``hidden_bias``, ``output_weight`` (m elements each) bends at
    ``-hidden_bias_j / input_weight_j`` with mass ``|input_j| |output_j|``.  Knots closer than 1e-6
    are added up, masses below 1e-9 are left out.
    """
    parts = dict(input_weight=input_weight, hidden_bias=hidden_bias, output_weight=output_weight)
    parts = {name: checks.tensor(name, part).detach() for name, part in parts.items()}
    sizes = ", ".join(f"{name} {part.numel()}" for name, part in parts.items())
    equal = len({part.numel() for part in parts.values()}) == 1
    checks.require(equal, f"one number per neuron is needed, got {sizes}")
    w, b, v = (
        checks.finite(name, part.double()).numpy(force=True).ravel() for name, part in parts.items()
    )
    mass = np.abs(w * v)
    used = mass > 1e-9
    position, mass = -b[used] / w[used], mass[used]
    order = np.argsort(position)
    position, mass = position[order], mass[order]
    group = np.cumsum(np.diff(position, prepend=position[:1]) > 1e-6)
    total = np.bincount(group, mass)
    return np.bincount(group, mass * position) / total, total


def collapse_error(features, labels, shape):
    """``||HH' - closed form|| / ||closed form||`` of hidden ``features`` (N, m).

    ``shape``: the :class:`theory.Collapse` of these classes.  One number for NC1, NC2 and the
    norms; sees the scale, so the network must be in balanced scaling.
    """
    wanted = shape.gram(labels)
    return float((features @ features.mT - wanted).norm() / wanted.norm())


def cosine_deviations(features, labels, *, zero=1e-6):
    """Deviation of the class means (K, m) from the two frames, and how many means vanish.

    ``orthogonal``: largest ``|cos|`` between raw means, the primary one for ReLU features without
    output bias.  ``simplex``: largest ``|cos + 1/(K-1)|`` between means minus their mean.
    ``dropped``: number of classes whose mean norm is at most ``zero`` times the largest; K counts
    the others, and with fewer than two of them the deviations are ``nan``.
    ``nc1``: trace ratio of within-class to between-class variance, without 1/K.
    """
    means, _ = geometry.class_means(features, labels)
    norms = means.norm(dim=1)
    kept = means[norms > zero * norms.max()]
    return {
        "orthogonal": _largest_cosine(kept, 0.0),
        "simplex": _largest_cosine(kept - kept.mean(0), -1 / max(len(kept) - 1, 1)),
        "nc1": geometry.trace_ratio(features, labels),
        "dropped": len(means) - len(kept),
    }


def _largest_cosine(rows, target):
    if len(rows) < 2:
        return math.nan
    off = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return float((geometry.cosines(rows) - target)[off].abs().max())


# --- linear networks -----------------------------------------------------------------------------


def convex_linear(settings, betas, *, seed=0):
    """Two-layer linear nets on any inputs (6.C3), for (n, d, K) in ``settings``: n, d, K, beta, gap
    (duality), rank, value, optimum, excess, converged."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for n, d, K in settings:
        X, Y = gaussian(generator, n, d), gaussian(generator, n, K)
        for beta in betas:
            best = linear.linear_map(X, Y, beta)
            network = Network(X, Y, beta, (min(d, K),), "linear")
            trained = lowest(network, 2, seed=seed, pool=1, max_iter=2000)
            rank = geometry.rank(best.weight, cut=1e-6, relative=False)
            size = dict(n=n, d=d, K=K, beta=beta, gap=best.gap, rank=rank)
            rows.append(_found(trained, best.value, **size))
    return pd.DataFrame(rows)


def deep_linear(inputs, targets, depth, beta, *, spare=2):
    """A deep linear :class:`Network` with ``spare`` more hidden neurons than outputs."""
    widths = (targets.shape[1] + spare,) * (depth - 1)
    return Network(inputs, targets, beta, widths, "linear")


def staircase(depth, beta, *, inputs, targets, starts, seed=0):
    """Singular values of the best deep linear net on whitened inputs (6.C7): rows ``index,
    singular, value, optimum, excess``."""
    network = deep_linear(inputs, targets, depth, beta)
    options = dict(seed=seed, scale=LARGE, pool=2, max_iter=500, restarts=0)
    best = lowest(network, starts, **options)
    product = torch.linalg.multi_dot(network.layers(best.point)[::-1])
    optimum = linear.whitened_linear_value(targets, beta, depth)
    singular = torch.linalg.svdvals(product)[: targets.shape[1]].tolist()
    return [_row(best.value, optimum, index=i, singular=s) for i, s in enumerate(singular)]


def staircase_theory(depth, beta, *, targets):
    """The closed form of :func:`staircase`: rows ``index, singular``."""
    values = linear.whitened_singular_values(targets, beta, depth)
    return pd.DataFrame({"index": range(len(values)), "singular": values})


def jumps(depth, *, targets):
    """Where each singular value jumps: rows ``index, critical, spinodal``."""
    critical, spinodal = thresholds(torch.linalg.svdvals(targets), depth)
    columns = {"index": range(len(critical)), "critical": critical, "spinodal": spinodal}
    return pd.DataFrame(columns)


def whitened_linear(depth, *, inputs, targets, beta, starts, seed=0):
    """Value that deep linear nets reach on whitened inputs (6.C7)."""
    network = deep_linear(inputs, targets, depth, beta)
    found = lowest(network, starts, seed=seed, scale=LARGE, pool=4, max_iter=1000)
    return _found(found, linear.whitened_linear_value(targets, beta, depth))


def stuck(inputs, targets, depth, *, share, scale, seed=0):
    """Excess of gradient descent from a start of size ``scale``, at ``share`` of the largest
    threshold beta_c (6.C7).

    At depth >= 3 there are two minima for every beta below beta_sp: below beta_c a small start is
    caught by the one at zero, above it a large one by the other.  L-BFGS would not do: its first
    step is long and may leave the basin.
    """
    beta = share * thresholds(float(torch.linalg.svdvals(targets)[0]), depth)[0]
    network = deep_linear(inputs, targets, depth, beta)
    start = network.start(torch.Generator().manual_seed(seed), scale)
    path = flow.descend(network, start, rate=0.02 / beta, steps=1500, record=[1500])
    return float(path.values[-1]) - linear.whitened_linear_value(targets, beta, depth)


def trained_ranks(network, betas, *, rate, steps, seed=0):
    """Ranks after gradient descent with momentum at each decay of ``betas``: beta, layer, rank.

    Singular values above 1e-2 count.
    """
    start = network.start(torch.Generator().manual_seed(seed))
    starts = {name: t.expand(len(betas), *t.shape).clone() for name, t in start.items()}
    problem = Sweep(network, torch.as_tensor(betas, dtype=torch.float64))
    options = dict(rate=rate, steps=steps, momentum=0.9, record=[steps])
    end = flow.descend(problem, starts, **options).points[-1]
    rows = []
    for i, beta in enumerate(betas):
        for j, layer in enumerate(network.layers(end), start=1):
            rank = geometry.rank(layer[i], cut=1e-2, relative=False)
            rows.append({"beta": beta, "layer": j, "rank": rank})
    return pd.DataFrame(rows)


def two_layer_ranks(n, sizes, *, seed=0):
    """Rank of two-layer linear nets against beta (6.C3), ``n`` samples, inputs with orthonormal
    columns, decays 5 % beside the singular values s of X'Y and at least 1 % from each of them,
    where descent is fast enough.  Returns ``(table, s)``; the column ``expected`` is the number of
    singular values above beta."""
    generator, (d, width, K) = torch.Generator().manual_seed(seed), sizes
    X, Y = whitened(generator, d, n).mT, gaussian(generator, n, K)
    s = torch.linalg.svdvals(X.mT @ Y)
    betas = torch.cat([0.95 * s, 1.05 * s]).sort()[0]
    betas = betas[((betas[:, None] / s - 1).abs() > 0.01).all(1)].tolist()
    table = trained_ranks(
        Network(X, Y, 1.0, (width,), "linear"), betas, rate=0.05, steps=500, seed=seed
    )
    return table.assign(expected=[int((s > beta).sum()) for beta in table["beta"]]), s.tolist()


def deep_ranks(n, sizes, singular, *, seed=0):
    """Rank of every layer of a deep linear net at four decays (6.C7), inputs with orthonormal
    columns, ``singular`` values of X'Y.  Columns beta, layer, rank, expected.

    The decays are where all of ``expected`` directions have the lower minimum and the others no
    minimum but zero, which is what descent from a large start needs.
    """
    generator, depth = torch.Generator().manual_seed(seed), len(sizes) - 1
    d, K = sizes[0], sizes[-1]
    X, s = whitened(generator, d, n).mT, torch.tensor(singular, dtype=torch.float64)
    critical, spinodal = (t.tolist() for t in thresholds(s, depth))
    kept = [r for r in (1, 2, 3) if r < len(s)] + [len(s)]
    middles = {r: (critical[r - 1] + spinodal[r]) / 2 if r < len(s) else 0.9 * critical[-1]
               for r in kept}  # fmt: skip
    network = Network(X, X @ of_rank(singular, d, K, generator), 1.0, sizes[1:-1], "linear")
    table = trained_ranks(network, list(middles.values()), rate=0.01, steps=500, seed=seed)
    return table.assign(expected=[r for r in kept for _ in range(depth)])


def merging_norms(inputs, targets, beta, scales, *, lr=0.02, steps=4000, seed=0):
    """Layer norms of a deep linear net under plain gradient descent (6.C2), unbalanced start.

    ``scales``: size of each layer at the start.  Columns step, time (step times rate), layer,
    frobenius, operator, balance, objective; ``balance`` decays like exp(-2 beta time) in the limit
    of small steps.
    """
    network = deep_linear(inputs, targets, len(scales), beta)
    start = network.start(torch.Generator().manual_seed(seed))
    start = {name: scale * start[name] for name, scale in zip(start, scales, strict=True)}
    path, rows = flow.descend(network, start, rate=lr, steps=steps, record=101), []
    for step, value, point in zip(path.steps, path.values.tolist(), path.points, strict=True):
        layers = network.layers(point)
        balance = max(landscape.balancedness(layers))
        for j, layer in enumerate(layers, start=1):
            operator = float(torch.linalg.matrix_norm(layer, 2))
            row = dict(step=step, time=lr * step, layer=j, frobenius=float(layer.norm()))
            rows.append(row | dict(operator=operator, balance=balance, objective=value))
    return pd.DataFrame(rows)


def imbalance_rate(trace):
    """Exponential rate of ``balance`` in a table of :func:`merging_norms`, over time."""
    one = trace[(trace["layer"] == 1) & (trace["time"] > 0)]
    return np.polyfit(one["time"], np.log(one["balance"]), 1)[0]


def stationary_layers(depth, *, inputs, targets, beta, seed=0):
    """L-BFGS solutions (6.C2): ``spread`` of the layers' norms, Frobenius or operator, the larger,
    balancedness, and max-norm of the gradient: the statement is about stationary points."""
    network = deep_linear(inputs, targets, depth, beta, spare=0)
    best = lowest(network, 3, seed=seed, scale=LARGE, max_iter=2000)
    layers = network.layers(best.point)
    singular = [torch.linalg.svdvals(layer) for layer in layers]
    return {
        "gradient": best.gradient_norm,
        "spread": np.ptp([[float(s.norm()), float(s.max())] for s in singular], axis=0).max(),
        "balance": max(landscape.balancedness(layers)),
    }


def minimum_norms(depth, *, rank, dimension, starts=3, seed=0):
    """Trained minimum-norm interpolators against the Schatten quasi-norm (6.C6)."""
    generator = torch.Generator().manual_seed(seed)
    X, Y = gaussian(generator, rank, dimension), gaussian(generator, rank, rank)
    found = lowest(Interpolation(X, Y, depth), starts, seed=seed, max_iter=3000)
    return _found(found, linear.minimum_norm_value(X, Y, depth))


def depth_gap(outputs, depth, *, starts=3, seed=0):
    """Fixed-norm variant (6.C8): ``primal`` and ``dual`` closed forms, ``ratio``, ``trained``."""
    generator = torch.Generator().manual_seed(seed + outputs)
    X, Y = whitened(generator, outputs, outputs + 3), gaussian(generator, outputs, outputs)
    primal, dual = linear.fixed_norm_values(X, Y, depth, 1.3)
    found = lowest(Interpolation(X, Y, depth, 1.3), starts, seed=seed, max_iter=3000)
    row = dict(primal=primal, dual=dual, ratio=primal / dual)
    return row | dict(trained=found.value, converged=found.converged)


def rank_one(depth, K, activation, *, starts=3, seed=0):
    """Rank-one inputs, linear and ReLU (6.C9): excess, second singular value, alignment.

    beta is 0.3 of that from which zero is optimal: zero layers are aligned with anything.  A ReLU
    net much narrower than 8 neurons often starts with a layer that is dead on all inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    c, a, Y = gaussian(generator, 7).abs(), gaussian(generator, 4), gaussian(generator, 7, K)
    q = float((c[:, None] * a).square().sum())  # the only singular value, squared
    slope = float(a.norm() * (c @ Y).norm()) / q
    beta = 0.3 * q * thresholds(slope, depth)[0]
    network = Network(c[:, None] * a, Y, beta, (8,) * (depth - 1), activation)
    found = lowest(network, starts, seed=seed, max_iter=1500)
    layers = network.layers(found.point)
    second = max(float(torch.linalg.svdvals(w)[1:].sum()) for w in layers)
    optimum = linear.rank_one_value(c, a, Y, beta, depth, relu=activation == "relu")
    return _found(found, optimum, second_singular=second, alignment=alignment(layers))


def rank_ones(**options):
    """:func:`rank_one` at depths 2-4, for one and three outputs, linear and ReLU."""
    cases = itertools.product((2, 3, 4), (1, 3), ACTIVATIONS)
    return pd.DataFrame(rank_one(*case, **options) for case in cases)


def rank_one_descent(n, sizes, *, steps, seed=0):
    """Gradient descent of a deep ReLU net on rank-one inputs X = c a', c >= 0 (6.C9): step, layer,
    rank, excess.  Singular values above a hundredth of the largest count."""
    generator, depth = torch.Generator().manual_seed(seed), len(sizes) - 1
    c, a = gaussian(generator, n).abs(), gaussian(generator, sizes[0])
    c, a = c / c.norm(), a / a.norm()
    Y = (3 * c + 0.2 * gaussian(generator, n))[:, None]
    beta = 0.3 * thresholds(float((c @ Y).norm()), depth)[0]
    network = Network(c[:, None] * a, Y, beta, sizes[1:-1])
    start = network.start(generator, 1.4)
    path = flow.descend(network, start, rate=0.01, steps=steps, momentum=0.9, record=25)
    excess, rows = path.values - linear.rank_one_value(c, a, Y, beta, depth), []
    for step, value, point in zip(path.steps, excess.tolist(), path.points, strict=True):
        for j, layer in enumerate(network.layers(point), start=1):
            rank = geometry.rank(layer, cut=1e-2)
            rows.append(dict(step=step, layer=j, rank=rank, excess=value))
    return pd.DataFrame(rows)


# --- one dimension and the plane -----------------------------------------------------------------


def spline_training(beta, *, x, y, width, starts, seed=0):
    """Two-layer 1-D nets trained by L-BFGS against the exact Lasso (6.C18); ``gap``: its duality
    gap."""
    exact = ramps.fit_spline(x, y, beta)
    network = Network(x, y, beta, (width,), bias="last")
    options = dict(seed=seed, scale=0.3, pool=1, max_iter=300, restarts=0)
    return _found(lowest(network, starts, **options), exact.value, gap=exact.gap)


def spline_networks(x, y, beta, width, grid, *, steps=3000, starts=3, seed=0):
    """The exact spline and nets trained by L-BFGS and Adam, as curves and knots (6.C16-6.C18).

    Returns ``(curves, knots, summary)``: curves has columns fit, x, y; knots fit, position, mass;
    summary fit, value, optimum, excess.
    """
    exact = ramps.fit_spline(x, y, beta)
    network = Network(x, y, beta, (width,), bias="last")
    best = lowest(network, starts, seed=seed, pool=1, max_iter=400, restarts=0).point
    start = network.start(torch.Generator().manual_seed(seed))
    options = dict(optimizer="adam", cosine=True, record=[steps])
    adam = flow.descend(network, start, rate=1e-2, steps=steps, **options).points[-1]
    fits = {"exact": (exact(grid), knots(*exact.network()[:3]), exact.value)}
    for name, point in (("L-BFGS", best), ("Adam", adam)):
        bent = knots(point["hidden_1"], point["bias_1"], point["weight"])
        fits[name] = (network.outputs(point, grid)[:, 0].numpy(), bent, float(network(**point)))
    curves, places, summary = [], [], []
    for name, (outputs, (position, mass), value) in fits.items():
        curves.append(pd.DataFrame({"fit": name, "x": grid, "y": outputs}))
        places.append(pd.DataFrame({"fit": name, "position": position, "mass": mass}))
        summary.append(_row(value, exact.value, fit=name))
    return pd.concat(curves), pd.concat(places), pd.DataFrame(summary)


def spline_path(beta, *, x, y):
    """Knots of the exact spline: columns position, mass, value, norm."""
    exact = ramps.fit_spline(x, y, beta)
    position, mass = knots(*exact.network()[:3])
    fixed = {"value": exact.value, "norm": exact.norm}
    return pd.DataFrame({"position": position, "mass": mass} | fixed)


def random_interpolations(sets, *, seed=0):
    """R* against the linear program on random data (6.C16).

    Columns n, formula, program, worst: the largest dual constraint over a fine grid of knots, at
    most 1.
    """
    rng, rows = np.random.default_rng(seed), []
    for _ in range(sets):
        n = int(rng.integers(3, 12))
        x, y = rng.uniform(-2, 2, n), rng.standard_normal(n)
        program = ramps.interpolation_spline(x, y)
        offsets = np.linspace(-3, 3, 2001)[:, None] - x
        kinks = np.concatenate([np.maximum(-offsets, 0), np.maximum(offsets, 0)])
        row = dict(n=n, formula=ramps.interpolation_norm(x, y), program=program.value)
        rows.append(row | dict(worst=np.abs(kinks @ program.dual).max()))
    return pd.DataFrame(rows)


def without_offset(distance, *, x, y):
    """Least l1 norm of ramps *without* output bias through the points (6.C16), with one more knot
    ``distance`` left of the data (``None``: knots at the data only)."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    offsets = x[:, None] - np.concatenate([x, [] if distance is None else [x.min() - distance]])
    kinks = np.concatenate([np.maximum(offsets, 0), np.maximum(-offsets, 0)], 1)
    return linprog(np.ones(2 * kinks.shape[1]), A_eq=np.hstack([kinks, -kinks]), b_eq=y).fun


def deep_splines(x, y, beta, depths, width, starts, grid, *, seed=0):
    """Deep 1-D nets against the spline law (6.C19), where it holds: x >= 0, biases in the last
    hidden layer and the output.

    Returns ``(curves, table)``: curves has columns depth, fit, x, y; table depth, value, optimum,
    excess, converged.
    """
    curves, rows = [], []
    for depth in depths:
        law = ramps.deep_spline(x, y, beta, depth)
        network = Network(x, y, beta, (width,) * (depth - 1), bias="last")
        found = lowest(network, starts, seed=seed, scale=0.8, max_iter=400, restarts=0)
        trained = network.outputs(found.point, grid)[:, 0].numpy()
        for name, fit in (("law", law(grid)), ("trained", trained)):
            curves.append(pd.DataFrame({"depth": depth, "fit": name, "x": grid, "y": fit}))
        rows.append(_found(found, law.value, depth=depth))
    return pd.concat(curves), pd.DataFrame(rows)


def beyond_the_law(beta):
    """Depth-3 networks where the law does not hold (6.C19): case, value, optimum (the law), excess.

    Two explicit networks below it, and one problem whose proven optimum is above it.
    """
    x, hat, pair = np.arange(-2.0, 3.0), np.array([0.0, 0, 1, 0, 0]), np.array([-1.0, 1.0])
    rows = []
    for case, shift, bias in (("biases", 2.0, "all"), ("even", 0.0, "last")):
        network = Network(x + shift, hat, beta, (2, 1), bias=bias)
        law = ramps.deep_spline(x + shift, hat, beta, 3).value
        rows.append(_row(float(network(**theory.hat_network(beta, shift))), law, case=case))
    law = ramps.deep_spline(pair, pair, beta, 3).value
    return pd.DataFrame([*rows, _row(theory.odd_pair_value(beta, 3), law, case="odd")])


def odd_pair(beta, depth, *, starts, seed=0):
    """Trained nets on the points (-1, -1) and (1, 1) against their proven optimum (6.C19)."""
    pair = np.array([-1.0, 1.0])
    network = Network(pair, pair, beta, (6,) * (depth - 1), bias="last")
    return _found(lowest(network, starts, seed=seed), theory.odd_pair_value(beta, depth))


def planar(beta, *, n, width, starts, max_iter=800, seed=0):
    """Two-layer ReLU on planar data (6.C4, 6.C20): gap, dual constraint, trained excess.

    ``tight`` is the largest deviation of ``|residual' (X u_j)_+| / beta`` from 1 over the neurons
    of the exact network, ``supremum`` the maximum of the same over all directions.
    """
    X, y, exact = _planar(n, beta, seed)
    network = Network(X, y, beta, (width,))
    found = lowest(network, starts, seed=seed, pool=1, max_iter=max_iter, restarts=0)
    tight = np.abs(np.abs(_constraint(X, exact, exact.directions.T, beta)) - 1).max()
    supremum = ramps.largest_activation(X, exact.residual) / beta
    return _found(found, exact.value, gap=exact.gap, tight=tight, supremum=supremum)


def constraint_curve(n, beta, *, seed=0):
    """The dual constraint over the circle and the neurons of the exact network (6.C4).

    Returns ``(curve, neurons)``: columns angle (degrees), value (over beta), and for the neurons
    weight.
    """
    X, _, exact = _planar(n, beta, seed)
    angles = np.linspace(-np.pi, np.pi, 721)
    curve = _constraint(X, exact, np.stack([np.cos(angles), np.sin(angles)]), beta)
    at = np.degrees(np.arctan2(exact.directions[:, 1], exact.directions[:, 0]))
    reached = _constraint(X, exact, exact.directions.T, beta)
    return (
        pd.DataFrame({"angle": np.degrees(angles), "value": curve}),
        pd.DataFrame({"angle": at, "value": reached, "weight": exact.weights}),
    )


def _planar(n, beta, seed):
    generator = torch.Generator().manual_seed(seed)
    X, y = gaussian(generator, n, 2), gaussian(generator, n)
    return X, y, ramps.two_layer_relu(X, y, beta)


def _constraint(X, exact, directions, beta):
    return exact.residual @ np.maximum(X.numpy() @ directions, 0) / beta


# --- whitened ReLU -------------------------------------------------------------------------------


def whitened_classes(counts, betas, starts, *, max_iter=600, seed=0):
    """Whitened two-layer ReLU nets, three neurons per class, on unequal classes (6.C11).

    Returns ``(fits, outputs)``: fits has columns beta, value, optimum, excess, converged, features
    and weights (largest deviations of HH' and of W_2'W_2 from the closed form), path (path norm
    minus half the squared weights); outputs has columns beta, label, count, output.
    """
    generator, labels = torch.Generator().manual_seed(seed), class_labels(counts)
    X, Y = whitened(generator, len(labels), len(labels) + 2), one_hot(labels)
    fits, outputs = [], []
    for beta in betas:
        network = Network(X, Y, float(beta), (3 * len(counts),))
        found = lowest(network, starts, seed=seed, max_iter=max_iter)
        shape, layers = theory.collapse(counts, float(beta)), network.layers(found.point)
        H, W = network.hidden(found.point), layers[-1]
        half = sum(float(w.square().sum()) for w in layers) / 2
        errors = {
            "features": float((H @ H.mT - shape.gram(labels)).abs().max()),
            "weights": float((W @ W.mT - torch.diag(shape.weight_norms**2)).abs().max()),
            "path": path_norm(*layers) - half,
        }
        fits.append(_found(found, shape.value, beta=beta) | errors)
        own = (network.outputs(found.point) * Y).sum(1, keepdim=True)
        table = {"label": range(len(counts)), "count": counts}
        table["output"] = geometry.class_means(own, labels)[0][:, 0]
        outputs.append(pd.DataFrame({"beta": beta} | table))
    return pd.DataFrame(fits), pd.concat(outputs, ignore_index=True)


def output_theory(beta, *, counts):
    """Closed-form output of each class on its own samples: rows ``label, count, output``."""
    outputs = theory.collapse(counts, beta).outputs.tolist()
    return pd.DataFrame({"label": range(len(counts)), "count": counts, "output": outputs})


def whitened_scalar(beta, *, n, starts, seed=0):
    """One output on whitened data (6.C10): excess over the two-neuron closed form."""
    generator = torch.Generator().manual_seed(seed)
    X, y = whitened(generator, n, n + 1), gaussian(generator, n)
    found = lowest(Network(X, y, beta, (8,)), starts, seed=seed, max_iter=600)
    return _found(found, theory.whitened_relu_value(y, beta))


def optimisers(inputs, labels, beta, width, runs, *, seed=0, rows=80):
    """Full-batch training of a whitened ReLU net, step by step (6.C23).

    ``runs``: name -> options of :func:`nclib.ufm.flow.descend`, or the L-BFGS ``steps`` alone.
    Columns step, objective, dual, nc1, simplex, orthogonal, run, optimum, excess, gap (objective
    minus dual bound of the same step).  Returns ``(trace, network, ends)``; ``ends`` maps a run to
    its final point.
    """
    Y = one_hot(labels)
    network = Network(inputs, Y, beta, (width,))
    start = network.start(torch.Generator().manual_seed(seed))

    def measure(point):
        found = cosine_deviations(network.hidden(point), labels)
        dual = certified.dual_bound(Y - network.outputs(point), Y, beta)
        return {"dual": dual} | {key: found[key] for key in ("nc1", "simplex", "orthogonal")}

    traces, ends = [], {}
    for name, options in runs.items():
        if isinstance(options, int):
            ends[name], trace = _lbfgs(network, start, options, rows, measure)
        else:
            path = flow.descend(network, start, **options, record=rows + 1, measure=measure)
            ends[name] = path.points[-1]
            values = {"step": path.steps, "objective": path.values}
            trace = pd.DataFrame(values).join(pd.DataFrame(path.measured))
        traces.append(trace.assign(run=name))
    trace = pd.concat(traces, ignore_index=True)
    trace["optimum"] = certified.collapsed_value(labels.bincount(), beta)
    trace["excess"] = trace["objective"] - trace["optimum"]
    trace["gap"] = trace["objective"] - trace["dual"]
    return trace, network, ends


def deep_images(depth, seed, *, inputs, labels, test_inputs, test_labels, beta, width, steps):
    """Adam on a whitened ReLU net of ``depth`` layers against collapse (6.C13, 6.C23), step by
    step: step, objective, optimum, excess (relative), nc1, simplex, orthogonal, accuracy."""
    network = Network(inputs, one_hot(labels), beta, (width,) * (depth - 1))

    def measure(point):
        right = network.outputs(point, test_inputs).argmax(1) == test_labels
        return cosine_deviations(network.hidden(point), labels) | {
            "accuracy": float(right.double().mean())
        }

    start = network.start(torch.Generator().manual_seed(seed))
    options = dict(optimizer="adam", cosine=True, record=25, measure=measure)
    path = flow.descend(network, start, rate=1e-2, steps=steps, **options)
    table = pd.DataFrame({"step": path.steps, "objective": path.values})
    table["optimum"] = certified.collapsed_value(labels.bincount(), beta, depth)
    table["excess"] = table["objective"] / table["optimum"] - 1
    return table.join(pd.DataFrame(path.measured))


def _lbfgs(network, start, steps, rows, measure):
    """``(end, trace)`` of L-BFGS: the evaluations that lower the cost, at log-spaced counts."""
    logged, evaluations, least, trace = set(log_spaced(steps, rows + 1)), 0, math.inf, []

    def objective(**point):
        nonlocal evaluations, least
        cost = network(**point)
        if float(cost.detach()) <= least:
            least = float(cost.detach())
            if evaluations in logged:
                frozen = {name: tensor.detach() for name, tensor in point.items()}
                trace.append({"step": evaluations, "objective": least} | measure(frozen))
        evaluations += 1
        return cost

    end = solve.minimize(objective, start, max_iter=steps, restarts=0).variables
    return end, pd.DataFrame(trace)


# --- deeper than the theorem ---------------------------------------------------------------------


def explicit_networks(depth, *, points, beta):
    """Low-rank networks on X = Y = I_K against collapse (6.C13): the triple and the pairs of each
    number of ``points``.  Columns K, value and collapsed (costs of the networks), excess, formula.
    """
    rows = []
    for layers in (theory.triple_layers(depth), *(theory.pair_layers(p, depth) for p in points)):
        K = len(layers[-1])
        identity = [torch.eye(K, dtype=torch.float64)] * depth
        value, collapsed = (_identity_cost(best, beta) for best in (layers, identity))
        row = dict(K=K, value=value, collapsed=collapsed, excess=value - collapsed)
        rows.append(row | dict(formula=theory.bottleneck_value(layers, beta)))
    return rows


def _identity_cost(layers, beta):
    network, point = identity_network(theory.best_scaled(layers, beta), beta)
    return float(network(**point))


def random_search(K, depth, *, beta, starts, seed=0):
    """The lowest ReLU net on X = Y = I_K from random starts (6.C13), optimum: that of collapse."""
    network = identity_network([torch.ones(2 * K, K)] * (depth - 1) + [torch.ones(K, K)], beta)[0]
    options = dict(seed=seed, scale=1.6, pool=8, max_iter=400, restarts=0)
    found = lowest(network, starts, **options)
    return _found(found, certified.collapsed_value([1] * K, beta, depth), K=K, depth=depth)


def require_descents(cases):
    """Raise :class:`~nclib.checks.InputError` unless ``cases`` show what depth changes.

    ``cases``: as the notebook's parameter ``descents``, rows of numbers (points, depth, beta).
    """
    checks.require(
        all(points == int(points) and depth == int(depth) for points, depth, _ in cases),
        f"points and depth in parameter descents must be whole numbers, got {cases}",
    )
    depths = [depth for _, depth, _ in cases]
    checks.require(
        depths and min(depths) == 3 < max(depths),
        f"parameter descents needs a network of depth 3 and a deeper one, got depths {depths}",
    )


def identity_network(layers, beta):
    """``(network, point)``: a ReLU network on X = Y = I_K with these layers (6.C13)."""
    identity = torch.eye(layers[0].shape[1], dtype=torch.float64)
    network = Network(identity, identity, beta, [len(layer) for layer in layers[:-1]])
    return network, dict(zip(network.names, layers, strict=True))


def deep_descent(points, depth, beta, *, max_iter, seed=0):
    """L-BFGS from the pair network, widened to 2 K neurons per layer, plus small noise (6.C13):
    K, value, collapsed, excess (over collapsed), gradient, ranks (text)."""
    generator, K = torch.Generator().manual_seed(seed), math.comb(points, 2)
    sizes, layers = [K, *[2 * K] * (depth - 1), K], []
    explicit = theory.best_scaled(theory.pair_layers(points, depth), beta)
    for layer, shape in zip(explicit, itertools.pairwise(sizes), strict=True):
        layers.append(0.05 * gaussian(generator, *shape[::-1]))
        layers[-1][: len(layer), : layer.shape[1]] += layer
    network, start = identity_network(layers, beta)
    best = solve.minimize(network, start, max_iter=max_iter, restarts=0)
    collapsed = certified.collapsed_value([1] * K, beta, depth)
    ranks = [geometry.rank(layer, cut=1e-2) for layer in network.layers(best.variables)]
    row = dict(points=points, K=K, depth=depth, beta=beta, value=best.value, collapsed=collapsed)
    row |= dict(excess=best.value - collapsed, gradient=best.gradient_norm)
    return row | dict(ranks=", ".join(map(str, ranks)))


# --- batch norm and other losses -----------------------------------------------------------------


def batch_norm_heads(counts, betas, dimension, starts, *, max_iter=1500, seed=0):
    """BN heads of 16 neurons on random features (6.C14): closed-form weights, certificate,
    training, per beta.

    Columns beta, closed (cost of the explicit weights minus the value), certificate (dual bound at
    them minus the value), value, optimum, excess, converged.
    """
    generator, labels, rows = torch.Generator().manual_seed(seed), class_labels(counts), []
    A, Y = gaussian(generator, len(labels), dimension), one_hot(labels)
    for beta in betas:
        problem = BatchNormNetwork(A, Y, beta, 16)
        found = lowest(problem, starts, seed=seed, max_iter=max_iter, restarts=0)
        optimum, row = certified.collapsed_value(counts, beta), dict(beta=beta)
        if dimension >= len(labels) - 1:
            head = theory.batch_norm_head(A, labels, beta)
            bound = certified.dual_bound(Y - problem.outputs(head), Y, beta)
            row |= dict(closed=float(problem(**head)) - optimum, certificate=bound - optimum)
        rows.append(_found(found, optimum, **row))
    return pd.DataFrame(rows)


def explicit_head(counts, *, dimension, seed=0):
    """:func:`cosine_deviations` of the closed-form BN head on random features (6.C12)."""
    labels = class_labels(counts)
    A = gaussian(torch.Generator().manual_seed(seed), len(labels), dimension)
    network = BatchNormNetwork(A, one_hot(labels), 0.5, len(counts))
    return cosine_deviations(network.hidden(theory.batch_norm_head(A, labels, 0.5)), labels)


def cross_entropy(beta, *, per_class, K, seed=0):
    """Whitened ReLU nets with cross-entropy (6.C22): trained excess and dual gap."""
    labels = class_labels([per_class] * K)
    X = whitened(torch.Generator().manual_seed(seed), len(labels), len(labels) + 2)
    loss = partial(nn.functional.cross_entropy, reduction="sum")
    network = Network(X, one_hot(labels), beta, (3 * K,), loss=loss)
    found = lowest(network, 2, seed=seed, max_iter=800)
    optimum = certified.cross_entropy_value(per_class, K, beta)
    ideal = certified.cross_entropy_margin(per_class, K, beta) * one_hot(labels)
    gap = optimum - certified.cross_entropy_dual_bound(ideal, labels, beta)
    return _found(found, optimum, gap=gap)


def unconstrained(per_class, K, lambda_w, lambda_h, *, seed=0):
    """Non-negative unconstrained features (6.C21) trained, against the whitened closed form."""
    counts, decays = [per_class] * K, (lambda_h, lambda_w)
    problem = UFM.classes(
        counts, losses.MeanSquaredError(), widths=K + 3, decays=decays, nonnegative=True
    )
    found, n = lowest(problem, 2, seed=seed, max_iter=1500), per_class * K
    beta = theory.ufm_beta(n, lambda_w, lambda_h)
    return _found(found, certified.collapsed_value(counts, beta) / n, beta=beta)


def bound_on_any_inputs(counts, d, scale=None, *, seed=0):
    """A trained two-layer ReLU net at beta = 0.5 over the collapsed value at beta / sigma_max(X)
    (6.C21), on Gaussian inputs in ``d`` dimensions or, with a ``scale``, on whitened ones times
    that, where the bound is the optimum."""
    generator, labels, beta = torch.Generator().manual_seed(seed), class_labels(counts), 0.5
    n = len(labels)
    X = scale * whitened(generator, n, d) if scale else gaussian(generator, n, d)
    bound = certified.collapsed_value(counts, beta / float(torch.linalg.matrix_norm(X, 2)))
    options = dict(seed=seed, pool=2, max_iter=150, restarts=0)
    found = lowest(Network(X, one_hot(labels), beta, (10,)), 2, **options)
    return _found(found, bound, n=n, d=d)


def hinge(beta, *, counts, seed=0):
    """Whitened ReLU nets with one output and the hinge loss, targets +1 and -1 (6.C22): excess of
    Adam, the best of six starts, over the closed form, and gap of that to its dual."""
    checks.require(len(counts) == 2, f"counts must be the sizes of two classes, got {counts}")
    sizes = torch.tensor(counts, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)[class_labels(counts)][:, None]
    X = whitened(torch.Generator().manual_seed(seed), len(signs), len(signs) + 2)
    network = Network(X, signs, beta, (8,), loss=_hinge)
    generator = torch.Generator().manual_seed(seed)
    starts = [network.start(generator) for _ in range(6)]  # a single one gets stuck now and then
    together = Sweep(network, torch.full((6,), beta, dtype=torch.float64))
    options = dict(optimizer="adam", cosine=True, steps=1500, record=[1500])
    ends = flow.descend(together, solve.stacked(starts), rate=0.02, **options)
    value = float(ends.values[-1].min())
    optimum = float(torch.minimum(sizes, beta * sizes.sqrt()).sum())
    dual = torch.clamp(beta / sizes.sqrt(), max=1)[class_labels(counts)]  # one number per sample
    violation = max(0.0, max(float(dual[signs[:, 0] == s].norm()) for s in (1, -1)) / beta - 1)
    return _row(value, optimum, gap=optimum - float(dual.sum()) + violation)


def _hinge(outputs, targets):
    return torch.relu(1 - outputs * targets).sum()


def vanishing_decay(x, y, betas):
    """``R - P(beta)/beta`` of 1-D nets on distinct ``x`` (6.C22), per beta: columns beta, below,
    bound, ``beta/2 |dual of R|^2``, and settled: the fit bends like the data do, so that R is one
    linear function of the values between the two and the bound is attained."""
    x, y = (np.asarray(v, dtype=float) for v in (x, y))
    limit, order, rows = ramps.interpolation_spline(x, y), np.argsort(x), []
    for beta in betas:
        fit = ramps.fit_spline(x, y, beta)
        pieces = [_piece(x[order], values[order]) for values in (y, y - fit.residual)]
        row = dict(beta=beta, below=limit.value - fit.value / beta, settled=pieces[0] == pieces[1])
        rows.append(row | dict(bound=beta / 2 * float((limit.dual**2).sum())))
    return pd.DataFrame(rows)


def _piece(x, y):
    """The signs that say which linear function of ``y`` the interpolation norm is."""
    slopes = np.diff(y) / np.diff(x)
    bends, ends = np.diff(slopes), slopes[0] + slopes[-1]
    total = np.abs(bends).sum()
    signs = np.sign(np.where(np.abs(bends) > 1e-9 * total, bends, 0)).tolist()
    return [*signs, float(np.sign(ends)) if abs(ends) > total else 0.0]


# --- images --------------------------------------------------------------------------------------


def train_net(
    net, data, recipe, weight_decay, *, test=None, points, certify_on=None, checkpoint=None, seed=0
):  # fmt: skip
    """Train a :class:`nets.BatchNormNet` and certify it along the way: its history, one row per
    measured epoch.

    ``recipe.weight_decay`` must be 0: the penalty is in the objective.  ``certify_on``: the batch
    on which objective and bounds are compared, default all of ``data``; with mini-batches take one
    with equally many samples per class.  Columns: epoch, lr, train_loss, objective, optimum, dual,
    nc1, orthogonal, simplex, dropped, gamma_over_alpha (median over used
    neurons), gamma_spread (their inner 80 %, over the median), and test_accuracy if ``test`` is
    given.
    """
    checks.require(not recipe.weight_decay, "recipe.weight_decay must be 0: the head's decay is in")
    batch, loss = certify_on or data, losses.MeanSquaredError(tau=None)

    def objective(net, inputs, labels):
        penalty = sum(p.square().sum() for p in net.decayed())
        return loss(net(inputs), labels) + weight_decay / 2 * penalty

    def measure(net, _):
        found = net.certificate(batch, weight_decay)
        row = {name: getattr(found, name) for name in ("objective", "optimum", "dual")}
        with batch_statistics(net):
            row |= cosine_deviations(net.features(batch.inputs), batch.labels, zero=1e-2)
        scale, shift = net.norm.weight.detach(), net.norm.bias.detach()
        used = scale.abs() > 0.1 * scale.abs().max()
        ratios = (scale / shift)[used].numpy(force=True)
        with np.errstate(invalid="ignore"):  # before training the shifts are zero
            low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
        row |= {"gamma_over_alpha": float(middle), "gamma_spread": float((high - low) / middle)}
        if test is not None:
            row["test_accuracy"] = collect.accuracy(net, test)
        return row

    options = dict(seed=seed, measure=measure, measure_at=log_spaced(recipe.epochs, points + 1))
    return train.fit(net, data, objective, recipe, **options, checkpoint=checkpoint)


def train_seeds(seeds, shape, data, recipe, weight_decay, *, checkpoint, **watch):
    """:func:`train_net` for each seed, of nets of this ``shape`` (keywords of :func:`nets.build`).

    ``checkpoint(seed=...)`` gives each one's file; ``watch``: further keywords of
    :func:`train_net`.  Returns the histories, with a column seed, and ``{seed: net}``.
    """
    made = {seed: build(data=data, **shape, seed=seed) for seed in seeds}
    histories = []
    for seed, net in made.items():
        options = dict(seed=seed, checkpoint=checkpoint(seed=seed), **watch)
        histories.append(train_net(net, data, recipe, weight_decay, **options).assign(seed=seed))
    return pd.concat(histories, ignore_index=True), made


def batch_norm_depth(depth, seed, *, data, test, weight_decay, epochs, width):
    """Training of an MLP with batch norm in each of its ``depth`` - 1 hidden layers (6.C14, 6.C15):
    its history, and ``excess``, the objective over the closed form, relative."""
    shape = dict(hidden=(width,) * (depth - 2), width=width, normalise=True, seed=seed)
    net = build("mlp", data, **shape)
    recipe = train.Recipe(epochs, 0.01, None, optimizer="adam", schedule="cosine")
    history = train_net(net, data, recipe, weight_decay, test=test, points=16, seed=seed)
    return history.assign(excess=history["objective"] / history["optimum"] - 1)


def final_classes(net, batch):
    """``(means, outputs)`` at the end, in training mode: class means (K, width) of the hidden
    features and mean true-class output (K,)."""
    with batch_statistics(net):
        hidden = net.features(batch.inputs)
        own = net.head(hidden).gather(1, batch.labels[:, None])
    means, outputs = (geometry.class_means(x, batch.labels)[0].cpu() for x in (hidden, own))
    return means, outputs[:, 0]


def duality(net, batch):
    """NC3 of a net's features and last layer at the end, in training mode (6.C12)."""
    with batch_statistics(net):
        return nc_metrics(net.features(batch.inputs), batch.labels, net.head.weight)["nc3"]


def class_cosines(nets):
    """Cosines between class means of ``nets`` (name -> (K, width)), raw and centred: columns kind,
    row, column, value."""
    kinds = {}
    for name, means in nets.items():
        kinds |= {f"raw, {name}": means, f"centred, {name}": means - means.mean(0)}
    table = matrices({kind: geometry.cosines(rows) for kind, rows in kinds.items()})
    return table.rename(columns={"name": "kind"})


def class_outputs(means, outputs, counts, beta):
    """Mean true-class outputs of a run: columns label, count, output, theory, mean_norm."""
    table = output_theory(beta, counts=counts).rename(columns={"output": "theory"})
    table.insert(2, "output", outputs.tolist())
    return table.assign(mean_norm=means.norm(dim=1).tolist())


def whitened_images(data, test):
    """``(inputs, test inputs)``: at most as many training images as pixels whitened, and test
    images under the same map, float64 rows."""
    flat = [part.inputs.flatten(1).double() for part in (data, test)]
    matrix = theory.whitening(flat[0])
    return flat[0] @ matrix, flat[1] @ matrix


def require_whitening(dataset, seed, **per_class):
    """Say now whether so many images of each class can be whitened: for a notebook's first cell.

    ``per_class``: name of a parameter -> its value, a number or a list.  The images must span as
    many dimensions as there are; those of digits do up to five per class.
    """
    data = images.load(dataset, seed=seed)[0]
    for name, value in per_class.items():
        part = data.per_class(max(value) if isinstance(value, list) else value)
        rank = int(torch.linalg.matrix_rank(part.inputs.flatten(1).double()))
        checks.require(
            rank == len(part),
            f"parameter {name} = {value} is too large to whiten {dataset}: {len(part)} images span "
            f"only {rank} dimensions",
        )


def closed_form_accuracy(per_class, *, data, test, rho):
    """Test accuracy of the closed-form whitened net on the first images of each class (6.C23), with
    ``beta = rho sqrt(n_k)``: columns n, accuracy, condition (of the raw inputs)."""
    part = data.per_class(per_class)
    X, new = (x.inputs.flatten(1).double() for x in (part, test))
    outputs = theory.whitened_prediction(X, part.labels, rho * math.sqrt(per_class), new)
    right = (outputs.argmax(1) == test.labels).double().mean()
    condition = float(torch.linalg.cond(X))
    return {"n": len(part), "accuracy": float(right), "condition": condition}
