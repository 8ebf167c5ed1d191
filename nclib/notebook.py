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
from functools import cache
from pathlib import Path

from nclib import checks, claims, files, parameters, paths

# Set by the batch runner; without them a notebook writes below runs/interactive (git-ignored).
FOLDER, FIGURES, THREADS = "NCLIB_RUN_FOLDER", "NCLIB_RUN_FIGURES", "NCLIB_THREADS"


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
        self.ledger = claims.Ledger(name)
        style.use()

    def figure(self, figure, name, data=None):
        """Save ``figure`` as ``name.png`` and ``name.pdf``, and ``data`` as ``name.csv``.

        ``data`` is the tidy DataFrame the figure was drawn from.  The figure stays open, so the
        notebook shows it.
        """
        from nclib.plots import style

        style.save(figure, files.inside(self.figures, name))
        if data is not None:
            self.table(data, name)

    def table(self, data, name):
        """Save the DataFrame ``data`` as ``name.csv`` beside the figures."""
        files.write_csv(files.inside(self.figures, f"{name}.csv"), data)

    def checkpoint(self, name, **config):
        """Path of the checkpoint of the training called ``name`` with this ``config``.

        The file name holds a hash of ``config`` (any JSON-able values) and of the library code that
        trains and measures, so a changed setting never meets an old checkpoint.
        """
        text = json.dumps(config, sort_keys=True, default=str)
        text += code_digest("deep", "metrics", "losses.py", "frames.py") + str(self.threads)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        return files.inside(self.folder / "checkpoints", f"{name}-{digest}.pt")

    def finish(self):
        """Write ``claims.json`` and the run record; must be the notebook's last call."""
        self.ledger.write(self.figures)
        record = {
            "notebook": self.name,
            "parameters": self.parameters,
            "device": device_name(self.device),
            "threads": self.threads,
            "versions": versions(),
            "data": dict(sorted(_DATA_USED.items())),
        }
        claims.write_json(self.figures / "record.json", record)
        counts = self.ledger.verdicts()["verdict"].value_counts()
        summary = ", ".join(f"{counts[v]} {v}" for v in claims.VERDICTS if v in counts)
        print(f"{self.name}: {summary}")


def short(value):
    """A number as people read it in a ledger: three significant digits."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_DATA_USED = {}


def note_data(name, checksum):
    """Remember which data set this kernel used, for the run's manifest."""
    _DATA_USED[name] = checksum


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


@cache
def code_digest(*parts):
    """Hash of the library files below the given parts of ``nclib`` (all of it without parts)."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for part in parts or ("",):
        target = package / part
        for file in sorted(target.rglob("*.py")) if target.is_dir() else [target]:
            digest.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return digest.hexdigest()
