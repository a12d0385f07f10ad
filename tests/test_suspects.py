"""Counting mentions, and finding the annotations that are wrong."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nertool.decoding import decode, words_of
from nertool.documents import Document, Entity, Section, Span, match_text
from nertool.labels import make_scheme
from nertool.mention_counts import Lexicon, count_mentions, free_occurrences, lexicon_of, mention_key
from nertool.suspects import corrected, find_suspects, reason, suspect_from_json, suspect_to_json
from nertool.targets import locate, paint
from nertool.windows import SectionTokenizer
from tests import document_strategies
from tests.conftest import WORDS

LABELS = ("disease", "drug", "gene")
SCHEME = make_scheme(LABELS)
PLAIN = [word for word in WORDS if word.isalpha()]


def find(tokenizer: SectionTokenizer, documents: list[Document], truth: list[Document], logit: float = 5.0):
    """Judges documents by a model that says the truth, and says it with some certainty."""
    tokens = tokenizer.tokenize([section.text for document in documents for section in document.sections])
    right = [section for document in truth for section in document.sections]
    logits = np.where(paint(locate(right, tokens, SCHEME), len(tokens.ids), SCHEME), logit, -logit).astype(np.float32)
    decoded = decode(logits, tokens, SCHEME, [0.5] * 3, 0.0)
    lexicon = lexicon_of(documents)
    counts = count_mentions(documents, lexicon)
    return list(find_suspects(documents, words_of(logits, tokens), decoded, LABELS, counts, lexicon))


@st.composite
def texts_with_entities(draw: st.DrawFn) -> Document:
    """Two sections of words with entities that neither touch nor overlap one of their class."""
    sections = []
    for name in ("title", "body"):
        words = draw(st.lists(st.sampled_from(PLAIN), min_size=6, max_size=20))
        ends = np.cumsum([len(word) + 1 for word in words]).tolist()
        starts = [end - len(word) - 1 for word, end in zip(words, ends, strict=True)]
        text = " ".join(words)
        entities = []
        at = 1
        while at + 2 < len(words):
            length = draw(st.integers(1, 2))
            if draw(st.booleans()):
                span = Span(starts[at], ends[at + length - 1] - 1)
                entities.append(Entity(draw(st.sampled_from(LABELS)), (span,), text[slice(*span)]))
            at += length + 1
        sections.append(Section(name, text, tuple(entities)))
    return Document("d", tuple(sections))


@given(documents=st.lists(texts_with_entities(), min_size=1, max_size=3))
def test_what_the_model_confirms_is_not_suspect(tokenizer: SectionTokenizer, documents: list[Document]) -> None:
    documents = [replace(document, id=str(i)) for i, document in enumerate(documents)]
    suspects = find(tokenizer, documents, documents, logit=9.0)
    # Only that a text is an entity here and not there can be suspicious, never an entity itself.
    assert all(one.kind == "missing" for one in suspects)


@settings(max_examples=300)
@given(truth=texts_with_entities(), data=st.data())
def test_one_error_of_each_kind_is_found_and_put_right(
    tokenizer: SectionTokenizer, truth: Document, data: st.DataObject
) -> None:
    places = [(s, e) for s, section in enumerate(truth.sections) for e in range(len(section.entities))]
    assume(places)
    at, number = data.draw(st.sampled_from(places))
    section = truth.sections[at]
    entity = section.entities[number]
    (start, end), others = entity.spans[0], [*section.entities[:number], *section.entities[number + 1 :]]
    kind = data.draw(st.sampled_from(["spurious", "missing", "wrong class", "boundary"]))
    right = truth
    if kind == "spurious":
        right = with_entities(truth, at, others)
        wrong = truth
    elif kind == "missing":
        wrong = with_entities(truth, at, others)
    elif kind == "wrong class":
        other = data.draw(st.sampled_from([label for label in LABELS if label != entity.label]))
        wrong = with_entities(truth, at, [*others, replace(entity, label=other)])
    else:
        before = section.text.rindex(" ", 0, start - 1) + 1 if " " in section.text[: start - 1] else 0
        assume(all(not (one.start < end and one.end > before) for one in others))
        spans = (Span(before, end),)
        wrong = with_entities(truth, at, [*others, Entity(entity.label, spans, section.text[before:end])])
    # The text's other occurrences, if there are any, must not speak for the error.
    lexicon = Lexicon({mention_key(entity.match)})
    assume(sum(1 for part in truth.sections for _ in lexicon.occurrences(part.text)) == 1)
    suspects = find(tokenizer, [wrong], [right])
    (found,) = [one for one in suspects if one.model > 0]
    assert (found.document, found.section, found.kind) == ("d", at, kind)
    assert found.score > 0.5 and reason(found).startswith("by the model 99% likely")
    fixed = corrected(wrong, [found])
    assert entities_of(fixed) == entities_of(right)


def with_entities(document: Document, at: int, entities: list[Entity]) -> Document:
    ordered = tuple(sorted(entities, key=lambda one: one.start))
    sections = [replace(s, entities=ordered) if i == at else s for i, s in enumerate(document.sections)]
    return replace(document, sections=tuple(sections))


def entities_of(document: Document) -> list[set[tuple[str, tuple[Span, ...]]]]:
    return [{(one.label, one.spans) for one in section.entities} for section in document.sections]


def free_occurrences_slowly(section: Section, keys: set[str]) -> list[tuple[str, int, int]]:
    """Compares every run of words with every key."""
    words = list(re.finditer(r"\w+|[^\w\s]", section.text))
    covered = {at for entity in section.entities for span in entity.spans for at in range(*span)}
    return [
        (key, words[i].start(), words[j].end())
        for i in range(len(words))
        for j in reversed(range(i, len(words)))
        if (key := " ".join(word.group().casefold() for word in words[i : j + 1])) in keys
        and not covered & set(range(words[i].start(), words[j].end()))
    ]


@given(documents=st.lists(document_strategies.documents(), max_size=3))
def test_occurrences_are_those_that_a_plain_search_finds(documents: list[Document]) -> None:
    keys = {
        mention_key(match_text(section.text, entity.spans))
        for document in documents
        for section in document.sections
        for entity in section.entities
    } - {""}
    lexicon = lexicon_of(documents)
    for document in documents:
        for section in document.sections:
            assert list(free_occurrences(section, lexicon)) == free_occurrences_slowly(section, keys)


def test_consistency_in_the_document_decides_where_the_model_is_unsure(tokenizer: SectionTokenizer) -> None:
    """A text that is a gene three times and free once was forgotten; one that is free three times was invented."""
    text = "the erk and erk in erk with erk of aspirin and aspirin in aspirin with aspirin"
    genes = [Entity("gene", (Span(m.start(), m.end()),), "erk") for m in re.finditer("erk", text)]
    drugs = [Entity("drug", (Span(m.start(), m.end()),), "aspirin") for m in re.finditer("aspirin", text)]
    document = Document("d", (Section("title", text, (*genes[:3], drugs[0])),))
    nothing = Document("d", (Section("title", text),))
    (forgotten,) = [one for one in find(tokenizer, [document], [nothing], logit=0.5) if one.kind == "missing"]
    assert forgotten.suggestion and forgotten.suggestion.span == genes[3].spans[0]
    assert forgotten.suggestion.label == "gene" and forgotten.other == (3, 0) and forgotten.same == (0, 0)
    (invented,) = [one for one in find(tokenizer, [document], [nothing], logit=0.5) if one.kind == "spurious"]
    assert invented.entity == drugs[0] and invented.other == (3, 0)
    assert "not annotated 3 in this document" in reason(invented)


def test_a_span_may_have_two_classes(tokenizer: SectionTokenizer) -> None:
    text = "patients with lung cancer and hepatitis"
    both = [Entity(label, (Span(14, 25),), "lung cancer") for label in ("disease", "gene")]
    right = Document("d", (Section("title", text, tuple(both)),))
    assert find(tokenizer, [right], [right]) == []
    (one,) = find(tokenizer, [with_entities(right, 0, both[:1])], [right])
    assert one.kind == "missing" and one.suggestion and one.suggestion.label == "gene"
    (one,) = find(tokenizer, [right], [with_entities(right, 0, both[:1])])
    assert one.kind == "spurious" and one.entity and one.entity.label == "gene"


def test_what_the_model_cannot_say_is_left_alone(tokenizer: SectionTokenizer) -> None:
    """Discontinuous entities that are found in part, and classes that the model doesn't know."""
    text = "lung and liver cancer"
    parts = Entity("disease", (Span(0, 4), Span(15, 21)), "lung cancer")
    unknown = Entity("place", (Span(9, 14),), "liver")
    document = Document("d", (Section("title", text, (parts, unknown)),))
    found = Entity("disease", (Span(0, 21),), text)
    assert find(tokenizer, [document], [with_entities(document, 0, [found])]) == []


