"""Result 3: unconstrained-features problems and networks against the closed forms, as tidy tables.

Row functions take one setting and return a dict (or a list of them) for :func:`nclib.table.over`;
table functions have plural names.
"""

from functools import partial
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import torch

from nclib import checks, frames, losses
from nclib.metrics.multi_label import LabelSetStatistics, statistics_metrics, tagwise_fit
from nclib.results.multi_label import data as images
from nclib.results.multi_label import decoders, nets, theory
from nclib.table import extreme
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


def closed_form(*, d=None, seed=0, **case):
    """Optimiser against closed form, one variable per sample; ``case`` as in ``theory.optimum``.

    A row with value_gap and the largest deviations: classifier_error (of ``W Wᵀ``), feature_error
    (from the self-dual, tag-wise formula), bias_error (from a multiple of 1), spread (inside a
    label set), margin_error, identity (3.L17) and certificate.
    """
    K, d = case["K"], d or case["K"]
    exact = theory.optimum(**case)
    problem = theory.balanced(d, **case, lambda_b=1e-2, per_sample=True)
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
    found = theory.logit_margins(problem.logits(solved(problem, seed=seed)[0]), problem.targets)
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


def scale_curve(reduction, m, *, K):
    """The exact C_m against the singles' margin: margin_1, scale."""
    grid = np.geomspace(0.02, 60, 160)
    scale = theory.scale_at(grid, K=K, m=m, reduction=reduction)
    return pd.DataFrame({"margin_1": grid, "scale": scale})


def threshold(reduction, factor, *, K, counts, seed=0):
    """The optimiser at ``factor`` times the zero-solution threshold: gain (value at zero minus
    value found), value_gap."""
    case = {"K": K, "counts": counts, "lambda_w": 2e-3, "reduction": reduction}
    bound = theory.optimum(**case, lambda_h=1.0).threshold
    case["lambda_h"] = (factor * bound / 2) ** 2 / case["lambda_w"]
    problem = theory.balanced(K, **case)
    point, value = solved(problem, seed=seed)
    zero = {name: torch.zeros_like(tensor) for name, tensor in point.items()}
    gain, exact = float(problem.value(zero)) - value, theory.optimum(**case).value
    return {"gain": gain, "value_gap": value - exact}


