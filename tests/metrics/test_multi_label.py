"""Multi-label metrics against loops over the definitions, exact configurations and invariances."""

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib.checks import InputError
from nclib.metrics import multi_label_metrics, nc_metrics
from nclib.metrics.multi_label import (
    LabelSetStatistics,
    soft_iou,
    statistics_metrics,
    tagwise_fit,
)
from nclib.results.multi_label import theory
from tests.bank import turned


def sample(seed=0, K=4, d=6, counts=((1, 5), (2, 3), (3, 2)), noise=0.5, shift=2.0):
    """Noisy features around tag-wise sums, unequal counts, shuffled; a random classifier."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((K, d))
    targets = []
    for m, n in counts:
        for S in combinations(range(K), m):
            for _ in range(n + int(rng.integers(0, 3))):
                row = np.zeros(K)
                row[list(S)] = 1
                targets.append(row)
    targets = rng.permutation(np.array(targets))
    features = targets @ directions + noise * rng.standard_normal((len(targets), d)) + shift
    return features, targets, rng.standard_normal((K, d))


def brute_force(features, targets, weight):
    """Every clean metric by loops and plain numpy, straight from the definitions."""
    K = targets.shape[1]
    groups = {}
    for h, y in zip(features, targets, strict=True):
        groups.setdefault(tuple(np.flatnonzero(y)), []).append(h)
    means = {S: np.mean(rows, axis=0) for S, rows in groups.items()}
    M = np.array([means[(k,)] for k in range(K)])
    mu = M.mean(0)
    T = (np.eye(K) - 1 / K) / math.sqrt(K - 1)
    within = sum(np.outer(h - M[k], h - M[k]) for k in range(K) for h in groups[(k,)])
    within = within / sum(len(groups[(k,)]) for k in range(K))
    between = sum(np.outer(row - mu, row - mu) for row in M) / K
    distance = lambda G: np.linalg.norm(G / np.linalg.norm(G) - T)  # noqa: E731
    A, Wc = M - mu, weight - weight.mean(0)
    found = {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / K,
        "nc2": distance(weight @ weight.T),
        "nc2_centered": distance(Wc @ Wc.T),
        "nc2_means": distance(A @ A.T),
        "nc3": distance(weight @ A.T),
        "nc3_centered": distance(Wc @ A.T),
        "nc1_ratio": {}, "scale": {}, "tagwise_residual": {}, "degrees": {}, "ratio": {},
    }  # fmt: skip
    for m in sorted({len(S) for S in groups}):
        sets = sorted(S for S in groups if len(S) == m)
        total = np.mean([means[S] for S in sets], axis=0)
        inside = sum(np.sum((h - means[S]) ** 2) for S in sets for h in groups[S])
        inside /= sum(len(groups[S]) for S in sets)
        found["nc1_ratio"][m] = inside / np.mean([np.sum((means[S] - total) ** 2) for S in sets])
        if m == 1:
            continue
        # Least squares in the d+1 unknowns (offset, C) by numpy.
        d = features.shape[1]
        rows, rhs = [], []
        for S in sets:
            block = np.zeros((d, d + 1))
            block[:, :d], block[:, d] = np.eye(d), sum(A[k] for k in S)
            rows.append(block)
            rhs.append(means[S])
        solution = np.linalg.lstsq(np.vstack(rows), np.concatenate(rhs), rcond=None)[0]
        offset, C = solution[:d], solution[d]
        residual = [means[S] - offset - C * sum(A[k] for k in S) for S in sets]
        found["scale"][m] = C
        found["tagwise_residual"][m] = np.sum(np.square(residual)) / sum(
            np.sum((means[S] - offset) ** 2) for S in sets
        )
        angle = lambda a, b: math.degrees(  # noqa: E731
            math.acos(max(-1, min(1, a @ b / np.linalg.norm(a) / np.linalg.norm(b))))
        )
        own = np.mean([angle(sum(A[k] for k in S), means[S] - offset) for S in sets])
        pairs = [angle(sum(A[k] for k in U), means[S] - offset)
                 for U in combinations(range(K), m) for S in sets]  # fmt: skip
        found["degrees"][m], found["ratio"][m] = own, own / np.mean(pairs)
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_loops(seed):
    features, targets, weight = sample(seed)
    expected = brute_force(features, targets, weight)
    found = multi_label_metrics(features, targets, weight)
    for name in ("nc1", "nc2", "nc2_centered", "nc2_means", "nc3", "nc3_centered"):
        assert found[name] == pytest.approx(expected[name], rel=1e-10), name
    for name in ("nc1_ratio", "scale", "tagwise_residual"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9), name
    for m in (2, 3):
        degrees, ratio = found["angle"][m]
        assert degrees == pytest.approx(expected["degrees"][m], rel=1e-9)
        assert ratio == pytest.approx(expected["ratio"][m], rel=1e-9)
        assert found["angle"][m]["degrees"] == found["angle"][m].degrees == degrees
        assert found["angle"][m]["ratio"] == ratio


def test_unobserved_label_sets_are_skipped():
    features, targets, weight = sample(3, counts=((1, 4), (2, 3)))
    keep = ~((targets[:, 0] == 1) & (targets[:, 2] == 1))
    expected = brute_force(features[keep], targets[keep], weight)
    found = multi_label_metrics(features[keep], targets[keep], weight)
    assert found["scale"][2] == pytest.approx(expected["scale"][2], rel=1e-9)
    assert found["angle"][2].ratio == pytest.approx(expected["ratio"][2], rel=1e-9)


def test_zero_at_the_exact_optimum():
    exact = theory.optimum(K=6, counts={1: 3, 2: 2, 3: 1}, lambda_w=1e-3, lambda_h=1e-4)
    made = turned(theory.configuration(exact), 9, torch.Generator().manual_seed(0))
    n = made.sample_counts.long()
    features = made.features.repeat_interleave(n, 0) + 3.0  # a common shift changes nothing
    found = multi_label_metrics(features, made.targets.repeat_interleave(n, 0), made.weight)
    for name in ("nc1", "nc2", "nc2_centered", "nc2_means", "nc3", "nc3_centered"):
        assert found[name] < 1e-12
    for m in (2, 3):
        assert found["scale"][m] == pytest.approx(exact.scales[m], rel=1e-12)
        assert found["tagwise_residual"][m] < 1e-24
        assert found["angle"][m].degrees < 1e-10
        assert found["angle"][m].ratio < 1e-12


def test_single_labels_only_agree_with_nc_metrics():
    """Balanced multi-class data: the shared names mean the same as in nc_metrics."""
    rng = np.random.default_rng(4)
    labels = np.repeat(np.arange(5), 7)
    features = rng.standard_normal((5, 8))[labels] + 0.3 * rng.standard_normal((35, 8))
    weight = rng.standard_normal((5, 8))
    one = nc_metrics(features, labels, weight)
    many = multi_label_metrics(features, np.eye(5)[labels], weight)
    for name in ("nc1", "nc2", "nc2_centered", "nc2_means", "nc3", "nc3_centered"):
        if name in one:
            assert many[name] == pytest.approx(one[name], rel=1e-9), name
    assert many["nc1_ratio"][1] == pytest.approx(one["nc1_ratio"], rel=1e-9)
    assert many["scale"] == {}


def test_class_mean_weighs_classes_not_samples():
    """μ is the mean of the class means: repeating the samples of a class leaves it."""
    features, targets, weight = sample(5, counts=((1, 4), (2, 3)))
    heavy = np.flatnonzero((targets[:, 0] == 1) & (targets.sum(1) == 1))
    more = np.concatenate([np.arange(len(features)), np.repeat(heavy, 20)])
    a = multi_label_metrics(features, targets, weight)
    b = multi_label_metrics(features[more], targets[more], weight)
    for name in ("nc2_means", "nc3", "nc3_centered"):
        assert b[name] == pytest.approx(a[name], rel=1e-10)
    assert b["scale"][2] == pytest.approx(a["scale"][2], rel=1e-10)
    assert b["nc1"] != pytest.approx(a["nc1"], rel=1e-3)


def flat(metrics):
    """Every number of a metrics mapping, in order."""
    numbers = []
    for value in metrics.values():
        parts = value.values() if isinstance(value, dict) else [value]
        for part in parts:
            numbers += list(tuple(part)) if isinstance(part, tuple) else [part]
    return np.array(numbers)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_invariances(seed, order):
    features, targets, weight = sample(seed % 7)
    rng = np.random.default_rng(seed)
    base = multi_label_metrics(features, targets, weight)
    shuffle = rng.permutation(len(features))
    q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    changed = multi_label_metrics(
        features[shuffle] @ q, targets[shuffle][:, order], (weight @ q)[order]
    )
    assert flat(changed) == pytest.approx(flat(base), rel=1e-8)
    scaled = multi_label_metrics(10 * features, targets, 3 * weight)
    moved = multi_label_metrics(features + rng.standard_normal(6), targets, weight)
    for other in (scaled, moved):
        geometry = {k: v for k, v in other.items() if k != "soft_iou"}
        expected = {k: v for k, v in base.items() if k != "soft_iou"}
        assert flat(geometry) == pytest.approx(flat(expected), rel=1e-8)


def test_collapsed_features_far_from_zero_do_not_cancel():
    features, targets, weight = sample(1, noise=1e-7, shift=1e3)
    expected = brute_force(features - 1e3, targets, weight)["nc1_ratio"]
    found = LabelSetStatistics.of(features, targets)
    ratio = statistics_metrics(found, weight)["nc1_ratio"]
    assert ratio == pytest.approx(expected, rel=1e-4)


def test_thousands_of_label_sets_in_wide_rows():
    """More classes than bits in a byte or a word; two sets that differ in the last class only."""
    rng = np.random.default_rng(0)
    targets = np.zeros((6000, 75))
    targets[np.arange(75), np.arange(75)] = 1
    for row in range(75, 6000):
        targets[row, rng.choice(75, 2, replace=False)] = 1
    features = targets @ rng.standard_normal((75, 10))
    found = LabelSetStatistics.of(features, targets)
    assert len(found.counts) == len({tuple(row) for row in targets})
    assert found.counts.sum() == 6000
    fit = tagwise_fit(found, 2)
    assert fit.scale == pytest.approx(1, rel=1e-9)
    assert float(fit.degrees.max()) < 1e-6


def test_too_many_possible_sets_are_drawn(monkeypatch):
    """A mean over 200 of 495 quadruples is that over all of them, to a per cent."""
    features, targets, weight = sample(2, K=12, counts=((1, 2), (4, 1)))
    one, two = [], []
    for most, found in ((30_000_000, one), (200 * 495, two)):
        monkeypatch.setattr("nclib.metrics.multi_label._MAX_PAIRS", most)
        found.append(multi_label_metrics(features, targets, weight)["angle"][4].ratio)
    assert one != two
    assert two == pytest.approx(one, rel=0.01)


def test_fit_per_label_set_and_weight_reference():
    features, targets, weight = sample(6, counts=((1, 4), (2, 3)))
    found = LabelSetStatistics.of(features, targets)
    fit = tagwise_fit(found, 2)
    pairs = [tuple(row.nonzero().flatten().tolist()) for row in fit.label_sets]
    assert pairs == list(combinations(range(4), 2))
    assert fit.sample_counts.tolist() == [
        int((targets[:, list(p)].all(1) & (targets.sum(1) == 2)).sum()) for p in pairs
    ]
    own = tagwise_fit(found, 2, weight=found.class_means)
    assert torch.allclose(own.degrees, fit.degrees, rtol=0, atol=1e-9)
    by_weight = multi_label_metrics(features, targets, found.class_means, reference="weight")
    assert by_weight["scale"][2] == pytest.approx(fit.scale, rel=1e-12)


def official_by_hand(features, targets, weight):
    """The published code's definitions in float64 loops (without its memory slip)."""
    K = targets.shape[1]
    single = targets.sum(1) == 1
    M = np.array([features[single & (targets[:, k] == 1)].mean(0) for k in range(K)])
    mu = features[single].sum(0) / len(features)
    between = (M - mu).T @ (M - mu) / K
    residual = features[single] - M[targets[single].argmax(1)]
    T = (np.eye(K) - 1 / K) / math.sqrt(K - 1)
    distance = lambda G: np.linalg.norm(G / np.linalg.norm(G) - T)  # noqa: E731
    angles, everything = [], []
    unit = lambda v: v / np.linalg.norm(v)  # noqa: E731
    for i, j in combinations(range(K), 2):
        mean = unit(features[(targets[:, i] == 1) & (targets[:, j] == 1) & (targets.sum(1) == 2)]
                    .mean(0))  # fmt: skip
        angles.append(math.degrees(math.acos(unit(M[i] + M[j]) @ mean)))
        everything += [
            math.degrees(math.acos(unit(M[a] + M[b]) @ mean)) for a, b in combinations(range(K), 2)
        ]
    return {
        "nc1": np.trace(residual.T @ residual / single.sum() @ np.linalg.pinv(between)) / K,
        "nc2": distance(weight @ weight.T),
        "nc2_means": distance(M @ M.T),
        "nc3": distance(weight @ (M - mu).T),
        "degrees": np.mean(angles),
        "ratio": np.mean(angles) / np.mean(everything),
    }


