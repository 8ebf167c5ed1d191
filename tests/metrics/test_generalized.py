"""Every generalized metric against loops written from the definitions."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from nclib import checks, frames
from nclib.metrics import generalized, generalized_nc, margins
from nclib.results.large_class import codes
from tests.benchmarks.harness import ROOT


def sample(K=7, d=3, n=12, seed=0, spread=0.6, imbalance=True):
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, n, K) if imbalance else np.full(K, n)
    centres = rng.standard_normal((K, d))
    labels = np.repeat(np.arange(K), counts)
    features = centres[labels] + spread * rng.standard_normal((len(labels), d))
    order = rng.permutation(len(labels))
    return features[order], labels[order], centres + 0.3 * rng.standard_normal((K, d))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_loops(features, labels, weight):
    """The definitions, one class and one pair at a time, with numpy's own pseudo-inverse."""
    K, d = weight.shape
    H = np.array([h / np.linalg.norm(h) for h in features])
    W = np.array([w / np.linalg.norm(w) for w in weight])
    means = np.array([H[labels == k].mean(0) for k in range(K)])
    g = H.mean(0)
    within, between = np.zeros((d, d)), np.zeros((d, d))
    for h, y in zip(H, labels, strict=True):
        within += np.outer(h - means[y], h - means[y]) / len(H)
    for mu in means:
        between += np.outer(mu - g, mu - g) / K
    cos = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    variance = [((H[labels == k] - means[k]) ** 2).sum(1).mean() for k in range(K)]
    pairs = [(i, j) for i in range(K) for j in range(i)]
    centred = np.array([(m - g) / np.linalg.norm(m - g) for m in means])
    kernel = [-np.log(np.linalg.norm(centred[i] - centred[j])) for i, j in pairs]
    gram = W @ W.T
    etf = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    nearest = np.array([np.argmin([np.linalg.norm(h - m) for m in means]) for h in H])
    predicted = np.array([np.argmax([h @ w for w in weight]) for h in features])
    unit_means = [m / np.linalg.norm(m) for m in means]
    return {
        "gnc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / K,
        "gnc1_ratio": np.trace(within) / np.trace(between),
        "cdnv": np.mean(
            [(variance[i] + variance[j]) / 2 / np.sum((means[i] - means[j]) ** 2) for i, j in pairs]
        ),
        "hard_margin": min(
            (W[k] - W[j]) @ unit_means[k] for i, m in pairs for k, j in ((i, m), (m, i))
        ),
        "one_vs_one": 1 - max(gram[i, j] for i, j in pairs),
        "min_angle": np.degrees(np.arccos(max(gram[i, j] for i, j in pairs))),
        "gnc3": np.mean([1 - cos(means[k], W[k]) for k in range(K)]),
        "gnc3_centered": np.mean([1 - cos(means[k] - g, W[k]) for k in range(K)]),
        "ncc_accuracy": np.mean(nearest == labels),
        "accuracy": np.mean(predicted == labels),
        "agreement": np.mean(nearest == predicted),
        "etf_error": np.linalg.norm(gram / np.linalg.norm(gram) - etf),
        "log_kernel_mean": np.mean(kernel),
        "log_kernel_variance": np.var(kernel),
        "uniform_duality": np.var([cos(means[k] - g, W[k]) for k in range(K)]),
    }  # fmt: skip


@pytest.mark.parametrize(("K", "d"), [(7, 3), (3, 8), (2, 2), (20, 5), (4, 3)])
def test_against_loops(K, d):
    features, labels, weight = sample(K, d, seed=K)
    found = generalized_nc(features, labels, weight)
    for name, expected in by_loops(features, labels, weight).items():
        assert found[name] == pytest.approx(expected, rel=1e-9, abs=1e-12), name
    raw = by_loops_raw_gnc1(features, labels, K)
    assert found["gnc1_raw"] == pytest.approx(raw, rel=1e-9)
    assert found["num_classes"] == K and found["dropped_classes"] == [] and found["notes"] == []


def by_loops_raw_gnc1(features, labels, K):
    means = np.array([features[labels == k].mean(0) for k in range(K)])
    residual, centred = features - means[labels], means - features.mean(0)
    within, between = residual.T @ residual / len(features), centred.T @ centred / K
    return np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / K


def test_margins_of_classifier_and_means():
    features, labels, weight = sample(9, 4, seed=3)
    found = generalized_nc(features, labels, weight)
    distance = margins.hull_projections(weight).distance
    assert found["gnc2"] == pytest.approx(float(distance.min()), abs=1e-9)
    assert found["gnc2_mean"] == pytest.approx(float(distance.mean()), abs=1e-9)
    unit = torch.nn.functional.normalize(torch.tensor(features), dim=1)
    means = torch.stack([unit[labels == k].mean(0) for k in range(9)])
    expected = margins.margin(means).value
    assert found["gnc2_means"] == pytest.approx(expected, abs=1e-9)
    u = margins.optimal_features(weight)
    cosines = (torch.nn.functional.normalize(means, dim=1) * u).sum(1)
    assert found["gnc3_projection"] == pytest.approx(float(1 - cosines.mean()), abs=1e-9)
    assert found["hard_margin"] <= found["gnc2"] and found["one_vs_one"] <= found["gnc2"]


