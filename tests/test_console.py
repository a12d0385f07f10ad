"""What people are told: one thing is said as one, many as many."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from nertool.console import counted
from tests.cli_helpers import in_an_empty_folder, succeed  # noqa: F401
from tests.conftest import make_corpus, write_documents


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (1, ("document",), "1 document"),
        (0, ("document",), "0 documents"),
        (12_345, ("document",), "12,345 documents"),
        (1, ("entity", "entities"), "1 entity"),
        (2, ("entity", "entities"), "2 entities"),
    ],
)
def test_what_is_counted_is_one_or_many(number: int, words: tuple[str, ...], expected: str) -> None:
    assert counted(number, *words) == expected


def test_commands_say_one_thing_as_one() -> None:
    documents = write_documents(Path("in"), make_corpus(1))
    stderr = succeed("convert", documents, "out").stderr
    assert "1 document with " in stderr
    (documents / "bad.json").write_bytes(b"[]")
    (documents / "notes.xyz").touch()
    stderr = succeed("convert", documents, "others", "--skip-invalid").stderr
    assert "1 invalid document was set aside" in stderr
    assert "1 other file or folder was not read (notes.xyz)" in stderr


def in_a_terminal(code: str, columns: int, term: str = "xterm") -> str:
    """Runs Python code with a terminal of so many columns as stderr; returns all that it got, line ends as `\\n`."""
    if os.name != "posix":
        pytest.skip("needs a pseudo-terminal")
    import fcntl
    import pty
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=follower, env={**environment, "TERM": term})
    os.close(follower)
    output = b""
    while True:
        try:
            data = os.read(leader, 65_536)
        except OSError:  # how Linux says that nobody has the other end any more
            break
        if not data:
            break
        output += data
    os.close(leader)
    assert process.wait(60) == 0, output
    return output.decode().replace("\r\n", "\n")


TABLE = """
from rich.table import Table
from nertool.console import show
table = Table()
table.add_column("class")
for name in ("precision", "recall", "F1", "95 % interval", "overlap F1", "support"):
    table.add_column(name, justify="right")
table.add_row("disease, disorder, phenotype or trait", "0.123", "0.345", "0.567", "0.100–0.200", "0.888", "12,345")
table.add_row("mean of the classes", "", "", "0.765", "", "", "")
show(table)
"""


def test_names_stand_beside_numbers_that_have_blanks_in_them() -> None:
    code = (
        "from nertool.console import number_table, show\n"
        "table = number_table('class', numbers=['train', 'eval', 'test'], framed=True)\n"
        "table.add_row('cell type', '164 (80.8 %)', '18 (8.9 %)', '21 (10.3 %)')\n"
        "show(table)\n"
    )
    for columns in (40, 50, 60):
        shown = " ".join(in_a_terminal(code, columns).split())
        for text in ("cell", "type", "164 (80.8 %)", "18 (8.9 %)", "21 (10.3 %)"):
            assert text in shown, columns


@pytest.mark.parametrize("columns", [25, 40, 60, 80, 100, 130])
def test_tables_fit_the_terminal_and_no_number_is_cut_off(columns: int) -> None:
    shown = re.sub(r"\x1b\[[0-9;]*m", "", in_a_terminal(TABLE, columns))
    assert max(map(len, shown.splitlines())) <= columns
    for number in ("0.123", "0.345", "0.567", "0.100–0.200", "0.888", "12,345", "0.765"):
        assert number in shown
    assert "…" not in shown
    assert ("┃" in shown) == (columns == 130)
    assert ("F1 0.567" in " ".join(shown.split())) == (columns < 80)


def test_lines_break_between_words_but_the_next_command_stays_whole() -> None:
    code = (
        "from nertool.console import say, say_beside, suggest\n"
        "say('these words are longer than a narrow terminal')\n"
        "say_beside('Error:', 'red', 'these, too, are longer than a terminal')\n"
        "say('  → and so is what there is to do in_a_folder_with_a_long_name')\n"
        "suggest('train', '--train', 'a folder with a name/train', '--output', 'run')\n"
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", in_a_terminal(code, 20)).splitlines()
    assert [line.rstrip() for line in lines] == [
        "these words are", "longer than a narrow", "terminal",
        "Error: these, too,", "       are longer", "       than a", "       terminal",
        "  → and so is what", "    there is to do", "    in_a_folder_with", "    _a_long_name",
        "next: nertool train --train 'a folder with a name/train' --output run",
    ]  # fmt: skip


PROGRESS = """
import time
from nertool.console import progress
with progress("training", 3000, "steps") as advance:
    for done in (0, 750, 1500):
        advance(done, "loss 0.1234, 1,939 tokens/s, best micro_f1 0.8123")
        time.sleep(0.3)
"""


def test_progress_in_a_narrow_terminal_shows_how_far_it_is() -> None:
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", in_a_terminal(PROGRESS, 40))
    assert re.search(r"training 50 % \d+ s left loss 0\.12", shown)
    assert max(len(line) for line in re.split(r"[\r\n]", shown)) <= 40
    wide = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", in_a_terminal(PROGRESS, 120))
    assert re.search(r"training ━+[╸╺ ━]* 1,500/3,000 steps \d+ s left loss 0\.1234, 1,939 tokens/s", wide)


def test_a_dumb_terminal_gets_plain_lines() -> None:
    assert "\x1b" not in in_a_terminal(PROGRESS + TABLE, 80, term="dumb")
