"""Building a training cache.

It grows as a hidden sibling with a journal, so that a killed build goes on where it was, and to the same bytes.
"""

import hashlib
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson
import zstandard
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from nertool.document_parsing import parse_document
from nertool.documents import Document, dump_document
from nertool.errors import NertoolError
from nertool.files import (
    MANIFEST_NAME,
    check_output,
    exclusive,
    file_digest,
    partial_path,
    read_json,
    recover_folder,
    replace_folder,
    write_json,
    write_json_lines,
    write_manifest,
)
from nertool.labels import LabelScheme, make_scheme
from nertool.provenance import annotators
from nertool.representation import Representation, represent
from nertool.settings import WindowSettings
from nertool.targets import locate, paint
from nertool.window_cache import (
    CACHE_FILE,
    FORMAT_VERSION,
    MAPPED_FILES,
    WINDOW_DTYPE,
    Represented,
    Sizes,
    WindowCache,
    differences,
    is_cache,
    open_cache,
    target_bytes,
)
from nertool.windows import SectionTokenizer, plan_windows, take_texts_literally, tokenize
from nertool.workers import WorkerPool

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_JOURNAL = "journal.jsonl"
_BEGUN = "begun.json"
# Targets as they are while it grows: each chunk has the channels of its own classes only.
_LOCAL_TARGETS = "targets.local"
_GROWING_FILES = ("tokens.bin", _LOCAL_TARGETS, "windows.bin", "documents.jsonl.zst")
# What is encoded at once, and lost to a kill; it bounds the memory that each worker takes.
_DOCUMENTS_PER_CHUNK = 256
_BYTES_PER_CHUNK = 4_000_000
# Starting processes takes as long as tokenising so many chunks.
_CHUNKS_BEFORE_WORKERS = 2

_Chunk = tuple[list[Document], list[bytes]]  # documents, and the same as JSON


class _JournalLine(BaseModel):
    """What a line of the journal has: a chunk, how long the files are with it, and checksums of its data in them."""

    documents: NonNegativeInt
    digests: str = Field(pattern=r"^([0-9a-f]{64})*$")
    labels: dict[str, int]
    classes: list[str]
    annotators: dict[str, int]
    counts: Sizes
    representation: Represented
    bytes: list[NonNegativeInt] = Field(min_length=len(_GROWING_FILES), max_length=len(_GROWING_FILES))
    checksums: list[NonNegativeInt] = Field(min_length=len(_GROWING_FILES), max_length=len(_GROWING_FILES))


@dataclass(frozen=True, slots=True)
class Scan:
    """What a first pass over the documents tells.

    Args:
        documents: How many there are.
        labels: Class → number of entities.
        annotators: Who annotated them → how many documents; `None` where only who is known.
        digest: SHA-256 of it all.
    """

    documents: int
    labels: Counter[str]
    annotators: dict[str, int | None]
    digest: str

    def to_json(self, name: str) -> dict[str, Any]:
        """Returns what a model tells of the documents, which have a name."""
        return {
            "name": name,
            "documents": self.documents,
            "entities": self.labels.total(),
            "classes": dict(self.labels),
            "annotators": self.annotators,
            "digest": self.digest,
        }


def document_digest(document: Document) -> bytes:
    """Returns the SHA-256 of all that a document holds."""
    return hashlib.sha256(dump_document(document)).digest()


def scan(documents: Iterable[Document], on_documents: Callable[[int], None] = lambda _: None) -> Scan:
    """Reads all documents once; `on_documents` is told how many are done."""
    labels: Counter[str] = Counter()
    known: Counter[str] = Counter()
    digest = hashlib.sha256()
    count = 0
    for document in documents:
        count += 1
        labels.update(_labels(document))
        known.update(annotators(document))
        digest.update(document_digest(document))
        on_documents(count)
    return Scan(count, labels, dict(sorted(known.items())), digest.hexdigest())


