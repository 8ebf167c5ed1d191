"""The M-layer unconstrained-features model with squared error: objective, solver, flows.

See :mod:`theory` for the objective and its closed forms.  Variables are a
mapping with ``features`` (N, d), ``weight_1`` (d_1, d), …, ``weight_M`` (K, d_{M−1}) and, with a
bias, ``bias`` (K,).  All of them may carry the same leading batch dimensions: one gradient step
then moves every restart at once.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp

from nclib import checks
from nclib.results.extended_ufm import theory
from nclib.ufm.solve import minimize, minimize_many

__all__ = [
    "CentralPath",
    "ExtendedUFM",
    "Restarts",
    "Trajectory",
    "balancedness",
    "central_path",
    "descend",
    "perturbed",
    "settle",
    "solve",
    "sweep",
]


@dataclass(frozen=True)
class ExtendedUFM:
    """One problem: class sizes, weight decays, bias, activation, widths.

    ``class_counts`` n_1..n_K; ``lambdas`` one decay per layer; ``bias`` ``"none"``, ``"free"`` or
    its decay; ``relu``: activation between the layers (needs M ≥ 2); ``widths``: d, d_1, …, d_{M−1}
    (an int: the same for all).  Samples are sorted by class: ``labels`` (N,) int64, ``targets``
    (N, K) one-hot rows, float64.
    """

    class_counts: tuple
    lambdas: tuple
    lambda_h: float
    bias: str | float = "none"
    relu: bool = False
    widths: int | tuple = 20

    def __post_init__(self):
        counts = theory.check_counts(self.class_counts)
        lambdas, lambda_h = theory.check_decays(self.lambdas, self.lambda_h)
        theory.check_bias(self.bias)
        if self.relu and len(lambdas) < 2:
            raise checks.InputError("relu=True needs at least two layers: it acts between them")
        for name, value in (
            ("class_counts", tuple(int(c) for c in counts)),
            ("lambdas", tuple(lambdas)),
            ("lambda_h", lambda_h),
            ("widths", tuple(theory.check_widths(self.widths, len(lambdas)))),
        ):
            object.__setattr__(self, name, value)
        # Plain tensors made here and now: made later, they could be trapped in a torch.func call.
        labels = torch.arange(len(counts)).repeat_interleave(torch.as_tensor(counts).long())
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "targets", torch.eye(len(counts), dtype=torch.float64)[labels])
        decay = {"features": self.lambda_h}
        decay |= {f"weight_{j}": lam for j, lam in enumerate(self.lambdas, start=1)}
        if self.bias != "none":
            decay["bias"] = 0.0 if self.bias == "free" else float(self.bias)
        object.__setattr__(self, "_decay", decay)

    @property
    def depth(self):
        """M, the number of weight matrices."""
        return len(self.lambdas)

    @property
    def num_samples(self):
        return sum(self.class_counts)

    def optimum(self):
        """Closed-form global minimum (linear layers; ReLU: see the conditions there)."""
        return theory.optimum(
            class_counts=self.class_counts,
            lambdas=self.lambdas,
            lambda_h=self.lambda_h,
            bias=self.bias,
            width=min(self.widths),
        )

    def critical_point(self, keep):
        """Stationary point that keeps the target directions ``keep`` (linear layers)."""
        return theory.critical_point(
            class_counts=self.class_counts,
            lambdas=self.lambdas,
            lambda_h=self.lambda_h,
            bias=self.bias,
            keep=keep,
        )

    def start(self, scale=0.1, *, generator, batch=()):
        """Gaussian starting variables with standard deviation ``scale``; a bias starts at zero."""
        outputs = [*self.widths[1:], len(self.class_counts)]
        shapes = {"features": (self.num_samples, self.widths[0])}
        shapes |= {f"weight_{j + 1}": (out, self.widths[j]) for j, out in enumerate(outputs)}
        start = {
            name: scale * torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
            for name, shape in shapes.items()
        }
        if self.bias != "none":
            start["bias"] = torch.zeros(*batch, len(self.class_counts), dtype=torch.float64)
        return start

    def layers(self, variables):
        """Activations by name, in order: H1, H2, …; with ReLU the pre-activations W1H1, … too."""
        hidden, found = variables["features"], {"H1": variables["features"]}
        for j in range(1, self.depth):
            hidden = hidden @ variables[f"weight_{j}"].mT
            if self.relu:
                found[f"W{j}H{j}"] = hidden
                hidden = hidden.relu()
            found[f"H{j + 1}"] = hidden
        return found

    def logits(self, variables):
        """(…, N, K) outputs, bias included."""
        *_, hidden = self.layers(variables).values()
        logits = hidden @ variables[f"weight_{self.depth}"].mT
        return logits + variables["bias"][..., None, :] if "bias" in variables else logits

    def objective(self, **variables):
        """f at the variables: a scalar tensor, or one value per batch entry."""
        residual = self.logits(variables) - self.targets.to(variables["features"])
        value = residual.square().sum((-2, -1)) / (2 * self.num_samples)
        for name, lam in self._decay.items():
            axes = (-1,) if name == "bias" else (-2, -1)
            value = value + lam / 2 * variables[name].square().sum(axes)
        return value

    def gradient(self, variables):
        """Gradient of f by hand-written backpropagation (tested against autograd); a mapping."""
        inputs = [variables["features"]]
        for j in range(1, self.depth):
            hidden = inputs[-1] @ variables[f"weight_{j}"].mT
            inputs.append(hidden.relu() if self.relu else hidden)
        last = inputs[-1] @ variables[f"weight_{self.depth}"].mT
        if "bias" in variables:
            last = last + variables["bias"][..., None, :]
        back = (last - self.targets.to(last)) / self.num_samples
        data = {"bias": back.sum(-2)} if "bias" in variables else {}
        for j in range(self.depth, 0, -1):
            data[f"weight_{j}"] = back.mT @ inputs[j - 1]
            back = back @ variables[f"weight_{j}"]
            if self.relu and j > 1:
                back = back * (inputs[j - 1] > 0)
        data["features"] = back
        return {n: data[n].add(variables[n], alpha=lam) for n, lam in self._decay.items()}


@dataclass(frozen=True)
class Restarts:
    """Local minima from several starts: ``values`` (restarts,) and the refined ``best`` one."""

    best: object
    values: torch.Tensor
    variables: dict


def solve(problem, *, restarts=6, init_scale=0.5, seed=0, max_iter=None):
    """L-BFGS from ``restarts`` Gaussian starts at once; the best one is then refined.

    For M ≥ 2 rank-deficient local minima exist (claim 5.E13): look at ``values``, not only at
    ``best``.  An ``init_scale`` below 0.1 tends to end at the origin; a list of scales is cycled
    through.  ``max_iter`` of the common phase: 2000 for linear layers, 400 for ReLU, whose kinks
    stop quasi-Newton steps near 1e-9.  Returns :class:`Restarts` with a
    :class:`~nclib.ufm.solve.Solution` as ``best``.
    """
    restarts = checks.integer("restarts", restarts)
    scales = [init_scale] if not hasattr(init_scale, "__iter__") else list(init_scale)
    scales = [checks.real("init_scale", scale, above=0) for scale in scales]
    sizes = torch.tensor([scales[i % len(scales)] for i in range(restarts)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    starts = problem.start(1.0, generator=generator, batch=(restarts,))
    starts = {
        name: tensor * sizes.reshape(-1, *[1] * (tensor.ndim - 1))
        for name, tensor in starts.items()
    }
    steps = max_iter or (400 if problem.relu else 2000)
    found = minimize_many(problem.objective, starts, max_iter=steps)
    values, index = found.values.clone(), int(found.values.argmin())
    chosen = {name: tensor[index] for name, tensor in found.variables.items()}
    best = minimize(problem.objective, chosen, max_iter=steps)
    values[index] = best.value
    return Restarts(best, values, found.variables)


@dataclass(frozen=True)
class Trajectory:
    """Gradient descent: the recorded ``steps``, ``values`` (records, …batch), and ``snapshots``."""

    steps: tuple
    values: torch.Tensor
    snapshots: tuple

    @property
    def final(self):
        """Variables after the last step."""
        return self.snapshots[-1]


def descend(problem, start, *, lr, steps, record=100, momentum=0.0):
    """Gradient descent on ``problem`` with constant step size ``lr``, all batch entries at once.

    ``record``: how many log-spaced records (step 0 and the last included), or the steps themselves.
    """
    lr = checks.real("lr", lr, above=0)
    steps = checks.integer("steps", steps)
    if isinstance(record, int):
        record = np.unique(np.geomspace(1, steps, max(record - 1, 1)).round().astype(int))
        record = [0, *record.tolist()]
    record = sorted({checks.integer("record", r, 0) for r in record} | {steps})
    variables = {name: tensor.detach().clone() for name, tensor in start.items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in variables.items()}
    snapshots, values = [], []
    with torch.no_grad():
        for step in range(steps + 1):
            if step == record[len(snapshots)]:
                snapshots.append({name: tensor.clone() for name, tensor in variables.items()})
                values.append(problem.objective(**variables))
            if step < steps:
                for name, slope in problem.gradient(variables).items():
                    if momentum:
                        slope = velocity[name].mul_(momentum).add_(slope)
                    variables[name].sub_(slope, alpha=lr)
    values = torch.stack(values)
    if not bool(torch.isfinite(values).all()):
        raise checks.InputError(f"gradient descent diverged at lr = {lr}; use a smaller step size")
    return Trajectory(tuple(record), values, tuple(snapshots))


def settle(problem, start, *, lr=0.2, steps=200):
    """The local minimum whose basin holds ``start``: ``(variables, value)``.

    ``steps`` gradient steps of size ``lr``, then L-BFGS that begins with a gradient step.  (The
    first step of scipy's L-BFGS-B has length one and may leap into another basin.)
    """
    near = descend(problem, start, lr=lr, steps=steps, record=[steps]).final
    found = minimize_many(problem.objective, {name: t[None] for name, t in near.items()})
    return {name: tensor[0] for name, tensor in found.variables.items()}, float(found.values[0])


def sweep(problem_at, kappas, start, *, kick=1e-3, lr=0.2, seed=0):
    """Continuation: :func:`settle` at each κ from the last solution plus a Gaussian ``kick``.

    ``problem_at(kappa)`` gives the problem.  Returns a list of dicts with ``kappa``, ``value`` and
    ``scale``, the mean logit of the true class (u of the closed forms without a bias).  Up and down
    sweeps differ for M ≥ 2 (claim 5.E14).
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for kappa in kappas:
        problem = problem_at(kappa)
        noise = problem.start(kick, generator=generator)
        start = {name: start[name] + noise[name] for name in noise}
        start, value = settle(problem, start, lr=lr)
        logits = problem.logits(start)
        scale = float(logits.gather(1, problem.labels[:, None]).mean())
        rows.append({"kappa": float(kappa), "value": value, "scale": scale})
    return rows


def perturbed(problem, anchor, beta):
    """Objective of ``problem`` + β/(2N) ‖H − H_0‖²: features tied to given ones (Tirer 2023).

    For :func:`nclib.ufm.solve.minimize`; ``anchor`` H_0 (N, d).
    """
    checks.real("beta", beta, at_least=0)

    def objective(**variables):
        pull = (variables["features"] - anchor).square().sum() / problem.num_samples
        return problem.objective(**variables) + beta / 2 * pull

    return objective


def balancedness(problem, variables):
    """Max-norm residuals of the conservation laws at a critical point, one per hidden layer.

    λ_1 W_1ᵀW_1 = λ_H HᵀH, then λ_{j+1} W_{j+1}ᵀW_{j+1} = λ_j W_j W_jᵀ; with ReLU only the diagonal
    (per neuron) of the latter.  With equal decays λ, gradient flow shrinks each like e^{−2λt}.
    """
    features = variables["features"]
    incoming = problem.lambda_h * features.mT @ features
    residuals = []
    for j, lam in enumerate(problem.lambdas, start=1):
        weight = variables[f"weight_{j}"]
        gap = lam * weight.mT @ weight - incoming
        if problem.relu and j > 1:
            gap = gap.diagonal(dim1=-2, dim2=-1)
        residuals.append(float(gap.abs().max()))
        incoming = lam * weight @ weight.mT
    return residuals


@dataclass(frozen=True)
class CentralPath:
    """Gradient flow of the features with the classifier always optimal (claim 5.E11).

    ``times`` (T,), ``features`` (T, N, d), ``within`` = Tr Σ_W and ``between`` = Tr Σ_B, (T,) each.
    """

    times: np.ndarray
    features: np.ndarray
    within: np.ndarray
    between: np.ndarray

    @property
    def nc1(self):
        """Tr Σ_W / Tr Σ_B along the path."""
        return self.within / self.between


def central_path(features, labels, *, lambda_w, lambda_h, times, rtol=1e-11):
    """Flow dH/dt = −N ∇_H f(W*(H), H) of the plain model (M = 1, no bias), W* optimal for H.

    Balanced classes.  ``features`` (N, d) at time 0, ``times`` increasing from 0; λ_W > 0, λ_H ≥ 0.
    Along it Tr Σ_W / Tr Σ_B strictly falls, e^{2Nλ_H t} Tr Σ_W falls and e^{2Nλ_H t} Tr Σ_B grows
    (Tirer et al. 2023, Theorem 3.1, in our time and decay units).  Integrator: DOP853.
    """
    lambda_w = checks.real("lambda_w", lambda_w, above=0)
    lambda_h = checks.real("lambda_h", lambda_h, at_least=0)
    start = checks.matrix("features", features, dtype=torch.float64).numpy()
    labels, K = checks.labels(labels, length=len(start))
    counts = checks.class_counts(labels, K)
    if counts.min() != counts.max():
        raise checks.InputError(f"classes must have equal sizes here, got {counts.tolist()}")
    targets = np.eye(K)[labels.numpy()]
    (N, d), times = start.shape, np.asarray(times, dtype=float)

    def velocity(_, flat):
        H = flat.reshape(N, d)
        W = np.linalg.solve(H.T @ H + N * lambda_w * np.eye(d), H.T @ targets).T
        return -((H @ W.T - targets) @ W + N * lambda_h * H).ravel()

    span = (times[0], times[-1])
    flow = solve_ivp(velocity, span, start.ravel(), "DOP853", times, rtol=rtol, atol=1e-14)
    if not flow.success:
        raise checks.InputError(f"the flow could not be integrated: {flow.message}")
    path = flow.y.T.reshape(-1, N, d)
    means = np.einsum("nk,tnd->tkd", targets, path) / counts.numpy()[:, None]
    within = ((path - means[:, labels.numpy()]) ** 2).sum((1, 2)) / N
    between = ((means - means.mean(1, keepdims=True)) ** 2).sum((1, 2)) / K
    return CentralPath(times, path, within, between)
