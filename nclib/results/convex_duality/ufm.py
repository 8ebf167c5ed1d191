r"""Training problems whose optimum result 6 knows in closed form, ready for L-BFGS, Adam and SGD.

Objective :math:`\tfrac12\|f(X)-Y\|_F^2+\tfrac\beta2\sum\|\text{weights}\|^2` (no 1/n, biases free):
:class:`Network` is a plain deep linear or ReLU network, :class:`BatchNormNetwork` a BN-ReLU-linear
head on given features.  Both turn named tensors into a cost; :func:`best_of` and :func:`descend`
train either.  Weights have torch layout (out, in).
"""

import math
from dataclasses import dataclass

import pandas as pd
import torch

from nclib import checks
from nclib.ufm import solve

ACTIVATIONS = ("relu", "linear")
BIASES = ("none", "last", "all")
OPTIMIZERS = ("adam", "sgd", "lbfgs")


@dataclass(frozen=True)
class Network:
    """``len(widths) + 1`` layers on ``inputs`` (n, d) with ``targets`` (n, K), decay ``beta``.

    ``bias``: ``"none"``; ``"last"`` = last hidden layer and output; ``"all"`` = every hidden layer
    and output.  Biases are not decayed.  Variables are called ``weight1``, ``bias1``, ...; the
    output bias has the number of the last layer.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    beta: float
    widths: tuple
    activation: str = "relu"
    bias: str = "none"

    def __post_init__(self):
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.choice("bias", self.bias, BIASES)
        checks.real("beta", self.beta, above=0)
        inputs = checks.matrix("inputs", _columns(self.inputs), dtype=torch.float64)
        targets = _columns(self.targets)
        targets = checks.matrix("targets", targets, rows=len(inputs), dtype=torch.float64)
        widths = tuple(checks.integer("widths", width) for width in self.widths)
        if not widths:
            raise checks.InputError("widths is empty: give the width of at least one hidden layer")
        for name, value in (("inputs", inputs), ("targets", targets), ("widths", widths)):
            object.__setattr__(self, name, value)

    @property
    def depth(self):
        """Number L of weight matrices."""
        return len(self.widths) + 1

    def layers(self, variables):
        """The weight matrices, first layer first."""
        return [variables[f"weight{number}"] for number in range(1, self.depth + 1)]

    def hidden(self, variables, inputs=None):
        """Last hidden features (n, m) on ``inputs``, by default the training inputs."""
        x = self.inputs if inputs is None else _columns(inputs).to(self.inputs)
        for number, weight in enumerate(self.layers(variables)[:-1], start=1):
            x = x @ weight.mT + variables.get(f"bias{number}", 0.0)
            x = torch.relu(x) if self.activation == "relu" else x
        return x

    def outputs(self, variables, inputs=None):
        """Outputs (n, K)."""
        last = self.depth
        hidden = self.hidden(variables, inputs)
        return hidden @ variables[f"weight{last}"].mT + variables.get(f"bias{last}", 0.0)

    def objective(self, **variables):
        """The cost, a scalar tensor."""
        penalty = sum(weight.square().sum() for weight in self.layers(variables))
        miss = (self.outputs(variables) - self.targets).square().sum()
        return miss / 2 + self.beta / 2 * penalty

    def start(self, generator, scale=1.0):
        """Random tensors: Gaussian weights, norm about ``scale`` per neuron, spread-out biases."""
        sizes = [self.inputs.shape[1], *self.widths, self.targets.shape[1]]
        variables = {}
        for number, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:], strict=False), start=1):
            gaussian = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64)
            weight = scale / math.sqrt(fan_in) * gaussian
            variables[f"weight{number}"] = weight
            hidden = number < self.depth
            if self.bias == "all" or (self.bias == "last" and number >= self.depth - 1):
                uniform = torch.rand(fan_out, generator=generator, dtype=torch.float64) * 2 - 1
                reach = float(self.inputs.abs().max()) if number == 1 else scale
                variables[f"bias{number}"] = uniform * reach * weight.norm(dim=1) * hidden
        return {name: tensor.to(self.inputs.device) for name, tensor in variables.items()}


@dataclass(frozen=True)
class BatchNormNetwork:
    """A full-batch BN-ReLU-linear head of ``width`` neurons on ``features`` (n, p) (claim 6.C14).

    Paper's units: each neuron outputs ``gamma (z - mean)/||z - mean|| + alpha/sqrt(n)``; gamma,
    alpha and the last layer are decayed, the scale-invariant hidden weight is not.
    """

    features: torch.Tensor
    targets: torch.Tensor
    beta: float
    width: int

    def __post_init__(self):
        checks.real("beta", self.beta, above=0)
        checks.integer("width", self.width)
        features = checks.matrix("features", self.features, dtype=torch.float64)
        targets = _columns(self.targets)
        targets = checks.matrix("targets", targets, rows=len(features), dtype=torch.float64)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "targets", targets)

    def hidden(self, variables):
        """Features (n, width) after BN and ReLU."""
        z = self.features @ variables["hidden_weight"].mT
        centred = z - z.mean(0)
        normalised = centred / torch.linalg.vector_norm(centred, dim=0)
        shifted = variables["gamma"] * normalised + variables["alpha"] / math.sqrt(len(z))
        return torch.relu(shifted)

    def outputs(self, variables):
        """Outputs (n, K)."""
        return self.hidden(variables) @ variables["weight"].mT

    def objective(self, **variables):
        """The cost, a scalar tensor."""
        penalty = sum(variables[name].square().sum() for name in ("gamma", "alpha", "weight"))
        miss = (self.outputs(variables) - self.targets).square().sum()
        return miss / 2 + self.beta / 2 * penalty

    def start(self, generator, scale=1.0):
        """Random tensors; gamma and alpha of size ``scale``."""
        n, K = self.targets.shape
        normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        variables = {
            "hidden_weight": normal(self.width, self.features.shape[1]),
            "gamma": scale * (1 + 0.1 * normal(self.width)),
            "alpha": scale * (0.5 + 0.1 * normal(self.width)),
            "weight": scale * normal(K, self.width) / math.sqrt(self.width),
        }
        return {name: tensor.to(self.features.device) for name, tensor in variables.items()}


@dataclass(frozen=True)
class BestOf:
    """The best of several trainings, and the ``values`` that all of them reached."""

    best: solve.Solution
    values: tuple

    def hits(self, value, tolerance=1e-6):
        """Number of trainings that ended within ``tolerance`` (relative above 1) of ``value``."""
        return sum(abs(v - value) <= tolerance * max(1, abs(value)) for v in self.values)

    @property
    def converged(self):
        """Whether two trainings agree on the lowest value: knows no closed form."""
        return self.hits(self.best.value) >= 2


def best_of(problem, starts, *, seed=0, scale=1.0, pool=8, **options):
    """Train ``problem`` by L-BFGS from up to ``starts`` of ``starts * pool`` random points.

    Arguments as for :func:`lowest`; ``scale``: size of the random points.
    """
    generator = torch.Generator().manual_seed(seed)
    count = checks.integer("starts", starts) * checks.integer("pool", pool)
    points = [problem.start(generator, scale) for _ in range(count)]
    return lowest(problem.objective, points, starts, **options)


def lowest(objective, points, starts, *, screening=80, **options):
    """The lowest minimum that L-BFGS finds from ``points`` (dicts of tensors): a :class:`BestOf`.

    If there are more than ``starts`` points, all make ``screening`` steps together and the lowest
    go on: whoever is caught by a bad minimum shows it early.  These are trained one by one
    (``options`` go to :func:`nclib.ufm.solve.minimize`) until two agree on the lowest value.
    """
    if len(points) > starts:
        stacked = {name: torch.stack([point[name] for point in points]) for name in points[0]}
        rough = solve.minimize_many(objective, stacked, max_iter=screening)
        order = rough.values.argsort()[:starts].tolist()
        points = [{name: stack[i] for name, stack in rough.variables.items()} for i in order]
    best, values = None, ()
    for point in points:
        run = solve.minimize(objective, point, **options)
        best, values = min(best or run, run, key=lambda run: run.value), (*values, run.value)
        if BestOf(best, values).converged:
            break
    return BestOf(best, values)


def descend(
    problem,
    start,
    *,
    optimizer="adam",
    lr=1e-2,
    momentum=0.9,
    steps=2000,
    cosine=True,
    measure=None,
    rows=100,
):
    """Full-batch Adam or SGD on ``problem`` from ``start``, by default with a cosine to rate zero.

    ``optimizer="lbfgs"`` is :func:`nclib.ufm.solve.minimize`, ``steps`` its function evaluations.
    Returns ``(variables, trace)``; ``trace`` has about ``rows`` rows ``step``, ``objective`` and
    whatever the dict ``measure(variables)`` holds, at logarithmically spaced steps.
    """
    checks.choice("optimizer", optimizer, OPTIMIZERS)
    steps = checks.integer("steps", steps)
    logged = {round(steps ** (i / (rows - 1))) for i in range(rows)} | {0}
    trace = []

    def log(step, point, cost):
        if step in logged:
            frozen = {name: tensor.detach() for name, tensor in point.items()}
            extra = measure(frozen) if measure else {}
            trace.append({"step": step, "objective": float(cost.detach())} | extra)

    if optimizer == "lbfgs":
        return _descend_lbfgs(problem, start, steps, log), pd.DataFrame(trace)
    variables = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    if optimizer == "adam":
        stepper = torch.optim.Adam(variables.values(), lr=lr)
    else:
        stepper = torch.optim.SGD(variables.values(), lr=lr, momentum=momentum)
    for step in range(steps + 1):
        if cosine:
            rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
            stepper.param_groups[0]["lr"] = rate
        cost = problem.objective(**variables)
        log(step, variables, cost)
        if step < steps:
            stepper.zero_grad()
            cost.backward()
            stepper.step()
    return {name: tensor.detach() for name, tensor in variables.items()}, pd.DataFrame(trace)


def _descend_lbfgs(problem, start, steps, log):
    """L-BFGS with every function evaluation that lowers the cost reported to ``log``."""
    evaluations, lowest = 0, math.inf

    def objective(**variables):
        nonlocal evaluations, lowest
        cost = problem.objective(**variables)
        if float(cost.detach()) <= lowest:
            lowest = float(cost.detach())
            log(evaluations, variables, cost)
        evaluations += 1
        return cost

    return solve.minimize(objective, start, max_iter=steps, restarts=0).variables


def _columns(values):
    values = checks.tensor("data", values)
    return values[:, None] if values.ndim == 1 else values
