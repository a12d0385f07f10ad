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


def test_a_second_signal_acts_as_usual_but_a_second_hang_up_does_not():
    """The shell passes one on, and the kernel sends one more when the shell ends."""
    usual = []
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: usual.append(True)) for number in numbers}
    try:
        with stop_request() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            assert not usual
            os.kill(os.getpid(), signal.SIGTERM)
            assert usual and request.signal_number == signal.SIGHUP
        os.kill(os.getpid(), signal.SIGHUP)
        assert len(usual) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_hang_up_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal_number is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_on_the_way_out_is_not_cut_short_by_torchrun():
    """It sends SIGTERM as soon as another process has ended, while this one still has to say why."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(KeyError), stop_request(once=False) as request:
            raise KeyError
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal_number == signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with stop_request(once=False):
        pass
    assert {number: signal.getsignal(number) for number in before} == before


def test_in_another_thread_signals_are_left_to_the_main_one():
    before = signal.getsignal(signal.SIGTERM)

    def look() -> bool:
        with stop_request() as request:
            request.check()
            return signal.getsignal(signal.SIGTERM) is before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(look).result()
