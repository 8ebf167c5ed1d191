"""Experiments of result 4: codes and their margins, the model at finite temperature, networks.

A row function takes one setting and returns a dict, for :func:`nclib.table.over`; those with plural
names return tables.
"""

from functools import lru_cache, partial

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize as scipy_minimize
from torch.nn.functional import normalize

from nclib import checks, frames
from nclib.deep import collect, train
from nclib.deep import data as images
from nclib.deep.nets import parameter_count, seeded
from nclib.metrics import generalized_nc, geometry, known_margins, margins
from nclib.metrics.generalized import random_margin
from nclib.results.large_class import codes, data, nets, search, theory
from nclib.results.large_class.assignment import SQUARE, assign_classes, pairwise
from nclib.table import extreme, over
from nclib.ufm.solve import best, minimize_many

LOOSE = 1e-8  # a class whose distance exceeds the margin by more is a rattler

# Codes and margins ------------------------------------------------------------------------------


def two_distances(code):
    """Both distances of each class ``(K, 2)``: to the hull of all others, to the nearest class.

    One row per class: ``x, y`` its place, ``one_vs_rest`` with the nearest point ``hull_x, hull_y``
    of the hull, ``one_vs_one`` (Tammes) with the nearest class ``near_x, near_y``.
    """
    code = margins.unit_rows("code", code)
    checks.matrix("code", code, columns=2)
    found = margins.hull_projections(code)
    away = pairwise(code).fill_diagonal_(torch.inf)
    near = code[away.argmin(1)]
    columns = {"one_vs_rest": found.distance, "one_vs_one": away.amin(1)}
    for name, points in (("", code), ("hull_", found.nearest), ("near_", near)):
        columns |= {f"{name}{axis}": points[:, i] for i, axis in enumerate("xy")}
    return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def vertices(code):
    """One row per class of a code, d <= 3: ``x, y, z, distance, rattler, dimension``."""
    code = margins.unit_rows("code", code)
    checks.require(code.shape[1] <= 3, f"a code in d={code.shape[1]} > 3 dimensions has no picture")
    distance = margins.hull_projections(code).distance
    places = torch.nn.functional.pad(code, (0, 3 - code.shape[1])).numpy()
    table = pd.DataFrame(places, columns=list("xyz")).assign(distance=distance.numpy())
    loose = table["distance"] > table["distance"].min() + LOOSE
    return table.assign(rattler=loose, dimension=code.shape[1])


def known_margin(K, d):
    """``rho*`` where it is known, and the bounds of claim 4.G8."""
    best_known = known_margins.best_known(K, d)
    known = best_known is not None and best_known.status != "lower bound"
    return {
        "margin": best_known.value if known else np.nan,
        "status": best_known.status if known else "unknown",
        "lower": theory.lower_bound(K, d),
        "upper": theory.upper_bound(K, d),
        "stated": theory.bound_threshold(d) <= K,
    }


@lru_cache(maxsize=64)
def found_code(K, d, *, seed=0, starts=None):
    """The best code of the random search alone, also where a construction is known."""
    return search.best(search.search(K, d, seed=seed, starts=starts))


def searched(K, d, *, seed=0, starts=None):
    """The search against the table: margin, Tammes gap, self-duality and rattlers.

    ``angle_margin`` is ``1 - cos theta`` after a polish of the angle alone.  Codes above
    :data:`search.POLISH_SIZE` are not polished: their margins all differ, their ``rattlers`` are
    NaN.  ``reference`` is NaN where no margin is known.
    """
    code = found_code(K, d, seed=seed, starts=starts)
    found = margins.hull_projections(code)
    margin = float(found.distance.min())
    tight = found.distance <= margin + LOOSE
    gap = (code - found.direction).square().sum(1)[tight].max() / 2
    reference = known_margins.best_known(K, d)
    small = K * d <= search.POLISH_SIZE
    angled = search.polish(code, goal="angle") if small else code
    return {
        "K": K,
        "d": d,
        "margin": margin,
        "reference": reference.value if reference else np.nan,
        "status": reference.status if reference else "unknown",
        "width": float((found.upper - found.lower).max()),
        "angle_margin": 1 - margins.max_cosine(angled),
        "duality_gap": float(gap),
        "rattlers": int((~tight).sum()) if small else np.nan,
        "hard_margin": margins.hard_margin(code, found.direction),
    }


