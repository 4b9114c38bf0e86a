"""The parts that every generation of the family is built from.

A part takes and returns a float tensor (batch, channels, height, width) and knows nothing of pictures,
classes' names or training.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from . import native

Norm = Literal["none", "batch"]
Kernel = int | tuple[int, int]
Padding = Literal["same", "valid"]

# As in the authors' code, where the papers are silent; BN-Inception's public weights have PyTorch's.
NORM_EPS = 1e-3


class Logits(NamedTuple):
    """What `forward_aux` returns: class scores before softmax.

    `main` is (batch, classes); `aux` holds one such tensor per auxiliary head in depth order, and is empty
    for a network built without auxiliary heads.
    """

    main: Tensor
    aux: tuple[Tensor, ...]


class Stage(NamedTuple):
    """One entry of `feature_info`: a named feature map, its channels, and its stride in input pixels."""

    name: str
    channels: int
    stride: int


# How many input pixels side by side become one in the stem's first convolution and first pool: 4 in every paper; 2
# without the convolution's stride, and 1 without the pool's either, for small pictures ("Rethinking the Inception
# Architecture", section 8: 151 and 79 px cost what 299 do).
StemStride = Literal[4, 2, 1]


def at_stride(stages: tuple[Stage, ...], stem_stride: StemStride) -> tuple[Stage, ...]:
    """`stages` of a stem of stride 4, as they are behind a finer one."""
    return tuple(stage._replace(stride=max(1, stage.stride * stem_stride // 4)) for stage in stages)


class ConvUnit(nn.Module):
    """Convolution, optional batch normalisation, ReLU.

    With ``norm="none"`` the convolution carries a bias (GoogLeNet, 2014); with ``norm="batch"`` the shift of
    the normalisation takes its place (Batch Normalization, 2015). `kernel` is one number or (height, width), odd.
    ``padding="same"`` keeps the map's size at stride 1; ``valid`` pads nothing, so that the map loses a rim.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Kernel,
        stride: int = 1,
        norm: Norm = "none",
        padding: Padding = "same",
        eps: float = NORM_EPS,
    ):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        rim = (height // 2, width // 2) if padding == "same" else (0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, (height, width), stride, rim, bias=norm == "none")
        self.norm = nn.BatchNorm2d(out_channels, eps=eps) if norm == "batch" else nn.Identity()
        # The native step knows square kernels that keep the map's size.
        self.fits_native = height == width and (padding == "same" or height == 1)
        self.native = False

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> (batch, out_channels, h', w'), h' = ceil(h / stride) with padding "same"."""
        if self.native and self.training and self.fits_native and native.usable(x):
            return native.conv_unit(self, x)
        return F.relu(self.norm(self.conv(x)))


class MaxPool(nn.MaxPool2d):
    """Max pooling over 3x3 windows."""

    def __init__(self, stride: Literal[1, 2], padding: int = 0, ceil_mode: bool = False):
        super().__init__(3, stride, padding, ceil_mode=ceil_mode)
        self.native = False

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the maxima, one in `stride` rows and columns."""
        if self.native and self.training and native.usable(x, native.LANES):
            return native.max_pool(self, x)
        if self.ceil_mode and torch.compiler.is_exporting():
            # A row and a column of zeros, which never win behind a ReLU, and no ceil mode: the same maxima, and a
            # size that an exported program can leave open.
            return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, self.stride, self.padding)
        out: Tensor = super().forward(x)
        return out


class LocalResponseNorm(nn.Module):
    """Normalisation across neighbouring channels, with the constants of the public Caffe model.

    y[c] = x[c] / (k + alpha / n * sum of x[i]^2 over the n channels around c) ^ beta,
    n = 5, alpha = 1e-4, beta = 0.75, k = 1; channels outside the map count as zero.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any (batch, channels, h, w) -> the same shape."""
        return F.local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=1.0)


@torch.fx.wrap
def window_pool(x: Tensor, grid: int, *, window: int = 5, stride: int = 3) -> Tensor:
    """Average pooling 5x5 stride 3, as the auxiliary heads begin with, on a map of any size.

    The window is clipped to a map narrower than itself, and a result under `grid` x `grid` is repeated up to it.
    """
    x = F.avg_pool2d(x, (min(window, x.shape[-2]), min(window, x.shape[-1])), stride)
    if x.shape[-2] < grid or x.shape[-1] < grid:
        x = F.adaptive_avg_pool2d(x, (max(grid, x.shape[-2]), max(grid, x.shape[-1])))
    return x


AuxPool = Literal["window", "adaptive"]


class AuxiliaryHead(nn.Module):
    """The side classifier of "Going Deeper with Convolutions", section 5.

    Average pool 5x5 stride 3, 1x1 convolution to 128, linear 1024, ReLU, dropout, linear to the classes.
    At 224 px the map is 14x14 and pools to a `grid` of 4x4 (Inception-v2, "Rethinking the Inception Architecture",
    figure 8: from 17x17 to 5x5). The linear layer needs that grid at every input size: what the pool gives of
    another map is averaged (or, below the grid, repeated) to it by adaptive average pooling, which leaves a grid of
    the right size as it is. With ``pool="adaptive"`` there is no 5x5 window, as in torchvision's port.
    """

    LAST = "fc2"

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        norm: Norm = "none",
        hidden: int = 1024,
        dropout: float = 0.7,
        grid: int = 4,
        pool: AuxPool = "window",
    ):
        super().__init__()
        self.grid, self.pool = grid, pool
        self.conv = ConvUnit(in_channels, 128, 1, norm=norm)
        self.fc1 = nn.Linear(128 * grid * grid, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) with any h, w >= 1 -> logits (batch, num_classes)."""
        x = F.adaptive_avg_pool2d(window_pool(x, 1) if self.pool == "window" else x, self.grid)
        x = torch.flatten(self.conv(x), 1)
        logits: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x))))
        return logits


