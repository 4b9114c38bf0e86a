"""Data as people have it: failed downloads, archives, links, deep folders, oversized metadata."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from googlenet.data import decode, lazy
from googlenet.data.dataset import Dataset
from googlenet.data.decode import ImageError, decode_image
from googlenet.data.image_files import MAX_DEPTH
from googlenet.data.lazy import ByteRanges, LazyImages
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, absolute_source, load_dataset
from googlenet.detection.data.dataset import load_detection_dataset

PIXELS = np.random.default_rng(0).integers(0, 255, (9, 7, 3), np.uint8)
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 26124\n" % 1


def png(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", **options)
    return buffer.getvalue()


def write_classes(root: Path, count: int = 2) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(png())
    return root


def load(root: Path, **options: object) -> Dataset:
    return load_dataset(f"folder:{root}", LoadOptions(size=8, num_workers=0, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged (an empty file): copy or download it again"),
        (LFS_POINTER, "a Git LFS pointer instead of the file: run git lfs pull"),
        (b"<!DOCTYPE html><html></html>", "an HTML page instead of the file: download it again"),
        (b"\xef\xbb\xbf\n <HTML lang=en>", "an HTML page instead of the file: download it again"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", decode.HEIF_ADVICE),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", decode.HEIF_ADVICE),
        (b'{"error": "Access denied"}', "not an image in a format that Pillow reads"),
        (b"%PDF-1.7", "not an image in a format that Pillow reads"),
    ],
)
def test_what_is_no_image_says_what_it_is(
    content: bytes, reason: str, in_memory: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == decode.HEIF_ADVICE:
        monkeypatch.setattr(decode, "READS_HEIF", False)
    bad = write_classes(tmp_path / "data") / "cat" / "bad.jpg"
    bad.write_bytes(content)
    accounting = load(tmp_path / "data", in_memory=in_memory).accounting
    assert any(line.startswith(f"1 file excluded: {reason} ({bad}") for line in accounting.lines())
    assert (accounting.used["file"], accounting.encountered("file")) == (4, 5)
    with pytest.raises(ImageError, match="bad.jpg") as raised:
        decode_image(bad)
    assert reason in str(raised.value)


@pytest.mark.parametrize("chunk", ["zTXt", "iTXt", "iCCP"])
def test_oversized_metadata_do_not_exclude_a_png(chunk: str) -> None:
    text = "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1)
    info = PngImagePlugin.PngInfo()
    if chunk == "zTXt":
        info.add_text("workflow", text, zip=True)
    elif chunk == "iTXt":
        info.add_itxt("XML:com.adobe.xmp", text, zip=True)
    data = png(pnginfo=info, icc_profile=text.encode() if chunk == "iCCP" else None)
    with pytest.raises(ValueError, match=r"(?i)decompressed data too large"):
        Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(decode_image(data)), PIXELS)
    with pytest.raises(ImageError, match="damaged"):
        decode_image(data[:-40])


@pytest.mark.parametrize(("name", "reason"), [("x" * 300 + ".jpg", "File name too long"), ("loop.jpg", "symbolic")])
def test_errors_of_the_file_system_are_no_damaged_images(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(ImageError, match=rf"cannot be read \(.*{reason}"):
        decode_image(tmp_path / name)


def test_too_many_pixels_are_one_reason(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    # Pillow rejects the second image by itself.
    for name, side in (("large", 10_001), ("huge", 20_000)):
        Image.new("1", (side, side)).save(root / "cat" / f"{name}.png")
    (line,) = (line for line in load(root).accounting.lines() if "pixels" in line)
    assert line.startswith("2 files excluded: pixels are more than the 100,000,000 allowed; resize it first (")


def archives(folder: Path) -> list[Path]:
    image = folder / "1.png"
    image.write_bytes(png())
    with zipfile.ZipFile(folder / "data.zip", "w") as file:
        file.write(image, "cat/1.png")
    for mode, name in (("w", "data.tar"), ("w:gz", "data.tgz"), ("w:xz", "no-suffix")):
        with tarfile.open(folder / name, mode) as tar:  # type: ignore[call-overload]
            tar.add(image, "cat/1.png")
    (folder / "data.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    return [folder / name for name in ("data.zip", "data.tar", "data.tgz", "no-suffix", "data.7z")]


@pytest.mark.parametrize("kind", ["folder", "imagenet", "coco", "voc", "yolo"])
def test_archives_urls_and_files_as_data(kind: str, tmp_path: Path) -> None:
    loads = load_dataset if kind in ("folder", "imagenet") else load_detection_dataset
    for path in archives(tmp_path):
        with pytest.raises(ValueError, match=rf"^{path}: an archive; unpack it and give the path of the folder$"):
            loads(f"{kind}:{path}")
    for url in ("https://example.org/data.zip", "s3://bucket/data"):
        for function in (loads, absolute_source):
            with pytest.raises(ValueError, match=rf"^{url}: a URL; download the data"):
                function(f"{kind}:{url}")
    (tmp_path / "labels.csv").write_text("1.png,cat\n")
    message = {"coco": "not a readable JSON file", "yolo": "not in YOLO format"}.get(kind, "a file; name a folder")
    for name in ("labels.csv", "1.png") if message.startswith("a file") else ("labels.csv",):
        with pytest.raises(ValueError, match=f"^{tmp_path / name}: {message}"):
            loads(f"{kind}:{tmp_path / name}")


@pytest.mark.parametrize("depth", [MAX_DEPTH + 10, 1200])
def test_folders_beyond_the_recursion_limit_are_named(depth: int, tmp_path: Path) -> None:
    root, current = write_classes(tmp_path / "data"), os.getcwd()
    try:
        os.chdir(root / "cat")
        for level in range(depth):
            if level == MAX_DEPTH // 2:
                Path("deep.png").write_bytes(png())
            os.mkdir("d")
            os.chdir("d")
        os.chdir(current)
        data = load(root)
    finally:
        os.chdir(current)
        remove_chain(tmp_path / "data" / "cat", depth)
    assert data.accounting.used["file"] == 5
    assert any(f"1 folder excluded: more than {MAX_DEPTH} folders deep" in line for line in data.skipped)


def remove_chain(folder: Path, depth: int) -> None:
    """Remove nested folders d/d/d..., for which the recursion of pytest's cleanup is not enough."""
    current = os.getcwd()
    try:
        os.chdir(folder)
        for _ in range(depth):
            os.chdir("d")
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("d") if os.listdir("d") == [] else None
            Path("deep.png").unlink(missing_ok=True)
    finally:
        os.chdir(current)


