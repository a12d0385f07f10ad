"""BioC, as XML or JSON: a collection of documents with passages, which are sections, and annotations in them.

Offsets count from the start of the document. What BioC has no place for is in the infon `nertool` of a document, a
passage or an annotation, as keys of KAZU's JSON, so that nothing is lost.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple
from xml.etree.ElementTree import Element, tostring

from nertool.document_parsing import InvalidDocumentError, Problem, load_json, parse_document
from nertool.documents import Span, match_text
from nertool.extras import require
from nertool.formats.base import NONFINITE, RELATIONS, Record
from nertool.formats.building import ascii_json
from nertool.formats.offsets import CODE_POINTS, UNITS, length, other_unit_note, stands_at, to_code_points

UNPLACED = "annotations without a place in the text, which were left out"
SENTENCE_INFONS = "infons of sentences, which nertool does not use"
NAMESPACE = "bioc"
FACTS = "nertool"  # the infon that other tools have no use for
_NAME_OF_NO_NAME = "text"
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OFFSET = re.compile(r"[0-9]{1,18}")
_LONGEST_GAP = 1000  # between sentences, whose white space BioC doesn't keep
_CHILDREN = {
    "document": ("passage", "annotation", "relation"),
    "passage": ("sentence", "annotation", "relation"),
    "sentence": ("annotation", "relation"),
}
# NCBI's name for what is `metadata["identifiers"]` in nertool.
IDENTIFIER, IDENTIFIERS = "identifier", "identifiers"


def xml_safe(text: str) -> str:
    """Replaces each character that XML can't hold by U+FFFD, so that offsets stay right."""
    return _NOT_XML.sub("\ufffd", text)


def read_bioc(file: Path) -> Iterator[Record]:
    """Reads the documents of a BioC file, XML one at a time, JSON as a whole.

    JSON may be a collection, a list of collections or documents, or what PubTator's server gives.
    """
    with file.open("rb") as source:
        start = source.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        source.seek(0)
        documents = _read_json(file, source) if start[:1] in (b"{", b"[") else _read_xml(file, source)
        yield from documents


def _read_xml(file: Path, source: IO[bytes]) -> Iterator[Record]:
    for number, element in enumerate(_document_elements(source), start=1):
        place = f"{file}: document {number}"
        if isinstance(element, Problem):
            yield Record(place, None, (element,))
        else:
            yield _record(place, _element_to_json(element), partial(_to_bytes, element))


def _to_bytes(element: Element) -> bytes:
    """Returns the XML of a document; nothing of what is nested too deep."""
    try:
        return bytes(tostring(element))
    except RecursionError:
        return b""


def _document_elements(source: IO[bytes]) -> Iterator[Element | Problem]:
    """Yields the documents of a collection, each of which is forgotten after it, and at last what is wrong with it."""
    require("defusedxml")
    from defusedxml import EntitiesForbidden  # noqa: PLC0415
    from defusedxml.ElementTree import ParseError, iterparse  # noqa: PLC0415

    try:
        events = iterparse(source, events=("start", "end"))
        _, root = next(events)
        if root.tag != "collection":
            yield Problem("", f"no BioC: the outermost element is {root.tag!r}, not 'collection'")
            return
        for event, element in events:
            if event == "end" and element.tag == "document":
                yield element
                root.clear()
    except EntitiesForbidden as error:
        yield Problem("", f"declares the entity {error.name!r}, which could fill the memory or fetch other files")
    except (ParseError, LookupError, ValueError) as error:  # the last two: of encodings
        yield Problem("", f"not valid XML: {error}")


def _element_to_json(element: Element) -> dict[str, Any]:
    """Returns what BioC's JSON form would have for an element."""
    infons = defaultdict(list)
    for infon in element.findall("infon"):
        infons[infon.get("key", "")].append("".join(infon.itertext()))
    fields = {child.tag: "".join(child.itertext()) for child in element if child.tag in ("id", "offset", "text")}
    return {
        **element.attrib,
        **fields,
        "infons": {key: values[0] if len(values) == 1 else values for key, values in infons.items()},
        "locations": [location.attrib for location in element.findall("location")],
        **{f"{kind}s": list(map(_element_to_json, element.findall(kind))) for kind in _CHILDREN.get(element.tag, ())},
    }


def _read_json(file: Path, source: IO[bytes]) -> Iterator[Record]:
    data = source.read()
    try:
        content, _ = load_json(data)
    except InvalidDocumentError as error:
        yield Record(str(file), None, tuple(error.problems), data)
        return
    numbers = count(1)
    for top in content if isinstance(content, list) else [content]:
        inside = top.get("documents", top.get("PubTator3")) if isinstance(top, dict) else None
        for raw in inside if isinstance(inside, list) else [top]:
            place = f"{file}: document {next(numbers)}"
            if isinstance(raw, dict) and "passages" in raw:
                yield _record(place, raw, partial(ascii_json, raw))
            else:
                problem = Problem("", "no BioC: a document must be an object with passages")
                yield Record(place, None, (problem,), ascii_json(raw))


