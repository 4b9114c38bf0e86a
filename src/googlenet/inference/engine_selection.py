"""Run a network in an engine and precision, named or the fastest: exported and measured once, then cached.

``auto`` is the fastest engine and precision on this machine whose predictions are within `Tolerance` of float32 on the
network's calibration images. Without calibration images only float32 is compared.
"""

import hashlib
import importlib.util
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint.format import Checkpoint
from ..data.calibration import Calibration, read_calibration
from ..data.disk_cache import cached_json
from ..data.preprocess import Preprocess
from ..detection.predict import ObjectDetector
from ..devices import cpu_description
from ..evaluation.multilabel import DEFAULT_THRESHOLD
from ..evaluation.predictor import Predictor, get_thresholds
from ..export.backends import BACKENDS, format_of, formats_with
from ..export.detector import open_exported_detector
from ..export.engine import INT8, PRECISIONS, open_exported, parse_engine, supported_precisions
from ..export.exporter import ExportData, ExportOptions, export, model_name
from ..export.manifest import file_sha256, is_exported, read_manifest
from ..files import cache_file, mark_used, package_version, prune_cache
from ..models.ensemble import get_networks, to_probabilities
from .folded import FoldedPredictor, folded_precisions

AUTO, FLOAT32 = "auto", "float32"
MAX_CACHE_BYTES = 4 * 2**30  # of the exports of the networks that were used last
# The speed of an engine is the geometric mean of the medians at these batch sizes, over this many predictions each,
# after as many for warm-up; slow ones are measured once, after one for warm-up.
BATCH_SIZES, TIMED_RUNS, SLOW_S = (1, 8), 5, 1.0


class Tolerance(NamedTuple):
    """How far a precision's predictions on the calibration images may be from those of float32.

    `top1` is the loss of accuracy, `probability` the mean absolute difference of the probability of float32's class.
    """

    top1: float = 0.002
    probability: float = 0.005


# From an engine's name with its precision, such as openvino:bfloat16, to the function that opens it.
Candidates = Mapping[str, Callable[[], Predictor]]


def is_auto(engine: str) -> bool:
    """Return whether the fastest engine is requested: ``auto``, or ``auto:float32`` for the fastest in float32."""
    return engine.partition(":")[0] == AUTO


def cached_engine(
    checkpoint: Checkpoint,
    engine: str,
    threads: int | None = None,
    calibration: Path | None = None,
    size: int | None = None,
) -> Predictor:
    """Return the checkpoint's network in `engine`: ``auto``, or the name of an engine, ``openvino:bfloat16``.

    Files are exported when an engine first needs them, and cached by the network's digest. `calibration` is the file
    of the calibration images, `threads` as for `open_exported`, `size` as for `select_fastest`. Raises ValueError for
    an engine or precision that is unknown, not installed or not supported by this processor.
    """
    if is_auto(engine):
        can_export = importlib.util.find_spec("onnxscript")
        formats = [f for f in formats_with("fast") if can_export and importlib.util.find_spec(BACKENDS[f].engine)]
    else:
        name, precision = parse_engine(engine)
        if name == "torch":
            return FoldedPredictor(checkpoint, threads, precision or FLOAT32)
        formats = [format_of(name)]
    candidates: dict[str, Callable[[], Predictor]] = {
        f"torch:{precision}": partial(FoldedPredictor, checkpoint, threads, precision)
        for precision in folded_precisions()
    }
    digest = _model_digest(checkpoint)
    if formats:
        folder = cache_file("exported", f"{digest}-{'-'.join(formats)}")
        if not is_exported(folder):
            _export_to_cache(checkpoint, folder, formats, threads)
        mark_used(folder)
        if not is_auto(engine):
            return open_exported(folder, engine, threads)
        candidates |= exported_candidates(folder, threads)
    return select_fastest(candidates, engine, calibration, [digest, threads], size)


