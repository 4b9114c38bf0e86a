"""Random changes that timm brings: RandAugment and its kin, random erasing, mixup and cutmix; and random crops.

timm draws from the random states of Python and NumPy. `drawing` sets them from a generator and puts them back, so
that what happens is a function of the generator, and nobody else's numbers change.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .preprocess import Preprocess
from .rows import Rows, whole

# "Going Deeper with Convolutions", section 6: the sides' ratio of a random crop.
ASPECTS = (3 / 4, 4 / 3)


@contextmanager
def drawing(generator: torch.Generator) -> Iterator[None]:
    """Python's and NumPy's random states set from `generator`, and as they were before afterwards."""
    before = random.getstate(), np.random.get_state()
    number = int(torch.randint(2**31, (), generator=generator))
    random.seed(number)
    np.random.seed(number)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def random_crop(
    images: Tensor,
    least: float,
    size: int,
    preprocess: Preprocess,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """uint8 (n, c, h, w) -> float (n, c, size, size) in 0..255: a part of each picture, resized.

    Its area is a share in [least, 1] of the picture's and its sides' ratio in `ASPECTS`, as far as it fits in. `rows`
    says which part of a step's batch the pictures are; left out, they are all of it.
    """
    count, _, height, width = images.shape
    rows = rows or whole(count)
    share = least + (1 - least) * torch.rand(rows.total, generator=generator)
    aspect = torch.empty(rows.total).uniform_(math.log(ASPECTS[0]), math.log(ASPECTS[1]), generator=generator).exp()
    heights = (share * height * width / aspect).sqrt().round().long().clamp(1, height)
    widths = (share * height * width * aspect).sqrt().round().long().clamp(1, width)
    place = rows.of(torch.rand(2, rows.total, generator=generator), dim=1).tolist()
    out = torch.empty(count, images.shape[1], size, size, device=images.device)
    sides = (rows.of(heights).tolist(), rows.of(widths).tolist())
    for number, (h, w, y, x) in enumerate(zip(*sides, *place, strict=True)):
        top, left = int(y * (height - h + 1)), int(x * (width - w + 1))
        out[number] = preprocess.resize(images[number : number + 1, :, top : top + h, left : left + w], size)[0]
    return out


@lru_cache(maxsize=64)
def policy(text: str, size: int, mean: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
    """timm's transform that `text` describes, such as ``rand-m7-mstd0.5``, for pictures of `size` pixels.

    What moves out of a picture leaves `mean` (fractions, RGB). ValueError for a text that timm does not know.
    """
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    kinds: dict[str, Any] = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    make = kinds.get(text.partition("-")[0], auto_augment_transform)
    colour = tuple(min(255, round(255 * value)) for value in mean)
    options = {"translate_const": int(size * 0.45), "img_mean": colour}
    try:
        made: Callable[[Image.Image], Image.Image] = make(text, options)
    except (AssertionError, ValueError, KeyError, IndexError) as error:
        reason = f" ({error})" if str(error) else ""
        raise ValueError(f"augment.timm: timm knows no policy {text!r}{reason}; try rand-m7-mstd0.5") from None
    return made


def apply_policy(text: str, images: Tensor, preprocess: Preprocess) -> Tensor:
    """Change each of float (n, c, h, w) in 0..255 by the policy; to be called while `drawing`."""
    colours = preprocess.mean if preprocess.channels == 3 else preprocess.mean * 3
    change = policy(text, images.shape[-1], colours)
    out = torch.empty_like(images, device="cpu")
    for number, pixels in enumerate(images.round().to(torch.uint8).cpu()):
        # The policies are made for RGB.
        picture = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        changed = change(picture)
        if preprocess.channels == 1:
            changed = changed.convert("L")
        out[number] = (
            torch.from_numpy(np.array(changed, dtype=np.float32)).reshape(*images.shape[-2:], -1).movedim(2, 0)
        )
    return out.to(images.device)


def erase_regions(images: Tensor, probability: float) -> Tensor:
    """Blank a rectangle of some of the normalised (n, c, h, w), in place; to be called while `drawing`."""
    from timm.data.random_erasing import RandomErasing

    erased: Tensor = RandomErasing(probability, device=str(images.device))(images)  # type: ignore[no-untyped-call]
    return erased


def mix(images: Tensor, labels: Tensor, mixup: float, cutmix: float, classes: int) -> tuple[Tensor, Tensor]:
    """Mix pictures with others of the batch, in place, and their labels: -> (images, shares (n, classes)).

    `mixup` and `cutmix` are the parameters of the Beta distribution that the shares are drawn from; where both are
    above 0 each batch takes one of them by chance. timm mixes pairs: the last of an odd number stays as it is. To be
    called while `drawing`.
    """
    from timm.data.mixup import Mixup

    shares = F.one_hot(labels, classes).to(images.dtype)
    even = len(labels) // 2 * 2
    if even:
        mixer = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=classes)  # type: ignore[no-untyped-call]
        images[:even], shares[:even] = mixer(images[:even], labels[:even])
    return images, shares
