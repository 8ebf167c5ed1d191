"""What several results draw, one function per kind of picture.

All take tidy tables.  ``by`` names the column whose values are told apart, in the order in which
they occur; ``looks`` maps such a value to ``(colour, marker)``, ``labels`` to its name in the
legend; what is left over (``xlabel``, ``title``, ``ylim``, …) goes to ``ax.set``.
"""

import numpy as np
import seaborn as sns

from nclib.plots import style


def lines(
    ax,
    table,
    x,
    y,
    *,
    by=None,
    looks=None,
    labels=None,
    theory=None,
    guides=(),
    log="",
    floor=None,
    points=False,
    **text,
):
    """``y`` against ``x``: a line of means and, where ``x`` repeats (seeds), the range around it.

    Args:
        theory: the closed form, dashed black; a table with the same columns, perhaps on a finer
            grid, or the column of ``table`` that holds it.
        guides: places of thin vertical lines.
        log: logarithmic axes, see :func:`nclib.plots.style.scales`.
        floor: smaller values are drawn there, for what has reached zero on a logarithmic axis.
        points: markers without lines.
    """
    for key, part, look in _groups(table, by, looks, labels):
        group = part.groupby(x)[y].agg(["mean", "min", "max"]).clip(lower=floor)
        ax.plot(group.index, group["mean"], ls="none" if points else "-", **look)
        if (group["max"] > group["min"]).any():
            band = {"color": look["color"], "alpha": 0.18, "lw": 0}
            ax.fill_between(group.index, group["min"], group["max"], **band)
        if theory is not None:
            column, own = (theory, part) if isinstance(theory, str) else (y, theory)
            own = own if by is None or own is part else own[own[by] == key]
            ax.plot(own[x], own[column], **style.THEORY)
    for place in guides:
        ax.axvline(place, **style.GUIDE)
    style.scales(ax, log)
    ax.set(**{"xlabel": x, "ylabel": y} | text)


def diagonal(ax, table, x, y, *, by=None, looks=None, labels=None, log="", **text):
    """Predicted (``x``) against measured (``y``), with the line where they agree."""
    ends = [f(f(table[x]), f(table[y])) for f in (min, max)]
    ax.plot(ends, ends, label="equal", **style.THEORY)
    for _, part, look in _groups(table, by, looks, labels):
        ax.plot(part[x], part[y], ls="none", **look)
    style.scales(ax, log)
    ax.set(**{"xlabel": x, "ylabel": y} | text)


def starts(ax, table, x, *, by=None, looks=None, edge=None, **text):
    """The ``gap`` of every random start as a dot above its ``x``, which is one of a few values.

    Gaps are drawn by their size, at least 1e-16.  ``edge``: the ``x`` from which on something is
    different, marked by a thin line before it.
    """
    values = sorted(table[x].unique())
    places = {value: i for i, value in enumerate(values)}
    groups = list(_groups(table, by, looks, None))
    wide = 0.6 / len(groups)
    for i, (_, part, look) in enumerate(groups):
        for value, own in part.groupby(x):
            beside = np.linspace(-0.4, 0.4, len(own)) if len(own) > 1 else np.zeros(1)
            at = places[value] + wide * (i - (len(groups) - 1) / 2 + beside)
            ax.plot(at, own["gap"].abs().clip(lower=1e-16), ls="none", alpha=0.6, **look)
            look = look | {"label": None}
    if edge is not None:
        ax.axvline(sum(value < edge for value in values) - 0.5, **style.GUIDE)
    ax.set_yscale("log")
    ax.set_xticks(range(len(values)), values)
    ax.set(**{"xlabel": x, "ylabel": "$f - f^*$"} | text)


def matrices(table, *, by="name", value="value"):
    """``{name: matrix}`` from a table of the columns ``by``, row, column and ``value``."""
    wide = {"index": "row", "columns": "column", "values": value}
    return {key: part.pivot(**wide).to_numpy() for key, part in table.groupby(by, sort=False)}


