"""Tables of result 5: small runs against closed forms, by-hand numbers and independent oracles."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

from nclib import claims
from nclib.checks import InputError
from nclib.deep import collect, nets, train
from nclib.deep.data import Data
from nclib.metrics import frame_distances, nc_metrics
from nclib.results.extended_ufm import experiments as study
from nclib.results.extended_ufm import theory
from nclib.results.extended_ufm.nets import block_features
from nclib.table import over


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(counts, decays, widths=4, **options):
    return theory.problem(counts, decays, widths=widths, **options)


def nc1_of(features, labels):
    return nc_metrics(features, labels)["nc1_ratio"]


@pytest.mark.parametrize("M", [1, 2, 4])
def test_balanced_inverts_kappa(M):
    made = study.balanced(M, 0.17, K=5, n=3, widths=6)
    assert theory.kappa(5, 3, made.decays) == pytest.approx(0.17)
    assert theory.optimum(made).kappas.tolist() == pytest.approx([0.17] * 5)


def test_parameters_that_decide_nothing_are_refused():
    study.require_nonzero("lambdas", [3, 2], [0.01, 0.01])
    with pytest.raises(InputError, match="parameter lambdas: so large"):
        study.require_nonzero("lambdas", [3, 2], [1.0, 1.0])
    found = study.bias_openings(0.2, [0.1, 9.0])  # κ (1 + 1/λ_b) = κ*
    assert found == pytest.approx({1: 0.25, 2: 0.2 / (0.5 ** (4 / 3) - 0.2)})
    with pytest.raises(InputError, match="lambda_b_grid needs decays on both sides"):
        study.bias_openings(0.2, [3.0, 9.0])
    biased, linear = (problem([2, 2], [0.1] * 2, bias=b) for b in (0.0, None))
    for call, message in (
        (lambda: study.central_path(biased, torch.ones(4, 4), [0, 1]), "optimal weight"),
        (lambda: study.tied(0.0, K=2, n=2, d=3, lam=0.1), "beta"),
        (lambda: study.chain_ratio("tree", 4, 4, kappa_share=0.2), "family"),
        (lambda: study.left_behind(linear, linear.start(gen())), "two layers and a ReLU"),
    ):
        with pytest.raises(InputError, match=message):
            call()


# --- closed forms against the solver -------------------------------------------------------------


def test_closed_forms_sees_agreement_and_disagreement():
    good = problem([2] * 3, [0.02, 0.02, 0.03])
    found = study.closed_forms([good], starts=6).iloc[0].drop("nuclear")  # of a ReLU only
    assert found.pop("etf_raw") == pytest.approx(math.sqrt(2 - 2 * math.sqrt(2 / 3)))
    assert found.abs().max() < 1e-6
    trapped = study.closed_forms([good, problem([2, 2], [0.1, 0.1])], starts=2, scale=0.001)
    assert trapped["gap"].max() > 0.01
    assert trapped["gram"].max() > 0.1
    some = study.closed_forms([good], starts=6, scale=(0.001, 0.5))
    assert abs(some["below"][0]) < 1e-9  # of the lowest start


def test_closed_forms_tell_the_worst_layer_and_the_last(monkeypatch):
    asked = problem([2] * 3, [0.02] * 3, widths=(4, 6), relu=True)
    point = asked.start(gen(), 0.5)
    still = SimpleNamespace(point=point, value=0.0, values=torch.zeros(1))
    monkeypatch.setattr(study, "search", lambda *_, **__: (still, 0.0))
    found, (H1, H2) = study.closed_forms([asked]).iloc[0], asked.activations(point)
    own = [frame_distances(h.reshape(3, 2, -1).mean(1))["of"] for h in (H1, H2)]
    assert (found["of"], found["last_of"]) == pytest.approx((max(own), own[1]))
    assert abs(own[0] - own[1]) > 0.05
    assert found["frames"] == max(found["nc1"], found["of"], found["nc3"])
    assert found["geometry"] == max(found["gram"], found["offset"])


def test_search_goes_on_while_it_is_stuck_and_says_by_how_much(monkeypatch):
    asked = problem([2] * 3, [0.02, 0.02, 0.03])
    zero = 0.5 - theory.optimum(asked).value  # tiny values end at zero
    _, above = study.search(asked, tries=2, starts=2, scale=0.001)
    assert above == pytest.approx(zero, abs=1e-9)
    best, scales, seeds = study.best, iter([0.001, 0.5, 0.5]), []

    def first_tiny(problem, starts, *, seed, **options):
        seeds.append(seed)
        return best(problem, starts, seed=seed, **options | {"scale": next(scales)})

    monkeypatch.setattr(study, "best", first_tiny)
    found, above = study.search(asked, starts=8, seed=3)
    assert abs(above) < 1e-12
    assert found.value == pytest.approx(theory.optimum(asked).value, abs=1e-12)
    assert len(seeds) == len(set(seeds)) == 2  # other starts, and no more of them than needed


def test_layers_and_balance_by_hand():
    asked = problem([1, 1], [5.0, 2.0, 3.0], widths=1, relu=True)
    point = {"features": [[2.0], [-1.0]], "hidden_1": [[3.0]], "weight": [[0.5], [-1.0]]}
    point = {name: torch.tensor(value).double() for name, value in point.items()}
    found = study.layers(asked, point)
    assert list(found) == ["H1", "W1H1", "H2"]
    assert found["W1H1"].flatten().tolist() == [6, -3]
    assert found["H2"].flatten().tolist() == [6, 0]
    # |λ_1 W_1ᵀW_1 − λ_H HᵀH| = |2·9 − 5·5|, |λ_2 W_2ᵀW_2 − λ_1 W_1W_1ᵀ| = |3·1.25 − 18|
    assert study.balance(asked, point) == pytest.approx(14.25)
    point["weight"] = torch.tensor([[2.0], [-1.0]]).double()  # |3·5 − 18|
    assert study.balance(asked, point) == pytest.approx(7)


def test_layer_duality_pairs_every_level_with_the_rest_of_the_net():
    asked = problem([2] * 3, [0.02, 0.02, 0.03])
    made = theory.realise(theory.optimum(asked), gen())
    assert max(study.layer_duality(asked, made).values()) < 1e-12
    turned = made["hidden_1"] @ torch.linalg.qr(torch.randn(4, 4, generator=gen())).Q.double()
    found = study.layer_duality(asked, made | {"hidden_1": turned})
    assert found["H1"] > 0.1  # H_1 no longer matches W_2 W_1
    relu = problem([2] * 3, [0.02, 0.02, 0.03], widths=6, relu=True)
    assert list(study.layer_duality(relu, theory.relu_point(relu, torch.eye(3)))) == ["H2"]
    for bias, shift in ((0.0, 1.0), (0.5, 0.0)):  # a free bias: of centred means
        asked = problem([2] * 3, [0.02] * 2, bias=bias)
        made = theory.realise(theory.optimum(asked), gen())
        moved = made | {"features": made["features"] + shift}
        assert study.layer_duality(asked, moved)["H1"] < 1e-12


# --- gradient descent and flows ------------------------------------------------------------------


def test_descents_record_every_seed_and_layer():
    asked = problem([3] * 3, [0.02] * 3, widths=12, relu=True)
    table, final = study.descents(asked, lr=0.5, steps=60, seeds=2, record=5)
    assert set(table["seed"]) == {0, 1}
    assert set(table["layer"]) == {"H1", "W1H1", "H2"}
    last = table[(table["step"] == 60) & (table["seed"] == 1)].set_index("layer")
    value = float(asked.value(final[1])) - theory.optimum(asked).value
    assert last.loc["H2", "excess"] == pytest.approx(value)
    hidden = study.layers(asked, final[1])["H2"].reshape(3, 3, 12).mean(1)
    assert last.loc["H2", "of"] == pytest.approx(frame_distances(hidden)["of"])
    assert last["nc3"].isna().tolist() == [True, True, False]
    biased = study.descents(problem([2, 1], [0.1, 0.1], bias=0.0), lr=1e-9, steps=2)[1]
    assert biased[0]["bias"].abs().max() < 1e-6  # it starts at zero
    with pytest.raises(InputError, match="diverged"):
        study.descents(asked, lr=1e4, steps=200)


def test_arms_differ_by_one_thing():
    asked = problem([2] * 2, [0.05, 0.03], widths=3)
    table = study.one_change(asked, starts=2, rate=0.01, steps=3, seed=1)
    assert table.groupby(["arm", "start"]).size().unique().tolist() == [4]
    begin = table[table["step"] == 0].pivot(index="start", columns="arm", values="nc1")
    assert (begin.nunique(axis=1) == 1).all()  # the same features
    generator = gen(1)
    shapes = (2, 4, 3), (2, 2, 3)
    H, W = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    gram, hot = H[1].T @ H[1] + 4 * 0.03 * torch.eye(3), torch.eye(2).double()[asked.targets]
    ridge = torch.linalg.solve(gram, H[1].T @ hot)  # the optimal classifier
    for arm, weight in zip(study.ARMS[1:], (ridge.T, W[1]), strict=True):
        point = {"features": H[1].clone(), "weight": weight.clone()}
        point = {name: tensor.requires_grad_() for name, tensor in point.items()}
        for _ in range(3):
            slopes = torch.autograd.grad(asked.value(point), list(point.values()))
            with torch.no_grad():
                for tensor, slope in zip(point.values(), slopes, strict=True):
                    tensor -= 4 * 0.01 * slope
        found = table.query(f"arm == '{arm}' and start == 1 and step == 3")["nc1"].item()
        assert found == pytest.approx(nc1_of(point["features"].detach(), asked.targets))
    # the first arm is the central path, by small steps
    table = study.one_change(asked, starts=1, rate=1e-4, steps=200, seed=1)
    first = torch.randn(1, 4, 3, generator=gen(1), dtype=torch.float64)[0]
    path = study.central_path(asked, first, [0, 0.02])[-1]
    found = table.query("arm == 'always optimal' and step == 200")["nc1"].item()
    assert found == pytest.approx(nc1_of(path, asked.targets), rel=1e-3)


def test_late_phase_slopes():
    """Claim 5.E10, unequal decays and three layers: log NC1~ falls at the theory's rate."""
    decays, lr = [0.003, 0.004, 0.002, 0.003], 0.5
    assert theory.late_phase_rates([0.1, 0.01, 0.02]) == pytest.approx([-0.2, -0.22])
    asked = problem([3] * 3, decays, widths=8)
    table, _ = study.descents(asked, lr=lr, steps=3000, init_scale=0.3, record=40)
    slopes = study.slopes(table, "nc1", start=1500, end=3000)
    assert list(slopes.values()) == pytest.approx(
        [lr * r for r in theory.late_phase_rates(decays)], rel=0.03
    )


