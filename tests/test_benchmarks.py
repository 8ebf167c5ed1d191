"""Every row of the benchmarks works at toy size and gives the numbers of its baseline."""

import json
import mmap
import subprocess
import sys
import warnings

import pandas as pd
import pytest
import torch

from tests.benchmarks import harness, notebooks, report, scaling
from tests.benchmarks.rows import ROWS


@pytest.mark.parametrize("name", ROWS)
def test_ours_and_baseline_agree(name):
    row = ROWS[name]
    if name.endswith("processes"):
        pytest.skip("the same training as grid-cnn-apart, in two processes")
    ours, baseline = (harness.measure_side(row, side, "toy") for side in ("ours", "baseline"))
    assert ours["values"].keys() & baseline["values"].keys()
    assert harness.disagreement(ours["values"], baseline["values"]) <= row.tolerance
    assert min(ours["seconds"]) > 0 and ours["memory"] >= 0
    rates = {"bandwidth": 1e10, "single": 1e11, "double": 5e10}
    line = harness.table_row(row, {"ours": ours, "baseline": baseline}, rates)
    assert tuple(line) == report.COLUMNS
    assert line["ratio"] == pytest.approx(line["baseline_s"] / line["ours_s"])


def test_a_wrong_value_is_seen():
    assert harness.disagreement({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.2}) > 0.09
    assert not harness.disagreement({"a": 1.0}, {"c": 1.0}) <= 1.0  # nothing to compare


def used_for_a_while(megabytes):
    """Memory from the system and back: a bytearray may lie where earlier tests left a hole."""
    with mmap.mmap(-1, megabytes * 2**20) as block:
        block[:: mmap.PAGESIZE] = b"x" * len(block[:: mmap.PAGESIZE])


def test_memory_is_the_peak_of_the_block_alone():
    used_for_a_while(80)
    with harness.Memory() as memory:
        used_for_a_while(40)
    assert 35 < memory.extra < 60 or sys.platform != "linux"


@pytest.mark.slow
def test_one_side_is_measured_in_a_process_of_its_own():
    found = harness.apart({"row": "metrics-512-10", "side": "ours", "size": "toy"})
    assert found["values"]["nc1"] > 0 and found["bytes"] > 0
    with pytest.raises(RuntimeError, match="KeyError"):
        harness.apart({"row": "unknown", "side": "ours", "size": "toy"})


