"""Result functions that take tensors, with those on an accelerator."""

from dataclasses import replace

import pytest
import torch

from nclib.deep.data import Data
from nclib.results.large_class import codes, language, nets, training
from tests.device_cases import ADAM, RECIPE, D, K, forgotten, generator, named, works

MODULES = (language, nets, training)
SQUARE = codes.polygon(4)


def cosine(t):
    return nets.sphere_mlp(64, 2, K, hidden=(8,)).to(t.there)


def sweep(t, together):
    build = training.builder("mlp", t.rows, 2, hidden=(8,))
    options = {"temperatures": [0.5, 0.1], "seeds": [0], "together": together, "reference": 1.0}
    return training.temperature_sweep(build, t.rows, t.rows, RECIPE, **options)


def margin_losses(t):
    cosines = cosine(t)(t.rows.inputs)
    for kind in nets.MARGINS:
        loss = nets.NormalizedSoftmax(0.2, 0.1, kind, order=(2, 0, 1))
        loss(cosines, t.data.labels)


def class_mean_head(t):
    head = nets.ClassMeanHead(D, K).to(t.there)
    head.update(t.features, t.data.labels)
    return head(t.features)


def distances(t):
    return nets.class_distances(t.features, t.labels, K)


def four(t):
    labels = torch.arange(48, device=t.there) % 4
    return replace(t.rows, labels=labels, num_classes=4)


def tongue(t):
    words = torch.randint(0, 5, (60, 3), generator=generator())
    data = Data("words", words[:, :2], words[:, 2], 5).to(t.there)
    shape = {"dim": 3, "embedding": 2, "hidden": 4}
    return [language.study(data, data, ADAM, **shape, temperature=T) for T in (None, 0.2)]


# module.function (or class) -> a call of it
CASES = {
    "training.builder": lambda t: sweep(t, True),
    "training.measure": lambda t: training.measure(cosine(t), t.rows, t.rows),
    "training.temperature_sweep": lambda t: [sweep(t, together) for together in (True, False)],
    "training.assignment_study": lambda t: training.assignment_study(
        four(t),
        four(t),
        SQUARE,
        training.square_assignments(),
        RECIPE,
        temperature=0.2,
        seeds=[0],
        hidden=(4,),
    ),
    "training.learned_opposites": lambda t: training.learned_opposites(
        four(t), four(t), RECIPE, temperature=0.2, seeds=[0], hidden=(4,)
    ),
    "training.classifier_study": lambda t: training.classifier_study(
        training.builder("mlp", t.rows, 2, hidden=(8,)),
        t.rows,
        t.rows,
        RECIPE,
        temperature=0.2,
        seeds=[0],
        momenta=[0.9],
    ),
    "language.language_net": lambda t: tongue(t),
    "language.study": lambda t: tongue(t),
    "nets.CosineHead": lambda t: cosine(t)(t.rows.inputs),
    "nets.ClassMeanHead": class_mean_head,
    "nets.NormalizedSoftmax": margin_losses,
    "nets.sphere_mlp": lambda t: nets.sphere_mlp(64, 2, K, hidden=(4,), code=t.weight[:, :2]),
    "nets.sphere_resnet": lambda t: nets.sphere_resnet(2, K, in_channels=1).to(t.there)(
        t.data.inputs
    ),
    "nets.cosine_head": lambda t: nets.cosine_head(D, K, code=t.weight),
    "nets.objective": lambda t: nets.objective(nets.NormalizedSoftmax(0.2))(
        cosine(t), t.rows.inputs, t.data.labels
    ),
    "nets.class_distances": distances,
    "nets.assignment_score": lambda t: nets.assignment_score(distances(t), t.weight, (0, 2, 1)),
    "nets.assign_classes": lambda t: [
        nets.assign_classes(distances(t), t.weight),
        nets.assign_classes(
            torch.cdist(t.features[:9], t.features[:9]).double().fill_diagonal_(0), t.features[9:18]
        ),
    ],
    "nets.Standardize": lambda t: nets.Standardize(t.data.inputs)(t.data.inputs),
}

# Functions and classes that take no tensor.
HOST = """
training: require recipe load square_assignments four_garments face_network_parameters
language: words next_words
nets: clusters similar_pairs image_folder open_folder
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_works_on_an_accelerator(name):
    works(named(MODULES, name), CASES[name])


def test_no_function_is_forgotten():
    assert forgotten(MODULES, CASES, HOST) == set()
