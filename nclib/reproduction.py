"""Does a run reproduce the stored results?  Tables within tolerances, claims by verdict.

Another processor sums in another order, so numbers agree up to rounding: ``found`` reproduces
``stored`` if ``|found - stored| <= 1e-6 (|stored| + 0.1)``.  What a rounding may carry anywhere,
the numbers of trained networks and of random starts, is declared where the table is saved
(``run.figure(…, varies=…)``) and compared by the verdicts of its claims only; so is a column that a
solver leaves at its own tolerance.
"""

from dataclasses import dataclass, field
from pathlib import Path

from nclib import checks, claims, files

TOLERANCE, FLOOR = 1e-6, 0.1


class NotReproduced(AssertionError):
    """A table or a verdict that differs from the stored one; the message names both values."""


@dataclass
class Comparison:
    """What a run reproduces of the stored results in ``stored``, and what it does not."""

    stored: Path
    tables: int = 0
    verdicts: int = 0
    largest: float = 0.0
    differences: list = field(default_factory=list)

    def summary(self):
        """One line, such as ``23 of 23 tables and 73 of 73 verdicts reproduced, …``."""
        largest = f"{self.largest:.0e}" if self.largest else "0"
        missed = {kind: sum(k == kind for k, _ in self.differences) for kind in ("table", "claim")}
        return (
            f"{self.tables - missed['table']} of {self.tables} tables and "
            f"{self.verdicts - missed['claim']} of {self.verdicts} verdicts reproduced, "
            f"largest difference {largest}"
        )

    def lines(self):
        """One line per difference: table or claim, place, both values."""
        return [text for _, text in self.differences]


def compare(folder, stored, tables):
    """Compare the tables and claims in ``folder`` with those in ``stored``.

    ``tables``: name of each table that the run made -> its ``varies``, as
    :meth:`nclib.notebook.Run.table` collects them.  Returns a :class:`Comparison`.
    """
    folder, stored = Path(folder), Path(stored)
    result = Comparison(stored)
    for name in sorted(tables.keys() | {path.stem for path in stored.glob("*.csv")}):
        result.tables += 1
        try:
            found = compare_tables(folder / f"{name}.csv", stored, tables.get(name, ()))
            result.largest = max(result.largest, found)
        except NotReproduced as error:
            result.differences.append(("table", str(error)))
    ours, theirs = (
        {claim.id: claim.verdict for claim in claims.read(place / "claims.json")}
        for place in (folder, stored)
    )
    for check in theirs | ours:
        result.verdicts += 1
        if ours.get(check) != theirs.get(check):
            was, now = theirs.get(check, "unknown"), ours.get(check, "missing")
            result.differences.append(("claim", f"claim {check}: {now}, stored {was}"))
    return result


def compare_tables(path, stored, varies=()):
    """The largest difference of the table at ``path`` from the one of that name in ``stored``.

    ``varies``: columns that are not compared, ``True`` for all columns of decimal numbers, a
    mapping from columns to tolerances of their own, or ``"rows"`` if even the number of rows is
    open.  Raises :class:`NotReproduced` if they disagree, naming table, column, row, both values.
    """
    import pandas as pd

    name = Path(path).stem
    try:
        found, known = (
            pd.read_csv(place, keep_default_na=False, na_values=["nan", ""])
            for place in (path, Path(stored) / f"{name}.csv")
        )
    except FileNotFoundError as error:
        where = "not stored" if Path(path).exists() else "stored, but not made by this run"
        raise NotReproduced(f"table {name} is {where} ({Path(error.filename).name})") from None
    except ValueError as error:
        raise NotReproduced(f"table {name} cannot be read: {error}") from None
    if list(found) != list(known):
        only = [
            ", ".join(c for c in one if c not in other) or "none"
            for one, other in ((found, known), (known, found))
        ]
        raise NotReproduced(f"table {name} has other columns: {only[0]}; stored only: {only[1]}")
    if varies == "rows":
        return 0.0
    if len(found) != len(known):
        raise NotReproduced(f"table {name} has {len(found)} rows, stored {len(known)}")
    return max((_largest(name, c, found[c], known[c], varies) for c in found), default=0.0)


def _largest(name, column, found, known, varies):
    """Largest difference in one column, relative to ``|stored| + 0.1``."""
    import numpy as np

    decimal = any(values.dtype.kind == "f" for values in (found, known))
    if varies is True:
        varies = [column] if decimal else []
    tolerance = TOLERANCE
    if column in varies:
        if not isinstance(varies, dict):
            return 0.0
        tolerance = varies[column]
    if not all(values.dtype.kind in "fiu" for values in (found, known)):
        wrong = (found != known) & ~(found.isna() & known.isna())
        difference = 0.0
    else:
        x, y = found.to_numpy(float), known.to_numpy(float)
        same = (x == y) | (np.isnan(x) & np.isnan(y))  # infinities, too
        with np.errstate(invalid="ignore"):
            off = np.where(same, 0.0, np.abs(x - y) / (np.abs(y) + FLOOR))
        wrong = ~(off <= tolerance)
        difference = float(off.max(initial=0.0)) if tolerance == TOLERANCE else 0.0
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        more = f" and {int(wrong.sum()) - 1} more rows" if wrong.sum() > 1 else ""
        raise NotReproduced(
            f"table {name}, column {column}, row {row}: {found[row]}, stored {known[row]}{more}"
        )
    return difference


KEYS = {"seconds": float, "threads": int, "device": str, "revision": str}
KEYS |= dict.fromkeys(("parameters", "versions", "data", "tables"), dict)


def read_manifest(path):
    """What a run says of itself; a key of :data:`KEYS` that it lacks is empty.

    Raises :class:`~nclib.checks.InputError` if the file is missing or damaged.
    """
    content = files.read_json(path)
    for key, kind in KEYS.items():
        value = content.setdefault(key, kind())
        if not isinstance(value, int | float if kind is float else kind):
            raise files.damaged(path, f"{key} is {value!r}")
    return content


def intact(folder):
    """The manifest in ``folder`` if all files it lists are there and unchanged, else ``None``."""
    try:
        manifest = read_manifest(Path(folder) / "manifest.json")
        known = manifest["files"]
        good = all(known[name] == files.digest(Path(folder) / name) for name in known)
    except (checks.InputError, OSError, KeyError, TypeError):
        return None
    return manifest if good else None
