"""Experiments of result 2 on the model: rows and tables that the notebook checks and draws.

Functions of one setting are for :func:`nclib.table.over`; all is deterministic given ``seed``.
"""

from math import inf, log, nan

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from nclib import checks, frames
from nclib.results.normalized import theory
from nclib.results.normalized.metrics import NC, sphere_metrics
from nclib.table import log_spaced, over
from nclib.ufm import landscape
from nclib.ufm.flow import descend
from nclib.ufm.model import UFM
from nclib.ufm.solve import best, newton_polish

ROUNDING = 1e-12  # gaps below are rounding, and so is what a solver does there
METHODS = ("trust-region", "steepest-descent")


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def unit_start(problem, seed):
    """Random coordinates with unit rows, the same for each kind of problem of these sizes."""
    start = problem.start(_generator(seed), 1.0)
    return {name: F.normalize(x, dim=1) for name, x in start.items()}


def shaken(point, size, seed):
    """``point`` with Gaussian noise of this size on every entry."""
    generator = _generator(seed)
    noise = {name: torch.randn(x.shape, generator=generator) for name, x in point.items()}
    return {name: x + size * noise[name].double() for name, x in point.items()}


def gradient_norm(problem, point):
    """Norm of the gradient in the coordinates; on spheres the Riemannian one."""
    with torch.enable_grad():  # flow.descend measures without
        gradient = problem.gradient(problem.coordinates(point))
    return float(sum(g.square().sum() for g in gradient.values()) ** 0.5)


def collapse(problem, point):
    """:func:`sphere_metrics` of a point of the model, and ``worst``, the largest of NC1-NC3."""
    found = sphere_metrics(point["features"], problem.targets, point["weight"])
    return found | {"worst": max(found[name] for name in NC)}


def lowest_two(problem, point):
    """``(smallest, largest)`` Hessian eigenvalue at a minimum, without the flat directions."""
    values = landscape.spectrum(problem, point)
    positive = values[values > 1e-7 * values[-1]]
    return float(positive[0]), float(positive[-1])


# Derivatives and solvers ------------------------------------------------------------------------


def derivative_errors(counts, d, scale, *, seed=0):
    """Largest errors of the closed-form gradient and Hessian (2.L3), at a random point.

    Against derivatives of the loss of the rows x/|x| by automatic differentiation: the gradient,
    and the second derivative along a random tangent direction, relative to their sizes.
    """
    problem = theory.normalized(counts, scale, d)
    point = problem.place(unit_start(problem, seed))
    draw = shaken({name: x * 0 for name, x in point.items()}, 1.0, seed + 1)
    along = {name: theory.tangent(point[name], v) for name, v in draw.items()}
    where = point["features"], point["weight"], problem.targets, scale
    slopes, expected = theory.multipliers(*where)[:2], problem.gradient(point)
    product = theory.hessian_product(*where, along["features"], along["weight"])
    bend = sum(float((a * along[name]).sum()) for a, name in zip(product, along, strict=True))
    curvature = landscape.curvature(problem, point, along)
    off = [float((a - expected[n]).abs().max()) for a, n in zip(slopes, along, strict=True)]
    size = max(float(g.abs().max()) for g in expected.values())
    return {"gradient": max(off) / size, "hessian": abs(bend / curvature - 1)}


