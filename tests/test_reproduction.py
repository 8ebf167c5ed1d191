"""Reproduction: a run is compared with the stored results, which stay; what differs is named."""

import base64
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nclib import files, notebook, paths, reproduction, runs
from nclib.plots import style
from tests.conftest import called

TABLE = pd.DataFrame(
    {"K": [2, 3], "loss": ["ce", "mse"], "gap": [1e-15, 2e-9], "value": [-0.5, float("inf")]}
)


def table_of(path):
    """The checksum of its table that the PNG at ``path`` carries, or None."""
    with Image.open(path) as image:
        return image.info.get("Table")


@pytest.fixture
def stored(tmp_path):
    folder = tmp_path / "stored"
    files.write_csv(folder / "t.csv", TABLE)
    files.write_json(folder / "claims.json", [])
    return folder


def compared(stored, table, varies=()):
    path = stored.parent / "t.csv"
    files.write_csv(path, table)
    return reproduction.compare_tables(path, stored, varies)


def test_tables_agree_up_to_rounding(stored):
    assert compared(stored, TABLE) == 0.0
    assert compared(stored, TABLE.assign(gap=[3e-12, 2.1e-9])) < 1e-9
    assert compared(stored, TABLE.assign(value=[-0.50000048, float("inf")])) < 1e-6
    largest = compared(stored, TABLE.assign(value=[-0.5 * (1 + 1e-8), float("inf")]))
    assert largest == pytest.approx(0.5e-8 / 0.6, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": [-0.505, float("inf")]}, "t, column value, row 0: -0.505, stored -0.5"),
        ({"value": [-0.5000012, float("inf")]}, "row 0: -0.5000012, stored -0.5"),
        ({"value": [-0.5, 1.0]}, "column value, row 1: 1.0, stored inf"),
        ({"value": [-0.5, None]}, "column value, row 1: nan, stored inf"),
        ({"gap": [1e-15, 2e-5]}, "column gap, row 1: 2e-05, stored 2e-09"),
        ({"gap": [1.5, 2.0]}, "column gap, row 0: 1.5, stored 1e-15 and 1 more rows"),
        ({"gap": ["x", 2e-9]}, "column gap, row 0: x, stored 1e-15"),
        ({"K": [2, 4]}, "column K, row 1: 4, stored 3"),
        ({"loss": ["ce", "fl"]}, "column loss, row 1: fl, stored mse"),
        ({"more": [1, 2]}, "has other columns: more; stored only: none"),
    ],
)
def test_a_difference_names_table_column_row_and_both_values(stored, change, message):
    with pytest.raises(reproduction.NotReproduced, match=message):
        compared(stored, TABLE.assign(**change))


def test_only_what_is_missing_in_both_agrees(stored):
    holes = TABLE.assign(loss=["ce", None], gap=[None, 2e-9])
    files.write_csv(stored / "t.csv", holes)
    assert compared(stored, holes) == 0.0
    for column, values in (("loss", ["ce", "NA"]), ("gap", [0.0, 2e-9])):
        with pytest.raises(reproduction.NotReproduced, match=f"column {column}.*, stored nan"):
            compared(stored, holes.assign(**{column: values}))


def test_rows_and_missing_tables_count(stored):
    with pytest.raises(reproduction.NotReproduced, match="has 1 rows, stored 2"):
        compared(stored, TABLE[:1])
    assert compared(stored, TABLE[:1], "rows") == 0.0
    for other, said in (
        (TABLE[["K"]], "none; stored only: loss, gap, value"),
        (TABLE.rename(columns={"gap": "gaps"}), "gaps; stored only: gap"),
    ):
        with pytest.raises(reproduction.NotReproduced, match=f"has other columns: {said}"):
            compared(stored, other, "rows")
    (stored / "t.csv").unlink()
    with pytest.raises(reproduction.NotReproduced, match="table t is not stored"):
        compared(stored, TABLE)


