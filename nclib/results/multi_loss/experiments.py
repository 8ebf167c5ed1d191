"""Experiments of result 1: optimisers against the closed forms, and one network per loss.

Row functions take one setting and return one row of a table, for :func:`nclib.table.over`.  A
*setting* is what :func:`problem` takes: ``K, n, d, lambda_w, lambda_h, lambda_b``.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import f as f_distribution
from scipy.stats import f_oneway
from torch import nn

from nclib import checks, frames, losses
from nclib.deep import collect, nets, train
from nclib.deep import data as image_data
from nclib.metrics import nc_metrics
from nclib.metrics.geometry import class_means, etf_error, gram_distance
from nclib.results.multi_loss import theory
from nclib.table import extreme, log_spaced
from nclib.ufm import flow, landscape
from nclib.ufm.model import UFM
from nclib.ufm.solve import best

# The unconstrained-features model -----------------------------------------------------------------


def problem(loss, *, K, n, d, lambda_w, lambda_h, lambda_b=0.0):
    """The model of :func:`theory.optimum` as a :class:`UFM`: K classes of n samples, one layer."""
    theory.strength(n, lambda_w, lambda_h)
    return UFM.classes([n] * K, loss, widths=d, decays=(lambda_h, lambda_w), bias=lambda_b)


def optimal_point(loss, **setting):
    """An explicit global minimiser (d >= K-1): a simplex ETF at the optimal margin, turned, the
    mean component in one more dimension."""
    exact = theory.optimum(loss, **setting)
    logits = exact.margin * frames.centring(setting["K"]) + exact.mean_component
    return balanced_point(logits, bias=exact.bias, **setting)


def balanced_point(logits, *, K, n, d, lambda_w, lambda_h, lambda_b, bias=0.0):
    """The cheapest W and H with these class logits ``(K, K)`` of rank at most d, turned; every
    entry of the bias is ``bias`` (none if ``lambda_b`` is ``None``)."""
    left, size, right = torch.linalg.svd(logits)
    rank = int((size > 1e-14).sum())
    basis = frames.random_rotation(d, generator=torch.Generator().manual_seed(0))[:, :rank]
    root, scale = size[:rank].sqrt(), (n * lambda_h / lambda_w) ** 0.25
    point = {
        "features": (right[:rank].T * root / scale @ basis.T).repeat_interleave(n, 0),
        "weight": left[:, :rank] * root * scale @ basis.T,
    }
    if lambda_b is not None:
        point["bias"] = torch.full((K,), float(bias), dtype=torch.float64)
    return point


def class_logits(ufm, point):
    """Mean logits of each class, centred over the K outputs: ``(K, K)``."""
    logits = ufm.logits(point).reshape(ufm.K, -1, ufm.K).mean(1)
    return logits - logits.mean(1, keepdim=True)


def margin_of(logits):
    """The margin s of class logits ``s (I - 11ᵀ/K)``, read off their diagonal."""
    return float(logits.diagonal().mean()) * len(logits) / (len(logits) - 1)


def scalar_value(loss, s, c, *, K):
    """``φ(s) + c(K-1)s``, the scalar problem."""
    return theory.scalar_loss(loss, s, K=K) + c * (K - 1) * s


def known_margin(loss, c, *, K):
    """Margin, probability of the true class and value at strength c, from the closed form.

    The focal loss without bias, which changes no margin and has no tie to refuse.
    """
    bias = None if isinstance(loss, losses.Focal) else 0.0
    exact = theory.optimum(loss, K=K, n=1, lambda_w=c, lambda_h=c, lambda_b=bias)
    return {"margin": exact.margin, "probability": exact.probability, "value": exact.value}


def found_margin(loss, c, *, K):
    """The same from the optimiser."""
    ufm = problem(loss, K=K, n=1, d=K + 2, lambda_w=c, lambda_h=c)
    found = best(ufm, 4)
    probability = float(ufm.logits(found.point).softmax(1).diagonal().mean())
    margin = margin_of(class_logits(ufm, found.point))
    return {"margin": margin, "probability": probability, "value": found.value}


def equivalent(loss, **setting):
    """Margin, confidence, the equivalent strength of cross-entropy, and the temperature to it.

    ``softmax(logits / temperature)`` is cross-entropy's softmax at the same setting.
    """
    exact = theory.optimum(loss, **setting)
    return {
        "margin": exact.margin,
        "probability": exact.probability,
        "equivalent c": exact.equivalent_c,
        "temperature": exact.margin / theory.optimum("ce", **setting).margin,
    }


def same_shape(logits, plain):
    """Class logits ``(K, K)`` against those of cross-entropy, ``plain`` (claim 1.L6).

    ``shape``: largest difference, both of norm 1; ``temperature``: largest error of the softmax at
    the temperature that turns it into cross-entropy's.
    """
    scaled = logits * margin_of(plain) / margin_of(logits)
    return {
        "shape": float((logits / logits.norm() - plain / plain.norm()).abs().max()),
        "temperature": float((scaled.softmax(1) - plain.softmax(1)).abs().max()),
    }


def contrastive_violation(loss, *, K, seed=0):
    """The contrastive property on 20 000 random logits of size 3 (claim 1.L2).

    ``lower``: by how much the loss falls below its value at equal wrong logits with the same
    ``Σ_j (z_j - z_y)``; ``shift``: how much it changes when all logits are shifted.  Both are 0 up
    to rounding for a loss that has the property.  ``strict``: by how much, relative to the loss, it
    is above that value at least where the wrong logits differ (standard deviation above 1).
    ``loss`` is anything with ``per_sample(logits, labels)``, so users can test their own.
    """
    checks.integer("K", K, 3)  # with one wrong logit there is nothing to compare
    generator = torch.Generator().manual_seed(seed)
    logits = 3.0 * torch.randn(20_000, K, generator=generator, dtype=torch.float64)
    labels = torch.randint(K, (len(logits),), generator=generator)
    own, wrong = logits.gather(1, labels[:, None]), 1 - F.one_hot(labels, K)
    margin = (own - logits).sum(1, keepdim=True) / (K - 1)
    value = loss.per_sample(logits, labels)
    excess = value - loss.per_sample(own - margin * wrong, labels)
    shift = (loss.per_sample(logits + 1.7, labels) - value).abs().max()
    spread = ((logits - own + margin) * wrong).square().sum(1) / (K - 1)
    strict = (excess / value.abs())[spread > 1].min()
    return {"lower": float(-excess.min()), "strict": float(strict), "shift": float(shift)}


S_GRID = torch.linspace(0.0, 12.0, 4001, dtype=torch.float64)


def margin_curve(loss, K):
    """The loss at the margins :data:`S_GRID` over equal wrong logits, from logits ``(4001, K)``."""
    logits = F.pad(S_GRID[:, None], (0, K - 1))
    return loss.per_sample(logits, torch.zeros(len(S_GRID), dtype=torch.int64))


def minimising_margin(loss, c, *, K):
    """The margin that minimises the scalar problem, by looking at all of :data:`S_GRID`."""
    return float(S_GRID[(margin_curve(loss, K) + c * (K - 1) * S_GRID).argmin()])


def largest_jump(loss, K):
    """The largest step that the minimising margin makes while c changes (claim 1.L3).

    The minimisers for all c are the corners of the lower convex hull of the curve; with one
    minimiser for every c they follow each other on the grid (spacing .003).
    """
    points, hull = np.stack([S_GRID, margin_curve(loss, K)], 1), []
    for x, y in points:
        while len(hull) > 1:
            (x1, y1), (x2, y2) = hull[-2:]
            if (x2 - x1) * (y - y1) > (y2 - y1) * (x - x1):
                break
            hull.pop()
        hull.append((x, y))
    return float(np.diff([x for x, _ in hull]).max())


def uniqueness(gamma, K):
    """Whether the focal loss has a c with two minimisers: predicted by ``K > 1/t_c`` and found."""
    share = K * theory.focal_convexity_threshold(gamma)
    return {
        "share": share,
        "predicted": share > 1,
        "found": largest_jump(losses.Focal(gamma), K) > 0.01,
    }


def many_classes(gamma):
    """A K at which the focal loss has a clear tie, ``⌈1.72/t_c⌉`` (30 for γ = 3), at most 100."""
    t_c = theory.focal_convexity_threshold(gamma)
    return min(100, math.ceil(1.72 / t_c)) if t_c else 100


def tie(gamma, K):
    """The whole model, two samples per class, at the strength of the tie, ``c_glob`` (1.L3).

    ``jump``: fall of the minimising margin while c grows by .02 % across it; ``difference``: of the
    values of the simplex ETF and of W = H = 0, no bias; ``gradient``: the largest entry of their
    gradients; ``partial``: how far a third critical point lies below both once the bias is free:
    most classes form a simplex ETF, the others stay at zero.
    """
    loss = losses.Focal(gamma)
    _, c, jump = theory.focal_thresholds(K, gamma)
    before, after = (minimising_margin(loss, share * c, K=K) for share in (0.9999, 1.0001))
    lam = c / 2**0.5
    setting = {"K": K, "n": 2, "d": K, "lambda_w": lam, "lambda_h": lam}
    ufm = problem(loss, **setting, lambda_b=None)
    etf, some = jump * frames.centring(K), torch.zeros(K, K, dtype=torch.float64)
    some[: 3 * K // 4, : 3 * K // 4] = etf[: 3 * K // 4, : 3 * K // 4]
    points = [balanced_point(z, **setting, lambda_b=None) for z in (etf, 0 * etf)]
    values = [float(ufm.value(point)) for point in points]
    slopes = [part.abs().max() for point in points for part in flow.slopes(ufm, point).values()]
    start = balanced_point(some, **setting, lambda_b=0.0)
    free = problem(loss, **setting, lambda_b=0.0)
    third = best(free, {name: x[None] for name, x in start.items()}).value
    return {
        "jump": before - after,
        "difference": abs(values[0] - values[1]),
        "gradient": float(max(slopes)),
        "partial": min(values) - third,
    }


def against_closed_form(loss, setting):
    """The best of four starts against the closed form (claim 1.L1).

    ``value_gap`` (signed), ``logit_error`` (centred class logits), ``norm_error`` (the worse of W
    and H, relative), ``duality_error`` (features against ``√(λ_W/(nλ_H))`` times their row of W).
    """
    ufm, exact = problem(loss, **setting), theory.optimum(loss, **setting)
    found, K, n = best(ufm, 4), setting["K"], setting["n"]
    features, weight = found.point["features"], found.point["weight"]
    logit_error = class_logits(ufm, found.point) - exact.margin * frames.centring(K)
    norms = float(weight.norm()) / exact.weight_norm, float(features.norm()) / exact.feature_norm
    dual = (setting["lambda_w"] / (n * setting["lambda_h"])) ** 0.5
    duality_error = features - dual * weight.repeat_interleave(n, 0)
    return {
        "value_gap": found.value - exact.value,
        "logit_error": float(logit_error.abs().max()),
        "norm_error": max(abs(ratio - 1) for ratio in norms),
        "duality_error": float(duality_error.abs().max()),
    }


def gain_near_threshold(loss, factor, lambda_b, *, K, d, seed=0):
    """How far the minimum lies below W = H = 0 at ``factor`` times the threshold (claim 1.L4)."""
    c = factor * theory.threshold(loss, K=K, lambda_b=lambda_b)
    setting = {"K": K, "n": 1, "d": d, "lambda_w": c, "lambda_h": c, "lambda_b": lambda_b}
    found = best(problem(loss, **setting), seed=seed)
    return theory.value_at_zero(loss, K=K, lambda_b=lambda_b) - found.value


def smoothing_gap(alpha, *, seed=0, **setting):
    """The optimiser's value of cross-entropy at ``c + α/K`` minus the closed form of label
    smoothing at c (claim 1.L5)."""
    exact, K = theory.optimum("ls", alpha=alpha, **setting), setting["K"]
    c = exact.c + alpha / K
    plain = problem(losses.CrossEntropy(), K=K, n=1, d=setting["d"], lambda_w=c, lambda_h=c)
    return best(plain, seed=seed).value - exact.value


def saddle(loss, rank, **setting):
    """Predicted and measured curvature at a saddle of this rank (claims 1.L8, L9)."""
    ufm = problem(loss, **setting)
    point = landscape.saddle(ufm, rank)
    direction, predicted = landscape.escape(ufm, point)
    return {
        "predicted": predicted,
        "measured": landscape.curvature(ufm, point, direction),
        "height": float(ufm.value(point)) - theory.optimum(loss, **setting).value,
        "certificate": ufm.certificate(point),
    }


def saddle_logits(loss, rank, **setting):
    """Class logits, as in :func:`class_logits`, of a critical point of this rank (1.L6)."""
    ufm = problem(loss, **setting)
    return class_logits(ufm, landscape.saddle(ufm, rank))


def way_down(rank, *, loss, **setting):
    """The objective along that direction minus its value at the saddle, and its parabola."""
    ufm = problem(loss, **setting)
    point = landscape.saddle(ufm, rank)
    direction, predicted = landscape.escape(ufm, point)
    t = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)
    moved = {name: x + t.reshape(-1, *[1] * x.ndim) * direction[name] for name, x in point.items()}
    rise = ufm.value(moved) - ufm.value(point)
    return pd.DataFrame({"t": t, "value": rise, "parabola": predicted * t * t / 2})


def start_gaps(loss, d, *, starts, seed=0, **setting):
    """``f - f*`` from random starts, one row each (claims 1.L7, L14).

    For d < K-1 there is no closed form; the gap is then to the value that d = K-1 would allow.
    """
    floor = theory.optimum(loss, **setting, d=max(d, setting["K"] - 1)).value
    found = best(problem(loss, **setting, d=d), starts, seed=seed, scale=(0.01, 10.0))
    return [{"start": i, "gap": float(value) - floor} for i, value in enumerate(found.values)]


def zero_modes(loss, lambda_b, **setting):
    """Zero eigenvalues of the Hessian at the global minimum, counted and predicted (1.L15)."""
    setting |= {"lambda_b": lambda_b}
    point = optimal_point(loss, **setting)
    spectrum = landscape.spectrum(problem(loss, **setting), point)
    return {
        "found": int((spectrum.abs() < 1e-7).sum()),
        "known": theory.flat_directions(loss, **setting),
    }


def focal_window(share, *, K, gamma, seed=0):
    """The focal loss at ``c = c_loc + share (c_glob - c_loc)`` (claim 1.L11).

    ``curvature``: the smallest Hessian eigenvalue at W = H = 0, the same in every dimension d;
    ``height`` of zero above the minimum; ``fraction`` of twelve random starts that reach the
    minimum, ``highest_gap`` of the others.
    """
    loss, n, starts = losses.Focal(gamma), 2, 12
    local, globally, _ = theory.focal_thresholds(K, gamma)
    c = local + share * (globally - local)
    setting = {"K": K, "n": n, "lambda_w": c / n**0.5, "lambda_h": c / n**0.5, "lambda_b": 0.01}
    found = best(problem(loss, d=K, **setting), starts, seed=seed, scale=(0.03, 3.0))
    floor = theory.optimum(loss, **setting).value
    gap, flat = found.values - floor, problem(loss, d=1, **setting)
    zero = flat.start(torch.Generator(), 0.0)
    return {
        "ratio": c / local,
        "curvature": float(landscape.spectrum(flat, zero)[0]),
        "height": theory.value_at_zero(loss, K=K) - floor,
        "fraction": float((gap < 1e-6).double().mean()),
        "highest_gap": float(gap.max()),
    }


def focal_convexity_mismatches(*, samples, seed=0):
    """Random logits where the sign of the focal loss's Hessian contradicts ``p_y >= t_c`` (L10)."""
    generator, label = torch.Generator().manual_seed(seed), torch.zeros(1, dtype=torch.int64)
    count = 0
    for _ in range(samples):
        kind, more = (int(torch.randint(high, (), generator=generator)) for high in (5, 10))
        loss = losses.Focal((0.5, 1.0, 2.0, 3.0, 5.0)[kind])
        z = 2.5 * torch.randn(2 + more, generator=generator, dtype=torch.float64)
        hessian = torch.func.hessian(lambda z, loss=loss: loss(z[None], label))(z)
        convex = float(torch.linalg.eigvalsh(hessian)[0]) > -1e-9
        count += convex != (float(z.softmax(0)[0]) >= theory.focal_convexity_threshold(loss.gamma))
    return count


