"""Figures of result 3.  Each takes the tidy tables it draws and returns the figure."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import ticker

from nclib.plots import style
from nclib.plots.style import GUIDE, PALETTE, THEORY

# One colour per multiplicity and per network, in every figure.
SIZE_COLORS = {1: PALETTE[0], 2: PALETTE[1], 3: PALETTE[2], 4: PALETTE[3]}
SIZE_NAMES = {1: "single labels", 2: "pairs", 3: "triples", 4: "quadruples"}
SET_COLORS = {
    "1": PALETTE[0], "2": PALETTE[2], "3": PALETTE[3],
    "1+2": PALETTE[9], "2+3": PALETTE[1], "1+3": PALETTE[4],
}  # fmt: skip
NET_COLORS = {"learned": PALETTE[0], "frozen": PALETTE[1], "bce": PALETTE[2]}
NET_NAMES = {"learned": "learned classifier", "frozen": "frozen ETF, $d=K$", "bce": "BCE"}
METRIC_NAMES = {
    "nc1": "NC1", "nc2_centered": "NC2 (classifier)", "nc2_means": "NC2 (means)", "nc3": "NC3",
    "angle_2": "angle ratio",
}  # fmt: skip


def tagwise_picture(points, means, scale):
    """Figure 1: K = 3 in the plane, early and late in training, and the geometry of the end.

    ``points``: step, set, x, y per sample; ``means``: the same per label set; ``scale``: C_2.
    """
    steps = sorted(points["step"].unique())
    figure, axes = style.grid(1, len(steps) + 1, width=11, height=3.8)
    for ax, step in zip(axes, steps, strict=False):
        _scatter(ax, points[points["step"] == step], means[means["step"] == step])
    axes[0].set_title(f"After {steps[0]} steps of gradient descent")
    axes[len(steps) - 1].set_title(f"After {steps[-1]} steps: six points are left")
    last = means[means["step"] == steps[-1]].set_index("set")[["x", "y"]]
    ax = axes[-1]
    for name in ("1", "2", "3"):
        _arrow(ax, last.loc[name], SET_COLORS[name], rf"$\mu_{name}$")
    a, b, pair = last.loc["1"], last.loc["2"], last.loc["1+2"]
    total = a + b
    for start in (a, b):
        ax.plot([start["x"], total["x"]], [start["y"], total["y"]], **GUIDE)
    ax.plot([pair["x"], total["x"]], [pair["y"], total["y"]], **THEORY)
    ax.annotate(r"$\mu_1+\mu_2$", total, xytext=(4, 4), textcoords="offset points")
    _arrow(ax, pair, SET_COLORS["1+2"], None)
    text = rf"$\mu_{{12}} = C_2\,(\mu_1+\mu_2)$,  $C_2={scale:.3f}$"
    ax.annotate(text, (0.5, 0.06), xycoords="axes fraction", ha="center", fontsize=10)
    spot = (0.62 * pair["x"], 0.62 * pair["y"] + 0.2)
    ax.annotate(r"$\mu_{12}$", spot, ha="right", color=SET_COLORS["1+2"])
    ax.set_title("A pair is the scaled sum of its labels")
    for ax in axes:
        ax.set_aspect("equal")
        ax.set(xlabel="first feature direction", xticks=[], yticks=[])
    axes[0].set_ylabel("second feature direction")
    # One scale for the late state and its geometry; the early state would be a dot on it.
    limit = 1.25 * np.abs(last.to_numpy()).max() + 0.1
    limits = [1.15 * np.abs(points.query("step == @steps[0]")[["x", "y"]].to_numpy()).max()]
    for ax, size in zip(axes, limits + [limit] * len(steps), strict=True):
        ax.set(xlim=(-size, size), ylim=(-size, size))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, title="label set")
    return figure


def _scatter(ax, points, means):
    for name, part in points.groupby("set", sort=False):
        marker = "o" if len(name) == 1 else "s"
        color = SET_COLORS[name]
        ax.plot(
            part["x"],
            part["y"],
            marker,
            color=color,
            ms=4.5,
            alpha=0.6,
            label=f"{{{name.replace(chr(43), chr(44) + chr(32))}}}",
        )
    for _, row in means.iterrows():
        line = "-" if len(row["set"]) == 1 else "--"
        ax.plot([0, row["x"]], [0, row["y"]], line, color=SET_COLORS[row["set"]], lw=1.6)
    ax.plot(0, 0, "+", color="0.3", ms=7)


def _arrow(ax, end, color, text):
    properties = {"arrowstyle": "-|>", "color": color, "lw": 2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (end["x"], end["y"]), xytext=(0, 0), arrowprops=properties)
    if text:
        spot = (1.13 * end["x"], 1.13 * end["y"])
        ax.annotate(text, spot, ha="center", va="center", color=color)


def closed_form(check, sweep, curve, threshold):
    """Figure 2: value gaps of the optimiser, and margins on the curves of the scale equations.

    ``check``: K, n, reduction, value_gap; ``sweep`` and ``curve``: strength, m, margin;
    ``threshold``: the strength from which the solution is zero.
    """
    figure, (left, right) = style.grid(1, 2, height=3.6)
    names = [f"K={r.K}, n={r.n}, {r.reduction}" for r in check.itertuples()]
    gaps = check["value_gap"].abs().clip(lower=1e-17)
    left.barh(names, gaps, left=1e-17, color=PALETTE[0], height=0.6)
    left.set_xscale("log")
    left.axvline(1e-11, **GUIDE)
    left.annotate("tolerance", (1e-11, 1.0), xycoords=left.get_xaxis_transform(), ha="right",
                  va="bottom", fontsize=7.5, color="0.4")  # fmt: skip
    left.set(xlim=(1e-17, 1e-9), xlabel=r"$|f_{\mathrm{found}}-f^*|$")
    left.set_title("The optimiser meets the closed form", pad=14)
    left.tick_params(axis="y", labelsize=7)
    left.invert_yaxis()
    for m, part in curve.groupby("m"):
        right.plot(part["strength"], part["margin"], **THEORY)
        own = sweep[sweep["m"] == m]
        right.plot(own["strength"], own["margin"], style.MARKERS[m - 1], color=SIZE_COLORS[m],
                   label=f"$s_{m}$, {SIZE_NAMES[m]}")  # fmt: skip
    right.plot([], [], label="scale equations", **THEORY)
    right.set_xscale("log")
    style.reference(right, threshold, "from here on $W=H=0$", axis="x", **GUIDE)
    right.set(xlabel=r"strength $\lambda_W = N\lambda_H$", ylabel="margin $s_m$")
    right.set_title("Margins (markers: optimiser)", pad=14)
    right.legend(loc="lower left")
    return figure


def scale_curves(curve, dips, measured=None):
    """Figure 3: C_m against the singles' margin.

    ``curve``: reduction, m, margin_1, scale; ``dips``:
    ``{m: (margin, scale)}``; ``measured``: reduction, m, margin_1, scale of optimiser runs."""
    figure, axes = style.grid(1, 2, height=3.5, sharey=True)
    titles = {
        "sum": '"sum": $C_m$ starts at 1, dips, and returns to 1',
        "mean": '"mean": $C_m$ rises from $1/m$ to 1',
    }
    for ax, (reduction, title) in zip(axes, titles.items(), strict=True):
        for m, part in curve[curve["reduction"] == reduction].groupby("m"):
            ax.plot(part["margin_1"], part["scale"], "--", color=SIZE_COLORS[m])
            if measured is not None:
                own = measured.query("reduction == @reduction and m == @m")
                ax.plot(own["margin_1"], own["scale"], style.MARKERS[m - 1], color=SIZE_COLORS[m])
            ax.plot([], [], marker=style.MARKERS[m - 1], ls="--", color=SIZE_COLORS[m],
                    label=f"$m={m}$")  # fmt: skip
            if reduction == "sum":
                ax.plot(*dips[m], "+", color="black", ms=9, zorder=6)
        ax.axhline(1, **GUIDE)
        ax.set(xlabel="margin $s_1$ of the single labels", title=title, xscale="log")
    axes[0].set_ylabel("scale $C_m = s_m/s_1$")
    axes[1].legend(title="labels per sample", loc="lower right")
    return figure


def landscape(gaps, saddles, K):
    """Figure 4: values from random starts by dimension; curvature at saddles, predicted and
    measured."""
    figure, (left, right) = style.grid(1, 2, height=3.4)
    clipped = gaps.assign(gap=gaps["gap"].abs().clip(lower=1e-16))
    positions = {d: i for i, d in enumerate(sorted(clipped["d"].unique()))}
    for d, part in clipped.groupby("d"):
        color = PALETTE[3] if d < K - 1 else PALETTE[0]
        jitter = positions[d] + np.linspace(-0.25, 0.25, len(part))
        left.semilogy(jitter, part["gap"], "o", color=color, alpha=0.7)
    left.axvline(positions[K - 1] - 0.5, **GUIDE)
    left.set_xticks(list(positions.values()), list(positions))
    left.set(xlabel="feature dimension $d$", ylabel=r"value above the global minimum")
    left.set_title(f"From $d=K-1={K - 1}$ on every start reaches the minimum")
    low = 1.12 * saddles["predicted"].min()
    right.plot([low, 0], [low, 0], **THEORY, label="equal")
    for i, (rank, part) in enumerate(saddles.groupby("rank")):
        right.plot(part["predicted"], part["measured"], style.MARKERS[i], color=PALETTE[i],
                   ms=8, label=f"rank {rank}")  # fmt: skip
    right.set(xlabel=r"predicted: $-2\|G\|_2+4\sqrt{\lambda_W\lambda_H}$", ylabel="measured")
    right.set_title("At every saddle: a known way down")
    right.legend()
    return figure


def imbalance(between, groups, K):
    """Figure 5: (a) singles against pairs, (b) frequent and rare pairs.

    ``between``: ratio, nc2, degrees, scale, scale_theory; ``groups``: setting, samples, degrees.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=11, height=3.4)
    for column, color, name in (("nc2", PALETTE[0], "NC2 of $W$"), ("degrees", PALETTE[1],
                                "angle [degrees]")):  # fmt: skip
        left.loglog(between["ratio"], between[column].clip(lower=1e-16), "o-", color=color,
                    label=name)  # fmt: skip
    left.axhline(1e-7, **GUIDE)
    left.annotate("tolerance", (0.02, 1.3e-7), xycoords=left.get_yaxis_transform(), fontsize=7.5,
                  color="0.4")  # fmt: skip
    left.set(xlabel="$n_1/n_2$", ylabel="deviation", ylim=(1e-17, 1e-4))
    left.set_title("Between multiplicities:\nimbalance changes nothing")
    left.legend(loc="upper right")
    middle.semilogx(between["ratio"], between["scale"], "o", color=PALETTE[1], label="optimiser")
    middle.semilogx(between["ratio"], between["scale_theory"], **THEORY, label="theory")
    middle.set(xlabel="$n_1/n_2$", ylabel="$C_2$")
    middle.set_title("Only the scale moves,\nand it barely does")
    center = between["scale"].mean()
    middle.set_ylim(center - 0.01, center + 0.01)
    middle.legend()
    settings = list(groups["setting"].unique())
    for i, setting in enumerate(settings):
        part = groups[groups["setting"] == setting].sort_values("samples", ascending=False)
        places = np.arange(len(part)) + (i - (len(settings) - 1) / 2) * 0.35
        right.bar(places, part["degrees"], 0.33, color=PALETTE[i], label=setting)
    right.set_xticks(range(len(part)), [f"{n}" for n in part["samples"]])
    right.set(xlabel="samples per pair", ylabel="angle to the tag-wise sum [degrees]")
    right.set_title("Inside a multiplicity:\nsmall angles, but not zero")
    right.set_ylim(0, 1.45 * groups["degrees"].max())
    right.legend(title="single labels per class", loc="upper right", ncols=2)
    return figure


