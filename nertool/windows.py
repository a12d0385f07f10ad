"""Sections → tokens → windows. The only module that tokenises.

All sections of a batch are one flat run of tokens, cut by `section_bounds`; windows are ranges of it. A token can be
in several overlapping windows, but exactly one window *owns* it: only there it counts in the loss and in decoding.

Deliberate differences from KAZU's dataset: windows and their owned ranges begin at word starts where they can (KAZU
trains windows that start inside a word as if a word started there), windows of a long section have about the same
length, and nothing is padded here.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nertool.errors import NertoolError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

# Combining marks belong to the word of the letter before them; str.isalnum() says no for them.
_MARKS = frozenset(chr(code) for code in range(0x300, 0x370))


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a batch of sections, without special tokens.

    Args:
        ids: Token ids, `(tokens,)` int32.
        starts: First character of each token in its section, `(tokens,)` int32; white space is never inside.
        ends: One past its last character, `(tokens,)` int32; equal to the start for a token of white space only.
        word_starts: Whether a word starts at the token, `(tokens,)` bool. A word is a run of letters and digits, or
            one other character, whatever the tokenizer takes for words.
        section_bounds: Tokens of section `i` are `section_bounds[i]:section_bounds[i + 1]`, `(sections + 1,)` int64.
    """

    ids: Ints
    starts: Ints
    ends: Ints
    word_starts: Bools
    section_bounds: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Windows:
    """Ranges of a flat run of tokens; all `(windows,)` int64.

    Args:
        starts: First token of each window.
        ends: One past its last token.
        owned_starts: First token that the window owns.
        owned_ends: One past the last token that it owns.
    """

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    owned_starts: npt.NDArray[np.int64]
    owned_ends: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each window without special tokens, `(windows,)` int64."""
        return self.ends - self.starts


@dataclass(frozen=True, slots=True)
class SectionTokenizer:
    """A fast tokenizer and what it puts around a window.

    Args:
        tokenizer: The Hugging Face tokenizer.
        prefix: Ids of the special tokens before a window's tokens.
        suffix: Ids of those after them.
        pad_id: The id that fills a batch.
        digest: SHA-256 of what decides how texts become tokens, for fingerprints.
    """

    tokenizer: "PreTrainedTokenizerFast"
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    digest: str

    @property
    def special_tokens(self) -> int:
        """How many special tokens a window has."""
        return len(self.prefix) + len(self.suffix)

    @classmethod
    def wrap(cls, tokenizer: Any, name: str) -> "SectionTokenizer":
        """Wraps a tokenizer.

        Raises:
            NertoolError: If it is not a fast one: only those know which characters a token stands for.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise NertoolError(
                f"the tokenizer of {name} is not a fast one, so its tokens have no character offsets",
                "use a checkpoint with a tokenizer.json",
            )
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        # A text that spells out `[SEP]` or `</s>` must not end up as that special token.
        backend.encode_special_tokens = True
        bare = backend.encode("a", add_special_tokens=False).ids
        full = backend.encode("a", add_special_tokens=True).ids
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return cls(
            tokenizer=tokenizer,
            prefix=tuple(full[:at]),
            suffix=tuple(full[at + len(bare) :]),
            pad_id=tokenizer.pad_token_id or 0,
            digest=hashlib.sha256(backend.to_str().encode()).hexdigest(),
        )

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenises whole sections, however long; special tokens are put around windows later."""
        encodings = self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        lengths = [len(encoding) for encoding in encodings]
        bounds = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(lengths, out=bounds[1:])
        ids = np.fromiter((i for encoding in encodings for i in encoding.ids), np.int32, int(bounds[-1]))
        starts = np.empty(len(ids), np.int32)
        ends = np.empty(len(ids), np.int32)
        word_starts = np.zeros(len(ids), np.bool_)
        for encoding, text, first, last in zip(encodings, texts, bounds[:-1], bounds[1:], strict=True):
            if first < last:
                offsets = np.array(encoding.offsets, np.int32)
                starts[first:last], ends[first:last] = _trim(text, offsets)
                word_starts[first:last] = _word_starts(text, starts[first:last], ends[first:last])
        return Tokens(ids, starts, ends, word_starts, bounds)


def _trim(text: str, offsets: Ints) -> tuple[Ints, Ints]:
    """Takes white space off both ends of each token: some tokenizers count the blank before a word to it."""
    starts, ends = np.maximum.accumulate(offsets[:, 0]), np.maximum.accumulate(offsets[:, 1])
    blank = np.fromiter(map(str.isspace, text), np.bool_, len(text))
    if not blank.any():
        return starts, ends
    # For each position the first one from there on that isn't blank; likewise backwards.
    positions = np.arange(len(text))
    next_solid = np.minimum.accumulate(np.append(np.where(blank, len(text), positions), len(text))[::-1])[::-1]
    solid_end = np.maximum.accumulate(np.append(0, np.where(blank, 0, positions + 1)))
    trimmed = np.minimum(next_solid[starts], ends)
    only_blank = trimmed >= ends
    new_starts = np.where(only_blank, starts, trimmed).astype(np.int32)
    new_ends = np.where(only_blank, starts, solid_end[ends]).astype(np.int32)
    return new_starts, np.maximum(new_ends, new_starts)


def _word_starts(text: str, starts: Ints, ends: Ints) -> Bools:
    """Says at which tokens a word starts; pieces of one character and white space never start one."""
    result = np.fromiter(
        (
            start == 0 or not (_in_word(text[start - 1]) and _in_word(text[start : start + 1]))
            for start in starts.tolist()
        ),
        np.bool_,
        len(starts),
    )
    result[1:] &= (starts[1:] != starts[:-1]) & (ends[1:] > starts[1:])
    result[0] = True
    return result


def _in_word(char: str) -> bool:
    return char.isalnum() or char in _MARKS


def plan_windows(tokens: Tokens, max_tokens: int, overlap_tokens: int) -> Windows:
    """Cuts sections into overlapping windows and shares out the tokens among them.

    Args:
        tokens: The tokens of the sections.
        max_tokens: Longest window, without special tokens.
        overlap_tokens: How many tokens neighbouring windows share at least.

    Returns:
        The windows in the order of the sections; every token is owned by exactly one of them.

    Raises:
        NertoolError: If the overlap leaves no room to go on.
    """
    if overlap_tokens >= max_tokens:
        raise NertoolError(
            f"windows.overlap_tokens is {overlap_tokens}, but a window holds {max_tokens} tokens of text",
            "choose a smaller overlap or longer windows",
        )
    rows: list[tuple[int, int, int, int]] = []
    for first, last in zip(tokens.section_bounds[:-1].tolist(), tokens.section_bounds[1:].tolist(), strict=True):
        if last - first <= max_tokens:
            if first < last:
                rows.append((first, last, first, last))
        else:
            rows += _cut(first, last, tokens.word_starts, max_tokens, overlap_tokens)
    table = np.array(rows, np.int64).reshape(-1, 4)
    return Windows(*table.T.copy())


def _cut(first: int, last: int, word_starts: Bools, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    count = math.ceil((last - first - overlap) / (size - overlap))
    step = math.ceil((last - first - size) / (count - 1))
    starts = [first]
    while starts[-1] + size < last:
        target = min(starts[-1] + step, last - size)
        starts.append(_near_word_start(target, starts[-1], starts[-1] + size - overlap, word_starts))
    ends = [min(start + size, last) for start in starts]
    borders = [first]
    for start, end in zip(starts[1:], ends[:-1], strict=True):
        borders.append(_near_word_start((start + end) // 2, start - 1, end, word_starts))
    borders.append(last)
    return list(zip(starts, ends, borders[:-1], borders[1:], strict=True))


def _near_word_start(target: int, lowest: int, highest: int, word_starts: Bools) -> int:
    """Returns the last word start in `(lowest, target]`, else the first in `(target, highest]`, else `target`."""
    before = np.flatnonzero(word_starts[lowest + 1 : target + 1])
    if len(before):
        return lowest + 1 + int(before[-1])
    after = np.flatnonzero(word_starts[target + 1 : highest + 1])
    return target + 1 + int(after[0]) if len(after) else target
