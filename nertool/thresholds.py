"""What other thresholds would give, and those that are best on documents with gold entities."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nertool.artefacts import Decisions
from nertool.decoding import Floats, decode
from nertool.documents import Section, Span
from nertool.metrics import rates_json
from nertool.windows import Tokens

# From probability 0.05 to 0.95, evenly in log-odds.
CANDIDATES = tuple(float(p) for p in 1 / (1 + np.exp(-np.arange(-3.0, 3.01, 0.25))))
# Below that, the best threshold for the entities at hand says little about others.
LEAST_ENTITIES = 20
# Smaller gains on the documents at hand come of chance more often than not.
LEAST_GAIN = 0.005


def count_at_thresholds(
    logits: Floats, tokens: Tokens, sections: Sequence[Section], decisions: Decisions
) -> NDArray[np.int64]:
    """Counts what would be found, wrong and missed, strictly, at each candidate; counts of several chunks add up.

    Args:
        logits: `(tokens, channels)` float32.
        tokens: The tokens of the sections.
        sections: The gold.
        decisions: What the logits mean, with the thresholds so far.

    Returns:
        `(candidates + 1, labels + 1, 3)`. The last row is that of the thresholds so far, the last column that of gold
        entities of classes that the model doesn't know.
    """
    labels = decisions.scheme.labels
    gold: list[set[tuple[int, tuple[Span, ...]]]] = [set() for _ in labels]
    unknown = set()
    for number, section in enumerate(sections):
        for entity in section.entities:
            parts = tuple(sorted(set(entity.spans)))
            if entity.label in labels:
                gold[labels.index(entity.label)].add((number, parts))
            else:
                unknown.add((number, entity.label, parts))
    continuous = [{(number, *spans[0]) for number, spans in known if len(spans) == 1} for known in gold]
    counts = np.zeros((len(CANDIDATES) + 1, len(labels) + 1, 3), np.int64)
    for row, candidate in enumerate([*CANDIDATES, None]):
        thresholds = decisions.thresholds if candidate is None else [candidate] * len(labels)
        decoded = decode(logits, tokens, decisions.scheme, thresholds, decisions.switch_cost)
        spans = np.stack([decoded.section, decoded.start, decoded.end], axis=1)
        for label in range(len(labels)):
            predicted = set(map(tuple, spans[decoded.label == label].tolist()))
            found = len(predicted & continuous[label])
            counts[row, label] = found, len(predicted) - found, len(gold[label]) - found
    counts[:, -1, 2] = len(unknown)
    return counts


def tune_thresholds(counts: NDArray[np.int64], decisions: Decisions) -> tuple[float, ...]:
    """Chooses for each class the threshold with the best strict F1.

    Classes are decoded apart, so each is tuned alone. The F1 of a threshold is averaged with its neighbours', so that
    not a lucky one wins; a class with few gold entities, or that gains little, keeps its threshold.

    Args:
        counts: What `count_at_thresholds` returns.
        decisions: The thresholds so far.

    Returns:
        `(labels,)`, each in (0, 1).
    """
    found, wrong, missed = np.moveaxis(counts[:, :-1], -1, 0)
    scores = 2 * found / np.maximum(2 * found + wrong + missed, 1)
    padded = np.pad(scores[:-1], ((1, 1), (0, 0)), mode="edge")
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    chosen = []
    for label, present in enumerate(decisions.thresholds):
        best = int(smooth[:, label].argmax())
        gains = smooth[best, label] >= scores[-1, label] + LEAST_GAIN
        enough = found[-1, label] + missed[-1, label] >= LEAST_ENTITIES
        chosen.append(round(CANDIDATES[best], 4) if gains and enough else present)
    return tuple(chosen)


def threshold_curves(counts: NDArray[np.int64], labels: Sequence[str]) -> dict[str, list[dict[str, float | None]]]:
    """Returns what each threshold would give, for each class and, as "micro", for all with the same threshold.

    Args:
        counts: What `count_at_thresholds` returns.
        labels: The model's classes.

    Returns:
        Class → for each candidate `threshold`, `precision`, `recall`, `f1`.
    """
    columns = {label: counts[:-1, number] for number, label in enumerate(labels)}
    columns["micro"] = counts[:-1].sum(axis=1)
    return {
        name: [
            {"threshold": round(candidate, 4), **rates_json(row)}
            for candidate, row in zip(CANDIDATES, column, strict=True)
        ]
        for name, column in columns.items()
    }
