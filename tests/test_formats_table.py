"""What each format holds of what documents may have: proved by a round trip each, and told in the reference."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nertool.documents import Document, Entity, Section, Span, document_to_json, match_text
from nertool.formats import FORMATS, ReadReport, read_documents

TABLE = Path(__file__).parents[1] / "docs/reference/formats.table"
TEXT = "IL-2 acts in lung and liver cancer."
HELD = "✓"


class Home(NamedTuple):
    """What a format calls things if nobody says otherwise: its sections, and who found an entity."""

    names: tuple[str, ...]
    namespace: str

    def document(self, *mentions: tuple[str, Any], text: str = TEXT, **facts: Any) -> Document:
        """Returns a document with these classes and strings, or spans, in its first section."""
        entities = []
        for label, place in mentions:
            start = text.index(place) if isinstance(place, str) else 0
            spans = (Span(start, start + len(place)),) if isinstance(place, str) else tuple(Span(*one) for one in place)
            entities.append(Entity(label, spans, match_text(text, spans), self.namespace, **facts))
        first = Section(self.names[0], text, tuple(entities))
        return Document("d1", (first, *(Section(name, "It was seen.") for name in self.names[1:])))

    def plain(self) -> Document:
        return self.document(("gene", "IL-2"), ("disease", "liver cancer"))

    def changed(self, **changes: Any) -> Document:
        """Returns the plain document with other facts in its first section."""
        document = self.plain()
        return replace(document, sections=(replace(document.sections[0], **changes), *document.sections[1:]))


FEATURES: dict[str, Callable[[Home], Document]] = {
    "texts": lambda home: home.document(),
    "entities": Home.plain,
    "nested entities": lambda home: home.document(("disease", "liver cancer"), ("organ", "liver")),
    "overlapping entities": lambda home: home.document(("organ", "lung and liver"), ("disease", "liver cancer")),
    "several classes on one span": lambda home: home.document(("gene", "IL-2"), ("protein", "IL-2")),
    "touching entities": lambda home: home.document(("gene", [(0, 2)]), ("number", [(2, 4)])),
    "touching entities of one class": lambda home: home.document(("gene", [(0, 2)]), ("gene", [(2, 4)])),
    "entities within words": lambda home: home.document(("organ", "ive"), ("disease", "cance")),
    "entities that begin or end with spaces": lambda home: home.document(("organ", " lung "), ("disease", "cancer")),
    "discontinuous entities": lambda home: home.document(("disease", [(13, 17), (28, 34)]), ("organ", "liver")),
    "scores": lambda home: home.document(
        ("gene", "IL-2"), ("disease", "cancer"), score=0.75, extra={"metadata": {"score": 0.75}}
    ),
    "who found an entity": lambda home: home._replace(namespace="somebody").plain(),
    "strings of entities that differ from the text": lambda home: home.changed(
        entities=(Entity("gene", (Span(0, 4),), "interleukin 2", home.namespace),)
    ),
    "metadata of entities": lambda home: home.document(("gene", "IL-2"), extra={"metadata": {"found": ["exact", 1]}}),
    "metadata of sections": lambda home: home.changed(extra={"metadata": {"source": {"page": 3}}}),
    "metadata of documents": lambda home: replace(home.plain(), extra={"metadata": {"year": 2020, "tags": ["a"]}}),
    "three sections": lambda home: replace(
        home.plain(), sections=tuple(Section(name, TEXT) for name in (*home.names, "body", "end")[:3])
    ),
    "names of sections": lambda home: home.changed(name="2.1 Results & more"),
    "an empty section": lambda home: home.changed(text="", entities=()),
    "no sections at all": lambda home: replace(home.plain(), sections=()),
    "accents, Greek, emoji, right to left": lambda home: home.document(
        ("gene", "𝔭53"), ("site", "sein\u0301"), ("x", "סרטן"), text="🧬 β-𝔭53 du sein\u0301 סרטן 👩‍🔬."
    ),
    "line breaks and tabs": lambda home: home.document(("x", "lung\tcancer"), text="Two\nlines.\r\n\tA lung\tcancer\n"),
    "spaces at both ends, several, special": lambda home: home.document(
        ("gene", "IL-2"), text="  IL-2  in\u00a0mice\u2028and\u2009men. "
    ),
    "a byte-order mark": lambda home: home.document(("gene", "IL-2"), text="\ufeffIL-2"),
    "odd classes": lambda home: home.document(
        ("B-cell | \"receptor\"", "IL-2"), ("<a&b>", "lung"), ("x\ty\n", "liver"), ("é😀", "cancer")
    ),
    "odd ids": lambda home: replace(home.plain(), id="../a|b\tc é😀#1"),
    "very long ids": lambda home: replace(home.plain(), id="x" * 300),
}  # fmt: skip


def trip(name: str, documents: list[Document], folder: Path) -> list[Document]:
    """Writes documents, and reads what is there then."""
    folder.mkdir()
    path = folder / ("out" if FORMATS[name].folder else f"out{FORMATS[name].endings[0]}")
    with FORMATS[name].writer(path) as writer:
        for document in documents:
            writer.write(document)
    report = ReadReport()
    found = list(read_documents(path, report, format_name=name, texts=True))
    assert not report.notes
    return found


def losses(name: str, document: Document) -> Counter[str]:
    count = FORMATS[name].losses
    counted = Counter() if count is None else count(document)
    assert all(type(number) is int and number > 0 for number in counted.values())
    return counted


def find_home(name: str, folder: Path) -> Home:
    (document,) = trip(name, [Home(("title", "abstract"), "nertool").plain()], folder)
    entities = [entity for section in document.sections for entity in section.entities]
    return Home(tuple(one.name for one in document.sections), entities[0].namespace if entities else "nertool")


def is_true(name: str, before: Document, after: Document | None) -> bool:
    """Tells whether a document comes back as it was if, and only if, the format counts no losses."""
    same = after is not None and document_to_json(after) == document_to_json(before)
    return same != bool(losses(name, before))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_loses_what_it_says_and_nothing_else(name: str, tmp_path: Path) -> None:
    home = find_home(name, tmp_path / "home")
    documents = {feature: make(home) for feature, make in FEATURES.items()}
    numbered = [
        replace(one, id=f"d{number}") for number, one in enumerate(documents.values()) if one.id == home.plain().id
    ]
    together = {one.id: one for one in trip(name, numbered, tmp_path / "together")}
    pairs = [(before, together.get(before.id)) for before in numbered]
    odd = [one for one in documents.values() if one.id != home.plain().id]
    pairs += [(one, trip(name, [one], tmp_path / f"odd {number}")[0]) for number, one in enumerate(odd)]
    assert not [(losses(name, before), before, after) for before, after in pairs if not is_true(name, before, after)]
    # What is left then can be written and read again.
    left = [after for before, after in pairs if after is not None and losses(name, before)]
    again = {one.id: one for one in trip(name, left, tmp_path / "again")} if left else {}
    assert not [
        (losses(name, one), one, again.get(one.id)) for one in left if not is_true(name, one, again.get(one.id))
    ]


def test_the_table_is_up_to_date(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`pytest --update-golden` writes it anew."""
    homes = {name: find_home(name, tmp_path / name) for name in FORMATS}
    lines = [
        "| a document with | " + " | ".join(f"`{name}`" for name in FORMATS) + " |",
        "|---|" + ":-:|" * len(FORMATS),
    ]
    for feature, make in FEATURES.items():
        counts = [losses(name, make(homes[name])).total() for name in FORMATS]
        lines.append(f"| {feature} | " + " | ".join(str(count) if count else HELD for count in counts) + " |")
    table = "\n".join(lines) + "\n"
    if request.config.getoption("--update-golden"):
        TABLE.write_text(table, encoding="utf-8")
    assert TABLE.read_text(encoding="utf-8") == table, "run: pytest tests/test_formats_table.py --update-golden"
