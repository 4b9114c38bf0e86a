"""Weights of other libraries as checkpoints: from a file, or published weights by name.

`convert` maps the tensors; this module adds each source's preprocessing and class names.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ...config.schema import DataConfig, ModelConfig, Recipe, SizeConfig
from ...data.preprocess import Preprocess
from ...files import cache_file, write_atomically
from ...models.factory import create_model
from ...models.registry import default_config
from ..format import Checkpoint, read_checkpoint, write_checkpoint
from .convert import AUX_PREFIX, from_external_state_dict, identify_source, key_map, to_external_state_dict
from .key_maps import SOURCE_MODELS
from .weight_files import read_tensors

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE_MEAN, CAFFE_MEAN_BN = (123 / 255, 117 / 255, 104 / 255), (128 / 255, 117 / 255, 104 / 255)

# Preprocessing of each source. torchvision normalizes with ImageNet's mean and std, and its networks transform that
# to (x - 0.5) / 0.5, which their weights were trained with: here both are one step. Caffe's networks take BGR bytes
# minus a mean: in RGB and this package's range that is a mean, and a std of 1 / 255.
PREPROCESS: dict[str, Preprocess] = {
    "torchvision:googlenet": Preprocess(224, 3, HALF, HALF, crop_pct=224 / 256),
    "torchvision:inception_v3": Preprocess(299, 3, HALF, HALF, crop_pct=299 / 342),
    "timm:inception_v3": Preprocess(299, 3, HALF, HALF, crop_pct=0.875, interpolation="bicubic"),
    "timm:inception_v4": Preprocess(299, 3, HALF, HALF, crop_pct=0.875, interpolation="bicubic"),
    "timm:inception_resnet_v2": Preprocess(299, 3, HALF, HALF, crop_pct=0.8975, interpolation="bicubic"),
    # Keras' load_img(target_size=...) does not keep the aspect ratio.
    "keras:inception_v3": Preprocess(299, 3, HALF, HALF, crop_mode="squash"),
    "keras:inception_resnet_v2": Preprocess(299, 3, HALF, HALF, crop_mode="squash"),
    "fid:inception_v3": Preprocess(299, 3, HALF, HALF, crop_mode="squash"),
    "caffe:googlenet": Preprocess(224, 3, CAFFE_MEAN, (1 / 255,) * 3, crop_pct=224 / 256),
    "pretrainedmodels:bninception": Preprocess(224, 3, CAFFE_MEAN_BN, (1 / 255,) * 3, crop_pct=224 / 256),
}

# Options that change what a network computes but not its keys.
_DESIGN_OPTIONS = ("stem_stride", "pool_mode", "spp_levels", "width_mult", "count_include_pad")


def convert_file(
    path: Path, source: str, classes: Sequence[str] | None = None, aux: bool = True,
    preprocess: Preprocess | None = None,
) -> Checkpoint:  # fmt: skip
    """Convert a weights file of another library to a checkpoint.

    `source` is a library such as "timm", one of its networks, "timm:inception_v4", or published weights with their
    own preprocessing, "timm:inception_v3.gluon_in1k". `classes` are by default ImageNet's for 1000 outputs, else
    numbers. Without `aux`, auxiliary heads in the file are dropped. `preprocess` replaces the source's usual one.
    Raises ValueError for a file that cannot be read or does not fit.
    """
    tensors = read_tensors(path)
    if source.startswith("timm:") and "." in source:
        source, preprocess = source.split(".")[0], preprocess or timm_preprocess(source.removeprefix("timm:"))
    name = source if ":" in source else identify_source(source, tensors)
    if name not in SOURCE_MODELS:
        raise ValueError(f"unknown source {name!r}; supported are {', '.join(SOURCE_MODELS)}")
    entry = SOURCE_MODELS[name]
    if not aux:
        with_aux = key_map(entry, aux=True)
        dropped = {with_aux[key] for key in with_aux.keys() - key_map(entry, aux=False).keys()}
        tensors = {key: value for key, value in tensors.items() if key not in dropped}
    converted = from_external_state_dict(entry, tensors, str(path))
    model = create_model(entry.model, converted.num_classes, converted.in_channels, converted.aux, **entry.options)
    model.load_state_dict(converted.tensors)
    names = tuple(classes) if classes else default_class_names(converted.num_classes)
    if len(names) != converted.num_classes:
        raise ValueError(f"{path}: has {converted.num_classes} classes, but {len(names)} names were given")
    preprocess = adapt_channels(preprocess or PREPROCESS[name], converted.in_channels, str(path))
    model_config = ModelConfig(name=entry.model, aux=converted.aux, **entry.options)
    size = SizeConfig(train=preprocess.size)
    recipe = Recipe(model=model_config, data=DataConfig(val_split=0), size=size)
    return Checkpoint(model.eval(), preprocess, names, recipe, {})


def adapt_channels(preprocess: Preprocess, channels: int, origin: str) -> Preprocess:
    """Return `preprocess` for a network with 1 or 3 input channels: gray has the average mean and std of RGB."""
    if channels == preprocess.channels:
        return preprocess
    if channels != 1:
        raise ValueError(f"{origin}: the network takes {channels} channels; images have 1 or 3")
    mean, std = ((sum(values) / len(values),) for values in (preprocess.mean, preprocess.std))
    return replace(preprocess, channels=1, mean=mean, std=std)


def override_preprocess(checkpoint: Checkpoint, **values: Any) -> Checkpoint:
    """Return a converted checkpoint with other preprocessing: the fields of `Preprocess` that are not None.

    `mean` and `std` are fractions of the pixel range, one per channel or one for all. Raises ValueError for values that
    cannot be meant.
    """
    values, channels = (
        {key: value for key, value in values.items() if value is not None},
        checkpoint.preprocess.channels,
    )
    for key in values.keys() & {"mean", "std"}:
        numbers = tuple(values[key]) * (channels if len(values[key]) == 1 else 1)
        if len(numbers) != channels:
            raise ValueError(f"{key} needs {channels} numbers, one per channel, not {len(numbers)}")
        if not all(0 <= number <= 1 for number in numbers):
            advice = "divide values of the range 0 to 255 by 255"
            raise ValueError(f"{key} is a fraction of the pixel range, in [0, 1], not {max(numbers):g}; {advice}")
        values[key] = numbers
    preprocess = replace(checkpoint.preprocess, **values)
    if preprocess.size < checkpoint.network.min_size:
        raise ValueError(f"size must be {checkpoint.network.min_size} or more pixels, not {preprocess.size}")
    recipe = replace(checkpoint.recipe, size=SizeConfig(train=preprocess.size))
    return replace(checkpoint, preprocess=preprocess, recipe=recipe)


def export_tensors(checkpoint: Checkpoint, library: str, aux: bool = True) -> dict[str, Tensor]:
    """Return a checkpoint's weights with the keys of `library`'s network, with auxiliary heads if `aux`.

    Raises ValueError if the library has no equivalent network.
    """
    name = checkpoint.recipe.model.name
    assert name is not None
    supported = [source for source, entry in SOURCE_MODELS.items() if entry.model == name]
    matches = [source for source in supported if library in (source, source.split(":")[0])]
    if not matches:
        hint = f"; its weights can be written for {', '.join(supported)}" if supported else ""
        raise ValueError(f"{library} has no network equivalent to {name}{hint}")
    if library.startswith(("caffe", "keras")):
        raise ValueError(f"{library.partition(':')[0].capitalize()} files can be read, but not written")
    for option in _DESIGN_OPTIONS:
        value, default = checkpoint.network.config.get(option), default_config(name).get(option)
        if value != default:
            raise ValueError(f"{library}'s network has {option} {default}, this one {value}: the outputs would differ")
    tensors = checkpoint.network.state_dict()
    if not aux:
        tensors = {key: value for key, value in tensors.items() if not key.startswith(AUX_PREFIX)}
    return to_external_state_dict(SOURCE_MODELS[matches[0]], tensors, name)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to a .safetensors file, or to a PyTorch file for any other suffix."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    buffer = io.BytesIO()
    if path.suffix == ".safetensors":
        buffer.write(save(tensors, {"format": "pt"}))
    else:
        torch.save(tensors, buffer)
    write_atomically(path, buffer.getvalue())


def default_class_names(count: int) -> tuple[str, ...]:
    """Return ImageNet's names for 1000 classes, and numbered names otherwise."""
    if count != 1000:
        return tuple(f"class {number}" for number in range(count))
    from torchvision.models import GoogLeNet_Weights

    return tuple(GoogLeNet_Weights.IMAGENET1K_V1.meta["categories"])


