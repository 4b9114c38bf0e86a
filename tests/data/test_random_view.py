"""Random views of full images: crops distributed as torchvision's, the same for every process, storage and order."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from conftest import googlenet
from googlenet.data.augment import Augment
from googlenet.data.batch_slice import BatchSlice
from googlenet.data.dataset import Dataset, Split
from googlenet.data.decode import decode_to_tensor
from googlenet.data.decoded import DecodedImages
from googlenet.data.image_seeds import image_seeds, image_uniform
from googlenet.data.lazy import LazyImages
from googlenet.data.loader import full_batch_spec, training_batch
from googlenet.data.preprocess import Preprocess
from googlenet.data.random_view import INTERPOLATIONS, RandomView, crop_box, full_image_size, resize
from googlenet.data.sources import LoadOptions, load_dataset

PAPER = Augment(flip="random", min_crop_scale=0.08, random_interpolation=True)


def tree(root: Path, count: int = 8, suffix: str = "png") -> Path:
    """Two classes of noise on a gradient, 64 to 95 pixels wide and 48 high."""
    rng = np.random.default_rng(7)
    for label in range(2):
        folder = root / "ab"[label]
        folder.mkdir(parents=True)
        for number in range(count):
            size = (64 + 4 * number, 48)
            colors = Image.fromarray(rng.integers(0, 255, (3, 4, 3)).astype(np.uint8))
            noise = rng.normal(0, 9, (*size[::-1], 3))
            pixels = np.clip(np.asarray(colors.resize(size, Image.Resampling.BICUBIC)) + noise, 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.{suffix}")
    return root


def load(root: Path, full_size: int | None = 60, **options: object) -> Dataset:
    defaults = {"validation": 0.25, "size": 24, "in_memory": False, "num_workers": 0, "full_size": full_size}
    return load_dataset(f"folder:{root}", LoadOptions(**{**defaults, **options}))


def batches(data: Split, augment: Augment, steps: list[int], size: int = 20) -> list[torch.Tensor]:
    channels, count = data.images.shape[1], len(data.labels)
    preprocess = Preprocess(24, channels, (0.5,) * channels, (0.2,) * channels)
    specs = [full_batch_spec(count, 5, step=step, size=size, seed=5) for step in steps]
    return [training_batch(data, preprocess, augment, spec).images for spec in specs]


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    min_scale=st.floats(0.02, 0.99),
    seed=st.integers(0, 2**64 - 1),
)
def test_crops_are_inside_the_image_with_the_area_and_the_aspect_ratio(
    height: int, width: int, min_scale: float, seed: int
) -> None:
    top, left, h, w = crop_box(height, width, min_scale, random.Random(seed))
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h > 0 and w > 0
    # A side is rounded by up to half a pixel.
    slack = (1 + 0.5 / h) * (1 + 0.5 / w)
    assert 3 / 4 / slack <= w / h <= 4 / 3 * slack or h in (1, height) or w in (1, width)
    if 3 / 4 <= width / height <= 4 / 3:
        assert h * w * slack >= min_scale * height * width or (h, w) == (height, width)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (100, 260), (300, 90)])
def test_crops_are_distributed_as_in_torchvision(height: int, width: int) -> None:
    rng, image = random.Random(1), torch.empty(1, height, width)
    torch.manual_seed(1)
    ours = np.array([crop_box(height, width, 0.08, rng) for _ in range(1500)])
    theirs = np.array([RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(1500)])
    for features in ((0,), (1,), (2,), (3,), (2, 3)):
        a, b = (np.prod(boxes[:, features], axis=1) for boxes in (ours, theirs))
        # Samples of one distribution exceed this distance with a probability of 0.0001.
        assert ks_2samp(a, b).statistic < math.sqrt(-math.log(0.0001 / 2) / 2 * 2 / 1500)


def test_seeds_are_functions_of_seed_epoch_index_and_stream() -> None:
    indices = torch.arange(2000)
    seeds = {arguments: image_seeds(indices, *arguments) for arguments in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(np.unique(np.concatenate(list(seeds.values())))) == 8000
    assert np.array_equal(image_seeds(indices[[7, 3]], 1, 0, 0), seeds[1, 0, 0][[7, 3]])
    uniform = image_uniform(indices, 3, 5, 2, 4)
    assert uniform.shape == (2000, 4) and uniform.min() >= 0 and uniform.max() < 1
    # Four standard errors of the mean of 2,000 uniform numbers, and of a correlation.
    assert (uniform.mean(0) - 0.5).abs().max() < 4 * math.sqrt(1 / 12 / 2000)
    columns = torch.cat([uniform, image_uniform(indices + 1, 3, 5, 2, 2)], 1)
    assert (torch.corrcoef(columns.T) - torch.eye(6)).abs().max() < 4 / math.sqrt(2000)


@pytest.mark.parametrize("mode", INTERPOLATIONS)
def test_interpolations(mode: str) -> None:
    image = torch.arange(48, dtype=torch.uint8).view(1, 1, -1).expand(3, 48, 48).contiguous()
    image = image + 4 * torch.arange(48, dtype=torch.uint8).view(1, -1, 1)
    out = resize(image, 16, mode)
    assert out.shape == (3, 16, 16) and out.dtype == torch.uint8
    # Every method takes the center of 3x3 pixels of a ramp, except at the border; two roundings.
    assert (out[:, 2:-2, 2:-2].int() - image[:, 7:-6:3, 7:-6:3].int()).abs().max() <= 1
    assert torch.equal(resize(image, 48, mode), image)
    if mode == "nearest":
        assert set(out.unique().tolist()) <= set(image.unique().tolist())


@pytest.mark.parametrize(
    "augment",
    [
        pytest.param(PAPER, id="crops"),
        pytest.param(Augment(auto_augment="rand-m7-mstd0.5", flip="alternating"), id="policy", marks=pytest.mark.slow),
    ],
)
def test_views_are_those_of_every_number_of_workers_and_storage(tmp_path: Path, augment: Augment, cache: Path) -> None:
    root, steps = tree(tmp_path / "p", suffix="jpg"), [0, 1, 2, 3, 7, 1]
    results = []
    for in_memory, num_workers in ((False, 0), (False, 2), (True, 0)):
        train = load(root, in_memory=in_memory, num_workers=num_workers).train
        assert isinstance(train.images, LazyImages) and (train.images.decoded is not None) is in_memory
        results.append(batches(train, augment, steps))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert torch.equal(results[0][1], results[0][5])
    assert not torch.equal(results[0][0], results[0][3])


def test_views_of_a_slice_are_those_of_the_batch(tmp_path: Path, cache: Path) -> None:
    train = load(tree(tmp_path / "p")).train
    preprocess = Preprocess(24, 3, (0.5,) * 3, (0.2,) * 3)
    spec = full_batch_spec(len(train.labels), 6, step=1, size=20, seed=2)
    full = training_batch(train, preprocess, PAPER, spec).images
    part = training_batch(train, preprocess, PAPER, spec._replace(part=BatchSlice(2, 5, 6))).images
    assert torch.equal(part, full[2:5])


def test_an_image_has_another_view_in_every_epoch_at_every_size() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=generator)
    preprocess, index = Preprocess(24, 3, (0.5,) * 3, (0.2,) * 3), torch.tensor([4])
    first, again, other, large = (
        RandomView(PAPER, preprocess, size, 3, epoch).render([image], index)
        for size, epoch in ((20, 0), (20, 0), (20, 1), (40, 0))
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert large.shape == (1, 3, 40, 40)


def test_crops_reach_the_whole_image(tmp_path: Path, cache: Path) -> None:
    """Also the parts that a center crop does not have: the left and right border of a wide image."""
    for label in "ab":
        (tmp_path / "p" / label).mkdir(parents=True)
        for number in range(4):
            columns = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (40, 1))
            Image.fromarray(columns).save(tmp_path / "p" / label / f"{number}.png")
    train = load(tmp_path / "p", validation=0).train
    augment = Augment(min_crop_scale=0.08)
    pixels = torch.cat(batches(train, augment, list(range(40)))) * 0.2 * 255 + 127.5
    # The center square has the columns 40 to 80, with values from 80 to 160.
    assert pixels.min() < 8 and pixels.max() > 230


def test_images_in_memory_as_squares_are_viewed_too() -> None:
    """Fashion-MNIST is a tensor of squares: crops of these, in the training process."""
    images = torch.arange(28, dtype=torch.uint8).view(1, 1, 1, -1).expand(12, 1, 28, 28).contiguous()
    data = Split(images, torch.arange(12) % 2, [str(index) for index in range(12)])
    (pixels,) = batches(data, Augment(min_crop_scale=0.2), [0], size=16)
    widths = (pixels.amax((1, 2, 3)) - pixels.amin((1, 2, 3))) * 0.2 * 255
    assert widths.min() > 28 * math.sqrt(0.2 * 3 / 4) - 3 and widths.max() < 28
    assert len(widths.unique()) > 2


def test_validation_images_are_not_views(tmp_path: Path, cache: Path) -> None:
    """They are the center crops that `googlenet evaluate` reads."""
    root = tree(tmp_path / "p", suffix="jpg")
    expected = load(root, full_size=None, in_memory=True).validation
    for in_memory in (False, True):
        held_out = load(root, in_memory=in_memory).validation
        assert held_out.names == expected.names
        (pixels,) = held_out.pixels([torch.arange(len(held_out))])
        assert torch.equal(pixels, expected.images)
        assert isinstance(held_out.images, torch.Tensor) is in_memory


def test_full_images_are_reduced_but_not_below_what_crops_need(tmp_path: Path) -> None:
    assert full_image_size(96, 0.08) == 340 and full_image_size(96, 1.0) == 96
    for suffix in ("png", "jpg"):
        Image.new("RGB", (301, 200)).save(tmp_path / f"x.{suffix}")
        data = (tmp_path / f"x.{suffix}").read_bytes()
        for min_size, height in ((40, 40 if suffix == "png" else 50), (100, 100), (101, 200)):
            assert decode_to_tensor(data, None, "x", min_size, reduce=True).shape[1] == height


def test_decoded_images_share_their_pixels() -> None:
    images = [torch.randint(0, 256, shape, dtype=torch.uint8) for shape in ((3, 4, 5), (1, 2, 7), (3, 6, 1))]
    decoded = DecodedImages.from_images(images)
    assert all(torch.equal(decoded.read(index), image) for index, image in enumerate(images))
    selected = decoded.select(np.array([2, 0]))
    assert torch.equal(selected.read(0), images[2]) and torch.equal(selected.read(1), images[0])
    assert selected.pixels.data_ptr() == decoded.pixels.data_ptr()


def test_full_images_too_large_for_memory_stay_on_disk(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "p", 2)
    num_bytes = 2 * sum(3 * 48 * width for width in (64, 64, 68, 68))
    monkeypatch.setattr("googlenet.data.sources.folder.available_memory", lambda: 2 * num_bytes - 1)
    images = load(root, in_memory=None).train.images
    assert isinstance(images, LazyImages) and images.decoded is None
    with pytest.raises(ValueError, match="the full images, for random crops, need .* leave data.in_memory unset"):
        load(root, in_memory=True)
    monkeypatch.setattr("googlenet.data.sources.folder.available_memory", lambda: 2 * num_bytes)
    images = load(root, in_memory=None).train.images
    assert isinstance(images, LazyImages) and images.decoded is not None


def test_gray_and_color_images_in_memory(tmp_path: Path, cache: Path) -> None:
    root = tree(tmp_path / "p")
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    in_memory, lazy = (load(root, in_memory=value).train for value in (True, False))
    assert in_memory.images.shape[1] == lazy.images.shape[1] == 1
    assert torch.equal(batches(in_memory, PAPER, [0])[0], batches(lazy, PAPER, [0])[0])
    path = root / "a" / "00.png"
    Image.open(path).convert("RGB").save(path)
    in_memory, lazy = (load(root, in_memory=value).train for value in (True, False))
    assert in_memory.images.shape[1] == 3
    assert torch.equal(batches(in_memory, PAPER, [0])[0], batches(lazy, PAPER, [0])[0])


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_the_weights(tmp_path: Path, cache: Path) -> None:
    """Two sizes of crops, with prefetching over the change of the size."""
    flags = [
        "--model.name=googlenet_d2l", f"--data.source=folder:{tree(tmp_path / 'p', 12, 'jpg')}", "--size.train=[20,24]",
        "--size.schedule=progressive", "--data.val_split=0.2", "--batch_size=6", "--epochs=2", "--device=cpu",
        "--model.width_mult=0.25", "--augment.min_crop_scale=0.08", "--augment.random_interpolation=true",
        "--augment.auto_augment=rand-m5-mstd0.5", "--data.in_memory=false",
    ]  # fmt: skip
    weights = []
    for num_workers in (0, 1, 2):
        out = tmp_path / str(num_workers)
        done = googlenet("train", "fashion-mnist-smoke", *flags, f"--data.num_workers={num_workers}", "--out", out)
        assert done.code == 0, done.err
        weights.append(torch.load(out / "state.pt", weights_only=True)["model"])
    for other in weights[1:]:
        assert all(torch.equal(weights[0][key], other[key]) for key in weights[0])
