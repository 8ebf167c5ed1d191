"""Figures of result 6.  Each takes the tidy tables it draws and returns the figure.

Theory (the convex optimum) is dashed black, trained networks are in colour.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from nclib.plots import style
from nclib.plots.panels import heatmaps, lines, matrices
from nclib.plots.style import GUIDE, MARKERS, PALETTE, THEORY, scales

PLAIN = dict(enumerate((color, "") for color in PALETTE))  # lines without markers, by number


def staircase(curves, jumps, measured):
    """Singular values of the end-to-end map against beta, one panel per depth.

    ``curves``: depth, beta, index, singular (closed form); ``jumps``: depth, index, critical,
    spinodal; ``measured``: the same as ``curves`` for trained nets.
    """
    depths = sorted(curves["depth"].unique())
    figure, axes = style.grid(1, len(depths), width=10, height=3.5, sharey=True, squeeze=False)
    for ax, depth in zip(axes[0], depths, strict=True):
        here = {"theory": curves[curves["depth"] == depth], "points": True, "log": "x"}
        here |= {"xlabel": r"weight decay $\beta$", "ylabel": ""}
        here["title"] = f"depth {depth}"
        part = measured[measured["depth"] == depth]
        lines(ax, part, "beta", "singular", by="index", **here)
        for row in jumps.query("depth == @depth and spinodal > critical").itertuples():
            ax.axvspan(row.critical, row.spinodal, color=PALETTE[row.index], alpha=0.15, lw=0)
    axes[0, 0].set_ylabel("singular values of the network")
    handles = [*axes[0, 0].plot([], [], "o", color="0.5"), *axes[0, 0].plot([], [], **THEORY)]
    axes[0, 0].legend(handles, ["trained (best start)", "closed form"], loc="upper right")
    if len(depths) > 1:
        band = axes[0, -1].fill_between([], [], color="0.5", alpha=0.3)
        label = r"$\beta_c$ to $\beta_{sp}$: both" + "\nminima, zero lower"
        axes[0, -1].legend([band], [label], loc="upper right", fontsize=7)
    return figure


def trained_ranks(two, singular, deep):
    """Ranks of linear nets after gradient descent, two layers and deeper, against closed forms.

    ``two``, ``deep``: beta, layer, rank, expected; ``singular``: where the rank should fall.
    """
    figure, (left, right) = style.grid(1, 2, width=9.5, height=3.4)
    edges = [0, *sorted(singular), 1.2 * max(singular)]
    left.stairs(range(len(singular), -1, -1), edges, baseline=None, **THEORY)
    left.plot([], [], **THEORY, label="singular values above $\\beta$")
    for place in singular:
        left.axvline(place, **GUIDE)
    first = two[two["layer"] == 1]
    left.plot(first["beta"], first["rank"], "o", color=PALETTE[0], label="trained")
    left.set(xlabel=r"weight decay $\beta$", ylabel="rank of the hidden weights")
    left.set_title(r"Two layers; dotted: singular values of $Y^\top X$")
    left.legend()
    for i, (beta, part) in enumerate(deep.groupby("beta")):
        look = {"color": PALETTE[i], "marker": MARKERS[i], "ls": "none", "ms": 8}
        right.plot(part["layer"], part["rank"], **look, label=rf"$\beta={beta:.2f}$")
        right.plot(part["layer"], part["expected"], **THEORY)
    right.set(xlabel="layer", ylabel="rank", xticks=sorted(deep["layer"].unique()))
    right.set(ylim=(0, 1.5 * deep["rank"].max()), title="Four layers: rank of every layer")
    right.legend(ncols=2, loc="upper right")
    return figure


def layer_norms(trace, beta, limits, ranks):
    """Layer norms and balancedness of a linear net against time; ranks of a ReLU net on rank-one
    inputs against steps.

    ``limits``: Frobenius and operator norm of every layer at the optimum; ``ranks``: step, layer,
    rank.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=12, height=3.4)
    looks, labels = {j + 1: PLAIN[j] for j in range(9)}, {j: f"layer {j}" for j in range(9)}
    time = "time (step × learning rate)"
    texts = {"ylabel": "norm of the layer", "title": "Linear net, rank-two targets: layer norms"}
    look = {"looks": looks, "labels": labels, "xlabel": time}
    lines(left, trace, "time", "frobenius", by="layer", **look, **texts)
    for layer, part in trace.groupby("layer"):
        left.plot(part["time"], part["operator"], color=PALETTE[layer - 1], lw=1, ls="-.")
    left.plot([], [], color="0.4", lw=1, ls="-.", label="operator norm")
    for limit in limits:
        left.axhline(limit, **THEORY)
    left.plot([], [], **THEORY, label="closed form")
    left.legend(ncols=2)
    one = trace[trace["layer"] == 1]
    middle.plot(one["time"], one["balance"], color=PALETTE[0], lw=3, label="gradient descent")
    flow = one["balance"].iloc[0] * np.exp(-2 * beta * one["time"])
    middle.plot(one["time"], flow, **THEORY, label=r"gradient flow: $e^{-2\beta t}$")
    middle.set(yscale="log", xlabel=time, title="Imbalance between neighbouring layers")
    middle.set_ylabel(r"$\max\,|W_lW_l^\top-W_{l+1}^\top W_{l+1}|$")
    middle.legend()
    look = {"looks": looks, "labels": labels, "xlabel": "step", "ylabel": "rank of the layer"}
    title = "ReLU net on rank-one inputs, descent"
    lines(
        right, ranks[ranks["step"] > 0], "step", "rank", by="layer", log="xy", **look, title=title
    )
    right.axhline(1, **THEORY)
    right.legend(loc=(0.03, 0.12))
    return figure


