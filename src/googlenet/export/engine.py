"""Open exported folders: the files of an engine as a `Predictor`."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..devices import ISAS_WITHOUT_AVX512, isa_limit
from ..errors import nearest
from ..evaluation.predictor import ClassifierHead, round_to_uint8
from .backends import BACKENDS, Session, engine_names, format_of
from .manifest import Manifest, read_head, read_manifest, verify_files

INT8, FLOAT32 = ":int8", ":float32"
REDUCED = ("bfloat16", "float16")
PRECISIONS = ("float32", *REDUCED, "int8")


class ExportedPredictor:
    """An exported classifier in an engine. Float images are rounded to uint8."""

    def __init__(self, opened: "OpenedFile"):
        self.manifest, self.session = opened.manifest, opened.session
        self.name, self.precision = opened.engine, opened.precision
        manifest, self.head = self.manifest, opened.head
        self.thresholds = manifest.thresholds
        self.preprocess, self.classes, self.min_size = manifest.preprocess, manifest.classes, manifest.min_size

    def predict(self, images: Tensor) -> Tensor:
        """Return logits float32 (n, classes), or log-probabilities if the file contains softmax."""
        return self._run(images)[0]

    def predict_with_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return `predict` and the last feature map; see `FeaturePredictor`."""
        logits, features = self._run(images)
        return logits, features

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        size, channels, min_size = self.preprocess.size, self.preprocess.channels, self.min_size
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"expected images (n, {channels}, height, width), got {tuple(images.shape)}")
        height, width = images.shape[2:]
        if self.manifest.dynamic_size and min(height, width) < min_size:
            raise ValueError(f"the input is {height}x{width} pixels; this network needs at least {min_size}x{min_size}")
        if not self.manifest.dynamic_size and (height, width) != (size, size):
            raise ValueError(f"the input is {height}x{width} pixels; this file takes {size}x{size}")
        output, *features = self.session(round_to_uint8(images.cpu()).contiguous())
        if self.manifest.output == "probabilities":
            output = output.clamp_min(torch.finfo(torch.float32).tiny).log()
        return output, *features


def open_exported(folder: Path | str, engine: str, threads: int | None = None) -> ExportedPredictor:
    """Open an exported classifier in `engine`, the name of an engine such as onnxruntime.

    An int8 file of the engine is preferred, else it computes in float32; ``openvino:float32``, ``openvino:int8`` and
    ``openvino:bfloat16`` choose. `threads` None: all cores; for torch they are those of the process. Raises ValueError
    for a folder that is not an exported classifier or is damaged, for an engine that has no file in it or is not
    installed, and for a precision that the engine or the processor does not support.
    """
    return ExportedPredictor(open_session(Path(folder), engine, threads, "classifier"))


class OpenedFile(NamedTuple):
    """An opened file: its folder's manifest, its engine, the precision of the computation, and its classifier."""

    manifest: Manifest
    engine: str
    precision: str
    session: Session
    head: ClassifierHead | None


def open_session(folder: Path, engine: str, threads: int | None, kind: str) -> OpenedFile:
    """Open the file that `engine` selects; see `open_exported`."""
    manifest = read_manifest(folder)
    actual, command = ("detector", "detect") if manifest.output == "boxes" else ("classifier", "predict")
    if actual != kind:
        raise ValueError(f"{folder}: an exported {actual}, not a {kind}; use googlenet {command}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    name, precision = parse_engine(engine)
    if kind == "detector" and name == "openvino" and isa_limit() in ISAS_WITHOUT_AVX512:
        # It selects some of its code by the processor and some by the limit, and ends with a segmentation fault.
        raise ValueError(f"OpenVINO does not run detectors with ONEDNN_MAX_CPU_ISA={isa_limit()}; unset it")
    candidates = {"": [name + INT8, name], "int8": [name + INT8]}.get(precision, [name])
    entry = next((entry for entry in candidates if entry in manifest.files), None)
    if entry is None:
        flags = f"--format {format_of(name)}" + (" --int8" if precision == "int8" else "")
        entries = ", ".join(manifest.files)
        raise ValueError(f"{folder}: no file for {engine}; it has {entries}; export with {flags}")
    computed = precision if precision in REDUCED else FLOAT32[1:]
    if computed not in (supported := supported_precisions(name)):
        raise ValueError(f"{name} does not compute in {computed} on this processor; it has {', '.join(supported)}")
    paths = verify_files(folder, manifest, entry)
    backend = BACKENDS[format_of(name)]
    session = backend.module.open(paths, threads, computed)
    head = read_head(folder, manifest) if backend.features else None
    return OpenedFile(manifest, name, "int8" if entry.endswith(INT8) else computed, session, head)


def supported_precisions(engine: str) -> list[str]:
    """Return the floating-point precisions that an engine supports on this processor, float32 first."""
    backend = BACKENDS[format_of(engine)]
    return backend.module.precisions() if backend.reduced else [FLOAT32[1:]]


def parse_engine(engine: str) -> tuple[str, str]:
    """Split "openvino:int8" into the engine's name and the precision; ValueError if one is unknown."""
    name, _, precision = engine.partition(":")
    if name not in engine_names():
        raise ValueError(
            f"unknown engine {name!r}{nearest(name, engine_names())}; choose from {', '.join(engine_names())}, auto"
        )
    if precision not in ("", *PRECISIONS):
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    return name, precision
