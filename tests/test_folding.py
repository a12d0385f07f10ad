"""Folding against a slow reading of its docstring, and the characters of biomedical texts by name."""

import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nertool.documents import Span
from nertool.folding import FoldedText, _folded_characters, fold

NASTY = (
    "aAsSiIkK1 29-.,'\"`()/+βΒσςΣωΩμµαΑϕ"
    "İıßẞﬁﬃŉǆÆåÅéÉñö"  # characters that change length, and accented ones
    "\u0301\u0308\u0345\u20dd\ufe0f"  # combining marks, an enclosing one, a variation selector
    "\u00a0\u2009\u202f\u3000\t\n\r\x1c\x85\u2028"  # spaces
    "\u200b\u200d\u2060\ufeff\u00ad"  # invisible ones
    "‐‑‒–—―−－﹣⁻’‘‛′´ʼ“”„«»″"
    "²³₂⁺⅔ＡａＩ１（😀👩𝛃Å℃中각"
)
nasty_texts = st.text(st.sampled_from(NASTY), max_size=20)
texts = nasty_texts | st.text(max_size=20)
# With runs of spaces (the general way) and without (the fast one), control characters among them.
ascii_texts = st.text(st.characters(max_codepoint=127), max_size=40) | st.lists(
    st.text(st.sampled_from("aZ1-`'\x00\x7f\x1b"), min_size=1, max_size=4), max_size=8
).flatmap(lambda words: st.sampled_from([" ", "\t", "  ", " - "]).map(lambda space: space.join(words)))
options = st.fixed_dictionaries({"squeeze": st.booleans(), "fold_case": st.booleans()})


def is_seen(character: str, **how) -> bool:
    """Tells whether something of a character is left, other than white space."""
    return fold(character, **how) != ""


def places(folded: FoldedText, needle: str) -> set[tuple[int, int]]:
    return {tuple(span) for span in folded.find(needle)}


# Offsets


@given(texts, options, st.integers(-2, 60), st.integers(-2, 60))
@example("ß", {"squeeze": False, "fold_case": True}, 1, 2)
@example("", {"squeeze": False, "fold_case": True}, 0, 0)
def test_a_span_is_never_outside_the_text(text, how, start, end):
    folded = FoldedText(text, **how)
    span = folded.span(start, end)
    if not 0 <= start < end <= len(folded.folded):
        assert span is None
    elif span is not None:
        assert 0 <= span.start < span.end <= len(text)


@given(texts, options)
@settings(max_examples=150, deadline=None)
@example("İß ﬁ", {"squeeze": False, "fold_case": True})
@example("a \u200b b", {"squeeze": False, "fold_case": True})
def test_folding_the_text_of_a_span_gives_the_folded_text_back(text, how):
    folded = FoldedText(text, **how)
    length = len(folded.folded)
    for start in range(length):
        for end in range(start + 1, min(length, start + 8) + 1):
            if span := folded.span(start, end):
                assert fold(text[span.start : span.end], **how) == folded.folded[start:end].strip()


@given(texts, options)
@example("\u200ba\u200b", {"squeeze": False, "fold_case": True})
def test_the_span_of_everything_leaves_out_what_is_not_seen_only(text, how):
    folded = FoldedText(text, **how)
    if not folded.folded:
        assert not any(FoldedText(character, **how).folded for character in text)
        return
    span = folded.span(0, len(folded.folded))
    assert span is not None
    assert not any(is_seen(character, **how) for character in text[: span.start] + text[span.end :])


@given(texts, options)
def test_places_come_in_text_order(text, how):
    folded = FoldedText(text, **how)
    singles = [folded.span(index, index + 1) for index in range(len(folded.folded))]
    starts = [span.start for span in singles if span]
    assert starts == sorted(set(starts))


# Finding, against a search through all pieces of the text


