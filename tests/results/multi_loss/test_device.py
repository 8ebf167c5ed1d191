"""Result functions that take tensors, with those on an accelerator."""

import pytest

from nclib.deep import data
from nclib.results.multi_loss import experiments as study
from tests.device_cases import CE, MSE, RECIPE, works


def losses_compared(t, architecture):
    return study.train_nets(
        {"ce": CE, "mse": MSE}, t.data, t.data, RECIPE, architecture=architecture, widths=[4],
        epochs=[2], seeds=[0], validation=0.2, augment=data.crop_and_flip,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["mlp", "cnn"])
def test_training_works_on_an_accelerator(architecture):
    works(study.train_nets, lambda t: losses_compared(t, architecture))
