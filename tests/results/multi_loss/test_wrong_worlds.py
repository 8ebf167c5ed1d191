"""Every check of result 1 fails in a world in which its statement is false.

Models: perturbed optima, saddles instead of minima, other losses, strengths and constants;
networks: untrained ones, or the roles of what is compared exchanged.  A check without a wrong world
is an error here.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from nclib import catalogue, claims, frames, losses, table
from nclib.deep import data, nets, train
from nclib.results.multi_loss import experiments as study
from nclib.results.multi_loss import theory
from nclib.ufm import landscape

BOOK = "01_multi_loss_equivalence"
BAD = ("fails", "not reproduced")
CE, LS, FL, MSE = (losses.get(name) for name in ("ce", "ls", "fl", "mse"))
BASE = {"K": 4, "n": 3, "d": 6, "lambda_w": 0.01, "lambda_h": 0.004, "lambda_b": 0.01}


class Concave:
    """A loss that prefers unequal wrong logits."""

    def per_sample(self, logits, labels):
        return -CE.per_sample(-logits, labels)


def at_saddle(loss):
    ufm = study.problem(loss, **BASE)
    return ufm, landscape.saddle(ufm, 1)


def each(value, keys=("ce", "ls", "fl")):
    return dict.fromkeys(keys, value)


def l1(patch):
    """The optimum of another strength."""
    wrong = theory.optimum(CE, **BASE | {"lambda_w": 0.02})
    patch.setattr(theory, "optimum", lambda *_, **__: wrong)
    row = study.against_closed_form(CE, BASE)
    ufm, point = at_saddle(CE)
    dual = (BASE["lambda_w"] / (2 * BASE["n"] * BASE["lambda_h"])) ** 0.5  # another n
    apart = point["features"] - dual * point["weight"].repeat_interleave(3, 0)
    return {
        "value": each(abs(row["value_gap"])),
        "logits": each(row["logit_error"]),
        "norms": each(row["norm_error"]),
        "duality": each(float(apart.abs().max())),
    }


def l2(patch):
    found = study.contrastive_violation(Concave(), K=6)
    plain = study.contrastive_violation(CE, K=6)["shift"]
    return {"lower": each(found["lower"]), "strict": each(found["strict"]), "mse": plain}


def l3(patch):
    """No tie where there is none (K = 10, gamma = 3), and away from it; another rule; gammas on one
    side of the largest threshold."""
    beyond = max(map(theory.focal_convexity_threshold, np.linspace(2.5, 2.7, 21)))
    none = study.tie(3.0, 10)
    exact = theory.focal_thresholds
    patch.setattr(
        theory, "focal_thresholds", lambda *a: (exact(*a)[0], *np.multiply(exact(*a)[1:], 0.9))
    )
    beside = study.tie(3.0, 30)
    patch.setattr(theory, "focal_convexity_threshold", lambda _: 0.21)
    cases = table.over(study.uniqueness, gamma=[1.0, 3.0], K=[10, 40])
    return {
        "unique": int((cases["predicted"] != cases["found"]).sum()),
        "range": beyond,
        "jump": none["jump"],
        "values": beside["difference"],
        "critical": beside["gradient"],
        "partial": none["partial"],
    }


def l4(patch):
    """The threshold of cross-entropy for label smoothing, half of it for what should be dead."""
    setting = {"K": 4, "lambda_b": 0.0, "d": 6}
    exact = theory.threshold
    patch.setattr(theory, "threshold", lambda loss, **o: exact(CE, **o))
    alive = study.gain_near_threshold(LS, 0.999, **setting)
    return {"alive": each(alive), "dead": each(study.gain_near_threshold(CE, 0.5, **setting))}


def l5(patch):
    """Without the shift alpha / K."""
    setting = {name: BASE[name] for name in ("K", "n", "d", "lambda_w", "lambda_h")}
    plain = theory.optimum("ce", **setting).value
    return {"": {"0.1": plain - theory.optimum("ls", alpha=0.1, **setting).value}}


def l6(patch):
    """Cross-entropy at a saddle; the minimum where the saddle should be."""
    good = study.optimal_point(CE, **BASE)
    plain = study.class_logits(study.problem(CE, **BASE), good)
    flat = study.saddle_logits(CE, 1, **BASE)
    exchanged = {"ls": flat, "saddle": plain}
    same = table.over(study.same_shape, logits=exchanged, plain=plain).set_index("logits")
    return dict.fromkeys(("logits", "temperature", "saddle"), same)


def gaps(loss, d, **setting):
    rows = study.start_gaps(loss, d, starts=3, **setting)
    return [row["gap"] for row in rows]


def l7(patch):
    """The focal loss inside its window: some starts are trapped."""
    found = study.focal_window(0.5, K=30, gamma=3.0)
    return {"": {"fl": found["highest_gap"]}}


def l14(patch):
    setting = {name: BASE[name] for name in BASE if name != "d"}
    return {"": {"ce": min(gaps(CE, 3, **setting))}}


def l8(patch):
    """Another direction, which goes up."""
    ufm, point = at_saddle(CE)
    direction, predicted = landscape.escape(ufm, point)
    up = direction | {"weight": -direction["weight"]}
    measured = landscape.curvature(ufm, point, up)
    return {"curvature": abs(measured / predicted - 1), "negative": measured}


def l9(patch):
    """Saddles and minima exchanged."""
    ufm, point = at_saddle(CE)
    best = ufm.certificate(study.optimal_point(CE, **BASE))
    return {"saddles": best, "optimum": abs(ufm.certificate(point))}


def l10(patch):
    """The paper's constant as the exact threshold; the root at another gamma, and of a psi that
    increases later; a sure, wrong net."""
    net = untrained()
    with torch.no_grad():
        net.head.weight.mul_(30)
    share = study.measure_collapse(net, digits())["share_below_threshold"]
    patch.setattr(theory, "focal_convexity_threshold", lambda _: 0.21)
    root = theory.focal_sufficient_threshold(1.0)
    region, exact = study.focal_convexity_mismatches(samples=60), theory._first_root
    patch.setattr(theory, "_first_root", lambda f: exact(lambda t: f(t) - 0.1))
    return {
        "region": region,
        "constant": (root, 0.2031878),
        "covered": max(map(theory.focal_sufficient_threshold, [0.0, 1.0, 3.0])),
        "net": share,
    }


def l11(patch):
    """Inside and outside exchanged."""
    inside, outside = (study.focal_window(share, K=30, gamma=3.0) for share in (0.5, -6.0))
    return {
        "strict": outside["curvature"],
        "height": -inside["height"],
        "saddle": inside["curvature"],
        "trapped": outside["fraction"],
        "free": inside["fraction"],
    }


def l12(patch):
    """The geometry of another bias penalty."""
    setting = {name: BASE[name] for name in ("K", "n", "d", "lambda_w", "lambda_h")}
    found = study.bias_geometry(np.inf, **setting)
    known = study.known_bias_geometry(0.01, **setting)
    exact = theory.optimum("mse", **setting, lambda_b=0.01).value
    none = theory.optimum("mse", **setting, lambda_b=None).value
    return {
        "value": abs(none - exact),
        "bias": abs(found["bias"] - known["bias"]),
        "mean": abs(found["mean_singular"] - known["mean_singular"]),
        "raw": abs(found["nc2"] - known["nc2"]),
        "frame": (known["nc2"], found["nc2"]),
        "centred_etf": found["nc2"],
    }


def l13(patch):
    """The optimum of another strength, the geometry of another K, no bias where one is free."""
    setting = {"K": 4, "n": 3, "lambda_w": 5e-3, "lambda_h": 5e-3}
    axes = study.truncated_frame("axes", **setting)
    five = {kept: study.truncated_frame(kept, **setting | {"K": 5}) for kept in ("axes", "centred")}
    exact = theory.optimum
    patch.setattr(theory, "optimum", lambda *a, **o: exact(*a, **o | {"lambda_w": 0.02}))
    off = study.truncated_frame("axes", **setting)
    return {
        "found": abs(off["value_gap"]),
        "explicit": {"axes": abs(off["value_gap"])},
        "critical": {"axes": off["gradient"]},
        "geometry": (five["axes"]["nc2"] - five["centred"]["nc2"], (2 / 4) ** 0.5),
        "free_bias": axes["nc2"],
    }


def l15(patch):
    """Zeros counted at a saddle."""
    ufm, point = at_saddle(CE)
    zeros = int((landscape.spectrum(ufm, point).abs() < 1e-7).sum())
    return {"": {"ce.free": (zeros, theory.flat_directions(CE, **BASE))}}


def digits():
    return data.load("digits", train_per_class=20)[0]


def untrained():
    return nets.seeded(0, study.builder("mlp", 16, digits()))


@pytest.fixture(scope="module")
def before():
    """What is measured on a network before any training."""
    return study.measure_collapse(untrained(), digits())


def accuracies(gap):
    """Three seeds per loss, the MSE ``gap`` points below the others."""
    rows = [(loss, seed) for loss in ("ce", "ls", "fl", "mse") for seed in range(3)]
    table = pd.DataFrame(rows, columns=["loss", "seed"])
    return table.assign(test_accuracy=97.0 + 0.1 * table["seed"] - gap * (table["loss"] == "mse"))


def networks(row, net):
    """The checks of a row about networks, from an untrained one, or exchanged."""
    still = pd.DataFrame([net | {"loss": "ce", "seed": 0, "epoch": epoch} for epoch in (1, 9)])
    end = study.ends(still).loc["ce"]  # nothing has changed since the first epoch
    found, none = (study.equivalence(accuracies(gap)) for gap in (2.0, 0.0))
    gap = found["largest_gap"]
    return {
        "L16": {f"{name}_fall": {"ce": end[f"{name}_fall"]} for name in study.COLLAPSE}
        | {name: {"ce": net[name]} for name in study.COLLAPSE}
        | {"zero_error": {"ce": net["train_accuracy"]}},
        "L17": {"gap": gap, "linear": gap - gap},
        "L18": {"mse": net["residual"] / 4.74, "others": {"ce": end["residual_fall"]}},
        "L19": {
            "etf": {"ce": net["logits_etf"]},
            "fall": {"ce": end["logits_etf_fall"]},
            "pair": {"ls": shuffled()},
            "seeds": {"ls": shuffled()},
        },
        "L20": dict.fromkeys(("narrow", "short"), none["largest_gap"] - gap),
        "L21": {"": end["nc2"] / net["nc2"]},
    }[row]


def shuffled():
    """Distance of the class logits of two nets that agree on nothing: classes renamed."""
    etf = frames.etf_gram(10)
    return float((etf - etf.roll(1, 0)).norm())


WORLDS = {
    f.__name__.upper(): f
    for f in (l1, l2, l3, l4, l5, l6, l7, l8, l9, l10, l11, l12, l13, l14, l15)
}
ROWS = catalogue.load(BOOK)


@pytest.mark.parametrize("row", ROWS)
def test_every_check_fails_in_a_wrong_world(row, before, monkeypatch):
    found = WORLDS[row](monkeypatch) if row in WORLDS else networks(row, before)
    assert found.keys() == catalogue.declared(ROWS[row]).keys()
    single = [found.pop("")] if "" in found else []
    checked = claims.Ledger(BOOK).claim(row, *single, **found, text={"K": 0, "gamma": 0}).claims
    assert [one.id for one in checked if one.verdict not in BAD] == []


def test_the_controls_are_computed_from_nets():
    train_data, test_data = data.load("digits", train_per_class=20)
    recipe = train.Recipe(epochs=5, lr=0.1, batch_size=50, weight_decay=5e-3)
    kinds = {"ce": CE, "mse": losses.get("mse", tau=None, scale=15.0)}
    linear = study.linear_classifiers(kinds, train_data, test_data, recipe, seeds=[0, 1])
    assert sorted(zip(linear["loss"], linear["seed"], strict=True)) == [
        ("ce", 0), ("ce", 1), ("mse", 0), ("mse", 1),
    ]  # fmt: skip
    assert study.equivalence(linear)["largest_gap"] > 0.5
    assert (linear["train_accuracy"] > 60).all()
