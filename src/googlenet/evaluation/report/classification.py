"""The report of a classification run: metrics, curves, confusion matrix and the worst errors."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...data.dataset import Split
from ..class_metrics import Estimate, class_metrics, one_vs_rest, overall_metrics
from ..metrics import Predictions, classification_metrics, confusion_matrix, is_correct
from ..plots import Curve, training_curves
from . import Cell, GalleryItem, ReportInfo, Section, Tile, render, render_run_page
from .class_table import class_metrics_section

MAX_ERRORS = 24
# Of the fields of `OverallMetrics`.
OVERALL_TITLES = ("balanced accuracy", "Matthews correlation")


def render_report(info: ReportInfo, split: Split, predictions: Predictions | None) -> str:
    """Render the page; `predictions` are those of the images of `split`, None without held-out images."""
    tiles: list[Tile] = []
    note = "The training loss includes label smoothing and the auxiliary losses."
    sections = [Section("Training", note, training_curves(info.entries, Curve("top1", "top-1 accuracy", " (nats)")))]
    if predictions is not None:
        metrics = classification_metrics(predictions)
        tiles = [
            Tile(f"{metrics['top1']:.4f}", f"top-1 accuracy, {info.evaluated_split} ({metrics['images']:,} images)"),
            Tile(f"{metrics['top5']:.4f}", "top-5 accuracy"),
            Tile(f"{metrics['loss']:.3f}", "cross-entropy (nats)"),
            *(_tile(label, item) for label, item in zip(OVERALL_TITLES, overall_metrics(predictions), strict=True)),
        ]
        matrix = _confusion_table(predictions, info.classes)
        errors = render("gallery.html", items=worst_errors(predictions, split, info.classes))
        sections += [
            class_metrics_section(class_metrics(one_vs_rest(predictions)), info.classes),
            Section("Confusion matrix", "Number of images by true class (row) and predicted class (column).", matrix),
            Section("Worst errors", "The errors with the smallest probability of the true class.", errors),
        ]
    return render_run_page(info, tiles, sections)


def _tile(label: str, item: Estimate) -> Tile:
    interval = f" ({item.interval.low:.3f} to {item.interval.high:.3f})" if item.interval else ""
    return Tile("-" if item.value is None else f"{item.value:.4f}", f"{label}{interval}")


def _confusion_table(predictions: Predictions, classes: Sequence[str]) -> str:
    """Render the confusion matrix, its cells shaded by their share of the row."""
    counts = confusion_matrix(predictions)
    shares = (counts.double() / counts.sum(dim=1, keepdim=True).clamp_min(1)).tolist()
    rows = [
        (name, [Cell(str(n or ""), share, error=j != i) for j, (n, share) in enumerate(zip(*row, strict=True))])
        for i, (name, *row) in enumerate(zip(classes, counts.tolist(), shares, strict=True))
    ]
    return render("table.html", header=classes, rows=rows, vertical=True)


def worst_errors(predictions: Predictions, split: Split, classes: Sequence[str]) -> list[GalleryItem]:
    """Return the misclassified images of `split` with the smallest probability of their true class."""
    probabilities = predictions.logits.softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    labels = predictions.labels
    target = probabilities.gather(1, labels.unsqueeze(1)).squeeze(1)
    wrong = torch.nonzero(~is_correct(predictions)).flatten()
    worst = wrong[target[wrong].argsort(stable=True)][:MAX_ERRORS]
    images: Iterable[Tensor] = next(split.pixels([worst])) if len(worst) else []
    items = []
    for row, image in zip(worst.tolist(), images, strict=True):
        note = f", predicted {classes[int(predicted[row])]} ({confidence[row].item():.0%})"
        items.append(GalleryItem(image, classes[int(labels[row])], note, split.names[row]))
    return items