def test_official_convention():
    features, targets, weight = sample(8)
    expected = official_by_hand(features, targets, weight)
    found = multi_label_metrics(features, targets, weight, convention="official")
    assert found["nc1"] == pytest.approx(expected["nc1"], rel=1e-4)  # float32 in their code
    for name in ("nc2", "nc2_means", "nc3"):
        assert found[name] == pytest.approx(expected[name], rel=1e-10)
    assert found["angle"][2] == pytest.approx((expected["degrees"], expected["ratio"]), rel=1e-9)
    assert list(found["angle"]) == [2]
    clean = multi_label_metrics(features, targets, weight)
    assert found["nc1"] != pytest.approx(clean["nc1"], rel=1e-2)
    assert found["nc2_means"] != pytest.approx(clean["nc2_means"], rel=1e-2)


@pytest.mark.parametrize("convention", ["clean", "official"])
def test_the_scale_does_not_matter_or_is_refused(convention):
    features, targets, weight = sample(8)

    def found(scale, other):
        got = multi_label_metrics(scale * features, targets, other * weight, convention=convention)
        for name in ("soft_iou", "scale"):
            got.pop(name, None)
        return flat(got)

    want = found(1.0, 1.0)
    for scale in (1e-100, 1e-30, 1e30, 1e100):
        assert found(scale, 1 / scale) == pytest.approx(want, rel=1e-5)  # official: float32
    for scales in ((1e-160, 1.0), (1e160, 1.0), (1.0, 1e-160), (1.0, 1e160)):
        with pytest.raises(InputError, match="leave double precision"):
            found(*scales)


