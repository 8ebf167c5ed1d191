"""Figures of result 3 draw the tables they are given, and nothing is left open or warned about."""

import numpy as np
import pandas as pd
import pytest
import torch

from nclib.results.multi_label import experiments as study
from nclib.results.multi_label import figures, nets
from nclib.results.multi_label.data import MultiLabelData


def test_tagwise_picture(render):
    points, means, _, scale = study.concept_path((5, 20))
    figure = render(figures.tagwise_picture(points, means, scale))
    assert len(figure.axes) == 3
    shown = sum(len(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "o")
    assert shown == 60  # the singles


def test_closed_form_marks_the_measured_margins(render):
    check = pd.DataFrame({"K": [4], "n": ["{1: 1}"], "reduction": ["sum"], "value_gap": [1e-15]})
    sweep = pd.DataFrame({"strength": [0.01, 0.1], "m": [1, 1], "margin": [4.0, 2.0]})
    figure = render(figures.closed_form(check, sweep, sweep, 0.3))
    markers = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert markers[0].get_ydata().tolist() == [4.0, 2.0]


@pytest.mark.parametrize("holds", [True, False])
def test_scale_curves_state_the_finding_only_if_it_holds(render, holds):
    margins = np.geomspace(0.1, 10, 30)
    curve = pd.concat(
        pd.DataFrame({"reduction": way, "m": 2, "margin_1": margins, "scale": 0.9})
        for way in ("sum", "mean")
    )
    figure = render(figures.scale_curves(curve, {2: (2.5, 0.85)}, curve[::9], holds))
    assert ("dip" in figure.axes[0].get_title(loc="left")) is holds


def test_landscape_and_imbalance(render):
    gaps = pd.DataFrame({"d": [1, 3], "start": [0, 0], "gap": [0.3, -1e-17]})
    saddles = pd.DataFrame({"rank": [1], "predicted": [-0.2], "measured": [-0.2]})
    assert len(render(figures.landscape(gaps, saddles, 4)).axes) == 2
    between = pd.DataFrame(
        {"ratio": [0.1, 10], "nc2": [0.0, 1e-15], "degrees": [1e-14, 1e-14],
         "scale": [0.88, 0.88], "scale_theory": [0.88, 0.88]}
    )  # fmt: skip
    groups = pd.DataFrame(
        {"setting": ["3100", "3100", "50", "50"], "samples": [5, 500, 5, 500], "degrees": [1.0] * 4}
    )
    assert len(render(figures.imbalance(between, groups)).axes) == 3


def test_blocks(render):
    alone = pd.DataFrame(
        [{"m": m, "kind": k, "excess": 0.1 * m} for m in (1, 2) for k in study.KINDS]
    )
    mixed = pd.DataFrame(
        [{"share": s, "t": t, "weight": w} for s in (0.1, 1, 10) for t, w in ((1, 0.4), (3, 0.6))]
    )
    figure = render(figures.blocks(alone, mixed, 4))
    frame = figure.axes[0].lines[0]
    assert frame.get_ydata().tolist() == pytest.approx([0.1, 0.2])
    top = figure.axes[1].collections[-1].get_paths()[0].vertices
    assert top[:, 1].max() == pytest.approx(1)


def test_pair_maps_show_the_values(render):
    pairs = pd.DataFrame({"i": [0, 0, 1], "j": [1, 2, 2], "degrees": [1.0, 2.0, 3.0],
                          "degrees_weight": [4.0, 5.0, 6.0], "samples": [7, 8, 9]})  # fmt: skip
    norms = pd.DataFrame({"mean": [1.0, 1.0, 2.0], "weight": [2.0, 1.0, 1.0]})
    figure = render(figures.single_imbalance(pairs, norms, 3))
    assert figure.axes[2].lines[0].get_ydata().tolist() == [0.75, 0.75, 1.5]
    shown = figure.axes[0].images[0].get_array()
    assert shown[0, 1] == 1.0
    assert shown[1, 2] == 3.0
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown))[2, 0]
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 1]])
    for channels in (1, 3):
        data = MultiLabelData("toy", torch.rand(4, channels, 6, 6), labels)
        figure = render(figures.samples(data, pairs))
        titles = [ax.get_title() for ax in figure.axes]
        assert "{0}" in titles
        assert "{1, 2}" in titles


