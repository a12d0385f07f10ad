"""How often the texts of mentions are annotated, and how often they stand there without an annotation."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nertool.documents import Document, Section, match_text

# A word, or one other character; white space and case don't tell mentions apart.
_WORD = re.compile(r"\w+|[^\w\s]")
# Longer mentions hardly ever occur twice.
_MOST_WORDS = 12


def mention_key(text: str) -> str:
    """Returns what texts of mentions that are counted together have in common."""
    return " ".join(map(str.casefold, _WORD.findall(text)))  # as occurrences are compared, word by word


@dataclass(frozen=True, slots=True)
class MentionCounts:
    """Counts of mentions by their key.

    Args:
        annotated: Key → class → entities.
        free: Key → occurrences, at borders of words, that overlap no entity of any class.
    """

    annotated: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    free: Counter[str] = field(default_factory=Counter)

    def entities(self, key: str, label: str) -> int:
        """Returns how many entities of a class have that text."""
        return self.annotated[key][label] if key in self.annotated else 0


class Lexicon:
    """All texts of entities of a collection, to find their occurrences.

    Args:
        keys: Their keys.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        self._keys = frozenset(keys)
        for key in self._keys:
            words = key.split(" ")
            if len(words) <= _MOST_WORDS:
                lengths[words[0]].add(len(words))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def occurrences(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Yields key, first character and one past the last one of each occurrence, by start, longest first."""
        words = [(found.group(), found.start(), found.end()) for found in _WORD.finditer(text)]
        folded = [word.casefold() for word, _, _ in words]
        for i, first in enumerate(folded):
            for length in self._lengths.get(first, ()):
                if i + length <= len(words):
                    key = " ".join(folded[i : i + length])
                    if key in self._keys:
                        yield key, words[i][1], words[i + length - 1][2]


def lexicon_of(documents: Iterable[Document]) -> Lexicon:
    """Returns the lexicon of the documents' entities."""
    return Lexicon(
        {
            mention_key(match_text(section.text, entity.spans))
            for document in documents
            for section in document.sections
            for entity in section.entities
        }
    )


def count_mentions(documents: Iterable[Document], lexicon: Lexicon) -> MentionCounts:
    """Counts the entities of documents, and the free occurrences of the texts of a lexicon."""
    counts = MentionCounts()
    for document in documents:
        for section in document.sections:
            for label, spans in {(entity.label, entity.spans) for entity in section.entities}:
                counts.annotated[mention_key(match_text(section.text, spans))][label] += 1
            counts.free.update(key for key, _, _ in free_occurrences(section, lexicon))
    return counts


def free_occurrences(section: Section, lexicon: Lexicon) -> Iterator[tuple[str, int, int]]:
    """Yields the occurrences, as `Lexicon.occurrences` does, that overlap no entity."""
    covered = bytearray(len(section.text))
    for entity in section.entities:
        for start, end in entity.spans:
            covered[start:end] = b"\1" * (end - start)
    for key, start, end in lexicon.occurrences(section.text):
        if covered.find(1, start, end) < 0:
            yield key, start, end
