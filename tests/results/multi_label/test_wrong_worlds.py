"""Every check of result 3 fails in a world in which its statement is false.

An optimiser that stays at its random start, a descent of one step, another loss, another table of
label sets, features of other samples, untrained networks, or the roles of what is compared
exchanged.  A check without a wrong world is an error here.
"""

from functools import partial
from types import SimpleNamespace

import pandas as pd
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
    """The descent ends after one step."""
    return study.concept_path((1,))[2]


def start():
    """One row of an optimiser that stays at its random start."""
    return pd.DataFrame([unsolved(study.closed_form, **CASE)])


def l1():
    """The other reduction."""
    found = study.soft_targets()
    return {"": {a: (found[a][0], found[b][1]) for a, b in (("sum", "mean"), ("mean", "sum"))}}


def l3():
    found, free = start(), unsolved(study.self_duality, **CASE)
    return {"etf": found, "bias": found, "free_bias": free["free_bias"]}


def l4():
    """The factor of single labels where there are pairs, too."""
    exact = theory.optimum(**CASE)
    known = (CASE["lambda_w"] / (CASE["lambda_h"] * 3)) ** 0.5
    single = exact.margins[1] / exact.classifier_scale, known
    return {"self_dual": unsolved(study.self_duality, **CASE)["self_dual"], "single": single}


def l6():
    found = pd.DataFrame([unsolved(study.multiplicity_imbalance, 1)])
    gaps = start().assign(n="{2: 2, 3: 1}")
    return {"etf": found, "angle": found, "scale": found, "gaps": gaps}


def l7():
    """The dimensions exchanged."""
    gaps = over(partial(study.start_gaps, starts=2, **CASE), d=[2, 3])
    exchanged = gaps.assign(d=5 - gaps["d"], K=4)
    return {"enough": exchanged, "needed": exchanged}


def l8():
    """Margins of the other loss."""
    setting = {"K": 4, "counts": {1: 2, 2: 1}}
    found = pd.DataFrame(study.found_margins(0.01, **setting))
    other = pd.DataFrame(study.exact_margins(0.01, **setting, reduction="mean"))
    sweep = found.assign(theory=other["margin"])
    return {"path": one_step(), "value": start(), "sweep": sweep}


def l9():
    """The two sides of the threshold exchanged."""
    around = partial(study.threshold, "sum", K=4, counts={1: 1, 2: 1})
    exchanged = over(around, factor=[0.95, 1.05]).assign(factor=[1.05, 0.95])
    return {"value": start(), "below": exchanged, "above": exchanged}


def l10():
    """A saddle for a minimum, the curvature of another one, one dimension more."""
    saddles = over(partial(study.saddle, **CASE), rank=[1, 2], start=0)
    return {
        "certificate": start(),
        "starts": saddles.assign(gap=saddles["excess"], d=4, K=4),
        "curvature": saddles.assign(measured=saddles["measured"].to_numpy()[::-1]),
        "negative": saddles.assign(predicted=-saddles["predicted"]),
        "flat": (study.flat_directions(**CASE)[0], study.landscape.orbit(6, 3)),
    }


def l13():
    """Means and classifier rows exchanged; equally frequent classes."""
    found, even = study.imbalance(study.step_table(), K=10)[0], l14()
    exchanged = {"degrees": "degrees_weight", "long_means": "short_rows"}
    found = found.rename(columns=exchanged | {new: old for old, new in exchanged.items()})
    names = ("means", "classifier", "long_means", "short_rows")
    same = dict.fromkeys(names, found)
    return same | {"etf": even["no_etf"], "certificate": even["certificate"]}


def l14():
    """Equally frequent label sets, and a random point for their minimum."""
    even, *_ = study.imbalance(BALANCED, K=4)
    off, *_ = unsolved(study.imbalance, BALANCED, K=4)
    return {"ratio": off, "certificate": off, "not_exact": even, "no_etf": even}


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
        "codeword": nearest(made.features.roll(1, 0), book),
        "largest gap": decoders.largest_gap(made.features @ made.weight.T),
    }
    share = {
        name: float(decoders.exact_match(Y, made.targets).double().mean())
        for name, Y in found.items()
    }
    share |= {"top m (m known)": share["largest gap"], "net": "learned"}
    match = pd.DataFrame([share | {"m": m} for m in (1, 2)]).set_index("net")
    lost = share["codeword"] - share["largest gap"]
    rate = {"learned: codeword": share["codeword"], "learned: codeword, fitted": 0.5}
    rate |= {"learned: largest gap": share["largest gap"], "bce: sign": share["largest gap"]}
    rate |= {"bce: codeword, fitted": 0.5 + lost, "sets": "never trained"}
    known, new = ("pairs", "singles", "level"), ("unseen", "unseen_bce", "unseen_fitted")
    return {"exact": exact} | dict.fromkeys(known, match) | dict.fromkeys(new, pd.DataFrame([rate]))


def l17():
    off, *_ = unsolved(study.imbalance, BALANCED, K=4)
    return {"identity": start(), "imbalanced": off}


