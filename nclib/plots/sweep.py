"""The default figure of a sweep."""

import numpy as np

from nclib.plots import style


def comparison(summary, parameters, *, most=12):
    """Measured value of each claim against the setting, mean and sd over seeds.

    ``summary``: as :func:`nclib.runs.summary` gives it.  Shows the claims that vary most, relative
    to their size; crosses mark settings in which the claim failed in some run.
    """
    columns = [f"p.{name}" for name in parameters]
    table = summary.dropna(subset=["mean"]).copy()
    table["setting"] = [
        ", ".join(f"{c[2:]}={row[c]}" for c in columns) or "default" for _, row in table.iterrows()
    ]
    spread = table.groupby("id")["mean"].agg(lambda v: np.ptp(v) / (np.abs(v).max() + 1e-300))
    shown = list(spread.sort_values(ascending=False).index[:most])
    shown = [name for name in table["id"].unique() if name in shown]
    columns_of_grid = min(4, max(1, len(shown)))
    rows = -(-max(1, len(shown)) // columns_of_grid)
    figure, axes = style.grid(rows, columns_of_grid, width=11, height=2.6, squeeze=False)
    for ax, name in zip(axes.flat, shown, strict=False):
        part = table[table["id"] == name]
        places = np.arange(len(part))
        ax.errorbar(places, part["mean"], part["sd"].fillna(0), fmt="o", capsize=2)
        bad = (part["holds"] < part["n"]).to_numpy()
        ax.plot(places[bad], part["mean"].to_numpy()[bad], "x", color=style.PALETTE[3], ms=9)
        ax.set_xticks(places, part["setting"], rotation=30, ha="right")
        ax.set_title(name)
        values = part["mean"].to_numpy()
        if (values > 0).all() and values.max() / values.min() > 30:
            ax.set_yscale("log")
    for ax in list(axes.flat)[len(shown) :]:
        ax.set_visible(False)
    return figure
