"""spaCy's DocBin: a `Doc` for each section, in one `.spacy` file, which spaCy trains from.

All continuous entities are in `doc.spans["sc"]`, and those of them that spaCy's `ner` can learn in `doc.ents`. What a
Doc has no place for is in `doc.user_data`. A DocBin is in memory as a whole, on writing and on reading.
"""

import gc
import re
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import orjson
from pydantic import BaseModel

from nertool.document_parsing import Problem
from nertool.documents import Document, Section, document_to_json
from nertool.extras import require
from nertool.formats.base import BombError, Record, most_unpacked
from nertool.formats.building import build_record, id_from, json_text

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc
    from spacy.tokens import Span as SpacySpan

SPANS_KEY = "sc"  # where spaCy's spancat looks, if nobody says otherwise
_FACTS = "nertool"
_NAMESPACE = "spacy"
_SECTION = "text"
_LONG_WORD = re.compile(r"\S{300}")
_LINGUISTIC = ("TAG", "POS", "LEMMA", "DEP")

OTHER_ENTS = f"entities of doc.ents that doc.spans[{SPANS_KEY!r}] lacks"
OTHER_SPANS = f"spans of groups other than {SPANS_KEY!r}"
OTHER_FACTS = "texts with tags, lemmas, dependencies or categories"


class SpacyWriter:
    """Writes sections as Docs; the file is written when all are there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        require("spacy")
        from spacy.tokens import DocBin  # noqa: PLC0415

        self._docs = DocBin(attrs=["ENT_IOB", "ENT_TYPE", "ENT_KB_ID"], store_user_data=True)
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._docs.to_disk(self.path)

    def write(self, document: Document) -> None:
        """Adds a Doc for each section, or an empty one for a document without sections."""
        facts = document_to_json(document)
        del facts["idx"]
        sections = facts.pop("sections")
        about: dict[str, Any] = {"document": facts}
        if not document.sections:
            self._add(Section("", ""), {"id": document.id, "section": None, _FACTS: json_text(about)})
        for number, section in enumerate(document.sections):
            about["section"] = sections[number]
            name = about["section"].pop("name")
            del about["section"]["text"]
            self._add(section, {"id": document.id, "section": number, "name": name, _FACTS: json_text(about)})
            about = {}  # the document's facts once are enough

    def _add(self, section: Section, user_data: dict[str, Any]) -> None:
        doc = _make_doc(section, _english())
        doc.user_data.update(user_data)
        self._docs.add(doc)


@cache
def _english() -> "Language":
    import spacy  # noqa: PLC0415

    return spacy.blank("en")


def _token_borders(text: str, nlp: "Language") -> set[int]:
    """Returns where spaCy's tokens begin and end; what is very long without a space is given to it in pieces.

    Its tokenizer takes 8 seconds for a row of 10,000 brackets, and four times as long for twice as many.
    """
    pieces = pairwise([0, *(found.end() for found in _LONG_WORD.finditer(text)), len(text)])
    return {
        start + position
        for start, end in pieces
        for token in nlp.tokenizer(text[start:end])
        for position in (token.idx, token.idx + len(token))
    }


def _make_doc(section: Section, nlp: "Language") -> "Doc":
    """Cuts a text as spaCy does for English, and also where an entity begins or ends."""
    from spacy.tokens import Doc, Span  # noqa: PLC0415
    from spacy.util import filter_spans  # noqa: PLC0415

    continuous = [entity for entity in section.entities if len(entity.spans) == 1]
    starts, ends = {entity.start for entity in continuous}, {entity.end for entity in continuous}
    cuts = _token_borders(section.text, nlp)
    words: list[str] = []
    spaces: list[bool] = []
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for start, end in pairwise(sorted({0, len(section.text), *cuts, *starts, *ends})):
        word = section.text[start:end]
        if word == " " and words and not spaces[-1] and start not in starts and end not in ends:
            spaces[-1] = True  # a single space belongs to the token before it, unless an entity needs it
            continue
        first[start], last[end] = len(words), len(words) + 1
        words.append(word)
        spaces.append(False)
    doc = Doc(nlp.vocab, words=words, spaces=spaces)
    spans = []
    for entity in continuous:
        identifiers = entity.extra.get("metadata", {}).get("identifiers")
        kb_id = identifiers if isinstance(identifiers, str) else ""
        spans.append(Span(doc, first[entity.start], last[entity.end], entity.label, kb_id=kb_id))
    doc.spans[SPANS_KEY] = spans
    # For spaCy's ner, an entity that begins or ends with white space is faulty (`spacy debug data`).
    doc.set_ents(filter_spans([span for span in spans if not (span[0].is_space or span[-1].is_space)]))
    return doc


class _Facts(BaseModel):
    """What is in `user_data["nertool"]`, as JSON: KAZU's JSON of document and section but for id, name and texts."""

    document: dict[str, Any] = {}
    section: dict[str, Any] = {}


