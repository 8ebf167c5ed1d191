"""The claim: a named, executable check of one statement, and the ledger that collects them.

The statements of a notebook live in ``notebooks/claims/<notebook>.yaml``, one entry per row of its
claim table::

    L1:
      statement: Every global minimiser is a simplex ETF.
      source: Zhou et al. 2022, global optimality theorem
    L16:
      statement: NC1 falls to zero on the training set for all four losses.
      source: Zhou et al. 2022, figures; needs a wide net
      needs: paper  # optional: a row without a check then reads `not run`, with this profile
      networks: true  # optional: all checks, or the listed ones, are findings on trained networks

A notebook only supplies the numbers.  The verdict is computed from them here, never typed:

``holds``           the check passed
``counterexample``  it passed, and shows that the statement is false or conditional
``not reproduced``  a finding on trained networks that this run does not show
``not converged``   the search that should have decided it got stuck
``not run``         nothing was measured, or outside the range for which the row is stated
``fails``           theory or a regression broke
"""

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from nclib import checks, files, paths

VERDICTS = ("holds", "counterexample", "not run", "not reproduced", "not converged", "fails")


@dataclass(frozen=True, repr=False)
class Claim:
    """One check; ``verdict`` is one of :data:`VERDICTS`.

    Its text form has no measured number, so a stored notebook reads the same on every machine.
    """

    id: str
    statement: str
    source: str
    measured: float | bool | str | None
    expected: float | bool | str | None
    tolerance: float | None
    verdict: str
    note: str = ""

    def __repr__(self):
        return f"{self.id}: {self.verdict}"


class Ledger:
    """Claims of one notebook, in the order of its claim table.

    ``ledger = Ledger("01_multi_loss_equivalence")``; then one call per check, e.g.
    ``ledger.close("L1.ce", measured, expected, tolerance=1e-11)``.  A check id is a row id, or a
    row id with a suffix when one row needs several checks.  Raises
    :class:`~nclib.checks.InputError` for a row that the catalogue does not have, and for an id used
    twice.

    Options of all four kinds: ``note``; ``counterexample=True`` if passing shows that the statement
    is false or conditional; ``converged=False`` if the search behind the number got stuck, so that
    a number off its bound reads ``not converged``; ``applies=False`` outside the range for which
    the row is stated, which then reads ``not run``.
    """

    def __init__(self, notebook, catalogue=None):
        self.notebook = notebook
        self.number = notebook.split("_")[0].lstrip("0") or "0"
        self.catalogue = catalogue or load_catalogue(notebook)
        self._claims = {}

    # The four kinds of check -------------------------------------------------------------------

    def close(self, check, measured, expected, *, tolerance, **options):
        """``|measured - expected| <= tolerance`` (absolute)."""
        measured, expected = _number(measured), _number(expected)
        passed = abs(measured - expected) <= tolerance  # false if either is NaN
        return self._add(check, measured, expected, tolerance, passed, **options)

    def below(self, check, measured, bound, **options):
        """``measured <= bound``."""
        measured = _number(measured)
        passed = -math.inf < measured <= bound
        return self._add(check, measured, f"<= {bound:g}", None, passed, **options)

    def above(self, check, measured, bound, **options):
        """``measured >= bound``."""
        measured = _number(measured)
        passed = bound <= measured < math.inf
        return self._add(check, measured, f">= {bound:g}", None, passed, **options)

    def equal(self, check, measured, expected, **options):
        """Exact equality, for counts, booleans and names."""
        measured = measured.item() if hasattr(measured, "item") else measured
        expected = expected.item() if hasattr(expected, "item") else expected
        if not isinstance(measured, bool | int | str) or type(measured) is not type(expected):
            raise checks.InputError(
                f"claim {check}: exact equality is for ints, bools and names, got {measured!r} and "
                f"{expected!r}; compare floats with close()"
            )
        passed = measured == expected
        return self._add(check, measured, expected, 0.0, passed, **options)

    # -------------------------------------------------------------------------------------------

    def _add(
        self,
        check,
        measured,
        expected,
        tolerance,
        passed,
        note="",
        counterexample=False,
        converged=True,
        applies=True,
    ):
        row = row_of(check)
        if row not in self.catalogue:
            raise checks.InputError(
                f"claim {check}: the catalogue of {self.notebook} has no row {row}; it has "
                f"{', '.join(self.catalogue)}"
            )
        if check in self._claims:
            raise checks.InputError(f"claim {check} was checked twice; give each check a suffix")
        entry = self.catalogue[row]
        if not applies:
            verdict = "not run"
            note = "; ".join(filter(None, (note, "outside the range for which the row is stated")))
        elif passed:
            verdict = "counterexample" if counterexample else "holds"
        elif not converged:
            verdict = "not converged"
        else:
            verdict = "not reproduced" if _on_networks(entry, check) else "fails"
        if isinstance(measured, float) and not math.isfinite(measured):
            measured = str(measured)  # JSON has no NaN
        claim = Claim(
            f"{self.number}.{check}",
            entry["statement"],
            entry["source"],
            measured,
            expected,
            tolerance,
            verdict,
            note,
        )
        self._claims[check] = claim
        return claim

    @property
    def claims(self):
        """All claims in the order of the table; rows without a check read ``not run``."""
        found = []
        for row, entry in self.catalogue.items():
            checks_of_row = [c for k, c in self._claims.items() if row_of(k) == row]
            if not checks_of_row:
                needs = entry.get("needs")
                note = f"needs profile {needs}" if needs else "no check was executed"
                identifier = f"{self.number}.{row}"
                sentence, source = entry["statement"], entry["source"]
                checks_of_row = [
                    Claim(identifier, sentence, source, None, None, None, "not run", note)
                ]
            found += checks_of_row
        return found

    def table(self):
        """Every check with its numbers, as a DataFrame."""
        import pandas as pd

        return pd.DataFrame([asdict(claim) for claim in self.claims]).drop(columns="source")

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
                "verdict": worst(claim.verdict for claim in own),
            }
            for row, own in rows(self.claims).items()
        )

    def __repr__(self):
        return self.verdicts()[["id", "verdict"]].to_string(index=False, header=False)

    def _repr_html_(self):
        """The verdict of each row, and folded below it every check with its numbers."""
        rows, every = self.verdicts(), self.table()
        numbers = every.drop(columns="statement").astype(object).where(every.notna(), None)
        options = {"index": False, "border": 0, "justify": "left"}
        return (
            f"{rows.to_html(**options)}<details><summary>{len(every)} checks with their numbers"
            f"</summary>{numbers.map(short).to_html(classes='numbers', **options)}</details>"
        )

    def write(self, folder):
        """Write ``claims.json`` into ``folder``.

        Raises :class:`~nclib.checks.InputError` naming the rows that were neither checked nor
        marked with the profile they need: a forgotten row must not look like a passed one.
        """
        forgotten = [
            row
            for row, entry in self.catalogue.items()
            if "needs" not in entry and not any(row_of(k) == row for k in self._claims)
        ]
        if forgotten:
            raise checks.InputError(
                f"rows {', '.join(forgotten)} of {self.notebook} were never checked; check them, "
                "or say in the catalogue which profile they need"
            )
        files.write_json(Path(folder) / "claims.json", [asdict(claim) for claim in self.claims])


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


