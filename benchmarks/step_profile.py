"""Profile a training step of this package and of the plain PyTorch baseline with torch.profiler.

Prints a table, and with ``--json`` one JSON document. Run: make bench-step_profile
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from d2l_baseline import build_network

BATCH = 128

# Parts of operator names by row of the table; other operators are counted as "other".
KINDS = {
    "convolution and linear, forward": ("mkldnn_convolution", "aten::addmm"),
    "convolution and linear, backward": ("convolution_backward",),
    "matrix products of the native kernels": ("aten::mm", "aten::bmm", "aten::baddbmm"),
    "Winograd transforms": ("_transform",),
    "max pooling": ("max_pool2d", "kernel max_pool"),
    "batch normalization and ReLU": ("relu", "clamp", "threshold", "norm", "stats"),
    "concatenation, copy, fill": ("aten::cat", "copy_", "fill_", "zero_"),
    "optimizer": ("sgd", "SGD"),
}


def kind_of(name: str) -> str:
    """Return the row of `KINDS` of an operator."""
    return next((row for row, parts in KINDS.items() if any(part in name for part in parts)), "other")


def baseline_step(size: int) -> Callable[[], None]:
    """Return a training step of the chapter's network in plain PyTorch."""
    net, loss = build_network(), torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    pixels, labels = torch.rand(BATCH, 1, size, size), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        loss(net(pixels), labels).backward()
        optimizer.step()

    return step


def googlenet_step(size: int) -> Callable[[], None]:
    """Return a training step of this package with the same functions; each native kernel is recorded by name."""
    import googlenet
    from googlenet import kernels
    from googlenet.kernels import conv_bn_relu, winograd

    call = conv_bn_relu.call

    def recorded_call(kernel: str, *arguments: object) -> None:
        with torch.profiler.record_function(f"kernel {kernel}"):
            call(kernel, *arguments)  # type: ignore[arg-type]

    for module in (conv_bn_relu, winograd):
        module.call = recorded_call  # type: ignore[assignment]
    net = googlenet.create("googlenet_d2l", 10, 1).train()
    kernels.keep_freed_memory()
    kernels.enable_cpu_kernels(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    pixels, labels = torch.rand(BATCH, 1, size, size), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(pixels), labels).backward()
        optimizer.step()

    return step


SIDES = {"baseline": baseline_step, "googlenet": googlenet_step}


def profile_step(step: Callable[[], None], steps: int = 5) -> dict[str, float]:
    """Return the milliseconds per step by kind of operator (self time), after two warm-up steps."""
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    milliseconds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        milliseconds[kind_of(event.key)] += event.self_cpu_time_total / 1e3 / steps
    return {row: round(value, 2) for row, value in milliseconds.items()}


def main() -> None:
    """Profile both sides and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 96], help="image sizes in pixels")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = [
        {"size": size, **{side: profile_step(build(size)) for side, build in SIDES.items()}} for size in args.sizes
    ]
    if args.json:
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, indent=2))
        return
    for row in rows:
        print(f"{row['size']} px, batch {BATCH}, ms per step{'baseline':>32}{'googlenet':>11}")
        for name in [*KINDS, "other"]:
            print(f"  {name:<46}{row['baseline'][name]:>10}{row['googlenet'][name]:>11}")


if __name__ == "__main__":
    main()
