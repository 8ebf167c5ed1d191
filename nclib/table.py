# ruff: noqa: E501
"""Tidy tables: a function over a grid of settings, log-spaced steps, matrices in long form."""

from itertools import product

import pandas as pd


def over(measure, **axes):
    """``measure(**point)`` at every combination of ``axes``, the last one fastest, as a DataFrame.

    A list, range, array or Series is an axis; so is a mapping, whose keys name its values in the table.
    Anything else is passed on as it is and gets no column.  ``measure`` returns a number (column
    ``value``), a mapping (one row), or several rows (list of mappings, DataFrame).
    """
    plain = {
        n: a for n, a in axes.items() if isinstance(a, str | tuple) or not hasattr(a, "__iter__")
    }
    grid = {
        n: a.items() if isinstance(a, dict) else zip(a, a, strict=True)
        for n, a in axes.items()
        if n not in plain
    }
    rows = []
    for choice in product(*grid.values()):
        tag = {name: key for name, (key, _) in zip(grid, choice, strict=True)}
        found = measure(
            **plain, **{name: value for name, (_, value) in zip(grid, choice, strict=True)}
        )
        if isinstance(found, pd.DataFrame):
            found = found.to_dict("records")
        elif not isinstance(found, list):
            found = [found if isinstance(found, dict) else {"value": found}]
        rows += [tag | row for row in found]
    return pd.DataFrame(rows)


def log_spaced(last, count):
    """About ``count`` integers from 0 to ``last``, denser at the beginning."""
    return sorted({0} | {round(last ** (i / max(count - 2, 1))) for i in range(count - 1)})
