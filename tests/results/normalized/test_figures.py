"""Figures of result 2 draw the tables they are given; the animation is small and repeatable."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nclib import frames
from nclib.results.normalized import experiments as study
from nclib.results.normalized import figures as plots
from nclib.results.normalized import theory


def test_convergence(render):
    history, _ = study.convergence(3, 2, 4, 1.0, 5e-3, 5e-3)
    race = pd.DataFrame(
        {"problem": ["normalized, τ = 1", "regularized"], "iterations": [40, np.inf]}
    )
    figure = render(plots.convergence(history, race))
    assert len(figure.axes[0].lines) == 4
    assert len(figure.axes[2].patches) == 2


def test_spectrum(render):
    table = study.spectrum(4, 2, 5, 1.0).assign(scale=1.0)
    rates = pd.DataFrame({"scale": [1.0], "measured": [0.9], "predicted": [0.9]})
    blocks = pd.DataFrame(
        {"n": [1, 5] * 2, "block": [False] * 2 + [True] * 2, "iterations": [9] * 4}
    )
    figure = render(plots.spectrum(table, blocks, rates, study.rate_theory(4, 2, 5, [1.0, 2.0])))
    assert (figure.axes[0].lines[0].get_ydata() == table["measured"]).all()
    assert (figure.axes[0].lines[1].get_ydata() == table["theory"]).all()


def test_saddles(render):
    table = study.saddles(4, 2, 6, 1.0)
    escapes = study.escapes(4, 2, 6, 1.0, [1e-2, 1e-5], steps=40)
    figure = render(plots.saddles(table, escapes, 0.5))
    widths = [patch.get_width() for patch in figure.axes[1].patches]
    assert np.allclose(widths, table["measured"])


def test_landscape(render):
    maps = study.circle_map(3, 2.0, points=21), study.radial_map(3, 0.1, points=21)
    figure = render(plots.landscape(*maps, study.feature_wells(3, [1.0, 4.0]), 3, 0.1, 2.0))
    assert len(figure.axes) == 5


def test_temperature_dimensions_width(render):
    curves = study.temperature_theory([(4, 2, 5)], [0.5, 1.0, 2.0])
    nets = pd.DataFrame(
        {"scale": [3.0, 1.0], "nc1": [0.1, 0.2], "nc2": [0.1, 0.2], "nc3": [0.1, 0.2]}
    )
    figure = render(plots.temperature(curves, nets, nets, {4: (1.0, 2.0)}, (1.0, 2.0)))
    assert list(figure.axes[3].lines[1].get_xdata()) == [1.0, 3.0]
    table = study.dimensions([3, 4], 2.0, starts=2)
    render(plots.dimensions(table))
    final = nets.assign(width=[8, 16], train_accuracy=[50.0, 100.0])
    render(plots.width(final))


def test_spurious_and_imbalance(render):
    ends = pd.DataFrame({"n": [1] * 4, "d": [2, 2, 3, 3], "value": [0.0, 0.45, 0.0, 0.0]})
    ends = pd.concat([ends, ends.assign(n=5)])
    points = theory.polygon(3), theory.polygon(3), [0, 1, 2]
    figure = render(plots.spurious(ends, points, 0.45))
    heights = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert abs(heights - 2) < 1e-12
    table = pd.DataFrame({"counts": ["2-1"] * 2, "nc2": [0.1] * 2, "certificate": [0.0] * 2})
    render(plots.imbalance([theory.polygon(3) @ theory.polygon(3).T] * 2, table))


def curves():
    rows = []
    modes = [("normalized", "normalized, τ = 3", 3.0), ("normalized", "normalized, τ = 1", 1.0)]
    modes += [("hybrid", "hybrid, matched to τ = 3", 1.0)]
    for cell, (name, label, scale) in enumerate(modes):
        for epoch in (0, 1, 5):
            tags = {"cell": cell, "name": name, "label": label, "scale": scale, "epoch": epoch}
            values = dict.fromkeys(
                ("nc1", "nc2", "nc3", "loss", "effective_scale"), 1 / (1 + epoch)
            )
            rows.append(tags | values | {"test_accuracy": 90.0 + epoch})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("relu", [False, True])
def test_network_curves(relu, render):
    lines = {"log K": 2.3, "ETF": 0.28} | ({"ReLU": 0.32} if relu else {})
    figure = render(plots.network_curves(curves(), {3.0: lines}, strong=3.0))
    floor = figure.axes[3].lines[-1].get_ydata()
    assert floor[0] == (0.32 if relu else 0.28)


def film(dim, K=4, epochs=(0, 1, 2)):
    rng, rows = np.random.default_rng(0), []
    final = theory.polygon(K).numpy() if dim == 2 else frames.simplex_etf(K, dim).numpy()
    labels = np.repeat(np.arange(K), 5)
    for epoch in epochs:
        noise = (2 - epoch) * rng.normal(size=(len(labels), dim))
        points = final[labels] + noise
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        for kind, values, own in (("feature", points, labels), ("classifier", final, np.arange(K))):
            table = pd.DataFrame(values).add_prefix("x")
            rows.append(table.assign(epoch=epoch, kind=kind, label=own))
    return pd.concat(rows, ignore_index=True)


def test_collapse_and_modes(render):
    figure = render(plots.collapse([film(2), film(3)], [0, 2], ["circle", "sphere"]))
    assert len(figure.axes) == 4
    render(plots.modes([film(2), film(2)], ["one", "two"]))


def test_camera_is_a_rotation_with_the_first_classifier_up():
    view = plots.camera(frames.simplex_etf(4, 3), tilt=0, turn=0)
    assert np.allclose(view @ view.T, np.eye(3))
    assert np.allclose(view @ frames.simplex_etf(4, 3)[0].numpy(), [0, 1, 0])
    assert abs(np.linalg.det(plots.camera(frames.simplex_etf(4, 3))) - 1) < 1e-12


def test_animation(tmp_path):
    films, captions = [film(2), film(3)], ["circle", "sphere"]
    size = plots.animate(films, tmp_path / "a.gif", captions=captions)
    assert size == (tmp_path / "a.gif").stat().st_size < 3_000_000
    plots.animate(films, tmp_path / "b.gif", captions=captions)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    picture = Image.open(tmp_path / "a.gif")
    assert picture.n_frames == 3
    assert picture.info["loop"] == 0
