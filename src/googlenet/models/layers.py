"""Layers that several models share: convolution, pooling, normalization, auxiliary heads.

All layers take and return float tensors (batch, channels, height, width) unless stated otherwise.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels

Norm = Literal["none", "batch"]
KernelSize = int | tuple[int, int]
Padding = Literal["same", "valid"]
AuxPool = Literal["window", "adaptive"]

# The stride of the stem's first convolution and first pool together: 4 in every paper; 2 without the convolution's
# stride, and 1 without the first pool as well, for small images ("Rethinking the Inception Architecture", section 8:
# images of 151 and 79 pixels then cost as much as 299 pixels with the full stem).
StemStride = Literal[4, 2, 1]

# The epsilon of batch normalization in the authors' code; the papers do not state it.
NORM_EPS = 1e-3


class GoogLeNetOutputs(NamedTuple):
    """The outputs of `Network.forward_aux`: class scores before softmax.

    `logits` is (batch, classes). `aux_logits` contains one such tensor per auxiliary head, in depth order; it is
    empty for a network without auxiliary heads.
    """

    logits: Tensor
    aux_logits: tuple[Tensor, ...]


class FeatureInfo(NamedTuple):
    """A feature map: the name of the layer that computes it, its channels, and its stride in input pixels."""

    name: str
    channels: int
    stride: int


class NetworkSpec(NamedTuple):
    """The layers of a network without its classifier.

    `trunk` contains the layers from the input to the last feature map, in order. `feature_info` names the deepest
    layer at each stride; the last entry is the end of the trunk. `aux_heads` maps layer names to the auxiliary
    classifiers on their outputs. `min_size` is the smallest input height and width in pixels.
    """

    trunk: nn.Sequential
    feature_info: tuple[FeatureInfo, ...]
    aux_heads: Mapping[str, nn.Module]
    min_size: int


class Conv(NamedTuple):
    """A convolution: output channels, kernel size (one number, or height and width; odd), stride and padding.

    With padding ``same`` the output has ceil(size / stride) pixels; with ``valid`` nothing is padded.
    """

    channels: int
    kernel_size: KernelSize = 1
    stride: int = 1
    padding: Padding = "same"


def rescale_strides(features: tuple[FeatureInfo, ...], stem_stride: StemStride) -> tuple[FeatureInfo, ...]:
    """Convert the strides of feature maps after a stem of stride 4 to those after a stem of `stem_stride`."""
    return tuple(feature._replace(stride=max(1, feature.stride * stem_stride // 4)) for feature in features)


class ConvNormAct(nn.Module):
    """Convolution, optional batch normalization, ReLU.

    With ``norm="none"`` the convolution has a bias (GoogLeNet, 2014); with ``norm="batch"`` it has none, because the
    normalization adds one (Batch Normalization, 2015).
    """

    def __init__(self, in_channels: int, conv: Conv, norm: Norm = "none", eps: float = NORM_EPS):
        super().__init__()
        channels, size, stride, mode = conv
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if mode == "same" else (0, 0)
        self.conv = nn.Conv2d(in_channels, channels, (height, width), stride, padding, bias=norm == "none")
        self.norm = nn.BatchNorm2d(channels, eps=eps) if norm == "batch" else nn.Identity()
        # The CPU kernels implement square filters with padding "same".
        self.has_cpu_kernel = height == width and (mode == "same" or height == 1)
        self.use_cpu_kernels = False

    def forward(self, x: Tensor) -> Tensor:
        """Return ReLU(norm(conv(x))), (batch, channels, h', w')."""
        native = self.use_cpu_kernels and self.has_cpu_kernel and self.training
        if native and kernels.is_supported(x, self.conv.out_channels):
            return kernels.conv_norm_act(self, x)
        return F.relu(self.norm(self.conv(x)))


class MaxPool(nn.MaxPool2d):
    """Max pooling with 3x3 windows."""

    def __init__(self, stride: Literal[1, 2], padding: int = 0, ceil_mode: bool = False):
        super().__init__(3, stride, padding, ceil_mode=ceil_mode)
        self.use_cpu_kernels = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima, (batch, channels, h', w')."""
        if self.use_cpu_kernels and self.training and kernels.is_supported(x, multiple_of=kernels.LANES):
            return kernels.max_pool(self, x)
        if self.ceil_mode and torch.compiler.is_exporting():
            # Padding with zeros, which never exceed the output of a ReLU, gives the same maxima as ceil mode, and an
            # output size that an exported program can keep dynamic.
            return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, self.stride, self.padding)
        out: Tensor = super().forward(x)
        return out


