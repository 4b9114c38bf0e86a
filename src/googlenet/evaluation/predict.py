"""Picture files -> class names with probabilities."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.pictures import PictureError, picture_files, read_picture
from ..data.preprocess import Preprocess
from ..models.ensemble import average_logits
from .scales import Views

BATCH = 64
STANDARD_INPUT = "-"


class Guess(NamedTuple):
    """A class and its probability in 0..1."""

    label: str
    probability: float


class Answer(NamedTuple):
    """What the network says of one picture: `top` classes, and what was `did` to it first; or the `problem`."""

    path: str
    top: list[Guess]
    did: str
    problem: str | None = None


def expand(names: Iterable[str]) -> Iterator[str]:
    """Folders to the pictures in them, at any depth; everything else, a folder without pictures too, as it is."""
    for name in names:
        found = list(picture_files(Path(name))) if name != STANDARD_INPUT and Path(name).is_dir() else []
        yield from [str(path) for path in found] or [name]


def predict_pictures(
    model: nn.Module,
    preprocess: Preprocess,
    classes: Sequence[str],
    paths: Iterable[str],
    *,
    top: int = 5,
    sizes: Sequence[int] = (),
    flip: bool = False,
    shift: int = 0,
) -> Iterator[Answer]:
    """Answer for each path in turn (``-`` reads standard input), computing in batches.

    The probabilities are averaged over `sizes` (pixels; none: the one of `preprocess`) and, with `flip` and `shift`
    (pixels), over each picture's `Views`. A picture that cannot be used is answered with its `problem`; the others
    go on.
    """
    sizes = sizes or (preprocess.size,)
    asked = Views(model, flip=flip, shift=shift) if flip or shift else model
    model.eval()
    device = next(model.parameters()).device
    remaining = iter(paths)
    while group := list(islice(remaining, BATCH)):
        read = [_read(path, preprocess, sizes, flip, shift) for path in group]
        usable = [pixels for pixels, _, problem in read if problem is None]
        rows: Iterator[Tensor] = iter(())
        if usable:
            with torch.inference_mode():
                views = [asked(torch.cat(at_size).to(device)).cpu() for at_size in zip(*usable, strict=True)]
            rows = iter(average_logits(views).exp())
        for path, (_, did, problem) in zip(group, read, strict=True):
            if problem:
                yield Answer(path, [], "", problem)
                continue
            best = next(rows).topk(min(top, len(classes)))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield Answer(path, [Guess(classes[i], p) for i, p in pairs], did)


def _read(
    path: str, preprocess: Preprocess, sizes: Sequence[int], flip: bool, shift: int
) -> tuple[list[Tensor], str, str | None]:
    """The picture at every size, what was done to it, and the problem where it cannot be used."""
    try:
        if path == STANDARD_INPUT:
            picture = read_picture(sys.stdin.buffer.read(), "standard input")
        else:
            picture = read_picture(Path(path))
        read = [preprocess.read(picture, size) for size in sizes]
    except PictureError as error:
        return [], "", str(error)
    did = read[0][1]
    if len(sizes) > 1:
        did += f", averaged with {', '.join(map(str, sizes[1:]))} px"
    if shift:
        did += f", moved by {shift} px"
    if flip:
        did += ", and mirrored"
    return [pixels for pixels, _ in read], did, None
