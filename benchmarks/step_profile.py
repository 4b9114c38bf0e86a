"""Where the time of a training step goes, by torch.profiler: the textbook's step and ours, at one size.

Prints a table, and with ``--json`` one JSON document. Run: make bench-step_profile
"""

import argparse
import json
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from textbook import network

BATCH = 128

# Operators, by what they are to a reader; what stands in no row is "other".
KINDS = {
    "convolutions and products, forward": ("mkldnn_convolution", "aten::addmm"),
    "convolutions and products, backward": ("convolution_backward",),
    "matrix products (ours: forward and backward)": ("aten::mm", "aten::bmm", "aten::baddbmm"),
    "maps into tiles and back": ("tiles",),
    "max pooling": ("max_pool2d", "kernel pool"),
    "batch normalisation and ReLU": ("relu", "clamp", "threshold", "norm", "statistics"),
    "concatenation, copies, fills": ("aten::cat", "copy_", "fill_", "zero_"),
    "optimiser": ("sgd", "SGD"),
}


def kind(name: str) -> str:
    """The row of `KINDS` that an operator belongs to."""
    return next((row for row, parts in KINDS.items() if any(part in name for part in parts)), "other")


def textbook_step(size: int) -> Callable[[], None]:
    """One step of the chapter's network in plain PyTorch."""
    net, loss = network(), torch.nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    pixels, labels = torch.rand(BATCH, 1, size, size), torch.randint(10, (BATCH,))

    def step() -> None:
        optimiser.zero_grad()
        loss(net(pixels), labels).backward()
        optimiser.step()

    return step


def our_step(size: int) -> Callable[[], None]:
    """The same functions, our way; each native kernel is shown under its name."""
    import googlenet
    from googlenet.models import native
    from googlenet.models.native import passes, tiles

    call = passes.call

    def named(kernel: str, *arguments: object) -> None:
        with torch.profiler.record_function(f"kernel {kernel}"):
            call(kernel, *arguments)  # type: ignore[arg-type]

    for module in (passes, tiles):
        module.call = named  # type: ignore[assignment]
    net = googlenet.create("googlenet_d2l", 10, 1).train()
    native.enable(net)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    pixels, labels = torch.rand(BATCH, 1, size, size), torch.randint(10, (BATCH,))

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(pixels), labels).backward()
        optimiser.step()

    return step


def milliseconds(step: Callable[[], None], steps: int = 5) -> dict[str, float]:
    """Milliseconds of a step by kind of operator, own time only, after two steps that are not counted."""
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    spent = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in found.key_averages():
        spent[kind(event.key)] += event.self_cpu_time_total / 1e3 / steps
    return {row: round(value, 2) for row, value in spent.items()}


def main() -> None:
    """Profile both and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[28, 96], help="pixels")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [
        {"size": size, "textbook": milliseconds(textbook_step(size)), "ours": milliseconds(our_step(size))}
        for size in args.sizes
    ]
    if args.json:
        print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, indent=2))
        return
    for row in rows:
        print(f"{row['size']} px, batch {BATCH}, ms a step{'textbook':>33}{'ours':>9}")
        for name in [*KINDS, "other"]:
            print(f"  {name:<46}{row['textbook'][name]:>10}{row['ours'][name]:>9}")  # type: ignore[index]


if __name__ == "__main__":
    main()
