"""Which gold entities were found and which predictions are right, for all sections at once.

Nearly all entities have one span and overlap at most one entity of the other side, so they are matched as columns of
numbers; what is left over goes through Python, one class of one section at a time.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from math import inf
from operator import attrgetter
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from nertool.documents import Entity
from nertool.overlap import Spans, match_overlapping

Scheme = Literal["strict", "overlap", "kazu"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

# What an entity counts as.
FOUND, WRONG, MISSED, UNCOUNTED = 0, 1, 2, -1

Mention = tuple[Spans, str]  # with its text
Integers = NDArray[np.int64]
Statuses = NDArray[np.int8]


class SectionPair(NamedTuple):
    """One section: the number of its document (the bootstrap draws whole documents), what is there, what was found."""

    document: int
    gold: Sequence[Entity]
    predicted: Sequence[Entity]


@dataclass(frozen=True, slots=True)
class Mentions:
    """Entities of many sections as columns of numbers.

    Args:
        entities: The entities, section by section, `(n,)`.
        section: The number of each one's section, `(n,)`.
        label: The number of its class, `(n,)`.
        group: Numbers pairs of section and class; only entities of one group can match, `(n,)`.
        start: Where its first span begins, counted on through all groups, so that no two groups overlap, `(n,)`.
        end: Where it ends, `(n,)`.
        several: Whether it is anything but a single span, `(n,)` bool.
    """

    entities: list[Entity]
    section: Integers
    label: Integers
    group: Integers
    start: Integers
    end: Integers
    several: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MentionPairs:
    """What there is to match.

    Args:
        labels: The classes by their numbers, sorted.
        groups: How many groups there can be: sections × classes.
        gold: The gold entities.
        predicted: The predicted ones.
    """

    labels: tuple[str, ...]
    groups: int
    gold: Mentions
    predicted: Mentions


def mention_pairs(pairs: Sequence[SectionPair], labels: Iterable[str]) -> MentionPairs:
    """Makes columns of the entities of all sections; `labels` are classes to number beside those that occur."""
    sides = [[pair.gold for pair in pairs], [pair.predicted for pair in pairs]]
    entities = [list(chain.from_iterable(side)) for side in sides]
    names = [list(map(attrgetter("label"), side)) for side in entities]
    known = tuple(sorted({*labels, *names[0], *names[1]}))
    number = {label: i for i, label in enumerate(known)}
    spans = [list(map(attrgetter("spans"), side)) for side in entities]
    firsts, several = zip(*map(_first_spans, spans), strict=True)
    # Two more than the last offset: KAZU's touching spans must not reach into the next group.
    room = 2 + max((int(side.max()) for side in firsts if side.size), default=0)
    columns = []
    for i, side in enumerate(sides):
        section = np.repeat(np.arange(len(side)), np.fromiter(map(len, side), np.int64, len(side)))
        label = np.fromiter(map(number.__getitem__, names[i]), np.int64, len(names[i]))
        group = section * len(known) + label
        start, end = group * room + firsts[i].T
        columns.append(Mentions(entities[i], section, label, group, start, end, several[i]))
    return MentionPairs(known, len(pairs) * len(known), *columns)


def match(pairs: MentionPairs, scheme: Scheme) -> tuple[Statuses, Statuses]:
    """Says what each entity counts as.

    - `strict`: a prediction is right if a gold entity has exactly its spans.
    - `overlap`: right if it is paired with a gold entity with which it shares a character. Each is in one pair at most,
      and as many pairs as possible are made.
    - `kazu`: as KAZU 2.4.0 counts; see `metrics.score`.

    For `strict` and `overlap` the entities of a section are a set: of those with equal spans and class one counts, the
    one with the greatest text.

    Returns:
        For each gold entity `FOUND`, `MISSED` or `UNCOUNTED`; for each predicted one `WRONG` or `UNCOUNTED` (a right
        one is counted as its gold entity).
    """
    gold, predicted = pairs.gold, pairs.predicted
    of_gold = np.full(len(gold.entities), MISSED, np.int8)
    of_predicted = np.full(len(predicted.entities), WRONG, np.int8)
    with_several = np.unique(np.concatenate([gold.group[gold.several], predicted.group[predicted.several]]))
    if scheme == "kazu":
        ends = np.concatenate([gold.start, gold.end])
        of_gold[_is_touched(ends, predicted).reshape(2, -1).any(axis=0)] = FOUND
        of_predicted[_holds_one(predicted, ends)] = UNCOUNTED
        is_predicted = np.zeros(pairs.groups, np.bool_)
        is_predicted[predicted.group] = True
        of_gold[~is_predicted[gold.group]] = UNCOUNTED
        clusters, by_hand = (gold.group, predicted.group), np.intersect1d(with_several, predicted.group)
    else:
        clusters, one_each, by_hand = _clusters(scheme, gold, predicted, with_several)
        of_gold[one_each[clusters[0]]] = FOUND
        of_predicted[one_each[clusters[1]]] = UNCOUNTED
    by_scheme = {"strict": _match_strict, "overlap": _match_overlap, "kazu": _match_kazu}[scheme]
    for golds, predictions in _rows(clusters, by_hand):
        of_gold[golds], of_predicted[predictions] = by_scheme(
            [_mention(gold.entities[row]) for row in golds], [_mention(predicted.entities[row]) for row in predictions]
        )
    return of_gold, of_predicted


def _first_spans(spans: list[Spans]) -> tuple[Integers, NDArray[np.bool_]]:
    """Returns start and end of each entity's first span, `(n, 2)`, and whether it has others, `(n,)`."""
    try:
        firsts = [span for (span,) in spans]  # in most corpora all have one
        several: NDArray[np.bool_] = np.zeros(len(spans), np.bool_)
    except ValueError:
        firsts = [first for first, *_ in spans]
        several = np.array([len(parts) > 1 for parts in spans])
    return np.fromiter(chain.from_iterable(firsts), np.int64, 2 * len(spans)).reshape(-1, 2), several


