"""Makes the pictures of docs/howto/report.md, with Chromium: `python docs/report_pictures.py REPORT.html`.

REPORT.html is that of the tutorial: `nertool evaluate run/model split/test --report REPORT.html`.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent / "howto"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--force-color-profile=srgb"]


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.goto(Path(sys.argv[1]).resolve().as_uri())
        page.screenshot(path=FOLDER / "report-head.png")
        page.select_option("#kind", "too long")
        page.locator("#browser").scroll_into_view_if_needed()
        page.evaluate("document.getElementById('browser').scrollIntoView()")
        page.screenshot(path=FOLDER / "report-errors.png")
        browser.close()


if __name__ == "__main__":
    main()
