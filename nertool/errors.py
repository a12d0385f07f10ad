"""The one exception that users see, and the interruption that leaves a resumable state."""

import difflib
from collections.abc import Iterable


class NertoolError(Exception):
    """Wrong usage, settings or input: printed as one message, exit status 2.

    Args:
        message: What is wrong and where (file, place, reason).
        hint: What to do about it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InterruptedBySignalError(BaseException):
    """A signal asked the command to stop, and what can be resumed has been saved.

    No `Exception`, as `KeyboardInterrupt` is none: libraries catch those. torch's exporter then tries another way, and
    the command would go on.

    Args:
        signal_number: The signal; the exit status is 128 + this number.
        saved: What was saved and how to go on, for the user.
    """

    def __init__(self, signal_number: int, saved: str) -> None:
        super().__init__(saved)
        self.signal_number = signal_number
        self.saved = saved


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` for the most similar known name, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
