"""The tables of result 2: columns, and numbers that can be had another way."""

import math

import numpy as np
import pytest

from nclib.results.normalized import experiments as sphere_study
from nclib.results.normalized import sphere, theory


def test_convergence_ends_at_the_closed_forms():
    history, summary = sphere_study.convergence(4, 2, 5, 1.5, 5e-3, 2e-3)
    assert set(summary["problem"]) == {"normalized, τ = 1.5", "regularized"}
    assert summary["gap"].abs().max() < 1e-12
    assert summary["nc2"].max() < 1e-6
    newton = summary.query("method == 'trust-region'")
    assert newton["nc2"].max() < 1e-9
    assert (history.groupby(["problem", "method"])["gap"].last() < 1e-12).all()


def test_race_counts_in_tens_and_says_when_it_is_not_won():
    entries = {
        "quick": (lambda y: sphere.normalized(y, 2.0), 3.0),
        "slow": (lambda y: sphere.normalized(y, 2.0), 1e-4),
        "too long": (lambda y: sphere.regularized(y, 5e-4, 1e-4), 1e6),
    }
    table = sphere_study.race(4, 2, 5, entries, steps=200).set_index("problem")["iterations"]
    assert table["quick"] % 10 == 0
    assert table["quick"] < 200
    assert table["slow"] == math.inf
    assert math.isnan(table["too long"])


def test_random_points_are_above_the_minimum():
    assert sphere_study.random_gaps(3, 2, 1.0, samples=500) > 0


def test_spectrum_and_rates_agree_with_theory():
    table = sphere_study.spectrum(4, 2, 4, 2.0)
    assert (table["measured"] - table["theory"]).abs().max() < 1e-13
    table = sphere_study.rates(5, 2, 6, [0.3, 0.7])
    assert (table["measured"] - table["predicted"]).abs().max() < 1e-5
    curve = sphere_study.rate_theory(5, 2, 6, [0.3, 0.7])
    assert (curve["predicted"] - table["predicted"]).abs().max() == 0


def test_block_steps():
    table = sphere_study.block_steps(4, 5, 2.0, [1, 10]).set_index(["n", "block"])["iterations"]
    assert table[1, True] == table[1, False]
    assert table[10, True] <= 1.5 * table[1, True]
    assert table[10, False] > 3 * table[10, True]


def test_temperature():
    table = sphere_study.temperature_theory([(4, 2, 5)], [0.5, 2.0])
    assert table["kappa"].tolist() == [theory.condition_number(4, 2, 5, s) for s in (0.5, 2.0)]
    budget = sphere_study.temperature_budget(6, 3, 8, [0.1, 2.0, 12.0], steps=150)
    assert budget["nc2"].idxmin() == 1


def test_saddles():
    table = sphere_study.saddles(4, 2, 6, 1.0)
    assert (table["measured"] - table["predicted"]).abs().max() < 1e-13
    assert (table["value"] - table["loss"]).abs().max() < 1e-14
    assert (table["certificate"] < 0).all()
    assert (table["negative"] > 0).all()
    assert len(sphere_study.sign_patterns(3, 4, 1.0)) == 64
    found = sphere_study.critical_points(3, 4, 1.0, starts=20)
    assert (found.query("gap > 1e-9")["low"] < -0.28).all()


def test_collapse_and_equal_classifiers():
    table = sphere_study.collapse_angles(3, 2, (2, 4), 1.0, [0.0, 1.0, math.pi / 2])
    assert (table["measured"] - table["predicted"]).abs().max() < 1e-13
    table = sphere_study.equal_classifiers([(3, 2, 4)], [1.0, 50.0])
    assert table["gradient"].max() < 1e-14
    assert (table["low"] < 0).all()


def test_escapes_grow_at_the_predicted_rate():
    table = sphere_study.escapes(4, 3, 6, 2.0, [1e-7], steps=50)
    grown = table["gradient_norm"].iloc[45] / table["gradient_norm"].iloc[35]
    assert abs(grown ** (1 / 10) / table["growth"].iloc[0] - 1) < 1e-4


