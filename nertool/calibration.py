"""Whether scores are probabilities: of the entities that were predicted with 0.8, are 80 % right?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nertool.documents import Entity
from nertool.matching import SectionPair
from nertool.overlap import Spans

BINS = 10


def calibration(pairs: Sequence[SectionPair]) -> dict[str, Any] | None:
    """Compares the scores of predicted entities with how many of them are strictly right.

    The expected calibration error is the mean distance between score and precision, over bins of equal width that count
    as much as the predictions in them. Nothing is said of what was not predicted. Of equal predictions in a section the
    most certain counts.
    Source: Guo et al., On Calibration of Modern Neural Networks (2017), section 2.

    Returns:
        `expected_calibration_error`, `bins` (`low`, `high`, `count`, `mean_score`, `precision`) and `classes` (class →
        `expected_calibration_error`, `count`); `None` if no prediction has a score.
    """
    labels: list[str] = []
    scores: list[float] = []
    right: list[bool] = []
    for pair in pairs:
        best: dict[tuple[str, Spans], float] = {}
        for entity in pair.predicted:
            if entity.score is not None:
                mention = _mention(entity)
                best[mention] = max(entity.score, best.get(mention, 0.0))
        gold = set(map(_mention, pair.gold)) if best else set()
        for mention, score in best.items():
            labels.append(mention[0])
            scores.append(score)
            right.append(mention in gold)
    if not scores:
        return None
    of_class, all_scores, all_right = np.array(labels), np.array(scores), np.array(right)
    overall = _bins(all_scores, all_right)
    classes = {}
    for label in sorted(set(labels)):
        mine = of_class == label
        error = _error(_bins(all_scores[mine], all_right[mine]))
        classes[label] = {"expected_calibration_error": error, "count": int(mine.sum())}
    return {"expected_calibration_error": _error(overall), "bins": overall, "classes": classes}


def _mention(entity: Entity) -> tuple[str, Spans]:
    return entity.label, entity.spans if len(entity.spans) == 1 else tuple(sorted(set(entity.spans)))


def _bins(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Sorts scores `(n,)` into bins; the last one holds 1, too."""
    numbers = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    counts, sums, hits = (
        np.bincount(numbers, weights, minlength=BINS) for weights in (None, scores, right.astype(np.float64))
    )
    return [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "count": int(count),
            "mean_score": float(total / count) if count else None,
            "precision": float(hit / count) if count else None,
        }
        for number, (count, total, hit) in enumerate(zip(counts, sums, hits, strict=True))
    ]


def _error(bins: Sequence[dict[str, Any]]) -> float:
    used = [one for one in bins if one["count"]]
    total = sum(one["count"] for one in used)
    return float(sum(one["count"] / total * abs(one["mean_score"] - one["precision"]) for one in used))
