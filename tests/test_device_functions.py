"""Every public function of ``nclib.deep`` and ``nclib.metrics`` with tensors on an accelerator."""

import cProfile
import importlib
import inspect
import pkgutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nclib.deep
import nclib.metrics
from nclib import losses
from nclib.deep import augmentation, collect, nets, train
from nclib.deep.data import Data, checksum
from nclib.metrics import certified, collapse, frames, generalized, ood, precision
from nclib.metrics import multi_label as multi
from nclib.results.convex_duality import metrics as convex_duality
from nclib.results.convex_duality import nets as batch_norm_head
from nclib.results.convex_duality import theory as duality
from nclib.results.extended_ufm import nets as layers
from nclib.results.extended_ufm import training as depth_study
from nclib.results.large_class import codes, language
from nclib.results.large_class import nets as large_class
from nclib.results.large_class import training as gnc_study
from nclib.results.multi_label import data as multi_label_data
from nclib.results.multi_label import decoders
from nclib.results.multi_label import nets as multi_label_study
from nclib.results.multi_loss import nets as loss_study
from nclib.results.normalized import metrics as angles
from nclib.results.normalized import nets as normalized
from tests.device_guard import Accelerator

CE, MSE = losses.get("ce"), losses.get("mse", tau=None)
RECIPE = train.Recipe(2, 0.05, 16, weight_decay=1e-3, clip=1.0)
ADAM = train.Recipe(2, 0.01, None, optimizer="adam")
K, D = 3, 6


def generator():
    return torch.Generator().manual_seed(0)


def things(there, host):
    """Data, nets and features on the accelerator ``there``; labels, targets and classifiers on
    ``host``."""
    draw = generator()
    labels = torch.arange(48) % K
    images = torch.randn(K, 1, 8, 8, generator=draw)[labels]
    images = images + 0.5 * torch.randn(48, 1, 8, 8, generator=draw)
    data = Data("images", images, labels, K).to(there)
    features = torch.randn(K, D, generator=draw)[labels] + 0.1 * torch.randn(48, D, generator=draw)
    targets = nn.functional.one_hot(labels, K)
    targets[::4] |= targets[1::4]
    sets = multi_label_data.MultiLabelData("sets", images.sigmoid(), targets.float()).to(there)
    net = nets.seeded(0, nets.mlp, [64, 8, D], K).to(there)
    made = multi_label_study.build("cnn", K, channels=(4, 8)).to(there)
    adam = replace(ADAM, batch_size=16)
    learned = lambda: multi_label_study.run(made, sets, adam, feature_decay=0.1)
    stacked = [torch.randn(5, 4, generator=draw), torch.randn(3, 5, generator=draw)]
    return SimpleNamespace(
        data=data, rows=data.flat(), net=net, sets=sets, learned=learned, made=made,
        features=features.to(there), labels=labels.to(host), targets=targets.to(host),
        weight=torch.randn(K, D, generator=draw).to(host), bias=torch.zeros(K).to(host),
        layers=[layer.to(there) for layer in stacked],
        head=batch_norm_head.build("mlp", data, hidden=(8,), width=8),
        sphere=normalized.SphereClassifier(nn.Flatten(), 64, K).to(there),
        cosine=large_class.sphere_mlp(64, 2, K, hidden=(8,)).to(there),
    )  # fmt: skip


def statistics(t):
    found = collapse.ClassStatistics(K, D, device=t.features.device).update(t.features, t.labels)
    other = collapse.ClassStatistics(K, D).update(t.features.cpu(), t.labels)
    return found.merge(other).update(t.features.float(), t.labels).metrics(t.weight, t.bias)


def streamed(t):
    return collapse.ClassStatistics(K, D, device=t.features.device).update(t.features, t.labels)


def second_pass(t):
    second = streamed(t).agreement(t.weight, t.bias)
    second.update(t.features, t.labels).metrics()
    return second.by_class()


def batches(t):
    return DataLoader(TensorDataset(t.data.inputs.cpu(), t.data.labels.cpu()), batch_size=10)


