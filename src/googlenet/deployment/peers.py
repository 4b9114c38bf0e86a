"""The networks that a user would else pick, made as their libraries say, to be measured beside ours."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Pixels(NamedTuple):
    """A normalisation, for `fuse`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def peer_network(
    library: str, name: str, classes: int, channels: int, tensors: Mapping[str, Tensor] | None
) -> nn.Module:
    """torchvision's or timm's network in evaluation mode, with the weights `tensors` or fresh ones.

    torchvision's takes three channels; for another number its first convolution is made anew.
    """
    torch.manual_seed(0)
    if library == "torchvision":
        from torchvision import models

        model: Any = models.get_model(name, weights=None, num_classes=classes, aux_logits=False, init_weights=False)
        if channels != 3:
            model.conv1.conv = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    else:
        import timm

        model = timm.create_model(name, num_classes=classes, in_chans=channels)
    if tensors is not None:
        model.load_state_dict(tensors)
    network: nn.Module = model.eval()
    return network


def write_plain(network: nn.Module, channels: int, cases: Sequence[tuple[int, int]], folder: Path) -> None:
    """A peer's ONNX file for each size and batch, as its user would export it: no choices but the shape.

    One of fixed shape is the quickest that a peer can be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for size, batch in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network, (torch.zeros(batch, channels, size, size),), folder / f"{size}x{batch}.onnx",
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
