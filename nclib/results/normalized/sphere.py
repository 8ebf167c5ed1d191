"""Cross-entropy on a product of spheres: derivatives, solvers, and its penalised relatives.

The normalized problem keeps every row of ``features (N, d)`` and ``weight (K, d)`` at norm 1 and
multiplies the logits by ``scale``; closed forms are in :mod:`theory`.  The hybrid
problem frees the features, the regularized problem frees both.  A :class:`Problem` is an objective
together with the names of its variables that live on spheres; :func:`minimize` solves any of them
to machine precision (pymanopt's trust region, line-search descent or conjugate gradients, or L-BFGS
on ``x/‖x‖``), :func:`descend` takes plain gradient steps, one size for each variable.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log

import numpy as np
import torch
import torch.nn.functional as F

from nclib import checks
from nclib.results.normalized.theory import logit_gradient, multipliers, sphere_point
from nclib.ufm import solve

MAX_DENSE = 6000  # side of the largest Hessian that is formed: 290 MB

# ------------------------------------------------------------------------------------------------
# The normalized loss and its derivatives


def margins(logits, labels):
    """Log-sum-exp of the wrong logits minus the true logit, ``(..., N)``; CE is its softplus."""
    own = labels[:, None].expand(*logits.shape[:-1], 1)
    gaps = logits - logits.gather(-1, own)
    return gaps.scatter(-1, own, -torch.inf).logsumexp(-1)


def mean_loss(logits, labels):
    """Mean cross-entropy, precise also where the probability of the true class rounds to 1.

    ``F.cross_entropy`` is 0 there.  Leading dimensions of ``logits (..., N, K)`` are kept.
    """
    return F.softplus(margins(logits, labels), threshold=50).mean(-1)


def log_mean_loss(logits, labels):
    """Logarithm of :func:`mean_loss`, also where that underflows."""
    x = margins(logits, labels)
    small = x < -30  # log softplus(x) = x up to e^x / 2
    logs = torch.where(small, x, F.softplus(torch.where(small, 0.0, x), threshold=50).log())
    return logs.logsumexp(-1) - log(logs.shape[-1])


def sphere_loss(features, weight, labels, scale):
    """Mean cross-entropy of ``scale · features @ weight.T`` over unit rows, a float64 scalar.

    ``features (N, d)``, ``weight (K, d)``, ``labels (N,)``; differentiable in both.  Raises
    :class:`~nclib.checks.InputError` for rows off the sphere, an empty class, scale <= 0, d < 2.
    """
    features, weight, labels, scale = sphere_point(features, weight, labels, scale)
    return mean_loss(scale * features @ weight.T, labels)


def sphere_gradient(features, weight, labels, scale):
    """Riemannian gradients of :func:`sphere_loss`: ``(for features (N, d), for weight (K, d))``.

    The Euclidean gradients minus their parts along the rows (claim 2.L3).
    """
    features, weight, labels, scale = sphere_point(features, weight, labels, scale)
    return multipliers(features, weight, logit_gradient(features, weight, labels, scale))[:2]


def _project(point, vector):
    return vector - (point * vector).sum(1, keepdim=True) * point


def sphere_hessian_product(features, weight, labels, scale, along_features, along_weight):
    """Riemannian Hessian of :func:`sphere_loss` times a tangent direction (claim 2.L3).

    ``along_features (N, d)``, ``along_weight (K, d)``; their parts along the rows are ignored.
    Returns the pair in the same order.  Costs about two gradients.
    """
    features, weight, labels, scale = sphere_point(features, weight, labels, scale)
    E = _project(features, checks.matrix("along_features", along_features, dtype=torch.float64))
    D = _project(weight, checks.matrix("along_weight", along_weight, dtype=torch.float64))
    G = logit_gradient(features, weight, labels, scale)
    _, _, beta, alpha = multipliers(features, weight, G)
    P = (scale * features @ weight.T).softmax(1)
    moving = scale * (features @ D.T + E @ weight.T)
    # Relative to the logit of the true class, whose weight P may have rounded to 1.
    moved = P * (moving - moving.gather(1, labels[:, None]))
    G_dot = scale / len(features) * (moved - P * moved.sum(1, keepdim=True))
    return (
        _project(features, G @ D + G_dot @ weight) - beta[:, None] * E,
        _project(weight, G.T @ E + G_dot.T @ features) - alpha[:, None] * D,
    )


def tangent_bases(points):
    """Orthonormal tangent bases ``(..., m, d, d-1)`` at unit rows ``(..., m, d)``."""
    return torch.linalg.qr(points[..., None], mode="complete").Q[..., 1:]


def sphere_hessian(features, weight, labels, scale):
    """Dense Riemannian Hessian in tangent coordinates, side ``(d-1)(K+N)``, classifiers first.

    Coordinates are those of :func:`tangent_bases`.  Raises :class:`~nclib.checks.InputError` above
    a side of 6000; there, use :func:`sphere_hessian_product` with ``scipy.sparse.linalg.eigsh``.
    """
    features, weight, labels, scale = sphere_point(features, weight, labels, scale)
    side = (features.shape[1] - 1) * (len(weight) + len(features))
    if side > MAX_DENSE:
        raise checks.InputError(
            f"the dense Hessian would have side (d-1)(K+N) = {side} > {MAX_DENSE}; use "
            "sphere_hessian_product with scipy.sparse.linalg.eigsh for extreme eigenvalues"
        )
    return _dense_hessian(features, weight, labels, scale)


def _dense_hessian(features, weight, labels, scale):
    """The Hessian for many points at once: leading dimensions of features and weight agree."""
    (*batch, N, d), K = features.shape, weight.shape[-2]
    G = logit_gradient(features, weight, labels, scale)
    _, _, beta, alpha = multipliers(features, weight, G)
    P = (scale * features @ weight.mT).softmax(-1)
    U, V = tangent_bases(weight), tangent_bases(features)
    a = torch.einsum("...kdx,...id->...kix", U, features)  # how cosine (i, k) moves with w_k
    b = torch.einsum("...idx,...kd->...ikx", V, weight)  # ... and with h_i
    factor, eye = scale * scale / N, torch.eye(d - 1, dtype=a.dtype, device=a.device)
    # 1 - p and p (b - mean b) without cancellation where p of the true class has rounded to 1
    onehot = F.one_hot(labels, K).to(a)
    others = 1 - P + onehot * (P - 1 + (P * (1 - onehot)).sum(-1, keepdim=True))
    b_gap = b - torch.einsum("ik,...ikx->...ix", onehot, b)[..., None, :]
    pb = P[..., None] * (b_gap - torch.einsum("...ik,...ikx->...ix", P, b_gap)[..., None, :])
    pa = P.mT[..., None] * a

    radial = lambda multiplier: multiplier[..., None, None, :] * eye[..., None]  # noqa: E731
    WW = -factor * torch.einsum("...kix,...liy->...kxly", pa, pa)
    own = factor * torch.einsum("...kix,...ik,...kiy->...xyk", pa, others, a) - radial(alpha)
    WW.diagonal(dim1=-4, dim2=-2).copy_(own)
    WH = factor * torch.einsum("...kix,...iky->...kxiy", a, pb)
    WH = WH + torch.einsum("...ik,...kdx,...idy->...kxiy", G, U, V)
    HH = torch.zeros(*batch, N, d - 1, N, d - 1, dtype=a.dtype, device=a.device)
    own = factor * torch.einsum("...ikx,...iky->...xyi", pb, b_gap) - radial(beta)
    HH.diagonal(dim1=-4, dim2=-2).add_(own)

    k, m = K * (d - 1), N * (d - 1)
    WH = WH.reshape(*batch, k, m)
    upper = torch.cat([WW.reshape(*batch, k, k), WH], -1)
    return torch.cat([upper, torch.cat([WH.mT, HH.reshape(*batch, m, m)], -1)], -2)


def sphere_hessian_eigenvalues(features, weight, labels, scale):
    """All ``(d-1)(K+N)`` eigenvalues of the Riemannian Hessian, ascending, float64.

    Unit rows as in :func:`sphere_loss`.  The signs tell minima from saddles at critical points;
    elsewhere they depend on the metric, here that of the spheres.
    """
    matrix = sphere_hessian(features, weight, labels, scale).detach()
    return torch.linalg.eigvalsh((matrix + matrix.T) / 2)


# ------------------------------------------------------------------------------------------------
# The problem and its penalised relatives


@dataclass(frozen=True)
class Problem:
    """An objective of ``features`` and ``weight`` and which of them have unit rows."""

    objective: Callable
    spheres: tuple = ("features", "weight")
    read: Callable = field(default=lambda features, weight: (features, weight))

    def place(self, variables):
        """The variables with the rows of the constrained ones scaled to norm 1."""
        on_sphere = lambda name, x: F.normalize(x, dim=1) if name in self.spheres else x  # noqa: E731
        return {name: on_sphere(name, x) for name, x in variables.items()}


def _labels(labels):
    labels, K = checks.labels(labels)
    checks.class_counts(labels, K)
    return labels


def normalized(labels, scale, *, log_objective=False):
    """Unit features and classifiers.  ``log_objective`` minimises log f: same critical points.

    Use it for large scales, where f and its gradient are as small as ``e^{-scale}``.
    """
    labels, scale = _labels(labels), checks.real("scale", scale, above=0)

    def objective(features, weight):
        logits = scale * features @ weight.T
        return log_mean_loss(logits, labels) if log_objective else mean_loss(logits, labels)

    return Problem(objective)


def nonnegative(labels, scale):
    """Unit features without negative entries: feature rows are ``z²/‖z²‖`` of the variable z.

    ``Problem.read`` turns the variables into features and classifiers (claim 2.L13).
    """
    base = normalized(labels, scale)
    read = lambda features, weight: (F.normalize(features.square(), dim=1), weight)  # noqa: E731
    return Problem(lambda features, weight: base.objective(*read(features, weight)), read=read)


def hybrid(labels, feature_decay):
    """Unit classifiers, free features with penalty ``feature_decay/2 · mean ‖h‖²`` (2.L10)."""
    labels = _labels(labels)
    decay = checks.real("feature_decay", feature_decay, above=0)

    def objective(features, weight):
        penalty = decay / 2 * features.square().sum(1).mean()
        return mean_loss(features @ weight.T, labels) + penalty

    return Problem(objective, spheres=("weight",))


def regularized(labels, lambda_w, lambda_h):
    """Free classifiers and features with penalties ``λ/2`` on their squared norms (2.L10)."""
    labels = _labels(labels)
    lambda_w = checks.real("lambda_w", lambda_w, above=0)
    lambda_h = checks.real("lambda_h", lambda_h, above=0)

    def objective(features, weight):
        penalty = lambda_w / 2 * weight.square().sum() + lambda_h / 2 * features.square().sum()
        return mean_loss(features @ weight.T, labels) + penalty

    return Problem(objective, spheres=())


# ------------------------------------------------------------------------------------------------
# Solvers


def random_point(counts, d, *, generator=None):
    """Uniform unit rows: ``(features, weight, labels)`` for ``counts[k]`` samples of class k."""
    counts = torch.tensor([checks.integer("counts", int(c)) for c in counts])
    K, d = checks.integer("len(counts)", len(counts), 2), checks.integer("d", d, 2)
    draw = lambda m: torch.randn(m, d, generator=generator, dtype=torch.float64)  # noqa: E731
    weight, features = F.normalize(draw(K), dim=1), F.normalize(draw(int(counts.sum())), dim=1)
    return features, weight, torch.arange(K).repeat_interleave(counts)


@dataclass(frozen=True)
class Found:
    """What a solver found: the point, its value, its gradient norm and how it got there.

    ``history`` holds the pairs (value, gradient norm) after each accepted step, the start included;
    it is empty for L-BFGS.  The gradient is Riemannian where rows are constrained.
    """

    features: torch.Tensor
    weight: torch.Tensor
    value: float
    gradient_norm: float
    iterations: int
    history: list


def riemannian_gradient(problem, variables):
    """Gradient of the objective, projected to the tangent spaces of the constrained variables."""
    gradient = solve.gradient(problem.objective, variables)
    return {
        name: _project(variables[name], g) if name in problem.spheres else g
        for name, g in gradient.items()
    }


def _norm(tensors):
    return float(sum(t.square().sum() for t in tensors) ** 0.5)


def curvature(problem, features, weight, *, cut=1e-7):
    """``(smallest positive, largest)`` Hessian eigenvalue of the problem at one of its minima.

    Riemannian where rows are constrained; eigenvalues below ``cut`` times the largest count as the
    flat directions (rotations).
    """
    variables = {"features": features, "weight": weight}
    eigenvalues = solve.hessian_eigenvalues(
        lambda **x: problem.objective(**problem.place(x)), variables
    )
    positive = eigenvalues[eigenvalues > cut * eigenvalues[-1]]
    return float(positive[0]), float(positive[-1])


METHODS = ("trust-region", "steepest-descent", "conjugate-gradient", "lbfgs")


def minimize(problem, features, weight, *, method="trust-region", gtol=1e-12, max_iter=500):
    """A local minimum of the :class:`Problem` from the start ``features``, ``weight``.

    ``method``: ``"trust-region"`` (second order, 7-30 iterations to machine precision),
    ``"steepest-descent"``, ``"conjugate-gradient"`` (line search; they stop near a gradient of
    1e-8, where f no longer changes), all by pymanopt, or ``"lbfgs"``: scipy on ``x/‖x‖``, the
    quickest for many small problems.  ``gtol`` bounds the gradient norm.  Returns a
    :class:`Found`, whose point is read off the variables (``problem.read``).
    """
    checks.choice("method", method, METHODS)
    start = problem.place({"features": features.double(), "weight": weight.double()})
    if method == "lbfgs":
        found = solve.minimize(
            lambda **x: problem.objective(**problem.place(x)), start, gtol=gtol, max_iter=max_iter
        )
        variables, iterations, history = problem.place(found.variables), found.iterations, []
    else:
        variables, iterations, history = _pymanopt(problem, start, method, gtol, max_iter)
    gradient = _norm(riemannian_gradient(problem, variables).values())
    value = float(problem.objective(**variables))
    return Found(*problem.read(**variables), value, gradient, iterations, history)


def _pymanopt(problem, start, method, gtol, max_iter):
    """Run a pymanopt solver.  Its spheres are *columns*: everything is transposed on the way."""
    import pymanopt
    from pymanopt import manifolds, optimizers

    names = list(start)
    kinds = [manifolds.Oblique if n in problem.spheres else manifolds.Euclidean for n in names]
    manifold = manifolds.Product(
        [kind(*start[n].T.shape) for kind, n in zip(kinds, names, strict=True)]
    )
    inward = lambda arrays: {  # noqa: E731
        n: torch.from_numpy(np.ascontiguousarray(np.asarray(a).T))
        for n, a in zip(names, arrays, strict=True)
    }
    outward = lambda tensors: [t.detach().numpy().T for t in tensors]  # noqa: E731
    function, history, current = pymanopt.function.numpy(manifold), [], []

    def graph(point):
        """Variables and gradients at ``point``; pymanopt asks for them again with each product."""
        if not current or any(a is not b for a, b in zip(current[0], point, strict=True)):
            variables = {n: x.requires_grad_() for n, x in inward(point).items()}
            value = problem.objective(**variables)
            gradients = torch.autograd.grad(value, list(variables.values()), create_graph=True)
            tangent = [
                _project(x.detach(), g.detach()) if n in problem.spheres else g.detach()
                for (n, x), g in zip(variables.items(), gradients, strict=True)
            ]
            history.append((float(value.detach()), _norm(tangent)))
            current[:] = point, list(variables.values()), gradients
        return current[1:]

    @function
    def cost(*point):
        return float(problem.objective(**inward(point)))

    @function
    def gradient(*point):
        return outward(graph(point)[1])

    @function
    def hessian(*arguments):
        variables, gradients = graph(arguments[: len(names)])
        along = list(inward(arguments[len(names) :]).values())
        return outward(torch.autograd.grad(gradients, variables, along, retain_graph=True))

    posed = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient, euclidean_hessian=hessian)
    if _norm(riemannian_gradient(problem, start).values()) <= gtol:
        return start, 0, []
    solver = {
        "trust-region": optimizers.TrustRegions,
        "steepest-descent": optimizers.SteepestDescent,
        "conjugate-gradient": optimizers.ConjugateGradient,
    }[method](
        max_iterations=max_iter,
        min_gradient_norm=gtol,
        max_time=np.inf,
        max_cost_evaluations=np.inf,
        verbosity=0,
    )
    result = solver.run(posed, initial_point=[start[n].numpy().T for n in names])
    return inward(result.point), result.iterations, history


@dataclass(frozen=True)
class Starts:
    """Where many random starts ended: tensors with one entry (or point) per start.

    ``relative_gradient`` is the Riemannian gradient norm over ``‖G‖``, the gradient with respect to
    the cosines; ``min_eigenvalues`` are those of the Riemannian Hessian.
    """

    features: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    values: torch.Tensor
    relative_gradient: torch.Tensor
    min_eigenvalues: torch.Tensor


def multistart(counts, d, scale, *, starts, generator=None, critical=False, max_iter=200):
    """Newton's method from many random starts at once, for small problems (claims 2.L4, 2.L5).

    By default it descends: the Newton step with the *absolute* Hessian, which leaves every saddle.
    ``critical=True`` minimises the gradient norm instead (Levenberg-Marquardt) and so finds
    critical points of any kind.  Memory: ``starts`` dense Hessians.  Returns :class:`Starts`.
    """
    scale, starts = checks.real("scale", scale, above=0), checks.integer("starts", starts)
    points = [random_point(counts, d, generator=generator) for _ in range(starts)]
    features, weight = (torch.stack([p[j] for p in points]) for j in range(2))
    labels = points[0][2]
    K, rows = weight.shape[1], torch.cat([weight, features], 1)
    goal, gradient, relative = _first_order(rows, K, labels, scale, critical)
    radius = torch.full((starts,), 0.5, dtype=torch.float64)
    for _ in range(max_iter):
        index = ((relative > 1e-13) & (radius > 1e-6)).nonzero().flatten()
        if not len(index):
            break
        here, bases = rows[index], tangent_bases(rows[index])
        g = torch.einsum("smdx,smd->smx", bases, gradient[index]).flatten(1)
        matrix = _dense_hessian(here[:, K:], here[:, :K], labels, scale)
        step = _newton_step(matrix, g, radius[index, None], critical)
        moved = torch.einsum("smdx,smx->smd", bases, step.reshape(*here.shape[:2], -1))
        new = F.normalize(here + moved, dim=-1)
        found = _first_order(new, K, labels, scale, critical)
        # Where the goal is down to rounding, a smaller gradient decides.
        rounding = (found[0] - goal[index]).abs() < 1e-12 * goal[index].abs().clamp(min=1)
        better = torch.where(rounding, found[2] < relative[index], found[0] < goal[index])
        radius[index] = torch.where(better, (2 * radius[index]).clamp(max=1), radius[index] / 4)
        taken = index[better]
        rows[taken] = new[better]
        for state, value in zip((goal, gradient, relative), found, strict=True):
            state[taken] = value[better]
    weight, features = rows[:, :K], rows[:, K:]
    spectra = torch.linalg.eigvalsh(_dense_hessian(features, weight, labels, scale))
    values = mean_loss(scale * features @ weight.mT, labels)
    return Starts(features, weight, labels, values, relative, spectra[:, 0])


def _first_order(rows, K, labels, scale, critical):
    """Goal of :func:`multistart`, Riemannian gradient of all rows, its norm over ``‖G‖``."""
    weight, features = rows[:, :K], rows[:, K:]
    G = logit_gradient(features, weight, labels, scale)
    gradient = torch.cat(multipliers(features, weight, G)[1::-1], 1)
    norm = gradient.flatten(1).norm(dim=1)
    goal = norm if critical else log_mean_loss(scale * features @ weight.mT, labels)
    return goal, gradient, norm / G.flatten(1).norm(dim=1)


def _newton_step(matrix, gradient, radius, critical):
    """Steps ``(S, P)`` of length at most ``radius (S, 1)`` from Hessians ``(S, P, P)``."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    slope = torch.einsum("spq,sp->sq", vectors, gradient)
    size = eigenvalues.abs()
    largest = size.amax(1, keepdim=True)
    if critical:
        damping = 1e-2 * (1 / radius - 1) + 1e-16
        step = slope * eigenvalues / (size.square() + damping * largest.square())
    else:
        step = slope / size.clamp(min=1e-9 * largest)
    step = -torch.einsum("spq,sq->sp", vectors, step)
    return step * (radius / step.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)


