"""nertool's decoding within KAZU's step for NER. The only module that imports KAZU; it needs no torch of its own."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nertool.decoding import decode
from nertool.errors import NertoolError
from nertool.labels import LabelScheme
from nertool.windows import tokens_from_offsets

if TYPE_CHECKING:
    from nertool.decoding import Floats

OUTSIDE = "O"  # KAZU's name for what is no entity

_MARK = "▁"  # how SentencePiece writes a blank before a word

_LEAST = np.finfo(np.float32).tiny  # softmax in float32 can give 0, which has no logarithm


class Word(Protocol):
    """What is needed of KAZU's `TokenizedWord`: one of the pieces that the tokenizer cut the text into.

    Args:
        tokens: Its tokens.
        token_confidences: Softmax over the channels, `(tokens, labels + 1)` float32, a tensor on the CPU.
        token_offsets: First character of each token and one past the last.
    """

    tokens: list[str]
    token_confidences: Any
    token_offsets: list[tuple[int, int]]


class NertoolWordProcessor:
    """Finds in KAZU's step what `nertool predict` finds, in the place of KAZU's `TokenizedWordProcessor`.

    In sections that fit into one window the spans are the same, as long as the model has no begin channels, which the
    export leaves out. Longer sections are cut by KAZU, in other places than by nertool.

    Args:
        labels: What the channels of the exported model mean; `O` is one of them.
        switch_cost: What it costs, in logits, to begin or end an entity where there is no space; nertool.json tells it.

    Raises:
        NertoolError: If no channel is called `O`.

    Source: KAZU 2.4.0, `kazu/steps/ner/tokenized_word_processor.py`. Its step uses no more of a processor than what is
        here. With `use_multilabel` it would give bits; without, it gives softmax over the channels, meant for one label
        per token. As the logit of `O` is always 0 in what nertool exports, `log(p[i] / p[O])` is the logit of channel
        i, from which the class's threshold has been taken already.
    """

    use_multilabel = False

    def __init__(self, labels: Iterable[str], switch_cost: float = 1.0) -> None:
        channels = list(labels)
        if OUTSIDE not in channels:
            raise NertoolError(
                f"the labels {', '.join(channels)} lack {OUTSIDE}, the last channel of an exported model",
                "give the labels of kazu_step.yaml",
            )
        self._outside = channels.index(OUTSIDE)
        self._scheme = LabelScheme(tuple(label for label in channels if label != OUTSIDE))
        self._switch_cost = switch_cost

    def __call__(self, words: Sequence[Word], text: str, namespace: str) -> list[Any]:
        """Returns a section's entities, of KAZU's class `Entity`.

        Args:
            words: All words of the section.
            text: The section.
            namespace: Who found them.
        """
        from kazu.data import Entity  # noqa: PLC0415 (it is installed in KAZU's environment only)

        return [
            Entity.load_contiguous_entity(
                start=start, end=end, match=text[start:end], namespace=namespace, entity_class=label
            )
            for start, end, label in self.spans(words, text)
        ]

    def spans(self, words: Sequence[Word], text: str) -> list[tuple[int, int, str]]:
        """Returns first character, one past the last, and class of each entity, sorted."""
        offsets = np.array([pair for word in words for pair in word.token_offsets], np.int64).reshape(-1, 2)
        # Tokens of blanks have no say in decoding, and the export may have moved them: a mark alone is shown as the
        # letter after it, as only the section's first one was before.
        solid = np.zeros(len(offsets), np.bool_)
        names = [name for word in words for name in word.tokens]
        for i, (name, (start, end)) in enumerate(zip(names, offsets.tolist(), strict=True)):
            shown = text[start:end].strip()
            solid[i] = shown != "" and (i == 0 or name != _MARK or shown == _MARK)
        if not solid.any():
            return []
        shares = np.concatenate([np.asarray(word.token_confidences) for word in words])[solid]
        count = int(solid.sum())
        no_ids, bounds = np.zeros(count, np.int32), np.array([0, count], np.int64)
        tokens = tokens_from_offsets([text], no_ids, offsets[solid], bounds)
        thresholds = (0.5,) * len(self._scheme.labels)  # the model's own are in its bias
        found = decode(self._logits(shares), tokens, self._scheme, thresholds, self._switch_cost)
        labels = [self._scheme.labels[label] for label in found.label.tolist()]
        return list(zip(found.start.tolist(), found.end.tolist(), labels, strict=True))

    def _logits(self, shares: "Floats") -> "Floats":
        """Turns softmax, `(tokens, labels + 1)`, into logits, `(tokens, labels)` float32."""
        logs = np.log(np.maximum(shares, _LEAST).astype(np.float64))
        logits: Floats = (np.delete(logs, self._outside, 1) - logs[:, [self._outside]]).astype(np.float32)
        return logits
