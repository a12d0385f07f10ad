"""Whether an exported model decides as the original does: logits, decisions on tokens, entities, speed."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nertool.artefacts import Decisions
from nertool.decoding import Floats
from nertool.documents import Entity
from nertool.engines import Tagger
from nertool.inference import Prepared, find_entities, token_logits


@dataclass(frozen=True, slots=True)
class Parity:
    """How near two runs over the same tokens are.

    Args:
        largest_difference: Of two logits.
        mean_difference: Of two logits, absolute.
        equal_decisions: Of the decisions (one per token and channel) that are "yes" in either, the share that is so
            in both, in [0, 1]; 1 where there is none.
        equal_entities: Strict F1 of the one's entities against the other's, in [0, 1]; 1 where there is none.
        decisions: How many decisions were compared.
        entities: How many entities the original finds.
    """

    largest_difference: float
    mean_difference: float
    equal_decisions: float
    equal_entities: float
    decisions: int
    entities: int

    def to_json(self) -> dict[str, Any]:
        """Returns it for `nertool.json`, rounded."""
        return {key: round(value, 5) if isinstance(value, float) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Reference:
    """What the original says of some texts.

    Args:
        prepared: The texts.
        logits: Its logits, `(tokens, channels)` float32.
        entities: Its entities, of each section.
    """

    prepared: Prepared
    logits: Floats
    entities: list[tuple[Entity, ...]]


def refer(original: Tagger, prepared: Prepared) -> Reference:
    """Runs the original."""
    logits = token_logits(original, prepared)
    return Reference(prepared, logits, find_entities(original, prepared, logits))


def compare(reference: Reference, exported: Tagger) -> Parity:
    """Runs an exported model over the same texts, and compares."""
    logits = token_logits(exported, reference.prepared)
    found = find_entities(exported, reference.prepared, logits)
    # What is exported for KAZU lacks the begin channels.
    channels = min(logits.shape[1], reference.logits.shape[1])
    return parity(reference.logits[:, :channels], logits[:, :channels], exported.decisions, reference.entities, found)


def parity(
    original: Floats,
    exported: Floats,
    decisions: Decisions,
    original_entities: Sequence[Sequence[Entity]],
    exported_entities: Sequence[Sequence[Entity]],
) -> Parity:
    """Compares the logits of the same tokens, `(tokens, channels)`, and the entities of the same sections."""
    cuts = np.tile(decisions.logit_thresholds, 2)[: original.shape[1]]  # a begin channel has its class's threshold
    first, second = original >= cuts, exported >= cuts
    either = int((first | second).sum())
    sides = [
        {(number, one.label, one.spans) for number, found in enumerate(entities) for one in found}
        for entities in (original_entities, exported_entities)
    ]
    total = len(sides[0]) + len(sides[1])
    differences = np.abs(original - exported)
    return Parity(
        largest_difference=float(differences.max(initial=0.0)),
        mean_difference=float(differences.mean()) if differences.size else 0.0,
        equal_decisions=int((first & second).sum()) / either if either else 1.0,
        equal_entities=2 * len(sides[0] & sides[1]) / total if total else 1.0,
        decisions=either,
        entities=len(sides[0]),
    )


def tokens_per_second(taggers: dict[str, Tagger], prepared: Prepared) -> dict[str, int]:
    """Returns how many real tokens each processes per second: the best of three rounds, in turns."""
    best = dict.fromkeys(taggers, 0)
    for _ in range(3):
        for name, tagger in taggers.items():
            begun = time.perf_counter()
            token_logits(tagger, prepared)
            best[name] = max(best[name], round(len(prepared.tokens.ids) / (time.perf_counter() - begun)))
    return best
