import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import f_oneway

from nclib import frames, losses, table
from nclib.deep import data, nets, train
from nclib.metrics import nc_metrics
from nclib.results.multi_loss import experiments as study
from nclib.results.multi_loss import theory
from nclib.ufm import flow, landscape, solve

CE, LS, FL, MSE = (losses.get(name) for name in ("ce", "ls", "fl", "mse"))
BASE = {"K": 4, "n": 3, "d": 6, "lambda_w": 0.01, "lambda_h": 0.004, "lambda_b": 0.0}
RESCALED = losses.get("mse", tau=0.4, scale=2.0, kappa=5.0)
CASES = [
    (CE, {}),
    (LS, {"d": 3}),
    (FL, {"lambda_b": 0.05}),
    (losses.get("fl", gamma=0.5), {"K": 3, "d": 2}),
    (MSE, {}),
    (MSE, {"lambda_b": 0.05}),
    (MSE, {"lambda_b": None}),
    (MSE, {"lambda_b": None, "d": 3}),
    (RESCALED, {"lambda_b": 0.3}),
    (RESCALED, {"lambda_b": None}),
    (CE, {"K": 2, "n": 1, "d": 1, "lambda_b": None}),
    (CE, {"lambda_w": 0.3, "lambda_h": 0.3}),  # beyond the threshold: zero
]
NAMES = [f"{loss} {changes}" for loss, changes in CASES]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# The unconstrained-features model -----------------------------------------------------------------


@pytest.mark.parametrize(("loss", "changes"), CASES, ids=NAMES)
def test_optimiser_reaches_the_closed_form_and_never_goes_below(loss, changes):
    setting = BASE | changes
    exact, ufm = theory.optimum(loss, **setting), study.problem(loss, **setting)
    found = solve.best(ufm, 4, refine=True)
    assert found.value == pytest.approx(exact.value, abs=1e-13)
    assert float(found.point["weight"].norm()) == pytest.approx(exact.weight_norm, abs=1e-6)
    assert float(found.point["features"].norm()) == pytest.approx(exact.feature_norm, abs=1e-6)
    if np.isnan(exact.mean_component):
        return  # d = K-1 without bias: any subspace is as good
    want = exact.margin * frames.centring(setting["K"])
    np.testing.assert_allclose(study.class_logits(ufm, found.point), want, atol=1e-6)
    if isinstance(loss, losses.MeanSquaredError):
        mean = ufm.logits(found.point).mean(1)
        np.testing.assert_allclose(mean, exact.bias + exact.mean_component, atol=1e-6)
        if "bias" in found.point:
            np.testing.assert_allclose(found.point["bias"], exact.bias, atol=1e-6)


def test_the_row_against_the_closed_form_sees_a_wrong_one(monkeypatch):
    right = study.against_closed_form(FL, BASE)
    assert max(map(abs, right.values())) < 1e-6
    wrong = theory.optimum(FL, **BASE | {"lambda_w": 0.02})
    monkeypatch.setattr(theory, "optimum", lambda *_, **__: wrong)
    off = study.against_closed_form(FL, BASE)
    assert all(abs(off[name]) > 1e-2 for name in ("value_gap", "logit_error", "norm_error"))


@pytest.mark.parametrize(("loss", "changes"), CASES[:7] + CASES[8:10])
def test_the_explicit_minimiser_is_critical_optimal_and_collapsed(loss, changes):
    setting = BASE | changes
    ufm = study.problem(loss, **setting)
    point = study.optimal_point(loss, **setting)
    assert float(ufm.value(point)) == pytest.approx(
        theory.optimum(loss, **setting).value, abs=1e-13
    )
    for part in flow.slopes(ufm, point).values():
        assert part.abs().max() < 1e-14
    labels = torch.arange(setting["K"]).repeat_interleave(setting["n"])
    got = nc_metrics(point["features"], labels, point["weight"], point.get("bias"))
    assert got["nc1"] < 1e-20
    assert got["nc2_centered"] < 1e-7
    assert got["nc3_centered"] < 1e-7


