import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from nclib import losses
from nclib.plots import style
from nclib.results.multi_loss import experiments as ufm
from nclib.results.multi_loss import figures as plots

LOSSES = {"ce": losses.get("ce"), "mse": losses.get("mse")}


def drawn(ax):
    return [tuple(map(tuple, line.get_xydata())) for line in ax.get_lines()]


def test_margins_show_theory_and_measurement():
    theory = ufm.margin_theory(LOSSES, np.geomspace(1e-3, 0.1, 5), K=3)
    measured = theory.iloc[::2]
    figure = plots.margins(theory, measured, {"ce": 1 / 3, "mse": 1 / 3})
    lines = figure.axes[0].get_lines()
    part = theory.query("loss == 'ce'")
    assert np.allclose(lines[0].get_xydata(), part[["c", "margin"]])
    dots = [line for line in lines if line.get_linestyle() == "None"]
    assert np.allclose(dots[1].get_xydata(), measured.query("loss == 'mse'")[["c", "margin"]])
    assert figure.axes[1].get_xscale() == "log"


def test_the_scalar_picture_marks_the_minima():
    curves = ufm.scalar_curves(LOSSES, 0.05, np.linspace(0, 6, 61), K=3)
    minima = ufm.scalar_minima(LOSSES, 0.05, K=3)
    for loss, part in curves.groupby("loss"):  # the closed form lies at the bottom of the curve
        marked = minima.set_index("loss").loc[loss]
        assert marked["value"] <= part["value"].min()
        assert abs(marked["s"] - part.loc[part["value"].idxmin(), "s"]) <= 0.1
    competing = ufm.competing_minima([0.0412], np.linspace(0, 1.6, 9), K=30, gamma=3.0)
    figure = plots.scalar_picture(curves, minima, competing)
    assert len(figure.axes) == 2


def test_accuracy_maps_show_every_cell():
    rows = [
        {"width": w, "epochs": e, "variance": w + e, "largest_gap": 1.0, "f_statistic": 1.0}
        for w in (2, 8)
        for e in (5, 20)
    ]
    gaps = pd.DataFrame(
        {"loss": loss, "width": r["width"], "epochs": r["epochs"], "gap": 0.5}
        for loss in ("ce", "ls", "fl", "mse")
        for r in rows
    )
    figure = plots.accuracy_maps(pd.DataFrame(rows), gaps)
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"7.00", "13.00", "22.00", "28.00"}
    assert len(figure.axes) == 4


def test_palettes_are_distinct_and_named():
    assert len(set(style.LOSS_COLORS.values())) == len(style.LOSS_NAMES)
    assert len(set(style.LOSS_MARKERS.values())) == len(style.LOSS_NAMES)


def test_saved_pictures_are_small_and_readable(tmp_path):
    figure, ax = style.grid(1, 1)
    ax.plot(np.random.default_rng(0).standard_normal((50, 8)))
    style.save(figure, tmp_path / "a")
    assert (tmp_path / "a.png").stat().st_size < 200_000
    assert plt.imread(tmp_path / "a.png").shape[1] == int(9.0 * 150)
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
