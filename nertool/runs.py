"""A training run: the caller of the loop, who logs, evaluates, saves and stops."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nertool.batches import Batch, training_batch
from nertool.checkpoints import Progress, latest_checkpoint, load_checkpoint, random_states, save_checkpoint
from nertool.console import Advance, say
from nertool.console import progress as show_progress
from nertool.devices import choose_device, choose_precision, keep_freed_memory
from nertool.distributed import ALONE, World
from nertool.documents import Document, Entity, Section
from nertool.doubts import Doubts
from nertool.engines import Tagger
from nertool.errors import InterruptedBySignalError, NertoolError, nearest_name
from nertool.files import recover_folder, replace_folder
from nertool.inference import Prepared, predict_sections, prepare
from nertool.kept_scores import kept_evaluation
from nertool.losses import binary_cross_entropy, binary_cross_entropy_where_known, prior_bias
from nertool.matching import SectionPair
from nertool.metrics import evaluation_report
from nertool.model import NerModel, save_model
from nertool.run_folder import finish_run
from nertool.settings import Settings
from nertool.stopping import StopRequest, StopRequestedError, stop_request
from nertool.tracking import Tracker
from nertool.training import (
    TOKENS_PER_BATCH,
    BatchPlan,
    LossFunction,
    NonFiniteError,
    StepReport,
    find_tokens_per_batch,
    fit,
    make_optimizer,
    make_scaler,
)
from nertool.window_cache import WindowCache, documents_of_windows

_DOCUMENTS_NAMED = 20
_WINDOWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Task:
    """What a run learns from, and how.

    Args:
        network: What is trained: the model's network, alone or with what helps it to learn.
        lengths: Tokens of each window, special tokens included, `(windows,)` int64.
        owned: Tokens that each window owns, `(windows,)` int64.
        load_batch: Reads windows.
        loss: Gives the loss of a batch.
        begin: Called before the first step of a run, not of a resumed one.
        documents_of: Names the documents that windows are from.
    """

    network: torch.nn.Module
    lengths: npt.NDArray[np.int64]
    owned: npt.NDArray[np.int64]
    load_batch: Callable[[npt.NDArray[np.int64]], Batch]
    loss: LossFunction
    begin: Callable[[], None]
    documents_of: Callable[[npt.NDArray[np.int64]], list[str]]


# Takes the step, and the entities of each section of the eval split.
Show = Callable[[int, Sequence[Sequence[Entity]]], None]


@dataclass(frozen=True, slots=True)
class EvalSplit:
    """The gold documents of the eval split, prepared once for all evaluations of a run.

    Args:
        sections: Their sections.
        document_of_section: The number of each section's document.
        prepared: Those sections that this process predicts: every n-th, of n processes.
    """

    sections: tuple[Section, ...]
    document_of_section: tuple[int, ...]
    prepared: Prepared

    def pairs(self, predicted: Sequence[Sequence[Entity]]) -> list[SectionPair]:
        """Sets the gold entities beside the predicted ones of each section."""
        triples = zip(self.document_of_section, self.sections, predicted, strict=True)
        return [SectionPair(document, section.entities, found) for document, section, found in triples]


@dataclass
class Session:
    """What the caller of the loop holds on to between steps.

    Args:
        run: The run's folder.
        settings: All settings.
        model: The model in training.
        split: The eval split.
        tagger: Predicts with it.
        device: Where it is trained.
        should_stop: Asked before each batch of an evaluation; it may raise.
        tracker: Where to write what was measured.
        progress: Where training is.
        evaluation_steps: The steps after which the eval split is scored.
        facts: What the model card should tell about the data.
        checkpoint: Writes the state to disk, given the random states of all processes.
        world: The processes that train this model; each has a session, and all go through the same steps.
        show: Takes the step and the entities of each section of the eval split, for people to look at.
    """

    run: Path
    settings: Settings
    model: NerModel
    split: EvalSplit
    tagger: Tagger
    device: torch.device
    should_stop: Callable[[], None]
    tracker: Tracker
    progress: Progress
    evaluation_steps: frozenset[int]
    facts: dict[str, Any]
    checkpoint: Callable[[Sequence[dict[str, torch.Tensor]]], object]
    world: World
    show: Show | None = None

    def __post_init__(self) -> None:
        self._saved = time.monotonic()

    def save(self) -> None:
        """Saves a checkpoint, with the time that was spent until now."""
        now = time.monotonic()
        self.progress.train_seconds += now - self._saved
        self._saved = now
        self.progress.metrics_lines = self.tracker.lines
        if states := self.world.gather(random_states(self.device)):
            with self._saying_what_is_safe("checkpoint"):
                self.checkpoint(states)

    def stop_or_save(self, stop: StopRequest) -> None:
        """Stops if a signal has come in; saves a checkpoint if a crash would cost more time than the settings allow.

        Raises:
            StopRequestedError: In all processes, whichever of them the signal came to.
        """
        due = time.monotonic() - self._saved >= self.settings.train.checkpoint_every_seconds
        signal_number, save = self.world.largest(stop.signal_number or 0, due)
        if signal_number:
            raise StopRequestedError(signal_number)
        if save:
            self.save()

    def evaluate_if_due(self) -> bool:
        """Scores the eval split where it is time to, and keeps the model if it is the best; returns whether to stop."""
        progress = self.progress
        if progress.step in self.evaluation_steps and progress.evaluated_step != progress.step:
            predicted: list[Sequence[Entity]] = []
            metrics = evaluate_split(
                self.tagger, self.split, self.settings, self.world, self.should_stop, predicted.extend
            )
            if self.show and self.world.rank == 0:
                self.show(progress.step, predicted)
            name = self.settings.train.metric
            value = float(metrics.get(name) or 0.0)  # null is 0/0; KAZU's scheme leaves out what was never predicted
            progress.evaluated_step = progress.step
            if better := value > progress.best_value:
                progress.best_value, progress.best_step = value, progress.step
                progress.evaluations_without_gain = 0
                self._keep_model(metrics, predicted)
            else:
                progress.evaluations_without_gain += 1
            flat = {key: number for key, number in metrics.items() if isinstance(number, int | float | None)}
            self.tracker.write(progress.step, "eval", flat)
            self.save()
            best = "best so far" if better else f"best {progress.best_value:.4f} at step {progress.best_step:,}"
            say(f"step {progress.step:,}: {name} {value:.4f} ({best})")
        return progress.evaluations_without_gain >= self.settings.train.patience

    def _keep_model(self, metrics: dict[str, Any], predicted: Sequence[Sequence[Entity]]) -> None:
        if self.world.rank:
            return
        with self._saying_what_is_safe("best model"):
            self._write_model(metrics, predicted)

    def _write_model(self, metrics: dict[str, Any], predicted: Sequence[Sequence[Entity]]) -> None:
        growing = self.run / ".model.partial"
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir()
        labels, scoring = self.model.scheme.labels, self.settings.evaluate
        evaluation = kept_evaluation(
            self.split.pairs(predicted), labels, self.facts["eval"],
            dict(zip(labels, self.model.decisions.thresholds, strict=True)),
            scoring.bootstrap_samples, scoring.bootstrap_seed,
        )  # fmt: skip
        scores = {key: metrics[key] for key in ("micro_f1", "mean_f1", "scheme")}
        facts = {**self.facts, "step": self.progress.step, "scores": scores, "evaluations": [evaluation]}
        save_model(self.model, growing, facts)
        replace_folder(growing, self.run / "model")

    @contextmanager
    def _saying_what_is_safe(self, what: str) -> Iterator[None]:
        """Turns a full or broken disk into a message that says what there is to go on from."""
        try:
            yield
        except OSError as error:
            found = latest_checkpoint(self.run / "checkpoints")
            safe = f"the checkpoint {found} is intact" if found else "there is no checkpoint yet"
            raise NertoolError(
                f"the {what} of step {self.progress.step:,} can't be saved: {error.strerror or error}; {safe}",
                "free some space, then the same command with --resume",
            ) from error


def train_run(  # noqa: PLR0912, PLR0915 (what a run needs, in the order in which it needs it)
    run: Path,
    model: NerModel,
    task: Task,
    eval_documents: Sequence[Document],
    settings: Settings,
    facts: dict[str, Any],
    world: World = ALONE,
    show: Show | None = None,
) -> dict[str, Any]:
    """Trains a model, or goes on training it; `run/model` is the best one at every moment.

    Args:
        run: The run's folder, opened with `open_run`.
        model: The model to train, in place.
        task: What it learns from.
        eval_documents: The documents that choose the best model and stop early.
        settings: All settings.
        facts: What the model card should tell about the data.
        world: The processes that train it together.
        show: Takes the step and the entities of each section of the eval split after each evaluation.

    Returns:
        The summary that `train --json` prints.

    Raises:
        InterruptedBySignalError: After saving a checkpoint, if a signal came in.
        NertoolError: If the loss is not a number any more.
    """
    device = choose_device(settings.train.device, world.gpu)
    precision = choose_precision(settings.train.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    elif device.type == "cuda" and precision != torch.float32:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in fp32
    model.to(device)
    network = task.network.to(device)
    tagger = model.tagger(device, precision, settings.predict.tokens_per_batch)
    optimizer = make_optimizer(model.network, settings.train, network)
    scaler = make_scaler(device, precision)
    checkpoints = run / "checkpoints"
    if world.rank == 0:
        recover_folder(run / "model")
    newest = world.share(str(latest_checkpoint(checkpoints) or ""))
    if newest:
        progress = load_checkpoint(Path(newest), network, optimizer, scaler, world)
    else:
        progress = Progress()
        task.begin()
    if not len(task.lengths):
        raise NertoolError("the training documents have no text to learn from")
    progress.tokens_per_batch = progress.tokens_per_batch or _tokens_per_batch(
        network, task, settings, device, precision, world
    )
    if not newest:  # after trials of batches, which draw, too
        torch.manual_seed(settings.train.seed + world.rank)  # each process drops other units
    plan = BatchPlan(task.lengths, task.owned, settings.train, progress.tokens_per_batch, world.size)
    if newest:
        say(f"resuming at step {progress.step:,} of {plan.total_steps:,}")
    summary: dict[str, Any] = {
        "model": str(run / "model"),
        "device": str(device),
        "precision": str(precision).removeprefix("torch."),
    }
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    say(
        f"training {parameters / 1e6:.1f} M parameters on {summary['device']} in "
        f"{summary['precision']}: {len(task.lengths):,} windows, {plan.total_steps:,} steps"
        + (f", {world.size} processes" if world.size > 1 else "")
    )
    tracker = Tracker(
        run if world.rank == 0 else None,
        lines=progress.metrics_lines,
        step=progress.step,
        tensorboard=settings.train.tensorboard,
    )
    with stop_request(once=world.size == 1) as stop, show_progress("training", plan.total_steps, "steps") as advance:
        session = Session(
            run,
            settings,
            model,
            prepare_eval(eval_documents, tagger, world),
            tagger,
            device,
            stop.check if world.size == 1 else lambda: None,  # the others would wait for one that stops alone
            tracker,
            progress,
            plan.evaluation_steps(),
            facts,
            lambda states: save_checkpoint(checkpoints, network, optimizer, scaler, progress, states),
            world,
            show,
        )
        steps = fit(
            network,
            optimizer,
            scaler,
            plan,
            task.load_batch,
            task.loss,
            settings.train,
            progress,
            device,
            precision,
            world,
        )
        try:
            stopped_early = session.evaluate_if_due() or _follow(steps, session, advance, stop)
        except NonFiniteError as error:
            explained = _explain(error, task) if world.rank == 0 else None
            world.largest(0)  # torchrun ends all when one has ended: none before the first one knows what to say
            if explained is None:
                raise SystemExit(2) from error
            raise NertoolError(*explained) from error
        except StopRequestedError as error:
            session.save()
            world.largest(0)  # torchrun ends all when one has ended: none before the checkpoint is whole
            saved = f"saved at step {progress.step:,}; the same command with --resume goes on from there"
            raise InterruptedBySignalError(error.signal_number, saved) from error
        finally:
            tracker.close()
    summary |= {
        "steps": progress.step,
        "stopped_early": stopped_early and progress.step < plan.total_steps,
        "best_step": progress.best_step,
        settings.train.metric: progress.best_value,
        "train_seconds": round(progress.train_seconds, 1),
    }
    if world.rank == 0:
        finish_run(run, summary)
    return summary


def labelled_task(
    cache: WindowCache,
    model: NerModel,
    windows: npt.NDArray[np.int64] | None = None,
    doubts: Doubts | None = None,
) -> Task:
    """Returns the task of learning the entities of a cache's documents.

    Args:
        cache: The cache.
        model: Learns them.
        windows: Indices of the windows to learn from, `(n,)`; all, if none are given.
        doubts: What is left out of the loss.
    """
    columns = channel_columns(cache, model)
    chosen = np.arange(len(cache.windows)) if windows is None else windows
    before = len(model.tokenizer.prefix)

    def load(rows: npt.NDArray[np.int64]) -> Batch:
        batch = training_batch(cache, chosen[rows], model.tokenizer, columns, model.scheme.channels)
        if doubts:
            for targets, window in zip(batch.targets.numpy(), cache.windows[chosen[rows]], strict=True):
                doubts.mark(targets[before : before + int(window["length"])], int(window["start"]))
        return batch

    return Task(
        network=model.network,
        lengths=cache.windows["length"][chosen].astype(np.int64) + model.tokenizer.special_tokens,
        owned=cache.windows["owned_length"][chosen].astype(np.int64),
        load_batch=load,
        loss=binary_cross_entropy_where_known if doubts else binary_cross_entropy,
        begin=lambda: set_prior_bias(model, cache, columns, windows),
        documents_of=lambda rows: documents_of_windows(cache, chosen[rows], model.tokenizer),
    )


def _tokens_per_batch(
    network: torch.nn.Module,
    task: Task,
    settings: Settings,
    device: torch.device,
    precision: torch.dtype,
    world: World,
) -> int:
    """Returns how many tokens a batch has, by the settings or by the memory; the same in all processes."""
    if settings.train.tokens_per_batch != "auto":
        return settings.train.tokens_per_batch
    found = TOKENS_PER_BATCH
    if device.type == "cuda":
        found = find_tokens_per_batch(
            network, task.lengths, task.load_batch, task.loss, device, precision,
            spare=torch.cuda.get_device_properties(device).total_memory // 10,
            batches_of_step=settings.train.accumulate_batches * world.size, processes=world.size,
        )  # fmt: skip
    (least,) = world.largest(-found)
    say(f"{-least:,} tokens per batch")
    return -least


def _explain(error: NonFiniteError, task: Task) -> tuple[str, str]:
    """Returns what to say about a loss that is no number, and what to do."""
    documents = task.documents_of(error.windows)
    named = ", ".join(documents[:_DOCUMENTS_NAMED]) + (", …" if len(documents) > _DOCUMENTS_NAMED else "")
    return (
        f"{error.what} at step {error.step:,}, with windows of {len(documents)} documents: {named}",
        "try a lower train.learning_rate or train.precision=fp32 (both with --force, from the start), or "
        "--resume --skip-nonfinite to go on and pass over such batches",
    )


def _follow(steps: Iterable[StepReport], session: Session, advance: Advance, stop: StopRequest) -> bool:
    """Takes the steps of the loop; returns whether it stopped early."""
    tokens, since, note = 0, time.monotonic(), ""
    for report in steps:
        tokens += report.tokens
        if report.skipped:
            say(f"step {report.step:,} was skipped: its loss or gradients were not finite")
        if report.loss is not None:
            rate = tokens / max(1e-9, time.monotonic() - since)
            tokens, since = 0, time.monotonic()
            note = f"loss {report.loss:.4f}, {rate:,.0f} tokens/s"
            values = {"loss": report.loss, "learning_rate": report.learning_rate, "tokens_per_second": round(rate, 1)}
            session.tracker.write(report.step, "train", values)
        best = f", best {session.settings.train.metric} {session.progress.best_value:.3f}"
        advance(report.step, note + (best if session.progress.best_step >= 0 else ""))
        if session.evaluate_if_due():
            return True
        session.stop_or_save(stop)
    return False


def prepare_eval(documents: Sequence[Document], tagger: Tagger, world: World = ALONE) -> EvalSplit:
    """Tokenises the eval split, or this process's share of it."""
    numbered = [(i, section) for i, document in enumerate(documents) for section in document.sections]
    sections = tuple(section for _, section in numbered)
    return EvalSplit(sections, tuple(i for i, _ in numbered), prepare(sections[world.rank :: world.size], tagger))


