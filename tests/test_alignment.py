"""Where mentions are found: rules that hold for any text, and the cases of biomedical texts by name.

In the cases, ⟦ and ⟧ stand around the places that are expected.
"""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import OSA

from nertool.alignment import WAYS, Aligner, Mention, Place, _nested, align
from nertool.documents import Span
from nertool.folding import fold

SIMILARITY = 0.9

PIECES = [
    "IL-2", "IL-22", "IL-1β", "IL", "p53", "p53-null", "p534", "Na+", "K+", "Na+/K+-ATPase", "β-catenin",
    "beta-catenin", "MET", "met", "Met", "rats", "Rats", "rat", "lead", "Lead", "cancer", "cancers", "prostate cancer",
    "tumour", "tumor", "interleukin", "interleukins", "type I", "type II", "0.05", "10.05", "2,500", "500",
    "hyperglycemia", "hypoglycemia", "Ca²⁺", "ﬁbrosis", "Weiß", "İ", "Sjo\u0308gren", "\u200b", "\u0301", "😀",
    "eGFP", "GFP", "-", "–", "‑", "'", "’", "α", "s", "es", "therapy", "therapies", "a", "I", "\0", "中", "_",
    "T cell", "T-cells", "CD8+",
]  # fmt: skip
GAPS = [" ", " ", "  ", "\n", "\u00a0", "", "-", "/", "(", ")", ", ", ". ", ".", "\0\0", "\u2009"]
some_texts = (
    st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), max_size=12).map(
        lambda pairs: "".join(piece + gap for piece, gap in pairs)
    )
    | st.text(st.sampled_from("aAbBlL12 .,-β\u0301\0"), max_size=25)
    | st.text(max_size=25)
)


@st.composite
def texts_and_mentions(draw):
    """Returns a text, and a mention that is a piece of it, a changed one, or anything."""
    text = draw(some_texts)
    start = draw(st.integers(0, len(text)))
    mention = text[start : start + draw(st.integers(0, 20))]
    how = draw(st.sampled_from(["as it is", "upper", "lower", "drop", "add", "swap", "piece", "anything"]))
    at = draw(st.integers(0, max(0, len(mention) - 1)))
    if how == "upper":
        mention = mention.upper()
    elif how == "lower":
        mention = mention.lower()
    elif how == "drop":
        mention = mention[:at] + mention[at + 1 :]
    elif how == "add":
        mention = mention[:at] + draw(st.sampled_from("aes- 1")) + mention[at:]
    elif how == "swap":
        mention = mention[:at] + mention[at : at + 2][::-1] + mention[at + 2 :]
    elif how == "piece":
        mention = draw(st.sampled_from(PIECES))
    elif how == "anything":
        mention = draw(st.text(max_size=12))
    return text, mention


def squeezed(folded: str) -> str:
    return fold(folded, squeeze=True)


def bare(folded: str) -> str:
    """Returns a string without the signs around it, of which one too many may be taken in (`test_should_find`)."""
    return re.sub(r"^\W+(?=\w)|(?<=\w)\W+$", "", folded)


def other_numbers(word: str) -> list[str]:
    """Returns the regular plurals of a word, and what it may be a regular plural of."""
    numbers = [f"{word}s", f"{word}es"]
    for ending, singular in (("s", ""), ("es", ""), ("ies", "y")):
        if word.endswith(ending):
            numbers.append(word[: -len(ending)] + singular)
    return [*numbers, f"{word[:-1]}ies"] if word.endswith("y") else numbers


def check_place(text: str, mention: str, place: Place, similarity: float) -> None:
    """Checks one place of a mention that isn't discontinuous against what its way promises."""
    assert place.way in WAYS
    assert (place.similarity is not None) == (place.way == "fuzzy")
    (span,) = place.spans
    assert 0 <= span.start < span.end <= len(text)
    found = text[span.start : span.end]
    if place.way in ("exact", "in a word"):
        assert found == mention
    elif place.way == "folded":
        assert fold(found) == fold(mention)
        assert found != mention
    elif place.way == "spacing":
        assert bare(squeezed(found)) == bare(squeezed(mention))
        assert fold(found) != fold(mention)
    elif place.way == "plural":
        assert bare(squeezed(found)) in [bare(squeezed(number)) for number in other_numbers(fold(mention))]
    else:
        agreement = OSA.normalized_similarity(fold(mention), fold(found))
        assert agreement >= similarity
        assert agreement >= place.similarity - 6e-4 >= similarity - 2e-3
    if place.way != "in a word":
        for edge in (span.start, span.end):
            assert not (0 < edge < len(text) and text[edge - 1].isalnum() and text[edge].isalnum())


# Rules that hold for any text