def _record(place: str, raw: Mapping[str, Any], data: Callable[[], bytes]) -> Record:
    """Reads one document; if mentions aren't at their offsets, tries whether all are when those count other units."""
    first_problems: list[Problem] = []
    for unit in UNITS:
        reading = _Reading(unit, [], Counter())
        fields = reading.document(raw)
        if not reading.problems:
            break
        first_problems = first_problems or reading.problems
    else:
        return Record(place, None, tuple(first_problems), data())
    try:
        document, nonfinite = parse_document(ascii_json(fields))
    except InvalidDocumentError as error:
        return Record(place, None, tuple(error.problems), data())
    notes = reading.notes
    notes[NONFINITE] = nonfinite
    notes[other_unit_note(unit)] = unit != CODE_POINTS
    return Record(place, document, notes=+notes)


class _Passage(NamedTuple):
    """A passage that was read.

    Args:
        offset: Where it begins in the document.
        text: Its text as it stands in the file.
        to_code_points: Makes of an offset in its text one in code points.
        sentences: Its sentences with their places in the file.
        section: It in KAZU's JSON; annotations are added to its entities.
    """

    offset: int
    text: str
    to_code_points: Callable[[int], int | None]
    sentences: list[tuple[str, Mapping[str, Any]]]
    section: dict[str, Any]


