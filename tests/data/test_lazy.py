"""Lazily decoded images equal those in memory, whichever process decodes them."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from conftest import googlenet
from googlenet.config.schema import Recipe
from googlenet.data.augment import Augment
from googlenet.data.batch_slice import full_batch
from googlenet.data.dataset import Dataset
from googlenet.data.decode import DecodedImage, ImageError, decode_image, decode_pixels, decode_to_tensor, to_tensor
from googlenet.data.image_checks import check_images
from googlenet.data.lazy import ByteRanges, LazyImages, default_num_workers
from googlenet.data.loader import BatchSpec, evaluation_batches, full_batch_spec, training_batch
from googlenet.data.memory import available_memory
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.training.metrics_logger import read_metrics
from googlenet.training.step_schedule import build_step_schedule
from interruption import signal_at

AUGMENT = Augment("random", 2, 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "googlenet"


def photo(seed: int, width: int, height: int, gray: bool = False) -> Image.Image:
    """Draw ellipses on a smooth gradient with a little noise, similar to a photograph."""
    rng = np.random.default_rng(seed)
    gradient = rng.integers(30, 220, (3, 4, 3)).astype(np.uint8)
    image = Image.fromarray(gradient).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, width), rng.integers(0, height)
        color = tuple(rng.integers(0, 255, 3).tolist())
        draw.ellipse((x, y, x + width // 5, y + height // 6), fill=color)
    noisy = np.clip(np.asarray(image) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert("L" if gray else "RGB")


def jpeg(image: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90, **options)
    return content.getvalue()


def tree(root: Path, count: int = 12, suffix: str = "png", gray: bool = False, factor: int = 1) -> Path:
    for label in range(2):
        folder = root / "ab"[label]
        folder.mkdir(parents=True)
        for number in range(count):
            width, height = (40 + number) * factor, 36 * factor
            photo(100 * label + number, width, height, gray).save(folder / f"{number:02}.{suffix}")
    return root


def load(root: Path, **options: object) -> Dataset:
    defaults = {"validation": 0.25, "size": 24, "seed": 3, "in_memory": False}
    return load_dataset(f"folder:{root}", LoadOptions(**{**defaults, **options}))


def batches(data: Dataset, steps: list[int]) -> list[torch.Tensor]:
    preprocess, count = Preprocess(20, data.channels, data.mean, data.std), len(data.train.labels)
    specs = [full_batch_spec(count, 7, step=step, size=20, seed=5) for step in steps]
    return [training_batch(data.train, preprocess, AUGMENT, spec).images for spec in specs]


@pytest.mark.parametrize("gray", [False, True])
def test_lazy_images_equal_those_in_memory(tmp_path: Path, gray: bool) -> None:
    tree(tmp_path / "p", gray=gray)
    lazy, in_memory = (load(tmp_path / "p", in_memory=value, num_workers=0) for value in (False, True))
    assert isinstance(lazy.train.images, LazyImages)
    assert isinstance(in_memory.train.images, torch.Tensor)
    for name in ("source", "classes", "mean", "std", "skipped", "channels"):
        assert getattr(lazy, name) == getattr(in_memory, name)
    for split, expected in ((lazy.train, in_memory.train), (lazy.validation, in_memory.validation)):
        assert split.names == expected.names
        assert torch.equal(split.labels, expected.labels)
        assert split.images.shape == expected.images.shape
        (pixels,) = split.pixels([torch.arange(len(split.labels))])
        assert torch.equal(pixels, expected.images)
        (pixels,) = split.subsample(3).pixels([torch.tensor([2, 0])])
        assert torch.equal(pixels, expected.subsample(3).images[[2, 0]])
    for a, b in zip(batches(lazy, [0, 3, 1]), batches(in_memory, [0, 3, 1]), strict=True):
        assert torch.equal(a, b)


def test_the_number_of_workers_does_not_change_the_pixels(tmp_path: Path) -> None:
    tree(tmp_path / "p", suffix="jpg", factor=3)
    # OpenMP threads that exist before the fork do not exist in the workers, which must not wait for them.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.rand(400, 400) @ torch.rand(400, 400)
    try:
        results = []
        for num_workers in (0, 1, 2):
            data = load(tmp_path / "p", num_workers=num_workers)
            preprocess = Preprocess(20, 3, data.mean, data.std)
            # In order over the ends of two epochs, then back, so that other images than the prefetched are requested.
            steps = [0, 1, 2, 3, 4, 5, 2, 9]
            evaluated = [batch.images for batch in evaluation_batches(data.validation, preprocess, 700)]
            results.append([*batches(data, steps), *evaluated])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert len(other) == len(results[0])
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert torch.equal(results[0][2], results[0][6])
    assert not torch.equal(results[0][0], results[0][1])


@pytest.mark.parametrize("augment", [AUGMENT, Augment(mixup=0.4, num_classes=2)], ids=["own", "timm"])
def test_each_process_prefetches_its_slices(tmp_path: Path, augment: Augment) -> None:
    """The micro-batches of one of two processes are those of the full batch, and prefetching never restarts."""
    data = load(tree(tmp_path / "p"), num_workers=1)
    lazy, in_memory = data.train, load(tmp_path / "p", in_memory=True).train
    assert isinstance(lazy.images, LazyImages)
    preprocess = Preprocess(24, 3, data.mean, data.std)
    schedule = build_step_schedule(Recipe(epochs=2, batch_size=6, grad_accum_steps=2), len(lazy.labels))
    slices = list(schedule.microbatches(0, rank=1, world_size=2))
    assert len(slices) == 2 * schedule.total_steps
    prefetcher = None
    for index, (samples, part, _) in enumerate(slices):
        spec = BatchSpec(index // 2, 24, 5, samples, part, iter(slices[index + 1 :]))
        batch = training_batch(lazy, preprocess, augment, spec)
        full = training_batch(in_memory, preprocess, augment, spec._replace(part=full_batch(samples.num_images)))
        assert torch.equal(batch.images, part.slice(full.images))
        assert prefetcher in (None, lazy.images._prefetched), "prefetching did not restart"
        prefetcher = lazy.images._prefetched


def test_prefetching_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    """Otherwise dropout would draw other numbers in a resumed run than in an uninterrupted one."""
    data = load(tree(tmp_path / "p", 4), num_workers=1, validation=0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches(data, [0, 1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_slice_of_a_batch_is_decoded_alone(tmp_path: Path) -> None:
    """A process that computes a slice of each batch does not need the images of the others."""
    data = load(tree(tmp_path / "p", 4), num_workers=0, validation=0)
    assert isinstance(data.train.images, LazyImages)
    full = data.train.images.read(torch.arange(8))
    for name in data.train.names[:5]:
        Path(name).unlink()
    assert torch.equal(data.train.images.read(torch.tensor([7, 5])), full[[7, 5]])
    with pytest.raises(ImageError, match="00.png: no such file"):
        data.train.images.read(torch.tensor([7, 0]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_deleted_during_training_is_a_one_line_error(tmp_path: Path, num_workers: int) -> None:
    data = load(tree(tmp_path / "p", 4), num_workers=num_workers, validation=0)
    Path(data.train.names[3]).unlink()
    with pytest.raises(ImageError) as caught:
        batches(data, [0, 1])
    assert str(caught.value) == f"{data.train.names[3]}: no such file"


def test_reduced_decoding_is_close_to_the_full_one() -> None:
    """For a fifth of the size, libjpeg decodes at a quarter, and the rest is resized."""
    preprocess = Preprocess(48, 3, (0.0,) * 3, (1.0,) * 3)
    for seed in range(4):
        data = jpeg(photo(seed, 260, 210))
        full = preprocess.to_uint8(to_tensor(decode_image(data), 3)).int()
        assert decode_image(data, min_size=48).size == (65, 53)
        reduced = preprocess.to_uint8(decode_to_tensor(data, 3, "x", 48)).int()
        difference = (full - reduced).float()
        assert 0 < difference.abs().mean() < 3.0, "of 255, at edges, because libjpeg's filter is sharper"
        assert difference.mean().abs() < 1.0, "the brightness is equal"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("channels", [1, 3])
def test_simplejpeg_decodes_the_same_pixels(mode: str, orientation: int, channels: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(photo(1, 61, 47).convert(mode), exif=exif)
    pixels = decode_to_tensor(data, channels, "x", 40)
    assert torch.equal(pixels, to_tensor(decode_image(data), channels))


def test_unreadable_files_are_skipped_or_raise(tmp_path: Path, own_cache: Path) -> None:
    tree(tmp_path / "p", suffix="jpg")
    broken = tmp_path / "p" / "a" / "03.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    (tmp_path / "p" / "b" / "text.png").write_text("no image")
    lazy, in_memory = (load(tmp_path / "p", in_memory=value, num_workers=0) for value in (False, True))
    reasons = {reason: exclusion.examples[0] for (_, reason), exclusion in lazy.accounting.excluded.items()}
    assert reasons["damaged image"].startswith(f"{broken}: ") and len(reasons) == 2
    assert reasons["not an image in a format that Pillow reads"] == str(tmp_path / "p/b/text.png")
    assert sorted(lazy.skipped) == sorted(in_memory.skipped)
    assert lazy.train.names == in_memory.train.names
    with pytest.raises(ImageError, match="b/text.png"):
        load(tmp_path / "p", on_error="raise")
    assert any((own_cache / "checked").iterdir())


def test_only_new_and_changed_files_are_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(path) for path in sorted(tree(tmp_path / "p", 3).rglob("*.png"))]
    decoded: list[str] = []

    def record(source: bytes, channels: int, name: str, min_size: int) -> DecodedImage:
        decoded.append(name)
        return decode_pixels(source, channels, name, min_size)

    monkeypatch.setattr("googlenet.data.image_checks.decode_pixels", record)
    assert check_images(ByteRanges.from_files(paths), paths, "x").usable.all()
    assert sorted(decoded) == paths
    decoded.clear()
    photo(9, 50, 50, gray=True).save(paths[2])
    Path(paths[4]).write_text("broken")
    result = check_images(ByteRanges.from_files(paths), paths, "x")
    assert sorted(decoded) == [paths[2], paths[4]]
    assert result.usable.tolist() == [True] * 4 + [False, True]
    assert result.gray.tolist() == [False, False, True, False, False, False]
    assert list(result.errors) == [4]
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(b"damaged")
    assert check_images(ByteRanges.from_files(paths), paths, "x").usable.tolist() == result.usable.tolist()


def test_a_folder_too_large_for_memory_is_decoded_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "p", 3)
    required = 2 * 6 * 3 * 24 * 24
    monkeypatch.setattr("googlenet.data.sources.folder.available_memory", lambda: 2 * required - 1)
    assert isinstance(load(tmp_path / "p", in_memory=None).train.images, LazyImages)
    with pytest.raises(ValueError, match="6 images at 24 px need .* GiB of memory"):
        load(tmp_path / "p", in_memory=True)
    monkeypatch.setattr("googlenet.data.sources.folder.available_memory", lambda: 2 * required)
    assert isinstance(load(tmp_path / "p", in_memory=None).train.images, torch.Tensor)


def test_available_memory_is_limited_by_the_control_groups(tmp_path: Path) -> None:
    """The smallest rest of this process's group and those above it counts, in both versions of control groups."""

    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def write_group(folder: str, names: tuple[str, str], limit: str, statistics: str) -> None:
        for name, text in zip((*names, "memory.stat"), (limit, "600", statistics), strict=True):
            write(f"sys/fs/cgroup/{folder}/{name}", text + "\n")

    v1, v2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")
    write("proc/meminfo", "MemTotal: 9 kB\nMemAvailable: 5 kB\n")
    assert available_memory(tmp_path) == 5 * 1024
    write("proc/self/cgroup", "3:cpu,cpuacct:/\n2:memory:/job/task\n0::/job\n")
    write_group("memory/job/task", v1, str(2**63 - 4096), "total_inactive_file 1")
    assert available_memory(tmp_path) == 5 * 1024, "no limit"
    write_group("memory/job", v1, "3000", "cache 7\ntotal_inactive_file 150")
    assert available_memory(tmp_path) == 3000 - 600 + 150
    write_group("job", v2, "1000", "inactive_file 100\nanon 3")
    assert available_memory(tmp_path) == 1000 - 600 + 100
    write_group("job", v2, "max", "inactive_file 100")
    write_group("memory", v1, "500", "total_inactive_file 0")
    assert available_memory(tmp_path) == 0, "used beyond the limit"
    assert available_memory(tmp_path / "no proc") > 0


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may return fewer bytes than requested."""
    content = bytes(range(256)) * 40
    (tmp_path / "x").write_bytes(content)

    class ShortReads(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size if size is None or size < 0 else min(size, 7))

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            return super().readinto(memoryview(buffer)[:7])

    def short_open(path: str, mode: str, buffering: int = -1) -> io.FileIO | io.BufferedReader:
        raw = ShortReads(path, mode)
        return raw if buffering == 0 else io.BufferedReader(raw)

    monkeypatch.setattr("googlenet.data.lazy.open", short_open, raising=False)
    files, zero = np.array([str(tmp_path / "x").encode()]), np.zeros(3, np.int32)
    ranges = ByteRanges(files, zero, np.array([0, 5, 100]), np.array([-1, 200, 9000]))
    assert [ranges.read(index) for index in range(3)] == [content, content[5:205], content[100:9100]]


def test_statistics_of_a_sample_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    tree(tmp_path / "p", 10)
    full = load(tmp_path / "p", validation=0)
    monkeypatch.setattr("googlenet.data.image_checks.NUM_SAMPLES", 6)
    sample = load(tmp_path / "p", validation=0)
    assert sample.mean != full.mean
    assert np.allclose(sample.mean, full.mean, atol=0.15)
    assert load(tmp_path / "p", validation=0).mean == sample.mean
    for file in (own_cache / "statistics").iterdir():
        file.write_text("[[0.5, 0.5, 0.5], [0.1, 0.1, 0.1]]")
    assert load(tmp_path / "p", validation=0).std == (0.1, 0.1, 0.1)


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = set(range(12))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_num_workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_num_workers() == 3
    cores.clear()
    cores.add(0)
    assert default_num_workers() == 0


def test_without_a_check_a_damaged_image_is_replaced_when_it_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next image is shown with its own label, by every process, and is named once."""
    root = tree(tmp_path / "p", 6)
    results = []
    for name in ("a/02.png", "a/03.png", "b/05.png"):
        (root / name).write_bytes((root / name).read_bytes()[:-60])
    for num_workers in (0, 2):
        data = load(root, validation=0, check=False, num_workers=num_workers)
        names, images = data.train.names, data.train.images
        assert isinstance(images, LazyImages) and len(names) == 12
        spec = full_batch_spec(12, 12, step=0, size=24, seed=5)
        batch = training_batch(data.train, Preprocess(24, 3, (0.0,) * 3, (1.0,) * 3), Augment(), spec)
        results.append(batch)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(11 * 1_000_000_007))
        shown = [{2: 4, 3: 4, 11: 0}.get(index, index) for index in order.tolist()]
        assert torch.equal(batch.labels, data.train.labels[shown])
        expected = images.read(torch.tensor(shown)).float() / 255
        assert torch.equal(batch.images, expected)
        assert set(data.accounting.replaced) == {names[2], names[3], names[11]}
        assert len(capsys.readouterr().err.splitlines()) == 3, "each is named once"
        (line,) = [line for line in data.accounting.lines() if "3 images could not be read in training" in line]
        assert all(f"{names[index]}: damaged image (" in line for index in (2, 3, 11))
    assert torch.equal(results[0].images, results[1].images)


