"""Tables of result 2: what the notebook checks and draws about the problem on spheres.

Each function returns a tidy DataFrame (or a few); all of it is deterministic given ``seed``.
"""

from math import inf, log, nan

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from nclib import frames
from nclib.results.normalized import sphere, theory
from nclib.results.normalized.metrics import sphere_metrics

ROUNDING = 1e-12  # gaps below are rounding, and so is what a solver does there


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def _optimal(K, n, d):
    weight, labels = frames.simplex_etf(K, d), torch.arange(K).repeat_interleave(n)
    return weight[labels], weight, labels


def _collapse(labels):
    """``measure`` for :func:`sphere.descend`: the metrics and their maximum."""

    def measure(features, weight):
        found = sphere_metrics(features, labels, weight)
        return found | {"worst": max(found["nc1"], found["nc2"], found["nc3"])}

    return measure


# Derivatives and solvers ------------------------------------------------------------------------


def derivative_errors(counts, d, scale, *, seed=0, step=5e-4):
    """Largest errors of Riemannian gradient and Hessian against differences along geodesics.

    Fourth-order central differences of the loss (gradient) and of itself twice (Hessian), and the
    asymmetry of the dense Hessian.  Returns a dict.
    """
    features, weight, labels = sphere.random_point(counts, d, generator=_generator(seed))
    draw = lambda rows: torch.randn(rows.shape, generator=_generator(seed + 1)).double()  # noqa: E731
    tangent = lambda x, v: v - (v * x).sum(1, keepdim=True) * x  # noqa: E731
    E, D = tangent(features, draw(features)), tangent(weight, draw(weight))

    def moved(rows, along, t):
        speed = along.norm(dim=1, keepdim=True)
        return (speed * t).cos() * rows + (speed * t).sin() * along / speed

    def loss(t):
        return float(sphere.sphere_loss(moved(features, E, t), moved(weight, D, t), labels, scale))

    h = step
    slope = (8 * (loss(h) - loss(-h)) - loss(2 * h) + loss(-2 * h)) / (12 * h)
    bend = (16 * (loss(h) + loss(-h)) - loss(2 * h) - loss(-2 * h) - 30 * loss(0)) / (12 * h * h)
    pair = lambda out: float((out[0] * E).sum() + (out[1] * D).sum())  # noqa: E731
    gradient = sphere.sphere_gradient(features, weight, labels, scale)
    product = sphere.sphere_hessian_product(features, weight, labels, scale, E, D)
    matrix = sphere.sphere_hessian(features, weight, labels, scale)
    return {
        "gradient": abs(pair(gradient) - slope),
        "hessian": abs(pair(product) - bend),
        "asymmetry": float((matrix - matrix.T).abs().max()),
    }


def convergence(K, n, d, scale, lambda_w, lambda_h, *, seed=0):
    """Solver histories on the normalized and the regularized problem from the same start.

    Columns ``problem, method, iteration, gap, gradient_norm``, up to the first gap below
    ``ROUNDING``; and a summary with the final NC metrics per run.
    """
    features, weight, labels = sphere.random_point([n] * K, d, generator=_generator(seed))
    normalized = f"normalized, τ = {scale:g}"
    problems = {
        normalized: (sphere.normalized(labels, scale), theory.optimum(K, scale).value),
        "regularized": (
            sphere.regularized(labels, lambda_w, lambda_h),
            theory.regularized_optimum(K, n, lambda_w, lambda_h).value,
        ),
    }
    rows, summary = [], []
    for name, (problem, best) in problems.items():
        for method in ("trust-region", "steepest-descent"):
            found = sphere.minimize(problem, features, weight, method=method)
            gaps = np.array([value - best for value, _ in found.history])
            last = int(np.argmax(gaps < ROUNDING)) if (gaps < ROUNDING).any() else len(gaps) - 1
            rows += [
                {"problem": name, "method": method, "iteration": i, "gap": gaps[i]}
                | {"gradient_norm": norm}
                for i, (_, norm) in enumerate(found.history[: last + 1])
            ]
            metrics = sphere_metrics(found.features, labels, found.weight)
            summary.append(
                {"problem": name, "method": method, "iterations": found.iterations}
                | {"gap": found.value - best, "gradient_norm": found.gradient_norm}
                | {key: metrics[key] for key in ("nc1", "nc2", "nc3")}
            )
    return pd.DataFrame(rows), pd.DataFrame(summary)