def certificate(t, **options):
    ones = torch.ones(D, device=t.weight.device)
    options |= {"bn_weight": ones, "bn_bias": 0.1 * ones, "weight_decay": 0.01}
    return certified.certified_gap(t.features, t.labels, t.weight, **options)


def sets_of(t):
    return multi.LabelSetStatistics.of(t.features, t.targets)


def book(t):
    return decoders.tagwise_codebook(t.features, t.targets, 5 * sets_of(t).class_means)


def collected(t, features_of):
    return collect.statistics(t.net, batches(t), K, features_of=features_of).metrics()


def certified_training(t):
    return batch_norm_head.certified_training(
        t.head, t.data, ADAM, 0.05, test=t.data, certify_on=t.data.per_class(4), points=3
    )


def grid(t, together):
    cells = [train.Cell(loss, seed, 2) for loss in (CE, MSE) for seed in (0, 1)]
    build = lambda: nets.cnn([4, 6], K)
    augment = augmentation.crop_and_flip
    options = {"augment": augment, "together": together, "measure_at": [0, 1]}
    measure = lambda net, cell, epoch: {"accuracy": collect.accuracy(net, t.data)}
    return train.grid(build, cells, t.data, RECIPE, measure=measure, **options)


def sweep(t, together):
    build = gnc_study.builder("mlp", t.rows, 2, hidden=(8,))
    options = {"temperatures": [0.5, 0.1], "seeds": [0], "together": together, "reference": 1.0}
    return gnc_study.temperature_sweep(build, t.rows, t.rows, RECIPE, **options)


def fitted(t):
    for recipe in (RECIPE, ADAM, replace(ADAM, optimizer="adamw", fast=False)):
        net = nets.seeded(0, nets.cnn, [4, 6], K).to(t.data.inputs.device)
        train.fit(net, t.data, lambda net, x, y: CE(net(x), y), recipe)


def margin_losses(t):
    cosines = t.cosine(t.rows.inputs)
    for kind in large_class.MARGINS:
        loss = large_class.NormalizedSoftmax(0.2, 0.1, kind, order=(2, 0, 1))
        loss(cosines, t.data.labels)


def class_mean_head(t):
    head = large_class.ClassMeanHead(D, K).to(t.features.device)
    head.update(t.features, t.data.labels)
    return head(t.features)


def distances(t):
    return large_class.class_distances(t.features, t.labels, K)


SQUARE = codes.polygon(4)
CELL = normalized.Cell(normalized.Mode("normalized"), 8, dim=2)
UNIT = lambda t: nn.functional.normalize(t.features)

