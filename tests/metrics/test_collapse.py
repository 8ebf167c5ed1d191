import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from nclib import checks, frames
from nclib.metrics import REFERENCE, ClassStatistics, by_class, nc_metrics


def oracle(F, y, W, b):
    """The definitions, in float64 numpy, one sample at a time where it matters."""
    F, W = np.asarray(F, np.float64), np.asarray(W, np.float64)
    b = np.zeros(len(W)) if b is None else np.asarray(b, np.float64)
    N, K = len(F), len(W)
    mean = np.stack([F[y == k].mean(0) for k in range(K)])
    g = F.mean(0)
    sw = sum(np.outer(F[i] - mean[y[i]], F[i] - mean[y[i]]) for i in range(N)) / N
    M = mean - g
    sb = M.T @ M / K
    rank = np.linalg.matrix_rank(M, tol=1e-10 * np.linalg.norm(M, 2))
    values, vectors = np.linalg.eigh(sb)
    values, vectors = values[-rank:], vectors[:, -rank:]
    E = (np.eye(K) - 1 / K) / math.sqrt(K - 1)
    dist = lambda G: np.linalg.norm(G / np.linalg.norm(G) - E)
    Wc = W - W.mean(0)
    r = W @ g + b
    near = np.array([np.argmin(((f - mean) ** 2).sum(1)) for f in F])
    v = [((F[y == k] - mean[k]) ** 2).sum(1).mean() for k in range(K)]
    pairs = [(i, j) for i in range(K) for j in range(K) if i != j]
    return {
        "nc1": sum(v @ sw @ v / s for s, v in zip(values, vectors.T, strict=True)) / K,
        "nc1_ratio": np.trace(sw) / np.trace(sb),
        "cdnv": np.mean([(v[i] + v[j]) / 2 / ((mean[i] - mean[j]) ** 2).sum() for i, j in pairs]),
        "nc2": dist(W @ W.T),
        "nc2_centered": dist(Wc @ Wc.T),
        "nc2_means": dist(M @ M.T),
        "nc3": dist(W @ M.T),
        "nc3_centered": dist(Wc @ M.T),
        "residual": np.linalg.norm(r),
        "residual_centered": np.linalg.norm(r - r.mean()),
        "ncc_disagreement": np.mean(near != np.argmax(F @ W.T + b, 1)),
    }


def wide_oracle(F, y, W, b):
    """The definitions with means and residuals in extended precision, for features far from 0."""
    wide, K = np.asarray(F, np.longdouble), len(W)
    mean = np.stack([wide[y == k].mean(0) for k in range(K)])
    g = wide.mean(0)
    found = oracle(np.float64(wide - g), y, W, b)  # all but two metrics ignore a translation
    distance = np.stack([((wide - m) ** 2).sum(1) for m in mean], 1)
    logits = wide @ np.asarray(W, np.longdouble).T + b
    residual = np.asarray(W, np.longdouble) @ g + b
    return found | {
        "residual": float(np.linalg.norm(np.float64(residual))),
        "residual_centered": float(np.linalg.norm(np.float64(residual - residual.mean()))),
        "ncc_disagreement": np.mean(distance.argmin(1) != logits.argmax(1)),
    }


def spec_input(seed, K, d, n, w):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(K), n)
    F = rng.standard_normal((K, d))[y] + rng.standard_normal((K * n, d)) * w
    return F, y, rng.standard_normal((K, d)), rng.standard_normal(K)


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (
            (100, 4, 6, 5, 0.3),
            {
                "nc1": 0.0319238898,
                "nc1_ratio": 0.0686127729,
                "nc2_centered": 0.5224030826,
                "nc2": 0.7268600099,
                "nc3_centered": 1.1983720303,
                "nc3": 1.219101196,
                "residual": 1.4876400713,
            },
        ),
        (
            (103, 10, 32, 7, 1.0),
            {
                "nc1": 0.2890231608,
                "nc2_centered": 0.4952987242,
                "nc2": 0.5807275031,
                "nc3_centered": 1.3757186549,
                "nc3": 1.3775697055,
                "residual": 4.9381703392,
            },
        ),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-6)])
def test_reference_values_of_the_official_functions(arguments, values, dtype, tolerance):
    F, y, W, b = spec_input(*arguments)
    got = nc_metrics(torch.tensor(F, dtype=dtype), y, torch.tensor(W, dtype=dtype), b)
    for name, value in values.items():
        assert got[name] == pytest.approx(value, abs=tolerance), name


