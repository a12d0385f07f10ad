"""Tags of tokens, as CoNLL files have them: which entities they mean, in whichever of four schemes they are written."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

_TAG = re.compile(r"O|([BIESLU])(?:-(.+))?")
_NO_CLASS = "entity"  # tags may be just B, I and O
_CONTINUING = "IEL"

IRREGULAR = "tags that break their tagging scheme, read as the scorer of CoNLL does"


class Tag(NamedTuple):
    """One token's tag: `O`, or `B`, `I`, `E`, `S`, `L` or `U` with a label."""

    prefix: str
    label: str = ""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Returns the tag that a text is, or None."""
        found = _TAG.fullmatch(text)
        if found is None:
            return None
        return cls(found[1], found[2] or _NO_CLASS) if found[1] else cls("O")

    def continues(self, before: "Tag") -> bool:
        """Tells whether this tag goes on with the entity of the tag before it."""
        return self.prefix in _CONTINUING and before.prefix in "BI" and self.label == before.label


class TaggedSpan(NamedTuple):
    """An entity: tokens from `first` to before `end`."""

    label: str
    first: int
    end: int


_OUTSIDE = Tag("O")


def decode_tags(tags: Sequence[Tag]) -> list[TaggedSpan]:
    """Returns the entities of one sentence.

    One rule reads IOB1, IOB2, BIOES and BILOU alike, and every sequence of tags, as the scorer of the CoNLL tasks does:
    `I`, `E` and `L` go on with an entity of their class that is still open; all other tags but `O` begin one.
    """
    spans: list[TaggedSpan] = []
    for index, (before, tag) in enumerate(zip((_OUTSIDE, *tags), tags, strict=False)):
        if tag.continues(before):
            spans[-1] = spans[-1]._replace(end=index + 1)
        elif tag != _OUTSIDE:
            spans.append(TaggedSpan(tag.label, index, index + 1))
    return spans


def count_irregular(sentences: Iterable[Sequence[Tag]]) -> int:
    """Counts the tags of one document that the scheme they seem to be written in doesn't allow there."""
    pairs = [pair for tags in sentences for pair in zip((_OUTSIDE, *tags), (*tags, _OUTSIDE), strict=True)]
    if any(tag.prefix in "ESLU" for _, tag in pairs):  # BIOES or BILOU: entities say where they end
        return sum(
            (tag.prefix in _CONTINUING or before.prefix in "BI") and not tag.continues(before) for before, tag in pairs
        )
    if any(tag.prefix == "B" and tag.label != before.label for before, tag in pairs):  # IOB2
        return sum(tag.prefix == "I" and not tag.continues(before) for before, tag in pairs)
    return 0  # IOB1, where I may begin an entity
