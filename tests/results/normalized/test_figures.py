"""Figures of result 2 draw the tables they are given; the animation is small and repeatable."""

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex
from PIL import Image

from nclib import frames
from nclib.results.normalized import experiments as study
from nclib.results.normalized import figures as plots
from nclib.results.normalized import theory
from nclib.table import over


def test_convergence(render):
    problem = theory.normalized([2] * 3, 1.0, 4), theory.optimum(3, 1.0).value
    history = study.convergence({"normalized, τ = 1": problem}, seeds=[0, 1], max_iter=20)
    race = pd.DataFrame({"name": ["normalized", "hybrid"] * 2, "scale": [1.0, 1.0, 2.0, 2.0]})
    race = race.assign(steps=[40, np.inf, 30, 70], seed=0)
    figure = render(plots.convergence(history, race, "two"))
    assert len(figure.axes[0].lines) == len(figure.axes[0].collections) == 2
    assert figure.axes[3].get_title(loc="left") == "two"


def test_conditioning(render):
    table = pd.DataFrame({"name": ["normalized", "hybrid"], "scale": [1.0, 2.0], "kappa": [5, 9]})
    figure = render(plots.conditioning(table, table, "best"))
    assert len(figure.axes[0].lines) == 4


def test_spectrum(render):
    table = study.spectrum(1.0, K=4, n=2, d=5).assign(scale=1.0)
    rates = pd.DataFrame({"scale": [1.0], "measured": [0.9], "predicted": [0.9]})
    blocks = pd.DataFrame(
        {"n": [1, 5] * 2, "block": [False] * 2 + [True] * 2, "iterations": [9] * 4}
    )
    figure = render(plots.spectrum(table, blocks, rates, rates))
    assert np.allclose(figure.axes[0].lines[0].get_ydata(), table["measured"])
    assert np.allclose(figure.axes[0].lines[1].get_ydata(), table["theory"])


def test_saddles_and_bound(render):
    table = study.saddles(4, 2, 6, 1.0)
    escapes = over(study.escapes, size=[1e-2, 1e-5], K=4, n=3, d=6, scale=2.0, steps=40)
    figure = render(plots.saddles(table, escapes, 0.5, "a finding"))
    widths = [patch.get_width() for patch in figure.axes[1].patches]
    assert np.allclose(widths, table["measured"])
    assert figure.axes[1].get_title(loc="left") == "a finding"
    ways = pd.DataFrame({"name": ["one"] * 2, "scale": [1.0, 9.0], "low": [-0.1, -1e-3]})
    render(plots.bound(ways, 8.0, "ways"))


def test_landscape(render):
    angles, radii = list(np.linspace(-180, 180, 21)), list(np.linspace(0.1, 5, 21))
    plane = over(study.circle_map, turn=angles, K=3, scale=2.0)
    radial = over(study.radial_map, radius=radii, K=3, decay=0.1)
    wells = over(study.feature_wells, scale=[1.0, 4.0], K=3)
    figure = render(plots.landscape(plane, radial, wells, 3, 2.0, "wells"))
    assert len(figure.axes) == 4


def test_temperature_dimensions_width(render):
    curves = over(study.curvature, size={4: (4, 2, 5)}, scale=[0.5, 1.0, 2.0])
    nets = pd.DataFrame(
        {"scale": [3.0, 1.0], "nc1": [0.1, 0.2], "nc2": [0.1, 0.2], "nc3": [0.1, 0.2]}
    )
    args = curves.rename(columns={"size": "K"}), nets, nets, {4: (1.0, 2.0)}, (1.0, 2.0)
    figure = render(plots.temperature(*args, ["model", "nets"]))
    assert list(figure.axes[3].lines[0].get_xdata()) == [1.0, 3.0]
    render(plots.dimensions(study.dimensions([3, 4], 2.0)))
    final = nets.assign(width=[8, 16], train_accuracy=[50.0, 100.0], labels="random", seed=0)
    figure = render(plots.width(final, "finding"))
    assert figure.axes[0].get_title(loc="left") == "finding"


def test_spurious_and_imbalance(render):
    ends = pd.DataFrame({"n": [1] * 4, "d": [2, 2, 3, 3], "value": [0.0, 0.45, 0.0, 0.0]})
    ends = pd.concat([ends, ends.assign(n=5)])
    point = {"features": frames.polygon(3), "weight": frames.polygon(3)}
    figure = render(plots.spurious(ends, point, [0, 1, 2], 0.45))
    heights = sum(patch.get_height() for patch in figure.axes[0].patches)
    assert abs(heights - 2) < 1e-12
    render(plots.spurious(ends, None, [0, 1, 2], 0.0))
    table = pd.DataFrame({"counts": ["2-1", "3-1"], "nc2": [0.1] * 2, "certificate": [0.0] * 2})
    render(plots.imbalance([frames.polygon(3) @ frames.polygon(3).T] * 2, table))


def curves():
    rows = []
    modes = [("normalized", f"normalized, τ = {scale:g}", scale) for scale in (3.0, 1.0, 10.0)]
    modes += [("hybrid", "hybrid, matched to τ = 3", 1.0)]
    for name, label, scale in modes:
        for seed, epoch in product((0, 1), (0, 1, 5)):
            tags = {"name": name, "label": label, "scale": scale, "epoch": epoch, "seed": seed}
            columns = ("nc1", "nc2", "nc3", "loss", "effective_scale", "test_nc1", "test_nc3")
            values = dict.fromkeys(columns, 1 / (1 + epoch + seed))
            rows.append(tags | values | {"test_accuracy": 90.0 + epoch})
    return pd.DataFrame(rows)


def test_network_curves(render):
    floors, titles = {1.0: 1.37, 3.0: 0.28}, {"loss": "a finding"}
    figure = render(plots.network_curves(curves(), floors, titles, strong=3.0))
    lowest = sorted(line.get_ydata()[0] for line in figure.axes[3].lines[-2:])
    assert lowest == [0.28, 1.37]
    assert figure.axes[3].get_title(loc="left") == "a finding"
    looks = {f"{to_hex(line.get_color())} {line.get_linestyle()}" for line in figure.axes[0].lines}
    assert len(looks) == 4  # no two ways of training look the same
    final = curves().query("epoch == 5")
    figure = render(plots.generalization(final, "accuracy"))
    assert len(figure.axes[0].lines) == 8


def film(dim, K=4, epochs=(0, 1, 2)):
    rng, rows = np.random.default_rng(0), []
    final = frames.polygon(K).numpy() if dim == 2 else frames.simplex_etf(K, dim).numpy()
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
    render(plots.modes([film(2), film(2)], ["one", "two"], ["a", "b"]))


def test_camera_is_a_rotation_with_the_first_classifier_up():
    view = plots.camera(frames.simplex_etf(4, 3), turn=0)
    assert np.allclose(view @ view.T, np.eye(3))
    up = view @ frames.simplex_etf(4, 3)[0].numpy()  # tilted by 18 degrees
    assert np.allclose(up[0], 0)
    assert up[1] > 0.9
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