# module.function (or class) -> a call of it
CASES = {
    "augmentation.crop_and_flip": lambda t: augmentation.crop_and_flip(t.data.inputs, generator()),
    "batch_norm_head.BatchNormNet": lambda t: t.head.certificate(t.data, 0.05),
    "batch_norm_head.batch_statistics": lambda t: t.head.certificate(t.data, 0.05, dual=False),
    "batch_norm_head.build": lambda t: batch_norm_head.build("resnet18", t.data),
    "batch_norm_head.objective": lambda t: [
        batch_norm_head.objective(0.1, loss)(t.head, t.data.inputs, t.data.labels).backward()
        for loss in batch_norm_head.LOSSES
    ],
    "batch_norm_head.certified_training": certified_training,
    "batch_norm_head.class_cosines": lambda t: batch_norm_head.class_cosines(certified_training(t)),
    "batch_norm_head.class_outputs": lambda t: batch_norm_head.class_outputs(
        certified_training(t), [16] * K, 1.0
    ),
    "batch_norm_head.whitened_images": lambda t: batch_norm_head.whitened_images(t.data, t.data),
    "batch_norm_head.closed_form_accuracy": lambda t: batch_norm_head.closed_form_accuracy(
        t.data, t.data, [1, 4], 0.3
    ),
    "collect.Taps": lambda t: collect.Taps(t.net).measure(batches(t), K),
    "collect.measure": lambda t: collect.measure(t.net, batches(t), K),
    "collect.next_token": lambda t: collect.next_token({"labels": t.targets.long()}),
    "collect.evaluation": lambda t: collect.accuracy(t.net, t.data),
    "collect.in_batches": lambda t: collect.in_batches(t.net, t.data.inputs, batch_size=9),
    "collect.features": lambda t: collect.features(t.net, t.data.inputs),
    "collect.logits": lambda t: collect.logits(t.net, t.data.inputs),
    "collect.accuracy": lambda t: collect.accuracy(t.net, t.data, batch_size=9),
    "collect.statistics": lambda t: [collected(t, f) for f in (None, "head", t.net.features)],
    "data.Data": lambda t: [
        str(t.data.flat().take(torch.tensor([3, 1]))),
        t.data.per_class(2),
        t.data.per_class([1, 2, 3], generator=generator()),
        t.data.split(0.5, generator=generator()),
        t.data.to("cpu").to(t.data.inputs.device),
    ],
    "data.checksum": lambda t: checksum(t.data),
    "decoders.tagwise_codebook": book,
    "decoders.single_margin": lambda t: decoders.single_margin(sets_of(t).class_means, t.weight),
    "decoders.nearest_codeword": lambda t: [
        decoders.nearest_codeword(t.features, book(t), metric=metric)
        for metric in ("euclidean", "cosine")
    ],
    "decoders.largest_gap": lambda t: decoders.largest_gap(t.features),
    "decoders.sign": lambda t: decoders.sign(t.features),
    "decoders.top_m": lambda t: decoders.top_m(t.features, t.targets.sum(1)),
    "decoders.exact_match": lambda t: decoders.exact_match(t.targets, t.sets.labels),
    "decoders.jaccard": lambda t: decoders.jaccard(t.targets, t.sets.labels),
    "decoders.score_table": lambda t: decoders.score_table({"a": t.targets}, t.sets.labels),
    "depth_study.backbone": lambda t: depth_study.backbone([64, 4]).to(t.data.inputs.device)(
        t.data.inputs
    ),
    "depth_study.bridge": lambda t: depth_study.bridge(
        t.data,
        {
            "free": {"lambdas": [0.01, 0.01], "lambda_h": 1e-4, "bias": "free"},
            "decay": {"lambdas": [0.01], "lambda_h": 1e-4, "bias": 0.1},
        },
        ADAM,
        widths=[8, 4],
    ),
    "depth_study.depth_profile": lambda t: [
        depth_study.depth_profile(
            t.data,
            t.data,
            {"a": ("mse", False), "b": ("ce", True)},
            RECIPE,
            architecture=kind,
            width=width,
            augment=augmentation.crop_and_flip,
        )
        for kind, width in (("mlp", 6), ("cnn", 2))
    ],
    "gnc_study.builder": lambda t: sweep(t, True),
    "gnc_study.measure": lambda t: gnc_study.measure(t.cosine, t.rows, t.rows),
    "gnc_study.temperature_sweep": lambda t: [sweep(t, together) for together in (True, False)],
    "gnc_study.assignment_study": lambda t: gnc_study.assignment_study(
        four(t),
        four(t),
        SQUARE,
        gnc_study.square_assignments(),
        RECIPE,
        temperature=0.2,
        seeds=[0],
        hidden=(4,),
    ),
    "gnc_study.learned_opposites": lambda t: gnc_study.learned_opposites(
        four(t), four(t), RECIPE, temperature=0.2, seeds=[0], hidden=(4,)
    ),
    "gnc_study.classifier_study": lambda t: gnc_study.classifier_study(
        gnc_study.builder("mlp", t.rows, 2, hidden=(8,)),
        t.rows,
        t.rows,
        RECIPE,
        temperature=0.2,
        seeds=[0],
        momenta=[0.9],
    ),
    "language.language_net": lambda t: tongue(t),
    "language.study": lambda t: tongue(t),
    "large_class.CosineHead": lambda t: t.cosine(t.rows.inputs),
    "large_class.ClassMeanHead": class_mean_head,
    "large_class.NormalizedSoftmax": margin_losses,
    "large_class.sphere_mlp": lambda t: large_class.sphere_mlp(
        64, 2, K, hidden=(4,), code=t.weight[:, :2]
    ),
    "large_class.sphere_resnet": lambda t: large_class.sphere_resnet(2, K, in_channels=1).to(
        t.data.inputs.device
    )(t.data.inputs),
    "large_class.cosine_head": lambda t: large_class.cosine_head(D, K, code=t.weight),
    "large_class.objective": lambda t: large_class.objective(large_class.NormalizedSoftmax(0.2))(
        t.cosine, t.rows.inputs, t.data.labels
    ),
    "large_class.class_distances": distances,
    "large_class.assignment_score": lambda t: large_class.assignment_score(
        distances(t), t.weight, (0, 2, 1)
    ),
    "large_class.assign_classes": lambda t: [
        large_class.assign_classes(distances(t), t.weight),
        large_class.assign_classes(
            torch.cdist(t.features[:9], t.features[:9]).double().fill_diagonal_(0), t.features[9:18]
        ),
    ],
    "large_class.Standardize": lambda t: large_class.Standardize(t.data.inputs)(t.data.inputs),
    "layers.half_squared_error": lambda t: layers.half_squared_error(
        t.net(t.data.inputs), t.data.labels
    ),
    "layers.RegularisedHead": lambda t: [
        (head.loss(t.features, t.data.labels).backward(), head.floor, head.weight)
        for head in (
            layers.RegularisedHead(
                [D, 4], [16] * K, lambdas=[0.1, 0.1], lambda_h=0.1, bias="free"
            ).to(t.features.device),
        )
    ],
    "layers.blocks": lambda t: layers.block_features(t.net, t.data.inputs),
    "layers.block_features": lambda t: layers.block_features(
        nets.cnn([4, 6], K).to(t.data.inputs.device), t.data.inputs, reduce="flatten"
    ),
    "loss_study.builder": lambda t: losses_compared(t, "mlp"),
    "loss_study.study": lambda t: [losses_compared(t, kind) for kind in ("mlp", "cnn")],
    "loss_study.class_logits": lambda t: loss_study.class_logits(t.net, t.data),
    "multi_label_data.MultiLabelData": lambda t: [
        str(t.sets.keep(t.sets.table())),
        t.sets.take(t.sets.labels.sum(1) == 1),
    ],
    "multi_label_data.unit_range": lambda t: multi_label_data.unit_range(t.data, t.data),
    "multi_label_data.half_size": lambda t: multi_label_data.half_size(t.data),
    "multi_label_data.compose": lambda t: [
        multi_label_data.compose(
            multi_label_data.unit_range(t.data), {(0,): 3, (0, 2): 2}, recipe=recipe
        )
        for recipe in multi_label_data.RECIPES
    ],
    "multi_label_study.build": lambda t: multi_label_study.build(
        "mlp", K, inputs=64, frozen=True
    ).to(t.data.inputs.device)(t.data.inputs),
    "multi_label_study.freeze_simplex": lambda t: multi_label_study.freeze_simplex(t.net),
    "multi_label_study.parameters_saved": lambda t: multi_label_study.parameters_saved("resnet18"),
    "multi_label_study.objective": lambda t: [
        multi_label_study.objective(loss, feature_decay=0.1)(
            t.made, t.sets.inputs, t.sets.labels
        ).backward()
        for loss in multi_label_study.LOSSES
    ],
    "multi_label_study.measure": lambda t: multi_label_study.measure(t.made, t.sets),
    "multi_label_study.margins": lambda t: multi_label_study.margins(t.features[:, :K], t.targets),
    "multi_label_study.run": lambda t: t.learned(),
    "multi_label_study.loss_floor": lambda t: multi_label_study.loss_floor(t.sets),
    "multi_label_study.predictions": lambda t: multi_label_study.predictions(
        {"learned": t.learned(), "frozen": t.learned()}, weight_decay=1e-3, feature_decay=1e-2
    ),
    "multi_label_study.decode": lambda t: multi_label_study.decode(t.learned(), t.sets),
    "multi_label_study.accuracy_table": lambda t: multi_label_study.accuracy_table(
        {"bce": t.learned(), "pal": t.learned()}, t.sets
    ),
    "multi_label_study.unseen_table": lambda t: multi_label_study.unseen_table(
        {"pal": t.learned()}, t.sets, [(0, 1)]
    ),
    "multi_label_study.group_angles": lambda t: multi_label_study.group_angles(t.learned()),
    "nets.Classifier": lambda t: (t.net(t.data.inputs), t.net.weight, t.net.bias),
    "nets.parameter_count": lambda t: nets.parameter_count(t.net),
    "normalized.SphereClassifier": lambda t: (t.sphere(t.data.inputs), t.sphere.retract()),
    "normalized.objective": lambda t: normalized.objective(
        normalized.Mode("regularized", 1.0, 0.1, 0.1)
    )(t.sphere, t.data.inputs, t.data.labels),
    "normalized.random_labels": lambda t: normalized.random_labels(t.data, generator=generator()),
    "normalized.first_classes": lambda t: normalized.first_classes(t.data, 2),
    "normalized.backbone": lambda t: [
        normalized.backbone(kind, t.data, width=width, dim=4).to(t.data.inputs.device)(
            t.data.inputs
        )
        for kind, width in (("mlp", 8), ("cnn", 4), ("resnet18", 0.05))
    ],
    "normalized.cell_data": lambda t: normalized.cell_data(
        replace(CELL, random_labels=True), t.data
    ),
    "normalized.measure": lambda t: normalized.measure(t.sphere, t.data, t.data),
    "normalized.train_cell": lambda t: normalized.train_cell(CELL, "mlp", t.data, RECIPE),
    "normalized.study": lambda t: normalized.study(
        [CELL, replace(CELL, random_labels=True)],
        "mlp",
        t.data,
        t.data,
        RECIPE,
        augment=augmentation.crop_and_flip,
    ),
    "normalized.film": lambda t: normalized.film(CELL, "mlp", t.data, RECIPE, epochs=[0, 2]),
    "train.Recipe": lambda t: t.data.take(RECIPE.batches(48, generator(), t.data.labels.device)[0]),
    "train.fit": fitted,
    "train.grid": lambda t: [grid(t, together) for together in (True, False)],
    "angles.angles_between": lambda t: angles.angles_between(t.features[:24], t.features[24:]),
    "angles.pairwise_angles": lambda t: angles.pairwise_angles(t.features),
    "angles.simplex_deviation": lambda t: angles.simplex_deviation(t.features[:K]),
    "angles.class_means": lambda t: angles.class_means(t.features, t.labels, K),
    "angles.alignment_angles": lambda t: angles.alignment_angles(
        t.weight, angles.class_means(t.features, t.labels, K)[0]
    ),
    "angles.within_class_angles": lambda t: angles.within_class_angles(t.features, t.labels),
    "angles.truncated_nc1": lambda t: angles.truncated_nc1(t.features, t.labels),
    "angles.sphere_metrics": lambda t: angles.sphere_metrics(t.features, t.labels, t.weight),
    "certified.certified_gap": lambda t: [
        certificate(t, loss=loss, bias=bias) for loss in certified.LOSSES for bias in (None, t.bias)
    ],
    "collapse.ClassStatistics": statistics,
    "collapse.Agreement": second_pass,
    "collapse.by_class": lambda t: collapse.by_class(t.features, t.labels, t.weight, t.bias),
    "collapse.cdnv_by_class": lambda t: collapse.cdnv_by_class(
        streamed(t).means, streamed(t).variances
    ),
    "collapse.squared_distances": lambda t: collapse.squared_distances(
        t.features, torch.arange(4, device=t.features.device)
    ),
    "ood.nc5": lambda t: ood.nc5(streamed(t), t.features),
    "ood.neco": lambda t: ood.neco(streamed(t), t.features),
    "ood.nci": lambda t: ood.nci(streamed(t), t.features, t.weight, t.bias),
    "precision.Storage": lambda t: precision.Storage.of(t.features).floor(t.weight, 48, 1.0),
    "collapse.nc_metrics": lambda t: [
        collapse.nc_metrics(t.features, t.labels, t.weight, t.bias),
        collapse.nc_metrics(torch.cat([t.features] * 20, 1), t.labels),
        collapse.nc_metrics(t.features, torch.arange(48).to(t.labels), num_classes=48),
    ],
    "convex_duality.path_norm": lambda t: convex_duality.path_norm(*t.layers),
    "convex_duality.balancedness": lambda t: convex_duality.balancedness(t.layers),
    "convex_duality.numerical_rank": lambda t: convex_duality.numerical_rank(t.features),
    "convex_duality.layer_norms": lambda t: convex_duality.layer_norms(t.layers),
    "convex_duality.alignment": lambda t: convex_duality.alignment(t.layers, rank=2),
    "convex_duality.knots": lambda t: convex_duality.knots(
        t.layers[0][:, 0], t.layers[0][:, 1], t.layers[1]
    ),
    "convex_duality.collapse_error": lambda t: convex_duality.collapse_error(
        t.features, t.labels, duality.collapse([16] * K, 1.0)
    ),
    "convex_duality.cosine_deviations": lambda t: convex_duality.cosine_deviations(
        t.features, t.labels
    ),
    "frames.frame_distances": lambda t: frames.frame_distances(t.features),
    "frames.self_duality": lambda t: frames.self_duality(t.weight, t.features[:K], centre=True),
    "frames.trace_ratio": lambda t: frames.trace_ratio(t.features, t.labels),
    "frames.class_means": lambda t: frames.class_means(t.features, t.labels),
    "frames.effective_rank": lambda t: frames.effective_rank(t.features),
    "frames.obtuse_projection": lambda t: frames.obtuse_projection(torch.cov(t.features.double())),
    "frames.obtuse_distance": lambda t: frames.obtuse_distance(t.features[:4]),
    "frames.layer_table": lambda t: frames.layer_table({"a": t.features}, t.labels),
    "generalized.generalized_nc": lambda t: [
        generalized.generalized_nc(t.features, t.labels, t.weight, t.bias),
        generalized.generalized_nc(
            t.features[:, :2], t.labels, torch.cat([t.weight, t.weight + 1])[:, :2], exact_classes=2
        ),
    ],
    "generalized.class_means": lambda t: generalized.class_means(UNIT(t), t.data.labels, K),
    "generalized.cdnv": lambda t: generalized.cdnv(
        t.features.double(), t.features[:, 0].double().abs()
    ),
    "generalized.log_kernel": lambda t: generalized.log_kernel(UNIT(t)),
    "generalized.nearest_mean": lambda t: generalized.nearest_mean(t.features, t.features[:K]),
    "generalized.etf_error": lambda t: generalized.etf_error(t.features),
    "multi_label.LabelSetStatistics": lambda t: sets_of(t).merge(sets_of(t)),
    "multi_label.multi_label_metrics": lambda t: [
        multi.multi_label_metrics(t.features, t.targets, t.weight, t.bias, **options)
        for options in ({}, {"convention": "official"}, {"reference": "weight"})
    ],
    "multi_label.statistics_metrics": lambda t: multi.statistics_metrics(sets_of(t), t.weight),
    "multi_label.tagwise_fit": lambda t: multi.tagwise_fit(sets_of(t), 2, weight=t.weight),
    "multi_label.soft_iou": lambda t: multi.soft_iou(t.features[:, :K], t.targets),
}