@given(texts_and_mentions(), st.sampled_from([0.5, 0.8, SIMILARITY, 1.0]))
@settings(max_examples=500, deadline=None)
@example(("", ""), SIMILARITY)
@example(("IL-22 and IL-2", "IL-2"), SIMILARITY)
@example(("\u0301a\u0301", "a"), SIMILARITY)
@example(("interleukin and interleukni", "interleukine"), 0.8)
def test_every_place_is_what_its_way_says(pair, similarity):
    text, mention = pair
    places = Aligner(text, similarity).places(Mention(mention))
    for place in places:
        check_place(text, mention, place, similarity)
    starts = [place.spans for place in places]
    assert starts == sorted(set(starts))
    assert similarity < 1 or all(place.way != "fuzzy" for place in places)
    assert len({place.way for place in places} - {"exact", "folded"}) <= 1


@given(texts_and_mentions())
@settings(max_examples=200, deadline=None)
def test_a_mention_that_stands_as_a_word_is_found_by_a_sure_way(pair):
    text, mention = pair
    stripped = mention.strip()
    assume(stripped and any(map(str.isalnum, stripped)))
    words = re.finditer(rf"(?<![^\s])(?={re.escape(stripped)}(?!\S))", text)  # white space or an end on both sides
    places = Aligner(text, SIMILARITY).places(Mention(stripped))
    expected = {(word.start(), word.start() + len(stripped)) for word in words}
    exact = {tuple(place.spans[0]) for place in places if place.way == "exact"}
    assert expected <= exact or fold(stripped[0]) == "" or fold(stripped[-1]) == ""


@given(texts_and_mentions(), st.data())
@settings(max_examples=200, deadline=None)
def test_offsets_in_the_text_give_places_in_the_text(pair, data):
    text, mention = pair
    assume(mention)
    start = data.draw(st.none() | st.integers(0, len(text) + 3))
    end = data.draw(st.none() | st.integers(start or 0, max(start or 0, len(text))))
    aligner = Aligner(text, SIMILARITY)
    places = aligner.places(Mention(mention, start=start, end=end))
    if start is not None and start < len(text):
        span = Span(start, start + len(mention) if end is None else end)
        found = text[span.start : span.end]
        if found == mention == mention.strip():
            assert places == [Place((span,), "exact")]
            return
        if span.end <= len(text) and found.strip() == found and fold(found) == fold(mention) != "":
            assert places == [Place((span,), "folded")]
            return
    assert places == aligner.places(Mention(mention))


@given(texts_and_mentions(), some_texts)
@settings(max_examples=200, deadline=None)
def test_a_context_only_chooses(pair, context):
    text, mention = pair
    aligner = Aligner(text, SIMILARITY)
    everywhere = aligner.places(Mention(mention))
    chosen = aligner.places(Mention(mention, context=context))
    assert set(chosen) <= set(everywhere)
    assert bool(chosen) == bool(everywhere)


