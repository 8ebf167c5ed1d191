"""The unconstrained-features model with any loss: objective, solver, saddles, certificates.

Variables are ``features (N, d)``, ``weight (K, d)`` and, unless ``lambda_b`` is ``None``,
``bias (K,)``; ``labels`` default to ``0..K-1``, each repeated n times.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
import torch

from nclib import checks, frames, losses
from nclib.results.multi_loss import theory
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

    @cached_property
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

    def many(self, features, weight, bias=None):
        """The objective of B stacked variables ``(B,)``: ``features (B, N, d)``, ….

        The numbers of ``torch.vmap(problem)`` up to rounding.  Logits are laid out with the classes
        first, where softmax and its gradient run over long contiguous rows.
        """
        logits = (
            weight @ features.mT
            if bias is None
            else torch.baddbmm(bias.unsqueeze(2), weight, features.mT)
        )
        labels = self.labels.to(features.device).expand(len(logits), -1)
        fit = self.loss.per_sample(logits, labels).mean(1)
        squares = lambda t: t.flatten(1).square().sum(1)
        penalty = self.lambda_w * squares(weight) + self.lambda_h * squares(features)
        if bias is not None and self.lambda_b:
            penalty = penalty + self.lambda_b * squares(bias)
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
        """The closed form (:func:`theory.optimum`)."""
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


def contrastive_violation(loss, K, *, seed=0, samples=20_000, scale=3.0):
    """Largest violation of the contrastive property found by random search (claim 1.L2).

    ``(lower, shift)``: by how much the loss falls below its value at equal wrong logits with the
    same ``Σ_j (z_j - z_y)``, and how much it changes when all logits are shifted.  Both are 0 up
    to rounding for a loss that has the property.  ``loss`` is anything with ``per_sample(logits,
    labels)``, so users can test their own.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, K, generator=generator, dtype=torch.float64)
    labels = torch.randint(K, (samples,), generator=generator)
    own = logits.gather(1, labels[:, None])
    margin = (own - logits).sum(1, keepdim=True) / (K - 1)
    equal = own - margin * (1 - torch.nn.functional.one_hot(labels, K))
    at_equal = loss.per_sample(equal, labels)
    lower = (at_equal - loss.per_sample(logits, labels)).max()
    shifted = loss.per_sample(logits + 1.7, labels) - loss.per_sample(logits, labels)
    return float(lower), float(shifted.abs().max())


# Tables for the notebook ------------------------------------------------------------------------


def many_starts(problem, starts, *, seed=0, scales=(0.01, 10.0)):
    """Solve from ``starts`` random starts at once, their scales spread (log) over ``scales``."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(*(torch.log10(torch.tensor(s)).item() for s in scales), starts)
    drawn = [problem.start(generator, float(scale)) for scale in spread]
    stacked = {name: torch.stack([start[name] for start in drawn]) for name in drawn[0]}
    return solver.minimize_many(problem, stacked)


def best_of(problem, starts=6, *, seed=0):
    """The best of several random starts, as variables and value."""
    found = many_starts(problem, starts, seed=seed, scales=(0.1, 1.0))
    i = int(found.values.argmin())
    return {name: value[i] for name, value in found.variables.items()}, float(found.values[i])


def class_logits(problem, variables):
    """Mean logits of each class, centred over the K outputs: ``(K, K)``."""
    logits = problem.logits(**variables).reshape(problem.K, problem.n, problem.K).mean(1)
    return logits - logits.mean(1, keepdim=True)


def nc2(weight):
    """Distance of the normalised Gram matrix of W to the simplex ETF's, W as it is."""
    gram = weight @ weight.T
    return float((gram / gram.norm() - frames.etf_gram(len(weight))).norm())


def check_closed_form(problems, starts=4):
    """Optimiser against closed form, one row per problem (claims 1.L1, L12).

    Columns: ``value_gap`` (best of ``starts``, signed), ``logit_error`` (centred class logits),
    ``weight_error`` and ``feature_error`` (relative norms), ``bias_error``, ``duality_error``
    (features against ``√(λ_W/(nλ_H))`` times the classifier row).
    """
    rows = []
    for problem in problems:
        at, value = best_of(problem, starts)
        best = problem.optimum()
        K, n = problem.K, problem.n
        weight_norm, feature_norm = float(at["weight"].norm()), float(at["features"].norm())
        logit_error = class_logits(problem, at) - best.margin * frames.centring(K)
        dual = (problem.lambda_w / (n * problem.lambda_h)) ** 0.5
        duality = at["features"] - dual * at["weight"].repeat_interleave(n, 0)
        bias_error = 0.0
        if "bias" in at and (problem.lambda_b or isinstance(problem.loss, losses.MeanSquaredError)):
            bias_error = float((at["bias"] - best.bias).abs().max())
        rows.append(
            {
                "loss": str(problem.loss),
                "K": K,
                "n": n,
                "d": problem.d,
                "lambda_b": problem.lambda_b,
                "value_gap": value - best.value,
                "logit_error": float(logit_error.abs().max()),
                "weight_error": abs(weight_norm / best.weight_norm - 1),
                "feature_error": abs(feature_norm / best.feature_norm - 1),
                "bias_error": bias_error,
                "duality_error": float(duality.abs().max()),
            }
        )
    return pd.DataFrame(rows)


