"""Figures of result 3.  Each takes the tidy tables it draws and returns the figure.

A title that states a finding does so only if its claim ``holds``; otherwise it says what is drawn.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import ticker

from nclib.plots import panels, style
from nclib.plots.style import GUIDE, PALETTE, THEORY

# One colour per multiplicity and per network, in every figure.
SIZE_COLORS = {m: PALETTE[m - 1] for m in (1, 2, 3, 4)}
SIZE_NAMES = {1: "single labels", 2: "pairs", 3: "triples", 4: "quadruples"}
SET_COLORS = {
    "1": PALETTE[0], "2": PALETTE[2], "3": PALETTE[3],
    "1+2": PALETTE[9], "2+3": PALETTE[1], "1+3": PALETTE[4],
}  # fmt: skip
NET_LOOKS = {
    "learned": (PALETTE[0], "o", "learned classifier"),
    "frozen": (PALETTE[1], "s", "frozen ETF, same $d$"),
    "frozen, d = K": (PALETTE[3], "^", "frozen ETF, $d=K$"),
    "bce": (PALETTE[2], "D", "binary cross-entropy"),
    "no pairs": (PALETTE[7], "v", "control: never saw a pair"),
}
METRIC_NAMES = {
    "nc1": "NC1", "nc2_centered": "NC2 (classifier)", "nc2_means": "NC2 (means)", "nc3": "NC3",
    "angle_2": "angle ratio of pairs",
}  # fmt: skip


def tagwise_picture(points, means, scale):
    """Figure 1: K = 3 in the plane, early and late in training, and the geometry of the end.

    ``points``: step, set, x, y per sample; ``means``: the same per label set; ``scale``: C_2.
    """
    steps = sorted(points["step"].unique())
    figure, axes = style.grid(1, len(steps) + 1, width=11, height=3.8)
    for ax, step in zip(axes, steps, strict=False):
        _scatter(ax, points[points["step"] == step], means[means["step"] == step])
        ax.set_title(f"After {step} steps of gradient descent")
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
    ax.set_title("A pair and the sum of its labels")
    # One scale for the late state and its geometry; the early state would be a dot on it.
    limit = 1.25 * np.abs(last.to_numpy()).max() + 0.1
    limits = [1.15 * np.abs(points.query("step == @steps[0]")[["x", "y"]].to_numpy()).max()]
    for ax, size in zip(axes, limits + [limit] * len(steps), strict=True):
        ax.set_aspect("equal")
        ax.set(xlabel="first feature direction", xticks=[], yticks=[])
        ax.set(xlim=(-size, size), ylim=(-size, size))
    axes[0].set_ylabel("second feature direction")
    _legend(figure, axes[0], 6, "label set")
    return figure


def _scatter(ax, points, means):
    for name, part in points.groupby("set", sort=False):
        marker, label = "o" if len(name) == 1 else "s", "{" + name.replace("+", ", ") + "}"
        look = {"color": SET_COLORS[name], "ms": 4.5, "alpha": 0.6, "label": label}
        ax.plot(part["x"], part["y"], marker, **look)
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


def _legend(figure, ax, columns, title=None):
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title)


def closed_form(check, sweep, curve, threshold):
    """Figure 2: value gaps of the optimiser, and margins on the curves of the scale equations.

    ``check``: K, n, reduction, value_gap; ``sweep`` and ``curve``: strength, m, margin;
    ``threshold``: the strength from which the solution is zero.
    """
    figure, (left, right) = style.grid(1, 2, height=3.6)
    names = [f"K={r.K}, n={r.n}, {r.reduction}" for r in check.itertuples()]
    left.plot(check["value_gap"].abs().clip(lower=1e-17), names, "o", color=PALETTE[0])
    left.set_xscale("log")
    left.axvline(1e-11, **GUIDE)
    left.annotate("tolerance", (1e-11, 1.0), xycoords=left.get_xaxis_transform(), ha="right",
                  va="bottom", fontsize=7.5, color="0.4")  # fmt: skip
    left.set(xlim=(5e-18, 1e-9), xlabel=r"$|f_{\mathrm{found}}-f^*|$")
    left.set_title("Optimiser and closed form", pad=14)
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


def scale_curves(curve, dips, measured, holds):
    """Figure 3: C_m against the singles' margin.

    ``curve``, ``measured`` (optimiser): reduction, m, margin_1, scale; ``dips``:
    ``{m: (margin, scale)}``; ``holds``: row L18."""
    figure, axes = style.grid(1, 2, height=3.5)
    titles = ('"sum": from 1 through a dip back to 1', '"mean": rising from $1/m$ to 1')
    for ax, way, title in zip(axes, ("sum", "mean"), titles, strict=True):
        for m, part in curve[curve["reduction"] == way].groupby("m"):
            ax.plot(part["margin_1"], part["scale"], **THEORY)
            place = part.iloc[12][["margin_1", "scale"]] if way == "mean" else dips[m]
            below = {"xytext": (0, 3 if way == "mean" else -16), "textcoords": "offset points"}
            ax.annotate(f"$m={m}$", place, ha="center", fontsize=8, **below)
            own = measured.query("reduction == @way and m == @m")
            ax.plot(own["margin_1"], own["scale"], style.MARKERS[m - 1], color=SIZE_COLORS[m],
                    label=f"optimiser, {SIZE_NAMES[m]}" if len(own) else None)  # fmt: skip
            if way == "sum":
                ax.plot(*dips[m], "+", color="black", ms=9, zorder=6)
        ax.axhline(1, **GUIDE)
        ax.margins(y=0.12)
        ax.set(xlabel="margin $s_1$ of the single labels", xscale="log")
        ax.set_title(title if holds else f'"{way}": $C_m$ against $s_1$')
    axes[0].set_ylabel("scale $C_m = s_m/s_1$")
    axes[1].legend(loc="lower right")
    return figure


def landscape(gaps, saddles, K):
    """Figure 4: values from random starts by dimension; curvature at saddles, predicted and
    measured.  ``gaps``: d, start, gap; ``saddles``: rank, predicted, measured."""
    figure, (left, right) = style.grid(1, 2, height=3.4)
    panels.starts(left, gaps, "d", edge=K - 1)
    left.set(xlabel="feature dimension $d$", ylabel="value above the global minimum")
    left.set_title(r"Random starts (right of the line: $d\geq K-1$)")
    looks = {
        rank: (PALETTE[i], style.MARKERS[i]) for i, rank in enumerate(saddles["rank"].unique())
    }
    panels.diagonal(right, saddles, "predicted", "measured", by="rank", looks=looks,
                    labels={rank: f"rank {rank}" for rank in looks})  # fmt: skip
    right.set(xlabel=r"predicted: $-2\|G\|_2+4\sqrt{\lambda_W\lambda_H}$", ylabel="measured")
    right.xaxis.set_major_locator(ticker.MaxNLocator(5))
    right.set_title(f"Curvature of the way out of saddles, $d=K-1={K - 1}$")
    right.legend()
    return figure


def imbalance(between, groups):
    """Figure 5: (a) singles against pairs, (b) frequent and rare pairs.

    ``between``: ratio, nc2, degrees, scale, scale_theory; ``groups``: setting, samples, degrees.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=11, height=3.4)
    for i, (column, name) in enumerate((("nc2", "NC2 of $W$"), ("degrees", "angle [degrees]"))):
        drawn = between[column].clip(lower=1e-16)
        left.loglog(between["ratio"], drawn, f"{style.MARKERS[i]}-", color=PALETTE[i], label=name)
    left.axhline(1e-7, **GUIDE)
    left.annotate("tolerance", (0.02, 1.3e-7), xycoords=left.get_yaxis_transform(), fontsize=7.5,
                  color="0.4")  # fmt: skip
    left.set(xlabel="$n_1/n_2$", ylabel="deviation", ylim=(1e-17, 1e-4))
    left.set_title("Singles against pairs:\nETF and tag-wise average")
    left.legend(loc="upper right")
    middle.semilogx(between["ratio"], between["scale"], "o", color=PALETTE[1], label="optimiser")
    middle.semilogx(between["ratio"], between["scale_theory"], **THEORY, label="theory")
    center = between["scale"].mean()
    middle.set(xlabel="$n_1/n_2$", ylabel="$C_2$", ylim=(center - 0.003, center + 0.003))
    middle.set_title("Singles against pairs:\nthe scale")
    middle.legend()
    _group_bars(right, groups)
    right.set_ylabel("angle to the tag-wise sum [degrees]")
    right.set_title("Frequent and rare pairs,\nexact minimum")
    right.legend(title="single labels per class", loc="upper right", ncols=2)
    return figure


