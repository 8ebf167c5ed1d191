"""Every check of result 2 fails in a world in which its statement is false.

Perturbed or other points instead of minima and saddles, wrong constants, another dimension or
scale; networks: untrained ones, or the roles of what is compared exchanged.  A check without a
wrong world is an error here.
"""

import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from nclib import catalogue, claims, frames
from nclib.deep import data, train
from nclib.results.normalized import experiments as study
from nclib.results.normalized import nets, theory
from nclib.results.normalized.metrics import sphere_metrics
from nclib.ufm import landscape

BOOK = "02_normalized_features"
BAD = ("fails", "not reproduced")


def shaken(K=4, n=2, d=5, size=0.1):
    """A point next to the minimum, on the spheres."""
    point = study.shaken(theory.minimum(K, n, d), size, 0)
    return {name: F.normalize(x, dim=1) for name, x in point.items()}


def l1():
    """Values at a perturbed minimum; a floor that is too high; too few dimensions."""
    problem, point = theory.normalized([2] * 4, 2.0, 5), shaken()
    gap = float(problem.value(point)) - theory.optimum(4, 2.0).value
    low = study.dimension(4, 4, scale=2.0)["gap"] - 1e-3
    few = study.dimension(4, 2, scale=2.0)["gap"]
    return {"value": gap, "starts": gap, "bound": low, "dimension": few}


def l2():
    """A perturbed minimum."""
    point = shaken()
    found = sphere_metrics(point["features"], [0, 0, 1, 1, 2, 2, 3, 3], point["weight"])
    return {name: found[name] for name in study.NC}


def l3():
    """The derivatives without what the spheres add: no projection, no multipliers."""
    problem, point = theory.normalized([2, 1, 3], 1.7, 4), shaken(3, 2, 4)
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    *_, G = theory.multipliers(point["features"], point["weight"], labels, 1.7)
    slope = problem.gradient(point)["features"]
    along = {name: study.unit_start(problem, 1)[name] for name in point}
    along = {name: theory.tangent(point[name], v) for name, v in along.items()}
    bend = landscape.curvature(problem, point, along)
    flat = torch.func.hessian(
        lambda t: problem.value({n: point[n] + t * along[n] for n in point})
    )(torch.zeros((), dtype=torch.float64))  # fmt: skip
    off = (G @ point["weight"] - slope).abs().max() / slope.abs().max()
    return {"gradient": float(off), "hessian": abs(float(flat) / bend - 1)}


def l4():
    """Perturbed saddles, the curvatures of another scale, and the minimum among the points."""
    problem = theory.normalized([3] * 4, 2.0, 6)
    zoo, other = study.saddles(4, 3, 6, 2.0), study.saddles(4, 3, 6, 2.1)
    lowest = float(landscape.spectrum(problem, theory.minimum(4, 3, 6))[0])
    return {
        "critical": study.gradient_norm(problem, shaken(4, 3, 6)),
        "zoo": (zoo["measured"] - other["predicted"]).abs().max(),
        "zoo_negative": lowest,
        "beyond": max(lowest, 0.0),
        "signs": study.sign_patterns(3, 4, 0.5)["low"].max(),
        "found": {"3": lowest, "4": lowest},
    }


def l5():
    """The global minimum, space instead of the plane and the other way round."""
    point = theory.minimum(3, 1, 2)
    problem, wide = theory.normalized([1] * 3, 12.0, 2), theory.normalized([1] * 3, 12.0, 3)
    lifted = {name: F.pad(x, (0, 1)) for name, x in point.items()}
    table, points = study.ends(1, 2, K=3, scale=12.0, starts=100)
    caught, none = study.caught(table, 0.05), study.ends(1, 3, K=3, scale=12.0, starts=10)[0]
    false = study.false_minimum(table, points, K=3, scale=12.0, above=0.05)
    return {
        "gap": float(problem.value(point)) - theory.optimum(3, 12.0).value,
        "gradient": study.gradient_norm(problem, shaken(3, 1, 2)),
        "strict": float(landscape.spectrum(wide, lifted)[1]),
        "lifted": float(landscape.spectrum(wide, lifted)[0]),
        "certificate": (
            theory.certificate(*point.values(), problem.targets, 12.0),
            false["lifted"],
        ),
        "plane": study.caught(none, 0.05),
        "space": caught,
    }


def l6():
    """Features at an angle where the formula is that of none."""
    row = study.collapse_angles(2, 0.8, K=3, n=2, scale=1.7)
    straight = theory.total_collapse(3, 2, 2, 1.7).min_eigenvalue
    right = study.collapse_angles(2, math.pi / 2, K=3, n=2, scale=1.7)["multiplicity"]
    ways = {str(d): (right, 2 * (d - 1)) for d in (2, 3, 5)}
    growth = theory.escape_growth(4, 3, 2.1, 1.0)
    return {"value": abs(row["measured"] - straight), "multiplicity": ways,
            "right_angle": row["measured"], "escape": (1.288675, growth)}  # fmt: skip


