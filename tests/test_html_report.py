"""The HTML report: its numbers, that nothing in it runs, and what it does in Chromium (skipped where there is none)."""

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nertool import extras
from nertool.calibration import calibration
from nertool.documents import Document, Entity, Section, Span
from nertool.error_analysis import ErrorItem, find_errors, summarise_errors
from nertool.groups import SectionFacts, group_scores
from nertool.html_report import html_page
from nertool.matching import SectionPair
from nertool.metrics import evaluation_report, score
from tests.cli_helpers import in_an_empty_folder, refuse, succeed  # noqa: F401
from tests.conftest import entity, make_corpus, write_documents
from tests.test_evaluate import change, without_first, without_first_of_every_third

STYLE = Path(__file__).parents[1] / "nertool/report_template/page.css"
MARKUP = (
    "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">\"'><b>x</b>&amp;\u2028"
)
CLASS = f"a/b~c {MARKUP}"


class Parsed(HTMLParser):
    """What is on a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: dict[str, set[str]] = {}
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self._key: str | None = None
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._tag = tag
        if tag in self.inside:
            self.inside[tag].append("")
        if "data-key" in dict(attrs):
            self._key = dict(attrs)["data-key"]

    def handle_data(self, data: str) -> None:
        if self._tag in self.inside:
            self.inside[self._tag][-1] += data
        if self._key is not None:
            self.numbers.setdefault(self._key, set()).add(data)

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""
        self._key = None

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def resolve(report: Any, pointer: str) -> Any:
    """JSON pointers as RFC 6901 has them; what isn't there is None."""
    for step in pointer.split("/")[1:]:
        report = (report or {}).get(step.replace("~1", "/").replace("~0", "~"))
    return report


def texts_of(value: float | None) -> set[str]:
    if value is None:
        return {"–"}
    if isinstance(value, int):
        return {f"{value:,}"}
    return {f"{value:.3f}".replace("-", "−"), f"{value:+.3f}".replace("-", "−")}


