"""The training cache: tokenised windows on disk, memory-mapped, that know what made them.

A cache is a folder:

- `cache.json`: the fingerprint of what made it, the counts, and what the targets can't express;
- `tokens.bin`: token ids of all sections, one after the other, uint16 or uint32;
- `targets.bin`: for each token its target channels and whether a word starts there, packed bits;
- `windows.bin`: for each window where it lies in the two above and which of its tokens it owns;
- `documents.jsonl.zst`: the documents, so that a cache can also be evaluated on, far from where it was made.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, NonNegativeInt

from nertool.documents import Document
from nertool.errors import NertoolError
from nertool.files import file_digest, read_json
from nertool.labels import LabelScheme, make_scheme
from nertool.settings import WindowSettings
from nertool.windows import SectionTokenizer

CACHE_FILE = "cache.json"
MAPPED_FILES = ("tokens.bin", "targets.bin", "windows.bin")
FORMAT_VERSION = 3
WINDOW_DTYPE = np.dtype([("start", "<i8"), ("length", "<u4"), ("owned_start", "<u4"), ("owned_length", "<u4")])


class _Version(BaseModel):
    format: int


class _Versioned(BaseModel):
    fingerprint: _Version


class _Fingerprint(_Version):
    documents: str
    tokenizer: str
    labels: list[str]
    begin_channels: bool
    max_tokens: int
    overlap_tokens: int


class Sizes(BaseModel):
    """What a cache, or a part of one, counts."""

    sections: NonNegativeInt
    empty_sections: NonNegativeInt
    tokens: NonNegativeInt
    windows: NonNegativeInt


class _Counts(Sizes):
    documents: NonNegativeInt
    labels: dict[str, NonNegativeInt]


class Represented(BaseModel):
    """What the targets can't express, as JSON."""

    entities: int
    kept: int
    invented: int
    touching: int
    losses: dict[str, int]
    examples: dict[str, list[str]]
    ceiling_micro_f1: float | None


class _Info(BaseModel):
    """What `cache.json` has at least."""

    fingerprint: _Fingerprint
    counts: _Counts
    annotators: dict[str, int | None] | list[str]  # an older cache has only their names
    bytes_per_token_id: Literal[2, 4]
    files: dict[str, str] = {}
    representation: Represented


@dataclass(frozen=True, slots=True)
class WindowCache:
    """An open cache.

    Args:
        path: Its folder.
        info: The content of `cache.json`.
        scheme: The classes and channels of the targets.
        tokens: Token ids, `(tokens,)`, memory-mapped.
        targets: Packed bits, `(tokens, ceil((channels + 1) / 8))` uint8, memory-mapped.
        windows: `(windows,)` of `WINDOW_DTYPE`, memory-mapped.
    """

    path: Path
    info: dict[str, Any]
    scheme: LabelScheme
    tokens: npt.NDArray[Any]
    targets: npt.NDArray[np.uint8]
    windows: npt.NDArray[Any]

    def documents(self) -> Iterator[Document]:
        """Reads the documents that the cache was made of."""
        from nertool.formats import ReadReport, read_documents  # noqa: PLC0415 (only where a cache is evaluated on)

        return read_documents(self.path / "documents.jsonl.zst", ReadReport())


def documents_of_windows(cache: WindowCache, windows: npt.NDArray[np.int64], tokenizer: SectionTokenizer) -> list[str]:
    """Returns the ids of the documents that windows are from; tokenises documents until all are found.

    Args:
        cache: The cache.
        windows: Indices of windows, `(n,)`.
        tokenizer: The one that the cache was made with.
    """
    starts = np.sort(cache.windows["start"][windows])
    found: list[str] = []
    end = 0
    for document in cache.documents():
        begin, end = end, end + len(tokenizer.tokenize([section.text for section in document.sections]).ids)
        if np.searchsorted(starts, begin) < np.searchsorted(starts, end):
            found.append(document.id)
        if end > starts[-1]:
            break
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Says in words in what two fingerprints differ."""
    found = []
    for key, value in new.items():
        if old.get(key) == value:
            continue
        if key in ("documents", "tokenizer"):
            found.append(f"the {key} {'have' if key == 'documents' else 'has'} changed")
        elif key == "labels":
            lost, added = (
                sorted(set(old["labels"]) - set(new["labels"])),
                sorted(set(new["labels"]) - set(old["labels"])),
            )
            found.append(f"labels: it has {', '.join(lost) or 'none'} more, and lacks {', '.join(added) or 'none'}")
        else:
            found.append(f"{key} is {old.get(key)!r} there, not {value!r}")
    return found


def is_cache(path: Path) -> bool:
    """Says whether a path is a finished cache."""
    return (path / CACHE_FILE).is_file()


def open_cache(path: Path) -> WindowCache:
    """Opens a finished cache; reads nothing yet but its description.

    Raises:
        NertoolError: If it is no cache, of another format version, or its files have other sizes than they should.
    """
    if not is_cache(path):
        raise NertoolError(f"{path} is not a cache: {CACHE_FILE} is missing", "make one with `nertool cache`")
    version = read_json(path / CACHE_FILE, _Versioned)["fingerprint"]["format"]
    if version != FORMAT_VERSION:
        raise NertoolError(f"{path} has cache format {version}, not {FORMAT_VERSION}", "build it anew")
    info = read_json(path / CACHE_FILE, _Info)
    made_by = info["fingerprint"]
    scheme = make_scheme(made_by["labels"], begin=made_by["begin_channels"])
    counts = info["counts"]
    width = target_bytes(scheme)
    id_dtype = np.dtype(f"<u{info['bytes_per_token_id']}")
    expected = {
        "tokens.bin": counts["tokens"] * id_dtype.itemsize,
        "targets.bin": counts["tokens"] * width,
        "windows.bin": counts["windows"] * WINDOW_DTYPE.itemsize,
    }
    for name, size in expected.items():
        if not (path / name).is_file() or (path / name).stat().st_size != size:
            raise NertoolError(
                f"the cache {path} is damaged: {name} should have {size} bytes", "build it anew with --force"
            )
    return WindowCache(
        path,
        info,
        scheme,
        _map(path / "tokens.bin", id_dtype),
        _map(path / "targets.bin", np.dtype(np.uint8)).reshape(-1, width),
        _map(path / "windows.bin", WINDOW_DTYPE),
    )


def check_content(cache: WindowCache) -> None:
    """Makes sure that a cache holds what was written into it, before hours are spent on learning it; reads all of it.

    Raises:
        NertoolError: If a file holds something else.
    """
    for name, digest in cache.info.get("files", {}).items():  # an older nertool's has none
        if file_digest(cache.path / name) != digest:
            raise NertoolError(
                f"the cache {cache.path} is damaged: {name} is not what was written", "build it anew with --force"
            )


def check_cache(cache: WindowCache, tokenizer: SectionTokenizer, windows: WindowSettings, *, begin: bool) -> None:
    """Makes sure that a cache fits a model.

    Raises:
        NertoolError: Saying what differs.
    """
    made_by = cache.info["fingerprint"]
    wanted = {**made_by, "tokenizer": tokenizer.digest, "begin_channels": begin, **windows.model_dump()}
    if different := differences(made_by, wanted):
        raise NertoolError(
            f"the cache {cache.path} doesn't fit: {'; '.join(different)}",
            "build it anew with the same --model and settings as the training",
        )


def target_bytes(scheme: LabelScheme) -> int:
    """Returns how many bytes the targets of a token take: one bit for each channel and one for the word start."""
    return (scheme.channels + 1 + 7) // 8


def _map(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")
