"""Features stored in half or single precision: no rounding noise is inverted, no signal is cut."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nclib.metrics import (
    ClassStatistics,
    by_class,
    certified_gap,
    frame_distances,
    generalized_nc,
    geometry,
    multi_label_metrics,
    nc_metrics,
)
from nclib.metrics.precision import Storage, exact
from nclib.results.extended_ufm.metrics import layer_table
from nclib.results.normalized.metrics import sphere_metrics


def plain_nc1(features, labels, rank):
    """tr(Σ_W Σ_B⁺)/K in float64, the pseudo-inverse cut to the ``rank`` that was built in."""
    F, y = np.asarray(features, np.float64), np.asarray(labels)
    K = y.max() + 1
    means = np.stack([F[y == k].mean(0) for k in range(K)])
    within = sum(np.outer(r, r) for r in F - means[y]) / len(F)
    between = sum(np.outer(r, r) for r in means - F.mean(0)) / K
    values, vectors = np.linalg.eigh(between)
    values, vectors = values[-rank:], vectors[:, -rank:]
    return sum(v @ within @ v / s for s, v in zip(values, vectors.T, strict=True)) / K


def streamed(features, labels, **options):
    statistics = ClassStatistics(int(max(labels)) + 1, features.shape[1], **options)
    for part in torch.arange(len(labels)).split(max(1, len(labels) // 3)):
        statistics.update(features[part], torch.as_tensor(labels)[part])
    return statistics.metrics()["nc1"]


LINE = np.outer([1, 1.2, 3, 3.2, 6, 6.2], [1, 0.6, 0.25])
LABELS = [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_on_a_line_in_half_precision(dtype):
    stored = torch.tensor(LINE).to(dtype)
    want = plain_nc1(stored.double(), LABELS, 1)
    assert plain_nc1(LINE, LABELS, 1) == pytest.approx(7.895e-4, rel=1e-3)
    assert want == pytest.approx(7.895e-4, rel=3 * torch.finfo(dtype).eps / 0.1)  # of spreads .2
    name = str(dtype).removeprefix("torch.")
    for precision in (dtype, name, torch.finfo(dtype).eps):
        single = stored.float()
        assert nc_metrics(single, LABELS, precision=precision)["nc1"] == pytest.approx(want)
        assert streamed(single, LABELS, precision=precision) == pytest.approx(want)
        assert streamed(single, LABELS, precision=precision, keep=0) == pytest.approx(want)
    assert nc_metrics(stored, LABELS)["nc1"] == pytest.approx(want)
    assert nc_metrics(list(stored), LABELS)["nc1"] == pytest.approx(want)  # one by one
    assert streamed(stored, LABELS) == pytest.approx(want)
    assert streamed(stored, LABELS, keep=0) == pytest.approx(want)
    if dtype == torch.float16:
        assert nc_metrics(stored.numpy(), LABELS)["nc1"] == pytest.approx(want)
    # Unsaid, the rounding of float32 values cannot be told from a direction of the means.
    assert nc_metrics(stored.float(), LABELS)["nc1"] > 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    K=st.integers(3, 12),
    d=st.integers(3, 40),
    rank=st.integers(1, 2),
    offset=st.sampled_from([0.0, 3.0, 30.0]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    spread=st.sampled_from([1e-6, 0.05, 0.3]),
    scale=st.sampled_from([1.0, 1e-3, 20.0]),
)
def test_means_in_a_plane_stored_in_any_precision(seed, K, d, rank, offset, dtype, spread, scale):
    """Means and samples in one or two dimensions of d: the rounding of the others is no signal."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(K), 4)
    plane = np.linalg.qr(rng.standard_normal((d, rank)))[0].T
    at = rng.standard_normal((K, rank)) * 3
    F = scale * ((at[y] + spread * rng.standard_normal((4 * K, rank))) @ plane + offset)
    # Directions that the rounding swallows are another question.
    centred = at - at.mean(0)
    error = float(torch.finfo(dtype).eps) * max(offset, 3) * (K * d) ** 0.5
    assume(np.linalg.svd(centred, compute_uv=False)[rank - 1] > 4 * error)
    stored = torch.tensor(F).to(dtype)
    want = plain_nc1(stored.double(), y, rank)
    found = [
        nc_metrics(stored, y)["nc1"],
        nc_metrics(stored.double(), y, precision=dtype)["nc1"],
        streamed(stored, y, keep=0),
        streamed(stored, y),
        float(multi_label_metrics(stored, np.eye(K)[y], np.eye(K, d))["nc1"]),
        sphere_metrics(stored, y, rng.standard_normal((K, d)))["nc1"],
        generalized_nc(stored, y, rng.standard_normal((K, d)), random_draws=0, tol=1e-5)[
            "gnc1_raw"
        ],
    ]
    if rank == 2:
        table = layer_table({"a": stored}, y)
        found.append(float(table["nc1_pinv"].iloc[0]))
    for value in found:
        assert value == pytest.approx(want, rel=1e-5, abs=1e-12)


