"""Test-time augmentation: average the predicted probabilities over shifted and flipped copies of each image."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..evaluation.predictor import Predictor, get_thresholds, predictor_device
from ..models.ensemble import average_logits


@dataclass(frozen=True)
class TTA:
    """The views of an image: itself, copies shifted by `shift` pixels (0: none), and with `flip` each flipped."""

    flip: bool = False
    shift: int = 0

    @property
    def num_views(self) -> int:
        """Return the number of views, 1 without augmentation."""
        return (5 if self.shift else 1) * (2 if self.flip else 1)

    def views(self, images: Tensor) -> list[Tensor]:
        """Return float images (n, channels, h, w) unchanged and shifted down, up, right and left; then flipped.

        Pixels that enter at a border repeat the border; flips are horizontal.
        """
        shift, (height, width) = self.shift, images.shape[-2:]
        corners = (
            [(shift, shift), (0, shift), (2 * shift, shift), (shift, 0), (shift, 2 * shift)] if shift else [(0, 0)]
        )
        padded = F.pad(images, (shift,) * 4, mode="replicate") if shift else images
        views = [padded[..., top : top + height, left : left + width] for top, left in corners]
        return views + [view.flip(-1) for view in views] if self.flip else views

    def __str__(self) -> str:
        shift = f", shifted by {self.shift} px" if self.shift else ""
        return shift + (", flipped" if self.flip else "")


def predict_views(predictor: Predictor, images: Tensor, tta: TTA) -> Tensor:
    """Return `average_logits` of the views, float64 (n, classes); with one view its logits, float32."""
    if tta.num_views == 1:
        return predictor.predict(images)
    logits = [predictor.predict(view) for view in tta.views(images.float())]
    return average_logits(logits, multilabel=bool(get_thresholds(predictor)))


class TTAPredictor:
    """A `Predictor` with test-time augmentation."""

    def __init__(self, predictor: Predictor, tta: TTA):
        self.predictor, self.tta = predictor, tta
        self.name, self.precision, self.classes = predictor.name, predictor.precision, predictor.classes
        self.preprocess, self.min_size = predictor.preprocess, predictor.min_size
        self.thresholds, self.device = get_thresholds(predictor), predictor_device(predictor)

    def predict(self, images: Tensor) -> Tensor:
        """Return logarithms of the mean probabilities, float32 (n, classes); see `Predictor.predict`."""
        return predict_views(self.predictor, images, self.tta).float()
