"""What the report page says first, read from its text; test_report_browser.py looks at it."""

import re

from nclib import files, report


def test_what_does_not_just_hold_comes_worst_first_of_plain_profiles(tiny):
    tiny.fake("quick", {}, ("holds", "counterexample", "not reproduced", "not run"))
    tiny.fake("standard", {"profile": "standard"}, ("holds", "counterexample", "holds"))
    tiny.fake("quick-0123456789", {"K": 5}, ("fails", "fails"))
    path = tiny.out / "figures/quick/90_tiny/claims.json"
    found = files.read_json(path, list)  # a second check of the first row
    found.append(found[0] | {"id": "90.A1.b", "verdict": "fails", "measured": 10.0})
    files.write_json(path, found)
    page = report.write(out=tiny.out).read_text()
    entry = r'<strong class="\w+">(\S+)\s+([\w ]+)</strong>(?: <span class="soft">(\S+)</span>)?'
    assert re.findall(entry + r".*?<p>(.*?)</p>", page, re.DOTALL) == [
        ("90.A1", "fails", "quick", "10 (&lt;= 1)"),
        ("90.A3", "not reproduced", "quick", "0.5 (&lt;= 1)"),
        ("90.A2", "counterexample", "", "0.0003 (&lt;= 1)"),  # in both
    ]
    answer = " ".join(
        re.sub("<.*?>", " ", page.partition("answers")[2].partition("</li>")[0]).split()
    )
    verdicts = "1 counterexample · 1 not run · 1 not reproduced · 1 fails"
    assert answer.endswith(f"A tiny notebook quick: {verdicts}")


def test_links_sweeps_and_interactive_runs_are_those_that_are_there(tiny):
    tiny.fake("quick", {}, ("holds",))
    sweep, link = tiny.out / "runs/sweep-0", 'href="quick/90_tiny/notebook.ipynb"'
    sweep.mkdir(parents=True)
    (sweep / "summary.csv").write_text("notebook,id,p.K,mean,sd,n,holds\n90_tiny,90.A1,4,1,,1,1\n")
    (sweep / "sweep.csv").write_text("run\nquick\nquick\nquick-0123456789\n")
    files.write_json(tiny.out / "runs/interactive/90_tiny/figures/record.json", {})  # unfinished
    page = report.write(out=tiny.out).read_text()
    assert (link in page, "2 runs over K" in page, "interactive" in page) == (False, True, False)
    files.write_json(tiny.out / "runs/quick/90_tiny/notebook.ipynb", {})
    assert link in report.write(out=tiny.out).read_text()
