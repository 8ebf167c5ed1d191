"""Figures of result 5.  Each takes the tidy tables it draws and returns the figure."""

import matplotlib.pyplot as plt
import numpy as np

from nclib.plots import style
from nclib.plots.panels import heatmaps, lines, matrices
from nclib.plots.style import GUIDE, PALETTE, THEORY, fixed, scales

LAYERS = {"H1": (PALETTE[1], ""), "H2": (PALETTE[0], "")}  # before the last layer, and the last
LAYER_NAMES = {"H1": "$H_1$: one layer earlier", "H2": "$H_2$: before the classifier"}
DEPTHS = {M: (color, "o") for M, color in enumerate(PALETTE[:6], start=1)}
KEYS = {M: f"$M={M}$" for M in DEPTHS}
WHERE = {"xycoords": "axes fraction", "fontsize": 7.5}  # of a text inside an axes
NC1, OF = r"Tr $\Sigma_W$ / Tr $\Sigma_B$", "distance to an orth. frame"


def _cross(K):
    """Orthogonal-frame distance of an ETF, and the other way round."""
    return np.sqrt(2 - 2 * np.sqrt((K - 1) / K))


def plain_model(table, K, floors, title):
    """One layer, without and with free bias (published figures 1 and 2).  ``table``: model, step,
    value, nc1, nc1_pinv, of, etf, nc3; ``floors``: model -> f*."""
    panels = [
        ("value", "objective $f$", "Objective (dashed: $f^*$)"),
        ("nc1", NC1, "NC1"),
        ("nc1_pinv", r"Tr $(\Sigma_W\Sigma_B^+)/K$", "NC1 in the span of the means"),
        ("of", OF, "NC2: an orthogonal frame?"),
        ("etf", "ETF distance, centred", "NC2, centred: an ETF?"),
        ("nc3", "NC3", "NC3: $W$ against the means"),
    ]
    figure, axes = style.grid(2, 3, width=9.0, height=2.2, sharex=True)
    table = table[table["step"] > 0]
    for ax, (column, label, name) in zip(axes.flat, panels, strict=True):
        for (model, part), (color, dash, width) in zip(
            table.groupby("model", sort=False),
            ((PALETTE[0], "-", 2.8), (PALETTE[1], (0, (4, 2)), 1.6)),
            strict=True,
        ):  # the curves lie on each other: one wide, one broken
            ax.plot(part["step"], part[column], color=color, ls=dash, lw=width, label=model)
        scales(ax, "x" if column == "value" else "xy")
        ax.set(title=name, ylabel=label, xlabel="gradient-descent step" if ax in axes[1] else "")
        if column != "value":
            ax.set_ylim(1e-15, 1e2)
    for value in floors.values():
        axes[0, 0].axhline(value, **THEORY)
    axes[1, 0].axhline(_cross(K), **THEORY)
    axes[1, 0].annotate("a simplex ETF", (1.5, 2 * _cross(K)), fontsize=7.5)
    axes[0, 0].legend()
    return fixed(style.titled(figure, title))


def two_layers(table, rates, title):
    """Two layers under gradient descent (published figures 3 and 4), one line per start.

    ``table``: model (one row of panels each), layer (H1, H2), step, seed, excess, nc1, of, nc3;
    ``rates``: layer -> rate of NC1 of the linear model (the first) in the late phase, per step.
    """
    models = list(dict.fromkeys(table["model"]))
    figure, axes = style.grid(len(models), 4, width=9.4, height=1.8, sharex=True)
    labels = ("objective $-f^*$", "NC1", "NC2: orthogonal?", "NC3")
    table = table[(table["step"] > 0) & table["layer"].isin(LAYERS)]
    for i, (row, model) in enumerate(zip(axes, models, strict=True)):
        for (layer, _), own in table[table["model"] == model].groupby(["layer", "seed"]):
            for ax, metric in zip(row, ("excess", "nc1", "of", "nc3"), strict=True):
                shade = LAYERS[layer][0] if metric != "excess" else "0.35"
                ax.plot(own["step"], own[metric].clip(lower=1e-15), color=shade, lw=1.1)
        row[0].set_ylabel(model)
        for ax in row:
            scales(ax, "xy")
            if i == 0:
                ax.set_ylim(1e-15, 1e3)
    for ax, label in zip(axes[0], labels, strict=True):
        ax.set_title(label)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    linear = table[table["model"] == models[0]]
    last = linear["step"].max()
    for layer, rate in rates.items():
        part = linear[(linear["layer"] == layer) & linear["step"].between(0.07 * last, 0.35 * last)]
        curve = 8 * part["nc1"].iloc[-1] * np.exp(rate * (part["step"] - part["step"].iloc[-1]))
        axes[0, 1].plot(part["step"], curve, **THEORY)
    axes[0, 1].annotate("dashed: predicted rates", (0.05, 0.08), **WHERE)
    for height, (layer, text) in zip((0.2, 0.06), LAYER_NAMES.items(), strict=True):
        axes[0, 2].annotate(text, (0.05, height), color=LAYERS[layer][0], **WHERE)
    return fixed(style.titled(figure, title))