def l7():
    problem = theory.normalized([2] * 4, 2.0, 5)
    lowest = float(landscape.spectrum(problem, theory.minimum(4, 2, 5))[0])
    return {"critical": study.gradient_norm(problem, shaken()), "curvature": lowest}


def l8():
    """The spectrum of another scale; rates of one scale for another; the two steps exchanged."""
    table, other = (study.spectrum(s, K=6, n=3, d=9) for s in (2.0, 2.1))
    zeros = int((study.spectrum(2.0, K=6, n=3, d=8)["measured"].abs() < 1e-12).sum())
    measured = study.contraction(3.0, K=6, n=3, d=9)["measured"]
    rates = {f"{s:g}": (measured, theory.descent_rate(6, 3, 9, s)) for s in (0.3, 1.0, 6.0)}
    steps = {b: study.block_steps(25, b, K=6, d=9, scale=3.0)["iterations"] for b in (True, False)}
    one = study.block_steps(1, True, K=6, d=9, scale=3.0)["iterations"]
    return {"spectrum": (table["measured"] - other["theory"]).abs().max(), "rotations": (zeros, 30),
            "rate": rates, "block": steps[False] / one, "plain": steps[True] / one}  # fmt: skip


def l9():
    """The prediction for another size; the formula where it holds; scales far from the best."""
    measured, other = study.measured_best_scales(5, 2, 6), theory.best_scale(6, 2, 6)
    inside = abs(theory.best_scale(5, 2, 6)[1] / theory.best_conditioning(5, 2) - 1)
    plain = study.measured_best_scales(5, 2, 4)[1] / theory.best_conditioning(5, 2)
    off = [{"a": m / o} for m, o in zip(measured, other, strict=True)]
    return {"curvature": off[0], "conditioning": off[1],
            "formula": plain, "conditions": {"a": inside}, "model": 10 / other[0],
            "net": 100 / other[0]}  # fmt: skip


def l10():
    """Scales below 1, roles exchanged, and problems that are not matched."""
    case = {"K": 5, "n": 2, "d": 6}
    kappa = {m: study.conditioning(m, 0.5, **case)["kappa"] for m in ("normalized", "regularized")}
    problems = theory.matched_problems(5, 2, 3.0, 6)
    wrong = theory.matched_points(5, 2, 2.0, 6)
    z = [problems[m].logits(wrong[m]) for m in ("normalized", "regularized")]
    slow = study.race("normalized", 0.5, 0, K=10, n=5, d=20)["steps"]
    quick = study.race("regularized", 0.5, 0, K=10, n=5, d=20)["steps"]
    both = {"hybrid": kappa["normalized"] / kappa["regularized"]}
    return {
        "logits": float((z[0] - z[1]).abs().max()),
        "optimal": study.gradient_norm(problems["regularized"], wrong["regularized"]),
        "condition": both,
        "never": study.conditioning("normalized", 0.3, **case)["kappa"] / kappa["regularized"],
        "steps": {"regularized": slow / quick},
        "published": slow / quick,
    }


def l12():
    """Balanced classes, and the ETF with classes of unequal size."""
    counts, etf = [5, 3, 1], frames.simplex_etf(3, 5)
    table, _ = study.imbalance([([2, 2, 2], 5, 2.0)])
    labels = torch.tensor([0] * 5 + [1] * 3 + [2])
    problem = theory.normalized(counts, 2.0, 5)
    values = [
        float(problem.value({"features": e[labels], "weight": e})) for e in (etf, -etf.flip(1))
    ]
    spread = study.ends(5, 2, K=3, scale=12.0, starts=60)[0]["value"]
    assert values[0] == pytest.approx(values[1])
    return {"starts": spread.max() - spread.min(),
            "certificate": theory.certificate(etf[labels], etf, labels, 2.0, gtol=1e3),
            "geometry": table["nc2"][0], "etf": table["etf"][0],
            "closer": table["closer"][0]}  # fmt: skip


def l13():
    """Features of any sign."""
    problem = theory.normalized([2] * 5, 3.0, 6)
    point = theory.minimum(5, 2, 6)
    gap = float(problem.value(point)) - theory.optimum(5, 3.0, nonnegative=True).value
    means = point["features"][::2]
    return {
        "value": abs(gap),
        "higher": float(problem.value(point)) - theory.optimum(5, 3.0).value,
        "orthonormal": float((means @ means.T - torch.eye(5)).abs().max()),
        "etf": study.collapse(problem, shaken(5, 2, 6))["nc2"],
        "angle": {
            "5": (study.collapse(problem, point)["alignment"], math.degrees(math.acos(0.8**0.5)))
        },
    }


