"""Result 5: the numerical experiments on the extended unconstrained-features model, as tables.

Each function returns a tidy DataFrame (or a few) for the notebook's figures and claims.
"""

import math

import numpy as np
import pandas as pd
import torch

from nclib import checks
from nclib.metrics import frame_distances, geometry
from nclib.results.extended_ufm import metrics, theory
from nclib.results.extended_ufm.ufm import (
    ExtendedUFM,
    balancedness,
    central_path,
    descend,
    perturbed,
    settle,
    solve,
    sweep,
)
from nclib.ufm.solve import hessian_eigenvalues, minimize, minimize_many

__all__ = [
    "bias_maps",
    "best_start",
    "bias_table",
    "chain_gap",
    "chain_ratios",
    "check_closed_form",
    "class_means",
    "depth_race",
    "dynamics",
    "equal_decays",
    "fall_factors",
    "flow_table",
    "gram_table",
    "imbalance_table",
    "joint_descent",
    "ladder_levels",
    "ladder_table",
    "landscape_table",
    "layer_duality",
    "perturbation_table",
    "phase_curves",
    "phase_sweeps",
    "rank_levels",
    "refined_ratio",
    "refined_table",
    "require_nonzero",
    "relu_shapes",
    "scale_free_minima",
    "slopes",
    "spread_of",
    "surviving_sizes",
    "threshold_table",
    "value_and_geometry",
]


def equal_decays(kappa, M, *, K, n):
    """The common decay λ of all M + 1 factors that gives this κ: λ = κ / (K n^{1/(M+1)})."""
    return kappa / (K * n ** (1 / (M + 1)))


def require_nonzero(parameter, class_counts, decays, lambda_h):
    """Raise :class:`~nclib.checks.InputError` if a decay is so large that the minimum is zero.

    ``decays``: the weight decays per layer of each problem, without and with a free bias;
    ``parameter``: how the error calls them.
    """
    for lambdas in decays:
        for bias in ("none", "free"):
            point = theory.optimum(
                class_counts=class_counts, lambdas=lambdas, lambda_h=lambda_h, bias=bias
            )
            checks.require(
                not point.is_zero,
                f"parameter {parameter}: so large that the minimum of {len(lambdas)} layer(s) is "
                "zero; lower it",
            )


def class_means(problem, features):
    """(K, d) means of the rows of each class."""
    return geometry.class_means(features, problem.labels)[0]


def layer_duality(problem, variables):
    """NC3 (form a) of every pair W_M⋯W_j, H̄_j; with ReLU of the last pair only.  Layer -> float.

    A model with free bias is compared with centred means.
    """
    layers = problem.layers(variables)
    product, found = None, {}
    for j in range(problem.depth, 0, -1):
        weight = variables[f"weight_{j}"]
        product = weight if product is None else product @ weight
        means = class_means(problem, layers[f"H{j}"])
        distance = metrics.self_duality(product, means, centre=problem.bias == "free")
        found[f"H{j}"] = distance["a"]
        if problem.relu:
            break
    return found


# --- closed forms against the solver -------------------------------------------------------------


def best_start(problem, *, tries=4, seed=0, **options):
    """:func:`~ufm.solve`, ``tries`` times at most while stuck: ``(found, above)``.

    ``found``: the :class:`~ufm.Restarts` with the lowest ``best``.  ``above``: its
    value minus the objective at the explicit point of the closed form.  A search that ends above a
    known point got stuck, whatever value the closed form states.
    """
    explicit = theory.realise(problem.optimum(), widths=problem.widths)
    known, runs = float(problem.objective(**explicit)), []
    while len(runs) < tries and not any(f.best.value <= known + 1e-9 for f in runs):
        runs.append(solve(problem, seed=seed + 1000 * len(runs), **options))
    found = min(runs, key=lambda f: f.best.value)
    return found, found.best.value - known


