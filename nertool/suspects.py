"""Which annotations are most likely wrong, by a model that has not learned from them and by other occurrences.

Both kinds of evidence are log-odds, of what is suggested instead against what is annotated, and are added up (as in
naive Bayes): the mean logit of the words that would change, and the share of the other occurrences of the same text
that are as suggested. Occurrences in the same document count most, as annotators and language models are consistent
within a document, and its terms have one meaning there; those elsewhere take their place where there are few.

Source: Northcutt, Jiang & Chuang (2021), Confident learning, rank labels by out-of-sample probabilities of one class
    per example. Different here: several classes per token, entities instead of tokens, and the other occurrences.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Annotated, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from nertool.decoding import DecodedSpans, Words
from nertool.documents import Document, Entity, Section, Span, match_text
from nertool.mention_counts import Lexicon, MentionCounts, count_mentions, free_occurrences, mention_key
from nertool.provenance import without_review

Kind = Literal["spurious", "missing", "wrong class", "boundary"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_PLACES = ("in_document", "elsewhere")

_MOST_LOG_ODDS = 8.0  # of a model's evidence: it is never surer than 0.9997 of anything
_PRIOR_LOG_ODDS = -log(19)  # before any evidence, one annotation in 20 is taken to be wrong
_ELSEWHERE_WEIGHT = 0.5  # all other documents together count like so many occurrences in the same one


@dataclass(frozen=True, slots=True)
class Suggestion:
    """An entity that should be there instead."""

    label: str
    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """An annotation that may be wrong, or one that may be missing.

    Args:
        document: The document's id.
        section: The number of the section, from 0.
        kind: `spurious`, `missing`, `wrong class` or `boundary`.
        entity: What is annotated; None if something is missing.
        suggestion: What should be there; None if nothing should.
        log_odds: Evidence for the suggestion and against the annotation.
        model: The part of it that the model gives.
        same: Other occurrences of the text that are annotated like this one: in the document, elsewhere.
        other: Those that are as suggested.
    """

    document: str
    section: int
    kind: Kind
    entity: Entity | None
    suggestion: Suggestion | None
    log_odds: float
    model: float
    same: tuple[int, int]
    other: tuple[int, int]

    @property
    def label(self) -> str:
        """The class that is annotated, or that is missing."""
        one = self.entity or self.suggestion
        assert one is not None
        return one.label

    @property
    def score(self) -> float:
        """How likely the annotation is wrong, in (0, 1), where one in 20 is."""
        return _probability(self.log_odds + _PRIOR_LOG_ODDS)


def find_suspects(
    documents: Sequence[Document],
    words: Words,
    decoded: DecodedSpans,
    labels: Sequence[str],
    counts: MentionCounts,
    lexicon: Lexicon,
) -> Iterator[Suspect]:
    """Yields the annotations for which there is more evidence against than for them, document by document.

    Args:
        documents: With their entities.
        words: The words of all their sections and what a model says of them that has not learned from the documents.
        decoded: The spans that it finds.
        labels: Its classes.
        counts: Of all documents of the collection, these included.
        lexicon: Of all documents of the collection.
    """
    spans = list(
        zip(decoded.section.tolist(), decoded.label.tolist(), decoded.start.tolist(), decoded.end.tolist(), strict=True)
    )
    channels = {label: i for i, label in enumerate(labels)}
    number = 0
    for document in documents:
        own = count_mentions([document], lexicon)
        for index, section in enumerate(document.sections):
            first, last = bisect_left(spans, (number,)), bisect_left(spans, (number + 1,))
            rows = slice(*np.searchsorted(words.sections, [number, number + 1]).tolist())
            view = _View(document.id, index, section, words, rows, channels, counts, own)
            found = _suspects_of(view, spans[first:last], labels, lexicon)
            yield from (suspect for suspect in found if suspect.log_odds > 0)
            number += 1


def corrected(document: Document, suspects: Iterable[Suspect]) -> Document:
    """Returns a document with what is suggested in the place of what is suspect."""
    by_section: defaultdict[int, list[Suspect]] = defaultdict(list)
    for suspect in suspects:
        by_section[suspect.section].append(suspect)
    sections = [
        _corrected_section(section, by_section[index]) if index in by_section else section
        for index, section in enumerate(document.sections)
    ]
    return replace(document, sections=tuple(sections))


def _corrected_section(section: Section, suspects: Sequence[Suspect]) -> Section:
    wrong = {(one.entity.label, one.entity.spans) for one in suspects if one.entity}
    entities = [entity for entity in section.entities if (entity.label, entity.spans) not in wrong]
    known = {(entity.label, entity.spans) for entity in entities}
    for one in suspects:
        if one.suggestion and (one.suggestion.label, (one.suggestion.span,)) not in known:
            known.add((one.suggestion.label, (one.suggestion.span,)))
            entities.append(Entity(one.suggestion.label, (one.suggestion.span,), one.suggestion.text))
    # What people have said is right in it holds no more.
    return replace(
        without_review(section), entities=tuple(sorted(entities, key=lambda one: (one.start, one.end, one.label)))
    )


class _MentionFile(BaseModel):
    label: str = Field(alias="class")
    spans: list[Annotated[list[int], Field(min_length=2, max_length=2)]] = Field(min_length=1)
    text: str


class _OthersFile(BaseModel):
    in_document: int
    elsewhere: int


class _EvidenceFile(BaseModel):
    log_odds: float = Field(ge=-700, le=700)
    model_log_odds: float = Field(ge=-700, le=700)  # beyond, it is no finite probability
    others_as_annotated: _OthersFile
    others_as_suggested: _OthersFile


class SuspectFile(BaseModel):
    """What `suspect_from_json` reads."""

    document: str
    section: int
    kind: Kind
    entity: _MentionFile | None
    suggestion: _MentionFile | None
    evidence: _EvidenceFile


def suspect_to_json(suspect: Suspect) -> dict[str, Any]:
    """Returns the object of a line of `suspects.jsonl`."""
    entity, suggestion = suspect.entity, suspect.suggestion
    return {
        "document": suspect.document,
        "section": suspect.section,
        "kind": suspect.kind,
        "score": round(suspect.score, 4),
        "entity": entity and {"class": entity.label, "spans": [list(span) for span in entity.spans],
                              "text": entity.match},
        "suggestion": suggestion and {"class": suggestion.label, "spans": [list(suggestion.span)],
                                      "text": suggestion.text},
        "reason": reason(suspect),
        "evidence": {
            "log_odds": round(suspect.log_odds, 3),
            "model_log_odds": round(suspect.model, 3),
            "others_as_annotated": dict(zip(_PLACES, suspect.same, strict=True)),
            "others_as_suggested": dict(zip(_PLACES, suspect.other, strict=True)),
        },
    }  # fmt: skip


def suspect_from_json(value: dict[str, Any]) -> Suspect:
    """Reads what `suspect_to_json` wrote."""
    entity, suggestion, evidence = value["entity"], value["suggestion"], value["evidence"]
    return Suspect(
        value["document"],
        value["section"],
        value["kind"],
        entity and Entity(entity["class"], tuple(Span(*span) for span in entity["spans"]), entity["text"]),
        suggestion and Suggestion(suggestion["class"], Span(*suggestion["spans"][0]), suggestion["text"]),
        evidence["log_odds"],
        evidence["model_log_odds"],
        tuple(evidence["others_as_annotated"][place] for place in _PLACES),
        tuple(evidence["others_as_suggested"][place] for place in _PLACES),
    )


def reason(suspect: Suspect) -> str:
    """Says in words what speaks for the suggestion, and what against it."""
    wrong = "missing" if suspect.kind == "missing" else "wrong"
    as_suggested, as_annotated = (
        " and ".join(f"{n:,} {words}" for n, words in zip(counts, ("in this document", "elsewhere"), strict=True) if n)
        for counts in (suspect.other, suspect.same)
    )
    what = {
        "missing": ("annotated", "not annotated"),
        "spurious": ("not annotated", "annotated"),
        "wrong class": (f"not {suspect.entity.label}" if suspect.entity else "", "annotated as here"),
        "boundary": ("annotated as suggested", "annotated as here"),
    }[suspect.kind]
    others = "; ".join(
        f"{words} {counts}" for words, counts in zip(what, (as_suggested, as_annotated), strict=True) if counts
    )
    text = "this text" if suspect.kind != "boundary" else "these texts"
    occurrences = f"other occurrences of {text}: {others}" if others else f"no other occurrences of {text}"
    return f"by the model {_probability(suspect.model):.0%} likely {wrong}; {occurrences}"


def _probability(log_odds: float) -> float:
    return 1 / (1 + exp(-log_odds))


@dataclass(frozen=True, slots=True)
class _View:
    """A section with all that the evidence is made of."""

    document: str
    number: int
    section: Section
    words: Words
    rows: slice
    channels: dict[str, int]
    counts: MentionCounts
    own: MentionCounts

    def range_of(self, start: int, end: int) -> tuple[int, int]:
        """Returns the first word that overlaps a span, and one past the last one, counted in all words."""
        first = np.searchsorted(self.words.ends[self.rows], start, side="right")
        last = np.searchsorted(self.words.starts[self.rows], end, side="left")
        return self.rows.start + int(first), self.rows.start + max(int(first), int(last))

    def mean(self, label: str, *spans: tuple[int, int]) -> float | None:
        """Returns the mean logit of a class over the words of spans; None if they have none."""
        ranges = [self.range_of(*span) for span in spans]
        logits = np.concatenate([self.words.logits[first:last, self.channels[label]] for first, last in ranges])
        return float(logits.mean()) if len(logits) else None

    def depth(self, label: str) -> npt.NDArray[np.int64]:
        """Returns how many entities of a class each word of the section is in, `(words,)`."""
        spans = {
            (entity.spans, span) for entity in self.section.entities if entity.label == label for span in entity.spans
        }
        ranges = np.array([self.range_of(*span) for _, span in spans]) - self.rows.start
        length = self.rows.stop - self.rows.start
        first, past = (np.bincount(column, minlength=length + 1) for column in ranges.T)
        return np.cumsum(first - past)[:length]

    def entities(self, key: str, label: str) -> tuple[int, int]:
        """Returns how many entities of a class have a text: in this document, elsewhere."""
        here = self.own.entities(key, label)
        return here, self.counts.entities(key, label) - here

    def free(self, key: str) -> tuple[int, int]:
        """Returns how often a text stands there without any annotation: in this document, elsewhere."""
        here = self.own.free[key]
        return here, self.counts.free[key] - here

    def key(self, entity: Entity) -> str:
        """Returns what the text of an entity is counted by."""
        return mention_key(match_text(self.section.text, entity.spans))

    def suspect(
        self,
        kind: Kind,
        entity: Entity | None,
        suggestion: Suggestion | None,
        model: float,
        same: tuple[int, int],
        other: tuple[int, int],
    ) -> Suspect:
        """Adds up the evidence: the model's log-odds, and how other occurrences of the text are annotated."""
        model = min(max(model, -_MOST_LOG_ODDS), _MOST_LOG_ODDS)
        log_odds = model + _consistency(same, other)
        return Suspect(self.document, self.number, kind, entity, suggestion, log_odds, model, same, other)