def is_pretrained_name(name: str) -> bool:
    """Return whether `name` has the form of published weights, such as torchvision:googlenet."""
    return re.fullmatch(r"(torchvision|timm):[\w.]+", name) is not None


def load_pretrained(name: str) -> Checkpoint:
    """Download, convert and cache published weights such as "torchvision:googlenet" or "timm:inception_v3.tf_in1k".

    The ValueError without a connection has the URL to download elsewhere and the path to store it at.
    """
    library, model = name.split(":")
    source = name.split(".")[0]
    if source not in SOURCE_MODELS:
        supported = [known for known in SOURCE_MODELS if known.startswith(f"{library}:")]
        raise ValueError(f"unknown pretrained weights {name!r}; {library} has {', '.join(supported)}")
    return {"torchvision": _from_torchvision, "timm": _from_timm}[library](name, source, model)


def _from_torchvision(name: str, source: str, model: str) -> Checkpoint:
    from torchvision.models import get_model_weights

    published = get_model_weights(source.split(":")[1])
    _, _, tag = model.partition(".")
    if tag and tag not in published.__members__:
        raise ValueError(f"torchvision has no weights {tag!r} of {source}; it has {', '.join(published.__members__)}")
    weights = published[tag] if tag else published.DEFAULT
    path: Path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[1]

    def download() -> None:
        weights.get_state_dict(progress=False, check_hash=True)

    # Its published auxiliary heads are untrained.
    return _cached(name, path, download, weights.url, lambda file: convert_file(file, source, aux=False))


