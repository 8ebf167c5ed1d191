"""Result functions that take tensors, with those on an accelerator."""

from dataclasses import replace

import pytest
import torch

from nclib import frames
from nclib.deep.data import Data
from nclib.results.large_class import assignment, data, experiments, nets
from tests.device_cases import RECIPE, D, K, forgotten, generator, named, works

MODULES = (assignment, data, nets)
SQUARE = frames.polygon(4)


def cosine(t):
    return nets.sphere_mlp(64, 2, K, hidden=(8,)).to(t.there)


def margin_losses(t):
    cosines = cosine(t)(t.rows.inputs)
    for kind in nets.MARGINS:
        loss = nets.NormalizedSoftmax(0.2, 0.1, kind, order=(2, 0, 1))
        loss(cosines, t.data.labels)


def class_mean_head(t):
    head = nets.ClassMeanHead(D, K).to(t.there)
    head.update(t.features, t.data.labels)
    return head(t.features)


def four(t):
    labels = torch.arange(48, device=t.there) % 4
    return replace(t.rows, labels=labels, num_classes=4)


def tongue(t):
    words = torch.randint(0, 5, (60, 3), generator=generator())
    text = Data("words", words[:, :2], words[:, 2], 5).to(t.there)
    return experiments.language_model(text, RECIPE, dim=3, hidden=4, temperature=0.2, reference=1.0)


def sweep(t):
    build = experiments.builder("mlp", t.rows, 2, hidden=(8,))
    options = {"temperatures": [0.5], "seeds": [0], "reference": 1.0}
    return experiments.train_nets(build, t.rows, t.rows, RECIPE, **options)


def last_layers(t):
    return experiments.classifiers(
        "mlp", t.rows, t.rows, RECIPE, dim=2, hidden=(8,), temperature=0.2, seeds=[0],
        reference=1.0, momenta=[0.9],
    )  # fmt: skip


def fixed(t):
    options = {"temperature": 0.2, "seeds": [0], "hidden": (4,)}
    experiments.learned_opposites(four(t), four(t), RECIPE, **options)
    return experiments.assignments(four(t), four(t), SQUARE, RECIPE, **options)


def both_sizes(t):
    many = t.features[:9], t.features[9:18]
    for points, code in ((t.features[:4], SQUARE), many):
        assignment.assign_classes(assignment.pairwise(points.double()), code)


# module.function (or class) -> a call of it
CASES = {
    "assignment.assign_classes": both_sizes,
    "assignment.pairwise": lambda t: assignment.pairwise(t.features),
    "data.spoiled": lambda t: data.spoiled(t.data),
    "nets.CosineHead": lambda t: cosine(t)(t.rows.inputs),
    "nets.ClassMeanHead": class_mean_head,
    "nets.HardMax": lambda t: nets.HardMax()(cosine(t)(t.rows.inputs), t.data.labels),
    "nets.NormalizedSoftmax": margin_losses,
    "nets.language_net": tongue,
    "nets.sphere_mlp": lambda t: nets.sphere_mlp(64, 2, K, hidden=(4,), code=t.weight[:, :2]),
    "nets.sphere_resnet": lambda t: nets.sphere_resnet(2, K, in_channels=1).to(t.there)(
        t.data.inputs
    ),
    "nets.cosine_head": lambda t: nets.cosine_head(D, K, code=t.weight),
    "nets.objective": lambda t: nets.objective(nets.NormalizedSoftmax(0.2))(
        cosine(t), t.rows.inputs, t.data.labels
    ),
    "nets.Standardize": lambda t: nets.Standardize(t.data.inputs)(t.data.inputs),
}
TRAININGS = {"train_nets": sweep, "classifiers": last_layers, "assignments": fixed}

# Functions and classes that take no tensor.
HOST = """
data: moved similar_images image_folder open_folder words next_words balanced_words character_head
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_works_on_an_accelerator(name):
    works(named(MODULES, name), CASES[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRAININGS)
def test_trains_on_an_accelerator(name):
    works(getattr(experiments, name), TRAININGS[name])


def test_no_function_is_forgotten():
    assert forgotten(MODULES, CASES, HOST) == set()
