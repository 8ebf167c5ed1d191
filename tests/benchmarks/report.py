"""Results as CSV, as a table in the README, and as a figure."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from nclib import files
from nclib.plots import style
from tests.benchmarks import notebooks, scaling

FOLDER = Path(__file__).resolve().parent
RESULTS, README = FOLDER / "results", FOLDER / "README.md"
COLUMNS = (
    "row", "what", "ours_s", "baseline_s", "ratio", "goal", "floor_s", "over_floor", "most",
    "ours_mb", "baseline_mb", "difference", "tolerance", "spread", "load",
)  # fmt: skip
OPTIONAL = ("goal", "floor_s", "over_floor", "most")  # what a row may lack
PROFILE = ("row", "operator", "calls", "seconds", "share")
START, END = "<!-- table -->", "<!-- /table -->"


def line(row):
    """One measured row as a line of text."""
    return (
        f"{row['row']:20} {row['ours_s']:9.4f} s  baseline {row['baseline_s']:9.4f} s  "
        f"×{row['ratio']:.1f}  {row['ours_mb']:.0f} / {row['baseline_mb']:.0f} MB  "
        f"difference {row['difference']:.1e}  load {row['load']:.1f}"
    )


def store(folder, name, table):
    """Write a table as ``<name>.csv``, four digits: more are noise."""
    rounded = table.copy()
    for column in rounded.select_dtypes("float"):
        rounded[column] = [_digits(value) for value in rounded[column]]
    files.write_csv(folder / f"{name}.csv", rounded)


def _digits(value):
    return float(f"{value:.4g}") if math.isfinite(value) else value


def store_rows(folder, measured, order):
    """Write measured rows, keep the stored ones that were not measured now; returns all."""
    path = folder / "rows.csv"
    if path.exists():
        old = pd.read_csv(path)
        measured = pd.concat([old[~old["row"].isin(measured["row"])], measured])
    measured = measured[measured["row"].isin(order)]
    place = {name: i for i, name in enumerate(order)}
    table = measured.sort_values("row", key=lambda names: names.map(place))
    table = table.astype(dict.fromkeys(OPTIONAL, float))
    store(folder, "rows", table[list(COLUMNS)])
    return table


def missed(table):
    """Names of the rows that miss a goal they have."""
    return table["row"][(table["ratio"] < table["goal"]) | (table["over_floor"] > table["most"])]


def store_profiles(folder, profiles):
    """``profiles.csv``: the costliest operators of each row that misses its goal."""
    lines = [line for profile in profiles for line in profile]
    store(folder, "profiles", pd.DataFrame(lines, columns=list(PROFILE)))


def load(folder, name):
    """A stored table, or ``None``."""
    path = folder / f"{name}.csv"
    return pd.read_csv(path) if path.exists() else None


def markdown(folder=RESULTS):
    """The README's tables, from the CSV files alone."""
    parts = []
    rows = load(folder, "rows")
    if rows is not None:
        head = "| row | task | ours | baseline | ratio | goal | ours / floor | memory |"
        parts.append("\n".join([head, "|---|---|---|---|---|---|---|---|", *_lines(rows)]))
    profiles = load(folder, "profiles")
    if profiles is not None and len(profiles):
        head = "| misses a goal | where its time goes: operator (calls, share) |\n|---|---|"
        parts.append("\n".join([head, *_profile_lines(profiles)]))
    sweep = load(folder, "scaling")
    if sweep is not None:
        slopes = [f"| {name} | {slope:.2f} |" for name, slope in scaling.slopes(sweep).items()]
        parts.append("\n".join(["| time grows with | power |", "|---|---|", *slopes]))
    split = load(folder, "notebooks")
    if split is not None:
        head = f"| notebook | {' | '.join(notebooks.PARTS)} | all |"
        lines = [head, "|---" * (len(notebooks.PARTS) + 2) + "|"]
        whole = split.set_index("notebook")
        whole.loc["**all**"] = whole.sum()
        for name, seconds in whole.iterrows():
            values = [*seconds, seconds.sum()]
            lines.append(f"| {name} | " + " | ".join(f"{v:.1f} s" for v in values) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _lines(rows):
    for r in rows.to_dict("records"):
        goal = "" if math.isnan(r["goal"]) else f"≥ {r['goal']:g}"
        if goal:
            goal += " ✓" if r["ratio"] >= r["goal"] else " ✗"
        floor = "" if math.isnan(r["over_floor"]) else f"{r['over_floor']:.1f}"
        if not math.isnan(r["most"]):
            floor += f" (≤ {r['most']:g} {'✓' if r['over_floor'] <= r['most'] else '✗'})"
        yield (
            f"| `{r['row']}` | {r['what']} | {_seconds(r['ours_s'])} | {_seconds(r['baseline_s'])} "
            f"| {r['ratio']:.1f} | {goal} | {floor} | {r['ours_mb']:.0f} / "
            f"{r['baseline_mb']:.0f} MB |"
        )


def _profile_lines(profiles):
    for name, part in profiles.groupby("row", sort=False):
        words = [
            f"{p['operator']} ({p['calls']}, {100 * p['share']:.0f} %)"
            for p in part.to_dict("records")
        ]
        yield f"| `{name}` | {', '.join(words)} |"


def _seconds(value):
    return f"{1e3 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def update_readme():
    """Put the tables between the README's markers."""
    text = README.read_text(encoding="utf-8")
    before, after = text.split(START)[0], text.split(END)[1]
    with files.replacing(README) as temporary:
        temporary.write_text(f"{before}{START}\n{markdown()}\n{END}{after}", encoding="utf-8")


def figure(folder):
    """``benchmarks.png``: ratios, distance from the floor, growth, where notebooks spend time."""
    style.use()
    figure, axes = style.grid(2, 2, width=10.0, height=3.6)
    for ax, name, draw in zip(
        axes.flat,
        ("rows", "rows", "scaling", "notebooks"),
        (_ratios, _floors, _growth, _split),
        strict=True,
    ):
        table = load(folder, name)
        if table is None:
            ax.set_axis_off()
        else:
            draw(ax, table)
    style.save(figure, folder / "benchmarks")
    (folder / "benchmarks.pdf").unlink()


def _ratios(ax, rows):
    y = np.arange(len(rows))[::-1]
    ax.barh(y, rows["ratio"], color=style.PALETTE[0], height=0.7)
    ax.plot(rows["goal"], y, "|", color="black", markersize=9, label="goal")
    ax.axvline(1, **style.GUIDE)
    ax.set(xscale="log", xlabel="baseline / ours", yticks=y, title="Times faster than plain code")
    ax.set_yticklabels(rows["row"], fontsize=6)
    ax.legend(loc="upper right")


def _floors(ax, rows):
    rows = rows[rows["over_floor"].notna()]
    y = np.arange(len(rows))[::-1]
    ax.plot(rows["over_floor"], y, "o", color=style.PALETTE[0], label="ours")
    ax.plot(rows["baseline_s"] / rows["floor_s"], y, "s", color=style.PALETTE[1], label="baseline")
    style.reference(ax, 1.0, "floor", axis="x")
    ax.set(xscale="log", xlabel="time / floor", yticks=y, title="Distance from the machine's limit")
    ax.set_yticklabels(rows["row"], fontsize=6)
    ax.legend(loc="upper right")


def _growth(ax, table):
    slopes = scaling.slopes(table)
    for i, (name, part) in enumerate(table.groupby("sweep", sort=False)):
        label = f"{name}: power {slopes[name]:.2f}"
        look = {"marker": style.MARKERS[i], "color": style.PALETTE[i], "label": label}
        ax.plot(part["x"] / part["x"].iloc[0], part["seconds"], **look)
    ax.set(
        xscale="log", yscale="log", xlabel="size / smallest size", ylabel="seconds",
        title="How time grows",
    )  # fmt: skip
    ax.legend()


def _split(ax, table):
    y, left = np.arange(len(table))[::-1], np.zeros(len(table))
    for i, part in enumerate(notebooks.PARTS):
        ax.barh(y, table[part], left=left, color=style.PALETTE[i], label=part, height=0.7)
        left = left + table[part].to_numpy()
    ax.set(xlabel="seconds, quick profile", yticks=y, title="Where a notebook's time goes")
    ax.set_yticklabels(table["notebook"], fontsize=6)
    ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
