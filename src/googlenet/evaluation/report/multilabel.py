"""The report of a run with several labels per image: metrics, curves, and the images with the largest loss."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...data.dataset import Split
from ..class_metrics import class_metrics
from ..metrics import Predictions
from ..multilabel import label_loss, label_outcomes, multilabel_metrics
from ..plots import Curve, training_curves
from . import GalleryItem, ReportInfo, Section, Tile, render, render_run_page
from .class_table import NOTE, class_metrics_section

MAX_IMAGES = 24
TITLES = {"map": "mean average precision", "f1": "macro F1", "micro_f1": "micro F1", "auroc": "mean AUROC"}


def render_multilabel_report(
    info: ReportInfo, split: Split, predictions: Predictions | None, thresholds: Sequence[float]
) -> str:
    """Render the page; `predictions` are those of the images of `split`, None without held-out images."""
    tiles: list[Tile] = []
    note = "The training loss includes label smoothing and the auxiliary losses."
    sections = [Section("Training", note, training_curves(info.entries, Curve("map", "mAP", " (nats)")))]
    if predictions is not None:
        metrics = multilabel_metrics(predictions, thresholds)
        images = f", {info.evaluated_split} ({metrics['images']:,} images)"
        tiles = [
            Tile(f"{metrics[key]:.4f}", title + (images if key == "map" else ""))
            for key, title in TITLES.items()
            if key in metrics
        ]
        chosen = ", ".join(f"{name} {value:.3f}" for name, value in zip(info.classes, thresholds, strict=True))
        rows = class_metrics(label_outcomes(predictions, thresholds), multilabel=True)
        items = worst_images(predictions, split, info.classes, thresholds)
        sections += [
            class_metrics_section(rows, info.classes, f"{NOTE} Thresholds, chosen on the validation images: {chosen}."),
            Section("Largest errors", "The images with the largest loss.", render("gallery.html", items=items)),
        ]
    return render_run_page(info, tiles, sections)


def worst_images(
    predictions: Predictions, split: Split, classes: Sequence[str], thresholds: Sequence[float]
) -> list[GalleryItem]:
    """Return the images of `split` with a wrong label, those with the largest loss first."""
    _, targets, predicted = label_outcomes(predictions, thresholds)
    wrong = (targets != predicted).any(dim=1).nonzero().flatten()
    worst = wrong[(-label_loss(predictions)[wrong]).argsort(stable=True)][:MAX_IMAGES]
    images: Iterable[Tensor] = next(split.pixels([worst])) if len(worst) else []
    return [
        GalleryItem(
            image, _names(targets[row], classes), f", predicted {_names(predicted[row], classes)}", split.names[row]
        )
        for row, image in zip(worst.tolist(), images, strict=True)
    ]


def _names(labels: Tensor, classes: Sequence[str]) -> str:
    """Return the names of the labels of an image, bool (classes,)."""
    return ", ".join(classes[index] for index in torch.nonzero(labels).flatten().tolist()) or "none"
