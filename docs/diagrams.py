"""Draw the diagrams of all kinds of blocks, and of the layers of the package.

    python docs/diagrams.py

Writes docs/images/blocks/*.svg from the tables that the networks are built from, and docs/images/architecture.svg from
the layers in pyproject.toml. A test compares the files with new drawings, so the diagrams always match the code.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from torch import nn

from googlenet.models import bn_inception, googlenet, inception_v3, inception_v4
from googlenet.models.blocks import Block, Branch, Branches, Layer, Pool, ResidualBlock, branch_channels
from googlenet.models.layers import AuxiliaryHead, Conv, ConvAuxiliaryHead, KernelSize

WIDTH, HEIGHT, GAP, MARGIN = 104, 34, 22, 16
COLORS = {1: "#dbe9f6", 3: "#d5ecd4", 5: "#fbe3c3", 7: "#e6daf0"}
CLASSES = 1000
POOL, BAR = "#f6d5d5", "#ececec"


class Note(NamedTuple):
    """A box that is not a layer of the tables."""

    text: str
    color: str


class Drawing(NamedTuple):
    """A block with its title and input channels; `output` describes an output that is not a feature map."""

    title: str
    channels: int
    block: Mapping[str, tuple[Layer | Note, ...]]
    residual: ResidualBlock | None = None
    output: str | None = None


def inception_v1(row: googlenet.InceptionRow) -> Block:
    """Return the branches of a row of Table 1."""
    return {
        "conv1x1": (Conv(row.conv1x1),),
        "conv3x3": (Conv(row.reduce3x3), Conv(row.conv3x3, 3)),
        "conv5x5": (Conv(row.reduce5x5), Conv(row.conv5x5, 5)),
        "pool": (Pool("max"), Conv(row.pool_proj)),
    }


def residual(title: str, channels: int, block: Block, scale: float) -> Drawing:
    """Return the drawing of a block of Inception-ResNet."""
    return Drawing(title, channels, block, ResidualBlock(block, scale))


def aux_head(title: str, in_channels: int, head: nn.Module) -> Drawing:
    """Return the drawing of an auxiliary head, from its layers."""
    layers: list[Layer | Note] = [Note("avg 5x5 /3", POOL)]
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            padding = "valid" if layer.padding == (0, 0) and layer.kernel_size != (1, 1) else "same"
            layers.append(Conv(layer.out_channels, layer.kernel_size[0], 1, padding))
        elif isinstance(layer, nn.Linear):
            last = layer.out_features == CLASSES
            layers.append(Note("fc, classes" if last else f"fc, {layer.out_features}", BAR))
        elif isinstance(layer, nn.Dropout):
            layers.append(Note(f"dropout {layer.p:g}", BAR))
    return Drawing(title, in_channels, {"head": tuple(layers)}, output="logits")


def drawings() -> dict[str, Drawing]:
    """Return all drawings by file name."""
    stem = inception_v4.v4_stem(4)
    mixed = {name: layer.branches for name, layer in stem.items() if isinstance(layer, Branches)}
    rows = {name: bn_inception.block(row) for name, row in bn_inception.FIGURE_5.items()}
    v3 = inception_v3
    return {
        "aux-googlenet": aux_head("Auxiliary head, v1", 512, AuxiliaryHead(512, CLASSES)),
        "aux-v2": aux_head("Auxiliary head, v2", 768, AuxiliaryHead(768, CLASSES, grid=5)),
        "aux-v3": aux_head("Auxiliary head, v3", 768, ConvAuxiliaryHead(768, CLASSES)),
        "googlenet": Drawing("GoogLeNet, 3a", 192, inception_v1(googlenet.TABLE_1["inception_3a"])),
        "bn-inception": Drawing("BN-Inception, 3a", 192, rows["inception_3a"]),
        "bn-inception-reduction": Drawing("BN-Inception, 3c", 320, rows["inception_3c"]),
        "v2-figure-5": Drawing("Inception-v2, figure 5", 288, v3.inception_a_v2(v3.AVG_POOL, 64)),
        "v3-35": Drawing("Inception-v3 at 35x35", 288, v3.inception_a(v3.AVG_POOL, 64)),
        "v3-to-17": Drawing("v2 and v3, 35x35 to 17x17", 288, v3.REDUCTION_A),
        "v3-figure-6": Drawing("v2 and v3, figure 6 (n = 7)", 768, v3.inception_b(v3.AVG_POOL, 128)),
        "v3-to-8": Drawing("v2 and v3, 17x17 to 8x8", 768, v3.REDUCTION_B),
        "v3-figure-7": Drawing("v2 and v3, figure 7", 1280, v3.inception_c(v3.AVG_POOL)),
        "v4-stem-3a": Drawing("v4, stem, 1", 64, mixed["stem_3a"]),
        "v4-stem-4a": Drawing("v4, stem, 2", 160, mixed["stem_4a"]),
        "v4-stem-5a": Drawing("v4, stem, 3", 192, mixed["stem_5a"]),
        "v4-a": Drawing("Inception-v4, A", 384, inception_v4.INCEPTION_A),
        "v4-reduction-a": Drawing("v4, 35x35 to 17x17", 384, inception_v4.reduction_a(192, 224, 256, 384)),
        "v4-b": Drawing("Inception-v4, B", 1024, inception_v4.INCEPTION_B),
        "v4-reduction-b": Drawing("v4, 17x17 to 8x8", 1024, inception_v4.REDUCTION_B),
        "v4-c": Drawing("Inception-v4, C", 1536, inception_v4.INCEPTION_C),
        "resnet-mixed-5b": Drawing("Inception-ResNet-v2, 5b", 192, inception_v4.MIXED_5B),
        "resnet-reduction-a": Drawing("35x35 to 17x17", 320, inception_v4.reduction_a(256, 256, 384, 384)),
        "resnet-a": residual("Inception-ResNet-v2, A", 320, inception_v4.RESIDUAL_A, 0.17),
        "resnet-b": residual("Inception-ResNet-v2, B", 1088, inception_v4.RESIDUAL_B, 0.10),
        "resnet-reduction-b": Drawing("17x17 to 8x8", 1088, inception_v4.RESIDUAL_REDUCTION_B),
        "resnet-c": residual("Inception-ResNet-v2, C", 2080, inception_v4.RESIDUAL_C, 0.20),
    }


def label(layer: Layer | Note) -> tuple[str, str]:
    """Return the text and the color of a box."""
    match layer:
        case Conv(channels, kernel, stride, padding):
            text = f"{format_kernel(kernel)}, {channels}" + (f" /{stride}" if stride > 1 else "")
            return text + (" V" if padding == "valid" else ""), COLORS[
                kernel if isinstance(kernel, int) else max(kernel)
            ]
        case Note(text, color):
            return text, color
        case Pool(kind, stride):
            return f"{kind} 3x3" + (f" /{stride}" if stride > 1 else ""), POOL
        case _:
            raise ValueError(layer)


def format_kernel(kernel: KernelSize) -> str:
    """Return "3x3" for 3 and "1x7" for (1, 7)."""
    return f"{kernel}x{kernel}" if isinstance(kernel, int) else f"{kernel[0]}x{kernel[1]}"


def num_columns(branch: Branch) -> int:
    """Return the number of columns of boxes of a branch."""
    return max(sum(map(num_columns, layer.branches.values())) if isinstance(layer, Branches) else 1 for layer in branch)


def num_rows(branch: Branch) -> int:
    """Return the number of rows of boxes of a branch."""
    return sum(max(map(num_rows, layer.branches.values())) if isinstance(layer, Branches) else 1 for layer in branch)


class Canvas:
    """A list of SVG elements."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def box(self, x: float, y: float, width: float, text: str, color: str) -> None:
        """Add a box with centered text."""
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{HEIGHT}" rx="5" fill="{color}" stroke="#666"/>'
            f'<text x="{x + width / 2:g}" y="{y + HEIGHT / 2 + 4.5:g}" text-anchor="middle">{escape(text)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """Add an arrow."""
        self.elements.append(f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" stroke="#444" marker-end="url(#a)"/>')

    def branch(self, branch: Branch, x: float, y: float, bottom: float) -> None:
        """Add the boxes of a branch from `y` down, in columns from `x`, with arrows between them and to `bottom`."""
        middle = x + (num_columns(branch) * (WIDTH + GAP) - GAP) / 2
        for index, layer in enumerate(branch):
            if isinstance(layer, Branches):
                left = x
                for inner in layer.branches.values():
                    width = num_columns(inner) * (WIDTH + GAP) - GAP
                    self.line(middle, y - GAP, left + width / 2, y)
                    self.branch(inner, left, y, bottom)
                    left += width + GAP
                return  # nested branches are always the last layer
            text, color = label(layer)
            self.box(middle - WIDTH / 2, y, WIDTH, text, color)
            last = index == len(branch) - 1
            if last or not isinstance(branch[index + 1], Branches):
                self.line(middle, y + HEIGHT, middle, bottom if last else y + HEIGHT + GAP)
            y += HEIGHT + GAP


def draw(drawing: Drawing) -> str:
    """Return the drawing as SVG."""
    canvas = Canvas()
    branches: Mapping[str, Branch] = drawing.block
    spans = [num_columns(branch) * (WIDTH + GAP) - GAP for branch in branches.values()]
    shortcut = WIDTH / 2 if drawing.residual else 0  # space for the residual connection
    inner = sum(spans) + GAP * (len(spans) - 1)
    width = inner + 2 * MARGIN + shortcut
    top = MARGIN + 24
    first = top + HEIGHT + GAP
    join = first + max(map(num_rows, branches.values())) * (HEIGHT + GAP)
    canvas.box(MARGIN, top, inner, f"{drawing.channels} channels", BAR)
    x = float(MARGIN)
    for branch, span in zip(branches.values(), spans, strict=True):
        canvas.line(x + span / 2, top + HEIGHT, x + span / 2, first)
        canvas.branch(branch, x, first, join)
        x += span + GAP
    total = sum(branch_channels(branch, drawing.channels) for branch in branches.values())
    canvas.box(MARGIN, join, inner, drawing.output or f"concatenated: {total} channels", BAR)
    height = join + HEIGHT + MARGIN
    if drawing.residual:
        middle, expand = MARGIN + inner / 2, join + HEIGHT + GAP
        wide = 1.6 * WIDTH
        canvas.line(middle, join + HEIGHT, middle, expand)
        canvas.box(middle - wide / 2, expand, wide, f"1x1, {drawing.channels}, no ReLU", COLORS[1])
        add = expand + HEIGHT + GAP
        canvas.line(middle, expand + HEIGHT, middle, add)
        text = f"input + {drawing.residual.scale:g} x this, ReLU"
        canvas.box(MARGIN, add, inner, text, BAR)
        right = MARGIN + inner + shortcut - 8
        y = top + HEIGHT / 2
        canvas.elements.append(
            f'<path d="M{MARGIN + inner:g} {y:g} H{right:g} V{add + HEIGHT / 2:g} H{MARGIN + inner:g}" '
            'stroke="#444" fill="none" marker-end="url(#a)"/>'
        )
        height = add + HEIGHT + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" font-family="Helvetica, Arial, sans-serif" font-size="13">\n'
        f"<title>{escape(drawing.title)}</title>\n"
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#444"/></marker></defs>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="{MARGIN}" y="{MARGIN + 10}" font-weight="bold">{escape(drawing.title)}</text>\n'
        + "\n".join(canvas.elements)
        + "\n</svg>\n"
    )


