"""Processes beside this one that share out work, and end with it however it ends."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from typing import Any, Self, TypeVar

from nertool.errors import NertoolError

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Returns on how many cores this process may run, which batch systems and containers limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """Worker processes; used as a context manager.

    They are started afresh (`spawn`), as processes forked from one with threads may hang.

    Args:
        workers: How many.
        prepare: Called once in each of them.
        arguments: Its arguments.
        setting: The setting that says how many.
    """

    def __init__(
        self, workers: int, prepare: Callable[..., None], arguments: tuple[Any, ...], setting: str = "data.workers"
    ) -> None:
        self._workers = workers
        self._setting = setting
        self._older = set(active_children())
        self._executor = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (prepare, arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:  # what they are at may take minutes, and nobody wants it any more
            for process in set(active_children()) - self._older:
                process.kill()
        self._executor.shutdown(cancel_futures=True)

    def map_in_order(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yields the results in the order of the items; takes an item only when a worker will soon be free for it.

        Raises:
            NertoolError: If a worker died.
        """
        remaining = iter(items)
        running: deque[Future[Result]] = deque()
        try:
            while True:
                while len(running) < self._workers + 1 and (item := next(remaining, None)) is not None:
                    with _holding_ctrl_c():
                        running.append(self._executor.submit(work, item))
                if not running:
                    return
                yield running.popleft().result()
        except BrokenProcessPool as error:
            raise NertoolError(
                "a worker process was killed from outside, perhaps because memory ran out",
                f"run the command again, it goes on where it was; fewer processes: --set {self._setting}=1",
            ) from error


@contextmanager
def _holding_ctrl_c() -> Iterator[None]:
    """Holds SIGINT back until the end; processes that are started meanwhile never get it.

    It reaches the whole group of processes, but what it means is the parent's business.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(*arguments)


def _end_with_parent() -> None:
    """Ends this process when the parent is gone, even if that was killed and could tell nobody."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
