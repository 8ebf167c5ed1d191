"""Result functions that take tensors, with those on an accelerator."""

import pytest

from nclib.deep import data
from nclib.results.multi_loss import nets
from tests.device_cases import CE, MSE, RECIPE, forgotten, named, works

MODULES = (nets,)


def losses_compared(t, architecture):
    return nets.study(
        {"ce": CE, "mse": MSE}, t.data, t.data, RECIPE, architecture=architecture, widths=[4],
        epochs=[2], seeds=[0], validation=0.2, curve_points=2, augment=data.crop_and_flip,
    )  # fmt: skip


# module.function (or class) -> a call of it
CASES = {
    "nets.builder": lambda t: losses_compared(t, "mlp"),
    "nets.study": lambda t: [losses_compared(t, kind) for kind in ("mlp", "cnn")],
    "nets.class_logits": lambda t: nets.class_logits(t.net, t.data),
}

# Functions and classes that take no tensor.
HOST = """
nets: equivalence gaps require
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_works_on_an_accelerator(name):
    works(named(MODULES, name), CASES[name])


def test_no_function_is_forgotten():
    assert forgotten(MODULES, CASES, HOST) == set()
