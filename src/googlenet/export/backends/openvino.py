"""OpenVINO's files, made from the ONNX file; quantized by NNCF."""

import contextlib
import logging
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...devices import ISAS_WITHOUT_BFLOAT16, isa_limit
from ..quantize import node_pattern, quantizable_nodes
from ..spec import ExportSpec
from . import Session, import_optional, onnxruntime

if TYPE_CHECKING:
    from ..detector import ExportableDetector

# A shape that was requested this often is compiled separately; how many models are kept, and how many shapes counted.
COMPILE_AFTER_CALLS, MAX_STATIC_SHAPES, MAX_COUNTED_SHAPES = 16, 8, 256
# OpenVINO's capability and hint for each precision.
PRECISIONS = {"float32": ("FP32", "f32"), "bfloat16": ("BF16", "bf16"), "float16": ("FP16", "f16")}

EXAMPLE = """\
network = openvino.Core().compile_model(FILES[0], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run(images: np.ndarray) -> list[np.ndarray]:
    return list(network([images]).values())
"""


def write(spec: ExportSpec, folder: Path) -> list[str]:
    """Write ``model.xml`` and ``model.bin``, weights in float32."""
    return _convert(folder, lambda: onnxruntime.write(spec, folder), model_info(spec))


def write_detector(detector: "ExportableDetector", folder: Path) -> list[str]:
    """Write ``model.xml`` and ``model.bin``, with the inputs and outputs of the ONNX file."""
    return _convert(folder, lambda: onnxruntime.write_detector(detector, folder), {})


def _convert(folder: Path, write_onnx: Callable[[], object], info: Mapping[str, str]) -> list[str]:
    openvino = import_optional("openvino", "onnx", "onnxscript")
    onnx_file = folder / "model.onnx"
    temporary = not onnx_file.exists()
    if temporary:
        write_onnx()
    model = openvino.Core().read_model(onnx_file)
    if info:
        model.get_parameters()[0].set_layout(openvino.Layout("NCHW"))
    for key, value in info.items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    if temporary:
        onnx_file.unlink()
    return ["model.xml", "model.bin"]


def model_info(spec: ExportSpec) -> dict[str, str]:
    """Return what OpenVINO Model API needs to classify an image that OpenCV reads, which has the order BGR.

    It resizes for files of a fixed size only, and separates labels by spaces.
    """
    return {
        "model_type": "Classification",
        "labels": " ".join("_".join(label.split()) or "_" for label in spec.classes),
        "resize_type": "crop" if spec.preprocess.crop_mode == "center" else "standard",
        "reverse_input_channels": str(spec.preprocess.channels == 3),
    }


def precisions() -> list[str]:
    """Return the precisions that this processor has instructions for."""
    if isa_limit() in ISAS_WITHOUT_BFLOAT16:  # OpenVINO reports those that the processor has without the limit
        return ["float32"]
    capabilities = import_optional("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name, (capability, _) in PRECISIONS.items() if capability in capabilities]


def open(paths: Sequence[Path], threads: int | None, precision: str) -> Session:
    """Open a file in OpenVINO on the CPU."""
    openvino = import_optional("openvino")
    core = openvino.Core()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[precision][1]}
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}

    def compile_model(model: Any) -> Any:
        # In a thread of its own: OpenVINO replaces the signal stack of the calling thread, and closing models in
        # another order than they were opened leaves a freed one behind. The next signal would crash the process.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(core.compile_model, model, "CPU", settings).result()

    def compile_static(shape: tuple[int, ...]) -> Any:
        model = core.read_model(paths[0])
        model.reshape(list(shape))
        return compile_model(model)

    models = _StaticModels(compile_model(paths[0]), compile_static)
    thread_local = threading.local()

    def run(images: Tensor) -> tuple[Tensor, ...]:
        model = models.get(tuple(images.shape))
        # Keyed weakly: a model that is no longer kept is freed.
        requests = thread_local.__dict__.setdefault("requests", weakref.WeakKeyDictionary())
        if model not in requests:
            requests[model] = model.create_infer_request()
        outputs = requests[model].infer([images.numpy()], share_inputs=True)
        return tuple(torch.from_numpy(np.array(outputs[index])) for index in range(len(outputs)))

    return run


class _StaticModels:
    """Models compiled for one input shape each, which are up to a tenth faster than `dynamic_model`.

    A shape that was requested often is compiled once by `compile_static`, while other threads continue with
    `dynamic_model`. At most `MAX_STATIC_SHAPES` are kept, those used last.
    """

    def __init__(self, dynamic_model: Any, compile_static: Callable[[tuple[int, ...]], Any]):
        self.dynamic_model, self.compile_static = dynamic_model, compile_static
        self.models: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        self.num_calls: OrderedDict[tuple[int, ...], int] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, shape: tuple[int, ...]) -> Any:
        """Return the model for an input shape."""
        with self.lock:
            if shape in self.models:
                self.models.move_to_end(shape)
                return self.models[shape]
            count = self.num_calls[shape] = self.num_calls.pop(shape, 0) + 1
            if len(self.num_calls) > MAX_COUNTED_SHAPES:
                self.num_calls.popitem(last=False)
            if count != COMPILE_AFTER_CALLS:
                return self.dynamic_model
        model = self.compile_static(shape)
        with self.lock:
            self.models[shape] = model
            if len(self.models) > MAX_STATIC_SHAPES:
                self.models.popitem(last=False)
        return model


def quantize(folder: Path, inputs: Sequence[Tensor], float_layers: Sequence[str] | None) -> list[str]:
    """Write ``model.int8.xml`` from ``model.xml`` with NNCF's fast bias correction."""
    nncf, openvino = import_optional("nncf"), import_optional("openvino")
    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(folder / "model.xml")
    if float_layers is None:
        ignored = nncf.IgnoredScope(names=_detector_nodes_in_float(model), validate=False)
    else:
        patterns = [node_pattern(layer) for layer in float_layers]
        ignored = nncf.IgnoredScope(patterns=patterns, validate=False) if patterns else None
    with contextlib.redirect_stdout(sys.stderr):
        quantized = nncf.quantize(
            model,
            nncf.Dataset(inputs, lambda pixels: pixels.numpy()),
            subset_size=len(inputs),
            fast_bias_correction=True,
            ignored_scope=ignored,
        )
    openvino.save_model(quantized, folder / "model.int8.xml", compress_to_fp16=False)
    return ["model.int8.xml", "model.int8.bin"]


def _detector_nodes_in_float(model: Any) -> list[str]:
    """Return the operations of a detector that stay in float32; see `quantizable_nodes`."""
    nodes = model.get_ordered_ops()
    sources = {
        node.get_friendly_name(): [value.get_node().get_friendly_name() for value in node.input_values()]
        for node in nodes
    }
    convolutions = [node.get_friendly_name() for node in nodes if node.get_type_name() == "Convolution"]
    quantized = quantizable_nodes(sources, convolutions)
    kinds = {"Constant", "Parameter", "Result"}
    floats = (node for node in nodes if node.get_type_name() not in kinds)
    return [name for node in floats if (name := node.get_friendly_name()) not in quantized]