@pytest.mark.parametrize(
    "code", [frames.icosahedron(), frames.polygon(7), frames.simplex_etf(4, 6)]
)
def test_constructed_collapse_is_exactly_zero(code):
    K, d = code.shape
    labels = torch.arange(5 * K) % K
    scale = 1 + torch.rand(5 * K, 1, generator=torch.Generator().manual_seed(0)).double()
    found = generalized_nc(scale * code[labels], labels, 3 * code)
    for name in ("gnc1", "gnc1_ratio", "cdnv", "gnc3", "gnc3_centered", "gnc3_projection",
                 "uniform_duality"):  # fmt: skip
        assert abs(found[name]) < 1e-14, name
    assert found["gnc2"] == pytest.approx(found["gnc2_reference"], abs=1e-9)
    assert found["gnc2_ratio"] == pytest.approx(1, abs=1e-9)
    assert found["gnc2_calibrated"] == pytest.approx(1, abs=1e-8)
    assert found["gnc2_mean"] == pytest.approx(found["gnc2"], abs=1e-9)
    assert found["ncc_accuracy"] == found["accuracy"] == found["agreement"] == 1.0
    assert found["etf_error"] == pytest.approx(found["etf_floor"], abs=1e-9)
    assert found["reference_status"] in ("proven", "tabulated")


def test_calibration_is_zero_for_a_random_classifier():
    rng = np.random.default_rng(1)
    values = [
        generalized_nc(W, np.arange(30), W, random_draws=20)["gnc2_calibrated"]
        for W in (rng.standard_normal((30, 6)) for _ in range(20))
        if True
    ]
    assert np.isnan(values[0])  # no reference is known for (30, 6)
    values = [
        generalized_nc(W, np.arange(30), W, reference=0.7, random_draws=20)["gnc2_calibrated"]
        for W in (rng.standard_normal((30, 6)) for _ in range(20))
    ]
    assert abs(np.mean(values)) < 0.1
    result = generalized_nc(codes.e8_roots(), np.arange(240), codes.e8_roots(), random_draws=1)
    assert result["gnc2_calibrated"] == pytest.approx(1, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), st.integers(2, 5), st.integers(0, 10**6))
def test_invariances(K, d, seed):
    features, labels, weight = sample(K, d, seed=seed)
    base = generalized_nc(features, labels, weight, random_draws=0)
    rng = np.random.default_rng(seed)
    rotation = frames.random_rotation(d, generator=torch.Generator().manual_seed(seed)).numpy()
    order, relabel = rng.permutation(len(labels)), rng.permutation(K)
    weight_there = np.empty_like(weight)
    weight_there[relabel] = weight
    scaled = features * rng.uniform(0.5, 2, (len(labels), 1))
    variants = {
        "rotation": (features @ rotation, labels, weight @ rotation),
        "order": (features[order], labels[order], weight),
        "relabelled": (features, relabel[labels], weight_there),
        "feature norms": (scaled, labels, weight),
        "weight scale": (features, labels, 7.0 * weight),
    }
    for name, (H, y, W) in variants.items():
        found = generalized_nc(H, y, W, random_draws=0)
        for key, value in base.items():
            if isinstance(value, float) and not (name == "feature norms" and key == "gnc1_raw"):
                same = pytest.approx(value, rel=1e-6, abs=1e-8, nan_ok=True)
                assert found[key] == same, (name, key)


def test_missing_classes_are_dropped_from_all_but_predictions_and_said():
    features, labels, weight = sample(6, 3, seed=2)
    kept, bias = [0, 2, 3, 5], np.array([0.0, 9, 0.5, -0.5, 9, 1])
    chosen = np.isin(labels, kept)
    found = generalized_nc(features[chosen], labels[chosen], weight, bias)
    renumbered = np.searchsorted(kept, labels[chosen])
    small = generalized_nc(features[chosen], renumbered, weight[kept], bias[kept])
    assert found["num_classes"] == 4 and found["dropped_classes"] == [1, 4]
    assert "2 of 6 classes have no sample" in found["notes"][0]
    for key, value in small.items():
        if isinstance(value, float) and key not in ("accuracy", "agreement"):
            assert found[key] == pytest.approx(value, nan_ok=True), key
    predicted = (features[chosen] @ weight.T + bias).argmax(1)
    assert found["accuracy"] == pytest.approx(np.mean(predicted == labels[chosen]))
    assert small["accuracy"] - found["accuracy"] > 0.1


