import random

import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from nclib import checks, claims, notebook, parameters
from nclib.plots import style


def namespace(cells=(), **changes):
    values = {name: one.default for name, one in parameters.declared("90_tiny").items()}
    return values | changes | {"In": ["", *cells]}


@pytest.fixture
def started(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv(notebook.FOLDER, str(tmp_path / "run"))
    monkeypatch.setenv(notebook.FIGURES, str(tmp_path / "figures"))
    return lambda space: notebook.start("90_tiny", space)


def test_parameters_are_checked_before_anything_runs(started):
    assert started(namespace(K=5)).parameters["K"] == 5
    with pytest.raises(checks.InputError, match="parameter K must be at least 2, got 1"):
        started(namespace(K=1))
    with pytest.raises(checks.InputError, match="parameter K must be int, got 3.5"):
        started(namespace(K=3.5))
    space = namespace()
    del space["K"], space["mode"]
    with pytest.raises(
        checks.InputError, match="parameter K, mode has no value: run the first cell"
    ):
        started(space)


def test_seed_and_threads_are_those_of_the_process(started, monkeypatch):
    drawn = lambda: (random.random(), float(torch.rand(())))
    monkeypatch.setenv(notebook.THREADS, "2")
    started(namespace(seed=5))
    first, threads = drawn(), torch.get_num_threads()
    torch.set_num_threads(1)
    random.seed(5), torch.manual_seed(5)
    assert (first, threads) == (drawn(), 2)


def test_a_misspelt_injected_parameter_is_an_error_and_own_names_are_not(started):
    started(namespace(cells=["K: int = 3", "# Parameters\nK = 3\n", "own = 3"], own=3))
    with pytest.raises(checks.InputError, match="unknown parameter widht; this notebook accepts K"):
        started(namespace(cells=["K: int = 3", "# Parameters\nwidht = 4\n"]))


def test_no_gpu_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(checks.InputError, match="PyTorch sees no GPU here; use device=cpu"):
        notebook.device("cuda")
    assert notebook.device("auto").type == "cpu"


@pytest.mark.parametrize(
    "name", ["gpu", "", "cuda:", "cuda:x", "cuda:1", "cpu:0", "auto:0", "cuda:-1"]
)
def test_a_device_that_is_not_there_is_named(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(checks.InputError, match="device (must be one of auto, cpu, cuda|is )"):
        notebook.Run("90_tiny", {"device": name})
    assert str(notebook.device("cuda:0")) == "cuda:0"
    assert notebook.device("auto").type == "cuda"


def test_tables_and_figures_are_byte_stable(started, tmp_path):
    run = started(namespace())
    data = pd.DataFrame({"x": [0.1 + 0.2, 1e-17], "name": ["a", "b"]})
    contents = []
    for _ in range(2):
        figure, _ = style.grid(1, 1)
        figure.axes[0].plot([1, 2, 3])
        run.figure(figure, "one", data)
        files = [tmp_path / "figures" / f"one.{kind}" for kind in ("png", "pdf", "csv")]
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert not any(word in contents[0][1] for word in (b"CreationDate", b"Producer", b"Creator"))
    assert contents[0][2] == b"x,name\n0.3,a\n1e-17,b\n"


def test_a_checkpoint_belongs_to_its_configuration_and_library(started, monkeypatch):
    run = started(namespace())
    path = run.checkpoint("net", lr=0.1, width=3)
    assert path == run.checkpoint("net", width=3, lr=0.1)
    assert path != run.checkpoint("net", lr=0.2, width=3)
    assert path.parent == run.folder / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr(notebook, "code_digest", lambda name: "of another library")
        assert path != run.checkpoint("net", lr=0.1, width=3)
    run.threads = 2  # sums in another order
    assert path != run.checkpoint("net", lr=0.1, width=3)


def test_a_title_says_the_finding_only_where_the_row_has_it(started):
    run = started(namespace())
    check = {"below": 1, "counterexample": True}
    row = {"statement": "s", "source": "s", "networks": True, "check": check}
    run.ledger = claims.Ledger(
        "90_tiny", {"L1": row, "L2": row, "L3": row | {"check": {"below": 1}}}
    )
    run.verdict = run.ledger.verdict
    assert run.title("L1", "found", "plotted") == "plotted"  # not run yet
    for name, value, verdict, title in (
        ("L1", 0.0, "counterexample", "found"),
        ("L2", 2.0, "not reproduced", "plotted"),
        ("L3", 0.0, "holds", "found"),
    ):
        assert run.claim(name, value).verdict == verdict
        assert run.title(name, "found", "plotted") == title


def test_a_cell_shows_what_all_its_claims_found(started, monkeypatch):
    """As under nbval, whose cells leave no history: the number of a cell would not tell."""
    shell = InteractiveShell()
    monkeypatch.setattr(notebook, "_shell", lambda: shell)
    shell.user_ns["run"] = run = started(namespace())
    rows = {
        row: {"statement": "s", "source": "s", "check": {"below": 1}} for row in ("L1", "L2", "L3")
    }
    run.ledger = claims.Ledger("90_tiny", rows)

    def shown(cell):
        return shell.run_cell(cell, store_history=False, silent=False).result

    found = shown('run.claim("L1", 2.0); run.claim("L2", 0.0)')
    assert repr(found) == "90.L1: fails\n90.L2: holds"
    assert found._repr_html_().count("<tr>") == 2
    assert found.verdict == "holds"  # its own
    assert repr(shown('run.claim("L3", 0.0)')) == "90.L3: holds"
    assert shown("run.checkpoint('net')") == shown("run.checkpoint( 'net' )  # again")
    assert shown("run.checkpoint('net')") != shown("1 + 1; run.checkpoint('net')")


def test_only_by_hand_a_check_may_be_measured_again(started, monkeypatch):
    run = started(namespace())
    run.claim("A1", (0.0, 1.0))
    with pytest.raises(checks.InputError, match="claim A1 was measured twice"):
        run.claim("A1", (2.0, 1.0))
    monkeypatch.delenv(notebook.FOLDER)
    run = started(namespace())
    run.claim("A1", (0.0, 1.0))
    run.claim("A1", (2.0, 1.0))
    assert run.verdict("A1") == "fails"
    monkeypatch.setenv(notebook.REPRODUCE, "1")
    assert not started(namespace()).ledger.again