def check_closed_form(problems, *, restarts=5, init_scale=0.5, seed=0):
    """Each problem solved from random starts and compared with its closed form.

    Columns: ``M, bias, relu, value, gap`` (best minus closed form), ``above`` (best minus the
    explicit point, see :func:`best_start`), ``lowest`` (worst case below the closed form), ``gram,
    logits, offset`` (errors of class Gram matrix, class logits, bias), ``nc1`` and the largest
    ``of``, ``etf``, ``nc3`` over layers, ``norm`` (largest relative error of ‖h‖²).
    """
    rows = []
    for problem in problems:
        options = {"restarts": restarts, "init_scale": init_scale, "seed": seed}
        found, above = best_start(problem, **options)
        point, best = problem.optimum(), found.best.variables
        layers = {k: v for k, v in problem.layers(best).items() if k.startswith("H")}
        table = metrics.layer_table(layers, problem.labels)
        means = class_means(problem, best["features"])
        logits = class_means(problem, problem.logits(best))
        norms = best["features"].square().sum(1)
        expected = point.feature_norms_sq[problem.labels]
        offset = (best["bias"] - point.bias).abs().max() if "bias" in best else 0.0
        rows.append(
            {
                "M": problem.depth,
                "bias": str(problem.bias),
                "relu": problem.relu,
                "value": point.value,
                "gap": found.best.value - point.value,
                "above": above,
                "lowest": float(found.values.min()) - point.value,
                "gram": float((means @ means.T - point.mean_gram).abs().max()),
                "logits": float((logits - point.class_logits).abs().max()),
                "offset": float(offset),
                "nc1": table["nc1"].max(),
                "of": table["of"].max(),
                "etf": table["etf"].max(),
                "nc3": max(layer_duality(problem, best).values()),
                "norm": float((norms / expected - 1).abs().max()),
            }
        )
    return pd.DataFrame(rows)


# --- gradient descent ----------------------------------------------------------------------------


def dynamics(problem, *, lr, steps, init_scale=0.1, seed=0, seeds=1, record=60):
    """Gradient descent from ``seeds`` random starts: ``(table, snapshots)``.

    ``table``: one row per record, seed and layer with ``step, seed, layer, excess`` (objective
    minus closed form), ``balance`` (largest residual of the conservation laws), ``nc3`` and the
    metrics of :func:`~metrics.layer_table`.  ``snapshots``: final variables per seed.
    """
    generator = torch.Generator().manual_seed(seed)
    start = problem.start(init_scale, generator=generator, batch=(seeds,))
    run = descend(problem, start, lr=lr, steps=steps, record=record)
    floor, rows = problem.optimum().value, []
    for step, values, shot in zip(run.steps, run.values, run.snapshots, strict=True):
        for s in range(seeds):
            own = {name: tensor[s] for name, tensor in shot.items()}
            table = metrics.layer_table(problem.layers(own), problem.labels)
            duality = layer_duality(problem, own)
            table["nc3"] = [duality.get(layer, math.nan) for layer in table["layer"]]
            gap = max(balancedness(problem, own)) if problem.depth > 1 else math.nan
            rows.append(
                table.assign(step=step, seed=s, excess=float(values[s]) - floor, balance=gap)
            )
    final = [{name: tensor[s] for name, tensor in run.final.items()} for s in range(seeds)]
    return pd.concat(rows, ignore_index=True), final


def joint_descent(problem, *, lr, steps, starts, init_scale, seed=0, every=4):
    """NC1 of H under gradient descent of all variables: rows ``start, step, nc1``."""
    generator = torch.Generator().manual_seed(seed)
    start = problem.start(init_scale, generator=generator, batch=(starts,))
    run = descend(problem, start, lr=lr, steps=steps, record=range(0, steps + 1, every))
    rows = [
        {"start": i, "step": step, "nc1": geometry.trace_ratio(features, problem.labels)}
        for step, shot in zip(run.steps, run.snapshots, strict=True)
        for i, features in enumerate(shot["features"])
    ]
    return pd.DataFrame(rows)


