"""Figures of result 6.  Each takes the tidy tables it draws and returns the figure.

Theory (the convex optimum) is dashed black, trained networks are in colour.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from nclib.plots import style
from nclib.plots.style import GUIDE, MARKERS, PALETTE, THEORY


def staircase(curves, jumps, measured):
    """Singular values of the end-to-end map against beta, one panel per depth.

    ``curves``: depth, beta, index, singular (closed form); ``jumps``: depth, index, critical,
    spinodal; ``measured``: the same as ``curves`` for trained nets.
    """
    depths = sorted(curves["depth"].unique())
    figure, axes = style.grid(1, len(depths), width=10, height=3.5, sharey=True)
    for ax, depth in zip(np.atleast_1d(axes), depths, strict=True):
        for index, part in curves.query("depth == @depth").groupby("index"):
            ax.plot(part["beta"], part["singular"], **THEORY, label="closed form" * (index == 0))
            dots = measured.query("depth == @depth and index == @index")
            ax.plot(dots["beta"], dots["singular"], MARKERS[index], color=PALETTE[index])
        for row in jumps.query("depth == @depth and spinodal > critical").itertuples():
            ax.axvspan(row.critical, row.spinodal, color=PALETTE[row.index], alpha=0.15, lw=0)
        ax.set(xscale="log", xlabel=r"weight decay $\beta$")
        kind = "shrinks to zero" if depth == 2 else "jumps to zero"
        ax.set_title(f"depth {depth}: every direction {kind}")
    first = np.atleast_1d(axes)[0]
    first.set_ylabel("singular values of the network")
    first.plot([], [], "o", color="0.5", label="trained (best start)")
    first.legend(loc="upper right")
    if len(depths) > 1:
        axes[-1].fill_between([], [], color="0.5", alpha=0.3, label="hysteresis band")
        axes[-1].legend(loc="center left")
    return figure


def merging_norms(trace, beta):
    """Layer norms and balancedness against gradient-flow time (tables of ``merging_norms``)."""
    figure, (left, right) = style.grid(1, 2, height=3.3)
    for layer, part in trace.groupby("layer"):
        color = PALETTE[layer - 1]
        left.plot(part["time"], part["frobenius"], color=color, label=f"layer {layer}")
        left.plot(part["time"], part["operator"], color=color, lw=1, ls="-.")
    left.plot([], [], color="0.4", lw=1, ls="-.", label="operator norm")
    left.set(xlabel="time (step × learning rate)", ylabel="Frobenius norm of the layer")
    left.set_title("Unequal at the start, equal in the end")
    left.legend(ncols=2)
    one = trace.query("layer == 1")
    right.plot(one["time"], one["balance"], color=PALETTE[0], lw=2, label="gradient descent")
    start = one["balance"].iloc[0]
    label = r"gradient flow: $e^{-2\beta t}$"
    right.plot(one["time"], start * np.exp(-2 * beta * one["time"]), **THEORY, label=label)
    right.set(yscale="log", xlabel="time (step × learning rate)")
    right.set_ylabel(r"$\max\,|W_lW_l^\top-W_{l+1}^\top W_{l+1}|$")
    right.set_title("Weight decay forgets the imbalance at a known rate")
    right.legend()
    return figure


def depth_gap(table):
    """Primal over dual of the fixed-norm problem against depth, per number of outputs."""
    figure, ax = style.grid(1, 1, width=4.8, height=3.3)
    for i, (outputs, part) in enumerate(table.groupby("outputs")):
        ax.plot(part["depth"], part["ratio"], **(THEORY | {"label": "closed form" * (i == 0)}))
        label = f"trained, {outputs} output" + "s" * (outputs > 1)
        trained = part["trained"] / part["dual"]
        ax.plot(part["depth"], trained, MARKERS[i], color=PALETTE[i], ms=7, label=label)
    ax.set(xlabel="depth $L$", ylabel="optimum / dual value")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title("Vector outputs: the duality gap opens with depth")
    ax.legend()
    return figure


def constraint(curve, neurons):
    """The dual constraint over all hidden directions, and where the optimal neurons sit."""
    figure, ax = style.grid(1, 1, width=6.5, height=3.0)
    ax.axhspan(-1, 1, color="0.95", zorder=0)
    ax.plot(curve["angle"], curve["value"], color=PALETTE[0])
    for sign, marker in ((1, "^"), (-1, "v")):
        part = neurons[np.sign(neurons["weight"]) == sign]
        label = f"neurons with {'positive' if sign > 0 else 'negative'} output"
        ax.plot(part["angle"], part["value"], marker, color=PALETTE[3], ms=8, label=label)
    for bound in (-1, 1):
        ax.axhline(bound, **THEORY)
    ax.set(xlabel="direction of the hidden weight (degrees)", xlim=(-180, 180), ylim=(-1.25, 1.45))
    ax.set_ylabel(r"$\Lambda^{*\top}(Xu)_+\,/\,\beta$")
    ax.set_xticks(range(-180, 181, 60))
    ax.set_title("Neurons sit exactly where the dual constraint is tight")
    ax.legend(loc="upper right", ncols=2)
    return figure


FIT_COLORS = {"exact": "black", "L-BFGS": PALETTE[0], "Adam": PALETTE[1]}


def splines(curves, knots, path, x, y):
    """Exact spline and trained nets: fits, their knots, and the knots along beta."""
    figure, axes = plt.subplot_mosaic(
        [["fit", "path"], ["knots", "path"]],
        figsize=(9.5, 4.4),
        height_ratios=[2.4, 1],
        width_ratios=[1.25, 1],
    )
    fit, mass, along = axes["fit"], axes["knots"], axes["path"]
    for name, part in curves.groupby("fit", sort=False):
        options = THEORY if name == "exact" else {"color": FIT_COLORS[name], "lw": 2.5}
        label = "exact spline" if name == "exact" else f"{name} net"
        fit.plot(part["x"], part["y"], **options, label=label)
    fit.plot(x, y, "o", color="0.3", ms=6, zorder=6, label="data")
    fit.set(ylabel="output", title="Trained nets cost what the spline costs")
    fit.legend(ncols=2)
    names = list(knots["fit"].unique())
    for row, name in enumerate(reversed(names)):
        part = knots.query("fit == @name and mass > 1e-3")
        size = 12 + 110 * part["mass"] / knots["mass"].max()
        mass.scatter(part["position"], [row] * len(part), s=size, color=FIT_COLORS[name])
    for point in x:
        mass.axvline(point, **GUIDE)
    mass.set(xlim=fit.get_xlim(), ylim=(-0.6, len(names) - 0.4), xlabel="$x$")
    mass.set_yticks(range(len(names)), list(reversed(names)))
    mass.set_title("Knots (area: mass); dotted lines: data", fontsize=8.5)
    fit.tick_params(labelbottom=False)
    size = 4 + 60 * np.sqrt(path["mass"] / path["mass"].max())
    points = along.scatter(
        path["position"], path["beta"], s=size, c=path["norm"], cmap=style.SEQUENTIAL
    )
    for point in x:
        along.axvline(point, **GUIDE)
    along.set(yscale="log", xlabel="knot position", ylabel=r"weight decay $\beta$")
    along.set_title(r"Larger $\beta$, fewer knots, always at data")
    figure.colorbar(points, ax=along, label="half the squared weights")
    return figure


def spline_freedom(points, values, curves):
    """Two functions of equal cost through the same points.  ``curves``: fit, x, y."""
    figure, ax = style.grid(1, 1, width=4.8, height=3.2)
    for i, (name, part) in enumerate(curves.groupby("fit", sort=False)):
        ax.plot(part["x"], part["y"], color=PALETTE[i], ls=("-", "--")[i], lw=2, label=name)
    ax.plot(points, values, "o", color="0.2", ms=7, zorder=5)
    ax.set(xlabel="$x$", ylabel="output", title="Equal cost, different functions")
    ax.legend()
    return figure


def deep_one_dimensional(table):
    """Trained depth-3 nets minus the deep spline law, one bar per case."""
    figure, ax = style.grid(1, 1, width=7.5, height=3.2)
    colors = ["0.45" if abs(e) < 1e-4 else PALETTE[2 if e < 0 else 3] for e in table["excess"]]
    bars = ax.bar(table["label"], table["excess"], color=colors, width=0.55)
    labels = ["0" if abs(e) < 1e-4 else f"{e:+.3f}" for e in table["excess"]]
    ax.bar_label(bars, labels, padding=3, fontsize=8)
    ax.axhline(0, **THEORY)
    ax.margins(y=0.2)
    ax.set(ylabel="best net minus spline law")
    ax.set_title("Depth 3: the spline law holds in the first setting only")
    return figure


def optimisers(trace, errors):
    """Excess, certified gap and collapse of whitened nets under three optimisers; HH' errors.

    ``errors``: run -> (trained, theory) Gram matrices.
    """
    figure, axes = style.grid(1, 4, width=12.5, height=3.2, width_ratios=[1, 1, 1, 0.85])
    panels = (
        ("excess", "objective minus optimum", "Training reaches the closed form"),
        ("gap", "objective minus own dual bound", "…and certifies it by itself"),
        ("simplex", "simplex deviation of class means", "Class means become an ETF"),
    )
    for ax, (column, label, title) in zip(axes, panels, strict=False):
        for i, (run, part) in enumerate(trace.groupby("run", sort=False)):
            part = part[(part["step"] > 0) & (part[column] > 1e-13)]
            ax.plot(
                part["step"], part[column], color=PALETTE[i], label=run, ls=("-", "--", "-.")[i]
            )
        ax.set(xscale="log", yscale="log", xlabel="step", ylabel=label, title=title)
    axes[0].legend()
    image = axes[3].imshow(errors, cmap=style.SEQUENTIAL, vmin=0)
    axes[3].set(xlabel="sample", ylabel="sample", title="$HH^\\top$ of the Adam net")
    figure.colorbar(image, ax=axes[3], shrink=0.8)
    return figure


def minority(curves, trained, network):
    """Outputs of classes of different size against beta; right: a trained BN network.

    ``curves``, ``trained``: beta, label, count, output; ``network``: label, count, output, theory.
    """
    figure, (left, right) = style.grid(1, 2, height=3.4)
    for i, (count, part) in enumerate(curves.groupby("count")):
        left.plot(part["beta"], part["output"], **(THEORY | {"label": "closed form" * (i == 0)}))
        dots = trained.query("count == @count")
        left.plot(
            dots["beta"], dots["output"], MARKERS[i], color=PALETTE[i], label=f"$n_k={count}$"
        )
        left.axvline(np.sqrt(count), color=PALETTE[i], ls=":", lw=1)
    left.set(xlabel=r"weight decay $\beta$", ylabel="output for the own class")
    left.set_xlim(right=1.3 * curves["beta"].max())
    left.set_title(r"A class dies at $\beta=\sqrt{n_k}$")
    left.legend()
    counts = sorted(network["count"].unique(), reverse=True)
    for i, count in enumerate(counts):
        part = network.query("count == @count")
        label = f"{count} samples"
        right.bar(part["label"], part["output"], color=PALETTE[i], width=0.7, label=label)
    for row in network.itertuples():
        right.hlines(row.theory, row.label - 0.45, row.label + 0.45, **THEORY)
    zero = network.query("theory == 0")
    if len(zero):
        right.annotate("output 0,\nas predicted", (zero["label"].mean(), 0.02), ha="center",
                       xycoords=("data", "axes fraction"), color="0.35")  # fmt: skip
    right.set(xlabel="class", ylabel="output for the own class")
    right.set_xticks(network["label"])
    right.set_title("BN network on images: minority classes output 0")
    right.legend(title="dashed: closed form")
    return figure


def sandwich(history, ratio=None):
    """Objective, closed-form optimum and dual bound against epoch; collapse; gamma/alpha.

    ``ratio``: theory of gamma/alpha, sqrt(K-1), for balanced classes.
    """
    figure, axes = style.grid(1, 3, width=11.5, height=3.3)
    left, middle, right = axes
    part = history[history["epoch"] > 0]
    left.fill_between(part["epoch"], part["dual"], part["objective"], color="0.9", lw=0)
    left.plot(part["epoch"], part["objective"], color=PALETTE[0], label="training objective $F$")
    left.plot(part["epoch"], part["dual"], color=PALETTE[1], label="its own dual bound $D$")
    left.plot(part["epoch"], part["optimum"], **THEORY, label="closed form $P^*$")
    left.set(xlabel="epoch", ylabel="MSE + weight decay", xscale="log", yscale="log")
    left.yaxis.set_minor_formatter(NullFormatter())
    left.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
    left.yaxis.set_major_formatter("{x:g}")
    left.set_title(r"$D\leq P^*\leq F$ at every epoch")
    left.legend()
    styles = {"nc1": "NC1 (trace ratio)", "orthogonal": "raw means: orthogonality"}
    styles |= {"simplex": "centred means: simplex ETF"}
    for i, (column, label) in enumerate(styles.items()):
        middle.plot(part["epoch"], part[column], color=PALETTE[i + 2], label=label)
    middle.set(xscale="log", yscale="log", xlabel="epoch", ylabel="deviation")
    middle.set_title("Features collapse onto the closed form")
    middle.legend()
    limit = 2 * (ratio or part["gamma_over_alpha"].iloc[-1])
    shown = part["gamma_over_alpha"].where(part["gamma_over_alpha"].between(0, limit))
    right.plot(part["epoch"], shown, color=PALETTE[0], label="median neuron")
    if ratio is not None:
        right.axhline(ratio, **THEORY, label=r"$\sqrt{K-1}$")
    right.set(xscale="log", xlabel="epoch", ylabel=r"BN scale / BN shift, $\gamma/\alpha$")
    right.set_ylim(0, limit)
    right.set_title("Even batch norm's parameters are predicted")
    right.legend()
    return figure


def class_cosines(table, num_classes):
    """Cosines between class means, raw and centred.  ``table``: kind, row, column, value."""
    figure, axes = style.grid(1, 2, width=7.6, height=3.4)
    titles = {
        "raw": "raw means: orthogonal frame",
        "centred": rf"centred: simplex ETF, $-1/(K-1)={-1 / (num_classes - 1):.3f}$",
    }
    for ax, (kind, title) in zip(axes, titles.items(), strict=True):
        part = table[table["kind"] == kind]
        matrix = part.pivot(index="row", columns="column", values="value").to_numpy()
        image = ax.imshow(matrix, cmap=style.DIVERGING, vmin=-1, vmax=1)
        ax.set(title=title, xlabel="class", xticks=range(num_classes), yticks=range(num_classes))
    axes[0].set_ylabel("class")
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.9)
    return figure


def depth_breaks(values, descents, spectra):
    """Collapsed, pair and descended networks against depth; singular values of the layers.

    ``values``: K, depth, kind, value; ``descents``: K, depth, value, collapsed; ``spectra``:
    depth, layer, index, singular of one descended network.
    """
    figure, (left, right) = style.grid(1, 2, width=10, height=3.5, width_ratios=[1.2, 1])
    wide = values.pivot(index=["K", "depth"], columns="kind", values="value").reset_index()
    for i, (K, part) in enumerate(wide.groupby("K")):
        ratio = part["pairs"] / part["collapsed"]
        left.plot(part["depth"], ratio, color=PALETTE[i], lw=1.2, label=f"$K={K}$, explicit")
        found = descents.query("K == @K")
        dots = found["value"] / found["collapsed"]
        label = f"$K={K}$, after descent"
        left.plot(found["depth"], dots, MARKERS[i], color=PALETTE[i], ms=7, label=label)
    left.axhline(1, **THEORY)
    left.annotate("collapsed network", (0.98, 1), xycoords=("axes fraction", "data"), ha="right",
                  va="bottom", fontsize=7.5)  # fmt: skip
    left.set(xlabel="depth $L$", ylabel="cost / cost of collapse")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_title("From depth 4 on, low rank beats collapse")
    left.legend(loc="upper right")
    shown = spectra[spectra["index"] <= spectra.groupby("layer")["index"].max().min() + 1]
    for i, (layer, part) in enumerate(shown.groupby("layer")):
        right.plot(part["index"], part["singular"], MARKERS[i] + "-", color=PALETTE[i], lw=1,
                   label=f"layer {layer}")  # fmt: skip
    right.set(xlabel="index", ylabel="singular value")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_title("…through layers of rank far below $K$")
    right.legend()
    return figure


def accuracy(table, dimension, trained=None):
    """Test accuracy of the closed-form net against the number of samples.

    ``trained``: optional table run, n, accuracy of trained nets.
    """
    figure, ax = style.grid(1, 1, width=5.2, height=3.3)
    ax.plot(table["n"], table["accuracy"], **THEORY, label="closed form")
    if trained is not None:
        for i, row in enumerate(trained.itertuples()):
            options = dict(color=PALETTE[i], ms=8 - i, zorder=6, label=f"trained: {row.run}")
            ax.plot(row.n, row.accuracy, MARKERS[i], **options)
    ax.axvline(dimension, **GUIDE)
    ax.annotate("input dimension", (dimension, 0.02), xycoords=("data", "axes fraction"),
                rotation=90, ha="right", va="bottom", fontsize=7.5)  # fmt: skip
    ax.set(xlabel="training samples $n$", ylabel="test accuracy", ylim=(0, None))
    ax.set_title("Full collapse at every $n$, yet accuracy falls")
    ax.legend()
    return figure
