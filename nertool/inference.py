"""Documents → predicted entities, in memory. Validation, `evaluate` and `predict` all come through here."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from nertool.batches import pack_by_length, pad_ids
from nertool.decoding import Floats, decode
from nertool.devices import autocast
from nertool.documents import Document, Entity, Section, Span
from nertool.model import NerModel
from nertool.provenance import without_provenance
from nertool.windows import Tokens, Windows, plan_windows


@dataclass(frozen=True, slots=True)
class Runner:
    """How to run a model.

    Args:
        device: Where.
        precision: The autocast precision.
        tokens_per_batch: Most tokens of a batch, padding included.
        should_stop: Asked before each batch; it may raise, to interrupt.
    """

    device: torch.device
    precision: torch.dtype
    tokens_per_batch: int
    should_stop: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Sections that are tokenised and cut into windows, ready to be run any number of times."""

    sections: tuple[Section, ...]
    tokens: Tokens
    windows: Windows


def prepare(sections: Sequence[Section], model: NerModel) -> Prepared:
    """Tokenises sections and cuts them into windows."""
    tokens = model.tokenizer.tokenize([section.text for section in sections])
    return Prepared(tuple(sections), tokens, plan_windows(tokens, model.window_tokens, model.windows.overlap_tokens))


def predict_sections(model: NerModel, prepared: Prepared, runner: Runner) -> list[tuple[Entity, ...]]:
    """Predicts the entities of prepared sections.

    The network is in evaluation mode meanwhile and afterwards in the mode that it was in.

    Returns:
        The entities of each section, sorted by place, with their scores.
    """
    logits = token_logits(model, prepared, runner)
    decoded = decode(logits, prepared.tokens, model.scheme, model.threshold, model.switch_cost)
    entities: list[list[Entity]] = [[] for _ in prepared.sections]
    for section, label, start, end, score in zip(
        decoded.section.tolist(),
        decoded.label.tolist(),
        decoded.start.tolist(),
        decoded.end.tolist(),
        decoded.score.tolist(),
        strict=True,
    ):
        text = prepared.sections[section].text
        entities[section].append(
            Entity(model.scheme.labels[label], (Span(start, end),), text[start:end], score=round(score, 4))
        )
    return [tuple(found) for found in entities]


def token_logits(model: NerModel, prepared: Prepared, runner: Runner) -> Floats:
    """Runs the network over all windows, longest batches first, and keeps what each window owns.

    Returns:
        The logits of every token, `(tokens, channels)` float32.
    """
    windows, tokens = prepared.windows, prepared.tokens
    logits = np.zeros((len(tokens.ids), model.scheme.channels), np.float32)
    lengths = windows.lengths + model.tokenizer.special_tokens
    longest_first = np.argsort(-lengths, kind="stable")
    was_training = model.network.training
    model.network.eval()
    before = len(model.tokenizer.prefix)
    try:
        with torch.inference_mode():
            for batch in pack_by_length(lengths, longest_first, runner.tokens_per_batch):
                runner.should_stop()
                rows = [tokens.ids[windows.starts[i] : windows.ends[i]].astype(np.int64) for i in batch]
                ids, mask = pad_ids(rows, model.tokenizer)
                with autocast(runner.device, runner.precision):
                    output = model.network(input_ids=ids.to(runner.device), attention_mask=mask.to(runner.device))
                found = output.logits.float().cpu().numpy()
                for row, window in enumerate(batch):
                    first, last = int(windows.owned_starts[window]), int(windows.owned_ends[window])
                    shift = before - int(windows.starts[window])
                    logits[first:last] = found[row, first + shift : last + shift]
    finally:
        model.network.train(was_training)
    return logits


def predict_documents(
    model: NerModel, documents: Iterable[Document], runner: Runner, documents_per_chunk: int
) -> Iterator[list[Document]]:
    """Predicts documents in chunks, so that memory stays bounded and progress can be saved.

    The result for a document depends on nothing but the chunk that it is in.

    Yields:
        For each chunk its documents with the predicted entities in the place of the ones they had.
    """
    remaining = iter(documents)
    while chunk := list(islice(remaining, documents_per_chunk)):
        sections = [section for document in chunk for section in document.sections]
        predicted = iter(predict_sections(model, prepare(sections, model), runner))
        yield [
            replace(
                without_provenance(document),
                sections=tuple(replace(section, entities=next(predicted)) for section in document.sections),
            )
            for document in chunk
        ]
