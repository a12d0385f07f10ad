"""BRAT: `ID.ann`, with a line for each annotation, beside `ID.txt`, the text.

What a line has no place for is in a note of the type `nertool` on the entity, as keys of KAZU's JSON; brat shows it as
a comment. Offsets count code points of the text as it is in the file, whatever its line ends.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

from nertool.document_parsing import InvalidDocumentError, Problem, parse_document
from nertool.documents import Document, Span, document_to_json, match_text
from nertool.formats.base import NONFINITE, RELATIONS, FolderWriter, Record
from nertool.formats.offsets import CODE_POINTS, UNITS, other_unit_note, stands_at, to_code_points
from nertool.formats.text import BETWEEN_SECTIONS, SECTION, text_losses

NAMESPACE = "brat"
CONFIGURATION_FILES = {"annotation.conf", "visual.conf", "tools.conf", "kb_shortcuts.conf"}
_NOTE = "nertool"
_BYTE_ORDER_MARK = "\ufeff"
_LEFT_OUT = {
    "A": "attributes, which nertool does not use",
    "M": "attributes, which nertool does not use",
    "R": RELATIONS,
    "*": RELATIONS,
    "E": "events, which nertool does not use",
    "#": "notes, which nertool does not use",
}
UNTIED = "normalisations and notes of what is no entity, which were left out"
_ENTITY_LINE = re.compile(r"(T\S*)\t(\S.*?) ([0-9]{1,18} [0-9]{1,18}(?:;[0-9]{1,18} [0-9]{1,18})*)(?:\t(.*))?")
_IDENTIFIER_LINE = re.compile(r"N\S*\t\S+ (\S+) (\S+?:\S+)(?:\t.*)?")
_NOTE_LINE = re.compile(rf"#\S*\t{_NOTE} (\S+)\t(.*)")
_IDENTIFIERS = re.compile(r"[^\s:,]+:[^\s,]+(,[^\s:,]+:[^\s,]+)*")
_NOT_IN_TYPES = re.compile(r"[^A-Za-z0-9_-]")
# Characters that no program takes for the end of a line; brat can have no others in an entity.
_WITHIN_LINES = re.compile("[^\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+")
_CONFIGURATION = """[entities]
{types}
[relations]
<OVERLAP>	Arg1:<ENTITY>, Arg2:<ENTITY>, <OVL-TYPE>:<ANY>
[events]
[attributes]
"""


def text_file(file: Path) -> Path:
    """Returns where the text of an annotation file is."""
    return file.with_suffix(".txt")


# Reading


def read_brat(file: Path) -> Iterator[Record]:
    """Reads the one document of an annotation file; its name without the ending is the id.

    Normalisations go to `metadata["identifiers"]`; what else brat has is counted and left out.
    """
    data = file.read_bytes()
    try:
        text_data = text_file(file).read_bytes()
    except FileNotFoundError:
        problem = Problem("", f"its text is missing: {text_file(file).name} must be beside it")
        yield Record(str(file), None, (problem,), data)
        return
    try:
        file.stem.encode()
        lines, text = data.decode().removeprefix(_BYTE_ORDER_MARK).split("\n"), text_data.decode()
    except UnicodeEncodeError:
        problem = Problem("", "the file's name, which becomes the id, is not UTF-8")
        yield Record(ascii(str(file)), None, (problem,), data)
    except UnicodeDecodeError as error:
        name = file.name if error.object == data else text_file(file).name
        problem = Problem("", f"{name} is not UTF-8: {error.reason} at byte {error.start}")
        yield Record(str(file), None, (problem,), data)
    else:
        yield _parse(file, data, [line.removesuffix("\r") for line in lines], text)


class _EntityLine(NamedTuple):
    """A line of an entity; its places may be in any order and unit."""

    place: str
    label: str
    places: tuple[tuple[int, int], ...]
    mention: str | None


class _Lines:
    """What the lines of an annotation file say, entities and what is tied to them by their ids."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.problems: list[Problem] = []
        self.notes: Counter[str] = Counter()
        self.entities: dict[str, _EntityLine] = {}
        self.identifiers: defaultdict[str, list[str]] = defaultdict(list)
        self.facts: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._read(f"line {number}", line)
        for known in (self.identifiers, self.facts):
            self.notes[UNTIED] += len(known.keys() - self.entities.keys())

    def _read(self, place: str, line: str) -> None:
        if entity := _ENTITY_LINE.fullmatch(line):
            if entity[1] in self.entities:
                self.problems.append(Problem(place, f"a second {entity[1]}"))
            ends = (pair.split(" ") for pair in entity[3].split(";"))
            places = tuple((int(start), int(end)) for start, end in ends)
            self.entities[entity[1]] = _EntityLine(place, entity[2], places, entity[4] or None)
        elif identifier := _IDENTIFIER_LINE.fullmatch(line):
            self.identifiers[identifier[1]].append(identifier[2])
        elif note := _NOTE_LINE.fullmatch(line):
            try:
                facts = json.loads(note[2])
            except (ValueError, RecursionError):
                facts = None
            if isinstance(facts, dict) and isinstance(facts.get("metadata", {}), dict):
                self.facts[note[1]] = facts
            else:
                self.problems.append(Problem(place, f"the note {_NOTE!r} is not what nertool writes"))
        elif line[0] in _LEFT_OUT:
            self.notes[_LEFT_OUT[line[0]]] += 1
        else:
            expected = "an entity (ID, class and offsets, mention; tab-separated) nor another line of brat's"
            self.problems.append(Problem(place, f"neither {expected}"))


