"""Worker processes: order, memory, and how they end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nertool.errors import NertoolError
from nertool.workers import WorkerPool

_prepared: list[int] = []


def prepare(number: int) -> None:
    _prepared.append(number)


def work(item: int) -> tuple[int, int]:
    if item == 3:
        time.sleep(0.2)  # overtaken by others, it still comes in its place
    if item < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * _prepared[0], os.getpid()


def test_results_come_in_order_and_items_are_taken_when_they_are_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(12):
            taken.append(item)
            yield item

    with WorkerPool(2, prepare, (10,)) as pool:
        results = pool.map_in_order(work, items())
        first, process = next(results)
        assert (first, len(taken)) == (0, 3)
        assert process != os.getpid()
        assert [result for result, _ in results] == [10 * item for item in range(1, 12)]


def test_a_worker_that_is_killed_is_an_error_that_says_what_to_do() -> None:
    with WorkerPool(2, prepare, (1,)) as pool, pytest.raises(NertoolError, match="a worker process was killed"):
        list(pool.map_in_order(work, [1, -1, 2]))


def sleep(item: int) -> int:
    time.sleep(item)
    return item


def test_an_interruption_does_not_wait_for_what_workers_are_at() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), WorkerPool(2, prepare, (1,)) as pool:
        for _ in pool.map_in_order(sleep, [0, 60, 60]):
            raise KeyboardInterrupt
    assert time.monotonic() - began < 30


def test_workers_end_when_the_parent_is_killed() -> None:
    script = (
        "from nertool.workers import WorkerPool; from tests.test_workers import prepare, work\n"
        "if __name__ == '__main__':\n"
        "    with WorkerPool(2, prepare, (1,)) as pool:\n"
        "        print(*[pid for _, pid in pool.map_in_order(work, range(8))], flush=True)\n"
        "        import time; time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        workers = {int(pid) for pid in process.stdout.readline().split()}
        process.kill()
    assert workers
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    """Says whether a process runs; one that has ended but whose status nobody reads doesn't."""
    try:
        with Path(f"/proc/{pid}/stat").open(encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("delay", [0.05, 0.3, 0.8])
def test_ctrl_c_is_the_parents_business(delay: float) -> None:
    """A terminal sends it to the whole group, at times while workers are still starting."""
    script = (
        "from nertool.workers import WorkerPool; from tests.test_workers import prepare, work\n"
        "import itertools, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs ignore it
        "if __name__ == '__main__':\n"
        "    with WorkerPool(2, prepare, (1,)) as pool:\n"
        "        print('begun', flush=True)\n"
        "        for _ in pool.map_in_order(work, itertools.repeat(1)): pass\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout and process.stdout.readline()
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=30)
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
    assert stderr.count("Traceback") == 1 and "KeyboardInterrupt" in stderr
