"""Every network by name. Pure data: importing this file does not import PyTorch."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import nearest

if TYPE_CHECKING:
    from .googlenet import GoogLeNet


class Spec(NamedTuple):
    """One member of the family.

    `input_size` and `min_size` are heights and widths in pixels. `parameters` and `macs` (multiply-adds of
    one picture at `input_size`) are counted without auxiliary heads, for 1000 classes and three channels;
    the tests count them again.
    """

    paper: str
    input_size: int
    min_size: int
    parameters: int
    macs: int
    build: Callable[..., "GoogLeNet"]


def _googlenet(name: str, *args: Any, **variant: Any) -> "GoogLeNet":
    from .googlenet import build

    return build(name, *args, **variant)


GOING_DEEPER = "Going Deeper with Convolutions (Szegedy et al., 2014)"

MODELS: dict[str, Spec] = {
    "googlenet": Spec(GOING_DEEPER, 224, 31, 6_998_552, 1_582_671_872, _googlenet),
    "googlenet_bn": Spec(f"{GOING_DEEPER}, with batch normalisation", 224, 31, 7_005_832, 1_582_671_872, _googlenet),
    "googlenet_d2l": Spec("Dive into Deep Learning, GoogLeNet chapter", 96, 1, 6_998_552, 291_530_752, _googlenet),
}


def list_models() -> list[str]:
    """The names that `create` takes, in the order of their papers."""
    return list(MODELS)


def spec(name: str) -> Spec:
    """The catalogue's entry; ValueError with the nearest names for an unknown one."""
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}{nearest(name, MODELS)}; `googlenet models` lists them")
    return MODELS[name]


def create(
    name: str, num_classes: int = 1000, in_channels: int = 3, aux: bool = False, **variant: Any
) -> "GoogLeNet":
    """Build a network of the family with freshly initialised weights.

    `aux` adds the auxiliary classifiers. `variant` replaces single choices of the design: ``init``
    (``xavier``, ``truncated_normal``, ``kaiming``), ``dropout`` in [0, 1), ``pools`` (``ceil``, ``padded``),
    ``stem_stride`` (4; 2 or 1 for small pictures), ``seed`` of the initial weights.

    Raises ValueError for an unknown name or an impossible number, TypeError for an unknown variant.

    >>> create("googlenet_d2l", num_classes=10, in_channels=1).min_size
    1
    """
    entry = spec(name)
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{what} must be 1 or more, not {value}")
    return entry.build(name, num_classes, in_channels, aux, **variant)
