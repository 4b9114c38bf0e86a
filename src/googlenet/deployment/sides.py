"""What a benchmark puts side by side: a network of ours in each engine, and the peers that a user would else pick."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..models.catalogue import create
from ..models.ensemble import Ensemble
from ..models.key_maps import ORIGINS
from ..models.network import Network
from ..models.summary import summarise
from ..models.weights import AUXILIARY, to_theirs
from .benchmark import Side
from .description import Description
from .export import Trained
from .peers import peer_network, write_plain


def our_sides(
    trained: Trained, folder: Path, description: Description, engines: Sequence[str], sizes: Sequence[int], work: Path
) -> list[Side]:
    """PyTorch with the fused network, and each file of the exported `folder`, as far as `engines` name them.

    What the processes need besides is written into `work`.
    """
    channels = trained.preprocess.channels
    if isinstance(trained.model, Ensemble):
        raise ValueError("networks are measured one by one: name a member, such as RUN/member-1")
    macs = multiply_adds(trained.model, sizes)
    sides = []
    if "torch" in engines:
        weights = work / "ours.pt"
        torch.save(trained.model.state_dict(), weights)
        spec: dict[str, Any] = {
            "kind": "eager", "library": "googlenet", "arguments": trained.model.arguments, "tensors": str(weights),
            "mean": trained.preprocess.mean, "std": trained.preprocess.std, "channels": channels,
        }  # fmt: skip
        sides.append(Side("ours, torch (fused)", spec, macs, None, _top1(description.accuracy, "float32")))
    for key, files in description.files.items():
        engine, _, precision = key.partition(":")
        if engine not in engines:
            continue
        spec = {"kind": "exported", "folder": str(folder), "channels": channels}
        spec["engine"] = f"{engine}:{precision or 'float32'}"
        size = sum((folder / file).stat().st_size for file in files)
        top1 = _top1(description.accuracy, key if precision else "float32")
        name = f"ours, {engine} {precision}".rstrip()
        sides.append(Side(name, spec, macs, size, top1, precision=precision or "float32"))
    return sides


def peer_sides(trained: Trained, cases: Sequence[tuple[int, int]], work: Path) -> list[Side]:
    """torchvision's GoogLeNet in PyTorch, ONNX Runtime and OpenVINO, and timm's Inception-v3 in PyTorch.

    With as many channels and classes as ours; torchvision's has our weights where ours is that network, others fresh
    ones. `cases` are sizes and batches; peers that do not take the sizes are left out.
    """
    channels, classes = trained.preprocess.channels, trained.model.num_classes
    sizes = sorted({size for size, _ in cases})
    tensors = None
    if trained.name == "googlenet_torchvision":
        ours = {k: v for k, v in trained.model.state_dict().items() if not k.startswith(AUXILIARY)}
        tensors = to_theirs(ORIGINS["torchvision:googlenet"], ours, trained.name)
        torch.save(tensors, work / "theirs.pt")
    like = create("googlenet_torchvision", classes, channels)
    if sizes[0] < like.min_size:
        return []
    network = peer_network("torchvision", "googlenet", classes, channels, tensors)
    write_plain(network, channels, cases, work / "plain")
    macs = multiply_adds(like, sizes)
    eager = {"kind": "eager", "library": "torchvision", "name": "googlenet", "classes": classes, "channels": channels}
    weights = str(work / "theirs.pt") if tensors else None
    sides = [Side("torchvision, torch", {**eager, "tensors": weights}, macs, peer=True)]
    for engine in ("onnxruntime", "openvino"):
        spec = {"kind": "file", "engine": engine, "folder": str(work / "plain"), "channels": channels}
        size = next((work / "plain").glob("*.onnx")).stat().st_size
        sides.append(Side(f"torchvision, {engine}", spec, macs, size, peer=True))
    if sizes[0] >= (v3 := create("inception_v3", classes, channels)).min_size:
        timm = {**eager, "library": "timm", "name": "inception_v3", "tensors": None}
        sides.append(Side("timm inception_v3, torch", timm, multiply_adds(v3, sizes), peer=True))
    return sides


def multiply_adds(model: Network, sizes: Sequence[int]) -> dict[int, int]:
    """Of one picture's answer, by its height and width in pixels; auxiliary heads, which answer nothing, left out."""
    found = {}
    for size in sizes:
        counted = summarise(model, size)
        found[size] = counted.macs - sum(row.macs for row in counted.rows if row.name.startswith("aux_"))
    return found


def _top1(accuracy: Mapping[str, Any], key: str) -> float | None:
    top1: float | None = accuracy[key]["top1"] if key in accuracy else None
    return top1
