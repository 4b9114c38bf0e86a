"""Resident memory of a process."""

import contextlib
import resource
import sys
from pathlib import Path


def rss_bytes(pid: int | str = "self", peak: bool = False) -> int:
    """Return the resident memory of a process in bytes, or its peak since the start or `reset_peak_rss`.

    Without /proc (outside of Linux) this is the peak of the current process.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    key = "VmHWM:" if peak else "VmRSS:"
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def reset_peak_rss(pid: int | str = "self") -> None:
    """Reset the peak of a process if the system supports it; imports have a high peak of their own."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")
