"""Figures are drawn from tables alone: the expected panels, and nothing warns."""

import numpy as np
import pandas as pd
import pytest

from nclib import frames
from nclib.results.large_class import experiments, figures
from nclib.results.large_class.assignment import SQUARE
from nclib.table import over


def history(hue="temperature", values=(1.0, 0.2)):
    rng = np.random.default_rng(0)
    rows = [
        {"epoch": e, hue: v, "seed": s, "d": 3} for e in (0, 1, 5) for v in values for s in (0, 1)
    ]
    table = pd.DataFrame(rows)
    for column in ("gnc1", "gnc2", "gnc3", "train_accuracy", "test_accuracy", "etf_error"):
        table[column] = rng.uniform(0.1, 1, len(table))
    return table.assign(reference=0.9, random=0.2)


def test_hull_edges_leave_out_face_diagonals():
    cube = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    assert len(figures.hull_edges(cube)) == 12
    assert len(figures.hull_edges(frames.icosahedron().numpy())) == 30


def test_codes_and_distances(render):
    table = over(
        experiments.vertices, code={"ring": frames.polygon(5), "ico": frames.icosahedron()}
    )
    assert len(render(figures.gallery(table)).axes) == 2
    two = experiments.two_distances(frames.polygon(5))
    assert len(render(figures.two_distances({"a": two, "b": two})).axes) == 4
    known = over(experiments.known_margin, d=[2, 3], K=range(2, 13))
    assert len(render(figures.known_margins(known)).axes) == 2


def test_temperatures(render):
    limits = over(
        experiments.cold_limit, code={"ico": frames.icosahedron()}, temperature=[0.1, 0.05]
    )
    assert len(render(figures.cold_limit(limits)).axes) == 3
    energies = over(experiments.energies, d=[3, 4], temperature=[0.1, 0.5])
    warm = pd.DataFrame({"temperature": [0.1, 1.0], "margin_ratio": [0.9, 0.9], "bipyramid": 0.875})
    edges = over(experiments.exchanges, d=[3, 4])
    figure = figures.phases(energies, edges, warm, (0.2, 0.9))
    assert len(render(figure).axes) == 3


def test_networks(render):
    figure = figures.training(history(), lines={0.9: "best", 0.2: "random"}, title="A title")
    assert [len(ax.lines) for ax in render(figure).axes] == [2, 4, 2, 2]
    figures.training(history("text", ("a", "b")), lines={0.9: "best"}, hue="text")
    final, model = (
        history().query("epoch == 5"),
        pd.DataFrame({"temperature": [1.0], "margin": 0.5}),
    )
    assert len(render(figures.choices(final, final, model=model, floor=1.1)).axes) == 4
    panels = {"test_accuracy": "accuracy", "gnc1": "GNC1", "gnc2": "GNC2"}
    figure = figures.dots(
        final, "temperature", panels, levels={"gnc2": (0.9, "best")}, logs=("gnc1",)
    )
    assert len(render(figure).axes) == 3


def test_assignments(render):
    fixed = pd.DataFrame({"opposite": [1, 2, 3], "test_accuracy": [0.5, 0.6, 0.7]})
    learned = pd.DataFrame({"opposite": [2, 2]})
    figure = figures.assignments(fixed, learned, SQUARE, list("abcd"), title="t")
    assert len(render(figure).axes) == 5


@pytest.mark.parametrize("names", [["one"], ["one", "two"]])
def test_large_margins(render, names):
    heads = {name: experiments.random_classifier(20, 4, seed=i) for i, name in enumerate(names)}
    samples = experiments.distances(heads, sample=10)
    table = over(experiments.certificate, classifier=heads)
    assert len(render(figures.large_margins(samples, table)).axes) == 2
