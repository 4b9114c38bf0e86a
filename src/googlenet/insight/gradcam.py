"""Where a class's logit comes from at any layer, to first order: through Captum's layer attributions.

At the last map of a network that ends in global average pooling both functions give the class activation map, of
which Grad-CAM keeps the positive part, divided by the number of positions; at earlier layers they are estimates.
"""

from typing import Any

from torch import Tensor

from ..errors import FailedError
from ..models.network import Network
from .stages import layer_of


def grad_cam(model: Network, pixels: Tensor, stage: str, classes: Tensor) -> Tensor:
    """The positive evidence at layer `stage` for one class a picture, `classes` int64 (n,): (n, h, w), 0 or more.

    "Grad-CAM" (Selvaraju et al., 2017): the layer's channels, each times its mean gradient, summed; what is negative
    becomes 0. Normalised pixels (n, channels, height, width), a network in evaluation mode.
    """
    from_captum = _captum().LayerGradCam(model, layer_of(model, stage))
    found: Tensor = from_captum.attribute(_leaf(pixels), target=classes, relu_attributions=True)
    return found[:, 0].detach()


def score_map(model: Network, pixels: Tensor, stage: str, classes: Tensor) -> Tensor:
    """How much each position of layer `stage` adds to the class's logit, to first order: (n, h, w), of either sign.

    Activation times gradient, summed over the channels. (Where all that follows is linear, as after the last map, the
    sum over the positions is the logit without its bias.)
    """
    from_captum = _captum().LayerGradientXActivation(model, layer_of(model, stage))
    found: Tensor = from_captum.attribute(_leaf(pixels), target=classes)
    return found.sum(1).detach()


def _leaf(pixels: Tensor) -> Tensor:
    """Gradients are asked for, so that networks with frozen layers have some too."""
    return pixels.detach().clone().requires_grad_()


def _captum() -> Any:
    try:
        from captum import attr
    except ImportError:
        raise FailedError("Grad-CAM and score maps need Captum: pip install 'googlenet[insight]'") from None
    return attr
