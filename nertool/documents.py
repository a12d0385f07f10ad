"""Documents, sections and entities, and their JSON form: KAZU's Document JSON, read and written without loss.

The JSON form is what KAZU 2.4.0 itself reads and writes. Fields that nertool doesn't use are kept as they were, in
`extra`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

NAMESPACE = "nertool"
# orjson writes nothing that is nested deeper than 254 levels.
_MOST_LEVELS_AROUND = 8


class Span(NamedTuple):
    """Half-open character offsets, in Unicode code points, into a section's text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Entity:
    """A labelled mention.

    Args:
        label: The class (KAZU's `entity_class`).
        spans: One span, or several in text order if the mention is discontinuous.
        match: The mention's text.
        namespace: What found it.
        score: The probability that a model gave it, in [0, 1]; kept in `metadata["score"]`.
        extra: All other fields of the JSON object, untouched.
    """

    label: str
    spans: tuple[Span, ...]
    match: str
    namespace: str = NAMESPACE
    score: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def start(self) -> int:
        """The first character of the mention."""
        return self.spans[0].start

    @property
    def end(self) -> int:
        """One past the last character of the mention."""
        return self.spans[0].end if len(self.spans) == 1 else max(span.end for span in self.spans)


@dataclass(frozen=True, slots=True)
class Section:
    """A named text with its entities."""

    name: str
    text: str
    entities: tuple[Entity, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Document:
    """A text in sections.

    Args:
        id: The document's id (KAZU's `idx`).
        sections: Its sections.
        extra: All other fields of the JSON object, untouched.
    """

    id: str
    sections: tuple[Section, ...]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)


def match_text(text: str, spans: tuple[Span, ...]) -> str:
    """Returns the text of a mention; the parts of a discontinuous one are joined by a space."""
    return " ".join(text[start:end] for start, end in spans)


def dump_document(document: Document) -> bytes:
    """Writes one document as a line of KAZU's Document JSON, without a line end."""
    return orjson.dumps(document_to_json(document))


def document_to_json(document: Document) -> dict[str, Any]:
    """Returns the JSON object of a document; fields with nothing in them are left out, as KAZU does."""
    return {"idx": document.id, "sections": list(map(_section_to_json, document.sections)), **document.extra}


def check_writable(value: Any) -> None:
    """Makes sure that something can be written as JSON, also within a document or a task of Label Studio.

    Raises:
        TypeError: If it holds half of a surrogate pair or a number beyond 64 bits, or is nested too deeply.
    """
    for _ in range(_MOST_LEVELS_AROUND):
        value = [value]
    orjson.dumps(value)


def content_digest(document: Document) -> str:
    """Returns a SHA-256 hex digest of the texts and entities, whatever the id, file or order of entities."""
    digest = hashlib.sha256()
    for section in document.sections:
        entities = sorted((entity.label, [[*span] for span in entity.spans]) for entity in section.entities)
        digest.update(orjson.dumps([section.name, section.text, entities]))
    return digest.hexdigest()


def _section_to_json(section: Section) -> dict[str, Any]:
    result: dict[str, Any] = {"name": section.name, "text": section.text, **section.extra}
    if section.entities:
        result["entities"] = list(map(_entity_to_json, section.entities))
    return result


def _entity_to_json(entity: Entity) -> dict[str, Any]:
    result: dict[str, Any] = {
        "match": entity.match,
        "entity_class": entity.label,
        "spans": [{"start": start, "end": end} for start, end in entity.spans],
        "namespace": entity.namespace,
        **entity.extra,
        "start": entity.start,
        "end": entity.end,
    }
    if entity.score is not None:
        result["metadata"] = {**result.get("metadata", {}), "score": entity.score}
    return result