class _Part(NamedTuple):
    """What a Doc holds.

    Args:
        identifier: Of the document; None if nertool didn't write it.
        document: The document's other facts.
        number: Which section it is; None if the document has none.
        section: KAZU's JSON of the section, as bytes.
        notes: What was left out.
    """

    identifier: str | None
    document: dict[str, Any]
    number: int | None
    section: bytes
    notes: Counter[str]


class _Place(NamedTuple):
    start: int
    end: int
    label: str


def read_spacy(file: Path) -> Iterator[Record]:
    """Reads a DocBin; Docs that nertool wrote and that have the same id are sections of one document.

    Another Doc is a document with one section. Its entities are `doc.spans["sc"]`, or `doc.ents` if there are none.
    """
    documents: dict[str, dict[int | None, _Part]] = {}
    places: dict[str, str] = {}
    for index, part in enumerate(_read_parts(file.read_bytes()), start=1):
        place = f"{file}:{index}"
        if isinstance(part, Problem):
            yield Record(place, None, (part,))
            continue
        identifier = f"{id_from(file)}-{index}" if part.identifier is None else part.identifier
        sections = documents.setdefault(identifier, {})
        if part.number in sections:
            problem = Problem("", f"section {part.number} of {identifier!r} is in the file already")
            yield Record(place, None, (problem,), part.section)
        else:
            sections[part.number] = part
            places.setdefault(identifier, place)
    for identifier, sections in documents.items():
        parts = [part for _, part in sorted(sections.items(), key=lambda item: item[0] or 0)]
        document = {key: value for part in parts for key, value in part.document.items()}
        found = [part.section for part in parts if part.number is not None]
        result = {"idx": identifier, **document, "sections": [orjson.Fragment(section) for section in found]}
        notes = sum((part.notes for part in parts), Counter[str]())
        yield build_record(places[identifier], result, b"\n".join(found), notes)


def _read_parts(data: bytes) -> Iterator[_Part | Problem]:
    """Reads each Doc, or says what is wrong with it. DocBins are msgpack: no code in them can run."""
    require("spacy")
    from spacy.tokens import DocBin  # noqa: PLC0415
    from spacy.vocab import Vocab  # noqa: PLC0415

    vocab = Vocab()
    try:
        unpacking = zlib.decompressobj()  # a first time, as spaCy asks no questions
        unpacking.decompress(data, most_unpacked(len(data)))
        if unpacking.unconsumed_tail:
            raise BombError
        docs = DocBin().from_bytes(data)
        for string in docs.strings:
            vocab.strings.add(string)
    except Exception as error:  # noqa: BLE001 (spaCy and msgpack raise anything on files that are none of theirs)
        gc.enable()  # spaCy leaves it off then
        yield Problem("", f"not a DocBin of spaCy, or a damaged one: {error}")
        return
    for number in range(len(docs)):
        single = DocBin()  # so that a damaged Doc doesn't hide the next ones
        single.attrs = docs.attrs
        try:
            for name in ("tokens", "spaces", "cats", "span_groups", "user_data", "flags"):
                setattr(single, name, getattr(docs, name)[number : number + 1])
            (doc,) = single.get_docs(vocab)
            part: _Part | Problem = _read_part(doc)
        except Exception as error:  # noqa: BLE001 (as above)
            gc.enable()
            part = Problem("", f"a damaged Doc: {error}")
        yield part


