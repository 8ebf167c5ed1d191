"""Figures are drawn from tables alone: they come back with the expected panels and text."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from nclib.results.large_class import codes
from nclib.results.large_class import energies as code_energies
from nclib.results.large_class import experiments as code_tables
from nclib.results.large_class import figures as plots


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def history(epochs=(0, 1, 5), temperatures=(1.0, 0.2), seeds=(0, 1)):
    rng = np.random.default_rng(0)
    rows = [
        {"epoch": e, "temperature": t, "seed": s, "d": 3}
        for e in epochs
        for t in temperatures
        for s in seeds
    ]
    table = pd.DataFrame(rows)
    for column in ("gnc1", "gnc2", "gnc2_ratio", "gnc3", "test_accuracy", "etf_error"):
        table[column] = rng.uniform(0.1, 1, len(table))
    return table


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(plt.Text))


def test_gallery_draws_hull_edges_without_face_diagonals():
    cube = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    assert len(plots._hull_edges(cube)) == 12
    assert len(plots._hull_edges(codes.icosahedron().numpy())) == 30
    table = code_tables.vertices({"ring": codes.polygon(5), "ico": codes.icosahedron()})
    figure = plots.gallery(table)
    assert len(figure.axes) == 2 and "ico" in texts(figure)


def test_known_margins():
    figure = plots.known_margins(code_tables.known_margins([2, 3, 4], largest=14))
    assert len(figure.axes) == 2 and "proven" in texts(figure)


def test_cold_limit():
    table = code_tables.cold_limit({"ico": codes.icosahedron()}, [0.1, 0.05])
    assert len(plots.cold_limit(table).axes) == 3


def test_phases():
    families = map(code_energies.orthogonal_simplices, ([2, 4], [3, 3]))
    energies = code_tables.family_energies(families, [0.3, 0.6]).assign(panel="(6, 4)")
    minima = pd.DataFrame({"temperature": [0.1, 1.0], "margin_ratio": [0.95, 0.9]})
    figure = plots.phases(energies, {"(6, 4)": 0.5076}, minima, 0.875)
    assert len(figure.axes) == 2 and "0.5076" in texts(figure)


def test_training_and_temperature():
    table = history()
    figure = plots.training(table, reference=0.9, references=[(0.2, "random")], title="T")
    assert len(figure.axes) == 4 and "random" in texts(figure)
    wide = table.assign(random=0.2, reference=0.8)
    figure = plots.choices(table, wide, random=0.2, floor=0.1)
    assert len(figure.axes) == 4 and "floor" in texts(figure)


def test_assignments_and_classifiers():
    orders = {"1 opposite 0": (0, 2, 1, 3), "2 opposite 0": (0, 1, 2, 3)}
    rows = [{"assignment": a, "seed": s, "test_accuracy": 0.5} for a in orders for s in (0, 1)]
    figure = plots.assignments(pd.DataFrame(rows), orders, list("abcd"))
    assert "b opposite a" in texts(figure) and "c opposite a" in texts(figure)
    compared = history().assign(classifier="learned", parameters=10)
    more = compared.assign(classifier="class means, momentum 0.9")
    figure = plots.classifiers(pd.concat([compared, more]))
    assert len(figure.axes) == 3 and "CMF 0.9" in texts(figure)


def test_large_margins_and_language():
    heads = {"random": code_tables.random_classifier(30, 4), "ico": codes.icosahedron()}
    samples, table = code_tables.distances(heads), code_tables.certificates(heads)
    figure = plots.large_margins(samples, table)
    assert "solved exactly" in texts(figure)
    spoken = (
        history()
        .drop_duplicates("epoch")
        .assign(head="linear", gnc3_centered=0.5, agreement=0.4, gnc2_random=0.3)
    )
    assert "random head" in texts(plots.language(spoken))
