import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from nclib import catalogue, checks, claims, paths, places, runs
from tests.conftest import called, code

WORDS = {"statement": "one", "source": "paper"}
CATALOGUE = {
    "L1": WORDS | {"checks": {"a": {"below": 1, "note": "why"}, "b": {"below": 1}}},
    "L2": WORDS | {"checks": {"a": {"below": 1}, "b": {"below": 1, "counterexample": True}}},
    "L10": WORDS | {"needs": "paper", "check": {"below": 1}},
}


def ledger(rows=CATALOGUE):
    return claims.Ledger("01_some_result", rows)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"below": 0.5}, 0.5, 0.51),
        ({"above": 0.5}, 0.5, 0.49),
        ({"close": 1e-8, "to": 1.0}, 1.0 + 1e-9, 1.1),
        ({"close": 0.0, "to": 3.0}, 3.0, 3.1),
        ({"equal": 3}, 3, 4),
        ({"equal": True}, True, False),
        ({"equal": "etf"}, "etf", "frame"),
        ({"below": "given"}, (0.5, 0.5), (0.51, 0.5)),
        ({"above": "given"}, (0.5, 0.5), (0.49, 0.5)),
        ({"close": 1e-8}, (1.0, 1.0 + 1e-9), (1.0, 1.1)),
        ({"equal": "given"}, (3, 3), (3, 4)),
    ],
)
def test_verdicts_follow_from_the_numbers(check, good, bad):
    def verdict(check, value):
        return ledger({"L1": WORDS | {"check": check}}).claim("L1", value).verdict

    assert (verdict(check, good), verdict(check, bad)) == ("holds", "fails")
    check = check | {"counterexample": True}
    assert (verdict(check, good), verdict(check, bad)) == ("counterexample", "fails")


def test_the_file_holds_every_row_and_a_forgotten_one_is_an_error(tmp_path):
    one = ledger()
    one.claim("L1", b=0, a=0)
    with pytest.raises(ValueError, match="rows L2.a, L2.b of 01_some_result were never checked"):
        one.write(tmp_path)
    assert not (tmp_path / "claims.json").exists()
    one.claim("L2", a=0, b=0)
    one.write(tmp_path)
    stored = json.loads((tmp_path / "claims.json").read_text())
    ids = ["1.L1.b", "1.L1.a", "1.L2.a", "1.L2.b", "1.L10"]  # rows as in the table
    assert [entry["id"] for entry in stored] == ids
    keys = ["id", "statement", "source", "measured", "expected", "tolerance", "verdict", "note"]
    keys += ["row", "relation", "bound", "seen"]
    assert all(list(entry) == keys for entry in stored)
    assert (stored[1]["expected"], stored[1]["note"]) == ("<= 1", "why")
    assert (stored[4]["verdict"], stored[4]["note"]) == ("not run", "needs profile paper")
    assert [claim.id for claim in claims.read(tmp_path / "claims.json")] == ids
    assert not list(tmp_path.glob("*.tmp"))


def test_a_row_without_checks_and_profile_can_never_be_written(tmp_path):
    one = ledger({"L1": WORDS})
    with pytest.raises(checks.InputError, match="the row has no declared check"):
        one.claim("L1", 1.0)
    with pytest.raises(checks.InputError, match="rows L1 of 01_some_result were never checked"):
        one.write(tmp_path)


def test_rows_show_the_worst_of_their_checks_and_none_of_a_row_that_begins_alike():
    one = ledger()
    one.claim("L10", 2)
    one.claim("L2", a=0, b=0)
    table = one.verdicts().set_index("id")
    assert dict(table["verdict"]) == {
        "1.L1": "not run",
        "1.L2": "counterexample",
        "1.L10": "fails",
    }
    assert list(table["checks"]) == [0, 2, 1]


def test_a_row_on_theory_says_that_networks_alone_do_not_show_it():
    partly, wholly, theory = {"networks": ["net"]}, {"networks": True}, {}
    assert claims.place(partly, "not reproduced") == " in networks"
    assert {claims.place(partly, v) for v in claims.VERDICTS if v != "not reproduced"} == {""}
    assert claims.place(wholly, "not reproduced") == claims.place(theory, "not reproduced") == ""