def depth_gap(table):
    """Primal over dual of the fixed-norm problem against depth, per number of outputs."""
    figure, ax = style.grid(1, 1, width=5.6, height=3.4)
    labels = {K: f"trained, {K} output" + "s" * (K > 1) for K in table["outputs"]}
    trained = table.assign(trained=table["trained"] / table["dual"])
    texts = {"xlabel": "depth $L$", "ylabel": "optimum / value of the dual"}
    look = {"labels": labels, "theory": "ratio", "points": True}
    title = "Fixed inner norms: optimum over dual, random targets"
    lines(ax, trained, "depth", "trained", by="outputs", **look, title=title, **texts)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.plot([], [], **THEORY, label="closed form; 1: no gap")
    ax.legend()
    return figure


def constraint(curve, neurons):
    """The dual constraint over all hidden directions, and where the optimal neurons sit."""
    figure, ax = style.grid(1, 1, width=6.5, height=3.0)
    ax.axhspan(-1, 1, color="0.95", zorder=0)
    ax.plot(curve["angle"], curve["value"], color=PALETTE[0])
    for name, marker, sign in (("positive", "^", 1), ("negative", "v", -1)):
        part = neurons[np.sign(neurons["weight"]) == sign]
        look = {"color": PALETTE[3], "ms": 8, "label": f"neurons with {name} output"}
        ax.plot(part["angle"], part["value"], marker, **look)
    for bound in (-1, 1):
        ax.axhline(bound, **THEORY)
    ax.set(xlabel="direction of the hidden weight (degrees)", xlim=(-180, 180), ylim=(-1.25, 1.45))
    ax.set_ylabel(r"$\Lambda^{*\top}(Xu)_+\,/\,\beta$")
    ax.set_xticks(range(-180, 181, 60))
    ax.set_title("The dual constraint, and the neurons of the optimum")
    ax.legend(loc="upper right", ncols=2)
    return figure


