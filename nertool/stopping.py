"""SIGINT, SIGTERM and SIGHUP as a wish to stop at the next good moment."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

# People send a second one to end a process at once. A second hang-up is nobody's wish: a shell passes it on to what it
# has started, and when the shell ends, the system sends one, too.
_IMPATIENT = (signal.SIGINT, signal.SIGTERM)
_HANG_UP = (signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()


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
    """Catches SIGINT, SIGTERM and, where nohup doesn't ignore it, SIGHUP, if signals come: in the main thread.

    Args:
        once: Whether a second SIGINT or SIGTERM acts as usual. Not so under `torchrun`: it passes on one that has come
            already, and sends one as soon as another process has ended, while this one still has to say why.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        request.signal_number = request.signal_number or number
        if once and number in _IMPATIENT:
            restore(_IMPATIENT)

    caught = [*_IMPATIENT, *(number for number in _HANG_UP if signal.getsignal(number) is not signal.SIG_IGN)]
    previous = {number: signal.signal(number, handle) for number in caught}

    def restore(numbers: Iterable[signal.Signals]) -> None:
        for number in numbers:
            signal.signal(number, previous[number])

    try:
        yield request
    except BaseException:
        if once:
            restore(previous)
        raise
    restore(previous)
