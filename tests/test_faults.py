"""What can break on a machine: after each fault a clear message, a rerun, the same tables."""

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess

import pandas as pd
import psutil
import pytest

from nclib import checks, runs
from nclib.deep import data
from tests.conftest import contents, eventually

pytestmark = pytest.mark.slow
RUN = ("run", "90")


@pytest.fixture
def damaged(undisturbed, tmp_path):
    """A copy of the undisturbed run, to be damaged."""
    shutil.copytree(undisturbed, tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def disk(tmp_path):
    """``disk(options)`` mounts a small file system; skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, timeout=60)


def completes(tiny, out, undisturbed, *arguments):
    """A rerun succeeds and ends with the files of the undisturbed run; returns what it said."""
    done = tiny(*RUN, *arguments, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tiny.results(out) == tiny.results(undisturbed)
    return done.stdout


# Disks --------------------------------------------------------------------------------------------


def test_a_full_and_a_read_only_disk(shared_tiny, undisturbed, disk):
    """Full from the start, then in the middle of the notebook, then read-only; then all is well."""
    folder = disk("size=256k")
    remount = lambda options: subprocess.run(
        ["mount", "-o", f"remount,{options}", str(folder)], check=True, timeout=60
    )
    ballast = folder / "ballast"
    with (
        open(ballast, "wb", buffering=0) as file,
        pytest.raises(OSError, match="No space left"),
    ):
        while True:
            file.write(b"0" * 1024)
    out = folder / "out"
    for room in (0, 64):
        with open(ballast, "r+b") as file:
            file.truncate(max(0, ballast.stat().st_size - room * 1024))
        failed = shared_tiny(*RUN, "--out", out)
        assert failed.returncode == 1
        assert "No space left on device" in failed.stdout
        assert room or f"no space is left for {out}: free some and run again" in failed.stdout
        assert not list(out.glob("figures/*/*/manifest.json"))
        assert "Traceback" not in failed.stdout + failed.stderr
        assert not [p for p in out.rglob("*.tmp") if "staging" not in str(p)]
    remount("size=64m,ro")
    for place in (out, folder / "new"):
        failed = shared_tiny(*RUN, "--out", place)
        assert failed.returncode == 1
        line = failed.stdout.strip()
        assert len(line.splitlines()) == 1
        assert "Read-only file system" in line
        assert f"{place} cannot be written: choose another folder with --out DIR" in line
    remount("rw")
    completes(shared_tiny, out, undisturbed)


def test_files_that_may_not_grow(shared_tiny, undisturbed, tmp_path):
    """A quota, where mounting is not allowed: no file above 3 kB."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    failed = shared_tiny(*RUN, "--out", tmp_path / "out", preexec_fn=limit)
    assert failed.returncode == 1
    assert "File too large" in failed.stdout
    completes(shared_tiny, tmp_path / "out", undisturbed)


# Damaged files ------------------------------------------------------------------------------------


def test_damaged_results_are_noticed_and_made_again(shared_tiny, undisturbed, damaged):
    job = runs.job("90", out=damaged)
    halved = lambda data: data[: len(data) // 2]
    flipped = lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]  # one bit
    damages = [("notebook.ipynb", halved), ("manifest.json", halved)]
    damages += [
        (name, damage)
        for name in ("01_loss.csv", "01_loss.png", "claims.json")
        for damage in (flipped, halved)
    ]
    for name, damage in damages:
        path = next(damaged.glob(f"*/quick/90_tiny/{name}"))
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        assert runs.finished(job) is None, name
        path.unlink()
        assert runs.finished(job) is None, name
        path.write_bytes(whole)
        assert runs.finished(job)
    path.write_bytes(halved(whole))  # claims.json
    for command in ("claims", "report"):
        shown = shared_tiny(command, "--out", damaged)
        assert shown.returncode == 2
        assert "claims.json is missing or damaged" in shown.stderr
        assert len(shown.stderr.strip().splitlines()) == 1
    with pytest.raises(checks.InputError, match="`nclib run` makes this run again"):
        runs.load(damaged)
    assert "done" in completes(shared_tiny, damaged, undisturbed)
    assert "unchanged" in completes(shared_tiny, damaged, undisturbed)


def test_a_damaged_checkpoint_is_moved_aside_and_leftovers_go(shared_tiny, undisturbed, damaged):
    folder = damaged / "runs/quick/90_tiny"
    path = next(folder.glob("checkpoints/*.pt"))
    path.write_bytes(path.read_bytes()[:500])
    (folder / "staging-old").mkdir()
    (folder / "checkpoints" / ".net.pt.0123.tmp").write_bytes(b"half a checkpoint")
    (damaged / "figures/quick/90_tiny/no_longer_made.png").write_bytes(b"")
    completes(shared_tiny, damaged, undisturbed, "--force")
    assert path.with_suffix(".corrupt").exists()
    assert {p.name for p in folder.iterdir()} == {
        ".lock",
        "checkpoints",
        "log.txt",
        "notebook.ipynb",
        "reproduction.json",
    }
    assert not list(folder.glob("checkpoints/.*"))
    text = (damaged / "runs/quick/90_tiny/notebook.ipynb").read_text()
    assert "is damaged" in text
    assert "training starts from the beginning" in text


def test_a_truncated_data_file_is_refused_until_it_is_mended(shared_tiny, tmp_path, monkeypatch):
    """In a sweep, whose table lacks the failed run until then."""
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = random.Random(0)
    for part, n in (("train", 40), ("t10k", 20)):
        images = struct.pack(">IIII", 0x803, n, 28, 28) + generator.randbytes(n * 784)
        labels = struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    environment = shared_tiny.environment | {"NCLIB_DATA": str(tmp_path / "data")}
    out = tmp_path / "out"
    call = lambda: shared_tiny(
        *("sweep", "90", "-p", "mode=ok,data", "--jobs", "2", "--out", out), env=environment
    )
    path = raw / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:20000])
    failed = call()
    assert failed.returncode == 1
    assert "1 run(s) failed" in failed.stderr
    assert "cell 5: InputError: data set fashion_mnist is damaged" in failed.stdout
    table = next(out.glob("runs/sweep-*/sweep.csv"))
    assert set(pd.read_csv(table)["p.mode"]) == {"ok"}
    path.write_bytes(whole)
    mended = call()
    assert mended.returncode == 0, mended.stdout
    assert mended.stdout.count("done in") == mended.stdout.count("unchanged") == 1
    assert set(pd.read_csv(table)["p.mode"]) == {"ok", "data"}
    # `mode` decides no number: failing at first has left no trace in the results.
    one, two = out.glob("figures/*/90_tiny")
    assert contents(one) == contents(two)
    monkeypatch.setenv("NCLIB_DATA", str(tmp_path / "data"))
    data.load("fashion_mnist")
    manifest = json.loads(next(out.glob("figures/quick-*/*/manifest.json")).read_text())
    assert manifest["data"].keys() == {"fashion_mnist", "noise"}
    assert manifest["data"]["fashion_mnist"] == data.used()["fashion_mnist"]