def test_one_failing_check_outweighs_any_other():
    """From best to worst; the others in this order, each with two claims, of which the first."""
    order = ["holds", "counterexample", "not run", "not reproduced", "not converged", "fails"]
    found = [claims.Claim(f"1.L1.{i}", "", "", None, None, None, v) for i in (1, 2) for v in order]
    for i in range(len(order), 0, -1):
        assert claims.worst([one for one in found if one.verdict in order[:i]]) is found[i - 1]


def test_a_check_that_is_missed_says_why():
    below = {"below": 1}
    rows = {
        "L1": {"checks": {"a": below, "b": below, "c": below, "d": below | {"note": "K = 1"}}},
        "L2": {"networks": True, "check": below},
        "L3": {
            "networks": ["net"],
            "checks": {"net": below | {"each": "width"}, "network": below, "value": below},
        },
        "L4": {"networks": ["mlp"], "check": below | {"each": "net"}},
    }
    one = ledger({row: WORDS | entry for row, entry in rows.items()})
    found = one.claim(
        "L1",
        **{"a": 2, "b": 2, "c": 1, "d": 2},
        converged={"b": False, "c": False},
        applies={"d": False},
    )
    verdicts = ["fails", "not converged", "holds", "not run"]
    assert [claim.verdict for claim in found.claims] == verdicts
    assert found.claims[3].note == "K = 1; outside the range for which the row is stated"
    assert one.claim("L2", 2).verdict == "not reproduced"
    three = one.claim("L3", net={1: 0, 2: 2}, network=2, value=2)
    four = one.claim("L4", {"mlp": 2, "ufm": 2})
    assert repr(three).split("\n") == [
        "1.L3.net.1: holds",
        "1.L3.net.2: not reproduced",
        "1.L3.network: fails",
        "1.L3.value: fails",
    ]
    assert repr(four) == "1.L4.mlp: not reproduced\n1.L4.ufm: fails"


def test_a_row_leads_to_its_cells_and_the_functions_that_made_its_numbers():
    (place,) = places.places("00_quickstart", "Q4")
    assert place.cell == place.computed[0]
    assert place.calls[:2] == ["nclib.metrics.certified_gap", "nclib.deep.nets.seeded"]
    assert "nclib.deep.data.load" in place.calls  # through the digits of another section
    assert "nclib.deep.collect.statistics" not in place.calls
    (place,) = places.places("03_multi_label_tagwise", "L9")
    forms = [f"nclib.results.multi_label.theory.{name}" for name in ("balanced", "optimum")]
    assert place.calls[-2:] == forms  # through the function that the cell calls
    assert [places.is_formula(call) for call in place.calls[-3:]] == [False, True, True]
    for call in place.calls:
        file, line = places.source(call)
        written = file.read_text(encoding="utf-8").splitlines()[line - 1]
        assert written.startswith((f"def {call.split('.')[-1]}(", f"class {call.split('.')[-1]}"))


def test_closed_forms_by_what_is_called_and_not_by_a_local_name():
    forms = {}
    rows = {"C3": "06_convex_duality", "L3": "02_normalized_features", "X2": "05_extended_ufm"}
    rows |= {"L1": "01_multi_loss_equivalence"}
    for row, book in rows.items():
        (place,) = places.places(book, row)
        forms[row] = [call.split(".")[-1] for call in place.calls if places.is_formula(call)]
    assert forms["C3"] == ["linear_map"]  # of another module than theory
    assert forms["L1"] == ["optimum", "strength"]  # the second through a function of the module
    # derivative_errors has a variable called like another function, which uses curvature_range
    assert forms["L3"] == ["normalized", "hessian_product", "tangent", "multipliers"]
    assert forms["X2"] == ["problem", "optimum"]  # train_heads, through the head of another module


def written(cells, folder):
    content = {"cells": [{"cell_type": "code", "source": [text]} for text in cells]}
    (folder / "01_x.ipynb").write_text(json.dumps(content))


