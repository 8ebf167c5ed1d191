"""Where the time of ``make figures`` goes, read from executed notebooks."""

import ast
import json

import pandas as pd

from nclib import paths

PARTS = ("start", "imports", "theory", "training", "figures")


def split(profile="quick", out=None):
    """Seconds of each notebook's last run by part: ``notebook, start, imports, theory, …``.

    A cell belongs to *training* if it uses a name imported from ``nclib.deep``, else to *figures*
    if it makes one and computes nothing else, else to *theory* (closed forms and UFM solvers).
    ``start`` is what papermill and the kernel take beside the cells.  Empty without runs.
    """
    table = []
    for path in sorted((paths.runs(out) / profile).glob("*/notebook.ipynb")):
        content = json.loads(path.read_text(encoding="utf-8"))
        cells = [c for c in content["cells"] if c["cell_type"] == "code"]
        homes = {}
        for cell in cells:
            homes |= _imports("".join(cell["source"]))
        seconds = dict.fromkeys(PARTS, 0.0)
        for cell in cells:
            took = (cell["metadata"].get("papermill") or {}).get("duration") or 0.0
            seconds[_part("".join(cell["source"]), homes)] += took
        whole = content["metadata"].get("papermill", {}).get("duration") or 0.0
        seconds["start"] = max(0.0, whole - sum(seconds.values()))
        table.append({"notebook": path.parent.name} | seconds)
    return pd.DataFrame(table, columns=["notebook", *PARTS])


def _parse(source):
    try:
        return ast.parse(source)
    except SyntaxError:  # a cell magic
        return ast.parse("")


def _imports(source):
    """Name -> module it was imported from."""
    homes = {}
    for node in ast.walk(_parse(source)):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                homes[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                homes[alias.asname or alias.name] = alias.name
    return homes


def _part(source, homes):
    tree = _parse(source)
    if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)):
        return "imports"
    used = {homes.get(n.id, "") for n in ast.walk(tree) if isinstance(n, ast.Name)}
    if any(home.startswith("nclib.deep") or home.endswith(".nets") for home in used):
        return "training"
    draws = any(home.startswith(("nclib.plots", "matplotlib", "seaborn")) for home in used)
    draws = draws or any(home.endswith(".figures") for home in used)
    exact = ("nclib.ufm", "nclib.results")
    computes = any(h.startswith(exact) and not h.endswith(".figures") for h in used)
    draws = draws or "run.figure" in source
    return "figures" if draws and not computes else "theory"
