"""What a notebook needs from its first cell to its last: parameters, outputs, ledger.

The first code cell after the parameters is::

    from nclib import notebook
    run = notebook.start("01_multi_loss_equivalence", globals())

It refuses wrong parameters before anything is computed.  ``run`` then knows the device, where
figures and checkpoints go, and holds the claim ledger.  The last cell calls ``run.finish()``, whose
record is how a batch run knows that the notebook came to its end.
"""

import ast
import hashlib
import json
import os
import platform
import random
import subprocess
from functools import cache
from pathlib import Path

from nclib import checks, claims, files, parameters, paths, reproduction

# Set by the batch runner; without them a notebook writes below runs/interactive (git-ignored).
FOLDER, FIGURES, THREADS = "NCLIB_RUN_FOLDER", "NCLIB_RUN_FIGURES", "NCLIB_THREADS"
# Set under nbval: a cell fails if its table, the last cell if a verdict is not the stored one.
REPRODUCE = "NCLIB_REPRODUCE"


def start(name, namespace):
    """Check the parameters in ``namespace`` (the notebook's ``globals()``) and begin the run.

    ``name``: the notebook's file name without extension; what its parameters may be is declared
    beside them, see :mod:`nclib.parameters`.  Raises :class:`~nclib.checks.InputError`, one line,
    for an unknown parameter and for a value that the declaration excludes.  Returns a :class:`Run`.
    """
    known = parameters.declared(name)
    _check_unknown(namespace, known)
    missing = known.keys() - namespace.keys()
    if missing:
        raise checks.InputError(
            f"parameter {', '.join(sorted(missing))} has no value: run the first cell of {name}"
        )
    values = {key: namespace[key] for key in known}
    parameters.check(values, known)
    return Run(name, values)


def _check_unknown(namespace, known):
    """papermill only warns about a misspelt parameter; its injected cell starts `# Parameters`."""
    for source in namespace.get("In", []):
        if not source.startswith("# Parameters"):
            continue
        for statement in ast.parse(source).body:
            for target in getattr(statement, "targets", []):
                if isinstance(target, ast.Name) and target.id not in known:
                    raise parameters.unknown(target.id, known)


class Run:
    """One execution of a notebook: parameters, device, output folders and claim ledger."""

    def __init__(self, name, values):
        import torch

        from nclib.plots import style

        self.name, self.parameters = name, values
        default = paths.runs() / "interactive" / name
        self.folder = Path(os.environ.get(FOLDER, default))
        self.figures = Path(os.environ.get(FIGURES, default / "figures"))
        self.threads = int(os.environ.get(THREADS, "1"))
        torch.set_num_threads(self.threads)
        self.device = device(values.get("device", "cpu"))
        seed = values.get("seed")
        if seed is not None:  # for libraries that offer no generator argument
            random.seed(seed)
            torch.manual_seed(seed)
        by_hand = not {FOLDER, REPRODUCE} & os.environ.keys()
        self.ledger = claims.Ledger(name, again=by_hand)
        self.verdict = self.ledger.verdict
        self._cell, self._found = "", []  # source of the cell that runs, claims made in it
        if shell := _shell():
            self._cell = shell.user_ns["In"][-1]
            shell.events.register("pre_run_cell", self._begin)
        self.tables = {}  # name -> columns that vary
        style.use()

    def title(self, row, finding, otherwise):
        """Title of a figure: the ``finding`` where ``row`` holds or has its counterexample, else
        what is plotted."""
        return finding if self.verdict(row) in ("holds", "counterexample") else otherwise

    def figure(self, figure, name, data=None, *, varies=()):
        """Save ``figure`` as ``name.png`` and ``name.pdf``, ``data`` as ``name.csv``; show it.

        ``data`` is the tidy DataFrame the figure was drawn from; the picture carries its checksum.
        ``varies``: as in :meth:`table`.
        """
        import matplotlib.pyplot as plt

        from nclib.plots import style

        stem = files.inside(self.figures, name)
        if data is not None:
            self.table(data, name, varies=varies)
        digest = files.digest(f"{stem}.csv") if data is not None else ""
        style.save(figure, stem, table=digest)
        _show(f"{stem}.png", name, width=round(80 * figure.get_figwidth()))
        plt.close(figure)

    def claim(self, row, *single, text=None, **measured):
        """Check numbers against a row of the catalogue: :meth:`nclib.claims.Ledger.claim`.

        Notes may name parameters besides what is in ``text``.  As the last expression of a cell it
        shows what all calls in that cell found.
        """
        text = self.parameters | (text or {})
        found = self.ledger.claim(row, *single, text=text, **measured)
        before = tuple(self._found)
        if _shell():
            self._found += found.claims
        return claims.Checked(found.claims, before)

    def _begin(self, cell):
        """Called before every cell; its number would not do, nbval's cells have none."""
        self._cell, self._found = cell.raw_cell, []

    def table(self, data, name, *, varies=()):
        """Save the DataFrame ``data`` as ``name.csv`` beside the figures.

        ``varies``: the columns that trained networks or random starts decide, ``True`` for all
        decimal numbers; only verdicts tell whether another machine reproduces these.  Or a mapping
        from columns that a solver leaves less exact to their tolerance, or ``"rows"`` if even the
        number of rows is open.
        """
        files.write_csv(files.inside(self.figures, f"{name}.csv"), data)
        self.tables[name] = list(varies) if isinstance(varies, tuple) else varies
        self._reproduce(name)

    def _reproduce(self, name):
        """Under nbval: raise if the table ``name`` is not the stored one."""
        if REPRODUCE in os.environ and name in self.tables:
            path = self.figures / f"{name}.csv"
            reproduction.compare_tables(path, self._stored(), self.tables[name])

    def _stored(self):
        return paths.figures() / self.parameters.get("profile", "quick") / self.name

    def checkpoint(self, name, **config):
        """Path of the checkpoint of the training called ``name`` with this ``config``.

        The file name holds a hash of ``config`` (any JSON-able values), of the calling cell and of
        the library code that this notebook trains and measures with, so a changed setting never
        meets an old checkpoint.
        """
        text = json.dumps(config, sort_keys=True, default=str) + _code(self._cell)
        text += code_digest(self.name) + str(self.threads)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return files.inside(self.folder / "checkpoints", f"{name}-{digest}.pt")

    def finish(self):
        """Write ``claims.json`` and the run record; must be the notebook's last call."""
        from nclib.deep import data

        self.ledger.write(self.figures)
        record = {
            "notebook": self.name,
            "parameters": self.parameters,
            "device": device_name(self.device),
            "threads": self.threads,
            "versions": versions() | _gpu_versions(self.device),
            "data": data.used(),
            "tables": self.tables,
        }
        files.write_json(self.figures / "record.json", record)
        print(f"{self.name}: {self.ledger.summary()}")
        if REPRODUCE in os.environ:
            found = reproduction.compare(self.figures, self._stored(), self.tables)
            if found.differences:
                raise reproduction.NotReproduced("; ".join(found.lines()))


