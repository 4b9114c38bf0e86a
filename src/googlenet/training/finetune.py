"""Start a run from trained weights: load them, adapt them to other classes and channels, freeze layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..checkpoint.format import Checkpoint, build_network, load_strictly
from ..checkpoint.interop.convert import AUX_PREFIX
from ..checkpoint.interop.pretrained import is_pretrained_name
from ..checkpoint.load import load
from ..config.schema import Recipe
from ..data.preprocess import Preprocess
from ..errors import nearest
from ..models.network import Network, trunk_name
from ..models.registry import default_config, get_model_spec

# Options of `ModelConfig` that define the network's design.
DESIGN_OPTIONS = ("init", "dropout", "pool_mode", "stem_stride", "spp_levels", "width_mult", "count_include_pad")


def load_init_checkpoint(recipe: Recipe) -> Checkpoint | None:
    """Load the checkpoint of `model.init_from`; None if the recipe trains from scratch.

    Raises ValueError if it cannot be read or is another network than the recipe names.
    """
    if recipe.model.init_from is None:
        return None
    try:
        init = load(recipe.model.init_from, task=None if recipe.task == "detection" else "classification")
    except ValueError as error:
        raise ValueError(f"model.init_from: {error}") from None
    if recipe.model.name not in (None, init.recipe.model.name):
        difference = f"a {init.recipe.model.name}, the recipe's model.name is {recipe.model.name}"
        raise ValueError(f"model.init_from: {recipe.model.init_from} is {difference}; leave model.name unset")
    return init


def resolve_init_options(recipe: Recipe) -> Recipe:
    """Fill in the options that the recipe leaves to the initial weights: network, design, size, crop, interpolation."""
    model, size, data = recipe.model, recipe.size, recipe.data
    if model.init_from is None and recipe.data.normalize == "pretrained":
        raise ValueError("data.normalize: pretrained needs model.init_from")
    if model.init_from is not None:
        if not is_pretrained_name(model.init_from):
            model = replace(model, init_from=str(Path(model.init_from).expanduser().absolute()))
        # A resumed run has all options in its recipe and does not need the file any more.
        incomplete = model.name is None or any(getattr(model, option) is None for option in default_config(model.name))
        # Detectors keep the aspect ratio, so they do not crop.
        if recipe.task != "detection":
            incomplete |= data.crop_pct is None or data.interpolation is None
        if size.train is None or incomplete:
            init = load_init_checkpoint(recipe)
            assert init is not None
            source = init.recipe.model
            options = {key: getattr(source, key) for key in DESIGN_OPTIONS if getattr(model, key) is None}
            model = replace(model, name=source.name, **options)
            size = replace(size, train=init.preprocess.size if size.train is None else size.train)
            if recipe.task != "detection":
                values = {
                    key: getattr(data, key) or getattr(init.preprocess, key) for key in ("crop_pct", "interpolation")
                }
                data = replace(data, **values)
    name = model.name or "googlenet"
    size = replace(size, train=get_model_spec(name).input_size if size.train is None else size.train)
    return replace(recipe, model=replace(model, name=name), size=size, data=data)


def init_from_checkpoint(recipe: Recipe, init: Checkpoint | None, classes: tuple[str, ...], channels: int) -> Network:
    """Build the recipe's network for `classes` and `channels` (1 or 3), with the weights of `init` if given.

    Every tensor of `init` must fit, with three exceptions: auxiliary heads that only one of the two networks has; the
    first convolution, which is adapted to the channels; and the classifier, which is new if the classes differ. The
    layers of `model.freeze` take no gradient.
    """
    model = build_network(recipe, len(classes if init is None else init.classes), channels)
    if init is not None:
        tensors = init.network.state_dict()
        if not init.network.aux_heads or not model.aux_heads:
            tensors = {key: value for key, value in tensors.items() if not key.startswith(AUX_PREFIX)}
            tensors |= {key: value for key, value in model.state_dict().items() if key.startswith(AUX_PREFIX)}
        first = first_conv_weight(model)
        tensors[first] = adapt_input_channels(tensors[first], channels)
        load_strictly(model, dict(tensors), f"model.init_from: {recipe.model.init_from}")
        if classes != init.classes:
            seed = recipe.seed if recipe.model.seed is None else recipe.model.seed
            model.reset_classifier(len(classes), seed=seed)
    freeze_layers(model, recipe.model.freeze)
    return model


def first_conv_weight(model: nn.Module) -> str:
    """Return the key of the first convolution's weight."""
    return f"{next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))}.weight"


def adapt_input_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt a first convolution's weight (out, in, h, w) to 1 or 3 input channels.

    The output for a gray image, repeated to three channels, stays the same: the weight is distributed evenly over the
    channels, or summed over them. Raises ValueError for other numbers of channels.
    """
    given = weight.shape[1]
    if given == channels:
        return weight
    if (given, channels) == (1, 3):
        return weight.repeat(1, 3, 1, 1) / 3
    if (given, channels) == (3, 1):
        return weight.sum(dim=1, keepdim=True)
    difference = f"the network takes {given} channels and the images have {channels}"
    raise ValueError(f"model.init_from: {difference}; only 1 and 3 can be converted")


def run_preprocess(recipe: Recipe, data: Any, init: Checkpoint | None, saved: dict[str, Any] | None) -> Preprocess:
    """Return the preprocessing of a run: normalization by `data.normalize`, at the evaluation size.

    `data` has `channels`, `mean` and `std`. With ``pretrained`` the mean and standard deviation are those of `init`,
    repeated or averaged for the channels, or those of the `saved` training state.
    """
    channels, mode = data.channels, recipe.data.crop_mode
    if recipe.data.normalize == "pretrained":
        if init is None:
            assert saved is not None
            return Preprocess.from_dict(saved["preprocess"])

        def adapt(values: tuple[float, ...]) -> tuple[float, ...]:
            return values if len(values) == channels else (sum(values) / len(values),) * channels

        mean, std = adapt(init.preprocess.mean), adapt(init.preprocess.std)
    elif recipe.data.normalize == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean, std = data.mean, data.std
    return Preprocess(
        recipe.eval_size, channels, mean, std, crop_mode=mode, crop_pct=recipe.data.crop_pct or 1.0,
        interpolation=recipe.data.interpolation or "bilinear", max_value=getattr(data, "max_value", None),
    )  # fmt: skip


def freeze_layers(model: Network, until: str) -> None:
    """Disable the gradients of the first layers of the trunk: none, stem, trunk (all), or up to the layer `until`.

    ``auto`` is resolved before, in `similarity`.
    """
    names = [name for name, _ in model.trunk.named_children()]
    first_block = next(number for number, name in enumerate(names) if name.startswith(("inception", "mixed")))
    counts = {"none": 0, "stem": first_block, "trunk": len(names)}
    counts |= {name: number for number, name in enumerate(names, start=1)}
    if until not in counts:
        raise ValueError(
            f"model.freeze must be none, stem, trunk, auto or a layer, not {until!r}{nearest(until, counts)}; "
            f"the layers are {', '.join(names)}"
        )
    for layer in list(model.trunk.children())[: counts[until]]:
        layer.requires_grad_(False)


def set_train_mode(model: nn.Module) -> None:
    """Set training mode, but evaluation mode for frozen layers, whose running statistics must not change."""
    model.train()
    for layer in model.get_submodule(trunk_name(model)).children():
        parameters = list(layer.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            layer.eval()
