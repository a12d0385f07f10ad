import json

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nertool.document_parsing import InvalidDocumentError, parse_document
from nertool.documents import (
    Document,
    Entity,
    Section,
    Span,
    content_digest,
    document_to_json,
    dump_document,
    match_text,
)

# The document of KAZU 2.4.0's own writer, with everything that its other steps fill in.
KAZU_DOCUMENT = {
    "idx": "x",
    "sections": [
        {
            "text": "IL-2 and lung and liver cancer",
            "name": "t",
            "metadata": {"label_studio_task_id": 7, "gold_entities": [{"match": "IL-2", "spans": []}]},
            "sentence_spans": [{"start": 0, "end": 30}],
            "entities": [
                {
                    "match": "IL-2",
                    "entity_class": "gene",
                    "spans": [{"start": 0, "end": 4}],
                    "namespace": "n",
                    "mention_confidence": "PROBABLE",
                    "_id": "5a0f",
                    "mappings": [
                        {"default_label": "IL2", "source": "hgnc", "string_match_confidence": "HIGHLY_LIKELY"}
                    ],
                    "linking_candidates": [[{"parser_name": "p"}, {"score": None}]],
                    "start": 0,
                    "end": 4,
                    "match_norm": "IL 2",
                },
                {
                    "match": "lung cancer",
                    "entity_class": "disease",
                    "spans": [{"start": 24, "end": 30}, {"start": 9, "end": 13}],
                    "namespace": "n",
                    "metadata": {"score": 0.25, "source": ["a", {"b": None}]},
                    "start": 9,
                    "end": 30,
                    "match_norm": "LUNG CANCER",
                },
            ],
        }
    ],
    "metadata": {"pmid": 1, "deep": [{"é": "😀"}, 1.5, True]},
}


def make_json(**changes):
    """Returns a small valid document with the entity's fields changed (None: taken away)."""
    entity = {"match": "IL-2", "entity_class": "gene", "spans": [{"start": 0, "end": 4}], "namespace": "n"} | changes
    entity = {key: value for key, value in entity.items() if value is not None}
    return {"idx": "x", "sections": [{"name": "s", "text": "IL-2 binds", "entities": [entity]}]}


def parse(value) -> Document:
    return parse_document(json.dumps(value).encode()).document


def problems_of(value) -> dict[str, str]:
    with pytest.raises(InvalidDocumentError) as error:
        parse_document(value if isinstance(value, bytes) else json.dumps(value).encode())
    assert error.value.problems
    return {problem.place: problem.reason for problem in error.value.problems}


def normal(value):
    """Puts the spans of entities, a set in no order, into text order."""
    for section in value.get("sections", []):
        for entity in section.get("entities", []):
            entity["spans"] = sorted(entity["spans"], key=lambda span: (span["start"], span["end"]))
    return value


# Round trips

