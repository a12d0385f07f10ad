"""The file of raw answers: every one is kept, before anything is made of it, since it was paid for.

One JSON object per line, only ever appended to:
`{"key", "document", "section" or "sections", "start", "end", "text", "model", "prompt", "settings", "time", "response",
"failure", "finish_reason", "usage"}`. Only document, section(s) and response are needed to replay it.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import orjson

from nertool.documents import check_writable
from nertool.errors import NertoolError
from nertool.files import exclusive
from nertool.prompts import Piece, Place

_SYNC_EVERY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A recorded answer.

    Args:
        document: The document's id.
        sections: The indices of the sections that were asked for.
        response: What the LLM said; empty if there is a failure.
        start: Where the text begins in its section, if it was a part of it.
        end: Where it ends there; None for whole sections.
        text: Digest of the text; None if it wasn't recorded.
        model: The model that answered.
        failure: Why there is no response, when the endpoint refused for good.
        facts: The other fields: key, prompt, settings, time, finish_reason, usage.
    """

    document: str
    sections: tuple[int, ...]
    response: str
    start: int = 0
    end: int | None = None
    text: str | None = None
    model: str | None = None
    failure: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """What of the document was asked for."""
        return self.sections, self.start, self.end

    @property
    def digest(self) -> str:
        """A SHA-256 prefix of the response."""
        return hashlib.sha256(self.response.encode()).hexdigest()[:16]


def answer_for(piece: Piece, response: str, **facts: Any) -> Answer:
    """Returns the answer to be recorded for a piece; `model` and `failure` may be among the facts."""
    model, failure = facts.pop("model", None), facts.pop("failure", None)
    return Answer(piece.document, piece.sections, response, piece.start, piece.end, piece.digest, model, failure, facts)


class ResponseFile:
    """Recorded answers, found by document or by the key of their request; the answers themselves stay on disk.

    Args:
        path: The file.
        append: Whether answers are going to be added: the file is made if it is missing, a last line that a kill left
            unfinished is removed, and no other command can add to it meanwhile.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self.path = path
        self.input_tokens = 0
        self.output_tokens = 0
        self.text_chars = 0
        self.paid = 0  # answers of which that is known
        self._append = append
        self._by_document: dict[str, list[int]] = {}
        self._by_key: dict[str, tuple[int, int]] = {}  # offset and hash of the latest answer to a request
        self._latest: dict[int, int] = {}  # hash of document and place → hash of the latest answer about it
        self._synced = time.monotonic()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                if self._append:
                    stack.enter_context(exclusive(self.path))
                # Unbuffered: an answer is written in one call, so that a kill leaves it whole or cuts the last line.
                self._file: IO[bytes] = stack.enter_context(self.path.open("ab" if self._append else "rb", buffering=0))
                self._reader: IO[bytes] = stack.enter_context(self.path.open("rb"))
            except OSError as error:
                raise NertoolError(
                    f"cannot open the answers {self.path}: {error.strerror}", "check the path"
                ) from error
            self._index()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._append:
            os.fsync(self._file.fileno())
        self._stack.close()

    def __len__(self) -> int:
        return sum(map(len, self._by_document.values()))

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def with_key(self, key: str) -> Answer:
        """Returns the latest answer to a request."""
        return self._read(self._by_key[key][0])

    def is_latest(self, piece: Piece, key: str) -> bool:
        """Tells whether the latest answer about a piece is the latest one to this request."""
        return self._latest.get(hash((piece.document, *piece.place))) == self._by_key[key][1]

    def about(self, document: str) -> Iterator[Answer]:
        """Yields the answers about a document, the latest first."""
        return (self._read(offset) for offset in reversed(self._by_document.get(document, [])))

    def add(self, answer: Answer) -> None:
        """Appends an answer in one write; it is on disk a second later at most."""
        line = orjson.dumps(_to_json(answer)) + b"\n"
        offset = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._note(answer, offset)
        if time.monotonic() - self._synced > _SYNC_EVERY_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def add_copy(self, piece: Piece, key: str) -> None:
        """Appends the answer to a request once more, for another piece with the same text; it cost nothing."""
        answer = self.with_key(key)
        facts = {name: fact for name, fact in answer.facts.items() if name != "usage"}
        self.add(answer_for(piece, answer.response, model=answer.model, failure=answer.failure, **facts))

    def _index(self) -> None:
        offset = 0
        line = b""
        for number, line in enumerate(self._lines(), start=1):
            if line.strip():
                try:
                    self._note(_from_json(orjson.loads(line)), offset)
                except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                    if not line.endswith(b"\n"):  # a killed run was writing it, or another one is just now
                        if self._append:
                            self._file.truncate(offset)
                        return
                    reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                    raise NertoolError(
                        f"{self.path}:{number}: not a recorded answer: {reason}",
                        'a line is {"document": …, "section": …, "response": …}; mend or remove it',
                    ) from error
            offset += len(line)
        if self._append and offset and not line.endswith(b"\n"):
            self._file.write(b"\n")

    def _note(self, answer: Answer, offset: int) -> None:
        self._by_document.setdefault(answer.document, []).append(offset)
        key = answer.facts.get("key")
        content = hash((key, answer.response, answer.failure))
        self._latest[hash((answer.document, *answer.place))] = content
        if key is not None:
            self._by_key[key] = (offset, content)
        usage = answer.facts.get("usage", {})
        self.input_tokens += int(usage.get("input", 0))
        self.output_tokens += int(usage.get("output", 0))
        self.text_chars += int(usage.get("text_chars", 0))
        self.paid += "text_chars" in usage

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as lines:
            yield from lines

    def _read(self, offset: int) -> Answer:
        self._reader.seek(offset)
        return _from_json(orjson.loads(self._reader.readline()))


def _to_json(answer: Answer) -> dict[str, Any]:
    whole = answer.end is None
    single = len(answer.sections) == 1
    values = {
        "document": answer.document,
        **({"section": answer.sections[0]} if single else {"sections": answer.sections}),
        **({} if whole else {"start": answer.start, "end": answer.end}),
        "text": answer.text,
        "model": answer.model,
        **answer.facts,
        "response": answer.response,
        "failure": answer.failure,
    }
    return {name: value for name, value in values.items() if value is not None}


def _from_json(value: Any) -> Answer:
    if not isinstance(value, dict):
        raise TypeError("not an object")
    rest = dict(value)
    sections = rest.pop("sections", None)
    sections = (rest.pop("section"),) if sections is None else tuple(sections)
    response, document, end = rest.pop("response", None), rest.pop("document"), rest.pop("end", None)
    answer = Answer(
        document=document,
        sections=sections,
        response=response or "",
        start=rest.pop("start", 0),
        end=end,
        text=rest.pop("text", None),
        model=rest.pop("model", None),
        failure=rest.pop("failure", None),
        facts=rest,
    )
    if response is None and answer.failure is None:
        raise KeyError("response")
    if not sections or not all(map(_is_offset, (*sections, answer.start, 0 if end is None else end))):
        raise ValueError("sections, start and end are whole numbers from 0")
    if not all(isinstance(text, str | None) for text in (response, answer.text, answer.model, answer.failure)):
        raise ValueError("response, text, model and failure are strings")
    if not isinstance(document, str) or not isinstance(rest.get("usage", {}), dict):
        raise ValueError("document is a string, and usage an object")
    check_writable(rest)  # it becomes a part of documents
    return answer


def _is_offset(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
