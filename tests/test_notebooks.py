"""What every committed notebook must look like; nbval then checks that it still says the same."""

import configparser
import json
import re
import shlex

import pytest
import yaml

from nclib import catalogue, parameters, paths, report, runs
from nclib.cli import main
from tests.conftest import called

BOOKS = runs.notebooks()


def cells(book, kind="code"):
    content = json.loads((paths.NOTEBOOKS / f"{book}.ipynb").read_text(encoding="utf-8"))
    return [c for c in content["cells"] if c["cell_type"] == kind]


@pytest.mark.parametrize("book", BOOKS)
def test_outputs_are_stored_in_order_and_clean(book):
    counts = [cell["execution_count"] for cell in cells(book)]
    assert counts == list(range(1, len(counts) + 1)), "run `nclib store` for this notebook"
    outputs = [output for cell in cells(book) for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert all(output["output_type"] != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    text = (paths.NOTEBOOKS / f"{book}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    for output in outputs:
        shown = json.dumps({k: v for k, v in output.get("data", {}).items() if "image" not in k})
        assert not re.search(r"/(root|home|tmp|work|usr)/|0x[0-9a-f]{8,}", shown)


@pytest.mark.parametrize("book", BOOKS)
def test_code_cells_are_short_and_end_with_the_run(book):
    code = cells(book)
    for cell in code:
        lines = "".join(cell["source"]).splitlines()
        if "parameters" not in cell["metadata"].get("tags", []):
            assert len(lines) <= 20, "a long cell means that a function is missing in nclib"
    assert "run.finish()" in "".join(code[-1]["source"])


@pytest.mark.parametrize("book", BOOKS)
def test_parameters_have_types_comments_and_valid_profiles(book):
    known = parameters.declared(book)
    assert {"profile", "seed", "device"} <= known.keys()
    for name, (_, _, comment) in known.items():
        assert comment, f"parameter {name} needs a trailing comment"
    for profile in runs.profiles():
        runs.job(book, profile)  # raises for unknown names, wrong types and impossible values


def test_claim_tables_are_complete():
    sizes = {"01": 18, "02": 16, "03": 24, "04": 21, "05": 20, "06": 23}
    for book in BOOKS:
        number = book.split("_")[0]
        if number in sizes:
            assert len(catalogue.load(book)) >= sizes[number], book


@pytest.mark.parametrize("profile", runs.profiles())
def test_a_profile_has_a_section_for_every_notebook(profile):
    content = yaml.safe_load((paths.PROFILES / f"{profile}.yaml").read_text(encoding="utf-8"))
    assert list(content) == BOOKS
    assert all(isinstance(section, dict) for section in content.values())


def test_the_commands_in_the_profile_make_every_published_cell_of_result_3():
    text, made = (paths.PROFILES / "paper.yaml").read_text(encoding="utf-8"), set()
    for command in re.findall("^# nclib (sweep 03 .*)", text, re.M):
        plan = called(*shlex.split(command), "--dry-run")
        assert plan.exit_code == 0, plan.output
        made |= set(re.findall(r"dataset=(\w+),.* architecture=(\w+)", plan.output))
    nets = ("resnet18", "resnet50", "vgg16", "vgg19")
    composed = {(source, net) for source in ("mnist", "cifar10") for net in nets}
    assert made == composed | {("svhn", "resnet18"), ("svhn", "resnet50")}


def environment():
    return called("environment").output


def test_environment_file_is_generated_from_the_dependency_list():
    stored = (paths.ROOT / "environment.yml").read_text(encoding="utf-8")
    assert stored == environment(), "run `make environment.yml`"


def test_lock_satisfies_the_dependency_list():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lock = dict(
        (canonicalize_name(line.split("==")[0]), line.split("==")[1])
        for line in (paths.ROOT / "requirements.lock").read_text().splitlines()
        if line and not line.startswith("#")
    )
    listed = re.findall(r'- "(.+)"', environment())
    assert len(listed) > 20
    for text in listed:
        need = Requirement(text)
        name = canonicalize_name(need.name)
        assert name in lock, f"{name} is missing in requirements.lock"
        assert need.specifier.contains(lock[name]), text


def test_commands_of_the_readme_exist():
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", readme, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"
    for command in set(re.findall(r"^nclib (\w+)", readme, flags=re.MULTILINE)):
        assert command in main.commands, f"nclib {command}"
    for path in set(re.findall(r"\]\(((?:notebooks|figures|data|nclib)/[^)]+)\)", readme)):
        assert (paths.ROOT / path).exists(), path


def test_results_table_of_the_readme_is_that_of_the_stored_claims():
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    stored = re.search(r"<!-- results -->\n(.*?)\n<!-- /results -->", readme, re.DOTALL).group(1)
    # Seconds differ from run to run; commands and verdicts must not.
    strip = lambda table: [re.sub(r"\d+ s \|.*", "", line) for line in table.splitlines()]
    assert strip(stored) == strip(report.results_table()), "paste `nclib list --markdown`"


def test_nbval_reads_over_what_differs_at_every_execution():
    """What `nclib store` writes in place of an address or of a table's name is read over, too."""
    config = configparser.ConfigParser()
    config.read(paths.NOTEBOOKS / "nbval.cfg")

    def sanitised(text):
        for section in config.sections():
            text = re.sub(config[section]["regex"], config[section]["replace"], text)
        return text

    for stored, fresh in (("<Axes 0x0>", "<Axes 0x7f0de7bf4680>"), ("T_0_row1", "T_1d016_row1")):
        assert sanitised(stored) == sanitised(fresh) != stored
    assert sanitised("0.123") != sanitised("0.124")