# What each package of the architecture diagram contains.
PACKAGES = {
    "cli": "commands, arguments, output",
    "serving": "HTTP server",
    "benchmark": "speed of engines",
    "distributed": "Ray",
    "explain": "analyses of a network",
    "fidelity": "FID, KID, precision and recall",
    "inference": "load, predict, evaluate",
    "export": "files for other engines",
    "detection": "boxes: data, heads, R-CNN",
    "training": "fit, optimizers, tasks",
    "evaluation": "metrics, reports, Predictor",
    "checkpoint": "weights, training state",
    "config": "recipes, tasks",
    "models": "the networks",
    "data": "images to batches",
    "kernels": "native CPU kernels",
    "devices": "device, precision",
    "errors": "error types",
    "files": "atomic writes, cache folder",
}


def draw_architecture() -> str:
    """Return the layers of the package as SVG; a package imports only packages below it."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    rows = [[name.strip().removeprefix("googlenet.") for name in layer.split("|")] for layer in layers]
    width, height = 900, 44
    elements = []
    for index, row in enumerate(rows):
        box = (width - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        for column, name in enumerate(row):
            x, y = MARGIN + column * (box + GAP), MARGIN + index * (height + 10)
            text = PACKAGES.get(name, "")
            elements.append(
                f'<rect x="{x:g}" y="{y}" width="{box:g}" height="{height}" rx="5" fill="{COLORS[1]}" stroke="#666"/>'
                f'<text x="{x + 12:g}" y="{y + 19}" font-weight="bold">{name}</text>'
                f'<text x="{x + 12:g}" y="{y + 36}">{text}</text>'
            )
    total = 2 * MARGIN + len(rows) * (height + 10) - 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" viewBox="0 0 {width} {total}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">\n'
        "<title>Packages of googlenet; a package imports only packages below it</title>\n"
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(elements) + "\n</svg>\n"
    )


def all_images() -> dict[str, str]:
    """Return the content of every image by its path in docs/images."""
    blocks = {f"blocks/{name}.svg": draw(drawing) for name, drawing in drawings().items()}
    return {**blocks, "architecture.svg": draw_architecture()}


def main() -> None:
    """Write all images."""
    for name, content in all_images().items():
        path = Path(__file__).parent / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


if __name__ == "__main__":
    main()