def soft_targets(*, seed=0):
    """The loss and torch's cross-entropy with soft targets on all 15 label sets of K = 4, as
    ``{reduction: (found, expected)}`` (claim 3.L1)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(15, 4, generator=generator, dtype=torch.float64)
    y = torch.cat([theory.label_sets(4, m) for m in (1, 2, 3, 4)])
    soft = {"sum": y, "mean": y / y.sum(1, keepdim=True)}
    cross_entropy = torch.nn.functional.cross_entropy
    return {
        way: (losses.pick_all_labels(logits, y, way), cross_entropy(logits, soft[way]))
        for way in theory.REDUCTIONS
    }


def self_duality(*, seed=0, **case):
    """With a free bias: free_bias, its deviation from a multiple of ones, and self_dual, the
    largest ``|h_k - (s_1/α²) w_k|`` (claims 3.L3, 3.L4)."""
    exact, K = theory.optimum(**case), case["K"]
    point, _ = solved(theory.balanced(K + 1, **case, lambda_b=0.0), seed=seed, newton=2)
    aligned = exact.margins[1] / exact.classifier_scale * point["weight"]
    free_bias = float(point["bias"].std())
    return {"free_bias": free_bias, "self_dual": _largest(point["features"][:K] - aligned)}


def single_factor():
    """``(s_1/α², √(λ_W/(λ_H n)))`` for single labels only, where the two are equal (3.L4)."""
    n, lambda_w, lambda_h = 5, 2e-3, 5e-4
    one = theory.optimum(K=4, counts={1: n}, lambda_w=lambda_w, lambda_h=lambda_h)
    return one.margins[1] / one.classifier_scale, (lambda_w / (lambda_h * n)) ** 0.5


# Landscape ----------------------------------------------------------------------------------------


def start_gaps(d, *, starts=20, seed=0, **case):
    """Value above the global minimum from many random starts: start, gap."""
    problem, exact = theory.balanced(d, **case, lambda_b=1e-2), theory.optimum(**case)
    start = problem.start(torch.Generator().manual_seed(seed + d), 0.3, batch=(starts,))
    gaps = (solve.best(problem, start).values - exact.value).tolist()
    return [{"start": i, "gap": gap} for i, gap in enumerate(gaps)]


def saddle(rank, start, *, seed=0, **case):
    """Curvature of the way out of a critical point of low rank in K - 1 dimensions: excess (value
    above the global minimum), predicted, measured."""
    problem, exact = theory.balanced(case["K"] - 1, **case, lambda_b=1e-2), theory.optimum(**case)
    point = landscape.saddle(problem, rank, seed=seed + start, newton=4)
    direction, predicted = landscape.escape(problem, point)
    measured = landscape.curvature(problem, point, direction)
    excess = float(problem.value(point)) - exact.value
    return {"excess": excess, "predicted": predicted, "measured": measured}


def flat_directions(*, seed=0, **case):
    """``(number of zero eigenvalues of the Hessian at the minimum in dimension K + 1, number of
    rotations)`` (claim 3.L10)."""
    K = case["K"]
    problem = theory.balanced(K + 1, **case, lambda_b=0.01)
    point, _ = solved(problem, seed=seed, newton=2)
    flat = int((landscape.spectrum(problem, point).abs() < 1e-9).sum())
    return flat, landscape.orbit(K + 1, K - 1)


# Imbalance ----------------------------------------------------------------------------------------


def multiplicity_imbalance(ratio, *, seed=0):
    """Singles against pairs, each multiplicity balanced: ratio (n_1 over n_2, rounded), nc2,
    degrees, scale, scale_theory (claim 3.L6)."""
    K, pairs = 5, max(1, round(600 / (1 + ratio)))
    counts = {1: max(1, round(ratio * pairs)), 2: pairs}
    case = {"K": K, "counts": counts} | decays(K, counts, 1e-2)
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


def imbalance(table, *, K, seed=0, **decay):
    """Global minimum for a label table, by default at the :func:`official_decay`: ``(summary,
    sets, norms)``.

    ``summary``: one row with nc2, nc2_means, certificate, identity (3.L17), the mean angle of the
    pairs to the tag-wise sum of the singles' means (``degrees``, ``ratio``) and of the classifier
    rows (``degrees_weight``), and the norms of the rarer half of the classes over those of the
    other half: long_means, short_rows.  ``sets``: i, j, samples, degrees, degrees_weight, ratio of
    every pair.  ``norms``: those of the singles' ``mean`` and of the classifier row (``weight``) of
    every class.
    """
    problem = theory.from_table(table, K, K=K, **(decay or official_decay(table)))
    point, _ = solved(problem, seed=seed, newton=2)
    metrics = _metrics(problem, point)
    statistics = LabelSetStatistics.of(point["features"], problem.targets)
    fit = tagwise_fit(statistics, 2)
    by_weight = tagwise_fit(statistics, 2, weight=point["weight"])
    pairs = images.label_tuples(fit.label_sets)
    sets = pd.DataFrame(pairs, columns=["i", "j"]).assign(
        samples=[table[pair] for pair in pairs],
        degrees=fit.degrees.numpy(),
        degrees_weight=by_weight.degrees.numpy(),
        ratio=(fit.degrees * fit.ratio / fit.degrees.mean()).numpy(),
    )
    norms, rows = statistics.class_means.norm(dim=1), point["weight"].norm(dim=1)
    summary = {
        "nc2": metrics["nc2_centered"],
        "nc2_means": metrics["nc2_means"],
        "degrees": metrics["angle"][2].degrees,
        "ratio": metrics["angle"][2].ratio,
        "degrees_weight": float(by_weight.degrees.mean()),
        "certificate": problem.certificate(point),
        "identity": identities(problem, point),
        "long_means": float(norms[K // 2 :].min() / norms[: K // 2].max()),
        "short_rows": float(rows[K // 2 :].max() / rows[: K // 2].min()),
    }
    return pd.DataFrame([summary]), sets, pd.DataFrame({"mean": norms, "weight": rows})


def uneven_pairs(singles, *, seed=0):
    """The paper's 500, 50 or 5 samples per pair beside ``singles`` per class, at the exact minimum
    (claim 3.L12).

    One row per group of pairs: samples, degrees (mean angle), ``setting`` (``singles`` as a text),
    and of the whole minimum nc2, ratio, certificate, degrees_all.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    sets = images.label_set_table(10, {1: singles, 2: [500, 50, 5]}, generator=generator)
    summary, pairs, _ = imbalance(sets, K=10, seed=seed)
    whole = summary.rename(columns={"degrees": "degrees_all"}).iloc[0]
    groups = pairs.groupby("samples", as_index=False)["degrees"].mean()
    kept = ["nc2", "ratio", "certificate", "degrees_all"]
    return groups.assign(setting=str(singles), **whole[kept])