def searches(sizes, *, seed=0, starts=None):
    """:func:`searched` of each ``(K, d)``."""
    return pd.DataFrame([searched(K, d, seed=seed, starts=starts) for K, d in sizes])


def moved_features(code, *, seed=0):
    """How the hard margin reacts when the features of one class are moved by 1e-3 (4.G4).

    Of 200 random directions, the largest loss for a rattler, the smallest *average* loss for a
    tight class: ``{"rattler": ..., "tight": ...}``.
    """
    code = margins.unit_rows("code", code)
    found = margins.hull_projections(code)
    margin = float(found.distance.min())
    generator, losses = torch.Generator().manual_seed(seed), []
    for k in range(len(code)):
        noise = torch.randn(200, code.shape[1], generator=generator, dtype=torch.float64)
        moved = normalize(found.direction[k] + 1e-3 * normalize(noise, dim=1), dim=1)
        others = torch.cat([code[:k], code[k + 1 :]])
        reached = (moved @ code[k])[:, None] - moved @ others.T
        losses.append((margin - reached.amin(1)).clamp(min=0))
    loose = found.distance > margin + LOOSE
    tight = torch.stack(losses)[~loose].mean(1).min()
    moved = [float(loss.max()) for loss, free in zip(losses, loose, strict=True) if free]
    return {"rattler": max(moved, default=np.nan), "tight": float(tight)}


def largest_hard_margin(weight, *, seed=0):
    """``min_k max_|h|=1 min_j <w_k - w_j, h>`` by scipy's SLSQP, which knows nothing of hulls."""
    weight = margins.unit_rows("weight", weight).numpy()
    rng, reached = np.random.default_rng(seed), []
    for k, own in enumerate(weight):
        gaps = own - np.delete(weight, k, 0)
        limits = [
            {"type": "ineq", "fun": lambda x, g=gaps: g @ x[:-1] - x[-1]},
            {"type": "ineq", "fun": lambda x: 1 - x[:-1] @ x[:-1]},
        ]
        start = np.append(own + 0.1 * rng.standard_normal(len(own)), 0.0)
        options = {"ftol": 1e-12, "maxiter": 500}
        found = scipy_minimize(
            lambda x: -x[-1], start, constraints=limits, method="SLSQP", options=options
        )
        h = found.x[:-1] / np.linalg.norm(found.x[:-1])
        reached.append((gaps @ h).min())
    return float(min(reached))


def distances(named_weights, *, sample=300, seed=0):
    """``dist_k`` of up to ``sample`` random classes each: columns ``classifier, distance``."""
    generator = torch.Generator().manual_seed(seed)

    def some(classifier):
        chosen = torch.randperm(len(classifier), generator=generator)[:sample]
        found = margins.hull_projections(classifier, classes=chosen).distance
        return [{"distance": value} for value in found.tolist()]

    return over(some, classifier=named_weights)


def certificate(classifier, *, tol=1e-6):
    """The certified margin of a whole classifier and how little had to be solved exactly."""
    bracket = margins.margin(classifier, tol=tol)
    K, d = classifier.shape
    one_vs_one = 1 - margins.max_cosine(classifier)
    found = {"K": K, "d": d, "lower": bracket.lower, "upper": bracket.upper}
    return found | {"one_vs_one": one_vs_one, "solved": bracket.solved}


def lone_rows(weight):
    """``{"twins", "margin", "random"}`` of a large head: how many rows have a twin (a cosine of 1),
    the margin of the rows without any at a cosine above 0.9, and of as many random rows."""
    unit = margins.unit_rows("weight", weight)
    rival = torch.cat([(rows @ unit.T).topk(2)[0][:, 1] for rows in unit.split(1000)])
    alone = unit[rival < 0.9]
    others = random_classifier(*alone.shape)
    found = [margins.margin(rows, tol=1e-3, max_solves=80).upper for rows in (alone, others)]
    return {"twins": int((rival > 1 - 1e-9).sum()), "margin": found[0], "random": found[1]}


