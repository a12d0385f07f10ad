"""Predicting any number of documents: one look at all of them, then chunk by chunk, by one process or by several.

What works on the chunks is behind `Engine`: processes of this machine here, a Ray cluster in `ray_engine.py`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from nertool.artefacts import model_digest, read_facts
from nertool.chunks import (
    WHOLE,
    Check,
    CheckedChunk,
    Chunk,
    Shard,
    Source,
    changed_meanwhile,
    check_chunk,
    list_sources,
    read_chunks,
)
from nertool.documents import Document, dump_document
from nertool.errors import NertoolError, nearest_name
from nertool.formats import ReadReport
from nertool.formats.jsonl import compress
from nertool.inference import PredictedDocuments, Selection, load_tagger, predict_chunk, predict_chunks
from nertool.provenance import with_prediction
from nertool.settings import PredictSettings
from nertool.workers import WorkerPool, usable_cores

# Starting processes, which load the model each, takes as long as predicting some chunks.
_CHUNKS_BEFORE_WORKERS = 2


class PredictedChunk(NamedTuple):
    """A chunk as it is saved, what is in it, and the digest of what it was made from."""

    key: str
    digest: bytes
    data: bytes
    documents: int
    entities: int
    tokens: int
    runs_on: str


@dataclass(frozen=True, slots=True)
class Job:
    """All that a process needs to know to predict chunks.

    Args:
        model: The model's folder.
        model_digest: What it must hold.
        settings: How to run it, and which entities are wanted.
        ending: Decides, as in a file's name, how chunks are compressed.
        facts: What each document is told about its prediction.
    """

    model: Path
    model_digest: str
    settings: PredictSettings
    ending: str
    facts: dict[str, Any]

    @property
    def selection(self) -> Selection:
        """Which entities are wanted."""
        settings = self.settings
        return Selection(settings.min_score, frozenset(settings.labels), settings.keep_entities)

    def finish(self, key: str, digest: bytes, predicted: PredictedDocuments, runs_on: str) -> PredictedChunk:
        """Returns a chunk as it is saved."""
        lines = b"".join(dump_document(with_prediction(one, self.facts)) + b"\n" for one in predicted.documents)
        entities = sum(len(section.entities) for one in predicted.documents for section in one.sections)
        data = compress(lines, self.ending) if lines else b""
        return PredictedChunk(key, digest, data, len(predicted.documents), entities, predicted.tokens, runs_on)


class ChunkPredictor:
    """Predicts chunks with a model that is loaded once.

    Args:
        job: What to do.
        threads: How many the model computes with on a CPU; by default one for each core.

    Raises:
        NertoolError: If the model can't be loaded, or is another one by now, or on this machine.
    """

    def __init__(self, job: Job, threads: int | None = None) -> None:
        self._job = job
        self._tagger = load_tagger(job.model, job.settings, threads)
        if model_digest(job.model) != job.model_digest:
            raise NertoolError(
                f"{job.model} is not the model that this command began with; results would be mixed",
                "leave a model as it is while it predicts, and let all machines have the same one there",
            )

    def __call__(self, chunk: Chunk) -> PredictedChunk:
        """Returns a chunk's documents with entities."""
        parsed = chunk.parse()
        predicted = predict_chunk(self._tagger, parsed.documents, self._job.selection)
        return self._job.finish(chunk.key, parsed.digest, predicted, self._tagger.runs_on)

    def predict_all(self, chunks: Iterable[Chunk]) -> Iterator[PredictedChunk]:
        """Does the same for many chunks, reading and decoding beside the network."""
        read_so_far: deque[tuple[str, bytes]] = deque()

        def read() -> Iterator[list[Document]]:
            for chunk in chunks:
                parsed = chunk.parse()
                read_so_far.append((chunk.key, parsed.digest))
                yield parsed.documents

        for predicted in predict_chunks(self._tagger, read(), self._job.selection):
            yield self._job.finish(*read_so_far.popleft(), predicted, self._tagger.runs_on)


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read, and which part of it.

    Args:
        path: Documents or texts, a file or a folder.
        format_name: Their format; by default each file's ending tells.
        documents_per_chunk: Most documents of a chunk.
        shard: The part that is wanted.
        done: Keys of chunks that are not wanted, as they are done.
        left_out: Chunk's key → positions of documents in it that are not to be used.
    """

    path: Path
    format_name: str | None
    documents_per_chunk: int
    shard: Shard = WHOLE
    done: frozenset[str] = frozenset()
    left_out: dict[str, frozenset[int]] = field(default_factory=dict)

    def absolute(self) -> "Reading":
        """Returns the same for processes with another current folder; links stay, as their names tell formats."""
        return replace(self, path=self.path.absolute())

    def sources(self, report: ReadReport | None = None) -> Iterator[Source]:
        """Yields the files; `report` is told which are no documents."""
        return list_sources(self.path, report or ReadReport(), self.documents_per_chunk, self.format_name)

    def chunks_of(self, sources: Iterable[Source]) -> Iterator[Chunk]:
        """Yields the wanted chunks of some sources."""
        for chunk in read_chunks(sources, self.documents_per_chunk, self.shard):
            if chunk.key not in self.done:
                yield chunk.without(self.left_out.get(chunk.key, frozenset()))

    def chunks(self) -> Iterator[Chunk]:
        """Yields the wanted chunks."""
        return self.chunks_of(self.sources())


class Engine(Protocol):
    """Works on chunks somewhere."""

    def check(self, reading: Reading) -> Iterator[CheckedChunk]:
        """Looks at chunks; the results come in the order of the input."""

    def predict(self, reading: Reading) -> Iterator[PredictedChunk]:
        """Predicts chunks; the results come in any order."""


class LocalEngine:
    """Works with processes of this machine; used as a context manager.

    Args:
        job: What to do.
        workers: How many processes; with one, and for few chunks, it is this one.
    """

    def __init__(self, job: Job, workers: int) -> None:
        self._job = job
        self._workers = workers
        self._pool: WorkerPool | None = None

    def __enter__(self) -> "LocalEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.__exit__(*exception)

    def check(self, reading: Reading) -> Iterator[CheckedChunk]:
        """Looks at chunks; see `Engine`."""
        return self._map(check_chunk, lambda chunks: map(check_chunk, chunks), reading)

    def predict(self, reading: Reading) -> Iterator[PredictedChunk]:
        """Predicts chunks; see `Engine`."""
        return self._map(_predict_in_worker, lambda chunks: ChunkPredictor(self._job).predict_all(chunks), reading)

    def _map(
        self, in_worker: Callable[[Chunk], Any], here: Callable[[Iterable[Chunk]], Iterator[Any]], reading: Reading
    ) -> Iterator[Any]:
        chunks = reading.chunks()
        first = list(islice(chunks, _CHUNKS_BEFORE_WORKERS))
        if not first:
            return
        chunks = chain(first, chunks)
        if self._workers == 1 or len(first) < _CHUNKS_BEFORE_WORKERS:
            yield from here(chunks)
            return
        if self._pool is None:
            threads = max(1, usable_cores() // self._workers)
            self._pool = WorkerPool(self._workers, _start_worker, (self._job, threads), "predict.workers")
        yield from self._pool.map_in_order(in_worker, chunks)


def choose_workers(model: Path, settings: PredictSettings) -> int:
    """Returns how many processes to predict with on this machine.

    Several with a thread each are faster than one with several threads (docs/log.md), but a trained model takes too
    much memory for that.
    """
    if settings.workers is not None:
        return settings.workers
    exported = read_facts(model).get("export")
    return usable_cores() if exported is not None and exported["format"] in ("onnx", "openvino") else 1


def check_labels(tagger_labels: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    """Refuses classes that the model doesn't know.

    Raises:
        NertoolError: Naming them all.
    """
    if unknown := [label for label in wanted if label not in tagger_labels]:
        named = ", ".join(f"{label!r}{nearest_name(label, tagger_labels)}" for label in unknown)
        raise NertoolError(f"the model has no class {named}", f"its classes: {', '.join(tagger_labels)}")


def check_all(
    engine: Engine, reading: Reading, check: Check, on_documents: Callable[[int], None]
) -> dict[str, frozenset[int]]:
    """Looks at all documents before any is predicted.

    Returns:
        Chunk's key → positions of documents whose ids are used by earlier ones.
    """
    for _ in reading.sources(check.report):
        pass
    for checked in engine.check(reading):
        check.add(checked)
        on_documents(check.report.documents)
    return check.repeated_ids(lambda keys: (chunk for chunk in reading.chunks() if chunk.key in keys))


def predict_checked(engine: Engine, reading: Reading, digests: dict[str, bytes]) -> Iterator[PredictedChunk]:
    """Predicts the chunks that were looked at, all of them and nothing else.

    Args:
        engine: Predicts them.
        reading: What is read, without what is done.
        digests: What they held: chunk's key → the digest of everything in it.

    Raises:
        NertoolError: If the documents are others by now, or on one of the machines.
    """
    missing = digests.keys() - reading.done
    for chunk in engine.predict(reading):
        if digests.get(chunk.key) != chunk.digest:
            raise changed_meanwhile()
        missing.discard(chunk.key)
        yield chunk
    if missing:
        raise changed_meanwhile()


_work: tuple[Job, int] | None = None
_predictor: ChunkPredictor | None = None


def _start_worker(job: Job, threads: int) -> None:
    global _work  # noqa: PLW0603 (a worker process does one job)
    _work = job, threads


def _predict_in_worker(chunk: Chunk) -> PredictedChunk:
    global _predictor  # noqa: PLW0603
    assert _work is not None
    if _predictor is None:  # not at the start: looking at the documents needs no model
        _predictor = ChunkPredictor(*_work)
    return _predictor(chunk)
