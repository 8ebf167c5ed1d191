"""Result functions that take tensors, with those on an accelerator."""

from dataclasses import replace

import pytest

from nclib.metrics.multi_label import LabelSetStatistics
from nclib.results.multi_label import data, decoders, nets
from nclib.results.multi_label import experiments as study
from tests.device_cases import ADAM, K, forgotten, named, works

MODULES = (data, decoders, nets)


def images(t):
    return data.MultiLabelData("sets", t.data.inputs.sigmoid(), t.targets.float())


def net(t):
    return nets.build("cnn", K, (1, 8, 8), channels=(4, 8)).to(t.there)


def trained(t):
    arm = {"architecture": "cnn", "channels": (4, 8)}
    arms = {"learned": arm | {"data": images(t)}} | nets.with_control("sets", "mlp", images(t))
    recipe = replace(ADAM, batch_size=16)
    return nets.train_nets(
        arms, recipe, seeds=[0], checkpoint=lambda name, **_: None, feature_decay=0.1
    )


def decoded(t):
    one = trained(t).nets["learned", 0]
    study.scores(one, images(t), unseen=[(0, 1)])
    study.group_angles(one.net, images(t))


def singles(t):
    return LabelSetStatistics.of(t.features, t.targets).class_means


def book(t):
    return decoders.tagwise_codebook(t.features, t.targets, 5 * singles(t))


# module.function (or class) -> a call of it
CASES = {
    "data.label_tuples": lambda t: data.label_tuples(t.targets),
    "decoders.tagwise_codebook": book,
    "decoders.single_margin": lambda t: decoders.single_margin(singles(t), t.weight),
    "decoders.nearest_codeword": lambda t: decoders.nearest_codeword(t.features, book(t)),
    "decoders.largest_gap": lambda t: decoders.largest_gap(t.features),
    "decoders.sign": lambda t: decoders.sign(t.features),
    "decoders.top_m": lambda t: decoders.top_m(t.features, t.targets.sum(1)),
    "decoders.exact_match": lambda t: decoders.exact_match(t.targets, images(t).labels),
    "decoders.jaccard": lambda t: decoders.jaccard(t.targets, images(t).labels),
    "decoders.score_table": lambda t: decoders.score_table({"a": t.targets}, images(t).labels),
    "data.MultiLabelData": lambda t: [
        str(images(t).keep(images(t).table())),
        images(t).take(images(t).labels.sum(1) == 1),
    ],
    "data.unit_range": lambda t: data.unit_range(t.data, t.data),
    "data.half_size": lambda t: data.half_size(t.data),
    "data.compose": lambda t: [
        data.compose(data.unit_range(t.data), {(0,): 3, (0, 2): 2}, recipe=recipe)
        for recipe in data.RECIPES
    ],
    "nets.build": lambda t: nets.build("mlp", K, (1, 8, 8), frozen=True).to(t.there)(t.data.inputs),
    "nets.freeze_simplex": lambda t: nets.freeze_simplex(t.net),
    "nets.parameters_saved": lambda t: nets.parameters_saved("resnet18"),
    "nets.objective": lambda t: [
        nets.objective(loss, feature_decay=0.1)(
            net(t), images(t).inputs, images(t).labels
        ).backward()
        for loss in nets.LOSSES
    ],
    "nets.data_loss": lambda t: nets.data_loss(t.features[:, :K], images(t).labels),
    "nets.outputs": lambda t: nets.outputs(net(t), t.data.inputs),
    "nets.measure": lambda t: nets.measure(net(t), images(t)),
    "nets.train_nets": trained,
    "nets.with_control": trained,
    "nets.Nets": lambda t: trained(t).ratio("learned", "learned"),
}

# Functions and classes that take no tensor.
HOST = """
data: require label_set_table hold_out prepare svhn read_digit_struct load arbitrary
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_works_on_an_accelerator(name):
    works(named(MODULES, name), CASES[name])


def test_decoding_works_on_an_accelerator():
    works(study.decode, decoded)


def test_no_function_is_forgotten():
    assert forgotten(MODULES, CASES, HOST) == set()