def test_spurious_minimum_and_its_lift():
    table, raw = sphere_study.starts(3, 1, (2, 3), 12.0, starts=40)
    assert (table.query("d == 3")["value"] < 1e-7).all()
    index = int((raw[2].values > 0.05).nonzero()[0])
    lifted = sphere_study.lift(raw[2], index, 12.0)
    assert abs(lifted["value"] - 0.4569019405) < 1e-8
    assert lifted["eigenvalues"][0] > -1e-9
    assert abs(lifted["lifted"] - lifted["certificate"]) < 1e-9


def test_antipodes():
    table = sphere_study.antipodes(4, 2, [1.0, 3.0, 5.0])
    assert (table["measured"] - table["predicted"]).abs().max() < 1e-13
    assert (np.sign(table["measured"].round(12)) == [-1, 0, 1]).all()
    assert (table["across"] < 0).all()


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_maps_contain_the_minimum(scale):
    table = sphere_study.circle_map(3, scale, points=121)
    assert abs(table["value"].min() - theory.optimum(3, scale).value) < 1e-12
    wells = sphere_study.feature_wells(3, [scale])
    assert abs(wells["value"].min() - theory.optimum(3, scale).value) < 1e-12
    best = theory.hybrid_optimum(3, 0.05)
    radial = sphere_study.radial_map(3, 0.05, points=241)
    assert 0 <= radial["value"].min() - best.value < 1e-3
    assert abs(radial.loc[radial["value"].idxmin(), "radius"] - best.feature_norm) < 0.03


def test_dimensions_and_codes():
    table = sphere_study.dimensions([4], 2.0, starts=4).set_index("d")
    assert table.loc[2, "gap"] > 1e-2
    assert table.loc[3:, "gap"].abs().max() < 1e-12
    found = sphere_study.codes([("square", theory.polygon(4), 2.0)], starts=4).iloc[0]
    assert abs(found["found"] - theory.polygon_value(4, 2.0)) < 1e-12


def test_imbalance_and_nonnegative():
    table, grams = sphere_study.imbalance([([5, 3, 1], 5, 2.0)], starts=4)
    assert abs(table["value"].iloc[0] - 0.0894508790) < 1e-9
    assert table["certificate"].iloc[0] > -1e-9
    assert abs(float(grams[0][0, 0]) - 1) < 1e-12
    table = sphere_study.nonnegative([(3, 2, 4, 2.0)])
    assert table["gap"].abs().max() < 1e-9
    assert table["above_etf"].min() > 0.05
    assert table["orthonormal"].max() < 1e-4


def test_nonnegative_goes_on_while_it_is_stuck_and_says_by_how_much(monkeypatch):
    minimize, calls = sphere_study.sphere.minimize, []

    def first_stuck(problem, *start, **options):
        calls.append(start)
        return minimize(problem, *start, **options | ({"max_iter": 1} if len(calls) == 1 else {}))

    monkeypatch.setattr(sphere_study.sphere, "minimize", first_stuck)
    table = sphere_study.nonnegative([(3, 1, 3, 2.0)])
    assert len(calls) > 1
    assert table["above"].max() < 1e-9
    calls.clear()
    table = sphere_study.nonnegative([(3, 1, 3, 2.0)], starts=1)
    assert table["above"].min() > 1e-3
    assert table["above"][0] == pytest.approx(table["gap"][0], abs=1e-12)


def test_matched_logits():
    table = sphere_study.matched_logits(4, 2, 5, 3.0).set_index("problem")
    assert table["difference"].max() < 1e-6
    low, high = theory.curvature_range(4, 2, 5, 3.0)
    assert abs(table.loc["normalized", "low"] / low - 1) < 1e-6
    assert abs(table.loc["normalized", "high"] / high - 1) < 1e-6
    # weight decay curves the within-class directions by lambda_h
    lambda_h = theory.matched_penalties(4, 2, 3.0).lambda_h
    assert abs(table.loc["regularized", "low"] / lambda_h - 1) < 1e-5


def test_derivatives():
    errors = sphere_study.derivative_errors([3, 1, 2], 3, 2.0)
    assert errors["gradient"] < 1e-10
    assert errors["hessian"] < 1e-7
    assert errors["asymmetry"] < 1e-15
