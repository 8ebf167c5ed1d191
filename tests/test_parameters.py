"""Parameters: read from text, checked against their declaration, in every notebook's first cell."""

import ast
import functools
import itertools
import math
import typing

import pytest

from nclib import checks, parameters, runs, sweeps
from tests.conftest import code

BOOKS = runs.notebooks()


# Texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("010", int, 10),
        (" -7 ", int, -7),
        ("1e3", float, 1000.0),
        ("1e-3", float, 0.001),
        ("010", float, 10),
        (".5", float, 0.5),
        ("yes", str, "yes"),
        ("None", str, "None"),
        ("", str, ""),
        ("yes", bool, True),
        ("Off", bool, False),
        ("on", bool, True),
        ("no", bool, False),
        ("None", int | None, None),
        ("null", int | None, None),
        ("none", list[str] | None, None),
        ("60", int | None, 60),
        ("2,8,32", list[int], [2, 8, 32]),
        ("010,011", list[int], [10, 11]),
        ("[1, 2.5]", list[float], [1, 2.5]),
        ("1e-3,2", list[float], [0.001, 2]),
        ("7", list[int], [7]),
        ("[]", list[int], []),
        ("yes, no", list[str], ["yes", "no"]),
        ("[[7,3], [8,3]]", list[list[int]], [[7, 3], [8, 3]]),
        ("[7,3],[8,3]", list[list[int]], [[7, 3], [8, 3]]),
        ("[7,3]", list[list[int]], [[7, 3]]),
        ("{1: 3, 2: 02}", dict[int, int], {1: 3, 2: 2}),
        ("{1:3}", dict[int, int], {1: 3}),
        ("1: 3, 2: 2", dict[int, int], {1: 3, 2: 2}),
        ('{"1": 3}', dict[int, int], {1: 3}),
    ],
)
def test_a_text_is_read_as_the_type_says(text, kind, value):
    found = parameters.read("x", text, kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("", kind) for kind in (int, float, bool, list[int], dict[int, int], int | None)),
        *((text, int) for text in ("1e3", "1.0", "0x10", "1:30", "yes", "None", "1,2", "x")),
        *((text, float) for text in ("None", "yes", "1:30", "1,2")),
        *((text, bool) for text in ("1", "None", "ja")),
        *((text, list[int]) for text in ("2,8,", ",2", "2,,8", "2;8", "1.5", "x", "[1", "{1:2}")),
        *((text, list[list[int]]) for text in ("7,3", "[[7,3],8]", "[[7,3],]", "[[7,,3]]")),
        *((text, dict[int, int]) for text in ("1,2", "{1: 3,}", "{a: 1}", "{[1]: 2}", "3")),
        ("&a [1, *a]", list[int]),
        ("!!python/object/apply:os.system [ls]", list[int]),
    ],
)  # fmt: skip
def test_a_text_that_does_not_mean_the_type_is_an_error(text, kind):
    name = kind.__name__ if kind in (int, float, bool) else str(kind)
    with pytest.raises(checks.InputError) as caught:
        parameters.read("x", text, kind)
    assert str(caught.value).startswith(f"parameter x must be {name}, got {text!r}")
    assert ("; write " in str(caught.value)) == (kind not in (int, float, int | None))


# Types and conditions -----------------------------------------------------------------------------


