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
from nclib.plots.style import MARKERS, PALETTE, THEORY

# One colour per way of training, in every figure.
MODE_COLORS = {"normalized": PALETTE[0], "hybrid": PALETTE[1], "regularized": PALETTE[2]}
METRICS = {"nc1": "NC1", "nc2": "NC2", "nc3": "NC3"}


def _plain_ticks(ax, axis, values):
    """Label a logarithmic axis with plain numbers, as far as they are in view."""
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    shown = [v for v in values if low <= v <= high]
    axis = ax.xaxis if axis == "x" else ax.yaxis
    axis.set_ticks(shown, [f"{v:g}" for v in shown])
    axis.set_ticks([], minor=True)


def _color(name):
    return next(c for key, c in MODE_COLORS.items() if name.startswith(key))


# The model --------------------------------------------------------------------------------------


def convergence(history, race):
    """Figure 1: solvers on both problems, and gradient descent against the clock of steps.

    ``history``: problem, method, iteration, gap, gradient_norm; ``race``: problem, iterations.
    """
    figure, axes = style.grid(1, 3, width=9.8, height=3.0, width_ratios=[1, 1, 1.25])
    looks = {"trust-region": {"marker": "o", "ms": 4}, "steepest-descent": {"linewidth": 1}}
    for (problem, method), part in history.groupby(["problem", "method"], sort=False):
        options = looks[method] | {"color": _color(problem), "label": f"{problem}: {method}"}
        for ax, column in zip(axes, ("gap", "gradient_norm"), strict=False):
            ax.semilogy(part["iteration"] + 1, part[column].clip(lower=1e-16), **options)
    for ax in axes[:2]:
        ax.set(xlabel="iteration + 1", xscale="log")
    axes[0].set(ylabel="$f - f^*$", title="Every solver reaches $f^*$")
    axes[1].set(ylabel="gradient norm", title="Second order: a few iterations")
    names = axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower left", ncols=4)
    ax, names = axes[2], list(race["problem"])
    steps = race["iterations"].replace(np.inf, np.nan)
    ax.barh(range(len(names)), steps, color=[_color(name) for name in names], height=0.65)
    for i, value in enumerate(steps):
        ax.annotate(f" {value:.0f}", (value, i), va="center", fontsize=7.5)
    ax.set(xscale="log", xlabel="gradient steps to NC1–3 < 0.01")
    ax.set_xlim(steps.min() / 3, steps.max() * 2.5)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.invert_yaxis()
    ax.set_title("Faster? Not for all penalties")
    return figure


