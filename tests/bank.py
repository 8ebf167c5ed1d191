"""The bank: unconstrained-features problems whose optimum is known, and oracles that are not nclib.

A :class:`Row` holds a :class:`~nclib.ufm.model.UFM`, its closed-form value and who stated it.
:func:`plain` writes the objective once more, sample by sample and without any of the library's
code; two oracles minimise it: :func:`by_scipy` from random starts, and for convex problems
:func:`by_cvxpy`, which needs no start at all (features and weight become one matrix of logits with
a nuclear norm).  ``tests/ufm/test_bank.py`` holds closed forms against oracles and solvers against
closed forms.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize

from nclib import frames, losses
from nclib.losses import ExactCrossEntropy, PickAllLabels
from nclib.results.multi_label import theory as sets
from nclib.results.multi_loss import theory as multi_loss
from nclib.results.normalized import theory as sphere
from nclib.ufm.model import UFM
from nclib.ufm.scalar import shrink

# The objective, written out -------------------------------------------------------------------


def plain_losses(loss, Z, Y, log=False):
    """Loss of each sample from its definition: logits ``(N, K)``, one-hot or multi-hot Y."""
    K = Z.shape[1]
    if loss.name == "mse":
        tau = 2 / K if loss.tau is None else loss.tau
        return tau / 2 * (loss.kappa * Y * (Z - loss.scale) ** 2 + (1 - Y) * Z**2).sum(1)
    if loss.name == "exact_ce":
        Z = Z - loss.margin * Y
    if (
        log
    ):  # Z small: log log(1 + Σ e^(z_j - z_y)), by the definition where that does not underflow
        rivals = (Z - (Z * Y).sum(1, keepdim=True)).exp() * (1 - Y)
        return torch.log1p(rivals.sum(1))
    log_p = Z - torch.log(Z.exp().sum(1, keepdim=True))
    if loss.name == "ls":
        return -(((1 - loss.alpha) * Y + loss.alpha / K) * log_p).sum(1)
    if loss.name == "fl":
        return -(Y * (1 - log_p.exp()) ** loss.gamma * log_p).sum(1)
    found = -(Y * log_p).sum(1)
    return found / Y.sum(1) if getattr(loss, "reduction", "") == "mean" else found


def plain(problem, **point):
    """f at a point, every sample with a feature of its own: the formula of the module docstring."""
    repeat = problem.counts.long()
    targets = problem.targets
    Y = torch.nn.functional.one_hot(targets, problem.K).double() if targets.ndim == 1 else targets
    H, Y = point["features"].repeat_interleave(repeat, 0), Y.repeat_interleave(repeat, 0)
    layers = [name for name in sorted(point) if name.startswith("hidden")] + ["weight"]
    A = H
    for name in layers:
        Z = torch.einsum("nd,ed->ne", A, point[name])
        A = Z.clamp(min=0) if problem.relu else Z
    Z = problem.scale * Z + point.get("bias", 0.0)
    decays = dict(zip(["features", *layers], problem.decays, strict=True))
    if "bias" in point:
        decays["bias"] = 0.0 if hasattr(problem.bias, "__len__") else problem.bias
    penalty = sum(lam / 2 * point[name].square().sum() for name, lam in decays.items()
                  if name != "features")  # fmt: skip
    data = plain_losses(problem.loss, Z, Y, log=problem.log).mean()
    data = data.log() if problem.log else data
    return data + penalty + decays["features"] / 2 * H.square().sum()


def by_scipy(problem, starts, *, scale=1.0, seed=5):
    """The lowest value that scipy finds for :func:`plain`; bounds keep features from below zero."""
    rng, shapes = np.random.default_rng(seed), problem.shapes
    sizes = [math.prod(shape) for shape in shapes.values()]

    def unpack(vector):
        parts = torch.split(vector, sizes)
        point = {n: p.reshape(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}
        for name in problem.sphere:
            point[name] = point[name] / point[name].square().sum(1, keepdim=True).sqrt()
        return point | {name: torch.as_tensor(x) for name, x in problem.fixed.items()}

    def fun(x):
        vector = torch.tensor(x, requires_grad=True)
        value = plain(problem, **unpack(vector))
        value.backward()
        return value.item(), vector.grad.numpy()

    low = {name: 0.0 if name == "features" and problem.nonnegative else None for name in shapes}
    bounds = [
        (low[name], None) for name, size in zip(shapes, sizes, strict=True) for _ in range(size)
    ]
    best = math.inf
    for _ in range(starts):
        x = scale * rng.normal(size=sum(sizes))
        x = np.where([b is not None for b, _ in bounds], np.abs(x), x)
        options = {"maxiter": 3000, "maxfun": 9000, "ftol": 1e-16, "gtol": 1e-9, "maxcor": 30}
        found = minimize(fun, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        best = min(best, found.fun)
    return best


def turned(made, d, generator=None):
    """The minimiser ``made`` of result 3 in dimension ``d``, turned by a ``generator``."""
    spare = (0, d - made.weight.shape[1])
    turn = frames.random_rotation(d, generator=generator) if generator else torch.eye(d).double()
    wide = [torch.nn.functional.pad(rows, spare) @ turn.T for rows in (made.weight, made.features)]
    return replace(made, weight=wide[0], features=wide[1])


def by_cvxpy(problem):
    """The global minimum of a convex problem with one wide layer, as a semidefinite program.

    ``min ½ λ_H ‖H‖² + ½ λ_W ‖W‖²`` at given ``H Wᵀ = X`` is ``√(λ_H λ_W) ‖X‖_*``.
    """
    import cvxpy as cp

    (lambda_h, lambda_w), loss, targets = problem.decays, problem.loss, problem.targets
    Y = np.eye(problem.K)[targets.numpy()] if targets.ndim == 1 else targets.numpy()
    Y = Y.repeat(problem.counts.long().numpy(), axis=0)
    N, K = Y.shape
    X = cp.Variable((N, K))
    b = 0 if problem.bias is None else cp.Variable(K)
    Z = X if problem.bias is None else X + np.ones((N, 1)) @ cp.reshape(b, (1, K), order="C")
    if loss.name == "mse":
        tau = 2 / K if loss.tau is None else loss.tau
        weights = np.sqrt(np.where(Y > 0, loss.kappa, 1.0))
        data = tau / 2 * cp.sum_squares(cp.multiply(weights, Z - loss.scale * Y))
    else:
        alpha, m = getattr(loss, "alpha", 0.0), Y.sum(1)
        T = (1 - alpha) * Y + alpha / K
        T = T / m[:, None] if getattr(loss, "reduction", "") == "mean" else T
        data = cp.sum(cp.multiply(T.sum(1), cp.log_sum_exp(Z, axis=1))) - cp.sum(cp.multiply(T, Z))
    value = data / N + math.sqrt(lambda_h * lambda_w) * cp.normNuc(X)
    value = value + problem.bias / 2 * cp.sum_squares(b) if problem.bias else value
    return cp.Problem(cp.Minimize(value)).solve(solver="CLARABEL", tol_gap_abs=1e-10)


# The rows -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One problem with known ``value``, from ``source``; the rest says how it is tested.

    ``starts`` in a batch, ``few`` one by one (more where some end in another minimum); ``scale`` of
    both.  ``convex``: cvxpy is its oracle, else scipy.  ``tolerance``: of the solvers.  ``slow``:
    takes seconds.
    """

    name: str
    problem: UFM
    value: float
    source: str
    starts: int = 6
    few: int = 2
    scale: tuple = (0.1, 1.0)
    convex: bool = False
    tolerance: float = 1e-13
    slow: bool = False