def _shell():
    """IPython's shell, None outside of notebooks."""
    from IPython import get_ipython

    return get_ipython()


def _code(cell):
    """The code of a cell without comments and layout."""
    try:
        return ast.unparse(ast.parse(cell))
    except SyntaxError:  # magics
        return cell


def _show(path, name, width):
    """Show a saved picture in the notebook, as ``width`` pixels; elsewhere do nothing."""
    from IPython.display import display

    if _shell() is not None:
        shown = {"image/png": Path(path).read_bytes(), "text/plain": f"figure {name}"}
        display(shown, raw=True, metadata={"image/png": {"width": width}})


def device(name):
    """``torch.device`` for ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"``.

    Raises :class:`~nclib.checks.InputError` for another name and for a GPU that is not there.
    """
    import torch

    kind, colon, index = name.partition(":")
    checks.choice("device", kind if index.isdecimal() else name, ("auto", "cpu", "cuda"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise checks.InputError(
            "device is cuda, but PyTorch sees no GPU here; use device=cpu or device=auto"
        )
    if colon and not (kind == "cuda" and int(index) < torch.cuda.device_count()):
        raise checks.InputError(f"device is {name}, but PyTorch does not see it; use device=auto")
    return torch.device(name)


def device_name(device):
    """A name people recognise, such as ``cpu (x86_64)`` or ``NVIDIA H100``."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()})"


def versions():
    """Versions of Python and of the libraries that decide numbers."""
    from importlib.metadata import version

    names = ("torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def _gpu_versions(device):
    """Those of CUDA and of the driver, for a run on a GPU."""
    import torch

    if device.type != "cuda":
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()[:1]
    except OSError:  # a driver without its tools
        driver = []
    return {"cuda": torch.version.cuda, "driver": driver[0] if driver else "unknown"}


def library_files(source, without=()):
    """Files of nclib that Python ``source`` imports, through any number of steps, sorted.

    :mod:`nclib.notebook`, which every notebook needs, is one of them.  Modules whose names begin
    with one of ``without`` are passed over.
    """
    package = Path(__file__).parent
    found, waiting = set(), [source, "import nclib.notebook"]
    while waiting:
        for _, name in files.imports(waiting.pop()):
            parts = name.split(".")[1:]
            if name.startswith(tuple(without)):
                continue
            for depth in range(len(parts) + 1):
                stem = package.joinpath(*parts[:depth])
                for file in (stem / "__init__.py", stem.with_suffix(".py")):
                    if file.is_file() and file not in found:
                        found.add(file)
                        waiting.append(file.read_text(encoding="utf-8"))
    return sorted(found)


@cache
def code_digest(name):
    """Hash of the library that decides what the notebook ``name`` trains and measures.

    That is what it imports, through any number of steps, without what only draws.
    """
    source = "\n".join(files.code(paths.NOTEBOOKS / f"{name}.ipynb"))
    package, digest = Path(__file__).parent, hashlib.sha256()
    for file in library_files(source, without=("nclib.plots", "nclib.notebook")):
        if file.stem == "figures":
            continue
        digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()
