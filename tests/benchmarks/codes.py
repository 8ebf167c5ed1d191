"""Rows: the certified one-vs-rest margin of a classifier with many unit rows."""

import numpy as np
import torch
from scipy.optimize import nnls

from nclib.metrics import margins
from nclib.results.large_class import codes
from nclib.results.large_class import search as softmax_code_solver
from tests.benchmarks.harness import Row, Task


def certified(K, d, sample, gold):
    """``sample``: so many classes are solved by the baseline, its time is multiplied up."""
    weight = (
        codes.gold_code(K, d)
        if gold
        else softmax_code_solver.search(K, d, starts=1, steps=300, energies=("pair",), keep=1)[0]
    )
    weight = torch.nn.functional.normalize(weight, dim=1)
    classes = torch.randperm(K, generator=torch.Generator().manual_seed(0))[:sample].tolist()

    def ours():
        found = margins.margin(weight)
        if not found.upper - found.lower <= 1e-9:
            raise RuntimeError(f"not certified: {found}")
        return {"margin": found.value}

    def also():
        bracket = margins.hull_projections(weight, classes=classes).distance.tolist()
        return {f"class {k}": value for k, value in zip(classes, bracket, strict=True)}

    def baseline():
        rows = weight.numpy()
        found = {f"class {k}": plain_distance(rows, k) for k in classes}
        return found | ({"margin": min(found.values())} if sample == K else {})

    floor = {"bytes": weight.numel() * 8, "flops": 4 * K * K * d, "rate": "double"}
    return Task(ours, baseline, scale=K / sample, also=also, **floor)


def plain_distance(rows, k):
    """Distance of row k to the convex hull of all others, a non-negative least-squares problem.

    scipy's solver stops up to 2e-4 above the distance for some rows of large codes, unnoticed.
    """
    away = rows[k] - np.delete(rows, k, 0)
    system = np.vstack([away.T, np.ones(len(away))])
    x, _ = nnls(system, np.append(np.zeros(rows.shape[1]), 1.0))
    return float(np.linalg.norm(x @ away) / x.sum())


ROWS = [
    Row(
        f"codes-{K}-{d}",
        f"certified margin of a code, K={K}, d={d}; baseline: nnls for each class{note}",
        certified,
        {"K": K, "d": d, "sample": sample, "gold": gold},
        {"K": 12, "d": 4, "sample": 12, "gold": False},
        goal=1,
        repeats=2,
        tolerance=1e-6 if K < 1000 else 1e-3,  # what the baseline reaches
    )
    for K, d, sample, gold, note in (
        (100, 10, 100, False, ""),
        (1000, 64, 20, True, ", extrapolated from 20"),
        (10_000, 512, 1, True, ", extrapolated from 1"),
    )
]