def _clusters(
    scheme: Scheme, gold: Mentions, predicted: Mentions, with_several: Integers
) -> tuple[tuple[Integers, Integers], NDArray[np.bool_], Integers]:
    """Divides the entities so that only those of one cluster can match: equal or overlapping ones.

    Args:
        scheme: `strict` or `overlap`.
        gold: The gold entities.
        predicted: The predicted ones.
        with_several: The groups in which an entity has several spans; each is one cluster.

    Returns:
        The cluster of each gold and each predicted entity; which clusters are one gold and one predicted entity that
        match, `(clusters,)`; the clusters that have to be matched by hand.
    """
    start, end, group = (
        np.concatenate([getattr(gold, name), getattr(predicted, name)]) for name in ("start", "end", "group")
    )
    order = np.lexsort((end, start))
    start, end = start[order], end[order]
    if scheme == "strict":
        begins = (start[1:] != start[:-1]) | (end[1:] != end[:-1])
    else:
        begins = start[1:] >= np.maximum.accumulate(end)[:-1]
    cluster = np.empty(len(order), np.int64)
    cluster[order] = np.concatenate([np.zeros(min(1, len(order)), np.int64), np.cumsum(begins)])
    whole_groups = np.isin(group, with_several)
    cluster[whole_groups] = len(order) + np.searchsorted(with_several, group[whole_groups])
    clusters = cluster[: len(gold.group)], cluster[len(gold.group) :]
    golds, predictions = (np.bincount(side, minlength=len(order) + len(with_several)) for side in clusters)
    by_hand = (golds > 1) | (predictions > 1)
    by_hand[len(order) :] = True
    return clusters, (golds == 1) & (predictions == 1) & ~by_hand, np.flatnonzero(by_hand)


