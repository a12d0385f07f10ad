"""KAZU's Document JSON: one document per file in a folder."""

from collections.abc import Iterator
from pathlib import Path

import orjson

from nertool.document_parsing import InvalidDocumentError, parse_document
from nertool.documents import Document, document_to_json
from nertool.formats.base import NONFINITE, FolderWriter, Record


def parse_record(place: str, data: bytes) -> Record:
    """Parses the JSON of one document, found at `place`."""
    try:
        document, nonfinite = parse_document(data)
    except InvalidDocumentError as error:
        return Record(place, None, tuple(error.problems), data)
    return Record(place, document, notes={NONFINITE: nonfinite} if nonfinite else {})


def read_kazu(file: Path) -> Iterator[Record]:
    """Reads the one document of a `.json` file."""
    yield parse_record(str(file), file.read_bytes())


class KazuWriter(FolderWriter):
    """Writes each document to a file of its own in a folder, named after its id made safe."""

    def write(self, document: Document) -> None:
        """Writes `ID.json`, indented for people to read."""
        (self.path / self._names.make(document.id, ".json")).write_bytes(
            orjson.dumps(document_to_json(document), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        )
