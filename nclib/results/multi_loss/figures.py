"""Figures of result 1.  Each takes the tidy tables it draws and returns the figure."""

import numpy as np
import seaborn as sns
from matplotlib.colors import LogNorm

from nclib.plots import panels, style
from nclib.plots.style import GUIDE, LOSS_COLORS, LOSS_MARKERS, LOSS_NAMES, THEORY

LOOKS = {name: (LOSS_COLORS[name], LOSS_MARKERS[name]) for name in LOSS_NAMES}
LOSSES = {"by": "loss", "looks": LOOKS, "labels": LOSS_NAMES}
STRENGTH = r"strength $c=\sqrt{n\lambda_W\lambda_H}$"


def scalar_picture(curves, minima, competing):
    """Figure 1: loss plus penalty against the margin; right: the focal loss with two minima.

    ``curves``: loss, s, value; ``minima``: loss, margin, value; ``competing``: c, s, value (minus
    the value at s = 0).
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
    for shade, (c, part) in zip((0.7, 0.45, 0.0), competing.groupby("c"), strict=False):
        right.plot(part["s"], 1e3 * part["value"], color=str(shade), label=f"$c = {c:.5f}$")
    right.axhline(0, **GUIDE)
    right.set(xlabel="margin $s$", ylabel=r"value minus value at $s=0$   [$10^{-3}$]")
    right.set_title(r"Focal loss, $K=30$, $\gamma=3$: at one $c$ two minima tie")
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


def class_logits(scaled, margins):
    """Figure 3: class logits of the four losses over their margins, ``(K, K)`` each."""
    titles = {name: f"{LOSS_NAMES[name]}\n$s = {margins[name]:.3f}$" for name in scaled}
    figure = panels.heatmaps(scaled, titles=titles, label="logit / margin", digits=2)
    figure.axes[0].set(xlabel="output $j$", ylabel="class $k$")
    return figure


def landscape(saddles, ways, gaps, K, reached):
    """Figure 4: the way out of cross-entropy's saddles, curvatures, all random starts.

    ``reached``: whether the claim that all starts reach f* holds.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=11, height=3.4)
    for color, (rank, part) in zip(style.PALETTE[4:], ways.groupby("rank"), strict=False):
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
    panels.starts(right, gaps, "d", by="loss", looks=LOOKS, edge=0.5)
    finding = f"All starts reach $f^*$ from $d = K-1 = {K - 1}$ on"
    right.set(xlabel="feature dimension $d$", title=finding if reached else "All random starts")
    return figure


def focal_region(thresholds, window, local, globally):
    """Figure 5: where the focal loss is convex, and where it has spurious minima."""
    figure, (left, right) = style.grid(1, 2, height=3.2)
    color = LOSS_COLORS["fl"]
    left.plot(thresholds["gamma"], thresholds["t_c"], color=color)
    left.fill_between(thresholds["gamma"], thresholds["t_c"], alpha=0.15, color=color)
    for K in (10, 17, 20, 30, 100):
        left.axhline(1 / K, **GUIDE)
        left.annotate(f"$1/{K}$", (10.7, 1 / K), va="center", fontsize=7.5, annotation_clip=False)
    left.set(xlabel=r"focusing parameter $\gamma$", ylabel=r"probability $p_y$")
    left.set(xlim=(0, 10.5), ylim=(0, 0.105))
    left.set_title("Convex above the curve; zero has $p_y = 1/K$")
    right.plot(window["ratio"], window["fraction"], "o-", color=color)
    right.axvspan(1, globally / local, color="0.88", zorder=0)
    text = "grey: zero is a local minimum,\nthe ETF the global one"
    right.annotate(text, (0.05, 0.1), xycoords="axes fraction", fontsize=8)
    right.set(xlabel=r"$c\,/\,c_{loc}$", ylabel="share of starts reaching $f^*$")
    right.set(ylim=(-0.05, 1.05))
    right.set_title(r"$K=30$, $\gamma=3$: spurious minima in a thin window")
    return figure


def bias_geometry(sweep, theory, transition):
    """Figure 6: the MSE optimum from free bias to no bias; ``theory`` on a finer grid."""
    figure, axes = style.grid(1, 3, width=11, height=3.2)
    drawn = sweep[np.isfinite(sweep["lambda_b"])]
    spectra = {"etf_singular": "$K-1$ equal ones", "mean_singular": "mean direction"}
    nc2 = {"nc2_centered": "NC2, centred $W$", "nc2": "NC2, raw $W$"}
    for ax, columns in zip(axes, ({"bias": "bias $b$"}, spectra, nc2), strict=True):
        line = "-" if columns is nc2 else "none"
        for color, marker, column in zip(style.PALETTE, "os", columns, strict=False):
            values = drawn[column].clip(lower=1e-9) if columns is nc2 else drawn[column]
            ax.plot(drawn["lambda_b"], values, marker, ls=line, color=color, label=columns[column])
            if column in theory:
                ax.plot(theory["lambda_b"], theory[column], **THEORY)
        ax.axvline(transition, **GUIDE)
        ax.set(xscale="log", xlabel=r"bias penalty $\lambda_b$")
    axes[0].set(ylabel="bias $b$", title="Bias: free, then capped at $c/\\lambda_b$")
    axes[1].set(ylabel="singular values of $W$", title="ETF → ETF + mean → orthogonal frame")
    axes[1].legend(loc="center right", title="closed form dashed", title_fontsize=8)
    axes[2].set(yscale="log", ylabel="distance to the simplex ETF")
    axes[2].set_title("Centred, it is an ETF in every case")
    axes[2].legend(loc="center right")
    return figure


