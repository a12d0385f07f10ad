"""An LLM's answers become entities in documents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nertool import __version__
from nertool.alignment import WAYS, Aligner, Mention, Place, align
from nertool.answer_parsing import ParsedAnswer, parse_answer
from nertool.documents import Document, Entity, Section, Span, match_text
from nertool.entity_classes import ClassList
from nertool.prompts import SECTION_SEPARATOR, Piece
from nertool.provenance import with_provenance
from nertool.reconciliation import Ledger
from nertool.responses import Answer, ResponseFile

# Sections are joined for the search by what no mention holds, and as long as what joined them for the LLM.
_BORDER = "\0" * len(SECTION_SEPARATOR)


# (label, spans) → entity, of one section.
Found = dict[tuple[str, tuple[Span, ...]], Entity]


@dataclass
class Annotated:
    """A document with the entities that an LLM found.

    Args:
        document: The document; None if none of its sections could be annotated.
        ledger: What became of its answers and mentions.
        set_aside: Everything that didn't become an annotation, with its reason: lines of `quarantine.jsonl`.
    """

    document: Document | None
    ledger: Ledger = field(default_factory=Ledger)
    set_aside: list[dict[str, Any]] = field(default_factory=list)


def choose_answers(document: Document, responses: ResponseFile, classes: ClassList) -> list[Answer]:
    """Returns the recorded answers to use for a document: of those about the same text the latest usable one."""
    chosen: list[Answer] = []
    spare: list[Answer] = []
    for answer in responses.about(document.id):
        if piece_of(document, answer) is None:
            continue
        target = chosen if is_usable(answer, classes) else spare
        if not any(answer.overlaps(other) for other in target):
            target.append(answer)
    chosen += [answer for answer in spare if not any(answer.overlaps(other) for other in chosen)]
    return sorted(chosen, key=lambda answer: (answer.sections, answer.start))


def is_usable(answer: Answer, classes: ClassList) -> bool:
    """Tells whether an answer can be read, even if it names nothing."""
    return _parse(answer, classes).failure is None


def piece_of(document: Document, answer: Answer) -> Piece | None:
    """Returns the text that an answer is about; None if the document isn't what it was any more."""
    if answer.sections[-1] >= len(document.sections):
        return None
    text = SECTION_SEPARATOR.join(document.sections[index].text for index in answer.sections)[answer.start : answer.end]
    piece = Piece(document.id, answer.sections, text, answer.start, answer.end)
    return piece if answer.text in (None, piece.digest) else None


def annotate_document(
    document: Document, answers: Sequence[Answer], classes: ClassList, fuzzy_similarity: float
) -> Annotated:
    """Replaces a document's entities by those in the answers.

    Sections for which there is no usable answer are left out of the result, so that nobody takes their lack of
    entities for a fact (KAZU 2.4.0 makes such an answer "no entities"); they are set aside with the reason.

    Args:
        document: The document.
        answers: Answers about it, none about the same text.
        classes: The classes that count.
        fuzzy_similarity: See `Aligner`.
    """
    result = Annotated(None)
    entities: dict[int, Found] = {}
    covered: dict[int, int] = {}
    for answer in answers:
        piece = piece_of(document, answer)
        if piece is None:
            continue
        parsed = _parse(answer, classes)
        if parsed.failure is not None:
            result.ledger.pieces["unusable"] += 1
            result.ledger.give_example("unusable", f"{parsed.failure}: {answer.response[:80]!r}")
            result.set_aside.append(_refused(piece, parsed.failure, answer.response))
            covered.update(dict.fromkeys(piece.sections, -1))
            continue
        result.ledger.pieces["answered"] += 1
        result.ledger.pieces["cut off"] += parsed.cut_off
        _ground(document, piece, parsed, classes, fuzzy_similarity, entities, result)
        for index in piece.sections:
            length = len(document.sections[index].text) if piece.end is None else piece.end - piece.start
            if covered.get(index, 0) >= 0:
                covered[index] = covered.get(index, 0) + length
    kept = []
    left_out = []
    for index, section in enumerate(document.sections):
        if not section.text.strip() or covered.get(index, 0) == len(section.text):
            found = entities.get(index, {}).values()
            result.ledger.places.update((entity.label, "entities") for entity in found)
            kept.append(replace(section, entities=tuple(sorted(found, key=_order))))
            continue
        left_out.append(index)
        result.ledger.places.update((label, "left out") for label, _ in entities.get(index, ()))
        if covered.get(index, 0) >= 0:
            result.ledger.pieces["missing"] += 1
            result.set_aside.append(_refused(Piece(document.id, (index,), section.text), "there is no answer", None))
    if any(section.text.strip() for section in kept) or not left_out:
        used = [answer for answer in answers if not set(answer.sections) & set(left_out)]
        result.document = _documented(document, kept, left_out, used, result.ledger)
    return result


