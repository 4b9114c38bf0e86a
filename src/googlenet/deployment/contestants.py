"""One side of a benchmark, in a process of its own: it opens a network, then answers when it is asked for a time.

Started as ``python -m googlenet.deployment.contestants SPEC``, it prints one JSON line when it is ready and one for
each line that it reads.
"""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

# A call that does what is timed once; made for a size (pixels) and a batch.
Call = Callable[[], Any]
Maker = Callable[[int, int], Call]

# Side of the matrices whose product is the physical limit.
SIDE = 2048


def exported(about: Mapping[str, Any], threads: int) -> Maker:
    """A file of an exported folder, in its engine; raw bytes in."""
    from .engines import open_engine

    engine = open_engine(about["folder"], about["engine"], threads)

    def make(size: int, batch: int) -> Call:
        pixels = torch.randint(0, 256, (batch, about["channels"], size, size), dtype=torch.uint8)
        return lambda: engine(pixels)

    return make


def eager(about: Mapping[str, Any], threads: int) -> Maker:
    """A network in plain PyTorch: ours, fused, from bytes; torchvision's or timm's, from normalised floats."""
    torch.set_num_threads(threads)
    tensors = torch.load(about["tensors"], weights_only=True) if about["tensors"] else None
    if about["library"] == "googlenet":
        from ..models.catalogue import create
        from ..models.fusion import fuse
        from .peers import Pixels

        network = create(**about["arguments"]).eval()
        network.load_state_dict(tensors or {})
        model: torch.nn.Module = fuse(network, Pixels(tuple(about["mean"]), tuple(about["std"])))
        model = model.to(memory_format=torch.channels_last)
    else:
        from .peers import peer_network

        model = peer_network(about["library"], about["name"], about["classes"], about["channels"], tensors)

    def make(size: int, batch: int) -> Call:
        pixels = torch.randint(0, 256, (batch, about["channels"], size, size), dtype=torch.uint8)
        x = pixels if about["library"] == "googlenet" else pixels.float() / 127.5 - 1

        def call() -> None:
            with torch.inference_mode():
                model(x)

        return call

    return make


def plain_file(about: Mapping[str, Any], threads: int) -> Maker:
    """A peer's ONNX file for each size and batch, in ONNX Runtime or OpenVINO; normalised floats in, float32."""

    def make(size: int, batch: int) -> Call:
        path = Path(about["folder"]) / f"{size}x{batch}.onnx"
        x = np.random.default_rng(0).standard_normal((batch, about["channels"], size, size), dtype=np.float32)
        if about["engine"] == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 3
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            return lambda: session.run(None, {name: x})
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
        }  # fmt: skip
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda: request.infer([x], share_inputs=True)

    return make


def product(about: Mapping[str, Any], threads: int) -> Maker:
    """A matrix product in float32, which nothing that multiplies as often can be much quicker than."""
    torch.set_num_threads(threads)
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return lambda size, batch: lambda: torch.mm(left, right)


KINDS: dict[str, Callable[[Mapping[str, Any], int], Maker]] = {
    "exported": exported,
    "eager": eager,
    "file": plain_file,
    "product": product,
}


def seconds(call: Call, at_least: float) -> list[float]:
    """Of single calls, for as long as `at_least` (seconds) takes and three calls at least."""
    found: list[float] = []
    end = time.perf_counter() + at_least
    while len(found) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def resident(peak: bool) -> int:
    """Bytes of memory, now or at the `peak` since `forget_peak`; beside Linux the peak since the start."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        name = "VmHWM:" if peak else "VmRSS:"
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Count the peak from now on, where the system can: imports take much for a moment."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Serve the orders of `benchmark`."""
    about = json.loads(sys.argv[1])
    threads = about["threads"]
    orders = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        forget_peak()
        before = resident(peak=False)
        started = time.perf_counter()
        maker = KINDS[about["kind"]](about, threads)
        calls = {}
        first = None
        for size, batch in about["cases"]:
            calls[size, batch] = maker(size, batch)
            calls[size, batch]()
            first = time.perf_counter() - started if first is None else first
        for call in calls.values():
            seconds(call, 0.0)
        print(json.dumps({"first": first}), file=orders, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            found = seconds(calls[order["size"], order["batch"]], order["seconds"])
            print(json.dumps({"seconds": found, "memory": resident(peak=True) - before}), file=orders, flush=True)


if __name__ == "__main__":
    main()