def four(t):
    labels = torch.arange(48, device=t.data.inputs.device) % 4
    return replace(t.rows, labels=labels, num_classes=4)


def tongue(t):
    words = torch.randint(0, 5, (60, 3), generator=generator())
    data = Data("words", words[:, :2], words[:, 2], 5).to(t.data.inputs.device)
    shape = {"dim": 3, "embedding": 2, "hidden": 4}
    return [language.study(data, data, ADAM, **shape, temperature=T) for T in (None, 0.2)]


def losses_compared(t, architecture):
    return loss_study.study(
        {"ce": CE, "mse": MSE}, t.data, t.data, RECIPE, architecture=architecture, widths=[4],
        epochs=[2], seeds=[0], validation=0.2, curve_points=2, augment=augmentation.crop_and_flip,
    )  # fmt: skip


# Functions and classes that take no tensor.
HOST = """
batch_norm_head: weight_decay_for log_spaced require_whitening
data: load fetch check require smallest_class
depth_study: measure_points last_two_blocks require_layers
gnc_study: require recipe load square_assignments four_garments face_network_parameters
language: words next_words
large_class: clusters similar_pairs image_folder open_folder
layers: decay_from_mse_loss decay_to_mse_loss
loss_study: equivalence gaps require
multi_label_data: require label_set_table hold_out prepare svhn read_digit_struct
multi_label_study: Trained
nets: mlp cnn resnet seeded require_widths
normalized: Mode Study published matched floors
angles: simplex_angle
convex_duality: mass_near
certified: Certificate
precision: exact
"""


