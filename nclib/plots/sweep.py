"""The default figure of a sweep."""

import re

import numpy as np

from nclib.plots import style

ROUNDING = 1e-6  # a claim that stays below measures how well something was solved


def comparison(summary, parameters, *, most=12):
    """Measured value of each claim against the swept parameters, mean and sd over seeds.

    ``summary``: as :func:`nclib.runs.summary` gives it; ``parameters``: those with more than one
    value.  The parameter with most values is the axis, combinations of the others are colours.
    Shows up to ``most`` claims: those whose verdict changes, then those that vary most relative to
    their size.  Crosses mark settings in which the claim failed in some run.
    """
    table = summary[np.isfinite(summary["mean"])]
    columns = sorted((f"p.{name}" for name in parameters), key=lambda c: -table[c].nunique())
    axis, colours = columns[:1], columns[1:]
    text = lambda row, names: ", ".join(f"{name[2:]}={row[name]}" for name in names)
    table = table.assign(
        place=[row[axis[0]] if axis else "all runs" for _, row in table.iterrows()],
        colour=[text(row, colours) for _, row in table.iterrows()],
    )
    chosen = _telling(table, most)
    shown = [name for name in table["id"].unique() if name in chosen] or ["no claim varies"]
    places = sorted(table["place"].unique(), key=_order)
    labels = sorted(table["colour"].unique(), key=_order)
    wide = min(4, len(shown))
    figure, axes = style.grid(-(-len(shown) // wide), wide, width=11, height=2.3, squeeze=False)
    spread = np.linspace(-0.15, 0.15, len(labels)) if len(labels) > 1 else [0.0]
    for ax, name in zip(axes.flat, shown, strict=False):
        part = table[table["id"] == name]
        for i, (label, shift) in enumerate(zip(labels, spread, strict=True)):
            own = part[part["colour"] == label]
            x = np.array([places.index(place) for place in own["place"]]) + shift
            look = {"color": style.PALETTE[i % 10], "marker": style.MARKERS[i % 8]}
            ax.errorbar(x, own["mean"], own["sd"].fillna(0), ls=":", capsize=2, label=label, **look)
            bad = (own["holds"] < own["n"]).to_numpy()
            ax.plot(x[bad], own["mean"].to_numpy()[bad], "x", color="black", ms=9, zorder=6)
        ax.set_xticks(range(len(places)), places)
        ax.set_xlabel(axis[0][2:] if axis else "")
        ax.margins(x=0.1)
        ax.set_title(name)
        values = part["mean"].to_numpy()
        if len(values) and (values > 0).all() and values.max() / values.min() > 30:
            ax.set_yscale("log")
    for ax in list(axes.flat)[len(shown) :]:
        ax.set_visible(False)
    if len(labels) > 1:
        handles, texts = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=min(4, len(texts)))
    return figure


def _order(value):
    """Numbers by size, texts with numbers in them likewise."""
    parts = re.split(r"([-+]?\d+\.?\d*(?:e[-+]?\d+)?)", str(value))
    return [float(part) if i % 2 else part for i, part in enumerate(parts)]


def _telling(table, most):
    """Ids of the claims to show."""
    ranks = {}
    for name, part in table.groupby("id"):
        values, failed = part["mean"].to_numpy(), (part["holds"] < part["n"]).to_numpy()
        size = np.abs(values).max()
        if failed.any() and not failed.all():
            ranks[name] = np.inf
        elif size > ROUNDING and np.ptp(values) > 0:
            ranks[name] = np.ptp(values) / size
    return sorted(ranks, key=lambda name: -ranks[name])[:most]