@pytest.mark.parametrize(
    ("loss", "changes"), [*CASES[:7], *CASES[-2:], (CE, {"lambda_b": 0.01}), (MSE, {"d": 3})]
)
def test_the_minimum_is_nondegenerate_up_to_symmetry(loss, changes):
    setting = BASE | changes
    assert (row := study.zero_modes(loss, **setting))["found"] == row["known"]
    point = study.optimal_point(loss, **setting)
    assert float(landscape.spectrum(study.problem(loss, **setting), point)[0]) > -1e-12
    if loss in (CE, MSE):  # by name, its parameters the default ones
        assert theory.flat_directions(loss.name, **setting) == row["known"]


def test_class_logits_are_means_of_samples_centred_over_outputs():
    ufm = study.problem(CE, **BASE)
    point = ufm.start(generator(), 1.0)
    means = ufm.logits(point).numpy().reshape(4, 3, 4).mean(1)
    want = means - means.mean(1, keepdims=True)
    np.testing.assert_allclose(study.class_logits(ufm, point), want, atol=1e-14)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("loss", [CE, FL, MSE])
def test_saddles_have_the_predicted_negative_curvature(loss, rank):
    setting = BASE | {"lambda_b": 0.1}
    row = study.saddle(loss, rank, **setting)
    assert row["predicted"] < -1e-3
    assert row["measured"] == pytest.approx(row["predicted"], rel=1e-6)
    assert row["certificate"] == pytest.approx(-row["predicted"] / 2, rel=1e-9)
    assert row["height"] > 1e-4
    # An oracle without autograd: the value falls as the parabola does, up to the fourth order.
    ways = study.way_down(rank, loss=loss, **setting).set_index("t")
    assert ways["parabola"].iloc[0] == pytest.approx(1.5**2 / 2 * row["predicted"])
    way = ways["value"]
    one, two = (way[way.index[30 + i]] + way[way.index[30 - i]] for i in (1, 2))
    second = (16 * one - two) / 12 / way.index[31] ** 2
    assert second == pytest.approx(row["predicted"], rel=1e-4)


def test_focal_loss_has_a_spurious_minimum_between_its_thresholds():
    K, n = 30, 2
    local, globally, _ = theory.focal_thresholds(K, 3.0)
    assert 1.006 * local < globally
    lam = 1.006 * local / n**0.5
    setting = {"K": K, "n": n, "d": 32, "lambda_w": lam, "lambda_h": lam, "lambda_b": 0.01}
    ufm, zero = study.problem(FL, **setting), theory.value_at_zero(FL, K=K)
    height = zero - theory.optimum(FL, **setting).value
    assert height == pytest.approx(7.16e-3, abs=1e-5)
    # From nearby the optimiser returns to zero; below c_loc it does not.
    near = solve.best(ufm, 1, scale=1e-4)
    assert near.value == pytest.approx(zero, abs=1e-9)
    lam = 0.9 * local / n**0.5
    below = study.problem(FL, **setting | {"lambda_w": lam, "lambda_h": lam})
    assert solve.best(below, 1, scale=1e-4).value < zero - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_window_of_spurious_minima_is_seen_at_any_seed(seed):
    window = table.over(study.focal_window, share=[-1.0, 0.5], K=30, gamma=3.0, seed=seed)
    window = window.set_index("share")
    assert window.loc[-1.0, "fraction"] == 1
    assert 0 < window.loc[0.5, "fraction"] < 1
    assert window.loc[0.5, "highest_gap"] > 1e-3


@pytest.mark.parametrize(("K", "gamma"), [(30, 3.0), (40, 1.0)])
def test_the_hessian_at_zero_is_that_of_the_whole_model(K, gamma):
    """From one column, against the formula for the block of weight and features."""
    row = study.focal_window(0.5, K=K, gamma=gamma)
    local, globally, _ = theory.focal_thresholds(K, gamma)
    c = (local + globally) / 2
    want = c / 2**0.5 + theory.focal_slope(gamma, 1 / K) / (K * 2**0.5)
    assert row["curvature"] == pytest.approx(want, abs=1e-9)
    assert row["height"] > 0