@pytest.mark.parametrize("holds", [True, False])
def test_collapse_curves(render, holds):
    base = {"epoch": [1, 5], "nc1": [1.0, 0.1], "nc2_centered": [0.5, 0.1], "nc2_means": [1, 0.2],
            "nc3": [1, 0.2], "angle_2": [0.2, 0.1], "data_loss": [2.0, 0.9], "margin_1": [1, 5],
            "margin_2": [1, 4], "scale_2": [0.9, 0.8], "soft_iou_2": [0.3, 0.9]}  # fmt: skip
    learned = pd.DataFrame(base).assign(net="learned", seed=0)
    bce = learned.assign(net="bce")
    frozen = pd.DataFrame(base).assign(net="frozen", seed=0, nc2_centered=1e-8)
    theory = {"learned": {"margin_1": 6.0, "scale_2": 0.9}, "frozen": {"margin_1": 5.0}}
    figure = render(figures.collapse(pd.concat([learned, frozen, bce]), theory, 0.5, holds))
    assert len(figure.axes) == 10
    loss = next(ax for ax in figure.axes if "floor" in ax.get_title(loc="left"))
    assert loss.lines[0].get_ydata().tolist() == pytest.approx([1.5, 0.4])
    assert len([line for line in loss.lines if len(line.get_xdata())]) == 2  # not of another loss
    assert ("further" in figure._suptitle.get_text()) is holds


@pytest.mark.parametrize("holds", [True, False])
def test_control(render, holds):
    rows = [
        {"task": task, "net": "MLP", "pairs": pairs, "seed": seed, "angle_2": angle}
        for task in ("composed", "arbitrary")
        for pairs, angle in ((nets.WITH, 0.1), (nets.WITHOUT, 1.3))
        for seed in (0, 1)
    ]
    figure = render(figures.control(pd.DataFrame(rows), holds))
    trained = figure.axes[0].lines[0]
    assert trained.get_xdata().tolist() == [0.1] * 4
    assert trained.get_ydata().tolist() == [0, 0, 1, 1]
    assert figure.axes[0].get_xlim()[1] > 1.3
    assert ("have learned" in figure.axes[0].get_title(loc="left")) is holds


def test_uneven(render):
    kinds = (nets.WITH, nets.WITHOUT, "exact minimum")
    groups = pd.DataFrame(
        [{"setting": s, "samples": n, "ratio": 0.1} for s in kinds for n in (50, 5, 1)] * 3
    )  # three equal seeds, whose mean is above them by rounding
    row = {"angle": 0.1, "scale": 0.8, "theory": 0.9}
    triples = pd.DataFrame([row | {"net": net, "m": m} for net in kinds[:2] for m in (2, 3)])
    figure = render(figures.uneven(groups, triples))
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([0.1] * 9)
    assert figure.axes[2].get_ylim()[1] > 0.9  # the theory stays in sight


@pytest.mark.parametrize("holds", [True, False])
def test_decoding_and_unseen(render, holds):
    rows = [
        {"net": net, "decoder": d, "m": m, "sets": s, "seed": 0, "exact_match": 0.8, "samples": 100}
        for net in ("learned", "bce")
        for d in ("codeword", "largest gap")
        for m in (1, 2, 3)
        for s in ("trained", "never trained")
    ]
    table = pd.DataFrame(rows)
    figure = render(figures.decoding(table[table["sets"] == "trained"], holds))
    assert [bar.get_width() for bar in figure.axes[0].patches] == [0.8] * 6
    assert ("misses" in figure._suptitle.get_text()) is holds
    figure = render(figures.unseen(table, holds))
    assert [len(ax.patches) for ax in figure.axes] == [4, 4]


def test_parameter_table():
    rows = [{"architecture": "resnet18", "learned": 1000, "frozen": 800, "saved": 0.2}]
    assert "20.00%" in figures.parameter_table(pd.DataFrame(rows)).to_html()
