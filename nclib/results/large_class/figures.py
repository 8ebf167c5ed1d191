"""Figures of result 4.  Each takes the tidy tables it draws and returns the figure.

A title that states a finding is passed in by the notebook, which asks the verdict of its row.
"""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D
from scipy.spatial import ConvexHull

from nclib.plots import style
from nclib.plots.style import GUIDE, MARKERS, PALETTE, THEORY

RANDOM = GUIDE | {"color": "0.4"}


def two_distances(tables, *, classes=(0, 0)):
    """Both distances of one class in the plane, for each table (name -> code's table)."""
    figure, axes = style.grid(1, 2 * len(tables), width=10.0, height=2.9)
    for i, (name, table) in enumerate(tables.items()):
        own = table.iloc[classes[i]]
        rest = table.drop(index=table.index[classes[i]])[["x", "y"]].to_numpy()
        hull = rest[ConvexHull(rest).vertices]
        for ax, kind in zip(axes[2 * i : 2 * i + 2], ("one_vs_rest", "one_vs_one"), strict=True):
            _circle(ax)
            end = ("hull_x", "hull_y") if kind == "one_vs_rest" else ("near_x", "near_y")
            if kind == "one_vs_rest":
                ax.fill(*hull.T, color=PALETTE[0], alpha=0.2, lw=0)
            ax.plot(*rest.T, "o", color=PALETTE[0], ms=5)
            ax.plot([own["x"], own[end[0]]], [own["y"], own[end[1]]], "-", color=PALETTE[3], lw=2)
            ax.plot(own["x"], own["y"], "*", color=PALETTE[3], ms=11)
            text = "hull of the rest" if kind == "one_vs_rest" else "nearest class"
            ax.set_title(f"{name}\n{text} at {own[kind]:.3f}", loc="center", fontsize=9)
    figure.suptitle(
        "One-vs-rest and one-vs-one distance of the star", x=0.01, ha="left", fontsize=10
    )
    return figure


def _circle(ax):
    angles = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(angles), np.sin(angles), color="0.85", lw=1)
    ax.set_aspect("equal")
    ax.set_axis_off()


