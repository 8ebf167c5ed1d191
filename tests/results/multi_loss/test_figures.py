import numpy as np
import pandas as pd
import pytest

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
    competing = curves.query("loss == 'ce'").assign(c=0.05)
    ax = figures.scalar_picture(curves, minima, competing).axes[0]
    points = [line.get_xydata()[0] for line in ax.get_lines() if len(line.get_xydata()) == 1]
    assert np.allclose(points, minima[["margin", "value"]])


def cells():
    return pd.DataFrame(
        {"width": w, "epochs": e, "variance": w + e, "largest_gap": 1.0, "f_statistic": 1.0}
        for w in (2, 8)
        for e in (5, 20)
    )


@pytest.mark.parametrize("agree", [True, False])
def test_accuracy_maps_show_every_cell_and_say_what_holds(agree):
    gaps = pd.concat(cells().assign(loss=loss, gap=0.5) for loss in ("ce", "ls", "fl", "mse"))
    figure = figures.accuracy_maps(cells(), gaps, agree)
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {f"{v}.00\n$F$ = 1.0" for v in (7, 13, 22, 28)}
    assert len(figure.axes) == 4
    assert ("less than a point" in figure.get_suptitle()) == agree