def gram_maps(table, titles=None, **options):
    """Cosines of class means as heat maps.  ``table``: name, row, column, cosine; ``titles``:
    name -> text."""
    maps = matrices(table, value="cosine")
    return heatmaps(maps, label="cosine of class means", titles=titles, **{"digits": 2} | options)


def phase_diagram(curves, sweeps, thresholds, title):
    """Scale and loss against κ with the sweeps up and down.  ``curves``: M, kappa, local, u, value;
    ``sweeps``: M, direction, kappa, scale, value; ``thresholds``: M -> (κ*, κ_ex)."""
    figure, (left, right) = style.grid(1, 2, width=9.0, height=3.2)
    shades = dict(zip(thresholds, PALETTE, strict=False))
    for M, part in curves.groupby("M"):
        star, exists = thresholds[M]
        below, above = part[part["kappa"] <= star], part[part["kappa"].between(star, exists)]
        left.plot(below["kappa"], below["u"], **(THEORY | {"linewidth": 1}))
        left.plot(above["kappa"], above["local"], color="black", ls=":", lw=0.9)
        right.plot(part["kappa"], part["value"], **(THEORY | {"linewidth": 1}))
        right.plot(above["kappa"], above["local_value"], color="black", ls=":", lw=0.9)
        left.axvline(star, color=shades[M], lw=0.8, alpha=0.7)
        text = {"xycoords": ("data", "axes fraction"), "fontsize": 7.5, "ha": "center"}
        height = 1.06 if max(shades) == M else 1.01  # κ* of large depths crowd
        left.annotate(f"$M={M}$", (star, height), color=shades[M], **text)
    for (M, direction), part in sweeps.groupby(["M", "direction"]):
        rising = direction == "up"
        look = {"color": shades[M], "mfc": shades[M] if rising else "none", "mew": 0.9}
        for ax, column in ((left, "scale"), (right, "value")):
            ax.plot(part["kappa"], part[column], "^" if rising else "v", ms=4.5, **look)
    left.plot([], [], "^", color="0.4", label=r"optimiser, $\kappa$ rising")
    left.plot([], [], "v", color="0.4", mfc="none", label=r"optimiser, $\kappa$ falling")
    left.plot([], [], label="global minimum", **THEORY)
    left.plot([], [], "k:", lw=0.9, label=r"local minimum, $\kappa^*$ to $\kappa_{ex}$")
    left.set(xlabel=r"$\kappa = K\,(n\Lambda)^{1/(M+1)}$", ylabel="scale $u$", ylim=(-0.03, 1.05))
    right.set(xlabel=r"$\kappa$", ylabel="objective (zero: 0.5)", ylim=(0, 0.62))
    right.legend(*left.get_legend_handles_labels(), loc="lower right")
    return style.titled(figure, title)


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


