"""Result 3: the unconstrained-features problem of the pick-all-label loss, solved numerically.

A :class:`MultiLabelProblem` holds any table of label sets and counts, balanced or not.  Samples of
one label set share one feature at every critical point (claim 3.L2), so a problem usually keeps one
row per label set with a count, which is exact and makes 40,000 samples as cheap as 55; give every
count 1 and repeat the rows to treat samples one by one.
"""

from dataclasses import dataclass, field, replace

import torch

from nclib import checks
from nclib.results.multi_label import theory
from nclib.ufm import solve


@dataclass(frozen=True)
class MultiLabelProblem:
    """``f = (1/N) Σ_i n_i loss_i + lambda_w ‖W‖² + lambda_h Σ_i n_i ‖h_i‖² + lambda_b ‖b‖²``.

    ``targets (R, K)`` multi-hot, one row per label set (or sample); ``sample_counts (R,)`` how many
    samples a row stands for (default 1 each); N is their sum.  ``lambda_b=None`` means no bias,
    ``lambda_b=0`` a free one.  ``reduction`` as in :func:`nclib.losses.pick_all_labels`.
    """

    targets: torch.Tensor
    lambda_w: float
    lambda_h: float
    lambda_b: float | None = None
    sample_counts: torch.Tensor | None = None
    reduction: str = "sum"
    _weights: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self):
        targets = checks.label_sets(self.targets).double()
        if targets.shape[1] < 2:
            raise checks.InputError("targets must have at least 2 columns (classes), got 1")
        counts = self.sample_counts
        counts = torch.ones(len(targets)) if counts is None else counts
        counts = checks.vector("sample_counts", counts, len(targets), dtype=torch.float64)
        if not bool((counts > 0).all()):
            raise checks.InputError("sample_counts must be positive; drop the rows without samples")
        checks.real("lambda_w", self.lambda_w, above=0)
        checks.real("lambda_h", self.lambda_h, above=0)
        if self.lambda_b is not None:
            checks.real("lambda_b", self.lambda_b, at_least=0)
        checks.choice("reduction", self.reduction, theory.REDUCTIONS)
        labels = targets.sum(1)
        loss_weights = counts / counts.sum() / (labels if self.reduction == "mean" else 1.0)
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "sample_counts", counts)
        object.__setattr__(self, "_weights", loss_weights)

    @property
    def K(self):
        return self.targets.shape[1]

    @property
    def num_samples(self):
        return float(self.sample_counts.sum())

    def data_loss(self, logits):
        """Mean loss at ``logits (R, K)``, without the regularization."""
        # Same as nclib.losses.pick_all_labels per row; written with weights for the counts.
        losses = -(self.targets * torch.log_softmax(logits, -1)).sum(-1)
        return (self._weights * losses).sum()

    def value(self, weight, features, bias=None):
        """The objective f; differentiable."""
        logits = features @ weight.T
        decay = self.lambda_w * weight.square().sum()
        decay = decay + self.lambda_h * (self.sample_counts * features.square().sum(1)).sum()
        if bias is not None:
            logits, decay = logits + bias, decay + (self.lambda_b or 0.0) * bias.square().sum()
        return self.data_loss(logits) + decay

    def _spread(self, weight, spread, bias=None):
        """f as a function of √n h: well conditioned, and its Hessian is that of one row a
        sample."""
        return self.value(weight, spread / self.sample_counts.sqrt()[:, None], bias)

    def logit_gradient(self, logits):
        """``∂loss/∂Z`` in the variables √n z, ``(R, K)``: same singular values as sample by
        sample."""
        residual = self.targets.sum(1, keepdim=True) * torch.softmax(logits, -1) - self.targets
        return (self._weights / self.sample_counts.sqrt())[:, None] * residual


