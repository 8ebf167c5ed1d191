"""Tables of result 6: trained networks next to their convex optimum.

Every function returns a tidy DataFrame (or a few) with the trained ``value``, the closed form
``optimum`` and ``excess = value - optimum``.  ``converged`` says whether the search agreed with
itself (:class:`ufm.BestOf`), whatever the closed form is.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linprog

from nclib import checks
from nclib.results.convex_duality import metrics, theory
from nclib.results.convex_duality import ufm as convex
from nclib.ufm import solve


def gaussian(generator, *shape):
    """Standard normal float64 tensor."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def whitened(generator, n, d):
    """Random whitened inputs (n, d), ``X X' = I_n``."""
    return torch.linalg.qr(gaussian(generator, d, n))[0].mT


def class_labels(counts):
    """Labels (n,) of classes with these sizes, in order."""
    return torch.arange(len(counts)).repeat_interleave(torch.as_tensor(counts))


def one_hot(labels):
    """One-hot targets, float64."""
    return torch.nn.functional.one_hot(labels).double()


def _row(value, optimum, **columns):
    return columns | {"value": value, "optimum": optimum, "excess": value - optimum}


def _best_row(found, optimum, **columns):
    return _row(found.best.value, optimum, **columns) | {"converged": found.converged}


# --- linear networks -----------------------------------------------------------------------------


def convex_linear(settings, betas, *, seed=0):
    """Two-layer linear nets on any inputs (6.C3): duality gap and trained excess per setting.

    ``settings``: list of (n, d, K).  Columns n, d, K, beta, gap, rank, value, optimum, excess,
    converged.
    """
    generator, rows = torch.Generator().manual_seed(seed), []
    for n, d, K in settings:
        X, Y = gaussian(generator, n, d), gaussian(generator, n, K)
        for beta in betas:
            best = theory.linear_map(X, Y, beta)
            network = convex.Network(X, Y, beta, (min(d, K),), "linear")
            trained = convex.best_of(network, 2, seed=seed, pool=1, max_iter=2000)
            rank = metrics.numerical_rank(best.weight)
            size = dict(n=n, d=d, K=K, beta=beta, gap=best.gap, rank=rank)
            rows.append(_best_row(trained, best.value, **size))
    return pd.DataFrame(rows)


_LARGE = 2.0  # size of the starts of deep linear nets: smaller ones fall into the minimum at zero


def staircase(inputs, targets, depths, betas, starts, *, seed=0):
    """Rank and singular values of deep linear nets on whitened inputs against beta (6.C7).

    Columns depth, beta, index, singular, value, optimum, excess; one row per singular value of the
    best of ``starts`` random starts.
    """
    rows = []
    for depth, beta in itertools.product(depths, betas):
        widths = (targets.shape[1] + 2,) * (depth - 1)
        network = convex.Network(inputs, targets, beta, widths, "linear")
        options = dict(seed=seed, scale=_LARGE, pool=2, max_iter=500, restarts=0)
        best = convex.best_of(network, starts, **options).best
        product = torch.linalg.multi_dot(network.layers(best.variables)[::-1])
        optimum = theory.whitened_linear_value(targets, beta, depth)
        for index, s in enumerate(torch.linalg.svdvals(product)[: targets.shape[1]].tolist()):
            rows.append(_row(best.value, optimum, depth=depth, beta=beta, index=index, singular=s))
    return pd.DataFrame(rows)


def staircase_theory(targets, depths, betas):
    """The closed form of :func:`staircase`: columns depth, beta, index, singular, and thresholds.

    Returns ``(curves, thresholds)``; the second has columns depth, index, critical, spinodal.
    """
    curves, jumps = [], []
    for depth in depths:
        for beta in betas:
            values = theory.whitened_singular_values(targets, float(beta), depth).tolist()
            curves += [
                {"depth": depth, "beta": beta, "index": i, "singular": s}
                for i, s in enumerate(values)
            ]
        for i, s in enumerate(torch.linalg.svdvals(targets).tolist()):
            critical, spinodal = theory.thresholds(s, depth)
            jumps.append({"depth": depth, "index": i, "critical": critical, "spinodal": spinodal})
    return pd.DataFrame(curves), pd.DataFrame(jumps)


