"""Every figure of result 5 draws what its tables hold."""

import numpy as np
import pandas as pd
import torch

from nclib.results.extended_ufm import experiments as study
from nclib.results.extended_ufm import figures as plots
from nclib.results.extended_ufm import theory
from nclib.results.extended_ufm.ufm import ExtendedUFM


def drawn(ax):
    """(x, y) of every line, as one set of rounded points."""
    return {
        (round(float(x), 6), round(float(y), 6)) for line in ax.lines for x, y in line.get_xydata()
    }


def test_plain_and_three_models():
    problem = ExtendedUFM([2] * 3, [0.02, 0.02], 0.02, widths=4)
    table, _ = study.dynamics(problem, lr=0.5, steps=30, record=6)
    one = table[table["layer"] == "H1"].assign(model="no bias")
    one["value"] = one["excess"] + 1
    both = pd.concat([one, one.assign(model="free bias")])
    figure = plots.plain_model(both, 3, {"no bias": 0.3, "free bias": 0.2})
    assert len(figure.axes) == 6
    last = one.iloc[-1]
    assert (30, round(last["value"], 6)) in drawn(figure.axes[0])
    assert (30, round(last["nc3"], 6)) in drawn(figure.axes[5])
    models = pd.concat([table.assign(model="linear"), table.assign(model="ReLU")])
    net = pd.DataFrame(
        {
            "epoch": [1, 2, 1, 2],
            "layer": ["H1", "H1", "H2", "H2"],
            "excess": 1.0,
            "nc1": 0.5,
            "of": 0.2,
        }
    )
    figure = plots.three_models(models, net, {("H1", "nc1"): -0.01})
    assert len(figure.axes) == 9
    assert (30, round(float(one["of"].iloc[-1]), 6)) in drawn(figure.axes[6])
    assert (2, 0.5) in drawn(figure.axes[5])


def test_phases_ladder_and_flows():
    curves = study.phase_curves([1, 2], points=9)
    sweeps = study.phase_sweeps([1, 2], K=2, n=1, width=3, points=3)
    limits = {M: (theory.threshold(M), theory.existence_threshold(M)) for M in (1, 2)}
    left, right = plots.phase_diagram(curves, sweeps, limits).axes
    row = sweeps.iloc[0]
    assert (round(row["kappa"], 6), round(row["scale"], 6)) in drawn(left)
    assert (round(row["kappa"], 6), round(row["value"], 6)) in drawn(right)
    ladder = pd.DataFrame(
        {"M": [1, 1, 2, 2], "init_scale": [0.1, 0.1, 0.1, 0.1], "value": 0.4, "rank": [2, 2, 0, 1]}
    )
    levels = {1: [0.5, 0.4, 0.3], 2: [0.5, 0.45, 0.4]}
    figure = plots.loss_ladder(ladder, levels)
    heights = [[p.get_height() for p in ax.patches] for ax in figure.axes[1:]]
    assert heights == [[0, 0, 1], [0.5, 0.5, 0]]
    paths = study.flow_table([(0.05, 0.01)], K=2, n=2, d=3, time=1.0, points=4)
    figure = plots.flows(paths, pd.DataFrame({"start": 0, "step": [0, 1], "nc1": [2.0, 3.0]}))
    assert (1, 1.5) in drawn(figure.axes[1])


def test_maps():
    grams = study.gram_table({"a": torch.eye(3), "b": 1.2 * torch.eye(3) - 0.2})
    figure = plots.gram_maps(grams, {"a": "A", "b": "B"})
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), np.eye(3), atol=1e-7)
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes[:2]] == ["A", "B"]
    table = pd.DataFrame({"shape": ["a", "b"], "excess": [1e-17, 0.05]})
    titles = [
        ax.get_title() + ax.get_title(loc="left") for ax in plots.relu_shapes(table, grams).axes
    ]
    assert "global minimum" in titles[0]
    assert "0.05" in titles[1]


def test_bias_and_imbalance():
    setting = {"kappa": 0.2, "K": 3, "n": 2, "width": 4}
    closed = study.bias_table([0.1, 1.0, 3.0], [1, 2], **setting, measure=False)
    maps = study.bias_maps([0.1, 1.0], **setting)
    figure = plots.bias_geometry(closed, closed, maps, {1: 0.25, 2: 1.0}, 3)
    assert (3, round(float(closed["bias"][2]), 6)) in drawn(figure.axes[2])
    rows = study.imbalance_table([6, 3, 1], [1, 2], lam=0.01, width=5, measure=False)
    figure = plots.imbalance(rows, rows, {1: 0.2, 2: 1.4})
    assert (6, round(float(rows["feature"][0]), 6)) in drawn(figure.axes[0])


def test_networks_and_low_rank():
    epochs = [0, 1, 3]
    floor = pd.DataFrame(
        {"head": "a", "epoch": epochs, "excess": [3, 1, 0.5], "norm_sq": 0.8, "norm_sq_theory": 0.9,
         "of": 0.1, "etf": 0.1, "of_w": 0.1, "etf_w": 0.1}
    )  # fmt: skip
    figure = plots.bridge(floor, 4)
    assert (3, 50) in drawn(figure.axes[0])
    assert (0, 300) not in drawn(figure.axes[0])
    deep = pd.DataFrame(
        [
            {"net": n, "epoch": e, "block": b, "nc1": 1 / b}
            for n in "abc"
            for e in epochs
            for b in (1, 2)
        ]
    )
    overall = pd.DataFrame(
        [
            {"net": n, "epoch": e, "of_w": 0.3, "etf_w": 0.2, "test_accuracy": 90}
            for n in "abc"
            for e in epochs
        ]
    )
    figure = plots.depth_profile(deep, overall, 4)
    assert (2, 0.5) in drawn(figure.axes[2])
    assert (3, 90) in drawn(figure.axes[5])
    ratios = pd.DataFrame({"K": [6, 10], "L": 4, "ratio": [0.96, 0.9]})
    found = pd.DataFrame({"K": [10, 10], "L": 4, "ratio": [0.95, 0.88]})
    spectra = pd.DataFrame({"layer": ["H1", "H1"], "index": [1, 2], "value": [1, 0.2]})
    left, right = plots.low_rank(ratios, found, spectra).axes
    assert (10, 0.88) in drawn(left)
    assert (10, 0.95) not in drawn(left)
    assert (2, 0.2) in drawn(right)
