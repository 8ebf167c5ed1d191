"""What a notebook hands to a claim, read as the declared checks ask: numbers, notes, options.

The first argument ``where`` of these functions is the id of the claim, for messages.
"""

from nclib import checks
from nclib.catalogue import GIVEN


def entries(where, check, value):
    """(key, number or pair) of each entry of a measured value; the key is "" for a single one.

    Raises :class:`~nclib.checks.InputError` if the entries are not those that ``check`` declares.
    """
    many = hasattr(value, "items")  # a mapping or a Series
    if many != bool(check.each):
        wanted = "a mapping is needed, one number per entry" if check.each else "no `each` declared"
        raise checks.InputError(f"claim {where}: {wanted}, got {value!r}")
    if not many:
        return [("", value)]
    found = {_key(key): one for key, one in value.items()}
    wanted = list(map(_key, check.each)) if isinstance(check.each, list) else list(found)
    problems = (
        [f"lacks {key}" for key in wanted if key not in found]
        + [f"has unknown {key}" for key in found if key not in wanted]
        + ["is empty"] * (not found)
        + ["has equal entries"] * (len(found) != len(value))
    )
    if problems:
        raise checks.InputError(
            f"claim {where}: the mapping {', '.join(problems)}; entries are {check.each}"
        )
    return list(found.items())


def _key(key):
    return ".".join(map(str, key)) if isinstance(key, tuple) else str(key)


def numbers(where, check, key, found):
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
