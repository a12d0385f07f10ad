"""Chunks of documents, predicted on two threads."""

from typing import Any

import pytest

from nertool import inference
from nertool.errors import InterruptedBySignalError


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


@pytest.mark.parametrize("error", [MemoryError("c"), InterruptedBySignalError(15, "")])
def test_what_was_predicted_before_a_failure_or_a_signal_is_not_lost(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def token_logits(_tagger: Any, prepared: list[str]) -> list[str]:
        if prepared == ["c"]:
            raise error
        return prepared

    monkeypatch.setattr(inference, "_prepare_documents", lambda _tagger, documents: documents)
    monkeypatch.setattr(inference, "token_logits", token_logits)
    monkeypatch.setattr(inference, "_with_entities", lambda _tagger, documents, *_: documents)
    chunks: Any = [["a"], ["b"], ["c"], ["d"]]
    found = []
    with pytest.raises(type(error)):
        for predicted in inference.predict_chunks(None, chunks):  # type: ignore[arg-type]
            found.append(predicted)
    assert found == [["a"], ["b"]]
