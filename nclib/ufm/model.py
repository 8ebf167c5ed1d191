# ruff: noqa: E501
r"""One description of every unconstrained-features problem of the six results.

    f = Σ_r p_r loss(z_r, y_r) + ½ λ_H Σ_r n_r ‖h_r‖² + ½ Σ_j λ_j ‖W_j‖² (+ ½ λ_b ‖b‖²),
    z = scale · W_M σ(… W_1 h) + b,     p_r = n_r / N,     σ = identity or ReLU.

A *row* r stands for n_r samples that share a feature (n_r = 1: one sample).  A *point* is a mapping
``features (…, R, d)``, ``hidden_1 (…, d_1, d)``, …, ``weight (…, K, d_{M-1})``, ``bias (…, K)``:
float64 tensors with the same leading batch axes, on any device.  Solvers move *coordinates*, free
tensors of the same shapes that ``place`` turns into a point: √n_r h_r for counts, x/‖x‖ for rows on
a sphere, x² for features without a negative entry.
"""

from dataclasses import KW_ONLY, dataclass, field

import torch
import torch.nn.functional as F

from nclib import checks
from nclib.ufm import flow


@dataclass(frozen=True, eq=False)
class UFM:
    """One problem; callable: f at coordinates, one number per leading index.

    Args:
        loss: of :mod:`nclib.losses`.
        targets: labels ``(R,)``, or label sets ``(R, K)`` for :class:`~nclib.losses.PickAllLabels`.
        widths: d, d_1, …, d_{M-1}; one integer means all of them.
        decays: λ_H, λ_1, …, λ_M, not negative; their number fixes the depth M.
        K: number of classes, for labels; default the largest label + 1.
        counts: samples n_r >= 1 of each row ``(R,)``; default 1.
        bias: ``None`` (none), 0 (free), its decay λ_b, or a fixed vector ``(K,)``.
        scale: factor of the logits (an inverse temperature), positive.
        sphere: variables with unit rows, such as ``("features", "weight")``.
        relu: ReLU after every hidden layer.
        nonnegative: features without a negative entry.
        log: minimise log f (losses that underflow, see ``log_per_sample``; no decays).
        fixed: variables that do not move, such as ``{"weight": W}``.

    Raises :class:`~nclib.checks.InputError` for settings that do not fit together.
    """

    loss: object
    targets: torch.Tensor
    widths: int | tuple
    decays: tuple
    _: KW_ONLY
    K: int | None = None
    counts: torch.Tensor | None = None
    bias: object = None
    scale: float = 1.0
    sphere: tuple = ()
    relu: bool = False
    nonnegative: bool = False
    log: bool = False
    fixed: dict = field(default_factory=dict)

    def __post_init__(self):
        targets, K = _targets(self.targets, self.K, self.loss)
        decays = tuple(
            checks.real(f"decays[{i}]", lam, at_least=0)
            for i, lam in enumerate(_listed("decays", self.decays))
        )
        if len(decays) < 2:
            raise checks.InputError(f"decays must be λ_H, λ_1, …, λ_M, got {decays}")
        widths = _widths(self.widths, len(decays) - 1)
        layers = [*(f"hidden_{j}" for j in range(1, len(decays) - 1)), "weight"]
        sizes = [(len(targets), widths[0]), *zip([*widths[1:], K], widths, strict=True)]
        shapes = dict(zip(["features", *layers], sizes, strict=True))
        lambdas = dict(zip(shapes, decays, strict=True))
        counts = torch.ones(len(targets)) if self.counts is None else self.counts
        counts = checks.vector("counts", counts, len(targets), dtype=torch.float64)
        if not bool((counts >= 1).all()):
            raise checks.InputError(f"counts must be at least 1, got {counts.min():g}")
        sphere = (self.sphere,) if isinstance(self.sphere, str) else tuple(self.sphere)
        for name in sphere:
            checks.choice("sphere", name, shapes)
        fixed = dict(self.fixed)
        if self.bias is not None:
            shapes["bias"] = (K,)
            if hasattr(self.bias, "__len__"):
                fixed["bias"] = self.bias
            else:
                lambdas["bias"] = checks.real("bias", self.bias, at_least=0)
        if self.log and (any(lambdas.values()) or not hasattr(self.loss, "log_per_sample")):
            raise checks.InputError(
                "log=True needs a loss with log_per_sample (such as losses.ExactCrossEntropy) and "
                f"decays 0, got {self.loss} and {decays}"
            )
        fixed = {name: _fixed(name, value, shapes) for name, value in fixed.items()}
        for name in fixed.keys() & set(sphere):
            unit = (fixed[name].norm(dim=1) - 1).abs().max() < 1e-9
            checks.require(unit, f"fixed {name} is on the sphere: give rows of norm 1")
        signs = not self.nonnegative or "features" not in fixed or fixed["features"].min() >= 0
        checks.require(signs, "fixed features have negative entries; this problem has none")
        checks.require(len(fixed) < len(shapes), "everything is fixed: nothing is left to optimise")
        self.__dict__.update(
            targets=targets, K=K, widths=widths, decays=decays, counts=counts, sphere=sphere,
            scale=checks.real("scale", self.scale, above=0), layers=layers,
            shapes={name: shape for name, shape in shapes.items() if name not in fixed},
            # Logits are (…, K, R) inside: softmax and its gradient run over long contiguous rows.
            _targets=targets if targets.ndim == 1 else targets.T.contiguous(),
            _shares=counts / counts.sum(), _fixed=fixed, _names=shapes.keys(),
            _roots=None if bool((counts == 1).all()) else counts.sqrt()[:, None],
            _decays={name: lam for name, lam in lambdas.items() if lam},
        )  # fmt: skip

    @classmethod
    def classes(cls, counts, loss, *, widths, decays, shared=False, **options):
        """Single labels: ``counts[k]`` samples of class k, one row each, or one ``shared`` row.

        ``options``: the other arguments of :class:`UFM`.
        """
        counts = [
            checks.integer(f"counts[{k}]", n) for k, n in enumerate(_listed("counts", counts))
        ]
        labels, K = torch.arange(len(counts)), len(counts)
        if shared:
            return cls(loss, labels, widths, decays, K=K, counts=torch.tensor(counts), **options)
        return cls(
            loss, labels.repeat_interleave(torch.tensor(counts)), widths, decays, K=K, **options
        )

    # Coordinates and points -------------------------------------------------------------------

    def start(self, generator, scale=0.1, batch=()):
        """Gaussian coordinates of standard deviation ``scale``, on the device of ``generator``.

        ``scale``: a number, or one per start of the leading axes ``batch``.  Features that may not
        be negative are the Gaussian's absolute values.
        """
        there = {"dtype": torch.float64, "device": generator.device}
        found, scale = {}, torch.as_tensor(scale, **there)
        for name, shape in self.shapes.items():
            size = scale.reshape(*scale.shape, *[1] * len(shape))
            draw = size * torch.randn(*batch, *shape, generator=generator, **there)
            found[name] = draw.abs().sqrt() if name == "features" and self.nonnegative else draw
        return found

    def place(self, coordinates):
        """The point at these coordinates, fixed variables included."""
        if coordinates.keys() != self.shapes.keys():
            raise checks.InputError(
                f"coordinates must be {', '.join(self.shapes)}; got {', '.join(coordinates)}"
            )
        point = dict(coordinates)
        if self.nonnegative and "features" in point:
            point["features"] = point["features"].square()
        for name in self.sphere:
            if name in point:
                point[name] = F.normalize(point[name], dim=-1)
        if self._spread:
            point["features"] = point["features"] / self._roots.to(point["features"].device)
        if self._fixed:
            device = next(iter(point.values())).device if point else None
            point |= {name: value.to(device) for name, value in self._fixed.items()}
        return point

    def coordinates(self, point):
        """Coordinates of a point: what :meth:`place` undoes."""
        self._complete(point)
        found = {name: point[name] for name in self.shapes}
        if self._spread:
            found["features"] = found["features"] * self._roots.to(found["features"].device)
        if self.nonnegative and "features" in found:
            if bool((found["features"] < 0).any()):
                raise checks.InputError("features have negative entries; this problem has none")
            found["features"] = found["features"].sqrt()
        return found

    @property
    def _spread(self):
        """Whether the coordinates of the features are √n_r h_r, not h_r."""
        return (
            self._roots is not None and "features" in self.shapes and "features" not in self.sphere
        )

    def _complete(self, point):
        if point.keys() != self._names:
            raise checks.InputError(
                f"a point of this problem has {', '.join(self._names)}; got {', '.join(point)}"
            )

    def activations(self, point):
        """``features`` and what each hidden layer puts out, in order: ``(…, R, d_j)`` each."""
        found = [point["features"]]
        for name in self.layers[:-1]:
            hidden = found[-1] @ point[name].mT
            found.append(hidden.relu() if self.relu else hidden)
        return found

    def logits(self, point):
        """``(…, R, K)``."""
        self._complete(point)
        return self._logits(point, self.activations(point)[-1]).mT

    def _logits(self, point, last):
        weight = point["weight"] if self.scale == 1 else self.scale * point["weight"]
        if "bias" not in point:
            return weight @ last.mT
        bias = point["bias"].unsqueeze(-1)
        if weight.ndim == last.ndim == 3:
            return torch.baddbmm(bias, weight, last.mT)
        return weight @ last.mT + bias

    # Objective --------------------------------------------------------------------------------

    def data(self, logits):
        """The data term at ``logits (…, R, K)`` (its log for log f), one number per lead."""
        return self._data(logits.mT)

    def _data(self, logits):
        stack, targets, shares = self._on(logits)
        if self.log:
            found = (self.loss.log_per_sample(stack, targets) + shares.log()).logsumexp(1)
        else:
            found = self.loss.per_sample(stack, targets) @ shares
        return found.reshape(logits.shape[:-2])

    def _on(self, logits):
        """Logits with one leading axis; targets and shares that go with them, on their device."""
        stack = logits if logits.ndim == 3 else logits.reshape(-1, *logits.shape[-2:])
        targets = self._targets.to(logits.device).expand(len(stack), *self._targets.shape)
        return stack, targets, self._shares.to(logits.device)

    def value(self, point):
        """f at a point, one number per leading index."""
        self._complete(point)
        return self._value(point)

    def _value(self, point):
        value = self._data(self._logits(point, self.activations(point)[-1]))
        for name, lam in self._decays.items():
            squares = point[name].square()
            if name == "features" and self._roots is not None:
                squares = squares * self.counts.to(squares.device)[:, None]
            value = value + lam / 2 * (squares if name == "bias" else squares.flatten(-2)).sum(-1)
        return value

    def __call__(self, **coordinates):
        return self._value(self.place(coordinates))

    many = __call__  # the batched solver's entry: the same formula with a leading axis

    def gradient(self, coordinates):
        """Gradient in the coordinates, a mapping of the same shapes.

        By hand where the coordinates are the point and the loss knows its slope: six times faster.
        """
        plain = self._roots is None and not (self.nonnegative or self.sphere or self.log)
        if not (plain and hasattr(self.loss, "slope")):
            return flow.slopes(self, coordinates)
        point = self.place(coordinates)
        inputs = self.activations(point)
        logits = self._logits(point, inputs[-1])
        stack, targets, _ = self._on(logits)
        back = (self.loss.slope(stack, targets) / len(self.counts)).reshape(logits.shape).mT
        slopes, back = {"bias": back.sum(-2)}, back if self.scale == 1 else self.scale * back
        for name, below in zip(reversed(self.layers), reversed(inputs), strict=True):
            slopes[name] = back.mT @ below
            back = back @ point[name]
            if self.relu and name != self.layers[0]:
                back = back * (below > 0)
        slopes["features"] = back
        for name in self._decays.keys() & self.shapes.keys():
            slopes[name] = slopes[name].add(point[name], alpha=self._decays[name])
        return {name: slopes[name] for name in self.shapes}

    def logit_gradient(self, point):
        """Gradient ∇g of the data term g in the logits times √n_r, ``(…, R, K)``."""
        self._complete(point)
        logits = self._logits(point, self.activations(point)[-1]).detach().requires_grad_()
        (found,) = torch.autograd.grad(self._data(logits).sum(), logits)
        return found.mT if self._roots is None else found.mT / self._roots.to(found.device)

    def certificate(self, point):
        """``scale ‖∇g‖₂ - √(λ_H λ_W)`` of a critical point, ∇g the :meth:`logit_gradient`.

        Of a problem with one layer and a convex loss (Zhu et al. 2021): at most 0 exactly at the
        global minimum, and 0 there unless W = H = 0.
        """
        if len(self.decays) > 2 or self.sphere or self.nonnegative or self.log or self.fixed:
            raise checks.InputError(
                "the certificate exists for one layer whose features and weight are free"
            )
        largest = float(torch.linalg.matrix_norm(self.logit_gradient(point), 2))
        return self.scale * largest - (self.decays[0] * self.decays[1]) ** 0.5


