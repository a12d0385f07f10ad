"""Gives every reader hostile inputs, one reader after the other, and writes down what came of it.

    nox -s fuzz -- --inputs 1000 --seconds 60          # of each reader
    nox -s fuzz -- PubTator "LLM answers"              # these only
    nox -s fuzz -- --table docs/reference/robustness.table

Each reader has a process of its own, so that its memory is its own, and a crash ends no more than it. What must not
have happened is in the folder of results: for each kind the smallest input and the traceback. Exit status 1 if there is
anything.
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .readers import READERS

_SILENT_SECONDS = 600.0  # on a machine that is busy with other things


def fuzz(name: str, folder: Path, options: list[str]) -> dict[str, Any]:
    """Runs one reader's process, and returns what came of it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "tests.fuzz.worker", name, str(folder), *options]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        result = folder / "result.json"
        begun = time.time()
        while process.poll() is None:
            time.sleep(0.5)
            changed = result.stat().st_mtime if result.is_file() else begun
            if time.time() - changed > _SILENT_SECONDS:
                process.kill()  # it hangs where no signal is heard
                process.wait()
    log_text = (folder / "log").read_text(encoding="utf-8", errors="replace")
    facts: dict[str, Any] = (
        json.loads(result.read_bytes()) if result.is_file() else {"reader": name, "inputs": 0, "found": {}}
    )
    if process.returncode != 0:
        raw = (folder / "current").read_bytes() if (folder / "current").is_file() else bytes(4)
        (folder / "crash").write_bytes(raw[4 : 4 + int.from_bytes(raw[:4], "big")])
        facts["found"][f"the process ended with {process.returncode}"] = {"count": 1, "message": log_text[-500:]}
    covered = re.findall(r"cov: (\d+)", log_text)
    facts["covered"] = int(covered[-1]) if covered else None
    (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return facts


def table(results: list[dict[str, Any]]) -> str:
    """Returns the table of the reference."""
    lines = [
        "| reader | inputs | taken | code reached | exceptions, hangs | slowest, s | memory, MB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in results:
        covered = f"{one['covered']:,}" if one["covered"] else "–"
        lines.append(
            f"| {one['reader']} | {one['inputs']:,} | {100 * one['taken'] / max(1, one['inputs']):.0f} % | {covered} | {len(one['found'])} | "
            f"{one['slowest_seconds']:.2f} | {one['megabytes']:.0f} |"
        )
    inputs, found = sum(one["inputs"] for one in results), sum(len(one["found"]) for one in results)
    lines.append(f"| **all** | **{inputs:,}** | | | **{found}** | | |")
    cpu = sum(one["cpu_seconds"] for one in results)
    return "\n".join(
        [*lines, "", f"{cpu / 60:.0f} minutes of one core ({_machine()}), Python {platform.python_version()}.", ""]
    )


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.is_file() else None
    return f"{found[1] if found else platform.machine()}, {len(os.sched_getaffinity(0))} shared cores"


def _slug(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-")


def main() -> int:
    """Runs all that is asked for."""
    parser = argparse.ArgumentParser(
        prog="fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"by default all: {', '.join(READERS)}")
    parser.add_argument("--inputs", type=int, default=1000, help="how many each reader gets at most")
    parser.add_argument("--seconds", type=float, default=60, help="how long each reader is tried at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without atheris, even if it is installed")
    parser.add_argument("--results", type=Path, default=None, help="folder for results; by default a temporary one")
    parser.add_argument("--table", type=Path, help="write the table of the reference there")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.readers if name not in READERS]:
        parser.error(f"no reader {unknown[0]!r}; there are: {', '.join(READERS)}")
    plain = arguments.plain or importlib.util.find_spec("atheris") is None
    options = [
        f"--inputs={arguments.inputs}",
        f"--seconds={arguments.seconds}",
        f"--seed={arguments.seed}",
        *(["--plain"] if plain else []),
    ]
    folder = arguments.results or Path(tempfile.mkdtemp(prefix="nertool-fuzz-"))
    print(f"{'mutations only' if plain else 'guided by coverage (atheris)'}; results in {folder}", flush=True)
    for name in arguments.readers or READERS:
        one = fuzz(name, folder / _slug(name), options)
        print(
            f"{name}: {one['inputs']:,} inputs, {one.get('seconds', 0):.0f} s, {len(one['found'])} kinds of defects",
            flush=True,
        )
        for kind, what in one["found"].items():
            print(f"    {what['count']:,} × {kind}: {what['message'][:150]!r}", flush=True)
    kept = [folder / _slug(name) / "facts.json" for name in READERS]  # also of earlier runs with the same --results
    results = [json.loads(file.read_bytes()) for file in kept if file.is_file()]
    whole = table([one for one in results if "taken" in one])
    print(whole)
    if arguments.table:
        arguments.table.write_text(whole, encoding="utf-8")
    return 1 if any(one["found"] for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
