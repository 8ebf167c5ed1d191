"""Kill -9 at random moments, rerun, again and again: nothing is lost, nothing differs.

The short form runs in ``make test``.  ``make soak`` is the long one; ``NCLIB_SOAK_KILLS`` and
``NCLIB_SOAK_SEED`` set the number of kills and the schedule.
"""

import contextlib
import os
import random
import signal
import time

import psutil
import pytest

from nclib import runs
from tests.conftest import SWEEP, Cluster

pytestmark = pytest.mark.slow
KILLS = os.environ.get("NCLIB_SOAK_KILLS")  # per engine
SEED = int(os.environ.get("NCLIB_SOAK_SEED", "20260"))
PAUSE = {"TINY_PAUSE": "0.4"}


def kernels(process):
    """The kernels below ``process``."""
    found = []
    with contextlib.suppress(psutil.Error):  # it has just ended
        for child in psutil.Process(process.pid).children(recursive=True):
            found += [child] * ("ipykernel" in " ".join(child.cmdline()))
    return found


def kill(process):
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_a_kernel(ancestors, driver, chance):
    """Kill a kernel as soon as there is one; whether there was."""
    while driver.poll() is None:
        if found := [kernel for ancestor in ancestors for kernel in kernels(ancestor)]:
            return kill(chance.choice(found))
        time.sleep(0.1)
    return False


def finished_runs_are_whole(out):
    for path in out.glob("figures/*/*/manifest.json"):
        manifest = runs.files.read_json(path)
        for name, digest in manifest["files"].items():
            assert runs.files.digest(path.with_name(name)) == digest


class Local:
    """Victims of a sweep on this machine: the driver, a kernel."""

    victims = ("driver", "kernel")
    options = ("--jobs", "2")
    kills = int(KILLS or 2)

    def __init__(self, *_):
        pass

    def hit(self, driver, victim, chance):
        """Kill one; returns whether there was one."""
        if victim == "driver":
            orphans = kernels(driver)
            hit = kill(driver)
            driver.wait(60)
            # Kernels look for their driver once a second.
            assert not psutil.wait_procs(orphans, timeout=15)[1], "kernels outlive their driver"
            return hit
        return kill_a_kernel([driver], driver, chance)

    def close(self):
        pass


class Dask:
    """Victims of a sweep on a cluster: the driver, a cluster's worker, a kernel.

    Jobs outlive their driver here: they end on their workers, and a rerun takes their results.
    """

    victims = ("driver", "cluster worker", "kernel")
    kills = int(KILLS or 1)  # tests/test_cluster.py kills a worker at its work

    def __init__(self, tiny, folder):
        folder.mkdir()
        self.cluster = Cluster(folder, tiny.environment | PAUSE)
        self.options = ("--scheduler", self.cluster.address)

    def hit(self, driver, victim, chance):
        if victim == "driver":
            hit = kill(driver)
            driver.wait(60)
            return hit
        if victim == "kernel":
            return kill_a_kernel(self.cluster.workers, driver, chance)
        place = chance.randrange(len(self.cluster.workers))
        worker = self.cluster.workers[place]
        kill(worker)
        worker.wait(60)
        self.cluster.workers[place] = self.cluster.worker()
        return True

    def close(self):
        self.cluster.close()


@pytest.mark.parametrize("kind", [Local, Dask])
def test_random_kills_lose_nothing(shared_tiny, undisturbed_sweep, tmp_path, kind):
    chance = random.Random(SEED)
    engine = kind(shared_tiny, tmp_path / "cluster")
    kills, whole = dict.fromkeys(kind.victims, 0), 0

    def start(out):
        environment = shared_tiny.environment | PAUSE
        options = (*engine.options, "--out", out)
        return shared_tiny(*SWEEP, *options, background=True, env=environment)

    def complete(driver, out):
        output, _ = driver.communicate(timeout=600)
        if driver.returncode == 0:
            assert shared_tiny.results(out) == shared_tiny.results(undisturbed_sweep)
            return True
        assert driver.returncode == 1, output
        assert "Traceback" not in output
        return False

    try:
        while sum(kills.values()) < kind.kills:
            out = tmp_path / f"out{whole}"
            driver = start(out)
            # Every victim has its turn; the moment is anywhere from the start to the last figure.
            victim = min(kind.victims, key=kills.get)
            time.sleep(chance.uniform(0.5, 9.0))
            if driver.poll() is None:
                kills[victim] += engine.hit(driver, victim, chance)
                finished_runs_are_whole(out)
            if driver.poll() is None or driver.returncode >= 0:
                whole += complete(driver, out)
            else:
                driver.stdout.close()
        out = tmp_path / f"out{whole}"
        assert complete(start(out), out)
        print(f"{kind.__name__}: kills {kills}, {whole + 1} sweeps completed")
    finally:
        engine.close()
