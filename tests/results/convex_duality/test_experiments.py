import math

import numpy as np
import pytest
import torch

from nclib.results.convex_duality import experiments as study
from nclib.results.convex_duality import theory
from nclib.results.convex_duality import ufm as convex
from nclib.ufm import solve


@pytest.fixture
def whitened():
    generator = torch.Generator().manual_seed(0)
    return study.whitened(generator, 5, 7), study.gaussian(generator, 5, 2)


def test_inputs_of_the_studies(whitened):
    X, _ = whitened
    assert torch.allclose(X @ X.T, torch.eye(5, dtype=torch.float64))
    labels = study.class_labels([2, 1, 3])
    assert labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert study.one_hot(labels).sum(0).tolist() == [2, 1, 3]


def test_linear_tables(whitened):
    X, Y = whitened
    table = study.convex_linear([(4, 5, 2)], [0.3], seed=1)
    assert table["excess"].abs().max() < 1e-8 and table["gap"].max() < 1e-9
    measured = study.staircase(X, Y, [2, 3], [0.2], 2)
    curves, jumps = study.staircase_theory(Y, [2, 3], [0.2])
    np.testing.assert_allclose(measured["singular"], curves["singular"], atol=1e-4)
    assert (jumps["spinodal"] >= jumps["critical"]).all()
    s = torch.linalg.svdvals(Y)
    assert jumps.query("depth == 2")["critical"].tolist() == pytest.approx(s.tolist())
    best = study.whitened_linear(X, Y, 0.2, [3, 5], 3)
    assert best["converged"].all() and best["excess"].abs().max() < 1e-9
    trap = study.zero_trap(X, Y, 3)
    assert trap["value"] == pytest.approx(float(Y.square().sum()) / 2) and trap["excess"] > 1e-3
    # Depth 2 has no trap.
    assert study.zero_trap(X, Y, 2, share=0.5)["excess"] == pytest.approx(0, abs=1e-4)
    balanced = study.balanced_layers(X, Y, 0.2, [3])
    assert balanced.loc[0, "balance"] < 1e-5 and balanced.loc[0, "alignment"] > 1 - 1e-6


def test_imbalance_decays_at_the_predicted_rate(whitened):
    """Gradient flow forgets it like exp(-2 beta t)."""
    X, Y = whitened
    flow = study.merging_norms(X, Y, 0.3, 3, [0.5, 1.0, 2.0], lr=0.005, steps=400)
    one = flow.query("layer == 2 and time > 0")
    slope = np.polyfit(one["time"], np.log(one["balance"]), 1)[0]
    assert slope == pytest.approx(-0.6, rel=0.02)
    assert set(flow["layer"]) == {1, 2, 3} and flow["time"].max() == pytest.approx(2.0)


def test_interpolation_problem():
    """The eliminated last layer interpolates; the fixed norm is kept."""
    generator = torch.Generator().manual_seed(2)
    X, Y = study.gaussian(generator, 3, 5), study.gaussian(generator, 3, 3)
    problem = study.Interpolation(X, Y, 4, norm=1.3)
    point = problem.start(generator)
    layers = problem.layers(point)
    out = X
    for layer in layers:
        out = out @ layer.T
    assert torch.allclose(out, Y, atol=1e-8)
    assert [float(w.norm()) for w in layers[:2]] == pytest.approx([1.3, 1.3])
    expected = sum(float(w.square().sum()) for w in layers[-2:]) / 2
    assert float(problem.objective(**point)) == pytest.approx(expected)
    free = study.Interpolation(X, Y, 4)
    expected = sum(float(w.square().sum()) for w in free.layers(point)) / 2
    assert float(free.objective(**point)) == pytest.approx(expected)
    table = study.minimum_norms(3, 5, [2, 3])
    np.testing.assert_allclose(table["value"], table["optimum"], rtol=1e-8)
    gap = study.depth_gap([2], [3])
    assert gap.loc[0, "trained"] == pytest.approx(gap.loc[0, "primal"], rel=1e-8)


def test_rank_one_table():
    table = study.rank_one([3], [2], starts=3)
    assert set(table["activation"]) == {"relu", "linear"}
    assert table["excess"].abs().max() < 1e-8
    assert table["second_singular"].max() < 1e-5 and table["alignment"].min() > 1 - 1e-6


def test_splines():
    x = np.array([-1.0, -0.4, 0.1, 0.8])
    y = np.array([0.5, -0.5, 0.6, 0.2])
    grid = np.linspace(-1, 1, 7)
    curves, knots, summary = study.spline_networks(x, y, 0.1, 12, grid, steps=300, max_iter=100)
    assert set(curves["fit"]) == {"exact", "L-BFGS", "Adam"} and len(curves) == 21
    assert (summary["excess"] > -1e-9).all()
    assert summary.query("fit == 'exact'")["knot_share"].item() == 1
    exact = knots.query("fit == 'exact'")["position"].to_numpy()
    assert np.abs(exact[:, None] - x).min(1).max() < 1e-12
    path = study.spline_path(x, y, [0.01, 0.3])
    assert path.groupby("beta")["norm"].first().is_monotonic_decreasing
    table = study.spline_training(x, y, [0.3], 12, 3)
    assert -1e-9 < table["excess"].item() < 1e-4
    programs = study.random_interpolations(3)
    np.testing.assert_allclose(programs["formula"], programs["program"], rtol=1e-9)
    assert programs["worst"].max() <= 1 + 1e-9
    free = study.without_offset([0, 1, 2], [0, 1, 0], [None, 10.0, 1e3])
    assert free["cost"].tolist() == pytest.approx([3, 2.09, 2.001], abs=1e-2)


