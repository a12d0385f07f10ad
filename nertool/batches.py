"""Which windows go into which batch, and what a batch holds."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nertool.packing import pack_by_length, pad_ids, round_up
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
        attention_mask: 1 where there is a token, `(batch, tokens)` int64; None on GPUs, if there is one everywhere.
        targets: What each channel should say, `(batch, tokens, channels)` float32.
        loss_mask: 1 where the window owns the token, `(batch, tokens)` float32; special tokens and padding are 0.
        teacher_logits: In distillation, what the teacher says, `(batch, tokens, channels)` float32.
        labelled: In distillation, 1 for windows whose targets are known, `(batch,)` float32.
        teacher_hidden: The teacher's hidden states, if they are matched, `(batch, tokens, layers · units)` float32.
    """

    ids: Tensor
    attention_mask: Tensor | None
    targets: Tensor
    loss_mask: Tensor
    teacher_logits: Tensor | None = None
    labelled: Tensor | None = None
    teacher_hidden: Tensor | None = None

    def to(self, device: torch.device, longest: int) -> "Batch":
        """Returns the batch on a device; a GPU copies it while the CPU goes on.

        GPUs prepare attention and keep memory for each shape that comes, so batches there are as long as a multiple of
        16 tokens, or as the longest window. Without padding there is no mask, as attention is faster without one.

        Args:
            device: The device.
            longest: Tokens of the longest window of all.
        """
        if device.type in ("cpu", self.ids.device.type):
            return self
        tokens = self.ids.shape[1]
        full = self.padded(max(tokens, int(round_up(np.array(tokens), longest))))
        assert full.attention_mask is not None
        whole = bool(full.attention_mask.all())  # asked here, as asking a GPU would mean to wait for it
        if device.type == "cuda":
            batch = Batch(*(tensor.pin_memory().to(device, non_blocking=True) for tensor in full.tensors()))
        else:
            batch = Batch(*(tensor.to(device) for tensor in full.tensors()))
        return replace(batch, attention_mask=None) if whole else batch

    def padded(self, tokens: int) -> "Batch":
        """Returns the batch made longer; ids of padding don't matter, as it is masked out."""

        def pad(tensor: Tensor) -> Tensor:
            if tensor.ndim == 1:
                return tensor
            sides = [0, 0] * (tensor.ndim - 2) + [0, tokens - tensor.shape[1]]
            return torch.nn.functional.pad(tensor, sides)

        return Batch(*map(pad, self.tensors()))

    def tensors(self) -> list[Tensor]:
        """Returns the tensors that there are, in the order of the arguments."""
        optional = (self.teacher_logits, self.labelled, self.teacher_hidden)
        assert self.attention_mask is not None  # where it is None, the batch is where it shall be
        plain = (self.ids, self.attention_mask, self.targets, self.loss_mask)
        return [*plain, *(tensor for tensor in optional if tensor is not None)]


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


def training_batch(
    cache: WindowCache,
    indices: npt.NDArray[np.int64],
    tokenizer: SectionTokenizer,
    columns: npt.NDArray[np.int64] | None,
    channels: int,
) -> Batch:
    """Reads windows from the memory map.

    Args:
        cache: The training cache.
        indices: Which windows, `(batch,)`.
        tokenizer: Knows the special tokens.
        columns: The model's channel of each channel of the cache, `(cache channels,)`; None leaves the targets 0.
        channels: How many channels the model has.
    """
    windows = cache.windows[indices]
    ranges = [(int(w["start"]), int(w["start"]) + int(w["length"])) for w in windows]
    ids, mask = pad_ids([cache.tokens[start:end].astype(np.int64) for start, end in ranges], tokenizer)
    targets = np.zeros((*ids.shape, channels), np.float32)
    loss_mask = np.zeros(ids.shape, np.float32)
    before = len(tokenizer.prefix)
    for i, (window, (start, end)) in enumerate(zip(windows, ranges, strict=True)):
        if columns is not None:
            bits = np.unpackbits(cache.targets[start:end], axis=1, count=cache.scheme.channels)
            targets[i, before : before + end - start, columns] = bits.T  # numpy puts the indexed axis first
        first = before + int(window["owned_start"])
        loss_mask[i, first : first + int(window["owned_length"])] = 1
    return Batch(*map(torch.from_numpy, (ids, mask, targets, loss_mask)))
