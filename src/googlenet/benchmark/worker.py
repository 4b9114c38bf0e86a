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

from .memory import reset_peak_rss, rss_bytes

Call = Callable[[], Any]
# (size in pixels, batch) -> the call to measure.
CallFactory = Callable[[int, int], Call]

# Height and width of the matrices whose product measures the peak speed.
MATMUL_SIZE = 2048


def exported(spec: Mapping[str, Any], threads: int) -> CallFactory:
    """Return calls of an exported file, from uint8 pixels."""
    from ..inference.loading import load_predictor

    model = load_predictor(spec["folder"], spec["engine"], threads)
    return _detector_calls(model.predictor) if model.task == "detection" else _predictor_calls(model.predictor)


def folded(spec: Mapping[str, Any], threads: int) -> CallFactory:
    """Return calls of a checkpoint's folded network in PyTorch, from uint8 pixels."""
    from ..checkpoint.format import read_checkpoint
    from ..inference.folded import FoldedPredictor

    return _predictor_calls(FoldedPredictor(read_checkpoint(Path(spec["checkpoint"])), threads))


def _detector_calls(detector: Any) -> CallFactory:
    def make_call(size: int, batch: int) -> Call:
        images = torch.randint(0, 256, (batch, detector.preprocess.channels, size, size), dtype=torch.uint8)
        return lambda: detector.predict(list(images))

    return make_call


def _predictor_calls(predictor: Any) -> CallFactory:
    def make_call(size: int, batch: int) -> Call:
        images = torch.randint(0, 256, (batch, predictor.preprocess.channels, size, size), dtype=torch.uint8)
        return lambda: predictor.predict(images)

    return make_call


def baseline(spec: Mapping[str, Any], threads: int) -> CallFactory:
    """Return calls of a baseline in PyTorch, from normalized floats."""
    torch.set_num_threads(threads)
    predict = torch.inference_mode()(baseline_model(spec).forward)

    def make_call(size: int, batch: int) -> Call:
        x = torch.randn(batch, spec["channels"], size, size)
        return lambda: predict(x)

    return make_call


def baseline_model(spec: Mapping[str, Any]) -> torch.nn.Module:
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


def onnx_file(spec: Mapping[str, Any], threads: int) -> CallFactory:
    """Return calls of a baseline's ONNX file in ONNX Runtime or OpenVINO, from normalized floats."""

    def make_call(size: int, batch: int) -> Call:
        path = Path(spec["folder"]) / f"{size}x{batch}.onnx"
        x = np.random.default_rng(0).standard_normal((batch, spec["channels"], size, size), dtype=np.float32)
        if spec["engine"] == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 3
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            return lambda: session.run(None, {name: x})
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda: request.infer([x], share_inputs=True)

    return make_call


def matmul(_: Mapping[str, Any], threads: int) -> CallFactory:
    """Return a float32 matrix product, whose speed is close to the processor's peak."""
    torch.set_num_threads(threads)
    left, right = torch.randn(2, MATMUL_SIZE, MATMUL_SIZE)
    return lambda size, batch: lambda: torch.mm(left, right)


CALL_FACTORIES = {kind.__name__: kind for kind in (exported, folded, baseline, onnx_file, matmul)}


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
        calls, cold_start = {}, None
        for case in map(tuple, spec["cases"]):
            calls[case] = make_call(*case)
            calls[case]()
            cold_start = cold_start or time.perf_counter() - start
        for call in calls.values():
            time_calls(call, 0.0)
        print(json.dumps({"cold_start": cold_start}), file=replies, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            seconds = time_calls(calls[tuple(request["case"])], request["seconds"])
            memory = rss_bytes(peak=True) - initial_rss
            print(json.dumps({"seconds": seconds, "memory": memory}), file=replies, flush=True)


if __name__ == "__main__":
    main()
