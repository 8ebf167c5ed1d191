"""Problems against torch's modules, the search on a known landscape, and the head on images."""

import math

import pytest
import torch

from nclib import checks, losses
from nclib.deep import data
from nclib.results.convex_duality import nets, ramps


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_of(counts):
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def toy(per_class=6, K=3, seed=0, side=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(K).repeat_interleave(per_class)
    centres = torch.randn(K, 1, side, side, generator=generator)
    noise = torch.randn(len(labels), 1, side, side, generator=generator)
    return data.Data("toy", centres[labels] + 0.3 * noise, labels, K)


MLP = {"hidden": (16,), "width": 7, "normalise": True}


@pytest.mark.parametrize("bias", ["none", "last", "all"])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_network_is_the_torch_module(activation, bias):
    X, Y, beta = gaussian(0, 5, 3), gaussian(1, 5, 2), 0.3
    network = nets.Network(X, Y, beta, (4, 6), activation, bias)
    point = network.start(torch.Generator().manual_seed(0))
    biases = {"none": [], "last": ["bias_2", "bias"], "all": ["bias_1", "bias_2", "bias"]}[bias]
    assert [name for name in point if "bias" in name] == biases
    modules = []
    for i, (name, sizes) in enumerate(zip(network.names, [(3, 4), (4, 6), (6, 2)], strict=True)):
        shift = network.biases[name]
        linear = torch.nn.Linear(*sizes, bias=shift in point).double()
        with torch.no_grad():
            linear.weight.copy_(point[name])
            if shift in point:
                point[shift] = gaussian(5 + i, sizes[1])
                linear.bias.copy_(point[shift])
        modules += [linear, torch.nn.ReLU() if activation == "relu" else torch.nn.Identity()]
    module = torch.nn.Sequential(*modules[:-1])
    decay = sum(p.square().sum() for name, p in module.named_parameters() if "weight" in name)
    expected = (module(X) - Y).square().sum() / 2 + beta / 2 * decay
    assert network(**point).item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(network.outputs(point, X[:2]), module(X[:2]))
    assert torch.allclose(network.hidden(point), module[:-1](X))


def test_batch_norm_network_is_the_torch_module():
    A, Y, beta, n = gaussian(2, 9, 4), gaussian(3, 9, 3), 0.7, 9
    problem = nets.BatchNormNetwork(A, Y, beta, 5)
    point = problem.start(torch.Generator().manual_seed(1))
    norm = torch.nn.BatchNorm1d(5, eps=1e-14).double()
    with torch.no_grad():
        norm.weight.copy_(point["gamma"] / math.sqrt(n))
        norm.bias.copy_(point["alpha"] / math.sqrt(n))
    out = torch.relu(norm(A @ point["hidden_weight"].T)) @ point["weight"].T
    decay = sum(point[name].square().sum() for name in ("gamma", "alpha", "weight"))
    expected = (out - Y).square().sum() / 2 + beta / 2 * decay
    assert problem(**point).item() == pytest.approx(expected.item(), rel=1e-10)
    scaled = point | {"hidden_weight": 7 * point["hidden_weight"]}
    assert problem(**scaled).item() == pytest.approx(expected.item(), rel=1e-10)


def test_interpolation_eliminates_the_last_layer_and_keeps_the_norm():
    generator = torch.Generator().manual_seed(2)
    X, Y = gaussian(1, 3, 5), gaussian(2, 3, 3)
    for norm in (1.3, None):
        problem = nets.Interpolation(X, Y, 4, norm=norm)
        point = problem.start(generator)
        layers = problem.layers(point)
        out = X
        for layer in layers:
            out = out @ layer.T
        assert torch.allclose(out, Y, atol=1e-8)
        if norm:
            assert [float(w.norm()) for w in layers[:2]] == pytest.approx([1.3, 1.3])
        paid = layers[-2:] if norm else layers
        expected = sum(float(w.square().sum()) for w in paid) / 2
        assert float(problem(**point)) == pytest.approx(expected)


def test_problems_take_any_precision_and_refuse_what_has_no_answer():
    X, Y, A = gaussian(1, 3, 5).float(), gaussian(2, 3, 3), gaussian(3, 4, 2).numpy()
    exact = nets.Interpolation(X.double(), Y, 2)
    point = exact.start(torch.Generator().manual_seed(0))
    assert float(nets.Interpolation(X, Y.tolist(), 2)(**point)) == float(exact(**point))
    head = nets.BatchNormNetwork(A.astype("float32"), torch.ones(4, 1), 0.5, 2)
    assert float(head(**head.start(torch.Generator().manual_seed(0)))) > 0
    for call, message in (
        (lambda: nets.Network(X, Y[:2], 0.1, (5,)), "targets must have 3 rows"),
        (lambda: nets.Network(X, Y, 0.0, (5,)), "beta"),
        (lambda: nets.Network(X, Y, 0.1, ()), "widths is empty"),
        (lambda: nets.Network(X, Y, 0.1, (0,)), "widths must be at least 1"),
        (lambda: nets.Network(X, Y, 0.1, (5,), "tanh"), "activation"),
        (lambda: nets.Network(X, Y, 0.1, (5,), bias="first"), "bias"),
        (lambda: nets.Interpolation(X, Y[:2], 2), "targets must have 3 rows"),
        (lambda: nets.Interpolation(X, Y, 1), "depth must be at least 2"),
        (lambda: nets.Interpolation(X, Y, 2, 0.0), "norm must be greater than 0"),
        (lambda: nets.Interpolation(X[:, :2], Y, 2), "3 samples need"),
        (lambda: nets.BatchNormNetwork(A, torch.ones(3, 1), 0.5, 2), "targets must have 4 rows"),
        (lambda: nets.BatchNormNetwork(A, torch.ones(4, 1), -0.5, 2), "beta"),
        (lambda: nets.BatchNormNetwork(A, torch.ones(4, 1), 0.5, 0), "width"),
    ):
        with pytest.raises(checks.InputError, match=message):
            call()


class Well:
    """A double well: the left one, near -1, is lower; the hill is at about 0.04."""

    def __init__(self, *starts):
        self.starts = iter(starts)

    def start(self, generator, scale):
        return {"x": torch.tensor([next(self.starts)], dtype=torch.float64)}

    def __call__(self, x):
        return (x.square() - 1).square().sum() + 0.3 * x.sum()


def test_screening_leaves_a_bad_minimum_and_agreement_ends_the_search():
    left, right = (float(Well()(torch.tensor(x))) for x in (-1.0354, 0.9601))
    found = nets.lowest(Well(1.2, 0.9, -1.1, 0.8, -0.8, -1.3), 3, pool=2)
    assert found.value == pytest.approx(left, abs=1e-6) and found.converged
    # Without screening they come in their order, and agreement above the lowest value is none.
    found = nets.lowest(Well(1.2, -1.1), 2, pool=1)
    assert found.value == pytest.approx(left, abs=1e-6) and not found.converged
    ends = Well(1.2, 0.9, -1.1)
    found = nets.lowest(ends, 3, pool=1)  # the first two agree: the third never runs
    assert found.value == pytest.approx(right, abs=1e-6) and found.converged
    assert not nets.lowest(Well(-1.1), 1, pool=1).converged


def test_same_seed_same_result():
    network = nets.Network(gaussian(5, 4, 6), gaussian(6, 4, 2), 0.3, (5,))
    found = [nets.lowest(network, 1, seed=seed, max_iter=5) for seed in (3, 3, 4)]
    assert found[0].value == found[1].value != found[2].value


def test_biases_in_every_layer_go_below_the_spline():
    """Claim 6.C19, the counterexample."""
    x, y = torch.linspace(0, 3, 6).double(), gaussian(2, 6)
    deep = nets.Network(x, y, 0.02, (12, 12), bias="all")
    assert nets.lowest(deep, 2, max_iter=500).value < ramps.deep_spline(x, y, 0.02, 3).value - 1e-3


# --- a head on images


def test_certificate_is_the_objective_and_leaves_the_network_alone():
    images = toy()
    net = nets.build("mlp", images, **MLP, seed=3)
    net.train()
    by_hand = 0.025 * sum(p.square().sum() for p in net.decayed())
    expected = losses.MeanSquaredError(tau=None)(net(images.inputs), images.labels) + by_hand
    net.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert net.certificate(images, 0.05).objective == pytest.approx(expected.item(), rel=1e-5)
    assert not net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_builds():
    images = toy()
    one, two = (nets.build("mlp", images, **MLP, seed=4).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    plain = nets.build("mlp", images, **MLP | {"normalise": False})
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in plain.modules()) == 1
    colours = data.Data("toy", torch.randn(4, 3, 8, 8), torch.tensor([0, 0, 1, 1]), 2)
    net = nets.build("resnet18", colours, **MLP | {"width": 5})
    assert net(colours.inputs).shape == (4, 2)
    assert net.certificate(colours, 0.1).gap > 0
    with pytest.raises(checks.InputError, match="architecture"):
        nets.build("vgg", images, **MLP)
