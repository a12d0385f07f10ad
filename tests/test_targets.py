"""Entities → targets, against a loop over every token and entity; and what can't be expressed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.documents import Entity, Section, Span
from nertool.labels import LabelScheme, make_scheme
from nertool.representation import Representation, represent
from nertool.targets import DISCONTINUOUS, INSIDE_WORD, MERGED, NO_TOKEN, OTHER_CLASS, locate, paint
from nertool.windows import SectionTokenizer, Tokens
from tests.conftest import entity

SCHEME = make_scheme(["disease", "gene"])
WITH_BEGIN = make_scheme(["disease", "gene"], begin=True)


@st.composite
def annotated_sections(draw: st.DrawFn) -> list[Section]:
    sections = []
    for number in range(draw(st.integers(1, 3))):
        text = draw(st.text(st.sampled_from(list("ab1 -( .β😀")), max_size=40))
        entities = []
        for _ in range(draw(st.integers(0, 4))):
            cuts = (
                sorted(draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=4, unique=True)))
                if len(text) > 4
                else []
            )
            spans = tuple(Span(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False))
            if spans:
                label = draw(st.sampled_from(["disease", "gene", "unknown"]))
                entities.append(Entity(label, spans, "x"))
        sections.append(Section(str(number), text, tuple(entities)))
    return sections


def paint_slowly(sections: list[Section], tokens, scheme) -> np.ndarray:  # type: ignore[no-untyped-def]
    targets = np.zeros((len(tokens.ids), scheme.channels), bool)
    for i, section in enumerate(sections):
        for found in section.entities:
            if found.label not in scheme.labels:
                continue
            channel = scheme.labels.index(found.label)
            for part, (start, end) in enumerate(found.spans):
                first = True
                for token in range(tokens.section_bounds[i], tokens.section_bounds[i + 1]):
                    if tokens.starts[token] < end and tokens.ends[token] > start:
                        targets[token, channel] = True
                        if scheme.begin and part == 0 and first:
                            targets[token, len(scheme.labels) + channel] = True
                        first = False
    return targets


@given(annotated_sections(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_targets_equal_a_loop_over_tokens_and_entities(
    tokenizer: SectionTokenizer, sections: list[Section], begin: bool
) -> None:
    scheme = WITH_BEGIN if begin else SCHEME
    tokens = tokenizer.tokenize([section.text for section in sections])
    spans = locate(sections, tokens, scheme)
    np.testing.assert_array_equal(paint(spans, len(tokens.ids), scheme), paint_slowly(sections, tokens, scheme))


def representation(sections: list[Section], tokens: Tokens, scheme: LabelScheme) -> Representation:
    spans = locate(sections, tokens, scheme)
    return represent(sections, tokens, spans, paint(spans, len(tokens.ids), scheme), scheme)


@given(annotated_sections(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_entity_is_kept_or_lost_for_a_reason(
    tokenizer: SectionTokenizer, sections: list[Section], begin: bool
) -> None:
    scheme = WITH_BEGIN if begin else SCHEME
    tokens = tokenizer.tokenize([section.text for section in sections])
    result = representation(sections, tokens, scheme)
    distinct = sum(len({(e.label, e.spans) for e in section.entities}) for section in sections)
    assert result.entities == distinct == result.kept + result.losses.total()


def reasons(tokenizer: SectionTokenizer, text: str, *entities: Entity, begin: bool = False) -> dict[str, int]:
    sections = [Section("s", text, entities)]
    scheme = WITH_BEGIN if begin else SCHEME
    tokens = tokenizer.tokenize([text])
    return dict(representation(sections, tokens, scheme).losses)


def test_losses_are_counted_by_reason(tokenizer: SectionTokenizer) -> None:
    text = "lung and liver cancer p53null BRCA1 BRCA2 kinase"
    assert reasons(tokenizer, text, entity(text, "disease", "lung", "cancer")) == {DISCONTINUOUS: 1}
    assert reasons(tokenizer, text, entity(text, "gene", "p53")) == {INSIDE_WORD: 1}
    assert reasons(tokenizer, text, entity(text, "place", "kinase")) == {OTHER_CLASS: 1}
    assert reasons(tokenizer, text, Entity("gene", (Span(4, 5),), " ")) == {NO_TOKEN: 1}
    assert reasons(tokenizer, text, entity(text, "disease", "liver cancer"), entity(text, "gene", "kinase")) == {}


def test_touching_entities_of_a_class_merge_unless_begins_are_learned(tokenizer: SectionTokenizer) -> None:
    """KAZU merges `BRCA1 BRCA2` into one gene."""
    text = "the BRCA1 BRCA2 genes"
    pair = entity(text, "gene", "BRCA1"), entity(text, "gene", "BRCA2")
    assert reasons(tokenizer, text, *pair) == {MERGED: 2}
    assert reasons(tokenizer, text, *pair, begin=True) == {}


def test_a_mention_of_several_classes_has_them_all(tokenizer: SectionTokenizer) -> None:
    text = "EGFR"
    sections = [Section("s", text, (entity(text, "gene", text), entity(text, "disease", text)))]
    tokens = tokenizer.tokenize([text])
    assert paint(locate(sections, tokens, SCHEME), len(tokens.ids), SCHEME).all()


def test_the_last_word_of_a_text_keeps_all_its_tokens(tokenizer: SectionTokenizer) -> None:
    """KAZU loses the tail of a last word of several tokens."""
    text = "hepatitis"
    tokens = tokenizer.tokenize([text])
    assert len(tokens.ids) > 1
    sections = [Section("s", text, (entity(text, "disease", text),))]
    assert paint(locate(sections, tokens, SCHEME), len(tokens.ids), SCHEME)[:, 0].all()
    assert reasons(tokenizer, text, entity(text, "disease", text)) == {}