def by_row(notebook, found):
    """The claims ``found`` of each row of a notebook; rows without any have one, ``not run``."""
    return {blank.id: rows(found).get(blank.id, [blank]) for blank in Ledger(notebook).claims}


def worst(verdicts):
    """The verdict of a row with several checks: the last of :data:`VERDICTS` among theirs."""
    return max(verdicts, key=VERDICTS.index)


def load_catalogue(notebook):
    """The claim table of a notebook: row id -> its entry, as the head of this module shows it."""
    path = paths.CLAIMS / f"{notebook}.yaml"
    if not path.exists():
        raise checks.InputError(f"no claim catalogue for {notebook}: expected {path}")
    catalogue = files.read_yaml(path)
    for row, entry in catalogue.items():
        missing = {"statement", "source"} - entry.keys()
        unknown = entry.keys() - {"statement", "source", "needs", "networks"}
        if missing or unknown:
            problem = f"lacks {sorted(missing)}" if missing else f"has unknown {sorted(unknown)}"
            raise checks.InputError(f"{path.name}, row {row} {problem}")
    return catalogue


def read(path):
    """The claims stored in a ``claims.json``.

    Raises :class:`~nclib.checks.InputError` naming the file if it is missing or damaged.
    """
    entries = files.read_json(path, list)
    try:
        found = [Claim(**entry) for entry in entries]
    except TypeError as error:
        raise files.damaged(path, f"an entry is no claim: {error}") from None
    strange = [claim.id for claim in found if claim.verdict not in VERDICTS]
    if strange:
        raise files.damaged(path, f"claim {strange[0]} has an unknown verdict")
    return found


@dataclass(frozen=True)
class Place:
    """A cell by its execution count, the last figure made up to there, what of nclib it calls."""

    cell: int
    figure: str
    calls: list


def places(notebook, row):
    """The cells of ``notebook`` that check ``row``, as :class:`Place` objects."""
    path = paths.NOTEBOOKS / f"{notebook}.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    found, figure, modules = [], "", {}
    codes = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]
    for number, source in enumerate(codes, 1):
        for home, names in re.findall(r"^from (nclib[\w.]*) import (.+)$", source, re.MULTILINE):
            for name, _, alias in (part.partition(" as ") for part in names.split(", ")):
                modules[alias or name] = f"{home}.{name}"
        figure = (re.findall(r'run\.figure\(.*?"(\d\d_\w+)"', source, re.DOTALL) or [figure])[-1]
        if re.search(rf"""["'(]{row}["'.]""", source):
            called = dict.fromkeys(re.findall(r"\b(\w+)((?:\.\w+)?)\(", source))
            calls = [modules[name] + dot for name, dot in called if name in modules]
            found.append(Place(number, figure, calls))
    return found


def short(value):
    """A number as people read it in a ledger: three significant digits."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _number(value):
    return float(value.item() if hasattr(value, "item") else value)
