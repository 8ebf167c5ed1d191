"""The rows of a notebook's claim table and their checks, as data.

One entry per row of ``notebooks/claims/NN_name.yaml``::

    L12:
      statement: "MSE: simplex ETF with a free bias, orthogonal frame without."
      source: Zhou et al. 2022 (ICML), Theorem 3.1
      seen: 06_bias_geometry    # the figure or table in which a reader sees it
      needs: paper              # optional: while nothing is measured, the profile that would
      networks: [net]           # optional: findings on trained networks, all (true) or these checks
      checks:
        value: {below: 1.0e-11}
        opens: {above: 1.0e-3, note: "above the threshold, K = {K}"}
        frame: {close: 1.0e-5, to: 0.3203, note: raw NC2 of an orthogonal frame}
        net: {below: 0.5, each: loss}

or one unnamed ``check: {…}``.  A check has one relation: ``below`` or ``above`` (a bound),
``close`` (an absolute tolerance) or ``equal`` (counts, booleans, names).  A bound that is
``given``, and ``close`` without ``to``, are pairs in the notebook: (measured, expected).  Further:

``each``            the notebook gives one number per entry of a mapping; the value says what the
                    entries are, or lists all of them (as a mapping of bounds does, too)
``note``            with {braces} for ``text`` of the notebook and for the ``{key}`` of an entry
``counterexample``  passing shows that the statement is false or conditional
``when``            the condition under which the check is made at all

Ids of rows and names of checks have no dots: ``L12.opens.32`` is an entry of a check of a row.
"""

import math
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from nclib import checks, files, paths

RELATIONS = ("below", "above", "close", "equal")
GIVEN = "given"
TEXT = (str, "text; quote it")
ROW = dict.fromkeys(("statement", "source", "seen", "needs"), TEXT) | {
    "networks": (bool | list, "true, false or a list of checks")
}
FIELDS = {  # of a check, beside its relation
    "note": TEXT,
    "when": TEXT,
    "each": (str | list, "text or a list of the entries"),
    "counterexample": (bool, "true or false"),
}
PLAIN = re.compile(r"[\w-]+")
OPTIONS = ("row", "text", "converged", "applies")  # what Ledger.claim takes beside the checks


@dataclass(frozen=True)
class Check:
    """One declared check.  ``bound``: a constant, one per entry, or :data:`GIVEN`."""

    name: str  # "" for the only check of a row
    relation: str
    bound: object
    tolerance: float | None = None
    each: str | list = ""
    note: str = ""
    counterexample: bool = False
    when: str = ""


def load(notebook):
    """The claim table of a notebook: row id -> its entry as the head of this module shows it.

    Raises :class:`~nclib.checks.InputError`, one line with file, row and check, for an entry that
    is incomplete, unknown or of the wrong type.
    """
    path = paths.CLAIMS / f"{notebook}.yaml"
    if not path.exists():
        raise checks.InputError(f"no claim catalogue for {notebook}: expected {path}")
    rows = files.read_yaml(path)
    if not isinstance(rows, dict):
        raise checks.InputError(f"{path.name} must map row ids to entries")
    for row, entry in rows.items():
        _check_row(f"{path.name}, row {row}", row, entry)
    return rows


def _check_row(where, row, entry):
    if not isinstance(row, str) or not PLAIN.fullmatch(row):
        raise checks.InputError(f"{where}: the id of a row must be a word without dots")
    if not isinstance(entry, dict):
        raise checks.InputError(f"{where} must have a statement and a source, got {entry!r}")
    missing, unknown = (
        {"statement", "source"} - entry.keys(),
        entry.keys() - {*ROW, "check", "checks"},
    )
    if missing or unknown:
        problem = f"lacks {sorted(missing)}" if missing else f"has unknown {sorted(unknown)}"
        raise checks.InputError(f"{where} {problem}")
    _check_kinds(where, entry, ROW)
    names, marks = list(declared(entry, where)), entry.get("networks", False)
    lost = [] if isinstance(marks, bool) else [mark for mark in marks if mark not in names]
    if lost and entry.get("checks"):
        raise checks.InputError(f"{where}: networks names {lost[0]}; its checks are {_list(names)}")