def check(kind, conditions, value, **others):
    known = {"x": parameters.Parameter(kind, None, f"a number [{conditions}]" * bool(conditions))}
    kinds = {list: list[float], int: int, type(None): int | None}
    known |= {key: parameters.Parameter(kinds[type(v)], v, "") for key, v in others.items()}
    try:
        parameters.check({"x": value} | others, known)
    except checks.InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("kind", "conditions", "good", "bad", "message"),
    [
        (int, "", 3, 2.0, "parameter x must be int, got 2.0"),
        (int, "", 3, "3", "parameter x must be int, got '3'"),
        (int, "", 3, True, "parameter x must be int, got True"),
        (float, "", 1, "1e-3", "parameter x must be float, got '1e-3' (YAML reads 1e-3 as text"),
        (float, "", 1, None, "parameter x must be float, got None"),
        (str, "", "x", 1, "parameter x must be str, got 1"),
        (bool, "", True, 1, "parameter x must be bool, got 1"),
        (bool, "", True, "no", "parameter x must be bool, got 'no'"),
        (list[int], "", [1], [1, 2.5], "parameter x must be list[int], got [1, 2.5]"),
        (list[int], "", [1], 4, "parameter x must be list[int], got 4"),
        (list[int] | None, "", None, ["a"], "parameter x must be list[int] | None, got ['a']"),
        (dict[int, int], "", {1: 2}, {"1": 2}, "parameter x must be dict[int, int], got {'1': 2}"),
        (float, "", 1.0, math.nan, "parameter x must be finite, got nan"),
        (float, "> 0", 1e-300, math.inf, "parameter x must be finite, got inf"),
        (list[float], "", [1], [1.0, -math.inf], "parameter x must be finite, got -inf"),
        (int, ">= 3", 3, 2, "parameter x must be at least 3, got 2"),
        (int, ">= 1, <= 3", 3, 4, "parameter x must be at most 3, got 4"),
        (float, "> 0", 0.1, 0, "parameter x must be greater than 0, got 0"),
        (float, ">= 0, < 0.5", 0, 0.5, "parameter x must be less than 0.5, got 0.5"),
        (float, "!= y", 1, 2, "parameter x must be different from y = 2, got 2"),
        (int, "== y + 1", 3, 2, "parameter x must be exactly y + 1 = 3, got 2"),
        (int, ">= 2 * y - 1", 3, 2, "parameter x must be at least 2 * y - 1 = 3, got 2"),
        (float, "< y**0.5 / 2", 0.7, 0.8, "parameter x must be less than y**0.5 / 2 = 0.70"),
        (int | None, ">= 3", None, 2, "parameter x must be at least 3, got 2"),
        (str, "a | bc", "bc", "b", "parameter x must be one of a, bc; got 'b'"),
        (list[str], "a | b", ["b", "a"], ["a", "c"], "parameter x must be one of a, b; got 'c'"),
        (list[int], "", [0], [], "parameter x is empty: give it at least one value"),
        (list[int], ">= 1, may be empty", [], [0], "parameter x must be at least 1, got 0 in [0]"),
        (list[list[int]], "", [[0]], [[0], []], "parameter x is empty"),
        (dict[int, int], "", {1: 0}, {}, "parameter x is empty"),
        (list[int], "> 1", [2, 3], [3, 1], "parameter x must be greater than 1, got 1 in [3, 1]"),
        (list[int], "distinct", [2, 1], [2, 1, 2], "the entries of parameter x must be distinct"),
        (list[int], "increasing", [1, 3], [1, 1], "the entries of parameter x must be increasing"),
        (list[int], "decreasing", [3, 1], [3, 3], "the entries of parameter x must be decreasing"),
        (list[int], "len == 2", [1, 1], [1], "number of entries of parameter x must be exactly 2"),
        (list[int], "min <= 2", [2, 9], [3], "the smallest entry of parameter x must be at most 2"),
        (list[int], "max > 2", [1, 3], [2], "largest entry of parameter x must be greater than 2"),
        (list[int], ">= 0, sum > 0", [0, 1], [0, 0], "the sum of parameter x must be greater than"),
        (list[list[int]], "K, d: K > d, d >= 1, distinct", [[2, 1]], [[2, 2]],
         "K in parameter x must be greater than d = 2, got 2 in [2, 2]"),
        (list[list[int]], "K, d: distinct", [[2, 1], [1, 2]], [[2, 1], [2, 1]], "be distinct"),
        (list[list[int]], "K, d: K > d", [[2, 1]], [[2]], "parameter x needs (K, d), got [2]"),
        (dict[int, int], ">= 3", {1: 3}, {4: 2}, "parameter x must be at least 3, got 2 in {4: 2}"),
        (dict[int, int], "m, n: m <= y, n >= 1", {2: 9}, {3: 9},
         "m in parameter x must be at most y = 2, got 3 in (3, 9)"),
    ],
)  # fmt: skip
def test_each_condition_lets_pass_and_refuses(kind, conditions, good, bad, message):
    assert check(kind, conditions, good, y=2) == ""
    assert message in check(kind, conditions, bad, y=2)


def test_membership_in_another_parameter_and_bounds_that_are_none():
    assert check(float, "in y", 0.5, y=[1, 0.5]) == ""
    message = "parameter x must be one of y = [1, 0.5], got 2"
    assert message in check(float, "in y", 2, y=[1, 0.5])
    assert check(int, "<= y", 3, y=None) == ""