def all_places(text: str, needle: str, **how) -> set[tuple[int, int]]:
    found = set()
    for start in range(len(text)):
        for end in range(start + 1, len(text) + 1):
            if not (is_seen(text[start], **how) and is_seen(text[end - 1], **how)):
                continue
            if fold(text[start:end], **how) == needle:
                last = end
                while last < len(text) and unicodedata.combining(text[last]) and not is_seen(text[last], **how):
                    last += 1  # accents go with their letter
                found.add((start, last))
    return found


@given(st.text(st.sampled_from(NASTY), max_size=8) | st.text(max_size=6), options)
@settings(max_examples=200, deadline=None)
@example("ssß", {"squeeze": False, "fold_case": True})
@example("e\u0301e", {"squeeze": False, "fold_case": True})
@example("a - a\u00a0a", {"squeeze": True, "fold_case": True})
@example("aaaa", {"squeeze": False, "fold_case": True})
def test_find_finds_what_a_search_through_all_pieces_finds(text, how):
    folded = FoldedText(text, **how)
    needles = {
        fold(text[start:end], **how) for start in range(len(text)) for end in range(start + 1, len(text) + 1)
    } | {"s", "a", "i", "beta", "eta", "fi", "1"}
    for needle in needles - {""}:
        assert places(folded, needle) == all_places(text, needle, **how), needle


@given(nasty_texts, st.booleans())
def test_find_of_nothing_finds_nothing(text, squeeze):
    assert list(FoldedText(text, squeeze=squeeze).find("")) == []


def test_find_gives_overlapping_places_in_text_order():
    assert [*FoldedText("aaa").find("aa")] == [Span(0, 2), Span(1, 3)]


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("ß", "s"),  # half of a letter
        ("ﬁ", "f"),
        ("β", "eta"),
        ("β", "bet"),
        ("θ", "eta"),
        ("½", "1"),
        ("℃", "c"),
    ],
)
def test_find_cuts_no_character(text, needle):
    assert needle in FoldedText(text).folded
    assert list(FoldedText(text).find(needle)) == []


# The fast way for ASCII


@given(ascii_texts, st.booleans())
@settings(max_examples=300)
@example("a\x1fb\x0bc", False)
@example("a - b`", True)
@example("A  B", False)
@example(" ", False)
@example("", True)
def test_the_fast_way_is_the_general_way(text, squeeze):
    general = [*_folded_characters(text, squeeze, True)]
    folded = FoldedText(text, squeeze=squeeze)
    assert folded.folded == "".join(piece for _, _, piece in general)
    assert [*folded._starts] == [start for start, _, piece in general for _ in piece]
    assert [*folded._ends] == [end for _, end, piece in general for _ in piece]


# What is the same to a reader

LETTERS = "abcIKLZ019 -+/().éÉñöÅåçžŽßﬁﬂﬃαβγδΔκμωΩ²³₂⁺①ＡｂＩ１½℃Ⅳ"


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@given(text=st.text(st.sampled_from(LETTERS), max_size=12))
def test_the_normal_form_does_not_matter(form, text):
    assert fold(unicodedata.normalize(form, text)) == fold(text)


@given(st.text(st.sampled_from(LETTERS), max_size=12))
def test_case_does_not_matter(text):
    assert fold(text.upper()) == fold(text) == fold(text.lower())


@given(st.text(st.sampled_from(LETTERS + "‐‑–—−’“”\u00a0\u2009\u200b\u00ad\u0301"), max_size=12), st.booleans())
def test_folding_twice_is_folding_once(text, squeeze):
    once = fold(text, squeeze=squeeze)
    assert fold(once, squeeze=squeeze) == once


@given(nasty_texts, st.sampled_from("\u200b\u200c\u200d\u2060\ufeff\u00ad\ufe0f"), st.data())
def test_an_invisible_character_changes_nothing(text, invisible, data):
    at = data.draw(st.integers(0, len(text)))
    assert fold(text[:at] + invisible + text[at:]) == fold(text)


