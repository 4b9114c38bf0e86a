"""The input and output of the analyses: a network and its layers, images, a data set; the results, and their page."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoint.format import Checkpoint, build_network
from ..data.dataset import Split
from ..data.loader import evaluation_batches
from ..errors import nearest
from ..evaluation.report import Section, render, template_environment
from ..models.ensemble import to_probabilities
from ..models.network import Network
from .plotting import DisplayImage

# The results in a run's report are between these comments, so that later ones replace them.
START, STOP = "<!-- explain -->", "<!-- end explain -->"


class OutputImage(NamedTuple):
    """A PNG file, its name, and a caption."""

    file: str
    png: bytes
    caption: str


class AnalysisResult(NamedTuple):
    """The result of an analysis: values for JSON, images, and lines of text."""

    title: str
    document: Any
    images: list[OutputImage]
    lines: list[str]


class InputImage(NamedTuple):
    """An image of the command line: its `path`, a unique `name` for files, `pixels` uint8 (1, channels, h, w)."""

    path: str
    name: str
    pixels: Tensor


class ExplainData(NamedTuple):
    """The training images, and the `split` that analyses are computed on, with its name."""

    train: Split
    name: str
    split: Split


@dataclass(frozen=True)
class ExplainContext:
    """What analyses work on. `load_data` is called when an analysis first needs the data set.

    `size` is the height and width of the network's input in pixels, `sizes` are those of the size sweep, `stage` is
    the layer for gradcam (unset: all) and units (unset: the middle one), `label` the class (unset: the most probable).
    """

    checkpoint: Checkpoint
    images: Sequence[InputImage]
    load_data: Callable[[], ExplainData]
    size: int
    sizes: Sequence[int] | None = None
    stage: str | None = None
    label: str | None = None

    @property
    def model(self) -> Network:
        """Return the network in evaluation mode."""
        return self.checkpoint.network

    @property
    def device(self) -> torch.device:
        """Return the device of the network."""
        return next(self.model.parameters()).device

    @cached_property
    def data(self) -> ExplainData:
        """Return the data set, loaded once."""
        return self.load_data()

    def batches(self, split: Split) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield batches of normalized images and labels on the network's device."""
        for pixels, labels in evaluation_batches(split, self.checkpoint.preprocess, self.size):
            yield pixels.to(self.device), labels.to(self.device)

    def normalized(self, image: InputImage, size: int | None = None) -> Tensor:
        """Return an image as the network's input, (1, channels, size, size)."""
        return self.checkpoint.preprocess(image.pixels, size or self.size).to(self.device)

    def displayed(self, image: InputImage) -> DisplayImage:
        """Return an image for a figure: cropped and resized, not normalized."""
        preprocess = self.checkpoint.preprocess
        pixels = preprocess.resize(preprocess.center_crop(image.pixels), self.size)[0]
        return DisplayImage(Path(image.path).name, pixels)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probabilities of logits (n, classes), float64 on the CPU."""
        return to_probabilities(logits.cpu(), self.checkpoint.recipe.task == "multilabel")

    def select_classes(self, logits: Tensor, count: int) -> list[int]:
        """Return the index of the class `label` if it is set, else of the `count` largest logits (classes,)."""
        if self.label is not None:
            return [self.checkpoint.classes.index(self.label)]
        indices: list[int] = logits.topk(min(count, len(self.checkpoint.classes))).indices.tolist()
        return indices

    def untrained_model(self) -> Network:
        """Build the network of the checkpoint's recipe with initial weights, in evaluation mode."""
        model = build_network(self.checkpoint.recipe, len(self.checkpoint.classes), self.checkpoint.preprocess.channels)
        return model.to(self.device).eval()


def stage_names(model: Network) -> tuple[str, ...]:
    """Return the names of the deepest layers at each stride, shallow to deep."""
    return tuple(stage.name for stage in model.feature_info)


def get_layer(model: Network, name: str) -> nn.Module:
    """Return the trunk's layer `name`; ValueError if it does not exist."""
    layers = dict(model.trunk.named_children())
    if name not in layers:
        raise ValueError(f"unknown layer {name!r}{nearest(name, layers)}; the layers are {', '.join(layers)}")
    return layers[name]


def iter_layer_outputs(model: Network, pixels: Tensor, until: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and output of each layer of the trunk, shallow to deep, up to layer `until`."""
    for name, layer in model.trunk.named_children():
        pixels = layer(pixels)
        yield name, pixels
        if name == until:
            return


def check_options(checkpoint: Checkpoint, stage: str | None, label: str | None) -> None:
    """Raise ValueError for a stage or a class that the network does not have."""
    if stage is not None:
        get_layer(checkpoint.network, stage)
    if label is not None and label not in checkpoint.classes:
        suggestion = nearest(label, checkpoint.classes)
        raise ValueError(f"unknown class {label!r}{suggestion}; the network has {len(checkpoint.classes)} classes")


def result_sections(results: Mapping[str, AnalysisResult]) -> list[Section]:
    """Return the results, by method, as the sections of a page."""
    template = template_environment("googlenet.explain").get_template("analysis.html")
    return [Section(result.title, "", template.render(result=result)) for result in results.values()]


def insert_sections(report: str, results: Mapping[str, AnalysisResult]) -> str:
    """Append the results to a run's report.html, and replace those of an earlier call.

    ValueError for a page that is not such a report.
    """
    before, end, after = report.partition("</main>")
    if not end:
        raise ValueError("not a report of a training run: </main> is missing")
    before, sections = before.partition(START)[0].rstrip(), render("sections.html", sections=result_sections(results))
    return f"{before}\n{START}{sections}{STOP}\n{end}{after}"
