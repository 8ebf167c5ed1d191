"""Tables over grids, against loops written out."""

import numpy as np
import pandas as pd
import pytest
import torch

from nclib.checks import InputError
from nclib.table import extreme, last, log_spaced, matrices, over


def test_every_combination_in_order_with_constants_passed_on():
    seen = []

    def measure(a, b, c, d):
        seen.append((a, b, c, d))
        return {"sum": a + b}

    found = over(measure, a=[1, 2], b=range(3), c="text", d=(1, 2))
    want = [(a, b, "text", (1, 2)) for a in (1, 2) for b in range(3)]
    assert seen == want
    assert found.columns.tolist() == ["a", "b", "sum"]
    assert found.to_numpy().tolist() == [[a, b, a + b] for a, b, _, _ in want]


@pytest.mark.parametrize("axis", [[1, 2], range(1, 3), np.array([1, 2]), pd.Series([1, 2])])
def test_lists_ranges_arrays_and_series_are_axes_of_plain_numbers(axis):
    kinds = set()
    found = over(lambda x: kinds.add(type(x)) or x**2, x=axis)
    assert found.to_dict("list") == {"x": [1, 2], "value": [1, 4]} and kinds == {int}


@pytest.mark.parametrize(
    "value",
    [
        1.5,
        "ab",
        (1, 2),
        None,
        torch.ones(2),
        torch.tensor(1.0),
        np.eye(2),
        pd.DataFrame({"x": [1]}),
    ],
)
def test_everything_else_is_passed_on_whole(value):
    found = over(lambda x, y: x is value and y, x=value, y=[True])
    assert found.columns.tolist() == ["y", "value"] and bool(found["value"].all())


def test_a_mapping_is_an_axis_whose_keys_are_the_names():
    found = over(
        lambda f, x: f(x), f={"double": lambda x: 2 * x, "square": lambda x: x * x}, x=[3, 5]
    )
    assert found["f"].tolist() == ["double", "double", "square", "square"]
    assert found["value"].tolist() == [6, 10, 9, 25]


def test_rows_of_every_kind():
    several = over(lambda n: [{"i": i} for i in range(n)], n=[0, 1, 2])
    assert several.to_dict("list") == {"n": [1, 2, 2], "i": [0, 0, 1]}
    frames = over(lambda n: pd.DataFrame({"i": range(n)}), n=[1, 2])
    pd.testing.assert_frame_equal(frames, several)
    own = over(lambda n: {"n": -n}, n=[1, 2])  # a column of its own takes the place of the axis
    assert own["n"].tolist() == [-1, -2]
    assert over(lambda measure: measure, measure=[1])["value"].tolist() == [1]
    assert over(lambda n: n, n=[]).empty
    assert over(lambda n: n, n=4).to_dict("list") == {"value": [4]}


@pytest.mark.parametrize(
    ("last", "count"), [(1, 2), (5, 2), (1000, 60), (1000, 3), (7, 60), (10**6, 20)]
)
def test_log_spaced_steps_hold_both_ends_and_grow(last, count):
    found = log_spaced(last, count)
    assert found[0] == 0 and found[-1] == last and len(found) <= count
    gaps = np.diff(found)
    assert (gaps > 0).all()
    if last >= 1000 and count > 10:
        assert gaps[-1] > 10 * gaps[0]


def test_matrices_in_long_form():
    named = {"a": torch.arange(6.0).reshape(2, 3), "b": [[7.0]]}
    found = matrices(named)
    assert found.columns.tolist() == ["name", "row", "column", "value"]
    assert found.query("name == 'a'").pivot(
        index="row", columns="column", values="value"
    ).to_numpy().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.iloc[-1].tolist() == ["b", 0, 0, 7.0]
    with pytest.raises(InputError, match="matrix a must be a matrix"):
        matrices({"a": [1.0, 2.0]})
    assert matrices({}).columns.tolist() == ["name", "row", "column", "value"]


def test_last_rows_and_extremes_keep_what_is_no_number():
    runs = pd.DataFrame({"net": ["b", "a", "b", "a"], "step": [1, 1, 2, 2]})
    runs = runs.assign(gap=[3.0, 1.0, np.nan, 2.0], nc1=[0.5, 0.7, 0.4, 0.9])
    end = last(runs, "net")
    assert end.index.tolist() == ["a", "b"] and end["step"].tolist() == [2, 2]
    assert end["gap"]["a"] == 2 and np.isnan(end["gap"]["b"])
    assert last(runs, ["net", "step"]).loc[("a", 1), "nc1"] == 0.7
    groups = runs.groupby("net")
    largest = extreme(groups[["gap", "nc1"]], "max")
    assert largest["nc1"].tolist() == [0.9, 0.5] and largest["gap"]["a"] == 2
    assert np.isnan(largest["gap"]["b"])
    assert extreme(groups["nc1"], "min").tolist() == [0.7, 0.4]