# Where the best feature x² is 0 the gradient 2x·g in x vanishes before g does: solvers stop early.
SQUARES = {"tolerance": 1e-12}
# The best units are on the kink of the ReLU for some samples, exactly: of the starts one by one a
# third stops up to 1e-8 above the minimum there, and a third of those ends in a higher minimum.
KINKS = {"tolerance": 1e-9, "few": 8, "slow": True}
SPHERE = {"starts": 8, "few": 3, "scale": (1.0, 1.0)}

LOSSES = {
    "ce": losses.get("ce"),
    "ls": losses.get("ls", alpha=0.1),
    "focal": losses.get("fl", gamma=3.0),
    "mse": losses.get("mse"),
    "mse mean": losses.get("mse", tau=None),
}


def one_layer():
    """Balanced classes, one layer: Zhou et al. 2022 (NeurIPS), Theorem 3.1; claims 1.L1, 1.L12."""
    source = "Zhou et al. 2022 (NeurIPS), Theorem 3.1; 1.L1, 1.L12"

    def row(name, loss, K, n, d, lambda_w, lambda_h, lambda_b, **options):
        problem = UFM.classes([n] * K, loss, widths=d, decays=(lambda_h, lambda_w), bias=lambda_b)
        setting = {"K": K, "n": n, "lambda_w": lambda_w, "lambda_h": lambda_h}
        value = multi_loss.optimum(loss, lambda_b=lambda_b, d=d, **setting).value
        options = {"convex": loss.name != "fl"} | options
        return Row(name, problem, value, source, **options)

    for name, loss in LOSSES.items():
        yield row(f"{name}, decayed bias", loss, 4, 5, 6, 5e-3, 5e-3, 5e-3)
    for name, bias in (("ce", 0.0), ("ce", None), ("mse", None), ("mse", 0.0)):
        yield row(f"{name}, bias {bias}", LOSSES[name], 4, 5, 6, 5e-3, 5e-3, bias)
    yield row("focal, 30 classes", LOSSES["focal"], 30, 2, 32, 0.01, 0.01, 0.01,
              starts=12, slow=True)  # fmt: skip
    # Numbers of no specification: uneven decays, other parameters, two classes.
    yield row("ce, uneven decays", LOSSES["ce"], 3, 4, 5, 0.031, 0.0023, 0.7)
    yield row("ls 0.27", losses.get("ls", alpha=0.27), 5, 2, 5, 0.011, 0.0074, None)
    yield row("focal 0.6", losses.get("fl", gamma=0.6), 3, 3, 3, 0.019, 0.0057, 0.0)
    yield row("mse scaled and weighted", losses.get("mse", tau=0.7, scale=2.3, kappa=3.1),
              3, 3, 4, 0.043, 0.017, 0.29)  # fmt: skip
    yield row("mse, d = K-1", LOSSES["mse"], 5, 2, 4, 0.013, 0.022, 0.37, convex=False)
    yield row("mse, d = K-1, no bias", LOSSES["mse"], 5, 2, 4, 0.013, 0.022, None, convex=False)
    yield row("two classes", LOSSES["ce"], 2, 5, 3, 0.027, 0.013, 0.0)
    yield row("decay too strong", LOSSES["ce"], 3, 2, 4, 0.31, 0.29, 0.0)


