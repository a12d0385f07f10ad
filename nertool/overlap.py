"""Pairs gold with predicted entities that share a character, each at most once, as many pairs as possible."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import accumulate
from operator import itemgetter

import numpy as np

from nertool.documents import Span

Spans = tuple[Span, ...]


def match_overlapping(golds: Sequence[Spans], predictions: Sequence[Spans]) -> dict[int, int]:
    """Returns a maximum matching, predicted → gold number; the offsets alone decide which of several it is.

    Args:
        golds: The spans of each gold entity of one class in one section, no two alike.
        predictions: The spans of each predicted one.
    """
    gold_of = _pair_first_spans(golds, predictions)
    if any(len(spans) > 1 for spans in (*golds, *predictions)):
        _add_pairs(gold_of, golds, predictions)
    return gold_of


def _pair_first_spans(golds: Sequence[Spans], predictions: Sequence[Spans]) -> dict[int, int]:
    """Returns a maximum matching, predicted → gold number, of the entities' first spans, in O(n log n).

    The span x that ends first is paired with the one y that ends first of the opposite spans that overlap it, and so on
    with the rest. Some maximum matching has x-y: if one has only x or only y in a pair, x-y can replace that pair; if
    it has x-b and a-y, then x-y and a-b can, as a begins before y ends, hence before b ends, and b begins before x
    ends, hence before a ends.
    """
    # All spans are in the tuples so that the order of equal first spans doesn't depend on that of the entities.
    spans = [(entity[0].end, entity[0].start, entity, number) for number, entity in enumerate(golds)]
    spans += [(entity[0].end, entity[0].start, entity, ~number) for number, entity in enumerate(predictions)]  # below 0
    to_begin = sorted(spans, key=itemgetter(1), reverse=True)
    begun: tuple[list[tuple[int, int, Spans, int]], ...] = ([], [])  # heaps: gold, predicted
    done: set[int] = set()
    gold_of: dict[int, int] = {}
    for end, _, _, x in sorted(spans):
        while to_begin and to_begin[-1][1] < end:
            span = to_begin.pop()
            heappush(begun[span[3] < 0], span)
        if x not in done:
            done.add(x)
            opposite = begun[x >= 0]
            while opposite and opposite[0][3] in done:
                heappop(opposite)
            if opposite:
                y = heappop(opposite)[3]
                done.add(y)
                gold_of[~min(x, y)] = max(x, y)
    return gold_of


def _add_pairs(gold_of: dict[int, int], golds: Sequence[Spans], predictions: Sequence[Spans]) -> None:
    """Extends a matching, predicted → gold number, to a maximum one of entities with any number of spans.

    Hopcroft and Karp (1973): each round measures how many steps an unmatched gold entity is from the nearest unmatched
    prediction, then turns alternating paths of that length. O(√n) rounds, each of which looks O(n) times for an
    overlapping prediction, by a vectorised scan of those spans that begin before and may end after.
    """
    parts = sorted((*span, spans, number) for number, spans in enumerate(predictions) for span in spans)
    starts = [start for start, _, _, _ in parts]
    furthest_ends = list(accumulate((end for _, end, _, _ in parts), max))
    ends = np.array([end for _, end, _, _ in parts])
    owners = np.array([number for _, _, _, number in parts])
    predicted_of = {gold: prediction for prediction, gold in gold_of.items()}
    none = -1  # as a gold number: unmatched; as steps: not reached yet, or taken in this round
    steps = np.zeros_like(ends)

    def take(gold: int, wanted: int, then: int) -> int | None:
        """Returns an overlapping prediction that is `wanted` steps away, and says that it is `then` steps away."""
        for start, end in golds[gold]:
            near = slice(bisect_right(furthest_ends, start), bisect_left(starts, end))
            if near.start < near.stop:
                hits = (ends[near] > start) & (steps[near] == wanted)
                first = hits.argmax()
                if hits[first]:
                    prediction = owners[near][first]
                    steps[owners == prediction] = then
                    return int(prediction)
        return None

    while True:
        steps[:] = none
        unmatched = sorted(set(range(len(golds))).difference(predicted_of), key=golds.__getitem__)
        level = unmatched
        step = 0
        while level and none not in level:
            level = [gold_of.get(p, none) for gold in level for p in iter(partial(take, gold, none, step), None)]
            step += 1
        if not level:
            return
        for gold in unmatched:
            path = [gold]
            while path:
                prediction = take(path[-1], len(path) - 1, none)
                if prediction is None:
                    path.pop()
                elif prediction in gold_of:
                    path.append(gold_of[prediction])
                else:
                    partners = [*(predicted_of[matched] for matched in path[1:]), prediction]
                    predicted_of.update(zip(path, partners, strict=True))
                    gold_of.update(zip(partners, path, strict=True))
                    break
