"""Building a training cache.

It grows as a hidden sibling with a journal, so that a killed build goes on where it was, and to the same bytes.
"""

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import zstandard

from nertool.documents import Document, dump_document
from nertool.errors import NertoolError
from nertool.files import check_output, partial_path, read_json, replace_folder, write_json, write_manifest
from nertool.labels import LabelScheme
from nertool.provenance import annotators
from nertool.representation import Representation, represent
from nertool.settings import WindowSettings
from nertool.targets import locate, paint
from nertool.window_cache import (
    CACHE_FILE,
    DATA_FILES,
    FORMAT_VERSION,
    WINDOW_DTYPE,
    WindowCache,
    differences,
    is_cache,
    open_cache,
)
from nertool.windows import SectionTokenizer, plan_windows

_JOURNAL = "journal.jsonl"
_FINGERPRINT = "fingerprint.json"
_DOCUMENTS_PER_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Scan:
    """What a first pass over the documents tells: how many, their classes and annotators, and a digest of it all."""

    documents: int
    labels: Counter[str]
    annotators: tuple[str, ...]
    digest: str


def scan(documents: Iterable[Document], on_documents: Callable[[int], None] = lambda _: None) -> Scan:
    """Reads all documents once; `on_documents` is told how many are done."""
    labels: Counter[str] = Counter()
    known: set[str] = set()
    digest = hashlib.sha256()
    count = 0
    for document in documents:
        count += 1
        entities = [entity for section in document.sections for entity in section.entities]
        labels.update(entity.label for entity in entities)
        known.update(annotators(document))
        digest.update(dump_document(document))
        on_documents(count)
    return Scan(count, labels, tuple(sorted(known)), digest.hexdigest())


def fingerprint(
    scanned: Scan, tokenizer: SectionTokenizer, scheme: LabelScheme, windows: WindowSettings
) -> dict[str, Any]:
    """Returns everything that decides on a cache's bytes."""
    return {
        "format": FORMAT_VERSION,
        "documents": scanned.digest,
        "tokenizer": tokenizer.digest,
        "labels": list(scheme.labels),
        "begin_channels": scheme.begin,
        **windows.model_dump(),
    }


def build_cache(
    path: Path,
    documents: Callable[[], Iterable[Document]],
    tokenizer: SectionTokenizer,
    windows: WindowSettings,
    *,
    scanned: Scan,
    scheme: LabelScheme,
    force: bool = False,
    on_documents: Callable[[int], None] = lambda _: None,
) -> WindowCache:
    """Builds a cache, goes on with a half-built one, or opens the finished one that the same things made.

    Args:
        path: The folder to make.
        documents: Gives the documents, always the same in the same order.
        tokenizer: The tokenizer.
        windows: The window sizes.
        scanned: What `scan` found in the same documents.
        scheme: The classes and channels.
        force: Replace a cache that something else made.
        on_documents: Told how many documents are done.

    Raises:
        NertoolError: If something else made what is there; says what differs.
    """
    wanted = fingerprint(scanned, tokenizer, scheme, windows)
    if is_cache(path):
        try:
            cache = open_cache(path)
        except NertoolError:  # damaged, or of another format version
            if not force:
                raise
            different = ["it can't be read"]
        else:
            different = differences(cache.info["fingerprint"], wanted)
            if not different:
                return cache
        if not force:
            raise NertoolError(
                f"the cache {path} was made by something else: {'; '.join(different)}",
                "choose another output, or --force to build it anew",
            )
    check_output(path, force=force)
    partial = partial_path(path)
    journal = _resume(partial, wanted)
    total = Representation()
    counts: Counter[str] = Counter()
    done = 0
    for line in journal:
        _add_chunk(line, total, counts)
        done += line["documents"]
    on_documents(done)
    id_dtype = _id_dtype(tokenizer)
    remaining = islice(documents(), done, None)
    with (partial / _JOURNAL).open("ab") as journal_file:
        while chunk := list(islice(remaining, _DOCUMENTS_PER_CHUNK)):
            data, line = _encode_chunk(chunk, tokenizer, windows, scheme, id_dtype, counts["tokens"])
            for name, content in zip(DATA_FILES, data, strict=True):
                with (partial / name).open("ab") as file:
                    file.write(content)
                    file.flush()
            # The data must not reach the disk after the journal line that vouches for it.
            line["bytes"] = [_durable_size(partial / name) for name in DATA_FILES]
            journal_file.write(orjson.dumps(line) + b"\n")
            journal_file.flush()
            _add_chunk(line, total, counts)
            done += len(chunk)
            on_documents(done)
    write_json(
        partial / CACHE_FILE,
        {
            "fingerprint": wanted,
            "counts": {"documents": done, **counts, "labels": dict(sorted(scanned.labels.items()))},
            "annotators": list(scanned.annotators),
            "bytes_per_token_id": id_dtype.itemsize,
            "representation": total.to_json(),
        },
    )
    (partial / _FINGERPRINT).unlink()
    (partial / _JOURNAL).unlink()
    write_manifest(partial, "cache")
    replace_folder(partial, path)
    return open_cache(path)


