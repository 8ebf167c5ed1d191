"""Experiments of result 1: optimisers against the closed forms, and one network per loss.

Row functions take one setting and return one row of a table, for :func:`nclib.table.over`.  A
*setting* is what :func:`problem` takes: ``K, n, d, lambda_w, lambda_h, lambda_b``.
"""

from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F

from nclib import checks, frames, losses
from nclib.deep import collect, nets, train
from nclib.deep import data as image_data
from nclib.metrics import nc_metrics
from nclib.results.multi_loss import theory
from nclib.table import log_spaced
from nclib.ufm import landscape
from nclib.ufm.model import UFM
from nclib.ufm.solve import best

ARCHITECTURES = ("mlp", "cnn", "resnet18", "resnet50")


# The unconstrained-features model -----------------------------------------------------------------


def problem(loss, *, K, n, d, lambda_w, lambda_h, lambda_b=0.0):
    """The model of :func:`theory.optimum` as a :class:`UFM`: K classes of n samples, one layer."""
    theory.strength(n, lambda_w, lambda_h)
    return UFM.classes([n] * K, loss, widths=d, decays=(lambda_h, lambda_w), bias=lambda_b)


def optimal_point(loss, *, generator=None, **setting):
    """An explicit global minimiser (d >= K-1): a simplex ETF at the optimal margin, turned at
    random, the mean component in one more dimension."""
    exact, K, n = theory.optimum(loss, **setting), setting["K"], setting["n"]
    logits = exact.margin * frames.centring(K) + exact.mean_component
    left, size, right = torch.linalg.svd(logits)
    rank = int((size > 1e-14).sum())
    basis = frames.random_rotation(setting["d"], max(rank, 1), generator=generator)[:, :rank]
    root = size[:rank].sqrt()
    scale = (n * setting["lambda_h"] / setting["lambda_w"]) ** 0.25
    point = {
        "features": (right[:rank].T * root / scale @ basis.T).repeat_interleave(n, 0),
        "weight": left[:, :rank] * root * scale @ basis.T,
    }
    if setting["lambda_b"] is not None:
        point["bias"] = torch.full((K,), exact.bias, dtype=torch.float64)
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
    """Margin, probability of the true class and value at strength c, from the closed form."""
    exact = theory.optimum(loss, K=K, n=1, lambda_w=c, lambda_h=c)
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


