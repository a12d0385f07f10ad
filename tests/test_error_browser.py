from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.documents import Document, Entity, Section, Span
from nertool.error_analysis import KINDS, ErrorItem, find_errors
from nertool.error_browser import browser_data, choose_errors
from nertool.matching import SectionPair
from tests.document_strategies import rich_documents


def with_entities_of(document: Document, other: Document) -> Document:
    """Gives each section the entities of another document's that fit into its text."""
    sections = []
    for number, section in enumerate(document.sections):
        theirs = other.sections[number].entities if number < len(other.sections) else ()
        fitting = tuple(entity for entity in theirs if entity.end <= len(section.text))
        sections.append(Section(section.name, section.text, (*section.entities[::2], *fitting)))
    return Document(document.id, tuple(sections))


def errors_of(gold: list[Document], predicted: list[Document]) -> list[ErrorItem]:
    return find_errors(
        [
            SectionPair(number, one.entities, other.entities)
            for number, (a, b) in enumerate(zip(gold, predicted, strict=True))
            for one, other in zip(a.sections, b.sections, strict=True)
        ]
    )


def spans_of(flat: list[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def mention(entity: Entity) -> tuple[str, tuple[Span, ...]]:
    return entity.label, tuple(sorted(set(entity.spans)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(rich_documents(), rich_documents()), max_size=2))
def test_each_error_has_its_text_and_its_entities(pairs: list[tuple[Document, Document]]) -> None:
    gold = [one for one, _ in pairs]
    predicted = [with_entities_of(one, other) for one, other in pairs]
    errors = errors_of(gold, predicted)
    data = browser_data(errors, gold, predicted)
    sections = [(document, section) for document in gold for section in document.sections]
    others = [section for document in predicted for section in document.sections]
    assert len(data["errors"]) == len(errors)
    for error, (place, kind, own, excerpt) in zip(errors, data["errors"], strict=True):
        section = data["sections"][place]
        document, source = sections[error.section]
        assert (section["id"], section["name"], section["length"]) == (document.id, source.name, len(source.text))
        assert KINDS[kind] == error.kind
        shown = Counter()
        for number in own:
            is_predicted, label, right, _, *spans = section["entities"][number]
            assert not right
            shown[is_predicted, data["labels"][label], tuple(spans_of(spans))] += 1
        wanted = Counter((0, *mention(entity)) for entity in error.gold)
        wanted += Counter((1, *mention(entity)) for entity in error.predicted)
        assert shown == wanted
        for start, end in spans_of(excerpt):
            (text,) = [t for offset, t in section["texts"] if offset <= start and end <= offset + len(t)]
            (offset,) = [o for o, t in section["texts"] if o <= start and end <= o + len(t)]
            assert text[start - offset : end - offset] == source.text[start:end]
        for entity in (*error.gold, *error.predicted):  # texts are short here, so all of it is shown
            assert all(any(a <= s and e <= b for a, b in spans_of(excerpt)) for s, e in entity.spans)
        both = {mention(e) for e in source.entities} & {mention(e) for e in others[error.section].entities}
        for _, label, right, _, *spans in section["entities"]:
            assert right == ((data["labels"][label], tuple(spans_of(spans))) in both)


def one_error(text: str, *spans: tuple[int, int]) -> Any:
    gold = Document("d", (Section("text", text, (Entity("a", tuple(Span(*s) for s in spans), "x"),)),))
    predicted = Document("d", (Section("text", text),))
    return browser_data(errors_of([gold], [predicted]), [gold], [predicted])


def test_of_long_texts_only_what_is_near_is_kept() -> None:
    text = "word " * 20_000
    data = one_error(text, (50_000, 50_004), (90_000, 90_004))
    texts = data["sections"][0]["texts"]
    assert len(texts) == 2
    assert all(250 < len(kept) < 350 and kept.startswith("word") and kept.endswith("word") for _, kept in texts)
    assert data["errors"][0][3] == [50_000 - 160, 50_164, 90_000 - 160, 90_164]


def test_entities_of_any_length_and_any_number_of_parts_stay_small() -> None:
    text = "x" * 100_000
    long = one_error(text, (10, 99_000))
    assert sum(len(kept) for _, kept in long["sections"][0]["texts"]) < 1_000
    many = one_error(text, *((start, start + 5) for start in range(0, 100_000, 100)))
    assert sum(len(kept) for _, kept in many["sections"][0]["texts"]) < 2_000


def error(number: int, kind: str, label: str) -> ErrorItem:
    return ErrorItem(number, kind, (Entity(label, (Span(0, 1),), "x"),), ())  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.sampled_from(KINDS[:3]), st.sampled_from("ab")), max_size=60), st.integers(1, 70))
def test_rare_errors_are_all_shown(kinds: list[tuple[str, str]], most: int) -> None:
    errors = [error(number, *one) for number, one in enumerate(kinds)]
    chosen, of_each = choose_errors(errors, most)
    assert len(chosen) <= most
    assert chosen == sorted(chosen, key=lambda one: one.section)
    if len(errors) <= most:
        assert (chosen, of_each) == (errors, None)
        return
    assert of_each is not None
    before, after = (Counter((one.kind, one.label) for one in some) for some in (errors, chosen))
    if most >= len(before):
        assert after == {group: min(count, of_each) for group, count in before.items()}
        assert len(chosen) + len(before) > most  # no room is wasted


def test_what_is_shown_comes_from_all_documents_evenly() -> None:
    chosen, of_each = choose_errors([error(number, "missed", "a") for number in range(20_000)], 5_000)
    assert of_each == 5_000
    assert [one.section for one in chosen] == list(range(0, 20_000, 4))