def l18():
    """ "sum" taken for "mean" and the reverse; the limit at a finite margin."""
    setting = {"K": 10, "counts": {1: 2, 2: 1, 3: 1}, "reduction": "mean"}
    found = over(partial(study.found_margins, **setting), strength=[0.01]).query("m > 1")
    scale = found.set_index("m")["scale"]
    other = theory.scale_at(found["margin_1"].to_numpy(), K=10, m=2)
    rows = found.query("m == 2").rename(columns={"scale": "scale_2"})
    ends = over(partial(theory.scale_at, K=10, m=3), margin=[1e-9, 10])
    return {
        "dip": {m: (scale[m], theory.scale_dip(10, m)[1]) for m in (2, 3)},
        "rising": study.scale_curve("sum", 2, K=10).assign(m=2, reduction="mean"),
        "start": ends.assign(reduction="mean"),
        "end": ends.assign(reduction="sum"),
        "optimiser": found.assign(predicted=other),
        "net": study.scale_ratio(rows, K=10),
    }


def l19():
    return unsolved(study.nonnegative, 4, {1: 5, 2: 2})


def l20():
    """Another N for other counts, and the reverse."""
    found = study.frozen_margins()
    value = unsolved(study.frozen_margins)["value"]
    return {"value": value, "counts": found["size"], "size": found["counts"]}


def l21():
    """At most K/2 labels; the frame beyond; random points."""
    alone = over(study.nonnegative_alone, m=[1, 3])
    excess = alone.pivot(index="m", columns="kind", values="excess")
    single, beyond = excess.loc[[1]].set_axis([3]).rename_axis("m"), excess.loc[[3]]
    off = unsolved(study.nonnegative, 4, {1: 1, 2: 1})
    made = theory.configuration(
        theory.nonnegative_optimum(K=4, counts={1: 5, 2: 2}, **study.STRONG)
    )
    fit = tagwise_fit(LabelSetStatistics.of(made.features, made.targets), 2)
    frame, *_ = study.KINDS
    return {
        "explicit": single, "value": beyond.assign(optimiser=beyond[frame]),
        "certificate": {"random": off["certificate"]}, "etf": {"random": off["etf"]},
        "not_tagwise": fit.residual,
    }  # fmt: skip


WORLDS = {
    "L1": l1, "L3": l3, "L4": l4, "L6": l6, "L7": l7, "L8": l8, "L9": l9, "L10": l10, "L13": l13,
    "L14": l14, "L16": l16, "L17": l17, "L18": l18, "L19": l19, "L20": l20, "L21": l21,
}  # fmt: skip
WORLDS["L2"] = lambda: {"path": one_step(), "optimiser": start()}
WORLDS["L5"] = lambda: {"path": one_step(), "features": start()}


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
    """One row, as if of the MLP with linear features."""
    return study.against_controls(untrained.controls()).loc["arbitrary"].loc[[name]]


def l11(untrained):
    """A control that is not additive."""
    final = untrained.controls().query("net == 'MLP, linear features'").head(1)
    nc1 = untrained.curves.query("net == 'learned'").groupby("seed")["nc1"]
    names = ("nc1", "nc2", "nc2_means", "nc3", "angle", "difference")
    return dict.fromkeys(names, beside(untrained, "mlp")) | {
        "falls": nc1.agg(["first", "last"]),
        "bce": final.assign(net="bce"),
        "bce_official": final.assign(net="bce"),
        "control_scale": final.assign(net="no pairs"),
    }


def l12(untrained):
    """Equally frequent pairs; uneven classes; a net for its own control."""
    _, uneven, _ = study.imbalance(study.step_table(), K=10)
    own = untrained.nets["learned", 0]
    groups = study.rare_groups(own.net, own.net, own.data, weight_decay=1e-3, feature_decay=1e-2)
    wide = groups.pivot(index="samples", columns="setting", values="ratio")
    even = l14()
    exact = even["not_exact"].rename(columns={"degrees": "degrees_all"})
    return even | {"groups": uneven, "net": wide, "not_exact": exact}


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
    same = untrained.ratio("frozen", "learned")
    match = l16()["pairs"]
    lost = (match["codeword"] - match["largest gap"]).mean()
    names = ("angle", "nc1", "nc2_means", "nc3")
    return dict.fromkeys(names, same) | {"saved": sizes, "accuracy": lost}


def l22(untrained):
    names = ("nc1", "nc2", "nc2_means", "nc3", "angle", "difference")
    return dict.fromkeys(names, beside(untrained, "mlp"))


def l23(untrained):
    found = study.against_controls(untrained.controls()).loc["arbitrary"]
    return {"angle": found, "singles": found}


def l24(untrained):
    """Pairs and triples exchanged."""
    final = untrained.controls().query("net == 'MLP, linear features'")
    found = final.pivot(index="seed", columns="pairs", values="angle_2")
    exact = theory.optimum(**CASE).scales
    return {"angle": found, "difference": found, "scale": exact[3] - exact[2]}


NETS = {"L11": l11, "L12": l12, "L15": l15, "L22": l22, "L23": l23, "L24": l24}


@pytest.mark.parametrize("row", ROWS)
def test_every_check_fails_in_a_wrong_world(row, request):
    found = NETS[row](request.getfixturevalue("untrained")) if row in NETS else WORLDS[row]()
    assert found.keys() == catalogue.declared(ROWS[row]).keys()
    single, text = [found.pop("")] if "" in found else [], dict(starts=2, setting="toy", pairs=2)
    checked = claims.Ledger(BOOK).claim(row, *single, text=text, **found).claims
    assert [f"{one.id} {one.measured}" for one in checked if one.verdict not in BAD] == []
