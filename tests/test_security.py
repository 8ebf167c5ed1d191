"""Nothing that a parameter, a file or a run says is ever executed or written elsewhere."""

import ast
import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nclib import catalogue, checks, files, notebook, paths, report, runs
from nclib.deep import train

SOURCES = sorted((paths.ROOT / "nclib").rglob("*.py"))
HOSTILE = (
    '"; rm -rf ~; "',
    "'; touch {0}/owned; '",
    "$(touch {0}/owned) `touch {0}/owned`",
    "<script>alert(1)</script>",
    "../../{0}/owned",
    '"""\nimport os; os.system("touch {0}/owned")\n"""',
    "{profile} {{7*7}} %(x)s ${HOME} \\",
    "-p K=9 --out /",
    "line\nline\r\tñ\u2028\U0001f600",
)


# The source ---------------------------------------------------------------------------------------


def name_of(node):
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(paths.ROOT).as_posix())
def test_sources_execute_no_data_and_write_whole_files(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    calls = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"}
    calls |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all"}
    calls |= {"time.time", "datetime.now", "datetime.datetime.now"}  # clocks that can be set
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not modules & {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in modules
        name, options = name_of(node), {}
        if isinstance(node, ast.Call):
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert name not in calls
        assert options.get("shell", "False") == "False"
        assert options.get("allow_pickle", "False") == "False"
        if name == "torch.load":
            assert options.get("weights_only") == "True"
        assert not isinstance(node, ast.Attribute) or node.attr != "st_mtime"
    assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    memory = {ast.unparse(x.targets[0]) for x in assigned if name_of(x.value) == "io.BytesIO"}
    for call in writes(tree, memory):
        assert "replacing" in call, f"{path.name}:{call} is not written through files.replacing"


def writes(tree, memory, around=""):
    """Calls that write a file, not a buffer of ``memory``, with the ``with`` lines around each."""
    for node in ast.iter_child_nodes(tree):
        inner = around
        if isinstance(node, ast.With):
            inner += " ".join(ast.unparse(item) for item in node.items)
        name = name_of(node)
        if name:
            attribute = name.rsplit(".", 1)[-1]
            mode = ast.unparse(node.args[1]) if name == "open" and len(node.args) > 1 else ""
            in_memory = memory.intersection(map(ast.unparse, node.args))
            in_memory = in_memory or name in ("style.save", "save")
            if attribute in ("write_text", "write_bytes", "to_csv", "savefig", "save", "dump"):
                if not in_memory:
                    yield f"{node.lineno} {inner}"
            elif name == "nbformat.write" or "w" in mode or "x" in mode:
                yield f"{node.lineno} {inner}"
        yield from writes(node, memory, inner)


def test_a_checkpoint_that_would_execute_something_is_moved_aside(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/owned",)

    path = tmp_path / "net.pt"
    path.write_bytes(pickle.dumps({"net": Bomb()}, protocol=2))
    with pytest.warns(RuntimeWarning, match="net.pt is damaged"):
        assert not train._resume(path, restore=lambda state: None, content=dict)
    assert not (tmp_path / "owned").exists()
    assert not path.exists()


def test_yaml_that_names_python_objects_is_refused(tiny, tmp_path):
    text = f"90_tiny: !!python/object/apply:os.system ['touch {tmp_path}/owned']\n"
    (tiny.books / "profiles" / "quick.yaml").write_text(text)
    (tmp_path / "grid.yaml").write_text(text)
    (tiny.books / "claims" / "90_tiny.yaml").write_text(text)
    for read in (
        lambda: runs.profile("quick"),
        lambda: files.read_yaml(tmp_path / "grid.yaml"),
        lambda: catalogue.load("90_tiny"),
    ):
        with pytest.raises(checks.InputError, match="cannot be read as YAML: could not determine"):
            read()
    (tiny.books / "profiles" / "quick.yaml").write_text("{}")
    value = f"!!python/object/apply:os.system ['touch {tmp_path}/owned']"
    with pytest.raises(checks.InputError, match="parameter K must be int, got .!!python"):
        runs.job("90", overrides={"K": value})
    assert not (tmp_path / "owned").exists()


# Parameters ---------------------------------------------------------------------------------------


def reread(command):
    """The job that a shell command of the report describes."""
    words = shlex.split(command)
    assert words[:3] == ["nclib", "run", "90"]
    assert words[3::2] == ["-p"] * len(words[4::2])
    return runs.job("90", overrides=dict(word.split("=", 1) for word in words[4::2]))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(label=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")))
def test_the_reports_command_means_the_same_run(shared_tiny, label):
    job = runs.job("90", overrides={"label": label, "pause": 1e-05, "K": 7})
    manifest = {"notebook": "90_tiny", "parameters": job.parameters, "threads": 1}
    again = reread(report.command(manifest))
    assert (again.name, again.parameters) == (job.name, job.parameters)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_shell_reads_the_reports_command_as_words(shared_tiny, tmp_path, text):
    text = text.replace("{0}", str(tmp_path))
    job = runs.job("90", overrides={"label": text})
    command = report.command({"notebook": "90_tiny", "parameters": job.parameters, "threads": 1})
    script = f"set -- {command}; printf '%s\\0' \"$@\""
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, cwd=tmp_path, check=True, timeout=60
    )
    words = done.stdout.decode().split("\0")[:-1]
    assert words == ["nclib", "run", "90", "-p", f"label={text}"]
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_manifest_cannot_lie_about_its_place_or_its_command(tiny):
    tiny.fake("quick", {}, ["holds"])
    path = tiny.out / "figures/quick/90_tiny/manifest.json"
    hostile = {"run": "../../..", "notebook": "</script><script>", "threads": 2}
    manifest = json.loads(path.read_text()) | hostile
    manifest["parameters"]["profile"] = "x; rm -rf ~"
    path.write_text(json.dumps(manifest))
    found = report._read("quick", "90_tiny", path.parent, tiny.out)
    assert (found["run"], found["notebook"]) == ("quick", "90_tiny")
    assert found["link"] == "quick/90_tiny/notebook.ipynb"
    words = shlex.split(found["command"])
    assert words[words.index("--profile") + 1] == "x; rm -rf ~"
    assert words[words.index("--threads") + 1] == "2"
    page = report.write(out=tiny.out).read_text()
    assert "</script><script>" not in page
    path.write_text(json.dumps(manifest | {"threads": "1; rm -rf ~"}))
    with pytest.raises(checks.InputError, match="threads is '1; rm -rf ~'"):
        report.write(out=tiny.out)


@pytest.mark.slow
def test_a_run_with_hostile_texts_keeps_them_as_texts(tiny, tmp_path):
    """One execution whose label holds them all; its folder has braces, too."""
    text = "\n".join(HOSTILE).replace("{0}", str(tmp_path))
    out = tmp_path / "a {profile} {label} $(touch owned)"
    done = tiny("run", "90", "-p", f"label={text}", "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = runs.load(out)
    assert table.set_index("id").loc["90.A2", "note"] == "<b>&'\"" + text
    assert set(table["p.label"]) == {text}
    assert {p.name for p in tmp_path.iterdir()} == {"notebooks", out.name}
    assert {p.name for p in out.iterdir()} == {"figures", "runs"}
    again = tiny("run", "90", "-p", f"label={text}", "--out", out)
    assert "unchanged" in again.stdout


# Paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["../../etc/passwd", "/etc/passwd", "..", "90_tiny/../../x", ""])
def test_notebooks_and_profiles_are_names_not_paths(tiny, query):
    with pytest.raises(checks.InputError, match=r"is unknown|is ambiguous|must be one of"):
        if query:
            runs.find(query)
        runs.profile(query)


def test_runs_stay_below_their_output_folder(shared_tiny, tmp_path):
    for text in HOSTILE:
        job = runs.job("90", overrides={"label": text}, out=tmp_path)
        for folder in (job.folder, job.figures):
            assert tmp_path in folder.parents
            assert ".." not in folder.parts
            assert folder.parent.name.replace("-", "").isalnum()


@pytest.mark.parametrize("name", ["../x", "/abs/x", "a/b", "a/../../b"])
def test_outputs_of_a_notebook_have_plain_names(shared_tiny, name, tmp_path, monkeypatch):
    import pandas as pd

    monkeypatch.setenv(notebook.FOLDER, str(tmp_path / "run"))
    monkeypatch.setenv(notebook.FIGURES, str(tmp_path / "figures"))
    run = notebook.Run("90_tiny", {})
    for write in (
        lambda: run.table(pd.DataFrame({"a": [1]}), name),
        lambda: run.figure(None, name),
        lambda: run.checkpoint(name),
    ):
        with pytest.raises(checks.InputError, match="must be a plain file name"):
            write()
    assert list(Path(tmp_path).iterdir()) == []
