"""Reading documents from KAZU's Document JSON, with everything that is wrong reported at once.

Deliberate differences from KAZU's reader: what it accepts although it is wrong (a span past the end of the text, `null`
as a text, …) is reported as a `Problem`; `NaN` becomes `null` and is counted; a byte-order mark is skipped.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from nertool.documents import Document, Entity, Section, Span, check_writable, content_digest, document_to_json
from nertool.errors import nearest_name

_DOCUMENT_KEYS = {"idx", "sections", "metadata"}
_SECTION_KEYS = {"text", "name", "metadata", "entities", "sentence_spans"}
_ENTITY_KEYS = {
    "match", "entity_class", "spans", "namespace", "mention_confidence", "_id", "mappings", "metadata", "start", "end",
    "match_norm", "linking_candidates",
}  # fmt: skip
# Written anew from the spans, which are the truth: KAZU ignores what stands there, too.
_DERIVED_KEYS = {"start", "end"}
# What an `Entity` has fields for.
_OWN_KEYS = {"entity_class", "match", "namespace", "spans", *_DERIVED_KEYS}
_LIST_HINT = "; an export of Label Studio is read by nertool convert --from labelstudio"
# What numbers look like that orjson rounds (beyond 64 bits) or makes infinite (beyond 1e308) without a word, in text of
# which each digit was replaced by 0; so looked for, they take a tenth of the time of a regular expression.
_DIGITS_TO_0 = bytes.maketrans(b"123456789E", b"000000000e")
_HUGE_NUMBERS = (b"0" * 19, b"0e000", b"0e+000")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one place of a document, such as `sections[0].entities[3].spans[0]`."""

    place: str
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.place}: {self.reason}" if self.place else self.reason)


def printable(text: str) -> str:
    """Returns a text with halves of surrogate pairs, which no UTF-8 file can store, as escapes.

    They stand for the bytes of a file's name that are not UTF-8, or come from JSON.
    """
    return text.encode(errors="backslashreplace").decode()


class InvalidDocumentError(Exception):
    """A document can't be used; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


class ParsedDocument(NamedTuple):
    """A document, and what was harmlessly changed on reading it."""

    document: Document
    nonfinite_numbers: int


def parse_document(data: bytes) -> ParsedDocument:
    """Reads one document from KAZU's Document JSON.

    Args:
        data: UTF-8 JSON, with or without a byte-order mark.

    Returns:
        The document, and how many `NaN` or infinite numbers (which are not JSON) became `null`. A document without
        an id gets one from its content.

    Raises:
        InvalidDocumentError: With everything that is wrong, not only the first thing.
    """
    raw, nonfinite = load_json(data)
    problems: list[Problem] = []
    document = _document(raw, problems)
    if not problems and document is not None:
        try:
            _check_writable(raw, document)
        except TypeError as error:  # in metadata, which may hold anything: half a surrogate pair, a 70-bit number
            problems.append(Problem("", f"holds what can't be written again: {error}"))
    if problems or document is None:
        raise InvalidDocumentError(problems)
    return ParsedDocument(document, nonfinite)


def _check_writable(raw: Any, document: Document) -> None:
    """Raises `TypeError` if a document can't be written again, also as a part of something else."""
    try:
        check_writable(raw)  # four times as fast
    except TypeError:
        check_writable(document_to_json(document))  # what is wrong may be in what isn't kept
        # A score is a number of its own, too, and stands in the metadata as it was.
        check_writable([entity.extra for section in document.sections for entity in section.entities])


