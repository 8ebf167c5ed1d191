"""Figures of result 5.  Each takes the tidy tables it draws and returns the figure."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from nclib.plots import style
from nclib.plots.style import GUIDE, PALETTE, THEORY

BLUE, ORANGE, GREEN, RED, PURPLE = PALETTE[:5]
DEEP, SHALLOW = BLUE, ORANGE  # the layer before the classifier, and the one before it
DEPTHS = {1: BLUE, 2: ORANGE, 3: GREEN, 4: RED, 5: PURPLE, 6: PALETTE[5]}


def _cross(K):
    """Orthogonal-frame distance of an ETF, and the other way round."""
    return np.sqrt(2 - 2 * np.sqrt((K - 1) / K))


def _log(ax, axis="both"):
    """Logarithmic axes with decades only: minor ticks cost more time than they tell."""
    if axis in ("both", "x"):
        ax.set_xscale("log")
    if axis in ("both", "y"):
        ax.set_yscale("log")
    ax.minorticks_off()


def _fixed(figure):
    """The figure with its layout computed once instead of at every save."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def plain_model(table, K, floors):
    """One layer, without and with free bias.  ``table``: model, step, value, nc1, nc1_pinv, of,
    etf, nc3; ``floors``: model -> f*."""
    panels = [
        ("value", "objective $f$", "The objective meets its closed form"),
        ("nc1", r"Tr $\Sigma_W$ / Tr $\Sigma_B$", "Features of a class coincide"),
        ("nc1_pinv", r"Tr $(\Sigma_W\Sigma_B^+)/K$", "… first in the span of the means"),
        ("of", "distance to an orth. frame", "No bias: class means are orthogonal"),
        ("etf", "ETF distance, centred", "Centred, both are a simplex ETF"),
        ("nc3", "NC3", "Classifier and means align"),
    ]
    figure, axes = style.grid(2, 3, width=9.0, height=2.1, sharex=True)
    table = table[table["step"] > 0]
    for ax, (column, label, title) in zip(axes.flat, panels, strict=True):
        for (model, part), color, width in zip(
            table.groupby("model", sort=False), (BLUE, ORANGE), (2.6, 1.1), strict=False
        ):
            ax.plot(part["step"], part[column], color=color, lw=width, label=model)
        _log(ax, "x" if column == "value" else "both")
        ax.set(ylabel=label, title=title)
        if column != "value":
            ax.set_ylim(1e-15, 1e2)
    for value in floors.values():
        axes[0, 0].axhline(value, **THEORY)
    style.reference(axes[1, 0], _cross(K), "a simplex ETF")
    axes[1, 0].legend(*axes[0, 0].get_legend_handles_labels(), loc="lower left")
    for ax in axes[1]:
        ax.set_xlabel("gradient-descent step")
    return _fixed(figure)


