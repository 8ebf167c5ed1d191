import itertools
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from nclib import checks
from nclib.ufm.scalar import cross_entropy, local, shrink, thresholds


def cost(t, s, beta, depth):
    return 0.5 * (t - s) ** 2 + beta * depth / 2 * t ** (2 / depth)


def brute_force(s, beta, depth):
    """Grid, then local refinement of the best non-zero minimum; compared with t = 0."""
    grid = np.linspace(0, s, 4001)
    best = grid[cost(grid, s, beta, depth).argmin()]
    around = (max(best - s / 1000, 0), min(best + s / 1000, s))
    found = minimize_scalar(
        cost, bounds=around, args=(s, beta, depth), method="bounded", options={"xatol": 1e-14}
    )
    return min((cost(0.0, s, beta, depth), 0.0), (found.fun, found.x))


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("s", [0.3, 1.0, 2.4494897, 17.0])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.8, 0.97, 1.05, 3.0])
def test_against_brute_force(s, share, depth):
    beta = share * thresholds(s, depth)[0]
    value, minimiser = shrink(s, beta, depth)
    expected, where = brute_force(s, beta, depth)
    assert value == pytest.approx(expected, rel=1e-10)
    assert minimiser == pytest.approx(where, abs=1e-6 * s)
    assert isinstance(value, float) and isinstance(minimiser, float)


def test_depth_two_is_the_huber_function():
    for s, beta in [(2.0, 0.3), (0.2, 0.3), (0.3, 0.3), (1e6, 1e-6)]:
        huber = s * s / 2 if s <= beta else beta * s - beta**2 / 2
        value, minimiser = shrink(s, beta, 2)
        assert value == pytest.approx(huber, rel=1e-13)
        assert minimiser == pytest.approx(max(s - beta, 0), rel=1e-13)