def test_deep_one_dimensional_cases():
    table = study.deep_one_dimensional(5, 0.02, 8, 4, max_iter=250)
    law, everywhere, even, odd = table["excess"]
    assert law < 1e-3 and even < -1e-3 and odd > 1e-3
    assert everywhere < law + 1e-6


def test_planar():
    table = study.planar(6, [0.3], 8, 2, max_iter=150)
    row = table.iloc[0]
    assert row["gap"] < 1e-9 and row["excess"] > -1e-9
    assert row["active_low"] == pytest.approx(1, abs=1e-6) and row["supremum"] == pytest.approx(1)
    curve, neurons = study.constraint_curve(6, 0.3)
    assert curve["value"].abs().max() <= 1 + 1e-6
    np.testing.assert_allclose(neurons["value"].abs(), 1, atol=1e-6)
    assert (np.sign(neurons["value"]) == np.sign(neurons["weight"])).all()


def test_whitened_classes():
    fits, outputs = study.whitened_classes([4, 1], [0.5, 1.5], 2, max_iter=300)
    assert fits["excess"].abs().max() < 1e-7 and fits["features"].max() < 1e-4
    expected = [max(0, 1 - b / math.sqrt(n)) for b in (0.5, 1.5) for n in (4, 1)]
    np.testing.assert_allclose(outputs["output"], expected, atol=1e-4)
    deep, _ = study.whitened_classes([3, 2], [0.3], 3, depth=3, width=6, max_iter=800)
    assert deep["excess"].item() < 1e-4 and np.isnan(deep["path"].item())
    assert study.whitened_scalar(5, [0.3], 3)["excess"].abs().max() < 1e-7


def test_optimisers():
    labels = study.class_labels([2, 2])
    X = study.whitened(torch.Generator().manual_seed(3), 4, 5)
    runs = {"Adam": dict(steps=400), "L-BFGS": dict(optimizer="lbfgs", steps=50)}
    trace, network, ends = study.optimisers(X, labels, 0.3, 6, runs, rows=10)
    assert set(trace["run"]) == set(runs) == set(ends)
    assert (trace["excess"] > -1e-9).all() and (trace["dual"] <= trace["optimum"] + 1e-9).all()
    assert (trace.groupby("run")["excess"].last() < 1e-2).all()
    final = float(network.objective(**ends["Adam"]))
    assert trace.query("run == 'Adam'")["objective"].iloc[-1] == pytest.approx(final)
    lbfgs = trace.query("run == 'L-BFGS'")["objective"]
    assert lbfgs.is_monotonic_decreasing


def test_pair_networks_and_descent():
    values = study.deep_values([4], [3, 5], 0.05)
    wide = values.pivot(index="depth", columns="kind", values="value")
    assert wide.loc[5, "pairs"] < wide.loc[5, "collapsed"]
    assert wide.loc[3, "pairs"] > wide.loc[3, "collapsed"]
    found, spectra = study.deep_descents([(4, 5, 0.05)], max_iter=150)
    assert found["excess"].item() < -0.01 and found["value"].item() < found["pairs"].item()
    assert found["ranks"].item().count(",") == 4 and set(spectra["layer"]) == {1, 2, 3, 4, 5}


def test_widened_network_is_the_same_function():
    layers = theory.scaled_pair_network(4, 4, 0.05)
    wide = study.widened(layers, 9, 0.0, torch.Generator())
    identity = torch.eye(6, dtype=torch.float64)
    network = convex.Network(identity, identity, 0.05, (9, 9, 9))
    assert float(network.objective(**wide)) == pytest.approx(theory.pair_value(4, 4, 0.05))


def test_batch_norm_and_other_losses():
    table = study.batch_norm_heads([3, 2], [0.5], 6, 2, max_iter=400)
    assert abs(table["closed"].item()) < 1e-12 and abs(table["certificate"].item()) < 1e-12
    assert -1e-9 < table["excess"].item() < 1e-5
    low = study.batch_norm_heads([3, 3], [0.5], 2, 1, max_iter=100)
    assert low["excess"].item() > 0 and "closed" not in low
    entropy = study.cross_entropy(2, 3, [0.4])
    assert abs(entropy["excess"].item()) < 1e-7 and abs(entropy["gap"].item()) < 1e-9
    ufm = study.unconstrained(3, 2, 0.02, 0.01)
    assert abs(ufm["excess"]) < 1e-8


def test_gradient_of_relu_at_zero_is_zero():
    """The pair network has pre-activations exactly at the kink; descent needs relu'(0) = 0."""
    identity = torch.eye(1, dtype=torch.float64)
    network = convex.Network(identity, identity, 0.1, (1,))
    point = {"weight1": torch.zeros(1, 1).double(), "weight2": torch.ones(1, 1).double()}
    assert float(solve.gradient(network.objective, point)["weight1"]) == 0
