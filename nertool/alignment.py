"""Finding the exact places of mentions that an LLM named.

An LLM gives strings, not offsets, and not always the strings of the text: another case, a plain hyphen for a
non-breaking one, `beta` for `β`, a plural, a typo. Each mention goes down a ladder, from exact to fuzzy, and stops at
the first rung that finds it anywhere; every entity says which rung it was.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import OSA

from nertool.documents import Span
from nertool.folding import FoldedText, fold

WAYS = ("exact", "folded", "spacing", "plural", "in a word", "fuzzy")

# A shorter word in another case is often another word: MET and met, Lead and lead, AIDS and aids.
_SHORTEST_IN_ANY_CASE = 5
# Less than this inside a word is chance.
_SHORTEST_IN_A_WORD = 3
# A mention that is longer than its text by more than this isn't worth a search.
_MORE_THAN_FOLDING_ADDS = 100
# So short a word, changed by one letter, is another word.
_SHORTEST_WITH_A_TYPO = 4


@dataclass(frozen=True, slots=True)
class Mention:
    """What an LLM named.

    Args:
        text: The mention as the LLM wrote it.
        parts: Its parts in text order if it is discontinuous.
        start: The first character, if the LLM gave it.
        end: One past the last character, if the LLM gave it.
        context: A piece of the text around it, if the LLM gave it.
    """

    text: str
    parts: tuple[str, ...] = ()
    start: int | None = None
    end: int | None = None
    context: str | None = None


class Place(NamedTuple):
    """Where a mention is.

    Args:
        spans: One span, or several in text order.
        way: How it was found, one of `WAYS`.
        similarity: For fuzzy ones, the share of characters that agree, in [0, 1].
    """

    spans: tuple[Span, ...]
    way: str
    similarity: float | None = None


class Aligner:
    """Finds mentions in one text.

    Args:
        text: The text.
        fuzzy_similarity: The least share of characters that must agree (1 − edits / length, edits by optimal string
            alignment) for a fuzzy match; 1 turns fuzzy matching off.
    """

    def __init__(self, text: str, fuzzy_similarity: float) -> None:
        self.text = text
        self.fuzzy_similarity = fuzzy_similarity
        self._candidates: dict[int, tuple[list[str], list[tuple[int, int]]]] = {}

    @cached_property
    def _folded(self) -> FoldedText:
        return FoldedText(self.text)

    @cached_property
    def _squeezed(self) -> FoldedText:
        return FoldedText(self.text, squeeze=True)

    def places(self, mention: Mention) -> list[Place]:
        """Returns the places of a mention in text order; none if it isn't in the text.

        All its occurrences count, also as a plural or singular, unless the LLM pointed at one: by offsets at which the
        mention stands, or by a context that is in the text.
        """
        if mention.parts:
            return self._discontinuous(mention.parts)
        if (pointed := self._pointed_at(mention)) is not None:
            return [pointed]
        places = self._occurrences(mention.text)
        if places and places[0].way in ("exact", "folded"):
            places = sorted([*places, *self._by_plural(mention.text)])
        if mention.context and len(places) > 1:
            around = [*self._folded.find(fold(mention.context))]
            inside = [
                place
                for place in places
                if any(span.start <= place.spans[0].start and place.spans[0].end <= span.end for span in around)
            ]
            return inside or places
        return places

    def _occurrences(self, mention: str) -> list[Place]:
        if len(mention) > 2 * len(self.text) + _MORE_THAN_FOLDING_ADDS:
            return []
        folded = fold(mention)
        if not folded:
            return []
        at_words = self._at_words(self._folded, folded)
        agreeing = [span for span in at_words if _case_agrees(mention, self.text[span.start : span.end])]
        whole = [span for span in agreeing if not self._is_numbered(span)]
        places = [
            Place((span,), "exact" if self.text[span.start : span.end] == mention else "folded")
            for span in whole or agreeing
        ]
        return (
            places
            or self._by_spacing(mention)
            or self._by_plural(mention)
            or [Place((span,), "folded") for span in at_words]
            or self._by_spacing(mention, in_any_case=any(map(str.isdigit, mention)))  # `il2` can only be `IL-2`
            or self._in_words(mention)
            or self._by_similarity(folded)
        )

    def _by_spacing(self, mention: str, way: str = "spacing", *, in_any_case: bool = False) -> list[Place]:
        return [
            Place((self._with_signs(span, mention),), way)
            for span in self._at_words(self._squeezed, fold(mention, squeeze=True))
            if in_any_case or _case_agrees(mention, self.text[span.start : span.end], squeeze=True)
        ]

    def _by_plural(self, mention: str) -> list[Place]:
        for variant in _other_numbers(mention):
            spans = self._at_words(self._folded, fold(variant))
            agreeing = [span for span in spans if _case_agrees(variant, self.text[span.start : span.end])]
            places = [Place((span,), "plural") for span in agreeing] or self._by_spacing(variant, "plural")
            # `patient's` is no plural.
            if places := [place for place in places if "'" not in fold(self.text[slice(*place.spans[0])])]:
                return places
        return []

    def _in_words(self, mention: str) -> list[Place]:
        """Finds a name that is only ever a part of a longer one, as `GFP` in `eGFP` and `AT1a` in `AT1aKO`.

        There must be a seam: a capital after something else, or before a name with a number (`BRAFV600E`). So
        `saturated` isn't found in `unsaturated`, nor `type I` in `type II`, nor `IL-2` in `IL-2Rα`.
        """
        if len(mention) < _SHORTEST_IN_A_WORD or any(map(str.isspace, mention)):
            return []
        starts = (match.start() for match in re.finditer(f"(?={re.escape(mention)})", self.text))
        spans = (Span(start, start + len(mention)) for start in starts)
        return [Place((span,), "in a word") for span in spans if self._has_seams(span) and not self._cuts_number(span)]

    def _has_seams(self, span: Span) -> bool:
        text, (start, end) = self.text, span
        numbered = any(map(str.isdigit, text[start:end]))
        before = not _is_within_word(text, start) or (
            text[start].isupper() and (numbered or not text[start - 1].isupper())
        )
        after = not _is_within_word(text, end) or (text[end].isupper() and text[end - 1].islower())
        return before and after

    def _by_similarity(self, folded: str) -> list[Place]:
        words = _WORD.findall(folded)
        if not words or self.fuzzy_similarity >= 1:
            return []
        strings, ranges = self._word_sequences(len(words))
        found = process.extract(
            folded, strings, scorer=OSA.normalized_similarity, score_cutoff=self.fuzzy_similarity, limit=None
        )
        likely = [(similarity, ranges[index]) for string, similarity, index in found if _may_be_typo(words, string)]
        best = max((similarity for similarity, _ in likely), default=0.0)
        spans = (self._folded.span(*place) for similarity, place in likely if similarity == best)
        return [
            Place((self._with_signs(span, folded),), "fuzzy", round(best, 3))
            for span in sorted(span for span in spans if span)
            if self._at_word_boundaries(span)
        ]

    def _with_signs(self, span: Span, mention: str) -> Span:
        """Takes in the sign before or after a span that the mention has, too: the minus of `-521C/T`, a bracket."""
        folded, (start, end) = fold(mention), span

        def lacks(sign: str, inside: str, outside: str) -> bool:
            return not _WORD.match(sign) and fold(inside) != sign == fold(outside)

        if start and lacks(folded[0], self.text[start], self.text[start - 1]):
            start -= 1
        if end < len(self.text) and lacks(folded[-1], self.text[end - 1], self.text[end]):
            end += 1
        return Span(start, end)

    def _word_sequences(self, count: int) -> tuple[list[str], list[tuple[int, int]]]:
        """Returns all sequences of `count` words of the folded text, and where they are there."""
        if count not in self._candidates:
            words = [match.span() for match in _WORD.finditer(self._folded.folded)]
            ranges = [(words[first][0], words[first + count - 1][1]) for first in range(len(words) - count + 1)]
            self._candidates[count] = ([self._folded.folded[start:end] for start, end in ranges], ranges)
        return self._candidates[count]

    def _pointed_at(self, mention: Mention) -> Place | None:
        start, end = mention.start, mention.end
        if start is None or not 0 <= start < len(self.text):
            return None
        end = start + len(mention.text) if end is None else end
        found = self.text[start:end]
        if not start < end <= len(self.text) or found != found.strip():
            return None
        if found == mention.text:
            return Place((Span(start, end),), "exact")
        return Place((Span(start, end),), "folded") if fold(found) == fold(mention.text) != "" else None

    def _discontinuous(self, parts: Sequence[str]) -> list[Place]:
        """Finds the combination of the parts, in their order, that takes the least room."""
        places = [self._occurrences(part) for part in parts]
        best: list[Place] | None = None
        for first in places[0]:
            chosen = [first]
            for following in places[1:]:
                starts = [place.spans[0].start for place in following]
                index = bisect_left(starts, chosen[-1].spans[0].end)
                if index == len(following):
                    break
                chosen.append(following[index])
            else:
                if best is None or _extent(chosen) < _extent(best):
                    best = chosen
        if best is None:
            return []
        way = max((place.way for place in best), key=WAYS.index)
        similarities = [place.similarity for place in best if place.similarity is not None]
        spans = tuple(self._joined(place.spans[0] for place in best))
        return [Place(spans, way, min(similarities) if similarities else None)]

    def _joined(self, spans: Iterable[Span]) -> list[Span]:
        """Joins parts with nothing but white space between them: they are one piece of text."""
        joined: list[Span] = []
        for span in spans:
            if joined and not self.text[joined[-1].end : span.start].strip():
                joined[-1] = Span(joined[-1].start, span.end)
            else:
                joined.append(span)
        return joined

    def _at_words(self, text: FoldedText, folded: str) -> list[Span]:
        return [span for span in text.find(folded) if self._at_word_boundaries(span)]

    def _at_word_boundaries(self, span: Span) -> bool:
        return not (
            _is_within_word(self.text, span.start) or _is_within_word(self.text, span.end) or self._cuts_number(span)
        )

    def _is_numbered(self, span: Span) -> bool:
        """Tells whether a hyphen and a number follow: the `IL` of `IL-2` is no `IL`, unless there is no other."""
        return _NUMBERED.match(self.text, span.end) is not None

    def _cuts_number(self, span: Span) -> bool:
        """Tells whether a number goes on beyond the span: `0.05` found in `10.05`, `p53` in `p534`."""
        before, after = self.text[max(0, span.start - 2) : span.start], self.text[span.end : span.end + 2]
        first, last = self.text[span.start], self.text[span.end - 1]
        return (first.isdigit() and re.fullmatch(r"(?s:.?\d|\d[.,])", before) is not None) or (
            last.isdigit() and re.match(r"\d|[.,]\d", after) is not None
        )


_WORD = re.compile(r"[^\W_]+")
_NUMBERED = re.compile(r"[-\u2010-\u2013\u2212]\d")
# One letter apart, and opposites.
_OPPOSITES = (("micro", "macro"), ("abduct", "adduct"))


def align(aligner: Aligner, mentions: Sequence[tuple[Mention, str]]) -> list[list[Place]]:
    """Returns the places of each mention, given with its class.

    Where a mention lies inside a longer one of its class, it is left out there if it also stands elsewhere: of
    `prostate cancer … cancer`, the mention `cancer` is the second. Across classes everything is kept.
    """
    found = {mention: aligner.places(mention) for mention, _ in mentions}
    spans: dict[str, set[Span]] = {}
    for mention, label in mentions:
        spans.setdefault(label, set()).update(place.spans[0] for place in found[mention] if len(place.spans) == 1)
    nested = {label: _nested(own) for label, own in spans.items()}
    result = []
    for mention, label in mentions:
        outside = [place for place in found[mention] if place.spans[0] not in nested[label] or len(place.spans) > 1]
        result.append(outside or found[mention])
    return result


def _nested(spans: Iterable[Span]) -> set[Span]:
    """Returns the spans that lie inside another one."""
    nested = set()
    furthest = -1
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if span.end <= furthest:
            nested.add(span)
        furthest = max(furthest, span.end)
    return nested


def _is_within_word(text: str, position: int) -> bool:
    """Tells whether letters or digits (with their accents) stand on both sides.

    So hyphens, slashes and signs end a word: `p53` is one in `p53-null`, `K+` in `Na+/K+-ATPase`, but `IL-1` isn't in
    `IL-1β`, nor `IL-2` in `IL-22`.
    """
    if not 0 < position < len(text):
        return False
    before, after = text[position - 1], text[position]
    return bool(_WORD.match(after) or _is_accent(after)) and bool(_WORD.match(before) or _is_accent(before))


def _is_accent(character: str) -> bool:
    return "\u0300" <= character <= "\u036f"


def _case_agrees(mention: str, found: str, *, squeeze: bool = False) -> bool:
    """Tells whether a difference in case is harmless: none, in a long word, or a short one that begins a sentence."""
    if mention == found or sum(map(str.isalpha, mention)) >= _SHORTEST_IN_ANY_CASE:
        return True
    plain, other = (fold(text, squeeze=squeeze, fold_case=False) for text in (mention, found))
    return plain == other or (len(plain) > 2 and plain.islower() and plain.capitalize() == other)


def _other_numbers(mention: str) -> Iterator[str]:
    """Yields the singular of what may be a plural (`SNPs`, `tumours`; not `AIDS`), and the plural."""
    if mention.endswith("ies") and len(mention) > 4:
        yield f"{mention[:-3]}y"
    if mention.endswith("ses"):
        yield f"{mention[:-2]}is"
    if mention.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        yield mention[:-2]
    acronym = mention[-2:-1].isupper() or mention[-2:-1].isdigit()
    if mention.endswith("s") and (acronym or (not mention.endswith("ss") and len(mention) > 3)):
        yield mention[:-1]
    if len(mention) > 1:
        yield f"{mention}s"
        if mention.endswith(("s", "x", "z", "ch", "sh", "o")):
            yield f"{mention}es"
        if mention.endswith("y"):
            yield f"{mention[:-1]}ies"
        if mention.endswith("sis"):
            yield f"{mention[:-2]}es"


def _may_be_typo(words: Sequence[str], found: str) -> bool:
    """Tells whether a difference can be a slip of the pen rather than another thing: at most one in each word.

    Numbers and short words must be the same (`IL-2` and `IL-3`, `type I` and `type II`), and opposites are none.
    """
    for word, other in zip(words, _WORD.findall(found), strict=True):
        if word == other:
            continue
        firm = min(len(word), len(other)) < _SHORTEST_WITH_A_TYPO or any(map(str.isdigit, word + other))
        opposite = any((one in word and two in other) or (two in word and one in other) for one, two in _OPPOSITES)
        if firm or opposite or OSA.distance(word, other) > 1:
            return False
    return True


def _extent(places: Sequence[Place]) -> int:
    return places[-1].spans[0].end - places[0].spans[0].start