def pymanopt_path(problem, start, method, *, max_iter):
    """Points at which a solver of pymanopt asks for the gradient: the start, each accepted step.

    ``method``: ``"trust-region"`` or ``"steepest-descent"`` (with line search).  pymanopt's spheres
    are *columns*: everything is transposed on the way.
    """
    import pymanopt
    from pymanopt import manifolds, optimizers

    names, path, current = list(start), [], []
    kinds = [manifolds.Oblique if n in problem.sphere else manifolds.Euclidean for n in names]
    manifold = manifolds.Product(
        [kind(*start[n].T.shape) for kind, n in zip(kinds, names, strict=True)]
    )

    def inward(arrays):
        there = zip(names, arrays, strict=True)
        return {n: torch.from_numpy(np.ascontiguousarray(np.asarray(a).T)) for n, a in there}

    def outward(tensors):
        return [t.detach().numpy().T for t in tensors]

    def graph(arrays):
        """Variables and gradients; pymanopt asks for them again with each Hessian product."""
        if not current or any(a is not b for a, b in zip(current[0], arrays, strict=True)):
            point = {n: x.requires_grad_() for n, x in inward(arrays).items()}
            value, rows = problem.value(point), list(point.values())
            current[:] = arrays, rows, torch.autograd.grad(value, rows, create_graph=True)
            path.append({n: x.detach() for n, x in point.items()})
        return current[1:]

    @pymanopt.function.numpy(manifold)
    def cost(*point):
        return float(problem.value(inward(point)))

    @pymanopt.function.numpy(manifold)
    def gradient(*point):
        return outward(graph(point)[1])

    @pymanopt.function.numpy(manifold)
    def hessian(*arguments):
        rows, gradients = graph(arguments[: len(names)])
        along = list(inward(arguments[len(names) :]).values())
        return outward(torch.autograd.grad(gradients, rows, along, retain_graph=True))

    posed = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient, euclidean_hessian=hessian)
    kinds = dict(zip(METHODS, (optimizers.TrustRegions, optimizers.SteepestDescent), strict=True))
    limits = {"max_iterations": max_iter, "min_gradient_norm": 1e-12, "max_time": np.inf}
    limits |= {"max_cost_evaluations": np.inf, "verbosity": 0}
    solver = kinds[checks.choice("method", method, METHODS)](**limits)
    solver.run(posed, initial_point=[start[n].numpy().T for n in names])
    return path


def convergence(problems, *, seeds, max_iter):
    """Two solvers on several problems from the same random starts, up to the first rounding gap.

    ``problems``: name -> (problem, its minimum).  Columns ``problem, method, seed, iteration, gap,
    gradient_norm, nc1, nc2, nc3``, at no more than 40 iterations each.
    """
    rows = []
    for name, (problem, floor) in problems.items():
        for method in METHODS:
            for seed in seeds:
                path = pymanopt_path(problem, unit_start(problem, seed), method, max_iter=max_iter)
                gaps = np.array([float(problem.value(point)) - floor for point in path])
                last = int(np.argmax(gaps < ROUNDING)) if (gaps < ROUNDING).any() else len(path) - 1
                for i in log_spaced(max(last, 1), 40):
                    found = collapse(problem, path[i])
                    rows.append(
                        {"problem": name, "method": method, "seed": seed, "iteration": i}
                        | {"gap": gaps[i], "gradient_norm": gradient_norm(problem, path[i])}
                        | {key: found[key] for key in NC}
                    )
    return pd.DataFrame(rows)


# Normalized against penalised -------------------------------------------------------------------


def steps_until(problem, start, reached, *, most, every, **rates):
    """Steps of gradient descent until ``reached(point)``, asked every so many and after ``most``.

    ``rates``: as for :func:`nclib.ufm.flow.descend`.  ``inf``: not reached after ``most``; ``nan``:
    the step is too long for this problem, and the descent left the numbers.
    """
    done = 0
    while done < most:
        chunk = min(20 * every, most - done)
        try:
            path = descend(problem, start, steps=chunk, record=range(0, chunk, every), **rates)
        except checks.InputError:
            return nan
        for step, point in zip(path.steps, path.points, strict=True):
            if reached(point):
                return done + step
        start, done = problem.coordinates(path.points[-1]), done + chunk
    return inf


def race(name, scale, seed, *, K, n, d):
    """``steps`` of gradient descent on a problem with penalties matched to ``scale`` (2.L10)."""
    return {"steps": steps_to_collapse(theory.matched_problems(K, n, scale, d)[name], seed)}