def bias_geometry(lambda_b, *, starts=4, seed=0, **setting):
    """The MSE optimum as found: bias, singular values of W, NC2, gap (claims 1.L12, L13).

    ``lambda_b = inf`` stands for no bias.
    """
    setting |= {"lambda_b": None if lambda_b == float("inf") else lambda_b}
    found = best(problem(losses.MeanSquaredError(), **setting), starts, seed=seed, newton=2)
    weight = found.point["weight"]
    singular = torch.linalg.svdvals(weight)
    return {
        "bias": float(found.point["bias"].mean()) if "bias" in found.point else 0.0,
        "etf_singular": float(singular.max()),
        "mean_singular": float(singular.min()),
        "nc2": etf_error(weight),
        "nc2_centered": etf_error(weight - weight.mean(0)),
        "value_gap": found.value - theory.optimum("mse", **setting).value,
    }


def known_bias_geometry(lambda_b, **setting):
    """Its bias, singular values and NC2 from the closed form."""
    setting |= {"lambda_b": None if lambda_b == float("inf") else lambda_b}
    exact, K = theory.optimum("mse", **setting), setting["K"]
    root = (setting["n"] * setting["lambda_h"] / setting["lambda_w"]) ** 0.25
    return {
        "bias": exact.bias,
        "etf_singular": root * exact.margin**0.5,
        "mean_singular": root * (K * exact.mean_component) ** 0.5,
        "nc2": gram_distance(exact.margin * frames.centring(K) + exact.mean_component),
    }