def splines(curves, knots, path, x, y):
    """Exact spline and trained nets: fits, their knots, and the knots along beta."""
    shape = {"height_ratios": [2.4, 1], "width_ratios": [1.25, 1], "figsize": (9.5, 4.4)}
    figure, axes = plt.subplot_mosaic([["fit", "path"], ["knots", "path"]], **shape)
    fit, mass, along = axes["fit"], axes["knots"], axes["path"]
    colors = {"Adam": PALETTE[1], "L-BFGS": PALETTE[0], "exact": "black"}
    for name, part in curves.groupby("fit", sort=False):
        options = THEORY if name == "exact" else {"color": colors[name], "lw": 2.5}
        label = "exact spline" if name == "exact" else f"{name} net"
        fit.plot(part["x"], part["y"], **options, label=label)
    fit.plot(x, y, "o", color="0.3", ms=6, zorder=6, label="data")
    fit.set(ylabel="output", title="Exact fit and trained nets")
    fit.legend(ncols=2)
    for row, (name, color) in enumerate(colors.items()):
        part = knots[(knots["fit"] == name) & (knots["mass"] > 1e-3)]
        size = 12 + 110 * part["mass"] / knots["mass"].max()
        mass.scatter(part["position"], [row] * len(part), s=size, color=color)
    mass.set(xlim=fit.get_xlim(), ylim=(-0.6, len(colors) - 0.4), xlabel="$x$")
    mass.set_yticks(range(len(colors)), colors)
    mass.set_title("Knots (area: mass); dotted lines: data", fontsize=8.5)
    fit.tick_params(labelbottom=False)
    size = 4 + 60 * np.sqrt(path["mass"] / path["mass"].max())
    look = {"s": size, "c": path["norm"], "cmap": style.SEQUENTIAL}
    dots = along.scatter(path["position"], path["beta"], **look)
    for ax in (mass, along):
        for point in x:
            ax.axvline(point, **GUIDE)
    along.set(yscale="log", xlabel="knot position", ylabel=r"weight decay $\beta$")
    along.set_title(r"Knots of the exact fit against $\beta$")
    figure.colorbar(dots, ax=along, label="half the squared weights")
    return figure


def spline_freedom(points, values, curves):
    """Functions through the same points, and where and how much each bends.

    ``curves``: fit, x, y, on one fine grid of ``x``.
    """
    figure, (left, right) = style.grid(1, 2, width=9, height=3.2)
    for i, (name, part) in enumerate(curves.groupby("fit", sort=False)):
        look = {"color": PALETTE[i], "ls": ("-", "--", ":")[i], "lw": 2}
        left.plot(part["x"], part["y"], **look, label=name)
        slope = np.gradient(part["y"], part["x"])
        right.plot(part["x"], slope, **look, label=name)
    left.plot(points, values, "o", color="0.2", ms=7, zorder=5)
    for point in points:
        right.axvline(point, **GUIDE)
    left.set(xlabel="$x$", ylabel="output", title="Different functions, same data")
    right.set(xlabel="$x$", ylabel="slope", title="Their slopes (dotted: data)")
    left.legend()
    return figure


def deep_splines(curves, beyond, x, y):
    """Spline law and trained nets by depth; right: where the law is wrong.

    ``curves``: depth, fit, x, y; ``beyond``: case, value, optimum; ``x``, ``y``: the data.
    """
    figure, (left, right) = style.grid(1, 2, width=10, height=3.5, width_ratios=[1.25, 1])
    for i, (depth, part) in enumerate(curves.groupby("depth")):
        law, net = (part[part["fit"] == fit] for fit in ("law", "trained"))
        left.plot(net["x"], net["y"], color=PALETTE[i], lw=2.5, label=f"trained, depth {depth}")
        left.plot(law["x"], law["y"], **THEORY)
    left.plot([], [], **THEORY, label="spline law")
    left.plot(x, y, "o", color="0.3", ms=6, zorder=6, label="data")
    left.set(xlabel="$x$", ylabel="output", title="One sign of $x$, bias in the last hidden layer")
    left.legend(fontsize=7, loc="upper left", bbox_to_anchor=(0.12, 1.0))
    names = {"biases": "bias in every layer,\n$x\\geq0$, hat", "even": "$x$ of both signs,\nhat"}
    names |= {"odd": "$x$ of both signs,\nodd pair"}
    place = np.arange(len(beyond))
    bars = right.bar(place, beyond["value"], width=0.55, color=PALETTE[0])
    right.bar_label(bars, [f"{v:.3f}" for v in beyond["value"]], padding=3, fontsize=8)
    for at, law in zip(place, beyond["optimum"], strict=True):
        right.hlines(law, at - 0.4, at + 0.4, **THEORY)
    right.plot([], [], **THEORY, label="spline law")
    right.set_xticks(place, [names[case] for case in beyond["case"]], fontsize=8)
    right.set(ylabel="cost of the network", title="Depth 3 elsewhere, against the law")
    right.margins(y=0.15)
    right.legend()
    return figure