def _export_to_cache(checkpoint: Checkpoint, folder: Path, formats: Sequence[str], threads: int | None) -> None:
    """Export to the cache. If another process exports the same network, the first one to finish provides the files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    data, options = ExportData(_random_images(checkpoint.preprocess, 1)), ExportOptions(threads=threads)
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


def fastest_exported(folder: Path, engine: str, threads: int | None, size: int | None = None) -> Predictor:
    """Open an exported classifier in the fastest of its engines; see `select_fastest`.

    PyTorch's file is not tried, because opening it can run code. ValueError if no other engine is installed.
    """
    manifest, candidates = read_manifest(folder), exported_candidates(folder, threads)
    calibration, key = manifest.calibration, [dict(manifest.sha256), threads]
    path = folder / calibration["file"] if calibration else None
    if path is not None and (not path.is_file() or file_sha256(path) != calibration["sha256"]):
        raise ValueError(f"{path}: missing or changed; copy the complete folder, or export again")
    return select_fastest(candidates, engine, path, key, size if manifest.dynamic_size else None)


def fastest_exported_detector(folder: Path, engine: str, threads: int | None) -> ObjectDetector:
    """Open an exported detector in the fastest of its engines, in float32 unless `engine` is ``auto:PRECISION``.

    Boxes cannot be compared like probabilities, so other precisions are not chosen unasked. See `fastest_exported`.
    """
    precision = engine.partition(":")[2] or FLOAT32
    check_precision(engine)
    names = [name for name in exported_engines(folder) if name.endswith(f":{precision}")]
    if not names:
        raise ValueError(f"{folder}: {engine}: no installed engine has a file for {precision}; export it, or use auto")
    candidates: dict[str, Callable[[], ObjectDetector]] = {
        name: partial(open_exported_detector, folder, name, threads) for name in names
    }

    def measure() -> dict[str, float]:
        with _measuring(candidates):
            return {name: _detector_seconds(open_candidate()) for name, open_candidate in candidates.items()}

    if len(names) == 1:
        return candidates[names[0]]()
    versions = {name: package_version(name.partition(":")[0]) for name in names}
    inputs = [dict(read_manifest(folder).sha256), threads, versions, cpu_description()]
    seconds = cached_json("engines", json.dumps(inputs, sort_keys=True).encode(), measure)
    if not isinstance(seconds, dict) or seconds.keys() != candidates.keys():  # a damaged cache file
        seconds = measure()
    return candidates[min(names, key=seconds.__getitem__)]()


@contextmanager
def _measuring(names: Iterable[str]) -> Iterator[None]:
    """Tell the user what is measured, and keep PyTorch's number of threads, which its candidates set."""
    print(f"measuring {', '.join(names)} on this machine", file=sys.stderr)
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _detector_seconds(detector: ObjectDetector) -> float:
    """Measure the detection on one image of the largest size, in seconds."""
    side = max(detector.sizes or (detector.preprocess.size,))
    images = list(torch.randint(0, 256, (1, detector.preprocess.channels, side, side), dtype=torch.uint8))
    return _median_time(lambda: detector.predict(images))


def exported_candidates(folder: Path, threads: int | None) -> Candidates:
    """Return the engines and precisions in which an exported classifier can be opened; see `exported_engines`."""
    return {name: partial(open_exported, folder, name, threads) for name in exported_engines(folder)}


def exported_engines(folder: Path) -> list[str]:
    """Return the engines and precisions in which an exported folder can be opened here without running its code.

    ValueError if no such engine is installed.
    """
    engines, files = list[str](), read_manifest(folder).files
    for entry in files:
        name = entry.partition(":")[0]
        if BACKENDS[format_of(name)].safe and importlib.util.find_spec(name):
            engines += [entry] if entry.endswith(INT8) else [f"{name}:{item}" for item in supported_precisions(name)]
    if not engines:
        raise ValueError(
            f"{folder}: auto has no engine to choose from: install one of {', '.join(files)} with pip install "
            "'googlenet[export]', or name one; --engine torch can run code that is in the file"
        )
    return engines


def check_precision(engine: str) -> None:
    """Raise ValueError if `engine`, ``auto`` or ``auto:PRECISION``, names an unknown precision."""
    precision = engine.partition(":")[2]
    if precision not in ("", *PRECISIONS):
        raise ValueError(f"unknown precision {precision!r} in {engine}; use auto, or auto:float32")


def select_fastest(
    candidates: Candidates, engine: str, calibration: Path | None, key: list[Any], size: int | None = None
) -> Predictor:
    """Open the fastest of `candidates` that is within the tolerance; `engine` is ``auto`` or ``auto:PRECISION``.

    The speed is measured on images of `size` pixels (None: the network's own size), because the order of the engines
    depends on it. The measurements are cached for `key`, the size, the calibration images, this processor and the
    versions of the engines.
    """
    precision = engine.partition(":")[2]
    check_precision(engine)
    images = read_calibration(calibration) if calibration else None
    packages = sorted({name.partition(":")[0] for name in candidates})
    versions = {name: package_version(name) for name in packages}
    digest = None if images is None else hashlib.sha256(images.images.numpy().tobytes()).hexdigest()
    inputs = [key, sorted(candidates), digest, versions, cpu_description(), size]

    def measure() -> dict[str, Any]:
        with _measuring(candidates):
            return {name: row._asdict() for name, row in measure_candidates(candidates, images, size).items()}

    rows = cached_json("engines", json.dumps(inputs, sort_keys=True).encode(), measure)
    try:
        results = {name: CandidateResult(**rows[name]) for name in candidates}
    except (TypeError, KeyError):  # a damaged cache file
        results = {name: CandidateResult(**row) for name, row in measure().items()}
    allowed = {name: row for name, row in results.items() if row.is_within(Tolerance()) and name.endswith(precision)}
    if not allowed:
        raise ValueError(f"{engine}: no engine predicts in {precision} within the tolerance; compare with auto")
    fastest = min(allowed, key=lambda name: allowed[name].seconds)
    compared = "within the tolerance of float32" if images else "in float32 (no calibration images for others)"
    print(f"engine: {fastest}, the fastest of {len(allowed)} {compared}", file=sys.stderr)
    return candidates[fastest]()