def steps_to_collapse(problem, seed):
    """Steps of size 10 from unit rows until max(NC1, NC2, NC3) < 0.01, asked every ten."""

    def near(point):
        return collapse(problem, point)["worst"] < 0.01

    start = unit_start(problem, seed)
    return steps_until(problem, start, near, most=2000, every=10, rate=10.0)


def sphere_ratios(table, value):
    """``value`` of the sphere over that of each penalised problem, the largest over the rest."""
    rest = [name for name in ("scale", "seed") if name in table]
    wide = table.pivot(index=rest, columns="name", values=value)
    ratios = wide[["hybrid", "regularized"]].rdiv(wide["normalized"], axis=0)
    return ratios.max(skipna=False).to_dict()


def conditioning(name, scale, *, K, n, d):
    """Condition number and smallest positive curvature at the minimum of a matched problem.

    By automatic differentiation of the loss, at the minimum in closed form, where the ``gradient``
    vanishes (2.L10).
    """
    problem = theory.matched_problems(K, n, scale, d)[name]
    point = theory.matched_points(K, n, scale, d)[name]
    low, high = lowest_two(problem, point)
    return {"kappa": high / low, "low": low, "gradient": gradient_norm(problem, point)}


def matched_logits(scale, *, K, n, d, seed=0):
    """Largest difference of the logits at minima found of the three matched problems (2.L10)."""
    problems, logits = theory.matched_problems(K, n, scale, d), []
    for problem in problems.values():
        found = best(problem, 2, seed=seed, refine=True)
        logits.append(problem.logits(found.point))
    return max(float((z - logits[0]).abs().max()) for z in logits[1:])


# The minimum and its curvature ------------------------------------------------------------------


def minima(K, n, d, scale, *, seed=0):
    """Local minima from six random starts: ``|f - f*|`` of the lowest (``value``) and the highest
    (``starts``), NC1, NC2 and NC3 the largest over all of them."""
    problem, low = theory.normalized([n] * K, scale, d), theory.optimum(K, scale).value
    found = best(problem, 6, seed=seed, gtol=1e-10, refine=True)
    points = [{name: x[i] for name, x in found.points.items()} for i in range(6)]
    table = pd.DataFrame([collapse(problem, point) for point in points])[list(NC)]
    gaps = {"value": abs(found.value - low), "starts": float((found.values - low).abs().max())}
    return gaps | table.max().to_dict()


def spectrum(scale, *, K, n, d):
    """Measured and closed-form Hessian eigenvalues at the minimum: ``index, measured, theory``."""
    measured = landscape.spectrum(theory.normalized([n] * K, scale, d), theory.minimum(K, n, d))
    expected = theory.hessian_spectrum(K, n, d, scale)
    return pd.DataFrame({"index": range(len(measured)), "measured": measured, "theory": expected})


def contraction(scale, *, K, n, d, seed=0):
    """Measured and predicted contraction of gradient descent per step, step ``1/λ_max``."""
    problem = theory.normalized([n] * K, scale, d)
    _, high = theory.curvature_range(K, n, d, scale)
    predicted = theory.descent_rate(K, n, d, scale)
    # stop well above rounding: the gradient has lost eight digits by then
    last = min(400, int(log(1e-8) / log(predicted)))
    path = descend(
        problem,
        shaken(theory.minimum(K, n, d), 1e-3, seed),
        rate=1 / high,
        steps=last,
        record=[last - 20],
        measure=lambda point: {"norm": gradient_norm(problem, point)},
    )
    measured = (path.measured[-1]["norm"] / path.measured[-2]["norm"]) ** (1 / 20)
    return {"measured": measured, "predicted": predicted}