def _group_bars(ax, groups, y="degrees", looks=None):
    """One bar per group of equally frequent pairs and setting."""
    settings = list(groups["setting"].unique())
    for i, setting in enumerate(settings):
        part = groups[groups["setting"] == setting].groupby("samples")[y]
        part = part.agg(["mean", "min", "max"]).iloc[::-1]
        places = np.arange(len(part)) + (i - (len(settings) - 1) / 2) * 0.8 / len(settings)
        color = PALETTE[i] if looks is None else looks[setting]
        # Rounding can put the mean of equal values beyond them.
        span = part[["min", "max"]].sub(part["mean"], axis=0).abs().T.to_numpy()
        ax.bar(places, part["mean"], 0.76 / len(settings), color=color, label=setting, yerr=span)
    ax.set_xticks(range(len(part)), [f"{n}" for n in part.index])
    ax.set(xlabel="samples per pair", ylim=(0, 1.45 * groups[y].max()))


def single_imbalance(sets, norms, K):
    """Figure 6: head and tail classes.  ``sets``: i, j, degrees, degrees_weight per pair;
    ``norms``: mean, weight per class."""
    figure, axes = style.grid(1, 3, width=11, height=3.6, width_ratios=[1, 1, 0.85])
    top = sets["degrees_weight"].max()
    names = {"degrees": r"$\mu_i+\mu_j$", "degrees_weight": "$w_i+w_j$"}
    for ax, (column, name) in zip(axes, names.items(), strict=False):
        image = _pair_map(ax, sets, column, K, vmin=0, vmax=top)
        ax.set_title(f"Angle of a pair to {name}:\n{sets[column].mean():.1f} degrees on average")
        ax.axhline(K / 2 - 0.5, color="white", lw=1)
        ax.axvline(K / 2 - 0.5, color="white", lw=1)
    figure.colorbar(image, ax=axes[1], label="degrees", shrink=0.9)
    for i, (key, name) in enumerate((("mean", r"$\|\mu_k\|$"), ("weight", r"$\|w_k\|$"))):
        values = norms[key].to_numpy()
        axes[2].plot(values / values.mean(), style.MARKERS[i] + "-", color=PALETTE[i], label=name)
    axes[2].axvline(K / 2 - 0.5, **GUIDE)
    axes[2].set(xlabel="class (left: frequent, right: rare)", ylabel="norm / mean norm")
    axes[2].set_title("Norms of the means\nand of the classifier rows")
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