def race(K, n, d, entries, *, target=1e-2, steps=2000, seed=0):
    """Gradient-descent steps until max(NC1, NC2, NC3) < ``target``, checked every 10 steps.

    ``entries``: name -> (problem builder ``labels -> Problem``, step size).  ``inf``: not reached;
    ``nan``: the step is too long for this problem, and the descent left the numbers.
    """
    rows = []
    for name, (build, step) in entries.items():
        features, weight, labels = sphere.random_point([n] * K, d, generator=_generator(seed))
        measure, problem, reached, done = _collapse(labels), build(labels), inf, 0
        while done < steps and reached == inf:
            features, weight, _ = sphere.descend(problem, features, weight, step=step, steps=10)
            done += 10
            if not (features.isfinite().all() and weight.isfinite().all()):
                reached = nan
            elif measure(features, weight)["worst"] < target:
                reached = done
        rows.append({"problem": name, "step": step, "iterations": reached})
    return pd.DataFrame(rows)


# The minimum and its curvature ------------------------------------------------------------------


def random_gaps(K, d, scale, *, samples=2000, n=2, seed=0):
    """Smallest ``f - f*`` over random points of the spheres (never below 0)."""
    generator, best = _generator(seed), theory.optimum(K, scale).value
    rows = F.normalize(torch.randn(samples, K + K * n, d, generator=generator).double(), dim=-1)
    labels = torch.arange(K).repeat_interleave(n)
    return float((sphere.mean_loss(scale * rows[:, K:] @ rows[:, :K].mT, labels) - best).min())


def spectrum(K, n, d, scale):
    """Measured and closed-form Hessian eigenvalues at the minimum: ``index, measured, theory``."""
    features, weight, labels = _optimal(K, n, d)
    measured = sphere.sphere_hessian_eigenvalues(features, weight, labels, scale)
    expected = theory.hessian_spectrum(K, n, d, scale)
    return pd.DataFrame({"index": range(len(measured)), "measured": measured, "theory": expected})


def rates(K, n, d, scales, *, steps=400, seed=0):
    """Measured and predicted contraction of gradient descent per step, ``step = 1/λ_max``."""
    rows = []
    for scale in scales:
        features, weight, labels = _optimal(K, n, d)
        noise = lambda x: 1e-3 * torch.randn(x.shape, generator=_generator(seed)).double()  # noqa: E731
        _, high = theory.curvature_range(K, n, d, scale)
        predicted = theory.descent_rate(K, n, d, scale)
        start = features + noise(features), weight + noise(weight)
        # stop well above rounding: the gradient has lost eight digits by then
        last = min(steps, int(log(1e-8) / log(predicted)))
        _, _, records = sphere.descend(
            sphere.normalized(labels, scale), *start, step=1 / high, steps=last
        )
        norms = [record["gradient_norm"] for record in records]
        measured = (norms[-1] / norms[-21]) ** (1 / 20)
        rows.append({"scale": scale, "measured": measured, "predicted": predicted})
    return pd.DataFrame(rows)


def rate_theory(K, n, d, scales):
    """Predicted contraction of gradient descent with ``step = 1/λ_max``: ``scale, predicted``."""
    rates = [theory.descent_rate(K, n, d, scale) for scale in scales]
    return pd.DataFrame({"scale": scales, "predicted": rates})


def block_steps(K, d, scale, samples, *, target=1e-10, steps=3000, seed=0):
    """Steps to ``f - f* < target`` from near the minimum, with and without block steps, per n."""
    rows = []
    for n in samples:
        for block in (False, True):
            features, weight, labels = _optimal(K, n, d)
            generator = _generator(seed)
            shake = lambda x: x + 0.1 * torch.randn(x.shape, generator=generator).double()  # noqa: E731, B023
            weight, features = shake(weight), shake(features)
            _, high = theory.curvature_range(K, n, d, scale, block_steps=block)
            best, done, gap = theory.optimum(K, scale).value, 0, inf
            problem = sphere.normalized(labels, scale)
            while done < steps and gap > target:
                features, weight, records = sphere.descend(
                    problem, features, weight, step=1 / high, block_steps=n if block else 1, steps=5
                )
                done, gap = done + 5, records[-1]["value"] - best
            rows.append({"n": n, "block": block, "iterations": done})
    return pd.DataFrame(rows)


def temperature_theory(sizes, scales):
    """``λ⁺_min`` and condition number over scales for several ``(K, n, d)``."""
    rows = []
    for K, n, d in sizes:
        for scale in scales:
            low, high = theory.curvature_range(K, n, d, scale)
            rows.append({"K": K, "n": n, "d": d, "scale": scale, "low": low, "kappa": high / low})
    return pd.DataFrame(rows)