def block_steps(n, block, *, K, d, scale, seed=0):
    """``iterations`` to ``f - f* < 1e-10`` from near the minimum; ``block``: features n times
    as fast."""
    problem = theory.normalized([n] * K, scale, d)
    _, high = theory.curvature_range(K, n, d, scale, block_steps=block)
    goal = theory.optimum(K, scale).value + 1e-10
    start = shaken(theory.minimum(K, n, d), 0.1, seed)

    def near(point):
        return float(problem.value(point)) < goal

    rates = {"rate": 1 / high, "rates": {"features": (n if block else 1) / high}}
    return {"iterations": steps_until(problem, start, near, most=3000, every=5, **rates)}


def curvature(size, scale):
    """Closed-form smallest positive curvature and condition number at the minimum."""
    low, _ = theory.curvature_range(*size, scale)
    return {"low": low, "kappa": theory.condition_number(*size, scale)}


def measured_best_scales(K, n, d):
    """``(scale of largest curvature, scale of best conditioning)`` from Hessians by autograd."""
    point = theory.minimum(K, n, d)

    def extremes(x):
        return lowest_two(theory.normalized([n] * K, float(np.exp(x)), d), point)

    def flat(x):
        return -log(extremes(x)[0])

    def stretched(x):
        low, high = extremes(x)
        return log(high / low)

    bounds = {"method": "bounded", "bounds": (log(0.2), log(5.0 * K))}
    return tuple(float(np.exp(minimize_scalar(f, **bounds).x)) for f in (flat, stretched))


def best_scales(size):
    """Measured over closed-form best scales of ``size`` (K, n, d): ``curvature, conditioning``.

    ``formula``: measured best conditioning over :func:`theory.best_conditioning`; ``off``: by how
    much :func:`theory.best_scale` differs from that, which holds for K >= 4 and d >= K only.
    """
    measured, closed = measured_best_scales(*size), theory.best_scale(*size)
    plain = theory.best_conditioning(*size[:2])
    ratios = {name: measured[i] / closed[i] for i, name in enumerate(("curvature", "conditioning"))}
    return ratios | {"formula": measured[1] / plain, "off": abs(closed[1] / plain - 1)}


def budget(scale, *, K, n, d, seed=0):
    """:func:`sphere_metrics` of the model after 300 gradient steps from a random start, features n
    times as fast."""
    problem = theory.normalized([n] * K, scale, d)
    rates = {"rate": 2.0, "rates": {"features": 2.0 * n}, "steps": 300, "record": [300]}
    end = descend(problem, unit_start(problem, seed), **rates).points[-1]
    return sphere_metrics(end["features"], problem.targets, end["weight"])


# Saddles and what is not one --------------------------------------------------------------------


def _at(point):
    """Problem and point of a member of the zoo."""
    labels = point.labels
    problem = theory.normalized(labels.bincount().tolist(), point.scale, point.weight.shape[1])
    return problem, {"features": point.features, "weight": point.weight}


def saddles(K, n, d, scale):
    """The zoo: loss, predicted and measured ``λ_min``, certificate, number of ways down."""
    rows = []
    for point in theory.zoo(K, n, d, scale):
        problem, where = _at(point)
        eigenvalues = landscape.spectrum(problem, where)
        rows.append(
            {"name": point.name, "value": point.value, "loss": float(problem.value(where))}
            | {"predicted": point.min_eigenvalue, "measured": float(eigenvalues[0])}
            | {"gradient": gradient_norm(problem, where)}
            | {"certificate": theory.certificate(*where.values(), point.labels, scale)}
            | {"negative": int((eigenvalues < -1e-9).sum())}
        )
    return pd.DataFrame(rows)


def saddle_curvatures(scale, *, K, n, d, seed=0):
    """``λ_min / scale`` of every member of the zoo and of points with equal classifiers (2.L7)."""
    points = [*theory.zoo(K, n, d, scale)]
    points.append(theory.equal_classifiers(K, n, d, scale, generator=_generator(seed)))
    lows = [float(landscape.spectrum(*_at(point))[0]) / scale for point in points]
    return pd.DataFrame({"name": [point.name for point in points], "low": lows})


