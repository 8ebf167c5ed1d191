import numpy as np
import pandas as pd

from nclib import losses, table
from nclib.results.multi_loss import experiments as study
from nclib.results.multi_loss import figures

LOSSES = {"ce": losses.get("ce"), "mse": losses.get("mse")}


def test_margins_show_theory_and_measurement():
    theory = table.over(study.known_margin, loss=LOSSES, c=np.geomspace(1e-3, 0.1, 5), K=3)
    measured = theory.iloc[::2]
    figure = figures.margins(theory, measured, {"ce": 1 / 3, "mse": 1 / 3})
    lines = {line.get_linestyle(): line.get_xydata() for line in figure.axes[0].get_lines()[2:4]}
    assert np.allclose(lines["None"], measured.query("loss == 'mse'")[["c", "margin"]])
    assert np.allclose(lines["--"], theory.query("loss == 'mse'")[["c", "margin"]])
    assert figure.axes[1].get_xscale() == "log"


def test_the_scalar_picture_marks_the_minima():
    curves = table.over(study.scalar_value, loss=LOSSES, s=np.linspace(0, 6, 61), c=0.05, K=3)
    minima = table.over(study.known_margin, loss=LOSSES, c=0.05, K=3)
    for loss, part in curves.groupby("loss"):  # the closed form lies at the bottom of the curve
        marked = minima.set_index("loss").loc[loss]
        assert marked["value"] <= part["value"].min()
        assert abs(marked["margin"] - part.loc[part["value"].idxmin(), "s"]) <= 0.1
    plain = curves.query("loss == 'ce'")
    competing = pd.concat(plain.assign(c=c) for c in ("high", "low", "between"))
    ax, right = figures.scalar_picture(curves, minima, competing, title="two minima").axes
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["high", "low", "between"]
    points = [line.get_xydata()[0] for line in ax.get_lines() if len(line.get_xydata()) == 1]
    assert np.allclose(points, minima[["margin", "value"]])


def cells():
    return pd.DataFrame(
        {"width": w, "epochs": e, "variance": w + e, "largest_gap": 1.0, "f_statistic": 1.0}
        for w in (2, 8)
        for e in (5, 20)
    )


def accuracies():
    return pd.concat(
        cells()[["width", "epochs"]].assign(loss=loss, mean=90.0, min=89.0, max=91.0)
        for loss in ("ce", "ls", "fl", "mse")
    )


def test_six_maps_show_every_cell():
    figure = figures.accuracy_maps(cells(), accuracies(), title="what holds")
    assert len(figure.axes) == 6
    assert {text.get_text() for text in figure.axes[0].texts} == {"90.0\n89.0 – 91.0"}
    texts = {text.get_text() for text in figure.axes[5].texts}
    assert texts == {f"{v}.00\n$F$ = 1.0" for v in (7, 13, 22, 28)}
    assert figure.get_suptitle() == "what holds"


def test_maps_of_one_seed_have_no_statistic_and_missing_cells_stay_empty():
    one = cells().assign(f_statistic=np.nan).query("width == 2 or epochs == 20")
    figure = figures.accuracy_maps(one, accuracies(), title="")
    assert {text.get_text() for text in figure.axes[5].texts} - {""} == {"7.00", "22.00", "28.00"}


def test_the_mse_is_drawn_without_bias_too():
    setting = {"K": 4, "n": 3, "d": 6, "lambda_w": 0.01, "lambda_h": 0.004}
    sweep = table.over(study.bias_geometry, lambda_b=[0.01, np.inf], **setting)
    fine = table.over(study.known_bias_geometry, lambda_b=[0.01, 0.1, 1.0], **setting)
    ax = figures.bias_geometry(sweep, fine, 0.05, title="raw and centred").axes[2]
    places = [line.get_xydata() for line in ax.get_lines() if line.get_label() == "raw $W$"]
    assert np.allclose(places[0], [[0.01, 0], [10, (2 - 3**0.5) ** 0.5]], atol=1e-6)


def drawn(ax):
    return [line.get_xydata().tolist() for line in ax.get_lines()]