def test_orthogonal_frame_is_0_3204_in_the_official_nc2_and_0_in_ours():
    features, targets = np.eye(10), np.eye(10)
    official = multi_label_metrics(features, targets, np.eye(10), convention="official")
    assert official["nc2_means"] == pytest.approx(0.3204, abs=5e-5)
    assert multi_label_metrics(features, targets, np.eye(10))["nc2_means"] < 1e-12


def test_soft_iou():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((9, 4)), np.zeros((9, 4))
    for row in range(9):
        targets[row, : 1 + row % 3] = 1
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    mass = (p * targets).sum(1)
    expected = {m: mass[targets.sum(1) == m].mean() for m in (1, 2, 3)}
    assert soft_iou(logits, targets) == pytest.approx(expected)
    features = logits @ np.linalg.inv(np.vander([1.0, 2.0, 3.0, 4.0])).T
    weight, bias = np.vander([1.0, 2.0, 3.0, 4.0]), np.array([0.5, 0, -0.5, 1.0])
    both = multi_label_metrics(features, targets, weight, reference="weight")["soft_iou"]
    assert both == pytest.approx(expected, rel=1e-6)
    shifted = multi_label_metrics(features, targets, weight, bias, reference="weight")["soft_iou"]
    assert shifted == pytest.approx(soft_iou(logits + bias, targets), rel=1e-6)