def one_section(text: str, *entities: tuple[str, *tuple[tuple[int, int], ...]]) -> Document:
    found = []
    for label, *spans in entities:
        parts = tuple(Span(*span) for span in spans)
        found.append(Entity(label, parts, match_text(text, parts)))
    return Document("d", (Section("title", text, tuple(found)),))


def test_entities_of_one_class_that_touch_or_overlap_are_not_taken_for_wrong_borders(
    tokenizer: SectionTokenizer,
) -> None:
    """The model says them as one run, even if it is right of every word."""
    touching = one_section("patients with aspirin erk cells in lung", ("drug", (14, 21)), ("drug", (22, 25)))
    crossing = one_section("the lung cancer cells of patients", ("disease", (4, 15)), ("disease", (9, 21)))
    nested = one_section("the lung cancer cells of", ("disease", (4, 21)), ("disease", (4, 15)), ("disease", (4, 8)))
    for document in (touching, crossing, nested):
        assert find(tokenizer, [document], [document]) == []
    longer = one_section(touching.sections[0].text, ("drug", (14, 21)), ("drug", (22, 31)))
    by_text = {one.entity.match: one for one in find(tokenizer, [touching], [longer]) if one.entity}
    assert by_text["erk"].kind == "boundary" and by_text["erk"].model > 0


