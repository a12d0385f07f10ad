"""Text made comparable without losing where each character came from.

Lower-casing or normalising a text can change its length (`İ`, `ß`, `ﬁ`, decomposed accents), so offsets into the
result are not offsets into the text. A folded text keeps, for each of its characters, the characters it stands for.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

from nertool.documents import Span

_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "ο": "omicron", "π": "pi", "ρ": "rho",
    "σ": "sigma", "ς": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
}  # fmt: skip
_QUOTES = dict.fromkeys("'‘’‚‛`´′ʹʼ＇", "'") | dict.fromkeys('"“”„‟«»″＂', '"')
_MINUS = "−"
_SQUEEZED_OUT = " -'"
# What stays of folded text: every other character, and what stands between digits, as one.
_SQUEEZED = re.compile(rf"[^{re.escape(_SQUEEZED_OUT)}]|(?<=[0-9])[{re.escape(_SQUEEZED_OUT)}]+(?=[0-9])")
_SPACES = re.compile(r"\s\s")
_ASCII = str.maketrans({"`": "'", **{chr(code): " " for code in range(128) if chr(code).isspace()}})


class FoldedText:
    """A text with case, accents, compatibility forms, dashes, quotes, Greek letters and white space folded.

    Two strings that fold to the same are the same to a reader: `IL‑2 Rα` and `il-2 ralpha`. The letters of the Greek
    alphabet become their names, runs of white space one space, combining marks and invisible characters nothing.

    Args:
        text: Any string.
        squeeze: Leave out spaces, dashes and apostrophes, too, so that `IL 2`, `IL-2` and `IL2` are the same; but
            between digits a space stays (`grade 1-2` is not `grade 12`).
        fold_case: Whether `A` and `a` are the same.
    """

    def __init__(self, text: str, *, squeeze: bool = False, fold_case: bool = True) -> None:
        self.text = text
        self._starts: Sequence[int]
        self._ends: Sequence[int]
        if text.isascii() and fold_case and not _SPACES.search(text):
            self._fold_one_by_one(squeeze)
            return
        pieces: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        for start, end, folded in _folded_characters(text, squeeze, fold_case):
            pieces.append(folded)
            starts += [start] * len(folded)
            ends += [end] * len(folded)
        self.folded, self._starts, self._ends = "".join(pieces), starts, ends

    def _fold_one_by_one(self, squeeze: bool) -> None:
        """Does the same for text of which each character becomes one, most of it, in a tenth of the time."""
        self.folded = self.text.lower().translate(_ASCII)
        self._starts = range(len(self.text))
        self._ends = range(1, len(self.text) + 1)
        if squeeze:
            pieces = [(match.start(), match.end(), match[0]) for match in _SQUEEZED.finditer(self.folded)]
            self._starts = [start for start, _, _ in pieces]
            self._ends = [end for _, end, _ in pieces]
            self.folded = "".join(" " if len(piece) > 1 or piece in _SQUEEZED_OUT else piece for _, _, piece in pieces)

    def span(self, start: int, end: int) -> Span | None:
        """Returns where in the text the folded characters `[start, end)` are.

        None if they begin or end within what one character became (the second `s` of a `ß`).
        """
        if not 0 <= start < end <= len(self.folded):
            return None
        cut_start = start > 0 and self._starts[start - 1] == self._starts[start]
        cut_end = end < len(self.folded) and self._starts[end] == self._starts[end - 1]
        return None if cut_start or cut_end else Span(self._starts[start], self._ends[end - 1])

    def find(self, folded: str) -> Iterator[Span]:
        """Finds every place of a folded string, overlapping ones too."""
        if not folded:
            return
        position = self.folded.find(folded)
        while position >= 0:
            span = self.span(position, position + len(folded))
            if span is not None:
                yield span
            position = self.folded.find(folded, position + 1)


@lru_cache(maxsize=65536)
def fold(text: str, *, squeeze: bool = False, fold_case: bool = True) -> str:
    """Returns a string as `FoldedText` folds it, without white space around it."""
    return FoldedText(text, squeeze=squeeze, fold_case=fold_case).folded.strip()


def _folded_characters(text: str, squeeze: bool, fold_case: bool) -> Iterator[tuple[int, int, str]]:
    """Yields (start, end, what it becomes) of each character or run of white space; empty results are joined on."""
    characters = _joined_characters(text, fold_case)
    if not squeeze:
        yield from characters
        return
    before = ""
    gap: tuple[int, int, str] | None = None
    for start, end, folded in characters:
        if folded in _SQUEEZED_OUT:
            gap = (start if gap is None else gap[0], end, " ")
            continue
        if gap is not None and _is_digit(before[-1:]) and _is_digit(folded[:1]):
            yield gap
        yield start, end, folded
        before, gap = folded, None


def _is_digit(character: str) -> bool:
    return "0" <= character <= "9"


def _joined_characters(text: str, fold_case: bool) -> Iterator[tuple[int, int, str]]:
    pending: tuple[int, int, str] | None = None
    for index, character in enumerate(text):
        folded = _fold_character(character, fold_case)
        if folded == " " and pending is not None and pending[2] == " ":
            pending = (pending[0], index + 1, " ")
        elif folded:
            if pending is not None:
                yield pending
            pending = (index, index + 1, folded)
        elif pending is not None and pending[1] == index and unicodedata.combining(character):
            pending = (pending[0], index + 1, pending[2])  # an accent belongs to its letter
    if pending is not None:
        yield pending


@lru_cache(maxsize=4096)
def _fold_character(character: str, fold_case: bool) -> str:
    if (plain := _plain(character)) is not None:
        return plain
    folded = unicodedata.normalize("NFKD", character.casefold() if fold_case else character)
    if folded[0].isspace():  # ˚ and ¨ are taken apart into a space and a mark
        return character
    folded = "".join(part if (plain := _plain(part)) is None else plain for part in folded)
    if fold_case:
        return "".join(_GREEK.get(part, part) for part in folded.casefold())
    # The name of a Greek capital is told from that of the small letter, as Alpha and alpha are.
    return "".join(
        _GREEK.get(part) or (_GREEK[part.lower()].capitalize() if part.lower() in _GREEK else part) for part in folded
    )


def _plain(character: str) -> str | None:
    """Returns what spaces, dashes, quotes and invisible characters become; None for all others."""
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category == "Pd" or character == _MINUS:
        return "-"
    if category in ("Cf", "Mn", "Me"):
        return ""
    return _QUOTES.get(character)
