"""The model's logits → spans of characters. Used alike by validation, `evaluate` and `predict`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nertool.labels import LabelScheme
from nertool.windows import Tokens

Floats = npt.NDArray[np.float32]

_NEVER = np.float32(-1e4)  # a logit of what is certainly outside


@dataclass(frozen=True, slots=True)
class DecodedSpans:
    """The spans found in a batch of sections, sorted by section, start, end, label; all `(spans,)`.

    Args:
        section: Index of the section.
        label: Index of the class.
        start: First character in the section.
        end: One past the last character.
        score: Mean probability of the words of the span, in [0, 1]; float64.
    """

    section: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a batch of sections, with what the model says of them.

    Args:
        logits: Mean logit of the word's tokens for each class, `(words, labels)` float32; very low for words of white
            space alone.
        starts: First character of each word in its section, `(words,)` int64.
        ends: One past its last character, `(words,)` int64; equal to the start for words of white space alone.
        sections: Index of its section, `(words,)` int64.
        firsts: Its first token, `(words,)` int64.
    """

    logits: Floats
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    sections: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]


def words_of(logits: Floats, tokens: Tokens) -> Words:
    """Puts tokens together to words; a word's logit is the mean of its tokens'.

    Args:
        logits: `(tokens, labels)` float32.
        tokens: The tokens, at least one.
    """
    firsts = np.flatnonzero(tokens.word_starts)
    # Tokens of white space alone (line breaks, to byte-level tokenizers) have no say in the word before them.
    solid = (tokens.ends > tokens.starts)[:, None]
    sizes = np.add.reduceat(solid, firsts, axis=0, dtype=np.int64)
    means = np.add.reduceat(logits * solid, firsts, axis=0) / np.maximum(sizes, 1)
    ends = np.maximum.reduceat(np.where(solid[:, 0], tokens.ends, 0), firsts).astype(np.int64)
    starts = tokens.starts[firsts].astype(np.int64)
    return Words(
        np.where(sizes > 0, means, _NEVER),
        starts,
        np.where(sizes[:, 0] > 0, ends, starts),
        np.searchsorted(tokens.section_bounds, firsts, side="right") - 1,
        firsts,
    )


def decode(
    logits: Floats, tokens: Tokens, scheme: LabelScheme, thresholds: Sequence[float], switch_cost: float
) -> DecodedSpans:
    """Turns logits into spans: for each class, the longest runs of words that are inside.

    A word is decided on by the mean logit of its tokens, for each class on its own, so spans of several classes may
    nest and cross. Words with no space between them (`TNF-α-induced`, `(ERK)`) are decided on together: each change
    between inside and outside costs `switch_cost`, and the best sequence wins. With begin channels a run is cut before
    a word of which a token's begin probability reaches the class's threshold.

    Args:
        logits: `(tokens, channels)` float32.
        tokens: The tokens of the sections.
        scheme: What the channels mean.
        thresholds: The least probability of a word inside an entity of each class, `(labels,)`, in (0, 1).
        switch_cost: In logits, at least 0.

    Source: KAZU's `TokenizedWordProcessor` lets any subword of a white-space word decide; that loses brackets
        (`kinase (ERK` became `kinase (`) and trains other tokens than it decodes. The best sequence is found as by
        Viterbi (1967).
    """
    count = len(scheme.labels)
    if not len(tokens.ids):
        nothing = np.zeros(0, np.int64)
        return DecodedSpans(nothing, nothing, nothing, nothing, np.zeros(0))
    found = words_of(logits[:, :count], tokens)
    words, starts, ends, sections, firsts = found.logits, found.starts, found.ends, found.sections, found.firsts
    new_section = np.append(True, sections[1:] != sections[:-1])
    after_space = new_section | np.append(True, (starts[1:] > ends[:-1]) | (ends[:-1] == starts[:-1]))
    cut = np.log(np.divide(thresholds, np.subtract(1.0, thresholds)))
    inside = _best_sequences((words - cut).astype(np.float32), after_space, switch_cost)
    fresh = new_section[:, None]  # nothing continues across sections
    if scheme.begin:
        fresh = fresh | (np.maximum.reduceat(logits[:, count:], firsts, axis=0) >= cut)
    opens = inside & (np.vstack([np.ones((1, count), np.bool_), ~inside[:-1]]) | fresh)
    closes = inside & np.vstack([~inside[1:] | opens[1:], np.ones((1, count), np.bool_)])
    # Of one class the k-th opening word belongs to the k-th closing word.
    label, first = np.nonzero(opens.T)
    _, last = np.nonzero(closes.T)
    sums = np.zeros((len(words) + 1, count))
    sums[1:][inside] = 1 / (1 + np.exp(-words[inside].astype(np.float64)))  # the others are in no sum
    np.cumsum(sums, axis=0, out=sums)
    score = (sums[last + 1, label] - sums[first, label]) / (last + 1 - first)
    section, start, end = sections[first], starts[first], ends[last]
    order = np.lexsort((label, end, start, section))
    order = order[(start < end)[order]]  # a word of white space alone has no characters to show
    return DecodedSpans(section[order], label[order], start[order], end[order], score[order])


def _best_sequences(gains: Floats, begins: npt.NDArray[np.bool_], switch_cost: float) -> npt.NDArray[np.bool_]:
    """Decides which words are inside: for each chunk and class the sequence with the most gain less the costs.

    Args:
        gains: What a word adds if it is inside, `(words, labels)` float32.
        begins: Whether a new chunk begins at a word, `(words,)`; chunks are independent.
        switch_cost: What a change between inside and outside within a chunk costs.

    Returns:
        `(words, labels)` bool. All chunks go forward together, one place at a time, then back.
    """
    if not switch_cost:  # each word by itself
        return gains >= 0
    firsts = np.flatnonzero(begins)
    places = np.arange(len(gains)) - np.repeat(firsts, np.diff(np.append(firsts, len(gains))))
    by_place = np.argsort(places, kind="stable")
    at_place = np.split(by_place, np.cumsum(np.bincount(places))[:-1])[1:]
    on, off = gains.copy(), np.zeros_like(gains)
    stays_on, stays_off = np.ones(gains.shape, np.bool_), np.ones(gains.shape, np.bool_)
    for here in at_place:
        before = here - 1
        stays_on[here] = on[before] >= off[before] - switch_cost
        stays_off[here] = off[before] > on[before] - switch_cost
        on[here] += np.where(stays_on[here], on[before], off[before] - switch_cost)
        off[here] = np.where(stays_off[here], off[before], on[before] - switch_cost)
    inside = on >= off  # right for the last word of each chunk, which decides on the ones before it
    for here in reversed(at_place):
        inside[here - 1] = np.where(inside[here], stays_on[here], ~stays_off[here])
    return inside