@dataclass(frozen=True)
class MultiLabelSolution:
    """A critical point: ``weight (K, d)``, ``features (R, d)``, ``bias (K,)`` or None."""

    problem: MultiLabelProblem
    weight: torch.Tensor
    features: torch.Tensor
    bias: torch.Tensor | None
    value: float
    gradient_norm: float

    @property
    def logits(self):
        logits = self.features @ self.weight.T
        return logits if self.bias is None else logits + self.bias

    @property
    def certificate_gap(self):
        """:func:`theory.certificate_gap` here; about 0 proves global
        optimality."""
        gradient = self.problem.logit_gradient(self.logits)
        return theory.certificate_gap(
            gradient, lambda_w=self.problem.lambda_w, lambda_h=self.problem.lambda_h
        )

    def identity_residuals(self):
        """The identities of every critical point (claim 3.L17), as largest absolute deviations.

        ``h_S = ω_m/(2 N lambda_h) (y_S - m softmax(z_S)) W`` and
        ``lambda_w WᵀW = lambda_h Σ n h hᵀ``. Returns ``(feature deviation, balance deviation)``.
        """
        p = self.problem
        gradient = p.logit_gradient(self.logits) / p.sample_counts.sqrt()[:, None]
        features = -gradient @ self.weight / (2 * p.lambda_h)
        gram = self.features.T @ (p.sample_counts[:, None] * self.features)
        balance = p.lambda_w * self.weight.T @ self.weight - p.lambda_h * gram
        return float((features - self.features).abs().max()), float(balance.abs().max())

    def _spread_variables(self):
        spread = self.problem.sample_counts.sqrt()[:, None] * self.features
        found = {"weight": self.weight, "spread": spread}
        return found if self.bias is None else found | {"bias": self.bias}


def balanced(*, K, counts, lambda_w, lambda_h, lambda_b=None, reduction="sum", per_sample=False):
    """The problem with every m-subset present ``counts[m]`` times (see
    ``theory.multi_label.optimum``).

    ``per_sample=True`` keeps one row per sample instead of one per label set.
    """
    targets, sample_counts = theory.balanced_sets(K, counts)
    if per_sample:
        targets, sample_counts = targets.repeat_interleave(sample_counts.long(), 0), None
    return MultiLabelProblem(
        targets, lambda_w, lambda_h, lambda_b, sample_counts=sample_counts, reduction=reduction
    )


def from_table(table, *, K, lambda_w, lambda_h, lambda_b=None, reduction="sum"):
    """The problem of any table ``{label tuple: samples}``, such as ``{(0,): 100, (0, 3): 7}``.

    Use it to see the geometry that co-occurring or imbalanced labels will have before any training.
    """
    K = checks.integer("K", K, 2)
    targets = torch.zeros(len(table), K, dtype=torch.float64)
    for row, (labels, count) in enumerate(table.items()):
        checks.integer(f"the count of {labels}", count)
        wrong = [k for k in labels if not 0 <= k < K]
        if wrong or not labels or len(set(labels)) < len(labels):
            raise checks.InputError(
                f"label set {labels} must be distinct classes in 0..{K - 1}, at least one"
            )
        targets[row, list(labels)] = 1.0
    counts = torch.tensor(list(table.values()), dtype=torch.float64)
    return MultiLabelProblem(
        targets, lambda_w, lambda_h, lambda_b, sample_counts=counts, reduction=reduction
    )


def random_start(problem, d, *, generator=None, scale=0.3):
    """Gaussian starting variables for the solvers below."""
    d = checks.integer("d", d)
    shapes = {"weight": (problem.K, d), "spread": (len(problem.targets), d)}
    if problem.lambda_b is not None:
        shapes["bias"] = (problem.K,)
    return {name: scale * _normal(shape, generator) for name, shape in shapes.items()}


def minimize(problem, d, *, generator=None, newton=0, restarts=3):
    """Critical point reached from a random start: L-BFGS, then ``newton`` polishing steps."""
    start = random_start(problem, d, generator=generator)
    found = solve.minimize(problem._spread, start, restarts=restarts, newton=newton)
    return _solution(problem, found)


def minimize_frozen(problem, weight, *, newton=0, generator=None):
    """Optimal features for a frozen classifier ``weight (K, d)``; no bias, and the value leaves out
    the constant ``lambda_w ‖W‖²`` (claim 3.L20).  The problem is convex."""
    weight = checks.matrix("weight", weight, rows=problem.K, dtype=torch.float64)
    constant = problem.lambda_w * weight.square().sum()
    start = {"spread": random_start(problem, weight.shape[1], generator=generator)["spread"]}
    objective = lambda spread: problem._spread(weight, spread) - constant  # noqa: E731
    found = solve.minimize(objective, start, newton=newton)
    return _solution(problem, replace(found, variables=found.variables | {"weight": weight}))