def test_means_in_a_plane_of_normalised_features():
    angles = np.array([0, 0.2, 1.6, 1.8, 3.2, 3.4, 4.8, 5])
    F = np.stack([np.cos(angles), np.sin(angles)], 1) @ [
        [0.6, 0.3, 0.1, -0.5],
        [0.2, 0.4, 0.9, 0.3],
    ]
    y = np.repeat(np.arange(4), 2)
    H = F / np.linalg.norm(F, axis=1, keepdims=True)
    want = plain_nc1(H, y, 2)
    assert want == pytest.approx(0.00552, rel=1e-3)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        stored = torch.tensor(F).to(dtype)
        H = stored.double().numpy()
        H = H / np.linalg.norm(H, axis=1, keepdims=True)
        got = generalized_nc(stored, y, np.eye(4))["gnc1"]
        assert got == pytest.approx(plain_nc1(H, y, 2), rel=1e-9)
        rounded = generalized_nc(stored.double(), y, np.eye(4), precision=dtype)["gnc1"]
        assert rounded == pytest.approx(got, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_directions_that_many_samples_resolve_are_kept(dtype):
    """A class mean is known better than a sample if the samples spread over many roundings.

    The second direction of the means is as small as the rounding of one feature, and inverted.
    """
    generator = torch.Generator().manual_seed(0)
    K, d, n, eps = 4, 16, 20_000, torch.finfo(dtype).eps
    means = torch.zeros(K, d, dtype=torch.float64)
    means[:, 0] = torch.tensor([-3.0, -1, 1, 3])
    means[:, 1] = 2 * eps * torch.tensor([1.0, -1, -1, 1])
    means[:, 2] = 0.3 * torch.tensor([-1.0, 3, -3, 1])
    y = torch.arange(K).repeat(n)
    F = means[y] + 0.5 * torch.randn(K * n, d, generator=generator, dtype=torch.float64)
    # Samples enough that the means' own sampling noise, √(1/n), is below that direction.
    want = plain_nc1(F, y, 3)
    got = nc_metrics(F.to(dtype), y)["nc1"]
    assert got == pytest.approx(want, rel=0.05)
    assert plain_nc1(F, y, 2) < 0.5 * want


def metrics_of_everything(F, y, W):
    rng = torch.Generator().manual_seed(1)
    layer = lambda *shape: torch.rand(*shape, generator=rng) + 0.5
    statistics = ClassStatistics(4, 8, keep=0).update(F, y)
    return {
        "nc_metrics": nc_metrics(F, y, W),
        "statistics": statistics.metrics(W),
        "agreement": statistics.agreement(W).update(F, y).metrics(),
        "generalized": generalized_nc(F, y, W),
        "sphere": sphere_metrics(F, y, W),
        "frames": frame_distances(W),
        "multi_label": multi_label_metrics(F, torch.eye(4)[y], W),
        "certificate": certified_gap(
            F, y, W, bn_weight=layer(8), bn_bias=layer(8), weight_decay=0.01, bias=layer(4)
        ),
    }


def test_autocast_is_off_inside_every_metric():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat(10)
    F = torch.randn(4, 8, generator=generator)[y] + torch.randn(40, 8, generator=generator)
    W = torch.randn(4, 8, generator=generator)
    want = metrics_of_everything(F, y, W)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (F @ W.T).dtype == torch.bfloat16
        got = metrics_of_everything(F, y, W)
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        inference = metrics_of_everything(F.clone(), y.clone(), W.clone())
    assert str(got) == str(want) == str(inference)


def test_columns_of_a_data_frame_in_half_precision():
    frame = pd.DataFrame(LINE.astype(np.float16))
    want = nc_metrics(frame.to_numpy(), LABELS)["nc1"]
    assert want == pytest.approx(7.895e-4, rel=0.01)
    assert nc_metrics(frame, LABELS)["nc1"] == pytest.approx(want)
    frame[2] = frame[2].astype(np.float64)  # then the coarsest column decides
    assert nc_metrics(frame, LABELS)["nc1"] == pytest.approx(want)


def test_exact_restores_what_it_switches_off():
    @exact
    def state():
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        return torch.is_autocast_enabled("cpu"), grad, inference

    with torch.autocast("cpu"), torch.inference_mode():
        assert state() == (False, False, False)
        assert torch.is_autocast_enabled("cpu") and torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_statistics_begun_in_inference_mode_go_on_outside():
    rng = np.random.default_rng(0)
    F, y = torch.tensor(rng.standard_normal((30, 5))), torch.arange(30) % 3
    for keep in (0, 2**20):
        with torch.inference_mode():
            statistics = ClassStatistics(3, 5, keep=keep).update(F[:10].clone(), y[:10].clone())
        statistics.update(F[10:20], y[10:20])
        with torch.inference_mode():
            part = ClassStatistics(3, 5, keep=keep).update(F[20:].clone(), y[20:].clone())
            statistics.merge(part)
        want = nc_metrics(F, y)
        for name, value in statistics.metrics().items():
            assert value == pytest.approx(want[name], rel=1e-9), name


def test_storage_reads_dtypes_of_torch_numpy_and_names():
    assert Storage.of(np.float16(1)).eps == Storage.of(None, "float16").eps == 2**-10
    assert Storage.of(None, np.float16) == Storage.of(None, torch.float16)
    assert Storage.of(torch.ones(1).bfloat16()).eps == 2**-7
    assert Storage.of([1.0]).eps == Storage.of(torch.ones(1).long()).eps == 2**-52
    assert Storage.of(None, 0.25) == (0.25, 0.0)
    for wrong in ("bf16", "int8", 2.0, -1.0, True, np.int64):
        with pytest.raises(ValueError, match="precision"):
            Storage.of(None, wrong)


@pytest.mark.parametrize("d", [6, 150])
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e20, 1e30])
def test_no_square_of_single_precision_features_overflows_or_vanishes(scale, d):
    generator = torch.Generator().manual_seed(d)
    draw = [torch.randn(n, d, generator=generator) for n in (4, 24, 4)]
    labels = torch.arange(4).repeat_interleave(6)
    features, weight = draw[0][labels] + 0.1 * draw[1], draw[2]
    want = nc_metrics(features.double(), labels, weight)
    streams = ClassStatistics(4, d, keep=0)
    for part in torch.arange(24).split(7):
        streams.update(scale * features[part], labels[part])
    second = streams.agreement(weight).update(scale * features, labels)
    classes = by_class(scale * features, labels)
    assert classes["nc1"].mean() == pytest.approx(want["nc1"], rel=1e-4)
    assert classes["cdnv"].mean() == pytest.approx(want["cdnv"], rel=1e-4)
    for found in (
        nc_metrics(scale * features, labels, weight),
        streams.metrics(weight, agreement=second),
    ):
        for name in found.keys() - {"residual", "residual_centered"}:
            assert found[name] == pytest.approx(want[name], rel=1e-4), name


