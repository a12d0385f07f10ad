"""`nertool train`: documents or a cache into a model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nertool.commands.options import Config, Device, Force, Json, Model, Set, SkipInvalid, command, settings_from


@command
def train(
    train_data: Annotated[Path, typer.Option("--train", help="Documents or a cache to learn from.")],
    eval_data: Annotated[Path, typer.Option("--eval", help="Documents or a cache that choose the best model.")],
    output: Annotated[Path, typer.Option("--output", help="The run's folder; OUTPUT/model gets the best model.")],
    model: Model = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, if there is one.")] = False,
    device: Device = None,
    skip_invalid: SkipInvalid = None,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Train a model; the best one on the eval split is kept.

    nertool train --train split/train --eval split/eval --output run --model minilm
    """
    from nertool.console import print_json, say

    options = {"model.name": model, "train.device": device, "data.skip_invalid": skip_invalid}
    settings = settings_from(config, assignments, options)
    summary = run_train(train_data, eval_data, output, settings, resume=resume, force=force)
    if json:
        print_json(summary)
    else:
        early = "stopped early" if summary["stopped_early"] else "finished"
        metric = settings.train.metric
        say(f"{early} after {summary['steps']:,} steps; best {metric} {summary[metric]:.4f} at step {summary['best_step']:,}")
        say(f"model: {summary['model']}")


def run_train(
    train_data: Path, eval_data: Path, output: Path, settings: Any, *, resume: bool = False, force: bool = False
) -> dict[str, Any]:
    """Trains a model.

    Args:
        train_data: Documents, or a cache made with the same model and window settings.
        eval_data: Documents, or a cache.
        output: The run's folder.
        settings: The `Settings`.
        resume: Go on with an interrupted run.
        force: Remove an older run.

    Returns:
        The summary that `--json` prints.

    Raises:
        NertoolError: If inputs are invalid or don't fit.
        Interrupted: After saving, if a signal came in.
    """
    from nertool.commands.cache import show_cache
    from nertool.console import progress, say
    from nertool.devices import choose_device, seed_everything
    from nertool.errors import NertoolError
    from nertool.files import prepare_output, read_json
    from nertool.formats import ReadReport, read_documents
    from nertool.formats.reading import report_reading, write_rejected
    from nertool.labels import make_scheme
    from nertool.model import load_tokenizer, new_model
    from nertool.runs import RUN_FILE, open_run, train_run
    from nertool.window_cache import build_cache, check_cache, is_cache, open_cache, scan

    choose_device(settings.train.device)
    if not output.exists():
        prepare_output(output, force=force)
    tokenizer = load_tokenizer(settings.model.name)
    report = ReadReport()

    def read_training() -> Any:
        return read_documents(train_data, report, skip_invalid=settings.data.skip_invalid)

    eval_report = ReadReport()
    if is_cache(eval_data):
        eval_documents = list(open_cache(eval_data).documents())
    else:
        eval_documents = list(read_documents(eval_data, eval_report, skip_invalid=settings.data.skip_invalid))
    eval_scan = scan(eval_documents)
    cache = open_cache(train_data) if is_cache(train_data) else None
    if cache:
        check_cache(cache, tokenizer, settings.windows, begin=settings.model.begin_channels)
        train_digest = cache.info["fingerprint"]["documents"]
        train_labels = set(cache.scheme.labels)
    else:
        with progress("reading", None, "documents") as advance:
            scanned = scan(read_training(), lambda done: advance(done))
        train_digest, train_labels = scanned.digest, set(scanned.labels)
    labels = settings.data.labels or train_labels | set(eval_scan.labels)
    scheme = make_scheme(labels, begin=settings.model.begin_channels)
    if cache and (unknown := sorted(set(cache.scheme.labels) - set(scheme.labels))):
        raise NertoolError(f"the cache {train_data} has classes that data.labels lacks: {', '.join(unknown)}")
    seed_everything(settings.train.seed)
    model = new_model(settings.model, settings.windows, scheme)
    if open_run(output, settings, {"train": train_digest, "eval": eval_scan.digest}, resume=resume, force=force):
        say(f"{output} is finished already")
        summary: dict[str, Any] = read_json(output / RUN_FILE)["summary"]
        return summary
    for label in sorted(set(scheme.labels) - train_labels):
        say(f"note: the class {label!r} is in the eval split only, so the model can't learn it")
    for label in sorted(set(scheme.labels) - set(eval_scan.labels)):
        say(f"note: the class {label!r} is not in the eval split, so nothing is known of how well it is learned")
    if cache is None:
        with progress("tokenising", scanned.documents, "documents") as advance:
            cache = build_cache(
                output / "cache",
                lambda: read_documents(train_data, ReadReport(), skip_invalid=settings.data.skip_invalid),
                tokenizer,
                settings.windows,
                scanned=scanned,
                scheme=scheme,
                on_documents=lambda done: advance(done),
            )
        report.rejected += eval_report.rejected
        write_rejected(report, output / "rejected.jsonl")
        report_reading(report)
    show_cache(cache.info)
    facts = {
        "train": _counts(cache.info["counts"]),
        "eval": {"documents": len(eval_documents), "entities": eval_scan.labels.total()},
        "annotators": sorted({e.namespace for d in eval_documents for s in d.sections for e in s.entities}),
    }
    return train_run(output, model, cache, eval_documents, settings, facts)


def _counts(counts: dict[str, Any]) -> dict[str, int]:
    return {"documents": counts["documents"], "entities": sum(counts["labels"].values())}
