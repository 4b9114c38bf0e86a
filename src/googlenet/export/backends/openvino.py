"""OpenVINO's files, made from the ONNX file; quantized by NNCF."""

import contextlib
import logging
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..quantize import node_pattern
from ..spec import ExportSpec
from . import Session, import_optional, onnxruntime

# A shape that was requested this often is compiled separately, which is up to a tenth faster; and how many at most.
COMPILE_AFTER_CALLS, MAX_STATIC_SHAPES = 16, 8

EXAMPLE = """\
network = openvino.Core().compile_model(FILES[0], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run(images: np.ndarray) -> list[np.ndarray]:
    return [network([images])[0]]
"""


def write(spec: ExportSpec, folder: Path) -> list[str]:
    """Write ``model.xml`` and ``model.bin``, weights in float32."""
    openvino = import_optional("openvino", "onnx", "onnxscript")
    onnx_file = folder / "model.onnx"
    temporary = not onnx_file.exists()
    if temporary:
        onnxruntime.write(spec, folder)
    model = openvino.Core().read_model(onnx_file)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    if temporary:
        onnx_file.unlink()
    return ["model.xml", "model.bin"]


def open(paths: Sequence[Path], threads: int | None) -> Session:
    """Open a file in OpenVINO on the CPU, computing in float32 even if the processor supports bfloat16."""
    openvino = import_optional("openvino")
    core = openvino.Core()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}

    def compile_model(model: Any) -> Any:
        # In a thread of its own: OpenVINO replaces the signal stack of the calling thread, and closing models in
        # another order than they were opened leaves a freed one behind. The next signal would crash the process.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(core.compile_model, model, "CPU", settings).result()

    dynamic_model = compile_model(paths[0])
    num_calls: Counter[tuple[int, ...]] = Counter()
    static_models: dict[tuple[int, ...], Any] = {}
    lock, thread_local = threading.Lock(), threading.local()

    def compiled_for(shape: tuple[int, ...]) -> Any:
        with lock:
            num_calls[shape] += 1
            due = num_calls[shape] == COMPILE_AFTER_CALLS and len(static_models) < MAX_STATIC_SHAPES
            if due and shape not in static_models:
                model = core.read_model(paths[0])
                model.reshape(list(shape))
                static_models[shape] = compile_model(model)
            return static_models.get(shape, dynamic_model)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        model = compiled_for(tuple(images.shape))
        requests = thread_local.__dict__.setdefault("requests", {})
        if model not in requests:
            requests[model] = model.create_infer_request()
        outputs = requests[model].infer([images.numpy()], share_inputs=True)
        return (torch.from_numpy(np.array(outputs[0])),)

    return run


def quantize(folder: Path, images: Tensor, float_layers: Sequence[str]) -> list[str]:
    """Write ``model.int8.xml`` from ``model.xml`` with NNCF's fast bias correction."""
    nncf, openvino = import_optional("nncf"), import_optional("openvino")
    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(folder / "model.xml")
    patterns = [node_pattern(layer) for layer in float_layers]
    with contextlib.redirect_stdout(sys.stderr):
        quantized = nncf.quantize(
            model,
            nncf.Dataset([image[np.newaxis] for image in images.numpy()]),
            subset_size=len(images),
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(patterns=patterns, validate=False) if patterns else None,
        )
    openvino.save_model(quantized, folder / "model.int8.xml", compress_to_fp16=False)
    return ["model.int8.xml", "model.int8.bin"]
