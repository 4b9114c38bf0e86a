"""ONNX files, run and quantized by ONNX Runtime."""

import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import FailedError
from ...models.blocks import HalfPool
from ...models.layers import LocalResponseNorm, MaxPool
from ..quantize import layer_of, quantizable_nodes
from ..spec import INPUT_NAME, ExportSpec
from . import Session, import_optional

if TYPE_CHECKING:
    from ..detector import ExportableDetector

# The newest opset that PyTorch's exporter writes; and the one that it writes for the operators of detectors.
OPSET, DETECTOR_OPSET = 23, 20

EXAMPLE = f"""\
session = onnxruntime.InferenceSession(FILES[0], providers=["CPUExecutionProvider"])


def run(images: np.ndarray) -> list[np.ndarray]:
    return session.run(None, {{"{INPUT_NAME}": images}})
"""


class OnnxLayer(nn.Module):
    """An operator of ONNX in place of a layer, during an export only. `resize` maps input to output heights."""

    def __init__(self, operator: str, attributes: dict[str, Any], resize: Callable[[int], int] = lambda side: side):
        super().__init__()
        self.operator, self.attributes, self.resize = operator, attributes, resize

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the output of the operator."""
        shape = (*x.shape[:2], *map(self.resize, x.shape[2:]))
        return torch.onnx.ops.symbolic(self.operator, (x,), self.attributes, dtype=x.dtype, shape=shape)


def onnx_max_pool(kernel: int, stride: int, before: int, after: int) -> OnnxLayer:
    """Return ONNX's MaxPool with padding on both sides: incomplete last windows are padded, and padding never wins."""
    pads = [before, before, after, after]
    attributes = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": pads}
    return OnnxLayer("MaxPool", attributes, lambda side: (side + before + after - kernel) // stride + 1)


def onnx_layer(layer: nn.Module) -> nn.Module | None:
    """Return the replacement of a layer that PyTorch's ONNX exporter would decompose."""
    match layer:
        case HalfPool():
            return onnx_max_pool(3, 2, 0, 2)
        case MaxPool() | nn.MaxPool2d():
            values = (layer.kernel_size, layer.stride, layer.padding)
            kernel, stride, padding = (value if isinstance(value, int) else value[0] for value in values)
            return onnx_max_pool(kernel, stride, padding, padding + (stride - 1 if layer.ceil_mode else 0))
        case LocalResponseNorm():  # Both divide alpha by the size.
            return OnnxLayer("LRN", {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0})
        case _:
            return None


def write(spec: ExportSpec, folder: Path) -> list[str]:
    """Write ``model.onnx`` with its weights; the ONNX checker and the operators' domain are verified."""
    onnx = import_optional("onnx", "onnxscript")
    with warnings.catch_warnings(action="ignore"):
        # No operator depends on height and width, and tracing them symbolically is slow: named below.
        program = torch.onnx.export(
            spec.to_exported_program(onnx_layer, dynamic_hw=False), input_names=[INPUT_NAME],
            output_names=spec.output_names, opset_version=OPSET, dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    if spec.dynamic_size:
        for dim, name in ((2, "height"), (3, "width")):
            model.graph.input[0].type.tensor_type.shape.dim[dim].dim_param = name
        model.graph.ClearField("value_info")
    onnx.checker.check_model(model, full_check=True)
    domains = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if domains or model.functions:
        raise FailedError(f"the ONNX file would need operators of {', '.join(sorted(domains))}; it was not written")
    (folder / "model.onnx").write_bytes(_strip_metadata(model).SerializeToString())
    return ["model.onnx"]


def _strip_metadata(model: Any) -> Any:
    """Remove the exporter's metadata, which contains local file names, and name the nodes after the layers.

    The exporter writes equal weights of several layers, such as those of an ensemble's members, only once.
    """
    graph, names = model.graph, set[str]()
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for node in graph.node:
        if len(node.input) > 1 and node.input[1].endswith(".weight"):
            layer = node.input[1].removesuffix(".weight").removeprefix("network.").removeprefix("model.")
            # A layer that is applied to several inputs, such as a detector's head, has as many nodes.
            numbered = (f"{layer}/{number}" for number in itertools.count(2))
            node.name = next(name for name in itertools.chain([layer], numbered) if name not in names)
            names.add(node.name)
    return model


def write_detector(detector: "ExportableDetector", folder: Path) -> list[str]:
    """Write ``model.onnx``: a uint8 image (channels, h, w) of any size to boxes, scores and labels."""
    onnx = import_optional("onnx", "onnxscript")
    example = torch.zeros(detector.preprocess.channels, 90, 123, dtype=torch.uint8)
    dims = {1: torch.export.Dim("height", min=1, max=2**15), 2: torch.export.Dim("width", min=1, max=2**15)}
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(
            detector, (example,), dynamo=True, dynamic_shapes=(dims,), opset_version=DETECTOR_OPSET, verbose=False,
            input_names=[INPUT_NAME], output_names=["boxes", "scores", "labels"],
        )  # fmt: skip
    assert program is not None
    model = onnx.load_from_string(program.model_proto.SerializeToString())
    model = _strip_metadata(model)
    for key, value in detector.metadata.items():
        model.metadata_props.add(key=key, value=value)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return ["model.onnx"]


def open(paths: Sequence[Path], threads: int | None, _: str) -> Session:
    """Open a file in ONNX Runtime on the CPU."""
    onnxruntime = import_optional("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads or 0, 1, 3
    session = onnxruntime.InferenceSession(paths[0], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: tuple(torch.from_numpy(array) for array in session.run(None, {name: images.numpy()}))


def quantize(folder: Path, inputs: Sequence[Tensor], float_layers: Sequence[str] | None) -> list[str]:
    """Write ``model.int8.onnx`` from ``model.onnx``, with QuantizeLinear and DequantizeLinear around each operator."""
    onnx = import_optional("onnx", "onnxruntime")
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.inputs: Iterator[Tensor] = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            pixels = next(self.inputs, None)
            return None if pixels is None else {INPUT_NAME: pixels.numpy()}

    nodes = onnx.load(folder / "model.onnx").graph.node
    if float_layers is None:
        producer = {output: node.name for node in nodes for output in node.output}
        sources = {node.name: [producer[name] for name in node.input if name in producer] for node in nodes}
        quantized = quantizable_nodes(sources, [node.name for node in nodes if node.op_type == "Conv"])
        excluded = [node.name for node in nodes if node.name not in quantized]
    else:
        excluded = [node.name for node in nodes if layer_of(node.name) in float_layers]
    # It advises preprocessing, which the folded network does not need, through the root logger.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantization.quantize_static(
            folder / "model.onnx", folder / "model.int8.onnx", Reader(), per_channel=True,
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=excluded,
            extra_options={"ActivationSymmetric": False},
        )  # fmt: skip
    finally:
        root.setLevel(level)
    return ["model.int8.onnx"]