class LocalResponseNorm(nn.Module):
    """Normalization across neighboring channels, with the constants of the public Caffe model.

    y[c] = x[c] / (k + alpha / n * sum of x[i]^2 over the n channels around c) ^ beta,
    n = 5, alpha = 1e-4, beta = 0.75, k = 1; channels outside the map count as zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize any (batch, channels, h, w); the shape is kept."""
        return F.local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=1.0)


@torch.fx.wrap
def window_pool(x: Tensor, min_size: int, *, window: int = 5, stride: int = 3) -> Tensor:
    """Average pooling 5x5 with stride 3, the first layer of the auxiliary heads, for a map of any size.

    The window is clipped to smaller maps. An output smaller than `min_size` x `min_size` is repeated to that size.
    """
    x = F.avg_pool2d(x, (min(window, x.shape[-2]), min(window, x.shape[-1])), stride)
    if x.shape[-2] < min_size or x.shape[-1] < min_size:
        x = F.adaptive_avg_pool2d(x, (max(min_size, x.shape[-2]), max(min_size, x.shape[-1])))
    return x


class AuxiliaryHead(nn.Module):
    """The auxiliary classifier of "Going Deeper with Convolutions", section 5.

    Average pool 5x5 with stride 3, 1x1 convolution to 128, linear 1024, ReLU, dropout 0.7, linear to the classes. The
    linear layer needs a map of `grid` x `grid`: 4x4 pooled from 14x14 at 224 pixels, or 5x5 from 17x17 at 299 pixels
    in Inception-v2 ("Rethinking the Inception Architecture", figure 8). At other input sizes adaptive average pooling
    resizes the pooled map to that grid. With ``pool="adaptive"``, as in torchvision's port, there is no 5x5 window.
    """

    LAST = "fc2"

    def __init__(
        self, in_channels: int, num_classes: int, norm: Norm = "none", grid: int = 4, pool: AuxPool = "window"
    ):
        super().__init__()
        self.grid, self.pool = grid, pool
        self.conv = ConvNormAct(in_channels, Conv(128), norm)
        self.fc1 = nn.Linear(128 * grid * grid, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of a map of any height and width."""
        x = F.adaptive_avg_pool2d(window_pool(x, 1) if self.pool == "window" else x, self.grid)
        x = torch.flatten(self.conv(x), 1)
        logits: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x))))
        return logits


class ConvAuxiliaryHead(nn.Module):
    """The batch-normalized auxiliary classifier of Inception-v3 ("Rethinking the Inception Architecture", section 4).

    Average pool 5x5 with stride 3, 1x1 convolution to 128, 5x5 convolution to 768, global average pooling, linear to
    the classes. At 299 pixels the pooled map is 5x5, which the 5x5 convolution reduces to one pixel; a smaller map is
    repeated to 5x5.
    """

    LAST = "fc"

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, Conv(128), "batch")
        self.conv2 = ConvNormAct(128, Conv(768, 5, padding="valid"), "batch")
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of a map of any height and width."""
        x = self.conv2(self.conv1(window_pool(x, 5)))
        logits: Tensor = self.fc(spatial_pyramid_pool(x, (1,)))
        return logits


def spatial_pyramid_pool(x: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Average-pool to grids of `levels` x `levels` cells, flattened and concatenated.

    (batch, c, h, w) -> (batch, c * sum of levels squared) for any h, w >= 1. (1,) is global average pooling; (1, 2,
    4) gives one linear layer features at three scales ("Spatial Pyramid Pooling", He et al., 2014).
    """
    cells = [torch.flatten(F.adaptive_avg_pool2d(x, level), 1) for level in levels]
    return cells[0] if len(cells) == 1 else torch.cat(cells, dim=1)
