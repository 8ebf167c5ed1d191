"""Shared fixtures: a tiny notebook whose behaviour its parameters decide, and the command line."""

import json
import os
import re
import subprocess
import sys
import time

# Before torch is imported anywhere: several threads on busy cores are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import matplotlib

matplotlib.use("agg")

import nbformat
import pytest
from click.testing import CliRunner
from PIL import Image

from nclib import files, paths
from nclib.cli import main

PARAMETERS = """profile: str = "quick"  # name of the profile
seed: int = 0  # seed [>= 0]
K: int = 3  # classes [>= 2]
mode: str = "ok"  # ok, raise, exit, kill, data, fails or forget
label: str = ""  # any text
epochs: int = 4  # epochs of the training
pause: float = 0.0  # seconds per epoch"""

SETUP = """import os, signal, sys, time
import pandas as pd
import torch
from nclib import losses, notebook
from nclib.deep import data, nets, train
from nclib.plots import style
run = notebook.start("90_tiny", globals())
train.SAVE_EVERY = 0.0"""

TRAIN = """generator = torch.Generator().manual_seed(seed)
noise = data.Data("noise", torch.randn(100, 8, generator=generator), torch.arange(100) % 10, 10)
data.note("noise", data.checksum(noise))
net = nets.seeded(seed, nets.mlp, [8, 8, 4], 10)
recipe = train.Recipe(epochs=epochs, lr=0.05, batch_size=25)
def objective(net, x, y):
    # Through the environment a run takes its time under the name that it has without.
    time.sleep(float(os.environ.get("TINY_PAUSE", pause)) / 4)
    return losses.get("ce")(net(x), y)
path = run.checkpoint("net", epochs=epochs, seed=seed)
history = train.fit(net, noise, objective, recipe, checkpoint=path, measure=lambda net, e: {})"""

ACT = """if mode == "raise": raise ValueError("asked to fail")
if mode == "exit": sys.exit(0)
if mode == "data": data.load("fashion_mnist")
if mode == "kill": os.kill(os.getpid(), signal.SIGKILL)
"done" """

FIGURE = """figure, axes = style.grid(1, 2)
axes[0].plot(history["epoch"], history["train_loss"])
run.figure(figure, "01_loss", history)"""

CLAIMS = """loss = float(history["train_loss"].iloc[-1])
run.claim("A1", (loss, 0.0 if mode == "fails" else 9.0))
if mode != "forget": run.claim("A2", (K, K))
run.finish()"""

CATALOGUE = """A1: {statement: "a bound", source: test, check: {below: given}}
A2:
  statement: "an <i>equality</i>"
  source: test
  check: {equal: given, note: '<b>&''"{label}'}
A3: {statement: "a large run", source: test, needs: paper}
"""

SWEEP = ("sweep", "90", "-p", "K=2,3")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Skip a file, by the name of the package, that needs one of the extra `test` not installed."""
    report = yield
    missing = re.search(r"No module named '(hypothesis)'", str(report.longrepr))
    if report.failed and missing:
        report.outcome = "skipped"
        report.longrepr = str(collector.path), 0, f"Skipped: needs {missing[1]} (extra `test`)"
    return report


def called(*words):
    """``nclib`` with these words, in this process: exit code and output; no traceback."""
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def code(book):
    """The sources of the code cells of a notebook."""
    return files.code(paths.NOTEBOOKS / f"{book}.ipynb")


def contents(folder):
    """Bytes of all results in a folder that must not depend on when and where it ran."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