def _suspects_of(
    view: _View, predicted: Sequence[tuple[int, int, int, int]], labels: Sequence[str], lexicon: Lexicon
) -> Iterator[Suspect]:
    gold = {(entity.label, entity.spans): entity for entity in view.section.entities if entity.label in view.channels}
    known = {(label, *spans[0]) for label, spans in gold if len(spans) == 1}
    free = list(free_occurrences(view.section, lexicon))
    depth: dict[str, npt.NDArray[np.int64]] = {}
    by_label: dict[str, list[tuple[int, int]]] = {label: [] for label in labels}
    for _, channel, start, end in predicted:
        by_label[labels[channel]].append((start, end))
    explained = set(known)  # predictions that are right, or that an annotation has already been compared with
    for (label, spans), entity in gold.items():
        logit = view.mean(label, *spans)
        if logit is None:
            continue  # white space
        overlapping = _overlapping(by_label[label], spans)
        explained.update((label, *span) for span in overlapping)
        candidates = [span for span in overlapping if (label, *span) not in known]
        if (len(spans) == 1 and tuple(spans[0]) in overlapping) or (overlapping and not candidates):
            continue
        if overlapping:
            if len(spans) == 1:  # the model has nothing to say on the parts of discontinuous entities
                if label not in depth:
                    depth[label] = view.depth(label)
                best = max(candidates, key=lambda span: _shared(spans, span))
                yield _boundary(view, entity, Span(*best), depth[label])
            continue
        others = [
            (other, span)
            for other in labels
            if other != label
            for span in _overlapping(by_label[other], spans)
            if (other, *span) not in known
        ]
        if others:
            yield _wrong_class(view, entity, -logit, others, explained)
        else:
            same, other = _without_one(view.entities(view.key(entity), label)), view.free(view.key(entity))
            yield view.suspect("spurious", entity, None, -logit, same, other)
    suggested = []
    free_spans = {(start, end) for _, start, end in free}
    for label, found in by_label.items():
        for span in found:
            if (label, *span) not in explained:
                yield _missing(view, label, *span, is_free=span in free_spans)
                suggested.append(span)
    yield from _not_repeated(view, suggested, free)