def slopes(table, column, *, start, end):
    """Least-squares slope of log ``column`` against step from ``start`` to ``end``, per layer."""
    late = table[table["step"].between(start, end) & (table["seed"] == 0)]
    return {
        layer: float(np.polyfit(part["step"], np.log(part[column]), 1)[0])
        for layer, part in late.groupby("layer")
    }


def fall_factors(table, column, *, start):
    """First value from step ``start`` on over the last one, per seed (rows) and layer (columns)."""
    late = table[table["step"] >= start].groupby(["seed", "layer"])[column]
    return (late.first() / late.last()).unstack()


def spread_of(table, column, layer):
    """Largest minus smallest final value of ``column`` over the seeds, for one layer."""
    final = table[(table["step"] == table["step"].max()) & (table["layer"] == layer)]
    return float(final[column].max() - final[column].min())


def gram_table(named_means):
    """Cosine matrices of class means as rows ``name, row, column, cosine``."""
    rows = []
    for name, means in named_means.items():
        unit = means / means.norm(dim=1, keepdim=True)
        cosines = unit @ unit.T
        rows += [
            {"name": name, "row": i, "column": j, "cosine": float(cosines[i, j])}
            for i in range(len(means))
            for j in range(len(means))
        ]
    return pd.DataFrame(rows)


# --- phases and landscape ------------------------------------------------------------------------


def phase_curves(depths, *, points=200):
    """Closed form against κ: ``M, kappa, local`` (u of the non-zero minimum), ``u``, ``value``."""
    rows = []
    for M in depths:
        for kappa in np.linspace(0, 1.08, points):
            local, u = theory.local_scale(kappa, M), theory.global_scale(kappa, M)
            value = theory.scalar_loss(u, kappa, M)
            rows.append({"M": M, "kappa": kappa, "local": local, "u": u, "value": value})
    return pd.DataFrame(rows)


def phase_sweeps(depths, *, K, n, width, points=12, seed=0):
    """The optimiser followed up and down in κ: rows ``M, direction, kappa, scale, value``."""
    rows = []
    for M in depths:

        def problem_at(kappa, M=M):
            lam = equal_decays(kappa, M, K=K, n=n)
            return ExtendedUFM([n] * K, [lam] * M, lam, widths=width)

        kappas = np.linspace(0.04, 1.15, points) * theory.existence_threshold(M)
        start = theory.realise(problem_at(kappas[0]).optimum(), widths=width)
        origin = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
        for direction, grid, first in (("up", kappas, start), ("down", kappas[::-1], origin)):
            found = sweep(problem_at, grid, first, seed=seed)
            rows += [{"M": M, "direction": direction} | row for row in found]
    return pd.DataFrame(rows)


def threshold_table(depths, factors, *, K, n, width, seed=0):
    """Around κ*: rows ``M, factor, value, scale`` of the solver at κ = factor · κ*(M).

    It starts at the non-zero local minimum (at random where there is none) with a kick of 1e-2.
    """
    rows, generator = [], torch.Generator().manual_seed(seed)
    for M in depths:
        for factor in factors:
            kappa = factor * theory.threshold(M)
            lam = equal_decays(kappa, M, K=K, n=n)
            problem = ExtendedUFM([n] * K, [lam] * M, lam, widths=width)
            start = problem.start(1e-2, generator=generator)
            if kappa < theory.existence_threshold(M):
                made = theory.realise(problem.critical_point(range(K)), widths=width)
                start = {name: made[name] + start[name] for name in start}
            end, value = settle(problem, start)
            scale = float(class_means(problem, problem.logits(end)).diagonal().mean())
            rows.append({"M": M, "factor": factor, "value": value, "scale": scale})
    return pd.DataFrame(rows)


