"""Tables of result 5: small runs against the closed forms and against by-hand numbers."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from nclib.metrics import frame_distances
from nclib.results.extended_ufm import experiments as study
from nclib.results.extended_ufm import theory
from nclib.results.extended_ufm.ufm import ExtendedUFM


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("M", [1, 2, 4])
def test_equal_decays_invert_kappa(M):
    lam = study.equal_decays(0.17, M, K=5, n=3)
    found = theory.kappa(num_classes=5, n=3, lambdas=[lam] * M, lambda_h=lam)
    assert found == pytest.approx(0.17)


def test_check_closed_form_sees_agreement_and_disagreement():
    good = ExtendedUFM([2] * 3, [0.02, 0.03], 0.02, widths=4)
    row = study.check_closed_form([good], restarts=6).iloc[0]
    assert row[["gap", "gram", "logits", "of", "nc3", "norm"]].abs().max() < 1e-6
    trapped = study.check_closed_form([good], restarts=2, init_scale=0.001).iloc[0]
    assert trapped["gap"] > 0.01
    assert trapped["gram"] > 0.1


def test_best_start_goes_on_while_it_is_stuck_and_says_by_how_much(monkeypatch):
    problem = ExtendedUFM([2] * 3, [0.02, 0.03], 0.02, widths=4)
    zero = 0.5 - problem.optimum().value  # tiny values end at zero
    _, above = study.best_start(problem, tries=2, restarts=2, init_scale=0.001)
    assert above == pytest.approx(zero, abs=1e-9)
    solve, scales, seeds = study.solve, iter([0.001, 0.5, 0.5]), []

    def first_tiny(problem, *, seed, **options):
        seeds.append(seed)
        return solve(problem, seed=seed, **options | {"init_scale": next(scales)})

    monkeypatch.setattr(study, "solve", first_tiny)
    found, above = study.best_start(problem, restarts=8, seed=3)
    assert abs(above) < 1e-12
    assert found.best.value == pytest.approx(problem.optimum().value, abs=1e-12)
    assert len(seeds) == len(set(seeds)) == 2  # other starts, and no more of them than needed


def test_joint_descent_follows_the_gradient_of_all_variables():
    problem = ExtendedUFM([2] * 2, [0.05], 0.05, widths=3)
    table = study.joint_descent(problem, lr=0.1, steps=4, starts=2, init_scale=0.3, seed=1)
    assert table.groupby("start")["step"].apply(list).tolist() == [[0, 4], [0, 4]]
    start = problem.start(0.3, generator=gen(1), batch=(2,))
    point = {name: tensor[1].clone().requires_grad_() for name, tensor in start.items()}
    for _ in range(4):
        slopes = torch.autograd.grad(problem.objective(**point), list(point.values()))
        with torch.no_grad():
            for tensor, slope in zip(point.values(), slopes, strict=True):
                tensor -= 0.1 * slope
    classes = point["features"].detach().reshape(2, 2, 3)
    means = classes.mean(1)
    between = (means - means.mean(0)).square().sum(1).mean()
    within = (classes - means[:, None]).square().sum(2).mean()
    found = table.query("start == 1 and step == 4")["nc1"].item()
    assert found == pytest.approx(float(within / between))


def test_layer_duality_pairs_every_level_with_the_rest_of_the_net():
    problem = ExtendedUFM([2] * 3, [0.02, 0.03], 0.02, widths=4)
    made = theory.realise(problem.optimum(), widths=4, generator=gen())
    assert max(study.layer_duality(problem, made).values()) < 1e-12
    made["weight_1"] = (
        made["weight_1"] @ torch.linalg.qr(torch.randn(4, 4, generator=gen())).Q.double()
    )
    found = study.layer_duality(problem, made)
    assert found["H1"] > 0.1  # H_1 no longer matches W_2 W_1
    relu = ExtendedUFM([2] * 3, [0.02, 0.03], 0.02, relu=True, widths=6)
    point = theory.relu_point(torch.eye(3), n=2, lambdas=[0.02, 0.03], lambda_h=0.02, widths=6)
    assert list(study.layer_duality(relu, point)) == ["H2"]


def test_dynamics_records_every_seed_and_layer():
    problem = ExtendedUFM([3] * 3, [0.02, 0.02], 0.02, relu=True, widths=12)
    table, final = study.dynamics(problem, lr=0.5, steps=60, seeds=2, record=5)
    assert set(table["seed"]) == {0, 1}
    assert set(table["layer"]) == {"H1", "W1H1", "H2"}
    last = table[(table["step"] == 60) & (table["seed"] == 1)].set_index("layer")
    value = float(problem.objective(**final[1])) - problem.optimum().value
    assert last.loc["H2", "excess"] == pytest.approx(value)
    hidden = problem.layers(final[1])["H2"]
    expected = frame_distances(study.class_means(problem, hidden))["of"]
    assert last.loc["H2", "of"] == pytest.approx(expected)
    assert last["nc3"].isna().tolist() == [True, True, False]


def test_slopes_and_falls_by_hand():
    steps = np.arange(0, 50, 5)
    table = pd.DataFrame({"step": steps, "seed": 0, "layer": "H1", "of": 3 * np.exp(-0.2 * steps)})
    assert study.slopes(table, "of", start=10, end=40)["H1"] == pytest.approx(-0.2)
    fall = study.fall_factors(table, "of", start=25)
    assert fall.loc[0, "H1"] == pytest.approx(math.exp(0.2 * 20))
    two = pd.concat([table, table.assign(seed=1, of=2.0)])
    assert study.spread_of(two, "of", "H1") == pytest.approx(2 - 3 * math.exp(-9))


def test_gram_table_holds_cosines():
    table = study.gram_table({"a": torch.tensor([[2.0, 0.0], [1.0, 1.0]])})
    cosines = table.pivot(index="row", columns="column", values="cosine").to_numpy()
    np.testing.assert_allclose(cosines, [[1, math.sqrt(0.5)], [math.sqrt(0.5), 1]], rtol=1e-6)


def test_phase_tables_agree_with_each_other():
    curves = study.phase_curves([1, 2], points=7)
    assert (curves["value"] <= 0.5 + 1e-12).all()
    sweeps = study.phase_sweeps([2], K=2, n=1, width=3, points=12)
    up = sweeps[sweeps["direction"] == "up"]
    expected = [theory.local_scale(k, 2) for k in up["kappa"]]
    expected = [0.0 if math.isnan(u) else u for u in expected]
    np.testing.assert_allclose(up["scale"], expected, atol=1e-4)
    assert sweeps[sweeps["direction"] == "down"]["scale"].abs().max() < 1e-6


def test_threshold_table_changes_sign():
    table = study.threshold_table([1, 2], [0.98, 1.02], K=2, n=2, width=3)
    assert ((table["value"] < 0.5 - 1e-6) == (table["factor"] < 1)).all()


def test_ladder_counts_ranks():
    table = study.ladder_table([1, 2], [0.01, 0.6], kappa=0.2, K=2, n=2, width=3, runs=5)
    assert len(table) == 20
    assert table["gap"].max() < 1e-9
    assert (table.query("M == 1")["rank"] == 2).all()
    assert (table.query("M == 2 and init_scale < 0.1")["rank"] == 0).all()
    levels = study.ladder_levels([1, 2], kappa=0.2, K=2, n=2)
    assert levels[2][0] == pytest.approx(0.5)
    assert levels[1] == sorted(levels[1], reverse=True)


def test_landscape_table_matches_its_theory():
    table = study.landscape_table([1, 2], kappa=0.2, K=2, n=2, width=3)
    assert (table["index"] == table["index_theory"]).all()
    assert (table["nullity"] == table["nullity_theory"]).all()
    saddles = table.query("M == 1 and rank < 2")
    np.testing.assert_allclose(saddles["lowest"], saddles["curvature"], atol=1e-10)
    assert (saddles["returned"] < -0.01).all()
    assert table.query("M == 2")["returned"].abs().max() < 1e-9


def test_bias_table_measured_equals_theory():
    setting = {"kappa": 0.2, "K": 3, "n": 2, "width": 4}
    closed = study.bias_table([0.1, 1.0], [1], **setting, measure=False)
    found = study.bias_table([0.1, 1.0], [1], **setting, measure=True)
    columns = ["bias", "common", "mean", "of", "etf"]
    np.testing.assert_allclose(found[columns], closed[columns], atol=1e-6)
    assert closed["mean"][0] < 1e-15
    assert closed["mean"][1] > 0.1
    assert closed["bias"][0] == pytest.approx(1 / (1.1 * 3))
    maps = study.bias_maps([0.1, 1e6], **setting)
    off = maps[maps["row"] != maps["column"]].groupby("name", sort=False)["cosine"].mean().tolist()
    assert off == pytest.approx([-0.5, 0.0], abs=1e-5)


def test_imbalance_table_measured_equals_theory():
    counts = [6, 3, 1]
    closed = study.imbalance_table(counts, [1], lam=0.01, width=5, measure=False)
    found = study.imbalance_table(counts, [1], lam=0.01, width=5, measure=True)
    columns = ["feature", "weight", "logit"]
    np.testing.assert_allclose(found[columns], closed[columns], atol=1e-6)
    assert closed["n_k"].tolist() == counts * 2


def test_bottleneck_value_is_unique_and_geometry_is_not():
    problem = ExtendedUFM([2] * 3, [0.05], 0.05, widths=2)
    table = study.value_and_geometry(problem, starts=3)
    assert np.ptp(table["value"]) < 1e-12
    assert np.ptp(table["etf"]) > 1e-4


def test_surviving_sizes():
    problem = ExtendedUFM([40, 20, 4, 1], [0.012] * 2, 0.012, widths=6)
    sizes, above = study.surviving_sizes(problem, restarts=12)
    assert sizes == [40, 20, 4]
    assert abs(above) < 1e-12


def test_flow_and_perturbation_tables():
    paths = study.flow_table([(0.05, 0.01)], K=2, n=2, d=3, time=1.0, points=6)
    assert (paths["nc1"].diff().dropna() < 0).all()
    assert (paths["within"].diff().dropna() < 0).all()
    assert (paths["between"].diff().dropna() > 0).all()
    tied = study.perturbation_table([0.1, 10.0], K=2, n=3, d=3, lam=0.02)
    assert (tied["nc1"] < tied["anchor"]).all()
    assert tied["nc1"].is_monotonic_increasing


def test_relu_shapes_and_scale_free_minima():
    shapes = {"frame": torch.eye(3).double(), "acute": 0.7 * torch.eye(3).double() + 0.3}
    table = study.relu_shapes(shapes, n=2, lambdas=[0.01, 0.02], lambda_h=0.01, widths=6)
    assert abs(table["excess"][0]) < 1e-13
    assert table["excess"][1] > 1e-3
    assert table["of"][0] < 1e-12
    ratios = study.scale_free_minima([2, 4], restarts=1, max_iter=150)["ratio"]
    assert ratios.between(1 - 1e-9, 1.05).all()


def test_low_rank_tables():
    ratios = study.chain_ratios([4], [3, 4], kappa_share=0.2)
    assert ratios["ratio"].tolist() == pytest.approx(ratios["cost"].tolist(), rel=2e-3)
    assert (ratios["ratio"] < 1).tolist() == [False, True]
    assert study.chain_gap(4, [0.01, 0.02, 0.01], 0.01) < 1e-13
    refined = study.refined_table(
        [theory.segment_chain(4)], width=6, kappa_share=0.25, max_iter=120
    )
    assert refined["ratio"][0] < refined["explicit"][0] < 0.99
    found, spectra = study.depth_race(2, 3, width=6, kappa_share=0.3, restarts=3, max_iter=150)
    assert found.min() >= 1 - 1e-9  # claim 5.E19
    assert set(spectra["layer"]) == {"H1", "H2", "H3"}
    assert spectra["value"].max() == 1
