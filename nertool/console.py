"""Talking to people on stderr, and giving data to programs on stdout."""

import io
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import IO, Any, Protocol, TextIO, cast

import orjson
from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
)
from rich.table import Table
from rich.text import Text

# Where stderr is no terminal, lines are as wide as they need to be, and a progress line comes this often.
_PLAIN_WIDTH = 160
_PLAIN_LINE_EVERY_SECONDS = 10.0
_NARROW = 60
_NARROWEST = 12  # a column of text that can still be read
# What stands before a line's text: its indentation, and the arrow of a hint.
_MARGIN = re.compile(r" *(?:→ )?")
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Advance(Protocol):
    """Tells how far a task is, and what else is worth showing beside it."""

    def __call__(self, done: int, note: str = "") -> None:
        """Takes how many units are done."""


class _Stderr(io.TextIOBase):
    """Stderr, of which losing it (a connection that broke, a pipe that was closed) ends no work."""

    @property
    def _real(self) -> TextIO:
        # During a live progress bar rich puts a stand-in in its place that prints to the console, and so to here.
        real: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return real

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._real.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._real.flush()

    def isatty(self) -> bool:
        return self._real.isatty()

    def fileno(self) -> int:
        return self._real.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._real.encoding


class _Console(Console):
    """A console on which nobody's text moves the cursor, clears the screen or sets the window's title."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Makes the characters that a terminal obeys visible, in lines as in the cells of tables."""
        return super().render_str(_OBEYED.sub(lambda found: repr(found[0])[1:-1], text), **options)


