"""Every check of result 4 fails in a world in which its statement is false.

Codes: warm or random instead of optimal, another distance or constant; networks: untrained ones,
or the roles of what is compared exchanged.  A check without a wrong world is an error here.
"""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from nclib import catalogue, claims, frames
from nclib.deep import data as images
from nclib.metrics import known_margins, margins
from nclib.metrics.generalized import etf_error
from nclib.results.large_class import codes, data, experiments, theory
from nclib.results.large_class.assignment import pairwise

BOOK = "04_large_class_gnc"
WARM = frames.bipyramid(7)
RANDOM = experiments.random_classifier(40, 6)
BAD = ("fails", "not reproduced")


def rho(code):
    return margins.margin(code).value


def warm_limit():
    """The warm code where the cold one is asked for."""
    row = experiments.cold_limit(WARM, 0.005)
    outside = max(row["scaled_low"] - row["scaled"], row["scaled"] - row["scaled_high"])
    return row, {"sandwich": outside, "floor": row["floor"] - row["hard_margin"]}


def g1():
    row, found = warm_limit()
    cos = {m: experiments.cosface(m)["found"] for m in (0.6, 0.85)}
    found |= {"limit": {"(7, 3)": (row["scaled"], -row["rho"])}}
    return found | {"cosface": (cos[0.85], cos[0.6]), "cosface_beyond": cos[0.6]}


def g2():
    """Nearest classes instead of hulls; features that are not optimal; random codes as the best."""
    near = float(pairwise(margins.unit_rows("W", RANDOM)).fill_diagonal_(9).min())
    W = margins.unit_rows("W", RANDOM)
    bracket = margins.margin(experiments.random_classifier(300, 8), max_solves=0)
    width = bracket.upper - bracket.lower
    return {
        "bound": (experiments.largest_hard_margin(RANDOM), near),
        "value": abs(margins.hard_margin(W, W) - rho(W)),
        "found": {"7_3": (rho(WARM), known_margins.known_margin(7, 3))},
        "large": {
            "100_10": rho(experiments.random_classifier(100, 10))
            / known_margins.LOWER_BOUNDS[100, 10]
        },
        "certificate": width,
        "bracket_width": width,
        "bracket_valid": bracket.upper - bracket.lower,
        "bracket_order": rho(experiments.random_classifier(100, 10)) - 0.5,
        "gold": (1 - margins.max_cosine(experiments.random_classifier(200, 511)), 1 - 31 / 511),
    }


def g3():
    """One vertex moved a little."""
    moved = {K: frames.polygon(K) + 1e-4 * torch.eye(K, 2) for K in (3, 7)}
    simplex = frames.simplex_etf(4) + 1e-4 * torch.eye(4, 3)
    acute = codes.orthogonal_simplices([3, 3]) + 1e-4 * torch.eye(6, 4)
    return {
        "polygon": {K: (rho(code), 1 - np.cos(2 * np.pi / K)) for K, code in moved.items()},
        "simplex": {"4.3": (rho(simplex), 4 / 3)},
        "orthoplex": rho(experiments.random_classifier(6, 4)),
        "family": abs(rho(acute) - 1),
    }


def g4():
    """Rattlers taken for tight classes, and the other way round."""
    moved = experiments.moved_features(frames.polygon(8)[[0, 1, 2, 5]])
    return {"rattler": moved["tight"], "tight": moved["rattler"]}


def g5():
    random = {
        f"({K}, 3)": len(margins.rattlers(experiments.random_classifier(K, 3))) for K in (19, 20)
    }
    return {"rattlers": random, "none": len(margins.rattlers(frames.polygon(8)[[0, 1, 2, 5]]))}


def self_duality(code):
    code = margins.unit_rows("W", code)
    return float((code - margins.optimal_features(code)).square().sum(1).max() / 2)


def g7():
    W = margins.unit_rows("W", RANDOM)
    gap = abs(rho(W) - (1 - margins.max_cosine(W)))
    return {"found": {"40_6": (rho(W), 1 - margins.max_cosine(W))}, "sharp": gap}


def g8():
    """The two bounds exchanged, and the power of the upper one."""
    value = known_margins.known_margin(20, 3)
    scale = [known_margins.known_margin(K, 2) / theory.upper_bound(K, 2) for K in (100, 10_000)]
    return {
        "lower": value - theory.upper_bound(20, 3) - 0.5,
        "upper": theory.lower_bound(20, 3) - value,
        "scaling": scale[0] / scale[1],
    }