def test_a_condition_that_is_none_is_an_error():
    assert "condition 'positive' of parameter x is no condition" in check(int, "positive", 1)
    for condition in (">> 3", ">= y", "> f(3)", "len > 2", "increasing", ">= 1 / 0", "a: a > 2"):
        assert f"the condition [{condition}] of parameter x has no meaning for 1" in check(
            int, condition, 1
        )


def test_every_parameter_has_a_type(tiny):
    with pytest.raises(checks.InputError, match="cannot be read"):
        parameters.declared("91_nothing")
    path = tiny.books / "90_tiny.ipynb"
    text = path.read_text()
    for line, message in (
        ("K = 3", "every parameter needs a type and a default, as in `K: int = 4`"),
        ("K: int", "every parameter needs a type and a default"),
        ("K: set = 3", "90_tiny, cell of parameters: type set is not understood"),
        ("K: int = f(3)", "90_tiny, cell of parameters: malformed node"),
        ("K: int =", "90_tiny, cell of parameters: invalid syntax"),
    ):
        path.write_text(text.replace("K: int = 3", line))
        with pytest.raises(checks.InputError, match=message):
            parameters.declared("90_tiny")
    path.write_text(text.replace('"parameters"', '"nothing"'))
    with pytest.raises(checks.InputError, match="90_tiny has no cell tagged `parameters`"):
        parameters.declared("90_tiny")


# The first cells of all notebooks -----------------------------------------------------------------


@functools.cache
def first_cells(book):
    """Parameters cell, and the cells up to the one that checks them, compiled."""
    sources = code(book)
    count = next(i for i, source in enumerate(sources) if "notebook.start" in source) + 1
    return [compile(source, book, "exec") for source in sources[:count]]


