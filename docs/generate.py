"""Writes the reference pages that follow from the code: `docs/reference/settings.md` and `docs/reference/commands.md`.

    python docs/generate.py           # write them
    python docs/generate.py --check   # say whether they are up to date (exit status 1 if not)

The pages are committed, because error messages name docs/reference/settings.md, which people read in a checkout or on
the web without building anything; `tests/test_docs.py` makes sure that they follow the code.
"""

import argparse
import difflib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from typer.models import OptionInfo

from nertool.cli import app
from nertool.settings import ENVIRONMENT_PREFIX, Settings
from nertool.settings_file import ranges_in_words, type_in_words

REFERENCE = Path(__file__).parent / "reference"
_NOTE = "<!-- Written by docs/generate.py from {source}. Change it there, then run: python docs/generate.py -->"


def settings_page() -> str:
    """Returns the reference of all settings."""
    lines = [
        _NOTE.format(source="nertool/settings.py"),
        "",
        "# Settings",
        "",
        "Every setting with its type, default, range and environment variable. [How to set them](../howto/settings.md)",
        "says where values can come from and which one wins.",
        "",
    ]
    for section, field in Settings.model_fields.items():
        schema = field.annotation.model_json_schema()
        lines += [f"## `{section}`", "", schema["description"], ""]
        for name, rule in schema["properties"].items():
            facts = [
                type_in_words(rule),
                f"default {_value(rule['default'])}",
                *ranges_in_words(rule),
                f"`{ENVIRONMENT_PREFIX}{section.upper()}__{name.upper()}`",
            ]
            lines += [f"### `{section}.{name}`", "", rule["description"], "", " · ".join(facts), ""]
    return "\n".join(lines)


def commands_page() -> str:
    """Returns the reference of all commands."""
    lines = [
        _NOTE.format(source="the commands' own help"),
        "",
        "# Commands",
        "",
        "What `nertool COMMAND --help` says, on one page. With `--json` a command prints one JSON document on stdout;",
        "everything meant for people goes to stderr.",
        "",
        "The option `--install-completion`, given to nertool once, lets the shell (bash, zsh, fish, PowerShell)",
        "complete commands, options and the names of settings with the tab key.",
        "",
        "| exit status | meaning |",
        "|---|---|",
        "| 0 | done; early stopping is done, too |",
        "| 1 | a defect of nertool |",
        "| 2 | wrong usage, settings or input; the message names the place and says what to do |",
        "| 129, 130, 143 | interrupted by SIGHUP, SIGINT or SIGTERM, after saving what can be gone on with |",
        "",
    ]
    for name, function in _commands():
        parameters = [_Parameter(parameter) for parameter in inspect.signature(function).parameters.values()]
        usage = [
            parameter.usage if parameter.required else f"[{parameter.usage}]"
            for parameter in parameters
            if parameter.required or not parameter.option
        ]
        lines += [f"## `nertool {name}`", ""]
        lines += ["```text", " ".join(["nertool", name, *usage, "[OPTIONS]"]), "```", ""]
        lines += [*_paragraphs(inspect.getdoc(function) or ""), "| argument or option | meaning |", "|---|---|"]
        lines += [f"| `{parameter.usage.strip('[]')}` | {parameter.meaning} |" for parameter in parameters] + [""]
    return "\n".join(lines)


def _commands() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields the name and function of each command, those of groups with the group's name before theirs."""
    groups = [
        ("", app),
        *(
            (f"{group.name or group.typer_instance.info.name} ", group.typer_instance)
            for group in app.registered_groups
        ),
    ]
    for prefix, group in groups:
        for registered in group.registered_commands:
            function = registered.callback
            assert function is not None
            yield f"{prefix}{registered.name or function.__name__}", function


class _Parameter:
    """An argument or option, as its command declares it (Typer's own objects differ from version to version)."""

    def __init__(self, parameter: inspect.Parameter) -> None:
        kind, self._info = get_args(parameter.annotation)
        self._default = parameter.default
        self.required = parameter.default is inspect.Parameter.empty
        self.option = isinstance(self._info, OptionInfo)
        flag = kind is bool or kind == bool | None
        if self.option:
            name = self._info.default  # of `typer.Option("--name")`, in Annotated, the first value ends up there
            self.usage = name if flag else f"{name} {self._info.metavar or name.lstrip('-').upper()}"
        else:
            self.usage = self._info.metavar

    @property
    def meaning(self) -> str:
        """What it means, and what it is by default."""
        if self.required:
            return self._info.help + (" (required)" if self.option else "")
        return self._info.help + ("" if self.option or self._default is None else f" (default `{self._default}`)")


PAGES = {REFERENCE / "settings.md": settings_page, REFERENCE / "commands.md": commands_page}


def outdated() -> Iterator[str]:
    """Yields a diff for each page that does not follow the code."""
    for path, page in PAGES.items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old != (new := page()):
            yield "".join(difflib.unified_diff(old.splitlines(True), new.splitlines(True), str(path), "from the code"))


def _value(value: Any) -> str:
    if value is None:
        return "unset"
    if value in ([], {}, ""):
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _paragraphs(text: str) -> Iterator[str]:
    """Yields the lines of a command's help, its examples as code."""
    paragraphs = text.split("\n\n")
    for example, group in itertools.groupby(paragraphs, lambda paragraph: paragraph.startswith("nertool ")):
        if example:
            yield from ("```shell", *group, "```", "")
        else:
            yield from (line for paragraph in group for line in (re.sub(r"\s+", " ", paragraph), ""))


def main() -> int:
    """Writes the pages, or says which of them are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page is not up to date")
    if parser.parse_args().check:
        differences = list(outdated())
        sys.stderr.writelines(differences)
        return 1 if differences else 0
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
