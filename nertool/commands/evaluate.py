"""`nertool evaluate`: how well a model does on documents with gold entities."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import Config, Device, Force, Json, LsProject, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nertool.documents import Document
    from nertool.formats import ReadReport


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
    predictions: Annotated[
        Path | None, typer.Option("--predictions", help="Write the documents with predicted entities to this folder.")
    ] = None,
    tune_thresholds: Annotated[
        bool,
        typer.Option(
            "--tune-thresholds",
            help="Choose the threshold of each class on these documents, which should not be the test ones, and keep "
            "them in MODEL.",
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
    from nertool.commands.showing import check_showing, choose_rows, show_predictions
    from nertool.console import print_json

    options = {"evaluate.scheme": scheme, "predict.device": device, "data.skip_invalid": skip_invalid}
    settings = settings_from(config, assignments, options)
    if ls_project is not None:
        check_showing(ls_project, settings)
    pairs: list[tuple[Document | None, Document]] = []
    report = run_evaluate(
        model,
        documents,
        settings,
        predictions=predictions,
        tune=tune_thresholds,
        force=force,
        on_predicted=pairs.extend,
    )
    if json:
        print_json(report)
    else:
        show_report(report)
    if ls_project is not None:
        rows = choose_rows(pairs, settings.label_studio.sample)
        show_predictions(rows, model, ls_project, settings)


def run_evaluate(
    model_folder: Path,
    source: Path,
    settings: Any,
    *,
    predictions: Path | None = None,
    tune: bool = False,
    force: bool = False,
    on_predicted: "Callable[[Iterable[tuple[Document, Document]]], object]" = lambda _: None,
) -> dict[str, Any]:
    """Scores a model, or documents against documents.

    Args:
        model_folder: A model that nertool trained or exported; or documents with entities, which are scored like
            predictions.
        source: Documents with gold entities, or a cache.
        settings: The `Settings`.
        predictions: Where to write the predicted documents.
        tune: Choose the thresholds of the classes on these documents first, and keep them in the model.
        force: Replace older predictions.
        on_predicted: Takes pairs of gold and predicted documents.

    Returns:
        What `--json` prints; see `metrics.evaluation_report`.

    Raises:
        NertoolError: If the model or the documents can't be used.
    """
    from collections import Counter

    from nertool.errors import NertoolError
    from nertool.files import check_output, new_folder
    from nertool.formats import ReadReport
    from nertool.formats.kazu import KazuWriter
    from nertool.formats.reading import report_reading, write_rejected
    from nertool.matching import SectionPair
    from nertool.metrics import evaluation_report
    from nertool.provenance import annotators
    from nertool.sources import Source

    if predictions is not None:
        check_output(predictions, force=force, source=source)
    reading = ReadReport()
    if _holds_documents(model_folder):
        if tune:
            raise NertoolError(f"{model_folder} holds documents, which have no thresholds to tune", "name a model")
        gold_documents = Source(source, settings, reading).read_all()
        predicted_documents = _read_predicted(model_folder, gold_documents, settings)
        labels = _labels_of(predicted_documents)
        facts: dict[str, Any] = {"not_representable": None, "classes_unknown_to_the_model": {}}
    else:
        if tune:
            _tune(model_folder, source, settings)
        gold_documents, predicted_documents, labels, facts = _predict(model_folder, source, settings, reading)
    pairs = [
        SectionPair(number, gold.entities, predicted.entities)
        for number, (gold_document, predicted_document) in enumerate(
            zip(gold_documents, predicted_documents, strict=True)
        )
        for gold, predicted in zip(gold_document.sections, predicted_document.sections, strict=True)
    ]
    report = evaluation_report(
        pairs,
        labels,
        scheme=settings.evaluate.scheme,
        bootstrap_samples=settings.evaluate.bootstrap_samples,
        bootstrap_seed=settings.evaluate.bootstrap_seed,
    )
    report["counts"] |= {
        "documents": len(gold_documents),
        "annotators": dict(Counter(name for document in gold_documents for name in annotators(document))),
        "rejected": len(reading.rejected),
        **facts,
    }
    if predictions is not None:
        with new_folder(predictions, "evaluate", force=force) as folder, KazuWriter(folder) as writer:
            for document in predicted_documents:
                writer.write(document)
            write_rejected(reading, folder / "rejected.jsonl")
    on_predicted(zip(gold_documents, predicted_documents, strict=True))
    report_reading(reading)
    return report


def _tune(model_folder: Path, source: Path, settings: Any) -> None:
    """Chooses the thresholds of the classes, keeps them in the model, and says what they are."""
    from nertool.artefacts import change_thresholds
    from nertool.console import say
    from nertool.formats import ReadReport
    from nertool.inference import load_tagger, prepare, token_logits
    from nertool.sources import Source
    from nertool.thresholds import tune_thresholds

    tagger = load_tagger(model_folder, settings.predict)
    documents = Source(source, settings, ReadReport()).read_all()
    prepared = prepare([section for document in documents for section in document.sections], tagger)
    logits = token_logits(tagger, prepared)
    before = tagger.decisions
    thresholds = tune_thresholds(logits, prepared.tokens, prepared.sections, before)
    change_thresholds(model_folder, thresholds, {"documents": str(source), "count": len(documents)})
    pairs = zip(before.scheme.labels, before.thresholds, thresholds, strict=True)
    changed = [f"{label} {old:g} → {new:g}" for label, old, new in pairs if old != new]
    say(f"thresholds: {', '.join(changed) or 'none is better than before'}")


def _predict(
    model_folder: Path, source: Path, settings: Any, reading: "ReadReport"
) -> "tuple[list[Document], list[Document], tuple[str, ...], dict[str, Any]]":
    """Returns the gold and the predicted documents, the model's classes, and what only the model knows of the gold."""
    from collections import Counter

    from nertool.console import progress
    from nertool.inference import load_tagger, predict_documents
    from nertool.representation import represent
    from nertool.sources import Source
    from nertool.targets import locate, paint

    tagger = load_tagger(model_folder, settings.predict)
    scheme = tagger.decisions.scheme
    gold_documents = Source(source, settings, reading).read_all()
    predicted_documents: list[Document] = []
    with progress("predicting", len(gold_documents), "documents") as advance:
        for chunk in predict_documents(tagger, gold_documents, settings.predict.documents_per_chunk):
            predicted_documents += chunk
            advance(len(predicted_documents))
    sections = [section for document in gold_documents for section in document.sections]
    tokens = tagger.tokenizer.tokenize([section.text for section in sections])
    spans = locate(sections, tokens, scheme)
    ceiling = represent(sections, tokens, spans, paint(spans, len(tokens.ids), scheme), scheme)
    labels = Counter(entity.label for section in sections for entity in section.entities)
    facts = {
        "not_representable": ceiling.to_json(),
        "classes_unknown_to_the_model": dict(sorted((k, v) for k, v in labels.items() if k not in scheme.labels)),
    }
    return gold_documents, predicted_documents, scheme.labels, facts


