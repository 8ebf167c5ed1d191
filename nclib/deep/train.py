"""Training: one net (:func:`fit`) or a grid of equal-shaped nets at once (:func:`grid`).

Both keep the whole data set as one tensor on the device, draw batches from an explicit generator,
measure at chosen epochs, and save checkpoints by the clock: a killed training resumes and ends
with the same result as an undisturbed one.
"""

import copy
import hashlib
import io
import json
import math
import os
import time
import warnings
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from nclib import checks, files, losses
from nclib.deep import graphs, nets

SCHEDULES = ("constant", "steps", "cosine")
OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class Recipe:
    """How to optimise.

    ``schedule``: ``"steps"`` multiplies the rate by ``factor`` after each share of the epochs in
    ``milestones``; ``"cosine"`` falls to ``final * lr``, once per epoch.  ``batch_size=None`` is
    the full batch.  ``weight_decay`` is PyTorch's: it adds ``weight_decay * w`` to the gradient,
    that is ``(weight_decay/2)‖w‖²`` to the objective (decoupled for ``adamw``).  ``clip`` bounds
    the gradient norm.

    Speed: ``bf16`` runs the backbone in bfloat16 autocast (head, loss, weights and metrics stay
    float32).  ``fast`` keeps images channels-last, fuses the optimiser's step and, on a GPU,
    replays the forward and backward pass as a CUDA graph (:mod:`nclib.deep.graphs`): the same
    numbers up to rounding; the default ``None`` is on for a GPU.
    """

    epochs: int
    lr: float
    batch_size: int | None = 128
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: str = "constant"
    milestones: tuple = (3 / 7, 5 / 7)
    factor: float = 0.1
    final: float = 0.0
    clip: float | None = None
    drop_last: bool = False
    bf16: bool = False
    fast: bool | None = None

    def __post_init__(self):
        checks.integer("epochs", self.epochs, 0)
        checks.real("lr", self.lr, above=0)
        if self.batch_size is not None:
            checks.integer("batch_size", self.batch_size)
        checks.choice("optimizer", self.optimizer, OPTIMIZERS)
        checks.choice("schedule", self.schedule, SCHEDULES)
        checks.real("momentum", self.momentum, at_least=0, below=1)
        if self.nesterov:
            checks.real("momentum (with nesterov)", self.momentum, above=0)
        checks.real("weight_decay", self.weight_decay, at_least=0)
        for share in self.milestones:
            checks.real("milestones", share, at_least=0, at_most=1)
        checks.real("factor", self.factor, above=0)
        checks.real("final", self.final, at_least=0, at_most=1)
        if self.clip is not None:
            checks.real("clip", self.clip, above=0)

    def rate(self, epoch, epochs=None):
        """Learning rate of the given epoch (counted from 0)."""
        epochs = epochs or self.epochs
        if self.schedule == "steps":
            # 0.7 * 90 is a hair below 63.
            passed = sum(epoch >= int(m * epochs + 1e-9) for m in self.milestones)
            return self.lr * self.factor**passed
        if self.schedule == "cosine":
            wave = (1 + math.cos(math.pi * epoch / epochs)) / 2
            return self.lr * (self.final + (1 - self.final) * wave)
        return self.lr

    def batches(self, size, generator, device=None):
        """Index batches of one epoch, on ``device``; the draw is the same on all of them."""
        if self.batch_size is None or self.batch_size >= size:
            return [torch.arange(size, device=device)]
        order = torch.randperm(size, generator=generator).to(device)
        parts = list(order.split(self.batch_size))
        # A last batch of one sample has no variance for batch norm: it is dropped in any case.
        if len(parts[-1]) < self.batch_size and (self.drop_last or len(parts[-1]) == 1):
            parts.pop()
        return parts


