"""Gives one reader hostile inputs, and notes what they do: `python -m tests.fuzz.worker READER FOLDER …`.

With atheris the inputs are those that reach code that no earlier one reached, damaged once more; else valid ones and
those that were taken. What must not happen stops nothing: of each kind the smallest input is kept.
"""

import argparse
import gc
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

MOST_SECONDS, MOST_MEGABYTES = 5.0, 500.0
_INSTRUMENTED = 3  # as long as that do Python's steps take, about, when atheris counts them
_ADDRESS_SPACE_BYTES = 12 * 2**30  # more would be a defect in any case, and must not take the machine with it
_MOST_KEPT = 200


class TooSlowError(BaseException):
    """An input takes too long; no `except Exception` of a reader catches it."""


class Session:
    """Feeds one reader, and keeps count.

    Args:
        reader: The reader.
        folder: Where the inputs and results go.
        inputs: How many to try.
        seconds: When to stop at the latest.
        most_seconds: How long one input may take, in seconds of one core.
    """

    def __init__(self, reader: Any, folder: Path, inputs: int, seconds: float, most_seconds: float) -> None:
        self.reader, self.folder, self.inputs, self.most_seconds = reader, folder, inputs, most_seconds
        self.end = time.monotonic() + seconds
        self.began = time.monotonic()
        self.cpu = time.process_time()
        self.tried = self.taken = self.refused = 0
        self.slowest = 0.0
        self.found: dict[str, dict[str, Any]] = {}
        self.work = folder / "work"
        self.current = (folder / "current").open("w+b", buffering=0)
        self.grown = 0.0
        self.written = 0.0

    def try_input(self, data: bytes) -> bool:
        """Reads an input; tells whether it was taken."""
        from nertool.errors import NertoolError

        if self.tried % 64 == 0:
            self._clean()
            if time.monotonic() - self.written > 2:
                self.write()
        if self.tried >= self.inputs or time.monotonic() > self.end:
            self.write()
            os._exit(0)  # atheris gives no other way
        # Kept for whoever looks after a crash of the process.
        os.pwrite(self.current.fileno(), len(data).to_bytes(4, "big") + data, 0)
        self.tried += 1
        before = _peak_megabytes()  # damaging may have taken more than reading ever does
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self.most_seconds)
        taken = False
        try:
            taken = self.reader.check(data, self.work)
            self.taken += taken
        except NertoolError as error:
            self.refused += 1
            if not error.message:
                self._note(AssertionError("an error without a message"), data)
        except (Exception, TooSlowError) as error:  # noqa: BLE001 (which is what is looked for)
            self._note(error, data)
            self._clean()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        seconds = time.process_time() - began
        if seconds > self.slowest:
            self.slowest = seconds
            (self.folder / "slowest").write_bytes(data)
        growth = _peak_megabytes() - before
        self.grown += growth
        if growth > MOST_MEGABYTES:
            self._note(MemoryError(f"{growth:.0f} MB"), data)
        elif growth > 20:
            (self.folder / "biggest").write_bytes(data)
        return taken

    def _clean(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()

    def _note(self, error: BaseException, data: bytes) -> None:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if "/tests/fuzz/worker" not in one.filename]
        ours = [one for one in frames if "/nertool/" in one.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].name}:{ours[-1].lineno}" if ours else "?"
        kind = f"{type(error).__name__} at {where}"
        if isinstance(error, AssertionError | MemoryError):
            kind += re.sub(r"\d+", "#", f" {error}")[:60]
        known = self.found.get(kind)
        if known is not None:
            known["count"] += 1
            if len(data) >= known["bytes"]:
                return
        elif len(self.found) >= _MOST_KEPT:
            return
        number = known["number"] if known else len(self.found)
        self.found[kind] = {
            "number": number,
            "count": known["count"] if known else 1,
            "bytes": len(data),
            "message": str(error)[:300],
        }
        (self.folder / f"found-{number:03d}").write_bytes(data)
        trace = "".join(traceback.format_exception(error)[-25:])[-6000:]
        (self.folder / f"found-{number:03d}.txt").write_text(f"{kind}\n{trace}", encoding="utf-8", errors="replace")
        self.write()

    def write(self) -> None:
        """Writes what is known so far."""
        self.written = time.monotonic()
        facts = {
            "reader": self.reader.name,
            "inputs": self.tried,
            "taken": self.taken,
            "seconds": self.written - self.began,
            "cpu_seconds": time.process_time() - self.cpu,
            "slowest_seconds": self.slowest,
            "megabytes": self.grown,
            "found": self.found,
        }
        temporary = self.folder / "result.tmp"
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        temporary.replace(self.folder / "result.json")


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _stop(_: int, __: FrameType | None) -> None:
    raise TooSlowError("too long")


def main() -> None:
    """Runs until enough inputs were tried, or the time is over."""
    parser = argparse.ArgumentParser()
    parser.add_argument("reader")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    sys.modules["torch"] = None  # type: ignore[assignment]  # no reader needs it; spaCy would take it
    atheris: Any = None
    if not arguments.plain:
        import atheris

        with atheris.instrument_imports(include=["nertool", "json_repair"]):
            from .readers import READERS
    else:
        from .readers import READERS
    reader = READERS[arguments.reader]
    most_seconds = MOST_SECONDS * (1 if arguments.plain else _INSTRUMENTED)
    session = Session(reader, arguments.folder, arguments.inputs, arguments.seconds, most_seconds)
    corpus = arguments.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    made = arguments.folder / "seeds"
    made.mkdir(exist_ok=True)
    seeds = reader.seeds(made)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number:03d}").write_bytes(data)
    signal.signal(signal.SIGPROF, _stop)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))
    warnings.simplefilter("ignore")
    logging.disable()
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # what nertool tells people
    session._clean()
    if atheris is None:
        _run_plain(session, seeds, random.Random(arguments.seed))
    else:
        _run_atheris(session, seeds, corpus, arguments.seed, atheris)


def _run_plain(session: Session, seeds: list[bytes], rng: random.Random) -> None:
    pool = list(seeds)
    for data in seeds:
        session.try_input(data)
    while True:
        data = session.reader.damage(rng.choice(pool), rng, seeds)
        if session.try_input(data) and len(pool) < 500 and rng.random() < 0.1:
            pool.append(data)
        if session.tried % 5000 == 0:
            gc.collect()


def _run_atheris(session: Session, seeds: list[bytes], corpus: Path, seed: int, atheris: Any) -> None:
    def damage(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        way = rng.random()
        if way < 0.25:
            changed: bytes = atheris.Mutate(data, most)
            return changed
        if way < 0.6:  # what only reaches new ways to be refused would soon be most of the corpus
            data = rng.choice(seeds)
        return session.reader.damage(data, rng, seeds)[:most]

    def run(data: bytes) -> None:
        session.try_input(data)

    # Limits are looked after here: atheris would end the process at the first input beyond one.
    options = [
        "-handle_alrm=0",
        "-timeout=100000",
        "-rss_limit_mb=0",
        "-malloc_limit_mb=0",
        "-max_len=65536",
        "-len_control=0",
        "-report_slow_units=100000",
    ]
    atheris.Setup(
        ["fuzz", *options, f"-seed={seed + 1}", f"-artifact_prefix={corpus.parent}/", str(corpus)],
        run,
        custom_mutator=damage,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
