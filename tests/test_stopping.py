import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from nertool.stopping import StopRequestedError, stop_request


def test_a_signal_is_noted_and_asks_to_stop_at_the_next_check():
    before = signal.getsignal(signal.SIGTERM)
    with stop_request() as request:
        request.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequestedError, match="SIGTERM"):
            request.check()
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_signals_are_left_to_the_main_one():
    before = signal.getsignal(signal.SIGTERM)

    def look() -> bool:
        with stop_request() as request:
            request.check()
            return signal.getsignal(signal.SIGTERM) is before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(look).result()
