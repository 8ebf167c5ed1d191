"""The claim: a named, executable check of one statement, and the ledger that collects them.

Statements, checks and bounds are data, see :mod:`nclib.catalogue`.  A notebook only supplies the
numbers; the verdict is computed from them here, never typed:

``holds``           the check passed
``counterexample``  it passed, and shows that the statement is false or conditional
``not reproduced``  a finding on trained networks that this run does not show
``not converged``   the search that should have decided it got stuck
``not run``         nothing was measured, or outside the range for which the row is stated
``fails``           theory or a regression broke
"""

import math
import typing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from nclib import catalogue as tables
from nclib import checks, files
from nclib import measured as measure

VERDICTS = ("holds", "counterexample", "not run", "not reproduced", "not converged", "fails")


@dataclass(frozen=True, repr=False)
class Claim:
    """One check; ``verdict`` is one of :data:`VERDICTS`.

    ``row``, ``relation``, ``bound`` and ``seen`` are those of the catalogue, the numbers exact;
    ``expected`` says the bound as people read it.  The text form has no measured number, so a
    stored notebook reads the same on every machine.
    """

    id: str
    statement: str
    source: str
    measured: float | int | str | None
    expected: float | int | str | None
    tolerance: float | int | None
    verdict: str
    note: str = ""
    row: str = ""
    relation: str = ""
    bound: float | int | str | None = None
    seen: str = ""

    def __repr__(self):
        return f"{self.id}: {self.verdict}"

    @property
    def shown(self):
        """(measured, expected) as texts: three digits, more where fewer would belie the verdict."""
        measured, bound = self.measured, self.bound
        if self.relation not in _SIGNS or not _finite(measured) or not _finite(bound):
            return short(measured), short(self.expected)
        passed = _passed(self.relation, measured, bound, self.tolerance)
        close = self.relation == "close"
        for digits in range(3, 18):
            texts = f"{measured:.{digits}g}", f"{bound:.{digits}g}" if close else exact(bound)
            if _passed(self.relation, *map(float, texts), self.tolerance) == passed:
                break
        return texts[0], _SIGNS[self.relation].format(texts[1], exact(self.tolerance or 0.0))


_SIGNS = {"below": "<= {0}", "above": ">= {0}", "close": "{0} ± {1}"}


def _passed(relation, measured, bound, tolerance):
    """Whether the numbers pass; nothing that is not finite does, nor against such a bound."""
    if relation == "equal":
        return measured == bound
    if not (math.isfinite(measured) and math.isfinite(bound)):
        return False
    if relation == "close":
        return abs(measured - bound) <= tolerance
    return measured <= bound if relation == "below" else measured >= bound


