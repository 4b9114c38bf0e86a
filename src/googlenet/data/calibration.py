"""Calibration images: a sample of labeled images that is saved with a network, to compare precisions on."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..files import write_atomically
from .dataset import Split
from .preprocess import Preprocess

CALIBRATION_NAME = "calibration.npz"
MAX_BYTES, MAX_IMAGES = 8_000_000, 500


class Calibration(NamedTuple):
    """Images uint8 (n, channels, size, size), cropped and resized, with the labels of a `Split`."""

    images: Tensor
    labels: Tensor


def select_calibration(split: Split, preprocess: Preprocess) -> Calibration:
    """Select evenly spaced images of a split: at most `MAX_IMAGES`, of together at most `MAX_BYTES`, at least one."""
    num_bytes = preprocess.channels * preprocess.size**2
    selected = split.subsample(max(1, min(MAX_IMAGES, MAX_BYTES // num_bytes)))
    batches = torch.split(torch.arange(len(selected.labels)), 50)
    images, labels = [], []
    for indices, pixels in zip(batches, selected.pixels(batches), strict=True):
        resized = preprocess.resize(preprocess.center_crop(pixels), preprocess.size)
        images.append(resized.round().clamp(0, 255).to("cpu", torch.uint8))
        labels.append(selected.labels_of(indices).cpu())
    return Calibration(torch.cat(images), torch.cat(labels))


def write_calibration(folder: Path, calibration: Calibration) -> dict[str, Any]:
    """Write ``calibration.npz`` into a folder, and describe it for the manifest."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=calibration.images.numpy(), labels=calibration.labels.numpy())
    content = buffer.getvalue()
    write_atomically(folder / CALIBRATION_NAME, content)
    digest = hashlib.sha256(content).hexdigest()
    return {"file": CALIBRATION_NAME, "sha256": digest, "images": len(calibration.labels)}


def read_calibration(path: Path) -> Calibration | None:
    """Read the file of `write_calibration`; None if it does not exist. ValueError if it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it to go without calibration images") from None
    if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape[:1] != images.shape[:1] or not len(labels):
        raise ValueError(f"{path}: not calibration images of this package; delete it")
    return Calibration(images, labels if labels.ndim == 2 else labels.long())
