"""A fused network as files of other programs: ONNX, OpenVINO, ncnn, and PyTorch's own archive.

Each writer takes a network of raw pixels (n, channels, h, w) and the folder to write into. Every file but ncnn's
takes uint8; ncnn's takes the same numbers as floats, which is what its own reading of pictures gives.
"""

import copy
import importlib
import importlib.util
import re
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from ..errors import FailedError
from ..models.fusion import Fused, FusedEnsemble
from ..models.layers import LocalResponseNorm, MaxPool
from ..models.paths import HalfPool

INPUT, OUTPUTS = "pixels", ("logits", "probabilities")

# The newest set of operators that PyTorch's exporter writes.
OPSET = 23


class Order(NamedTuple):
    """What is to be written: the network, the size of its pictures in pixels, and whether softmax is inside."""

    fused: Fused | FusedEnsemble
    size: int
    softmax: bool

    @property
    def any_size(self) -> bool:
        """Whether a file can leave height and width open: grids of several cells are fixed by the size."""
        return self.fused.pyramid == (1,)

    @property
    def least(self) -> int:
        """The least height and width in pixels. Of one pixel PyTorch's archives would make another program."""
        return max(2, self.fused.min_size)

    @property
    def output(self) -> str:
        """The name of what comes out."""
        return OUTPUTS[self.softmax]

    def network(self) -> nn.Module:
        """A copy, with what is to be inside."""
        fused = copy.deepcopy(self.fused).cpu().float()
        return nn.Sequential(fused, nn.Softmax(1)) if self.softmax else fused

    def example(self) -> Tensor:
        """Pixels to trace with: unlike sides, so that none is taken for another, and maps of several pixels."""
        height, width = self.size, self.size
        if self.any_size:
            height = max(height, self.least + 2, 64)
            width = height + 7
        return torch.zeros(2, self.fused.in_channels, height, width, dtype=torch.uint8)

    def program(self, by: Callable[[nn.Module], nn.Module | None], open_sides: bool) -> torch.export.ExportedProgram:
        """The network as a graph of PyTorch's operators, with the layers that `by` names replaced.

        The batch is open; height and width are with `open_sides`, as far as the network lets them.
        """
        sides = {2: "height", 3: "width"} if open_sides and self.any_size else {}
        names = {0: "batch", **sides}
        free = {place: torch.export.Dim(name, min=self.least if place else 1) for place, name in names.items()}
        network = replaced(self.network(), by).eval()
        # Else a map of one pixel would be another program than a larger one, and small pictures would be refused.
        config: Any = torch.fx.experimental._config
        with config.patch(backed_size_oblivious=True):
            return torch.export.export(network, (self.example(),), dynamic_shapes=(free,))


class PaddedMaxPool(nn.Module):
    """Ceil mode by a row and a column of zeros, which never win behind a ReLU: its size can be left open."""

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        self.window, self.stride, self.rim = (_number(v) for v in (pool.kernel_size, pool.stride, pool.padding))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the maxima."""
        return nn.functional.max_pool2d(nn.functional.pad(x, (0, 1, 0, 1)), self.window, self.stride, self.rim)


class OnnxMaxPool(nn.Module):
    """Max pooling as ONNX says it: what a last window lacks is padding, which never wins."""

    def __init__(self, window: int, stride: int, before: int, after: int):
        super().__init__()
        self.window, self.stride, self.before, self.after = window, stride, before, after

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the maxima; only in an export."""
        rim = self.before + self.after - self.window
        height, width = ((side + rim) // self.stride + 1 for side in x.shape[2:])
        return torch.onnx.ops.symbolic(
            "MaxPool",
            (x,),
            {
                "kernel_shape": [self.window, self.window],
                "strides": [self.stride, self.stride],
                "pads": [self.before, self.before, self.after, self.after],
            },
            dtype=x.dtype,
            shape=(x.shape[0], x.shape[1], height, width),
        )


class OnnxLRN(nn.Module):
    """`LocalResponseNorm` as ONNX says it; its alpha, too, is divided by the size."""

    def forward(self, x: Tensor) -> Tensor:
        """Any (batch, channels, h, w) -> the same shape; only in an export."""
        constants: dict[str, Any] = {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}
        return torch.onnx.ops.symbolic("LRN", (x,), constants, dtype=x.dtype, shape=x.shape)


def onnx_layer(layer: nn.Module) -> nn.Module | None:
    """What stands for `layer` in an ONNX file; None where PyTorch's exporter says it well."""
    match layer:
        case HalfPool():
            return OnnxMaxPool(3, 2, 0, 2)
        case MaxPool() | nn.MaxPool2d():
            window, stride, rim = (_number(value) for value in (layer.kernel_size, layer.stride, layer.padding))
            return OnnxMaxPool(window, stride, rim, rim + (stride - 1 if layer.ceil_mode else 0))
        case LocalResponseNorm():
            return OnnxLRN()
        case _:
            return None


def torch_layer(layer: nn.Module) -> nn.Module | None:
    """What stands for `layer` in PyTorch's archive."""
    return PaddedMaxPool(layer) if type(layer) is nn.MaxPool2d and layer.ceil_mode else None


def ncnn_layer(layer: nn.Module) -> nn.Module | None:
    """What stands for `layer` on the way to ncnn."""
    return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0) if isinstance(layer, LocalResponseNorm) else None