names = st.text(max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
metadata = st.dictionaries(names, json_values, max_size=3)
texts = st.text(st.sampled_from("aé ß\n\t\u0000\u2028\u200b😀𝒳e\u0301中"), min_size=1, max_size=20) | st.text(
    min_size=1, max_size=20
)


@st.composite
def json_entities(draw, length: int):
    ends = draw(
        st.lists(st.tuples(st.integers(0, length - 1), st.integers(1, length)), min_size=1, max_size=3, unique=True)
    )
    spans = [{"start": min(start, end - 1), "end": max(start + 1, end)} for start, end in ends]
    spans = list({tuple(span.values()): span for span in spans}.values())
    entity = {
        "match": draw(names),
        "entity_class": draw(st.text(min_size=1, max_size=6)),
        "spans": spans,
        "namespace": draw(names),
        "start": min(span["start"] for span in spans),
        "end": max(span["end"] for span in spans),
    }
    optional = {
        "mention_confidence": st.sampled_from(["HIGHLY_LIKELY", "PROBABLE"]),
        "_id": names,
        "match_norm": names,
        "metadata": metadata | st.builds(lambda score: {"score": score}, st.floats(0, 1) | st.just(1)),
        "mappings": st.lists(metadata, max_size=2),
        "linking_candidates": st.lists(st.lists(json_values, min_size=2, max_size=2), max_size=2),
    }
    return entity | draw(st.fixed_dictionaries({}, optional=optional))


@st.composite
def json_sections(draw):
    text = draw(texts)
    section = {"name": draw(names), "text": text}
    entities = draw(st.lists(json_entities(len(text)), max_size=3))
    if entities:
        section["entities"] = entities
    sentence_spans = st.lists(st.fixed_dictionaries({"start": st.integers(0, 9), "end": st.integers(0, 9)}), max_size=2)
    return section | draw(st.fixed_dictionaries({}, optional={"metadata": metadata, "sentence_spans": sentence_spans}))


json_documents = st.builds(
    lambda required, optional: required | optional,
    st.fixed_dictionaries({"idx": names, "sections": st.lists(json_sections(), max_size=3)}),
    st.fixed_dictionaries({}, optional={"metadata": metadata}),
)


@settings(max_examples=80, deadline=None)
@given(value=json_documents)
@example(value=KAZU_DOCUMENT)
def test_reading_then_writing_loses_nothing(value):
    data = json.dumps(value).encode()
    document, nonfinite_numbers = parse_document(data)
    written = dump_document(document)
    assert json.loads(written) == normal(json.loads(data))
    assert nonfinite_numbers == 0
    assert b"\n" not in written


@settings(max_examples=50, deadline=None)
@given(value=json_documents)
@example(value=KAZU_DOCUMENT)
def test_writing_then_reading_gives_the_same_document(value):
    document = parse(value)
    again = parse_document(dump_document(document)).document
    assert again == document
    assert document_to_json(again) == document_to_json(document)  # the fields that == leaves out, too


def test_what_nertool_makes_itself_is_read_back_and_has_the_keys_that_kazu_requires():
    entities = (Entity("gene", (Span(0, 4),), "IL-2"), Entity("drug", (Span(5, 7), Span(8, 10)), "bi ds", score=0.5))
    document = Document("x", (Section("s", "IL-2 binds", entities), Section("empty", "")))
    value = document_to_json(document)
    assert [entity.keys() for entity in value["sections"][0]["entities"]] == [
        {"match", "entity_class", "spans", "namespace", "start", "end"},
        {"match", "entity_class", "spans", "namespace", "start", "end", "metadata"},
    ]
    assert value["sections"][0]["entities"][1]["metadata"] == {"score": 0.5}
    assert value["sections"][1] == {"name": "empty", "text": ""}
    assert parse(value) == document


def test_spans_are_sorted_and_start_and_end_are_derived_from_them():
    value = make_json(spans=[{"start": 5, "end": 10}, {"start": 0, "end": 4}, {"start": 5, "end": 10}], start=7, end=99)
    (entity,) = parse(value).sections[0].entities
    assert entity.spans == (Span(0, 4), Span(5, 10))
    assert (entity.start, entity.end) == (0, 10)
    assert entity.start == document_to_json(parse(value))["sections"][0]["entities"][0]["start"]


def test_a_long_span_over_a_short_one_decides_on_the_end():
    (entity,) = parse(make_json(spans=[{"start": 0, "end": 9}, {"start": 2, "end": 4}])).sections[0].entities
    assert (entity.start, entity.end) == (0, 9)


def test_the_parts_of_a_discontinuous_mention_are_joined_by_a_space():
    assert match_text("lung and liver cancer", (Span(0, 4), Span(15, 21))) == "lung cancer"


def test_a_score_in_the_metadata_is_read_and_a_new_one_is_written_there():
    (entity,) = parse(make_json(metadata={"score": 0.25, "other": 1})).sections[0].entities
    assert entity.score == 0.25
    assert parse(make_json(metadata={"score": True})).sections[0].entities[0].score is None
    assert parse(make_json(metadata={"score": "high"})).sections[0].entities[0].score is None


# What is accepted although it is unusual


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf%s", b"  %s\r\n", b"\n%s"])
def test_a_byte_order_mark_and_white_space_around_are_skipped(data):
    assert parse_document(data % orjson.dumps(KAZU_DOCUMENT)).document == parse(KAZU_DOCUMENT)


@pytest.mark.parametrize(("start", "end"), [(0.0, 4.0), ("0", "4"), ("00", 4), (0, 4.0)])
def test_whole_floats_and_digit_strings_are_offsets(start, end):
    assert parse(make_json(spans=[{"start": start, "end": end}])).sections[0].entities[0].spans == (Span(0, 4),)


def test_nan_and_infinite_numbers_become_null_and_are_counted():
    data = b'{"idx": "x", "sections": [], "metadata": {"a": NaN, "b": [-Infinity, 1e999], "c": "NaN"}}'
    document, nonfinite_numbers = parse_document(data)
    assert nonfinite_numbers == 3
    assert json.loads(dump_document(document))["metadata"] == {"a": None, "b": [None, None], "c": "NaN"}


def test_of_duplicate_keys_the_last_one_wins():
    assert parse_document(b'{"idx": "a", "sections": [], "idx": "b"}').document.id == "b"


def test_an_id_may_be_a_whole_number_and_is_then_a_string():
    assert parse({"idx": 12, "sections": []}).id == "12"
    assert parse({"idx": "", "sections": []}).id == ""


@pytest.mark.parametrize("without", ["idx", "sections", "both"])
def test_id_and_sections_are_not_required(without):
    value = {"idx": "x", "sections": []}
    for key in value.copy():
        if without in (key, "both"):
            del value[key]
    document = parse(value)
    assert document.sections == ()
    assert document.id == value.get("idx", document.id)
    assert document.id or "idx" in value


def test_a_missing_id_is_made_from_the_content_and_nothing_else():
    def id_of(value):
        return parse({key: value[key] for key in value if key != "idx"}).id

    value = make_json()
    assert id_of(value) == id_of(value | {"idx": None}) == id_of(value | {"metadata": {"a": 1}})
    assert id_of(value) == content_digest(parse(value))[:32]
    other = make_json(entity_class="drug")
    assert id_of(value) != id_of(other)


def test_the_digest_of_the_content_depends_on_texts_and_entities_alone():
    first, second = Entity("a", (Span(0, 1),), "I"), Entity("a", (Span(0, 1), Span(2, 3)), "I -", score=0.5)
    digest = content_digest(Document("x", (Section("s", "IL-2", (first, second)),)))
    assert digest == content_digest(Document("y", (Section("s", "IL-2", (second, first), {"metadata": {}}),), {"a": 1}))
    for other in (
        Section("t", "IL-2", (first, second)),
        Section("s", "IL-3", (first, second)),
        Section("s", "IL-2", (first,)),
        Section("s", "IL-2", (first, Entity("b", second.spans, "I -"))),
    ):
        assert digest != content_digest(Document("x", (other,)))
    assert content_digest(Document("x", (Section("a", "b"), Section("c", "d")))) != content_digest(
        Document("x", (Section("a", "bc"), Section("", "d")))
    )


# What is wrong


@pytest.mark.parametrize(
    ("value", "place", "reason"),
    [
        ([], "", "a document must be a JSON object, not a list"),
        (None, "", "a document must be a JSON object, not null"),
        ("x", "", "a document must be a JSON object, not a string"),
        ({"idx": 1.5}, "idx", "must be a string, not a number"),
        ({"idx": True}, "idx", "must be a string, not true or false"),
        ({"id": "x"}, "", "unknown key 'id' (did you mean 'idx'?)"),
        ({"provenance": "x"}, "", "unknown key 'provenance'; facts of your own go into metadata"),
        ({"metadata": []}, "metadata", "must be an object, not a list"),
        ({"sections": None}, "sections", "must be a list, not null"),
        ({"sections": {}}, "sections", "must be a list, not an object"),
        ({"sections": [None]}, "sections[0]", "must be an object, not null"),
        ({"sections": [{"name": "s"}]}, "sections[0].text", "is missing"),
        ({"sections": [{"text": "s"}]}, "sections[0].name", "is missing"),
        ({"sections": [{"name": "s", "text": None}]}, "sections[0].text", "must be a string, not null"),
        ({"sections": [{"name": 1, "text": ""}]}, "sections[0].name", "must be a string, not a number"),
        (
            {"sections": [{"name": "s", "text": "", "offset": 0}]},
            "sections[0]",
            "unknown key 'offset'; facts of your own go into metadata",
        ),
        (
            {"sections": [{"name": "s", "text": "", "entitys": []}]},
            "sections[0]",
            "unknown key 'entitys' (did you mean 'entities'?)",
        ),
        (
            {"sections": [{"name": "s", "text": "", "metadata": 1}]},
            "sections[0].metadata",
            "must be an object, not a number",
        ),
        (
            {"sections": [{"name": "s", "text": "", "entities": {}}]},
            "sections[0].entities",
            "must be a list, not an object",
        ),
        (
            {"sections": [{"name": "s", "text": "", "entities": [1]}]},
            "sections[0].entities[0]",
            "must be an object, not a number",
        ),
    ],
)
def test_a_wrong_document_or_section_is_reported_with_its_place(value, place, reason):
    assert problems_of(value) == {place: reason}


@pytest.mark.parametrize(
    ("changes", "place", "reason"),
    [
        ({"entity_class": None}, "entity_class", "is missing"),
        ({"entity_class": ""}, "entity_class", "must not be empty"),
        ({"entity_class": 5}, "entity_class", "must be a string, not a number"),
        ({"match": None}, "match", "is missing"),
        ({"namespace": None}, "namespace", "is missing"),
        ({"spans": None}, "spans", "must be a list with at least one span"),
        ({"spans": []}, "spans", "must be a list with at least one span"),
        ({"spans": [[0, 4]]}, "spans[0]", "must be an object with start and end, not a list"),
        ({"spans": [{"start": 0}]}, "spans[0]", 'start and end must be whole numbers, not {"start": 0}'),
        ({"spans": [{"start": 0.5, "end": 4}]}, "spans[0]", 'must be whole numbers, not {"start": 0.5, "end": 4}'),
        ({"spans": [{"start": True, "end": 4}]}, "spans[0]", 'must be whole numbers, not {"start": true, "end": 4}'),
        ({"spans": [{"start": "²", "end": 4}]}, "spans[0]", "start and end must be whole numbers"),
        ({"spans": [{"start": "-1", "end": 4}]}, "spans[0]", "start and end must be whole numbers"),
        ({"spans": [{"start": -1, "end": 4}]}, "spans[0]", "[-1, 4) is not a span"),
        ({"spans": [{"start": 4, "end": 0}]}, "spans[0]", "[4, 0) is not a span"),
        ({"spans": [{"start": 4, "end": 4}]}, "spans[0]", "[4, 4) is not a span"),
        ({"spans": [{"start": 0, "end": 4}, {"start": 5, "end": 11}]}, "spans[1]", "[5, 11) ends past the end"),
        ({"metadata": [1]}, "metadata", "must be an object, not a list"),
    ],
)
def test_a_wrong_entity_is_reported_with_its_place(changes, place, reason):
    problems = problems_of(make_json(**changes))
    assert list(problems) == [f"sections[0].entities[0].{place}"]
    assert reason in problems[f"sections[0].entities[0].{place}"]


def test_an_unknown_key_of_an_entity_is_reported_with_the_nearest_right_name():
    assert problems_of(make_json(entity_clas="x")) == {
        "sections[0].entities[0]": "unknown key 'entity_clas' (did you mean 'entity_class'?)"
    }


def test_an_entity_past_the_end_is_rejected_and_never_labels_the_rest_of_the_section():
    """KAZU labels everything from its start to the end of the section."""
    problems = problems_of(make_json(spans=[{"start": 5, "end": 1000}]))
    assert problems == {
        "sections[0].entities[0].spans[0]": "[5, 1000) ends past the end of the text, which has 10 characters"
    }


def test_offsets_count_code_points_not_bytes_or_utf_16_units():
    value = make_json(spans=[{"start": 0, "end": 3}])
    value["sections"][0]["text"] = "😀é𝒳"
    assert parse(value).sections[0].entities[0].end == 3
    value["sections"][0]["entities"][0]["spans"] = [{"start": 0, "end": 4}]
    assert "has 3 characters" in problems_of(value)["sections[0].entities[0].spans[0]"]


def test_everything_that_is_wrong_is_reported_at_once():
    value = {
        "idx": 1.5,
        "surplus": 1,
        "metadata": None,
        "sections": [
            {"name": "s", "text": "abc", "entities": [{"spans": [{"start": 0, "end": 9}, {"start": 2, "end": 1}]}, 3]},
            {"name": None, "entities": [{"match": "a", "entity_class": "", "namespace": "n", "spans": []}]},
            7,
        ],
    }
    assert problems_of(value).keys() == {
        "",
        "idx",
        "metadata",
        "sections[0].entities[0].entity_class",
        "sections[0].entities[0].match",
        "sections[0].entities[0].namespace",
        "sections[0].entities[0].spans[0]",
        "sections[0].entities[0].spans[1]",
        "sections[0].entities[1]",
        "sections[1].name",
        "sections[1].text",
        "sections[1].entities[0].entity_class",
        "sections[1].entities[0].spans",
        "sections[2]",
    }


def test_entities_of_a_section_without_text_are_checked_except_for_its_end():
    value = make_json(spans=[{"start": 0, "end": 1000}, {"start": -1, "end": 3}])
    del value["sections"][0]["text"]
    assert problems_of(value).keys() == {"sections[0].text", "sections[0].entities[0].spans[1]"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"idx": "x",}', "not valid JSON"),
        (b'{"idx": "x"} {}', "not valid JSON"),
        (b'{"idx": "\xff"}', "not UTF-8: invalid start byte at byte 9"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_not_json_is_reported_as_such(data, reason):
    assert problems_of(data)[""].startswith(reason)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (rb'{"idx": "\ud800"}', "idx"),
        (rb'{"sections": [{"name": "s", "text": "a\udc00b"}]}', "sections[0].text"),
        (rb'{"sections": [{"name": "\udc00", "text": ""}]}', "sections[0].name"),
        (rb'{"metadata": {"a": ["\ud800"]}}', ""),
        (rb'{"metadata": {"\ud800": 1}}', ""),
        (rb'{"\ud800": 1}', ""),
    ],
)
def test_half_of_a_surrogate_pair_is_reported_wherever_it_is(data, place):
    assert problems_of(data).keys() == {place}


