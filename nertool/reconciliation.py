"""What became of every answer and every mention: a ledger that adds up."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from nertool.alignment import WAYS

_EXAMPLES = 5
_WORDINGS_LISTED = 100


@dataclass
class Ledger:
    """Counts of answers, mentions and entities; ledgers add up with `add`.

    A mention is one string with one class in one answer. These hold for the totals, and in each class for what has one;
    `check` makes sure of it, from counts that are taken where things come in:

    - all pieces = answered (`cut off` ones too) + unusable + missing;
    - mentions = malformed + unknown class + repeated + not in the text + found (each way);
    - places = entities + same place (as another mention's) + left out (with their section); a mention may have
      several.

    Args:
        pieces: How many pieces of text there were (`given`), and what became of them: `answered`, `cut off` (answered
            in part), `unusable`, `missing`.
        mentions: (class or "", what became of it) → count.
        places: (class, `entities`, `same place` or `left out`) → count.
        unknown: Wordings of classes that aren't known → count.
        examples: What became of it → some of them.
        given_mentions: How many mentions the answers held.
        found_places: How many places the search found.
    """

    pieces: Counter[str] = field(default_factory=Counter)
    mentions: Counter[tuple[str, str]] = field(default_factory=Counter)
    places: Counter[tuple[str, str]] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    given_mentions: int = 0
    found_places: int = 0

    def add(self, other: "Ledger") -> None:
        """Takes over the counts of another ledger, and its examples as long as there is room."""
        self.pieces.update(other.pieces)
        self.mentions.update(other.mentions)
        self.places.update(other.places)
        self.unknown.update(other.unknown)
        self.given_mentions += other.given_mentions
        self.found_places += other.found_places
        for outcome, examples in other.examples.items():
            for example in examples:
                self.give_example(outcome, example)

    def give_example(self, outcome: str, example: str) -> None:
        """Keeps an example, unless there are enough."""
        known = self.examples[outcome]
        if len(known) < _EXAMPLES and example not in known:
            known.append(example)

    def counts(self) -> dict[str, int]:
        """Returns the totals that aren't 0, in a fixed order, as each document's metadata has them."""
        outcomes = Counter[str]()
        for (_, outcome), count in self.mentions.items():
            outcomes[outcome] += count
        places = Counter[str]()
        for (_, outcome), count in self.places.items():
            places[outcome] += count
        totals = {"mentions": self.given_mentions, **{name: outcomes[name] for name in OUTCOMES}}
        totals |= {"places": self.found_places, **{name: places[name] for name in PLACES}}
        return {name: count for name, count in totals.items() if count}

    def piece_counts(self) -> dict[str, int]:
        """Returns how many pieces there were, and what became of them."""
        outcomes = ("answered", "cut off", "unusable", "missing")
        return {"all": self.pieces["given"], **{name: self.pieces[name] for name in outcomes}}

    def check(self) -> None:
        """Makes sure that nothing was lost without being counted.

        Raises:
            RuntimeError: If the counts don't add up: a defect of nertool.
        """
        sums = {
            "pieces": (self.pieces["given"], sum(self.pieces[name] for name in ("answered", "unusable", "missing"))),
            "mentions": (self.given_mentions, self.mentions.total()),
            "places": (self.found_places, self.places.total()),
        }
        for name, (given, accounted) in sums.items():
            if given != accounted:
                raise RuntimeError(f"of {given:,} {name} {accounted:,} are accounted for")

    def to_json(self) -> dict[str, Any]:
        """Returns everything for `--json` and `reconciliation.json`."""
        totals = self.counts()
        classes = sorted({label for label, _ in self.mentions if label})
        per_class = {}
        for label in classes:
            own = {name: self.mentions[label, name] for name in OUTCOMES}
            placed = {name: self.places[label, name] for name in PLACES}
            row = {"mentions": sum(own.values()), **own, "places": sum(placed.values()), **placed}
            per_class[label] = {name: count for name, count in row.items() if count}
        return {
            "pieces": self.piece_counts(),
            "totals": {name: totals.get(name, 0) for name in TOTALS},
            "classes": per_class,
            "unknown_classes": dict(self.unknown.most_common(_WORDINGS_LISTED)),
            "examples": {name: self.examples[name] for name in sorted(self.examples)},
        }


OUTCOMES = ("malformed", "unknown class", "repeated", "not in the text", *WAYS)
PLACES = ("same place", "left out", "entities")
TOTALS = ("mentions", *OUTCOMES, "places", *PLACES)
