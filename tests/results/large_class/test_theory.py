"""Known margins, bounds and sandwiches: published numbers, explicit codes, direct evaluation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gamma

from nclib import checks
from nclib.metrics import margins
from nclib.results.large_class import codes, theory

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
    assert theory.known_margin(*size) == pytest.approx(margin, abs=1.1e-9)
    degrees = math.degrees(theory.tammes_angle(theory.known_margin(*size)))
    assert degrees == pytest.approx(angle, abs=6e-5)
    assert theory.best_known(*size).status == "tabulated"


@pytest.mark.parametrize("size", sorted(theory.TABLE))
def test_table_matches_the_explicit_codes(size):
    code = codes.sharp_code(*size) if size[0] < 1000 else None
    if size in ((11, 3), (14, 5), (15, 5)):
        code = (codes.icosahedron() if size[1] == 3 else codes.half_cube())[: size[0]]
    if code is None:
        pytest.skip("found by optimisation")
    found = margins.hull_projections(code, classes=range(0, size[0], 1 + size[0] // 40))
    assert float(found.distance.min()) == pytest.approx(theory.known_margin(*size), abs=1e-12)


def test_closed_forms_agree_with_explicit_codes():
    simplices = [codes.simplex(2), codes.simplex(6), codes.simplex(4, 9)]
    polytopes = [codes.cross_polytope(5), codes.cross_polytope(5, 8)]
    for code in (*simplices, *polytopes, codes.polygon(3), codes.polygon(11)):
        assert theory.known_margin(*code.shape) == pytest.approx(
            margins.margin(code).value, abs=1e-9
        )
        assert theory.best_known(*code.shape).status == "proven"


def test_unknown_and_degenerate_sizes():
    assert theory.known_margin(2, 1) == 2.0
    assert theory.known_margin(3, 1) == 0.0
    assert theory.known_margin(100, 10) is None
    assert theory.known_margin(10_000, 512) is None
    assert theory.best_known(10_000, 512) == theory.KnownMargin(1 - 31 / 511, "lower bound")
    assert theory.best_known(100, 10).value >= 0.66547
    assert theory.best_known(37, 6) is None
    assert theory.known_margin(np.int64(7), np.int64(3)) == theory.known_margin(7, 3)


def test_known_margins_fall_with_the_number_of_classes_and_grow_with_dimension():
    for d in (2, 3, 4, 5, 6):
        known = [theory.known_margin(K, d) for K in range(2, 30)]
        known = [value for value in known if value is not None]
        assert all(a >= b - 1e-12 for a, b in zip(known, known[1:], strict=False))
    for K in range(5, 25):
        known = [theory.known_margin(K, d) for d in range(2, 8)]
        known = [value for value in known if value is not None]
        assert all(a <= b + 1e-12 for a, b in zip(known, known[1:], strict=False))


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
        *theory.TABLE,
        *((K, 2) for K in range(4, 60)),
        *((2 * d, d) for d in range(3, 9)),
    ]:
        if theory.bound_threshold(d) <= K:
            low, high = theory.lower_bound(K, d), theory.upper_bound(K, d)
            assert low <= theory.known_margin(K, d) <= high
    assert theory.bound_threshold(10) == pytest.approx(
        math.sqrt(2 * math.pi * math.sqrt(math.e * 10))
    )
    # the true scaling on the circle is that of the lower bound
    ratio = [theory.known_margin(K, 2) / theory.lower_bound(K, 2) for K in (100, 1000)]
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-3)


def test_margin_range():
    assert theory.margin_range(7, 8) == (7 / 6, 7 / 6)
    low, high = theory.margin_range(100, 10)
    assert 0.66 < low < high == 1.0
    low, high = theory.margin_range(37, 6)
    assert low == theory.lower_bound(37, 6) and high == 1
    low, high = theory.margin_range(10**6, 3)
    assert high == theory.upper_bound(10**6, 3) < 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 10), st.integers(2, 5), st.integers(0, 10**6))
def test_bounds_for_any_classifier(K, d, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(K, d, generator=generator, dtype=torch.float64)
    rho, cosine = margins.margin(weight).value, margins.max_cosine(weight)
    low, high = theory.angle_to_margin_range(cosine)
    assert low - 1e-9 <= rho <= high + 1e-9
    best = theory.known_margin(K, d)
    assert best is None or rho <= best + 1e-9
    W = margins.unit_rows("weight", weight)
    gram = W @ W.T
    off = gram[~torch.eye(K, dtype=torch.bool)]
    assert float(off.square().mean().sqrt()) >= theory.welch_bound(K, d) - 1e-12


def test_welch_bound_is_reached_by_tight_frames():
    for code in (codes.icosahedron(), codes.cross_polytope(4), codes.e8_roots()):
        gram = code @ code.T
        off = gram[~torch.eye(len(code), dtype=torch.bool)]
        assert float(off.square().mean().sqrt()) == pytest.approx(
            theory.welch_bound(*code.shape), abs=1e-12
        )
        assert float(off.mean()) == pytest.approx(-1 / (len(code) - 1), abs=1e-12)  # the trap
    assert theory.welch_bound(3, 5) == 0


def direct_ce(weight, features, labels, temperature):
    logits = (features @ weight.T).numpy().astype(np.longdouble) / temperature
    losses = [
        np.log1p(sum(np.exp(row[j] - row[y]) for j in range(len(row)) if j != y))
        for row, y in zip(logits, labels, strict=True)
    ]
    return float(np.mean(losses))


def test_log_ce():
    generator = torch.Generator().manual_seed(0)
    W, H = (
        margins.unit_rows("x", torch.randn(n, 3, generator=generator, dtype=torch.float64))
        for n in (5, 15)
    )
    labels = (torch.arange(15) * 2) % 5
    for T in (3.0, 0.5, 0.07):
        expected = math.log(direct_ce(W, H, labels.tolist(), T))
        assert theory.log_ce(3 * W, H, T, labels) == pytest.approx(expected, abs=1e-12)
    code = codes.cross_polytope(3)
    assert 1e-3 * theory.log_ce(code, code, 1e-3) == pytest.approx(
        -1 + 1e-3 * math.log(4), abs=1e-9
    )
    assert theory.log_ce(code, code, 0.03) == pytest.approx(
        math.log(direct_ce(code, code, range(6), 0.03)), abs=1e-9
    )


@pytest.mark.parametrize("temperature", [2.0, 0.3, 0.05])
def test_sandwich_around_the_global_minimum(temperature):
    """Simplices and cross-polytopes are global minima, so CE_min is known exactly."""
    for code in (codes.simplex(5), codes.cross_polytope(3), codes.polygon(7)):
        K, d = code.shape
        rho = theory.known_margin(K, d)
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


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 10**6))
def test_radon_point_proves_the_orthoplex_bound(d, extra, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = margins.unit_rows(
        "weight", torch.randn(d + extra, d, generator=generator, dtype=torch.float64)
    )
    part, other, point = theory.radon_point(weight)
    assert not set(part) & set(other) and part and other
    for side in (part, other):  # the point lies in the hull of each part
        system = np.vstack([weight[side].T.numpy(), np.ones(len(side))])
        share = np.linalg.lstsq(system, np.append(point.numpy(), 1.0), rcond=None)[0]
        if len(side) <= d + 1:
            np.testing.assert_allclose(system @ share, np.append(point, 1.0), atol=1e-6)
    height = (weight[part] @ point).max()
    assert float(height) >= float(point @ point) - 1e-9
    assert margins.margin(weight).lower <= math.sqrt(max(0, 1 - float(point @ point))) + 1e-9


def test_orthogonal_groups():
    code = codes.orthogonal_simplices([3, 2, 4])[[3, 0, 5, 1, 6, 2, 7, 4, 8]]
    assert sorted(map(len, theory.orthogonal_groups(code))) == [2, 3, 4]
    assert theory.orthogonal_groups(codes.icosahedron()) == [list(range(12))]


def test_cmf_saving():
    assert theory.cmf_saving(16_550_000, 10_000, 512) == pytest.approx(0.309, abs=5e-4)
    assert theory.cmf_saving(10, 2, 5) == 1.0


def test_solve_returns_unit_rows_of_the_right_size():
    for K, d in ((3, 7), (6, 2), (8, 5), (12, 3), (9, 3)):
        code = theory.solve(K, d, starts=8)
        assert code.shape == (K, d) and code.dtype == torch.float64
        np.testing.assert_allclose(code.norm(dim=1), 1, atol=1e-14)
        assert margins.margin(code).value == pytest.approx(theory.known_margin(K, d), abs=1e-9)


def test_bad_input():
    for K, d in ((1, 3), (0, 3), (5, 0), (5.0, 3), (True, 3), ("7", 3)):
        for call in (theory.known_margin, theory.best_known, theory.lower_bound, theory.solve):
            with pytest.raises(checks.InputError):
                call(K, d)
    for call in (theory.lower_bound, theory.upper_bound):
        with pytest.raises(checks.InputError, match="d >= 2"):
            call(5, 1)
    with pytest.raises(checks.InputError, match="line"):
        theory.solve(3, 1)
    with pytest.raises(checks.InputError, match="temperature"):
        theory.log_ce_range(3, 3, 1.5, 0)
    with pytest.raises(checks.InputError, match="samples"):
        theory.log_ce_range(3, 2, 1.5, 1.0)
    with pytest.raises(checks.InputError, match="cosine"):
        theory.angle_to_margin_range(1.5)
    with pytest.raises(checks.InputError, match="K >= d"):
        theory.radon_point(codes.simplex(4))
    with pytest.raises(checks.InputError, match="seed"):
        theory.solve(7, 3, seed=-1)
    with pytest.raises(checks.InputError, match="starts"):
        theory.solve(7, 3, starts=0)
    with pytest.raises(checks.InputError, match="parameters"):
        theory.cmf_saving(5, 2, 5)
