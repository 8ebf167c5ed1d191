"""Tables of result 3: optimiser against closed form, landscape, imbalance, the concept path."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch

from nclib import table
from nclib.results.multi_label import experiments as study
from nclib.results.multi_label import theory

CASE = {"K": 3, "counts": {1: 4, 2: 1}, "lambda_w": 2e-3, "lambda_h": 5e-4}
CASES = [
    CASE,
    CASE | {"reduction": "mean", "d": 2},
    {"K": 4, "counts": {2: 2, 3: 1}, "lambda_w": 2e-3, "lambda_h": 1e-3, "d": 6},
    {"K": 5, "counts": {1: 1, 3: 1, 5: 2}, "lambda_w": 1e-3, "lambda_h": 1e-3,
     "reduction": "mean", "d": 4},
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_optimisation_from_a_random_start_meets_the_closed_form(case):
    """Rows L2-L8, L17, one variable a sample; nothing in the optimiser knows the formulas."""
    row = study.closed_form(**case, seed=5)
    for name in ("n", "reduction", "K", "d", "value"):
        row.pop(name)
    assert max(map(abs, row.values())) < 1e-9, row
    assert abs(row["value_gap"]) < 1e-13


def test_scale_of_networks_over_the_curve():
    """Row L18: at minima that an optimiser found it is 1."""
    for reduction in ("sum", "mean"):
        setting = {"K": 4, "counts": {1: 2, 2: 1}, "reduction": reduction}
        found = table.over(partial(study.found_margins, **setting), strength=[0.003, 0.02])
        rows = found[found["m"] == 2].rename(columns={"scale": "scale_2"})
        moved = rows.assign(scale_2=rows["scale_2"] * [1.0, 0.95])
        ratio = study.scale_ratio(moved, K=4, reduction=reduction)
        assert ratio.tolist() == pytest.approx([1, 0.95], abs=1e-4)
    assert (study.scale_ratio(rows, K=4, reduction="sum") - 1).abs().min() > 0.05  # another model


def test_decays_are_those_of_the_text():
    assert study.decays(4, {1: 2, 2: 1}, 0.3) == {"lambda_w": 0.3, "lambda_h": 0.3 / 14}
    sets, generator = {(0,): 3, (1,): 1, (0, 1): 4}, torch.Generator().manual_seed(0)
    W, H = (torch.randn(n, 2, generator=generator).double() for n in (2, 3))
    H = H.repeat_interleave(torch.tensor([3, 1, 4]), 0)
    decay = study.official_decay(sets)
    found = decay["lambda_w"] * W.square().sum() + decay["lambda_h"] * H.square().sum()
    expected = 5e-4 / 2 * W.square().sum() + 0.128 * H.square().sum(1).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_found_and_exact_margins():
    setting = {"K": 3, "counts": {2: 2, 1: 1}, "reduction": "mean"}
    sweep = table.over(partial(study.found_margins, **setting), strength=[0.003, 0.05, 0.9])
    assert (sweep["margin"] - sweep["theory"]).abs().max() < 1e-4
    pairs = sweep[sweep["m"] == 2][:2]
    assert np.allclose(pairs["scale"], pairs["margin"] / pairs["margin_1"])
    assert (pairs["scale"] - pairs["predicted"]).abs().max() < 1e-4
    setting = {"K": 3, "counts": {2: 2, 1: 1}}
    threshold = study.zero_strength(**setting)
    for factor, zero in ((0.99, True), (1.01, False)):
        rows = study.exact_margins(factor * threshold, **setting)
        assert all((row["margin"] > 0) is zero for row in rows)


def test_margins_leave_out_full_sets():
    logits = torch.tensor([[2.0, 0.0, -1.0], [1.0, 1.0, 1.0]])
    assert theory.logit_margins(logits, torch.tensor([[1, 0, 0], [1, 1, 1]])) == {1: 2.5}


def test_starts_and_saddles():
    """Rows L7, L10; the predicted curvature against finite differences of the value, too."""
    gaps = table.over(partial(study.start_gaps, starts=4, **CASE), d=[1, 2, 4])
    assert gaps.query("d >= 2")["gap"].abs().max() < 1e-10
    assert gaps.query("d == 1")["gap"].min() > 1e-3
    saddles = table.over(partial(study.saddle, **CASE), rank=[1], start=[0, 1])
    assert (saddles["predicted"] - saddles["measured"]).abs().max() < 1e-10
    assert saddles["predicted"].max() < -1e-3
    assert saddles["excess"].min() > 0


def test_threshold():
    around = partial(study.threshold, K=3, counts={1: 1, 2: 3})
    found = table.over(around, reduction=["sum", "mean"], factor=[0.9, 1.1])
    assert found["value_gap"].abs().max() < 1e-11
    assert found.query("factor < 1")["gain"].min() > 1e-5
    assert found.query("factor > 1")["gain"].abs().max() < 1e-11


def test_single_numbers_meet_what_stands_beside_them():
    """Rows L4, L20, L21: found by an optimiser, or explicit, and exact."""
    for found, exact in (study.frozen_margins()["value"], study.single_factor()):
        assert found == pytest.approx(exact, rel=1e-11)
    assert study.self_duality(**CASE)["self_dual"] < 1e-9
    assert abs(study.nonnegative_alone(3)[1]["excess"]) < 1e-9


def test_multiplicity_imbalance_is_exact():
    found = table.over(study.multiplicity_imbalance, ratio=[0.05, 20])
    assert found["nc2"].max() < 1e-10
    assert found["degrees"].max() < 1e-7
    assert (found["scale"] - found["scale_theory"]).abs().max() < 1e-9
    assert found["ratio"].tolist() == pytest.approx([0.05, 20], rel=0.1)


def test_imbalance_of_balanced_data_is_none():
    sets = {(k,): 20 for k in range(4)} | {(i, j): 5 for i in range(4) for j in range(i + 1, 4)}
    summary, pairs, norms = study.imbalance(sets, K=4)
    (row,) = summary.to_dict("records")
    assert row["nc2"] < 1e-4
    assert row["degrees"] < 1e-2
    assert row["degrees_weight"] < 1e-2
    assert abs(row["certificate"]) < 1e-8
    assert np.ptp(norms, axis=0).max() < 1e-4
    assert pairs["samples"].tolist() == [5] * 6


def test_identities_hold_without_balance_and_only_at_critical_points():
    """Row L17 against its definition by autograd: h_S = -∂loss/∂z_S W / (2 λ_H N)."""
    sets = {(0,): 3, (1,): 7, (0, 2): 4, (1, 2, 3): 9, (3,): 2}
    problem = theory.from_table(sets, 5, K=4, lambda_w=1e-3, lambda_h=1e-3, reduction="mean")
    point, _ = study.solved(problem, newton=3)
    assert study.identities(problem, point) < 1e-10
    m = problem.targets.sum(1, keepdim=True)
    p = problem.logits(point).softmax(1)
    expected = (problem.targets / m - p) @ point["weight"] / (2 * 25 * 1e-3)
    assert torch.allclose(expected, point["features"], rtol=0, atol=1e-10)
    assert study.identities(problem, point | {"features": 1.01 * point["features"]}) > 1e-3


def test_step_imbalance():
    """Row L13: classifier rows leave the tag-wise average, single-label means hardly do."""
    whole = study.step_table()
    assert (whole[(0,)], whole[(9,)], whole[(0, 9)], len(whole)) == (3100, 31, 200, 55)
    sets = {(k,): 300 if k < 2 else 5 for k in range(4)}
    sets |= dict.fromkeys(combinations(range(4), 2), 20)
    summary, pairs, norms = study.imbalance(sets, K=4)
    (row,) = summary.to_dict("records")
    assert row["nc2"] > 0.05
    assert row["degrees"] < row["degrees_weight"] / 2
    assert row["short_rows"] < 0.95 < 1.05 < row["long_means"]
    assert norms["mean"][2:].min() == pytest.approx(row["long_means"] * norms["mean"][:2].max())
    assert norms["weight"][2:].max() == pytest.approx(row["short_rows"] * norms["weight"][:2].min())
    assert pairs["ratio"].mean() == pytest.approx(row["ratio"])
    assert abs(row["certificate"]) < 1e-8


def test_imbalanced_pairs_leave_the_tag_wise_average():
    """Row L12 at small size: not exact, W no longer an ETF, but certified optimal."""
    pairs = list(combinations(range(5), 2))
    sets = {(k,): 60 for k in range(5)} | {S: (30, 3)[i % 2] for i, S in enumerate(pairs)}
    (row,) = study.imbalance(sets, K=5)[0].to_dict("records")
    assert abs(row["certificate"]) < 1e-8
    assert row["nc2"] > 1e-2
    assert 0.05 < row["degrees"] < 10


def test_svhn_counts():
    pairs = {S: n for S, n in study.svhn_table().items() if len(S) == 2}
    assert len(pairs) == 36
    assert sum(pairs.values()) == 16329
    assert pairs[0, 1] == 954
    assert pairs[7, 8] == 165


def test_concept_path():
    points, means, end, scale = study.concept_path((10, 1500), seed=3)
    assert set(points["step"]) == {10, 1500}
    assert len(points) == 240
    late = means[means["step"] == 1500].set_index("set")[["x", "y"]]
    for pair in ("1+2", "1+3", "2+3"):
        a, b = pair.split("+")
        expected = scale * (late.loc[a] + late.loc[b])
        assert np.allclose(late.loc[pair], expected, rtol=0, atol=1e-4)
    assert late.loc["1", "x"] == pytest.approx(0, abs=1e-9)
    assert late.loc["1", "y"] > 0
    assert late.loc["2", "x"] > 0
    assert end["gap"].between(-1e-12, 1e-8).all()
    assert end["extent"].max() < 1e-4
    early = study.concept_path((10,), seed=3)[2].set_index("set")
    mean = means[means["step"] == 10].set_index("set")[["x", "y"]]
    far = (mean.loc["1+2"] - scale * (mean.loc["1"] + mean.loc["2"])).to_numpy()
    assert early["distance"]["1+2"] == pytest.approx(np.hypot(*far))
    assert early["distance"]["1"] == 0
    one = points.query("step == 10 and set == '2+3'")[["x", "y"]].to_numpy()
    assert early["extent"]["2+3"] == np.ptp(one, axis=0).max()