def heatmaps(matrices, *, label, titles=None, digits=None, norm=None, width=None, axes=None):
    """Matrices side by side with one colour bar, from -1 to 1, white in the middle; returns the
    figure.

    Args:
        matrices: name -> matrix.  Rows and columns of a DataFrame are named on the axes.
        label: of the colour bar.
        titles: name -> title; default the names.
        digits: if given, every entry is written into its place.
        norm: a norm of matplotlib instead, for values without a sign: from dark to light.
        width: of the figure in inches.
        axes: where to draw; default a figure of its own.
    """
    count = len(matrices)
    if axes is None:
        _, axes = style.grid(1, count, width=width or 1.55 * count + 0.9, height=2.3)
    axes = list(np.atleast_1d(axes))
    colors = {"norm": norm, "cmap": style.SEQUENTIAL}
    if norm is None:
        colors = {"vmin": -1, "vmax": 1, "cmap": style.DIVERGING}
    for ax, (name, matrix) in zip(axes, matrices.items(), strict=True):
        values = np.asarray(matrix, dtype=float)
        image = ax.imshow(values, **colors)
        if hasattr(matrix, "columns"):
            ax.set(xlabel=matrix.columns.name, ylabel=matrix.index.name)
            ax.set_xticks(range(values.shape[1]), matrix.columns)
            ax.set_yticks(range(values.shape[0]), matrix.index)
        else:
            ax.set(xticks=[], yticks=[])
        if digits is not None:
            _write(ax, image, values, digits)
        ax.set_title((titles or {}).get(name, name), fontsize=9)
    axes[0].figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    return axes[0].figure


def _write(ax, image, values, digits):
    """Entries as numbers, white on dark colours, black on light ones."""
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
        text = f"{round(value, digits) + 0.0:.{digits}f}"  # no minus zero
        look = {"color": "white" if dark else "black", "fontsize": 6.5}
        ax.text(column, row, text, ha="center", va="center", **look)


def plane(snapshots):
    """Features of a few classes in two dimensions, one panel per epoch; returns the figure.

    ``snapshots``: epoch, x, y, label, nc1, one row per sample.  Arrows go from the mean of all
    samples to the class means.
    """
    epochs = sorted(snapshots["epoch"].unique())
    figure, axes = style.grid(1, len(epochs), width=2.6 * len(epochs), height=2.9, squeeze=False)
    for ax, epoch in zip(axes[0], epochs, strict=True):
        part = snapshots[snapshots["epoch"] == epoch]
        centre = part[["x", "y"]].mean()
        reach = 1.15 * np.abs(part[["x", "y"]] - centre).to_numpy().max()
        for label, color in zip(sorted(part["label"].unique()), style.PALETTE, strict=False):
            own = part[part["label"] == label]
            ax.plot(own["x"], own["y"], "o", ms=2.5, alpha=0.45, color=color, mec="none")
            arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.6}
            ax.annotate("", own[["x", "y"]].mean(), centre, arrowprops=arrow)
        ax.set(xlim=(centre["x"] - reach, centre["x"] + reach), xticks=[], yticks=[])
        ax.set(ylim=(centre["y"] - reach, centre["y"] + reach), aspect="equal")
        ax.set_title(f"epoch {epoch}: NC1 = {part['nc1'].iloc[0]:.2g}")
        sns.despine(ax=ax, left=True, bottom=True)
    return figure


def _groups(table, by, looks, labels):
    """``(value of by, its part of the table, colour, marker and label)``, in order."""
    parts = [(None, table)] if by is None else table.groupby(by, sort=False)
    for i, (key, part) in enumerate(parts):
        default = style.PALETTE[i % len(style.PALETTE)], style.MARKERS[i % len(style.MARKERS)]
        color, marker = (looks or {}).get(key, default)
        label = (labels or {}).get(key, None if by is None else str(key))
        yield key, part, {"color": color, "marker": marker, "label": label}