def gallery(table):
    """Codes as points on the circle or sphere; rattlers are stars."""
    names, columns = list(table["code"].unique()), 5
    rows = -(-len(names) // columns)
    figure = plt.figure(figsize=(9.0, 0.4 + 2.5 * rows))
    for i, name in enumerate(names):
        part = table[table["code"] == name]
        flat = part["dimension"].iloc[0] == 2
        ax = figure.add_subplot(rows, columns, i + 1, projection=None if flat else "3d")
        (_polygon if flat else _sphere)(ax, part)
        loose = int(part["rattler"].sum())
        text = rf"$\rho={part['distance'].min():.4f}$"
        text += f", {loose} rattler{'s' * (loose > 1)}" if loose else ""
        ax.set_title(f"{name}\n{text}", loc="center", fontsize=9)
        ax.set_axis_off()
    handles = [
        Line2D([], [], marker="o", ls="", color=PALETTE[0], label=r"$\mathrm{dist}_k=\rho$"),
        Line2D([], [], marker="*", ls="", ms=9, color=PALETTE[3], label=r"rattler"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _polygon(ax, part):
    _circle(ax)
    x, y = part["x"].to_numpy(), part["y"].to_numpy()
    ax.plot(np.append(x, x[0]), np.append(y, y[0]), color="0.45", lw=0.9)
    ax.plot(x, y, "o", color=PALETTE[0], ms=6)


def _sphere(ax, part):
    points = part[["x", "y", "z"]].to_numpy()
    for i, j in hull_edges(points):
        ax.plot(*points[[i, j]].T, color="0.45", lw=0.7)
    for loose, marker, size, color in ((False, "o", 26, PALETTE[0]), (True, "*", 110, PALETTE[3])):
        chosen = points[part["rattler"].to_numpy() == loose]
        ax.scatter(*chosen.T, marker=marker, s=size, color=color, depthshade=True)
    ax.set_box_aspect((1, 1, 1), zoom=1.2)
    ax.view_init(elev=18, azim=32)


def hull_edges(points):
    """Edges of the convex hull without the diagonals of its flat faces."""
    hull = ConvexHull(points)
    edges = set()
    for simplex, normal in zip(hull.simplices, hull.equations, strict=True):
        for i, j in ((0, 1), (1, 2), (0, 2)):
            pair = {simplex[i], simplex[j]}
            other = [
                e
                for s, e in zip(hull.simplices, hull.equations, strict=True)
                if pair <= set(s) and not np.array_equal(s, simplex)
            ]
            if not other or np.abs(other[0] - normal).max() > 1e-6:
                edges.add(tuple(sorted(pair)))
    return sorted(edges)


def known_margins(table):
    """``rho*`` against K for each d; right d = 2 and 3 with the general bounds."""
    figure, (left, right) = style.grid(1, 2, height=3.5)
    for color, marker, (d, part) in zip(PALETTE, MARKERS, table.groupby("d"), strict=False):
        for status, fill, line in (("proven", color, "-"), ("tabulated", "w", "")):
            own = part[part["status"] == status]
            look = {"color": color, "marker": marker, "ms": 4, "mfc": fill, "ls": line}
            left.plot(own["K"], own["margin"], label=f"$d={d}$" if line else None, **look)
    K = np.arange(2, table["K"].max() + 1)
    left.plot(K, K / (K - 1), **THEORY)
    left.annotate("simplex $K/(K-1)$", (4.0, 1.42), fontsize=7.5)
    left.annotate(r"$\rho^*=1$ for $d+2\leq K\leq 2d$", (9.5, 1.16), fontsize=7.5)
    left.set(xlabel="classes $K$", ylabel=r"largest margin $\rho^*(K,d)$", ylim=(0, 2.05))
    left.set_title("Filled: proven. Open: best code known")
    left.legend(ncols=2, loc="upper right")
    for color, d in ((PALETTE[0], 2), (PALETTE[1], 3)):
        own = table[table["d"] == d]
        part, stated = own.dropna(subset="margin"), own[own["stated"]]
        right.fill_between(stated["K"], stated["lower"], stated["upper"], color=color, alpha=0.15)
        right.plot(part["K"], part["margin"], color=color, marker="o", ms=3.5, label=f"$d={d}$")
        for bound in ("lower", "upper"):
            right.plot(stated["K"], stated[bound], **THEORY)
    right.set(xlabel="classes $K$", ylabel="margin", xscale="log", yscale="log")
    right.xaxis.set_minor_formatter(plt.NullFormatter())
    right.set_xticks([2, 5, 10, 20], ["2", "5", "10", "20"])
    right.set_title(r"Bounds (dashed) for $K\geq\sqrt{2\pi\sqrt{ed}}$")
    right.legend(loc="lower left")
    return figure


def cold_limit(table):
    """Margin ratio, first-order slack with its predicted limit, and the same for the value."""
    figure, axes = style.grid(1, 3, height=3.3)
    for color, marker, (name, part) in zip(
        PALETTE, MARKERS, table.groupby("code", sort=False), strict=False
    ):
        look = {"color": color, "marker": marker, "ms": 4, "label": name}
        axes[0].plot(part["temperature"], 1 - part["margin_ratio"], **look)
        for ax, column in ((axes[1], "slack"), (axes[2], "value")):
            measured = column if column == "slack" else "value_rate"
            ax.plot(part["temperature"], part[measured], **look)
            ax.axhline(part[f"{column}_limit"].iloc[0], **(THEORY | {"lw": 0.9}))
    axes[0].set_yscale("symlog", linthresh=1e-6)
    axes[0].set(ylabel=r"$1-\rho(W_\tau)/\rho^*$", title="Distance to the code")
    axes[1].set(ylabel=r"$(\rho^*-m)\,/\,\tau$", title="Hard margin; dashed: predicted limit")
    axes[2].set(ylabel=r"$(\tau\log\mathrm{CE}+\rho^*)\,/\,\tau$", title="Value; dashed: predicted")
    for ax in axes:
        ax.set(xscale="log", xlabel=r"temperature $\tau$")
    axes[1].legend(title="$(K,d)$", loc="center", bbox_to_anchor=(0.5, 0.3), ncols=2)
    return figure


def phases(energies, edges, warm, stable):
    """Energies of explicit codes above the lowest, per d; right (7, 3): margin of the minimum.

    ``energies``: d, temperature, family, scaled; ``edges``: d, temperature of exchange;
    ``warm``: temperature, margin_ratio, bipyramid; ``stable``: where the bipyramid is a minimum.
    """
    dims = list(energies["d"].unique())
    figure, axes = style.grid(1, len(dims) + 1, width=10.5, height=3.2)
    colors = dict(zip(energies["family"].unique(), PALETTE, strict=False))
    for ax, d in zip(axes, dims, strict=False):
        table = energies[energies["d"] == d].pivot_table(
            index="temperature", columns="family", values="scaled"
        )
        gaps = 1e3 * table.sub(table.min(axis=1), axis=0)
        for family in gaps:
            ax.plot(gaps.index, gaps[family], color=colors[family], label=family)
        for edge in edges.loc[edges["d"] == d, "temperature"]:
            ax.axvline(edge, **THEORY)
            place = {"xycoords": ax.get_xaxis_transform(), "rotation": 90, "va": "top"}
            ax.annotate(rf"$\tau={edge:.4f}$", (edge, 0.98), ha="right", fontsize=7, **place)
        ax.set(xlabel=r"temperature $\tau$", title=f"$(K,d)=({d + 2},{d})$")
        ax.set_ylim(-0.5, 18)  # room for the names of the edges
        _temperatures(ax, (0.05, 0.1, 0.2, 0.5, 1))
    axes[0].set_ylabel(r"$10^3\times(\tau\log$CE $-$ lowest)")
    handles, texts = axes[-2].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=3)
    ax = axes[-1]
    ax.axvspan(*stable, color=PALETTE[2], alpha=0.15, lw=0)
    ax.plot(warm["temperature"], warm["margin_ratio"], "o-", color=PALETTE[0])
    line(ax, warm["bipyramid"].iloc[0], "bipyramid (green: stable)", THEORY, va="top")
    ax.set(xlabel=r"temperature $\tau$", ylabel=r"$\rho(W_\tau)/\rho^*$", ylim=(0.85, 1.01))
    ax.set_title("$(7,3)$: the minimum")
    _temperatures(ax, (0.05, 0.2, 1))
    return figure


def _temperatures(ax, ticks):
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(plt.NullFormatter())
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def line(ax, value, text, look, *, va="bottom"):
    """A horizontal line with its name at its left end, where curves against tau leave room."""
    ax.axhline(value, **look)
    place = {"xycoords": ax.get_yaxis_transform(), "ha": "left", "va": va, "fontsize": 7.5}
    gap = {"xytext": (0, -5 if va == "top" else 1), "textcoords": "offset points"}
    ax.annotate(text, (0.02, value), **gap, **place)


PANELS = (
    ("gnc1", "GNC1"),
    ("gnc2", r"GNC2 $\;\rho(W)$"),
    ("gnc3", "GNC3"),
    ("train_accuracy", "training accuracy"),
)


def training(history, *, lines, hue="temperature", title=""):
    """GNC1, GNC2, GNC3 and accuracy against the epoch, one colour per ``hue``, bands over seeds.

    ``lines``: value -> text, levels in the panel of GNC2: ``rho*``, that of chance, one between.
    """
    figure, axes = style.grid(1, len(PANELS), width=2.5 * len(PANELS), height=2.9)
    values = list(history[hue].unique())
    colors = sns.color_palette(style.SEQUENTIAL, len(values))
    for ax, (column, text) in zip(axes, PANELS, strict=True):
        for color, marker, value in zip(colors, MARKERS * 2, values, strict=False):
            own = history[history[hue] == value].groupby("epoch")[column]
            label = f"{value:g}" if isinstance(value, float) else str(value)
            look = {"color": color, "marker": marker, "ms": 3.5, "label": label}
            ax.plot(own.mean(), **look)
            ax.fill_between(own.mean().index, own.min(), own.max(), color=color, alpha=0.15, lw=0)
        ax.set(xlabel="epoch", title=text)
        ax.set_xscale("symlog", linthresh=1)
        ax.xaxis.set_major_formatter("{x:.0f}")
    for ax, (column, _) in zip(axes, PANELS, strict=True):
        if column in ("gnc1", "gnc3"):
            ax.set_yscale("log")
    looks = {}, RANDOM | {"below": 9}, RANDOM | {"below": 2}
    for (value, text), look in zip(lines.items(), looks, strict=False):
        style.reference(axes[1], value, text, **look)
    axes[1].set_ylim(0, 1.12 * max(lines))
    name = r"temperature $\tau$" if hue == "temperature" else hue
    axes[-1].legend(title=name)
    return style.titled(figure, title)


def choices(final, by_dimension, *, model, floor, title=""):
    """What decides the margin of trained nets: temperature (three panels) and dimension.

    ``final``: last epoch, one row per temperature and seed; ``by_dimension``: the same per ``d``
    with ``reference`` and ``random``; ``model``: temperature, margin of the lowest minimum found;
    ``floor``: the smallest ETF error there is (claim 4.G9).
    """
    figure, axes = style.grid(1, 4, width=10.0, height=2.9)
    first = by_dimension[by_dimension["d"] == by_dimension["d"].iloc[0]].iloc[0]
    reference, random = first["reference"], first["random"]
    for ax, column, look in zip(axes, ("gnc2", "test_accuracy", "etf_error"), "os^", strict=False):
        ax.plot(final["temperature"], final[column], look, color=PALETTE[0], alpha=0.6)
        ax.plot(final.groupby("temperature")[column].mean(), "-", color=PALETTE[0])
        _temperatures(ax, sorted(final["temperature"].unique()))
        ax.set_xlabel(r"training temperature $\tau$")
    axes[0].plot(model["temperature"], model["margin"], "D-", ms=3, color=PALETTE[1])
    axes[0].annotate("model", (0.98, 0.82), xycoords="axes fraction", fontsize=7.5,
                     color=PALETTE[1], ha="right")  # fmt: skip
    line(axes[0], reference, r"best known $\rho^*$", THEORY)
    line(axes[0], random, "random $W$", RANDOM, va="top")
    axes[0].set(ylim=(0, 1.12 * reference), title=r"GNC2 $\;\rho(W)$")
    axes[1].set_title("test accuracy")
    line(axes[2], floor, "floor of any $W$", THEORY, va="top")
    axes[2].set(ylim=(0, 1.15 * max(final["etf_error"].max(), floor)), title="distance to the ETF")
    by = by_dimension.groupby("d").mean(numeric_only=True)
    axes[3].plot(by["reference"], label=r"best known $\rho^*$", **THEORY)
    axes[3].plot(by_dimension["d"], by_dimension["gnc2"], "o", color=PALETTE[0], label="nets")
    axes[3].plot(by["random"], label="random $W$", **RANDOM)
    axes[3].set(xlabel="feature dimension $d$", ylim=(0, 1.05), title=r"GNC2 $\;\rho(W)$")
    axes[3].legend(loc="lower right")
    return style.titled(figure, title)


def dots(table, by, panels, *, title="", levels=None, logs=()):
    """Every net as a dot, means as bars: one panel per column, one place per value of ``by``.

    ``panels``: column -> name; ``levels``: column -> (value, text) of a theory line.
    """
    names = list(table[by].unique())
    figure, axes = style.grid(1, len(panels), width=max(2.4 * len(panels), 7.0), height=2.9)
    for ax, (column, text) in zip(axes, panels.items(), strict=True):
        for i, name in enumerate(names):
            values = table[table[by] == name][column].to_numpy()
            spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
            ax.plot(i + spread, values, "o", color=PALETTE[i], ms=4.5, alpha=0.75)
            ax.plot([i - 0.25, i + 0.25], [values.mean()] * 2, color="k", lw=1.3)
        short = [str(name).replace(" ", "\n") for name in names]
        ax.set_xticks(range(len(names)), short, fontsize=7)
        ax.set(title=text, xlim=(-0.6, len(names) - 0.4))
        if column in logs:
            ax.set_yscale("log")
        elif "accuracy" in column:
            middle, reach = table[column].mean(), max(0.03, np.ptp(table[column]))
            ax.set_ylim(middle - reach, min(1.0, middle + reach))
        else:
            ax.set_ylim(0, None)
        for value, name in [levels[column]] if levels and column in levels else ():
            line(ax, value, name, THEORY)
            ax.set_ylim(0, 1.12 * value)
    return style.titled(figure, title)


def assignments(fixed, learned, orders, names, *, title=""):
    """Four classes on a square: the three placements, their test accuracy, and the learned ones.

    ``orders``: who is opposite class 0 -> order (class k on vertex order[k]); ``names``: classes.
    """
    figure = plt.figure(figsize=(9.5, 2.8))
    parts = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    texts = {other: f"{names[other]} opposite {names[0]}" for other in orders}
    colors = dict(zip(orders, PALETTE, strict=False))
    for ax, (other, order) in zip(parts[0].subplots(1, len(orders)), orders.items(), strict=True):
        _circle(ax)
        angles = np.pi / 2 * np.array(order) + np.pi / 4
        ax.scatter(np.cos(angles), np.sin(angles), s=60, color=colors[other], zorder=3)
        for angle, name in zip(angles, names, strict=True):
            place = 1.5 * np.cos(angle), 1.4 * np.sin(angle)
            ax.annotate(name, place, ha="center", va="center", fontsize=7.5)
        ax.set(xlim=(-1.7, 1.7), ylim=(-1.5, 1.5))
        ax.set_title(texts[other], loc="center", fontsize=8.5)
    left, right = parts[1].subplots(1, 2)
    for i, other in enumerate(orders):
        values = fixed[fixed["opposite"] == other]["test_accuracy"].to_numpy()
        spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
        left.plot(i + spread, values, "o", color=colors[other], ms=4, alpha=0.75)
        left.plot([i - 0.25, i + 0.25], [values.mean()] * 2, color="k", lw=1.5)
        right.bar(i, (learned["opposite"] == other).sum(), color=colors[other])
    for ax, text in ((left, "fixed: test accuracy"), (right, "learned: nets")):
        ax.set_xticks(range(len(orders)), [f"{names[o]}" for o in orders], fontsize=7.5)
        ax.set(title=text, xlabel=f"opposite {names[0]}")
    return style.titled(figure, title)


def large_margins(samples, table):
    """Distribution of ``dist_k``, and the certificate of each classifier."""
    figure, (left, right) = style.grid(1, 2, height=3.4)
    names = list(samples["classifier"].unique())
    bins = np.linspace(samples["distance"].min() * 0.98, samples["distance"].max() * 1.02, 45)
    rows = table.set_index("classifier").loc[names]
    for i, (color, name) in enumerate(zip(PALETTE, names, strict=False)):
        values, row = samples[samples["classifier"] == name]["distance"], rows.loc[name]
        left.hist(values, bins=bins, color=color, alpha=0.65, label=name, density=True)
        right.barh(i, row["lower"], color=color, alpha=0.8, height=0.5)
        right.plot([row["one_vs_one"]] * 2, [i - 0.25, i + 0.25], color="k", lw=1.5)
        text = rf"$\rho={row['lower']:.4f}$; {row['solved']:.0f} of {row['K']:.0f} solved exactly"
        right.annotate(text, (row["lower"], i - 0.34), fontsize=7.5, ha="right", va="bottom")
    left.set(xlabel=r"one-vs-rest distance $\mathrm{dist}_k$", ylabel="density", yscale="log")
    left.set_title("Where the margins of the classes lie")
    left.legend()
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.75)
    right.set(xlabel=r"certified margin $\rho(W)$   (black: $1-$max cosine)")
    right.set_title("Certified without solving every class")
    return figure