def fit(
    net,
    data,
    objective,
    recipe,
    *,
    seed=0,
    measure=None,
    measure_at=None,
    checkpoint=None,
    after_step=None,
    augment=None,
    label="training",
):
    """Train ``net`` in place; returns its history as a DataFrame with one row per measured epoch.

    Args:
        net: an ``nn.Module`` on the device of the data.
        data: object with ``inputs (N, …)`` and ``labels`` (any tensor with N rows).
        objective: ``(net, inputs, labels) -> loss``, the mean over a batch: the same operations
            for every batch of one size (on a GPU they are recorded once and replayed).
        recipe: :class:`Recipe`.
        seed: of the batch order (and of ``augment``).
        measure: ``(net, epoch) -> dict`` of floats; epoch 0 is before training.
        measure_at: epochs to measure at; default all.
        checkpoint: path; see :meth:`nclib.notebook.Run.checkpoint`.  A finished training is
            loaded instead of repeated; a damaged file, and one of something else (another recipe,
            seed, data or shape; the objective and the first weights are not compared), is moved
            aside with a warning and training starts anew.
        after_step: ``(net) -> None`` after every optimiser step, e.g. a projection.
        augment: ``(inputs, generator) -> inputs`` for every batch.

    History columns: ``epoch``, ``lr``, ``train_loss`` (mean over the epoch's batches) and those of
    ``measure``.  Raises :class:`~nclib.checks.InputError` as soon as a loss is NaN or infinite (on
    a GPU at the end of that epoch), and saves no checkpoint after it.
    """
    run = _Fit(net, data, objective, recipe, seed)
    measure_at = set(range(recipe.epochs + 1) if measure_at is None else measure_at)
    resumed = _resume(checkpoint, run.restore, run.content)
    saved = time.monotonic()

    def record(epoch, **values):
        if epoch in measure_at:
            found = measure(net, epoch) if measure else {}
            row = {"epoch": epoch} | values | {k: float(v) for k, v in found.items()}
            run.history.append(row)

    def save(*where):
        nonlocal saved
        saved = time.monotonic()
        _save(checkpoint, run.content(*where))

    def due():
        return checkpoint is not None and time.monotonic() - saved > SAVE_EVERY

    if not resumed:
        record(0, lr=math.nan, train_loss=math.nan)
    for epoch in _progress(range(run.first, recipe.epochs), label):
        begin, total, drawn, batches = run.begin(epoch)
        sums, where = [], (begin, len(batches), epoch, recipe.rate(epoch), [label])
        for step in range(begin, len(batches)):
            total = total + run.gradients(batches[step], augment)
            sums.append(total)
            if run.device.type == "cpu" and not math.isfinite(total):
                break
            run.step(after_step)
            if step + 1 < len(batches) and due():
                _finite(sums, *where)
                save(epoch, step + 1, total, drawn)
        _finite(sums, *where)
        record(epoch + 1, lr=recipe.rate(epoch), train_loss=float(total) / len(batches))
        if checkpoint is not None and (epoch + 1 == recipe.epochs or due()):
            save(epoch + 1)
    return pd.DataFrame(run.history)


class _Fit:
    """What :func:`fit` moves and saves: net, optimiser, generators, history, place in an epoch."""

    def __init__(self, net, data, objective, recipe, seed):
        self.net, self.data, self.objective, self.recipe = net, data, objective, recipe
        # The generators that draw the batch order live on the CPU: the order is the same on a GPU.
        self.generator = torch.Generator().manual_seed(seed)
        self.device = data.inputs.device
        fast = self.device.type == "cuda" if recipe.fast is None else recipe.fast
        self.channels_last = fast and data.inputs.ndim == 4
        if self.channels_last:
            net.to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(net, recipe, fused=fast or None)
        self.passes = self._passes
        if fast:
            self.passes = graphs.Replayed(self._passes, self.device, net.parameters())
            _say_how(recipe, self.channels_last, self.device)
        self.seed, self.history, self.first = seed, [], 0
        self.at = {"step": 0, "total": 0.0, "drawn": None}  # within an epoch that was cut

    @cached_property
    def of(self):
        """Which training this is."""
        loss = self.objective.loss if isinstance(self.objective, _Objective) else None
        return _identity(self.recipe, self.data, self.net, self.seed, _told(loss))

    def content(self, epoch=0, step=0, total=0.0, drawn=None):
        """The checkpoint: everything that the rest of the training depends on."""
        return {
            "of": self.of,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "global": _rng_state(self.device),
            "epoch": epoch,
            "at": {"step": step, "total": float(total), "drawn": drawn},
            "history": self.history,
        }

    def restore(self, state):
        """Go back to a :meth:`content`; ValueError if it is of a longer training."""
        self.history, self.first = list(state["history"]), state["epoch"]
        self.at = {key: state["at"][key] for key in self.at}
        if self.first > self.recipe.epochs:
            raise ValueError("a longer training")
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        _set_rng_state(state["global"], self.device)

    def begin(self, epoch):
        """``(first step, loss so far, state that drew the batches, batches)`` of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(epoch)
        self.net.train()
        size, generator = len(self.data.labels), self.generator
        begin, total, drawn = self.at["step"], self.at["total"], self.at["drawn"]
        if drawn is None:
            drawn = generator.get_state()
            batches = self.recipe.batches(size, generator, self.device)
        else:  # draw the cut epoch's batches again, then go on from where it was cut
            now = generator.get_state()
            batches = self.recipe.batches(size, generator.set_state(drawn), self.device)
            generator.set_state(now)
        self.at = {"step": 0, "total": 0.0, "drawn": None}
        return begin, total, drawn, batches

    def gradients(self, index, augment):
        """Loss of the samples ``index``; leaves its gradients in the net's parameters."""
        inputs = self.data.inputs[index]
        if augment is not None:
            inputs = augment(inputs, self.generator)
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return self.passes(inputs, self.data.labels[index])

    def _passes(self, inputs, labels):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            loss = self.objective(self.net, inputs, labels)
        loss.backward()
        return loss.detach()

    def step(self, after_step):
        """One optimiser step."""
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.clip)
        self.optimizer.step()
        if after_step is not None:
            with torch.no_grad():
                after_step(self.net)


