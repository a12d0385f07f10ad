"""The training loop, and what it needs: the plan of batches, the learning rate, the optimizer."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nertool.batches import Batch, epoch_batches
from nertool.checkpoints import Progress
from nertool.devices import autocast
from nertool.distributed import ALONE, World
from nertool.errors import NertoolError
from nertool.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LossFunction = Callable[[Tensor, Batch], Tensor]

_TOKENS_PER_BATCH = 2048
_MOST_TOKENS_PER_BATCH = 2**17  # larger batches make no step faster, and learning slower
_READ_LOSS_EVERY_STEPS = 10
_MOST_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did.

    Args:
        step: Its number, from 1.
        tokens: Real tokens (no padding, no special tokens) that it learned from.
        learning_rate: The backbone's learning rate in it.
        loss: Mean loss per token over the last steps; None in most steps, as reading it makes the device wait.
        skipped: Whether the weights were left as they were, as something was not finite.
    """

    step: int
    tokens: int
    learning_rate: float
    loss: float | None
    skipped: bool = False


class NonFiniteError(Exception):
    """Loss or gradients are not numbers any more; the weights are still those of before the step where that is known.

    Args:
        what: What is not finite.
        step: The step in which it was noticed.
        windows: The windows of that step, `(windows,)` int64; of the steps since the last look, where devices wait.
    """

    def __init__(self, what: str, step: int, windows: npt.NDArray[np.int64]) -> None:
        super().__init__(what)
        self.what = what
        self.step = step
        self.windows = windows


