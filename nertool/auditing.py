"""An audit: every document is judged by a model that has not learned from it, and what looks wrong is ranked.

The models are trained here, each on all folds of the documents but one (cross-fitting), or one is given. What is in the
output folder while it works is enough to go on after a kill: finished folds as `work/N.json`, the fold in training as
the training run `work/N`.

Source: Northcutt, Jiang & Chuang (2021), Confident learning, section 3 (out-of-sample probabilities by
    cross-validation).
"""

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel

from nertool.cache_building import Scan
from nertool.console import counted, progress, say
from nertool.decoding import Floats, decode, words_of
from nertool.devices import seed_everything
from nertool.documents import Document
from nertool.engines import Tagger
from nertool.errors import InterruptedBySignalError, NertoolError
from nertool.files import publish_file, read_json, write_atomic, write_json, write_json_lines
from nertool.formats.jsonl import JsonlWriter
from nertool.inference import Prepared, load_tagger, prepare, token_logits
from nertool.labelling_tasks import numbered_items
from nertool.labels import LabelScheme
from nertool.mention_counts import Lexicon, MentionCounts
from nertool.model import new_model
from nertool.provenance import with_audit
from nertool.run_folder import AUDIT_FILE, open_run, summary_of
from nertool.runs import labelled_task, train_run
from nertool.settings import Settings
from nertool.splitting import plan_folds, summarise
from nertool.suspects import KINDS, Suspect, SuspectFile, corrected, find_suspects, suspect_from_json, suspect_to_json
from nertool.window_cache import WindowCache
from nertool.windows import SectionTokenizer

Read = Callable[[], Iterator[Document]]

_WORST = 10  # that people are shown at once


class Judged(NamedTuple):
    """Some documents, and what a model that has not learned from them says.

    Args:
        documents: The documents, with their entities.
        prepared: Their sections, tokenised.
        logits: `(tokens, channels)` float32.
        tagger: The model.
    """

    documents: list[Document]
    prepared: Prepared
    logits: Floats
    tagger: Tagger


def judge(tagger: Tagger, documents: Iterable[Document], documents_per_chunk: int) -> Iterator[Judged]:
    """Runs a model over documents, chunk by chunk."""
    remaining = iter(documents)
    while chunk := list(islice(remaining, documents_per_chunk)):
        prepared = prepare([section for document in chunk for section in document.sections], tagger)
        yield Judged(chunk, prepared, token_logits(tagger, prepared), tagger)


def suspects_of(judged: Judged, counts: MentionCounts, lexicon: Lexicon) -> list[Suspect]:
    """Returns what is suspect in documents that were judged; see `suspects.find_suspects`."""
    decisions, tokens = judged.tagger.decisions, judged.prepared.tokens
    if not len(tokens.ids):
        return []
    decoded = decode(judged.logits, tokens, decisions.scheme, decisions.thresholds, decisions.switch_cost)
    labels = decisions.scheme.labels
    words = words_of(judged.logits[:, : len(labels)], tokens)
    return list(find_suspects(judged.documents, words, decoded, labels, counts, lexicon))


class _Fold(BaseModel):
    """What is kept of a fold that is done."""

    micro_f1: float | None
    suspects: list[SuspectFile]


