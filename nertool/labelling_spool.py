"""What is to be shown in Label Studio, kept on disk until it is there; and a process that brings it while others work.

Training must neither wait for a server nor fail with it: it writes a file to its spool, and another process sends it.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import orjson
from pydantic import BaseModel, ConfigDict

from nertool.console import say
from nertool.document_parsing import InvalidDocumentError, parse_document
from nertool.documents import Document, Entity, Section, dump_document
from nertool.errors import NertoolError
from nertool.files import safe_file_name, write_atomic
from nertool.labelling_tasks import Item
from nertool.settings import LabelStudioSettings

SPOOL_FORMAT = 1
ENDING = ".spool.jsonl"
LOG_FILE = "upload.log"
_GRACE_SECONDS = 5.0
# Kept, as Python takes a running process that nobody refers to for a forgotten one.
_GOING_ON_ALONE: list[subprocess.Popen[bytes]] = []


class Spooled(NamedTuple):
    """A version of a model's predictions, and the sections that they are for."""

    project: str
    version: str
    labels: tuple[str, ...]
    keep_versions: int | None
    items: tuple[Item, ...]
    predicted: Mapping[str, tuple[Entity, ...]]


def write_spool(folder: Path, spooled: Spooled) -> Path:
    """Writes a file that `read_spool` reads; it appears whole, and replaces one of the same version and sections."""
    head = {
        "spool": SPOOL_FORMAT, "project": spooled.project, "version": spooled.version, "labels": spooled.labels,
        "keep_versions": spooled.keep_versions,
    }  # fmt: skip
    lines = [orjson.dumps(head)]
    for item in spooled.items:
        found = Section(item.section.name, item.section.text, spooled.predicted[item.key])
        shown, predicted = (
            dump_document(Document(item.document, (section,), extra))
            for section, extra in ((item.section, item.extra), (found, {}))
        )
        facts = {"index": item.index, "has_gold": item.has_gold}
        lines += [orjson.dumps(facts), shown, predicted]
    folder.mkdir(parents=True, exist_ok=True)
    what = orjson.dumps([spooled.project, spooled.version, [item.key for item in spooled.items]])
    path = folder / f"{safe_file_name(spooled.version)}-{hashlib.sha256(what).hexdigest()[:8]}{ENDING}"
    write_atomic(path, b"".join(line + b"\n" for line in lines))
    return path


class _Head(BaseModel):
    model_config = ConfigDict(strict=True)

    spool: Literal[1]
    project: str
    version: str
    labels: list[str]
    keep_versions: int | None


class _ItemFacts(BaseModel):
    model_config = ConfigDict(strict=True)

    index: int
    has_gold: bool


def read_spool(path: Path) -> Spooled:
    """Reads what `write_spool` wrote.

    Raises:
        NertoolError: If it is something else.
    """
    try:
        first, *lines = path.read_bytes().splitlines()
        head = _Head.model_validate(orjson.loads(first))
        items, predicted = [], {}
        for facts, shown, found in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
            known, document = _ItemFacts.model_validate(orjson.loads(facts)), parse_document(shown).document
            item = Item(document.id, known.index, document.sections[0], known.has_gold, document.extra)
            items.append(item)
            predicted[item.key] = parse_document(found).document.sections[0].entities
        return Spooled(head.project, head.version, tuple(head.labels), head.keep_versions, tuple(items), predicted)
    except (ValueError, IndexError, InvalidDocumentError) as error:
        raise NertoolError(f"{path} is no spool file of this nertool: {error}", "remove it") from error


def spool_files(folder: Path) -> list[Path]:
    """Returns the files of a spool, oldest first; another process may be removing some."""
    found = []
    for path in folder.glob(f"*{ENDING}"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


class Uploader:
    """Sends a spool's files from a process of its own; used as a context manager.

    Whatever happens to it, the caller hears one warning and nothing else.

    Args:
        folder: The spool.
        settings: How to reach the server.
    """

    def __init__(self, folder: Path, settings: LabelStudioSettings) -> None:
        self.folder = folder
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits a few seconds for what is on its way; a process that takes longer goes on alone."""
        end = time.monotonic() + _GRACE_SECONDS
        while True:
            self.start()
            if self._process is None:
                return
            try:
                self._process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                say(
                    "Label Studio is still being sent the last predictions, in the background; if they don't arrive: "
                    f"nertool ls-sync push --from {self.folder}"
                )
                _GOING_ON_ALONE.append(self._process)
                return
            self._look()
            if self._warned:
                return

    def start(self) -> None:
        """Begins to send what is there, unless that is going on already."""
        try:
            self._look()
            if self._process is None and spool_files(self.folder):
                with (self.folder / LOG_FILE).open("wb") as log:
                    self._process = subprocess.Popen(
                        [sys.executable, "-m", "nertool", "ls-sync", "push", "--from", str(self.folder.resolve())],
                        env={**os.environ, **self._environment()},
                        cwd=self.folder,  # where no settings file is found
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=log,
                        start_new_session=True,  # Ctrl-C is for the caller
                    )
        except OSError as error:
            self._warn(str(error))

    def _look(self) -> None:
        """Takes note of a process that has ended."""
        if self._process is None or self._process.poll() is None:
            return
        if self._process.returncode:
            self._warn(_reason(self.folder / LOG_FILE))
        self._process = None

    def _warn(self, reason: str) -> None:
        if not self._warned:
            say(
                f"warning: Label Studio doesn't get the predictions: {reason}; the work goes on without it. "
                f"Send them later: nertool ls-sync push --from {self.folder}"
            )
        self._warned = True

    def _environment(self) -> dict[str, str]:
        """Returns the settings as variables: they may have come from the command line or a file."""
        values = self._settings.model_dump(mode="json", exclude_none=True, exclude={"token"})
        if self._settings.ca_file is not None:
            values["ca_file"] = str(self._settings.ca_file.resolve())
        if self._settings.token is not None:
            values["token"] = self._settings.token.get_secret_value()
        return {f"NERTOOL_LABEL_STUDIO__{name.upper()}": _as_variable(value) for name, value in values.items()}


def _as_variable(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reason(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return errors[-1] if errors else f"see {log}"