def _ground(
    document: Document,
    piece: Piece,
    parsed: ParsedAnswer,
    classes: ClassList,
    fuzzy_similarity: float,
    entities: dict[int, Found],
    result: Annotated,
) -> None:
    """Finds the mentions of one answer in its text, and adds them to `entities` (section index → entities)."""
    ledger = result.ledger
    labelled = _labelled(piece, parsed, classes, result)
    text = _BORDER.join(document.sections[index].text for index in piece.sections)[piece.start : piece.end]
    places = align(Aligner(text, fuzzy_similarity), labelled)
    sections = _Sections(document, piece)
    grounded: list[tuple[int, int, Span, tuple[Span, ...], Place, Mention, str]] = []
    for (mention, label), found in zip(labelled, places, strict=True):
        located = [(at, place) for place in found if (at := sections.locate(place.spans)) is not None]
        if not located:
            ledger.mentions[label, "not in the text"] += 1
            ledger.give_example("not in the text", f"{mention.text!r} ({label}) in {document.id}")
            result.set_aside.append(_lost(piece, "not in the text", mention, [label]))
            continue
        best = min(located, key=lambda one: WAYS.index(one[1].way))[1]
        ledger.mentions[label, best.way] += 1
        for (index, spans), place in located:
            grounded.append((WAYS.index(place.way), index, spans[0], spans, place, mention, label))
    # The surest way names an entity that several mentions give.
    for _, index, _, spans, place, mention, label in sorted(grounded, key=lambda one: one[:4]):
        own = entities.setdefault(index, {})
        if (label, spans) in own:
            ledger.places[label, "same place"] += 1
            continue
        match = match_text(document.sections[index].text, spans)
        how: dict[str, Any] = {"found": place.way}
        if place.similarity is not None:
            how["similarity"] = place.similarity
        if match != mention.text:
            how["mention"] = mention.text
            ledger.give_example(place.way, f"{mention.text!r} → {match!r} ({label}) in {document.id}")
        own[label, spans] = Entity(label, spans, match, extra={"metadata": how})


def _labelled(piece: Piece, parsed: ParsedAnswer, classes: ClassList, result: Annotated) -> list[tuple[Mention, str]]:
    """Returns the mentions with their known classes, each pair once."""
    ledger = result.ledger
    labelled: dict[tuple[Mention, str], None] = {}
    for entry in parsed.malformed:
        ledger.mentions["", "malformed"] += 1
        ledger.give_example("malformed", entry)
        result.set_aside.append({**_place(piece), "reason": "malformed", "entry": entry})
    for item in parsed.items:
        for wording in item.classes:
            label = classes.resolve(wording)
            if label is None:
                ledger.mentions["", "unknown class"] += 1
                ledger.unknown[wording] += 1
                ledger.give_example("unknown class", f"{item.mention.text!r} ({wording}) in {piece.document}")
                result.set_aside.append(_lost(piece, "unknown class", item.mention, [wording]))
            elif (item.mention, label) in labelled:
                ledger.mentions[label, "repeated"] += 1
            else:
                labelled[item.mention, label] = None
    return list(labelled)


class _Sections:
    """Tells in which section of a piece a span lies."""

    def __init__(self, document: Document, piece: Piece) -> None:
        self._ranges: list[tuple[int, int, int]] = []
        start = -piece.start
        for index in piece.sections:
            end = start + len(document.sections[index].text)
            self._ranges.append((index, start, end))
            start = end + len(_BORDER)

    def locate(self, spans: tuple[Span, ...]) -> tuple[int, tuple[Span, ...]] | None:
        """Returns the section's index and the spans in its text; None if they aren't all in one."""
        for index, start, end in self._ranges:
            if start <= spans[0].start and spans[-1].end <= end:
                return index, tuple(Span(span.start - start, span.end - start) for span in spans)
        return None


def _documented(
    document: Document, sections: list[Section], left_out: list[int], answers: Iterable[Answer], ledger: Ledger
) -> Document:
    answers = list(answers)
    times = sorted(answer.facts["time"] for answer in answers if "time" in answer.facts)
    facts = {
        "nertool_version": __version__,
        "models": _unique(answer.model for answer in answers),
        "prompts": _unique(answer.facts.get("prompt") for answer in answers),
        "settings": _unique(answer.facts.get("settings") for answer in answers),
        "first_answer": times[0] if times else None,
        "last_answer": times[-1] if times else None,
        "answers": [answer.digest for answer in answers],
        "sections_left_out": left_out,
        "counts": ledger.counts(),
    }
    return with_provenance(
        replace(document, sections=tuple(sections)), {name: fact for name, fact in facts.items() if fact}
    )


def _unique(values: Iterable[Any]) -> list[Any]:
    unique: list[Any] = []
    for value in values:
        if value is not None and value not in unique:
            unique.append(value)
    return unique


def _order(entity: Entity) -> tuple[int, int, str, tuple[Span, ...]]:
    return entity.start, entity.end, entity.label, entity.spans


def _parse(answer: Answer, classes: ClassList) -> ParsedAnswer:
    if answer.failure is not None:
        return ParsedAnswer(failure=answer.failure)
    return parse_answer(answer.response, classes.is_wording)


def _place(piece: Piece) -> dict[str, Any]:
    part = {} if piece.end is None else {"start": piece.start, "end": piece.end}
    return {"document": piece.document, "sections": list(piece.sections), **part}


def _refused(piece: Piece, reason: str, response: str | None) -> dict[str, Any]:
    return {**_place(piece), "reason": reason, "text": piece.text, "response": response}


def _lost(piece: Piece, reason: str, mention: Mention, classes: list[str]) -> dict[str, Any]:
    return {**_place(piece), "reason": reason, "mention": mention.text, "classes": classes}