class Ledger:
    """Claims of one notebook, in the order of its claim table.

    ``ledger = Ledger("01_multi_loss_equivalence")``; then :meth:`claim`, once per row or in parts.
    ``again``: a check may be measured again, as a cell run twice by hand does; the last one counts.
    """

    def __init__(self, notebook, catalogue=None, *, again=False):
        self.notebook, self.again = notebook, again
        self.number = notebook.split("_")[0].lstrip("0") or "0"
        self.catalogue = catalogue or tables.load(notebook)
        self._claims = {row: {} for row in self.catalogue}  # row -> check -> its claims

    @cached_property
    def _declared(self):
        return {row: tables.declared(entry, f"row {row}") for row, entry in self.catalogue.items()}

    def claim(self, row, *single, text=None, converged=True, applies=True, **measured):
        """Check the numbers ``measured`` against what the catalogue asks of ``row``.

        One keyword per check, or one positional number for the check of a row that has only an
        unnamed one.  A pair is (measured, expected); a mapping or a Series has one number or pair
        per entry of a check with ``each``, whose ids are ``row.check.entry``.  Of an array, a list
        or a Series, and of what the catalogue asks of a table (a DataFrame), all numbers must pass:
        the worst one is judged, and NaN is worse than any.  ``text`` fills the braces of notes, its
        values may be mappings by entry.  ``converged``: False if the search behind a number got
        stuck, so that a number off its bound reads ``not converged``; ``applies``: False outside
        the range for which the row is stated, which then reads ``not run``; each may be a mapping
        by check, or by entry.

        Returns the :class:`Checked` claims to look at.  Raises
        :class:`~nclib.checks.InputError`, before anything is recorded, for an unknown row or check,
        one measured twice, a missing or unknown entry, or something else than a number.
        """
        self._require_row(row)
        declared = self._declared[row]
        named = dict(zip(("",), single, strict=False)) | measured
        self._require_names(row, declared, named, single)
        planned = {}
        for name, value in named.items():
            check = declared[name]
            for key, found, sure in measure.entries(_id(row, name), check, value):
                path = tuple(filter(None, (name, key)))
                at = _id(row, *path)
                numbers = measure.numbers(at, check, key, found)
                planned[path] = check, at, *numbers, measure.note(at, check, key, text or {}), sure
        converged = measure.options(f"claim {row}: converged", converged, planned)
        applies = measure.options(f"claim {row}: applies", applies, planned)
        made = {name: [] for name in named}
        for path, (check, *numbers, sure) in planned.items():
            claim = self._judge(check, *numbers, sure and converged[path], applies[path])
            made[check.name].append(claim)
        self._claims[row] |= made
        return Checked(sum(made.values(), []))

    def _require_row(self, row):
        if row not in self.catalogue:
            raise checks.InputError(
                f"the catalogue of {self.notebook} has no row {row}; it has "
                f"{', '.join(self.catalogue)}"
            )

    def _require_names(self, row, declared, named, single):
        names = ", ".join(declared) or ("one unnamed check" if declared else "no declared check")
        if len(single) > 1 or (single and "" not in declared):
            raise checks.InputError(f"claim {row}: name the checks; the row has {names}")
        checks.require(named, f"claim {row}: nothing was measured; the row has {names}")
        for name in named:
            if name not in declared:
                raise checks.InputError(f"claim {row} has no check {name}; the row has {names}")
            if name in self._claims[row] and not self.again:
                raise checks.InputError(f"claim {_id(row, name)} was measured twice")

    def verdict(self, row):
        """The verdict of ``row`` so far: that of its worst check, ``not run`` without any."""
        self._require_row(row)
        return worst(self._row(row)).verdict

    def _row(self, row):
        """The claims of a row, or one that says why there are none."""
        return sum(self._claims[row].values(), []) or [self._blank(row)]

    def _judge(self, check, at, measured, bound, note, converged, applies):
        """The claim ``at`` about one number, by its :class:`~nclib.catalogue.Check`."""
        relation, entry = check.relation, self.catalogue[row_of(at)]
        if not applies:
            verdict = "not run"
            note = "; ".join(filter(None, (note, "outside the range for which the row is stated")))
        elif _passed(relation, measured, bound, check.tolerance):
            verdict = "counterexample" if check.counterexample else "holds"
        elif not converged:
            verdict = "not converged"
        else:
            verdict = "not reproduced" if _on_networks(entry, at) else "fails"
        measured, bound = _plain(measured), _plain(bound)
        signed = relation in ("below", "above")
        return Claim(
            **self._words(at),
            measured=measured,
            expected=_SIGNS[relation].format(exact(bound)) if signed else bound,
            tolerance=check.tolerance,
            verdict=verdict,
            note=note,
            relation=relation,
            bound=bound,
        )

    @property
    def claims(self):
        """All claims in the order of the table; rows without a check read ``not run``."""
        return sum(map(self._row, self.catalogue), [])

    def _blank(self, row):
        waiting = [check.when for check in self._declared[row].values() if check.when]
        note = f"only for {', '.join(waiting)}" if waiting else "no check was executed"
        needs = self.catalogue[row].get("needs")
        note = f"needs profile {needs}" if needs else note
        numbers = {"measured": None, "expected": None, "tolerance": None}
        return Claim(**self._words(row), **numbers, verdict="not run", note=note)

    def _words(self, check):
        """What the catalogue says of a check."""
        row = row_of(check)
        entry = self.catalogue[row]
        names = {"id": f"{self.number}.{check}", "row": f"{self.number}.{row}"}
        return names | {key: entry.get(key, "") for key in ("statement", "source", "seen")}

    def verdicts(self):
        """One line per row of the table: id, statement, number of checks, verdict.

        Free of measured numbers, so it reads the same on every machine.
        """
        import pandas as pd

        return pd.DataFrame(
            {
                "id": row,
                "statement": own[0].statement,
                "checks": sum(claim.verdict != "not run" for claim in own),
                "verdict": worst(own).verdict,
            }
            for row, own in rows(self.claims).items()
        )

    def __repr__(self):
        return self.verdicts()[["id", "verdict"]].to_string(index=False, header=False)

    def _repr_html_(self):
        """Folded: the verdict of each row, then every check with its numbers."""
        table, found = self.verdicts(), self.claims
        return (
            f"<details><summary>{len(table)} rows, {len(found)} checks: {self.summary()}</summary>"
            f"{_html(table)}{_html(_numbered(found), classes='numbers')}</details>"
        )

    def summary(self):
        """How many rows have which verdict, such as ``7 holds, 1 not run``."""
        counts = self.verdicts()["verdict"].value_counts()
        return ", ".join(f"{counts[v]} {v}" for v in VERDICTS if v in counts)

    def write(self, folder):
        """Write ``claims.json`` into ``folder``.

        Raises :class:`~nclib.checks.InputError` naming the rows, and the declared checks of rows,
        that were neither measured nor marked with the profile they need or the condition under
        which they are made: a forgotten check must not look like a passed one.
        """
        forgotten = [
            _id(row, name)
            for row, entry in self.catalogue.items()
            if "needs" not in entry
            for name, check in (self._declared[row] or {"": None}).items()
            if name not in self._claims[row] and not (check and check.when)
        ]
        if forgotten:
            raise checks.InputError(
                f"rows {', '.join(forgotten)} of {self.notebook} were never checked; check them, "
                "or say in the catalogue which profile they need (needs) or under which condition "
                "a check is made (when)"
            )
        files.write_json(Path(folder) / "claims.json", [asdict(claim) for claim in self.claims])


