# ruff: noqa: E501
"""What several results draw, one function per kind; each draws on given axes."""

import numpy as np

from nclib.plots import style


def lines(
    ax,
    table,
    x,
    y,
    *,
    by,
    looks=None,
    labels=None,
    theory=None,
    guides=(),
    log="",
    points=False,
    **text,
):
    """``y`` against ``x``, one look per value of ``by``; a band where ``x`` repeats (seeds).

    ``looks``: value -> (colour, marker); ``theory``: the same columns from the closed form, dashed;
    ``guides``: places of thin vertical lines; ``text``: ``ax.set``.
    """
    for i, (key, part) in enumerate(table.groupby(by, sort=False)):
        color, marker = (looks or {}).get(key, (style.PALETTE[i % 10], style.MARKERS[i % 8]))
        group = part.groupby(x)[y].agg(["mean", "min", "max"])
        look = {"color": color, "marker": marker, "label": (labels or {}).get(key, str(key))}
        ax.plot(group.index, group["mean"], ls="none" if points else "-", **look)
        if (group["max"] > group["min"]).any():
            ax.fill_between(group.index, group["min"], group["max"], color=color, alpha=0.18, lw=0)
        if theory is not None:
            own = theory[theory[by] == key]
            ax.plot(
                own[x],
                own[y],
                **(style.THEORY | ({"color": color, "linestyle": "-"} if points else {})),
            )
    for place in guides:
        ax.axvline(place, **style.GUIDE)
    scales(ax, log)
    ax.set(**{"xlabel": x, "ylabel": y} | text)


def scales(ax, log):
    """Logarithmic axes (``"x"``, ``"y"``, ``"xy"``) with decades only."""
    for axis in log:
        getattr(ax, f"set_{axis}scale")("log")
    if log:
        ax.minorticks_off()


def diagonal(ax, table, x, y, *, by, looks=None, labels=None, **text):
    """Predicted against measured, with the line where they agree."""
    low, high = (f([table[x].min(), table[y].min(), 0.0]) * 1.08 for f in (min, max))
    ax.plot([low, high], [low, high], label="equal", **style.THEORY)
    lines(ax, table, x, y, by=by, looks=looks, labels=labels, points=True, **text)


def starts(ax, table, x, y="gap", *, by=None, looks=None, edge=None, floor=1e-16, **text):
    """Every random start as a dot above its ``x``; ``edge``: a line where something changes."""
    places = {value: i for i, value in enumerate(sorted(table[x].unique()))}
    groups = list(table.groupby(by, sort=False)) if by else [(None, table)]
    for i, (key, part) in enumerate(groups):
        color, marker = (looks or {}).get(key, (style.PALETTE[i], style.MARKERS[i]))
        at = part[x].map(places) + 0.16 * (i - (len(groups) - 1) / 2)
        ax.semilogy(
            at, part[y].abs().clip(lower=floor), marker, color=color, alpha=0.5, ms=4, label=key
        )
    if edge is not None:
        ax.axvline(edge, **style.GUIDE)
    ax.set_xticks(list(places.values()), list(places))
    ax.set(**{"xlabel": x, "ylabel": "$f - f^*$"} | text)


def heatmaps(
    matrices, *, label, titles=None, digits=None, limit=1.0, width=None, axes=None, figure=None
):
    """Square matrices side by side with one colour bar; numbers inside where ``digits`` is given."""
    if axes is None:
        figure, axes = style.grid(
            1, len(matrices), width=width or 1.55 * len(matrices) + 0.9, height=2.3
        )
    for ax, (name, matrix) in zip(np.atleast_1d(axes), matrices.items(), strict=True):
        matrix = np.asarray(matrix)
        image = ax.imshow(matrix, cmap=style.DIVERGING, vmin=-limit, vmax=limit)
        for (i, j), value in np.ndenumerate(matrix) if digits is not None else ():
            shade, text = (
                "white" if abs(value) > 0.7 * limit else "black",
                f"{value + 0.0:.{digits}f}",
            )
            ax.text(
                j,
                i,
                text.replace("-0.00", "0.00"),
                ha="center",
                va="center",
                color=shade,
                fontsize=6.5,
            )
        ax.set(xticks=[], yticks=[])
        ax.set_title((titles or {}).get(name, name), fontsize=9)
    figure.colorbar(image, ax=list(np.atleast_1d(axes)), label=label, shrink=0.8)
    return figure
