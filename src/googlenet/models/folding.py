"""Folding: a trained network as a function of raw pixels with fewer and simpler layers, for inference and export.

Batch normalization is folded into the convolution before it; the parallel 1x1 convolutions of a block become one
convolution whose output is split; the scale of a residual block becomes part of its last weights, and the
normalization of the pixels part of the first convolution. Weights are folded in double precision.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol, TypeGuard, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import ConcatBranches, Residual
from .ensemble import Ensemble, average_logits, get_networks
from .googlenet import Inception
from .layers import ConvNormAct, spatial_pyramid_pool
from .network import Network, check_input


class Normalization(Protocol):
    """The normalization of a pixel in 0..255: (x / 255 - mean) / std per channel. `Preprocess` is one."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the mean of each channel, in units of the full range."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel, positive, in the same units."""
        ...


class ConvReLU(nn.Conv2d):
    """Convolution with a bias, and ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU(conv(x)), (batch, out_channels, h', w')."""
        return F.relu(super().forward(x), inplace=True)


class FoldedBlock(nn.Module):
    """Parallel branches; those that begin with a 1x1 convolution share one, `shared`, whose output is split.

    `widths` are the channels of `shared` that each branch takes, in order; 0 for a branch that takes the block's
    input.
    """

    def __init__(self, shared: ConvReLU | None, widths: Sequence[int], branches: Sequence[nn.Module]):
        super().__init__()
        self.shared = shared
        self.widths = tuple(widths)
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Return the concatenated outputs, (batch, sum of the branches' channels, h', w')."""
        parts = iter(() if self.shared is None else self.shared(x).split([w for w in self.widths if w], dim=1))
        pairs = zip(self.widths, self.branches, strict=True)
        return torch.cat([branch(next(parts) if width else x) for width, branch in pairs], dim=1)


class FoldedResidual(nn.Module):
    """A residual block whose 1x1 convolution includes the scale."""

    def __init__(self, branches: nn.Module, expand: nn.Conv2d, relu: bool):
        super().__init__()
        self.branches, self.expand, self.relu = branches, expand, relu

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of input and branches; the shape is kept."""
        out = x + self.expand(self.branches(x))
        return F.relu(out) if self.relu else out


class FoldedNetwork(nn.Module):
    """A network that takes raw pixels, made by `fold`; `num_classes`, `in_channels`, `min_size` are the network's.

    `offset`, (1, channels, 1, 1), is subtracted from the pixels if the first convolution pads its input, because the
    padding must equal the mean pixel. The bias of a first convolution without padding includes the mean; `offset` is
    then None.
    """

    def __init__(self, trunk: nn.Sequential, classifier: nn.Linear, offset: Tensor | None, network: Network):
        super().__init__()
        self.trunk, self.classifier = trunk, classifier
        self.offset: Tensor | None
        self.register_buffer("offset", offset)
        self.spp_levels = network.spp_levels
        self.num_classes, self.in_channels, self.min_size = network.num_classes, network.in_channels, network.min_size

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits (n, classes) of raw pixels 0..255, uint8 or float (n, channels, h, w).

        Raises ValueError for another number of channels, and for an image smaller than `min_size`.
        """
        return self.forward_head(self.forward_features(pixels))

    def forward_features(self, pixels: Tensor) -> Tensor:
        """Return the last feature map (n, channels, h', w'); see `forward`."""
        dtype = self.classifier.weight.dtype
        # bfloat16 holds pixels exactly, but not their difference from the mean: it is rounded once, after that.
        x = pixels.to(dtype if self.offset is None else torch.promote_types(dtype, torch.float32))
        check_input(x, self.in_channels, self.min_size)
        if self.offset is not None:
            x = (x - self.offset).to(dtype)
        features: Tensor = self.trunk(x)
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Return the logits (n, classes) of the last feature map."""
        logits: Tensor = self.classifier(spatial_pyramid_pool(features, self.spp_levels))
        return logits


class FoldedEnsemble(nn.Module):
    """The mean of the probabilities of several folded networks.

    `spp_levels` is that of the member with the finest grid, which an export with a fixed input size must keep.
    """

    def __init__(self, networks: Sequence[FoldedNetwork], multilabel: bool = False):
        super().__init__()
        self.multilabel = multilabel
        self.networks = nn.ModuleList(networks)
        first = networks[0]
        self.num_classes, self.in_channels = first.num_classes, first.in_channels
        self.min_size = max(network.min_size for network in networks)
        self.spp_levels = max((network.spp_levels for network in networks), key=max)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return `average_logits` (n, classes) of the networks for raw pixels 0..255 (n, channels, h, w)."""
        return average_logits([network(pixels) for network in self.networks], torch.float32, self.multilabel)


