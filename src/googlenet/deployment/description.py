"""``model.json``: what an exported folder says of itself, to people and to programs."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.preprocess import Preprocess

NAME = "model.json"
VERSION = 1
COLOURS = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Description:
    """An exported folder.

    `files` names each engine's files, the one to open first; the int8 ones stand under ``engine:int8``. `digests` are
    SHA-256 by file. `min_size` is the least height and width in pixels; unless `any_size` they are those of
    `preprocess`. `accuracy` has a row of figures for ``float32`` and one for each int8 file.
    """

    model: str
    preprocess: Preprocess
    classes: tuple[str, ...]
    min_size: int
    any_size: bool
    softmax: bool
    files: Mapping[str, Sequence[str]]
    digests: Mapping[str, str] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    max_error: Mapping[str, float] = field(default_factory=dict)
    int8: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As it stands in the file."""
        size, channels = self.preprocess.size, self.preprocess.channels
        return {
            "format": VERSION,
            "model": self.model,
            "input": {
                "dtype": "uint8",
                "layout": "NCHW",
                "range": [0, 255],
                "channels": channels,
                "colours": COLOURS.get(channels, str(channels)),
                "size": size,
                "min_size": self.min_size if self.any_size else size,
                "any_size": self.any_size,
                "any_batch": True,
                "fit": self.preprocess.fit,
                "crop_share": self.preprocess.crop_share,
                "interpolation": self.preprocess.interpolation,
            },
            "done_inside": {"mean": list(self.preprocess.mean), "std": list(self.preprocess.std)},
            "output": {"kind": "probabilities" if self.softmax else "logits", "classes": list(self.classes)},
            "engines": {
                engine: {"files": list(files), "sha256": {file: self.digests[file] for file in files}}
                for engine, files in self.files.items()
            },
            "accuracy": dict(self.accuracy),
            "max_error": dict(self.max_error),
            "int8": dict(self.int8),
            "versions": dict(self.versions),
        }

    def write(self, folder: Path) -> None:
        """Write ``model.json`` into `folder`, which holds the files."""
        (folder / NAME).write_text(json.dumps(self.document(), indent=2, allow_nan=False) + "\n")


def read_description(folder: Path) -> Description:
    """What `folder` says of itself; ValueError, in one line, for a folder that is not an exported one."""
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"{folder}: not an exported folder: it has no {NAME}; googlenet export writes one")
    try:
        about = json.loads(path.read_text())
        if about["format"] != VERSION:
            raise ValueError(f"its format is {about['format']}, this version reads {VERSION}")
        given, inside, output = about["input"], about["done_inside"], about["output"]
        preprocess = Preprocess(
            given["size"], given["channels"], tuple(inside["mean"]), tuple(inside["std"]),
            given["fit"], given["crop_share"], given["interpolation"],
        )  # fmt: skip
        engines = about["engines"]
        return Description(
            about["model"],
            preprocess,
            tuple(output["classes"]),
            given["min_size"],
            given["any_size"],
            output["kind"] == "probabilities",
            files={name: tuple(entry["files"]) for name, entry in engines.items()},
            digests={k: v for entry in engines.values() for k, v in entry["sha256"].items()},
            accuracy=about["accuracy"],
            max_error=about["max_error"],
            int8=about["int8"],
            versions=about["versions"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); export again") from None


Precision = Literal["float32", "int8"]


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(folder: Path, description: Description, engine: str) -> list[Path]:
    """The files of one engine, first the one to open; ValueError where one is missing or is not what was written."""
    paths = [folder / name for name in description.files[engine]]
    for path in paths:
        if not path.is_file() or digest(path) != description.digests[path.name]:
            what = "is not the file that was exported" if path.exists() else "is missing"
            raise ValueError(f"{path}: {what}; copy the whole folder, or export again")
    return paths
