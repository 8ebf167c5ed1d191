"""Experiments of result 4: temperature, assignment, class-mean classifier.  Tidy tables out."""

import pandas as pd
import torch

from nclib import checks
from nclib.deep import collect, train
from nclib.deep import data as image_data
from nclib.deep.nets import parameter_count, seeded
from nclib.metrics import generalized_nc
from nclib.results.large_class import nets as large_class

COLUMNS = ("gnc1", "gnc2", "gnc2_ratio", "gnc3", "gnc3_centered", "etf_error", "ncc_accuracy")


def recipe(*, epochs, lr=0.1, weight_decay=5e-4, batch_size=128, bf16=False):
    """The paper's: SGD, Nesterov momentum .9, cosine per epoch, weight decay on everything."""
    return train.Recipe(
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        weight_decay=weight_decay,
        nesterov=True,
        schedule="cosine",
        drop_last=True,
        bf16=bf16,
    )


def load(name, *, train_per_class=None, seed=0, folder=None, num_classes=100):
    """``(train, test)``: ``clusters`` (Gaussian, ``num_classes``), ``folder`` (images in one
    sub-folder per class), or a data set of :mod:`nclib.deep.data`."""
    if name == "clusters":
        return large_class.clusters(num_classes, seed=seed, per_class=train_per_class or 20)
    if name == "folder":
        return large_class.image_folder(folder, seed=seed)
    return image_data.load(name, train_per_class=train_per_class, seed=seed)


def require(dataset, many_dataset, *, train_per_class, folder, architecture, augment):
    """Say now what :func:`load` and :func:`builder` would say later: for a notebook's first cell.

    The arguments are the notebook's parameters.  Raises :class:`~nclib.checks.InputError` for a
    data set that is not here or too small, and for a network that cannot read it.
    """
    image_data.require(dataset, {"train_per_class": train_per_class})
    checks.require(
        many_dataset == "folder" or not folder,
        f"parameter folder is {folder!r}, but many_dataset is {many_dataset}: say "
        "many_dataset=folder to use it",
    )
    if many_dataset == "folder":
        large_class.open_folder(folder)
        checks.require(
            architecture != "mlp", "many_dataset=folder holds bytes: it needs architecture=resnet18"
        )
    elif many_dataset == "clusters":
        checks.require(
            architecture == "mlp" and not augment,
            "many_dataset=clusters holds vectors, no images: it needs architecture=mlp and "
            "augment=False, or choose another many_dataset",
        )
    else:
        image_data.require(many_dataset)


def builder(architecture, data, dim, *, hidden=(256, 256), code=None):
    """A function ``momentum -> net`` for this data; ``momentum=None``: a learned cosine head."""
    checks.choice("architecture", architecture, ("mlp", "resnet18"))
    K, shape = data.num_classes, data.inputs.shape[1:]
    if architecture == "mlp":
        size = shape.numel()
        return lambda momentum=None: large_class.sphere_mlp(
            size, dim, K, hidden=hidden, code=code, momentum=momentum
        )

    def build(momentum=None):
        net = large_class.sphere_resnet(dim, K, in_channels=shape[0], code=code, momentum=momentum)
        if data.inputs.dtype == torch.uint8:
            net.backbone = torch.nn.Sequential(large_class.Standardize(data.inputs), net.backbone)
        return net

    return build


def measure(net, data, test, *, reference=None):
    """Metrics of a net with a cosine head: :data:`COLUMNS`, train and test accuracy, agreement."""
    weight = torch.nn.functional.normalize(net.weight, dim=1)
    features = collect.features(net, data.inputs)
    found = generalized_nc(features, data.labels, weight, reference=reference, random_draws=0)
    row = {name: found[name] for name in COLUMNS}
    row |= {"train_accuracy": found["accuracy"], "agreement": found["agreement"]}
    return row | {"test_accuracy": collect.accuracy(net, test)}


def temperature_sweep(
    build, data, test, settings, *, temperatures, seeds, measure_at=(), reference=None,
    together=True, checkpoint=None, augment=None,
):  # fmt: skip
    """Train one net per temperature and seed: ``temperature, seed, epoch`` and the metrics.

    ``build() -> net`` with a :class:`~nets.CosineHead`; ``settings`` is a
    :class:`~nclib.deep.train.Recipe`; metrics are taken on the training set.
    """
    cells = [
        train.Cell(large_class.NormalizedSoftmax(T), seed, settings.epochs, {"temperature": T})
        for T in temperatures
        for seed in seeds
    ]
    trained = train.grid(
        build,
        cells,
        data,
        settings,
        measure=lambda net, cell, epoch: measure(net, data, test, reference=reference),
        measure_at=measure_at,
        checkpoint=checkpoint,
        together=together,
        augment=augment,
        label="temperatures",
    )
    tables = [r.history.assign(seed=r.cell.seed, **r.cell.tags) for r in trained]
    return pd.concat(tables, ignore_index=True), [r.net for r in trained]


