"""Compare two sets of images by any of the metrics, in one pass over the images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import nearest
from ..evaluation.progress import ProgressDisplay
from . import engines
from .by_class import fid_by_class
from .features import features_of, features_of_batches
from .images import ImageSet, Preparation, image_set_of_tensor, open_image_set, to_uint8
from .metrics import DEFAULT_SEED, Head, inception_score, kernel_inception_distance, manifold_metrics
from .modes import DEFAULT_MODE, MODES, get_mode
from .networks import FeatureNetwork, load_feature_network
from .statistics import (
    Gaussian,
    can_estimate_interval,
    frechet_distance,
    frechet_distance_of_features,
    frechet_infinity,
    frechet_interval,
    moments_of_blocks,
)
from .stats_file import SUFFIX, StatsFile, StatsRecord, read_stats, write_stats
from .warnings import warn_about

# Images on which int8's ranges are measured, and those per set that show the bias of a precision.
CALIBRATION_IMAGES, BIAS_IMAGES = 100, 200
# What Python functions accept as a set of images: a name or path, a tensor, or batches of them.
Source = str | Path | Tensor | Iterable[Tensor]


@dataclass(frozen=True)
class Settings:
    """Options of a comparison; see `compare.fid`."""

    like: str = DEFAULT_MODE
    metrics: Sequence[str] = ("fid",)
    features: str | Callable[[Tensor], Tensor] | None = None
    weights: str | None = None
    engine: str = engines.AUTO
    precision: str = "float32"
    seed: int = DEFAULT_SEED
    interval: bool = True
    by_class: bool = False
    max_value: float | None = None
    use_cache: bool = True
    show_progress: bool = False


class FeatureSet(NamedTuple):
    """A set as the metrics need it: its statistics, and unless they were read from a file, features and images."""

    name: str
    gaussian: Gaussian
    features: Tensor | None = None
    images: ImageSet | None = None

    def require_images(self, purpose: str) -> tuple[ImageSet, Tensor]:
        """Return images and features; ValueError if they are not known."""
        if self.images is None or self.features is None:
            raise ValueError(f"{self.name}: {purpose} needs a folder, a data source or a tensor")
        return self.images, self.features

    def require_features(self, metric: str) -> Tensor:
        """Return the features; ValueError if only statistics are known."""
        if self.features is None:
            raise ValueError(f"{self.name} contains statistics only; {metric} needs the images")
        return self.features


class Pair(NamedTuple):
    """The arguments of a metric."""

    real: FeatureSet
    fake: FeatureSet
    head: Head | None
    settings: Settings


def _fid(pair: Pair) -> dict[str, Any]:
    values: dict[str, Any] = {"fid": frechet_distance(pair.real.gaussian, pair.fake.gaussian)}
    features = pair.fake.features
    if pair.settings.interval and features is not None and can_estimate_interval(*features.shape):
        order = torch.from_numpy(np.random.RandomState(pair.settings.seed).permutation(len(features)))
        values["fid_unbiased"] = frechet_interval(pair.real.gaussian, features, order)._asdict()
    return values


def _fid_infinity(pair: Pair) -> dict[str, Any]:
    features = pair.fake.require_features("FID-infinity")
    generator = torch.Generator().manual_seed(pair.settings.seed)
    return {"fid_infinity": frechet_infinity(pair.real.gaussian, features, generator)}


def _kid(pair: Pair) -> dict[str, Any]:
    real, fake = (each.require_features("KID") for each in (pair.real, pair.fake))
    return {"kid": kernel_inception_distance(real, fake, pair.settings.seed)._asdict()}


def _inception_score(pair: Pair) -> dict[str, Any]:
    if pair.head is None:
        raise ValueError("the Inception Score needs a network with a known classifier; choose other --metrics")
    features = pair.fake.require_features("the Inception Score")
    return {"inception_score": inception_score(features, pair.head, pair.settings.seed)._asdict()}


def _manifold(pair: Pair) -> dict[str, Any]:
    names = "precision, recall, density and coverage"
    return manifold_metrics(pair.real.require_features(names), pair.fake.require_features(names))._asdict()


# By the names of ``--metrics``. A new metric is a function and a line here.
METRICS: dict[str, Callable[[Pair], dict[str, Any]]] = {
    "fid": _fid,
    "fid-infinity": _fid_infinity,
    "kid": _kid,
    "is": _inception_score,
    "prdc": _manifold,
}


@dataclass(frozen=True)
class Comparison:
    """The result: `values` by metric, `warnings` and `notes` for the user, and how the values were computed."""

    values: dict[str, Any]
    num_real: int | None
    num_fake: int | None
    settings: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def fid(self) -> float:
        """Return the Frechet Inception Distance; KeyError if it was not computed."""
        return float(self.values["fid"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {"real": self.num_real, "generated": self.num_fake}
        return {**self.values, "images": counts, **self.settings, "warnings": self.warnings, "notes": self.notes}


class Comparer:
    """A network and the settings, with which sets are read and compared."""

    def __init__(self, settings: Settings):
        self.settings, self.mode = settings, get_mode(settings.like)
        for name in settings.metrics:
            if name not in METRICS:
                raise ValueError(f"unknown metric {name!r}{nearest(name, METRICS)}; choose from {', '.join(METRICS)}")
        self.network: FeatureNetwork | None = None
        self.files: list[StatsFile] = []
        self.notes: list[str] = []

    @cached_property
    def float_network(self) -> FeatureNetwork:
        """Return the network, which is loaded when it is first needed: not to compare two files of statistics."""
        return load_feature_network(self.settings.features, self.settings.weights, self.mode)

    @cached_property
    def prepare(self) -> Preparation:
        """Return how images are prepared for the network."""
        return Preparation(self.mode, self.float_network.side, self.float_network.channels)

    @property
    def record(self) -> StatsRecord:
        """Return what statistics of this network and these settings are marked with."""
        network = self.float_network
        return StatsRecord(self.settings.like, network.name, network.digest, self.settings.precision)

    def read(self, source: Source) -> FeatureSet:
        """Read a set and compute its features and statistics; ValueError for a set of fewer than two images."""
        opened = self.open(source)
        if isinstance(opened, StatsFile) and opened.gaussian is not None:
            self.files.append(opened)
            if self.network is not None:
                self.notes += opened.check(self.record)
            return FeatureSet(str(opened.path), opened.gaussian)
        if isinstance(opened, StatsFile):
            assert opened.features is not None
            return self._set(str(opened.path), opened.features, None)
        if isinstance(opened, ImageSet):
            self.notes += opened.notes
            if len(opened) < 2:
                raise ValueError(f"{opened.name}: {len(opened)} image; a covariance needs 2 or more")
            return self._set(opened.name, self._features(opened), opened)
        return self._set("batches", features_of_batches(self.prepared(opened), self.network_in_engine()), None)

    def open(self, source: Source) -> "ImageSet | StatsFile | Iterable[Tensor]":
        """Open a source without decoding its images."""
        if isinstance(source, Tensor):
            return image_set_of_tensor("tensor", source, self.settings.max_value)
        if not isinstance(source, (str, Path)):
            return source
        if str(source).endswith(SUFFIX):
            file = read_stats(Path(source))
            return file if file.images is None else file.images
        return open_image_set(str(source), self.mode)

    def _set(self, name: str, features: Tensor, images: ImageSet | None) -> FeatureSet:
        return FeatureSet(name, moments_of_blocks(features).gaussian(), features, images)

    def network_in_engine(self, images: ImageSet | None = None) -> FeatureNetwork:
        """Return the network in its engine, which is chosen when it is first needed."""
        if self.network is None:
            # Before minutes of computation.
            self.notes += [line for file in self.files for line in file.check(self.record)]
            self.notes += [self.float_network.note] if self.float_network.note else []

            def calibration() -> Tensor:
                if images is None:
                    raise ValueError("int8 needs images to measure ranges on: name a folder as the first set")
                count = min(CALIBRATION_IMAGES, len(images))
                rows = [index * len(images) // count for index in range(count)]
                return torch.stack([self.prepare.load(images, row) for row in rows])

            settings = self.settings
            self.network = engines.with_engine(self.float_network, settings.engine, settings.precision, calibration)
        return self.network

    def _features(self, images: ImageSet) -> Tensor:
        network = self.network_in_engine(images)
        with ProgressDisplay(len(images), enabled=self.settings.show_progress) as display:
            display.describe(images.name)
            size = engines.batch_size()
            return features_of(images, network, self.prepare, size, self.settings.use_cache, display.advance)

    def prepared(self, batches: Iterable[Tensor]) -> Iterable[Tensor]:
        """Yield batches of images as inputs of the network, of at most the engine's batch size."""
        for batch in batches:
            images = image_set_of_tensor("batch", to_uint8(batch, self.settings.max_value))
            for part in torch.split(torch.arange(len(images)), engines.batch_size()):
                yield torch.stack([self.prepare.load(images, index) for index in part.tolist()])

    def compare(self, real: FeatureSet, fake: FeatureSet) -> Comparison:
        """Compute the metrics of two sets."""
        pair = Pair(real, fake, None if self.network is None else self.network.head, self.settings)
        settings = self._describe_files() if self.network is None else self._describe(self.network)
        values: dict[str, Any] = {}
        for name in self.settings.metrics:
            values |= METRICS[name](pair)
        if self.settings.by_class:
            values |= fid_by_class(real.require_images("--by-class"), fake.require_images("--by-class"))
        if self.settings.precision != "float32":
            values |= self.precision_bias(real, fake)
        counts = real.gaussian.num_images, fake.gaussian.num_images
        warnings = warn_about(real.images, fake.images, counts, self.network.side if self.network else 0)
        notes = list(dict.fromkeys(self.notes))
        return Comparison(values, *counts, settings, warnings, notes)

    def precision_bias(self, real: FeatureSet, fake: FeatureSet) -> dict[str, Any]:
        """Return the FID of a sample of both sets in the lower precision and in float32, if the images are known."""
        if real.images is None or fake.images is None:
            return {}
        full = engines.with_engine(self.float_network, engines.TORCH)
        features: list[tuple[Tensor, Tensor]] = []
        for each in (real, fake):
            images, reduced = each.require_images("the bias")
            count = min(BIAS_IMAGES, len(images))
            rows = torch.arange(count) * len(images) // count
            parts = torch.split(rows, engines.batch_size())
            pixels = (torch.stack([self.prepare.load(images, row) for row in part.tolist()]) for part in parts)
            features.append((reduced[rows], torch.cat([full.compute(part) for part in pixels])))
        (low_real, real32), (low_fake, fake32) = features
        low, exact = frechet_distance_of_features(low_real, low_fake), frechet_distance_of_features(real32, fake32)
        return {"precision_bias": {"fid": low, "fid_float32": exact, "images": len(real32)}}

    def save(self, images: FeatureSet, path: Path) -> None:
        """Write the statistics of a set with the record of its network; ValueError for statistics from a file."""
        if images.features is None:
            raise ValueError(f"{images.name} contains statistics already; name a set of images to save those of")
        write_stats(path, images.gaussian, self.record)

    def _describe(self, network: FeatureNetwork) -> dict[str, Any]:
        """Return how the values are computed, for the result."""
        return {
            "like": self.settings.like, "resizing": self.mode.resizing, "network": network.name,
            "network_digest": network.digest[:16], "engine": network.engine, "network_precision": network.precision,
            "seed": self.settings.seed,
        }  # fmt: skip

    def _describe_files(self) -> dict[str, Any]:
        """Return how the statistics of two files were made; ValueError if that differs between them."""
        records = [file.record for file in self.files if file.record is not None]
        record = records[0] if records else StatsRecord("an unknown tool", "an unknown network", "", "unknown")
        self.notes += [line for file in self.files for line in file.check(record)]
        resizing = MODES[record.like].resizing if record.like in MODES else "unknown resizing"
        return {
            "like": record.like, "resizing": resizing, "network": record.network,
            "network_digest": record.digest[:16], "engine": "files", "network_precision": record.precision,
            "seed": self.settings.seed,
        }  # fmt: skip


