"""Every public function of ``nclib.deep`` and ``nclib.metrics`` with tensors on an accelerator."""

import importlib
import pkgutil
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nclib.deep
import nclib.metrics
from nclib.deep import collect, data, nets, train
from nclib.deep.data import checksum
from nclib.metrics import (
    certified,
    collapse,
    generalized,
    geometry,
    margins,
    ood,
    precision,
    statistics,
)  # fmt: skip
from nclib.metrics import multi_label as multi
from tests.device_cases import ADAM, CE, MSE, RECIPE, D, K, forgotten, generator, named, works


def merged(t):
    found = statistics.ClassStatistics(K, D, device=t.features.device).update(t.features, t.labels)
    other = statistics.ClassStatistics(K, D).update(t.features.cpu(), t.labels)
    return found.merge(other).update(t.features.float(), t.labels).metrics(t.weight, t.bias)


def streamed(t):
    return statistics.ClassStatistics(K, D, device=t.features.device).update(t.features, t.labels)


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


def collected(t, features_of):
    return collect.statistics(t.net, batches(t), K, features_of=features_of).metrics()


def grid(t, together):
    cells = [train.Cell(loss, seed, 2) for loss in (CE, MSE) for seed in (0, 1)]
    build = lambda: nets.cnn([4, 6], K)
    augment = data.crop_and_flip
    options = {"augment": augment, "together": together, "measure_at": [0, 1]}
    measure = lambda net, cell, epoch: {"accuracy": collect.accuracy(net, t.data)}
    return train.grid(build, cells, t.data, RECIPE, measure=measure, **options)


def fitted(t):
    for recipe in (RECIPE, ADAM, replace(ADAM, optimizer="adamw", fast=False)):
        net = nets.seeded(0, nets.cnn, [4, 6], K).to(t.data.inputs.device)
        train.fit(net, t.data, lambda net, x, y: CE(net(x), y), recipe)


UNIT = lambda t: nn.functional.normalize(t.features)