def whitened_linear(inputs, targets, beta, depths, starts, *, seed=0):
    """Values that deep linear nets reach on whitened inputs (6.C7), one row per depth.

    Columns depth, value, optimum, excess, converged.
    """
    rows = []
    for depth in depths:
        widths = (targets.shape[1] + 2,) * (depth - 1)
        network = convex.Network(inputs, targets, beta, widths, "linear")
        found = convex.best_of(network, starts, seed=seed, scale=_LARGE, pool=4, max_iter=1000)
        optimum = theory.whitened_linear_value(targets, beta, depth)
        rows.append(_best_row(found, optimum, depth=depth))
    return pd.DataFrame(rows)


def zero_trap(inputs, targets, depth, *, share=0.95, scale=0.1, steps=300, seed=0):
    """Gradient descent from a small start at ``share`` of the largest threshold (6.C7): one row.

    At depth >= 3 zero is a minimum at every beta, here not the lowest one.  L-BFGS would not do:
    its first step is long and may leave the basin.
    """
    beta = share * theory.thresholds(float(torch.linalg.svdvals(targets)[0]), depth)[0]
    widths = (targets.shape[1] + 2,) * (depth - 1)
    network = convex.Network(inputs, targets, beta, widths, "linear")
    start = network.start(torch.Generator().manual_seed(seed), scale)
    options = dict(optimizer="sgd", momentum=0.0, cosine=False, lr=0.1 / beta, steps=steps)
    end, _ = convex.descend(network, start, **options)
    optimum = theory.whitened_linear_value(targets, beta, depth)
    return _row(float(network.objective(**end)), optimum, beta=beta)


def merging_norms(inputs, targets, beta, depth, scales, *, lr=0.02, steps=4000, seed=0):
    """Layer norms of a deep linear net under plain gradient descent (6.C2), unbalanced start.

    ``scales`` (depth,): size of each layer at the start.  Columns step, time (step times rate),
    layer, frobenius, operator, balance; ``balance`` decays like exp(-2 beta time) in the limit of
    small steps.
    """
    network = convex.Network(inputs, targets, beta, (targets.shape[1] + 2,) * (depth - 1), "linear")
    start = network.start(torch.Generator().manual_seed(seed))
    start = {name: scale * start[name] for name, scale in zip(start, scales, strict=True)}

    def measure(variables):
        layers = network.layers(variables)
        frobenius, operator = metrics.layer_norms(layers)
        return {"norms": (frobenius, operator), "balance": metrics.balancedness(layers)}

    options = dict(optimizer="sgd", momentum=0.0, cosine=False, lr=lr, steps=steps)
    _, trace = convex.descend(network, start, measure=measure, **options)
    return pd.DataFrame(
        [
            {"step": row.step, "time": lr * row.step, "layer": layer + 1, "frobenius": frobenius}
            | {"operator": operator, "balance": row.balance, "objective": row.objective}
            for row in trace.itertuples()
            for layer, (frobenius, operator) in enumerate(zip(*row.norms, strict=True))
        ]
    )