def deep_value(counts, decays, bias):
    """The sum over the singular directions of the target, as far as the bias leaves them over."""
    N, L = sum(counts), len(decays)
    Y = torch.eye(len(counts), dtype=torch.float64).repeat_interleave(torch.tensor(counts), 0)
    s = torch.linalg.svdvals(Y - Y.mean(0) if bias == 0.0 else Y)[: len(counts) - (bias == 0.0)]
    kappas = N * math.prod(decays) ** (1 / L) * s ** (2 / L - 2)
    shares = s**2 / N
    if bias:  # equal classes: a decayed bias takes its part of one direction, the mean
        shares[0], kappas[0] = shares[0] * bias / (1 + bias), kappas[0] * (1 + 1 / bias)
    return float(shares @ shrink(1.0, kappas, L)[0])


def deep():
    """Squared error behind M layers, any class sizes: claims 5.E1, E3-E6, E15-E17."""
    sources = "Tirer & Bruna 2022; Dang et al. 2023; Súkeník et al. 2023; 5.E5, E7, E15, E16"

    def row(name, counts, decays, bias, *, widths=6, relu=False, **options):
        problem = UFM.classes(counts, losses.get("mse"), widths=widths, decays=decays, bias=bias,
                              relu=relu)  # fmt: skip
        options = {"starts": 12, "few": 4, "scale": (0.6, 0.6)} | options
        return Row(name, problem, deep_value(counts, decays, bias), sources, **options)

    for M in (2, 3, 4):
        lam = 0.12 / (3 * 3 ** (1 / (M + 1)))
        yield row(f"{M} layers", [3] * 3, (lam,) * (M + 1), None, widths=(5,) * M, scale=(0.7, 0.7))
    for counts, M, bias in (
        ([6, 3, 1], 1, None), ([6, 3, 1], 2, None), ([5, 4, 2, 1], 1, 0.0),
        ([8, 2, 2], 2, 0.0), ([7, 2, 4], 3, 0.0),
    ):  # fmt: skip
        yield row(f"classes of {counts}, {M} layers, bias {bias}", counts, (0.012,) * (M + 1), bias,
                  widths=(6,) * M, convex=M == 1)  # fmt: skip
    yield row("ReLU", [3] * 4, (0.02,) * 3, None, widths=(8, 24), relu=True, starts=4,
              scale=(0.4, 0.4), **KINKS)  # fmt: skip
    # Numbers of no specification: uneven decays and widths, one class too small to survive.
    yield row("uneven decays, 2 layers", [3, 3, 3], (0.0031, 0.021, 0.0077), None, widths=(7, 4))
    yield row("a class that is dropped", [9, 4, 1], (0.093, 0.087), None, convex=True)
    yield row("decayed bias, 2 layers", [4, 4, 4], (0.008, 0.011, 0.014), 0.33, widths=(5, 6))
    yield row("two classes, 3 layers, ReLU", [2, 2], (0.021, 0.017, 0.013, 0.011), None,
              widths=(4, 6, 6), relu=True, scale=(0.5, 0.5), **KINKS)  # fmt: skip