@cache
def stderr_console() -> Console:
    """Returns the one console for everything that people read; obeys `NO_COLOR` and `TERM=dumb`.

    There must be only one: lines that are printed during a live progress bar go above it only by the bar's own console.
    Square brackets are text, not markup: they occur in class names.
    """
    terminal = sys.stderr.isatty()  # there, lines break between words; in a file they stay whole
    width = None if terminal else _PLAIN_WIDTH
    return _Console(
        file=cast(IO[str], _Stderr()), width=width, highlight=False, soft_wrap=not terminal, emoji=False, markup=False
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Shows people nothing meanwhile, as another process does."""
    console = stderr_console()
    console.quiet = True
    try:
        yield
    finally:
        console.quiet = False


def say(message: str) -> None:
    """Prints lines for people; what doesn't fit into a line of the terminal goes on below where its text began."""
    console = stderr_console()
    for line in message.split("\n"):
        margin = _MARGIN.match(line)
        assert margin is not None
        _print_beside(console.render_str(margin[0]), console.render_str(line[margin.end() :]))


def say_whole(message: str) -> None:
    """Prints lines for people to copy, from a narrow terminal, too."""
    stderr_console().print(message, soft_wrap=True)


def suggest(*words: object) -> None:
    """Says which command of nertool's most people run next; what they have to fill in is in capitals."""
    say_whole(f"next: {shlex.join(['nertool', *map(str, words)])}")


def say_beside(mark: str, style: str, message: str) -> None:
    """Prints lines for people, of which the first one begins with a coloured word."""
    first, *others = message.split("\n")
    _print_beside(Text(f"{mark} ", style), stderr_console().render_str(first))
    for line in others:
        say(line)


def _print_beside(mark: Text, text: Text) -> None:
    console = stderr_console()
    if console.soft_wrap or not mark or console.width < mark.cell_len + _NARROWEST:
        console.print(mark + text)
        return
    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(mark, text)
    console.print(grid)


def number_table(
    *names: str, numbers: Iterable[str], last: str | None = None, title: str | None = None, framed: bool = False
) -> Table:
    """Returns a table that has no rows yet.

    Args:
        names: Heads of the columns with names, at the left.
        numbers: Heads of the columns with numbers.
        last: Head of a column with words, at the right.
        title: What stands above it.
        framed: Whether it has lines.
    """
    table = Table(*names, title=title, title_justify="left")
    if not framed:
        table.box, table.pad_edge = None, False
    for head in numbers:
        table.add_column(head, justify="right")
    if last is not None:
        table.add_column(last)
    return table


def show(table: Table) -> None:
    """Prints a table for people; numbers are never cut off.

    Where it is too wide it loses its frame, then text is folded, and at last each row becomes a line of words.
    """
    console = stderr_console()
    endless = console.options.update(max_width=10_000)
    if Measurement.get(console, endless, table).maximum > console.width:
        table.box, table.pad_edge = None, False
        for column in table.columns:
            if column.justify == "right":
                column.no_wrap = True
                # Of its own accord a column could be as narrow as the longest part of `372 (78.6 %)`.
                cells = (column.header, *column.cells)
                column.min_width = max(Measurement.get(console, endless, cell).maximum for cell in cells)
        if Measurement.get(console, endless, table).minimum > console.width:
            if table.title:
                say(str(table.title))
            names = [str(column.header) for column in table.columns]
            for first, *others in zip(*(column.cells for column in table.columns), strict=True):
                given = [f"{name} {cell}".strip() for name, cell in zip(names[1:], others, strict=True) if cell]
                say(f"{first}: {', '.join(given)}" if first else ", ".join(given))
            return
    console.print(table)


def print_json(value: Any) -> None:
    """Prints the one JSON document of a command on stdout."""
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.flush()


def print_text(text: str) -> None:
    """Prints what programs may read, and isn't JSON, on stdout."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.flush()


@contextmanager
def progress(task: str, total: int | None, unit: str, done: int = 0) -> Iterator[Advance]:
    """Shows how far a task is: a live bar on a terminal, elsewhere a plain line now and then.

    Args:
        task: What is being done, such as `tokenising`.
        total: How many units there are, if that is known.
        unit: What is counted, such as `documents`.
        done: How many were done before, which say nothing of how long the others take.
    """
    console = stderr_console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield _PlainProgress(task, total, unit, done)
        return
    narrow = console.width < _NARROW
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), _Amount(unit, narrow), _Time(), _Note()]
    if not narrow:
        columns[:1] = [SpinnerColumn(), columns[0], BarColumn(bar_width=20)]
    with Progress(*columns, console=console, transient=True) as bar:
        identifier = bar.add_task(task, total=total, note="", completed=done)

        def advance(done: int, note: str = "") -> None:
            bar.update(identifier, completed=done, note=note)

        yield advance


def counted(number: int, one: str, many: str | None = None) -> str:
    """Returns how many there are, in words: `1 document`, `2,310 documents`.

    Args:
        number: How many.
        one: What one is called.
        many: What others are called, if it isn't `one` with an s.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


class _Amount(ProgressColumn):
    """How much is done: `1,500/3,000 steps`; where there is little room, `50 %`."""

    def __init__(self, unit: str, narrow: bool) -> None:
        super().__init__()
        self._unit = unit
        self._narrow = narrow

    def render(self, task: Task) -> Text:
        """Returns it in words."""
        if task.total and self._narrow:
            return Text(f"{task.percentage:.0f} %")
        of = f"/{task.total:,.0f}" if task.total else ""
        return Text(f"{task.completed:,.0f}{of} {self._unit}".rstrip())


class _Time(ProgressColumn):
    """How long it still takes, as far as that is known; else how long it has taken."""

    def render(self, task: Task) -> Text:
        """Returns it in words."""
        left = task.time_remaining
        return Text(f"{duration(task.elapsed or 0)} so far" if left is None else f"{duration(left)} left")


class _Note(ProgressColumn):
    """What else is worth showing; it makes room for the other columns."""

    def render(self, task: Task) -> Text:
        """Returns it, cut off where the line ends."""
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


class Rate:
    """How fast something is, from its beginning on."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._counts: dict[str, int] = {}

    def note(self, **counts: int) -> str:
        """Adds what was done, and returns in words how fast that is: `7.1 documents/s, 2,310 tokens/s`."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        for unit, number in counts.items():
            self._counts[unit] = self._counts.get(unit, 0) + number
        rates = ((unit, number / seconds) for unit, number in self._counts.items())
        return ", ".join(f"{rate:,.{0 if rate >= 100 else 1}f} {unit}/s" for unit, rate in rates)


def duration(seconds: float) -> str:
    """Returns a time for people: `40 s`, `12 min`, `3 h 20 min`."""
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Returns a number of bytes for people: `820 kB`, `45 MB`, `1.3 GB`."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        del units[0]
    decimals = 1 if units[0] in ("GB", "TB") and count < 9.95 else 0
    return f"{count:.{decimals}f} {units[0]}"


class _PlainProgress:
    def __init__(self, task: str, total: int | None, unit: str, done_before: int) -> None:
        self.task = task
        self.total = total
        self.unit = unit
        self.done_before = done_before
        self.start = self.last = time.monotonic()

    def __call__(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self.last < _PLAIN_LINE_EVERY_SECONDS:
            return
        self.last = now
        of = f" of {self.total:,}" if self.total else ""
        left = ""
        if self.total and done > self.done_before:
            seconds = (now - self.start) / (done - self.done_before) * (self.total - done)
            left = f", {duration(seconds)} left"
        say(f"{self.task}: {done:,}{of} {self.unit}{', ' + note if note else ''}{left}")