@pytest.mark.parametrize(
    ("decays", "wanted"),
    [([0.01] * 5, [-0.02, -0.04, -0.06, -0.06]), ([0.01, 0.01, 0.04, 0.01], [-0.02, -0.04, -0.06])],
)
def test_late_phase_slopes_where_noise_takes_the_way_through_used_directions(decays, wanted):
    assert theory.late_phase_rates(decays) == pytest.approx(wanted)
    asked = problem([4] * 3, decays, widths=8)
    table, _ = study.descents(asked, lr=0.5, steps=1200, init_scale=0.4, record=40)
    slopes = study.slopes(table, "nc1", start=600, end=1200)
    assert list(slopes.values()) == pytest.approx([0.5 * rate for rate in wanted], rel=0.02)


@pytest.mark.parametrize("relu", [False, True])
def test_balance_decays_like_a_clock(relu):
    """Claim 5.X5."""
    asked = problem([3] * 3, [0.01] * 3, widths=8, relu=relu)
    table, _ = study.descents(asked, lr=0.05, steps=2000, init_scale=0.3, record=3)
    before, *_, after = table.drop_duplicates("step")["balance"]
    assert math.log(after / before) == pytest.approx(-2 * 0.01 * 0.05 * 2000, rel=0.03)


def test_slopes_and_levels_by_hand():
    steps = np.arange(0, 50, 5)
    table = pd.DataFrame({"step": steps, "seed": 0, "layer": "H1", "of": 3 * np.exp(-0.2 * steps)})
    assert study.slopes(table, "of", start=10, end=40)["H1"] == pytest.approx(-0.2)
    two = pd.concat([table, table.assign(seed=1, of=2.0)])
    both = pd.concat([two, two.assign(layer="H2", of=0.5)])
    assert study.levels_reached(table, both) == {
        "linear": pytest.approx(3 * math.exp(-9)),
        "last_level": 0.5,
        "first_level": 4.0,
        "h1_shape": pytest.approx(2 - 3 * math.exp(-9)),
    }
    ends = {"model": ["no bias", "free bias"], "nc1": 0.1, "nc3": 0.15, "excess": [1e-10, 1.0]}
    ends = pd.DataFrame(ends | {"of": [0.3, 9.0], "etf": [8.0, 0.2]})
    assert study.descent_ends(ends, "no bias") == {"worst": 0.3, "excess": 1e-10}
    assert study.descent_ends(ends, "free bias") == {"worst": 0.2, "excess": 1.0}
    assert math.isnan(study.descent_ends(ends.assign(nc3=math.nan), "no bias")["worst"])
    both.iloc[-1, both.columns.get_loc("of")] = math.nan  # one start has diverged
    assert math.isnan(study.levels_reached(table, both)["last_level"])
    assert math.isnan(study.levels_reached(both, both)["linear"])