@overload
def fold(model: Network, preprocess: Normalization, *, merge: bool = True) -> FoldedNetwork: ...
@overload
def fold(
    model: Network | Ensemble, preprocess: Normalization, *, merge: bool = True
) -> FoldedNetwork | FoldedEnsemble: ...
def fold(model: Network | Ensemble, preprocess: Normalization, *, merge: bool = True) -> FoldedNetwork | FoldedEnsemble:
    """Fold `model` and the normalization of `preprocess` into a module from raw pixels to logits, in evaluation mode.

    The result computes ``model(preprocess.normalize(pixels))`` to about 1e-4 in the logits (float32 rounds
    differently), for 8-bit or float pixels in 0..255 in the channel order of `preprocess`. `merge` combines parallel
    1x1 convolutions; turn it off for engines that copy to split an output. The members of an ensemble are folded one
    by one. Auxiliary heads are removed. `model` is not changed and shares no memory with the result. Raises
    ValueError if the network has no classifier or other channels than `preprocess`.
    """
    if isinstance(model, Ensemble):
        members = [fold(network, preprocess, merge=merge) for network in get_networks(model)]
        return FoldedEnsemble(members, model.multilabel)
    if not isinstance(model.classifier, nn.Linear) or not model.pooled:
        raise ValueError("a network without classifier cannot be folded: use reset_classifier first")
    if len(preprocess.mean) != model.in_channels:
        raise ValueError(f"the network has {model.in_channels} channels, the normalization {len(preprocess.mean)}")
    weight = model.classifier.weight
    with torch.no_grad():
        # On the CPU: folding is computed in float64, which MPS does not have.
        layers = (
            (name, _fold_layer(layer, merge)) for name, layer in copy.deepcopy(model.trunk).cpu().named_children()
        )
        trunk = nn.Sequential(OrderedDict(layers))
        offset = _fold_normalization(trunk[0], preprocess)
        folded = FoldedNetwork(trunk, copy.deepcopy(model.classifier), offset, model)
    return folded.to(weight.device, weight.dtype).requires_grad_(False).eval()


def _fold_layer(layer: nn.Module, merge: bool) -> nn.Module:
    """Fold one layer of a trunk; a layer without weights is copied."""
    match layer:
        case ConvNormAct():
            return _conv_relu(*_fold_norm(layer), layer.conv)
        case Inception():
            branches = (
                (layer.conv1x1,),
                (layer.reduce3x3, layer.conv3x3),
                (layer.reduce5x5, layer.conv5x5),
                (layer.pool, layer.pool_proj),
            )
            return _fold_block(branches, merge)
        case ConcatBranches():
            return _fold_block([tuple(branch.children()) for branch in layer.children()], merge)
        case Residual():
            weight, bias = layer.expand.weight.double(), layer.expand.bias
            assert bias is not None
            expand = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
            expand.weight.copy_(weight * layer.scale)
            expand.bias.copy_(bias.double() * layer.scale)  # type: ignore[union-attr]
            return FoldedResidual(_fold_layer(layer.paths, merge), expand, layer.relu)
        case _:
            return copy.deepcopy(layer)


def _fold_block(branches: Sequence[tuple[nn.Module, ...]], merge: bool) -> FoldedBlock:
    first_layers = [branch[0] for branch in branches]
    pointwise = [layer for layer in first_layers if _is_pointwise(layer)]
    if not merge or len(pointwise) < 2:
        return FoldedBlock(None, [0] * len(branches), [_fold_sequence(branch, merge) for branch in branches])
    weight, bias = (torch.cat(tensors) for tensors in zip(*map(_fold_norm, pointwise), strict=True))
    widths = [layer.conv.out_channels if _is_pointwise(layer) else 0 for layer in first_layers]
    rests = [
        _fold_sequence(branch[1:] if width else branch, merge) for branch, width in zip(branches, widths, strict=True)
    ]
    return FoldedBlock(_conv_relu(weight, bias, pointwise[0].conv), widths, rests)


def _fold_sequence(layers: Sequence[nn.Module], merge: bool) -> nn.Module:
    folded = [_fold_layer(layer, merge) for layer in layers]
    return folded[0] if len(folded) == 1 else nn.Sequential(*folded)


def _is_pointwise(layer: nn.Module) -> TypeGuard[ConvNormAct]:
    """Return whether `layer` is a 1x1 convolution of stride 1, which can be merged with parallel ones."""
    return isinstance(layer, ConvNormAct) and layer.conv.kernel_size == (1, 1) and layer.conv.stride == (1, 1)


def _fold_norm(layer: ConvNormAct) -> tuple[Tensor, Tensor]:
    """Return weight and bias, float64, of the convolution that computes what `layer` does before its ReLU."""
    weight = layer.conv.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.conv.bias is None else layer.conv.bias.detach().double()
    norm = layer.norm
    if isinstance(norm, nn.Identity):
        return weight, bias
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"a {type(norm).__name__} cannot be folded into a convolution")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = norm.bias.detach().double() if norm.affine else 0.0
    return weight * scale.view(-1, 1, 1, 1), (bias - norm.running_mean.double()) * scale + shift


def _conv_relu(weight: Tensor, bias: Tensor, like: nn.Conv2d) -> ConvReLU:
    """Return a float32 layer with these weights and the geometry of `like`."""
    padding = like.padding
    assert not isinstance(padding, str)
    kernel: tuple[int, ...] = tuple(weight.shape[2:])
    layer = ConvReLU(weight.shape[1], weight.shape[0], kernel, like.stride, padding)  # type: ignore[arg-type]
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)  # type: ignore[union-attr]
    return layer


def _fold_normalization(first: nn.Module, preprocess: Normalization) -> Tensor | None:
    """Fold (x / 255 - mean) / std into the first convolution; return the offset to subtract from the pixels."""
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