@given(some_texts, st.lists(st.sampled_from(PIECES) | st.text(max_size=6), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
@example("lung and liver cancer", ["lung", "cancer"])
@example("a b a b", ["a", "", "b"])
def test_parts_are_found_in_their_order(text, parts):
    places = Aligner(text, SIMILARITY).places(Mention(" ".join(parts), parts=tuple(parts)))
    assert len(places) <= 1
    for place in places:
        spans = place.spans
        assert 1 <= len(spans) <= len(parts)
        assert all(0 <= span.start < span.end <= len(text) for span in spans)
        assert all(one.end < other.start for one, other in pairwise(spans))
        assert place.way in WAYS
        assert (place.similarity is None) == (place.way != "fuzzy")


@given(
    st.text(max_size=60),
    st.text(max_size=60),
    st.lists(st.text(max_size=10), max_size=3),
    st.none() | st.integers(-5, 10**20),
    st.none() | st.integers(-5, 10**20),
    st.none() | st.text(max_size=20),
)
@settings(max_examples=200, deadline=None)
@example("a", "a", [], 10**30, None, None)
@example("abc", "abc", [], None, 2, None)
@example("a\0b", "\0", ["\0", "\0"], 1, 2, "\0")
def test_nothing_makes_it_raise(text, mention, parts, start, end, context):
    aligner = Aligner(text, 0.6)
    for given_parts in ((), tuple(parts)):
        places = aligner.places(Mention(mention, given_parts, start, end, context))
        assert isinstance(places, list)


# Planted mentions


def is_visible(character: str) -> bool:
    return fold(character) != ""


BORDERS = [" ", "(", ")", ";", "\n", "\0", "/", "\u00a0", "“", "=", "_"]
plantable = (
    (st.sampled_from(PIECES) | st.text(st.sampled_from("aB2 -+/'β.,ﬁß"), min_size=1, max_size=8) | st.text(max_size=8))
    .map(str.strip)
    .filter(lambda mention: mention != "" and is_visible(mention[0]) and is_visible(mention[-1]))
)


@given(some_texts, st.sampled_from(BORDERS), plantable, st.sampled_from(BORDERS), some_texts)
@settings(max_examples=500, deadline=None)
def test_a_planted_mention_is_found_where_it_was_planted(before, left, mention, right, after):
    text = before + left + mention + right + after
    start = len(before) + len(left)
    places = Aligner(text, SIMILARITY).places(Mention(mention))
    assert Place((Span(start, start + len(mention)),), "exact") in places


TYPOGRAPHY = str.maketrans({"-": "‑", " ": "\u00a0", "'": "’", "β": "𝛃", "2": "２", "f": "ｆ", "é": "e\u0301"})


@given(some_texts, st.sampled_from(BORDERS), plantable, st.sampled_from(BORDERS), some_texts)
@settings(max_examples=300, deadline=None)
@example("", " ", "5'-UTR of é", " ", "5'-UTR of é")
def test_a_planted_mention_in_other_typography_is_found(before, left, mention, right, after):
    planted = mention.translate(TYPOGRAPHY)
    text = before + left + planted + right + after
    start = len(before) + len(left)
    places = Aligner(text, SIMILARITY).places(Mention(mention))
    assert (Span(start, start + len(planted)),) in [place.spans for place in places]


@given(
    st.sampled_from(["interleukin", "thrombocytopenia", "lung adenocarcinoma", "beta-catenin", "T cell receptor"]),
    st.sampled_from([("", "s"), ("s", "")]),
    st.sampled_from(BORDERS),
    st.lists(st.sampled_from(["we", "saw", "0.05", "(n", "α", "\n"]), max_size=5).map(" ".join),
)
def test_a_planted_plural_is_found(word, endings, border, before):
    planted, mention = word + endings[0], word + endings[1]
    text = f"{before}{border}{planted}{border}{before}"
    start = len(before) + len(border)
    assert Aligner(text, SIMILARITY).places(Mention(mention)) == [Place((Span(start, start + len(planted)),), "plural")]


LONG_WORDS = ["thrombocytopenia", "methotrexate", "immunohistochemistry", "acetaminophen", "staphylococcus aureus"]


@given(st.sampled_from(LONG_WORDS), st.integers(1, 9), st.sampled_from(["drop", "double", "swap"]))
def test_a_planted_typo_is_found(word, at, slip):
    mention = {
        "drop": word[:at] + word[at + 1 :],
        "double": word[:at] + word[at] + word[at:],
        "swap": word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    }[slip]
    assume(mention != word)
    places = Aligner(f"We saw {word} (n = 4).", SIMILARITY).places(Mention(mention))
    assert [(place.spans, place.way) for place in places] == [((Span(7, 7 + len(word)),), "fuzzy")]


# Several mentions at once

spans = st.tuples(st.integers(0, 8), st.integers(1, 8)).map(lambda pair: Span(pair[0], pair[0] + pair[1]))


@given(st.sets(spans, max_size=8))
@settings(max_examples=300)
def test_nested_spans_are_those_inside_another(chosen):
    expected = {
        inner
        for inner in chosen
        if any(outer != inner and outer.start <= inner.start and inner.end <= outer.end for outer in chosen)
    }
    assert _nested(chosen) == expected


@given(
    some_texts,
    st.lists(
        st.tuples(st.sampled_from(PIECES).map(Mention), st.sampled_from(["gene", "disease"])), max_size=6, unique=True
    ),
)
@settings(max_examples=300, deadline=None)
def test_nesting_takes_away_only_what_lies_inside_and_never_the_last(text, mentions):
    aligner = Aligner(text, SIMILARITY)
    aligned = align(aligner, mentions)
    everywhere = [aligner.places(mention) for mention, _ in mentions]
    assert len(aligned) == len(mentions)
    for (_, label), places, all_places in zip(mentions, aligned, everywhere, strict=True):
        assert bool(places) == bool(all_places)
        assert [place for place in all_places if place in places] == places
        longer = {
            place.spans[0]
            for (_, other), own in zip(mentions, everywhere, strict=True)
            if other == label
            for place in own
        }
        outside = [place for place in all_places if place.spans[0] not in _nested(longer)]
        assert places == (outside or all_places)


# Cases


def unmarked(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """Returns a text without its ⟦marks⟧, and where they were."""
    text, places = "", []
    for piece in re.split("(⟦[^⟧]*⟧)", marked):
        inner = piece.strip("⟦⟧")
        if piece.startswith("⟦"):
            places.append((len(text), len(text) + len(inner)))
        text += inner
    return text, places


def find(text: str, mention: Mention | str, similarity: float = SIMILARITY) -> list[tuple[list[tuple[int, int]], str]]:
    mention = Mention(mention) if isinstance(mention, str) else mention
    return [([tuple(span) for span in place.spans], place.way) for place in Aligner(text, similarity).places(mention)]


def check(marked: str, mention: Mention | str, *ways: str) -> None:
    """Checks that a mention is found at the marks and nowhere else, in these ways (or one way for all)."""
    text, expected = unmarked(marked)
    found = find(text, mention)
    assert [place for spans, _ in found for place in spans] == expected
    if expected:
        assert [way for _, way in found] == [*(ways * len(expected) if len(ways) == 1 else ways)]


WORD_CASES = [
    ("⟦IL-2⟧ binds", "IL-2", "exact"),
    ("⟦IL-2⟧, ⟦IL-2⟧ and (⟦IL-2⟧).", "IL-2", "exact"),
    ("IL-22 binds", "IL-2"),
    ("IL-22 and ⟦IL-2⟧", "IL-2", "exact"),
    ("aIL-2 and ⟦IL-2⟧", "IL-2", "exact"),
    ("IL-1β and ⟦IL-1⟧", "IL-1", "exact"),
    ("⟦IL-1β⟧ and IL-1", "IL-1β", "exact"),
    ("⟦p53⟧-null mice", "p53", "exact"),
    ("anti-⟦p53⟧", "p53", "exact"),
    ("p534 and p53a", "p53"),
    ("the ⟦Na+/K+-ATPase⟧", "Na+/K+-ATPase", "exact"),
    ("the Na+/⟦K+⟧-ATPase", "K+", "exact"),
    ("the ⟦Na+⟧/K+-ATPase", "Na+", "exact"),
    ("the Na+/K+-⟦ATPase⟧", "ATPase", "exact"),
    ("⟦HER2⟧/neu", "HER2", "exact"),
    ("p.⟦V600E⟧", "V600E", "exact"),
    ("⟦c.35delG⟧", "c.35delG", "exact"),
    ("⟦TGF-β1⟧", "TGF-β1", "exact"),
    ("TH17 cells", "TH1"),
    ("IgG1", "IgG"),
    ("⟦CD8+ T cells⟧", "CD8+ T cells", "exact"),
    ("(⟦IFN-γ⟧)", "IFN-γ", "exact"),
    ("x_⟦p53⟧_y", "p53", "exact"),
    ("the ⟦α⟧ of αβ T cells: ⟦α⟧", "α", "exact"),
    ("Ca²⁺ influx", "Ca"),
    ("“⟦aspirin⟧”", "aspirin", "exact"),
    ("⟦cancer⟧", "cancer", "exact"),
    ("cafe\u0301", "caf"),
    ("😀⟦p53⟧😀", "p53", "exact"),
]
NUMBER_CASES = [
    ("p < 10.05", "0.05"),
    ("p < ⟦0.05⟧", "0.05", "exact"),
    ("p=⟦0.05⟧.", "0.05", "exact"),
    ("p=⟦0.05⟧, n = 4", "0.05", "exact"),
    ("p = 0.052", "0.05"),
    ("12,500 cells", "500 cells"),
    ("12.500 cells", "500 cells"),
    ("pH 7.4", "pH 7"),
    ("a 2500 mg dose", "500 mg"),
    ("⟦500 mg⟧, not 2500 mg", "500 mg", "exact"),
    ("1,2-dichloroethane", "2-dichloroethane"),
    ("1990s", "199"),
    ("⟦grade 3⟧.", "grade 3", "exact"),
]
FOLDED_CASES = [
    ("the ⟦β-catenin⟧", "beta-catenin", "folded"),
    ("the ⟦beta-catenin⟧", "β-catenin", "folded"),
    ("⟦IL‑2⟧", "IL-2", "folded"),
    ("⟦IL–2⟧", "IL-2", "folded"),
    ("⟦COVID−19⟧", "COVID-19", "folded"),
    ("the ⟦5′-UTR⟧", "5'-UTR", "folded"),
    ("⟦Alzheimer’s disease⟧", "Alzheimer's disease", "folded"),
    ("⟦ﬁbrosis⟧", "fibrosis", "folded"),
    ("⟦Sjo\u0308gren syndrome⟧", "Sjögren syndrome", "folded"),
    ("⟦Sjögren syndrome⟧", "Sjogren syndrome", "folded"),
    ("⟦Ca²⁺⟧ influx", "Ca2+", "folded"),
    ("⟦CD4⁺ T cells⟧", "CD4+ T cells", "folded"),
    ("⟦lung\n  cancer⟧", "lung cancer", "folded"),
    ("⟦5\u2009µM⟧", "5 μM", "folded"),
    ("⟦hepato\u00adcellular⟧", "hepatocellular", "folded"),
    ("⟦İstanbul⟧", "istanbul", "folded"),
    ("⟦NF-κB⟧", "NF-kappaB", "folded"),
    ("⟦ω-3 fatty acids⟧", "omega-3 fatty acids", "folded"),
    ("⟦IL-2⟧ and ⟦IL‑2⟧", "IL-2", "exact", "folded"),
    ("⟦IL-2⟧", " IL-2\n", "folded"),
    ("ß", "s"),
]
CASE_CASES = [
    ("they met; ⟦MET⟧ is a gene", "MET", "exact"),
    ("they ⟦met⟧; MET is a gene", "met", "exact"),
    ("⟦Lead⟧ is toxic; the lead author", "Lead", "exact"),
    ("the ⟦lead⟧; ⟦Lead⟧ is toxic", "lead", "exact", "folded"),
    ("⟦Rats⟧ were fed; the ⟦rats⟧", "rats", "folded", "exact"),
    ("⟦Rats⟧ were fed", "rats", "folded"),
    ("RATS are ⟦rats⟧", "rats", "exact"),
    ("aids in ⟦AIDS⟧", "AIDS", "exact"),
    ("⟦Aspirin⟧, ⟦aspirin⟧, ⟦ASPIRIN⟧", "aspirin", "folded", "exact", "folded"),
    ("⟦Type 2 diabetes⟧", "type 2 diabetes", "folded"),
    ("⟦P53⟧ loss; ⟦p53⟧", "p53", "folded", "exact"),
    ("⟦Il-2⟧ only", "IL-2", "folded"),  # whatever its case, if there is nothing better
    ("Il-2 and ⟦IL-2⟧", "IL-2", "exact"),
]
NUMBERED_CASES = [
    ("IL-2 and ⟦IL⟧", "IL", "exact"),
    ("IL‑2 and ⟦IL⟧", "IL", "exact"),
    ("⟦IL⟧-2 binds", "IL", "exact"),
    ("⟦IL⟧-2 and ⟦IL⟧-6", "IL", "exact"),
    ("⟦p53⟧-null and ⟦p53⟧", "p53", "exact"),
]
SPACING_CASES = [
    ("⟦IL 2⟧", "IL-2", "spacing"),
    ("⟦IL2⟧", "IL-2", "spacing"),
    ("⟦IL-2⟧", "IL2", "spacing"),
    ("⟦T-cell⟧", "T cell", "spacing"),
    ("⟦CD8 + T cells⟧", "CD8+ T cells", "spacing"),
    ("⟦α-synuclein⟧", "alpha synuclein", "spacing"),
    ("⟦TNF-\nα⟧", "TNF-α", "spacing"),
    ("⟦hepato-\ncellular⟧", "hepatocellular", "spacing"),
    ("⟦IFNγ⟧", "IFN-gamma", "spacing"),
    ("IL2 and ⟦IL-2⟧", "IL-2", "exact"),
    ("IL22", "IL-2"),
]
PLURAL_CASES = [
    ("⟦tumours⟧", "tumour", "plural"),
    ("a ⟦tumour⟧", "tumours", "plural"),
    ("two ⟦viruses⟧", "virus", "plural"),
    ("a ⟦virus⟧", "viruses", "plural"),
    ("two ⟦therapies⟧", "therapy", "plural"),
    ("a ⟦therapy⟧", "therapies", "plural"),
    ("⟦T-cells⟧", "T cell", "plural"),
    ("⟦CD8+ T cell⟧", "CD8+ T cells", "plural"),
    ("⟦miRNAs⟧", "miRNA", "plural"),
    ("two ⟦biopsies⟧", "biopsy", "plural"),
    ("⟦Tumours⟧", "tumour", "plural"),
    ("⟦tumour⟧ and ⟦tumours⟧", "tumour", "exact", "plural"),
    ("⟦tumour⟧ and ⟦tumours⟧", "tumours", "plural", "exact"),
    ("⟦METs⟧, and the mets", "MET", "plural"),
    ("glas", "glass"),
    ("mas", "mass"),
]
IN_A_WORD_CASES = [
    ("e⟦GFP3⟧", "GFP3", "in a word"),
    ("BRAF⟦V600E⟧", "V600E", "in a word"),
    ("precancerous", "cancer"),
    ("precancerous and ⟦cancer⟧", "cancer", "exact"),
    ("preCANCERous", "cancer"),
    ("estates", "tat"),
]
FUZZY_CASES = [
    ("with ⟦diabetes mellitus⟧ and", "diabetis mellitus", "fuzzy"),
    ("with ⟦trombocytopenia⟧ and", "thrombocytopenia", "fuzzy"),
    ("with ⟦methotrexate⟧ and", "methotrexaet", "fuzzy"),  # a swap is one edit
    ("with ⟦hepatocellular carcinoma⟧", "hepatocelular carcinoma", "fuzzy"),
    ("with ⟦interleukin-2 receptor⟧", "interleukin-2 receptr", "fuzzy"),
    ("with hypoglycemia", "hyperglycemia"),
    ("with hypercholesterolemia", "hypocholesterolemia"),
    ("with hypocholesterolemia", "hypercholesterolemia"),
    ("with type II diabetes mellitus", "type I diabetes mellitus"),
    ("with type 2 diabetes mellitus", "type 1 diabetes mellitus"),
    ("with type III mucopolysaccharidosis", "type II mucopolysaccharidosis"),
    ("the interleukin-3 receptor", "interleukin-2 receptor"),
    ("IL-3 levels in the serum", "IL-2 levels in the serum"),
    ("vitamin B12 supplementation", "vitamin B6 supplementation"),
    ("hepatitis B virus infection", "hepatitis C virus infection"),
    ("the cat sat", "car"),
    ("nothing of the kind", "thrombocytopenia"),
]
NOTHING_CASES = [
    ("some text", ""),
    ("some text", " \n\u00a0"),
    ("some text", "\u200b"),
    ("some text", "\u0301"),
    ("some text", "\0"),
    ("", "aspirin"),
    (" \n", "aspirin"),
    ("lung\0\0cancer", "lung cancer"),
    ("lung\0\0cancer", "lungcancer"),
    ("some text", "…?!"),
]
CASES = [
    *WORD_CASES, *NUMBER_CASES, *FOLDED_CASES, *CASE_CASES, *NUMBERED_CASES, *SPACING_CASES, *PLURAL_CASES,
    *IN_A_WORD_CASES, *FUZZY_CASES, *NOTHING_CASES,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[ascii(f"{case[1]} in {case[0]}") for case in CASES])
def test_finds(case):
    check(*case)


def case(marked, mention, *ways):
    return pytest.param(marked, mention, ways)


@pytest.mark.parametrize(
    ("marked", "mention", "ways"),
    [
        case("the IL-1β gene", "IL-1"),
        case("the IL-2Rα gene", "IL-2"),
        case("the TGF-β1 gene", "TGF-β"),
        case("collagen type II", "collagen type I"),
        case("hepatitis BX", "hepatitis B"),
        case("unsaturated fatty acids", "saturated fatty acids"),
        case("e⟦GFP⟧", "GFP", "in a word"),
        case("p <\n2500 mg", "500 mg"),
        case("macrocytic anemia", "microcytic anemia"),
        case("beta2-microglobulin", "beta2-macroglobulin"),
        case("intra- and extracellular calcium", "intracellular calcium"),
        case("upper respiratory tract infection", "lower respiratory tract infection"),
        case("abnormal glucose tolerance", "normal glucose tolerance"),
        case("⟦A T⟧ patients at rest", "A-T", "spacing"),
        case("⟦HA⟧ has a role", "HA", "exact"),
        case("⟦IT⟧ was given in its oral form", "IT", "exact"),
        case("⟦HI⟧ titres of his serum", "HI", "exact"),
        case("⟦MET⟧ and mets", "MET", "exact"),
        case("⟦AIDS⟧ and first aid", "AIDS", "exact"),
        case("⟦AIDS⟧ and the deaminase AID", "AIDS", "exact"),
        case("⟦PCOS⟧ and PCO", "PCOS", "exact"),
        case("(⟦(IL 2)⟧)", "(IL-2)", "spacing"),
        case("patients met; ⟦METs⟧", "MET", "plural"),
        case("a first aid kit", "AIDS"),
        case("IL-1 2 h later", "IL-12"),
        case("of grade 1-2", "grade 12"),
        case("⟦Cl⁻⟧ channels", "Cl-", "folded"),
        case("⟦Alzheimer's disease⟧", "Alzheimers disease", "spacing"),
        case("the ⟦diagnoses⟧", "diagnosis", "plural"),
        case("IL−2 and ⟦IL⟧", "IL", "exact"),
        case("IL–2 and ⟦IL⟧", "IL", "exact"),
    ],
)
def test_should_find(marked, mention, ways):
    check(marked, mention, *ways)


def test_a_similarity_of_one_turns_guessing_off():
    assert find("with diabetes mellitus", "diabetis mellitus", 1.0) == []
    assert find("with diabetes mellitus", "diabetes mellitus", 1.0) == [([(5, 22)], "exact")]


def test_the_similarity_is_given():
    (place,) = Aligner("with diabetes mellitus", SIMILARITY).places(Mention("diabetis mellitus"))
    assert place.similarity == pytest.approx(1 - 1 / 17, abs=1e-3)


def test_the_most_similar_are_taken():
    text = "thrombocytopenias, thrombocytopenix and thromboxytopenix"
    assert [text[slice(*spans[0])] for spans, _ in find(text, "thrombocytopenic", 0.8)] == ["thrombocytopenix"]


# Pointing


def pointed(text: str, mention: str, **how) -> list[tuple[int, int]]:
    return [span for spans, _ in find(text, Mention(mention, **how)) for span in spans]


TWO = "aspirin or more Aspirin"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, [(0, 7), (16, 23)]),
        ({"start": 0, "end": 7}, [(0, 7)]),
        ({"start": 16, "end": 23}, [(16, 23)]),
        ({"start": 0}, [(0, 7)]),
        ({"start": 16}, [(16, 23)]),
        ({"start": 1, "end": 8}, [(0, 7), (16, 23)]),
        ({"start": 0, "end": 6}, [(0, 7), (16, 23)]),
        ({"start": 15, "end": 23}, [(0, 7), (16, 23)]),  # with a space before it
        ({"start": 99, "end": 106}, [(0, 7), (16, 23)]),
        ({"start": 99}, [(0, 7), (16, 23)]),
        ({"start": 10**30, "end": 10**30 + 7}, [(0, 7), (16, 23)]),
        ({"start": -23, "end": -16}, [(0, 7), (16, 23)]),
        ({"start": 7, "end": 0}, [(0, 7), (16, 23)]),
        ({"end": 7}, [(0, 7), (16, 23)]),
        ({"context": "or more Aspirin"}, [(16, 23)]),
        ({"context": "OR MORE\naspirin"}, [(16, 23)]),
        ({"context": "aspirin or"}, [(0, 7)]),
        ({"context": "aspirin or more aspirin"}, [(0, 7), (16, 23)]),
        ({"context": "or more"}, [(0, 7), (16, 23)]),  # not around it
        ({"context": "no such thing as aspirin"}, [(0, 7), (16, 23)]),
        ({"context": ""}, [(0, 7), (16, 23)]),
        ({"context": " "}, [(0, 7), (16, 23)]),
        ({"start": 0, "end": 7, "context": "or more Aspirin"}, [(0, 7)]),
        ({"start": 3, "end": 5, "context": "or more Aspirin"}, [(16, 23)]),
    ],
)
def test_pointing(how, expected):
    assert pointed(TWO, "aspirin", **how) == expected


