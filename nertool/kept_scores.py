"""Scores that a model keeps, for its model card: by all schemes, with intervals, and what they were measured on."""

from collections.abc import Iterable, Sequence
from typing import Any

from nertool.matching import SCHEMES, SectionPair
from nertool.metrics import CONFIDENCE_LEVEL, confidence_intervals, score


def kept_evaluation(
    pairs: Sequence[SectionPair],
    labels: Iterable[str],
    facts: dict[str, Any],
    thresholds: dict[str, float],
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Returns what `nertool.json` keeps of an evaluation.

    Args:
        pairs: Gold and predicted entities.
        labels: The model's classes.
        facts: What the documents are: `name`, `digest`, `documents`, `entities` and `annotators`.
        thresholds: Those of the classes at the time.
        samples: Of the bootstrap; 0 gives no intervals.
        seed: Of the bootstrap.

    Returns:
        The facts and, for each scheme, the flat numbers of `evaluate --json`, with the `intervals` of its rates. KAZU's
        scheme has none: it is there to be set beside KAZU's numbers, which have none either.
    """
    schemes = {}
    for scheme in SCHEMES:
        scores = score(pairs, labels, scheme)
        schemes[scheme] = scores.to_json()
        if scheme != "kazu":
            intervals = confidence_intervals(scores, samples, seed)
            schemes[scheme]["intervals"] = {key: [it["low"], it["high"]] for key, it in intervals.items() if it}
    return {
        **{key: facts.get(key) for key in ("name", "digest", "documents", "entities", "annotators")},
        "thresholds": thresholds,
        "of_original": False,
        "level": CONFIDENCE_LEVEL,
        "samples": samples,
        "schemes": schemes,
    }
