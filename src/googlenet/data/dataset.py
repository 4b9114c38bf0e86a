"""Data sets in memory or on disk: splits of uint8 images with labels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .accounting import Accounting
from .disk_cache import cached_json
from .image_checks import CheckOptions, check_images, find_max_value, pixel_statistics
from .lazy import ByteRanges, LazyImages, default_num_workers, index_batches
from .preprocess import CropMode, Interpolation, Preprocess

OnError = Literal["skip", "raise"]
DECODE_BATCH = 32  # images that a thread decodes at a time
# Options of sources with columns, of the same name in `LoadOptions` and in the recipe's `data`.
COLUMN_OPTIONS = ("image_column", "label_column", "split_column", "fold_column", "validation_fold")
READ_BATCH = 64  # images that a worker process decodes at a time


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (n, channels, h, w) in memory or on disk, with labels int64 (n,) and one name per image.

    `columns` are further values per image, by name: arrays of Python objects (n,), such as the columns of a table
    (`googlenet.data.table_file`). Every method keeps them with their images. Training images are drawn in proportion to
    `weights` float64 (n,), if they are set (by `data.sampling`); a selection of images has none.
    """

    images: Tensor | LazyImages
    labels: Tensor
    names: Sequence[str]
    columns: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """Move images and labels to `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def slice(self, start: int, stop: int | None) -> "Split":
        """Return the images start..stop, without a copy."""
        columns = {name: values[start:stop] for name, values in self.columns.items()}
        return Split(self.images[start:stop], self.labels[start:stop], self.names[start:stop], columns)

    def select(self, indices: Tensor) -> "Split":
        """Return the images with these int64 indices, or those where a bool mask (n,) is true."""
        positions = (indices.nonzero().flatten() if indices.dtype == torch.bool else indices).cpu().numpy()
        names = [self.names[position] for position in positions.tolist()]
        columns = {name: values[positions] for name, values in self.columns.items()}
        return Split(self.images[indices], self.labels[indices], names, columns)

    def subsample(self, count: int) -> "Split":
        """Return at most `count` evenly spaced images: if the images are ordered by class, each keeps its share."""
        if count >= len(self):
            return self
        return self.select(torch.arange(count) * len(self) // count)

    def gray(self) -> "Split":
        """Return the images with their first channel only, for images whose channels are equal."""
        if isinstance(self.images, LazyImages):
            preprocess = replace(self.images.preprocess, channels=1, mean=(0.0,), std=(1.0,))
            return replace(self, images=replace(self.images, preprocess=preprocess))
        return replace(self, images=self.images[:, :1].clone())

    def stored(self) -> "Split":
        """Return the images as center crops, for evaluation: in memory if the full images are in memory."""
        if not isinstance(self.images, LazyImages) or self.images.full_size is None:
            return self
        images = replace(self.images, full_size=None, decoded=None)
        if self.images.decoded is None or not len(self):
            return replace(self, images=images)
        return replace(self, images=torch.cat(list(images.batches(index_batches(len(self), READ_BATCH)))))

    def labels_of(self, indices: Tensor) -> Tensor:
        """Return the labels of the last batch, the images with int64 `indices` (n,): of those that were shown."""
        shown = self.images.resolve(indices) if isinstance(self.images, LazyImages) else indices
        return self.labels[shown.to(self.labels.device, non_blocking=self.labels.device.type == "cuda")]

    def pixels(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the images of each int64 tensor of indices in `batches`: uint8 (len(indices), channels, h, w)."""
        if isinstance(self.images, LazyImages):
            return self.images.batches(batches)
        images = self.images
        return (images[indices.to(images.device)] for indices in batches)