def l14():
    """The bipyramid at scale 10 as the code that is best, and a scale at which it is; a code of
    four points, which is symmetric, and one of nine, which is not."""
    bad, good = study.codes([("b", frames.bipyramid(5), s) for s in (10.0, 3.0)])["gap"]
    metrics = sphere_metrics(*[frames.bipyramid(5)], torch.arange(5), frames.bipyramid(5))
    full, nine = (study.dimension(K, 3, scale=3.0) for K in (4, 9))
    return {"polygons": abs(bad), "bipyramid": abs(bad), "changes": good,
            "floor": metrics["nc2"] - metrics["nc2_floor"], "gap": full["gap"],
            "aligned": nine["alignment"], "apart": full["alignment"]}  # fmt: skip


def l16():
    """Another scale, and the direction that the plane does not have."""
    row, below = study.antipode(3.0, K=3, n=2), study.antipode(1.0, K=3, n=2)
    return {"value": abs(row["measured"] - below["predicted"]), "threshold": row["measured"],
            "well": row["across"], "across": row["measured"]}  # fmt: skip


def l18():
    """Scale 2."""
    names = ("normalized", "regularized")
    sphere, free = (study.race(m, 2.0, 0, K=10, n=5, d=20)["steps"] for m in names)
    return {"": sphere / free}


WORLDS = {
    f.__name__.upper(): f
    for f in (l1, l2, l3, l4, l5, l6, l7, l8, l9, l10, l12, l13, l14, l16, l18)
}


@pytest.fixture(scope="module")
def untrained():
    """Normalized nets in two and 16 dimensions, and wider, before any training: by (width, d)."""
    digits = data.load("digits", train_per_class=6, seed=0)[0]
    recipe, found = train.Recipe(epochs=1, lr=1e-9, batch_size=None), {}
    for size in ((8, 2), (8, 16), (64, 16)):
        cell = nets.Cell(nets.Mode("normalized", scale=3.0), size[0], dim=size[1])
        found[size] = nets.train_nets([cell], "mlp", digits, digits, recipe).final
    return found


def seeds():
    """The nets ``a`` are better than ``b`` with one seed and worse with the other."""
    metrics = (*study.NC, "test_nc1", "test_nc3")
    size = {"a": (0.5, 4.0), "b": (1.0, 1.0)}
    return pd.DataFrame(
        {"label": name, "seed": seed, "test_accuracy": 90 - size[name][seed]}
        | dict.fromkeys(metrics, size[name][seed])
        for name in size
        for seed in (0, 1)
    )


def networks(row, untrained):
    """The checks of a row about networks."""
    worse = nets.ratios(seeds(), "a", "b")
    tested = nets.ratios(seeds(), "a", "b", ["test_nc1", "test_nc3"])
    plane, net, wide = (table.iloc[0] for table in untrained.values())
    left = nets.share_above_floor(untrained[8, 16], 10, nonnegative=False)
    polygon = theory.polygon_value(10, 3.0)
    start, exchanged = net[[*study.NC]], net[[*study.NC]] / wide[[*study.NC]]  # narrow over wide
    names = ("hybrid", "regularized")
    return {
        "L1": {"net": left},
        "L2": {"net": net["weight_angle_max"]},
        "L11": dict.fromkeys(names, worse),
        "L14": {
            "net": nets.share_above(plane["loss"], polygon, 10),
            "net_nc2": (plane["nc2"], plane["nc2_floor"]),
        },
        "L15": {"widest": start, "ratio": exchanged, "fits": net["train_accuracy"]},
        "L17": {"accuracy": dict.fromkeys(names, nets.gains(seeds(), "a", "b"))}
        | {name: dict.fromkeys(names, tested[name]) for name in tested},
        "L19": dict.fromkeys(names, worse),
        "L20": dict.fromkeys(names, worse),
    }.get(row, {})


ROWS = catalogue.load(BOOK)


@pytest.mark.parametrize("row", ROWS)
def test_every_check_fails_in_a_wrong_world(row, untrained):
    found = (WORLDS[row]() if row in WORLDS else {}) | networks(row, untrained)
    assert found.keys() == catalogue.declared(ROWS[row]).keys()
    single = [found.pop("")] if "" in found else []
    words = {"count": 6, "bound": 8, "others": {"3": 0, "4": 0}}
    checked = claims.Ledger(BOOK).claim(row, *single, text=words, **found).claims
    assert [one.id for one in checked if one.verdict not in BAD] == []