def flow_table(settings, *, K, n, d, time=8.0, points=40, seed=0):
    """Central paths (claim 5.E11): rows ``setting, time, nc1, within, between``.

    ``settings``: (λ_W, λ_H) pairs.  ``within`` and ``between``: the two traces times e^{2Nλ_H t},
    predicted to fall and to grow.
    """
    labels = torch.arange(K).repeat_interleave(n)
    generator, tables = torch.Generator().manual_seed(seed), []
    for lambda_w, lambda_h in settings:
        start = torch.randn(K * n, d, generator=generator, dtype=torch.float64)
        times = np.linspace(0, time, points)
        path = central_path(start, labels, lambda_w=lambda_w, lambda_h=lambda_h, times=times)
        grow = np.exp(2 * K * n * lambda_h * times)
        columns = {"within": grow * path.within, "between": grow * path.between}
        name = rf"$\lambda_W={lambda_w:g}$, $\lambda_H={lambda_h:g}$"
        tables.append(pd.DataFrame({"setting": name, "time": times, "nc1": path.nc1} | columns))
    return pd.concat(tables, ignore_index=True)


def perturbation_table(betas, *, K, n, d, lam, seed=0):
    """Features tied to random ones H_0: rows ``beta, nc1, anchor`` (NC1 of H and of H_0)."""
    problem = ExtendedUFM([n] * K, [lam], lam, widths=d)
    generator, rows = torch.Generator().manual_seed(seed), []
    anchor = torch.randn(K * n, d, generator=generator, dtype=torch.float64)
    start = problem.start(0.3, generator=generator)
    before = geometry.trace_ratio(anchor, problem.labels)
    for beta in betas:
        found = minimize(perturbed(problem, anchor, beta), start)
        after = geometry.trace_ratio(found.variables["features"], problem.labels)
        rows.append({"beta": beta, "nc1": after, "anchor": before})
    return pd.DataFrame(rows)


def ladder_table(depths, scales, *, kappa, K, n, width, runs=60, seed=0):
    """Final losses of gradient descent: rows ``M, init_scale, value, rank, gap``.

    ``runs`` random starts per depth and scale descend together and are then polished by L-BFGS;
    ``rank`` is that of the nearest level f_r and ``gap`` the distance to it (claim 5.E13).
    """
    rows, generator = [], torch.Generator().manual_seed(seed)
    sizes = torch.tensor(scales, dtype=torch.float64).repeat_interleave(runs)
    for M in depths:
        lam = equal_decays(kappa, M, K=K, n=n)
        problem = ExtendedUFM([n] * K, [lam] * M, lam, widths=width)
        start = problem.start(1.0, generator=generator, batch=(len(sizes),))
        start = {name: sizes[:, None, None] * tensor for name, tensor in start.items()}
        descended = descend(problem, start, lr=0.2, steps=500, record=2).final
        values = minimize_many(problem.objective, descended).values
        levels = torch.tensor(rank_levels(problem), dtype=torch.float64)
        gaps, ranks = (values[:, None] - levels).abs().min(1)
        columns = {"init_scale": sizes, "value": values, "rank": ranks, "gap": gaps}
        rows.append(pd.DataFrame({"M": M} | columns))
    return pd.concat(rows, ignore_index=True)


def rank_levels(problem):
    """Losses f_0 > … > f_K of the critical points of rank 0..K (balanced classes)."""
    directions = len(problem.optimum().kappas)
    return [problem.critical_point(range(r)).value for r in range(directions + 1)]


def ladder_levels(depths, *, kappa, K, n):
    """M -> levels f_0, …, f_K at equal decays."""
    found = {}
    for M in depths:
        lam = equal_decays(kappa, M, K=K, n=n)
        found[M] = rank_levels(ExtendedUFM([n] * K, [lam] * M, lam, widths=K))
    return found


