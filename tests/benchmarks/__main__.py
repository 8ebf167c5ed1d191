"""``python -m tests.benchmarks [ROWS] [--out DIR]``: measure, compare, write table and figure."""

import sys
import time
from pathlib import Path

import click
import pandas as pd

from nclib import checks
from tests.benchmarks import harness, notebooks, report, scaling
from tests.benchmarks.rows import ROWS

EXTRA = ("scaling", "notebooks")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[ROWS]")
@click.option("--out", type=click.Path(file_okay=False), help="Folder of CSV files and figure.")
@click.option("--toy", is_flag=True, help="Tiny sizes: whether the rows work, not how fast.")
@click.option("--rounds", default=1, show_default=True, help="Processes of each side, in turn.")
@click.option("--list", "listing", is_flag=True, help="Show the rows.")
def main(names, out, toy, rounds, listing):
    """Measure ROWS (default: all), each side in a process of its own.

    ROWS are names or their beginnings (`metrics`, `grid-mlp`), also `scaling` and `notebooks` (the
    split of the last `make figures`).  Rows that are not asked for keep their stored numbers.
    """
    if listing:
        for row in ROWS.values():
            click.echo(f"{row.name:24} {row.what}")
        return
    chosen = [n for n in (*ROWS, *EXTRA) if not names or n.startswith(tuple(names))]
    unknown = [n for n in names if not any(c.startswith(n) for c in (*ROWS, *EXTRA))]
    if unknown:
        raise checks.InputError(
            f"no row {', '.join(unknown)}; see python -m tests.benchmarks --list"
        )
    folder = Path(out) if out else report.RESULTS
    size, start = ("toy" if toy else "full"), time.monotonic()
    lines = []
    rates = harness.apart({"rates": True})
    for name in (n for n in chosen if n in ROWS):
        sides = harness.measure(ROWS[name], size, rounds=rounds)
        lines.append(harness.table_row(ROWS[name], sides, rates))
        click.echo(report.line(lines[-1]))
    if lines:
        table = report.store_rows(folder, pd.DataFrame(lines), list(ROWS))
        if not toy:
            profiles = [harness.apart({"profile": name}) for name in report.missed(table)]
            report.store_profiles(folder, profiles)
    if "scaling" in chosen:
        report.store(folder, "scaling", scaling.run(scaling.TOY if toy else scaling.SWEEPS))
    if "notebooks" in chosen and len(split := notebooks.split()):
        report.store(folder, "notebooks", split)
    report.figure(folder)
    if not out:
        report.update_readme()
    click.echo(f"{time.monotonic() - start:.0f} s; results in {folder}")
    wrong = [r["row"] for r in lines if not r["difference"] <= r["tolerance"]]
    if wrong:
        click.echo(f"ours and baseline disagree: {', '.join(wrong)}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except checks.InputError as error:
        click.echo(f"benchmarks: {error}", err=True)
        sys.exit(2)