def load_json(data: bytes) -> tuple[Any, int]:
    """Reads JSON as `parse_document` does.

    Args:
        data: UTF-8 JSON, with or without a byte-order mark.

    Returns:
        The value, and how many `NaN` or infinite numbers became `null` in it. Its strings may hold half a surrogate
        pair.

    Raises:
        InvalidDocumentError: If it is not JSON, or not UTF-8.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    first_error: Exception | None = None
    pattern = data.translate(_DIGITS_TO_0)
    if not any(huge in pattern for huge in _HUGE_NUMBERS):
        try:
            return orjson.loads(data), 0
        except orjson.JSONDecodeError as error:
            first_error = error
    # What orjson refuses may be NaN, Infinity or an escaped lone surrogate, which the standard library reads.
    nonfinite = 0

    def to_null(_: str) -> None:
        nonlocal nonfinite
        nonfinite += 1

    def to_float(text: str) -> float | None:
        value = float(text)
        if math.isfinite(value):
            return value
        to_null(text)
        return None

    try:
        return json.loads(data.decode("utf-8"), parse_constant=to_null, parse_float=to_float), nonfinite
    except UnicodeDecodeError as error:
        raise InvalidDocumentError([Problem("", f"not UTF-8: {error.reason} at byte {error.start}")]) from error
    except (ValueError, RecursionError) as error:
        raise InvalidDocumentError([Problem("", f"not valid JSON: {first_error or error}")]) from error


def _document(raw: Any, problems: list[Problem]) -> Document | None:
    if not isinstance(raw, dict):
        hint = _LIST_HINT if raw and isinstance(raw, list) else ""
        problems.append(Problem("", f"a document must be a JSON object, not {_kind(raw)}{hint}"))
        return None
    _check_keys(raw, _DOCUMENT_KEYS, "", problems)
    _check_metadata(raw, "", problems)
    raw_sections = raw.get("sections", [])
    if not isinstance(raw_sections, list):
        problems.append(Problem("sections", f"must be a list, not {_kind(raw_sections)}"))
        raw_sections = []
    sections = tuple(
        section
        for index, raw_section in enumerate(raw_sections)
        if (section := _section(raw_section, f"sections[{index}]", problems)) is not None
    )
    extra = {key: value for key, value in raw.items() if key not in ("idx", "sections")}
    identifier: Any = raw.get("idx")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    if identifier is None:
        identifier = content_digest(Document("", sections))[:32] if not problems else ""
    elif not isinstance(identifier, str):
        problems.append(Problem("idx", f"must be a string, not {_kind(identifier)}"))
    elif _has_surrogate(identifier):
        problems.append(Problem("idx", "holds half of a surrogate pair, which no UTF-8 file can store"))
    return Document(identifier, sections, extra)


def _section(raw: Any, place: str, problems: list[Problem]) -> Section | None:
    if not isinstance(raw, dict):
        problems.append(Problem(place, f"must be an object, not {_kind(raw)}"))
        return None
    _check_keys(raw, _SECTION_KEYS, place, problems)
    _check_metadata(raw, place, problems)
    name = _string(raw, "name", place, problems)
    text = _string(raw, "text", place, problems)
    raw_entities = raw.get("entities", [])
    if not isinstance(raw_entities, list):
        problems.append(Problem(f"{place}.entities", f"must be a list, not {_kind(raw_entities)}"))
        raw_entities = []
    text_length = sys.maxsize if text is None else len(text)
    entities = tuple(
        entity
        for index, raw_entity in enumerate(raw_entities)
        if (
            entity := _plain_entity(raw_entity, text_length)
            or _entity(raw_entity, text_length, f"{place}.entities[{index}]", problems)
        )
        is not None
    )
    if text is None or name is None:
        return None
    extra = {key: value for key, value in raw.items() if key not in ("name", "text", "entities")}
    return Section(name, text, entities, extra)


def _plain_entity(raw: Any, text_length: int) -> Entity | None:
    """Reads an entity of the most frequent kind, with one span and nothing wrong, in a quarter of the time."""
    try:
        label, match, namespace, (span,) = raw["entity_class"], raw["match"], raw["namespace"], raw["spans"]
        start, end = span["start"], span["end"]
        plain = (
            raw.keys() <= _ENTITY_KEYS
            and type(start) is int
            and type(end) is int
            and 0 <= start < end <= text_length
            and label
            and not _has_surrogate(label + match + namespace)
        )
    except (AttributeError, KeyError, TypeError, ValueError):  # which of them it is, `_entity` says
        return None
    metadata = raw.get("metadata", {})
    if not plain or type(metadata) is not dict:
        return None
    return Entity(
        label=sys.intern(label),  # few different ones: kept once, they take less memory and compare faster
        spans=(Span(start, end),),
        match=match,
        namespace=sys.intern(namespace),
        score=_score(metadata),
        extra={key: value for key, value in raw.items() if key not in _OWN_KEYS},
    )


def _entity(raw: Any, text_length: int, place: str, problems: list[Problem]) -> Entity | None:
    if not isinstance(raw, dict):
        problems.append(Problem(place, f"must be an object, not {_kind(raw)}"))
        return None
    _check_keys(raw, _ENTITY_KEYS, place, problems)
    _check_metadata(raw, place, problems)
    label = _string(raw, "entity_class", place, problems)
    match = _string(raw, "match", place, problems)
    namespace = _string(raw, "namespace", place, problems)
    if label == "":
        problems.append(Problem(f"{place}.entity_class", "must not be empty"))
    raw_spans = raw.get("spans")
    if not isinstance(raw_spans, list) or not raw_spans:
        problems.append(Problem(f"{place}.spans", "must be a list with at least one span"))
        return None
    spans = {
        span
        for index, raw_span in enumerate(raw_spans)
        if (span := _span(raw_span, text_length, f"{place}.spans[{index}]", problems)) is not None
    }
    if not label or match is None or namespace is None or not spans:
        return None
    return Entity(
        label=label,
        spans=tuple(sorted(spans)),
        match=match,
        namespace=namespace,
        score=_score(raw.get("metadata")),
        extra={key: value for key, value in raw.items() if key not in _OWN_KEYS},
    )


def _span(raw: Any, text_length: int, place: str, problems: list[Problem]) -> Span | None:
    if not isinstance(raw, dict):
        problems.append(Problem(place, f"must be an object with start and end, not {_kind(raw)}"))
        return None
    start, end = _offset(raw.get("start")), _offset(raw.get("end"))
    if start is None or end is None:
        problems.append(Problem(place, f"start and end must be whole numbers, not {_show(raw)}"))
    elif start < 0 or start >= end:
        problems.append(Problem(place, f"[{start}, {end}) is not a span: 0 <= start < end must hold"))
    elif end > text_length:
        reason = f"[{start}, {end}) ends past the end of the text, which has {text_length} characters"
        problems.append(Problem(place, reason))
    else:
        return Span(start, end)
    return None


def _offset(value: Any) -> int | None:
    """Reads an offset as KAZU does (floats and digit strings, too), but only where the value is whole."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value) if len(value) < 20 else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


