"""How a run is asked to stop: the first signal is kept for the loop, the second acts as without us."""

import signal

import pytest

from googlenet.training.stopping import stop_signal


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_acts_at_once_and_handlers_are_put_back(kind: signal.Signals) -> None:
    got: list[int] = []

    def ours(number: int, _: object) -> None:
        got.append(number)

    before = signal.signal(kind, ours)
    try:
        with stop_signal() as stop:
            assert not stop.is_set()
            signal.raise_signal(kind)
            assert stop.is_set() and not got
            signal.raise_signal(kind)
            assert got == [kind]
        assert signal.getsignal(kind) is ours
        with stop_signal():
            assert signal.getsignal(kind) is not ours
        assert signal.getsignal(kind) is ours, "where no signal came, too"
    finally:
        signal.signal(kind, before)
