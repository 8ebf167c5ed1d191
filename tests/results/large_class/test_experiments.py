"""Tables behind the figures of result 4."""

import numpy as np
import pytest
import torch

from nclib.results.large_class import codes, theory
from nclib.results.large_class import energies as code_energies
from nclib.results.large_class import experiments as code_tables


def test_vertices_mark_rattlers():
    table = code_tables.vertices({"square": codes.polygon(4), "ico": codes.icosahedron()})
    assert table.groupby("code").size().to_dict() == {"ico": 12, "square": 4}
    assert not table["rattler"].any()
    np.testing.assert_allclose(table[["x", "y", "z"]].pow(2).sum(axis=1), 1)
    lopsided = code_tables.vertices({"c": codes.polygon(8)[[0, 1, 2, 5]]})
    assert lopsided["rattler"].tolist() == [True, False, True, True]


def test_known_margins():
    table = code_tables.known_margins([2, 3], largest=12)
    assert len(table) == 22
    row = table.query("d == 3 and K == 12").iloc[0]
    assert row["margin"] == pytest.approx(1 - 5**-0.5) and row["status"] == "tabulated"
    assert row["lower"] == theory.lower_bound(12, 3) and row["upper"] == theory.upper_bound(12, 3)


def test_solved_finds_the_icosahedron_from_random_starts():
    row = code_tables.solved([(12, 3)], starts=8).iloc[0]
    assert row["margin"] == pytest.approx(1 - 5**-0.5, abs=1e-9)
    assert row["angle_margin"] == pytest.approx(row["margin"], abs=1e-9)
    assert row["duality_gap"] < 1e-9 and row["rattlers"] == 0
    assert row["hard_margin"] == pytest.approx(row["margin"], abs=1e-9)


def test_cold_limit_of_the_icosahedron():
    table = code_tables.cold_limit({"ico": codes.icosahedron()}, [0.05, 0.02])
    np.testing.assert_allclose(table["margin_ratio"], 1, atol=1e-9)
    np.testing.assert_allclose(table["slack"], 0, atol=1e-6)
    np.testing.assert_allclose(table["value_limit"], np.log(5), atol=1e-9)
    assert (table["scaled_low"] <= table["scaled"]).all()
    assert (table["scaled"] <= table["scaled_high"]).all()


def test_global_minima_of_a_simplex():
    row = code_tables.global_minima([(4, 3)], [0.5], starts=4, samples=2).iloc[0]
    assert row["log_ce"] == pytest.approx(code_energies.simplex(4).log_energy(0.5), abs=1e-10)
    assert row["margin_ratio"] == pytest.approx(1, abs=1e-6)
    assert row["bracket_violation"] < 1e-9 and row["within_class"] < 1e-12


def test_family_energies():
    families = [code_energies.simplex(3), code_energies.polygon(4)]
    table = code_tables.family_energies(families, [0.1, 0.2])
    assert len(table) == 4
    assert table["scaled"].iloc[1] == pytest.approx(0.2 * families[0].log_energy(0.2))


def test_moving_a_rattler_costs_nothing():
    lopsided = codes.polygon(8)[[0, 1, 2, 5]]
    moved = code_tables.random_against_rattlers(lopsided)
    assert moved["rattler"] == 0 and moved["tight"] > 1e-4
    assert np.isnan(code_tables.random_against_rattlers(codes.polygon(5))["rattler"])


def test_two_orthogonal_families():
    random, explicit = code_tables.two_orthogonal_families(20)
    assert random <= 1 + 1e-9
    np.testing.assert_allclose(explicit, 1, atol=1e-12)


def test_large_tables():
    heads = {"random": code_tables.random_classifier(50, 5), "E8": codes.e8_roots()}
    samples = code_tables.distances(heads, sample=20)
    assert samples.groupby("classifier").size().to_dict() == {"E8": 20, "random": 20}
    table = code_tables.certificates(heads).set_index("classifier")
    assert table.loc["E8", "lower"] == pytest.approx(0.5, abs=1e-6)
    exact = theory.hull_projections(heads["random"]).distance.min()
    assert table.loc["random", "lower"] <= exact <= table.loc["random", "upper"] + 1e-12
    assert torch.equal(code_tables.random_classifier(50, 5), heads["random"])


def test_reference():
    assert code_tables.reference(12, 3) == theory.known_margin(12, 3)
    assert code_tables.reference(100, 10) == theory.LOWER_BOUNDS[100, 10]
    found = code_tables.reference(30, 6)  # not in any table
    assert 0.6 < found < theory.margin_range(30, 6)[1]


def test_gold_cosines():
    assert code_tables.largest_cosine_of_gold(900, 40, sample=50) == pytest.approx(7 / 31)