@pytest.mark.parametrize(("K", "gamma"), [(30, 3.0), (40, 1.0), (50, 10.0)])
def test_the_largest_jump_is_that_of_the_thresholds(K, gamma):
    _, c, jump = theory.focal_thresholds(K, gamma)
    assert study.largest_jump(losses.Focal(gamma), K) == pytest.approx(jump, abs=0.01)
    assert study.minimising_margin(losses.Focal(gamma), 0.999 * c, K=K) > jump
    assert study.minimising_margin(losses.Focal(gamma), 1.001 * c, K=K) == 0


def test_ties_are_predicted_and_a_clear_one_is_chosen():
    cases = table.over(study.uniqueness, gamma=[1.0, 3.0], K=[10, 40])
    assert cases["predicted"].tolist() == cases["found"].tolist() == [False, True] * 2
    assert [study.many_classes(gamma) for gamma in (3.0, 1.0, 0.0)] == [30, 40, 100]


@pytest.mark.parametrize("loss", [FL, LS, MSE])
def test_the_measured_margin_and_its_equivalents(loss):
    found, known = (f(loss, 0.05, K=3) for f in (study.found_margin, study.known_margin))
    assert found == pytest.approx(known, abs=1e-6)
    setting = {"K": 3, "n": 1, "lambda_w": 0.05, "lambda_h": 0.05}
    same, plain = study.equivalent(loss, **setting), theory.optimum("ce", **setting)
    c = same["equivalent c"]
    moved = theory.optimum("ce", K=3, n=1, lambda_w=c, lambda_h=c)
    assert same["margin"] == pytest.approx(known["margin"]) == pytest.approx(moved.margin)
    assert same["margin"] / same["temperature"] == pytest.approx(plain.margin)


@pytest.mark.parametrize("loss", [CE, LS, losses.Focal(1.0), MSE])
def test_other_scalar_problems_have_no_jump(loss):
    assert study.largest_jump(loss, 17) < 0.01


def test_at_the_tie_zero_the_etf_and_something_below_both_are_critical():
    found = study.tie(3.0, 30)
    assert found["difference"] < 1e-12
    assert found["gradient"] < 1e-8
    # A point nearby, written down: 22 classes an ETF, 8 at zero with a lower bias.
    _, c, _ = theory.focal_thresholds(30, 3.0)
    logits = torch.zeros(30, 30, dtype=torch.float64)
    logits[:22, :22] = 0.814 * frames.centring(22)
    logits[:, 22:] -= 0.043
    penalty = c * float(torch.linalg.svdvals(logits - logits[-1]).sum())
    below = theory.value_at_zero(FL, K=30) - float(FL(logits, torch.arange(30))) - penalty
    assert 8.5e-5 < below <= found["partial"] < below + 1e-7
    none = study.tie(1.0, 20)  # K < 1/t_c
    assert none["partial"] == pytest.approx(0, abs=1e-12)
    assert none["jump"] < 0.1
    assert found["jump"] == pytest.approx(theory.focal_thresholds(30, 3.0)[2], abs=0.01)


@pytest.mark.parametrize("kept", ["centred", "axes"])
def test_without_bias_any_subspace_is_optimal_at_K_minus_1(kept):
    setting = {"K": 4, "n": 3, "lambda_w": 0.005, "lambda_h": 0.005}
    row = study.truncated_frame(kept, **setting)
    assert abs(row["value_gap"]) < 1e-13
    assert row["gradient"] < 1e-13
    # Axes: W Wᵀ is the identity of three classes, <W Wᵀ, E>/|…| = (3 - 3/4)/3.
    want = {"centred": 0.0, "axes": (2 - 2 * (3 - 3 / 4) / 3) ** 0.5}[kept]
    assert row["nc2"] == pytest.approx(want, abs=1e-7)


def test_contrastive_property():
    for loss in (CE, LS, FL):
        found = study.contrastive_violation(loss, K=6)
        assert found["lower"] < 1e-12
        assert found["strict"] > 0
        assert found["shift"] < 1e-9
    assert study.contrastive_violation(MSE, K=6)["shift"] > 1

    class Concave:  # a loss that prefers unequal wrong logits
        def per_sample(self, logits, labels):
            return -CE.per_sample(-logits, labels)

    assert study.contrastive_violation(Concave(), K=6)["lower"] > 1


