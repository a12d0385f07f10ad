"""Documents → predicted entities, in memory. Validation, `evaluate` and `predict` all come through here."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from nertool.artefacts import Decisions, check_files, read_facts
from nertool.decoding import Floats, decode
from nertool.documents import Document, Entity, Section, Span
from nertool.engines import (
    Engine,
    OnnxRuntimeEngine,
    OpenVinoEngine,
    Tagger,
    choose_tokens_per_batch,
)
from nertool.errors import InterruptedBySignalError, NertoolError
from nertool.extras import is_installed, require
from nertool.packing import padded_batches
from nertool.provenance import without_provenance
from nertool.settings import PredictSettings
from nertool.windows import SectionTokenizer, Tokens, Windows, plan_windows
from nertool.workers import usable_cores


def load_tagger(folder: Path, settings: PredictSettings, threads: int | None = None) -> Tagger:
    """Loads a model, trained or exported, with the fastest engine that is installed; see `settings.engine`.

    torch and transformers are imported for a trained model only.

    Args:
        folder: The model.
        settings: How to run it.
        threads: How many an exported model computes with on a CPU; by default one for each core.

    Raises:
        NertoolError: If the folder is no model, or damaged, or what it needs isn't installed.
    """
    facts = read_facts(folder)
    exported = facts.get("export")
    if exported is not None and exported["format"] != "hf":  # `load_model` looks for itself
        check_files(folder, facts)
    if exported is None or exported["format"] in ("hf", "kazu"):
        if settings.engine not in ("auto", "torch"):
            raise NertoolError(
                f"{folder} can't be run by {settings.engine}", "export it first: nertool export --format onnx|openvino"
            )
        from nertool.devices import choose_device, choose_precision  # noqa: PLC0415 (torch)
        from nertool.model import kazu_tagger, load_model, load_tokenizer  # noqa: PLC0415

        device = choose_device(settings.device)
        if exported is not None and exported["format"] == "kazu":
            precision = choose_precision(settings.precision, device)
            tokenizer, decisions = load_tokenizer(str(folder)), Decisions.from_json(facts)
            return kazu_tagger(folder, tokenizer, decisions, device, precision, settings.tokens_per_batch)
        model = load_model(folder)
        model.to(device)
        return model.tagger(device, choose_precision(settings.precision, device), settings.tokens_per_batch)
    if settings.device not in ("auto", "cpu"):
        raise NertoolError(f"{folder} was exported for CPUs, not for {settings.device}", "predict with the original")
    engine = choose_engine(folder, exported, settings.engine)
    return load_exported(folder, exported, engine, Decisions.from_json(facts), settings.tokens_per_batch, threads)


def load_exported(
    folder: Path,
    exported: dict[str, Any],
    engine: str,
    decisions: Decisions,
    tokens_per_batch: int | Literal["auto"] = "auto",
    threads: int | None = None,
) -> Tagger:
    """Loads an exported model with an engine.

    Args:
        folder: The model.
        exported: What its `nertool.json` says of the export.
        engine: `onnxruntime` or `openvino`.
        decisions: What its logits mean.
        tokens_per_batch: Most tokens of a batch, padding included.
        threads: How many to compute with; by default one for each core.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415 (trained models come with transformers' wrapper around it)

    precision = exported["precision"]
    running: Engine
    if engine == "onnxruntime":
        running = OnnxRuntimeEngine(folder / exported["model"], threads or usable_cores())
    else:
        rest = "fp32" if precision == "fp32" else "bf16"
        running = OpenVinoEngine(folder / exported["model"], rest, threads or usable_cores())
    tokenizer = SectionTokenizer.wrap(Tokenizer.from_file(str(folder / "tokenizer.json")), exported["pad_id"])
    size = choose_tokens_per_batch(tokens_per_batch, "cpu")
    return Tagger(running, tokenizer, decisions, f"{engine} on cpu in {precision}", size)


def choose_engine(folder: Path, exported: dict[str, Any], wanted: str) -> str:
    """Returns the engine for an exported model: the wanted one, or the fastest of those that its export measured.

    Raises:
        NertoolError: If it can't be run so, or no such engine is installed.
    """
    measured: dict[str, float] = exported["tokens_per_second"]
    if wanted != "auto":
        if wanted not in measured:
            raise NertoolError(f"{folder} can't be run by {wanted}", f"predict.engine: {' or '.join(measured)}")
        require(wanted)
        return wanted
    fastest_first = sorted(measured, key=lambda name: -measured[name])
    installed = [name for name in fastest_first if is_installed(name)]
    if not installed:
        require(min(measured))  # any would do; always the same one is named
    return installed[0]


@dataclass(frozen=True, slots=True)
class Prepared:
    """Sections that are tokenised and cut into windows, ready to be run any number of times."""

    sections: tuple[Section, ...]
    tokens: Tokens
    windows: Windows


def prepare(sections: Sequence[Section], tagger: Tagger) -> Prepared:
    """Tokenises sections and cuts them into windows."""
    tokens = tagger.tokenizer.tokenize([section.text for section in sections])
    overlap = tagger.decisions.windows.overlap_tokens
    return Prepared(tuple(sections), tokens, plan_windows(tokens, tagger.window_tokens, overlap))


def predict_sections(
    tagger: Tagger, prepared: Prepared, should_stop: Callable[[], None] = lambda: None
) -> list[tuple[Entity, ...]]:
    """Predicts the entities of prepared sections.

    Args:
        tagger: Finds them.
        prepared: The sections.
        should_stop: Asked before each batch; it may raise, to interrupt.

    Returns:
        The entities of each section, sorted by place, with their scores.
    """
    return find_entities(tagger, prepared, token_logits(tagger, prepared, should_stop))


def find_entities(tagger: Tagger, prepared: Prepared, logits: Floats) -> list[tuple[Entity, ...]]:
    """Returns the entities of each section that the logits say, `(tokens, channels)`."""
    decisions = tagger.decisions
    decoded = decode(logits, prepared.tokens, decisions.scheme, decisions.thresholds, decisions.switch_cost)
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
            Entity(decisions.scheme.labels[label], (Span(start, end),), text[start:end], score=round(score, 4))
        )
    return [tuple(found) for found in entities]