def test_declared_columns_are_left_to_the_verdicts(stored):
    trained = TABLE.assign(gap=[0.3, 0.4], value=[0.7, 0.8])
    assert compared(stored, trained, True) == 0.0
    assert compared(stored, trained, ["gap", "value"]) == 0.0
    assert compared(stored, TABLE.assign(gap=[0, 1]), True) == 0.0  # decimal where it is stored
    with pytest.raises(reproduction.NotReproduced, match="column value"):
        compared(stored, trained, ["gap"])
    with pytest.raises(reproduction.NotReproduced, match="column K"):
        compared(stored, TABLE.assign(K=[2, 4]), True)  # a count is no trained number


def test_a_column_may_have_a_tolerance_of_its_own(stored):
    moved = TABLE.assign(value=[-0.5005, float("inf")])
    assert compared(stored, moved, {"value": 1e-3}) == 0.0
    with pytest.raises(reproduction.NotReproduced, match="column value, row 0"):
        compared(stored, moved, {"value": 1e-4})
    with pytest.raises(reproduction.NotReproduced, match="column gap"):
        compared(stored, moved.assign(gap=1.0), {"value": 1e-3})


def test_verdicts_and_lost_tables_are_differences(stored, tmp_path):
    claim = {"statement": "s", "source": "s", "measured": 1.0, "expected": "<= 1"}
    claim |= {"tolerance": None, "verdict": "holds", "id": "1.A"}
    mine = tmp_path / "mine"
    for place, verdict, more in ((stored, "holds", "1.B"), (mine, "not reproduced", "1.C")):
        found = [claim | {"verdict": verdict}, claim | {"id": more}]
        files.write_json(place / "claims.json", found)
    near = TABLE.assign(gap=[0.3, 0.4], value=[-0.5 * (1 + 1e-8), float("inf")])
    for path, table in (
        (stored / "lost.csv", TABLE),
        (mine / "t.csv", near),
        (mine / "u.csv", TABLE),
        (stored / "u.csv", TABLE),
    ):
        files.write_csv(path, table)
    found = reproduction.compare(mine, stored, {"t": ["gap"], "u": []})
    said = "2 of 3 tables and 0 of 3 verdicts reproduced, largest difference 8e-09"
    assert found.summary() == said
    assert found.lines() == [
        "table lost is stored, but not made by this run (lost.csv)",
        "claim 1.A: not reproduced, stored holds",
        "claim 1.B: missing, stored holds",
        "claim 1.C: holds, stored unknown",
    ]


# The picture, its table and the notebook ---------------------------------------------------------


def committed():
    return sorted(paths.figures().glob("*/*/manifest.json"))


def test_there_are_stored_results():
    assert len(committed()) >= 9


@pytest.mark.parametrize("manifest", committed(), ids=lambda p: "-".join(p.parts[-3:-1]))
def test_stored_files_are_those_of_one_run(manifest):
    folder = manifest.parent
    assert reproduction.intact(folder), f"{folder} was changed by hand: nclib run --store"
    pictures = [path for path in folder.glob("*.png") if path.with_suffix(".csv").exists()]
    assert pictures
    for path in pictures:
        assert table_of(path) == files.digest(path.with_suffix(".csv")), path


@pytest.mark.parametrize("book", runs.notebooks())
def test_the_pictures_in_a_notebook_are_the_stored_figures(book):
    content = files.read_json(paths.NOTEBOOKS / f"{book}.ipynb")
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
    shown = [o["data"] for o in outputs if "image/png" in o.get("data", {})]
    assert shown
    for data in shown:
        name = "".join(data["text/plain"]).removeprefix("figure ")
        stored = (paths.figures() / "quick" / book / f"{name}.png").read_bytes()
        assert base64.b64decode("".join(data["image/png"])) == stored, name


