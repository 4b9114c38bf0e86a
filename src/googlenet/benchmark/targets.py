"""The targets of a benchmark: a network of this package in each engine and precision, and peers of other libraries.

Targets are measured with ``default`` settings, those that a library selects by itself, and in ``float32`` with one
number of threads for all.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.format import Checkpoint, write_checkpoint
from ..checkpoint.interop.convert import AUX_PREFIX, to_external_state_dict
from ..checkpoint.interop.key_maps import SOURCE_MODELS
from ..data.dataset import Split
from ..evaluation.metrics import classification_metrics
from ..evaluation.predictor import predict_split
from ..export.backends import BACKENDS
from ..export.engine import INT8, supported_precisions
from ..export.exporter import ExportResult, model_name
from ..export.manifest import read_manifest
from ..inference.engine_selection import exported_engines
from ..inference.folded import folded_precisions
from ..models.factory import create_model
from ..models.network import Network
from ..models.summary import summary
from .runner import DEFAULT, SETTINGS, BenchmarkTarget
from .worker import PEER_ENGINES, open_predictor, peer_model

FLOAT32 = "float32"


def model_targets(
    checkpoint: Checkpoint, exported: ExportResult, engines: Sequence[str], sizes: Sequence[int], path: str
) -> list[BenchmarkTarget]:
    """Return the network in the fastest engine, and in each of `engines` in each precision of this processor.

    `path` is what `load_predictor` loads. Those in float32 are also returned for the settings ``float32``.
    """
    macs, folder, files = count_macs(checkpoint.network, sizes), exported.folder, exported.manifest.files
    targets = [
        BenchmarkTarget("googlenet, auto", {"kind": "model", "path": path, "engine": "auto", "size": max(sizes)}, macs)
    ]
    names = [f"torch:{precision}" for precision in folded_precisions()] if "torch" in engines else []
    for engine in (entry for entry in files if entry in engines and entry != "torch"):
        precisions = supported_precisions(engine) + (["int8"] if engine + INT8 in files else [])
        names += [f"{engine}:{precision}" for precision in precisions]
    for name in names:
        engine, _, precision = name.partition(":")
        spec = {"kind": "model", "path": path if engine == "torch" else str(folder), "engine": name}
        entry = name if precision == "int8" else engine
        num_bytes = sum((folder / file).stat().st_size for file in files.get(entry, ()) if engine != "torch") or None
        target = BenchmarkTarget(f"googlenet, {engine} {precision}", spec, macs, num_bytes)
        targets.append(target)
        if precision == FLOAT32:
            targets.append(target._replace(settings=FLOAT32))
    return targets


def folder_targets(folder: Path, engines: Sequence[str]) -> list[BenchmarkTarget]:
    """Return each engine and precision of an exported folder, of the engines that `engines` names."""
    manifest, targets = read_manifest(folder), []
    for name in exported_engines(folder):
        engine, _, precision = name.partition(":")
        if engine in engines:
            files = manifest.files[name if precision == "int8" else engine]
            num_bytes = sum((folder / file).stat().st_size for file in files)
            top1 = manifest.accuracy.get(precision if precision == FLOAT32 else name, {}).get("top1")
            spec = {"kind": "model", "path": str(folder), "engine": name}
            title = f"{manifest.model}, {engine} {precision}"
            targets.append(BenchmarkTarget(title, spec, {}, num_bytes, top1, settings=FLOAT32))
    return targets


def with_accuracy(targets: Sequence[BenchmarkTarget], test: Split) -> list[BenchmarkTarget]:
    """Add the top-1 accuracy on `test` at the network's own size to the targets of this package."""
    top1 = dict[str, float]()
    for target in targets:
        if target.name not in top1:
            predictions = predict_split(open_predictor(target.spec, None), test)
            if predictions.labels.ndim == 2:  # any number of labels per image
                return list(targets)
            top1[target.name] = classification_metrics(predictions)["top1"]
    return [target._replace(top1=top1[target.name]) for target in targets]


def peer_targets(
    checkpoint: Checkpoint, cases: Sequence[tuple[int, int]], work: Path, timm_models: Sequence[str] = ("inception_v3",)
) -> list[BenchmarkTarget]:
    """Return torchvision's GoogLeNet and timm's networks: PyTorch eager and compiled, ONNX Runtime and OpenVINO.

    They have the channels and classes of `checkpoint`; torchvision's also has its weights, if it is the same network.
    `cases` are (size, batch); networks that do not support the sizes are omitted. Files are written to `work`. timm's
    networks are measured with default settings only.
    """
    channels, num_classes = checkpoint.preprocess.channels, len(checkpoint.classes)
    sizes, targets = sorted({size for size, _ in cases}), list[BenchmarkTarget]()
    for library, name in (("torchvision", "googlenet"), *(("timm", name) for name in timm_models)):
        twin = create_model("googlenet_torchvision" if library == "torchvision" else name, num_classes, channels)
        if sizes[0] < twin.min_size:
            continue
        spec: dict[str, Any] = {"library": library, "name": name, "num_classes": num_classes, "channels": channels}
        spec["weights"] = _write_weights(checkpoint, work) if library == "torchvision" else None
        folder = work / f"{library}-{name}"
        _export_onnx(peer_model(spec), channels, cases, folder)
        num_bytes = next(folder.glob("*.onnx")).stat().st_size
        for settings in SETTINGS if library == "torchvision" else (DEFAULT,):
            for engine in PEER_ENGINES:
                peer: Mapping[str, Any] = {**spec, "kind": "peer", "engine": engine, "folder": str(folder)}
                size = None if engine.startswith("torch") else num_bytes
                title = f"{library} {name}, {engine}"
                targets.append(BenchmarkTarget(title, peer, count_macs(twin, sizes), size, None, True, settings))
    return targets


def _write_weights(checkpoint: Checkpoint, work: Path) -> str | None:
    """Write the weights for torchvision's network and return the file, if it is the same network."""
    if model_name(checkpoint) != "googlenet_torchvision":
        return None
    state = {k: v for k, v in checkpoint.network.state_dict().items() if not k.startswith(AUX_PREFIX)}
    path = work / "torchvision.pt"
    torch.save(to_external_state_dict(SOURCE_MODELS["torchvision:googlenet"], state, model_name(checkpoint)), path)
    return str(path)


def _export_onnx(model: nn.Module, channels: int, cases: Sequence[tuple[int, int]], folder: Path) -> None:
    """Export with default options, one file for each (size, batch): static shapes are the fastest."""
    folder.mkdir(exist_ok=True)
    for size, batch in cases:
        file = folder / f"{size}x{batch}.onnx"
        with warnings.catch_warnings(action="ignore"):
            images = torch.zeros(batch, channels, size, size)
            torch.onnx.export(model, (images,), file, dynamo=True, external_data=False, verbose=False)


def write_model(checkpoint: Checkpoint, work: Path) -> str:
    """Write a network that is no run, and return what `load_predictor` loads."""
    path = work / "model.safetensors"
    write_checkpoint(path, checkpoint)
    return str(path)


def exported_formats(engines: Sequence[str]) -> list[str]:
    """Return the formats to export for `engines`: PyTorch runs the folded network directly."""
    return [name for name, backend in BACKENDS.items() if backend.engine in engines and name != "torch"] or ["onnx"]


def count_macs(model: Network, sizes: Sequence[int]) -> dict[int, int]:
    """Return the multiply-adds of one image by height and width in pixels, without auxiliary heads."""
    return {size: summary(model, size).inference_macs for size in sizes}
