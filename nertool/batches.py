"""Which windows go into which batch, and what a batch holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nertool.window_cache import WindowCache
from nertool.windows import SectionTokenizer

# So many batches' worth of windows are sorted by length together: enough that windows of a batch have nearly one
# length, few enough that batches stay random.
_BATCHES_SORTED_TOGETHER = 50


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows of about one length, padded to the longest of them.

    Args:
        ids: Token ids with special tokens, `(batch, tokens)` int64.
        attention_mask: 1 where there is a token, `(batch, tokens)` int64.
        targets: What each channel should say, `(batch, tokens, channels)` float32.
        loss_mask: 1 where the window owns the token, `(batch, tokens)` float32; special tokens and padding are 0.
    """

    ids: Tensor
    attention_mask: Tensor
    targets: Tensor
    loss_mask: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on a device; a GPU copies it while the CPU goes on."""
        if device.type != "cuda":
            return Batch(*(tensor.to(device) for tensor in self._tensors()))
        return Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.ids, self.attention_mask, self.targets, self.loss_mask


def pack_by_length(
    lengths: npt.NDArray[np.int64], order: npt.NDArray[np.int64], budget: int
) -> list[npt.NDArray[np.int64]]:
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


def epoch_batches(lengths: npt.NDArray[np.int64], budget: int, seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """Returns the batches of one epoch: random, yet each of windows of about one length.

    It depends on nothing but its arguments, so a resumed run needs only the epoch and the number of batches done.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    group = max(1, round(_BATCHES_SORTED_TOGETHER * budget / max(1.0, float(lengths.mean()))))
    batches = []
    for start in range(0, len(order), group):
        part = order[start : start + group]
        batches += pack_by_length(lengths, part[np.argsort(lengths[part], kind="stable")], budget)
    return [batches[i] for i in random.permutation(len(batches))]


def pad_ids(rows: Sequence[npt.NDArray[np.int64]], tokenizer: SectionTokenizer) -> tuple[Tensor, Tensor]:
    """Puts special tokens around windows and pads them.

    Args:
        rows: Token ids of each window.
        tokenizer: Knows the special tokens.

    Returns:
        Ids and attention mask, `(batch, tokens)` int64.
    """
    longest = max(map(len, rows)) + tokenizer.special_tokens
    ids = np.full((len(rows), longest), tokenizer.pad_id, np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    before = len(tokenizer.prefix)
    for i, row in enumerate(rows):
        end = before + len(row)
        ids[i, :before] = tokenizer.prefix
        ids[i, before:end] = row
        ids[i, end : end + len(tokenizer.suffix)] = tokenizer.suffix
        mask[i, : end + len(tokenizer.suffix)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def training_batch(
    cache: WindowCache,
    indices: npt.NDArray[np.int64],
    tokenizer: SectionTokenizer,
    columns: npt.NDArray[np.int64],
    channels: int,
) -> Batch:
    """Reads windows from the memory map.

    Args:
        cache: The training cache.
        indices: Which windows, `(batch,)`.
        tokenizer: Knows the special tokens.
        columns: The model's channel of each channel of the cache, `(cache channels,)`.
        channels: How many channels the model has.
    """
    windows = cache.windows[indices]
    ranges = [(int(w["start"]), int(w["start"]) + int(w["length"])) for w in windows]
    ids, mask = pad_ids([cache.tokens[start:end].astype(np.int64) for start, end in ranges], tokenizer)
    targets = np.zeros((*ids.shape, channels), np.float32)
    loss_mask = np.zeros(ids.shape, np.float32)
    before = len(tokenizer.prefix)
    for i, (window, (start, end)) in enumerate(zip(windows, ranges, strict=True)):
        bits = np.unpackbits(cache.targets[start:end], axis=1, count=cache.scheme.channels)
        targets[i, before : before + end - start, columns] = bits.T  # numpy puts the indexed axis first
        first = before + int(window["owned_start"])
        loss_mask[i, first : first + int(window["owned_length"])] = 1
    return Batch(ids, mask, torch.from_numpy(targets), torch.from_numpy(loss_mask))
