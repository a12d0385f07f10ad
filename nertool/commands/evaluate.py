"""`nertool evaluate`: how well a model does on documents with gold entities."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nertool.commands.options import Config, Device, Force, Json, LsProject, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from nertool.evaluation import Evaluation
    from nertool.settings import Settings


@command
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A model folder, trained or exported; or documents, to score their entities."
        ),
    ],
    documents: Annotated[Path, typer.Argument(metavar="DOCS", help="Documents with gold entities, or a cache.")],
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme", help="strict, overlap, or kazu (KAZU's own scorer, omissions included).", show_default=False
        ),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="MODEL_OR_DOCS",
            help="Another model, or its predictions, to compare with.",
        ),
    ] = None,
    baseline_gold: Annotated[
        Path | None,
        typer.Option(
            "--baseline-gold", metavar="DOCS", help="The same documents with other gold entities, to compare with."
        ),
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            "--train",
            metavar="DOCS",
            help="What the model was trained on, to tell mentions that it has seen; by default the cache of its run.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE.html", help="Write all of it as one HTML file, with the errors to browse."
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", metavar="DIR", help="Write the documents with predicted entities to this folder."
        ),
    ] = None,
    tune_thresholds: Annotated[
        bool,
        typer.Option(
            "--tune-thresholds",
            help="Choose the threshold of each class on these documents, which should not be the test ones, and keep "
            "them in MODEL.",
        ),
    ] = False,
    into_card: Annotated[
        bool,
        typer.Option(
            "--into-card", help="Keep the scores in MODEL and its model card, beside those on other documents."
        ),
    ] = False,
    ls_project: LsProject = None,
    device: Device = None,
    skip_invalid: SkipInvalid = None,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Score a model's predictions, or another annotation of the documents, against gold entities, class by class.

    nertool evaluate run/model split/test --json > metrics.json
    """
    from nertool.artefacts import CARD_FILE
    from nertool.commands.score_tables import show_report
    from nertool.commands.showing import check_showing, choose_rows, show_predictions
    from nertool.console import print_json, say

    options = {"evaluate.scheme": scheme, "predict.device": device, "data.skip_invalid": skip_invalid}
    settings = settings_from(config, assignments, options)
    if ls_project is not None:
        check_showing(ls_project, settings)
    if report is not None:
        _check_report(report, documents)
    result = run_evaluate(
        model,
        documents,
        settings,
        baseline=baseline,
        baseline_gold=baseline_gold,
        train=train,
        predictions=predictions,
        tune=tune_thresholds,
        into_card=into_card,
        force=force,
    )
    if json:
        print_json(result.report)
    else:
        show_report(result.report)
        if report is None:
            say("more of it, such as curves, calibration and all confusions: --report FILE.html or --json")
    if into_card:
        say(f"kept in {model / CARD_FILE}")
    if report is not None:
        _write_report(report, result, model, documents)
    if ls_project is not None:
        pairs = zip(result.gold_documents, result.predicted_documents, strict=True)
        show_predictions(choose_rows(pairs, settings.label_studio.sample), model, ls_project, settings)
    if not json:
        _suggest_next(model, documents)


def _suggest_next(model: Path, documents: Path) -> None:
    """Says what most people do with a model that they have scored; with documents there is nothing to do."""
    from nertool.artefacts import read_facts
    from nertool.console import suggest
    from nertool.evaluation import is_annotation

    if is_annotation(model):
        return
    if "export" in read_facts(model):
        suggest("predict", model, "TEXTS", "predictions")
        return
    eval_data = documents.parent / "eval"  # what chose the model also judges its export; the test split judges once
    judge = eval_data if eval_data.exists() else documents
    suggest("export", model, "packed", "--format", "onnx", "--precision", "int8", "--eval", judge)


def _check_report(path: Path, source: Path) -> None:
    """Makes sure that the HTML report can be made, before the work."""
    from nertool.errors import NertoolError
    from nertool.extras import require
    from nertool.files import check_output
    from nertool.html_report import PACKAGES

    for package in PACKAGES:
        require(package)
    if path.is_dir():
        raise NertoolError(f"{path} is a folder", "name the file, such as report.html")
    check_output(path, force=True, as_file=True, source=source)


def _write_report(path: Path, result: "Evaluation", model: Path, source: Path) -> None:
    from nertool.console import say
    from nertool.html_report import write_html_report
    from nertool.tracking import read_history

    write_html_report(
        path,
        result.report,
        result.gold_documents,
        result.predicted_documents,
        result.errors,
        model=_short_name(model),
        documents=_short_name(source),
        history=read_history(model.resolve().parent),
    )
    say(f"wrote {path}")


def _short_name(path: Path) -> str:
    """Returns what to call a model or documents in a report, which others may read: the end of the path."""
    return "/".join(path.absolute().parts[-2:]).encode(errors="replace").decode()


def run_evaluate(
    model_folder: Path,
    source: Path,
    settings: "Settings",
    *,
    baseline: Path | None = None,
    baseline_gold: Path | None = None,
    train: Path | None = None,
    predictions: Path | None = None,
    tune: bool = False,
    into_card: bool = False,
    force: bool = False,
) -> "Evaluation":
    """Scores a model, or documents against documents.

    Args:
        model_folder: A model that nertool trained or exported; or documents with entities, which are scored like
            predictions.
        source: Documents with gold entities, or a cache.
        settings: The `Settings`.
        baseline: Another such model or documents, to compare with.
        baseline_gold: The same documents with other gold entities, to compare with.
        train: The documents that the model was trained on, or a cache.
        predictions: Where to write the predicted documents.
        tune: Choose the thresholds of the classes on these documents first, and keep them in the model.
        into_card: Keep the scores in the model, for its card.
        force: Replace older predictions.

    Raises:
        NertoolError: If the model or the documents can't be used.
    """
    from nertool.errors import NertoolError
    from nertool.evaluation import (
        Evaluation,
        found_in,
        full_report,
        is_annotation,
        keep_scores,
        open_rival,
        predict,
        read_annotation,
        seen_in_training,
        tune_model,
    )
    from nertool.files import check_output, new_folder
    from nertool.formats import ReadReport
    from nertool.formats.kazu import KazuWriter
    from nertool.formats.reading import report_reading, write_rejected
    from nertool.sources import Source

    if predictions is not None:
        check_output(predictions, force=force, source=source)
    of_documents = is_annotation(model_folder)
    if of_documents and tune:
        raise NertoolError(f"{model_folder} holds documents, which have no thresholds to tune", "name a model")
    if of_documents and into_card:
        raise NertoolError(f"{model_folder} holds documents, which have no model card", "name a model")
    reading = ReadReport()
    gold_documents = Source(source, settings, reading).read_all()
    # What may be wrong with what else was given comes out before a model is run for minutes.
    rival = open_rival(baseline, baseline_gold, gold_documents, settings)
    seen = seen_in_training(model_folder, train, settings)
    if of_documents:
        found = found_in(read_annotation(model_folder, gold_documents, settings))
    else:
        if tune:
            tune_model(model_folder, source, gold_documents, settings)
        found = predict(model_folder, gold_documents, settings)
    report, errors = full_report(gold_documents, found, rival, seen, settings, rejected=len(reading.rejected))
    if into_card:
        keep_scores(model_folder, source, gold_documents, found, settings)
    if predictions is not None:
        with new_folder(predictions, "evaluate", force=force) as folder, KazuWriter(folder) as writer:
            for document in found.documents:
                writer.write(document)
            write_rejected(reading, folder / "rejected.jsonl")
    report_reading(reading)
    return Evaluation(report, gold_documents, found.documents, errors)