# Processes ----------------------------------------------------------------------------------------


def test_two_drivers_in_one_folder(shared_tiny, undisturbed, tmp_path):
    """The second waits for the first and takes its result."""
    arguments, slow = (*RUN, "--out", tmp_path), shared_tiny.environment | {"TINY_PAUSE": "0.3"}
    first = shared_tiny(*arguments, background=True, env=slow)
    eventually(lambda: next(tmp_path.glob("runs/*/90_tiny/checkpoints/*")))
    second = shared_tiny(*arguments, env=slow)
    output, _ = first.communicate(timeout=100)
    assert first.returncode == second.returncode == 0, output + second.stdout
    assert "done" in output
    assert "waits: process" in second.stdout
    assert "is working in" in second.stdout
    assert "unchanged" in second.stdout
    assert shared_tiny.results(tmp_path) == shared_tiny.results(undisturbed)


def test_the_lock_of_a_dead_process_holds_nobody_up(shared_tiny, undisturbed, damaged):
    (damaged / "runs/quick/90_tiny/.lock").write_text("process 1 on elsewhere")
    assert "unchanged" in completes(shared_tiny, damaged, undisturbed)


def test_a_clock_that_goes_backwards(shared_tiny, undisturbed, tmp_path):
    """Every look at the calendar is an hour before the last one, in driver and kernel."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "start, true, looks = time.time(), time.time, 0\n"
        "def backwards():\n"
        "    global looks\n"
        "    looks += 1\n"
        "    return start - 3600 * looks\n"
        "time.time = backwards\n"
    )
    ours = os.environ.get("PYTHONPATH", "")
    environment = shared_tiny.environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ours}"}
    out = tmp_path / "out"
    for expected in ("done", "unchanged"):
        done = shared_tiny(*RUN, "--out", out, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert expected in done.stdout
    for path in out.rglob("*"):
        os.utime(path, (0, 0))
    assert "unchanged" in completes(shared_tiny, out, undisturbed)
    manifest = json.loads((out / "figures/quick/90_tiny/manifest.json").read_text())
    assert 0 < manifest["seconds"] < 600


def test_an_interrupt_starts_nothing_more(shared_tiny, tmp_path):
    """Ctrl-C ends driver and kernel; the rest of the sweep is not begun."""
    arguments = ("sweep", "90", "-p", "K=2,3,5", "-p", "pause=1", "-p", "epochs=60")
    arguments += ("--out", tmp_path)
    # What was started by `nohup … &` ignores interrupts, and so does all that it starts.
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    options = {"start_new_session": True, "preexec_fn": listen}
    driver = shared_tiny(*arguments, background=True, **options)
    eventually(lambda: next(tmp_path.glob("runs/*/*/checkpoints/*")))
    family = psutil.Process(driver.pid).children(recursive=True)
    assert family
    os.killpg(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    assert "interrupted; the same command goes on where it stopped" in output
    assert "Traceback" not in output
    assert not psutil.wait_procs(family, timeout=15)[1]
    assert len(list(tmp_path.glob("runs/*/90_tiny"))) == 1