def test_soft_iou_at_the_optimum_is_the_set_mass():
    exact = theory.optimum(K=5, counts={1: 1, 2: 1}, lambda_w=1e-3, lambda_h=1e-3)
    made = theory.configuration(exact)
    found = multi_label_metrics(made.features, made.targets, made.weight)["soft_iou"]
    expected = {m: float(theory.set_mass(exact.margins[m], K=5, m=m)) for m in (1, 2)}
    assert found == pytest.approx(expected, rel=1e-12)


def test_missing_singles():
    features, targets, weight = sample(0)
    keep = ~((targets.sum(1) == 1) & (targets[:, 2] == 1))
    with pytest.raises(InputError, match=r"class 2 has no sample.*nc2_centered.*remain"):
        multi_label_metrics(features[keep], targets[keep], weight)
    found = multi_label_metrics(features[keep], targets[keep], weight, reference="weight")
    assert math.isnan(found["nc1"])
    assert math.isnan(found["nc3_centered"])
    assert math.isfinite(found["scale"][2])
    assert math.isfinite(found["nc2_centered"])
    with pytest.raises(InputError, match="class 2"):
        multi_label_metrics(features[keep], targets[keep], weight, convention="official")


def test_undetermined_scale_is_nan():
    features, targets, weight = sample(0, counts=((1, 4), (4, 3)))
    found = multi_label_metrics(features, targets, weight)
    assert math.isnan(found["scale"][4])
    assert math.isnan(found["angle"][4].degrees)
    assert math.isnan(found["nc1_ratio"][4])
    assert math.isfinite(found["nc1"])