def test_an_occurrence_under_another_class_is_not_taken_off_the_free_ones(tokenizer: SectionTokenizer) -> None:
    text = "lung cancer in lung cancer and gene"
    first = ("disease", (0, 11))
    document, truth = one_section(text, first), one_section(text, first, ("gene", (0, 11)))
    (missing,) = [one for one in find(tokenizer, [document], [truth]) if one.label == "gene"]
    assert missing.kind == "missing" and missing.same == (1, 0)


def test_what_lies_between_the_parts_of_an_entity_is_none_of_it(tokenizer: SectionTokenizer) -> None:
    text = "lung and the liver of patients with cancer"
    parts, between = ("disease", (0, 4), (36, 42)), ("disease", (13, 18))
    document, truth = one_section(text, parts, between), one_section(text, between)
    (spurious,) = find(tokenizer, [document], [truth])
    assert spurious.kind == "spurious" and spurious.entity and len(spurious.entity.spans) == 2
    truth = one_section(text, between, ("drug", (5, 8)))
    kinds = {(one.kind, one.label) for one in find(tokenizer, [document], [truth])}
    assert kinds == {("spurious", "disease"), ("missing", "drug")}


@pytest.mark.filterwarnings("error")
def test_entities_of_white_space_are_left_alone(tokenizer: SectionTokenizer) -> None:
    text = "the lung cancer and"
    document = one_section(text, ("disease", (8, 9)))
    (missing,) = find(tokenizer, [document], [one_section(text, ("disease", (4, 15)))])
    assert missing.kind == "missing" and missing.suggestion and missing.suggestion.span == (4, 15)


def test_letters_that_become_several_by_folding_case_are_found_again() -> None:
    text = "İrk in lung and İRK"
    section = one_section(text, ("gene", (0, 3))).sections[0]
    lexicon = lexicon_of([Document("d", (section,))])
    assert [(start, end) for _, start, end in free_occurrences(section, lexicon)] == [(16, 19)]


@given(truth=texts_with_entities(), other=texts_with_entities())
def test_suspects_survive_their_file(tokenizer: SectionTokenizer, truth: Document, other: Document) -> None:
    sections = tuple(
        replace(a, entities=tuple(e for e in b.entities if e.end <= len(a.text)))
        for a, b in zip(truth.sections, other.sections, strict=True)
    )
    wrong = replace(truth, sections=sections)
    for suspect in find(tokenizer, [wrong], [truth]):
        back = suspect_from_json(suspect_to_json(suspect))
        assert back.log_odds == pytest.approx(suspect.log_odds, abs=1e-3)
        assert replace(back, log_odds=suspect.log_odds, model=suspect.model) == suspect


def test_corrections_keep_what_else_there_is(tokenizer: SectionTokenizer) -> None:
    kept = Entity("gene", (Span(0, 3),), "erk", "gpt", extra={"metadata": {"x": 1}})
    wrong = Entity("gene", (Span(7, 11),), "lung")
    section = Section("title", "erk in lung cancer", (kept, wrong), {"metadata": {"y": 2}})
    document = Document("d", (section,), {"z": 3})
    fixed = corrected(document, find(tokenizer, [document], [with_entities(document, 0, [kept])]))
    (entity,) = fixed.sections[0].entities
    assert entity == kept and entity.extra == kept.extra
    assert fixed.sections[0].extra == section.extra and fixed.extra == document.extra
