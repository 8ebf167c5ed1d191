"""Trainings replayed as CUDA graphs, on a graph that is imitated on the CPU (or on a GPU)."""

import contextlib
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nclib import losses
from nclib.deep import graphs, nets, train
from nclib.deep.data import Data, crop_and_flip

CE, MSE = losses.get("ce"), losses.get("mse", tau=None, scale=5.0)
RECIPE = train.Recipe(5, 0.05, 16, weight_decay=1e-3, schedule="cosine", clip=1.0, fast=True)
OBJECTIVE = lambda net, x, y: CE(net(x), y)


class Graph:
    """A list of operations with the tensors they read and write; a replay runs them again."""

    def __init__(self):
        self.operations = []

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.operations:
            again = tree_leaves(func(*args, **kwargs))
            for old, new in zip(tree_leaves(result), again, strict=True):
                if isinstance(old, torch.Tensor) and old is not new:
                    old.copy_(new)


class Recording(TorchDispatchMode):
    """As CUDA: what is recorded leaves no trace, and may not look at a number."""

    def __init__(self, graph):
        super().__init__()
        self.graph, self.before, self.random = graph, [], torch.get_rng_state()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func == torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool
        if masked or func == torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing\nmore words")
        if func._schema.is_mutable or "batch_norm" in str(
            func
        ):  # whose schema hides that it writes
            self.before += [(t, t.clone()) for t in tree_leaves(args) if torch.is_tensor(t)]
        result = func(*args, **(kwargs or {}))
        self.graph.operations.append((func, args, kwargs or {}, result))
        return result

    def __exit__(self, *error):
        super().__exit__(*error)
        for tensor, old in reversed(self.before):
            tensor.detach().copy_(old)
        torch.set_rng_state(self.random)


@pytest.fixture
def recorded(monkeypatch):
    """Graphs where there is no GPU: on the CPU; returns the list of those made."""
    made = []

    def graph():
        made.append(Graph())
        return made[-1]

    monkeypatch.setattr(graphs, "possible", lambda device: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(graphs, "_new_generator", lambda device, state: torch.set_rng_state(state))
    return made


def images(N=58, size=8, K=3):
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(N) % K
    means = torch.randn(K, 2, size, size, generator=draw)
    inputs = means[labels] + 0.5 * torch.randn(N, 2, size, size, generator=draw)
    return Data("images", inputs, labels, K)


def build():
    body = nets.cnn([4, 8, 6], 3, in_channels=2).backbone
    dropped = torch.nn.Sequential(body, torch.nn.Dropout(0.2))
    return nets.Classifier(dropped, torch.nn.Linear(6, 3))


def weights(net):
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


def trained(recipe, **options):
    torch.manual_seed(0)  # of the dropout
    net = nets.seeded(0, build)
    return net, train.fit(net, images(), OBJECTIVE, recipe, seed=3, **options)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("augment", [None, crop_and_flip])
def test_a_replayed_training_is_the_training(recorded, optimizer, augment):
    # The last batch of an epoch is smaller: it runs as it is, between replays.
    recipe = replace(RECIPE, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.003)
    net, history = trained(recipe, augment=augment)
    assert len(recorded) == 1 and recorded[0].operations
    plain, want = trained(replace(recipe, fast=False), augment=augment)
    torch.testing.assert_close(weights(net), weights(plain), atol=2e-5, rtol=0)
    pd.testing.assert_frame_equal(history, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [None, 29, 57])
def test_batches_of_any_number(recorded, batch_size):
    # One batch an epoch; two equal ones; one and one of a single sample, which is left out.
    net, _ = trained(replace(RECIPE, batch_size=batch_size, epochs=6))
    plain, _ = trained(replace(RECIPE, batch_size=batch_size, epochs=6, fast=False))
    assert len(recorded) == 1
    torch.testing.assert_close(weights(net), weights(plain), atol=2e-5, rtol=0)


def test_a_stack_is_recorded_again_when_a_net_leaves_it(recorded):
    cells = [train.Cell(loss, seed, epochs) for loss, seed, epochs in
             [(CE, 0, 2), (MSE, 0, 4), (CE, 1, 4)]]  # fmt: skip
    data, small = images(), lambda: nets.cnn([4, 8, 6], 3, in_channels=2)
    options = {"augment": crop_and_flip, "measure": lambda *_: {}, "measure_at": [1, 3]}
    found = train.grid(small, cells, data, RECIPE, **options)
    assert len(recorded) == 2
    plain = train.grid(small, cells, data, replace(RECIPE, fast=False), together=False, **options)
    for one, two in zip(found, plain, strict=True):
        torch.testing.assert_close(weights(one.net), weights(two.net), atol=2e-5, rtol=0)
        pd.testing.assert_frame_equal(one.history, two.history, atol=1e-5, rtol=0)


def looks(net, x, y):
    loss = CE(net(x), y)
    return loss if loss.item() < 1e9 else 2 * loss


def masks(net, x, y):
    logits = net(x)
    return CE(logits[y >= 0], y)


def unwarned(objective, recipe):
    """The trained net, and what it was warned of."""
    torch.manual_seed(0)
    net = nets.seeded(0, build)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train.fit(net, images(), objective, recipe, seed=3)
    return net, [str(one.message) for one in caught]


@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize(
    "objective, operation", [(looks, "aten._local_scalar_dense"), (masks, "aten.index")]
)
def test_what_cannot_be_recorded_runs_as_it_is(
    recorded, monkeypatch, objective, operation, watched
):
    reason = f"{operation} makes the CPU wait for the GPU"
    if not watched:  # the recording fails
        monkeypatch.setattr(graphs, "Watch", contextlib.nullcontext)
        reason = "operation not permitted when stream is capturing"
    net, said = unwarned(objective, RECIPE)
    assert said == [f"not replayed as a CUDA graph: {reason}"]
    assert len(recorded) == (0 if watched else 1)
    plain, said = unwarned(objective, replace(RECIPE, fast=False))
    assert said == []
    torch.testing.assert_close(weights(net), weights(plain), atol=2e-5, rtol=0)


def test_a_copy_from_one_device_to_another_is_seen():
    with graphs.Watch() as watch:
        torch.ones(2).to(torch.float64)
        assert not watch.reason
        torch.ones(2).to("meta")
    assert watch.reason.startswith("aten._to_copy")


def test_an_error_of_the_work_itself_is_no_reason_to_go_on(recorded):
    steps = []

    def breaks(net, x, y):
        steps.append(x)
        if len(steps) == graphs.WARM + 1:
            raise IndexError("of the objective")
        return OBJECTIVE(net, x, y)

    with pytest.raises(IndexError, match="of the objective"):
        train.fit(nets.seeded(0, build), images(), breaks, RECIPE)


def test_nothing_is_recorded_without_a_gpu(monkeypatch):
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert not graphs.possible(torch.device("cpu"))
        assert graphs.possible(torch.device("cuda")) == there
    calls = []
    replayed = graphs.Replayed(lambda x: calls.append(x) or x, torch.device("cpu"))
    for _ in range(6):
        replayed(torch.ones(2))
    assert len(calls) == 6
