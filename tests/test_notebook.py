import pandas as pd
import pytest

from nclib import checks, notebook

DECLARED = {
    "K": int,
    "lr": float,
    "name": str,
    "flag": bool,
    "widths": list[int],
    "sizes": list[int] | None,
    "counts": dict[int, int],
}
GOOD = {
    "K": 3,
    "lr": 1,
    "name": "x",
    "flag": True,
    "widths": [1, 2],
    "sizes": None,
    "counts": {1: 2},
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("K", 2.0, "parameter K must be int, got 2.0"),
        ("K", "3", "parameter K must be int, got '3'"),
        ("K", True, "parameter K must be int, got True"),
        ("lr", "1e-3", r"parameter lr must be float, got '1e-3' \(YAML reads 1e-3 as text"),
        ("lr", None, "parameter lr must be float"),
        ("name", 1, "parameter name must be str"),
        ("flag", 1, "parameter flag must be bool"),
        ("flag", "no", "parameter flag must be bool"),
        ("widths", [1, 2.5], "parameter widths must be list"),
        ("widths", 4, "parameter widths must be list"),
        ("sizes", ["a"], "parameter sizes must be list"),
        ("counts", {"1": 2}, "parameter counts must be dict"),
    ],
)
def test_mistyped_parameters_are_named(key, value, message):
    notebook.check_types(GOOD, DECLARED)
    with pytest.raises(checks.InputError, match=message):
        notebook.check_types(GOOD | {key: value}, DECLARED)


def namespace(cells=(), **changes):
    values = {"K": 3, "lr": 0.1, "seed": 0} | changes
    kinds = {"K": int, "lr": float, "seed": int}
    return values | {"__annotations__": kinds, "In": ["", *cells]}


@pytest.fixture
def started(tmp_path, monkeypatch):
    monkeypatch.setenv(notebook.FOLDER, str(tmp_path / "run"))
    monkeypatch.setenv(notebook.FIGURES, str(tmp_path / "figures"))

    def start(space, **limits):
        return notebook.start("00_quickstart", space, **limits)

    return start


def test_limits_are_checked_before_anything_runs(started):
    with pytest.raises(checks.InputError, match="parameter K must be at least 4, got 3"):
        started(namespace(), at_least={"K": 4})
    with pytest.raises(checks.InputError, match="parameter lr must be greater than 0, got -1"):
        started(namespace(lr=-1.0), above={"lr": 0})
    with pytest.raises(checks.InputError, match="parameter K must be one of 5, 6; got 3"):
        started(namespace(), choices={"K": [5, 6]})


def test_a_misspelt_injected_parameter_is_an_error_and_own_names_are_not(started):
    started(namespace(cells=["K: int = 3", "# Parameters\nK = 3\n", "own = 3"], own=3))
    with pytest.raises(checks.InputError, match="unknown parameter widht; this notebook accepts K"):
        started(namespace(cells=["K: int = 3", "# Parameters\nwidht = 4\n"]))


def test_no_gpu_is_one_clear_error(started, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    space = namespace(device="cuda")
    space["__annotations__"] = space["__annotations__"] | {"device": str}
    with pytest.raises(checks.InputError, match="PyTorch sees no GPU here; use device=cpu"):
        started(space)
    assert notebook.device("auto").type == "cpu"


def test_tables_and_figures_are_byte_stable(started, tmp_path):
    run = started(namespace())
    data = pd.DataFrame({"x": [0.1 + 0.2, 1e-17], "name": ["a", "b"]})
    contents = []
    for _ in range(2):
        figure = __import__("nclib.plots.style", fromlist=["style"]).grid(1, 1)[0]
        figure.axes[0].plot([1, 2, 3])
        run.figure(figure, "one", data)
        files = [tmp_path / "figures" / f"one.{kind}" for kind in ("png", "pdf", "csv")]
        contents.append([file.read_bytes() for file in files])
        __import__("matplotlib.pyplot", fromlist=["pyplot"]).close(figure)
    assert contents[0] == contents[1]
    assert contents[0][2] == b"x,name\n0.3,a\n1e-17,b\n"


def test_a_checkpoint_belongs_to_its_configuration(started):
    run = started(namespace())
    path = run.checkpoint("net", lr=0.1, width=3)
    assert path == run.checkpoint("net", width=3, lr=0.1)
    assert path != run.checkpoint("net", lr=0.2, width=3)
    assert path.parent == run.folder / "checkpoints"