def _listed(name, value):
    """``value`` (list, tuple, array, tensor) as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple) or not value:
        raise checks.InputError(f"{name} must be a list of at least one number, got {value!r}")
    return list(value)


def _targets(value, K, loss):
    """``(targets, K)``: int64 labels, or float64 label sets."""
    if not hasattr(loss, "per_sample"):
        raise checks.InputError(
            f"loss must be one of nclib.losses, such as get('ce'); got {loss!r}"
        )
    value, K = checks.tensor("targets", value), K if K is None else checks.integer("K", K, 2)
    sets = value.ndim == 2
    if getattr(loss, "sets", sets) != sets:
        wanted = "labels (R,); use targets.argmax(1)" if sets else "label sets (R, K)"
        raise checks.InputError(f"{loss} takes {wanted}; got targets {tuple(value.shape)}")
    if sets:
        found = checks.label_sets(value, columns=K).double()
        return found, checks.integer("K", found.shape[1], 2)
    found, K = checks.labels(value, K, name="targets")
    return found, checks.integer("K", K, 2)


def _widths(value, depth):
    value = _listed("widths", value) if hasattr(value, "__len__") else [value] * depth
    found = tuple(checks.integer(f"widths[{j}]", d) for j, d in enumerate(value))
    if len(found) != depth:
        raise checks.InputError(
            f"{depth + 1} decays λ_H, λ_1, … need {depth} widths d, d_1, …; got {found}"
        )
    return found


def _fixed(name, value, shapes):
    checks.choice("fixed", name, shapes)
    value = checks.finite(f"fixed {name}", checks.tensor(name, value)).double()
    if tuple(value.shape) != shapes[name]:
        raise checks.InputError(
            f"fixed {name} must have shape {shapes[name]}, got {tuple(value.shape)}"
        )
    return value
