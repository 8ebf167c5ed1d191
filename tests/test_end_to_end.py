"""The command line on a tiny notebook: what is written, what is not redone, what survives."""

import json
import os
import shutil
import signal
from pathlib import Path

import papermill
import pytest
from click.testing import CliRunner

from nclib import runs
from nclib.cli import main
from tests.conftest import called, contents, eventually

pytestmark = pytest.mark.slow


def figures(tiny, name="quick"):
    return tiny.out / "figures" / name / "90_tiny"


def test_a_run_writes_its_results_and_is_repeated_only_if_something_changed(
    tiny, undisturbed, undisturbed_sweep
):
    shutil.copytree(undisturbed, tiny.out)
    folder = figures(tiny)
    names = {"01_loss.png", "01_loss.pdf", "01_loss.csv", "claims.json", "manifest.json"}
    assert {p.name for p in folder.iterdir()} == names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["parameters"]["K"] == 4  # from the profile
    assert manifest["data"].keys() == {"noise"}
    keys = {"fingerprint", "seconds", "versions", "device", "threads", "revision"}
    assert keys <= manifest.keys()
    before = contents(folder)

    again = tiny("run", "--out", tiny.out)
    assert again.returncode == 0
    assert "nothing changed" in again.stdout
    forced = tiny("run", "--out", tiny.out, "--force")
    assert (forced.returncode, forced.stderr) == (0, "")
    assert "90_tiny [quick] done" in forced.stdout
    assert "2 holds, 1 not run" in forced.stdout
    assert contents(folder) == before  # byte-identical figures, tables and claims

    table = runs.load(undisturbed_sweep)  # other parameters, each in its own folder
    assert sorted(table["p.K"].unique()) == [2, 3]
    assert set(table["verdict"]) == {"holds", "not run"}
    assert len(table) == 6

    shown = tiny("claims", "--out", tiny.out)
    assert shown.returncode == 0
    assert "90.A3" in shown.stdout
    assert "[needs profile paper]" in shown.stdout

    page = tiny("report", "--out", tiny.out)
    assert page.returncode == 0, page.stderr
    text = (tiny.out / "runs" / "report.html").read_text()
    assert "an &lt;i&gt;equality&lt;/i&gt;" in text  # texts from runs are escaped
    assert "&lt;b&gt;&amp;" in text
    assert "data:image/png;base64" in text
    assert 'src="http' not in text
    assert 'href="http' not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "klasses=3"], "unknown parameter klasses; this notebook accepts K, epochs, label"),
        (["-p", "K=abc"], "parameter K must be int, got 'abc'"),
        (["-p", "K=1"], "parameter K must be at least 2, got 1"),
        (["-p", "K"], "write it as name=value"),
        (["-p", "K=2", "-p", "K=3"], "parameter K is given twice with -p"),
        ([""], "notebook '' is unknown; choose from 90_tiny"),
        (["-p", "profile=standard"], "parameter profile is a name only: use --profile standard"),
        (["--profile", "huge"], "profile must be one of quick, standard; got 'huge'"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["nothing"], "notebook 'nothing' is unknown; choose from 90_tiny"),
        (["--out", "s3://bucket/x"], "is no folder: runs need one that drivers and workers share"),
    ],
)
def test_wrong_input_is_one_line_and_starts_nothing(tiny, arguments, message):
    result = called("run", "--out", tiny.out, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("nclib: ")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not tiny.out.exists()


FAILURES = {
    "raise": "cell 5: ValueError: asked to fail",
    "exit": "the notebook stopped before its last cell",
    "kill": "the kernel died",
    "forget": "rows A2 of 93_forget were never checked",
}


def test_failing_notebooks_leave_their_partials_and_the_others_run(tiny, undisturbed):
    shutil.copytree(undisturbed, tiny.out)
    before = contents(figures(tiny))
    sections = ["90_tiny: {K: 4, mode: fails}"]
    for number, mode in enumerate(FAILURES, 90):
        name = f"{number}_{mode}"
        text = (tiny.books / "90_tiny.ipynb").read_text().replace("90_tiny", name)
        (tiny.books / f"{name}.ipynb").write_text(text)
        shutil.copy(tiny.books / "claims" / "90_tiny.yaml", tiny.books / f"claims/{name}.yaml")
        sections.append(f"{name}: {{mode: {mode}}}")
    (tiny.books / "profiles" / "quick.yaml").write_text("\n".join(sections))

    result = tiny("run", "--jobs", "2", "--out", tiny.out, timeout=400)
    assert result.returncode == 1
    for number, (mode, message) in enumerate(FAILURES.items(), 90):
        name = f"{number}_{mode}"
        line = next(text for text in result.stdout.splitlines() if text.startswith(name))
        assert message in line
        assert not (tiny.out / "figures" / "quick" / name).exists()
        assert "noise" in (tiny.out / f"runs/quick/{name}/notebook.failed.ipynb").read_text()
    assert "90_tiny [quick] done" in result.stdout
    assert "1 holds, 1 not run, 1 fails" in result.stdout
    assert result.stderr.startswith("4 notebook(s) failed, 1 claim(s) fail")

    shown = tiny("claims", "--out", tiny.out)
    assert shown.returncode == 1
    assert "1 row(s) fail" in shown.stderr
    changed = contents(figures(tiny))
    assert changed["01_loss.png"] == before["01_loss.png"]
    assert changed["claims.json"] != before["claims.json"]

    # What had stopped half-way is whole as soon as its cell is mended.
    (tiny.books / "profiles" / "quick.yaml").write_text("{91_exit: {K: 4}, 92_kill: {K: 4}}")
    mended = tiny("run", "91", "92", "--jobs", "2", "--out", tiny.out)
    assert mended.returncode == 0, mended.stdout
    for name in ("91_exit", "92_kill"):
        assert not (tiny.out / f"runs/quick/{name}/notebook.failed.ipynb").exists()
        assert (tiny.out / f"figures/quick/{name}/manifest.json").exists()


def test_a_killed_run_resumes_to_the_same_result(tiny, undisturbed):
    slow = tiny.environment | {"TINY_PAUSE": "0.6"}
    process = tiny("run", "--out", tiny.out, background=True, env=slow)
    eventually(lambda: next(tiny.out.glob("runs/*/90_tiny/checkpoints/*.pt")))
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    process.stdout.close()
    assert not list(tiny.out.glob("figures/*/90_tiny/claims.json"))
    resumed = tiny("run", "--out", tiny.out)
    assert resumed.returncode == 0, resumed.stdout
    assert tiny.results(tiny.out) == tiny.results(undisturbed)


def test_the_library_files_of_a_notebook_are_those_it_imports():
    names = lambda source: {p.name for p in runs.notebook.library_files(source)}
    one = names("from nclib.results.multi_loss import theory")
    assert {"theory.py", "losses.py", "checks.py", "notebook.py", "claims.py"} <= one
    assert not {"runs.py", "report.py", "cli.py", "train.py", "nets.py"} & one
    assert "train.py" in names("from nclib.results.multi_label import nets")


def test_papermill_alone_runs_a_notebook(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("NCLIB_NOTEBOOKS", str(tiny.books))
    monkeypatch.setenv(runs.notebook.FOLDER, str(tmp_path / "run"))
    monkeypatch.setenv(runs.notebook.FIGURES, str(tmp_path / "figures"))
    source, target = (str(folder / "90_tiny.ipynb") for folder in (tiny.books, tmp_path))
    papermill.execute_notebook(source, target, parameters={"K": 5}, progress_bar=False)
    assert "90_tiny: 2 holds, 1 not run" in Path(target).read_text()
    assert (tmp_path / "figures" / "claims.json").exists()


def test_a_kernel_that_does_not_start_is_tried_once_more(tiny, monkeypatch):
    """Many kernels starting at once lose races for ports; nothing has run yet then."""
    calls = []

    def execute(source, target, **_):
        calls.append(target)
        if len(calls) < 2:
            raise RuntimeError("address already in use")
        shutil.copy(source, target)
        (staging,) = job.folder.glob("staging-*")
        runs.files.write_json(f"{staging}/record.json", {"parameters": {}})
        runs.files.write_json(f"{staging}/claims.json", [])

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    job = runs.job("90", out=tiny.out)
    outcome = runs.execute(job)
    assert (outcome.status, len(calls)) == ("done", 2), outcome.message
    calls[:] = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: calls.append(1) or 1 / 0)
    again = runs.execute(job, force=True)
    assert (again.status, len(calls)) == ("failed", 2)
    assert "the kernel died or timed out" in again.message
    assert "ZeroDivisionError" in again.message


def test_results_without_a_manifest_are_unfinished(tiny):
    tiny.fake("quick", {}, ["holds"])
    tiny.fake("quick-0123456789", {"K": 5}, ["holds"])
    assert list(runs.load(tiny.out)["p.K"]) == [4, 5]
    (tiny.out / "figures/quick/90_tiny/manifest.json").unlink()
    assert list(runs.load(tiny.out)["p.K"]) == [5]


def test_more_threads_than_cores_are_mentioned(tiny, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(runs, "run_all", lambda jobs, **_: [runs.Outcome(jobs[0], "unchanged", 0)])
    said = "note: 3 processes of 2 threads share 4 cores; fewer may be faster\n"
    for options, note in ((["--jobs", "4"], ""), (["--jobs", "3", "--threads", "2"], said)):
        result = called("run", "90", "--out", tiny.out, *options)
        assert result.exit_code == 0, result.output
        assert result.stderr == note


def test_a_foreign_kernelspec_does_not_take_the_notebooks(tiny, tmp_path):
    """An environment's kernelspec of the same name, found before the own one."""
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    foreign = {"argv": ["false", "{connection_file}"], "display_name": "x", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(foreign))
    variables = dict.fromkeys(("JUPYTER_PATH", "JUPYTER_DATA_DIR"), str(tmp_path / "jupyter"))
    done = tiny("run", "--out", tiny.out, env=tiny.environment | variables)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "90", "-p", "K=x"]])
def test_python_m_nclib_is_the_command(tiny, arguments):
    one = tiny(*arguments)  # python -m nclib
    other = CliRunner().invoke(main, arguments, prog_name="nclib", terminal_width=78)
    assert (one.returncode, one.stdout) == (other.exit_code, other.stdout)
    assert one.stderr == other.stderr
    assert "nclib" in one.stdout + one.stderr
