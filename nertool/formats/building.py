"""From what a file of another format says to a document, checked as KAZU's JSON is."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson

from nertool.document_parsing import Problem
from nertool.formats.base import Record
from nertool.formats.kazu import parse_record

_NO_NOTES: Mapping[str, int] = MappingProxyType({})


def build_record(place: str, document: Mapping[str, Any], raw: bytes, notes: Mapping[str, int] = _NO_NOTES) -> Record:
    """Makes a document from KAZU's JSON object, or says what is wrong with it.

    Args:
        place: Where it is from.
        document: The object, with values of any kind.
        raw: The bytes that it was made from.
        notes: What was harmlessly changed or left out.
    """
    try:
        data = orjson.dumps(document)
    except TypeError as error:
        return Record(place, None, (Problem("", f"holds what can't be written again: {error}"),), raw)
    record = parse_record(place, data)
    return record._replace(raw=b"" if record.document else raw, notes={**record.notes, **notes})


def ascii_json(value: Any) -> bytes:
    """Returns JSON of whatever was read, half surrogate pairs included; nothing of what is nested too deep for it."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b""


def json_text(facts: Mapping[str, Any]) -> str:
    """Returns JSON for a field that holds text."""
    return orjson.dumps(facts).decode()


def id_from(file: Path, *endings: str) -> str:
    """Returns the name of a file without its ending, in characters that an id may have."""
    name = file.name.encode(errors="replace").decode()
    ending = next((ending for ending in endings if name.lower().endswith(ending)), file.suffix)
    return name[: len(name) - len(ending)]
