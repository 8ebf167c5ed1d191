"""Tables behind the figures of result 4: oracles, small cases, tiny trainings."""

import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import normalize

from nclib import checks, frames
from nclib.deep import collect, nets
from nclib.deep.data import Data
from nclib.metrics import known_margins, margins
from nclib.metrics.geometry import class_means
from nclib.results.large_class import codes, experiments, search, theory
from nclib.table import over
from nclib.ufm import solve


def test_two_distances_of_three_points_by_hand():
    table = experiments.two_distances(frames.polygon(4)[:3])
    np.testing.assert_allclose(table["one_vs_one"], np.sqrt(2))
    np.testing.assert_allclose(table["one_vs_rest"], [np.sqrt(2), 1, np.sqrt(2)])
    np.testing.assert_allclose(table.loc[1, ["hull_x", "hull_y"]].astype(float), 0, atol=1e-9)
    np.testing.assert_allclose(table.loc[[0, 2], ["near_x", "near_y"]], [[0, 1]] * 2, atol=1e-15)


def test_vertices_mark_rattlers():
    table = over(experiments.vertices, code={"square": frames.polygon(4), "7": frames.polygon(7)})
    assert table.groupby("code").size().to_dict() == {"7": 7, "square": 4}
    assert not table["rattler"].any()
    np.testing.assert_allclose(table[["x", "y", "z"]].pow(2).sum(axis=1), 1)
    lopsided = experiments.vertices(frames.polygon(8)[[0, 1, 2, 5]])
    assert lopsided["rattler"].tolist() == [True, False, True, True]


def test_codes_are_read_as_directions():
    """Rows of any length; pictures only where there are that many dimensions."""
    lopsided = frames.polygon(8)[[0, 1, 2, 5]]
    longer = lopsided * torch.tensor([[5.0], [0.1], [1.0], [3.0]])
    pd.testing.assert_frame_equal(experiments.vertices(longer), experiments.vertices(lopsided))
    assert experiments.moved_features(longer) == pytest.approx(experiments.moved_features(lopsided))
    with pytest.raises(checks.InputError, match="d=4 > 3 dimensions"):
        experiments.vertices(frames.cross_polytope(4))
    with pytest.raises(checks.InputError, match="2 columns"):
        experiments.two_distances(frames.cross_polytope(3))


def test_known_margins():
    """Stated from K = sqrt(2 pi sqrt(3 e)) = 4.2 on in space; a lower bound is no known margin."""
    table = pd.DataFrame(experiments.known_margin(*size) for size in ((4, 3), (7, 3), (100, 10)))
    assert table["margin"].tolist() == pytest.approx([4 / 3, 0.7898616872694, np.nan], nan_ok=True)
    assert table["status"].tolist() == ["proven", "tabulated", "unknown"]
    assert table["stated"].tolist() == [False, True, True]


def test_searched_where_nothing_is_known_or_polished():
    row = experiments.searched(30, 6, starts=1)
    assert np.isnan(row["reference"]) and np.isnan(row["rattlers"])
    assert row["status"] == "unknown" and 0.5 < row["margin"] < 1
    with pytest.raises(checks.InputError, match="line"):
        experiments.searched(3, 1)
    with pytest.raises(checks.InputError, match=r"no best margin is known for .* \(30, 6\)"):
        experiments.cold_limit(experiments.random_classifier(30, 6), 0.1)


def test_search_finds_the_icosahedron_from_random_starts():
    row = experiments.searched(12, 3, starts=8)
    assert row["margin"] == pytest.approx(1 - 5**-0.5, abs=1e-9)
    assert row["angle_margin"] == pytest.approx(row["margin"], abs=1e-9)
    assert row["duality_gap"] < 1e-9 and row["rattlers"] == 0


def test_largest_hard_margin_of_scipy_is_the_margin_of_projections():
    for seed in range(3):
        weight = experiments.random_classifier(15, 4, seed=seed)
        found = experiments.largest_hard_margin(weight)
        assert found == pytest.approx(margins.margin(weight).value, abs=1e-7)


def test_moving_a_rattler_costs_nothing():
    moved = experiments.moved_features(frames.polygon(8)[[0, 1, 2, 5]])
    assert moved["rattler"] == 0 and moved["tight"] > 1e-4
    assert np.isnan(experiments.moved_features(frames.polygon(5))["rattler"])