def collapse_curves(curves, drops, residual_limit):
    """Figure 7: metrics and accuracy against epochs, mean and range over seeds."""
    shown = {
        "nc1": ("NC1", "log"),
        "nc2": ("NC2, raw $W$", "linear"),
        "nc3": ("NC3", "linear"),
        "residual": (r"$\|W\mu_G+b\|$", "log"),
        "train_accuracy": ("train accuracy [%]", "linear"),
        "test_accuracy": ("test accuracy [%]", "linear"),
    }
    figure, axes = style.grid(2, 3, width=11, height=2.7, sharex=True)
    for ax, (column, (title, scale)) in zip(axes.flat, shown.items(), strict=True):
        panels.lines(ax, curves, "epoch", column, guides=drops, **LOSSES)
        ax.set(xscale="log", yscale=scale, xlabel="", ylabel="", title=title)
    for ax in axes[1]:
        ax.set_xlabel("epoch")
    style.reference(axes[1, 0], residual_limit, r"$M/\sqrt{K}$ (MSE)")
    axes[0, 0].legend()
    return figure


def accuracy_maps(cells, gaps, agree):
    """Figure 8: variance of the accuracy over losses and seeds, and gaps to cross-entropy.

    ``agree``: whether the claim that the accuracies of the widest, longest nets agree holds.
    """
    figure, axes = style.grid(1, 4, width=12, height=3.0, sharey=True)
    maps = [("variance over all nets [points²]", cells, "variance", LogNorm(0.02, 50), "mako_r")]
    for loss in ("ls", "fl", "mse"):
        title, part = f"|CE - {LOSS_NAMES[loss]}| [points]", gaps[gaps["loss"] == loss]
        maps.append((title, part, "gap", LogNorm(0.05, 15), "rocket_r"))
    look = {"fmt": "", "cbar": False, "linewidths": 0.5, "annot_kws": {"size": 8}}
    for ax, (title, table, value, norm, cmap) in zip(axes, maps, strict=True):
        texts = table[value].map("{:.2f}".format)
        if value == "variance" and table["f_statistic"].notna().all():
            texts += table["f_statistic"].map("\n$F$ = {:.1f}".format)
        square = table.assign(shown=table[value].clip(lower=1e-3), text=texts)
        square = square.pivot(index="epochs", columns="width").sort_index(ascending=False)
        sns.heatmap(square["shown"], ax=ax, annot=square["text"], norm=norm, cmap=cmap, **look)
        ax.set(xlabel="width", ylabel="")
        ax.set_title(title, fontsize=9)
        ax.tick_params(rotation=0)
    axes[0].set_ylabel("epochs")
    finding = "Test accuracy: wide and long, the losses differ by less than a point"
    title = finding if agree else "Test accuracy: differences between the losses"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def agreement(table):
    """Figure 9: distance of class logits to cross-entropy's, against width and length."""
    figure, axes = style.grid(1, 3, height=3.0, sharey=True)
    lengths = sorted(table["epochs"].unique())
    colors = sns.color_palette("crest", len(lengths))
    looks = {n: (colors[i], style.MARKERS[i % 8]) for i, n in enumerate(lengths)}
    labels = {length: f"{length} epochs" for length in lengths}
    for ax, loss in zip(axes, ("ls", "fl", "mse"), strict=True):
        part = table[table["loss"] == loss]
        panels.lines(ax, part, "width", "agreement", by="epochs", looks=looks, labels=labels)
        ax.set(xscale="log", xlabel="width", ylabel="")
        ax.set_xticks(sorted(table["width"].unique()), sorted(table["width"].unique()))
        ax.minorticks_off()
        ax.set_title(f"{LOSS_NAMES[loss]} against cross-entropy")
    axes[0].set(ylabel="distance of normalised class logits", ylim=(0, None))
    axes[-1].legend()
    return figure


def collapse_in_the_plane(snapshots):
    """Quickstart: features of three classes in two dimensions, one panel per epoch.

    ``snapshots``: epoch, x, y, label, nc1.
    """
    epochs = sorted(snapshots["epoch"].unique())
    figure, axes = style.grid(1, len(epochs), width=2.6 * len(epochs), height=2.9)
    for ax, epoch in zip(axes, epochs, strict=True):
        part = snapshots[snapshots["epoch"] == epoch]
        centre = part[["x", "y"]].mean()
        reach = 1.15 * np.abs(part[["x", "y"]] - centre).to_numpy().max()
        for label, color in zip(sorted(part["label"].unique()), style.PALETTE, strict=False):
            own = part[part["label"] == label]
            ax.plot(own["x"], own["y"], "o", ms=2.5, alpha=0.45, color=color, mec="none")
            mean = own[["x", "y"]].mean()
            ax.annotate(
                "", mean, centre, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.6}
            )
        ax.set(xlim=(centre["x"] - reach, centre["x"] + reach), xticks=[], yticks=[])
        ax.set(ylim=(centre["y"] - reach, centre["y"] + reach), aspect="equal")
        ax.set_title(f"epoch {epoch}: NC1 = {part['nc1'].iloc[0]:.2g}")
        sns.despine(ax=ax, left=True, bottom=True)
    return figure