def test_cosines():
    table = study.cosines({"a": torch.tensor([[2.0, 0.0], [1.0, 1.0]])})
    found = table.pivot(index="row", columns="column", values="cosine").to_numpy()
    np.testing.assert_allclose(found, [[1, math.sqrt(0.5)], [math.sqrt(0.5), 1]], rtol=1e-6)


def test_flows_are_monotone_and_measure_the_path():
    """Claim 5.E11."""
    table = study.flows([(0.05, 0.0), (0.02, 0.01)], K=3, n=4, d=5, seed=2)
    seen = table[table["nc1"] > 1e-9].groupby("setting")
    assert len(seen) == 2
    keys = [(arm, i, step) for arm in study.ARMS for i in (0, 1) for step in (0, 1)]
    arms = pd.DataFrame(keys, columns=["arm", "start", "step"])
    arms["nc1"] = [2.0, 1.0, 4.0, 3.0] * 2 + [2.0, 3.0, 4.0, 1.0]
    found = study.rises(table, arms)
    assert (found["joint"], found["same_start"]) == (1.5, 1.0)
    assert found["nc1"] < 0 and found["within"] <= 1e-9 and found["between"] > 0
    back = study.rises(table.assign(nc1=table["nc1"].iloc[::-1].to_numpy()), arms)
    assert back["nc1"] > 0
    late = {"nc1": [1e-3, 1e-4, 2e-4], "within": 1.0, "between": [1.0, 0.999, 2.0], "setting": "a"}
    late = study.rises(pd.DataFrame(late), arms)  # a rise and a fall far below the start
    assert late["nc1"] == pytest.approx(math.log(2)) and late["between"] == pytest.approx(-1e-3)
    first = torch.randn(12, 5, generator=gen(2), dtype=torch.float64)
    assert table["nc1"][0] == pytest.approx(nc1_of(first, torch.arange(3).repeat_interleave(4)))