def test_a_picture_carries_the_checksum_of_its_table(tmp_path, monkeypatch):
    monkeypatch.setenv(notebook.FIGURES, str(tmp_path))
    run = notebook.Run("00_quickstart", {"profile": "quick"})
    figure, axes = style.grid(1, 2)
    run.figure(figure, "one", TABLE, varies=("gap",))
    assert run.tables == {"one": ["gap"]}
    assert table_of(tmp_path / "one.png") == files.digest(tmp_path / "one.csv")
    figure, axes = style.grid(1, 2)
    run.figure(figure, "two")
    assert table_of(tmp_path / "two.png") is None


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_under_nbval_the_cell_of_a_figure_fails_with_its_table(tmp_path, monkeypatch, factor):
    monkeypatch.setenv(notebook.FIGURES, str(tmp_path))
    monkeypatch.setenv(notebook.REPRODUCE, "1")
    name = "01_scalar_picture"
    stored = paths.figures() / "quick" / "01_multi_loss_equivalence" / f"{name}.csv"
    table = pd.read_csv(stored)
    number = table.select_dtypes("float").columns[-1]
    run = notebook.Run("01_multi_loss_equivalence", {"profile": "quick"})
    if factor == 1.0:
        run.table(table, name)
        return
    with pytest.raises(reproduction.NotReproduced, match=f"{name}, column {number}"):
        run.table(table.assign(**{number: factor * table[number]}), name)


def test_under_nbval_the_last_cell_fails_with_a_verdict(tmp_path, monkeypatch):
    monkeypatch.setenv(notebook.FIGURES, str(tmp_path))
    monkeypatch.setenv(notebook.REPRODUCE, "1")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "books")
    run = notebook.Run("00_quickstart", {"profile": "standard"})
    run.claim("Q1", 0.0)
    run.claim("Q2", {"nc1": 0.0, "nc2_means": 0.0, "nc3": 0.0})
    run.claim("Q3", 0.0)
    run.claim("Q4", bound=0.0, gap=0.0)
    folder = tmp_path / "figures/standard/00_quickstart"
    run.ledger.write(folder)
    run.finish()
    record = files.read_json(tmp_path / "record.json")
    assert record["parameters"] == run.parameters
    assert record["versions"]["numpy"] == np.__version__
    text = (folder / "claims.json").read_text().replace('"holds"', '"counterexample"', 1)
    (folder / "claims.json").write_text(text)
    with pytest.raises(reproduction.NotReproduced, match="claim 0.Q1: holds, stored counterexamp"):
        run.finish()


# From the command line ----------------------------------------------------------------------------


@pytest.mark.slow
def test_stored_results_stay_until_told_otherwise(tiny):
    root = tiny.books.parent
    stored, own = (root / place / "90_tiny" for place in ("figures/quick", "runs/quick"))
    contents = lambda: {p.name: p.read_bytes() for p in stored.iterdir()}
    first = tiny("run")
    assert first.returncode == 0, first.stdout
    assert "reproduced" not in first.stdout  # nothing was stored
    before = contents()

    again = tiny("run", "--force")
    assert "1 of 1 tables and 3 of 3 verdicts reproduced, largest difference 0" in again.stdout
    assert contents() == before  # manifest, seconds and all
    same = tiny("run")
    assert "90_tiny [quick] unchanged" in same.stdout
    assert "reproduced" in same.stdout

    text = (tiny.books / "90_tiny.ipynb").read_text().replace("lr=0.05", "lr=0.06")
    (tiny.books / "90_tiny.ipynb").write_text(text)
    changed = tiny("run")
    assert changed.returncode == 1
    assert "0 of 1 tables and 3 of 3 verdicts reproduced" in changed.stdout
    assert "table 01_loss, column " in changed.stdout
    assert "1 notebook(s) differ from the stored results" in changed.stderr
    assert contents() == before
    assert runs.results()["quick", "90_tiny"] == own / "figures"

    kept = tiny("run", "--store")
    assert kept.returncode == 0, kept.stdout
    assert "unchanged" in kept.stdout  # taken, not run again
    assert contents()["01_loss.csv"] != before["01_loss.csv"]
    assert runs.results()["quick", "90_tiny"] == stored
    assert reproduction.intact(stored)

    # Another folder: its own results, compared with the stored ones.
    elsewhere = tiny("run", "--out", tiny.out)
    assert "1 of 1 tables" in elsewhere.stdout
    assert (tiny.out / "figures/quick/90_tiny/01_loss.png").exists()
    # Damaged stored results are made again.
    (stored / "01_loss.csv").write_text("epoch\n")
    assert tiny("run").returncode == 0
    assert reproduction.intact(stored)