def optimisers(trace, gram):
    """Excess, certified gap and collapse of whitened nets under three optimisers; ``gram``: HH'
    (n, n) of one of them."""
    figure, axes = style.grid(1, 4, width=12.5, height=3.2, width_ratios=[1, 1, 1, 0.85])
    panels = (
        ("excess", "objective minus optimum", "Distance to the closed form"),
        ("gap", "objective minus own dual bound", "… as the net itself certifies it"),
        ("orthogonal", "largest deviation of a cosine", ""),
    )
    looks = {run: PLAIN[i] for i, run in enumerate(trace["run"].unique())}
    for ax, (column, label, title) in zip(axes, panels, strict=False):
        part = trace[(trace["step"] > 0) & (trace[column] > 1e-13)]
        lines(ax, part, "step", column, by="run", looks=looks, log="xy", ylabel=label, title=title)
        for line, dash in zip(ax.lines, ("-", "--", "-."), strict=False):
            line.set_linestyle(dash)
    for run, part in trace[trace["step"] > 0].groupby("run", sort=False):
        axes[2].plot(part.groupby("step")["simplex"].mean(), ":", color=looks[run][0], lw=1.5)
    axes[2].plot([], [], "-", color="0.3", label="raw: orthogonal")
    axes[2].plot([], [], ":", color="0.3", label="centred: simplex ETF")
    axes[2].legend(fontsize=7)
    axes[2].set_title("Class means against the two frames")
    axes[0].legend()
    image = axes[3].imshow(gram, cmap=style.SEQUENTIAL, vmin=0)
    axes[3].set(xlabel="sample", ylabel="sample", title="$HH^\\top$ of the Adam net")
    figure.colorbar(image, ax=axes[3], shrink=0.8)
    return figure


def depths(trace, x, panels, reference=None):
    """Training of nets of several depths, one panel per column: mean and range over seeds.

    ``trace``: depth, ``x`` and the columns of ``panels``, (column, label, title, log axes);
    ``reference``: a dashed line in the first panel.
    """
    figure, axes = style.grid(1, len(panels), width=3.8 * len(panels), height=3.2)
    names = {depth: f"depth {depth}" for depth in trace["depth"]}
    looks = {depth: (color, "") for depth, color in zip(names, PALETTE, strict=False)}
    part = trace[trace[x] > 0]
    for ax, (column, label, title, log) in zip(axes, panels, strict=True):
        texts = {"ylabel": label, "title": title}
        lines(ax, part, x, column, by="depth", looks=looks, labels=names, log=log, **texts)
    if reference is not None:
        axes[0].axhline(reference, **THEORY, label="collapse, closed form")
    axes[0].legend()
    return figure


