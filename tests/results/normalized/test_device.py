"""Result functions that take tensors, with those on an accelerator."""

from dataclasses import replace

import pytest
from torch import nn

from nclib.deep.nets import Classifier
from nclib.results.normalized import metrics, nets
from tests.device_cases import RECIPE, K, forgotten, named, works

MODULES = (metrics, nets)
CELL = nets.Cell(nets.Mode("normalized"), 8, dim=2)


def sphere(t):
    net = Classifier(nn.Flatten(), nn.Linear(64, K))
    return nets.SphereClassifier(net, nets.Mode("normalized")).to(t.there)


# module.function (or class) -> a call of it
CASES = {
    "nets.SphereClassifier": lambda t: [sphere(t)(t.data.inputs), sphere(t).retract()],
    "nets.objective": lambda t: nets.objective(nets.Mode("regularized", 1.0, 0.1, 0.1))(
        sphere(t), t.data.inputs, t.data.labels
    ),
    "nets.random_labels": lambda t: nets.random_labels(t.data),
    "nets.first_classes": lambda t: nets.first_classes(t.data, 2),
    "nets.backbone": lambda t: [
        nets.backbone(kind, t.data, width=width, dim=4).to(t.there)(t.data.inputs)
        for kind, width in (("mlp", 8), ("cnn", 4), ("resnet18", 0.05))
    ],
    "nets.measure": lambda t: nets.measure(sphere(t), t.data, t.data),
    "nets.train_cell": lambda t: nets.train_cell(CELL, "mlp", t.data, RECIPE),
    "nets.train_nets": lambda t: nets.train_nets(
        [CELL, replace(CELL, random_labels=True)],
        "mlp",
        t.data,
        t.data,
        RECIPE,
    ),
    "nets.film": lambda t: nets.film(CELL, "mlp", t.data, RECIPE, epochs=[0, 2]),
    "metrics.simplex_deviation": lambda t: metrics.simplex_deviation(t.features[:K]),
    "metrics.within_class_angles": lambda t: metrics.within_class_angles(t.features, t.labels),
    "metrics.truncated_nc1": lambda t: metrics.truncated_nc1(t.features, t.labels),
    "metrics.sphere_metrics": lambda t: metrics.sphere_metrics(t.features, t.labels, t.weight),
}

# Functions and classes that take no tensor.
HOST = """
nets: Mode Nets published matched share_above share_above_floor ratios gains best_scale
metrics: simplex_angle
"""


SPLIT = [(name, True) for name in CASES if name.startswith("metrics.")]  # labels on the CPU


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "split"), [(name, False) for name in CASES] + SPLIT)
def test_works_on_an_accelerator(name, split):
    works(named(MODULES, name), CASES[name], split=split)


def test_no_function_is_forgotten():
    assert forgotten(MODULES, CASES, HOST) == set()
