"""One look for all figures: theory dashed black, measurement in colour-blind-safe colour."""

import io
import logging
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.ticker import LogLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nclib import files

# What it says while it embeds matplotlib's own fonts is not about the figure.
logging.getLogger("fontTools").setLevel(logging.ERROR)

PALETTE = sns.color_palette("colorblind")
THEORY = {"color": "black", "linestyle": "--", "linewidth": 1.2, "zorder": 5}
GUIDE = {"color": "0.6", "linestyle": ":", "linewidth": 1.0, "zorder": 1}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SEQUENTIAL, DIVERGING = "viridis", "vlag"

# One colour, one marker and one name per loss, in every figure.
LOSS_NAMES = {"ce": "cross-entropy", "ls": "label smoothing", "fl": "focal", "mse": "MSE"}
LOSS_COLORS = dict(zip(LOSS_NAMES, PALETTE[:4], strict=True))
LOSS_MARKERS = dict(zip(LOSS_NAMES, MARKERS[:4], strict=True))

_SETTINGS = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 80,
    "savefig.dpi": 150,
    "pdf.fonttype": 42,
    "svg.hashsalt": "nclib",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.formatter.useoffset": False,
}


def use():
    """Make this look matplotlib's default for the process."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", rc=_SETTINGS)


def grid(rows=1, columns=2, *, width=9.0, height=3.2, **options):
    """``plt.subplots`` at a common page width; ``height`` is per row, in inches."""
    return plt.subplots(rows, columns, figsize=(width, height * rows), **options)


def titled(figure, title, size=10):
    """``figure`` with ``title`` at its top left."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=size)
    return figure


def reference(ax, value, text, *, axis="y", below=None, **style):
    """A theory line across ``ax`` at ``value`` with its name at the end of the line, or so many
    points ``below`` it."""
    line = ax.axhline if axis == "y" else ax.axvline
    line(value, **(THEORY | style))
    if axis == "y":
        position, coordinates = (1.0, value), ax.get_yaxis_transform()
        place = {"va": "bottom"} if below is None else {"va": "top", "xytext": (0, -below)}
        place |= {"xycoords": coordinates, "textcoords": "offset points", "ha": "right"}
        ax.annotate(text, position, **{"xytext": (0, 0)} | place, fontsize=7.5)
    else:
        position, coordinates = (value, 1.0), ax.get_xaxis_transform()
        ax.annotate(
            text, position, xycoords=coordinates, ha="right", va="top", fontsize=7.5, rotation=90
        )


def scales(ax, log, ticks=None):
    """Logarithmic axes (``""``, ``"x"``, ``"y"`` or ``"xy"``), without minor ticks.

    ``ticks``: axis -> places that are labelled with plain numbers, as far as they are in view.
    """
    for axis in log:
        getattr(ax, f"set_{axis}scale")("log")
    if log:
        ax.minorticks_off()
    for axis, values in (ticks or {}).items():
        low, high = sorted(getattr(ax, f"get_{axis}lim")())
        shown = [value for value in values if low <= value <= high]
        getattr(ax, f"set_{axis}ticks")(shown, [f"{value:g}" for value in shown])


def between_decades(ax):
    """More ticks on a logarithmic vertical axis that shows fewer than two powers of ten."""
    low, high = np.log10(sorted(ax.get_ylim()))
    if np.floor(high) - np.ceil(low) < 1:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")


def fixed(figure):
    """``figure`` with its layout computed once instead of at every save."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def save(figure, stem, *, table=""):
    """Write ``stem.png`` and ``stem.pdf``, without dates or versions: equal input, equal bytes.

    ``table``: checksum of the table the figure was drawn from; the PNG carries it as ``Table``.
    """
    stem = Path(stem)
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", metadata={"Software": None})
    with files.replacing(stem.with_name(stem.name + ".png")) as path:
        path.write_bytes(shrink(pixels.getvalue(), {"Table": table} if table else {}))
    undated = {"CreationDate": None, "Producer": None, "Creator": None}
    with files.replacing(stem.with_name(stem.name + ".pdf")) as path:
        figure.savefig(path, format="pdf", metadata=undated)


def shrink(png, texts=None):
    """The same PNG picture with a palette of 256 colours: a third of the bytes, no visible loss.

    ``texts``: what its metadata say, name -> text.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    metadata = PngInfo()
    for name, text in (texts or {}).items():
        metadata.add_text(name, text)
    result = io.BytesIO()
    image.save(result, format="png", optimize=True, pnginfo=metadata)
    return result.getvalue()
