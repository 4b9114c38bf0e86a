"""A faster training step on CPUs: kernels in C that compute the same functions as the plain modules.

`enable_cpu_kernels` switches a model; its modules then call the functions of this package if `is_supported` allows
it. `to_channels_last` and `keep_freed_memory` make inference faster too.
"""

from .autograd_functions import (
    LANES,
    conv_norm_act,
    enable_cpu_kernels,
    inception,
    is_supported,
    max_pool,
    to_channels_last,
)
from .build import get_kernel_level, load_kernels
from .memory import keep_freed_memory
from .sgd import is_supported_param, layerwise_sgd

__all__ = [
    "LANES",
    "conv_norm_act",
    "enable_cpu_kernels",
    "get_kernel_level",
    "inception",
    "is_supported",
    "is_supported_param",
    "keep_freed_memory",
    "layerwise_sgd",
    "load_kernels",
    "max_pool",
    "to_channels_last",
]
