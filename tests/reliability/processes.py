"""Running a command that something befalls: as a process forked from this one, or as one that is started afresh.

A forked one has all heavy modules already and so begins at once, and it can be told to do something at a certain
moment: before the n-th time that it opens a file to write, renames, removes or makes one, or in the middle of the n-th
write. This process must stay without threads for that.
"""

import builtins
import contextlib
import importlib
import io
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_HEAVY = [
    "torch", "transformers", "safetensors.torch", "numpy", "onnx", "rich.progress", "rich.table", "nertool.cli",
    "nertool.runs", "nertool.distillation", "nertool.exporting", "nertool.auditing", "nertool.metrics",
    "nertool.bulk_prediction", "nertool.annotation_run", "nertool.cache_building", "nertool.splitting",
    "nertool.formats", "nertool.thresholds", "nertool.calibration", "nertool.groups", "nertool.error_analysis",
    "nertool.labelling_sync", "nertool.kazu_export", "nertool.asking", "openai.resources.chat.completions",
    "transformers.models.bert.modeling_bert", "transformers.models.auto.modeling_auto",
]  # fmt: skip
LIMIT_SECONDS = 240.0
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        status: Its exit status; negative: the signal that ended it.
        stderr: What it told people.
        stdout: What it gave to programs.
        seconds: How long it took.
    """

    status: int
    stderr: str
    stdout: str
    seconds: float

    @property
    def message(self) -> str:
        """What it says is wrong, and what to do: the lines from `Error:` on."""
        _, found, message = self.stderr.rpartition("Error: ")
        return " ".join(message.split()) if found else ""


def preload() -> None:
    """Imports what commands need, so that a forked one needn't."""
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class Hook:
    """Acts at the n-th moment of a kind, and counts them: `changes` and `writes` below `out`, `reads` below `in`.

    Args:
        folder: The folder of `in` and `out`.
        kind: Which moments.
        number: Which of them, from 0.
        act: What to do then; for `writes` when half of the bytes are written.
    """

    def __init__(self, folder: Path, kind: str = "", number: int = -1, act: Callable[[], None] = lambda: None) -> None:
        self.source, self.target = (str(folder.resolve() / name) for name in ("in", "out"))
        self.kind, self.number, self.act = kind, number, act
        self.counts = {"changes": 0, "writes": 0, "reads": 0}

    def install(self) -> None:
        """Begins to watch this process."""
        sys.addaudithook(self._audit)
        plain = builtins.open

        def watched(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            opened = plain(file, mode, *args, **kwargs)
            writes = isinstance(mode, str) and set(mode) & set("wax+") and not isinstance(file, int)
            return _Torn(opened, self) if writes and _is_below(file, self.target) else opened

        builtins.open = io.open = watched  # type: ignore[assignment]

    def count(self, kind: str) -> bool:
        """Counts a moment; tells whether it is the one."""
        self.counts[kind] += 1
        return kind == self.kind and self.counts[kind] - 1 == self.number

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                happens = _is_below(path, self.target) and self.count("changes")
            else:
                happens = _is_below(path, self.source) and self.count("reads")
        else:
            happens = event in _CHANGES and _is_below(args[0], self.target) and self.count("changes")
        if happens:
            self.kind = "done"  # what is done now is no further moment
            self.act()


def _is_below(path: Any, folder: str) -> bool:
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    return os.path.abspath(os.fsdecode(path)).startswith(folder)  # noqa: PTH100 (called for each open)


class _Torn:
    """A file that is written to; at the chosen write only half of it is on its way when something happens."""

    def __init__(self, file: Any, hook: Hook) -> None:
        self._file, self._hook = file, hook

    def write(self, data: Any) -> Any:
        if self._hook.count("writes"):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._hook.kind = "done"
            self._hook.act()
            data = data[len(data) // 2 :]
        return self._file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Torn":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def __iter__(self) -> Any:
        return iter(self._file)


def pause(seconds: float) -> None:
    """Waits; `time.sleep` fails now and then where the clock is faked."""
    select.select([], [], [], seconds)


@dataclass
class Running:
    """A command that is running; what it says goes to the hidden files `talk`.out and `talk`.err."""

    pid: int
    talk: Path
    process: "subprocess.Popen[bytes] | None" = None
    begun: float = field(default_factory=time.monotonic)

    def send(self, number: int) -> None:
        """Sends it a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Waits for its end; one that takes far too long is killed."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            pause(0.002)
        status = os.waitstatus_to_exitcode(found[1])
        if self.process is not None:
            self.process.returncode = status
        files = [self.talk.with_suffix(ending) for ending in (".err", ".out")]
        stderr, stdout = (file.read_text(errors="replace") for file in files)
        for file in files:
            file.unlink()
        return Ended(status, stderr, stdout, time.monotonic() - self.begun)


def fork(folder: Path, arguments: Sequence[str], environment: dict[str, str], hook: Hook | None = None) -> Running:
    """Starts `nertool ARGUMENTS` in a folder, in a copy of this process."""
    talk = _talk(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return Running(pid, talk)
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for ending, descriptor in ((".out", 1), (".err", 2)):
            os.dup2(os.open(talk.with_suffix(ending), os.O_WRONLY), descriptor)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(environment)
        sys.argv = ["nertool", *arguments]
        from nertool.cli import main

        if hook is not None:
            hook.install()
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (as at the end of any Python program)
        traceback.print_exc()
    finally:
        if hook is not None and not hook.kind:
            talk.with_suffix(".counts").write_text(json.dumps(hook.counts))
        os._exit(status)


def start(folder: Path, arguments: Sequence[str], environment: dict[str, str]) -> Running:
    """Starts `nertool ARGUMENTS` in a folder as people do: a new interpreter."""
    talk = _talk(folder)
    with talk.with_suffix(".out").open("wb") as stdout, talk.with_suffix(".err").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "nertool", *arguments], cwd=folder, stdout=stdout, stderr=stderr,
            start_new_session=True, env={**os.environ, **environment, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
        )  # fmt: skip
    return Running(process.pid, talk, process)


def _talk(folder: Path) -> Path:
    talk = folder.resolve() / f".talk-{next(_NUMBERS)}"
    for ending in (".out", ".err"):
        talk.with_suffix(ending).touch()
    return talk
