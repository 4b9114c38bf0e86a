"""Eight-bit integers after training: quicker where the processor multiplies bytes, and a little less exact.

Ranges are measured on training pictures; weights have a scale per output channel. Layers that hurt are found by
measurement, on other training pictures, and stay in float32.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Split
from ..data.preprocess import Preprocess
from ..errors import FailedError
from ..evaluation.metrics import Outputs, top_k_accuracy
from .asked import raw
from .engine import Engine
from .order import INPUT, needed
from .parity import whole_numbers

# Pictures that an int8 file is judged on, beside those that the ranges are measured on: of fewer, a loss of 0.003
# could not be told from chance. Of these so many tell how much a layer disturbs the logits.
JUDGED, DISTURBED = 4000, 500
# Of the loss that is allowed in all, what the judged pictures may show before a layer is looked for.
SHARE = 0.75


class Calibration(NamedTuple):
    """Training pictures as bytes, (n, channels, size, size): `ranges` to measure on, `judged` with their `labels`."""

    ranges: Tensor
    judged: Tensor
    labels: Tensor


class Quantised(NamedTuple):
    """An int8 file of an engine: its names, the layers left in float32, top-1 lost on the judged pictures."""

    files: list[str]
    kept: list[str]
    judged_drop: float


def calibration(train: Split, preprocess: Preprocess, count: int) -> Calibration:
    """`count` pictures for the ranges and as many as there are, `JUDGED` at most, to judge by; evenly spaced."""
    if len(train.labels) < 2:
        raise ValueError("int8 needs training pictures to measure ranges on; name them with --data")
    count = min(count, len(train.labels) - 1)
    chosen = train.spaced(count + JUDGED)
    # Every so many for the ranges, so that both have all classes of an ordered folder.
    place = torch.arange(len(chosen.labels))
    first = torch.zeros(len(place), dtype=torch.bool)
    first[place[:count] * len(place) // count] = True
    like = raw(preprocess)
    (pixels,) = chosen.pixels([place])
    made = torch.cat([whole_numbers(like(part)) for part in torch.split(pixels, 100)])
    return Calibration(made[first], made[~first], chosen.labels[~first])


def for_openvino(folder: Path, pictures: Tensor, kept: Sequence[str]) -> list[str]:
    """``model.int8.xml`` from ``model.xml``, by NNCF, with fast bias correction."""
    nncf, openvino = needed("nncf"), needed("openvino")
    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(folder / "model.xml")
    patterns = [_nodes_of(name) for name in kept]
    with contextlib.redirect_stdout(sys.stderr):
        found = nncf.quantize(
            model,
            nncf.Dataset([picture[np.newaxis] for picture in pictures.numpy()]),
            subset_size=len(pictures),
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(patterns=patterns, validate=False) if patterns else None,
        )
    openvino.save_model(found, folder / "model.int8.xml", compress_to_fp16=False)
    return ["model.int8.xml", "model.int8.bin"]


def for_onnxruntime(folder: Path, pictures: Tensor, kept: Sequence[str]) -> list[str]:
    """``model.int8.onnx`` from ``model.onnx``, with QuantizeLinear and DequantizeLinear around each operator."""
    onnx = needed("onnx", "onnxruntime")
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[Any] = iter(pictures.numpy())

        def get_next(self) -> dict[str, Any] | None:
            picture = next(self.rest, None)
            return None if picture is None else {INPUT: picture[np.newaxis]}

    names = [node.name for node in onnx.load(folder / "model.onnx").graph.node]
    logging.getLogger().setLevel(logging.ERROR)
    quantization.quantize_static(
        folder / "model.onnx",
        folder / "model.int8.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=[name for name in names if layer_of(name) in kept],
        extra_options={"ActivationSymmetric": False},
    )
    return ["model.int8.onnx"]


QUANTISERS: dict[str, Callable[[Path, Tensor, Sequence[str]], list[str]]] = {
    "onnxruntime": for_onnxruntime,
    "openvino": for_openvino,
}


def layer_of(node: str) -> str:
    """The trunk's layer that a node belongs to by its name, or the classifier: "trunk.conv1" -> "conv1".

    Of an ensemble with the member's number: "networks.0.trunk.conv1" -> "networks.0.conv1".
    """
    found = re.match(r"(networks\.\d+\.)?(?:trunk\.)?([^.]*)", node)
    assert found
    return (found[1] or "") + found[2]


def _nodes_of(layer: str) -> str:
    """The pattern of the names of a layer's nodes; the other way round."""
    member, name = re.fullmatch(r"(networks\.\d+\.)?(.*)", layer).groups("")  # type: ignore[union-attr]
    place = name if name == "classifier" else f"trunk.{name}"
    return rf"^{re.escape(member + place)}(\..*|/.*)?$"


def quantise(
    engine: str,
    folder: Path,
    pictures: Calibration,
    layers: Sequence[str],
    max_drop: float,
    opened: Callable[[str, Sequence[str]], Engine],
) -> Quantised:
    """Write the int8 file of `engine` beside its float32 one.

    `layers` are the trunk's and the classifier; `opened` opens files of the folder by the engine's name. While more
    than three quarters of `max_drop` are lost on the judged pictures, the layer that disturbs the logits most goes
    back to float32, and the rest is measured again. FailedError where half of the layers do not suffice.
    """
    write = QUANTISERS[engine]
    exact = _answers(opened(engine, []), pictures)
    kept: list[str] = []
    order: list[str] = []
    while True:
        files = write(folder, pictures.ranges, kept)
        found = _answers(opened(engine, files), pictures)
        drop = top_k_accuracy(exact, 1) - top_k_accuracy(found, 1)
        if drop <= SHARE * max_drop:
            return Quantised(files, kept, drop)
        if 2 * len(kept) >= len(layers):
            raise FailedError(
                f"int8 for {engine} loses {drop:.4f} of top-1 on training pictures with {len(kept)} of {len(layers)} "
                "layers in float32; nothing was written; leave --int8 off, or allow more with --max-drop"
            )
        if not order:
            print(f"{engine}: int8 loses {drop:.4f}; looking for the layers that hurt", file=sys.stderr)
            few = pictures._replace(judged=pictures.judged[:DISTURBED], labels=pictures.labels[:DISTURBED])
            errors = {}
            for layer in layers:
                alone = write(folder, pictures.ranges, [layer])
                errors[layer] = _error(_answers(opened(engine, alone), few), exact)
            order = sorted(layers, key=errors.__getitem__)
        kept = [*kept, order[len(kept)]]


def _answers(engine: Engine, pictures: Calibration) -> Outputs:
    parts = torch.split(pictures.judged, 50)
    return Outputs(torch.cat([engine(part) for part in parts]), pictures.labels)


def _error(found: Outputs, exact: Outputs) -> float:
    return (found.logits - exact.logits[: len(found.logits)]).square().mean().item()
