"""Result 5: numerical experiments on the extended unconstrained-features model, as tables.

Rows and tables for the notebook's figures and claims.  Layers are named as in the paper: H1 are the
free features, H2 = W1 H1 (or its ReLU) what the second layer sees, and so on.
"""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp
from torch import nn

from nclib import checks, losses
from nclib.deep import collect, nets, train
from nclib.deep.data import Data
from nclib.metrics import frame_distances, geometry
from nclib.results.extended_ufm import metrics, theory
from nclib.results.extended_ufm.nets import RegularisedHead, block_features, blocks
from nclib.table import log_spaced, matrices
from nclib.ufm import landscape, scalar
from nclib.ufm.flow import descend
from nclib.ufm.model import UFM
from nclib.ufm.solve import best, hessian_eigenvalues, minimize, minimize_many

BIASES = {"none": None, "free": 0.0}


def balanced(M, kappa, *, K, n, **options):
    """The balanced problem of M layers whose decays are all equal, at strength κ."""
    lam = kappa / (K * n ** (1 / (M + 1)))
    return theory.problem([n] * K, [lam] * (M + 1), **options)


def require_nonzero(parameter, counts, decays):
    """Raise :class:`~nclib.checks.InputError` if decays are so large that the minimum is zero,
    without bias or with a free one.  ``parameter``: how the error calls them."""
    for bias in BIASES.values():
        point = theory.optimum(theory.problem(counts, decays, widths=len(counts), bias=bias))
        checks.require(
            not point.is_zero,
            f"parameter {parameter}: so large that the minimum of {len(decays) - 1} layer(s) is "
            "zero; lower it",
        )


def bias_openings(kappa, grid):
    """M -> decay of the bias at which the mean direction appears, for M = 1, 2 (claim 5.E4).

    Raises :class:`~nclib.checks.InputError` unless the grid has decays on both sides of one."""
    found = {M: kappa / (theory.thresholds(M)[0] - kappa) for M in (1, 2)}
    checks.require(
        min(grid) < max(found.values()) and max(grid) > min(found.values()),
        f"parameter lambda_b_grid needs decays on both sides of one of {list(found.values())}",
    )
    return found


def class_means(problem, features):
    """(K, d) means of the rows of each class."""
    return geometry.class_means(features, problem.targets)[0]


def layers(problem, point):
    """Activations by name, in order: H1, H2, …; with ReLU the pre-activations W1H1, … too."""
    found = {}
    for j, hidden in enumerate(problem.activations(point), start=1):
        found[f"H{j}"] = hidden
        if problem.relu and j < len(problem.layers):
            found[f"W{j}H{j}"] = hidden @ point[f"hidden_{j}"].mT
    return found


def layer_duality(problem, point):
    """NC3 (form a) of every pair W_M⋯W_j, H̄_j; with ReLU of the last pair only.  Layer -> float.

    A model with free bias is compared with centred means.
    """
    product, found, hidden = None, {}, layers(problem, point)
    for j, name in reversed(list(enumerate(problem.layers, start=1))):
        product = point[name] if product is None else product @ point[name]
        means = class_means(problem, hidden[f"H{j}"])
        found[f"H{j}"] = metrics.self_duality(product, means, centre=problem.bias == 0.0)["a"]
        if problem.relu:
            break
    return found


# --- closed forms against the solver -------------------------------------------------------------


def search(problem, *, starts=5, scale=0.5, seed=0, tries=4, newton=0):
    """``(best, above)``: minima from ``starts`` starts, with new ones, ``tries`` times at most,
    while stuck; ``newton`` steps polish the best of each.

    ``above``: the lowest value minus that of the explicit point of the closed form.  A search that
    ends above a known point got stuck, whatever value the closed form states: deep models have
    rank-deficient minima (claim 5.E13), and kinks of a ReLU stop quasi-Newton steps near 1e-9.
    """
    known = float(problem.value(theory.realise(theory.optimum(problem))))
    options = {"scale": scale, "refine": True, "newton": newton}
    options["max_iter"] = 400 if problem.relu else 2000
    found = []
    while len(found) < tries and not any(f.value <= known + 1e-9 for f in found):
        found.append(best(problem, starts, seed=seed + 1000 * len(found), **options))
    lowest = min(found, key=lambda f: f.value)
    return lowest, lowest.value - known


def closed_forms(problems, **options):
    """Problems solved from random starts (:func:`search`) and compared with their closed forms.

    ``gap`` (|best − closed form|), ``above`` (best minus explicit point), ``below`` (closed form
    minus the lowest start), ``gram, logits, offset`` (errors of class Gram matrix, class logits,
    bias; ``geometry``: of the first and the last; ``centred_gram``: of the centred class means),
    ``norm`` (relative error of ‖h‖²), ``etf_raw`` (distance of the uncentred means to an ETF),
    ``last_of`` (``of`` of the last layer), ``nuclear`` (:func:`nuclear_gain`), and over layers
    ``nc1, of, etf, nc3`` (``frames``: the largest of the first, second and last).
    """
    rows = []
    for problem in problems:
        found, above = search(problem, **options)
        known, point = theory.optimum(problem), found.point
        hidden = {k: v for k, v in layers(problem, point).items() if k.startswith("H")}
        means = class_means(problem, point["features"])
        logits = class_means(problem, problem.logits(point))
        norms = point["features"].square().sum(1) / known.feature_norms_sq[problem.targets]
        offset = (point["bias"] - known.bias).abs().max() if "bias" in point else 0.0
        wrong = means @ means.T - known.mean_gram
        middle = geometry.centred(torch.eye(problem.K, dtype=torch.float64))
        row = {
            "gap": abs(found.value - known.value),
            "above": above,
            "below": known.value - float(found.values.min()),
            "gram": float(wrong.abs().max()),
            "centred_gram": float((middle @ wrong @ middle).abs().max()),
            "etf_raw": frame_distances(means, centre=False)["etf"],
            "logits": float((logits - known.class_logits).abs().max()),
            "offset": float(offset),
            "norm": float((norms - 1).abs().max()),
            "nc3": max(layer_duality(problem, point).values()),
            "nuclear": nuclear_gain(problem, point),
        }
        table = metrics.layer_table(hidden, problem.targets)[["nc1", "of", "etf"]]
        row |= table.max(skipna=False).to_dict() | {"last_of": table["of"].iloc[-1]}
        row["geometry"] = max(row["gram"], row["offset"])
        row["frames"] = np.max([row["nc1"], row["of"], row["nc3"]])  # nan if one is
        rows.append(row)
    return pd.DataFrame(rows)