def test_a_whole_surrogate_pair_is_one_character():
    value = parse_document(rb'{"idx": "x", "sections": [{"name": "s", "text": "\ud83d\ude00"}]}').document
    assert value.sections[0].text == "😀"


def test_numbers_beyond_64_bits_are_reported_not_rounded():
    for number in (2**64, -(2**63) - 1, 10**400, 12345678901234567890123):
        assert "64-bit" in problems_of({"metadata": {"a": [number]}})[""]
    for number in (2**64 - 1, -(2**63), 1e300, 0.1234567890123456789012):
        assert document_to_json(parse({"metadata": {"a": number}}))["metadata"] == {"a": number}


def test_a_score_too_big_for_a_float_is_reported_not_a_crash():
    assert problems_of(make_json(metadata={"score": 10**400}))


@pytest.mark.parametrize("offset", ["9" * 5000, 10**400, 1e308, 10**30, "1" * 20])
def test_an_absurdly_big_offset_is_reported(offset):
    assert problems_of(make_json(spans=[{"start": 0, "end": offset}])).keys() == {"sections[0].entities[0].spans[0]"}


@pytest.mark.parametrize("depth", [300, 900, 990])
def test_deep_nesting_is_reported_wherever_it_is(depth):
    nested = b"[" * depth + b"]" * depth
    assert problems_of(b'{"metadata": {"a": %s}}' % nested)
    assert problems_of(json.dumps(make_json(spans=["?"])).encode().replace(b'"?"', b'{"start": %s}' % nested))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=40).map(lambda text: json.dumps(text).encode()))
