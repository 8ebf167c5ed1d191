"""How cost grows: time and memory against the number of samples, dimensions, classes, nets."""

import numpy as np
import pandas as pd

from nclib.metrics import ClassStatistics, nc_metrics
from tests.benchmarks import harness, metrics, nets

BASE = {"N": 15_000, "d": 256, "K": 10}
SWEEPS = {
    "metrics, N": [7_500, 15_000, 30_000, 60_000, 120_000],
    "metrics, d": [128, 256, 512, 1024, 2048],
    "metrics, K": [10, 30, 100, 300],
    "stream, d": [128, 256, 512, 1024, 2048],
    "grid, cells": [4, 8, 16, 32],
}
TOY = {"metrics, N": [500, 1000], "grid, cells": [4, 8]}


def point(sweep, x):
    """Time and extra memory at one point of a sweep."""
    kind, axis = sweep.split(", ")
    if kind == "grid":
        task = nets.grid("mlp", "together", N=300, size=8, epochs=5, seeds=x // 4)
        function = task.ours
    else:
        sizes = BASE | {axis: x}
        inputs, labels, weight = metrics.features(**sizes, ratio=0.1)
        d, K = sizes["d"], sizes["K"]
        if kind == "stream":
            function = lambda: ClassStatistics(K, d).update(inputs, labels).metrics(weight)
        else:
            function = lambda: nc_metrics(inputs, labels, weight)
    with harness.Memory() as memory:
        function()
    seconds = min(harness.best_time(function, budget=1.0))
    return {"sweep": sweep, "x": x, "seconds": seconds, "mb": memory.extra}


def run(sweeps=None):
    """Tidy table: ``sweep, x, seconds, mb``."""
    parts = [harness.apart({"sweep": s, "values": v}) for s, v in (sweeps or SWEEPS).items()]
    return pd.DataFrame([point for part in parts for point in part])


def slopes(table):
    """Exponent of each sweep: the slope of log time against log size."""
    return {
        sweep: float(np.polyfit(np.log(part["x"]), np.log(part["seconds"]), 1)[0])
        for sweep, part in table.groupby("sweep", sort=False)
    }
