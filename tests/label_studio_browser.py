"""A person at Label Studio's pages, played by Chromium, headless; run by the server's Python, which has Playwright.

    PYTHON -m tests.label_studio_browser JOB.json

JOB has `url`, `email`, `password`, `chromium` (its path) and `steps`, a list of `["open", page]`, `["shot", file]`,
`["compare"]`, `["mark", class, text]` (choose a class and mark a text with the mouse), `["delete", text]`, `["check"]`
and `["save"]`.
"""

import json
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
]  # fmt: skip
# Finds the place of a text on the page: first and last character.
PLACE = """(wanted) => {
  const root = document.querySelector('[class*="htx-richtext"]') || document.body;
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let nodes = [], all = '';
  while (walker.nextNode()) { nodes.push([walker.currentNode, all.length]); all += walker.currentNode.data; }
  const start = all.indexOf(wanted);
  if (start < 0) return null;
  const at = (offset) => { const [node, first] = nodes.filter(([_, first]) => first <= offset).pop();
    const range = document.createRange(); range.setStart(node, offset - first); range.setEnd(node, offset - first + 1);
    const box = range.getBoundingClientRect(); return [box.left, box.right, (box.top + box.bottom) / 2]; };
  return [at(start), at(start + wanted.length - 1)];
}"""


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=job["chromium"], args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1360, "height": 800})
        page.goto(f"{job['url']}/user/login/")
        page.fill("input[name=email]", job["email"])
        page.fill("input[name=password]", job["password"])
        page.keyboard.press("Enter")
        page.wait_for_url(lambda address: "login" not in address)
        for name, *values in job["steps"]:
            STEPS[name](page, job["url"], *values)
        browser.close()


def open_task(page: Page, url: str, path: str) -> None:
    page.goto(url + path)
    page.wait_for_selector('[class*="htx-richtext"]')
    page.wait_for_timeout(2500)


def shot(page: Page, _url: str, file: str) -> None:
    page.mouse.move(680, 780)
    page.wait_for_timeout(500)
    page.screenshot(path=file)


def compare(page: Page, _url: str) -> None:
    page.get_by_text("Compare All").first.click()
    page.wait_for_timeout(3000)


def mark(page: Page, _url: str, label: str, text: str) -> None:
    page.locator('[class*="label_"], [class*="lsf-label"]').get_by_text(label, exact=True).first.click()
    (left, _, top), (_, right, bottom) = page.evaluate(PLACE, text)
    page.mouse.move(left + 1, top)
    page.mouse.down()
    page.mouse.move((left + right) / 2, bottom, steps=5)
    page.mouse.move(right - 1, bottom, steps=5)
    page.mouse.up()
    page.wait_for_timeout(500)
    page.keyboard.press("Escape")


def delete(page: Page, _url: str, text: str) -> None:
    (left, right, middle), _ = page.evaluate(PLACE, text)
    page.mouse.click((left + right) / 2, middle)
    page.wait_for_timeout(500)
    page.keyboard.press("Backspace")
    page.wait_for_timeout(500)


def check(page: Page, _url: str) -> None:
    page.get_by_text("The entities are right").first.click()
    page.wait_for_timeout(500)


def save(page: Page, _url: str) -> None:
    page.get_by_role("button", name="Update").or_(page.get_by_role("button", name="Submit")).first.click()
    page.wait_for_timeout(2500)


STEPS = {
    "open": open_task,
    "shot": shot,
    "compare": compare,
    "mark": mark,
    "delete": delete,
    "check": check,
    "save": save,
}

if __name__ == "__main__":
    main()
