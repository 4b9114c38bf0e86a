"""A fused network as files of other programs: ONNX, OpenVINO, ncnn, and PyTorch's own archive.

Each writer takes a network of raw pixels (n, channels, h, w) and the folder to write into. Every file but ncnn's
takes uint8; ncnn's takes the same numbers as floats, which is what its own reading of pictures gives.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import FailedError
from ..models.layers import LocalResponseNorm, MaxPool
from ..models.paths import HalfPool
from .ncnn_format import to_ncnn
from .order import INPUT, Order, needed

# The newest set of operators that PyTorch's exporter writes.
OPSET = 23


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


def _number(value: Any) -> int:
    number: int = value if isinstance(value, int) else value[0]
    return number


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
