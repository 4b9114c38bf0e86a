"""Networks that others have trained: their files, and their published weights by name, as checkpoints of ours.

Which tensor goes where is in `models.weights`; here is what goes with the tensors: how each origin's pixels are made,
and the names of its classes.
"""

import io
import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..cache import cache_folder
from ..data.preprocess import Preprocess
from ..files import write_atomically
from ..models import weights
from ..models.catalogue import create, defaults
from ..models.key_maps import ORIGINS
from ..models.weights import to_ours
from .checkpoint import Checkpoint, load, save_weights
from .recipe import Data, Model, Recipe, Size

HALF = (0.5, 0.5, 0.5)

# How each origin's pixels are made. torchvision's networks are fed (x - mean) / std of ImageNet, and undo it inside
# for (x - 0.5) / 0.5, which is what their weights were trained with: the two are one step here. Caffe's take bytes,
# blue first, less a mean: in our order and range that is a mean and a deviation of 1 / 255.
PREPROCESS: dict[str, Preprocess] = {
    "torchvision:googlenet": Preprocess(224, 3, HALF, HALF, crop_share=224 / 256),
    "torchvision:inception_v3": Preprocess(299, 3, HALF, HALF, crop_share=299 / 342),
    "timm:inception_v3": Preprocess(299, 3, HALF, HALF, crop_share=0.875, interpolation="bicubic"),
    "timm:inception_v4": Preprocess(299, 3, HALF, HALF, crop_share=0.875, interpolation="bicubic"),
    "timm:inception_resnet_v2": Preprocess(299, 3, HALF, HALF, crop_share=0.8975, interpolation="bicubic"),
    "fid:inception_v3": Preprocess(299, 3, HALF, HALF, fit="stretch"),
    "caffe:googlenet": Preprocess(224, 3, (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3, crop_share=224 / 256),
    "pretrainedmodels:bninception": Preprocess(
        224, 3, (128 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3, crop_share=224 / 256
    ),
}

IMAGENET_CLASSES = 1000


def convert_file(
    path: Path,
    library: str,
    classes: Sequence[str] | None = None,
    aux: bool = True,
    preprocess: Preprocess | None = None,
) -> Checkpoint:
    """A weights file of `library` as a checkpoint.

    `library` is a name such as "timm", a network of it, "timm:inception_v4", or published weights, whose pixels may
    be others: "timm:inception_v3.gluon_in1k".

    `classes` names the outputs: ImageNet's where there are 1000 and none are given. Without `aux`, auxiliary heads in
    the file are left out. `preprocess` replaces the origin's usual one. ValueError, in one line, for a file that
    cannot be read or does not fit.
    """
    tensors = read_tensors(path)
    if library.startswith("timm:") and "." in library:
        library, preprocess = library.split(".")[0], preprocess or timm_preprocess(library.removeprefix("timm:"))
    name = library if ":" in library else weights.matching(library, tensors)
    if name not in ORIGINS:
        raise ValueError(f"no weights are known as {name!r}; there are {', '.join(ORIGINS)}")
    origin = ORIGINS[name]
    if not aux:
        side = weights.keys(origin, aux=True).keys() - weights.keys(origin, aux=False).keys()
        theirs = {weights.keys(origin, aux=True)[key] for key in side}
        tensors = {key: value for key, value in tensors.items() if key not in theirs}
    fitting = to_ours(origin, tensors, str(path))
    model = create(origin.model, fitting.num_classes, fitting.in_channels, fitting.aux)
    model.load_state_dict(fitting.tensors)
    names = tuple(classes) if classes else class_names(fitting.num_classes)
    if len(names) != fitting.num_classes:
        raise ValueError(f"{path}: has {fitting.num_classes} classes, {len(names)} names were given")
    preprocess = preprocess or PREPROCESS[name]
    recipe = Recipe(
        model=Model(name=origin.model, aux=fitting.aux),
        data=Data(validation=0),
        size=Size(train=preprocess.size),
    )
    return Checkpoint(model.eval(), preprocess, names, recipe, {})


def export_tensors(checkpoint: Checkpoint, library: str, aux: bool = True) -> dict[str, Tensor]:
    """A checkpoint's weights under the keys of `library`'s network, without auxiliary heads' unless `aux`.

    ValueError where the library has no network that is this one.
    """
    name = checkpoint.recipe.model.name
    assert name is not None
    for choice in ("stem_stride", "pools", "pyramid", "width"):
        usual, has = defaults(name).get(choice), checkpoint.network.arguments.get(choice)
        if has != usual:
            raise ValueError(
                f"{library}'s network has {choice} {usual}, this one {has}: it would compute something else"
            )
    fitting = [
        origin
        for known, origin in ORIGINS.items()
        if library in (known, known.split(":")[0]) and origin.model == name
    ]
    if not fitting:
        there = [known for known, origin in ORIGINS.items() if origin.model == name]
        hint = f"; its weights can be written for {', '.join(there)}" if there else ""
        raise ValueError(f"{library} has no network that is a {name}{hint}")
    if library.startswith("caffe"):
        raise ValueError("Caffe's files are read, not written")
    ours = checkpoint.network.state_dict()
    if not aux:
        ours = {key: value for key, value in ours.items() if not key.startswith(weights.AUXILIARY)}
    return weights.to_theirs(fitting[0], ours, name)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors to a .safetensors file, or to a PyTorch file for any other suffix."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    if path.suffix == ".safetensors":
        write_atomically(path, save(tensors, {"format": "pt"}))
        return
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    write_atomically(path, buffer.getvalue())


def class_names(count: int) -> tuple[str, ...]:
    """ImageNet's names where there are 1000 classes; numbers otherwise."""
    if count != IMAGENET_CLASSES:
        return tuple(f"class {number}" for number in range(count))
    from torchvision.models import GoogLeNet_Weights

    return tuple(GoogLeNet_Weights.IMAGENET1K_V1.meta["categories"])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a .safetensors, .caffemodel or PyTorch file; ValueError for one that cannot be read.

    PyTorch files are read without running the code that they may hold. A state dict inside a training checkpoint
    ("state_dict", "model") is found; so are names behind "module.", which parallel training puts there.
    """
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder; name a file' if path.is_dir() else 'no such file'}")
    if path.suffix == ".caffemodel":
        from ..models.caffe import read_caffemodel

        return read_caffemodel(path)
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" not in str(error) and "Unsupported class" not in str(error):
            raise ValueError(f"{path}: damaged, or not a PyTorch file") from None
        raise ValueError(
            f"{path}: it holds more than tensors and numbers, and is not opened: that could run code; save its "
            "state_dict() where it came from"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: damaged, or not a PyTorch file ({reason})") from None
    for inner in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(inner), Mapping):
            found = found[inner]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path}: holds no state dict, that is, no tensors by name")
    tensors = {str(key): value for key, value in found.items()}
    prefix = "module."
    return (
        {key.removeprefix(prefix): value for key, value in tensors.items()}
        if all(key.startswith(prefix) for key in tensors)
        else tensors
    )


# Published weights, by name.

_PUBLISHED = re.compile(r"(torchvision|timm):[\w.]+")


def is_published(name: str) -> bool:
    """Whether `name` looks like that of another library's published weights."""
    return _PUBLISHED.fullmatch(name) is not None


def load_published(name: str) -> Checkpoint:
    """Fetch "torchvision:googlenet", "timm:inception_v3.tf_in1k" and the like, convert them, keep the result.

    ValueError for an unknown name; and where there is no connection, with the file to fetch elsewhere and where to
    put it.
    """
    library, model = name.split(":")
    known = f"{library}:{model.split('.')[0]}"
    if known not in ORIGINS:
        names = [origin for origin in ORIGINS if origin.startswith(f"{library}:")]
        raise ValueError(f"no published weights are known as {name!r}; {library} has {', '.join(names)}")
    return {"torchvision": _from_torchvision, "timm": _from_timm}[library](name, known, model)


def _from_torchvision(name: str, known: str, model: str) -> Checkpoint:
    from torchvision.models import get_model_weights

    published = get_model_weights(known.split(":")[1])
    _, _, tag = model.partition(".")
    if tag and tag not in published.__members__:
        raise ValueError(f"torchvision has no weights {tag!r} of {known}; it has {', '.join(published.__members__)}")
    chosen = published[tag] if tag else published.DEFAULT
    place: Path = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rsplit("/", 1)[1]

    def fetch() -> Path:
        chosen.get_state_dict(progress=False, check_hash=True)
        return place

    # Its published auxiliary heads are untrained.
    return _kept(name, place, fetch, chosen.url, lambda path: convert_file(path, known, aux=False))


def _from_timm(name: str, known: str, model: str) -> Checkpoint:
    import timm
    from timm.models import get_pretrained_cfg, list_pretrained

    tags = list_pretrained(f"{known.split(':')[1]}.*")
    if "." in model and model not in tags:
        raise ValueError(f"timm has no weights {model!r}; it has {', '.join(tags)}")
    about = get_pretrained_cfg(model)
    assert about is not None
    place = cache_folder() / "weights" / f"{str(about.hf_hub_id).replace('/', '--')}.safetensors"

    def fetch() -> Path:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(place, timm.create_model(model, pretrained=True).state_dict())
        return place

    preprocess = timm_preprocess(model)
    url = f"https://huggingface.co/{about.hf_hub_id}/resolve/main/model.safetensors"
    return _kept(name, place, fetch, url, lambda path: convert_file(path, known, aux=False, preprocess=preprocess))


def timm_preprocess(model: str) -> Preprocess:
    """How timm makes the pixels of its published weights `model`, such as inception_v3.gluon_in1k."""
    from timm.models import get_pretrained_cfg

    about = get_pretrained_cfg(model, allow_unregistered=False)
    if about is None:
        raise ValueError(f"timm has no weights {model!r}")
    interpolation: Any = about.interpolation
    return Preprocess(
        about.input_size[-1], 3, tuple(about.mean), tuple(about.std),
        crop_share=about.crop_pct, interpolation=interpolation,
    )  # fmt: skip


def _kept(
    name: str, place: Path, fetch: Callable[[], Path], url: str, convert: Callable[[Path], Checkpoint]
) -> Checkpoint:
    """The converted weights from our cache; else converted from the file at `place`, fetched if need be."""
    kept = cache_folder() / "weights" / f"{name.replace(':', '-')}.safetensors"
    newer = kept.exists() and (not place.exists() or kept.stat().st_mtime >= place.stat().st_mtime)
    if newer:
        return load(kept)
    if not place.exists():
        try:
            fetch()
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{name} cannot be fetched ({reason}); download {url} elsewhere and put it at {place}"
            ) from None
    checkpoint = convert(place)
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_weights(kept, checkpoint)
    return checkpoint