def g9():
    """A degenerate classifier: all rows close to one axis."""
    flat = margins.unit_rows("W", RANDOM + 5 * torch.eye(1, 6))
    floor = frames.nc2_floor(40, 6)
    return {
        "floor": (etf_error(flat), floor),
        "random": etf_error(flat) - floor,
        "margin": rho(flat) / rho(RANDOM),
    }


def g11():
    code = frames.polygon(7) + 0.05 * torch.eye(7, 2)
    error = abs(
        np.expm1(
            theory.log_energy(margins.unit_rows("W", code), 0.1)
            - theory.log_energy(frames.polygon(7), 0.1)
        )
    )
    return {
        "value": {"7.2": error},
        "dual": {"7.2": self_duality(experiments.random_classifier(7, 2))},
    }


def g12():
    """No phase below the segment; the bipyramid where another code is lower, and the reverse."""
    low, high = theory.segment_phase(4)
    rows = {row["family"]: row["scaled"] for row in experiments.energies(4, 0.3)}
    warm, cold = (experiments.warm_minimum(T, starts=6) for T in (0.4, 0.15))
    sides = experiments.over(experiments.phase, d=[4], temperature=[0.2, 0.3], starts=4)
    return {
        "exchange": {"4": low, "5": low},
        "tilt": low,
        "cold": {d: rows["segment + simplex"] - rows["tilted vertices"] for d in (4, 5)},
        "order": experiments.in_order(sides),
        "found": 0.3
        * abs(theory.log_energy(WARM, 0.3) - theory.log_energy(frames.polygon(7), 0.3)),
        "bipyramid": cold["excess"],
        "beyond": warm["excess"],
        "stable": {"low": low, "high": high},
        "again": warm["margin_ratio"] - warm["bipyramid"],
    }


def g13():
    row, _ = warm_limit()
    return {
        "slack": {"(7, 3)": abs(row["slack"] - row["slack_limit"])},
        "value": {"(7, 3)": abs(row["value_rate"] - row["value_limit"])},
        "limits": dict.fromkeys(
            ("(7, 3)", "(8, 3)"), theory.approach_rate(frames.icosahedron())[0]
        ),
        "duality": self_duality(RANDOM),
    }


def g10():
    """Features of a class apart."""
    H = margins.unit_rows("H", experiments.random_classifier(6, 3)).view(2, 3, 3)
    return {"": {"case": float((H - H.mean(1, keepdim=True)).square().sum(2).mean())}}


SMALL = experiments.recipe(epochs=60, batch_size=20)


@cache
def untrained():
    """``(net, data, what is measured)``: a network before any training, 120 real classes."""
    part, test = experiments.load("digits x 12", per_class=3)
    net = experiments.seeded(0, experiments.builder("mlp", part, 10, hidden=(64,)))
    return net, part, experiments.measure(net, part, test, reference=0.635)


def g14():
    """One epoch of a tiny step."""
    _, part, _ = untrained()
    history = experiments.train_nets(
        experiments.builder("mlp", part, 10, hidden=(64,)), part, part,
        experiments.recipe(epochs=1, lr=1e-4), temperatures=[0.1], seeds=[0], reference=0.635,
        measure_at=[0],
    )  # fmt: skip
    levels = {"code": 0.635, "random": experiments.random_margin(120, 10)}
    levels["model"] = experiments.model_margin(120, 10, 0.1)["margin"]
    found = experiments.collapse(history, **levels)
    found |= {"reaches": found["code"]}
    return {name: {"many": value} for name, value in found.items()}


def g15():
    """Networks that reach the minimum of the model at every temperature."""
    rows = [experiments.minimum(10, 3, T, starts=2) for T in (1.0, 0.1, 0.03)]
    final = pd.DataFrame(rows, columns=["margin", "hard_margin"]).set_axis([1.0, 0.1, 0.03])
    final = final.rename_axis("temperature").reset_index()
    final = final.assign(gnc2=final["margin"], test_accuracy=final["hard_margin"] > 0)
    found = experiments.around_best(final, 0.1, experiments.random_margin(10, 3))
    return found | {"model": rho(experiments.random_classifier(100, 10))}


def g16():
    """Random classifiers, those of the smallest dimension taken for the largest."""
    margin = [experiments.random_margin(40, d) for d in (20, 10, 5)]
    table = pd.DataFrame({"d": [5, 10, 20], "gnc2": margin, "random": margin})
    return experiments.growth(table)


