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

``of``              what is judged of a table that the notebook gives: an expression of its columns,
                    such as ``abs(value - bound)`` (pandas' ``eval``); the name of the check unless
                    given
``where``           the rows of the table that count, such as ``depth > 2`` (pandas' ``query``)
``converged``       true in the rows whose search converged, such as ``gradient < 1e-9``; ``false``
                    for a search which proves nothing if it finds nothing
``each``            the notebook gives one number per entry of a mapping; the value says what the
                    entries are, or lists all of them (as a mapping of bounds does, too); in a
                    table or a Series they are its index
``note``            with {braces} for parameters and ``text`` of the notebook, and for the ``{key}``
                    of an entry
``counterexample``  passing shows that the statement is false or conditional
``when``            the condition under which the check is made at all

Ids of rows and names of checks have no dots: ``L12.opens.32`` is an entry of a check of a row.
"""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from nclib import checks, files, paths
from nclib.checks import InputError, require

RELATIONS = ("below", "above", "close", "equal")
GIVEN = "given"
TEXT = (str, "text; quote it")
ROW = dict.fromkeys(("statement", "source", "seen", "needs"), TEXT) | {
    "networks": (bool | list, "true, false or a list of checks")
}
FIELDS = {  # of a check, beside its relation
    "note": TEXT,
    "when": TEXT,
    "of": TEXT,
    "where": TEXT,
    "converged": (str | bool, "an expression of columns, or false"),
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
    of: str = ""
    where: str = ""
    converged: str | bool = ""


def load(notebook):
    """The claim table of a notebook: row id -> its entry as the head of this module shows it.

    Raises :class:`~nclib.checks.InputError`, one line with file, row and check, for an entry that
    is incomplete, unknown or of the wrong type.
    """
    path = paths.CLAIMS / f"{notebook}.yaml"
    require(path.exists(), f"no claim catalogue for {notebook}: expected {path}")
    rows = files.read_yaml(path)
    require(isinstance(rows, dict), f"{path.name} must map row ids to entries")
    for row, entry in rows.items():
        _check_row(f"{path.name}, row {row}", row, entry)
    return rows


def _check_row(where, row, entry):
    word = isinstance(row, str) and PLAIN.fullmatch(row)
    require(word, f"{where}: the id of a row must be a word without dots")
    require(isinstance(entry, dict), f"{where} must have a statement and a source, got {entry!r}")
    missing = {"statement", "source"} - entry.keys()
    require(not missing, f"{where} lacks {sorted(missing)}")
    unknown = entry.keys() - {*ROW, "check", "checks"}
    require(not unknown, f"{where} has unknown {sorted(unknown)}")
    _check_kinds(where, entry, ROW)
    names, marks = list(declared(entry, where)), entry.get("networks", False)
    lost = [] if isinstance(marks, bool) else [mark for mark in marks if mark not in names]
    known = not lost or not entry.get("checks")
    require(known, f"{where}: networks names {_list(lost)}; its checks are {_list(names)}")


def declared(entry, where="row"):
    """The checks of a row: name -> :class:`Check`; empty if the entry declares none."""
    require(not {"check", "checks"} <= entry.keys(), f"{where}: write either check or checks")
    found = {"": entry["check"]} if "check" in entry else entry.get("checks", {})
    named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
    require(named, f"{where}: checks must map names (text) to what they ask")
    for name in entry.get("checks", {}):
        require(
            PLAIN.fullmatch(name) and name not in OPTIONS,
            f"{where}: the name of check {name!r} must be a word without dots, other than "
            f"{_list(OPTIONS)}",
        )
    return {name: _check(f"{where}, check {name or '(unnamed)'}", name, found[name])
            for name in found}  # fmt: skip


def _check(where, name, spec):
    text = f"{where} must be a mapping such as {{below: 0.1}}, got {spec!r}"
    require(isinstance(spec, dict), text)
    relations = [relation for relation in RELATIONS if relation in spec]
    require(
        len(relations) == 1 and not spec.keys() - {*RELATIONS, *FIELDS, "to"},
        f"{where}: one of {', '.join(RELATIONS)} is needed, and only "
        f"{', '.join(sorted({*FIELDS, 'to'}))} beside it; got {_list(map(str, spec))}",
    )
    relation = relations[0]
    _check_kinds(where, spec, FIELDS)
    try:
        list(string.Formatter().parse(spec.get("note", "")))
    except ValueError as error:
        text = f"{where}: note {spec['note']!r}: {error}; {{{{ is a brace"
        raise InputError(text) from None
    alien = "to" in spec and relation != "close"
    require(not alien, f"{where}: `to` belongs to close; {relation} has its own bound")
    key, read, tolerance = relation, _number, None
    if relation == "equal":
        read, tolerance = _exact, 0.0
    if relation == "close":
        key, tolerance = "to", _number(f"{where}: close", spec["close"])
        require(tolerance >= 0, f"{where}: close must be at least 0, got {tolerance}")
    bound = _bound(f"{where}: {key}", spec.get(key, GIVEN), read)
    each = spec.get("each", "")
    if isinstance(bound, dict):
        each = each if isinstance(each, list) else list(bound)
        bound = {str(key): one for key, one in bound.items()}
        alike = {str(key) for key in each} == bound.keys()
        require(alike, f"{where}: each and the bounds name different entries")
    twice = isinstance(each, list) and len({str(key) for key in each}) < len(each)
    require(not twice, f"{where}: each names an entry twice: {_list(map(str, each))}")
    options = {key: spec[key] for key in FIELDS if key in spec}
    return Check(name, relation, bound, tolerance, **options | {"each": each})


def _check_kinds(where, mapping, kinds):
    for key, (kind, wanted) in kinds.items():
        value = mapping.get(key)
        good = key not in mapping or (isinstance(value, kind) and value not in ("", []))
        require(good, f"{where}: {key} must be {wanted}, got {value!r}")


def _bound(where, value, read):
    """``value``, or each value of a mapping, as ``read`` takes it."""
    if value == GIVEN:
        return value
    if isinstance(value, Mapping) and value:
        return {key: read(f"{where} {key}", one) for key, one in value.items()}
    return read(where, value)


def _exact(where, value):
    good = isinstance(value, bool | int | str)
    require(good, f"{where} must be an int, a bool or a name, got {value!r}")
    return value


def _number(where, value):
    """A finite number; YAML 1.1 reads 1e-3 as a text, which is taken for the number it says."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        raise InputError(f"{where} must be a number or given, got {value!r}") from None
    return checks.real(where, number)


def _list(names):
    return ", ".join(names) or "none"
