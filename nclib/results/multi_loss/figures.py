"""Figures of result 1.  Each takes the tidy tables it draws and returns the figure."""

import numpy as np
import seaborn as sns
from matplotlib.colors import LogNorm, Normalize

from nclib.plots import panels, style
from nclib.plots.style import GUIDE, LOSS_COLORS, LOSS_MARKERS, LOSS_NAMES, THEORY

LOOKS = {name: (LOSS_COLORS[name], LOSS_MARKERS[name]) for name in LOSS_NAMES}
LOSSES = {"by": "loss", "looks": LOOKS, "labels": LOSS_NAMES}
TARGET_ONE = "mse, M = 1"  # the control of the networks' MSE
NETS = LOSSES | {"looks": LOOKS | {TARGET_ONE: ("0.55", "v")}}
NETS["labels"] = LOSS_NAMES | {TARGET_ONE: "MSE, $M = 1$"}
STRENGTH = r"strength $c=\sqrt{n\lambda_W\lambda_H}$"


def scalar_picture(curves, minima, competing, *, title):
    """Figure 1: loss plus penalty against the margin; right: the focal loss with two minima.

    ``curves``: loss, s, value; ``minima``: loss, margin, value; ``competing``: three named c, s,
    value (minus the value at s = 0).  ``title``: of the right panel.
    """
    figure, (left, right) = style.grid(1, 2, height=3.4)
    for loss, part in curves.groupby("loss", sort=False):
        left.plot(part["s"], part["value"], color=LOSS_COLORS[loss], label=LOSS_NAMES[loss])
        at = minima[minima["loss"] == loss]
        color, marker = LOOKS[loss]
        left.plot(at["margin"], at["value"], marker, color=color, ms=7, mec="k")
    left.set(xlabel="margin $s$", ylabel=r"$\varphi(s) + c\,(K-1)\,s$")
    left.set(title="One scalar problem per loss, minimum marked")
    left.set_ylim(0, 1.05 * curves.query("s == 0")["value"].max())
    left.legend(loc="lower right")
    parts = competing.groupby("c", sort=False)
    for color, (name, part) in zip(("0.7", "C2", "0.0"), parts, strict=True):
        right.plot(part["s"], 1e3 * part["value"], color=color, label=name)
    right.axhline(0, **GUIDE)
    right.set(xlabel="margin $s$", ylabel=r"value minus value at $s=0$   [$10^{-3}$]")
    right.set_title(title)
    right.legend()
    return figure


def margins(theory, measured, thresholds):
    """Figure 2: margin and probability against the regularisation strength c."""
    figure, axes = style.grid(1, 2, height=3.4)
    for ax, y in zip(axes, ("margin", "probability"), strict=True):
        panels.lines(ax, measured, "c", y, theory=theory, points=True, **LOSSES)
        for loss, c in thresholds.items():
            ax.axvline(c, color=LOSS_COLORS[loss], ls=":", lw=1)
        ax.set(xscale="log", xlabel=STRENGTH)
    axes[0].set(ylabel="margin $s$", title="Closed form (lines) and optimiser (markers)")
    axes[1].set(ylabel="softmax probability of the true class")
    axes[1].set_title("Dotted: from here on the solution is zero")
    axes[0].legend()
    return figure


def class_logits(scaled, titles, *, title):
    """Figure 3: six class-logit matrices ``(K, K)`` over their margins; ``titles``: by name."""
    figure, axes = style.grid(1, 6, width=11, height=2.4)
    panels.heatmaps(scaled, titles=titles, label="logit / margin", digits=2, axes=list(axes))
    axes[0].set(xlabel="output $j$", ylabel="class $k$")
    return style.titled(figure, title, 11)