def landscape_table(depths, *, kappa, K, n, width, kick=1e-3, seed=0):
    """Critical points of every rank: Hessian index and nullity, and what a small kick does.

    Rows ``M, rank, level, index, index_theory, nullity, nullity_theory, lowest, curvature`` (closed
    form, M = 1), ``returned`` (value reached after the kick minus the level).
    """
    rows, generator = [], torch.Generator().manual_seed(seed)
    for M in depths:
        lam = equal_decays(kappa, M, K=K, n=n)
        lambdas = [lam * 1.1**j for j in range(M)]  # unequal on purpose
        problem = ExtendedUFM([n] * K, lambdas, lam, widths=width)
        for r in range(K + 1):
            point = problem.critical_point(range(r))
            at = theory.realise(point, widths=width, generator=generator)
            spectrum = hessian_eigenvalues(problem.objective, at)
            noise = problem.start(kick, generator=generator)
            _, reached = settle(problem, {k: at[k] + noise[k] for k in at})
            known = theory.lowest_curvature(point) if M == 1 and r < K else math.nan
            rows.append(
                {
                    "M": M,
                    "rank": r,
                    "level": point.value,
                    "index": int((spectrum < -1e-9).sum()),
                    "index_theory": theory.hessian_index(point, widths=width),
                    "nullity": int((spectrum.abs() <= 1e-9).sum()),
                    "nullity_theory": theory.orbit_dimension(point, widths=width),
                    "lowest": float(spectrum[0]),
                    "curvature": known,
                    "returned": reached - point.value,
                }
            )
    return pd.DataFrame(rows)


# --- bias and imbalance --------------------------------------------------------------------------


def bias_table(grid, depths, *, kappa, K, n, width, measure, seed=0):
    """Geometry against the decay of the bias: rows ``M, lambda_b, bias, common, mean, of, etf``.

    ``common`` and ``mean``: eigenvalues of the class means' Gram matrix, of the K−1 equal
    directions and of the mean direction.  ``measure=False``: closed form; ``True``: the solver,
    with the columns ``gap`` and ``above`` of :func:`check_closed_form`.
    """
    rows = []
    for M in depths:
        lam = equal_decays(kappa, M, K=K, n=n)
        for lambda_b in grid:
            problem = ExtendedUFM([n] * K, [lam] * M, lam, bias=float(lambda_b), widths=width)
            point = problem.optimum()
            gram, bias, gap, above = point.mean_gram, point.bias, 0.0, 0.0
            if measure:
                # The mean direction opens from large starting values only.
                options = {"restarts": 12, "init_scale": 1.0, "seed": seed}
                found, above = best_start(problem, **options)
                means = class_means(problem, found.best.variables["features"])
                gram, bias = means @ means.T, found.best.variables["bias"]
                gap = found.best.value - point.value
            mean = float(gram.sum()) / K
            common = (float(gram.trace()) - mean) / (K - 1)
            values, vectors = torch.linalg.eigh(gram)
            shape = vectors * values.clamp(min=0).sqrt()
            row = {"M": M, "lambda_b": float(lambda_b), "bias": float(bias.mean())}
            row |= {"common": common, "mean": max(mean, 0.0), "gap": gap, "above": above}
            rows.append(row | frame_distances(shape))
    return pd.DataFrame(rows)


def bias_maps(grid, *, kappa, K, n, width):
    """Cosines of the class means for every decay of the bias, M = 1: rows of :func:`gram_table`."""
    lam = equal_decays(kappa, 1, K=K, n=n)
    named = {}
    for lambda_b in grid:
        problem = ExtendedUFM([n] * K, [lam], lam, bias=float(lambda_b), widths=width)
        made = theory.realise(problem.optimum(), widths=width)
        named[rf"$\lambda_b={lambda_b:g}$"] = class_means(problem, made["features"])
    return gram_table(named)


def value_and_geometry(problem, *, starts, seed=0):
    """Several solutions of one problem: rows ``value, of, etf`` (claim 5.E17)."""
    rows = []
    for i in range(starts):
        found = best_start(problem, restarts=2, seed=seed + i)[0].best
        means = class_means(problem, found.variables["features"])
        rows.append({"value": found.value} | frame_distances(means))
    return pd.DataFrame(rows)


