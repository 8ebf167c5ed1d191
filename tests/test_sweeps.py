import shutil

import numpy as np
import pandas as pd
import pytest

from nclib import checks, runs, sweeps
from nclib.plots import style
from tests.conftest import SWEEP


def test_the_grid_is_the_cartesian_product(tiny, tmp_path):
    texts, options = {"mode": "ok,raise", "epochs": "2,3"}, {"out": tmp_path, "threads": 2}
    jobs = sweeps.grid("90", texts, seeds="0:3", **options)
    settings = {(j.parameters.get("mode"), j.parameters.get("epochs"), j.parameters.get("seed"))
                for j in jobs}  # fmt: skip
    assert len(jobs) == len(settings) == 12
    assert len({job.name for job in jobs}) == 12
    assert [j.parameters.get("seed", 0) for j in jobs[:3]] == [0, 1, 2]
    assert {(j.out, j.threads) for j in jobs} == {(str(tmp_path), 2)}


def test_a_value_of_the_profile_keeps_the_profiles_name(tiny):
    jobs = sweeps.grid("90", {"K": "4,5"})
    assert jobs[0].name == "quick"
    assert jobs[1].name.startswith("quick-")


@pytest.mark.parametrize(
    ("texts", "seeds", "message"),
    [
        ({}, None, "a sweep needs"),
        ({"klasses": "1,2"}, None, "unknown parameter klasses"),
        ({"K": "2,x"}, None, "parameter K must be int, got 'x'"),
        ({"K": "2,"}, None, "parameter K lacks a value in '2,'; write K=A,B"),
        ({"K": "2,1"}, None, "parameter K must be at least 2, got 1"),
        ({"K": ""}, None, "parameter K lacks a value"),
        ({"K": []}, None, "parameter K lacks a value"),
        ({"seed": "1,2"}, "0:5", "parameter seed is given twice: with -p and with --seeds"),
        ({}, "-1,0", "parameter seed must be at least 0, got -1"),
        ({}, "5:2", "write 0:5"),
        ({}, "a", "write 0:5"),
    ],
)
def test_bad_grids_are_named(tiny, texts, seeds, message):
    with pytest.raises(checks.InputError, match=message):
        sweeps.grid("90", texts, seeds=seeds)


