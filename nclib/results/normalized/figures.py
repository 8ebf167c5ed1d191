"""Figures of result 2.  Each takes the tidy tables it draws and returns the figure.

Pictures of the sphere are orthographic projections: quick enough to be frames of an animation.
"""

from pathlib import Path

import numpy as np
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

from nclib import files
from nclib.plots import style
from nclib.plots.panels import heatmaps, lines
from nclib.plots.style import PALETTE, THEORY, scales

# One colour per way of training, in every figure.
MODE_COLORS = {"normalized": PALETTE[0], "hybrid": PALETTE[1], "regularized": PALETTE[2]}
MODE_LOOKS = dict(zip(MODE_COLORS, zip(MODE_COLORS.values(), "os^", strict=True), strict=True))
METRICS = {"nc1": "NC1", "nc2": "NC2", "nc3": "NC3"}
PLAIN = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]
TURNS = [-180, -90, 0, 90, 180]


def _color(name):
    return next(c for key, c in MODE_COLORS.items() if name.startswith(key))


# The model --------------------------------------------------------------------------------------


def _band(ax, table, column, **look):
    """Median and range over the seeds of paths of different length, each held at its end."""
    table = table.assign(step=table["iteration"] + 1, value=table[column].clip(lower=1e-16))
    grid = np.geomspace(1, table["step"].max(), 60)
    paths = [
        np.interp(np.log(grid), np.log(part["step"]), np.log(part["value"]))
        for _, part in table.groupby("seed")
    ]
    middle, low, high = np.exp([np.median(paths, 0), np.min(paths, 0), np.max(paths, 0)])
    ax.plot(grid, middle, **look)
    ax.fill_between(grid, low, high, color=look["color"], alpha=0.2, lw=0)


