"""Batch runs without a kernel: what reaches a job, what it says, what is stored of it."""

import errno
import os
import shutil
import threading
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest

from nclib import checks, files, kernels, notebook, runs, sweeps
from nclib.deep import data
from tests.conftest import called


def test_options_reach_the_jobs(tiny, tmp_path, monkeypatch):
    seen, grid = [], tmp_path / "grid.yaml"
    grid.write_text("K: [7]\nmode: [ok, raise]\n")

    def run_all(jobs, *, report, progress=None, **options):
        seen.append((jobs, options))
        return [runs.Outcome(job, "done", 1.0) for job in jobs]

    monkeypatch.setattr(runs, "run_all", run_all)
    monkeypatch.setattr(sweeps, "write", lambda outcomes, swept, out: seen.append((swept, out)))
    own = {"out": str(tiny.out), "threads": 2}
    common = ("--profile", "standard", "--jobs", 3, "--threads", 2, "--scheduler", "tcp://x:1")
    common += ("--out", tiny.out)
    called("run", "90", "-p", "K=5", "--force", "--store", *common)
    jobs, options = seen.pop()
    assert jobs == [runs.job("90", "standard", {"K": 5}, **own)]
    there = {"parallel": 3, "scheduler": "tcp://x:1"}
    assert options == there | {"force": True, "store": True}
    called("sweep", "90", "--grid", grid, "-p", "K=5", "--seeds", "0:2", *common)
    (jobs, options), written = seen
    texts = {"K": "5", "mode": "ok,raise"}  # -p stands for what the file says
    assert jobs == sweeps.grid("90", texts, "standard", seeds="0:2", **own)
    assert (options, written) == (there, (["K", "mode", "seed"], own["out"]))


