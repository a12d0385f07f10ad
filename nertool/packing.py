"""Windows → padded batches of token ids, for training and for every engine."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nertool.windows import Longs, SectionTokenizer

_MULTIPLE = 16  # tokens; with 8 or 32 it is no faster (docs/log.md)


def pack_by_length(lengths: Longs, order: Longs, budget: int) -> list[Longs]:
    """Cuts windows, in the given order, into batches that are at most `budget` tokens large with their padding.

    Args:
        lengths: Tokens of each window, special tokens included, `(windows,)`.
        order: Indices of windows, neighbours of about one length, `(n,)`.
        budget: Most tokens of a batch; a longer window is a batch of its own.

    Returns:
        The indices of each batch.
    """
    batches = []
    start, longest = 0, 0
    for position, length in enumerate(lengths[order].tolist()):
        longest = max(longest, length)
        if position > start and longest * (position - start + 1) > budget:
            batches.append(order[start:position])
            start, longest = position, length
    if start < len(order):
        batches.append(order[start:])
    return batches


def round_up(lengths: Longs, longest: int) -> Longs:
    """Returns how long windows are made so that there are few lengths: a multiple of 16 tokens, at most the longest.

    Args:
        lengths: Tokens of each window, special tokens included, `(windows,)`.
        longest: The most that there may be.
    """
    return np.minimum(-(-lengths // _MULTIPLE) * _MULTIPLE, longest)


def padded_batches(
    ids: npt.NDArray[Any],
    starts: npt.NDArray[Any],
    lengths: npt.NDArray[Any],
    tokenizer: SectionTokenizer,
    max_tokens: int,
    budget: int,
) -> Iterator[tuple[Longs, Longs, Longs]]:
    """Gives windows in batches of about one length, the longest first.

    There are few shapes of batches, as OpenVINO prepares itself for each new one and keeps that in memory: they are as
    long as a multiple of 16 tokens, and the last one has a power of two of rows, the further ones without a window.

    Args:
        ids: Token ids of whole texts, `(tokens,)`.
        starts: First token of each window, `(windows,)`.
        lengths: Tokens of each window without special tokens, `(windows,)`.
        tokenizer: Knows the special tokens.
        max_tokens: The longest window that the model takes, special tokens included.
        budget: Most tokens of a batch, padding included.

    Yields:
        The numbers of a batch's windows, `(batch,)`, their ids and mask, `(batch or more, tokens)`; all int64.
    """
    whole = lengths.astype(np.int64) + tokenizer.special_tokens
    padded = round_up(whole, max_tokens)
    for batch in pack_by_length(padded, np.argsort(-whole, kind="stable"), budget):
        rows = [ids[starts[i] : starts[i] + lengths[i]].astype(np.int64) for i in batch]
        longest = int(padded[batch[0]])
        full = max(1, budget // longest)
        rows += [np.empty(0, np.int64)] * (min(full, 1 << (len(rows) - 1).bit_length()) - len(rows))
        yield batch, *pad_ids(rows, tokenizer, longest)


def pad_ids(rows: Sequence[Longs], tokenizer: SectionTokenizer, at_least: int = 0) -> tuple[Longs, Longs]:
    """Puts special tokens around windows and pads them.

    Args:
        rows: Token ids of each window.
        tokenizer: Knows the special tokens.
        at_least: How long to make them, if none is longer, special tokens included.

    Returns:
        Ids and attention mask, `(batch, tokens)` int64.
    """
    longest = max(at_least, max(map(len, rows)) + tokenizer.special_tokens)
    ids = np.full((len(rows), longest), tokenizer.pad_id, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    before = len(tokenizer.prefix)
    for i, row in enumerate(rows):
        end = before + len(row)
        ids[i, :before] = tokenizer.prefix
        ids[i, before:end] = row
        ids[i, end : end + len(tokenizer.suffix)] = tokenizer.suffix
        mask[i, : end + len(tokenizer.suffix)] = 1
    return ids, mask
