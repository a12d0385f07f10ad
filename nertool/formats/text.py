"""Plain texts: a `.txt` file is a document with one section."""

from collections.abc import Iterator
from pathlib import Path

from nertool.document_parsing import Problem
from nertool.documents import Document, Section
from nertool.formats.base import Record


def read_text(file: Path) -> Iterator[Record]:
    """Reads a UTF-8 text; the file's name without its ending is the document's id."""
    data = file.read_bytes()
    try:
        file.stem.encode()
    except UnicodeEncodeError:
        yield Record(
            ascii(str(file)), None, (Problem("", "the file's name, which becomes the id, is not UTF-8"),), data
        )
        return
    try:
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        yield Record(str(file), None, (Problem("", f"not UTF-8: {error.reason} at byte {error.start}"),), data)
    else:
        yield Record(str(file), Document(file.stem, (Section("text", text),)))
