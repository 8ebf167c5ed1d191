"""Calls of public functions with tensors on an imitated accelerator, and what they are given.

A test file of such calls maps ``module.function`` to a call of it, ``HOST`` lists the functions and
classes that take no tensor, and :func:`forgotten` says what neither names.
"""

import cProfile
import inspect
from types import SimpleNamespace

import torch
from torch import nn

from nclib import losses
from nclib.deep import nets, train
from nclib.deep.data import Data
from tests.device_guard import Accelerator

CE, MSE = losses.get("ce"), losses.get("mse", tau=None)
RECIPE = train.Recipe(2, 0.05, 16, weight_decay=1e-3, clip=1.0)
ADAM = train.Recipe(2, 0.01, None, optimizer="adam")
K, D = 3, 6


def generator():
    return torch.Generator().manual_seed(0)


def things(there, host):
    """Data, nets and features on the accelerator ``there``; labels, targets and classifiers on
    ``host``."""
    draw = generator()
    labels = torch.arange(48) % K
    images = torch.randn(K, 1, 8, 8, generator=draw)[labels]
    images = images + 0.5 * torch.randn(48, 1, 8, 8, generator=draw)
    data = Data("images", images, labels, K).to(there)
    features = torch.randn(K, D, generator=draw)[labels] + 0.1 * torch.randn(48, D, generator=draw)
    targets = nn.functional.one_hot(labels, K)
    targets[::4] |= targets[1::4]
    stacked = [torch.randn(5, 4, generator=draw), torch.randn(3, 5, generator=draw)]
    return SimpleNamespace(
        there=there, data=data, rows=data.flat(),
        net=nets.seeded(0, nets.mlp, [64, 8, D], K).to(there),
        features=features.to(there), labels=labels.to(host), targets=targets.to(host),
        weight=torch.randn(K, D, generator=draw).to(host), bias=torch.zeros(K).to(host),
        layers=[layer.to(there) for layer in stacked],
    )  # fmt: skip


def works(function, call, *, split=False):
    """``call(things)`` works on an accelerator and calls ``function``, as it says.

    ``split``: labels, targets and classifiers lie on the CPU.
    """
    calls = cProfile.Profile(subcalls=False, builtins=False)
    with Accelerator() as gpu:
        given = things(gpu, torch.device("cpu") if split else gpu)
        with calls:
            call(given)
    ran = {entry.code for entry in calls.getstats()}
    assert ran & code_of(function), "the case does not call what it is called after"


def code_of(thing):
    """The code that a call of a function, or of a method of a class, runs."""
    thing = inspect.unwrap(thing)
    if inspect.isfunction(thing):
        return {thing.__code__}
    methods = [inspect.unwrap(getattr(m, "fget", m)) for m in vars(thing).values()]
    return {method.__code__ for method in methods if inspect.isfunction(method)}


def named(modules, name):
    """The function or class called ``module.name``, of one of the ``modules``."""
    home, _, attribute = name.partition(".")
    return getattr(next(m for m in modules if m.__name__.split(".")[-1] == home), attribute)


def forgotten(modules, cases, host):
    """Public functions, and classes with methods, that neither ``cases`` nor ``host`` name, and
    names there that do not exist."""
    listed = {f"{line.split(':')[0]}.{name}" for line in host.strip().splitlines()
              for name in line.split(":")[1].split()}  # fmt: skip
    return {name for module in modules for name in _public(module)} ^ {*listed, *cases}


def _public(module):
    for name, thing in vars(module).items():
        mine = getattr(thing, "__module__", None) == module.__name__
        code = inspect.isfunction(thing) or _has_methods(thing)
        if mine and code and not name.startswith("_"):
            yield f"{module.__name__.split('.')[-1]}.{name}"


def _has_methods(thing):
    own = [n for n in vars(thing) if not n.startswith("_")] if inspect.isclass(thing) else []
    return any(callable(getattr(thing, n)) or isinstance(vars(thing)[n], property) for n in own)
