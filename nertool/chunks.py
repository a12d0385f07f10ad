"""Documents in chunks, the unit of bulk prediction: worked on at once, saved at once, shared out among shards.

Reading a chunk is cheap, as its documents are parsed by whoever works on it. Which documents are in which chunk depends
on the input and on the largest size of a chunk, and on nothing else.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import orjson

from nertool.document_parsing import Problem
from nertool.documents import Document, dump_document
from nertool.errors import NertoolError
from nertool.formats import Format, ReadReport, Record, Rejected
from nertool.formats.kazu import parse_record
from nertool.formats.reading import count_document, list_files, read_records, repeated_id

# Long documents make a chunk full before it has its number of them, so that memory stays bounded.
_BYTES_PER_CHUNK = 1_000_000
_ID_BYTES = 16


class Item(NamedTuple):
    """One document that isn't parsed yet.

    Args:
        place: Where it is: `corpus.jsonl:17`.
        data: Its JSON, or the bytes of one that can't be used; empty where `file` has yet to be read.
        file: A file that holds just this document.
        problems: What is wrong, if its format's reader has found that out already.
        notes: What that reader left out: name → count.
    """

    place: str
    data: bytes
    file: Path | None = None
    problems: tuple[Problem, ...] = ()
    notes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A file with many documents, or files with one each that make one chunk.

    Args:
        number: Its place in the input.
        files: The file or files.
        file_format: What they are.
    """

    number: int
    files: tuple[Path, ...]
    file_format: Format


@dataclass(frozen=True, slots=True)
class Chunk:
    """Documents of one source that are worked on together.

    Args:
        source: The number of the source.
        index: The chunk's number in it.
        items: The documents.
        file_format: The format of those that are files.
        left_out: Positions of items that are not to be used, as their ids are used by earlier ones.
    """

    source: int
    index: int
    items: tuple[Item, ...]
    file_format: Format
    left_out: frozenset[int] = frozenset()

    @property
    def key(self) -> str:
        """What tells it from all others; in the order of these the documents come in the order of the input."""
        return f"{self.source:08d}-{self.index:08d}"

    def without(self, positions: frozenset[int]) -> "Chunk":
        """Returns the chunk without certain items."""
        return replace(self, left_out=positions) if positions else self

    def parse(self) -> "ParsedChunk":
        """Parses all documents, the invalid ones and those that are left out included."""
        records = [_parse(item, self.file_format) for item in self.items]
        wanted = (record.document for n, record in enumerate(records) if n not in self.left_out)
        digest = hashlib.sha256()
        for item, record in zip(self.items, records, strict=True):
            digest.update(hashlib.sha256(_content(item, record)).digest())
        return ParsedChunk(records, [document for document in wanted if document is not None], digest.digest())


class ParsedChunk(NamedTuple):
    """What is in a chunk.

    Args:
        records: One for each item.
        documents: Those that are to be used.
        digest: Of everything in it, so that it is known when it is read again.
    """

    records: list[Record]
    documents: list[Document]
    digest: bytes


class Shard(NamedTuple):
    """Part `number` of `of` of the input, counted from 1; one chunk after the other goes to the next part."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `3/100`.

        Raises:
            NertoolError: If it is something else.
        """
        number, slash, count = text.partition("/")
        if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise NertoolError(f"{text!r} is no shard", "write --shard 3/100 for the third of a hundred parts")
        return cls(int(number), int(count))

    def has(self, source: int, index: int) -> bool:
        """Tells whether a chunk belongs to it."""
        return (source + index) % self.of == self.number - 1


WHOLE = Shard(1, 1)


