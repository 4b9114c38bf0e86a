"""Batches of a split. The images of a step depend on the seed and the step alone, so that any run can resume."""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import chain
from itertools import count as count_from
from typing import NamedTuple

import torch
from torch import Tensor

from . import augment as transforms
from .augment import Augment
from .batch_slice import BatchSlice, full_batch
from .dataset import Split
from .image_seeds import COLOR, ROTATION, VERTICAL_FLIP, image_uniform
from .lazy import ImageRequest, LazyImages, index_batches
from .photometric import NUM_DRAWS, distort_colors, distorts_colors
from .preprocess import Preprocess
from .random_view import RandomView, uses_views

# Pixels of an evaluation batch: enough to use all cores of a CPU, with the first layer's output near 100 MB. GPUs need
# more images to be busy.
EVAL_BATCH_PIXELS = 2_000_000
GPU_EVAL_BATCH_PIXELS = {"mps": 4 * EVAL_BATCH_PIXELS, "cuda": 8 * EVAL_BATCH_PIXELS}
MAX_EVAL_BATCH = 500  # images


class Batch(NamedTuple):
    """Images float (n, channels, size, size); labels int64 (n,), or probabilities (n, classes) with mixup or CutMix."""

    images: Tensor
    labels: Tensor

    @property
    def num_images(self) -> int:
        """Return the number of images."""
        return len(self.labels)


class SampleRange(NamedTuple):
    """The images of one step: `start` to before `stop` in the order of `epoch`."""

    epoch: int
    start: int
    stop: int

    @property
    def num_images(self) -> int:
        """Return the number of images."""
        return self.stop - self.start


class UpcomingBatch(NamedTuple):
    """A later batch, whose images are decoded ahead: the slice `part` of the images `samples`, at `size` pixels."""

    samples: SampleRange
    part: BatchSlice
    size: int


class BatchSpec(NamedTuple):
    """A batch: the slice `part` of the images `samples` of `step`, at `size` pixels; `upcoming` is decoded ahead."""

    step: int
    size: int
    seed: int
    samples: SampleRange
    part: BatchSlice
    upcoming: Iterable[UpcomingBatch] = ()


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the batches in one pass over `count` images; the last may be smaller.

    Batch normalization cannot train on a single image, so a remainder of one is left out of the epoch.
    """
    return math.ceil(count / batch_size) - (1 if count % batch_size == 1 and count > 1 else 0)


def sample_range(count: int, batch_size: int, step: int) -> SampleRange:
    """Return the images of `step` if every batch has `batch_size` of `count` images, except the epoch's last."""
    epoch, position = divmod(step, steps_per_epoch(count, batch_size))
    return SampleRange(epoch, position * batch_size, min((position + 1) * batch_size, count))


def full_batch_spec(count: int, batch_size: int, *, step: int, size: int, seed: int) -> BatchSpec:
    """Return the spec of the full batch of `step`, followed by those of the next steps."""
    ranges = (sample_range(count, batch_size, index) for index in count_from(step))
    batches = (UpcomingBatch(samples, full_batch(samples.num_images), size) for samples in ranges)
    first = next(batches)
    return BatchSpec(step, size, seed, first.samples, first.part, batches)


@lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of 0..count-1 in which an epoch visits the images."""
    return torch.randperm(count, generator=_generator(2 * seed + 1, epoch))


@lru_cache(maxsize=2)
def weighted_order(weights: Tensor, seed: int, epoch: int) -> Tensor:
    """Return the images of an epoch, drawn with replacement in proportion to `weights` float64 (n,): int64 (n,)."""
    ends = weights.cumsum(0)
    draws = torch.rand(len(weights), dtype=torch.float64, generator=_generator(2 * seed + 1, epoch)) * ends[-1]
    return torch.searchsorted(ends, draws, right=True).clamp_max(len(weights) - 1)


def sample_indices(
    count: int, seed: int, samples: SampleRange, part: BatchSlice, weights: Tensor | None = None
) -> Tensor:
    """Return the indices, in a data set of `count` images, of a slice of a step: int64 (part.num_images,).

    Every epoch has all images, or with `weights` (count,) as many that are drawn in proportion to them.
    """
    epoch = samples.epoch
    order = epoch_order(count, seed, epoch) if weights is None else weighted_order(weights, seed, epoch)
    return part.slice(order[samples.start : samples.stop])


def _generator(stream: int, offset: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream * 1_000_000_007 + offset)


def training_batch(split: Split, preprocess: Preprocess, augment: Augment, spec: BatchSpec) -> Batch:
    """Return the augmented batch of `spec`, a function of the split, the seed and the step.

    Mixup and CutMix also need the images' partners, which may be in the slice of another process or micro-batch.
    """
    generator = _generator(2 * spec.seed, spec.step)
    if not augment.mixes:
        return _augmented_batch(split, preprocess, augment, spec, generator)
    own, *other = _slices_to_mix(spec.part)
    later = (batch._replace(part=part) for batch in spec.upcoming for part in _slices_to_mix(batch.part))
    upcoming = chain([UpcomingBatch(spec.samples, part, spec.size) for part in other], later)
    batch = source = _augmented_batch(split, preprocess, augment, spec._replace(upcoming=upcoming), generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    partners = transforms.mixing_partners(own)
    start = partners.start - own.start
    if other:
        again = _generator(2 * spec.seed, spec.step)
        partner_spec = spec._replace(part=partners, upcoming=upcoming)
        source, start = _augmented_batch(split, preprocess, augment, partner_spec, again), 0
    rows = slice(start, start + partners.num_images)
    with transforms.seeded_global_rng(seed):
        images, labels = source.images[rows], source.labels[rows]
        return Batch(*transforms.mixup_cutmix(batch.images, batch.labels, (images, labels), augment))


def _slices_to_mix(part: BatchSlice) -> list[BatchSlice]:
    """Return the slices that the mixed images of `part` are computed from: it, and its partners unless it has them."""
    partners = transforms.mixing_partners(part)
    if not partners.num_images or (part.start <= partners.start and partners.stop <= part.stop):
        return [part]
    return [part, partners]


def _augmented_batch(
    split: Split, preprocess: Preprocess, augment: Augment, spec: BatchSpec, generator: torch.Generator
) -> Batch:
    """Return the batch before mixing; every random number is drawn for the full batch."""
    seed, part = spec.seed, spec.part
    batches = chain([UpcomingBatch(spec.samples, part, spec.size)], spec.upcoming)
    requests = (_image_request(split, preprocess, augment, seed, batch) for batch in batches)
    images, indices = _read_images(split, requests)
    if augment.flip == "random":
        images = transforms.random_flip(images, generator, part)
    elif augment.flip == "alternating":
        images = transforms.alternating_flip(images, indices, spec.samples.epoch, seed)
    draw = partial(image_uniform, indices, spec.samples.epoch, seed)
    if augment.vertical_flip:
        images = transforms.vertical_flip(images, draw(VERTICAL_FLIP))
    if augment.rotate90:
        images = transforms.rotate90(images, draw(ROTATION))
    images = transforms.translate(images, augment.translate, generator, part)
    images = transforms.cutout(images, augment.cutout, generator, part)
    labels = split.labels_of(indices)
    # Views have the final size.
    pixels = images.float() if uses_views(augment) else preprocess.resize(preprocess.center_crop(images), spec.size)
    if distorts_colors(augment):
        pixels = distort_colors(pixels, augment, draw(COLOR, NUM_DRAWS))
    pixels = preprocess.normalize(pixels)
    if augment.random_erasing:
        pixels = transforms.random_erasing(pixels, augment.random_erasing, transforms.draw_seeds(generator, part))
    return Batch(pixels, labels)


def _image_request(
    split: Split, preprocess: Preprocess, augment: Augment, seed: int, batch: UpcomingBatch
) -> ImageRequest:
    """Return what to read for a batch of a split."""
    indices = sample_indices(len(split), seed, batch.samples, batch.part, split.weights)
    has_view = uses_views(augment)
    view = RandomView(augment, preprocess, batch.size, seed, batch.samples.epoch) if has_view else None
    return ImageRequest(indices, view)


def _read_images(split: Split, requests: Iterator[ImageRequest]) -> tuple[Tensor, Tensor]:
    """Return the images uint8 of the first request, on the split's device, and their indices int64 (n,)."""
    request, images = next(requests), split.images
    if isinstance(images, LazyImages):
        return images.fetch(request, requests), request.indices
    selected = images[transforms.copy_to(images.device, request.indices)]
    if request.view:
        selected = request.view.render(selected.cpu(), request.indices).to(images.device)
    return selected, request.indices


def eval_batch_pixels(device: torch.device) -> int:
    """Return the pixels of an evaluation batch on `device`."""
    return GPU_EVAL_BATCH_PIXELS.get(device.type, EVAL_BATCH_PIXELS)


def eval_batch_size(size: int, device: torch.device) -> int:
    """Return the number of images of `size` pixels in an evaluation batch on `device`."""
    return max(1, min(MAX_EVAL_BATCH, eval_batch_pixels(device) // size**2))


def evaluation_batches(split: Split, preprocess: Preprocess, size: int | None = None) -> Iterator[Batch]:
    """Yield every image once, in order and without augmentation, in batches of `eval_batch_size`."""
    for batch in pixel_batches(split, preprocess, size):
        yield Batch(preprocess.normalize(batch.images), batch.labels)


def pixel_batches(
    split: Split, preprocess: Preprocess, size: int | None = None, device: torch.device | None = None
) -> Iterator[Batch]:
    """Yield the batches of `evaluation_batches` before normalization: float pixels in 0..255, cropped and resized.

    `device` is where the network computes, by default where the images are.
    """
    side = preprocess.size if size is None else size
    batches = index_batches(len(split.labels), eval_batch_size(side, device or split.images.device))
    for indices, pixels in zip(batches, split.pixels(batches), strict=True):
        images = preprocess.resize(preprocess.center_crop(pixels), side)
        yield Batch(images, split.labels_of(indices))