def token_logits(tagger: Tagger, prepared: Prepared, should_stop: Callable[[], None] = lambda: None) -> Floats:
    """Runs the network over all windows, longest batches first, and keeps what each window owns.

    Returns:
        The logits of every token, `(tokens, channels)` float32.
    """
    windows, tokens = prepared.windows, prepared.tokens
    logits = np.zeros((len(tokens.ids), tagger.decisions.scheme.channels), np.float32)
    before = len(tagger.tokenizer.prefix)
    for batch, ids, mask in padded_batches(
        tokens.ids,
        windows.starts,
        windows.lengths,
        tagger.tokenizer,
        tagger.decisions.windows.max_tokens,
        tagger.tokens_per_batch,
    ):
        should_stop()
        found = tagger.engine(ids, mask)
        for row, window in enumerate(batch):
            first, last = int(windows.owned_starts[window]), int(windows.owned_ends[window])
            shift = before - int(windows.starts[window])
            logits[first:last] = found[row, first + shift : last + shift]
    return logits


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the predicted entities a document gets, and whether it keeps those that it has.

    Args:
        min_score: The least score.
        labels: The classes; empty means all.
        keep: Whether the entities that are there stay; predicted ones that are among them are not added again.
    """

    min_score: float = 0.0
    labels: frozenset[str] = frozenset()
    keep: bool = False

    def apply(self, section: Section, predicted: Sequence[Entity]) -> Section:
        """Returns the section with its entities."""
        new = [
            entity
            for entity in predicted
            if (entity.score or 0.0) >= self.min_score and (not self.labels or entity.label in self.labels)
        ]
        if self.keep:
            known = {(entity.label, entity.spans) for entity in section.entities}
            new = [*section.entities, *(entity for entity in new if (entity.label, entity.spans) not in known)]
        return replace(section, entities=tuple(new))


ALL = Selection()


class PredictedDocuments(NamedTuple):
    """Documents with the entities that were predicted, and how many tokens they have."""

    documents: list[Document]
    tokens: int


def predict_chunk(tagger: Tagger, documents: Sequence[Document], selection: Selection = ALL) -> PredictedDocuments:
    """Predicts documents together; the result for one depends on nothing but the chunk that it is in."""
    prepared = _prepare_documents(tagger, documents)
    return _with_entities(tagger, documents, prepared, token_logits(tagger, prepared), selection)


def predict_chunks(
    tagger: Tagger,
    chunks: Iterable[Sequence[Document]],
    selection: Selection = ALL,
    on_logits: Callable[[Prepared, Floats], object] | None = None,
) -> Iterator[PredictedDocuments]:
    """Does what `predict_chunk` does, for chunk after chunk, on two threads.

    While the network runs on a chunk, the other thread reads and tokenises the next one and decodes the one before.

    Args:
        tagger: Finds the entities.
        chunks: The documents.
        selection: Which entities the documents get.
        on_logits: Takes each chunk's sections, as they were given, and the logits of their tokens; on the other thread.
    """
    remaining = iter(chunks)

    def finish(documents: Sequence[Document], prepared: Prepared, logits: Floats) -> PredictedDocuments:
        if on_logits:
            on_logits(prepared, logits)
        return _with_entities(tagger, documents, prepared, logits, selection)

    def read() -> tuple[Sequence[Document], Prepared] | None:
        chunk = next(remaining, None)
        return None if chunk is None else (chunk, _prepare_documents(tagger, chunk))

    with ThreadPoolExecutor(1) as beside:
        ahead = beside.submit(read)
        running: deque[Future[PredictedDocuments]] = deque()
        try:
            while (got := ahead.result()) is not None:
                ahead = beside.submit(read)
                running.append(beside.submit(finish, *got, token_logits(tagger, got[1])))
                if len(running) > 1:
                    yield running[0].result()
                    running.popleft()
        except (Exception, InterruptedBySignalError):  # what was predicted before what ends it is not lost
            while running:  # nothing after one that failed: who counts the chunks would take it for that one
                yield running.popleft().result()
            raise
        while running:
            yield running.popleft().result()


def predict_documents(
    tagger: Tagger,
    documents: Iterable[Document],
    documents_per_chunk: int,
    on_logits: Callable[[Prepared, Floats], object] | None = None,
) -> Iterator[list[Document]]:
    """Predicts documents in chunks, so that memory stays bounded; `on_logits` as in `predict_chunks`.

    Yields:
        For each chunk its documents with the predicted entities in the place of the ones they had.
    """
    remaining = iter(documents)
    chunks = iter(lambda: list(islice(remaining, documents_per_chunk)), [])
    for predicted in predict_chunks(tagger, chunks, on_logits=on_logits):
        yield predicted.documents


def _prepare_documents(tagger: Tagger, documents: Sequence[Document]) -> Prepared:
    return prepare([section for document in documents for section in document.sections], tagger)


def _with_entities(
    tagger: Tagger, documents: Sequence[Document], prepared: Prepared, logits: Floats, selection: Selection
) -> PredictedDocuments:
    predicted = iter(find_entities(tagger, prepared, logits))
    return PredictedDocuments(
        [
            replace(
                document if selection.keep else without_provenance(document),
                sections=tuple(selection.apply(section, next(predicted)) for section in document.sections),
            )
            for document in documents
        ],
        len(prepared.tokens.ids),
    )
