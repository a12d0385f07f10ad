"""The tables of what came of it."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 200


def make_table(lines: Sequence[dict[str, Any]]) -> str:
    """Returns what was noted of each run as two tables in Markdown: faults × commands, and what happened.

    A cell is the number of runs; `held of all` where not all of them held.
    """
    faults = list(dict.fromkeys(line["fault"] for line in lines))
    cells: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    for line in lines:
        cells[line["command"], line["fault"]].append(line["held"])
    rows = [["command", *faults], ["---", *("--:" for _ in faults)]]
    for command in dict.fromkeys(line["command"] for line in lines):
        rows.append([f"`{command}`", *(_cell(cells[command, fault]) for fault in faults)])
    every = [[held for (_, of), found in cells.items() if of == fault for held in found] for fault in faults]
    rows.append(["all", *map(_cell, every)])
    return f"{_markdown(rows)}\n\n{_markdown(_what_happened(lines, faults))}\n"


def _what_happened(lines: Sequence[dict[str, Any]], faults: Iterable[str]) -> Iterable[list[str]]:
    yield ["fault", "what happened", "runs", "what was said most often"]
    yield ["---", "---", "--:", "---"]
    for fault in faults:
        of_fault = [line for line in lines if line["fault"] == fault]
        for what, count in Counter(line["what"] for line in of_fault).most_common():
            said = Counter(line["message"] for line in of_fault if line["what"] == what and line["message"])
            message = said.most_common(1)[0][0][:_LONGEST] if said else ""
            yield [fault, what, str(count), f"“{_plain(message)}”" if message else ""]


def _plain(message: str) -> str:
    return re.sub(r"([|*_`<>])", r"\\\1", message)


def _cell(held: Sequence[bool]) -> str:
    if all(held):
        return str(len(held)) if held else "–"
    return f"**{sum(held)} of {len(held)}**"


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
