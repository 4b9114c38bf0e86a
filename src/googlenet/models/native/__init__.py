"""The same networks, a faster training step on CPUs.

`enable` switches a model over; its parts then call the functions here where `usable` says so. `lay_out` is the part
of it that answers profit from too.
"""

from .build import kernel_level, kernels
from .step import LANES, conv_unit, enable, inception, lay_out, max_pool, usable
from .update import layerwise_sgd, updatable

__all__ = [
    "LANES",
    "conv_unit",
    "enable",
    "inception",
    "kernel_level",
    "kernels",
    "lay_out",
    "layerwise_sgd",
    "max_pool",
    "updatable",
    "usable",
]