def three_models(model_table, net_table, guides):
    """Linear and ReLU model and a network side by side (claims 5.E9, E10).

    ``model_table``: model (``linear``/``ReLU``), layer (H1, H2), step, seed, excess, nc1, of;
    ``net_table``: epoch, layer (``H1`` = last but one block, ``H2`` = last), excess, nc1, of;
    ``guides``: (layer, ``nc1``) -> rate of the late phase per step.
    """
    figure, axes = style.grid(3, 3, width=9.0, height=1.85, sharex="col")
    linear = model_table[model_table["model"] == "linear"]
    columns = [
        (linear, "step", "Linear layers: both levels\nbecome an orthogonal frame"),
        (
            model_table[model_table["model"] == "ReLU"],
            "step",
            "ReLU between: the last level does,\nthe one before from some starts",
        ),
        (net_table.assign(seed=0), "epoch", "Network, MSE without bias:\nthe deeper, the closer"),
    ]
    for column, (table, x, title) in enumerate(columns):
        for layer, color, label in (("H1", SHALLOW, "$H_1$"), ("H2", DEEP, "$H_2$")):
            part = table[(table["layer"] == layer) & (table[x] > 0)]
            for seed, own in part.groupby("seed"):
                name = label if seed == part["seed"].min() else None
                for row, metric in enumerate(("excess", "nc1", "of")):
                    if row > 0 or layer == "H2":
                        shade = color if row else "0.35"
                        axes[row, column].plot(own[x], own[metric], color=shade, lw=1.3, label=name)
        for ax in axes[:, column]:
            _log(ax, "x" if x == "epoch" and ax is not axes[1, 2] else "both")
        axes[0, column].set_title(title)
        axes[2, column].set_xlabel("epoch" if x == "epoch" else "gradient-descent step")
    for ax in axes[:, 0]:
        ax.set_ylim(1e-15, 1e3)
    last = linear["step"].max()
    for (layer, metric), rate in guides.items():
        part = linear[(linear["layer"] == layer) & linear["step"].between(0.07 * last, 0.35 * last)]
        anchor = part.iloc[-1]
        curve = 8 * anchor[metric] * np.exp(rate * (part["step"] - anchor["step"]))
        axes[1, 0].plot(part["step"], curve, **THEORY)
    text = {"xycoords": "axes fraction", "fontsize": 7.5}
    axes[1, 0].annotate("dashed: predicted rates", (0.05, 0.08), **text)
    axes[1, 1].legend(loc="lower left")
    axes[1, 2].annotate("$H_2$: last block", (0.05, 0.2), color=DEEP, **text)
    axes[1, 2].annotate("$H_1$: the block before", (0.05, 0.08), color=SHALLOW, **text)
    axes[2, 1].annotate("one line per start", (0.05, 0.08), **text)
    labels = (r"$f-f^*$", r"Tr $\Sigma_W$ / Tr $\Sigma_B$", "distance to\nan orth. frame")
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    axes[0, 2].set_ylabel("objective")
    return _fixed(figure)


def gram_maps(table, titles):
    """Cosines of class means as heat maps.  ``table``: name, row, column, cosine; ``titles``:
    name -> text, in order."""
    figure, axes = style.grid(1, len(titles), width=1.55 * len(titles) + 0.9, height=2.1)
    for ax, (name, title) in zip(np.atleast_1d(axes), titles.items(), strict=True):
        part = table[table["name"] == name]
        matrix = part.pivot(index="row", columns="column", values="cosine").to_numpy()
        image = _cosines(ax, matrix)
        if len(matrix) <= 5:
            for (i, j), value in np.ndenumerate(matrix):
                color = "white" if abs(value) > 0.7 else "black"
                text = f"{value:.2f}".replace("-0.00", "0.00")
                ax.text(j, i, text, ha="center", va="center", color=color, fontsize=6.5)
        ax.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, label="cosine of class means", shrink=0.8, ticks=[-1, 0, 1])
    return figure


def _cosines(ax, matrix):
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set(xticks=[], yticks=[])
    return ax.imshow(matrix, cmap=style.DIVERGING, vmin=-1, vmax=1)


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
        left.axvline(star, color=DEPTHS[M], lw=0.8, alpha=0.7)
        left.annotate(
            f"$M={M}$", (star, 1.01), xycoords=("data", "axes fraction"), color=DEPTHS[M],
            fontsize=7.5, ha="center",
        )  # fmt: skip
    for ax, column in ((left, "scale"), (right, "value")):
        for (M, direction), part in sweeps.groupby(["M", "direction"]):
            up = direction == "up"
            ax.plot(
                part["kappa"], part[column], "^" if up else "v", color=DEPTHS[M], ms=4.5,
                mfc=DEPTHS[M] if up else "none", mew=0.9,
            )  # fmt: skip
    left.plot([], [], "^", color="0.4", label=r"optimiser, $\kappa$ rising")
    left.plot([], [], "v", color="0.4", mfc="none", label=r"optimiser, $\kappa$ falling")
    left.plot([], [], label="global minimum", **THEORY)
    left.plot(
        [], [], ":", color="black", lw=0.9, label=r"local minimum, $\kappa^*$ to $\kappa_{ex}$"
    )
    left.set(xlabel=r"$\kappa = K\,(n\Lambda)^{1/(M+1)}$", ylabel="scale $u$", ylim=(-0.03, 1.05))
    left.set_title("One layer fades out; two or more jump to zero\n")
    left.legend(loc="upper right")
    right.set(xlabel=r"$\kappa$", ylabel="objective", ylim=(0, 0.62))
    right.set_title(
        "Followed upwards, the optimiser stays on the old\nbranch, even where zero is better"
    )
    return figure


