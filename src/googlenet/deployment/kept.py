"""An engine for a run: its network is exported once, and the files are kept in the cache."""

import hashlib
import importlib.util
import json
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from ..cache import cache_folder
from ..models.ensemble import networks_of
from ..models.fusion import fuse
from .description import NAME
from .engine import Engine
from .engines import open_engine
from .export import Pictures, Trained, export
from .formats import FORMATS

# What `auto` tries of a run: the engines that are quick on a CPU.
QUICK = ("onnx", "openvino")


class FusedEngine:
    """A network in PyTorch as it is deployed: fused, channels last in memory; see `Engine`."""

    name = "torch"

    def __init__(self, trained: Trained, threads: int | None):
        if threads:
            torch.set_num_threads(threads)
        self.preprocess, self.classes = trained.preprocess, trained.classes
        fused: nn.Module = fuse(trained.model.cpu(), trained.preprocess)
        self.model = fused.to(memory_format=torch.channels_last)

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (n, channels, h, w) -> logits float32 (n, classes)."""
        with torch.inference_mode():
            logits: Tensor = self.model(pixels)
        return logits.float()


def engine_for(trained: Trained, name: str = "auto", threads: int | None = None) -> Engine:
    """`trained` in the engine `name`: torch, onnxruntime, openvino, ncnn, or ``auto``, the quickest here.

    What the engine reads is exported when it is first asked for, and kept in the cache by the network's digest.
    `threads` as for `open_engine`. ValueError for an unknown or missing engine.
    """
    if name == "torch":
        return FusedEngine(trained, threads)
    if name == "auto":
        formats = [key for key in QUICK if importlib.util.find_spec(FORMATS[key].engine)]
        if not formats or importlib.util.find_spec("onnxscript") is None:
            return FusedEngine(trained, threads)
    else:
        formats = [key for key, entry in FORMATS.items() if entry.engine == name]
        if not formats:
            raise ValueError(f"no engine is called {name!r}; there are torch, onnxruntime, openvino, ncnn, auto")
    folder = cache_folder() / "exported" / f"{network_digest(trained)}-{'-'.join(formats)}"
    if not (folder / NAME).exists():
        size, channels = trained.preprocess.size, trained.preprocess.channels
        noise = torch.randint(0, 256, (1, channels, size, size), dtype=torch.uint8)
        export(trained, Pictures(noise), folder, formats, threads=threads)
    return open_engine(folder, name, threads)


def network_digest(trained: Trained) -> str:
    """Of the weights, the pixels and the versions that an export depends on."""
    found = hashlib.sha256()
    about = [trained.name, trained.preprocess.to_dict(), trained.classes]
    about += [network.arguments for network in networks_of(trained.model)]
    about += [metadata.version(package) for package in ("googlenet", "torch")]
    found.update(json.dumps(about, sort_keys=True).encode())
    for key, value in sorted(trained.model.state_dict().items()):
        found.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:24]


def is_exported(place: Path) -> bool:
    """Whether `place` is an exported folder."""
    return (place / NAME).is_file()