def _from_timm(name: str, source: str, model: str) -> Checkpoint:
    import timm
    from timm.models import get_pretrained_cfg, list_pretrained

    tags = list_pretrained(f"{source.split(':')[1]}.*")
    if "." in model and model not in tags:
        raise ValueError(f"timm has no weights {model!r}; it has {', '.join(tags)}")
    cfg = get_pretrained_cfg(model)
    assert cfg is not None
    path = cache_file("weights", f"{str(cfg.hf_hub_id).replace('/', '--')}.safetensors")

    def download() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, timm.create_model(model, pretrained=True).state_dict())

    preprocess = timm_preprocess(model)
    url = f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/model.safetensors"
    return _cached(name, path, download, url, lambda file: convert_file(file, source, aux=False, preprocess=preprocess))


def timm_preprocess(model: str) -> Preprocess:
    """Return the preprocessing of timm's published weights, such as inception_v3.gluon_in1k."""
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(model, allow_unregistered=False)
    if cfg is None:
        raise ValueError(f"timm has no weights {model!r}")
    options: dict[str, Any] = {"crop_pct": cfg.crop_pct, "interpolation": cfg.interpolation}
    return Preprocess(cfg.input_size[-1], 3, tuple(cfg.mean), tuple(cfg.std), **options)


def _cached(
    name: str, path: Path, download: Callable[[], None], url: str, convert: Callable[[Path], Checkpoint]
) -> Checkpoint:
    """Return the converted weights from the cache, else convert the file at `path`, downloading it if necessary."""
    cached = cache_file("weights", f"{name.replace(':', '-')}.safetensors")
    if cached.exists() and (not path.exists() or cached.stat().st_mtime >= path.stat().st_mtime):
        return read_checkpoint(cached)
    if not path.exists():
        try:
            download()
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            advice = f"download {url} elsewhere and store it at {path}"
            raise ValueError(f"{name} cannot be downloaded ({reason}); {advice}") from None
    checkpoint = convert(path)
    cached.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(cached, checkpoint)
    return checkpoint
