"""Figures of result 4.  Each takes the tidy tables it draws and returns the figure."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D
from scipy.spatial import ConvexHull

from nclib.plots import style
from nclib.plots.style import GUIDE, MARKERS, PALETTE, THEORY


def gallery(table, *, columns=5):
    """Codes as points on the circle or sphere, coloured by their one-vs-rest distance."""
    names = list(table["code"].unique())
    figure = plt.figure(figsize=(9.0, 0.4 + 2.5 * -(-len(names) // columns)))
    for i, name in enumerate(names):
        part = table[table["code"] == name]
        rho = part["distance"].min()
        flat = part["dimension"].iloc[0] == 2
        ax = figure.add_subplot(
            -(-len(names) // columns), columns, i + 1, projection=None if flat else "3d"
        )
        (_polygon if flat else _sphere)(ax, part)
        loose = int(part["rattler"].sum())
        text = rf"$\rho={rho:.4f}$" + (f", {loose} rattler{'s' * (loose > 1)}" if loose else "")
        ax.set_title(f"{name}\n{text}", loc="center", fontsize=9)
        ax.set_axis_off()
    handles = [
        Line2D([], [], marker="o", ls="", color=PALETTE[0], label=r"$\mathrm{dist}_k=\rho$"),
        Line2D([], [], marker="*", ls="", ms=9, color=PALETTE[3], label=r"rattler"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    text = "Softmax codes: every class as far as possible from the hull of the others"
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)
    return figure


def _polygon(ax, part):
    angles = np.linspace(0, 2 * np.pi, 200)
    ax.plot(np.cos(angles), np.sin(angles), color="0.85", lw=1)
    x, y = part["x"].to_numpy(), part["y"].to_numpy()
    ax.plot(np.append(x, x[0]), np.append(y, y[0]), color="0.45", lw=0.9)
    ax.plot(x, y, "o", color=PALETTE[0], ms=6)
    ax.set_aspect("equal")


def _sphere(ax, part):
    points = part[["x", "y", "z"]].to_numpy()
    for i, j in _hull_edges(points):
        ax.plot(*points[[i, j]].T, color="0.45", lw=0.7)
    for loose, marker, size, color in ((False, "o", 26, PALETTE[0]), (True, "*", 110, PALETTE[3])):
        chosen = points[part["rattler"].to_numpy() == loose]
        ax.scatter(*chosen.T, marker=marker, s=size, color=color, depthshade=True)
    ax.set_box_aspect((1, 1, 1), zoom=1.2)
    ax.view_init(elev=18, azim=32)


def _hull_edges(points):
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


def known_margins(table, *, bounds_dimension=3):
    """Figure N2: left the best margin against K for each d; right the general bounds."""
    figure, (left, right) = style.grid(1, 2, height=3.5)
    for color, marker, (d, part) in zip(PALETTE, MARKERS, table.groupby("d"), strict=False):
        found = part[part["status"] == "tabulated"]
        proven = part[part["status"] == "proven"]
        left.plot(proven["K"], proven["margin"], color=color, marker=marker, ms=4, label=f"$d={d}$")
        left.plot(found["K"], found["margin"], color=color, marker=marker, ms=4, mfc="w", ls="")
    K = np.arange(2, table["K"].max() + 1)
    left.plot(K, K / (K - 1), **THEORY)
    left.annotate("simplex $K/(K-1)$", (4.0, 1.42), fontsize=7.5)
    left.annotate(r"$\rho^*=1$ for $d+2\leq K\leq 2d$", (9.5, 1.16), fontsize=7.5)
    left.set(xlabel="classes $K$", ylabel=r"largest margin $\rho^*(K,d)$", ylim=(0, 2.05))
    left.set_title("Filled: proven. Open: best code known")
    left.legend(ncols=2, loc="upper right")
    for color, d in ((PALETTE[0], 2), (PALETTE[1], bounds_dimension)):
        part = table[(table["d"] == d)].dropna(subset="margin")
        stated = table[(table["d"] == d) & table["stated"]]
        right.fill_between(stated["K"], stated["lower"], stated["upper"], color=color, alpha=0.15)
        right.plot(part["K"], part["margin"], color=color, marker="o", ms=3.5, label=f"$d={d}$")
        right.plot(stated["K"], stated["lower"], **THEORY)
        right.plot(stated["K"], stated["upper"], **THEORY)
    right.set(xlabel="classes $K$", ylabel=r"margin", xscale="log", yscale="log")
    right.xaxis.set_major_formatter("{x:.0f}")
    right.xaxis.set_minor_formatter(plt.NullFormatter())
    right.set_xticks([2, 5, 10, 20])
    right.set_title("General bounds: loose, the lower slope is right")
    right.legend(loc="lower left")
    return figure


def cold_limit(table):
    """Figure N3a: margin ratio, first-order slack with its predicted limit, value sandwich."""
    figure, axes = style.grid(1, 3, height=3.3)
    names = list(table["code"].unique())
    for color, marker, name in zip(PALETTE, MARKERS, names, strict=False):
        part = table[table["code"] == name]
        look = {"color": color, "marker": marker, "ms": 4}
        axes[0].plot(part["temperature"], 1 - part["margin_ratio"], label=name, **look)
        axes[1].plot(part["temperature"], part["slack"], **look)
        axes[1].axhline(part["slack_limit"].iloc[0], **(THEORY | {"lw": 0.9}))
        axes[2].plot(part["temperature"], part["value_rate"], **look)
        axes[2].axhline(part["value_limit"].iloc[0], **(THEORY | {"lw": 0.9}))
    axes[0].set(
        ylabel=r"$1-\rho(W_\tau)/\rho^*$", yscale="symlog", title="Margins approach the code"
    )
    axes[0].set_yscale("symlog", linthresh=1e-6)
    axes[1].set(ylabel=r"$(\rho^*-m)\,/\,\tau$", title="First order: predicted limit (dashed)")
    axes[2].set(ylabel=r"$(\tau\log\mathrm{CE}+\rho^*)\,/\,\tau$", title="Same for the value")
    for ax in axes:
        ax.set(xscale="log", xlabel=r"temperature $\tau$")
    place = {"loc": "center", "bbox_to_anchor": (0.5, 0.3), "ncols": 2}
    axes[1].legend(*axes[0].get_legend_handles_labels(), title="$(K,d)$", **place)
    return figure


def phases(energies, exchanges, minima, plateau):
    """Figure N3b: energies of explicit codes relative to the lowest; right: margin of the minimum.

    ``energies``: panel, family, temperature, scaled; ``exchanges``: panel -> temperature;
    ``minima``: temperature, margin_ratio; ``plateau``: ratio of the hot minimiser.
    """
    panels = list(energies["panel"].unique())
    figure, axes = style.grid(1, len(panels) + 1, height=3.3)
    for ax, panel in zip(axes, panels, strict=False):
        part = energies[energies["panel"] == panel]
        lowest = part.groupby("temperature")["scaled"].min()
        for color, (family, own) in zip(PALETTE, part.groupby("family", sort=False), strict=False):
            gap = own["scaled"].to_numpy() - lowest[own["temperature"]].to_numpy()
            ax.plot(own["temperature"], 1e3 * gap, color=color, label=family)
        ax.axvline(exchanges[panel], **THEORY)
        place = {"xycoords": ax.get_xaxis_transform(), "ha": "left", "va": "center"}
        text = rf" $\tau_c={exchanges[panel]:.4f}$"
        ax.annotate(text, (exchanges[panel], 0.6), fontsize=8, **place)
        ax.set(
            xscale="log", xlabel=r"temperature $\tau$", ylabel=r"$10^3\times$ gap in $\tau\log$CE"
        )
        ax.set_title(f"$(K,d)={panel}$: two codes exchange")
        ax.set_xticks([0.3, 0.5, 1.0], ["0.3", "0.5", "1"])
        ax.xaxis.set_minor_formatter(plt.NullFormatter())
        ax.legend(loc="upper right")
    ax = axes[-1]
    ax.plot(minima["temperature"], minima["margin_ratio"], "o-", color=PALETTE[0])
    _line(ax, plateau, "pentagonal bipyramid", THEORY)
    ax.set(
        xscale="log",
        xlabel=r"temperature $\tau$",
        ylabel=r"$\rho(W_\tau)/\rho^*$",
        ylim=(0.85, 1.01),
    )
    ax.set_title("(7, 3): hot and cold shapes differ")
    return figure


def _line(ax, value, text, look, *, va="bottom"):
    """A horizontal line with its name at its left end, where curves against tau leave room."""
    ax.axhline(value, **look)
    place = {"xycoords": ax.get_yaxis_transform(), "ha": "left", "va": va, "fontsize": 7.5}
    ax.annotate(text, (0.02, value), **place)


def training(history, *, reference, references=(), hue="temperature", title=""):
    """GNC1, GNC2, GNC3 and test accuracy against the epoch, one colour per ``hue``.

    ``reference``: ``rho*`` (dashed); ``references``: further (value, text) lines for GNC2.
    """
    figure, axes = style.grid(1, 4, width=10.0, height=2.9)
    values = list(history[hue].unique())
    colors = sns.color_palette(style.SEQUENTIAL, len(values))
    panels = (("gnc1", "GNC1"), ("gnc2", r"GNC2 $\;\rho(W)$"), ("gnc3", "GNC3"))
    panels += (("test_accuracy", "test accuracy"),)
    for ax, (column, text) in zip(axes, panels, strict=True):
        for color, marker, value in zip(colors, MARKERS * 2, values, strict=False):
            part = history[history[hue] == value]
            middle = part.groupby("epoch")[column].mean()
            look = {"color": color, "marker": marker, "ms": 3.5, "label": f"{value:g}"}
            ax.plot(middle.index, middle, **look)
            if part["seed"].nunique() > 1:
                spread = part.groupby("epoch")[column].agg(["min", "max"])
                ax.fill_between(spread.index, spread["min"], spread["max"], color=color, alpha=0.15)
        ax.set(xlabel="epoch", title=text)
    axes[0].set_yscale("log")
    axes[2].set_yscale("log")
    style.reference(axes[1], reference, r"best known $\rho^*$")
    for value, text in references:
        style.reference(axes[1], value, text, **(GUIDE | {"color": "0.4"}))
    axes[1].set_ylim(0, 1.12 * reference)
    axes[3].legend(title=r"temperature $\tau$" if hue == "temperature" else hue, loc="lower right")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def choices(final, by_dimension, *, random, floor):
    """What decides the margin of trained nets: temperature (three panels) and dimension.

    ``final``: last epoch, one row per temperature and seed; ``by_dimension``: the same per feature
    dimension ``d`` with ``reference`` and ``random``; ``random``: margin of a random classifier
    relative to ``rho*``; ``floor``: the smallest ETF error there is (claim 4.G9).
    """
    figure, axes = style.grid(1, 4, width=10.0, height=2.9)
    mean = final.groupby("temperature").mean(numeric_only=True).reset_index()
    axes[0].plot(mean["temperature"], mean["gnc2_ratio"], "o-", color=PALETTE[0])
    _line(axes[0], 1, r"best known $\rho^*$", THEORY)
    _line(axes[0], random, "random $W$", GUIDE | {"color": "0.4"}, va="top")
    axes[0].set(ylabel=r"GNC2 $/\,\rho^*$", ylim=(0, 1.12), title="The margin has a best $\\tau$,")
    axes[1].plot(mean["temperature"], mean["test_accuracy"], "s-", color=PALETTE[2])
    axes[1].set(ylabel="test accuracy", title="so has test accuracy;")
    axes[2].plot(mean["temperature"], mean["etf_error"], "^-", color=PALETTE[3])
    _line(axes[2], floor, "floor of any $W$", THEORY, va="top")
    high = max(mean["etf_error"].max(), floor + 0.01)
    axes[2].set(ylabel="ETF error (NC2)", title="the ETF error is blind")
    axes[2].set_ylim(floor - 0.2 * (high - floor), high + 0.4 * (high - floor))
    for ax in axes[:3]:
        ax.set(xscale="log", xlabel=r"training temperature $\tau$")
    mean = by_dimension.groupby("d").mean(numeric_only=True).reset_index()
    axes[3].plot(mean["d"], mean["reference"], label=r"best known $\rho^*$", **THEORY)
    axes[3].plot(mean["d"], mean["gnc2"], "o-", color=PALETTE[0], label="trained nets")
    axes[3].plot(mean["d"], mean["random"], label="random $W$", **(GUIDE | {"color": "0.4"}))
    axes[3].set(xlabel="feature dimension $d$", ylabel=r"GNC2 $\;\rho(W)$", ylim=(0, 1.05))
    axes[3].set_title("It grows with $d$")
    axes[3].legend(loc="lower right")
    return figure


def assignments(table, orders, names):
    """Test accuracy of fixed classifiers on a square: who is opposite whom decides.

    ``orders``: assignment -> order (class k on vertex order[k]); ``names``: class names.
    """
    figure = plt.figure(figsize=(9.0, 2.8))
    parts = figure.subfigures(1, 2, width_ratios=(1.5, 1))
    labels = list(orders)
    opposite = [f"{names[int(label[0])]} opposite {names[0]}" for label in labels]
    axes = parts[0].subplots(1, len(labels))
    for ax, color, label, text in zip(axes, PALETTE, labels, opposite, strict=False):
        angles = np.pi / 2 * np.array(orders[label]) + np.pi / 4
        x, y = np.cos(angles), np.sin(angles)
        ax.plot(np.cos(np.linspace(0, 7, 200)), np.sin(np.linspace(0, 7, 200)), color="0.85", lw=1)
        ax.scatter(x, y, s=60, color=color, zorder=3)
        for a, b, name in zip(x, y, names, strict=True):
            ax.annotate(name, (1.5 * a, 1.4 * b), ha="center", va="center", fontsize=7.5)
        ax.set(xlim=(-1.7, 1.7), ylim=(-1.5, 1.5), aspect="equal")
        ax.set_title(text, loc="center", fontsize=8.5)
        ax.set_axis_off()
    ax = parts[1].subplots()
    colors = dict(zip(labels, PALETTE, strict=False))
    for i, label in enumerate(labels):
        values = table[table["assignment"] == label]["test_accuracy"].to_numpy()
        jitter = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else np.zeros(1)
        ax.plot(i + jitter, values, "o", color=colors[label], ms=4, alpha=0.75)
        ax.plot([i - 0.25, i + 0.25], [values.mean()] * 2, color="k", lw=1.5)
    ax.set_xticks(
        range(len(labels)), [text.replace(" opposite ", "\nopposite ") for text in opposite]
    )
    ax.set(ylabel="test accuracy", xlim=(-0.5, len(labels) - 0.5))
    ax.set_title("Similar classes opposite: worst")
    return figure


def classifiers(table):
    """Learned against class-mean classifiers: accuracy, GNC1, GNC2 ratio."""
    figure, axes = style.grid(1, 3, height=2.9)
    names = list(table["classifier"].unique())
    short = [
        "learned" if n == "learned" else n.replace("class means, momentum", "CMF") for n in names
    ]
    panels = (
        ("test_accuracy", "test accuracy"),
        ("gnc1", "GNC1"),
        ("gnc2_ratio", r"GNC2 $/\,\rho^*$"),
    )
    for ax, (column, text) in zip(axes, panels, strict=True):
        for i, name in enumerate(names):
            values = table[table["classifier"] == name][column].to_numpy()
            ax.plot(np.full(len(values), i), values, "o", color=PALETTE[i], ms=4.5, alpha=0.8)
            ax.plot([i - 0.25, i + 0.25], [values.mean()] * 2, color="k", lw=1.3)
        ax.set_xticks(range(len(names)), short, fontsize=7)
        ax.set(title=text, xlim=(-0.6, len(names) - 0.4))
    middle = table["test_accuracy"].mean()
    axes[0].set_ylim(middle - 0.03, min(1.0, middle + 0.03))
    axes[1].set(yscale="log", ylim=(table["gnc1"].min() / 10, table["gnc1"].max() * 10))
    axes[2].set_ylim(0, 1.1)
    _line(axes[2], 1, r"best known $\rho^*$", THEORY)
    text = "Class means in place of a learned classifier: same accuracy, same margin"
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)
    return figure


def large_margins(samples, table):
    """Figure N8: distribution of ``dist_k``, and the certificate of each classifier."""
    figure, (left, right) = style.grid(1, 2, height=3.4)
    names = list(samples["classifier"].unique())
    bins = np.linspace(samples["distance"].min() * 0.98, samples["distance"].max() * 1.02, 45)
    for color, name in zip(PALETTE, names, strict=False):
        values = samples[samples["classifier"] == name]["distance"]
        left.hist(values, bins=bins, color=color, alpha=0.65, label=name, density=True)
    left.set(xlabel=r"one-vs-rest distance $\mathrm{dist}_k$", ylabel="density", yscale="log")
    left.set_title("Where the margins of the classes lie")
    left.legend()
    rows = table.set_index("classifier").loc[names]
    for i, (color, name) in enumerate(zip(PALETTE, names, strict=False)):
        row = rows.loc[name]
        right.barh(i, row["lower"], color=color, alpha=0.8, height=0.5)
        right.plot([row["one_vs_one"]] * 2, [i - 0.25, i + 0.25], color="k", lw=1.5)
        text = rf"$\rho={row['lower']:.4f}$; {row['solved']:.0f} of {row['K']:.0f} solved exactly"
        right.annotate(text, (row["lower"], i - 0.34), fontsize=7.5, ha="right", va="bottom")
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.75)
    right.set(xlabel=r"certified margin $\rho(W)$   (black: $1-$max cosine)")
    right.set_title("Certified without solving every class")
    return figure


def language(history):
    """Collapse of a language model over training, with the margin of a random head."""
    figure, axes = style.grid(1, 4, width=10.0, height=2.9)
    heads = list(history["head"].unique())
    for color, marker, head in zip(PALETTE, MARKERS, heads, strict=False):
        part = history[history["head"] == head]
        x = part["epoch"]
        look = {"color": color, "marker": marker, "ms": 3.5}
        axes[0].plot(x, part["gnc1"], label=head, **look)
        axes[1].plot(x, part["gnc3_centered"], **look)
        axes[2].plot(x, part["gnc2"], **look)
        axes[3].plot(x, part["agreement"], **look)
    _line(axes[2], history["gnc2_random"].iloc[0], "random head", THEORY)
    titles = ("GNC1", "GNC3 (centred)", r"GNC2 $\;\rho(W)$", "NCC agreement")
    text = "Next-word prediction: features and classifier align, the margin does not grow"
    figure.suptitle(text, x=0.01, ha="left", fontsize=10)
    for ax, text in zip(axes, titles, strict=True):
        ax.set(xlabel="epoch", title=text)
        ax.set_xscale("symlog", linthresh=1)
        ax.xaxis.set_major_formatter("{x:.0f}")
    axes[0].set_yscale("log")
    axes[2].set_ylim(0, 1.25 * history[["gnc2", "gnc2_random"]].to_numpy().max())
    axes[0].legend(title="head", loc="lower left")
    return figure
