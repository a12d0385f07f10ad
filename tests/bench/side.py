"""One side of the comparison with KAZU: a process that answers requests, one line of JSON each, and measures itself.

Knows nothing of nertool or KAZU, as each side runs in a Python of its own.
"""

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path


def serve(**functions):
    """Reads `[name, arguments]` from stdin and answers on what was stdout; what others print goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(functions[name](**arguments)), file=answers, flush=True)


def measured(work):
    """Runs it; returns its result with wall seconds, CPU seconds and the most memory meanwhile, in MB."""
    peak, ended = [memory()], threading.Event()

    def watch():
        while not ended.wait(0.05):
            peak[0] = max(peak[0], memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wall, cpu = time.perf_counter(), cpu_seconds()
    result = work()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    ended.set()
    watcher.join()
    return {**result, "wall_seconds": wall, "cpu_seconds": cpu, "peak_mb": max(peak[0], memory())}


def cpu_seconds():
    """Returns the CPU time of this process and of those of its children that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def memory():
    """Returns the memory in use now, in MB; its peak so far where the system doesn't tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def folder_facts(folder):
    """Returns how many files there are in a folder, and their bytes."""
    files = [file for file in Path(folder).iterdir() if file.is_file()]
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}