def test_central_path_velocity_is_the_total_gradient():
    """Envelope theorem, by finite differences of min_W f, W found by an optimiser."""
    K, lambda_w, lambda_h, targets = 2, 0.1, 0.05, np.eye(2)[[0, 0, 1, 1]]
    first, step = np.random.default_rng(0).standard_normal((4, 3)), 1e-5
    asked = problem([2] * K, [lambda_h, lambda_w], widths=3)
    path = study.central_path(asked, torch.from_numpy(first), [0, step])

    def reduced(H):
        def f(w):
            W = w.reshape(K, 3)
            decay = lambda_w / 2 * (W**2).sum() + lambda_h / 2 * (H**2).sum()
            return ((H @ W.T - targets) ** 2).sum() / 8 + decay

        return scipy_minimize(f, np.zeros(K * 3), tol=1e-12).fun

    for index in ((0, 0), (3, 2)):
        bump = np.zeros_like(first)
        bump[index] = 1e-3
        slope = (reduced(first + bump) - reduced(first - bump)) / 2e-3
        assert (path[1] - path[0])[index] / step == pytest.approx(-4 * slope, abs=2e-4)


def test_tied_features_are_pulled_towards_the_anchor():
    table = over(study.tied, beta=[0.01, 1.0, 1e6], K=2, n=3, d=3, lam=0.02)
    assert table["nc1"].is_monotonic_increasing
    assert (table["nc1"] < table["anchor"]).all()
    assert table["nc1"][2] == pytest.approx(table["anchor"][0], rel=1e-3)
    fall = table["anchor"] - table["nc1"]
    assert abs(table["path"][2] - table["nc1"][2]) < 1e-3 * fall[2]
    assert abs(table["path"][0] - table["nc1"][0]) > 1e-3 * fall[0]  # a small β is not small time


# --- phases and landscape ------------------------------------------------------------------------


def test_sweeps_up_and_down_take_different_branches():
    """Claim 5.E14 (hysteresis) for M = 2; M = 1 has one branch."""
    curves = over(study.phase, M=[1, 2], kappa=[0.0, 0.2, 0.43, 1.05])
    assert (curves["value"] <= 0.5 + 1e-12).all()
    assert curves["u"][:4].tolist() == pytest.approx([1, 0.8, 0.57, 0])
    sweeps = study.phase_sweeps([1, 2], K=2, n=1, width=3)
    for M, part in sweeps.groupby("M"):
        local = over(study.phase, M=[M], kappa=part["kappa"])["local"].fillna(0).to_numpy()
        up = (part["direction"] == "up").to_numpy()
        np.testing.assert_allclose(part["scale"][up], local[up], atol=1e-4)
        np.testing.assert_allclose(part["scale"][~up], local[~up] * (M == 1), atol=1e-4)
    found = study.hysteresis(sweeps)
    assert found["two_branches"] > 0.3
    assert found["only_local"] > 0.5
    assert found["one_layer"] < 1e-3
    back = study.hysteresis(sweeps.assign(M=3 - sweeps["M"]))  # the roles exchanged
    assert back["two_branches"] < 1e-3 and back["one_layer"] > 0.3


def test_around_threshold_changes_sign():
    table = over(study.around_thresholds, M=[1, 2], K=2, n=2, width=3)
    assert (table["below"] < -1e-6).all()
    assert (table["above"] > -1e-9).all()
    assert table["above"][1] > 1e-3  # a local minimum only
    assert table["before"][1] > 0.2  # u is 1/4 where the local minimum disappears
    assert table["beyond"].abs().max() < 1e-6


def test_ladders_count_ranks():
    table = study.ladders([1, 2], [0.01, 0.6], kappa=0.2, K=2, n=2, width=3, runs=5)
    assert len(table) == 20
    assert table["gap"].max() < 1e-9
    assert (table.query("M == 1")["rank"] == 2).all()
    assert (table.query("M == 2 and init_scale < 0.1")["rank"] == 0).all()
    levels = study.levels(study.balanced(2, 0.2, K=2, n=2, widths=3))
    assert levels[0] == pytest.approx(0.5)
    assert levels == sorted(levels, reverse=True)


def test_critical_points_match_their_theory():
    table = over(study.critical, M=[1, 2], rank=[0, 1, 2], kappa=0.2, K=2, n=2, width=3)
    assert (table["index"] == table["index_theory"]).all()
    assert (table["nullity"] == table["nullity_theory"]).all()
    saddles = table.query("M == 1 and rank < 2")
    np.testing.assert_allclose(saddles["lowest"], saddles["curvature"], atol=1e-10)
    assert (saddles["returned"] < -0.01).all()
    assert table.query("M == 2")["returned"].abs().max() < 1e-9


# --- bias, imbalance, bottleneck -----------------------------------------------------------------


def test_bias_geometry_measured_equals_theory():
    setting = {"lambda_b": [0.1, 1.0], "kappa": 0.2, "K": 3, "n": 2, "width": 4}
    closed, found = (over(study.bias_geometry, M=[1], **setting, measured=m) for m in (False, True))
    columns = ["bias", "common", "mean", "of", "etf"]
    np.testing.assert_allclose(found[columns], closed[columns], rtol=0, atol=1e-12)
    assert closed["mean"][0] < 1e-15
    assert closed["mean"][1] == pytest.approx(0.6 / math.sqrt(2))  # û = 1 − κ − κ/λ_b
    assert closed["common"].tolist() == pytest.approx([0.8 / math.sqrt(2)] * 2)
    assert closed["bias"][0] == pytest.approx(1 / (1.1 * 3))
    maps = study.bias_maps([0.1, 1e6], kappa=0.2, K=3, n=2, width=4)
    off = maps[maps["row"] != maps["column"]].groupby("name", sort=False)["cosine"].mean().tolist()
    assert off == pytest.approx([-0.5, 0.0], abs=1e-5)
    assert maps["name"].str.startswith("$M=1$").all()


