"""Scores predicted against gold entities: precision, recall, F1 and support, per class and over all.

A scheme looks at one class in one section at a time and says how many gold entities were found, which predictions are
wrong (false positives) and which gold entities were missed (false negatives). All numbers follow from these counts.

- `strict`: a prediction is right if a gold entity has exactly its spans. As CoNLL and nervaluate's "strict" count.
- `overlap`: right if it is paired with a gold entity with which it shares a character. Each is in one pair at most, and
  as many pairs as possible are made, so nothing counts twice and the order of the entities doesn't matter.
- `kazu`: what KAZU 2.4.0 counts, to the last digit, so that numbers can be set beside its published ones; see `score`.
  Source: `kazu/annotation/acceptance_test.py` and `calculate_metrics` in `kazu/training/train_multilabel_ner.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nertool.matching import (
    MISSED,
    SCHEMES,
    WRONG,
    MentionPairs,
    Mentions,
    Scheme,
    SectionPair,
    Statuses,
    match,
    mention_pairs,
)

CONFIDENCE_LEVEL = 0.95
_RATES = ("precision", "recall", "f1")
# What a class called "micro" or "mean" has no number of its own for.
_OVERALL = ("micro_precision", "micro_recall", "micro_f1", "mean_f1")
# Weights of documents in samples that are in memory at once; 8 bytes each, twice.
_WEIGHTS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Scores:
    """The counts of one scheme, from which all its numbers follow.

    Args:
        scheme: The scheme.
        labels: The model's classes.
        classes: The classes counted: `labels` and whatever else occurs, sorted; for `kazu` only those predicted
            anywhere, in the order in which KAZU meets them (which decides the last digit of its mean).
        counts: Found gold entities, false positives, false negatives; int64, shape `(documents, classes, 3)`.
    """

    scheme: Scheme
    labels: frozenset[str]
    classes: tuple[str, ...]
    counts: NDArray[np.int64]

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
    labels = frozenset(labels)
    mentions = mention_pairs(pairs, labels)
    return _count(mentions, match(mentions, scheme), pairs, labels, scheme)


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
    mentions = mention_pairs(pairs, labels)
    matches = {name: match(mentions, name) for name in SCHEMES}
    scores = {name: _count(mentions, matches[name], pairs, labels, name) for name in SCHEMES}
    schemes = {name: scores[name].to_json() for name in SCHEMES}
    strict = scores["strict"]
    found, wrong, missed = strict.counts.sum(axis=(0, 1)).tolist()
    in_use = zip(strict.classes, strict.counts.sum(axis=(0, 2)).tolist(), strict=True)
    gold, predicted = len(mentions.gold.entities), len(mentions.predicted.entities)
    of_gold, of_predicted = matches[scheme]
    return {
        **schemes[scheme],
        "schemes": schemes,
        "false_positives": _texts(mentions.predicted, of_predicted == WRONG, mentions.labels),
        "false_negatives": _texts(mentions.gold, of_gold == MISSED, mentions.labels),
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


def other_scheme(scheme: Scheme) -> Scheme:
    """Returns the scheme that is shown beside one."""
    return "strict" if scheme == "overlap" else "overlap"


def classes_of(flat: Iterable[str]) -> list[str]:
    """Returns the classes that the keys of flat numbers tell of, in their order."""
    ends = "_support"
    return [key.removesuffix(ends) for key in flat if key.endswith(ends) and key != f"micro{ends}"]


def confidence_intervals(scores: Scores, samples: int, seed: int) -> dict[str, dict[str, Any] | None]:
    """Returns 95 % percentile bootstrap intervals of the overall numbers and of those of each class.

    Whole documents are drawn, with replacement, as many as there are: entities of one document are not independent, so
    drawing entities would make the intervals too narrow. Samples where the number is 0/0 are left out. `None` stands
    for an interval that can't be: no samples, fewer than two documents, or 0/0 in every sample.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. How often they hold the truth,
    and that BCa and t intervals do no better, was measured: docs/log.md.
    """
    drawn = resampled(scores.counts, samples, seed)
    return {name: percentile_interval(values, samples) for name, values in numbers(drawn, scores).items()}


def resampled(counts: NDArray[np.int64], samples: int, seed: int) -> NDArray[np.float64]:
    """Returns the sums over documents that are drawn with replacement, as many as there are.

    The same seed draws the same documents. It works in blocks, so that memory doesn't grow with the documents.

    Args:
        counts: `(documents, ...)`.
        samples: How often to draw.
        seed: The seed.

    Returns:
        `(samples, ...)`; none for fewer than two documents, which tell nothing of others.
    """
    documents = len(counts)
    if documents < 2:
        return np.zeros((0, *counts.shape[1:]))
    rng = np.random.default_rng(seed)
    shares = np.full(documents, 1 / documents)
    return weighted_sums(counts, samples, lambda some: rng.multinomial(documents, shares, size=some))


def weighted_sums(
    counts: NDArray[np.int64], samples: int, weights: Callable[[int], NDArray[Any]]
) -> NDArray[np.float64]:
    """Returns `samples` sums over documents, `(samples, ...)`; `weights` makes the next rows of their weights."""
    # numpy multiplies matrices of integers slowly, and float64 is exact for these.
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    sums = np.empty((samples, flat.shape[1]))
    block = max(1, _WEIGHTS_AT_ONCE // max(1, len(counts)))
    for first in range(0, samples, block):
        some = min(block, samples - first)
        sums[first : first + some] = weights(some).astype(np.float64) @ flat
    return sums.reshape(samples, *counts.shape[1:])


def numbers(counts: NDArray[Any], scores: Scores) -> dict[str, NDArray[np.float64]]:
    """Returns the flat numbers, each `(...)`, of counts `(..., classes, 3)` of the classes of `scores`; 0/0 is NaN."""
    result: dict[str, NDArray[np.float64]] = {}
    for number, name in enumerate(scores.classes):
        rates = _rates(counts[..., number, :], scores.scheme)
        result |= {f"{name}_{what}": values for what, values in zip(_RATES, rates, strict=True)}
    overall = dict(zip(_RATES, _rates(counts.sum(axis=-2), scores.scheme), strict=True))
    return {
        "micro_f1": overall["f1"],
        "mean_f1": _mean_f1(counts, scores),
        "micro_precision": overall["precision"],
        "micro_recall": overall["recall"],
        **{name: values for name, values in result.items() if name not in _OVERALL},
    }


def percentile_interval(values: NDArray[np.float64], samples: int) -> dict[str, Any] | None:
    """Returns the middle 95 % of values that are not NaN, of so many samples; `None` if there are none."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2]).tolist()
    return {"low": low, "high": high, "level": CONFIDENCE_LEVEL, "samples": samples}


