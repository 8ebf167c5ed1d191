"""Certified distances against a convex solver, closed forms and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks, frames
from nclib.metrics import margins
from nclib.results.large_class import codes


def gaussian(K, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(K, d, generator=generator, dtype=torch.float64)


def by_cvxpy(weight, k):
    """dist(w_k, conv of the others) of normalised rows, by an interior-point solver."""
    cp = pytest.importorskip("cvxpy")
    rows = (weight / weight.norm(dim=1, keepdim=True)).numpy()
    others = np.delete(rows, k, axis=0)
    alpha = cp.Variable(len(others), nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.norm(rows[k] - others.T @ alpha)), [cp.sum(alpha) == 1])
    return problem.solve(solver="CLARABEL")


@pytest.mark.parametrize(("K", "d"), [(2, 3), (3, 2), (5, 4), (9, 3), (37, 5), (30, 4), (6, 20)])
def test_against_cvxpy(K, d):
    weight = gaussian(K, d, seed=K + d)
    bounds = margins.one_vs_rest(weight)
    assert bounds.shape == (K, 2) and bounds.dtype == torch.float64
    assert bool((bounds[:, 1] - bounds[:, 0] <= 1e-9).all())
    for k in range(0, K, max(1, K // 5)):
        assert bounds[k].mean() == pytest.approx(by_cvxpy(weight, k), abs=1e-7)


def test_two_classes_on_the_line():
    bounds = margins.one_vs_rest(torch.tensor([[0.4], [-3.0]]))
    np.testing.assert_allclose(bounds, 2.0, atol=1e-9)


def test_closed_forms():
    for K in (3, 5, 12, 101):
        expected = 1 - np.cos(2 * np.pi / K)
        low, high = margins.one_vs_rest(frames.polygon(K)).T
        assert bool(((low <= expected) & (expected <= high)).all())
    for K in (2, 4, 9):
        distance = margins.hull_projections(frames.simplex_etf(K, K + 2)).distance
        np.testing.assert_allclose(distance, K / (K - 1), atol=1e-14)
    for sizes in ([2, 3], [3, 3], [2, 2, 5]):
        distance = margins.hull_projections(codes.orthogonal_simplices(sizes)).distance
        np.testing.assert_allclose(distance, 1, atol=1e-14)


@pytest.mark.parametrize(
    "size", [(12, 3), (120, 4), (240, 8), (56, 7), (24, 4), (27, 6), (162, 21)]
)
def test_degenerate_codes_are_exact(size):
    """Where hundreds of points tie, and where scipy's nnls has been seen to be silently wrong."""
    code = codes.sharp_code(*size)
    found = margins.hull_projections(code)
    np.testing.assert_allclose(found.distance, 1 - margins.max_cosine(code), atol=2e-13)
    np.testing.assert_allclose(found.direction, code, atol=1e-9)  # self-dual: u = w


@pytest.mark.parametrize("broken", ["wrong", "limit", "empty"])
def test_a_broken_fast_solver_is_noticed(monkeypatch, broken):
    weight = gaussian(20, 4)
    expected = margins.one_vs_rest(weight)

    def nnls(system, target):
        if broken == "limit":
            raise RuntimeError("Maximum number of iterations reached.")
        x = np.zeros(system.shape[1])
        if broken == "wrong":
            x[-1] = 1.0
        return x, 0.0

    monkeypatch.setattr("scipy.optimize.nnls", nnls)
    torch.testing.assert_close(margins.one_vs_rest(weight), expected, atol=1e-12, rtol=0)


