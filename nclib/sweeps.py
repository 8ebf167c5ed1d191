"""Sweeps: many runs of one notebook, one table, one summary, one figure."""

import hashlib
import json

from nclib import checks, files, paths, runs


def read_grid(path):
    """A YAML mapping parameter -> list of values, as texts for :func:`nclib.runs.grid`."""
    content = files.read_yaml(path, files.yaml_texts)
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise checks.InputError(f"{path} must map each parameter to a list of values")
    text = lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return {key: [text(value) for value in values] for key, values in content.items()}


def write(outcomes, parameters, *, out=None):
    """Write ``sweep.csv``, ``summary.csv`` and ``sweep.png`` of a sweep; returns the folder.

    ``outcomes``: as :func:`nclib.runs.run_all` returns them; ``parameters``: the swept ones; those
    with one value only are left out of the summary.  Runs that failed are missing from the table;
    running the sweep again completes it.
    """
    every = sorted(f"{one.job.name}/{one.job.notebook}" for one in outcomes)
    mark = hashlib.sha256("\n".join(every).encode()).hexdigest()
    folder = paths.runs(out) / f"sweep-{mark[:8]}"
    good = {(one.job.name, one.job.notebook) for one in outcomes if one.status != "failed"}
    table = runs.load(out, good)
    if table.empty:
        return folder
    import matplotlib.pyplot as plt

    from nclib.plots import style, sweep

    values = lambda name: {json.dumps(one.job.parameters.get(name)) for one in outcomes}
    swept = [name for name in parameters if len(values(name)) > 1]
    pooled = runs.summary(table, swept)
    files.write_csv(folder / "sweep.csv", table)
    files.write_csv(folder / "summary.csv", pooled)
    style.use()
    figure = sweep.comparison(pooled, [name for name in swept if name != "seed"])
    style.save(figure, folder / "sweep")
    plt.close(figure)
    return folder