def settle(problem, point):
    """The local minimum whose basin holds ``point``: ``(point, value)``.

    200 small gradient steps, then L-BFGS that begins with a gradient step.  (The first step of
    scipy's L-BFGS-B, which ``best`` uses for one start, has length one and may leap out.)
    """
    near = descend(problem, point, rate=0.2, steps=200, record=[200]).points[-1]
    found = minimize_many(problem, {name: tensor[None] for name, tensor in near.items()})
    return {name: tensor[0] for name, tensor in found.variables.items()}, float(found.values[0])


def kicked(problem, point, size, generator):
    """``point`` plus Gaussian noise of standard deviation ``size``."""
    noise = problem.start(generator, size)
    return {name: point[name] + noise[name] for name in noise}


# --- gradient descent ----------------------------------------------------------------------------


def descents(problem, *, lr, steps, init_scale=0.1, seed=0, seeds=1, record=60):
    """Gradient descent from ``seeds`` random starts: ``(table, final points)``.

    ``table``: one row per record, seed and layer with ``step, seed, layer, excess`` (objective
    minus the linear optimum), ``balance`` (largest residual of the conservation laws), ``nuclear``
    (:func:`nuclear_gain`), ``nc3`` and the columns of
    :func:`~nclib.results.extended_ufm.metrics.layer_table`.
    """
    generator = torch.Generator().manual_seed(seed)
    first = problem.start(generator, init_scale, (seeds,))
    first |= {name: torch.zeros_like(x) for name, x in first.items() if name == "bias"}
    run = descend(problem, first, rate=lr, steps=steps, record=record)
    floor, rows = theory.optimum(replace(problem, relu=False)).value, []
    points = [[{n: x[s] for n, x in at.items()} for s in range(seeds)] for at in run.points]
    for step, values, at in zip(run.steps, run.values.tolist(), points, strict=True):
        for s, own in enumerate(at):
            table = metrics.layer_table(layers(problem, own), problem.targets)
            table["nc3"] = table["layer"].map(layer_duality(problem, own))
            columns = {"excess": values[s] - floor, "balance": balance(problem, own)}
            columns |= {"nuclear": nuclear_gain(problem, own)}
            rows.append(table.assign(step=step, seed=s, **columns))
    return pd.concat(rows, ignore_index=True), points[-1]


def balance(problem, point):
    """Largest residual of the conservation laws λ_{j+1} W_{j+1}ᵀW_{j+1} = λ_j W_j W_jᵀ, whose
    factors 0 are the features; nan for one layer."""
    factors = [point["features"].mT, *(point[name] for name in problem.layers)]
    first = landscape.balancedness(factors[:2], problem.decays[:2])  # no ReLU in between
    rest = landscape.balancedness(factors[1:], problem.decays[1:], relu=problem.relu)
    return max(first + rest) if rest else math.nan


def slopes(table, column, *, start, end):
    """Least-squares slope of log ``column`` against step from ``start`` to ``end``, per layer."""
    late = table[table["step"].between(start, end)]
    return {
        layer: float(np.polyfit(part["step"], np.log(part[column]), 1)[0])
        for layer, part in late.groupby("layer")
    }


def levels_reached(linear, relu):
    """Distances to an orthogonal frame after descent (claim 5.E9): of both levels of the linear
    model; of the ReLU model the farthest last level, the farthest first level over it, and how far
    the starts lie apart at the first."""
    end, ends = (t[t["step"] == t["step"].max()].set_index("layer")["of"] for t in (linear, relu))
    first, last = (ends.loc[[layer]].to_numpy() for layer in ("H1", "H2"))
    return {
        "linear": end.to_numpy().max(),
        "last_level": last.max(),
        "first_level": first.max() / last.max(),
        "h1_shape": np.ptp(first),
    }


def left_behind(problem, point):
    """Samples that descent of the two-layer ReLU model left without a class (claim 5.E9):
    ``stuck``, whose own logit is below a tenth of the optimum's; ``between``, below nine tenths of
    what is optimal without those, or on other neurons than most of the class (cosine with its mean
    below 0.9), in another pattern of the ReLU; ``excess`` over the optimum, and ``predicted`` where
    none is in between, with 1/(2N) for each that is stuck and the optimum of the others."""
    checks.require(problem.relu and len(problem.layers) == 2, "needs two layers and a ReLU")
    known, targets = theory.optimum(replace(problem, relu=False)), problem.targets
    sizes = targets.bincount()
    own = problem.logits(point).gather(1, targets[:, None]).squeeze(1)
    alive = own >= 0.1 * known.scales[targets]
    counts, N = targets[alive].bincount(minlength=problem.K), len(own)
    fewer = counts.clamp(min=1)  # κ_k = N Λ^{1/3} n_k^{−2/3}
    values, best_u = scalar.shrink(1.0, known.kappas * (sizes / fewer) ** (2 / 3), 3)
    hidden = problem.activations(point)[-1]
    shared = nn.functional.cosine_similarity(hidden, class_means(problem, hidden)[targets])
    other = (own < 0.9 * best_u[targets]) | (shared < 0.9)
    stuck = N - int(counts.sum())
    return {
        "stuck": stuck,
        "between": int((alive & other).sum()),
        "excess": float(problem.value(point)) - known.value,
        "predicted": (float(counts.double() @ values) + stuck / 2) / N - known.value,
    }


