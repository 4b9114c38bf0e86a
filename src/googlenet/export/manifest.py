"""``model.json``: the manifest of an exported folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save
from torch import Tensor

from ..checkpoint.format import MANIFEST_FILE
from ..data.preprocess import Preprocess
from ..evaluation.predictor import ClassifierHead

MANIFEST_NAME, HEAD_NAME = MANIFEST_FILE, "classifier.safetensors"
VERSION = 1
COLOR_FORMATS = {1: "L", 3: "RGB"}
# Fields of `Preprocess` that the file contains unchanged.
PREPROCESSING = ("crop_mode", "crop_pct", "interpolation")
# Fields of `Manifest` that the file contains unchanged.
RESULTS = ("accuracy", "max_error", "int8", "calibration", "head", "versions")

OutputKind = Literal["logits", "probabilities", "boxes"]


@dataclass(frozen=True)
class Manifest:
    """An exported folder.

    `model` is the network's name in `models.registry`, `min_size` the smallest input height and width in pixels, which
    are free if `dynamic_size`. `files` are those of each engine, the one to open first; int8 files under
    ``engine:int8``. `sha256` is empty until the files are written. `accuracy` has metrics under ``float32`` and of each
    int8 file, `max_error` the largest difference from PyTorch by engine, `int8` how files were quantized.
    `calibration` is the file of the calibration images, its sha256 and their number; empty if there are none. `head` is
    the file of the classifier's weights and its sha256, if the files also return the last feature map. `sizes` are the
    longer sides in pixels that a detector resizes images to; empty for a classifier and in older folders. `thresholds`
    are the probabilities (the sigmoid of the logits) from which an image has a label, one per class; empty unless an
    image may have any number of labels.
    """

    model: str
    preprocess: Preprocess
    classes: tuple[str, ...]
    min_size: int
    dynamic_size: bool
    output: OutputKind
    files: Mapping[str, Sequence[str]]
    sha256: Mapping[str, str] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    max_error: Mapping[str, float] = field(default_factory=dict)
    int8: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    thresholds: tuple[float, ...] = ()

    def write(self, folder: Path) -> None:
        """Write ``model.json`` into `folder`, which holds the files."""
        preprocess, detector = asdict(self.preprocess), self.output == "boxes"
        channels = preprocess["channels"]
        content = {
            "format": VERSION,
            "model": self.model,
            "input": {
                "dtype": "uint8",
                "layout": "CHW" if detector else "NCHW",
                "range": [0, 255],
                "channels": channels,
                "color_format": COLOR_FORMATS.get(channels, str(channels)),
                "size": preprocess["size"],
                "min_size": self.min_size,
                "dynamic_size": self.dynamic_size,
                "sizes": list(self.sizes),
                "dynamic_batch": not detector,
                **{key: preprocess[key] for key in (*PREPROCESSING, "max_value")},
            },
            "normalization": {key: list(preprocess[key]) for key in ("mean", "std")},
            "output": {"kind": self.output, "classes": list(self.classes), "thresholds": list(self.thresholds)},
            "engines": {
                engine: {"files": list(files), "sha256": {file: file_sha256(folder / file) for file in files}}
                for engine, files in self.files.items()
            },
            **{key: dict(getattr(self, key)) for key in RESULTS},
        }
        (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def is_exported(folder: Path) -> bool:
    """Return whether `folder` is an exported folder."""
    return (folder / MANIFEST_NAME).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of `folder`; ValueError if it is missing or unreadable."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ValueError(f"{folder}: not an exported folder: it has no {MANIFEST_NAME}; googlenet export writes one")
    try:
        values = json.loads(path.read_text())
        if values["format"] != VERSION:
            raise ValueError(f"its format is {values['format']}, this version reads {VERSION}")
        inputs, output, engines = values["input"], values["output"], values["engines"]
        preprocess = {key: inputs[key] for key in ("size", "channels", *PREPROCESSING)}
        preprocess["max_value"] = inputs.get("max_value")  # not in folders of earlier versions
        preprocess |= {key: tuple(values["normalization"][key]) for key in ("mean", "std")}
        return Manifest(
            model=values["model"],
            preprocess=Preprocess(**preprocess),
            classes=tuple(output["classes"]),
            min_size=inputs["min_size"],
            dynamic_size=inputs["dynamic_size"],
            sizes=tuple(inputs.get("sizes", ())),
            output=output["kind"],
            thresholds=tuple(map(float, output.get("thresholds", ()))),
            files={name: tuple(entry["files"]) for name, entry in engines.items()},
            sha256={k: v for entry in engines.values() for k, v in entry["sha256"].items()},
            **{key: values[key] for key in RESULTS},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: unreadable ({error}); export again") from None


def write_head(folder: Path, weight: Tensor) -> dict[str, Any]:
    """Write the weight (classes, channels) of the classifier, and describe the file for the manifest."""
    content = save({"weight": weight.detach().float().contiguous()})
    (folder / HEAD_NAME).write_bytes(content)
    return {"file": HEAD_NAME, "sha256": hashlib.sha256(content).hexdigest()}


def read_head(folder: Path, manifest: Manifest) -> ClassifierHead | None:
    """Read the classifier of an exported folder; None if its files do not return features. ValueError if changed."""
    if not manifest.head:
        return None
    path = folder / manifest.head["file"]
    if not path.is_file() or file_sha256(path) != manifest.head["sha256"]:
        raise ValueError(f"{path}: missing or changed; copy the complete folder, or export again")
    return ClassifierHead(load_file(path)["weight"])


def file_sha256(path: Path) -> str:
    """Return the SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_files(folder: Path, manifest: Manifest, entry: str) -> list[Path]:
    """Return the files of an entry of `manifest.files`; ValueError if one is missing or differs from the export."""
    paths = [folder / name for name in manifest.files[entry]]
    for path in paths:
        if not path.is_file() or file_sha256(path) != manifest.sha256[path.name]:
            problem = "differs from the file that was exported" if path.exists() else "is missing"
            raise ValueError(f"{path}: {problem}; copy the complete folder, or export again")
    return paths
