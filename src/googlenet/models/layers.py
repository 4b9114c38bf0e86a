"""The parts that every generation of the family is built from.

A part takes and returns a float tensor (batch, channels, height, width) and knows nothing of pictures,
classes' names or training.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native

Norm = Literal["none", "batch"]


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


class ConvUnit(nn.Module):
    """Convolution, optional batch normalisation, ReLU.

    With ``norm="none"`` the convolution carries a bias (GoogLeNet, 2014); with ``norm="batch"`` the shift of
    the normalisation takes its place (Batch Normalization, 2015; eps 1e-3 as in the authors' code).
    Padding keeps the map's size at stride 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, norm: Norm = "none"):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=norm == "none")
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3) if norm == "batch" else nn.Identity()
        self.native = False

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) -> (batch, out_channels, ceil(h / stride), ceil(w / stride))."""
        if self.native and self.training and native.usable(x):
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


class AuxiliaryHead(nn.Module):
    """The side classifier of "Going Deeper with Convolutions", section 5.

    Average pool 5x5 stride 3, 1x1 convolution to 128, linear 1024, ReLU, dropout, linear to the classes.
    At 224 px the map is 14x14 and pools to 4x4. The linear layer needs 4x4 at every input size, so the rule
    for any other map is: the 5x5 window is clipped to a map narrower than 5, and whatever grid the pool then
    gives is averaged (or, below 4x4, repeated) to 4x4 by adaptive average pooling, which leaves a 4x4 grid
    as it is.
    """

    GRID = 4

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        norm: Norm = "none",
        hidden: int = 1024,
        dropout: float = 0.7,
    ):
        super().__init__()
        self.conv = ConvUnit(in_channels, 128, 1, norm=norm)
        self.fc1 = nn.Linear(128 * self.GRID * self.GRID, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, h, w) with any h, w >= 1 -> logits (batch, num_classes)."""
        window = (min(5, x.shape[-2]), min(5, x.shape[-1]))
        x = F.adaptive_avg_pool2d(F.avg_pool2d(x, window, stride=3), self.GRID)
        x = torch.flatten(self.conv(x), 1)
        logits: Tensor = self.fc2(self.dropout(F.relu(self.fc1(x))))
        return logits


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
