"""Every panel shows the numbers of its table, in the project's look, and renders."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm, to_rgba

from nclib.plots import panels, style

SEEDS = pd.DataFrame(
    {
        "loss": ["ce"] * 4 + ["mse"] * 4,
        "epoch": [1, 10, 1, 10] * 2,
        "nc1": [1.0, 0.1, 3.0, 0.0, 2.0, 0.2, 2.0, 0.2],
        "exact": [1.5, 0.15, 1.5, 0.15, 2.1, 0.21, 2.1, 0.21],
    }
)


@pytest.fixture(autouse=True)
def look():
    style.use()
    yield
    plt.close("all")


def points(line):
    return np.column_stack([np.asarray(line.get_xdata(), float), line.get_ydata()]).tolist()


def drawn(ax, label):
    return next(line for line in ax.get_lines() if line.get_label() == label)


def test_lines_are_means_with_the_range_of_the_seeds():
    figure, ax = style.grid(1, 1)
    looks = {"ce": ("red", "D")}
    labels = {"ce": "cross-entropy"}
    panels.lines(
        ax, SEEDS, "epoch", "nc1", by="loss", looks=looks, labels=labels, guides=[5], log="xy",
        floor=1e-3, theory="exact", title="a title",
    )  # fmt: skip
    ce, mse = drawn(ax, "cross-entropy"), drawn(ax, "mse")
    assert points(ce) == [[1, 2.0], [10, pytest.approx(0.05)]]
    assert (ce.get_color(), ce.get_marker(), ce.get_linestyle()) == ("red", "D", "-")
    assert mse.get_color() != "red" and mse.get_marker() != "D"
    (band,) = ax.collections  # the other loss has no range
    assert band.get_paths()[0].get_extents().bounds == pytest.approx((1, 1e-3, 9, 2.999))
    theory = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_color() for line in theory] == ["black"] * 2
    assert points(theory[0]) == SEEDS[["epoch", "exact"]][:4].to_numpy().tolist()
    assert sum(line.get_linestyle() == ":" for line in ax.get_lines()) == 1
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_title("left")) == ("log", "log", "a title")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "nc1")
    ax.legend()
    figure.canvas.draw()


def test_lines_without_groups_beside_a_finer_theory():
    figure, ax = style.grid(1, 1)
    fine = pd.DataFrame({"epoch": [1, 5, 10], "nc1": [1.0, 0.5, 0.1]})
    panels.lines(ax, SEEDS[:2], "epoch", "nc1", theory=fine, points=True, labels={None: "measured"})
    assert points(drawn(ax, "measured")) == [[1, 1.0], [10, 0.1]]
    assert drawn(ax, "measured").get_linestyle() == "None"
    assert points(ax.get_lines()[-1]) == fine.to_numpy().tolist()
    figure.canvas.draw()


def test_a_finer_theory_is_drawn_for_its_group_only():
    _, ax = style.grid(1, 1)
    fine = pd.DataFrame({"loss": ["ce", "mse"], "epoch": [2, 3], "nc1": [7.0, 8.0]})
    panels.lines(ax, SEEDS[::-1], "epoch", "nc1", by="loss", theory=fine)  # in its order
    theory = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert [points(line) for line in theory] == [[[3, 8.0]], [[2, 7.0]]]


@pytest.mark.parametrize("log", ["", "xy"])
def test_diagonal(log):
    figure, ax = style.grid(1, 1)
    panels.diagonal(ax, SEEDS.query("nc1 > 0"), "exact", "nc1", by="loss", log=log, ylabel="found")
    assert points(drawn(ax, "equal")) == [[0.1, 0.1], [3.0, 3.0]]
    assert points(drawn(ax, "mse"))[0] == [2.1, 2.0]
    assert ax.get_ylabel() == "found"
    figure.canvas.draw()


def test_starts_show_every_start_above_its_place():
    figure, ax = style.grid(1, 1)
    table = pd.DataFrame({"d": [2, 2, 5, 5, 9], "gap": [0.3, -0.2, 1e-20, 1e-12, 0.0]})
    panels.starts(ax, table.assign(loss=list("aabba")), "d", by="loss", edge=5)
    shown = np.concatenate([points(line) for line in ax.get_lines()[:-1]])
    assert sorted(shown[:, 1]) == [1e-16, 1e-16, 1e-12, 0.2, 0.3]
    assert [round(x) for x in shown[:, 0]] == [0, 0, 2, 1, 1]  # first all of a, then b
    assert len(set(shown[:, 0])) == 5
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "5", "9"]
    assert ax.get_lines()[-1].get_xdata() == [0.5, 0.5]
    assert len(ax.get_legend_handles_labels()[1]) == 2
    figure.canvas.draw()


def test_heatmaps_write_numbers_that_can_be_read():
    square = np.array([[1.0, -0.004], [0.5, -1.0]])
    figure = panels.heatmaps(
        {"a": square, "b": square.T}, label="cosine", titles={"a": "first"}, digits=2
    )
    first, second = figure.axes[:2]
    assert [t.get_text() for t in first.texts] == ["1.00", "0.00", "0.50", "-1.00"]
    assert [t.get_position() for t in first.texts] == [(0, 0), (1, 0), (0, 1), (1, 1)]  # x, y
    assert to_rgba(first.texts[0].get_color()) == to_rgba("white")
    assert to_rgba(first.texts[1].get_color()) == to_rgba("black")
    assert (first.get_title("left"), second.get_title("left")) == ("first", "b")
    np.testing.assert_array_equal(second.images[0].get_array(), square.T)
    assert figure.axes[-1].get_ylabel() == "cosine"
    assert first.images[0].get_clim() == (-1, 1)
    figure.canvas.draw()


def test_heatmaps_of_tables_name_rows_and_columns():
    table = pd.DataFrame(
        [[1.0, 10.0, 100.0], [2.0, 20.0, 50.0]],
        index=pd.Index([5, 50], name="epochs"),
        columns=pd.Index([1, 2, 4], name="width"),
    )
    _, axes = style.grid(1, 2)
    figure = panels.heatmaps({"x": table}, label="points", norm=LogNorm(1, 100), axes=axes[0])
    assert figure is axes[0].figure
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["1", "2", "4"]
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("width", "epochs")
    assert axes[0].images[0].get_clim() == (1, 100)
    assert not axes[0].texts and not axes[1].images
    figure.canvas.draw()


def test_matrices_of_a_table():
    table = pd.DataFrame(
        {
            "loss": list("bbbbaaaa"),
            "row": [0, 0, 1, 1] * 2,
            "column": [0, 1] * 4,
            "cosine": range(8),
        }
    )
    found = panels.matrices(table.iloc[::-1], by="loss", value="cosine")
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["b"], [[0, 1], [2, 3]])


def test_plane_draws_arrows_to_the_class_means():
    rng = np.random.default_rng(0)
    rows = [
        {"epoch": e, "x": x + k, "y": y - k, "label": k, "nc1": 0.25 / (1 + e)}
        for e in (0, 5)
        for k in range(3)
        for x, y in rng.standard_normal((8, 2))
    ]
    table = pd.DataFrame(rows)
    figure = panels.plane(table)
    assert [ax.get_title("left") for ax in figure.axes] == [
        "epoch 0: NC1 = 0.25", "epoch 5: NC1 = 0.042",
    ]  # fmt: skip
    part = table[table["epoch"] == 5]
    for arrow, (_, own) in zip(figure.axes[1].texts, part.groupby("label"), strict=True):
        assert tuple(arrow.xy) == pytest.approx(tuple(own[["x", "y"]].mean()))
        assert tuple(arrow.xyann) == pytest.approx(tuple(part[["x", "y"]].mean()))
    shown = np.concatenate([points(line) for line in figure.axes[1].get_lines()])
    assert sorted(map(tuple, shown)) == sorted(map(tuple, part[["x", "y"]].to_numpy()))
    figure.canvas.draw()


def test_scales_label_what_is_in_view():
    figure, ax = style.grid(1, 1)
    ax.plot([2, 300], [1, 2])
    style.scales(ax, "x", {"x": [1, 2, 50, 200, 1000], "y": [1, 1.5, 2]})
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "50", "200"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1", "1.5", "2"]
    assert not len(ax.get_xticks(minor=True))
    figure.canvas.draw()


def test_a_reference_is_a_theory_line_with_its_name():
    figure, ax = style.grid(1, 1)
    style.reference(ax, 2.0, "two")
    style.reference(ax, 3.0, "three", axis="x", linestyle=":")
    level, upright = ax.get_lines()
    assert (level.get_ydata(), upright.get_xdata()) == ([2.0, 2.0], [3.0, 3.0])
    assert (level.get_linestyle(), upright.get_linestyle()) == ("--", ":")
    assert [(text.get_text(), text.xy) for text in ax.texts] == [
        ("two", (1.0, 2.0)), ("three", (3.0, 1.0)),
    ]  # fmt: skip
    figure.canvas.draw()


def test_each_loss_has_its_name_colour_and_marker():
    names = {"ce": "cross-entropy", "ls": "label smoothing", "fl": "focal", "mse": "MSE"}
    assert names == style.LOSS_NAMES
    for looks in (style.LOSS_COLORS, style.LOSS_MARKERS):
        assert len(set(looks.values())) == len(looks.keys() & names.keys()) == 4


def test_a_fixed_figure_keeps_its_layout():
    figure, ax = style.grid(1, 1)
    before = ax.get_position().bounds
    assert style.fixed(figure) is figure
    place = ax.get_position().bounds
    assert place != before  # laid out
    ax.set_ylabel("a label\nof two lines")
    figure.canvas.draw()
    assert ax.get_position().bounds == place


def test_an_axis_between_two_decades_is_labelled():
    figure, (narrow, wide) = style.grid(1, 2)
    for ax, top in ((narrow, 4.0), (wide, 90.0)):
        ax.plot([1, 2], [0.2, top])
        style.scales(ax, "y")
        style.between_decades(ax)
    figure.draw_without_rendering()
    labels = [{t.get_text() for t in ax.get_yticklabels()} for ax in (narrow, wide)]
    assert {"0.2", "0.5", "1", "2"} <= labels[0]
    assert not {"0.2", "5"} & labels[1]
