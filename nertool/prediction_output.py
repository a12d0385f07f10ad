"""The output of `predict`, which grows chunk by chunk beside its final place and survives a kill."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import orjson

from nertool.document_parsing import parse_document
from nertool.documents import Document, dump_document
from nertool.files import (
    partial_path,
    publish_file,
    read_json,
    replace_folder,
    write_atomic,
    write_json,
    write_manifest,
)
from nertool.formats import ReadReport
from nertool.formats.jsonl import JsonlWriter
from nertool.formats.kazu import KazuWriter
from nertool.formats.output import is_document_file
from nertool.formats.reading import write_rejected

_JOB_FILE = "job.json"


class PredictionOutput:
    """Takes predicted documents chunk by chunk; `documents` and `entities` say how many there are.

    Each chunk is a file of its own in a hidden folder beside the output, so a killed job goes on after the last whole
    chunk. `finish` puts them together.

    Args:
        path: A folder, or a file with an ending of the jsonl format.
        job: What decides on the result; what another job left behind is thrown away.
    """

    def __init__(self, path: Path, job: dict[str, Any]) -> None:
        self.path = path
        self._partial = partial_path(path)
        self._job = job
        self.documents = 0
        self.entities = 0
        self._chunks: list[Path] = []

    def __enter__(self) -> Self:
        if not (self._partial / _JOB_FILE).is_file() or read_json(self._partial / _JOB_FILE) != self._job:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir()
            write_json(self._partial / _JOB_FILE, self._job)
        self._chunks = sorted(self._partial.glob("chunk-*.jsonl"))
        for chunk in self._chunks:
            for line in chunk.read_bytes().splitlines():
                self._count(orjson.loads(line))
        return self

    def __exit__(self, *exception: object) -> None:
        pass  # what is unfinished stays, to go on with

    def _count(self, document: dict[str, Any]) -> None:
        self.documents += 1
        self.entities += sum(len(section.get("entities", [])) for section in document["sections"])

    def write(self, documents: Sequence[Document]) -> None:
        """Saves a chunk, whole or not at all."""
        chunk = self._partial / f"chunk-{len(self._chunks):08d}.jsonl"
        write_atomic(chunk, b"".join(dump_document(document) + b"\n" for document in documents))
        self._chunks.append(chunk)
        self.documents += len(documents)
        self.entities += sum(len(section.entities) for document in documents for section in document.sections)

    def finish(self, reading: ReadReport) -> None:
        """Makes the output appear, whole, with the documents that were set aside beside it."""
        as_file = is_document_file(self.path)
        name = self.path.name if as_file else "documents"
        writer: JsonlWriter | KazuWriter = (JsonlWriter if as_file else KazuWriter)(self._partial / name)
        with writer:
            for chunk in self._chunks:
                for line in chunk.read_bytes().splitlines():
                    writer.write(parse_document(line).document)
        if as_file:
            write_rejected(reading, self.path.with_name(f"{self.path.name}.rejected.jsonl"))
            publish_file(self._partial / name, self.path)
        else:
            write_rejected(reading, self._partial / name / "rejected.jsonl")
            write_manifest(self._partial / name, "predict")
            replace_folder(self._partial / name, self.path)
        shutil.rmtree(self._partial)
