# ruff: noqa: E501
r"""One description of every unconstrained-features problem of the six results.

    f = Σ_r p_r loss(z_r, y_r) + ½ λ_H Σ_r n_r ‖h_r‖² + ½ Σ_j λ_j ‖W_j‖² (+ ½ λ_b ‖b‖²),
    z = scale · W_M σ(… W_1 h) + b,     p_r = n_r / N.

A *row* r stands for n_r samples that share a feature (n_r = 1: one sample).  A *point* is a mapping
``features (…, R, d)``, ``hidden_1``, …, ``weight (…, K, d_{M-1})``, ``bias (…, K)``; everything takes
leading batch dimensions.  Solvers move *coordinates*, free tensors that ``place`` turns into a point:
√n_r h_r for counts, x/‖x‖ for unit rows, x² for features without negative entry.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from nclib import checks


@dataclass(frozen=True)
class UFM:
    """One problem.  ``loss``: of :mod:`nclib.losses`.  ``targets``: labels ``(R,)`` or label sets
    ``(R, K)``.  ``widths``: d, d_1, …, d_{M-1}.  ``decays``: λ_H, λ_1, …, λ_M.  ``counts``: samples
    per row.  ``bias``: ``None`` (none), 0 (free), its decay, or a fixed vector.  ``sphere``: which of
    ``features``, ``weight`` have unit rows.  ``fixed``: variables that do not move, such as a frozen
    ``weight``.  ``log``: minimise log f (losses that can underflow, no decays).
    """

    loss: object
    targets: torch.Tensor
    widths: tuple
    decays: tuple
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
        put = lambda name, value: object.__setattr__(self, name, value)
        targets, widths, depth = torch.as_tensor(self.targets), self.widths, len(self.decays) - 1
        put("K", self.K or (targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1))
        # Logits are (…, K, R): softmax and its gradient run over long contiguous rows.
        put("_targets", targets.double().T.contiguous() if targets.ndim == 2 else targets.long())
        counts = torch.ones(len(targets)) if self.counts is None else self.counts
        put("counts", checks.vector("counts", counts, len(targets), dtype=torch.float64))
        put("_shares", self.counts / self.counts.sum())
        put("_roots", None if bool((self.counts == 1).all()) else self.counts.sqrt()[:, None])
        put("widths", (widths,) * depth if isinstance(widths, int) else tuple(widths))
        put("layers", [*(f"hidden_{j}" for j in range(1, depth)), "weight"])
        shapes = [(len(targets), self.widths[0])]
        shapes += zip([*self.widths[1:], self.K], self.widths, strict=True)
        shapes = dict(zip(["features", *self.layers], shapes, strict=True))
        decays = dict(zip(shapes, map(float, self.decays), strict=True))
        fixed = dict(self.fixed) | ({"bias": self.bias} if torch.is_tensor(self.bias) else {})
        if self.bias is not None and "bias" not in fixed:
            shapes["bias"], decays["bias"] = (self.K,), float(self.bias)
        put("fixed", fixed)
        put("shapes", {name: shape for name, shape in shapes.items() if name not in fixed})
        still = {*self.sphere, *fixed}
        put("_decays", {n: lam for n, lam in decays.items() if lam and n not in still})

    @classmethod
    def classes(cls, counts, loss, *, widths, decays, shared=False, **options):
        """Single labels: ``counts[k]`` samples of class k, one row each, or one ``shared`` row."""
        counts, labels = torch.as_tensor(counts), torch.arange(len(counts))
        options |= {"counts": counts} if shared else {}
        rows = labels if shared else labels.repeat_interleave(counts)
        return cls(loss, rows, widths, tuple(decays), K=len(counts), **options)

    # Coordinates and points -------------------------------------------------------------------

    def start(self, generator, scale=0.1, batch=()):
        """Gaussian coordinates; ``scale`` a number, or one per start of a batch of starts."""
        found, scale = {}, torch.as_tensor(scale, dtype=torch.float64)
        for name, shape in self.shapes.items():
            size = scale.reshape(*scale.shape, *[1] * len(shape))
            draw = size * torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
            found[name] = draw.abs().sqrt() if name == "features" and self.nonnegative else draw
        return found

    def place(self, coordinates):
        """The point at these coordinates."""
        point = dict(coordinates)
        if self.nonnegative:
            point["features"] = point["features"].square()
        for name in self.sphere:
            if name in point:
                point[name] = F.normalize(point[name], dim=-1)
        if self._roots is not None and "features" not in self.sphere:
            point["features"] = point["features"] / self._roots
        return point | self.fixed

    def coordinates(self, point):
        """Coordinates of a point: what :meth:`place` undoes."""
        found = {name: point[name] for name in self.shapes}
        if self._roots is not None and "features" not in self.sphere:
            found["features"] = found["features"] * self._roots
        return found | ({"features": found["features"].sqrt()} if self.nonnegative else {})

    def activations(self, point):
        """``features`` and what each hidden layer puts out, in order: ``(…, R, d_j)`` each."""
        found = [point["features"]]
        for name in self.layers[:-1]:
            hidden = found[-1] @ point[name].mT
            found.append(hidden.relu() if self.relu else hidden)
        return found

    def logits(self, point):
        """``(…, R, K)``."""
        return self._logits(point, self.activations(point)[-1]).mT

    def _logits(self, point, last):
        weight = point["weight"] if self.scale == 1 else self.scale * point["weight"]
        if "bias" not in point:
            return weight @ last.mT
        bias = point["bias"].unsqueeze(-1)
        return torch.baddbmm(bias, weight, last.mT) if weight.ndim == 3 else weight @ last.mT + bias

    # Objective --------------------------------------------------------------------------------

    def data(self, logits):
        """The data term at logits ``(…, K, R)`` (classes first), one number per leading index."""
        stack = logits if logits.ndim == 3 else logits[None]
        targets, shares = self._on(stack)
        if self.log:
            found = (self.loss.log_per_sample(stack, targets) + shares.log()).logsumexp(1)
        return (found if self.log else self.loss.per_sample(stack, targets) @ shares).reshape(
            logits.shape[:-2]
        )

    def _on(self, stack):
        targets = self._targets.to(stack.device).expand(len(stack), *self._targets.shape)
        return targets, self._shares.to(stack.device)

    def value(self, point):
        """f at a point, one number per leading index."""
        value = self.data(self._logits(point, self.activations(point)[-1]))
        for name, lam in self._decays.items():
            squares = point[name].square()
            if name == "features" and self._roots is not None:
                squares = squares * self.counts[:, None]
            value = value + lam / 2 * squares.flatten(squares.ndim - len(self.shapes[name])).sum(-1)
        return value

    def __call__(self, **coordinates):
        return self.value(self.place(coordinates))

    many = __call__  # the batched solver's entry: the same formula with a leading axis

    def gradient(self, coordinates):
        """Gradient in the coordinates; by hand where they are the point and the loss knows its slope."""
        if (
            self._roots is not None
            or self.nonnegative
            or self.sphere
            or not hasattr(self.loss, "slope")
        ):
            x = {name: tensor.detach().requires_grad_() for name, tensor in coordinates.items()}
            return dict(zip(x, torch.autograd.grad(self(**x).sum(), list(x.values())), strict=True))
        point = coordinates | self.fixed
        inputs = self.activations(point)
        logits = self._logits(point, inputs[-1])
        stack = logits if logits.ndim == 3 else logits[None]
        back = (
            (self.loss.slope(stack, self._on(stack)[0]) / len(self.counts)).reshape(logits.shape).mT
        )
        slopes, back = {"bias": back.sum(-2)}, back if self.scale == 1 else self.scale * back
        for name, below in zip(reversed(self.layers), reversed(inputs), strict=True):
            slopes[name] = back.mT @ below
            back = back @ point[name]
            if self.relu and name != self.layers[0]:
                back = back * (below > 0)
        slopes["features"] = back
        add = lambda n: (
            slopes[n].add(point[n], alpha=self._decays[n]) if n in self._decays else slopes[n]
        )
        return {name: add(name) for name in self.shapes}

    def logit_gradient(self, point):
        """Gradient of the data term in √n_r z_r, ``(R, K)``: its spectral norm is the certificate."""
        logits = self._logits(point, self.activations(point)[-1]).detach().requires_grad_()
        (found,) = torch.autograd.grad(self.data(logits), logits)
        return found.T if self._roots is None else found.T / self._roots

    def certificate(self, point):
        """``‖∇g‖₂ - √(λ_H λ_W)`` of a critical point of one layer: 0 at the global minimum."""
        largest = float(torch.linalg.matrix_norm(self.logit_gradient(point), 2))
        return largest - (self.decays[0] * self.decays[1]) ** 0.5
