"""SIGINT and SIGTERM as a wish to stop at the next good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequestedError(Exception):
    """Raised by `StopRequest.check` where a signal has come in."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopRequest:
    """Whether, and by which signal, the process was asked to stop."""

    signal_number: int | None = None

    def check(self) -> None:
        """Raises `StopRequestedError` if a signal has come in."""
        if self.signal_number is not None:
            raise StopRequestedError(self.signal_number)


@contextmanager
def stop_request(*, once: bool = True) -> Iterator[StopRequest]:
    """Catches SIGINT and SIGTERM, where signals come: in the main thread.

    Args:
        once: Whether a second one acts as usual. Not so where `torchrun` passes on a signal that has come already.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        if once:
            restore()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    try:
        yield request
    finally:
        restore()
