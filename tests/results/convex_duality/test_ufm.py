import math

import numpy as np
import pytest
import torch

from nclib import checks
from nclib.results.convex_duality import theory
from nclib.results.convex_duality import ufm as convex


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("bias", ["none", "last", "all"])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_network_objective_is_the_torch_module(activation, bias):
    X, Y, beta = gaussian(0, 5, 3), gaussian(1, 5, 2), 0.3
    network = convex.Network(X, Y, beta, (4, 6), activation, bias)
    point = network.start(torch.Generator().manual_seed(0))
    has_bias = {"none": (0, 0, 0), "last": (0, 1, 1), "all": (1, 1, 1)}[bias]
    modules = []
    for i, (fan_in, fan_out) in enumerate([(3, 4), (4, 6), (6, 2)]):
        linear = torch.nn.Linear(fan_in, fan_out, bias=bool(has_bias[i])).double()
        with torch.no_grad():
            linear.weight.copy_(point[f"weight{i + 1}"])
            if has_bias[i]:
                point[f"bias{i + 1}"] = gaussian(5 + i, fan_out)
                linear.bias.copy_(point[f"bias{i + 1}"])
        modules += [linear, torch.nn.ReLU() if activation == "relu" else torch.nn.Identity()]
    module = torch.nn.Sequential(*modules[:-1])
    decay = sum(p.square().sum() for name, p in module.named_parameters() if "weight" in name)
    expected = (module(X) - Y).square().sum() / 2 + beta / 2 * decay
    assert network.objective(**point).item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(network.outputs(point, X[:2]), module(X[:2]))
    assert torch.allclose(network.hidden(point), module[:-1](X))
    assert network.depth == 3 and sorted(k for k in point if "bias" in k) == [
        f"bias{i + 1}" for i in range(3) if has_bias[i]
    ]


def test_batch_norm_objective_is_the_torch_module():
    A, Y, beta, n = gaussian(2, 9, 4), gaussian(3, 9, 3), 0.7, 9
    problem = convex.BatchNormNetwork(A, Y, beta, 5)
    point = problem.start(torch.Generator().manual_seed(1))
    norm = torch.nn.BatchNorm1d(5, eps=1e-14).double()
    with torch.no_grad():
        norm.weight.copy_(point["gamma"] / math.sqrt(n))
        norm.bias.copy_(point["alpha"] / math.sqrt(n))
    out = torch.relu(norm(A @ point["hidden_weight"].T)) @ point["weight"].T
    decay = sum(point[name].square().sum() for name in ("gamma", "alpha", "weight"))
    expected = (out - Y).square().sum() / 2 + beta / 2 * decay
    assert problem.objective(**point).item() == pytest.approx(expected.item(), rel=1e-10)
    scaled = point | {"hidden_weight": 7 * point["hidden_weight"]}
    assert problem.objective(**scaled).item() == pytest.approx(expected.item(), rel=1e-10)


def test_one_dimensional_training_reaches_the_spline():
    """Claim 6.C18: best of a few starts, never below the convex value."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.uniform(-1.5, 1.5, 7))
    y = np.sin(2.5 * x) + 0.1 * rng.standard_normal(7)
    network = convex.Network(x, y, 0.3, (40,), bias="last")
    found = convex.best_of(network, 4, pool=1, max_iter=250)
    excess = np.array(found.values) - theory.lasso_1d(x, y, 0.3)
    assert -1e-10 < excess.min() < 1e-5
    assert found.best.value == min(found.values)
    assert found.hits(found.best.value, 0.0) >= 1 and found.hits(-1.0) == 0


def test_biases_in_every_layer_go_below_the_spline():
    """Claim 6.C19, the counterexample."""
    rng = np.random.default_rng(2)
    x, y = np.sort(rng.uniform(0, 3, 6)), rng.standard_normal(6)
    spline = theory.deep_spline(x, y, 0.02, 3).value
    deep = convex.best_of(convex.Network(x, y, 0.02, (12, 12), bias="all"), 2, max_iter=500)
    assert deep.best.value < spline - 1e-3


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-2), ("sgd", 0.03)])
def test_descend(optimizer, lr):
    X = torch.linalg.qr(gaussian(4, 14, 9))[0].T
    Y = torch.eye(3, dtype=torch.float64).repeat_interleave(3, 0)
    network = convex.Network(X, Y, 0.4, (12,))
    start = network.start(torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in start.items()}
    measured = lambda point: {"norm": float(point["weight1"].norm())}
    end, trace = convex.descend(
        network, start, optimizer=optimizer, lr=lr, steps=1500, measure=measured, rows=20
    )
    value = theory.collapsed_value([3, 3, 3], 0.4)
    assert trace["objective"].iloc[-1] == pytest.approx(value, abs=1e-4)
    assert (trace["objective"] > value - 1e-10).all()
    assert trace["step"].iloc[[0, -1]].tolist() == [0, 1500] and trace["step"].is_unique
    assert trace["norm"].iloc[-1] == float(end["weight1"].norm())
    assert network.objective(**end).item() == trace["objective"].iloc[-1]
    assert all(torch.equal(before[name], start[name]) for name in start)


def test_screening_leaves_a_bad_minimum_and_agreement_ends_the_search():
    """A double well: the left one, near -1, is lower; the hill is at about 0.04."""
    well = lambda x: (x.square() - 1).square().sum() + 0.3 * x.sum()
    points = lambda *values: [{"x": torch.tensor([v], dtype=torch.float64)} for v in values]
    left, right = (float(well(torch.tensor(x))) for x in (-1.0354, 0.9601))
    found = convex.lowest(well, points(1.2, 0.9, -1.1, 0.8, -0.8, -1.3), 3)
    assert found.best.value == pytest.approx(left, abs=1e-6)
    assert found.converged and len(found.values) == 2
    # Without screening they come in their order, and agreement above the lowest value is none.
    found = convex.lowest(well, points(1.2, -1.1), 2)
    assert found.values == pytest.approx((right, left), abs=1e-6) and not found.converged
    assert not convex.lowest(well, points(-1.1), 1).converged


def test_same_seed_same_result():
    network = convex.Network(gaussian(5, 4, 6), gaussian(6, 4, 2), 0.3, (5,))
    values = lambda seed: convex.best_of(network, 2, seed=seed, max_iter=100).values
    assert values(3) == values(3) and values(3) != values(4)


def test_bad_input():
    X, Y = gaussian(7, 4, 3), gaussian(8, 4, 2)
    for arguments in (
        (X, Y[:3], 0.1, (5,)),
        (X, Y, 0.0, (5,)),
        (X, Y, 0.1, ()),
        (X, Y, 0.1, (0,)),
        (X, Y, 0.1, (5,), "tanh"),
        (X, Y, 0.1, (5,), "relu", "first"),
    ):
        with pytest.raises(checks.InputError):
            convex.Network(*arguments)
    with pytest.raises(checks.InputError):
        convex.BatchNormNetwork(X, Y, 0.1, 0)
    with pytest.raises(checks.InputError):
        convex.descend(convex.Network(X, Y, 0.1, (5,)), {}, optimizer="lion")
