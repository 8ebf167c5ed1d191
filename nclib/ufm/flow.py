"""Gradient descent on unconstrained-features problems, many starts at once."""

from dataclasses import dataclass

import torch

from nclib.table import log_spaced


@dataclass(frozen=True)
class Path:
    """Recorded ``steps``, ``values`` (records, …batch) and ``points``, one mapping per record."""

    steps: list
    values: torch.Tensor
    points: list


def descend(problem, start, *, rate, steps, rates=None, momentum=0.0, record=60):
    """Gradient descent with fixed steps from coordinates ``start``, all batch entries at once.

    ``rates``: step sizes of single variables, such as ``{"features": n * rate}``.  Rows on spheres
    are put back after every step: this is Riemannian descent.  ``record``: how many log-spaced
    records, or the steps themselves.
    """
    record = log_spaced(steps, record) if isinstance(record, int) else sorted({*record, steps})
    rates = {name: (rates or {}).get(name, rate) for name in start}
    x = {name: tensor.detach().clone() for name, tensor in start.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in x.items()}
    taken, values, points = [], [], []
    for step in range(steps + 1):
        if step in record:
            with torch.no_grad():
                taken.append(step)
                points.append({n: t.clone() for n, t in problem.place(x).items()})
                values.append(problem(**x))
        if step < steps:
            slopes = problem.gradient(x)
            for name, slope in slopes.items():
                if momentum:
                    slope = velocity[name].mul_(momentum).add_(slope)
                x[name].sub_(slope, alpha=rates[name])
            for name in problem.sphere:
                x[name] = torch.nn.functional.normalize(x[name], dim=-1)
    return Path(taken, torch.stack(values), points)
