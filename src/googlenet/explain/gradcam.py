"""Grad-CAM and activation x gradient at any layer, by Captum's layer attributions.

At the last feature map of a network that ends in global average pooling, both are the class activation map divided by
the number of positions (Grad-CAM only its positive part). At earlier layers they are first-order estimates.
"""

from typing import Any

import torch
from torch import Tensor

from ..errors import FailedError
from ..evaluation.fonts import drawn_names, numbers_note
from ..models.network import Network
from . import plotting
from .context import AnalysisResult, ExplainContext, OutputImage, get_layer, stage_names


def grad_cam(model: Network, pixels: Tensor, stage: str, classes: Tensor) -> Tensor:
    """Compute Grad-CAM of layer `stage` for one class per image, `classes` int64 (n,): (n, h, w), not negative.

    "Grad-CAM" (Selvaraju et al., 2017): the sum of the layer's channels, weighted by their mean gradients, followed
    by ReLU. Takes normalized pixels (n, channels, height, width) and a network in evaluation mode.
    """
    return _attribute("LayerGradCam", model, pixels, stage, classes, relu_attributions=True)[:, 0]


def gradient_x_activation(model: Network, pixels: Tensor, stage: str, classes: Tensor) -> Tensor:
    """Compute the first-order contribution of each position of layer `stage` to the class's logit: (n, h, w).

    Activation times gradient, summed over the channels. If everything after the layer is linear, as after the last
    feature map, the sum over the positions is the logit minus its bias. Arguments as for `grad_cam`.
    """
    return _attribute("LayerGradientXActivation", model, pixels, stage, classes).sum(1)


def _attribute(method: str, model: Network, pixels: Tensor, stage: str, classes: Tensor, **options: Any) -> Tensor:
    try:
        from captum import attr
    except ImportError:
        raise FailedError("Grad-CAM needs Captum: pip install 'googlenet[explain]'") from None
    # The input requires gradients, so that networks with frozen layers have gradients too.
    inputs = pixels.detach().clone().requires_grad_()
    maps: Tensor = getattr(attr, method)(model, get_layer(model, stage)).attribute(inputs, target=classes, **options)
    return maps.detach()


def run(context: ExplainContext) -> AnalysisResult:
    """Draw both maps of each image by stage, for the most probable class."""
    result = AnalysisResult("Grad-CAM and activation x gradient by stage", [], [], [])
    model, size = context.model, context.size
    stages = [context.stage] if context.stage else list(stage_names(model))
    for image in context.images:
        pixels = context.normalized(image)
        with torch.no_grad():
            logits = model(pixels)
        (index,) = context.select_classes(logits[0], 1)
        target = torch.tensor([index], device=context.device)
        cams = [grad_cam(model, pixels, stage, target)[0].cpu() for stage in stages]
        scores = [gradient_x_activation(model, pixels, stage, target)[0].cpu() for stage in stages]
        peaks = [plotting.peak_positions(cam[None, None], size, size)[0, 0].tolist() for cam in cams]
        rows = [
            {"stage": stage, "map": list(cam.shape), "peak": {"x": x, "y": y}, "score_sum": score.sum().item()}
            for stage, cam, score, (y, x) in zip(stages, cams, scores, peaks, strict=True)
        ]
        label, probability = context.checkpoint.classes[index], context.probabilities(logits)[0, index].item()
        result.document.append({"path": image.path, "label": label, "probability": probability, "stages": rows})
        positions = ", ".join(f"{stage} ({x:.0f}, {y:.0f})" for stage, (y, x) in zip(stages, peaks, strict=True))
        result.lines.append(f"{image.path}: {label} {probability:.3f}, peaks {positions}")
        drawn = drawn_names(context.checkpoint.classes, [index])[index]
        maps = list(zip(stages, cams, scores, strict=True))
        png = plotting.draw_gradcam(context.displayed(image), f"{drawn}, p {probability:.2f}", maps)
        caption = f"Grad-CAM and activation x gradient of {image.path} for {label}, by stage."
        caption += numbers_note(context.checkpoint.classes, [index])
        result.images.append(OutputImage(f"{image.name}-gradcam.png", png, caption))
    return result
