"""Offsets of other tools: the units they may count in, and whether a mention is what stands at them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from nertool.documents import Span

CODE_POINTS = "Unicode code points"
# In the order in which they are tried; Java and JavaScript count UTF-16 units, programs in C often bytes.
UNITS = (CODE_POINTS, "UTF-16 units", "UTF-8 bytes")


def to_code_points(text: str, unit: str) -> Callable[[int], int | None]:
    """Returns what makes of an offset in a unit one in code points, or None if it is outside or within a character."""
    if unit == CODE_POINTS or text.isascii():
        last = len(text)
        return lambda offset: offset if 0 <= offset <= last else None
    widths = (_width(char, unit) for char in text)
    return {offset: number for number, offset in enumerate(accumulate(widths, initial=0))}.get


def length(text: str, unit: str) -> int:
    """Returns how long a text is in a unit."""
    return len(text) if unit == CODE_POINTS else sum(_width(char, unit) for char in text)


def other_unit_note(unit: str) -> str:
    """Returns the note on a document whose offsets don't count code points."""
    return f"documents whose offsets count {unit}, as their mentions show"


def stands_at(mention: str, text: str, spans: Sequence[Span]) -> bool:
    """Tells whether a mention is what a text has at some spans.

    Only the amount and kind of white space may differ, and what is written between the parts of a discontinuous
    mention; the parts may be in the order of the spans as they are given, or in the order of the text.
    """
    said = " ".join(mention.split())
    parts = [" ".join(text[start:end].split()) for start, end in spans]
    if len(parts) == 1:
        return said == parts[0]
    in_text_order = [" ".join(text[start:end].split()) for start, end in sorted(spans)]
    return _has_parts(said, parts) or _has_parts(said, in_text_order)


def _has_parts(said: str, parts: Sequence[str]) -> bool:
    return said.startswith(parts[0]) and said.endswith(parts[-1]) and _in_order(said, parts)


def _in_order(said: str, parts: Iterable[str]) -> bool:
    at = 0
    for part in parts:
        found = said.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _width(char: str, unit: str) -> int:
    if unit == "UTF-16 units":
        return 2 if char > "\uffff" else 1
    return len(char.encode(errors="surrogatepass"))
