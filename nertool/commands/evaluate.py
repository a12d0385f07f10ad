"""`nertool evaluate`: how well a model does on documents with gold entities."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nertool.commands.options import Config, Device, Force, Json, LsProject, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from nertool.comparison import ReviewedSection
    from nertool.documents import Document
    from nertool.error_analysis import ErrorItem
    from nertool.matching import Scheme, SectionPair
    from nertool.metrics import Scores


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


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What became of scoring.

    Args:
        report: What `--json` prints; see `metrics.evaluation_report` and docs/reference/metrics.md.
        gold_documents: The documents with the gold entities.
        predicted_documents: The same with those that are scored, in the same order.
        errors: The errors; their sections are counted through all documents.
    """

    report: dict[str, Any]
    gold_documents: "list[Document]"
    predicted_documents: "list[Document]"
    errors: "list[ErrorItem]"


def run_evaluate(
    model_folder: Path,
    source: Path,
    settings: Any,
    *,
    baseline: Path | None = None,
    baseline_gold: Path | None = None,
    train: Path | None = None,
    predictions: Path | None = None,
    tune: bool = False,
    into_card: bool = False,
    force: bool = False,
) -> Evaluation:
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
    from collections import Counter

    from nertool.errors import NertoolError
    from nertool.files import check_output, last_part, new_folder
    from nertool.formats import ReadReport
    from nertool.formats.kazu import KazuWriter
    from nertool.formats.reading import report_reading, write_rejected
    from nertool.metrics import evaluation_report, score
    from nertool.provenance import annotators
    from nertool.sources import Source

    if predictions is not None:
        check_output(predictions, force=force, source=source)
    of_documents = _holds_documents(model_folder)
    if of_documents and tune:
        raise NertoolError(f"{model_folder} holds documents, which have no thresholds to tune", "name a model")
    if of_documents and into_card:
        raise NertoolError(f"{model_folder} holds documents, which have no model card", "name a model")
    reading = ReadReport()
    gold_documents = Source(source, settings, reading).read_all()
    # What may be wrong with what else was given comes out before a model is run for minutes.
    rival = _open_rival(baseline, baseline_gold, gold_documents, settings)
    seen = _seen_in_training(model_folder, train, settings)
    if of_documents:
        found = _with_labels(_read_predicted(model_folder, gold_documents, settings))
    else:
        if tune:
            _tune(model_folder, source, gold_documents, settings)
        found = _predict(model_folder, gold_documents, settings)
    pairs = _pairs(gold_documents, found.documents)
    scheme, samples, seed = (
        settings.evaluate.scheme,
        settings.evaluate.bootstrap_samples,
        settings.evaluate.bootstrap_seed,
    )
    report = evaluation_report(pairs, found.labels, scheme=scheme, bootstrap_samples=samples, bootstrap_seed=seed)
    report["counts"] |= {
        "documents": len(gold_documents),
        "annotators": dict(Counter(name for document in gold_documents for name in annotators(document))),
        "rejected": len(reading.rejected),
        **found.facts,
    }
    if rival is not None:
        from nertool.comparison import compare

        scores = score(pairs, found.labels, scheme)
        facts = {"baseline": str(rival.path), "kind": rival.kind}
        report["comparison"] = {**facts, "metrics": compare(scores, rival.score(found, scheme), samples, seed)}
    analysis, errors = _analyse(gold_documents, found, pairs, seen, settings)
    report |= analysis
    if into_card and found.thresholds is not None:
        from nertool.artefacts import keep_evaluation
        from nertool.cache_building import scan
        from nertool.kept_scores import kept_evaluation

        facts = scan(gold_documents).to_json(last_part(source))
        keep_evaluation(model_folder, kept_evaluation(pairs, found.labels, facts, found.thresholds, samples, seed))
    if predictions is not None:
        with new_folder(predictions, "evaluate", force=force) as folder, KazuWriter(folder) as writer:
            for document in found.documents:
                writer.write(document)
            write_rejected(reading, folder / "rejected.jsonl")
    report_reading(reading)
    return Evaluation(report, gold_documents, found.documents, errors)


