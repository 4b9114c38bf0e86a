"""Build a network by name."""

from typing import Any

from .network import Network
from .registry import resolve_config


def create_model(
    name: str, num_classes: int = 1000, in_channels: int = 3, aux: bool = False, **options: Any
) -> Network:
    """Build a network of the family with initial weights.

    `aux` adds the auxiliary classifiers. `options` override the model's defaults:

    - ``init``: ``xavier``, ``truncated_normal`` or ``kaiming``;
    - ``dropout`` before the classifier, in [0, 1);
    - ``stem_stride``: 4, or 2 or 1 for small images;
    - ``spp_levels``: grids of spatial pyramid pooling, such as (1, 2, 4); (1,) is global average pooling;
    - ``pool_mode``, for the GoogLeNets: ``ceil`` or ``same``;
    - ``width_mult``, for the GoogLeNets: factor of every channel count, in (0, 8], rounded to multiples of 16;
    - ``count_include_pad``, for Inception-v2 and v3: whether average pools count the zeros of the padding (TensorFlow's
      do not);
    - ``seed`` of the initial weights.

    Raises ValueError for an unknown name or an invalid value, TypeError for an unknown option.

    >>> create_model("googlenet_d2l", num_classes=10, in_channels=1).min_size
    1
    """
    return Network(resolve_config(name, num_classes, in_channels, aux, **options))