def finished(relu, behind):
    """The rows of ``relu`` (:func:`descents`) of starts with no sample in between, all if there is
    none; ``behind``: :func:`left_behind` of each start, in their order."""
    whole = [start for start, found in enumerate(behind) if found["between"] == 0]
    return relu[relu["seed"].isin(whole)] if whole else relu


def cosines(named_means):
    """Cosine matrices of class means as rows ``name, row, column, cosine``."""
    table = matrices({name: geometry.cosines(means) for name, means in named_means.items()})
    return table.rename(columns={"value": "cosine"})


# --- flows ---------------------------------------------------------------------------------------


def best_weight(problem, features):
    """The weight (…, K, d) that is optimal for ``features`` (…, N, d); M = 1, no bias."""
    checks.require(
        problem.loss == losses.MeanSquaredError() and list(problem.shapes) == ["features", "weight"]
        and bool((problem.counts == 1).all()),
        "the optimal weight is known for squared error, one layer without bias, one row per sample",
    )  # fmt: skip
    (N, d), targets = features.shape[-2:], nn.functional.one_hot(problem.targets).double()
    gram = features.mT @ features + N * problem.decays[1] * torch.eye(d, dtype=torch.float64)
    return torch.linalg.solve(gram, features.mT @ targets).mT


def central_path(problem, features, times):
    """Flow dH/dt = −N ∇_H f(W*(H), H) of the plain model (M = 1, no bias), W* optimal for H.

    ``features`` (N, d) at time 0, ``times`` (T,) increasing from 0; λ_W > 0, λ_H ≥ 0.  Returns
    (T, N, d).  Integrator: DOP853.
    """

    def velocity(_, flat):
        H = torch.from_numpy(flat).reshape(features.shape)
        point = {"features": H, "weight": best_weight(problem, H)}
        return -len(H) * problem.gradient(point)["features"].numpy().ravel()

    span, first = (times[0], times[-1]), features.numpy().ravel()
    flow = solve_ivp(velocity, span, first, "DOP853", times, rtol=1e-11, atol=1e-14)
    checks.require(flow.success, f"the flow could not be integrated: {flow.message}")
    return torch.from_numpy(flow.y.T.copy()).reshape(-1, *features.shape)


def flows(settings, *, K, n, d, seed=0):
    """Central paths (claim 5.E11): rows ``setting, time, nc1, within, between``.

    ``settings``: (λ_W, λ_H) pairs.  ``within``, ``between``: Tr Σ_W and Tr Σ_B times e^{2Nλ_H t};
    along the path NC1 strictly falls, the one falls and the other grows (Tirer et al. 2023, Theorem
    3.1, in the time of dH/dt = -N ∇_H f, and in our decays).
    """
    generator, tables = torch.Generator().manual_seed(seed), []
    times = np.linspace(0, 8, 40)
    for lambda_w, lambda_h in settings:
        decays = (lambda_h, lambda_w)  # λ_H may be zero here
        problem = UFM.classes([n] * K, losses.MeanSquaredError(), widths=d, decays=decays)
        first = torch.randn(K * n, d, generator=generator, dtype=torch.float64)
        classes = central_path(problem, first, times).reshape(-1, K, n, d)
        means = classes.mean(2, keepdim=True)
        within = (classes - means).square().sum((1, 2, 3)) / (K * n)
        between = (means - means.mean(1, keepdim=True)).square().sum((1, 2, 3)) / K
        grow = torch.from_numpy(np.exp(2 * K * n * lambda_h * times))
        columns = {"nc1": within / between, "within": grow * within, "between": grow * between}
        name = rf"$\lambda_W={lambda_w:g}$, $\lambda_H={lambda_h:g}$"
        tables.append(pd.DataFrame({"setting": name, "time": times} | columns))
    return pd.concat(tables, ignore_index=True)


ARMS = ("always optimal", "optimal at the start", "random at the start")


def one_change(problem, *, starts, rate, steps, seed=0):
    """NC1 of H under gradient descent, M = 1, without bias, in three arms that differ by one thing
    each (claim 5.E11): rows ``arm, start, step, nc1``, the arms named as in :data:`ARMS`.

    The same random features in all of them.  First the classifier is optimal before every step;
    then it is so at the start only, and both are descended; then it is random at the start, too.
    """
    shape, generator = (starts, *problem.shapes["features"]), torch.Generator().manual_seed(seed)
    first, N = torch.randn(shape, generator=generator, dtype=torch.float64), shape[1]
    arms, H = {ARMS[0]: [first]}, first
    for _ in range(steps):
        point = {"features": H, "weight": best_weight(problem, H)}
        H = H - N * rate * problem.gradient(point)["features"]
        arms[ARMS[0]].append(H)
    random = torch.randn(
        (starts, *problem.shapes["weight"]), generator=generator, dtype=torch.float64
    )
    for arm, weight in ((ARMS[1], best_weight(problem, first)), (ARMS[2], random)):
        start = {"features": first, "weight": weight}
        options = {"rate": N * rate, "steps": steps, "record": range(steps + 1)}
        arms[arm] = [at["features"] for at in descend(problem, start, **options).points]
    return pd.DataFrame(
        {"arm": arm, "start": i, "step": step, "nc1": geometry.trace_ratio(H[i], problem.targets)}
        for arm, path in arms.items()
        for step, H in enumerate(path)
        for i in range(starts)
    )


def rises(paths, arms):
    """Largest step of log NC1 and of ``within``, least step of ``between`` on the central paths
    (down to NC1 = 1e-9); largest NC1 of :func:`one_change` over its first one (claim 5.E11)."""
    seen = paths[paths["nc1"] > 1e-9].assign(log=lambda t: np.log(t["nc1"])).groupby("setting")
    first = arms.groupby(["arm", "start"])["nc1"]
    highest = (first.max() / first.first()).groupby("arm").max()
    return {
        "nc1": seen["log"].diff().max(),
        "within": seen["within"].diff().max(),
        "between": seen["between"].diff().min(),
        "same_start": highest[ARMS[0]],
        "joint": highest[ARMS[2]],
    }


