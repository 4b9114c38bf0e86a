"""Where a run's weights start: drawn anew, or taken from a trained network; and which of them stay as they are."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..errors import nearest
from ..models.catalogue import defaults, spec
from ..models.network import Network, trunk_name
from .checkpoint import Checkpoint, build_model, load, load_strictly
from .foreign import is_published
from .recipe import Recipe

AUXILIARY = "aux_heads."

# What a network's design is made of, in a recipe.
DESIGN = ("init", "dropout", "pools", "stem_stride", "pyramid", "width")


def load_start(recipe: Recipe) -> Checkpoint | None:
    """The network that the recipe starts from; None where it draws its own weights.

    ValueError where it cannot be read, or is another one than the recipe names.
    """
    if recipe.model.weights is None:
        return None
    try:
        start = load(recipe.model.weights, task=None if recipe.task == "detection" else recipe.task)
    except ValueError as error:
        raise ValueError(f"model.weights: {error}") from None
    if recipe.model.name not in (None, start.recipe.model.name):
        raise ValueError(
            f"model.weights: {recipe.model.weights} is a {start.recipe.model.name}, the recipe's model.name is "
            f"{recipe.model.name}; leave model.name unset"
        )
    return start


def with_start(recipe: Recipe) -> Recipe:
    """`recipe` with what it leaves to the weights it starts from filled in: network, design, size."""
    model, size = recipe.model, recipe.size
    if model.weights is None and recipe.data.normalise == "weights":
        raise ValueError("data.normalise: weights needs model.weights to start from")
    if model.weights is not None:
        if not is_published(model.weights):
            model = replace(model, weights=str(Path(model.weights).expanduser().absolute()))
        # A run that goes on has all of this in its recipe, and needs the file no more.
        left_open = model.name is None or any(getattr(model, choice) is None for choice in defaults(model.name))
        if size.train is None or left_open:
            start = load_start(recipe)
            assert start is not None
            theirs = start.recipe.model
            left = {choice: getattr(theirs, choice) for choice in DESIGN if getattr(model, choice) is None}
            model = replace(model, name=theirs.name, **left)
            size = replace(size, train=start.preprocess.size if size.train is None else size.train)
    name = model.name or "googlenet"
    size = replace(size, train=spec(name).input_size if size.train is None else size.train)
    return replace(recipe, model=replace(model, name=name), size=size)


def build_start(recipe: Recipe, start: Checkpoint | None, classes: tuple[str, ...], channels: int) -> Network:
    """The recipe's network for `classes` and `channels` (1 or 3), with the weights of `start` where there is one.

    Every tensor of `start` must fit. The exceptions: auxiliary heads that only one of the two has; the first
    convolution, which is matched to the channels (`match_channels`); and the head, which is drawn anew unless the
    classes are the same. Layers that the recipe freezes take no gradient.
    """
    if start is None:
        model = build_model(recipe, len(classes), channels)
    else:
        model = build_model(recipe, len(start.classes), channels)
        own = model.state_dict()
        tensors = start.network.state_dict()
        if not start.network.aux_heads or not model.aux_heads:
            tensors = {key: value for key, value in tensors.items() if not key.startswith(AUXILIARY)}
            tensors |= {key: value for key, value in own.items() if key.startswith(AUXILIARY)}
        first = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)) + ".weight"
        tensors[first] = match_channels(tensors[first], channels)
        load_strictly(model, dict(tensors), f"model.weights: {recipe.model.weights}")
        if classes != start.classes:
            model.reset_head(len(classes), recipe.seed)
    freeze(model, recipe.model.freeze)
    return model


def match_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution's weight (out, in, h, w) for another number of input channels, 1 or 3.

    A grey picture, repeated to three channels, gives the same map before and after: the weight is shared out evenly
    among the channels, or summed over them. ValueError for any other numbers.
    """
    had = weight.shape[1]
    if had == channels:
        return weight
    if (had, channels) == (1, 3):
        return weight.repeat(1, 3, 1, 1) / 3
    if (had, channels) == (3, 1):
        return weight.sum(dim=1, keepdim=True)
    raise ValueError(f"model.weights: made for {had} channels, the pictures have {channels}; 1 and 3 can be matched")


def start_preprocess(recipe: Recipe, start: Checkpoint, channels: int) -> Preprocess:
    """Normalisation as `start` knows it, repeated or averaged for `channels`; at the recipe's test size."""
    had = start.preprocess

    def match(numbers: tuple[float, ...]) -> tuple[float, ...]:
        return numbers if len(numbers) == channels else (sum(numbers) / len(numbers),) * channels

    return Preprocess(recipe.test_size, channels, match(had.mean), match(had.std), fit=recipe.data.fit)


def freeze(model: Network, upto: str) -> None:
    """Let the first layers of the trunk take no gradient: none, stem, trunk (all), or up to the layer so named."""
    names = [name for name, _ in model.trunk.named_children()]
    first_block = next(number for number, name in enumerate(names) if name.startswith(("inception", "mixed")))
    counts = {"none": 0, "stem": first_block, "trunk": len(names)}
    counts |= {name: number for number, name in enumerate(names, start=1)}
    if upto not in counts:
        raise ValueError(
            f"model.freeze takes none, stem, trunk or a layer's name, not {upto!r}{nearest(upto, counts)}; "
            f"the layers are {', '.join(names)}"
        )
    for layer in list(model.trunk.children())[: counts[upto]]:
        layer.requires_grad_(False)


def training_mode(model: nn.Module) -> None:
    """Like ``model.train()``, but frozen layers stay in evaluation: their normalisation's statistics do not move."""
    model.train()
    for layer in model.get_submodule(trunk_name(model)).children():
        parameters = list(layer.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            layer.eval()