def bias_geometry(theory, measured, maps, opening, K, title):
    """Bias decay against geometry: spectra and distances, then Gram matrices (``maps``: name, row,
    column, cosine).  ``opening``: M -> λ_b at which the mean direction appears."""
    figure = plt.figure(figsize=(9.0, 4.4))
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.45, 1])
    axes = top.subplots(1, 3)
    panels = [
        ("mean", r"eigenvalue of $\bar H\bar H^\top$", "Mean direction"),
        ("of", OF, "Class means: orthogonal?"),
        ("bias", "bias $b$", "Bias"),
    ]
    for ax, (column, label, name) in zip(axes, panels, strict=True):
        for M, part in theory.groupby("M"):
            ax.plot(part["lambda_b"], part[column], **THEORY)
            ax.axvline(opening[M], color=PALETTE[M - 1], lw=0.8, alpha=0.5)
        lines(ax, measured, "lambda_b", column, by="M", looks=DEPTHS, labels=KEYS, points=True,
              log="x", xlabel=r"bias decay $\lambda_b$", ylabel=label, title=name)  # fmt: skip
    for M, part in theory.groupby("M"):
        axes[0].axhline(part["common"].iloc[0], color=PALETTE[M - 1], ls=":", lw=1)
    axes[0].annotate("dotted: the other $K-1$", (0.03, 0.68), **WHERE)
    style.reference(axes[1], _cross(K), "a simplex ETF")
    axes[0].legend(loc=(0.02, 0.3))
    gram_maps(maps, axes=bottom.subplots(1, maps["name"].nunique()), digits=None)
    return style.titled(figure, title)


def imbalance(theory, measured, bounds, title):
    """Norms and logits against class size, a row per depth.  Tables: M, bias, n_k, feature, weight,
    logit; ``bounds``: M -> class size below which a class is dropped (no bias)."""
    panels = [
        ("feature", r"feature norm $\|h_k\|$"),
        ("weight", r"classifier norm $\|w_k\|$"),
        ("logit", "logit of the true class"),
    ]
    figure, axes = style.grid(len(bounds), 3, width=9.0, height=2.1, sharex=True, sharey="col")
    looks = {"none": ("o", PALETTE[0], "no bias"), "free": ("s", PALETTE[1], "free bias")}
    sizes = sorted(set(theory["n_k"]))
    for row, (M, bound) in zip(axes, bounds.items(), strict=True):
        for ax, (column, label) in zip(row, panels, strict=True):
            for bias, (marker, color, name) in looks.items():
                own, found = (t[(t["M"] == M) & (t["bias"] == bias)] for t in (theory, measured))
                ax.plot(own["n_k"], own[column], **(THEORY | {"color": color, "linewidth": 0.9}))
                fill = "white" if bias == "free" else color
                ax.plot(found["n_k"], found[column], marker, color=color, mfc=fill, label=name)
            scales(ax, "x")
            ax.set_xticks(sizes, sizes)
            ax.set_xlim(sizes[0] / 1.3, sizes[-1] * 1.3)
            if bound > sizes[0]:
                ax.axvspan(sizes[0] / 1.3, bound, color="0.9", lw=0)
            ax.set(title=label if ax in axes[0] else "")
        row[0].set_ylabel(f"$M={M}$")
    for ax in axes[-1]:
        ax.set_xlabel("class size $n_k$")
    axes[0, 1].legend(title="dashed: closed form", title_fontsize=8)
    axes[-1, 1].annotate("grey: dropped without bias", (0.3, 0.08), **WHERE)
    return style.titled(figure, title)


def relu_shapes(table, maps, title):
    """Gram shapes of H_1 with the same H_2.  ``table``: shape, excess over the linear value f*;
    ``maps``: name, row, column, cosine."""
    optimal = table["excess"].abs() < 1e-12
    text = table["excess"].map("$f-f^*={:.1g}$".format).mask(optimal, "$f=f^*$ (linear value)")
    figure = gram_maps(maps, dict(zip(table["shape"], table["shape"] + "\n" + text, strict=True)))
    return style.titled(figure, title)


