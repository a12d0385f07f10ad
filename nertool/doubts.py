"""What a training leaves out: the words, and the classes, in which an audit found something suspect."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nertool.documents import Document, Span
from nertool.labels import LabelScheme
from nertool.suspects import Suspect
from nertool.windows import SectionTokenizer

# A target that nothing is known of.
UNKNOWN = -1.0


@dataclass(frozen=True, slots=True)
class Doubts:
    """Tokens whose targets are in doubt, for one class each; sorted, all `(doubts,)` int64.

    Args:
        tokens: The token, counted through all documents.
        channels: The channel of the class.
    """

    tokens: npt.NDArray[np.int64]
    channels: npt.NDArray[np.int64]

    def mark(self, targets: npt.NDArray[np.float32], start: int) -> None:
        """Marks what is in doubt in the targets of consecutive tokens, `(tokens, channels)`, from token `start` on."""
        rows = slice(*np.searchsorted(self.tokens, [start, start + len(targets)]).tolist())
        targets[self.tokens[rows] - start, self.channels[rows]] = UNKNOWN


def locate_doubts(
    suspects: Iterable[Suspect], documents: Iterable[Document], tokenizer: SectionTokenizer, scheme: LabelScheme
) -> Doubts:
    """Finds the tokens of what is suspect: of the entity that is there, and of the one that should be.

    Args:
        suspects: Of these documents.
        documents: In the order of the tokens.
        tokenizer: Makes the tokens.
        scheme: The classes; suspects of others are passed over.
    """
    wanted: defaultdict[str, list[tuple[int, str, Span]]] = defaultdict(list)
    for one in suspects:
        places = [(one.entity.label, span) for span in one.entity.spans] if one.entity else []
        if one.suggestion:
            places.append((one.suggestion.label, one.suggestion.span))
        wanted[one.document] += [(one.section, label, span) for label, span in places if label in scheme.labels]
    cells: set[tuple[int, int]] = set()
    base = 0
    for document in documents:
        tokens = tokenizer.tokenize([section.text for section in document.sections])
        for section, label, (start, end) in wanted.get(document.id, ()):
            first, last = tokens.section_bounds[section : section + 2].tolist()
            inside = np.flatnonzero((tokens.starts[first:last] < end) & (tokens.ends[first:last] > start))
            for channel in _channels(scheme, label):
                cells.update((base + first + token, channel) for token in inside.tolist())
        base += len(tokens.ids)
    table = np.array(sorted(cells), np.int64).reshape(-1, 2)
    return Doubts(table[:, 0], table[:, 1])


def _channels(scheme: LabelScheme, label: str) -> Sequence[int]:
    inside = scheme.labels.index(label)
    return (inside, len(scheme.labels) + inside) if scheme.begin else (inside,)