def convergence(history, race, title):
    """Figure 1: solvers on both problems from the same starts, and gradient descent on all three.

    ``history``: problem, method, seed, iteration, gap, gradient_norm, nc1, nc2, nc3 (median and
    range over seeds); ``race``: name, scale, seed, steps; ``title`` of the race.
    """
    figure, axes = style.grid(1, 4, width=11, height=2.9)
    history = history.assign(worst=history[list(METRICS)].max(axis=1))
    panels = {"gap": "$f - f^*$", "gradient_norm": "gradient norm", "worst": "max(NC1, NC2, NC3)"}
    for (problem, method), part in history.groupby(["problem", "method"], sort=False):
        look = {"color": _color(problem), "label": f"{problem}: {method}"}
        look["ls"] = "-" if method == "trust-region" else "--"
        for ax, column in zip(axes, panels, strict=False):
            _band(ax, part, column, **look)
    for ax, label in zip(axes, panels.values(), strict=False):
        scales(ax, "xy")
        ax.set(xlabel="iteration + 1", ylabel=label)
    axes[0].set_title("Two solvers, both problems")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=2)
    lines(axes[3], race.replace(np.inf, np.nan), "scale", "steps", by="name", looks=MODE_LOOKS,
          labels={name: name for name in MODE_LOOKS}, log="y", title=title,
          xlabel=r"effective scale $\|w\|\|h\|$", ylabel="steps to NC1–3 < 0.01")  # fmt: skip
    scales(axes[3], "", {"y": [30, 100, 300, 1000]})
    figure.legend(*axes[3].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


def conditioning(table, closed, title):
    """Condition number at the matched minima.  ``table``: name, scale, kappa; ``closed``: scale,
    kappa of the normalized problem."""
    figure, ax = style.grid(1, 1, width=4.5, height=3.0)
    lines(ax, table, "scale", "kappa", by="name", looks=MODE_LOOKS, log="xy", points=True,
          xlabel=r"effective scale $\|w\|\|h\|$", ylabel=r"condition number $\kappa$")  # fmt: skip
    ax.plot(closed["scale"], closed["kappa"], label="closed form", **THEORY)
    scales(ax, "", {"x": PLAIN, "y": [5, 10, 30, 100, 300]})
    ax.axvline(1, **style.GUIDE)
    ax.set_title(title)
    ax.legend()
    return figure


def spectrum(table, blocks, rates, curve):
    """Figure 2: Hessian at the minimum, its rate of descent, and what block steps do to it.

    ``table``: scale, index, measured, theory; ``rates``: scale, measured, predicted; ``curve``:
    scale, predicted on a finer grid; ``blocks``: n, block, iterations.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=9.8, height=3.0)
    labels = {scale: rf"$\tau={scale:g}$" for scale in table["scale"].unique()}
    lines(left, table, "index", "measured", by="scale", labels=labels, theory="theory", points=True,
          ylabel="eigenvalue", title="The whole Hessian; dashed: closed form")  # fmt: skip
    for line in left.lines:
        line.set(markersize=2.5, linewidth=0.8)
    left.legend(markerscale=2)
    lines(middle, rates, "scale", "measured", points=True, xlabel=r"scale $\tau$",
          ylabel="contraction per gradient step",
          title="Speed of descent; dashed: predicted")  # fmt: skip
    middle.plot(curve["scale"], curve["predicted"], **THEORY)
    names = {False: "one step size", True: "features $n$ times as fast"}
    lines(right, blocks, "n", "iterations", by="block", labels=names, log="xy",
          xlabel="samples per class $n$", ylabel="steps to $f-f^*<10^{-10}$",
          title="One step size, and block steps")  # fmt: skip
    scales(right, "", {"x": sorted(blocks["n"].unique()), "y": [20, 50, 100, 200, 500]})
    right.legend()
    return figure


def saddles(table, escapes, best, title):
    """Figure 3: the zoo of critical points and how fast descent leaves one.

    ``table``: name, value, predicted, measured; ``escapes``: size, iteration, gradient_norm,
    predicted; ``best``: global minimum.
    """
    figure, (left, middle, right) = style.grid(
        1, 3, width=9.8, height=3.0, width_ratios=[1, 1, 1.15]
    )
    rows = np.arange(len(table))
    left.barh(rows, table["value"], color=PALETTE[0], height=0.6)
    left.axvline(best, label="global minimum $f^*$", **THEORY)
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    left.set_yticks(rows, table["name"], fontsize=7.5)
    left.set(xlabel="loss", title="Critical, not minimal …")
    middle.barh(rows, table["measured"], color=PALETTE[3], height=0.6, label="measured")
    middle.plot(table["predicted"], rows, "k|", ms=13, mew=1.6, label="closed form")
    middle.axvline(0, color="0.3", lw=0.8)
    middle.set_yticks(rows, [""] * len(rows))
    middle.set(xlabel=r"smallest Hessian eigenvalue $\lambda_{\min}$", title=title)
    middle.legend(loc="lower left")
    for ax in (left, middle):
        ax.set_ylim(len(table) + 1.0, -0.6)
    names = {size: f"start {size:g} away" for size in escapes["size"].unique()}
    lines(right, escapes, "iteration", "gradient_norm", by="size", labels=names, log="y",
          theory="predicted", xlabel="gradient step", ylabel="gradient norm",
          title="Escape; dashed: predicted")  # fmt: skip
    for line in right.lines:
        line.set_marker("")
    right.legend(loc="lower right")
    return figure


def bound(table, limit, title):
    """Figure 12: curvature of non-minimal critical points against the scale.

    ``table``: name, scale, low (``λ_min`` over the scale); ``limit``: the published bound.
    """
    figure, ax = style.grid(1, 1, width=6.5, height=3.3)
    table = table.assign(depth=-table["low"])
    lines(ax, table, "scale", "depth", by="name", log="xy", xlabel=r"scale $\tau$",
          ylabel=r"$-\lambda_{\min}/\tau$", title=title)  # fmt: skip
    for line in ax.lines:
        line.set_markersize(3)
    ax.set_ylim(1e-14, 2)
    ax.axvline(limit, label="published bound,\nquoted second hand", **THEORY)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _heat(ax, table, y, levels):
    grid = table.pivot(index=y, columns="offset", values="excess")
    where = grid.columns, grid.index, grid.to_numpy().clip(levels[0], levels[-1])
    norm = LogNorm(levels[0], levels[-1])
    return ax.contourf(*where, levels=levels, cmap=style.SEQUENTIAL, norm=norm, antialiased=False)


def landscape(sphere_map, radial, wells, K, norm, title):
    """Figure 4: a slice of the normalized and of the penalised problem, and one sample alone.

    ``sphere_map``: turn, offset, excess (over the minimum); ``radial``: radius, offset, excess;
    ``wells``: scale, angle, value; ``norm``: feature norm at the penalised minimum.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=10.2, height=3.1)
    levels, about = np.geomspace(0.01, 10, 19), r"feature minus classifier $\psi$ [°]"
    _heat(left, sphere_map, "turn", levels)
    left.plot([0, 0], [120, -120], "w*", ms=11, mec="k", mew=0.6)
    left.axhline(0, color="w", lw=0.8, ls=":")
    left.annotate("total collapse: critical, no minimum", (-172, 7), color="w", fontsize=7.5)
    left.set(xlabel=about, ylabel=r"turn per class $\varphi$ [°]", xticks=TURNS)
    left.set(yticks=[-120, 0, 120], title="On the circle: two minima (stars)")
    image = _heat(middle, radial, "radius", levels)
    middle.plot([0], [norm], "w*", ms=11, mec="k", mew=0.6)
    middle.set(xlabel=about, ylabel=r"feature norm $\|h\|$", xticks=TURNS)
    middle.set_title("Norm free and penalised: one more direction")
    bar = figure.colorbar(image, ax=[left, middle], label="loss above its minimum")
    bar.set_ticks([0.01, 0.1, 1, 10], labels=["0.01", "0.1", "1", "10"])
    for (scale, part), color in zip(wells.groupby("scale"), PALETTE, strict=False):
        right.plot(part["angle"], part["value"] / scale, color=color, label=rf"$\tau={scale:g}$")
        end = part.iloc[[0, -1]]
        right.plot(end["angle"], end["value"] / scale, "v" if scale > K - 1 else "^", color=color)
    right.set(xlabel="feature to its classifier [°]", ylabel=r"loss of one sample $/\,\tau$")
    right.set(xticks=TURNS, title=title)
    right.legend(loc="upper center", title="▽ well at the antipode, △ top", title_fontsize=7)
    return figure