def eventually(read, seconds=300):
    """What ``read`` returns as soon as it does not fail."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return read()
        except (OSError, ValueError, LookupError, StopIteration):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Cluster:
    """``dask scheduler`` and workers of one thread each, as a user starts them."""

    def __init__(self, folder, environment, workers=2):
        self.folder, self.environment = folder, environment
        self.file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--port", "0", "--host", "127.0.0.1")
        self.workers = [self.worker() for _ in range(workers)]
        self.address = eventually(lambda: json.loads(self.file.read_text())["address"])

    def worker(self):
        """Start another worker; no nanny, so that a dead one stays dead."""
        return self._start("worker", "--no-nanny", "--nthreads", "1", "--host", "127.0.0.1")

    def _start(self, *arguments):
        options = ("--scheduler-file", str(self.file), "--no-dashboard")
        with open(self.folder / "dask.log", "a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, *options],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )

    def busy(self, out):
        """The worker whose job has saved a checkpoint below ``out``."""

        def read():
            lock = next(path.parents[1] / ".lock" for path in out.glob("runs/*/*/checkpoints/*"))
            pid = int(lock.read_text().split()[1])
            return {worker.pid: worker for worker in self.workers}[pid]

        return eventually(read)

    def close(self):
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait(60)


class Tiny:
    """A folder with one notebook, ``90_tiny``, and the command line that runs it."""

    def __init__(self, folder):
        self.books, self.out = folder / "notebooks", folder / "out"
        self.processes = []
        self.environment = os.environ | {"NCLIB_NOTEBOOKS": str(self.books)}
        (self.books / "claims").mkdir(parents=True)
        (self.books / "profiles").mkdir()
        for profile in ("quick", "standard"):
            (self.books / "profiles" / f"{profile}.yaml").write_text("90_tiny: {K: 4}\n")
        (self.books / "claims" / "90_tiny.yaml").write_text(CATALOGUE)
        content = nbformat.v4.new_notebook()
        content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        content.metadata["language_info"] = {"name": "python"}
        content.cells = [nbformat.v4.new_markdown_cell("# A tiny notebook")]
        for i, source in enumerate((PARAMETERS, SETUP, TRAIN, ACT, FIGURE, CLAIMS)):
            cell = nbformat.v4.new_code_cell(source)
            cell["id"] = f"cell-{i}"
            cell.metadata["tags"] = ["parameters"] if i == 0 else []
            content.cells.append(cell)
        nbformat.write(content, self.books / "90_tiny.ipynb")

    def __call__(self, *arguments, background=False, timeout=240, **options):
        """Call ``nclib``; ``background`` returns the process, else the finished one."""
        command = [sys.executable, "-m", "nclib", *map(str, arguments)]
        options = {"env": self.environment, "text": True} | options
        if background:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            self.processes.append(subprocess.Popen(command, **pipes, **options))
            return self.processes[-1]
        return subprocess.run(command, capture_output=True, timeout=timeout, **options)

    def fake(self, name, parameters, verdicts, *, out=None, note=""):
        """Write the results of a run that never was: two pictures and claims A1, A2, …."""
        folder = (out or self.out) / "figures" / name / "90_tiny"
        folder.mkdir(parents=True)
        for i, picture in enumerate(("01_first", "02_second")):
            Image.new("RGB", (300, 200), (40 * i, 90, 200)).save(folder / f"{picture}.png")
        common = {"source": "test", "expected": "<= 1", "tolerance": None, "note": note}
        measured = (2e-5, 3e-4, 0.5, 10.0)
        found = [
            {"id": f"90.A{i + 1}", "statement": f"statement {i + 1}", "measured": measured[i]}
            | common
            | {"verdict": verdict, "row": f"90.A{i + 1}", "relation": "below", "bound": 1.0}
            | {"seen": "02_second" if i == 0 else "../../../90_tiny/01_first"}
            for i, verdict in enumerate(verdicts)
        ]
        files.write_json(folder / "claims.json", found)
        known = {"profile": "quick", "seed": 0, "K": 4, "mode": "ok", "label": "", "epochs": 4}
        manifest = {
            "parameters": known | {"pause": 0.0} | parameters,
            "device": "cpu",
            "threads": 1,
            "seconds": 1.5,
            "revision": "abc",
            "versions": {"torch": "2"},
            "data": {},
        }
        files.write_json(folder / "manifest.json", manifest)

    def here(self, monkeypatch):
        """Make this folder of notebooks that of the testing process, too."""
        monkeypatch.setattr(paths, "NOTEBOOKS", self.books)
        monkeypatch.setattr(paths, "PROFILES", self.books / "profiles")
        monkeypatch.setattr(paths, "CLAIMS", self.books / "claims")
        return self

    def close(self):
        """End what a failed test left running."""
        while self.processes:
            process = self.processes.pop()
            process.kill()
            process.wait(60)
            process.stdout.close()

    @staticmethod
    def results(out):
        """Bytes of everything that must not depend on when, where and how often it ran."""
        files = [*out.glob("figures/*/*/*"), *out.glob("runs/sweep-*/*")]
        visible = (p for p in files if not p.name.startswith(".") and p.name != "manifest.json")
        return {str(p.relative_to(out)): p.read_bytes() for p in visible}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A :class:`Tiny` of its own; call it as ``tiny("run", "--out", tiny.out)``."""
    found = Tiny(tmp_path).here(monkeypatch)
    yield found
    found.close()


@pytest.fixture(scope="session")
def books(tmp_path_factory):
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shared_tiny(books):
    """A :class:`Tiny` that all tests share: none may change its notebook or its ``out``."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield books.here(monkeypatch)
        books.close()


@pytest.fixture(scope="session")
def undisturbed_once(books, tmp_path_factory):
    """``undisturbed_once(name, *command)``: its output folder; the workers of xdist share it.

    They need no lock: of two drivers in one folder the second takes the results of the first.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def call(name, *command):
        done = books(*command, "--jobs", "2", "--out", folder / name)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder / name

    return call


@pytest.fixture(scope="session")
def undisturbed(undisturbed_once):
    """The folder of ``nclib run 90`` that nothing disturbed; only to be read."""
    return undisturbed_once("undisturbed-run", "run", "90")


@pytest.fixture(scope="session")
def undisturbed_sweep(undisturbed_once):
    """The same of :data:`SWEEP`."""
    return undisturbed_once("undisturbed-sweep", *SWEEP)
