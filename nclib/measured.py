"""What a notebook hands to a claim, read as the declared checks ask: numbers, notes, options.

The first argument ``where`` of these functions is the id of the claim, for messages.
"""

import math
from collections.abc import Mapping
from functools import partial
from itertools import repeat

from nclib import checks
from nclib.catalogue import GIVEN


def entries(where, check, value):
    """(key, numbers or pairs, whether their search converged) of each entry of a measured value.

    The key is "" if ``check`` has no entries.  Raises :class:`~nclib.checks.InputError` if there is
    no number, if the entries are not those that are declared, or if a table lacks a column.
    """
    sure = repeat(check.converged is not False)
    if hasattr(value, "eval"):
        value, sure = _columns(where, check, value)
    if check.each and not hasattr(value, "items"):
        wanted = "a mapping is needed, one number per entry"
        raise checks.InputError(f"claim {where}: {wanted}, got {value!r}")
    if not check.each and isinstance(value, Mapping):
        raise checks.InputError(f"claim {where}: no `each` declared, got {value!r}")
    keyed = value.items() if check.each else [("", value)]
    rows = [(_key(key), one) for key, own in keyed for one in _many(own)]
    found = {}
    for (key, one), good in zip(rows, sure, strict=False):
        numbers, converged = found.setdefault(key, ([], []))
        numbers.append(one)
        converged.append(good)
    if check.each:
        _require_entries(where, check, found, value)
    checks.require(found, f"claim {where}: there is no number")
    return [(key, own, all(converged)) for key, (own, converged) in found.items()]


def _columns(where, check, table):
    """What ``check`` asks of a table: a Series, and for each of its rows whether it converged."""
    try:
        rows = table.query(check.where, engine="python") if check.where else table
        value = _column(rows, check.of or check.name)
        sure = _column(rows, check.converged) if check.converged else None
    except (NameError, TypeError, ValueError) as error:
        columns = ", ".join(map(str, table.columns))
        raise checks.InputError(f"claim {where}: {error}; the table has {columns}") from None
    truths = sure is None or sure.dtype == bool
    checks.require(truths, f"claim {where}: {check.converged} must be true or false in each row")
    return value, repeat(check.converged is not False) if sure is None else sure.tolist()


def _column(rows, expression):
    value = rows.eval(expression, engine="python")
    if not hasattr(value, "items"):
        raise ValueError(f"{expression} is no column")
    return value


def _many(value):
    """The numbers of an array, a Series or a list; one number or pair in a list of its own."""
    if hasattr(value, "reshape"):
        value = value.reshape(-1)
    value = value.tolist() if hasattr(value, "tolist") else value
    return value if isinstance(value, list) else [value]


def _require_entries(where, check, found, value):
    wanted = list(map(_key, check.each)) if isinstance(check.each, list) else list(found)
    problems = (
        [f"lacks {key}" for key in wanted if key not in found]
        + [f"has unknown {key}" for key in found if key not in wanted]
        + ["is empty"] * (not found)
        + ["has equal entries"] * (isinstance(value, Mapping) and len(found) != len(value))
    )
    if problems:
        raise checks.InputError(
            f"claim {where}: the mapping {', '.join(problems)}; entries are {check.each}"
        )


def _key(key):
    return ".".join(map(str, key)) if isinstance(key, tuple) else str(key)


def numbers(where, check, key, found):
    """(measured, bound) of the worst of the numbers or pairs ``found``: all of them must pass."""
    pairs = [_pair(where, check, key, one) for one in found]
    return max(pairs, key=partial(_off, check.relation))


def _off(relation, pair):
    """How far a number is on the wrong side of its bound, and the number where that rounds."""
    measured, bound = pair
    if relation == "equal":
        return measured != bound
    sign = -1 if relation == "above" else 1
    off = sign * (measured - bound) if relation != "close" else abs(measured - bound)
    finite = math.isfinite(measured) and math.isfinite(bound)
    return off if finite else math.inf, sign * measured


def _pair(where, check, key, found):
    """(measured, bound) of one number or pair."""
    pair, given = isinstance(found, tuple), check.bound == GIVEN
    if pair != given or (pair and len(found) != 2):
        problem = "a pair (measured, expected)" if given else "one number: its bound is declared"
        raise checks.InputError(f"claim {where}: give {problem}; got {found!r}")
    bound = check.bound[key] if isinstance(check.bound, dict) else check.bound
    measured, bound = found if pair else (found, bound)
    if check.relation == "equal":
        return _alike(where, measured, bound)
    return _number(where, measured), _number(where, bound)


def _number(where, value):
    """``value``, of torch and numpy too, as a float."""
    found = _item(where, value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise checks.InputError(f"claim {where}: a number is needed, got {value!r}")
    return float(found)


def _alike(where, measured, expected):
    """Two ints, bools or names of one type."""
    measured, expected = _item(where, measured), _item(where, expected)
    if not isinstance(measured, bool | int | str) or type(measured) is not type(expected):
        raise checks.InputError(
            f"claim {where}: exact equality is for ints, bools and names, got {measured!r} and "
            f"{expected!r}; compare floats with close"
        )
    return measured, expected


def _item(where, value):
    try:
        return value.item() if hasattr(value, "item") else value
    except (RuntimeError, ValueError):
        raise checks.InputError(f"claim {where}: one number is needed, got several") from None


def note(where, check, key, text):
    """The note of ``check``, its braces filled with ``text`` and the entry's ``key``."""
    values = {"key": key}
    for name, value in text.items():
        value = {_key(k): v for k, v in value.items()} if hasattr(value, "items") else {key: value}
        values |= {name: value[key]} if key in value else {}
    try:
        return check.note.format(**values)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise checks.InputError(
            f"claim {where}: its note {check.note!r} lacks {error}; give text={{name: value}}, and "
            "write {{ and }} for braces"
        ) from None


def options(where, value, paths):
    """``value``, a bool or mappings of bools, for each of ``paths``; what it does not name is True.

    A path is (check,), (check, entry), (entry,) or () for the only number of a row.
    """
    flat = dict(_flat(where, value))
    known = {path[:i] for path in paths for i in range(len(path) + 1)}
    for path in flat.keys() - known:
        raise checks.InputError(f"{where} names {'.'.join(path)}, which is not measured here")

    def up(path):
        return (path[:i] for i in range(len(path), -1, -1))

    return {path: next((flat[one] for one in up(path) if one in flat), True) for path in paths}


def _flat(where, value, path=()):
    if hasattr(value, "items"):
        for key, one in value.items():
            yield from _flat(where, one, (*path, _key(key)))
        return
    found = value.item() if hasattr(value, "item") else value
    checks.require(isinstance(found, bool), f"{where} must be true or false, got {value!r}")
    yield path, found