@dataclass
class _Reading:
    """Reads a document in BioC's JSON form to KAZU's JSON, with offsets in one unit.

    Args:
        unit: What offsets count.
        problems: Grows by what is wrong.
        notes: Grows by what is left out.
    """

    unit: str
    problems: list[Problem]
    notes: Counter[str]

    def document(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a document in KAZU's JSON."""
        passages = []
        for place, raw_passage in self._children(raw, "passages", ""):
            passage = self._passage(raw_passage, place)
            passages.append(passage)
            for sentence_place, sentence in passage.sentences:
                self._annotations(sentence, sentence_place, [passage])
            self._annotations(raw_passage, place, [passage])
        self._annotations(raw, "", passages)
        sections = [passage.section for passage in passages]
        return self._fields({"idx": raw.get("id"), "sections": sections}, self._infons(raw, ""), {}, "")

    def _passage(self, raw: Mapping[str, Any], place: str) -> _Passage:
        offset = self._offset(raw.get("offset"), f"{place}.offset")
        infons = self._infons(raw, place)
        name = infons.pop("section_type", None)
        if name is None:
            name = infons.pop("type", _NAME_OF_NO_NAME)
        text, sentences = raw.get("text"), self._children(raw, "sentences", place)
        self.notes[SENTENCE_INFONS] += sum(bool(sentence.get("infons")) for _, sentence in sentences)
        defaults = {}
        if not text and sentences:
            text, spans = self._join(sentences, offset)
            defaults["sentence_spans"] = spans
        if text is not None and not isinstance(text, str):
            self.problems.append(Problem(f"{place}.text", "must be a string"))
            text = None
        text = text or ""
        section = self._fields({"name": name, "text": text, "entities": []}, infons, defaults, place)
        return _Passage(offset, text, to_code_points(text, self.unit), sentences, section)

    def _join(
        self, sentences: Sequence[tuple[str, Mapping[str, Any]]], offset: int
    ) -> tuple[str, list[dict[str, int]]]:
        """Returns the text of a passage that has it in sentences, which begins at `offset`, and their spans."""
        text, spans = "", []
        for place, sentence in sentences:
            start = self._offset(sentence.get("offset"), f"{place}.offset")
            sentence_text = sentence.get("text") or ""
            gap = start - offset
            if not isinstance(sentence_text, str):
                self.problems.append(Problem(f"{place}.text", "must be a string"))
            elif not 0 <= gap <= _LONGEST_GAP:
                reason = f"{start} is no place for a sentence, as the text before it ends at {offset}"
                self.problems.append(Problem(f"{place}.offset", reason))
            else:
                text += " " * gap
                spans.append({"start": len(text), "end": len(text) + len(sentence_text)})
                text += sentence_text
                offset = start + length(sentence_text, self.unit)
        return text, spans

    def _annotations(self, raw: Mapping[str, Any], place: str, passages: Sequence[_Passage]) -> None:
        self.notes[RELATIONS] += len(self._children(raw, "relations", place))
        for annotation_place, annotation in self._children(raw, "annotations", place):
            self._annotation(annotation, annotation_place, passages)

    def _annotation(self, raw: Mapping[str, Any], place: str, passages: Sequence[_Passage]) -> None:
        """Adds an annotation to that of some passages which holds it."""
        before = len(self.problems)
        infons = self._infons(raw, place)
        places: list[tuple[int, int]] = []
        for location_place, location in self._children(raw, "locations", place):
            start = self._offset(location.get("offset"), f"{location_place}.offset")
            places.append((start, start + self._offset(location.get("length"), f"{location_place}.length")))
        if "type" not in infons:
            self.problems.append(Problem(place, "has no infon 'type', which names the class"))
        if len(self.problems) > before:
            return
        if not places:
            self.notes[UNPLACED] += 1
            return
        for passage in passages:
            spans = _spans(places, passage)
            if spans is not None:
                self._entity(raw, infons, passage, spans, place)
                return
        shown = ", ".join(f"{start}–{end}" for start, end in places)
        self.problems.append(Problem(place, f"{shown} is not inside {'its' if len(passages) == 1 else 'a'} passage"))

    def _entity(
        self, raw: Mapping[str, Any], infons: dict[str, Any], passage: _Passage, spans: list[Span], place: str
    ) -> None:
        mention = raw.get("text") or None
        if not isinstance(mention, str):
            if mention is not None or self.unit != CODE_POINTS:  # other units need the evidence
                self.problems.append(Problem(f"{place}.text", "must be a string"))
                return
        elif not stands_at(mention, passage.text, spans):
            found = match_text(passage.text, tuple(spans))
            shown = ", ".join(f"{start + passage.offset}–{end + passage.offset}" for start, end in spans)
            reason = f"{shown} is {found!r} in the text, but the annotation says {mention!r}"
            self.problems.append(Problem(place, reason))
            return
        label = infons.pop("type")
        base = {"entity_class": label, "spans": [span._asdict() for span in spans]}
        text = passage.section["text"]
        defaults = {"match": match_text(text, tuple(sorted(spans))), "namespace": NAMESPACE}
        passage.section["entities"].append(self._fields(base, infons, defaults, place))

    def _fields(
        self, base: dict[str, Any], infons: dict[str, Any], defaults: dict[str, Any], place: str
    ) -> dict[str, Any]:
        """Returns an object of KAZU's JSON: what BioC's own fields say, and what infons add to it."""
        try:
            facts = json.loads(infons.pop(FACTS, "{}"))
            if facts.pop("spans", None) != base.get("spans"):
                facts.pop("match", None)  # it was that of other spans
            as_json = facts.pop("json", [])
            metadata = {key: json.loads(value) if key in as_json else value for key, value in infons.items()}
            if IDENTIFIER in metadata and IDENTIFIERS not in metadata:
                metadata[IDENTIFIERS] = metadata.pop(IDENTIFIER)
            has_metadata = "metadata" in facts or metadata
            metadata.update(facts.pop("metadata", {}))
        except (ValueError, TypeError, AttributeError, RecursionError):
            self.problems.append(Problem(place, f"the infon {FACTS!r} is not what nertool writes"))
            return base
        fields = {**defaults, **facts, **base}
        for key, value in base.items():
            if isinstance(exact := facts.get(key), str) and xml_safe(exact) == value:
                fields[key] = exact
        return {**fields, "metadata": metadata} if has_metadata else fields

    def _infons(self, raw: Mapping[str, Any], place: str) -> dict[str, Any]:
        infons = raw.get("infons") or {}
        if not isinstance(infons, dict):
            self.problems.append(Problem(f"{place}.infons".lstrip("."), "must be an object"))
            return {}
        return {key: value for key, value in infons.items() if value is not None}

    def _children(self, raw: Mapping[str, Any], key: str, place: str) -> list[tuple[str, Mapping[str, Any]]]:
        """Returns the objects of a list, each with its place."""
        place = f"{place}.{key}".lstrip(".")
        children = raw.get(key) or []
        if not isinstance(children, list) or not all(isinstance(child, dict) for child in children):
            self.problems.append(Problem(place, "must be a list of objects"))
            return []
        return [(f"{place}[{index}]", child) for index, child in enumerate(children)]

    def _offset(self, value: Any, place: str) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if isinstance(value, str) and _OFFSET.fullmatch(value.strip()):
            return int(value)
        self.problems.append(Problem(place, f"must be a whole number that is not negative, not {str(value)[:30]!r}"))
        return 0


def _spans(places: Sequence[tuple[int, int]], passage: _Passage) -> list[Span] | None:
    """Returns half-open places of the document as spans of a passage's text, or None if one isn't in it."""
    spans = []
    for start, end in places:
        first, last = (passage.to_code_points(offset - passage.offset) for offset in (start, end))
        if first is None or last is None or first >= last:
            return None
        spans.append(Span(first, last))
    return spans
