"""The network that every member of the family is: trunk, taps, pooling, classifier; and its doors.

A generation's file gives the `Parts`; nothing here knows a paper's table.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import Tensor, nn

from .hub import HubModel
from .layers import Init, Logits, Stage, initialise, pyramid_pool


class Parts(NamedTuple):
    """What a paper says of a network: all but its head.

    `trunk` is everything between the pixels and pooling, layer by layer; `features` names the deepest layer at each
    stride, the last of them the trunk's end; `aux_heads` the side classifiers by the layer that they listen to.
    """

    trunk: nn.Sequential
    features: tuple[Stage, ...]
    aux_heads: Mapping[str, nn.Module]
    min_size: int


class Network(nn.Module, HubModel):
    """A member of the family.

    Build it with `googlenet.create`, which knows the members by name. `min_size` is the least input height
    and width in pixels; a smaller input raises ValueError before anything is computed. `pyramid` are the grids of
    `pyramid_pool` before the classifier. `arguments` are what `create` was called with.
    """

    def __init__(
        self,
        parts: Callable[[], Parts],
        num_classes: int,
        in_channels: int,
        *,
        init: Init,
        dropout: float,
        pyramid: tuple[int, ...],
        seed: int,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.pyramid = pyramid
        self.arguments = {}
        # Built without storage and filled once: twenty times faster than PyTorch's own initialisation first.
        with torch.device("meta"):
            made = parts()
            self.trunk = made.trunk
            self.num_features = made.features[-1].channels * sum(level * level for level in pyramid)
            self.dropout = nn.Dropout(dropout)
            self.classifier: nn.Module = nn.Linear(self.num_features, num_classes)
            self.aux_heads = nn.ModuleDict(dict(made.aux_heads))
        self.min_size = made.min_size
        self.feature_info: Any = made.features
        self._stages = made.features
        self._init = init
        self.pooled = True
        # Under torch.device("meta") the caller wants shapes, not weights.
        if torch.get_default_device().type != "meta":
            self.to_empty(device="cpu")
            initialise(self, init, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, num_classes) of pixels (batch, in_channels, h, w), in training and in evaluation."""
        return self.forward_head(self.forward_features(x))

    def forward_aux(self, x: Tensor) -> Logits:
        """The logits of the classifier and of every auxiliary head, in depth order; see `Logits`."""
        x, taps = self._walk(x, tuple(self.aux_heads))
        return Logits(self.forward_head(x), tuple(head(taps[name]) for name, head in self.aux_heads.items()))

    def features(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """The maps that `feature_info` lists, shallow to deep: name -> (batch, channels, about h / stride, w /
        stride).

        Convolutions and pools without padding take up to the width of their windows off a map's rim.
        """
        return self._walk(x, self._taps)[1]

    def features_aux(self, x: Tensor) -> tuple[OrderedDict[str, Tensor], tuple[Tensor, ...]]:
        """`features`, and the logits of every auxiliary head in depth order, in one pass."""
        kept = self._walk(x, (*self._taps, *self.aux_heads))[1]
        maps = OrderedDict((name, kept[name]) for name in self._taps)
        return maps, tuple(head(kept[name]) for name, head in self.aux_heads.items())

    def reset_head(self, num_classes: int, seed: int = 0) -> None:
        """Replace the classifier, and the last layer of each auxiliary head, by fresh ones for `num_classes`."""
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, not {num_classes}")
        self.num_classes = num_classes
        self.arguments = {**self.arguments, "num_classes": num_classes}
        like = next(self.parameters())
        owners: list[tuple[nn.Module, str]] = [(self, "classifier")]
        owners += [(head, str(head.LAST)) for head in self.aux_heads.values()]
        for owner, name in owners:
            old = getattr(owner, name)
            width = old.in_features if isinstance(old, nn.Linear) else self.num_features
            new = nn.Linear(width, num_classes)
            initialise(new, self._init, seed)
            setattr(owner, name, new.to(like).train(self.training))

    @property
    def _taps(self) -> tuple[str, ...]:
        """The layers of `feature_info`, whose form timm's programs may have changed."""
        return tuple(stage.name for stage in self._stages)

    # The names under which timm's programs look for the same things.

    @property
    def in_chans(self) -> int:
        """`in_channels`."""
        return self.in_channels

    @property
    def head_hidden_size(self) -> int:
        """The number of features before the classifier."""
        return self.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, (batch, channels, h, w)."""
        return self._walk(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooling, dropout, and (unless `pre_logits`) the classifier: last map -> (batch, num_classes)."""
        if self.pooled:
            x = self.dropout(pyramid_pool(x, self.pyramid))
        return x if pre_logits else self.classifier(x)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """`reset_head`; 0 classes leave the pooled features (batch, num_features) and no auxiliary heads.

        `global_pool` is "avg", or, with 0 classes, "" for the last map itself; ValueError for another.
        """
        if global_pool not in (None, "avg") and (global_pool != "" or num_classes):
            raise ValueError(f"global_pool is avg in this family, not {global_pool!r}")
        self.pooled = self.pooled if global_pool is None else global_pool == "avg"
        if num_classes:
            self.pooled = True
            self.reset_head(num_classes)
        else:
            self.num_classes = 0
            self.classifier = nn.Identity()
            self.aux_heads = nn.ModuleDict()
            self.arguments = {**self.arguments, "aux": False}

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """timm's way to `features`: (last map, [maps]), or the maps only.

        `indices` are positions in `feature_info`, or the number of the last ones; all where it is None. `norm` is for
        networks that end with one. With `stop_early` nothing after the deepest map is computed.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is NCHW in this family, not {output_fmt!r}")
        wanted = [self._taps[i] for i in self._indices(indices)]
        deepest = max(wanted, key=self._taps.index)
        x, maps = self._walk(x, tuple(wanted), last=deepest if stop_early else None)
        found = [maps[name] for name in wanted]
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers after the deepest of `indices` (see `forward_intermediates`), and the head; the indices."""
        kept = self._indices(indices)
        last = self._stages[max(kept)]
        names = [name for name, _ in self.trunk.named_children()]
        self.trunk = self.trunk[: names.index(last.name) + 1]
        if prune_head or last != self._stages[-1]:
            self.num_features = last.channels * sum(level * level for level in self.pyramid)
            self.reset_classifier(0)
        self._stages = self._stages[: max(kept) + 1]
        self.feature_info = self.feature_info[: max(kept) + 1]
        self.arguments = {}  # `create` does not build such a network
        return kept

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Parameter name -> the position of its layer, for rates that differ by depth."""
        order = {name: number for number, (name, _) in enumerate(self.trunk.named_children())}

        def position(parameter: str) -> float:
            return order[parameter.split(".")[1]] if parameter.startswith("trunk.") else float("inf")

        return position

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Not offered; ValueError when asked for."""
        if enable:
            raise ValueError("gradient checkpointing is not offered by this family")

    def _indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Positions in `feature_info`, none negative; ValueError for one outside."""
        count = len(self._taps)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            found = list(range(count - indices, count)) if 0 < indices <= count else []
        else:
            found = [i + count if i < 0 else i for i in indices]
        if not found or min(found) < 0 or max(found) >= count:
            raise ValueError(f"there are {count} feature maps; {indices} is outside")
        return found

    def _walk(
        self, x: Tensor, taps: tuple[str, ...] = (), last: str | None = None
    ) -> tuple[Tensor, OrderedDict[str, Tensor]]:
        """Run the trunk, up to the layer `last` where one is named; keep the outputs of the layers in `taps`."""
        check_input(x, self.in_channels, self.min_size)
        kept: OrderedDict[str, Tensor] = OrderedDict()
        for name, layer in self.trunk.named_children():
            x = layer(x)
            if name in taps:
                kept[name] = x
            if name == last:
                break
        return x, kept


def trunk_name(model: nn.Module) -> str:
    """Where the trunk of `model` is: a network's own, or that of the network that another is built around."""
    return "backbone.trunk" if hasattr(model, "backbone") else "trunk"


@torch.fx.wrap
def check_input(x: Tensor, in_channels: int, min_size: int) -> None:
    """Raise ValueError unless `x` is a float batch (n, in_channels, h >= min_size, w >= min_size)."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f"expected a batch (n, {in_channels}, height, width), got shape {tuple(x.shape)}")
    if x.shape[-2] < min_size or x.shape[-1] < min_size:
        raise ValueError(
            f"the input is {x.shape[-2]}x{x.shape[-1]} pixels; this network needs at least {min_size}x{min_size}"
        )
    if not x.is_floating_point():
        raise ValueError(f"expected float pixels, got {x.dtype}: apply Preprocess to the picture first")