def surviving_sizes(problem, *, restarts=6, seed=0):
    """Sizes of the classes whose features do not vanish at the best point found, and ``above`` of
    :func:`best_start`."""
    found, above = best_start(problem, restarts=restarts, init_scale=0.7, seed=seed)
    norms = class_means(problem, found.best.variables["features"]).norm(dim=1)
    kept = (norms > 1e-3 * norms.max()).tolist()
    sizes = [n for n, keep in zip(problem.class_counts, kept, strict=True) if keep]
    return sizes, above


def imbalance_table(class_counts, depths, *, lam, width, measure, seed=0):
    """Norms per class: rows ``M, bias, n_k, feature, weight, logit`` (and ``gap`` of the value).

    ``feature``: ‖h‖ of the class, ``weight``: ‖w_k‖ of the last layer, ``logit``: logit of the true
    class.  ``measure=False``: closed form.
    """
    rows = []
    for M in depths:
        for bias in ("none", "free"):
            problem = ExtendedUFM(class_counts, [lam] * M, lam, bias=bias, widths=width)
            point = problem.optimum()
            variables, gap = theory.realise(point, widths=width), 0.0
            if measure:
                found, _ = best_start(problem, restarts=8, init_scale=0.7, seed=seed)
                variables, gap = found.best.variables, found.best.value - point.value
            features = class_means(problem, variables["features"]).norm(dim=1)
            weights = variables[f"weight_{M}"].norm(dim=1)
            logits = class_means(problem, problem.logits(variables)).diagonal()
            for k, n_k in enumerate(class_counts):
                row = {"M": M, "bias": bias, "class": k, "n_k": n_k, "gap": gap}
                row |= {"feature": float(features[k]), "weight": float(weights[k])}
                rows.append(row | {"logit": float(logits[k])})
    return pd.DataFrame(rows)


# --- ReLU ----------------------------------------------------------------------------------------


def relu_shapes(shapes, *, n, lambdas, lambda_h, widths, seed=0):
    """Explicit ReLU points of several Gram shapes (claim 5.E8): ``shape, excess, slope, of``.

    ``slope``: largest gradient entry; ``of``: orthogonal-frame distance of H_1.
    """
    rows = []
    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(seed)
        variables = theory.relu_point(
            shape,
            n=n,
            lambdas=lambdas,
            lambda_h=lambda_h,
            widths=widths,
            generator=generator,
            require_obtuse=False,
        )
        problem = ExtendedUFM([n] * len(shape), lambdas, lambda_h, relu=True, widths=widths)
        excess = float(problem.objective(**variables)) - problem.optimum().value
        slope = max(float(g.abs().max()) for g in problem.gradient(variables).values())
        means = class_means(problem, variables["features"])
        row = {"shape": name, "excess": excess, "slope": slope}
        rows.append(row | {"of": frame_distances(means)["of"]})
    return pd.DataFrame(rows)


def scale_free_minima(classes, *, restarts=3, max_iter=300, seed=0):
    """Smallest ‖σ(Z)⁺‖² ‖Z‖_*² / K³ found by an optimiser, per K (claim 5.E7): ``K, ratio``.

    Random starts plus the circle of K points, in width K + 2.
    """
    rows, generator = [], torch.Generator().manual_seed(seed)
    for K in classes:
        start = torch.randn(restarts + 1, K, K + 2, generator=generator, dtype=torch.float64)
        angles = 2 * math.pi * torch.arange(K, dtype=torch.float64) / K
        start[-1, :, :K] = torch.cos(angles[:, None] - angles) + 1e-3 * start[-1, :, :K]

        def objective(Z, K=K):
            active = Z.relu()
            inverse = torch.linalg.inv(active @ active.T + 1e-14 * torch.eye(K).double())
            return inverse.trace().log() + 2 * torch.linalg.svdvals(Z).sum().log()

        found = minimize_many(objective, {"Z": start}, max_iter=max_iter)
        ratios = [theory.two_layer_ratio(Z) for Z in found.variables["Z"]]
        rows.append({"K": K, "ratio": min(ratios)})
    return pd.DataFrame(rows)


