"""What a training run writes down while it goes: `metrics.jsonl` and TensorBoard files."""

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
        self._writer: Any = None
        if run is None:
            return
        path = run / METRICS_FILE
        kept = path.read_bytes().splitlines(keepends=True)[:lines] if path.is_file() else []
        write_atomic(path, b"".join(kept))
        self.lines = len(kept)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (slow to import, and can be switched off)

            try:
                self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)
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
        if self._writer is not None:
            try:
                for name, value in values.items():
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        self._writer.add_scalar(f"{kind}/{name}", value, step)
                self._writer.flush()
            except OSError as error:  # all that it would show is in metrics.jsonl, too
                say(f"warning: no more TensorBoard files: {error}; training goes on, see {METRICS_FILE}")
                self._writer = None

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