@dataclass(frozen=True, repr=False)
class Checked:
    """Some checks as a small table; its text form has verdicts only, alike on every machine.

    ``before``: checks of earlier calls in the same cell, of which a notebook shows the last only.
    """

    claims: list
    before: tuple = ()

    @property
    def verdict(self):
        """The verdict of the worst of them."""
        return worst(self.claims).verdict

    def __repr__(self):
        return "\n".join(map(repr, [*self.before, *self.claims]))

    def _repr_html_(self):
        return _html(_numbered([*self.before, *self.claims]), classes="numbers")


def _numbered(found):
    """Checks with their numbers as people read them."""
    import pandas as pd

    columns = ["check", "measured", "expected", "verdict", "note"]
    rows = [(one.id, *one.shown, one.verdict, one.note) for one in found]
    return pd.DataFrame(rows, columns=columns)


def _html(table, **options):
    """A small table; nbval does not compare the measured ones, whose class is ``numbers``."""
    import pandas as pd

    with pd.option_context("display.max_colwidth", None):
        text = table.to_html(index=False, border=0, justify="left", **options)
    return text.replace("<td>", "<td style='text-align: left'>")


def _id(*parts):
    return ".".join(str(part) for part in parts if part != "")


def row_of(check):
    """The row id of a check id: ``L1`` of ``L1.ce``."""
    return check.split(".")[0]


def _on_networks(entry, check):
    """Whether ``check`` is a finding on trained networks, by the ``networks`` of its row."""
    listed = entry.get("networks", False)
    suffix = check.partition(".")[2]
    return listed if isinstance(listed, bool) else suffix.partition(".")[0] in listed


def rows(found):
    """The claims ``found`` by the id of their row, such as ``4.G7``."""
    result = {}
    for claim in found:
        result.setdefault(".".join(claim.id.split(".")[:2]), []).append(claim)
    return result


def by_row(notebook, catalogue, found):
    """The claims ``found`` of each row of a notebook; rows without any have one, ``not run``."""
    empty = Ledger(notebook, catalogue)
    return {blank.id: rows(found).get(blank.id, [blank]) for blank in empty.claims}


def worst(found):
    """The first claim with the verdict of them all: the last of :data:`VERDICTS` among theirs."""
    return max(found, key=lambda claim: VERDICTS.index(claim.verdict))


def place(entry, verdict):
    """Where a row of the catalogue has this ``verdict``: `` in networks`` if its other checks, on
    the theory, cannot have it, else nothing."""
    partly = isinstance(entry.get("networks"), list)
    return " in networks" if partly and verdict == "not reproduced" else ""


def read(path):
    """The claims stored in a ``claims.json``.

    Raises :class:`~nclib.checks.InputError` naming the file if it is missing or damaged.
    """
    entries = files.read_json(path, list)
    try:
        found = [Claim(**entry) for entry in entries]
    except TypeError as error:
        raise files.damaged(path, f"an entry is no claim: {error}") from None
    for claim in found:
        if wrong := _wrong(claim):
            raise files.damaged(path, f"claim {claim.id} has {wrong}")
    return found


def _wrong(claim):
    """What cannot be in a claim that a run wrote, or nothing."""
    for key, kind in typing.get_type_hints(Claim).items():
        value = getattr(claim, key)
        if not isinstance(value, kind):
            return f"{key} {value!r}"
    unknown = claim.relation not in ("", *tables.RELATIONS)
    if unknown or (claim.relation == "close" and claim.tolerance is None):
        return f"relation {claim.relation!r}, tolerance {claim.tolerance}"
    if claim.verdict not in VERDICTS:
        return f"verdict {claim.verdict!r}"
    return "" if "." in claim.id else "no row"


def short(value):
    """A number as people read it in a ledger: three significant digits."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def exact(value):
    """A number with as many digits as it takes to be exactly this one, such as 1.0000000000001."""
    text = f"{value:g}" if isinstance(value, int | float) else str(value)
    return text if isinstance(value, str) or float(text) == value else repr(value)


def _finite(value):
    return isinstance(value, int | float) and math.isfinite(value)


def _plain(value):
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