def test_minimum_of_a_simplex_with_samples():
    found = experiments.minimum(4, 3, 0.5, starts=4, samples=2)
    assert found["log_ce"] == pytest.approx(
        theory.log_energy(frames.simplex_etf(4), 0.5), abs=1e-10
    )
    assert found["features"].shape == (8, 3) and found["within_class"] < 1e-12
    assert found["margin"] == pytest.approx(4 / 3, abs=1e-6) and found["duality_gap"] < 1e-10


def test_started_from_a_code_it_stays_there():
    code = frames.icosahedron()
    found = experiments.minimum(12, 3, 0.05, start=code)
    torch.testing.assert_close(found["weight"], code, atol=1e-9, rtol=0)
    row = experiments.cold_limit(code, 0.05)
    assert row["scaled_low"] <= row["scaled"] <= row["scaled_high"]
    assert row["hard_margin"] >= row["floor"] and row["slack"] == pytest.approx(0, abs=1e-11)


def test_cold_minima_are_the_same_from_a_turned_code():
    code, T = search.solve(7, 3, starts=8), 0.004
    turned = code @ frames.random_rotation(3, generator=torch.Generator().manual_seed(1))
    one, two = (experiments.cold_limit(c, T) for c in (code, turned))
    for name in ("slack", "value_rate", "duality_gap"):
        assert one[name] == pytest.approx(two[name], rel=1e-9, abs=1e-11), name
    stuck = experiments.cold_limit(experiments.random_classifier(7, 3), T)
    assert np.isnan(stuck["slack_limit"]) and np.isfinite(stuck["slack"])


@pytest.mark.parametrize(
    ("d", "temperature", "family"),
    [(4, 0.6, "balanced simplices"), (4, 0.3, "segment + simplex"), (4, 0.06, "tilted vertices")],
)
def test_each_phase_is_the_minimum_from_random_starts(d, temperature, family):
    row = experiments.phase(d, temperature, starts=8)
    assert row["family"] == family and abs(row["gap"]) < 1e-9


def test_warm_minimum_leaves_the_bipyramid_outside_of_its_range():
    inside, outside = (experiments.warm_minimum(T, starts=8) for T in (0.4, 0.15))
    assert abs(inside["excess"]) < 1e-9 and inside["curvature"] > 0
    assert outside["excess"] > 1e-3 and outside["curvature"] < 0


@pytest.mark.slow
def test_noise_of_1e_6_takes_slow_cooling_from_the_bipyramid_to_the_softmax_code():
    """Below .208 it is a saddle, on which only a path without any noise stays."""
    generator = torch.Generator().manual_seed(0)

    def cooled(noise):
        code = frames.bipyramid(7)
        for T in (0.22, 0.15, 0.08, 0.02):
            shift = torch.randn(7, 3, generator=generator, dtype=torch.float64)
            start = theory.self_dual(normalize(code + noise * shift, dim=1))
            found = solve.minimize(theory.model(7, 3, T), start, gtol=1e-9, max_iter=2000)
            code = normalize(found.variables["weight"], dim=1)
        return margins.margin(code).value / known_margins.known_margin(7, 3)

    assert cooled(0.0) == pytest.approx(0.8748, abs=1e-4)
    assert cooled(1e-6) > 0.99


def test_large_tables():
    heads = {"random": experiments.random_classifier(50, 5), "E8": codes.e8_roots()}
    samples = experiments.distances(heads, sample=20)
    assert samples.groupby("classifier").size().to_dict() == {"E8": 20, "random": 20}
    assert not samples.equals(experiments.distances(heads, sample=20, seed=1))
    table = over(experiments.certificate, classifier=heads).set_index("classifier")
    assert table.loc["E8", "lower"] == pytest.approx(0.5, abs=1e-6)
    exact = margins.hull_projections(heads["random"]).distance.min()
    assert table.loc["random", "lower"] <= exact <= table.loc["random", "upper"] + 1e-12


def test_lone_rows_leave_twins_out():
    head = torch.cat([frames.icosahedron(), frames.icosahedron()[:2]])
    found = experiments.lone_rows(head)
    assert found["twins"] == 4  # two pairs
    expected = margins.margin(frames.icosahedron()[2:]).value
    assert found["margin"] == pytest.approx(expected, abs=1e-3)


def test_require_sizes():
    experiments.require_sizes([[7, 3], [15, 10]], [[100, 10], [56, 7]])
    for sizes, message in (([[37, 6]], r"no margin .* \(37, 6\)"), ([[27, 6]], "use large_sizes")):
        with pytest.raises(checks.InputError, match=message):
            experiments.require_sizes(sizes, [])


