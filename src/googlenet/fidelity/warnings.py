"""Warnings about sets of images that make a comparison misleading: one line each."""

from collections import Counter
from collections.abc import Iterator, Sequence

from .images import ImageSet

# With fewer images than features, 2048, the covariance is singular and the value is far too large.
MIN_IMAGES = 2048
LOSSY = "JPEG"


def warn_about(real: ImageSet | None, fake: ImageSet | None, counts: Sequence[int | None], side: int) -> list[str]:
    """Return the warnings about two sets; None for a set of which only statistics or features are known.

    `counts` are the numbers of images of real and generated, None if unknown; `side` is that of the network's input.
    """
    lines = [line for name, count in zip(("real", "generated"), counts, strict=True) for line in _few(name, count)]
    for name, images in (("real", real), ("generated", fake)):
        lines += [] if images is None else [*_sizes(name, images, side), *_ignored(name, images)]
    return lines + ([] if real is None or fake is None else [*_formats(real, fake), *_size_difference(real, fake)])


def _few(name: str, count: int | None) -> Iterator[str]:
    if count is not None and count < MIN_IMAGES:
        yield f"{count:,} {name} images: below {MIN_IMAGES:,} FID is far too high; compare equal numbers only"


def _sizes(name: str, images: ImageSet, side: int) -> Iterator[str]:
    sizes = Counter((info.width, info.height) for info in images.infos)
    if len(sizes) > 1:
        examples = ", ".join(f"{width}x{height}" for (width, height), _ in sizes.most_common(3))
        yield f"{name} images have {len(sizes):,} different sizes ({examples}, ...): resizing affects each differently"
    small = sum(count for (width, height), count in sizes.items() if min(width, height) < side)
    if small:
        yield f"{small:,} of {len(images):,} {name} images are enlarged to {side} px"
    stretched = sum(count for (width, height), count in sizes.items() if width != height)
    if stretched:
        yield f"{stretched:,} of {len(images):,} {name} images are not square: they are squashed, as by the tools"


def _ignored(name: str, images: ImageSet) -> Iterator[str]:
    for kind, count in Counter(info.ignored for info in images.infos if info.ignored).items():
        yield f"{count:,} {name} images have {kind}, which is ignored, as by the tools"


def _formats(real: ImageSet, fake: ImageSet) -> Iterator[str]:
    first, second = ({info.format for info in images.infos} for images in (real, fake))
    if (LOSSY in first) != (LOSSY in second):
        names = " and ".join(" or ".join(sorted(formats)) for formats in (first, second))
        yield f"real images are {names.replace(' and ', ', generated ones ')}: JPEG artifacts change the value"


def _size_difference(real: ImageSet, fake: ImageSet) -> Iterator[str]:
    first, second = (Counter((info.width, info.height) for info in images.infos) for images in (real, fake))
    (a, _), (b, _) = first.most_common(1)[0], second.most_common(1)[0]
    if not set(first) & set(second):
        yield f"real images are {a[0]}x{a[1]}, generated ones {b[0]}x{b[1]}: one of the sets may have been resized"