def sample(rng, K, d, counts, width, bias=True):
    y = rng.permutation(np.repeat(np.arange(K), counts))
    F = 3 + 2 * rng.standard_normal((K, d))[y] + width * rng.standard_normal((len(y), d))
    return F, y, rng.standard_normal((K, d)), rng.standard_normal(K) if bias else None


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    K=st.integers(2, 6),
    d=st.integers(1, 8),
    bias=st.booleans(),
    balanced=st.booleans(),
)
def test_everything_matches_the_definitions(seed, K, d, bias, balanced):
    rng = np.random.default_rng(seed)
    counts = 4 if balanced else rng.integers(1, 9, K)
    F, y, W, b = sample(rng, K, d, counts, 0.5, bias)
    got, want = nc_metrics(F, y, W, b), oracle(F, y, W, b)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-8, abs=1e-10), name
    assert ClassStatistics(K, d).update(F, y).metrics(W, b) == got
    sums = ClassStatistics(K, d, keep=0).update(F, y)
    streamed = sums.metrics(W, b, agreement=sums.agreement(W, b).update(F, y))
    assert streamed.keys() == want.keys()
    for name in want:
        assert streamed[name] == pytest.approx(want[name], rel=1e-8, abs=1e-10), name


@pytest.mark.parametrize("nc1", [1e-4, 1e-8])
def test_float32_features_keep_six_digits_when_collapsed(nc1):
    """Inputs at NC1 = 1e-8 with a mean ten times the class distance: nothing may cancel."""
    rng = np.random.default_rng(5)
    K, d, n = 5, 24, 200
    F, y, W, b = sample(rng, K, d, n, 0.0)
    F = np.float32(F + 10 + math.sqrt(nc1) * rng.standard_normal(F.shape))
    want = oracle(F, y, np.float32(W), b)
    assert want["nc1"] < 10 * nc1
    whole = nc_metrics(torch.tensor(F), y, torch.tensor(np.float32(W)), b)
    stream = ClassStatistics(K, d, keep=0)
    for part in np.array_split(rng.permutation(len(y)), 7):
        stream.update(torch.tensor(F[part]), y[part])
    for got in (whole, stream.metrics(np.float32(W), b)):
        for name in ("nc1", "nc1_ratio", "nc2_means", "nc3"):
            assert got[name] == pytest.approx(want[name], rel=1e-6, abs=0), name


@pytest.mark.parametrize(("K", "d"), [(5, 24), (24, 9)])  # inside the span, and by d×d products
@pytest.mark.parametrize("width", [0.02, 1.0])
def test_float32_features_far_from_zero_keep_six_digits(K, d, width):
    """A mean of 10^4 is 10^7 times the rounding of the features: squares of it would be noise."""
    rng = np.random.default_rng(7)
    F, y, W, b = sample(rng, K, d, 150, width)
    F, W = np.float32(F + 1e4), np.float32(W - W.mean(1, keepdims=True))  # logits without the mean
    want = wide_oracle(F, y, W, b)
    whole = nc_metrics(torch.tensor(F), y, torch.tensor(W), b)
    stream = ClassStatistics(K, d, keep=0)
    for part in np.array_split(rng.permutation(len(y)), 9):
        stream.update(torch.tensor(F[part]), y[part])
    for got in (whole, stream.metrics(W, b)):
        for name in got:
            assert got[name] == pytest.approx(want[name], rel=1e-7, abs=1e-12), name
    classes = by_class(torch.tensor(F), y)
    for name in ("nc1", "nc1_ratio"):  # their means over samples
        assert classes[name] @ classes["count"] / len(y) == pytest.approx(want[name], rel=1e-7)


