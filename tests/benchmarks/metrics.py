"""Rows: neural-collapse metrics of features in memory and streamed."""

import torch

from nclib.metrics import ClassStatistics, nc_metrics
from tests.benchmarks.harness import Row, Task

BATCH = 1024


def features(N, d, K, ratio):
    """Features, labels, classifier: class means with ``tr Σ_W / tr Σ_B ≈ ratio``, W near them."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(K, d, generator=draw)
    labels = torch.randint(K, (N,), generator=draw)
    inputs = torch.randn(N, d, generator=draw).mul_(ratio**0.5).add_(means[labels])
    weight = means - means.mean(0) + 0.1 * torch.randn(K, d, generator=draw)
    return inputs, labels, weight


# The baseline: the definitions, batch by batch in three passes (means, Σ_W, NC4), written as the
# public library neural-collapse (rhubarbwu) does it ----------------------------------------------


def plain_means(batches, K, d):
    """Class means and counts, one pass; sums by a product with one-hot rows."""
    sums, counts = torch.zeros(K, d), torch.zeros(K)
    for x, y in batches:
        hot = (y[:, None] == torch.arange(K)).float()
        sums += hot.T @ x
        counts += hot.sum(0)
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
    """Share of samples whose nearest class mean is not the predicted class, a third pass."""
    wrong, norms = 0, means.square().sum(1)
    for x, _ in batches:
        nearest = (x.square().sum(1)[:, None] + norms - 2 * x @ means.T).argmin(1)
        wrong += int((nearest != (x @ weight.T).argmax(1)).sum())
    return wrong / N


def plain(batches, weight, N, d, K):
    """NC1 to NC4."""
    means, counts = plain_means(batches, K, d)
    found = plain_metrics(plain_covariance(batches, means, N), means, counts, weight)
    return found | {"ncc_disagreement": plain_disagreement(batches, means, weight, N)}


def collected(batches, K, d, **options):
    """All batches in one :class:`~nclib.metrics.ClassStatistics`."""
    statistics = ClassStatistics(K, d, **options)
    for x, y in batches:
        statistics.update(x, y)
    return statistics


def second_pass(statistics, batches, weight, **options):
    """NC4 of statistics that kept no features."""
    second = statistics.agreement(weight, **options)
    for x, y in batches:
        second.update(x, y)
    return second


def in_memory(N, d, K, ratio):
    inputs, labels, weight = features(N, d, K, ratio)
    batches = list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))
    ours = lambda: nc_metrics(inputs, labels, weight)
    baseline = lambda: plain(batches, weight, N, d, K)
    # The features are read twice; NC1 needs their products with the span of the class means, and
    # before collapse (within-class spread above the between-class one) the logits need one more.
    products = min(K, d / 2) + (K if ratio > 1 else 0)
    return Task(ours, baseline, bytes=2 * inputs.numel() * 4, flops=2 * N * d * products)


def streamed(N, d, K, ratio):
    inputs, labels, weight = features(N, d, K, ratio)
    batches = list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))
    ours = lambda: collected(batches, K, d).metrics(weight)
    # One pass over the loader: the features are copied, then read twice.
    products = min(K, d / 2)
    baseline = lambda: plain(batches, weight, N, d, K)
    return Task(ours, baseline, bytes=4 * inputs.numel() * 4, flops=2 * N * d * products)


def sums(N, d, K, ratio):
    """Features too many to be kept: sums in a first pass, NC4 in a second one."""
    inputs, labels, weight = features(N, d, K, ratio)
    batches = list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))

    def ours():
        statistics = collected(batches, K, d, keep=0)
        second = second_pass(statistics, batches, weight)
        return statistics.metrics(weight, agreement=second)

    baseline = lambda: plain(batches, weight, N, d, K)
    return Task(ours, baseline, bytes=2 * inputs.numel() * 4, flops=N * d * (d + 1))


def tokens(N, d, K, ratio):
    """Tokens of a language head, in two passes; baseline: the logits of the tokens alone."""
    inputs, labels, weight = features(N, d, K, ratio)
    batches = list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))

    def ours():
        # NC1 to NC3 follow from the sums, once, whatever the number of tokens.
        statistics = collected(batches, K, d, keep=0)
        return second_pass(statistics, batches, weight, missing="skip").metrics()

    def baseline():
        wrong = sum(int(((x @ weight.T).argmax(1) != y).sum()) for x, y in batches)
        return {"error": wrong / N}

    return Task(ours, baseline, flops=2 * N * d * K)


def products(N, d, K, ratio):
    inputs, labels, _ = features(N, d, K, ratio)

    def ours():
        batches = zip(inputs.split(BATCH), labels.split(BATCH), strict=True)
        statistics = collected(batches, K, d, keep=0)
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
        f"stream-{d}-{K}",
        f"NC metrics of a loader, read once, N={N}, d={d}, K={K}; baseline: three passes",
        streamed,
        {"N": N, "d": d, "K": K, "ratio": 0.1},
        TOY | {"K": 40 if K > 500 else 5},
        goal=4,
        tolerance=1e-5,
    )
    for N, d, K in ((60_000, 512, 10), (60_000, 512, 100), (20_000, 2048, 10), (20_000, 2048, 1000))
] + [
    Row(
        "stream-sums-512",
        "the same without keeping features: two passes, N=60000, d=512, K=10; baseline: three",
        sums,
        {"N": 60_000, "d": 512, "K": 10, "ratio": 0.1},
        TOY,
        goal=1,
        tolerance=1e-5,
    ),
    Row(
        "tokens-32000",
        "statistics and NC4 of a language head, N=8192 tokens, d=768, K=32000, two passes; "
        "baseline: the logits of the tokens alone",
        tokens,
        {"N": 8192, "d": 768, "K": 32_000, "ratio": 3.0},
        TOY | {"ratio": 3.0},
        goal=0.33,
        tolerance=1e-3,
    ),
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
