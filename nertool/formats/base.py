"""What every format provides, and what reading reports."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self

from nertool.document_parsing import Problem, printable
from nertool.documents import Document
from nertool.files import safe_file_name

# Files that nertool writes beside documents, in their folder, or with its name before theirs; they hold none.
SIDE_FILES = {
    "split.json", "rejected.jsonl", "quarantine.jsonl", "reconciliation.json", "reconciliation.jsonl", "review.json",
}  # fmt: skip


_SIDE_FILE = re.compile(
    rf"(.+\.jsonl(\.gz|\.zst)?\.)?({'|'.join(map(re.escape, sorted(SIDE_FILES)))})|.+\.(responses|failed)\.jsonl",
    re.IGNORECASE,
)


# Endings of formats that look like another format's ending with an id before it.
_ENDINGS_WITHIN_ENDINGS = (".bioc.json", ".labelstudio.json", ".pubtator.txt")


def is_side_file(name: str) -> bool:
    """Tells whether a file is one that nertool writes beside documents."""
    return _SIDE_FILE.fullmatch(name) is not None


def with_digest(name: str, identifier: str) -> str:
    """Returns a name for an id whose own name is taken, or can't be used."""
    return f"{name}%{hashlib.sha256(identifier.encode()).hexdigest()[:16]}"


def file_name_key(identifier: str) -> str:
    """Returns what is equal for ids whose files have the same name, on file systems that take `A` for `a`."""
    return safe_file_name(identifier).casefold()


class FileNames:
    """Gives the documents of one folder names for their files."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def make(self, identifier: str, ending: str) -> str:
        """Returns a file name for an id; ids that differ only by case get names that differ by more.

        No document gets a name that makes reading take its file for something else: for a side file, or for another
        format's.

        Args:
            identifier: The document's id.
            ending: What the name must end with, such as `.json`.
        """
        name = safe_file_name(identifier)
        whole = f"{name}{ending}".casefold()
        if whole in self._taken or is_side_file(whole) or whole.endswith(_ENDINGS_WITHIN_ENDINGS):
            name = with_digest(name, identifier)
        self._taken.add(f"{name}{ending}".casefold())
        return f"{name}{ending}"


# What is longer than this, and that many times as long as the file that it is from, is there to fill the memory.
_MOST_UNPACKED_BYTES = 32_000_000
_MOST_TIMES_AS_LONG = 500


class BombError(Exception):
    """A compressed file is made to fill the memory of who reads it."""

    def __init__(self) -> None:
        super().__init__(
            f"it becomes more than {_MOST_TIMES_AS_LONG} times as long, and seems made to fill the memory; "
            "unpack it if you trust it"
        )


def check_unpacked(length: int, packed: int) -> None:
    """Refuses what is compressed as no document can be.

    Args:
        length: How many bytes there are unpacked, so far.
        packed: Of how many bytes.

    Raises:
        BombError: If it is so.
    """
    if length > most_unpacked(packed):
        raise BombError


def most_unpacked(packed: int) -> int:
    """Returns how many bytes may come from some compressed ones."""
    return max(_MOST_UNPACKED_BYTES, _MOST_TIMES_AS_LONG * packed)


class Record(NamedTuple):
    """One document as it came from a file, or what is wrong with it.

    Args:
        place: The file, and the line where there is one: `corpus.jsonl:17`.
        document: The document, or None if it is invalid.
        problems: Everything that is wrong with it.
        raw: The bytes of an invalid document, so that nothing is lost when it is set aside.
        notes: What was harmlessly changed or left out: name → count.
    """

    place: str
    document: Document | None
    problems: tuple[Problem, ...] = ()
    raw: bytes = b""
    notes: Mapping[str, int] = MappingProxyType({})


class Writer(Protocol):
    """Writes documents, one by one, below or into a path; used as a context manager."""

    def __init__(self, path: Path) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def write(self, document: Document) -> None:
        """Writes one document, without what the format can't hold."""


class FolderWriter:
    """What writers have alike that write files into a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = FileNames()

    def __enter__(self) -> Self:
        self.path.mkdir(exist_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class LinesWriter:
    """What writers have alike that write lines of text into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self._file = self.path.open("w", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


class Format(NamedTuple):
    """A file format.

    Args:
        endings: How the names of its files end, in lower case.
        read: Reads one file.
        writer: Writes documents, into a folder that is there if `folder`, else into a new file.
        losses: Counts what of a document the format can't hold: in words → how often. None: it holds everything.
        folder: Whether it has a file for each document, and so takes a folder.
        id_key: Returns what is equal for ids that would be the same in this format; the later one of such ids gets a
            longer one. None: all ids differ in it.
        read_raw: Where documents stand one after the other as JSON: gives the place and the bytes of each, and what is
            wrong if they can't be got at, without parsing them.
    """

    endings: tuple[str, ...]
    read: Callable[[Path], Iterator[Record]]
    writer: type[Writer]
    losses: Callable[[Document], Counter[str]] | None = None
    folder: bool = False
    id_key: Callable[[str], str] | None = None
    read_raw: Callable[[Path], Iterator[tuple[str, bytes, tuple[Problem, ...]]]] | None = None


@dataclass
class Rejected:
    """An invalid document: where it is and everything that is wrong with it."""

    place: str
    problems: tuple[Problem, ...]
    raw: bytes

    def to_json(self) -> dict[str, Any]:
        """Returns the line for `rejected.jsonl`."""
        return {
            "place": printable(self.place),
            "problems": [
                {"place": printable(problem.place), "reason": printable(problem.reason)} for problem in self.problems
            ],
            "raw": self.raw.decode("utf-8", errors="replace"),
        }


# What several formats note: what was left out, and what was changed.
RELATIONS = "relations, which nertool does not use"
NONFINITE = "NaN or infinite numbers, read as null"
# Of more invalid documents than these the first ones are kept and shown, and the others counted.
MOST_REJECTED_KEPT = 100


@dataclass
class ReadReport:
    """What came in and what didn't; filled while documents are read.

    `more_rejected` counts further invalid documents, where there are too many to keep and show them.
    """

    documents: int = 0
    sections: int = 0
    entities: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    more_rejected: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    ignored_files: list[str] = field(default_factory=list)

    def reject(self, item: Rejected) -> None:
        """Notes an invalid document, without its bytes, which nobody needs from here."""
        if len(self.rejected) < MOST_REJECTED_KEPT:
            self.rejected.append(replace(item, raw=b""))
        else:
            self.more_rejected += 1

    def to_json(self) -> dict[str, Any]:
        """Returns the counts for `--json`."""
        return {
            "documents": self.documents,
            "sections": self.sections,
            "entities": self.entities,
            "rejected": len(self.rejected) + self.more_rejected,
            "notes": dict(sorted(self.notes.items())),
            "ignored_files": self.ignored_files,
        }