def random_classifier(K, d, *, seed=0):
    """Gaussian rows ``(K, d)``, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, d, generator=generator, dtype=torch.float64)


@lru_cache(maxsize=32)
def reference(K, d, *, seed=0):
    """The best margin known for (K, d), or else the certified margin of a short search.

    Of sizes above :data:`search.CONSTRUCT_SIZE` the Gold codes' bound is taken as it is.
    """
    known = known_margins.best_known(K, d)
    if known is not None and (
        known.status != "lower bound"
        or (K, d) in known_margins.LOWER_BOUNDS
        or K * d > search.CONSTRUCT_SIZE
    ):
        return known.value
    return margins.margin(search.solve(K, d, seed=seed, starts=2), tol=1e-6).lower


def largest_cosine_of_gold(K, d, *, sample=200, seed=0):
    """Largest cosine between ``sample`` random Gold words and all others, in one tile."""
    code = codes.gold_code(K, d)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(K, generator=generator)[:sample]
    cosines = code[chosen] @ code.T
    cosines[torch.arange(len(chosen)), chosen] = -1
    return float(cosines.max())


# The model at finite temperature ----------------------------------------------------------------


def minimum(K, d, temperature, *, samples=1, starts=16, seed=0, margin=0.0, start=None):
    """The lowest of ``starts`` local minima, or the one reached from the code ``start``.

    ``weight`` and ``features`` of the minimum, ``log_ce``, ``gradient``, its ``margin`` and
    ``hard_margin``, ``duality_gap`` (largest ``1 - <w, h>``, GNC3), ``within_class`` (mean squared
    distance of the features to their class mean, GNC1).
    """
    problem = theory.model(K, d, temperature, samples=samples, margin=margin)
    if start is not None:
        u = margins.optimal_features(start).repeat_interleave(samples, 0)
        point = {"features": u[None], "weight": margins.unit_rows("W", start)[None]}
        found = best(problem, point, newton=2 if u.numel() < 1000 else 0)  # dense Hessians
    else:
        rough = {"gtol": 1e-5, "max_iter": 200 if starts > 1 else 1000}
        found = best(problem, starts, seed=seed, scale=1.0, refine=starts > 1, **rough)
    W, H = found.point["weight"], found.point["features"]
    groups = H.view(K, samples, d)
    own = W.repeat_interleave(samples, 0)
    return {
        "weight": W,
        "features": H,
        "log_ce": found.value,
        "gradient": found.gradient_norm,
        "margin": margins.margin(W, tol=1e-10).value,
        "hard_margin": margins.hard_margin(W, H, torch.arange(K).repeat_interleave(samples)),
        "duality_gap": float((own - H).square().sum(1).max() / 2),
        "within_class": float((groups - groups.mean(1, keepdim=True)).square().sum(2).mean()),
    }


def cold_limit(code, temperature):
    """The CE minimum near a cold code, with the theory beside it.

    ``slack`` = ``(rho* - m) / T`` and ``value_rate`` = ``(T log CE + rho*) / T``, their predicted
    limits (NaN if ``code`` is not the best one), the sandwich ``scaled_low, scaled, scaled_high``
    around ``T log CE``, and the ``floor`` of the hard margin.  Started from the
    cold code at each temperature: a path that cools from a warm minimum may end at another code
    (of (13, 3), see :mod:`search`), or without any noise stay on a saddle.
    """
    (K, d), T = code.shape, temperature
    rho = known_margins.known_margin(K, d)
    checks.require(rho, f"no best margin is known for (K, d) = ({K}, {d})")
    found = minimum(K, d, T, start=code)
    low, high = theory.log_ce_range(K, K, rho, T)
    slack_limit, value_limit = _rates(code)
    return {
        "margin_ratio": found["margin"] / rho,
        "hard_margin": found["hard_margin"],
        "rho": rho,
        "slack": (rho - found["hard_margin"]) / T,
        "value_rate": (T * found["log_ce"] + rho) / T,
        "slack_limit": slack_limit,
        "value_limit": value_limit,
        "floor": theory.hard_margin_floor(K, K, rho, T),
        "scaled_low": T * low,
        "scaled": T * found["log_ce"],
        "scaled_high": T * high,
        "duality_gap": found["duality_gap"],
    }


@lru_cache(maxsize=16)
def _rates(code):  # one tensor per code: hashed by identity
    return theory.approach_rate(code) if settled(code) else (np.nan, np.nan)


def energies(d, temperature):
    """``T log CE`` of the codes that compete for K = d + 2: ``family, scaled``."""
    half = (d + 2) // 2
    rivals = {"segment + simplex": codes.orthogonal_simplices([2, d])}
    if d > 3:
        rivals["balanced simplices"] = codes.orthogonal_simplices([half, d + 2 - half])
    rivals["tilted vertices"] = theory.best_tilt(d - 2, temperature)
    return [
        {"family": name, "scaled": temperature * theory.log_energy(code, temperature)}
        for name, code in rivals.items()
    ]


def exchanges(d):
    """Temperatures at which the lowest code known for K = d + 2 becomes another one: the ends of
    :func:`theory.segment_phase`, rows ``edge`` (low, high), ``temperature``."""
    ends = zip(("low", "high"), theory.segment_phase(d), strict=True)
    return [{"edge": edge, "temperature": T} for edge, T in ends if np.isfinite(T)]


def phase(d, temperature, *, starts=16, seed=0):
    """What the search finds for K = d + 2 against the explicit codes, in units of ``T log CE``.

    ``family``: the lowest explicit code; ``gap``: the lowest minimum found minus it (below -1e-8:
    a code is missing; down to there the tilted vertices, whose features equal their rows, may lie
    above the minimum, where they do not); ``gradient`` of that minimum.
    """
    rows = energies(d, temperature)
    lowest = min(rows, key=lambda row: row["scaled"])
    found = minimum(d + 2, d, temperature, starts=starts, seed=seed)
    gap = temperature * found["log_ce"] - lowest["scaled"]
    return {"family": lowest["family"], "gap": gap, "gradient": found["gradient"]}


def beside(edges, *, starts=16, seed=0):
    """:func:`phase` on both sides of each of the :func:`exchanges`, and well below the first."""
    tables = []
    for d, edge in edges.groupby("d")["temperature"]:
        at = [0.6 * edge.min(), *(factor * T for T in edge for factor in (0.95, 1.05))]
        tables.append(over(phase, d=[d], temperature=at, starts=starts, seed=seed))
    return pd.concat(tables)


def warm_minimum(temperature, *, starts=16, seed=0):
    """(7, 3): the lowest minimum found, its margin, and how far below the bipyramid it lies."""
    code = frames.bipyramid(7)
    found = minimum(7, 3, temperature, starts=starts, seed=seed)
    excess = theory.log_energy(code, temperature) - found["log_ce"]
    return {
        "margin_ratio": found["margin"] / known_margins.known_margin(7, 3),
        "bipyramid": margins.margin(code).value / known_margins.known_margin(7, 3),
        "excess": temperature * excess,
        "curvature": theory.lowest_curvature(code, temperature),
    }


def in_order(sides):
    """Whether along rising temperature the lowest code of each ``d`` is first the tilted one, then
    segment + simplex, then the balanced simplices, all of those that exist."""
    order = ["tilted vertices", "segment + simplex", "balanced simplices"]

    def fine(part):
        seen = part.sort_values("temperature")["family"].drop_duplicates().tolist()
        return seen == order[: 2 if part["d"].iloc[0] == 3 else 3]

    return all(fine(part) for _, part in sides.groupby("d"))


def against(code, temperature, *, starts=6, seed=0):
    """The lowest minimum from random starts: how far ``above`` a code, relative to the value, and
    its ``duality_gap``."""
    found = minimum(*code.shape, temperature, starts=starts, seed=seed)
    above = np.expm1(found["log_ce"] - theory.log_energy(code, temperature))
    return {"above": above, "duality_gap": found["duality_gap"]}


def spread(case, *, seed=0):
    """Within-class variance at the minimum of a case (K, d, temperature), three samples a class."""
    return {"within_class": minimum(*case, samples=3, starts=4, seed=seed)["within_class"]}


def cosface(margin, *, seed=0):
    """Margin of the (7, 3) minimum at temperature .03 with CosFace's ``margin``, random starts."""
    return {"found": minimum(7, 3, 0.03, margin=margin, starts=24, seed=seed)["margin"]}