@dataclass(frozen=True, slots=True)
class _Found:
    """Documents with the entities that are to be scored, and what only a model knows of itself and of the gold."""

    documents: "list[Document]"
    labels: tuple[str, ...]
    facts: dict[str, Any]
    thresholds: dict[str, float] | None = None
    counts: "NDArray[np.int64] | None" = None


def _with_labels(documents: "list[Document]") -> _Found:
    labels = {one.label for document in documents for section in document.sections for one in section.entities}
    return _Found(documents, tuple(sorted(labels)), {"not_representable": None, "classes_unknown_to_the_model": {}})


@dataclass(frozen=True, slots=True)
class _Rival:
    """What the scores are compared with.

    Args:
        path: Where it is.
        kind: Other `predictions`, or other `gold`.
        gold_documents: The gold documents that are scored against.
        documents: Those of `path`, if it holds documents.
        settings: The `Settings`.
    """

    path: Path
    kind: Literal["predictions", "gold"]
    gold_documents: "list[Document]"
    documents: "list[Document] | None"
    settings: Any

    def score(self, found: _Found, scheme: "Scheme") -> "Scores":
        """Scores what was found against the other gold, or the other predictions against the gold."""
        from nertool.metrics import score

        if self.kind == "gold" and self.documents is not None:
            return score(_pairs(self.documents, found.documents), found.labels, scheme)
        if self.documents is not None:
            rival = _with_labels(self.documents)
        else:
            rival = _predict(self.path, self.gold_documents, self.settings, curves=False)
        return score(_pairs(self.gold_documents, rival.documents), rival.labels, scheme)


def _open_rival(
    baseline: Path | None, baseline_gold: Path | None, gold_documents: "list[Document]", settings: Any
) -> _Rival | None:
    """Reads what the scores are to be compared with, or makes sure that it is a model."""
    from nertool.artefacts import read_facts
    from nertool.errors import NertoolError

    if baseline is not None and baseline_gold is not None:
        raise NertoolError("--baseline and --baseline-gold are two comparisons", "one at a time")
    if baseline_gold is not None:
        others = _read_predicted(baseline_gold, gold_documents, settings)
        return _Rival(baseline_gold, "gold", gold_documents, others, settings)
    if baseline is None:
        return None
    if _holds_documents(baseline):
        others = _read_predicted(baseline, gold_documents, settings)
        return _Rival(baseline, "predictions", gold_documents, others, settings)
    read_facts(baseline)
    return _Rival(baseline, "predictions", gold_documents, None, settings)


def _analyse(
    gold_documents: "list[Document]",
    found: _Found,
    pairs: "list[SectionPair]",
    seen: set[tuple[str, str]] | None,
    settings: Any,
) -> "tuple[dict[str, Any], list[ErrorItem]]":
    """Returns what the report tells beyond the scores, and the errors."""
    from nertool.calibration import calibration
    from nertool.comparison import compare_gold_sets
    from nertool.error_analysis import find_errors, summarise_errors
    from nertool.groups import SectionFacts, group_scores
    from nertool.metrics import score
    from nertool.provenance import section_annotators
    from nertool.thresholds import threshold_curves

    errors = find_errors(pairs)
    strict = score(pairs, found.labels, "strict")
    right = dict(zip(strict.classes, strict.counts[..., 0].sum(axis=0).tolist(), strict=True))
    who = [name for document in gold_documents for name in section_annotators(document)]
    names = [section.name for document in gold_documents for section in document.sections]
    reviewed = list(_reviewed_sections(gold_documents, found.documents))
    own = settings.evaluate
    analysis = {
        "errors": summarise_errors(errors, right),
        "groups": group_scores(pairs, list(map(SectionFacts, names, who)), seen),
        "gold_sets": compare_gold_sets(reviewed, found.labels, own.scheme, own.bootstrap_samples, own.bootstrap_seed),
        "calibration": calibration(pairs),
        "thresholds": found.thresholds,
        "threshold_curves": None if found.counts is None else threshold_curves(found.counts, found.labels),
    }
    return analysis, errors


