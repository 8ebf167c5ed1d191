"""The only file that knows where things are.

Everything is resolved from the checkout that holds this package, never from the working directory:
papermill, Jupyter and pytest all start in different folders.
"""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = Path(os.environ.get("NCLIB_NOTEBOOKS", ROOT / "notebooks"))
PROFILES = NOTEBOOKS / "profiles"
CLAIMS = NOTEBOOKS / "claims"


def data():
    """Folder of the data sets: ``$NCLIB_DATA``, else ``data/`` of the checkout."""
    return Path(os.environ.get("NCLIB_DATA", ROOT / "data"))


def runs(out=None):
    """Folder of executed notebooks, tables and checkpoints; by default beside the notebooks."""
    return Path(out or NOTEBOOKS.parent) / "runs"


def figures(out=None):
    """Folder of the figures and ledgers that are committed; by default beside the notebooks."""
    return Path(out or NOTEBOOKS.parent) / "figures"