def _parse(file: Path, data: bytes, lines: Sequence[str], text: str) -> Record:
    """Reads a document; if mentions aren't at their offsets, tries whether all are when those count something else.

    brat counts a byte-order mark as a character of the text; other tools may not.
    """
    found = _Lines(lines)
    first_problems: list[Problem] = []
    for unit, section_text in product(UNITS, dict.fromkeys([text, text.removeprefix(_BYTE_ORDER_MARK)])):
        problems = list(found.problems)
        entities = _entities(found, section_text, unit, problems)
        if not problems:
            break
        first_problems = first_problems or problems
    else:
        return Record(str(file), None, tuple(first_problems), data)
    fields = {"idx": file.stem, "sections": [{"name": SECTION, "text": section_text, "entities": entities}]}
    try:
        document, nonfinite = parse_document(json.dumps(fields).encode())
    except InvalidDocumentError as error:
        return Record(str(file), None, tuple(error.problems), data)
    except RecursionError:
        return Record(str(file), None, (Problem("", "a note of nertool is nested too deeply"),), data)
    found.notes[NONFINITE] = nonfinite
    found.notes[other_unit_note(unit)] = unit != CODE_POINTS
    return Record(str(file), document, notes=+found.notes)


def _entities(found: _Lines, text: str, unit: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """Returns entities in KAZU's JSON, from offsets in some unit."""
    convert = to_code_points(text, unit)
    entities = []
    for identifier, line in found.entities.items():
        ends = [(convert(start), convert(end)) for start, end in line.places]
        spans = [Span(start, end) for start, end in ends if start is not None and end is not None and start < end]
        shown = ", ".join(f"{start}–{end}" for start, end in line.places)
        if len(spans) < len(ends):
            problems.append(Problem(line.place, f"{shown} is not a place in the text"))
        elif line.mention is None and unit != CODE_POINTS:
            problems.append(Problem(line.place, "has no mention"))
        elif line.mention is not None and not stands_at(line.mention, text, spans):
            is_there = match_text(text, tuple(spans))
            reason = f"{shown} is {is_there!r} in the text, but the line says {line.mention!r}"
            problems.append(Problem(line.place, reason))
        else:
            facts, identifiers = found.facts.get(identifier, {}), found.identifiers.get(identifier, [])
            entities.append(_entity(line.label, tuple(sorted(spans)), text, facts, identifiers))
    return entities


def _entity(
    label: str, fragments: tuple[Span, ...], text: str, facts: dict[str, Any], identifiers: Sequence[str]
) -> dict[str, Any]:
    """Returns an entity in KAZU's JSON.

    Args:
        label: The class, as brat writes it.
        fragments: Its spans, as brat has them.
        text: The section's text.
        facts: What its note says; class and spans count only as long as they fit what brat says.
        identifiers: What it was normalised to.
    """
    exact_label = facts.get("entity_class")
    if isinstance(exact_label, str) and _type_name(exact_label) == label:
        label = exact_label
    spans = _without_line_breaks(text, fragments)
    exact = _spans(facts.get("spans"))
    if _fragments(text, exact) == fragments:
        spans = exact
    else:
        facts = {key: value for key, value in facts.items() if key != "match"}  # it was that of other spans
    fields = {"match": match_text(text, spans), "namespace": NAMESPACE, **facts, "entity_class": label}
    if identifiers:
        fields["metadata"] = {**fields.get("metadata", {}), "identifiers": ",".join(identifiers)}
    return {**fields, "spans": [span._asdict() for span in spans]}


def _spans(value: Any) -> tuple[Span, ...]:
    """Returns the spans of a note, none if it has none."""
    if not isinstance(value, list) or not all(
        isinstance(item, dict) and item.keys() == {"start", "end"} for item in value
    ):
        return ()
    spans = tuple(Span(**item) for item in value)
    return spans if all(type(end) is int for span in spans for end in span) else ()


# Writing


class BratWriter(FolderWriter):
    """Writes each document to two files in a folder, and the classes to `annotation.conf`.

    The sections become one text, with a blank line between them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._types: set[str] = set()

    def __exit__(self, *exception: object) -> None:
        types = "".join(f"{name}\n" for name in sorted(self._types))
        (self.path / "annotation.conf").write_text(_CONFIGURATION.format(types=types))

    def write(self, document: Document) -> None:
        """Writes `ID.ann` and `ID.txt`."""
        text = BETWEEN_SECTIONS.join(section.text for section in document.sections)
        lines: list[str] = []
        shift = number = 0
        self._references = count(1)  # brat wants each id once in a file
        for section in document_to_json(document)["sections"]:
            for entity in section.get("entities", []):
                spans = tuple(Span(span["start"] + shift, span["end"] + shift) for span in entity.pop("spans"))
                if _fragments(text, spans):
                    number += 1
                    lines += self._lines(number, entity, spans, text)
            shift += len(section["text"]) + len(BETWEEN_SECTIONS)
        file = self.path / self._names.make(document.id, ".ann")
        file.write_bytes("".join(f"{line}\n" for line in lines).encode())
        text_file(file).write_bytes(text.encode())

    def _lines(self, number: int, entity: dict[str, Any], spans: tuple[Span, ...], text: str) -> Iterator[str]:
        fragments = _fragments(text, spans)
        label = entity.pop("entity_class")
        name = _type_name(label)
        self._types.add(name)
        places = ";".join(f"{start} {end}" for start, end in fragments)
        mention = match_text(text, fragments)
        yield f"T{number}\t{name} {places}\t{mention}"
        metadata = entity.get("metadata", {})
        identifiers = metadata.get("identifiers")
        if isinstance(identifiers, str) and _IDENTIFIERS.fullmatch(identifiers):
            for part in identifiers.split(","):
                yield f"N{next(self._references)}\tReference T{number} {part}\t{mention}"
            metadata = {key: value for key, value in metadata.items() if key != "identifiers"}
            entity = {key: value for key, value in entity.items() if key != "metadata"}
            entity |= {"metadata": metadata} if metadata else {}
        known = {
            "match": match_text(text, spans),
            "namespace": NAMESPACE,
            "start": entity["start"],
            "end": entity["end"],
        }
        facts = {key: value for key, value in entity.items() if known.get(key) != value}
        if name != label:
            facts["entity_class"] = label
        if _without_line_breaks(text, fragments) != spans or "match" in facts:
            facts["spans"] = [span._asdict() for span in spans]
        if facts:
            yield f"#{number}\t{_NOTE} T{number}\t{json.dumps(facts)}"


def brat_losses(document: Document) -> Counter[str]:
    """Counts what of a document brat's files can't hold."""
    losses = text_losses(document, ".ann")
    losses["entities"] = 0
    losses["entities of nothing but line breaks (left out)"] = sum(
        not _fragments(section.text, entity.spans) for section in document.sections for entity in section.entities
    )
    return +losses


def _type_name(label: str) -> str:
    """Returns the name of a class in brat, where it may have only few characters."""
    return _NOT_IN_TYPES.sub("_", label)


def _fragments(text: str, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Returns spans as brat has them: apart from each other and each within a line."""
    apart: list[Span] = []
    for start, end in spans:
        if apart and start <= apart[-1].end:
            first = apart.pop()
            apart.append(Span(first.start, max(first.end, end)))
        else:
            apart.append(Span(start, end))
    lines = ((start, line) for start, end in apart for line in _WITHIN_LINES.finditer(text[start:end]))
    return tuple(Span(start + line.start(), start + line.end()) for start, line in lines)


def _without_line_breaks(text: str, fragments: tuple[Span, ...]) -> tuple[Span, ...]:
    """Joins fragments that only line breaks part: so brat writes an entity that goes on in the next line."""
    joined: list[Span] = []
    for start, end in fragments:
        if joined and not _WITHIN_LINES.search(text[joined[-1].end : start]):
            first = joined.pop()
            joined.append(Span(first.start, max(first.end, end)))
        else:
            joined.append(Span(start, end))
    return tuple(joined)