def test_parsing_any_bytes_never_raises_anything_but_an_invalid_document_error(data):
    try:
        parse_document(data)
    except InvalidDocumentError as error:
        assert error.problems


keys = st.sampled_from(
    ["idx", "sections", "metadata", "text", "name", "entities", "match", "entity_class", "namespace", "spans", "start"]
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["\ud800", "3", "²", "-0", 1e400, 10**500]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | st.text(max_size=3), inner, max_size=6),
    max_leaves=20,
)
nearly_right = st.builds(
    lambda entity, section, document: document | {"sections": [section | {"entities": [entity]}]},
    *(
        st.dictionaries(keys, anything, max_size=5).map(lambda changes, right=right: right | changes)
        for right in (
            {"match": "a", "entity_class": "b", "namespace": "n", "spans": [{"start": 0, "end": 1}]},
            {"name": "s", "text": "abc"},
            {"idx": "x"},
        )
    ),
)


@settings(max_examples=120, deadline=None)
@given(value=anything | nearly_right)
def test_parsing_any_json_gives_a_document_that_can_be_written_or_an_invalid_document_error(value):
    try:
        document = parse(value)
    except InvalidDocumentError as error:
        assert error.problems
        assert str(error)
    else:
        assert parse_document(dump_document(document)).document == document