@given(
    st.lists(st.text(st.sampled_from("aB1β-."), min_size=1, max_size=3), min_size=1, max_size=5),
    st.lists(st.text(st.sampled_from(" \t\n\r\u00a0\u2009\u202f\u3000\u2028"), min_size=1, max_size=3), min_size=5),
)
def test_any_white_space_is_one_space(words, spaces):
    text = spaces[-1] + "".join(word + space for word, space in zip(words, spaces, strict=False))
    assert fold(text) == fold(" ".join(words))


@given(st.text(st.sampled_from("aB1β -‑\u00a0–"), max_size=12))
def test_squeezing_leaves_out_spaces_dashes_and_apostrophes_but_not_between_digits(text):
    between = re.sub(r"(?<=[0-9])[ '-]+(?=[0-9])", "\0", fold(text.replace("\0", "")))
    assert fold(text.replace("\0", ""), squeeze=True) == re.sub(r"[ '-]", "", between).replace("\0", " ").strip()


@given(nasty_texts)
def test_a_text_with_its_case_folds_to_the_same_without_it(text):
    assert fold(fold(text, fold_case=False)) == fold(fold(text))


SAME = {
    "case": ("IL-2", "il-2"),
    "non-breaking hyphen, Greek": ("IL‑2 Rα", "il-2 ralpha"),
    "hyphen": ("COVID‐19", "COVID-19"),
    "figure dash": ("COVID‒19", "COVID-19"),
    "en dash": ("COVID–19", "COVID-19"),
    "em dash": ("COVID—19", "COVID-19"),
    "minus": ("10−3", "10-3"),
    "full-width hyphen": ("COVID－19", "COVID-19"),
    "small hyphen": ("COVID﹣19", "COVID-19"),
    "soft hyphen": ("hepato\u00adcellular", "hepatocellular"),
    "curly apostrophe": ("Alzheimer’s", "Alzheimer's"),
    "left single quote": ("5‘", "5'"),
    "prime": ("5′-UTR", "5'-UTR"),
    "acute accent as apostrophe": ("Parkinson´s", "Parkinson's"),
    "grave accent as apostrophe": ("Parkinson`s", "Parkinson's"),
    "modifier apostrophe": ("Parkinsonʼs", "Parkinson's"),
    "double quotes": ("“naive”", '"naive"'),
    "German quotes": ("„naive“", '"naive"'),
    "guillemets": ("«naive»", '"naive"'),
    "double prime": ("5″", '5"'),
    "non-breaking space": ("5\u00a0mg", "5 mg"),
    "thin space": ("5\u2009mg", "5 mg"),
    "narrow non-breaking space": ("5\u202fmg", "5 mg"),
    "ideographic space": ("5\u3000mg", "5 mg"),
    "line break": ("lung\r\n  cancer", "lung cancer"),
    "white space around": ("\n lung cancer\t", "lung cancer"),
    "zero-width space": ("lung\u200bcancer", "lungcancer"),
    "zero-width joiner": ("lung\u200dcancer", "lungcancer"),
    "byte order mark": ("\ufefflung", "lung"),
    "spaces around a zero-width one": ("lung \u200b cancer", "lung cancer"),
    "decomposed accent": ("Sjo\u0308gren", "Sjögren"),
    "no accent": ("Sjögren", "Sjogren"),
    "two accents": ("ệ", "e"),
    "superscript digit": ("Ca²⁺", "Ca2+"),
    "subscript digit": ("H₂O", "H2O"),
    "full width": ("ＩＬ－２", "IL-2"),
    "ligature": ("ﬁbrosis", "fibrosis"),
    "three-letter ligature": ("eﬃcacy", "efficacy"),
    "sharp s": ("Weiß", "WEISS"),
    "capital sharp s": ("WEIẞ", "weiss"),
    "dotted capital I": ("İnsulin", "insulin"),
    "Kelvin sign": ("300 \u212a", "300 K"),
    "Angstrom sign": ("5 \u212b", "5 Å"),
    "degrees Celsius": ("37 ℃", "37 °C"),
    "micro sign": ("5 µg", "5 μg"),
    "Greek capital": ("Δ32", "delta32"),
    "Ohm sign": ("5 \u2126", "5 Ω"),
    "final sigma": ("ς", "σ"),
    "Greek symbol variant": ("ϕ", "φ"),
    "Greek with an accent": ("ά", "alpha"),
    "mathematical bold Greek": ("𝛃-catenin", "beta-catenin"),
    "Roman numeral sign": ("type Ⅳ", "type IV"),
    "ellipsis": ("…", "..."),
    "variation selector": ("❤\ufe0f", "❤"),
}
DIFFERENT = {
    "digits": ("IL-2", "IL-3"),
    "a hyphen": ("IL-2", "IL 2"),
    "a space": ("lung cancer", "lungcancer"),
    "signs": ("Na+", "Na-"),
    "Greek letters": ("α", "β"),
    "Greek and Latin look-alikes": ("Α", "A"),
    "apostrophe or none": ("5'", "5"),
    "single and double quotes": ("5'", '5"'),
    "a full stop": ("i.v.", "iv"),
    "a NUL": ("a\0b", "ab"),
    "a NUL and a space": ("a\0b", "a b"),
    "emoji": ("😀", "😁"),
    "an underscore": ("a_b", "a b"),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_folds_to_the_same(one, other):
    assert fold(one) == fold(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_folds_to_something_else(one, other):
    assert fold(one) != fold(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cl⁻", "Cl-"),
        ("10⁻³", "10-3"),
        ("x₋", "x-"),
        ("5‴", "5'''"),
        ("ŉ", "'n"),
        ("Parkinson｀s", "Parkinson's"),
    ],
    ids=["chloride", "ten to the minus three", "subscript", "primes", "ŉ", "full width"],
)
def test_signs_that_decompose_to_dashes_and_quotes_fold_like_these(one, other):
    assert fold(one) == fold(other)


@pytest.mark.parametrize("sign", "˚˜¨¯‾")
def test_a_spacing_accent_is_no_white_space(sign):
    assert fold(f"37{sign}C") != fold("37 C")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("β", "beta"), ("Β", "Beta"), ("IL-2 Rα", "IL-2 Ralpha"), ("ΔF508", "DeltaF508"), ("É", "E"), ("Ⅳ", "IV")],
)
def test_the_case_may_be_kept(text, expected):
    assert fold(text, fold_case=False) == expected
    assert fold(text) == expected.lower()