def landscape(saddles, ways, gaps, K, title):
    """Figure 4: the way out of cross-entropy's saddles, curvatures, all random starts.

    ``title``: of the last panel.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=11, height=3.4)
    for color, (rank, part) in zip(
        sns.color_palette("crest", 3), ways.groupby("rank"), strict=False
    ):
        left.plot(part["t"], part["value"], color=color, label=f"rank {rank}")
        left.plot(part["t"], part["parabola"], **THEORY)
    left.set(xlabel="step along the direction", ylabel="objective minus its value at the saddle")
    left.set(title="The way down from a saddle (cross-entropy)", ylim=(-0.35, 0.12))
    left.legend(loc="lower center", title="parabola dashed", title_fontsize=8)
    curvature = r"$-2(\|\nabla g\|_2-\sqrt{\lambda_W\lambda_H})$"
    panels.diagonal(middle, saddles, "predicted", "measured", **LOSSES)
    middle.set(xlabel=curvature, ylabel="measured curvature")
    middle.set_title("Curvature: closed form and measurement")
    middle.legend()
    panels.starts(right, gaps, "d", by="loss", looks=LOOKS, edge=K - 1)
    right.set(xlabel="feature dimension $d$", title=title)
    return figure


def focal_region(thresholds, cases, window, *, edge, title):
    """Figure 5: where the focal loss is convex, where ties exist, and spurious minima.

    ``thresholds``: gamma, t_c, sufficient; ``cases``: gamma, K, found; ``window``: ratio, fraction;
    ``edge``: c_glob / c_loc; ``title``: of the right panel.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=11, height=3.2)
    color, gammas = LOSS_COLORS["fl"], thresholds["gamma"]
    left.plot(gammas, thresholds["t_c"], color=color, label="$t_c$: convex exactly above")
    left.plot(gammas, thresholds["sufficient"], color="0.4", label=r"$\psi' \geq 0$: sufficient")
    style.reference(left, 0.21, "the paper's constant .21")
    left.set(xlabel=r"focusing parameter $\gamma$", ylabel="probability $p_y$", ylim=(0, 0.23))
    left.set_title("Convexity of the focal loss")
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.88))
    shown = gammas > 0.35
    middle.plot(gammas[shown], 1 / thresholds["t_c"][shown], label="$K = 1/t_c$", **style.THEORY)
    for found, fill, name in ((True, color, "two minimisers"), (False, "none", "always one")):
        part = cases[cases["found"] == found]
        middle.plot(part["gamma"], part["K"], "o", color=color, mfc=fill, label=name)
    middle.set(
        xlabel=r"focusing parameter $\gamma$", ylabel="classes $K$", yscale="log", ylim=(0.1, 2000)
    )
    style.scales(middle, "y", {"y": [1, 10, 100, 1000]})  # below 1 there is room for the legend
    middle.set_title("Is there a $c$ with two minimisers?")
    middle.legend(loc="lower right", frameon=True)
    right.plot(window["ratio"], window["fraction"], "o-", color=color)
    right.axvspan(1, edge, color="0.88", zorder=0)
    text = "grey: zero is a local minimum,\nnot the global one"
    right.annotate(text, (0.05, 0.1), xycoords="axes fraction", fontsize=8)
    right.set(xlabel=r"$c\,/\,c_{loc}$", ylabel="share of starts reaching $f^*$")
    right.set(ylim=(-0.05, 1.05), title=title)
    return figure


def bias_geometry(sweep, theory, transition, *, title):
    """Figure 6: the MSE optimum from free bias to no bias (drawn at the right edge).

    ``theory``: the closed form on a finer grid; ``transition``: the λ_b from which on there is a
    mean component; ``title``: of the right panel.
    """
    figure, axes = style.grid(1, 3, width=11, height=3.2)
    edge = 10 * theory["lambda_b"].max()
    at = sweep["lambda_b"].replace(np.inf, edge)
    spectra = {"etf_singular": "$K-1$ equal ones", "mean_singular": "mean direction"}
    nc2 = {"nc2_centered": "centred $W$", "nc2": "raw $W$"}
    for ax, columns in zip(axes, ({"bias": "bias $b$"}, spectra, nc2), strict=True):
        for color, marker, column in zip(style.PALETTE, "os", columns, strict=False):
            ax.plot(at, sweep[column], marker, color=color, label=columns[column])
            if column in theory:
                ax.plot(theory["lambda_b"], theory[column], **THEORY)
        ax.axvline(transition, **GUIDE)
        style.scales(ax, "x")
        ax.set_xticks([0.01, 0.1, 1, 10, edge], ["0.01", "0.1", "1", "10", "no\nbias"])
        ax.set(xlabel=r"bias penalty $\lambda_b$")
    axes[0].set(ylabel="bias $b$", title="Bias: $c/\\lambda_b$ past the dotted line")
    axes[1].set(ylabel="singular values of $W$", title="ETF → ETF + mean → orthogonal frame")
    axes[1].legend(loc="center right", title="closed form dashed", title_fontsize=8)
    axes[2].set(ylabel="NC2, distance to the simplex ETF", title=title)
    axes[2].legend(loc="center right")
    return figure


def collapse_curves(curves, first, drops, limit, *, title):
    """Figure 7: metrics and accuracy against epochs, mean and range over seeds.

    ``curves``: of all losses, the control :data:`TARGET_ONE` too; ``first``: epoch at which all
    losses have zero training error; ``drops``: epochs at which the rate falls; ``limit``: the
    residual of the MSE.
    """
    shown = {
        "nc1": ("NC1", "log"),
        "nc2": ("NC2, raw $W$", "log"),
        "nc3": ("NC3", "log"),
        "residual": (r"$\|W\mu_G+b\|$", "log"),
        "train_accuracy": ("train accuracy [%]", "linear"),
        "test_accuracy": ("test accuracy [%]", "linear"),
    }
    figure, axes = style.grid(2, 3, width=11, height=2.7, sharex=True)
    for ax, (column, (name, scale)) in zip(axes.flat, shown.items(), strict=True):
        panels.lines(ax, curves, "epoch", column, guides=drops, **NETS)
        style.scales(ax, "xy" if scale == "log" else "x")
        ax.set(xlabel="", ylabel="", title=name)
        ax.axvline(first, color="0.3", lw=1, ls="-.", label="zero training error")
    for ax in axes[1]:
        ax.set_xlabel("epoch")
    style.reference(axes[1, 0], limit, r"$M/\sqrt{K}$ (MSE)", below=4)
    axes[1, 1].legend(loc="lower right")
    return style.titled(figure, title, 11)