def test_projection_and_direction():
    weight = margins.unit_rows("weight", gaussian(15, 3))
    found = margins.hull_projections(weight)
    for k in range(15):
        gap = weight[k] - found.nearest[k]
        assert float(gap.norm()) == pytest.approx(float(found.distance[k]), abs=1e-12)
        torch.testing.assert_close(gap / gap.norm(), found.direction[k], atol=1e-9, rtol=0)
        others = torch.cat([weight[:k], weight[k + 1 :]])
        slack = (others - found.nearest[k]) @ found.direction[k]  # all behind the hyperplane
        assert float(slack.max()) < 1e-9
    assert bool((margins.optimal_features(weight) == found.direction).all())


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 10**6))
def test_invariances_and_brackets(K, d, seed):
    weight = gaussian(K, d, seed)
    if d == 1:
        return  # duplicates, tested below
    bounds = margins.one_vs_rest(weight)
    distance = bounds.mean(1)
    generator = torch.Generator().manual_seed(seed)
    turned = weight @ frames.random_rotation(d, generator=generator)
    torch.testing.assert_close(margins.one_vs_rest(turned).mean(1), distance, atol=1e-9, rtol=0)
    order = torch.randperm(K, generator=generator)
    torch.testing.assert_close(
        margins.one_vs_rest(weight[order]).mean(1), distance[order], atol=1e-9, rtol=0
    )
    scales = torch.rand(K, 1, generator=generator) + 0.1
    torch.testing.assert_close(
        margins.one_vs_rest(weight * scales).mean(1), distance, atol=1e-9, rtol=0
    )
    unit = margins.unit_rows("weight", weight)
    cosines = (unit @ unit.T).fill_diagonal_(-2).amax(1)
    assert bool((distance >= 1 - cosines - 1e-9).all())
    assert bool((distance <= (2 - 2 * cosines).sqrt() + 1e-9).all())


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-9, 1e-2), st.floats(0.1, 3.0))
def test_nearly_equal_rows(angle, position):
    """Three points on a circle: the distance to a segment, in extended precision."""
    angles = np.array([0.0, angle, position + 1.0], dtype=np.longdouble)
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    edge, to = points[2] - points[1], points[0] - points[1]
    share = min(max(to @ edge / (edge @ edge), 0), 1)
    expected = float(np.sqrt(((to - share * edge) ** 2).sum()))
    low, high = margins.one_vs_rest(points.astype(np.float64), tol=1e-12)[0]
    assert high - low <= 1e-12
    assert low - 1e-15 <= expected <= high + 1e-15


def test_selected_classes():
    weight = gaussian(6, 3)
    chosen = margins.hull_projections(weight, classes=[4, 1])
    every = margins.hull_projections(weight)
    torch.testing.assert_close(chosen.distance, every.distance[[4, 1]], atol=1e-12, rtol=0)
    torch.testing.assert_close(chosen.nearest, every.nearest[[4, 1]], atol=1e-9, rtol=0)


def test_duplicates_have_margin_zero_and_are_named():
    weight = gaussian(6, 3)
    weight[4] = 2 * weight[1]
    with pytest.warns(UserWarning, match="classes 1, 4"):
        bounds = margins.one_vs_rest(weight)
    assert bool((bounds[[1, 4], 0] == 0).all()) and float(bounds[[1, 4], 1].max()) < 1e-13
    assert float(bounds[[0, 2, 3, 5]].min()) > 1e-3
    with pytest.raises(checks.InputError, match="classes 1, 4"):
        margins.optimal_features(weight)
    bracket = margins.margin(weight)
    assert bracket.lower == 0 and bracket.upper < 1e-12 and bracket.worst_class in (1, 4)


@pytest.mark.parametrize(("K", "d"), [(2, 2), (40, 3), (300, 12), (64, 100)])
def test_pruned_margin_equals_the_minimum(K, d, monkeypatch):
    monkeypatch.setattr(margins, "TILE_ENTRIES", 7 * K)  # several tiles, the last one short
    weight = gaussian(K, d)
    distance = margins.hull_projections(weight).distance
    bracket = margins.margin(weight)
    assert bracket.upper - bracket.lower <= 1e-9
    assert bracket.lower - 1e-9 <= float(distance.min()) <= bracket.upper + 1e-9
    # Two classes, for one, have the same distance: its class may be either.
    assert float(distance[bracket.worst_class] - distance.min()) <= 1e-9
    if K == 300:
        assert bracket.solved < K / 3


def test_budget_gives_an_honest_bracket():
    weight = gaussian(200, 8)
    exact = float(margins.hull_projections(weight).distance.min())
    for budget in (0, 1, 5):
        bracket = margins.margin(weight, max_solves=budget)
        assert bracket.solved <= budget
        assert bracket.lower <= exact + 1e-12 and exact <= bracket.upper + 1e-12
    loose = margins.margin(weight, tol=0.05)
    assert loose.upper - loose.lower <= 0.05 and loose.lower <= exact <= loose.upper


def test_hard_margin_by_brute_force_and_its_bound():
    weight, features = gaussian(7, 3), gaussian(20, 3, seed=1)
    labels = torch.arange(20) % 7
    W, H = (x / x.norm(dim=1, keepdim=True) for x in (weight, features))
    brute = min(
        float((W[y] - W[j]) @ H[i])
        for i, y in enumerate(labels.tolist())
        for j in range(7)
        if j != y
    )
    assert margins.hard_margin(weight, features, labels) == pytest.approx(brute, abs=1e-14)
    rho = margins.margin(weight).value
    assert brute <= rho
    best = margins.hard_margin(weight, margins.optimal_features(weight))
    assert best == pytest.approx(rho, abs=1e-12)


