"""Closed-form energies against the cross-entropy of the explicit vectors."""

import numpy as np
import pytest

from nclib import checks
from nclib.results.large_class import codes, energies

CASES = [
    (energies.simplex(2), codes.simplex(2)),
    (energies.simplex(6), codes.simplex(6)),
    (energies.polygon(7), codes.polygon(7)),
    (energies.cross_polytope(1), codes.cross_polytope(1)),
    (energies.cross_polytope(4), codes.cross_polytope(4)),
    (energies.orthogonal_simplices([5]), codes.simplex(5)),
    (energies.orthogonal_simplices([3, 2, 4]), codes.orthogonal_simplices([3, 2, 4])),
    (energies.pentagonal_bipyramid(), codes.pentagonal_bipyramid()),
    (energies.tilted_square_pyramid(0.2), codes.tilted_square_pyramid(0.2)),
]


def cross_entropy(code, temperature):
    """Mean softmax cross-entropy with H = W, in extended precision."""
    logits = (code @ code.T).numpy().astype(np.longdouble) / np.longdouble(temperature)
    logits -= np.diag(logits)[:, None]
    np.fill_diagonal(logits, -np.inf)
    return float(np.log1p(np.exp(logits).sum(1)).mean())


@pytest.mark.parametrize("temperature", [3.0, 1.0, 0.3, 0.1])
@pytest.mark.parametrize(("family", "code"), CASES, ids=[f.name for f, _ in CASES])
def test_energy_is_the_cross_entropy_of_the_code(family, code, temperature):
    assert family.num_classes == len(code)
    expected = cross_entropy(code, temperature)
    assert family.energy(temperature) == pytest.approx(expected, rel=1e-12)
    assert family.log_energy(temperature) == pytest.approx(np.log(expected), abs=1e-12)


def test_published_formulas():
    K, T, d = 5, 0.4, 4
    assert energies.simplex(K).energy(T) == pytest.approx(
        np.log1p((K - 1) * np.exp(-K / ((K - 1) * T)))
    )
    assert energies.cross_polytope(d).energy(T) == pytest.approx(
        np.log(1 + (2 * d - 2) * np.exp(-1 / T) + np.exp(-2 / T))
    )


def test_no_underflow():
    """At T = 1e-4 the energy is e^-10000; T log E still tends to minus the margin."""
    family = energies.cross_polytope(3)
    assert family.energy(1e-4) == 0
    T = 1e-4
    assert T * family.log_energy(T) == pytest.approx(-1 + T * np.log(4), abs=1e-12)


def test_splits():
    assert energies.splits(6, 4) == [(2, 4), (3, 3)]
    assert energies.splits(8, 6) == [(2, 6), (3, 5), (4, 4)]
    assert energies.splits(6, 3) == [(2, 2, 2)]
    assert energies.splits(5, 4) == [(5,)]
    assert energies.splits(7, 3) == [] and energies.splits(3, 3) == []
    for K, d in ((9, 6), (12, 7)):
        for sizes in energies.splits(K, d):
            assert sum(sizes) == K and sum(m - 1 for m in sizes) == d


@pytest.mark.parametrize(("d", "expected"), [(4, 0.507598), (5, 0.490832), (6, 0.475676)])
def test_hot_cold_exchange(d, expected):
    temperature = energies.hot_cold_exchange(d)
    assert temperature == pytest.approx(expected, abs=5e-7)
    half = (d + 2) // 2
    cold = codes.orthogonal_simplices([2, d])
    hot = codes.orthogonal_simplices([half, d + 2 - half])
    difference = lambda t: cross_entropy(cold, t) - cross_entropy(hot, t)
    assert abs(difference(temperature)) < 1e-12
    assert difference(1.01 * temperature) > 0 > difference(0.99 * temperature)


def test_tilt():
    assert energies.tilt_exchange() == pytest.approx(0.145242, abs=5e-7)
    tilts = np.linspace(0, 0.5, 5001)
    for T in (0.05, 0.12):
        brute = tilts[np.argmin([cross_entropy(codes.tilted_square_pyramid(s), T) for s in tilts])]
        assert energies.best_tilt(T) == pytest.approx(brute, abs=2e-4)
    assert energies.best_tilt(0.05) == pytest.approx(0.0829, abs=5e-5)


def test_no_exchange_gives_none():
    assert energies.exchange_temperature(energies.simplex(3), energies.polygon(3)) is None
    low = energies.orthogonal_simplices([2, 4])
    assert energies.exchange_temperature(low, energies.orthogonal_simplices([3, 3]), low=1) is None


def test_bad_input():
    for temperature in (0, -1, float("inf"), "1"):
        with pytest.raises(checks.InputError, match="temperature"):
            energies.simplex(3).energy(temperature)
    with pytest.raises(checks.InputError, match="simplex size"):
        energies.orthogonal_simplices([1, 3])
    with pytest.raises(checks.InputError, match="d must be at least 4"):
        energies.hot_cold_exchange(3)