@dataclass(frozen=True)
class Dataset:
    """A labeled data set.

    `source` has absolute paths; `classes` are in the order of the labels, and `synsets` are their WordNet identifiers,
    if the source has them. `validation` images are the source's own or held out of `train`; `test` may be empty. `mean`
    and `std` of the training pixels are fractions of the pixel range. `accounting` counts the used and excluded files.
    `max_value` is white in images of more than 8 bits per channel; see `Preprocess`. `fold_column` is the column of the
    splits (`Split.columns`) with the folds for cross-validation, if the source has one.
    """

    source: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accounting: Accounting = field(default_factory=Accounting)
    synsets: tuple[str, ...] = ()
    max_value: float | None = None
    fold_column: str | None = None

    def to(self, device: torch.device) -> "Dataset":
        """Move the images to `device`, so that batches are created there."""
        train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)

    def subsample(self, count: int) -> "Dataset":
        """Keep at most `count` evenly spaced images of each split."""
        train, validation, test = (split.subsample(count) for split in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)

    @property
    def skipped(self) -> list[str]:
        """Return one line per reason for which files are excluded; see `Accounting.lines`."""
        return self.accounting.lines()

    @property
    def channels(self) -> int:
        """Return the number of channels: 1 for gray, 3 for RGB."""
        return self.train.images.shape[1]


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a data source.

    Attributes:
        root: folder to search first; relative paths are relative to it.
        validation: training images, selected by `seed`, held out if the source has none: a count or a fraction below 1.
        size: height and width at which images are stored, in pixels.
        crop_mode: how an image becomes square: center (crop) or squash.
        interpolation: bilinear or bicubic.
        max_value: the value that is white in images of more than 8 bits per channel; unset: see `pixel_range`.
        channels: 1 (gray), 3 (RGB), or the channels of the files; unset: 1 if all images are gray, else 3.
        on_error: unreadable files: skip (and list them) or raise ImageError.
        max_samples: use at most this many images of each split, evenly spaced; unset: all.
        in_memory: keep decoded images in memory, or decode them for each batch; unset: if half of the available memory
            is enough.
        num_workers: processes that decode ahead when images are not in memory; unset: `default_num_workers`.
        image_column, label_column, split_column, fold_column: of a table; unset: found by `table_file.COLUMN_NAMES`.
        validation_fold: the training images of this fold of `fold_column` are the validation images.
        full_size: for random views of the full training images, the shorter side, in pixels, that these need; unset:
            center crops of height and width `size` are enough.
        group_column: column (`Split.columns`) with groups of images that are held out, or in a fold, together.
        num_folds: folds for cross-validation; unset: none.
        fold: the fold, from 0 on, that is the validation split; unset: no validation split.
        check: decode every image on disk once, to exclude damaged ones. Without it, only headers and held-out images
            are checked, and a damaged training image is replaced by another one when it is used.
    """

    root: str | None = None
    validation: float = 0.1
    size: int = 224
    crop_mode: CropMode = "center"
    interpolation: Interpolation = "bilinear"
    max_value: float | None = None
    channels: int | None = None
    on_error: OnError = "skip"
    max_samples: int | None = None
    seed: int = 0
    in_memory: bool | None = None
    num_workers: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    fold_column: str | None = None
    validation_fold: str | None = None
    full_size: int | None = None
    group_column: str | None = None
    num_folds: int | None = None
    fold: int | None = None
    check: bool = True

    @property
    def workers(self) -> int:
        """Return the number of decoding processes."""
        return default_num_workers() if self.num_workers is None else self.num_workers

    @property
    def storage(self) -> Preprocess:
        """Return the crop, size and channels of stored images: RGB until all images are known to be gray."""
        channels = self.channels or 3
        zeros, ones = (0.0,) * channels, (1.0,) * channels
        return Preprocess(
            self.size, channels, zeros, ones, self.crop_mode, interpolation=self.interpolation, max_value=self.max_value
        )

    def of_split(self, split: str) -> "LoadOptions":
        """Return the options of a split: only training images, and those of all folds, are augmented."""
        is_training = split == "train" or (split == "validation" and self.num_folds is not None)
        return self if is_training else replace(self, full_size=None)

    def with_max_value(self, splits: Iterable[ByteRanges], cached: bool) -> "LoadOptions":
        """Set `max_value`, if it is unset, to that of the images of the first split that is not empty."""
        ranges = next((ranges for ranges in splits if len(ranges.file)), None)
        if self.max_value is not None or ranges is None:
            return self
        key = ranges.fingerprints().tobytes() if cached else b""
        find = partial(find_max_value, ranges)
        return replace(self, max_value=cached_json("max_value", key, find) if cached else find())


class LoadedSplit(NamedTuple):
    """The images of a split, and whether all are gray; `damaged` (n,) marks images that could not be decoded.

    `kind` and `cache_key` are what the split's images are called and checked under. Damaged images are removed after
    the validation images are held out: these are then the same whether the images are decoded at the start or later.
    """

    split: Split
    all_gray: bool
    kind: str = "file"
    cache_key: str = ""
    damaged: Tensor | None = None

    @property
    def usable(self) -> Tensor:
        """Return which images are not known to be damaged: bool (n,)."""
        return torch.ones(len(self.split), dtype=torch.bool) if self.damaged is None else ~self.damaged


def check_headers(split: Split, kind: str, cache_key: str, accounting: Accounting) -> LoadedSplit:
    """Return a split of `LazyImages` without images that are unusable by their headers.

    Images that turn out to be damaged when they are decoded are replaced by others, or raise ImageError if
    `accounting` is strict.
    """
    assert isinstance(split.images, LazyImages)
    images = replace(split.images, strict=accounting.strict, unreadable=accounting.replaced)
    # Files of more channels are no images whose headers Pillow reads.
    decode = images.preprocess.channels not in (1, 3)
    loaded = _without_unusable(replace(split, images=images), kind, cache_key, accounting, decode=decode)
    accounting.use(kind, len(loaded.split))
    return loaded


def drop_unusable_images(split: Split, kind: str, cache_key: str, accounting: Accounting) -> LoadedSplit:
    """Return a split of `LazyImages` without images that cannot be decoded."""
    loaded = _without_unusable(split, kind, cache_key, accounting, decode=True)
    accounting.use(kind, len(loaded.split))
    return loaded


def drop_damaged(loaded: LoadedSplit, accounting: Accounting) -> Split:
    """Return a split for evaluation, without damaged images: those of `LazyImages` are decoded once and excluded."""
    split = loaded.split if loaded.damaged is None else loaded.split.select(loaded.usable)
    if not isinstance(split.images, LazyImages) or split.images.decoded is not None:
        return split
    checked = _without_unusable(split, loaded.kind, loaded.cache_key, accounting, decode=True).split
    accounting.used[loaded.kind] -= len(split) - len(checked)
    assert isinstance(checked.images, LazyImages)
    return replace(checked, images=replace(checked.images, strict=True))


def _without_unusable(split: Split, kind: str, cache_key: str, accounting: Accounting, *, decode: bool) -> LoadedSplit:
    """Exclude the unusable images of a split of `LazyImages` in `accounting`, as items of `kind`."""
    assert isinstance(split.images, LazyImages)
    ranges, channels = split.images.ranges, split.images.preprocess.channels
    options = CheckOptions(accounting.strict, channels, decode)
    usable, gray, errors = check_images(ranges, split.names, cache_key, options)
    for index, message in errors.items():
        accounting.exclude_unreadable(kind, message, split.names[index])
    selected = split if usable.all() else split.select(torch.from_numpy(usable))
    return LoadedSplit(selected, bool(gray[usable].all()), kind, cache_key)


def read_into_memory(split: Split) -> Split:
    """Decode the `LazyImages` of a split, with threads, to a tensor with the same pixels."""
    images = split.images
    assert isinstance(images, LazyImages)
    pixels = torch.empty(images.shape, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        batches = index_batches(len(images), DECODE_BATCH)
        for indices, decoded in zip(batches, pool.map(images.read, batches), strict=True):
            pixels[indices[0] : indices[-1] + 1] = decoded
    return replace(split, images=pixels)


def build_dataset(
    source: str,
    classes: tuple[str, ...],
    loaded: Mapping[str, LoadedSplit],
    accounting: Accounting,
    options: LoadOptions,
) -> Dataset:
    """Combine the splits ``train``, ``validation`` and ``test``, and hold out validation images if there are none.

    Unless `options` set the channels, the images become gray if all are.
    """
    if options.channels is None and all(item.all_gray for item in loaded.values()):
        loaded = {name: item._replace(split=item.split.gray()) for name, item in loaded.items()}
    splits = {name: drop_damaged(item, accounting) for name, item in loaded.items() if name != "train"}
    splits["train"], held_out = _hold_out(loaded["train"], not splits["validation"], options)
    if options.check:
        splits["train"] = drop_damaged(loaded["train"]._replace(split=splits["train"], damaged=None), accounting)
    if held_out is not None:
        held_out_split = loaded["train"]._replace(split=held_out.stored(), damaged=None)
        splits["validation"] = drop_damaged(held_out_split, accounting)
        count, total = len(splits["validation"]), len(splits["train"]) + len(splits["validation"])
        reason = "" if count else ", because no class has two"
        accounting.notes.append(
            f"no validation images: {count:,} of the {total:,} training images are held out{reason}"
        )
    # Some sources have no training images, only images to evaluate on.
    measured = next((splits[name] for name in ("train", "validation", "test") if splits[name]), splits["train"])
    mean, std = pixel_statistics(measured.images)
    return Dataset(
        source, classes, splits["train"], splits["validation"], splits["test"], mean, std, accounting,
        max_value=options.max_value,
    )  # fmt: skip


def _hold_out(train: LoadedSplit, needed: bool, options: LoadOptions) -> tuple[Split, Split | None]:
    """Return the training images and, if `needed` and the options hold out any, the validation images."""
    if needed and options.validation:
        is_held_out = held_out_mask(train.split.labels, options.validation, options.seed)
        return train.split.select(~is_held_out & train.usable), train.split.select(is_held_out & train.usable)
    return (train.split if train.damaged is None else train.split.select(train.usable)), None


def num_validation(count: int, validation: float) -> int:
    """Return how many of `count` images to hold out (a count or fraction); ValueError unless training images remain."""
    num_images = round(count * validation) if validation < 1 else int(validation)
    if validation < 0 or num_images >= count:
        raise ValueError(
            f"validation split too large: {validation:g} of {count} images leaves none to train on; "
            "set data.val_split to a fraction such as 0.2"
        )
    return num_images


def stratified_split(split: Split, validation: float, seed: int) -> tuple[Split, Split]:
    """Hold out validation images in proportion to the classes, see `held_out_mask`; return (training, validation)."""
    mask = held_out_mask(split.labels, validation, seed)
    return split.select(~mask), split.select(mask)


def held_out_mask(labels: Tensor, validation: float, seed: int) -> Tensor:
    """Return which images to hold out for validation, in proportion to the classes `labels` int64 (n,): bool (n,).

    `validation` is a count, or a fraction below 1, which holds out at least one image of each class that has two. The
    last image of a class always stays in training. Raises ValueError if no training images would remain.
    """
    count = num_validation(len(labels), validation)
    if validation < 1:
        count = max(count, int((torch.bincount(labels) > 1).sum()))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    # An image's rank within its class as a fraction of the class: the smallest fractions are held out.
    by_class = order[labels[order].argsort(stable=True)]
    rank = torch.ones(len(labels))
    for members in torch.split(by_class, torch.bincount(labels).tolist()):
        rank[members] = (torch.arange(len(members)) + 0.5) / len(members)
        # Small classes get an image in each split.
        rank[members[:1]] = 0.0
        rank[members[-1:]] = 2.0
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[rank.argsort(stable=True)[:count]] = True
    return mask & (rank < 2.0)