# What measures or trains with tensors: the kernel's packages and, by the names used here, results'.
MODULES = {
    module.name: importlib.import_module(f"{package.__name__}.{module.name}")
    for package in (nclib.deep, nclib.metrics)
    for module in pkgutil.iter_modules(package.__path__)
    if module.name != "margins"  # float64 theory of codes, through SciPy
} | {
    "batch_norm_head": batch_norm_head,
    "depth_study": depth_study,
    "layers": layers,
    "large_class": large_class,
    "gnc_study": gnc_study,
    "language": language,
    "multi_label_data": multi_label_data,
    "decoders": decoders,
    "multi_label_study": multi_label_study,
    "loss_study": loss_study,
    "angles": angles,
    "normalized": normalized,
    "convex_duality": convex_duality,
}


def named(name):
    """The function or class called ``module.name``."""
    module, _, attribute = name.partition(".")
    return getattr(MODULES[module], attribute)


def code_of(thing):
    """The code that a call of a function, or of a method of a class, runs."""
    thing = inspect.unwrap(thing)
    if inspect.isfunction(thing):
        return {thing.__code__}
    methods = [inspect.unwrap(getattr(m, "fget", m)) for m in vars(thing).values()]
    return {method.__code__ for method in methods if inspect.isfunction(method)}


