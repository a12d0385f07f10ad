"""Chunks of documents, predicted on two threads."""

from typing import Any

import pytest

from nertool import inference


def test_nothing_comes_after_a_chunk_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who counts the chunks would take the next one for it."""

    def with_entities(_tagger: Any, documents: list[str], *_: Any) -> list[str]:
        if documents == ["b"]:
            raise MemoryError("while decoding b")
        return documents

    monkeypatch.setattr(inference, "_prepare_documents", lambda _tagger, documents: documents)
    monkeypatch.setattr(inference, "token_logits", lambda _tagger, prepared: prepared)
    monkeypatch.setattr(inference, "_with_entities", with_entities)
    chunks: Any = [["a"], ["b"], ["c"], ["d"]]
    found = []
    with pytest.raises(MemoryError):
        for predicted in inference.predict_chunks(None, chunks):  # type: ignore[arg-type]
            found.append(predicted)
    assert found == [["a"]]
