"""The process that measures one target of a benchmark: ``python -m googlenet.benchmark.worker SPEC``.

It prints one JSON line when it is ready, and one for each request on standard input. `SPEC` is JSON: `kind` (a key of
`CALL_FACTORIES`), `threads`, `cases`, and options.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..devices import ISAS_WITHOUT_BFLOAT16, isa_limit
from .memory import reset_peak_rss, rss_bytes

Call = Callable[[], Any]
# (size in pixels, batch) -> the call to measure, and the precision in which it computes.
CallFactory = Callable[[int, int], tuple[Call, str]]

# Height and width of the matrices whose product measures the peak speed.
MATMUL_SIZE = 2048
PEER_ENGINES = ("torch", "torch compiled", "onnxruntime", "openvino")


def open_predictor(spec: Mapping[str, Any], threads: int | None) -> Any:
    """Open the predictor of a network of this package: ``path`` in ``engine``, with all cores by default."""
    from ..inference.loading import load_predictor

    return load_predictor(spec["path"], spec["engine"], threads, size=spec.get("size")).predictor


def model(spec: Mapping[str, Any], threads: int | None) -> CallFactory:
    """Return calls of a network of this package, from uint8 pixels."""
    predictor = open_predictor(spec, threads)

    def make_call(size: int, batch: int) -> tuple[Call, str]:
        images = torch.randint(0, 256, (batch, predictor.preprocess.channels, size, size), dtype=torch.uint8)
        # A detector takes images of any size.
        inputs = images if hasattr(predictor, "min_size") else list(images)
        return lambda: predictor.predict(inputs), f"{predictor.name} {predictor.precision}"

    return make_call


def peer(spec: Mapping[str, Any], threads: int | None) -> CallFactory:
    """Return calls of a network of another library, from normalized floats.

    Without `threads` everything has the default settings of the library; with it, the precision is float32.
    """
    if spec["engine"] in ("onnxruntime", "openvino"):
        return {"onnxruntime": _onnxruntime_calls, "openvino": _openvino_calls}[spec["engine"]](spec, threads)
    if threads:
        torch.set_num_threads(threads)
    network: Any = peer_model(spec)
    if spec["engine"] == "torch compiled":
        network = torch.compile(network)
    predict = torch.inference_mode()(network)

    def make_call(size: int, batch: int) -> tuple[Call, str]:
        x = torch.randn(batch, spec["channels"], size, size)
        return lambda: predict(x), "float32"

    return make_call


def peer_model(spec: Mapping[str, Any]) -> torch.nn.Module:
    """Build a network of torchvision or timm in evaluation mode, as those libraries document.

    `spec` has its `library`, `name`, `num_classes`, `channels`, and `weights`: a file, or None for initial weights.
    torchvision's GoogLeNet takes three channels; for another number its first convolution is replaced.
    """
    torch.manual_seed(0)
    if spec["library"] == "torchvision":
        from torchvision import models

        options: dict[str, Any] = {"num_classes": spec["num_classes"], "aux_logits": False, "init_weights": False}
        model: Any = models.get_model(spec["name"], weights=None, **options)
        if spec["channels"] != 3:
            model.conv1.conv = torch.nn.Conv2d(spec["channels"], 64, 7, 2, 3, bias=False)
    else:
        import timm

        model = timm.create_model(spec["name"], num_classes=spec["num_classes"], in_chans=spec["channels"])
    if spec["weights"]:
        model.load_state_dict(torch.load(spec["weights"], weights_only=True))
    return cast(torch.nn.Module, model.eval())


def _onnxruntime_calls(spec: Mapping[str, Any], threads: int | None) -> CallFactory:
    import onnxruntime

    def make_call(size: int, batch: int) -> tuple[Call, str]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            _onnx_file(spec, size, batch), options, providers=["CPUExecutionProvider"]
        )
        name, x = session.get_inputs()[0].name, _random_input(spec, size, batch)
        return lambda: session.run(None, {name: x}), "float32"

    return make_call


def _openvino_calls(spec: Mapping[str, Any], threads: int | None) -> CallFactory:
    import openvino

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    # The default precision is that of the processor even if its instructions are limited, and then it fails.
    settings |= {"INFERENCE_PRECISION_HINT": "f32"} if threads or isa_limit() in ISAS_WITHOUT_BFLOAT16 else {}

    def make_call(size: int, batch: int) -> tuple[Call, str]:
        network = openvino.Core().compile_model(_onnx_file(spec, size, batch), "CPU", settings)
        request, x = network.create_infer_request(), _random_input(spec, size, batch)
        precision = network.get_property("INFERENCE_PRECISION_HINT").to_string()
        return lambda: request.infer([x], share_inputs=True), OPENVINO_TYPES.get(precision, precision)

    return make_call


OPENVINO_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def _onnx_file(spec: Mapping[str, Any], size: int, batch: int) -> Path:
    return Path(spec["folder"]) / f"{size}x{batch}.onnx"


def _random_input(spec: Mapping[str, Any], size: int, batch: int) -> Any:
    return np.random.default_rng(0).standard_normal((batch, spec["channels"], size, size), dtype=np.float32)


def matmul(_: Mapping[str, Any], threads: int | None) -> CallFactory:
    """Return a float32 matrix product, whose speed is close to the processor's peak."""
    if threads:
        torch.set_num_threads(threads)
    left, right = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE)
    return lambda size, batch: (lambda: torch.mm(left, right), "float32")


CALL_FACTORIES = {kind.__name__: kind for kind in (model, peer, matmul)}


def time_calls(call: Call, min_seconds: float) -> list[float]:
    """Measure single calls, in seconds, for `min_seconds` and at least three times."""
    seconds, end = list[float](), time.perf_counter() + min_seconds
    while len(seconds) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Open the target, then serve requests until standard input is closed."""
    spec = json.loads(sys.argv[1])
    replies = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        reset_peak_rss()
        initial_rss = rss_bytes()
        start = time.perf_counter()
        make_call = CALL_FACTORIES[spec["kind"]](spec, spec["threads"])
        calls, precision, cold_start = {}, "", None
        for case in map(tuple, spec["cases"]):
            calls[case], precision = make_call(*case)
            calls[case]()
            cold_start = cold_start or time.perf_counter() - start
        for call in calls.values():
            time_calls(call, 0.0)
        print(json.dumps({"cold_start": cold_start, "precision": precision}), file=replies, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            seconds = time_calls(calls[tuple(request["case"])], request["seconds"])
            memory = rss_bytes(peak=True) - initial_rss
            print(json.dumps({"seconds": seconds, "memory": memory}), file=replies, flush=True)


if __name__ == "__main__":
    main()