def loss_ladder(table, levels):
    """Where random starts end.  ``table``: M, init_scale, value, rank; ``levels``: M -> f_0…f_K."""
    depths = sorted(table["M"].unique())
    figure, axes = style.grid(1, len(depths) + 1, width=9.0, height=2.9)
    first, bars = axes[0], axes[1:]
    rng = np.random.default_rng(0)
    shades = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(levels[depths[0]])))
    for M in depths:
        for f_r in levels[M]:
            first.plot([M - 0.35, M + 0.35], [f_r, f_r], **(THEORY | {"zorder": 1}))
        part = table[table["M"] == M]
        shift = rng.uniform(-0.25, 0.25, len(part))
        first.scatter(M + shift, part["value"], s=7, alpha=0.5, color=shades[part["rank"]], lw=0)
    first.set(xlabel="layers $M$", ylabel="final loss", xticks=depths)
    first.set_title("Runs end on the\npredicted levels $f_r$")
    for ax, M in zip(bars, depths, strict=True):
        part = table[table["M"] == M]
        share = (
            part.groupby("init_scale")["rank"].value_counts(normalize=True).unstack(fill_value=0)
        )
        base = np.zeros(len(share))
        for r, shade in enumerate(shades):
            height = share[r].to_numpy() if r in share else np.zeros(len(share))
            ax.bar(
                range(len(share)), height, bottom=base, color=shade, label=f"rank {r}", width=0.8
            )
            base += height
        ax.set_xticks(range(len(share)), [f"{s:g}" for s in share.index])
        ax.set(xlabel="initial scale", ylim=(0, 1))
        if ax is not bars[0]:
            ax.tick_params(labelleft=False)
    bars[0].set_ylabel("share of runs")
    titles = {1: "$M=1$: every run\nkeeps all classes", 2: "$M=2$: runs lose\nclasses"}
    for ax, M in zip(bars, depths, strict=True):
        ax.set_title(titles.get(M, f"$M={M}$: small starts\nend at zero"))
    bars[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def bias_geometry(theory, measured, maps, thresholds, K):
    """Bias decay against geometry: spectra and distances, then Gram matrices (``maps``: name, row,
    column, cosine).  ``thresholds``: M -> λ_b at which the mean direction appears."""
    figure = plt.figure(figsize=(9.0, 4.4))
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.45, 1])
    axes = top.subplots(1, 3)
    panels = [
        ("mean", r"eigenvalue of $\bar H\bar H^\top$", "A mean direction opens up"),
        ("of", "distance to an orth. frame", "From ETF to orthogonal frame"),
        ("bias", "bias $b$", r"The bias falls from $1/K$ to zero"),
    ]
    for ax, (column, label, title) in zip(axes, panels, strict=True):
        for M, part in theory.groupby("M"):
            ax.plot(part["lambda_b"], part[column], **THEORY)
            own = measured[measured["M"] == M]
            ax.plot(own["lambda_b"], own[column], "o", color=DEPTHS[M], label=f"$M={M}$")
            ax.axvline(thresholds[M], color=DEPTHS[M], lw=0.8, alpha=0.5)
        _log(ax, "x")
        ax.set(xlabel=r"bias decay $\lambda_b$", ylabel=label)
        ax.set_title(title)
    for M, part in theory.groupby("M"):
        axes[0].axhline(part["common"].iloc[0], color=DEPTHS[M], ls=":", lw=1)
    axes[0].annotate(
        "dotted: the other $K-1$", (0.03, 0.68), xycoords="axes fraction", fontsize=7.5
    )
    style.reference(axes[1], _cross(K), "a simplex ETF")
    axes[0].legend(loc=(0.02, 0.3))
    names = list(dict.fromkeys(maps["name"]))
    cells = bottom.subplots(1, len(names))
    for ax, name in zip(cells, names, strict=True):
        part = maps[maps["name"] == name]
        matrix = part.pivot(index="row", columns="column", values="cosine").to_numpy()
        image = _cosines(ax, matrix)
        ax.set_title(name, fontsize=9)
    bottom.colorbar(image, ax=list(cells), label="cosine of means", shrink=0.9, ticks=[-1, 0, 1])
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
    for ax, (column, label, title) in zip(axes, panels, strict=True):
        for (M, bias), part in theory.groupby(["M", "bias"]):
            ax.plot(part["n_k"], part[column], **(THEORY | {"linewidth": 0.9}))
            own = measured[(measured["M"] == M) & (measured["bias"] == bias)]
            free = bias == "free"
            ax.plot(
                own["n_k"], own[column], "s" if free else "o", color=DEPTHS[M],
                mfc="white" if free else DEPTHS[M],
                label=f"$M={M}$, " + ("free bias" if free else "no bias"),
            )  # fmt: skip
        for M, bound in bounds.items():
            if bound > theory["n_k"].min():
                ax.axvspan(theory["n_k"].min() / 1.15, bound, color=DEPTHS[M], alpha=0.12, lw=0)
        _log(ax, "x")
        ax.set(xlabel="class size $n_k$", ylabel=label, title=title)
        ax.set_xticks(sorted(theory["n_k"].unique()), sorted(theory["n_k"].unique()))
        ax.set_xlim(theory["n_k"].min() / 1.15, theory["n_k"].max() * 1.15)
    axes[1].legend()
    axes[0].annotate(
        "shaded: dropped\n($M=2$, no bias)", (0.24, 0.05), xycoords="axes fraction", fontsize=7.5
    )
    return figure


