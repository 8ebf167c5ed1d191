"""Result functions that take tensors, with those on an accelerator."""

import pytest
import torch

from nclib.deep import data
from nclib.deep import nets as kernel
from nclib.results.extended_ufm import metrics, nets, training
from tests.device_cases import ADAM, RECIPE, D, K, forgotten, named, works

MODULES = (metrics, nets, training)


# module.function (or class) -> a call of it
CASES = {
    "training.backbone": lambda t: training.backbone([64, 4]).to(t.there)(t.data.inputs),
    "training.bridge": lambda t: training.bridge(
        t.data,
        {
            "free": {"lambdas": [0.01, 0.01], "lambda_h": 1e-4, "bias": "free"},
            "decay": {"lambdas": [0.01], "lambda_h": 1e-4, "bias": 0.1},
        },
        ADAM,
        widths=[8, 4],
    ),
    "training.depth_profile": lambda t: [
        training.depth_profile(
            t.data,
            t.data,
            {"a": ("mse", False), "b": ("ce", True)},
            RECIPE,
            architecture=kind,
            width=width,
            augment=data.crop_and_flip,
        )
        for kind, width in (("mlp", 6), ("cnn", 2))
    ],
    "nets.half_squared_error": lambda t: nets.half_squared_error(
        t.net(t.data.inputs), t.data.labels
    ),
    "nets.RegularisedHead": lambda t: [
        (head.loss(t.features, t.data.labels).backward(), head.floor, head.weight)
        for head in (
            nets.RegularisedHead(
                [D, 4], [16] * K, lambdas=[0.1, 0.1], lambda_h=0.1, bias="free"
            ).to(t.there),
        )
    ],
    "nets.blocks": lambda t: nets.block_features(t.net, t.data.inputs),
    "nets.block_features": lambda t: nets.block_features(
        kernel.cnn([4, 6], K).to(t.there), t.data.inputs, reduce="flatten"
    ),
    "metrics.self_duality": lambda t: metrics.self_duality(t.weight, t.features[:K], centre=True),
    "metrics.obtuse_projection": lambda t: metrics.obtuse_projection(
        torch.cov(t.features.double())
    ),
    "metrics.obtuse_distance": lambda t: metrics.obtuse_distance(t.features[:4]),
    "metrics.layer_table": lambda t: metrics.layer_table({"a": t.features}, t.labels),
}

# Functions and classes that take no tensor.
HOST = """
training: measure_points last_two_blocks require_layers
nets: decay_from_mse_loss decay_to_mse_loss
"""


SPLIT = [(name, True) for name in CASES if name.startswith("metrics.")]  # labels on the CPU


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "split"), [(name, False) for name in CASES] + SPLIT)
def test_works_on_an_accelerator(name, split):
    works(named(MODULES, name), CASES[name], split=split)


def test_no_function_is_forgotten():
    assert forgotten(MODULES, CASES, HOST) == set()
