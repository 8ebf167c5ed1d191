"""Angles in degrees and result 2's NC metrics against loops and constructed geometries."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import frames
from nclib.checks import InputError
from nclib.metrics import geometry, nc_metrics
from nclib.results.normalized import metrics as angles


def cloud(counts, d, seed=0, noise=1.0, mean=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centres = torch.randn(len(counts), d, generator=generator, dtype=torch.float64)
    features = noise * torch.randn(len(labels), d, generator=generator, dtype=torch.float64)
    weight = torch.randn(len(counts), d, generator=generator, dtype=torch.float64)
    return (centres[labels] + features + mean).to(dtype), labels, weight


class TestAngles:
    def test_by_hand(self):
        rows = torch.tensor([[1.0, 0], [0, 2.0], [-3.0, 0], [1.0, 1.0]])
        expected = [[0, 90, 180, 45], [90, 0, 90, 45], [180, 90, 0, 135], [45, 45, 135, 0]]
        found = geometry.angles_between(rows[:, None], rows[None])
        assert (found - torch.tensor(expected)).abs().max() < 1e-12

    @pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.5, math.pi - 1e-4, math.pi - 1e-9])
    def test_precise_near_zero_and_half_a_turn(self, angle):
        u = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        v = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        measured = math.radians(float(geometry.angles_between(u, v)))
        assert measured == pytest.approx(angle, rel=8 * 2**-52, abs=0)

    def test_zero_vectors_have_no_direction(self):
        rows = torch.tensor([[1.0, 0], [0, 0], [0, 1]])
        mean, largest = angles.simplex_deviation(rows)
        assert abs(mean - 30) < 1e-12
        assert abs(largest - 30) < 1e-12

    @pytest.mark.parametrize(
        ("K", "degrees"), [(2, 180), (3, 120), (4, 109.4712), (10, 96.3794), (100, 90.5788)]
    )
    def test_simplex_angle(self, K, degrees):
        assert abs(angles.simplex_angle(K) - degrees) < 1e-4
        etf = frames.simplex_etf(K)
        assert max(angles.simplex_deviation(etf)) < 1e-5
        assert abs(float(geometry.angles_between(5 * etf[0], etf[1])) - degrees) < 1e-4

    def test_deviation_is_over_pairs(self):
        """Square in the plane: four right angles and two of 180, against 109.47."""
        mean, largest = angles.simplex_deviation(frames.polygon(4))
        target = math.degrees(math.acos(-1 / 3))
        assert abs(mean - (4 * (target - 90) + 2 * (180 - target)) / 6) < 1e-10
        assert abs(largest - (180 - target)) < 1e-10

    def test_alignment(self):
        weight, eye = frames.simplex_etf(10, 12), torch.eye(10, dtype=torch.float64)
        for rows, means, expected in (
            (weight, 3 * weight, 0),
            (weight, -weight, 180),
            (eye - 0.1, eye, 18.4349),
        ):
            found = angles.sphere_metrics(means, torch.arange(10), rows)
            assert abs(found["alignment"] - expected) < 1e-4
            assert abs(found["alignment_max"] - expected) < 1e-4

    def test_within_class(self):
        """Two samples at ±20° from their mean; a single sample; an empty class."""
        a = math.radians(20)
        features = torch.tensor([[math.cos(a), math.sin(a)], [math.cos(a), -math.sin(a)], [0, 5.0]])
        found = angles.within_class_angles(features, [0, 0, 2], num_classes=3)
        assert abs(float(found[0]) - 20) < 1e-5
        assert found[1].isnan()
        assert abs(float(found[2])) < 1e-12

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: angles.simplex_angle(1), "K must be at least 2"),
            (lambda: angles.simplex_deviation(torch.ones(3)), "matrix"),
            (lambda: angles.simplex_deviation(torch.full((2, 2), torch.inf)), "infinite"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(InputError, match=message):
            call()


def brute_nc1(features, labels, K, rank=None):
    """numpy, dense covariances, eigenvectors of the top min(d, K-1) directions."""
    X, y = features.double().numpy(), labels.numpy()
    N, d = X.shape
    within = np.zeros((d, d))
    means = np.stack([X[y == k].mean(0) for k in range(K)])
    for x, k in zip(X, y, strict=True):
        within += np.outer(x - means[k], x - means[k]) / N
    centred = means - X.mean(0)
    values, vectors = np.linalg.eigh(sum(np.outer(c, c) for c in centred) / K)
    r = rank or min(d, K - 1)
    inverse = (vectors[:, -r:] / values[-r:]) @ vectors[:, -r:].T
    return np.trace(within @ inverse) / K


class TestNC1:
    @pytest.mark.parametrize(
        ("counts", "d"), [([5, 5, 5], 6), ([7, 3, 2, 4], 3), ([4, 4], 2), ([3] * 6, 3)]
    )
    def test_brute_force(self, counts, d):
        features, labels, _ = cloud(counts, d)
        found = angles.truncated_nc1(features, labels)
        assert abs(found / brute_nc1(features, labels, len(counts)) - 1) < 1e-10

    @pytest.mark.parametrize("mean", [0.0, 1e4])
    def test_agrees_with_the_library_on_full_rank(self, mean):
        features, labels, weight = cloud([9, 9, 9, 9], 8, mean=mean)
        expected = nc_metrics(features, labels, weight)["nc1"]
        assert abs(angles.truncated_nc1(features, labels) / expected - 1) < 1e-8

    def test_large_mean_does_not_bring_noise(self):
        """Two classes in 4 dimensions: Σ_B has rank one, the rest is rounding."""
        features, labels, _ = cloud([50, 50], 4, noise=1.0)
        expected = brute_nc1(features, labels, 2)
        for shift, tolerance in ((1e3, 1e-8), (1e6, 1e-6)):
            assert abs(angles.truncated_nc1(features + shift, labels) / expected - 1) < tolerance

    def test_merged_classes_are_cut(self):
        """Two classes on one point: the rank is K-2, and its noise direction must not be kept."""
        etf = frames.simplex_etf(3)[torch.tensor([0, 1, 2, 2])]
        labels = torch.arange(4).repeat_interleave(5)
        noise = 1e-9 * torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
        assert angles.truncated_nc1(etf[labels] + noise, labels) < 1e-15

    def test_float32(self):
        features, labels, _ = cloud([30, 30, 30], 10, noise=1e-3)
        exact = angles.truncated_nc1(features, labels)
        assert abs(angles.truncated_nc1(features.float(), labels) / exact - 1) < 1e-3

    @pytest.mark.parametrize(
        ("dtype", "apart", "rank"),
        [
            (torch.float64, 1e-3, 3),  # squared, 1e-6 of the largest eigenvalue
            (torch.float32, 1e-3, 2),
            (torch.float32, 1e-2, 3),
            (torch.float64, 1e-6, 2),
            (torch.float64, 1e-4, 3),
        ],
    )
    def test_where_a_direction_is_cut(self, dtype, apart, rank):
        """Two of four classes this far apart, in a direction of their own."""
        means = F.pad(frames.simplex_etf(3, 2)[[0, 1, 2, 2]], (0, 1))
        means[3, 2] = apart
        labels = torch.arange(4).repeat_interleave(5)
        noise = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
        noise -= torch.stack([noise[labels == k].mean(0) for k in range(4)])[labels]
        features = means[labels] + 0.1 * noise
        expected = brute_nc1(features, labels, 4, rank)
        assert angles.truncated_nc1(features.to(dtype), labels) == pytest.approx(expected, rel=1e-2)

    def test_bfloat16_is_known_by_its_dtype(self):
        """The same numbers: rounding of what was stored in half, a signal where it was not."""
        labels = torch.arange(4).repeat_interleave(6)
        features = (frames.simplex_etf(4, 5)[labels] + 100).bfloat16()
        assert math.isnan(angles.truncated_nc1(features, labels))
        assert angles.truncated_nc1(features.float(), labels) == 0

    def test_equal_means_are_undefined(self):
        features = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]]) + 7
        assert math.isnan(angles.truncated_nc1(features, [0, 0, 1, 1]))

    def test_single_class(self):
        with pytest.raises(InputError, match="at least two classes"):
            angles.truncated_nc1(torch.randn(4, 3), [1, 1, 1, 1], num_classes=3)


class TestSphereMetrics:
    def test_zero_at_collapse(self):
        weight, labels = frames.simplex_etf(5, 7), torch.arange(5).repeat_interleave(3)
        found = angles.sphere_metrics(4 * weight[labels], labels, weight)
        assert found["nc1"] < 1e-30
        for name in ("nc2", "nc3", "nc3_centered", "nc2_floor"):
            assert found[name] < 1e-12
        for name in ("weight_angle_max", "means_angle_max", "alignment_max", "within_angle"):
            assert found[name] < 1e-5

    def test_brute_force(self):
        features, labels, weight = cloud([7, 3, 2, 4], 5, mean=0.5)
        means = torch.stack([features[labels == k].mean(0) for k in range(4)])
        target = (torch.eye(4, dtype=torch.float64) - 0.25) / math.sqrt(3)

        def distance(gram):
            return math.sqrt(sum(float(x) ** 2 for x in (gram / gram.norm() - target).flatten()))

        found = angles.sphere_metrics(features, labels, weight)
        assert abs(found["nc2"] - distance(weight @ weight.T)) < 1e-12
        assert abs(found["nc3"] - distance(weight @ means.T)) < 1e-12
        centred = means - features.mean(0)
        assert abs(found["nc3_centered"] - distance(weight @ centred.T)) < 1e-12
        cosines = F.cosine_similarity(weight, means)
        assert abs(found["alignment"] - float(cosines.arccos().rad2deg().mean())) < 1e-10
        assert abs(found["alignment_max"] - float(cosines.arccos().rad2deg().max())) < 1e-10
        per_class = [
            F.cosine_similarity(features[labels == k], means[k, None]).arccos().rad2deg().mean()
            for k in range(4)
        ]
        assert abs(found["within_angle"] - float(sum(per_class)) / 4) < 1e-10
        for rows, name in ((weight, "weight_angle"), (centred, "means_angle")):
            pairs = [
                abs(
                    math.degrees(math.acos(F.cosine_similarity(rows[i], rows[j], dim=0)))
                    - 109.4712206
                )
                for i in range(4)
                for j in range(i)
            ]
            assert abs(found[name] - sum(pairs) / 6) < 1e-6
            assert abs(found[name + "_max"] - max(pairs)) < 1e-6

    @pytest.mark.parametrize("size", [1e-200, 1e200])
    def test_no_square_leaves_the_numbers(self, size):
        features, labels, weight = cloud([4, 2, 3], 4, 0)
        expected = angles.sphere_metrics(features, labels, weight)
        found = angles.sphere_metrics(size * features, labels, size * weight)
        for name in expected.keys() - {"nc1"}:
            assert found[name] == pytest.approx(expected[name], rel=1e-9), name

    def test_agrees_with_the_library(self):
        features, labels, weight = cloud([6, 6, 6], 5)
        library = nc_metrics(features, labels, weight)
        found = angles.sphere_metrics(features, labels, weight)
        assert abs(found["nc2"] - library["nc2"]) < 1e-12
        assert abs(found["nc3_centered"] - library["nc3"]) < 1e-12

    @pytest.mark.parametrize(
        ("K", "d", "expected"), [(10, 2, 1.0282), (8, 2, 0.965), (10, 9, 0.0), (3, 5, 0.0)]
    )
    def test_floor(self, K, d, expected):
        weight = frames.polygon(K, d) if d == 2 else frames.simplex_etf(K, d)
        found = angles.sphere_metrics(weight, torch.arange(K), weight)
        assert abs(found["nc2_floor"] - expected) < 1e-3
        assert abs(found["nc2"] - found["nc2_floor"]) < 1e-12

    def test_landmarks(self):
        """Orthonormal, collapsed and anti-aligned classifiers (section 4 of the spec)."""
        labels = torch.arange(10)
        eye = torch.eye(10, dtype=torch.float64)
        found = angles.sphere_metrics(eye, labels, eye)
        assert abs(found["nc2"] - 0.320) < 5e-4
        same = torch.ones(10, 3, dtype=torch.float64)
        spread = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).double()
        assert abs(angles.sphere_metrics(spread, labels, same)["nc2"] - math.sqrt(2)) < 1e-12
        etf = frames.simplex_etf(10)
        assert abs(angles.sphere_metrics(-etf, labels, etf)["nc3"] - 2) < 1e-12

    def test_empty_classes_are_left_out(self):
        weight = frames.simplex_etf(4, 5)
        labels = torch.tensor([0, 0, 1, 3, 3])
        features = weight[labels]
        found = angles.sphere_metrics(features, labels, weight)
        assert found["nc2"] < 1e-12
        assert found["nc1"] < 1e-30
        assert max(found["alignment_max"], found["weight_angle_max"]) < 1e-5
        assert not any(math.isnan(v) for v in found.values())
        flat = frames.polygon(4)
        floor = angles.sphere_metrics(flat[labels], labels, flat)["nc2_floor"]
        assert abs(floor - math.sqrt(2 - 2 * math.sqrt(2 / 3))) < 1e-12

    def test_zero_classifier_is_nan(self):
        features, labels, _ = cloud([3, 3], 3)
        found = angles.sphere_metrics(features, labels, torch.zeros(2, 3))
        assert math.isnan(found["nc2"])
        assert math.isnan(found["nc3"])

    @given(st.integers(0, 10**6), st.floats(0.01, 100))
    @settings(max_examples=20, deadline=None)
    def test_invariances(self, seed, scale):
        features, labels, weight = cloud([4, 2, 3], 4, seed)
        generator = torch.Generator().manual_seed(seed)
        turn = frames.random_rotation(4, generator=generator)
        order = torch.randperm(9, generator=generator)
        classes = torch.randperm(3, generator=generator)
        renamed = torch.empty_like(weight)
        renamed[classes] = weight @ turn
        expected = angles.sphere_metrics(features, labels, weight)
        found = angles.sphere_metrics(
            scale * (features @ turn)[order], classes[labels][order], 3 * renamed
        )
        for name, value in expected.items():
            assert abs(found[name] - value) < 1e-8 * max(1, abs(value)), name

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"features": torch.full((3, 4), torch.nan)}, "NaN"),
            ({"weight": torch.ones(3, 5)}, "4 columns"),
            ({"weight": torch.ones(1, 4), "labels": [0, 0, 0]}, "at least 2"),
            ({"labels": [0, 1]}, "2 entries for 3 samples"),
            ({"labels": [0, 1, 3]}, "found 3"),
            ({"labels": [1, 1, 1]}, "at least two classes"),
        ],
    )
    def test_bad_input(self, change, message):
        point = {"features": torch.eye(3, 4), "weight": torch.eye(3, 4), "labels": [0, 1, 2]}
        with pytest.raises(InputError, match=message):
            angles.sphere_metrics(**point | change)