def test_offsets_at_another_form_count_if_it_folds_to_the_same():
    assert find("β-catenin, beta-catenin", Mention("beta-catenin", start=0, end=9)) == [([(0, 9)], "folded")]


@pytest.mark.parametrize("end", [12, 100, 10**30])
def test_an_end_beyond_the_text_is_wrong(end):
    assert pointed("two aspirin", "aspirin", start=4, end=end) == [(4, 11)]


def test_a_negative_end_is_wrong():
    assert pointed("two aspirin.", "aspirin", start=4, end=-1) == [(4, 11)]


@pytest.mark.parametrize("how", [{"start": 2}, {"start": 2, "end": 2}, {"start": 3, "end": 1}])
def test_an_empty_mention_is_nowhere(how):
    assert pointed("two aspirin", "", **how) == []


# Discontinuous mentions


@pytest.mark.parametrize(
    ("marked", "parts", "way"),
    [
        ("⟦lung⟧ and liver ⟦cancer⟧", ("lung", "cancer"), "exact"),
        ("cancer of the lung: ⟦lung⟧ and liver ⟦cancer⟧ or cancer", ("lung", "cancer"), "exact"),
        ("lung tissue; ⟦lung⟧ and liver ⟦cancer⟧", ("lung", "cancer"), "exact"),
        ("⟦Lung⟧ and liver ⟦cancers⟧", ("lung", "cancer"), "plural"),
        ("⟦interleukin⟧ 2 and ⟦4⟧", ("interleukin", "4"), "exact"),
        ("⟦interleukin⟧-2, -⟦4⟧ and ⟦-6⟧", ("interleukin", "4", "-6"), "exact"),
        ("⟦left⟧ and right ⟦coronary⟧ or ⟦carotid⟧", ("left", "coronary", "carotid"), "exact"),
        ("liver and lung cancer", ("cancer", "lung"), None),
        ("lung and liver", ("lung", "cancer"), None),
        ("lung cancer", ("lung", "lung"), None),
        ("⟦lung⟧ and ⟦lung⟧ cancer", ("lung", "lung"), "exact"),
        ("lung and liver cancer", ("lung", ""), None),
        ("⟦Na+/⟧K", ("Na+", "/"), "exact"),  # parts that touch are one
    ],
)
def test_parts(marked, parts, way):
    text, expected = unmarked(marked)
    assert find(text, Mention(" ".join(parts), parts=parts)) == ([(expected, way)] if way else [])


