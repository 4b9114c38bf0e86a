"""A fused network as ncnn's files, through ncnn's own converter."""

import copy
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FailedError
from ..models.fusion import Fused, FusedEnsemble
from ..models.layers import LocalResponseNorm
from .order import Order, needed, replaced


def ncnn_layer(layer: nn.Module) -> nn.Module | None:
    """What stands for `layer` on the way to ncnn."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0) if isinstance(layer, LocalResponseNorm) else None


def _subtraction(offset: Tensor) -> nn.Conv2d:
    """Less the mean pixel, as a convolution of one pixel and one channel each, which ncnn has a layer for."""
    channels = offset.shape[1]
    layer = nn.Conv2d(channels, channels, 1, groups=channels)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.copy_(-offset.flatten())  # type: ignore[union-attr]
    return layer


class _ForNcnn(nn.Module):
    def __init__(self, fused: Fused):
        super().__init__()
        self.subtract = nn.Identity() if fused.offset is None else _subtraction(fused.offset)
        self.trunk, self.classifier, self.levels = fused.trunk, fused.classifier, fused.pyramid

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.trunk(self.subtract(pixels))
        cells = [torch.flatten(nn.functional.adaptive_avg_pool2d(x, level), 1) for level in self.levels]
        logits: Tensor = self.classifier(cells[0] if len(cells) == 1 else torch.cat(cells, 1))
        return logits


def to_ncnn(order: Order, folder: Path) -> list[str]:
    """``model.ncnn.param`` and ``model.ncnn.bin``, weights in float32, through ncnn's own converter pnnx."""
    pnnx = needed("pnnx")
    if isinstance(order.fused, FusedEnsemble):
        raise FailedError("ncnn's file holds one network: export a member, such as RUN/member-1, or leave ncnn out")
    network: nn.Module = replaced(_ForNcnn(copy.deepcopy(order.fused).cpu().float()), ncnn_layer)
    network = (nn.Sequential(network, nn.Softmax(1)) if order.softmax else network).eval()
    # One picture: ncnn answers one at a time. A second size tells the converter that sizes are open.
    sizes = [order.example()[:1].float()]
    if order.any_size:
        sizes.append(torch.zeros(1, order.fused.in_channels, sizes[0].shape[2] + 16, sizes[0].shape[3] + 21))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace: Any = torch.jit.trace
        traced = trace(network, sizes[0], check_trace=False)
    source = folder / "model.ncnn.pt"
    traced.save(str(source))
    shapes = [f"inputshape{number}=[{','.join(map(str, x.shape))}]" for number, x in zip(("", "2"), sizes)]  # noqa: B905
    # The converter writes seven files beside its source; ncnn needs two.
    outputs = {
        "ncnnparam": "model.ncnn.param", "ncnnbin": "model.ncnn.bin", "pnnxparam": "a.param", "pnnxbin": "a.bin",
        "pnnxpy": "a.py", "pnnxonnx": "a.onnx", "ncnnpy": "b.py",
    }  # fmt: skip
    command = [pnnx.EXEC_PATH, source.name, *shapes, "fp16=0", *(f"{key}={file}" for key, file in outputs.items())]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    for file in (source.name, *list(outputs.values())[2:]):
        (folder / file).unlink(missing_ok=True)
    unknown = sorted({line.split()[-1] for line in done.stderr.splitlines() if line.startswith("ignore ")})
    if done.returncode or not (folder / "model.ncnn.bin").exists():
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise FailedError(f"ncnn's converter cannot take this network: {last}; leave ncnn out of --to")
    if unknown:
        raise FailedError(f"ncnn has no layer for {', '.join(unknown)}; leave ncnn out of --to")
    param = folder / "model.ncnn.param"
    param.write_text(_padded_pools(param.read_text()))
    return ["model.ncnn.param", "model.ncnn.bin"]


def _padded_pools(param: str) -> str:
    """Max pools in ceil mode, as pools with a row and a column of padding.

    ncnn's own ceil mode (5=0) gives a map smaller than its window too many rows, filled with the least number.
    """
    return re.sub(r"^(Pooling .* 0=0 .*) 5=0\b", r"\1 14=1 15=1 5=1", param, flags=re.MULTILINE)