@pytest.mark.parametrize("count", [2, 1000])
def test_one_image_per_class_leaves_none_to_hold_out(count: int, tmp_path: Path) -> None:
    for number in range(count):
        (tmp_path / f"{number:04} \N{CAT FACE}").mkdir()
        (tmp_path / f"{number:04} \N{CAT FACE}" / "1.png").write_bytes(png())
    data = load(tmp_path, validation=0.2)
    assert (len(data.classes), len(data.train), len(data.validation)) == (count, count, 0)
    line = f"no validation images: 0 of the {count:,} training images are held out, because no class has two"
    assert line in data.skipped


def test_the_suffix_may_be_that_of_another_format(tmp_path: Path) -> None:
    root = write_classes(tmp_path)
    for name, format_name in (("png.jpg", "PNG"), ("webp.jpeg", "WEBP"), ("jpeg.png", "JPEG"), ("gif.bmp", "GIF")):
        Image.fromarray(PIXELS).save(root / "cat" / name, format_name)
    assert load(root).accounting.used["file"] == 8


@pytest.mark.parametrize("free", [lazy.MIN_SHARED_MEMORY, 10**12])
def test_batches_arrive_with_little_shared_memory(free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "free_shared_memory", lambda: free)
    paths = [str(path) for path in sorted(write_classes(tmp_path, 4).rglob("*.png"))]
    images = LazyImages(ByteRanges.from_files(paths), Preprocess(512, 3, (0.0,) * 3, (1.0,) * 3), num_workers=2)
    indices = [torch.tensor([3, 0, 5]), torch.tensor([7, 1])]
    expected = [images.read(each) for each in indices]
    for pixels, other in zip(images.batches(indices), expected, strict=True):
        assert torch.equal(pixels, other)
    sent, _ = lazy._Requested(images)[lazy.ImageRequest(indices[0])]
    assert isinstance(sent, torch.Tensor if free == 10**12 else np.ndarray)


@pytest.mark.parametrize("free", [0, lazy.MIN_SHARED_MEMORY - 1])
def test_without_shared_memory_the_training_process_decodes(
    free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lazy, "free_shared_memory", lambda: free)
    monkeypatch.setattr(lazy, "DataLoader", None)
    lazy._warn_of_no_workers.cache_clear()
    paths = [str(path) for path in sorted(write_classes(tmp_path).rglob("*.png"))]
    images = LazyImages(ByteRanges.from_files(paths), Preprocess(8, 3, (0.0,) * 3, (1.0,) * 3), num_workers=2)
    for indices in ([2, 1], [0]):
        (pixels,) = images.batches([torch.tensor(indices)])
        assert torch.equal(pixels, images.read(torch.tensor(indices)))
    assert capsys.readouterr().err.count("decoding without worker processes: too little shared memory") == 1