@dataclass(frozen=True, slots=True)
class _Encoder:
    """Turns documents into the bytes of a cache; holds what a worker process needs to do so.

    Args:
        backend: The tokenizer.
        labels: The classes to learn; none means all that occur.
        begin: Whether there are begin channels.
        max_tokens: Longest window without special tokens.
        overlap_tokens: How many tokens neighbouring windows share.
        id_dtype: The type of token ids.
    """

    backend: "Tokenizer"
    labels: tuple[str, ...]
    begin: bool
    max_tokens: int
    overlap_tokens: int
    id_dtype: np.dtype[Any]

    def encode(self, documents: Sequence[Document], lines: Sequence[bytes]) -> tuple[list[bytes], dict[str, Any]]:
        """Encodes one chunk.

        Args:
            documents: The documents.
            lines: The same as JSON.

        Returns:
            What to append to `_GROWING_FILES`, windows starting at token 0; the line for the journal.
        """
        sections = [section for document in documents for section in document.sections]
        counted = Counter(label for document in documents for label in _labels(document))
        scheme = LabelScheme(self.labels or tuple(sorted(counted)), self.begin)
        tokens = tokenize(self.backend, [section.text for section in sections])
        spans = locate(sections, tokens, scheme)
        targets = paint(spans, len(tokens.ids), scheme)
        plan = plan_windows(tokens, self.max_tokens, self.overlap_tokens)
        table = np.empty(len(plan), WINDOW_DTYPE)
        table["start"] = plan.starts
        table["length"] = plan.lengths
        table["owned_start"] = plan.owned_starts - plan.starts
        table["owned_length"] = plan.owned_ends - plan.owned_starts
        bits = np.concatenate([targets, tokens.word_starts[:, None]], axis=1)
        return [
            tokens.ids.astype(self.id_dtype).tobytes(),
            np.packbits(bits, axis=1).tobytes(),
            table.tobytes(),
            zstandard.ZstdCompressor(level=9, write_checksum=True).compress(b"".join(line + b"\n" for line in lines)),
        ], {
            "documents": len(documents),
            "digests": _digests(lines).hex(),
            "labels": dict(sorted(counted.items())),
            "classes": list(scheme.labels),
            "annotators": Counter(name for document in documents for name in annotators(document)),
            "counts": {
                "sections": len(sections),
                "empty_sections": sum(not section.text.strip() for section in sections),
                "tokens": len(tokens.ids),
                "windows": len(plan),
            },
            "representation": represent(sections, tokens, spans, targets, scheme).to_json(),
        }


def build_cache(
    path: Path,
    documents: Callable[[], Iterable[Document]],
    tokenizer: SectionTokenizer,
    windows: WindowSettings,
    *,
    labels: Sequence[str] = (),
    begin: bool = False,
    force: bool = False,
    workers: int = 1,
    scanned: Scan | None = None,
    on_documents: Callable[[int], None] = lambda _: None,
) -> WindowCache:
    """Builds a cache, goes on with a half-built one, or opens the finished one that the same things made.

    The documents are read once; not at all to open a finished one where it is known what a first pass told. The bytes
    don't depend on the number of workers or on how often a build was killed.

    Args:
        path: The folder to make.
        documents: Gives the documents, always the same in the same order.
        tokenizer: The tokenizer.
        windows: The window sizes.
        labels: The classes to learn; none means all that occur.
        begin: Whether there are begin channels.
        force: Replace a cache that something else made.
        workers: How many processes tokenise.
        scanned: What a first pass over the documents told, where there was one.
        on_documents: Told how many documents are done.

    Raises:
        NertoolError: If something else made what is there (it says what differs); if no document has an entity.
    """
    made_by = {
        "format": FORMAT_VERSION,
        "tokenizer": tokenizer.digest,
        "labels": sorted(set(labels)),
        "begin_channels": begin,
        **windows.model_dump(),
    }

    def first_pass() -> Scan:
        return scanned or scan(documents())

    recover_folder(path)
    if is_cache(path):
        different = _differences(path, made_by, first_pass, force=force)
        if not different:
            return open_cache(path)
        if not force:
            raise NertoolError(
                f"the cache {path} was made by something else: {'; '.join(different)}",
                "choose another output, or --force to build it anew",
            )
    check_output(path, force=force)
    with exclusive(path):
        return _build(path, documents, first_pass, tokenizer, made_by, workers, on_documents)