@pytest.mark.parametrize("case", ["plain", "one thin direction", "two equal means", "far mean"])
def test_many_classes_match_the_definitions(case):
    """From 256 classes on the spectrum of the means is that of their Gram matrix, where safe."""
    rng = np.random.default_rng(4)
    K, d, n = 260, 270, 2
    y, means = np.repeat(np.arange(K), n), rng.standard_normal((K, d))
    noise = rng.standard_normal((K * n, d))
    if case == "one thin direction":
        means[:, 0] *= 1e-5
    if case == "two equal means":
        means[1] = means[0]
        noise[2:4] = noise[:2] = [noise[0], -noise[0]]  # their sample means are equal too
    F = means[y] + 0.3 * noise + (1e4 if case == "far mean" else 0)
    W, b = means + 0.1 * rng.standard_normal((K, d)), rng.standard_normal(K)
    W -= W.mean(1, keepdims=True)
    with np.errstate(divide="ignore"):
        got, want = nc_metrics(F, y, W, b), wide_oracle(F, y, W, b)
    if case == "two equal means":  # a sum of two numbers over their squared rounding error
        assert want.pop("cdnv") > 1e20 and got["cdnv"] > 1e20
    streamed = ClassStatistics(K, d, keep=0).update(F, y).metrics(W, b)
    for name in want:
        assert got[name] == pytest.approx(want[name], rel=1e-6, abs=1e-10), name
        if name != "ncc_disagreement":
            assert streamed[name] == pytest.approx(want[name], rel=1e-6, abs=1e-10), name


def test_a_class_is_only_taken_for_granted_where_both_rules_choose_it():
    """Collapsed features, far inside their classes, but the classifier swaps two classes."""
    rng = np.random.default_rng(3)
    F, y, W, b = sample(rng, 6, 8, 20, 1e-3)
    own = F[[np.argmax(y == k) for k in range(6)]] - F.mean(0)
    W, b = 2 * own, -(own**2).sum(1) - 2 * own @ F.mean(0)  # the nearest class mean, as logits
    assert nc_metrics(F, y, W, b)["ncc_disagreement"] == 0
    swapped = [1, 0, 2, 3, 4, 5]
    assert nc_metrics(F, y, W[swapped], b[swapped])["ncc_disagreement"] == pytest.approx(1 / 3)
    # Labels that are wrong for a few samples move those out of reach of their class.
    y[:6] = (y[:6] + 1) % 6
    want = oracle(F, y, W, b)["ncc_disagreement"]
    assert nc_metrics(F, y, W, b)["ncc_disagreement"] == pytest.approx(want)


def test_a_stream_may_mix_dtypes():
    rng = np.random.default_rng(2)
    F, y, W, b = sample(rng, 4, 7, 40, 1e-3)
    F = np.float64(np.float32(F))
    half = len(y) // 2
    for kinds in ((np.float64, np.float32), (np.float32, np.float64)):
        for keep in (0, 2**20):
            stream = ClassStatistics(4, 7, keep=keep)
            stream.update(kinds[0](F[:half]), y[:half]).update(kinds[1](F[half:]), y[half:])
            got, want = stream.metrics(W, b), oracle(F, y, W, b)
            for name in got:
                assert got[name] == pytest.approx(want[name], rel=2e-6, abs=1e-12), name


@pytest.mark.parametrize(("K", "d"), [(4, 5), (4, 150), (150, 140)])
def test_long_streams_keep_six_digits(K, d):
    """More rows than are summed in the dtype of the features, in small batches."""
    rng = np.random.default_rng(4)
    F, y, W, b = sample(rng, K, d, 6000 // K, 0.1)
    F = np.float32(F)
    streams = [ClassStatistics(K, d, keep=keep) for keep in (0, 2**16, 2**30)]
    for part in np.array_split(np.arange(len(y)), 50):
        for stream in streams:
            stream.update(torch.tensor(F[part]), y[part])
    assert [stream.complete for stream in streams] == [False, False, True]
    want = oracle(F, y, W, b)
    for got in (*(stream.metrics(W, b) for stream in streams), nc_metrics(F, y, W, b)):
        for name in got:
            assert got[name] == pytest.approx(want[name], rel=1e-6), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_invariances(seed):
    rng = np.random.default_rng(seed)
    K, d = 4, 6
    F, y, W, b = sample(rng, K, d, rng.integers(2, 9, K), 0.3)
    base = nc_metrics(F, y, W, b)
    Q = frames.random_rotation(d, generator=torch.Generator().manual_seed(seed)).numpy()
    p, order = rng.permutation(K), rng.permutation(len(y))
    inverse = np.argsort(p)
    transformed = {
        "rotation": nc_metrics(F @ Q, y, W @ Q, b),
        "relabelling": nc_metrics(F, inverse[y], W[p], b[p]),
        "order": nc_metrics(F[order], y[order], W, b),
    }
    for what, got in transformed.items():
        for name in base:
            assert got[name] == pytest.approx(base[name], rel=1e-8, abs=1e-10), (what, name)
    scaled = nc_metrics(5.0 * F, y, W / 3, b)
    for name in base.keys() - {"residual", "residual_centered", "ncc_disagreement"}:
        assert scaled[name] == pytest.approx(base[name], rel=1e-8), name


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), parts=st.integers(1, 6), keep=st.sampled_from([0, 250, 2**20]))
def test_batches_and_merge_order_do_not_matter(seed, parts, keep):
    rng = np.random.default_rng(seed)
    K, d = 4, 5
    F, y, W, b = sample(rng, K, d, rng.integers(1, 7, K), 1e-3)
    split = np.array_split(rng.permutation(len(y)), parts)
    one = ClassStatistics(K, d, keep=keep)
    pieces = []
    for part in split:
        if len(part):
            one.update(F[part], y[part])
            pieces.append(ClassStatistics(K, d, keep=keep).update(F[part], y[part]))
    added = sum(pieces)
    merged = pieces[0]
    for i in rng.permutation(len(pieces) - 1):
        merged.merge(pieces[1 + i])
    want = oracle(F, y, W, b)
    for got in (one, merged, added):
        assert got.counts.sum() == len(y)
        values = got.metrics(W, b)
        for name in values:
            assert values[name] == pytest.approx(want[name], rel=1e-7, abs=1e-13), name