def tied(beta, *, K, n, d, lam, seed=0):
    """NC1 of features tied to random ones H_0 by β/(2N) ‖H − H_0‖² (claim 5.X7): ``nc1``, that of
    H_0 (``anchor``), and that of the central path from H_0 at time 1/β
    (``path``, :func:`central_path`)."""
    beta = checks.real("beta", beta, above=0)
    problem = theory.problem([n] * K, [lam, lam], widths=d)
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.randn(K * n, d, generator=generator, dtype=torch.float64)

    def objective(**point):
        pull = (point["features"] - anchor).square().sum() / (K * n)
        return problem(**point) + beta / 2 * pull

    found = minimize(objective, problem.start(generator, 0.3)).variables["features"]
    path = central_path(problem, anchor, [0, 1 / beta])[-1]
    named = {"nc1": found, "anchor": anchor, "path": path}
    return {name: geometry.trace_ratio(rows, problem.targets) for name, rows in named.items()}


# --- phases and landscape ------------------------------------------------------------------------


def phase(M, kappa):
    """Closed form at κ: ``local`` and ``local_value`` (u and φ(u) of the non-zero minimum), ``u``
    and ``value`` of the global one."""
    value, u = scalar.shrink(1.0, kappa, M + 1)
    local = float(scalar.local(1.0, kappa, M + 1))
    at = scalar.value(local, 1.0, kappa, M + 1)
    return {"local": local, "local_value": at, "u": u, "value": value}


def phase_sweeps(depths, *, K, n, width, seed=0):
    """The optimiser followed up and down in κ: rows ``M, direction, kappa, value, scale``.

    Continuation: :func:`settle` at each κ from the last solution plus a small kick; ``scale`` is
    the mean logit of the true class, u of the closed form.  Both ways differ for M ≥ 2 (5.E14).
    """
    rows = []
    for M in depths:
        kappas = np.linspace(0.04, 1.15, 12) * theory.thresholds(M)[1]
        first = theory.realise(theory.optimum(balanced(M, kappas[0], K=K, n=n, widths=width)))
        origin = {name: torch.zeros_like(tensor) for name, tensor in first.items()}
        for direction, grid, point in (("up", kappas, first), ("down", kappas[::-1], origin)):
            generator = torch.Generator().manual_seed(seed)
            for kappa in grid:
                problem = balanced(M, kappa, K=K, n=n, widths=width)
                point, value = settle(problem, kicked(problem, point, 1e-3, generator))
                row = {"M": M, "direction": direction, "kappa": float(kappa), "value": value}
                rows.append(row | {"scale": _scale(problem, point)})
    return pd.DataFrame(rows)


def _scale(problem, point):
    return float(class_means(problem, problem.logits(point)).diagonal().mean())


def around_thresholds(M, *, K, n, width, seed=0):
    """What the solver reaches near the thresholds of depth M, from the non-zero local minimum (zero
    where there is none), kicked by 1e-2: ``below`` and ``above``, the objective at 0.99 and 1.01
    κ*, less that of zero; ``before`` and ``beyond``, the scale u at 0.99 and 1.01 κ_ex."""
    star, exists = theory.thresholds(M)
    found, generator = {}, torch.Generator().manual_seed(seed)
    near = {"below": 0.99 * star, "above": 1.01 * star}
    near |= {"before": 0.99 * exists, "beyond": 1.01 * exists}
    for name, kappa in near.items():
        problem = balanced(M, kappa, K=K, n=n, widths=width)
        known = kappa if kappa < exists else 0.99 * exists
        made = theory.critical_point(balanced(M, known, K=K, n=n, widths=width), range(K))
        point, value = settle(problem, kicked(problem, theory.realise(made), 1e-2, generator))
        found[name] = value - 0.5 if name in ("below", "above") else _scale(problem, point)
    return found


def hysteresis(sweeps):
    """``two_branches``, the largest u rising minus u falling for M ≥ 2, ``one_layer``, the same for
    M = 1, and ``only_local``, the lowest objective of a non-zero point beyond κ* (claim 5.E14)."""
    wide = sweeps.pivot(index=["M", "kappa"], columns="direction", values="scale")
    apart, deep = (wide["up"] - wide["down"]).abs(), sweeps[sweeps["M"] > 1]
    star = deep["M"].map(lambda M: theory.thresholds(M)[0])
    past = deep[(deep["direction"] == "up") & (deep["scale"] > 0.1) & (deep["kappa"] > star)]
    both = {"two_branches": apart.drop(1), "one_layer": apart.loc[1]}
    largest = {name: values.to_numpy().max() for name, values in both.items()}
    return largest | {"only_local": past["value"].to_numpy().min()}


def descent_ends(table, model):
    """The largest of NC1, NC2 and NC3 of a plain model after descent, ``worst``, and the ``excess``
    of the objective over its closed form (claims 5.E1, E3)."""
    last = table[table["model"] == model].iloc[-1]
    kinds = ["nc1", "of", "nc3"] if model == "no bias" else ["nc1", "etf", "nc3"]
    return {"worst": last[kinds].to_numpy(float).max(), "excess": last["excess"]}


def levels(problem):
    """Losses f_0 > … > f_K of the critical points of rank 0..K (balanced classes)."""
    return [theory.critical_point(problem, range(r)).value for r in range(problem.K + 1)]