def test_the_least_similar_part_says_how_sure_it_is():
    (place,) = Aligner("methotrexat and other hepatocelular issues", SIMILARITY).places(
        Mention("", parts=("methotrexate", "hepatocellular"))
    )
    assert (place.way, place.similarity) == ("fuzzy", pytest.approx(1 - 1 / 12, abs=1e-3))


def test_parts_that_stand_side_by_side_are_one_mention():
    assert find("of lung cancer", Mention("lung cancer", parts=("lung", "cancer"))) == [([(3, 14)], "exact")]


# Nesting


def aligned(text: str, *mentions: tuple[str, str]) -> list[list[str]]:
    """Returns, for each mention, its places as `start:text`."""
    result = align(Aligner(text, SIMILARITY), [(Mention(mention), label) for mention, label in mentions])
    return [
        [" ".join(f"{start}:{text[start:end]}" for start, end in place.spans) for place in places] for places in result
    ]


def test_within_a_class_a_nested_mention_counts_where_it_stands_alone():
    text = "prostate cancer is a cancer"
    assert aligned(text, ("prostate cancer", "disease"), ("cancer", "disease")) == [
        ["0:prostate cancer"],
        ["21:cancer"],
    ]
    assert aligned(text, ("cancer", "disease"), ("prostate cancer", "disease")) == [
        ["21:cancer"],
        ["0:prostate cancer"],
    ]


