"""Open exported folders: the files of an engine as a `Predictor`."""

from pathlib import Path

import torch
from torch import Tensor

from ..errors import nearest
from ..evaluation.predictor import round_to_uint8
from .backends import BACKENDS, Session, engine_names, format_of
from .manifest import Manifest, read_manifest, verify_files

INT8, FLOAT32 = ":int8", ":float32"


class ExportedPredictor:
    """An exported classifier in an engine. Float images are rounded to uint8. `entry` is a key of `Manifest.files`."""

    def __init__(self, entry: str, manifest: Manifest, session: Session):
        self.entry, self.manifest, self.session = entry, manifest, session
        self.name = entry.partition(":")[0]
        self.preprocess, self.classes, self.min_size = manifest.preprocess, manifest.classes, manifest.min_size

    def predict(self, images: Tensor) -> Tensor:
        """Return logits float32 (n, classes), or log-probabilities if the file contains softmax."""
        size, channels, min_size = self.preprocess.size, self.preprocess.channels, self.min_size
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"expected images (n, {channels}, height, width), got {tuple(images.shape)}")
        height, width = images.shape[2:]
        if self.manifest.dynamic_size and min(height, width) < min_size:
            raise ValueError(f"the input is {height}x{width} pixels; this network needs at least {min_size}x{min_size}")
        if not self.manifest.dynamic_size and (height, width) != (size, size):
            raise ValueError(f"the input is {height}x{width} pixels; this file takes {size}x{size}")
        (output,) = self.session(round_to_uint8(images.cpu()).contiguous())
        return output if self.manifest.output == "logits" else output.clamp_min(torch.finfo(torch.float32).tiny).log()


def open_exported(folder: Path | str, engine: str, threads: int | None = None) -> ExportedPredictor:
    """Open an exported classifier in `engine`, the name of an engine such as onnxruntime.

    An int8 file of the engine is preferred; ``openvino:float32`` and ``openvino:int8`` choose. `threads` None: all
    cores; for torch they are those of the process. Raises ValueError for a folder that is not an exported classifier
    or is damaged, and for an engine that has no file in it or is not installed.
    """
    return ExportedPredictor(*open_session(Path(folder), engine, threads, "classifier"))


def open_session(folder: Path, engine: str, threads: int | None, kind: str) -> tuple[str, Manifest, Session]:
    """Return the entry of `Manifest.files` that `engine` selects, the manifest, and the opened files."""
    manifest = read_manifest(folder)
    actual, command = ("detector", "detect") if manifest.output == "boxes" else ("classifier", "predict")
    if actual != kind:
        raise ValueError(f"{folder}: an exported {actual}, not a {kind}; use googlenet {command}")
    if kind == "detector" and engine == "auto":
        engine = next(iter(manifest.files))
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    name, precision = parse_engine(engine)
    candidates = {"": [name + INT8, name], "int8": [name + INT8], "float32": [name]}[precision]
    entry = next((entry for entry in candidates if entry in manifest.files), None)
    if entry is None:
        flags = f"--format {format_of(name)}" + (" --int8" if precision == "int8" else "")
        entries = ", ".join(manifest.files)
        raise ValueError(f"{folder}: no file for {engine}; it has {entries}; export with {flags}")
    paths = verify_files(folder, manifest, entry)
    return entry, manifest, BACKENDS[format_of(name)].module.open(paths, threads)


def parse_engine(engine: str) -> tuple[str, str]:
    """Split "openvino:int8" into the engine's name and the precision; ValueError if one is unknown."""
    name, _, precision = engine.partition(":")
    if name not in engine_names() or precision not in ("", "int8", "float32"):
        raise ValueError(
            f"unknown engine {engine!r}{nearest(engine, engine_names())}; choose from {', '.join(engine_names())}, auto"
        )
    return name, precision
