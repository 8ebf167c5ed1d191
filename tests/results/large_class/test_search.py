"""The search for softmax codes: gradients, polish, and the tabulated optima."""

import numpy as np
import pytest
import torch
from scipy.optimize import OptimizeResult

from nclib import checks, frames
from nclib.metrics import known_margins, margins
from nclib.results.large_class import codes
from nclib.results.large_class import search as solver

FOUND = [(K, d) for K, d in sorted(known_margins.TABLE) if solver.construction(K, d) is None]


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def pair_energy(W, temperature):
    K = W.shape[1]
    off = ~torch.eye(K, dtype=torch.bool)
    return temperature * torch.logsumexp((W @ W.mT)[:, off] / temperature, 1)


def margin_energy(W, H, temperature):
    K = W.shape[1]
    off = ~torch.eye(K, dtype=torch.bool)
    logits = H @ W.mT
    gaps = logits - logits.diagonal(dim1=1, dim2=2).unsqueeze(2)
    return temperature * torch.logsumexp(gaps[:, off] / temperature, 1)


@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_closed_form_gradients_against_autograd(temperature):
    W, H = unit(3, 6, 4).requires_grad_(), unit(3, 6, 4, seed=1).requires_grad_()
    (expected,) = torch.autograd.grad(pair_energy(W, temperature).sum(), W)
    torch.testing.assert_close(solver._pair_gradient(W.detach(), temperature)[0], expected)
    expected = torch.autograd.grad(margin_energy(W, H, temperature).sum(), (W, H))
    found = solver._margin_gradient(W.detach(), H.detach(), temperature)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_tiles_give_the_same_gradient(monkeypatch):
    W = unit(1, 23, 4)
    expected = solver._pair_gradient(W, 0.02)[0]
    monkeypatch.setattr(solver, "LOGITS", 100)  # two rows per tile, the last one alone
    torch.testing.assert_close(solver._pair_gradient(W, 0.02)[0], expected, atol=1e-13, rtol=0)
    weight, estimate = solver.descend("pair", W, steps=60)
    assert float(estimate) == pytest.approx(1 - margins.max_cosine(weight[0]))


def test_estimates_are_hard_margins():
    W, H = unit(4, 7, 3), unit(4, 7, 3, seed=2)
    for i in range(4):
        assert float(solver._estimates(W, H)[i]) == pytest.approx(margins.hard_margin(W[i], H[i]))
        assert float(solver._estimates(W)[i]) == pytest.approx(1 - margins.max_cosine(W[i]))


@pytest.mark.parametrize(
    "code", [frames.icosahedron(), codes.half_cube(), frames.bipyramid(7)], ids=len
)
def test_polish_repairs_a_perturbed_optimum(code):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(code.shape, generator=generator, dtype=torch.float64)
    polished = solver.polish(code + 0.02 * noise)
    margin = margins.margin(polished, tol=1e-12).value
    K, d = code.shape
    assert margin <= known_margins.known_margin(K, d) + 1e-12
    if K != 7:  # the bipyramid, which is no optimum: the polish may leave it
        assert margin == pytest.approx(known_margins.known_margin(K, d), abs=1e-12)
    assert margin >= margins.margin(code + 0.02 * noise).value


@pytest.mark.slow
def test_polish_of_the_angle_reaches_the_tammes_angle():
    """Published optimal angles (degrees): the pairwise problem, from perturbed margin codes."""
    for (K, d), angle in {(7, 3): 77.869542, (8, 3): 74.858492, (10, 3): 66.146821}.items():
        code = solver.polish(solver.search(K, d, starts=16)[0], goal="angle")
        assert np.degrees(margins.min_angle(code)) == pytest.approx(angle, abs=1e-6)
        assert 1 - margins.max_cosine(code) == pytest.approx(
            known_margins.known_margin(K, d), abs=1e-11
        )


def test_polish_leaves_optima_and_duplicates_alone():
    code = frames.icosahedron()
    torch.testing.assert_close(solver.polish(code), code, atol=1e-9, rtol=0)
    code[1] = code[0]
    torch.testing.assert_close(solver.polish(code), code)


def test_polish_goes_on_where_a_linear_programme_is_not_solved(monkeypatch):
    """HiGHS gives up on some programmes of degenerate codes, on one processor or the other."""
    solve, calls = solver.linprog, []

    def unreliable(*arguments, **options):
        calls.append(1)
        found = solve(*arguments, **options)
        return OptimizeResult(status=4) if len(calls) in (2, 3, 5) else found

    monkeypatch.setattr(solver, "linprog", unreliable)
    noise = 0.02 * unit(12, 3, seed=4)
    polished = solver.polish(frames.icosahedron() + noise)
    assert len(calls) > 5
    assert margins.margin(polished, tol=1e-12).value == pytest.approx(1 - 5**-0.5, abs=1e-11)


