import json
import math

import numpy as np
import pytest
import torch

from nclib import claims, paths

CATALOGUE = {
    "L1": {"statement": "one", "source": "paper"},
    "L2": {"statement": "two", "source": "paper"},
    "L10": {"statement": "ten", "source": "here", "needs": "paper"},
}


def ledger():
    return claims.Ledger("01_some_result", CATALOGUE)


def test_verdicts_follow_from_the_numbers():
    one = ledger()
    assert one.close("L1", 1.0, 1.0 + 1e-9, tolerance=1e-8).verdict == "holds"
    assert one.close("L1.b", 1.0, 1.1, tolerance=1e-8).verdict == "fails"
    assert one.below("L1.c", 0.5, 0.5).verdict == "holds"
    assert one.below("L1.d", 0.51, 0.5).verdict == "fails"
    assert one.above("L1.e", 0.5, 0.5).verdict == "holds"
    assert one.above("L1.f", 0.49, 0.5).verdict == "fails"
    assert one.equal("L1.g", 3, 3).verdict == "holds"
    assert one.equal("L1.h", True, False).verdict == "fails"
    assert one.below("L2.a", 0.0, 1.0, counterexample=True).verdict == "counterexample"
    assert one.below("L2.b", 2.0, 1.0, counterexample=True).verdict == "fails"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["close", "below", "above"])
def test_numbers_that_are_not_finite_never_pass(value, kind):
    one = ledger()
    extra = {"tolerance": math.inf if kind == "close" and math.isnan(value) else 1.0}
    claim = getattr(one, kind)("L1", value, 0.0, **(extra if kind == "close" else {}))
    assert claim.verdict == "fails"
    json.dumps(claim.measured, allow_nan=False)


def test_numbers_may_come_from_torch_and_numpy():
    one = ledger()
    assert one.below("L1", torch.tensor(0.1), 1.0).measured == pytest.approx(0.1)
    assert one.equal("L2", np.int64(4), 4).verdict == "holds"
    assert one.equal("L2.b", np.bool_(True), True).verdict == "holds"


def test_exact_equality_refuses_floats():
    with pytest.raises(ValueError, match="compare floats with close"):
        ledger().equal("L1", 1.0, 1.0)
    with pytest.raises(ValueError, match="exact equality"):
        ledger().equal("L1", True, 1)


def test_unknown_and_repeated_checks_are_errors():
    one = ledger()
    one.below("L1", 0, 1)
    with pytest.raises(ValueError, match="has no row L3; it has L1, L2, L10"):
        one.below("L3", 0, 1)
    with pytest.raises(ValueError, match="L1 was checked twice"):
        one.below("L1", 0, 1)