def test_a_second_pass_has_the_precision_of_the_features_that_were_kept():
    generator = torch.Generator().manual_seed(0)
    means, noise = (torch.randn(n, 8, generator=generator).double() for n in (5, 100))
    labels = torch.arange(5).repeat_interleave(20)
    features = 1e5 + 1e-3 * means[labels] + 1e-4 * noise  # one and the same in single precision
    statistics = ClassStatistics(5, 8).update(features, labels)
    assert statistics.agreement().update(features, labels).metrics()["ncc_error"] == 0


@pytest.mark.parametrize("large", [500.0, 1000.0])
@pytest.mark.parametrize("width", [0.2, 0.02])
def test_a_large_column_without_classes_hides_no_direction(large, width):
    """Massive activations: one column, the same for all samples, in bfloat16."""
    generator, labels = torch.Generator().manual_seed(1), torch.arange(2000) % 10
    x = torch.randn(10, 64, generator=generator)[labels]
    x += width * torch.randn(2000, 64, generator=generator)
    x[:, 7] = large
    x = x.bfloat16()
    want = plain_nc1(x.double(), labels, 9)
    assert nc_metrics(x, labels)["nc1"] == pytest.approx(want, rel=1e-4)
    assert streamed(x, labels, keep=0) == pytest.approx(want, rel=1e-4)
    assert float(by_class(x, labels)["nc1"].mean()) == pytest.approx(want, rel=1e-4)
    assert geometry.nc1(x, labels, cut=1e-7) == pytest.approx(want, rel=1e-4)


