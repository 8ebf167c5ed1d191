"""ClassStatistics and its second pass: stored, added, over processes, many classes, by class."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nclib import checks
from nclib.metrics import ClassStatistics, _classes, _rows, by_class, cdnv_by_class, nc_metrics
from tests.benchmarks.harness import ROOT
from tests.device_guard import Accelerator


def sample(seed, K=5, d=6, n=9, width=0.8):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(K), rng.integers(1, n, K)))
    means = rng.standard_normal((K, d))
    F = 2 + means[y] + width * rng.standard_normal((len(y), d))
    return F, y, means + 0.5 * rng.standard_normal((K, d)), rng.standard_normal(K)


def same(got, want, **options):
    assert got.keys() == want.keys()
    for name in want:
        assert got[name] == pytest.approx(want[name], **({"rel": 1e-9, "abs": 1e-12} | options)), (
            name
        )


def loops(F, y, mean, W, b):
    """Shares of disagreement and errors, and the errors by class, one sample at a time."""
    near = np.array([np.argmin([((f - m) ** 2).sum() for m in mean]) for f in F])
    predicted = np.array([np.argmax([f @ w + c for w, c in zip(W, b, strict=True)]) for f in F])
    shares = {
        "ncc_disagreement": np.mean(near != predicted),
        "ncc_error": np.mean(near != y),
        "error": np.mean(predicted != y),
    }
    classes = range(len(mean))
    rows = lambda hit: [np.mean(hit[y == k]) if (y == k).any() else np.nan for k in classes]
    return shares, {"ncc_error": rows(near != y), "error": rows(predicted != y)}


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    K=st.integers(2, 7),
    d=st.integers(1, 6),
    width=st.sampled_from([0.05, 0.8, 3.0]),
    table=st.sampled_from([2, 2048]),
)
def test_second_pass_over_the_same_and_over_unseen_samples(seed, K, d, width, table):
    F, y, W, b = sample(seed, K, d, width=width)
    unseen, their_y, _, _ = sample(seed + 1, K, d, width=width)
    mean = np.stack([F[y == k].mean(0) for k in range(K)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_classes, "TABLE", table)
        patch.setattr(_classes, "TILE", 12)
        for keep in (0, 2**20):
            statistics = ClassStatistics(K, d, keep=keep).update(F, y)
            for X, labels in ((F, y), (unseen, their_y)):
                shares, rows = loops(X, labels, mean, W, b)
                whole = statistics.agreement(W, b).update(X, labels)
                same(whole.metrics(), shares)
                for name, value in whole.by_class().items():
                    np.testing.assert_allclose(value, rows[name])
                parts = statistics.agreement(W, b).update(X[:1], labels[:1])
                rest = statistics.agreement(W, b).update(X[1:], labels[1:])
                same(parts.merge(rest).metrics(), shares)
                unlabelled = statistics.agreement(W, b).update(X).metrics()
                same(unlabelled, {"ncc_disagreement": shares["ncc_disagreement"]})
                nearest_only = statistics.agreement().update(X, labels).metrics()
                same(nearest_only, {"ncc_error": shares["ncc_error"]})
            found = statistics.metrics(W, b, agreement=statistics.agreement(W, b).update(F, y))
            same(found, nc_metrics(F, y, W, b))
            same(nc_metrics(F, y, W, b), nc_metrics(F, y, W, b) | {
                "ncc_disagreement": loops(F, y, mean, W, b)[0]["ncc_disagreement"]})  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), K=st.integers(2, 6), d=st.integers(1, 6))
def test_metrics_of_each_class(seed, K, d):
    F, y, W, b = sample(seed, K, d)
    mean = np.stack([F[y == k].mean(0) for k in range(K)])
    between = sum(np.outer(m, m) for m in mean - F.mean(0)) / K
    inverse = np.linalg.pinv(between, rcond=1e-10, hermitian=True)
    variance = [((F[y == k] - mean[k]) ** 2).sum(1).mean() for k in range(K)]
    want = {
        "count": np.bincount(y),
        "nc1": [
            np.trace((F[y == k] - mean[k]).T @ (F[y == k] - mean[k]) @ inverse) / (y == k).sum() / K
            for k in range(K)
        ],
        "nc1_ratio": np.array(variance) / np.trace(between),
        "cdnv": [
            np.mean([(variance[k] + variance[j]) / 2 / ((mean[k] - mean[j]) ** 2).sum()
                     for j in range(K) if j != k]) for k in range(K)
        ],
    } | loops(F, y, mean, W, b)[1]  # fmt: skip
    table = by_class(F, y, W, b)
    assert list(table.columns) == list(want)
    for name in want:
        np.testing.assert_allclose(table[name], want[name], rtol=1e-8, atol=1e-10)
    whole = nc_metrics(F, y, W, b)
    share = table["count"] / len(y)
    assert (share * table["nc1"]).sum() == pytest.approx(whole["nc1"], rel=1e-8, abs=1e-12)
    assert (share * table["nc1_ratio"]).sum() == pytest.approx(whole["nc1_ratio"], rel=1e-12)
    assert table["cdnv"].mean() == pytest.approx(whole["cdnv"])

    sums = ClassStatistics(K, d, keep=0).update(F, y)
    streamed = sums.by_class(sums.agreement(W, b).update(F, y))
    assert list(streamed.columns) == ["count", "nc1_ratio", "cdnv", "ncc_error", "error"]
    for name in streamed:
        np.testing.assert_allclose(streamed[name], want[name], rtol=1e-8, atol=1e-10)
    kept = ClassStatistics(K, d).update(F, y).by_class()
    assert list(kept.columns) == ["count", "nc1", "nc1_ratio", "cdnv", "ncc_error"]
    for name in kept:
        np.testing.assert_allclose(kept[name], want[name], rtol=1e-8, atol=1e-10)


def test_second_pass_with_two_nearly_equal_means():
    """Few dimensions are computed in double precision, as with kept features."""
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((9, 2))
    mean[1] = mean[0] + 1e-6
    y = np.repeat(np.arange(9), 200)
    F = (mean[y] + 1e-5 * rng.standard_normal((len(y), 2))).astype(np.float32)
    wide = F.astype(np.longdouble)
    means = np.stack([wide[y == k].mean(0) for k in range(9)])
    nearest = ((wide[:, None] - means) ** 2).sum(2).argmin(1)
    statistics = ClassStatistics(9, 2, keep=0).update(F, y)
    found = statistics.agreement().update(F, y)
    same(found.metrics(), {"ncc_error": np.mean(nearest != y)})
    assert 0.01 < found.metrics()["ncc_error"] < 0.2


def test_classes_keep_their_names():
    F, y, _, _ = sample(0, K=3)
    names = ["cat", "dog", "emu"]
    texts = [names[k] for k in y]
    assert by_class(F, texts).index.tolist() == names
    assert ClassStatistics(names, 6).update(F, texts).by_class().index.tolist() == names
    some = [text for text in texts if text != "dog"]
    table = by_class(F[np.array(texts) != "dog"], some, num_classes=names)
    assert table["count"].tolist() == [(y == 0).sum(), 0, (y == 2).sum()]
    assert table.loc["dog"].drop("count").isna().all()
    assert table.loc[["cat", "emu"]].notna().all(axis=None)


@pytest.mark.parametrize("keep", [0, 2**20])
def test_missing_classes_are_an_error_or_left_out_of_everything(keep):
    F, y, W, b = sample(3, K=6)
    present = [0, 2, 3, 5]
    kept = np.isin(y, present)
    renumbered = np.searchsorted(present, y[kept])
    want = nc_metrics(F[kept], renumbered, W[present], b[present])
    same(nc_metrics(F[kept], y[kept], W, b, missing="skip"), want)
    statistics = ClassStatistics(6, 6, keep=keep).update(F[kept], y[kept])
    second = statistics.agreement(W, b, missing="skip").update(F[kept], y[kept])
    same(statistics.metrics(W, b, missing="skip", agreement=second), want)
    for call in (
        lambda: nc_metrics(F[kept], y[kept], W, b),
        lambda: statistics.metrics(W, b),
        lambda: statistics.agreement(W, b),
    ):
        with pytest.raises(checks.InputError, match="class 1, 4 has no sample"):
            call()
    with pytest.raises(checks.InputError, match="only 1 of 6 classes has samples"):
        nc_metrics(F[y == 2], y[y == 2], W, missing="skip")
    # Unseen samples of a class without a mean are nearest to another one: always wrong.
    found = statistics.agreement(W, b, missing="skip").update(F, y).by_class()["ncc_error"]
    assert found[1] == found[4] == 1


@pytest.mark.parametrize("keep", [0, 2**20])
def test_tokens_and_samples_to_ignore(keep):
    rng = np.random.default_rng(0)
    F, y = rng.standard_normal((4, 25, 6)), rng.integers(0, 3, (4, 25))
    W = rng.standard_normal((3, 6))
    padding = rng.random((4, 25)) < 0.3
    F[padding] = np.nan  # what a padded position holds does not matter
    y[padding] = -100
    want = nc_metrics(F[~padding], y[~padding], W)
    statistics = ClassStatistics(3, 6, keep=keep)
    for features, labels in zip(torch.tensor(F), torch.tensor(y), strict=True):
        statistics.update(features[None], labels[None], ignore_index=-100)
    statistics.update(F[:0], y[:0], ignore_index=-100)
    statistics.update(np.ones((2, 6)), [-100, -100], ignore_index=-100)
    assert int(statistics.counts.sum()) == (~padding).sum()
    second = statistics.agreement(W).update(F, y, ignore_index=-100)
    same(statistics.metrics(W, agreement=second), want)
    with pytest.raises(checks.InputError, match=r"found -100 .padding"):
        statistics.update(np.ones((2, 6)), [-100, 0])
    with pytest.raises(checks.InputError, match="labels have shape"):
        statistics.update(np.ones((2, 6)), [-100], ignore_index=-100)


def test_batches_reused_in_place_do_no_harm():
    F, y, W, b = sample(1)
    statistics, room = ClassStatistics(5, 6), torch.empty(4, 6, dtype=torch.float64)
    for part in np.array_split(np.arange(len(y)), len(y) // 3):
        room[: len(part)] = torch.tensor(F[part])
        statistics.update(room[: len(part)], y[part])
    same(statistics.metrics(W, b), nc_metrics(F, y, W, b))


@pytest.mark.parametrize("keep", [0, 300, 2**20])
def test_stored_statistics_go_on_where_they_were(keep, tmp_path):
    F, y, W, b = sample(2)
    F = np.float32(F)
    first = ClassStatistics(5, 6, keep=keep).update(F[:10], y[:10])
    torch.save(first.state_dict(), tmp_path / "statistics.pt")
    state = torch.load(tmp_path / "statistics.pt", weights_only=True)
    again = ClassStatistics(5, 6, keep=keep).load_state_dict(state).update(F[10:], y[10:])
    assert not again.complete
    first.update(F[10:], y[10:])  # storing changes nothing
    want = nc_metrics(F, y, W, b)
    second = again.agreement(W, b).update(F, y)
    same(again.metrics(W, b, agreement=second), want, rel=1e-6)
    same(first.metrics(W, b, agreement=first.agreement(W, b).update(F, y)), want, rel=1e-6)
    for other in (ClassStatistics(4, 6), ClassStatistics(5, 7), ClassStatistics(list("abcde"), 6)):
        with pytest.raises(checks.InputError, match="the stored statistics have"):
            other.load_state_dict(state)


def test_sums_of_statistics_leave_their_parts_alone():
    F, y, W, b = sample(4)
    for keep in (0, 2**20):
        parts = [ClassStatistics(5, 6, keep=keep).update(F[i::3], y[i::3]) for i in range(3)]
        before = [part.counts.clone() for part in parts]
        total = sum(parts)
        for part, counts in zip(parts, before, strict=True):
            assert part.counts.equal(counts) and part is not total
        second = total.agreement(W, b).update(F, y)
        same(total.metrics(W, b, agreement=second), nc_metrics(F, y, W, b))
    with pytest.raises(checks.InputError, match="cannot merge statistics of the classes"):
        ClassStatistics(["a", "b"], 2) + ClassStatistics(["b", "a"], 2)
    with pytest.raises(TypeError):
        parts[0] + 1.5


def test_moving_to_another_device():
    F, y, W, _ = sample(5)
    for keep in (0, 2**20):
        statistics = ClassStatistics(5, 6, keep=keep).update(F, y)
        assert statistics.to("cpu") is statistics
        same(statistics.metrics(W) | {"ncc_disagreement": 0}, nc_metrics(F, y, W) | {
            "ncc_disagreement": 0})  # fmt: skip
        # No other device here: "meta" keeps shapes and devices, not values.
        moved = statistics.to("meta")
        tensors = [v for v in vars(moved).values() if isinstance(v, torch.Tensor)]
        assert len(tensors) >= 6 and all(v.device.type == "meta" for v in tensors)


RANK = """
import sys, numpy as np, torch
from datetime import timedelta
from torch import distributed
from nclib.metrics import ClassStatistics
rank, file = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group(
    "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
)
stored = np.load(file + ".npz")
F, y, W, b = (stored[n] for n in "FyWb")
cut = int(stored["cut"])
part = slice(0, cut) if rank == 0 else slice(cut, None)
statistics = ClassStatistics(5, 6)
if len(y[part]):
    statistics.update(torch.tensor(F[part]), y[part])
