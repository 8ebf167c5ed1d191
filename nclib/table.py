"""Tidy tables: a function over a grid of settings, log-spaced steps, matrices in long form."""

from itertools import product

import numpy as np
import pandas as pd

from nclib import checks


def over(measure, /, **axes):
    """``measure(**setting)`` at every combination of ``axes``, the last one fastest: a DataFrame.

    A list, range, one-dimensional array or Series is an axis; so is a mapping, whose keys name its
    values in the table.  Anything else is passed on as it is and gets no column.  ``measure``
    returns a number (column ``value``), a mapping (one row), or several rows (a list of mappings, a
    DataFrame); a column of its own takes the place of an axis with the same name.
    """
    grid = {name: _axis(axis) for name, axis in axes.items()}
    grid = {name: axis for name, axis in grid.items() if axis is not None}
    plain = {name: value for name, value in axes.items() if name not in grid}
    rows = []
    for choice in product(*grid.values()):
        setting = dict(zip(grid, choice, strict=True))
        found = measure(**plain, **{name: value for name, (_, value) in setting.items()})
        if isinstance(found, pd.DataFrame):
            found = found.to_dict("records")
        elif not isinstance(found, list):
            found = [found if isinstance(found, dict) else {"value": found}]
        tag = {name: key for name, (key, _) in setting.items()}
        rows += [tag | row for row in found]
    return pd.DataFrame(rows)


def _axis(values):
    """``values`` as pairs (name in the table, value), or ``None`` for what is no axis."""
    if isinstance(values, dict):
        return list(values.items())
    if isinstance(values, np.ndarray | pd.Series) and values.ndim == 1:
        values = values.tolist()  # of Python numbers
    return [(value, value) for value in values] if isinstance(values, list | range) else None


def log_spaced(last, count):
    """At most ``count`` integers from 0 to ``last``, both included, denser at the beginning."""
    last, count = checks.integer("last", last), checks.integer("count", count, 2)
    return sorted({0, last} | {round(last ** (i / (count - 2))) for i in range(count - 2)})


def last(frame, keys):
    """The last row of each group, indexed and sorted by ``keys``, as it is: ``groupby().last()``
    would take the last entry of each column that is not NaN."""
    return frame.groupby(keys).tail(1).set_index(keys).sort_index()


def extreme(groups, name):
    """The ``"max"`` or ``"min"`` of each column of grouped rows, NaN where an entry is NaN, which
    pandas would pass over."""
    return groups.agg(lambda values: getattr(values.to_numpy(), name)())


def matrices(named):
    """The matrices of a mapping in long form: columns ``name, row, column, value``."""
    rows = []
    for name, matrix in named.items():
        values = checks.matrix(f"matrix {name}", matrix).tolist()
        rows += [
            {"name": name, "row": i, "column": j, "value": value}
            for i, row in enumerate(values)
            for j, value in enumerate(row)
        ]
    return pd.DataFrame(rows, columns=["name", "row", "column", "value"])
