"""Scores by groups of entities: was the mention seen in training, how long is it, where is it, who annotated it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nertool.documents import Document, Entity
from nertool.matching import FOUND, MISSED, WRONG, SectionPair, match, mention_pairs
from nertool.metrics import rates_json

_LONGEST_WORDS = 4


class SectionFacts(NamedTuple):
    """What the groups need to know of a scored section: its name, and who says what is right in it."""

    name: str
    who: str


def training_mentions(documents: Iterable[Document]) -> set[tuple[str, str]]:
    """Returns class and text of the mentions in documents; case and white space don't matter."""
    return {_seen_key(entity) for document in documents for section in document.sections for entity in section.entities}


def group_scores(
    pairs: Sequence[SectionPair], sections: Sequence[SectionFacts], seen: set[tuple[str, str]] | None
) -> dict[str, dict[str, dict[str, Any]] | None]:
    """Scores groups of entities, strictly.

    A gold entity is in the group that it belongs to, and so is a wrong prediction; a right one is in that of its gold
    entity.

    Args:
        pairs: What is there, and what was found.
        sections: What is known of each section.
        seen: The mentions of the training documents; `None` if they are not known.

    Returns:
        What the groups are of → group → `precision`, `recall`, `f1`, `support`, `predicted`; groups are sorted.
    """
    mentions = mention_pairs(pairs, ())
    of_gold, of_predicted = match(mentions, "strict")
    counted = [
        (entity, section, status)
        for side, statuses, wanted in (
            (mentions.gold, of_gold, (FOUND, MISSED)),
            (mentions.predicted, of_predicted, (WRONG,)),
        )
        for entity, section, status in zip(side.entities, side.section.tolist(), statuses.tolist(), strict=True)
        if status in wanted
    ]

    def scores(group_of: Callable[[Entity, int], str]) -> dict[str, dict[str, Any]]:
        counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(3, np.int64))
        for entity, section, status in counted:
            counts[group_of(entity, section)][status] += 1
        return {
            name: {
                **rates_json(one),
                "support": int(one[FOUND] + one[MISSED]),
                "predicted": int(one[FOUND] + one[WRONG]),
            }
            for name, one in sorted(counts.items())
        }

    return {
        "seen in training": None
        if seen is None
        else scores(lambda entity, _: "seen" if _seen_key(entity) in seen else "unseen"),
        "length in words": scores(lambda entity, _: _length(entity)),
        "section": scores(lambda _, section: sections[section].name),
        "provenance": scores(lambda _, section: sections[section].who),
    }


def _seen_key(entity: Entity) -> tuple[str, str]:
    return entity.label, " ".join(entity.match.split()).casefold()


def _length(entity: Entity) -> str:
    words = max(1, len(entity.match.split()))
    return str(words) if words < _LONGEST_WORDS else f"{_LONGEST_WORDS}+"