def minority(curves, trained, network):
    """Outputs of classes of different size against beta; right: a trained BN network.

    ``curves``, ``trained``: beta, label, count, output; ``network``: label, count, output, theory,
    one row per label and seed.
    """
    figure, (left, right) = style.grid(1, 2, height=3.4)
    counts = sorted(curves["count"].unique())
    labels = {count: f"$n_k={count}$" for count in counts}
    texts = {"xlabel": r"weight decay $\beta$", "ylabel": "output for the own class"}
    look = {"labels": labels, "theory": curves, "points": True}
    look["title"] = r"Whitened nets; dotted: $\sqrt{n_k}$"
    lines(left, trained.sort_values("count"), "beta", "output", by="count", **look, **texts)
    for color, count in zip(PALETTE, counts, strict=False):
        left.axvline(np.sqrt(count), color=color, ls=":", lw=1)
    left.set_xlim(right=1.3 * curves["beta"].max())
    left.plot([], [], **THEORY, label="closed form")
    left.legend()
    for color, (count, part) in zip(PALETTE, network.groupby("count", sort=False), strict=False):
        look = {"color": color, "width": 0.7, "label": f"{count} samples"}
        mean = part.groupby("label")["output"].mean()
        right.bar(mean.index, mean, **look)
        right.plot(part["label"], part["output"], "o", color="0.2", ms=2.5)  # one dot a seed
    for row in network.drop_duplicates("label").itertuples():
        right.hlines(row.theory, row.label - 0.45, row.label + 0.45, **THEORY)
    zero = network[network["theory"] == 0]
    if len(zero):
        where = {"xycoords": ("data", "axes fraction"), "ha": "center", "color": "0.35"}
        right.annotate("closed form:\noutput 0", (zero["label"].mean(), 0.03), **where)
    right.set(xlabel="class", ylabel="output for the own class", xticks=network["label"].unique())
    right.set_title("BN network on images, large and small classes")
    right.legend(title="dashed: closed form")
    return figure


def sandwich(history, ratio):
    """Objective, closed-form optimum and dual bound against epoch; collapse; gamma/alpha.

    ``history``: of one seed or several.  ``ratio``: theory of gamma/alpha, sqrt(K-1), for balanced
    classes.
    """
    figure, (left, middle, right) = style.grid(1, 3, width=11.5, height=3.3)
    part = history[history["epoch"] > 0]
    ends = part.groupby("epoch").agg({"dual": "min", "objective": "max"})
    left.fill_between(ends.index, ends["dual"], ends["objective"], color="0.9", lw=0)
    names = {"objective": "training objective $F$", "dual": "its own dual bound $D$"}
    names |= {"nc1": "NC1 (trace ratio)", "orthogonal": "raw means: orthogonality"}
    names |= {"simplex": "centred means: simplex ETF"}
    for i, (column, label) in enumerate(names.items()):
        look = {"looks": {None: PLAIN[i]}, "labels": {None: label}}
        lines(left if i < 2 else middle, part, "epoch", column, **look)
    first = part.drop_duplicates("epoch")
    left.plot(first["epoch"], first["optimum"], **THEORY, label="closed form $P^*$")
    left.set(xlabel="epoch", ylabel="MSE + weight decay", xscale="log", yscale="log")
    left.yaxis.set_minor_formatter(NullFormatter())
    left.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
    left.yaxis.set_major_formatter("{x:g}")
    left.set_title("Objective, closed form, dual bound")
    scales(middle, "xy")
    middle.set(xlabel="epoch", ylabel="deviation", title="Features against the closed form")
    shown = part[part["gamma_over_alpha"].between(0, 2 * ratio)]
    look = {"looks": {None: PLAIN[0]}, "labels": {None: "median neuron"}}
    lines(right, shown, "epoch", "gamma_over_alpha", **look)
    right.axhline(ratio, **THEORY, label=r"$\sqrt{K-1}$")
    scales(right, "x" if len(shown) else "")
    right.set(xlabel="epoch", ylabel=r"BN scale / BN shift, $\gamma/\alpha$", ylim=(0, 2 * ratio))
    right.set_title("Batch norm's own parameters")
    for ax in (left, middle, right):
        ax.legend()
    return figure