def _read_part(doc: "Doc") -> _Part:
    groups = {key: [_describe(span) for span in group] for key, group in doc.spans.items()}
    ents = [_describe(span) for span in doc.ents]
    spans = groups.pop(SPANS_KEY, []) or ents
    linked = {place: kb_id for place, kb_id in ents if kb_id}
    notes = {
        OTHER_ENTS: len({place for place, _ in ents} - {place for place, _ in spans}),
        OTHER_SPANS: sum(map(len, groups.values())),
        OTHER_FACTS: int(len(doc) > 0 and (bool(doc.cats) or any(map(doc.has_annotation, _LINGUISTIC)))),
    }
    identifier, facts = doc.user_data.get("id"), doc.user_data.get(_FACTS)
    if not isinstance(identifier, str) or not isinstance(facts, str):
        plain = {"name": _SECTION, "text": doc.text, "entities": _match(spans, linked, [], doc.text)}
        return _Part(None, {}, 0, orjson.dumps(plain), +Counter(notes))
    known = _Facts.model_validate(orjson.loads(facts))
    number = doc.user_data["section"]
    if number is not None and type(number) is not int:
        raise ValueError(f"user_data['section'] must be a number, not {number!r}")
    entities = _match(spans, linked, known.section.get("entities", []), doc.text)
    section = {**known.section, "name": doc.user_data.get("name"), "text": doc.text, "entities": entities}
    return _Part(identifier, known.document, number, orjson.dumps(section), +Counter(notes))


def _describe(span: "SpacySpan") -> tuple[_Place, str]:
    return _Place(span.start_char, span.end_char, span.label_), span.kb_id_


def _match(
    spans: Sequence[tuple[_Place, str]], linked: Mapping[_Place, str], known: Sequence[dict[str, Any]], text: str
) -> list[dict[str, Any]]:
    """Returns KAZU's JSON of the entities: as it was written where it still fits the spans, which are the truth.

    Args:
        spans: Where the entities are, and their `kb_id`s.
        linked: The `kb_id`s of `doc.ents`, where spaCy's entity linker writes: the new ones of them count, too.
        known: KAZU's JSON of the entities as they were written.
        text: The section's text.
    """
    unchanged: defaultdict[tuple[_Place, str], deque[int]] = defaultdict(deque)
    entities: dict[int, dict[str, Any]] = {}
    for number, entity in enumerate(known):
        if len(entity["spans"]) == 1:
            (span,) = entity["spans"]
            unchanged[_Place(span["start"], span["end"], entity["entity_class"]), _kb_id(entity)].append(number)
        else:
            entities[number] = entity
    new = {place: kb_id for place, kb_id in linked.items() if (place, kb_id) not in unchanged}
    changed = []
    for number, (place, kb_id) in enumerate(spans, start=len(known)):
        if same := unchanged[place, kb_id]:
            old = same.popleft()
            entities[old] = _with_kb_id(known[old], new.pop(place, kb_id))
        else:
            changed.append((number, place, kb_id))
    left: defaultdict[_Place, deque[int]] = defaultdict(deque)
    for number in sorted(number for numbers in unchanged.values() for number in numbers):
        (span,) = known[number]["spans"]
        left[_Place(span["start"], span["end"], known[number]["entity_class"])].append(number)
    for number, place, kb_id in changed:
        if same := left[place]:
            old = same.popleft()
            entities[old] = _with_kb_id(known[old], kb_id or new.pop(place, ""))
        else:
            entity = {
                "entity_class": place.label, "match": text[place.start : place.end], "namespace": _NAMESPACE,
                "spans": [{"start": place.start, "end": place.end}],
            }  # fmt: skip
            entities[number] = _with_kb_id(entity, kb_id or new.pop(place, ""))
    return [entities[number] for number in sorted(entities)]


def _kb_id(entity: Mapping[str, Any]) -> str:
    """Returns what of an entity in KAZU's JSON is a span's `kb_id`."""
    identifiers = entity.get("metadata", {}).get("identifiers")
    return identifiers if isinstance(identifiers, str) else ""


def _with_kb_id(entity: dict[str, Any], kb_id: str) -> dict[str, Any]:
    if kb_id == _kb_id(entity):
        return entity
    metadata = {key: value for key, value in entity.get("metadata", {}).items() if key != "identifiers"}
    metadata |= {"identifiers": kb_id} if kb_id else {}
    others = {key: value for key, value in entity.items() if key != "metadata"}
    return {**others, "metadata": metadata} if metadata else others
