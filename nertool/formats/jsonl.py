"""KAZU's Document JSON, one document per line: `.jsonl`, `.jsonl.gz`, `.jsonl.zst`."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import IO, Self, cast

import zstandard

from nertool.document_parsing import Problem
from nertool.documents import Document, dump_document
from nertool.formats.base import BombError, Record, check_unpacked
from nertool.formats.kazu import parse_record

# So few, as they may become 32,000 times as many.
_ZSTD_BYTES_AT_ONCE = 1024


def read_jsonl(file: Path) -> Iterator[Record]:
    """Reads a document from each line that isn't blank."""
    for place, line, problems in read_raw_lines(file):
        yield Record(place, None, problems) if problems else parse_record(place, line)


def read_raw_lines(file: Path) -> Iterator[tuple[str, bytes, tuple[Problem, ...]]]:
    """Reads the lines that aren't blank: place, bytes, and what is wrong with a broken file."""
    number = 0
    try:
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():
                yield f"{file}:{number}", line, ()
    except BombError as error:
        yield f"{file}:{number + 1}", b"", (Problem("", str(error)),)
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        yield f"{file}:{number + 1}", b"", (Problem("", f"the compressed file is broken: {error}"),)


class JsonlWriter:
    """Writes one document per line; the ending of the path decides on compression."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        file = self._stack.enter_context(self.path.open("wb"))
        self._file: IO[bytes] = file
        name = self.path.name.lower()
        if name.endswith(".gz"):
            # No time stamp or name inside: the same documents give the same bytes.
            self._file = cast(IO[bytes], self._stack.enter_context(gzip.GzipFile("", "wb", 6, file, mtime=0)))
        elif name.endswith(".zst"):
            compressor = zstandard.ZstdCompressor(write_checksum=True)
            self._file = self._stack.enter_context(zstandard.open(file, "wb", cctx=compressor))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def write(self, document: Document) -> None:
        """Writes one line."""
        self._file.write(dump_document(document) + b"\n")


def compress(lines: bytes, name: str) -> bytes:
    """Returns lines compressed as the ending of a file's name says.

    What it returns for several pieces, put together, is a file of all of them.
    """
    if name.lower().endswith(".gz"):
        return gzip.compress(lines, 6, mtime=0)
    if name.lower().endswith(".zst"):
        return zstandard.ZstdCompressor(write_checksum=True).compress(lines)
    return lines


def lines_of(data: bytes, name: str) -> list[bytes]:
    """Returns the lines that `compress` got once."""
    if name.lower().endswith(".gz"):
        data = gzip.decompress(data)
    elif name.lower().endswith(".zst") and data:
        data = zstandard.ZstdDecompressor().decompress(data)
    return data.splitlines()


def _lines(file: Path) -> Iterator[bytes]:
    name = file.name.lower()
    if name.endswith(".zst"):
        yield from _zstd_lines(file)
    else:
        with file.open("rb") as source:
            yield from _gzip_lines(source) if name.endswith(".gz") else source


def _gzip_lines(source: IO[bytes]) -> Iterator[bytes]:
    length = 0
    with gzip.open(source, "rb") as lines:
        for line in lines:
            length += len(line)
            check_unpacked(length, source.tell())
            yield line


def _zstd_lines(file: Path) -> Iterator[bytes]:
    """Reads all frames of a file (pzstd writes several), with windows of up to 2 GiB (`zstd --long=31`).

    Raises:
        EOFError: If the file ends within a frame, which the package's own stream reader takes for the end.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame = None
    line = bytearray()
    length = 0
    with file.open("rb") as source:
        while data := source.read(_ZSTD_BYTES_AT_ONCE):
            while data:
                frame = frame or decompressor.decompressobj()
                unpacked = frame.decompress(data)
                length += len(unpacked)
                check_unpacked(length, source.tell())
                for part in BytesIO(unpacked):
                    line += part
                    if part.endswith(b"\n"):
                        yield bytes(line)
                        line.clear()
                data = frame.unused_data
                if frame.eof:
                    frame = None
    if frame is not None:
        raise EOFError("it ends before the end of its last frame")
    if line:
        yield bytes(line)
