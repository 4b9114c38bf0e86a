"""Selective search: region proposals without learning.

Superpixels (Felzenszwalb and Huttenlocher) are merged with their most similar neighbors until one is left; each region
on the way is a proposal (Uijlings et al., "Selective Search for Object Recognition", 2013, fast mode; OpenCV's code).
"""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from ...config.schema import RegionsConfig
from ...data.disk_cache import cache_path, cache_write
from ...files import mark_used, prune_cache
from ..batches import map_bounded

# A smaller image has one proposal: the whole image.
MIN_IMAGE_SIDE = 8
SIGMA = 0.8
# The proposals of about 200,000 images.
MAX_CACHE_BYTES = 8 * 2**30


class SelectiveSearchConfig(NamedTuple):
    """The parameters of a search.

    `scale` is the scale k and the smallest area in pixels of Felzenszwalb's superpixels. Each image is segmented with
    this and with twice this value, as in the fast mode (50 and 100 in the paper's code). "Going Deeper with
    Convolutions", section 8, doubles it, which halves the number of proposals. An image with a longer side above
    `max_side` is searched at this size (R-CNN: 500 pixels wide). Proposals with a side below `min_side` are left out,
    and of more than `max_proposals` an even sample is taken.
    """

    scale: int = 50
    max_side: int = 500
    min_side: int = 4
    max_proposals: int | None = None

    @classmethod
    def from_recipe(cls, regions: RegionsConfig) -> "SelectiveSearchConfig":
        """Return the parameters of a recipe."""
        return cls(scale=regions.ss_scale, max_proposals=regions.max_proposals)


def selective_search(image: Tensor, config: SelectiveSearchConfig) -> Tensor:
    """Return the proposals of an image uint8 (1 or 3 channels, h, w): float32 (n, 4) in pixels, n >= 1.

    A color image is searched in the color spaces HSV and Lab, a gray one in one. The result is deterministic and sorted
    by position, not by quality. Raises ValueError if OpenCV's extra modules are not installed.
    """
    height, width = image.shape[-2:]
    full_image = torch.tensor([[0.0, 0.0, width, height]])
    if min(height, width) < MIN_IMAGE_SIDE:
        return full_image
    cv2 = _import_opencv()
    bgr = image.expand(3, -1, -1).flip(0).permute(1, 2, 0).contiguous().numpy()
    if (scale := config.max_side / max(height, width)) < 1:
        reduced = (max(1, round(width * scale)), max(1, round(height * scale)))
        bgr = cv2.resize(bgr, reduced, interpolation=cv2.INTER_AREA)
    spaces = (cv2.COLOR_BGR2Lab,) if len(image) == 1 else (cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2Lab)
    xywh = torch.from_numpy(_search(cv2, [cv2.cvtColor(bgr, space) for space in spaces], config.scale)).double()
    regions = box_convert(xywh, "xywh", "xyxy")
    regions = regions * torch.tensor([width / bgr.shape[1], height / bgr.shape[0]]).repeat(2)
    regions = regions[((regions[:, 2:] - regions[:, :2]) >= config.min_side).all(dim=1)]
    if not len(regions):
        return full_image
    # OpenCV ranks the regions randomly, but the set of regions is always the same.
    boxes: Tensor = torch.unique(regions.float(), dim=0)
    if config.max_proposals is not None and len(boxes) > config.max_proposals:
        chosen = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))[: config.max_proposals]
        return boxes[chosen.sort().values]
    return boxes


def cached_proposals(
    images: Iterable[Tensor], config: SelectiveSearchConfig, num_workers: int | None = None
) -> list[Tensor]:
    """Return the proposals of each image from the cache, or computed by threads (default: one per core)."""
    # OpenCV releases the interpreter's lock, so threads are enough.
    workers = num_workers or os.cpu_count() or 1
    proposals = list(map_bounded(lambda image: _cached_search(image, config), images, workers))
    folder = cache_path("proposals", b"", "").parent
    prune_cache(folder, MAX_CACHE_BYTES, folder)
    return proposals


def recall(proposals: Sequence[Tensor], gt_boxes: Sequence[Tensor], iou_threshold: float = 0.5) -> float:
    """Return the fraction of the images' ground-truth boxes that a proposal overlaps with at least this IoU, or NaN."""
    covered = total = 0
    for boxes, targets in zip(proposals, gt_boxes, strict=True):
        total += len(targets)
        if len(boxes) and len(targets):
            covered += int((box_iou(targets, boxes).amax(dim=1) >= iou_threshold).sum())
    return covered / total if total else float("nan")


def _search(cv2: Any, views: Sequence[NDArray[np.uint8]], scale: int) -> NDArray[np.int32]:
    """Return x, y, width, height of the regions of all color spaces, two superpixel scales and two similarities."""
    segmentation = cv2.ximgproc.segmentation
    prefix = "createSelectiveSearchSegmentationStrategy"
    searcher = segmentation.createSelectiveSearchSegmentation()
    searcher.setBaseImage(views[0])
    for clear in (searcher.clearImages, searcher.clearGraphSegmentations, searcher.clearStrategies):
        clear()
    for view in views:
        searcher.addImage(view)
    for size in (scale, 2 * scale):
        searcher.addGraphSegmentation(segmentation.createGraphSegmentation(SIGMA, float(size), size))
    for measures in (("Color", "Fill", "Texture", "Size"), ("Fill", "Texture", "Size")):
        strategies = [getattr(segmentation, prefix + measure)() for measure in measures]
        searcher.addStrategy(getattr(segmentation, f"{prefix}Multiple")(*strategies))
    regions: NDArray[np.int32] = searcher.process()
    return regions


def _cached_search(image: Tensor, config: SelectiveSearchConfig) -> Tensor:
    digest = hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
    key = f"{digest}|{tuple(image.shape)}|{tuple(config)}|{_import_opencv().__version__}"
    path = cache_path("proposals", key.encode(), ".npy")
    try:
        boxes = torch.from_numpy(np.load(path, allow_pickle=False))
        mark_used(path)
        return boxes
    except (OSError, ValueError, EOFError):
        boxes, content = selective_search(image, config), io.BytesIO()
        np.save(content, boxes.numpy())
        cache_write(path, content.getvalue())
        return boxes


def _import_opencv() -> Any:
    """Import OpenCV; ValueError without its extra modules."""
    try:
        import cv2

        cv2.ximgproc.segmentation  # noqa: B018  missing from the package without the extra modules
    except (ImportError, AttributeError):
        message = "selective search needs OpenCV with its extra modules: pip install 'googlenet[detect]'"
        raise ValueError(message) from None
    return cv2
