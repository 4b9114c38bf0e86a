"""Boxes: float (n, 4) of left, top, right, bottom in pixels, the right and bottom edges outside the last pixel.

So a box around pixels 3 to 5 is (3, ..., 6, ...), its width 3. Every function gives new boxes.
"""

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou, clip_boxes_to_image, nms

__all__ = ["area", "batched_nms", "clip", "from_xywh", "iou", "mirror", "nms", "overlaps", "rescale", "to_xywh",
           "voted"]  # fmt: skip

# Of the common form under this package's names.
area, iou = box_area, box_iou


def clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """The part of each box that lies in a picture of `height` x `width`; of zero area where none does."""
    clipped: Tensor = clip_boxes_to_image(boxes, (height, width))
    return clipped


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """The share of each box's area that lies in each other one: (n, 4), (m, 4) -> (n, m) in 0..1.

    What COCO measures against a crowd: a detection is a part of it, however large the crowd. 0 for an empty box.
    """
    corner = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = (opposite - corner).clamp_min(0).prod(dim=2)
    areas: Tensor = box_area(boxes).unsqueeze(1)
    return torch.where(areas > 0, common / areas.clamp_min(1e-12), 0.0)


def rescale(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Boxes in a picture of `size` (height, width), as they lie in the picture resized to `new_size`."""
    (height, width), (new_height, new_width) = size, new_size
    across, down = new_width / width, new_height / height
    return boxes * boxes.new_tensor([across, down, across, down])


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes in a picture of `width`, as they lie in its mirror image (left is right)."""
    left, top, right, bottom = boxes.unbind(dim=1)
    return torch.stack((width - right, top, width - left, bottom), dim=1)


def from_xywh(boxes: Tensor) -> Tensor:
    """COCO's (left, top, width, height) -> (left, top, right, bottom)."""
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)


def to_xywh(boxes: Tensor) -> Tensor:
    """(left, top, right, bottom) -> COCO's (left, top, width, height)."""
    return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1)


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, overlap: float) -> Tensor:
    """Non-maximum suppression within each class: the numbers of the boxes that remain, best first: int64 (kept,).

    Classes are moved apart, so that boxes of different ones never overlap; torchvision's takes another way where
    boxes are many, and how many there are, or whether any, is not known when a network is exported.
    """
    furthest = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max()
    apart = labels.to(boxes) * (furthest + 1)
    kept: Tensor = nms(boxes + apart.unsqueeze(1), scores, overlap)
    return kept


def voted(kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, overlap: float) -> Tensor:
    """Where the boxes with the numbers `kept` (k,) come to lie when all boxes of their class vote: (k, 4).

    Each becomes the mean of those that overlap it by `overlap` and more, itself among them, weighted by their scores
    (Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN model", 2015,
    section 4). Scores are above 0.
    """
    near = iou(boxes[kept], boxes) >= overlap
    # A box of no area overlaps nothing: it stays where it is.
    near[torch.arange(len(kept)), kept] = True
    weights = near * (labels[kept].unsqueeze(1) == labels) * scores
    mean: Tensor = weights @ boxes / weights.sum(dim=1, keepdim=True)
    return mean
