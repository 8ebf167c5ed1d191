"""Result functions that take tensors, with those on an accelerator."""

import pytest

from nclib.results.convex_duality import metrics, nets, theory
from tests.device_cases import ADAM, K, forgotten, named, works

MODULES = (metrics, nets)


def head(t):
    return nets.build("mlp", t.data, hidden=(8,), width=8)


def certified_training(t):
    return nets.certified_training(
        head(t), t.data, ADAM, 0.05, test=t.data, certify_on=t.data.per_class(4), points=3
    )


# module.function (or class) -> a call of it
CASES = {
    "nets.BatchNormNet": lambda t: head(t).certificate(t.data, 0.05),
    "nets.batch_statistics": lambda t: head(t).certificate(t.data, 0.05, dual=False),
    "nets.build": lambda t: nets.build("resnet18", t.data),
    "nets.objective": lambda t: [
        nets.objective(0.1, loss)(head(t), t.data.inputs, t.data.labels).backward()
        for loss in nets.LOSSES
    ],
    "nets.certified_training": certified_training,
    "nets.class_cosines": lambda t: nets.class_cosines(certified_training(t)),
    "nets.class_outputs": lambda t: nets.class_outputs(certified_training(t), [16] * K, 1.0),
    "nets.whitened_images": lambda t: nets.whitened_images(t.data, t.data),
    "nets.closed_form_accuracy": lambda t: nets.closed_form_accuracy(t.data, t.data, [1, 4], 0.3),
    "metrics.path_norm": lambda t: metrics.path_norm(*t.layers),
    "metrics.balancedness": lambda t: metrics.balancedness(t.layers),
    "metrics.numerical_rank": lambda t: metrics.numerical_rank(t.features),
    "metrics.layer_norms": lambda t: metrics.layer_norms(t.layers),
    "metrics.alignment": lambda t: metrics.alignment(t.layers, rank=2),
    "metrics.knots": lambda t: metrics.knots(t.layers[0][:, 0], t.layers[0][:, 1], t.layers[1]),
    "metrics.collapse_error": lambda t: metrics.collapse_error(
        t.features, t.labels, theory.collapse([16] * K, 1.0)
    ),
    "metrics.cosine_deviations": lambda t: metrics.cosine_deviations(t.features, t.labels),
}

# Functions and classes that take no tensor.
HOST = """
nets: weight_decay_for log_spaced require_whitening
metrics: mass_near
"""


SPLIT = [(name, True) for name in CASES if name.startswith("metrics.")]  # labels on the CPU


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "split"), [(name, False) for name in CASES] + SPLIT)
def test_works_on_an_accelerator(name, split):
    works(named(MODULES, name), CASES[name], split=split)


def test_no_function_is_forgotten():
    assert forgotten(MODULES, CASES, HOST) == set()