def temperature(theory, budget, nets, marks, predicted, titles):
    """Figure 6: the scale decides the curvature, and the curvature the collapse.

    ``theory``: K, scale, low, kappa; ``budget``: scale, nc1, nc2, nc3 of the model; ``nets``: the
    same per seed; ``marks``: K -> best scales (curvature, conditioning); ``predicted``: best scale
    for the model's and for the networks' sizes; ``titles`` of the model and the networks.
    """
    figure, axes = style.grid(2, 2, width=9.0, height=2.9)
    names = {K: f"$K={K}$" for K in marks}
    what = {"low": r"smallest positive eigenvalue $\lambda^+_{\min}$"}
    what["kappa"] = r"condition number $\kappa$"
    for i, (ax, (column, label)) in enumerate(zip(axes[0], what.items(), strict=True)):
        lines(ax, theory, "scale", column, by="K", labels=names, log="xy", ylabel=label,
              guides=[best[i] for best in marks.values()], xlabel=r"scale $\tau$")  # fmt: skip
        for line in ax.lines:
            line.set_marker("")
    axes[0, 0].set_ylim(theory["low"].max() * 1e-7, theory["low"].max() * 4)
    axes[0, 0].set_title("Curvature: one best scale (dotted) per $K$")
    axes[0, 1].set_title("Conditioning: another one")
    axes[0, 0].legend(loc="lower left")
    for ax, table, title, mark in zip(axes[1], (budget, nets), titles, predicted, strict=True):
        tall = table.melt("scale", list(METRICS), "metric")
        lines(ax, tall, "scale", "value", by="metric", labels=METRICS, floor=1e-16)
        ax.axvline(mark, label="predicted", **THEORY)
        scales(ax, "xy", {"x": PLAIN})
        ax.set(xlabel=r"scale $\tau$", ylabel="after a fixed budget", title=title)
    axes[1, 1].legend(loc="lower right")
    return figure


