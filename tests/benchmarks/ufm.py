"""Rows: all minima of the unconstrained-features model from many starts."""

import numpy as np
import torch
from scipy.optimize import minimize

from nclib import losses
from nclib.results.multi_loss import experiments, theory
from nclib.ufm import solve
from tests.benchmarks.harness import Row, Task

LOSSES = {
    "ce": losses.get("ce"),
    "ls": losses.get("ls", alpha=0.1),
    "fl": losses.get("fl", gamma=3.0),
    "mse": losses.get("mse", tau=None, scale=15.0),
}
PRECISION = 1e-12  # of the value
GTOL = 1e-8  # the gradient at which scipy stops: its line search stalls further down
MEMORY = 4  # pairs of the batched L-BFGS: these problems gain nothing from more


def optima(K, n, d, starts):
    setting = {"K": K, "n": n, "d": d, "lambda_w": 5e-3, "lambda_h": 5e-3, "lambda_b": 5e-3}
    problems = {name: experiments.problem(loss, **setting) for name, loss in LOSSES.items()}
    known = {name: theory.optimum(loss, **setting).value for name, loss in LOSSES.items()}
    draw = torch.Generator().manual_seed(0)
    scales = torch.logspace(-1, 0, starts).tolist()
    drawn = {name: [p.start(draw, s) for s in scales] for name, p in problems.items()}

    def ours():
        found = {}
        for name, problem in problems.items():
            stacked = {k: torch.stack([s[k] for s in drawn[name]]) for k in drawn[name][0]}
            found[name] = solve.minimize_many(
                problem, stacked, gtol=GTOL / 2, memory=MEMORY
            ).values.tolist()
        return verdict(found)

    def baseline():
        return verdict({n: [plain_solve(p, s) for s in drawn[n]] for n, p in problems.items()})

    def verdict(found):
        gaps = {n: np.abs(np.array(v) - known[n]).max() for n, v in found.items()}
        worst = max(gaps.values())
        if not worst <= PRECISION:
            raise RuntimeError(f"a start ended {worst:.1e} from the optimum: {gaps}")
        return {f"value_{name}": float(np.mean(values)) for name, values in found.items()}

    return Task(ours, baseline, rate="double")


def plain_solve(problem, start):
    """One L-BFGS solve by scipy, gradients by autograd."""
    names, shapes = list(start), [v.shape for v in start.values()]
    sizes = [v.numel() for v in start.values()]

    def value_and_gradient(flat):
        x = torch.tensor(flat, requires_grad=True)
        parts = zip(names, torch.split(x, sizes), shapes, strict=True)
        value = problem(**{name: part.reshape(shape) for name, part, shape in parts})
        value.backward()
        return value.item(), x.grad.numpy()

    flat = torch.cat([v.flatten() for v in start.values()]).numpy()
    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 0.0, "gtol": GTOL}
    return minimize(value_and_gradient, flat, jac=True, method="L-BFGS-B", options=options).fun


ROWS = [
    Row(
        f"ufm-{K}-{d}",
        f"UFM optimum to 1e-12, 4 losses × 60 starts, K={K}, n={n}, d={d}; baseline: scipy, a loop",
        optima,
        {"K": K, "n": n, "d": d, "starts": 60},
        {"K": 4, "n": 5, "d": 6, "starts": 3},
        goal=10,
        tolerance=1e-10,
    )
    for K, n, d in ((4, 5, 6), (10, 5, 16))
]
