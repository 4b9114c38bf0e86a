"""Run a network in an engine, named or the fastest: exported and measured once, then cached."""

import hashlib
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.format import Checkpoint
from ..data.disk_cache import cached_json
from ..data.preprocess import Preprocess
from ..evaluation.predictor import Predictor
from ..export.backends import BACKENDS, format_of, formats_with
from ..export.engine import INT8, ExportedPredictor, open_exported, parse_engine
from ..export.exporter import ExportData, ExportOptions, export, model_name
from ..export.manifest import is_exported, read_manifest
from ..files import cache_file, mark_used, package_version, prune_cache
from ..models.ensemble import get_networks
from .folded import FoldedPredictor

# An engine's speed is the median of this many predictions, after as many for warm-up.
TIMED_RUNS = 7
# The exports of the networks that were used last stay in the cache.
MAX_CACHE_BYTES = 4 * 2**30


def cached_engine(checkpoint: Checkpoint, engine: str, threads: int | None = None) -> Predictor:
    """Return the checkpoint's network in `engine`: the name of an engine, or ``auto``, the fastest on this machine.

    Files are exported when an engine first needs them, and cached by the network's digest. `threads` as for
    `open_exported`. Raises ValueError for an engine that is unknown or not installed.
    """
    if engine == "auto":
        can_export = importlib.util.find_spec("onnxscript")
        formats = [f for f in formats_with("fast") if can_export and importlib.util.find_spec(BACKENDS[f].engine)]
    else:
        name, _ = parse_engine(engine)
        formats = [] if engine == "torch" else [format_of(name)]
    if not formats:
        return FoldedPredictor(checkpoint, threads)
    folder = cache_file("exported", f"{_model_digest(checkpoint)}-{'-'.join(formats)}")
    if not is_exported(folder):
        _export_to_cache(checkpoint, folder, formats, threads)
    mark_used(folder)
    return select_fastest(folder, threads) if engine == "auto" else open_exported(folder, engine, threads)


def _export_to_cache(checkpoint: Checkpoint, folder: Path, formats: Sequence[str], threads: int | None) -> None:
    """Export to the cache. If another process exports the same network, the first one to finish provides the files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    data, options = ExportData(_random_image(checkpoint.preprocess)), ExportOptions(threads=threads)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = export(checkpoint, data, Path(temporary) / "new", formats, options).folder
        # Renaming fails for a folder that is not empty; one that is not an export is left from a damaged cache.
        if folder.exists() and not is_exported(folder):
            folder.rename(Path(temporary) / "damaged")
        try:
            new.rename(folder)
        except OSError:
            if not is_exported(folder):
                raise
    prune_cache(folder.parent, MAX_CACHE_BYTES, folder)


def select_fastest(folder: Path, threads: int | None) -> ExportedPredictor:
    """Open an exported classifier in the engine that predicts one image of the default size the fastest.

    The choice is cached for these files, this machine, these versions and this number of threads. Engines that are
    not installed are skipped; ValueError if none is left.
    """
    manifest = read_manifest(folder)
    engines = sorted({entry.partition(":")[0] for entry in manifest.files})
    versions = {name: package_version(name) for name in engines if importlib.util.find_spec(name)}
    # Of an engine with an int8 file only that one.
    entries = [entry for entry in manifest.files if entry + INT8 not in manifest.files]
    entries = [entry for entry in entries if entry.partition(":")[0] in versions]
    if not entries:
        raise ValueError(
            f"{folder}: none of its engines is installed ({', '.join(manifest.files)}): pip install 'googlenet[export]'"
        )

    def measure() -> dict[str, Any]:
        seconds = {entry: _median_seconds(open_exported(folder, entry, threads)) for entry in entries}
        return {"engine": min(seconds, key=seconds.__getitem__), "seconds": seconds}

    if len(entries) == 1:
        return open_exported(folder, entries[0], threads)
    inputs = [dict(manifest.sha256), versions, platform.processor(), platform.machine(), os.cpu_count(), threads]
    choice = cached_json("engines", json.dumps(inputs, sort_keys=True).encode(), measure)
    # A damaged cache file is measured again.
    engine = choice.get("engine") if isinstance(choice, dict) else None
    return open_exported(folder, engine if engine in entries else measure()["engine"], threads)


def _median_seconds(predictor: Predictor) -> float:
    """Measure the prediction of one image, in seconds."""
    image = _random_image(predictor.preprocess)
    seconds = []
    for _ in range(2 * TIMED_RUNS):
        start = time.perf_counter()
        predictor.predict(image)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[TIMED_RUNS:])


def _random_image(preprocess: Preprocess) -> torch.Tensor:
    return torch.randint(0, 256, (1, preprocess.channels, preprocess.size, preprocess.size), dtype=torch.uint8)


def _model_digest(checkpoint: Checkpoint) -> str:
    """Return a digest of the weights, the preprocessing and the versions that an export depends on."""
    inputs = [model_name(checkpoint), checkpoint.preprocess.to_dict(), checkpoint.classes]
    inputs += [network.config for network in get_networks(checkpoint.model)]
    inputs += [metadata.version(package) for package in ("googlenet", "torch")]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for key, value in sorted(checkpoint.model.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