def dimensions(table):
    """Figure 9: gap to f* and NC2 against its floor.  ``table``: K, d, gap, nc2, nc2_floor."""
    figure, (left, right) = style.grid(1, 2, height=3.3, width=9.5)
    names = {K: f"$K={K}$" for K in table["K"].unique()}
    lines(left, table, "d", "gap", by="K", labels=names, log="y", floor=1e-16,
          guides=[K - 1 for K in names], xlabel="dimension $d$", ylabel="$f-f^*$",
          title="Distance to $f^*$; dotted: $d = K-1$")  # fmt: skip
    left.set_xticks(sorted(table["d"].unique()))
    table, ratio = table.assign(ratio=table["d"] / (table["K"] - 1)), np.linspace(0.1, 1, 200)
    lines(right, table, "ratio", "nc2", by="K", labels=names, points=True, xlabel="$d/(K-1)$",
          ylabel="NC2 of the classifier", title="NC2 and its floor")  # fmt: skip
    right.plot([*ratio, 1.5], [*np.sqrt(2 - 2 * np.sqrt(ratio)), 0], label="floor", **THEORY)
    right.set(xlim=(0.2, 1.35))
    left.legend()
    right.legend()
    return figure


def spurious(table, point, labels, value):
    """Figure 10: where random starts end in d = 2 and 3, and the false minimum on the circle.

    ``table``: n, d, value; ``point``: ``features`` and ``weight`` of the false minimum, or None.
    """
    figure, axes = style.grid(1, 3, width=9.8, height=3.0, width_ratios=[1, 1, 0.8])
    bins = np.linspace(-0.02, 0.52, 19)
    for ax, (n, part) in zip(axes, table.groupby("n"), strict=False):
        ends = [part.loc[part["d"] == d, "value"] for d in (3, 2)]
        shares = [np.full(len(own), 1 / len(own)) for own in ends]
        colors, names = [PALETTE[0], PALETTE[3]], ["$d=3$", "$d=2$"]
        ax.hist(ends, bins, weights=shares, color=colors, label=names)
        ax.set(xlabel="final loss", ylabel="share of starts", ylim=(0, 1.05))
        ax.set_title(f"Where starts end, $K=3$, $n={n}$")
        ax.legend()
    axes[2].axis("off")
    if point is not None:
        _circle(axes[2], point["features"], point["weight"], labels, size=90)
        axes[2].set_title(f"The false minimum, $f={value:.4f}$\n(dots: features)")
    return figure


def imbalance(grams, table):
    """Figure 11: Gram matrices of W at imbalanced minima.  ``table``: counts, certificate, nc2."""
    rows = table.itertuples()
    named = {f"{row.counts}\nNC2 = {row.nc2:.2f}": g for row, g in zip(rows, grams, strict=True)}
    return heatmaps(named, label="cosine of classifier rows", digits=2, width=9.0)


# Networks ---------------------------------------------------------------------------------------


def _net_looks(curves, strong):
    """Label -> its line: colour by mode; scales other than 1 dotted (lighter if not
    ``strong``), matched penalties dashed."""
    looks, others = {}, sorted(set(curves["scale"]) - {strong, 1.0})
    tints = dict(zip(others, sns.light_palette(PALETTE[0], len(others) + 2)[1:-1], strict=True))
    for label, part in curves.groupby("label", sort=False):
        name, scale = part["name"].iloc[0], part["scale"].iloc[0]
        looks[label] = {"color": MODE_COLORS[name], "lw": 1.5, "ls": "-"}
        if name == "normalized" and scale != 1:
            looks[label] |= {"ls": ":", "lw": 1.8, "color": tints.get(scale, MODE_COLORS[name])}
        elif "matched" in label:
            looks[label]["ls"] = "-."
    return looks