class BatchPlan:
    """All batches of all epochs of a run, known beforehand, so that the schedule and a resumed run are exact.

    Args:
        lengths: Tokens of each window, special tokens included, `(windows,)`.
        owned: Tokens that each window owns, `(windows,)`.
        settings: Epochs, seed, accumulation, evaluations.
        tokens_per_batch: Most tokens of a batch, padding included.
        processes: How many share the batches of a step.
    """

    def __init__(
        self,
        lengths: npt.NDArray[np.int64],
        owned: npt.NDArray[np.int64],
        settings: TrainSettings,
        tokens_per_batch: int,
        processes: int = 1,
    ) -> None:
        self._lengths = lengths
        self._owned = owned
        self._settings = settings
        self._tokens_per_batch = tokens_per_batch
        self.batches_of_step = settings.accumulate_batches * processes
        self.steps_of_epoch = [
            math.ceil(len(self.batches(epoch)) / self.batches_of_step) for epoch in range(settings.epochs)
        ]
        self.total_steps = sum(self.steps_of_epoch)

    def batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Returns the window indices of each batch of an epoch."""
        return epoch_batches(self._lengths, self._tokens_per_batch, self._settings.seed, epoch)

    def tokens(self, batches: Sequence[npt.NDArray[np.int64]]) -> int:
        """Returns how many tokens the windows of some batches own, which is how many count in the loss."""
        return int(sum(self._owned[windows].sum() for windows in batches))

    def evaluation_steps(self) -> frozenset[int]:
        """Returns the steps after which the eval split is scored; the last step is always one of them."""
        settings = self._settings
        interval = settings.evaluate_every_steps or self.total_steps / settings.epochs / settings.evaluations_per_epoch
        count = int(self.total_steps / interval)
        return frozenset({max(1, round(interval * i)) for i in range(1, count + 1)} | {self.total_steps})


def find_tokens_per_batch(
    network: torch.nn.Module,
    longest: int,
    device: torch.device,
    precision: torch.dtype,
    processes: int = 1,
) -> int:
    """Returns the most tokens per batch, in powers of two, that a GPU's memory holds; elsewhere 2,048.

    Args:
        network: The network, on its device; its weights stay as they are.
        longest: Tokens of the longest window, which takes the most memory per token.
        device: Where it is.
        precision: The autocast precision.
        processes: How many train together; several keep their gradients twice.

    Raises:
        NertoolError: If not even one window fits.
    """
    if device.type != "cuda":
        return _TOKENS_PER_BATCH
    # AdamW's two moments, and copies of gradients that are exchanged, are made in the first step only.
    copies = 2 if processes == 1 else 3
    reserved = [torch.empty_like(parameter) for parameter in network.parameters() for _ in range(copies)]
    network.train()

    def fits(tokens: int) -> bool:
        shape = (max(1, tokens // longest), longest)
        ids, mask = torch.ones(shape, dtype=torch.int64, device=device), torch.ones(shape, device=device)
        try:
            with autocast(device, precision):
                logits = network(input_ids=ids, attention_mask=mask.long()).logits
            torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), torch.zeros_like(logits)).backward()
        except torch.OutOfMemoryError:
            return False
        finally:
            network.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
        return True

    found = most_that_fits(fits, _TOKENS_PER_BATCH, _MOST_TOKENS_PER_BATCH)
    del reserved
    torch.cuda.empty_cache()
    if found == 0:
        raise NertoolError(
            f"one window of {longest} tokens does not fit into the memory of {device}",
            "a shorter one: --set windows.max_tokens=256, or a smaller --model",
        )
    return found


def most_that_fits(fits: Callable[[int], bool], start: int, most: int) -> int:
    """Returns the largest of `start`, doubled or halved often, up to `most`, that fits; 0 if none does."""
    size = start
    if fits(size):
        while 2 * size <= most and fits(2 * size):
            size *= 2
        return size
    while size > 1:
        size //= 2
        if fits(size):
            return size
    return 0


def learning_rate_factor(step: int, total: int, warmup_fraction: float, schedule: str) -> float:
    """Returns the share of the peak learning rate for a step, in [0, 1].

    Args:
        step: Number of the step, from 0.
        total: All steps of the run.
        warmup_fraction: Share of them in which it rises in a line.
        schedule: `linear`, `cosine` or `constant`.
    """
    warmup = warmup_fraction * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, total - warmup)
    if schedule == "linear":
        return 1.0 - done
    return 1.0 if schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * done))


def customary_learning_rate(hidden_size: int) -> float:
    """Returns a peak learning rate that suits a backbone's hidden size.

    Measured for 384 units (docs/log.md); falling with the third power it meets what is customary for 768 units (5e-5 to
    1e-4) and 1,024 (2e-5 to 5e-5).
    """
    return 6e-4 * (384 / hidden_size) ** 3


def make_optimizer(
    network: "PreTrainedModel", settings: TrainSettings, trained: torch.nn.Module | None = None
) -> torch.optim.AdamW:
    """Returns AdamW with four groups: backbone and output layer, with and without weight decay.

    Biases and the weights of norms have no decay.

    Args:
        network: The network.
        settings: Learning rates and weight decay.
        trained: The network with what helps it to learn, if anything does; that counts to the output layer.
    """
    in_backbone = {id(parameter) for parameter in network.base_model.parameters()}
    rate = settings.learning_rate or customary_learning_rate(network.config.hidden_size)
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for parameter in (trained or network).parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in in_backbone, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if decays else 0.0,
                "peak_learning_rate": rate * (1.0 if backbone else settings.head_learning_rate_factor),
            }
            for (backbone, decays), parameters in groups.items()
        ],
        lr=rate,
        fused=True,
    )


def make_scaler(device: torch.device, precision: torch.dtype) -> "torch.amp.GradScaler":
    """Returns the gradient scaler, which does something in fp16 only."""
    return torch.amp.GradScaler(device.type, enabled=precision == torch.float16)


def fit(  # noqa: PLR0915 (the loop is one piece)
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: "torch.amp.GradScaler",
    plan: BatchPlan,
    load_batch: Callable[[npt.NDArray[np.int64]], Batch],
    loss_function: LossFunction,
    settings: TrainSettings,
    progress: Progress,
    device: torch.device,
    precision: torch.dtype,
    world: World = ALONE,
) -> Iterator[StepReport]:
    """Trains; yields after every optimizer step. The caller logs, evaluates, saves and stops.

    Args:
        network: `(batch, tokens)` ids and mask → logits `(batch, tokens, channels)`.
        optimizer: Over its parameters.
        scaler: For fp16.
        plan: Which windows make up which step.
        load_batch: Reads windows.
        loss_function: Gives the loss summed over the tokens that count; divided here, once, by their number.
        settings: The schedule and the gradient norm.
        progress: Where to begin; moved on in place.
        device: Where.
        precision: The autocast precision.
        world: The processes that share the batches of each step; all of them get the same weights and reports.

    Raises:
        NonFiniteError: If loss or gradients are not finite; not where `skip_nonfinite` is set, but for ten such steps
            in a row.
    """
    # Looking at each step makes a GPU wait for it; there it is done when the loss is read.
    look_each_step = device.type == "cpu" or settings.skip_nonfinite
    skipped_in_a_row = 0
    since_last_look: list[npt.NDArray[np.int64]] = []
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    running = torch.zeros(2, device=device)
    replica = world.wrap(network)
    while progress.epoch < settings.epochs:
        epoch = plan.batches(progress.epoch)
        while progress.batch < len(epoch):
            indices = epoch[progress.batch : progress.batch + plan.batches_of_step]
            tokens = plan.tokens(indices)
            network.train()  # the caller may have evaluated since the last step
            share = learning_rate_factor(progress.step, plan.total_steps, settings.warmup_fraction, settings.schedule)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_learning_rate"] * share
            # Where a step has fewer batches than processes, some take part with one that doesn't count.
            own, counts = indices[world.rank :: world.size] or indices[:1], world.rank < len(indices)
            step_loss = torch.zeros((), device=device)
            for number, batch in enumerate((load_batch(windows).to(device) for windows in own), start=1):
                with world.accumulating(replica, last=number == len(own)):
                    with autocast(device, precision):
                        logits = replica(input_ids=batch.ids, attention_mask=batch.attention_mask).logits
                    summed = loss_function(logits, batch) * counts
                    # The average over the processes, times their number, is the sum over all tokens of the step.
                    scaler.scale(summed * world.size / max(1, tokens)).backward()
                step_loss += summed.detach()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
            since_last_look.extend(indices)
            if look_each_step:
                world.add_up(step_loss)
            what = _not_finite(step_loss, norm, scaler) if look_each_step else None
            skipped_in_a_row = skipped_in_a_row + 1 if what else 0
            if what is None:
                running[0] += step_loss
                running[1] += tokens
                scaler.step(optimizer)
            elif not settings.skip_nonfinite or skipped_in_a_row == _MOST_SKIPPED_IN_A_ROW:
                raise NonFiniteError(what, progress.step + 1, np.concatenate(since_last_look))
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if look_each_step:
                since_last_look.clear()
            progress.step += 1
            progress.batch += plan.batches_of_step
            loss = None
            if (progress.step % _READ_LOSS_EVERY_STEPS == 0 or progress.step == plan.total_steps) and bool(running[1]):
                if not look_each_step:
                    world.add_up(running[:1])
                loss = float(running[0] / running[1])
                running.zero_()
                if not math.isfinite(loss):
                    raise NonFiniteError(f"the loss is {loss}", progress.step, np.concatenate(since_last_look))
                since_last_look.clear()
            yield StepReport(progress.step, tokens, optimizer.param_groups[0]["lr"], loss, what is not None)
        progress.epoch, progress.batch = progress.epoch + 1, 0


def _not_finite(loss: Tensor, norm: Tensor, scaler: "torch.amp.GradScaler") -> str | None:
    """Returns in words what is not finite, if anything; in fp16 the scaler looks after the gradients itself."""
    if not math.isfinite(loss):
        return f"the loss is {loss.item()}"
    if not scaler.is_enabled() and not math.isfinite(norm):
        return f"the gradients' norm is {norm.item()}"
    return None
