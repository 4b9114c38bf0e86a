"""The models that a server serves, and how a new version replaces the current one.

A request is completed by the version that it started with; later requests use the new one.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from starlette.exceptions import HTTPException
from torch import Tensor

from ..checkpoint.ensemble import ENSEMBLE_FILE
from ..checkpoint.format import WEIGHTS_FILE
from ..detection.data.dataset import Detections
from ..detection.detector import Detector
from ..detection.predict import DetectorPredictor, ObjectDetector
from ..errors import nearest
from ..evaluation.metrics import check_logits
from ..evaluation.predictor import FeaturePredictor, NetworkPredictor, Predictor
from ..explain.cam import maps_of_features
from ..export.manifest import MANIFEST_NAME
from ..inference.loading import LoadedModel
from .metrics import Metrics

log = logging.getLogger("googlenet.serve")

# A change of one of these files, in the folder or one level below, means a new version of a run, ensemble or export.
WATCHED_FILES = (WEIGHTS_FILE, MANIFEST_NAME, ENSEMBLE_FILE)


# From pixels 0..255 (1, channels, h, w) and the index of a class, None for the most probable, to the index of the
# explained class, the logits (classes,), and the class activation map (h, w).
Explainer = Callable[[Tensor, int | None], tuple[int, Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class ModelVersion:
    """One version of one classifier, from 1 on, loaded at a Unix time; `explain` is None if it has no maps."""

    name: str
    version: int
    predictor: Predictor
    explain: Explainer | None
    loaded_at: float

    @property
    def size(self) -> int:
        """Default height and width of the input in pixels."""
        return max(self.predictor.preprocess.size, self.predictor.min_size)

    @property
    def rounds_pixels(self) -> bool:
        """Whether the engine rounds pixels to uint8, so that they can wait and be joined as such."""
        return not isinstance(self.predictor, NetworkPredictor)

    def predict(self, pixels: list[Tensor]) -> list[Tensor]:
        """Compute the logits (classes,) of each input (1, channels, h, w); all inputs have the same shape."""
        return list(self.predictor.predict(torch.cat(pixels)))

    def suggest_sizes(self, max_size: int) -> list[int]:
        """Return sizes around the native one that are worth comparing."""
        native, min_size = self.predictor.preprocess.size, self.predictor.min_size
        scaled = {max(min_size, min(max_size, round(native * factor))) for factor in (0.75, 1.0, 1.25, 1.5)}
        return sorted(scaled | {native})


@dataclass(frozen=True, eq=False)
class DetectorVersion:
    """One version of one detector; see `ModelVersion`."""

    name: str
    version: int
    predictor: ObjectDetector
    loaded_at: float

    @property
    def size(self) -> int:
        """The longest side in pixels that images are resized to."""
        return max(self.predictor.sizes or (self.predictor.preprocess.size,))

    @property
    def min_decode_size(self) -> int | None:
        """How far a JPEG may be reduced while it is decoded; None: not at all, because R-CNN uses all pixels."""
        if isinstance(self.predictor, DetectorPredictor) and not isinstance(self.predictor.model, Detector):
            return None
        return self.predictor.preprocess.min_decode_size(self.size)

    def detect(self, images: list[Tensor]) -> list[Detections]:
        """Detect the objects on images uint8 (channels, h, w), in each image's pixels."""
        return self.predictor.predict(images)


