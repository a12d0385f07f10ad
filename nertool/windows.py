"""Sections → tokens → windows. The only module that tokenises.

All sections of a batch are one flat run of tokens, cut by `section_bounds`; windows are ranges of it. A token can be
in several overlapping windows, but exactly one window *owns* it: only there it counts in the loss and in decoding.

Deliberate differences from KAZU's dataset: windows and their owned ranges begin at word starts where they can (KAZU
trains windows that start inside a word as if a word started there), windows of a long section have about the same
length, and nothing is padded here.
"""

import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nertool.errors import NertoolError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_CHARACTERS_AT_ONCE = 1_000_000

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
        backend: The tokenizer, of the library `tokenizers`.
        prefix: Ids of the special tokens before a window's tokens.
        suffix: Ids of those after them.
        pad_id: The id that fills a batch.
        digest: SHA-256 of what decides how texts become tokens, for fingerprints.
    """

    backend: "Tokenizer"
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pad_id: int
    digest: str

    @property
    def special_tokens(self) -> int:
        """How many special tokens a window has."""
        return len(self.prefix) + len(self.suffix)

    @classmethod
    def wrap(cls, backend: "Tokenizer", pad_id: int) -> "SectionTokenizer":
        """Sets a tokenizer to take texts literally, and finds out what it puts around them."""
        take_texts_literally(backend)
        bare = backend.encode("a", add_special_tokens=False).ids
        full = backend.encode("a", add_special_tokens=True).ids
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return cls(
            backend=backend,
            prefix=tuple(full[:at]),
            suffix=tuple(full[at + len(bare) :]),
            pad_id=pad_id,
            digest=hashlib.sha256(backend.to_str().encode()).hexdigest(),
        )

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Tokenises whole sections, however long; special tokens are put around windows later."""
        return tokenize(self.backend, texts)


def take_texts_literally(backend: "Tokenizer") -> None:
    """Sets a tokenizer to give each text whole; special tokens spelt out in it (`[SEP]`) are text, too.

    The last of it is lost when a tokenizer goes to another process.
    """
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True


def tokenize(backend: "Tokenizer", texts: Sequence[str]) -> Tokens:
    """Tokenises whole sections, however long, without special tokens."""
    parts = [_tokenize(backend, group) for group in _groups(texts)]
    if len(parts) == 1:
        return parts[0]
    lengths = np.concatenate([np.diff(part.section_bounds) for part in parts])
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.starts for part in parts]),
        np.concatenate([part.ends for part in parts]),
        np.concatenate([part.word_starts for part in parts]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
    )


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """Divides texts into groups of about a million characters, so that memory doesn't grow with all of them."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE:
            yield group
            group, size = [], 0
    if group or not texts:
        yield group


def _tokenize(backend: "Tokenizer", texts: list[str]) -> Tokens:
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    lengths = [len(encoding) for encoding in encodings]
    bounds = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    ids = np.fromiter(chain.from_iterable([encoding.ids for encoding in encodings]), np.int32, int(bounds[-1]))
    if not len(ids):
        nothing = np.zeros(0, np.int32)
        return Tokens(nothing, nothing, nothing, np.zeros(0, np.bool_), bounds)
    offsets = chain.from_iterable(chain.from_iterable([encoding.offsets for encoding in encodings]))
    return tokens_from_offsets(texts, ids, np.fromiter(offsets, np.int64, 2 * len(ids)).reshape(-1, 2), bounds)


def tokens_from_offsets(texts: Sequence[str], ids: Ints, offsets: Longs, bounds: Longs) -> Tokens:
    """Finds the words of sections that are tokenised already, by whatever tokenizer.

    Args:
        texts: The sections.
        ids: Token ids, `(tokens,)`, at least one.
        offsets: First character of each token in its section and one past the last, `(tokens, 2)`.
        bounds: As `Tokens.section_bounds`.
    """
    # All sections side by side with a line break between, so that each step is one operation for all of them.
    codes = np.frombuffer("\n".join(["", *texts, ""]).encode("utf-32-le", "surrogatepass"), np.uint32)
    shifts = np.zeros(len(texts), np.int64)
    np.cumsum([len(text) + 1 for text in texts[:-1]], out=shifts[1:])
    shift_of_token = np.repeat(shifts + 1, np.diff(bounds))
    starts, ends = _trim(codes, offsets + shift_of_token[:, None])
    word_starts = _word_starts(codes, starts, ends)
    word_starts[bounds[:-1][np.diff(bounds) > 0]] = True
    return Tokens(
        ids,
        (starts - shift_of_token).astype(np.int32),
        (ends - shift_of_token).astype(np.int32),
        word_starts,
        bounds,
    )


class _CharacterTest:
    """A test of characters that runs over whole texts: each character that occurs is tested once.

    Args:
        test: Says yes or no to a character.
    """

    def __init__(self, test: Callable[[str], bool]) -> None:
        self._test = test
        self._known = np.zeros(sys.maxunicode + 1, np.uint8)  # 0: not known yet, 1: no, 2: yes

    def __call__(self, codes: npt.NDArray[np.uint32]) -> Bools:
        """Says which code points pass, `(n,)` bool."""
        found = self._known[codes]
        if not found.all():
            for code in np.unique(codes[found == 0]).tolist():
                self._known[code] = 2 if self._test(chr(code)) else 1
            found = self._known[codes]
        passed: Bools = found == 2
        return passed


_is_blank = _CharacterTest(str.isspace)
_is_in_word = _CharacterTest(lambda char: char.isalnum() or char in _MARKS)


def _trim(codes: npt.NDArray[np.uint32], offsets: npt.NDArray[np.int64]) -> tuple[Longs, Longs]:
    """Takes white space off both ends of each token: some tokenizers count the blank before a word to it.

    Args:
        codes: The code points of all sections, a line break before, between and after them.
        offsets: Start and end of each token in them, `(tokens, 2)`.
    """
    starts, ends = np.maximum.accumulate(offsets, axis=0).T
    blank = _is_blank(codes)
    # For each position the first one from there on that isn't blank; likewise backwards.
    positions = np.arange(len(codes), dtype=np.int32)
    next_solid = np.minimum.accumulate(np.where(blank, np.int32(len(codes)), positions)[::-1])[::-1]
    solid_end = np.maximum.accumulate(np.append(np.int32(0), np.where(blank, np.int32(0), positions + np.int32(1))))
    trimmed = np.minimum(next_solid[starts], ends)
    only_blank = trimmed >= ends
    new_starts = np.where(only_blank, starts, trimmed)
    new_ends = np.where(only_blank, starts, solid_end[ends])
    return new_starts, np.maximum(new_ends, new_starts)


def _word_starts(codes: npt.NDArray[np.uint32], starts: Longs, ends: Longs) -> Bools:
    """Says at which tokens a word starts; pieces of one character and white space never start one.

    The first token of a section, which always does, is left to the caller.
    """
    in_word = _is_in_word(codes)
    result: Bools = ~(in_word[starts - 1] & in_word[starts])
    # Some tokenizers (RoBERTa's) give a blank alone the place of the character after it.
    piece = (starts[1:] == starts[:-1]) & (ends[:-1] > starts[:-1])
    result[1:] &= ~piece & (ends[1:] > starts[1:])
    return result


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