def test_threads_and_folders_reach_the_kernel(tiny, tmp_path, monkeypatch):
    job = runs.job("90", overrides={"K": 5}, out=tiny.out, threads=2)
    job.folder.mkdir(parents=True)
    monkeypatch.setattr(kernels, "execute", lambda *given, environment, **_: (given, environment))
    given, found = runs._kernel(job, tmp_path, tmp_path / "x.ipynb", False)
    assert given == (job.source, tmp_path / "x.ipynb", {"K": 5})
    names = (notebook.THREADS, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED")
    assert [found[name] for name in names] == ["2", "2", "2", "0"]
    assert (found[notebook.FOLDER], found[notebook.FIGURES]) == (str(job.folder), str(tmp_path))


def test_jobs_run_side_by_side_and_come_back_in_their_order(tiny, monkeypatch):
    first, second = sweeps.grid("90", {"K": "5,6"}, out=tiny.out)
    came, lines = threading.Event(), []

    def execute(job, **options):
        assert options == {"force": True, "progress": False, "store": True}
        good = job == second or came.wait(60)  # the first ends after the second was reported
        return runs.Outcome(job, "done" if good else "failed", 1.0)

    def report(line):
        lines.append(line)
        came.set()

    monkeypatch.setattr(runs, "execute", execute)
    options = {"force": True, "store": True, "progress": True}
    found = runs.run_all([first, second], parallel=2, report=report, **options)
    assert [(one.job, one.status) for one in found] == [(first, "done"), (second, "done")]
    assert lines[0].startswith(f"90_tiny [{second.name}] done")


def test_a_run_says_what_fails_and_what_it_reproduces(tiny):
    tiny.fake("quick", {}, ["holds", "fails", "not reproduced"], out=tiny.books.parent)
    job = runs.job("90")
    record = files.read_json(job.figures / "manifest.json") | {"files": {}, "tables": {"t": True}}
    files.write_json(job.figures / "manifest.json", record)
    shutil.copytree(job.figures, job.own)
    said = ["90_tiny [quick] done in 3 s: 1 holds, 1 not reproduced, 1 fails"]
    said += ["90.A2 fails: statement 2", "", f"the executed notebook is in {job.folder}"]
    table = pd.DataFrame({"K": [2], "loss": [0.5]})
    files.write_csv(job.figures / "t.csv", table)
    files.write_csv(job.own / "t.csv", table.assign(loss=0.4))  # varies
    outcome = runs._outcome(job, "done", 3.2, store=False)
    said[2] = "1 of 1 tables and 3 of 3 verdicts reproduced, largest difference 0"
    assert runs.describe(outcome).split("\n    ") == said
    assert runs.results()["quick", "90_tiny"] == job.figures
    files.write_csv(job.own / "t.csv", table.assign(K=3))
    outcome = runs._outcome(job, "unchanged", 0.0, store=False)
    said[0] = said[0].replace("done in 3 s", "unchanged")
    said[2] = "0 of 1 tables and 3 of 3 verdicts reproduced, largest difference 0"
    said[3:3] = ["table t, column K, row 0: 3, stored 2"]
    said += [f"this run's figures are in {job.own}; `nclib run --store` keeps them"]
    assert runs.describe(outcome).split("\n    ") == said
    assert runs.results()["quick", "90_tiny"] == job.own
    assert "figures" not in runs.describe(runs.Outcome(job, "done", 1.0))  # nothing was compared


def test_what_is_stored_is_asked_for(tiny, monkeypatch):
    monkeypatch.setattr(runs, "_execute", lambda *_: None)
    monkeypatch.setattr(runs, "_outcome", lambda job, status, seconds, store: (status, store))
    job = runs.job("90", out=tiny.out)
    for there, status in ((None, "done"), ({}, "done"), ({"x": 1}, "unchanged")):
        monkeypatch.setattr(runs, "finished", lambda job, found=there: found)
        assert runs.execute(job, store=True) == (status, True)
        assert runs.execute(job, force=True) == ("done", False)


def test_the_manifest_goes_first_and_comes_last(tmp_path, monkeypatch):
    """A kill at any moment leaves no manifest of files that are not there."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        for name in ("a.csv", "manifest.json", "z.csv"):
            files.write_json(folder / name, [])
    moved, move = [], os.replace

    def replace(source, target):
        assert not (old / "manifest.json").exists()
        moved.append(Path(target).name)
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)
    runs._publish(new, old)
    assert (set(moved[:2]), moved[2:]) == ({"a.csv", "z.csv"}, ["manifest.json"])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        *((f"[Errno {code}] x", "no space is left for") for code in (errno.ENOSPC, errno.EDQUOT)),
        *((f"[Errno {code}] x", "another folder") for code in (errno.EACCES, errno.EROFS)),
        ("ValueError: x", None),
    ],
)
def test_an_error_of_the_disk_has_a_way_out(tiny, text, hint):
    said = runs._explain(text, runs.job("90", out=tiny.out))
    assert said == text if hint is None else hint in said and str(tiny.out) in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("dead"), "the kernel died or timed out after 1 cells (RuntimeError: dead)"),
        (OSError(errno.ENOSPC, "full"), "OSError: [Errno 28] full; no space is left"),
        (
            papermill.PapermillExecutionError(1, 4, "", "OSError", "[Errno 28] full", []),
            "cell 4: OSError: [Errno 28] full; no space is left",
        ),
    ],
)
def test_what_goes_wrong_under_way_is_said_and_not_tried_again(tiny, monkeypatch, error, said):
    calls = []

    def execute(source, target, **_):
        content = nbformat.read(source, as_version=4)
        content.cells[1]["execution_count"] = 1
        nbformat.write(content, target)
        calls.append(1)
        raise error

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    outcome = runs.execute(runs.job("90", out=tiny.out))
    assert outcome.message.startswith(said)
    assert calls == [1]
    assert not list(outcome.job.folder.glob("staging-*"))


def test_a_notebook_is_named_or_refused():
    with pytest.raises(checks.InputError, match="'multi' is ambiguous; choose from 01_mul.*, 03_m"):
        runs.find("multi")
    queries = ("0", "duality", "notebooks/02_normalized_features.ipynb")
    assert [runs.find(query)[:2] for query in queries] == ["00", "06", "02"]


def test_a_profile_names_notebooks_that_there_are(tiny):
    (tiny.books / "profiles" / "quick.yaml").write_text("91_none: {K: 4}\n")
    with pytest.raises(checks.InputError, match="quick.yaml has a section for unknown notebook 91"):
        runs.job("90")


def test_the_list_says_what_each_profile_took(tiny):
    tiny.fake("quick", {}, ["holds"], out=tiny.books.parent)
    lines = called("list").output.splitlines()
    assert [line.split(None, 1)[1] for line in lines] == [
        "A tiny notebook",
        "2 s on cpu, 1 thread(s)",
        "not run here",
    ]
    found = called("sweep", "90", "-p", "K=4,5,6,7", "--jobs", 2, "--dry-run").output
    assert found.startswith("4 runs of 90_tiny; time about 3 s\n  quick: K=4\n  quick-")
    assert called("doctor").exit_code == 0


def test_what_is_up_to_date_is_said_of_all_only(tiny, monkeypatch):
    for statuses in (("unchanged", "unchanged"), ("done", "unchanged")):
        found = [runs.Outcome(runs.job("90"), status, 1.0) for status in statuses]
        monkeypatch.setattr(runs, "run_all", lambda *_, found=found, **__: found)
        said = "nothing changed: all results are up to date" in called("run").output
        assert said == (statuses[0] == "unchanged")


def test_stored_outputs_are_those_of_the_quick_profile_without_addresses(tiny, monkeypatch):
    source, status = tiny.books / "90_tiny.ipynb", "done"

    def execute(job, *, store):
        assert store and job.name == "quick"
        content = nbformat.read(job.source, as_version=4)
        content.metadata["papermill"] = {"duration": 3.0}
        cell = content.cells[1]
        cell.metadata["papermill"] = {"duration": 3.0}
        shown = {"text/plain": "<Axes 0x7f0de7bf4680>", "text/html": "id='T_1d016_row1'"}
        cell.outputs = [nbformat.v4.new_output("display_data", shown)]
        files.write_json(job.folder / "notebook.ipynb", content)
        return runs.Outcome(job, status, 1.0, "asked to fail")

    monkeypatch.setattr(runs, "execute", execute)
    assert called("store", "90").output == f"{source}\n"
    content = nbformat.read(source, as_version=4)
    assert content.metadata.keys() == {"kernelspec", "language_info"}
    assert [cell.id for cell in content.cells[:2]] == ["cell-00", "cell-01"]
    assert content.cells[1].metadata == {"tags": ["parameters"]}
    shown = {"text/plain": "<Axes 0x0>", "text/html": "id='T_0_row1'"}
    assert content.cells[1].outputs[0]["data"] == shown
    status, before = "failed", source.read_bytes()
    assert called("store", "90").exit_code == 2
    assert source.read_bytes() == before


def test_a_data_set_comes_from_the_folder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "fetch", lambda name, source: got.append((name, source)))
    monkeypatch.setattr(data, "check", lambda name: f"{name} is here")
    got = []
    found = called("data", "fetch", "mnist", "--from", tmp_path)
    assert (found.output, got) == ("mnist is here\n", [("mnist", str(tmp_path))])
