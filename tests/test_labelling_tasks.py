"""Entities to Label Studio's regions and back."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nertool.documents import Document, Entity, Section, Span, match_text
from nertool.errors import NertoolError
from nertool.labelling_tasks import (
    Item,
    check_items,
    check_title,
    choose_sample,
    make_items,
    make_prediction,
    make_result,
    make_task,
    mentions,
    read_result,
    restore,
    sent_entities,
    sort_entities,
    task_meta,
)
from tests.conftest import make_corpus

# What offsets go wrong by in other places.
HARD_TEXTS = {
    "emoji": "🧬 BRCA1 😀 cancer",
    "zwj": "👩‍🔬 studied 👨‍👩‍👧 families with NF1",
    "flag": "🇫🇮 cohort, 🇩🇪 cohort and BRCA2",
    "nfd": "café Ménière disease e\u0301 a\u0308",
    "non-bmp": "𝛼-synuclein and 𐍈 in 𝔭53",
    "crlf": "lung\r\ncancer\r\n\r\nand liver",
    "tab": "gene\tEGFR\tmutated",
    "nbsp": "10\u00a0mg\u00a0aspirin and\u202f5",
    "line separator": "one\u2028two\u2029three lung cancer",
    "rtl": "סרטן הריאה and سرطان الرئة",
    "html": "<b>p53</b> &amp; <script>alert('x')</script> p<0.05",
    "combining": "Z̷a̷l̷g̷o̷ kinase",
    "control": "bell\u0007 and del\u007f p53",
    "white space": "   lung   cancer   ",
}


@st.composite
def sections(draw: st.DrawFn) -> Section:
    text = draw(
        st.one_of(
            st.sampled_from(list(HARD_TEXTS.values())),
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
        )
    )
    places = st.integers(0, len(text) - 1)

    def entity() -> Entity:
        cuts = sorted(draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=6)) | {draw(places)})
        cuts = cuts[: len(cuts) // 2 * 2]
        spans = tuple(Span(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=True)) or (Span(0, len(text)),)
        return Entity(
            draw(st.sampled_from(["gene", "drug, or \"chemical\" & 'x'", "<b>"])), spans, match_text(text, spans),
            draw(st.sampled_from(["nertool", "me"])), draw(st.sampled_from([None, 0.25])),
            draw(st.sampled_from([{}, {"metadata": {"found": "exact"}}])),
        )  # fmt: skip

    if len(text) < 2:
        return Section("title", text, (Entity("gene", (Span(0, len(text)),), text),))
    return Section("title", text, tuple(entity() for _ in range(draw(st.integers(0, 6)))))


@given(sections())
def test_entities_come_back_whatever_nests_overlaps_or_is_discontinuous(section: Section) -> None:
    result = json.loads(json.dumps(make_result(section.entities, section.text)))
    entities, problems = read_result(result, section.text)
    assert problems == []
    assert mentions(entities) == mentions(section.entities)


@given(sections(), st.randoms())
def test_the_order_of_regions_and_relations_does_not_matter(section: Section, rng: random.Random) -> None:
    result = make_result(section.entities, section.text)
    rng.shuffle(result)
    assert mentions(read_result(result, section.text)[0]) == mentions(section.entities)
    shuffled = list(section.entities)
    rng.shuffle(shuffled)
    assert make_result(shuffled, section.text) == make_result(section.entities, section.text)


@given(sections())
def test_what_the_browser_has_no_place_for_comes_back_from_meta(section: Section) -> None:
    item = Item("d", 3, section, True)
    sent = sent_entities(json.loads(json.dumps(task_meta(item))), section.text)
    assert sent is not None
    assert [(e, e.extra) for e in sent] == [(e, e.extra) for e in sort_entities(section.entities)]


@given(sections())
def test_region_ids_are_different_and_regions_are_what_their_offsets_say(section: Section) -> None:
    regions = [one for one in make_result(section.entities, section.text) if one["type"] == "labels"]
    assert len({one["id"] for one in regions}) == len(regions)
    for one in regions:
        assert section.text[one["value"]["start"] : one["value"]["end"]] == one["value"]["text"]


def labelled(identifier: str, start: int, end: int, *labels: str, text: str | None = None) -> dict:
    value = {"start": start, "end": end, "labels": list(labels)} | ({"text": text} if text is not None else {})
    return {"id": identifier, "type": "labels", "from_name": "label", "to_name": "text", "value": value}


def relation(first: str, second: str) -> dict:
    return {"type": "relation", "from_id": first, "to_id": second, "direction": "right"}


TEXT = "lung and liver cancer in mice"


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (labelled("a", 0, 99, "x"), "no place in the text"),
        (labelled("a", 4, 4, "x"), "no place in the text"),
        (labelled("a", -2, 4, "x"), "no place in the text"),
        (labelled("a", 0, 4, "x", text="liver"), "where the text says 'lung'"),
        (labelled("a", 0, 4), "has no class"),
        (labelled("a", 0, 4) | {"value": {"start": "0", "end": 4, "labels": ["x"]}}, "no place"),
        (labelled("a", 0, 4) | {"value": None}, "no place"),
    ],
)  # fmt: skip
def test_what_is_no_region_is_told_and_the_rest_is_read(region: dict, words: str) -> None:
    entities, problems = read_result([region, labelled("b", 9, 14, "organ")], TEXT)
    assert mentions(entities) == {("organ", (Span(9, 14),))}
    assert len(problems) == 1
    assert words in problems[0]


def test_answers_without_a_value_are_no_regions() -> None:
    assert read_result([{"type": "choices", "value": None}], TEXT) == ((), [])


def test_relations_of_people_join_regions_whatever_they_are_called() -> None:
    parts = [labelled("a", 0, 4, "disease"), labelled("b", 15, 21, "disease"), labelled("c", 25, 29, "species")]
    entities, problems = read_result([*parts, relation("b", "a")], TEXT)
    assert mentions(entities) == {("disease", (Span(0, 4), Span(15, 21))), ("species", (Span(25, 29),))}
    assert problems == []


def test_a_part_that_people_deleted_leaves_the_others_and_is_told() -> None:
    entities, problems = read_result([labelled("a", 0, 4, "disease"), relation("a", "gone")], TEXT)
    assert mentions(entities) == {("disease", (Span(0, 4),))}
    assert "region that is gone" in problems[0]


def test_regions_of_different_classes_stay_apart() -> None:
    entities, problems = read_result(
        [labelled("a", 0, 4, "organ"), labelled("b", 15, 21, "disease"), relation("a", "b")], TEXT
    )
    assert len(mentions(entities)) == 2
    assert "disease and organ" in problems[0]


def test_two_regions_of_one_id_both_count() -> None:
    entities, _ = read_result([labelled("a", 0, 4, "organ"), labelled("a", 9, 14, "organ")], TEXT)
    assert len(entities) == 2


def test_classes_on_one_span_are_one_region_for_people_to_see_both() -> None:
    entities = [Entity("organ", (Span(0, 4),), "lung"), Entity("site", (Span(0, 4),), "lung", score=0.5)]
    (region,) = make_result(entities, TEXT)
    assert region["value"]["labels"] == ["organ", "site"]
    assert region["score"] == 0.5


def test_entities_that_people_left_alone_keep_their_metadata() -> None:
    sent = (Entity("organ", (Span(0, 4),), "lung", "llm", 0.9, {"metadata": {"found": "exact"}}),)
    read = (Entity("organ", (Span(0, 4),), "lung", "label_studio"), Entity("organ", (Span(9, 14),), "liver"))
    assert restore(read, sent) == (sent[0], read[1])


def test_if_nothing_changed_all_comes_back_in_its_order_with_what_two_tools_found_alike() -> None:
    sent = (
        Entity("organ", (Span(9, 14),), "liver", "a"),
        Entity("organ", (Span(0, 4),), "lung", "a"),
        Entity("organ", (Span(0, 4),), "lung", "b"),
    )
    read, _ = read_result(make_result(sent, TEXT), TEXT)
    assert restore(read, sent) == sent
    assert restore(read[:1], sent) == sent[1:]


def test_predictions_have_scores() -> None:
    entities = [Entity("organ", (Span(0, 4),), "lung", score=0.5), Entity("organ", (Span(9, 14),), "liver", score=1.0)]
    prediction = make_prediction(7, "run@3", entities, TEXT)
    assert (prediction["score"], [one["score"] for one in prediction["result"]]) == (0.75, [0.5, 1.0])
    assert "score" not in make_prediction(7, "run@3", [], TEXT)


def test_sections_without_text_are_not_shown_and_numbers_stay() -> None:
    document = Document("d", (Section("title", " \n"), Section("body", "text")))
    assert [item.key for item in make_items(document, has_gold=True)] == ["d#1"]


def test_metadata_of_others_that_is_called_like_ours_is_no_number() -> None:
    document = Document("d", (Section("title", "x", (), {"metadata": {"label_studio": "https://…"}}),))
    assert [item.key for item in make_items(document, has_gold=True)] == ["d#0"]


def test_a_section_without_gold_has_no_annotation() -> None:
    item = Item("d", 0, Section("t", TEXT), False)
    assert "annotations" not in make_task(item)
    assert make_task(Item("d", 0, Section("t", TEXT), True))["annotations"] == [{"result": [], "ground_truth": True}]


def test_nul_is_refused() -> None:
    assert check_items([Item("d", 0, Section("t", "a\0b"), False)]) == ["d#0: the text holds a NUL character"]


@pytest.mark.parametrize("title", ["", "ab", "x" * 51, "  a  "])
def test_titles_that_label_studio_refuses_are_refused_before(title: str) -> None:
    with pytest.raises(NertoolError, match="3 to 50"):
        check_title(title)
    check_title("x" * 50)
    check_title("id:7")


def test_the_sample_is_the_same_whatever_is_around_it() -> None:
    items = [item for document in make_corpus(40) for item in make_items(document, has_gold=True)]
    sample = choose_sample(items, 20)
    assert choose_sample(list(reversed(items)), 20) == sample
    assert {item.key for item in choose_sample(items, 5)} <= {item.key for item in sample}
    rest = [item for item in items if item not in sample]
    assert choose_sample(sample + rest[:10], 20) == sample
    assert choose_sample(items, None) == items
