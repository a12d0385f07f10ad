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
from nertool.errors import NertoolError
from nertool.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LossFunction = Callable[[Tensor, Batch], Tensor]

_READ_LOSS_EVERY_STEPS = 10


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did.

    Args:
        step: Its number, from 1.
        tokens: Real tokens (no padding, no special tokens) that it learned from.
        learning_rate: The backbone's learning rate in it.
        loss: Mean loss per token over the last steps; None in most steps, as reading it makes the device wait.
    """

    step: int
    tokens: int
    learning_rate: float
    loss: float | None


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
        NertoolError: If the loss is not a number any more.
    """
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
            for batch in (batch.to(device) for batch in batches):
                with autocast(device, precision):
                    logits = network(input_ids=batch.ids, attention_mask=batch.attention_mask).logits
                summed = loss_function(logits, batch)
                scaler.scale(summed / max(1, tokens)).backward()
                running[0] += summed.detach()
            running[1] += tokens
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.batch += settings.accumulate_batches
            loss = None
            if progress.step % _READ_LOSS_EVERY_STEPS == 0 or progress.step == plan.total_steps:
                loss = _read(running, progress.step)
            yield StepReport(progress.step, tokens, optimizer.param_groups[0]["lr"], loss)
        progress.epoch, progress.batch = progress.epoch + 1, 0


def _read(running: Tensor, step: int) -> float:
    """Returns the mean loss since the last reading, and starts over."""
    loss = float(running[0] / running[1])
    running.zero_()
    if not math.isfinite(loss):
        raise NertoolError(
            f"the loss is {loss} at step {step}",
            "--resume won't help; start afresh with a lower train.learning_rate or train.precision=fp32",
        )
    return loss
