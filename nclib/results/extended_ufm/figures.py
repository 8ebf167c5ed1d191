"""Figures of result 5.  Each takes the tidy tables it draws and returns the figure."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from nclib.plots import style
from nclib.plots.panels import heatmaps, lines, matrices
from nclib.plots.style import GUIDE, PALETTE, THEORY, fixed, scales

LAYERS = {"H1": PALETTE[1], "H2": PALETTE[0]}  # the layer before the last, and the last one
DEPTHS = {M: (color, "o") for M, color in enumerate(PALETTE[:6], start=1)}
KEYS = {M: f"$M={M}$" for M in DEPTHS}
NC1, OF = r"Tr $\Sigma_W$ / Tr $\Sigma_B$", "distance to an orth. frame"


def _cross(K):
    """Orthogonal-frame distance of an ETF, and the other way round."""
    return np.sqrt(2 - 2 * np.sqrt((K - 1) / K))


def plain_model(table, K, floors):
    """One layer, without and with free bias.  ``table``: model, step, value, nc1, nc1_pinv, of,
    etf, nc3; ``floors``: model -> f*."""
    panels = [
        ("value", "objective $f$", "The objective meets its closed form"),
        ("nc1", NC1, "Features of a class coincide"),
        ("nc1_pinv", r"Tr $(\Sigma_W\Sigma_B^+)/K$", "… first in the span of the means"),
        ("of", OF, "No bias: class means are orthogonal"),
        ("etf", "ETF distance, centred", "Centred, both are a simplex ETF"),
        ("nc3", "NC3", "Classifier and means align"),
    ]
    figure, axes = style.grid(2, 3, width=9.0, height=2.1, sharex=True)
    table = table[table["step"] > 0]
    looks = dict(zip(floors, ((PALETTE[0], ""), (PALETTE[1], "")), strict=True))
    for ax, (column, label, title) in zip(axes.flat, panels, strict=True):
        log = "x" if column == "value" else "xy"
        lines(ax, table, "step", column, by="model", looks=looks, log=log, title=title,
              ylabel=label, xlabel="gradient-descent step" if ax in axes[1] else "")  # fmt: skip
        for line, width in zip(ax.lines, (2.6, 1.1), strict=True):
            line.set_linewidth(width)  # the curves lie on each other
        if column != "value":
            ax.set_ylim(1e-15, 1e2)
    for value in floors.values():
        axes[0, 0].axhline(value, **THEORY)
    style.reference(axes[1, 0], _cross(K), "a simplex ETF")
    axes[1, 0].legend(*axes[0, 0].get_legend_handles_labels(), loc="lower left")
    return fixed(figure)


def three_models(model_table, net_table, rates):
    """Linear and ReLU model and a network side by side (claims 5.E9, E10).

    ``model_table``: model (``linear``/``ReLU``), layer (H1, H2), step, seed, excess, nc1, of;
    ``net_table``: epoch, layer (``H1`` = last but one block, ``H2`` = last), excess, nc1, of;
    ``rates``: layer -> rate of NC1 in the late phase, per step.
    """
    figure, axes = style.grid(3, 3, width=9.0, height=1.85, sharex="col")
    linear, relu = (model_table[model_table["model"] == m] for m in ("linear", "ReLU"))
    columns = [
        (linear, "step", "Two linear layers:\nboth levels against a frame"),
        (relu, "step", "A ReLU between them:\none line per start"),
        (net_table.assign(seed=0), "epoch", "A network, MSE without bias:\nits last two blocks"),
    ]
    for column, (table, x, title) in zip(axes.T, columns, strict=True):
        for (layer, _), own in table[table[x] > 0].groupby(["layer", "seed"]):
            for ax, metric in zip(column, ("excess", "nc1", "of"), strict=True):
                shade = LAYERS.get(layer) if ax is not column[0] else "0.35"
                if layer in LAYERS and (ax is not column[0] or layer == "H2"):
                    ax.plot(own[x], own[metric], color=shade, lw=1.3)
        for ax in column:
            scales(ax, "x" if x == "epoch" and ax is not axes[1, 2] else "xy")
        column[0].set_title(title)
        column[2].set_xlabel("epoch" if x == "epoch" else "gradient-descent step")
    last = linear["step"].max()
    for layer, rate in rates.items():
        part = linear[(linear["layer"] == layer) & linear["step"].between(0.07 * last, 0.35 * last)]
        curve = 8 * part["nc1"].iloc[-1] * np.exp(rate * (part["step"] - part["step"].iloc[-1]))
        axes[1, 0].plot(part["step"], curve, **THEORY)
    names = {"H2": ("$H_2$: before the classifier", "last block")}
    names["H1"] = ("$H_1$: one layer earlier", "the one before")
    where = {"xycoords": "axes fraction", "fontsize": 7.5}
    axes[1, 0].annotate("dashed: predicted rates", (0.05, 0.08), **where)
    for height, (layer, texts) in zip((0.2, 0.08), names.items(), strict=True):
        for ax, text in zip(axes[1, 1:], texts, strict=True):
            ax.annotate(text, (0.05, height), color=LAYERS[layer], **where)
    for ax, label in zip(axes[:, 0], ("$f-f^*$", NC1, "distance to\nan orth. frame"), strict=True):
        ax.set(ylabel=label, ylim=(1e-15, 1e3))
    axes[0, 2].set_ylabel("objective")
    return fixed(figure)


def gram_maps(table, titles=None, **options):
    """Cosines of class means as heat maps.  ``table``: name, row, column, cosine; ``titles``:
    name -> text."""
    maps = matrices(table, value="cosine")
    return heatmaps(maps, label="cosine of class means", titles=titles, **{"digits": 2} | options)


def phase_diagram(curves, sweeps, thresholds):
    """Scale and loss against κ with the sweeps up and down.  ``curves``: M, kappa, local, u, value;
    ``sweeps``: M, direction, kappa, scale, value; ``thresholds``: M -> (κ*, κ_ex)."""
    figure, (left, right) = style.grid(1, 2, width=8.6, height=3.1)
    for M, part in curves.groupby("M"):
        star, exists = thresholds[M]
        below, above = part[part["kappa"] <= star], part[part["kappa"].between(star, exists)]
        left.plot(below["kappa"], below["u"], **(THEORY | {"linewidth": 1}))
        left.plot(above["kappa"], above["local"], color="black", ls=":", lw=0.9)
        right.plot(part["kappa"], part["value"], **(THEORY | {"linewidth": 1}))
        left.axvline(star, color=PALETTE[M - 1], lw=0.8, alpha=0.7)
        text = {"xycoords": ("data", "axes fraction"), "fontsize": 7.5, "ha": "center"}
        left.annotate(f"$M={M}$", (star, 1.01), color=PALETTE[M - 1], **text)
    look = {"up": ("^", None), "down": ("v", "none")}
    for (M, direction), part in sweeps.groupby(["M", "direction"]):
        marker, fill = look[direction]
        for ax, column in ((left, "scale"), (right, "value")):
            color = {"color": PALETTE[M - 1], "mfc": fill or PALETTE[M - 1]}
            ax.plot(part["kappa"], part[column], marker, ms=4.5, mew=0.9, **color)
    left.plot([], [], "^", color="0.4", label=r"optimiser, $\kappa$ rising")
    left.plot([], [], "v", color="0.4", mfc="none", label=r"optimiser, $\kappa$ falling")
    left.plot([], [], label="global minimum", **THEORY)
    left.plot([], [], "k:", lw=0.9, label=r"local minimum, $\kappa^*$ to $\kappa_{ex}$")
    left.set(xlabel=r"$\kappa = K\,(n\Lambda)^{1/(M+1)}$", ylabel="scale $u$", ylim=(-0.03, 1.05))
    left.set_title("One layer fades out; two or more jump to zero\n")
    left.legend(loc="upper right")
    title = "Followed upwards, the optimiser stays on the old\nbranch, even where zero is better"
    right.set(xlabel=r"$\kappa$", ylabel="objective", ylim=(0, 0.62), title=title)
    return figure


def loss_ladder(table, levels):
    """Where random starts end.  ``table``: M, init_scale, value, rank; ``levels``: M -> f_0…f_K."""
    depths = sorted(table["M"].unique())
    figure, (first, *bars) = style.grid(1, len(depths) + 1, width=9.0, height=2.9)
    shades = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(levels[depths[0]])))
    rng = np.random.default_rng(0)
    for ax, M in zip(bars, depths, strict=True):
        part = table[table["M"] == M]
        for level in levels[M]:
            first.plot([M - 0.35, M + 0.35], [level, level], **(THEORY | {"zorder": 1}))
        places = M + rng.uniform(-0.25, 0.25, len(part))
        first.scatter(places, part["value"], s=7, alpha=0.5, color=shades[part["rank"]], lw=0)
        ranks = part.groupby("init_scale")["rank"].value_counts(normalize=True).unstack()
        base = np.zeros(len(ranks))
        for r, height in ranks.reindex(columns=range(len(shades)), fill_value=0).fillna(0).items():
            options = {"color": shades[r], "label": f"rank {r}", "width": 0.8}
            ax.bar(range(len(ranks)), height, bottom=base, **options)
            base += height.to_numpy()
        ax.set_xticks(range(len(ranks)), [f"{s:g}" for s in ranks.index])
        ax.set(xlabel="initial scale", ylim=(0, 1), title=f"$M={M}$: where\nruns end")
        ax.tick_params(labelleft=ax is bars[0])
    first.set(xlabel="layers $M$", ylabel="final loss", xticks=depths)
    first.set_title("Dots: runs; dashed:\npredicted levels $f_r$")
    bars[0].set_ylabel("share of runs")
    bars[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def bias_geometry(theory, measured, maps, opening, K):
    """Bias decay against geometry: spectra and distances, then Gram matrices (``maps``: name, row,
    column, cosine).  ``opening``: M -> λ_b at which the mean direction appears."""
    figure = plt.figure(figsize=(9.0, 4.4))
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.45, 1])
    axes = top.subplots(1, 3)
    panels = [
        ("mean", r"eigenvalue of $\bar H\bar H^\top$", "A mean direction opens up"),
        ("of", OF, "From ETF to orthogonal frame"),
        ("bias", "bias $b$", r"The bias falls from $1/K$ to zero"),
    ]
    for ax, (column, label, title) in zip(axes, panels, strict=True):
        for M, part in theory.groupby("M"):
            ax.plot(part["lambda_b"], part[column], **THEORY)
            ax.axvline(opening[M], color=PALETTE[M - 1], lw=0.8, alpha=0.5)
        lines(ax, measured, "lambda_b", column, by="M", looks=DEPTHS, labels=KEYS, points=True,
              log="x", xlabel=r"bias decay $\lambda_b$", ylabel=label, title=title)  # fmt: skip
    for M, part in theory.groupby("M"):
        axes[0].axhline(part["common"].iloc[0], color=PALETTE[M - 1], ls=":", lw=1)
    where = {"xycoords": "axes fraction", "fontsize": 7.5}
    axes[0].annotate("dotted: the other $K-1$", (0.03, 0.68), **where)
    style.reference(axes[1], _cross(K), "a simplex ETF")
    axes[0].legend(loc=(0.02, 0.3))
    gram_maps(maps, axes=bottom.subplots(1, maps["name"].nunique()), digits=None)
    return figure


def imbalance(theory, measured, bounds):
    """Norms and logits against class size.  Tables: M, bias, n_k, feature, weight, logit;
    ``bounds``: M -> class size below which a class is dropped (no bias)."""
    panels = [
        ("feature", r"feature norm $\|h_k\|$", "Small classes: long features"),
        ("weight", r"classifier norm $\|w_k\|$", "… but short classifiers"),
        ("logit", "logit of the true class", "… and small logits, down to zero"),
    ]
    figure, axes = style.grid(1, 3, width=9.0, height=2.9)
    ends, sizes = (
        (theory["n_k"].min() / 1.15, theory["n_k"].max() * 1.15),
        sorted(set(theory["n_k"])),
    )
    for ax, (column, label, title) in zip(axes, panels, strict=True):
        for (M, bias), part in theory.groupby(["M", "bias"]):
            ax.plot(part["n_k"], part[column], **(THEORY | {"linewidth": 0.9}))
            own, free = measured[(measured["M"] == M) & (measured["bias"] == bias)], bias == "free"
            look = {"mfc": "white", "marker": "s"} if free else {"marker": "o"}
            name = f"$M={M}$, " + ("free bias" if free else "no bias")
            ax.plot(own["n_k"], own[column], ls="", color=PALETTE[M - 1], label=name, **look)
        for M, bound in bounds.items():
            if bound > sizes[0]:
                ax.axvspan(ends[0], bound, color=PALETTE[M - 1], alpha=0.12, lw=0)
        scales(ax, "x")
        ax.set(xlabel="class size $n_k$", ylabel=label, title=title)
        ax.set_xticks(sizes, sizes)
        ax.set_xlim(ends)
    axes[1].legend()
    text, where = (
        "shaded: dropped\n($M=2$, no bias)",
        {"xycoords": "axes fraction", "fontsize": 7.5},
    )
    axes[0].annotate(text, (0.24, 0.05), **where)
    return figure


def relu_shapes(table, maps):
    """Gram shapes of H_1 with the same H_2.  ``table``: shape, excess; ``maps``: name, row, column,
    cosine."""
    optimal = table["excess"].abs() < 1e-12
    text = table["excess"].map("$f-f^*={:.1g}$".format).mask(optimal, "global minimum")
    figure = gram_maps(maps, dict(zip(table["shape"], table["shape"] + "\n" + text, strict=True)))
    title = "Any shape with no acute angle before the ReLU is optimal"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


def flows(path, joint):
    """NC1 on central paths (``setting, time, nc1``), in joint descents (``start, step, nc1``)."""
    figure, (left, right) = style.grid(1, 2, width=8.6, height=2.4)
    looks = {
        name: (color, "") for name, color in zip(path["setting"].unique(), PALETTE, strict=False)
    }
    lines(left, path, "time", "nc1", by="setting", looks=looks, log="y", ylabel=NC1,
          title="Classifier always optimal: NC1 only falls")  # fmt: skip
    left.legend()
    for _, part in joint.groupby("start"):
        right.plot(part["step"], part["nc1"] / part["nc1"].iloc[0], color=PALETTE[1], lw=0.7)
    right.axhline(1, **GUIDE)
    right.set(xlabel="gradient-descent step", ylabel="NC1 / its initial value")
    right.set_title("All variables descended together: one line per start")
    return figure


def against_floor(table, K):
    """A network on the objective of the theory.  ``table``: head, epoch, excess, norm_sq,
    norm_sq_theory, of."""
    figure, axes = style.grid(1, 3, width=9.0, height=2.9)
    table = table[table["epoch"] > 0].assign(percent=lambda t: 100 * t["excess"])
    panels = [
        ("percent", "xy", "loss above the floor [%]", "The loss above its floor $f^*$"),
        ("norm_sq", "x", r"mean $\|\bar h_k\|^2$", "Feature norms and their prediction"),
        ("of", "xy", OF, "Class means against a frame"),
    ]
    for ax, (column, log, label, title) in zip(axes, panels, strict=True):
        lines(ax, table, "epoch", column, by="head", log=log, xlabel="training step", ylabel=label,
              title=title)  # fmt: skip
    for value in table.groupby("head")["norm_sq_theory"].last():
        axes[1].axhline(value, **THEORY)
    axes[0].legend()
    style.reference(axes[2], _cross(K), "a simplex ETF")
    return figure


def depth_profile(deep, overall, K):
    """Collapse block by block, and the classifier's geometry.  ``deep``: net, epoch, block, nc1;
    ``overall``: net, epoch, of_w, etf_w, test_accuracy."""
    names = list(dict.fromkeys(deep["net"]))
    figure, axes = style.grid(2, 3, width=9.0, height=2.2)
    deep, overall = deep[deep["epoch"] > 0], overall[overall["epoch"] > 0]
    norm, shades = LogNorm(1, deep["epoch"].max()), plt.get_cmap("viridis_r")
    looks = {epoch: (shades(norm(epoch)), ".") for epoch in deep["epoch"].unique()}
    for ax, name in zip(axes[0], names, strict=False):
        lines(ax, deep[deep["net"] == name], "block", "nc1", by="epoch", looks=looks, log="y",
              title=name, ylabel=NC1 if ax is axes[0, 0] else "")  # fmt: skip
        ax.sharey(axes[0, 0])
        ax.set_xticks(sorted(deep["block"].unique()))
    mapped = plt.cm.ScalarMappable(norm, shades)
    bar = figure.colorbar(mapped, ax=axes[0].tolist(), label="epoch", shrink=0.9)
    bar.ax.minorticks_off()
    panels = [
        ("of_w", "$W$ to an orth. frame", "Classifier: orthogonal?"),
        ("etf_w", "$W$ to a simplex ETF", "Classifier: an ETF?"),
        ("test_accuracy", "test accuracy [%]", "Test accuracy"),
    ]
    for ax, (column, label, title) in zip(axes[1], panels, strict=True):
        lines(ax, overall, "epoch", column, by="net", log="x", ylabel=label, title=title)
    for ax in axes[1, :2]:
        style.reference(ax, _cross(K), "the other frame")
    axes[1, 2].legend(loc="lower right")
    return fixed(figure)


def low_rank(ratios, found, spectra):
    """Deep collapse against low rank.  ``ratios``: K, L, ratio (closed form); ``found``: K, L,
    ratio (of an optimiser); ``spectra``: layer, index, value of the best deep run."""
    figure, (left, right) = style.grid(1, 2, width=8.6, height=2.9)
    lines(left, ratios, "K", "ratio", by="L", looks=DEPTHS, labels={L: f"$L={L}$" for L in DEPTHS},
          xlabel="classes $K$", ylabel="loss / loss of deep collapse")  # fmt: skip
    for row in found.groupby(["K", "L"], as_index=False)["ratio"].min().itertuples():
        left.plot(row.K, row.ratio, "*", color=PALETTE[row.L - 1], ms=13, mec="k", mew=0.6)
    left.plot([], [], "k*", ms=10, label="best found by an optimiser")
    left.axhline(1, **THEORY)
    left.annotate("deep neural collapse", (28, 0.995), ha="right", va="top", fontsize=7.5)
    left.set_title(
        "Low rank against deep collapse: explicit\npoints (lines), optimised ones (stars)"
    )
    left.legend(loc="lower left")
    spectra = spectra.assign(value=spectra["value"].clip(lower=1e-5))
    labels = {layer: f"$H_{layer[1:]}$" for layer in spectra["layer"].unique()}
    lines(right, spectra, "index", "value", by="layer", labels=labels, log="y",
          xlabel="singular value number", ylabel="relative singular value")  # fmt: skip
    right.axhline(1, **THEORY)
    right.set_title("Class means of every layer at the\nbest random start")
    right.set_xticks(sorted(spectra["index"].unique()))
    right.legend(title="dashed: deep collapse", title_fontsize=8, loc="lower left")
    return figure