def _build(
    path: Path,
    documents: Callable[[], Iterable[Document]],
    first_pass: Callable[[], Scan],
    tokenizer: SectionTokenizer,
    made_by: dict[str, Any],
    workers: int,
    on_documents: Callable[[int], None],
) -> WindowCache:
    encoder = _Encoder(
        tokenizer.backend,
        tuple(made_by["labels"]),
        made_by["begin_channels"],
        made_by["max_tokens"] - tokenizer.special_tokens,
        made_by["overlap_tokens"],
        _id_dtype(tokenizer),
    )
    partial = partial_path(path)
    if _is_finished(partial) and not _differences(partial, made_by, first_pass, force=True):
        return _publish(partial, path)
    journal = _resume(partial, made_by)
    lines, chunks = _unchanged(journal, _chunks(documents()))
    _truncate(partial, lines)
    digest = hashlib.sha256()
    for line in lines:
        digest.update(bytes.fromhex(line.pop("digests")))  # of each document; the end needs only theirs together
    done = sum(line["documents"] for line in lines)
    tokens = sum(line["counts"]["tokens"] for line in lines)
    on_documents(done)
    with (partial / _JOURNAL).open("ab") as journal_file, closing(_encoded(encoder, chunks, workers)) as encoded:
        for data, line in encoded:
            table = np.frombuffer(data[2], WINDOW_DTYPE).copy()
            table["start"] += tokens
            data[2] = table.tobytes()
            for name, content in zip(_GROWING_FILES, data, strict=True):
                with (partial / name).open("ab") as file:
                    file.write(content)
                    file.flush()
            line["checksums"] = list(map(zlib.crc32, data))
            # The data must not reach the disk after the journal line that vouches for it.
            line["bytes"] = [_durable_size(partial / name) for name in _GROWING_FILES]
            journal_file.write(orjson.dumps(line) + b"\n")
            journal_file.flush()
            digest.update(bytes.fromhex(line.pop("digests")))
            lines.append(line)
            done += line["documents"]
            tokens += line["counts"]["tokens"]
            on_documents(done)
    _finish(partial, made_by, lines, digest.hexdigest(), encoder)
    return _publish(partial, path)


def _is_finished(partial: Path) -> bool:
    """Says whether a cache lacks nothing but its place."""
    return is_cache(partial) and not (partial / _BEGUN).exists()


def _publish(partial: Path, path: Path) -> WindowCache:
    for name in (_BEGUN, _JOURNAL, _LOCAL_TARGETS, MANIFEST_NAME):  # in this order: see `_is_finished`
        (partial / name).unlink(missing_ok=True)
    write_manifest(partial, "cache")
    replace_folder(partial, path)
    return open_cache(path)


def _finish(
    partial: Path, made_by: dict[str, Any], lines: list[dict[str, Any]], digest: str, encoder: _Encoder
) -> None:
    """Brings the targets of all chunks to the same channels, and writes the description."""
    labels: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    known: Counter[str] = Counter()
    total = Representation()
    for line in lines:
        labels.update(line["labels"])
        counts.update(line["counts"])
        known.update(line["annotators"])
        total.add(Representation.from_json(line["representation"]))
    scheme = make_scheme(made_by["labels"] or labels, begin=made_by["begin_channels"])
    with (partial / _LOCAL_TARGETS).open("rb") as local, (partial / "targets.bin").open("wb") as file:
        for line in lines:
            own = LabelScheme(tuple(line["classes"]), scheme.begin)
            rows = line["counts"]["tokens"]
            width = target_bytes(own)
            packed: npt.NDArray[np.uint8] = np.frombuffer(local.read(rows * width), np.uint8).reshape(rows, width)
            if own != scheme:
                bits = np.unpackbits(packed, axis=1, count=own.channels + 1)
                spread = np.zeros((rows, scheme.channels + 1), np.uint8)
                spread[:, [*own.channels_in(scheme), scheme.channels]] = bits
                packed = np.packbits(spread, axis=1)
            file.write(packed.tobytes())
    write_json(
        partial / CACHE_FILE,
        {
            "fingerprint": {**made_by, "documents": digest, "labels": list(scheme.labels)},
            "counts": {
                "documents": sum(line["documents"] for line in lines), **counts, "labels": dict(sorted(labels.items())),
            },
            "annotators": known,
            "bytes_per_token_id": encoder.id_dtype.itemsize,
            "files": {name: file_digest(partial / name) for name in MAPPED_FILES},
            "representation": total.to_json(),
        },
    )  # fmt: skip


def _differences(path: Path, made_by: dict[str, Any], first_pass: Callable[[], Scan], *, force: bool) -> list[str]:
    """Says in words how a finished cache differs from the one that is wanted."""
    try:
        fingerprint = open_cache(path).info["fingerprint"]
    except NertoolError:  # damaged, or of another format version
        if not force:
            raise
        return ["it can't be read"]
    scanned = first_pass()
    wanted = {**made_by, "documents": scanned.digest, "labels": made_by["labels"] or sorted(scanned.labels)}
    return differences(fingerprint, wanted)