def _boundary(view: _View, entity: Entity, span: Span, depth: npt.NDArray[np.int64]) -> Suspect:
    """Compares with a prediction of the same class.

    Words that are in another entity of the class (`depth` counts those of each word) are inside with either border: the
    model says nothing of where one of two that touch or overlap ends.
    """
    channel = view.channels[entity.label]
    annotated, proposed = view.range_of(entity.start, entity.end), view.range_of(*span)
    first, last = min(annotated[0], proposed[0]), max(annotated[1], proposed[1])
    rows = np.arange(first, last)
    logits = view.words.logits[first:last, channel]
    in_entity, in_span = ((rows >= one[0]) & (rows < one[1]) for one in (annotated, proposed))
    in_others = depth[rows - view.rows.start] > in_entity
    changes = np.where(in_span, logits, -logits)[(in_entity != in_span) & ~in_others]
    # Borders inside a word are beyond the model.
    model = min(float(changes.mean()), float(logits[in_entity & in_span].mean())) if len(changes) else 0.0
    text = view.section.text[span.start : span.end]
    same = _without_one(view.entities(view.key(entity), entity.label))
    other = view.entities(mention_key(text), entity.label)
    if entity.start <= span.start and span.end <= entity.end:
        other = other[0], 0  # that "fever" is annotated elsewhere says nothing against "Lassa fever"
    return view.suspect("boundary", entity, Suggestion(entity.label, span, text), model, same, other)


