"""Device code on a machine without a GPU, under the imitation of :mod:`tests.device_guard`."""

import contextlib
import dis
import numbers

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from nclib import notebook, runs
from nclib.deep import train
from nclib.plots import style
from nclib.results.normalized import figures as plots_normalized
from tests.conftest import code
from tests.device_guard import GPU, Accelerator
from tests.run import commits


def mistakes(gpu):
    """What fails on CUDA, as a mapping name -> call."""
    here, there = torch.randn(4, 3), torch.randn(4, 3).to(gpu)
    index = torch.tensor([0, 2])
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to(gpu)
    stack = torch.func.stack_module_state([net, net])
    forward = lambda p, b, x: torch.func.functional_call(net, (p, b), (x,))

    def optimised_after_moving():
        lost = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(lost.parameters(), lr=0.1)
        loss = torch.nn.functional.linear(there, lost.weight.to(gpu)).sum()
        lost.weight.grad = torch.autograd.grad(loss, lost.weight)[0].to(gpu)
        optimizer.step()

    return {
        "sum": lambda: here + there,
        "in place": lambda: here.add_(there),
        "scalar of the accelerator": lambda: here * there.sum(),
        "product": lambda: there @ here.T,
        "where": lambda: torch.where(there > 0, there, here),
        "cat": lambda: torch.cat([here, there]),
        "stack of scalars": lambda: torch.stack([here.sum(), there.sum()]),
        "gather": lambda: there.gather(1, torch.zeros(4, 1).long()),
        "index_add": lambda: torch.zeros(4, 3).index_add_(0, torch.arange(4, device=gpu), there),
        "index": lambda: here[index.to(gpu)],
        "mask": lambda: here[there > 0],
        "assignment": lambda: there.__setitem__(index, here[index]),
        "bincount": lambda: torch.bincount(index.to(gpu), weights=torch.ones(2)),
        "isin": lambda: torch.isin(index.to(gpu), index),
        "default device": lambda: there + torch.zeros(3),
        "out": lambda: torch.add(there, 1, out=here),
        "labels": lambda: nn.functional.cross_entropy(there, torch.zeros(4).long()),
        "module": lambda: net(here),
        "module left behind": lambda: nn.Linear(3, 2)(there),
        "buffer left behind": lambda: net.append(nn.BatchNorm1d(3))(there),
        "vmap": lambda: torch.vmap(forward)(*stack, torch.stack([here, here])),
        "optimiser": optimised_after_moving,
        "numpy": lambda: there.numpy(),
        "asarray": lambda: np.asarray(there),
        "numpy function": lambda: np.linalg.norm(there),
        "pandas": lambda: pd.DataFrame({"x": there[:, 0]}),
        "generator": lambda: torch.randn(3, device=gpu, generator=torch.Generator()),
        "permutation": lambda: torch.randperm(3, device="cuda", generator=torch.Generator()),
        "generator in place": lambda: there.normal_(generator=torch.Generator()),
    }


with Accelerator() as _gpu:
    MISTAKES = list(mistakes(_gpu))


@pytest.mark.parametrize("name", MISTAKES)
def test_the_imitation_refuses_what_cuda_refuses(name):
    words = "same device|to numpy|generator"
    with Accelerator() as gpu:
        mistake = mistakes(gpu)[name]
        with pytest.raises((RuntimeError, TypeError), match=words):
            mistake()


def test_the_imitation_allows_what_cuda_allows():
    with Accelerator() as gpu:
        there, index = torch.randn(4, 3).to("cuda"), torch.tensor([0, 2])
        on_gpu = {
            "cpu index": there[index],
            "cpu mask": there[torch.ones(4, dtype=torch.bool)],
            "cpu scalar": there * torch.tensor(2.0),
            "foreach": torch._foreach_mul([there], torch.tensor(2.0))[0],
            "where": torch.where(there > 0, there, 0.0),
            "like": torch.zeros_like(there),
            "new": there.new_ones(2),
            "one-hot": nn.functional.one_hot(index.to(gpu), 3),
            "view": there.T[0].reshape(-1),
            "svd": torch.linalg.svd(there)[1],
            "copy": torch.zeros(3, device=gpu).copy_(torch.ones(3)),
            "as_tensor": torch.as_tensor(np.ones(3), device=gpu),
            "moved twice": there.cpu().to(there),
            "buffer": nn.BatchNorm1d(3).to(gpu).running_mean,
        }
        assert {name: str(t.device) for name, t in on_gpu.items()} == dict.fromkeys(
            on_gpu, "cuda:0"
        )
        on_cpu = [torch.zeros(3), there.cpu(), torch.randperm(3, generator=torch.Generator())]
        on_cpu.append(torch.zeros(4, 3).copy_(there))
        assert {str(t.device) for t in on_cpu} == {"cpu"}
        assert there.is_cuda and not there.is_cpu and there.cpu().is_cpu
        assert there.numpy(force=True).shape == (4, 3)
        assert float(there.sum()) == pytest.approx(sum(map(sum, there.tolist())), rel=1e-5)
        net = nn.Linear(3, 1).to(gpu)
        for fused in (None, True):
            optimizer = torch.optim.Adam(net.parameters(), fused=fused)
            net(there).sum().backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
        assert net.weight.grad.device == gpu
    assert there.device.type == "cpu"  # nothing is left of it