def nuclear(circles, run, explicit, title):
    """What a ReLU does to a nuclear norm.  ``circles``: K, gain; ``run``: step, seed, nuclear;
    ``explicit``: K, kappa_share, ratio."""
    figure, (left, right, last) = style.grid(1, 3, width=9.6, height=2.5)
    lines(left, circles, "K", "gain", log="x", xlabel="points on a circle $K$",
          title="Cosines of $K$ points on a circle",
          ylabel=r"$\|\sigma(Z)\|_*\,/\,\|Z\|_*$")  # fmt: skip
    left.axhline(2 / np.pi + 0.5, **THEORY)
    left.annotate(r"$2/\pi+1/2$", (3, 2 / np.pi + 0.51), fontsize=7.5)
    run = run[run["step"] > 0].drop_duplicates(["step", "seed"])
    for _, part in run.groupby("seed"):
        right.plot(part["step"], part["nuclear"], color=PALETTE[0], lw=1)
    scales(right, "x")
    right.set(xlabel="gradient-descent step", title="$Z=W_1H_1$, $K=4$, one line per start")
    names = explicit["K"].map({6: "$K=6$: hexagon", 15: "$K=15$: pairs of six"})
    lines(last, explicit.assign(point=names), "kappa_share", "ratio", by="point",
          xlabel=r"$\kappa\,/\,\kappa^*$", ylabel="loss / linear optimum",
          title="Explicit points")  # fmt: skip
    last.set_ylim(0.97, 1.06)  # away from the threshold a hexagon costs far more
    last.legend(fontsize=6.5)
    for ax in (left, right, last):
        ax.axhline(1, **GUIDE)
    return style.titled(figure, title)


def flows(path, arms, titles):
    """NC1 on central paths (``setting, time, nc1``), and in the arms that differ by one thing
    (``arm, start, step, nc1``).  ``titles``: of both parts."""
    names = list(dict.fromkeys(arms["arm"]))
    figure, (left, *rest) = style.grid(1, 1 + len(names), width=10.0, height=2.7)
    looks = dict(zip(path["setting"].unique(), ((color, "") for color in PALETTE), strict=False))
    lines(left, path, "time", "nc1", by="setting", looks=looks, log="y", ylabel=NC1,
          title=titles[0])  # fmt: skip
    left.legend(fontsize=6.5)
    for ax, name in zip(rest, names, strict=True):
        for _, part in arms[arms["arm"] == name].groupby("start"):
            ax.plot(part["step"], part["nc1"] / part["nc1"].iloc[0], color=PALETTE[1], lw=0.7)
        ax.axhline(1, **GUIDE)
        ax.set(xlabel="gradient-descent step", title=f"$W$ {name}", ylim=(0, 1.45))
        ax.tick_params(labelleft=ax is rest[0])
    rest[0].set_ylabel("NC1 / its initial value")
    rest[-1].annotate(titles[1], (0.98, 0.97), xycoords="axes fraction", ha="right", va="top",
                      fontsize=7.5)  # fmt: skip
    return figure


def against_floor(table, K, control, title):
    """Networks on the objective of the theory.  ``table``: head, seed, epoch, excess, norm_sq,
    norm_sq_theory, of, etf_w; ``control``: the head with hardly any decay, which has no floor."""
    figure, axes = style.grid(1, 4, width=10.0, height=2.7)
    table = table[table["epoch"] > 0].assign(percent=lambda t: 100 * t["excess"])
    own = table[table["head"] != control]
    panels = [
        (own, "percent", "xy", r"loss above $f^*$ [%]"),
        (own, "norm_sq", "x", r"mean $\|\bar h_k\|^2$"),
        (table, "of", "xy", "features: orthogonal frame?"),
        (table, "etf_w", "xy", "classifier: simplex ETF?"),
    ]
    heads = list(dict.fromkeys(table["head"]))
    looks = {head: (PALETTE[i], style.MARKERS[i]) for i, head in enumerate(heads)}
    for ax, (part, column, log, name) in zip(axes, panels, strict=True):
        lines(ax, part, "epoch", column, by="head", looks=looks, log=log, xlabel="training step",
              ylabel="distance" if ax in axes[2:] else "", title=name)  # fmt: skip
    for value in own.groupby("head")["norm_sq_theory"].last():
        axes[1].axhline(value, **THEORY)
    for ax in axes[2:]:
        ax.axhline(_cross(K), **THEORY)
        ax.annotate("dashed: the other frame", (1, 2e-3), fontsize=7.5)
    handles, labels = axes[2].get_legend_handles_labels()
    axes[0].legend(handles, labels, loc="lower left", fontsize=7)
    return style.titled(figure, title)


