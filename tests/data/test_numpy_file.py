"""NumPy archives: names, shapes, types and ranges of arrays, and what is invalid."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import googlenet
from googlenet.data.pixel_range import to_8bit_array
from googlenet.data.sources import LoadOptions, load_dataset

ALL = LoadOptions(validation=0)


def images(count: int, *shape: int) -> Any:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def save(path: Path, **arrays: Any) -> str:
    np.savez(path / "data.npz", **arrays)
    return f"numpy:{path / 'data.npz'}"


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),  # Keras
        ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels"),  # MedMNIST
        ("X", "y", "valid_data", "valid_targets", "Test_Images", "Test_Labels"),
    ],
)
def test_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    counts = (9, 6, 3)
    arrays = {}
    for index, count in enumerate(counts):
        arrays[names[2 * index]] = images(count, 6, 5)
        arrays[names[2 * index + 1]] = np.arange(count).reshape(-1, 1) % 3
    data = load_dataset(save(tmp_path, **arrays), ALL)
    assert data.classes == ("0", "1", "2")
    for split, count, name in zip((data.train, data.validation, data.test), counts, names[::2], strict=True):
        assert len(split) == count and np.array_equal(split.images[:, 0], arrays[name])
        assert split.labels.tolist() == [number % 3 for number in range(count)]
    assert data.accounting.used == {"image": 18} and not data.skipped


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.integers(2, 6), st.integers(9, 12), st.integers(9, 12), st.integers(1, 8), st.booleans())
def test_channels_first_or_last(tmp_path: Path, count: int, h: int, w: int, channels: int, is_first: bool) -> None:
    pixels = images(count, h, w, channels)
    stored = pixels.transpose(0, 3, 1, 2) if is_first else pixels
    data = load_dataset(save(tmp_path, images=stored, labels=np.arange(count) % 2), ALL)
    assert data.channels == channels
    assert np.array_equal(data.train.images, pixels.transpose(0, 3, 1, 2))


def test_class_names_and_strings(tmp_path: Path) -> None:
    labels = np.array(["b", "a", "c", "b"])
    by_name = load_dataset(save(tmp_path, x=images(4, 5, 5), y=labels), ALL)
    assert by_name.classes == ("a", "b", "c") and by_name.train.labels.tolist() == [1, 0, 2, 1]
    ordered = load_dataset(save(tmp_path, x=images(4, 5, 5), y=labels, classes=np.array(["c", "b", "a"])), ALL)
    assert ordered.classes == ("c", "b", "a") and ordered.train.labels.tolist() == [1, 2, 0, 1]
    numbers = load_dataset(save(tmp_path, x=images(4, 5, 5), y=[2, 0, 1, 1], classes=np.array(["c", "b", "a"])), ALL)
    assert numbers.classes == ("c", "b", "a") and numbers.train.labels.tolist() == [2, 0, 1, 1]
    gaps = load_dataset(save(tmp_path, x=images(4, 5, 5), y=[10, 2, 10, 7]), ALL)
    assert gaps.classes == ("2", "7", "10") and gaps.train.labels.tolist() == [2, 0, 2, 1]


@settings(max_examples=30)
@given(
    st.lists(st.floats(-10, 10**5, width=32) | st.just(float("nan")), min_size=1, max_size=8),
    st.sampled_from([1.0, 255.0, 1023.0, 65535.0]),
)
def test_values_are_scaled_to_8_bits(values: list[float], white: float) -> None:
    result = to_8bit_array(np.array([values], np.float32), white)[0]
    for value, pixel in zip(values, result.tolist(), strict=True):
        exact = 0.0 if np.isnan(value) else min(255.0, max(0.0, value * 255 / white))
        assert abs(pixel - exact) <= 0.5 + 1e-4  # rounding, in float32 with 24 bits


@pytest.mark.parametrize(
    ("dtype", "maximum", "white"),
    [("uint16", 900, 1023), ("uint16", 60000, 65535), ("float32", 1, 1), ("int32", 200, 255)],
)
def test_the_range_of_the_training_images_is_used_for_all(
    tmp_path: Path, dtype: str, maximum: float, white: float
) -> None:
    train, test = (np.linspace(0, top, 4 * 25).reshape(4, 5, 5).astype(dtype) for top in (maximum, maximum / 2))
    source = save(tmp_path, x_train=train, y_train=[0, 1, 0, 1], x_test=test, y_test=[0, 1, 1, 1])
    data = load_dataset(source, ALL)
    assert data.max_value == white
    for split, values in ((data.train, train), (data.test, test)):
        expected = np.rint(values.astype(np.float64) * 255 / white)
        assert np.abs(split.images[:, 0].numpy() - expected).max() <= 1  # float32 may round to the other side
    given = load_dataset(source, LoadOptions(validation=0, max_value=2 * white))
    assert given.max_value == 2 * white and abs(int(given.train.images.max()) - 255 * maximum / (2 * white)) <= 1


def test_unknown_labels_and_arrays_are_excluded(tmp_path: Path) -> None:
    source = save(
        tmp_path, x=images(4, 5, 5), y=[0, 1, 0, 1], x_test=images(3, 5, 5), y_test=[1, 7, 7], weights=np.ones(3)
    )
    data = load_dataset(source, ALL)
    assert data.test.labels.tolist() == [1] and data.test.names == ["test 0"]
    assert data.skipped == [
        "2 images excluded: of a class without training images (test 1, ...)",
        "1 array excluded: neither images nor labels by its name (weights)",
    ]
    assert data.accounting.encountered("image") == 7
    with pytest.raises(ValueError, match="test 1: of a class without training images"):
        load_dataset(source, LoadOptions(on_error="raise"))
    held_out = load_dataset(source, LoadOptions(validation=0.5))
    assert len(held_out.train) == len(held_out.validation) == 2
    with pytest.raises(ValueError, match="the images have 5 channels, and the network takes 3"):
        load_dataset(save(tmp_path, x=images(4, 6, 6, 5), y=[0, 1, 0, 1]), LoadOptions(channels=3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 5, 5))}, "train has no array of labels; name the arrays x_train"),
        ({"y": [0, 1]}, "train has no array of images"),
        ({"a": [0, 1]}, "no images of training. 1 array excluded: neither images nor labels by its name (a); name the"),
        ({"x": np.zeros((4, 5)), "y": [0, 1, 0, 1]}, "images must be numbers of the shape (n, h, w)"),
        (
            {"x": np.zeros((4, 5, 5)), "y": [0, 1]},
            "labels must be one number or name for each of 4 images, not int64 (2,)",
        ),
        ({"x": np.zeros((4, 5, 5)), "y": np.eye(4)}, "labels must be one number or name for each of 4 images"),
        ({"x": np.zeros((2, 5, 5)), "y": [1, 1]}, "needs at least two classes; found 1"),
        ({"x": np.zeros((2, 5, 5)), "data": [1], "y": [1, 1]}, "two arrays have the images of the train split"),
        ({"x": np.zeros((2, 5, 5)), "y": np.array([{}, 1], object)}, "contains Python objects: save plain arrays"),
        ({"x": np.zeros((2, 5, 5)), "y": [0, 1], "classes": np.array(["a", "a"])}, "classes must list each class once"),
    ],
)
def test_invalid_arrays(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        load_dataset(save(tmp_path, **arrays), ALL)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_invalid_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04 damaged")
    (tmp_path / "c.npz").write_bytes(b"")
    for name, message in {
        "a.npy": "a single array; save images and labels with numpy.savez", "b.npz": "not a NumPy archive",
        "c.npz": "an empty file", "d.npz": "no such file", "": "a folder; name an npz file",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message) as raised:
            load_dataset(f"numpy:{tmp_path / name}")
        assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_train_and_evaluate_five_channels(tmp_path: Path) -> None:
    source = save(
        tmp_path, x=images(24, 16, 16, 5), y=np.arange(24) % 2, x_test=images(6, 16, 16, 5), y_test=np.arange(6) % 2
    )
    flags = ["--image-size", 32, "--epochs", 1, "--batch_size", 8, "--model.width_mult", 0.25, "--data.val_split", 4]
    done = googlenet("train", "fashion-mnist-smoke", "--data", source, *flags, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    result = googlenet("evaluate", tmp_path / "run", "--json")
    assert result.code == 0 and result.json["images"] == 6
    assert torch.tensor(result.json["top1"]).item() <= 1