def ladders(depths, scales, *, kappa, K, n, width, runs=60, seed=0):
    """Final losses of gradient descent: rows ``M, init_scale, value, rank, gap``.

    ``runs`` random starts per depth and scale descend together and are then polished by L-BFGS;
    ``rank`` is that of the nearest level f_r and ``gap`` the distance to it (claim 5.E13).
    """
    rows, generator = [], torch.Generator().manual_seed(seed)
    sizes = torch.tensor(scales, dtype=torch.float64).repeat_interleave(runs)
    for M in depths:
        problem = balanced(M, kappa, K=K, n=n, widths=width)
        first = problem.start(generator, sizes, (len(sizes),))
        near = descend(problem, first, rate=0.2, steps=500, record=[500]).points[-1]
        values = minimize_many(problem, near).values
        known = torch.tensor(levels(problem), dtype=torch.float64)
        gaps, ranks = (values[:, None] - known).abs().min(1)
        columns = {"init_scale": sizes, "value": values, "rank": ranks, "gap": gaps}
        rows.append(pd.DataFrame({"M": M} | columns))
    return pd.concat(rows, ignore_index=True)


def critical(M, rank, *, kappa, K, n, width, seed=0):
    """The critical point of a rank: Hessian index and nullity, counted and in theory, its lowest
    eigenvalue and the closed form ``curvature`` (M = 1), and ``returned``, the value reached after
    a kick of 1e-3 minus the level.  Decays are unequal on purpose."""
    lam = balanced(M, kappa, K=K, n=n, widths=width).decays[0]
    problem = theory.problem([n] * K, [lam, *(lam * 1.1**j for j in range(M))], widths=width)
    point, generator = theory.critical_point(problem, range(rank)), torch.Generator()
    at = theory.realise(point, generator.manual_seed(seed))
    spectrum = hessian_eigenvalues(problem, at)
    _, reached = settle(problem, kicked(problem, at, 1e-3, generator))
    return {
        "index": int((spectrum < -1e-9).sum()),
        "index_theory": theory.hessian_index(point),
        "nullity": int((spectrum.abs() <= 1e-9).sum()),
        "nullity_theory": theory.orbit_dimension(point),
        "lowest": float(spectrum[0]),
        "curvature": theory.lowest_curvature(point) if M == 1 and rank < K else math.nan,
        "returned": reached - point.value,
    }


# --- bias, imbalance, bottleneck -----------------------------------------------------------------


def bias_geometry(M, lambda_b, *, kappa, K, n, width, measured, seed=0):
    """Geometry at a decay of the bias: ``bias, common, mean, gap, above, of, etf``.

    ``common`` and ``mean``: eigenvalues of the class means' Gram matrix, of the K−1 equal
    directions and of the mean direction.  ``measured=False``: closed form; ``True``: the solver,
    whose mean direction opens from large starting values only.
    """
    problem = balanced(M, kappa, K=K, n=n, widths=width, bias=float(lambda_b))
    known = theory.optimum(problem)
    gram, bias, gap, above = known.mean_gram, known.bias, 0.0, 0.0
    if measured:
        found, above = search(problem, starts=12, scale=1.0, seed=seed, newton=2)
        means = class_means(problem, found.point["features"])
        gram, bias, gap = means @ means.T, found.point["bias"], found.value - known.value
    mean = float(gram.sum()) / K
    common = (float(gram.trace()) - mean) / (K - 1)
    values, vectors = torch.linalg.eigh(gram)
    row = {"bias": float(bias.mean()), "common": common, "mean": max(mean, 0.0), "gap": gap}
    return row | {"above": above} | frame_distances(vectors * values.clamp(min=0).sqrt())


def bias_maps(grid, *, kappa, K, n, width):
    """Cosines of the class means for every decay of the bias, M = 1, which the names say: rows of
    :func:`cosines`."""
    named = {}
    for decay in grid:
        problem = balanced(1, kappa, K=K, n=n, widths=width, bias=float(decay))
        made = theory.realise(theory.optimum(problem))
        named[rf"$M=1$, $\lambda_b={decay:g}$"] = class_means(problem, made["features"])
    return cosines(named)


def geometry_spread(problem, *, starts, seed=0):
    """Several solutions of one problem: rows ``value, of, etf`` (claim 5.E17)."""
    rows = []
    for i in range(starts):
        found = search(problem, starts=2, seed=seed + i)[0]
        means = class_means(problem, found.point["features"])
        rows.append({"value": found.value} | frame_distances(means))
    return pd.DataFrame(rows)


def surviving_sizes(problem, *, starts=6, seed=0):
    """Sizes of the classes whose features do not vanish at the best point found, and ``above`` of
    :func:`search`."""
    found, above = search(problem, starts=starts, scale=0.7, seed=seed)
    norms = class_means(problem, found.point["features"]).norm(dim=1)
    sizes = problem.targets.bincount()
    return sizes[norms > 1e-3 * norms.max()].tolist(), above


def class_norms(M, bias, *, counts, lam, width, measured, seed=0):
    """One row per class: ``class, n_k, gap`` (of the value), ``feature`` ‖h‖, ``weight`` ‖w_k‖ of
    the last layer, ``logit`` of the true class.  ``measured=False``: closed form."""
    problem = theory.problem(counts, [lam] * (M + 1), widths=width, bias=bias)
    known = theory.optimum(problem)
    point, gap = theory.realise(known), 0.0
    if measured:
        found, _ = search(problem, starts=8, scale=0.7, seed=seed, newton=2)
        point, gap = found.point, found.value - known.value
    features = class_means(problem, point["features"]).norm(dim=1)
    logits = class_means(problem, problem.logits(point)).diagonal()
    columns = {"feature": features, "weight": point["weight"].norm(dim=1), "logit": logits}
    return pd.DataFrame({"class": range(len(counts)), "n_k": counts, "gap": gap} | columns)


# --- ReLU and low rank ---------------------------------------------------------------------------


