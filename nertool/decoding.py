"""The model's logits → spans of characters. Used alike by validation, `evaluate` and `predict`."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nertool.labels import LabelScheme
from nertool.windows import Tokens

Floats = npt.NDArray[np.float32]


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


def decode(logits: Floats, tokens: Tokens, scheme: LabelScheme, threshold: float) -> DecodedSpans:
    """Turns logits into spans: for each class, the longest runs of words at or above the threshold.

    A word is decided on by the mean logit of its tokens, for each class on its own, so spans of several classes may nest
    and cross. With begin channels a run is cut before a word of which a token's begin probability reaches the threshold.

    Args:
        logits: `(tokens, channels)` float32.
        tokens: The tokens of the sections.
        scheme: What the channels mean.
        threshold: The least probability of a word inside an entity, in (0, 1).

    Source: KAZU's `TokenizedWordProcessor` lets any subword of a white-space word decide; that loses brackets
        (`kinase (ERK` became `kinase (`) and trains other tokens than it decodes.
    """
    count = len(scheme.labels)
    if not len(tokens.ids):
        nothing = np.zeros(0, np.int64)
        return DecodedSpans(nothing, nothing, nothing, nothing, np.zeros(0))
    word_firsts = np.flatnonzero(tokens.word_starts)
    word_lasts = np.append(word_firsts[1:], len(tokens.ids))
    sizes = word_lasts - word_firsts
    words = np.add.reduceat(logits[:, :count], word_firsts, axis=0) / sizes[:, None]
    cut = math.log(threshold / (1 - threshold))
    inside = words >= cut
    section_of_word = np.searchsorted(tokens.section_bounds, word_firsts, side="right") - 1
    fresh = np.append(True, section_of_word[1:] != section_of_word[:-1])[:, None]  # nothing continues across sections
    if scheme.begin:
        fresh = fresh | (np.maximum.reduceat(logits[:, count:], word_firsts, axis=0) >= cut)
    nothing_before = np.vstack([np.ones((1, count), np.bool_), ~inside[:-1]])
    opens = inside & (nothing_before | fresh)
    closes = inside & np.vstack([~inside[1:] | opens[1:], np.ones((1, count), np.bool_)])
    # Of one class the k-th opening word belongs to the k-th closing word.
    label, first_word = np.nonzero(opens.T)
    _, last_word = np.nonzero(closes.T)
    probabilities = 1 / (1 + np.exp(-words.astype(np.float64)))
    sums = np.cumsum(np.vstack([np.zeros((1, count)), probabilities]), axis=0)
    score = (sums[last_word + 1, label] - sums[first_word, label]) / (last_word + 1 - first_word)
    start = tokens.starts[word_firsts[first_word]].astype(np.int64)
    end = np.maximum.reduceat(tokens.ends, word_firsts)[last_word].astype(np.int64)
    section = section_of_word[first_word]
    order = np.lexsort((label, end, start, section))
    order = order[(start < end)[order]]  # a word of white space alone has no characters to show
    return DecodedSpans(section[order], label[order], start[order], end[order], score[order])
