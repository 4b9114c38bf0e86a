"""The class probabilities of one image at several sizes.

Global average pooling lets a network accept any size; this shows at which sizes it recognizes the object.
`inference.multi_size` measures the accuracy of a whole split.
"""

import torch

from ..evaluation.fonts import drawn_names, numbers_note
from . import plotting
from .context import AnalysisResult, ExplainContext, OutputImage

# Multiples of the network's own size.
FACTORS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
# The number of classes that are drawn.
NUM_CLASSES = 6


def run(context: ExplainContext) -> AnalysisResult:
    """Draw the probabilities of each image, resized from the original, by size."""
    result = AnalysisResult("Class probabilities by image size", [], [], [])
    model, classes, own = context.model, context.checkpoint.classes, context.checkpoint.preprocess.size
    sizes = sorted(context.sizes or {max(model.min_size, round(own * factor)) for factor in FACTORS})
    for image in context.images:
        with torch.no_grad():
            logits = torch.cat([model(context.normalized(image, size)) for size in sizes])
        rows = context.probabilities(logits)
        best = rows.amax(0).topk(min(NUM_CLASSES, len(classes))).indices.tolist()
        curves = {name: rows[:, k].tolist() for k, name in drawn_names(classes, best).items()}
        class_rows = [{"label": classes[k], "probability": rows[:, k].tolist()} for k in best]
        result.document.append({"path": image.path, "network_size": own, "sizes": sizes, "classes": class_rows})
        top = zip(sizes, rows.argmax(-1).tolist(), rows.amax(-1).tolist(), strict=True)
        line = ", ".join(f"{size} px {classes[k]} {probability:.2f}" for size, k, probability in top)
        result.lines.append(f"{image.path}: {line}")
        png = plotting.draw_sizes(context.displayed(image), sizes, curves, own)
        caption = f"{image.path}: class probabilities by size.{numbers_note(classes, best)}"
        result.images.append(OutputImage(f"{image.name}-sizes.png", png, caption))
    return result
