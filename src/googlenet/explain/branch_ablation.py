"""The contribution of each parallel branch of a block: its share of the activation, and the accuracy without it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models.blocks import ConcatBranches, Residual
from ..models.googlenet import Inception
from ..models.network import Network
from . import plotting
from .context import AnalysisResult, ExplainContext, OutputImage, get_layer, iter_layer_outputs


class BranchRow(NamedTuple):
    """A branch of a block, with its number of output channels.

    `share` (0..1) is that of the block's absolute activations before concatenation; `top1` the network's accuracy while
    the branch outputs zeros, `top1_drop` the difference from the full network, with its standard error over images.
    """

    block: str
    branch: str
    channels: int
    share: float
    top1: float
    top1_drop: float
    standard_error: float


class BranchContributions(NamedTuple):
    """The `top1` of the unchanged network on `images` images, and a row for every branch of every block."""

    top1: float
    images: int
    rows: list[BranchRow]


def branch_outputs(layer: nn.Module) -> Mapping[str, nn.Module]:
    """Return the last module of each parallel branch of a block by the branch's name; empty for other layers.

    Nested branches count as one. For a residual block these are the branches next to the shortcut.
    """
    match layer:
        case Inception():
            return {
                "conv1x1": layer.conv1x1,
                "conv3x3": layer.conv3x3,
                "conv5x5": layer.conv5x5,
                "pool": layer.pool_proj,
            }
        case ConcatBranches():
            return dict(layer.named_children())
        case Residual():
            return dict(layer.paths.named_children())
        case _:
            return {}


@contextmanager
def _hook_outputs(hooks: Iterable[tuple[nn.Module, Callable[[Tensor], Tensor | None]]]) -> Iterator[None]:
    """Call a function with each output of a module inside the context; a tensor that it returns replaces the output."""
    handles = [module.register_forward_hook(lambda _, __, out, hook=hook: hook(out)) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def zero_output(module: nn.Module) -> AbstractContextManager[None]:
    """Replace the output of `module` by zeros inside the context."""
    return _hook_outputs([(module, torch.zeros_like)])


def _store_outputs(modules: Mapping[str, nn.Module], outputs: dict[str, Tensor]) -> AbstractContextManager[None]:
    """Store the last output of each module in `outputs` inside the context."""
    return _hook_outputs((module, partial(outputs.__setitem__, name)) for name, module in modules.items())


def branch_widths(model: Network, layer: str, pixels: Tensor) -> dict[str, int]:
    """Return the output channels of each branch of `layer`, in the order of concatenation.

    Empty if the layer does not concatenate branches. `pixels` are any normalized images (n, channels, height, width).
    """
    branches, outputs = branch_outputs(get_layer(model, layer)), dict[str, Tensor]()
    with torch.inference_mode(), _store_outputs(branches, outputs):
        *_, (_, out) = iter_layer_outputs(model, pixels, until=layer)
    widths = {branch: outputs[branch].shape[1] for branch in branches}
    return widths if sum(widths.values()) == out.shape[1] else {}


def ablate_branches(model: Network, batches: Iterable[tuple[Tensor, Tensor]]) -> BranchContributions:
    """Measure every branch on batches of (pixels, labels); the network is in evaluation mode.

    The layers before a block are computed once for all its branches. ValueError for a network without branches.
    """
    layers = list(model.trunk.named_children())
    blocks = {name: branches for name, layer in layers if (branches := branch_outputs(layer))}
    if not blocks:
        raise ValueError("no layer of this network has parallel branches")
    keys = [(block, branch) for block, branches in blocks.items() for branch in branches]
    sums, widths = dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 0)
    correct: list[Tensor] = []
    ablated: dict[tuple[str, str], list[Tensor]] = {key: [] for key in keys}
    with torch.inference_mode():
        for pixels, labels in batches:
            x, outputs = pixels, dict[str, Tensor]()
            for index, (name, layer) in enumerate(layers):
                branches = blocks.get(name, {})
                for branch, module in branches.items():
                    with zero_output(module):
                        ablated[name, branch].append(_correct(model, x, layers[index:], labels))
                with _store_outputs(branches, outputs):
                    x = layer(x)
                for branch in branches:
                    sums[name, branch] += float(outputs[branch].cpu().abs().sum(dtype=torch.float64))
                    widths[name, branch] = outputs[branch].shape[1]
            correct.append(_correct(model, x, [], labels))
    full = torch.cat(correct).double()
    totals = {block: sum(sums[block, branch] for branch in branches) for block, branches in blocks.items()}
    rows = []
    for key in keys:
        top1s = torch.cat(ablated[key]).double()
        # Per image: 1 if only the full network is correct, -1 if only the ablated one is.
        drop = full - top1s
        error = drop.std(correction=0).item() / len(drop) ** 0.5
        share = sums[key] / (totals[key[0]] or 1.0)
        rows.append(BranchRow(*key, widths[key], share, top1s.mean().item(), drop.mean().item(), error))
    return BranchContributions(full.mean().item(), len(full), rows)


def _correct(model: Network, x: Tensor, layers: Iterable[tuple[str, nn.Module]], labels: Tensor) -> Tensor:
    """Return which images are classified correctly if `layers` are applied to the feature map `x`."""
    for _, layer in layers:
        x = layer(x)
    return (model.forward_head(x).argmax(1) == labels).cpu()


def run(context: ExplainContext) -> AnalysisResult:
    """Ablate every branch of every block."""
    _, name, split = context.data
    contributions = ablate_branches(context.model, context.batches(split))
    lines = [
        f"{name}, {contributions.images:,} images: top-1 {contributions.top1:.4f} with all branches",
        f"{'block':<16}{'branch':<12}{'channels':>9}{'share':>8}{'drop':>9}{'(se)':>9}",
    ]
    for r in contributions.rows:
        columns = f"{r.block:<16}{r.branch:<12}{r.channels:>9}{r.share:>8.3f}"
        lines.append(f"{columns}{r.top1_drop:>9.4f}{r.standard_error:>9.4f}")
    largest = sorted(contributions.rows, key=lambda row: -row.top1_drop)[:3]
    lines.append("largest drops: " + ", ".join(f"{r.block} {r.branch} ({r.top1_drop:.3f})" for r in largest))
    document = {"split": name, **contributions._asdict(), "rows": [row._asdict() for row in contributions.rows]}
    png = plotting.draw_branches(contributions)
    image = OutputImage("branches.png", png, "The share of each branch in the activation, and the drop without it.")
    return AnalysisResult("Contribution of each branch", document, [image], lines)