def truncated_frame(kept, *, K, **setting):
    """A minimiser of the MSE without bias at d = K-1, by its subspace (claim 1.L13).

    ``kept``: ``"centred"``, all orthogonal to the vector of ones, or ``"axes"``, all
    classes but the first.  ``value_gap`` to the closed form, ``gradient``: largest entry, NC2.
    """
    setting |= {"K": K, "d": K - 1, "lambda_b": None}
    subspace = torch.eye(K, dtype=torch.float64)
    subspace[0, 0] = 0.0
    subspace = frames.centring(K) if kept == "centred" else subspace
    exact = theory.optimum("mse", **setting)
    ufm = problem(losses.MeanSquaredError(), **setting)
    point = balanced_point(exact.margin * subspace, **setting)
    return {
        "value_gap": float(ufm.value(point)) - exact.value,
        "gradient": float(max(part.abs().max() for part in flow.slopes(ufm, point).values())),
        "nc2": etf_error(point["weight"]),
    }


# Networks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nets:
    """``table``: one row per net (accuracies, metrics); ``curves``: metrics against epochs, longest
    runs of the widest net; ``logits``: (loss, width, epochs, seed) -> normalised class logits."""

    table: pd.DataFrame
    curves: pd.DataFrame
    logits: dict


def require(architecture, *, widths, epochs, long_epochs, dataset, train_per_class, validation):
    """Say now what :func:`train_nets` would say later: for a notebook's first cell.

    The arguments are the notebook's parameters.  Raises :class:`~nclib.checks.InputError` for
    widths that the architecture does not have, for a long training that is not the longest, for a
    data set that is not here or too small, and for a validation share that leaves too little on
    either side.
    """
    nets.require_widths(architecture, widths=widths)
    checks.require(
        long_epochs is None or long_epochs > epochs[-1],
        f"parameter long_epochs must be None or above {epochs[-1]}, the longest of epochs, "
        f"got {long_epochs}",
    )
    image_data.require(dataset, {"train_per_class": train_per_class})
    images = image_data.smallest_class(dataset, train_per_class)[0]
    if validation and (validation * images < 1 or (1 - validation) * images < 10):
        raise checks.InputError(
            "parameter validation must leave one image per class to validate and ten to train, "
            f"got {validation} of {images}; raise train_per_class or set validation=0"
        )


