"""Small parts of Markdown and YAML, in which any text is shown as it is."""

import re
from collections.abc import Iterable, Iterator, Sequence


def enumeration(items: Iterable[str], last: str = "and") -> str:
    """Returns items as a sentence has them: "a, b and c"."""
    *others, end = [*items] or [""]
    return f"{', '.join(others)} {last} {end}" if others else end


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Writes a table of Markdown; the first column has names, the others numbers."""
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def code_block(language: str, code: str) -> Iterator[str]:
    """Writes lines of code; none of them may begin with three backticks."""
    yield f"```{language}"
    yield code.rstrip("\n")
    yield "```"
    yield ""


def plain(text: str) -> str:
    """Returns text that Markdown shows as it is, in one line."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    escaped = re.sub(r"[\\`*\[\]<>&|~$#!]", r"\\\g<0>", line)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


def yaml_string(text: str) -> str:
    """Returns text as a quoted YAML scalar."""
    shown = (char if char.isprintable() and char not in '"\\' else _escape(char) for char in text)
    return f'"{"".join(shown)}"'


def _escape(char: str) -> str:
    return f"\\{char}" if char in '"\\' else f"\\U{ord(char):08x}"
