"""Result 3: tables that compare the pick-all-label optimiser with the closed forms.

Each function solves unconstrained-features problems and returns tidy DataFrames for the figures and
claims of the notebook.
"""

from itertools import combinations

import numpy as np
import pandas as pd
import torch

from nclib import frames
from nclib.metrics.multi_label import LabelSetStatistics, statistics_metrics, tagwise_fit
from nclib.results.multi_label import theory, ufm
from nclib.ufm import solve


def closed_form_check(cases, *, lambda_b=1e-2, seed=0):
    """Optimiser against closed form for ``cases``: dicts with the arguments of ``theory.optimum``
    and optionally ``d`` (default K).

    One row per case: value_gap, and the largest deviations classifier_error (of ``W Wᵀ``),
    feature_error (of the self-dual, tag-wise formula), bias_error (deviation from a multiple of 1),
    spread (of the features inside a label set; one variable per sample), margin_error, identity
    (both residuals of 3.L17) and certificate.
    """
    rows = []
    for i, case in enumerate(cases):
        case = dict(case)
        d = case.pop("d", case["K"])
        exact = theory.optimum(**case)
        problem = ufm.balanced(**case, lambda_b=lambda_b, per_sample=True)
        generator = torch.Generator().manual_seed(seed + i)
        found = ufm.minimize(problem, d, generator=generator, newton=2)
        y, sizes = problem.targets, problem.targets.sum(1).long()
        margins = torch.tensor([[exact.margins[int(m)]] for m in sizes], dtype=torch.float64)
        formula = margins * y @ found.weight / exact.classifier_scale
        P = frames.centring(case["K"])
        means = {tuple(r.tolist()): found.features[(y == r).all(1)] for r in y.unique(dim=0)}
        rows.append(
            {
                "K": case["K"],
                "n": str(case["counts"]),
                "reduction": case.get("reduction", "sum"),
                "d": d,
                "value": exact.value,
                "value_gap": found.value - exact.value,
                "classifier_error": _largest(
                    found.weight @ found.weight.T - exact.classifier_scale * P
                ),
                "feature_error": _largest(found.features - formula),
                "bias_error": _largest(found.bias - found.bias.mean()),
                "spread": max(_largest(h - h[0]) for h in means.values()),
                "margin_error": _largest(found.logits @ P - margins * y @ P),
                "identity": max(found.identity_residuals()),
                "certificate": found.certificate_gap,
            }
        )
    return pd.DataFrame(rows)


def margin_sweep(strengths, *, K, counts, reduction="sum", seed=0):
    """Margins found by the optimiser at ``lambda_w = N lambda_h = strength``.

    Columns: strength, reduction, m, margin, margin_1 (of the smallest multiplicity), scale (their
    ratio), and theory, the exact margin.
    """
    rows = []
    for strength in strengths:
        case = {"K": K, "counts": counts, "reduction": reduction} | decays(K, counts, strength)
        problem, exact = ufm.balanced(**case), theory.optimum(**case)
        found = ufm.minimize(problem, K, generator=torch.Generator().manual_seed(seed))
        y, z, sizes = problem.targets, found.logits, problem.targets.sum(1)
        gap = (z * y).sum(1) / sizes - (z * (1 - y)).sum(1) / (K - sizes)
        margins = {m: float(gap[sizes == m].mean()) for m in exact.margins}
        first = margins[min(margins)]
        for m, margin in margins.items():
            row = {"strength": strength, "reduction": reduction, "m": m, "margin": margin}
            row |= {"margin_1": first, "scale": margin / first, "theory": exact.margins[m]}
            rows.append(row)
    return pd.DataFrame(rows)


def margin_curve(strengths, *, K, counts, reduction="sum"):
    """The exact margins at ``lambda_w = N lambda_h = strength``: ``(table, threshold)``.

    ``table``: strength, m, margin; from the strength ``threshold`` on the solution is zero.
    """
    case = {"K": K, "counts": counts, "reduction": reduction}
    rows = [
        {"strength": strength, "m": m, "margin": margin}
        for strength in strengths
        for m, margin in theory.optimum(**case, **decays(K, counts, strength)).margins.items()
    ]
    unit = theory.optimum(**case, **decays(K, counts, 1.0))
    return pd.DataFrame(rows), unit.threshold / 2 * unit.num_samples**0.5