def sign_patterns(K, d, scale):
    """Measured ``λ_min`` at all ``2^{2K}`` sign patterns on a line, one sample per class."""
    rows = []
    for signs in torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * (2 * K)):
        point = theory.collinear(signs[:K], signs[K:], torch.arange(K), d, scale)
        rows.append({"value": point.value, "low": float(landscape.spectrum(*_at(point))[0])})
    return pd.DataFrame(rows)


class LeastGradient:
    """Half the squared Riemannian gradient of a problem on spheres: its zeros are critical points
    of any kind.  What :func:`nclib.ufm.solve.best` asks of a problem."""

    def __init__(self, problem):
        self.start, self.place, self.problem = problem.start, problem.place, problem

    def __call__(self, **coordinates):
        total = torch.func.grad(lambda x: self.problem(**x).sum())(self.place(coordinates))
        return sum(g.square().sum((-2, -1)) for g in total.values()) / 2

    many = __call__


def critical_points(K, d, scale, *, starts=60, seed=0):
    """Critical points, one sample per class, found by driving the gradient to zero: ``value, gap,
    low``.  Starts that end where it is not zero are left out."""
    problem, rows = theory.normalized([1] * K, scale, d), []
    found = best(LeastGradient(problem), starts, seed=seed, gtol=1e-10)
    for i in range(starts):
        point = {name: stack[i] for name, stack in found.points.items()}
        size = float(problem.logit_gradient(point).norm()) * scale
        if gradient_norm(problem, point) < 1e-7 * size:
            value, low = float(problem.value(point)), float(landscape.spectrum(problem, point)[0])
            rows.append({"value": value, "low": low})
    table = pd.DataFrame(rows)
    return table.assign(gap=table["value"] - theory.optimum(K, scale).value)


def equal_classifiers(size, scale, *, seed=0):
    """``λ_min`` and gradient over scale with all classifiers equal; ``size``: (K, n, d) (2.L7)."""
    point = theory.equal_classifiers(*size, scale, generator=_generator(seed))
    problem, where = _at(point)
    low = float(landscape.spectrum(problem, where)[0])
    return {"low": low, "gradient": gradient_norm(problem, where) / scale}


def collapse_angles(d, angle, *, K, n, scale):
    """``λ_min`` at total collapse against the angle between features and classifiers (2.L6)."""
    point = theory.total_collapse(K, n, d, scale, angle=angle)
    values = landscape.spectrum(*_at(point))
    low = float(values[0])
    count = int((values < low + 1e-9).sum())
    return {"measured": low, "predicted": point.min_eigenvalue, "multiplicity": count}


def escapes(size, *, K, n, d, scale, steps, seed=0):
    """Gradient descent with step 1 from ``size`` away from total collapse: gradient norm per step.

    ``growth``: the closed-form factor per step; ``predicted``: the norm by it, from a third of the
    way to a norm of .03 on.
    """
    problem, where = _at(theory.total_collapse(K, n, d, scale))
    path = descend(
        problem,
        shaken(where, size, seed),
        rate=1.0,
        steps=steps,
        record=[*range(steps)],
        measure=lambda point: {"gradient_norm": gradient_norm(problem, point)},
    )
    table = pd.DataFrame({"iteration": path.steps, "value": path.values})
    growth = theory.escape_growth(K, n, scale, 1.0)
    table = pd.concat([table, pd.DataFrame(path.measured)], axis=1)
    norms = table["gradient_norm"]
    end = int((norms.cummax() < 0.03).sum())
    first, steps = end // 3, table["iteration"]
    predicted = norms[first] * growth ** (steps - first)
    return table.assign(growth=growth, predicted=predicted.where((steps >= first) & (steps < end)))


def ends(n, d, *, K, scale, starts, seed=0):
    """Where random starts end: ``value`` and ``gradient`` of each, and the points, stacked."""
    problem = theory.normalized([n] * K, scale, d)
    found = best(problem, starts, seed=seed, max_iter=500)
    slopes = problem.gradient(found.points)
    norms = sum(g.square().sum((1, 2)) for g in slopes.values()).sqrt()
    return pd.DataFrame({"value": found.values, "gradient": norms}), found.points