def single_imbalance(sets, summary, K):
    """Figure 6: head and tail classes.  ``sets``: i, j, degrees, degrees_weight per pair."""
    figure, axes = style.grid(1, 3, width=11, height=3.6, width_ratios=[1, 1, 0.85])
    top = sets["degrees_weight"].max()
    for ax, column, name in ((axes[0], "degrees", r"$\mu_i+\mu_j$"),
                             (axes[1], "degrees_weight", "$w_i+w_j$")):  # fmt: skip
        image = _pair_map(ax, sets, column, K, vmin=0, vmax=top)
        ax.set_title(f"Angle of a pair to {name}:\n{sets[column].mean():.1f} degrees on average")
        ax.axhline(K / 2 - 0.5, color="white", lw=1)
        ax.axvline(K / 2 - 0.5, color="white", lw=1)
    figure.colorbar(image, ax=axes[1], label="degrees", shrink=0.9)
    classes = np.arange(K)
    for i, (key, name) in enumerate(
        (("mean_norms", r"$\|\mu_k\|$"), ("weight_norms", r"$\|w_k\|$"))
    ):
        values = np.array(summary[key]) / np.mean(summary[key])
        axes[2].plot(classes, values, style.MARKERS[i] + "-", color=PALETTE[i], label=name)
    axes[2].axvline(K / 2 - 0.5, **GUIDE)
    axes[2].set(xlabel="class (left: frequent, right: rare)", ylabel="norm / mean norm")
    axes[2].set_title("Rare classes:\nlong means, short classifier rows")
    axes[2].legend()
    return figure