def test_what_a_name_is_filled_with_is_its_origin(tmp_path, monkeypatch):
    cells = [
        "from nclib import frames, losses\nsizes = frames.polygon(3)",
        "step = frames.bipyramid(5)\nrows, own = [frames.nc2_floor(4, 2), losses.get('ce')], {}",
        "for K in sizes:\n    step = frames.simplex_etf(K, K)\n    rows.append(step)",
        "own['a'] = frames.icosahedron()\nown |= {'b': frames.cross_polytope(3)}",
        'run.claim("L1", rows)\nrun.claim("L2", own)',
    ]
    written(cells, tmp_path)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    names = ["nclib.frames.simplex_etf", "nclib.frames.nc2_floor", "nclib.frames.polygon"]
    assert places.places("01_x", "L1") == [places.Place(5, [5, 3, 2, 1], names)]
    names = ["nclib.frames.cross_polytope", "nclib.frames.icosahedron", "nclib.frames.nc2_floor"]
    assert places.places("01_x", "L2") == [places.Place(5, [5, 4, 2], names)]


def test_what_a_loop_or_a_function_names_itself_is_no_origin(tmp_path, monkeypatch):
    cells = [
        "d: int = 2",
        "from nclib import frames as shapes, losses\nfrom nclib.metrics import nc_metrics\n"
        'run = notebook.start("01_x", globals())',
        "name = shapes.simplex_etf(3, 3)\n !ls\nused = name\n"
        'used = shapes.nc2_floor(4, d); run.verdict("L1")',
        "table = [nc_metrics(name) for name in range(3)]",
        "both = lambda used: table",
        'run.claim("L1", sum(both(0)))\nrun.claim("L10", used)',
    ]
    written(cells, tmp_path)
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    assert places.places("01_x", "L1") == [places.Place(6, [6, 5, 4], ["nclib.metrics.nc_metrics"])]
    assert places.places("01_x", "L10") == [places.Place(6, [6, 3], ["nclib.frames.nc2_floor"])]
    assert places.places("01_x", "L2") == []


def test_a_module_is_no_function_of_the_same_name():
    assert places.source("nclib.table") is None  # nclib.measure has a function called table
    assert places.source("nclib.table.over")[0].name == "table.py"
    assert places.source("nclib.metrics.nc_metrics")[0].name == "collapse.py"


def test_a_row_on_the_command_line_is_as_good_as_its_worst_check():
    stored = claims.read(paths.figures() / "quick" / "01_multi_loss_equivalence" / "claims.json")
    mixed = [own for own in claims.rows(stored).values() if len({one.verdict for one in own}) > 1]
    listed = called("claims").output
    assert mixed
    for own in mixed:
        assert f"{own[0].row:8} {claims.worst(own).verdict:14} {own[0].statement}" in listed
    for one in {claim.verdict: claim for claim in mixed[0]}.values():
        assert f"verdict   {one.verdict}" in called("claims", one.id).output


def test_one_row_on_the_command_line_has_everything():
    text = called("claims", "0.Q2").output
    for part in (
        "NC1, NC2 and NC3 of a small network",
        "source    this project",
        "verdict   holds  [quick]",
        "    0.Q2.nc2_means  holds ",
        "00_quickstart/01_collapse_in_the_plane.png",
        "00_quickstart.ipynb, [",
        "function  deep.train.fit  ",
        "train.py:",
    ):
        assert part in text, part
    part = called("claims", "quickstart.Q2.nc2_means").output
    assert "    0.Q2.nc2_means  holds " in part
    assert part.count("0.Q2") == 1
    judged = called("claims", "2.L14").output  # what is judged of a table
    assert "  [abs(nc2 - nc2_floor) where d == 2 and K > 3]\n" in judged
    assert "  [gap where d < K - 1]\n" in judged
    for wrong, message in (
        ("4.G99", "no row G99"),
        ("9.A1", "is unknown"),
        (".Q2", "is unknown"),
        ("4", "has no row"),
        ("0.Q2.nc", "row Q2 of 00_quickstart has no check Q2.nc; it has 0.Q2.nc1, 0.Q2.nc2_means"),
    ):
        result = called("claims", wrong)
        assert result.exit_code == 2
        assert message in result.output


