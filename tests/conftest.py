"""Shared fixtures: a tiny notebook whose behaviour its parameters decide, and the command line."""

import os
import subprocess
import sys

# Before torch is imported anywhere: several threads on busy cores are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import matplotlib

matplotlib.use("agg")

import nbformat
import pytest

from nclib import paths

PARAMETERS = """profile: str = "quick"  # name of the profile
seed: int = 0  # seed
K: int = 3  # classes
mode: str = "ok"  # ok, raise, exit, kill, fails or forget
epochs: int = 4  # epochs of the training
pause: float = 0.0  # seconds per epoch"""

SETUP = """import os, signal, sys, time
import pandas as pd
import torch
from nclib import losses, notebook
from nclib.deep import data, nets, train
from nclib.plots import style
run = notebook.start("90_tiny", globals(), at_least={"K": 2})
train.SAVE_EVERY = 0.0"""

TRAIN = """digits, _ = data.load("digits", train_per_class=10, seed=seed)
digits = digits.flat()
net = nets.seeded(seed, nets.mlp, [64, 8, 4], 10)
recipe = train.Recipe(epochs=epochs, lr=0.05, batch_size=25)
def objective(net, x, y):
    time.sleep(pause / 4)
    return losses.get("ce")(net(x), y)
path = run.checkpoint("net", epochs=epochs, seed=seed)
history = train.fit(net, digits, objective, recipe, checkpoint=path, measure=lambda net, e: {})"""

ACT = """if mode == "raise": raise ValueError("asked to fail")
if mode == "exit": sys.exit(0)
if mode == "kill": os.kill(os.getpid(), signal.SIGKILL)
"done" """

FIGURE = """figure, axes = style.grid(1, 2)
axes[0].plot(history["epoch"], history["train_loss"])
run.figure(figure, "01_loss", history)"""

CLAIMS = """run.ledger.below("A1", 2.0 if mode == "fails" else 0.0, 1.0)
if mode != "forget": run.ledger.equal("A2", K, K, note="<b>&'\\"")
run.finish()"""

CATALOGUE = """A1: {statement: "a bound", source: test}
A2: {statement: "an <i>equality</i>", source: test}
A3: {statement: "a large run", source: test, needs: paper}
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder with one notebook, ``90_tiny``; returns a function that calls ``nclib`` there."""
    books = tmp_path / "notebooks"
    (books / "claims").mkdir(parents=True)
    (books / "profiles").mkdir()
    for profile in ("quick", "standard"):
        (books / "profiles" / f"{profile}.yaml").write_text("90_tiny: {K: 4}\n")
    (books / "claims" / "90_tiny.yaml").write_text(CATALOGUE)
    content = nbformat.v4.new_notebook()
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    content.metadata["language_info"] = {"name": "python"}
    content.cells = [nbformat.v4.new_markdown_cell("# A tiny notebook")]
    for i, source in enumerate((PARAMETERS, SETUP, TRAIN, ACT, FIGURE, CLAIMS)):
        cell = nbformat.v4.new_code_cell(source)
        cell["id"] = f"cell-{i}"
        cell.metadata["tags"] = ["parameters"] if i == 0 else []
        content.cells.append(cell)
    nbformat.write(content, books / "90_tiny.ipynb")
    environment = os.environ | {"NCLIB_NOTEBOOKS": str(books)}

    def call(*arguments, background=False, timeout=240):
        command = [sys.executable, "-m", "nclib.cli", *map(str, arguments)]
        if background:
            return subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )

    call.out = tmp_path / "out"
    call.books = books
    monkeypatch.setattr(paths, "NOTEBOOKS", books)
    monkeypatch.setattr(paths, "PROFILES", books / "profiles")
    monkeypatch.setattr(paths, "CLAIMS", books / "claims")
    return call