def test_class_norms_measured_equal_theory():
    setting = {"bias": study.BIASES, "counts": (6, 3, 1), "lam": 0.01, "width": 5}
    closed, found = (over(study.class_norms, M=[1], **setting, measured=m) for m in (False, True))
    columns = ["feature", "weight", "logit"]
    np.testing.assert_allclose(found[columns], closed[columns], rtol=0, atol=1e-12)
    assert closed["n_k"].tolist() == [6, 3, 1] * 2


def test_bottleneck_value_is_unique_and_geometry_is_not():
    table = study.geometry_spread(problem([2] * 3, [0.05] * 2, widths=2), starts=3)
    assert np.ptp(table["value"]) < 1e-12
    assert np.ptp(table["etf"]) > 1e-4


def test_surviving_sizes():
    asked = problem([40, 20, 4, 1], [0.012] * 3, widths=6)
    sizes, above = study.surviving_sizes(asked, starts=12)
    assert sizes == [40, 20, 4]
    assert abs(above) < 1e-12


# --- ReLU and low rank ---------------------------------------------------------------------------


def test_relu_shapes_and_low_rank_minima():
    shapes = {"frame": torch.eye(3).double(), "acute": 0.7 * torch.eye(3).double() + 0.3}
    table = over(study.relu_shape, shape=shapes, n=2, decays=(0.01, 0.01, 0.02), widths=6)
    assert table["shape"].tolist() == ["frame", "acute"]
    assert abs(table["excess"][0]) < 1e-13
    assert table["slope"][0] < 1e-13
    assert table["excess"][1] > 1e-3
    assert table["of"][0] < 1e-12
    assert table["of"][1] == pytest.approx(math.sqrt(2 - 6 / math.sqrt(3 * (3 + 6 * 0.3**2))))
    few, many = (study.low_rank_search(*at, kappa_share=0.5)["ratio"] for at in ((4, 3), (15, 5)))
    assert few == pytest.approx(1, abs=1e-6) and many < 0.98  # .9725 for eight seeds of eight


@pytest.mark.slow
def test_full_rank_finds_lower_points_near_the_threshold_only():
    six, fifteen = (
        study.low_rank_search(K, K, kappa_share=s)["ratio"] for K, s in ((6, 0.95), (15, 0.5))
    )
    assert six < 0.999 and fifteen == pytest.approx(1, abs=1e-9)


def test_low_rank_tables():
    ratios = over(study.chain_ratio, family="graph", size=[4], L=[3, 4], kappa_share=0.2)
    assert ratios["ratio"].tolist() == pytest.approx(ratios["cost"].tolist(), rel=2e-3)
    assert (ratios["ratio"] < 1).tolist() == [False, True]
    many = study.chain_ratio("segment", 5, 4, kappa_share=0.2)
    assert many["K"] == 5
    assert many["ratio"] == pytest.approx(many["cost"], rel=2e-3)
    assert study.chain_gap(4, [0.01, 0.01, 0.02, 0.01]) < 1e-13
    refined = study.refined([theory.segment_chain(3, 4)], width=6, kappa_share=0.25, max_iter=120)
    assert refined["ratio"][0] < refined["explicit"][0] < 0.99
    few = {"kappa_share": 0.25, "max_iter": 400, "seed": 5}  # whose first kick leads above
    refined = study.refined([theory.segment_chain(4, 6)], width=20, **few)
    assert refined["ratio"][0] < refined["explicit"][0] - 5e-4
    far, near = study.undercut(6, 0.85), study.undercut(6, 0.98)
    assert near["ratio"] < 1 < far["ratio"]
    assert near["nuclear"] == pytest.approx((2 + 3**0.5) / (2 * 3**0.5))
    pairs = study.undercut(15, 1e-3)
    assert pairs["ratio"] == pytest.approx((26 / 27) ** (1 / 3), abs=1e-4)
    assert pairs["nuclear"] == pytest.approx((12**0.5 + 5 * 6**0.5 + 9 * 2**0.5) / 600**0.5)
    found, spectra = study.depth_race(2, 3, width=6, kappa_share=0.3, starts=3, max_iter=150)
    assert found.min() >= 1 - 1e-9  # claim 5.E19
    assert set(spectra["layer"]) == {"H1", "H2", "H3"}
    assert spectra["value"].max() == 1
    rows = [(f"H{j}", i, v) for j, r in ((1, 4), (2, 2), (3, 3), (4, 4)) for i in range(1, 5)
            for v in [1.0 if i <= r else 0.01]]  # fmt: skip
    by_hand = pd.DataFrame(rows, columns=["layer", "index", "value"])
    assert study.hidden_ranks(by_hand, 4) == {"hidden": 0.75, "last": 1.0}
    zero = by_hand.assign(value=math.nan)  # of the zero solution
    assert study.hidden_ranks(zero, 4) == {"hidden": 0.0, "last": 0.0}