def relu_shape(shape, *, n, decays, widths, seed=0):
    """The explicit ReLU point of a Gram shape (claim 5.E8): ``excess`` over the linear optimum,
    ``slope`` (largest gradient entry), ``of`` (orthogonal-frame distance of H_1) and ``nuclear``
    (:func:`nuclear_gain`)."""
    problem = theory.problem([n] * len(shape), decays, widths=widths, relu=True)
    point = theory.relu_point(problem, shape, torch.Generator().manual_seed(seed))
    slope = max(float(g.abs().max()) for g in problem.gradient(point).values())
    excess = float(problem.value(point)) - theory.optimum(problem).value
    means = class_means(problem, point["features"])
    gain = nuclear_gain(problem, point)
    return {"excess": excess, "slope": slope, "of": frame_distances(means)["of"], "nuclear": gain}


def low_rank_search(K, rank, *, kappa_share, starts=32, seed=0):
    """Lowest loss of two layers with a ReLU over the linear optimum, κ = share · κ*, found among
    H_1 of at most this rank (claim 5.E7): ``ratio``.

    One sample per class, 2K neurons, W_2 optimal: f = λ/2 (tr (σ(Z)σ(Z)ᵀ + κ)⁻¹ + ‖H‖² + ‖W‖²), Z =
    HWᵀ.  Starts: ``rank`` features, rows of H and W in random directions, of several lengths.
    """
    problem, collapsed = deep_relu(K, 2, kappa_share=kappa_share, width=K)
    lam, generator = problem.decays[0], torch.Generator().manual_seed(seed)
    rows = torch.randn(starts, 3 * K, rank, generator=generator, dtype=torch.float64)
    rows = nn.functional.normalize(rows, dim=-1) * torch.linspace(0.6, 1.4, starts)[:, None, None]
    first = {"H": rows[:, :K], "W": rows[:, K:] / math.sqrt(2)}

    def objective(H, W):
        active = (H @ W.T).relu()
        inverse = torch.linalg.inv(active @ active.T + K * lam * torch.eye(K).double())
        return lam / 2 * (inverse.trace() + H.square().sum() + W.square().sum())

    values = minimize_many(objective, first, gtol=1e-7, max_iter=200).values
    return {"ratio": float(values.min()) / collapsed}


def nuclear_gain(problem, point):
    """‖σ(W_1H_1)‖_* / ‖W_1H_1‖_* at a point of a two-layer ReLU problem, else nan (claim 5.X8)."""
    if not problem.relu or len(problem.layers) != 2:
        return math.nan
    return theory.nuclear_gain(layers(problem, point)["W1H1"])


def undercut(K, kappa_share):
    """Explicit points of two layers with a ReLU, κ = share · κ*, K = 6 (hexagon) or 15 (halves of
    six nodes; claims 5.E7, X8): ``ratio`` of their loss over the linear optimum, and ``nuclear``
    (:func:`nuclear_gain`)."""
    problem, collapsed = deep_relu(K, 2, kappa_share=kappa_share, width=20)
    if checks.choice("K", K, (6, 15)) == 6:
        point = theory.hexagon_point(problem)
    else:
        point = theory.chain_point(problem, *theory.halves_chain(6))[1]
    ratio = float(problem.value(point)) / collapsed
    return {"ratio": ratio, "nuclear": nuclear_gain(problem, point)}


def deep_relu(K, L, *, kappa_share, width):
    """``(problem, loss of deep neural collapse)``: L layers with ReLU at κ = share · κ*(L)."""
    checks.real("kappa_share", kappa_share, above=0, below=1)
    kappa = kappa_share * theory.thresholds(L)[0]
    problem = balanced(L, kappa, K=K, n=1, widths=width, relu=True)
    return problem, theory.optimum(replace(problem, relu=False)).value


FAMILIES = {"graph": theory.complete_graph_chain, "segment": theory.segment_chain}


def chain_ratio(family, size, L, *, kappa_share):
    """A low-rank chain of one of :data:`FAMILIES` (nodes of the graph, or classes of the segment)
    against deep neural collapse: ``K, cost, ratio``."""
    chain = FAMILIES[checks.choice("family", family, FAMILIES)](size, L)
    K = len(chain[0])
    problem, collapsed = deep_relu(K, L, kappa_share=kappa_share, width=K)
    ratio = theory.chain_point(problem, *chain)[0] / collapsed
    return {"K": K, "cost": theory.chain_cost(*chain), "ratio": ratio}


def chain_gap(r, decays):
    """|objective − closed form| of the graph chain on r nodes, two samples per class."""
    chain = theory.complete_graph_chain(r, len(decays) - 1)
    K = len(chain[0])
    problem = theory.problem([2] * K, decays, widths=K, relu=True)
    value, point = theory.chain_point(problem, *chain)
    return abs(float(problem.value(point)) - value)


def refined(chains, *, width, kappa_share, max_iter, seed=0):
    """Low-rank chains over deep neural collapse: rows ``K, L, explicit, ratio``, before and after a
    kick of 0.02 in all ``width`` neurons and L-BFGS.

    A kick in fifty leads into another valley, above: then there is another one, five at most.
    """
    rows = []
    for means, weights in chains:
        K, L = len(means), len(weights)
        problem, collapsed = deep_relu(K, L, kappa_share=kappa_share, width=width)
        value, point = theory.chain_point(problem, means, weights)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(5):
            first = kicked(problem, point, 0.02, generator)
            found = minimize(problem, first, max_iter=max_iter, restarts=0)
            if found.value < value:
                break
        row = {"K": K, "L": L, "explicit": value / collapsed}
        rows.append(row | {"ratio": found.value / collapsed})
    return pd.DataFrame(rows)


def depth_race(K, L, *, width, kappa_share, starts, max_iter=400, seed=0):
    """ReLU starts against deep neural collapse: ``(ratios, singular values)`` (claims E19, E20).

    ``ratios``: final losses over the closed form of deep neural collapse.  ``singular values``: of
    the class means of every layer at the best point, relative to the largest (``layer, index,
    value``).
    """
    problem, collapsed = deep_relu(K, L, kappa_share=kappa_share, width=width)
    sizes = torch.tensor([0.5, 1.0, 0.3], dtype=torch.float64).repeat(starts)[:starts]
    first = problem.start(torch.Generator().manual_seed(seed), sizes, (starts,))
    found = best(problem, first, max_iter=max_iter, refine=True)
    rows = []
    for j, hidden in enumerate(problem.activations(found.point), start=1):
        values = torch.linalg.svdvals(class_means(problem, hidden))
        relative = (values / values[0]).tolist()
        rows += [{"layer": f"H{j}", "index": i, "value": v} for i, v in enumerate(relative, 1)]
    return found.values / collapsed, pd.DataFrame(rows)