def declared(entry, where="row"):
    """The checks of a row: name -> :class:`Check`; empty if the entry declares none."""
    if {"check", "checks"} <= entry.keys():
        raise checks.InputError(f"{where}: write either check or checks")
    found = {"": entry["check"]} if "check" in entry else entry.get("checks", {})
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise checks.InputError(f"{where}: checks must map names (text) to what they ask")
    for name in entry.get("checks", {}):
        if not PLAIN.fullmatch(name) or name in OPTIONS:
            raise checks.InputError(
                f"{where}: the name of check {name!r} must be a word without dots, other than "
                f"{_list(OPTIONS)}"
            )
    return {name: _check(f"{where}, check {name or '(unnamed)'}", name, found[name])
            for name in found}  # fmt: skip


def _check(where, name, spec):
    if not isinstance(spec, dict):
        raise checks.InputError(f"{where} must be a mapping such as {{below: 0.1}}, got {spec!r}")
    relations = [relation for relation in RELATIONS if relation in spec]
    if len(relations) != 1 or spec.keys() - {*RELATIONS, *FIELDS, "to"}:
        raise checks.InputError(
            f"{where}: one of {', '.join(RELATIONS)} is needed, and only "
            f"{', '.join(sorted({*FIELDS, 'to'}))} beside it; got {_list(map(str, spec))}"
        )
    relation = relations[0]
    _check_kinds(where, spec, FIELDS)
    _check_note(where, spec.get("note", ""))
    if "to" in spec and relation != "close":
        raise checks.InputError(f"{where}: `to` belongs to close; {relation} has its own bound")
    tolerance = 0.0 if relation == "equal" else None
    if relation == "close":
        tolerance = _number(f"{where}: close", spec["close"])
        if tolerance < 0:
            raise checks.InputError(f"{where}: close must be at least 0, got {tolerance}")
    key, read = (
        "to" if relation == "close" else relation,
        _exact if relation == "equal" else _number,
    )
    bound = _bound(f"{where}: {key}", spec.get(key, GIVEN), read)
    each = spec.get("each", "")
    if isinstance(bound, dict):
        each = each if isinstance(each, list) else list(bound)
        bound = {str(key): one for key, one in bound.items()}
        if {str(key) for key in each} != bound.keys():
            raise checks.InputError(f"{where}: each and the bounds name different entries")
    if isinstance(each, list) and len({str(key) for key in each}) < len(each):
        raise checks.InputError(f"{where}: each names an entry twice: {_list(map(str, each))}")
    options = {key: spec[key] for key in FIELDS if key in spec}
    return Check(name, relation, bound, tolerance, **options | {"each": each})


def _check_note(where, note):
    try:
        list(string.Formatter().parse(note))
    except ValueError as error:
        raise checks.InputError(f"{where}: note {note!r}: {error}; {{{{ is a brace") from None


def _check_kinds(where, mapping, kinds):
    for key, (kind, wanted) in kinds.items():
        value = mapping.get(key)
        if key in mapping and (not isinstance(value, kind) or value in ("", [])):
            raise checks.InputError(f"{where}: {key} must be {wanted}, got {value!r}")


def _bound(where, value, read):
    """``value``, or each value of a mapping, as ``read`` takes it."""
    if value == GIVEN:
        return value
    if isinstance(value, Mapping) and value:
        return {key: read(f"{where} {key}", one) for key, one in value.items()}
    return read(where, value)


def _exact(where, value):
    if not isinstance(value, bool | int | str):
        raise checks.InputError(f"{where} must be an int, a bool or a name, got {value!r}")
    return value


def _number(where, value):
    """A finite number; YAML 1.1 reads 1e-3 as a text, which is taken for the number it says."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        raise checks.InputError(f"{where} must be a number or given, got {value!r}") from None
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise checks.InputError(f"{where} must be a finite number, got {value!r}")
    return number


def _list(names):
    return ", ".join(names) or "none"