def temperature_budget(K, n, d, scales, *, steps=300, step=2.0, seed=0):
    """NC metrics after a fixed number of gradient steps (features n times as fast), per scale."""
    rows = []
    for scale in scales:
        features, weight, labels = sphere.random_point([n] * K, d, generator=_generator(seed))
        problem = sphere.normalized(labels, scale)
        options = {"step": step, "block_steps": n, "steps": steps}
        features, weight, _ = sphere.descend(problem, features, weight, **options)
        rows.append({"scale": scale} | sphere_metrics(features, labels, weight))
    return pd.DataFrame(rows)


# Saddles and what is not one --------------------------------------------------------------------


def saddles(K, n, d, scale):
    """The zoo: loss, predicted and measured ``λ_min``, certificate, number of ways down."""
    rows = []
    for point in theory.zoo(K, n, d, scale):
        where = point.features, point.weight, point.labels, scale
        eigenvalues = sphere.sphere_hessian_eigenvalues(*where)
        rows.append(
            {
                "name": point.name,
                "value": point.value,
                "loss": float(sphere.sphere_loss(*where)),
                "predicted": point.min_eigenvalue,
                "measured": float(eigenvalues[0]),
                "largest": float(eigenvalues[-1]),
                "certificate": theory.certificate(*where),
                "negative": int((eigenvalues < -1e-9).sum()),
            }
        )
    return pd.DataFrame(rows)


def sign_patterns(K, d, scale):
    """``λ_min`` at all ``2^{2K}`` sign patterns on a line, one sample per class (K >= 3)."""
    patterns = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * (2 * K))
    found = [
        theory.collinear(signs[:K], signs[K:], torch.arange(K), d, scale) for signs in patterns
    ]
    return pd.DataFrame(
        {"value": [p.value for p in found], "low": [p.min_eigenvalue for p in found]}
    )


def critical_points(K, d, scale, *, starts=60, seed=0):
    """Critical points found by driving the gradient norm to zero: ``value, gap, low``."""
    found = sphere.multistart(
        [1] * K, d, scale, starts=starts, generator=_generator(seed), critical=True
    )
    table = pd.DataFrame({"value": found.values, "low": found.min_eigenvalues})
    table["gap"] = table["value"] - theory.optimum(K, scale).value
    return table[np.asarray(found.relative_gradient) < 1e-9].reset_index(drop=True)


def equal_classifiers(settings, scales, *, seed=0):
    """``λ_min`` with all classifiers equal, per (K, n, d) and scale (claim 2.L7)."""
    rows = []
    for K, n, d in settings:
        for scale in scales:
            point = theory.equal_classifiers(K, n, d, scale, generator=_generator(seed))
            where = point.features, point.weight, point.labels, scale
            gradient = sphere.sphere_gradient(*where)
            rows.append(
                {"K": K, "n": n, "d": d, "scale": scale}
                | {"low": float(sphere.sphere_hessian_eigenvalues(*where)[0])}
                | {"gradient": max(float(g.norm()) for g in gradient) / scale}
            )
    return pd.DataFrame(rows)


def collapse_angles(K, n, dims, scale, angles):
    """``λ_min`` at total collapse against the angle between features and classifiers (2.L6)."""
    rows = []
    for d in dims:
        for angle in angles:
            point = theory.total_collapse(K, n, d, scale, angle=float(angle))
            where = point.features, point.weight, point.labels, scale
            eigenvalues = sphere.sphere_hessian_eigenvalues(*where)
            low = float(eigenvalues[0])
            rows.append(
                {"d": d, "angle": angle, "measured": low, "predicted": point.min_eigenvalue}
                | {"multiplicity": int((eigenvalues < low + 1e-9).sum())}
            )
    return pd.DataFrame(rows)


def escapes(K, n, d, scale, sizes, *, step=1.0, steps=160, seed=0):
    """Gradient descent that starts ``size`` away from total collapse: gradient norm per step.

    ``predicted`` grows by the closed-form factor from the first step on.
    """
    rows = []
    for size in sizes:
        point = theory.total_collapse(K, n, d, scale)
        generator = _generator(seed)
        shake = lambda x: x + size * torch.randn(x.shape, generator=generator).double()  # noqa: E731, B023
        problem = sphere.normalized(point.labels, scale)
        start = shake(point.features), shake(point.weight)
        _, _, records = sphere.descend(problem, *start, step=step, steps=steps)
        growth = theory.escape_growth(K, n, scale, step)
        for record in records:
            rows.append(
                {"size": size, "iteration": record["iteration"], "gap": record["value"]}
                | {"gradient_norm": record["gradient_norm"], "growth": growth}
            )
    return pd.DataFrame(rows)