def sharp_gap():
    """Largest ``|rho - (1 - cos)|`` of five sharp codes, up to the 240 roots of E8."""
    sharp = (codes.sharp_code(*size) for size in ((12, 3), (27, 6), (56, 7), (120, 4), (240, 8)))
    return max(abs(margins.margin(c).value - (1 - margins.max_cosine(c))) for c in sharp)


def model_margin(K, d, temperature, *, seed=0):
    """The lowest minimum of the model found at ``temperature``, for many classes.

    ``margin`` of its classifier, ``scaled``: ``T log CE``.  The lowest of eight starts, of fewer
    above 158 classes: a good code (a short search) and random ones cooled to ``temperature``.
    Others may lie lower still, and their margins may be larger or smaller.
    """
    starts = normalize(search.search(K, d, starts=1, steps=300, seed=seed)[0], dim=1)[None]
    if (count := min(8, int(2e5 / K**2))) > 1:
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(count - 1, K, d, generator=generator, dtype=torch.float64)
        hot = max(0.3, temperature)
        cooled, _ = search.descend("margin", random, steps=300, hot=hot, cold=temperature)
        starts = torch.cat([starts, cooled])
    problem, point = theory.model(K, d, temperature), {"features": starts, "weight": starts}
    found = minimize_many(problem, point, gtol=1e-7, max_iter=500)
    lowest = found.variables["weight"][found.values.argmin()]
    margin = margins.margin(lowest, tol=1e-6).value
    return {"margin": margin, "scaled": temperature * float(found.values.min())}


