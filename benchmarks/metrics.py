"""Rows: neural-collapse metrics of features in memory and streamed."""

import torch

from benchmarks.harness import Row, Task
from nclib.metrics import ClassStatistics, nc_metrics

BATCH = 1024


def features(N, d, K, ratio):
    """Features, labels, classifier: class means with ``tr Σ_W / tr Σ_B ≈ ratio``, W near them."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(K, d, generator=draw)
    labels = torch.randint(K, (N,), generator=draw)
    inputs = torch.randn(N, d, generator=draw).mul_(ratio**0.5).add_(means[labels])
    weight = means - means.mean(0) + 0.1 * torch.randn(K, d, generator=draw)
    return inputs, labels, weight


# The baseline: the definitions, batch by batch ----------------------------------------------------


def plain_means(batches, K, d):
    """Class means and counts, one pass."""
    sums, counts = torch.zeros(K, d), torch.zeros(K)
    for x, y in batches:
        for k in y.unique():
            sums[k] += x[y == k].sum(0)
            counts[k] += (y == k).sum()
    return sums / counts[:, None], counts


def plain_covariance(batches, means, N):
    """Σ_W ``(d, d)``, a second pass."""
    d = means.shape[1]
    within = torch.zeros(d, d, dtype=torch.float64)
    for x, y in batches:
        residual = x - means[y]
        within += residual.T @ residual
    return within / N


def plain_metrics(within, means, counts, weight):
    """NC1 to NC3 from the class means and the whole Σ_W."""
    K = len(means)
    within, means, weight = within.double(), means.double(), weight.double()
    centred = means - (counts.double() @ means) / counts.sum()
    between = centred.T @ centred / K
    target = (torch.eye(K, dtype=torch.float64) - 1 / K) / (K - 1) ** 0.5
    distance = lambda gram: float((gram / gram.norm() - target).norm())
    inverse = torch.linalg.pinv(between, rtol=1e-12, hermitian=True)
    return {
        "nc1": float((within @ inverse).trace()) / K,
        "nc1_ratio": float(within.trace() / between.trace()),
        "nc2": distance(weight @ weight.T),
        "nc3": distance(weight @ centred.T),
    }


def plain_disagreement(batches, means, weight, N):
    """Share of samples whose nearest class mean is not the predicted class."""
    wrong = 0
    for x, _ in batches:
        nearest = torch.cdist(x, means).argmin(1)
        wrong += int((nearest != (x @ weight.T).argmax(1)).sum())
    return wrong / N


def in_memory(N, d, K, ratio):
    inputs, labels, weight = features(N, d, K, ratio)

    def baseline():
        batches = list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))
        means, counts = plain_means(batches, K, d)
        within = plain_covariance(batches, means, N)
        found = plain_metrics(within, means, counts, weight)
        return found | {"ncc_disagreement": plain_disagreement(batches, means, weight, N)}

    ours = lambda: nc_metrics(inputs, labels, weight)
    # The features are read twice; NC1 needs their products with the span of the class means, and
    # before collapse (within-class spread above the between-class one) the logits need one more.
    products = min(K, d / 2) + (K if ratio > 1 else 0)
    return Task(ours, baseline, bytes=2 * inputs.numel() * 4, flops=2 * N * d * products)


def streamed(N, d, K, ratio):
    inputs, labels, weight = features(N, d, K, ratio)
    batches = list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))

    def ours():
        statistics = ClassStatistics(K, d)
        for x, y in batches:
            statistics.update(x, y)
        return statistics.metrics(weight)

    def baseline():
        means, counts = plain_means(batches, K, d)
        return plain_metrics(plain_covariance(batches, means, N), means, counts, weight)

    return Task(ours, baseline, bytes=inputs.numel() * 4, flops=N * d * (d + 1))


def products(N, d, K, ratio):
    inputs, labels, _ = features(N, d, K, ratio)

    def ours():
        statistics = ClassStatistics(K, d)
        for x, y in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
            statistics.update(x, y)
        means = statistics.means.square().sum(1)
        trace = statistics.within_covariance.trace() + statistics.counts.double() @ means / N
        return {"second_moment": float(trace)}

    def baseline():
        total = torch.zeros(d, d)
        for x in inputs.split(BATCH):
            total += x.T @ x
        return {"second_moment": float(total.trace()) / N}

    return Task(ours, baseline, bytes=inputs.numel() * 4, flops=N * d * (d + 1))


TOY = {"N": 900, "d": 24, "K": 5, "ratio": 0.1}
ROWS = [
    Row(
        f"metrics-{d}-{K}{suffix}",
        f"NC metrics in memory, N={N}, d={d}, K={K}, {state}",
        in_memory,
        {"N": N, "d": d, "K": K, "ratio": ratio},
        TOY | {"K": 40 if K > 500 else 5, "ratio": ratio},
        goal=goal,
        most=2.5,
        tolerance=1e-5,
    )
    for N, d, K, ratio, state, suffix, goal in (
        (60_000, 512, 10, 0.1, "collapsed", "", 4),
        (60_000, 512, 100, 0.1, "collapsed", "", 4),
        (60_000, 512, 100, 3.0, "not collapsed", "-early", 4),
        (50_000, 2048, 1000, 0.1, "collapsed", "", 4),
    )
] + [
    Row(
        f"stream-{d}",
        f"NC metrics streamed in one pass, N={N}, d={d}, K=10; baseline: two passes",
        streamed,
        {"N": N, "d": d, "K": 10, "ratio": 0.1},
        TOY,
        tolerance=1e-5,
    )
    for N, d in ((60_000, 512), (20_000, 2048))
] + [
    Row(
        f"stream-gemm-{d}",
        f"all class statistics, N={N}, d={d}; baseline: one d×d product of the features alone",
        products,
        {"N": N, "d": d, "K": 10, "ratio": 0.1},
        TOY,
        goal=0.8,
        tolerance=1e-4,
    )
    for N, d in ((60_000, 512), (20_000, 2048))
]  # fmt: skip