def test_a_profile_that_is_not_stored_has_no_reference(tiny):
    assert runs.job("90").stored is None
    tiny.fake("quick", {}, ["holds"], out=tiny.books.parent)
    assert runs.job("90").stored is None  # no files are listed in its manifest
    folder = runs.job("90").figures
    manifest = files.read_json(folder / "manifest.json") | {"files": {}}
    files.write_json(folder / "manifest.json", manifest)
    assert runs.job("90").stored == folder
    assert runs.job("90", out=tiny.out).stored == folder
    assert runs.job("90", overrides={"K": 5}).stored is None


COMMANDS = (
    "list",
    "list --markdown",
    "claims --all",
    "claims 90.A1",
    "report",
    "sweep 90 --seeds 0:1 --dry-run",
)


def one_thing_wrong(content):
    """``content`` of a JSON file with any of its keys missing or of another type."""
    yield from (None, 3, [3], {"a": 1}, "text")
    entries = [(lambda new: new, content)]
    if isinstance(content, list):
        entries = [(lambda new: [new, *content[1:]], content[0])]
    for whole, entry in entries:
        for key in entry:
            yield whole({k: v for k, v in entry.items() if k != key})
            yield from (whole(entry | {key: value}) for value in (None, "x", 2.5, [1], {"a": 1}))


@pytest.mark.parametrize("name", ["claims.json", "manifest.json"])
def test_a_file_that_loads_but_is_wrong_is_one_line_that_names_it(tiny, name):
    tiny.fake("quick", {}, ["holds", "fails"], out=tiny.books.parent)
    path = tiny.books.parent / "figures/quick/90_tiny" / name
    whole, refused = path.read_text(), set()
    for content in one_thing_wrong(json.loads(whole)):
        path.write_text(json.dumps(content))
        for command in COMMANDS:
            found = called(*command.split())
            assert found.exit_code in (0, 1, 2)
            if found.exit_code == 2:
                *_, line = found.output.splitlines()
                assert line.startswith(f"nclib: {path} is missing or damaged (")
                refused.add(command)
    path.unlink()
    assert called("report" if "claims" in name else "claims").exit_code == 2
    readers = {"claims.json": COMMANDS[1:5], "manifest.json": (*COMMANDS[:2], "report")}
    assert refused == set(readers[name])


def test_a_notebook_or_a_profile_that_is_none_is_one_line(tiny):
    book, profile = tiny.books / "90_tiny.ipynb", tiny.books / "profiles/quick.yaml"
    whole = book.read_text()
    for text in ("{", "[]", '{"cells": [{}]}', '{"cells": 3}'):
        book.write_text(text)
        found = called("run", "90")
        assert (found.exit_code, "90_tiny.ipynb cannot be read" in found.output) == (2, True)
        assert called("list").exit_code == 2
    book.write_text(whole)
    for text in ("3", "[]", "90_tiny: 3", "90_tiny: [K]"):
        profile.write_text(text)
        found = called("run", "90")
        assert (found.exit_code, "quick.yaml" in found.output) == (2, True)