def spectrum(table, blocks, rates, curve):
    """Figure 2: Hessian at the minimum, its rate of descent, and what block steps do to it.

    ``table``: scale, index, measured, theory; ``rates``: scale, measured, predicted; ``curve``:
    scale, predicted on a finer grid; ``blocks``: n, block, iterations.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=9.8, height=3.0)
    for (scale, part), color, marker in zip(table.groupby("scale"), PALETTE, MARKERS, strict=False):
        left.plot(
            part["index"], part["measured"], marker, color=color, ms=3.5, label=rf"$\tau={scale:g}$"
        )
        left.plot(part["index"], part["theory"], **(THEORY | {"linewidth": 1}))
    left.set(xlabel="index", ylabel="eigenvalue", title="The whole Hessian in closed form (dashed)")
    left.legend(markerscale=1.5)
    middle.plot(curve["scale"], curve["predicted"], **THEORY)
    middle.plot(rates["scale"], rates["measured"], "o", color=PALETTE[0])
    middle.set(xlabel=r"scale $\tau$", ylabel="contraction per gradient step")
    middle.set_title("... so the speed of descent is known")
    for (block, part), color in zip(blocks.groupby("block"), (PALETTE[3], PALETTE[0]), strict=True):
        label = "features $n$ times as fast" if block else "one step size"
        right.loglog(
            part["n"], part["iterations"], "s-" if block else "o-", color=color, label=label
        )
    right.set(xlabel="samples per class $n$", ylabel="steps to $f-f^*<10^{-10}$")
    right.set_title("Block steps: $n$ drops out")
    _plain_ticks(right, "x", sorted(blocks["n"].unique()))
    _plain_ticks(right, "y", [20, 50, 100, 200, 500])
    right.legend()
    return figure


def saddles(table, escapes, best):
    """Figure 3: the zoo of critical points and how fast descent leaves one.

    ``table``: name, value, predicted, measured; ``escapes``: size, iteration, gradient_norm,
    growth; ``best``: global minimum.
    """
    figure, (left, middle, right) = style.grid(
        1, 3, width=9.8, height=3.0, width_ratios=[1, 1, 1.15]
    )
    rows = np.arange(len(table))
    left.barh(rows, table["value"], color=PALETTE[0], height=0.6)
    left.axvline(best, label="global minimum $f^*$", **THEORY)
    left.legend(loc="lower right")
    left.set_yticks(rows, table["name"], fontsize=7.5)
    left.set(xlabel="loss", title="Critical, not minimal ...")
    middle.barh(rows, table["measured"], color=PALETTE[3], height=0.6, label="measured")
    middle.plot(table["predicted"], rows, "k|", ms=13, mew=1.6, label="closed form")
    middle.axvline(0, color="0.3", lw=0.8)
    middle.set_yticks(rows, [""] * len(rows))
    middle.set(xlabel=r"smallest Hessian eigenvalue $\lambda_{\min}$")
    middle.set_title("... a strict saddle, every one")
    middle.legend(loc="lower left")
    for ax in (left, middle):
        ax.invert_yaxis()
    sizes = sorted(escapes["size"].unique(), reverse=True)
    for size, color in zip(sizes, PALETTE, strict=False):
        part = escapes[escapes["size"] == size]
        right.semilogy(
            part["iteration"],
            part["gradient_norm"],
            color=color,
            label=f"start {size:g} away",
        )
        early = part[part["gradient_norm"].cummax() < 0.03]
        later = early.iloc[len(early) // 3 :]
        if len(later) > 2:
            line = later["gradient_norm"].iloc[0] * later["growth"] ** (
                later["iteration"] - later["iteration"].iloc[0]
            )
            right.semilogy(later["iteration"], line, **THEORY)
    right.set(xlabel="gradient step", ylabel="gradient norm")
    right.set_title("Escape from total collapse, predicted")
    right.legend(loc="lower right")
    return figure


def _heat(ax, table, x, y, value, levels):
    grid = table.pivot(index=y, columns=x, values=value)
    where = grid.columns, grid.index, grid.to_numpy()
    norm = LogNorm(levels[0], levels[-1]) if levels[0] > 0 else None
    return ax.contourf(*where, levels=levels, cmap=style.SEQUENTIAL, norm=norm, antialiased=False)


def landscape(sphere_map, radial, wells, K, best, norm):
    """Figure 4: a slice of the normalized and of the penalised problem, and one sample alone.

    ``sphere_map``: turn, offset, value; ``radial``: radius, offset, value; ``wells``: scale, angle,
    value; ``norm``: feature norm at the penalised minimum.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=9.8, height=3.0)
    levels = np.linspace(0, np.ceil(sphere_map["value"].max() * 2) / 2, 19)
    image = _heat(left, sphere_map, "offset", "turn", "value", levels)
    left.plot([0, 0], [120, -120], "w*", ms=11, mec="k", mew=0.6)
    left.axhline(0, color="w", lw=0.8, ls=":")
    left.annotate("total collapse", (-170, 6), color="w", fontsize=7.5)
    left.set(xlabel=r"feature minus classifier $\psi$ [°]", ylabel=r"turn per class $\varphi$ [°]")
    left.set_title(f"On the circle: two minima, both $f^* = {best:.3f}$")
    left.set(xticks=[-180, -90, 0, 90, 180], yticks=[-120, 0, 120])
    figure.colorbar(image, ax=left, label="loss", format="%.1f")
    lowest, highest = radial["value"].min(), radial["value"].max()
    levels = np.geomspace(0.98 * lowest, 1.02 * highest, 19)
    image = _heat(middle, radial, "offset", "radius", "value", levels)
    middle.plot([0], [norm], "w*", ms=11, mec="k", mew=0.6)
    middle.set(xlabel=r"feature minus classifier $\psi$ [°]", ylabel=r"feature norm $\|h\|$")
    middle.set_title("Free, penalised norm")
    middle.set_xticks([-180, -90, 0, 90, 180])
    ticks = levels[:: len(levels) // 5]
    figure.colorbar(image, ax=middle, label="loss + penalty", ticks=ticks, format="%.2g")
    for (scale, part), color in zip(wells.groupby("scale"), PALETTE, strict=False):
        right.plot(part["angle"], part["value"] / scale, color=color, label=rf"$\tau={scale:g}$")
    right.set(xlabel="feature to its classifier [°]", ylabel=r"loss of one sample $/\,\tau$")
    right.set_xticks([-180, -90, 0, 90, 180])
    right.set_title(rf"One feature: false well if $\tau>{K - 1}$")
    right.legend(loc="upper center")
    return figure


def temperature(theory, budget, nets, marks, predicted):
    """Figure 6: the scale decides the curvature, and the curvature the collapse.

    ``theory``: K, n, d, scale, low, kappa; ``budget``: scale, nc1, nc2, nc3 of the model; ``nets``:
    scale, nc1, nc2, nc3; ``marks``: K -> best scales (curvature, conditioning); ``predicted``: best
    scale for the model's and for the networks' sizes.
    """
    figure, axes = style.grid(1, 4, width=10.5, height=2.8)
    for (K, part), color in zip(theory.groupby("K"), PALETTE, strict=False):
        curved, conditioned = marks[K]
        axes[0].loglog(part["scale"], part["low"], color=color, label=f"$K={K}$")
        axes[0].axvline(curved, color=color, ls=":", lw=1)
        axes[1].loglog(part["scale"], part["kappa"], color=color, label=f"$K={K}$")
        axes[1].axvline(conditioned, color=color, ls=":", lw=1)
    axes[0].set(ylabel=r"smallest positive eigenvalue $\lambda^+_{\min}$")
    axes[0].set_title("Curvature: one best scale per $K$")
    axes[0].set_ylim(theory["low"].max() * 1e-7, theory["low"].max() * 4)
    axes[1].set(ylabel=r"condition number $\kappa$", title="Conditioning: another one")
    axes[0].legend()
    for ax, table, title, mark in (
        (axes[2], budget, "Model after a fixed budget", predicted[0]),
        (axes[3], nets, "Networks after a fixed budget", predicted[1]),
    ):
        ax.axvline(mark, label="predicted best", **THEORY)
        table = table.sort_values("scale")
        for (column, label), color, marker in zip(METRICS.items(), PALETTE, MARKERS, strict=False):
            clipped = table[column].clip(lower=1e-16)
            ax.loglog(table["scale"], clipped, marker + "-", color=color, label=label)
        ax.set_title(title)
    figure.legend(*axes[3].get_legend_handles_labels(), loc="outside lower right", ncols=4)
    for ax in axes:
        ax.set_xlabel(r"scale $\tau$")
    return figure


def dimensions(table):
    """Figure 9: gap to f* and NC2 against its floor.  ``table``: K, d, gap, nc2, nc2_floor."""
    figure, (left, right) = style.grid(1, 2, height=3.3, width=9.5)
    for (K, part), color, marker in zip(table.groupby("K"), PALETTE, MARKERS, strict=False):
        options = {"color": color, "label": f"$K={K}$"}
        left.semilogy(part["d"], part["gap"].clip(lower=1e-16), marker + "-", **options)
        left.axvline(K - 1, color=color, ls=":", lw=1)
        right.plot(part["d"] / (K - 1), part["nc2"], marker, **options)
    ratio = np.linspace(0.1, 1, 200)
    right.plot([*ratio, 1.5], [*np.sqrt(2 - 2 * np.sqrt(ratio)), 0], label="floor", **THEORY)
    left.set(xlabel="dimension $d$", ylabel="$f-f^*$", xticks=sorted(table["d"].unique()))
    left.set_title("$f^*$ is reached from $d = K-1$ (dotted) on")
    left.legend()
    right.set(xlabel="$d/(K-1)$", ylabel="NC2 of the classifier")
    right.set(xlim=(0.2, 1.35), title="Below it, NC2 stays close to its floor")
    right.legend()
    return figure


def spurious(table, points, value):
    """Figure 10: where random starts end in d = 2 and 3, and the false minimum on the circle.

    ``table``: n, d, value; ``points``: (features, weight, labels) of the false minimum.
    """
    figure, axes = style.grid(1, 3, width=9.8, height=3.0, width_ratios=[1, 1, 0.8])
    bins = np.linspace(-0.02, 0.52, 19)
    for ax, (n, part) in zip(axes, table.groupby("n"), strict=False):
        ends = [part.loc[part["d"] == d, "value"] for d in (3, 2)]
        shares = [np.full(len(own), 1 / len(own)) for own in ends]
        colors, names = [PALETTE[0], PALETTE[3]], ["$d=3$", "$d=2$"]
        ax.hist(ends, bins, weights=shares, color=colors, label=names)
        ax.set(xlabel="final loss", ylabel="share of starts", ylim=(0, 1.05))
        ax.set_title(f"$K=3$, $n={n}$: caught only on the circle")
        ax.legend()
    _circle(axes[2], *points, size=90)
    axes[2].set_title(f"The false minimum, $f={value:.4f}$\n(dots: features)")
    return figure


def imbalance(grams, table):
    """Figure 11: Gram matrices of W at imbalanced minima.  ``table``: counts, certificate, nc2."""
    figure, axes = style.grid(1, len(grams), width=9.5, height=3.2)
    for ax, gram, row in zip(axes, grams, table.itertuples(), strict=True):
        image = ax.imshow(gram, cmap=style.DIVERGING, vmin=-1, vmax=1)
        for i, j in np.ndindex(*gram.shape):
            shade = "w" if abs(float(gram[i, j])) > 0.7 else "k"
            text = f"{float(gram[i, j]):.2f}"
            ax.annotate(text, (j, i), ha="center", va="center", color=shade, fontsize=7)
        ax.set(xticks=range(len(gram)), yticks=range(len(gram)), xlabel="class")
        ax.set_title(f"sizes {row.counts}, NC2 = {row.nc2:.2f}")
    axes[0].set_ylabel("class")
    figure.suptitle(
        "Imbalanced classes: certified global minima, no longer a simplex ETF", fontsize=10
    )
    figure.colorbar(image, ax=axes, label="cosine of classifier rows", shrink=0.8)
    return figure


# Networks ---------------------------------------------------------------------------------------


def _cell_style(row):
    """Colour by mode; matched penalties dash-dotted."""
    look = {"color": MODE_COLORS[row["name"]], "lw": 1.5, "linestyle": "-"}
    if "matched" in row["label"]:
        look["linestyle"] = "-."
    return look


def network_curves(curves, floors, *, strong):
    """Figure 7: collapse, loss, effective scale and accuracy against epochs, per way of training.

    ``curves``: cell, name, label, scale, epoch and metrics; ``floors``: scale -> name -> value of
    the loss; ``strong``: the scale drawn with a full line, others are dotted, each in its tint.
    """
    figure, axes = style.grid(2, 3, width=9, height=2.4, sharex=True)
    axes = axes.ravel()
    panels = [
        *METRICS.items(),
        ("loss", "cross-entropy"),
        ("effective_scale", r"scale $\|w\|\|h\|$"),
    ]
    panels.append(("test_accuracy", "test accuracy [%]"))
    others = sorted(set(curves.query("name == 'normalized'")["scale"]) - {strong})
    shades = sns.light_palette(MODE_COLORS["normalized"], len(others) + 2)[:1:-1]
    tints = dict(zip(others, shades, strict=True))
    for _, part in curves.groupby("cell"):
        row = part.iloc[0]
        look = _cell_style(row)
        if row["name"] == "normalized" and row["scale"] != strong:
            look |= {"linestyle": ":", "lw": 1.8, "color": tints[row["scale"]]}
        label = row["label"].replace("τ", r"$\tau$")
        part = part[part["epoch"] > 0]
        for ax, (column, _) in zip(axes, panels, strict=True):
            ax.plot(part["epoch"], part[column], label=label, **look)
    for ax, (column, label) in zip(axes, panels, strict=True):
        ax.set(ylabel=label, xscale="log")
        if column not in ("test_accuracy", "loss"):
            ax.set_yscale("log")
    for i, lines in enumerate(floors.values()):
        value = lines["ReLU" if "ReLU" in lines else "ETF"]
        axes[3].axhline(value, label=None if i else "floor of normalized nets", **THEORY)
    axes[3].legend(handles=axes[3].get_lines()[-len(floors) :][:1], loc="center right")
    axes[3].set_ylim(-0.05, min(2.4, axes[3].get_ylim()[1]))
    best = curves.loc[curves["epoch"] > 0, "test_accuracy"].max()
    axes[5].set_ylim(best - 9, best + 1)
    last = curves["epoch"].max()
    for ax in axes:
        _plain_ticks(ax, "x", [e for e in (1, 2, 5, 10, 20, 50, 100, 200, 500) if e <= last])
    for ax in axes[:3]:
        _plain_ticks(ax, "y", [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1])
    _plain_ticks(axes[4], "y", [0.3, 1, 2, 3, 5, 10, 20])
    axes[0].set_title("Within-class spread")
    axes[1].set_title("Distance of W to the ETF")
    axes[2].set_title("Distance to self-duality")
    axes[3].set_title("The loss rests on its floor")
    axes[4].set_title("What the penalties choose")
    axes[5].set_title("Accuracy does not follow")
    for ax in axes[3:]:
        ax.set_xlabel("epoch")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def width(final):
    """Figure 8: random labels against width.  ``final``: width, nc1, nc2, nc3, train_accuracy."""
    figure, (left, right) = style.grid(1, 2, height=3.2)
    table = final.groupby("width", as_index=False).mean(numeric_only=True)
    for (column, label), color, marker in zip(METRICS.items(), PALETTE, MARKERS, strict=False):
        left.loglog(table["width"], table[column], marker + "-", color=color, label=label)
        left.loglog(final["width"], final[column], marker, color=color, alpha=0.3)
    left.set(xlabel="hidden width", ylabel="metric at the last epoch")
    left.set_title("Random labels: wider nets collapse all the same")
    left.legend()
    right.semilogx(table["width"], table["train_accuracy"], "o-", color=PALETTE[0])
    right.set(xlabel="hidden width", ylabel="training accuracy on random labels [%]")
    right.set_title("... once they can fit them")
    for ax in (left, right):
        ax.set_xticks(table["width"], [f"{w:g}" for w in table["width"]])
        ax.minorticks_off()
    return figure


# Spheres ----------------------------------------------------------------------------------------


def _circle(ax, features, weight, labels, *, size=14, reach=None):
    """Features (dots) and classifiers (rays) in the plane."""
    angle = np.linspace(0, 2 * np.pi, 361)
    ax.plot(np.cos(angle), np.sin(angle), color="0.75", lw=0.8, zorder=1)
    colors = np.array(PALETTE)[np.asarray(labels) % len(PALETTE)]
    ax.scatter(*np.asarray(features).T, c=colors, s=size, alpha=0.6, lw=0, zorder=3)
    for k, w in enumerate(np.asarray(weight)):
        ax.plot([0, w[0]], [0, w[1]], color=PALETTE[k % len(PALETTE)], lw=1.4, zorder=2)
        ax.plot(*w, marker="D", color=PALETTE[k % len(PALETTE)], mec="k", mew=0.5, ms=5, zorder=4)
    reach = reach or 1.15 * max(1.0, np.abs(features).max(), np.abs(weight).max())
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.axis("off")


def modes(films, titles):
    """Figure 5a: last epoch of networks with two-dimensional features, one per way of training.

    ``films``: tables of :func:`nets.film`.
    """
    figure, axes = style.grid(1, len(films), width=8.5, height=3.1)
    for ax, film, title in zip(axes, films, titles, strict=True):
        last = film[film["epoch"] == film["epoch"].max()]
        points = {kind: part for kind, part in last.groupby("kind")}
        features = points["feature"][["x0", "x1"]].to_numpy()
        weight = points["classifier"][["x0", "x1"]].to_numpy()
        _circle(ax, features, weight, points["feature"]["label"], size=12)
        ax.set_title(title, loc="center")
    return figure


def camera(weight, tilt=18.0, turn=25.0):
    """A ``(3, 3)`` view (right, up, towards the eye) that shows final classifiers ``(K, 3)`` well.

    The first classifier points up; then the view turns and tilts by degrees.
    """
    weight = np.asarray(weight, float)
    up = weight[0] / np.linalg.norm(weight[0])
    eye = weight[1] - up * (up @ weight[1])
    eye /= np.linalg.norm(eye)
    frame = np.stack([np.cross(up, eye), up, eye])
    a, b = np.radians(turn), np.radians(tilt)
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
        for lines in (self.circles, self.edges, self.rays):
            ax.add_collection(lines)
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


def animate(films, path, *, captions, seconds=8.0, spin=50.0, width=6.4, dpi=90):
    """Write the films side by side as an animated GIF that loops; returns its size in bytes.

    All films share the epochs of the first.  Spheres turn by ``spin`` degrees.  The last frame
    rests for two seconds.  128 colours, no dithering: below one megabyte, equal bytes for
    equal input.
    """
    taken = [_frames(film) for film in films]
    epochs = sorted(taken[0][0])
    figure = Figure(figsize=(width, width / len(films) + 0.35), dpi=dpi, layout="none")
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
            turn = 25 + spin * (i / max(1, len(epochs) - 1) - 0.5)
            view = camera(frames[epochs[-1]][1], turn=turn) if dim == 3 else None
            globe.draw(*frames[epoch], view)
        heading.set_text(f"step {epoch}")
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        images.append(Image.fromarray(pixels.copy()))
    return _write_gif(images, Path(path), seconds)


def _write_gif(images, path, seconds):
    options = {"method": Image.Quantize.MEDIANCUT, "dither": Image.Dither.NONE}
    # One palette for all frames, from the first, a middle and the last one.
    samples = [images[0], images[len(images) // 2], images[-1]]
    strip = Image.fromarray(np.concatenate([np.asarray(image) for image in samples]))
    palette = strip.quantize(128, **options)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [int(1000 * seconds / len(frames))] * (len(frames) - 1) + [2000]
    options = {"append_images": frames[1:], "duration": durations, "loop": 0, "optimize": True}
    with files.replacing(path) as temporary:
        frames[0].save(temporary, format="gif", save_all=True, **options)
    return path.stat().st_size
