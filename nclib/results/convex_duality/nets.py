r"""The networks of result 6: problems whose optimum is known in closed form, and heads on images.

:class:`Network`, :class:`Interpolation` and :class:`BatchNormNetwork` are full-batch problems in
the paper's units, :math:`\tfrac12\|f(X)-Y\|_F^2+\tfrac\beta2\sum\|\text{weights}\|^2` (no 1/n,
biases free): called with named float64 tensors they give the cost, and :func:`lowest` minimises it.
Weights have torch layout (out, in) and are called ``hidden_1``, …, ``weight``, first layer first.

:class:`BatchNormNet` is a BN-ReLU-linear head on any backbone, to be trained in PyTorch's units.
"""

import contextlib
import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn

from nclib import checks
from nclib.deep import nets
from nclib.metrics import certified_gap
from nclib.ufm import solve

ACTIVATIONS = ("relu", "linear")
BIASES = ("none", "last", "all")
ARCHITECTURES = ("mlp", "resnet18")


def half_squares(outputs, targets):
    """``1/2 ||outputs - targets||^2``, summed over everything."""
    return (outputs - targets).square().sum() / 2


@dataclass(frozen=True, eq=False)
class Network:
    """``len(widths) + 1`` layers on ``inputs`` (n, d) with ``targets`` (n, K), decay ``beta``.

    ``bias``: ``"none"``; ``"last"`` = last hidden layer and output; ``"all"`` = every hidden layer
    and output: ``bias_1``, …, ``bias``, not decayed.  ``loss(outputs, targets)``: a sum over
    samples.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    beta: float
    widths: tuple
    activation: str = "relu"
    bias: str = "none"
    loss: object = half_squares

    def __post_init__(self):
        checks.choice("activation", self.activation, ACTIVATIONS)
        checks.choice("bias", self.bias, BIASES)
        checks.real("beta", self.beta, above=0)
        inputs = checks.matrix("inputs", _columns(self.inputs), dtype=torch.float64)
        targets = _columns(self.targets)
        targets = checks.matrix("targets", targets, rows=len(inputs), dtype=torch.float64)
        widths = tuple(checks.integer("widths", width) for width in self.widths)
        checks.require(widths, "widths is empty: give the width of at least one hidden layer")
        names = [*(f"hidden_{j}" for j in range(1, len(widths) + 1)), "weight"]
        biases = [*(f"bias_{j}" for j in range(1, len(widths) + 1)), "bias"]
        self.__dict__.update(inputs=inputs, targets=targets, widths=widths, names=names)
        self.__dict__.update(biases=dict(zip(names, biases, strict=True)))

    def layers(self, point):
        """The weight matrices, first layer first."""
        return [point[name] for name in self.names]

    def hidden(self, point, inputs=None):
        """Last hidden features (n, m) on ``inputs``, by default the training inputs."""
        x = self.inputs if inputs is None else _columns(inputs).to(self.inputs)
        for name in self.names[:-1]:
            x = x @ point[name].mT + point.get(self.biases[name], 0.0)
            x = torch.relu(x) if self.activation == "relu" else x
        return x

    def outputs(self, point, inputs=None):
        """Outputs (n, K)."""
        return self.hidden(point, inputs) @ point["weight"].mT + point.get("bias", 0.0)

    def __call__(self, **point):
        return self.cost(point, self.beta)

    def cost(self, point, beta):
        """The objective at another decay ``beta``."""
        penalty = sum(weight.square().sum() for weight in self.layers(point))
        return self.loss(self.outputs(point), self.targets) + beta / 2 * penalty

    def place(self, point):
        """Coordinates are the point itself (for :func:`nclib.ufm.flow.descend`)."""
        return dict(point)

    def start(self, generator, scale=1.0):
        """Random tensors: Gaussian weights, norm about ``scale`` per neuron, spread-out biases."""
        sizes = [self.inputs.shape[1], *self.widths, self.targets.shape[1]]
        biased = {"none": [], "last": self.names[-2:], "all": self.names}[self.bias]
        point = {}
        for name, (fan_in, fan_out) in zip(self.names, itertools.pairwise(sizes), strict=True):
            gaussian = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64)
            point[name] = scale / math.sqrt(fan_in) * gaussian
            if name in biased:
                uniform = torch.rand(fan_out, generator=generator, dtype=torch.float64) * 2 - 1
                reach = float(self.inputs.abs().max()) if name == "hidden_1" else scale
                reach = 0.0 if name == "weight" else reach
                point[self.biases[name]] = uniform * reach * point[name].norm(dim=1)
        return {name: tensor.to(self.inputs.device) for name, tensor in point.items()}


@dataclass(frozen=True, eq=False)
class Sweep:
    """A :class:`Network` at several decays ``betas`` (B,) at once, for
    :func:`nclib.ufm.flow.descend`: coordinates have a leading axis B."""

    network: Network
    betas: torch.Tensor

    def place(self, points):
        """Coordinates are the points themselves."""
        return dict(points)

    def __call__(self, **points):
        return torch.vmap(self.network.cost)(points, self.betas)


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Minimum-norm interpolation by a deep linear net, with the last layer eliminated.

    ``norm=None`` pays half the squared norm of all layers (6.C6); a number is the fixed-norm
    variant (6.C8): layers 1..L-2 are confined to that Frobenius norm and only the last two are
    paid.  ``targets`` (n, n) of full rank keep the elimination well conditioned.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    depth: int
    norm: float | None = None

    def __post_init__(self):
        X = checks.matrix("inputs", self.inputs, dtype=torch.float64)
        Y = checks.matrix("targets", self.targets, rows=len(X), columns=len(X), dtype=torch.float64)
        depth = checks.integer("depth", self.depth, 2)
        norm = self.norm if self.norm is None else checks.real("norm", self.norm, above=0)
        checks.require(len(X) <= X.shape[1], f"{len(X)} samples need as many dimensions to fit")
        self.__dict__.update(inputs=X, targets=Y, depth=depth, norm=norm)

    def layers(self, point):
        """The free layers, then the minimum-norm last layer that interpolates."""
        layers = [point[f"hidden_{j}"] for j in range(1, self.depth)]
        if self.norm is not None:
            layers = [self.norm * w / w.norm() for w in layers[:-1]] + layers[-1:]
        hidden = self.inputs
        for layer in layers:
            hidden = hidden @ layer.mT
        last = hidden.mT @ torch.linalg.solve(hidden @ hidden.mT, self.targets)
        return [*layers, last.mT]

    def __call__(self, **point):
        layers = self.layers(point)
        paid = layers if self.norm is None else layers[-2:]
        return sum(layer.square().sum() for layer in paid) / 2

    def start(self, generator, scale=1.0):
        """Gaussian layers."""
        n, d = self.inputs.shape
        sizes, point = [d, *[n] * (self.depth - 1)], {}
        for j, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
            draw = torch.randn(after, before, generator=generator, dtype=torch.float64)
            point[f"hidden_{j}"] = scale * draw / before**0.5
        return point


@dataclass(frozen=True, eq=False)
class BatchNormNetwork:
    """A full-batch BN-ReLU-linear head of ``width`` neurons on ``features`` (n, p) (claim 6.C14).

    Paper's units: each neuron outputs ``gamma (z - mean)/||z - mean|| + alpha/sqrt(n)``; gamma,
    alpha and the last layer are decayed, the scale-invariant ``hidden_weight`` is not.
    """

    features: torch.Tensor
    targets: torch.Tensor
    beta: float
    width: int

    def __post_init__(self):
        A = checks.matrix("features", self.features, dtype=torch.float64)
        Y = checks.matrix("targets", self.targets, rows=len(A), dtype=torch.float64)
        checks.real("beta", self.beta, above=0)
        checks.integer("width", self.width)
        self.__dict__.update(features=A, targets=Y)

    def hidden(self, point):
        """Features (n, width) after BN and ReLU."""
        z = self.features @ point["hidden_weight"].mT
        centred = z - z.mean(0)
        normalised = centred / torch.linalg.vector_norm(centred, dim=0)
        return torch.relu(point["gamma"] * normalised + point["alpha"] / math.sqrt(len(z)))

    def outputs(self, point):
        """Outputs (n, K)."""
        return self.hidden(point) @ point["weight"].mT

    def __call__(self, **point):
        penalty = sum(point[name].square().sum() for name in ("gamma", "alpha", "weight"))
        return half_squares(self.outputs(point), self.targets) + self.beta / 2 * penalty

    def start(self, generator, scale=1.0):
        """Random tensors; gamma and alpha of size ``scale``."""
        K, (_, p), width = self.targets.shape[1], self.features.shape, self.width
        shapes = {"hidden_weight": (width, p), "gamma": (width,), "alpha": (width,)}
        point = {
            name: torch.randn(*shape, generator=generator, dtype=torch.float64)
            for name, shape in (shapes | {"weight": (K, width)}).items()
        }
        point["gamma"] = scale * (1 + 0.1 * point["gamma"])
        point["alpha"] = scale * (0.5 + 0.1 * point["alpha"])
        point["weight"] = scale * point["weight"] / math.sqrt(width)
        return point


@dataclass(frozen=True)
class Found:
    """The lowest of several trainings.  ``converged``: whether two of them agree on its value,
    which knows no closed form."""

    point: dict
    value: float
    gradient_norm: float
    converged: bool


def lowest(problem, starts, *, seed=0, scale=1.0, pool=8, **options):
    """The lowest minimum that L-BFGS finds from random points of size ``scale``: a :class:`Found`.

    ``starts * pool`` points make 80 steps together and the lowest ``starts`` go on: whoever is
    caught by a bad minimum (dead neurons, a layer at zero) shows it early.  These are trained one
    by one, since kinks stop a batch early (``options`` go to :func:`nclib.ufm.solve.minimize`),
    until two agree on the lowest value.  Many more starts than :func:`nclib.ufm.solve.best` for
    the same time, and a verdict of their own on whether they were enough.
    """
    generator = torch.Generator().manual_seed(seed)
    count = checks.integer("starts", starts) * checks.integer("pool", pool)
    points = [problem.start(generator, scale) for _ in range(count)]
    if pool > 1:
        rough = solve.minimize_many(problem, solve.stacked(points), max_iter=80)
        order = rough.values.argsort()[:starts].tolist()
        points = [{name: stack[i] for name, stack in rough.variables.items()} for i in order]
    best, values = None, []
    for point in points:
        run = solve.minimize(problem, point, **options)
        best = min(best or run, run, key=lambda run: run.value)
        values.append(run.value)
        agree = sum(abs(v - best.value) <= 1e-6 * max(1, abs(best.value)) for v in values) >= 2
        if agree:
            break
    return Found(best.variables, best.value, best.gradient_norm, agree)


# --- a head on images ----------------------------------------------------------------------------


class BatchNormNet(nets.Classifier):
    """``backbone -> Linear -> BatchNorm1d -> ReLU -> Linear`` without output bias.

    ``feature_dim``: outputs of the backbone; ``width``: neurons of the head, at least K for the
    bound to be reachable.
    """

    def __init__(self, backbone, feature_dim, width, num_classes):
        hidden = nn.Linear(feature_dim, width, bias=False)
        head = nn.Linear(width, num_classes, bias=False)
        super().__init__(nn.Sequential(backbone, hidden, nn.BatchNorm1d(width), nn.ReLU()), head)

    @property
    def norm(self):
        """The BatchNorm1d layer."""
        return self.backbone[2]

    def decayed(self):
        """The parameters of the penalty: BN weight, BN bias, last layer."""
        return self.norm.weight, self.norm.bias, self.head.weight

    def certificate(self, data, weight_decay):
        """:class:`~nclib.metrics.Certificate` on ``data`` as one batch, in training mode."""
        with batch_statistics(self):
            return certified_gap(
                self.backbone[:2](data.inputs),
                data.labels,
                self.head.weight,
                bn_weight=self.norm.weight,
                bn_bias=self.norm.bias,
                weight_decay=weight_decay,
                eps=self.norm.eps,
            )


@contextlib.contextmanager
def batch_statistics(net):
    """Training mode without gradients; running statistics and mode are restored afterwards."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    was_training = net.training
    net.train()
    try:
        with torch.no_grad():
            yield net
    finally:
        for name, buffer in net.named_buffers():
            buffer.copy_(buffers[name])
        net.train(was_training)


