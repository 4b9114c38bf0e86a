"""Count a network: output shapes, parameters, multiply-adds and receptive fields, layer by layer.

Everything is counted by running the network on tensors without storage, so it costs no arithmetic and holds
for any network, whatever its structure.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .layers import ConvUnit
from .network import Network


class Row(NamedTuple):
    """One layer of the table. `receptive_field` is in input pixels, the larger of height and width."""

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int


class Summary(NamedTuple):
    """A counted network: `rows` by layer, `stages` as the chapter groups them, totals without repetition."""

    rows: list[Row]
    stages: list[tuple[str, tuple[int, ...]]]
    parameters: int
    macs: int


class _Geometry(TorchFunctionMode):
    """Follows every call: adds up multiply-adds, and hands (receptive field, jump) from tensor to tensor."""

    def __init__(self) -> None:
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, Tensor):
            return out
        name = getattr(func, "__name__", "")
        sources = args[0] if args and isinstance(args[0], list | tuple) else args
        fields = [t.geometry for t in sources if isinstance(t, Tensor) and hasattr(t, "geometry")]
        if not fields:
            return out
        field, jump = max(fields)
        if name == "conv2d":
            weight, stride = args[1], args[3]
            self.macs += out.numel() * weight[0].numel()
            field, jump = field + (max(weight.shape[-2:]) - 1) * jump, jump * _first(stride)
        elif name in ("max_pool2d", "avg_pool2d"):
            kernel, stride = _first(args[1]), _first(args[2] if len(args) > 2 else (kwargs or {})["stride"])
            field, jump = field + (kernel - 1) * jump, jump * stride
        elif name == "adaptive_avg_pool2d":
            # Each output averages its share of the map: the window grows by the share's width.
            share = -(-max(args[0].shape[-2:]) // max(out.shape[-2:]))
            field, jump = field + (share - 1) * jump, jump * share
        elif name == "linear":
            self.macs += out.numel() * args[0].shape[-1]
        out.geometry = (field, jump)  # type: ignore[attr-defined]
        return out


def _first(number: int | tuple[int, ...]) -> int:
    return number if isinstance(number, int) else number[0]


def summarise(model: Network, size: int) -> Summary:
    """Count `model` on one picture of `size` x `size` pixels, with its auxiliary heads where it has them.

    Raises ValueError for a size under the network's minimum.
    """
    network = copy.deepcopy(model).to("meta").eval()
    geometry = _Geometry()
    rows: list[Row] = []

    def count(name: str, module: nn.Module) -> None:
        before = 0

        def enter(*_: Any) -> None:
            nonlocal before
            before = geometry.macs

        def leave(module: nn.Module, _: Any, out: Tensor) -> None:
            parameters = sum(p.numel() for p in module.parameters())
            field: int = out.geometry[0]  # type: ignore[attr-defined]
            rows.append(Row(name, tuple(out.shape), parameters, geometry.macs - before, field))

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    for name, layer in network.trunk.named_children():
        count(name, layer)
    for name, head in network.aux_heads.items():
        count(f"aux_{name}", head)
    count("classifier", network.classifier)

    picture = torch.empty(1, network.in_channels, size, size, device="meta")
    picture.geometry = (1, 1)  # type: ignore[attr-defined]
    with torch.no_grad(), geometry:
        network.forward_aux(picture)
    return Summary(rows, _stages(rows, network, size), sum(p.numel() for p in network.parameters()), geometry.macs)


def _stages(rows: list[Row], network: Network, size: int) -> list[tuple[str, tuple[int, ...]]]:
    """The chapter's grouping: a stage ends with each strided pool, the last with global average pooling.

    In the later members some pools stand beside convolutions in a block; a block that halves the map ends a stage
    too.
    """
    outputs = {row.name: row.output for row in rows}
    ends, side = [], size
    for name, layer in network.trunk.named_children():
        output = outputs[name]
        halves = output[-1] < 0.75 * side and not isinstance(layer, ConvUnit)
        if name.startswith("pool") or halves:
            ends.append(output)
        side = output[-1]
    ends.append(output[:2])
    stages = [(f"stage{number}", output) for number, output in enumerate(ends, start=1)]
    return [*stages, ("classifier", outputs["classifier"])]


def alexnet_parameters(num_classes: int) -> int:
    """Counted parameters of AlexNet (torchvision's, the one-column network), for comparison."""
    from torchvision.models import alexnet

    with torch.device("meta"):
        return sum(p.numel() for p in alexnet(num_classes=num_classes).parameters())
