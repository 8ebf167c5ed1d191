"""The report page as a person meets it: in a real browser, by mouse and by keyboard."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nclib import report

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `test`)")
report_picture = pytest.importorskip("tests.report_picture")
HOSTILE = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>{{7*7}}; rm -rf ~ #"


@pytest.fixture(scope="module")
def browser():
    path = report_picture.browser()
    if path is None:
        pytest.skip(
            f"none of {', '.join(report_picture.BROWSERS)} is installed (Debian: apt-get install "
            "chromium)"
        )
    with sync_api.sync_playwright() as playwright:
        # Chromium refuses its own sandbox to root, as which CI runs.
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def target(shared_tiny, tmp_path_factory):
    """Four runs: two profiles, one with another K, one whose every text is hostile; a sweep."""
    out = tmp_path_factory.mktemp("report")
    verdicts = ("holds", "holds", "counterexample", "not run")
    shared_tiny.fake("quick", {}, verdicts, out=out)
    shared_tiny.fake("quick-0123456789", {"K": 5}, ("holds", "fails", "counterexample"), out=out)
    shared_tiny.fake("standard", {"profile": "standard"}, verdicts, out=out)
    label = {"label": HOSTILE, HOSTILE: HOSTILE}
    shared_tiny.fake("quick-fedcba9876", label, verdicts, out=out, note=HOSTILE)
    sweep = out / "runs" / "sweep-01234567"
    sweep.mkdir(parents=True)
    (sweep / "summary.csv").write_text(
        "notebook,id,p.K,mean,sd,n,holds\n90_tiny,90.A1,4,0.1,,1,1\n90_tiny,90.A1,5,0.2,0.01,2,2\n"
    )
    (sweep / "sweep.csv").write_text("run\nquick\nquick-0123456789\n")
    return report.write(out=out)


@pytest.fixture
def page(browser, target):
    """The page; afterwards: no error, no dialog of a script, no request but for the file itself."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    found = context.new_page()
    found.set_default_timeout(10_000)
    problems, requests = [], []
    found.on("console", lambda message: problems.append(message.text))
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    found.on("request", lambda request: requests.append(request.url))
    found.goto(target.as_uri())
    yield found
    context.close()
    assert problems == []
    assert [url for url in requests if not url.startswith("data:image/")] == [target.as_uri()]


def choose(page, name):
    return page.get_by_role("combobox", name=name, exact=True).select_option


def runs_shown(page):
    return [s.get_attribute("id") for s in page.locator("main section[data-run]:visible").all()]


def test_filters_by_result_profile_run_verdict_and_text(page):
    assert len(runs_shown(page)) == 4
    assert page.get_by_role("status").inner_text() == "4 runs, 15 checks shown"
    choose(page, "profile")("standard")
    assert runs_shown(page) == ["standard--90_tiny"]
    page.locator("summary", has_text="all 4 runs").click()
    assert page.locator("header tbody tr:visible").count() == 1
    page.get_by_role("button", name="show all").click()
    choose(page, "verdict")("fails")
    assert runs_shown(page) == ["quick-0123456789--90_tiny"]
    assert page.locator(".claims tbody tr:visible").count() == 1
    choose(page, "verdict")("")
    page.get_by_label("text in checks").fill("STATEMENT 4")
    assert page.get_by_role("status").inner_text() == "3 runs, 3 checks shown"
    page.get_by_role("button", name="show all").click()
    choose(page, "result")("90_tiny")
    choose(page, "run")("quick")
    assert runs_shown(page) == ["quick--90_tiny"]


def test_a_filter_leaves_the_pictures_of_its_rows(page):
    fold(page, "quick--90_tiny")
    pictures = page.locator("#quick--90_tiny .figures figure:visible")
    assert pictures.count() == 2
    choose(page, "verdict")("holds")
    assert pictures.locator("figcaption").all_inner_texts() == ["02_second"]
    choose(page, "verdict")("counterexample")  # a row that is seen nowhere
    assert pictures.count() == 0
    choose(page, "verdict")("")
    assert pictures.count() == 2


def test_a_check_leads_to_its_picture_its_cell_and_its_functions(page):
    fold(page, "quick--90_tiny")
    rows = page.locator("#quick--90_tiny .claims tbody tr")
    rows.nth(0).get_by_role("button", name="02_second").click()
    sync_api.expect(page.get_by_role("dialog").get_by_role("img", name="second")).to_be_visible()
    page.keyboard.press("Escape")
    assert rows.nth(1).get_by_role("button").count() == 0  # what it names is no picture of its run
    rows.nth(0).locator("summary").click()
    text = rows.nth(0).inner_text()
    assert "cell [6]" in text
    assert "deep.train.fit" in text
    assert rows.nth(3).locator("summary").count() == 0  # no cell checks it


def test_the_first_screen_says_what_does_not_just_hold(page):
    top = page.locator("header")
    assert "90_tiny" in top.locator(".answers").inner_text() or "tiny" in top.inner_text()
    texts = top.locator(".open li").all_inner_texts()
    assert any("90.A3 counterexample" in text and "statement 3" in text for text in texts)
    assert not any("A1" in text for text in texts)
    entry = top.locator(".open li").filter(has_text="90.A3").first
    assert not entry.get_by_text("nclib claims 90.A3").is_visible()
    entry.locator("summary").click()
    assert entry.get_by_text("nclib claims 90.A3").is_visible()
    entry.locator("summary").click()
    assert top.bounding_box()["height"] < 800
    assert page.evaluate("document.documentElement.scrollHeight") < 20_000
    assert page.locator(".figures img:visible").count() == 0  # folded until asked for
    page.locator(".answers a").first.click()
    sync_api.expect(page.locator(".figures img:visible")).to_have_count(2)


