"""The training loop, and what it needs: the plan of batches, the learning rate, the optimizer."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nertool.batches import Batch, epoch_batches
from nertool.checkpoints import Progress
from nertool.devices import autocast
from nertool.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LossFunction = Callable[[Tensor, Batch], Tensor]

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
        settings: Epochs, budget, seed, accumulation.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], settings: TrainSettings) -> None:
        self._lengths = lengths
        self._settings = settings
        self.steps_of_epoch = [
            math.ceil(len(self.batches(epoch)) / settings.accumulate_batches) for epoch in range(settings.epochs)
        ]
        self.total_steps = sum(self.steps_of_epoch)

    def batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Returns the window indices of each batch of an epoch."""
        return epoch_batches(self._lengths, self._settings.tokens_per_batch, self._settings.seed, epoch)

    def evaluation_steps(self) -> frozenset[int]:
        """Returns the steps after which the eval split is scored; the last step is always one of them."""
        interval = self.total_steps / self._settings.epochs / self._settings.evaluations_per_epoch
        count = int(self.total_steps / interval)
        return frozenset({max(1, round(interval * i)) for i in range(1, count + 1)} | {self.total_steps})


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


def make_optimizer(network: "PreTrainedModel", settings: TrainSettings) -> torch.optim.AdamW:
    """Returns AdamW with four groups: backbone and output layer, with and without weight decay.

    Biases and the weights of norms have no decay.
    """
    prefix = f"{network.base_model_prefix}."
    rate = settings.learning_rate or customary_learning_rate(network.config.hidden_size)
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(prefix), parameter.ndim > 1), []).append(parameter)
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


def fit(
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
    while progress.epoch < settings.epochs:
        epoch = plan.batches(progress.epoch)
        while progress.batch < len(epoch):
            indices = epoch[progress.batch : progress.batch + settings.accumulate_batches]
            batches = [load_batch(windows) for windows in indices]
            tokens = int(sum(batch.loss_mask.sum() for batch in batches))
            network.train()  # the caller may have evaluated since the last step
            factor = learning_rate_factor(progress.step, plan.total_steps, settings.warmup_fraction, settings.schedule)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_learning_rate"] * factor
            step_loss = torch.zeros((), device=device)
            for batch in (batch.to(device) for batch in batches):
                with autocast(device, precision):
                    logits = network(input_ids=batch.ids, attention_mask=batch.attention_mask).logits
                summed = loss_function(logits, batch)
                scaler.scale(summed / max(1, tokens)).backward()
                step_loss += summed.detach()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
            since_last_look.extend(indices)
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
            progress.batch += settings.accumulate_batches
            loss = None
            if (progress.step % _READ_LOSS_EVERY_STEPS == 0 or progress.step == plan.total_steps) and bool(running[1]):
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