def blocks(alone, mixed, K):
    """Figure 6b: nonnegative features.  ``alone``: m, kind, value above the minimum of a single
    multiplicity; ``mixed``: share, t, weight of the subset sizes in the minimum of a mixture."""
    figure, (left, right) = style.grid(1, 2, height=3.3)
    kinds = enumerate(alone["kind"].unique())
    looks = {kind: (PALETTE[i], style.MARKERS[i]) for i, kind in kinds}
    beside = alone.assign(m=alone["m"] + 0.05 * (pd.factorize(alone["kind"])[0] - 1))
    panels.lines(left, beside, "m", "excess", by="kind", looks=looks, points=True)
    left.axhline(0, **THEORY)
    left.axvline(K / 2, **GUIDE)
    left.annotate("$m=K/2$", (K / 2, 0.97), xycoords=left.get_xaxis_transform(), fontsize=8)
    left.set(xlabel="labels per sample $m$", ylabel="value above the exact minimum")
    left.set(title=f"$K={K}$, every set of $m$ labels once", xticks=sorted(alone["m"].unique()))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    wide = mixed.pivot(index="share", columns="t", values="weight").fillna(0.0)
    right.stackplot(wide.index, wide.T, colors=PALETTE[: len(wide.columns)])
    for t, weight in wide.items():  # its name in the middle of where it leads
        if (own := wide.index[weight > 0.5]).size:
            right.text((own[0] * own[-1]) ** 0.5, 0.5, f"$t={t}$", ha="center", color="w")
    right.set(xlabel="triples per set / singles per class", ylabel="share of the subset sizes",
              xscale="log", ylim=(0, 1))  # fmt: skip
    right.set_title("$K=5$, singles and triples: axes of subsets of $t$ classes")
    return figure


def samples(data, pair_counts):
    """Figure 7: images with their labels, and SVHN's natural pair counts.

    ``data``: a multi-label set; ``pair_counts``: i, j, samples.
    """
    figure, columns = plt.figure(figsize=(11, 3.0)), 8
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
    ax.set_title("House numbers (SVHN): samples per pair")
    right.colorbar(image, ax=ax, label="images", shrink=0.85)
    return figure


