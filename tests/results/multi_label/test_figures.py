"""Figures of result 3 draw the tables they are given, and nothing is left open or warned about."""

import numpy as np
import pandas as pd
import pytest
import torch

from nclib.results.multi_label import experiments as study
from nclib.results.multi_label import figures as plots
from nclib.results.multi_label.data import MultiLabelData


def test_tagwise_picture(render):
    points, means, _, exact = study.concept_path((5, 20))
    figure = render(plots.tagwise_picture(points, means, exact.scales[2]))
    assert len(figure.axes) == 3
    shown = sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "o")
    assert shown == 60  # the singles


def test_closed_form_marks_the_measured_margins(render):
    check = pd.DataFrame({"K": [4], "n": ["{1: 1}"], "reduction": ["sum"], "value_gap": [1e-15]})
    sweep = pd.DataFrame({"strength": [0.01, 0.1], "m": [1, 1], "margin": [4.0, 2.0]})
    figure = render(plots.closed_form(check, sweep, sweep, 0.3))
    markers = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert markers[0].get_ydata().tolist() == [4.0, 2.0]


def test_scale_curves(render):
    curve = pd.DataFrame(
        {"reduction": ["sum", "mean"], "m": [2, 2], "margin_1": [1.0, 1.0], "scale": [0.9, 0.6]}
    )
    figure = render(plots.scale_curves(curve, {2: (2.5, 0.85)}, curve))
    assert len(figure.axes) == 2


def test_landscape_and_imbalance(render):
    gaps = pd.DataFrame({"d": [1, 3], "start": [0, 0], "gap": [0.3, -1e-17]})
    saddles = pd.DataFrame({"rank": [1], "predicted": [-0.2], "measured": [-0.2]})
    assert len(render(plots.landscape(gaps, saddles, 4)).axes) == 2
    between = pd.DataFrame(
        {"ratio": [0.1, 10], "nc2": [0.0, 1e-15], "degrees": [1e-14, 1e-14],
         "scale": [0.88, 0.88], "scale_theory": [0.88, 0.88]}
    )  # fmt: skip
    groups = pd.DataFrame(
        {"setting": ["3100", "3100", "50", "50"], "samples": [5, 500, 5, 500], "degrees": [1.0] * 4}
    )
    assert len(render(plots.imbalance(between, groups, 10)).axes) == 3


def test_pair_maps_show_the_values(render):
    pairs = pd.DataFrame({"i": [0, 0, 1], "j": [1, 2, 2], "degrees": [1.0, 2.0, 3.0],
                          "degrees_weight": [4.0, 5.0, 6.0], "samples": [7, 8, 9]})  # fmt: skip
    summary = {"mean_norms": [1.0, 1.0, 2.0], "weight_norms": [2.0, 1.0, 1.0]}
    figure = render(plots.single_imbalance(pairs, summary, 3))
    shown = figure.axes[0].images[0].get_array()
    assert shown[0, 1] == 1.0
    assert shown[1, 2] == 3.0
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown))[2, 0]
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 1]])
    for channels in (1, 3):
        data = MultiLabelData("toy", torch.rand(4, channels, 6, 6), labels)
        figure = render(plots.samples(data, pairs, columns=2))
        titles = [ax.get_title() for ax in figure.axes]
        assert "{0}" in titles
        assert "{1, 2}" in titles


def test_collapse_curves(render):
    base = {"epoch": [1, 5], "nc1": [1.0, 0.1], "nc2_centered": [0.5, 0.1], "nc2_means": [1, 0.2],
            "nc3": [1, 0.2], "angle_2": [0.2, 0.1], "official_nc1": [1, 0.2],
            "official_nc2_means": [1, 1], "official_nc3": [1, 0.3], "official_angle": [0.3, 0.2],
            "data_loss": [2.0, 0.9], "margin_1": [1, 5], "margin_2": [1, 4],
            "scale_2": [0.9, 0.8]}  # fmt: skip
    learned = pd.DataFrame(base).assign(net="learned")
    frozen = pd.DataFrame(base).assign(net="frozen", nc2_centered=1e-8)
    theory = pd.DataFrame(
        {"net": ["learned", "frozen"], "margin_1": 6.0, "margin_2": 5.0, "scale_2": 0.9}
    )
    floors = {"learned": 0.5, "frozen": 0.5}
    figure = render(plots.collapse(pd.concat([learned, frozen]), theory, floors))
    assert len(figure.axes) == 8
    loss = next(ax for ax in figure.axes if "floor" in ax.get_title(loc="left"))
    assert loss.lines[0].get_ydata().tolist() == pytest.approx([1.5, 0.4])


def test_decoding_and_unseen(render):
    scores = pd.DataFrame(
        [
            {"net": "learned", "decoder": d, "m": m, "exact_match": 0.8, "samples": 100}
            for d in ("nearest codeword", "largest gap")
            for m in (1, 2, 3)
        ]
    )
    figure = render(plots.decoding(scores))
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [0.8] * 6
    unseen = pd.DataFrame(
        [
            {"decoder": d, "sets": s, "exact_match": 0.5, "samples": 50}
            for d in ("nearest codeword", "BCE sign")
            for s in ("trained", "never trained")
        ]
    )
    assert len(render(plots.unseen(unseen)).axes[0].patches) == 4


def test_parameter_table():
    rows = [{"architecture": "resnet18", "learned": 1000, "frozen": 800, "saved": 0.2}]
    assert "20.00%" in plots.parameter_table(rows).to_html()