class ConvAuxiliaryHead(nn.Module):
    """The side classifier of Inception-v3, batch-normalised ("Rethinking the Inception Architecture", section 4).

    Average pool 5x5 stride 3, 1x1 convolution to 128, 5x5 convolution to 768, global average pooling, linear to the
    classes. At 299 px the map is 17x17 and pools to 5x5, which the 5x5 convolution takes to one pixel; a pooled map
    smaller than 5x5 is repeated to it.
    """

    LAST = "fc"

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.conv1 = ConvUnit(in_channels, 128, 1, norm="batch")
        self.conv2 = ConvUnit(128, 768, 5, norm="batch", padding="valid")
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) with any h, w >= 1 -> logits (batch, num_classes)."""
        x = self.conv2(self.conv1(window_pool(x, 5)))
        logits: Tensor = self.fc(pyramid_pool(x, (1,)))
        return logits


def pyramid_pool(x: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Average pooling over grids of `levels` x `levels` cells, flattened and joined.

    (batch, c, h, w) -> (batch, c * sum of levels squared) for any h, w >= 1; (1,) is global average pooling, (1, 2,
    4) a pyramid from which one linear layer sees several scales (after "Spatial Pyramid Pooling", He et al., 2014).
    """
    cells = [torch.flatten(F.adaptive_avg_pool2d(x, level), 1) for level in levels]
    return cells[0] if len(cells) == 1 else torch.cat(cells, dim=1)


Init = Literal["xavier", "truncated_normal", "kaiming"]


def initialise(model: nn.Module, init: Init, seed: int) -> None:
    """Fill every parameter and buffer of `model` in place, from a generator of its own.

    The same `seed` gives the same weights whatever was drawn before, and the global random state is left
    alone. Convolution and linear weights follow `init`; batch normalisation starts as identity; biases are 0
    but for ``xavier``.

    - ``xavier``: uniform, Glorot & Bengio 2010, with biases uniform within 1 / sqrt(fan_in), PyTorch's default:
      what the book chapter starts from;
    - ``kaiming``: normal with variance 2 / fan_in, He et al. 2015;
    - ``truncated_normal``: the same variance, drawn within two standard deviations.

    Raises ValueError for another name.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight
            if init == "xavier":
                nn.init.xavier_uniform_(weight, generator=generator)
            elif init == "kaiming":
                nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
            elif init == "truncated_normal":
                # Cutting a normal at two deviations leaves 0.8796 of its deviation: divide, to keep He's variance.
                std = (2.0 / weight[0].numel()) ** 0.5 / 0.8796
                # By the inverse of the distribution: PyTorch's own redraws until all fit, 20 times slower.
                edge = math.erf(2.0 / math.sqrt(2.0))
                with torch.no_grad():
                    weight.uniform_(-edge, edge, generator=generator).erfinv_().mul_(std * math.sqrt(2.0))
            else:
                raise ValueError(f"init must be xavier, truncated_normal or kaiming, not {init!r}")
            if module.bias is not None and init == "xavier":
                edge = weight[0].numel() ** -0.5
                nn.init.uniform_(module.bias, -edge, edge, generator=generator)
            elif module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
