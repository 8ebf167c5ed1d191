"""Result 3: unconstrained-features problems against the closed forms, as tidy tables.

Row functions take one setting and return a dict (or a list of them) for :func:`nclib.table.over`;
table functions have plural names.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import torch

from nclib import frames
from nclib.metrics.multi_label import LabelSetStatistics, statistics_metrics, tagwise_fit
from nclib.results.multi_label import theory
from nclib.ufm import flow, landscape, solve

# Against the closed forms -------------------------------------------------------------------------


def solved(problem, *, seed=0, newton=0):
    """``(point, value)`` of the critical point that L-BFGS reaches from one random start."""
    start = problem.start(torch.Generator().manual_seed(seed), 0.3)
    found = solve.minimize(problem, start, newton=newton)
    return problem.place(found.variables), found.value


def identities(problem, point):
    """The larger deviation from the two identities of every critical point (claim 3.L17).

    ``h_S = ω_m/(2 N lambda_h) (y_S - m softmax(z_S)) W``, ``lambda_w WᵀW = lambda_h Σ n h hᵀ``.
    """
    lambda_h, lambda_w = (decay / 2 for decay in problem.decays)
    weight, features = point["weight"], point["features"]
    gradient = problem.logit_gradient(point) / problem.counts.sqrt()[:, None]
    gram = features.T @ (problem.counts[:, None] * features)
    balance = lambda_w * weight.T @ weight - lambda_h * gram
    return max(_largest(features + gradient @ weight / (2 * lambda_h)), _largest(balance))


def closed_form(*, d=None, lambda_b=1e-2, seed=0, **case):
    """Optimiser against closed form, one variable per sample; ``case`` as in ``theory.optimum``.

    A row with value_gap and the largest deviations: classifier_error (of ``W Wᵀ``), feature_error
    (from the self-dual, tag-wise formula), bias_error (from a multiple of 1), spread (inside a
    label set), margin_error, identity (3.L17) and certificate.
    """
    K, d = case["K"], d or case["K"]
    exact = theory.optimum(**case)
    problem = theory.balanced(d, **case, lambda_b=lambda_b, per_sample=True)
    point, value = solved(problem, seed=seed, newton=2)
    weight, features, bias = (point[name] for name in ("weight", "features", "bias"))
    y, P = problem.targets, frames.centring(K)
    known = torch.tensor([[exact.margins[int(m)]] for m in y.sum(1)], dtype=torch.float64)
    formula = known * y @ weight / exact.classifier_scale
    sets = [features[(y == row).all(1)] for row in y.unique(dim=0)]
    return {
        "K": K,
        "n": str(case["counts"]),
        "reduction": case.get("reduction", "sum"),
        "d": d,
        "value": exact.value,
        "value_gap": value - exact.value,
        "classifier_error": _largest(weight @ weight.T - exact.classifier_scale * P),
        "feature_error": _largest(features - formula),
        "bias_error": _largest(bias - bias.mean()),
        "spread": max(_largest(h - h[0]) for h in sets),
        "margin_error": _largest(problem.logits(point) @ P - known * y @ P),
        "identity": identities(problem, point),
        "certificate": problem.certificate(point),
    }


def decays(K, counts, strength):
    """``lambda_w = strength`` and ``lambda_h = strength/N``: equal pull on both layers."""
    N = float(theory.balanced_sets(K, counts)[1].sum())
    return {"lambda_w": strength, "lambda_h": strength / N}


def exact_margins(strength, *, K, counts, reduction="sum"):
    """The exact ``margin`` of every multiplicity m at ``lambda_w = N lambda_h = strength``."""
    pull = decays(K, counts, strength)
    exact = theory.optimum(K=K, counts=counts, reduction=reduction, **pull)
    return [{"m": m, "margin": margin} for m, margin in exact.margins.items()]


def found_margins(strength, *, K, counts, reduction="sum", seed=0):
    """What the optimiser finds there, by m: margin, margin_1 (of the smallest multiplicity), scale
    (their ratio), theory, and the scale ``predicted`` from margin_1 alone."""
    problem = theory.balanced(
        K, K=K, counts=counts, reduction=reduction, **decays(K, counts, strength)
    )
    found = logit_margins(problem.logits(solved(problem, seed=seed)[0]), problem.targets)
    rows = exact_margins(strength, K=K, counts=counts, reduction=reduction)
    first = found[rows[0]["m"]]
    for row in rows:
        row["theory"], row["margin"], row["margin_1"] = row["margin"], found[row["m"]], first
        row["scale"] = row["margin"] / first
        row["predicted"] = theory.scale_at(first, K=K, m=row["m"], reduction=reduction)
    return rows


def zero_strength(*, K, counts, reduction="sum"):
    """The strength from which on the solution is zero (claim 3.L9)."""
    unit = decays(K, counts, 1.0)
    threshold = theory.optimum(K=K, counts=counts, reduction=reduction, **unit).threshold
    return threshold / (2 * unit["lambda_h"] ** 0.5)


def logit_margins(logits, targets):
    """``{m: mean over samples of (mean in-set logit - mean out-of-set logit)}``, m < K."""
    sizes, K = targets.sum(1), targets.shape[1]
    inside = (logits * targets).sum(1) / sizes
    gap = (inside - (logits * (1 - targets)).sum(1) / (K - sizes)).double()
    return {m: float(gap[sizes == m].mean()) for m in sizes.long().unique().tolist() if m < K}


def scale_curve(reduction, m, *, K):
    """The exact C_m against the singles' margin: margin_1, scale."""
    grid = np.geomspace(0.02, 60, 160)
    scale = theory.scale_at(grid, K=K, m=m, reduction=reduction)
    return pd.DataFrame({"margin_1": grid, "scale": scale})


