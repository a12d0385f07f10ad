"""The output of `predict`, which grows chunk by chunk beside its final place and survives a kill."""

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import orjson

from nertool.console import counted, say
from nertool.document_parsing import parse_document
from nertool.errors import NertoolError
from nertool.files import (
    exclusive,
    partial_path,
    put_back,
    read_json,
    replace_folder,
    write_atomic,
    write_json,
    write_manifest,
)
from nertool.formats import SIDE_FILES, Rejected
from nertool.formats.jsonl import compress, lines_of
from nertool.formats.kazu import KazuWriter
from nertool.formats.output import is_document_file, publish_documents

PARTS_ENDING = ".jsonl.zst"
_JOB_FILE = "job.json"
_RUNS_ON = "runs_on.json"
_REJECTED = "rejected.jsonl"
# In a folder of parts that are made apart: what they have in common.
_PARTS_FILE = ".nertool-parts.json"
# For other shards that begin at the same moment.
_WAIT_SECONDS = 60.0
# A chunk's key, how many documents it has and how many entities, and the digest of its content.
_CHUNK_NAME = re.compile(r"chunk-([0-9-]+)\.([0-9]+)\.([0-9]+)\.([0-9a-f]{16})\.done")


class PredictionOutput:
    """Takes predicted chunks; used as a context manager.

    Each chunk is a file of its own in a hidden folder beside the output, so a killed job goes on with what is missing.
    `finish` puts them together.

    Args:
        path: A folder, or a file with an ending of the jsonl format.
        documents_per_file: For a folder: 1 gives each document a file, more make parts of whole chunks.

    Raises:
        NertoolError: If another command is working on the same output.
    """

    def __init__(self, path: Path, documents_per_file: int = 1) -> None:
        self.path = path
        self.folder = partial_path(path)
        self.documents = 0
        self.entities = 0
        self._chunks: dict[str, Path] = {}
        self._documents: dict[str, int] = {}
        self._documents_per_file = documents_per_file
        self.runs_on: str | None = None

    @property
    def ending(self) -> str:
        """Decides, as in a file's name, how chunks are compressed."""
        return self.path.name if is_document_file(self.path) else PARTS_ENDING

    @property
    def done(self) -> frozenset[str]:
        """The keys of the chunks that are saved."""
        return frozenset(self._chunks)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(exclusive(self.path))
            stack.callback(self._remove_if_empty)
            self.folder.mkdir(exist_ok=True)
            self._rejected: BinaryIO = stack.enter_context((self.folder / _REJECTED).open("wb"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _remove_if_empty(self) -> None:
        if not any(self.folder.glob("chunk-*")):  # else it stays, to go on with
            shutil.rmtree(self.folder, ignore_errors=True)

    def reject(self, rejected: Sequence[Rejected]) -> None:
        """Sets aside documents that can't be used, with their reasons."""
        self._rejected.writelines(orjson.dumps(item.to_json()) + b"\n" for item in rejected)

    def resume(self, job: dict[str, Any]) -> None:
        """Takes up the chunks that a killed run left, if it was the same job; those of another one are thrown away.

        Args:
            job: What decides on the result: name → value.
        """
        file = self.folder / _JOB_FILE
        job = orjson.loads(orjson.dumps(job))  # lists for tuples, as in the file
        earlier = read_json(file) if file.is_file() else {}
        if earlier != job:
            names = [_CHUNK_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
            if lost := sum(int(name[2]) for name in names if name):
                differing = ", ".join(sorted(_differing(earlier, job)))
                what = counted(lost, "document of an earlier run is", "documents of an earlier run are")
                say(f"{what} not used, as it was another one: {differing}")
            for path in [*self.folder.glob("chunk-*"), *self.folder.glob(_RUNS_ON)]:
                path.unlink()
            write_json(file, job)
        if (self.folder / _RUNS_ON).is_file():
            self.runs_on = read_json(self.folder / _RUNS_ON, str)
        for path in list(self.folder.iterdir()):
            if name := _CHUNK_NAME.fullmatch(path.name):
                if _digest(path.read_bytes()) != name[4]:
                    say(f"{path} is damaged, so its {counted(int(name[2]), 'document')} are predicted again")
                    path.unlink()
                    continue
                self._take_up(name[1], path, int(name[2]), int(name[3]))
        if self._chunks:
            say(f"going on after {counted(self.documents, 'document that is', 'documents that are')} done")

    def _take_up(self, key: str, path: Path, documents: int, entities: int) -> None:
        self._chunks[key] = path
        self._documents[key] = documents
        self.documents += documents
        self.entities += entities

    def write(self, key: str, data: bytes, documents: int, entities: int, runs_on: str) -> None:
        """Saves a chunk, whole or not at all; one that is there already stays as it is.

        Args:
            key: Which chunk it is.
            data: Its documents as JSON lines.
            documents: How many they are.
            entities: How many entities they have.
            runs_on: The engine, the device and the precision, which must be the same for all chunks.

        Raises:
            NertoolError: If they are not.
        """
        if key in self._chunks:
            return
        if self.runs_on is None:
            write_json(self.folder / _RUNS_ON, runs_on)
            self.runs_on = runs_on
        if runs_on != self.runs_on:
            raise NertoolError(
                f"the documents so far were predicted by {self.runs_on}, now it is {runs_on}; results would be mixed",
                f"predict.engine, predict.device and predict.precision choose; to start anew delete {self.folder}",
            )
        path = self.folder / f"chunk-{key}.{documents}.{entities}.{_digest(data)}.done"
        write_atomic(path, data)
        self._take_up(key, path, documents, entities)

    def finish(self) -> None:
        """Makes the output appear, whole, with the documents that were set aside beside it."""
        self._rejected.close()
        rejected = self.folder / _REJECTED
        if not rejected.stat().st_size:
            rejected.unlink()
        if is_document_file(self.path):
            whole = self.folder / f"whole.{self.path.name}"
            _join((self._chunks[key] for key in sorted(self._chunks)), whole)
            publish_documents(whole, self.path)
        else:
            put_back(self.path)
            whole = self.folder / "documents"
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir()
            if self._documents_per_file == 1:
                self._write_files(whole)
            else:
                for number, keys in enumerate(self._parts()):
                    _join((self._chunks[key] for key in keys), whole / f"part-{number:05d}{PARTS_ENDING}")
            if rejected.exists():
                shutil.copyfile(rejected, whole / _REJECTED)
            write_manifest(whole, "predict")
            replace_folder(whole, self.path)
        shutil.rmtree(self.folder)

    def _write_files(self, folder: Path) -> None:
        with KazuWriter(folder) as writer:
            for key in sorted(self._chunks):
                for line in lines_of(self._chunks[key].read_bytes(), PARTS_ENDING):
                    writer.write(parse_document(line).document)

    def _parts(self) -> Iterator[list[str]]:
        keys: list[str] = []
        documents = 0
        for key in sorted(self._chunks):
            keys.append(key)
            documents += self._documents[key]
            if documents >= self._documents_per_file:
                yield keys
                keys, documents = [], 0
        if keys:
            yield keys


def part_of(folder: Path, number: int, count: int) -> Path:
    """Returns the file of one part of a folder whose parts are made apart."""
    return folder / f"part-{number:05d}-of-{count:05d}{PARTS_ENDING}"


def check_parts(folder: Path, facts: dict[str, Any], *, force: bool) -> None:
    """Makes sure that all parts of a folder are made by the same model in the same way, and notes how that is.

    Args:
        folder: The folder; made if it isn't there.
        facts: What the parts must have in common: name → value, None where it isn't known yet.
        force: Whether parts that were made otherwise are removed.

    Raises:
        NertoolError: If other parts were made otherwise, if there is something else in the folder, or if it can't be
            written.
    """
    file = folder / _PARTS_FILE
    facts = orjson.loads(orjson.dumps(facts))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder, wait_seconds=_WAIT_SECONDS):
            known = read_json(file) if file.is_file() else {}
            if not known and any(not path.name.startswith(".") for path in folder.iterdir()):
                raise NertoolError(f"{folder} holds other files; parts would be mixed with them", "choose another OUT")
            not_yet = {name for name in known.keys() & facts.keys() if known[name] is None or facts[name] is None}
            if known and (differing := sorted(_differing(known, facts) - not_yet)):
                if not force:
                    said = "; ".join(f"{name}: {known.get(name)} there, {facts.get(name)} now" for name in differing)
                    raise NertoolError(
                        f"the parts in {folder} were made otherwise ({said})",
                        "choose another OUT, or --force to remove them",
                    )
                for part in folder.glob(f"part-*-of-*{PARTS_ENDING}"):
                    for beside in SIDE_FILES:
                        part.with_name(f"{part.name}.{beside}").unlink(missing_ok=True)
                    part.unlink()
                known = {}
            news = {name: value for name, value in facts.items() if value is not None or name not in known}
            if known != (whole := {**known, **news}):
                write_json(file, whole)
    except OSError as error:
        raise NertoolError(f"cannot write {folder}: {error.strerror or error}", "choose another output") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


def _join(chunks: Iterable[Path], whole: Path) -> None:
    """Makes one file of chunks: compressed files may stand one after the other."""
    with whole.open("wb") as target:
        for chunk in chunks:
            with chunk.open("rb") as source:
                shutil.copyfileobj(source, target)
        if not target.tell():
            target.write(compress(b"", whole.name))
