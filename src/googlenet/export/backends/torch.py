"""PyTorch's own archive, written by torch.export."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..spec import ExportSpec
from . import Session

EXAMPLE = """\
network = torch.export.load(FILES[0]).module()


def run(images: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        return [output.numpy() for output in network(torch.from_numpy(images))]
"""


def torch_layer(layer: nn.Module) -> nn.Module | None:
    """Return the replacement of a max pool in ceil mode, which torch.export cannot trace with dynamic sizes."""
    if type(layer) is not nn.MaxPool2d or not layer.ceil_mode:
        return None
    # The padding, a row and a column of zeros, never wins after a ReLU.
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding))


def write(spec: ExportSpec, folder: Path) -> list[str]:
    """Write ``model.pt2``, which `torch.export.load` reads without this package."""
    torch.export.save(spec.to_exported_program(torch_layer, dynamic_hw=True), folder / "model.pt2")
    return ["model.pt2"]


def open(paths: Sequence[Path], threads: int | None, _: str) -> Session:
    """Load an archive; `threads` sets those of the process."""
    if threads:
        torch.set_num_threads(threads)
    model = torch.export.load(paths[0]).module()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return tuple(model(images))

    return run
