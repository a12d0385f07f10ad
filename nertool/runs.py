"""A training run: its folder, and the caller of the loop, who logs, evaluates, saves and stops."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nertool import __version__
from nertool.batches import training_batch
from nertool.checkpoints import Progress, latest_checkpoint, load_checkpoint, save_checkpoint
from nertool.console import progress as show_progress
from nertool.console import say
from nertool.devices import choose_device, choose_precision, keep_freed_memory
from nertool.documents import Document
from nertool.errors import Interrupted, NertoolError
from nertool.files import MANIFEST_NAME, read_json, recover_folder, remove_own, replace_folder, write_json
from nertool.inference import Prepared, Runner, predict_sections, prepare
from nertool.losses import binary_cross_entropy, prior_bias
from nertool.metrics import SectionPair, evaluation_report
from nertool.model import NerModel, save_model
from nertool.model_card import model_card
from nertool.settings import Settings
from nertool.stopping import StopRequest, StopRequestedError, stop_request
from nertool.tracking import METRICS_FILE, Tracker
from nertool.training import BatchPlan, StepReport, fit, make_optimizer, make_scaler
from nertool.window_cache import WindowCache

RUN_FILE = "run.json"
SETTINGS_FILE = "settings.json"
_OWN_FILES = [RUN_FILE, SETTINGS_FILE, METRICS_FILE, "rejected.jsonl"]
_OWN_TREES = ["model/", ".model.old/", ".model.partial/", "checkpoints/", "cache/", ".cache.partial/", "tensorboard/"]
# Settings that may differ between the parts of one run: they change where and how often, not what comes out.
_FREE_SETTINGS = {("train", "device"), ("train", "checkpoint_every_seconds"), ("train", "tensorboard")}
_PARTS = ("data", "windows", "model", "train")


@dataclass(frozen=True, slots=True)
class EvalSplit:
    """The gold documents of the eval split, prepared once for all evaluations of a run.

    Args:
        prepared: Their sections.
        document_of_section: The number of each section's document.
    """

    prepared: Prepared
    document_of_section: tuple[int, ...]


def prepare_eval(documents: Sequence[Document], model: NerModel) -> EvalSplit:
    """Tokenises the eval split."""
    numbered = [(i, section) for i, document in enumerate(documents) for section in document.sections]
    return EvalSplit(prepare([section for _, section in numbered], model), tuple(i for i, _ in numbered))


def evaluate_split(model: NerModel, split: EvalSplit, runner: Runner, settings: Settings) -> dict[str, Any]:
    """Predicts the eval split and scores it; returns what `evaluate --json` prints, without confidence intervals."""
    predicted = predict_sections(model, split.prepared, runner)
    pairs = [
        SectionPair(document, section.entities, found)
        for document, section, found in zip(split.document_of_section, split.prepared.sections, predicted, strict=True)
    ]
    return evaluation_report(pairs, model.scheme.labels, scheme=settings.evaluate.scheme, bootstrap_samples=0)


def open_run(run: Path, settings: Settings, data: dict[str, str], *, resume: bool, force: bool) -> bool:
    """Makes the run's folder, or makes sure that what is in it may go on.

    Args:
        run: The folder.
        settings: The resolved settings; saved there.
        data: What was read: name → digest.
        resume: Go on with an interrupted run.
        force: Remove an older run.

    Returns:
        Whether a finished run of the same settings and data is there, so that nothing is left to do.

    Raises:
        NertoolError: If another run, or something that isn't nertool's, is there.
    """
    fingerprint = {"settings": _settings_that_matter(settings), "data": data}
    if run.is_dir() and any(run.iterdir()):
        if force:
            remove_own(run)
        elif not (run / RUN_FILE).is_file():
            raise NertoolError(f"{run} is not empty and not a training run", "choose another --output")
        else:
            return _check_run(run, read_json(run / RUN_FILE), fingerprint, resume=resume)
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / MANIFEST_NAME, {"command": "train", "files": [*_OWN_FILES, *_OWN_TREES]})
    write_json(run / SETTINGS_FILE, settings.model_dump(mode="json"))
    write_json(run / RUN_FILE, {"nertool_version": __version__, "finished": False, **fingerprint})
    return False


def _check_run(run: Path, known: dict[str, Any], fingerprint: dict[str, Any], *, resume: bool) -> bool:
    if not resume:
        state = "a finished" if known["finished"] else "an unfinished"
        go_on = "" if known["finished"] else "--resume to go on with it, "
        raise NertoolError(f"{run} holds {state} run", f"{go_on}--force to start afresh, or another --output")
    different = [
        f"{part}.{key} was {known['settings'][part].get(key)!r}, now {value!r}"
        for part, values in fingerprint["settings"].items()
        for key, value in values.items()
        if known["settings"][part].get(key) != value
    ]
    different += [f"the {name} documents have changed" for name, value in fingerprint["data"].items() if known["data"].get(name) != value]
    if different:
        raise NertoolError(
            f"can't resume {run}: {'; '.join(different)}", "use the old settings and data, --force, or another --output"
        )
    return bool(known["finished"])


def _settings_that_matter(settings: Settings) -> dict[str, dict[str, Any]]:
    values = settings.model_dump(mode="json", include=set(_PARTS))
    return {
        part: {key: value for key, value in values[part].items() if (part, key) not in _FREE_SETTINGS} for part in _PARTS
    }


def train_run(
    run: Path,
    model: NerModel,
    cache: WindowCache,
    eval_documents: Sequence[Document],
    settings: Settings,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Trains a model, or goes on training it; `run/model` is the best one at every moment.

    Args:
        run: The run's folder, opened with `open_run`.
        model: The model to train, in place.
        cache: The training windows.
        eval_documents: The documents that choose the best model and stop early.
        settings: All settings.
        facts: What the model card should tell about the data.

    Returns:
        The summary that `train --json` prints.

    Raises:
        Interrupted: After saving a checkpoint, if a signal came in.
        NertoolError: If the eval split lacks the metric, or the loss is not a number any more.
    """
    device = choose_device(settings.train.device)
    precision = choose_precision(settings.train.precision, device)
    if device.type == "cpu":
        keep_freed_memory()
    network = model.network.to(device)
    optimizer = make_optimizer(network, settings.train)
    scaler = make_scaler(device, precision)
    plan = BatchPlan(cache.windows["length"].astype(np.int64) + model.tokenizer.special_tokens, settings.train)
    if not plan.total_steps:
        raise NertoolError("the training documents have no text to learn from")
    columns = channel_columns(cache, model)
    checkpoints = run / "checkpoints"
    recover_folder(run / "model")
    if checkpoint := latest_checkpoint(checkpoints):
        progress = load_checkpoint(checkpoint, network, optimizer, scaler)
        say(f"resuming at step {progress.step:,} of {plan.total_steps:,}")
    else:
        progress = Progress()
        set_prior_bias(model, cache, columns)
    tracker = Tracker(run, lines=progress.metrics_lines, step=progress.step, tensorboard=settings.train.tensorboard)
    split = prepare_eval(eval_documents, model)
    evaluation_steps = plan.evaluation_steps()
    precision_name = str(precision).removeprefix("torch.")
    say(
        f"training {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters on {device} in {precision_name}: "
        f"{len(cache.windows):,} windows, {plan.total_steps:,} steps"
    )

    with stop_request() as stop, show_progress("training", plan.total_steps, "steps") as advance:
        runner = Runner(device, precision, settings.predict.tokens_per_batch, stop.check)
        clock = _Clock(progress)

        def save() -> None:
            progress.metrics_lines = tracker.lines
            clock.stamp()
            save_checkpoint(checkpoints, network, optimizer, scaler, progress)

        def evaluate() -> None:
            metrics = evaluate_split(model, split, runner, settings)
            value = _metric(metrics, settings.train.metric)
            better = value > progress.best_value
            progress.evaluated_step = progress.step
            progress.evaluations_without_gain = 0 if better else progress.evaluations_without_gain + 1
            if better:
                progress.best_value, progress.best_step = value, progress.step
                _save_best(run, model, metrics, settings, {**facts, "step": progress.step})
            flat = {key: number for key, number in metrics.items() if isinstance(number, int | float | None)}
            tracker.write(progress.step, "eval", flat)
            save()
            say(
                f"step {progress.step:,}: {settings.train.metric} {value:.4f}"
                + (" (best so far)" if better else f" (best {progress.best_value:.4f} at step {progress.best_step:,})")
            )

        def evaluate_if_due() -> bool:
            """Returns whether training has to stop early."""
            if progress.step in evaluation_steps and progress.evaluated_step != progress.step:
                evaluate()
            return progress.evaluations_without_gain >= settings.train.patience

        try:
            stopped_early = evaluate_if_due() or _loop(
                fit(
                    network,
                    optimizer,
                    scaler,
                    plan,
                    lambda indices: training_batch(cache, indices, model.tokenizer, columns, model.scheme.channels),
                    binary_cross_entropy,
                    settings.train,
                    progress,
                    device,
                    precision,
                ),
                tracker,
                clock,
                advance,
                stop,
                evaluate_if_due,
                save,
                settings.train.checkpoint_every_seconds,
            )
        except StopRequestedError as error:
            save()
            assert stop.signal_number is not None
            raise Interrupted(
                stop.signal_number, f"saved at step {progress.step:,}; the same command with --resume goes on from there"
            ) from error
        finally:
            tracker.close()
    summary = {
        "model": str(run / "model"),
        "steps": progress.step,
        "stopped_early": stopped_early and progress.step < plan.total_steps,
        "best_step": progress.best_step,
        settings.train.metric: progress.best_value,
        "train_seconds": round(progress.train_seconds, 1),
        "device": str(device),
        "precision": precision_name,
    }
    write_json(run / RUN_FILE, {**read_json(run / RUN_FILE), "finished": True, "summary": summary})
    return summary