def builder(architecture, width, data):
    """``() -> net`` by :func:`nclib.deep.nets.build`; the feature dimension ignores ``width``.

    ``mlp``: inputs-width-32; ``cnn``: width-2·width-64 channels; ResNet-18 scales its feature
    dimension too.
    """
    sizes = {"mlp": [int(width), 32], "cnn": [int(width), 2 * int(width), 64]}
    sizes = sizes.get(architecture, width)
    return partial(nets.build, architecture, data, sizes, strides=[2, 2, 2])


def linear_classifiers(named_losses, train_data, test_data, recipe, *, seeds):
    """The control: one linear classifier of the pixels per loss and seed, no features learned.

    Same images and ``recipe``; one row per classifier: loss, seed, train and test accuracy.
    """

    def build():
        inputs = train_data.inputs[0].numel()
        return nets.Classifier(nn.Flatten(), nn.Linear(inputs, train_data.num_classes))

    def measure(net, cell, epoch):
        parts = {"train_accuracy": train_data, "test_accuracy": test_data}
        return {name: 100 * collect.accuracy(net, part) for name, part in parts.items()}

    cells = [
        train.Cell(loss, seed, recipe.epochs, {"loss": name})
        for name, loss in named_losses.items()
        for seed in seeds
    ]
    trained = train.grid(build, cells, train_data, recipe, measure=measure, label="linear")
    return train.history(trained).query("epoch > 0").drop(columns=["epoch", "lr", "train_loss"])