# module.function (or class) -> a call of it
CASES = {
    "data.crop_and_flip": lambda t: data.crop_and_flip(t.data.inputs, generator()),
    "collect.Taps": lambda t: collect.Taps(t.net).measure(batches(t), K),
    "collect.measure": lambda t: collect.measure(t.net, batches(t), K),
    "collect.next_token": lambda t: collect.next_token({"labels": t.targets.long()}),
    "collect.evaluation": lambda t: collect.accuracy(t.net, t.data),
    "collect.in_batches": lambda t: collect.in_batches(t.net, t.data.inputs, batch_size=9),
    "collect.features": lambda t: collect.features(t.net, t.data.inputs),
    "collect.logits": lambda t: collect.logits(t.net, t.data.inputs),
    "collect.accuracy": lambda t: collect.accuracy(t.net, t.data, batch_size=9),
    "collect.statistics": lambda t: [collected(t, f) for f in (None, "head", t.net.features)],
    "nets.build": lambda t: nets.build("cnn", t.data, [4, 6]).to(t.there)(t.data.inputs),
    "data.Data": lambda t: [
        str(t.data.flat().take(torch.tensor([3, 1]))),
        t.data.per_class(2),
        t.data.per_class([1, 2, 3], generator=generator()),
        t.data.split(0.5, generator=generator()),
        t.data.to("cpu").to(t.there),
    ],
    "data.checksum": lambda t: checksum(t.data),
    "nets.Classifier": lambda t: (t.net(t.data.inputs), t.net.weight, t.net.bias),
    "nets.parameter_count": lambda t: nets.parameter_count(t.net),
    "train.Recipe": lambda t: t.data.take(RECIPE.batches(48, generator(), t.data.labels.device)[0]),
    "train.fit": fitted,
    "train.grid": lambda t: [grid(t, together) for together in (True, False)],
    "certified.certified_gap": lambda t: [
        certificate(t, loss=loss, bias=bias) for loss in certified.LOSSES for bias in (None, t.bias)
    ],
    "statistics.ClassStatistics": merged,
    "agreement.Agreement": second_pass,
    "collapse.by_class": lambda t: collapse.by_class(t.features, t.labels, t.weight, t.bias),
    "collapse.measure": lambda t: collapse.nc_metrics(t.features, t.labels),
    "collapse.table": lambda t: collapse.by_class(t.features, t.labels),
    "collapse.frame": lambda t: collapse.by_class(t.features, t.labels),
    "agreement.Rules": second_pass,
    "ood.nc5": lambda t: ood.nc5(streamed(t), t.features),
    "ood.neco": lambda t: ood.neco(streamed(t), t.features),
    "ood.nci": lambda t: ood.nci(streamed(t), t.features, t.weight, t.bias),
    "precision.Storage": lambda t: precision.Storage.of(t.features).floor(
        t.weight, 48, 1.0, t.weight[:3].T
    ),
    "collapse.nc_metrics": lambda t: [
        collapse.nc_metrics(t.features, t.labels, t.weight, t.bias),
        collapse.nc_metrics(torch.cat([t.features] * 20, 1), t.labels),
        collapse.nc_metrics(t.features, torch.arange(48).to(t.labels), num_classes=48),
    ],
    "geometry.frame_distances": lambda t: geometry.frame_distances(t.features),
    "geometry.trace_ratio": lambda t: geometry.trace_ratio(t.features, t.labels),
    "geometry.scaled": lambda t: geometry.scaled(t.features),
    "geometry.cosines": lambda t: geometry.cosines(t.features),
    "geometry.unit": lambda t: geometry.unit(t.features),
    "geometry.sample_mean": lambda t: geometry.sample_mean(t.weight, t.targets.sum(0)),
    "geometry.class_means": lambda t: geometry.class_means(t.features, t.labels),
    "generalized.generalized_nc": lambda t: [
        generalized.generalized_nc(t.features, t.labels, t.weight, t.bias),
        generalized.generalized_nc(
            t.features[:, :2], t.labels, torch.cat([t.weight, t.weight + 1])[:, :2], exact_classes=2
        ),
    ],
    "generalized.log_kernel": lambda t: generalized.log_kernel(UNIT(t)),
    "generalized.nearest_mean": lambda t: generalized.nearest_mean(t.features, t.features[:K]),
    "multi_label.LabelSetStatistics": sets_of,
    "multi_label.multi_label_metrics": lambda t: [
        multi.multi_label_metrics(t.features, t.targets, t.weight, t.bias, **options)
        for options in ({}, {"convention": "official"}, {"reference": "weight"})
    ],
    "multi_label.statistics_metrics": lambda t: multi.statistics_metrics(sets_of(t), t.weight),
    "multi_label.tagwise_fit": lambda t: multi.tagwise_fit(sets_of(t), 2, weight=t.weight),
    "multi_label.soft_iou": lambda t: multi.soft_iou(t.features[:, :K], t.targets),
    "certified.collapsed_value": lambda t: certified.collapsed_value(t.labels.bincount(), 0.1),
    "certified.root_counts": lambda t: certified.root_counts(t.labels.bincount()),
    "certified.free_bias_bounds": lambda t: certified.free_bias_bounds(t.labels.bincount(), 0.1),
    "certified.dual_bound": lambda t: certified.dual_bound(t.features, 2 * t.features, 0.1),
    "certified.cross_entropy_dual_bound": lambda t: certified.cross_entropy_dual_bound(
        t.features[:, :K], t.labels, 0.1
    ),
    "geometry.gram_distance": lambda t: geometry.gram_distance(t.weight @ t.weight.T),
    "geometry.etf_error": lambda t: [geometry.etf_error(t.features), geometry.etf_error(t.weight)],
    "geometry.centred": lambda t: geometry.centred(t.features),
    "geometry.between": lambda t: geometry.between(t.features, cut=1e-7, floor=lambda v: 0 * v[0]),
    "geometry.sum_of_ratios": lambda t: geometry.sum_of_ratios(
        t.weight[0] ** 2, t.weight[1] ** 2, 1.0
    ),
    "geometry.nc1": lambda t: geometry.nc1(t.features, t.labels, cut=1e-7),
    "geometry.angles_between": lambda t: geometry.angles_between(t.features[:24], t.features[24:]),
    "geometry.rank": lambda t: geometry.rank(t.features, cut=1e-3),
    "margins.unit_rows": lambda t: margins.unit_rows("features", t.features),
    "margins.one_vs_rest": lambda t: margins.one_vs_rest(t.features[:5]),
    "margins.optimal_features": lambda t: margins.optimal_features(t.features[:5]),
    "margins.rattlers": lambda t: margins.rattlers(t.features[:5]),
    "margins.hard_margin": lambda t: margins.hard_margin(t.weight, t.features, t.labels),
    "margins.max_cosine": lambda t: margins.max_cosine(t.features),
    "margins.min_angle": lambda t: margins.min_angle(t.features),
    "margins.hull_projections": lambda t: margins.hull_projections(t.features[:5]),
    "margins.margin": lambda t: margins.margin(t.features, max_solves=3),
}


# Functions and classes that take no tensor.
HOST = """
data: note used load fetch check require smallest_class
nets: mlp cnn resnet seeded require_widths
graphs: possible
precision: exact
margins: OneVsRest MarginBracket
certified: Certificate cross_entropy_margin cross_entropy_value
known_margins: known_margin best_known closed_form gold_margin gold_degree
train: history
"""
METRICS, DEEP = (
    [importlib.import_module(f"{package.__name__}.{module.name}")
     for module in pkgutil.iter_modules(package.__path__) if module.name[0] != "_"]
    for package in (nclib.metrics, nclib.deep)
)  # fmt: skip


def test_no_function_is_forgotten():
    assert forgotten([*METRICS, *DEEP], CASES, HOST) == set()


# What metrics are given beside the features may lie on the CPU.
HOMES = {module.__name__.split(".")[-1] for module in METRICS}
SPLIT = [(name, True) for name in CASES if name.split(".")[0] in HOMES]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "split"), [(name, False) for name in CASES] + SPLIT)
def test_works_on_an_accelerator(name, split):
    works(named([*METRICS, *DEEP], name), CASES[name], split=split)
