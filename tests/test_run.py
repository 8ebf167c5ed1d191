"""`make test` reports every part, and fails if any of them does."""

import sys
import tomllib

import pytest

from tests import run


def says(text, code=0):
    return [sys.executable, "-c", f"import sys; print({text!r}); sys.exit({code})"]


GOOD = ("good", says("5 passed, 2 skipped, 1 warning in 3.21s"))


@pytest.mark.parametrize(
    ("command", "line", "failed"),
    [
        (says("All checks passed!"), "x: ok", 0),
        (says("Found 3 errors.", 1), "x: 3 failed", 3),
        (says("2 failed, 7 passed, 1 error in 3s", 1), "x: 7 passed, 3 failed", 3),
        (says("7 passed in 9s", 3), "x: 7 passed, 1 failed", 1),  # a plugin crashed afterwards
        (says("", 137), "x: 1 failed", 1),
        ("failed, they exclude each other", "x: failed, they exclude each other", 1),
        ("skipped, no network", "x: skipped, no network", 0),
    ],
)
def test_a_line_per_part_and_a_total(capfd, command, line, failed):
    code = run.main([GOOD, ("x", command), GOOD])
    lines = capfd.readouterr().out.splitlines()
    assert lines[-4:-1] == ["good: 5 passed, 2 skipped", line, "good: 5 passed, 2 skipped"]
    passed = 10 + 7 * ("7 passed" in line)
    assert lines[-1] == f"total: {passed} passed, {failed} failed, 4 skipped"
    assert code == (failed > 0)


def test_the_environment_of_a_part_reaches_it(capfd):
    script = "import os; print(os.environ['OPENBLAS_CORETYPE'])"
    assert run.main([("x", [sys.executable, "-c", script], run.HASWELL)]) == 0
    assert "Haswell" in capfd.readouterr().out.splitlines()


def test_every_requirement_has_a_lower_bound_to_be_tried():
    project = tomllib.loads((run.ROOT / "pyproject.toml").read_text())["project"]
    needs = project["dependencies"] + project["optional-dependencies"]["test"]
    assert run.oldest(["torch>=2.11,<3", "seaborn>=0.13.2"]) == [
        "torch==2.11.*",
        "seaborn==0.13.2.*",
    ]
    assert all("==" in pin for pin in run.oldest(needs))


def test_consecutive_turns_try_every_notebook(monkeypatch):
    monkeypatch.setattr(run, "install_oldest", lambda: "skipped, not asked for")
    tried = set()
    for turn in range(5, 5 + len(run.BOOKS)):
        monkeypatch.setattr(run, "commits", lambda turn=turn: turn)
        (command,) = (part[1] for part in run.test_other() if "--nbval" in part[1])
        tried |= set(command) & set(run.BOOKS)
    assert tried == set(run.BOOKS)