def contrastive_violation(loss, *, K, seed=0, samples=20_000, scale=3.0):
    """Largest violation of the contrastive property found by random search (claim 1.L2).

    ``lower``: by how much the loss falls below its value at equal wrong logits with the same
    ``Σ_j (z_j - z_y)``; ``shift``: how much it changes when all logits are shifted.  Both are 0 up
    to rounding for a loss that has the property.  ``loss`` is anything with ``per_sample(logits,
    labels)``, so users can test their own.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(samples, K, generator=generator, dtype=torch.float64)
    labels = torch.randint(K, (samples,), generator=generator)
    own = logits.gather(1, labels[:, None])
    margin = (own - logits).sum(1, keepdim=True) / (K - 1)
    equal = own - margin * (1 - F.one_hot(labels, K))
    value = loss.per_sample(logits, labels)
    lower = (loss.per_sample(equal, labels) - value).max()
    shift = (loss.per_sample(logits + 1.7, labels) - value).abs().max()
    return {"lower": float(lower), "shift": float(shift)}


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


def gain_near_threshold(loss, factor, *, K, d, seed=0):
    """How far the minimum lies below W = H = 0 at ``factor`` times the threshold (claim 1.L4)."""
    c = factor * theory.threshold(loss, K=K)
    found = best(problem(loss, K=K, n=1, d=d, lambda_w=c, lambda_h=c), seed=seed)
    return theory.value_at_zero(loss, K=K) - found.value


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


def focal_window(ratio, *, K=30, gamma=3.0, starts=12, seed=0):
    """Share of random starts that reach the global minimum at ``c = ratio * c_loc`` (1.L11)."""
    loss, n = losses.Focal(gamma), 2
    lam = ratio * theory.focal_thresholds(K, gamma)[0] / n**0.5
    setting = {"K": K, "n": n, "d": K + 2, "lambda_w": lam, "lambda_h": lam, "lambda_b": 0.01}
    found = best(problem(loss, **setting), starts, seed=seed, scale=(0.03, 3.0))
    gap = found.values - theory.optimum(loss, **setting).value
    reached = int((gap < 1e-6).sum())
    return {
        "reached": reached,
        "starts": starts,
        "fraction": reached / starts,
        "lowest_gap": float(gap.min()),
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
        "nc2": _nc2(weight),
        "nc2_centered": _nc2(weight - weight.mean(0)),
        "value_gap": found.value - theory.optimum("mse", **setting).value,
    }


def known_bias_geometry(lambda_b, **setting):
    """Its bias and singular values from the closed form."""
    setting |= {"lambda_b": None if lambda_b == float("inf") else lambda_b}
    exact = theory.optimum("mse", **setting)
    root = (setting["n"] * setting["lambda_h"] / setting["lambda_w"]) ** 0.25
    return {
        "bias": exact.bias,
        "etf_singular": root * exact.margin**0.5,
        "mean_singular": root * (setting["K"] * exact.mean_component) ** 0.5,
    }


def _nc2(weight):
    gram = weight @ weight.T
    return float((gram / gram.norm() - frames.etf_gram(len(weight))).norm())


# Networks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nets:
    """``table``: one row per net (accuracies, metrics, agreement with cross-entropy); ``curves``:
    metrics against epochs, longest runs of the widest net; ``nets``: (loss, width, epochs, seed)
    -> net."""

    table: pd.DataFrame
    curves: pd.DataFrame
    nets: dict


def require(architecture, *, widths, dataset, train_per_class, validation):
    """Say now what :func:`train_nets` would say later: for a notebook's first cell.

    The arguments are the notebook's parameters.  Raises :class:`~nclib.checks.InputError` for
    widths that the architecture does not have, for a data set that is not here or too small, and
    for a validation share that leaves too little on either side.
    """
    nets.require_widths(architecture, widths=widths)
    image_data.require(dataset, {"train_per_class": train_per_class})
    images = image_data.smallest_class(dataset, train_per_class)[0]
    if validation and (validation * images < 1 or (1 - validation) * images < 10):
        raise checks.InputError(
            "parameter validation must leave one image per class to validate and ten to train, "
            f"got {validation} of {images}; raise train_per_class or set validation=0"
        )


def builder(architecture, width, data):
    """``() -> net`` for one of :data:`ARCHITECTURES`; the feature dimension ignores ``width``.

    ``mlp``: inputs-width-32; ``cnn``: width-2·width-64 channels; the ResNets as in
    :func:`nclib.deep.nets.resnet` (ResNet-18 scales its feature dimension too).
    """
    checks.choice("architecture", architecture, ARCHITECTURES)
    K, channels = data.num_classes, data.inputs.shape[1]
    if architecture == "mlp":
        inputs = data.inputs[0].numel()
        return lambda: nets.mlp([inputs, int(width), 32], K)
    if architecture == "cnn":
        shape = [int(width), 2 * int(width), 64]
        return lambda: nets.cnn(shape, K, in_channels=channels, strides=[2, 2, 2])
    depth = int(architecture.removeprefix("resnet"))
    return lambda: nets.resnet(depth, K, width=width, in_channels=channels)


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

    def measure(net, cell, epoch):
        found = {"test_accuracy": 100 * collect.accuracy(net, test_data)}
        if held_out is not None:
            found["validation_accuracy"] = 100 * collect.accuracy(net, held_out)
        if epoch and (epoch == cell.epochs or cell.epochs == longest):
            found |= _collapse(net, train_data)
        return found

    rows, curves, found_nets = [], [], {}
    for width in widths:
        trained = train.grid(
            builder(architecture, width, train_data),
            cells,
            train_data,
            recipe,
            measure=measure,
            measure_at=log_spaced(longest, 13)[1:] if width == max(widths) or validation else (),
            checkpoint=checkpoint and checkpoint(width),
            together=architecture == "mlp",
            augment=augment,
            label=f"width {width}",
        )
        for one in trained:
            key = {"loss": one.cell.tags["loss"], "width": width}
            key |= {"epochs": one.cell.epochs, "seed": one.cell.seed}
            found_nets[tuple(key.values())] = one.net
            rows.append(key | _row(one.history, held_out is not None))
            if width == max(widths) and one.cell.epochs == longest:
                curves.append(one.history.query("epoch > 0").assign(**key))
    table = pd.DataFrame(rows)
    table["agreement"] = _agreement(found_nets, train_data)
    return Nets(table, pd.concat(curves, ignore_index=True), found_nets)


def _row(history, validated):
    """The last measurement of a net, with the test accuracy that its validation chose."""
    kept = history.iloc[history["validation_accuracy"].argmax() if validated else -1]
    final = history.iloc[-1].drop(["epoch", "lr"]).to_dict()
    return final | {"test_accuracy": kept["test_accuracy"]}


def _collapse(net, data):
    features = collect.features(net, data.inputs)
    logits = collect.in_batches(net.head, features)
    own = torch.log_softmax(logits.detach(), 1).gather(1, data.labels[:, None]).exp()
    return nc_metrics(features, data.labels, net.weight, net.bias) | {
        "train_accuracy": 100 * float((logits.argmax(1) == data.labels).double().mean()),
        # 0.0585 bounds the focal loss's convexity threshold t_c for every gamma (claim 1.L10).
        "share_below_threshold": float((own < 0.0585).double().mean()),
        "median_probability": float(own.median()),
    }


def _agreement(found_nets, data):
    """Distance of the normalised class logits to those of cross-entropy, same cell and seed."""
    logits = {key: _net_class_logits(net, data) for key, net in found_nets.items()}
    return [float((own - logits["ce", *cell]).norm()) for (_, *cell), own in logits.items()]


def _net_class_logits(net, data):
    """Mean logits of each class, centred over outputs and scaled to norm 1: ``(K, K)``."""
    logits = collect.logits(net, data.inputs).double()
    sums = torch.zeros(data.num_classes, data.num_classes, dtype=torch.float64)
    means = sums.to(logits.device).index_add_(0, data.labels, logits)
    means = means / torch.bincount(data.labels)[:, None]
    centred = means - means.mean(1, keepdim=True)
    return centred / centred.norm()


def ends(curves):
    """The last measurement of ``Nets.curves``, means over seeds, indexed by loss (claim 1.L16).

    ``nc2_fall`` and ``nc3_fall`` are the last value over the first measured one.
    """
    means = curves.groupby(["loss", "epoch"]).mean(numeric_only=True).groupby("loss")
    first, last = means.first(), means.last()
    return last.assign(**{f"{name}_fall": last[name] / first[name] for name in ("nc2", "nc3")})


def equivalences(table):
    """Per width and epochs, over losses × seeds (claim 1.L17).

    ``variance``: population variance of the test accuracy over all nets; ``largest_gap``: largest
    ``|mean accuracy of cross-entropy - mean of another loss|`` in points; ``f_statistic``: variance
    between losses over variance between seeds (expected value 1 if losses do not matter).
    """
    rows = []
    for (width, epochs), part in table.groupby(["width", "epochs"]):
        accuracy = part.pivot(index="loss", columns="seed", values="test_accuracy")
        means = accuracy.mean(axis=1)
        within = accuracy.var(axis=1, ddof=1).mean() if accuracy.shape[1] > 1 else float("nan")
        rows.append(
            {
                "width": width,
                "epochs": epochs,
                "variance": float(accuracy.to_numpy().var()),
                "largest_gap": float((means - means["ce"]).abs().max()),
                "f_statistic": float(accuracy.shape[1] * means.var(ddof=1) / within),
            }
        )
    return pd.DataFrame(rows)


def accuracy_gaps(table):
    """``|Acc_CE - Acc_loss|`` in points, means over seeds: one row per loss, width, epochs."""
    means = table.groupby(["loss", "width", "epochs"])["test_accuracy"].mean().reset_index()
    plain = means.query("loss == 'ce'").drop(columns="loss")
    joined = means.merge(plain, on=["width", "epochs"], suffixes=("", "_ce"))
    joined["gap"] = (joined["test_accuracy"] - joined["test_accuracy_ce"]).abs()
    return joined