def test_the_stored_results_fit_on_the_first_screen_of_a_laptop(browser, tmp_path):
    """Six results, and every statement that does not just hold, without scrolling."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    environment = {k: v for k, v in os.environ.items() if k != "NCLIB_NOTEBOOKS"}
    found = tmp_path / "report.html"
    command = [sys.executable, "-m", "nclib", "report", "--to", str(found)]
    subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, check=True)
    page.goto(found.as_uri())
    last = page.locator(".open li").last.bounding_box()
    assert last["y"] + last["height"] <= 800
    assert page.locator(".answers li").count() == 7
    assert page.evaluate("document.documentElement.scrollHeight") < 20_000
    page.close()


def fold(page, run):
    """Open or close the results of a run."""
    page.locator(f"#{run} > details > summary").click()


def test_sorts_numbers_as_numbers_and_names_by_their_numbers(page):
    fold(page, "quick--90_tiny")
    claims = page.locator("#quick--90_tiny .claims")
    ids = lambda: claims.locator("tbody td:first-child").all_inner_texts()
    button = claims.get_by_role("button", name="measured")
    button.click()
    assert ids() == ["90.A1", "90.A2", "90.A3", "90.A4"]  # 2e-05 < 0.0003 < 0.5 < 10
    assert claims.locator("th").nth(2).get_attribute("aria-sort") == "ascending"
    button.press("Enter")
    assert ids() == ["90.A4", "90.A3", "90.A2", "90.A1"]
    claims.get_by_role("button", name="verdict").click()
    assert ids()[0] == "90.A3"  # counterexample
    assert claims.locator("th").nth(2).get_attribute("aria-sort") is None


def test_the_enlarged_view_by_keyboard(page):
    box = page.get_by_role("dialog")
    fold(page, "quick-0123456789--90_tiny")
    opener = page.locator("#quick-0123456789--90_tiny .zoom").first
    opener.focus()
    page.keyboard.press("Enter")
    assert box.is_visible()
    assert "first · 90_tiny quick K=5 [quick-0123456789]" in box.inner_text()
    assert "nclib run 90 -p K=5" in box.inner_text()
    assert "K = 5" in box.inner_text()
    page.keyboard.press("ArrowRight")
    assert "second · 90_tiny quick K=5 [quick-0123456789]" in box.inner_text()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert "first · 90_tiny quick" in box.inner_text()
    page.keyboard.press("Escape")
    assert not box.is_visible()
    # Where the reader is now.
    sync_api.expect(page.locator("#quick--90_tiny .zoom").first).to_be_focused()
    # A filter limits what the arrows go through.
    choose(page, "profile")("standard")
    fold(page, "standard--90_tiny")
    page.locator(".zoom:visible").first.click()
    page.get_by_role("button", name="previous figure").click()
    assert "second · 90_tiny standard" in box.inner_text()
    page.get_by_role("button", name="close").click()
    assert not box.is_visible()


def test_compares_two_runs(page):
    choose(page, "compare")("quick--90_tiny")
    choose(page, "with")("quick-0123456789--90_tiny")
    page.get_by_role("button", name="side by side").click()
    box = page.get_by_role("dialog")
    text = box.inner_text()
    assert "Parameters that differ" in text
    assert box.locator("table").first.locator("tbody tr").all_inner_texts() == ["K\t4\t5"]
    assert "Checks: 2 of 4 verdicts differ" in text  # A2 fails there, A4 is missing there
    marked = box.locator("tr.different td:first-child").all_inner_texts()
    assert marked == ["90.A2", "90.A4"]
    assert box.locator("figure img").count() == 4
    left, right = (box.locator("figure").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]


def test_hostile_texts_stay_texts(page):
    fold(page, "quick-fedcba9876--90_tiny")
    section = page.locator("#quick-fedcba9876--90_tiny")
    assert HOSTILE in section.locator(".claims").inner_text()
    assert page.locator("img[src=x], main script").count() == 0
    assert "49" not in section.locator("td").last.inner_text()
    choose(page, "with")("quick-fedcba9876--90_tiny")
    page.get_by_role("button", name="side by side").click()
    assert page.get_by_role("dialog").locator("img[src=x]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_phone_desktop_light_and_dark_are_accessible(page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")

    def check():
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        results = axe.run(page)
        assert results.violations_count == 0, results.generate_report()

    for summary in page.locator("summary").all():
        summary.click()
    check()
    page.locator(".zoom").first.click()
    check()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="side by side").click()
    check()


def test_every_control_has_a_name(page):
    controls = page.locator("button, select, input, a, summary").all()
    assert len(controls) > 30
    for control in controls:
        tag = control.evaluate("e => e.tagName")
        named = control.evaluate(
            "e => (e.getAttribute('aria-label') || e.closest('label')?.firstChild.textContent"
            " || e.textContent).trim()"
        )
        assert named, f"a {tag} without a name"
