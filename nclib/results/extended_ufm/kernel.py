"""Stand-ins for what the kernel is about to offer under these names."""

import math
from types import SimpleNamespace

import torch

from nclib.ufm import scalar as old


def _shrink(s, beta, factors):
    if beta == 0:
        return 0.0, s
    return old.depth_scalar(s, beta, factors)


def _local(s, beta, factors):
    if beta > old.thresholds(s, factors)[1] * (1 + 1e-15):
        return math.nan
    u = 1.0
    for _ in range(60):
        scaled = beta * s ** (2 / factors - 2)
        slope = 1 - scaled * (1 - 2 / factors) * u ** (2 / factors - 2)
        if slope < 1e-9:
            break
        step = (u - 1 + scaled * u ** (2 / factors - 1)) / slope
        u = u - step
        if abs(step) < 1e-16:
            break
    return max(s * u, 0.0)


scalar = SimpleNamespace(shrink=_shrink, local=_local, thresholds=old.thresholds)


def orbit(d, r):
    return d * r - r * (r + 1) // 2


def balancedness(layers, decays, relu=False):
    features, *weights = layers
    incoming, found = decays[0] * features.mT @ features, []
    for j, (weight, lam) in enumerate(zip(weights, decays[1:], strict=True)):
        gap = lam * weight.mT @ weight - incoming
        gap = gap.diagonal(dim1=-2, dim2=-1) if relu and j else gap
        found.append(float(gap.abs().max()))
        incoming = lam * weight @ weight.mT
    return found


landscape = SimpleNamespace(orbit=orbit, balancedness=balancedness)


def pairs(points):
    edges = torch.combinations(torch.arange(points), 2)
    return torch.zeros(len(edges), points, dtype=torch.float64).scatter_(1, edges, 1.0)


from nclib.metrics import frames as metrics  # noqa: E402

geometry = SimpleNamespace(
    class_means=lambda features, labels: (metrics.class_means(features, labels), None),
    trace_ratio=metrics.trace_ratio,
)


def matrices(named):
    import pandas as pd

    return pd.DataFrame(
        {"name": name, "row": i, "column": j, "value": float(matrix[i][j])}
        for name, matrix in named.items()
        for i in range(len(matrix))
        for j in range(len(matrix[0]))
    )
