"""`nertool train`: documents or a cache into a model."""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import (
    Config,
    Device,
    Force,
    Json,
    LsProject,
    Model,
    Set,
    SkipInvalid,
    command,
    settings_from,
)
from nertool.commands.together import Tell

if TYPE_CHECKING:
    from nertool.distributed import World
    from nertool.settings import Settings
    from nertool.suspects import Suspect


@command
def train(
    train_data: Annotated[Path, typer.Option("--train", help="Documents or a cache to learn from.")],
    eval_data: Annotated[Path, typer.Option("--eval", help="Documents or a cache that choose the best model.")],
    output: Annotated[Path, typer.Option("--output", help="The run's folder; OUTPUT/model gets the best model.")],
    model: Model = None,
    suspects: Annotated[
        Path | None,
        typer.Option(
            "--suspects", metavar="AUDIT", help="What an audit of the training documents found suspect isn't learned."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, if there is one.")] = False,
    device: Device = None,
    skip_nonfinite: Annotated[
        bool | None,
        typer.Option("--skip-nonfinite", help="Pass over batches whose loss or gradients are not finite."),
    ] = None,
    ls_project: LsProject = None,
    skip_invalid: SkipInvalid = None,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Train a model; the best one on the eval split is kept.

    nertool train --train split/train --eval split/eval --output run --model minilm
    """
    from nertool.console import print_json, say, suggest

    options = {
        "model.name": model,
        "train.device": device,
        "train.skip_nonfinite": skip_nonfinite,
        "data.skip_invalid": skip_invalid,
    }
    settings = settings_from(config, assignments, options)
    summary = run_train(
        train_data, eval_data, output, settings, suspects=suspects, resume=resume, force=force, ls_project=ls_project
    )
    if summary is None:
        return
    if json:
        print_json(summary)
    else:
        early = "stopped early" if summary["stopped_early"] else "finished"
        metric = settings.train.metric
        say(
            f"{early} after {summary['steps']:,} steps; {metric} {summary[metric]:.4f} at step {summary['best_step']:,}"
        )
        say(f"model: {summary['model']}")
        test = eval_data.parent / "test"
        suggest("evaluate", summary["model"], test if test.is_dir() else "DOCUMENTS")


def run_train(
    train_data: Path,
    eval_data: Path,
    output: Path,
    settings: "Settings",
    *,
    suspects: Path | None = None,
    resume: bool = False,
    force: bool = False,
    ls_project: str | None = None,
) -> dict[str, Any] | None:
    """Trains a model.

    Args:
        train_data: Documents, or a cache made with the same model and window settings.
        eval_data: Documents, or a cache.
        output: The run's folder.
        settings: The `Settings`.
        suspects: The folder of an audit of the training documents; what it found suspect is left out of the loss.
        resume: Go on with an interrupted run.
        force: Remove an older run.
        ls_project: The Label Studio project in which a sample of the eval split is shown after each evaluation.

    Returns:
        The summary that `--json` prints; None in all processes but the first, where there are several.

    Raises:
        NertoolError: If inputs are invalid or don't fit.
        InterruptedBySignalError: After saving, if a signal came in.
    """
    from functools import partial

    from nertool.commands.together import lead_or_follow

    lead = partial(
        _lead, train_data, eval_data, output, settings, suspects=suspects, resume=resume, force=force,
        ls_project=ls_project,
    )  # fmt: skip
    follow = partial(_follow, eval_data, output, settings)
    return lead_or_follow(output, settings, lead, follow, resume=resume, force=force, ls_project=ls_project)


def _lead(
    train_data: Path,
    eval_data: Path,
    output: Path,
    settings: "Settings",
    world: "World",
    tell: Tell,
    *,
    suspects: Path | None,
    resume: bool,
    force: bool,
    ls_project: str | None,
) -> dict[str, Any]:
    """What the first process does, which is all but for the shared work where there are others; it tells them of it."""
    from nertool.auditing import read_audit
    from nertool.cache_building import scan
    from nertool.commands.cache import show_cache
    from nertool.commands.showing import showing_evaluations
    from nertool.commands.together import data_facts, training_cache
    from nertool.console import counted, progress, say
    from nertool.devices import choose_device, seed_everything
    from nertool.doubts import locate_doubts
    from nertool.formats import ReadReport
    from nertool.formats.reading import report_reading, write_rejected
    from nertool.labels import make_scheme
    from nertool.model import hub_name, new_model, shown_name
    from nertool.run_folder import open_run, summary_of
    from nertool.runs import check_metric, labelled_task, train_run
    from nertool.sources import Source

    choose_device(settings.train.device, world.gpu)  # before the long work, not after it
    reading = ReadReport()
    train_source = Source(train_data, settings, reading)
    eval_documents = Source(eval_data, settings, reading).read_all()
    eval_scan = scan(eval_documents)
    with progress("reading", None, "documents") as advance:
        train_scan = train_source.scan(advance)
    scheme = make_scheme(
        settings.data.labels or {*train_scan.labels, *eval_scan.labels}, begin=settings.model.begin_channels
    )
    check_metric(settings.train.metric, scheme.labels)
    seed_everything(settings.train.seed)
    model = new_model(settings.model, settings.windows, scheme)
    train_source.open_cache(model.tokenizer, scheme)  # one that doesn't fit is refused before the run's folder is made
    digests = {"train": train_scan.digest, "eval": eval_scan.digest}
    doubtful: list[Suspect] = []
    if suspects is not None:
        doubtful, digests["suspects"] = read_audit(suspects, train_scan.digest)
    if open_run(output, settings, digests, resume=resume, force=force):
        say(f"{output} is finished already")
        summary = summary_of(output)
        tell({"finished": True})
        return summary
    write_rejected(reading, output / "rejected.jsonl")
    report_reading(reading)
    _report_labels(scheme.labels, train_scan.labels, eval_scan.labels)
    cache = training_cache(train_source, train_scan, output / "cache", model.tokenizer, scheme, settings)
    show_cache(cache.info)
    facts = {
        "backbone": shown_name(settings.model.name),
        "base_model": hub_name(settings.model.name),
        **data_facts((train_data, train_scan), (eval_data, eval_scan), cache, settings, "train"),
    }
    facts["train"]["left_out"] = len(doubtful)
    if suspects is not None:
        say(f"{counted(len(doubtful), 'suspect annotation')} of {suspects} left out of the loss")
    doubts = locate_doubts(doubtful, cache.documents(), model.tokenizer, scheme) if doubtful else None
    cells = [doubts.tokens.tolist(), doubts.channels.tolist()] if doubts else None
    tell({"cache": str(cache.path), "scheme": scheme.to_json(), "eval": eval_scan.digest, "doubts": cells})
    with showing_evaluations(output, eval_documents, scheme.labels, settings, ls_project) as show:
        task = labelled_task(cache, model, doubts=doubts)
        return train_run(output, model, task, eval_documents, settings, facts, world, show)


def _follow(eval_data: Path, output: Path, settings: "Settings", world: "World", job: dict[str, Any]) -> None:
    """What the other processes do: open what the first one made, and train with it."""
    import numpy as np

    from nertool.commands.together import read_eval
    from nertool.doubts import Doubts
    from nertool.labels import LabelScheme
    from nertool.model import new_model
    from nertool.runs import labelled_task, train_run
    from nertool.window_cache import open_cache

    model = new_model(settings.model, settings.windows, LabelScheme.from_json(job["scheme"]))
    eval_documents = read_eval(eval_data, settings, job)
    doubts = Doubts(*(np.array(column, np.int64) for column in job["doubts"])) if job["doubts"] else None
    task = labelled_task(open_cache(Path(job["cache"])), model, doubts=doubts)
    train_run(output, model, task, eval_documents, settings, {}, world)


def _report_labels(labels: Iterable[str], train: Collection[str], evaluated: Collection[str]) -> None:
    from nertool.console import say

    for label in labels:
        if label not in train:
            say(f"note: the class {label!r} is not in the training documents, so the model can't learn it")
        if label not in evaluated:
            say(f"note: the class {label!r} is not in the eval split, so nothing is known of how well it is learned")