@given(s=st.floats(1e-8, 1e8), share=st.floats(1e-6, 0.999999), depth=st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_minimiser_is_stationary(s, share, depth):
    beta = share * thresholds(s, depth)[0]
    _, t = shrink(s, beta, depth)
    assert t - s + beta * t ** (2 / depth - 1) == pytest.approx(0, abs=1e-13 * s)
    assert s * (depth - 2) / (depth - 1) * (1 - 1e-12) <= t <= s


@given(s=st.floats(0.1, 10), scale=st.floats(0.01, 100), depth=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_scaling_law(s, scale, depth):
    beta = 0.4 * s
    value, t = shrink(s, beta, depth)
    value2, t2 = shrink(scale * s, beta * scale ** (2 - 2 / depth), depth)
    assert value2 == pytest.approx(scale**2 * value, rel=1e-11)
    assert t2 == pytest.approx(scale * t, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
def test_jump_at_the_critical_beta(depth):
    s = 2.3
    critical, spinodal = thresholds(s, depth)
    below, above = critical * (1 - 1e-9), critical * (1 + 1e-9)
    assert shrink(s, above, depth) == (pytest.approx(s * s / 2), 0.0)
    assert shrink(s, critical, depth)[1] == 0.0
    leap = s * (depth - 2) / (depth - 1)
    assert shrink(s, below, depth)[1] == pytest.approx(leap, rel=1e-7, abs=1e-6)
    # The non-zero stationary point vanishes exactly at the spinodal value.
    t = np.linspace(1e-6, s, 200_001)
    slope = lambda beta: (t - s + beta * t ** (2 / depth - 1)).min()
    assert slope(spinodal * (1 - 1e-6)) < 0 < slope(spinodal * (1 + 1e-6)) + 1e-12
    assert spinodal >= critical


def test_thresholds_reference():
    assert thresholds(2.0, 2) == (2.0, 2.0)
    assert thresholds(2.0, 3)[0] == pytest.approx(1.0, rel=1e-15)
    for s in (0.7, 3.0):
        assert thresholds(s, 3)[0] == pytest.approx((s / 2) ** (4 / 3), rel=1e-14)
        assert thresholds(s, 3)[1] == pytest.approx(3 * s / 4 * (s / 4) ** (1 / 3), rel=1e-14)


def test_tensors_and_python_floats_agree():
    s = torch.tensor([0.0, 0.1, 1.0, 2.5], dtype=torch.float64)
    values, minimisers = shrink(s, 0.37, 3)
    for i, one in enumerate([0.0, 0.1, 1.0, 2.5]):
        # A power taken of four numbers at once may differ in the last digit from that of one.
        alone = pytest.approx(shrink(one, 0.37, 3), rel=1e-14)
        assert (values[i].item(), minimisers[i].item()) == alone
    assert shrink(0.0, 1.0, 4) == (0.0, 0.0)
    # A Python float must not pass through float32.
    assert shrink(0.1, 1.0, 2)[0] == pytest.approx(0.005, rel=1e-15)


def test_beta_may_be_many_too():
    s = torch.tensor([0.5, 2.0])[:, None]
    beta = torch.tensor([0.0, 0.3, 0.9])
    values, minimisers = shrink(s, beta, 3)
    assert values.shape == minimisers.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        alone = pytest.approx(shrink(float(s[i]), float(beta[j]), 3), rel=1e-13, abs=1e-15)
        assert (values[i, j].item(), minimisers[i, j].item()) == alone
    assert torch.equal(minimisers[:, :1], s.double())  # no decay: the signal itself


@pytest.mark.parametrize("factors", [3, 4, 5, 9])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 0.999])
def test_local_is_the_upper_minimum_also_where_zero_is_lower(share, factors):
    s = 1.7
    critical, spinodal = thresholds(s, factors)
    beta = critical + share * (spinodal - critical)
    # In v = t^(1/L) a polynomial: its largest real root below s.
    coefficients = np.zeros(2 * factors - 1)
    coefficients[[0, factors, -1]] = 1, -s, beta
    roots = np.roots(coefficients)
    real = roots[np.abs(roots.imag) < 1e-6].real
    assert local(s, beta, factors) == pytest.approx(real.max() ** factors, rel=1e-8)
    t = local(s, beta, factors)
    around = [cost(t * x, s, beta, factors) for x in (1 - 1e-3, 1, 1 + 1e-3)]
    assert around[1] < min(around[0], around[2])
    if share:
        assert around[1] > cost(0.0, s, beta, factors) and shrink(s, beta, factors)[1] == 0
    assert math.isnan(local(s, spinodal * (1 + 1e-9), factors))


def test_local_at_two_factors_and_at_the_spinodal_value():
    assert local(2.0, 0.3, 2) == pytest.approx(1.7, rel=1e-15)
    assert math.isnan(local(2.0, 2.1, 2))
    spinodal = thresholds(1.0, 4)[1]
    double_root = (spinodal * (1 - 2 / 4)) ** (4 / 6)
    assert local(1.0, spinodal, 4) == pytest.approx(double_root, rel=1e-6)
    many = local(torch.tensor([1.0, 2.0, 0.1]), 0.2, 4)
    assert bool(many[:2].isfinite().all()) and bool(many[2].isnan())


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.4])
@pytest.mark.parametrize(
    ("K", "c"), [(2, 0.1), (4, 0.02), (10, 1e-4), (3, 0.19), (3, 0.32), (3, 0.5)]
)
def test_cross_entropy_against_a_search_over_margins(K, c, alpha):
    def penalised(s):
        log_p = -math.log1p((K - 1) * math.exp(-s))
        return (
            -(1 - alpha + alpha / K) * log_p - (K - 1) * alpha / K * (log_p - s) + c * (K - 1) * s
        )

    options = {"bounds": (0, 60), "method": "bounded", "options": {"xatol": 1e-10}}
    found = minimize_scalar(penalised, **options)
    value, margin = cross_entropy(c, K, alpha) if alpha else cross_entropy(c, K)
    assert value == pytest.approx(min(found.fun, penalised(0.0)), rel=1e-9)
    assert value == pytest.approx(penalised(margin), rel=1e-12)
    assert margin == pytest.approx(found.x, abs=1e-4)


@pytest.mark.parametrize("c", [1e-20, 1e-12, 1e-5])
def test_cross_entropy_keeps_its_digits_at_tiny_strength(c):
    with localcontext(prec=60):
        rest = 3 * Decimal(c)
        exact = -(1 - rest) * (1 - rest).ln() - rest * Decimal(c).ln()
        gap = ((1 - rest) / Decimal(c)).ln()
    value, margin = cross_entropy(c, 4)
    assert value == pytest.approx(float(exact), rel=1e-14)
    assert margin == pytest.approx(float(gap), rel=1e-14)


@pytest.mark.parametrize(("K", "alpha"), [(3, 0.999), (10, 0.5), (30, 0.9)])
def test_cross_entropy_has_no_negative_margin_by_rounding(K, alpha):
    for c in np.nextafter((1 - alpha) / K, [0, 1]):
        assert 0 <= cross_entropy(float(c), K, alpha)[1] < 1e-6


@pytest.mark.parametrize("arguments", [(0.0, 3), (0.1, 1), (0.1, 3, 1.0), (0.1, 3, -0.1)])
def test_bad_input_of_cross_entropy(arguments):
    with pytest.raises(checks.InputError):
        cross_entropy(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        (-1.0, 1.0, 2),
        (math.nan, 1.0, 2),
        ("a", 1.0, 2),
        (True, 1.0, 2),
        (1.0, -1.0, 2),
        (1.0, math.inf, 2),
        (1.0, 1.0, 1),
        (1.0, 1.0, 2.5),
    ],
)
def test_bad_input(arguments):
    for call in (shrink, local):
        with pytest.raises(checks.InputError):
            call(*arguments)
