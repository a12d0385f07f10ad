"""The command `convert`, where files change under its hands."""

from pathlib import Path

import pytest

from nertool.files import json_lines
from tests.cli_helpers import in_an_empty_folder, refuse  # noqa: F401
from tests.conftest import make_corpus, write_documents


@pytest.mark.parametrize("output", ["converted", "converted.jsonl"])
def test_documents_that_vanish_before_they_are_read_again_are_missed(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = write_documents(Path("documents"), make_corpus(4))

    def remove_one(path: Path) -> object:
        (documents / "doc-002.json").unlink()
        return json_lines(path)

    monkeypatch.setattr("nertool.files.json_lines", remove_one)
    message = refuse("convert", documents, output)
    assert "documents changed while it was read" in message
    assert sorted(path.name for path in Path().iterdir()) == ["documents"]
