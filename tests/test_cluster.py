"""Sweeps on a real Dask cluster of separate processes: same bytes, dead workers, clear errors."""

import contextlib
import os
import signal
import sys
import time
from concurrent.futures import CancelledError, Future

import pytest

from nclib import checks, runs
from tests.conftest import SWEEP, Cluster, eventually

pytest.importorskip("distributed", reason="needs distributed (extra `cluster`)")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, shared_tiny):
    environment = shared_tiny.environment | {"TINY_PAUSE": "0.5"}
    found = Cluster(tmp_path_factory.mktemp("cluster"), environment)
    yield found
    found.close()


def test_the_cluster_gives_the_bytes_of_the_serial_sweep_and_repeats_nothing(
    cluster, undisturbed_sweep, shared_tiny, tmp_path
):
    # A relative folder: workers have another working directory than the driver.
    arguments = (*SWEEP, "--scheduler", cluster.address, "--out", "out")
    (tmp_path / "driver").mkdir()
    done = shared_tiny(*arguments, cwd=tmp_path / "driver")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done in") == 2
    results = shared_tiny.results
    assert results(tmp_path / "driver" / "out") == results(undisturbed_sweep)
    again = shared_tiny(*arguments, cwd=tmp_path / "driver")
    assert again.stdout.count("unchanged") == 2
    failing = shared_tiny(
        *("run", "90", "-p", "mode=raise", "--scheduler", cluster.address, "--out", "out"),
        cwd=tmp_path / "driver",
    )
    assert failing.returncode == 1
    assert "cell 5: ValueError: asked to fail" in failing.stdout


def test_equal_calls_are_separate_jobs(cluster):
    with runs.engine(scheduler=cluster.address) as submit:
        first, second = (submit(time.monotonic_ns) for _ in range(2))
        assert first.result(60) != second.result(60)


def test_the_job_of_a_dead_worker_ends_on_another_one(
    cluster, undisturbed_sweep, shared_tiny, tmp_path
):
    out = tmp_path / "out"
    options = ("--scheduler", cluster.address, "--out", out)
    driver = shared_tiny(*SWEEP, *options, background=True)
    victim = cluster.busy(out)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(60)
    output, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, output
    assert output.count("done in") == 2
    assert shared_tiny.results(out) == shared_tiny.results(undisturbed_sweep)


def test_a_lost_scheduler_is_one_clear_line_per_job(shared_tiny, tmp_path):
    cluster = Cluster(tmp_path, shared_tiny.environment, workers=1)
    out = tmp_path / "out"
    slow = ("-p", "pause=30", "--scheduler", cluster.address)
    driver = shared_tiny(*SWEEP, *slow, "--out", out, background=True)
    eventually(lambda: next(out.glob("runs/*/*/.lock")).read_text()[7])
    cluster.close()
    output, _ = driver.communicate(timeout=100)
    assert driver.returncode == 1, output
    assert output.count("failed: the connection to the scheduler was lost; run the same") == 2


def test_without_a_scheduler_or_dask_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(runs, "CONNECT_WITHIN", 0.5)
    for address in ("tcp://127.0.0.1:9", "nonsense://x:1", "x"):
        with (
            pytest.raises(checks.InputError, match="no Dask scheduler answers at .*dask scheduler"),
            runs.engine(scheduler=address),
        ):
            pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(checks.InputError, match=r"needs Dask: pip install -e '\.\[cluster\]'"),
        runs.engine(scheduler="tcp://127.0.0.1:9"),
    ):
        pass


def test_what_is_said_of_lost_jobs():
    from distributed.scheduler import KilledWorker

    assert "every worker that tried it died" in runs._lost(KilledWorker("x", None, 3))
    assert "connection to the scheduler was lost" in runs._lost(CancelledError())
    assert runs._lost(KeyError("x")) == "KeyError: 'x'"


def test_a_result_that_is_not_in_the_drivers_folder_is_a_failure(tiny, monkeypatch, tmp_path):
    """The worker says `done`, but wrote into a folder of the same name on its own disk."""

    def submit(function, job, **options):
        future = Future()
        future.set_result(runs.Outcome(job, "done", 1.0))
        return future

    monkeypatch.setattr(runs, "engine", lambda *_: contextlib.nullcontext(submit))
    monkeypatch.setattr(runs, "ARRIVE_WITHIN", 0.1)
    job = runs.job("90", out=tmp_path)
    outcome = runs.run_all([job], scheduler="x", report=str)[0]
    assert outcome.status == "failed"
    assert "driver and workers must share that folder (--out DIR)" in outcome.message
