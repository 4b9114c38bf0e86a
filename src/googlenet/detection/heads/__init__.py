"""The detection heads that a recipe can name.

A new head is one module with a function ``build_head(config, num_classes, strides)`` and one line in `HEADS`.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import nn

from ...config.schema import DetectionConfig
from ...errors import nearest
from ...training.tasks.base import LossOutput
from ..data.dataset import DetectionBatch, Detections
from ..fpn import FeatureLevel

HEADS: dict[str, str] = {
    "fcos": "googlenet.detection.heads.fcos",
    "faster_rcnn": "googlenet.detection.heads.faster_rcnn",
}


class DetectionHead(nn.Module, ABC):
    """The part of a detector from the feature levels to losses and boxes."""

    @abstractmethod
    def losses(self, levels: Sequence[FeatureLevel], batch: DetectionBatch) -> LossOutput:
        """Compute the loss, and per image the fraction of correct classes, summed over the images."""

    @abstractmethod
    def detect(self, levels: Sequence[FeatureLevel], batch: DetectionBatch) -> list[Detections]:
        """Return the detections on each image, in pixels of the batch, best first."""


def get_head_module(name: str) -> Any:
    """Import the module of a head; ValueError for an unknown name."""
    if name not in HEADS:
        names = [*HEADS, "rcnn"]
        raise ValueError(f"detection.head: unknown head {name!r}{nearest(name, names)}; use {', '.join(names)}")
    return importlib.import_module(HEADS[name])


def build_head(config: DetectionConfig, num_classes: int, strides: Sequence[int]) -> DetectionHead:
    """Build the head of `config` for feature levels with these strides, fine to coarse."""
    head: DetectionHead = get_head_module(config.head).build_head(config, num_classes, strides)
    return head