def _pair_map(ax, sets, column, K, **options):
    matrix = np.full((K, K), np.nan)
    matrix[sets["i"], sets["j"]] = sets[column]
    image = ax.imshow(matrix, cmap=style.SEQUENTIAL, **options)
    ax.set(xlabel="class $j$", ylabel="class $i$", xticks=range(K), yticks=range(K))
    for i in range(K):  # no pair here
        ax.plot([i - 0.5, i + 0.5], [i - 0.5, i + 0.5], color="0.8", lw=0.6)
    return image


def samples(data, pair_counts, *, columns=8):
    """Figure 7: images with their labels, and SVHN's natural pair counts.

    ``data``: a multi-label set; ``pair_counts``: i, j, samples.
    """
    figure = plt.figure(figsize=(11, 3.0))
    left, right = figure.subfigures(1, 2, width_ratios=[1.75, 1])
    axes = left.subplots(2, columns)
    sizes = data.labels.sum(1)
    for row, m in zip(axes, (1, 2), strict=True):
        chosen = (sizes == m).nonzero().flatten()
        chosen = chosen[:: max(1, len(chosen) // columns)][:columns]
        for ax, index in zip(row, chosen.tolist(), strict=False):
            image = data.inputs[index].permute(1, 2, 0).cpu().numpy()
            ax.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
            names = data.labels[index].nonzero().flatten().tolist()
            ax.set_title("{" + ", ".join(map(str, names)) + "}", loc="center", fontsize=8)
        for ax in row:
            ax.set_axis_off()
    left.get_layout_engine().set(hspace=0.02, h_pad=0.02)
    left.suptitle("Composed images and their label sets", x=0.02, ha="left", fontsize=10)
    ax = right.subplots()
    K = int(pair_counts[["i", "j"]].to_numpy().max()) + 1
    image = _pair_map(ax, pair_counts, "samples", K)
    digits = [str(k + 1) for k in range(K)]
    ax.set_xticks(range(K), digits)
    ax.set_yticks(range(K), digits)
    ax.set(xlabel="larger digit", ylabel="smaller digit")
    ax.set_title("House numbers (SVHN): pairs are unequal")
    right.colorbar(image, ax=ax, label="images", shrink=0.85)
    return figure


def collapse(histories, predictions, floors):
    """Figure 8: collapse and margins against epochs.

    ``histories``: tidy, columns net, epoch and the metrics; ``predictions``: net, margin_1,
    margin_2, scale_2 of the theory; ``floors``: ``{net: infimum of the mean loss}``.
    """
    figure, grid = style.grid(2, 4, width=11.5, height=2.6)
    axes = grid.ravel()
    for ax, metric in zip(axes, METRIC_NAMES, strict=False):
        for net, part in histories.groupby("net", sort=False):
            if part[metric].max() < 1e-5:
                ax.annotate("frozen ETF: exactly 0", (0.97, 0.95), xycoords="axes fraction",
                            ha="right", va="top", fontsize=7.5, color=NET_COLORS[net])  # fmt: skip
                continue
            ax.semilogy(part["epoch"], part[metric], "o-", color=NET_COLORS[net])
            other = f"official_{'angle' if metric == 'angle_2' else metric}"
            if other in part:
                ax.semilogy(part["epoch"], part[other], ":", color=NET_COLORS[net], lw=1.2)
        ax.set_title(METRIC_NAMES[metric])
        _plain_log(ax)
    loss, margin, scale = axes[5:]
    for net, part in histories.groupby("net", sort=False):
        color, exact = NET_COLORS[net], predictions.set_index("net").loc[net]
        loss.semilogy(part["epoch"], part["data_loss"] - floors[net], "o-", color=color)
        for m, marker in ((1, "o-"), (2, "s-")):
            margin.plot(part["epoch"], part[f"margin_{m}"], marker, color=color)
            margin.axhline(exact[f"margin_{m}"], color=color, ls="--", lw=1)
        scale.plot(part["epoch"], part["scale_2"], "o-", color=color, label=NET_NAMES[net])
        scale.axhline(exact["scale_2"], color=color, ls="--", lw=1)
    _plain_log(loss)
    loss.set_title("training loss above its floor")
    margin.set_title("margins $s_1$ (circles), $s_2$ (squares)")
    scale.set_title("scale $C_2$")
    scale.set_ylim(0.65, 1.05)
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    title = "Networks collapse, with a frozen classifier even further"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    handles, labels = scale.get_legend_handles_labels()
    handles += [plt.Line2D([], [], color="0.3", ls=":"), plt.Line2D([], [], color="0.3", ls="--")]
    labels += ["official convention", "unconstrained-features theory"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _plain_log(ax):
    """Ticks at 1, 2, 5 times powers of ten, written as plain numbers."""
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def decoding(table):
    """Figure 9: exact match by decoder and number of labels.  ``table``: net, decoder, m,
    exact_match, samples."""
    nets = [net for net in table["net"].unique() if net != "bce"]
    figure, axes = style.grid(1, len(nets), height=3.2, sharey=True, squeeze=False)
    for ax, net in zip(axes[0], nets, strict=True):
        part = table[table["net"].isin([net, "bce"]) & (table["decoder"] != "sign")]
        names = list(part["decoder"].unique())
        for i, (m, own) in enumerate(part.groupby("m")):
            own = own.set_index("decoder").reindex(names)
            width = 0.76 / part["m"].nunique()
            places = np.arange(len(names)) - 0.38 + (i + 0.5) * width
            error = np.sqrt(own["exact_match"] * (1 - own["exact_match"]) / own["samples"])
            ax.barh(places, own["exact_match"], 0.94 * width, xerr=error, color=SIZE_COLORS[m],
                    error_kw={"lw": 0.8}, label=SIZE_NAMES[m])  # fmt: skip
            for place, value in zip(places, own["exact_match"], strict=True):
                ax.annotate(f"{value:.2f}", (0.02, place), va="center", color="white", fontsize=7.5)
        ax.set_yticks(range(len(names)), names)
        ax.set(xlim=(0, 1.02), xlabel="test images decoded exactly", title=NET_NAMES[net])
    axes[0][0].invert_yaxis()
    title = "Nearest codewords name pairs that the largest gap misses"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def unseen(table):
    """Figure 10: pairs that training never had.  ``table``: net, decoder, sets, samples,
    exact_match."""
    figure, ax = style.grid(1, 1, width=7, height=3.0)
    names = list(table["decoder"].unique())
    for i, (label, color) in enumerate((("trained", PALETTE[7]), ("never trained", PALETTE[3]))):
        own = table[table["sets"] == label].set_index("decoder").reindex(names)
        places = np.arange(len(names)) + (i - 0.5) * 0.38
        error = np.sqrt(own["exact_match"] * (1 - own["exact_match"]) / own["samples"])
        ax.barh(places, own["exact_match"], 0.36, xerr=error, color=color,
                error_kw={"lw": 0.8}, label=label)  # fmt: skip
        for place, value in zip(places, own["exact_match"], strict=True):
            ax.annotate(f"{value:.2f}", (0.02, place), va="center", color="white", fontsize=7.5)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.02), xlabel="test pairs decoded exactly")
    ax.set_title("Codewords from single labels decode pairs that were never trained")
    figure.legend(loc="outside lower center", ncols=2, title="pairs of labels")
    return figure


def parameter_table(rows):
    """Parameters of learned and frozen classifiers as a styled table; ``rows``: architecture,
    learned, frozen, saved."""
    table = pd.DataFrame(rows)
    formats = {"learned": "{:,}", "frozen": "{:,}", "saved": "{:.2%}"}
    return table.style.hide(axis="index").format(formats)
