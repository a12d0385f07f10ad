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

TOKENS_PER_BATCH = 2048  # where memory isn't what limits it
_MOST_TOKENS_PER_BATCH = 2**15  # 64 full windows of 512, which keep a GPU busy
_STEPS_OF_EPOCH = 100
_READ_LOSS_EVERY_STEPS = 10
_MOST_SKIPPED_IN_A_ROW = 10
_LEAST_SCALE = 2.0**-10  # GradScaler begins with 2**16 and halves it with each step that overflows, which it leaves out


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
    """Loss or gradients are not numbers any more; no step that was not finite has changed the weights.

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
        self.longest = int(lengths.max(initial=0))
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
    lengths: npt.NDArray[np.int64],
    load_batch: Callable[[npt.NDArray[np.int64]], Batch],
    loss_function: LossFunction,
    device: torch.device,
    precision: torch.dtype,
    spare: int,
    batches_of_step: int = 1,
    processes: int = 1,
) -> int:
    """Returns the most tokens per batch, in powers of two, that a GPU's memory holds.

    Tried with the longest windows, which take the most memory per token. From 2,048 on no more than leaves 100 steps in
    an epoch, as fewer learn little: memory alone would choose three steps for 500 abstracts.

    Args:
        network: The network, on its device; its weights stay as they are.
        lengths: Tokens of each window, special tokens included, `(windows,)`.
        load_batch: Reads windows.
        loss_function: What is differentiated.
        device: Where it is.
        precision: The autocast precision.
        spare: Bytes to leave free for what a trial doesn't show: masks, fragments, other processes' buffers.
        batches_of_step: How many batches make a step, those of all processes together.
        processes: How many train together; several keep their gradients twice.

    Raises:
        NertoolError: If not even one window fits.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    longest = int(lengths[longest_first[0]])
    network.train()

    def fits(tokens: int) -> bool:
        windows = np.resize(longest_first, max(1, tokens // longest))  # the same again where there are fewer
        reserved = []
        try:
            reserved.append(torch.empty(spare, dtype=torch.uint8, device=device))
            # AdamW's two moments, and copies of gradients that are exchanged, are made in the first step only.
            copies = 2 if processes == 1 else 3
            reserved += [torch.empty_like(parameter) for parameter in network.parameters() for _ in range(copies)]
            batch = load_batch(windows).to(device, longest)
            with autocast(device, precision):
                logits = network(input_ids=batch.ids, attention_mask=batch.attention_mask).logits
            loss_function(logits, batch).backward()
        except torch.OutOfMemoryError:
            return False
        finally:
            network.zero_grad(set_to_none=True)
            reserved.clear()
            torch.cuda.empty_cache()
        return True

    most = int(lengths.sum()) // (_STEPS_OF_EPOCH * batches_of_step)
    found = most_that_fits(fits, TOKENS_PER_BATCH, min(most, _MOST_TOKENS_PER_BATCH))
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


def fit(  # noqa: PLR0912, PLR0915 (the loop is one piece)
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
    look_each_step = settings.skip_nonfinite or not _is_costly_to_look_at(device)
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
            for number, batch in enumerate((load_batch(windows).to(device, plan.longest) for windows in own), start=1):
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
                if not look_each_step and not scaler.is_enabled():
                    # The device itself leaves the weights alone (as for GradScaler), and the next look at the loss
                    # finds that its sum isn't finite.
                    optimizer.found_inf = norm.isfinite().logical_not().float()  # type: ignore[attr-defined]
                    running[0] += norm * 0
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
                if scaler.is_enabled() and scaler.get_scale() < _LEAST_SCALE:
                    raise NonFiniteError("gradients overflow", progress.step, np.concatenate(since_last_look))
                if not math.isfinite(loss):
                    raise NonFiniteError(f"the loss is {loss}", progress.step, np.concatenate(since_last_look))
                since_last_look.clear()
            yield StepReport(progress.step, tokens, optimizer.param_groups[0]["lr"], loss, what is not None)
        progress.epoch, progress.batch = progress.epoch + 1, 0


def _is_costly_to_look_at(device: torch.device) -> bool:
    """Tells whether reading a number makes the CPU wait for the device, and AdamW there can pass over a step alone."""
    return device.type == "cuda"


def _not_finite(loss: Tensor, norm: Tensor, scaler: "torch.amp.GradScaler") -> str | None:
    """Returns in words what is not finite, if anything; in fp16 the scaler looks after the gradients itself."""
    if not math.isfinite(loss):
        return f"the loss is {loss.item()}"
    if not scaler.is_enabled() and not math.isfinite(norm):
        return f"the gradients' norm is {norm.item()}"
    return None