@dataclass(frozen=True, slots=True)
class CrossFit:
    """What all folds have in common.

    Args:
        folder: Where the folds work.
        read: Reads all documents, always in the same order.
        fold_of: Document id → fold.
        cache: Of all documents.
        fold_of_window: The fold of each of its windows, `(windows,)`.
        scanned: What a first pass over them told.
        scheme: The classes.
        settings: All settings.
    """

    folder: Path
    read: Read
    fold_of: dict[str, int]
    cache: WindowCache
    fold_of_window: npt.NDArray[np.int64]
    scanned: Scan
    scheme: LabelScheme
    settings: Settings

    def held_out(self, fold: int) -> Iterator[Document]:
        """Reads the documents of a fold."""
        return (document for document in self.read() if self.fold_of[document.id] == fold)

    def judge_fold(self, fold: int) -> Iterator[Judged]:
        """Trains a model on all other folds, or goes on training it, and runs it over this one.

        Raises:
            InterruptedBySignalError: After saving, if a signal came in.
        """
        run = self.folder / f"{fold + 1}"
        say(f"fold {fold + 1} of {self.settings.audit.folds}")
        documents = list(self.held_out(fold))
        settings = _settings_of_a_fold(self.settings)
        seed_everything(settings.train.seed)
        model = new_model(settings.model, settings.windows, self.scheme)
        windows = np.flatnonzero(self.fold_of_window != fold)
        digests = {"documents": self.scanned.digest, "fold": f"{fold + 1} of {settings.audit.folds}"}
        if not open_run(run, settings, digests, resume=True, force=False):
            total = self.scanned.labels.total()
            facts = {
                "train": {"documents": len(self.fold_of) - len(documents), "entities": total - _entities(documents)},
                "eval": {"documents": len(documents), "entities": _entities(documents)},
            }
            try:
                train_run(run, model, labelled_task(self.cache, model, windows), documents, settings, facts)
            except InterruptedBySignalError as error:
                saved = "what is done is saved; the same command goes on from there"
                raise InterruptedBySignalError(error.signal_number, saved) from error
        tagger = load_tagger(run / "model", settings.predict)
        with progress("judging", len(documents), "documents") as advance:
            for done, judged in enumerate(judge(tagger, documents, settings.predict.documents_per_chunk), start=1):
                yield judged
                advance(min(len(documents), done * settings.predict.documents_per_chunk))


def plan(read: Read, settings: Settings) -> dict[str, int]:
    """Returns the fold of each document; near copies are in one.

    Raises:
        NertoolError: If there are too few documents.
    """
    summaries = map(summarise, read())
    return plan_folds(summaries, settings.audit.folds, settings.train.seed, settings.data.duplicate_similarity)


def cross_fitted_suspects(fit: CrossFit, counts: MentionCounts, lexicon: Lexicon) -> tuple[list[Suspect], list[float]]:
    """Returns the suspects of all documents, and the strict micro F1 that each fold's model has on it."""
    suspects: list[Suspect] = []
    scores = []
    for fold in range(fit.settings.audit.folds):
        kept = fit.folder / f"{fold + 1}.json"
        if not kept.is_file():
            found = [one for judged in fit.judge_fold(fold) for one in suspects_of(judged, counts, lexicon)]
            score = summary_of(fit.folder / f"{fold + 1}")["micro_f1"]
            write_json(kept, {"micro_f1": score, "suspects": list(map(suspect_to_json, found))})
        shutil.rmtree(fit.folder / f"{fold + 1}", ignore_errors=True)  # gigabytes, with a big backbone
        known = read_json(kept, _Fold)
        suspects += map(suspect_from_json, known["suspects"])
        scores.append(known["micro_f1"])
    return suspects, scores