def relu_shapes(table, maps):
    """Gram shapes of H_1 with the same H_2.  ``table``: shape, excess; ``maps``: name, row, column,
    cosine."""
    figure = gram_maps(
        maps,
        {
            row.shape: f"{row.shape}\n" + (
                "global minimum" if abs(row.excess) < 1e-12 else f"$f-f^*={row.excess:.1g}$"
            )
            for row in table.itertuples()
        },
    )  # fmt: skip
    figure.suptitle(
        "Any shape with no acute angle before the ReLU is optimal", x=0.01, ha="left", fontsize=10
    )
    return figure


def flows(path, joint):
    """NC1 on central paths (``setting, time, nc1``), in joint descents (``start, step, nc1``)."""
    figure, (left, right) = style.grid(1, 2, width=8.6, height=2.4)
    for color, (name, part) in zip(PALETTE, path.groupby("setting", sort=False), strict=False):
        left.plot(part["time"], part["nc1"], color=color, label=name)
    _log(left, "y")
    left.set(xlabel="time", ylabel=r"Tr $\Sigma_W$ / Tr $\Sigma_B$")
    left.set_title("Classifier always optimal: NC1 only falls")
    left.legend()
    for _, part in joint.groupby("start"):
        right.plot(part["step"], part["nc1"] / part["nc1"].iloc[0], color=ORANGE, lw=0.7)
    right.axhline(1, **GUIDE)
    right.set(xlabel="gradient-descent step", ylabel="NC1 / its initial value")
    right.set_title("Trained jointly, NC1 may first rise: one line per start")
    return figure


def bridge(table, K):
    """A network on the objective of the theory.  ``table``: head, epoch, excess, norm_sq,
    norm_sq_theory, of, etf, of_w, etf_w."""
    figure, axes = style.grid(1, 3, width=9.0, height=2.9)
    table = table[table["epoch"] > 0]
    for color, marker, (head, part) in zip(
        PALETTE, style.MARKERS, table.groupby("head", sort=False), strict=False
    ):
        options = {"color": color, "marker": marker, "ms": 3.5}
        axes[0].plot(part["epoch"], 100 * part["excess"], label=head, **options)
        axes[1].plot(part["epoch"], part["norm_sq"], **options)
        axes[1].axhline(part["norm_sq_theory"].iloc[-1], **THEORY)
        axes[2].plot(part["epoch"], part["of"], **options)
    for ax, axis in zip(axes, ("both", "x", "both"), strict=True):
        _log(ax, axis)
        ax.set_xlabel("training step")
    axes[0].set_ylabel("loss above the floor [%]")
    axes[0].set_title("The loss sinks to $f^*$, never below")
    axes[0].legend()
    axes[1].set_ylabel(r"mean $\|\bar h_k\|^2$")
    axes[1].set_title("Feature norms as predicted")
    axes[2].set_ylabel("distance to an orth. frame")
    style.reference(axes[2], _cross(K), "a simplex ETF")
    axes[2].set_title("No bias: orthogonal; bias: ETF")
    return figure


