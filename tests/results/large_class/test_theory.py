"""Known margins, bounds and sandwiches: published numbers, explicit codes, direct evaluation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gamma

from nclib import checks, frames
from nclib.metrics import known_margins, margins
from nclib.results.large_class import codes, experiments, search, theory

# (K, d): margin, angle in degrees, as published (three-dimensional angles) or found elsewhere.
PUBLISHED = {
    (7, 3): (0.789861687, 77.8695),
    (8, 3): (0.738796125, 74.8585),
    (9, 3): (0.666666667, 70.5288),
    (10, 3): (0.595605675, 66.1468),
    (12, 3): (0.552786405, 63.4349),
    (13, 3): (0.457363513, 57.1367),
    (14, 3): (0.436049700, 55.6706),
    (15, 3): (0.407394097, 53.6579),
    (16, 3): (0.387705384, 52.2444),
    (17, 3): (0.371905585, 51.0903),
    (18, 3): (0.351304168, 49.5567),
    (19, 3): (0.326883112, 47.6919),
    (20, 3): (0.323522862, 47.4310),
    (24, 3): (0.276921532, 43.6908),
    (9, 4): (0.837984800, 80.6761),
    (11, 4): (0.769594436, 76.6791),
    (13, 4): (0.692704346, 72.1037),
    (20, 4): (0.565741454, 64.2619),
    (11, 5): (0.867146457, 82.3655),
    (12, 5): (0.846068395, 81.1452),
    (13, 5): (0.812740148, 79.2071),
    (20, 5): (0.700614307, 72.5793),
    (13, 6): (0.886920248, 83.5071),
    (16, 6): (0.828852351, 80.1454),
}


@pytest.mark.parametrize(("size", "values"), PUBLISHED.items())
def test_table(size, values):
    margin, angle = values
    assert known_margins.known_margin(*size) == pytest.approx(margin, abs=1.1e-9)
    degrees = math.degrees(math.acos(1 - known_margins.known_margin(*size)))
    assert degrees == pytest.approx(angle, abs=6e-5)
    assert known_margins.best_known(*size).status == "tabulated"


@pytest.mark.parametrize("size", sorted(known_margins.TABLE))
def test_table_matches_the_explicit_codes(size):
    code = codes.sharp_code(*size) if size[0] < 1000 else None
    if size in ((11, 3), (14, 5), (15, 5)):
        code = (frames.icosahedron() if size[1] == 3 else codes.half_cube())[: size[0]]
    if code is None:
        pytest.skip("found by optimisation")
    found = margins.hull_projections(code, classes=range(0, size[0], 1 + size[0] // 40))
    assert float(found.distance.min()) == pytest.approx(
        known_margins.known_margin(*size), abs=1e-12
    )


def test_closed_forms_agree_with_explicit_codes():
    simplices = [frames.simplex_etf(2), frames.simplex_etf(6), frames.simplex_etf(4, 9)]
    polytopes = [frames.cross_polytope(5), frames.cross_polytope(5, 8)]
    for code in (*simplices, *polytopes, frames.polygon(3), frames.polygon(11)):
        assert known_margins.known_margin(*code.shape) == pytest.approx(
            margins.margin(code).value, abs=1e-9
        )
        assert known_margins.best_known(*code.shape).status == "proven"


def test_unknown_and_degenerate_sizes():
    assert known_margins.known_margin(2, 1) == 2.0
    assert known_margins.known_margin(3, 1) == 0.0
    assert known_margins.known_margin(100, 10) is None
    assert known_margins.known_margin(10_000, 512) is None
    assert known_margins.best_known(10_000, 512) == known_margins.KnownMargin(
        1 - 31 / 511, "lower bound"
    )
    assert known_margins.best_known(100, 10).value >= 0.6688
    assert known_margins.best_known(37, 6) is None
    assert known_margins.known_margin(np.int64(7), np.int64(3)) == known_margins.known_margin(7, 3)


def test_known_margins_fall_with_the_number_of_classes_and_grow_with_dimension():
    for d in (2, 3, 4, 5, 6):
        known = [known_margins.known_margin(K, d) for K in range(2, 30)]
        known = [value for value in known if value is not None]
        assert all(a >= b - 1e-12 for a, b in zip(known, known[1:], strict=False))
    for K in range(5, 25):
        known = [known_margins.known_margin(K, d) for d in range(2, 8)]
        known = [value for value in known if value is not None]
        assert all(a <= b + 1e-12 for a, b in zip(known, known[1:], strict=False))


def test_a_bound_is_no_worse_than_that_of_a_code_which_contains_one_of_this_size():
    best, gold = known_margins.best_known, known_margins.gold_margin
    for many, few in [*known_margins.TABLE, *known_margins.LOWER_BOUNDS]:
        value = best(many, few).value
        for K, d in ((many, few + 1), (many, 2 * few), (many // 2 + 1, few), (many - 1, few + 2)):
            assert best(K, d) is None or best(K, d).value >= value, (K, d)
    assert best(64, 10).value == known_margins.LOWER_BOUNDS[100, 10] > gold(64, 10)
    for size in ((10_000, 512), (200_000, 512)):
        assert best(*size).value == gold(*size)


@pytest.mark.parametrize(("K", "d"), [(10, 2), (7, 3), (100, 10), (24, 4), (240, 8), (50, 2)])
def test_bounds_evaluated_directly(K, d):
    low = 0.5 * (math.sqrt(math.pi) / K * gamma((d + 1) / 2) / gamma(d / 2 + 1)) ** (2 / (d - 1))
    high = 2 * (2 * math.sqrt(math.pi) / K * gamma((d + 1) / 2) / gamma(d / 2)) ** (1 / (d - 1))
    assert theory.lower_bound(K, d) == pytest.approx(low, rel=1e-12)
    assert theory.upper_bound(K, d) == pytest.approx(high, rel=1e-12)


def test_bounds_hold_and_published_values():
    assert theory.lower_bound(100, 10) == pytest.approx(0.170, abs=5e-4)
    assert theory.upper_bound(100, 10) == pytest.approx(1.505, abs=5e-4)
    assert math.isfinite(theory.upper_bound(10_000, 512))  # no overflow of the Gamma function
    for K, d in [
        *known_margins.TABLE,
        *((K, 2) for K in range(4, 60)),
        *((2 * d, d) for d in range(3, 9)),
    ]:
        if theory.bound_threshold(d) <= K:
            low, high = theory.lower_bound(K, d), theory.upper_bound(K, d)
            assert low <= known_margins.known_margin(K, d) <= high
    assert theory.bound_threshold(10) == pytest.approx(
        math.sqrt(2 * math.pi * math.sqrt(math.e * 10))
    )
    # the true scaling on the circle is that of the lower bound
    ratio = [known_margins.known_margin(K, 2) / theory.lower_bound(K, 2) for K in (100, 1000)]
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 10), st.integers(2, 5), st.integers(0, 10**6))
def test_bounds_for_any_classifier(K, d, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(K, d, generator=generator, dtype=torch.float64)
    rho, c = margins.margin(weight).value, margins.max_cosine(weight)
    assert 1 - c - 1e-9 <= rho <= math.sqrt(2 - 2 * c) + 1e-9
    best = known_margins.known_margin(K, d)
    assert best is None or rho <= best + 1e-9


def direct_ce(weight, features, labels, temperature):
    logits = (features @ weight.T).numpy().astype(np.longdouble) / temperature
    losses = [
        np.log1p(sum(np.exp(row[j] - row[y]) for j in range(len(row)) if j != y))
        for row, y in zip(logits, labels, strict=True)
    ]
    return float(np.mean(losses))


@pytest.mark.parametrize("temperature", [2.0, 0.3, 0.05])
def test_sandwich_around_the_global_minimum(temperature):
    """Simplices and cross-polytopes are global minima, so CE_min is known exactly."""
    for code in (frames.simplex_etf(5), frames.cross_polytope(3), frames.polygon(7)):
        K, d = code.shape
        rho = known_margins.known_margin(K, d)
        low, high = theory.log_ce_range(K, K, rho, temperature)
        energy = direct_ce(code, code, range(K), temperature)
        assert low <= math.log(energy) <= high + 1e-12
        floor = theory.hard_margin_floor(K, K, rho, temperature)
        assert floor <= margins.hard_margin(code, code) + 1e-12


def test_sandwich_evaluated_directly():
    K, N, rho, T = 7, 14, 0.789861687, 0.4
    low, high = theory.log_ce_range(K, N, rho, T)
    assert math.exp(low) == pytest.approx(math.log(1 + math.exp(-rho / T)) / N)
    assert math.exp(high) == pytest.approx(math.log(1 + (K - 1) * math.exp(-rho / T)))
    floor = -T * math.log(math.exp(N * math.log(1 + (K - 1) * math.exp(-rho / T))) - 1)
    assert theory.hard_margin_floor(K, N, rho, T) == pytest.approx(floor)
    # both ends, where a direct evaluation under- or overflows
    cold = theory.hard_margin_floor(K, N, rho, 1e-4)
    assert cold == pytest.approx(rho - 1e-4 * math.log(N * (K - 1)), abs=1e-9)
    assert theory.hard_margin_floor(K, 10**4, rho, 5.0) == pytest.approx(
        -5.0 * 10**4 * math.log(1 + 6 * math.exp(-rho / 5)), rel=1e-9
    )


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.1, 0.07])
def test_floor_of_the_hard_margin_evaluated_directly(temperature):
    """In between, where neither exp(x) - 1 = x nor exp(x) - 1 = exp(x)."""
    x = 7 * math.log1p(6 * math.exp(-0.79 / temperature))
    expected = -temperature * math.log(math.expm1(x))
    found = theory.hard_margin_floor(7, 7, 0.79, temperature)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("temperature", [2.0, 0.3, 0.1])
def test_model_is_the_log_of_the_cross_entropy_of_cosines(temperature):
    generator = torch.Generator().manual_seed(0)
    W, H = (
        margins.unit_rows("x", torch.randn(n, 3, generator=generator, dtype=torch.float64))
        for n in (5, 15)
    )
    problem = theory.model(5, 3, temperature, samples=3)
    labels = torch.arange(5).repeat_interleave(3).tolist()
    expected = math.log(direct_ce(W, H, labels, temperature))
    assert float(problem(weight=3 * W, features=H / 2)) == pytest.approx(expected, abs=1e-12)


def test_model_and_gradient_do_not_underflow():
    code = frames.cross_polytope(3)
    T = 1e-4
    assert T * theory.log_energy(code, T) == pytest.approx(-1 + T * math.log(4), abs=1e-12)
    tilted = code + 0.01 * torch.randn(6, 3, dtype=torch.float64)
    gradient = theory.model(6, 3, T).gradient({"features": code, "weight": tilted})["weight"]
    assert bool(torch.isfinite(gradient).all()) and T * float(gradient.abs().max()) > 1e-3


CLOSED = {
    "simplex": (frames.simplex_etf(5), lambda T: 4 * math.exp(-5 / (4 * T))),
    "cross-polytope": (frames.cross_polytope(4), lambda T: 6 * math.exp(-1 / T) + math.exp(-2 / T)),
    "square": (frames.polygon(4), lambda T: 2 * math.exp(-1 / T) + math.exp(-2 / T)),
}


@pytest.mark.parametrize("temperature", [3.0, 1.0, 0.1])
@pytest.mark.parametrize("name", CLOSED)
def test_energies_of_symmetric_codes(name, temperature):
    code, rivals = CLOSED[name]
    expected = math.log(math.log1p(rivals(temperature)))
    assert theory.log_energy(code, temperature) == pytest.approx(expected, abs=1e-12)


def test_splits():
    assert theory.splits(6, 4) == [(2, 4), (3, 3)]
    assert theory.splits(8, 6) == [(2, 6), (3, 5), (4, 4)]
    assert theory.splits(6, 3) == [(2, 2, 2)]
    assert theory.splits(5, 4) == [(5,)]
    assert theory.splits(7, 3) == [] and theory.splits(3, 3) == []
    for K, d in ((9, 6), (12, 7)):
        for sizes in theory.splits(K, d):
            assert sum(sizes) == K and sum(m - 1 for m in sizes) == d


@pytest.mark.parametrize(("d", "expected"), [(4, 0.507598), (5, 0.490832), (6, 0.475676)])
def test_exchange_of_segment_and_balanced_simplices(d, expected):
    temperature = theory.segment_phase(d)[1]
    assert temperature == pytest.approx(expected, abs=5e-7)
    half = (d + 2) // 2
    cold = codes.orthogonal_simplices([2, d])
    hot = codes.orthogonal_simplices([half, d + 2 - half])
    energy = lambda code, T: direct_ce(code, code, range(len(code)), T)
    for factor, sign in ((1.01, 1), (0.99, -1)):
        T = factor * temperature
        assert (energy(cold, T) - energy(hot, T)) * sign > 0


def test_tilt_by_brute_force():
    low, high = theory.segment_phase(3)
    assert low == pytest.approx(0.145242, abs=5e-7) and high == math.inf
    tilts = np.linspace(0, 0.5, 2001)
    for T in (0.05, 0.12):
        made = (codes.tilted_cross_polytope(1, tilt) for tilt in tilts)
        brute = tilts[np.argmin([direct_ce(code, code, range(5), T) for code in made])]
        assert -float(theory.best_tilt(1, T)[0, 2]) == pytest.approx(brute, abs=5e-4)


@pytest.mark.parametrize(("q", "temperature"), [(9, 0.03), (12, 0.02), (12, 0.3)])
def test_tilt_of_many_vertices_by_brute_force(q, temperature):
    """Their height is small: the search begins next to the equator."""
    energy = lambda code: direct_ce(code, code, range(len(code)), temperature)
    grid = [
        energy(codes.tilted_cross_polytope(q, tilt, height))
        for tilt in np.linspace(0, 0.5, 26)
        for height in np.linspace(0.02, q**-0.5, 14)
    ]
    found = theory.best_tilt(q, temperature)
    assert math.log(energy(found)) == pytest.approx(math.log(min(grid)), abs=0.01)
    assert energy(found) <= min(grid)


def test_segment_phase_of_many_classes():
    low, high = theory.segment_phase(14)
    cold, segment = theory.best_tilt(12, low), codes.orthogonal_simplices([2, 14])
    hot = codes.orthogonal_simplices([8, 8])
    energy = lambda code, T: math.log(direct_ce(code, code, range(16), T))
    assert energy(cold, low) == pytest.approx(energy(segment, low), abs=1e-6)
    assert energy(hot, high) == pytest.approx(energy(segment, high), abs=1e-6)
    assert 0.02 < low < 0.03 < 0.4 < high < 0.5


def test_no_exchange_gives_none():
    pair = codes.orthogonal_simplices([2, 4]), codes.orthogonal_simplices([3, 3])
    assert theory.exchange_temperature(*pair, 0.6, 1.0) is None


def test_curvature_of_the_bipyramid_against_finite_differences():
    """Below its range a move of the poles' ring lowers the energy; inside no small move does."""
    code = frames.bipyramid(7)
    assert theory.lowest_curvature(code, 0.18) < -1e-2 < 1e-3 < theory.lowest_curvature(code, 0.4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        moved = code + 1e-3 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
        moved = torch.nn.functional.normalize(moved, dim=1)
        assert theory.log_energy(moved, 0.4) >= theory.log_energy(code, 0.4)


def test_curvature_where_the_code_leaves_dimensions_free():
    """A square in five dimensions falls when opposite vertices leave the plane together."""
    square = torch.nn.functional.pad(frames.polygon(4), (0, 3))
    out = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None] * torch.eye(5, dtype=torch.float64)[4]

    def energy(t):
        moved = math.cos(t) * square + math.sin(t) * out
        return math.log(direct_ce(moved, moved, range(4), 0.5))

    t = 1e-3
    second = (energy(t) - 2 * energy(0) + energy(-t)) / t**2 / 8  # eight rows move
    assert second < -0.3
    assert theory.lowest_curvature(square, 0.5) == pytest.approx(second, abs=1e-4)
    # A pair of opposite points only gets more copies of its curvatures.
    plane = theory.lowest_curvature(frames.simplex_etf(2, 2), 0.5)
    assert theory.lowest_curvature(frames.simplex_etf(2, 6), 0.5) == pytest.approx(plane, abs=1e-9)
    with pytest.raises(checks.InputError, match="d must be at least 2"):
        theory.lowest_curvature(frames.simplex_etf(2, 1), 0.5)
    with pytest.raises(checks.InputError, match="sign within 2 % of T=0.1"):
        theory.stable_phase(frames.bipyramid(7), 0.1, 0.947)


