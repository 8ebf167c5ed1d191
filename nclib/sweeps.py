"""Sweeps: many runs of one notebook, one table, one summary, one figure."""

import hashlib
import itertools
import json
import re
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from nclib import checks, files, parameters, paths, reproduction, runs
from nclib.plots import style

SHOWN = 12  # checks in the figure
ROUNDING = 1e-6  # a check that stays below measures how well something was solved


# What to run --------------------------------------------------------------------------------------


def read_grid(path):
    """A YAML mapping parameter -> list of values, as texts for :func:`grid`."""
    content = files.read_yaml(path, texts=True)
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise checks.InputError(f"{path} must map each parameter to a list of values")
    return {
        key: [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        for key, values in content.items()
    }


def grid(query, texts, profile="quick", *, seeds=None, out=None, threads=1):
    """The jobs of a cartesian product of parameter values.

    ``texts``: parameter -> list of values, or text of alternatives: ``"ce,ls"``, ``"2,8,32"``; for
    a parameter that is itself a list or dict, alternatives are separated by semicolons
    (``"2,8;32"``).  ``seeds``: ``"0:5"`` (0 to 4) or ``"1,123,321"``, for the parameter ``seed``.
    """
    known = parameters.declared(runs.find(query))
    for key in texts:
        if key not in known:
            raise parameters.unknown(key, known)
    alternatives = {key: _alternatives(key, text, known[key]) for key, text in texts.items()}
    if seeds is not None and "seed" in alternatives:
        raise checks.InputError("parameter seed is given twice: with -p and with --seeds")
    if seeds is not None:
        alternatives["seed"] = _seeds(seeds)
    checks.require(alternatives, "a sweep needs -p NAME=A,B,… or --seeds 0:5")
    found = [
        runs.job(query, profile, dict(zip(alternatives, values, strict=True)), out=out,
                 threads=threads)
        for values in itertools.product(*alternatives.values())
    ]  # fmt: skip
    return list({one.name: one for one in found}.values())  # a value given twice is one run


def _alternatives(key, text, parameter):
    nested = re.search("list|dict", str(parameter.kind))
    values = text
    if isinstance(text, str):
        values = [part.strip() for part in text.split(";" if nested else ",")]
    if not values or (isinstance(text, str) and "" in values):
        example = f"{key}=1,2;3 for two lists" if nested else f"{key}=A,B"
        raise checks.InputError(f"parameter {key} lacks a value in {text!r}; write {example}")
    return values


def _seeds(text):
    first, colon, last = str(text).partition(":")
    try:
        found = range(int(first), int(last)) if colon else [int(s) for s in first.split(",")]
    except ValueError:
        found = []
    checks.require(found, f"--seeds {text}: write 0:5 for 0, …, 4, or 1,123,321")
    return [str(seed) for seed in found]


def estimate(jobs, parallel=1):
    """Seconds the jobs will take, from what their notebook took last; ``None`` if unknown."""
    total = 0.0
    for one in jobs:
        path = paths.figures() / one.parameters.get("profile", "quick") / one.notebook
        try:
            total += reproduction.read_manifest(path / "manifest.json")["seconds"]
        except checks.InputError:
            return None
    return total / parallel


# What came out ------------------------------------------------------------------------------------


def write(outcomes, swept, *, out=None):
    """Write ``sweep.csv``, ``summary.csv`` and ``sweep.png`` of a sweep; returns the folder.

    ``outcomes``: as :func:`nclib.runs.run_all` returns them; ``swept``: names of the parameters;
    those with one value only are left out of the summary.  Runs that failed are missing from the
    table (at least one did not); running the sweep again completes it.
    """
    every = sorted(f"{one.job.name}/{one.job.notebook}" for one in outcomes)
    mark = hashlib.sha256("\n".join(every).encode()).hexdigest()
    folder = paths.runs(out) / f"sweep-{mark[:8]}"
    good = {(one.job.name, one.job.notebook) for one in outcomes if one.status != "failed"}
    table = runs.load(out, good)
    given = [one.job.parameters for one in outcomes]
    several = [n for n in swept if len({json.dumps(values.get(n)) for values in given}) > 1]
    files.write_csv(folder / "sweep.csv", table)
    files.write_csv(folder / "summary.csv", summary(table, [n for n in several if n != "seed"]))
    style.use()
    figure = comparison(table, several)
    style.save(figure, folder / "sweep")
    plt.close(figure)
    return folder


def summary(table, swept):
    """Mean, standard deviation and number of runs of every check.

    ``table``: as :func:`nclib.runs.load` gives it.  One row per check and combination of the
    parameters ``swept``, all others (seeds) pooled; ``holds`` counts the runs in which it holds.
    """
    keys = ["notebook", "id", *(f"p.{name}" for name in swept)]
    numbers = table.assign(
        measured=pd.to_numeric(table["measured"], errors="coerce"),
        holds=table["verdict"].isin(["holds", "counterexample"]),
        **{key: table[key].astype(str) for key in keys},
    )
    pooled = numbers.groupby(keys, sort=False)
    result = pooled.agg(
        mean=("measured", "mean"),
        sd=("measured", "std"),
        n=("measured", "size"),
        holds=("holds", "sum"),
    )
    return result.reset_index()


def comparison(table, swept):
    """Measured value of each check against the swept parameters, mean and sd over seeds.

    ``table``: as :func:`nclib.runs.load` gives it; ``swept``: parameters with more than one value.
    The one with most values is the axis, combinations of the others are colours; seeds are the axis
    of a sweep over nothing else, which shows how far a check spreads.  Shows :data:`SHOWN` checks:
    those whose verdict changes, then those that vary most relative to their size.  A bound that
    all runs share is dashed; crosses mark settings in which the check does not hold in some run.
    """
    names = [name for name in swept if name != "seed"] or ["seed"]
    pooled = summary(table, names)
    pooled = pooled[np.isfinite(pooled["mean"])]
    columns = sorted((f"p.{name}" for name in names), key=lambda c: -pooled[c].nunique())
    rows = pooled[columns[1:]].to_dict("records")
    colours = [", ".join(f"{name[2:]}={value}" for name, value in row.items()) for row in rows]
    pooled = pooled.assign(place=pooled[columns[0]], colour=colours)
    chosen = _telling(pooled, everything=names == ["seed"])
    shown = [name for name in pooled["id"].unique() if name in chosen] or ["no check varies"]
    wide = min(3, len(shown))
    height = 2.9 if chosen else 1.0
    figure, axes = style.grid(-(-len(shown) // wide), wide, width=11, height=height, squeeze=False)
    places, labels = (sorted(pooled[c].unique(), key=_order) for c in ("place", "colour"))
    for ax, name in zip(axes.flat, shown, strict=False):
        own = table[table["id"] == name]
        if name in chosen:
            _draw(ax, pooled[pooled["id"] == name], own, places, labels, columns[0][2:])
        sentence = f"{name}: {own['statement'].iloc[0]}" if name in chosen else name
        ax.set_title("\n".join(textwrap.wrap(sentence, 44, max_lines=3)), fontsize=8.5)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    named = [ax.get_legend_handles_labels() for ax in axes.flat]
    legend = {label: one for found in named for one, label in zip(*found, strict=True)}
    if legend:
        figure.legend(legend.values(), legend, loc="outside lower center", ncols=4)
    return figure


def _draw(ax, part, claims, places, labels, axis):
    """One panel: ``part`` of the summary, ``claims`` its rows of the table for words and bound."""
    shifts = np.linspace(-0.15, 0.15, len(labels)) if len(labels) > 1 else [0.0]
    for i, (label, shift) in enumerate(zip(labels, shifts, strict=True)):
        own = part[part["colour"] == label].sort_values("place", key=lambda c: c.map(places.index))
        x = np.array([places.index(place) for place in own["place"]]) + shift
        look = {"color": style.PALETTE[i % 10], "marker": style.MARKERS[i % 8]}
        look["ls"] = "" if axis == "seed" else ":"
        mean, sd = own["mean"].to_numpy(), own["sd"].fillna(0).to_numpy()
        ax.errorbar(x, mean, sd, capsize=2, label=label or None, **look)
        bad = (own["holds"] < own["n"]).to_numpy()
        label = "does not hold in some run" if bad.any() else None
        ax.plot(x[bad], mean[bad], "x", color="black", ms=9, zorder=6, label=label)
    ax.set_xticks(range(len(places)), places)
    ax.margins(x=0.1)
    ax.set_xlabel(axis)
    claim = claims.iloc[0]
    ax.set_ylabel("\n".join(textwrap.wrap(str(claim["note"] or "measured"), 32, max_lines=2)))
    values = part["mean"].to_numpy()
    log = len(values) and (values > 0).all() and values.max() / values.min() > 30
    if log:
        ax.set_yscale("log")
    bound = claim["bound"] if claims["bound"].nunique() == 1 else None
    number = isinstance(bound, int | float) and not isinstance(bound, bool) and np.isfinite(bound)
    if number and (bound > 0 or not log):
        sign = {"below": "≤ ", "above": "≥ "}.get(claim["relation"], "")
        style.reference(ax, bound, f"{sign}{bound:.4g}", label="bound or expected value")


def _order(value):
    """Numbers by size, texts with numbers in them likewise."""
    parts = re.split(r"([-+]?\d+\.?\d*(?:e[-+]?\d+)?)", str(value))
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def _telling(pooled, *, everything):
    """Ids of the checks to show; ``everything``: also those that hardly vary, after the others."""
    means, fails = pooled.groupby("id")["mean"], pooled["holds"] < pooled["n"]
    size = means.agg(lambda values: values.abs().max())
    rank = ((means.max() - means.min()) / size).where(size > ROUNDING, 0.0)
    rank[fails.groupby(pooled["id"]).nunique() > 1] = np.inf  # its verdict changes
    rank = rank if everything else rank[rank > 0]
    return list(rank.sort_values(ascending=False, kind="stable").index[:SHOWN])
