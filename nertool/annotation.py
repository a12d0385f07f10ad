"""An LLM's answers become entities in documents."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nertool import __version__
from nertool.alignment import WAYS, Aligner, Mention, Place, align
from nertool.answer_parsing import ParsedAnswer, parse_answer
from nertool.documents import Document, Entity, Section, Span, match_text
from nertool.entity_classes import ClassList
from nertool.prompts import SECTION_SEPARATOR, Piece, overlap
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
    """Returns the recorded answers to use for a document: about each text the latest usable one.

    Answers about parts of a section count if the parts make up the whole; else an older answer about it is better.
    """
    usable: list[Answer] = []
    rest: list[Answer] = []
    places = set()
    for answer in responses.about(document.id):
        if piece_of(document, answer) is None:
            continue
        if is_usable(answer, classes):
            if answer.place not in places:
                places.add(answer.place)
                usable.append(answer)
        else:
            rest.append(answer)
    chosen: list[Answer] = []
    for answer in usable:
        group = [answer] if answer.end is None else _parts_of_whole(document, answer, usable)
        if group and not any(overlap(one.place, other.place) for one in group for other in chosen):
            chosen += group
    for answer in [*usable, *rest]:  # what is only good for telling why its section is left out
        if not any(overlap(answer.place, other.place) for other in chosen):
            chosen.append(answer)
    return sorted(chosen, key=lambda answer: (answer.sections, answer.start))


def _parts_of_whole(document: Document, part: Answer, usable: list[Answer]) -> list[Answer]:
    """Returns the answers, `part` among them, about parts that follow one another through its whole section."""
    own = [answer for answer in usable if answer.sections == part.sections and answer.end is not None]
    length = len(document.sections[part.sections[0]].text)
    chain: list[Answer] = []
    at = 0
    while at < length:
        following = next((answer for answer in own if answer.start == at), None)  # the latest that begins here
        if following is None or following.end is None or following.end <= at:
            return []
        chain.append(following)
        at = following.end
    return chain if part in chain and at == length else []


def is_usable(answer: Answer, classes: ClassList) -> bool:
    """Tells whether an answer can be read, even if it names nothing."""
    return _parse(answer, classes).failure is None


def is_whole(answer: Answer, classes: ClassList) -> bool:
    """Tells whether an answer can be read and wasn't cut off."""
    parsed = _parse(answer, classes)
    return parsed.failure is None and not parsed.cut_off


def piece_of(document: Document, answer: Answer) -> Piece | None:
    """Returns the text that an answer is about; None if the document isn't what it was any more."""
    if max(answer.sections) >= len(document.sections):
        return None
    text = SECTION_SEPARATOR.join(document.sections[index].text for index in answer.sections)[answer.start : answer.end]
    piece = Piece(document.id, answer.sections, text, answer.start, answer.end)
    return piece if answer.text in (None, piece.digest) else None


def annotate_document(
    document: Document,
    answers: Sequence[Answer],
    expected: Sequence[Piece],
    classes: ClassList,
    fuzzy_similarity: float,
) -> Annotated:
    """Replaces a document's entities by those in the answers.

    Sections for which there is no usable answer are left out of the result, so that nobody takes their lack of
    entities for a fact (KAZU 2.4.0 makes such an answer "no entities"); they are set aside with the reason.

    Args:
        document: The document.
        answers: Answers about it, none about the same text.
        expected: What is asked for by the settings, to count what has no answer.
        classes: The classes that count.
        fuzzy_similarity: See `Aligner`.
    """
    result = Annotated(None)
    entities: dict[int, Found] = {}
    answered: Counter[int] = Counter()  # section → characters with a usable answer
    refused: set[int] = set()
    cut_off: set[int] = set()
    for answer in answers:
        piece = piece_of(document, answer)
        if piece is None:
            continue
        result.ledger.pieces["given"] += 1
        parsed = _parse(answer, classes)
        if parsed.failure is not None:
            result.ledger.pieces["unusable"] += 1
            result.ledger.give_example("unusable", f"{parsed.failure}: {answer.response[:80]!r}")
            result.set_aside.append(_refused(piece, parsed.failure, answer.response))
            refused.update(piece.sections)
            continue
        result.ledger.pieces["answered"] += 1
        if parsed.cut_off:
            result.ledger.pieces["cut off"] += 1
            cut_off.update(piece.sections)
        _ground(document, piece, parsed, classes, fuzzy_similarity, entities, result)
        for index in piece.sections:
            answered[index] += len(document.sections[index].text) if piece.end is None else len(piece.text)
    kept: list[Section] = []
    left_out: list[int] = []
    for index, section in enumerate(document.sections):
        found = entities.get(index, {})
        if section.text.strip() and (index in refused or answered[index] < len(section.text)):
            left_out.append(index)
            result.ledger.places.update((label, "left out") for label, _ in found)
        else:
            result.ledger.places.update((label, "entities") for label, _ in found)
            kept.append(replace(section, entities=tuple(sorted(found.values(), key=_order))))
    for piece in expected:
        if set(piece.sections) & set(left_out) and not any(overlap(piece.place, answer.place) for answer in answers):
            result.ledger.pieces["given"] += 1
            result.ledger.pieces["missing"] += 1
            result.set_aside.append(_refused(piece, "there is no answer", None))
    if any(section.text.strip() for section in kept) or not left_out:
        used = [answer for answer in answers if not set(answer.sections) & set(left_out)]
        facts = {"sections_left_out": left_out, "sections_cut_off": sorted(cut_off - set(left_out))}
        result.document = _documented(document, kept, used, facts | {"counts": result.ledger.counts()})
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
        ledger.found_places += len(found)
        located = [(at, place) for place in found if (at := sections.locate(place.spans)) is not None]
        ledger.places[label, "left out"] += len(found) - len(located)  # across the border of two sections
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
    ledger.given_mentions += len(parsed.malformed) + sum(len(item.classes) for item in parsed.items)
    for entry in parsed.malformed:
        ledger.mentions["", "malformed"] += 1
        ledger.give_example("malformed", entry)
        result.set_aside.append({**piece.to_json(), "reason": "malformed", "entry": entry})
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
    document: Document, sections: list[Section], answers: Sequence[Answer], more: dict[str, Any]
) -> Document:
    times = sorted(answer.facts["time"] for answer in answers if "time" in answer.facts)
    facts = {
        "nertool_version": __version__,
        "models": _unique(answer.model for answer in answers),
        "prompts": _unique(answer.facts.get("prompt") for answer in answers),
        "settings": _unique(answer.facts.get("settings") for answer in answers),
        "first_answer": times[0] if times else None,
        "last_answer": times[-1] if times else None,
        "answers": [answer.digest for answer in answers],
        **more,
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
    parsed = parse_answer(answer.response, classes.is_wording)
    parsed.cut_off = parsed.cut_off or answer.facts.get("finish_reason") == "length"
    return parsed


def _refused(piece: Piece, reason: str, response: str | None) -> dict[str, Any]:
    return {**piece.to_json(), "reason": reason, "text": piece.text, "response": response}


def _lost(piece: Piece, reason: str, mention: Mention, classes: list[str]) -> dict[str, Any]:
    return {**piece.to_json(), "reason": reason, "mention": mention.text, "classes": classes}