statistics.all_reduce()
second = statistics.agreement(W, b)
if len(y[part]):
    second.update(F[part], y[part])
second.all_reduce()
found = statistics.metrics(W, b, agreement=second) | second.metrics()
print(repr({k: float(v) for k, v in found.items()}))
distributed.destroy_process_group()
"""


@pytest.mark.parametrize("case", ["halves", "one process has nothing", "bfloat16 on a line"])
def test_two_processes_hold_the_sums_of_both(case, tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    F, y, W, b = sample(6, n=20)
    y.sort()  # classes of one process only, too
    cut = {"halves": len(y) // 2, "one process has nothing": len(y)}.get(case, len(y) // 3)
    file = tmp_path / "rendezvous"
    np.savez(f"{file}.npz", F=np.float32(F), y=y, W=W, b=b, cut=cut)
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(file)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    found = [eval(out) for out, _ in outputs if out] or pytest.fail(outputs[0][1])
    assert found[0] == found[1]
    sums = ClassStatistics(5, 6).update(np.float32(F), y)
    want = nc_metrics(np.float32(F), y, W, b)
    want |= sums.agreement(W, b).update(np.float32(F), y).metrics()
    same(found[0], want, rel=1e-6)


@pytest.mark.parametrize(("K", "d"), [(40, 7), (300, 20)])
def test_many_classes_agree_with_the_direct_formulas(K, d, monkeypatch):
    F, y, W, b = sample(7, K, d, n=6, width=0.3)
    want = nc_metrics(F, y, W, b)
    for name in ("TABLE", "_PAIRED"):
        monkeypatch.setattr(_classes, name, 30)
    monkeypatch.setattr(_classes, "TILE", 500)
    monkeypatch.setattr(torch, "randperm", lambda K, generator: torch.arange(K))
    got = nc_metrics(F, y, W, b)
    few = np.arange(30 // 4)  # the classes whose pairs count
    want["cdnv"] = by_class(F, y)["cdnv"].to_numpy()[few].mean()
    same(got, want)
    sums = ClassStatistics(K, d, keep=0).update(F, y)
    same(sums.metrics(W, b, agreement=sums.agreement(W, b).update(F, y)), want)
    centred = np.stack([F[y == k].mean(0) for k in range(K)]) - F.mean(0)
    target = (np.eye(K) - 1 / K) / np.sqrt(K - 1)
    for name, gram in (("nc2", W @ W.T), ("nc2_means", centred @ centred.T),
                       ("nc3", W @ centred.T)):  # fmt: skip
        assert got[name] == pytest.approx(np.linalg.norm(gram / np.linalg.norm(gram) - target))


LARGE = """
import torch
from tests.benchmarks.harness import Memory
from nclib.metrics import ClassStatistics
K, d, n = 40_000, 16, 60_000
draw = torch.Generator().manual_seed(0)
means, y = torch.randn(K, d, generator=draw), torch.cat([torch.arange(K), torch.arange(n - K)])
features = means[y] + 1e-3 * torch.randn(n, d, generator=draw)
with Memory() as memory:
    statistics = ClassStatistics(K, d, keep=0).update(features, y)
    second = statistics.agreement(means).update(features[:2000], y[:2000])
    found = statistics.metrics(means, agreement=second)
