"""The commands of README, tutorial and how-to pages, run as they stand there, for tests of what the pages say."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from nertool.cli import app

_FENCE = re.compile(r"^```([\w-]*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Which argument of a command is what it makes.
_OUTPUTS = {"convert": 1, "annotate": 1, "split": 1, "cache": 1, "export": 1, "audit": 1, "predict": 2}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    content: str

    @property
    def lines(self) -> list[str]:
        """The lines that do something."""
        return [line for line in self.content.splitlines() if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    """Returns the fenced blocks of a page, in order."""
    return [Block(*found) for found in _FENCE.findall(page.read_text(encoding="utf-8"))]


@dataclass
class Shell:
    """Runs lines of shell blocks in the working folder; `nertool` in this process, which saves seconds for each.

    Args:
        rewrites: Regular expression → replacement, applied to each line first: a tiny model in place of a real one.
        replaces: Whether what a command makes may be there already and is removed first.
        outputs: Of the lines that were run, what they printed.
    """

    rewrites: Mapping[str, str] = field(default_factory=dict)
    replaces: bool = False
    outputs: list[str] = field(default_factory=list)

    def run(self, line: str) -> None:
        """Runs one line; it must succeed."""
        for pattern, replacement in self.rewrites.items():
            line = re.sub(pattern, replacement, line)
        first, pipe, last = line.rpartition(" | ")
        given = subprocess.run(["bash", "-c", first], check=True, capture_output=True).stdout if pipe else b""
        command, _, target = last.partition(" > ")
        words = shlex.split(command)
        environment = {}
        while words and re.fullmatch(r"NERTOOL_\w+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        if words[0] == "cd":
            os.chdir(words[1])
        elif words[0] != "nertool":
            subprocess.run(["bash", "-c", line], check=True)
        else:
            if self.replaces:
                _remove_output(words[1:])
            result: Result = CliRunner().invoke(app, words[1:], input=given, env=environment)
            assert result.exit_code == 0, f"{line}\n{result.stderr}\n{result.exception!r}"
            if target:
                Path(target).write_bytes(result.stdout_bytes)
            self.outputs.append(result.output)


def _remove_output(words: list[str]) -> None:
    name, *arguments = words
    if "--output" in arguments and "--resume" not in arguments:
        _remove(Path(arguments[arguments.index("--output") + 1]))
    if name in _OUTPUTS:
        plain = list(_plain(arguments))
        _remove(Path(plain[_OUTPUTS[name]]))


def _plain(arguments: list[str]) -> Iterator[str]:
    """Yields what is neither an option nor its value."""
    flags = {"--json", "--force", "--keep", "--skip-invalid", "--dry-run", "--resume", "--reviewed"}
    rest = iter(arguments)
    for word in rest:
        if word.startswith("--"):
            if word not in flags:
                next(rest)
        else:
            yield word


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def without_numbers(text: str) -> list[str]:
    """Returns lines in which numbers and white space don't count, for comparisons of what differs by machine."""
    return [" ".join(re.sub(r"\d[\d,.]*", "#", line).split()) for line in text.splitlines()]


def check_shown(shown: str, printed: str, *, exact: bool, models_own: re.Pattern[str] | None = None) -> None:
    """Checks that the lines that a page shows are among those that were printed, in order; `…` stands for others.

    Args:
        shown: A block of the page.
        printed: What the commands before it printed.
        exact: Whether numbers must be the same.
        models_own: The beginnings of lines whose rest depends on the model, with `#` for numbers.
    """

    def plain(text: str) -> list[str]:
        return [" ".join(line.split()) for line in text.splitlines()] if exact else without_numbers(text)

    rest = iter(plain(printed))
    for line in plain(shown):
        own = models_own.match(line) if models_own is not None else None
        found = any(one.startswith(own[0]) for one in rest) if own else line == "…" or line in rest
        assert found, f"the page shows {line!r}, which is not printed (any more, or there)"