def caught(table, above):
    """Share of starts that ended ``above`` this value where the gradient vanishes."""
    return float(((table["value"] > above) & (table["gradient"] < 1e-6)).mean())


def false_minimum(table, points, *, K, scale, above):
    """The lowest critical end of one sample per class that lies ``above`` this value, or None.

    ``table``, ``points``: of :func:`ends`.  A dict: its ``point`` and ``value``, the gradient and
    the second smallest Hessian eigenvalue there (the smallest is the rotation's zero), the smallest
    after a zero coordinate was appended, and the certificate.
    """
    high = table[(table["value"] > above) & (table["gradient"] < 1e-6)]
    if high.empty:
        return None
    index, d = high["value"].idxmin(), points["weight"].shape[2]
    problem, lifted = (theory.normalized([1] * K, scale, dim) for dim in (d, d + 1))
    near = {name: stack[index] for name, stack in points.items()}
    point = problem.place(newton_polish(problem, near, steps=6).variables)
    wide = {name: F.pad(rows, (0, 1)) for name, rows in point.items()}
    return {
        "point": point,
        "value": float(problem.value(point)),
        "gradient": gradient_norm(problem, point),
        "strict": float(landscape.spectrum(problem, point)[1]),
        "lifted": float(landscape.spectrum(lifted, wide)[0]),
        "certificate": theory.certificate(*point.values(), problem.targets, scale),
    }


def antipode(scale, *, K, n):
    """Curvature of one sample's loss at the antipode of its classifier, W a fixed ETF (2.L16).

    ``measured``: by automatic differentiation along the span of W; ``across``: along a direction
    orthogonal to it, always negative.
    """
    etf = frames.simplex_etf(K, K)  # the last coordinate is orthogonal to the span
    options = {"K": K, "scale": scale, "sphere": "features", "fixed": {"weight": etf}}
    problem = UFM(theory.LOSS, [0], K, (0, 0), **options)
    point = {"features": -etf[:1], "weight": etf}
    inside = F.normalize(etf[1] - etf[2], dim=0)
    along = {"measured": inside, "across": torch.eye(K, dtype=torch.float64)[-1]}
    bends = {
        name: landscape.curvature(problem, point, {"features": v[None]}) / (K * n)
        for name, v in along.items()
    }
    return bends | {"predicted": theory.antipode_curvature(K, n, scale)}


# Landscapes on the circle -----------------------------------------------------------------------

DEGREES = np.linspace(-180, 180, 121)


def circle_map(turn, *, K, scale):
    """A line of the slice of :func:`theory.circle_slice` above f*, angles in degrees."""
    value = theory.circle_slice(np.radians(turn), np.radians(DEGREES), K, scale)
    return pd.DataFrame({"offset": DEGREES, "excess": value - theory.optimum(K, scale).value})


def radial_map(radius, *, K, decay):
    """The hybrid problem above its minimum, W an ETF: features at this radius and any angle."""
    value = theory.circle_slice(2 * np.pi / K, np.radians(DEGREES), K, radius)
    value = value + decay / 2 * radius * radius - theory.hybrid_optimum(K, decay).value
    return pd.DataFrame({"offset": DEGREES, "excess": value})


def feature_wells(scale, *, K):
    """Loss of one sample over the angle of its feature to its classifier, W an ETF in the plane."""
    degrees = np.linspace(-180, 180, 361)
    value = theory.circle_slice(2 * np.pi / K, np.radians(degrees), K, scale)
    return pd.DataFrame({"angle": degrees, "value": value})


# Dimensions, codes, imbalance, sign constraints -------------------------------------------------


