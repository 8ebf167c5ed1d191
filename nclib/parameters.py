"""A notebook's parameters: what its tagged cell declares, values read from text, and their checks.

A parameter is one line: name, type, default, comment.  The comment may end with what the value has
to be, in brackets; that is what is checked, before a kernel starts and in a notebook's first cell::

    K: int = 4  # classes of the model [>= 3]
    d: int = 6  # feature dimension [>= K - 1]
    dataset: str = "digits"  # data set [digits | fashion_mnist]
    epochs: list[int] = [5, 20]  # training lengths [>= 1, increasing]
    decays: list[float] = [0.1, 0.2]  # of both layers [len == 2, > 0]
    sizes: list[list[int]] = [[7, 3]]  # codes [K, d: K >= 2, d >= 1, distinct]

Conditions are separated by commas.  ``>= expression`` (``<=``, ``>``, ``<``, ``==``, ``!=``,
``in``) holds for every number in the value, with ``len``, ``min``, ``max`` or ``sum`` before it for
that of all.  An expression is arithmetic with numbers and other parameters.  ``a | b`` lists the
accepted texts.  Lists may be ``distinct``, ``increasing`` or ``decreasing``, and have at least one
entry unless they ``may be empty``.  Names before a colon are the columns of a list of lists, or key
and value of a dict.  Numbers are always finite, and ``None`` meets every condition.
"""

import ast
import contextlib
import itertools
import math
import operator
import re
import types
import typing

import yaml

from nclib import checks, files, paths


class Parameter(typing.NamedTuple):
    """Type, default and comment (with the conditions) of one parameter."""

    kind: typing.Any
    default: typing.Any
    comment: str


# The cell -----------------------------------------------------------------------------------------


def declared(name):
    """Parameters of the notebook ``name``: name -> :class:`Parameter`, from its tagged cell.

    Raises :class:`~nclib.checks.InputError` if there is no such notebook or cell, and for a
    parameter without a type or a plain default.
    """
    cells = files.read_cells(paths.NOTEBOOKS / f"{name}.ipynb")
    source = next((text for _, text, tags in cells if "parameters" in tags), None)
    if source is None:
        raise checks.InputError(f"{name} has no cell tagged `parameters`")
    lines, result = source.splitlines(), {}
    try:
        for statement in ast.parse(source).body:
            if not isinstance(statement, ast.AnnAssign) or statement.value is None:
                raise ValueError("every parameter needs a type and a default, as in `K: int = 4`")
            comment = lines[statement.end_lineno - 1].partition("#")[2].strip()
            default = ast.literal_eval(statement.value)
            result[statement.target.id] = Parameter(_kind(statement.annotation), default, comment)
    except (SyntaxError, ValueError) as error:
        raise checks.InputError(f"{name}, cell of parameters: {error}") from None
    return result


def _kind(node):
    """The type an annotation means: plain types, ``list[…]``, ``dict[…]`` and ``… | None``."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _kind(node.left) | _kind(node.right)
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return types.GenericAlias(_kind(node.value), tuple(_kind(part) for part in inner))
    if isinstance(node, ast.Constant) and node.value is None:
        return types.NoneType
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return _TYPES[node.id]
    raise ValueError(f"type {ast.unparse(node)} is not understood")


_TYPES = {t.__name__: t for t in (int, float, str, bool, list, dict)}


def type_name(kind):
    """A type as the cell writes it: ``int``, ``list[int] | None``."""
    return str(kind) if typing.get_origin(kind) else kind.__name__


def _options(kind):
    """The parts of a union; one part for any other type."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def unknown(key, known):
    """The error for a parameter that a notebook does not have."""
    return checks.InputError(
        f"unknown parameter {key}; this notebook accepts {', '.join(sorted(known))}"
    )


# Texts --------------------------------------------------------------------------------------------


def read(key, text, kind):
    """The value that ``text`` (as in ``-p key=text``) means, by the type of the parameter alone.

    Numbers are decimal (``010`` is ten), ``yes`` is a text unless the type is bool, and ``None`` or
    ``null`` is None where the type allows it.  Lists are written ``1,2`` or ``[1, 2]``, dicts
    ``{1: 3, 2: 2}``.  Raises :class:`~nclib.checks.InputError`.
    """
    plain, *_ = (part for part in _options(kind) if part is not types.NoneType)
    origin = typing.get_origin(plain)
    if plain is not kind and text.strip().lower() in ("none", "null"):
        return None
    tries = [text]
    if origin is list:
        tries.append(f"[{text}]")  # the brackets may be left out
    if origin is dict:
        tries = [text.replace(":", ": "), f"{{{text}}}".replace(":", ": ")]
    if origin is None or not _GAP.search(text):
        for attempt in tries:
            with contextlib.suppress(ValueError, KeyError, yaml.YAMLError):
                return _typed(attempt if origin is None else files.yaml_texts(attempt), plain)
    hint = _HINTS.get(origin or plain, "")
    raise checks.InputError(f"parameter {key} must be {type_name(kind)}, got {text!r}{hint}")