def network_curves(curves, floors, titles, *, strong):
    """Figure 7: collapse, loss, effective scale and accuracy against epochs, per way of training.

    ``curves``: label, name, scale, seed, epoch and metrics (mean and range over seeds); ``floors``:
    scale -> lowest possible loss; ``titles``: of single panels; ``strong``: the matched scale.
    """
    figure, axes = style.grid(2, 3, width=9.5, height=2.5, sharex=True)
    panels = METRICS | {"loss": "cross-entropy", "effective_scale": r"scale $\|w\|\|h\|$"}
    panels["test_accuracy"] = "test accuracy [%]"
    curves = curves[curves["epoch"] > 0]
    for label, look in _net_looks(curves, strong).items():
        own = curves[curves["label"] == label].groupby("epoch")
        for ax, column in zip(axes.flat, panels, strict=True):
            values = own[column].agg(["mean", "min", "max"])
            ax.plot(values.index, values["mean"], label=label.replace("τ", r"$\tau$"), **look)
            ax.fill_between(
                values.index, values["min"], values["max"], color=look["color"], alpha=0.15, lw=0
            )
    last = curves["epoch"].max()
    for ax, (column, label) in zip(axes.flat, panels.items(), strict=True):
        scales(ax, "x" if column in ("loss", "test_accuracy") else "xy")
        ax.set(ylabel=label, title=titles.get(column, ""))
    for scale, value in floors.items():
        style.reference(axes[1, 0], value, rf"lowest possible, $\tau={scale:g}$", below=3)
    top = min(2.4, axes[1, 0].get_ylim()[1])
    axes[1, 0].set_ylim(-top / 8, top)
    axes[1, 2].set_ylim(curves["test_accuracy"].max() - 9, None)
    for ax in axes.flat:
        ticks = {"x": [e for e in (1, 2, 5, 10, 20, 50, 100, 200, 500) if e <= last]}
        scales(ax, "", ticks if ax in axes[1, [0, 2]] else ticks | {"y": PLAIN})
    if axes[1, 1].get_ylim()[0] > 0.1:  # otherwise these would crowd
        scales(axes[1, 1], "", {"y": [0.2, 0.5, 1, 2, 3, 5, 7, 10]})
    for ax in axes[1]:
        ax.set_xlabel("epoch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def generalization(final, title):
    """Figure 13: test accuracy and collapse on test data at the end, every seed as a dot.

    ``final``: label, name, seed, test_accuracy, test_nc1, test_nc3.
    """
    panels = {"test_accuracy": "test accuracy [%]", "test_nc1": "NC1 on test data"}
    panels["test_nc3"] = "NC3 on test data"
    figure, axes = style.grid(1, 3, width=9.8, height=2.7, sharey=True)
    names = list(final["label"].unique())
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        for i, name in enumerate(names):
            own = final[final["label"] == name]
            ax.plot(own[column], [i] * len(own), "o", color=_color(name), alpha=0.7)
            ax.plot(own[column].mean(), i, "k|", ms=11)
        ax.set(xlabel=label, yticks=range(len(names)), yticklabels=names)
    axes[0].invert_yaxis()
    axes[0].set_title(title)
    return figure


def width(final, title):
    """Figure 8: random labels against width, true ones beside them.

    ``final``: width, seed, labels (true or random), nc1, nc2, nc3, train_accuracy.
    """
    panels = METRICS | {"train_accuracy": "training accuracy [%]"}
    figure, axes = style.grid(1, 4, width=10.5, height=2.8)
    looks = {"random": (PALETTE[3], "o"), "true": (PALETTE[0], "s")}
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        log = "x" if column == "train_accuracy" else "xy"
        lines(ax, final, "width", column, by="labels", looks=looks, log=log, xlabel="width",
              ylabel=label)  # fmt: skip
        widths = {"x": sorted(final["width"].unique())}
        scales(ax, "", widths if log == "x" else widths | {"y": PLAIN})
    axes[0].set_title(title)
    axes[-1].legend(title="labels")
    return figure


# Spheres ----------------------------------------------------------------------------------------


def _circle(ax, features, weight, labels, *, size=14):
    """Features (dots) and classifiers (rays) in the plane."""
    angle = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(angle), np.sin(angle), color="0.75", lw=0.8, zorder=1)
    colors = np.array(PALETTE)[np.asarray(labels) % len(PALETTE)]
    ax.scatter(*np.asarray(features).T, c=colors, s=size, alpha=0.6, lw=0, zorder=3)
    for k, w in enumerate(np.asarray(weight)):
        ax.plot([0, w[0]], [0, w[1]], color=PALETTE[k % len(PALETTE)], lw=1.4, zorder=2)
        ax.plot(*w, marker="D", color=PALETTE[k % len(PALETTE)], mec="k", mew=0.5, ms=5, zorder=4)
    reach = 1.15 * max(1.0, np.abs(features).max(), np.abs(weight).max())
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.axis("off")


