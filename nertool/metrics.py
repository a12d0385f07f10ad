"""Scores predicted against gold entities: precision, recall, F1 and support, per class and over all.

A scheme looks at one class in one section at a time and says how many gold entities were found, which predictions are
wrong (false positives) and which gold entities were missed (false negatives). All numbers follow from these counts.

- `strict`: a prediction is right if a gold entity has exactly its spans. As CoNLL and nervaluate's "strict" count.
- `overlap`: right if it is paired with a gold entity with which it shares a character. Each is in one pair at most, and
  as many pairs as possible are made, so nothing counts twice and the order of the entities doesn't matter.
- `kazu`: what KAZU 2.4.0 counts, to the last digit, so that numbers can be set beside its published ones; see `score`.
  Source: `kazu/annotation/acceptance_test.py` and `calculate_metrics` in `kazu/training/train_multilabel_ner.py`.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from math import inf
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from nertool.documents import Entity
from nertool.overlap import Spans, match_overlapping

Scheme = Literal["strict", "overlap", "kazu"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
CONFIDENCE_LEVEL = 0.95

Mention = tuple[Spans, str]  # with its text
Outcome = tuple[int, list[str], list[str]]  # found gold entities, texts of wrong predictions, of missed gold entities


class SectionPair(NamedTuple):
    """One section: the number of its document (the bootstrap draws whole documents), what is there, what was found."""

    document: int
    gold: Sequence[Entity]
    predicted: Sequence[Entity]


@dataclass(frozen=True, slots=True)
class Scores:
    """The counts of one scheme, from which all its numbers follow.

    Args:
        scheme: The scheme.
        labels: The model's classes.
        classes: The classes counted: `labels` and whatever else occurs, sorted; for `kazu` only those predicted
            anywhere, in the order in which KAZU meets them (which decides the last digit of its mean).
        counts: Found gold entities, false positives, false negatives; int64, shape `(documents, classes, 3)`.
        false_positives: Class → text of the mention → count, most frequent first.
        false_negatives: The same for missed gold entities.
    """

    scheme: Scheme
    labels: frozenset[str]
    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    false_positives: dict[str, dict[str, int]]
    false_negatives: dict[str, dict[str, int]]

    def to_json(self) -> dict[str, Any]:
        """Returns the flat numbers under KAZU's names; 0/0 is `None`, but 0.0 for `kazu`, as there.

        `support` counts gold entities, for `kazu` only in sections where the class was predicted. KAZU has no F1 of a
        class and no micro average: for `kazu` they are made of its counts in the way in which it makes its mean. A
        class named "mean" or "micro" loses its own numbers to the overall ones.
        """
        totals = self.counts.sum(axis=0)
        result: dict[str, Any] = {}
        for name, counts in zip((*self.classes, "micro"), (*totals, totals.sum(axis=0)), strict=True):
            precision, recall, f1 = map(_number, _rates(counts, self.scheme))
            result |= {f"{name}_precision": precision, f"{name}_recall": recall, f"{name}_f1": f1}
            result[f"{name}_support"] = int(counts[0] + counts[2])
        return {**result, "mean_f1": _number(_mean_f1(totals, self)), "scheme": self.scheme}


def score(pairs: Sequence[SectionPair], labels: Iterable[str], scheme: Scheme) -> Scores:
    """Counts what was found, wrong and missed in all sections; `labels` are the classes that the model can predict.

    `strict` and `overlap` count every class in every section; the entities of a section are a set, so the same spans
    with the same label twice are one. `kazu` keeps KAZU's omissions: it visits a class only in sections where it was
    predicted, so elsewhere nothing is missed; entities match if their spans are equal, or if both have one span and
    the gold one's start or end lies in the predicted one, its end included (so touching spans match, and a prediction
    inside a longer gold entity doesn't); each may match any number of others; duplicates count each.
    """
    match = {"strict": _match_strict, "overlap": _match_overlap, "kazu": _match_kazu}[scheme]
    rows = {document: row for row, document in enumerate(sorted({pair.document for pair in pairs}))}
    tallies: defaultdict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros((len(rows), 3), np.int64))
    wrong_texts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    missed_texts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for pair in pairs:
        gold, predicted = _by_label(pair.gold), _by_label(pair.predicted)
        for label in sorted(predicted if scheme == "kazu" else gold | predicted):
            found, wrong, missed = match(gold.get(label, []), predicted.get(label, []))
            tallies[label][rows[pair.document]] += (found, len(wrong), len(missed))
            wrong_texts[label].update(wrong)
            missed_texts[label].update(missed)
    known = frozenset(labels)
    classes = tuple(tallies) if scheme == "kazu" else tuple(sorted(known | tallies.keys()))
    counts = np.array([tallies[label] for label in classes], np.int64).reshape(len(classes), len(rows), 3)
    return Scores(
        scheme, known, classes, counts.swapaxes(0, 1), _most_frequent(wrong_texts), _most_frequent(missed_texts)
    )


def evaluation_report(
    pairs: Sequence[SectionPair],
    labels: Iterable[str],
    *,
    scheme: Scheme = "strict",
    bootstrap_samples: int = 1000,
    bootstrap_seed: int = 42,
) -> dict[str, Any]:
    """Returns the object that `evaluate --json` prints; its caller adds to `counts` what only the caller knows.

    `labels` are the classes that the model can predict. The flat numbers, the errors and the confidence intervals are
    those of `scheme`; "schemes" has the flat numbers of each.
    """
    labels = frozenset(labels)
    scores = {name: score(pairs, labels, name) for name in SCHEMES}
    schemes = {name: scores[name].to_json() for name in SCHEMES}
    strict = scores["strict"]
    found, wrong, missed = strict.counts.sum(axis=(0, 1)).tolist()
    in_use = zip(strict.classes, strict.counts.sum(axis=(0, 2)).tolist(), strict=True)
    gold, predicted = sum(len(pair.gold) for pair in pairs), sum(len(pair.predicted) for pair in pairs)
    return {
        **schemes[scheme],
        "schemes": schemes,
        "false_positives": scores[scheme].false_positives,
        "false_negatives": scores[scheme].false_negatives,
        "confidence_intervals": confidence_intervals(scores[scheme], bootstrap_samples, bootstrap_seed),
        "classes_without_gold_or_predictions": [label for label, used in in_use if not used],
        "counts": {
            "documents": len(strict.counts),
            "sections": len(pairs),
            "gold_entities": gold,
            "predicted_entities": predicted,
            "gold_duplicates": gold - found - missed,
            "predicted_duplicates": predicted - found - wrong,
        },
    }


def confidence_intervals(scores: Scores, samples: int, seed: int) -> dict[str, dict[str, Any] | None]:
    """Returns 95 % percentile bootstrap intervals of `micro_f1` and `mean_f1`.

    Whole documents are drawn, with replacement, as many as there are: entities of one document are not independent, so
    drawing entities would make the intervals too narrow. Samples where the number is 0/0 are left out. `None` stands
    for an interval that can't be: no samples, fewer than two documents, or 0/0 in every sample.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.
    """
    documents, classes, _ = scores.counts.shape
    if documents < 2:
        return {"micro_f1": None, "mean_f1": None}
    weights = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), size=samples)
    # numpy multiplies matrices of integers slowly, and float64 is exact for these.
    drawn = weights.astype(np.float64) @ scores.counts.reshape(documents, -1).astype(np.float64)
    counts = drawn.reshape(samples, classes, 3)
    intervals: dict[str, dict[str, Any] | None] = {}
    for name, f1 in (("micro_f1", _rates(counts.sum(axis=1), scores.scheme)[2]), ("mean_f1", _mean_f1(counts, scores))):
        defined = f1[~np.isnan(f1)]
        intervals[name] = None
        if len(defined):
            low, high = np.quantile(defined, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2]).tolist()
            intervals[name] = {"low": low, "high": high, "level": CONFIDENCE_LEVEL, "samples": samples}
    return intervals


def _rates(counts: NDArray[Any], scheme: Scheme) -> tuple[NDArray[np.float64], ...]:
    """Returns precision, recall and F1, each of shape `(...)`, of counts `(..., 3)`; 0/0 is NaN, for `kazu` 0."""
    found, wrong, missed = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore"):
        precision, recall = found / (found + wrong), found / (found + missed)
        if scheme != "kazu":
            return precision, recall, 2 * found / (2 * found + wrong + missed)
        precision, recall = np.nan_to_num(precision), np.nan_to_num(recall)
        # The same number as above but for rounding: the last digit must be KAZU's.
        return precision, recall, np.nan_to_num(2 * (precision * recall) / (precision + recall))


def _mean_f1(counts: NDArray[Any], scores: Scores) -> NDArray[np.float64]:
    """Returns the mean F1 `(...)` of the classes with gold or predictions, of counts `(..., classes, 3)`.

    KAZU's is 0 unless the predicted classes are as many as the model's, and each has an F1 above 0.
    """
    occurs = counts.any(axis=-1)
    classes = occurs.sum(axis=-1)
    f1 = np.where(occurs, _rates(counts, scores.scheme)[2], 0.0)
    # One by one and in order, as KAZU does: np.sum (and sum, since Python 3.12) rounds differently.
    total = reduce(np.add, np.moveaxis(f1, -1, 0), np.zeros(classes.shape))
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = total / classes
    if scores.scheme != "kazu":
        return mean
    return np.where((classes == len(scores.labels)) & (occurs == (f1 > 0)).all(axis=-1), np.nan_to_num(mean), 0.0)


def _number(value: NDArray[np.float64]) -> float | None:
    return None if np.isnan(value) else float(value)


def _most_frequent(counters: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {
        label: dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
        for label, counter in sorted(counters.items())
        if counter
    }


def _by_label(entities: Iterable[Entity]) -> dict[str, list[Mention]]:
    result: defaultdict[str, list[Mention]] = defaultdict(list)
    for entity in entities:
        spans = entity.spans if len(entity.spans) == 1 else tuple(sorted(set(entity.spans)))
        result[entity.label].append((spans, entity.match))
    return result


def _as_set(mentions: Sequence[Mention]) -> dict[Spans, str]:
    """Returns spans → text; if equal spans have two texts, the greater, whatever the order of the mentions."""
    result = dict(mentions)
    return result if len(result) == len(mentions) else dict(sorted(mentions))


def _match_strict(gold: Sequence[Mention], predicted: Sequence[Mention]) -> Outcome:
    golds, predictions = _as_set(gold), _as_set(predicted)
    wrong = [text for spans, text in predictions.items() if spans not in golds]
    missed = [text for spans, text in golds.items() if spans not in predictions]
    return len(golds) - len(missed), wrong, missed


def _match_kazu(gold: Sequence[Mention], predicted: Sequence[Mention]) -> Outcome:
    """Gives what KAZU's comparison of every gold with every predicted entity gives, in O(n log n)."""
    gold_spans, predicted_spans = {spans for spans, _ in gold}, {spans for spans, _ in predicted}
    gold_offsets = [*sorted(offset for spans in gold_spans if len(spans) == 1 for offset in spans[0]), inf]
    by_start = sorted(spans[0] for spans in predicted_spans if len(spans) == 1)
    starts = [span.start for span in by_start]
    furthest_ends = [-1, *accumulate((span.end for span in by_start), max)]  # [i]: of the first i spans

    def is_found(spans: Spans) -> bool:
        if len(spans) > 1:
            return spans in predicted_spans
        return any(furthest_ends[bisect_right(starts, offset)] >= offset for offset in spans[0])

    def is_right(spans: Spans) -> bool:
        if len(spans) > 1:
            return spans in gold_spans
        return gold_offsets[bisect_left(gold_offsets, spans[0].start)] <= spans[0].end

    missed = [text for spans, text in gold if not is_found(spans)]
    return len(gold) - len(missed), [text for spans, text in predicted if not is_right(spans)], missed


def _match_overlap(gold: Sequence[Mention], predicted: Sequence[Mention]) -> Outcome:
    """Makes as many pairs as possible; where there is a choice of whom to leave out, the offsets decide."""
    texts_of_golds, texts_of_predictions = _as_set(gold), _as_set(predicted)
    golds, predictions = list(texts_of_golds), list(texts_of_predictions)
    gold_of = match_overlapping(golds, predictions)
    found = set(gold_of.values())
    missed = [texts_of_golds[spans] for number, spans in enumerate(golds) if number not in found]
    wrong = [texts_of_predictions[spans] for number, spans in enumerate(predictions) if number not in gold_of]
    return len(found), wrong, missed