_GAP = re.compile(r"^\s*(,|$)|[\[{,]\s*,|,\s*([\]}]|$)")  # an empty entry, which YAML would drop
_HINTS = {
    list: "; write a list as 1,2 or [1, 2]",
    dict: "; write a dict as {1: 3, 2: 2}",
    bool: "; write true or false",
}
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _typed(node, kind):
    """Texts, or lists and dicts of texts, as values of type ``kind``; ValueError or KeyError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if not isinstance(node, origin or str):
        raise ValueError
    if origin is list:
        return [_typed(part, arguments[0]) for part in node]
    if origin is dict:
        return {_typed(k, arguments[0]): _typed(v, arguments[1]) for k, v in node.items()}
    if kind is bool:
        return _BOOLEANS[node.strip().lower()]
    if kind is float and re.fullmatch(r"\s*[+-]?\d+\s*", node):
        return int(node)  # widths 2, 8 stay what they were written as
    return kind(node)


# Checks -------------------------------------------------------------------------------------------


def check(values, known):
    """Raise :class:`~nclib.checks.InputError` for the first value that its declaration excludes.

    ``values``: name -> value, of all parameters; ``known``: as :func:`declared` returns it.
    """
    for key, value in values.items():
        if not _matches(value, kind := known[key].kind):
            hint = ""
            if isinstance(value, str) and "float" in str(kind):
                hint = " (YAML reads 1e-3 as text: write 1.0e-3)"
            raise checks.InputError(
                f"parameter {key} must be {type_name(kind)}, got {value!r}{hint}"
            )
    for key, value in values.items():
        conditions = re.search(r"\[([^\[\]]*)\]$", known[key].comment)
        conditions = conditions.group(1) if conditions else ""
        _check_numbers(key, value, "may be empty" in conditions)
        if value is None:
            continue
        try:
            _check_conditions(key, value, conditions, values)
        except checks.InputError:
            raise
        except (SyntaxError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise checks.InputError(
                f"the condition [{conditions}] of parameter {key} has no meaning for {value!r} "
                f"({type(error).__name__}: {error})"
            ) from None


def _matches(value, kind):
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if len(_options(kind)) > 1:
        return any(_matches(value, option) for option in arguments)
    if origin is list:
        return isinstance(value, list) and all(_matches(v, arguments[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _matches(k, arguments[0]) and _matches(v, arguments[1]) for k, v in value.items()
        )
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _check_numbers(key, value, may_be_empty):
    if isinstance(value, list | dict):
        if not value and not may_be_empty:
            raise checks.InputError(f"parameter {key} is empty: give it at least one value")
        for part in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _check_numbers(key, part, may_be_empty)
    elif isinstance(value, float) and not math.isfinite(value):
        raise checks.InputError(f"parameter {key} must be finite, got {value}")


_RELATIONS = {
    ">=": (operator.ge, "at least"),
    "<=": (operator.le, "at most"),
    ">": (operator.gt, "greater than"),
    "<": (operator.lt, "less than"),
    "==": (operator.eq, "exactly"),
    "!=": (operator.ne, "different from"),
    "in": (lambda entry, accepted: entry in accepted, "one of"),
}
_CONDITION = re.compile(r"(\w*)\s*(>=|<=|==|!=|>|<|(?<!\w)in\s)\s*(.+)")
_TOTALS = {
    "len": (len, "number of entries"),
    "min": (min, "smallest entry"),
    "max": (max, "largest entry"),
    "sum": (sum, "sum"),
}
_ORDERS = {"increasing": operator.lt, "decreasing": operator.gt, "distinct": operator.ne}
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def _check_conditions(key, value, conditions, values):
    columns, _, conditions = conditions.rpartition(":")
    columns = [column.strip() for column in columns.split(",")] if columns else []
    rows = list(value.items()) if isinstance(value, dict) else value
    for row in rows if columns else []:
        if len(row) != len(columns):
            raise checks.InputError(f"parameter {key} needs ({', '.join(columns)}), got {row}")
    for condition in filter(None, map(str.strip, conditions.split(","))):
        relation = _CONDITION.fullmatch(condition)
        if "|" in condition:
            for entry in _entries(value):
                checks.choice(f"parameter {key}", entry, re.split(r"\s*\|\s*", condition))
        elif condition in _ORDERS:
            _check_order(key, value, condition)
        elif relation and relation[1] in columns:
            for row in rows:
                scope = values | dict(zip(columns, row, strict=True))
                what = f"{relation[1]} in parameter {key}"
                _check_relation(what, [scope[relation[1]]], relation, scope, f" in {row}")
        elif relation:
            what, entries = f"parameter {key}", _entries(value)
            if relation[1]:
                total, word = _TOTALS[relation[1]]
                what, entries = f"the {word} of {what}", [total(value)]
            shown = f" in {value}" if isinstance(value, list | dict) else ""
            _check_relation(what, entries, relation, values, shown)
        elif condition != "may be empty":
            raise checks.InputError(f"condition {condition!r} of parameter {key} is no condition")


def _check_relation(what, entries, relation, scope, shown):
    _, name, expression = map(str.strip, relation.groups())
    holds, word = _RELATIONS[name]
    node = ast.parse(expression, mode="eval").body
    bound = _evaluate(node, scope)
    if bound is None:
        return  # bounded by a parameter that is None
    computed = "" if isinstance(node, ast.Constant) else f" = {bound}"
    for entry in entries:
        if not holds(entry, bound):
            raise checks.InputError(
                f"{what} must be {word} {expression}{computed}, got {entry}{shown}"
            )


def _check_order(key, value, order):
    pairs = itertools.pairwise if order != "distinct" else lambda v: itertools.combinations(v, 2)
    if not all(_ORDERS[order](a, b) for a, b in pairs(value)):
        raise checks.InputError(f"the entries of parameter {key} must be {order}, got {value}")


def _evaluate(node, scope):
    """The value of an arithmetic expression with numbers and the names of parameters."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return scope[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_evaluate(left, scope), _evaluate(right, scope))
    raise ValueError(f"{ast.unparse(node)} is no arithmetic")


def _entries(value):
    """The plain numbers and texts inside a parameter."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [entry for part in value for entry in _entries(part)]
    return [value]
