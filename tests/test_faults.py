"""What can break on a machine: after each fault a clear message, a rerun, the same tables."""

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import time

import psutil
import pytest

from nclib import checks, claims, runs

pytestmark = pytest.mark.slow
RUN = ("run", "90")


@pytest.fixture(scope="module")
def undisturbed(shared_tiny):
    """The folder of a run that nothing disturbed."""
    done = shared_tiny(*RUN, "--out", shared_tiny.out)
    assert done.returncode == 0, done.stdout + done.stderr
    return shared_tiny.out


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
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def completes(tiny, out, undisturbed, *arguments):
    """A rerun succeeds and ends with the files of the undisturbed run; returns what it said."""
    done = tiny(*RUN, *arguments, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tiny.results(out) == tiny.results(undisturbed)
    return done.stdout


# Disks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 64])
def test_a_full_disk(shared_tiny, undisturbed, disk, room):
    """Full from the start, and full in the middle of the notebook."""
    folder = disk("size=256k")
    ballast = folder / "ballast"
    with (
        open(ballast, "wb", buffering=0) as file,
        pytest.raises(OSError, match="No space left"),
    ):
        while True:
            file.write(b"0" * 1024)
    with open(ballast, "r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - room * 1024))
    out = folder / "out"
    failed = shared_tiny(*RUN, "--out", out)
    assert failed.returncode == 1
    assert "No space left on device" in failed.stdout
    assert room or f"no space is left for {out}: free some and run again" in failed.stdout
    assert not list(out.glob("figures/*/*/manifest.json"))
    assert "Traceback" not in failed.stdout + failed.stderr
    assert not [p for p in out.rglob("*.tmp") if "staging" not in str(p)]
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    completes(shared_tiny, out, undisturbed)


def test_files_that_may_not_grow(shared_tiny, undisturbed, tmp_path):
    """A quota, where mounting is not allowed: no file above 3 kB."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    failed = shared_tiny(*RUN, "--out", tmp_path / "out", preexec_fn=limit)
    assert failed.returncode == 1
    assert "File too large" in failed.stdout
    completes(shared_tiny, tmp_path / "out", undisturbed)


def test_a_read_only_output_folder(shared_tiny, undisturbed, disk):
    folder = disk("size=64m,ro")
    failed = shared_tiny(*RUN, "--out", folder)
    assert failed.returncode == 1
    line = failed.stdout.strip()
    assert len(line.splitlines()) == 1
    assert "Read-only file system" in line
    assert f"{folder} cannot be written: choose another folder with --out DIR" in line
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    completes(shared_tiny, folder, undisturbed)


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
    }
    assert not list(folder.glob("checkpoints/.*"))
    text = (damaged / "runs/quick/90_tiny/notebook.ipynb").read_text()
    assert "is damaged" in text
    assert "training starts from the beginning" in text


def test_a_truncated_data_file_is_refused(shared_tiny, tmp_path):
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = random.Random(0)
    for part, n in (("train", 40), ("t10k", 20)):
        images = struct.pack(">IIII", 0x803, n, 28, 28) + generator.randbytes(n * 784)
        labels = struct.pack(">II", 0x801, n) + bytes(i % 10 for i in range(n))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    environment = shared_tiny.environment | {"NCLIB_DATA": str(tmp_path / "data")}
    call = lambda out: shared_tiny(
        *RUN, "-p", "mode=data", "--out", tmp_path / out, env=environment
    )
    good = call("undisturbed")
    assert good.returncode == 0, good.stdout
    path = raw / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:20000])
    failed = call("out")
    assert failed.returncode == 1
    assert "cell 5: InputError: data set fashion_mnist is damaged" in failed.stdout
    path.write_bytes(whole)
    mended = call("out")
    assert mended.returncode == 0, mended.stdout
    one, two = tmp_path / "undisturbed", tmp_path / "out"
    assert shared_tiny.results(one) == shared_tiny.results(two)
    sums = [json.loads(next(f.glob("figures/*/*/manifest.json")).read_text()) for f in (one, two)]
    assert sums[0]["data"] == sums[1]["data"]
    assert sums[0]["data"].keys() == {"fashion_mnist", "noise"}


# Processes ----------------------------------------------------------------------------------------


def test_two_drivers_in_one_folder(shared_tiny, undisturbed, tmp_path):
    """The second waits for the first and takes its result."""
    arguments = (*RUN, "-p", "pause=0.3", "--out", tmp_path)
    first = shared_tiny(*arguments, background=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/90_tiny/checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = shared_tiny(*arguments)
    output, _ = first.communicate(timeout=100)
    assert first.returncode == second.returncode == 0, output + second.stdout
    assert "done" in output
    assert "waits: process" in second.stdout
    assert "is working in" in second.stdout
    assert "unchanged" in second.stdout
    strip = lambda found: sorted((name.split("/")[-1], data) for name, data in found.items())
    assert strip(shared_tiny.results(tmp_path)) == strip(shared_tiny.results(undisturbed))


def test_the_lock_of_a_dead_process_holds_nobody_up(shared_tiny, undisturbed, damaged):
    (damaged / "runs/quick/90_tiny/.lock").write_text("process 1 on elsewhere")
    assert "unchanged" in completes(shared_tiny, damaged, undisturbed)


def test_a_clock_that_goes_backwards(shared_tiny, undisturbed, tmp_path):
    """Every look at the calendar is an hour before the last one, in driver, worker and kernel."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "start, true, looks = time.time(), time.time, 0\n"
        "def backwards():\n"
        "    global looks\n"
        "    looks += 1\n"
        "    return start - 3600 * looks\n"
        "time.time = backwards\n"
    )
    environment = shared_tiny.environment | {"PYTHONPATH": str(tmp_path)}
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


@pytest.mark.parametrize(
    ("mode", "message"),
    [("exit", "the notebook stopped before its last cell"), ("kill", "the kernel died")],
)
def test_a_notebook_that_only_looks_complete(tiny, mode, message):
    """``sys.exit(0)`` is no success, a killed kernel neither; the cell mended, all is well."""
    source = (tiny.books / "90_tiny.ipynb").read_text()
    (tiny.books / "90_tiny.ipynb").write_text(source.replace(r"str = \"ok\"", rf"str = \"{mode}\""))
    failed = tiny(*RUN, "--out", tiny.out)
    assert failed.returncode == 1
    assert message in failed.stdout
    assert not list(tiny.out.glob("figures/*/*"))
    assert (tiny.out / "runs/quick/90_tiny/notebook.failed.ipynb").exists()
    (tiny.books / "90_tiny.ipynb").write_text(source)
    mended = tiny(*RUN, "--out", tiny.out)
    assert mended.returncode == 0, mended.stdout
    assert not (tiny.out / "runs/quick/90_tiny/notebook.failed.ipynb").exists()


def test_an_interrupt_starts_nothing_more(shared_tiny, tmp_path):
    """Ctrl-C ends driver, worker and kernel; the rest of the sweep is not begun."""
    arguments = ("sweep", "90", "-p", "K=2,3,5", "-p", "pause=1", "-p", "epochs=60")
    arguments += ("--out", tmp_path)
    driver = shared_tiny(*arguments, background=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/*/checkpoints/*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) >= 2
    os.killpg(driver.pid, signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    assert "interrupted; the same command goes on where it stopped" in output
    assert "Traceback" not in output
    assert not psutil.wait_procs(family, timeout=15)[1]
    assert len(list(tmp_path.glob("runs/*/90_tiny"))) == 1


def test_claims_that_are_no_list_are_damaged(tmp_path):
    for text in (b"{}", b"\xff\xfe\x00", b""):
        (tmp_path / "claims.json").write_bytes(text)
        with pytest.raises(checks.InputError, match="missing or damaged"):
            claims.read(tmp_path / "claims.json")