def build(architecture, data, *, hidden, width, normalise, seed=0):
    """A :class:`BatchNormNet` for ``data``.

    ``"mlp"``: a Linear-BatchNorm-ReLU layer per entry of ``hidden`` (``normalise=False``: without
    BatchNorm); ``"resnet18"``: torchvision's, for small images.  The initial BN weight is small,
    because 1 means a huge penalty at the decays of interest.
    """
    checks.choice("architecture", architecture, ARCHITECTURES)

    def make():
        if architecture == "resnet18":
            trunk = nets.resnet(18, data.num_classes, in_channels=data.inputs.shape[1])
            backbone, dimension = trunk.backbone, trunk.head.in_features
        else:
            sizes = [data.inputs[0].numel(), *hidden]
            layers = [nn.Flatten()]
            for before, after in itertools.pairwise(sizes):
                norm = [nn.BatchNorm1d(after)] if normalise else []
                layers += [nn.Linear(before, after), *norm, nn.ReLU()]
            backbone, dimension = nn.Sequential(*layers), sizes[-1]
        net = BatchNormNet(backbone, dimension, width, data.num_classes)
        nn.init.constant_(net.norm.weight, 0.3)
        return net

    return nets.seeded(seed, make).to(data.inputs.device)


def _columns(values):
    values = checks.tensor("data", values)
    return values[:, None] if values.ndim == 1 else values