def test_within_a_class_a_nested_mention_that_never_stands_alone_is_kept():
    assert aligned("prostate cancer", ("prostate cancer", "disease"), ("cancer", "disease")) == [
        ["0:prostate cancer"],
        ["9:cancer"],
    ]


def test_across_classes_everything_is_kept():
    text = "prostate cancer is a cancer"
    assert aligned(text, ("prostate cancer", "disease"), ("prostate", "anatomy"), ("cancer", "trait")) == [
        ["0:prostate cancer"],
        ["0:prostate"],
        ["9:cancer", "21:cancer"],
    ]


def test_one_mention_in_two_classes_is_judged_in_each():
    text = "prostate cancer is a cancer"
    assert aligned(text, ("cancer", "trait"), ("prostate cancer", "disease"), ("cancer", "disease")) == [
        ["9:cancer", "21:cancer"],
        ["0:prostate cancer"],
        ["21:cancer"],
    ]


def test_overlapping_mentions_are_kept():
    assert aligned("lung cancer cell lines", ("lung cancer", "x"), ("cancer cell", "x"), ("cell lines", "x")) == [
        ["0:lung cancer"],
        ["5:cancer cell"],
        ["12:cell lines"],
    ]


def test_nesting_in_three_steps():
    text = "lung cancer cell, lung cancer, cancer"
    assert aligned(text, ("cancer", "x"), ("lung cancer", "x"), ("lung cancer cell", "x")) == [
        ["31:cancer"],
        ["18:lung cancer"],
        ["0:lung cancer cell"],
    ]


