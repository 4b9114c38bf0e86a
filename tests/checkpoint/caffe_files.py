"""Write Caffe's files without Caffe: a prototxt layer by layer, a caffemodel byte by byte."""

import numpy as np

# The blocks of the original network: name, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
BLOCKS = """
3a  64  96 128 16  32  32
3b 128 128 192 32  96  64
4a 192  96 208 16  48  64
4b 160 112 224 24  64  64
4c 128 128 256 24  64  64
4d 112 144 288 32  64  64
4e 256 160 320 32 128 128
5a 256 160 320 32 128 128
5b 384 192 384 48 128 128
"""


class Prototxt:
    """Write a deploy.prototxt layer by layer, and collect the shapes of the weights."""

    def __init__(self) -> None:
        self.text = 'name: "GoogleNet"\ninput: "data"\ninput_shape { dim: 1 dim: 3 dim: 224 dim: 224 }\n'
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.channels = {"data": 3}

    def layer(self, kind: str, name: str, bottom: str | list[str], rest: str = "", top: str | None = None) -> str:
        bottoms = [bottom] if isinstance(bottom, str) else bottom
        self.text += (
            f'layer {{ name: "{name}" type: "{kind}" '
            + " ".join(f'bottom: "{b}"' for b in bottoms)
            + f' top: "{top or name}" {rest} }}\n'
        )
        self.channels.setdefault(top or name, self.channels[bottoms[0]])
        return top or name

    def conv(self, name: str, bottom: str, out: int, kernel: int, stride: int = 1) -> str:
        pad = kernel // 2
        self.shapes[name] = (out, self.channels[bottom], kernel, kernel)
        self.channels[name] = out
        self.layer(
            "Convolution", name, bottom,
            f"convolution_param {{ num_output: {out} kernel_size: {kernel} stride: {stride} pad: {pad} }}",
        )  # fmt: skip
        self.layer("ReLU", f"{name}/relu", name, top=name)
        return name

    def pool(self, name: str, bottom: str, stride: int, pad: int = 0) -> str:
        return self.layer(
            "Pooling", name, bottom, f"pooling_param {{ pool: MAX kernel_size: 3 stride: {stride} pad: {pad} }}"
        )

    def lrn(self, name: str, bottom: str) -> str:
        return self.layer("LRN", name, bottom, "lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 }")


def original_network(classes: int = 1000) -> Prototxt:
    net = Prototxt()
    x = net.lrn("pool1/norm1", net.pool("pool1/3x3_s2", net.conv("conv1/7x7_s2", "data", 64, 7, 2), 2))
    x = net.conv("conv2/3x3", net.conv("conv2/3x3_reduce", x, 64, 1), 192, 3)
    x = net.pool("pool2/3x3_s2", net.lrn("conv2/norm2", x), 2)
    for line in BLOCKS.split("\n")[1:-1]:
        block, *widths = line.split()
        conv1x1, reduce3x3, conv3x3, reduce5x5, conv5x5, proj = map(int, widths)
        name = f"inception_{block}"
        if block in ("4a", "5a"):
            x = net.pool(f"pool{int(block[0]) - 1}/3x3_s2", x, 2)
        branches = [
            net.conv(f"{name}/1x1", x, conv1x1, 1),
            net.conv(f"{name}/3x3", net.conv(f"{name}/3x3_reduce", x, reduce3x3, 1), conv3x3, 3),
            net.conv(f"{name}/5x5", net.conv(f"{name}/5x5_reduce", x, reduce5x5, 1), conv5x5, 5),
            net.conv(f"{name}/pool_proj", net.pool(f"{name}/pool", x, 1, 1), proj, 1),
        ]
        x = net.layer("Concat", f"{name}/output", branches)
        net.channels[x] = conv1x1 + conv3x3 + conv5x5 + proj
    x = net.layer("Pooling", "pool5/7x7_s1", x, "pooling_param { pool: AVE global_pooling: true }")
    net.shapes["loss3/classifier"] = (classes, 1024)
    x = net.layer("InnerProduct", "loss3/classifier", x, f"inner_product_param {{ num_output: {classes} }}")
    net.layer("Softmax", "prob", x)
    return net


# Protobuf's wire format: a field is its number and type, then a length and bytes.


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def blob(values: np.ndarray, modern: bool) -> bytes:
    data = field(5, values.astype("<f4").tobytes())
    if modern:
        return data + field(7, field(1, b"".join(varint(size) for size in values.shape)))
    shape = (1,) * (4 - values.ndim) + values.shape
    return data + b"".join(varint(number << 3) + varint(size) for number, size in enumerate(shape, start=1))


def caffemodel(weights: dict[str, list[np.ndarray]], modern: bool) -> bytes:
    """Write a NetParameter: layers with blobs, in the modern format (field 100) or that of 2014 (field 2)."""
    net = field(1, b"GoogleNet")
    for name, blobs in weights.items():
        if modern:
            kind = b"InnerProduct" if blobs[0].ndim == 2 else b"Convolution"
            layer = field(1, name.encode()) + field(2, kind)
            layer += b"".join(field(7, blob(values, True)) for values in blobs)
            net += field(100, layer)
        else:
            kind_number = 14 if blobs[0].ndim == 2 else 4
            layer = field(4, name.encode()) + varint(5 << 3) + varint(kind_number)
            layer += b"".join(field(6, blob(values, False)) for values in blobs)
            net += field(2, layer)
    return net


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Draw weights with He's variance, so that the outputs depend on the image, and biases."""
    rng = np.random.default_rng(seed)
    return {
        name: [
            rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32),
            rng.normal(0, 0.05, shape[0]).astype(np.float32),
        ]
        for name, shape in shapes.items()
    }
