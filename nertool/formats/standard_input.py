"""Documents or texts on stdin, one per line, kept in a file, as they are read more than once."""

from pathlib import Path
from typing import BinaryIO

from nertool.documents import Document, Section, dump_document
from nertool.errors import NertoolError


def spool(lines: BinaryIO, folder: Path, format_name: str | None = None) -> Path:
    """Writes lines as a file of documents.

    Args:
        lines: Documents as JSON, or plain texts, which get ids by the number of their line: `line-7`. Blank lines are
            passed over.
        folder: Where to put the file.
        format_name: `jsonl` or `text`; by default the first line tells, as a document begins with `{`.

    Raises:
        NertoolError: If the format can't come line by line.
    """
    if format_name not in (None, "jsonl", "text"):
        raise NertoolError(
            f"stdin can't be read as {format_name}", "--from jsonl or --from text, a line for each document"
        )
    file = folder / "stdin.jsonl"
    with file.open("wb") as target:
        for number, line in enumerate(lines, start=1):
            stripped = line.strip()
            if not stripped:
                target.write(b"\n")  # so that what is reported of other lines has their numbers
                continue
            if format_name is None:
                format_name = "jsonl" if stripped.removeprefix(b"\xef\xbb\xbf").startswith(b"{") else "text"
            target.write(stripped if format_name == "jsonl" else _document(number, line))
            target.write(b"\n")
    return file


def _document(number: int, line: bytes) -> bytes:
    """Returns the JSON of a text; of one that isn't UTF-8, the line itself, which is no document and is reported."""
    try:
        text = line.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        return line.rstrip(b"\r\n")
    return dump_document(Document(f"line-{number}", (Section("text", text),)))
