"""Files of statistics, .npz with ``mu`` and ``sigma``, which all tools read; this package's also name the network."""

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..files import raise_for_placeholder, write_atomically
from .images import ImageSet, image_set_of_tensor
from .statistics import Gaussian

SUFFIX = ".npz"
RECORD = "googlenet"


@dataclass(frozen=True)
class StatsRecord:
    """What statistics were made of: the tool's mode, the network's name and digest, the precision."""

    like: str
    network: str
    digest: str
    precision: str


@dataclass(frozen=True)
class StatsFile:
    """The content of a file: statistics, with the record of this package's files, or images or features instead."""

    path: Path
    gaussian: Gaussian | None = None
    record: StatsRecord | None = None
    images: ImageSet | None = None
    features: torch.Tensor | None = None

    def check(self, expected: StatsRecord) -> list[str]:
        """Return notes for the user; ValueError if the statistics were made in another way than `expected`."""
        if self.record is None:
            return [f"{self.path} does not record its network: it is assumed to be {expected.network}"]
        # First, because the digest of the FID network includes the normalization, which differs between modes.
        if self.record.like != expected.like:
            raise ValueError(
                f"{self.path}: statistics made with --like {self.record.like}; use that, or compute them again"
            )
        if self.record.digest != expected.digest or self.record.network != expected.network:
            other = f"{self.record.network} ({self.record.digest[:8]})"
            raise ValueError(
                f"{self.path}: statistics of another network, {other}, not {expected.network} "
                f"({expected.digest[:8]}); name that one with --weights or --features, or compute them again"
            )
        if self.record.precision != expected.precision:
            return [f"{self.path} was computed in {self.record.precision}, the other set in {expected.precision}"]
        return []


def read_stats(path: Path) -> StatsFile:
    """Read statistics (mu, sigma), features (feats) or images (arr_0) of any tool; ValueError for other files."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    raise_for_placeholder(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged or not an .npz file ({error}); copy or compute it again") from None
    if {"mu", "sigma"} <= arrays.keys():
        return StatsFile(path, _gaussian(path, arrays), _record(path, arrays))
    if "feats" in arrays:
        features = torch.from_numpy(arrays["feats"])
        if features.ndim != 2 or not features.isfinite().all():
            raise ValueError(f"{path}: feats are not finite features (n, d)")
        return StatsFile(path, features=features.float())
    if "arr_0" in arrays:
        samples = arrays["arr_0"]
        if samples.ndim != 4 or samples.dtype != np.uint8:
            raise ValueError(f"{path}: arr_0 is {samples.dtype} {samples.shape}, not images uint8 (n, h, w, 3)")
        return StatsFile(path, images=image_set_of_tensor(str(path), torch.from_numpy(samples).permute(0, 3, 1, 2)))
    raise ValueError(f"{path}: no mu and sigma, but {', '.join(arrays) or 'nothing'}; name a file of FID statistics")


def _gaussian(path: Path, arrays: dict[str, NDArray[Any]]) -> Gaussian:
    mean, covariance = (torch.from_numpy(np.asarray(arrays[name], np.float64)) for name in ("mu", "sigma"))
    count = int(arrays["num_images"]) if "num_images" in arrays else None
    return Gaussian(mean, covariance, count).checked(str(path))


def _record(path: Path, arrays: dict[str, NDArray[Any]]) -> StatsRecord | None:
    if RECORD not in arrays:
        return None
    try:
        return StatsRecord(**json.loads(str(arrays[RECORD])))
    except (TypeError, ValueError):
        raise ValueError(f"{path}: the record of the network is damaged; compute the statistics again") from None


def write_stats(path: Path, gaussian: Gaussian, record: StatsRecord) -> None:
    """Write statistics that every tool reads, with the number of images and the record."""
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: statistics are an {SUFFIX} file; name it so")
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"mu": gaussian.mean.numpy(), "sigma": gaussian.covariance.numpy()}
    arrays["num_images"] = np.int64(gaussian.num_images or 0)
    arrays[RECORD] = np.array(json.dumps(asdict(record)))
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