class ModelRepository:
    """The current version of every model of `paths`, by name; `load` reads a file or folder and runs in a thread."""

    def __init__(self, paths: Mapping[str, str], load: Callable[[str], LoadedModel[Any]], metrics: Metrics):
        self.paths = dict(paths)
        self.default = next(iter(self.paths))
        self._load, self._metrics = load, metrics
        self._signatures = {name: file_signature(path) for name, path in self.paths.items()}
        self._locks = {name: asyncio.Lock() for name in self.paths}
        self._current = {name: self._load_version(name, 1) for name in self.paths}

    def classifier(self, name: str | None = None) -> ModelVersion:
        """Return the current version of a classifier; raises HTTPException (404, or 422 for a detector)."""
        model = self.get(name)
        if isinstance(model, DetectorVersion):
            raise HTTPException(422, f"{model.name} detects objects and does not classify images; use /v1/detect")
        return model

    def detector(self, name: str | None = None) -> DetectorVersion:
        """Return the current version of a detector; raises HTTPException (404, or 422 for a classifier)."""
        model = self.get(name)
        if isinstance(model, ModelVersion):
            raise HTTPException(422, f"{model.name} classifies images and does not detect objects; use /v1/predict")
        return model

    def get(self, name: str | None = None) -> ModelVersion | DetectorVersion:
        """Return the current version of a model, the first model by default. Raises HTTPException (404)."""
        name = name or self.default
        if name not in self._current:
            names = ", ".join(self._current)
            raise HTTPException(404, f"unknown model {name!r}{nearest(name, self._current)}; models: {names}")
        return self._current[name]

    async def reload(self, name: str) -> ModelVersion | DetectorVersion:
        """Load a new version and make it the current one. If that fails: HTTPException (409), the old one stays."""
        old = self.get(name)
        async with self._locks[name]:
            self._signatures[name] = file_signature(self.paths[name])
            version = self._current[name].version + 1
            try:
                new = await asyncio.to_thread(self._load_version, name, version)
            except Exception as error:
                self._metrics.reloads.labels(name, "failed").inc()
                log.warning("%s: cannot load version %d, keeping %d: %s", name, version, old.version, error)
                message = f"cannot reload {name}, version {old.version} is still active: {error}"
                raise HTTPException(409, message) from error
            self._current[name] = new
            self._metrics.reloads.labels(name, "loaded").inc()
            log.info("%s: loaded version %d", name, version)
            return new

    async def watch(self, interval: float) -> None:
        """Reload models whose files have changed; check every `interval` seconds until canceled."""
        while True:
            await asyncio.sleep(interval)
            for name, path in self.paths.items():
                try:
                    signature = await asyncio.to_thread(file_signature, path)
                    if signature and signature != self._signatures[name]:
                        await self.reload(name)
                except HTTPException:
                    pass  # `reload` has logged the error; the next change of the file is the next attempt
                except Exception:
                    log.exception("%s: cannot check for a new version", name)

    def _load_version(self, name: str, version: int) -> ModelVersion | DetectorVersion:
        loaded = self._load(self.paths[name])
        channels, classes = loaded.predictor.preprocess.channels, loaded.predictor.classes
        # The first prediction is slow, and it checks the model before a client uses it.
        if loaded.task == "detection":
            detector = DetectorVersion(name, version, loaded.predictor, time.time())
            detector.detect([torch.zeros(channels, detector.size, detector.size, dtype=torch.uint8)])
            self._metrics.version.labels(name).set(version)
            return detector
        model = ModelVersion(name, version, loaded.predictor, make_explainer(loaded.predictor), time.time())
        logits = loaded.predictor.predict(torch.zeros(1, channels, model.size, model.size, dtype=torch.uint8))
        if logits.shape != (1, len(classes)):
            raise ValueError(f"{name}: the network has {logits.shape[-1]} outputs for {len(classes)} classes")
        check_logits(logits, name)
        self._metrics.version.labels(name).set(version)
        return model


def make_explainer(predictor: Predictor) -> Explainer | None:
    """Return a function that computes class activation maps; None unless the predictor returns features."""
    if not isinstance(predictor, FeaturePredictor) or predictor.head is None:
        return None
    features_of, head = predictor.predict_with_features, predictor.head

    def explain(pixels: Tensor, label: int | None) -> tuple[int, Tensor, Tensor]:
        logits, features = features_of(pixels)
        index = int(logits.argmax()) if label is None else label
        return index, logits[0], maps_of_features(features, head, [index])[0, 0]

    return explain


def file_signature(path: str) -> tuple[tuple[int, int, int], ...]:
    """Return a value that changes if a watched file is replaced; empty if there is no file."""
    folder = Path(path)
    signature = []
    files = (file for name in WATCHED_FILES for pattern in (name, f"*/{name}") for file in sorted(folder.glob(pattern)))
    for file in files if folder.is_dir() else [folder]:
        try:
            stat = file.stat()
        except OSError:
            continue
        signature.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(signature)
