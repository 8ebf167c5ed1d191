import math

import numpy as np
import pytest
import torch

from nclib import checks
from nclib.deep import data, train
from nclib.results.convex_duality import nets as bn
from nclib.results.convex_duality import theory


def toy(per_class=6, K=3, seed=0, side=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(K).repeat_interleave(per_class)
    centres = torch.randn(K, 1, side, side, generator=generator)
    noise = torch.randn(len(labels), 1, side, side, generator=generator)
    return data.Data("toy", centres[labels] + 0.3 * noise, labels, K)


RECIPE = train.Recipe(epochs=600, lr=0.02, batch_size=None, optimizer="adam", schedule="cosine")


@pytest.mark.slow
def test_training_closes_the_certified_gap():
    images = toy()
    decay = bn.weight_decay_for([6] * 3, 0.4)
    net = bn.build("mlp", images, hidden=(32,), width=8, normalise=False)
    run = bn.certified_training(net, images, RECIPE, decay, points=12, test=images)
    history = run.history
    assert (history["dual"] <= history["optimum"] + 1e-6).all()
    assert (history["objective"] >= history["optimum"] - 1e-6).all()
    end = history.iloc[-1]
    rho = 0.4
    assert end["optimum"] == pytest.approx(2 / 3 * (rho - rho**2 / 2), rel=1e-9)
    assert end["objective"] < 1.02 * end["optimum"]
    assert end["simplex"] < 0.1 and end["orthogonal"] < 0.1 and end["nc1"] < 1e-2
    assert end["gamma_over_alpha"] == pytest.approx(math.sqrt(2), rel=0.1)
    assert end["test_accuracy"] > 0.9
    np.testing.assert_allclose(run.outputs, 1 - rho, atol=0.02)
    cosines = bn.class_cosines(run)
    off = cosines.query("kind == 'raw' and row != column")["value"]
    assert off.abs().max() < 0.1 and len(cosines) == 18
    beta = theory.pytorch_beta(18, 3, decay)
    table = bn.class_outputs(run, [6] * 3, beta)
    np.testing.assert_allclose(table["theory"], 1 - rho)


def test_objective_and_certificate_agree():
    images = toy()
    net = bn.build("mlp", images, hidden=(16, 16), width=7, seed=3)
    for loss in bn.LOSSES:
        net.train()
        expected = bn.objective(0.05, loss)(net, images.inputs, images.labels)
        found = net.certificate(images, 0.05, loss=loss)
        assert found.objective == pytest.approx(expected.item(), rel=1e-5)
        by_hand = 0.025 * sum(p.square().sum() for p in net.decayed())
        outputs = net(images.inputs)
        one_hot = torch.nn.functional.one_hot(images.labels, 3).float()
        data_term = (
            (outputs - one_hot).square().mean()
            if loss == "mse"
            else torch.nn.functional.cross_entropy(outputs, images.labels)
        )
        assert expected.item() == pytest.approx((data_term + by_hand).item(), rel=1e-5)


def test_certificate_leaves_the_network_alone():
    images = toy()
    net = bn.build("mlp", images, hidden=(16,), width=7)
    net.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.certificate(images, 0.05)
    assert not net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_same_seed_same_network():
    images = toy()
    one, two = (bn.build("mlp", images, seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("rho", [0.99, 1.01])
def test_weight_decay_threshold(rho):
    decay = bn.weight_decay_for([5] * 4, rho)
    assert theory.pytorch_beta(20, 4, decay) == pytest.approx(rho * math.sqrt(5))
    alive = theory.collapse([5] * 4, theory.pytorch_beta(20, 4, decay)).alive
    assert bool(alive.all()) == (rho < 1)


def test_resnet_backbone():
    images = data.Data("toy", torch.randn(4, 3, 8, 8), torch.tensor([0, 0, 1, 1]), 2)
    net = bn.build("resnet18", images, width=5)
    assert net(images.inputs).shape == (4, 2)
    assert net.pre_activations(images.inputs).shape == (4, 5)
    assert net.certificate(images, 0.1).gap > 0


def test_certified_subset_and_refusals():
    images = toy(8)
    net = bn.build("mlp", images, hidden=(8,), width=5)
    recipe = train.Recipe(epochs=2, lr=0.01, batch_size=8, optimizer="adam")
    part = images.per_class(3)
    run = bn.certified_training(net, images, recipe, 0.05, certify_on=part, dual=False)
    assert run.history["dual"].isna().all()
    assert run.history["optimum"].iloc[0] == pytest.approx(
        theory.pytorch_objective(
            theory.collapsed_value([3] * 3, theory.pytorch_beta(9, 3, 0.05)), 9, 3
        )
    )
    decayed = train.Recipe(epochs=2, lr=0.01, weight_decay=1e-3)
    with pytest.raises(checks.InputError, match="must be 0"):
        bn.certified_training(net, images, decayed, 0.05)
    with pytest.raises(checks.InputError):
        bn.objective(0.0)
    with pytest.raises(checks.InputError):
        bn.build("vgg", images)


def test_checkpoint_gives_the_same_run(tmp_path):
    images, recipe = toy(4), train.Recipe(epochs=5, lr=0.01, batch_size=None, optimizer="adam")
    runs = []
    for _ in range(2):
        net = bn.build("mlp", images, hidden=(8,), width=4)
        path = tmp_path / "run.pt"
        runs.append(bn.certified_training(net, images, recipe, 0.05, checkpoint=path))
    assert runs[0].history.equals(runs[1].history)
    assert torch.equal(runs[0].means, runs[1].means)


def test_whitened_images():
    images, test = toy(1, side=4), toy(5, seed=1, side=4)
    white = bn.whitened_images(images, test)
    np.testing.assert_allclose(white.inputs @ white.inputs.T, np.eye(3), atol=1e-8)
    curve = bn.closed_form_accuracy(toy(4, side=4), toy(4, side=4), [1, 2, 4], 0.3)
    assert curve["n"].tolist() == [3, 6, 12] and curve["accuracy"].iloc[-1] > 0.9
    with pytest.raises(checks.InputError, match="at most as many samples"):
        bn.whitened_images(toy(6, side=4), test)


def test_accuracy_is_that_of_the_network():
    """The curve's point equals the explicit whitened network on the whitened test inputs."""
    images, test = toy(2, side=4), toy(6, seed=2, side=4)
    part = images.per_class(2)
    white = bn.whitened_images(part, test)
    beta = 0.3 * math.sqrt(2)
    layers = theory.whitened_layers(white.inputs, white.labels, beta)
    outputs = (white.test_inputs @ layers[0].T).clamp(min=0) @ layers[1].T
    expected = float((outputs.argmax(1) == white.test_labels).double().mean())
    found = bn.closed_form_accuracy(images, test, [2], 0.3)["accuracy"].item()
    assert found == pytest.approx(expected)


def test_log_spaced():
    epochs = bn.log_spaced(1000, 20)
    assert {0, 1, 1000} <= epochs and len(epochs) <= 21
