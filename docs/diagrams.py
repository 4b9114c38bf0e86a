"""Draw every kind of block from the tables that the networks are built from, to docs/images/blocks/*.svg.

    python docs/diagrams.py

A test draws them again and compares, so a picture never says what a network is not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from torch import nn

from googlenet.models import bn_inception, googlenet, inception_v3, inception_v4
from googlenet.models.layers import AuxiliaryHead, ConvAuxiliaryHead, Kernel
from googlenet.models.paths import Block, Conv, Fork, Pool, ResidualBlock, Step, path_channels
from googlenet.models.paths import Path as Steps

WIDTH, HEIGHT, GAP, MARGIN = 104, 34, 22, 16
COLOURS = {1: "#dbe9f6", 3: "#d5ecd4", 5: "#fbe3c3", 7: "#e6daf0"}
CLASSES = 1000
POOL, BAR = "#f6d5d5", "#ececec"


class Note(NamedTuple):
    """A box that is none of the tables' steps."""

    text: str
    colour: str


class Drawing(NamedTuple):
    """A block, the channels of the map that it reads, the picture's title; and what comes out, if no map."""

    title: str
    channels: int
    block: Mapping[str, tuple[Step | Note, ...]]
    residual: ResidualBlock | None = None
    out: str | None = None


def v1(row: googlenet.InceptionRow) -> Block:
    """A line of Table 1, as paths."""
    return {
        "conv1x1": (Conv(row.conv1x1),),
        "conv3x3": (Conv(row.reduce3x3), Conv(row.conv3x3, 3)),
        "conv5x5": (Conv(row.reduce5x5), Conv(row.conv5x5, 5)),
        "pool": (Pool("max"), Conv(row.pool_proj)),
    }


def residual(title: str, channels: int, block: Block, scale: float) -> Drawing:
    """A block of Inception-ResNet."""
    return Drawing(title, channels, block, ResidualBlock(block, scale))


def side_head(title: str, into: int, head: nn.Module) -> Drawing:
    """An auxiliary head, its numbers read off the layers."""
    steps: list[Step | Note] = [Note("avg 5x5 /3", POOL)]
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            padding = "valid" if layer.padding == (0, 0) and layer.kernel_size != (1, 1) else "same"
            steps.append(Conv(layer.out_channels, layer.kernel_size[0], 1, padding))
        elif isinstance(layer, nn.Linear):
            last = layer.out_features == CLASSES
            steps.append(Note("fc, classes" if last else f"fc, {layer.out_features}", BAR))
        elif isinstance(layer, nn.Dropout):
            steps.append(Note(f"dropout {layer.p:g}", BAR))
    return Drawing(title, into, {"head": tuple(steps)}, out="logits")


