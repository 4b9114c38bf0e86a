"""Read Caffe's binary model files, without Caffe.

Only the fields that contain weights are declared here; protobuf ignores the others. (caffe.proto: NetParameter,
LayerParameter, V1LayerParameter, BlobProto, BlobShape.)
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from torch import Tensor

# Message -> field -> (number, type, repeated). A type that is not a scalar is another message.
FIELDS: dict[str, dict[str, tuple[int, str, bool]]] = {
    "BlobShape": {"dim": (1, "int64", True)},
    "BlobProto": {
        "num": (1, "int32", False),
        "channels": (2, "int32", False),
        "height": (3, "int32", False),
        "width": (4, "int32", False),
        "data": (5, "float", True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, "double", True),
    },
    "LayerParameter": {"name": (1, "string", False), "type": (2, "string", False), "blobs": (7, "BlobProto", True)},
    "V1LayerParameter": {"name": (4, "string", False), "blobs": (6, "BlobProto", True)},
    "NetParameter": {
        "name": (1, "string", False),
        "layers": (2, "V1LayerParameter", True),
        "layer": (100, "LayerParameter", True),
    },
}


@cache
def build_messages() -> dict[str, Any]:
    """Build the message classes, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="googlenet/caffe.proto", package="googlenet_caffe", syntax="proto2")
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in FIELDS.items():
        message_type = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            entry = message_type.field.add(
                name=field, number=number, label=field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            )
            if kind in FIELDS:
                entry.type, entry.type_name = field_type.TYPE_MESSAGE, f".googlenet_caffe.{kind}"
            else:
                entry.type = field_type.Type.Value(f"TYPE_{kind.upper()}")
                if repeated:
                    entry.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"googlenet_caffe.{name}")) for name in FIELDS
    }


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """Read the blobs of all layers: "layer.number" -> float32 tensor.

    Raises ValueError for another kind of file, and if a blob's data do not fit its shape.
    """
    net = build_messages()["NetParameter"]()
    try:
        net.ParseFromString(path.read_bytes())
    except message.DecodeError:
        raise ValueError(f"{path}: damaged, or not a binary Caffe model") from None
    blobs = {
        f"{layer.name}.{number}": _tensor(blob, f"{path}: {layer.name}")
        for layer in [*net.layer, *net.layers]
        for number, blob in enumerate(layer.blobs)
    }
    if not blobs:
        raise ValueError(f"{path}: contains no weights; is it a solver state or a text file?")
    return blobs


def _tensor(blob: Any, name: str) -> Tensor:
    values = np.array(blob.data if len(blob.data) else blob.double_data, dtype=np.float32)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    if values.size != np.prod(shape):
        raise ValueError(f"{name}: {values.size} values do not fit a blob of shape {shape}")
    # Old files store a vector with the shape (1, 1, 1, n).
    if len(shape) == 4 and shape[:3] == (1, 1, 1) and not blob.HasField("shape"):
        shape = shape[3:]
    return torch.from_numpy(values.reshape(shape))
