"""How a run is asked to stop."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .processes import is_main


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the step under way is finished and saved.

    A second signal acts at once, as without us.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    def on_signal(*_: Any) -> None:
        stop.set()
        restore()
        if is_main():
            print("finishing this step, then saving (once more: stop at once)", file=sys.stderr, flush=True)

    for kind in before:
        signal.signal(kind, on_signal)
    try:
        yield stop
    finally:
        restore()
