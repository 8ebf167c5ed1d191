"""Neural collapse during one's own training loop: three lines, any model, any framework."""

import contextlib
import random
import sys
from pathlib import Path

from nclib import checks

_KEYS = ("epoch", "data", "layer")
_PANELS = {  # figure of Tracker.plot: title -> columns, the first one that has values is drawn
    "NC1: within over between classes": ("nc1",),
    "NC2: distance to a simplex": ("nc2", "nc2_means"),
    "NC3: classifier against means": ("nc3",),
    "NC4: not the nearest mean": ("ncc_disagreement",),
}


class Tracker:
    """NC1-NC4 per epoch, of one or several data sets (each about its own class means) and layers.

    >>> tracker = nclib.Tracker(model, {"train": loader, "test": other}, every=5)  # doctest: +SKIP
    >>> for epoch in range(100):  # doctest: +SKIP
    ...     train_one_epoch(model)
    ...     tracker.step(epoch)
    >>> tracker.plot()  # doctest: +SKIP

    Args:
        model: any ``nn.Module``.
        loader: a data loader, or a dict ``{name: loader}``.
        every: measure every so many epochs; ``measure`` does so at once, e.g. after the last one.
        layers: names of layers (``"fc"``: what enters it, ``"layer4:out"``: what leaves it);
            default: what enters the last linear layer, which is found and verified.
        num_classes: K; default: the outputs of the last linear layer.
        csv: file that holds the table after every measurement; a rerun reads it and goes on.
        options: of :class:`nclib.deep.collect.Taps`, such as ``unpack`` and ``maps``.

    Measuring leaves no trace in the training: modes, gradients, batch norm's averages and the
    random numbers of torch, numpy, ``random`` and the loaders' samplers are as before.  What is
    wrong raises :class:`~nclib.checks.InputError`.
    """

    def __init__(
        self, model, loader, every=1, layers=None, *, num_classes=None, csv=None, **options
    ):
        from nclib.deep import collect

        self.loaders = dict(loader) if isinstance(loader, dict) else {"train": loader}
        checks.require(self.loaders, "loader is an empty dict: name at least one data loader")
        self.every, self.num_classes = checks.integer("every", every), num_classes
        self.csv = None if csv is None else Path(csv)
        self._taps = collect.Taps(model, layers, **options)
        self._rows = self._read() if self.csv and self.csv.exists() else []

    def _read(self):
        import pandas as pd

        try:
            names = {"data": str, "layer": str}
            rows = pd.read_csv(self.csv, dtype=names, keep_default_na=False, na_values=[""])
        except (ValueError, OSError) as error:
            raise checks.InputError(f"{self.csv} cannot be read as a table: {error}") from None
        if not set(_KEYS) <= set(rows.columns) or rows["epoch"].dtype.kind not in "iuf":
            raise checks.InputError(f"{self.csv} is no table of a tracker: choose another csv=")
        return rows.to_dict("records")

    @property
    def table(self):
        """DataFrame: one row per epoch, data set and layer; one column per metric."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=None if self._rows else _KEYS)

    def step(self, epoch):
        """Measure if ``epoch`` is a multiple of ``every``; returns the new rows, or ``None``."""
        return None if checks.integer("epoch", epoch, 0) % self.every else self.measure(epoch)

    def measure(self, epoch):
        """Measure now.  Rows of this epoch and of later ones are replaced: a training that went
        back to a checkpoint, or begins anew, writes its own history.
        """
        from nclib import files

        checks.integer("epoch", epoch, 0)
        rows = []
        with _same_random_numbers(self.loaders.values()):
            for data, loader in self.loaders.items():
                found = self._taps.measure(loader, self.num_classes)
                rows += [{"epoch": epoch, "data": data, "layer": n} | m for n, m in found.items()]
        self._rows = [row for row in self._rows if row["epoch"] < epoch] + rows
        table = self.table
        if self.csv:
            files.write_csv(self.csv, table)
        return table.tail(len(rows))

    def plot(self):
        """Figure of NC1-NC4 over epochs, a colour for each data set, a line style for each layer.

        Always the same figure, drawn anew.  Live in a loop: ``plt.pause(0.1)`` after it in a
        script, ``clear_output(wait=True); display(tracker.plot())`` in a notebook.
        """
        import matplotlib.pyplot as plt
        import seaborn as sns

        table = self.table
        columns = {
            title: next((c for c in names if c in table and table[c].notna().any()), None)
            for title, names in _PANELS.items()
        }
        columns = {title: column for title, column in columns.items() if column}
        checks.require(columns, "nothing measured yet: call step(epoch) first")
        figure = plt.figure(f"nclib.Tracker {id(self):x}")  # always the same one: a live plot
        figure.clear()
        figure.set_layout_engine("constrained")
        figure.set_size_inches(3 * len(columns), 2.8)
        axes = figure.subplots(1, len(columns), squeeze=False)
        for ax, (title, column) in zip(axes[0], columns.items(), strict=True):
            sns.lineplot(
                table, x="epoch", y=column, hue="data", style="layer", markers=True, ax=ax,
                errorbar=None, legend=ax is axes[0, -1],
            )  # fmt: skip
            ax.set_title(title, loc="left", fontsize="medium")
            ax.xaxis.get_major_locator().set_params(integer=True)
            if column == "nc1" and (table[column].dropna() > 0).all():
                ax.set_yscale("log")
        sns.move_legend(axes[0, -1], "upper left", bbox_to_anchor=(1, 1), frameon=False)
        return figure

    def lightning(self):
        """A callback for Lightning's ``Trainer``: ``step`` at the end of every training epoch."""
        names = ("lightning.pytorch", "pytorch_lightning")
        module = next((sys.modules[name] for name in names if name in sys.modules), None)
        if module is None:
            raise checks.InputError(f"import {names[0]} (or {names[1]}) first")

        class Measure(module.Callback):
            def on_train_epoch_end(_, trainer, net):
                if trainer.is_global_zero:
                    self.step(trainer.current_epoch)

        return Measure()

    def transformers(self):
        """A callback for the Hugging Face ``Trainer``: ``step`` at the end of every epoch."""
        from transformers import TrainerCallback

        class Measure(TrainerCallback):
            def on_epoch_end(_, args, state, control, **more):
                if state.is_world_process_zero:
                    self.step(round(state.epoch))

        return Measure()


@contextlib.contextmanager
def _same_random_numbers(loaders):
    """Afterwards the generators of torch, numpy, ``random``, loaders and samplers are as before."""
    import numpy as np
    import torch

    parts = [
        part
        for loader in loaders
        for batches in (loader, getattr(loader, "batch_sampler", None))
        for part in (batches, getattr(batches, "sampler", None))
    ]
    own = [part.generator for part in parts if hasattr(part, "generator")]
    own = [generator for generator in own if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in own]
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state)
