"""KAZU's Document JSON, one document per line: `.jsonl`, `.jsonl.gz`, `.jsonl.zst`."""

import gzip
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

import zstandard

from nertool.documents import Document, Problem, dump_document
from nertool.formats.base import Record
from nertool.formats.kazu import parse_record


def read_jsonl(file: Path) -> Iterator[Record]:
    """Reads a document from each line that isn't blank."""
    number = 0
    try:
        with _open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007 (named in the message below)
                if line.strip():
                    yield parse_record(f"{file}:{number}", line)
    except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
        yield Record(f"{file}:{number + 1}", None, (Problem("", f"the compressed file is broken: {error}"),))


class JsonlWriter:
    """Writes one document per line; the ending of the path decides on compression."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.losses: Counter[str] = Counter()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(_open(self.path, "wb"))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def write(self, document: Document) -> None:
        """Writes one line."""
        self._file.write(dump_document(document) + b"\n")


def _open(path: Path, mode: str) -> IO[bytes]:
    name = path.name.removesuffix(".partial")
    if name.endswith(".gz"):
        # No time stamp or name inside: the same documents give the same bytes.
        return gzip.GzipFile("", mode, 6, path.open(mode), mtime=0) if mode == "wb" else gzip.open(path, "rb")
    if name.endswith(".zst"):
        if mode == "wb":
            return zstandard.open(path, "wb")
        # Several frames (as pzstd writes them) and windows of 2 GiB (`zstd --long=31`) can be read, too.
        decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        return io.BufferedReader(decompressor.stream_reader(path.open(mode), read_across_frames=True, closefd=True))
    return path.open(mode)