def depth_profile(deep, overall, K, title):
    """Networks block by block (published figure 5): NC1 per block before and after training; NC2 of
    the last features and of the classifier, and NC3, per epoch, with the range of the seeds.

    ``deep``: net, seed, epoch, block, nc1, of, etf; ``overall``: net, seed, epoch, of_w, etf_w,
    nc3.
    """
    figure, axes = style.grid(2, 3, width=9.6, height=2.5)
    nets = list(dict.fromkeys(deep["net"]))
    looks = {net: (PALETTE[i], style.MARKERS[i]) for i, net in enumerate(nets)}
    first, end = (deep[deep["epoch"] == e(deep["epoch"])] for e in (min, max))
    lines(axes[0, 0], end, "block", "nc1", by="net", looks=looks, log="y", ylabel=NC1,
          title="NC1, block by block")  # fmt: skip
    lines(axes[0, 0], first, "block", "nc1", looks={None: ("0.5", "x")}, log="y", ylabel=NC1,
          labels={None: "untrained"}, xlabel="block")  # fmt: skip
    axes[0, 0].set_xticks(sorted(deep["block"].unique()))
    deep = deep[(deep["epoch"] > 0) & (deep["block"] == deep["block"].max())]
    overall = overall[overall["epoch"] > 0]
    panels = [
        (axes[0, 1], deep, "of", "NC2, last features: orthogonal?"),
        (axes[0, 2], deep, "etf", "NC2, last features, centred: an ETF?"),
        (axes[1, 0], overall, "nc3", "NC3 (with bias: centred)"),
        (axes[1, 1], overall, "of_w", "NC2, classifier: orthogonal?"),
        (axes[1, 2], overall, "etf_w", "NC2, classifier: an ETF?"),
    ]
    for ax, table, column, name in panels:
        lines(ax, table, "epoch", column, by="net", looks=looks, log="xy", title=name,
              ylabel="distance")  # fmt: skip
    for ax in (axes[0, 1], *axes[1, 1:]):
        ax.axhline(_cross(K), **THEORY)
    for ax in axes.flat:
        style.between_decades(ax)
    axes[0, 1].annotate("dashed: the other frame", (0.04, 0.05), **WHERE)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    return style.titled(figure, title)


def low_rank(ratios, found, spectra, title):
    """Deep collapse against low rank.  ``ratios``: family, K, L, ratio (closed form); ``found``: K,
    L, ratio (of an optimiser); ``spectra``: layer, index, value of the best deep run."""
    figure, (left, right) = style.grid(1, 2, width=9.0, height=3.1)
    for (family, L), part in ratios.groupby(["family", "L"], sort=False):
        dash = "-" if family == "graph" else ":"
        left.plot(part["K"], part["ratio"], ls=dash, marker=".", color=PALETTE[L - 1])
    for L in sorted(ratios["L"].unique()):
        left.plot([], [], color=PALETTE[L - 1], label=f"$L={L}$")
    for row in found.groupby(["K", "L"], as_index=False)["ratio"].min().itertuples():
        left.plot(row.K, row.ratio, "*", color=PALETTE[row.L - 1], ms=11, mec="k", mew=0.6)
    left.plot([], [], "k-", marker=".", lw=1, label="classes as edges of a graph")
    left.plot([], [], "k:", marker=".", lw=1, label="three classes on a segment")
    left.plot([], [], "k*", ms=9, label="lowest found by an optimiser")
    left.axhline(1, **THEORY)
    left.annotate("deep neural collapse", (28, 0.995), ha="right", va="top", fontsize=7.5)
    left.set(xlabel="classes $K$", ylabel="loss / loss of deep collapse")
    left.legend(loc="lower left", fontsize=7)
    spectra = spectra.assign(value=spectra["value"].clip(lower=1e-5))
    labels = {layer: f"$H_{layer[1:]}$" for layer in spectra["layer"].unique()}
    lines(right, spectra, "index", "value", by="layer", labels=labels, log="y",
          xlabel="singular value number", ylabel="relative singular value")  # fmt: skip
    right.axhline(1, **THEORY)
    right.axhline(0.1, **GUIDE)
    right.set_title("Class means of every layer at the best random start")
    right.set_xticks(sorted(spectra["index"].unique()))
    right.legend(title="dashed: deep collapse", title_fontsize=8, loc="lower left")
    return style.titled(figure, title)