DECLARED = {
    "L1": {
        "statement": "one",
        "source": "paper",
        "seen": "01_picture",
        "checks": {
            "value": {"below": 1.0000000000001},
            "frame": {"close": 1e-5, "note": "raw, {case}, braces {{}}"},
            "known": {"close": "1e-3", "to": 0.5},
            "limit": {"above": "given"},
            "count": {"equal": 3, "counterexample": True},
        },
    },
    "L10": {"statement": "ten", "source": "here", "check": {"below": 0.5, "each": "loss"}},
    "L2": {
        "statement": "two",
        "source": "here",
        "checks": {
            "listed": {"above": 0.0, "each": ["ce", "ls"], "note": "{key}: {what}"},
            "per": {"close": 0.1, "to": {10: 2.5, 100: 4.3}, "note": "far {far:.1f}"},
            "some": {"equal": True, "when": "equal decays"},
            "same": {"equal": "given", "when": "two nets"},
        },
        "networks": ["per"],
    },
    "L3": {"statement": "three", "source": "here", "needs": "paper"}
    | {"check": {"below": 1, "when": "K = 3"}},
}


def declared():
    return ledger(DECLARED)


def test_the_checks_of_a_row_are_data_and_the_notebook_gives_numbers():
    one = declared()
    found = one.claim(
        "L1", value=1.0, frame=(0.3, 0.30000001), limit=(2, 1.5), text={"case": "K = 3"}
    )
    assert repr(found) == "1.L1.value: holds\n1.L1.frame: holds\n1.L1.limit: holds"
    assert [claim.note for claim in found.claims] == ["", "raw, K = 3, braces {}", ""]
    rest = one.claim("L1", known=torch.tensor(0.6), count=np.int64(3))
    assert [claim.verdict for claim in rest.claims] == ["fails", "counterexample"]
    assert type(rest.claims[0].measured) is float
    assert (found.verdict, rest.verdict, one.verdict("L1")) == ("holds", "fails", "fails")
    assert one.verdict("L2") == "not run"
    assert one.claim("L2", some=np.bool_(True)).verdict == "holds"
    losses = one.claim("L10", {"ce": 0.1, "ls": 0.7}, converged={"ls": False})
    assert repr(losses) == "1.L10.ce: holds\n1.L10.ls: not converged"


def test_a_mapping_checks_each_entry():
    one = declared()
    series = pd.Series({"ls": 2.0, "ce": -1.0})
    note = {"what": {"ce": "cross-entropy", "ls": "smoothed"}, "far": {10: 0.25, 100: 2}}
    found = one.claim(
        "L2",
        listed=series,
        per={10: 2.55, 100: 9.0},
        text=note,
        applies={"listed": {"ce": False}},
    )
    assert [(claim.id, claim.verdict) for claim in found.claims] == [
        ("1.L2.listed.ls", "holds"),
        ("1.L2.listed.ce", "not run"),
        ("1.L2.per.10", "holds"),
        ("1.L2.per.100", "not reproduced"),
    ]
    assert found.claims[0].note == "ls: smoothed"
    assert [claim.note for claim in found.claims[2:]] == ["far 0.2", "far 2.0"]
    assert found.claims[3].bound == 4.3
    pairs = one.claim("L10", {("ce", 2): 0.1})
    assert pairs.claims[0].id == "1.L10.ce.2"


@pytest.mark.parametrize("kind", ["below", "above", "close"])
def test_a_bound_is_exact_to_the_last_digit(kind):
    entry = {kind: 1e-5, "to": 0.0} if kind == "close" else {kind: 1e-5}
    rows = {"L1": {"statement": "s", "source": "s", "check": entry}}
    for direction in (-1, 0, 1):
        measured = float(np.nextafter(1e-5, direction * np.inf)) if direction else 1e-5
        (claim,) = ledger(rows).claim("L1", measured).claims
        good = direction >= 0 if kind == "above" else direction <= 0
        assert claim.verdict == ("holds" if good else "fails")
        shown = [float(part.strip("<>= ")) for text in claim.shown for part in text.split("±")]
        if kind == "close":
            assert (abs(shown[0] - shown[1]) <= shown[2]) == good
        else:
            assert (shown[0] >= shown[1] if kind == "above" else shown[0] <= shown[1]) == good


def test_a_bound_near_one_is_not_shown_as_one():
    one = declared()
    (claim,) = one.claim("L1", value=1.00000000000005).claims
    assert (claim.measured, claim.bound, claim.relation) == (
        1.00000000000005,
        1.0000000000001,
        "below",
    )
    assert claim.expected == "<= 1.0000000000001"
    assert (claim.row, claim.seen) == ("1.L1", "01_picture")
    html = one.claim("L1", known=0.5, limit=(2.5, 1.5))._repr_html_()
    assert "0.5 ± 0.001" in html
    assert html.index("2.5") < html.index("&gt;= 1.5")  # measured, then expected
    assert "left" in html


