"""A teacher's logits for every token of a cache, on disk, so that no epoch pays for the teacher again.

`NAME.f16` holds one row per token, `(tokens, channels)` float16, in the order of the cache's tokens; `NAME.json` says
which teacher and which cache made it. A computation that was killed goes on after its last whole chunk.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nertool.engines import Tagger
from nertool.errors import NertoolError
from nertool.files import exclusive, publish_file, read_json, write_json
from nertool.packing import padded_batches
from nertool.window_cache import WindowCache

Halves = npt.NDArray[np.float16]

# What is computed, sorted by length, and saved at once, and lost to a kill.
_WINDOWS_PER_CHUNK = 512


def teacher_logits(
    folder: Path,
    name: str,
    cache: WindowCache,
    teacher: Tagger,
    digest: str,
    on_windows: Callable[[int], None] = lambda _: None,
) -> Halves:
    """Computes a teacher's logits, goes on computing them, or opens those that are there.

    Args:
        folder: Where they are kept.
        name: Which of the folder's logits.
        cache: The tokens.
        teacher: The teacher.
        digest: What tells it from others; see `artefacts.weights_digest`.
        on_windows: Told how many windows are done.

    Returns:
        `(tokens, channels)` float16, memory-mapped.

    Raises:
        NertoolError: If what is there is another teacher's, or of another cache.
    """
    final, partial, facts = (folder / f"{name}{ending}" for ending in (".f16", ".f16.partial", ".json"))
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / name):
        if facts.is_file():
            _check(facts, _made_by(cache, digest))
        else:
            partial.unlink(missing_ok=True)
            final.unlink(missing_ok=True)
            write_json(facts, _made_by(cache, digest))
        if not final.is_file():
            _compute(partial, cache, teacher, on_windows)
            publish_file(partial, final)
    on_windows(len(cache.windows))
    return open_logits(folder, name, cache, teacher, digest)


def open_logits(folder: Path, name: str, cache: WindowCache, teacher: Tagger, digest: str) -> Halves:
    """Opens logits that are there; see `teacher_logits`.

    Raises:
        NertoolError: If they are another teacher's, of another cache, or damaged.
    """
    _check(folder / f"{name}.json", _made_by(cache, digest))
    path, shape = folder / f"{name}.f16", (len(cache.tokens), teacher.decisions.scheme.channels)
    if path.stat().st_size != 2 * shape[0] * shape[1]:
        raise NertoolError(f"{path} is damaged: it should have {2 * shape[0] * shape[1]:,} bytes", "remove that folder")
    return np.memmap(path, np.float16, mode="r", shape=shape) if len(cache.tokens) else np.zeros(shape, np.float16)


def _made_by(cache: WindowCache, digest: str) -> dict[str, Any]:
    return {"teacher": digest, "cache": cache.info["fingerprint"]}


def _check(facts: Path, made_by: dict[str, Any]) -> None:
    known = read_json(facts)
    what = {"teacher": "another teacher", "cache": "other documents or windows"}
    if different := [words for key, words in what.items() if known.get(key) != made_by[key]]:
        raise NertoolError(
            f"the teacher's logits in {facts.parent} were made by {' and '.join(different)}",
            "name another folder with --logits, or remove that one",
        )


def _compute(partial: Path, cache: WindowCache, teacher: Tagger, on_windows: Callable[[int], None]) -> None:
    """Appends chunk by chunk; the windows' owned tokens follow each other without a gap, so do the chunks."""
    starts = range(0, len(cache.windows), _WINDOWS_PER_CHUNK)
    chunks = [cache.windows[start : start + _WINDOWS_PER_CHUNK] for start in starts]
    row_bytes = 2 * teacher.decisions.scheme.channels
    sizes = np.cumsum([0, *(int(chunk["owned_length"].sum()) * row_bytes for chunk in chunks)])
    partial.touch()
    done = int(np.searchsorted(sizes, partial.stat().st_size, side="right")) - 1
    with partial.open("r+b") as file:
        file.truncate(int(sizes[done]))
        file.seek(0, os.SEEK_END)
        for number, chunk in enumerate(chunks[done:], start=done):
            on_windows(number * _WINDOWS_PER_CHUNK)
            file.write(_logits(chunk, cache, teacher).tobytes())
            file.flush()
            os.fsync(file.fileno())


def _logits(windows: npt.NDArray[Any], cache: WindowCache, teacher: Tagger) -> Halves:
    """Returns the logits of the tokens that some windows own, one after the other, `(tokens, channels)`."""
    bounds = np.cumsum([0, *windows["owned_length"].tolist()])
    found = np.empty((bounds[-1], teacher.decisions.scheme.channels), np.float16)
    before = len(teacher.tokenizer.prefix)
    starts, lengths = windows["start"], windows["length"].astype(np.int64)
    for batch, ids, mask in padded_batches(
        cache.tokens, starts, lengths, teacher.tokenizer, teacher.decisions.windows.max_tokens, teacher.tokens_per_batch
    ):
        logits = teacher.engine(ids, mask)
        for row, i in enumerate(batch):
            first = before + int(windows[i]["owned_start"])
            found[bounds[i] : bounds[i + 1]] = logits[row, first : first + int(windows[i]["owned_length"])]
    return found