def starts(K, n, dims, scale, *, starts=100, seed=0):
    """Final loss of many random starts per dimension: ``d, value, low``; and the raw results."""
    rows, raw = [], {}
    for d in dims:
        found = sphere.multistart([n] * K, d, scale, starts=starts, generator=_generator(seed))
        raw[d] = found
        rows.append(pd.DataFrame({"d": d, "value": found.values, "low": found.min_eigenvalues}))
    return pd.concat(rows, ignore_index=True), raw


def lift(found, index, scale):
    """The point ``index`` of a :class:`~sphere.Starts` in its own and one dimension more.

    Returns a dict: its loss, the four lowest Hessian eigenvalues, the lowest after appending a zero
    coordinate, and the certificate.
    """
    features, weight = found.features[index], found.weight[index]
    own = sphere.sphere_hessian_eigenvalues(features, weight, found.labels, scale)
    wide = F.pad(features, (0, 1)), F.pad(weight, (0, 1))
    return {
        "value": float(sphere.sphere_loss(features, weight, found.labels, scale)),
        "eigenvalues": own[:4].tolist(),
        "lifted": float(sphere.sphere_hessian_eigenvalues(*wide, found.labels, scale)[0]),
        "certificate": theory.certificate(features, weight, found.labels, scale),
    }


def antipodes(K, n, scales):
    """Curvature of one sample's loss at the antipode of its classifier, W a fixed ETF (2.L16).

    ``measured``: second difference-free derivative by autograd along the span of W; ``across``:
    along a direction orthogonal to it, always negative.
    """
    etf = frames.simplex_etf(K, K)  # the last coordinate is orthogonal to the span
    inside = F.normalize(etf[1] - etf[2], dim=0)
    outside = torch.eye(K, dtype=torch.float64)[-1]
    rows = []
    for scale in scales:
        bends = []
        for along in (inside, outside):

            def loss(angle, scale=scale, along=along):
                h = -angle.cos() * etf[0] + angle.sin() * along
                return sphere.mean_loss(scale * (etf @ h)[None], torch.tensor([0])) / (K * n)

            bends.append(float(torch.func.hessian(loss)(torch.zeros((), dtype=torch.float64))))
        predicted = theory.antipode_curvature(K, n, scale)
        rows.append(
            {"scale": scale, "measured": bends[0], "across": bends[1], "predicted": predicted}
        )
    return pd.DataFrame(rows)


# Landscapes on the circle -----------------------------------------------------------------------


def circle_map(K, scale, *, points=121):
    """Loss on the slice of :func:`theory.circle_slice`, angles in degrees."""
    degrees = np.linspace(-180, 180, points)
    turn, offset = np.meshgrid(degrees, degrees, indexing="ij")
    value = theory.circle_slice(np.radians(turn), np.radians(offset), K, scale)
    return pd.DataFrame({"turn": turn.ravel(), "offset": offset.ravel(), "value": value.ravel()})


def radial_map(K, decay, *, points=121, reach=7.0):
    """The hybrid problem with W an ETF: features at distance ``radius`` and angle ``offset``."""
    radius, degrees = np.linspace(1e-3, reach, points), np.linspace(-180, 180, points)
    rows = []
    for r in radius:
        value = theory.circle_slice(2 * np.pi / K, np.radians(degrees), K, r) + decay / 2 * r * r
        rows.append(pd.DataFrame({"radius": r, "offset": degrees, "value": value}))
    return pd.concat(rows, ignore_index=True)


def feature_wells(K, scales, *, points=361):
    """Loss of one sample over the angle of its feature to its classifier, W an ETF in the plane."""
    degrees = np.linspace(-180, 180, points)
    rows = []
    for scale in scales:
        value = theory.circle_slice(2 * np.pi / K, np.radians(degrees), K, scale)
        rows.append(pd.DataFrame({"scale": scale, "angle": degrees, "value": value}))
    return pd.concat(rows, ignore_index=True)


# Dimensions, codes, imbalance, sign constraints -------------------------------------------------


def best_start(counts, d, scale, *, starts=12, seed=0):
    """The lowest of several random starts: ``(value, features, weight, labels, spread)``."""
    found = sphere.multistart(counts, d, scale, starts=starts, generator=_generator(seed))
    best = int(found.values.argmin())
    spread = float(found.values.max() - found.values.min())
    return float(found.values[best]), found.features[best], found.weight[best], found.labels, spread