def test_held_out_images_are_checked_and_are_the_same_in_every_mode(tmp_path: Path) -> None:
    """Otherwise an evaluation would see training images."""
    root = tree(tmp_path / "p", 12)
    for name in ("a/03.png", "a/07.png", "b/01.png", "b/09.png"):
        (root / name).write_bytes((root / name).read_bytes()[:-60])
    (root / "b" / "00.png").write_text("no image")
    options = ({"in_memory": True}, {}, {"check": False}, {"check": False, "full_size": 40},
               {"in_memory": True, "full_size": 40})  # fmt: skip
    loaded = [load(root, **each) for each in options]
    names = {tuple(data.validation.names) for data in loaded}
    assert len(names) == 1 and 4 <= len(next(iter(names))) <= 6
    damaged = {str(root / name) for name in ("a/03.png", "a/07.png", "b/01.png", "b/09.png")}
    for data, each in zip(loaded, options, strict=True):
        assert not damaged & set(data.validation.names)
        assert bool(damaged & set(data.train.names)) == ("check" in each)
        expected = len(data.train) + len(data.validation)
        assert data.accounting.used["file"] == expected and data.accounting.num_excluded("file") == 24 - expected


def test_an_image_that_can_be_read_again_has_its_own_label(tmp_path: Path) -> None:
    """As after a failure of a network file system."""
    data = load(tree(tmp_path / "p", 3), validation=0, check=False, num_workers=0).train
    path, indices = Path(data.names[2]), torch.tensor([2, 0])
    content = path.read_bytes()
    path.unlink()
    next(data.pixels([indices]))
    assert torch.equal(data.labels_of(indices), data.labels[[3, 0]])
    path.write_bytes(content)
    (pixels,) = data.pixels([indices])
    assert torch.equal(data.labels_of(indices), data.labels[[2, 0]])
    assert torch.equal(pixels, data.images.read(indices))  # type: ignore[union-attr]