def write_audit(
    output: Path, read: Read, suspects: Sequence[Suspect], min_score: float, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes what was found: `suspects.jsonl`, `queue.txt`, `corrected.jsonl`, and at last `audit.json`.

    Args:
        output: The folder of the audit.
        read: Reads all documents.
        suspects: In any order.
        min_score: From which score on they are put right.
        facts: What else the summary tells.

    Returns:
        The summary.
    """
    ranked = sorted(suspects, key=lambda one: (-one.log_odds, one.document, one.section, one.kind, _place(one)))
    write_json_lines(output / "suspects.jsonl", map(suspect_to_json, ranked))
    clear: defaultdict[str, list[Suspect]] = defaultdict(list)
    expected: defaultdict[tuple[str, int], float] = defaultdict(float)
    for one in ranked:
        expected[one.document, one.section] += one.score
        if one.score >= min_score:
            clear[one.document].append(one)
    keys: dict[tuple[str, int], str] = {}
    entities: Counter[str] = Counter()
    partial = output / ".corrected.jsonl.partial"
    with JsonlWriter(partial) as writer:
        for document in read():
            entities.update(entity.label for section in document.sections for entity in section.entities)
            keys |= {(document.id, at): item.key for at, item in numbered_items(document, has_gold=True)}
            changes = clear.get(document.id, [])
            facts_of_document = {"changes": len(changes), "min_score": min_score}
            writer.write(with_audit(corrected(document, changes), facts_of_document) if changes else document)
    publish_file(partial, output / "corrected.jsonl")
    # The most errors to find by reading one section come first.
    queue = [keys[place] for place in sorted(expected, key=lambda place: (-expected[place], place))]
    lines = [key for key in queue if key.splitlines() == [key.strip()]]
    if left_out := len(queue) - len(lines):
        say(f"note: queue.txt lacks {counted(left_out, 'section')}: no line can hold the ids of their documents")
    write_atomic(output / "queue.txt", "".join(f"{key}\n" for key in lines).encode())
    by_class: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in ranked:
        if one.score >= min_score:
            by_class[one.label][one.kind] += 1
    classes = {
        label: {"entities": entities[label], **{kind: by_class[label][kind] for kind in KINDS}}
        for label in sorted({*entities, *by_class})
    }
    total = {name: sum(row[name] for row in classes.values()) for name in ("entities", *KINDS)}
    summary = {
        "suspects": len(ranked),
        "corrected": sum(map(len, clear.values())),
        "min_score": min_score,
        "classes": classes,
        "all_classes": total,
        **facts,
        "worst": list(map(suspect_to_json, ranked[:_WORST])),
    }
    write_json(output / AUDIT_FILE, {**read_json(output / AUDIT_FILE), "finished": True, "summary": summary})
    return summary


def read_audit(folder: Path, documents: str) -> tuple[list[Suspect], str]:
    """Reads what an audit found clearly suspect: from the score on from which it was put right.

    Args:
        folder: The audit's.
        documents: Digest of the documents that it must be of.

    Returns:
        The suspects, and a digest of them.

    Raises:
        NertoolError: If there is no finished audit, or one of other documents.
    """
    if not (folder / AUDIT_FILE).is_file():
        raise NertoolError(
            f"{folder} is not the output of an audit: {AUDIT_FILE} is missing", "nertool audit makes one"
        )
    audit = read_json(folder / AUDIT_FILE)
    if not audit.get("finished"):
        raise NertoolError(f"the audit {folder} is not finished", "run its command again")
    if audit["data"]["documents"] != documents:
        raise NertoolError(f"the audit {folder} is of other documents", "audit those that you train on")
    content = (folder / "suspects.jsonl").read_bytes()
    suspects = map(suspect_from_json, map(orjson.loads, content.splitlines()))
    clear = [one for one in suspects if one.score >= audit["summary"]["min_score"]]
    return clear, hashlib.sha256(content + repr(audit["summary"]["min_score"]).encode()).hexdigest()


def _place(one: Suspect) -> tuple[int, int]:
    if one.entity:
        return one.entity.start, one.entity.end
    return one.suggestion.span if one.suggestion else (0, 0)


def folds_of_windows(
    cache: WindowCache, documents: Iterable[Document], fold_of: Mapping[str, int], tokenizer: SectionTokenizer
) -> npt.NDArray[np.int64]:
    """Returns the fold of each window's document, `(windows,)`.

    Args:
        cache: The cache.
        documents: The documents that it was made of, in its order.
        fold_of: Document id → fold.
        tokenizer: The one that it was made with.
    """
    folds, sizes = [], []
    for document in documents:
        folds.append(fold_of[document.id])
        sizes.append(len(tokenizer.tokenize([section.text for section in document.sections]).ids))
    owners = np.searchsorted(np.cumsum(sizes), cache.windows["start"], side="right")
    return np.array(folds, np.int64)[owners]


def _settings_of_a_fold(settings: Settings) -> Settings:
    """Few epochs, and nothing chosen by the documents that are to be judged: the last model is taken."""
    changes = {
        "epochs": settings.audit.epochs,
        "evaluations_per_epoch": 1 / settings.audit.epochs,
        "evaluate_every_steps": None,
        "metric": "micro_f1",
    }
    evaluate = settings.evaluate.model_copy(update={"scheme": "strict"})
    return settings.model_copy(update={"train": settings.train.model_copy(update=changes), "evaluate": evaluate})


def _entities(documents: Sequence[Document]) -> int:
    return sum(len(section.entities) for document in documents for section in document.sections)
