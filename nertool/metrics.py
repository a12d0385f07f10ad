"""Scores predicted against gold entities: precision, recall, F1 and support, per class and over all.

Every scheme looks at one class in one section at a time and says how many gold entities were found, which predictions
are wrong (false positives) and which gold entities were missed (false negatives); all numbers follow from these three
counts per document and class. Three schemes:

- `strict`: a prediction is right if a gold entity has exactly its spans. As CoNLL and nervaluate's "strict" count.
- `overlap`: right if it shares a character with a gold entity that no other prediction claims, and the other way round:
  as many such pairs as possible are made, so neither a gold entity nor a prediction ever counts twice.
- `kazu`: what KAZU 2.4.0 counts, to the last digit, so that numbers can be set beside its published ones; see `score`.

Under `strict` and `overlap` the entities of a section are a set: the same spans with the same label twice are one
entity. Source of `kazu`: `SectionScorer`, `score_sections` and `aggregate_ner_results` in
`kazu/annotation/acceptance_test.py`, `calculate_metrics` in `kazu/training/train_multilabel_ner.py`.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from heapq import heappop, heappush
from itertools import accumulate
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from nertool.documents import Entity, Span

Scheme = Literal["strict", "overlap", "kazu"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

Spans = tuple[Span, ...]
Counts = NDArray[np.int64] | NDArray[np.float64]
Rates = NDArray[np.float64]

CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class SectionPair:
    """The gold and the predicted entities of one section.

    Args:
        document: The number of the section's document; the bootstrap resamples whole documents.
        gold: What is there.
        predicted: What the model found.
    """

    document: int
    gold: Sequence[Entity]
    predicted: Sequence[Entity]


class Outcome(NamedTuple):
    """What a scheme counts for one class in one section."""

    found: int
    spurious: list[str]
    missed: list[str]


@dataclass(frozen=True, slots=True)
class Scores:
    """The counts of one scheme, from which all its numbers follow.

    Args:
        scheme: The scheme.
        labels: The model's classes.
        classes: The classes counted: all of `labels` and whatever else occurs, sorted; for `kazu` only those predicted
            anywhere, in the order in which KAZU meets them (which decides the last digit of its mean).
        counts: Found gold entities, false positives and false negatives: int64, `(documents, classes, 3)`.
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
        """Returns the flat numbers under KAZU's names; 0/0 is `None`, but 0.0 for `kazu`, which says so.

        `support` is the number of gold entities (for `kazu`: of the sections where the class was predicted). KAZU has
        no F1 per class and no micro average: for `kazu` they are made of its counts as it makes its mean of classes.
        A class called "mean" or "micro" loses its own `…_f1` to the overall number of that name.
        """
        result: dict[str, Any] = {}
        totals = self.counts.sum(axis=0)
        for label, counts in zip(self.classes, totals, strict=True):
            result |= _named_rates(label, counts, self.scheme)
            result[f"{label}_support"] = int(counts[0] + counts[2])
        mean = _number(_mean_f1(totals, self))
        return {**result, **_named_rates("micro", totals.sum(axis=0), self.scheme), "mean_f1": mean, "scheme": self.scheme}


def score(pairs: Iterable[SectionPair], labels: Iterable[str], scheme: Scheme) -> Scores:
    """Counts what was found, wrong and missed.

    `strict` and `overlap` count every class in every section. `kazu` keeps KAZU's omissions: it visits a class only in
    the sections where it was predicted, so gold entities elsewhere are not missed; spans are equal, or both entities
    have one span and the gold one's start or end lies in the predicted one, ends included (so touching is a match and
    a prediction inside a longer gold entity is none); any number of matches is allowed; duplicates count each.

    Args:
        pairs: All sections.
        labels: The classes that the model can predict.
        scheme: What counts as found.
    """
    pairs = list(pairs)
    known = frozenset(labels)
    rows = {document: row for row, document in enumerate(sorted({pair.document for pair in pairs}))}
    tallies: defaultdict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros((len(rows), 3), np.int64))
    spurious: defaultdict[str, Counter[str]] = defaultdict(Counter)
    missed: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for pair in pairs:
        gold, predicted = _by_label(pair.gold), _by_label(pair.predicted)
        for label in sorted(predicted if scheme == "kazu" else gold | predicted):
            outcome = _MATCHERS[scheme](gold.get(label, []), predicted.get(label, []))
            tallies[label][rows[pair.document]] += (outcome.found, len(outcome.spurious), len(outcome.missed))
            spurious[label].update(outcome.spurious)
            missed[label].update(outcome.missed)
    classes = tuple(tallies) if scheme == "kazu" else tuple(sorted(known | tallies.keys()))
    counts = np.array([tallies[label] for label in classes], np.int64).reshape(len(classes), len(rows), 3)
    return Scores(scheme, known, classes, counts.swapaxes(0, 1), _most_frequent(spurious), _most_frequent(missed))