def hidden_ranks(spectra, K):
    """Singular values above a tenth of the largest, over K (claim 5.X4): the most of the layers
    between the features and the last one, and the last one's."""
    ranks = (spectra["value"] > 0.1).groupby(spectra["layer"]).sum() / K
    return {"hidden": ranks.iloc[1:-1].max(), "last": ranks.iloc[-1]}


# --- networks ------------------------------------------------------------------------------------


def train_heads(data, heads, recipe, *, widths, points=25, seeds=(0,), checkpoint=None):
    """Networks trained on the objective of the theory: ``features`` from them, heads regularised.

    ``heads``: name -> (decays, bias) of a :class:`~nclib.results.extended_ufm.nets.RegularisedHead`
    whose hidden layers have the feature width.  ``widths``: hidden widths and feature dimension of
    the net.  ``recipe``: full batch for an exact floor.  ``checkpoint(head, seed) -> path``.
    Columns: ``head, seed, epoch, loss, floor, excess`` = loss / floor − 1, ``norm_sq`` and
    ``norm_sq_theory`` (means over classes), ``nc1`` of the features, ``of, etf`` of the class
    means, ``of_w, etf_w`` of the end-to-end weight, and ``nc3``, of centred means if there is a
    bias.
    """
    counts = torch.bincount(data.labels, minlength=data.num_classes).tolist()
    sizes, tables = [data.inputs[0].numel(), *widths], []

    def build(decays, bias):
        layers = [nn.Flatten()]
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        head = RegularisedHead(counts, decays, widths=widths[-1], bias=bias)
        return nets.Classifier(nn.Sequential(*layers[:-1]), head)

    for name, seed in product(heads, seeds):
        history = train.fit(
            nets.seeded(seed, build, *heads[name]).to(data.inputs.device),
            data,
            lambda net, x, y: net.head.loss(net.features(x), y),
            recipe,
            seed=seed,
            measure=lambda net, _: _against_floor(net, data),
            measure_at=log_spaced(recipe.epochs, points),
            checkpoint=checkpoint and checkpoint(name, seed),
            label=name,
        )
        tables.append(history.assign(head=name, seed=seed))
    return pd.concat(tables, ignore_index=True)


def _against_floor(net, data):
    features, head = collect.features(net, data.inputs), net.head
    with torch.no_grad():
        loss = float(head.loss(features, data.labels))
    point, (means, _) = head.optimum(), geometry.class_means(features, data.labels)
    weight, centre = head.weight.detach(), head.bias is not None
    return {
        "loss": loss,
        "floor": point.value,
        "excess": loss / point.value - 1,
        "norm_sq": means.square().sum(1).mean(),
        "norm_sq_theory": point.feature_norms_sq.mean(),
        "nc1": geometry.trace_ratio(features, data.labels),
        **frame_distances(means),
        **_weight_distances(weight),
        "nc3": metrics.self_duality(weight, means, centre=centre)["a"],
    }


def floor_errors(table, control):
    """Least loss above the floor, the largest errors of any seed at the end, and the least distance
    to an orthogonal frame of the nets called ``control``, over the others' without bias (5.X2);
    nan where one is."""
    ends = table.groupby(["head", "seed"]).tail(1).set_index(["head", "seed"]).sort_index()
    last, other = ends.drop(control), ends.loc[control]
    plain, biased = last.drop("free bias"), last.loc["free bias"]
    errors = {
        "reaches": last["excess"],
        "norm": (last["norm_sq"] / last["norm_sq_theory"] - 1).abs(),
        "nc1": last["nc1"],
        "frame": plain[["of", "of_w"]],
        "etf": biased[["etf", "etf_w"]],
        "nc3": last["nc3"],
    }
    return {name: values.to_numpy().max() for name, values in errors.items()} | {
        "never_below": (table["loss"] - table["floor"]).to_numpy().min(),
        "not_orthogonal": biased["of"].to_numpy().min(),
        "control": other["of"].to_numpy().min() / plain["of"].to_numpy().max(),
    }


def _weight_distances(weight):
    return {f"{k}_w": v for k, v in frame_distances(weight, centre=False).items()}


