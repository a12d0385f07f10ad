"""Scoring a model, or documents that somebody else annotated, against gold entities: the parts of `evaluate`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nertool.artefacts import NERTOOL_FILE, Decisions, change_thresholds, keep_evaluation, read_facts
from nertool.cache_building import scan
from nertool.calibration import calibration
from nertool.comparison import ReviewedSection, compare, compare_gold_sets
from nertool.console import progress, say
from nertool.decoding import Floats
from nertool.documents import Document
from nertool.error_analysis import ErrorItem, find_errors, summarise_errors
from nertool.errors import NertoolError
from nertool.files import last_part
from nertool.formats import ReadReport, read_documents
from nertool.formats.reading import holds_documents
from nertool.groups import SectionFacts, group_scores, training_mentions
from nertool.inference import Prepared, load_tagger, predict_documents
from nertool.kept_scores import kept_evaluation
from nertool.matching import Scheme, SectionPair
from nertool.metrics import Scores, evaluation_report, score
from nertool.provenance import annotators, makers, section_annotators
from nertool.representation import represent
from nertool.reviews import sent_before_review
from nertool.settings import Settings
from nertool.sources import Source
from nertool.targets import locate, paint
from nertool.thresholds import count_at_thresholds, threshold_curves, tune_thresholds
from nertool.window_cache import is_cache, open_cache


@dataclass(frozen=True, slots=True)
class Found:
    """Documents with the entities that are to be scored, and what only a model knows of itself and of the gold.

    Args:
        documents: The documents, in the order of the gold ones and with their sections.
        labels: The classes that could have been found.
        facts: What the report's `counts` tell of the gold entities that the model can't find.
        thresholds: Those of the model's classes.
        counts: What other thresholds would give, as `thresholds.count_at_thresholds` counts.
    """

    documents: list[Document]
    labels: tuple[str, ...]
    facts: dict[str, Any]
    thresholds: dict[str, float] | None = None
    counts: NDArray[np.int64] | None = None


def predict(model_folder: Path, gold_documents: list[Document], settings: Settings, *, curves: bool = True) -> Found:
    """Predicts the documents; counts what other thresholds would give, if the curves are wanted."""
    tagger = load_tagger(model_folder, settings.predict)
    decisions = tagger.decisions
    scheme = decisions.scheme
    counts = []

    def count(prepared: Prepared, logits: Floats) -> None:
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
    return Found(predicted_documents, scheme.labels, facts, thresholds, np.sum(counts, axis=0) if curves else None)


def tune_model(model_folder: Path, source: Path, documents: list[Document], settings: Settings) -> None:
    """Chooses the thresholds of the classes, keeps them in the model, and says what they are."""
    before = Decisions.from_json(read_facts(model_folder))
    counts = predict(model_folder, documents, settings).counts
    thresholds = before.thresholds if counts is None else tune_thresholds(counts, before)
    facts = {"documents": last_part(source), "count": len(documents), "digest": scan(documents).digest}
    change_thresholds(model_folder, thresholds, facts)
    pairs = zip(before.scheme.labels, before.thresholds, thresholds, strict=True)
    changed = [f"{label} {old:g} → {new:g}" for label, old, new in pairs if old != new]
    say(f"thresholds: {', '.join(changed) or 'none is better than before'}")


def is_annotation(path: Path) -> bool:
    """Tells whether what was given as the model is documents, which somebody else has annotated."""
    if path.is_file():
        return holds_documents(path)
    if not path.is_dir() or is_cache(path):
        return False
    names = {one.name for one in path.iterdir() if not one.name.startswith(".")}
    of_a_model = {"nertool.json", "config.json", "tokenizer.json", "model.safetensors", "run.json", "model"}
    return not names & of_a_model and any(holds_documents(Path(name)) for name in names)


def read_annotation(path: Path, gold_documents: list[Document], settings: Settings) -> list[Document]:
    """Returns annotated documents in the order and with the sections of the gold ones.

    Raises:
        NertoolError: If a section of the gold ones isn't there with the same text.
    """
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


def found_in(documents: list[Document]) -> Found:
    """Takes the entities of annotated documents as what was found; the classes are those that occur."""
    labels = {one.label for document in documents for section in document.sections for one in section.entities}
    return Found(documents, tuple(sorted(labels)), {"not_representable": None, "classes_unknown_to_the_model": {}})


@dataclass(frozen=True, slots=True)
class Rival:
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
    gold_documents: list[Document]
    documents: list[Document] | None
    settings: Settings

    def score(self, found: Found, scheme: Scheme) -> Scores:
        """Scores what was found against the other gold, or the other predictions against the gold."""
        if self.kind == "gold" and self.documents is not None:
            return score(pair_sections(self.documents, found.documents), found.labels, scheme)
        if self.documents is not None:
            rival = found_in(self.documents)
        else:
            rival = predict(self.path, self.gold_documents, self.settings, curves=False)
        return score(pair_sections(self.gold_documents, rival.documents), rival.labels, scheme)


def open_rival(
    baseline: Path | None, baseline_gold: Path | None, gold_documents: list[Document], settings: Settings
) -> Rival | None:
    """Reads what the scores are to be compared with, or makes sure that it is a model.

    Raises:
        NertoolError: If it can't be compared with.
    """
    if baseline is not None and baseline_gold is not None:
        raise NertoolError("--baseline and --baseline-gold are two comparisons", "one at a time")
    if baseline_gold is not None:
        others = read_annotation(baseline_gold, gold_documents, settings)
        return Rival(baseline_gold, "gold", gold_documents, others, settings)
    if baseline is None:
        return None
    if is_annotation(baseline):
        others = read_annotation(baseline, gold_documents, settings)
        return Rival(baseline, "predictions", gold_documents, others, settings)
    read_facts(baseline)
    return Rival(baseline, "predictions", gold_documents, None, settings)


def pair_sections(gold_documents: Sequence[Document], predicted_documents: Sequence[Document]) -> list[SectionPair]:
    """Sets the gold entities beside the predicted ones of each section."""
    return [
        SectionPair(number, gold.entities, predicted.entities)
        for number, (gold_document, predicted_document) in enumerate(
            zip(gold_documents, predicted_documents, strict=True)
        )
        for gold, predicted in zip(gold_document.sections, predicted_document.sections, strict=True)
    ]


def seen_in_training(model_folder: Path, train: Path | None, settings: Settings) -> set[tuple[str, str]] | None:
    """Returns the mentions of the training documents; `None` if those are not at hand."""
    if train is None:
        train = model_folder.resolve().parent / "cache"
        if not is_cache(train) or not (model_folder / NERTOOL_FILE).is_file():
            return None
        learned_from = read_facts(model_folder).get("train", {}).get("digest")  # older models don't say
        if learned_from not in (None, open_cache(train).info["fingerprint"]["documents"]):
            return None
    return training_mentions(Source(train, settings, ReadReport()).read())


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
    gold_documents: list[Document]
    predicted_documents: list[Document]
    errors: list[ErrorItem]


def full_report(
    gold_documents: list[Document],
    found: Found,
    rival: Rival | None,
    seen: set[tuple[str, str]] | None,
    settings: Settings,
    *,
    rejected: int,
) -> tuple[dict[str, Any], list[ErrorItem]]:
    """Returns what `evaluate --json` prints, and the errors.

    Args:
        gold_documents: The documents with gold entities.
        found: What was found in them.
        rival: What to compare the scores with.
        seen: The mentions of the training documents; `None` if they are not known.
        settings: The settings.
        rejected: How many invalid documents were set aside.
    """
    own, pairs = settings.evaluate, pair_sections(gold_documents, found.documents)
    scheme, samples, seed = own.scheme, own.bootstrap_samples, own.bootstrap_seed
    report = evaluation_report(pairs, found.labels, scheme=scheme, bootstrap_samples=samples, bootstrap_seed=seed)
    report["counts"] |= {
        "documents": len(gold_documents),
        "annotators": dict(Counter(name for document in gold_documents for name in annotators(document))),
        "rejected": rejected,
        **found.facts,
    }
    if rival is not None:
        metrics = compare(score(pairs, found.labels, scheme), rival.score(found, scheme), samples, seed)
        report["comparison"] = {"baseline": str(rival.path), "kind": rival.kind, "metrics": metrics}
    errors = find_errors(pairs)
    strict = score(pairs, found.labels, "strict")
    right = dict(zip(strict.classes, strict.counts[..., 0].sum(axis=0).tolist(), strict=True))
    who = [name for document in gold_documents for name in section_annotators(document)]
    names = [section.name for document in gold_documents for section in document.sections]
    reviewed = list(_reviewed_sections(gold_documents, found.documents))
    report |= {
        "errors": summarise_errors(errors, right),
        "groups": group_scores(pairs, list(map(SectionFacts, names, who)), seen),
        "gold_sets": compare_gold_sets(reviewed, found.labels, scheme, samples, seed),
        "calibration": calibration(pairs),
        "thresholds": found.thresholds,
        "threshold_curves": None if found.counts is None else threshold_curves(found.counts, found.labels),
    }
    return report, errors


def keep_scores(
    model_folder: Path, source: Path, gold_documents: list[Document], found: Found, settings: Settings
) -> None:
    """Keeps the scores of what a model found in the model, for its card."""
    pairs, own = pair_sections(gold_documents, found.documents), settings.evaluate
    facts = scan(gold_documents).to_json(last_part(source))
    kept = kept_evaluation(
        pairs, found.labels, facts, found.thresholds or {}, own.bootstrap_samples, own.bootstrap_seed
    )
    keep_evaluation(model_folder, kept)


def _reviewed_sections(
    gold_documents: Sequence[Document], predicted_documents: Sequence[Document]
) -> Iterator[ReviewedSection]:
    """Yields the sections of which it is known what people were shown, and what they made of it."""
    for number, (gold_document, predicted_document) in enumerate(zip(gold_documents, predicted_documents, strict=True)):
        for gold, predicted in zip(gold_document.sections, predicted_document.sections, strict=True):
            sent = sent_before_review(gold)
            if sent is not None:
                as_sent = replace(gold_document, sections=(replace(gold, entities=sent),))
                sent_by = " and ".join(sorted(makers(as_sent))) or "not known"
                yield ReviewedSection(number, sent, gold.entities, predicted.entities, sent_by)
