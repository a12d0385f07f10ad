"""What kind each error is: what a model does wrong, beyond how often.

Every gold entity that is missed and every prediction that is wrong, under `strict`, is in exactly one `ErrorItem`. What
is right is in none, even where a wrong entity lies over it: a span may rightly have two classes, and an entity may lie
in another one.

Three steps, each with what the one before has left, find the least that is wrong with an entity:

1. *The class is right, the place isn't*: entities of one class that share characters are paired one to one, the most
   similar first, and so that as many as possible have a partner. What is still alone joins the partner that it is most
   similar to: several predictions over one gold entity (`split`), or one over several (`merged`). So a gold entity that
   shares a character with a wrong prediction of its class is always an error of place.
2. *The place is right, the class isn't*: equal spans.
3. *Neither is right*: entities of different classes that share characters, paired as in step 1.

The rest is missed or invented. How similar two entities are is the Jaccard index of their characters; between equally
similar ones the offsets decide, so the order in which entities are listed never matters.
Source: the kinds are close to those of the fifth Message Understanding Conference (Chinchor and Sundheim 1993) and of
TIDE (Bolya et al. 2020), made for entities that overlap, nest and have several parts.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal, get_args

from nertool.documents import Entity, Span
from nertool.matching import MISSED, WRONG, SectionPair, match, mention_pairs
from nertool.overlap import Spans

Kind = Literal[
    "missed",
    "invented",
    "wrong class",
    "too long",
    "too short",
    "shifted",
    "split",
    "merged",
    "wrong class and boundary",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
MEANINGS: dict[Kind, str] = {
    "missed": "a gold entity that nothing was found for",
    "invented": "a prediction where no gold entity was left to find",
    "wrong class": "the right place, with another class",
    "too long": "the right class; the prediction holds the gold entity and more",
    "too short": "the right class; the prediction is a part of the gold entity",
    "shifted": "the right class; both share characters, and neither holds the other",
    "split": "the right class; several predictions over one gold entity",
    "merged": "the right class; one prediction over several gold entities",
    "wrong class and boundary": "another class, and only some characters in common",
}
# In the confusion of classes: no entity.
NONE = "(none)"


@dataclass(frozen=True, slots=True)
class ErrorItem:
    """One error.

    Args:
        section: The index of its section among those scored.
        kind: What is wrong.
        gold: The strictly missed gold entities of it, maybe none; sorted by place.
        predicted: The strictly wrong predictions of it, maybe none; sorted by place.
    """

    section: int
    kind: Kind
    gold: tuple[Entity, ...]
    predicted: tuple[Entity, ...]

    @property
    def label(self) -> str:
        """The class that it is an error of: that of the gold entities, if there are any."""
        return (self.gold or self.predicted)[0].label


def find_errors(pairs: Sequence[SectionPair]) -> list[ErrorItem]:
    """Finds the errors in all sections, sorted by section and place.

    Takes time in proportion to the entities, and to the pairs of wrong ones that overlap.
    """
    mentions = mention_pairs(pairs, ())
    missed: dict[int, list[Entity]] = defaultdict(list)
    wrong: dict[int, list[Entity]] = defaultdict(list)
    of_gold, of_predicted = match(mentions, "strict")
    for side, rows, errors in (
        (mentions.gold, (of_gold == MISSED).nonzero()[0], missed),
        (mentions.predicted, (of_predicted == WRONG).nonzero()[0], wrong),
    ):
        for row, section in zip(rows.tolist(), side.section[rows].tolist(), strict=True):
            errors[section].append(side.entities[row])
    return [
        item
        for section in sorted({*missed, *wrong})
        for item in _errors_of_section(section, missed.get(section, []), wrong.get(section, []))
    ]


def summarise_errors(items: Iterable[ErrorItem], found: Mapping[str, int]) -> dict[str, Any]:
    """Counts the errors by kind, and which class was taken for which.

    In the confusion each gold entity counts once in the row of its class, and each prediction once in the column of its
    own; so rows add up to the support and columns to the predictions. On the diagonal is what has the right class,
    whether its place is right or not; of a split or merged entity one pair, and the others are in `(none)`.

    Args:
        items: The errors.
        found: Class → gold entities that were found.

    Returns:
        `kinds`: kind → `gold`, `predicted` (entities) and `classes` (class → errors); `confusion`: class of the gold
        entity → class of the prediction → count.
    """
    kinds: dict[Kind, dict[str, Any]] = {kind: {"gold": 0, "predicted": 0, "classes": Counter()} for kind in KINDS}
    confusion: dict[str, Counter[str]] = defaultdict(Counter)
    for label, count in found.items():
        if count:
            confusion[label][label] += count
    for item in items:
        facts = kinds[item.kind]
        facts["gold"] += len(item.gold)
        facts["predicted"] += len(item.predicted)
        facts["classes"][item.label] += 1
        gold, predicted = (side[0].label if side else NONE for side in (item.gold, item.predicted))
        confusion[gold][predicted] += 1
        for entity in item.gold[1:]:
            confusion[entity.label][NONE] += 1
        for entity in item.predicted[1:]:
            confusion[NONE][entity.label] += 1
    return {
        "kinds": {kind: {**facts, "classes": dict(sorted(facts["classes"].items()))} for kind, facts in kinds.items()},
        "confusion": {label: dict(sorted(row.items())) for label, row in sorted(confusion.items())},
    }


def _errors_of_section(section: int, missed: Sequence[Entity], wrong: Sequence[Entity]) -> list[ErrorItem]:
    golds, predictions = (_Side(entities) for entities in (missed, wrong))
    items: list[ErrorItem] = []

    def add(kind: Kind, gold: Sequence[int] = (), predicted: Sequence[int] = ()) -> None:
        items.append(ErrorItem(section, kind, golds.take(gold), predictions.take(predicted)))

    if golds.left and predictions.left:
        for label in sorted({golds.entities[g].label for g in golds.left}):
            of_label = [side.of_label(label) for side in (golds, predictions)]
            for gold, predicted in _stars(_similarities(golds, predictions, *of_label)):
                add(_boundary_kind(golds, predictions, gold, predicted), gold, predicted)
        by_place: dict[Spans, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for i, side in enumerate((golds, predictions)):
            for number in side.left:
                by_place[side.spans[number]][i].append(number)
        for together in by_place.values():
            for g, p in zip(*together, strict=False):
                add("wrong class", [g], [p])
        for g, p in _matching(_similarities(golds, predictions, sorted(golds.left), sorted(predictions.left))).items():
            add("wrong class and boundary", [g], [p])
    for g in sorted(golds.left):
        add("missed", [g])
    for p in sorted(predictions.left):
        add("invented", [], [p])
    return sorted(items, key=_place)


class _Side:
    """The entities of one side that are in no error yet, by their numbers, which follow from place and class."""

    def __init__(self, entities: Sequence[Entity]) -> None:
        self.entities = sorted(entities, key=lambda entity: (_spans(entity), entity.label))
        self.spans = list(map(_spans, self.entities))
        self.characters = list(map(_characters, self.spans))
        self.sizes = list(map(_size, self.characters))
        self.left = dict.fromkeys(range(len(self.entities)))

    def of_label(self, label: str) -> list[int]:
        return [number for number in self.left if self.entities[number].label == label]

    def take(self, numbers: Iterable[int]) -> tuple[Entity, ...]:
        numbers = sorted(numbers)
        for number in numbers:
            del self.left[number]
        return tuple(self.entities[number] for number in numbers)


# Gold number → the predictions that share a character with it, with their similarity.
_Similarities = Mapping[int, Mapping[int, float]]


def _similarities(
    golds: _Side, predictions: _Side, some_golds: Sequence[int], some_predictions: Sequence[int]
) -> _Similarities:
    parts = sorted((*part, number) for number in some_predictions for part in predictions.characters[number])
    starts = [start for start, _, _ in parts]
    furthest_ends = list(accumulate((end for _, end, _ in parts), max))
    found: dict[int, dict[int, float]] = {}
    for gold in some_golds:
        shared: Counter[int] = Counter()
        for start, end in golds.characters[gold]:
            near = slice(bisect_right(furthest_ends, start), bisect_left(starts, end))
            for other_start, other_end, number in parts[near]:
                if other_end > start:
                    shared[number] += min(end, other_end) - max(start, other_start)
        if shared:
            found[gold] = {
                number: count / (golds.sizes[gold] + predictions.sizes[number] - count)
                for number, count in shared.items()
            }
    return found


def _matching(similarities: _Similarities) -> dict[int, int]:
    """Pairs gold with predicted entities, the most similar first, then changes partners until none more can be paired.

    Returns:
        Gold → prediction: a maximum matching.
    """
    by_similarity = sorted((-value, gold, p) for gold, row in similarities.items() for p, value in row.items())
    predicted_of: dict[int, int] = {}
    gold_of: dict[int, int] = {}
    choices: dict[int, list[int]] = defaultdict(list)
    for _, gold, p in by_similarity:
        choices[gold].append(p)
        if gold not in predicted_of and p not in gold_of:
            predicted_of[gold], gold_of[p] = p, gold
    reached_from: dict[int, int] = {}  # those of a search in vain are of no use to later ones either
    for gold in sorted(similarities.keys() - predicted_of.keys()):
        reached_now: dict[int, int] = {}
        queue = [gold]
        for one in queue:
            new = [p for p in choices[one] if p not in reached_from and p not in reached_now]
            reached_now.update(dict.fromkeys(new, one))
            free = next((p for p in new if p not in gold_of), None)
            if free is not None:
                while free is not None:
                    taker = reached_now[free]
                    gold_of[free] = taker
                    before = predicted_of.get(taker)
                    predicted_of[taker] = free
                    free = before
                break
            queue += [gold_of[p] for p in new]
        else:
            reached_from |= reached_now
    return predicted_of


def _stars(similarities: _Similarities) -> list[tuple[list[int], list[int]]]:
    """Groups all gold and predicted entities that share characters: one with one, or one with several.

    Those without a partner join the one that they are most similar to. All that they share characters with have
    partners, as the matching is a maximum one; and not both of a pair are joined, for then three could have been paired
    otherwise.
    """
    predicted_of = _matching(similarities)
    members = {gold: ([gold], [p]) for gold, p in predicted_of.items()}
    gold_of = {p: gold for gold, p in predicted_of.items()}
    closest: dict[int, tuple[float, int]] = {}
    for gold, row in sorted(similarities.items()):
        if gold not in predicted_of:
            partner = min(row, key=lambda p: (-row[p], p))
            members[gold_of[partner]][0].append(gold)
        for p, value in row.items():
            if p not in gold_of:
                closest[p] = min(closest.get(p, (1.0, gold)), (-value, gold))
    for p, (_, gold) in closest.items():
        members[gold][1].append(p)
    return list(members.values())


def _boundary_kind(golds: _Side, predictions: _Side, gold: Sequence[int], predicted: Sequence[int]) -> Kind:
    if len(predicted) > 1:
        return "split"
    if len(gold) > 1:
        return "merged"
    one, other = golds.characters[gold[0]], predictions.characters[predicted[0]]
    union = _size(_characters(tuple(chain(one, other))))
    if union == _size(one) == _size(other):
        return "shifted"  # the same characters, in other parts
    return "too long" if union == _size(other) else "too short" if union == _size(one) else "shifted"


def _spans(entity: Entity) -> Spans:
    return entity.spans if len(entity.spans) == 1 else tuple(sorted(set(entity.spans)))


def _characters(spans: Spans) -> Spans:
    """Returns the same characters as spans that neither overlap nor touch, in order."""
    if len(spans) == 1:
        return spans
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1].end:
            merged[-1] = Span(merged[-1].start, max(end, merged[-1].end))
        else:
            merged.append(Span(start, end))
    return tuple(merged)


def _size(characters: Spans) -> int:
    return sum(end - start for start, end in characters)


def _place(item: ErrorItem) -> tuple[Any, ...]:
    entities = item.gold or item.predicted
    return _spans(entities[0]), entities[0].label, not item.gold