def test_what_cannot_be_written_is_one_line(tiny):
    tiny.fake("quick", {}, ["holds"], out=tiny.books.parent)
    (tiny.books / "file").write_text("")
    found = called("report", "--to", tiny.books / "file/report.html")
    assert found.exit_code == 2
    assert found.output.startswith("nclib: [Errno ")
    assert found.output.count("\n") == 1


def test_an_unknown_run_is_an_error_that_lists_the_runs(tiny):
    tiny.fake("quick", {}, ["holds"])
    for options, said in (
        (f"--profile quik --out {tiny.out}", "; it holds quick\n"),
        (f"--out {tiny.out}/nothing", "; start with `nclib run`\n"),
    ):
        found = called("claims", *options.split())
        assert found.exit_code == 2
        assert found.output.startswith("nclib: no run qui")
        assert found.output.endswith(said)


def test_the_exit_code_of_a_run_counts_claims_and_differences(tiny, monkeypatch):
    """A claim that fails although no notebook does; a table that differs although all holds."""
    job = runs.job("90", out=tiny.out)
    outcomes = [
        (runs.Outcome(job, "done", 1.0, verdicts={"holds": 2}), 0),
        (runs.Outcome(job, "done", 1.0, verdicts={"not reproduced": 1, "not converged": 1}), 0),
        (runs.Outcome(job, "done", 1.0, verdicts={"holds": 1, "fails": 1}), 1),
        (runs.Outcome(job, "unchanged", 0.0, verdicts={"fails": 1}), 1),
        (runs.Outcome(job, "failed", 1.0, "x"), 1),
        (runs.Outcome(job, "done", 1.0, verdicts={"holds": 1}, reproduced=False), 1),
        (runs.Outcome(job, "done", 1.0, verdicts={"holds": 1}, reproduced=True), 0),
    ]
    for outcome, code in outcomes:
        monkeypatch.setattr(runs, "run_all", lambda *_, found=outcome, **__: [found])
        assert called("run", "90", "--out", tiny.out).exit_code == code, outcome


def test_the_ledger_on_the_command_line_counts_failing_rows_only(tiny):
    catalogue = tiny.books / "claims" / "90_tiny.yaml"
    text = catalogue.read_text().replace("needs: paper", "needs: paper, networks: [net]")
    catalogue.write_text(text.replace("A1: {", "A1: {seen: 02_second, "))
    for name, verdicts, code in (
        ("quick", ["holds", "not converged", "not reproduced", "counterexample"], 0),
        ("standard", ["holds", "fails", "fails"], 1),
        ("paper", ["holds"], 0),
    ):
        tiny.fake(name, {}, verdicts)
        found = called("claims", "--profile", name, "--out", tiny.out)
        assert found.exit_code == code
        assert ("2 row(s) fail" in found.output) == (code == 1)
        assert found.output.count("\n  90.A") == 3  # also those that nothing was measured of
        partly = "90.A3    not reproduced statement 3  [in networks]"
        assert (partly in found.output) == (name == "quick")
        assert "2e-05" not in found.output
        listed = called("claims", "--all", "--profile", name, "--out", tiny.out)
        assert "    90.A1  holds          2e-05 (<= 1)\n" in listed.output
        one = called("claims", "90.A1", "--profile", name, "--out", tiny.out).output
        assert f"picture   {tiny.out}/figures/{name}/90_tiny/02_second.png\n" in one


def test_own_results_take_the_place_of_damaged_stored_ones(tiny):
    """And only then: what a run keeps for itself is not the stored result."""
    tiny.fake("quick", {}, ["holds"], out=tiny.books.parent)
    job = runs.job("90")
    record = files.read_json(job.figures / "manifest.json") | {"files": {}}
    files.write_json(job.figures / "manifest.json", record)
    shutil.copytree(job.figures, job.own)
    (job.own / "mine.csv").write_text("")
    runs._outcome(job, "done", 1.0, store=False)
    assert not (job.figures / "mine.csv").exists()
    (job.figures / "manifest.json").write_text("{")
    runs._outcome(job, "done", 1.0, store=False)
    assert (job.figures / "mine.csv").exists()
    assert not job.own.exists()