@pytest.fixture
def refused(monkeypatch, tmp_path):
    """A function ``(book, **values) -> error`` of the first cells, empty if there is none.

    No data set is on this machine but digits, and no GPU.
    """
    import torch

    monkeypatch.setenv("NCLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def run(book, **values):
        declaration, *setup = first_cells(book)
        namespace = {"__name__": "__main__"}
        exec(declaration, namespace)
        assert values.keys() <= namespace.keys()
        namespace |= values
        try:
            for cell in setup:
                exec(cell, namespace)
        except checks.InputError as error:
            return str(error)
        return ""

    return run


@pytest.mark.parametrize("book", BOOKS)
def test_the_profiles_pass_the_first_cell_as_far_as_their_data_are_here(book, refused):
    for profile in runs.profiles():
        values = runs.profile(profile).get(book, {})
        message = refused(book, **values)
        if values.get("device") == "cuda":
            assert "PyTorch sees no GPU here" in message
            message = refused(book, **values | {"device": "cpu"})
        needs_data = {"fashion_mnist", "mnist", "cifar10", "cifar100"} & set(
            map(str, values.values())
        )
        assert message.startswith("data set ") if needs_data else message == "", profile
        if needs_data:
            assert "run `nclib data fetch " in message


def test_the_readmes_and_profiles_examples_pass():
    runs.job("01", overrides={"gamma": "2", "widths": "2,16"})
    sweeps.grid("01", {"gamma": "1,2,3", "widths": "2,8;64"}, seeds="0:3")
    faces = {"many_dataset": "folder", "folder": "PATH", "many_dims": "512"}
    faces |= {"net_temperatures": "0.1,0.05,0.02", "best_temperature": "0.02"}
    runs.job("04", "paper", faces)


# Where zero, a negative or any value at all means something.
ZERO = {
    *("seed", "seeds", "assignment_seeds", "cmf_momentum", "tuning_seeds", "word_seeds"),
    *("03.net_seeds", "05.net_seeds"),
    *("alpha", "alpha_net", "gamma"),  # plain cross-entropy
    *("01.weight_decay", "04.weight_decay", "04.many_weight_decay"),  # none
    "validation",  # none held out
}
ANY_TEXT = {"profile", "folder"}  # names: of the run, and of a folder, which is looked for


def wrong_values(book, name, kind, default):
    """Values that no parameter of this type and name may have."""
    options = typing.get_args(kind) if len(parameters._options(kind)) > 1 else (kind,)
    kind = options[0]
    entry = kind
    wrap = lambda value: value
    if typing.get_origin(kind) is list and typing.get_origin(kind.__args__[0]) is list:
        entry = kind.__args__[0].__args__[0]
        yield from ([], [[]], [[1]], "x", None, [default[0], default[0][:-1]])
        wrap = lambda value: [[value] * len(default[0])]
    elif typing.get_origin(kind) is list:
        entry = kind.__args__[0]
        yield from ([], "x", {}, 1, *([None] if len(options) == 1 else []))
        wrap = lambda value: [value, *(default or [])[1:]]
    elif typing.get_origin(kind) is dict:
        entry = kind.__args__[1]
        yield from ({}, [], "x", None, {-1: 1}, {0: 1}, {99: 1}, {2: 1}, {1.5: 1})
        wrap = lambda value: default | {1: value}
    if entry in (int, float):
        numbers = [-1, -0.5, math.nan, math.inf, -math.inf, "1", True, None]
        numbers += [1.5] if entry is int else []
        numbers += [] if ZERO & {name, f"{book[:2]}.{name}"} else [0]
        if wrap(None) is None and len(options) > 1:
            numbers.remove(None)
        yield from map(wrap, numbers)
    elif entry is bool:
        yield from (1, 0, "yes", None)
    elif entry is str:
        yield from map(wrap, (1, *([] if name in ANY_TEXT else ["nonsense", ""])))


@pytest.mark.parametrize("book", BOOKS)
def test_a_wrong_value_of_every_parameter_is_refused_by_name(book, refused):
    for name, (kind, default, _) in parameters.declared(book).items():
        values = list(wrong_values(book, name, kind, default))
        assert values
        for value in values:
            message = refused(book, **{name: value})
            assert name in message.partition(", got")[0], f"{name} = {value!r}: {message!r}"
            assert "\n" not in message


@pytest.mark.parametrize("book", BOOKS)
def test_zero_is_accepted_where_it_means_something(book, refused):
    for name, (_, default, _) in parameters.declared(book).items():
        if ZERO & {name, f"{book[:2]}.{name}"}:
            assert refused(book, **{name: [0] if isinstance(default, list) else 0}) == ""


@pytest.mark.parametrize("book", BOOKS)
def test_what_has_a_list_of_alternatives_takes_them_all(book, refused):
    elsewhere = ("data set ", "no SVHN numbers at ", "no image folder at ")
    for name, (_, _, comment) in parameters.declared(book).items():
        alternatives = comment.rpartition("[")[2].rstrip("]").split(" | ")
        if len(alternatives) > 1:
            for text in alternatives:
                message = refused(book, **{name: text})
                assert not message or message.startswith(elsewhere), message


def test_alternatives_are_those_of_the_library():
    from nclib.deep import data, nets
    from nclib.results.convex_duality import nets as batch_norm_head
    from nclib.results.large_class import data as large_class
    from nclib.results.multi_label import data as multi_label_data
    from nclib.results.multi_label import nets as multi_label_study
    from nclib.results.multi_label import theory as multi_label

    four = set(data.NAMES) - {"cifar100"}
    lists = {
        "01": {"dataset": data.NAMES, "architecture": nets.ARCHITECTURES},
        "02": {"dataset": data.NAMES, "temperature_dataset": data.NAMES}
        | {"width_dataset": data.NAMES, "architecture": nets.ARCHITECTURES},
        "03": {"dataset": multi_label_data.SOURCES, "recipe": multi_label_data.RECIPES}
        | {
            "reduction": multi_label.REDUCTIONS,
            "architecture": multi_label_study.NAMES,
            "uneven_architecture": multi_label_study.NAMES,
        },
        "04": {"dataset": data.NAMES, "assignment_dataset": large_class.SIMILAR},
        "05": {"dataset": four, "architecture": nets.ARCHITECTURES},
        "06": {"dataset": four, "architecture": batch_norm_head.ARCHITECTURES},
    }
    for book, expected in lists.items():
        known = parameters.declared(runs.find(book))
        for name, texts in expected.items():
            stated = known[name].comment.rpartition("[")[2].rstrip("]").split(" | ")
            assert set(stated) == set(texts), (book, name)


COMBINATIONS = [
    ("00", {"train_per_class": 174}, "parameter train_per_class must be at most 173"),
    ("01", {"d": 2}, "parameter d must be at least K - 1 = 3, got 2"),
    ("01", {"epochs": [20, 5]}, "the entries of parameter epochs must be increasing"),
    ("01", {"widths": [2, 2]}, "the entries of parameter widths must be increasing"),
    ("01", {"widths": [0.25, 1]}, "parameter widths must hold whole numbers >= 1 for architecture"),
    ("01", {"widths": [2.5], "architecture": "cnn"}, "for architecture cnn, got 2.5"),
    ("01", {"seeds": [0, 1, 0]}, "the entries of parameter seeds must be distinct"),
    ("01", {"train_per_class": 174}, "parameter train_per_class must be at most 173 for digits"),
    ("01", {"validation": 0.6}, "parameter validation must be at most 0.5, got 0.6"),
    ("01", {"validation": 0.001}, "parameter validation must leave one image per class"),
    ("01", {"validation": 0.5, "train_per_class": 12}, "and ten to train, got 0.5 of 12"),
    ("01", {"lambda_w": 1.0, "lambda_h": 1.0}, "lambda_w and lambda_h are so large"),
    ("01", {"lambda_b": 1e4, "lambda_w": 0.1}, ""),
    ("01", {"dataset": "cifar10"}, "data set cifar10 is not at"),
    ("01", {"architecture": "resnet18", "widths": [0.25, 1]}, ""),
    ("02", {"K": 100, "d": 99}, "parameter K must be less than 100, got 100"),
    ("02", {"net_scales": [3.0]}, "number of entries of parameter net_scales must be at least 2"),
    ("02", {"lambda_w": 1.0, "lambda_h": 1.0}, "lambda_w and lambda_h are so large"),
    ("02", {"width": 0.5}, "parameter width must hold whole numbers >= 1 for architecture mlp"),
    ("02", {"width_per_class": 174}, "parameter width_per_class must be at most 173 for digits"),
    ("02", {"temperature_per_class": 174}, "parameter temperature_per_class must be at most 173"),
    ("02", {"temperature_dataset": "cifar10"}, "data set cifar10 is not at"),
    ("02", {"width_dataset": "mnist"}, "data set mnist is not at"),
    ("03", {"counts": {1: 3, 5: 1}}, "m in parameter counts must be at most K = 4, got 5"),
    ("03", {"counts": {2: 3}}, "parameter counts needs samples with one label"),
    ("03", {"lambda_w": 1.0, "lambda_h": 1.0}, "lambda_w and lambda_h are so large"),
    ("03", {"singles_per_class": 131}, "parameter singles_per_class must be at most 130"),
    ("03", {"pairs_per_set": [5, 131]}, "parameter pairs_per_set must be at most 130 for digits"),
    ("03", {"test_counts": [45, 5]}, "parameter test_counts must be at most 44 for digits"),
    ("03", {"test_counts": [40]}, "number of entries of parameter test_counts must be exactly 2"),
    ("03", {"pairs_per_set": [0, 0]}, "the sum of parameter pairs_per_set must be greater than 0"),
    ("03", {"pairs_per_set": [20, 0]}, ""),
    ("03", {"dataset": "svhn"}, "no SVHN numbers at"),
    ("03", {"dataset": "mnist"}, "data set mnist is not at"),
    ("03", {"dataset": "mnist", "singles_per_class": 5422}, "at most 5421 for mnist"),
    ("03", {"uneven_pairs": [131, 5, 1]}, "parameter uneven_pairs must be at most 130"),
    ("03", {"more_cells": ["digits-mlp"]}, "must hold texts such as digits/mlp"),
    ("03", {"held_out": 0.0}, "parameter held_out must be at least 0.02, got 0.0"),
    ("04", {"sizes": [[7, 3], [7, 3]]}, "the entries of parameter sizes must be distinct"),
    ("04", {"sizes": [[7, 3, 1]]}, "parameter sizes needs (K, d), got [7, 3, 1]"),
    ("04", {"sizes": [[33, 6]]}, "no margin to compare with is known for (33, 6)"),
    ("04", {"large_sizes": [[10, 10]]}, "K in parameter large_sizes must be greater than d = 10"),
    ("04", {"best_temperature": 0.3}, "parameter best_temperature must be one of net_temperatures"),
    ("04", {"many_per_class": 131}, "parameter many_per_class must be a number, at most 130"),
    ("04", {"many_dataset": "folder"}, "no image folder at ''"),
    ("04", {"folder": "x"}, "parameter folder is 'x', but many_dataset is digits x 12"),
    ("04", {"many_dataset": "cifar10 x 12"}, "data set cifar10 is not at"),
    ("04", {"assignment_dataset": "fashion_mnist"}, "data set fashion_mnist is not at"),
    ("04", {"words": 1025}, "parameter word_dim = 32 is too small for a Gold code of words = 1025"),
    ("04", {"text_length": 600}, "different words, vocabulary=300 were asked for"),
    ("05", {"kappa": 0.3}, "parameter kappa must be less than 0.272"),
    ("05", {"kappa": 0.3, "depths": [1]}, ""),
    ("05", {"depths": [5]}, "parameter depths must be at most 4, got 5 in [5]"),
    ("05", {"lambdas": [0.1]}, "the number of entries of parameter lambdas must be exactly 2"),
    ("05", {"lambdas": [10.0, 10.0]}, "parameter lambdas and lambda_h: so large"),
    ("05", {"lambda_imbalance": 1.0}, "parameter lambda_imbalance: so large"),
    ("05", {"lambda_b_grid": [0.05, 0.1]}, "parameter lambda_b_grid needs decays on both sides"),
    ("05", {"lambda_b_grid": [5.0, 9.0]}, "parameter lambda_b_grid needs decays on both sides"),
    ("05", {"race": [[10, 4, 9, 3]]}, "width in parameter race must be at least classes = 10"),
    ("05", {"race": [[10, 4, 20, 3], [10, 4, 30, 3]]}, "race must not repeat (classes, layers)"),
    ("05", {"milestones": [0.8, 0.5]}, "the entries of parameter milestones must be increasing"),
    ("05", {"layers_to_probe": ["backbone.1", "x"]}, "parameter layers_to_probe must be one of"),
    ("05", {"layers_to_probe": ["backbone.1"]}, "number of entries of parameter layers_to_probe"),
    ("05", {"layers_to_probe": ["backbone.3", "backbone.6"]}, ""),
    ("05", {"net_width": 0.25}, "parameter net_width must hold whole numbers"),
    ("05", {"floor_per_class": 174}, "parameter floor_per_class must be at most 173 for digits"),
    ("05", {"dataset": "cifar100"}, "parameter dataset must be one of digits"),
    ("06", {"counts": [20, 20, 1]}, "the sum of parameter counts must be at most 40"),
    ("06", {"counts": [3, 3]}, "parameter counts needs unequal classes"),
    ("06", {"counts": [19, 18]}, "the smallest entry of parameter counts must be at most 17"),
    ("06", {"descents": [[4, 5, 0.05]]}, "parameter descents needs a network of depth 3 and"),
    ("06", {"descents": [[4, 3, 0.05]]}, "parameter descents needs a network of depth 3 and"),
    ("06", {"descents": [[4.5, 3, 0.05], [4, 5, 0.05]]}, "must be whole numbers"),
    ("06", {"whitened_per_class": 6}, "whitened_per_class = 6 is too large to whiten digits"),
    ("06", {"accuracy_per_class": [1, 7]}, "parameter accuracy_per_class = [1, 7] is too large"),
    ("06", {"per_class": 61}, "parameter per_class must be at most 60 for digits, got 61"),
    ("06", {"majority": 61}, "parameter majority must be at most 60 for digits"),
    ("06", {"minority": 40}, "parameter majority must be greater than minority = 40"),
    ("06", {"beta_unbalanced": 2.0}, "beta_unbalanced must be greater than minority**0.5 = 2.0"),
    ("06", {"beta_unbalanced": 7.0}, "beta_unbalanced must be less than majority**0.5"),
    ("06", {"certify_per_class": 21}, "parameter certify_per_class must be at most per_class = 20"),
    ("06", {"width": 9}, "parameter width must be at least 10, got 9"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("book", "values", "message"), COMBINATIONS, ids=lambda value: str(value)[:40].replace(" ", "")
)
def test_combinations_are_refused_in_the_first_cell(book, values, message, refused):
    found = refused(runs.find(book), **values)
    assert message in found if message else found == ""


def test_nothing_is_computed_before_the_check():
    """The check is the first call of the first cell after the imports."""
    for book in BOOKS:
        statements = itertools.chain.from_iterable(ast.parse(c).body for c in code(book)[1:])
        first = next(s for s in statements if not isinstance(s, ast.Import | ast.ImportFrom))
        assert ast.unparse(first) == f"run = notebook.start('{book}', globals())"


def test_the_command_refuses_before_a_kernel_starts():
    for book in BOOKS:
        with pytest.raises(checks.InputError, match="parameter seed must be at least 0, got -1"):
            runs.job(book, overrides={"seed": "-1"})
    with pytest.raises(checks.InputError, match="parameter weight_decay must be greater than 0"):
        runs.job("03", overrides={"weight_decay": "-1"})
    with pytest.raises(checks.InputError, match="parameter seeds is empty"):
        runs.job("01", overrides={"seeds": "[]"})
