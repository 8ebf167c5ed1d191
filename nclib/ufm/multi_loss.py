"""The unconstrained-features model with any loss: objective, solver, saddles, certificates.

Variables are ``features (N, d)``, ``weight (K, d)`` and, unless ``lambda_b`` is ``None``,
``bias (K,)``; ``labels`` default to ``0..K-1``, each repeated n times.
"""

from dataclasses import dataclass, replace

import torch

from nclib import checks, frames, losses
from nclib.theory import multi_loss as theory
from nclib.ufm import solve as solver


@dataclass(frozen=True)
class Problem:
    """``(1/N) Σ L(W h_i + b, y_i) + (λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖²``.

    ``lambda_b=0`` is a free bias, ``None`` no bias.  Calling the problem with the variables gives
    the objective; it is differentiable.
    """

    loss: losses._Loss
    K: int
    n: int
    d: int
    lambda_w: float
    lambda_h: float
    lambda_b: float | None = 0.0

    def __post_init__(self):
        checks.integer("K", self.K, 2)
        checks.integer("d", self.d)
        theory.strength(self.n, self.lambda_w, self.lambda_h)
        if self.lambda_b is not None:
            checks.real("lambda_b", self.lambda_b, at_least=0)

    @property
    def labels(self):
        """``(N,)``: 0, …, 0, 1, …, K-1."""
        return torch.arange(self.K).repeat_interleave(self.n)

    def logits(self, features, weight, bias=None):
        """``(N, K)``."""
        return features @ weight.T + (0.0 if bias is None else bias)

    def __call__(self, features, weight, bias=None):
        fit = self.loss(self.logits(features, weight, bias), self.labels.to(features.device))
        penalty = self.lambda_w * weight.square().sum() + self.lambda_h * features.square().sum()
        if bias is not None and self.lambda_b:
            penalty = penalty + self.lambda_b * bias.square().sum()
        return fit + penalty / 2

    def start(self, generator, scale=0.1):
        """Gaussian starting variables of the given standard deviation."""
        shapes = {"features": (self.K * self.n, self.d), "weight": (self.K, self.d)}
        if self.lambda_b is not None:
            shapes["bias"] = (self.K,)
        return {
            name: scale * torch.randn(shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes.items()
        }

    def optimum(self):
        """The closed form (:func:`nclib.theory.multi_loss.optimum`)."""
        return theory.optimum(
            self.loss,
            K=self.K,
            n=self.n,
            d=self.d,
            lambda_w=self.lambda_w,
            lambda_h=self.lambda_h,
            lambda_b=self.lambda_b,
        )


def solve(problem, *, generator, scale=0.1, newton=0):
    """A local minimum from a random start (:class:`nclib.ufm.solve.Solution`)."""
    return solver.minimize(problem, problem.start(generator, scale), newton=newton)


def saddle(problem, rank, *, generator):
    """A critical point whose W and H have the given rank below K-1 (claim 1.L8).

    The problem is solved in dimension ``rank`` and padded with zero columns.  Rank 0 is
    W = H = 0 with the best bias.
    """
    if not 0 <= rank < min(problem.d, problem.K - 1):
        raise checks.InputError(
            f"rank must be in 0..{min(problem.d, problem.K - 1) - 1}, got {rank}"
        )
    small = replace(problem, d=max(rank, 1))
    start = small.start(generator, 0.5)
    if rank == 0:  # exact zeros stay zero: only the bias moves
        start["features"].zero_()
        start["weight"].zero_()
    found = solver.minimize(small, start)
    pad = (0, problem.d - small.d)
    variables = {
        name: torch.nn.functional.pad(value, pad) if value.ndim == 2 else value
        for name, value in found.variables.items()
    }
    return replace(found, variables=variables)


def data_gradient(problem, variables):
    """Gradient of the data term in the logits, ``(N, K)``, factor 1/N included."""
    logits = problem.logits(**variables).requires_grad_()
    (gradient,) = torch.autograd.grad(problem.loss(logits, problem.labels), logits)
    return gradient


def certificate(problem, variables):
    """``‖∇g(Z)‖₂ - √(λ_W λ_H)``: zero at a global minimum, positive at any other critical point.

    Valid for losses convex in the logits, and for the focal loss where every ``p_y >= t_c``
    (claim 1.L9); it speaks of critical points only.
    """
    largest = torch.linalg.matrix_norm(data_gradient(problem, variables), 2)
    return float(largest) - (problem.lambda_w * problem.lambda_h) ** 0.5


def negative_curvature(problem, variables):
    """``(direction, predicted second derivative)`` at a rank-deficient critical point.

    The direction adds a rank-one piece in an unused feature direction ``a ∈ null(W)``:
    ``Δ_W = (λ_H/λ_W)^¼ u aᵀ``, ``Δ_H = (λ_W/λ_H)^¼ v aᵀ`` with (u, v) the top singular pair of
    minus the data gradient; the curvature is ``-2(‖∇g‖₂ - √(λ_W λ_H))`` (claim 1.L8).
    """
    weight = variables["weight"]
    _, singular, right = torch.linalg.svd(weight, full_matrices=True)
    rank = int((singular > 1e-8 * max(1.0, float(singular[0]))).sum())
    if rank == weight.shape[1]:
        raise checks.InputError("W has full column rank: no unused feature direction")
    unused = right[-1]
    left, values, right = torch.linalg.svd(-data_gradient(problem, variables))
    balance = (problem.lambda_h / problem.lambda_w) ** 0.25
    direction = {
        "features": torch.outer(left[:, 0], unused) / balance,
        "weight": balance * torch.outer(right[0], unused),
    }
    if "bias" in variables:
        direction["bias"] = torch.zeros_like(variables["bias"])
    predicted = -2 * (float(values[0]) - (problem.lambda_w * problem.lambda_h) ** 0.5)
    return direction, predicted


def optimal_point(problem, *, generator=None):
    """An explicit global minimiser as variables, from the closed form (d >= K-1).

    Balanced simplex ETF at the optimal margin, with the mean component in one more dimension.
    """
    best = problem.optimum()
    K, n, d = problem.K, problem.n, problem.d
    logits = best.margin * frames.centring(K) + best.mean_component
    left, singular, right = torch.linalg.svd(logits)
    rank = int((singular > 1e-14).sum())
    basis = (
        frames.random_rotation(d, rank, generator=generator)
        if rank
        else torch.zeros(d, 0, dtype=torch.float64)
    )
    scale = (n * problem.lambda_h / problem.lambda_w) ** 0.25
    root = singular[:rank].sqrt()
    variables = {
        "features": ((right[:rank].T * root / scale) @ basis.T).repeat_interleave(n, 0),
        "weight": (left[:, :rank] * root * scale) @ basis.T,
    }
    if problem.lambda_b is not None:
        variables["bias"] = torch.full((K,), best.bias, dtype=torch.float64)
    return variables


def contrastive_violation(loss, K, *, generator, samples=20_000, scale=3.0):
    """Largest violation of the contrastive property found by random search (claim 1.L2).

    ``(lower, shift)``: by how much the loss falls below its value at equal wrong logits with the
    same ``Σ_j (z_j - z_y)``, and how much it changes when all logits are shifted.  Both are 0 up
    to rounding for a loss that has the property.  ``loss`` is anything with ``per_sample(logits,
    labels)``, so users can test their own.
    """
    logits = scale * torch.randn(samples, K, generator=generator, dtype=torch.float64)
    labels = torch.randint(K, (samples,), generator=generator)
    own = logits.gather(1, labels[:, None])
    margin = (own - logits).sum(1, keepdim=True) / (K - 1)
    equal = own - margin * (1 - torch.nn.functional.one_hot(labels, K))
    at_equal = loss.per_sample(equal, labels)
    lower = (at_equal - loss.per_sample(logits, labels)).max()
    shifted = loss.per_sample(logits + 1.7, labels) - loss.per_sample(logits, labels)
    return float(lower), float(shifted.abs().max())