# Networks ---------------------------------------------------------------------------------------

COLUMNS = ("gnc1", "gnc2", "gnc2_ratio", "gnc3", "gnc3_centered", "etf_error", "ncc_accuracy")


def recipe(*, epochs, lr=0.1, weight_decay=5e-4, batch_size=128, bf16=False):
    """The paper's: SGD, Nesterov momentum .9, cosine per epoch, weight decay on everything."""
    return train.Recipe(
        epochs,
        lr,
        batch_size,
        weight_decay=weight_decay,
        nesterov=True,
        schedule="cosine",
        drop_last=True,
        bf16=bf16,
    )


def load(name, *, per_class=None, seed=0, folder=None):
    """``(train, test)``: ``NAME x 12`` (see :func:`data.moved`), ``folder`` (images in one
    sub-folder per class), or a data set of :mod:`nclib.deep.data`."""
    if name.endswith(" x 12"):
        name = name.removesuffix(" x 12")
        return data.moved(name, per_class=per_class, test_per_class=20, seed=seed)
    if name == "folder":
        return data.image_folder(folder, size=50, test_share=0.1, seed=seed)
    return images.load(name, train_per_class=per_class, seed=seed)


def settled(code):
    """Whether the search found ``code`` whole: its margin is the known one, up to 1e-9."""
    return margins.margin(code, tol=1e-12).value > known_margins.known_margin(*code.shape) - 1e-9


def require_sizes(sizes, large):
    """Say now that a margin is known for each (K, d), and that ``sizes`` can be polished."""
    for K, d in [*sizes, *large]:
        text = f"parameters sizes, large_sizes: no margin to compare with is known for ({K}, {d})"
        checks.require(known_margins.best_known(K, d), text)
    for K, d in sizes:
        text = f"parameter sizes: K d of ({K}, {d}) is above {search.POLISH_SIZE}, use large_sizes"
        checks.require(K * d <= search.POLISH_SIZE, text)


def require(name, images_taken, *, folder="", architecture="mlp"):
    """Say now what :func:`load` and :func:`builder` would say later: for a notebook's first cell.

    ``images_taken``: name of a parameter -> its value, images per class.  Raises
    :class:`~nclib.checks.InputError` for a data set that is not here or too small, and for a
    network that cannot read it.
    """
    checks.require(
        name == "folder" or not folder,
        f"parameter folder is {folder!r}, but many_dataset is {name}: say many_dataset=folder to "
        "use it",
    )
    if name == "folder":
        data.open_folder(folder)
        text = "many_dataset=folder holds bytes: it needs architecture=resnet18"
        checks.require(architecture != "mlp", text)
    elif name.endswith(" x 12"):
        kinds = name.removesuffix(" x 12")
        images.require(kinds)
        most = data.DIGITS if kinds == "digits" else images.smallest_class(kinds)[0]
        for parameter, count in images_taken.items():
            text = f"parameter {parameter} must be a number, at most {most} for {name}, got {count}"
            checks.require(count is not None and count <= most, text)
    else:
        images.require(name, images_taken)