def dimensions(classes, scale, *, extra=1, starts=12, seed=0):
    """Gap to f* and NC2 against its floor for d = 2 … K-1+extra: ``K, d, gap, nc2, floor``."""
    rows = []
    for K in classes:
        for d in range(2, K + extra):
            value, features, weight, labels, _ = best_start(
                [1] * K, d, scale, starts=starts, seed=seed
            )
            metrics = sphere_metrics(features, labels, weight)
            gap = value - theory.optimum(K, scale).value
            rows.append(
                {"K": K, "d": d, "gap": gap} | {k: metrics[k] for k in ("nc2", "nc2_floor")}
            )
    return pd.DataFrame(rows)


def codes(cases, *, starts=12, seed=0):
    """Best of several starts against a named code: ``name, K, d, scale, found, code``.

    ``cases``: (name, code (K, d), scale).
    """
    rows = []
    for name, code, scale in cases:
        K, d = code.shape
        value, *_ = best_start([1] * K, d, scale, starts=starts, seed=seed)
        rows.append(
            {"name": name, "K": K, "d": d, "scale": scale, "found": value}
            | {"code": theory.code_value(code, scale)}
        )
    return pd.DataFrame(rows)


def imbalance(cases, *, starts=6, seed=0):
    """Imbalanced minima: value, spread over starts, certificate, NC2; and the Gram matrices of W.

    ``cases``: (counts, d, scale).
    """
    rows, grams = [], []
    for counts, d, scale in cases:
        value, features, weight, labels, spread = best_start(
            counts, d, scale, starts=starts, seed=seed
        )
        metrics = sphere_metrics(features, labels, weight)
        rows.append(
            {"counts": "-".join(map(str, counts)), "d": d, "scale": scale, "value": value}
            | {"spread": spread, "nc1": metrics["nc1"], "nc2": metrics["nc2"]}
            | {"certificate": theory.certificate(features, weight, labels, scale)}
        )
        grams.append(weight @ weight.T)
    return pd.DataFrame(rows), grams


def nonnegative(cases, *, starts=12, seed=0):
    """Minima over features without negative entries: ``K, n, d, scale``, gaps and geometry (2.L13).

    ``cases``: (K, n, d >= K, scale).  Some starts end in a spurious minimum (one in four for K = d
    = 10): the lowest of up to ``starts`` is taken, fewer if one is as low as the explicit point.
    ``above``: its value minus the loss there; a search that ends above it got stuck.
    """
    rows = []
    for K, n, d, scale in cases:
        labels = torch.arange(K).repeat_interleave(n)
        problem = sphere.nonnegative(labels, scale)
        best = theory.optimum(K, scale, nonnegative=True)
        axes = torch.eye(K, d, dtype=torch.float64)
        etf = F.normalize(axes - axes.mean(0), dim=1)
        known = float(sphere.sphere_loss(axes[labels], etf, labels, scale))
        generator, ends = _generator(seed), []
        while len(ends) < starts and not any(end.value < known + 1e-9 for end in ends):
            start = sphere.random_point([n] * K, d, generator=generator)[:2]
            ends.append(sphere.minimize(problem, *start, method="lbfgs", max_iter=5000))
        found = min(ends, key=lambda end: end.value)
        means = found.features[torch.arange(K) * n]
        cosines = (found.features * found.weight[labels]).sum(1)
        rows.append(
            {"K": K, "n": n, "d": d, "scale": scale}
            | {"gap": found.value - best.value, "above": found.value - known}
            | {"above_etf": found.value - theory.optimum(K, scale).value}
            | {"orthonormal": float((means @ means.T - torch.eye(K)).abs().max())}
            | {"cosine": float((cosines - best.cosine).abs().max())}
            | sphere_metrics(found.features, labels, found.weight)
        )
    return pd.DataFrame(rows)


def matched_logits(K, n, d, scale, *, seed=0):
    """Largest difference of logits between the normalized problem and its matched penalised ones.

    Also the smallest positive and the largest Hessian eigenvalue of each (2.L10).
    """
    features, weight, labels = sphere.random_point([n] * K, d, generator=_generator(seed))
    matched = theory.matched_penalties(K, n, scale)
    problems = {
        "normalized": (scale, sphere.normalized(labels, scale)),
        "hybrid": (1.0, sphere.hybrid(labels, matched.feature_decay)),
        "regularized": (1.0, sphere.regularized(labels, matched.lambda_w, matched.lambda_h)),
    }
    logits, rows = {}, []
    for name, (factor, problem) in problems.items():
        found = sphere.minimize(problem, features, weight, method="lbfgs", max_iter=5000)
        logits[name] = factor * found.features @ found.weight.T
        low, high = sphere.curvature(problem, found.features, found.weight)
        difference = float((logits[name] - logits["normalized"]).abs().max())
        rows.append({"problem": name, "difference": difference, "low": low, "high": high})
    return pd.DataFrame(rows)