def _score(metadata: Any) -> float | None:
    score = metadata.get("score") if isinstance(metadata, dict) else None
    if isinstance(score, bool) or not isinstance(score, (int, float)) or abs(score) > sys.float_info.max:
        return None
    return float(score)


def _string(raw: Mapping[str, Any], key: str, place: str, problems: list[Problem]) -> str | None:
    where = f"{place}.{key}"
    if key not in raw:
        problems.append(Problem(where, "is missing"))
        return None
    value = raw[key]
    if not isinstance(value, str):
        problems.append(Problem(where, f"must be a string, not {_kind(value)}"))
        return None
    if _has_surrogate(value):
        problems.append(Problem(where, "holds half of a surrogate pair, which no UTF-8 file can store"))
        return None
    return value


def _check_keys(raw: Mapping[str, Any], known: set[str], place: str, problems: list[Problem]) -> None:
    for key in raw:
        if key not in known:
            hint = nearest_name(key, known) or "; facts of your own go into metadata"
            problems.append(Problem(place, f"unknown key {key!r}{hint}"))


def _check_metadata(raw: Mapping[str, Any], place: str, problems: list[Problem]) -> None:
    metadata = raw.get("metadata", {})
    if not isinstance(metadata, dict):
        problems.append(Problem(f"{place}.metadata".lstrip("."), f"must be an object, not {_kind(metadata)}"))


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"


def _show(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "so deeply nested a value"
    return text if len(text) <= 60 else f"{text[:57]}..."