def collapse(curves, predictions, floor, holds):
    """Figure 8: collapse, margins, scale and soft IoU against epochs; bands are ranges over seeds.

    ``curves``: net, seed, epoch and the metrics; ``predictions``: ``{net: theory}`` of the nets
    that have one; ``floor``: infimum of the mean loss; ``holds``: row L15."""
    figure, grid = style.grid(2, 5, width=12.5, height=2.6)
    axes, names = grid.ravel(), {net: look[2] for net, look in NET_LOOKS.items()}
    looks = {net: look[:2] for net, look in NET_LOOKS.items()}
    curves = curves.assign(above=curves["data_loss"] - floor)
    shown = METRIC_NAMES | {
        "above": "training loss above its floor",
        "margin_1": "margin $s_1$",
        "margin_2": "margin $s_2$",
        "scale_2": "scale $C_2$",
        "soft_iou_2": "soft IoU of pairs",
    }
    for ax, (metric, name) in zip(axes, shown.items(), strict=True):
        log = metric in METRIC_NAMES or metric == "above"
        zero = curves.groupby("net")[metric].transform("max") < 1e-5
        other = (curves["net"] == "bce") & (metric == "above")  # another loss, another floor
        part = curves[~zero & ~other]
        panels.lines(ax, part, "epoch", metric, by="net", looks=looks, labels=names)
        if zero.any():
            ax.annotate("frozen ETF: exactly 0", (0.97, 0.95), xycoords="axes fraction",
                        ha="right", va="top", fontsize=7.5, color=PALETTE[1])  # fmt: skip
        for net, exact in predictions.items():
            if metric in exact:
                ax.axhline(exact[metric], color=looks[net][0], ls="--", lw=1)
        ax.set(title=name, xlabel="", ylabel="")
        if log:
            ax.set_yscale("log")
            _plain_log(ax)
    for ax in grid[-1]:
        ax.set_xlabel("epoch")
    finding = "A classifier frozen at the ETF collapses further than a learned one"
    otherwise = "Collapse of the networks while they are trained"
    style.titled(figure, finding if holds else otherwise, 11)
    axes[0].plot([], [], "--", color="0.3", lw=1, label="unconstrained-features theory")
    _legend(figure, axes[0], 6)
    return figure


def _plain_log(ax):
    """Ticks at 1, 2, 5 times powers of ten, written as plain numbers."""
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def control(table, holds):
    """Figure 8b: the angle ratio with and without pairs in training, a dot per seed.

    ``table``: task, net, pairs ("trained on pairs", "never saw a pair"), seed, angle_2; ``holds``:
    row L22."""
    rows = table[["task", "net"]].drop_duplicates().reset_index(drop=True)
    figure, ax = style.grid(1, 1, width=9, height=0.42 * len(rows) + 1.5)
    place = {(row.task, row.net): i for i, row in enumerate(rows.itertuples())}
    for i, (kind, part) in enumerate(table.groupby("pairs", sort=False)):
        at = [place[row.task, row.net] for row in part.itertuples()]
        color = PALETTE[0] if kind == "trained on pairs" else PALETTE[7]
        ax.plot(part["angle_2"], at, style.MARKERS[3 * i], color=color, ms=7, mec="w", label=kind)
    for key, i in place.items():
        own = table[(table["task"] == key[0]) & (table["net"] == key[1])]["angle_2"]
        ax.plot([own.min(), own.max()], [i, i], color="0.8", lw=1, zorder=0)
    ax.set_yticks(range(len(rows)), [f"{task}\n{net}" for task, net in place], fontsize=8)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.axvline(1, **GUIDE)
    ax.set(xlabel="angle of the pairs to their tag-wise sum / mean angle (1: no relation)")
    ax.set(xlim=(0, 1.05 * max(1, table["angle_2"].max())))
    finding = "On arbitrary label sets, linear features have learned the tag-wise average"
    ax.set_title(finding if holds else "Is the tag-wise average learned?")
    _legend(figure, ax, 2)
    return figure


