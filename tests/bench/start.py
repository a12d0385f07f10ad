"""How long it takes until nertool says something: `nox -s bench -- start [RUNS]`.

Each command is run as a process of its own, in turn with the others; the medians of wall and processor time are
printed, Python's own start beside them.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

NERTOOL = str(Path(sys.executable).with_name("nertool"))
COMMANDS = {
    "`python -c pass`": [sys.executable, "-c", "pass"],
    "`import nertool`": [sys.executable, "-c", "import nertool"],
    "the help, `--help`": [NERTOOL, "--help"],
    "the help of `train`": [NERTOOL, "train", "--help"],
    "`--version`": [NERTOOL, "--version"],
}


def measure(command: list[str]) -> tuple[float, float]:
    """Returns seconds on the clock, and of processors."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, used


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    for command in COMMANDS.values():
        measure(command)  # files into memory, and bytecode
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, command in COMMANDS.items():
            times[name].append(measure(command))
    print(f"| median of {runs} | wall, s | processor, s |\n|---|--:|--:|")
    for name, measured in times.items():
        wall, used = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"| {name} | {wall:.2f} | {used:.2f} |")


if __name__ == "__main__":
    main()