def test_samples_left_behind_cost_what_is_predicted():
    """Two samples without any active neuron, the others at their optimum."""
    asked = problem([5] * 3, [0.003] * 3, widths=(4, 12), relu=True)
    rest = problem([5, 4, 4], [0.003 * 15 / 13] * 3, widths=(4, 12), relu=True)
    found, above = study.search(rest, starts=12, seed=1)
    assert above < 1e-9 or found.value == pytest.approx(theory.optimum(rest).value, abs=1e-7)
    features = torch.zeros(15, 4, dtype=torch.float64)
    features[[0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14]] = found.point["features"]
    measured = study.left_behind(asked, found.point | {"features": features})
    assert measured["stuck"] == 2
    assert measured["excess"] == pytest.approx(measured["predicted"], abs=1e-7)
    known = theory.optimum(asked).value
    whole = study.left_behind(asked, theory.relu_point(asked, torch.eye(3)))
    assert whole["stuck"] == whole["between"] == 0
    assert abs(whole["excess"]) < 1e-12 and abs(whole["predicted"]) < 1e-12
    assert float(asked.value(found.point | {"features": features})) - known > 0.02
    features[0] /= 2  # its own logit halves
    half = study.left_behind(asked, found.point | {"features": features})
    assert half["stuck"] == 2 and half["between"] == 1
    merged = {"features": features.new_ones(15, 4), "hidden_1": features.new_ones(12, 4)}
    merged["weight"] = features.new_full((3, 12), 1 / 48 / 3)  # all classes have logits 1/3
    assert study.left_behind(asked, merged)["between"] == 15
    none = study.left_behind(asked, {name: 0 * x for name, x in merged.items()})
    assert none["stuck"] == 15 and none["between"] == 0
    assert none["excess"] == pytest.approx(none["predicted"]) == pytest.approx(0.5 - known)
    lost = theory.relu_point(asked, torch.eye(3).double())
    lost["features"][5:10], lost["hidden_1"][1], lost["weight"][1] = 0, 0, 0  # a whole class
    found = study.left_behind(asked, lost)
    assert found["stuck"] == 5
    assert found["excess"] == pytest.approx(found["predicted"], abs=1e-12)
    split = theory.realise(theory.optimum(problem([3, 2, 5, 5], [0.003] * 3, widths=(4, 12))))
    split["weight"] = torch.cat([split["weight"][:2].sum(0, keepdim=True), split["weight"][2:]])
    found = study.left_behind(asked, split)  # a class on two neurons, 3 samples and 2
    assert found["stuck"] == 0 and found["between"] == 5 and found["excess"] > 1e-3
    runs = pd.DataFrame({"seed": [0, 1, 2], "of": [1.0, 2.0, 3.0]})
    assert list(study.finished(runs, [whole, half, measured])["seed"]) == [0, 2]
    assert len(study.finished(runs, [half] * 3)) == 3


# --- networks ------------------------------------------------------------------------------------


@pytest.fixture
def blobs():
    labels = torch.arange(3).repeat(8)
    centres = 3 * torch.randn(3, 6, generator=gen())
    inputs = centres[labels] + torch.randn(24, 6, generator=gen(1))
    return Data("blobs", inputs.reshape(24, 1, 2, 3), labels, 3)


def test_heads_stay_above_their_floor(blobs):
    heads = {"plain": ([0.003, 0.02], None), "free bias": ([0.003, 0.02, 0.01], 0.0)}
    recipe = train.Recipe(400, 1e-2, None, optimizer="adam", schedule="cosine")
    table = study.train_heads(blobs, heads, recipe, widths=[16, 5], points=5)
    assert list(table["head"].unique()) == ["plain", "free bias"]
    assert (table["loss"] >= table["floor"] - 1e-6).all()
    last = table.groupby("head").last()
    assert (last["excess"] < 0.2).all()
    assert (last["loss"] / last["floor"] - 1 - last["excess"]).abs().max() < 1e-12
    assert (last["norm_sq"] / last["norm_sq_theory"] - 1).abs().max() < 0.1
    still, plain = train.Recipe(1, 1e-9, None, optimizer="adam"), {"plain": heads["plain"]}
    table = study.train_heads(blobs, plain, still, widths=[16, 5], points=2, seeds=[1, 2])
    assert np.ptp(table[table["epoch"] == 0]["loss"]) > 1e-4  # every seed is a net of its own


