"""Plain texts: a `.txt` file is a document with one section."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nertool.document_parsing import Problem
from nertool.documents import Document, Section
from nertool.formats.base import FileNames, FolderWriter, Record

SECTION = "text"
BETWEEN_SECTIONS = "\n\n"


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
        yield Record(str(file), Document(file.stem, (Section(SECTION, text),)))


class TextWriter(FolderWriter):
    """Writes the texts of each document to a file of its own in a folder, a blank line between sections."""

    def write(self, document: Document) -> None:
        """Writes `ID.txt`."""
        text = BETWEEN_SECTIONS.join(section.text for section in document.sections)
        if text.startswith("\ufeff"):
            text = f"\ufeff{text}"  # reading takes one away
        (self.path / self._names.make(document.id, ".txt")).write_bytes(text.encode())


def text_losses(document: Document, ending: str = ".txt") -> Counter[str]:
    """Counts what of a document a plain text can't hold, in a file that ends so."""
    sections = document.sections
    losses = {
        "entities": sum(len(section.entities) for section in sections),
        "documents whose sections became one text": int(len(sections) != 1),
        "section names": sum(section.name != SECTION for section in sections),
        "metadata and other facts of documents and sections": bool(document.extra)
        + sum(bool(section.extra) for section in sections),
        "ids that are no file names": int(FileNames().make(document.id, ending) != f"{document.id}{ending}"),
    }
    return +Counter(losses)