class CandidateResult(NamedTuple):
    """Seconds of a prediction, see `BATCH_SIZES`, and the differences from float32; None if they are unknown."""

    seconds: float
    top1_drop: float | None
    probability_error: float | None

    def is_within(self, tolerance: Tolerance) -> bool:
        """Return whether the differences are known and within the tolerance."""
        if self.top1_drop is None or self.probability_error is None:
            return False
        return self.top1_drop <= tolerance.top1 and self.probability_error <= tolerance.probability


def measure_candidates(
    candidates: Candidates, calibration: Calibration | None, size: int | None = None
) -> dict[str, CandidateResult]:
    """Measure the speed of each candidate, and its predictions on the calibration images against float32's."""
    reference: Tensor | None = None
    results = {}
    for name, open_candidate in sorted(candidates.items(), key=lambda item: not item[0].endswith(FLOAT32)):
        predictor = open_candidate()
        seconds = math.prod(_median_seconds(predictor, batch, size) for batch in BATCH_SIZES) ** (1 / len(BATCH_SIZES))
        errors: tuple[float | None, float | None] = (0.0, 0.0) if name.endswith(FLOAT32) else (None, None)
        if calibration is not None:
            probabilities = _probabilities(predictor, calibration.images)
            reference = probabilities if reference is None else reference
            if not name.endswith(FLOAT32):
                compare = compare_probabilities if calibration.labels.ndim == 1 else compare_label_probabilities
                errors = compare(probabilities, reference, calibration.labels)
        results[name] = CandidateResult(seconds, *errors)
    return results


def compare_probabilities(probabilities: Tensor, reference: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the loss of accuracy, and the mean absolute difference of the probability of the reference's class.

    Probabilities are (n, classes). Not a number counts as infinitely different.
    """
    predicted, expected = probabilities.argmax(1), reference.argmax(1)
    # A difference of counts: that of two means can exceed a tolerance that it equals, by rounding.
    drop = ((expected == labels).sum() - (predicted == labels).sum()).item() / len(labels)
    error = (probabilities - reference).gather(1, expected[:, None]).abs().mean()
    return drop, error.item() if error.isfinite() else math.inf


def compare_label_probabilities(probabilities: Tensor, reference: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the loss of correct labels, and the mean absolute difference, of probabilities of several labels.

    Probabilities are (n, classes), `labels` bool (n, classes). A label counts as predicted from 0.5.
    """
    correct, expected = ((rows >= DEFAULT_THRESHOLD) == labels for rows in (probabilities, reference))
    drop = (expected.sum() - correct.sum()).item() / expected.numel()
    error = (probabilities - reference).abs().mean()
    return drop, error.item() if error.isfinite() else math.inf


def _probabilities(predictor: Predictor, images: Tensor) -> Tensor:
    logits = torch.cat([predictor.predict(part) for part in torch.split(images, 32)])
    return to_probabilities(logits, bool(get_thresholds(predictor)))


def _median_seconds(predictor: Predictor, batch: int, size: int | None) -> float:
    """Measure the prediction of a batch, in seconds."""
    # A size that is too small is an error of the prediction, not of this measurement.
    images = _random_images(predictor.preprocess, batch, None if size is None else max(size, predictor.min_size))
    return _median_time(lambda: predictor.predict(images))


def _median_time(call: Callable[[], object]) -> float:
    seconds: list[float] = []
    while len(seconds) < 2 * TIMED_RUNS and not (len(seconds) == 2 and min(seconds) > SLOW_S):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[len(seconds) // 2 :])


def _random_images(preprocess: Preprocess, count: int, size: int | None = None) -> Tensor:
    size = size or preprocess.size
    return torch.randint(0, 256, (count, preprocess.channels, size, size), dtype=torch.uint8)


def _model_digest(checkpoint: Checkpoint) -> str:
    """Return a digest of the weights, the preprocessing and the versions that an export depends on."""
    inputs: list[Any] = [model_name(checkpoint), checkpoint.preprocess.to_dict(), checkpoint.classes]
    inputs += [checkpoint.thresholds] if checkpoint.thresholds else []
    inputs += [network.config for network in get_networks(checkpoint.model)]
    inputs += [metadata.version(package) for package in ("googlenet", "torch")]
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for key, value in sorted(checkpoint.model.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