def test_a_yaml_grid_reads_like_the_options(tiny, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("K: [2, 5]\nmode: [ok, 'a, b']\n")
    jobs = sweeps.grid("90", sweeps.read_grid(path))
    settings = [(job.parameters["K"], job.parameters.get("mode")) for job in jobs]
    assert settings == [(2, None), (2, "a, b"), (5, None), (5, "a, b")]
    path.write_text("K: 2\n")
    with pytest.raises(checks.InputError, match="must map each parameter to a list"):
        sweeps.read_grid(path)
    path.write_text("K: [2\n")
    with pytest.raises(checks.InputError, match="cannot be read as YAML: while parsing"):
        sweeps.read_grid(path)
    path.write_text("K: [2]\nmode: [ok]\nK: [3]\n")
    with pytest.raises(checks.InputError, match="found the key 'K' twice"):
        sweeps.read_grid(path)


def test_lists_are_separated_by_semicolons():
    jobs = sweeps.grid("01", {"widths": "2,8;64", "train_per_class": "60,None"})
    settings = [(j.parameters.get("widths"), j.parameters.get("train_per_class", 60)) for j in jobs]
    assert settings == [([2, 8], 60), ([2, 8], None), ([64], 60), ([64], None)]
    with pytest.raises(
        checks.InputError, match="widths lacks a value in '2,8;'; write widths=1,2;3"
    ):
        sweeps.grid("01", {"widths": "2,8;"})


def test_a_grid_in_yaml_is_read_by_the_types_of_the_parameters(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("seeds: [[010, 011]]\nlr: [1e-3, 2]\ntrain_per_class: [null]\n")
    (job,) = sweeps.grid("01", sweeps.read_grid(path) | {"lr": ["1e-3"]})
    assert job.parameters["seeds"] == [10, 11]
    assert job.parameters["lr"] == 1e-3
    assert job.parameters["train_per_class"] is None
    assert sweeps.read_grid(path)["lr"] == ["1e-3", "2"]
    path.write_text("K: [no, '010', 1:30]\n")
    assert sweeps.read_grid(path) == {"K": ["no", "010", "1:30"]}


def test_a_value_given_twice_is_one_run(tiny):
    assert len(sweeps.grid("90", {"K": "5,5,4"})) == 2


def test_the_summary_pools_seeds_by_hand():
    rows = []
    for width, values in ((2, [1.0, 3.0]), (8, [5.0, 9.0, 10.0])):
        for seed, value in enumerate(values):
            verdict = {1.0: "holds", 3.0: "counterexample", 5.0: "holds"}.get(value, "fails")
            rows.append({"run": f"{width}{seed}", "notebook": "x", "id": "1.L1", "measured": value,
                         "verdict": verdict, "p.width": width, "p.seed": seed})  # fmt: skip
    rows.append(rows[0] | {"measured": None, "verdict": "not run", "p.seed": 2})
    got = sweeps.summary(pd.DataFrame(rows), ["width"]).set_index("p.width")
    assert list(got["mean"]) == [2.0, 8.0]
    np.testing.assert_allclose(got["sd"], [2**0.5, 7**0.5])
    assert list(got["n"]) == [3, 3]
    assert list(got["holds"]) == [2, 1]


def test_the_cost_is_what_the_notebook_took_last(tiny):
    jobs = sweeps.grid("90", {"K": "4,5,6,7"})
    assert sweeps.estimate(jobs) is None
    tiny.fake("quick", {}, ["holds"], out=tiny.books.parent)  # 1.5 s
    assert sweeps.estimate(jobs) == 6.0
    assert sweeps.estimate(jobs, 2) == 3.0
    assert sweeps.estimate(sweeps.grid("90", {"K": "5"}, "standard")) is None


def test_the_table_lacks_runs_that_failed_and_the_summary_seeds_and_what_has_one_value(tiny):
    *done, failed = sweeps.grid("90", {"K": "5,6", "mode": "ok"}, seeds="0:2", out=tiny.out)
    for job in (*done, failed):  # its older results
        tiny.fake(job.name, job.parameters, ["holds"])
        shutil.copytree(job.figures, job.figures.with_name("91_other"))
    outcomes = [runs.Outcome(job, "done", 1.0) for job in done]
    outcomes.append(runs.Outcome(failed, "failed", 1.0, "x"))
    folder = sweeps.write(outcomes, ["K", "mode", "seed"], out=tiny.out)
    assert set(pd.read_csv(folder / "sweep.csv")["run"]) == {job.name for job in done}
    summary = pd.read_csv(folder / "summary.csv")
    assert set(summary["notebook"]) == {"90_tiny"}
    assert list(summary) == ["notebook", "id", "p.K", "mean", "sd", "n", "holds"]
    assert list(summary["n"]) == [2, 1]
    assert sweeps.write(outcomes[::-1], ["seed", "K"], out=tiny.out) == folder
    assert sweeps.write(outcomes[:1], ["K"], out=tiny.out) != folder


@pytest.fixture
def table():
    """Seven checks of runs over gamma and loss, two seeds each."""
    rows = []
    for gamma in (10.0, 2.0, 1.0):
        for loss in ("ls", "ce"):
            for seed, shift in enumerate((-0.1, 0.1)):
                level = gamma + (loss == "ls") + shift
                for name, value, holds in (
                    ("1.L1", 3.0, True),  # constant
                    ("1.L2", 1e-12 * level, True),  # rounding
                    ("1.L3", level, True),
                    ("1.L4", np.inf, True),
                    ("1.L5", 1e-12, loss == "ce" or seed == 0),  # its verdict changes
                    ("1.L6", 100 + 2 * level, True),  # little, for its size
                    ("1.L7", 3.0, False),  # constant, fails everywhere
                ):
                    rows.append(
                        {"notebook": "x", "p.gamma": gamma, "p.loss": loss, "p.seed": seed}
                        | {"id": name, "statement": f"Words of {name}.", "note": f"number {name}"}
                        | {"measured": value, "verdict": "holds" if holds else "fails"}
                        | {"relation": "below", "bound": {"1.L3": 11.5, "1.L5": gamma}.get(name)}
                    )
    style.use()
    return pd.DataFrame(rows)


def titles(figure):
    return [ax.get_title("left") for ax in figure.axes if ax.get_visible()]


def test_the_figure_shows_what_varies_in_the_order_of_the_values(table, monkeypatch):
    monkeypatch.setattr(sweeps, "SHOWN", 2)
    figure = sweeps.comparison(table, ["loss", "gamma", "seed"])
    assert titles(figure) == ["1.L3: Words of 1.L3.", "1.L5: Words of 1.L5."]
    ax, other = figure.axes[:2]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1.0", "2.0", "10.0"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("gamma", "number 1.L3")
    assert (ax.get_yscale(), other.get_yscale()) == ("linear", "linear")
    for container, values in zip(ax.containers, ([1, 2, 10], [2, 3, 11]), strict=True):
        np.testing.assert_allclose(container.lines[0].get_ydata(), values)
        assert list(np.round(container.lines[0].get_xdata())) == [0, 1, 2]
        bars = [np.ptp(segment[:, 1]) for segment in container.lines[2][0].get_segments()]
        np.testing.assert_allclose(bars, [2 * 0.02**0.5] * 3)  # of -0.1 and 0.1
    crosses = [line for line in other.lines if line.get_marker() == "x"]
    assert [len(line.get_xdata()) for line in crosses] == [0, 3]


def test_the_figure_names_colours_crosses_and_the_bound(table, monkeypatch):
    monkeypatch.setattr(sweeps, "SHOWN", 2)
    figure = sweeps.comparison(table, ["loss", "gamma", "seed"])
    texts = {text.get_text() for text in figure.legends[0].get_texts()}
    bound = "bound or expected value"
    assert texts == {"loss=ce", "loss=ls", bound, "does not hold in some run"}
    lines = [[line for line in ax.lines if line.get_label() == bound] for ax in figure.axes[:2]]
    assert [list(line.get_ydata()) for line in lines[0]] == [[11.5, 11.5]]
    assert "≤ 11.5" in [text.get_text() for text in figure.axes[0].texts]
    assert lines[1] == []  # another one for each gamma


@pytest.mark.parametrize(("bound", "drawn"), [(1e-3, 1), (-1.0, 0), (0.0, 0)])
def test_more_than_a_decade_is_drawn_logarithmically_with_a_bound_that_can_be(table, bound, drawn):
    wide = table[table["id"] == "1.L3"].assign(bound=bound, relation="above")
    wide["measured"] **= 2
    (ax,) = sweeps.comparison(wide, ["loss", "gamma"]).axes
    lines = [line for line in ax.lines if line.get_label() == "bound or expected value"]
    assert (ax.get_yscale(), len(lines)) == ("log", drawn)
    assert ("≥ 0.001" in [text.get_text() for text in ax.texts]) == drawn


def test_a_sweep_over_seeds_shows_how_far_each_check_spreads(table):
    seeds = table.query("`p.gamma` == 1 and `p.loss` == 'ce'")
    figure = sweeps.comparison(seeds, ["seed"])
    shown = [title.split(":")[0] for title in titles(figure)]
    assert shown == ["1.L1", "1.L2", "1.L3", "1.L5", "1.L6", "1.L7"]  # all that are finite
    ax = figure.axes[2]
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), [0.9, 1.1])
    assert (ax.get_xlabel(), len(ax.get_xticks())) == ("seed", 2)