def test_a_discontinuous_mention_neither_nests_nor_is_nested():
    text = "lung and liver cancer, cancer"
    mentions = [
        (Mention("lung cancer", parts=("lung", "cancer")), "x"),
        (Mention("cancer"), "x"),
        (Mention("lung"), "x"),
    ]
    assert [[place.spans for place in places] for places in align(Aligner(text, SIMILARITY), mentions)] == [
        [(Span(0, 4), Span(15, 21))],
        [(Span(15, 21),), (Span(23, 29),)],
        [(Span(0, 4),)],
    ]


def test_mentions_that_are_not_found_have_no_places():
    assert aligned("some text", ("aspirin", "drug"), ("text", "x")) == [[], ["5:text"]]
    assert align(Aligner("some text", SIMILARITY), []) == []


# Time


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("aspirin " * 100, "aspirin " * 1_000_000),
        ("aspirin " * 100, "β" * 5_000_000),
        ("", "x" * 5_000_000),
        ("aspirin", " " * 5_000_000),
    ],
    ids=["words", "Greek", "no text", "white space"],
)
def test_a_mention_much_longer_than_the_text_is_refused_at_once(text, mention):
    aligner = Aligner(text, SIMILARITY)
    began = time.perf_counter()
    assert aligner.places(Mention(mention)) == []
    assert aligner.places(Mention("x", parts=("aspirin", mention))) == []
    assert time.perf_counter() - began < 1


def test_a_long_text_takes_no_time():
    text = "The quick brown fox jumps over the lazy dog, " * 2_000
    aligner = Aligner(text + "thrombocytopenia", SIMILARITY)
    began = time.perf_counter()
    for mention in ("trombocytopenia", "thrombocytopenias", "thrombocyto-penia", "no such thing as this here"):
        aligner.places(Mention(mention))
    assert time.perf_counter() - began < 5
