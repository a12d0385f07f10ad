"""What a training run writes down while it goes: `metrics.jsonl` and TensorBoard files."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import orjson

from nertool.console import say
from nertool.errors import NertoolError
from nertool.files import write_atomic

METRICS_FILE = "metrics.jsonl"


def read_history(run: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's `metrics.jsonl`, none if there is no such file; what isn't whole is left out."""
    path = run / METRICS_FILE
    rows = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(orjson.JSONDecodeError):  # a run that is going on may just be writing it
            rows.append(orjson.loads(line))
    return [row for row in rows if isinstance(row, dict)]


class Tracker:
    """Appends to `metrics.jsonl` and, if wanted, to TensorBoard files; a resumed run goes on where its state was.

    Args:
        run: The run's folder; None writes nothing, for all processes of a run but the first.
        lines: Lines of `metrics.jsonl` that belong to the resumed state; what is after them is dropped.
        step: The step of that state.
        tensorboard: Whether to write TensorBoard files.
    """

    def __init__(self, run: Path | None, *, lines: int, step: int, tensorboard: bool) -> None:
        self.lines = 0
        self._file: IO[bytes] | None = None
        self._events: _EventFile | None = None
        if run is None:
            return
        path = run / METRICS_FILE
        kept = path.read_bytes().splitlines(keepends=True)[:lines] if path.is_file() else []
        write_atomic(path, b"".join(kept))
        self.lines = len(kept)
        if tensorboard:
            try:
                self._events = _EventFile(run / "tensorboard", step)
            except OSError as error:
                raise NertoolError(
                    f"{run / 'tensorboard'}: TensorBoard files can't be written there: {error.strerror or error}",
                    "mend the folder, or --set train.tensorboard=false",
                ) from error
        self._file = path.open("ab")

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Writes one line, and its numbers as TensorBoard scalars.

        Args:
            step: The optimizer step.
            kind: `train` or `eval`.
            values: What was measured.
        """
        if self._file is None:
            return
        self._file.write(orjson.dumps({"step": step, "kind": kind, **values}) + b"\n")
        self._file.flush()
        self.lines += 1
        if self._events is not None:
            try:
                numbers = {f"{kind}/{name}": value for name, value in values.items() if type(value) in (int, float)}
                self._events.write(step, numbers)
            except OSError as error:  # all that it would show is in metrics.jsonl, too
                say(f"warning: no more TensorBoard files: {error}; training goes on, see {METRICS_FILE}")
                self._events = None

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()


class _EventFile:
    """A file for TensorBoard. torch's writer has a thread that prints the traceback of what it meets.

    The file is opened for each record, or else it could be written to when its folder is gone.

    Args:
        folder: Where it is to be.
        step: The step of the state that training goes on from, 0 where it begins; what earlier files have after it is
            not shown any more.

    Raises:
        OSError: If it can't be written there.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415 (can be switched off)

        folder.mkdir(exist_ok=True)
        self._path = folder / f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}"
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:
            self._append(Event(wall_time=time.time(), step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the values that tags have at a step."""
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._append(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _append(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter  # noqa: PLC0415

        with self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())