def g17():
    """Never trained; class means for the classifier before training."""
    net, part, found = untrained()
    means = experiments.seeded(0, experiments.builder("mlp", part, 10, hidden=(64,)), 0.5).eval()
    means.head.update(means.features(part.inputs), part.labels)
    before = experiments.measure(means, part, part)["agreement"]
    return {"train": found["ncc_accuracy"], "agreement": found["agreement"], "before": before}


def g18():
    """Four corners, easy in every placement; class 1 is farthest from class 0, not similar."""
    corners = torch.tensor([[-1.0, -1], [1, 1], [-1, 1], [1, -1]]).repeat(10, 1)
    noise = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    pairs = images.Data("pairs", corners + 0.1 * noise, torch.arange(40) % 4, 4)
    code, options = frames.polygon(4), {"seeds": [0, 1, 2], "hidden": (64, 64)}
    fixed = experiments.assignments(pairs, pairs, code, SMALL, temperature=0.2, **options)
    accuracy = fixed.groupby("opposite")["test_accuracy"].mean()
    learned = experiments.learned_opposites(pairs, pairs, SMALL, temperature=0.5, **options)
    return {
        "loss": accuracy[[2, 3]].mean() - accuracy[1],
        "optimiser": experiments.chosen_opposite(pairs, code) != 1,
        "learned": (learned["opposite"] != 1).mean(),
    }


def g19():
    """Class means of a network that was never trained, beside a trained one."""
    _, part, row = untrained()
    test = experiments.load("digits x 12", per_class=3)[1]
    build = experiments.builder("mlp", part, 10, hidden=(64,))
    options = {"temperatures": [0.1], "seeds": [0], "reference": 0.635}
    learned = experiments.train_nets(build, part, test, SMALL, **options).iloc[-1]
    row = row | {"learned_accuracy": learned["test_accuracy"], "learned_gnc2": learned["gnc2"]}
    table = pd.DataFrame([row], index=pd.Index(["CMF"], name="classifier"))
    return dict.fromkeys(("accuracy", "gnc2", "gnc1"), table)


def g20():
    """Plain fine-tuning taken for that with class means, and the other way round."""
    tuned = experiments.fine_tunings("digits", experiments.recipe(epochs=1), seeds=[0])
    by = tuned.set_index("tuning")["shifted_accuracy"]
    return {"plain": by["plain"] - by["class means"], "probe": by["plain"] - by["probe first"]}


def g21():
    """A tenth of the classes."""
    count = experiments.head_parameters(1000, 512)
    saved = count["learned"] - count["class means"]
    return {"here": (saved, 10_000 * 512), "faces": saved / count["learned"]}


def g22():
    """Balanced contexts taken for the text as it is, and the other way round."""
    words, own = data.words(), {}
    texts = {
        "raw": data.balanced_words(words, vocabulary=40),
        "balanced": data.next_words(words[:1000], vocabulary=40),
    }
    for name, text in texts.items():
        settings = experiments.recipe(epochs=60 if name == "raw" else 1, batch_size=50)
        history, _ = experiments.language_model(
            text, settings, dim=8, hidden=64, temperature=0.1, reference=1.0
        )
        own[name] = experiments.collapse(history, gnc2=history["gnc2_random"].iloc[0])
    found, raw = own["balanced"], own["raw"]["gnc2"]
    return found | {"raw": raw}


def g23():
    """The hard maximum taken for the best temperature, and the other way round."""
    part, test = experiments.load("digits", per_class=10)
    options = {"seeds": [0], "reference": 1.0}
    others = experiments.classifiers(
        "mlp", part, test, SMALL, dim=3, hidden=(64,), temperature=0.1, **options
    ).set_index("classifier")["gnc2"]
    build = experiments.builder("mlp", part, 3, hidden=(64,))
    best = experiments.train_nets(build, part, test, SMALL, temperatures=[0.1], **options)
    hard = others["hard max"]
    return {"plain": hard - others["plain"], "hard_max": hard - best["gnc2"].iloc[-1]}


def g24():
    """The icosahedron for a head."""
    found = experiments.lone_rows(frames.icosahedron())
    return {"twins": found["twins"], "margin": found["margin"] / found["random"]}


def g6():
    return {"": {"40_6": self_duality(RANDOM)}}


ROWS = catalogue.load(BOOK)


@pytest.mark.parametrize("row", ROWS)
def test_every_check_fails_in_a_wrong_world(row):
    found = globals()[row.lower()]()
    assert found.keys() == catalogue.declared(ROWS[row]).keys()
    single = [found.pop("")] if "" in found else []
    checked = claims.Ledger(BOOK).claim(row, *single, **found).claims
    assert [one.id for one in checked if one.verdict not in BAD] == []