def build(architecture, data, bias, width):
    """A net for ``data``: ``mlp`` (two blocks Linear-BatchNorm-ReLU of ``width``, then linear
    features of half of it), ``cnn`` (``width``, 2·``width``, 4·``width`` channels) or a ResNet
    (``width``: factor)."""
    whole = int(width)
    sizes = {"mlp": [whole, whole, max(1, whole // 2)], "cnn": [whole, 2 * whole, 4 * whole]}
    options = {"bias": bias, "final_relu": False, "final_norm": False}
    return nets.build(architecture, data, sizes.get(architecture, width), **options)


def require_layers(architecture, parameter, names):
    """Raise :class:`~nclib.checks.InputError` unless the network has the modules ``names``."""
    pixel = Data("one pixel", torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64), 2)
    # Modules depend neither on the width nor on the data.
    modules = [name for name, _ in build(architecture, pixel, True, 1).named_modules()][1:]
    for name in names or []:
        checks.choice(f"parameter {parameter}", name, modules)


def train_nets(
    data, test_data, configurations, recipe, *, architecture, width, seeds, names=None, points=13,
    checkpoint=None,
):  # fmt: skip
    """Collapse block by block, for several losses and seeds: ``(per block, per epoch)`` tables.

    ``configurations``: name -> (loss of :mod:`nclib.losses`, bias of the last layer: bool, weight
    decay).  ``names``: modules to look at; default: stages, or ReLUs and linear features; feature
    maps are averaged over positions.  ``checkpoint(name, seed)``: a path.

    Columns per block: ``net, seed, epoch, layer, block`` (1, 2, …) and those of the layer table.
    Per epoch: ``net, seed, epoch, train_loss, of_w, etf_w, nc3`` (of centred means if there is a
    bias), accuracies in percent.
    """
    deep, overall = [], []
    for (name, (loss, bias, decay)), seed in product(configurations.items(), seeds):
        loss = losses.get(loss)
        net = nets.seeded(seed, build, architecture, data, bias, width).to(data.inputs.device)
        probed = list(names or blocks(net))

        def measure(net, _, probed=probed):
            return _profile(net, data, probed) | _overall(net, data, test_data)

        history = train.fit(
            net,
            data,
            lambda net, x, y, loss=loss: loss(net(x), y),
            replace(recipe, weight_decay=decay),
            seed=seed,
            measure=measure,
            measure_at=log_spaced(recipe.epochs, points),
            checkpoint=checkpoint and checkpoint(name, seed),
            label=f"{name}, seed {seed}",
        )
        flat, tags = [column for column in history if "|" in column], {"net": name, "seed": seed}
        overall.append(history.drop(columns=flat).assign(**tags))
        deep.append(_unfold(history[["epoch", *flat]]).assign(**tags))
    return pd.concat(deep, ignore_index=True), pd.concat(overall, ignore_index=True)


def _overall(net, data, test_data):
    """One row per epoch of :func:`train_nets`."""
    features, logits = collect.features(net, data.inputs), collect.logits(net, data.inputs)
    means, _ = geometry.class_means(features, data.labels)
    return {
        **_weight_distances(net.weight),
        "nc3": metrics.self_duality(net.weight, means, centre=net.bias is not None)["a"],
        "train_accuracy": 100 * float((logits.argmax(1) == data.labels).double().mean()),
        "test_accuracy": 100 * collect.accuracy(net, test_data),
    }


def _profile(net, data, probed):
    """The layer table as one flat dict ``block|layer|metric`` -> value (what ``fit`` can store)."""
    table = metrics.layer_table(block_features(net, data.inputs, probed), data.labels)
    return {
        f"{row + 1}|{table['layer'][row]}|{metric}": table[metric][row]
        for row in range(len(table))
        for metric in table.columns[1:]
    }


def _unfold(history):
    long = history.melt(id_vars="epoch")
    long[["block", "layer", "metric"]] = long["variable"].str.split("|", expand=True)
    long["block"] = long["block"].astype(int)
    wide = long.pivot(index=["epoch", "block", "layer"], columns="metric", values="value")
    return wide.reset_index().rename_axis(columns=None)


PLAIN, BIASED, ENTROPY = "MSE, no bias", "MSE, bias", "CE, bias"
NO_DECAY = {PLAIN: "MSE, no bias, no decay", BIASED: "MSE, bias, no decay"}  # controls


def _at_the_end(deep, overall):
    """What every net reaches: the per-epoch columns and, of its last block, the per-block ones."""
    keys, top = ["net", "seed"], deep[deep["block"] == deep["block"].max()]
    own = top[[*keys, "epoch", "nc1", "of", "etf"]].merge(overall, on=[*keys, "epoch"])
    return own[own["epoch"] == own["epoch"].max()]


def depth_and_bias(deep, overall):
    """What depth, training and a bias change, in each net and seed (claim 5.E18).

    Steps of log NC1 to the next block at the end; log NC1 of the last block over the first, at the
    end less before training; NC1 of the last block at the end over the first epoch; how a bias
    moves the classifier's distances; and for cross-entropy, the one to an ETF less the other.
    """
    deep = deep[~deep["net"].isin(NO_DECAY.values())]
    wide = deep.pivot(index=["epoch", "net", "seed"], columns="block", values="nc1").apply(np.log)
    end, top = wide.loc[deep["epoch"].max()], wide.columns.max()
    last = _at_the_end(deep, overall).set_index(["net", "seed"])
    moved, entropy = last.loc[BIASED] - last.loc[PLAIN], last.loc[ENTROPY]
    return {
        "through_depth": np.diff(end),
        "control": (end[top] - end[1]) - (wide.loc[0][top] - wide.loc[0][1]),
        "through_training": np.exp(end[top] - wide.loc[1][top]),
        "of_w": moved["of_w"],
        "etf_w": moved["etf_w"],
        "ce": entropy["etf_w"] - entropy["of_w"],
    }


def frames_reached(deep, overall):
    """How near plain weight decay brings networks to the frames of the theory, in each seed (claim
    5.X9): NC1, NC2 and NC3 at the end, ``other`` (the distances to the frame of the other model),
    ``control``, the worst distance without weight decay over that with it, and ``fits``, the
    training accuracy of every net."""
    last = _at_the_end(deep, overall).set_index(["net", "seed"])
    plain, biased = last.loc[PLAIN], last.loc[BIASED]
    kinds = {PLAIN: ["of", "of_w", "nc3"], BIASED: ["etf", "etf_w", "nc3"]}
    reached = {net: last.loc[net][columns].to_numpy() for net, columns in kinds.items()}
    control = {
        net: last.loc[NO_DECAY[net]][columns].to_numpy().max(1).min() / reached[net].max()
        for net, columns in kinds.items()
    }
    return {
        "nc1": last.loc[[PLAIN, BIASED]]["nc1"],
        "frame": {"features": plain["of"], "classifier": plain["of_w"]},
        "etf": {"features": biased["etf"], "classifier": biased["etf_w"]},
        "nc3": {PLAIN: plain["nc3"], BIASED: biased["nc3"]},
        "other": [*plain["etf_w"], *biased["of"], *biased["of_w"]],
        "control": control,
        "fits": last["train_accuracy"],
    }