# Settings that run the network part of a notebook in seconds; the sizes say nothing.
TINY = {
    "00_quickstart": {"epochs": 20, "train_per_class": 20},
    "01_multi_loss_equivalence": {
        "epochs": [2, 4], "long_epochs": 6, "seeds": [0, 1], "widths": [2, 8],
    },
    "02_normalized_features": {
        "epochs": 2, "measure_every": 1, "temperatures": [1.0, 3.0], "widths": [8, 16],
        "test_per_class": 20, "K": 4, "n": 1, "d": 4, "scales": [1.0],
    },
    "03_multi_label_tagwise": {"epochs": 2, "eval_every": 1, "channels": [4, 8]},
    "04_large_class_gnc": {
        "epochs": 8, "many_epochs": 8, "net_temperatures": [1.0, 0.2], "best_temperature": 0.2,
        "many_dims": [10, 5],
        "word_epochs": 2, "assignment_seeds": [0], "large_steps": 10, "text_length": 4000,
    },
    "05_extended_ufm": {
        "net_epochs": 3, "floor_steps": 20, "steps": 400, "relu_seeds": 2, "train_per_class": 30,
    },
    "06_convex_duality": {
        "epochs": 20, "epochs_unbalanced": 20, "whitened_steps": 20, "accuracy_per_class": [1, 2],
        "certify_per_class": 10, "counts": [4, 1], "epochs_depths": 20,
    },
}  # fmt: skip


def names(source):
    """Names that the code of a cell reads from other cells, and those that it writes."""
    whole = compile(source, "cell", "exec")
    reads, writes, nested = set(), set(), []
    for step in dis.get_instructions(whole):
        if step.opname == "LOAD_NAME" and step.argval not in writes:
            reads.add(step.argval)
        if step.opname == "STORE_NAME":
            writes.add(step.argval)
    blocks = [whole]
    for block in blocks:
        blocks += [constant for constant in block.co_consts if hasattr(constant, "co_code")]
        nested += [s.argval for s in dis.get_instructions(block) if s.opname == "LOAD_GLOBAL"]
    return reads | set(nested) - writes, writes


class Notebook:
    """A notebook of which only the cells run that have to do with ``run.device``."""

    def __init__(self, book, space):
        self.cells, self.space, self.owner = code(book), space, {}
        self.needs, self.writes, self.accelerator = [], [], Accelerator()
        writer = {}
        for i, source in enumerate(self.cells):
            reads, writes = names(source)
            self.needs.append({name: writer[name] for name in reads if name in writer})
            self.writes.append(writes)
            writer |= dict.fromkeys(writes, i)

    def execute(self, i, place=None):
        """Run cell ``i`` in ``place``, and first what it needs, as in the order of the notebook."""
        if i in self.owner.values():
            return
        for j in sorted(set(self.needs[i].values())):
            self.execute(j)
        later = {n: self.space[n] for n in self.writes[i] if self.owner.get(n, -1) > i}
        self.owner |= dict.fromkeys(self.writes[i] - later.keys() | {i}, i)
        with place or contextlib.nullcontext():
            exec(self.cells[i], self.space)
        self.space |= later

    def run(self):
        """Run the cells that name the device, and those that use something of theirs which may
        hold a tensor."""
        touched = set()
        for i, source in enumerate(self.cells[:-1]):
            used = [name for name in self.needs[i] if name in touched]
            if "run.device" in source or used:
                self.execute(i, self.accelerator)
                plain = (pd.DataFrame, pd.Series, np.ndarray, numbers.Number, str)
                found = {n for n in self.writes[i] if not isinstance(self.space.get(n), plain)}
                touched = touched - self.writes[i] | found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("book", [*TINY][commits() % 2 :: 2])  # half of them at each commit
def test_the_networks_of_a_notebook_run_on_an_accelerator(book, tmp_path, monkeypatch):
    monkeypatch.setenv(notebook.FOLDER, str(tmp_path))
    monkeypatch.setenv(notebook.FIGURES, str(tmp_path))
    batches = train.Recipe.batches  # one step per epoch
    monkeypatch.setattr(train.Recipe, "batches", lambda *arguments: batches(*arguments)[:1])
    for name in ("save", "animate"):  # drawn, but not written
        monkeypatch.setattr(style, name, lambda *_, **__: None, raising=False)
    monkeypatch.setattr(plots_normalized, "animate", lambda *_, **__: None)
    monkeypatch.setattr(notebook, "device", lambda name: GPU)
    space = {}
    whole = Notebook(book, space)
    whole.execute(0)
    space |= TINY[book] | {"device": "cuda"}
    whole.run()
    plt.close("all")


def test_every_notebook_is_run_so():
    assert list(TINY) == runs.notebooks()
