"""Box operations that `torchvision.ops` does not have.

Boxes are float (n, 4): x1, y1, x2, y2 in pixels; x2 and y2 are exclusive. Every function returns new boxes.
"""

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou, nms


def intersection_over_area(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the fraction of each box's area inside each of `others` (COCO's IoU of crowds): (n, m) in 0..1."""
    top_left = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    intersection = (bottom_right - top_left).clamp_min(0).prod(dim=2)
    areas: Tensor = box_area(boxes).unsqueeze(1)
    return torch.where(areas > 0, intersection / areas.clamp_min(1e-12), 0.0)


def rescale(boxes: Tensor, size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Convert boxes of an image of `size` (height, width) to those of the image resized to `new_size`."""
    (height, width), (new_height, new_width) = size, new_size
    x_scale, y_scale = new_width / width, new_height / height
    return boxes * boxes.new_tensor([x_scale, y_scale, x_scale, y_scale])


def hflip_boxes(boxes: Tensor, width: int | Tensor) -> Tensor:
    """Convert boxes of an image (or of images) of `width` pixels to those of the horizontally flipped image."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=1)


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Apply non-maximum suppression to each class separately; return the kept indices, int64, best score first.

    Boxes of different classes are shifted apart. `torchvision.ops.batched_nms` chooses between this method and a loop
    over the classes by the number of boxes, which is unknown in an exported model, and the two round differently.
    """
    offsets = labels.to(boxes) * (torch.cat((boxes.flatten(), boxes.new_zeros(1))).max() + 1)
    kept: Tensor = nms(boxes + offsets.unsqueeze(1), scores, iou_threshold)
    return kept


def box_voting(kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Average each kept box (indices `kept`, (k,)) with those of its class at this IoU, weighted by the scores > 0.

    Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN model", 2015,
    section 4.
    """
    votes = box_iou(boxes[kept], boxes) >= iou_threshold
    # The IoU of an empty box with itself is not 1: it keeps its own vote here.
    votes[torch.arange(len(kept)), kept] = True
    weights = votes * (labels[kept].unsqueeze(1) == labels) * scores
    mean: Tensor = weights @ boxes / weights.sum(dim=1, keepdim=True)
    return mean
