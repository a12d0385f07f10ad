"""What the model could express at best: encode the gold entities, decode them again, and explain every loss."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nertool.decoding import decode
from nertool.documents import Section
from nertool.labels import LabelScheme
from nertool.targets import DISCONTINUOUS, INSIDE_WORD, MERGED, NO_TOKEN, OTHER_CLASS, Spans
from nertool.windows import Bools, Tokens


@dataclass
class Representation:
    """Counts of entities that a perfect model gives back exactly, and of those that it can't, by reason.

    Args:
        entities: Different entities (label and spans) of the sections.
        kept: Those that decoding gives back exactly.
        invented: Decoded spans that are no entity, such as two merged ones.
        losses: Reason → count; adds up with `kept` to `entities`.
        touching: Entities that touch or overlap another one of their class.
        examples: Reason → a few mentions.
    """

    entities: int = 0
    kept: int = 0
    invented: int = 0
    losses: Counter[str] = field(default_factory=Counter)
    touching: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def ceiling(self) -> float | None:
        """Strict micro F1 of a model that reproduces its targets exactly; None without entities."""
        total = self.entities + self.kept + self.invented
        return 2 * self.kept / total if total else None

    def add(self, other: "Representation") -> None:
        """Adds the counts of other sections."""
        self.entities += other.entities
        self.kept += other.kept
        self.invented += other.invented
        self.losses.update(other.losses)
        self.touching += other.touching
        for reason, mentions in other.examples.items():
            known = self.examples.setdefault(reason, [])
            known += [mention for mention in mentions if mention not in known][: 3 - len(known)]

    def to_json(self) -> dict[str, Any]:
        """Returns the counts for `cache.json` and `--json`."""
        return {
            "entities": self.entities,
            "kept": self.kept,
            "invented": self.invented,
            "losses": dict(sorted(self.losses.items())),
            "touching": self.touching,
            "ceiling_micro_f1": self.ceiling,
            "examples": dict(sorted(self.examples.items())),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Representation":
        """Reads what `to_json` wrote."""
        fields = ("entities", "kept", "invented", "touching", "examples")
        return cls(losses=Counter(value["losses"]), **{name: value[name] for name in fields})


def represent(
    sections: Sequence[Section], tokens: Tokens, spans: Spans, targets: Bools, scheme: LabelScheme
) -> Representation:
    """Decodes the targets of a batch of sections and says which gold entities got lost, and why.

    Args:
        sections: The sections.
        tokens: Their tokens.
        spans: Where their entities are.
        targets: What `paint` made of them, `(tokens, channels)` bool.
        scheme: What the channels mean.
    """
    perfect = np.where(targets, 1, -1).astype(np.float32)
    decoded = decode(perfect, tokens, scheme, [0.5] * len(scheme.labels), switch_cost=0.0)
    found = set(
        zip(decoded.section.tolist(), decoded.label.tolist(), decoded.start.tolist(), decoded.end.tolist(), strict=True)
    )
    result = Representation()
    index = {label: i for i, label in enumerate(scheme.labels)}
    reachable = dict(zip(spans.entity.tolist(), (spans.first < spans.last).tolist(), strict=True))
    exact = dict(zip(spans.entity.tolist(), spans.exact.tolist(), strict=True))
    number = -1
    for section_number, section in enumerate(sections):
        seen: set[tuple[str, tuple[Any, ...]]] = set()
        kept = 0
        for entity in section.entities:
            number += 1
            if (entity.label, entity.spans) in seen:
                continue
            seen.add((entity.label, entity.spans))
            if entity.label not in index:
                reason = OTHER_CLASS
            elif len(entity.spans) > 1:
                reason = DISCONTINUOUS
            elif (section_number, index[entity.label], entity.start, entity.end) in found:
                kept += 1
                continue
            elif not reachable[number]:
                reason = NO_TOKEN
            elif not exact[number]:
                reason = INSIDE_WORD
            else:
                reason = MERGED
            result.losses[reason] += 1
            examples = result.examples.setdefault(reason, [])
            if len(examples) < 3 and entity.match not in examples:
                examples.append(entity.match)
        result.entities += len(seen)
        result.kept += kept
        result.touching += _touching(section)
    result.invented = len(found) - result.kept
    return result


def _touching(section: Section) -> int:
    """Counts the entities that another one of their class touches (nothing but a blank between) or overlaps."""
    by_label: dict[str, list[tuple[int, int]]] = {}
    for label, spans in {(entity.label, entity.spans) for entity in section.entities}:
        by_label.setdefault(label, []).append((spans[0].start, max(span.end for span in spans)))
    count = 0
    for extents in by_label.values():
        extents.sort()
        touched = [False] * len(extents)
        furthest, owner = -1, -1
        for i, (start, end) in enumerate(extents):
            if owner >= 0 and (start <= furthest or not section.text[furthest:start].strip()):
                touched[i] = touched[owner] = True
            if end > furthest:
                furthest, owner = end, i
        count += sum(touched)
    return count
