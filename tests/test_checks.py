"""Numbers and arrays at the edge of what is asked for, on both sides of it."""

import math

import pytest
import torch

from nclib import checks


@pytest.mark.parametrize(
    ("bound", "good", "bad", "word"),
    [
        ({"above": 1}, 1.5, 1, "greater than 1, got 1"),
        ({"at_least": 1}, 1, 0.5, "at least 1, got 0.5"),
        ({"below": 1}, 0.5, 1, "less than 1, got 1"),
        ({"at_most": 1}, 1, 1.5, "at most 1, got 1.5"),
        ({}, -1e300, math.nan, "a finite number, got nan"),
        ({}, 0, True, "a finite number, got True"),
        ({}, 2**60, 2**2000, "a finite number, got 1148"),
    ],
)
def test_a_number_inside_its_bounds(bound, good, bad, word):
    assert checks.real("x", good, **bound) == good
    with pytest.raises(checks.InputError, match=f"x must be {word}"):
        checks.real("x", bad, **bound)


def test_an_integer_from_its_minimum_on():
    assert checks.integer("n", 2, 2) == 2
    for bad, word in ((1, "at least 2, got 1"), (2.0, "an integer"), (True, "an integer")):
        with pytest.raises(checks.InputError, match=f"n must be {word}"):
            checks.integer("n", bad, 2)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ([[1.0, 2.0]], {"rows": 2}, r"x must have 2 rows, got shape \(1, 2\)"),
        ([[1.0, 2.0]], {"columns": 1}, r"x must have 1 columns, got shape \(1, 2\)"),
        ([[1.0, math.inf]], {}, r"1 NaN or infinite values of 2 \(first at index \(0, 1\)\)"),
        ([1.0, 2.0], {}, "x must be a matrix"),
        ([[1j]], {}, "x must hold real numbers"),
    ],
)
def test_a_matrix_of_another_size_or_with_holes(value, options, message):
    checks.matrix("x", [[1.0, 2.0]], rows=1, columns=2)
    with pytest.raises(checks.InputError, match=message):
        checks.matrix("x", value, **options)


def test_half_precision_is_upcast_and_vectors_and_label_sets_have_their_size():
    half = torch.ones(1, 2, dtype=torch.float16)
    assert checks.matrix("x", half).dtype == torch.float32
    assert checks.matrix("x", half.int()).dtype == torch.float64
    assert checks.vector("b", [1, 2], 2).dtype == torch.float64
    for bad, message in (([1.0], r"b must have shape \(2,\)"), ([1.0, math.nan], "1 NaN")):
        with pytest.raises(checks.InputError, match=message):
            checks.vector("b", bad, 2)
    for columns in (1, 3):
        with pytest.raises(checks.InputError, match=f"targets must have {columns} columns"):
            checks.label_sets([[1, 0]], columns=columns)