def scale_table(*, K, multiplicities=(2, 3, 4), seed=0):
    """C_m against the singles' margin, exact and by the optimiser: ``(curves, measured)``.

    ``curves``: reduction, m, margin_1, scale; ``measured``: the same from optimiser runs with
    pairs, and the ``predicted`` scale at the measured margin.
    """
    grid = np.geomspace(0.02, 60, 160)
    curves, measured = [], []
    for reduction in theory.REDUCTIONS:
        for m in multiplicities:
            scale = theory.scale_at(grid, K=K, m=m, reduction=reduction)
            one = {"reduction": reduction, "m": m, "margin_1": grid, "scale": scale}
            curves.append(pd.DataFrame(one))
        strengths, counts = (3e-3, 3e-2, 0.12), {1: 2, 2: 1}
        sweep = margin_sweep(strengths, K=K, counts=counts, reduction=reduction, seed=seed)
        measured.append(sweep[sweep["m"] == 2])
    measured = pd.concat(measured, ignore_index=True)
    measured["predicted"] = [
        theory.scale_at(r.margin_1, K=K, m=r.m, reduction=r.reduction)
        for r in measured.itertuples()
    ]
    return pd.concat(curves, ignore_index=True), measured


def decays(K, counts, strength):
    """``lambda_w = strength`` and ``lambda_h = strength/N``: equal pull on both layers."""
    N = float(theory.balanced_sets(K, counts)[1].sum())
    return {"lambda_w": strength, "lambda_h": strength / N}


def start_gaps(dims, *, starts=20, seed=0, **case):
    """Value above the global minimum from many random starts: columns d, start, gap."""
    problem, exact = ufm.balanced(**case, lambda_b=1e-2), theory.optimum(**case)
    rows = []
    for d in dims:
        generator = torch.Generator().manual_seed(seed + d)
        single = [ufm.random_start(problem, d, generator=generator) for _ in range(starts)]
        stacked = {name: torch.stack([s[name] for s in single]) for name in single[0]}
        found = solve.minimize_many(problem._spread, stacked)
        gaps = (found.values - exact.value).tolist()
        rows += [{"d": d, "start": i, "gap": gap} for i, gap in enumerate(gaps)]
    return pd.DataFrame(rows)


def saddle_table(ranks, *, starts=3, d=None, seed=0, **case):
    """Curvature at critical points of low rank: columns rank, start, excess (value above the global
    minimum), predicted, measured."""
    problem, exact = ufm.balanced(**case, lambda_b=1e-2), theory.optimum(**case)
    rows = []
    for rank in ranks:
        for start in range(starts):
            generator = torch.Generator().manual_seed(seed + start)
            point = ufm.saddle(problem, rank, d or case["K"] + 1, generator=generator)
            predicted, measured = ufm.escape(point)
            rows.append(
                {
                    "rank": rank,
                    "start": start,
                    "excess": point.value - exact.value,
                    "predicted": predicted,
                    "measured": measured,
                }
            )
    return pd.DataFrame(rows)


def threshold_check(factors, *, K, counts, lambda_w=2e-3, seed=0):
    """The optimiser around the zero-solution threshold: columns factor, reduction, weight_norm,
    weight_theory, gain (value at zero minus value found)."""
    rows = []
    for reduction in theory.REDUCTIONS:
        case = {"K": K, "counts": counts, "lambda_w": lambda_w, "reduction": reduction}
        bound = theory.optimum(**case, lambda_h=1.0).threshold
        for factor in factors:
            case["lambda_h"] = (factor * bound / 2) ** 2 / lambda_w
            exact, problem = theory.optimum(**case), ufm.balanced(**case)
            zero = float(problem.data_loss(torch.zeros_like(problem.targets)))
            found = ufm.minimize(problem, K, generator=torch.Generator().manual_seed(seed))
            rows.append(
                {
                    "factor": factor,
                    "reduction": reduction,
                    "weight_norm": float(found.weight.norm()),
                    "weight_theory": exact.weight_norm,
                    "gain": zero - found.value,
                    "value_gap": found.value - exact.value,
                }
            )
    return pd.DataFrame(rows)


