"""Documents with whatever documents may have, for property-based tests."""

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from nertool.documents import Document, Entity, Section, Span, match_text

HARD_TEXTS = [
    "", " ", "\n", "IL-2 in lung\r\nand liver cancer", "🧬 BRCA1\t😀", "e\u0301 𝔭53\u2028x",
    "\ufeffa\u00a0b.  C.\n\nE\x85f\x0b",
]  # fmt: skip
ODD_NAMES = ["gene", "drug, or \"chemical\" & 'x'", "<b>", "a|b", "B-x", " ", "é😀", "O", "a\tb\nc", "#", "-"]

texts = st.sampled_from(HARD_TEXTS) | st.text(
    st.sampled_from("ab .-\n\t\r#|é😀\u0301\u00a0") | st.characters(exclude_categories=["Cs"]), max_size=20
)
names = st.sampled_from(ODD_NAMES) | st.text(
    st.characters(exclude_categories=["Cs"], max_codepoint=0xFFFF), min_size=1, max_size=6
)
values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.sampled_from(["x", "", "a\nb", 0.5, [1, "x"], {"a": [None]}])
)


def metadata() -> st.SearchStrategy[dict[str, Any]]:
    return st.just({}) | st.fixed_dictionaries({"metadata": st.dictionaries(names, values, min_size=1, max_size=2)})


@st.composite
def entities(draw: st.DrawFn, text: str) -> Entity:
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=4)))
    if draw(st.booleans()):
        cuts = cuts[:2]
    spans = tuple(Span(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False))
    extra = draw(metadata())
    score = draw(st.sampled_from([None, None, 0.25, 1.0]))
    if score is not None:  # as it is read from a file
        extra = {"metadata": {**extra.get("metadata", {}), "score": score}}
    match = match_text(text, spans) if draw(st.integers(0, 4)) else draw(names)
    return Entity(draw(names), spans, match, draw(st.sampled_from(["nertool", "gpt", "label_studio"])), score, extra)


@st.composite
def sections(draw: st.DrawFn) -> Section:
    text = draw(texts)
    found = draw(st.lists(entities(text), max_size=4)) if len(text) > 1 else []
    return Section(
        draw(st.sampled_from(["title", "abstract", "text", ""]) | names), text, tuple(found), draw(metadata())
    )


@st.composite
def documents(draw: st.DrawFn) -> Document:
    identifier = draw(st.sampled_from(["d", "../../x", "a#b", "a|b\t c", "é😀", "x" * 300]) | names)
    return Document(identifier, tuple(draw(st.lists(sections(), max_size=3))), draw(metadata()))


@st.composite
def rich_documents(draw: st.DrawFn) -> Document:
    """Draws documents with all that KAZU's JSON may hold, and with spans that touch or overlap in one entity."""
    document = draw(documents())
    return replace(document, sections=tuple(draw(_rich_section(section)) for section in document.sections))


@st.composite
def _rich_section(draw: st.DrawFn, section: Section) -> Section:
    entities = []
    for entity in section.entities:
        cut = draw(st.integers(0, entity.spans[0].end - 1))
        spans = sorted({*entity.spans, *draw(st.sets(st.just(Span(cut, entity.spans[0].end)), max_size=1))})
        facts = draw(st.sampled_from([{}, {}, {"_id": "x", "match_norm": "X\x0b"}, {"mappings": [{"idx": None}]}]))
        identifiers = draw(st.sampled_from([None, None, "a:b", "a:b,c:d", "3558", "a:b, c:d", "\x00", 1]))
        known = (
            {}
            if identifiers is None
            else {"metadata": {**entity.extra.get("metadata", {}), "identifiers": identifiers}}
        )
        entities.append(replace(entity, spans=tuple(spans), extra={**entity.extra, **facts, **known}))
    facts = draw(st.sampled_from([{}, {}, {"sentence_spans": [{"start": 0, "end": 1}]}, {"metadata": {}}]))
    reserved = st.sampled_from(["type", "section_type", "identifier", "identifiers", "nertool"])
    odd = draw(st.just({}) | st.dictionaries(reserved, values, min_size=1))
    extra = {**section.extra, **facts, **({"metadata": odd} if odd else {})}
    return replace(section, entities=tuple(entities), extra=extra)