def threshold(reduction, factor, *, K, counts, lambda_w=2e-3, seed=0):
    """The optimiser at ``factor`` times the zero-solution threshold: gain (value at zero minus
    value found), value_gap."""
    case = {"K": K, "counts": counts, "lambda_w": lambda_w, "reduction": reduction}
    bound = theory.optimum(**case, lambda_h=1.0).threshold
    case["lambda_h"] = (factor * bound / 2) ** 2 / lambda_w
    problem = theory.balanced(K, **case)
    point, value = solved(problem, seed=seed)
    zero = {name: torch.zeros_like(tensor) for name, tensor in point.items()}
    gain, exact = float(problem.value(zero)) - value, theory.optimum(**case).value
    return {"gain": gain, "value_gap": value - exact}


# Landscape ----------------------------------------------------------------------------------------


def start_gaps(d, *, starts=20, seed=0, **case):
    """Value above the global minimum from many random starts: start, gap."""
    problem, exact = theory.balanced(d, **case, lambda_b=1e-2), theory.optimum(**case)
    start = problem.start(torch.Generator().manual_seed(seed + d), 0.3, batch=(starts,))
    gaps = (solve.best(problem, start).values - exact.value).tolist()
    return [{"start": i, "gap": gap} for i, gap in enumerate(gaps)]


def saddle(rank, start, *, seed=0, **case):
    """Curvature of the way out of a critical point of low rank: excess (value above the global
    minimum), predicted, measured."""
    problem, exact = theory.balanced(case["K"] + 1, **case, lambda_b=1e-2), theory.optimum(**case)
    point = landscape.saddle(problem, rank, seed=seed + start, newton=4)
    direction, predicted = landscape.escape(problem, point)
    measured = landscape.curvature(problem, point, direction)
    excess = float(problem.value(point)) - exact.value
    return {"excess": excess, "predicted": predicted, "measured": measured}


# Imbalance ----------------------------------------------------------------------------------------


def multiplicity_imbalance(ratio, *, K=5, total=600, strength=1e-2, seed=0):
    """Singles against pairs, each multiplicity balanced: ratio (n_1 over n_2, rounded), nc2,
    degrees, scale, scale_theory (claim 3.L6)."""
    pairs = max(1, round(total / (1 + ratio)))
    counts = {1: max(1, round(ratio * pairs)), 2: pairs}
    case = {"K": K, "counts": counts} | decays(K, counts, strength)
    problem = theory.balanced(K, **case)
    point, _ = solved(problem, seed=seed, newton=2)
    metrics = _metrics(problem, point)
    return {
        "ratio": counts[1] / counts[2],
        "nc2": metrics["nc2_centered"],
        "degrees": metrics["angle"][2].degrees,
        "scale": metrics["scale"][2],
        "scale_theory": theory.optimum(**case).scales[2],
    }


def official_decay(table):
    """The paper's training as a problem: weight decay 5e-4, feature penalty 0.128 mean ‖h‖²."""
    return {"lambda_w": 2.5e-4, "lambda_h": 0.128 / sum(table.values()), "lambda_b": 2.5e-4}


