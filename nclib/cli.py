"""The ``nclib`` command."""

import os
import sys

import click

from nclib import __version__, checks


class _Group(click.Group):
    """Wrong input, and files that cannot be used, are one line on stderr and exit code 2."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except (checks.InputError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # such as `nclib claims | head`
                raise
            click.echo(f"nclib: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on where it stopped", err=True)
            sys.stdout.flush()
            os._exit(130)  # at once: kernels notice


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nclib")
def main():
    """The neural-collapse companion: run the notebooks, read their claims, build the report."""


_out = click.option("--out", type=click.Path(file_okay=False), help="Folder of runs/ and figures/.")


def _batch(command):
    """The options of commands that execute notebooks."""
    for option in (
        click.option(
            "--scheduler", metavar="ADDRESS", help="Use the Dask cluster at this address."
        ),
        _out,
        click.option("--threads", default=1, show_default=True, help="Threads of each run."),
        click.option("--jobs", default=1, show_default=True, help="Runs side by side."),
    ):
        command = option(command)
    return command


def _overrides(pairs):
    result = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        checks.require(sign, f"-p {pair}: write it as name=value")
        if name in result:
            raise checks.InputError(f"parameter {name} is given twice with -p")
        result[name] = value
    return result


def _check_cores(jobs, threads, scheduler):
    checks.integer("--jobs", jobs)
    checks.integer("--threads", threads)
    cores = os.cpu_count() or 1
    if scheduler is None and jobs > 1 and jobs * threads > cores:
        click.echo(
            f"note: {jobs} processes of {threads} threads share {cores} cores; fewer may be faster",
            err=True,
        )


@main.command("list")
@click.option("--parameters", "query", metavar="NOTEBOOK", help="Show a notebook's parameters.")
@click.option("--markdown", is_flag=True, help="The README's table of results.")
def list_(query, markdown):
    """Results, notebooks, profiles and what the last runs cost."""
    from nclib import parameters, report, runs

    if markdown:
        click.echo(report.results_table())
        return
    if query:
        for name, (kind, default, comment) in parameters.declared(runs.find(query)).items():
            click.echo(f"  {name}: {parameters.type_name(kind)} = {default!r}  # {comment}")
        return
    for book in runs.notebooks():
        click.echo(f"{book}: {runs.title(book)}")
        for profile in runs.profiles():
            job = runs.job(book, profile)
            click.echo(f"    {profile:9} {_cost(job)}")


def _cost(job):
    from nclib import reproduction

    path = job.figures / "manifest.json"
    if not path.exists():
        return "not run here"
    manifest = reproduction.read_manifest(path)
    return f"{manifest['seconds']:.0f} s on {manifest['device']}, {manifest['threads']} thread(s)"


@main.command()
@click.argument("notebooks", nargs=-1)
@click.option("--profile", default="quick", show_default=True, help="One of `nclib list`.")
@click.option("-p", "pairs", multiple=True, metavar="NAME=VALUE", help="Override a parameter.")
@_batch
@click.option("--force", is_flag=True, help="Run again even if nothing changed.")
@click.option("--store", is_flag=True, help="Replace the stored results by those of this run.")
def run(notebooks, profile, pairs, jobs, threads, out, scheduler, force, store):
    """Execute NOTEBOOKS (default: all) and write figures, claims and manifests.

    Where results of the profile are stored in figures/, they stay, and each notebook says how
    closely it reproduces them.

    Exit code: 0 if all ran, no claim fails and all stored results are reproduced, 1 if not, 2 for
    wrong input.
    """
    from nclib import runs

    _check_cores(jobs, threads, scheduler)
    chosen = [runs.find(query) for query in notebooks] or runs.notebooks()
    overrides = _overrides(pairs)
    planned = [
        runs.job(book, profile, overrides, out=out, threads=threads)
        for book in dict.fromkeys(chosen)
    ]
    outcomes = runs.run_all(
        planned,
        parallel=jobs,
        scheduler=scheduler,
        force=force,
        store=store,
        progress=sys.stderr.isatty(),
        report=click.echo,
    )
    failed = [o for o in outcomes if o.status == "failed"]
    wrong = sum(o.verdicts.get("fails", 0) for o in outcomes)
    if all(o.status == "unchanged" for o in outcomes):
        click.echo("nothing changed: all results are up to date")
    differ = sum(o.reproduced is False for o in outcomes)
    if failed or wrong or differ:
        click.echo(
            f"{len(failed)} notebook(s) failed, {wrong} claim(s) fail, {differ} notebook(s) differ "
            "from the stored results",
            err=True,
        )
        sys.exit(1)


@main.command()
@click.argument("notebook")
@click.option("--profile", default="quick", show_default=True, help="Profile to start from.")
@click.option("-p", "pairs", multiple=True, metavar="NAME=A,B,…", help="Alternatives.")
@click.option("--seeds", metavar="0:5", help="Seeds 0 to 4, or a list such as 1,123,321.")
@click.option("--grid", "file", type=click.Path(exists=True, dir_okay=False), help="YAML grid.")
@_batch
@click.option("--dry-run", is_flag=True, help="Show the runs and their cost, start nothing.")
def sweep(notebook, profile, pairs, seeds, file, jobs, threads, out, scheduler, dry_run):
    """Run NOTEBOOK over all combinations of parameter values; one table of all claims.

    Writes sweep.csv (every claim of every run), summary.csv (mean, sd, n over seeds) and
    sweep.png below runs/sweep-<hash>.
    """
    from nclib import runs, sweeps

    _check_cores(jobs, threads, scheduler)
    texts = _overrides(pairs)
    if file:
        texts = sweeps.read_grid(file) | texts
    planned = sweeps.grid(notebook, texts, profile, seeds=seeds, out=out, threads=threads)
    cost = sweeps.estimate(planned, jobs)
    took = "unknown: the notebook was not run here yet" if cost is None else f"about {cost:.0f} s"
    click.echo(f"{len(planned)} runs of {planned[0].notebook}; time {took}")
    if dry_run:
        for job in planned:
            values = ", ".join(f"{k}={v}" for k, v in job.parameters.items())
            click.echo(f"  {job.name}: {values or 'defaults'}")
        return
    outcomes = runs.run_all(planned, parallel=jobs, scheduler=scheduler, report=click.echo)
    swept = [*texts, *(["seed"] if seeds else [])]
    failed = sum(one.status == "failed" for one in outcomes)
    if failed < len(outcomes):
        click.echo(f"table, summary and figure in {sweeps.write(outcomes, swept, out=out)}")
    if failed:
        click.echo(f"{failed} run(s) failed", err=True)
        sys.exit(1)


@main.command()
@click.argument("which", required=False, metavar="[ID]")
@click.option("--profile", "name", default="quick", show_default=True, help="Name of the run.")
@_out
@click.option("--all", "everything", is_flag=True, help="Every check with its numbers.")
def claims(which, name, out, everything):
    """The ledger of the last runs, or all about the row (4.G7) or check (4.G7.sharp) ID.

    Exit code 1 if a claim fails, 2 for an ID, a run or a folder that is not there.
    """
    from nclib import catalogue, paths, runs
    from nclib import claims as ledger

    results = runs.results(out)
    known = sorted({run for run, _ in results})
    if name not in known:
        there = f"it holds {', '.join(known)}" if known else "start with `nclib run`"
        raise checks.InputError(f"no run {name} in {paths.figures(out)}; {there}")
    if which:
        _show_row(which, name, results)
        return
    fails = 0
    for book in runs.notebooks():
        if not (paths.CLAIMS / f"{book}.yaml").exists():
            continue
        found = _stored(results, name, book)
        click.echo(f"\n{book} [{name}]" + ("" if found else "  not run"))
        rows = catalogue.load(book)
        for row, own in ledger.by_row(book, rows, found).items():
            worst = ledger.worst(own)
            verdict = worst.verdict
            fails += verdict == "fails"
            reason = f"  [{worst.note}]" if verdict == "not run" and worst.note else ""
            if where := ledger.place(rows[row.partition(".")[2]], verdict):
                reason = f"  [{where.strip()}]"
            click.echo(f"  {row:8} {_mark(f'{verdict:14}')} {own[0].statement}{reason}")
            if everything and found:
                _show_checks(own)
    if fails:
        click.echo(f"\n{fails} row(s) fail", err=True)
        sys.exit(1)


def _stored(results, name, book):
    from nclib import claims as ledger

    folder = results.get((name, book))
    return ledger.read(folder / "claims.json") if folder else []


def _mark(verdict):
    color = {"holds": "green", "fails": "red", "not run": None}.get(verdict.strip(), "yellow")
    return click.style(verdict, fg=color)


def _show_checks(own, asked=()):
    """One aligned line per check: id, verdict, numbers, note, and what was ``asked`` of a table."""
    lines = [
        (claim.id, claim.verdict, "{} ({})".format(*claim.shown), claim.note + _of(claim, asked))
        for claim in own
        if claim.measured is not None
    ]
    wide, numbers = (max((len(line[i]) for line in lines), default=0) for i in (0, 2))
    for identifier, verdict, text, note in lines:
        line = f"    {identifier:{wide}}  {_mark(f'{verdict:14}')} {text:{numbers}}  {note}"
        click.echo(line.rstrip())


def _of(claim, declared):
    """``  [abs(excess) where depth > 2]``: what a check takes from a table, if it does."""
    names = [*claim.id.split(".")[2:], ""]
    check = next((declared[name] for name in names if name in declared), None)
    if not check or not (check.of or check.where):
        return ""
    return f"  [{check.of or check.name}{f' where {check.where}' if check.where else ''}]"


def _show_row(which, name, results):
    """Statement, source, verdict, numbers, picture, cells, formulas and functions of one row."""
    from nclib import catalogue, paths, places, runs
    from nclib import claims as ledger

    number, _, check = which.partition(".")
    row, book = ledger.row_of(check), runs.find(number)
    rows = catalogue.load(book)
    if row not in rows:
        raise checks.InputError(
            f"{book} has no row {row or '(none given)'}; it has {', '.join(rows)}"
        )
    (own,) = ledger.by_row(book, {row: rows[row]}, _stored(results, name, book)).values()
    shown = [claim for claim in own if f"{claim.id.partition('.')[2]}.".startswith(f"{check}.")]
    if not shown:
        ids = ", ".join(claim.id for claim in own)
        raise checks.InputError(f"row {row} of {book} has no check {check}; it has {ids}")
    click.echo(rows[row]["statement"])
    click.echo(f"source    {rows[row]['source']}")
    verdict = ledger.worst(shown).verdict
    click.echo(f"verdict   {_mark(verdict)}{ledger.place(rows[row], verdict)}  [{name}]")
    _show_checks(shown, catalogue.declared(rows[row]))
    folder = results.get((name, book), paths.figures() / name / book)
    for file in sorted(folder.glob(f"{rows[row].get('seen', '-')}.*"), reverse=True):
        click.echo(f"{'table' if file.suffix == '.csv' else 'picture':9} {file}")
    for place in places.places(book, row):
        others = ", ".join(f"[{cell}]" for cell in place.computed if cell != place.cell)
        computed = f"; its numbers come from {others}" if others else ""
        click.echo(f"cell      {paths.NOTEBOOKS / book}.ipynb, [{place.cell}]{computed}")
        for call in place.calls:
            file, line = places.source(call)
            kind = "formula " if places.is_formula(call) else "function"
            click.echo(f"{kind}  {call.removeprefix('nclib.')}  {file}:{line}")


@main.command()
@_out
@click.option("--to", "target", type=click.Path(dir_okay=False), help="File to write.")
def report(out, target):
    """One self-contained HTML page: figures, claims, parameters, versions."""
    from nclib import report as reporting

    click.echo(reporting.write(out=out, target=target))


@main.group()
def data():
    """Data sets: list, fetch, check."""


@data.command("list")
def data_list():
    """Known data sets and whether they are here."""
    from nclib.deep import data as sets

    for name in sets.NAMES:
        try:
            state = sets.check(name)
        except checks.InputError as error:
            state = str(error)
        click.echo(f"{name:14} {state}")


@data.command("fetch")
@click.argument("name")
@click.option("--from", "source", type=click.Path(exists=True), help="Folder with IDX files.")
def data_fetch(name, source):
    """Bring the data set NAME to its place."""
    from nclib.deep import data as sets

    sets.fetch(name, source=source)
    click.echo(sets.check(name))


@data.command("check")
@click.argument("name")
def data_check(name):
    """Read the data set NAME and print its size and checksum."""
    from nclib.deep import data as sets

    click.echo(sets.check(name))


@main.command()
@click.argument("notebooks", nargs=-1)
def store(notebooks):
    """Execute NOTEBOOKS (default: all) and keep the outputs in the committed files."""
    from nclib import runs

    for query in notebooks or runs.notebooks():
        click.echo(runs.store(query))


@main.command()
def doctor():
    """Versions, device, threads and data found on this machine."""
    import torch

    from nclib import notebook, paths

    for name, version in notebook.versions().items():
        click.echo(f"{name:14} {version}")
    gpu = torch.cuda.is_available()
    click.echo(f"{'device':14} {torch.cuda.get_device_name() if gpu else 'cpu only'}")
    click.echo(f"{'cores':14} {os.cpu_count()}")
    click.echo(f"{'notebooks':14} {paths.NOTEBOOKS}")
    click.echo(f"{'data':14} {paths.data()}")
    data_list.callback()


@main.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--by-class", is_flag=True, help="One row per class.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.option("--figure", type=click.Path(dir_okay=False), help="Picture to write (.png, .pdf).")
@click.option(
    "--missing",
    default="error",
    show_default=True,
    help="Empty classes, but with --by-class: error or skip.",
)
def measure(files, by_class, as_json, figure, missing):
    """Neural collapse of the features in FILES (.npz, .pt, .safetensors, .parquet).

    Each file holds features (N, d) and labels (N,), and may hold weight (K, d) and bias (K,).
    """
    from nclib import measure as measuring

    if figure and not figure.lower().endswith((".png", ".pdf", ".svg")):
        raise checks.InputError(f"--figure must end in .png, .pdf or .svg, got {figure}")
    found = measuring.table(files, by_class=by_class, missing=missing)
    if figure:
        measuring.write_figure(figure, files)
    click.echo(measuring.as_json(found) if as_json else measuring.as_text(found))


@main.command()
def environment():
    """Print environment.yml for conda, made from the dependency list in pyproject.toml."""
    import tomllib

    from nclib import paths

    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    packages = [*project["dependencies"], *extras["test"], *extras["cluster"]]
    click.echo("# Generated from pyproject.toml by `make environment.yml`; do not edit.")
    click.echo("name: nclib\nchannels: [conda-forge]\ndependencies:")
    click.echo(f"  - python{project['requires-python']},<3.14\n  - pip\n  - pip:")
    for package in (*packages, "-e ."):
        click.echo(f"      - {package}" if package == "-e ." else f'      - "{package}"')