def margin_sweep(named_losses, strengths, *, K, starts=4, d=None):
    """Measured margin and probability of the true class for each loss and strength c (n = 1)."""
    rows = []
    for name, loss in named_losses.items():
        for c in strengths:
            problem = Problem(loss, K, 1, d or K + 2, float(c), float(c), 0.0)
            at, value = best_of(problem, starts)
            margin = float(class_logits(problem, at).diagonal().mean()) * K / (K - 1)
            probability = torch.softmax(problem.logits(**at), 1).diagonal().mean()
            rows.append(
                {
                    "loss": name,
                    "c": float(c),
                    "margin": margin,
                    "probability": float(probability),
                    "value": value,
                }
            )
    return pd.DataFrame(rows)


def scalar_curves(named_losses, c, margins, *, K):
    """``φ(s) + c(K-1)s`` of each loss on a grid of margins."""
    return pd.DataFrame(
        {"loss": name, "s": s, "value": theory.scalar_loss(loss, s, K=K) + c * (K - 1) * s}
        for name, loss in named_losses.items()
        for s in margins
    )


def scalar_minima(named_losses, c, *, K):
    """The minimum of each of those curves, from the closed form."""
    found = {
        name: theory.optimum(loss, K=K, n=1, lambda_w=c, lambda_h=c)
        for name, loss in named_losses.items()
    }
    return pd.DataFrame(
        {"loss": name, "s": best.margin, "value": best.value} for name, best in found.items()
    )


def competing_minima(strengths, margins, *, K, gamma):
    """The focal loss's scalar problem minus its value at zero, for several strengths c."""
    value = lambda s: theory.scalar_loss("fl", s, K=K, gamma=gamma)
    return pd.DataFrame(
        {"c": c, "s": s, "value": value(s) - value(0.0) + c * (K - 1) * s}
        for c in strengths
        for s in margins
    )


def margin_theory(named_losses, strengths, *, K):
    """Margin and probability of the true class from the closed form (n = 1)."""
    rows = []
    for name, loss in named_losses.items():
        for c in strengths:
            best = theory.optimum(loss, K=K, n=1, lambda_w=float(c), lambda_h=float(c))
            rows.append(
                {
                    "loss": name,
                    "c": float(c),
                    "margin": best.margin,
                    "probability": best.probability,
                    "value": best.value,
                }
            )
    return pd.DataFrame(rows)


def logit_table(logits, margins):
    """Class logits ``(K, K)`` divided by the margin, one row per entry."""
    return pd.DataFrame(
        {"loss": name, "row": i, "column": j, "value": float(matrix[i, j]) / margins[name]}
        for name, matrix in logits.items()
        for i in range(len(matrix))
        for j in range(len(matrix))
    )


def equivalents(named_losses, *, K, n, lambda_w, lambda_h):
    """Margin, confidence, the equivalent strength of cross-entropy, and the temperature to it.

    ``softmax(logits / temperature)`` of a loss is cross-entropy's softmax at the same λ's.
    """
    setting = {"K": K, "n": n, "lambda_w": lambda_w, "lambda_h": lambda_h}
    plain = theory.optimum("ce", **setting).margin
    rows = []
    for name, loss in named_losses.items():
        best = theory.optimum(loss, **setting)
        rows.append(
            {
                "loss": name,
                "margin": best.margin,
                "probability": best.probability,
                "equivalent c": best.equivalent_c,
                "temperature": best.margin / plain,
            }
        )
    return pd.DataFrame(rows)