def imbalance(table, *, K, seed=0):
    """Global minimum for a label table at the :func:`official_decay`: ``(summary, sets)``.

    ``summary``: dict with nc2, nc2_means, certificate, identity (3.L17), the mean angle of the
    pairs to the tag-wise sum of the singles' means (``degrees``, ``ratio``) and of the classifier
    rows (``degrees_weight``), and norms of the singles' means and classifier rows.  ``sets``:
    DataFrame i, j, samples, degrees, degrees_weight of every pair.
    """
    problem = theory.from_table(table, K, K=K, **official_decay(table))
    point, _ = solved(problem, seed=seed)
    metrics = _metrics(problem, point)
    statistics = LabelSetStatistics.of(point["features"], problem.targets)
    fit = tagwise_fit(statistics, 2)
    by_weight = tagwise_fit(statistics, 2, weight=point["weight"])
    pairs = [tuple(row.nonzero().flatten().tolist()) for row in fit.label_sets]
    sets = pd.DataFrame(pairs, columns=["i", "j"]).assign(
        samples=[table[pair] for pair in pairs],
        degrees=fit.degrees.numpy(),
        degrees_weight=by_weight.degrees.numpy(),
    )
    summary = {
        "nc2": metrics["nc2_centered"],
        "nc2_means": metrics["nc2_means"],
        "degrees": metrics["angle"][2].degrees,
        "ratio": metrics["angle"][2].ratio,
        "degrees_weight": float(by_weight.degrees.mean()),
        "certificate": problem.certificate(point),
        "identity": identities(problem, point),
        "mean_norms": statistics.class_means.norm(dim=1).tolist(),
        "weight_norms": point["weight"].norm(dim=1).tolist(),
    }
    return summary, sets


def step_table(K=10, *, head=3100, tail=31, pairs=200):
    """Singles of the first half of the classes frequent, of the other half rare; equal pairs."""
    table = {(k,): head if k < K // 2 else tail for k in range(K)}
    return table | dict.fromkeys(combinations(range(K), 2), pairs)


# Samples per pair of digits in SVHN's training set (multi-label paper), singles equalised at 543.
_SVHN_PAIRS = (
    (954, 856, 838, 763, 612, 625, 538, 560),
    (692, 616, 560, 531, 524, 426, 416),
    (543, 516, 399, 414, 382, 370),
    (441, 361, 342, 333, 285),
    (299, 313, 282, 262),
    (264, 241, 193),
    (201, 212),
    (165,),
)


def svhn_table():
    """SVHN's label sets up to two digits as a table over K = 9 classes; class k is digit k+1."""
    table = {(k,): 543 for k in range(9)}
    for i, row in enumerate(_SVHN_PAIRS):
        table |= {(i, i + 1 + j): n for j, n in enumerate(row)}
    return table


# The picture of three classes ---------------------------------------------------------------------


def concept_path(steps=(10, 3000), *, seed=0):
    """Gradient descent on K = 3 classes with singles and pairs, seen in the plane (figure 1).

    Returns ``(points, means, gap, exact)``: one row per sample (step, set, x, y) and per label set,
    in the two leading singular directions of the features at that step; f minus its minimum at the
    end; the :class:`~theory.Optimum`.
    """
    case = {"K": 3, "counts": {1: 20, 2: 20}, "lambda_w": 5e-3, "lambda_h": 0.015 / 120}
    problem, exact = (
        theory.balanced(10, **case, lambda_b=1e-3, per_sample=True),
        theory.optimum(**case),
    )
    generator = torch.Generator().manual_seed(seed)
    start = {"weight": 0.1 * torch.randn(3, 10, generator=generator, dtype=torch.float64)}
    start["features"] = 0.5 * torch.randn(120, 10, generator=generator, dtype=torch.float64)
    start["bias"] = torch.zeros(3, dtype=torch.float64)
    path = flow.descend(
        problem, start, rate=0.5, rates={"features": 3.0}, momentum=0.9, steps=max(steps),
        record=list(steps),
    )  # fmt: skip
    names = ["+".join(str(k + 1) for k in y.nonzero().flatten().tolist()) for y in problem.targets]
    single = problem.targets.sum(1) == 1
    points = []
    for step, point in zip(path.steps, path.points, strict=True):
        axes = torch.linalg.svd(point["features"], full_matrices=False)[2][:2]
        plane = point["features"] @ axes.T
        angle = torch.atan2(*plane[single & (problem.targets[:, 0] == 1)].mean(0))
        c, s = torch.cos(angle), torch.sin(angle)  # turned so that class 1 points upwards
        plane = plane @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])
        if plane[single & (problem.targets[:, 1] == 1)].mean(0)[0] < 0:
            plane[:, 0] *= -1
        points.append(
            pd.DataFrame({"step": step, "set": names, "x": plane[:, 0], "y": plane[:, 1]})
        )
    points = pd.concat(points, ignore_index=True)
    means = points.groupby(["step", "set"], sort=False)[["x", "y"]].mean().reset_index()
    return points, means, float(path.values[-1]) - exact.value, exact


def _largest(tensor):
    return float(tensor.abs().max())


def _metrics(problem, point):
    statistics = LabelSetStatistics.of(point["features"], problem.targets)
    return statistics_metrics(statistics, point["weight"])
