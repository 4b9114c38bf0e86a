"""The network class of all models of the family: feature layers, auxiliary heads, pooling, classifier."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from .hub import HubMixin
from .init import init_weights
from .layers import GoogLeNetOutputs, spatial_pyramid_pool
from .registry import build_spec


class Network(nn.Module, HubMixin):
    """A network of the family; build it with `googlenet.create`.

    `config` is the resolved configuration (`registry.resolve_config`); it is empty after `prune_intermediate_layers`.
    `feature_info` describes the maps that `features` returns. `min_size` is the smallest input height and width in
    pixels; a smaller input raises ValueError. `spp_levels` are the grids of the pooling before the classifier;
    without `pooled` the network returns its last feature map.
    """

    def __init__(self, model_config: Mapping[str, Any]):
        super().__init__()
        config = self.config = dict(model_config)
        self.num_classes: int = config["num_classes"]
        self.in_channels: int = config["in_channels"]
        self.spp_levels: tuple[int, ...] = config["spp_levels"]
        # Built without storage and initialized once: PyTorch's own initialization first would take 20 times as long.
        with torch.device("meta"):
            spec = build_spec(config)
            self.trunk = spec.trunk
            self.num_features = spec.feature_info[-1].channels * sum(level * level for level in self.spp_levels)
            self.dropout = nn.Dropout(config["dropout"])
            self.classifier: nn.Module = nn.Linear(self.num_features, self.num_classes)
            self.aux_heads = nn.ModuleDict(dict(spec.aux_heads))
        self.min_size = spec.min_size
        self.feature_info: Any = spec.feature_info
        # timm replaces `feature_info` by its own type.
        self._features = spec.feature_info
        self._init = config["init"]
        self.pooled = True
        # Under torch.device("meta") the caller needs shapes, not weights. The weights of a seed are those of the CPU.
        if (device := torch.get_default_device()).type != "meta":
            # Like `to_empty`, whose torch.empty_like takes a third of a second when it first sees a meta tensor.
            self._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cpu"))  # type: ignore[no-untyped-call]
            init_weights(self, self._init, config["seed"])
            self.to(device)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, num_classes) of pixels (batch, in_channels, h, w), in training and evaluation."""
        return self.forward_head(self.forward_features(x))

    def forward_aux(self, x: Tensor) -> GoogLeNetOutputs:
        """Return the logits of the classifier and those of every auxiliary head, in depth order."""
        x, maps = self._forward_trunk(x, tuple(self.aux_heads))
        return GoogLeNetOutputs(self.forward_head(x), self._forward_aux_heads(maps))

    def features(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the maps in `feature_info`, shallow to deep: name -> (batch, channels, h / stride, w / stride).

        Layers without padding make a map smaller than h / stride by up to 7 pixels.
        """
        return self._forward_trunk(x, self._feature_names)[1]

    def features_aux(self, x: Tensor) -> tuple[OrderedDict[str, Tensor], tuple[Tensor, ...]]:
        """Return `features`, and the logits of every auxiliary head in depth order, in one pass."""
        maps = self._forward_trunk(x, (*self._feature_names, *self.aux_heads))[1]
        return OrderedDict((name, maps[name]) for name in self._feature_names), self._forward_aux_heads(maps)

    # The names that timm's training, evaluation and feature extraction expect.

    @property
    def in_chans(self) -> int:
        """Return `in_channels`."""
        return self.in_channels

    @property
    def head_hidden_size(self) -> int:
        """Return the number of features before the classifier."""
        return int(self.num_features)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, (batch, channels, h, w)."""
        return self._forward_trunk(x)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Apply pooling, dropout and, unless `pre_logits`, the classifier: last map -> (batch, num_classes)."""
        if self.pooled:
            x = self.dropout(spatial_pyramid_pool(x, self.spp_levels))
        return x if pre_logits else self.classifier(x)

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, seed: int = 0) -> None:
        """Replace the classifier, and the last layer of each auxiliary head, by new ones for `num_classes`.

        0 classes remove them: the output is then the pooled features (batch, num_features), without auxiliary heads.
        `global_pool` is "avg" or, with 0 classes, "" for the last feature map. `seed` determines the new weights.
        Raises ValueError for other values.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, not {num_classes}")
        if global_pool not in (None, "avg") and (global_pool != "" or num_classes):
            raise ValueError(f"global_pool must be avg, or empty with 0 classes, not {global_pool!r}")
        self.pooled = bool(num_classes) or (self.pooled if global_pool is None else global_pool == "avg")
        self.num_classes = num_classes
        if self.config:
            self.config = {**self.config, **({"num_classes": num_classes} if num_classes else {"aux": False})}
        if not num_classes:
            self.classifier = nn.Identity()
            self.aux_heads = nn.ModuleDict()
            return
        like = next(self.parameters())
        modules: list[tuple[nn.Module, str]] = [(self, "classifier")]
        modules += [(head, str(head.LAST)) for head in self.aux_heads.values()]
        sizes = [getattr(getattr(module, name), "in_features", self.num_features) for module, name in modules]
        linears = nn.ModuleList(nn.Linear(size, num_classes, device="cpu") for size in sizes)
        # One generator for all: heads of the same shape must not start with the same weights.
        init_weights(linears, self._init, seed)
        for (module, name), linear in zip(modules, linears, strict=True):
            setattr(module, name, linear.to(like).train(self.training))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return (last map, feature maps), or the feature maps alone, as timm's models do.

        Args:
            x: pixels (batch, in_channels, h, w).
            indices: positions in `feature_info`, or how many of the last ones; None for all.
            norm: ignored; it is for models with a final normalization.
            output_fmt: must be NCHW.
            intermediates_only: stop after the deepest of `indices`, and return the maps alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, not {output_fmt!r}")
        names = [self._feature_names[i] for i in self._feature_indices(indices)]
        deepest = max(names, key=self._feature_names.index)
        x, maps = self._forward_trunk(x, tuple(names), until=deepest if intermediates_only else None)
        intermediates = [maps[name] for name in names]
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the deepest of `indices` (see `forward_intermediates`), and the classifier.

        Returns the indices as positions in `feature_info`. A pruned network cannot be saved with `save_pretrained`.
        """
        kept = self._feature_indices(indices)
        last = self._features[max(kept)]
        names = [name for name, _ in self.trunk.named_children()]
        self.trunk = self.trunk[: names.index(last.name) + 1]
        if prune_head or last != self._features[-1]:
            self.num_features = last.channels * sum(level * level for level in self.spp_levels)
            self.reset_classifier(0)
        self._features = self._features[: max(kept) + 1]
        self.feature_info = self.feature_info[: max(kept) + 1]
        self.config = {}
        return kept

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Return a function from parameter name to the position of its layer, for layer-wise learning rates."""
        order = {name: index for index, (name, _) in enumerate(self.trunk.named_children())}

        def position(parameter: str) -> float:
            return order[parameter.split(".")[1]] if parameter.startswith("trunk.") else float("inf")

        return position

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Raise ValueError if `enable`: gradient checkpointing is not supported."""
        if enable:
            raise ValueError("gradient checkpointing is not supported")

    @property
    def _feature_names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self._features)

    def _feature_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return non-negative positions in `feature_info`; ValueError if one is out of range."""
        count = len(self._features)
        if indices is None:
            return list(range(count))
        if isinstance(indices, int):
            result = list(range(count - indices, count)) if 0 < indices <= count else []
        else:
            result = [i + count if i < 0 else i for i in indices]
        if not result or min(result) < 0 or max(result) >= count:
            raise ValueError(f"the network has {count} feature maps; {indices} is out of range")
        return result

    def _forward_trunk(
        self, x: Tensor, names: tuple[str, ...] = (), until: str | None = None
    ) -> tuple[Tensor, OrderedDict[str, Tensor]]:
        """Run the trunk, up to the layer `until`; return its output and those of the layers `names`."""
        check_input(x, self.in_channels, self.min_size)
        outputs: OrderedDict[str, Tensor] = OrderedDict()
        for name, layer in self.trunk.named_children():
            x = layer(x)
            if name in names:
                outputs[name] = x
            if name == until:
                break
        return x, outputs

    def _forward_aux_heads(self, maps: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return tuple(head(maps[name]) for name, head in self.aux_heads.items())


def trunk_name(model: nn.Module) -> str:
    """Return the name of the trunk in `model`: a network, or a detector with a network as its backbone."""
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
        raise ValueError(f"expected float pixels, got {x.dtype}: apply Preprocess to the image first")