def test_floor_errors_by_hand():
    keys = ["head", "seed", "loss", "of", "of_w", "etf", "etf_w", "nc3", "nc1", "norm_sq", "excess"]
    rows = [
        ("plain", 0, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 9.0, 2.0),
        ("plain", 0, 0.4, 0.02, 0.01, 0.6, 0.6, 0.03, 0.01, 1.9, 0.01),
        ("deep", 0, 0.7, 0.01, 0.03, 0.6, 0.6, 0.02, 0.02, 2.1, 0.04),
        ("free bias", 0, 0.6, 0.3, 0.4, 0.04, 0.05, 0.01, 0.01, 2.0, 0.02),
        ("control", 0, 0.5, 0.8, 0.7, 0.7, 0.7, 0.9, 0.9, 7.0, 5.0),
    ]
    table = pd.DataFrame(rows, columns=keys).assign(floor=0.3, norm_sq_theory=2.0)
    want = {"never_below": 0.1, "reaches": 0.04, "norm": 0.05, "nc1": 0.02, "frame": 0.03,
            "etf": 0.05, "nc3": 0.03, "not_orthogonal": 0.3, "control": 40}  # fmt: skip
    assert study.floor_errors(table, "control") == pytest.approx(want)
    better = table.assign(seed=1, of=table["of"] * [1, 0.5, 0.5, 2, 2], nc1=0.001, etf_w=0.01)
    worse = better.assign(etf=0.06, of=better["of"] / 3)
    assert study.floor_errors(pd.concat([better, table]), "control") == pytest.approx(want)
    want |= {"etf": 0.06, "not_orthogonal": 0.2, "control": 0.8 * 2 / 3 / 0.02}
    assert study.floor_errors(pd.concat([table, worse]), "control") == pytest.approx(want)
    vanished = table.copy()  # a net that ends without features is no good one
    vanished.loc[1, ["of", "of_w", "nc1", "nc3", "excess"]] = math.nan
    found = study.floor_errors(vanished, "control")
    wrong = {name for name, value in found.items() if math.isnan(value)}
    assert wrong == {"reaches", "nc1", "frame", "nc3", "control"}


def test_train_nets_measures_what_the_net_does(blobs):
    recipe = train.Recipe(4, 0.05, 8, weight_decay=1e-3)
    asked = {"a": ("mse", False, 1e-3), "b": ("ce", True, 0.0), "c": ("mse", False, 3.0)}
    shape = {"architecture": "mlp", "width": 6, "points": 4, "seeds": [3]}
    other = replace(blobs, labels=(blobs.labels + 1) % 3)
    deep, overall = study.train_nets(blobs, other, asked, recipe, **shape)
    frames = overall.pivot(index="epoch", columns="net", values="of_w")
    assert frames["a"][0] == frames["c"][0] and abs(frames["a"][4] - frames["c"][4]) > 1e-3
    assert list(deep["block"].unique()) == [1, 2, 3]
    assert set(overall["epoch"]) == {0, 1, 2, 4}
    net = nets.seeded(3, study.build, "mlp", blobs, False, 6)  # before training
    row = deep[(deep["net"] == "a") & (deep["epoch"] == 0) & (deep["block"] == 3)].iloc[0]
    features = collect.features(net, blobs.inputs)
    assert row["nc1"] == pytest.approx(nc1_of(features, blobs.labels))
    first = deep[(deep["net"] == "a") & (deep["epoch"] == 0) & (deep["block"] == 1)].iloc[0]
    shallow = block_features(net, blobs.inputs, [first["layer"]])[first["layer"]]
    means = torch.stack([shallow[blobs.labels == k].mean(0) for k in range(3)])
    assert first["of"] == pytest.approx(frame_distances(means)["of"])
    start = overall[(overall["net"] == "a") & (overall["epoch"] == 0)].iloc[0]
    guess = net.eval()(blobs.inputs).argmax(1)
    for name, data in (("train_accuracy", blobs), ("test_accuracy", other)):
        assert start[name] == pytest.approx(100 * (guess == data.labels).double().mean().item())
    assert start["train_accuracy"] != start["test_accuracy"]
    assert start["of_w"] == pytest.approx(frame_distances(net.weight)["of"])
    weight, means = net.weight, torch.stack([features[blobs.labels == k].mean(0) for k in range(3)])
    apart = weight / weight.norm() - means / means.norm()
    assert start["nc3"] == pytest.approx(float(apart.norm()), rel=1e-4)
    net = nets.seeded(3, study.build, "mlp", blobs, True, 6)
    features, weight = collect.features(net, blobs.inputs), net.weight
    means = torch.stack([features[blobs.labels == k].mean(0) for k in range(3)])
    apart = weight / weight.norm() - (means - means.mean(0)) / (means - means.mean(0)).norm()
    biased = overall[(overall["net"] == "b") & (overall["epoch"] == 0)].iloc[0]
    assert biased["nc3"] == pytest.approx(float(apart.norm()), rel=1e-4)


def two_runs(**columns):
    """Per block and per epoch, two blocks and three epochs of every net, as the claims want them;
    ``columns``: net -> values at the end.  A second seed does better in every way."""
    names = [study.PLAIN, study.BIASED, study.ENTROPY, *study.NO_DECAY.values()]
    keys = [(net, 0, epoch) for net in names for epoch in (0, 1, 2)]
    overall = pd.DataFrame(keys, columns=["net", "seed", "epoch"])
    overall = overall.assign(of_w=0.5, etf_w=0.5, nc3=0.5, train_accuracy=99.0)
    deep = pd.concat([overall.assign(block=b, nc1=1.0, of=0.5, etf=0.5) for b in (1, 2)])
    deep = deep[["net", "seed", "epoch", "block", "nc1", "of", "etf"]].reset_index(drop=True)
    for net, values in columns.items():
        for table in (deep, overall):
            at = (table["net"] == getattr(study, net)) & (table["epoch"] == 2)
            at &= table["block"] == 2 if "block" in table else True
            for name in values.keys() & set(table):
                table.loc[at, name] = values[name]
    smaller = {"PLAIN": ["of", "of_w", "nc3", "nc1"], "BIASED": ["etf", "etf_w", "nc3", "nc1"]}
    smaller |= {"ENTROPY": ["etf_w", "nc1"]}
    second = []
    for table in (deep.assign(seed=1), overall.assign(seed=1)):
        end = (table["epoch"] == 2) & (table["block"] == 2 if "block" in table else True)
        values = table.columns[table.columns.get_loc("nc1" if "block" in table else "of_w") :]
        for net in names:
            low = [n for k, own in smaller.items() if getattr(study, k) == net for n in own]
            for name in values:
                table.loc[end & (table["net"] == net), name] *= 0.5 if name in low else 2
        second.append(table)
    return pd.concat([deep, second[0]]), pd.concat([overall, second[1]])


