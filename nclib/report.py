"""One self-contained HTML page: figures, claims with verdicts, parameters and versions."""

import base64
import hashlib
import json
import shlex
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from nclib import __version__, checks, claims, files, paths, runs

TEMPLATE = Path(__file__).with_name("report.html")


def write(*, out=None, target=None):
    """Write the report of all finished runs and sweeps below ``out``; returns its path.

    The page needs no network and may use none: pictures are embedded, styles and script are
    inline, and its policy admits this one script only.  Every text that comes from a run is
    escaped.  Raises :class:`~nclib.checks.InputError` if nothing ran or a result is damaged.
    """
    found = [_read(*place, folder, out) for place, folder in runs.results(out).items()]
    if not found:
        raise checks.InputError("no finished run to report on; start with `nclib run`")
    order = {name: i for i, name in enumerate(runs.profiles())}
    profile = lambda run: run["parameters"]["profile"]
    found.sort(key=lambda run: (order.get(profile(run), 99), run["run"], run["notebook"]))
    script = TEMPLATE.with_suffix(".js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True)
    page = environment.get_template(TEMPLATE.name).render(
        runs=found,
        sweeps=[_sweep(path) for path in sorted(paths.runs(out).glob("sweep-*/summary.csv"))],
        names=list(dict.fromkeys(run["run"] for run in found)),
        books=sorted({run["notebook"] for run in found}),
        profiles=list(dict.fromkeys(profile(run) for run in found)),
        verdicts=claims.VERDICTS,
        short=claims.short,
        version=__version__,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    target = Path(target) if target else paths.runs(out) / "report.html"
    with files.replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _read(run, book, folder, out):
    manifest = files.read_json(folder / "manifest.json")  # run and book: whatever the file says
    found = claims.read(folder / "claims.json")
    pictures = [
        {
            "name": file.stem,
            "title": file.stem.split("_", 1)[-1].replace("_", " "),
            "source": _embedded(file),
        }
        for file in sorted([*folder.glob("*.png"), *folder.glob("*.gif")])
    ]
    missing = {"device": "", "threads": 1, "seconds": 0, "revision": "", "versions": {}, "data": {}}
    return (missing | manifest) | {
        "run": run,
        "notebook": book,
        "parameters": {"profile": "quick"} | manifest.get("parameters", {}),
        "id": f"{run}--{book}",
        "claims": found,
        "figures": pictures,
        "counts": {v: sum(c.verdict == v for c in found) for v in claims.VERDICTS},
        "command": command(manifest | {"notebook": book}),
        "link": quote(f"{run}/{book}/notebook.ipynb"),
        "executed": (paths.runs(out) / run / book / "notebook.ipynb").exists(),
    }


def _embedded(picture):
    data = base64.b64encode(picture.read_bytes()).decode()
    return f"data:image/{picture.suffix[1:]};base64,{data}"


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
        "source": _embedded(picture) if picture.exists() else "",
        "columns": [{"n": "runs"}.get(c, c.removeprefix("p.")) for c in table],
        "rows": cells.to_numpy().tolist(),
    }


def command(manifest):
    """The shell command that makes a run again.

    A run of a notebook that is no longer there shows all its parameters.
    """
    name, parameters = manifest["notebook"], manifest.get("parameters", {})
    profile = parameters.get("profile", "quick")
    kinds, base = {}, {"profile": profile}
    if name in runs.notebooks() and profile in runs.profiles():
        known = runs.declared(name)
        kinds = {key: kind for key, (kind, _, _) in known.items()}
        base = {key: default for key, (_, default, _) in known.items()}
        base |= runs.profile(profile).get(name, {}) | {"profile": profile}
    base = json.loads(json.dumps(base))  # as the manifest holds it: JSON's keys are texts
    parts = ["nclib", "run", name.split("_")[0]]
    if profile != "quick":
        parts += ["--profile", profile]
    for key, value in parameters.items():
        if key not in base or base[key] != value:
            # A parameter of type str takes the text as it is, every other one reads YAML.
            plain = isinstance(value, str) and kinds.get(key, str) is str
            parts += ["-p", f"{key}={value if plain else json.dumps(value)}"]
    if manifest.get("threads", 1) != 1:
        parts += ["--threads", str(manifest["threads"])]
    return shlex.join(parts)


def results_table():
    """The README's table of results, in Markdown, from the stored manifests and claims.

    One line per notebook and profile: command, verdicts, seconds and device.
    """
    lines = [
        f"| notebook | command | rows: {' | '.join(claims.VERDICTS)} | time | device |",
        "|---|---|" + "---|" * (len(claims.VERDICTS) + 2),
    ]
    found = []
    for path in paths.figures().glob("*/*/manifest.json"):
        manifest = files.read_json(path)
        if manifest["run"] in runs.profiles():
            found.append((manifest["notebook"], runs.profiles().index(manifest["run"]), path))
    for book, _, path in sorted(found):
        manifest = files.read_json(path)
        rows = {}
        for claim in claims.read(path.with_name("claims.json")):
            rows.setdefault(".".join(claim.id.split(".")[:2]), []).append(claim.verdict)
        verdicts = [claims.worst(checked) for checked in rows.values()]
        counts = " | ".join(str(verdicts.count(v)) for v in claims.VERDICTS)
        lines.append(
            f"| [{book}](notebooks/{book}.ipynb) | `{command(manifest)}` | {counts} "
            f"| {manifest['seconds']:.0f} s | {manifest['device']} |"
        )
    return "\n".join(lines)
