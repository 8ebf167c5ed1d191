"""Run parts of the tests, each even if another one fails, and end with one line per part.

``python -m tests.run test`` (or ``test-fast``, ``test-other``), as the Makefile calls it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = ROOT / ".venv-oldest"
BOOKS = sorted(path.relative_to(ROOT) for path in ROOT.glob("notebooks/[0-9]*.ipynb"))
# What has to hold on any machine, in minutes.
EXACT = ["-m", "not slow", "tests/ufm", "tests/metrics", "tests/results"]
EXACT += [f"--ignore-glob=*/test_{what}.py" for what in ("nets", "training", "data", "figures")]
HASWELL = {
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "OMP_NUM_THREADS": "2",
}


def pytest(*arguments, python=sys.executable):
    # In the order of their names: xdist would start with the files that hold the most tests, and
    # the longest ones, which hold few, would come last.
    options = ("--dist", "loadfile", "--no-loadscope-reorder")
    return [python, "-m", "pytest", "-n", os.environ.get("JOBS", "2"), *options, *arguments]


def test():
    yield "ruff", [sys.executable, "-m", "ruff", "check", "."]
    yield "unit and end-to-end tests", pytest("tests")
    yield "notebooks (nbval)", pytest("--nbval", *sorted(BOOKS, key=seconds, reverse=True))


def test_fast():
    yield "tests that are not slow", pytest("-m", "not slow", "tests")


def test_other():
    book = BOOKS[commits() % len(BOOKS)]
    name = f"notebook {book.stem[:2]} without vector units (nbval)"
    yield name, pytest("--nbval", book), {"ATEN_CPU_CAPABILITY": "default"}
    if problem := install_oldest():
        yield "oldest allowed versions", problem
        yield "as on a Haswell, two threads", pytest(*EXACT), HASWELL
        return
    # Both at once, for the time they take: a failure is one of either.
    python, ours = str(OLDEST / "bin/python"), {"PYTHONPATH": str(ROOT)}
    name = "oldest allowed versions, as on a Haswell, two threads"
    yield name, pytest(*EXACT, python=python), ours | HASWELL
    with tempfile.TemporaryDirectory() as out:
        command = [python, "-m", "nclib", "run", "00", "--out", out]
        yield "oldest allowed versions, notebook 00", command, ours


def seconds(book):
    """What the stored run of a notebook took: two at a time, the longest should not come last."""
    manifest = ROOT / "figures" / "quick" / book.stem / "manifest.json"
    return json.loads(manifest.read_text(encoding="utf-8"))["seconds"]


def commits():
    """Number of commits of this checkout, which says whose turn it is; 0 where git does not."""
    command = ["git", "rev-list", "--count", "HEAD"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        return int(found.stdout)
    except (OSError, ValueError):
        return 0


def oldest(needs):
    """Every requirement at the lower bound that it declares: ``a>=1.2,<3`` is ``a==1.2.*``."""
    return [re.sub(r">=([\d.]+).*", r"==\1.*", need) for need in needs]


def install_oldest():
    """An environment of the oldest allowed versions, made once; returns why there is none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = oldest(project["dependencies"] + project["optional-dependencies"]["test"])
    done = OLDEST / "installed.txt"
    if done.exists() and done.read_text() == "\n".join(pins):
        return None
    pip = [OLDEST / "bin/python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    pip.append("--disable-pip-version-check")  # an error is the last line
    for command in ([sys.executable, "-m", "venv", "--clear", OLDEST], [*pip, *pins]):
        called = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if called.returncode:
            error = (called.stderr.strip() or "?").splitlines()[-1]
            # Bounds that exclude each other are our fault, whatever this machine offers.
            verdict = "failed" if "ResolutionImpossible" in called.stderr else "skipped"
            return f"{verdict}, they cannot be installed: {error}"
    done.write_text("\n".join(pins))
    return None


def run(name, command, environment=None):
    """Run a part and show what it says; returns its line and its counts."""
    if isinstance(command, str):
        return f"{name}: {command}", {"failed": int(command.startswith("failed"))}
    print(f"\n=== {name} ===", flush=True)
    environment = os.environ | (environment or {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        last = ""
        for last in process.stdout:
            print(last, end="", flush=True)
    # pytest's last line: "1 failed, 2316 passed, 34 skipped, 2 errors in 471.18s (0:07:51)"
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", last)
    counts = {kind: int(number) for number, kind in found}
    counts["failed"] = counts.get("failed", 0) + counts.pop("error", 0)
    if process.returncode and not counts["failed"]:
        counts["failed"] = 1  # ruff, a crash, no tests at all
    kinds = ("passed", "failed", "skipped")
    text = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts.get(kind)) or "ok"
    return f"{name}: {text}", counts


def main(parts):
    """Exit code 1 if any part failed."""
    results = [run(*part) for part in parts]
    print("\n" + "\n".join(line for line, _ in results))
    kinds = ("passed", "failed", "skipped")
    total = {kind: sum(counts.get(kind, 0) for _, counts in results) for kind in kinds}
    print("total: " + ", ".join(f"{number} {kind}" for kind, number in total.items()))
    return int(total["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main({"test": test, "test-fast": test_fast, "test-other": test_other}[sys.argv[1]]()))