def test_what_networks_reach_by_hand():
    plain = {"of": 0.05, "of_w": 0.06, "nc3": 0.07, "etf_w": 0.3, "nc1": 0.01}
    biased = {"etf": 0.02, "etf_w": 0.03, "nc3": 0.01, "of_w": 0.4, "nc1": 0.02}
    tables = two_runs(PLAIN=plain, BIASED=biased, ENTROPY={"nc1": 0.1, "etf_w": 0.4})
    found = study.frames_reached(*tables)
    frames = {name: found[name] for name in ("frame", "etf", "nc3")}
    worst = {name: list(map(max, own.values())) for name, own in frames.items()}
    assert worst == {"frame": [0.05, 0.06], "etf": [0.02, 0.03], "nc3": [0.07, 0.01]}
    assert (max(found["nc1"]), min(found["other"]), min(found["fits"])) == (0.02, 0.3, 99.0)
    assert found["control"] == pytest.approx({study.PLAIN: 0.5 / 0.07, study.BIASED: 0.5 / 0.03})
    deep = tables[0]
    deep.loc[(deep["epoch"] == 0) & (deep["block"] == 2), "nc1"] = 0.5  # before training
    found = study.depth_and_bias(*tables)
    weakest = {name: np.max(found[name]) for name in found if name != "of_w"}
    assert weakest | {"of_w": min(found["of_w"])} == pytest.approx(
        {"through_depth": math.log(0.1), "control": math.log(0.2), "through_training": 0.1,
         "of_w": 0.34, "etf_w": -0.27, "ce": -0.1}
    )  # fmt: skip


def test_a_net_without_a_number_is_not_passed_over():
    deep, overall = two_runs(PLAIN={}, BIASED={}, ENTROPY={})
    lost = (deep["epoch"] == 2) & (deep["net"] == study.PLAIN) & (deep["seed"] == 0)
    gone = (overall["epoch"] == 2) & (overall["net"] == study.BIASED) & (overall["seed"] == 1)
    deep, overall = deep.copy(), overall.copy()
    deep.loc[lost, ["nc1", "of"]], overall.loc[gone, ["of_w", "etf_w", "nc3"]] = math.nan, math.nan
    ledger = claims.Ledger("05_extended_ufm")
    found = ledger.claim("X9", **study.frames_reached(deep, overall)).claims
    found += ledger.claim("E18", **study.depth_and_bias(deep, overall)).claims
    lacks = {claim.id[2:] for claim in found if str(claim.measured) == "nan"}
    wanted = {"X9.nc1", "X9.frame.features", "X9.etf.classifier", "X9.other"}
    wanted |= {
        f"X9.{name}.{net}" for name, net in (("nc3", study.BIASED), ("control", study.PLAIN))
    }
    wanted |= {f"E18.{name}" for name in ("through_depth", "control", "through_training")}
    assert wanted | {"E18.of_w", "E18.etf_w"} <= lacks
    assert not lacks & {"X9.fits", "X9.etf.features", "E18.ce"}


def test_sweeps_without_a_number_are_not_passed_over():
    columns = {"M": [1, 1, 2, 2], "kappa": 0.2, "direction": ["up", "down"] * 2, "value": 0.4}
    sweeps = pd.DataFrame(columns | {"scale": [0.5, 0.5, math.nan, 0.5]})
    found = study.hysteresis(pd.concat([sweeps, sweeps.assign(kappa=0.6, scale=0.5)]))
    assert math.isnan(found["two_branches"]) and found["one_layer"] == 0


@pytest.mark.parametrize(("architecture", "width"), [("cnn", 2), ("resnet18", 1 / 32)])
def test_convolutional_nets(architecture, width):
    inputs = torch.randn(8, 1, 8, 8, generator=gen())
    data = Data("noise", inputs, torch.arange(2).repeat(4), 2)
    shape = {"architecture": architecture, "width": width, "points": 2, "seeds": [0]}
    asked = {"a": ("mse", True, 0.0)}
    deep, _ = study.train_nets(data, data, asked, train.Recipe(1, 0.01, 4), **shape)
    assert deep["block"].max() == {"cnn": 3, "resnet18": 4}[architecture]


def test_layers_that_a_net_does_not_have_are_refused():
    study.require_layers("mlp", "layers_to_probe", None)
    study.require_layers("resnet18", "layers_to_probe", ["backbone.layer1", "backbone.layer2"])
    with pytest.raises(InputError, match="parameter layers_to_probe must be one of"):
        study.require_layers("mlp", "layers_to_probe", ["nowhere"])
    with pytest.raises(InputError, match="architecture"):
        study.require_layers("tree", "layers_to_probe", None)
