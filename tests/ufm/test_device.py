"""Every public function of ``nclib.ufm`` with tensors on an accelerator, imitated or real."""

import contextlib
import importlib
import inspect
import pkgutil

import pytest
import torch

import nclib.ufm
from nclib import losses
from nclib.losses import ExactCrossEntropy, PickAllLabels
from nclib.ufm import flow, landscape, scalar, solve
from nclib.ufm.model import UFM
from tests.device_guard import Accelerator

CE, MSE = losses.get("ce"), losses.get("mse")
SETS = [[1, 0], [1, 1], [0, 1]]
SETTINGS = {
    "free bias": {"loss": CE, "bias": 0.0},
    "deep": {"loss": MSE, "decays": (0.1, 0.2, 0.3), "relu": True, "bias": [0.1, 0.2]},
    "squares": {"loss": MSE, "counts": [1, 2, 3], "nonnegative": True},
    "frozen": {"loss": CE, "sphere": ("features",), "fixed": {"weight": torch.ones(2, 3)}},
    "log": {"loss": ExactCrossEntropy(), "decays": (0, 0), "log": True, "counts": [1, 2, 1]},
    "sets": {"loss": PickAllLabels(), "targets": SETS, "counts": [1, 2, 1]},
}
GOOD = {"targets": [0, 1, 1], "widths": 3, "decays": (0.1, 0.2)}
PROBLEM = UFM(**GOOD | SETTINGS["free bias"])


def coordinates(problem, device, batch=(2,)):
    x = problem.start(torch.Generator().manual_seed(0), 0.5, batch=batch)
    return {name: tensor.to(device) for name, tensor in x.items()}


def everything(problem, device):
    """Tensors of every method of a problem."""
    x = coordinates(problem, device)
    point = problem.place(x)
    found = [problem(**x), problem.value(point), problem.logits(point), *point.values()]
    found += [*problem.gradient(x).values(), *problem.coordinates(point).values()]
    found += [problem.data(problem.logits(point)), *problem.activations(point)]
    return found if problem.log else [*found, problem.logit_gradient(point)]


def at(device):
    return PROBLEM.place(coordinates(PROBLEM, device, ()))


def lowest(device, **options):
    found = solve.best(PROBLEM, coordinates(PROBLEM, device), newton=1, **options)
    assert found.share(found.value) >= 0.5
    return [*found.point.values(), *found.points.values()]


def descents(device):
    x = coordinates(PROBLEM, device)
    paths = [flow.descend(PROBLEM, x, rate=0.1, steps=3, optimizer=o) for o in ("gd", "adam")]
    return [tensor for path in paths for tensor in (path.values, *path.points[-1].values())]


def saddle_and_way_out(device):
    point = landscape.saddle(PROBLEM, 0)
    point = {name: tensor.to(device) for name, tensor in point.items()}
    way, _ = landscape.escape(PROBLEM, point)
    landscape.curvature(PROBLEM, point, way)
    return [*way.values(), landscape.spectrum(PROBLEM, point)]


def ladder(device):
    s = torch.tensor([0.5, 1.0, 3.0], device=device)
    several = [*scalar.shrink(s, 0.3, 3), *scalar.thresholds(s, 3), scalar.local(s, 0.1, 3)]
    return [*several, scalar.shrink(1.0, s / 9, 2)[0], scalar.value(s, 2.0, 0.3, 3)]


def stationary(device):
    start = coordinates(PROBLEM, device, ())
    stack = solve.stacked([start, coordinates(PROBLEM, device, ())])
    one = solve.minimize(PROBLEM, start, max_iter=5).variables
    many = solve.minimize_many(PROBLEM, stack, max_iter=5).variables
    exact = solve.newton_polish(PROBLEM, one).variables
    return [*one.values(), *many.values(), *exact.values()]


def derivatives(device):
    x = coordinates(PROBLEM, device, ())
    solve.curvature(PROBLEM, x, x)
    landscape.balancedness([x["features"].T, x["weight"]])
    found = [*flow.slopes(PROBLEM, x).values(), solve.hessian(PROBLEM, x)]
    return [*found, solve.hessian_eigenvalues(PROBLEM, x)]


def models(device):
    return [t for setting in SETTINGS.values() for t in everything(UFM(**GOOD | setting), device)]


# The functions that run, and a call of them.
CASES = {
    "model.UFM": models,
    "solve.best solve.Best": lambda device: lowest(device) + lowest(device, together=False),
    "solve.minimize solve.minimize_many solve.newton_polish solve.stacked": stationary,
    "flow.slopes solve.hessian solve.hessian_eigenvalues solve.curvature "
    "landscape.balancedness": derivatives,
    "flow.descend": descents,
    "landscape.saddle landscape.escape landscape.curvature landscape.spectrum": saddle_and_way_out,
    "scalar.shrink scalar.thresholds scalar.local scalar.value": ladder,
}
HOST = {"landscape.orbit", "scalar.cross_entropy"}  # take no tensor


def methods(thing):
    """Public methods of a class."""
    own = vars(thing).items() if inspect.isclass(thing) else ()
    return [name for name, part in own if inspect.isfunction(part) and not name.startswith("_")]


def public():
    """``module.name`` of every function, and every class that does something."""
    for module in pkgutil.iter_modules(nclib.ufm.__path__):
        home = importlib.import_module(f"nclib.ufm.{module.name}")
        for name, thing in vars(home).items():
            mine = getattr(thing, "__module__", "") == home.__name__ and not name.startswith("_")
            if mine and (inspect.isfunction(thing) or methods(thing)):
                yield f"{module.name}.{name}"


def test_no_function_is_forgotten():
    assert {name for names in CASES for name in names.split()} | HOST == {*public()}


@pytest.mark.parametrize("name", CASES)
def test_works_on_an_accelerator(name):
    real = torch.cuda.is_available()
    with contextlib.nullcontext("cuda") if real else Accelerator() as device:
        found = list(CASES[name](device))
        assert all(tensor.device.type == "cuda" for tensor in found)


def test_the_accelerator_finds_what_the_processor_finds():
    want = solve.best(PROBLEM, coordinates(PROBLEM, "cpu"), refine=True).value
    real = torch.cuda.is_available()
    with contextlib.nullcontext("cuda") if real else Accelerator() as device:
        found = solve.best(PROBLEM, coordinates(PROBLEM, device), refine=True).value
    assert found == pytest.approx(want, abs=1e-13)