def _encoded(
    encoder: _Encoder, chunks: Iterator[_Chunk], workers: int
) -> Generator[tuple[list[bytes], dict[str, Any]], None, None]:
    """Encodes chunks, in their order; only so many are held in memory as the workers need."""
    for documents, lines in islice(chunks, None if workers == 1 else _CHUNKS_BEFORE_WORKERS):
        yield encoder.encode(documents, lines)
    first = next(chunks, None)
    if first is None:
        return
    with WorkerPool(workers, _start_worker, (encoder,)) as pool:
        yield from pool.map_in_order(_encode_in_worker, (lines for _, lines in chain([first], chunks)))


_worker: _Encoder | None = None


def _start_worker(encoder: _Encoder) -> None:
    global _worker  # noqa: PLW0603 (what a process of its own is for)
    take_texts_literally(encoder.backend)
    _worker = encoder


def _encode_in_worker(lines: list[bytes]) -> tuple[list[bytes], dict[str, Any]]:
    assert _worker is not None
    return _worker.encode([parse_document(line).document for line in lines], lines)


def _chunks(documents: Iterable[Document]) -> Iterator[_Chunk]:
    chunk: list[Document] = []
    lines: list[bytes] = []
    size = 0
    for document in documents:
        chunk.append(document)
        lines.append(dump_document(document))
        size += len(lines[-1])
        if len(chunk) == _DOCUMENTS_PER_CHUNK or size >= _BYTES_PER_CHUNK:
            yield chunk, lines
            chunk, lines, size = [], [], 0
    if chunk:
        yield chunk, lines


def _digests(lines: Sequence[bytes]) -> bytes:
    return b"".join(hashlib.sha256(line).digest() for line in lines)


def _labels(document: Document) -> list[str]:
    return [entity.label for section in document.sections for entity in section.entities]


def _resume(partial: Path, made_by: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the journal of a half-built cache; starts afresh if something else began it."""
    begun, journal = partial / _BEGUN, partial / _JOURNAL
    if begun.is_file() and journal.is_file() and read_json(begun) == made_by:
        lines = []
        with suppress(orjson.JSONDecodeError, ValidationError):  # from the first damaged line on nothing is vouched for
            for line in journal.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    value = orjson.loads(line)
                    _JournalLine.model_validate(value, strict=True)
                    lines.append(value)
        sizes = lines[-1]["bytes"] if lines else [0] * len(_GROWING_FILES)
        files = [partial / name for name in _GROWING_FILES]
        if all(file.is_file() and file.stat().st_size >= size for file, size in zip(files, sizes, strict=True)):
            return _intact(files, lines)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in (*_GROWING_FILES, _JOURNAL):
        (partial / name).touch()
    write_json(begun, made_by)  # last: from here on there is something to go on with
    return []


def _intact(files: Sequence[Path], lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines of the journal up to the first one whose data in the growing files isn't what was written."""
    with ExitStack() as stack:
        opened = [stack.enter_context(file.open("rb")) for file in files]
        for number, line in enumerate(lines):
            ends = list(zip(opened, line["bytes"], lines[-1]["bytes"], strict=True))
            if any(not file.tell() <= end <= last for file, end, last in ends):
                return lines[:number]
            if [zlib.crc32(file.read(end - file.tell())) for file, end, _ in ends] != line["checksums"]:
                return lines[:number]
    return lines


def _unchanged(lines: list[dict[str, Any]], chunks: Iterator[_Chunk]) -> tuple[list[dict[str, Any]], Iterator[_Chunk]]:
    """Returns the lines of the journal that the documents still agree with, and the chunks that are left to do."""
    for number, line in enumerate(lines):
        chunk = next(chunks, None)
        if chunk is None or _digests(chunk[1]).hex() != line["digests"]:
            return lines[:number], chunks if chunk is None else chain([chunk], chunks)
    return lines, chunks


def _truncate(partial: Path, lines: list[dict[str, Any]]) -> None:
    """Cuts the files of a half-built cache to what these lines of the journal vouch for."""
    sizes = lines[-1]["bytes"] if lines else [0] * len(_GROWING_FILES)
    write_json_lines(partial / _JOURNAL, lines)
    for name, size in zip(_GROWING_FILES, sizes, strict=True):
        os.truncate(partial / name, size)


def _durable_size(path: Path) -> int:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return path.stat().st_size


def _id_dtype(tokenizer: SectionTokenizer) -> np.dtype[Any]:
    return np.dtype("<u2") if tokenizer.backend.get_vocab_size() <= 2**16 else np.dtype("<u4")
