"""What README and docs say can be done: the commands are those of the project, parse, and the links lead somewhere."""

import os
import re
import shlex
from pathlib import Path

import pytest
import typer

from nertool.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)])
FIRST_COMMAND = 'pip install -e ".[offline]" && nertool demo'
SECOND_COMMAND = 'pip install -e ".[dev]" && nox -s tests'

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def shell_lines(text: str) -> list[str]:
    """Returns the lines of all shell blocks."""
    return [
        line for language, block in _FENCE.findall(text) if language == "shell" for line in block.splitlines() if line
    ]


def nertool_commands(page: Path) -> list[list[str]]:
    """Returns the words of every `nertool …` command line, in blocks and in running text."""
    text = page.read_text(encoding="utf-8")
    spans = [span for code in _CODE.findall(_FENCE.sub("", text)) for span in code.split("; ")]
    found = []
    for line in [*shell_lines(text), *spans]:
        for part in line.split(" && "):
            if "nertool " not in part:  # what is quoted may be no command line at all
                continue
            words = shlex.split(re.sub(r" > \S+$", "", part), comments=True)
            while words and re.fullmatch(r"NERTOOL_\w+=.*", words[0]):
                words = words[1:]
            if words[:1] == ["nertool"] and words[1:] and words[1] != "COMMAND":
                found.append(words[1:])
    return found


def parse(words: list[str]) -> None:
    """Parses a command line without running it; raises what the command line would report."""
    group = typer.main.get_command(app)
    name, *arguments = words
    assert name in group.commands, f"there is no command {name!r}"
    command = group.commands[name]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    if arguments and set(arguments) - known:  # a bare `nertool split` in running text names the command only
        command.make_context(name, arguments)


def slug(heading: str) -> str:
    """Returns the anchor of a heading, as MyST and GitHub make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {slug(heading) for heading in headings}


def test_the_readme_has_the_two_commands_as_blocks_of_their_own() -> None:
    blocks = [block.strip() for _, block in _FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert FIRST_COMMAND in blocks
    assert SECOND_COMMAND in blocks


def test_ci_runs_the_second_command_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert lines[-1] == SECOND_COMMAND
    assert os.access(script, os.X_OK) or os.name == "nt"
    commands = [line.strip() for line in lines if re.match(r"\s*(pip|nox|python3?|\.) ", line)]
    in_readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(command in in_readme for command in commands)


def test_nox_runs_the_tests_in_the_environment_of_the_second_command() -> None:
    noxfile = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    assert re.search(r"@nox\.session\(venv_backend=IN_PLACE\)\ndef tests\(", noxfile)
    assert 'IN_PLACE = "none"' in noxfile


def test_every_nox_session_that_is_named_exists() -> None:
    sessions = set(
        re.findall(r"^@nox\.session.*\ndef (\w+)\(", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for page in PAGES:
        for name in re.findall(r"nox -s (\w+)", page.read_text(encoding="utf-8")):
            assert name in sessions, f"{page}: nox -s {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_parse(page: Path) -> None:
    for words in nertool_commands(page):
        try:
            parse(words)
        except Exception as error:  # noqa: BLE001 (whatever it is, the page is wrong)
            pytest.fail(f"nertool {' '.join(words)}: {error}")


def test_wrong_command_lines_are_found() -> None:
    for words in (
        ["splitt", "a", "b"],
        ["split", "a", "b", "--sed", "3"],
        ["split", "a", "b", "--seed", "x"],
        ["predict", "a"],
    ):
        with pytest.raises(Exception):  # noqa: B017 (an AssertionError of ours, or whatever Typer raises)
            parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page}: {target}"


def test_every_command_is_in_the_readme_and_has_a_page() -> None:
    names = set(typer.main.get_command(app).commands)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert names == set(re.findall(r"^\| \[`nertool ([\w-]+)`\]", readme, re.MULTILINE))
    pages = {path.stem for path in (ROOT / "docs" / "howto").glob("*.md")}
    assert names - {"demo"} <= pages
