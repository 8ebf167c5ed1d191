"""Result functions that take tensors, with those on an accelerator."""

import pytest
import torch

from nclib.deep import nets as kernel
from nclib.results.extended_ufm import experiments, metrics, nets
from tests.device_cases import ADAM, RECIPE, D, K, forgotten, named, works

MODULES = (metrics, nets)
HEADS = {"free": ([1e-4, 0.01, 0.01], 0.0), "decay": ([1e-4, 0.01], 0.1)}
NETS = {"a": ("mse", False, 1e-3), "b": ("ce", True, 0.0)}


def head_on(there):
    return nets.RegularisedHead([16] * K, [0.1] * 3, widths=(D, 4), bias=0.0).to(there)


# module.function (or class) -> a call of it
CASES = {
    "nets.RegularisedHead": lambda t: head_on(t.there).loss(t.features, t.data.labels).backward(),
    "nets.blocks": lambda t: nets.block_features(t.net, t.data.inputs),
    "nets.block_features": lambda t: nets.block_features(
        kernel.cnn([4, 6], K).to(t.there), t.data.inputs
    ),
    "metrics.self_duality": lambda t: metrics.self_duality(t.weight, t.features[:K], centre=True),
    "metrics.obtuse_projection": lambda t: metrics.obtuse_projection(
        torch.cov(t.features.double())
    ),
    "metrics.obtuse_distance": lambda t: metrics.obtuse_distance(t.features[:4]),
    "metrics.layer_table": lambda t: metrics.layer_table({"a": t.features}, t.labels),
}
TRAININGS = {
    "experiments.train_heads": lambda t: experiments.train_heads(
        t.data, HEADS, ADAM, widths=[8, 4]
    ),
    "experiments.train_nets": lambda t: [
        experiments.train_nets(
            t.data, t.data, NETS, RECIPE, architecture=kind, width=width, seeds=[0]
        )
        for kind, width in (("mlp", 6), ("cnn", 2))
    ],
}

HOST = ""  # every function takes tensors


SPLIT = [(name, True) for name in CASES if name.startswith("metrics.")]  # labels on the CPU
ALL = CASES | TRAININGS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "split"), [(name, False) for name in ALL] + SPLIT)
def test_works_on_an_accelerator(name, split):
    works(named((*MODULES, experiments), name), ALL[name], split=split)


def test_no_function_is_forgotten():
    assert forgotten(MODULES, CASES, HOST) == set()
