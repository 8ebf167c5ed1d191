import numpy as np
import pandas as pd
import pytest
import torch

from nclib.results.convex_duality import experiments as study
from nclib.results.convex_duality import figures
from nclib.table import over


def ydata(ax):
    return [np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()]


def test_staircase(render):
    Y = study.gaussian(torch.Generator().manual_seed(0), 4, 2)
    curves = over(study.staircase_theory, depth=[2, 3], beta=np.geomspace(0.1, 3, 20), targets=Y)
    jumps = over(study.jumps, depth=[2, 3], targets=Y)
    figure = render(figures.staircase(curves, jumps, curves.iloc[::7]))
    assert len(figure.axes) == 2
    first = curves.query("depth == 2 and index == 0")["singular"]
    assert any(np.array_equal(y, first) for y in ydata(figure.axes[0]))


def test_merging_norms_and_gaps(render):
    decay = np.repeat(np.exp([0.0, -1, -2]), 2)
    trace = pd.DataFrame(dict(time=np.repeat([0.0, 1, 2], 2), layer=[1, 2] * 3, operator=1.0))
    trace = trace.assign(frobenius=1 + trace["layer"] * decay, balance=decay)
    ranks = pd.DataFrame(dict(step=[1, 1, 2, 2], layer=[1, 2] * 2, rank=[2, 2, 1, 1]))
    figure = render(figures.layer_norms(trace, 0.5, (1.4, 1.0), ranks))
    np.testing.assert_allclose(*ydata(figure.axes[1]))
    two = pd.DataFrame(dict(beta=[0.5, 1.5], layer=1, rank=[1, 0], expected=[1, 0]))
    figure = render(figures.trained_ranks(two, [1.0], two.assign(layer=[1, 2])))
    assert any(np.array_equal(y, [1, 0]) for y in ydata(figure.axes[0]))
    gaps = dict(outputs=[1, 1, 2, 2], depth=[2, 3] * 2, ratio=[1, 1, 1, 2], trained=[2, 2, 2, 4])
    gaps = pd.DataFrame(gaps).assign(dual=2.0)
    figure = render(figures.depth_gap(gaps))
    assert any(np.array_equal(y, [1, 2]) for y in ydata(figure.axes[0]))


def test_one_dimensional_figures(render):
    x, y = np.array([0.0, 1, 2]), np.array([0.0, 1, 0])
    curves = pd.DataFrame(
        [dict(fit=f, x=u, y=u) for f in ("exact", "L-BFGS", "Adam") for u in (0.0, 2.0)]
    )
    knots = pd.DataFrame([dict(fit=f, position=1.0, mass=2.0) for f in ("exact", "L-BFGS", "Adam")])
    path = pd.DataFrame(dict(beta=[0.1, 1.0], position=[1.0, 1.0], mass=[2.0, 1.0], norm=[2.0, 1]))
    assert len(render(figures.splines(curves, knots, path, x, y)).axes) == 4
    render(figures.spline_freedom(x, y, curves.query("fit != 'Adam'")))
    fits = [dict(depth=2, fit=f, x=u, y=u) for f in ("law", "trained") for u in (0.0, 2.0)]
    beyond = study.beyond_the_law(0.05)
    figure = render(figures.deep_splines(pd.DataFrame(fits), beyond, x, y))
    heights = [patch.get_height() for patch in figure.axes[1].patches]
    assert heights == beyond["value"].tolist()


def test_constraint(render):
    curve, neurons = study.constraint_curve(5, 0.3)
    figure = render(figures.constraint(curve, neurons))
    assert np.array_equal(ydata(figure.axes[0])[0], curve["value"])


def test_optimisers(render):
    setting = dict(run=["Adam", "SGD"], simplex=[0.1, 0.3], step=[0, 1, 10])  # two seeds
    trace = over(lambda step, **_: dict(excess=1 / (1 + step), gap=2 / (1 + step)), **setting)
    trace["orthogonal"] = 0.2
    figure = render(figures.optimisers(trace, np.eye(4)))
    np.testing.assert_allclose(ydata(figure.axes[0])[0], [1 / 2, 1 / 11])
    np.testing.assert_allclose(ydata(figure.axes[2])[2], [0.2, 0.2])