def list_sources(
    path: Path, report: ReadReport, documents_per_chunk: int, format_name: str | None = None
) -> Iterator[Source]:
    """Yields the sources of a file or folder, in the order of file names.

    Args:
        path: Documents or texts.
        report: Told which files are no documents.
        documents_per_chunk: Most documents of a chunk.
        format_name: The format; by default each file's ending tells.
    """
    number = 0
    group: list[Path] = []
    group_bytes = 0
    of_group: Format | None = None
    for file, file_format in list_files(path, format_name, texts=True, report=report):
        size = file.stat().st_size if file_format.folder else 0
        full = len(group) == documents_per_chunk or group_bytes + size > _BYTES_PER_CHUNK
        if group and of_group is not None and (full or file_format is not of_group):
            yield Source(number, tuple(group), of_group)
            number, group, group_bytes = number + 1, [], 0
        if file_format.folder:
            group.append(file)
            group_bytes += size
            of_group = file_format
        else:
            yield Source(number, (file,), file_format)
            number += 1
    if group and of_group is not None:
        yield Source(number, tuple(group), of_group)


def describe_files(path: Path, format_name: str | None = None) -> str:
    """Returns in words what tells one input from another without reading it: names and sizes of its files."""
    digest = hashlib.sha256()
    files = total = 0
    for file, _ in list_files(path, format_name, texts=True, report=ReadReport()):
        size = file.stat().st_size
        digest.update(orjson.dumps([file.name, size]))
        files, total = files + 1, total + size
    return f"{files:,} with {total:,} bytes ({digest.hexdigest()[:8]})"


def read_chunks(sources: Iterable[Source], documents_per_chunk: int, shard: Shard = WHOLE) -> Iterator[Chunk]:
    """Yields the chunks of a shard; of the others nothing is parsed."""
    for source in sources:
        for index, items in enumerate(_split(_items(source), documents_per_chunk)):
            if shard.has(source.number, index):
                yield Chunk(source.number, index, items, source.file_format)


def _items(source: Source) -> Iterator[Item]:
    if source.file_format.folder:
        for file in source.files:
            yield Item(str(file), b"", file)
        return
    (file,) = source.files
    if source.file_format.read_raw is not None:
        for place, data, problems in source.file_format.read_raw(file):
            yield Item(place, data, problems=problems)
        return
    for record in read_records(file, source.file_format):
        data = record.raw if record.document is None else dump_document(record.document)
        yield Item(record.place, data, None, record.problems, tuple(record.notes.items()))