def drawings() -> dict[str, Drawing]:
    """Every picture, by file name."""
    stem = inception_v4.v4_stem(4)
    mixed = {name: element.paths for name, element in stem.items() if isinstance(element, Fork)}
    lines = {name: bn_inception.block(row) for name, row in bn_inception.FIGURE_5.items()}
    v3 = inception_v3
    return {
        "aux-googlenet": side_head("Side head, v1", 512, AuxiliaryHead(512, CLASSES)),
        "aux-v2": side_head("Side head, v2", 768, AuxiliaryHead(768, CLASSES, grid=5)),
        "aux-v3": side_head("Side head, v3", 768, ConvAuxiliaryHead(768, CLASSES)),
        "googlenet": Drawing("GoogLeNet, 3a", 192, v1(googlenet.TABLE_1["inception_3a"])),
        "bn-inception": Drawing("BN-Inception, 3a", 192, lines["inception_3a"]),
        "bn-inception-reduction": Drawing("BN-Inception, 3c", 320, lines["inception_3c"]),
        "v2-figure-5": Drawing("Inception-v2, figure 5", 288, v3.two_3x3(v3.AVERAGE, 64)),
        "v3-35": Drawing("Inception-v3 at 35x35", 288, v3.with_5x5(v3.AVERAGE, 64)),
        "v3-to-17": Drawing("v2 and v3, 35x35 to 17x17", 288, v3.REDUCTION_TO_17),
        "v3-figure-6": Drawing("v2 and v3, figure 6 (n = 7)", 768, v3.factorised(v3.AVERAGE, 128)),
        "v3-to-8": Drawing("v2 and v3, 17x17 to 8x8", 768, v3.REDUCTION_TO_8),
        "v3-figure-7": Drawing("v2 and v3, figure 7", 1280, v3.expanded(v3.AVERAGE)),
        "v4-stem-3a": Drawing("v4, stem", 64, mixed["stem_3a"]),
        "v4-stem-4a": Drawing("v4, stem, then", 160, mixed["stem_4a"]),
        "v4-stem-5a": Drawing("v4, stem, last", 192, mixed["stem_5a"]),
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


def label(step: Step | Note) -> tuple[str, str]:
    """A box's text and colour."""
    match step:
        case Conv(channels, kernel, stride, padding):
            text = f"{side(kernel)}, {channels}" + (f" /{stride}" if stride > 1 else "")
            return text + (" V" if padding == "valid" else ""), COLOURS[largest(kernel)]
        case Note(text, colour):
            return text, colour
        case Pool(kind, stride):
            return f"{kind} 3x3" + (f" /{stride}" if stride > 1 else ""), POOL
        case _:
            raise ValueError(step)


def side(kernel: Kernel) -> str:
    """3 -> 3x3, (1, 7) -> 1x7."""
    return f"{kernel}x{kernel}" if isinstance(kernel, int) else f"{kernel[0]}x{kernel[1]}"


def largest(kernel: Kernel) -> int:
    """The longer side."""
    return kernel if isinstance(kernel, int) else max(kernel)


def columns(path: Steps) -> int:
    """How many boxes lie side by side at the widest place of a path."""
    return max(sum(columns(p) for p in step.paths.values()) if isinstance(step, Fork) else 1 for step in path)


def depth(path: Steps) -> int:
    """How many boxes lie one under the other."""
    return sum(max(depth(p) for p in step.paths.values()) if isinstance(step, Fork) else 1 for step in path)


class Canvas:
    """SVG elements as they are drawn."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def box(self, x: float, y: float, width: float, text: str, colour: str) -> None:
        """A box with its text in the middle."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{HEIGHT}" rx="5" fill="{colour}" stroke="#666"/>'
            f'<text x="{x + width / 2:g}" y="{y + HEIGHT / 2 + 4.5:g}" text-anchor="middle">{escape(text)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """An arrow."""
        self.parts.append(f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" stroke="#444" marker-end="url(#a)"/>')

    def path(self, path: Steps, x: float, y: float, bottom: float) -> None:
        """The boxes of a path from `y` down, in columns from `x` on, with arrows in between and to `bottom`."""
        span = columns(path) * (WIDTH + GAP) - GAP
        middle = x + span / 2
        for number, step in enumerate(path):
            if isinstance(step, Fork):
                left = x
                for inner in step.paths.values():
                    width = columns(inner) * (WIDTH + GAP) - GAP
                    self.line(middle, y - GAP, left + width / 2, y)
                    self.path(inner, left, y, bottom)
                    left += width + GAP
                return  # every fork is the end of its path
            text, colour = label(step)
            self.box(middle - WIDTH / 2, y, WIDTH, text, colour)
            last = number == len(path) - 1
            following = bottom if last else y + HEIGHT + GAP
            if last or not isinstance(path[number + 1], Fork):
                self.line(middle, y + HEIGHT, middle, following)
            y += HEIGHT + GAP


def draw(drawing: Drawing) -> str:
    """The picture as SVG."""
    canvas = Canvas()
    paths: Mapping[str, Steps] = drawing.block
    spans = [columns(path) * (WIDTH + GAP) - GAP for path in paths.values()]
    aside = WIDTH / 2 if drawing.residual else 0  # room for the way past a residual block
    inner = sum(spans) + GAP * (len(spans) - 1)
    width = inner + 2 * MARGIN + aside
    top = MARGIN + 24
    first = top + HEIGHT + GAP
    join = first + max(depth(path) for path in paths.values()) * (HEIGHT + GAP)
    canvas.box(MARGIN, top, inner, f"{drawing.channels} channels", BAR)
    x = float(MARGIN)
    for path, span in zip(paths.values(), spans, strict=True):
        canvas.line(x + span / 2, top + HEIGHT, x + span / 2, first)
        canvas.path(path, x, first, join)
        x += span + GAP
    total = sum(path_channels(path, drawing.channels) for path in paths.values())
    canvas.box(MARGIN, join, inner, drawing.out or f"joined: {total} channels", BAR)
    height = join + HEIGHT + MARGIN
    if drawing.residual:
        middle, expand = MARGIN + inner / 2, join + HEIGHT + GAP
        wide = 1.6 * WIDTH
        canvas.line(middle, join + HEIGHT, middle, expand)
        canvas.box(middle - wide / 2, expand, wide, f"1x1, {drawing.channels}, no ReLU", COLOURS[1])
        add = expand + HEIGHT + GAP
        canvas.line(middle, expand + HEIGHT, middle, add)
        text = f"input + {drawing.residual.scale:g} x this, ReLU"
        canvas.box(MARGIN, add, inner, text, BAR)
        right = MARGIN + inner + aside - 8
        y = top + HEIGHT / 2
        canvas.parts.append(
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
        + "\n".join(canvas.parts)
        + "\n</svg>\n"
    )


def main() -> None:
    """Write every picture."""
    folder = Path(__file__).parent / "images" / "blocks"
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in drawings().items():
        (folder / f"{name}.svg").write_text(draw(drawing))


if __name__ == "__main__":
    main()
