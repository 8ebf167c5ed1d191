"""One self-contained HTML page: figures, claims with verdicts, parameters and versions."""

import base64
import json
import shlex
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from nclib import __version__, checks, claims, files, notebook, paths, runs

TEMPLATE = Path(__file__).with_name("report.html")


def write(*, out=None, target=None):
    """Write the report of all finished runs below ``out``; returns its path.

    The page needs no network: pictures are embedded, styles and script are inline.  Every text
    that comes from a run is escaped.  Raises :class:`~nclib.checks.InputError` if nothing ran.
    """
    found = [_read(path, out) for path in sorted(paths.figures(out).glob("*/*/manifest.json"))]
    if not found:
        raise checks.InputError("no finished run to report on; start with `nclib run`")
    order = {name: i for i, name in enumerate(runs.profiles())}
    found.sort(key=lambda run: (order.get(run["run"], 99), run["run"], run["notebook"]))
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True)
    page = environment.get_template(TEMPLATE.name).render(
        runs=found,
        names=list(dict.fromkeys(run["run"] for run in found)),
        books=sorted({run["notebook"] for run in found}),
        verdicts=claims.VERDICTS,
        short=notebook.short,
        version=__version__,
    )
    target = Path(target) if target else paths.runs(out) / "report.html"
    with files.replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _read(path, out):
    manifest = json.loads(path.read_text(encoding="utf-8"))
    found = claims.read(path.with_name("claims.json"))
    pictures = []
    for file in sorted([*path.parent.glob("*.png"), *path.parent.glob("*.gif")]):
        kind = file.suffix[1:]
        data = base64.b64encode(file.read_bytes()).decode()
        title = file.stem.split("_", 1)[-1].replace("_", " ")
        source = f"data:image/{kind};base64,{data}"
        pictures.append({"name": file.stem, "title": title, "source": source})
    counts = {v: sum(c.verdict == v for c in found) for v in claims.VERDICTS}
    executed = paths.runs(out) / manifest["run"] / manifest["notebook"] / "notebook.ipynb"
    return manifest | {
        "id": f"{manifest['run']}--{manifest['notebook']}",
        "claims": found,
        "figures": pictures,
        "counts": counts,
        "command": command(manifest),
        "link": f"{manifest['run']}/{manifest['notebook']}/notebook.ipynb",
        "executed": executed.exists(),
    }


def command(manifest):
    """The shell command that made a run."""
    name = manifest["notebook"]
    profile = manifest["parameters"].get("profile", "quick")
    known = runs.declared(name)
    base = {key: default for key, (_, default, _) in known.items()}
    base |= runs.profile(profile).get(name, {}) | {"profile": profile}
    base = json.loads(json.dumps(base))  # as the manifest holds it: JSON's keys are texts
    parts = ["nclib run", name.split("_")[0]]
    if profile != "quick":
        parts.append(f"--profile {profile}")
    for key, value in manifest["parameters"].items():
        if base.get(key) != value:
            parts.append(f"-p {key}={_quote(value)}")
    if manifest.get("threads", 1) != 1:
        parts.append(f"--threads {manifest['threads']}")
    return " ".join(parts)


def _quote(value):
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def results_table():
    """The README's table of results, in Markdown, from the stored manifests and claims.

    One line per notebook and profile: command, verdicts, seconds and device.
    """
    lines = [
        "| notebook | command | rows: hold | counterexample | fail | not run | time | device |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found = []
    for path in paths.figures().glob("*/*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["run"] in runs.profiles():
            found.append((manifest["notebook"], runs.profiles().index(manifest["run"]), path))
    for book, _, path in sorted(found):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        rows = {}
        for claim in claims.read(path.with_name("claims.json")):
            rows.setdefault(".".join(claim.id.split(".")[:2]), []).append(claim.verdict)
        verdicts = [claims.worst(checked) for checked in rows.values()]
        counts = " | ".join(
            str(verdicts.count(v)) for v in ("holds", "counterexample", "fails", "not run")
        )
        lines.append(
            f"| [{book}](notebooks/{book}.ipynb) | `{command(manifest)}` | {counts} "
            f"| {manifest['seconds']:.0f} s | {manifest['device']} |"
        )
    return "\n".join(lines)