def fid(real: Source, fake: Source, **options: Any) -> Comparison:
    """Compare generated with real images, by default by FID with its 95 % interval.

    A set is a folder, a data source such as ``fashion-mnist@test``, an .npz file of statistics, a tensor
    (n, channels, h, w) of uint8, or an iterable of such batches; floats with `max_value`, the value of white.

    Args:
        real: the real images.
        fake: the generated images.
        options: the fields of `Settings`: `like` (clean-fid, pytorch-fid or torch-fidelity), `metrics` (fid,
            fid-infinity, kid, is, prdc, or "all"), `features` (another network: a name, path or function), `weights`
            (a file of the FID network), `engine`, `precision`, `seed`, `interval`,
            `by_class`, `max_value`, `use_cache`.

    Raises ValueError for sets, files or options that cannot be used.
    """
    comparer = Comparer(make_settings(**options))
    return comparer.compare(comparer.read(real), comparer.read(fake))


def make_settings(**options: Any) -> Settings:
    """Return the settings of `fid`; ValueError for an unknown option."""
    names = Settings.__dataclass_fields__
    for name in options:
        if name not in names:
            raise ValueError(f"unknown option {name!r}{nearest(name, names)}; choose from {', '.join(names)}")
    settings = Settings(**options)
    metrics = [settings.metrics] if isinstance(settings.metrics, str) else list(settings.metrics)
    return replace(settings, metrics=list(METRICS) if "all" in metrics else metrics)
