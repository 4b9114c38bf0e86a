"""A trained network as it is deployed: the same function of raw pixels, in fewer and simpler layers.

Batch normalisation is folded into the convolution before it, the sibling 1x1 convolutions of a block are one
convolution whose output is split, a residual block's scale is in its last weights, and the pixels' normalisation is
in the first convolution. Weights are folded in double precision.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, TypeGuard, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ensemble import Ensemble, average_logits, networks_of
from .googlenet import Inception
from .layers import ConvUnit, pyramid_pool
from .network import Network, check_input
from .paths import Parallel, Residual


class Normalisation(Protocol):
    """What is done to a pixel in 0..255: (x / 255 - mean) / std, per channel. `Preprocess` is one."""

    @property
    def mean(self) -> tuple[float, ...]:
        """In units of the full range, one number per channel."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Likewise, positive."""
        ...


class ConvReLU(nn.Conv2d):
    """Convolution with a bias, and ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> (batch, out_channels, h', w')."""
        return F.relu(super().forward(x), inplace=True)


class FusedBlock(nn.Module):
    """Paths side by side; those that begin with a 1x1 convolution share one, whose output is split among them.

    `widths` are the channels of the shares, in the order of the paths; 0 for a path with a beginning of its own.
    """

    def __init__(self, shared: ConvReLU | None, widths: Sequence[int], paths: Sequence[nn.Module]):
        super().__init__()
        self.shared = shared
        self.widths = tuple(widths)
        self.paths = nn.ModuleList(paths)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, c, h, w) -> (batch, sum of the paths' channels, h', w')."""
        shares = iter(() if self.shared is None else self.shared(x).split([w for w in self.widths if w], dim=1))
        pairs = zip(self.widths, self.paths, strict=True)
        return torch.cat([path(next(shares) if width else x) for width, path in pairs], dim=1)


class FusedResidual(nn.Module):
    """Paths, joined, a 1x1 convolution that has the scale in it, the sum with the input."""

    def __init__(self, paths: nn.Module, expand: nn.Conv2d, relu: bool):
        super().__init__()
        self.paths, self.expand, self.relu = paths, expand, relu

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the same shape."""
        out = x + self.expand(self.paths(x))
        return F.relu(out) if self.relu else out


class Fused(nn.Module):
    """A network that takes raw pixels. `fuse` makes it; `num_classes`, `in_channels`, `min_size` are the network's.

    `offset` is what is subtracted from the pixels, (1, channels, 1, 1), where the first convolution pads its input:
    its zeros must be the mean pixel. A first convolution without padding has the mean in its bias, and `offset` is
    None.
    """

    def __init__(self, trunk: nn.Sequential, classifier: nn.Linear, offset: Tensor | None, like: Network):
        super().__init__()
        self.trunk, self.classifier = trunk, classifier
        self.offset: Tensor | None
        self.register_buffer("offset", offset)
        self.pyramid = like.pyramid
        self.num_classes, self.in_channels, self.min_size = like.num_classes, like.in_channels, like.min_size

    def forward(self, pixels: Tensor) -> Tensor:
        """Raw pixels 0..255, uint8 or float (n, channels, h, w) -> logits (n, classes).

        ValueError for another number of channels, and for a picture under `min_size`.
        """
        x = pixels.to(self.classifier.weight.dtype)
        check_input(x, self.in_channels, self.min_size)
        if self.offset is not None:
            x = x - self.offset
        logits: Tensor = self.classifier(pyramid_pool(self.trunk(x), self.pyramid))
        return logits


class FusedEnsemble(nn.Module):
    """Several `Fused` networks that answer as one. `pyramid` is one of a member whose pooling fixes the size."""

    def __init__(self, networks: Sequence[Fused]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        first = networks[0]
        self.num_classes, self.in_channels = first.num_classes, first.in_channels
        self.min_size = max(network.min_size for network in networks)
        self.pyramid = max((network.pyramid for network in networks), key=max)

    def forward(self, pixels: Tensor) -> Tensor:
        """Raw pixels 0..255 (n, channels, h, w) -> logarithms of the mean probabilities (n, classes)."""
        return average_logits([network(pixels) for network in self.networks], torch.float32)


@overload
def fuse(model: Network, preprocess: Normalisation, *, merge: bool = True) -> Fused: ...
@overload
def fuse(model: Network | Ensemble, preprocess: Normalisation, *, merge: bool = True) -> Fused | FusedEnsemble: ...
def fuse(model: Network | Ensemble, preprocess: Normalisation, *, merge: bool = True) -> Fused | FusedEnsemble:
    """`model` with the normalisation of `preprocess` inside: raw pixels to logits, in evaluation mode.

    The result computes what ``model(preprocess.normalise(pixels))`` does, to 1e-4 in the logits (float32 rounds
    differently; the tests hold every member to it), with 8-bit or float pixels in 0..255 in the channel order of
    `preprocess`. With ``merge=False`` sibling convolutions stay apart, for engines that would copy to split their
    output. An ensemble's members are fused one by one. Auxiliary heads, which answer nothing in use, are left out.
    `model` is not changed and shares no memory with the result. ValueError where the network has no classifier or
    other channels than `preprocess`.
    """
    if isinstance(model, Ensemble):
        return FusedEnsemble([fuse(network, preprocess, merge=merge) for network in networks_of(model)])
    if not isinstance(model.classifier, nn.Linear) or not model.pooled:
        raise ValueError("a network without its classifier cannot be fused; give it one with reset_head")
    if len(preprocess.mean) != model.in_channels:
        raise ValueError(f"the network takes {model.in_channels} channels, its pixels have {len(preprocess.mean)}")
    like = model.classifier.weight
    with torch.no_grad():
        trunk = nn.Sequential(
            OrderedDict((name, _fused(layer, merge)) for name, layer in model.trunk.named_children())
        )
        offset = _fold_normalisation(trunk[0], preprocess)
        fused = Fused(trunk, copy.deepcopy(model.classifier), offset, model)
    return fused.to(like.device, like.dtype).requires_grad_(False).eval()


def _fused(layer: nn.Module, merge: bool) -> nn.Module:
    """One layer of a trunk; what has no weights is copied."""
    match layer:
        case ConvUnit():
            return conv_relu(*folded(layer), layer.conv)
        case Inception():
            return _block(
                (
                    (layer.conv1x1,),
                    (layer.reduce3x3, layer.conv3x3),
                    (layer.reduce5x5, layer.conv5x5),
                    (layer.pool, layer.pool_proj),
                ),
                merge,
            )
        case Parallel():
            return _block([tuple(path.children()) for path in layer.children()], merge)
        case Residual():
            weight, bias = layer.expand.weight.double(), layer.expand.bias
            assert bias is not None
            expand = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
            expand.weight.copy_(weight * layer.scale)
            expand.bias.copy_(bias.double() * layer.scale)  # type: ignore[union-attr]
            return FusedResidual(_fused(layer.paths, merge), expand, layer.relu)
        case _:
            return copy.deepcopy(layer)


def _block(paths: Sequence[tuple[nn.Module, ...]], merge: bool) -> FusedBlock:
    firsts = [path[0] for path in paths]
    siblings = [first for first in firsts if _is_pointwise(first)]
    if not merge or len(siblings) < 2:
        return FusedBlock(None, [0] * len(paths), [_sequence(path, merge) for path in paths])
    weight, bias = (torch.cat(tensors) for tensors in zip(*map(folded, siblings), strict=True))
    widths = [first.conv.out_channels if _is_pointwise(first) else 0 for first in firsts]
    rests = [_sequence(path[1:] if width else path, merge) for path, width in zip(paths, widths, strict=True)]
    return FusedBlock(conv_relu(weight, bias, siblings[0].conv), widths, rests)


def _sequence(layers: Sequence[nn.Module], merge: bool) -> nn.Module:
    fused = [_fused(layer, merge) for layer in layers]
    return fused[0] if len(fused) == 1 else nn.Sequential(*fused)


def _is_pointwise(layer: nn.Module) -> TypeGuard[ConvUnit]:
    """Whether `layer` is a 1x1 convolution of stride 1, and so may be merged with its siblings."""
    return isinstance(layer, ConvUnit) and layer.conv.kernel_size == (1, 1) and layer.conv.stride == (1, 1)


def folded(unit: ConvUnit) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of the convolution that computes what `unit` does before its ReLU."""
    weight = unit.conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if unit.conv.bias is None else unit.conv.bias.detach().double()
    norm = unit.norm
    if isinstance(norm, nn.Identity):
        return weight, bias
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"a {type(norm).__name__} cannot be folded into a convolution")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = norm.bias.detach().double() if norm.affine else 0.0
    return weight * scale.view(-1, 1, 1, 1), (bias - norm.running_mean.double()) * scale + shift


def conv_relu(weight: Tensor, bias: Tensor, like: nn.Conv2d) -> ConvReLU:
    """A float32 layer with these weights and the geometry of `like`."""
    padding = like.padding
    assert not isinstance(padding, str)
    kernel: tuple[int, ...] = tuple(weight.shape[2:])
    layer = ConvReLU(weight.shape[1], weight.shape[0], kernel, like.stride, padding)  # type: ignore[arg-type]
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)  # type: ignore[union-attr]
    return layer


def _fold_normalisation(first: nn.Module, preprocess: Normalisation) -> Tensor | None:
    """Put (x / 255 - mean) / std into the first convolution; what must still be subtracted from the pixels."""
    assert isinstance(first, ConvReLU)
    shape = (1, first.in_channels, 1, 1)
    mean = 255.0 * torch.tensor(preprocess.mean, dtype=torch.float64).view(shape)
    std = 255.0 * torch.tensor(preprocess.std, dtype=torch.float64).view(shape)
    weight = first.weight.double().cpu() / std
    first.weight.copy_(weight)
    if any(first.padding):
        return mean.float()
    assert first.bias is not None
    first.bias.copy_(first.bias.double().cpu() - (weight * mean).sum((1, 2, 3)))
    return None
