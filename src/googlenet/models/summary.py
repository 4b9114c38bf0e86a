"""Count a network layer by layer: output shapes, parameters, multiply-adds and receptive fields.

The network runs on tensors without storage: this needs no arithmetic and works for any structure.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .layers import ConvNormAct
from .network import Network


class LayerSummary(NamedTuple):
    """One layer. `receptive_field` is in input pixels, the larger of height and width."""

    name: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int


class Summary(NamedTuple):
    """The layers, the output shapes of the stages as "Dive into Deep Learning" groups them, and totals."""

    layers: list[LayerSummary]
    stages: list[tuple[str, tuple[int, ...]]]
    parameters: int
    macs: int

    @property
    def inference_macs(self) -> int:
        """Return the multiply-adds without the auxiliary heads, which predictions do not use."""
        return sum(layer.macs for layer in self.layers if not layer.name.startswith("aux_"))


class _Counter(TorchFunctionMode):
    """Add up the multiply-adds of every call, and propagate (receptive field, stride in pixels) through tensors."""

    def __init__(self) -> None:
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, Tensor):
            return out
        name = getattr(func, "__name__", "")
        inputs = args[0] if args and isinstance(args[0], list | tuple) else args
        fields = [t.geometry for t in inputs if isinstance(t, Tensor) and hasattr(t, "geometry")]
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
            # Each output pixel averages a window of this size, rounded up.
            window = -(-max(args[0].shape[-2:]) // max(out.shape[-2:]))
            field, jump = field + (window - 1) * jump, jump * window
        elif name == "linear":
            self.macs += out.numel() * args[0].shape[-1]
        out.geometry = (field, jump)  # type: ignore[attr-defined]
        return out


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def summary(model: Network, size: int) -> Summary:
    """Count `model` for one image of `size` x `size` pixels, with its auxiliary heads.

    Raises ValueError for a size smaller than the network's minimum.
    """
    network = copy.deepcopy(model).to("meta").eval()
    counter = _Counter()
    layers: list[LayerSummary] = []

    def add_hooks(name: str, module: nn.Module) -> None:
        before = 0

        def pre_hook(*_: Any) -> None:
            nonlocal before
            before = counter.macs

        def hook(module: nn.Module, _: Any, out: Tensor) -> None:
            parameters = sum(p.numel() for p in module.parameters())
            field: int = out.geometry[0]  # type: ignore[attr-defined]
            layers.append(LayerSummary(name, tuple(out.shape), parameters, counter.macs - before, field))

        module.register_forward_pre_hook(pre_hook)
        module.register_forward_hook(hook)

    for name, layer in network.trunk.named_children():
        add_hooks(name, layer)
    for name, head in network.aux_heads.items():
        add_hooks(f"aux_{name}", head)
    add_hooks("classifier", network.classifier)

    image = torch.empty(1, network.in_channels, size, size, device="meta")
    image.geometry = (1, 1)  # type: ignore[attr-defined]
    with torch.no_grad(), counter:
        network.forward_aux(image)
    parameters = sum(p.numel() for p in network.parameters())
    return Summary(layers, _stages(layers, network, size), parameters, counter.macs)


def _stages(layers: list[LayerSummary], network: Network, size: int) -> list[tuple[str, tuple[int, ...]]]:
    """Return the output shapes of the stages: a stage ends with each strided pool, the last with global pooling.

    In the later models a block with a strided pool in one of its branches ends a stage too.
    """
    outputs = {layer.name: layer.output for layer in layers}
    shapes = []
    for name, layer in network.trunk.named_children():
        output = outputs[name]
        is_reduction = output[-1] < 0.75 * size and not isinstance(layer, ConvNormAct)
        if name.startswith("pool") or is_reduction:
            shapes.append(output)
        size = output[-1]
    shapes.append(output[:2])
    stages = [(f"stage{number}", output) for number, output in enumerate(shapes, start=1)]
    return [*stages, ("classifier", outputs["classifier"])]


def alexnet_parameters(num_classes: int) -> int:
    """Count the parameters of torchvision's AlexNet, for comparison."""
    from torchvision.models import alexnet

    with torch.device("meta"):
        return sum(p.numel() for p in alexnet(num_classes=num_classes).parameters())