def test_unreadable_images_in_use_are_errors_if_they_must_be_or_if_all_are(tmp_path: Path) -> None:
    root = tree(tmp_path / "p", 4)
    strict = load(root, validation=0, check=False, on_error="raise", num_workers=0).train
    data = load(root, validation=0, check=False, num_workers=0).train
    path = Path(data.names[3])
    path.unlink()
    with pytest.raises(ImageError, match="a/03.png: no such file$"):
        strict.images.read(torch.arange(8))  # type: ignore[union-attr]
    for name in data.names:
        Path(name).unlink(missing_ok=True)
    with pytest.raises(ImageError, match="00.png: no such file; nor can any of the 7 images after it be read$"):
        data.images.read(torch.arange(8))  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_resumed_run_has_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the middle of an epoch, while two workers decode the next batches."""
    tree(tmp_path / "p", 20, "jpg", factor=2)
    damaged = tmp_path / "p" / "a" / "07.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    flags = [
        "--augment.min_crop_scale=0.08", "--augment.random_interpolation=true", "--augment.hue=0.1",
        "--model.name=googlenet_d2l", f"--data.source=folder:{tmp_path / 'p'}", "--data.in_memory=false",
        "--data.val_split=0.1", "--size.train=24", "--batch_size=4", "--epochs=4", "--data.num_workers=2",
        "--model.dropout=0.3", "--device=cpu", "--model.width_mult=0.25",
    ]  # fmt: skip
    full = googlenet("train", "fashion-mnist-smoke", *flags, "--out", tmp_path / "full")
    assert full.code == 0, full.err
    with monkeypatch.context() as patched:
        signal_at(12, signal.SIGTERM, patched)
        stopped = googlenet("train", "fashion-mnist-smoke", *flags, "--out", tmp_path / "cut")
    assert stopped.code == 130, stopped.err
    assert "stopped at step 12 " in stopped.err and "continue with googlenet train --resume" in stopped.err
    assert "Traceback" not in stopped.err
    resumed = googlenet("train", "--resume", tmp_path / "cut")
    assert resumed.code == 0, resumed.err
    full_weights, resumed_weights = (
        torch.load(tmp_path / run / "state.pt", weights_only=True)["model"] for run in ("full", "cut")
    )  # fmt: skip
    assert full_weights.keys() == resumed_weights.keys()
    assert all(torch.equal(full_weights[key], resumed_weights[key]) for key in full_weights)
    for run, output in (("full", full.err), ("cut", resumed.err)):
        assert list(json.loads((tmp_path / run / "replaced_images.json").read_text())) == [str(damaged)]
        assert "1 image could not be read in training, others were shown instead" in output
        assert "1 image could not be read in training" in (tmp_path / run / "report.html").read_text()


@pytest.mark.slow
def test_a_signal_to_the_process_group_ends_the_workers(tmp_path: Path) -> None:
    """Like Ctrl-C in a terminal: the run saves and stops, and no worker prints or remains."""
    tree(tmp_path / "p", 20, "jpg", factor=2)
    command = [sys.executable, "-m", "googlenet", "train", "fashion-mnist-smoke", "--model.name=googlenet_d2l"]
    command += [f"--data.source=folder:{tmp_path / 'p'}", "--data.in_memory=false", "--data.num_workers=2"]
    command += ["--data.val_split=0.1", "--size.train=24", "--batch_size=4", "--epochs=4000", "--device=cpu"]
    process = subprocess.Popen(
        [*command, "--out", tmp_path / "cut"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    # The first metrics are written at the end of the first epoch.
    while not (tmp_path / "cut" / "metrics.jsonl").exists() or not read_metrics(tmp_path / "cut"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, output = process.communicate(timeout=300)
    assert process.returncode == 130, output.decode()
    assert b"continue with googlenet train --resume" in output
    assert b"Traceback" not in output
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