def multiplicity_imbalance(ratios, *, K=5, total=600, strength=1e-2, seed=0):
    """Singles against pairs from rare to frequent, each multiplicity balanced: columns ratio (n_1
    over n_2), nc2, degrees, scale, scale_theory (claim 3.L6)."""
    rows = []
    for ratio in ratios:
        pairs = max(1, round(total / (1 + ratio)))
        counts = {1: max(1, round(ratio * pairs)), 2: pairs}
        case = {"K": K, "counts": counts} | decays(K, counts, strength)
        problem, exact = ufm.balanced(**case), theory.optimum(**case)
        generator = torch.Generator().manual_seed(seed)
        found = ufm.minimize(problem, K, generator=generator, newton=2)
        metrics = _metrics(found)
        rows.append(
            {
                "ratio": counts[1] / counts[2],
                "nc2": metrics["nc2_centered"],
                "degrees": metrics["angle"][2].degrees,
                "scale": metrics["scale"][2],
                "scale_theory": exact.scales[2],
            }
        )
    return pd.DataFrame(rows)


def official_decay(table):
    """The paper's training as a problem: weight decay 5e-4, feature penalty 0.128 mean ‖h‖²."""
    return {"lambda_w": 2.5e-4, "lambda_h": 0.128 / sum(table.values()), "lambda_b": 2.5e-4}


def imbalance(table, *, K, d=None, seed=0, newton=0, **decay):
    """Global minimum for any label table: ``(summary, sets)``.

    ``summary``: dict with nc2, nc2_means, certificate, identity (residuals of 3.L17), the mean
    angle of the pairs to the tag-wise sum of the singles' means (``degrees``, ``ratio``) and of the
    classifier rows (``degrees_weight``), and norms of the singles' means and classifier rows.
    ``sets``: DataFrame i, j, samples, degrees, degrees_weight of every pair.
    """
    problem = ufm.from_table(table, K=K, **(decay or official_decay(table)))
    generator = torch.Generator().manual_seed(seed)
    found = ufm.minimize(problem, d or K, generator=generator, newton=newton)
    statistics = LabelSetStatistics.of(found.features, problem.targets)
    metrics = statistics_metrics(statistics, found.weight)
    fit = tagwise_fit(statistics, 2)
    by_weight = tagwise_fit(statistics, 2, weight=found.weight)
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
        "certificate": found.certificate_gap,
        "identity": max(found.identity_residuals()),
        "mean_norms": statistics.class_means.norm(dim=1).tolist(),
        "weight_norms": found.weight.norm(dim=1).tolist(),
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


def concept_path(steps=(10, 3000), *, seed=0):
    """Gradient descent on K = 3 classes with singles and pairs, seen in the plane (figure 1).

    Returns ``(points, means, values, exact)``: one row per sample (step, set, x, y) and per label
    set, in the two leading singular directions of the features at that step; f minus its minimum
    per step; the :class:`~theory.Optimum`.
    """
    case = {"K": 3, "counts": {1: 20, 2: 20}, "lambda_w": 5e-3, "lambda_h": 0.015 / 120}
    problem, exact = ufm.balanced(**case, lambda_b=1e-3, per_sample=True), theory.optimum(**case)
    snapshots, values = ufm.descend(
        problem, 10, steps=max(steps), keep=steps, rate=0.5, feature_rate=3.0,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    names = ["+".join(str(k + 1) for k in y.nonzero().flatten().tolist()) for y in problem.targets]
    points = []
    for step, found in snapshots.items():
        axes = torch.linalg.svd(found.features, full_matrices=False)[2][:2]
        plane = found.features @ axes.T
        angle = torch.atan2(*plane[problem.targets[:, 0] * problem.targets.sum(1) == 1].mean(0))
        c, s = torch.cos(angle), torch.sin(angle)  # turned so that class 1 points upwards
        plane = plane @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])
        if plane[problem.targets[:, 1] * problem.targets.sum(1) == 1].mean(0)[0] < 0:
            plane[:, 0] *= -1
        points.append(
            pd.DataFrame({"step": step, "set": names, "x": plane[:, 0], "y": plane[:, 1]})
        )
    points = pd.concat(points, ignore_index=True)
    means = points.groupby(["step", "set"], sort=False)[["x", "y"]].mean().reset_index()
    return points, means, np.asarray(values) - exact.value, exact


def _largest(tensor):
    return float(tensor.abs().max())


def _metrics(found):
    statistics = LabelSetStatistics.of(found.features, found.problem.targets)
    return statistics_metrics(statistics, found.weight)