def _split(items: Iterable[Item], documents_per_chunk: int) -> Iterator[tuple[Item, ...]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        if chunk and (len(chunk) == documents_per_chunk or size + len(item.data) > _BYTES_PER_CHUNK):
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(item)
        size += len(item.data)
    if chunk:
        yield tuple(chunk)


def _parse(item: Item, file_format: Format) -> Record:
    if item.problems:
        return Record(item.place, None, item.problems, item.data)
    if item.file is not None:
        (record,) = read_records(item.file, file_format)
        return record
    record = parse_record(item.place, item.data)
    return record._replace(notes={**record.notes, **dict(item.notes)}) if item.notes else record


def _content(item: Item, record: Record) -> bytes:
    """Returns the bytes of an item; of a file those of its document, for which it may have read another file, too."""
    if item.data or record.document is None:
        return item.data or record.raw
    return dump_document(record.document)


def changed_meanwhile() -> NertoolError:
    """Returns the error for a chunk that isn't what it was when it was looked at."""
    return NertoolError(
        "the documents were changed while they were read; results would be mixed",
        "the same command again, when nothing writes to them any more",
    )


class CheckedChunk(NamedTuple):
    """What a first look at a chunk finds.

    Args:
        key: The chunk's.
        report: What is in it.
        positions: The positions of its valid items, `(documents,)`.
        ids: Digests of their ids, `(documents, 2)` uint64.
        digest: Of everything in it.
    """

    key: str
    report: ReadReport
    positions: npt.NDArray[np.uint32]
    ids: npt.NDArray[np.uint64]
    digest: bytes


def check_chunk(chunk: Chunk) -> CheckedChunk:
    """Parses a chunk to see what is in it."""
    report = ReadReport()
    positions, ids = [], []
    parsed = chunk.parse()
    for position, record in enumerate(parsed.records):
        report.notes.update(record.notes)
        if record.document is None:
            report.rejected.append(Rejected(record.place, record.problems, record.raw))
            continue
        count_document(record.document, report)
        positions.append(position)
        ids.append(_id_digest(record.document.id))
    found = np.frombuffer(b"".join(ids), np.uint64).reshape(-1, 2)
    return CheckedChunk(chunk.key, report, np.array(positions, np.uint32), found, parsed.digest)


def _id_digest(identifier: str) -> bytes:
    return hashlib.blake2b(identifier.encode(), digest_size=_ID_BYTES).digest()


@dataclass(slots=True)
class Check:
    """What is known of all documents before any is predicted; takes up checked chunks in the input's order.

    It keeps 16 bytes of each document's id, and 32 of each chunk's content.

    Args:
        on_rejected: Gets the documents that can't be used, as they are found.
        report: What is in the documents.
        digests: Chunk's key → the digest of everything in it.
    """

    on_rejected: Callable[[list[Rejected]], None]
    report: ReadReport = field(default_factory=ReadReport)
    digests: dict[str, bytes] = field(default_factory=dict)
    _positions: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    _ids: list[npt.NDArray[np.uint64]] = field(default_factory=list)
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def digest(self) -> str:
        """A SHA-256 of the whole input."""
        return self._digest.hexdigest()

    def add(self, checked: CheckedChunk) -> None:
        """Takes up a chunk."""
        self.digests[checked.key] = checked.digest
        self._positions.append(checked.positions)
        self._ids.append(checked.ids)
        self._digest.update(checked.key.encode() + checked.digest)
        self.report.documents += checked.report.documents
        self.report.sections += checked.report.sections
        self.report.entities += checked.report.entities
        self.report.notes.update(checked.report.notes)
        self._reject(checked.report.rejected)

    def _reject(self, rejected: list[Rejected]) -> None:
        if rejected:
            self.on_rejected(rejected)
        for item in rejected:
            self.report.reject(item)

    def repeated_ids(self, read: Callable[[set[str]], Iterator[Chunk]]) -> dict[str, frozenset[int]]:
        """Rejects the documents whose ids earlier ones have.

        Args:
            read: Gives the chunks with certain keys once more.

        Returns:
            Chunk's key → positions of these documents in it.

        Raises:
            NertoolError: If a chunk isn't what it was.
        """
        ids = np.concatenate(self._ids) if self._ids else np.empty((0, 2), np.uint64)
        order = np.lexsort((np.arange(len(ids)), ids[:, 1], ids[:, 0]))
        same = (ids[order[1:]] == ids[order[:-1]]).all(1)
        if not same.any():
            return {}
        involved = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
        chunk_of = np.repeat(np.arange(len(self._ids)), [len(part) for part in self._ids])
        first_of_chunk = np.cumsum([0, *(len(part) for part in self._ids)])
        keys = list(self.digests)
        wanted: dict[str, set[int]] = {}
        for document in involved.tolist():
            number = int(chunk_of[document])
            position = int(self._positions[number][document - first_of_chunk[number]])
            wanted.setdefault(keys[number], set()).add(position)
        seen: dict[str, str] = {}
        left_out: dict[str, frozenset[int]] = {}
        for chunk in read(set(wanted)):
            parsed = chunk.parse()
            if parsed.digest != self.digests[chunk.key]:
                raise changed_meanwhile()
            repeated = []
            for position in sorted(wanted[chunk.key]):
                record = parsed.records[position]
                if record.document is None or seen.setdefault(record.document.id, record.place) is record.place:
                    continue
                repeated.append(position)
                self.report.documents -= 1
                self.report.sections -= len(record.document.sections)
                self.report.entities -= sum(len(section.entities) for section in record.document.sections)
                problem = repeated_id(record.document.id, seen[record.document.id])
                raw = chunk.items[position].data or dump_document(record.document)
                self._reject([Rejected(record.place, (problem,), raw)])
            if repeated:
                left_out[chunk.key] = frozenset(repeated)
        return left_out