def _loop(
    steps: Any,
    tracker: Tracker,
    clock: "_Clock",
    advance: Callable[..., None],
    stop: StopRequest,
    evaluate_if_due: Callable[[], bool],
    save: Callable[[], None],
    save_every_seconds: float,
) -> bool:
    """Runs the steps; returns whether it stopped early."""
    tokens, since, loss_note = 0, time.monotonic(), ""
    report: StepReport
    for report in steps:
        tokens += report.tokens
        if report.loss is not None:
            rate = tokens / max(1e-9, time.monotonic() - since)
            tokens, since = 0, time.monotonic()
            loss_note = f"loss {report.loss:.4f}, {rate:,.0f} tokens/s"
            tracker.write(
                report.step,
                "train",
                {"loss": report.loss, "learning_rate": report.learning_rate, "tokens_per_second": round(rate, 1)},
            )
        advance(report.step, loss_note)
        stop.check()
        if evaluate_if_due():
            return True
        if clock.seconds_since_save() >= save_every_seconds:
            save()
    return False


class _Clock:
    """Keeps the time that training took, over all resumptions, and since the last save."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._before = progress.train_seconds
        self._start = self._saved = time.monotonic()

    def seconds_since_save(self) -> float:
        """Returns the seconds of work that a crash would cost now."""
        return time.monotonic() - self._saved

    def stamp(self) -> None:
        """Notes that the state is saved now."""
        self._saved = time.monotonic()
        self._progress.train_seconds = self._before + self._saved - self._start


def channel_columns(cache: WindowCache, model: NerModel) -> npt.NDArray[np.int64]:
    """Returns the model's channel of each channel of the cache, `(cache channels,)`."""
    index = {label: i for i, label in enumerate(model.scheme.labels)}
    inside = [index[label] for label in cache.scheme.labels]
    return np.array([*inside, *(len(index) + i for i in inside if cache.scheme.begin)], np.int64)


