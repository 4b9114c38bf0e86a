"""ncnn's files, written by its converter pnnx. They take one image at a time, as floats in 0..255."""

import copy
import re
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import FailedError
from ...models.folding import FoldedEnsemble, FoldedNetwork
from ...models.layers import LocalResponseNorm
from ..spec import ExportSpec, replace_modules
from . import Session, import_optional

PARAM, WEIGHTS = "model.ncnn.param", "model.ncnn.bin"
# Other files that pnnx writes, by its options; they are deleted.
TEMPORARY = {"pnnxparam": "a.param", "pnnxbin": "a.bin", "pnnxpy": "a.py", "pnnxonnx": "a.onnx", "ncnnpy": "b.py"}
FLOAT16 = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage")

EXAMPLE = """\
net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(str(FILES[0]))
net.load_model(str(FILES[1]))


def run(images: np.ndarray) -> list[np.ndarray]:
    extractor = net.create_extractor()
    array = images[0].astype(np.float32)  # ncnn does not own the memory: the name keeps it alive until the copy
    extractor.input(net.input_names()[0], ncnn.Mat(array).clone())
    return [np.array(extractor.extract(net.output_names()[0])[1])[np.newaxis]]
"""


class _NcnnNetwork(nn.Module):
    """A folded network with layers that ncnn has."""

    def __init__(self, folded: FoldedNetwork):
        super().__init__()
        self.subtract: nn.Module = nn.Identity()
        if folded.offset is not None:  # The mean pixel, subtracted by a depthwise 1x1 convolution.
            channels = folded.offset.shape[1]
            self.subtract = nn.Conv2d(channels, channels, 1, groups=channels)
            self.subtract.weight = nn.Parameter(torch.ones_like(self.subtract.weight))
            self.subtract.bias = nn.Parameter(-folded.offset.flatten())
        self.trunk, self.classifier, self.levels = folded.trunk, folded.classifier, folded.spp_levels

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.trunk(self.subtract(pixels))
        cells = [torch.flatten(nn.functional.adaptive_avg_pool2d(x, level), 1) for level in self.levels]
        logits: Tensor = self.classifier(cells[0] if len(cells) == 1 else torch.cat(cells, 1))
        return logits


def ncnn_layer(layer: nn.Module) -> nn.Module | None:
    """Return the replacement of a layer that pnnx does not recognize."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0) if isinstance(layer, LocalResponseNorm) else None


def write(spec: ExportSpec, folder: Path) -> list[str]:
    """Write ``model.ncnn.param`` and ``model.ncnn.bin``, weights in float32."""
    pnnx = import_optional("pnnx")
    source = folder / "model.ncnn.pt"
    inputs = _trace(spec, source)
    shapes = [f"inputshape{i or ''}=[{','.join(map(str, x.shape))}]" for i, x in zip((0, 2), inputs, strict=False)]
    outputs = {"ncnnparam": PARAM, "ncnnbin": WEIGHTS, **TEMPORARY}
    command = [pnnx.EXEC_PATH, source.name, *shapes, "fp16=0", *(f"{key}={file}" for key, file in outputs.items())]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    for file in (source.name, *TEMPORARY.values()):
        (folder / file).unlink(missing_ok=True)
    if result.returncode or not (folder / WEIGHTS).exists():
        last_line = (result.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise FailedError(f"ncnn's converter cannot convert this network: {last_line}; leave ncnn out of --format")
    unsupported = sorted({line.split()[-1] for line in result.stderr.splitlines() if line.startswith("ignore ")})
    if unsupported:
        raise FailedError(f"ncnn has no layer for {', '.join(unsupported)}; leave ncnn out of --format")
    # ncnn's ceil mode (5=0) adds too many rows, filled with the smallest number, to a map smaller than the window:
    # replaced by one row and one column of padding.
    pool, padded = r"^(Pooling .* 0=0 .*) 5=0\b", r"\1 14=1 15=1 5=1"
    (folder / PARAM).write_text(re.sub(pool, padded, (folder / PARAM).read_text(), flags=re.MULTILINE))
    return [PARAM, WEIGHTS]


def _trace(spec: ExportSpec, path: Path) -> list[Tensor]:
    """Write a TorchScript trace for pnnx and return the example inputs: two, if the size is dynamic."""
    if isinstance(spec.network, FoldedEnsemble):
        raise FailedError("an ncnn file holds one network: export a member, such as RUN/member-1, or leave ncnn out")
    network = replace_modules(_NcnnNetwork(copy.deepcopy(spec.network).cpu().float()), ncnn_layer)
    network = (nn.Sequential(network, nn.Softmax(1)) if spec.softmax else network).eval()
    inputs = [spec.example_input()[:1].float()]
    if spec.dynamic_size:
        inputs.append(torch.zeros(1, spec.network.in_channels, inputs[0].shape[2] + 16, inputs[0].shape[3] + 21))
    with warnings.catch_warnings(action="ignore"):
        trace: Any = torch.jit.trace
        trace(network, inputs[0], check_trace=False).save(str(path))
    return inputs


def open(paths: Sequence[Path], threads: int | None, _: str) -> Session:
    """Open files in ncnn, which computes in float32, one image after the other."""
    ncnn = import_optional("ncnn")
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    for option in FLOAT16:
        if hasattr(net.opt, f"use_{option}"):
            setattr(net.opt, f"use_{option}", False)
    if threads:
        net.opt.num_threads = threads
    if net.load_param(str(paths[0])) or net.load_model(str(paths[1])):
        raise ValueError(f"{paths[0]}: ncnn cannot read it; export again")
    (input_name,), (output_name,) = net.input_names(), net.output_names()

    def run_image(image: Tensor) -> Tensor:
        with net.create_extractor() as extractor:
            # The array needs a name until ncnn has copied it; the copy also aligns the channels to 16 bytes.
            array = image.float().numpy()
            extractor.input(input_name, ncnn.Mat(array).clone())
            return torch.from_numpy(np.array(extractor.extract(output_name)[1]))

    return lambda images: (torch.stack([run_image(image) for image in images]),)