def step_table():
    """Singles of the first five of ten classes frequent, of the others rare; equal pairs."""
    table = {(k,): 3100 if k < 5 else 31 for k in range(10)}
    return table | dict.fromkeys(combinations(range(10), 2), 200)


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


# Frozen classifier, nonnegative features ----------------------------------------------------------


def frozen_margins(*, seed=0):
    """A frozen ETF classifier (claim 3.L20): value, ``(found, exact)``; by the optimiser counts,
    the change of s_1 when the pairs become as many more singles, and size, when N doubles."""
    K, decay, counts = 10, 1e-2 / 1900, {1: 100, 2: 20}

    def found(counts):
        exact = theory.frozen_optimum(K=K, counts=counts, lambda_h=decay)
        options = {"K": K, "counts": counts, "lambda_w": 1e-3, "lambda_h": decay}
        fixed = {"weight": theory.configuration(exact).weight}
        problem = theory.balanced(K - 1, **options, fixed=fixed)
        point, value = solved(problem, seed=seed)
        constant = 1e-3 * float(fixed["weight"].square().sum())
        margins = theory.logit_margins(problem.logits(point), problem.targets)
        return (value, exact.value + constant), margins[1]

    samples = sum(n * comb(K, m) for m, n in counts.items())
    (value, margin), (_, alone) = found(counts), found({1: samples // K})
    _, twice = found({m: 2 * n for m, n in counts.items()})
    return {"value": value, "counts": abs(alone - margin), "size": abs(twice - margin)}


STRONG = {"lambda_w": 5e-3, "lambda_h": 2e-4}
# (K, counts) with label sets on both sides of K/2, and beyond it only.
_ACROSS = ((4, {3: 1}), (3, {1: 1, 2: 1}), (5, {1: 1, 3: 1}), (5, {3: 1}), (6, {1: 1, 4: 1}))
ACROSS = {f"K = {K}, {counts}": (K, counts) for K, counts in _ACROSS}


def nonnegative(K, counts, *, seed=0):
    """The optimiser with nonnegative features, best of four starts, against the formula (3.L19):
    value ``(found, exact)``, tagwise and etf (largest deviations), certificate."""
    case = {"K": K, "counts": counts, "lambda_w": 2e-3, "lambda_h": 5e-4}
    exact, problem = (
        theory.nonnegative_optimum(**case),
        theory.balanced(K + 2, **case, nonnegative=True),
    )
    found = solve.best(problem, 4, seed=seed, refine=True)
    H, W, y = found.point["features"], found.point["weight"], problem.targets
    scale = torch.tensor([[exact.scales[int(m)]] for m in y.sum(1)], dtype=torch.float64)
    return {
        "value": (found.value, exact.value),
        "tagwise": _largest(H - scale * y @ H[:K]),
        "etf": _largest(W @ W.T - exact.classifier_scale * frames.centring(K)),
        "certificate": theory.certificate(problem, found.point),
    }


def nonnegative_exact(case):
    """The explicit minimiser (3.L21) of a case ``(K, counts)``: certificate, and etf, the distance
    of W from the ETF."""
    K, counts = case
    case = {"K": K, "counts": counts} | STRONG
    exact = theory.nonnegative_optimum(**case)
    made = theory.configuration(exact)
    W = made.weight
    problem = theory.balanced(W.shape[1], **case, nonnegative=True)
    point = {"weight": W, "features": made.features}
    etf = _largest(W @ W.T - exact.classifier_scale * frames.centring(K))
    return {"certificate": theory.certificate(problem, point), "etf": etf}


KINDS = ("orthogonal frame", "explicit: axes of the classes outside", "optimiser")


def nonnegative_alone(m, *, seed=0):
    """Every m-subset of four classes once: rows kind, excess over the exact minimum, for the
    orthogonal frame, the explicit point along the classes outside, and the optimiser."""
    K = 4
    case = {"K": K, "counts": {m: 1}} | STRONG
    exact = theory.nonnegative_optimum(**case).value
    problem = theory.balanced(K, **case, nonnegative=True)
    axes, P, y = torch.eye(K, dtype=torch.float64), frames.centring(K), problem.targets
    start = {"log_w": torch.zeros(()).double(), "log_h": torch.zeros(()).double()}

    def lowest(weight, features):
        """The best scales for fixed directions."""

        def value(log_w, log_h):
            return problem.value(
                {"weight": log_w.exp() * weight, "features": log_h.exp() * features}
            )

        return solve.minimize(value, start, gtol=1e-9).value

    wide = theory.balanced(K + 2, **case, nonnegative=True)
    values = [
        lowest(P, y @ axes),
        lowest(-P, (1 - y) @ axes),
        solve.best(wide, 4, seed=seed, gtol=1e-7).value,  # the valley is flat at m = K/2
    ]
    return [{"kind": kind, "excess": v - exact} for kind, v in zip(KINDS, values, strict=True)]


def nonnegative_mixture(share):
    """Singles of five classes, and ``share`` times as many triples per set: rows t, weight of the
    subset sizes."""
    K, counts = 5, {1: 100, 3: max(1, round(share * 100))}
    blocks = theory.nonnegative_optimum(K=K, counts=counts, **decays(K, counts, 2e-3)).blocks
    return [{"t": t, "weight": blocks.get(t, 0.0)} for t in range(1, K)]


def leaves_tagwise():
    """Relative squared residual of the triples from their tag-wise average at the minimum with as
    many singles as triples per set (claim 3.L21); 0 where the average is exact."""
    exact = theory.nonnegative_optimum(K=4, counts={1: 1, 3: 1}, **STRONG)
    made = theory.configuration(exact)
    return tagwise_fit(LabelSetStatistics.of(made.features, made.targets), 3).residual


# The picture of three classes ---------------------------------------------------------------------


def concept_path(steps=(10, 3000), *, seed=0):
    """Gradient descent on K = 3 classes with singles and pairs, seen in the plane (figure 1).

    Returns ``(points, means, end, scale)``: one row per sample (step, set, x, y) and per label set,
    in the two leading singular directions of the features at that step; the last step, one row per
    label set: set, extent (of its samples), distance (of its mean from C_m times the sum of its
    labels' means), and gap, f minus its minimum; the exact C_2.
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
    names = ["+".join(str(k + 1) for k in S) for S in images.label_tuples(problem.targets)]
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
    last = points[points["step"] == path.steps[-1]].drop(columns="step").groupby("set", sort=False)
    extent, mean = (last.max() - last.min()).max(axis=1), last.mean()
    parts = {name: name.split("+") for name in mean.index}
    off = [mean.loc[S] - exact.scales[len(of)] * mean.loc[of].sum() for S, of in parts.items()]
    end = {"extent": extent, "distance": np.linalg.norm(off, axis=1)}
    gap = float(path.values[-1]) - exact.value
    return points, means, pd.DataFrame(end).assign(gap=gap).reset_index(), exact.scales[2]


# Networks -----------------------------------------------------------------------------------------


def cells(texts):
    """``[(data set, architecture), …]`` of texts such as "digits/mlp"."""
    found = [tuple(text.split("/")) for text in texts]
    for text, cell in zip(texts, found, strict=True):
        if len(cell) != 2 or cell[0] not in images.SOURCES or cell[1] not in nets.NAMES:
            raise checks.InputError(
                f"parameter more_cells must hold texts such as digits/mlp, with a data set of "
                f"{', '.join(images.SOURCES)} and a network of {', '.join(nets.NAMES)}; got {text}"
            )
    return found


def require_minimum(*, K, counts, **decays):
    """Say now that sections 1-4 need single labels, and a minimum that is not zero."""
    if 1 not in counts:
        raise checks.InputError(
            f"parameter counts needs samples with one label, {{1: n, …}}; got {counts}"
        )
    both = (
        theory.optimum(K=K, counts=counts, reduction=way, **decays) for way in theory.REDUCTIONS
    )
    if any(exact.collapsed for exact in both):
        raise checks.InputError(
            "parameters lambda_w and lambda_h are so large that the minimum is zero: lower them"
        )


def controls(main, more, *, task, architecture):
    """One row per net and seed of the comparison with the controls: task, net, pairs, metrics.

    ``main``: the nets "learned" and "no pairs" on ``task``; ``more``: from ``nets.with_control``.
    """
    kinds = {"learned": nets.WITH, "no pairs": nets.WITHOUT}
    own = main.final[main.final["net"].isin(kinds)]
    own = own.assign(task=task, pairs=own["net"].map(kinds), net=nets.NAMES[architecture])
    return pd.concat([own, more.controls()], ignore_index=True)


def loss_floor(data, reduction="sum"):
    """Infimum of the mean pick-all-label loss over all nets, for the label sets of ``data``."""
    sizes = data.labels.sum(1).long().tolist()
    return sum(theory.loss_floor(m, reduction) for m in sizes) / len(sizes)


def prediction(data, *, frozen=False, reduction="sum", weight_decay, feature_decay):
    """The theory's end of training on ``data``, without free parameters: margin_m, scale_m and
    soft_iou_m.  Counts per multiplicity are averages over label sets: exact when balanced."""
    K, sizes = data.num_classes, data.labels.sum(1).long()
    present = sizes.unique().tolist()
    counts = {m: max(1, round(int((sizes == m).sum()) / comb(K, m))) for m in present}
    case = {"K": K, "counts": counts, "lambda_h": feature_decay / len(data)}
    if frozen:
        exact = theory.frozen_optimum(**case, reduction=reduction)
    else:
        exact = theory.optimum(**case, lambda_w=weight_decay / 2, reduction=reduction)
    mass = {m: float(theory.set_mass(s, K=K, m=m)) for m, s in exact.margins.items()}
    return (
        {f"margin_{m}": s for m, s in exact.margins.items()}
        | {f"scale_{m}": c for m, c in exact.scales.items()}
        | {f"soft_iou_{m}": mass for m, mass in mass.items()}
    )


def decode(trained, test, *, reduction="sum", bce=False):
    """``{decoder: predictions}`` on ``test``, every decoder on the same net.

    Nearest codeword with the theory's C_m (pick-all-label nets) and with the fitted one, largest
    gap, sign of the logit (pick-all-label: around their mean), and top m with the true m.
    """
    features, logits = nets.outputs(trained.net, test.inputs)
    seen, _ = nets.outputs(trained.net, trained.data.inputs)
    sizes = sorted(set(trained.data.labels.sum(1).long().tolist()))
    options = {"multiplicities": sizes, "reduction": reduction}
    book = partial(
        decoders.tagwise_codebook, seen, trained.data.labels, trained.net.weight, **options
    )
    means = LabelSetStatistics.of(seen, trained.data.labels).class_means
    found = {}  # the theory's C_m needs classes that are told apart
    if not bce and decoders.single_margin(means, trained.net.weight) > 0:
        found = {"codeword": decoders.nearest_codeword(features, book())}
    most = min(max(sizes), test.num_classes - 1)
    return found | {
        "codeword, fitted": decoders.nearest_codeword(features, book(fitted=True)),
        "largest gap": decoders.largest_gap(logits, most=most),
        "sign": decoders.sign(logits, centred=not bce),
        "top m (m known)": decoders.top_m(logits, test.labels.sum(1).long()),
    }


def scores(trained, test, *, unseen=(), **options):
    """:func:`decoders.score_table` of one net, with the label sets ``unseen`` in training apart
    (column sets: "trained" or "never trained")."""
    seen, tables = test.table().keys() - set(unseen), []
    for label, sets in (("never trained", unseen), ("trained", seen)):
        if len(part := test.keep(sets)):
            table = decoders.score_table(decode(trained, part, **options), part.labels)
            tables.append(table.assign(sets=label))
    return pd.concat(tables, ignore_index=True)


def group_angles(net, data):
    """Mean angle of the pairs' means to their tag-wise sum, by samples per label set: rows
    samples, sets, ratio to the mean angle of all pairs (claim 3.L12 on a net).  More than six
    different counts are cut into thirds, named by their medians."""
    fit = tagwise_fit(LabelSetStatistics.of(nets.outputs(net, data.inputs)[0], data.labels), 2)
    ratio = (fit.degrees * fit.ratio / fit.degrees.mean()).cpu()
    return by_samples(pd.DataFrame({"samples": fit.sample_counts.long().cpu(), "ratio": ratio}))


def by_samples(sets):
    """Mean ``ratio`` of label sets by their ``samples``: rows samples, sets, ratio."""
    if sets["samples"].nunique() > 6:
        third = pd.qcut(sets["samples"], 3)
        sets = sets.assign(
            samples=sets.groupby(third, observed=True)["samples"].transform("median")
        )
    found = sets.groupby("samples")["ratio"].agg(["size", "mean"]).reset_index()
    return found.set_axis(["samples", "sets", "ratio"], axis=1).astype({"samples": int})


def against_controls(table):
    """Nets beside those that never saw a pair, worst over the seeds: by task and architecture.

    ``table``: from :func:`controls`.  Columns nc1, nc2, nc2_means, nc3, singles (the
    largest of these four), angle, and difference, the angle over the control's smallest.
    """
    short = {name: architecture for architecture, name in nets.NAMES.items()}
    table = table.assign(architecture=table["net"].map(short))
    table = table.rename(columns={"nc2_centered": "nc2", "angle_2": "angle"})
    trained, without = (
        table[table["pairs"] == kind].groupby(["task", "architecture"], sort=False)
        for kind in (nets.WITH, nets.WITHOUT)
    )
    single = ["nc1", "nc2", "nc2_means", "nc3"]
    worst = extreme(trained[[*single, "angle"]], "max")
    worst["singles"] = worst[single].max(axis=1, skipna=False)
    worst["difference"] = worst["angle"] / extreme(without["angle"], "min")
    return worst


def rare_groups(trained, control, data, **decays):
    """Frequent and rare pairs of ``data``: rows setting (trained, control, exact minimum), samples,
    sets, ratio.  ``decays`` as in :func:`prediction`."""
    lambda_w, lambda_h = decays["weight_decay"] / 2, decays["feature_decay"] / len(data)
    penalties = {"lambda_w": lambda_w, "lambda_h": lambda_h, "lambda_b": lambda_w}
    _, exact, _ = imbalance(data.table(), K=data.num_classes, **penalties)
    parts = {
        nets.WITH: group_angles(trained, data),
        nets.WITHOUT: group_angles(control, data),
        "exact minimum": by_samples(exact[["samples", "ratio"]]),
    }
    return pd.concat([part.assign(setting=name) for name, part in parts.items()])


def scale_ratio(rows, *, K, reduction="sum"):
    """C_2 of networks over the curve at their own singles' margin, of each of ``rows`` with the
    columns scale_2, margin_1 (claim 3.L18)."""
    known = theory.scale_at(rows["margin_1"].to_numpy(), K=K, m=2, reduction=reduction)
    return rows["scale_2"] / known


def errors_at_the_minimum():
    """Label sets that the nearest codeword misses at the exact minimum, of 41 (claim 3.L16)."""
    made = theory.optimum(K=6, counts={1: 2, 2: 1, 3: 1}, lambda_w=1e-3, lambda_h=1e-3)
    made = theory.configuration(made)
    H, Y = made.features, made.targets
    book = decoders.tagwise_codebook(H[:6], Y[:6], made.weight, multiplicities=(1, 2, 3))
    return int((~decoders.exact_match(decoders.nearest_codeword(H, book), Y)).sum())


def sizes(trained, control, data, **decays):
    """A net on single labels, pairs and triples, beside a control that saw single labels only, both
    measured on ``data``: rows net, m, angle (ratio), scale, and theory, the exact scale."""
    exact, rows = prediction(data, **decays), []
    for name, net in ((nets.WITH, trained), (nets.WITHOUT, control)):
        found = nets.measure(net, data)
        for m in (2, 3):
            row = {"net": name, "m": m, "angle": found[f"angle_{m}"], "scale": found[f"scale_{m}"]}
            rows.append(row | {"theory": exact[f"scale_{m}"]})
    return pd.DataFrame(rows)


def _largest(tensor):
    return float(tensor.abs().max())


def _metrics(problem, point):
    statistics = LabelSetStatistics.of(point["features"], problem.targets)
    return statistics_metrics(statistics, point["weight"])
