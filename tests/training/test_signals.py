"""Graceful shutdown: the first signal sets the event, the second has its usual effect."""

import signal

import pytest

from googlenet.training.signals import graceful_shutdown


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_acts_immediately_and_handlers_are_restored(kind: signal.Signals) -> None:
    got: list[int] = []

    def handler(number: int, _: object) -> None:
        got.append(number)

    before = signal.signal(kind, handler)
    try:
        with graceful_shutdown() as stop:
            assert not stop.is_set()
            signal.raise_signal(kind)
            assert stop.is_set() and not got
            signal.raise_signal(kind)
            assert got == [kind]
        assert signal.getsignal(kind) is handler
        with graceful_shutdown():
            assert signal.getsignal(kind) is not handler
        assert signal.getsignal(kind) is handler, "also without a signal"
    finally:
        signal.signal(kind, before)
