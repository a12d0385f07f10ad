"""What the HTML report's error browser needs to know: the errors, and the text and the entities around them.

Texts are not kept whole: of each section there are the excerpts around its errors, once, however many errors share
them. So the data grows with the errors that are shown, at most `MOST_ERRORS`, and not with the texts.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nertool.documents import Document, Entity, Section, Span
from nertool.error_analysis import KINDS, ErrorItem

# More than anybody reads; a page of some megabytes, which every browser opens at once.
MOST_ERRORS = 5_000
# Characters before and after an entity, about two lines.
_CONTEXT = 160
# Gaps that are not worth cutting out.
_SMALLEST_GAP = 60
# Of an entity that is longer, only the beginning and the end are shown.
_LONGEST_SHOWN = 400
# What is shown of an error, at most: entities may have any number of parts.
_LONGEST_EXCERPT = 1_600

Spans = tuple[Span, ...]
_Mention = tuple[bool, str, Spans]  # whether it is predicted, its class, its spans


class Chosen(NamedTuple):
    """The errors that are shown.

    Args:
        errors: They, in the order in which they were.
        of_each: How many there are, at most, of each kind and class; `None` if there are all.
    """

    errors: list[ErrorItem]
    of_each: int | None


def choose_errors(errors: Sequence[ErrorItem], most: int = MOST_ERRORS) -> Chosen:
    """Chooses which errors are shown if there are too many.

    Rare kinds and classes tell as much as frequent ones: of each kind in each class there are all, or as many as of the
    others, taken evenly from all documents. Nothing is drawn by chance.
    """
    if len(errors) <= most:
        return Chosen(list(errors), None)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, error in enumerate(errors):
        groups[error.kind, error.label].append(number)
    of_each, left = 0, most
    sizes = sorted(map(len, groups.values()))
    for done, size in enumerate(sizes):
        of_each = left // (len(sizes) - done)
        if size > of_each:
            break
        left -= size
    of_each = max(1, of_each)
    chosen = sorted(
        numbers[place * len(numbers) // of_each]
        for numbers in groups.values()
        for place in (range(of_each) if len(numbers) > of_each else ())
    )
    chosen += [number for numbers in groups.values() if len(numbers) <= of_each for number in numbers]
    return Chosen([errors[number] for number in sorted(chosen)[:most]], of_each)


def browser_data(
    errors: Iterable[ErrorItem], gold_documents: Sequence[Document], predicted_documents: Sequence[Document]
) -> dict[str, Any]:
    """Returns what the page's script reads.

    Args:
        errors: The errors that are shown; their sections are counted through all documents.
        gold_documents: The documents with gold entities.
        predicted_documents: The same with predicted ones.

    Returns:
        `kinds` and `labels`: names, which are meant by their numbers below; `sections`: for each with an error its
        document's `id`, `name`, `length` in characters, `texts` (`[offset, text]`) and `entities` (`[whether predicted,
        label, whether right, score, start, end, start, end...]`); `errors`: `[section, kind, entities, [from, to, from,
        to...]]`. Offsets are Unicode code points.
    """
    by_section: dict[int, list[ErrorItem]] = defaultdict(list)
    for error in errors:
        by_section[error.section].append(error)
    pairs = [
        (document.id, gold, predicted)
        for document, other in zip(gold_documents, predicted_documents, strict=True)
        for gold, predicted in zip(document.sections, other.sections, strict=True)
    ]
    labels: dict[str, int] = {}
    data: dict[str, Any] = {"kinds": list(KINDS), "labels": [], "sections": [], "errors": []}
    for section_number, some in by_section.items():
        identifier, gold, predicted = pairs[section_number]
        excerpts = [_excerpt(gold.text, error) for error in some]
        kept = _merged(span for excerpt in excerpts for span in excerpt)
        mentions = {
            mention: score for mention, score in _mentions(gold, predicted).items() if _is_shown(mention[2], kept)
        }
        numbers = {mention: number for number, mention in enumerate(mentions)}
        shown = [
            [
                int(is_predicted),
                labels.setdefault(label, len(labels)),
                int((not is_predicted, label, spans) in mentions),
                score,
                *(offset for span in spans for offset in span),
            ]
            for (is_predicted, label, spans), score in mentions.items()
        ]
        for error, excerpt in zip(some, excerpts, strict=True):
            own = [
                numbers[mention]
                for is_predicted, side in ((False, error.gold), (True, error.predicted))
                for mention in (_mention(entity, is_predicted) for entity in side)
                if mention in numbers
            ]
            flat = [offset for span in excerpt for offset in span]
            data["errors"].append([len(data["sections"]), KINDS.index(error.kind), own, flat])
        texts = [[start, gold.text[start:end]] for start, end in kept]
        facts = {"id": identifier, "name": gold.name, "length": len(gold.text), "texts": texts, "entities": shown}
        data["sections"].append(facts)
    data["labels"] = list(labels)
    return data


def _mentions(gold: Section, predicted: Section) -> dict[_Mention, float | None]:
    """Returns the different entities of a section, gold ones first, with their scores."""
    found: dict[_Mention, float | None] = {}
    for is_predicted, section in ((False, gold), (True, predicted)):
        for entity in sorted(section.entities, key=lambda one: (one.spans, one.label)):
            score = None if entity.score is None or not is_predicted else round(entity.score, 4)
            found.setdefault(_mention(entity, is_predicted), score)
    return found


def _mention(entity: Entity, is_predicted: bool) -> _Mention:
    return is_predicted, entity.label, tuple(sorted(set(entity.spans)))


def _excerpt(text: str, error: ErrorItem) -> list[Span]:
    """Returns which parts of a text show an error: sorted, and some way apart."""
    near = []
    for entity in (*error.gold, *error.predicted):
        for start, end in entity.spans:
            whole = [(start, end)] if end - start <= _LONGEST_SHOWN else [(start, start), (end, end)]
            near += [Span(_word_start(text, first), _word_end(text, last)) for first, last in whole]
    excerpt: list[Span] = []
    left = _LONGEST_EXCERPT
    for start, end in _merged(near):
        if left > 0:
            excerpt.append(Span(start, min(end, start + left)))
            left -= end - start
    return excerpt


def _word_start(text: str, offset: int) -> int:
    """Returns where the context before an offset begins: after white space, if there is any."""
    start = max(0, offset - _CONTEXT)
    if start == 0:
        return 0
    return next((place for place in range(start, offset) if text[place - 1].isspace()), start)


def _word_end(text: str, offset: int) -> int:
    end = min(len(text), offset + _CONTEXT)
    if end == len(text):
        return end
    return next((place for place in range(end, offset, -1) if text[place].isspace()), end)


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1].end + _SMALLEST_GAP:
            merged[-1] = Span(merged[-1].start, max(end, merged[-1].end))
        else:
            merged.append(Span(start, end))
    return merged


def _is_shown(spans: Spans, kept: Sequence[Span]) -> bool:
    """Tells whether an entity reaches into what is kept; one of no length, if it lies in it."""
    first, last = spans[0].start, max(end for _, end in spans)
    return any(first <= end and start <= last for start, end in kept)
