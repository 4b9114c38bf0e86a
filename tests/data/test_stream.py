"""Pictures that are decoded when a batch asks for them: the same as resident ones, whoever decodes them."""

import io
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
from googlenet.data.checked import check_pictures
from googlenet.data.dataset import Dataset
from googlenet.data.loader import Augment, evaluation_batches, training_batch
from googlenet.data.pictures import PictureError, read_picture, read_pixels, to_tensor
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.data.stream import Places, Stream, default_workers
from googlenet.training.plan import plan_run
from googlenet.training.recipe import Recipe
from googlenet.training.record import read_metrics
from interruption import signal_at

AUGMENT = Augment("random", 2, 3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "googlenet"


def picture(seed: int, width: int, height: int, grey: bool = False) -> Image.Image:
    """Shapes on a slow gradient with a little noise, as in a photograph."""
    rng = np.random.default_rng(seed)
    slow = rng.integers(30, 220, (3, 4, 3)).astype(np.uint8)
    image = Image.fromarray(slow).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, width), rng.integers(0, height)
        colour = tuple(rng.integers(0, 255, 3).tolist())
        draw.ellipse((x, y, x + width // 5, y + height // 6), fill=colour)
    noisy = np.clip(np.asarray(image) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert("L" if grey else "RGB")


def jpeg(image: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90, **options)
    return content.getvalue()


def tree(root: Path, count: int = 12, suffix: str = "png", grey: bool = False, factor: int = 1) -> Path:
    for label in range(2):
        folder = root / "ab"[label]
        folder.mkdir(parents=True)
        for number in range(count):
            width, height = (40 + number) * factor, 36 * factor
            picture(100 * label + number, width, height, grey).save(folder / f"{number:02}.{suffix}")
    return root


def load(root: Path, **options: object) -> Dataset:
    return load_dataset(f"folder:{root}", **{"validation": 0.25, "size": 24, "seed": 3, "resident": False, **options})


def batches(data: Dataset, steps: list[int]) -> list[torch.Tensor]:
    preprocess = Preprocess(20, data.channels, data.mean, data.std)
    return [
        training_batch(data.train, preprocess, AUGMENT, step=step, batch_size=7, size=20, seed=5).images
        for step in steps
    ]


@pytest.mark.parametrize("grey", [False, True])
def test_streamed_pictures_are_the_resident_ones(tmp_path: Path, grey: bool) -> None:
    tree(tmp_path / "p", grey=grey)
    streamed, resident = (load(tmp_path / "p", resident=kept, workers=0) for kept in (False, True))
    assert isinstance(streamed.train.images, Stream)
    assert isinstance(resident.train.images, torch.Tensor)
    for name in ("source", "classes", "mean", "std", "skipped", "channels"):
        assert getattr(streamed, name) == getattr(resident, name)
    for ours, theirs in ((streamed.train, resident.train), (streamed.validation, resident.validation)):
        assert ours.names == theirs.names
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.images.shape == theirs.images.shape
        (pixels,) = ours.pixels([torch.arange(len(ours.labels))])
        assert torch.equal(pixels, theirs.images)
        (some,) = ours.spaced(3).pixels([torch.tensor([2, 0])])
        assert torch.equal(some, theirs.spaced(3).images[[2, 0]])
    for a, b in zip(batches(streamed, [0, 3, 1]), batches(resident, [0, 3, 1]), strict=True):
        assert torch.equal(a, b)


def test_workers_change_nothing_but_the_time(tmp_path: Path) -> None:
    tree(tmp_path / "p", suffix="jpg", factor=3)
    # Threads that OpenMP started before the workers are forked must not be waited for in them.
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.rand(400, 400) @ torch.rand(400, 400)
    try:
        found = []
        for workers in (0, 1, 2):
            data = load(tmp_path / "p", workers=workers)
            preprocess = Preprocess(20, 3, data.mean, data.std)
            # In order over two epochs' ends, then back: what was read ahead is not what is asked for.
            steps = [0, 1, 2, 3, 4, 5, 2, 9]
            evaluated = [batch.images for batch in evaluation_batches(data.validation, preprocess, 700)]
            found.append([*batches(data, steps), *evaluated])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert len(other) == len(found[0])
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert torch.equal(found[0][2], found[0][6])
    assert not torch.equal(found[0][0], found[0][1])


@pytest.mark.parametrize("augment", [AUGMENT, Augment(mixup=0.4, classes=2)], ids=["own", "timm"])
def test_each_process_reads_its_parts_ahead(tmp_path: Path, augment: Augment) -> None:
    """Accumulated micro-batches of one of two processes, over an epoch's end: in one go, and of the same batch."""
    data = load(tree(tmp_path / "p"), workers=1)
    streamed, resident = data.train, load(tmp_path / "p", resident=True).train
    assert isinstance(streamed.images, Stream)
    preprocess = Preprocess(24, 3, data.mean, data.std)
    plan = plan_run(Recipe(epochs=2, batch_size=6, accumulate=2), len(streamed.labels))
    pieces = list(plan.pieces(0, process=1, processes=2))
    assert len(pieces) == 2 * plan.total
    running = None
    for number, (turn, rows) in enumerate(pieces):
        options = {"step": number // 2, "batch_size": 6, "size": 24, "seed": 5, "turn": turn}
        part = training_batch(streamed, preprocess, augment, **options, rows=rows, later=iter(pieces[number + 1 :]))
        assert torch.equal(part.images, rows.of(training_batch(resident, preprocess, augment, **options).images))
        assert running in (None, streamed.images._running), "reading did not start anew"
        running = streamed.images._running


def test_reading_ahead_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    """Else dropout would draw other numbers after a resumption than in one go."""
    data = load(tree(tmp_path / "p", 4), workers=1, validation=0)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    batches(data, [0, 1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_part_of_a_batch_is_decoded_alone(tmp_path: Path) -> None:
    """A process that takes a share of each batch must not need the pictures of the others."""
    data = load(tree(tmp_path / "p", 4), workers=0, validation=0)
    assert isinstance(data.train.images, Stream)
    whole = data.train.images.read(torch.arange(8))
    for name in data.train.names[:5]:
        Path(name).unlink()
    assert torch.equal(data.train.images.read(torch.tensor([7, 5])), whole[[7, 5]])
    with pytest.raises(PictureError, match="00.png: no such file"):
        data.train.images.read(torch.tensor([7, 0]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_lost_on_the_way_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    data = load(tree(tmp_path / "p", 4), workers=workers, validation=0)
    Path(data.train.names[3]).unlink()
    with pytest.raises(PictureError) as caught:
        batches(data, [0, 1])
    assert str(caught.value) == f"{data.train.names[3]}: no such file"


def test_reduced_decoding_is_close_to_the_full_one() -> None:
    """A quarter of the size and more is asked for: libjpeg halves, and the rest is resized."""
    geometry = Preprocess(48, 3, (0.0,) * 3, (1.0,) * 3)
    for seed in range(4):
        data = jpeg(picture(seed, 260, 210))
        full = geometry.keep(to_tensor(read_picture(data), 3)).int()
        assert read_picture(data, least=48).size == (65, 53)
        reduced = geometry.keep(read_pixels(data, 3, "x", 48).values).int()
        off = (full - reduced).float()
        assert 0 < off.abs().mean() < 3.0, "of 255, at the edges of shapes: libjpeg's filter is sharper"
        assert off.mean().abs() < 1.0, "neither brighter nor darker"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_quick_decoder_gives_the_same_pixels(mode: str, orientation: int, channels: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(picture(1, 61, 47).convert(mode), exif=exif)
    values, grey = read_pixels(data, channels, "x", 40)
    assert torch.equal(values, to_tensor(read_picture(data), channels))
    assert grey == (mode == "L")


def test_broken_files_are_skipped_or_refused(tmp_path: Path, own_cache: Path) -> None:
    tree(tmp_path / "p", suffix="jpg")
    broken = tmp_path / "p" / "a" / "03.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    (tmp_path / "p" / "b" / "text.png").write_text("no picture")
    streamed, resident = (load(tmp_path / "p", resident=kept, workers=0) for kept in (False, True))
    assert [line.partition(":")[0] for line in streamed.skipped] == [str(broken), str(tmp_path / "p/b/text.png")]
    assert streamed.skipped == resident.skipped
    assert streamed.train.names == resident.train.names
    with pytest.raises(PictureError, match="03.jpg"):
        load(tmp_path / "p", unreadable="refuse")
    assert any((own_cache / "checked").iterdir())


def test_only_what_is_new_or_changed_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(path) for path in sorted(tree(tmp_path / "p", 3).rglob("*.png"))]
    seen: list[str] = []

    def noted(source: bytes, name: str, least: int) -> Image.Image:
        seen.append(name)
        return read_picture(source, name, least)

    monkeypatch.setattr("googlenet.data.checked.read_picture", noted)
    assert check_pictures(Places.whole(paths), paths, "x").usable.all()
    assert sorted(seen) == paths
    seen.clear()
    picture(9, 50, 50, grey=True).save(paths[2])
    Path(paths[4]).write_text("broken")
    found = check_pictures(Places.whole(paths), paths, "x")
    assert sorted(seen) == [paths[2], paths[4]]
    assert found.usable.tolist() == [True] * 4 + [False, True]
    assert found.grey.tolist() == [False, False, True, False, False, False]
    assert len(found.reasons) == 1
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(b"damaged")
    assert check_pictures(Places.whole(paths), paths, "x").usable.tolist() == found.usable.tolist()


def test_a_folder_too_large_for_the_memory_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "p", 3)
    monkeypatch.setattr("googlenet.data.folder.MAX_BYTES", 2 * 6 * 3 * 24 * 24 - 1)
    assert isinstance(load(tmp_path / "p", resident=None).train.images, Stream)
    with pytest.raises(ValueError, match="6 pictures at 24 px need .* GiB of memory"):
        load(tmp_path / "p", resident=True)
    monkeypatch.setattr("googlenet.data.folder.MAX_BYTES", 2 * 6 * 3 * 24 * 24)
    assert isinstance(load(tmp_path / "p", resident=None).train.images, torch.Tensor)


def test_statistics_of_a_sample_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    tree(tmp_path / "p", 10)
    whole = load(tmp_path / "p", validation=0)
    monkeypatch.setattr("googlenet.data.statistics.SAMPLE", 6)
    part = load(tmp_path / "p", validation=0)
    assert part.mean != whole.mean
    assert np.allclose(part.mean, whole.mean, atol=0.15)
    assert load(tmp_path / "p", validation=0).mean == part.mean
    for file in (own_cache / "statistics").iterdir():
        file.write_text("[[0.5, 0.5, 0.5], [0.1, 0.1, 0.1]]")
    assert load(tmp_path / "p", validation=0).std == (0.1, 0.1, 0.1)


def test_workers_share_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = set(range(12))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 3
    cores.clear()
    cores.add(0)
    assert default_workers() == 0


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of an epoch, while two workers decode the next batches."""
    tree(tmp_path / "p", 20, "jpg", factor=2)
    flags = [
        "--model.name=googlenet_d2l", f"--data.source=folder:{tmp_path / 'p'}", "--data.resident=false",
        "--data.validation=0.1", "--size.train=24", "--batch_size=4", "--epochs=4", "--data.workers=2",
        "--model.dropout=0.3", "--device=cpu", "--model.width=0.25",
    ]  # fmt: skip
    whole = googlenet("train", "fashion-mnist-smoke", *flags, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    with monkeypatch.context() as patched:
        signal_at(12, signal.SIGTERM, patched)
        stopped = googlenet("train", "fashion-mnist-smoke", *flags, "--out", tmp_path / "cut")
    assert stopped.code == 1, stopped.err
    assert "stopped at step 12 " in stopped.err and "go on with googlenet train --resume" in stopped.err
    assert "Traceback" not in stopped.err
    resumed = googlenet("train", "--resume", tmp_path / "cut")
    assert resumed.code == 0, resumed.err
    one, two = (
        torch.load(tmp_path / run / "state.pt", weights_only=True)["model"] for run in ("whole", "cut")
    )  # fmt: skip
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_ends_the_workers_too(tmp_path: Path) -> None:
    """As Ctrl-C in a terminal: the run saves and stops, and no worker complains or stays."""
    tree(tmp_path / "p", 20, "jpg", factor=2)
    command = [sys.executable, "-m", "googlenet.cli", "train", "fashion-mnist-smoke", "--model.name=googlenet_d2l"]
    command += [f"--data.source=folder:{tmp_path / 'p'}", "--data.resident=false", "--data.workers=2"]
    command += ["--data.validation=0.1", "--size.train=24", "--batch_size=4", "--epochs=4000", "--device=cpu"]
    process = subprocess.Popen(
        [*command, "--out", tmp_path / "cut"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    # The first figures are written at the end of the first epoch.
    while not (tmp_path / "cut" / "metrics.jsonl").exists() or not read_metrics(tmp_path / "cut"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1, said.decode()
    assert b"go on with googlenet train --resume" in said
    assert b"Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
