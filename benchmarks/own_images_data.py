"""Real image folders for benchmarks/own_images.py: clip art, stamps, and textures cut from photographs.

`openclipart` and `stamps` are Debian's packages openclipart-png and tuxpaint-stamps-default: the folders of one level
are the classes, and everything below belongs to them. `textures` are squares of photographs that scikit-image contains:
a class is a photograph, and test images come from its lower quarter, training images from the rest. Test images are
selected by a digest of their content, so the split is always the same.
"""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

MAX_SIDE = 320  # pixels; larger images are shrunk, as a user would before training at most 128 pixels
TEST_FRACTION = 0.25
MIN_PER_CLASS = 30
MAX_PER_CLASS = 300
# Catch-all folders, whose content belongs to the other classes, and folders of less than one kind of image.
NOT_CLASSES = {"unsorted", "special", "buttons", "logos"}
PACKAGES = {
    "openclipart": ("usr/share/openclipart/png", "openclipart-png"),
    "stamps": ("usr/share/tuxpaint/stamps", "tuxpaint-stamps-default"),
}
PHOTOGRAPHS = (
    "brick.png", "grass.png", "gravel.png", "moon.png", "coins.png", "page.png", "text.png", "astronaut.png",
    "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "rocket.jpg", "motorcycle_left.png",
)  # fmt: skip
TEXTURES_PER_CLASS, TEXTURE_SIDE = 60, (48, 112)  # images of each class; sides in pixels


def flatten(path: Path) -> Image.Image | None:
    """Return an image over white, at most `MAX_SIDE` pixels long; None if Pillow refuses the file."""
    try:
        with Image.open(path) as image:
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            layer = image.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def write_image(image: Image.Image, test: bool, folder: Path, label: str, name: str) -> None:
    """Write a PNG file into the folder of its split and class."""
    target = folder / ("test" if test else "train") / label / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target)


def write_package(root: Path, folder: Path) -> None:
    """Write the images of a Debian package: one of each content, at most `MAX_PER_CLASS` of a class."""
    seen: set[str] = set()
    for directory in sorted(path for path in root.iterdir() if path.is_dir() and path.name not in NOT_CLASSES):
        images: dict[str, Image.Image] = {}
        for path in sorted(directory.rglob("*.png")):
            image = flatten(path)
            if image is None:
                continue
            # Copies differ in size and metadata: the digest is that of a small version.
            small = np.asarray(image.resize((16, 16), Image.Resampling.BOX)) // 16
            digest = hashlib.sha256(small.tobytes()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                images[digest] = image
        if len(images) < MIN_PER_CLASS:
            continue
        chosen = sorted(images)[:MAX_PER_CLASS]
        for index, digest in enumerate(chosen):
            write_image(images[digest], index < TEST_FRACTION * len(chosen), folder, directory.name, digest[:16])


def texture_squares(photograph: Image.Image, test: bool, count: int, seed: int) -> Iterator[Image.Image]:
    """Yield `count` random squares from the lower quarter of a photograph, or from the rest."""
    generator, (width, height) = random.Random(seed), photograph.size
    border = round(height * (1 - TEST_FRACTION))
    top, bottom = (border, height) if test else (0, border)
    for _ in range(count):
        side = generator.randint(min(TEXTURE_SIDE[0], bottom - top), min(TEXTURE_SIDE[1], bottom - top))
        left, upper = generator.randint(0, width - side), generator.randint(top, bottom - side)
        yield photograph.crop((left, upper, left + side, upper + side))


def write_textures(folder: Path) -> None:
    """Write squares of scikit-image's photographs, in the colors of the photograph turned to gray."""
    import skimage

    root = Path(skimage.__file__).parent / "data"
    for number, name in enumerate(PHOTOGRAPHS):
        with Image.open(root / name) as image:
            photograph = image.convert("L")  # in color, the mean color would be enough
        for test in (False, True):
            count = round(TEXTURES_PER_CLASS * (TEST_FRACTION if test else 1 - TEST_FRACTION))
            for index, square in enumerate(texture_squares(photograph, test, count, 2 * number + test)):
                write_image(square, test, folder, Path(name).stem, f"{index:03}")


def write_folders(packages: Path, out: Path) -> dict[str, Path]:
    """Write all data sets below `out`, unless they are there, and return the folder of each.

    `packages` is where the Debian packages are installed or unpacked, such as ``/``. Raises SystemExit that says how to
    get a missing one.
    """
    folders = {name: out / name for name in (*PACKAGES, "textures")}
    for name, folder in folders.items():
        if folder.exists():
            continue
        partial = folder.with_name(f".{folder.name}")
        if name == "textures":
            write_textures(partial)
        else:
            path, package = PACKAGES[name]
            if not (packages / path).is_dir():
                advice = f"apt-get download {package}, unpack it with dpkg-deb -x, and name the folder with --packages"
                raise SystemExit(f"{packages / path} is missing: {advice}")
            write_package(packages / path, partial)
        partial.rename(folder)
    return folders
