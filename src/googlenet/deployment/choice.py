"""Which engine is the quickest here: measured once, then remembered."""

import hashlib
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

from ..cache import cache_folder
from ..files import write_atomically
from .description import Description
from .engine import Engine

# Answers of one picture that an engine's speed is the median of, after as many for warming up.
TRIALS = 7


def quickest(folder: Path, description: Description, threads: int | None, opened: Callable[[str], Engine]) -> Engine:
    """The engine, opened, that answers one picture at the usual size the soonest.

    The choice is kept in the cache, and holds for these files, this machine, these versions and this number of
    threads. Engines that are not installed are passed over; ValueError where none is left.
    """
    keys = candidates(description)
    if not keys:
        raise ValueError(
            f"{folder}: none of its engines is installed ({', '.join(description.files)}): "
            "pip install 'googlenet[export]'"
        )
    if len(keys) == 1:
        return opened(keys[0])
    kept = cache_folder() / "engines" / f"{fingerprint(description, threads)}.json"
    try:
        chosen = json.loads(kept.read_text())["engine"]
        if chosen in keys:
            return opened(chosen)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or not readable: measured now
    engines = {key: opened(key) for key in keys}
    seconds = {key: median_seconds(engine) for key, engine in engines.items()}
    chosen = min(seconds, key=seconds.__getitem__)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps({"engine": chosen, "seconds": seconds}, indent=2))
    except OSError:
        pass  # it will be measured again
    return engines[chosen]


def candidates(description: Description) -> list[str]:
    """The folder's entries whose engine is installed; of an engine with an int8 file, that one."""
    keys = [key for key in description.files if f"{key}:int8" not in description.files]
    return [key for key in keys if importlib.util.find_spec(key.partition(":")[0])]


def median_seconds(engine: Engine) -> float:
    """Of one picture's answer."""
    size, channels = engine.preprocess.size, engine.preprocess.channels
    picture = torch.randint(0, 256, (1, channels, size, size), dtype=torch.uint8)
    found = []
    for _ in range(2 * TRIALS):
        started = time.perf_counter()
        engine(picture)
        found.append(time.perf_counter() - started)
    return statistics.median(found[TRIALS:])


def fingerprint(description: Description, threads: int | None) -> str:
    """Of all that the choice depends on."""
    engines = {key.partition(":")[0] for key in description.files}
    versions = {name: metadata.version(name) for name in sorted(engines) if importlib.util.find_spec(name)}
    about = [dict(description.digests), versions, platform.processor(), platform.machine(), os.cpu_count(), threads]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