def test_the_file_holds_every_row_and_a_forgotten_one_is_an_error(tmp_path):
    one = ledger()
    one.below("L1.a", 0, 1, note="why")
    with pytest.raises(ValueError, match="rows L2 of 01_some_result were never checked"):
        one.write(tmp_path)
    assert not (tmp_path / "claims.json").exists()
    one.close("L2", 3.0, 3.0, tolerance=0.0)
    one.write(tmp_path)
    stored = json.loads((tmp_path / "claims.json").read_text())
    assert [entry["id"] for entry in stored] == ["1.L1.a", "1.L2", "1.L10"]
    keys = ["id", "statement", "source", "measured", "expected", "tolerance", "verdict", "note"]
    assert all(list(entry) == keys for entry in stored)
    assert stored[0]["expected"] == "<= 1"
    assert stored[2] | {"verdict": 0} == stored[2] | {"verdict": 0, "note": "needs profile paper"}
    assert [claim.id for claim in claims.read(tmp_path / "claims.json")] == [
        "1.L1.a",
        "1.L2",
        "1.L10",
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_rows_show_the_worst_of_their_checks():
    one = ledger()
    one.below("L1.a", 0, 1)
    one.below("L1.b", 2, 1)
    one.below("L2.a", 0, 1)
    one.below("L2.b", 0, 1, counterexample=True)
    table = one.verdicts().set_index("id")
    assert list(table["verdict"]) == ["fails", "counterexample", "not run"]
    assert list(table["checks"]) == [2, 2, 0]
    assert list(table.index) == ["1.L1", "1.L2", "1.L10"]


def test_one_failing_check_outweighs_any_other():
    assert claims.worst(["holds", "counterexample", "not run", "fails"]) == "fails"
    assert claims.worst(["not run", "not reproduced", "not converged"]) == "not converged"
    assert claims.worst(["holds", "counterexample", "not run"]) == "not run"
    assert claims.worst(["holds", "counterexample"]) == "counterexample"
    assert claims.worst(["holds"]) == "holds"


def test_a_check_that_is_missed_says_why():
    catalogue = {
        "L1": {"statement": "theory", "source": "s"},
        "L2": {"statement": "networks", "source": "s", "networks": True},
        "L3": {"statement": "both", "source": "s", "networks": ["net"]},
    }
    one = claims.Ledger("01_multi_loss_equivalence", catalogue)
    assert one.below("L1.a", 2, 1).verdict == "fails"
    assert one.below("L1.b", 2, 1, converged=False).verdict == "not converged"
    assert one.below("L1.c", 1, 1, converged=False).verdict == "holds"
    assert one.below("L1.d", 2, 1, applies=False, note="K = 1").verdict == "not run"
    assert one.below("L1.e", 0, 1, applies=False).verdict == "not run"
    assert one.claims[3].note == "K = 1; outside the range for which the row is stated"
    assert one.below("L2", 2, 1).verdict == "not reproduced"
    assert one.below("L2.x", 0, 1).verdict == "holds"
    assert one.below("L3.net", 2, 1).verdict == "not reproduced"
    assert one.below("L3.net.2", 2, 1).verdict == "not reproduced"
    assert one.below("L3.network", 2, 1).verdict == "fails"
    assert one.below("L3.value", 2, 1).verdict == "fails"


def test_every_check_marked_as_a_finding_on_networks_exists():
    """A mark that fits no check marks nothing: a network that misses would read `fails`."""
    for path in paths.CLAIMS.glob("*.yaml"):
        stored = claims.read(paths.figures() / "quick" / path.stem / "claims.json")
        made = {claim.id for claim in stored}
        for row, entry in claims.load_catalogue(path.stem).items():
            marks = entry.get("networks", False)
            for mark in [] if isinstance(marks, bool) else marks:
                check = f"{int(path.stem[:2])}.{row}.{mark}"
                assert any(i == check or i.startswith(f"{check}.") for i in made), check


def test_the_text_of_a_claim_has_no_measured_number():
    one = ledger()
    assert repr(one.below("L1.a", 0.123456789, 1)) == "1.L1.a: holds"


def test_no_row_swallows_another_that_begins_alike():
    one = ledger()
    one.below("L10.a", 2, 1)
    one.below("L1.a", 0, 1)
    one.below("L2", 0, 1)
    table = one.verdicts().set_index("id")
    assert dict(table["verdict"]) == {"1.L1": "holds", "1.L2": "holds", "1.L10": "fails"}


def test_a_row_leads_to_its_cell_its_picture_and_the_functions_called():
    found = claims.places("04_large_class_gnc", "G7")
    assert [place.figure for place in found] == ["02_known_margins"]
    assert "nclib.results.large_class.codes.sharp_code" in found[0].calls
    for book in ("01_multi_loss_equivalence", "06_convex_duality"):
        stored = paths.figures() / "quick" / book
        for row in claims.load_catalogue(book):
            for place in claims.places(book, row):
                assert not place.figure or (stored / f"{place.figure}.png").exists(), row


def test_one_row_on_the_command_line_has_everything():
    from click.testing import CliRunner

    from nclib.cli import main

    ask = lambda *words: CliRunner().invoke(main, ["claims", *words])
    text = ask("4.G7").output
    for part in ("Softmax and Tammes", "source    Jiang et al.", "verdict", "02_known_margins"):
        assert part in text
    for wrong, message in (("4.G99", "no row G99"), ("9.A1", "is unknown"), ("4", "has no row")):
        result = ask(wrong)
        assert result.exit_code == 2
        assert message in result.output