def test_only_the_last_run_can_be_finished(tiny):
    """An edit that was run and taken back: executed notebook and own results are those of it."""
    tiny.fake("quick", {}, ["holds"], out=tiny.books.parent)
    job = runs.job("90")
    record = files.read_json(job.figures / "manifest.json") | {"files": {}}
    record["fingerprint"] = runs.fingerprint(job)
    files.write_json(job.figures / "manifest.json", record)
    text, executed = job.source.read_text(), job.folder / "notebook.ipynb"
    executed.parent.mkdir(parents=True)
    executed.write_text(text)
    assert runs.finished(job)["seconds"] == 1.5
    executed.write_text(text.replace("lr=0.05", "lr=0.06"))
    assert runs.finished(job) is None
    executed.write_text(text)
    shutil.copytree(job.figures, job.own)
    assert runs.finished(job)
    files.write_json(job.own / "manifest.json", record | {"fingerprint": "of the edit"})
    assert runs.finished(job) is None


def test_a_sweep_in_which_all_runs_fail_writes_no_table(tiny, monkeypatch):
    failed = lambda jobs, **_: [runs.Outcome(job, "failed", 1.0, "x") for job in jobs]
    monkeypatch.setattr(runs, "run_all", failed)
    found = called("sweep", "90", "--seeds", "0:2", "--out", tiny.out)
    assert found.exit_code == 1
    assert "table" not in found.output
    assert "2 run(s) failed" in found.output
    assert not list(tiny.out.glob("runs/sweep-*"))


def test_every_ingredient_changes_the_fingerprint(tiny, monkeypatch):
    base = runs.job("90", out=tiny.out)
    images = replace(base, parameters={"folder": str(tiny.out / "images")})
    marks = [runs.fingerprint(base), runs.fingerprint(images)]
    for content in ("a", "b"):
        files.write_json(tiny.out / "images" / "cat" / "1.png", content)
        marks.append(runs.fingerprint(images))
    marks.append(runs.fingerprint(runs.job("90", overrides={"K": 5}, out=tiny.out)))
    marks.append(runs.fingerprint(runs.job("90", out=tiny.out, threads=2)))
    catalogue = tiny.books / "claims" / "90_tiny.yaml"
    catalogue.write_text(catalogue.read_text().replace("a bound", "another bound"))
    marks.append(runs.fingerprint(base))
    base.source.write_text(base.source.read_text().replace("lr=0.05", "lr=0.06"))
    marks.append(runs.fingerprint(base))
    monkeypatch.setattr(notebook, "versions", lambda: {"torch": "0"})
    marks.append(runs.fingerprint(base))
    monkeypatch.setattr(notebook, "library_files", lambda source: [])
    marks.append(runs.fingerprint(base))
    assert len(set(marks)) == len(marks)
    assert runs.fingerprint(base) == marks[-1]


@pytest.mark.parametrize("module", ["deep/train.py", "losses.py", "metrics/margins.py"])
def test_a_change_of_what_is_measured_changes_the_checkpoint(tmp_path, monkeypatch, module):
    """metrics/margins.py: notebook 04 measures margins while it trains."""
    book = "04_large_class_gnc"
    package = tmp_path / "nclib"
    shutil.copytree(paths.ROOT / "nclib", package)
    monkeypatch.setattr(notebook, "__file__", str(package / "notebook.py"))
    digest = notebook.code_digest.__wrapped__
    before = digest(book)
    for drawn in ("results/large_class/figures.py", "report.py", "notebook.py"):
        (package / drawn).write_text((package / drawn).read_text() + "\n# another picture\n")
    assert digest(book) == before
    (package / module).write_text((package / module).read_text() + "\n# changed\n")
    assert digest(book) != before