@pytest.mark.parametrize("size", [(7, 3), (8, 3), (12, 3), (10, 4)])
def test_approach_rate_predicts_the_finite_temperature_minima(size):
    """The max-entropy multipliers against the minimiser itself, extrapolated to T = 0."""
    code = search.solve(*size, starts=16)
    rho = known_margins.known_margin(*size)
    rates = []
    for T in (0.004, 0.002):
        found = experiments.minimum(*size, T, start=code)
        rates.append([(rho - found["hard_margin"]) / T, (T * found["log_ce"] + rho) / T])
    limit = 2 * np.array(rates[1]) - np.array(rates[0])
    np.testing.assert_allclose(theory.approach_rate(code), limit, atol=2e-4)


def test_approach_rate_of_symmetric_codes():
    """All active pairs alike: entropy log(#active), so both rates are closed forms."""
    for code, neighbours in (
        (frames.icosahedron(), 5),
        (codes.half_cube(), 10),
        (frames.polygon(9), 2),
    ):
        margin_rate, value_rate = theory.approach_rate(code)
        assert margin_rate == pytest.approx(0, abs=1e-9)
        assert value_rate == pytest.approx(math.log(neighbours), abs=1e-9)


def test_codes_that_are_no_optimum_have_no_rate_and_no_curvature():
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(12, 3, dtype=torch.float64, generator=generator)
    for size in (1e-4, 0.01, 1.0):
        code = torch.nn.functional.normalize(frames.icosahedron() + size * noise, dim=1)
        with pytest.raises(checks.InputError, match="no optimal code"):
            theory.approach_rate(code)
        with pytest.raises(checks.InputError, match="not critical at temperature 0.3"):
            theory.lowest_curvature(code, 0.3)


def test_bad_input():
    for K, d in ((1, 3), (0, 3), (5, 0), (5.0, 3), (True, 3), ("7", 3)):
        for call in (
            known_margins.known_margin,
            known_margins.best_known,
            theory.lower_bound,
            search.solve,
        ):
            with pytest.raises(checks.InputError):
                call(K, d)
    for call in (theory.lower_bound, theory.upper_bound):
        with pytest.raises(checks.InputError, match="d >= 2"):
            call(5, 1)
    with pytest.raises(checks.InputError, match="line"):
        search.solve(3, 1)
    for temperature in (0, -1, float("inf"), "1"):
        with pytest.raises(checks.InputError, match="temperature"):
            theory.model(3, 3, temperature)
    with pytest.raises(checks.InputError, match="samples"):
        theory.log_ce_range(3, 2, 1.5, 1.0)
    with pytest.raises(checks.InputError, match="seed"):
        search.solve(7, 3, seed=-1)
    with pytest.raises(checks.InputError, match="starts"):
        search.solve(7, 3, starts=0)
