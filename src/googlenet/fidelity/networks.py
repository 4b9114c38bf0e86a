"""Networks that compute features: the FID Inception network by name or file, and any other network.

The weights of all tools are the same numbers (released by TensorFlow on 2015-12-05) in different files.
"""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.format import Checkpoint
from ..checkpoint.interop.pretrained import convert_file, default_class_names
from ..checkpoint.load import is_external, load
from ..config.schema import ModelConfig, Recipe
from ..data.disk_cache import download
from ..data.preprocess import Preprocess
from ..export.engine import open_exported
from ..export.manifest import file_sha256, is_exported
from ..files import cache_file, raise_for_placeholder
from ..models.factory import create_model
from ..models.folding import FoldedNetwork, fold
from ..models.layers import spatial_pyramid_pool
from ..models.registry import list_models
from .metrics import Head
from .modes import Mode

FID_NETWORK = "fid-inception-v3"
FID_SIDE = 299
FID_FILE = "pt_inception-2015-12-05-6726825d.pth"
FID_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FID_FILE}"
FID_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# Where other tools have stored the file; torch-fidelity's has the same content.
HUB_FILES = (FID_FILE, "weights-inception-2015-12-05-6726825d.pth")


@dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network from pixels float 0..255 (n, channels, side, side) to features float32 (n, d).

    `digest` identifies the weights and the normalization; empty if unknown. `module` is a folded network with pooling,
    which can be exported; None if only `compute` exists, which runs in `engine`. `head` is the classifier, if known.
    """

    name: str
    digest: str
    side: int
    channels: int
    compute: Callable[[Tensor], Tensor]
    module: "PooledFeatures | None" = None
    head: Head | None = None
    engine: str = "torch"
    precision: str = "float32"
    note: str = ""


class PooledFeatures(nn.Module):
    """A folded network with its pooling: float pixels 0..255 (n, channels, h, w) to a tuple of features (n, d)."""

    def __init__(self, network: FoldedNetwork):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        """Return the features in the precision of the weights."""
        return (spatial_pyramid_pool(self.network.forward_features(pixels), self.network.spp_levels),)


def load_feature_network(
    features: str | Callable[[Tensor], Tensor] | None, weights: str | None, mode: Mode
) -> FeatureNetwork:
    """Load the network named by `features`, by default `FID_NETWORK` with the published weights or the file `weights`.

    Others are a model of the package (with initial weights), a run, a .safetensors file, an exported folder, published
    weights (torchvision:..., timm:...) or, in Python, a function. Raises ValueError for anything else.
    """
    if features is None or features == FID_NETWORK:
        return load_fid_network(Path(weights) if weights else published_weights(), mode)
    if weights is not None:
        raise ValueError(f"--weights is the file of {FID_NETWORK}; name other weights with --features")
    if not isinstance(features, str):
        return _of_function(features)
    if is_exported(Path(features)):
        return _of_exported(features)
    if features in list_models():
        return network_of_checkpoint(_untrained(features), features, note="initial weights: nothing was trained")
    if features.startswith("timm:") and not _is_converted(features):
        return _of_timm(features)
    checkpoint = load(features, task="classification")
    return network_of_checkpoint(checkpoint, features)


def published_weights() -> Path:
    """Return the file of the published weights: from the cache, from another tool's download, or downloaded.

    Raises ValueError with the URL and the path to store the file at if it cannot be downloaded or is damaged.
    """
    path = cache_file("weights", FID_FILE)
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    existing = next((file for file in (path, *(hub / name for name in HUB_FILES)) if file.is_file()), None)
    advice = f"download {FID_URL} elsewhere and store it at {path}, or name the file with --weights"
    if existing is None:
        try:
            if not download(FID_URL, path):
                raise ValueError("no such file")
        except (ValueError, OSError) as error:
            reason = str(error).removeprefix(f"{FID_URL}: ")
            raise ValueError(f"{FID_NETWORK} cannot be downloaded ({reason}); {advice}") from None
        existing = path
    if file_sha256(existing) != FID_SHA256:
        raise ValueError(f"{existing}: not the published weights (SHA-256 differs); delete it, then {advice}")
    return existing


def load_fid_network(path: Path, mode: Mode) -> FeatureNetwork:
    """Load a file of the FID network: pytorch-fid's or torch-fidelity's .pth, TorchScript (.pt), or converted.

    The Inception Score uses the 1008 logits without bias, as the original program and torch-fidelity.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; --weights takes a file of the FID network")
    if path.is_file():
        raise_for_placeholder(path)
    if _is_torchscript(path):
        return _of_torchscript(path, mode)
    checkpoint = convert_file(path, "fid", aux=False) if is_external(path) else load(path, task="classification")
    if checkpoint.recipe.model.name != "inception_v3_fid":
        raise ValueError(f"{path}: {checkpoint.recipe.model.name}, not the FID network; name it with --features")
    scale = (mode.center / 255,) * 3, (mode.scale / 255,) * 3
    preprocess = Preprocess(FID_SIDE, 3, *scale, crop_mode="squash")
    network = network_of_checkpoint(checkpoint, FID_NETWORK, preprocess)
    assert network.head is not None
    return replace(network, head=Head(network.head.weight))


