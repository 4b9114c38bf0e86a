"""Run a feature network in the fastest engine of this machine, or in a lower precision."""

import copy
import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.preprocess import Preprocess
from ..devices import pick_device
from ..evaluation.predictor import Predictor
from ..export.backends import BACKENDS, format_of, formats_with
from ..export.engine import parse_engine, supported_precisions
from ..export.spec import ExportSpec
from ..files import cache_file, mark_used, package_version
from ..inference.engine_selection import select_fastest
from ..inference.folded import folded_precisions
from .networks import FeatureNetwork, PooledFeatures

PRECISIONS = ("float32", "bfloat16", "int8")
AUTO, TORCH = "auto", "torch"
# OpenVINO computes these faster than the others on most processors.
ORDER = ("openvino", "onnxruntime", "torch")
BATCH_SIZE, GPU_BATCH_SIZE = 8, 128


class FeatureSpec(ExportSpec):
    """An export of features instead of logits, from float pixels, because resized pixels are not integers."""

    @property
    def output_names(self) -> list[str]:
        """The name of the only output."""
        return ["features"]

    def module(self) -> nn.Module:
        """Return a float32 copy on the CPU, from pixels to a tuple of the features."""
        return PooledFeatures(copy.deepcopy(self.network)).cpu().float()  # type: ignore[arg-type]

    def example_input(self) -> Tensor:
        """Return an input to trace with."""
        return super().example_input().float()


class FeatureEngine:
    """Features in an engine, with the attributes of a `Predictor` that measuring its speed needs."""

    classes: tuple[str, ...] = ()

    def __init__(self, name: str, precision: str, preprocess: Preprocess, run: Callable[[Tensor], Tensor]):
        self.name, self.precision, self.preprocess, self.run = name, precision, preprocess, run
        self.min_size = preprocess.size

    def predict(self, images: Tensor) -> Tensor:
        """Return the features float32 (n, d) of pixels (n, channels, side, side)."""
        return self.run(images.float())


def with_engine(
    network: FeatureNetwork,
    engine: str = AUTO,
    precision: str = "float32",
    calibration: Callable[[], Tensor] | None = None,
) -> FeatureNetwork:
    """Return the network in `engine` and `precision`; the fastest of those installed, measured once and cached.

    `calibration` returns pixels of real images, on which the ranges of int8 are measured. On an accelerator, PyTorch
    computes. Raises ValueError for an engine or precision that is unknown, not installed or not supported.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if network.module is None:
        if precision != network.precision and precision != "float32":
            raise ValueError(f"{network.name} computes in {network.precision} only; omit --precision")
        return network
    if engine != AUTO and parse_engine(engine)[1]:
        raise ValueError(f"{engine}: name the precision with --precision")
    device = pick_device("auto")
    chosen: Predictor
    if device.type != "cpu" and engine in (AUTO, "torch"):
        if precision == "int8":
            raise ValueError(f"int8 is computed on the CPU, in an engine: name one with --engine, not {device.type}")
        chosen = _torch_engine(network, precision, device)
    elif precision == "float32" and engine == AUTO:
        key = [_export_key(network), "features"]
        chosen = select_fastest(_candidates(network), f"auto:{precision}", None, key)
    else:
        chosen = _open(network, _choose(engine, precision), precision, calibration)
    return replace(network, compute=chosen.predict, engine=chosen.name, precision=precision)


def batch_size() -> int:
    """Return the number of images of a batch."""
    return BATCH_SIZE if pick_device("auto").type == "cpu" else GPU_BATCH_SIZE


def _candidates(network: FeatureNetwork) -> dict[str, Callable[[], Predictor]]:
    can_export = importlib.util.find_spec("onnxscript")
    names = [BACKENDS[name].engine for name in formats_with("fast")]
    names = [name for name in names if can_export and importlib.util.find_spec(name)]
    return {f"{name}:float32": partial(_open, network, name, "float32", None) for name in ["torch", *names]}


def _choose(engine: str, precision: str) -> str:
    """Return the engine that computes in `precision`: `engine`, or the first one installed."""
    supporting = [name for name in ORDER if precision in _precisions(name)]
    if engine == AUTO and supporting:
        return supporting[0]
    if engine not in supporting:
        known = f"install or choose {', '.join(supporting)}" if supporting else "pip install 'googlenet[export]'"
        raise ValueError(f"{engine} does not compute in {precision} here; {known}, or use --precision float32")
    return engine


def _precisions(engine: str) -> list[str]:
    if engine == "torch":
        return folded_precisions()
    if not importlib.util.find_spec(engine):
        return []
    quantized = ["int8"] if BACKENDS[format_of(engine)].int8 else []
    return [*supported_precisions(engine), *quantized]


def _torch_engine(network: FeatureNetwork, precision: str, device: torch.device) -> FeatureEngine:
    module: Any = copy.deepcopy(network.module)
    module.to(device)
    module.network.trunk.to(getattr(torch, precision))
    module.network.classifier.to(getattr(torch, precision))

    def run(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            features: Tensor = module(pixels.to(device).contiguous(memory_format=torch.channels_last))[0]
        return features.float().cpu()

    return FeatureEngine("torch", precision, _preprocess(network), run)


def _open(
    network: FeatureNetwork, engine: str, precision: str, calibration: Callable[[], Tensor] | None
) -> FeatureEngine:
    if engine == "torch":
        return _torch_engine(network, precision, torch.device("cpu"))
    backend = BACKENDS[format_of(engine)]
    if precision == "int8":
        assert calibration is not None
        paths = _exported(network, engine, calibration())
    else:
        paths = _exported(network, engine, None)
    session = backend.module.open(paths, None, "float32" if precision == "int8" else precision)
    return FeatureEngine(engine, precision, _preprocess(network), lambda pixels: session(pixels.contiguous())[0])


def _preprocess(network: FeatureNetwork) -> Preprocess:
    zeros, ones = (0.0,) * network.channels, (1.0,) * network.channels
    return Preprocess(network.side, network.channels, zeros, ones)


def _export_key(network: FeatureNetwork) -> str:
    inputs = [network.digest, *(package_version(name) for name in ("googlenet", "torch", "onnx", "openvino"))]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:24]


def _exported(network: FeatureNetwork, engine: str, calibration: Tensor | None) -> Sequence[Path]:
    """Return the files of the network for an engine, int8 with `calibration`; exported once, then cached."""
    key = _export_key(network)
    if calibration is not None:
        key += f"-{hashlib.sha256(calibration.numpy().tobytes()).hexdigest()[:16]}"
    folder = cache_file("exported", f"features-{key}-{engine}")
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            backend, spec = BACKENDS[format_of(engine)].module, _spec(network)
            names = backend.write(spec, new)
            if calibration is not None:
                names = backend.quantize(new, list(torch.split(calibration, 1)), [])
            (new / "files.json").write_text(json.dumps(names))
            # Renaming fails if another process was faster: its files are the same.
            if not folder.is_dir():
                new.rename(folder)
    mark_used(folder)
    return [folder / name for name in json.loads((folder / "files.json").read_text())]


def _spec(network: FeatureNetwork) -> FeatureSpec:
    assert network.module is not None
    return FeatureSpec(network.module.network, _preprocess(network), fixed_size=True)
