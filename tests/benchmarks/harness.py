"""Rows, and how one side of a row is measured: in a process of its own."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 4.0  # seconds of repetitions of one side


@dataclass(frozen=True)
class Task:
    """What a row measures, its inputs at hand.

    ``ours`` and ``baseline`` take nothing and return a dict of floats; the values they share must
    agree.  ``bytes`` and ``flops`` are the least the task can do, the latter at the machine's
    ``rate`` (of :func:`machine_rates`).  ``scale``: how often the whole task holds what
    ``baseline`` does (above 1: its time is extrapolated).  ``also``: more values of ours to
    compare, not timed.
    """

    ours: Callable
    baseline: Callable
    bytes: float = 0.0
    flops: float = 0.0
    rate: str = "single"
    scale: float = 1.0
    also: Callable = dict


@dataclass(frozen=True)
class Row:
    """One line of the table: ``prepare(**sizes) -> Task``, with ``full`` and ``toy`` sizes."""

    name: str
    what: str
    prepare: Callable
    full: dict
    toy: dict
    repeats: int = 3
    #: Of the values, relative.
    tolerance: float = 1e-6
    #: The least baseline/ours and the most ours/floor that are asked for.
    goal: float | None = None
    most: float | None = None

    def task(self, size):
        """The task at ``full`` or ``toy`` size, from the same inputs every time."""
        return self.prepare(**getattr(self, size))


class Memory:
    """Extra resident memory of a block of code, in MB; the peak, where the system can reset it."""

    def __enter__(self):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        except OSError:
            pass
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *_):
        self.extra = max(0.0, self._read("VmHWM") - self.before)

    @staticmethod
    def _read(key):
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith(key):
                    return int(line.split()[1]) / 1024
        except OSError:
            pass
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def load_average():
    """Processes that want the processor, mean of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def best_time(function, *, repeats=5, budget=20.0):
    """Times of ``repeats`` runs, fewer once ``budget`` seconds are spent."""
    times, start = [], time.perf_counter()
    while len(times) < repeats and (not times or time.perf_counter() - start < budget):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return times


def machine_rates():
    """Read bandwidth (bytes/s) and rates of a large matrix product (flops/s), one process."""
    many = torch.randn(2**26)
    rates = {"bandwidth": many.numel() * 4 / min(best_time(many.sum))}
    for name, dtype in (("single", torch.float32), ("double", torch.float64)):
        square = torch.randn(2048, 2048, dtype=dtype)
        rates[name] = 2 * 2048**3 / min(best_time(lambda m=square: m @ m))
    return rates


def measure_side(row, side, size):
    """Prepare a row and run one side of it; what a measuring process prints."""
    task = row.task(size)
    function = getattr(task, side)
    load = load_average()
    with Memory() as memory:
        begin = time.perf_counter()
        values = function()
        first = time.perf_counter() - begin
    # The first run pays for warming up; a long one needs no second.
    seconds = [first] if first > BUDGET else best_time(function, repeats=row.repeats, budget=BUDGET)
    return {
        "seconds": [s * (task.scale if side == "baseline" else 1.0) for s in seconds],
        "memory": memory.extra,
        "values": values | (task.also() if side == "ours" else {}),
        "load": load,
        "bytes": task.bytes,
        "flops": task.flops,
        "rate": task.rate,
    }


def profile(row, *, most=5):
    """Where the time of our side of a row goes: its costliest operators, a list of dicts.

    Measured by PyTorch's profiler in a second run; ``share`` is of the time of all operators.
    """
    function = row.task("full").ours
    function()
    # Nothing is lost in one cycle of recording; PyTorch 2.10 and 2.11 warn all the same.
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, acc_events=True) as found:
        function()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    costliest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:most]
    return [
        {
            "row": row.name,
            "operator": event.key.removeprefix("aten::"),
            "calls": event.count,
            "seconds": event.self_cpu_time_total / 1e6,
            "share": event.self_cpu_time_total / total,
        }
        for event in costliest
    ]


def apart(request):
    """The answer of ``python -m tests.benchmarks.one`` to a request, both JSON."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "tests.benchmarks.one", json.dumps(request)]
    # One thread, however the command was started: several of them on busy cores can make the small
    # operations of a baseline twenty times slower, which would be ours to gain.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment = os.environ | threads | {"PYTHONPATH": path}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"measuring {request} failed:\n{found.stderr}")
    return json.loads(found.stdout.splitlines()[-1])


def measure(row, size, *, rounds=1):
    """Both sides of a row, their processes in turn: side -> what :func:`measure_side` gives."""
    sides = {}
    for _ in range(rounds):
        for side in ("ours", "baseline"):
            found = apart({"row": row.name, "side": side, "size": size})
            if side in sides:
                found["seconds"] += sides[side]["seconds"]
                for key in ("memory", "load"):
                    found[key] = max(found[key], sides[side][key])
            sides[side] = found
    return sides


def disagreement(ours, baseline):
    """Largest relative difference of the values both sides give."""
    shared = ours.keys() & baseline.keys()
    gaps = (abs(ours[k] - baseline[k]) / max(abs(baseline[k]), 1e-9) for k in shared)
    return max(gaps, default=float("nan"))


def table_row(row, sides, rates):
    """One line of the results, a dict in the order of the CSV's columns.

    ``rates``: as :func:`machine_rates` gives them.  Times are the least of all runs: what the
    machine does when nothing interrupts it; ``spread`` is the median over that.
    """
    ours, baseline = sides["ours"], sides["baseline"]
    best = {side: min(found["seconds"]) for side, found in sides.items()}
    floor = max(ours["bytes"] / rates["bandwidth"], ours["flops"] / rates[ours["rate"]])
    return {
        "row": row.name,
        "what": row.what,
        "ours_s": best["ours"],
        "baseline_s": best["baseline"],
        "ratio": best["baseline"] / best["ours"],
        "goal": row.goal,
        "floor_s": floor or None,
        "over_floor": best["ours"] / floor if floor else None,
        "most": row.most,
        "ours_mb": ours["memory"],
        "baseline_mb": baseline["memory"],
        "difference": disagreement(ours["values"], baseline["values"]),
        "tolerance": row.tolerance,
        "spread": max(statistics.median(f["seconds"]) / best[s] for s, f in sides.items()),
        "load": max(ours["load"], baseline["load"]),
    }