def evaluate_split(
    tagger: Tagger,
    split: EvalSplit,
    settings: Settings,
    world: World = ALONE,
    should_stop: Callable[[], None] = lambda: None,
    on_predicted: Callable[[Sequence[Sequence[Entity]]], None] | None = None,
) -> dict[str, Any]:
    """Predicts the eval split and scores it; returns what `evaluate --json` prints, without confidence intervals.

    `on_predicted` takes the entities of each section, in the first process.
    """
    shares = world.gather(predict_sections(tagger, split.prepared, should_stop))
    report = None
    if world.rank == 0:
        predicted = [shares[i % world.size][i // world.size] for i in range(len(split.sections))]
        labels = tagger.decisions.scheme.labels
        report = evaluation_report(split.pairs(predicted), labels, scheme=settings.evaluate.scheme, bootstrap_samples=0)
        if on_predicted:
            on_predicted(predicted)
    return world.share(report)


def check_metric(name: str, labels: Sequence[str]) -> None:
    """Makes sure that the metric which picks the best model exists.

    Raises:
        NertoolError: If there is no such number in an evaluation of these classes.
    """
    report = evaluation_report([], labels, bootstrap_samples=0)
    known = sorted(key for key, value in report.items() if isinstance(value, int | float | None))
    if name not in known:
        raise NertoolError(f"train.metric: there is no metric {name!r}{nearest_name(name, known)}", ", ".join(known))


def channel_columns(cache: WindowCache, model: NerModel) -> npt.NDArray[np.int64]:
    """Returns the model's channel of each channel of the cache, `(cache channels,)`."""
    return np.array(cache.scheme.channels_in(model.scheme), np.int64)


def set_prior_bias(
    model: NerModel,
    cache: WindowCache,
    columns: npt.NDArray[np.int64],
    windows: npt.NDArray[np.int64] | None = None,
) -> None:
    """Sets the new output layer's biases to how rare each channel is in the training tokens.

    Args:
        model: The model.
        cache: The cache.
        columns: The model's channel of each channel of the cache, `(cache channels,)`.
        windows: Indices of the windows to learn from, `(n,)`; all, if none are given.
    """
    positives, total = torch.zeros(model.scheme.channels), 0
    counts = np.ones(len(cache.windows), np.bool_)
    if windows is not None:
        counts[:] = False
        counts[windows] = True
    first = 0
    for start in range(0, len(counts), _WINDOWS_AT_ONCE):  # the tokens that they own follow one another
        here = slice(start, start + _WINDOWS_AT_ONCE)
        wanted = np.repeat(counts[here], cache.windows["owned_length"][here])
        rows = cache.targets[first : first + len(wanted)][wanted]
        first += len(wanted)
        total += len(rows)
        bits = np.unpackbits(rows, axis=1, count=cache.scheme.channels)
        positives[torch.from_numpy(columns)] += torch.from_numpy(bits.sum(axis=0, dtype=np.int64))
    head = model.network.get_submodule("classifier")
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.bias.copy_(prior_bias(positives, total))