def test_reference_of_a_huge_size_needs_no_search(monkeypatch):
    monkeypatch.setattr(experiments.search, "solve", None)
    assert experiments.reference(10_000, 512) == pytest.approx(1 - 31 / 511)


def test_against_says_on_which_side_the_minimum_is():
    code = frames.polygon(7)
    assert abs(experiments.against(code, 0.5, starts=4)["above"]) < 1e-11
    worse = experiments.against(code[[0, 1, 2, 3, 4, 5, 5]], 0.5, starts=4)
    assert worse["above"] < -0.01


def test_reference():
    assert experiments.reference(12, 3) == known_margins.known_margin(12, 3)
    assert experiments.reference(100, 10) == known_margins.LOWER_BOUNDS[100, 10]
    assert 0.6 < experiments.reference(30, 6) < 1  # not in any table


def test_gold_cosines():
    assert experiments.largest_cosine_of_gold(900, 40, sample=50) == pytest.approx(7 / 31)


def tiny(classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(10 * classes) % classes
    means = torch.randn(classes, 5, generator=generator)
    noise = 0.2 * torch.randn(2, len(labels), 5, generator=generator)
    return [Data("points", means[labels] + part, labels, classes) for part in noise]


def wrongly_labelled(part):
    return Data("wrong", part.inputs, part.labels.roll(1), part.num_classes)


def test_nets_collapse_on_easy_data():
    points, test = tiny()
    test = wrongly_labelled(test)
    table = experiments.train_nets(
        experiments.builder("mlp", points, 3, hidden=(32,)), points, test,
        experiments.recipe(epochs=30, batch_size=20), temperatures=[0.5, 0.2], seeds=[0, 1],
        measure_at=[0], reference=1.0,
    )  # fmt: skip
    assert sorted(set(table["epoch"])) == [0, 30] and len(table) == 8
    assert table.query("epoch == 0")["gnc3"].nunique() == 2  # seeds, not temperatures
    assert table.query("epoch == 30")["test_accuracy"].max() < 0.2
    found = experiments.collapse(table[table["temperature"] == 0.2], twice=2.0)
    assert found["gnc1"] < 0.3 and found["accuracy"] > 0.95
    last = table.query("temperature == 0.2 and epoch == 30")["gnc2"].min()
    assert found["twice"] == pytest.approx(last / 2)


def test_measure_uses_the_normalised_rows_of_a_cosine_head_only():
    points, test = tiny()
    net = experiments.builder("mlp", points, 3, hidden=(8,))()
    before = experiments.measure(net, points, test)
    with torch.no_grad():
        net.head.weight.mul_(torch.tensor([[1.0], [9.0], [1.0], [1.0], [3.0], [1.0]]))
    after = experiments.measure(net, points, test)
    for name, value in before.items():
        assert after[name] == pytest.approx(value, abs=1e-5, nan_ok=True), name


def test_accuracies_of_measure_by_hand():
    part, test = tiny()
    test = wrongly_labelled(test)
    net = nets.seeded(0, experiments.builder("mlp", part, 3, hidden=(8,))).eval()
    means, _ = class_means(collect.features(net, part.inputs), part.labels)
    net.head = torch.nn.Linear(3, 6)
    with torch.no_grad():  # the nearest class mean, the first two classes exchanged
        means = means[[1, 0, 2, 3, 4, 5]].float()
        net.head.weight.copy_(2 * means)
        net.head.bias.copy_(-means.square().sum(1))
    row = experiments.measure(net, part, test)
    for name, some in (("train_accuracy", part), ("test_accuracy", test)):
        right = net(some.inputs).argmax(1) == some.labels
        assert row[name] == pytest.approx(float(right.double().mean())), name
    assert row["test_accuracy"] < row["train_accuracy"] - 0.1 < row["ncc_accuracy"] - 0.2


def test_other_last_layers():
    points, test = tiny()
    test = wrongly_labelled(test)
    found = experiments.classifiers(
        "mlp", points, test, experiments.recipe(epochs=8, batch_size=20), dim=3, hidden=(16,),
        temperature=0.2, seeds=[0], reference=1.0, momenta=[0.9],
    )  # fmt: skip
    assert list(found["classifier"]) == ["plain", "hard max", "CMF 0.9"]
    plain, hard, means = found["parameters"]
    assert plain == hard == means + 6 * 3
    assert found["gnc3"].iloc[2] < 0.05
    assert (found["test_accuracy"] < found["train_accuracy"]).all()


def test_assignments_and_learned_opposites():
    four, test = tiny(4)
    settings = experiments.recipe(epochs=3, batch_size=20)
    found = experiments.assignments(
        four, test, frames.polygon(4), settings, temperature=0.2, seeds=[0], hidden=(16,)
    )
    assert list(found["opposite"]) == [1, 2, 3]
    learned = experiments.learned_opposites(
        four, test, settings, temperature=0.5, seeds=[0, 1], hidden=(16,)
    )
    assert len(learned) == 2 and set(learned["opposite"]) <= {1, 2, 3}
    pairs = Data("pairs", torch.tensor([[0.0, 1], [0, 2], [9, 1], [9, 2]]), torch.arange(4), 4)
    assert experiments.chosen_opposite(pairs, frames.polygon(4)) != 1


def test_opposite_of_class_0_by_brute_force():
    angles = np.radians([0, 50, 150, 230])  # of no symmetry
    code = np.stack([np.cos(angles), np.sin(angles)], 1)

    def score(means, placed):
        pairs = itertools.combinations(range(4), 2)
        norm = np.linalg.norm
        return sum(norm(means[i] - means[j]) * norm(placed[i] - placed[j]) for i, j in pairs)

    for seed in range(6):
        means = np.random.default_rng(seed).standard_normal((4, 3))
        placed = [code[list(order)] for order in itertools.permutations(range(4))]
        best = max(placed, key=partial(score, means))
        part = Data("points", torch.tensor(means), torch.arange(4), 4)
        found = experiments.chosen_opposite(part, torch.tensor(code))
        assert found == (best @ best[0]).argmin()


def test_fine_tunings(monkeypatch):
    for name, small in {"PER_CLASS": 5, "PRETRAIN_PER_CLASS": 5, "HIDDEN": (16,)}.items():
        monkeypatch.setattr(experiments, name, small)
    found = experiments.fine_tunings("digits", experiments.recipe(epochs=1), seeds=[0])
    assert list(found["tuning"]) == list(experiments.TUNINGS)
    assert found[["test_accuracy", "shifted_accuracy"]].to_numpy().min() > 0.05


def test_head_parameters():
    found = experiments.head_parameters(100, 16)
    assert found["learned"] - found["class means"] == 1600


def test_checks_of_temperatures_and_dimensions_by_hand():
    ends = {"temperature": [1.0, 0.1, 0.1, 0.01], "gnc2": [0.2, 0.5, 0.7, 0.35]}
    table = pd.DataFrame(ends | {"test_accuracy": [0.8, 0.9, 0.9, 0.7]})
    expected = {"warm": 0.4, "cold": 0.25, "accuracy": 0.1, "below": -0.1}
    assert experiments.around_best(table, 0.1, 0.3) == pytest.approx(expected)
    rows = {"d": [5, 5, 10, 10], "gnc2": [0.1, 0.2, 0.6, 0.5], "random": [0.05, 0.05, 0.3, 0.3]}
    found = experiments.growth(pd.DataFrame(rows))
    assert found["growth"] == pytest.approx(0.3)  # the worst seed of 10 over the best one of 5
    assert found["above_random"].to_dict() == pytest.approx({5: 0.05, 10: 0.2})
    assert "growth" not in experiments.growth(pd.DataFrame(rows).query("d == 5"))


def test_order_of_the_phases():
    rows = [(3, 0.1, "tilted vertices"), (3, 0.2, "segment + simplex")]
    table = pd.DataFrame(rows, columns=["d", "temperature", "family"])
    assert experiments.in_order(table)
    assert not experiments.in_order(table.assign(temperature=[0.2, 0.1]))


def test_loading():
    digits, _ = experiments.load("digits", per_class=20)
    assert len(digits) == 200
    moved, _ = experiments.load("digits x 12", per_class=2)
    assert moved.num_classes == 120
    with pytest.raises(checks.InputError, match="dataset"):
        experiments.load("nothing")
    with pytest.raises(checks.InputError, match="architecture"):
        experiments.builder("vgg", digits, 3)


def test_a_code_is_settled_where_its_margin_is_the_known_one():
    best = frames.cross_polytope(3)
    assert experiments.settled(best)
    tilted = best + 1e-3 * torch.eye(6, 3, dtype=torch.float64).roll(1, 1)
    assert not experiments.settled(torch.nn.functional.normalize(tilted, dim=1))