def network_of_checkpoint(
    checkpoint: Checkpoint, name: str, preprocess: Preprocess | None = None, note: str = ""
) -> FeatureNetwork:
    """Return the features before the classifier of a classification network; ValueError for an ensemble."""
    network, preprocess = checkpoint.network, preprocess or checkpoint.preprocess
    module = PooledFeatures(fold(network, preprocess)).to(memory_format=torch.channels_last)
    classifier: Any = network.classifier
    head = Head(classifier.weight.detach(), classifier.bias.detach())
    digest = _digest_of(network.trunk.state_dict(), [preprocess.mean, preprocess.std, preprocess.size])

    def compute(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(pixels)[0].float()  # type: ignore[no-any-return]

    return FeatureNetwork(name, digest, preprocess.size, preprocess.channels, compute, module, head, note=note)


def _digest_of(tensors: dict[str, Tensor], settings: object) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for key, value in sorted(tensors.items()):
        if not key.endswith("num_batches_tracked"):
            digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _untrained(name: str) -> Checkpoint:
    model = create_model(name)
    size = 299 if name.startswith("inception") else 224
    preprocess = Preprocess(size, 3, (0.5,) * 3, (0.5,) * 3)
    classes = default_class_names(model.num_classes)
    return Checkpoint(model.eval(), preprocess, classes, Recipe(model=ModelConfig(name=name)), {})


def _is_torchscript(path: Path) -> bool:
    """Return whether a file is an archive of TorchScript, which contains code."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _of_torchscript(path: Path, mode: Mode) -> FeatureNetwork:
    """Open the archive that StyleGAN and clean-fid use; its `layers` compute features of normalized pixels.

    Its code, which TorchScript's own interpreter runs, cannot use Python.
    """
    try:
        script: Any = torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ValueError(f"{path}: damaged TorchScript archive ({str(error).splitlines()[0]})") from None
    if not hasattr(script, "layers"):
        raise ValueError(f"{path}: a TorchScript archive without the FID network's layers; use {FID_FILE}")
    state = script.state_dict()
    weights = [state[key] for key in state if tuple(state[key].shape) == (1008, 2048) and not key.startswith("layers.")]
    head = Head(weights[0].detach()) if len(weights) == 1 else None

    def compute(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return script.layers((pixels - mode.center) / mode.scale).flatten(1).float()  # type: ignore[no-any-return]

    digest = hashlib.sha256(f"{file_sha256(path)} {mode.center} {mode.scale}".encode()).hexdigest()
    return FeatureNetwork(FID_NETWORK, digest, FID_SIDE, 3, compute, head=head)


def _of_exported(folder: str) -> FeatureNetwork:
    """Open an exported folder; its input are integers, so resized pixels are rounded."""
    predictor = open_exported(folder, _first_engine(folder))
    head, preprocess = predictor.head, predictor.preprocess
    if head is None:
        raise ValueError(f"{folder}: this export has no features; name the run that it was exported from")

    def compute(pixels: Tensor) -> Tensor:
        return spatial_pyramid_pool(predictor.predict_with_features(pixels)[1], head.spp_levels)

    digest = hashlib.sha256(repr(sorted(predictor.manifest.sha256.items())).encode()).hexdigest()
    return FeatureNetwork(
        folder, digest, preprocess.size, preprocess.channels, compute, engine=predictor.name,
        precision=predictor.precision, note="pixels are rounded to integers, which exported files take",
    )  # fmt: skip


def _first_engine(folder: str) -> str:
    from ..inference.engine_selection import exported_engines

    return next(iter(exported_engines(Path(folder))))


def _is_converted(name: str) -> bool:
    """Return whether this package has the network of a timm name."""
    from ..checkpoint.interop.key_maps import SOURCE_MODELS

    return name.split(".")[0] in SOURCE_MODELS


def _of_timm(name: str) -> FeatureNetwork:
    """Return timm's network without classifier, with the input size and normalization of its weights."""
    import timm

    model_name = name.removeprefix("timm:")
    if not timm.is_model(model_name.split(".")[0]):
        raise ValueError(f"{name}: timm has no model of this name; see timm.list_models()")
    try:
        model = timm.create_model(model_name, pretrained=True, num_classes=0).eval()
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name} cannot be downloaded ({reason}); load it elsewhere, and pass a function") from None
    data: Any = timm.data
    config = data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) * 255 for key in ("mean", "std"))

    def compute(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return model((pixels - mean) / std).flatten(1).float()  # type: ignore[no-any-return]

    digest = _digest_of(model.state_dict(), [config["mean"], config["std"], config["input_size"]])
    return FeatureNetwork(name, digest, config["input_size"][-1], 3, compute)


def _of_function(function: Callable[[Tensor], Tensor]) -> FeatureNetwork:
    """Wrap a function of the user; `side` and `digest` are attributes that it may have."""
    side, name = getattr(function, "side", FID_SIDE), getattr(function, "__name__", type(function).__name__)

    def compute(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            features = function(pixels)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(pixels):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"{name} returned {shape} for {len(pixels)} images, not features ({len(pixels)}, d)")
        return features.float().cpu()

    # Without a digest of its own, nothing identifies what a function computes: its features are not cached.
    digest = str(getattr(function, "digest", ""))
    return FeatureNetwork(name, digest, side, 3, compute)