def test_merging_keeps_accumulating():
    rng = np.random.default_rng(1)
    F, y, W, b = sample(rng, 3, 4, 6, 1e-2)
    a = ClassStatistics(3, 4, keep=0).update(F[:5], y[:5])
    c = ClassStatistics(3, 4, keep=0).update(F[5:9], y[5:9])
    got = a.merge(c).update(F[9:], y[9:])
    np.testing.assert_allclose(got.global_mean, F.mean(0), rtol=1e-12)
    assert got.metrics(W, b)["nc1"] == pytest.approx(oracle(F, y, W, b)["nc1"], rel=1e-9)


def test_a_class_first_seen_by_merging_keeps_its_shift():
    rng = np.random.default_rng(6)
    F, y, W, b = sample(rng, 3, 4, 8, 1e-2)
    first, second = (y == 0), (y == 1)
    second[np.flatnonzero(second)[4:]] = False
    rest = ~(first | second)
    a = ClassStatistics(3, 4, keep=0).update(F[first], y[first])
    got = a.merge(ClassStatistics(3, 4, keep=0).update(F[second], y[second])).update(
        F[rest], y[rest]
    )
    assert got.metrics(W, b)["nc1"] == pytest.approx(oracle(F, y, W, b)["nc1"], rel=1e-9)


def test_exact_collapse_to_an_etf_is_zero():
    K, d = 5, 9
    W = frames.simplex_etf(K, d, generator=torch.Generator().manual_seed(0))
    y = torch.arange(K).repeat(7)
    got = nc_metrics(2.5 * W[y], y, W, torch.full((K,), 0.3))
    for name in ("nc1", "nc1_ratio", "nc2", "nc2_centered", "nc2_means", "nc3", "nc3_centered"):
        assert got[name] == pytest.approx(0, abs=1e-12), name
    assert got["ncc_disagreement"] == 0
    assert got["residual"] == pytest.approx(0.3 * math.sqrt(K))
    assert got["residual_centered"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("K", [3, 10])
def test_an_orthogonal_frame_has_known_raw_nc2(K):
    W = torch.eye(K, K + 2, dtype=torch.float64)
    got = nc_metrics(W[torch.arange(K).repeat(2)], torch.arange(K).repeat(2), W)
    assert got["nc2"] == pytest.approx(math.sqrt(2 - 2 * math.sqrt((K - 1) / K)), abs=1e-12)
    assert got["nc2_centered"] == pytest.approx(0, abs=1e-12)
    assert got["nc2_means"] == pytest.approx(0, abs=1e-12)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_imbalance_uses_the_sample_mean_and_counts_the_bias():
    F = np.array([[0.0], [0.0], [0.0], [4.0]])
    got = nc_metrics(F, [0, 0, 0, 1], [[0.0], [0.0]], [3.0, 4.0])
    assert got["residual"] == 5.0  # the global mean is 1, W is zero: only the bias is left
    stats = ClassStatistics(2, 1).update(F, [0, 0, 0, 1])
    assert float(stats.global_mean) == 1.0
    assert float(stats.between_covariance) == pytest.approx((1 + 9) / 2)


def test_bias_decides_the_predicted_class():
    F, y, W = np.array([[1.0], [-1.0]]), [0, 1], [[1.0], [-1.0]]
    assert nc_metrics(F, y, W)["ncc_disagreement"] == 0
    assert nc_metrics(F, y, W, [0.0, 100.0])["ncc_disagreement"] == 0.5


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_undefined_metrics_are_nan():
    F, y = np.ones((4, 3)), [0, 0, 1, 1]
    got = nc_metrics(F, y, np.zeros((2, 3)))
    assert all(math.isnan(got[n]) for n in ("nc1", "nc1_ratio", "nc2", "nc2_means", "nc3"))
    assert got["residual"] == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(3, 5, 7), (20, 2, 1000)])
