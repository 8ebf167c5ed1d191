"""Every check of result 6 fails in a world in which its statement is false.

Untrained networks and random points instead of optima, another decay, depth or loss, other data,
network and control exchanged.  A check without a wrong world is an error here.
"""

import functools
import math

import numpy as np
import pytest
import torch

from nclib import catalogue, claims
from nclib.deep import data, train
from nclib.metrics import certified, nc_metrics
from nclib.results.convex_duality import experiments as study
from nclib.results.convex_duality import linear, nets, ramps, theory
from nclib.results.convex_duality.nets import Network
from nclib.table import over
from nclib.ufm import scalar

BOOK = "06_convex_duality"
BAD = ("fails", "not reproduced", "not converged")
GENERATOR = torch.Generator().manual_seed(0)
X, Y = study.whitened(GENERATOR, 6, 9), study.gaussian(GENERATOR, 6, 3)
LABELS = study.class_labels([3, 3])
X2, HOT = study.whitened(GENERATOR, 6, 8), study.one_hot(LABELS)
IMAGES = data.Data("random", study.gaussian(GENERATOR, 6, 1, 4, 4).float(), LABELS, 2)
RHO = 0.4
DECAY = theory.weight_decay_for(2, RHO)


def untrained(network, scale=1.0):
    point = network.start(torch.Generator().manual_seed(1), scale)
    return point, float(network(**point))


@functools.cache
def exchanged():
    """How nets end under a fiftieth of the decay and, as their control, under the decay."""
    shape = dict(architecture="mlp", hidden=(24,), width=10, normalise=False)
    recipe = train.Recipe(400, 0.02, None, optimizer="adam", schedule="cosine")
    watch = dict(points=1, checkpoint=lambda seed: None)
    made = (study.train_seeds([0], shape, IMAGES, recipe, w, **watch) for w in (DECAY / 50, DECAY))
    return [history.groupby("seed").last() for history, _ in made]


def splines(scale, call, *args, **options):
    """The interpolation program of inputs ``scale`` times as large."""
    program = ramps.interpolation_spline
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ramps, "interpolation_spline", lambda x, y: program(scale * x, y))
        return call(*args, **options)


def c1():
    point, _ = untrained(Network(X2, HOT, 0.1, (6,)))
    layers = point["hidden_1"], point["weight"]
    return {
        "path_norm": study.path_norm(*layers) - sum(float(w.square().sum()) for w in layers) / 2
    }


def c2():
    """The start of the flow; the rate without the factor 2."""
    flow = study.merging_norms(X, Y, 0.2, [0.3, 2.4], lr=0.0075, steps=200)
    first, limits = flow[flow["step"] == 0], linear.whitened_layer_norms(Y, 0.2, 2)
    spread = np.ptp(first["frobenius"])
    misses = (first[["frobenius", "operator"]] / limits - 1).abs().max().max()
    rate = study.imbalance_rate(flow) / -0.2
    return {"norms": spread, "balance": first["balance"].max(), "limits": misses, "rate": rate}


def c3():
    """The dual of another decay; untrained factors; three layers instead of two."""
    low, high = (linear.linear_map(X, Y, beta) for beta in (0.3, 0.5))
    table, _ = study.two_layer_ranks(50, (20, 50, 5))
    start = untrained(study.deep_linear(X, Y, 2, 0.3))[1]
    return {"gap": high.value - low.dual_value, "factors": start - low.value,
            "rank": int((table["rank"] != 5).sum())}  # fmt: skip


def planar():
    points, y = study.gaussian(GENERATOR, 8, 2), study.gaussian(GENERATOR, 8)
    return points, y, ramps.two_layer_relu(points, y, 0.2), ramps.two_layer_relu(points, y, 0.6)


def c4():
    """The residual of another decay; directions that are no neurons."""
    points, _, exact, other = planar()
    tight = ramps.largest_activation(points, other.residual) / 0.2
    at = np.abs(exact.residual @ np.maximum(points.numpy() @ np.array([0.6, 0.8]), 0)) / 0.2
    return {"neurons": at - 1, "directions": tight - 1}


