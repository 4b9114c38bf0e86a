"""What ``googlenet explain`` is asked about: a network, pictures, a data set; and what its answers are made of."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.dataset import Dataset, Split
from ..data.loader import evaluation_batches
from ..data.pictures import read_picture, to_tensor
from ..errors import nearest
from ..evaluation.predict import STANDARD_INPUT, expand
from ..evaluation.scales import check_sizes
from ..insight.drawing import Seen
from ..insight.page import Picture
from ..insight.stages import layer_of
from ..models.network import Network
from ..training.checkpoint import Checkpoint, load
from ..training.devices import pick_device
from .data_of_run import data_of_run, split_of


class Found(NamedTuple):
    """An answer: `figures` for JSON, `pictures`, and `lines` for a person."""

    title: str
    figures: Any
    pictures: list[Picture]
    lines: list[str]


class Given(NamedTuple):
    """A picture of the command line: its `path`, a `name` for files, `pixels` uint8 (1, channels, h, w)."""

    path: str
    name: str
    pixels: Tensor


@dataclass(frozen=True)
class Asked:
    """The network, and what it is asked about. The data set is read when a question first needs it."""

    args: argparse.Namespace
    checkpoint: Checkpoint
    device: torch.device
    size: int
    given: Sequence[Given]

    @property
    def model(self) -> Network:
        """In evaluation mode, on the device."""
        return self.checkpoint.network

    @property
    def about(self) -> str:
        """One line on the network."""
        return f"{self.checkpoint.recipe.model.name} at {self.size} px"

    @cached_property
    def data(self) -> Dataset:
        """The run's pictures, or those that the command line names."""
        args, stored = self.args, max(self.size, self.checkpoint.recipe.stored_size)
        return data_of_run(self.checkpoint, stored, source=args.data, root=args.root, limit=args.limit)

    @cached_property
    def split(self) -> tuple[str, Split]:
        """The part of the data that is measured on, with its name."""
        return split_of(self.data, self.args.split)

    def batches(self, split: Split) -> Iterable[tuple[Tensor, Tensor]]:
        """The pictures of a split as the network takes them, with their labels."""
        return evaluation_batches(split, self.checkpoint.preprocess, self.size)

    def pixels(self, given: Given) -> Tensor:
        """A picture as the network takes it."""
        return self.checkpoint.preprocess(given.pixels, self.size).to(self.device)

    def seen(self, given: Given) -> Seen:
        """A picture as the network sees it."""
        preprocess = self.checkpoint.preprocess
        return Seen(Path(given.path).name, preprocess.resize(preprocess.square(given.pixels), self.size)[0])

    def classes(self, logits: Tensor, count: int) -> list[int]:
        """The class that was named, else the `count` best of logits (classes,)."""
        names, label = self.checkpoint.classes, self.args.label
        if label is None:
            found: list[int] = logits.topk(min(count, len(names))).indices.tolist()
            return found
        return [names.index(label)]


def ask(args: argparse.Namespace) -> Asked:
    """Read the network and the pictures; ValueError for what cannot be used, before anything is computed."""
    checkpoint = load(args.run, task="classification")
    size = checkpoint.preprocess.size if args.size is None else args.size
    check_sizes(checkpoint.network, [size])
    if args.sizes:
        check_sizes(checkpoint.network, args.sizes)
    if args.stage is not None:
        layer_of(checkpoint.network, args.stage)
    if args.label is not None and args.label not in checkpoint.classes:
        raise ValueError(
            f"the network knows no class {args.label!r}{nearest(args.label, checkpoint.classes)}; "
            f"it has {len(checkpoint.classes)}"
        )
    device = pick_device("auto")
    checkpoint.network.to(device)
    return Asked(args, checkpoint, device, size, _given(args.images, checkpoint.preprocess.channels))


def _given(images: Sequence[str], channels: int) -> list[Given]:
    found, names = [], set()
    for path in expand(images):
        if path == STANDARD_INPUT:
            picture, stem = read_picture(sys.stdin.buffer.read(), "standard input"), "standard-input"
        else:
            picture, stem = read_picture(Path(path)), Path(path).stem
        name, number = stem, 1
        while name in names:
            name, number = f"{stem}-{number + 1}", number + 1
        names.add(name)
        found.append(Given(path, name, to_tensor(picture, channels).unsqueeze(0)))
    return found