def test_features_that_are_all_equal(dtype, sizes):
    """Nothing tells class means apart: no ratio of rounding errors, no nearest class mean."""
    F = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64).to(dtype).repeat(sum(sizes), 1)
    y, W = np.repeat(np.arange(3), sizes), np.eye(3)
    stream = ClassStatistics(3, 3, keep=0)
    for part in np.array_split(np.arange(len(y)), 4):
        stream.update(F[part], y[part])
    second = stream.agreement(W).update(F, y)
    defined = {"nc2", "nc2_centered", "residual", "residual_centered"}
    for found in (nc_metrics(F, y, W), stream.metrics(W, agreement=second)):
        assert {name for name, value in found.items() if not math.isnan(value)} == defined
    assert math.isnan(second.metrics()["ncc_error"])
    assert second.metrics()["error"] == pytest.approx(1 - sizes[2] / sum(sizes))
    for found in (by_class(F, y, W), stream.by_class(second)):
        assert set(found.columns[found.notna().any()]) == {"count", "error"}


@pytest.mark.parametrize("keep", [0, 2**29])
@pytest.mark.parametrize("scale", [1e-150, 1e-160, 1e160, 1e300])
def test_squares_that_leave_double_precision_are_refused(scale, keep):
    F, y, W, b = spec_input(100, 4, 6, 5, 0.3)
    calls = (
        lambda: nc_metrics(scale * F, y, W, b),
        lambda: nc_metrics(F, y, scale * W, b),
        lambda: by_class(scale * F, y),
        lambda: ClassStatistics(4, 6, keep=keep).update(scale * F, y).metrics(W, b),
        lambda: ClassStatistics(4, 6, keep=keep).update(scale * F, y).by_class(),
    )
    for call in calls:
        with pytest.raises(checks.InputError, match="leave double precision"):
            call()
    if scale > 1:  # class means are zero, samples are not
        pairs = np.concatenate([F, -F]) * scale
        pairs[y.tolist().index(1)] = 1.0
        with pytest.raises(checks.InputError, match="leave double precision"):
            ClassStatistics(4, 6, keep=keep).update(pairs, np.tile(y, 2)).metrics()


def test_undefined_metrics_warn():
    F = np.random.default_rng(0).standard_normal((4, 3))
    with pytest.warns(RuntimeWarning) as caught:
        nc_metrics(F, [0, 0, 1, 1], np.zeros((2, 3)))
        nc_metrics(np.ones((4, 3)), [0, 0, 1, 1])
    said = " / ".join(str(warning.message) for warning in caught)
    assert "Gram matrix of W is zero" in said
    assert "all class means are equal" in said


def test_parameters_and_tracked_features_are_taken_without_gradients():
    F, y, W, b = spec_input(100, 4, 6, 5, 0.3)
    leaf = lambda value: torch.nn.Parameter(torch.tensor(value))
    assert nc_metrics(leaf(F), y, leaf(W), leaf(b)) == nc_metrics(F, y, W, b)
    streamed = ClassStatistics(4, 6).update(leaf(F), y).metrics(leaf(W), leaf(b))
    assert streamed == ClassStatistics(4, 6).update(F, y).metrics(W, b)


def test_half_precision_is_upcast():
    F, y, W, b = spec_input(100, 4, 6, 5, 0.3)
    half = torch.tensor(F).half()
    assert nc_metrics(half, y, W, b) == nc_metrics(half.float(), y, W, b)


