"""Keras' InceptionV3 and InceptionResNetV2 as functions, from the description in its documentation, without Keras.

`Builder` draws the weights while it computes the output, so the layers come in the order in which Keras builds them.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's "same" padding before and after: ceil(size / stride) outputs, the odd pixel at the end."""
    total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


class Builder:
    def __init__(self, seed: int, first: int = 0):
        self.random = np.random.default_rng(seed)
        # name -> class and variables, in the order of creation
        self.layers: dict[str, tuple[str, dict[str, np.ndarray]]] = {}
        self.count, self.first = 0, first

    def draw(self, *shape: int) -> np.ndarray:
        return self.random.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape).astype("float32")

    def vector(self, size: int, low: float = -0.2, high: float = 0.2) -> np.ndarray:
        return self.random.uniform(low, high, size).astype("float32")

    def conv(self, x: Tensor, filters: int, size: Any, stride: int = 1, valid: bool = False, name: str = "") -> Tensor:
        """Convolution, normalization with beta only and epsilon 1e-3, ReLU; with `name` of a projection: only bias."""
        height, width = (size, size) if isinstance(size, int) else size
        kernel = self.draw(height, width, x.shape[1], filters)
        number = self.first + self.count
        layer = name or f"conv2d{f'_{number}' if number else ''}"
        if not valid:
            (top, bottom), (left, right) = (
                same_padding(n, k, stride) for n, k in zip(x.shape[2:], (height, width), strict=True)
            )
            x = F.pad(x, (left, right, top, bottom))
        weight = torch.from_numpy(kernel).permute(3, 2, 0, 1).double()
        if name.startswith("block"):
            bias = self.vector(filters)
            self.layers[layer] = "Conv2D", {"kernel": kernel, "bias": bias}
            return F.conv2d(x, weight, torch.from_numpy(bias).double())
        self.layers[layer] = "Conv2D", {"kernel": kernel}
        norm = f"{name}_bn" if name else f"batch_normalization{f'_{number}' if number else ''}"
        self.count += not name
        variables = [self.vector(filters), self.vector(filters), self.vector(filters, 0.5, 1.5)]
        names = ("beta", "moving_mean", "moving_variance")
        self.layers[norm] = "BatchNormalization", dict(zip(names, variables, strict=True))
        beta, mean, variance = (torch.from_numpy(v).double().view(1, -1, 1, 1) for v in variables)
        return F.relu((F.conv2d(x, weight, stride=stride) - mean) / torch.sqrt(variance + 1e-3) + beta)

    def branch(self, x: Tensor, *convs: Any) -> Tensor:
        """Apply convolutions (filters, size) with "same" padding, the last one perhaps (filters, size, stride)."""
        for filters, size, *stride in convs:
            x = self.conv(x, filters, size, *stride, valid=bool(stride))
        return x

    def dense(self, x: Tensor, classes: int, name: str = "predictions") -> Tensor:
        kernel, bias = self.draw(x.shape[1], classes), self.vector(classes)
        self.layers[name] = "Dense", {"kernel": kernel, "bias": bias}
        return x @ torch.from_numpy(kernel).double() + torch.from_numpy(bias).double()

    def stem(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(self.conv(x, 32, 3, 2, valid=True), 32, 3, valid=True), 64, 3)
        x = self.conv(self.conv(F.max_pool2d(x, 3, 2), 80, 1, valid=True), 192, 3, valid=True)
        return F.max_pool2d(x, 3, 2)


def average(x: Tensor) -> Tensor:
    """Average pooling 3x3 with "same" padding: the mean of the pixels inside the map."""
    ones = F.pad(torch.ones_like(x[:1, :1]), (1, 1, 1, 1))
    kernel = torch.ones(x.shape[1], 1, 3, 3, dtype=x.dtype)
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, groups=x.shape[1]) / F.conv2d(ones, kernel[:1])


def inception_v3(b: Builder, x: Tensor, classes: int) -> Tensor:
    x = b.stem(x)
    for pool in (32, 64, 64):
        branches = [b.branch(x, (64, 1)), b.branch(x, (48, 1), (64, 5)), b.branch(x, (64, 1), (96, 3), (96, 3))]
        x = torch.cat([*branches, b.branch(average(x), (pool, 1))], 1)
    branches = [b.branch(x, (384, 3, 2)), b.branch(x, (64, 1), (96, 3), (96, 3, 2))]
    x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    for n in (128, 160, 160, 192):
        branches = [
            b.branch(x, (192, 1)),
            b.branch(x, (n, 1), (n, (1, 7)), (192, (7, 1))),
            b.branch(x, (n, 1), (n, (7, 1)), (n, (1, 7)), (n, (7, 1)), (192, (1, 7))),
        ]
        x = torch.cat([*branches, b.branch(average(x), (192, 1))], 1)
    branches = [b.branch(x, (192, 1), (320, 3, 2)), b.branch(x, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2))]
    x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    for _ in range(2):
        first, second = b.branch(x, (320, 1)), b.branch(x, (384, 1))
        second = torch.cat([b.branch(second, (384, (1, 3))), b.branch(second, (384, (3, 1)))], 1)
        third = b.branch(x, (448, 1), (384, 3))
        third = torch.cat([b.branch(third, (384, (1, 3))), b.branch(third, (384, (3, 1)))], 1)
        x = torch.cat([first, second, third, b.branch(average(x), (192, 1))], 1)
    return b.dense(x.mean((2, 3)), classes)