def modes(films, titles, notes):
    """Figure 5a: last epoch of networks with two-dimensional features, one per way of training.

    ``films``: tables of :func:`nets.film`; ``notes`` stand below the pictures.
    """
    figure, axes = style.grid(1, len(films), width=8.5, height=3.3)
    for ax, film, title, note in zip(axes, films, titles, notes, strict=True):
        frames, labels, _ = _frames(film)
        _circle(ax, *frames[max(frames)], labels, size=12)
        ax.set_title(title, loc="center")
        ax.text(0.5, -0.03, note, transform=ax.transAxes, ha="center", va="top", fontsize=8.5)
    return figure


def camera(weight, turn=25.0):
    """A ``(3, 3)`` view (right, up, towards the eye) that shows final classifiers ``(K, 3)`` well.

    The first classifier points up; then the view turns by ``turn`` degrees and tilts a little.
    """
    weight = np.asarray(weight, float)
    up = weight[0] / np.linalg.norm(weight[0])
    eye = weight[1] - up * (up @ weight[1])
    eye /= np.linalg.norm(eye)
    frame = np.stack([np.cross(up, eye), up, eye])
    a, b = np.radians(turn), np.radians(18)
    about_up = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    about_right = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_right @ about_up @ frame


def _great_circles():
    """Three orthogonal great circles as polylines ``(3, 181, 3)``."""
    angle = np.linspace(0, 2 * np.pi, 181)
    c, s, o = np.cos(angle), np.sin(angle), np.zeros_like(angle)
    return np.stack([np.stack(t, 1) for t in ((c, s, o), (c, o, s), (o, c, s))])


class Globe:
    """Unit features and classifiers on a circle or a sphere, redrawn cheaply for each frame."""

    def __init__(self, ax, labels, num_classes, dim, *, size=16.0):
        self.dim, self.size = dim, size
        self.colors = np.array(PALETTE)[np.asarray(labels) % len(PALETTE)]
        angle = np.linspace(0, 2 * np.pi, 361)
        if dim == 3:
            ax.fill(np.cos(angle), np.sin(angle), color="0.96", zorder=0)
        ax.plot(np.cos(angle), np.sin(angle), color="0.6", lw=0.8, zorder=1)
        self.circles = LineCollection([], colors="0.85", linewidths=0.6, zorder=1)
        self.edges = LineCollection([], colors="0.35", linewidths=0.8, zorder=2)
        self.rays = LineCollection([], linewidths=1.4, zorder=3, colors=PALETTE[:num_classes])
        for collection in (self.circles, self.edges, self.rays):
            ax.add_collection(collection)
        start = np.zeros((len(self.colors), 2))
        self.dots = ax.scatter(*start.T, s=size, lw=0, zorder=4)
        self.tips = ax.scatter(
            *np.zeros((2, num_classes)),
            s=3 * size,
            marker="D",
            c=PALETTE[:num_classes],
            edgecolors="k",
            linewidths=0.6,
            zorder=5,
        )
        self.title = ax.set_title(" ", loc="center")
        ax.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12), aspect="equal")
        ax.axis("off")

    def draw(self, features, weight, view=None, title=""):
        """Show unit rows ``features (N, dim)`` and ``weight (K, dim)``; returns nothing."""
        features, weight = np.asarray(features), np.asarray(weight)
        depth = np.ones(len(features))
        if self.dim == 3:
            features, weight = features @ view.T, weight @ view.T
            depth = features[:, 2]
            circles = _great_circles() @ view.T
            self.circles.set_segments([c[:, :2] for c in circles])
        order = np.argsort(depth)
        rgba = np.column_stack([self.colors, np.where(depth > 0, 0.85, 0.25)])[order]
        self.dots.set_offsets(features[order, :2])
        self.dots.set_facecolors(rgba)
        flat, origin = weight[:, :2], np.zeros(2)
        self.tips.set_offsets(flat)
        self.rays.set_segments([[origin, w] for w in flat])
        pairs = [(i, j) for i in range(len(flat)) for j in range(i)]
        if self.dim == 2:  # neighbours only: the polygon
            turn = np.argsort(np.arctan2(flat[:, 1], flat[:, 0]))
            pairs = list(zip(turn, np.roll(turn, 1), strict=True))
        self.edges.set_segments([[flat[i], flat[j]] for i, j in pairs])
        self.title.set_text(title)


