"""Every figure of result 5 draws what its tables hold."""

import numpy as np
import pandas as pd
import torch

from nclib.results.extended_ufm import experiments as study
from nclib.results.extended_ufm import figures, theory
from nclib.table import over


def drawn(ax):
    """(x, y) of every line, as one set of rounded points."""
    return {
        (round(float(x), 6), round(float(y), 6)) for line in ax.lines for x, y in line.get_xydata()
    }


def test_plain_and_two_layers():
    problem = theory.problem([2] * 3, [0.02] * 3, widths=4)
    table, _ = study.descents(problem, lr=0.5, steps=30, record=6)
    one = table[table["layer"] == "H1"].assign(model="no bias", value=table["excess"] + 1)
    both = pd.concat([one, one.assign(model="free bias")])
    axes = figures.plain_model(both, 3, {"no bias": 0.3, "free bias": 0.2}, "").axes
    last = one.iloc[-1]
    assert (30, round(last["value"], 6)) in drawn(axes[0])
    assert (30, round(last["nc3"], 6)) in drawn(axes[5])
    models = pd.concat([table.assign(model="linear"), table.assign(model="ReLU")])
    axes = figures.two_layers(models, {"H1": -0.01}, "").axes
    at = table[(table["layer"] == "H2") & (table["step"] == 30)].iloc[0]
    for place, column in enumerate(("excess", "nc1", "of", "nc3")):
        for row in (0, 4):
            assert (30, round(float(at[column]), 6)) in drawn(axes[row + place])


def test_phases_ladder_and_flows():
    curves = over(study.phase, M=[1, 2], kappa=np.linspace(0, 1.08, 9))
    sweeps = study.phase_sweeps([1, 2], K=2, n=1, width=3)
    limits = {M: theory.thresholds(M) for M in (1, 2)}
    left, right = figures.phase_diagram(curves, sweeps, limits, "").axes
    row = sweeps.iloc[0]
    assert (round(row["kappa"], 6), round(row["scale"], 6)) in drawn(left)
    assert (round(row["kappa"], 6), round(row["value"], 6)) in drawn(right)
    ladder = pd.DataFrame(
        {"M": [1, 1, 2, 2], "init_scale": 0.1, "value": 0.4, "rank": [2, 2, 0, 1]}
    )
    levels = {1: [0.5, 0.4, 0.3], 2: [0.5, 0.45, 0.4]}
    bars = figures.loss_ladder(ladder, levels).axes[1:]
    assert [[p.get_height() for p in ax.patches] for ax in bars] == [[0, 0, 1], [0.5, 0.5, 0]]
    paths = study.flows([(0.05, 0.01)], K=2, n=2, d=3)
    arms = pd.DataFrame({"arm": "a", "start": 0, "step": [0, 1], "nc1": [2.0, 3.0]})
    axes = figures.flows(paths, arms, ["", ""]).axes
    assert (8, round(paths["nc1"].iloc[-1], 6)) in drawn(axes[0])
    assert (1, 1.5) in drawn(axes[1])
    circles = pd.DataFrame({"K": [3, 7], "gain": [1.0, 1.07]})
    run = pd.DataFrame({"step": [0, 5, 9], "seed": 0, "nuclear": [0.7, 0.8, 0.9]})
    shares = {"K": [6, 6, 15, 15], "kappa_share": [0.8, 0.99] * 2}
    explicit = pd.DataFrame(shares | {"ratio": [1.03, 0.98, 0.9, 0.7]})
    axes = figures.nuclear(circles, run, explicit, "").axes
    assert {(0.99, 0.98), (0.99, 0.7)} <= drawn(axes[2])
    assert [t.get_text()[:4] for t in axes[2].get_legend().texts] == ["$K=6", "$K=1"]
    assert (7, 1.07) in drawn(axes[0])
    assert {(5, 0.8), (9, 0.9)} <= drawn(axes[1])


def test_maps():
    grams = study.cosines({"a": torch.eye(3), "b": 1.2 * torch.eye(3) - 0.2})
    axes = figures.gram_maps(grams, {"a": "A", "b": "B"}).axes
    np.testing.assert_allclose(axes[0].images[0].get_array(), np.eye(3), atol=1e-7)
    assert [ax.get_title(loc="left") or ax.get_title() for ax in axes[:2]] == ["A", "B"]
    table = pd.DataFrame({"shape": ["a", "b"], "excess": [1e-17, 0.05]})
    axes = figures.relu_shapes(table, grams, "").axes
    titles = [ax.get_title() + ax.get_title(loc="left") for ax in axes]
    assert "$f=f^*$ (linear value)" in titles[0]
    assert "0.05" in titles[1]


def test_bias_and_imbalance():
    setting = {"kappa": 0.2, "K": 3, "n": 2, "width": 4}
    grid = {"M": [1, 2], "lambda_b": [0.1, 1.0, 3.0]}
    closed = over(study.bias_geometry, **grid, **setting, measured=False)
    maps = study.bias_maps([0.1, 1.0], **setting)
    figure = figures.bias_geometry(closed, closed, maps, {1: 0.25, 2: 1.0}, 3, "found")
    assert figure.get_suptitle() == "found"
    axes = figure.axes
    assert (3, round(float(closed["bias"][2]), 6)) in drawn(axes[2])
    grid = {"M": [1, 2], "bias": study.BIASES, "counts": (6, 3, 1)}
    rows = over(study.class_norms, **grid, lam=0.01, width=5, measured=False)
    axes = figures.imbalance(rows, rows, {1: 0.2, 2: 1.4}, "").axes
    assert (6, round(float(rows["feature"][0]), 6)) in drawn(axes[0])


def test_networks_and_low_rank():
    floor = pd.DataFrame({"head": "a", "epoch": [0, 1, 3], "excess": [3, 1, 0.5], "of": 0.1})
    floor = floor.assign(norm_sq=0.8, norm_sq_theory=0.9, etf_w=0.2, seed=0)
    axes = figures.against_floor(floor, 4, "control", "").axes
    assert (3, 50) in drawn(axes[0])
    assert (0, 300) not in drawn(axes[0])
    keys = pd.DataFrame([(n, e) for n in "abc" for e in (0, 1, 3)], columns=["net", "epoch"])
    overall = keys.assign(of_w=0.3, etf_w=0.2, nc3=0.7, seed=0)
    deep = pd.concat([keys.assign(block=b, nc1=1 / b, of=0.4, etf=0.6, seed=0) for b in (1, 2)])
    axes = figures.depth_profile(deep, overall, 4, "").axes
    assert (2, 0.5) in drawn(axes[0])
    for ax, value in zip(axes[1:], (0.4, 0.6, 0.7, 0.3, 0.2), strict=True):
        assert (3, value) in drawn(ax)
    ratios = pd.DataFrame({"family": "graph", "K": [6, 10], "L": 4, "ratio": [0.96, 0.9]})
    found = pd.DataFrame({"K": [10, 10], "L": 4, "ratio": [0.95, 0.88]})
    spectra = pd.DataFrame({"layer": ["H1", "H1"], "index": [1, 2], "value": [1, 0.2]})
    left, right = figures.low_rank(ratios, found, spectra, "").axes
    assert (10, 0.88) in drawn(left)
    assert (10, 0.95) not in drawn(left)
    assert (2, 0.2) in drawn(right)
