"""Two annotations of the same documents: how far apart their scores are, and whether chance explains it.

The two are two models on one gold, or one model on two golds. Documents are hard or easy for both alike, so the
difference is looked at document by document; comparing two intervals by eye would miss most real differences.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nertool.documents import Entity
from nertool.matching import SCHEMES, Scheme, SectionPair
from nertool.metrics import Scores, numbers, percentile_interval, resampled, score, weighted_sums

# Differences that rounding makes of equal ones.
_ROUNDING = 1e-12


def compare(scores: Scores, baseline: Scores, samples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Compares two scores of the same documents, in the same order and under the same scheme.

    The interval is that of the difference, from a bootstrap that draws the same documents for both. The p-value is that
    of approximate randomisation: how often a difference at least as large, in either direction, comes out if each
    document's counts change sides by the toss of a coin, as they might if both were equally good.
    Source: Efron and Tibshirani (1993), section 13.3; Noreen, Computer-Intensive Methods for Testing Hypotheses (1989);
    Yeh, More accurate tests for the statistical significance of result differences (2000).

    Args:
        scores: The scores.
        baseline: What to compare them with.
        samples: How many samples for the interval, and for the p-value.
        seed: The seed of both.

    Returns:
        Key → `value`, `baseline`, `difference` (value − baseline), `low`, `high`, `level`, `samples`, `p_value`; for
        `micro_f1`, `mean_f1`, `micro_precision`, `micro_recall` and the F1 of each class. What is 0/0 is `None`.
    """
    classes = tuple(dict.fromkeys((*scores.classes, *baseline.classes)))
    one, other = (_with_classes(side, classes) for side in (scores, baseline))
    both = np.stack([one.counts, other.counts], axis=1)  # (documents, 2, classes, 3)
    drawn = resampled(both, samples, seed)
    swapped = _swapped(both, samples, seed)
    differences, by_chance = (
        _differences(numbers(some[:, 0], one), numbers(some[:, 1], other)) for some in (drawn, swapped)
    )
    flat, flat_baseline = scores.to_json(), baseline.to_json()
    result: dict[str, dict[str, Any]] = {}
    for key, values in differences.items():
        value, before = flat.get(key), flat_baseline.get(key)
        difference = None if value is None or before is None else value - before
        interval = None if difference is None else percentile_interval(values, samples)
        result[key] = {
            "value": value,
            "baseline": before,
            "difference": difference,
            **(interval or {"low": None, "high": None, "level": None, "samples": samples}),
            "p_value": None if difference is None else _p_value(difference, by_chance[key]),
        }
    return result


class ReviewedSection(NamedTuple):
    """A section that carries two gold sets: what people were shown, and what they made of it.

    Args:
        document: The number of its document.
        sent: The entities that people were shown.
        people: Theirs.
        predicted: Those that are scored.
        sent_by: Who annotated what they were shown, in words.
    """

    document: int
    sent: Sequence[Entity]
    people: Sequence[Entity]
    predicted: Sequence[Entity]
    sent_by: str


def compare_gold_sets(
    sections: Sequence[ReviewedSection], labels: Iterable[str], scheme: Scheme, samples: int, seed: int
) -> dict[str, Any] | None:
    """Scores the same predictions against what people were shown and against theirs, and the one against the other.

    Returns:
        `sections`, `documents`, `sent_by` (who → sections); `scores`: `predicted_against_sent`,
        `predicted_against_people` and `sent_against_people`, each scheme → flat numbers; `comparison`: as of `compare`,
        of the predictions against people's, with those against what was sent as the baseline. `None` without sections.
    """
    if not sections:
        return None
    labels = frozenset(labels)
    against = {
        "predicted_against_sent": [SectionPair(one.document, one.sent, one.predicted) for one in sections],
        "predicted_against_people": [SectionPair(one.document, one.people, one.predicted) for one in sections],
        "sent_against_people": [SectionPair(one.document, one.people, one.sent) for one in sections],
    }
    scores = {name: {some: score(pairs, labels, some) for some in SCHEMES} for name, pairs in against.items()}
    return {
        "sections": len(sections),
        "documents": len({one.document for one in sections}),
        "sent_by": dict(sorted(Counter(one.sent_by for one in sections).items())),
        "scores": {name: {some: one.to_json() for some, one in by.items()} for name, by in scores.items()},
        "comparison": compare(
            scores["predicted_against_people"][scheme], scores["predicted_against_sent"][scheme], samples, seed
        ),
    }


def _with_classes(scores: Scores, classes: tuple[str, ...]) -> Scores:
    counts = np.zeros((len(scores.counts), len(classes), 3), np.int64)
    counts[:, [classes.index(label) for label in scores.classes]] = scores.counts
    return replace(scores, classes=classes, counts=counts)


def _swapped(both: NDArray[np.int64], samples: int, seed: int) -> NDArray[np.float64]:
    """Returns the sums if the two sides of each document change places or don't; none for fewer than two documents."""
    if len(both) < 2:
        return np.zeros((0, *both.shape[1:]))
    rng = np.random.default_rng(seed)
    change = weighted_sums(
        both[:, 1] - both[:, 0], samples, lambda some: rng.integers(0, 2, size=(some, len(both)), dtype=np.int8)
    )
    totals = both.sum(axis=0)
    return np.stack([totals[0] + change, totals[1] - change], axis=1)


def _differences(
    values: dict[str, NDArray[np.float64]], baseline: dict[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    wanted = ("micro_f1", "mean_f1", "micro_precision", "micro_recall")
    return {key: values[key] - baseline[key] for key in values if key in wanted or key.endswith("_f1")}


def _p_value(difference: float, by_chance: NDArray[np.float64]) -> float | None:
    defined = by_chance[~np.isnan(by_chance)]
    if not len(defined):
        return None
    extreme = int((np.abs(defined) >= abs(difference) - _ROUNDING).sum())
    return (extreme + 1) / (len(defined) + 1)