def chain_ratios(nodes, depths, *, kappa_share):
    """Loss of the low-rank graph chain over deep neural collapse: ``K, L, cost, ratio``.

    κ = ``kappa_share`` · κ*(L) at every depth; one sample per class.
    """
    rows = []
    for L in depths:
        for r in nodes:
            K = r * (r - 1) // 2
            lam = equal_decays(kappa_share * theory.threshold(L), L, K=K, n=1)
            found = theory.graph_competitor(r, n=1, lambdas=[lam] * L, lambda_h=lam)
            rows.append({"K": K, "L": L, "cost": found.cost, "ratio": found.ratio})
    return pd.DataFrame(rows)


def chain_gap(r, lambdas, lambda_h):
    """|objective − closed form| of the graph chain on r nodes, two samples per class."""
    means, weights = theory.complete_graph_chain(r, len(lambdas))
    setting = {"lambdas": lambdas, "lambda_h": lambda_h}
    value, variables = theory.chain_point(means, weights, n=2, **setting)
    problem = ExtendedUFM([2] * len(means), **setting, relu=True, widths=len(means))
    return abs(float(problem.objective(**variables)) - value)


def refined_table(chains, *, width, kappa_share, max_iter=3000, seed=0):
    """Low-rank chains before and after refinement: rows ``K, L, explicit, ratio``."""
    rows = []
    for means, weights in chains:
        pair = refined_ratio(
            (means, weights), width=width, kappa_share=kappa_share, max_iter=max_iter, seed=seed
        )
        rows.append({"K": len(means), "L": len(weights), "explicit": pair[0], "ratio": pair[1]})
    return pd.DataFrame(rows)


def refined_ratio(chain, *, width, kappa_share, kick=0.02, max_iter=400, seed=0):
    """Loss over that of deep neural collapse: ``(explicit chain, after local refinement)``.

    ``chain``: (means, weights) of :mod:`theory`, padded to ``width`` neurons in
    all layers and moved by a Gaussian ``kick`` before L-BFGS.  One sample per class.
    """
    means, weights = chain
    K, L = len(means), len(weights)
    lam = equal_decays(kappa_share * theory.threshold(L), L, K=K, n=1)
    setting = {"lambdas": [lam] * L, "lambda_h": lam}
    value, variables = theory.chain_point(means, weights, n=1, **setting)
    problem = ExtendedUFM([1] * K, **setting, relu=True, widths=width)
    start = problem.start(kick, generator=torch.Generator().manual_seed(seed))
    for name, tensor in variables.items():
        rows, columns = tensor.shape
        start[name][:rows, :columns] += tensor
    found = minimize(problem.objective, start, max_iter=max_iter, restarts=0)
    dnc = problem.optimum().value
    return value / dnc, found.value / dnc


def depth_race(K, L, *, width, kappa_share, restarts, n=1, max_iter=400, seed=0):
    """ReLU restarts against deep neural collapse: ``(ratios, singular values)`` (claims E19, E20).

    ``ratios``: final losses over the closed form of deep neural collapse.  ``singular values``: of
    the class means of every layer at the best point, relative to the largest (``layer, index,
    value``).
    """
    checks.real("kappa_share", kappa_share, above=0, below=1)
    lam = equal_decays(kappa_share * theory.threshold(L), L, K=K, n=n)
    problem = ExtendedUFM([n] * K, [lam] * L, lam, relu=True, widths=width)
    scales = (0.5, 1.0, 0.3)
    found = solve(problem, restarts=restarts, init_scale=scales, seed=seed, max_iter=max_iter)
    rows = []
    for layer, features in problem.layers(found.best.variables).items():
        if layer.startswith("H"):
            values = torch.linalg.svdvals(class_means(problem, features))
            rows += [
                {"layer": layer, "index": i + 1, "value": float(v / values[0])}
                for i, v in enumerate(values)
            ]
    return found.values / problem.optimum().value, pd.DataFrame(rows)