def test_angles():
    weight = gaussian(9, 4)
    W = weight / weight.norm(dim=1, keepdim=True)
    cosine = max(float(W[i] @ W[j]) for i in range(9) for j in range(i))
    assert margins.max_cosine(weight) == pytest.approx(cosine, abs=1e-15)
    assert margins.min_angle(weight) == pytest.approx(np.arccos(cosine), abs=1e-12)
    close = torch.tensor([[1.0, 0.0], [np.cos(1e-10), np.sin(1e-10)]], dtype=torch.float64)
    assert margins.min_angle(close) == pytest.approx(1e-10, rel=1e-9)  # arccos would give 0


def test_rattlers():
    """Classes 3 and 4 stand alone above a triangle: their distance is larger."""
    triangle = np.concatenate([frames.polygon(3), np.zeros((3, 1))], axis=1)
    weight = np.concatenate([triangle, [[0, 0, 1.0]], [[0, 0, -1.0]]])
    distance = margins.hull_projections(weight).distance
    assert margins.rattlers(weight) == (distance > distance.min() + 1e-8).nonzero()[:, 0].tolist()
    assert margins.rattlers(frames.polygon(8)) == []
    lopsided = frames.polygon(8)[[0, 1, 2, 5]]
    assert margins.rattlers(lopsided) == [0, 2, 3]


def test_half_precision_float32_and_lists(recwarn):
    weight = gaussian(5, 3)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        recwarn.clear()
        bounds = margins.one_vs_rest(weight.to(dtype))
        assert bounds.dtype == torch.float64
        said = [str(w.message) for w in recwarn]
        assert said == [] if dtype == torch.float32 else f"weight is {dtype}: upcast" in said[0]
        torch.testing.assert_close(
            bounds, margins.one_vs_rest(weight.to(dtype).double()), atol=1e-9, rtol=0
        )
    assert margins.one_vs_rest([[1, 0], [0, 1]]).mean() == pytest.approx(2**0.5)


def test_bad_input():
    good = gaussian(4, 3)
    zero = good.clone()
    zero[2] = 0
    bad = good.clone()
    bad[0, 0] = float("nan")
    for call in (margins.one_vs_rest, margins.margin, margins.max_cosine):
        with pytest.raises(checks.InputError, match="zero rows .2."):
            call(zero)
        with pytest.raises(checks.InputError, match="NaN"):
            call(bad)
        with pytest.raises(checks.InputError, match="at least 2 rows"):
            call(good[:1])
        with pytest.raises(checks.InputError, match="matrix"):
            call(good[0])
    for tol in (0, -1, float("nan"), 1e-15):
        with pytest.raises(checks.InputError, match="tol"):
            margins.one_vs_rest(good, tol=tol)
    with pytest.raises(checks.InputError, match="classes"):
        margins.hull_projections(good, classes=[4])
    with pytest.raises(checks.InputError, match="columns"):
        margins.hard_margin(good, gaussian(4, 2))
    with pytest.raises(checks.InputError, match="max_solves"):
        margins.margin(good, max_solves=-1)


def test_the_smallest_angle_of_rows_whose_cosines_are_all_one():
    angles = torch.tensor([0, 3e-9, 3.1e-9, 1], dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    assert margins.min_angle(rows) == pytest.approx(1e-10, rel=1e-6)


@pytest.mark.parametrize("gap", [1e-9, 1.7e-9, 1e-7])
def test_optimal_features_of_nearly_equal_rows_are_right_or_refused(gap):
    rows = torch.tensor([[1, gap], [1, -gap], [1, 0], [-1, 0]], dtype=torch.float64)
    try:
        found = margins.optimal_features(rows)
    except checks.InputError as error:
        assert "duplicate rows" in str(error)
        return
    assert found.norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    for k in range(4):
        away = (margins.unit_rows("rows", rows)[k] - margins.unit_rows("rows", rows)) @ found[k]
        assert float(away[torch.arange(4) != k].min()) > 0


def test_one_close_pair_does_not_stop_the_others():
    rows = torch.tensor([[1, 0, 0], [1, 1e-9, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    assert margins.optimal_features(rows).isfinite().all()