def train_nets(
    named_losses,
    train_data,
    test_data,
    recipe,
    *,
    architecture,
    widths,
    epochs,
    seeds,
    validation=0.0,
    checkpoint=None,
    augment=None,
):
    """One net per loss, width, training length and seed: :class:`Nets`.

    Each has its own learning-rate schedule; the nets of one seed share initial weights and batches.

    Args:
        named_losses: name -> loss of :mod:`nclib.losses`.
        train_data, test_data: :class:`nclib.deep.data.Data`.
        recipe: :class:`nclib.deep.train.Recipe`; its ``epochs`` is replaced by each of ``epochs``.
        widths, epochs, seeds: the grid.
        validation: share of the training data held out; if positive, the accuracy kept is that of
            the measured epoch with the best validation accuracy (the first one, if tied), else
            that of the last epoch.
        checkpoint: ``width -> path``, or ``None``.
        augment: as in :func:`nclib.deep.train.fit`.
    """
    held_out = None
    if validation:
        generator = torch.Generator().manual_seed(0)
        held_out, train_data = train_data.split(validation, generator=generator)
    cells = [
        train.Cell(loss, seed, length, {"loss": name})
        for length in epochs
        for name, loss in named_losses.items()
        for seed in seeds
    ]
    longest = max(epochs)
    moments = {*log_spaced(longest, 13)[1:], *range(1, longest, max(1, longest // 20))}

    def measure(net, cell, epoch):
        found = {"test_accuracy": 100 * collect.accuracy(net, test_data)}
        if held_out is not None:
            found["validation_accuracy"] = 100 * collect.accuracy(net, held_out)
        if epoch and (epoch == cell.epochs or cell.epochs == longest):
            found |= measure_collapse(net, train_data)
        return found

    rows, curves, logits = [], [], {}
    for width in widths:
        trained = train.grid(
            builder(architecture, width, train_data),
            cells,
            train_data,
            recipe,
            measure=measure,
            measure_at=moments if width == max(widths) or validation else (),
            checkpoint=checkpoint and checkpoint(width),
            together=architecture == "mlp",
            augment=augment,
            label=f"width {width}",
        )
        for one in trained:
            key = {"loss": one.cell.tags["loss"], "width": width}
            key |= {"epochs": one.cell.epochs, "seed": one.cell.seed}
            logits[tuple(key.values())] = normalised_logits(one.net, train_data)
            rows.append(key | _row(one.history, held_out is not None))
            if width == max(widths) and one.cell.epochs == longest:
                curves.append(one.history.query("epoch > 0").assign(**key))
    return Nets(pd.DataFrame(rows), pd.concat(curves, ignore_index=True), logits)


def _row(history, validated):
    """The last measurement of a net, with the test accuracy that its validation chose."""
    kept = history.iloc[history["validation_accuracy"].argmax() if validated else -1]
    final = history.iloc[-1].drop(["epoch", "lr"]).to_dict()
    return final | {"test_accuracy": kept["test_accuracy"]}


def measure_collapse(net, data):
    """NC1-NC3, residual, class logits against the ETF, accuracy and confidence on ``data``."""
    features = collect.features(net, data.inputs)
    logits = collect.in_batches(net.head, features)
    own = torch.log_softmax(logits.detach(), 1).gather(1, data.labels[:, None]).exp()
    return nc_metrics(features, data.labels, net.weight, net.bias) | {
        "logits_etf": _apart(normalised_logits(net, data), frames.etf_gram(data.num_classes)),
        "train_accuracy": 100 * float((logits.argmax(1) == data.labels).double().mean()),
        # 0.0585 bounds the focal loss's convexity threshold t_c for every gamma (claim 1.L10).
        "share_below_threshold": float((own < 0.0585).double().mean()),
        "median_probability": float(own.median()),
    }


def normalised_logits(net, data):
    """Mean logits of each class, centred over outputs and scaled to norm 1: ``(K, K)``, float64."""
    logits = collect.logits(net, data.inputs)
    means, _ = class_means(logits, data.labels, data.num_classes)
    centred = means - means.mean(1, keepdim=True)
    return (centred / centred.norm()).cpu()


def _apart(one, other):
    return float((one - other).norm())


def logit_distances(logits):
    """Distance of every net's class logits (``Nets.logits``) to cross-entropy's of the same cell.

    One row per pair: loss, width, epochs, seed, ``other`` (the seed of the cross-entropy net),
    distance, pair: ``"same seed"`` (initial weights and batches shared) or ``"two seeds"``.
    """
    names, rows = ("loss", "width", "epochs", "seed"), []
    for (loss, width, epochs, seed), own in logits.items():
        for (plain, *cell, other), their in logits.items():
            if plain != "ce" or cell != [width, epochs] or (loss == "ce" and seed == other):
                continue
            key = dict(zip(names, (loss, width, epochs, seed), strict=True))
            pair = "same seed" if seed == other else "two seeds"
            rows.append(key | {"other": other, "pair": pair, "distance": _apart(own, their)})
    return pd.DataFrame(rows)


def ends(curves):
    """The last measurement of each net of ``Nets.curves``, the worst seed per loss (claim 1.L16).

    ``…_fall``: the last value over that at the first measured epoch with 99.9 % training accuracy
    (the last epoch if there is none): what training past zero error adds.
    """
    rows = []
    for (loss, _), part in curves.groupby(["loss", "seed"], sort=False):
        last, fitted = part.iloc[-1], part[part["train_accuracy"] >= 99.9]
        first = fitted.iloc[0] if len(fitted) else last
        falls = {f"{name}_fall": last[name] / first[name] for name in FALLING}
        rows.append({"loss": loss, "first": first["epoch"]} | last[list(SHOWN)].to_dict() | falls)
    table = pd.DataFrame(rows).groupby("loss", sort=False)
    return extreme(table, "max").assign(train_accuracy=extreme(table["train_accuracy"], "min"))


COLLAPSE = ("nc1", "nc2", "nc3")
FALLING = (*COLLAPSE, "residual", "logits_etf")
SHOWN = (*COLLAPSE, "nc2_centered", "nc3_centered", "residual", "logits_etf", "train_accuracy")


def accuracies(table):
    """Mean, lowest and highest test accuracy of each loss, width and training length."""
    by = table.groupby(["loss", "width", "epochs"], sort=False)["test_accuracy"]
    return by.agg(["mean", "min", "max", "count"]).reset_index()


def equivalence(table):
    """Differences between the losses among the nets of one cell (claim 1.L17), a mapping.

    ``variance``: population variance of the test accuracy over all nets; ``largest_gap``: largest
    ``|mean accuracy of cross-entropy - mean of another loss|`` in points.  With two seeds or more
    ``f_statistic``: variance between losses over variance between seeds, about 1 if losses do not
    matter, and ``f_limit``, which it then exceeds in one case of a hundred; NaN otherwise.
    """
    accuracy = table.pivot(index="loss", columns="seed", values="test_accuracy")
    means, (kinds, seeds) = accuracy.mean(axis=1), accuracy.shape
    found = {
        "variance": float(accuracy.to_numpy().var()),
        "largest_gap": float((means - means["ce"]).abs().max()),
        "f_statistic": math.nan,
        "f_limit": math.nan,
    }
    if seeds > 1:
        found["f_statistic"] = float(f_oneway(*accuracy.to_numpy()).statistic)
        found["f_limit"] = float(f_distribution.ppf(0.99, kinds - 1, kinds * (seeds - 1)))
    return found


def equivalences(table):
    """:func:`equivalence` of each width and training length, one row each."""
    parts = table.groupby(["width", "epochs"])
    return pd.DataFrame(
        {"width": width, "epochs": epochs} | equivalence(part) for (width, epochs), part in parts
    )