def pointers(value: Any, path: str = "") -> Iterator[str]:
    """Yields the pointers of all numbers."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from pointers(inner, f"{path}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, int | float):
        yield path


def full_report(pairs: list[SectionPair], facts: list[SectionFacts], errors: list[ErrorItem]) -> dict[str, Any]:
    """Everything that `evaluate` tells of a model, curves as if thresholds changed nothing."""
    labels = sorted({one.label for pair in pairs for one in (*pair.gold, *pair.predicted)})
    report = evaluation_report(pairs, labels, bootstrap_samples=50)
    report["counts"] |= {
        "annotators": {f"the LLM {MARKUP}": 2, "x": 1},
        "rejected": 1,
        "not_representable": {"ceiling_micro_f1": 0.9, "losses": {"begins or ends inside a word": 2}},
        "classes_unknown_to_the_model": {CLASS: 3},
    }
    strict = score(pairs, labels, "strict")
    rates = {label: {rate: report.get(f"{label}_{rate}") for rate in ("precision", "recall", "f1")} for label in labels}
    rates["micro"] = {rate: report[f"micro_{rate}"] for rate in ("precision", "recall", "f1")}
    found = dict(zip(strict.classes, strict.counts[..., 0].sum(axis=0).tolist(), strict=True))
    return report | {
        "errors": summarise_errors(errors, found),
        "groups": group_scores(pairs, facts, set()),
        "gold_sets": None,
        "calibration": calibration(pairs),
        "thresholds": dict.fromkeys(labels, 0.25),
        "threshold_curves": {
            label: [{"threshold": threshold, **one} for threshold in (0.1, 0.5, 0.9)] for label, one in rates.items()
        },
    }


@pytest.fixture(scope="module")
def hostile() -> dict[str, Any]:
    """A report in which all that others have written is markup."""
    text = f"The BRCA1 gene {MARKUP} in lung cancer 😀 of mice"
    gold = (entity(text, CLASS, "BRCA1"), entity(text, "d", "lung cancer"), entity(text, "micro", "mice"))
    predicted = (
        Entity(CLASS, (Span(4, 14),), MARKUP, score=0.9),
        Entity(MARKUP, (Span(15, 60),), MARKUP, score=0.4),
        Entity("d", gold[1].spans, "lung cancer", score=1.0),
    )
    documents, others = (
        [Document(f"{number} {MARKUP}", (Section(MARKUP, text, entities),)) for number in range(3)]
        for entities in (gold, predicted)
    )
    pairs = [SectionPair(number, gold, predicted) for number in range(3)]
    errors = find_errors(pairs)
    report = full_report(pairs, [SectionFacts(MARKUP, MARKUP)] * 3, errors)
    return {
        "report": report,
        "gold_documents": documents,
        "predicted_documents": others,
        "errors": errors,
        "model": MARKUP,
        "documents": MARKUP,
        "history": [
            {"step": 1, "kind": "train", "loss": 20.0},
            {"step": 2, "kind": "train", "loss": 0.5},
            {"step": 2, "kind": "eval", "micro_f1": 0.5, "mean_f1": None},
            {"step": 3, "kind": "eval", "micro_f1": 0.6, "mean_f1": 0.4},
        ],
    }


@pytest.fixture(scope="module")
def hostile_page(hostile: dict[str, Any]) -> str:
    return html_page(**hostile)


def test_the_numbers_of_the_page_are_those_of_the_json() -> None:
    gold = write_documents(Path("gold"), make_corpus(12))
    fewer = write_documents(Path("fewer"), change(make_corpus(12), without_first))
    better = write_documents(Path("better"), change(make_corpus(12), without_first_of_every_third))
    options = ("--baseline", fewer, "--train", fewer, "--scheme", "overlap", "--report", "report.html", "--json")
    report = json.loads(succeed("evaluate", better, gold, *options).stdout)
    numbers = Parsed(Path("report.html").read_text(encoding="utf-8")).numbers
    for pointer, shown in numbers.items():
        assert shown <= texts_of(resolve(report, pointer)), pointer
    flat = {key for key in pointers(report) if key.count("/") == 1}
    wanted = flat | {f"/schemes/strict{key}" for key in flat if key.endswith("_f1")}
    wanted |= {
        f"/confidence_intervals/{key[1:]}/{end}" for key in flat if key.endswith("f1") for end in ("low", "high")
    }
    wanted |= {key for key in pointers({"comparison": report["comparison"]}) if not key.endswith(("level", "samples"))}
    wanted |= {key for key in pointers({"groups": report["groups"]}) if not key.endswith("/predicted")}
    wanted |= set(pointers({"errors": report["errors"]}))
    assert wanted <= numbers.keys()
    assert len(wanted) > 120


def test_the_numbers_of_scores_and_thresholds_are_those_of_the_json(hostile: dict[str, Any], hostile_page: str) -> None:
    numbers = Parsed(hostile_page).numbers
    for pointer, shown in numbers.items():
        assert shown <= texts_of(resolve(hostile["report"], pointer)), pointer
    wanted = set(pointers({key: hostile["report"][key] for key in ("thresholds", "errors")}))
    wanted.remove("/thresholds/micro")  # a class of this name has no numbers of its own
    classes = {"calibration": {"classes": hostile["report"]["calibration"]["classes"]}}
    assert wanted | set(pointers(classes)) | {"/calibration/expected_calibration_error"} <= numbers.keys()


def test_what_others_have_written_is_text(hostile: dict[str, Any], hostile_page: str) -> None:
    harmless = json.loads(json.dumps([hostile["report"]]).replace(json.dumps(MARKUP)[1:-1], "harmless"))[0]
    plain_documents = [
        [
            Document(
                "x", tuple(Section("x", s.text.replace(MARKUP, "x" * len(MARKUP)), s.entities) for s in d.sections)
            )
            for d in hostile[side]
        ]
        for side in ("gold_documents", "predicted_documents")
    ]
    plain = html_page(
        harmless, *plain_documents, hostile["errors"], model="m", documents="d", history=hostile["history"]
    )
    page, other = Parsed(hostile_page), Parsed(plain)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in other.tags]
    assert [sorted(attributes) for _, attributes in page.tags] == [sorted(attributes) for _, attributes in other.tags]
    assert page.inside["title"] == [f"{MARKUP} on {MARKUP}"]
    data, script = page.inside["script"]
    assert script == other.inside["script"][1]
    assert not set(data) & set("<>&\u2028\u2029")
    assert json.loads(data)["sections"][0]["texts"] == [[0, hostile["gold_documents"][0].sections[0].text]]


def test_the_page_needs_nothing_and_its_policy_lets_nothing_else_run(hostile_page: str) -> None:
    page = Parsed(hostile_page)
    (policy,) = [
        one["content"] for one in page.attributes("meta") if one.get("http-equiv") == "Content-Security-Policy"
    ]

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    (style,) = page.inside["style"]
    assert policy == (
        f"default-src 'none'; style-src {digest(style)}; script-src {digest(page.inside['script'][1])}; "
        "base-uri 'none'; form-action 'none'"
    )
    for tag, attributes in page.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        assert (attributes.get("href") or "#").startswith("#"), tag
    assert "url(" not in style and "@import" not in style
    assert {one.get("type") for one in page.attributes("script")} == {"application/json", None}


def test_plots_follow_the_page_and_have_ids_of_their_own(hostile_page: str) -> None:
    plots = re.findall(r'<svg class="plot".*?</svg>', hostile_page)
    assert len(plots) == 1 + 2 * 4 + 2  # reliability, two of each class and of all, loss and F1
    for plot in plots:
        assert set(re.findall(r'(?:fill|stroke)="(.*?)"', plot)) <= {
            "none", *(f"var(--{name})" for name in ("ink", "muted", "line", "accent", "second", "third"))
        }  # fmt: skip
        assert set(re.findall(r"#(plot[-\w]+)", plot)) == set(re.findall(r'id="(.*?)"', plot))


def test_the_same_input_gives_the_same_bytes(hostile: dict[str, Any], hostile_page: str) -> None:
    assert html_page(**hostile) == hostile_page


def test_a_page_without_errors_scores_or_intervals() -> None:
    gold = write_documents(Path("gold"), make_corpus(1))
    succeed("evaluate", gold, gold, "--report", "report.html")
    page = Path("report.html").read_text(encoding="utf-8")
    assert "There are no errors." in page
    assert "There are no intervals" in page
    assert 'id="scores"' not in page and 'id="training"' not in page and 'id="comparison"' not in page


def test_a_page_of_a_model_without_errors_has_its_curves() -> None:
    documents = make_corpus(2)
    sections = [section for document in documents for section in document.sections]
    pairs = [SectionPair(number, one.entities, one.entities) for number, one in enumerate(sections)]
    report = full_report(pairs, [SectionFacts(one.name, "x") for one in sections], [])
    page = html_page(
        report=report, gold_documents=documents, predicted_documents=documents, errors=[], model="m", documents="d"
    )
    assert "There are no errors." in page
    assert 'id="scores"' in page


def contrast(one: str, other: str) -> float:
    """Source: WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour: str) -> float:
        colour = colour if len(colour) == 7 else "#" + "".join(digit * 2 for digit in colour[1:])
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted(map(luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_colours_are_legible_in_light_and_dark() -> None:
    light, dark = (
        dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.S)
    )
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        classes = [colours[f"k{number}"] for number in range(10)]
        assert len(set(classes)) == 10
        for colour in (*classes, colours["ink"], colours["muted"], colours["accent"]):
            assert contrast(colour, colours["page"]) >= 4.5
            assert contrast(colour, colours["soft"]) >= 4.5
        assert all(contrast(colour, colours["on"]) >= 4.5 for colour in classes)


def test_what_can_not_be_written_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = write_documents(Path("gold"), make_corpus(2))
    Path("folder").mkdir()
    assert "folder is a folder" in refuse("evaluate", gold, gold, "--report", "folder")
    lines = Path("gold.jsonl")
    succeed("convert", gold, lines)
    assert "is the input, too" in refuse("evaluate", gold, lines, "--report", lines)
    monkeypatch.setattr(extras, "is_installed", lambda package: package != "matplotlib")
    message = refuse("evaluate", "nowhere", gold, "--report", "report.html")
    assert "matplotlib is not installed" in message and "nertool[report]" in message
    assert not Path("report.html").exists()


# In Chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()


def opened(browser: Any, page: str, **options: Any) -> tuple[Any, list[str]]:
    """Opens a page; returns it and what it did beside: messages, errors and requests."""
    Path("page.html").write_text(page, encoding="utf-8", newline="")
    tab = browser.new_context(**options).new_page()
    heard: list[str] = []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("dialog", lambda dialog: heard.append(dialog.message))
    address = Path("page.html").resolve().as_uri()
    tab.on("request", lambda request: None if request.url == address else heard.append(request.url))
    tab.goto(address)
    return tab, heard


def test_markup_in_texts_runs_nothing(browser: Any, hostile_page: str) -> None:
    tab, heard = opened(browser, hostile_page)
    assert "document.title" in tab.title()
    assert tab.locator("img, main b b").count() == 0
    assert MARKUP.split("\u2028", maxsplit=1)[0] in tab.locator("#list article .where").first.text_content()
    assert heard == []
    # What gets past the escaping is stopped by the policy.
    tab, heard = opened(browser, hostile_page.replace("<footer>", f"{MARKUP}<footer>"))
    assert "document.title" in tab.title()
    assert any("Content Security Policy" in message for message in heard)


def test_classes_are_sorted_by_keyboard(browser: Any) -> None:
    gold = write_documents(Path("gold"), make_corpus(12))
    fewer = write_documents(Path("fewer"), change(make_corpus(12), without_first_of_every_third))
    report = json.loads(succeed("evaluate", fewer, gold, "--report", "report.html", "--json").stdout)
    tab, heard = opened(browser, Path("report.html").read_text(encoding="utf-8"))

    def names() -> list[str]:
        return tab.locator("table.sortable tbody th").all_text_contents()

    labels = names()
    heads = tab.locator("table.sortable thead th")
    heads.nth(7).locator("button").focus()
    tab.keyboard.press("Enter")
    assert heads.nth(7).get_attribute("aria-sort") == "descending"
    assert names() == sorted(labels, key=lambda label: -report[f"{label}_support"])
    tab.keyboard.press("Space")
    assert heads.nth(7).get_attribute("aria-sort") == "ascending"
    assert names() == sorted(labels, key=lambda label: report[f"{label}_support"])
    heads.nth(0).locator("button").click()
    assert (heads.nth(0).get_attribute("aria-sort"), heads.nth(7).get_attribute("aria-sort")) == ("ascending", "none")
    assert names() == sorted(labels)
    assert tab.locator("table.sortable tfoot th").all_text_contents() == ["all (micro)", "mean of the classes"]
    assert heard == []


def test_errors_are_filtered_and_searched(browser: Any, hostile: dict[str, Any], hostile_page: str) -> None:
    tab, _ = opened(browser, hostile_page)
    articles = tab.locator("#list article")
    errors = hostile["errors"]
    assert articles.count() == len(errors) == 9
    kinds = {error.kind for error in errors}
    for kind in kinds:
        tab.select_option("#kind", kind)
        assert articles.count() == sum(error.kind == kind for error in errors)
        assert set(tab.locator("#list .what b").all_text_contents()) == {kind}
    tab.click("button[type=reset]")
    articles.nth(8).wait_for()
    tab.select_option("#gold", "(none)")
    assert articles.count() == sum(not error.gold for error in errors)
    tab.select_option("#predicted", MARKUP)
    assert articles.count() == sum(not error.gold and error.predicted[0].label == MARKUP for error in errors) == 3
    tab.click("button[type=reset]")
    tab.fill("#query", "2 </SCRIPT>")
    tab.get_by_text("3 of 9 errors").wait_for()
    assert articles.count() == 3
    tab.locator("button.look[data-kind=missed]").first.click()
    assert set(tab.locator("#list .what b").all_text_contents()) == {"missed"}


def test_spans_are_drawn_where_they_are(browser: Any) -> None:
    text = "😀 left and right ventricular hypertrophy of mice"
    gold = (
        entity(text, "disease", "left", "ventricular hypertrophy"),
        entity(text, "disease", "right ventricular hypertrophy"),
        entity(text, "part", "right"),
        entity(text, "taxon", "mice"),
    )
    predicted = (entity(text, "disease", "left and right ventricular"), entity(text, "taxon", "mice"))
    pairs = [SectionPair(0, gold, predicted)]
    errors = find_errors(pairs)
    documents, others = ([Document("d", (Section("text", text, side),))] for side in (gold, predicted))
    report = full_report(pairs, [SectionFacts("text", "x")], errors)
    tab, heard = opened(browser, html_page(report, documents, others, errors, model="m", documents="d"))
    text_box = tab.locator("#list .text").first
    assert text_box.text_content() == text
    boxes = tab.evaluate("""() => [...document.querySelector('#list .text').querySelectorAll('.mark')].map((mark) => {
        const {left, right, top, bottom} = mark.getBoundingClientRect();
        const atom = mark.parentElement.getBoundingClientRect();
        return {left, right, top, bottom, above: bottom <= atom.top + 8, below: top >= atom.bottom - 8,
          name: mark.title, gap: mark.classList.contains('gap'), label: mark.dataset.label ?? null,
          text: mark.parentElement.textContent};
    })""")
    for box in boxes:
        assert box["above"] if box["name"].startswith("gold") else box["below"], box
    for side in ("gold", "predicted"):
        mine = [box for box in boxes if box["name"].startswith(side)]
        for number, one in enumerate(mine):  # no bar lies over another one
            for other in mine[:number]:
                apart = one["right"] <= other["left"] + 0.5 or other["right"] <= one["left"] + 0.5
                assert apart or one["bottom"] <= other["top"] + 0.5 or other["bottom"] <= one["top"] + 0.5, (one, other)
    in_gap = "".join(box["text"] for box in boxes if box["gap"])
    assert in_gap == " and right "
    labels = [box["label"] for box in boxes if box["label"]]
    assert sorted(labels) == ["disease", "disease", "disease", "part", "taxon"]
    assert heard == []


def test_many_errors_open_at_once_and_are_bounded(browser: Any) -> None:
    texts = [f"Document {number}: the gene BRCA1 is mutated in lung cancer of patients." for number in range(20_000)]
    gold = [Document(f"d{k}", (Section("text", t, (entity(t, "gene", "BRCA1"),)),)) for k, t in enumerate(texts)]
    predicted = [Document(one.id, (Section("text", one.sections[0].text),)) for one in gold]
    pairs = [SectionPair(k, one.sections[0].entities, ()) for k, one in enumerate(gold)]
    errors = find_errors(pairs)
    report = full_report(pairs[:10], [SectionFacts("text", "x")] * 10, errors)
    page = html_page(report, gold, predicted, errors, model="m", documents="d")
    assert "Of 20,000 errors 5,000 are here: at most 5,000 of each kind in each class" in " ".join(page.split())
    assert len(page) < 2_000_000
    tab, heard = opened(browser, page)
    assert tab.evaluate("performance.getEntriesByType('navigation')[0].domComplete") < 10_000
    assert tab.locator("#list article").count() == 25
    assert tab.locator("#page").text_content() == "page 1 of 200"
    tab.click("#next")
    assert tab.locator("#page").text_content() == "page 2 of 200"
    assert "d100" in (tab.locator("#list .where").first.text_content() or "")
    assert heard == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(browser: Any, hostile_page: str, scheme: str) -> None:
    tab, heard = opened(browser, hostile_page, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
    tab.emulate_media(media="print", color_scheme=scheme)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert heard == []