def accuracy_maps(cells, accuracies, *, title):
    """Figure 8, six panels: accuracy of each loss, largest gap to cross-entropy, variance.

    ``cells``: width, epochs, variance, largest_gap, f_statistic; ``accuracies``: loss, width,
    epochs, mean, min, max.
    """
    figure, axes = style.grid(2, 3, width=11, height=2.6, sharex=True, sharey=True)
    low, high = accuracies["mean"].min(), accuracies["mean"].max()
    maps = []
    for loss in LOSS_NAMES:
        part = accuracies[accuracies["loss"] == loss]
        spread = part.apply("{0[mean]:.1f}\n{0[min]:.1f} – {0[max]:.1f}".format, axis=1)
        look = (f"{LOSS_NAMES[loss]} [%]", Normalize(low, high), "mako")
        maps.append((part.assign(text=spread, shown=part["mean"]), *look))
    f = cells["f_statistic"].map(lambda value: "" if np.isnan(value) else f"\n$F$ = {value:.1f}")
    for name, text, norm in (
        ("largest_gap", "largest gap to cross-entropy [points]", LogNorm(0.05, 15)),
        ("variance", "variance over losses and seeds [points²]", LogNorm(0.02, 50)),
    ):
        words = cells[name].map("{:.2f}".format) + (f if name == "variance" else "")
        table = cells.assign(text=words, shown=cells[name].clip(lower=1e-3))
        maps.append((table, text, norm, "rocket_r"))
    look = {"fmt": "", "cbar": False, "linewidths": 0.5, "annot_kws": {"size": 8}}
    for ax, (table, name, norm, cmap) in zip(axes.flat, maps, strict=True):
        square = table.pivot(index="epochs", columns="width").sort_index(ascending=False)
        texts = square["text"].fillna("")
        sns.heatmap(square["shown"], ax=ax, annot=texts, norm=norm, cmap=cmap, **look)
        ax.set(xlabel="", ylabel="", title=name)
        ax.tick_params(rotation=0, length=0)
    for ax in axes[1]:
        ax.set_xlabel("width")
    for ax in axes[:, 0]:
        ax.set_ylabel("epochs")
    return style.titled(figure, title, 11)


def agreement(curves, pairs, lengths, *, title):
    """Figure 9: class logits, up to scale, against the ETF and against cross-entropy's.

    ``curves``: loss, epoch, logits_etf; ``pairs`` of the longest nets: loss, pair, distance;
    ``lengths``: pairs of different seeds, widest nets: loss, epochs, distance.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=11, height=3.2)
    panels.lines(left, curves, "epoch", "logits_etf", log="xy", **NETS)
    left.set(ylabel="distance to the simplex ETF", title="Class logits against epochs")
    left.legend()
    names = list(LOSS_NAMES)
    for shift, (pair, part) in zip((-0.12, 0.12), pairs.groupby("pair"), strict=False):
        for loss, own in part.groupby("loss"):
            color, marker = LOOKS[loss]
            fill = color if pair == "same seed" else "none"
            at = np.full(len(own), names.index(loss) + shift)
            middle.plot(at, own["distance"], marker, color=color, mfc=fill)
    middle.set_xticks(range(4), [LOSS_NAMES[name].replace(" ", "\n") for name in names])
    middle.set(ylabel="distance to cross-entropy", ylim=(0, None))
    middle.set_title("At the end: same seed (full), other (open)")
    panels.lines(right, lengths, "epochs", "distance", log="x", **LOSSES)
    right.set(ylabel="distance, different seeds", ylim=(0, None))
    ticks = sorted(lengths["epochs"].unique())
    right.set_xticks(ticks, ticks)
    right.set(xlabel="training length [epochs]", title="Two seeds: loss against cross-entropy")
    return style.titled(figure, title, 11)


def accuracy_by_length(table, linear, *, title):
    """Figure 11: test accuracy against training length, one panel per width; left: the control.

    ``table``: loss, width, epochs, seed, test_accuracy of the nets; ``linear``: loss, seed,
    test_accuracy of linear classifiers.
    """
    widths = sorted(table["width"].unique())
    figure, axes = style.grid(1, 1 + len(widths), width=11, height=3.0, squeeze=False)
    first, *others = axes[0]
    panels.lines(first, linear.assign(epochs=1), "epochs", "test_accuracy", points=True, **LOSSES)
    for loss, own in linear.groupby("loss"):
        ends = own["test_accuracy"].min(), own["test_accuracy"].max()
        first.vlines(1, *ends, color=LOSS_COLORS[loss])
    first.set(xlabel="", ylabel="test accuracy [%]", xticks=[], title="linear: no features")
    for ax, width in zip(others, widths, strict=True):
        part = table[table["width"] == width].sort_values("epochs", kind="stable")
        panels.lines(ax, part, "epochs", "test_accuracy", log="x", ylabel="", **LOSSES)
        ticks = sorted(part["epochs"].unique())
        ax.set_xticks(ticks, ticks)
        ax.set(xlabel="epochs", title=f"width {width:g}")
    others[-1].legend()
    return style.titled(figure, title, 11)