def evaluation_report(
    pairs: Sequence[SectionPair],
    labels: Iterable[str],
    *,
    scheme: Scheme = "strict",
    bootstrap_samples: int = 1000,
    bootstrap_seed: int = 42,
) -> dict[str, Any]:
    """Returns everything `evaluate --json` prints; the caller adds to `counts` what only it knows.

    Args:
        pairs: All sections.
        labels: The classes that the model can predict.
        scheme: The scheme of the flat numbers, the errors and the intervals; "schemes" has the numbers of all.
        bootstrap_samples: See `confidence_intervals`.
        bootstrap_seed: See `confidence_intervals`.
    """
    labels = frozenset(labels)
    scores = {name: score(pairs, labels, name) for name in SCHEMES}
    flat = {name: scores[name].to_json() for name in SCHEMES}
    strict, chosen = scores["strict"], scores[scheme]
    found, wrong, missed = strict.counts.sum(axis=(0, 1)).tolist()
    in_use = strict.counts.any(axis=(0, 2)).tolist()
    gold, predicted = sum(len(pair.gold) for pair in pairs), sum(len(pair.predicted) for pair in pairs)
    return {
        **flat[scheme],
        "schemes": flat,
        "false_positives": chosen.false_positives,
        "false_negatives": chosen.false_negatives,
        "confidence_intervals": confidence_intervals(chosen, bootstrap_samples, bootstrap_seed),
        "classes_without_gold_or_predictions": [c for c, used in zip(strict.classes, in_use, strict=True) if not used],
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

    Documents are drawn with replacement, as many as there are: entities of one document are not independent, so
    drawing entities would give intervals that are too narrow. Samples in which the number is 0/0 don't count.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3.

    Returns:
        `None` for a number without an interval: no samples, fewer than two documents, or 0/0 in each sample.
    """
    documents, classes, _ = scores.counts.shape
    if samples == 0 or documents < 2:
        return {"micro_f1": None, "mean_f1": None}
    weights = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), size=samples)
    # In float64, which is exact here, because numpy multiplies integer matrices slowly.
    drawn = weights.astype(np.float64) @ scores.counts.reshape(documents, -1).astype(np.float64)
    counts = drawn.reshape(samples, classes, 3)
    micro = _rates(counts.sum(axis=1), scores.scheme)[2]
    return {"micro_f1": _interval(micro), "mean_f1": _interval(_mean_f1(counts, scores))}


def _interval(values: Rates) -> dict[str, Any] | None:
    if np.isnan(values).all():
        return None
    tail = 50 * (1 - CONFIDENCE_LEVEL)
    low, high = np.nanpercentile(values, [tail, 100 - tail]).tolist()
    return {"low": low, "high": high, "level": CONFIDENCE_LEVEL, "samples": len(values)}


def _rates(counts: Counts, scheme: Scheme) -> tuple[Rates, Rates, Rates]:
    """Returns precision, recall and F1, each `(...)`, of counts `(..., 3)`; 0/0 is NaN, for `kazu` 0."""
    found, wrong, missed = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore"):
        precision, recall = found / (found + wrong), found / (found + missed)
        if scheme != "kazu":
            return precision, recall, 2 * found / (2 * found + wrong + missed)
        precision, recall = np.nan_to_num(precision), np.nan_to_num(recall)
        # Equal to the formula above but for rounding, and the last digit must be KAZU's.
        return precision, recall, np.nan_to_num(2 * (precision * recall) / (precision + recall))


def _mean_f1(counts: Counts, scores: Scores) -> Rates:
    """Returns the macro mean `(...)` of the F1 of the classes that occur, of counts `(..., classes, 3)`.

    KAZU's is 0 unless as many classes were predicted as the model has, and each has an F1 above 0.
    """
    occurs = counts.any(axis=-1)  # for `kazu`, too: it visits a class where it was predicted, and counts that
    f1 = np.where(occurs, _rates(counts, scores.scheme)[2], 0.0)
    # One by one in KAZU's order: np.sum and, since Python 3.12, sum round differently.
    total: Rates = reduce(np.add, np.moveaxis(f1, -1, 0), np.zeros(f1.shape[:-1]))
    with np.errstate(invalid="ignore"):
        mean: Rates = total / occurs.sum(axis=-1)
    if scores.scheme != "kazu":
        return mean
    kept = (occurs.sum(axis=-1) == len(scores.labels)) & ((f1 > 0) | ~occurs).all(axis=-1)
    return np.where(kept, np.nan_to_num(mean), 0.0)


def _named_rates(name: str, counts: Counts, scheme: Scheme) -> dict[str, float | None]:
    keys = (f"{name}_precision", f"{name}_recall", f"{name}_f1")
    return dict(zip(keys, map(_number, _rates(counts, scheme)), strict=True))


def _number(value: Rates) -> float | None:
    return None if np.isnan(value) else float(value)


def _most_frequent(counters: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {
        label: dict(sorted(counters[label].items(), key=lambda item: (-item[1], item[0])))
        for label in sorted(counters)
        if counters[label]
    }


def _by_label(entities: Iterable[Entity]) -> dict[str, list[Entity]]:
    result: dict[str, list[Entity]] = {}
    for entity in entities:
        result.setdefault(entity.label, []).append(entity)
    return result


def _span_set(entity: Entity) -> Spans:
    return entity.spans if len(entity.spans) == 1 else tuple(sorted(set(entity.spans)))


def _texts_by_spans(entities: Iterable[Entity]) -> dict[Spans, str]:
    """Returns the set of entities; should equal spans have different texts, the least, whatever their order."""
    result: dict[Spans, str] = {}
    for entity in entities:
        spans = _span_set(entity)
        result[spans] = min(entity.match, result.get(spans, entity.match))
    return result


def _match_strict(gold: Sequence[Entity], predicted: Sequence[Entity]) -> Outcome:
    golds, predictions = _texts_by_spans(gold), _texts_by_spans(predicted)
    spurious = [text for spans, text in predictions.items() if spans not in golds]
    missed = [text for spans, text in golds.items() if spans not in predictions]
    return Outcome(len(golds) - len(missed), spurious, missed)


def _match_kazu(gold: Sequence[Entity], predicted: Sequence[Entity]) -> Outcome:
    """Matches as KAZU does, in O(n log n): its product of gold and predicted is replaced by sorted offsets."""
    gold_sets, predicted_sets = [_span_set(entity) for entity in gold], [_span_set(entity) for entity in predicted]
    equal = set(gold_sets).intersection(predicted_sets)
    gold_offsets = sorted(offset for spans in gold_sets if len(spans) == 1 for offset in spans[0])
    predictions = sorted(spans[0] for spans in predicted_sets if len(spans) == 1)
    starts = [span.start for span in predictions]
    furthest_ends = list(accumulate((span.end for span in predictions), max))

    def found(spans: Spans) -> bool:
        before = [bisect_right(starts, offset) for offset in spans[0]]
        reached = any(i and furthest_ends[i - 1] >= offset for i, offset in zip(before, spans[0], strict=True))
        return spans in equal or (len(spans) == 1 and reached)

    def right(spans: Spans) -> bool:
        next_offset = bisect_left(gold_offsets, spans[0].start)
        reached = next_offset < len(gold_offsets) and gold_offsets[next_offset] <= spans[0].end
        return spans in equal or (len(spans) == 1 and reached)

    missed = [entity.match for entity, spans in zip(gold, gold_sets, strict=True) if not found(spans)]
    spurious = [entity.match for entity, spans in zip(predicted, predicted_sets, strict=True) if not right(spans)]
    return Outcome(len(gold) - len(missed), spurious, missed)


def _match_overlap(gold: Sequence[Entity], predicted: Sequence[Entity]) -> Outcome:
    """Makes as many pairs as possible; where there is a choice of whom to leave out, the spans decide it."""
    golds, predictions = _texts_by_spans(gold), _texts_by_spans(predicted)
    entities = [*sorted(golds), *sorted(predictions)]
    simple: list[int] = []
    tangled: set[int] = set()
    for group in _groups(entities):
        if any(len(entities[number]) > 1 for number in group):
            tangled.update(group)
        else:
            simple += group
    matched = _match_single_spans([(*entities[number][0], number) for number in simple], len(golds))
    if tangled:
        matched |= _match_any_spans(sorted(tangled), entities, len(golds))
    missed = [golds[entities[number]] for number in range(len(golds)) if number not in matched]
    spurious = [predictions[entities[n]] for n in range(len(golds), len(entities)) if n not in matched]
    return Outcome(len(golds) - len(missed), spurious, missed)


def _groups(entities: Sequence[Spans]) -> Iterator[list[int]]:
    """Yields the numbers of the entities of each stretch of text that spans cover without a gap."""
    group: list[int] = []
    covered = 0
    for start, end, number in sorted((*span, number) for number, spans in enumerate(entities) for span in spans):
        if start >= covered:
            yield group
            group = []
        group.append(number)
        covered = max(covered, end)
    yield group


def _match_single_spans(spans: list[tuple[int, int, int]], gold_count: int) -> set[int]:
    """Returns the numbers in a maximum matching of `(start, end, number)`; numbers below `gold_count` are gold.

    Takes the span x that ends first and pairs it with the one y of its overlapping opposites that ends first, and so on:
    O(n log n). Why that is a maximum: take any maximum matching. If it has only one of x and y, x-y can replace that
    pair; if it has x-b and a-y, then x-y and a-b can: a and b both reach past the end of x, b begins before that, and a
    begins before the end of y, hence of b.
    """
    matched: set[int] = set()
    gone: set[int] = set()
    begun: tuple[list[tuple[int, int]], ...] = ([], [])  # heaps of (end, number): predicted, gold
    by_start = sorted(spans, reverse=True)
    for _, end, number in sorted(spans, key=lambda span: span[1]):
        while by_start and by_start[-1][0] < end:
            _, other_end, other = by_start.pop()
            heappush(begun[other < gold_count], (other_end, other))
        if number not in gone:
            gone.add(number)
            opposites = begun[number >= gold_count]
            while opposites and opposites[0][1] in gone:
                heappop(opposites)
            if opposites:
                matched |= {number, opposites[0][1]}
                gone.add(opposites[0][1])
    return matched


def _match_any_spans(golds: Sequence[Spans], predictions: Sequence[Spans]) -> dict[int, int]:
    """Returns a maximum matching, prediction → gold, of entities that may be discontinuous.

    Each round grows trees of alternating paths from all unmatched golds at once, every prediction in one tree at most,
    and turns one path of each tree that reaches an unmatched prediction; a round that finds none proves the maximum
    (Berge 1957). A round looks for a prediction O(n) times, each a vectorised scan of n spans; a few rounds do.
    """
    parts = sorted((start, end, number) for number, spans in enumerate(predictions) for start, end in spans)
    starts = [start for start, _, _ in parts]
    owners = np.array([number for _, _, number in parts])
    gold_of: dict[int, int] = {}
    predicted_of: dict[int, int] = {}
    while True:
        ends = np.array([end for _, end, _ in parts])

        def reach(gold: int) -> int | None:
            for start, end in golds[gold]:
                hits = np.flatnonzero(ends[: bisect_left(starts, end)] > start)
                if len(hits):
                    ends[owners == owners[hits[0]]] = 0  # not again in this round
                    return int(owners[hits[0]])
            return None

        root = {gold: gold for gold in range(len(golds)) if gold not in predicted_of}
        queue = list(root)
        reached_from: dict[int, int] = {}
        grown: set[int] = set()
        for gold in queue:
            while root[gold] not in grown and (predicted := reach(gold)) is not None:
                reached_from[predicted] = gold
                if predicted in gold_of:
                    root[gold_of[predicted]] = root[gold]
                    queue.append(gold_of[predicted])
                    continue
                grown.add(root[gold])
                step: int | None = predicted
                while step is not None:
                    turned = reached_from[step]
                    gold_of[step], predicted_of[turned], step = turned, step, predicted_of.get(turned)
        if not grown:
            return gold_of


_MATCHERS = ...