def builder(architecture, part, dim, *, hidden=(256, 256)):
    """A function ``momentum -> net`` for this data; ``momentum=None``: a learned cosine head."""
    checks.choice("architecture", architecture, ("mlp", "resnet18"))
    K, shape = part.num_classes, part.inputs.shape[1:]
    if architecture == "mlp":
        size = shape.numel()
        return lambda momentum=None: nets.sphere_mlp(size, dim, K, hidden=hidden, momentum=momentum)

    def build(momentum=None):
        net = nets.sphere_resnet(dim, K, in_channels=shape[0], momentum=momentum)
        if part.inputs.dtype == torch.uint8:
            net.backbone = torch.nn.Sequential(nets.Standardize(part.inputs), net.backbone)
        return net

    return build


def measure(net, part, test, *, reference=None):
    """GNC1-GNC3 (:data:`COLUMNS`), accuracy on both parts, agreement with the nearest mean."""
    features, unit = collect.features(net, part.inputs), isinstance(net.head, nets.CosineHead)
    weight = normalize(net.weight, dim=1) if unit else net.weight
    found = generalized_nc(
        features, part.labels, weight, net.bias, reference=reference, random_draws=0, tol=1e-7
    )
    row = {name: found[name] for name in COLUMNS}
    row |= {"train_accuracy": found["accuracy"], "agreement": found["agreement"]}
    return row | {"test_accuracy": collect.accuracy(net, test)}


def train_nets(
    build, part, test, settings, *, temperatures, seeds, reference, measure_at=(), checkpoint=None,
    augment=None,
):  # fmt: skip
    """One net per temperature and seed, measured on the training set: a tidy history.

    Columns ``epoch, temperature, seed, lr, train_loss`` and those of :func:`measure`.
    """
    cells = [
        train.Cell(nets.NormalizedSoftmax(T), seed, settings.epochs, {"temperature": T})
        for T in temperatures
        for seed in seeds
    ]
    trained = train.grid(
        build,
        cells,
        part,
        settings,
        measure=lambda net, cell, epoch: measure(net, part, test, reference=reference),
        measure_at=measure_at,
        checkpoint=checkpoint,
        together=False,
        augment=augment,
        label="temperatures",
    )
    tables = [one.history.assign(seed=one.cell.seed, **one.cell.tags) for one in trained]
    return pd.concat(tables, ignore_index=True)


def classifiers(architecture, part, test, settings, *, dim, hidden, temperature, seeds, reference,
                momenta=(), checkpoint=None, augment=None):  # fmt: skip
    """Other last layers than the learned unit rows of :func:`train_nets`, one net each and seed.

    ``plain``: free norms, weight decay, no temperature.  ``hard max``: unit rows, the worst margin
    of each sample in units of ``temperature``.  ``CMF m``: running class means with momentum m;
    GNC3 is then true by construction, no evidence.  ``checkpoint(classifier, seed) -> path``.
    Columns ``classifier, seed, parameters`` and those of :func:`measure`.
    """
    losses = {"plain": nets.NormalizedSoftmax(1.0), "hard max": nets.HardMax(1 / temperature)}
    losses |= {f"CMF {m:g}": nets.NormalizedSoftmax(temperature) for m in momenta}
    build, rows = builder(architecture, part, dim, hidden=hidden), []
    for name, loss in losses.items():
        for seed in seeds:
            net = seeded(seed, build, float(name[4:]) if name.startswith("CMF") else None)
            if name == "plain":
                net.head = seeded(seed, torch.nn.Linear, dim, part.num_classes, bias=False)
            net = net.to(part.inputs.device)
            path = checkpoint(name, seed) if checkpoint else None
            options = {"measure_at": (), "checkpoint": path, "augment": augment}
            train.fit(net, part, nets.objective(loss), settings, seed=seed, **options)
            row = {"classifier": name, "seed": seed, "parameters": parameter_count(net)}
            rows.append(row | measure(net, part, test, reference=reference))
    return pd.DataFrame(rows)


