"""What people are told: one thing is said as one, many as many."""

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
