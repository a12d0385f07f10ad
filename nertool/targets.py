"""Entities → what the model has to output for each token, and what of them can't be output at all."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nertool.documents import Section
from nertool.labels import LabelScheme
from nertool.windows import Bools, Tokens

DISCONTINUOUS = "discontinuous"
NO_TOKEN = "no token covers it"
INSIDE_WORD = "begins or ends inside a word"
MERGED = "touches or overlaps another entity of its class"
OTHER_CLASS = "class is not in the label list"


@dataclass(frozen=True, slots=True)
class Spans:
    """The spans of the known entities of a batch of sections; all `(spans,)`.

    Args:
        entity: Index of the entity in the order of the sections.
        label: Index of its class.
        first: First token that the span touches; int64.
        last: One past the last such token; int64. Not greater than `first` where no token covers the span.
        begins: Whether the span is the first of its entity.
        exact: Whether the tokens' characters are exactly the span's, at word borders.
    """

    entity: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    begins: Bools
    exact: Bools


def locate(sections: Sequence[Section], tokens: Tokens, scheme: LabelScheme) -> Spans:
    """Finds the tokens of every entity with binary search, without a loop over tokens × entities.

    A token that a span touches counts as inside, even if only a part of it does.
    """
    index = {label: i for i, label in enumerate(scheme.labels)}
    # All sections side by side on one number line, one character apart, so that one search serves them all.
    shifts = np.zeros(len(sections), np.int64)
    np.cumsum([len(section.text) + 1 for section in sections[:-1]], out=shifts[1:])
    token_shifts = np.repeat(shifts, np.diff(tokens.section_bounds))
    starts, ends = tokens.starts + token_shifts, tokens.ends + token_shifts
    rows = [
        (number, index[entity.label], span.start + shift, span.end + shift, part == 0)
        for number, (entity, shift) in enumerate(
            (entity, shift)
            for section, shift in zip(sections, shifts.tolist(), strict=True)
            for entity in section.entities
        )
        if entity.label in index
        for part, span in enumerate(entity.spans)
    ]
    table = np.array(rows, np.int64).reshape(-1, 5)
    first = np.searchsorted(ends, table[:, 2], side="right")
    last = np.searchsorted(starts, table[:, 3], side="left")
    found = first < last
    word_ends = np.zeros(len(starts), np.bool_)
    if len(starts):
        solid = np.where(tokens.ends > tokens.starts, np.arange(len(starts)), 0)
        word_ends[np.maximum.reduceat(solid, np.flatnonzero(tokens.word_starts))] = True
    exact = np.zeros(len(table), np.bool_)
    exact[found] = (
        (starts[first[found]] == table[found, 2])
        & (ends[last[found] - 1] == table[found, 3])
        & tokens.word_starts[first[found]]
        & word_ends[last[found] - 1]
    )
    return Spans(table[:, 0], table[:, 1], first, last, table[:, 4].astype(np.bool_), exact)


def paint(spans: Spans, tokens: int, scheme: LabelScheme) -> Bools:
    """Returns the targets, `(tokens, channels)` bool."""
    found = spans.first < spans.last
    edges = np.zeros((tokens + 1, len(scheme.labels)), np.int32)
    np.add.at(edges, (spans.first[found], spans.label[found]), 1)
    np.add.at(edges, (spans.last[found], spans.label[found]), -1)
    inside = np.cumsum(edges[:-1], axis=0) > 0
    if not scheme.begin:
        return inside
    begin = np.zeros_like(inside)
    starting = found & spans.begins
    begin[spans.first[starting], spans.label[starting]] = True
    return np.concatenate([inside, begin], axis=1)
