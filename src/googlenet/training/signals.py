"""Stop a run on SIGINT and SIGTERM after its current step."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .distributed import is_main_process


@contextmanager
def graceful_shutdown() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set. A second signal has its usual effect, immediately."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def on_signal(*_: Any) -> None:
        stop.set()
        restore()
        if is_main_process():
            print("stopping after this step; the state will be saved (signal again to stop immediately)",
                  file=sys.stderr, flush=True)  # fmt: skip

    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