def test_bias_counts_in_predictions_only():
    features, labels, weight = sample(5, 3, seed=4)
    bias = np.array([0, 0, 100.0, 0, 0])
    plain = generalized_nc(features, labels, weight)
    with_bias = generalized_nc(features, labels, weight, bias)
    assert with_bias["accuracy"] == pytest.approx(np.mean(labels == 2))
    assert plain["accuracy"] != with_bias["accuracy"]
    assert plain["gnc3"] == with_bias["gnc3"] and plain["ncc_accuracy"] == with_bias["ncc_accuracy"]


def test_half_precision_is_upcast_with_a_note():
    features, labels, weight = sample(5, 3, seed=5)
    half = generalized_nc(torch.tensor(features).half(), labels, torch.tensor(weight).bfloat16())
    assert "features (torch.float16), weight (torch.bfloat16)" in half["notes"][0]
    same = generalized_nc(
        torch.tensor(features).half().double(), labels, torch.tensor(weight).bfloat16().double()
    )
    assert half["gnc1"] == pytest.approx(same["gnc1"], rel=1e-12)
    assert half["gnc2"] == pytest.approx(same["gnc2"], abs=1e-9)


def test_float32_collapse_is_not_lost_in_the_pseudo_inverse():
    """K <= d: S_B has rank K - 1; a careless cut-off returns 1e2 instead of 1e-7."""
    code = frames.simplex_etf(5, 20)
    labels = torch.arange(500) % 5
    generator = torch.Generator().manual_seed(0)
    noise = 1e-4 * torch.randn(500, 20, generator=generator, dtype=torch.float64)
    exact = generalized_nc(code[labels] + noise, labels, code)["gnc1"]
    single = generalized_nc((code[labels] + noise).float(), labels, code.float())["gnc1"]
    assert exact < 1e-6 and single == pytest.approx(exact, rel=1e-2)


def test_duplicate_rows_are_named():
    features, labels, weight = sample(6, 3, seed=6)
    weight[3] = 5 * weight[1]
    with pytest.warns(UserWarning, match="classes 1, 3.: their margin is 0"):
        found = generalized_nc(features, labels, weight)
    assert found["gnc2"] == 0
    assert any("classes 1, 3" in note for note in found["notes"])
    assert math.isfinite(found["gnc3_projection"]) and found["gnc2_mean"] > 0.01
    rest = [0, 2, 4, 5]
    M = np.stack([unit(features)[labels == k].mean(0) for k in rest])
    u = margins.hull_projections(torch.tensor(weight)).direction[rest].numpy()
    assert found["gnc3_projection"] == pytest.approx(np.mean(1 - (unit(M) * u).sum(1)))
    # Named as the caller numbers them, also when a class before them has no sample.
    present = labels != 0
    with pytest.warns(UserWarning, match="classes 1, 3"):
        generalized_nc(features[present], labels[present], weight)


@pytest.mark.parametrize(("K", "d"), [(37, 5), (6, 20), (2, 1)])
def test_margins_against_a_quadratic_programme(K, d):
    """gnc2 and gnc2_mean by scipy's SLSQP on the simplex, sizes no table lists."""
    features, labels, weight = sample(K, d, seed=K)
    if d == 1:
        weight = np.array([[0.3], [-2.0]])
    W = unit(weight)
    distances = []
    for k in range(K):
        V = W[k] - np.delete(W, k, axis=0)
        best = minimize(
            lambda a, V=V: ((a @ V) ** 2).sum(),
            np.full(K - 1, 1 / (K - 1)),
            jac=lambda a, V=V: 2 * V @ (a @ V),
            bounds=[(0, 1)] * (K - 1),
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-15, "maxiter": 2000},
        )
        distances.append(np.sqrt(best.fun))
    found = generalized_nc(features, labels, weight)
    assert found["gnc2"] == pytest.approx(min(distances), abs=1e-5)
    assert found["gnc2_mean"] == pytest.approx(np.mean(distances), abs=1e-5)


def test_coinciding_means():
    features = np.tile([[1.0, 0.0], [0.0, 1.0]], (4, 1))
    labels = np.repeat([0, 1], 4)
    found = generalized_nc(features, labels, np.eye(2))
    assert math.isnan(found["gnc1"]) and math.isnan(found["gnc1_ratio"])
    assert math.isnan(found["cdnv"]) and math.isnan(found["log_kernel_mean"])
    undefined = ("gnc3_centered", "ncc_accuracy", "agreement", "uniform_duality")
    assert all(math.isnan(found[name]) for name in undefined)
    point = generalized_nc(
        np.full((9, 2), [0.1, 0.7]), [0] * 2 + [1] * 3 + [2] * 4, np.eye(3)[:, :2] + 1
    )
    assert all(math.isnan(point[name]) for name in (*undefined, "gnc1_ratio", "cdnv"))
    zero_mean = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = generalized_nc(zero_mean, [0, 0, 1, 1], np.eye(2))
    assert found["gnc3"] == pytest.approx(0.5)  # cosine 0 for class 0, 1 for class 1
    assert math.isnan(found["gnc2_means"]) and "a class mean is zero" in found["notes"][0]


