"""One self-contained HTML page: figures, claims with verdicts, parameters and versions."""

import base64
import hashlib
import io
import itertools
import json
import os
import shlex
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from nclib import (
    __version__,
    catalogue,
    checks,
    claims,
    files,
    parameters,
    paths,
    places,
    reproduction,
    runs,
)

TEMPLATE = Path(__file__).with_name("report.html")


def write(*, out=None, target=None):
    """Write the report of all finished runs and sweeps below ``out``; returns its path.

    The page needs no network and may use none: pictures are embedded, styles and script are
    inline, and its policy admits this one script only.  Every text that comes from a run is
    escaped.  Raises :class:`~nclib.checks.InputError` if nothing ran or a result is damaged.
    """
    target = Path(target) if target else paths.runs(out) / "report.html"
    found = [_read(*place, folder, out) for place, folder in runs.results(out).items()]
    found += [
        _read("interactive", path.parents[1].name, path.parent, out)
        for path in sorted(paths.runs(out).glob("interactive/*/figures/record.json"))
        if path.with_name("claims.json").exists()
    ]
    checks.require(found, "no finished run to report on; start with `nclib run`")
    order = {name: i for i, name in enumerate(runs.profiles())}
    found.sort(key=lambda run: (order.get(run["profile"], 99), run["run"], run["notebook"]))
    script = TEMPLATE.with_suffix(".js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True)
    books = sorted({run["notebook"] for run in found})
    answers = [_answer(book, found) for book in books]
    page = environment.get_template(TEMPLATE.name).render(
        runs=found,
        answers=answers,
        open=sorted(
            (row for answer in answers for row in answer["rows"]),
            key=lambda row: -claims.VERDICTS.index(row["verdict"]),  # the worst first
        ),
        sweeps=[_sweep(path) for path in sorted(paths.runs(out).glob("sweep-*/summary.csv"))],
        names={run["run"]: run["label"] for run in found},
        books=books,
        profiles=list(dict.fromkeys(run["profile"] for run in found)),
        verdicts=claims.VERDICTS,
        short=claims.short,
        link=lambda file: _link(file, target),
        version=__version__,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    with files.replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _read(run, book, folder, out):
    record = folder / ("record.json" if run == "interactive" else "manifest.json")
    manifest = reproduction.read_manifest(record)  # run and book: whatever the file says
    found = claims.read(folder / "claims.json")
    known = book in runs.notebooks()
    pictures = [
        {
            "name": file.stem,
            "title": file.stem.split("_", 1)[-1].replace("_", " "),
            "source": _embedded(file.read_bytes(), file.suffix[1:]),
        }
        for file in sorted([*folder.glob("*.png"), *folder.glob("*.gif")])
    ]
    shown = manifest | {
        "run": run,
        "notebook": book,
        "folder": folder,
        "title": runs.title(book) if known else book,
        "parameters": (given := {"profile": "quick"} | manifest["parameters"]),
        "profile": given["profile"],
        "id": f"{run}--{book}",
        "claims": found,
        "catalogue": catalogue.load(book) if (paths.CLAIMS / f"{book}.yaml").exists() else {},
        "rows": {
            row: _where(book if known else None, row, own, pictures)
            for row, own in claims.rows(found).items()
        },
        "figures": pictures,
        "counts": _count(found),
        "command": command(manifest | {"notebook": book}),
        "link": quote(f"{run}/{book}/notebook.ipynb"),
        "executed": (paths.runs(out) / run / book / "notebook.ipynb").exists(),
    }
    return shown | {"label": _label(shown)}


def _where(book, row, own, pictures):
    """Where a row is seen, checked and computed: figure, cell, functions with their file."""
    found = places.places(book, row.split(".")[1]) if book else []
    calls = dict.fromkeys(call for place in found for call in place.calls)
    saved = [picture["name"] for picture in pictures]
    return {
        "figure": own[0].seen if own[0].seen in saved else "",
        "cells": [place.cell for place in found],
        "functions": [(call.removeprefix("nclib."), *places.source(call)) for call in calls],
    }


def _link(file, target):
    """The relative address of a file of the checkout, for a report that lies in it, too."""
    inside = paths.ROOT in file.resolve().parents and paths.ROOT in target.resolve().parents
    return quote(os.path.relpath(file.resolve(), target.resolve().parent)) if inside else ""


def _count(found):
    """Rows by verdict, the counts that are not zero."""
    verdicts = [claims.worst(own).verdict for own in claims.rows(found).values()]
    return {v: verdicts.count(v) for v in claims.VERDICTS if v in verdicts}


def _label(run):
    """The name of a run as people read it: profile and changed parameters."""
    changed = _changed(run)
    return " ".join([run["parameters"]["profile"], *changed]) if changed else run["run"]


def _answer(book, found):
    """What the runs of one notebook say: its title, rows by verdict, and what does not just hold.

    The runs of plain profiles, if there are any, else the first one.
    """
    own = [run for run in found if run["notebook"] == book]
    own = [run for run in own if run["run"] in runs.profiles()] or own[:1]
    open_rows = {}
    for run in own:
        for row, checked in claims.rows(run["claims"]).items():
            worst = claims.worst(checked)
            if worst.verdict not in ("holds", "not run"):
                entry = open_rows.setdefault((row, worst.verdict), _open(run, row, worst))
                entry["runs"].append(run["label"])
    for entry in open_rows.values():
        if len(entry["runs"]) == len(own):  # said once, above the list
            entry["runs"] = []
    return {"run": own[0], "rows": list(open_rows.values())}


def _open(run, row, claim):
    """A row that does not just hold: its sentence, number, picture, cell and functions."""
    where, entry = run["rows"][row], run["catalogue"].get(row.partition(".")[2], {})
    picture = run["folder"] / f"{where['figure']}.png"
    return where | {
        "row": row,
        "verdict": claim.verdict,
        "where": claims.place(entry, claim.verdict),
        "statement": claim.statement,
        "number": "{} ({})".format(*claim.shown),
        "note": claim.note,
        "thumbnail": _thumbnail(picture) if picture.exists() else "",
        "run": run,
        "runs": [],
    }


def _thumbnail(picture):
    with Image.open(picture) as image:
        small = image.convert("RGB")
        small.thumbnail((200, 200))
        pixels = io.BytesIO()
        small.quantize(64).save(pixels, format="png", optimize=True)
    return _embedded(pixels.getvalue(), "png")


def _embedded(picture, kind):
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _sweep(path):
    import pandas as pd

    try:
        summary = pd.read_csv(path)
        whole = pd.read_csv(path.with_name("sweep.csv"))
        book, n = summary["notebook"].iloc[0], whole["run"].nunique()
    except (OSError, ValueError, LookupError) as error:
        raise checks.InputError(
            f"{path.parent} is damaged ({error}); the same `nclib sweep` writes it again"
        ) from None
    picture = path.with_name("sweep.png")
    table = summary.drop(columns="notebook")
    cells = table.astype(object).where(table.notna(), "")
    return {
        "id": path.parent.name,
        "notebook": book,
        "n": n,
        "parameters": [c[2:] for c in table if c.startswith("p.")],
        "source": _embedded(picture.read_bytes(), "png") if picture.exists() else "",
        "columns": [{"n": "runs"}.get(c, c.removeprefix("p.")) for c in table],
        "rows": cells.to_numpy().tolist(),
    }


def command(manifest):
    """The shell command that makes a run again.

    A run of a notebook that is no longer there shows all its parameters.
    """
    profile = manifest["parameters"].get("profile", "quick")
    parts = ["nclib", "run", manifest["notebook"].split("_")[0]]
    if profile != "quick":
        parts += ["--profile", profile]
    for pair in _changed(manifest):
        parts += ["-p", pair]
    if manifest["threads"] > 1:
        parts += ["--threads", str(manifest["threads"])]
    return shlex.join(parts)


def _changed(manifest):
    """``name=value`` of each parameter that differs from those of the profile, for ``-p``."""
    name, values = manifest["notebook"], manifest["parameters"]
    profile = values.get("profile", "quick")
    kinds, base = {}, {"profile": profile}
    if name in runs.notebooks() and profile in runs.profiles():
        known = parameters.declared(name)
        kinds = {key: one.kind for key, one in known.items()}
        base = {key: one.default for key, one in known.items()}
        base |= runs.profile(profile).get(name, {}) | {"profile": profile}
    base = json.loads(json.dumps(base, default=str))  # as the manifest holds it: keys are texts
    changed = {k: value for k, value in values.items() if k not in base or base[k] != value}
    # A parameter of type str takes the text as it is, every other one reads JSON.
    plain = [k for k, v in changed.items() if isinstance(v, str) and kinds.get(k, str) is str]
    return [f"{k}={v if k in plain else json.dumps(v)}" for k, v in changed.items()]


def results_table():
    """The README's table of results, in Markdown, from the stored manifests and claims.

    One line per notebook and profile: command, verdicts, seconds and device.
    """
    lines = [
        f"| notebook | command | rows: {' | '.join(claims.VERDICTS)} | time | device |",
        "|---|---|" + "---|" * (len(claims.VERDICTS) + 2),
    ]
    for book, profile in itertools.product(runs.notebooks(), runs.profiles()):
        folder = paths.figures() / profile / book
        if not (folder / "manifest.json").exists():
            continue
        manifest = reproduction.read_manifest(folder / "manifest.json") | {"notebook": book}
        counted = _count(claims.read(folder / "claims.json"))
        counts = " | ".join(str(counted.get(verdict, 0)) for verdict in claims.VERDICTS)
        lines.append(
            f"| [{book}](notebooks/{book}.ipynb) | `{command(manifest)}` | {counts} "
            f"| {manifest['seconds']:.0f} s | {manifest['device']} |"
        )
    return "\n".join(lines)