def balanced_layers(inputs, targets, beta, depths, *, seed=0):
    """Spread of the layer norms and balancedness of L-BFGS solutions (6.C2), one row per depth.

    ``gradient`` is the max-norm of the gradient: the statement is about stationary points.
    """
    rows = []
    for depth in depths:
        widths = (targets.shape[1],) * (depth - 1)
        network = convex.Network(inputs, targets, beta, widths, "linear")
        best = convex.best_of(network, 3, seed=seed, scale=_LARGE, max_iter=2000).best
        layers = network.layers(best.variables)
        frobenius, operator = metrics.layer_norms(layers)
        spreads = dict(frobenius_spread=np.ptp(frobenius), operator_spread=np.ptp(operator))
        balance = dict(balance=metrics.balancedness(layers))
        rank = metrics.numerical_rank(layers[0])
        aligned = dict(rank=rank, alignment=metrics.alignment(layers, rank=max(rank, 1)))
        rows.append({"depth": depth, "gradient": best.gradient_norm} | spreads | balance | aligned)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Interpolation:
    """Minimum-norm interpolation by a deep linear net, with the last layer eliminated.

    ``norm=None`` pays half the squared norm of all layers (6.C6); a number is the fixed-norm
    variant (6.C8): layers 1..L-2 are confined to that Frobenius norm and only the last two are
    paid.  ``targets`` (n, n) of full rank keep the elimination well conditioned.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    depth: int
    norm: float | None = None

    def layers(self, variables):
        """The free layers, then the minimum-norm last layer that interpolates."""
        layers = [variables[f"weight{i}"] for i in range(1, self.depth)]
        if self.norm is not None:
            layers = [self.norm * w / w.norm() for w in layers[:-1]] + layers[-1:]
        hidden = self.inputs
        for layer in layers:
            hidden = hidden @ layer.mT
        last = hidden.mT @ torch.linalg.solve(hidden @ hidden.mT, self.targets)
        return [*layers, last.mT]

    def objective(self, **variables):
        """Half the squared norms of the layers that are paid for."""
        layers = self.layers(variables)
        paid = layers if self.norm is None else layers[-2:]
        return sum(layer.square().sum() for layer in paid) / 2

    def start(self, generator, scale=1.0):
        """Gaussian layers."""
        n, d = self.inputs.shape
        sizes = [d, *[n] * (self.depth - 1)]
        return {
            f"weight{i + 1}": scale * gaussian(generator, after, before) / before**0.5
            for i, (before, after) in enumerate(itertools.pairwise(sizes))
        }


def minimum_norms(rank, dimension, depths, *, starts=3, seed=0):
    """Trained minimum-norm interpolators against the Schatten quasi-norm (6.C6), per depth."""
    generator, rows = torch.Generator().manual_seed(seed), []
    X, Y = gaussian(generator, rank, dimension), gaussian(generator, rank, rank)
    for depth in depths:
        found = convex.best_of(Interpolation(X, Y, depth), starts, seed=seed, max_iter=3000)
        optimum = theory.minimum_norm_value(X, Y, depth)
        rows.append(_best_row(found, optimum, depth=depth))
    return pd.DataFrame(rows)


def depth_gap(ranks, depths, *, norm=1.3, starts=3, seed=0):
    """Fixed-norm variant (6.C8): primal and dual closed forms, and training, per rank and depth.

    Columns outputs, depth, primal, dual, ratio, trained, converged.
    """
    rows = []
    for rank in ranks:
        generator = torch.Generator().manual_seed(seed + rank)
        X, Y = whitened(generator, rank, rank + 3), gaussian(generator, rank, rank)
        for depth in depths:
            primal, dual = theory.fixed_norm_values(X, Y, depth, norm)
            problem = Interpolation(X, Y, depth, norm)
            found = convex.best_of(problem, starts, seed=seed, max_iter=3000)
            row = dict(outputs=rank, depth=depth, primal=primal, dual=dual, ratio=primal / dual)
            rows.append(row | dict(trained=found.best.value, converged=found.converged))
    return pd.DataFrame(rows)


def rank_one(depths, outputs, *, share=0.3, width=8, starts=3, seed=0):
    """Rank-one inputs, linear and ReLU (6.C9): excess, second singular value, alignment.

    ``share``: beta over the one from which zero is optimal; zero layers are aligned with anything.
    A ReLU net much narrower than ``width`` often starts with a layer that is dead on all inputs.
    """
    rows = []
    for depth, K, activation in itertools.product(depths, outputs, convex.ACTIVATIONS):
        generator = torch.Generator().manual_seed(seed)
        c, a, Y = gaussian(generator, 7).abs(), gaussian(generator, 4), gaussian(generator, 7, K)
        q = float((c[:, None] * a).square().sum())  # the only singular value, squared
        slope = float(a.norm() * (c @ Y).norm()) / q
        beta = share * q * theory.thresholds(slope, depth)[0]
        network = convex.Network(c[:, None] * a, Y, beta, (width,) * (depth - 1), activation)
        found = convex.best_of(network, starts, seed=seed, max_iter=1500)
        layers = network.layers(found.best.variables)
        second = max(float(torch.linalg.svdvals(w)[1:].sum()) for w in layers)
        optimum = theory.rank_one_value(c, a, Y, beta, depth, relu=activation == "relu")
        extra = dict(second_singular=second, alignment=metrics.alignment(layers))
        rows.append(_best_row(found, optimum, depth=depth, K=K, activation=activation) | extra)
    return pd.DataFrame(rows)


# --- one dimension and the plane -----------------------------------------------------------------


def spline_training(x, y, betas, width, starts, *, scale=0.3, max_iter=300, seed=0):
    """Two-layer 1-D nets trained by L-BFGS against the exact Lasso (6.C18), one row per beta.

    Columns beta, gap (duality gap of the Lasso), value, optimum, excess, converged, knot_share
    (knot mass within 1e-3 of a data point).
    """
    rows = []
    for beta in betas:
        exact = theory.fit_spline(x, y, beta)
        network = convex.Network(x, y, beta, (width,), bias="last")
        options = dict(seed=seed, scale=scale, pool=1, max_iter=max_iter, restarts=0)
        found = convex.best_of(network, starts, **options)
        share = metrics.mass_near(*network_knots(found.best.variables), x)
        row = dict(beta=beta, gap=exact.gap, knot_share=share)
        rows.append(_best_row(found, exact.value, **row))
    return pd.DataFrame(rows)


def network_knots(variables):
    """``(positions, masses)`` of the knots of a trained two-layer 1-D network."""
    return metrics.knots(variables["weight1"], variables["bias1"], variables["weight2"])


def spline_networks(x, y, beta, width, grid, *, steps=3000, max_iter=400, starts=3, seed=0):
    """The exact spline and nets trained by L-BFGS and Adam, as curves and knots (6.C16-6.C18).

    Returns ``(curves, knots, summary)``: curves has columns fit, x, y; knots fit, position, mass;
    summary fit, value, optimum, excess, knot_share.
    """
    exact = theory.fit_spline(x, y, beta)
    network = convex.Network(x, y, beta, (width,), bias="last")
    options = dict(seed=seed, pool=1, max_iter=max_iter, restarts=0)
    best = convex.best_of(network, starts, **options).best.variables
    start = network.start(torch.Generator().manual_seed(seed))
    adam, _ = convex.descend(network, start, lr=1e-2, steps=steps)
    exact_knots = metrics.knots(*exact.network()[:3])
    fits = {"exact": (exact(grid), exact_knots, exact.value)}
    for name, point in (("L-BFGS", best), ("Adam", adam)):
        outputs = network.outputs(point, grid)[:, 0].numpy()
        fits[name] = (outputs, network_knots(point), float(network.objective(**point)))
    curves = [
        {"fit": name, "x": u, "y": v}
        for name, (outputs, _, _) in fits.items()
        for u, v in zip(grid, outputs, strict=True)
    ]
    knots = [
        {"fit": name, "position": position, "mass": mass}
        for name, (_, found, _) in fits.items()
        for position, mass in zip(*found, strict=True)
    ]
    summary = [
        _row(value, exact.value, fit=name, knot_share=metrics.mass_near(*found, x))
        for name, (_, found, value) in fits.items()
    ]
    return pd.DataFrame(curves), pd.DataFrame(knots), pd.DataFrame(summary)


def spline_path(x, y, betas):
    """Knots of the exact spline along beta: columns beta, position, mass, value, norm."""
    rows = []
    for beta in betas:
        exact = theory.fit_spline(x, y, float(beta))
        for position, mass in zip(*metrics.knots(*exact.network()[:3]), strict=True):
            row = dict(beta=beta, position=position, mass=mass, value=exact.value, norm=exact.norm)
            rows.append(row)
    return pd.DataFrame(rows)


def random_interpolations(sets, *, seed=0):
    """R* against the linear program on random data (6.C16).

    Columns n, formula, program, gap, worst: the largest dual constraint over a fine grid of knots,
    at most 1.
    """
    rng, rows = np.random.default_rng(seed), []
    for _ in range(sets):
        n = int(rng.integers(3, 12))
        x, y = rng.uniform(-2, 2, n), rng.standard_normal(n)
        program = theory.interpolation_spline(x, y)
        formula = theory.interpolation_norm(x, y)
        offsets = np.linspace(-3, 3, 2001)[:, None] - x
        kinks = np.concatenate([np.maximum(-offsets, 0), np.maximum(offsets, 0)])
        row = dict(n=n, formula=formula, program=program.value, gap=program.gap)
        rows.append(row | dict(worst=np.abs(kinks @ program.dual).max()))
    return pd.DataFrame(rows)


def without_offset(x, y, distances):
    """Least l1 norm of ramps *without* output bias through the points (6.C16).

    One more knot lies ``distance`` left of the data (``None``: knots at the data only).  Columns
    distance, cost.
    """
    x, y, rows = np.asarray(x, dtype=float), np.asarray(y, dtype=float), []
    for distance in distances:
        extra = [] if distance is None else [x.min() - distance]
        offsets = x[:, None] - np.concatenate([x, extra])
        ramps = np.concatenate([np.maximum(offsets, 0), np.maximum(-offsets, 0)], 1)
        found = linprog(np.ones(2 * ramps.shape[1]), A_eq=np.hstack([ramps, -ramps]), b_eq=y)
        rows.append({"distance": distance, "cost": found.fun})
    return pd.DataFrame(rows)


def deep_one_dimensional(points, beta, width, starts, *, max_iter=300, seed=0):
    """Where the deep spline law stops (6.C19): depth 3 on ``points`` equally spaced points.

    Columns case, value, optimum (the law), excess, converged.  With biases in the last hidden layer
    only and x >= 0 the law is reached; with biases everywhere nets go below it.  On inputs of both
    signs it is wrong either way: an even target is cheaper (one kink at 0 serves both sides), an
    odd one dearer (the first layer must carry both half-lines).
    """
    x = np.linspace(-1.5, 1.5, points)
    odd, even = np.sin(2.5 * x), np.cos(2.5 * x)
    cases = {
        "bias in last hidden layer,\nx ≥ 0": (x + 1.5, odd, "last"),
        "bias in every layer,\nx ≥ 0": (x + 1.5, odd, "all"),
        "x of both signs,\neven target": (x, even, "last"),
        "x of both signs,\nodd target": (x, odd, "last"),
    }
    rows = []
    for case, (inputs, y, bias) in cases.items():
        network = convex.Network(inputs, y, beta, (width, width), bias=bias)
        options = dict(seed=seed, scale=0.5, max_iter=max_iter, restarts=0)
        found = convex.best_of(network, starts, **options)
        law = theory.deep_spline(inputs, y, beta, 3).value
        rows.append(_best_row(found, law, case=case.replace("\n", " "), label=case))
    return pd.DataFrame(rows)


def planar(n, betas, width, starts, *, max_iter=800, seed=0):
    """Two-layer ReLU on planar data (6.C4, 6.C20): gap, dual constraint, trained excess per beta.

    ``active`` is the range of ``|residual' (X u_j)_+| / beta`` over the neurons of the exact
    network, ``supremum`` the maximum of the same over all directions.
    """
    generator, rows = torch.Generator().manual_seed(seed), []
    X, y = gaussian(generator, n, 2), gaussian(generator, n)
    for beta in betas:
        exact = theory.two_layer_relu(X, y, beta)
        reached = np.abs(exact.residual @ np.maximum(X.numpy() @ exact.directions.T, 0)) / beta
        network = convex.Network(X, y, beta, (width,))
        found = convex.best_of(network, starts, seed=seed, pool=1, max_iter=max_iter, restarts=0)
        row = dict(beta=beta, gap=exact.gap, neurons=len(exact.weights))
        supremum = theory.largest_activation(X, exact.residual)[0] / beta
        row |= dict(active_low=reached.min(), active_high=reached.max(), supremum=supremum)
        rows.append(_best_row(found, exact.value, **row))
    return pd.DataFrame(rows)


def constraint_curve(n, beta, *, points=721, seed=0):
    """The dual constraint over the circle and the neurons of the exact network (6.C4).

    Returns ``(curve, neurons)``: columns angle (degrees), value (over beta), and for the neurons
    weight.
    """
    generator = torch.Generator().manual_seed(seed)
    X, y = gaussian(generator, n, 2), gaussian(generator, n)
    exact = theory.two_layer_relu(X, y, beta)
    angles = np.linspace(-np.pi, np.pi, points)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    curve = exact.residual @ np.maximum(X.numpy() @ circle, 0) / beta
    at = np.degrees(np.arctan2(exact.directions[:, 1], exact.directions[:, 0]))
    reached = exact.residual @ np.maximum(X.numpy() @ exact.directions.T, 0) / beta
    return (
        pd.DataFrame({"angle": np.degrees(angles), "value": curve}),
        pd.DataFrame({"angle": at, "value": reached, "weight": exact.weights}),
    )


# --- whitened ReLU -------------------------------------------------------------------------------


def whitened_classes(counts, betas, starts, *, depth=2, width=None, max_iter=600, seed=0):
    """Whitened ReLU nets on unequal classes (6.C11): outputs per class against beta.

    ``width``: neurons per layer, by default three per class.  Returns ``(fits, outputs)``: fits has
    columns beta, value, optimum, excess, converged, features and weights (largest deviations of HH'
    and of W_2'W_2 from the closed form), path (path norm minus half the squared weights); outputs
    has columns beta, label, count, output.
    """
    width = width or 3 * len(counts)
    generator = torch.Generator().manual_seed(seed)
    labels = class_labels(counts)
    X, Y = whitened(generator, len(labels), len(labels) + 2), one_hot(labels)
    fits, outputs = [], []
    for beta in betas:
        network = convex.Network(X, Y, float(beta), (width,) * (depth - 1))
        found = convex.best_of(network, starts, seed=seed, max_iter=max_iter)
        variables, shape = found.best.variables, theory.collapse(counts, float(beta), depth)
        H, W = network.hidden(variables), variables[f"weight{depth}"]
        features = float((H @ H.mT - shape.gram(labels)).abs().max())
        weights = float((W @ W.mT - torch.diag(shape.weight_norms**2)).abs().max())
        half = sum(float(w.square().sum()) for w in network.layers(variables)) / 2
        path = metrics.path_norm(*network.layers(variables)) - half if depth == 2 else np.nan
        sizes = dict(features=features, weights=weights, path=path)
        fits.append(_best_row(found, shape.value, beta=beta) | sizes)
        own = (network.outputs(variables) * Y).sum(1)
        for k, count in enumerate(counts):
            mean = float(own[labels == k].mean())
            outputs.append({"beta": beta, "label": k, "count": count, "output": mean})
    return pd.DataFrame(fits), pd.DataFrame(outputs)


def whitened_scalar(n, betas, starts, *, seed=0):
    """One output on whitened data (6.C10): excess over the two-neuron closed form per beta."""
    generator, rows = torch.Generator().manual_seed(seed), []
    X, y = whitened(generator, n, n + 1), gaussian(generator, n)
    for beta in betas:
        network = convex.Network(X, y, beta, (8,))
        found = convex.best_of(network, starts, seed=seed, max_iter=600)
        rows.append(_best_row(found, theory.whitened_relu_value(y, beta), beta=beta))
    return pd.DataFrame(rows)


def optimisers(inputs, labels, beta, width, runs, *, seed=0, rows=80):
    """Full-batch training of a whitened ReLU net, step by step (6.C23).

    ``runs``: name -> options of :func:`ufm.descend`.  Columns run, step, objective,
    excess, gap (objective minus dual bound of the same step), dual, nc1, simplex, orthogonal.
    Returns ``(trace, network, ends)``; ``ends`` maps a run to its final variables.
    """
    Y = one_hot(labels)
    network = convex.Network(inputs, Y, beta, (width,))
    optimum = theory.collapsed_value(labels.bincount(), beta)
    start = network.start(torch.Generator().manual_seed(seed))

    def measure(variables):
        hidden, outputs = network.hidden(variables), network.outputs(variables)
        found = metrics.cosine_deviations(hidden, labels)
        return {"dual": theory.dual_bound(Y - outputs, Y, beta)} | {
            key: found[key] for key in ("nc1", "simplex", "orthogonal")
        }

    traces, ends = [], {}
    for name, options in runs.items():
        ends[name], trace = convex.descend(network, start, measure=measure, rows=rows, **options)
        traces.append(trace.assign(run=name, optimum=optimum))
    trace = pd.concat(traces, ignore_index=True)
    trace["excess"] = trace["objective"] - trace["optimum"]
    trace["gap"] = trace["objective"] - trace["dual"]
    return trace, network, ends


# --- deeper than the theorem ---------------------------------------------------------------------


def deep_values(points, depths, beta):
    """Collapsed and pair network on X = Y = I_K, K pairs of ``points`` (6.C13): value per depth.

    Columns points, K, depth, beta, kind, value.
    """
    rows = []
    for s, depth in itertools.product(points, depths):
        K = s * (s - 1) // 2
        row = dict(points=s, K=K, depth=depth, beta=beta)
        values = {
            "collapsed": theory.collapsed_value([1] * K, beta, depth),
            "pairs": theory.pair_value(s, depth, beta),
        }
        rows += [row | dict(kind=kind, value=value) for kind, value in values.items()]
    return pd.DataFrame(rows)


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
        min(depths) == 3 < max(depths),
        f"parameter descents needs a network of depth 3 and a deeper one, got depths {depths}",
    )


def widened(layers, width, noise, generator):
    """The same network with every hidden layer padded to ``width`` neurons, plus Gaussian noise."""
    sizes = [layers[0].shape[1], *[width] * (len(layers) - 1), len(layers[-1])]
    padded = {}
    for i, layer in enumerate(layers):
        padded[f"weight{i + 1}"] = noise * gaussian(generator, sizes[i + 1], sizes[i])
        padded[f"weight{i + 1}"][: len(layer), : layer.shape[1]] += layer
    return padded


def deep_descents(cases, *, max_iter=1500, noise=0.05, starts=1, seed=0):
    """L-BFGS from the pair network, widened to 2 K neurons per layer (6.C13).

    ``cases``: list of (points, depth, beta).  Returns ``(values, spectra)``: values has columns
    points, K, depth, beta, value, collapsed, pairs, excess (over collapsed), ranks (text),
    gradient; spectra points, depth, layer, index, singular.
    """
    values, spectra = [], []
    for points, depth, beta in cases:
        generator, K = torch.Generator().manual_seed(seed), points * (points - 1) // 2
        identity = torch.eye(K, dtype=torch.float64)
        pairs = theory.scaled_pair_network(points, depth, beta)
        network = convex.Network(identity, identity, beta, (2 * K,) * (depth - 1))
        runs = [widened(pairs, 2 * K, noise, generator) for _ in range(starts)]
        runs = [
            solve.minimize(network.objective, start, max_iter=max_iter, restarts=0)
            for start in runs
        ]
        best = min(runs, key=lambda run: run.value)
        found = network.layers(best.variables)
        ranks = [metrics.numerical_rank(w, tolerance=1e-2, relative=True) for w in found]
        collapsed = theory.collapsed_value([1] * K, beta, depth)
        row = dict(points=points, K=K, depth=depth, beta=beta, value=best.value)
        row |= dict(collapsed=collapsed, pairs=theory.pair_value(points, depth, beta))
        row |= dict(excess=best.value - collapsed, gradient=best.gradient_norm)
        values.append(row | dict(ranks=", ".join(map(str, ranks))))
        spectra += [
            dict(points=points, depth=depth, layer=i + 1, index=j + 1, singular=s)
            for i, layer in enumerate(found)
            for j, s in enumerate(torch.linalg.svdvals(layer).tolist())
        ]
    return pd.DataFrame(values), pd.DataFrame(spectra)


# --- batch norm and other losses -----------------------------------------------------------------


def batch_norm_heads(counts, betas, dimension, starts, *, width=16, max_iter=1500, seed=0):
    """BN heads on random features (6.C14): closed-form weights, certificate, training, per beta.

    Columns beta, closed (cost of the explicit weights minus the value), certificate (dual bound at
    them minus the value), value, optimum, excess, converged.
    """
    generator, rows = torch.Generator().manual_seed(seed), []
    labels = class_labels(counts)
    A, Y = gaussian(generator, len(labels), dimension), one_hot(labels)
    for beta in betas:
        problem = convex.BatchNormNetwork(A, Y, beta, width)
        found = convex.best_of(problem, starts, seed=seed, max_iter=max_iter, restarts=0)
        optimum = theory.collapsed_value(counts, beta)
        row = dict(beta=beta)
        if dimension >= len(labels) - 1:
            head = theory.batch_norm_head(A, labels, beta)
            point = {name: getattr(head, name) for name in ("hidden_weight", "gamma", "alpha")}
            row["closed"] = float(problem.objective(**point, weight=head.weight)) - optimum
            row["certificate"] = theory.dual_bound(Y - head(A), Y, beta) - optimum
        rows.append(_best_row(found, optimum, **row))
    return pd.DataFrame(rows)


def cross_entropy(per_class, K, betas, *, starts=2, seed=0):
    """Whitened ReLU nets with cross-entropy (6.C22): trained excess and dual gap per beta."""
    generator, rows = torch.Generator().manual_seed(seed), []
    labels = class_labels([per_class] * K)
    X = whitened(generator, len(labels), len(labels) + 2)
    for beta in betas:

        def objective(weight1, weight2, beta=beta):
            logits = (X @ weight1.mT).clamp(min=0) @ weight2.mT
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            return loss + beta / 2 * (weight1.square().sum() + weight2.square().sum())

        network = convex.Network(X, one_hot(labels), beta, (3 * K,))
        points = [network.start(generator) for _ in range(8 * starts)]
        found = convex.lowest(objective, points, starts, max_iter=800)
        optimum = theory.cross_entropy_value(per_class, K, beta)
        ideal = theory.cross_entropy_margin(per_class, K, beta) * one_hot(labels)
        gap = optimum - theory.cross_entropy_dual_bound(ideal, labels, beta)
        rows.append(_best_row(found, optimum, beta=beta, gap=gap))
    return pd.DataFrame(rows)


def unconstrained(per_class, K, lambda_w, lambda_h, *, starts=2, seed=0):
    """Non-negative unconstrained features (6.C21) trained, against the whitened closed form."""
    n, labels = per_class * K, class_labels([per_class] * K)
    generator = torch.Generator().manual_seed(seed)

    def objective(root, weight):
        features = root.square()
        miss = (features @ weight.mT - one_hot(labels)).square().sum() / (2 * n)
        return miss + (lambda_w * weight.square().sum() + lambda_h * features.square().sum()) / 2

    points = [
        {"root": gaussian(generator, n, K + 3), "weight": gaussian(generator, K, K + 3)}
        for _ in range(8 * starts)
    ]
    found = convex.lowest(objective, points, starts, max_iter=1500)
    beta = theory.ufm_beta(n, lambda_w, lambda_h)
    return _best_row(found, theory.collapsed_value([per_class] * K, beta) / n, beta=beta)