def depth_profile(deep, overall, K):
    """Collapse block by block, and the classifier's geometry.  ``deep``: net, epoch, block, nc1;
    ``overall``: net, epoch, of_w, etf_w, test_accuracy."""
    names = list(dict.fromkeys(deep["net"]))
    figure, axes = style.grid(2, 3, width=9.0, height=2.2)
    epochs = sorted(e for e in deep["epoch"].unique() if e > 0)
    norm, shades = LogNorm(1, max(epochs)), plt.get_cmap("viridis_r")
    for ax, name in zip(axes[0], names, strict=False):
        for epoch in epochs:
            part = deep[(deep["net"] == name) & (deep["epoch"] == epoch)]
            ax.plot(part["block"], part["nc1"], "o-", ms=3, color=shades(norm(epoch)))
        ax.sharey(axes[0, 0])
        _log(ax, "y")
        ax.set(xlabel="block", title=name)
        ax.set_xticks(sorted(deep["block"].unique()))
    axes[0, 0].set_ylabel(r"Tr $\Sigma_W$ / Tr $\Sigma_B$")
    mapped = plt.cm.ScalarMappable(norm, shades)
    bar = figure.colorbar(mapped, ax=axes[0].tolist(), label="epoch", shrink=0.9)
    bar.ax.minorticks_off()
    panels = [
        ("of_w", "$W$ to an orth. frame", "Without bias nearer to orthogonal"),
        ("etf_w", "$W$ to a simplex ETF", "With bias nearer to an ETF"),
        ("test_accuracy", "test accuracy [%]", "All of them classify well"),
    ]
    for ax, (column, label, title) in zip(axes[1], panels, strict=True):
        for color, marker, name in zip(PALETTE, style.MARKERS, names, strict=False):
            part = overall[(overall["net"] == name) & (overall["epoch"] > 0)]
            ax.plot(part["epoch"], part[column], marker=marker, color=color, ms=3.5, label=name)
        _log(ax, "x")
        ax.set(xlabel="epoch", ylabel=label, title=title)
    for ax in axes[1, :2]:
        ax.axhline(_cross(K), **THEORY)
        ax.annotate(
            "the other frame", (0.02, _cross(K)), xycoords=ax.get_yaxis_transform(), va="top",
            fontsize=7.5,
        )  # fmt: skip
    axes[1, 2].legend(loc="lower right")
    return _fixed(figure)


def low_rank(ratios, found, spectra):
    """Deep collapse against low rank.  ``ratios``: K, L, ratio (closed form); ``found``: K, L,
    ratio (of an optimiser); ``spectra``: layer, index, value of the best deep run."""
    figure, (left, right) = style.grid(1, 2, width=8.6, height=2.9)
    for L, part in ratios.groupby("L"):
        left.plot(part["K"], part["ratio"], "o-", color=DEPTHS[L], ms=4, label=f"$L={L}$")
    best = found.groupby(["K", "L"], as_index=False)["ratio"].min()
    for row in best.itertuples():
        left.plot(row.K, row.ratio, "*", color=DEPTHS[row.L], ms=13, mec="k", mew=0.6)
    left.plot([], [], "k*", ms=10, label="best found by an optimiser")
    left.axhline(1, **THEORY)
    left.annotate("deep neural collapse", (28, 0.996), ha="right", va="top", fontsize=7.5)
    left.set(xlabel="classes $K$", ylabel="loss / loss of deep collapse")
    left.set_title(
        "Low rank beats deep collapse: explicit points\n(lines) and refined ones (stars)"
    )
    left.legend(loc="lower left")
    for color, marker, (layer, part) in zip(
        PALETTE, style.MARKERS, spectra.groupby("layer"), strict=False
    ):
        name = f"$H_{layer[1:]}$"
        right.plot(
            part["index"], part["value"].clip(lower=1e-5), color=color, marker=marker, label=name
        )
    right.axhline(1, **THEORY)
    _log(right, "y")
    right.set(xlabel="singular value number", ylabel="relative singular value")
    right.set_title("The winner's hidden class means\nhave low rank")
    right.set_xticks(sorted(spectra["index"].unique()))
    right.legend(title="dashed: deep collapse", title_fontsize=8, loc="lower left")
    return figure
