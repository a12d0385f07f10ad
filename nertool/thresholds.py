"""Thresholds of the classes, chosen on documents with gold entities."""

from collections.abc import Sequence

import numpy as np

from nertool.artefacts import Decisions
from nertool.decoding import Floats, decode
from nertool.documents import Section, Span
from nertool.windows import Tokens

# From probability 0.05 to 0.95, evenly in log-odds.
CANDIDATES = tuple(float(p) for p in 1 / (1 + np.exp(-np.arange(-3.0, 3.01, 0.25))))
# Below that, the best threshold for the entities at hand says little about others.
LEAST_ENTITIES = 20
# Smaller gains on the documents at hand come of chance more often than not.
LEAST_GAIN = 0.005


def tune_thresholds(
    logits: Floats, tokens: Tokens, sections: Sequence[Section], decisions: Decisions
) -> tuple[float, ...]:
    """Chooses for each class the threshold with the best strict F1.

    Classes are decoded apart, so each is tuned alone. The F1 of a threshold is averaged with its neighbours', so that
    not a lucky one wins; a class with few gold entities, or that gains little, keeps its threshold.

    Args:
        logits: `(tokens, channels)` float32.
        tokens: The tokens of the sections.
        sections: The gold.
        decisions: What the logits mean, with the thresholds so far.

    Returns:
        `(labels,)`, each in (0, 1).
    """
    labels = decisions.scheme.labels
    gold: list[set[tuple[int, tuple[Span, ...]]]] = [set() for _ in labels]
    for number, section in enumerate(sections):
        for entity in section.entities:
            if entity.label in labels:
                gold[labels.index(entity.label)].add((number, entity.spans))
    continuous = [{(number, *spans[0]) for number, spans in known if len(spans) == 1} for known in gold]
    scores = np.zeros((len(CANDIDATES) + 1, len(labels)))
    for row, candidate in enumerate([*CANDIDATES, None]):
        thresholds = decisions.thresholds if candidate is None else [candidate] * len(labels)
        decoded = decode(logits, tokens, decisions.scheme, thresholds, decisions.switch_cost)
        spans = np.stack([decoded.section, decoded.start, decoded.end], axis=1)
        for label in range(len(labels)):
            found = set(map(tuple, spans[decoded.label == label].tolist()))
            total = len(found) + len(gold[label])
            scores[row, label] = 2 * len(found & continuous[label]) / total if total else 0.0
    padded = np.pad(scores[:-1], ((1, 1), (0, 0)), mode="edge")
    smooth = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
    chosen = []
    for label, present in enumerate(decisions.thresholds):
        best = int(smooth[:, label].argmax())
        gains = smooth[best, label] >= scores[-1, label] + LEAST_GAIN
        enough = len(gold[label]) >= LEAST_ENTITIES
        chosen.append(round(CANDIDATES[best], 4) if gains and enough else present)
    return tuple(chosen)
