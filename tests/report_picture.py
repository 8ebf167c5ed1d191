"""The picture of the report in the README: ``python -m tests.report_picture``."""

import os
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from nclib import paths, report
from nclib.plots import style

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser():
    """The browser of this machine: ``NCLIB_BROWSER``, or one by its usual name; None without."""
    return os.environ.get("NCLIB_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)


def main():
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = report.write(target=Path(folder) / "report.html")
        # Chromium refuses its own sandbox to root, as which CI runs.
        chrome = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        window = chrome.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        window.goto(page.as_uri())
        (paths.figures() / "report.png").write_bytes(style.shrink(window.screenshot()))
        chrome.close()


if __name__ == "__main__":
    main()