def _encode_chunk(
    chunk: list[Document],
    tokenizer: SectionTokenizer,
    windows: WindowSettings,
    scheme: LabelScheme,
    id_dtype: np.dtype[Any],
    shift: int,
) -> tuple[tuple[bytes, ...], dict[str, Any]]:
    sections = [section for document in chunk for section in document.sections]
    tokens = tokenizer.tokenize([section.text for section in sections])
    spans = locate(sections, tokens, scheme)
    plan = plan_windows(tokens, windows.max_tokens - tokenizer.special_tokens, windows.overlap_tokens)
    table = np.empty(len(plan), WINDOW_DTYPE)
    table["start"] = plan.starts + shift
    table["length"] = plan.lengths
    table["owned_start"] = plan.owned_starts - plan.starts
    table["owned_length"] = plan.owned_ends - plan.owned_starts
    bits = np.concatenate([paint(spans, len(tokens.ids), scheme), tokens.word_starts[:, None]], axis=1)
    lines = b"".join(dump_document(document) + b"\n" for document in chunk)
    data = (
        tokens.ids.astype(id_dtype).tobytes(),
        np.packbits(bits, axis=1).tobytes(),
        table.tobytes(),
        zstandard.ZstdCompressor(level=3).compress(lines),
    )
    representation = represent(sections, tokens, spans, scheme)
    line = {
        "documents": len(chunk),
        "counts": {
            "sections": len(sections),
            "empty_sections": sum(not section.text.strip() for section in sections),
            "tokens": len(tokens.ids),
            "windows": len(plan),
        },
        "representation": representation.to_json(),
    }
    return data, line


def _add_chunk(line: dict[str, Any], total: Representation, counts: Counter[str]) -> None:
    counts.update(line["counts"])
    part = line["representation"]
    total.add(
        Representation(
            part["entities"],
            part["kept"],
            part["invented"],
            Counter(part["losses"]),
            part["touching"],
            part["examples"],
        )
    )


def _resume(partial: Path, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Brings a half-built cache to its last vouched state; starts afresh if something else began it."""
    begun, journal = partial / _FINGERPRINT, partial / _JOURNAL
    if begun.is_file() and journal.is_file() and read_json(begun) == wanted:
        whole = [line for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        lines = [orjson.loads(line) for line in whole]
        sizes = dict(zip(DATA_FILES, lines[-1]["bytes"] if lines else [0] * len(DATA_FILES), strict=True))
        if all((partial / name).is_file() and (partial / name).stat().st_size >= sizes[name] for name in DATA_FILES):
            journal.write_bytes(b"".join(whole))
            for name, size in sizes.items():
                os.truncate(partial / name, size)
            return lines
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in (*DATA_FILES, _JOURNAL):
        (partial / name).touch()
    write_json(begun, wanted)  # last: from here on there is something to go on with
    return []


def _durable_size(path: Path) -> int:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return path.stat().st_size


def _id_dtype(tokenizer: SectionTokenizer) -> np.dtype[Any]:
    return np.dtype("<u2") if len(tokenizer.tokenizer) <= 2**16 else np.dtype("<u4")
