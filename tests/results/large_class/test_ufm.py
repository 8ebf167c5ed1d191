"""CE on the sphere: objective, minima, certified brackets, and the first-order cold limit."""

import math

import numpy as np
import pytest
import torch

from nclib import checks
from nclib.results.large_class import codes, theory, ufm
from nclib.results.large_class import energies as code_energies
from nclib.results.large_class import search as solver


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("temperature", [2.0, 0.3, 0.04])
def test_objective_is_the_scaled_log_of_torch_cross_entropy(temperature):
    W, H = unit(5, 3), unit(15, 3, seed=1)
    labels = torch.arange(5).repeat_interleave(3)
    expected = torch.nn.functional.cross_entropy(H @ W.T / temperature, labels)
    objective = ufm.scaled_log_ce(temperature, labels, 5)
    found = objective(3 * W, H / 2)  # rows are normalised inside
    assert float(found) == pytest.approx(temperature * math.log(float(expected)), abs=1e-12)


def test_objective_and_gradient_do_not_underflow():
    features = codes.cross_polytope(3)
    value = ufm.scaled_log_ce(1e-4, torch.arange(6), 6)(features, features)
    assert float(value) == pytest.approx(-1 + 1e-4 * math.log(4), abs=1e-12)
    tilted = (codes.cross_polytope(3) + 0.01 * unit(6, 3)).requires_grad_()
    value = ufm.scaled_log_ce(1e-4, torch.arange(6), 6)(tilted, features)
    (gradient,) = torch.autograd.grad(value, tilted)
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("family", "size"),
    [
        (code_energies.simplex(4), (4, 3)),
        (code_energies.polygon(6), (6, 2)),
        (code_energies.cross_polytope(3), (6, 3)),
        (code_energies.orthogonal_simplices([2, 4]), (6, 4)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_random_starts_find_the_closed_form_minimum(family, size):
    found = ufm.minimize_ce(*size, 0.3, starts=8)
    assert found.log_ce == pytest.approx(family.log_energy(0.3), abs=1e-12)
    assert found.duality_gap < 1e-12 and found.hard_margin <= found.margin + 1e-9
    assert ufm.stationarity(found.weight, found.features, 0.3) < 1e-6


def test_features_of_a_class_coincide_at_every_temperature():
    found = ufm.minimize_ce(7, 3, 0.5, samples=3, starts=4)
    assert found.features.shape == (21, 3)
    assert found.within_class < 1e-12
    spread = ufm.CeMinimum(
        unit(2, 3), unit(6, 3, seed=1), torch.tensor([0, 0, 0, 1, 1, 1]), 1.0, 0.0, 0.0
    )
    groups = spread.features.view(2, 3, 3)
    expected = (groups - groups.mean(1, keepdim=True)).square().sum(2).mean()
    assert spread.within_class == pytest.approx(float(expected))
    gaps = 1 - (spread.weight.repeat_interleave(3, 0) * spread.features).sum(1)
    assert spread.duality_gap == pytest.approx(float(gaps.max()))


def test_stationarity_tells_minima_from_other_points():
    code = codes.icosahedron()
    assert ufm.stationarity(code, code, 0.2) < 1e-12
    assert ufm.stationarity(unit(12, 3), unit(12, 3, seed=1), 0.2) > 0.1
    # the gradient of the loss vanishes on the sphere exactly when the residual does
    W, H = unit(4, 3), unit(4, 3, seed=1)
    objective = ufm.scaled_log_ce(0.5, torch.arange(4), 4)
    for w, h in ((code, code), (W, H)):
        point = (w.clone().requires_grad_(), h.clone().requires_grad_())
        objective = ufm.scaled_log_ce(0.2, torch.arange(len(w)), len(w))
        gradient = torch.autograd.grad(objective(*point), point)
        size = max(float(g.abs().max()) for g in gradient)
        assert (size < 1e-12) == (ufm.stationarity(w, h, 0.2) < 1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_soft_bracket_is_certified(temperature):
    for seed in range(5):
        W = unit(12, 4, seed=seed)
        distance = theory.hull_projections(W).distance
        for H in (W, unit(12, 4, seed=seed + 50), theory.optimal_features(W)):
            lower, upper = ufm.soft_bracket(W, H, temperature)
            assert bool((lower <= distance + 1e-9).all())
            assert bool((distance <= upper + 1e-9).all())
    lower, _ = ufm.soft_bracket(W, theory.optimal_features(W), temperature)
    torch.testing.assert_close(lower, distance, atol=1e-9, rtol=0)


def test_follow_tends_to_the_softmax_code_inside_the_sandwich():
    code, rho = solver.polish(solver.search(8, 3, starts=16)[0]), theory.known_margin(8, 3)
    path = ufm.follow(code, [0.1, 0.02])
    for found in path:
        low, high = theory.log_ce_range(8, 8, rho, found.temperature)
        assert low <= found.log_ce <= high
        assert found.hard_margin >= theory.hard_margin_floor(8, 8, rho, found.temperature)
        assert found.margin <= rho + 1e-9
    assert path[1].margin > path[0].margin > rho - 2e-3


@pytest.mark.parametrize("size", [(7, 3), (8, 3), (12, 3), (10, 4)])
def test_approach_rate_predicts_the_finite_temperature_minima(size):
    """The max-entropy multipliers against the minimiser itself, extrapolated to T = 0."""
    K, d = size
    code = solver.solve(K, d, starts=16)
    rho = theory.known_margin(K, d)
    margin_rate, value_rate = ufm.approach_rate(code)
    coarse, fine = (
        np.array([(rho - m.hard_margin) / m.temperature, (m.scaled + rho) / m.temperature])
        for m in ufm.follow(code, [0.004, 0.002])
    )
    limit = 2 * fine - coarse
    np.testing.assert_allclose([margin_rate, value_rate], limit, atol=2e-4)


def test_approach_rate_of_symmetric_codes():
    """All active pairs alike: entropy log(#active), so both rates are closed forms."""
    for code, neighbours in (
        (codes.icosahedron(), 5),
        (codes.half_cube(), 10),
        (codes.polygon(9), 2),
    ):
        margin_rate, value_rate = ufm.approach_rate(code)
        assert margin_rate == pytest.approx(0, abs=1e-9)
        assert value_rate == pytest.approx(math.log(neighbours), abs=1e-9)


def test_bad_input():
    with pytest.raises(checks.InputError, match="temperature"):
        ufm.minimize_ce(4, 3, 0.0)
    with pytest.raises(checks.InputError, match="samples"):
        ufm.minimize_ce(4, 3, 1.0, samples=0)
    with pytest.raises(checks.InputError, match="K must be at least 2"):
        ufm.minimize_ce(1, 3, 1.0)
    with pytest.raises(checks.InputError, match="starts"):
        ufm.minimize_ce(4, 3, 1.0, starts=0)
