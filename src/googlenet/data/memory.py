"""Memory that this process can still use."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Names of limit, usage, and reclaimable file cache in the two versions of Linux's control groups (containers).
CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")


def available_memory(root: Path = Path("/")) -> int:
    """Return the free and reclaimable memory in bytes, within the limits of the control groups.

    `root` contains ``proc`` and ``sys``. Without them (outside of Linux), half of the physical memory is returned.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        free = []
    if not free and hasattr(os, "sysconf"):
        free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    return max(0, min([*free, *_within_cgroups(root)], default=8 * 2**30))


def _within_cgroups(root: Path) -> Iterator[int]:
    """Yield the remaining bytes of each control group that limits this process."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        limit, usage, reclaimable = CGROUP_V1 if controllers else CGROUP_V2
        base = root / "sys/fs/cgroup" / controllers
        folder = base / group.strip("/")
        for path in (folder, *(parent for parent in folder.parents if parent.is_relative_to(base))):
            with suppress(OSError, ValueError):  # no limit ("max"), or a group that the container does not show
                rest = int((path / limit).read_text()) - int((path / usage).read_text())
                statistics = dict(row.split() for row in (path / "memory.stat").read_text().splitlines())
                yield rest + int(statistics.get(reclaimable, 0))