def assignment_study(data, test, code, orders, settings, *, temperature, seeds, hidden):
    """Fixed classifiers that differ only in which class gets which row of ``code``.

    ``orders``: name -> order (class k on row ``order[k]``).  Columns ``assignment, seed,
    train_accuracy, test_accuracy``.  All nets of all orders are trained in one program.
    """
    losses = {
        name: large_class.NormalizedSoftmax(temperature, order=tuple(order))
        for name, order in orders.items()
    }
    cells = [
        train.Cell(loss, seed, settings.epochs, {"assignment": name})
        for name, loss in losses.items()
        for seed in seeds
    ]
    K, d = code.shape
    trained = train.grid(
        lambda: large_class.sphere_mlp(data.inputs.shape[1], d, K, hidden=hidden, code=code),
        cells,
        data,
        settings,
        label="assignments",
    )
    rows = []
    for result in trained:
        row = {"assignment": result.cell.tags["assignment"], "seed": result.cell.seed}
        for name, part in (("train_accuracy", data), ("test_accuracy", test)):
            cosines = collect.logits(result.net, part.inputs)
            hits = result.cell.loss.logits(cosines).argmax(1) == part.labels
            row[name] = float(hits.double().mean())
        rows.append(row)
    return pd.DataFrame(rows)


def square_assignments():
    """The three ways to put four classes on a square: name -> order, by who is opposite class 0."""
    return {
        "1 opposite 0": (0, 2, 1, 3),
        "2 opposite 0": (0, 1, 2, 3),
        "3 opposite 0": (0, 1, 3, 2),
    }


def learned_opposites(data, test, settings, *, temperature, seeds, hidden):
    """Learned classifiers on the circle: ``seed, opposite`` (the class least aligned with class 0)
    and ``test_accuracy``."""
    cells = [
        train.Cell(large_class.NormalizedSoftmax(temperature), seed, settings.epochs)
        for seed in seeds
    ]
    build = lambda: large_class.sphere_mlp(data.inputs.shape[1], 2, data.num_classes, hidden=hidden)
    rows = []
    for result in train.grid(build, cells, data, settings, label="learned"):
        W = torch.nn.functional.normalize(result.net.weight, dim=1)
        row = {"seed": result.cell.seed, "opposite": int((W @ W[0]).argmin())}
        rows.append(row | {"test_accuracy": collect.accuracy(result.net, test)})
    return pd.DataFrame(rows)


def classifier_study(build, data, test, settings, *, temperature, seeds, momenta, checkpoint=None):
    """Learned against class-mean classifiers: accuracy, GNC1, GNC2 and parameters.

    ``build(momentum) -> net``, see :func:`builder`; ``checkpoint(momentum, seed) -> path``.
    Columns ``classifier, momentum, seed, parameters`` and those of :func:`measure`.  GNC3 of a
    class-mean classifier is true by construction, no evidence.
    """
    loss = large_class.NormalizedSoftmax(temperature)
    rows = []
    for momentum in (None, *momenta):
        for seed in seeds:
            net = seeded(seed, build, momentum).to(data.inputs.device)
            path = checkpoint(momentum, seed) if checkpoint else None
            objective = large_class.objective(loss)
            train.fit(net, data, objective, settings, seed=seed, measure_at=(), checkpoint=path)
            name = "learned" if momentum is None else f"class means, momentum {momentum:g}"
            row = {"classifier": name, "momentum": momentum, "seed": seed}
            row["parameters"] = parameter_count(net)
            rows.append(row | measure(net, data, test))
    return pd.DataFrame(rows)


def four_garments(*, per_class=200, seed=0):
    """``(train, test)`` of Fashion-MNIST with four classes: shirt, T-shirt, sneaker, ankle boot.

    Rows of pixels ``(N, 784)``; classes 0 and 1, and 2 and 3, are similar.
    """
    kept = torch.tensor([6, 0, 7, 9])
    parts = []
    train_part, test_part = image_data.load("fashion_mnist", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for part, size in ((train_part, per_class), (test_part, None)):
        chosen = torch.isin(part.labels, kept).nonzero().flatten()
        labels = (part.labels[chosen, None] == kept).long().argmax(1)
        part = image_data.Data("four garments", part.inputs[chosen].flatten(1), labels, 4)
        parts.append(part if size is None else part.per_class(size, generator=generator))
    return tuple(parts)


def face_network_parameters(num_classes, dim):
    """Trainable parameters of the ResNet-18 with a ``dim`` layer and a learned cosine head."""
    return parameter_count(large_class.sphere_resnet(dim, num_classes))