def _tune(model_folder: Path, source: Path, documents: "list[Document]", settings: Any) -> None:
    """Chooses the thresholds of the classes, keeps them in the model, and says what they are."""
    from nertool.artefacts import Decisions, change_thresholds, read_facts
    from nertool.cache_building import scan
    from nertool.console import say
    from nertool.files import last_part
    from nertool.thresholds import tune_thresholds

    before = Decisions.from_json(read_facts(model_folder))
    counts = _predict(model_folder, documents, settings).counts
    thresholds = before.thresholds if counts is None else tune_thresholds(counts, before)
    facts = {"documents": last_part(source), "count": len(documents), "digest": scan(documents).digest}
    change_thresholds(model_folder, thresholds, facts)
    pairs = zip(before.scheme.labels, before.thresholds, thresholds, strict=True)
    changed = [f"{label} {old:g} → {new:g}" for label, old, new in pairs if old != new]
    say(f"thresholds: {', '.join(changed) or 'none is better than before'}")


def _predict(model_folder: Path, gold_documents: "list[Document]", settings: Any, *, curves: bool = True) -> _Found:
    """Predicts the documents; counts what other thresholds would give, if the curves are wanted."""
    from collections import Counter

    import numpy as np

    from nertool.console import progress
    from nertool.inference import Prepared, load_tagger, predict_documents
    from nertool.representation import represent
    from nertool.targets import locate, paint
    from nertool.thresholds import count_at_thresholds

    tagger = load_tagger(model_folder, settings.predict)
    decisions = tagger.decisions
    scheme = decisions.scheme
    counts = []

    def count(prepared: Prepared, logits: Any) -> None:
        counts.append(count_at_thresholds(logits, prepared.tokens, prepared.sections, decisions))

    predicted_documents: list[Document] = []
    with progress("predicting", len(gold_documents), "documents") as advance:
        size = settings.predict.documents_per_chunk
        for chunk in predict_documents(tagger, gold_documents, size, count if curves else None):
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
    thresholds = dict(zip(scheme.labels, decisions.thresholds, strict=True))
    return _Found(predicted_documents, scheme.labels, facts, thresholds, np.sum(counts, axis=0) if curves else None)


def _pairs(gold_documents: "Sequence[Document]", predicted_documents: "Sequence[Document]") -> "list[SectionPair]":
    from nertool.matching import SectionPair

    return [
        SectionPair(number, gold.entities, predicted.entities)
        for number, (gold_document, predicted_document) in enumerate(
            zip(gold_documents, predicted_documents, strict=True)
        )
        for gold, predicted in zip(gold_document.sections, predicted_document.sections, strict=True)
    ]


def _reviewed_sections(
    gold_documents: "Sequence[Document]", predicted_documents: "Sequence[Document]"
) -> "Iterator[ReviewedSection]":
    """Yields the sections of which it is known what people were shown, and what they made of it."""
    from dataclasses import replace

    from nertool.comparison import ReviewedSection
    from nertool.provenance import makers
    from nertool.reviews import sent_before_review

    for number, (gold_document, predicted_document) in enumerate(zip(gold_documents, predicted_documents, strict=True)):
        for gold, predicted in zip(gold_document.sections, predicted_document.sections, strict=True):
            sent = sent_before_review(gold)
            if sent is not None:
                as_sent = replace(gold_document, sections=(replace(gold, entities=sent),))
                sent_by = " and ".join(sorted(makers(as_sent))) or "not known"
                yield ReviewedSection(number, sent, gold.entities, predicted.entities, sent_by)


def _seen_in_training(model_folder: Path, train: Path | None, settings: Any) -> set[tuple[str, str]] | None:
    """Returns the mentions of the training documents; `None` if those are not at hand."""
    from nertool.artefacts import NERTOOL_FILE, read_facts
    from nertool.formats import ReadReport
    from nertool.groups import training_mentions
    from nertool.sources import Source
    from nertool.window_cache import is_cache, open_cache

    if train is None:
        train = model_folder.resolve().parent / "cache"
        if not is_cache(train) or not (model_folder / NERTOOL_FILE).is_file():
            return None
        learned_from = read_facts(model_folder).get("train", {}).get("digest")  # older models don't say
        if learned_from not in (None, open_cache(train).info["fingerprint"]["documents"]):
            return None
    return training_mentions(Source(train, settings, ReadReport()).read())


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