@pytest.mark.parametrize(
    ("check", "numbers", "worst"),
    [
        ({"below": 1.0}, [0.5, -3.0, 0.7], 0.7),
        ({"above": 1.0}, [2.0, 1.5, 3.0], 1.5),
        ({"close": 0.1, "to": 1.0}, [1.05, 0.92, 1.0], 0.92),
        ({"close": 0.1, "to": 1.0}, [1.25, 0.92, 1.0], 1.25),
        ({"below": 1.0}, [1e-20, 3e-20, 2e-20], 3e-20),  # all as far from the bound, rounded
        ({"equal": 0}, [0, 2, 0], 2),
        ({"equal": "etf"}, ["etf", "frame"], "frame"),
        ({"below": "given"}, [(1.0, 5.0), (0.9, 0.5), (0.0, 0.1)], 0.9),
        ({"close": 1e-3}, [(1.0, 1.0), (2.0, 2.1)], 2.0),
    ],
)  # fmt: skip
def test_of_many_numbers_the_worst_is_judged(check, numbers, worst):
    kinds = [list, pd.Series]
    kinds += [np.array, torch.tensor] if isinstance(numbers[0], float | int) else []
    for kind in kinds:
        one = ledger({"L1": WORDS | {"check": check}})
        (claim,) = one.claim("L1", kind(numbers)).claims
        rounded = kind == torch.tensor and isinstance(worst, float)
        assert claim.measured == (pytest.approx(worst, rel=1e-7) if rounded else worst)


