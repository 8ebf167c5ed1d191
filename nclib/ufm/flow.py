"""Gradient descent on unconstrained-features problems, many starts at once."""

from dataclasses import dataclass
from functools import partial
from math import cos, pi
from numbers import Integral

import torch

from nclib import checks
from nclib.table import log_spaced


@dataclass(frozen=True)
class Path:
    """Records of a descent: ``steps``, ``values`` (records, …batch), ``points`` and ``measured``,
    one mapping each per record (``measured`` is empty without a ``measure``)."""

    steps: list
    values: torch.Tensor
    points: list
    measured: list


def descend(
    problem,
    start,
    *,
    rate,
    steps,
    rates=None,
    momentum=0.0,
    optimizer="gd",
    cosine=False,
    record=60,
    measure=None,
):
    """Gradient descent from coordinates ``start``, all batch entries at once: a :class:`Path`.

    Args:
        problem: a :class:`~nclib.ufm.model.UFM`, or anything with ``place`` whose call is the value
            at named coordinates.
        start: coordinates; rows on spheres are put there first, and back after every step, which
            makes this Riemannian descent.
        rate: step size; ``rates``: those of single variables, such as ``{"features": n * rate}``.
        steps: how many.
        momentum: heavy ball, for ``"gd"``.
        optimizer: ``"gd"``, or ``"adam"`` (as in PyTorch).
        cosine: let the rate fall to zero along half a cosine.
        record: how many log-spaced records, or the steps themselves; the last step is always one.
        measure: ``measure(point) -> dict`` at each record.

    Raises :class:`~nclib.checks.InputError` for bad arguments, and where the values blow up.
    """
    steps, rate = checks.integer("steps", steps), checks.real("rate", rate, above=0)
    checks.choice("optimizer", optimizer, ("gd", "adam"))
    for name, own in (rates or {}).items():
        checks.real(f"rates[{name!r}]", own, above=0)
        checks.choice("rates", name, start)
    record = _records(record, steps)
    spheres = [name for name in getattr(problem, "sphere", ()) if name in start]
    x = {name: tensor.detach().clone() for name, tensor in start.items()}
    _retract(x, spheres)
    rates = {name: (rates or {}).get(name, rate) for name in x}
    move = (_adam if optimizer == "adam" else _heavy_ball)(x, rates, momentum)
    gradient = getattr(problem, "gradient", None) or partial(slopes, problem)
    path = Path([], [], [], [])
    for step in range(steps + 1):
        if step in record:
            _note(path, problem, step, x, measure)
        if step < steps:
            move(gradient(x), (1 + cos(pi * step / steps)) / 2 if cosine else 1.0)
            _retract(x, spheres)
    values = torch.stack(path.values)
    if not bool(values.isfinite().all()):
        raise checks.InputError(f"descent diverged at rate = {rate}; use a smaller one")
    return Path(path.steps, values, path.points, path.measured)


def _records(record, steps):
    if isinstance(record, Integral):
        return set(log_spaced(steps, checks.integer("record", record)))
    record = {checks.integer("record", step, 0) for step in record} | {steps}
    if max(record) > steps:
        raise checks.InputError(f"record must be steps up to {steps}, got {max(record)}")
    return record


def _retract(x, spheres):
    for name in spheres:
        x[name].copy_(torch.nn.functional.normalize(x[name], dim=-1))


@torch.no_grad()
def _note(path, problem, step, x, measure):
    point = {name: tensor.clone() for name, tensor in problem.place(x).items()}
    path.steps.append(step)
    path.values.append(problem(**x))
    path.points.append(point)
    if measure:
        path.measured.append(measure(point))


def slopes(problem, coordinates):
    """Gradients of the values of ``problem`` at ``coordinates``, a mapping of the same shapes."""
    x = {name: tensor.detach().requires_grad_() for name, tensor in coordinates.items()}
    return dict(zip(x, torch.autograd.grad(problem(**x).sum(), list(x.values())), strict=True))


def _heavy_ball(x, rates, momentum):
    """A step in place: ``move(slopes, share of the rates)``."""
    momentum = checks.real("momentum", momentum, at_least=0, below=1)
    velocity = {name: torch.zeros_like(tensor) for name, tensor in x.items()}

    def move(slopes, share):
        for name, slope in slopes.items():
            if momentum:
                slope = velocity[name].mul_(momentum).add_(slope)
            x[name].sub_(slope, alpha=share * rates[name])

    return move


def _adam(x, rates, momentum):
    if momentum:
        raise checks.InputError("Adam has a momentum of its own: momentum is for optimizer='gd'")
    groups = [{"params": [tensor], "lr": rates[name]} for name, tensor in x.items()]
    stepper = torch.optim.Adam(groups)

    def move(slopes, share):
        for group, (name, tensor) in zip(stepper.param_groups, x.items(), strict=True):
            tensor.grad, group["lr"] = slopes[name], share * rates[name]
        stepper.step()

    return move