def decoupled():
    """One row per class, and features without negative entries: claims 6.C11, 6.C21."""

    source = "Ergen & Pilanci 2021, Theorem 3.1; 6.C11, 6.C21"
    for counts, lam in (([6, 3, 1], (0.012, 0.012)), ([5, 7, 2, 2], (0.0091, 0.023))):
        problem = UFM.classes(counts, losses.get("mse"), widths=6, decays=lam, shared=True)
        yield Row(
            f"shared rows of {counts}", problem, deep_value(counts, lam, None), source, convex=True
        )
    for counts, lam in (([2, 2, 2], (0.02, 0.03)), ([3, 1], (0.041, 0.029))):
        problem = UFM.classes(counts, losses.get("mse"), widths=4, decays=lam, nonnegative=True)
        yield Row(
            f"non-negative, {counts}", problem, deep_value(counts, lam, None), source, **SQUARES
        )


def spheres():
    """Unit rows: Yaras et al. 2022, Theorem 3.1; claims 2.L1, 2.L10, 2.L13; codes 4.G2, 4.G3."""
    both, ce = ("features", "weight"), ExactCrossEntropy()
    for K, n, d, s in ((4, 3, 5, 6.0), (5, 2, 4, 2.7)):
        for nonnegative in (False, True) if d >= K else (False,):
            problem = UFM.classes([n] * K, ce, widths=d, decays=(0, 0), scale=s, sphere=both,
                                  nonnegative=nonnegative)  # fmt: skip
            yield Row(f"unit rows, K = {K}" + ", non-negative" * nonnegative, problem,
                      sphere.optimum(K, s, nonnegative=nonnegative).value,
                      "Yaras et al. 2022, Theorem 3.1; 2.L1, 2.L13", **SPHERE)  # fmt: skip
    for K, n, decay in ((4, 3, 0.02), (3, 2, 0.13)):
        problem = UFM.classes([n] * K, losses.get("ce"), widths=5, decays=(decay / (n * K), 0),
                              sphere=("weight",))  # fmt: skip
        yield Row(f"unit classifier, K = {K}", problem, sphere.hybrid_optimum(K, decay).value,
                  "Yaras et al. 2022, section 3; 2.L10", **SPHERE)  # fmt: skip
    codes = (
        ("pentagon", frames.polygon(5), 0.2), ("heptagon", frames.polygon(7), 0.35),
        ("octahedron", frames.cross_polytope(3), 0.23), ("icosahedron", frames.icosahedron(), 0.05),
        ("simplex", frames.simplex_etf(4), 0.11),
        ("bipyramid", frames.bipyramid(7), 0.4),  # best by all searches, 4.G12
    )  # fmt: skip
    for name, code, temperature in codes:
        others = (code @ code.T - 1)[~torch.eye(len(code), dtype=torch.bool)].view(len(code), -1)
        value = float((others / temperature).exp().sum(1).log1p().mean().log())
        problem = UFM.classes([1] * len(code), ce, widths=code.shape[1], decays=(0, 0),
                              scale=1 / temperature, sphere=both, log=True)  # fmt: skip
        yield Row(f"{name}, log of the loss", problem, value,
                  "Jiang et al. 2024, Theorem 3.3; Cohn & Kumar 2007; 4.G2, 4.G3",
                  **SPHERE | {"starts": 24, "slow": len(code) > 8})  # fmt: skip