def _say_how(recipe, channels_last, device):
    """One line, once, on a GPU: how nets are trained there."""
    if graphs.possible(device):
        products = "bfloat16" if recipe.bf16 else "float32 (bf16=True: bfloat16)"
        if not recipe.bf16 and torch.backends.cudnn.allow_tf32:
            products = "TF32 in convolutions, else " + products
        layout = "channels-last, " * channels_last
        graphs.say(f"Training: {layout}{products}, fused steps, passes replayed as a CUDA graph.")


def _finite(sums, begin, steps, epoch, rates, names):
    """Raise for the first step after which the sum of the losses was NaN or infinite.

    ``sums``: one tensor per step from step ``begin`` on, one number or one per net of ``names``.
    Looked at once per epoch on a GPU: a look at every step would make it wait.
    """
    bad = (~torch.stack(sums).isfinite()).nonzero().tolist()
    if not bad:
        return
    step, net = begin + bad[0][0], bad[0][-1] if len(names) > 1 else 0
    rate = float(rates[net]) if isinstance(rates, torch.Tensor) else rates
    if epoch == step == 0:
        advice = "before any step: look for NaN or huge values in the data and initial weights"
    else:
        advice = "training diverged: take a smaller learning rate, or bound the gradient (clip)"
    raise checks.InputError(
        f"{names[net]}: the loss is NaN or infinite at epoch {epoch + 1}, step {step + 1} of "
        f"{steps}, learning rate {rate:g}; {advice}"
    )


@dataclass(frozen=True)
class Cell:
    """One net of a grid: its loss (of :mod:`nclib.losses`), seed and number of epochs."""

    loss: losses._Loss
    seed: int
    epochs: int
    tags: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A trained cell: the net on its device, and its history (a DataFrame)."""

    cell: Cell
    net: torch.nn.Module
    history: pd.DataFrame


def grid(build, cells, data, recipe, *, together=True, measure_at=(), label="grid", **options):
    """Train a net per cell; cells may differ in loss, seed and number of epochs.

    ``build() -> net`` makes a net of the common shape; cell ``c`` starts from weights drawn with
    ``c.seed`` and sees the batches of ``c.seed``, so the losses of one seed share both.  The rate
    follows ``recipe`` over each cell's own number of epochs.

    With ``together=True`` all nets advance in one program: parameters are stacked, the forward
    pass is ``torch.func.vmap``-ed, and cells leave the stack when they are done.  With ``False``
    they are trained one after the other by :func:`fit` (faster for convolutions on a CPU, and the
    one that saves checkpoints within epochs).  Both give the same nets up to rounding.

    ``measure_at``: epochs, default the last one only.  ``options``: ``measure``, here ``(net, cell,
    epoch) -> dict``, ``checkpoint`` and ``augment``, as :func:`fit` has them.
    Returns a list of :class:`Trained` in the order of ``cells``.
    """
    checks.require(cells, "cells is empty: give at least one")
    start = [nets.seeded(cell.seed, build).to(data.inputs.device) for cell in cells]
    options = {"measure": None, "checkpoint": None, "augment": None} | options
    train = _together if together else _apart
    return train(start, cells, data, recipe, set(measure_at), label, **options)


def history(trained):
    """The histories of :class:`Trained` cells as one table, with their ``seed`` and ``tags``."""
    tables = [one.history.assign(seed=one.cell.seed, **one.cell.tags) for one in trained]
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class _Objective:
    """A cell's loss as an objective of :func:`fit`."""

    loss: losses._Loss

    def __call__(self, net, inputs, labels):
        return self.loss(net(inputs), labels)