def collapse(history, **levels):
    """How far training went, the worst seed: falls of GNC1 and GNC3 from the first to the last
    epoch, the last GNC2 over each of ``levels``, and the last training ``accuracy``."""
    ends = [part.sort_values("epoch").iloc[[0, -1]] for _, part in history.groupby("seed")]
    last = pd.concat(part.tail(1) for part in ends)
    found = {
        column: float(np.max([part[column].iloc[1] / part[column].iloc[0] for part in ends]))
        for column in ("gnc1", "gnc3")
    }
    lowest = {name: float(last[name].to_numpy().min()) for name in ("gnc2", "train_accuracy")}
    found |= {name: lowest["gnc2"] / level for name, level in levels.items()}
    return found | {"accuracy": lowest["train_accuracy"]}


def around_best(final, best, random):
    """Checks of 4.G15 on last epochs of :func:`train_nets`, mean over seeds: how much ``gnc2`` and
    the test accuracy gain from the temperature ``best`` over the highest (``warm, accuracy``) and
    the lowest (``cold``), and the highest one's ``gnc2`` minus ``random``."""
    mean = final.groupby("temperature").mean(numeric_only=True)
    hot, top = mean.loc[mean.index.max()], mean.loc[best]
    return {
        "warm": top["gnc2"] - hot["gnc2"],
        "cold": top["gnc2"] - mean["gnc2"][mean.index.min()],
        "accuracy": top["test_accuracy"] - hot["test_accuracy"],
        "below": hot["gnc2"] - random,
    }


def growth(by_dimension):
    """Checks of 4.G16 on rows with ``d, gnc2, random``: the smallest growth from one dimension to
    the next (nothing to say of a single one), and what is above a random classifier's margin."""
    by = by_dimension.groupby("d")
    low, high = (extreme(by["gnc2"], name) for name in ("min", "max"))
    steps = (low - high.shift()).to_numpy()[1:]
    found = {"growth": float(steps.min())} if len(steps) else {}
    return found | {"above_random": low - by["random"].first()}


def assignments(part, test, code, settings, *, temperature, seeds, hidden):
    """Classifiers fixed to the square ``code`` that differ only in who is opposite class 0.

    Columns ``opposite, seed, train_accuracy, test_accuracy``; all nets are one program.
    """
    cells = [
        train.Cell(
            nets.NormalizedSoftmax(temperature, order=order),
            seed,
            settings.epochs,
            {"opposite": opposite},
        )
        for opposite, order in SQUARE.items()
        for seed in seeds
    ]
    size, d = part.inputs.shape[1], code.shape[1]
    build = partial(nets.sphere_mlp, size, d, len(code), hidden=hidden, code=code)
    rows = []
    for one in train.grid(build, cells, part, settings, label="assignments"):
        row = {"opposite": one.cell.tags["opposite"], "seed": one.cell.seed}
        for name, some in (("train_accuracy", part), ("test_accuracy", test)):
            cosines = collect.logits(one.net, some.inputs)
            hits = one.cell.loss.logits(cosines).argmax(1) == some.labels
            row[name] = float(hits.double().mean())
        rows.append(row)
    return pd.DataFrame(rows)


def chosen_opposite(part, code):
    """Who lies opposite class 0 after the quadratic assignment of the inputs' class means."""
    means, _ = geometry.class_means(part.inputs, part.labels)
    order = list(assign_classes(pairwise(means), code))
    return int((code[order] @ code[order[0]]).argmin())


def learned_opposites(part, test, settings, *, temperature, seeds, hidden):
    """Learned classifiers on the circle: ``seed, opposite`` (the class least aligned with class 0),
    ``train_accuracy`` and ``test_accuracy``."""
    cells = [
        train.Cell(nets.NormalizedSoftmax(temperature), seed, settings.epochs) for seed in seeds
    ]
    size, K = part.inputs.shape[1], part.num_classes
    build = partial(nets.sphere_mlp, size, 2, K, hidden=hidden)
    rows = []
    for one in train.grid(build, cells, part, settings, label="learned"):
        W = normalize(one.net.weight, dim=1)
        row = {"seed": one.cell.seed, "opposite": int((W @ W[0]).argmin())}
        row |= {"train_accuracy": collect.accuracy(one.net, part)}
        rows.append(row | {"test_accuracy": collect.accuracy(one.net, test)})
    return pd.DataFrame(rows)