def test_minority(render):
    curves = pd.DataFrame(dict(beta=[0.0, 2.0] * 2, label=[0, 0, 1, 1], count=[9, 9, 4, 4]))
    curves["output"] = (1 - curves["beta"] / curves["count"] ** 0.5).clip(lower=0)
    network = pd.DataFrame(dict(label=[0, 1], count=[9, 4], output=[0.5, 0.0], theory=[0.5, 0.0]))
    network = pd.concat([network, network.assign(output=[0.7, 0.2])])  # two seeds
    figure = render(figures.minority(curves, curves, network))
    heights = [patch.get_height() for patch in figure.axes[1].patches]
    assert heights == pytest.approx([0.6, 0.1])


def test_sandwich(render):
    columns = dict(epoch=[0, 1, 10], objective=[0.3, 0.2, 0.1], optimum=0.09)
    columns |= dict(dual=[0.02, 0.05, 0.08], gamma_over_alpha=[np.inf, -4.0, 3.1])
    columns |= dict.fromkeys(("nc1", "orthogonal", "simplex"), [1.0, 0.1, 0.01])
    history = pd.DataFrame(columns)
    seeds = pd.concat([history, history.assign(objective=[0.5, 0.4, 0.3])])
    lines = ydata(render(figures.sandwich(seeds, 3.0)).axes[0])
    np.testing.assert_allclose(lines[:2], [[0.3, 0.2], [0.05, 0.08]])


def test_class_cosines_and_depth(render):
    grid = dict(kind=["raw, a", "centred, a"], row=range(3), column=range(3))
    cosines = over(lambda row, column, **_: float(row == column), **grid)
    figure = render(figures.class_cosines(cosines, 3))
    assert np.array_equal(figure.axes[0].images[0].get_array(), np.eye(3))
    explicit = over(study.explicit_networks, depth=[3, 5], points=(4,), beta=0.05)
    descents = pd.DataFrame(dict(K=[6, 10], depth=[4, 5], value=[0.7, 1.0], collapsed=[0.7, 2.0]))
    descents["ranks"] = ["4, 4, 6, 6", "5, 5, 5, 9, 9"]
    searches = pd.DataFrame(dict(K=[3, 6], depth=3, value=[2.0, 3.0], optimum=2.0))
    figure = render(figures.depth_breaks(explicit, descents, searches))
    assert any(np.array_equal(y, [4, 4, 6, 6]) for y in ydata(figure.axes[1]))
    named = {line.get_label(): line for line in figure.axes[0].lines}
    crosses = [named[f"$K={K}$, best of random starts"] for K in (3, 6)]
    assert [(line.get_marker(), *line.get_ydata()) for line in crosses] == [("x", 1), ("+", 1.5)]


def test_depths(render):
    trace = pd.DataFrame([dict(depth=d, seed=s, step=t, a=d + s, b=1.0)
                          for d in (3, 4) for s in (0, 2) for t in (1, 2)])  # fmt: skip
    panels = (("a", "a", "A", "x"), ("b", "b", "B", "xy"))
    figure = render(figures.depths(trace, "step", panels, reference=1))
    assert np.array_equal(ydata(figure.axes[0])[0], [4, 4])  # the mean over seeds


def test_accuracy(render):
    table = pd.DataFrame(dict(n=[10, 20], accuracy=[0.5, 0.6], condition=[3.0, 40.0]))
    trained = pd.DataFrame(dict(run=["Adam"], n=[20], accuracy=[0.61]))
    figure = render(figures.accuracy(table, 64, trained))
    assert np.array_equal(ydata(figure.axes[0])[0], [0.5, 0.6])
    assert figure.axes[1].get_title(loc="left") == "Condition of the inputs"
