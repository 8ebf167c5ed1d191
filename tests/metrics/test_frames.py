"""Frame distances, NC3, trace-ratio NC1 and the obtuse projection against hand-made oracles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib.checks import InputError
from nclib.metrics import frame_distances, nc_metrics
from nclib.metrics.frames import (
    effective_rank,
    layer_table,
    obtuse_distance,
    obtuse_projection,
    self_duality,
    trace_ratio,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(d, seed=0):
    return torch.linalg.qr(torch.randn(d, d, generator=gen(seed), dtype=torch.float64)).Q


def brute_force(means, centre):
    M = np.array(means, dtype=float)
    K = len(M)
    target = np.eye(K) - 1 / K
    C = M - M.mean(0) if centre else M
    of, etf = M @ M.T, C @ C.T
    return (
        np.linalg.norm(of / np.linalg.norm(of) - np.eye(K) / np.sqrt(K)),
        np.linalg.norm(etf / np.linalg.norm(etf) - target / np.sqrt(K - 1)),
    )


@settings(max_examples=40, deadline=None)
@given(K=st.integers(2, 7), d=st.integers(1, 9), seed=st.integers(0, 10**6), centre=st.booleans())
def test_frame_distances_by_brute_force_and_invariance(K, d, seed, centre):
    means = torch.randn(K, d, generator=gen(seed), dtype=torch.float64)
    of, etf = brute_force(means, centre)
    found = frame_distances(means, centre=centre)
    assert found["of"] == pytest.approx(of, abs=1e-12)
    assert found["etf"] == pytest.approx(etf, abs=1e-9)
    moved = 1e-7 * means[torch.randperm(K, generator=gen(seed))] @ rotation(d, seed)
    again = frame_distances(moved, centre=centre)
    assert again["of"] == pytest.approx(found["of"], abs=1e-9)
    assert again["etf"] == pytest.approx(found["etf"], abs=1e-8)


@pytest.mark.parametrize(("K", "cross"), [(4, 0.5176), (10, 0.3204)])
def test_fixed_points(K, cross):
    frame = 3 * rotation(K + 2)[:K]
    simplex = (torch.eye(K) - 1 / K).double() @ frame
    assert frame_distances(frame)["of"] < 1e-12
    assert frame_distances(frame)["etf"] < 1e-12  # centring makes an ETF of it
    assert frame_distances(frame, centre=False)["etf"] == pytest.approx(cross, abs=5e-5)
    assert frame_distances(simplex)["etf"] < 1e-12
    assert frame_distances(simplex)["of"] == pytest.approx(cross, abs=5e-5)
    assert frame_distances(simplex)["of"] == pytest.approx(
        math.sqrt(2 - 2 * math.sqrt((K - 1) / K))
    )
    assert frame_distances(simplex, centre=False)["etf"] < 1e-12


def test_antipodal_pairs_and_two_classes():
    pairs = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert frame_distances(pairs)["of"] == pytest.approx(0.765, abs=5e-4)
    two = torch.randn(2, 5, generator=gen())
    assert frame_distances(two)["etf"] < 1e-6  # blind for K = 2


def test_zero_and_equal_means_are_nan():
    zero = frame_distances(torch.zeros(3, 4))
    assert math.isnan(zero["of"])
    assert math.isnan(zero["etf"])
    equal = frame_distances(torch.full((3, 4), 0.1, dtype=torch.float64))
    assert equal["of"] > 0.5
    assert math.isnan(equal["etf"])
    assert math.isnan(obtuse_distance(torch.zeros(3, 4)))
    assert math.isnan(self_duality(torch.zeros(3, 4), torch.ones(3, 4))["a"])
    assert math.isnan(trace_ratio(torch.ones(4, 2), [0, 0, 1, 1]))
    assert frame_distances(1e-200 * torch.eye(3).double())["of"] < 1e-12  # no underflow


def test_self_duality_by_hand():
    W = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    M = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
    found = self_duality(W, M)
    assert found["a"] == pytest.approx(
        np.linalg.norm(W / np.linalg.norm(W) - M / np.linalg.norm(M))
    )
    P = W @ M.T
    assert found["b"] == pytest.approx(
        np.linalg.norm(P / np.linalg.norm(P) - np.eye(2) / np.sqrt(2))
    )
    centred = self_duality(W, M, centre=True)
    C = M - M.mean(0)
    P = W @ C.T
    target = np.array([[0.5, -0.5], [-0.5, 0.5]])
    assert centred["a"] == pytest.approx(
        np.linalg.norm(W / np.linalg.norm(W) - C / np.linalg.norm(C))
    )
    assert centred["b"] == pytest.approx(np.linalg.norm(P / np.linalg.norm(P) - target))
    frame = rotation(5)[:3]
    assert self_duality(2 * frame, 0.1 * frame) == pytest.approx({"a": 0, "b": 0}, abs=1e-12)


def test_trace_ratio_by_hand_imbalanced():
    # class 0: -1, 1 (mean 0), class 1: 3 (mean 3); global mean of class means 1.5
    features = torch.tensor([[-1.0], [3.0], [1.0]])
    labels = torch.tensor([0, 1, 0])
    assert trace_ratio(features, labels) == pytest.approx((2 / 3) / (2.25))


@settings(max_examples=20, deadline=None)
@given(K=st.integers(2, 5), n=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_trace_ratio_equals_the_general_metric_when_balanced(K, n, seed):
    features = torch.randn(K * n, 4, generator=gen(seed), dtype=torch.float64)
    labels = torch.arange(K).repeat(n)
    expected = nc_metrics(features, labels)["nc1_ratio"]
    assert trace_ratio(features, labels) == pytest.approx(expected, abs=1e-12)


def test_trace_ratio_sees_noise_that_the_pseudo_inverse_does_not():
    means = torch.eye(3, 5, dtype=torch.float64)
    features = means.repeat(2, 1)
    features[:3, 4], features[3:, 4] = 0.1, -0.1
    table = layer_table({"H1": features}, [0, 1, 2, 0, 1, 2])
    assert table.nc1_pinv[0] < 1e-15
    assert table.nc1[0] == pytest.approx(0.01 / (2 / 3))


def test_layer_table():
    generator = gen()
    labels = torch.arange(3).repeat(4)
    layers = {
        "shallow": torch.randn(12, 6, generator=generator),
        "deep": torch.eye(3, 4)[labels],
        "dead": torch.zeros(12, 2),
    }
    table = layer_table(layers, labels)
    assert list(table.layer) == list(layers)
    assert table.nc1[0] == pytest.approx(trace_ratio(layers["shallow"], labels))
    assert table.of[1] == pytest.approx(0, abs=1e-12)
    assert table["rank"].tolist() == [3, 3, 0]
    assert table.norm_sq[1] == 1
    assert table.loc[2, ["nc1", "nc1_pinv", "of", "etf"]].isna().all()


def test_effective_rank():
    assert effective_rank(torch.diag(torch.tensor([5.0, 1.0, 0.01, 0.001]))) == 3
    assert effective_rank(torch.diag(torch.tensor([5.0, 1.0, 0.01])), cut=0.1) == 2
    assert effective_rank(torch.zeros(2, 2)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_obtuse_projection_against_cvxpy(seed):
    cp = pytest.importorskip("cvxpy")
    K = 4
    raw = torch.randn(K, K, generator=gen(seed), dtype=torch.float64)
    gram = raw @ raw.T
    gram = gram * (K / gram.trace())
    found = obtuse_projection(gram)
    S = cp.Variable((K, K), symmetric=True)
    off = 1 - np.eye(K)
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(S - gram.numpy())),
        [S >> 0, cp.diag(S) == 1, cp.multiply(off, S) <= 0],
    )
    problem.solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(found.numpy(), S.value, atol=1e-5)
    assert torch.linalg.eigvalsh(found)[0] > -1e-12
    assert (found.diagonal() - 1).abs().max() < 1e-8
    assert (found - torch.diag(found.diagonal())).max() < 1e-8


def test_obtuse_distance():
    frame = rotation(6)[:4]
    simplex = (torch.eye(4) - 1 / 4).double() @ frame
    pairs = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    for means in (frame, simplex, pairs):
        assert obtuse_distance(7 * means) < 1e-8
    acute = frame + 0.5 * frame.mean(0)
    assert obtuse_distance(acute) > 0.05
    # two unit vectors at 60 degrees: S = I is nearest, distance √(2/4) / √(2 + 2/4)
    sixty = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    assert obtuse_distance(sixty) == pytest.approx(math.sqrt(0.5 / 2.5), abs=1e-6)


def test_bad_input():
    for call, message in (
        (lambda: frame_distances(torch.ones(3)), "matrix"),
        (lambda: frame_distances(torch.ones(1, 3)), "at least 2 rows"),
        (lambda: frame_distances(torch.tensor([[1.0, math.nan]] * 2)), "NaN"),
        (lambda: self_duality(torch.ones(2, 3), torch.ones(3, 3)), "3 rows"),
        (lambda: trace_ratio(torch.ones(3, 2), [0, 1]), "labels has 2 entries"),
        (lambda: trace_ratio(torch.ones(3, 2), [0, 0, 2]), "class 1 has no sample"),
        (lambda: obtuse_projection(torch.ones(2, 3)), "symmetric"),
        (lambda: obtuse_projection(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
    ):
        with pytest.raises(InputError, match=message):
            call()
