"""What every format provides, and what reading reports."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, Self

from nertool.document_parsing import Problem
from nertool.documents import Document

# Files that nertool writes beside documents, in their folder, or with its name before theirs; they hold none.
SIDE_FILES = {
    "split.json", "rejected.jsonl", "quarantine.jsonl", "reconciliation.json", "reconciliation.jsonl", "review.json",
}  # fmt: skip


_SIDE_FILE = re.compile(
    rf"(.+\.jsonl(\.gz|\.zst)?\.)?({'|'.join(map(re.escape, sorted(SIDE_FILES)))})|.+\.(responses|failed)\.jsonl",
    re.IGNORECASE,
)


def is_side_file(name: str) -> bool:
    """Tells whether a file is one that nertool writes beside documents."""
    return _SIDE_FILE.fullmatch(name) is not None


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

    losses: Counter[str]

    def __init__(self, path: Path) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...
    def write(self, document: Document) -> None:
        """Writes one document; what the format can't hold is counted in `losses`."""


class Format(NamedTuple):
    """A file format: its endings, its reader of one file, its writer (None: it can't be written)."""

    endings: tuple[str, ...]
    read: Callable[[Path], Iterator[Record]]
    writer: type[Writer] | None


@dataclass
class Rejected:
    """An invalid document: where it is and everything that is wrong with it."""

    place: str
    problems: tuple[Problem, ...]
    raw: bytes

    def to_json(self) -> dict[str, Any]:
        """Returns the line for `rejected.jsonl`."""
        return {
            "place": self.place,
            "problems": [{"place": problem.place, "reason": problem.reason} for problem in self.problems],
            "raw": self.raw.decode("utf-8", errors="replace"),
        }


@dataclass
class ReadReport:
    """What came in and what didn't; filled while documents are read."""

    documents: int = 0
    sections: int = 0
    entities: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    ignored_files: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the counts for `--json`."""
        return {
            "documents": self.documents,
            "sections": self.sections,
            "entities": self.entities,
            "rejected": len(self.rejected),
            "notes": dict(sorted(self.notes.items())),
            "ignored_files": self.ignored_files,
        }