def test_the_focal_region_draws_its_three_tables():
    gammas = {"gamma": [0.0, 1.0, 2.0], "t_c": [0.0, 0.04, 0.05], "sufficient": [0.2, 0.15, 0.1]}
    cases = pd.DataFrame({"gamma": [1.0, 2.0], "K": [10, 40], "found": [False, True]})
    window = pd.DataFrame({"ratio": [0.9, 1.01], "fraction": [1.0, 0.5]})
    region = pd.DataFrame(gammas)
    axes = figures.focal_region(region, cases, window, edge=1.02, title="minima").axes
    assert drawn(axes[0])[:2] == [[[0, 0], [1, 0.04], [2, 0.05]], [[0, 0.2], [1, 0.15], [2, 0.1]]]
    assert drawn(axes[1]) == [[[1, 25], [2, 20]], [[2, 40]], [[1, 10]]]
    assert [line.get_markerfacecolor() for line in axes[1].get_lines()[1:]][1] == "none"
    assert drawn(axes[2]) == [[[0.9, 1], [1.01, 0.5]]]
    assert axes[2].patches[0].get_bbox().extents[[0, 2]].tolist() == [1, 1.02]


def test_the_landscape_draws_ways_curvatures_and_starts():
    saddles = pd.DataFrame({"loss": ["ce", "mse"], "predicted": [-1.0, -2.0], "measured": [-3, -4]})
    ways = pd.DataFrame({"rank": 0, "t": [0.0, 1.0], "value": [0.0, -0.1], "parabola": [0.0, -0.2]})
    gaps = pd.DataFrame({"loss": ["ce", "mse"] * 2, "d": [2, 2, 3, 3], "gap": [0.1, 0.2, 0.3, 0.4]})
    left, middle, right = figures.landscape(saddles, ways, gaps, 4, "starts").axes
    assert drawn(left) == [[[0, 0], [1, -0.1]], [[0, 0], [1, -0.2]]]
    assert drawn(middle)[1:] == [[[-1, -3]], [[-2, -4]]]
    assert right.get_title(loc="left") == "starts"


def test_agreement_tells_pairs_apart():
    curves = pd.DataFrame({"loss": "ls", "epoch": [1, 2], "logits_etf": [0.5, 0.25]})
    pairs = {"loss": ["ls", "mse"], "pair": ["same seed", "two seeds"], "distance": [0.1, 0.2]}
    lengths = pd.DataFrame({"loss": "ls", "epochs": [5, 20], "distance": [0.4, 0.3]})
    axes = figures.agreement(curves, pd.DataFrame(pairs), lengths, title="meet").axes
    assert drawn(axes[0])[0] == [[1, 0.5], [2, 0.25]]
    assert np.allclose(drawn(axes[1]), [[[0.88, 0.1]], [[3.12, 0.2]]])
    assert [line.get_markerfacecolor() for line in axes[1].get_lines()][1] == "none"
    assert drawn(axes[2])[0] == [[5, 0.4], [20, 0.3]]


def test_accuracies_by_length_have_a_panel_per_width_and_one_for_the_control():
    runs = {"loss": "ce", "width": [2, 2, 8], "epochs": [20, 5, 5], "test_accuracy": [70.0, 60, 80]}
    linear = pd.DataFrame({"loss": "ce", "test_accuracy": [50.0, 54.0]})
    axes = figures.accuracy_by_length(pd.DataFrame(runs), linear, title="lengths").axes
    found = [drawn(ax)[0] for ax in axes]
    assert found == [[[1, 52]], [[5, 60], [20, 70]], [[5, 80]]]
    assert [ax.get_title(loc="left") for ax in axes[1:]] == ["width 2", "width 8"]
    spans = [
        x.get_segments()[0][:, 1].tolist()
        for x in axes[0].collections
        if hasattr(x, "get_segments")
    ]
    assert spans[-1] == [50, 54]


def test_collapse_curves_mark_zero_error_drops_and_the_limit():
    names = ["nc1", "nc2", "nc3", "residual", "train_accuracy", "test_accuracy"]
    curves = pd.DataFrame(
        {"loss": "mse", "epoch": [1, 10]} | {x: [i, i + 1] for i, x in enumerate(names, 1)}
    )
    axes = figures.collapse_curves(curves, 4, [6, 8], 4.7, title="collapse").axes
    for i, ax in enumerate(axes, 1):
        line, *marks = drawn(ax)
        assert line == [[1, i], [10, i + 1]]
        assert [mark[0][0] for mark in marks[:3]] == [6, 8, 4]
    assert drawn(axes[3])[-1][0][1] == 4.7