def minimize_nonnegative(problem, d, *, generator=None, restarts=3):
    """Local minimum with features >= 0, through ``features = (entrywise square)`` (claim 3.L19).

    Not convex even in the limit of large d: try several seeds and keep the best.
    """
    start = random_start(problem, d, generator=generator)
    start["root"] = start.pop("spread").abs().sqrt()

    def objective(weight, root, bias=None):
        return problem._spread(weight, root.square(), bias)

    found = solve.minimize(objective, start, restarts=restarts)
    variables = dict(found.variables)
    variables["spread"] = variables.pop("root").square()
    return _solution(problem, replace(found, variables=variables))


def saddle(problem, rank, d, *, generator=None, newton=4):
    """A critical point of rank at most ``rank < K-1`` in dimension ``d > rank`` (claim 3.L10).

    It is a local minimum in dimension ``rank``, with zeros in the other coordinates; balanced, it
    is no minimum in dimension d, and :func:`escape` shows the way out.
    """
    if checks.integer("rank", rank) > problem.K - 2:
        raise checks.InputError(f"rank must be at most K-2 = {problem.K - 2}, got {rank}")
    d = checks.integer("d", d, rank + 1)
    low = minimize(problem, rank, generator=generator, newton=newton)
    pad = lambda matrix: torch.nn.functional.pad(matrix, (0, d - rank))  # noqa: E731
    return replace(low, weight=pad(low.weight), features=pad(low.features))


def escape(solution):
    """``(predicted, measured)`` second derivative of f along the theory's escape direction."""
    p = solution.problem
    decay = {"lambda_w": p.lambda_w, "lambda_h": p.lambda_h}
    gradient = p.logit_gradient(solution.logits)
    d_weight, d_spread = theory.escape_direction(solution.weight, gradient, **decay)
    direction = {"weight": d_weight, "spread": d_spread}
    if solution.bias is not None:
        direction["bias"] = torch.zeros_like(solution.bias)
    measured = solve.curvature(p._spread, solution._spread_variables(), direction)
    return theory.escape_curvature(gradient, **decay), measured


def hessian_eigenvalues(solution):
    """All Hessian eigenvalues at ``solution``, ascending, in the variables (W, √n h, b)."""
    return solve.hessian_eigenvalues(solution.problem._spread, solution._spread_variables())


def descend(
    problem,
    d,
    *,
    steps,
    keep=(),
    rate,
    feature_rate,
    momentum=0.9,
    generator=None,
    weight_std=0.1,
    feature_std=0.5,
):
    """Gradient descent with momentum from a random start, as a training path to look at.

    ``rate`` is for W and b, ``feature_rate`` for the features.  Returns ``(snapshots, values)``:
    the :class:`MultiLabelSolution` after each number of steps in ``keep`` and at the end (a
    mapping), and f after every step, ``(steps,)``.
    """
    steps = checks.integer("steps", steps)
    weight = (weight_std * _normal((problem.K, d), generator)).requires_grad_()
    features = (feature_std * _normal((len(problem.targets), d), generator)).requires_grad_()
    bias = None if problem.lambda_b is None else torch.zeros(problem.K).double().requires_grad_()
    slow = [weight] if bias is None else [weight, bias]
    groups = [{"params": slow, "lr": rate}, {"params": [features], "lr": feature_rate}]
    optimizer = torch.optim.SGD(groups, momentum=momentum)
    snapshots, values = {}, []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        problem.value(weight, features, bias).backward()
        largest = max(float(t.grad.abs().max()) for t in (*slow, features))
        optimizer.step()
        with torch.no_grad():
            values.append(float(problem.value(weight, features, bias)))
        if step in keep or step == steps:
            now = [None if t is None else t.detach().clone() for t in (weight, features, bias)]
            snapshots[step] = MultiLabelSolution(problem, *now, values[-1], largest)
    return snapshots, torch.tensor(values, dtype=torch.float64)


def _normal(shape, generator):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _solution(problem, found):
    variables = found.variables
    features = variables["spread"] / problem.sample_counts.sqrt()[:, None]
    return MultiLabelSolution(
        problem, variables["weight"], features, variables.get("bias"), found.value,
        found.gradient_norm,
    )  # fmt: skip