SPANS = {
    "letter that becomes two": ("aßb", "ss", (1, 2)),
    "after a letter that becomes two": ("ßb", "b", (1, 2)),
    "Greek letter": ("TGF-β1", "beta", (4, 5)),
    "in the middle": ("TGF-β1", "f-beta1", (2, 6)),
    "ligature": ("of ﬁbrosis", "fibrosis", (3, 10)),
    "decomposed accent": ("Sjo\u0308gren", "sjogren", (0, 8)),
    "accent at the end": ("cafe\u0301 x", "cafe", (0, 5)),
    "two accents at the end": ("e\u0323\u0302 x", "e", (0, 3)),
    "dotted capital I": ("xİy", "i", (1, 2)),
    "zero-width space inside": ("lu\u200bng", "lung", (0, 5)),
    "zero-width spaces around": ("\u200blung\u200b", "lung", (1, 5)),
    "run of white space": ("lung \n\t cancer", "lung cancer", (0, 14)),
    "emoji before": ("😀😀 IL-2", "il-2", (3, 7)),
    "superscripts": ("in Ca²⁺.", "ca2+", (3, 7)),
}


@pytest.mark.parametrize(("text", "needle", "expected"), SPANS.values(), ids=SPANS)
def test_offsets_are_those_of_the_text(text, needle, expected):
    assert [*FoldedText(text).find(needle)] == [Span(*expected)]


@pytest.mark.parametrize("text", ["IL-2", "IL 2", "IL2", "il–2", "IL\u00a02", "I L - 2", "IL\n-\n2", "IL\u20092"])
def test_squeezed_forms_are_the_same(text):
    assert fold(text, squeeze=True) == "il2"
    assert [*FoldedText(f"({text})", squeeze=True).find("il2")] == [Span(1, len(text) + 1)]