PER_CLASS, PRETRAIN_PER_CLASS, HIDDEN = 20, 100, (128, 128)  # of fine-tuning
TUNINGS = ("plain", "probe first", "class means")


def fine_tunings(name, settings, *, seeds):
    """A net pretrained on five kinds of images times twelve motions, fine-tuned on the other five.

    Three ways, as published: a new head and everything trained (``plain``); first the new head
    alone, then everything (``probe first``); a head of running class means (``class means``).  Few
    images per class; tested on clean images and on blurred, noisy ones.  Columns ``tuning, seed,
    test_accuracy, shifted_accuracy``.
    """
    rows, dim = [], 16
    for seed in seeds:
        source, part, test = _transfer(name, seed)
        size = source.inputs.shape[1:].numel()
        base = seeded(seed, nets.sphere_mlp, size, dim, source.num_classes, hidden=HIDDEN)
        loss = nets.objective(nets.NormalizedSoftmax(0.1))
        train.fit(base, source, loss, settings, seed=seed, measure_at=())
        shifted = data.spoiled(test, seed=seed)
        for tuning in TUNINGS:
            momentum = 0.9 if tuning == "class means" else None
            net = seeded(seed, nets.sphere_mlp, size, dim, 5, hidden=HIDDEN, momentum=momentum)
            net.backbone.load_state_dict(base.backbone.state_dict())
            tune = recipe(epochs=settings.epochs, lr=settings.lr / 10, batch_size=25)
            if tuning == "probe first":
                net.backbone.requires_grad_(False)
                train.fit(net, part, loss, tune, seed=seed, measure_at=())
                net.backbone.requires_grad_(True)
            train.fit(net, part, loss, tune, seed=seed, measure_at=())
            row = {"tuning": tuning, "seed": seed}
            row |= {"test_accuracy": collect.accuracy(net, test)}
            rows.append(row | {"shifted_accuracy": collect.accuracy(net, shifted)})
    return pd.DataFrame(rows)


def _transfer(name, seed):
    """Kinds 0-4 in all motions to pretrain on; some training and all test images of kinds 5-9."""
    source = data.moved(name, per_class=PRETRAIN_PER_CLASS, test_per_class=20, seed=seed)[0]
    source = source.take(source.labels % 10 < 5)
    labels = source.labels // 10 * 5 + source.labels % 10
    source = images.Data(source.name, source.inputs, labels, 5 * data.MOTIONS)
    limit = data.DIGITS if name == "digits" else None
    parts = images.load(name, train_per_class=limit, seed=seed)
    generator, found = torch.Generator().manual_seed(seed), []
    for part, n in zip(parts, (PER_CLASS, None), strict=True):
        part = part if n is None else part.per_class(n, generator=generator)
        part = part.take(part.labels >= 5)
        found.append(images.Data(part.name, part.inputs, part.labels - 5, 5))
    return source, *found


def language_model(text, settings, *, dim, hidden, temperature, reference, seed=0, measure_at=(),
                   checkpoint=None):  # fmt: skip
    """A next-word predictor with a cosine head: ``(history, net)``, metrics on its training text.

    ``gnc2_random`` is the margin of a random classifier of the same size.
    """
    K, context = text.num_classes, text.inputs.shape[1]
    vocabulary = max(int(text.inputs.max()) + 1, K)
    net = seeded(seed, nets.language_net, vocabulary, K, dim, context=context, hidden=hidden)
    net = net.to(text.inputs.device)
    baseline = random_margin(K, dim, 1)

    def numbers(net, epoch):
        return measure(net, text, text, reference=reference) | {"gnc2_random": baseline}

    history = train.fit(
        net,
        text,
        nets.objective(nets.NormalizedSoftmax(temperature)),
        settings,
        seed=seed,
        measure=numbers,
        measure_at={*measure_at, 0, settings.epochs},
        checkpoint=checkpoint,
        label=text.name,
    )
    return history.drop(columns="test_accuracy").assign(text=text.name, seed=seed), net


def head_parameters(num_classes, dim):
    """Trainable parameters of the ResNet-18 with a learned and with a class-mean head."""
    build = nets.sphere_resnet
    return {
        "learned": parameter_count(build(dim, num_classes)),
        "class means": parameter_count(build(dim, num_classes, momentum=0.9)),
    }