def _frames(film):
    """epoch -> (features, weight) of a film, and the labels and dimension."""
    columns = [c for c in film.columns if c.startswith("x") and film[c].notna().any()]
    frames = {}
    for epoch, part in film.groupby("epoch"):
        points = {kind: p for kind, p in part.groupby("kind")}
        frames[epoch] = tuple(points[k][columns].to_numpy() for k in ("feature", "classifier"))
    first = film[(film["epoch"] == film["epoch"].min()) & (film["kind"] == "feature")]
    return frames, first["label"].to_numpy(), len(columns)


def collapse(films, epochs, captions):
    """Figure 5b: small multiples over epochs, one captioned row per film (circle or sphere)."""
    figure, axes = style.grid(len(films), len(epochs), width=8, height=8 / len(epochs) + 0.2)
    for row, film, caption in zip(np.atleast_2d(axes), films, captions, strict=True):
        middle = {"rotation": 90, "va": "center", "ha": "center"}
        row[0].text(-0.08, 0.5, caption, transform=row[0].transAxes, fontsize=8.5, **middle)
        frames, labels, dim = _frames(film)
        final = frames[max(frames)][1]
        view = camera(final) if dim == 3 else None
        for ax, epoch in zip(row, epochs, strict=True):
            globe = Globe(ax, labels, len(final), dim, size=9)
            globe.draw(*frames[epoch], view, f"step {epoch}")
    return figure


def animate(films, path, *, captions):
    """Write the films side by side as an animated GIF that loops; returns its size in bytes.

    All films share the epochs of the first.  Spheres turn by 50 degrees in eight seconds; the last
    frame rests for two.  128 colours, no dithering: below one megabyte, equal bytes for
    equal input.
    """
    taken = [_frames(film) for film in films]
    epochs = sorted(taken[0][0])
    figure = Figure(figsize=(6.4, 6.4 / len(films) + 0.35), dpi=90, layout="none")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(films), squeeze=False)[0]
    figure.subplots_adjust(0.01, 0.07, 0.99, 0.88, wspace=0.02)
    globes = []
    for ax, (frames, labels, dim), caption in zip(axes, taken, captions, strict=True):
        globes.append(Globe(ax, labels, len(frames[epochs[-1]][1]), dim, size=13))
        ax.text(0.5, -0.04, caption, ha="center", transform=ax.transAxes, fontsize=9)
    heading = figure.suptitle(" ", y=0.97, fontsize=11)
    images = []
    for i, epoch in enumerate(epochs):
        for globe, (frames, _, dim) in zip(globes, taken, strict=True):
            turn = 25 + 50 * (i / max(1, len(epochs) - 1) - 0.5)
            view = camera(frames[epochs[-1]][1], turn=turn) if dim == 3 else None
            globe.draw(*frames[epoch], view)
        heading.set_text(f"step {epoch}")
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        images.append(Image.fromarray(pixels.copy()))
    return _write_gif(images, Path(path))


def _write_gif(images, path):
    options = {"method": Image.Quantize.MEDIANCUT, "dither": Image.Dither.NONE}
    # One palette for all frames, from the first, a middle and the last one.
    samples = [images[0], images[len(images) // 2], images[-1]]
    strip = Image.fromarray(np.concatenate([np.asarray(image) for image in samples]))
    palette = strip.quantize(128, **options)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [8000 // len(frames)] * (len(frames) - 1) + [2000]
    options = {"append_images": frames[1:], "duration": durations, "loop": 0, "optimize": True}
    with files.replacing(path) as temporary:
        frames[0].save(temporary, format="gif", save_all=True, **options)
    return path.stat().st_size