def focal_convexity_mismatches(*, samples, seed=0):
    """Random logits where the sign of the focal loss's Hessian contradicts ``p_y >= t_c`` (L10)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high: int(torch.randint(high, (), generator=generator))
    count = 0
    for _ in range(samples):
        gamma, K = (0.5, 1.0, 2.0, 3.0, 5.0)[draw(5)], 2 + draw(10)
        z = 2.5 * torch.randn(K, generator=generator, dtype=torch.float64)
        loss = losses.Focal(gamma)
        one = lambda z, loss=loss: loss(z[None], torch.zeros(1, dtype=torch.int64))
        convex = float(solver.hessian_eigenvalues(one, {"z": z})[0]) > -1e-9
        count += convex != (
            float(torch.softmax(z, 0)[0]) >= theory.focal_convexity_threshold(gamma)
        )
    return count


def saddle_table(problems, *, seed=0):
    """Predicted and measured negative curvature at saddles of every rank (claim 1.L8).

    ``problems``: name -> :class:`Problem`.  Returns ``(table, profiles)``: the second holds the
    objective along the direction of negative curvature.
    """
    rows, profiles = [], []
    for name, problem in problems.items():
        optimum = problem.optimum().value
        for rank in range(problem.K - 1):
            point = saddle(problem, rank, generator=torch.Generator().manual_seed(seed)).variables
            direction, predicted = negative_curvature(problem, point)
            value = float(problem(**point))
            rows.append(
                {
                    "loss": name,
                    "rank": rank,
                    "predicted": predicted,
                    "measured": solver.curvature(problem, point, direction),
                    "height": value - optimum,
                    "certificate": certificate(problem, point),
                }
            )
            for t in torch.linspace(-1.5, 1.5, 61).tolist():
                moved = {key: v + t * direction[key] for key, v in point.items()}
                rise = float(problem(**moved)) - value
                parabola = predicted * t * t / 2
                profiles.append(
                    {"loss": name, "rank": rank, "t": t, "value": rise, "parabola": parabola}
                )
    return pd.DataFrame(rows), pd.DataFrame(profiles)


def start_gaps(named_losses, dims, *, K, n, starts, lam, seed=0):
    """``f - f*`` from random starts for each loss and feature dimension (claims 1.L7, L14).

    For d < K-1 there is no closed form; the gap is then to the value that d = K-1 would allow.
    """
    rows = []
    for name, loss in named_losses.items():
        for d in dims:
            problem = Problem(loss, K, n, d, lam, lam, lam)
            floor = replace(problem, d=max(d, K - 1)).optimum().value
            values = many_starts(problem, starts, seed=seed).values
            rows += [
                {"loss": name, "d": d, "start": i, "gap": float(value) - floor}
                for i, value in enumerate(values)
            ]
    return pd.DataFrame(rows)


def focal_window(ratios, *, K=30, n=2, d=32, gamma=3.0, lambda_b=0.01, starts=12, seed=0):
    """Share of random starts that reach the global minimum at ``c = ratio * c_loc`` (1.L11)."""
    local, _, _ = theory.focal_thresholds(K, gamma)
    rows = []
    for ratio in ratios:
        lam = ratio * local / n**0.5
        problem = Problem(losses.Focal(gamma), K, n, d, lam, lam, lambda_b)
        found = many_starts(problem, starts, seed=seed, scales=(0.1, 3.0)).values
        gap = found - problem.optimum().value
        reached = int((gap < 1e-6).sum())
        rows.append(
            {
                "ratio": ratio,
                "reached": reached,
                "starts": starts,
                "fraction": reached / starts,
                "lowest_gap": float(gap.min()),
                "highest_gap": float(gap.max()),
            }
        )
    return pd.DataFrame(rows)


def bias_sweep(lambda_bs, *, K, n, d, lambda_w, lambda_h, starts=4):
    """MSE geometry against the bias penalty, measured: bias, singular values of W, NC2 (1.L12).

    ``lambda_b = inf`` stands for no bias.
    """
    rows = []
    for lambda_b in lambda_bs:
        problem = _mse_problem(lambda_b, K, n, d, lambda_w, lambda_h)
        at, value = best_of(problem, starts)
        singular = torch.linalg.svdvals(at["weight"])
        rows.append(
            {
                "lambda_b": float(lambda_b),
                "bias": float(at["bias"].mean()) if "bias" in at else 0.0,
                "etf_singular": float(singular.max()),
                "mean_singular": float(singular.min()),
                "nc2": nc2(at["weight"]),
                "nc2_centered": nc2(at["weight"] - at["weight"].mean(0)),
                "value_gap": value - problem.optimum().value,
            }
        )
    return pd.DataFrame(rows)


def bias_theory(lambda_bs, *, K, n, d, lambda_w, lambda_h):
    """The same from the closed form: bias and singular values of W."""
    rows = []
    for lambda_b in lambda_bs:
        best = _mse_problem(lambda_b, K, n, d, lambda_w, lambda_h).optimum()
        root = (n * lambda_h / lambda_w) ** 0.25
        rows.append(
            {
                "lambda_b": float(lambda_b),
                "bias": best.bias,
                "etf_singular": root * best.margin**0.5,
                "mean_singular": root * (K * best.mean_component) ** 0.5,
            }
        )
    return pd.DataFrame(rows)


def _mse_problem(lambda_b, K, n, d, lambda_w, lambda_h):
    penalty = None if lambda_b == float("inf") else float(lambda_b)
    return Problem(losses.MeanSquaredError(), K, n, d, lambda_w, lambda_h, penalty)
