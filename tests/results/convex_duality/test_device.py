"""Result functions that take tensors, with those on an accelerator."""

import pytest

from nclib.results.convex_duality import experiments as study
from nclib.results.convex_duality import nets, theory
from tests.device_cases import ADAM, K, named, works

SHAPE = dict(architecture="mlp", hidden=(8,), width=8, normalise=True)


def head(t):
    return nets.build(data=t.data, **SHAPE)


def train_net(t):
    net, batch = head(t), t.data.per_class(4)
    study.train_net(net, t.data, ADAM, 0.05, test=t.data, certify_on=batch, points=3)
    return study.final_classes(net, t.data)


# module.function (or class) -> a call of it
CASES = {
    "nets.BatchNormNet": lambda t: head(t).certificate(t.data, 0.05),
    "nets.build": lambda t: nets.build("resnet18", t.data, hidden=(), width=8, normalise=True),
    "experiments.train_net": train_net,
    "experiments.train_seeds": lambda t: study.train_seeds(
        [0], SHAPE, t.data, ADAM, 0.05, points=2, checkpoint=lambda seed: None
    ),
    "experiments.final_classes": train_net,
    "experiments.duality": lambda t: study.duality(head(t), t.data),
    "experiments.class_cosines": lambda t: study.class_cosines({"a": train_net(t)[0]}),
    "experiments.class_outputs": lambda t: study.class_outputs(*train_net(t), [16] * K, 1.0),
    "experiments.cosine_deviations": lambda t: study.cosine_deviations(t.features, t.labels),
    "theory.whitened_prediction": lambda t: theory.whitened_prediction(
        t.features[:4], [0, 0, 1, 1], 0.1, t.features
    ),
    "theory.batch_norm_head": lambda t: theory.batch_norm_head(t.features[:4], [0, 0, 1, 1], 0.1),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_works_on_an_accelerator(name):
    works(named((nets, study, theory), name), CASES[name])