def _number(value: Any) -> int:
    number: int = value if isinstance(value, int) else value[0]
    return number


def replaced(network: nn.Module, by: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """`network` with every layer for which `by` names another replaced, in place."""
    for owner in list(network.modules()):
        for name, layer in list(owner.named_children()):
            if other := by(layer):
                setattr(owner, name, other)
    return network


def to_torch(order: Order, folder: Path) -> list[str]:
    """``model.pt2``: an archive that `torch.export.load` reads, without our code."""
    torch.export.save(order.program(torch_layer, open_sides=True), folder / "model.pt2")
    return ["model.pt2"]


def to_onnx(order: Order, folder: Path) -> list[str]:
    """``model.onnx``, weights inside, checked against the standard; no operator of another domain is left over."""
    onnx = needed("onnx", "onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            # Following open sides through the layers takes PyTorch long, and no operator here depends on them.
            order.program(onnx_layer, open_sides=False),
            input_names=[INPUT],
            output_names=[order.output],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    if order.any_size:
        for place, name in ((2, "height"), (3, "width")):
            model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
        model.graph.ClearField("value_info")
    onnx.checker.check_model(model, full_check=True)
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign or model.functions:
        raise FailedError(f"the ONNX file would need operators of {', '.join(sorted(foreign))}; it was not written")
    (folder / "model.onnx").write_bytes(without_notes(model).SerializeToString())
    return ["model.onnx"]


def without_notes(model: Any) -> Any:
    """An ONNX model whose layers have the names of ours.

    And without its exporter's notes on every part, which name this machine's files.
    """
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for node in graph.node:
        if len(node.input) > 1 and node.input[1].endswith(".weight"):
            # "0." where softmax follows.
            node.name = node.input[1].removesuffix(".weight").removeprefix("0.")
    return model


def to_openvino(order: Order, folder: Path) -> list[str]:
    """``model.xml`` and ``model.bin``, weights in float32, made from the ONNX form."""
    openvino = needed("openvino", "onnx", "onnxscript")
    there = folder / "model.onnx"
    made_here = not there.exists()
    if made_here:
        to_onnx(order, folder)
    model = openvino.Core().read_model(there)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    if made_here:
        there.unlink()
    return ["model.xml", "model.bin"]


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


class Format(NamedTuple):
    """One way to write a network, and the engine that reads it."""

    engine: str
    write: Callable[[Order, Path], list[str]]


# By the name that --to takes, in the order of writing: OpenVINO's is made from ONNX's.
FORMATS: dict[str, Format] = {
    "onnx": Format("onnxruntime", to_onnx),
    "openvino": Format("openvino", to_openvino),
    "ncnn": Format("ncnn", to_ncnn),
    "torch": Format("torch", to_torch),
}


def needed(first: str, *more: str) -> Any:
    """The package `first`; ValueError that says what to install where it or one of `more` is missing."""
    for name in (first, *more):
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install 'googlenet[export]'")
    return importlib.import_module(first)