def test_zero_features_are_nan_with_a_warning():
    _, targets, weight = sample(0)
    with pytest.warns(RuntimeWarning, match="collapsed to zero"):
        found = multi_label_metrics(np.zeros((len(targets), 6)), targets, weight)
    for name in ("nc1", "nc2_means", "nc3", "nc3_centered"):
        assert math.isnan(found[name])
    assert math.isnan(found["scale"][2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero = multi_label_metrics(sample(0)[0], targets, np.zeros((4, 6)))
    assert math.isnan(zero["nc2"])
    assert math.isfinite(zero["nc1"])


def test_float32_and_tensors():
    features, targets, weight = sample(0)
    a = flat(multi_label_metrics(features, targets, weight))
    half = lambda x: torch.as_tensor(x, dtype=torch.float32)  # noqa: E731
    b = flat(multi_label_metrics(half(features), half(targets).bool(), half(weight)))
    assert b == pytest.approx(a, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.full((20, 4), 0.5)}, "only 0 and 1"),
        ({"targets": np.zeros((20, 4))}, "without a label"),
        ({"targets": np.ones((19, 4))}, "shape"),
        ({"targets": np.ones(20)}, "multi-hot"),
        ({"weight": np.ones((3, 6))}, "4 rows"),
        ({"weight": np.ones((4, 5))}, "6 columns"),
        ({"features": np.full((20, 6), np.nan)}, "NaN"),
        ({"convention": "theirs"}, "clean, official"),
        ({"reference": "mean"}, "means, weight"),
        ({"bias": np.ones(3)}, "shape"),
    ],
)
def test_bad_input(change, message):
    targets = np.eye(4)[np.arange(20) % 4]
    good = {"features": np.arange(120.0).reshape(20, 6) ** 1.1, "targets": targets,
            "weight": np.ones((4, 6))}  # fmt: skip
    with pytest.raises(InputError, match=message):
        multi_label_metrics(**(good | change))


def test_other_bad_input():
    features, targets, _ = sample(0)
    found = LabelSetStatistics.of(features, targets)
    with pytest.raises(InputError, match=r"present: \[2, 3\]"):
        tagwise_fit(found, 4)
    with pytest.raises(InputError, match="integer"):
        tagwise_fit(found, 2.0)
    with pytest.raises(InputError, match=r"targets must have shape \(\d+, 4\)"):
        LabelSetStatistics.of(features[:-1], targets)


def test_rare_large_label_sets_of_many_classes_cost_little():
    """As in COCO: 80 classes, a few images with many labels; 3·10⁸ six-subsets."""
    generator = torch.Generator().manual_seed(0)
    many = torch.zeros(3, 80)
    many[0, :14] = many[1, :6] = many[2, 20:26] = 1.0
    targets = torch.cat([torch.eye(80).repeat(3, 1), many])
    directions = torch.randn(80, 32, generator=generator)
    found = multi_label_metrics(targets @ directions, targets, directions)
    assert math.isnan(found["scale"][14]) and math.isnan(found["angle"][14].ratio)
    assert found["scale"][6] == pytest.approx(1.0, abs=1e-4)
    assert found["angle"][6].ratio < 1e-3