@pytest.mark.parametrize("check", [{"below": 1}, {"above": 0}, {"close": 9, "to": 0.0}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_number_that_is_not_finite_is_worse_than_any(check, value, place):
    numbers = [0.5, 0.25]
    numbers.insert(place, value)
    (claim,) = ledger({"L1": WORDS | {"check": check}}).claim("L1", numbers).claims
    assert claim.verdict == "fails"


SEARCHES = pd.DataFrame(
    {
        "depth": [2, 2, 3, 3],
        "gap": [1e-3, -5e-3, 2e-3, math.nan],
        "ratio": [1.0, 1.1, 1.2, 1.3],
        "settled": [True, False, True, True],
    }
)


def judged(check, table=SEARCHES, name="gap"):
    (claim,) = ledger({"L1": WORDS | {"checks": {name: check}}}).claim("L1", **{name: table}).claims
    return claim.measured, claim.verdict


def test_a_check_takes_its_numbers_from_the_columns_of_a_table():
    top = {"below": 1.0, "where": "depth == 2"}
    assert judged(top) == (1e-3, "holds")  # the column called like the check
    assert judged(top | {"of": "abs(gap)"}) == (5e-3, "holds")
    assert judged({"above": 1.05, "of": "ratio"}) == (1.0, "fails")
    assert judged({"close": 0.1, "to": 1.27, "of": "ratio", "where": "depth > 2"})[0] == 1.2
    assert judged({"below": 1.0})[1] == "fails"  # NaN is not passed over
    entries = ledger({"L1": WORDS | {"check": {"above": 1.0, "of": "ratio", "each": "depth"}}})
    found = entries.claim("L1", SEARCHES.set_index("depth")).claims
    assert [(claim.id, claim.measured) for claim in found] == [("1.L1.2", 1.0), ("1.L1.3", 1.2)]


def test_a_search_that_got_stuck_decides_only_where_it_counts():
    stuck = {"below": -1.0, "converged": "settled"}
    assert judged(stuck | {"where": "depth == 2"}) == (1e-3, "not converged")
    assert judged(stuck | {"where": "gap > 0"}) == (2e-3, "fails")
    assert judged(stuck | {"where": "depth == 2", "below": 1.0}) == (1e-3, "holds")
    rows = {
        "L1": WORDS
        | {"check": {"below": 1.0, "of": "ratio", "each": "depth"} | {"converged": "settled"}}
    }
    found = ledger(rows).claim("L1", SEARCHES.set_index("depth")).claims
    assert [claim.verdict for claim in found] == ["not converged", "fails"]
    again = ledger(rows).claim("L1", SEARCHES.set_index("depth"), converged={"3": False}).claims
    assert [claim.verdict for claim in again] == ["not converged", "not converged"]
    never = {"below": -1.0, "converged": False}  # a search that finds nothing proves nothing
    for numbers in (SEARCHES, 2.0, [-2.0, 0.0]):
        assert judged(never | {"where": "depth == 2"}, numbers)[1] == "not converged"
    assert judged(never, -2.0) == (-2.0, "holds")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        ({"of": "gaps"}, "claim L1.gap: name 'gaps' is not defined; the table has depth, gap"),
        ({"where": "width > 2"}, "claim L1.gap: name 'width' is not defined; the table has depth"),
        ({"where": "depth > 5"}, "claim L1.gap: there is no number"),
        ({"converged": "gap"}, "claim L1.gap: gap must be true or false in each row"),
        ({"converged": "seen"}, "claim L1.gap: name 'seen' is not defined"),
        ({"of": "1.5"}, "^claim L1.gap: 1.5 is no column; the table has"),
        ({"each": ["2", "9"]}, "claim L1.gap: the mapping lacks 9, has unknown 0, has"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_one_clear_error(check, message):
    check = {"below": 1.0, "of": "ratio"} | check
    with pytest.raises(checks.InputError, match=message):
        judged(check)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_declared_checks_never_pass_on_numbers_that_are_not_finite(value, tmp_path):
    one = declared()
    numbers = {"value": value, "frame": (value, value), "known": value, "limit": (1.0, value)}
    found = one.claim("L1", **numbers, text={"case": ""})
    assert [claim.verdict for claim in found.claims] == ["fails"] * len(numbers)
    more = one.claim("L2", listed={"ce": value, "ls": value}, text={"what": ""})
    assert [claim.verdict for claim in more.claims] == ["fails", "fails"]
    made = [dataclasses.asdict(claim) for claim in one.claims]
    json.dumps(made, allow_nan=False)


@pytest.mark.parametrize(
    ("row", "single", "named", "message"),
    [
        ("L4", (), {"a": 1}, "no row L4; it has L1, L10, L2, L3"),
        ("L1", (), {}, "nothing was measured; the row has value, frame"),
        ("L1", (), {"valeu": 1}, "claim L1 has no check valeu; the row has value"),
        ("L1", (1.0,), {}, "claim L1: name the checks; the row has value"),
        ("L10", (), {"ce": 1}, "claim L10 has no check ce; the row has one unnamed check"),
        ("L10", (1.0,), {}, "claim L10: a mapping is needed, one number per entry, got 1.0"),
        ("L10", ({},), {}, "claim L10: the mapping is empty"),
        ("L1", (), {"value": "0.3"}, "claim L1.value: a number is needed, got '0.3'"),
        ("L1", (), {"value": True}, "claim L1.value: a number is needed, got True"),
        ("L1", (), {"value": None}, "claim L1.value: a number is needed, got None"),
        ("L1", (), {"value": 1j}, "claim L1.value: a number is needed"),
        ("L1", (), {"value": np.zeros(0)}, "claim L1.value: there is no number"),
        ("L1", (), {"value": [1.0, "2"]}, "claim L1.value: a number is needed, got '2'"),
        ("L1", (), {"frame": [(1, 1), 2]}, "claim L1.frame: give a pair"),
        (
            "L1",
            (),
            {"value": [torch.zeros(2)]},
            "claim L1.value: one number is needed, got several",
        ),
        ("L1", (), {"value": (1, 2)}, "claim L1.value: give one number: its bound is declared"),
        ("L1", (), {"value": {"ce": 1}}, "claim L1.value: no `each` declared, got {'ce': 1}"),
        ("L1", (), {"frame": 1}, r"claim L1.frame: give a pair \(measured, expected\); got 1"),
        ("L1", (), {"limit": (1, 2, 3)}, "claim L1.limit: give a pair"),
        ("L1", (), {"count": 3.0}, "claim L1.count: exact equality is .*; compare floats with clo"),
        ("L2", (), {"same": (1.0, 1.0)}, "claim L2.same: exact equality is for ints"),
        ("L2", (), {"same": (True, 1)}, "claim L2.same: exact equality is for ints"),
        ("L1", (), {"count": True}, "claim L1.count: exact equality is for ints"),
        ("L2", (), {"listed": {"ce": 1}}, "claim L2.listed: the mapping lacks ls; entries are"),
        ("L2", (), {"listed": {"ce": 1, "ls": 2, "fl": 3}}, "the mapping has unknown fl"),
        ("L2", (), {"per": {10: 1, "10": 2, 100: 1}}, "the mapping has equal entries"),
        ("L2", (), {"listed": {"ce": 1, "ls": 2}}, "claim L2.listed.ce: its note .* lacks 'what'"),
    ],
)
def test_wrong_numbers_are_one_clear_error_and_record_nothing(row, single, named, message):
    one = declared()
    with pytest.raises(checks.InputError, match=message):
        one.claim(row, *single, **named)
    assert {claim.verdict for claim in one.claims} == {"not run"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"converged": {"lsr": False}}, "L10: converged names lsr, which is not measured here"),
        ({"applies": 0.5}, "claim L10: applies must be true or false, got 0.5"),
        ({"converged": {"ls": 1e-9}}, "claim L10: converged must be true or false, got 1e-09"),
    ],
)
def test_options_are_checked_too(options, message):
    with pytest.raises(checks.InputError, match=message):
        declared().claim("L10", {"ls": 1}, **options)


