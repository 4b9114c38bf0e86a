"""Accuracy by depth: a linear probe on each layer, and the auxiliary classifiers."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..evaluation.linear_probes import fit_probes, pooled_features
from ..models.network import Network
from . import plotting
from .context import AnalysisResult, ExplainContext, OutputImage


def evaluate_heads(model: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Return the top-1 accuracy of each auxiliary head, by its layer, and of the ``classifier``, in evaluation mode."""
    names = [*model.aux_heads, "classifier"]
    correct, count = torch.zeros(len(names), dtype=torch.float64), 0
    with torch.inference_mode():
        for pixels, labels in batches:
            logits, aux_logits = model.forward_aux(pixels)
            correct += torch.stack([(head.argmax(1) == labels).sum().cpu() for head in (*aux_logits, logits)])
            count += len(labels)
    return dict(zip(names, (correct / count).tolist(), strict=True))


def run(context: ExplainContext) -> AnalysisResult:
    """Probe every layer of the network and of an untrained one, and evaluate the network's own heads."""
    train, name, split = context.data
    if name == "train":
        # Probes are never evaluated on the images that they are fitted on.
        half = len(split.labels) // 2
        train, split = split.slice(0, half), split.slice(half, None)
    classes = len(context.checkpoint.classes)
    trained, untrained = (
        fit_probes(
            pooled_features(model, context.batches(train)), pooled_features(model, context.batches(split)), classes
        )
        for model in (context.model, context.untrained_model())
    )
    majority_class = torch.bincount(split.labels, minlength=classes).max().item() / len(split.labels)
    heads = evaluate_heads(context.model, context.batches(split))
    png = plotting.draw_probes(trained, untrained, heads, majority_class)
    document = {
        "split": name, "images": len(split.labels), "train_images": len(train.labels), "majority_class": majority_class,
        "probes": [row._asdict() for row in trained], "untrained": [row._asdict() for row in untrained],
        "heads": [{"head": head, "top1": top1} for head, top1 in heads.items()],
    }  # fmt: skip
    lines = [
        f"{name}, {len(split.labels):,} images; probes fitted on {len(train.labels):,} training images; "
        f"the most frequent class {majority_class:.3f}",
        f"{'probe on':<20}{'features':>9}{'top-1':>9}{'untrained':>11}",
    ]
    lines += [
        f"{row.layer:<20}{row.features:>9}{row.top1:>9.4f}{other.top1:>11.4f}"
        for row, other in zip(trained, untrained, strict=True)
    ]
    lines += [f"head {head:<24}{top1:>9.4f}" for head, top1 in heads.items()]
    if len(heads) == 1:
        lines.append("the run has no auxiliary heads")
    return AnalysisResult("Accuracy by depth", document, [OutputImage("probes.png", png, "Accuracy by depth.")], lines)