def _holds_documents(path: Path) -> bool:
    """Tells whether what was given as the model is documents, which somebody else has annotated."""
    from nertool.formats.reading import holds_documents
    from nertool.window_cache import is_cache

    if path.is_file():
        return holds_documents(path)
    if not path.is_dir() or is_cache(path):
        return False
    names = {one.name for one in path.iterdir() if not one.name.startswith(".")}
    of_a_model = {"nertool.json", "config.json", "tokenizer.json", "model.safetensors", "run.json", "model"}
    return not names & of_a_model and any(holds_documents(Path(name)) for name in names)


def _read_predicted(path: Path, gold_documents: "list[Document]", settings: Any) -> "list[Document]":
    """Returns annotated documents in the order and with the sections of the gold ones.

    Raises:
        NertoolError: If a section of the gold ones isn't there with the same text.
    """
    from nertool.console import say
    from nertool.documents import Document
    from nertool.errors import NertoolError
    from nertool.formats import ReadReport, read_documents

    by_id = {one.id: one for one in read_documents(path, ReadReport(), skip_invalid=settings.data.skip_invalid)}
    predicted, missing = [], []
    for gold in gold_documents:
        known = list(by_id[gold.id].sections) if gold.id in by_id else []
        found = []
        for section in gold.sections:
            same = [one for one in known if one.text == section.text]
            best = next((one for one in same if one.name == section.name), same[0] if same else None)
            if best is None:
                missing.append(f"{gold.id} ({section.name})")
            else:
                known.remove(best)
                found.append(best)
        predicted.append(Document(gold.id, tuple(found), by_id[gold.id].extra if gold.id in by_id else {}))
    if missing:
        raise NertoolError(
            f"{path} lacks {len(missing)} sections of the gold documents: {', '.join(missing[:5])}",
            "both need the same documents with the same texts",
        )
    if left_out := len(by_id.keys() - {gold.id for gold in gold_documents}):
        say(f"note: {left_out:,} documents of {path} are not among the gold ones, and were left out")
    return predicted


def _labels_of(documents: "list[Document]") -> tuple[str, ...]:
    labels = {one.label for document in documents for section in document.sections for one in section.entities}
    return tuple(sorted(labels))


def show_report(report: dict[str, Any]) -> None:
    """Shows people the scores as a table."""
    from rich.table import Table

    from nertool.console import say, show

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    table = Table("class", title=f"scheme: {report['scheme']}", title_justify="left")
    for name in ("precision", "recall", "F1", "support"):
        table.add_column(name, justify="right")
    labels = [key.removesuffix("_support") for key in report if key.endswith("_support") and key != "micro_support"]
    for label in labels:
        table.add_row(
            label,
            *(number(report.get(f"{label}_{name}")) for name in ("precision", "recall", "f1")),
            f"{report[f'{label}_support']:,}",
        )
    table.add_section()
    micro = [number(report[f"micro_{name}"]) for name in ("precision", "recall", "f1")]
    table.add_row("all (micro)", *micro, f"{report['micro_support']:,}")
    table.add_row("mean of the classes", "", "", number(report["mean_f1"]), "")
    show(table)
    for name, interval in report["confidence_intervals"].items():
        if interval:
            say(f"{name}: {report[name]:.3f}, 95 % interval {interval['low']:.3f}–{interval['high']:.3f}")
    others = [
        f"{name}: micro F1 {number(scores['micro_f1'])}, mean F1 {number(scores['mean_f1'])}"
        for name, scores in report["schemes"].items()
        if name != report["scheme"]
    ]
    say("; ".join(others))
    if llms := [name for name in report["counts"]["annotators"] if name.startswith("the LLM ")]:
        say(f"note: the gold annotations are from {', '.join(llms)}; the scores say how well the model agrees with it")
    for label, count in report["counts"]["classes_unknown_to_the_model"].items():
        say(f"note: the model does not know the class {label!r} ({count:,} entities, counted as missed)")