def test_an_option_stands_for_all_numbers_of_a_row_or_of_a_check():
    verdicts = lambda found: [claim.verdict for claim in found.claims]
    numbers = {"listed": {"ce": -1, "ls": -1}, "per": {10: 9, 100: 4.3}}
    text = {"what": "", "far": 1.0}
    ask = lambda **options: verdicts(declared().claim("L2", **numbers, text=text, **options))
    assert ask() == ["fails", "fails", "not reproduced", "holds"]
    assert ask(converged=False) == ["not converged"] * 3 + ["holds"]
    assert ask(applies=np.bool_(False)) == ["not run"] * 4
    assert ask(converged={"listed": False}) == ["not converged"] * 2 + ["not reproduced", "holds"]
    assert ask(applies={"per": {10: False}}) == ["fails", "fails", "not run", "holds"]
    assert verdicts(declared().claim("L10", {"ce": 1, "ls": 0}, converged=False)) == [
        "not converged",
        "holds",
    ]


def test_a_row_may_be_claimed_in_parts_but_no_check_twice():
    one = declared()
    one.claim("L1", value=0.0)
    one.claim("L1", count=3)
    with pytest.raises(checks.InputError, match="claim L1.value was measured twice"):
        one.claim("L1", value=0.0)


def test_by_hand_a_cell_may_be_run_again_and_the_last_numbers_count():
    one = claims.Ledger("01_some_result", DECLARED, again=True)
    one.claim("L1", value=2.0, count=3)
    one.claim("L10", {"ce": 0.1, "ls": 0.2})
    one.claim("L1", value=0.0)
    one.claim("L10", {"ce": 0.7})
    assert [repr(claim) for claim in one.claims][:3] == [
        "1.L1.value: holds",
        "1.L1.count: counterexample",
        "1.L10.ce: fails",
    ]


def test_a_declared_check_that_is_missed_is_an_error(tmp_path):
    one = declared()
    one.claim("L1", value=0.0)
    one.claim("L2", per={10: 2.5, 100: 4.3}, text={"far": 0})
    missed = "rows L1.frame, L1.known, L1.limit, L1.count, L10, L2.listed of 01_some_result"
    with pytest.raises(checks.InputError, match=missed):
        one.write(tmp_path)
    one.claim("L1", frame=(0, 0), known=0.5, limit=(1, 1), count=3, text={"case": ""})
    one.claim("L2", listed={"ce": 1, "ls": 1}, text={"what": ""})
    one.claim("L10", {"ce": 0.0})
    one.write(tmp_path)  # L2.some has a condition, L3 a profile
    stored = {claim.id: claim for claim in claims.read(tmp_path / "claims.json")}
    assert stored["1.L3"].note == "needs profile paper"
    assert [claim for claim in one.claims] == list(stored.values())