def _apart(start, cells, data, recipe, measure_at, label, *, measure, checkpoint, augment):
    trained = []
    for i, (cell, net) in enumerate(zip(cells, start, strict=True)):
        history = fit(
            net,
            data,
            _Objective(cell.loss),
            replace(recipe, epochs=cell.epochs),
            seed=cell.seed,
            measure=measure and (lambda net, epoch, cell=cell: measure(net, cell, epoch)),
            measure_at=measure_at | {cell.epochs},
            checkpoint=checkpoint and Path(checkpoint).with_suffix(f".{i}.pt"),
            augment=augment,
            label=f"{label} {i + 1}/{len(cells)}",
        )
        trained.append(Trained(cell, net, history))
    return trained


def _together(start, cells, data, recipe, measure_at, label, *, measure, checkpoint, augment):
    if recipe.optimizer != "sgd":
        raise checks.InputError("a stacked grid trains with SGD; use together=False")
    stack = _Stack(start, cells, data, recipe)
    resumed = _resume(checkpoint, stack.restore, stack.content)

    def record(position, epoch, **values):
        cell = cells[stack.alive[position]]
        if epoch in measure_at or epoch == cell.epochs:
            found = {} if measure is None else measure(stack.net_of(position), cell, epoch)
            row = {"epoch": epoch} | values | {k: float(v) for k, v in found.items()}
            stack.histories[stack.alive[position]].append(row)

    if not resumed:
        for position in range(len(stack.alive)):
            record(position, 0, lr=math.nan, train_loss=math.nan)
        stack.retire(0)
    saved = time.monotonic()
    for epoch in _progress(range(stack.first, max((c.epochs for c in cells), default=0)), label):
        rates, means = stack.train(epoch, augment, label)
        for position, (rate, mean) in enumerate(zip(rates, means, strict=True)):
            record(position, epoch + 1, lr=rate, train_loss=mean)
        stack.retire(epoch + 1)
        if checkpoint is not None and (not stack.alive or time.monotonic() - saved > SAVE_EVERY):
            saved = time.monotonic()
            _save(checkpoint, stack.content(epoch + 1))
        if not stack.alive:
            break
    results = []
    for cell, net, values, history in zip(cells, start, stack.done, stack.histories, strict=True):
        if values is not None:
            net.load_state_dict(values)
        results.append(Trained(cell, net, pd.DataFrame(history)))
    return results