def test_thresholds_and_equivalents_are_what_the_optimiser_finds():
    near = {"loss": {"ce": CE, "fl": FL, "mse": MSE}, "factor": [0.98, 1.02], "K": 4, "d": 6}
    gain = table.over(study.gain_near_threshold, **near, lambda_b=[0.0, 0.3])
    assert (gain.query("factor < 1")["value"] > 1e-6).all()
    assert (gain.query("factor > 1")["value"].abs() < 1e-9).all()
    setting = {"K": 4, "n": 3, "d": 6, "lambda_w": 0.01, "lambda_h": 0.004}
    assert abs(study.smoothing_gap(0.1, **setting)) < 1e-12
    plain = theory.optimum("ce", **setting).value
    assert theory.optimum("ls", alpha=0.1, **setting).value - plain > 0.1  # the shift is needed


def test_the_focal_hessian_changes_sign_at_the_threshold(monkeypatch):
    assert study.focal_convexity_mismatches(samples=60) == 0
    monkeypatch.setattr(theory, "focal_convexity_threshold", lambda _: 0.21)  # the paper's
    assert study.focal_convexity_mismatches(samples=60) > 0


def test_the_geometry_of_the_mse_follows_the_bias_penalty():
    setting = {name: BASE[name] for name in ("K", "n", "d", "lambda_w", "lambda_h")}
    penalties = [0.01, 0.2, np.inf]
    found = table.over(study.bias_geometry, lambda_b=penalties, **setting)
    known = table.over(study.known_bias_geometry, lambda_b=penalties, **setting)
    assert (found[known.columns] - known).abs().max().max() < 1e-6
    assert (found["nc2_centered"] < 1e-6).all()
    assert found["nc2"].tolist() == pytest.approx(
        [0, found["nc2"][1], (2 - 3**0.5) ** 0.5], abs=1e-6
    )
    assert 0.1 < found["nc2"][1] < 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d": 0}, r"widths\[0\] must be at least 1"),
        ({"lambda_w": 0.0}, "lambda_w must be greater than 0"),
        ({"d": 2}, "no closed form for d=2"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        study.against_closed_form(CE, BASE | changes)


# Networks -----------------------------------------------------------------------------------------


def runs():
    accuracies = {
        ("ce", 0): 90.0, ("ce", 1): 92.0, ("ls", 0): 91.0,
        ("ls", 1): 93.0, ("mse", 0): 80.0, ("mse", 1): 86.0,
    }  # fmt: skip
    return pd.DataFrame(
        {"loss": loss, "seed": seed, "width": 4, "epochs": 10, "test_accuracy": value}
        for (loss, seed), value in accuracies.items()
    )


def test_equivalence_by_hand():
    one = study.equivalences(runs()).iloc[0]
    assert study.equivalence(runs())["f_limit"] == pytest.approx(30.8165, abs=1e-3)  # F(2, 3), 99 %
    single = study.equivalence(runs().query("seed == 0"))
    assert np.isnan(single["f_statistic"])
    assert single["largest_gap"] == 10
    assert one["variance"] == pytest.approx(np.var([90, 92, 91, 93, 80, 86]))
    assert one["largest_gap"] == pytest.approx(91 - 83)
    want = f_oneway([90, 92], [91, 93], [80, 86]).statistic
    assert one["f_statistic"] == pytest.approx(want)


def test_accuracies_by_hand():
    found = study.accuracies(runs()).set_index("loss")
    assert found.loc["mse", ["mean", "min", "max", "count"]].tolist() == [83.0, 80.0, 86.0, 2]


def test_ends_compare_with_the_first_epoch_of_zero_error():
    curves = pd.DataFrame({"loss": "ce", "seed": 0, "epoch": [1, 2, 4, 8]})
    curves["train_accuracy"] = [90.0, 99.95, 99.0, 100.0]
    names = [*study.SHOWN[:-1]]
    curves[names] = np.array([8.0, 4.0, 2.0, 1.0])[:, None] * np.ones(len(names))
    worse = curves.assign(seed=1, nc1=[8.0, 4.0, 4.0, 3.0], train_accuracy=50.0)
    assert study.ends(curves).loc["ce", ["first", "nc1_fall"]].tolist() == [2, 0.25]
    found = study.ends(pd.concat([curves, worse])).loc["ce"]
    assert found[["first", "nc1", "nc2", "train_accuracy"]].tolist() == [8, 3, 1, 50]
    assert found[["nc2_fall", "residual_fall"]].tolist() == [
        1,
        1,
    ]  # the worse of 1/4 and, never at zero error, 1


def test_distances_to_cross_entropy_by_hand():
    one, two = torch.eye(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    logits = {("ce", 4, 9, 0): one, ("ce", 4, 9, 1): 2 * one, ("ls", 4, 9, 0): two}
    logits["ls", 4, 5, 0] = one  # another length: nothing to compare with
    found = study.logit_distances(logits).set_index(["loss", "seed", "other"])
    assert found["pair"].to_dict() == {
        ("ce", 0, 1): "two seeds", ("ce", 1, 0): "two seeds",
        ("ls", 0, 0): "same seed", ("ls", 0, 1): "two seeds",
    }  # fmt: skip
    assert found["distance"].tolist() == pytest.approx([2**0.5, 2**0.5, 2**0.5, 2.0])


def test_class_logits_of_a_net_are_centred_over_outputs_and_scaled():
    images = data.load("digits", train_per_class=10)[0]
    net = nets.seeded(0, study.builder("mlp", 8, images))
    found = study.measure_collapse(net, images)
    z, y = net.eval()(images.inputs).detach().double().numpy(), images.labels.numpy()
    means = np.stack([z[y == k].mean(0) for k in range(10)])
    means -= means.mean(1, keepdims=True)
    etf = (np.eye(10) - 0.1) / 3
    assert found["logits_etf"] == pytest.approx(
        np.linalg.norm(means / np.linalg.norm(means) - etf), rel=1e-4
    )
    assert found["train_accuracy"] == pytest.approx(100 * (z.argmax(1) == y).mean())
    own = np.exp(z[range(len(z)), y] - logsumexp(z, axis=1))
    assert found["share_below_threshold"] == pytest.approx((own < 0.0585).mean(), abs=0.011)
    assert found["median_probability"] == pytest.approx(np.sort(own)[49], rel=1e-4)


@pytest.fixture(scope="module")
def trained():
    train_data, test_data = data.load("digits", train_per_class=20)
    recipe = train.Recipe(epochs=0, lr=0.1, batch_size=50, schedule="steps", weight_decay=5e-3)
    named = {"ce": CE, "mse": losses.get("mse", tau=None, scale=15.0)}
    return study.train_nets(
        named, train_data, test_data, recipe, architecture="mlp", widths=[4, 16],
        epochs=[2, 8], seeds=[0, 1], validation=0.1,
    )  # fmt: skip


def test_there_is_one_row_per_net_and_a_curve_of_the_widest_longest(trained):
    assert len(trained.table) == len(trained.logits) == 2 * 2 * 2 * 2
    assert not trained.table[["nc1", "test_accuracy", "logits_etf"]].isna().any().any()
    apart = study.logit_distances(trained.logits)
    assert (apart["distance"] > 0).all()
    assert len(apart.query("loss == 'mse'")) == 2 * len(apart.query("loss == 'ce'"))
    assert set(trained.curves["width"]) == {16}
    assert set(trained.curves["epochs"]) == {8}
    assert trained.curves.groupby(["loss", "seed"])["epoch"].max().eq(8).all()


def test_the_accuracy_kept_is_that_of_the_best_validation_epoch(trained):
    row = trained.table.query("loss == 'ce' and width == 16 and epochs == 8 and seed == 0").iloc[0]
    curve = trained.curves.query("loss == 'ce' and seed == 0")
    best = curve.loc[curve["validation_accuracy"].idxmax()]  # the first of the best
    assert row["test_accuracy"] == best["test_accuracy"]


def test_unknown_architectures_are_named():
    train_data, _ = data.load("digits", train_per_class=5)
    with pytest.raises(ValueError, match="architecture must be one of mlp, cnn"):
        study.builder("transformer", 4, train_data)()
