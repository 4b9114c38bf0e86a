"""Load anything that predicts: a run, an ensemble, a weights file, published weights or an exported folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

import torch

from ..checkpoint.ensemble import EnsembleInfo, is_ensemble
from ..checkpoint.format import Checkpoint
from ..checkpoint.load import load
from ..config.schema import DataConfig
from ..data.calibration import CALIBRATION_NAME
from ..detection.predict import DetectorPredictor, ObjectDetector
from ..devices import pick_device
from ..evaluation.predictor import NetworkPredictor, Predictor
from ..export.detector import open_exported_detector
from ..export.engine import open_exported
from ..export.manifest import is_exported, read_manifest
from ..kernels import to_channels_last
from .engine_selection import cached_engine, fastest_exported, fastest_exported_detector, is_auto

# How `engine` names the PyTorch network of a detector.
TORCH_ENGINES = ("auto", "auto:float32", "torch", "torch:float32")

P = TypeVar("P")
Detectors = ObjectDetector


@dataclass(frozen=True)
class LoadedModel(Generic[P]):
    """A `Predictor`, or a detector if `task` is detection rather than classification or multilabel.

    `checkpoint` is the trained network, also if an engine predicts, and `data` the data that it was trained on, with
    the resolved `split_seed`; both are None for an exported folder.
    """

    predictor: P
    task: str
    checkpoint: Checkpoint | None = None
    data: DataConfig | None = None

    @classmethod
    def of(cls, predictor: P, checkpoint: Checkpoint) -> "LoadedModel[P]":
        """Describe a predictor of `checkpoint`."""
        recipe = checkpoint.recipe
        return cls(predictor, recipe.task, checkpoint, replace(recipe.data, split_seed=recipe.split_seed))

    @property
    def stored_size(self) -> int:
        """The height and width in pixels at which images of the training data are stored, at least."""
        size: int = self.predictor.preprocess.size  # type: ignore[attr-defined]  # P is Predictor or Detectors
        return size if self.checkpoint is None else max(size, self.checkpoint.recipe.stored_size)


@overload
def load_predictor(
    path: str,
    engine: str | None = None,
    threads: int | None = None,
    *,
    task: Literal["classification"],
    size: int | None = None,
) -> LoadedModel[Predictor]: ...
@overload
def load_predictor(
    path: str, engine: str | None = None, threads: int | None = None, *, task: Literal["detection"]
) -> LoadedModel[Detectors]: ...
@overload
def load_predictor(
    path: str,
    engine: str | None = None,
    threads: int | None = None,
    *,
    task: str | None = None,
    size: int | None = None,
) -> LoadedModel[Any]: ...
def load_predictor(
    path: str,
    engine: str | None = None,
    threads: int | None = None,
    *,
    task: str | None = None,
    size: int | None = None,
) -> LoadedModel[Any]:
    """Load `path` (see `checkpoint.load.load`, or an exported folder) as a predictor.

    Without `engine` a checkpoint's network predicts in PyTorch, on the accelerator if there is one, and an exported
    folder in the fastest engine. `engine` is the name of one, or ``auto``; see `cached_engine` and `open_exported`.
    A classifier's ``auto`` is the fastest for images of `size` pixels (None: of the network's own size).
    A detector's run predicts in PyTorch only (``torch`` or ``auto``), and ``auto`` of an exported one is the fastest
    engine in float32. Raises ValueError for anything that cannot be loaded, and for a network of another `task`.
    """
    if is_exported(Path(path)):
        return _load_exported(Path(path), engine or "auto", threads, task, size)
    checkpoint = load(path, task=task)
    recipe = checkpoint.recipe
    if engine is None and threads is not None:
        raise ValueError("--threads requires --engine, or an exported folder")
    if engine is not None and recipe.task == "detection":
        if engine not in TORCH_ENGINES:
            raise ValueError(
                f"{path}: a detector is exported for another engine than torch first: googlenet export {path} "
                "--format onnx,openvino --out DIR; then name that folder"
            )
        if threads is not None:
            torch.set_num_threads(threads)
    elif engine is not None:
        calibration = calibration_file(Path(path))
        return LoadedModel.of(cached_engine(checkpoint, engine, threads, calibration, size), checkpoint)
    device = pick_device("auto")
    model, preprocess, classes = checkpoint.model.to(device), checkpoint.preprocess, checkpoint.classes
    if recipe.task == "detection":
        sizes = tuple(recipe.detection.test_sizes or ())
        return LoadedModel.of(DetectorPredictor(model, preprocess, classes, sizes), checkpoint)
    if device.type == "cpu":
        to_channels_last(model)
    return LoadedModel.of(NetworkPredictor(model, preprocess, classes, checkpoint.thresholds), checkpoint)


def calibration_file(folder: Path) -> Path:
    """Return the path of the calibration images of a run; those of an ensemble are its first member's."""
    run = EnsembleInfo.read(folder).runs(folder)[0] if is_ensemble(folder) else folder
    return run / CALIBRATION_NAME


def _load_exported(
    path: Path, engine: str, threads: int | None, task: str | None, size: int | None
) -> LoadedModel[Any]:
    manifest = read_manifest(path)
    actual = "detection" if manifest.output == "boxes" else "multilabel" if manifest.thresholds else "classification"
    # Networks for several labels are classifiers, too; see `check_task`.
    if task not in (None, "classification" if actual == "multilabel" else actual):
        command = "detect" if actual == "detection" else "predict"
        raise ValueError(f"{path}: exported for {actual}, not for {task}; use googlenet {command}")
    if actual == "detection" and is_auto(engine):
        return LoadedModel(fastest_exported_detector(path, engine, threads), actual)
    if actual == "detection":
        return LoadedModel(open_exported_detector(path, engine, threads), actual)
    if is_auto(engine):
        return LoadedModel(fastest_exported(path, engine, threads, size), actual)
    return LoadedModel(open_exported(path, engine, threads), actual)