def test_sides_run_on_one_thread_however_the_command_is_started(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    seen = {}

    def run(_command, *, env, **_options):
        seen.update(env)
        return subprocess.CompletedProcess([], 0, "{}", "")

    monkeypatch.setattr(harness.subprocess, "run", run)
    harness.apart({"rates": True})
    assert seen["OMP_NUM_THREADS"] == seen["MKL_NUM_THREADS"] == "1"


@pytest.mark.parametrize("sweep", scaling.SWEEPS)
def test_scaling_points(sweep):
    found = [scaling.point(sweep, x) for x in scaling.SWEEPS[sweep][:1]]
    assert found[0]["seconds"] > 0
    assert {s.split(", ")[1] for s in scaling.SWEEPS} == {"N", "d", "K", "cells"}


def test_slopes_are_exponents():
    x = pd.Series([1.0, 2.0, 4.0])
    table = pd.DataFrame({"sweep": "a", "x": x, "seconds": 3 * x**2})
    assert scaling.slopes(table)["a"] == pytest.approx(2)


def test_time_of_a_notebook_is_split_by_what_its_cells_use(tmp_path):
    cells = [
        ("from nclib.deep import train\nfrom nclib.plots import multi_loss as plots", 2.0),
        ("from nclib.ufm import solve", 1.0),
        ("found = solve.minimize(f, x)", 5.0),
        ("found = train.grid(build, cells, data, recipe)", 7.0),
        ("run.figure(plots.curves(found), 'a', found)", 0.5),
    ]
    content = {
        "cells": [
            {"cell_type": "code", "source": [s], "metadata": {"papermill": {"duration": t}}}
            for s, t in cells
        ],
        "metadata": {"papermill": {"duration": 18.5}},
    }
    folder = tmp_path / "runs" / "quick" / "01_a"
    folder.mkdir(parents=True)
    (folder / "notebook.ipynb").write_text(json.dumps(content))
    (found,) = notebooks.split(out=tmp_path).to_dict("records")
    want = {"start": 3.0, "imports": 3.0, "theory": 5.0, "training": 7.0, "figures": 0.5}
    assert found == {"notebook": "01_a"} | want


def test_rows_not_measured_keep_their_numbers(tmp_path):
    line = dict.fromkeys(report.COLUMNS, 1.23456789)
    old = pd.DataFrame([line | {"row": "b", "what": "B"}, line | {"row": "gone", "what": "G"}])
    report.store_rows(tmp_path, old, ["a", "b", "gone"])
    new = pd.DataFrame([line | {"row": "a", "what": "A"}])
    report.store_rows(tmp_path, new, ["a", "b"])
    found = report.load(tmp_path, "rows")
    assert found["row"].tolist() == ["a", "b"]
    assert tuple(found.columns) == report.COLUMNS
    assert found["ours_s"].tolist() == [1.235, 1.235]


def test_a_row_without_a_goal_misses_none(tmp_path):
    side = {"seconds": [1.0], "memory": 0.0, "values": {"a": 1.0}, "load": 0.0}
    side |= {"bytes": 0.0, "flops": 0.0, "rate": "single"}
    rates = {"bandwidth": 1e10, "single": 1e11}

    def missed(order, *rows):
        lines = [harness.table_row(row, {"ours": side, "baseline": side}, rates) for row in rows]
        return report.missed(report.store_rows(tmp_path, pd.DataFrame(lines), order)).tolist()

    free = harness.Row("free", "", dict, {}, {})
    slow = harness.Row("slow", "", dict, {}, {}, goal=2.0)
    assert missed(["free"], free) == []
    assert missed(["free", "slow"], slow) == ["slow"]
    assert missed(["free", "slow"], free) == ["slow"]  # the stored line is seen again


def test_a_profile_names_the_costliest_operators():
    product = torch.randn(400, 400)
    task = harness.Task(lambda: {"a": float((product @ product).sum())}, dict)
    row = harness.Row("product", "one product", lambda: task, {}, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = harness.profile(row, most=1000)
        assert len(harness.profile(row, most=2)) == 2
    # Which of them took longer is the machine's business: a thread may wait for its turn in any.
    calls = {line["operator"]: line["calls"] for line in found}
    assert calls["mm"] == calls["sum"] == 1
    seconds = [line["seconds"] for line in found]
    assert seconds == sorted(seconds, reverse=True)
    assert [line["share"] for line in found] == pytest.approx([x / sum(seconds) for x in seconds])
    assert tuple(found[0]) == report.PROFILE


def test_rows_that_miss_a_goal_are_profiled(tmp_path):
    lines = [{"row": "a", "operator": "mm", "calls": 3, "seconds": 0.5, "share": 0.62}]
    report.store_profiles(tmp_path, [lines])
    assert "| `a` | mm (3, 62 %) |" in report.markdown(tmp_path)
    report.store_profiles(tmp_path, [])
    assert report.markdown(tmp_path) == ""


def test_the_readme_holds_the_stored_table():
    if not (report.RESULTS / "rows.csv").exists():
        pytest.skip("make bench has not been run")
    text = report.README.read_text(encoding="utf-8")
    shown = text.split(report.START)[1].split(report.END)[0].strip()
    assert shown == report.markdown()
    stored = report.load(report.RESULTS, "rows")
    assert tuple(stored.columns) == report.COLUMNS
    assert stored["row"].tolist() == list(ROWS)
    assert (stored["difference"] <= stored["tolerance"]).all()
    assert (report.RESULTS / "benchmarks.png").stat().st_size < 200_000


@pytest.mark.slow
def test_unknown_rows_are_named():
    command = [sys.executable, "-m", "tests.benchmarks", "nonsense"]
    pipes = {"capture_output": True, "text": True, "timeout": 240}
    found = subprocess.run(command, cwd=harness.ROOT, **pipes)
    assert found.returncode == 2
    assert found.stderr.startswith("benchmarks: no row nonsense")
