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