def class_cosines(table, num_classes):
    """Cosines between class means, raw and centred.  ``table``: kind, row, column, value."""
    found = matrices(table, by="kind")
    figure, axes = style.grid(1, len(found), width=3.1 * len(found), height=3.1)
    heatmaps(found, label="cosine", axes=axes)
    for ax in axes:
        ax.set(xlabel="class", xticks=range(num_classes), yticks=range(num_classes))
        ax.tick_params(labelsize=7)
    axes[0].set_ylabel("class")
    return figure


def depth_breaks(explicit, descents, searches):
    """Costs over that of collapse against depth; ranks of the layers after descent.

    ``explicit``: K, depth, value, collapsed; ``descents``: the same and ranks; ``searches``: K,
    depth, value, optimum (random starts).
    """
    figure, (left, right) = style.grid(1, 2, width=10, height=3.6, width_ratios=[1.3, 1])
    looks = {K: (PALETTE[i], MARKERS[i]) for i, K in enumerate(explicit["K"].unique())}
    for K, part in explicit.groupby("K", sort=False):
        look = {"color": looks[K][0], "marker": looks[K][1], "mfc": "white", "lw": 0.8, "ls": ":"}
        ratio = part["value"] / part["collapsed"]
        left.plot(part["depth"], ratio, **look, label=f"$K={K}$, explicit low rank")
    for K, part in descents.groupby("K"):
        look = dict(zip(("color", "marker"), looks.get(K, ("0.4", "P")), strict=True))
        ratio = part["value"] / part["collapsed"]
        left.plot(part["depth"], ratio, ls="none", ms=8, **look, label=f"$K={K}$, after descent")
    for mark, (K, part) in zip("x+1", searches.groupby("K"), strict=False):
        look = {"ls": "none", "ms": 9, "label": f"$K={K}$, best of random starts"}
        left.plot(part["depth"], part["value"] / part["optimum"], "k", marker=mark, **look)
    style.reference(left, 1, "collapsed network")
    left.set(xlabel="depth $L$", ylabel="cost / cost of collapse")
    left.legend(fontsize=7, loc="upper right")
    left.set_title("Low rank against collapse")
    for i, row in enumerate(descents.itertuples()):
        ranks = [int(rank) for rank in row.ranks.split(", ")]
        look = {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)], "lw": 1}
        right.plot(range(1, len(ranks) + 1), ranks, **look, label=f"$K={row.K}$, $L={row.depth}$")
    right.set(xlabel="layer", ylabel="rank", ylim=(0, None))
    right.set_title("Ranks of the layers after descent")
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(fontsize=7, ncols=2)
    return figure


def accuracy(table, dimension, trained):
    """Test accuracy of the closed-form net and condition of its inputs against the number of
    samples.  ``table``: n, accuracy, condition; ``trained``: run, n, accuracy."""
    figure, (left, right) = style.grid(1, 2, width=9, height=3.2)
    look = THEORY | {"marker": "."}
    left.plot(table["n"], table["accuracy"], **look, label="closed form")
    for i, row in enumerate(trained.itertuples()):
        look = {"color": PALETTE[i], "ms": 9 - 2 * i, "zorder": 6, "label": f"trained: {row.run}"}
        left.plot(row.n, row.accuracy, MARKERS[i], **look)
    left.set(xlabel="training samples $n$", ylabel="test accuracy", ylim=(0, 1))
    left.set_title("Whitened nets on new images")
    right.plot(table["n"], table["condition"], "o-", color=PALETTE[3])
    right.set(xlabel="training samples $n$", ylabel="condition number of the inputs", yscale="log")
    right.set_title("Condition of the inputs")
    for ax, (y, va) in ((left, (0.98, "top")), (right, (0.02, "bottom"))):  # where no curve ends
        ax.axvline(dimension, **GUIDE)
        where = {"xycoords": ("data", "axes fraction"), "fontsize": 7.5, "rotation": 90}
        ax.annotate("input dimension", (dimension, y), ha="right", va=va, **where)
    left.legend()
    return figure
