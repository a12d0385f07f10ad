"""What a student learns from: texts with and without gold entities, and what its teacher says of every token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt
import torch

from nertool.batches import Batch, training_batch
from nertool.devices import autocast
from nertool.engines import Tagger
from nertool.losses import distillation_loss
from nertool.model import NerModel, TorchEngine
from nertool.runs import Task, channel_columns
from nertool.settings import DistillSettings
from nertool.students import MatchedStudent, hidden_states
from nertool.teacher_logits import Halves
from nertool.window_cache import WindowCache, documents_of_windows


@dataclass(frozen=True, slots=True)
class Lesson:
    """Texts to learn from.

    Args:
        cache: Their windows.
        logits: What the teacher says, `(tokens, channels)` float16.
        labelled: Whether their entities are known.
    """

    cache: WindowCache
    logits: Halves
    labelled: bool


def distillation_task(lessons: Sequence[Lesson], student: NerModel, settings: DistillSettings, teacher: Tagger) -> Task:
    """Returns the task of learning from a teacher; windows of all lessons are mixed.

    Args:
        lessons: The texts, with what the teacher says.
        student: The student.
        settings: How much of the loss comes from where.
        teacher: Only run if its hidden states are matched, too; torch's.
    """
    bounds = np.cumsum([0, *(len(lesson.cache.windows) for lesson in lessons)])

    def shares(indices: npt.NDArray[np.int64]) -> list[tuple[Lesson, npt.NDArray[np.int64]]]:
        return [
            (lesson, indices[(first <= indices) & (indices < last)] - first)
            for lesson, (first, last) in zip(lessons, pairwise(bounds.tolist()), strict=True)
        ]

    def load(indices: npt.NDArray[np.int64]) -> Batch:
        batch = join([lesson_batch(lesson, own, student) for lesson, own in shares(indices) if len(own)])
        return _with_hidden(batch, teacher, network, longest) if isinstance(network, MatchedStudent) else batch

    def documents_of(windows: npt.NDArray[np.int64]) -> list[str]:
        found = [documents_of_windows(lesson.cache, own, student.tokenizer) for lesson, own in shares(windows)]
        return list(chain.from_iterable(found))

    windows = np.concatenate([lesson.cache.windows for lesson in lessons])
    lengths = windows["length"].astype(np.int64) + student.tokenizer.special_tokens
    longest = int(lengths.max(initial=0))
    network: torch.nn.Module = student.network
    if settings.hidden_weight:
        network = MatchedStudent(student.network, _torch_engine(teacher).network)
    return Task(
        network=network,
        lengths=lengths,
        owned=windows["owned_length"].astype(np.int64),
        load_batch=load,
        loss=distillation_loss(settings.hard_weight, settings.temperature, settings.hidden_weight),
        begin=lambda: None,
        documents_of=documents_of,
    )


def _with_hidden(batch: Batch, teacher: Tagger, student: MatchedStudent, longest: int) -> Batch:
    engine = _torch_engine(teacher)
    batch = batch.to(engine.device, longest)
    with autocast(engine.device, engine.precision):
        hidden = hidden_states(engine.network, student.layers, batch.ids, batch.attention_mask)
    return replace(batch, teacher_hidden=hidden)


def _torch_engine(teacher: Tagger) -> TorchEngine:
    assert isinstance(teacher.engine, TorchEngine)
    return teacher.engine


def lesson_batch(lesson: Lesson, indices: npt.NDArray[np.int64], student: NerModel) -> Batch:
    """Reads windows of one lesson, with what the teacher says of the tokens that they own.

    Args:
        lesson: The texts.
        indices: Which of their windows, `(batch,)`.
        student: The student.
    """
    columns = channel_columns(lesson.cache, student) if lesson.labelled else None
    batch = training_batch(lesson.cache, indices, student.tokenizer, columns, student.scheme.channels)
    logits = np.zeros(batch.targets.shape, np.float32)
    before = len(student.tokenizer.prefix)
    for row, window in enumerate(lesson.cache.windows[indices]):
        first = int(window["start"]) + int(window["owned_start"])
        owned = int(window["owned_length"])
        place = before + int(window["owned_start"])
        logits[row, place : place + owned] = lesson.logits[first : first + owned]
    labelled = torch.full((len(indices),), float(lesson.labelled))
    return replace(batch, teacher_logits=torch.from_numpy(logits), labelled=labelled)


def join(batches: Sequence[Batch]) -> Batch:
    """Puts batches together, padded to the longest of them."""
    if len(batches) == 1:
        return batches[0]
    longest = max(batch.ids.shape[1] for batch in batches)
    columns = zip(*(batch.padded(longest).tensors() for batch in batches), strict=True)
    return Batch(*map(torch.cat, columns))
