"""Writes Caffe's files as its users and its own code did: a prototxt layer by layer, a caffemodel byte by byte."""

import numpy as np

# The original network as Caffe's users wrote it down: name, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
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
    """Writes a deploy.prototxt, a layer at a time, and notes the shape of each layer's weights."""

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
        one, reduce3, three, reduce5, five, proj = map(int, widths)
        at = f"inception_{block}"
        if block in ("4a", "5a"):
            x = net.pool(f"pool{int(block[0]) - 1}/3x3_s2", x, 2)
        paths = [
            net.conv(f"{at}/1x1", x, one, 1),
            net.conv(f"{at}/3x3", net.conv(f"{at}/3x3_reduce", x, reduce3, 1), three, 3),
            net.conv(f"{at}/5x5", net.conv(f"{at}/5x5_reduce", x, reduce5, 1), five, 5),
            net.conv(f"{at}/pool_proj", net.pool(f"{at}/pool", x, 1, 1), proj, 1),
        ]
        x = net.layer("Concat", f"{at}/output", paths)
        net.channels[x] = one + three + five + proj
    x = net.layer("Pooling", "pool5/7x7_s1", x, "pooling_param { pool: AVE global_pooling: true }")
    net.shapes["loss3/classifier"] = (classes, 1024)
    x = net.layer("InnerProduct", "loss3/classifier", x, f"inner_product_param {{ num_output: {classes} }}")
    net.layer("Softmax", "prob", x)
    return net


# Protobuf's wire format, by hand: a field is its number and type, then a length and bytes.


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
        return data + field(7, field(1, b"".join(varint(side) for side in values.shape)))
    shape = (1,) * (4 - values.ndim) + values.shape
    return data + b"".join(varint(number << 3) + varint(side) for number, side in enumerate(shape, start=1))


def caffemodel(weights: dict[str, list[np.ndarray]], modern: bool) -> bytes:
    """NetParameter: layers with blobs, in the format of today (field 100) or of 2014 (field 2)."""
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
    """As He et al. draw them, so that a picture still shows at the end; a head that spreads the probabilities."""
    rng = np.random.default_rng(seed)
    return {
        name: [
            rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32),
            rng.normal(0, 0.05, shape[0]).astype(np.float32),
        ]
        for name, shape in shapes.items()
    }
