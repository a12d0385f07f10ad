"""Help in plain text: commands and options in sections, examples as they are typed.

The sections are the `rich_help_panel`s, which Typer itself heeds only in its other help. That takes twice the time, and
in a pipe or a narrow terminal its frames are in the way.
"""

import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

COMMON = "Options of many commands"
# Where lines are shorter than this, what an option means stands below it, not beside it.
_NARROW = 60


class PlainCommand(TyperCommand):
    """A command."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns the arguments as everybody writes them: Typer puts those that must be given into braces."""
        return [re.sub(r"^\{(\w+)\}$", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the whole help."""
        _fit(formatter)
        super().format_help(ctx, formatter)

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Writes what the command does, and its examples without breaks in them."""
        formatter.write_paragraph()
        with formatter.indentation():
            indent = " " * formatter.current_indent
            paragraphs = textwrap.dedent(self.help or "").strip().split("\n\n")
            for index, paragraph in enumerate(paragraphs):
                if index:
                    formatter.write("\n")
                if paragraph.startswith("nertool "):
                    formatter.write(textwrap.indent(paragraph, indent) + "\n")
                else:
                    formatter.write_text(paragraph)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments and options: the command's own first, then what many have."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], COMMON: []}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel = getattr(parameter, "rich_help_panel", None) or kind
                sections[COMMON if parameter.name == "help" else panel].append(record)
        _write(formatter, sections.items())


class PlainGroup(TyperGroup):
    """A command with commands."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the whole help."""
        _fit(formatter)
        super().format_help(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the options, and then the commands."""
        records = [record for parameter in self.get_params(ctx) if (record := parameter.get_help_record(ctx))]
        _write(formatter, [("Options", records)])
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes a line for each command, in the order and the sections in which they are registered."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            summary = re.split(r"[;:]|\.(?:\s|$)", command.help or "")[0]
            sections.setdefault(getattr(command, "rich_help_panel", None) or "Commands", []).append((name, summary))
        _write(formatter, sections.items())


def _fit(formatter: Any) -> None:
    """Makes lines as short as the terminal: Typer makes none of less than 50 characters, which then break in words."""
    formatter.width = min(formatter.width, max(shutil.get_terminal_size().columns - 2, 20))


def _write(formatter: Any, sections: Iterable[tuple[str, list[tuple[str, str]]]]) -> None:
    given = [(title, rows) for title, rows in sections if rows]
    widest = max(len(row[0]) for _, rows in given for row in rows)
    column = 30 if formatter.width >= _NARROW else 8
    for title, rows in given:
        with formatter.section(title):
            # The second column begins at one place in all sections.
            formatter.write_dl([(first.ljust(min(widest, column)), second) for first, second in rows], column + 2)