def label_sets():
    """Pick-all-label: Li et al. 2024, Theorem 3.2; claims 3.L3, 3.L19, 3.L20 (m <= K/2)."""
    source = "Li et al. 2024, Theorem 3.2; 3.L3"
    cases = (
        (5, {1: 4, 2: 2, 3: 1}, 5e-3, 2e-4, "sum"), (5, {1: 4, 2: 2, 3: 1}, 5e-3, 2e-4, "mean"),
        (4, {1: 1, 2: 1}, 0.012, 0.0031, "sum"), (4, {2: 1}, 0.007, 0.0043, "mean"),
    )  # fmt: skip
    for K, counts, lambda_w, lambda_h, reduction in cases:
        setting = {"K": K, "counts": counts, "lambda_w": lambda_w, "lambda_h": lambda_h}
        value = sets.optimum(**setting, reduction=reduction).value
        targets, repeats = sets.balanced_sets(K, counts)
        small = sum(repeats) < 15
        problem = UFM(PickAllLabels(reduction), targets, 5, (2 * lambda_h, 2 * lambda_w),
                      counts=repeats, bias=2e-2)  # fmt: skip
        yield Row(f"label sets {counts} of {K}, {reduction}", problem, value, source,
                  scale=(0.3, 0.3), convex=small, slow=not small)  # fmt: skip
    for K, counts, slow in ((4, {1: 3, 2: 2}, False), (5, {1: 2, 2: 1}, True)):
        setting = {"K": K, "counts": counts, "lambda_w": 6e-3, "lambda_h": 3e-4}
        targets, repeats = sets.balanced_sets(K, counts)
        # No spare dimension: its zeros have no multiplier, and f is flat there to fourth order.
        problem = UFM(PickAllLabels(), targets, K, (6e-4, 1.2e-2), counts=repeats, nonnegative=True)
        yield Row(f"label sets {counts} of {K}, non-negative", problem,
                  sets.nonnegative_optimum(**setting).value,
                  "numerical, this project; 3.L19",
                  scale=(0.3, 0.3), slow=slow, **SQUARES)  # fmt: skip
    counts, lambda_h = {1: 3, 2: 2, 3: 1}, 2e-4
    targets, repeats = sets.balanced_sets(4, counts)
    weight = frames.simplex_etf(4, 5)
    problem = UFM(
        PickAllLabels(), targets, 5, (2 * lambda_h, 0), counts=repeats, fixed={"weight": weight}
    )
    value = sets.frozen_optimum(K=4, counts=counts, lambda_h=lambda_h).value
    yield Row("label sets, frozen classifier", problem, value,
              "this project; 3.L20", scale=(0.3, 0.3))  # fmt: skip


ROWS = [*one_layer(), *deep(), *decoupled(), *spheres(), *label_sets()]