def rates_json(counts: NDArray[np.int64]) -> dict[str, float | None]:
    """Returns precision, recall and F1 of counts `(3,)`: found, wrong, missed; 0/0 is `None`."""
    return dict(zip(_RATES, map(_number, _rates(counts, "strict")), strict=True))


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


def _count(
    mentions: MentionPairs,
    matches: tuple[Statuses, Statuses],
    pairs: Sequence[SectionPair],
    labels: frozenset[str],
    scheme: Scheme,
) -> Scores:
    """Adds up what the entities count as, by document and class."""
    documents, rows = np.unique(np.fromiter(map(itemgetter(0), pairs), np.int64, len(pairs)), return_inverse=True)
    shape = (len(documents), len(mentions.labels), 3)
    counts = np.zeros(shape, np.int64)
    for side, statuses in zip((mentions.gold, mentions.predicted), matches, strict=True):
        counted = statuses >= 0
        cells = (rows[side.section[counted]] * shape[1] + side.label[counted]) * shape[2] + statuses[counted]
        counts += np.bincount(cells, minlength=counts.size).reshape(shape)
    numbers = np.arange(len(mentions.labels))
    if scheme == "kazu":
        found_labels, first = np.unique(mentions.predicted.label, return_index=True)
        numbers = found_labels[np.lexsort((found_labels, mentions.predicted.section[first]))]
    return Scores(scheme, labels, tuple(mentions.labels[number] for number in numbers), counts[:, numbers])


def _texts(mentions: Mentions, wanted: NDArray[np.bool_], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Returns class → text of the mention → count, most frequent first, of those entities."""
    texts: dict[str, dict[str, int]] = {}
    rows = np.flatnonzero(wanted)
    for number in np.unique(mentions.label[rows]).tolist():
        entities = map(mentions.entities.__getitem__, rows[mentions.label[rows] == number].tolist())
        counter = Counter(map(attrgetter("match"), entities))
        texts[labels[number]] = {
            text: counter[text] for text in sorted(sorted(counter), key=counter.__getitem__, reverse=True)
        }
    return texts