def c5():
    dual = 2 * Y  # not the certificate
    return {"feasible": float(torch.linalg.matrix_norm(X.T @ dual, 2)),
            "value": (float((dual * Y).sum()), linear.minimum_norm_value(X, Y))}  # fmt: skip


def c6():
    """Depth 2 for depth 3; layers turned against each other."""
    layers = linear.minimum_norm_layers(X, Y, 3)
    layers[1] = layers[1] @ torch.diag(torch.tensor([1.0, 1, 0]).double()).roll(1, 0)
    values = [linear.minimum_norm_value(X, Y, depth) for depth in (2, 3)]
    return {"value": values[0] - values[1], "aligned": study.alignment(layers, rank=2)}


def c7():
    """Nothing is trapped at depth 2, or from the right start; the jump of depth 4."""
    good = [study.stuck(X, Y, 3, share=a, scale=b) for a, b in ((0.95, 2.0), (1.08, 0.05))]
    start = untrained(study.deep_linear(X, Y, 3, 0.3))[1]
    table = study.deep_ranks(20, (5, 50, 30, 40, 5), [4, 2.8, 2, 1.4, 1])
    jump = scalar.shrink(1.0, scalar.thresholds(1.0, 4)[0] * (1 - 1e-12), 4)[1]
    return {"value": start - linear.whitened_linear_value(Y, 0.3, 3), "trap": good[0],
            "stays": good[1], "jump": jump, "ranks": int((table["rank"] != 5).sum())}  # fmt: skip


def c8():
    """Two layers have no gap, several outputs have one."""
    two, three = study.depth_gap(3, 2), study.depth_gap(3, 3)
    return {"trained": three["trained"] / three["dual"] - 1, "scalar": three["ratio"],
            "vector": two["ratio"]}  # fmt: skip


def c9():
    """Before training."""
    first = study.rank_one_descent(20, (10, 50, 40, 30, 20, 1), steps=1).query("step == 0")
    point, _ = untrained(Network(X2, HOT, 0.1, (6, 6)))
    layers = [point["hidden_1"], point["hidden_2"], point["weight"]]
    second = max(float(torch.linalg.svdvals(w)[1:].sum()) for w in layers)
    return {"value": first["excess"].max(), "rank": second, "aligned": study.alignment(layers),
            "descent": first["rank"].max(), "reached": first["excess"].max()}  # fmt: skip


def c10():
    y = Y[:, 0]
    return {"value": untrained(Network(X, y, 0.3, (8,)))[1] - theory.whitened_relu_value(y, 0.3)}


def c11():
    """Untrained networks, and a beta at which no class dies."""
    network = Network(X2, HOT, 0.5, (6,))
    point, value = untrained(network)
    shape, H = theory.collapse([3, 3], 0.5), network.hidden(point)
    W = point["weight"]
    return {
        "value": value - shape.value, "features": float((H @ H.T - shape.gram(LABELS)).abs().max()),
        "weights": float((W @ W.T - torch.diag(shape.weight_norms**2)).abs().max()),
        "dropped": float(shape.outputs.max()), "network": float(shape.outputs.max()),
    }  # fmt: skip


def c12():
    """Untrained features; unequal classes for equal ones and the reverse; the control's nets."""
    network = Network(X2, HOT, 0.5, (6,))
    point, _ = untrained(network)
    H = network.hidden(point)
    nc3 = nc_metrics(H, LABELS, point["weight"])["nc3"]
    found = study.cosine_deviations(H, LABELS)
    gram = study.collapse_error(H, LABELS, theory.collapse([3, 3], 0.5))
    uneven, even = (study.explicit_head(c, dimension=30) for c in ([9, 4, 2, 2], [4, 4, 4]))
    end, idle = exchanged()
    return {
        "within": found["nc1"], "frame": found["orthogonal"], "gram": gram, "aligned": nc3,
        "etf": uneven["simplex"], "exact_etf": uneven["simplex"], "unbalanced": even["simplex"],
        "exact_frame": found["orthogonal"], "net_within": end["nc1"].max(),
        "net_frame": found["orthogonal"], "net_etf": uneven["simplex"], "net_aligned": nc3,
        "control": (idle["orthogonal"] / end["orthogonal"]).min(),
    }  # fmt: skip