def descend(problem, features, weight, *, step, block_steps=1.0, steps, measure=None, every=1):
    """Gradient descent with a fixed step, ``block_steps`` times as large for the features.

    After each step the constrained rows are put back on their spheres.  ``block_steps = n`` makes
    the rate independent of the samples per class n (claim 2.L8).  ``measure(features, weight)``
    returns a mapping; every ``every`` steps (start and end included) it is recorded together with
    ``iteration``, ``value`` and ``gradient_norm``.  Returns ``(features, weight, records)``, the
    point as ``problem.read`` gives it.
    """
    step = checks.real("step", step, above=0)
    sizes = {"features": step * checks.real("block_steps", block_steps, above=0), "weight": step}
    steps, every = checks.integer("steps", steps, 0), checks.integer("every", every)
    variables = problem.place({"features": features.double(), "weight": weight.double()})
    records = []
    for iteration in range(steps + 1):
        variables = {name: x.detach().requires_grad_() for name, x in variables.items()}
        value = problem.objective(**variables)
        found = torch.autograd.grad(value, list(variables.values()))
        with torch.no_grad():
            gradient = {
                name: _project(x, g) if name in problem.spheres else g
                for (name, x), g in zip(variables.items(), found, strict=True)
            }
            if iteration % every == 0 or iteration == steps:
                extra = measure(*problem.read(**variables)) if measure else {}
                norm = _norm(gradient.values())
                records.append(
                    {"iteration": iteration, "value": float(value), "gradient_norm": norm, **extra}
                )
            if iteration < steps:
                variables = problem.place(
                    {name: x - sizes[name] * gradient[name] for name, x in variables.items()}
                )
    with torch.no_grad():
        return *(x.detach() for x in problem.read(**variables)), records
