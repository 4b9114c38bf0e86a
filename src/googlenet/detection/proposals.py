"""Selective search: the regions of a picture that may be objects, found without learning.

The picture is cut into superpixels (Felzenszwalb and Huttenlocher), which are merged, the most alike first, until one
is left; every region met on the way is a proposal (Uijlings et al., "Selective Search for Object Recognition", 2013,
its fast mode). OpenCV does the work; here are the parameters, the order, and what is remembered.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou

from ..data.records import record_path, write_record

# Pictures with fewer pixels than this in a side have one region: themselves.
LEAST_SIDE = 8
SIGMA = 0.8


class Search(NamedTuple):
    """The parameters of a search.

    `superpixel` is the size of a superpixel, the scale k and the least area in pixels of Felzenszwalb's method; each
    picture is cut at it and at twice it, as in the fast mode (50 and 100 in the paper's code). "Going Deeper with
    Convolutions", section 8, doubles it, which halves the proposals. A picture whose longer side is above `longest`
    pixels is searched at that size (R-CNN: 500 wide). Proposals with a side under `least` pixels are left out. Of
    more than `most`, an even sample is taken; None for all.
    """

    superpixel: int = 50
    longest: int = 500
    least: int = 4
    most: int | None = None

    def doubled(self) -> "Search":
        """The same search with superpixels of twice the size."""
        return self._replace(superpixel=2 * self.superpixel)


def selective_search(picture: Tensor, search: Search) -> Tensor:
    """The proposals of a picture uint8 (1 or 3 channels, h, w): float32 (n, 4), x1 y1 x2 y2 in pixels, n >= 1.

    A colour picture is searched in two colour spaces, HSV and Lab, a grey one in one. The same picture gives the same
    boxes, in the same order: by position, which says nothing about their worth.
    Raises ValueError where OpenCV's extra modules are not installed.
    """
    height, width = picture.shape[-2:]
    if min(height, width) < LEAST_SIDE:
        return torch.tensor([[0.0, 0.0, width, height]])
    cv2 = _opencv()
    bgr = picture.expand(3, -1, -1).flip(0).permute(1, 2, 0).contiguous().numpy()
    scale = min(1.0, search.longest / max(height, width))
    if scale < 1:
        smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
        bgr = cv2.resize(bgr, smaller, interpolation=cv2.INTER_AREA)
    spaces = (cv2.COLOR_BGR2Lab,) if len(picture) == 1 else (cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2Lab)
    found = _search(cv2, [cv2.cvtColor(bgr, space) for space in spaces], search.superpixel)
    regions = torch.from_numpy(found).double()
    regions[:, 2:] += regions[:, :2]
    regions *= torch.tensor([width / bgr.shape[1], height / bgr.shape[0]]).repeat(2)
    regions = regions[((regions[:, 2:] - regions[:, :2]) >= search.least).all(dim=1)]
    if not len(regions):
        return torch.tensor([[0.0, 0.0, width, height]])
    # OpenCV ranks the regions by chance; what it finds is always the same.
    boxes: Tensor = torch.unique(regions.float(), dim=0)
    if search.most is not None and len(boxes) > search.most:
        chosen = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))[: search.most]
        return boxes[chosen.sort().values]
    return boxes


def propose(pictures: Iterable[Tensor], search: Search, workers: int | None = None) -> list[Tensor]:
    """`selective_search` of many pictures, `workers` at a time (None: as many as there are cores).

    What was found for a picture is kept in the cache, by its pixels and the parameters; where it lies there already
    nothing is computed.
    """
    # OpenCV works without the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return list(pool.map(lambda picture: _remembered(picture, search), pictures))


def coverage(proposals: Sequence[Tensor], truth: Sequence[Tensor], overlap: float = 0.5) -> float:
    """The share of the true boxes that some proposal of their picture meets with at least this IoU, in 0..1.

    Both hold one tensor (n, 4) per picture. NaN where there is no true box.
    """
    met = total = 0
    for boxes, true in zip(proposals, truth, strict=True):
        total += len(true)
        if len(boxes) and len(true):
            met += int((box_iou(true, boxes).amax(dim=1) >= overlap).sum())
    return met / total if total else float("nan")


def _search(cv2: Any, views: Sequence[NDArray[np.uint8]], superpixel: int) -> NDArray[np.int32]:
    """x y width height of every region: each view (colour space), two superpixel sizes, two measures of likeness."""
    parts = cv2.ximgproc.segmentation
    kind = "createSelectiveSearchSegmentationStrategy"
    searcher = parts.createSelectiveSearchSegmentation()
    searcher.setBaseImage(views[0])
    searcher.clearImages()
    searcher.clearGraphSegmentations()
    searcher.clearStrategies()
    for view in views:
        searcher.addImage(view)
    for size in (superpixel, 2 * superpixel):
        searcher.addGraphSegmentation(parts.createGraphSegmentation(SIGMA, float(size), size))
    for measures in (("Color", "Fill", "Texture", "Size"), ("Fill", "Texture", "Size")):
        likeness = [getattr(parts, kind + measure)() for measure in measures]
        searcher.addStrategy(getattr(parts, f"{kind}Multiple")(*likeness))
    found: NDArray[np.int32] = searcher.process()
    return found


def _remembered(picture: Tensor, search: Search) -> Tensor:
    digest = hashlib.sha256(picture.contiguous().numpy().tobytes()).hexdigest()
    about = f"{digest}|{tuple(picture.shape)}|{tuple(search)}|{_opencv().__version__}"
    record = record_path("proposals", about.encode(), ".npy")
    try:
        return torch.from_numpy(np.load(record, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        boxes = selective_search(picture, search)
        content = io.BytesIO()
        np.save(content, boxes.numpy())
        write_record(record, content.getvalue())
        return boxes


def _opencv() -> Any:
    """The library, or ValueError that says how to install it."""
    try:
        import cv2

        cv2.ximgproc.segmentation  # noqa: B018  the plain package has none of it
    except (ImportError, AttributeError):
        raise ValueError(
            "selective search needs OpenCV with its extra modules; run: pip install 'googlenet[detect]'"
        ) from None
    return cv2
