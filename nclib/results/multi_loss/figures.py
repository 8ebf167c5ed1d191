"""Figures of result 1.  Each takes the tidy tables it draws and returns the figure."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.colors import LogNorm

from nclib.plots import style
from nclib.plots.style import GUIDE, LOSS_COLORS, LOSS_MARKERS, LOSS_NAMES, THEORY


def _line(ax, table, x, y, loss, **options):
    part = table[table["loss"] == loss]
    ax.plot(part[x], part[y], color=LOSS_COLORS[loss], **options)


def scalar_picture(curves, minima, competing):
    """Figure 1: loss plus penalty against the margin; right: the focal loss with two minima.

    ``curves``: loss, s, value; ``minima``: loss, s, value; ``competing``: c, s, value (minus the
    value at s = 0).
    """
    figure, (left, right) = style.grid(1, 2, height=3.4)
    for loss in curves["loss"].unique():
        _line(left, curves, "s", "value", loss, label=LOSS_NAMES[loss])
        point = minima[minima["loss"] == loss]
        left.plot(
            point["s"], point["value"], LOSS_MARKERS[loss], color=LOSS_COLORS[loss], ms=7, mec="k"
        )
    left.set(xlabel="margin $s$", ylabel=r"$\varphi(s) + c\,(K-1)\,s$")
    left.set_title("One scalar problem per loss, one minimum each")
    left.set_ylim(0, 1.05 * curves.query("s == 0")["value"].max())
    left.legend(loc="lower right")
    for shade, (c, part) in zip((0.7, 0.45, 0.0), competing.groupby("c"), strict=False):
        right.plot(part["s"], 1e3 * part["value"], color=str(shade), label=f"$c = {c:.5f}$")
    right.axhline(0, **GUIDE)
    right.set(xlabel="margin $s$", ylabel=r"value minus value at $s=0$   [$10^{-3}$]")
    right.set_title(r"Focal loss, $K=30$: at one $c$ two minima tie")
    right.legend()
    return figure


def margins(theory, measured, thresholds):
    """Figure 2: margin and probability against the regularisation strength c."""
    figure, axes = style.grid(1, 2, height=3.4)
    for ax, column in zip(axes, ("margin", "probability"), strict=True):
        for loss in theory["loss"].unique():
            part = theory[theory["loss"] == loss]
            ax.plot(part["c"], part[column], color=LOSS_COLORS[loss], lw=1.2)
            _line(
                ax,
                measured,
                "c",
                column,
                loss,
                linestyle="none",
                marker=LOSS_MARKERS[loss],
                label=LOSS_NAMES[loss],
            )
        for loss, c in thresholds.items():
            ax.axvline(c, color=LOSS_COLORS[loss], ls=":", lw=1)
        ax.set_xscale("log")
        ax.set_xlabel(r"strength $c=\sqrt{n\lambda_W\lambda_H}$")
    axes[0].set(ylabel="margin $s$", title="Closed form (lines) and optimiser (markers) coincide")
    axes[1].set(ylabel="softmax probability of the true class")
    axes[1].set_title("Dotted: from here on the solution is zero")
    axes[0].legend()
    return figure


def class_logits(table, margins):
    """Figure 3: normalised class logits of the four losses.  ``table``: loss, row, column, value;
    ``margins``: loss -> s."""
    names = list(table["loss"].unique())
    figure, axes = style.grid(1, len(names), height=2.6, sharey=True)
    for ax, loss in zip(axes, names, strict=True):
        part = table[table["loss"] == loss]
        matrix = part.pivot(index="row", columns="column", values="value").to_numpy()
        image = ax.imshow(matrix, cmap=style.DIVERGING, vmin=-1, vmax=1)
        ax.set_title(f"{LOSS_NAMES[loss]}\n$s = {margins[loss]:.3f}$")
        ax.set(xlabel="output $j$", xticks=range(len(matrix)), yticks=range(len(matrix)))
    axes[0].set_ylabel("class $k$")
    figure.colorbar(image, ax=axes, label="logit / margin", shrink=0.85)
    return figure


def landscape(saddles, profiles, gaps, K):
    """Figure 4: curvature at saddles, the objective along that direction, all random starts."""
    figure, (left, middle, right) = style.grid(1, 3, width=11, height=3.4)
    one = profiles.query("loss == 'ce'")
    for rank, color in zip(one["rank"].unique(), style.PALETTE[4:], strict=False):
        part = one[one["rank"] == rank]
        left.plot(part["t"], part["value"], color=color, label=f"rank {rank}")
        left.plot(part["t"], part["parabola"], **THEORY)
    left.set(xlabel="step along the direction", ylabel="objective minus its value at the saddle")
    left.set_title("Every saddle has a way down (cross-entropy)")
    left.set_ylim(-0.35, 0.12)
    left.legend(loc="lower center")
    low = -1.08 * saddles[["predicted", "measured"]].abs().max().max()
    middle.plot([low, 0], [low, 0], label="predicted", **THEORY)
    for loss in saddles["loss"].unique():
        _line(
            middle,
            saddles,
            "predicted",
            "measured",
            loss,
            linestyle="none",
            marker=LOSS_MARKERS[loss],
            label=LOSS_NAMES[loss],
        )
    middle.set(
        xlabel=r"$-2(\|\nabla g\|_2-\sqrt{\lambda_W\lambda_H})$", ylabel="measured curvature"
    )
    middle.set_title("Curvature is known in closed form")
    middle.legend()
    gaps = gaps.assign(gap=gaps["gap"].clip(lower=1e-16))
    names = list(gaps["loss"].unique())
    for i, loss in enumerate(names):
        part = gaps[gaps["loss"] == loss]
        right.semilogy(
            part["d"] + 0.16 * (i - 1.5),
            part["gap"],
            LOSS_MARKERS[loss],
            color=LOSS_COLORS[loss],
            alpha=0.5,
            ms=4,
            label=LOSS_NAMES[loss],
        )
    right.axvline(K - 1.5, **GUIDE)
    right.set(xlabel="feature dimension $d$", ylabel="$f - f^*$", ylim=(3e-17, 3))
    right.set_xticks(sorted(gaps["d"].unique()))
    right.set_title(f"All starts reach $f^*$ from $d = K-1 = {K - 1}$ on")
    return figure


def focal_region(thresholds, window, local, globally):
    """Figure 5: where the focal loss is convex, and where it has spurious minima."""
    figure, (left, right) = style.grid(1, 2, height=3.2)
    left.plot(thresholds["gamma"], thresholds["t_c"], color=LOSS_COLORS["fl"])
    left.fill_between(thresholds["gamma"], thresholds["t_c"], alpha=0.15, color=LOSS_COLORS["fl"])
    for K in (10, 17, 20, 30, 100):
        left.axhline(1 / K, **GUIDE)
        left.annotate(f"$1/{K}$", (10.7, 1 / K), va="center", fontsize=7.5, annotation_clip=False)
    left.set(xlabel=r"focusing parameter $\gamma$", ylabel=r"probability $p_y$")
    left.set(xlim=(0, 10.5), ylim=(0, 0.105))
    left.set_title("Convex above the curve; zero has $p_y = 1/K$")
    right.plot(window["ratio"], window["fraction"], "o-", color=LOSS_COLORS["fl"])
    right.axvspan(1, globally / local, color="0.88", zorder=0)
    right.annotate(
        "here zero is a local minimum,\nthe ETF the global one",
        (1.0, 0.25),
        xytext=(0.985, 0.25),
        arrowprops={"arrowstyle": "->", "lw": 0.8},
        ha="right",
        va="center",
        fontsize=8,
    )
    right.set(xlabel=r"$c\,/\,c_{loc}$", ylabel="share of starts reaching $f^*$")
    right.set(ylim=(-0.05, 1.05))
    right.set_title(r"$K=30$, $\gamma=3$: spurious minima in a thin window")
    return figure


def bias_geometry(sweep, theory, transition):
    """Figure 6: the MSE optimum from free bias to no bias; ``theory`` on a finer grid."""
    figure, (left, middle, right) = style.grid(1, 3, width=11, height=3.2)
    drawn = sweep[np.isfinite(sweep["lambda_b"])]
    for ax, columns in (
        (left, (("bias", "bias $b$"),)),
        (middle, (("etf_singular", "$K-1$ equal ones"), ("mean_singular", "mean direction"))),
    ):
        for color, (column, name) in zip(style.PALETTE, columns, strict=False):
            ax.plot(drawn["lambda_b"], drawn[column], "o", color=color, label=name)
            ax.plot(theory["lambda_b"], theory[column], **THEORY)
    left.set_ylabel("bias $b$")
    left.set_title("Bias: free, then capped at $c/\\lambda_b$")
    middle.set_ylabel("singular values of $W$")
    middle.set_title("ETF → ETF + mean → orthogonal frame")
    middle.legend(loc="center right", title="closed form dashed", title_fontsize=8)
    right.plot(drawn["lambda_b"], drawn["nc2"], "s-", color=style.PALETTE[1], label="NC2, raw W")
    right.plot(
        drawn["lambda_b"],
        drawn["nc2_centered"].clip(lower=1e-9),
        "o-",
        color=style.PALETTE[0],
        label="NC2, centred W",
    )
    right.set(yscale="log", ylabel="distance to the simplex ETF")
    right.set_title("Centred, it is an ETF in every case")
    right.legend(loc="center right")
    for ax in (left, middle, right):
        ax.set(xscale="log", xlabel=r"bias penalty $\lambda_b$")
        ax.axvline(transition, **GUIDE)
    return figure


def collapse_curves(curves, drops, residual_limit):
    """Figure 7: metrics and accuracy against epochs, mean and range over seeds."""
    panels = [
        ("nc1", "NC1", "log"),
        ("nc2", "NC2 (raw $W$)", "linear"),
        ("nc3", "NC3", "linear"),
        ("residual", r"$\|W\mu_G+b\|$", "log"),
        ("train_accuracy", "train accuracy [%]", "linear"),
        ("test_accuracy", "test accuracy [%]", "linear"),
    ]
    figure, axes = style.grid(2, 3, width=11, height=2.7, sharex=True)
    for ax, (column, name, scale) in zip(axes.flat, panels, strict=True):
        for loss, part in curves.groupby("loss", sort=False):
            band = part.groupby("epoch")[column].agg(["mean", "min", "max"])
            color = LOSS_COLORS[loss]
            ax.plot(
                band.index, band["mean"], marker=LOSS_MARKERS[loss], color=color, ms=3.5,
                label=LOSS_NAMES[loss],
            )  # fmt: skip
            ax.fill_between(band.index, band["min"], band["max"], color=color, alpha=0.18, lw=0)
        for drop in drops:
            ax.axvline(drop, **GUIDE)
        ax.set(xscale="log", yscale=scale, ylabel=name)
    style.reference(axes[1, 0], residual_limit, r"$M/\sqrt{K}$ (MSE)")
    for ax in axes[1]:
        ax.set_xlabel("epoch")
    axes[0, 0].set_title("Within-class variability vanishes")
    axes[0, 1].set_title("The classifier approaches an ETF")
    axes[0, 2].set_title("Features align with it")
    axes[1, 0].set_title("The MSE keeps a mean logit")
    axes[1, 1].set_title("All losses fit the training set")
    axes[1, 2].set_title("and generalise alike")
    axes[0, 0].legend()
    return figure


def accuracy_maps(cells, gaps):
    """Figure 8: variance of the accuracy over losses and seeds, and gaps to cross-entropy."""
    figure, axes = style.grid(1, 4, width=12, height=3.0, sharey=True)
    variance = cells.pivot(index="epochs", columns="width", values="variance")
    tables = [(variance, "variance over all nets [points²]", LogNorm(0.02, 50), "mako_r")]
    for loss in ("ls", "fl", "mse"):
        part = gaps[gaps["loss"] == loss]
        table = part.pivot(index="epochs", columns="width", values="gap")
        tables.append((table, f"|CE - {LOSS_NAMES[loss]}| [points]", LogNorm(0.05, 15), "rocket_r"))
    for ax, (table, title, norm, cmap) in zip(axes, tables, strict=True):
        sns.heatmap(
            table.sort_index(ascending=False).clip(lower=1e-3),
            ax=ax,
            annot=True,
            fmt=".2f",
            norm=norm,
            cmap=cmap,
            cbar=False,
            linewidths=0.5,
            annot_kws={"size": 8},
        )
        ax.set(xlabel="width", ylabel="")
        ax.set_title(title, fontsize=9)
        ax.tick_params(rotation=0)
    axes[0].set_ylabel("epochs")
    figure.suptitle("Wide and long: the loss no longer matters", x=0.01, ha="left", fontsize=11)
    return figure


def agreement(runs):
    """Figure 9: distance of class logits to cross-entropy's, against width and length."""
    figure, axes = style.grid(1, 3, height=3.0, sharey=True)
    lengths = sorted(runs["epochs"].unique())
    colors = sns.color_palette("crest", len(lengths))
    for ax, loss in zip(axes, ("ls", "fl", "mse"), strict=True):
        part = runs[runs["loss"] == loss]
        for color, marker, length in zip(colors, style.MARKERS, lengths, strict=False):
            own = part[part["epochs"] == length].groupby("width")["agreement"].agg(["mean", "std"])
            ax.errorbar(
                own.index,
                own["mean"],
                own["std"],
                color=color,
                marker=marker,
                capsize=2,
                label=f"{length} epochs",
            )
        ax.set(xscale="log", xlabel="width", title=f"{LOSS_NAMES[loss]} against cross-entropy")
        ax.set_xticks(sorted(runs["width"].unique()), sorted(runs["width"].unique()))
        ax.minorticks_off()
    axes[0].set_ylabel("distance of normalised class logits")
    axes[0].set_ylim(0, None)
    axes[-1].legend()
    figure.suptitle("Wide and long: class logits agree up to scale", x=0.01, ha="left", fontsize=11)
    return figure


def spectrum_bars(conditions):
    """Condition number of the nonzero Hessian spectrum at the optimum, per loss and strength."""
    figure, ax = plt.subplots(figsize=(5.5, 3))
    for loss in conditions["loss"].unique():
        _line(
            ax, conditions, "c", "condition", loss, marker=LOSS_MARKERS[loss],
            label=LOSS_NAMES[loss],
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="strength $c$", ylabel="condition number")
    ax.set_title("Conditioning at the optimum differs by loss")
    ax.legend()
    return figure
