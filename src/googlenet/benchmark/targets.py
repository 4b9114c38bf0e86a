"""The targets of a benchmark: a network of this package in each engine, and baselines of other libraries."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint.format import Checkpoint, write_checkpoint
from ..checkpoint.interop.convert import AUX_PREFIX, to_external_state_dict
from ..checkpoint.interop.key_maps import SOURCE_MODELS
from ..export.exporter import ExportResult, model_name
from ..export.manifest import read_manifest
from ..inference.engine_selection import exported_engines
from ..models.factory import create_model
from ..models.network import Network
from ..models.summary import summary
from .runner import BenchmarkTarget
from .worker import baseline_model


def model_targets(
    checkpoint: Checkpoint, exported: ExportResult, engines: Sequence[str], sizes: Sequence[int], work: Path
) -> list[BenchmarkTarget]:
    """Return the folded network in PyTorch, and each exported file, of those that `engines` names.

    Files for the worker processes are written to the folder `work`.
    """
    macs = count_macs(checkpoint.network, sizes)
    top1 = {key: metrics["top1"] for key, metrics in exported.manifest.accuracy.items()}
    targets = []
    if "torch" in engines:
        path = work / "model.safetensors"
        write_checkpoint(path, checkpoint)
        spec = {"kind": "folded", "checkpoint": str(path)}
        targets.append(BenchmarkTarget("googlenet, torch (folded)", spec, macs, None, top1.get("float32")))
    entries = [entry for entry in exported.manifest.files if entry.partition(":")[0] in engines]
    for entry in entries:
        engine, _, int8 = entry.partition(":")
        precision = int8 or "float32"
        spec = {"kind": "exported", "folder": str(exported.folder), "engine": f"{engine}:{precision}"}
        num_bytes = sum((exported.folder / file).stat().st_size for file in exported.manifest.files[entry])
        name, accuracy = f"googlenet, {engine} {int8}".rstrip(), top1.get(entry if int8 else "float32")
        targets.append(BenchmarkTarget(name, spec, macs, num_bytes, accuracy, precision=precision))
    return targets


def folder_targets(folder: Path, engines: Sequence[str]) -> list[BenchmarkTarget]:
    """Return each engine and precision of an exported folder, of the engines that `engines` names."""
    manifest, targets = read_manifest(folder), []
    for name in exported_engines(folder):
        engine, _, precision = name.partition(":")
        if engine in engines:
            entry = name if precision == "int8" else engine
            num_bytes = sum((folder / file).stat().st_size for file in manifest.files[entry])
            top1 = manifest.accuracy.get(precision if precision == "float32" else name, {}).get("top1")
            spec = {"kind": "exported", "folder": str(folder), "engine": name}
            title = f"{manifest.model}, {engine} {precision.removeprefix('float32')}".rstrip()
            targets.append(BenchmarkTarget(title, spec, {}, num_bytes, top1, precision=precision))
    return targets


def baseline_targets(checkpoint: Checkpoint, cases: Sequence[tuple[int, int]], work: Path) -> list[BenchmarkTarget]:
    """Return torchvision's GoogLeNet in PyTorch, ONNX Runtime and OpenVINO, and timm's Inception-v3 in PyTorch.

    They have the channels and classes of `checkpoint`; torchvision's also has its weights, if it is the same network.
    `cases` are (size, batch); networks that do not support the sizes are omitted.
    """
    channels, num_classes = checkpoint.preprocess.channels, len(checkpoint.classes)
    sizes = sorted({size for size, _ in cases})
    twin = create_model("googlenet_torchvision", num_classes, channels)
    if sizes[0] < twin.min_size:
        return []
    weights = None
    if model_name(checkpoint) == "googlenet_torchvision":
        state = {k: v for k, v in checkpoint.network.state_dict().items() if not k.startswith(AUX_PREFIX)}
        tensors = to_external_state_dict(SOURCE_MODELS["torchvision:googlenet"], state, model_name(checkpoint))
        weights = str(work / "baseline.pt")
        torch.save(tensors, weights)
    common: dict[str, Any] = {"kind": "baseline", "num_classes": num_classes, "channels": channels}
    spec = {**common, "library": "torchvision", "name": "googlenet", "weights": weights}
    folder, macs = work / "baseline", count_macs(twin, sizes)
    _export_onnx(baseline_model(spec), channels, cases, folder)
    targets = [BenchmarkTarget("torchvision, torch", spec, macs, baseline=True)]
    num_bytes = next(folder.glob("*.onnx")).stat().st_size
    for engine in ("onnxruntime", "openvino"):
        spec = {"kind": "onnx_file", "engine": engine, "folder": str(folder), "channels": channels}
        targets.append(BenchmarkTarget(f"torchvision, {engine}", spec, macs, num_bytes, baseline=True))
    if sizes[0] >= (v3 := create_model("inception_v3", num_classes, channels)).min_size:
        spec = {**common, "library": "timm", "name": "inception_v3", "weights": None}
        targets.append(BenchmarkTarget("timm inception_v3, torch", spec, count_macs(v3, sizes), baseline=True))
    return targets


def _export_onnx(model: nn.Module, channels: int, cases: Sequence[tuple[int, int]], folder: Path) -> None:
    """Export with default options, one file for each (size, batch): static shapes are the fastest."""
    folder.mkdir(exist_ok=True)
    for size, batch in cases:
        file = folder / f"{size}x{batch}.onnx"
        with warnings.catch_warnings(action="ignore"):
            images = torch.zeros(batch, channels, size, size)
            torch.onnx.export(model, (images,), file, dynamo=True, external_data=False, verbose=False)


def count_macs(model: Network, sizes: Sequence[int]) -> dict[int, int]:
    """Return the multiply-adds of one image by height and width in pixels, without auxiliary heads."""
    return {size: summary(model, size).inference_macs for size in sizes}
