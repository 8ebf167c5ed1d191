"""Class means, Gram and frame distances, both NC1 and ranks against hand-made oracles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib.checks import InputError
from nclib.frames import random_rotation
from nclib.metrics import frame_distances, geometry, nc_metrics
from nclib.metrics.geometry import nc1


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


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
    order, turn = torch.randperm(K, generator=gen(seed)), random_rotation(d, generator=gen(seed))
    moved = 1e-7 * means[order] @ turn
    again = frame_distances(moved, centre=centre)
    assert again["of"] == pytest.approx(found["of"], abs=1e-9)
    assert again["etf"] == pytest.approx(found["etf"], abs=1e-8)


@pytest.mark.parametrize(("K", "cross"), [(4, 0.5176), (10, 0.3204)])
def test_fixed_points(K, cross):
    frame = 3 * random_rotation(K + 2, generator=gen())[:K]
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
    assert math.isnan(geometry.trace_ratio(torch.ones(4, 2), [0, 0, 1, 1]))
    assert frame_distances(1e-200 * torch.eye(3).double())["of"] < 1e-12  # no underflow


def test_trace_ratio_by_hand_imbalanced():
    # class 0: -1, 1 (mean 0), class 1: 3 (mean 3); global mean of class means 1.5
    features = torch.tensor([[-1.0], [3.0], [1.0]])
    labels = torch.tensor([0, 1, 0])
    assert geometry.trace_ratio(features, labels) == pytest.approx((2 / 3) / (2.25))


@settings(max_examples=20, deadline=None)
@given(K=st.integers(2, 5), n=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_trace_ratio_equals_the_general_metric_when_balanced(K, n, seed):
    features = torch.randn(K * n, 4, generator=gen(seed), dtype=torch.float64)
    labels = torch.arange(K).repeat(n)
    expected = nc_metrics(features, labels)["nc1_ratio"]
    assert geometry.trace_ratio(features, labels) == pytest.approx(expected, abs=1e-12)


def test_rank_relative_and_absolute():
    matrix = torch.diag(torch.tensor([5.0, 1.0, 0.01, 0.001]))
    assert geometry.rank(matrix, cut=1e-3) == 3
    assert geometry.rank(matrix[:3, :3], cut=0.1) == 2
    assert geometry.rank(matrix, cut=5e-4, relative=False) == 4
    assert geometry.rank(torch.zeros(2, 2), cut=1e-3) == 0
    assert geometry.rank(torch.zeros(2, 2), cut=1e-3, relative=False) == 0


@settings(max_examples=20, deadline=None)
@given(K=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_class_means_by_brute_force(K, seed):
    features = torch.randn(20, 3, generator=gen(seed))
    labels = torch.randint(K, (20,), generator=gen(seed + 1))
    means, counts = geometry.class_means(features, labels, K + 1)
    assert counts.tolist() == [int((labels == k).sum()) for k in range(K + 1)]
    for k in range(K):
        own = features[labels == k].double().numpy()
        np.testing.assert_allclose(means[k], own.mean(0) if len(own) else np.nan, rtol=1e-12)
    assert means[K].isnan().all()  # no sample


@pytest.mark.parametrize(("K", "d"), [(3, 5), (6, 5), (7, 5), (40, 5)])
def test_etf_error_is_the_gram_distance_at_any_size(K, d):
    left, right = torch.randn(2, K, d, generator=gen(K), dtype=torch.float64)
    target = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    for a, b in ((left, left), (left, right)):
        G = (a @ b.T).numpy()
        want = np.linalg.norm(G / np.linalg.norm(G) - target)
        assert geometry.etf_error(a, b) == pytest.approx(want, rel=1e-12)
        assert geometry.gram_distance(1e-200 * (a @ b.T)) == pytest.approx(want, rel=1e-12)
        for scale in (1e-120, 1e120):
            assert geometry.etf_error(scale * a, scale * b) == pytest.approx(want, rel=1e-12)
    assert geometry.etf_error(left) == pytest.approx(geometry.etf_error(left, left))
    assert math.isnan(geometry.etf_error(0 * left))
    assert math.isnan(geometry.gram_distance(torch.zeros(3, 3)))


def scatter(features, labels, K):
    """Σ_W, Σ_B by their definitions, the centre being the mean over samples."""
    F, y = features.double().numpy(), labels.numpy()
    means = np.stack([F[y == k].mean(0) for k in range(K)])
    within = sum(np.outer(r, r) for r in F - means[y]) / len(F)
    return within, sum(np.outer(r, r) for r in means - F.mean(0)) / K


@settings(max_examples=20, deadline=None)
@given(K=st.integers(2, 6), d=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_nc1_is_a_trace_with_a_pseudo_inverse(K, d, seed):
    labels = torch.cat([torch.arange(K), torch.randint(K, (30,), generator=gen(seed))])
    at = random_rotation(d, generator=gen(seed))
    sizes = torch.linspace(1, 2, d, dtype=torch.float64)
    means = 3 * torch.randn(K, d, generator=gen(seed + 1), dtype=torch.float64) * sizes @ at
    features = means[labels] + torch.randn(len(labels), d, generator=gen(seed + 2))
    within, between = scatter(features, labels, K)
    values = np.sort(np.linalg.eigvalsh(between))[::-1]
    r = min(K - 1, d)
    inverse = np.linalg.pinv(between, rcond=0.5 * values[r - 1] / values[0], hermitian=True)
    want = np.trace(within @ inverse) / K
    assert nc1(features, labels, cut=1e-7) == pytest.approx(want, rel=1e-8)
    assert nc1(features, labels, cut=1e-7, K=K + 3) == pytest.approx(want, rel=1e-8)  # empty ones
    # A larger cut leaves the weaker directions out.
    cut = 0.999 * (values[1] / values[0]) ** 0.5 if r > 1 else 0.5
    two = np.linalg.pinv(between, rcond=cut**2 * 0.999, hermitian=True)
    assert nc1(features, labels, cut=cut) == pytest.approx(np.trace(within @ two) / K, rel=1e-8)


def test_nc1_does_not_invert_the_rounding_of_stored_features():
    line = torch.outer(torch.tensor([1, 1.2, 3, 3.2, 6, 6.2]), torch.tensor([1, 0.6, 0.25]))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    within, between = scatter(line.bfloat16(), labels, 3)
    top = np.linalg.eigh(between)
    want = top[1][:, -1] @ within @ top[1][:, -1] / top[0][-1] / 3
    assert nc1(line.bfloat16(), labels, cut=1e-7) == pytest.approx(want)
    same = line.bfloat16().float()
    assert nc1(same, labels, cut=1e-7, precision="bfloat16") == pytest.approx(want)
    assert nc1(same, labels, cut=1e-7) > 10 * want
    assert math.isnan(nc1(torch.full((6, 3), 0.1), labels, cut=1e-7))


@settings(max_examples=30, deadline=None)
@given(exponent=st.floats(-14, 0), seed=st.integers(0, 10**6), flip=st.booleans())
def test_angles_keep_their_digits(exponent, seed, flip):
    angle = 10.0**exponent
    axes = random_rotation(4, generator=gen(seed))[:2]
    u, v = axes[0], math.cos(angle) * axes[0] + math.sin(angle) * axes[1]
    found = float(geometry.angles_between(3 * u, -7 * v if flip else 7 * v))
    small = 180 - found if flip else found
    assert small == pytest.approx(math.degrees(angle), rel=1e-12, abs=2e-13)


def test_bad_input():
    for call, message in (
        (lambda: frame_distances(torch.ones(3)), "matrix"),
        (lambda: frame_distances(torch.ones(1, 3)), "at least 2 rows"),
        (lambda: frame_distances(torch.tensor([[1.0, math.nan]] * 2)), "NaN"),
        (lambda: geometry.trace_ratio(torch.ones(3, 2), [0, 1]), "labels has 2 entries"),
        (lambda: geometry.trace_ratio(torch.ones(3, 2), [0, 0, 2]), "class 1 has no sample"),
        (lambda: nc1(torch.ones(3, 2), [1, 1, 1], cut=0.0), "two classes"),
        (lambda: geometry.rank(torch.ones(3), cut=0.1), "matrix"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_cosines_at_any_scale(scale):
    rows = torch.tensor([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0], [1e-3, 0.0]])  # float32
    expected = [[1, -0.8, 0, 0.6], [-0.8, 1, 0, 0], [0, 0, 0, 0], [0.6, 0, 0, 1]]
    found = geometry.cosines(scale * rows)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)
    assert float(geometry.scaled(scale * rows).abs().max()) == 1.0
    assert not geometry.scaled(0 * rows).any()


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_the_scale_of_features_does_not_matter(scale):
    """Where squares of doubles vanish, overflow or lose digits, too."""
    rng = np.random.default_rng(1)
    labels = np.arange(40) % 4
    features = rng.standard_normal((4, 5))[labels] + 0.3 * rng.standard_normal((40, 5)) + 1
    for metric in (
        lambda h: geometry.trace_ratio(h, labels),
        lambda h: nc1(h, labels, cut=1e-8),
        lambda h: geometry.etf_error(torch.tensor(h[:4])),
        lambda h: float(geometry.angles_between(h[0], h[1])),
        lambda h: float(geometry.angles_between(scale * features[0], features[1])),
    ):
        assert metric(scale * features) == pytest.approx(metric(features), rel=1e-9)


def test_rows_of_very_different_lengths():
    rows = torch.tensor([[1.0, 0.0], [3e-20, 3e-20], [0.0, 2e20]], dtype=torch.float64)
    half = math.sqrt(0.5)
    expected = torch.tensor([[1, half, 0], [half, 1, half], [0, half, 1]], dtype=torch.float64)
    torch.testing.assert_close(geometry.cosines(rows), expected)
    assert geometry.angles_between(rows[:2], rows[1:]).tolist() == pytest.approx([45, 45])
    assert torch.isnan(geometry.angles_between(torch.zeros(2), torch.ones(2)))


@pytest.mark.parametrize("value", [0.1, 0.7, 123.456])
def test_equal_features_have_exactly_equal_means(value):
    """A sum of many doubles rounds: 0.1 added 1000 times over 1000 is not 0.1."""
    labels = torch.arange(1000) ** 2 % 7 % 4  # 0, 1, 2: unequal classes
    means, counts = geometry.class_means(torch.full((1000, 3), value, dtype=torch.float64), labels)
    assert counts.tolist() == [429, 285, 286] and bool((means == value).all())
    empty = torch.tensor([0, *counts.tolist()])
    mean = geometry.sample_mean(torch.cat([torch.zeros(1, 3).double(), means]), empty)
    assert bool((mean == value).all())


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e7])
@pytest.mark.parametrize("K", [2, 7, 60])
def test_nc1_takes_class_means_that_differ_by_rounding_for_equal(K, size):
    """Seven samples of each class about the same point, in an order of their own."""
    generator = torch.Generator().manual_seed(K)
    about = size * (3 + torch.randn(7, 4, generator=generator).double())
    orders = [torch.randperm(7, generator=generator) for _ in range(K)]
    features, labels = torch.cat([about[i] for i in orders]), torch.arange(K).repeat_interleave(7)
    assert math.isnan(nc1(features, labels, cut=0.0))
    apart = 1e-12 * size * labels[:, None]  # beyond rounding
    assert nc1(features + apart, labels, cut=0.0) > 1e15


def test_nc1_keeps_no_more_directions_than_class_means_can_have():
    """Two classes far from zero in many dimensions: the rounding of the global mean, which both
    centred means share, is a second direction above the floor."""
    labels = torch.arange(2).repeat(200)
    features = 0.1 * torch.randn(400, 4096, generator=gen(), dtype=torch.float64)
    features[:, :2] += torch.eye(2)[labels]
    means = torch.stack([features[labels == k].mean(0) for k in range(2)])
    gap = means[1] - means[0]
    along = (features - means[labels]) @ gap / gap.norm()
    expected = float(along.square().mean() / (gap.square().sum() / 4)) / 2
    assert nc1(features + 1e6, labels, cut=0.0) == pytest.approx(expected, rel=1e-6)


def test_the_mean_of_samples_passes_over_classes_without_any():
    means, counts = geometry.class_means([[1, 2], [3, 4], [5, 6]], [0, 0, 2], 3)
    assert geometry.sample_mean(means, counts).tolist() == pytest.approx([3, 4])


def test_small_differences_between_large_means_are_differences():
    features = torch.tensor([[1e6], [1e6], [1e6 + 5e-7], [1e6 + 5e-7]], dtype=torch.float64)
    moved = features.flatten()[::2].diff()
    assert geometry.centred(features).abs().max() == pytest.approx(float(moved) / 2, rel=1e-3)
    assert geometry.trace_ratio(features, [0, 0, 1, 1]) == 0.0
    assert not geometry.centred(torch.full((3, 2), 0.1) + 0.0).any()


def test_angles_of_lists_are_those_of_doubles():
    found = geometry.angles_between([1.0, 0.1], [1.0, 0.1000000001])
    assert float(found) == pytest.approx(np.degrees(1e-10 / 1.01), rel=1e-5)
