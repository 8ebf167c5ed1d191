"""Sweeps: many runs of one notebook, one table, one summary, one figure."""

import hashlib
import os

import matplotlib.pyplot as plt
import yaml

from nclib import checks, paths, runs


def read_grid(path):
    """A YAML mapping parameter -> list of alternatives, as texts for :func:`nclib.runs.grid`."""
    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise checks.InputError(f"{path} must map each parameter to a list of values")
    flat = lambda value: ",".join(map(str, value)) if isinstance(value, list) else str(value)
    join = lambda values: (";" if any(isinstance(v, list) for v in values) else ",").join(
        flat(v) for v in values
    )
    return {name: join(values) for name, values in content.items()}


def write(jobs, parameters, *, out=None):
    """Write ``sweep.csv``, ``summary.csv`` and ``sweep.png`` of finished jobs; returns the folder.

    Runs that failed are missing from the table; running the sweep again completes it.
    """
    names = {(job.name, job.notebook) for job in jobs}
    table = runs.load(out, names)
    mark = hashlib.sha256("\n".join(sorted(f"{a}/{b}" for a, b in names)).encode()).hexdigest()
    folder = paths.runs(out) / f"sweep-{mark[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    if table.empty:
        return folder
    swept = [name for name in parameters if f"p.{name}" in table]
    pooled = runs.summary(table, swept)
    for name, content in (("sweep.csv", table), ("summary.csv", pooled)):
        temporary = folder / f"{name}.tmp"
        content.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")
        os.replace(temporary, folder / name)
    from nclib.plots import style, sweep

    style.use()
    figure = sweep.comparison(pooled, [name for name in swept if name != "seed"])
    style.save(figure, folder / "sweep")
    plt.close(figure)
    return folder