@pytest.fixture
def load(tmp_path, monkeypatch):
    """``load(text)``: the catalogue that ``text`` is."""
    monkeypatch.setattr(paths, "CLAIMS", tmp_path)

    def read(text):
        (tmp_path / "01_some_result.yaml").write_text(text)
        return catalogue.load("01_some_result")

    return read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{below: 1, above: 2}", "one of below, above, close, equal is needed"),
        ("{bellow: 1}", "one of below, above, close, equal is needed, .* got bellow"),
        (
            "{below: 1, tolerance: 2}",
            "only converged, counterexample, each, note, of, to, when, where beside it",
        ),
        ("{below: small}", "below must be a number or given, got 'small'"),
        ("{below: true}", "below must be a finite number, got True"),
        ("{below: .inf}", "below must be a finite number, got inf"),
        ("{close: .inf}", "close must be a finite number, got inf"),
        ("{close: given}", "close must be a number or given, got 'given'"),
        ("{below: 1, to: 2}", "`to` belongs to close; below has its own bound"),
        ("{below: 1, note: no}", "note must be text; quote it, got False"),
        ("{below: 1, counterexample: 'yes'}", "counterexample must be true or false, got 'yes'"),
        ("{below: {a: 1}, each: [b]}", "each and the bounds name different entries"),
        ("3", "must be a mapping such as"),
        ("{below: 1, below: 2}", "found the key 'below' twice"),
        ("{close: -0.1, to: 2}", "close must be at least 0, got -0.1"),
        ("{equal: 1.5}", "equal must be an int, a bool or a name, got 1.5"),
        ("{below: 1, each: [a, a]}", "each names an entry twice: a, a"),
        ("{below: {1: 2, '1': 3}}", "each names an entry twice: 1, 1"),
        ("{below: 1, each: []}", "each must be text or a list of the entries"),
        ("{below: 1, when: ''}", "when must be text; quote it, got ''"),
        ("{below: 1, note: 'in {R'}", "note 'in {R': expected '}'"),
    ],
)
def test_a_wrong_check_is_one_clear_error(text, message, load):
    with pytest.raises(checks.InputError, match=message) as error:
        load(f"L1: {{statement: s, source: s, checks: {{a: {text}}}}}")
    assert "01_some_result.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("L1: {statement: s}", r"row L1 lacks \['source'\]"),
        ("L1: {statement: s, source: s, sen: x}", r"row L1 has unknown \['sen'\]"),
        ("L1: {statement: s, source: s, seen: 1}", "row L1: seen must be text; quote it, got 1"),
        ("L1: {statement: s, source: ''}", "source must be text; quote it, got ''"),
        ("L1: {statement: s, source: s, networks: net}", "must be true, false or a list"),
        ("L1: {statement: s, source: s, checks: {no: {below: 1}}}", "must map names"),
        ("L1: {statement: s, source: s, check: {below: 1}, checks: {}}", "either check or checks"),
        ("L1: {statement: s, source: s, checks: {a: {below: 1}}, networks: [b]}", "names b; its c"),
        ("L1: {statement: s, source: s, checks: {a.b: {below: 1}}}", "a word without dots, other"),
        ("L1: {statement: s, source: s, checks: {applies: {below: 1}}}", "'applies' must be a"),
        ("L1: 3", "row L1 must have a statement and a source, got 3"),
        *(
            (f"{name}: {{statement: s, source: s}}", "the id of a row must be a word without dots")
            for name in ("L.1", "L 1", "1", "''")
        ),
        ("3", "01_some_result.yaml must map row ids to entries"),
    ],
)
def test_a_wrong_row_is_one_clear_error(row, message, load):
    with pytest.raises(checks.InputError, match=message):
        load(row)


@pytest.mark.parametrize("book", runs.notebooks())
def test_every_row_is_checked_in_a_cell_and_seen_in_a_figure_or_table(book):
    """And no mark of a finding on networks fits no check: a network that misses would `fail`."""
    stored = paths.figures() / "quick" / book
    seen = {path.stem for path in stored.iterdir() if path.suffix in (".png", ".csv", ".gif")}
    source = "".join(code(book))
    made = {f"{claim.id}." for claim in claims.read(stored / "claims.json")}
    for row, entry in catalogue.load(book).items():
        assert places.places(book, row) or entry.get("needs") in runs.profiles(), row
        if "seen" in entry:
            assert entry["seen"] in seen or f'"{entry["seen"]}"' in source, row
        marks = entry.get("networks", False)
        for mark in [] if isinstance(marks, bool) else marks:
            here = any(i.startswith(f"{int(book[:2])}.{row}.{mark}.") for i in made)
            assert here or "when" in entry["checks"][mark], (row, mark)
