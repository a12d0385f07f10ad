"""What the harness of `nox -s reliability` sees, and what its table says."""

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import make_corpus, write_documents
from tests.reliability.faults import differing
from tests.reliability.jobs import tree
from tests.reliability.processes import Ended, Hook, fork
from tests.reliability.table import make_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_documents(tmp_path / "in/documents", make_corpus(3))
    (tmp_path / "out").mkdir()
    return tmp_path


def convert(folder: Path, hook: Hook, output: str = "out/all.jsonl") -> Ended:
    return fork(folder, ["convert", "in/documents", output], {}, hook).wait()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_command_is_killed_in_the_middle_of_a_write(folder: Path) -> None:
    whole = folder / "in/documents/doc-001.json"
    assert convert(folder, Hook(folder, "writes", 1, kill)).status == -signal.SIGKILL
    (left,) = [path for path in (folder / "out").rglob("*") if path.is_file() and path.stat().st_size]
    first, second = left.read_bytes().split(b"\n")
    assert first == (folder / "in/documents/doc-000.json").read_bytes()
    assert whole.read_bytes().startswith(second) and 0 < len(second) < len(whole.read_bytes())
    assert convert(folder, Hook(folder)).status == 0
    assert list(tree(folder / "out")) == ["all.jsonl"]


def test_every_change_of_the_file_system_is_a_moment(folder: Path) -> None:
    hook = Hook(folder)
    assert convert(folder, hook).status == 0
    made = tree(folder / "out")
    moments = 0
    for number in range(100):
        (folder / "out/all.jsonl").unlink(missing_ok=True)
        ended = convert(folder, Hook(folder, "changes", number, kill))
        moments += ended.status == -signal.SIGKILL
        if ended.status == 0:
            break
        assert set(tree(folder / "out")) >= set(made) or not (folder / "out/all.jsonl").exists()
    assert 5 < moments == number


def test_a_difference_of_one_byte_is_a_difference(folder: Path) -> None:
    assert convert(folder, Hook(folder)).status == 0
    made = tree(folder / "out")
    data = (folder / "out/all.jsonl").read_bytes()
    (folder / "out/all.jsonl").write_bytes(data.replace(b"lung", b"lunG", 1))
    (folder / "out/.left").touch()
    assert differing(made, tree(folder / "out")) == [".left", "all.jsonl"]


def test_the_table_counts_what_held_and_what_did_not() -> None:
    def line(fault: str, what: str, *, held: bool = True, message: str = "") -> dict[str, object]:
        return {"command": "split", "fault": fault, "held": held, "what": what, "message": message, "detail": ""}

    table = make_table(
        [
            line("killed", "went on"),
            line("killed", "other output", held=False),
            line("full disk", "refused", message="a|b"),
        ]
    ).splitlines()
    assert table[2] == "| `split` | **1 of 2** | 1 |"
    assert table[3] == "| all | **1 of 2** | 1 |"
    assert table[-1] == "| full disk | refused | 1 | “a\\|b” |"
