"""Descent against the same steps written out, PyTorch's optimisers, and geodesic geometry."""

import math

import pytest
import torch

from nclib import losses
from nclib.checks import InputError
from nclib.losses import ExactCrossEntropy
from nclib.ufm.flow import descend
from nclib.ufm.model import UFM

PROBLEM = UFM.classes([2, 3], losses.get("mse"), widths=(3, 4), decays=(0.1, 0.2, 0.1), bias=0.0)


def start(problem=PROBLEM, batch=(2,), seed=0, scale=0.5):
    return problem.start(torch.Generator().manual_seed(seed), scale, batch=batch)


def test_descent_is_that_of_pytorch_for_every_start():
    x, rates = start(), {"features": 0.3}
    for options, make in (
        ({}, lambda groups: torch.optim.SGD(groups)),
        ({"momentum": 0.8}, lambda groups: torch.optim.SGD(groups, momentum=0.8)),
        ({"optimizer": "adam"}, lambda groups: torch.optim.Adam(groups)),
    ):
        path = descend(PROBLEM, x, rate=0.1, rates=rates, steps=25, record=[0, 7], **options)
        assert path.steps == [0, 7, 25]
        for i in range(2):
            y = {name: t[i].clone().requires_grad_() for name, t in x.items()}
            groups = [{"params": [t], "lr": rates.get(name, 0.1)} for name, t in y.items()]
            stepper = make(groups)
            for _ in range(25):
                stepper.zero_grad()
                PROBLEM(**y).backward()
                stepper.step()
            for name, tensor in y.items():
                torch.testing.assert_close(path.points[-1][name][i], tensor.detach())
            torch.testing.assert_close(path.values[-1][i], PROBLEM(**y).detach())


def test_a_cosine_takes_the_rate_to_zero():
    path = descend(PROBLEM, start(), rate=0.2, steps=4, cosine=True, record=range(5))
    for step in range(4):
        before, after = path.points[step], path.points[step + 1]
        slope = PROBLEM.gradient(before)["weight"]
        rate = 0.2 * (1 + math.cos(math.pi * step / 4)) / 2
        torch.testing.assert_close(after["weight"], before["weight"] - rate * slope)
    adam = descend(PROBLEM, start(), rate=0.2, steps=4, cosine=True, record=[3], optimizer="adam")
    last = (adam.points[1]["weight"] - adam.points[0]["weight"]).abs().max()
    assert last < 0.06  # 0.2 (1 + cos 3π/4)/2 = 0.029, as Adam moves about its rate


def test_rows_on_spheres_move_by_the_riemannian_gradient_and_stay_there():
    problem = UFM.classes([2, 2, 2], ExactCrossEntropy(), widths=3, decays=(0, 0), scale=2.0,
                          sphere=("features", "weight"))  # fmt: skip
    path = descend(problem, start(problem, scale=7.0), rate=0.3, steps=3, record=range(4))
    before, after = path.points[0], path.points[1]
    for point in path.points:
        torch.testing.assert_close(point["weight"].norm(dim=-1), torch.ones(2, 3).double())
    x = {name: t.clone().requires_grad_() for name, t in before.items()}
    logits = 2.0 * x["features"] @ x["weight"].mT  # the loss in free space
    value = torch.nn.functional.cross_entropy(
        logits.mT, problem.targets.expand(2, -1), reduction="sum"
    )
    for name, slope in zip(x, torch.autograd.grad(value / 6, list(x.values())), strict=True):
        row = before[name]
        tangent = slope - (slope * row).sum(-1, keepdim=True) * row
        want = row - 0.3 * tangent
        torch.testing.assert_close(after[name], want / want.norm(dim=-1, keepdim=True))


def test_records_and_measures():
    path = descend(PROBLEM, start(), rate=0.1, steps=1000, record=12,
                   measure=lambda point: {"norm": float(point["weight"].norm())})  # fmt: skip
    assert path.steps[0] == 0 and path.steps[-1] == 1000 and 8 <= len(path.steps) <= 12
    assert path.values.shape == (len(path.steps), 2)
    assert path.measured[-1] == {"norm": float(path.points[-1]["weight"].norm())}
    assert bool((path.values.diff(dim=0) < 0).all())
    torch.testing.assert_close(PROBLEM.value(path.points[3]), path.values[3])
    assert descend(PROBLEM, start(), rate=0.1, steps=3, record=2).measured == []


def test_the_start_is_left_as_it_was():
    x = start()
    kept = {name: t.clone() for name, t in x.items()}
    for optimizer in ("gd", "adam"):
        descend(PROBLEM, x, rate=0.1, steps=3, optimizer=optimizer)
    assert all(torch.equal(x[name], kept[name]) and x[name].grad is None for name in x)


def test_any_problem_with_a_call_and_a_place_descends():
    class Bowl:
        def place(self, coordinates):
            return {"shifted": coordinates["x"] + 1}

        def __call__(self, x):
            return (x**2).sum() / 2

    path = descend(Bowl(), {"x": torch.tensor([1.0, -2.0])}, rate=0.5, steps=2, record=[1])
    torch.testing.assert_close(path.points[-1]["shifted"], torch.tensor([1.25, 0.5]))
    torch.testing.assert_close(path.values, torch.tensor([0.625, 0.15625]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 0}, "rate must be greater than 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"rates": {"bais": 1.0}}, "rates must be one of features, hidden_1, weight, bias"),
        ({"rates": {"bias": -1.0}}, "must be greater than 0"),
        ({"momentum": 1.0}, "momentum must be less than 1"),
        ({"optimizer": "sgd"}, "optimizer must be one of gd, adam"),
        ({"optimizer": "adam", "momentum": 0.9}, "Adam has a momentum of its own"),
        ({"record": [-1]}, "record must be at least 0"),
        ({"record": 1}, "count must be at least 2"),
        ({"record": 0}, "record must be at least 1"),
        ({"record": [3, 50]}, "record must be steps up to"),
        ({"rate": 1e9, "steps": 50}, "diverged at rate = 1000000000.0; use a smaller one"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(InputError, match=message):
        descend(PROBLEM, start(), **{"rate": 0.1, "steps": 5} | change)