def c13():
    """Depths at which collapse is the lowest known, networks at another decay or untrained."""
    rows = over(study.explicit_networks, depth=[3, 5], points=(4,), beta=0.05)
    shallow, deep = (rows[rows["depth"] == depth] for depth in (3, 5))
    ratio = (shallow["value"] / shallow["collapsed"]).iloc[0]
    off = theory.bottleneck_value(theory.triple_layers(5), 0.06) - deep["value"].iloc[0]
    images = dict(inputs=X2, labels=LABELS, test_inputs=X2, test_labels=LABELS)
    first = study.deep_images(5, 0, **images, beta=0.3, width=6, steps=1).iloc[-1]
    return {
        "depth3": deep["excess"].min(), "power": shallow["excess"].min(),
        "triple": {5: ratio}, "pairs": shallow["excess"].max(), "network": off,
        "descended": study.deep_descent(3, 3, 0.05, max_iter=100)["excess"],
        "images": first["excess"], "same": first["nc1"],
    }  # fmt: skip


def c14():
    """The head of another decay; an untrained one; the control's nets."""
    counts, labels = [3, 2], study.class_labels([3, 2])
    A, targets = study.gaussian(GENERATOR, 5, 8), study.one_hot(labels)
    network = nets.BatchNormNetwork(A, targets, 0.5, 2)
    head, value = theory.batch_norm_head(A, labels, 0.8), certified.collapsed_value(counts, 0.5)
    other = nets.BatchNormNetwork(A, targets, 0.5, 9)
    point, start = untrained(other)
    bound = certified.dual_bound(targets - other.outputs(point), targets, 0.5)
    end, idle = exchanged()
    setting = dict(data=IMAGES, test=IMAGES, weight_decay=DECAY, epochs=1, width=10)
    return {"weights": float(network(**head)) - value, "certificate": bound - value,
            "training": start - value, "gamma_alpha": end["gamma_over_alpha"].max(),
            "gamma_spread": end["gamma_spread"].abs().max(),
            "control": idle["gamma_spread"].abs().min(),
            "depths": study.batch_norm_depth(3, 0, **setting)["excess"].iloc[-1]}  # fmt: skip


def c15():
    """Features of full rank; the network under one decay, its bounds under another; one step."""
    heads = study.batch_norm_heads([3, 2], [0.5], 8, 2, max_iter=300)
    idle, end = exchanged()
    setting = dict(data=IMAGES, test=IMAGES, weight_decay=DECAY, epochs=1, width=10)
    last = study.batch_norm_depth(3, 0, **setting).iloc[-1]
    return {"low_rank": heads["excess"].min(),
            "sandwich": (end["dual"] - idle["optimum"]).max(),
            "bound": (idle["objective"] - end["optimum"]).min(),
            "reached": (last["objective"] - last["dual"]) / last["optimum"],
            "depths": (idle["objective"] / end["optimum"] - 1).min(),
            "units": (idle["optimum"].max(), 2 / 2 * (RHO - RHO**2 / 2))}  # fmt: skip


def c16():
    """T alone, data on half the scale, an output bias after all, a knot that is near."""
    x, y = np.array([0.0, 1, 2]), np.array([0.0, 1, 3])
    slopes = np.diff(y) / np.diff(x)
    hat = {"x": (0, 1, 2), "y": (0, 1, 0)}
    program = ramps.interpolation_spline(x, y)
    return {"value": np.abs(np.diff(slopes)).sum() / program.value - 1,
            "dual": splines(0.5, study.random_interpolations, 2)["worst"].max(),
            "no_offset": ramps.interpolation_norm(**hat),
            "infimum": (study.without_offset(10.0, **hat), 2.0)}  # fmt: skip


def c17():
    """A knot beyond the next data point."""
    points, values = np.array([0.0, 1, 2, 3]), np.array([0.0, 1, 3, 6])
    wrong, spline = ramps.with_knots([-1, 2.5], [1.0, 2.0], -1.0), ramps.interpolation_spline
    norm = ramps.interpolation_norm(points[:3], values[:3])
    same = spline(points, values)
    return {"interpolates": np.abs(wrong(points) - values).max(), "cost": (wrong.norm, norm),
            "program": (wrong.norm, spline(points[:3], values[:3]).value),
            "different": np.abs(same(points) - values).max()}  # fmt: skip