class _Stack:
    """The nets of a grid that are still trained, as one stack of parameters; what is saved of it.

    ``alive``: their cells, ``done``: the final state of each cell that has left the stack.
    """

    def __init__(self, start, cells, data, recipe):
        self.cells, self.data, self.recipe = cells, data, recipe
        self.device, self.skeleton = data.inputs.device, start[0]
        seeds = sorted({cell.seed for cell in cells})
        self.generators = {seed: torch.Generator().manual_seed(seed) for seed in seeds}
        self.histories, self.done, self.first = [[] for _ in cells], [None] * len(cells), 0
        kinds = list(dict.fromkeys(cell.loss for cell in cells))
        # In the order of the losses: the logits of one loss are then a slice of the stack.
        self.alive = sorted(range(len(cells)), key=lambda i: kinds.index(cells[i].loss))
        # One row of parameters per cell: a step is a few operations on the whole stack.
        params, self.buffers = torch.func.stack_module_state([start[i] for i in self.alive])
        fixed = [name for name, p in params.items() if not p.requires_grad]
        self.buffers |= {name: params.pop(name) for name in fixed}
        self.names = _names(self.skeleton)
        self.shapes = {name: p.shape[1:] for name, p in params.items()}
        self.params = torch.cat([p.detach().flatten(1) for p in params.values()], 1)
        self.velocity = torch.zeros_like(self.params)
        self.prepare()

    def prepare(self):
        """After a change of the living cells: the step of all of them, a CUDA graph on a GPU."""
        living, seeds = [self.cells[i] for i in self.alive], list(self.generators)
        own = torch.tensor([seeds.index(cell.seed) for cell in living], device=self.device)
        stacks = (self.params, self.shapes, self.buffers, self.velocity)

        def step(*tensors):
            return _stacked_step(self.skeleton, stacks, living, own, self.recipe, *tensors)

        self.step = graphs.Replayed(step, self.device)

    @cached_property
    def of(self):
        """Which grid this is; its cells have numbers of epochs of their own."""
        cells = [(_told(cell.loss), cell.seed, cell.epochs) for cell in self.cells]
        return _identity(replace(self.recipe, epochs=0), self.data, self.skeleton, cells)

    def content(self, epoch=0):
        """The checkpoint: everything that the rest of the training depends on."""
        return {
            "of": self.of,
            "alive": self.alive,
            "done": self.done,
            "epoch": epoch,
            "histories": self.histories,
            "params": self.params,
            "buffers": self.buffers,
            "velocity": self.velocity,
            "generators": {str(s): g.get_state() for s, g in self.generators.items()},
        }

    def restore(self, state):
        """Go back to a :meth:`content`."""
        self.alive, self.done, self.first = state["alive"], state["done"], state["epoch"]
        self.histories = state["histories"]
        self.params, self.velocity = (state[n].to(self.device) for n in ("params", "velocity"))
        self.buffers = {name: stack.to(self.device) for name, stack in state["buffers"].items()}
        for seed, generator in self.generators.items():
            generator.set_state(state["generators"][str(seed)])
        self.prepare()

    def values_of(self, position):
        """State of one net, copied: measuring must not touch the stack."""
        stacks = _unpack(self.params, self.shapes) | self.buffers
        return {name: stacks[first][position].clone() for name, first in self.names.items()}

    def net_of(self, position):
        self.skeleton.load_state_dict(self.values_of(position))
        return self.skeleton

    def train(self, epoch, augment, label):
        """One epoch of all living nets; returns their rates and mean losses."""
        self.skeleton.train()
        living = [self.cells[i] for i in self.alive]
        rates = torch.tensor(
            [self.recipe.rate(epoch, cell.epochs) for cell in living], device=self.device
        )
        size, draws = len(self.data.labels), self.generators.items()
        loader = {s: self.recipe.batches(size, g, self.device) for s, g in draws}
        total, sums = torch.zeros(len(living), device=self.device), []
        steps = len(next(iter(loader.values())))
        for step in range(steps):
            inputs, labels = [], []
            for seed, batches in loader.items():
                x = self.data.inputs[batches[step]]
                inputs.append(x if augment is None else augment(x, self.generators[seed]))
                labels.append(self.data.labels[batches[step]])
            total = total + self.step(torch.stack(inputs), torch.stack(labels), rates)
            sums.append(total)
            if self.device.type == "cpu" and not total.isfinite().all():
                break
        _finite(sums, 0, steps, epoch, rates, [_name(cell, label) for cell in living])
        return rates.tolist(), [float(value) / steps for value in total]

    def retire(self, epochs):
        """Nets that have trained for ``epochs`` epochs, their number, leave the stack."""
        left = [self.cells[i].epochs for i in self.alive]
        for position, (i, length) in enumerate(zip(self.alive, left, strict=True)):
            if length == epochs:
                self.done[i] = self.values_of(position)
        stay = [position for position, length in enumerate(left) if length > epochs]
        if len(stay) < len(left):
            self.alive = [self.alive[position] for position in stay]
            self.params, self.velocity = self.params[stay], self.velocity[stay]
            self.buffers = {name: stack[stay] for name, stack in self.buffers.items()}
            self.prepare()


def _name(cell, label):
    tags = "".join(f", {key} {value}" for key, value in cell.tags.items())
    return f"{label}, {cell.loss}, seed {cell.seed}{tags}"


def _names(net):
    """Every name of a parameter or buffer -> the first name of the same tensor (tied ones)."""
    named = [*net.named_parameters(remove_duplicate=False)]
    named += net.named_buffers(remove_duplicate=False)
    first = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _unpack(params, shapes):
    """Views of stacked parameters ``(C, P)`` as name -> ``(C, *shape)``."""
    parts = params.split([shape.numel() for shape in shapes.values()], 1)
    named = zip(shapes.items(), parts, strict=True)
    return {name: part.reshape(len(params), *shape) for (name, shape), part in named}