def test_tiles_and_the_large_class_path_agree_with_the_small_one(monkeypatch):
    features, labels, weight = sample(40, 4, seed=7)
    base = generalized_nc(features, labels, weight, random_draws=0)
    monkeypatch.setattr(generalized, "_TILE", 200)
    monkeypatch.setattr(margins, "TILE_ENTRIES", 200)
    monkeypatch.setattr(generalized, "EXACT_CLASSES", 10)
    tiled = generalized_nc(features, labels, weight, random_draws=0, exact_classes=40)
    for key, value in base.items():
        if isinstance(value, float):
            assert tiled[key] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), key
    few = generalized_nc(features, labels, weight, random_draws=0, exact_classes=10)
    monkeypatch.setattr(generalized, "SAMPLED_CLASSES", 10)
    assert generalized_nc(features, labels, weight, random_draws=0)["gnc2_mean"] == few["gnc2_mean"]
    assert few["gnc2"] == pytest.approx(base["gnc2"], abs=1e-8)
    assert few["gnc2_mean"] != base["gnc2_mean"]
    assert "means over 10 random classes" in few["notes"][0]


def test_etf_floor_of_random_and_tight_classifiers():
    rng = np.random.default_rng(0)
    found = generalized_nc(
        rng.standard_normal((100, 10)), np.arange(100), rng.standard_normal((100, 10))
    )
    assert found["etf_floor"] == pytest.approx(1.168057, abs=1e-6)
    assert found["etf_error"] == pytest.approx(1.18, abs=0.01)


def test_bad_input():
    features, labels, weight = sample(5, 3)
    with pytest.raises(checks.InputError, match="columns"):
        generalized_nc(features, labels, weight[:, :2])
    with pytest.raises(checks.InputError, match="labels"):
        generalized_nc(features, labels + 1, weight)
    with pytest.raises(checks.InputError, match="entries for"):
        generalized_nc(features[:-1], labels, weight)
    with pytest.raises(checks.InputError, match="only 1 of 5"):
        generalized_nc(features[labels == 2], labels[labels == 2], weight)
    broken = weight.copy()
    broken[1] = 0
    with pytest.raises(checks.InputError, match="weight has 1 zero rows .1."):
        generalized_nc(features, labels, broken)
    dead = features.copy()
    dead[3] = 0
    with pytest.raises(checks.InputError, match="features has 1 zero rows .3."):
        generalized_nc(dead, labels, weight)
    dead[3] = np.nan
    with pytest.raises(checks.InputError, match="NaN"):
        generalized_nc(dead, labels, weight)
    with pytest.raises(checks.InputError, match="reference"):
        generalized_nc(features, labels, weight, reference=0)
    with pytest.raises(checks.InputError, match="bias"):
        generalized_nc(features, labels, weight, bias=np.zeros(4))


LARGE = """
import torch
from tests.benchmarks.harness import Memory
from nclib.metrics import generalized_nc
K, d = 7000, 8
draw = torch.Generator().manual_seed(0)
weight, y = torch.randn(K, d, generator=draw), torch.arange(2 * K) % K
features = weight[y] + 1e-3 * torch.randn(2 * K, d, generator=draw)
with Memory() as memory:
    found = generalized_nc(features, y, weight, tol=1e-6)
print(memory.extra)
assert found["num_classes"] == K and found["ncc_accuracy"] > 0.9
"""


def test_memory_with_many_classes_is_nothing_of_size_k_squared():
    command = [sys.executable, "-c", LARGE]
    # Tiles that are freed leave the process at once; else the heap's holes count, by luck 400 MB.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    options = {"capture_output": True, "text": True, "timeout": 500, "cwd": ROOT}
    found = subprocess.run(command, env=environment, **options)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 200  # MB; 7000² float64 numbers are 392, and come in pairs


def test_classes_without_samples_can_be_predicted():
    generator = torch.Generator().manual_seed(0)
    weight, labels = torch.randn(10, 16, generator=generator), torch.arange(600) % 3
    features = weight[labels] + 1.5 * torch.randn(600, 16, generator=generator)
    found = generalized_nc(features, labels, weight)
    right = (features @ weight.T).argmax(1) == labels
    assert found["dropped_classes"] == list(range(3, 10))
    assert found["accuracy"] == pytest.approx(right.double().mean().item()) != 1
    assert found["agreement"] < 1