def public():
    """``module.name`` of every function and class that has code."""
    for module, home in MODULES.items():
        for name, thing in vars(home).items():
            mine = getattr(thing, "__module__", None) == home.__name__
            if (
                mine
                and not name.startswith("_")
                and (inspect.isfunction(thing) or has_methods(thing))
            ):
                yield f"{module}.{name}"


def has_methods(thing):
    own = [n for n in vars(thing) if not n.startswith("_")] if inspect.isclass(thing) else []
    return any(callable(getattr(thing, n)) or isinstance(vars(thing)[n], property) for n in own)


METRICS = {module.name for module in pkgutil.iter_modules(nclib.metrics.__path__)}
METRICS |= {"angles", "convex_duality"}


def test_no_function_is_forgotten():
    on_host = {f"{line.split(':')[0]}.{name}" for line in HOST.strip().splitlines()
               for name in line.split(":")[1].split()}  # fmt: skip
    everything = set(public())
    assert everything - on_host - CASES.keys() == set()
    assert (on_host | CASES.keys()) - everything == set()


# What metrics are given beside the features may lie on the CPU; whole studies train networks.
SPLIT = [(name, True) for name in CASES if name.split(".")[0] in METRICS]
STUDIES = ("study", "language.", "train.grid")
CHECKED = [
    pytest.param(*case, marks=[pytest.mark.slow] * any(words in case[0] for words in STUDIES))
    for case in [(name, False) for name in CASES] + SPLIT
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "split"), CHECKED)
def test_works_on_an_accelerator(name, split):
    calls = cProfile.Profile(subcalls=False, builtins=False)
    with Accelerator() as gpu:
        given = things(gpu, torch.device("cpu") if split else gpu)
        with calls:
            CASES[name](given)
    ran = {entry.code for entry in calls.getstats()}
    assert ran & code_of(named(name)), "the case does not call what it is called after"
