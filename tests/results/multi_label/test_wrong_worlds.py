"""Every check of result 3 fails in a world in which its statement is false.

An optimiser that stays at its random start, a descent of one step, another loss, another table of
label sets, features of other samples, untrained networks, or the roles of what is compared
exchanged.  A check without a wrong world is an error here.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nclib import catalogue, claims
from nclib.deep import nets as deep
from nclib.deep import train
from nclib.metrics.multi_label import LabelSetStatistics, tagwise_fit
from nclib.results.multi_label import data as images
from nclib.results.multi_label import decoders, nets, theory
from nclib.results.multi_label import experiments as study
from nclib.table import over

BOOK = "03_multi_label_tagwise"
ROWS = catalogue.load(BOOK)
BAD = ("fails", "not reproduced")
CASE = {"K": 4, "counts": {1: 3, 2: 2, 3: 1}, "lambda_w": 1e-3, "lambda_h": 1e-3}
BALANCED = images.label_set_table(4, {1: 20, 2: 5})


def unsolved(measure, *args, **options):
    """What ``measure`` finds with an optimiser that stays at its random start."""

    def start(problem, *_, **__):
        point = problem.place(problem.start(torch.Generator().manual_seed(1), 0.3))
        return point, float(problem.value(point))

    def best(*problem, **_):
        return SimpleNamespace(**dict(zip(("point", "value"), start(*problem), strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "solved", start)
        patch.setattr(study.solve, "best", best)
        return measure(*args, **options)


def one_step():
    """Extent of a label set, distance of a pair from its sum, and objective after one step."""
    points, means, gap, exact = study.concept_path((1,))
    mean = means.set_index("set")[["x", "y"]]
    error = mean.loc["1+2"] - exact.scales[2] * (mean.loc["1"] + mean.loc["2"])
    return np.ptp(points.loc[points["set"] == "1", "x"]), np.linalg.norm(error), gap


def start():
    return unsolved(study.closed_form, **CASE)


def l1():
    """The other reduction."""
    found = study.soft_targets()
    return {"": {a: (found[a][0], found[b][1]) for a, b in (("sum", "mean"), ("mean", "sum"))}}


def l3():
    found, free = start(), unsolved(study.self_duality, **CASE)
    errors = {"etf": found["classifier_error"], "bias": found["bias_error"]}
    return errors | {"free_bias": free["free_bias"]}


def l4():
    """The factor of single labels where there are pairs, too."""
    exact = theory.optimum(**CASE)
    known = (CASE["lambda_w"] / (CASE["lambda_h"] * 3)) ** 0.5
    single = exact.margins[1] / exact.classifier_scale, known
    return {"self_dual": unsolved(study.self_duality, **CASE)["self_dual"], "single": single}


def l6():
    found = unsolved(study.multiplicity_imbalance, 1)
    scale = abs(found["scale"] - found["scale_theory"])
    gaps = start()["value_gap"]
    return {"etf": found["nc2"], "angle": found["degrees"], "scale": scale, "gaps": gaps}


def l7():
    """The dimensions exchanged."""
    worst = {d: abs(study.start_gaps(d, starts=2, **CASE)[0]["gap"]) for d in (2, 3)}
    return {"enough": worst[2], "needed": worst[3]}


def l8():
    """Margins of the other loss."""
    setting = {"K": 4, "counts": {1: 2, 2: 1}}
    found = study.found_margins(0.01, **setting)[1]["margin"]
    other = study.exact_margins(0.01, **setting, reduction="mean")[1]["margin"]
    return {"path": one_step()[2], "value": start()["value_gap"], "sweep": abs(found - other)}


def l9():
    """The two sides of the threshold exchanged."""
    gain = {f: study.threshold("sum", f, K=4, counts={1: 1, 2: 1})["gain"] for f in (0.95, 1.05)}
    return {"value": start()["value_gap"], "below": gain[1.05], "above": gain[0.95]}


def l10():
    """A saddle for a minimum, the curvature of another one, one dimension more."""
    one, other = (study.saddle(rank, 0, **CASE) for rank in (1, 2))
    return {
        "certificate": start()["certificate"],
        "starts": one["excess"],
        "curvature": abs(one["predicted"] - other["measured"]),
        "negative": -one["predicted"],
        "flat": (study.flat_directions(**CASE), study.landscape.orbit(6, 3)),
    }


def l13():
    """Means and classifier rows exchanged; equally frequent classes."""
    found, _ = study.imbalance(study.step_table(), K=10)
    even = l14()
    return {
        "etf": even["no_etf"],
        "means": found["degrees_weight"],
        "classifier": found["degrees"] / found["degrees_weight"],
        "long_means": found["short_rows"],
        "short_rows": found["long_means"],
        "certificate": even["certificate"],
    }


def l14():
    """Equally frequent label sets, and a random point for their minimum."""
    even, _ = study.imbalance(BALANCED, K=4)
    off, _ = unsolved(study.imbalance, BALANCED, K=4)
    return {
        "ratio": off["ratio"],
        "certificate": off["certificate"],
        "not_exact": even["degrees"],
        "no_etf": even["nc2"],
    }


def l16():
    """Codewords for the features of the next sample; all other decoders are right."""
    made = theory.configuration(
        theory.optimum(K=6, counts={1: 2, 2: 1}, lambda_w=1e-3, lambda_h=1e-3)
    )
    nearest = decoders.nearest_codeword
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "nearest_codeword", lambda H, book: nearest(H.roll(1, 0), book))
        exact = study.errors_at_the_minimum()
    book = decoders.tagwise_codebook(
        made.features[:6], made.targets[:6], made.weight, multiplicities=(1, 2)
    )
    found = {
        "word": nearest(made.features.roll(1, 0), book),
        "gap": decoders.largest_gap(made.features @ made.weight.T),
    }
    share = {
        name: float(decoders.exact_match(Y, made.targets).double().mean())
        for name, Y in found.items()
    }
    lost = share["word"] - share["gap"]
    names = ("singles", "level", "unseen", "unseen_bce", "unseen_fitted")
    return {"exact": exact, "pairs": {"learned": lost}} | dict.fromkeys(names, lost)


def l17():
    off, _ = unsolved(study.imbalance, BALANCED, K=4)
    return {"identity": start()["identity"], "imbalanced": off["identity"]}


def l18():
    """ "sum" taken for "mean" and the reverse; the limit at a finite margin."""
    setting = {"K": 10, "counts": {1: 2, 2: 1, 3: 1}, "reduction": "mean"}
    found = over(partial(study.found_margins, **setting), strength=[0.01]).query("m > 1")
    scale = found.set_index("m")["scale"]
    other = theory.scale_at(found["margin_1"].to_numpy(), K=10, m=2)
    rows = found.query("m == 2").rename(columns={"scale": "scale_2"})
    return {
        "dip": {m: (scale[m], theory.scale_dip(10, m)[1]) for m in (2, 3)},
        "rising": study.scale_curve("sum", 2, K=10)["scale"].diff().min(),
        "start": theory.scale_at(1e-9, K=10, m=3), "end": theory.scale_at(10, K=10, m=3),
        "optimiser": np.abs(found["scale"] - other).max(),
        "net": {"composed": study.scale_ratio(rows, K=10)},
    }  # fmt: skip


def l19():
    return unsolved(study.nonnegative, 4, {1: 5, 2: 2})


def l20():
    """Another N for other counts, and the reverse."""
    found = study.frozen_margins()
    value = unsolved(study.frozen_margins)["value"]
    return {"value": value, "counts": found["size"], "size": found["counts"]}


def l21():
    """At most K/2 labels; the frame beyond; random points."""
    single, triple = (
        {row["kind"]: row["excess"] for row in study.nonnegative_alone(m)} for m in (1, 3)
    )
    off = unsolved(study.nonnegative, 4, {1: 1, 2: 1})
    made = theory.configuration(
        theory.nonnegative_optimum(K=4, counts={1: 5, 2: 2}, **study.STRONG)
    )
    fit = tagwise_fit(LabelSetStatistics.of(made.features, made.targets), 2)
    frame, outside, _ = study.KINDS
    return {
        "explicit": single[frame] - single[outside], "value": triple[frame],
        "certificate": {"random": off["certificate"]}, "etf": {"random": off["etf"]},
        "not_tagwise": fit.residual,
    }  # fmt: skip


WORLDS = {
    "L1": l1, "L3": l3, "L4": l4, "L6": l6, "L7": l7, "L8": l8, "L9": l9, "L10": l10, "L13": l13,
    "L14": l14, "L16": l16, "L17": l17, "L18": l18, "L19": l19, "L20": l20, "L21": l21,
}  # fmt: skip
WORLDS["L2"] = lambda: {"path": one_step()[0], "optimiser": start()["spread"]}
WORLDS["L5"] = lambda: {"path": one_step()[1], "features": start()["feature_error"]}


# Networks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained():
    """Nets that do not learn anything, and their controls, on arbitrary label sets."""
    data = images.arbitrary("digits", per_class=30)[0]
    arms = {"learned": {"architecture": "mlp", "data": data}}
    arms["frozen"] = arms["learned"] | {"frozen": True, "feature_dim": 32}
    for name, options in (("mlp", {}), ("mlp_relu", {}), ("cnn", {"channels": (4, 8)})):
        arms |= nets.with_control("arbitrary", name, data, **options)
    still = train.Recipe(2, 1e-9, None)
    return nets.train_nets(arms, still, seeds=[0], checkpoint=lambda *_, **__: None, every=1)


def beside(untrained, name):
    return study.against_control(untrained.controls(), "arbitrary", name)


def l11(untrained):
    """A control that is not additive."""
    final = untrained.controls().query("net == 'MLP, linear features'").iloc[0]
    nc1 = untrained.curves.query("net == 'learned'")["nc1"].tolist()
    return beside(untrained, "mlp") | {
        "falls": nc1[-1] / nc1[0],
        "bce": final["angle_2"],
        "bce_official": final["official_angle"] / final["angle_2"],
        "control_scale": final["scale_2"],
    }


def l12(untrained):
    """Equally frequent pairs; uneven classes; a net for its own control."""
    _, uneven = study.imbalance(study.step_table(), K=10)
    span = uneven["degrees"].max() / uneven["degrees"].min()
    own = untrained.nets["learned", 0]
    groups = study.rare_groups(own.net, own.net, own.data, weight_decay=1e-3, feature_decay=1e-2)
    ratio = groups.set_index("setting")["ratio"]
    return l14() | {"groups": span, "net": ratio[nets.WITH] / ratio[nets.WITHOUT]}


def l15(untrained):
    """A frozen classifier of as many features, which does as a learned one; a decoder that is
    never right."""
    sizes = {}
    for name in ("resnet18", "vgg16"):
        with torch.device("meta"):
            kept, own = (
                deep.parameter_count(nets.build(name, 10, (3, 32, 32), frozen=f, feature_dim=512))
                for f in (True, False)
            )
        sizes[name] = 1 - kept / own
    same = {
        metric.removesuffix("_2"): untrained.worst(metric, "frozen")
        / untrained.worst(metric, "learned")
        for metric in ("angle_2", "nc1", "nc2_means", "nc3")
    }
    return same | {"saved": sizes, "accuracy": l16()["singles"]}


def l22(untrained):
    return beside(untrained, "mlp")


def l23(untrained):
    found = {name: beside(untrained, name) for name in ("mlp_relu", "cnn")}
    worst = {
        name: max(one[m] for m in ("nc1", "nc2", "nc2_means", "nc3")) for name, one in found.items()
    }
    return {"angle": {name: one["angle"] for name, one in found.items()}, "singles": worst}


def l24(untrained):
    """Pairs and triples exchanged."""
    found = beside(untrained, "mlp")
    exact = theory.optimum(**CASE).scales
    return {
        "angle": found["angle"],
        "difference": found["difference"],
        "scale": exact[3] - exact[2],
    }


NETS = {"L11": l11, "L12": l12, "L15": l15, "L22": l22, "L23": l23, "L24": l24}


@pytest.mark.parametrize("row", ROWS)
def test_every_check_fails_in_a_wrong_world(row, request):
    found = NETS[row](request.getfixturevalue("untrained")) if row in NETS else WORLDS[row]()
    assert found.keys() == catalogue.declared(ROWS[row]).keys()
    single, text = [found.pop("")] if "" in found else [], dict(starts=2, setting="toy", pairs=2)
    checked = claims.Ledger(BOOK).claim(row, *single, text=text, **found).claims
    assert [f"{one.id} {one.measured}" for one in checked if one.verdict not in BAD] == []