def test_a_sweep_in_which_nothing_varies_says_so(table):
    figure = sweeps.comparison(table[table["id"] == "1.L1"], ["gamma"])
    assert titles(figure) == ["no check varies"]


@pytest.mark.slow
def test_a_sweep_writes_one_table_and_gives_equal_bytes_one_by_one_and_two_at_once(
    tiny, undisturbed_sweep
):
    plan = tiny("sweep", "90", "-p", "K=2,3", "--seeds", "0:2", "--dry-run", "--out", tiny.out)
    assert plan.returncode == 0, plan.stderr
    assert "4 runs of 90_tiny; time unknown" in plan.stdout
    assert not tiny.out.exists()
    batch = lambda jobs: tiny(*SWEEP, "--out", tiny.out, "--jobs", jobs)
    done = batch(1)
    assert done.returncode == 0, done.stdout
    folder = next((tiny.out / "runs").glob("sweep-*"))
    names = {p.name for p in folder.iterdir()}
    assert names == {"sweep.csv", "summary.csv", "sweep.png", "sweep.pdf"}
    table = pd.read_csv(folder / "sweep.csv")
    assert sorted(table["p.K"].unique()) == [2, 3]
    assert set(table["id"]) == {"90.A1", "90.A2", "90.A3"}
    one = tiny.results(tiny.out)
    assert one == tiny.results(undisturbed_sweep)  # two at once
    suffixes = [name.rsplit(".", 1)[1] for name in one]
    assert {s: suffixes.count(s) for s in ("png", "csv", "json", "pdf")} == {
        "png": 3,
        "csv": 4,
        "json": 2,
        "pdf": 3,
    }
    again = batch(2)
    assert again.stdout.count("unchanged") == 2
    assert tiny.results(tiny.out) == one