def _stacked_step(skeleton, stacks, cells, own, recipe, inputs, labels, rates):
    """One SGD step of all living cells; updates the stacks, returns the losses ``(C,)``.

    ``inputs``, ``labels``: a batch per seed; ``own``: which of them each cell takes.
    """
    params, shapes, buffers, velocity = stacks
    inputs, labels = inputs[own], labels[own]
    leaf = params.requires_grad_()

    def forward(p, b, x):
        return torch.func.functional_call(skeleton, (p, b), (x,))

    with torch.autocast(rates.device.type, torch.bfloat16, enabled=recipe.bf16):
        stacked = torch.vmap(forward, randomness="different")
        logits = stacked(_unpack(leaf, shapes), buffers, inputs)
    losses = _cell_losses(cells, logits, labels)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    params.requires_grad_(False)
    if recipe.clip is not None:
        norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        gradient *= (recipe.clip / (norms + 1e-6)).clamp(max=1)
    gradient.add_(params, alpha=recipe.weight_decay)
    step = velocity.mul_(recipe.momentum).add_(gradient)
    if recipe.nesterov:
        step = gradient.add_(step, alpha=recipe.momentum)
    params.addcmul_(rates[:, None], step, value=-1)
    return losses.detach()


def _cell_losses(cells, logits, labels):
    """Mean loss of each cell ``(C,)``; neighbours with the same loss are evaluated together."""
    runs = [(loss, len(list(same))) for loss, same in groupby(cell.loss for cell in cells)]
    sizes = [count for _, count in runs]
    losses = [
        loss.per_sample(z.flatten(0, 1), y.flatten()).view(len(z), -1).mean(1)
        for (loss, _), z, y in zip(runs, logits.split(sizes), labels.split(sizes), strict=True)
    ]
    return torch.cat(losses)


def _optimizer(net, recipe, *, fused):
    parameters = [p for p in net.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)


def _rng_state(device):
    """torch's global generators, which dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_rng_state(state, device):
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


# Checkpoints ------------------------------------------------------------------------------------

SAVE_EVERY = 10.0  # seconds between checkpoints of one training, within epochs too


def _save(path, state):
    # In memory first: on a full disk torch.save may raise errors that do not say so.
    content = io.BytesIO()
    torch.save(state, content)
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content.getbuffer())


def _identity(recipe, data, net, *further):
    """What decides a training and can be compared, as text.

    Not ``fast``, which changes rounding only, nor the number of epochs where no rate depends on it:
    a longer training goes on from where a shorter one ended.
    """
    terms = asdict(recipe)
    del terms["fast"]
    if recipe.schedule == "constant":
        del terms["epochs"]
    tensors = [*net.named_parameters(), *net.named_buffers()]
    kinds = [f"{name} {x.dtype} {tuple(x.shape)} {x.requires_grad}" for name, x in tensors]
    terms = [terms, _names(net), kinds, *further, _digest(data.inputs), _digest(data.labels)]
    return json.dumps(terms, default=lambda value: value.tolist())  # of NumPy and PyTorch


def _told(loss):
    """A loss and its parameters as text; the text of a bare function is another in each process."""
    return repr(loss) if is_dataclass(loss) else None


def _digest(tensor):
    """Type, shape and SHA-256 of a tensor, the same on every device."""
    numbers = tensor.detach().contiguous().flatten().view(torch.uint8).numpy(force=True)
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(numbers).hexdigest()[:16]}"


def _resume(path, restore, content):
    """Whether a checkpoint was there and ``restore`` took it.

    If the file is damaged, or what it holds is not what ``content`` makes, it is moved aside with a
    warning, and everything is as before.
    """
    if path is None or not Path(path).exists():
        return False
    fresh = copy.deepcopy(content())
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(state, dict) or state.keys() != fresh.keys():
            raise ValueError("something else")
        if state["of"] != fresh["of"]:
            raise ValueError("another recipe, seed, loss or data")
        restore(state)
        return True
    except Exception as error:
        restore(fresh)
        aside = Path(path).with_suffix(".corrupt")
        os.replace(path, aside)
        reason = type(error).__name__
        warnings.warn(
            f"checkpoint {Path(path).name} is damaged or of another training ({reason}); moved "
            f"aside as {aside.name}, training starts from the beginning",
            RuntimeWarning,
            stacklevel=3,
        )
        return False


def _progress(epochs, label):
    return tqdm(epochs, desc=label, unit="epoch", leave=False, disable=None)