def c18():
    x, y = np.linspace(-1, 1, 5), np.array([0.0, 1, 0, 2, 1])
    low, high = (ramps.fit_spline(x, y, beta) for beta in (0.05, 0.2))
    start = untrained(Network(x, y, 0.05, (9,), bias="last"))[1]
    return {"gap": high.value - low.dual_value, "network": start - low.value,
            "bound": low.value - high.value}  # fmt: skip


def c19():
    """Biases everywhere for the law, a decay that leaves a constant, and an untrained pair."""
    table = study.beyond_the_law(0.05)
    constant = study.beyond_the_law(2.0).set_index("case")["excess"]
    pair = np.array([-1.0, 1.0])
    start = untrained(Network(pair, pair, 0.05, (6, 6), bias="last"))[1]
    return {"law": table["excess"][0], **constant, "reached": start - table["value"][2]}


def c20():
    points, y, low, high = planar()
    start = untrained(Network(points, y, 0.2, (9,)))[1] - low.value
    return {"gap": high.value - low.dual_value, "network": low.value - high.value, "trained": start}


def c21():
    """The value of another decay; beta without sigma_max; inputs that are not whitened."""
    loose = [study.bound_on_any_inputs([6, 4, 2], d, scale=s) for d, s in ((5, None), (14, 1.7))]
    bound, sharp = (one["value"] - certified.collapsed_value([6, 4, 2], 0.5) for one in loose)
    ufm = [study.unconstrained(2, 3, 0.02, decay) for decay in (0.005, 0.01)]
    return {"ufm": (ufm[0]["value"], ufm[1]["optimum"]), "bound": bound, "sharp": sharp}


def c22():
    """Other constants, other decays; data on another scale."""
    hinge = study.hinge(0.5, counts=(4, 9))
    entropy = study.cross_entropy(0.4, per_class=2, K=3)
    squared = certified.collapsed_value([2] * 3, 0.4)
    limit, wide = (
        splines(scale, study.vanishing_decay, [0.0, 1, 2, 3], [0.0, 1, 0, 2], [1e-2])
        for scale in (0.5, 2.0)
    )
    ratio = (limit["below"] / limit["bound"]).item()
    return {
        "cross_entropy": entropy["value"] - squared, "dual": entropy["optimum"] - squared,
        "hinge": hinge["value"] - certified.collapsed_value([4, 9], 0.5),
        "hinge_dual": hinge["optimum"] - 4, "below": wide["below"].min(),
        "limit": ratio, "exact": ratio,
    }  # fmt: skip


def c23():
    """Two Adam steps; a closed form of more decay; outputs without rectification."""
    runs = {"Adam": dict(optimizer="adam", rate=1e-2, steps=2)}
    trace, *_ = study.optimisers(X2, LABELS, 0.3, 6, runs, rows=2)
    last, optimum = trace.iloc[-1], trace["optimum"].iloc[0]
    excess, more = last["excess"] / optimum, certified.collapsed_value([3, 3], 0.4)
    raw = theory.whitened_prediction(X2, LABELS, 0.3, -X2)
    plain = (1 - 0.3 / math.sqrt(3)) * (-X2 @ X2.T @ HOT)
    return {"lowest": optimum - more, "Adam": excess, "SGD": excess, "L-BFGS": excess,
            "certified": last["gap"] / optimum, "deep": excess,
            "test_time": float((raw - plain).abs().max())}  # fmt: skip


WORLDS = {f"C{i}": globals()[f"c{i}"] for i in range(1, 24)}
ROWS = catalogue.load(BOOK)


@pytest.mark.parametrize("row", ROWS)
def test_every_check_fails_in_a_wrong_world(row):
    found = WORLDS[row]()
    assert found.keys() == catalogue.declared(ROWS[row]).keys()
    text = dict(counts=[3, 3], cases=[(6, 4)], spline_depths=[2, 3], sizes=[6, 10])
    checked = claims.Ledger(BOOK).claim(row, text=text, **found).claims
    assert [one.id for one in checked if one.verdict not in BAD] == []
