"""Tables of result 6: small runs against closed forms, by-hand numbers and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks
from nclib.deep import collect, train
from nclib.results.convex_duality import experiments as study
from nclib.results.convex_duality import nets, ramps, theory
from nclib.table import over
from nclib.ufm import flow
from tests.results.convex_duality.test_nets import MLP, gaussian, labels_of, toy


@pytest.fixture
def whitened():
    X = torch.linalg.qr(gaussian(0, 7, 5))[0].T
    return {"inputs": X, "targets": gaussian(1, 5, 2)}


# --- metrics


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_path_norm(seed):
    first, second = gaussian(seed, 5, 3), gaussian(seed + 1, 2, 5)
    expected = sum(float(first[j].norm() * second[:, j].norm()) for j in range(5))
    found = study.path_norm(first, second)
    half = float(first.square().sum() + second.square().sum()) / 2
    assert found == pytest.approx(expected) and found <= half
    balance = (second.norm(dim=0) / first.norm(dim=1)).sqrt()
    first, second = balance[:, None] * first, second / balance
    assert study.path_norm(first, second) == pytest.approx(found)
    assert float(first.square().sum() + second.square().sum()) / 2 == pytest.approx(found)


def test_alignment_by_hand():
    cos, sin = math.cos(0.3), math.sin(0.3)
    rotation = torch.tensor([[cos, -sin], [sin, cos]])
    layers = [torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([5.0, 1.0])) @ rotation]
    assert study.alignment(layers) == pytest.approx(cos, rel=1e-6)
    assert study.alignment(layers, rank=2) == pytest.approx(1)


def test_knots():
    x, y = np.linspace(-1, 2, 6), np.array([0.0, 1, 0, 2, 2, 1])
    spline = ramps.fit_spline(x, y, 0.05)
    positions, masses = study.knots(*spline.network()[:3])
    assert masses.sum() == pytest.approx(spline.norm)
    assert set(np.round(positions, 9)) == set(np.round(spline.knots, 9))
    # Two neurons on one knot are one knot; a dead neuron is none.
    four = [2.0, -1.0, 0.0, 1.0], [-1.0, 0.5, 3.0, -2.0], [1.0, 3.0, 1.0, 1e-6]
    positions, masses = study.knots(*four)
    assert positions.tolist() == [0.5, 2.0] and masses.tolist() == [5.0, 1e-6]
    assert study.knots([0.0], [1.0], [1.0])[0].size == 0


def test_knots_and_labels_of_unusual_input():
    """Lists, half precision, weights that still carry a gradient; each mistake is one error."""
    weight = torch.tensor([[2.0], [-1.0]], requires_grad=True)
    positions, masses = study.knots(weight, torch.tensor([-1.0, 0.5]).bfloat16(), [[1.0, 3.0]])
    assert positions.tolist() == [0.5] and masses.tolist() == [5.0]
    assert study.class_labels([2, 1.0]).tolist() == [0, 0, 1]
    half = [torch.eye(3)[:2].bfloat16(), torch.eye(2).bfloat16()]
    assert study.alignment(half, rank=2) == pytest.approx(1) and study.path_norm(*half) == 2
    for call, message in (
        (lambda: study.knots([1.0, 2], [1.0], [1.0, 2]), "input_weight 2, hidden_bias 1"),
        (lambda: study.knots([1.0], [math.nan], [1.0]), "hidden_bias has 1 NaN"),
        (lambda: study.path_norm(torch.ones(2, 3), torch.ones(1, 3)), "second must have 2 columns"),
        (lambda: study.class_labels([]), "counts is empty"),
        (lambda: study.class_labels([2, 0]), "counts must be at least 1, got 0"),
        (lambda: study.class_labels([2, 1.5]), "counts must be an integer, got 1.5"),
        (lambda: study.whitened(torch.Generator(), 5, 3), "5 whitened samples"),
        (lambda: study.of_rank([1.0, 1, 1], 4, 2, torch.Generator()), "3 whitened samples"),
        (lambda: study.require_descents([]), "got depths"),
        (lambda: study.hinge(0.5, counts=(1, 1, 1)), "two classes"),
    ):
        with pytest.raises(checks.InputError, match=message):
            call()


def test_collapse_error():
    counts, beta, labels = [5, 3, 1], 1.2, labels_of([5, 3, 1])
    shape, n = theory.collapse(counts, beta), torch.tensor(counts, dtype=torch.float64)
    # Class means sqrt((sqrt(n_k) - beta)_+ / n_k) on orthogonal axes.
    H = torch.diag(((n.sqrt() - beta).clamp(min=0) / n).sqrt())[labels]
    rotation = torch.linalg.qr(gaussian(3, 3, 3))[0]
    assert study.collapse_error(H @ rotation, labels, shape) < 1e-14
    assert study.collapse_error(math.sqrt(2) * H, labels, shape) == pytest.approx(1)
    assert study.collapse_error(0 * H, labels, shape) == pytest.approx(1)


def test_cosine_deviations():
    labels = labels_of([2, 2, 2])
    frame = torch.eye(3, dtype=torch.float64)[labels]
    found = study.cosine_deviations(frame, labels)
    assert found == pytest.approx(dict(orthogonal=0, simplex=0, nc1=0, dropped=0), abs=1e-14)
    found = study.cosine_deviations(frame - 1 / 3, labels)
    assert found["orthogonal"] == pytest.approx(0.5) and found["simplex"] < 1e-14
    # Brute force on noise; the third class is dropped.
    H, labels = gaussian(4, 7, 4), labels_of([3, 2, 2])
    H[labels == 2] = 0
    found = study.cosine_deviations(H, labels)
    a, b = H[:3].mean(0), H[3:5].mean(0)
    assert found["dropped"] == 1
    assert found["orthogonal"] == pytest.approx(abs(float(a @ b / a.norm() / b.norm())))
    assert found["simplex"] < 1e-12  # two means: centred cosine is -1
    tiny = study.cosine_deviations(1e-30 * H, labels)
    assert tiny["orthogonal"] == pytest.approx(found["orthogonal"], abs=1e-12)
    zero = study.cosine_deviations(torch.zeros(4, 3), labels_of([2, 2]))
    assert zero["dropped"] == 2 and math.isnan(zero["orthogonal"]) and math.isnan(zero["nc1"])


# --- linear networks


def test_linear_tables(whitened):
    table = study.convex_linear([(4, 5, 2)], [0.3], seed=1)
    assert table["excess"].abs().max() < 1e-8 and table["gap"].max() < 1e-9
    setting = {"depth": [2, 3], "beta": [0.2]}
    measured = over(study.staircase, **setting, **whitened, starts=2)
    curves = over(study.staircase_theory, **setting, targets=whitened["targets"])
    np.testing.assert_allclose(measured["singular"], curves["singular"], atol=1e-4)
    jumps = over(study.jumps, depth=[2, 3], targets=whitened["targets"])
    assert (jumps["spinodal"] >= jumps["critical"]).all()
    s = torch.linalg.svdvals(whitened["targets"])
    assert jumps.query("depth == 2")["critical"].tolist() == pytest.approx(s.tolist())
    best = over(study.whitened_linear, depth=[3, 5], beta=0.2, **whitened, starts=3)
    assert best["converged"].all() and best["excess"].abs().max() < 1e-9


def test_two_minima_from_depth_three_on(whitened):
    for share, scale in ((0.95, 0.1), (1.08, 2.0)):
        assert study.stuck(**whitened, depth=3, share=share, scale=scale) > 1e-3
    assert study.stuck(**whitened, depth=3, share=0.95, scale=2.0) < 1e-6
    assert study.stuck(**whitened, depth=2, share=0.5, scale=0.1) == pytest.approx(0, abs=1e-4)


def test_ranks_of_descent():
    """As many singular values as are above beta, or as the optimum keeps; one on rank-one data."""
    table, falls = study.two_layer_ranks(12, (6, 10, 3))
    assert table["rank"].tolist() == table["expected"].tolist()
    assert table["expected"].max() == 3 and table["expected"].min() == 0 and len(falls) == 3
    for kept in ([4.0], [4, 2.8], [4, 2.8, 2]):
        few = study.deep_ranks(6, (5, 8, 8, 5), kept)
        assert few["rank"].tolist() == few["expected"].tolist()
        assert few["expected"].unique().tolist() == list(range(1, len(kept) + 1))
    close = study.two_layer_ranks(50, (20, 50, 5), seed=8)[0]  # s_1 is 5.4 % above s_2
    assert close["rank"].tolist() == close["expected"].tolist() and len(close) == 2 * 8
    deep = study.deep_ranks(10, (5, 12, 12, 12, 5), [4, 2.8, 2, 1.4, 1])
    assert deep["rank"].tolist() == deep["expected"].tolist()
    ends = study.rank_one_descent(20, (10, 50, 40, 30, 20, 1), steps=800).groupby("step")
    assert (ends.first()["rank"].iloc[0], ends["rank"].max().iloc[0]) == (10, 40)  # untrained
    assert ends["rank"].max().iloc[-1] == 1 and abs(ends["excess"].max().iloc[-1]) < 1e-6


def test_stationary_layers_are_balanced(whitened):
    row = study.stationary_layers(3, **whitened, beta=0.2)
    assert max(row["balance"], row["spread"]) < 1e-5


def test_imbalance_decays_at_the_predicted_rate(whitened):
    """Gradient flow forgets it like exp(-2 beta t)."""
    X, Y = whitened.values()
    flow = study.merging_norms(X, Y, 0.3, [0.5, 1.0, 2.0], lr=0.005, steps=400)
    assert study.imbalance_rate(flow) == pytest.approx(-0.6, rel=0.02)
    assert set(flow["layer"]) == {1, 2, 3} and flow["time"].max() == pytest.approx(2.0)
    first = flow[flow["step"] == 0]  # the start, by hand
    start = study.deep_linear(X, Y, 3, 0.3).start(torch.Generator().manual_seed(0))
    last = 2.0 * start["weight"]
    layers = [0.5 * start["hidden_1"], start["hidden_2"], last]
    off = [float((a @ a.T - b.T @ b).abs().max()) for a, b in itertools.pairwise(layers)]
    assert first["balance"].tolist() == pytest.approx([max(off)] * 3)
    assert first["frobenius"].iloc[2] == pytest.approx(float(last.norm()))
    assert first["operator"].iloc[2] == pytest.approx(float(torch.linalg.matrix_norm(last, 2)))


def test_interpolation_tables():
    table = over(study.minimum_norms, depth=[2, 3], rank=3, dimension=5)
    np.testing.assert_allclose(table["value"], table["optimum"], rtol=1e-8)
    gap = study.depth_gap(2, 3)
    assert gap["trained"] == pytest.approx(gap["primal"], rel=1e-8)
    assert gap["ratio"] > 1.1


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_rank_one(activation):
    row = study.rank_one(3, 2, activation)
    assert abs(row["excess"]) < 1e-8 and row["converged"]
    assert row["second_singular"] < 1e-5 and row["alignment"] > 1 - 1e-6


# --- one dimension and the plane


def test_splines():
    x, y = np.array([-1.0, -0.4, 0.1, 0.8]), np.array([0.5, -0.5, 0.6, 0.2])
    curves, knots, summary = study.spline_networks(x, y, 0.1, 12, np.linspace(-1, 1, 7), steps=300)
    assert set(curves["fit"]) == {"exact", "L-BFGS", "Adam"} and len(curves) == 21
    assert (summary["excess"] > -1e-9).all()
    exact = knots.query("fit == 'exact'")["position"].to_numpy()
    assert np.abs(exact[:, None] - x).min(1).max() < 1e-12
    path = over(lambda beta: study.spline_path(beta, x=x, y=y), beta=[0.01, 0.3])
    assert path.groupby("beta")["norm"].first().is_monotonic_decreasing
    row = study.spline_training(0.3, x=x, y=y, width=12, starts=3)
    assert -1e-9 < row["excess"] < 1e-4


def test_interpolation_without_output_bias_is_only_an_infimum():
    programs = study.random_interpolations(3)
    np.testing.assert_allclose(programs["formula"], programs["program"], rtol=1e-9)
    assert programs["worst"].max() <= 1 + 1e-9
    hat = {"x": (0, 1, 2), "y": (0, 1, 0)}
    costs = [study.without_offset(distance, **hat) for distance in (None, 10.0, 1e3)]
    assert costs == pytest.approx([3, 2.09, 2.001], abs=1e-2)
    assert ramps.interpolation_norm(**hat) == 2


def test_deep_splines():
    x = np.linspace(0, 3, 7)
    fitted = dict(width=20, starts=3, grid=np.linspace(0, 2, 3))
    curves, table = study.deep_splines(x, np.sin(2.5 * x - 3.75), 0.02, [2, 3], **fitted)
    assert table["excess"].abs().max() < 1e-7 and table["converged"].all()
    assert len(curves) == 12 and set(curves["fit"]) == {"law", "trained"}


def test_beyond_the_spline_law():
    """Interpolation costs 3/2 R^(2/3): explicit networks and the brute-force scale of each."""
    table = study.beyond_the_law(0.05)
    t = np.linspace(0, 1.2, 200001)  # height of the hat; the free offset takes a fifth of its error
    scale = (0.8 * (1 - t) ** 2 / 2)[:, None] + 0.05 * 1.5 * (t[:, None] * [2, 4]) ** (2 / 3)
    explicit, law = scale.min(0)
    for row in table[:2].itertuples():
        assert row.value == pytest.approx(explicit, abs=1e-8)
        assert explicit < row.optimum < law + 1e-12  # the best spline is not quite a hat
    rise = np.linspace(0, 2.2, 200001)  # from one point of the pair to the other
    scale = (rise - 2) ** 2 / 4 + 0.05 * 1.5 * rise ** (2 / 3)
    assert table["value"][2] == pytest.approx(scale.min(), abs=1e-8)
    for depth in (3, 4):
        pair = study.odd_pair(0.05, depth, starts=3)
        assert pair["converged"] and abs(pair["excess"]) < 1e-8


def test_planar():
    row = study.planar(0.3, n=6, width=8, starts=2, max_iter=150)
    assert row["gap"] < 1e-9 and row["excess"] > -1e-9
    assert row["tight"] < 1e-6 and row["supremum"] == pytest.approx(1)
    curve, neurons = study.constraint_curve(6, 0.3)
    assert curve["value"].abs().max() <= 1 + 1e-6
    np.testing.assert_allclose(neurons["value"].abs(), 1, atol=1e-6)
    there = np.interp(neurons["angle"], curve["angle"], curve["value"])
    np.testing.assert_allclose(there, neurons["value"], atol=1e-2)
    assert (np.sign(neurons["value"]) == np.sign(neurons["weight"])).all()


# --- whitened ReLU and deeper


def test_whitened_classes():
    """Claims 6.C10 and 6.C11: class 1 is dropped at the second beta."""
    fits, outputs = study.whitened_classes([4, 1], [0.5, 1.5], 2, max_iter=300)
    assert fits["excess"].abs().max() < 1e-7
    assert fits[["features", "weights"]].max().max() < 1e-4
    assert fits["path"].abs().max() < 1e-4  # balanced neurons
    expected = [max(0, 1 - b / math.sqrt(n)) for b in (0.5, 1.5) for n in (4, 1)]
    np.testing.assert_allclose(outputs["output"], expected, atol=1e-4)
    known = over(study.output_theory, beta=[0.5, 1.5], counts=(4, 1))
    np.testing.assert_allclose(known["output"], expected)
    assert abs(study.whitened_scalar(0.3, n=5, starts=3)["excess"]) < 1e-7


def test_optimisers():
    labels, X = labels_of([2, 2]), torch.linalg.qr(gaussian(3, 5, 4))[0].T
    adam = {"optimizer": "adam", "rate": 1e-2, "steps": 400, "cosine": True}
    runs = {"Adam": adam, "L-BFGS": 50}
    trace, network, ends = study.optimisers(X, labels, 0.3, 6, runs, rows=10)
    assert set(trace["run"]) == set(runs) == set(ends)
    assert (trace["excess"] > -1e-9).all() and (trace["dual"] <= trace["optimum"] + 1e-9).all()
    assert (trace.groupby("run")["excess"].last() < 1e-2).all()
    final = float(network(**ends["Adam"]))
    assert trace.query("run == 'Adam'")["objective"].iloc[-1] == pytest.approx(final)
    assert trace.query("run == 'L-BFGS'")["objective"].is_monotonic_decreasing
    assert trace["simplex"].notna().all()
    assert (trace["gap"] == trace["objective"] - trace["dual"]).all()
    assert (trace.groupby("run")["gap"].last() < 2e-2).all()  # closed by the end


def test_low_rank_against_collapse():
    rows = over(study.explicit_networks, depth=[3, 5], points=(4,), beta=0.05)
    assert (rows["excess"] < 0).tolist() == [False, False, True, True]
    np.testing.assert_allclose(rows["value"], rows["formula"], rtol=1e-12)
    explicit = rows.query("K == 6 and depth == 5")
    found = study.deep_descent(4, 5, 0.05, max_iter=150)
    assert found["excess"] < -0.01 and found["value"] < explicit["value"].item()
    assert found["collapsed"] == pytest.approx(explicit["collapsed"].item())
    assert found["ranks"].count(",") == 4
    shallow = study.random_search(3, 3, beta=0.05, starts=2)
    assert shallow["converged"] and abs(shallow["excess"]) < 1e-7
    # Their pre-activations are exactly at the kink: descent needs relu'(0) = 0.
    one, point = study.identity_network(
        [torch.zeros(1, 1).double(), torch.ones(1, 1).double()], 1.0
    )
    assert float(flow.slopes(one, point)["hidden_1"]) == 0
    with pytest.raises(checks.InputError, match="depth 3 and a deeper one"):
        study.require_descents([[4, 4, 0.1]])
    with pytest.raises(checks.InputError, match="whole numbers"):
        study.require_descents([[4, 3.5, 0.1]])


def test_batch_norm_and_other_losses():
    table = study.batch_norm_heads([3, 2], [0.5], 6, 2, max_iter=400)
    assert abs(table["closed"].item()) < 1e-12 and abs(table["certificate"].item()) < 1e-12
    assert -1e-9 < table["excess"].item() < 1e-5
    low = study.batch_norm_heads([3, 3], [0.5], 2, 1, max_iter=100)
    assert low["excess"].item() > 0 and "closed" not in low
    entropy = study.cross_entropy(0.4, per_class=2, K=3)
    assert abs(entropy["excess"]) < 1e-7 and abs(entropy["gap"]) < 1e-9
    assert abs(study.unconstrained(3, 2, 0.02, 0.01)["excess"]) < 1e-8
    assert study.bound_on_any_inputs([6, 4, 2], 5)["excess"] > 0.1
    assert abs(study.bound_on_any_inputs([6, 4, 2], 13, scale=2.0)["excess"]) < 1e-8
    hinge = over(study.hinge, beta=[0.7, 2.5], counts=(4, 9))
    assert hinge["optimum"].tolist() == pytest.approx([0.7 * 5, 4 + 2.5 * 3])
    assert hinge["gap"].abs().max() < 1e-12 and hinge["excess"].between(0, 1e-2).all()
    limit = study.vanishing_decay([0.0, 1, 2], [0.0, 1, 0], [1e-2, 1e-3])
    assert (limit["below"] > 0).all() and (limit["below"] <= limit["bound"] * (1 + 1e-6)).all()


def test_centred_means_are_a_simplex_etf_for_balanced_classes_only():
    """Claim 6.C12."""
    even, uneven = (study.explicit_head(c, dimension=40) for c in ([5] * 4, [9, 4, 2, 2]))
    assert max(even["orthogonal"], even["simplex"], uneven["orthogonal"]) < 1e-10
    assert uneven["simplex"] > 0.01


# --- images


RECIPE = train.Recipe(epochs=600, lr=0.02, batch_size=None, optimizer="adam", schedule="cosine")


def test_decay_vanishes_before_or_after_the_knots_settle():
    """Slopes 1, 1 + h, -1 by hand: the bend h at 1 goes once the fit moves by more than it."""
    x, h = [0.0, 2, 1, 3], 1e-4  # unsorted
    y = [0.0, 2 + h, 1, 1 + h]
    limit = study.vanishing_decay(x, y, [1e-3, 1e-7])
    assert limit["settled"].tolist() == [False, True]
    share = limit["below"] / limit["bound"]
    assert share[0] < 0.9 and share[1] == pytest.approx(1, abs=1e-4)
    # Slopes 1 and 2: their sum decides.
    rise = study.vanishing_decay([0.0, 1, 2], [0.0, 1, 3], [1e-4])
    assert rise["settled"].item() and (rise["below"] / rise["bound"]).item() == pytest.approx(1)


@pytest.mark.slow
def test_training_closes_the_certified_gap():
    images, other, rho = toy(), toy(20, seed=9), 0.4  # other centres
    net = nets.build("mlp", images, hidden=(32,), width=8, normalise=False)
    decay = theory.weight_decay_for(3, rho)
    history = study.train_net(net, images, RECIPE, decay, points=12, test=other)
    assert (history["dual"] <= history["optimum"] + 1e-6).all()
    assert (history["objective"] >= history["optimum"] - 1e-6).all()
    end = history.iloc[-1]
    assert end["optimum"] == pytest.approx(2 / 3 * (rho - rho**2 / 2), rel=1e-9)
    assert end["objective"] < 1.02 * end["optimum"]
    assert end["simplex"] < 0.1 and end["orthogonal"] < 0.1 and end["nc1"] < 1e-2
    assert end["gamma_over_alpha"] == pytest.approx(math.sqrt(2), rel=0.1)
    assert end["test_accuracy"] == collect.accuracy(net, other) < 0.9
    assert collect.accuracy(net, images) > 0.9
    scale, shift = (x.detach().numpy() for x in (net.norm.weight, net.norm.bias))
    ratios = (scale / shift)[abs(scale) > 0.1 * abs(scale).max()]
    low, high = np.quantile(ratios, [0.1, 0.9])
    assert end["gamma_spread"] == pytest.approx((high - low) / np.median(ratios))
    means, outputs = study.final_classes(net, images)
    np.testing.assert_allclose(outputs, 1 - rho, atol=0.02)
    product = net.head.weight.detach().double() @ (means - means.mean(0)).T
    nc3 = float((product / product.norm() - (torch.eye(3) - 1 / 3) / math.sqrt(2)).norm())
    assert study.duality(net, images) == pytest.approx(nc3, abs=1e-5) and nc3 < 0.1
    cosines = study.class_cosines({"a": means})
    off = cosines.query("kind == 'raw, a' and row != column")["value"]
    assert off.abs().max() < 0.1 and len(cosines) == 18
    off = cosines.query("kind == 'centred, a' and row != column")["value"]
    np.testing.assert_allclose(off, -0.5, atol=0.1)
    table = study.class_outputs(means, outputs, [6] * 3, rho * math.sqrt(6))
    np.testing.assert_allclose(table["theory"], 1 - rho)
    np.testing.assert_allclose(table["mean_norm"], [float(mean.norm()) for mean in means])


def test_certified_batch_checkpoint_and_refusal(tmp_path):
    images = toy(8)
    recipe, runs = train.Recipe(2, 0.01, 8, optimizer="adam"), []
    for _ in range(2):
        net = nets.build("mlp", images, **MLP)
        options = {"points": 3, "certify_on": images.per_class(3), "checkpoint": tmp_path / "0.pt"}
        runs.append(study.train_net(net, images, recipe, 0.05, **options))
    assert runs[0].equals(runs[1])
    options["checkpoint"] = lambda seed: tmp_path / f"{seed}.pt"
    shape = MLP | {"architecture": "mlp"}
    both, made = study.train_seeds([0, 4], shape, images, recipe, 0.05, **options)
    for seed in (0, 4):
        net = nets.build("mlp", images, **MLP, seed=seed)
        own = study.train_net(
            net, images, recipe, 0.05, **options | {"checkpoint": None}, seed=seed
        )
        assert both[both["seed"] == seed].drop(columns="seed").reset_index(drop=True).equals(own)
        assert torch.equal(net.head.weight, made[seed].head.weight)
    rho = 0.05 * 3**1.5 / 2
    assert runs[0]["optimum"].iloc[0] == pytest.approx(2 / 3 * (rho - rho**2 / 2))
    with pytest.raises(checks.InputError, match="must be 0"):
        study.train_net(net, images, train.Recipe(2, 0.01, weight_decay=1e-3), 0.05, points=3)


def test_deep_nets_on_images():
    """Collapse at depth 3; behind batch norm never below the closed form, at any depth."""
    images = toy(2, side=4)
    white, new = study.whitened_images(images, toy(6, seed=2, side=4))
    same = dict(inputs=white, labels=images.labels, test_inputs=white, test_labels=images.labels)
    trace = study.deep_images(3, 0, **same, beta=0.1, width=10, steps=500)
    assert abs(trace["excess"].iloc[-1]) < 1e-2 and trace["accuracy"].iloc[-1] == 1
    same |= dict(test_inputs=white[::2], test_labels=images.labels[::2].roll(1))  # all wrong
    assert study.deep_images(3, 0, **same, beta=0.1, width=10, steps=500)["accuracy"].iloc[-1] == 0
    history = study.batch_norm_depth(
        4, 0, data=images, test=images, weight_decay=0.1, epochs=40, width=8
    )
    assert history["excess"].min() > -1e-6 and history["excess"].iloc[-1] < 1


def test_whitened_images_and_accuracy():
    """A point of the curve equals the explicit whitened network on the whitened test inputs."""
    images, test = toy(2, side=4), toy(6, seed=2, side=4)
    white, new = study.whitened_images(images, test)
    np.testing.assert_allclose(white @ white.T, np.eye(6), atol=1e-8)
    Y = study.one_hot(images.labels)
    outputs = (new @ white.T @ Y).clamp(min=0)  # equal classes: one factor for all
    expected = float((outputs.argmax(1) == test.labels).double().mean())
    found = study.closed_form_accuracy(2, data=images, test=test, rho=0.3)
    assert found["accuracy"] == pytest.approx(expected) and found["n"] == 6
    assert found["condition"] == pytest.approx(np.linalg.cond(images.inputs.flatten(1).double()))
    with pytest.raises(checks.InputError, match="at most as many samples"):
        study.whitened_images(toy(6, side=4), test)
