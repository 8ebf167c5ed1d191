"""Tables of result 3: what the notebook asserts, at other settings than the notebook's."""

import numpy as np
import pytest

from nclib.results.multi_label import experiments as study
from nclib.results.multi_label import theory

CASE = {"K": 3, "counts": {1: 4, 2: 1}, "lambda_w": 2e-3, "lambda_h": 5e-4}


def test_closed_form_check():
    table = study.closed_form_check([CASE, CASE | {"reduction": "mean", "d": 2}], seed=5)
    errors = table.drop(columns=["K", "n", "reduction", "d", "value"]).abs()
    assert float(errors.max().max()) < 1e-10
    assert table["d"].tolist() == [3, 2]


def test_margin_sweep_and_curve():
    sweep = study.margin_sweep([0.003, 0.05, 0.9], K=3, counts={2: 2, 1: 1}, reduction="mean")
    assert (sweep["margin"] - sweep["theory"]).abs().max() < 1e-4
    pairs = sweep[sweep["m"] == 2]
    assert np.allclose(pairs["scale"][:4], (pairs["margin"] / pairs["margin_1"])[:4])
    curve, threshold = study.margin_curve([0.003, 0.05, 0.9], K=3, counts={2: 2, 1: 1})
    assert 0.05 < threshold < 0.9
    assert (curve.query("strength == 0.9")["margin"] == 0).all()
    assert (curve.query("strength < 0.1")["margin"] > 0).all()
    for factor, zero in ((0.99, False), (1.01, True)):
        case = {"K": 3, "counts": {1: 1, 2: 2}}
        decay = study.decays(3, case["counts"], factor * threshold)
        assert theory.optimum(**case, **decay).collapsed is zero


def test_scale_table():
    curves, measured = study.scale_table(K=5, multiplicities=(2,))
    assert set(curves["reduction"]) == {"sum", "mean"}
    assert (measured["scale"] - measured["predicted"]).abs().max() < 1e-4


def test_start_gaps_and_saddles():
    gaps = study.start_gaps([1, 2, 4], starts=4, **CASE)
    assert gaps.query("d >= 2")["gap"].abs().max() < 1e-10
    assert gaps.query("d == 1")["gap"].min() > 1e-3
    saddles = study.saddle_table([1], starts=2, **CASE)
    assert (saddles["predicted"] - saddles["measured"]).abs().max() < 1e-10
    assert saddles["predicted"].max() < 0
    assert saddles["excess"].min() > 0


def test_threshold_check():
    table = study.threshold_check([0.9, 1.1], K=3, counts={1: 1, 2: 3})
    assert table["value_gap"].abs().max() < 1e-11
    assert table.query("factor < 1")["gain"].min() > 1e-5
    assert (table["weight_norm"] - table["weight_theory"]).abs().max() < 1e-4


def test_multiplicity_imbalance_is_exact():
    table = study.multiplicity_imbalance([0.05, 20], K=4, total=100)
    assert table["nc2"].max() < 1e-10
    assert table["degrees"].max() < 1e-7
    assert (table["scale"] - table["scale_theory"]).abs().max() < 1e-9
    assert table["ratio"].tolist() == pytest.approx([0.05, 20], rel=0.1)


def test_imbalance_of_balanced_data_is_none():
    table = {(k,): 20 for k in range(4)} | {(i, j): 5 for i in range(4) for j in range(i + 1, 4)}
    summary, sets = study.imbalance(table, K=4, newton=2)
    assert summary["nc2"] < 1e-8
    assert summary["degrees"] < 1e-6
    assert summary["degrees_weight"] < 1e-6
    assert abs(summary["certificate"]) < 1e-10
    assert np.ptp(summary["mean_norms"]) < 1e-8
    assert sets["samples"].tolist() == [5] * 6


def test_step_imbalance():
    """Rows L13: classifier rows leave the tag-wise average, single-label means hardly do."""
    table = study.step_table(4, head=300, tail=5, pairs=20)
    assert table[(0,)] == 300
    assert table[(3,)] == 5
    assert len(table) == 10
    summary, _ = study.imbalance(table, K=4)
    assert summary["nc2"] > 0.05
    assert summary["degrees"] < summary["degrees_weight"] / 2
    assert abs(summary["certificate"]) < 1e-8


def test_svhn_counts():
    table = study.svhn_table()
    pairs = {S: n for S, n in table.items() if len(S) == 2}
    assert len(pairs) == 36
    assert sum(pairs.values()) == 16329
    assert pairs[0, 1] == 954
    assert pairs[7, 8] == 165
    assert table[4,] == 543


def test_concept_path():
    points, means, values, exact = study.concept_path((10, 1500), seed=3)
    assert set(points["step"]) == {10, 1500}
    assert len(points) == 240
    late = means[means["step"] == 1500].set_index("set")[["x", "y"]]
    for pair in ("1+2", "1+3", "2+3"):
        a, b = pair.split("+")
        expected = exact.scales[2] * (late.loc[a] + late.loc[b])
        assert np.allclose(late.loc[pair], expected, rtol=0, atol=1e-4)
    assert late.loc["1", "x"] == pytest.approx(0, abs=1e-9)
    assert late.loc["1", "y"] > 0
    assert late.loc["2", "x"] > 0
    assert -1e-12 < values[-1] < 1e-8