def _wrong_class(
    view: _View,
    entity: Entity,
    against: float,
    others: Sequence[tuple[str, tuple[int, int]]],
    explained: set[tuple[str, int, int]],
) -> Suspect:
    """Compares with the prediction of another class that shares most with the entity, and of those with the surest.

    `against` is the model's log-odds against the annotated class.
    """

    def shares(other: tuple[str, tuple[int, int]]) -> tuple[int, float]:
        label, span = other
        return _shared(entity.spans, span), view.mean(label, span) or 0.0

    label, (start, end) = max(others, key=shares)
    explained.add((label, start, end))
    text, key = view.section.text[start:end], view.key(entity)
    model = min(against, view.mean(label, (start, end)) or 0.0)
    other = view.entities(key, label)
    if mention_key(text) != key:  # then the text of the entity should be free of it, too
        other = (other[0] + view.free(key)[0], other[1] + view.free(key)[1])
    same = _without_one(view.entities(key, entity.label))
    return view.suspect("wrong class", entity, Suggestion(label, Span(start, end), text), model, same, other)


def _missing(view: _View, label: str, start: int, end: int, *, is_free: bool) -> Suspect:
    text = view.section.text[start:end]
    key = mention_key(text)
    suggestion = Suggestion(label, Span(start, end), text)
    logit = view.mean(label, (start, end)) or 0.0
    same = view.free(key)
    if is_free:  # no entity of another class is there
        same = _without_one(same)
    return view.suspect("missing", None, suggestion, logit, same, view.entities(key, label))


def _not_repeated(
    view: _View, suggested: Sequence[tuple[int, int]], free: Sequence[tuple[str, int, int]]
) -> Iterator[Suspect]:
    """Yields free occurrences of texts that are entities elsewhere in the document, which the model hasn't found."""
    taken = bytearray(len(view.section.text))
    for start, end in suggested:
        taken[start:end] = b"\1" * (end - start)
    for key, start, end in free:
        if key in view.own.annotated and taken.find(1, start, end) < 0:
            classes = {label: n for label, n in view.own.annotated[key].items() if label in view.channels}
            if classes:
                taken[start:end] = b"\1" * (end - start)  # of several at one place the longest counts
                label = max(classes, key=lambda label: (classes[label], label))
                yield _missing(view, label, start, end, is_free=True)


def _consistency(same: tuple[int, int], other: tuple[int, int]) -> float:
    """Returns the log-odds that an occurrence is as suggested, given how the others are annotated.

    The share elsewhere, with Jeffreys' prior, is itself the prior of the share in the document.
    """
    elsewhere = (other[1] + 0.5) / (other[1] + same[1] + 1.0)
    share = (other[0] + _ELSEWHERE_WEIGHT * elsewhere) / (other[0] + same[0] + _ELSEWHERE_WEIGHT)
    return log(share / (1 - share))


def _without_one(counts: tuple[int, int]) -> tuple[int, int]:
    """The one that is looked at doesn't speak for itself."""
    return counts[0] - 1, counts[1]


def _shared(spans: Iterable[tuple[int, int]], other: tuple[int, int]) -> int:
    """Returns how many characters spans share with another one."""
    return sum(max(0, min(end, other[1]) - max(start, other[0])) for start, end in spans)


def _overlapping(predicted: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns those of a class's predicted spans, which are sorted and apart, that overlap one of the spans."""
    found: dict[tuple[int, int], None] = {}
    for start, end in spans:
        first = bisect_right(predicted, start, key=lambda span: span[1])
        last = bisect_left(predicted, end, key=lambda span: span[0])
        found |= dict.fromkeys(predicted[first:last])
    return list(found)