def set_prior_bias(model: NerModel, cache: WindowCache, columns: npt.NDArray[np.int64]) -> None:
    """Sets the new output layer's biases to how rare each channel is in the training tokens."""
    positives = torch.zeros(model.scheme.channels)
    for start in range(0, len(cache.tokens), 1_000_000):
        bits = np.unpackbits(cache.targets[start : start + 1_000_000], axis=1, count=cache.scheme.channels)
        positives[torch.from_numpy(columns)] += torch.from_numpy(bits.sum(axis=0, dtype=np.int64))
    head = model.network.classifier
    with torch.no_grad():
        head.bias.copy_(prior_bias(positives, len(cache.tokens)))


def _metric(metrics: dict[str, Any], name: str) -> float:
    if name not in metrics or isinstance(metrics[name], str | dict | list):
        numbers = sorted(key for key, value in metrics.items() if isinstance(value, int | float))
        raise NertoolError(f"train.metric: there is no metric {name!r}", f"known: {', '.join(numbers)}")
    return 0.0 if metrics[name] is None else float(metrics[name])


def _save_best(run: Path, model: NerModel, metrics: dict[str, Any], settings: Settings, facts: dict[str, Any]) -> None:
    partial = run / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    scores = {key: metrics[key] for key in ("micro_f1", "mean_f1", "scheme")}
    save_model(model, partial, {"scores": scores, "backbone": settings.model.name, **facts})
    (partial / "README.md").write_text(model_card(model, metrics, settings, facts), encoding="utf-8")
    replace_folder(partial, run / "model")