@pytest.mark.parametrize("size", [(7, 3), (13, 3)])
@pytest.mark.slow
def test_default_starts_reach_the_table(size):
    code = solver.solve(*size, seed=3)
    assert margins.margin(code).value == pytest.approx(known_margins.known_margin(*size), abs=1e-9)
    again = solver.solve(*size, seed=3)
    assert torch.equal(code, again)


@pytest.mark.slow
@pytest.mark.parametrize("size", FOUND)
def test_default_starts_reach_every_tabulated_margin(size):
    code = solver.solve(*size)
    accuracy = 1e-5 if size == (21, 3) else 1e-9  # dozens of local optima that close together
    assert margins.margin(code).value == pytest.approx(
        known_margins.known_margin(*size), abs=accuracy
    )


def test_the_best_candidate_wins_and_is_polished():
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    double = frames.icosahedron()[[0, 0, *range(2, 12)]]  # duplicate rows: no polish can help
    chosen = solver.best([double, frames.icosahedron() + noise, double])
    assert margins.margin(chosen).value == pytest.approx(1 - 5**-0.5, abs=1e-8)


def test_each_start_has_its_own_schedule():
    start = unit(2, 5, 3)
    both = solver.descend("margin", start, steps=30, hot=[0.3, 0.02], rate=[0.1, 0.05])[0]
    for i, (hot, rate) in enumerate(((0.3, 0.1), (0.02, 0.05))):
        alone = solver.descend("margin", start[i : i + 1], steps=30, hot=hot, rate=rate)[0]
        torch.testing.assert_close(both[i], alone[0], atol=1e-6, rtol=0)
    assert not torch.allclose(both[0], both[1], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(12, 3), (16, 5), (9, 5), (24, 4)])
def test_the_search_itself_reaches_codes_that_solve_would_construct(size):
    best = solver.best(solver.search(*size, starts=32))
    found = margins.margin(best, tol=1e-12).value
    assert found == pytest.approx(known_margins.known_margin(*size), abs=1e-10)


def test_larger_codes_beat_random_by_far():
    code = solver.best(solver.search(100, 10, starts=2))
    assert 0.655 < margins.margin(code).value < known_margins.LOWER_BOUNDS[100, 10]
    assert margins.margin(unit(100, 10)).value < 0.35


@pytest.mark.parametrize("size", known_margins.LOWER_BOUNDS)
def test_a_code_stands_behind_every_lower_bound(size):
    """Features of norm one that tell every class from all others by that much."""
    code = solver.solve(*size)
    features = margins.optimal_features(code)
    assert (code.norm(dim=1) - 1).abs().max() < 1e-12
    rival = (features @ code.T).fill_diagonal_(-9).amax(1)
    assert features.norm(dim=1).max() < 1 + 1e-12
    assert 0 <= ((features * code).sum(1) - rival).min() - known_margins.LOWER_BOUNDS[size] < 1e-5


def test_gold_codes_are_taken_without_search_only_when_large():
    assert torch.equal(solver.solve(10_000, 512)[:5], codes.gold_code(10_000, 512)[:5])
    small = solver.solve(60, 7, starts=2)  # a Gold code fits, with margin 1 - 3/7
    assert margins.margin(small).value >= known_margins.gold_margin(60, 7) - 1e-12


@pytest.mark.parametrize("size", [(99, 10), (100, 11)])
def test_rows_of_a_larger_code_where_the_search_stays_below(size):
    code = solver.solve(*size, starts=1)
    assert code.shape == size
    assert margins.margin(code).lower >= known_margins.LOWER_BOUNDS[100, 10]


def test_no_construction_where_none_is_known():
    assert solver.construction(13, 3) is None
    for size in ((5, 9), (9, 2), (7, 4), (8, 4), (11, 3), (15, 5), (240, 8)):
        code = solver.construction(*size)
        assert code.shape == size
        assert margins.margin(code).value == pytest.approx(
            known_margins.known_margin(*size), abs=1e-9
        )


def test_bad_input():
    with pytest.raises(checks.InputError, match="energy must be one of"):
        solver.descend("angle", unit(1, 5, 3))
    with pytest.raises(checks.InputError, match="starts"):
        solver.search(7, 3, starts=0)
    with pytest.raises(checks.InputError, match="starts"):
        solver.solve(100, 10, starts=2.5)  # which is kept, and not searched for
    with pytest.raises(checks.InputError, match="zero rows"):
        solver.polish(np.zeros((4, 3)))