def uneven(groups, triples):
    """Figure 8c: nets on frequent and rare pairs, and on triples, beside their controls; bars and
    lines are means over the seeds, whiskers and bands their range.

    ``groups``: setting, samples, seed, ratio; ``triples``: net, m, seed, angle, scale, theory."""
    figure, (left, middle, right) = style.grid(1, 3, width=11, height=3.3)
    looks = dict(zip(groups["setting"].unique(), (PALETTE[0], PALETTE[7], "black"), strict=True))
    _group_bars(left, groups, "ratio", looks)
    left.set(ylabel="angle ratio", title="Frequent and rare pairs")
    left.legend(loc="upper left")
    nets = {net: (look, "oD"[i]) for i, (net, look) in enumerate(list(looks.items())[:2])}
    for ax, column in ((middle, "angle"), (right, "scale")):
        panels.lines(ax, triples, "m", column, by="net", looks=nets)
        ax.set(xlabel="labels per sample $m$", xticks=[2, 3], xlim=(1.9, 3.1))
    right.plot(triples["m"], triples["theory"], "_", color="black", ms=16, label="theory")
    middle.set(ylabel="angle ratio", title="Pairs and triples", ylim=(0, None))
    right.set(ylabel="scale $C_m$", title="Pairs and triples: scale", ylim=(0, None))
    right.legend(loc="lower left")
    return figure


def decoding(table, holds):
    """Figure 9: exact match by decoder and number of labels.  ``table``: net, decoder, m,
    exact_match, samples; ``holds``: row L16."""
    shown = [net for net in NET_LOOKS if net in set(table["net"])]
    figure, axes = style.grid(1, len(shown), width=3.2 * len(shown) + 1, height=3.3, sharey=True,
                              squeeze=False)  # fmt: skip
    for ax, net in zip(axes[0], shown, strict=True):
        _decoder_bars(ax, table[table["net"] == net], list(table["decoder"].unique()), "m",
                      SIZE_COLORS, SIZE_NAMES)  # fmt: skip
        ax.set(xlabel="test images decoded exactly", title=NET_LOOKS[net][2])
    axes[0][0].invert_yaxis()
    finding = "Nearest codewords name pairs that the largest gap misses"
    style.titled(figure, finding if holds else "The same decoders on every network", 11)
    _legend(figure, axes[0][0], 4)
    return figure


def _decoder_bars(ax, part, decoders, by, colors, names):
    """Bars with binomial standard errors: decoders down, one bar per value of ``by``."""
    part = part.groupby([by, "decoder"], sort=False, as_index=False)[
        ["exact_match", "samples"]
    ].agg({"exact_match": "mean", "samples": "sum"})
    width = 0.76 / part[by].nunique()
    for i, (key, own) in enumerate(part.groupby(by, sort=False)):
        own = own.set_index("decoder").reindex(decoders)
        places = np.arange(len(decoders)) - 0.38 + (i + 0.5) * width
        error = np.sqrt(own["exact_match"] * (1 - own["exact_match"]) / own["samples"])
        ax.barh(places, own["exact_match"], 0.94 * width, xerr=error, color=colors[key],
                error_kw={"lw": 0.8}, label=names[key])  # fmt: skip
        for place, value in zip(places, own["exact_match"], strict=True):
            if pd.notna(value):
                inside = value > 0.15
                ax.annotate(f"{value:.2f}", (0.02 if inside else value + 0.05, place), fontsize=7,
                            va="center", color="white" if inside else "0.3")  # fmt: skip
    ax.set_yticks(range(len(decoders)), decoders)
    ax.set(xlim=(0, 1.02))


def unseen(table, holds):
    """Figure 10: pairs that training never had.  ``table``: net, decoder, sets, m, samples,
    exact_match; ``holds``: row L16."""
    pairs, shown = table[table["m"] == 2], ("learned", "bce")
    figure, axes = style.grid(1, 2, width=9, height=3.3, sharey=True)
    colors = {"trained": PALETTE[7], "never trained": PALETTE[3]}
    for ax, net in zip(axes, shown, strict=True):
        part = pairs[pairs["net"] == net].sort_values("sets", ascending=False)
        _decoder_bars(
            ax, part, list(pairs["decoder"].unique()), "sets", colors, {key: key for key in colors}
        )
        ax.set(xlabel="test pairs decoded exactly", title=NET_LOOKS[net][2])
    axes[0].invert_yaxis()
    finding = "Codewords from single labels decode pairs that were never trained"
    style.titled(figure, finding if holds else "Pairs that were never trained", 11)
    _legend(figure, axes[0], 2, "pairs of labels")
    return figure


def parameter_table(table):
    """``table`` in a readable form: architecture, parameters with a learned and with a frozen
    classifier, share saved."""
    formats = {"learned": "{:,}", "frozen": "{:,}", "saved": "{:.2%}"}
    return table.style.hide(axis="index").format(formats)