def inception_resnet_v2(b: Builder, x: Tensor, classes: int) -> Tensor:
    x = b.stem(x)
    branches = [b.branch(x, (96, 1)), b.branch(x, (48, 1), (64, 5)), b.branch(x, (64, 1), (96, 3), (96, 3))]
    x = torch.cat([*branches, b.branch(average(x), (64, 1))], 1)

    def residual(x: Tensor, kind: str, number: int, scale: float, *branches: Any) -> Tensor:
        mixed = torch.cat([b.branch(x, *branch) for branch in branches], 1)
        return x + scale * b.conv(mixed, x.shape[1], 1, name=f"{kind}_{number}_conv")

    for number in range(1, 11):
        convs = ((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3))
        x = F.relu(residual(x, "block35", number, 0.17, *convs))
    branches = [b.branch(x, (384, 3, 2)), b.branch(x, (256, 1), (256, 3), (384, 3, 2))]
    x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    for number in range(1, 21):
        x = F.relu(residual(x, "block17", number, 0.1, ((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1)))))
    branches = [
        b.branch(x, (256, 1), (384, 3, 2)),
        b.branch(x, (256, 1), (288, 3, 2)),
        b.branch(x, (256, 1), (288, 3), (320, 3, 2)),
    ]
    x = torch.cat([*branches, F.max_pool2d(x, 3, 2)], 1)
    for number in range(1, 10):
        x = F.relu(residual(x, "block8", number, 0.2, ((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1)))))
    x = residual(x, "block8", 10, 1.0, ((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1))))
    return b.dense(b.conv(x, 1536, 1, name="conv_7b").mean((2, 3)), classes)


NETWORKS = {"inception_v3": inception_v3, "inception_resnet_v2": inception_resnet_v2}


def write_keras2(group: h5py.Group, b: Builder, order: list[str], suffix: str = ":0") -> None:
    """Write the layout of Keras 2: attributes with the names of layers and weights, groups "layer/layer/variable"."""
    group.attrs["layer_names"] = np.array([name.encode() for name in order])
    for name in order:
        layer, variables = group.create_group(name), b.layers[name][1]
        layer.attrs["weight_names"] = np.array([f"{name}/{key}{suffix}".encode() for key in variables])
        for key, value in variables.items():
            layer[f"{name}/{key}{suffix}"] = value


def write_keras3(file: h5py.File, b: Builder, order: list[str], names: bool) -> None:
    """Write the layout of Keras 3: layers numbered by class in the order of the model, variables by number."""
    counts: dict[str, int] = {}
    for name in order:
        kind = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization", "Dense": "dense"}[b.layers[name][0]]
        number = counts[kind] = counts.get(kind, -1) + 1
        group = file.create_group(f"layers/{kind}{f'_{number}' if number else ''}/vars")
        if names:
            group.attrs["name"] = name
        for index, value in enumerate(b.layers[name][1].values()):
            group[str(index)] = value
    file["optimizer/vars/0"] = np.int64(5)


def write(path: Path, b: Builder, layout: str, order: list[str] | None = None) -> None:
    """Write the layers in a layout: weights2, model2 (.h5), weights3, unnamed3 (.weights.h5) or zip3 (.keras)."""
    order = order or list(b.layers)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        if layout == "weights2":
            write_keras2(file, b, order)
        elif layout == "model2":
            file.attrs["model_config"] = "{}"
            write_keras2(file.create_group("model_weights"), b, order, "")
            file["optimizer_weights/Adam/conv2d/kernel/m:0"] = np.zeros((3, 3, 3, 32), "float32")
        else:
            write_keras3(file, b, order, layout == "weights3")
    if layout != "zip3":
        path.write_bytes(buffer.getvalue())
        return
    layers = [{"class_name": b.layers[name][0], "config": {"name": name}} for name in order]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"layers": layers}}))
        archive.writestr("model.weights.h5", buffer.getvalue())