GOOD = (np.random.default_rng(0).standard_normal((6, 4)), [0, 0, 1, 1, 2, 2], np.eye(3, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.full((6, 4), np.nan)}, "features has 24 NaN or infinite values"),
        ({"features": np.array([[np.inf] * 4] * 6)}, "NaN or infinite"),
        ({"features": np.ones(6)}, "features must be a matrix"),
        ({"labels": [0, 0, 1, 1, 2, 3]}, r"must lie in 0\.\.2, found 3"),
        ({"labels": [0, 0, 1, 1, 2, -1]}, r"must lie in 0\.\.2, found -1"),
        ({"labels": [0, 0, 1, 1, 1, 1]}, "class 2 has no sample"),
        ({"labels": [0, 0, 1]}, "labels has 3 entries for 6 samples"),
        ({"labels": [0.5] * 6}, "integer class indices"),
        ({"labels": np.eye(6)}, "labels are one-hot rows of 6 classes, expected 3"),
        ({"labels": np.ones((6, 2))}, "labels must be a vector"),
        ({"features": np.ones((6, 4, 2, 2))}, r"pool maps \(B, C, H, W\)"),
        ({"missing": "drop"}, "missing must be one of error, skip"),
        ({"precision": "int8"}, "precision must be a float dtype"),
        ({"labels": [0] * 6, "weight": None}, "at least two classes"),
        ({"weight": np.eye(3, 5)}, "weight must have 4 columns"),
        ({"weight": np.eye(4, 4), "num_classes": 3}, "weight must have 3 rows"),
        ({"bias": np.ones(4)}, r"bias must have shape \(3,\)"),
        ({"bias": np.ones(3), "weight": None}, "bias was given without a weight"),
        ({"features": np.ma.masked_greater(GOOD[0], 1)}, "features has masked entries"),
        ({"features": np.ones((6, 0)), "weight": None}, "features is empty: it has no column"),
        ({"weight": 3.0}, "weight must be a matrix"),
        ({"num_classes": 3.0}, "num_classes must be an integer or a list of names"),
        ({"num_classes": torch.tensor(3)}, "num_classes must be an integer or a list of names"),
        ({"labels": [0, 0, 1, 1, 2, 2**40], "weight": None}, "relabel the classes 0..K-1"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = dict(zip(("features", "labels", "weight"), GOOD, strict=True)) | change
    with pytest.raises(ValueError, match=message):
        nc_metrics(**arguments)


def test_streaming_refuses_bad_batches_and_keeps_what_it_has():
    stats = ClassStatistics(3, 4).update(GOOD[0], GOOD[1])
    before = stats.metrics(GOOD[2])
    for features, labels in ((GOOD[0][:, :3], GOOD[1]), (GOOD[0] * np.nan, GOOD[1])):
        with pytest.raises(ValueError, match="features"):
            stats.update(features, labels)
    assert stats.metrics(GOOD[2]) == before
    with pytest.raises(ValueError, match="cannot merge"):
        stats.merge(ClassStatistics(4, 4))
    with pytest.raises(ValueError, match="class 0, 1, 2 has no sample"):
        ClassStatistics(3, 4).metrics()


def test_reference_values_are_those_of_untrained_and_collapsed_networks():
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
    with torch.random.fork_rng():
        torch.manual_seed(3)
        hidden = torch.nn.Sequential(
            torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 128), torch.nn.ReLU()
        )
        head = torch.nn.Linear(128, 10)
    found = nc_metrics(hidden(inputs), digits.target, head.weight, head.bias)
    assert REFERENCE.keys() == found.keys()
    for name, value in found.items():
        assert 0.5 < value / REFERENCE[name]["untrained"] < 2, name
    etf = frames.simplex_etf(10, 128)
    for name, value in nc_metrics(etf[digits.target], digits.target, etf).items():
        # The digits' classes are not of one size: their sample mean is not the ETF's centre.
        near = 0.02 if name.startswith(("nc2_means", "nc3", "residual")) else 1e-12
        assert value == pytest.approx(REFERENCE[name]["collapsed"], abs=near), name


def test_measuring_a_model_does_not_load_the_theory():
    code = (
        "import sys; from nclib.metrics import nc_metrics; from nclib.deep import collect; "
        "print(any(m.startswith(('nclib.results', 'scipy', 'pandas')) for m in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