def _rows(clusters: tuple[Integers, Integers], wanted: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Yields the rows of the gold and of the predicted entities of each wanted cluster."""
    if not len(wanted):
        return
    sides = []
    for cluster in clusters:
        order = np.argsort(cluster, kind="stable")
        bounds = (np.searchsorted(cluster[order], wanted, side).tolist() for side in ("left", "right"))
        sides.append([order[first:last] for first, last in zip(*bounds, strict=True)])
    yield from zip(*sides, strict=True)


def _is_touched(offsets: Integers, by: Mentions) -> NDArray[np.bool_]:
    """Says which offsets lie in an entity, its end included."""
    order = np.argsort(by.start, kind="stable")
    furthest_ends = np.concatenate([[-1], np.maximum.accumulate(by.end[order])])
    touched: NDArray[np.bool_] = furthest_ends[np.searchsorted(by.start[order], offsets, "right")] >= offsets
    return touched


def _holds_one(mentions: Mentions, offsets: Integers) -> NDArray[np.bool_]:
    """Says in which entities, their ends included, one of the offsets lies."""
    offsets = np.append(np.sort(offsets), np.iinfo(np.int64).max)
    holds: NDArray[np.bool_] = offsets[np.searchsorted(offsets, mentions.start)] <= mentions.end
    return holds


def _mention(entity: Entity) -> Mention:
    spans = entity.spans if len(entity.spans) == 1 else tuple(sorted(set(entity.spans)))
    return spans, entity.match


def _representatives(mentions: Sequence[Mention]) -> dict[Spans, int]:
    """Returns spans → number; if equal spans have several texts, that of the greatest, whatever their order."""
    return {mentions[i][0]: i for i in sorted(range(len(mentions)), key=mentions.__getitem__)}


def _match_strict(gold: Sequence[Mention], predicted: Sequence[Mention]) -> tuple[list[int], list[int]]:
    golds, predictions = _representatives(gold), _representatives(predicted)
    of_gold, of_predicted = [UNCOUNTED] * len(gold), [UNCOUNTED] * len(predicted)
    for spans, number in golds.items():
        of_gold[number] = FOUND if spans in predictions else MISSED
    for spans, number in predictions.items():
        of_predicted[number] = UNCOUNTED if spans in golds else WRONG
    return of_gold, of_predicted


def _match_overlap(gold: Sequence[Mention], predicted: Sequence[Mention]) -> tuple[list[int], list[int]]:
    """Makes as many pairs as possible; where there is a choice of whom to leave out, the offsets decide."""
    golds, predictions = _representatives(gold), _representatives(predicted)
    gold_of = match_overlapping(list(golds), list(predictions))
    found = set(gold_of.values())
    of_gold, of_predicted = [UNCOUNTED] * len(gold), [UNCOUNTED] * len(predicted)
    for i, number in enumerate(golds.values()):
        of_gold[number] = FOUND if i in found else MISSED
    for i, number in enumerate(predictions.values()):
        of_predicted[number] = UNCOUNTED if i in gold_of else WRONG
    return of_gold, of_predicted


def _match_kazu(gold: Sequence[Mention], predicted: Sequence[Mention]) -> tuple[list[int], list[int]]:
    """Gives what KAZU's comparison of every gold with every predicted entity gives, in O(n log n)."""
    gold_spans, predicted_spans = {spans for spans, _ in gold}, {spans for spans, _ in predicted}
    gold_offsets = [*sorted(offset for spans in gold_spans if len(spans) == 1 for offset in spans[0]), inf]
    by_start = sorted(spans[0] for spans in predicted_spans if len(spans) == 1)
    starts = [span.start for span in by_start]
    furthest_ends = [-1, *accumulate((span.end for span in by_start), max)]  # [i]: of the first i spans

    def is_found(spans: Spans) -> bool:
        if len(spans) > 1:
            return spans in predicted_spans
        return any(furthest_ends[bisect_right(starts, offset)] >= offset for offset in spans[0])

    def is_right(spans: Spans) -> bool:
        if len(spans) > 1:
            return spans in gold_spans
        return gold_offsets[bisect_left(gold_offsets, spans[0].start)] <= spans[0].end

    of_gold = [FOUND if is_found(spans) else MISSED for spans, _ in gold]
    return of_gold, [UNCOUNTED if is_right(spans) else WRONG for spans, _ in predicted]