print(memory.extra, found["nc1"])
"""


def test_memory_with_many_classes_is_nothing_of_size_k_squared():
    command = [sys.executable, "-c", LARGE]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=500, cwd=ROOT
    )
    megabytes, nc1 = map(float, found.stdout.split())
    # K² float32 numbers are 6.4 GB, tiles a few of 64 MB each, sums 10 MB.
    assert megabytes < 1000
    # Σ_B is nearly the identity; only the 20 000 classes of two samples have a spread.
    trace = 16 * 1e-6 / 2 * 40_000 / 60_000
    assert nc1 == pytest.approx(trace / 40_000, rel=0.1)


def test_blocks_are_larger_where_an_operation_is_a_launch(monkeypatch):
    assert _rows.block(512, torch.device("cpu")) == 1024
    found = [_rows.block(d, torch.device("meta")) for d in (3, 512, 2048, 10**6)]
    assert found == [16384, 16384, 8192, 1024]
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    x = torch.randn(90, 5, generator=draw) + torch.randn(3, 5, generator=draw)[labels]
    weight = torch.randn(3, 5, generator=draw)

    def numbers():
        statistics = ClassStatistics(3, 5)
        for part in (slice(0, 4), slice(4, 60), slice(60, 90)):
            statistics.update(x[part], labels[part])
        second = statistics.agreement(weight).update(x, labels)
        return nc_metrics(x, labels, weight) | {"second": second.metrics()["ncc_error"]}, (
            statistics.metrics(weight)
        )

    whole = numbers()
    monkeypatch.setattr(_rows, "BLOCK", 7)
    for one, two in zip(numbers(), whole, strict=True):
        assert one == pytest.approx(two, rel=1e-6)


@pytest.mark.parametrize("K", [3, 130])
def test_an_accelerator_sums_to_the_same_numbers(K):
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(K, (3000,), generator=draw)
    x = torch.randn(3000, 7, generator=draw) + torch.randn(K, 7, generator=draw)[labels]
    weight = torch.randn(K, 7, generator=draw)
    here = nc_metrics(x, labels, weight)
    with Accelerator() as gpu:
        there = nc_metrics(x.to(gpu), labels.to(gpu), weight.to(gpu))
    assert there == pytest.approx(here, rel=1e-6)


def test_parts_are_added_in_inference_mode():
    x, y, *_ = sample(3)
    whole = ClassStatistics(5, 6).update(x, y)
    for keep in (0, 2**20):
        with torch.inference_mode():
            parts = [ClassStatistics(5, 6, keep=keep).update(x[i::3], y[i::3]) for i in range(3)]
            added = sum(parts)
        same({"nc1": added.metrics()["nc1"]}, {"nc1": whole.metrics()["nc1"]})


@pytest.mark.parametrize("keep", [0, 2**20])
def test_merged_with_themselves_statistics_count_twice(keep):
    x, y = torch.randn(2400, 4), torch.arange(2400) % 3
    twice = ClassStatistics(3, 4, keep=keep).update(x, y)
    twice.merge(twice)
    both = ClassStatistics(3, 4).update(torch.cat([x, x]), torch.cat([y, y]))
    assert twice.counts.tolist() == [1600] * 3
    same(twice.metrics(), both.metrics(), rel=1e-5)


def test_the_precision_asked_for_stays_when_sums_are_loaded():
    x = torch.outer(torch.tensor([1, 1.2, 3, 3.2, 6, 6.2]), torch.tensor([1, 0.6, 0.25]))
    x, y = x.bfloat16(), [0, 0, 1, 1, 2, 2]
    state = ClassStatistics(3, 3).update(x.float(), y).state_dict()
    loaded = ClassStatistics(3, 3, precision="bfloat16").load_state_dict(state)
    assert loaded.metrics()["nc1"] == pytest.approx(nc_metrics(x, y)["nc1"])


def test_names_that_batches_would_number_differently_are_refused():
    statistics = ClassStatistics(2, 3)
    with pytest.raises(checks.InputError, match="labels are names: pass all names"):
        statistics.update(torch.randn(4, 3), ["a", "b", "b", "a"])


def test_second_passes_that_do_not_belong_together_are_refused():
    features, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), [0, 1, 2] * 2
    statistics = ClassStatistics(3, 4, keep=0).update(features, labels)
    second = statistics.agreement().update(features, labels)
    with pytest.raises(ValueError, match=r"no classifier to compare with: agreement\(weight"):
        statistics.metrics(torch.eye(3, 4), agreement=second)
    wider = ClassStatistics(3, 5).update(torch.eye(6, 5), labels).agreement()
    with pytest.raises(ValueError, match="second passes of different classes or dimensions"):
        second.merge(wider)
    with pytest.raises(ValueError, match="the stored statistics lack .'counts'"):
        statistics.load_state_dict({"num_classes": 3, "dim": 4, "names": None})


def test_labels_in_a_column_may_be_ignored_too():
    features, labels = torch.eye(4), torch.tensor([0, 1, -1, 1])
    found = ClassStatistics(2, 4).update(features, labels[:, None], ignore_index=-1)
    assert found.counts.tolist() == [1, 2]
    with pytest.raises(ValueError, match="with ignore_index labels are class indices"):
        found.update(features, torch.eye(4, 2), ignore_index=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_distances_of_means_far_from_the_origin(dtype):
    generator = torch.Generator().manual_seed(0)
    means = (1000 + torch.randn(5, 3, generator=generator)).to(dtype)
    variances = torch.rand(5, generator=generator).to(dtype)
    gaps = (means.double()[:, None] - means.double()).square().sum(2)
    ratio = (variances.double()[:, None] + variances.double()) / (2 * gaps)
    want = ratio.fill_diagonal_(0).sum(1) / 4
    for found in (cdnv_by_class(means, variances), cdnv_by_class(means.tolist(), variances)):
        torch.testing.assert_close(found, want, rtol=1e-10, atol=0.0)