def layered(dtype, *, n, scales, d):
    """Labels, features ``(4n, d)`` of class means in three directions of these ``scales``, stored
    in ``dtype``, and tr(Σ_W Σ_B⁺)/K, which does not depend on the scales."""
    rng = np.random.default_rng(n + d)
    labels = np.arange(4 * n) % 4
    plain = rng.standard_normal((4, 3))[labels] + 0.3 * rng.standard_normal((4 * n, 3))
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0][:3]
    return labels, torch.as_tensor((plain * scales) @ turn).to(dtype), plain_nc1(plain, labels, 3)


@pytest.mark.parametrize("d", [5, 200])
def test_nc1_does_not_depend_on_how_long_a_direction_of_the_means_is(d):
    labels, features, want = layered(torch.float32, n=300, scales=(1, 1, 1e-4), d=d)
    kept = ClassStatistics(4, d, keep=2**20)
    sums = ClassStatistics(4, d, keep=0)
    for statistics in (kept, sums):
        for part in torch.arange(len(labels)).split(500):
            statistics.update(features[part], labels[part])
    for found in (nc_metrics(features, labels), kept.metrics(), sums.metrics()):
        assert found["nc1"] == pytest.approx(want, rel=1e-2)  # as stored, the last digits
    assert by_class(features, labels)["nc1"].mean() == pytest.approx(want, rel=1e-2)


@pytest.mark.parametrize("shortest", [1e-5, 1e-6])
def test_of_doubles_nc1_needs_the_features_where_sums_have_no_digit(shortest):
    labels, features, want = layered(torch.float64, n=300, scales=(1, 1, shortest), d=40)
    targets = torch.nn.functional.one_hot(torch.as_tensor(labels))
    sums = ClassStatistics(4, 40, keep=0).update(features, labels)
    assert nc_metrics(features, labels)["nc1"] == pytest.approx(want, rel=1e-5)
    several = (features, targets, torch.eye(4, 40))
    if shortest == 1e-5:
        assert sums.metrics()["nc1"] == pytest.approx(want, rel=2e-3)
        assert multi_label_metrics(*several)["nc1"] == pytest.approx(want, rel=2e-3)
        return
    with pytest.warns(RuntimeWarning, match="too short for sums of products, NC1 is NaN: keep"):
        assert np.isnan(sums.metrics()["nc1"])
    with pytest.warns(RuntimeWarning, match="too short for sums"):
        assert np.isnan(multi_label_metrics(*several)["nc1"])


@pytest.mark.parametrize("n", [20, 300])
def test_the_rounding_of_a_network_with_a_bottleneck_is_no_direction(n):
    """Features of rank 5 in 300 dimensions, as matrix products in single precision make them."""
    rng = np.random.default_rng(n)
    labels = np.arange(10 * n) % 10
    narrow = rng.standard_normal((10, 5))[labels] + 0.1 * rng.standard_normal((10 * n, 5))
    layers = [rng.standard_normal(size) / 10 for size in ((5, 300), (300, 300), (300, 300))]
    features = torch.as_tensor(narrow, dtype=torch.float32)
    for layer in layers:
        features = features @ torch.as_tensor(layer, dtype=torch.float32)
    want = plain_nc1(narrow, labels, 5)
    sums = ClassStatistics(10, 300, keep=0).update(features, labels)
    cast = nc_metrics(features.double(), labels)
    for found in (nc_metrics(features, labels), sums.metrics(), cast):
        assert found["nc1"] == pytest.approx(want, rel=1e-3)
