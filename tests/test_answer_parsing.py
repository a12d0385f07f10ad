"""Answers of every kind: those of `nasty_answers.jsonl`, and rules that hold whatever an LLM writes."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nertool.answer_parsing import ParsedAnswer, parse_answer
from nertool.entity_classes import load_classes

CLASSES = load_classes(None)
# A line each: what came, what is to be read from it (`malformed`: how many, null if any number will do), and a piece of
# the reason if nothing is (an empty one: any reason).
NASTY = [
    json.loads(line)
    for line in Path(__file__).with_name("nasty_answers.jsonl").read_text(encoding="utf-8").strip().split("\n")
]

METADATA = "strings beside the list become mentions: an object without a mention and a class is read as mention → class"
LACKING = "an entry that lacks its mention or class is read as mention → class instead of counted as malformed"
BRACKETS = "square brackets with a colon in prose are taken for JSON, and all after them for broken"


def parse(answer: str) -> ParsedAnswer:
    return parse_answer(answer, CLASSES.is_wording)


def items(parsed: ParsedAnswer) -> list[tuple[str, tuple[str, ...]]]:
    return [(item.mention.text, item.classes) for item in parsed.items]


def check(parsed: ParsedAnswer) -> None:
    """Checks what holds for any answer."""
    for item in parsed.items:
        mention = item.mention
        assert mention.text == mention.text.strip() != ""
        assert item.classes
        assert all(label == label.strip() != "" for label in item.classes)
        assert len(set(item.classes)) == len(item.classes)
        assert all(offset is None or (type(offset) is int and offset >= 0) for offset in (mention.start, mention.end))
        assert mention.parts == () or len(mention.parts) > 1
        "".join([mention.text, *item.classes, *mention.parts, mention.context or ""]).encode("utf-8")
    for entry in parsed.malformed:
        assert 0 < len(entry) <= 200
        entry.encode("utf-8")
    assert parsed.failure is None or parsed.failure
    assert parsed.failure is None or not parsed.items


# The corpus


def test_the_corpus_is_in_order():
    names = [case["name"] for case in NASTY]
    assert len(names) == len(set(names)) >= 60
    for case in NASTY:
        assert list(case) == ["name", "answer", "items", "failure", "cut_off", "malformed"]
        assert case["failure"] is None or not case["items"]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case["name"]) for case in NASTY],
)
def test_nasty_answers(case):
    parsed = parse(case["answer"])
    check(parsed)
    assert [[text, list(classes)] for text, classes in items(parsed)] == case["items"]
    if case["failure"] is None:
        assert parsed.failure is None
    else:
        assert parsed.failure is not None
        assert case["failure"] in parsed.failure
    assert parsed.cut_off == case["cut_off"]
    assert case["malformed"] in (None, len(parsed.malformed))


# Whatever comes

keys = st.sampled_from(["mention", "class", "entities", "text", "label", "drug", "parts", "start", ""]) | st.text(
    max_size=5
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["drug", "gene"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(st.text() | st.text(st.sampled_from("[]{}\",:\\'` \nu0d8/*#abNaN</think>()`"), max_size=60))
@settings(max_examples=300, deadline=None)
@example("\ud800")
@example("[{'\ud800': '\udfff'}]")
@example('{"a":' * 5)
@example("```[```{")
@example('[{"mention":')
def test_any_text_can_be_parsed(answer):
    check(parse(answer))


@given(json_values, st.sampled_from(["{}", " {} ", "x {} y", "```json\n{}\n```", "<think></think>{}"]), st.booleans())
@settings(max_examples=300, deadline=None)
@example({"mention": "\ud800", "class": "\udfff"}, "{}", True)
@example([{"mention": float("inf"), "class": ["drug", float("nan")]}], "{}", True)
@example([{"mention": "a", "class": "drug", "start": True, "end": -1}], "{}", True)
@example([{"mention": "a", "class": "drug", "start": 10**400}], "{}", True)
def test_any_json_can_be_parsed(value, around, as_ascii):
    parsed = parse(around.replace("{}", json.dumps(value, ensure_ascii=as_ascii)))
    check(parsed)
    assert not parsed.cut_off or parsed.failure or around != "{}"


VALID = [case["answer"] for case in NASTY if case["items"] and len(case["answer"]) < 600]


@given(st.sampled_from(VALID), st.data())
@settings(max_examples=500, deadline=None)
def test_any_damage_can_be_parsed(answer, data):
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(answer)))
        kind = data.draw(st.sampled_from(["delete", "insert", "replace", "truncate", "double", "start"]))
        rest = answer[at:]
        if kind == "delete":
            rest = rest[data.draw(st.integers(1, 5)) :]
        elif kind in ("insert", "replace"):
            rest = data.draw(st.sampled_from([*"[]{}\",:'\\`\n0N\0", "```", "null"])) + rest[kind == "replace" :]
        elif kind == "truncate":
            rest = ""
        elif kind == "double":
            rest = rest[:9] + rest
        answer = rest if kind == "start" else answer[:at] + rest
    check(parse(answer))


@pytest.mark.parametrize("end", ["", "]"])
@pytest.mark.parametrize(
    "nested",
    ["[", "{", '{"a":', '[{"a":', '["a",', '{"mention": "a", "class": [', "[a:", "(", "'", "```", "{'a': (", '"', "\\"],
)
def test_deep_nesting_is_no_trouble(nested, end):
    began = time.perf_counter()
    check(parse(nested * 3_000 + end))
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}"), ('[{"drug":', "}]")])
@pytest.mark.parametrize("depth", [5, 100, 1_000, 5_000, 100_000])
def test_deep_json_is_no_trouble(opening, closing, depth):
    check(parse(opening * depth + '{"mention": "a", "class": "drug"}' + closing * depth))


def test_a_long_answer_takes_no_time():
    entries = [{"mention": f"Alzheimer's disease {number}", "class": "disease"} for number in range(2_000)]
    began = time.perf_counter()
    for answer in (json.dumps(entries), repr(entries), json.dumps(entries)[:-1], json.dumps(entries)[:-30]):
        assert len(parse(answer).items) >= 1_999
    assert time.perf_counter() - began < 5


# Valid answers in other clothes

plain_mentions = st.sampled_from(
    ["aspirin", "IL-2", "5'-UTR", "Alzheimer's disease", "p53", "Na+/K+-ATPase", "TGF-β", "a, b", "0.05", "1", "x: y"]
) | st.text(st.sampled_from("abIL-2β+/'., "), min_size=1, max_size=8).map(str.strip).filter(bool)
mentions = (
    plain_mentions
    | st.sampled_from(
        ["[18F]FDG", "[Ca2+]i", "{x}", 'the "A" gene', "a\\b", "}", "]", '"', "null", "😀", "a\nb", "//x"]
    )
    | st.text(st.characters(exclude_characters="`", exclude_categories=["Cs"]), max_size=8).map(str.strip).filter(bool)
)
labels = st.lists(
    st.sampled_from([*CLASSES.names, "protein", "disease", "Monday"]), min_size=1, max_size=3, unique=True
)


def entries_of(mentions):
    return st.lists(st.tuples(mentions, labels.map(tuple)), min_size=1, max_size=5)


def entry(mention, classes, keys=("entity_match", "entity_class")):
    return {keys[0]: mention, keys[1]: list(classes)}


SHAPES = {
    "list": lambda entries: [entry(*one) for one in entries],
    "wrapped": lambda entries: {"entities": [entry(*one) for one in entries]},
    "wrapped twice": lambda entries: {"result": {"entities": [entry(*one) for one in entries]}},
    "other keys": lambda entries: [entry(*one, keys=("text", "labels")) for one in entries],
    "class first": lambda entries: [dict(reversed(entry(*one).items())) for one in entries],
    "more fields": lambda entries: [{"id": 1, **entry(*one), "score": 0.5, "ok": None} for one in entries],
}
CLOTHES = {
    "as it is": "{}",
    "white space": "\r\n\t {}\n\n",
    "byte order mark": "\ufeff{}",
    "prose": "Sure! Here are the entities, see [1] and {{x}}:\n\n{}\n\nI hope this helps [2].",
    "fence": "```json\n{}\n```",
    "fence and prose": "Here:\r\n\r\n```\r\n{}\r\n```\r\nDone [1].",
    "open fence": "```json\n{}",
    "reasoning": '<think>Is it [1] or {{x}}? [{{"mention": "x", "class": "drug"}}]</think>\n{}',
    "tag": "<answer>{}</answer>",
    "full stop": "{}.",
}


@pytest.mark.parametrize("shape", SHAPES)
@given(entries_of(mentions), st.sampled_from([None, 2]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_clothes_of_an_answer_do_not_matter(shape, entries, indent, as_ascii):
    answer = json.dumps(SHAPES[shape](entries), indent=indent, ensure_ascii=as_ascii)
    for name, clothes in CLOTHES.items():
        if "<think>" in clothes and "</think>" in answer:
            continue
        parsed = parse(clothes.format(answer))
        assert (items(parsed), parsed.malformed, parsed.cut_off, parsed.failure) == (entries, [], False, None), name


def with_trailing_commas(value, indent):
    return json.dumps(value, indent=indent, ensure_ascii=False).replace("]", ",]").replace("}", ",}")


@pytest.mark.parametrize("shape", SHAPES)
@given(entries_of(plain_mentions), st.sampled_from([None, 1]))
@settings(max_examples=60, deadline=None)
def test_other_notations_are_read_alike(shape, entries, indent):
    value = SHAPES[shape](entries)
    answers = {
        "Python": repr(value),
        "trailing commas": with_trailing_commas(value, indent),
        "comments": json.dumps(value, indent=1, ensure_ascii=False).replace("[\n", "[ // a comment\n"),
        "lines": json.dumps(value, indent=indent).replace("\n", "\r\n"),
    }
    if not any("'" in mention for mention, _ in entries):
        answers["single quotes"] = json.dumps(value, indent=indent, ensure_ascii=False).replace('"', "'")
    for name, answer in answers.items():
        for text in (answer, f"Here [1]:\n```python\n{answer}\n```\nDone."):
            parsed = parse(text)
            assert (items(parsed), parsed.malformed, parsed.failure) == (entries, [], None), (name, text)


@given(entries_of(mentions.map(lambda mention: f"x-{mention}")))
@settings(max_examples=150, deadline=None)
def test_all_shapes_say_the_same(entries):
    # An object is known to be one of mentions and classes by the classes in it.
    entries = [(mention, labels) for mention, labels in entries if any(map(CLASSES.is_wording, labels))]
    classes = dict(entries)
    singles = [(mention, label) for mention, labels in entries for label in labels if CLASSES.is_wording(label)]
    known = [(mention, label) for mention, label in singles if CLASSES.is_wording(label)]
    by_class = {label: [mention for mention, other in known if other == label] for _, label in known}
    for value, expected in (
        (classes, [*classes.items()]),
        ([{mention: list(labels)} for mention, labels in entries], entries),
        ([{mention: label} for mention, label in singles], [(mention, (label,)) for mention, label in singles]),
        ([[mention, label] for mention, label in known], [(mention, (label,)) for mention, label in known]),
        (by_class, [(mention, (label,)) for label, own in by_class.items() for mention in own]),
    ):
        for wrapped in (value, {"entities": value}):
            parsed = parse(json.dumps(wrapped))
            assert (items(parsed), parsed.malformed, parsed.failure) == (expected, [], None), value


@given(entries_of(mentions), st.sampled_from(["\n", "\r\n", "\n\n", " ", ", ", ",\n"]))
@settings(max_examples=100, deadline=None)
def test_entries_need_no_list(entries, between):
    answer = between.join(json.dumps(entry(*one)) for one in entries)
    parsed = parse(answer)
    assert (items(parsed), parsed.cut_off, parsed.failure) == (entries, False, None)


@given(entries_of(mentions), st.data())
@settings(max_examples=100, deadline=None)
def test_malformed_entries_take_none_with_them(entries, data):
    bad = data.draw(
        st.lists(
            st.sampled_from(
                [
                    {"mention": "", "class": "drug"},
                    {"mention": "a", "class": []},
                    {"mention": None, "class": "x"},
                    5,
                    "x",
                ]
            ),
            max_size=3,
        )
    )
    answer = data.draw(st.permutations([*(entry(*one) for one in entries), *bad]))
    parsed = parse(json.dumps(answer))
    assert sorted(items(parsed)) == sorted(entries)
    assert len(parsed.malformed) == len(bad)


@pytest.mark.parametrize("depth", [100, 900, 1000, 1020, 1100, 100_000])
def test_deep_nesting_beside_mentions_raises_nothing(depth):
    parsed = parse('{"aspirin": "drug", "deep": ' + "[" * depth + "]" * depth + "}")
    assert parsed.failure or items(parsed) == [("aspirin", ("drug",))]


# Answers that were cut off


@given(entries_of(plain_mentions | st.sampled_from(['the "A" gene', "a\\b", "a\nb"])), st.data())
@settings(max_examples=300, deadline=None)
def test_of_an_answer_that_was_cut_off_whole_entries_are_read(entries, data):
    """Beyond the first entry, without brackets in mentions, and with the mention first."""
    shape = data.draw(st.sampled_from(["list", "wrapped", "wrapped twice", "other keys"]))
    answer = data.draw(st.sampled_from(["{}", "```json\n{}", "See [1]:\n{}"])).format(
        json.dumps(SHAPES[shape](entries))
    )
    ends = [at + 1 for at, character in enumerate(answer) if character == "}"][: len(entries)]
    cut = data.draw(st.integers(ends[0], len(answer)))
    parsed = parse(answer[:cut])
    whole = sum(end <= cut for end in ends)
    assert items(parsed) in (entries[:whole], entries[: whole + 1])
    assert parsed.failure is None
    assert parsed.malformed == []


ENTRIES = [
    ("aspirin", ("drug",)),
    ("lung cancer", ("disease", "measurement")),
    ("5'-UTR", ("gene",)),
    ("IL-2", ("gene", "drug")),
]
BRACKETED = [
    ("[18F]FDG", ("drug",)),
    ("x {y} z", ("chemical", "drug")),
    ("[Ca2+]i", ("chemical",)),
    ("a], [b", ("drug",)),
]
SINGLE = [("aspirin", ("drug",)), ("[18F]FDG", ("drug",)), ("lung cancer", ("disease",)), ("[Ca2+]i", ("chemical",))]
CUT_SHAPES = {
    "list": (ENTRIES, lambda entries: json.dumps(SHAPES["list"](entries))),
    "wrapped": (ENTRIES, lambda entries: json.dumps(SHAPES["wrapped"](entries))),
    "indented": (ENTRIES, lambda entries: json.dumps(SHAPES["wrapped"](entries), indent=2)),
    "fence": (ENTRIES, lambda entries: f"Here:\n```json\n{json.dumps(SHAPES['list'](entries))}"),
    "class first": (ENTRIES, lambda entries: json.dumps(SHAPES["class first"](entries))),
    "brackets": (BRACKETED, lambda entries: json.dumps(SHAPES["list"](entries))),
    "brackets, class first": (BRACKETED, lambda entries: json.dumps(SHAPES["class first"](entries))),
    "lines": (ENTRIES, lambda entries: "\n".join(json.dumps(entry(*one)) for one in entries)),
    "mention to class": (SINGLE, lambda entries: json.dumps({mention: one for mention, (one,) in entries})),
    "mention to classes": (ENTRIES, lambda entries: json.dumps({mention: list(own) for mention, own in entries})),
    "one pair each": (SINGLE, lambda entries: json.dumps([{mention: one} for mention, (one,) in entries])),
    "pairs": (SINGLE, lambda entries: json.dumps([[mention, one] for mention, (one,) in entries])),
    "class to mentions": (
        [("aspirin", ("drug",)), ("warfarin", ("drug",)), ("IL-2", ("gene",)), ("p53", ("gene",))],
        lambda entries: json.dumps({"drug": ["aspirin", "warfarin"], "gene": ["IL-2", "p53"]}),
    ),
    "class to bracketed mentions": (
        [("[18F]FDG", ("drug",)), ("warfarin", ("drug",)), ("[Ca2+]i", ("chemical",))],
        lambda entries: json.dumps({"drug": ["[18F]FDG", "warfarin"], "chemical": ["[Ca2+]i"]}),
    ),
}


cut_shapes = pytest.mark.parametrize(("entries", "make"), CUT_SHAPES.values(), ids=CUT_SHAPES)


@cut_shapes
def test_wherever_an_answer_is_cut_off_nothing_wrong_is_read(entries, make):
    answer = make(entries)
    assert items(parse(answer)) == entries
    for cut in range(len(answer)):
        parsed = parse(answer[:cut])
        check(parsed)
        assert items(parsed) == entries[: len(parsed.items)], answer[:cut]


@cut_shapes
def test_wherever_an_answer_is_cut_off_it_says_so(entries, make):
    answer = make(entries)
    complete = {answer[:cut] for cut in range(len(answer)) if answer[:cut].endswith("}") and "\n{" in answer}
    for cut in range(len(answer)):
        parsed = parse(answer[:cut])
        assert parsed.cut_off or parsed.failure or answer[:cut].rstrip() in complete, answer[:cut]


@cut_shapes
def test_wherever_an_answer_is_cut_off_the_entries_before_are_read(entries, make):
    answer = make(entries)
    starts = [answer.index(json.dumps(mention)) for mention, _ in entries]
    for cut in range(starts[1] + 1, len(answer)):
        parsed = parse(answer[:cut])
        before = sum(start < cut for start in starts) - 1
        assert items(parsed)[:before] == entries[:before], answer[:cut]
        assert parsed.failure is None


# Fields


def mention_of(**fields):
    (item,) = parse(json.dumps([{"mention": "lung cancer", "class": "disease"} | fields])).items
    return item.mention


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [(0, 0), (7, 7), (-1, None), (None, None), (True, None), ("7", None), (7.5, None), ([7], None), (10**18, 10**18)],
)
def test_offsets(given_value, expected):
    assert mention_of(start=given_value).start == expected
    assert mention_of(end=given_value).end == expected


@pytest.mark.parametrize("key", ["context", "sentence", "snippet", "quote", "Context"])
def test_contexts(key):
    assert mention_of(**{key: " a lung cancer of "}).context == "a lung cancer of"
    assert mention_of(**{key: None}).context is None
    assert mention_of(**{key: ["lung"]}).context is None
    assert not mention_of(**{key: ""}).context


def test_parts():
    assert mention_of(parts=["lung", "cancer"]).parts == ("lung", "cancer")
    assert mention_of(parts=["lung", " cancer ", "", None]).parts == ("lung", "cancer")
    for nothing in ([], ["lung cancer"], None, "lung cancer", {"a": "b"}):
        assert mention_of(parts=nothing).parts == ()


def test_parts_make_up_for_the_mention():
    (item,) = parse('[{"parts": ["lung", "cancer"], "class": "disease"}]').items
    assert (item.mention.text, item.mention.parts) == ("lung cancer", ("lung", "cancer"))


def test_a_class_decides_between_mention_to_class_and_the_reverse():
    answer = '{"aspirin": "drug", "drug": ["aspirin", "warfarin"]}'
    assert items(parse(answer)) == [("aspirin", ("drug",)), ("aspirin", ("drug",)), ("warfarin", ("drug",))]
    assert items(parse_answer('{"a": ["b"]}', lambda text: text == "a")) == [("b", ("a",))]
    assert items(parse_answer('{"a": ["b"]}', lambda text: text == "b")) == [("a", ("b",))]


def test_long_malformed_entries_are_shortened():
    (entry,) = parse(json.dumps([{"mention": "", "class": "x" * 1000}])).malformed
    assert len(entry) == 200
    assert entry.endswith("…")