def dimension(K, d, *, scale, seed=0):
    """Best of six starts: gap to f*, NC2 of the classifier and its floor, and ``alignment``, the
    largest angle from a feature to its classifier in degrees."""
    problem = theory.normalized([1] * K, scale, d)
    found = best(problem, seed=seed, refine=True)
    metrics = collapse(problem, found.point)
    gap = found.value - theory.optimum(K, scale).value
    found = {name: metrics[name] for name in ("nc2", "nc2_floor")}
    return {"gap": gap, "alignment": metrics["alignment_max"]} | found


def dimensions(classes, scale, *, seed=0):
    """:func:`dimension` for d = 2 … K for each K of ``classes``."""
    parts = [over(dimension, K=[K], d=range(2, K + 1), scale=scale, seed=seed) for K in classes]
    return pd.concat(parts, ignore_index=True)


def codes(cases, *, seed=0):
    """Best of ten starts against a named code: the losses, the relative ``gap``, and ``alignment``,
    the largest angle from a feature to its classifier in degrees.

    ``cases``: (name, code (K, d), scale).  Searched in log f: at a large scale f is tiny.
    """
    rows = []
    for name, code, scale in cases:
        K, d = code.shape
        problem = theory.normalized([1] * K, scale, d, log=True)
        found = best(problem, 10, seed=seed, max_iter=400, refine=True)
        known = theory.code_value(code, scale)
        rows.append(
            {"name": name, "K": K, "d": d, "scale": scale, "found": np.exp(found.value)}
            | {"code": known, "gap": found.value - log(known)}
            | {"alignment": collapse(problem, found.point)["alignment_max"]}
        )
    return pd.DataFrame(rows)


def imbalance(cases, *, seed=0):
    """Imbalanced minima: ``(table, Gram matrices of W)``; ``cases``: (counts, d, scale).

    Value, spread over starts, certificate, NC metrics; ``etf``: how much higher the loss of a
    simplex ETF is; ``closer``: how much larger the smallest cosine of rows is than an ETF's, the
    first, largest class left out.
    """
    rows, grams = [], []
    for counts, d, scale in cases:
        problem = theory.normalized(counts, scale, d)
        found = best(problem, seed=seed, refine=True)
        metrics, point = collapse(problem, found.point), found.point
        etf = frames.simplex_etf(len(counts), d)
        balanced = float(problem.value({"features": etf[problem.targets], "weight": etf}))
        rows.append(
            {"counts": "-".join(map(str, counts)), "d": d, "scale": scale, "value": found.value}
            | {"spread": float(found.values.max() - found.values.min())}
            | {"etf": balanced - found.value, "nc1": metrics["nc1"], "nc2": metrics["nc2"]}
            | {"certificate": theory.certificate(*point.values(), problem.targets, scale)}
        )
        gram, K = point["weight"] @ point["weight"].T, len(counts)
        rows[-1]["closer"] = float(gram[1:, 1:].min()) + 1 / (K - 1)
        grams.append(gram)
    return pd.DataFrame(rows), grams


def nonnegative_minimum(K, n, d, scale, *, seed=0):
    """Minimum over features without negative entries: gaps and geometry (2.L13).

    Some starts end in a false minimum (one in four for K = d = 10): the lowest of twelve counts.
    ``above``: its value minus the loss of the explicit point; a search that ends above it got
    stuck.
    """
    problem = theory.normalized([n] * K, scale, d, nonnegative=True)
    target = theory.optimum(K, scale, nonnegative=True)
    axes = torch.eye(K, d, dtype=torch.float64)
    etf = F.normalize(axes - axes.mean(0), dim=1)
    known = float(problem.value({"features": axes[problem.targets], "weight": etf}))
    found = best(problem, 12, seed=seed, refine=True)
    means = found.point["features"][::n]
    return {
        "gap": found.value - target.value,
        "above": found.value - known,
        "above_etf": found.value - theory.optimum(K, scale).value,
        "orthonormal": float((means @ means.T - torch.eye(K)).abs().max()),
    } | collapse(problem, found.point)
