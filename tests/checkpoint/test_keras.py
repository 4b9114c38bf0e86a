"""Weights of Keras, against its networks written as functions with TensorFlow's padding; see `keras_files`."""

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from keras_files import NETWORKS, Builder, write

import googlenet
from googlenet.checkpoint.interop.keras import _saved_order, read_keras
from googlenet.checkpoint.interop.key_maps import SOURCE_MODELS
from googlenet.checkpoint.interop.pretrained import convert_file, export_tensors
from googlenet.cli import main

# The order in which Keras 3.15 lists the convolutions of InceptionV3, and of InceptionResNetV2 at both ends; numbers
# are the order in which the layers were built.
V3_ORDER = [
    0, 1, 2, 3, 4, 8, 6, 9, 5, 7, 10, 11, 15, 13, 16, 12, 14, 17, 18, 22, 20, 23, 19, 21, 24, 25, 27, 28, 26, 29, 34,
    35, 31, 36, 32, 37, 30, 33, 38, 39, 44, 45, 41, 46, 42, 47, 40, 43, 48, 49, 54, 55, 51, 56, 52, 57, 50, 53, 58,
    59, 64, 65, 61, 66, 62, 67, 60, 63, 68, 69, 72, 73, 70, 74, 71, 75, 80, 77, 81, 78, 79, 82, 83, 76, 84, 89, 86,
    90, 87, 88, 91, 92, 85, 93,
]  # fmt: skip
RESNET_HEAD = [0, 1, 2, 3, 4, 8, 6, 9, 5, 7, 10, 11, 15, 13, 16, 12, 14, 17, "block35_1_conv", 21, 19, 22, 18, 20]
RESNET_TAIL = [189, 187, 190, "block8_7_conv", 192, 193, 191, 194, "block8_8_conv", 196, 197, 195, 198, "block8_9_conv"]
RESNET_TAIL += [200, 201, 199, 202, "block8_10_conv", "conv_7b"]


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[Builder, torch.Tensor, torch.Tensor]]:
    """Layers, pixels uint8 and logits of both networks; the numbers of the layers start at 95 and 0."""
    result = {}
    for name, first, size in (("inception_v3", 95, (91, 107)), ("inception_resnet_v2", 0, (75, 99))):
        builder = Builder(seed=3, first=first)
        pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        result[name] = builder, pixels, NETWORKS[name](builder, pixels.double() / 127.5 - 1, 6)
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layout", "suffix"),
    [
        ("inception_v3", "weights2", ".h5"),
        pytest.param("inception_v3", "model2", ".hdf5", marks=pytest.mark.slow),
        pytest.param("inception_v3", "weights3", ".weights.h5", marks=pytest.mark.slow),
        ("inception_v3", "unnamed3", ".weights.h5"),
        pytest.param("inception_v3", "zip3", ".keras", marks=pytest.mark.slow),
        pytest.param("inception_resnet_v2", "model2", ".h5", marks=pytest.mark.slow),
        ("inception_resnet_v2", "zip3", ".keras"),
    ],
)
def test_same_outputs(networks: dict, name: str, layout: str, suffix: str, tmp_path: Path) -> None:
    builder, pixels, expected = networks[name]
    # Keras lists layers by their distance from the output; the names alone have to be enough.
    order = list(builder.layers) if layout == "unnamed3" else sorted(builder.layers, key=lambda key: key[::-1])
    write(tmp_path / f"model{suffix}", builder, layout, order)
    checkpoint = convert_file(tmp_path / f"model{suffix}", "keras")
    assert checkpoint.recipe.model.name == name
    assert checkpoint.preprocess.size == 299
    with torch.no_grad():
        logits = checkpoint.model.double()(checkpoint.preprocess.normalize(pixels.float()).double())
    # Pixels are normalized in float32.
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Keras files can be read, but not written"):
        export_tensors(checkpoint, "keras")
    if name == "inception_v3":
        # Pools that count the padding, torchvision's, are another function.
        other = googlenet.create(name, 6)
        other.load_state_dict(checkpoint.model.float().state_dict())
        with torch.no_grad():
            difference = (other.double().eval()(pixels.double() / 127.5 - 1) - expected).abs().max()
        assert difference > 0.01
        with pytest.raises(ValueError, match="count_include_pad"):
            export_tensors(checkpoint, "torchvision")


def test_saved_order() -> None:
    """Files of Keras 3.0 to 3.7 have no names; their order is that of the model, by the distance from the output."""
    orders = [
        [
            int(name[7:]) if name.startswith("conv2d_") else name
            for name in _saved_order(SOURCE_MODELS[f"keras:{model}"])
        ]
        for model in NETWORKS
    ]
    assert orders[0] == V3_ORDER
    assert len(orders[1]) == 244
    assert (orders[1][: len(RESNET_HEAD)], orders[1][-len(RESNET_TAIL) :]) == (RESNET_HEAD, RESNET_TAIL)


@pytest.mark.slow
def test_files_without_names(networks: dict, tmp_path: Path) -> None:
    """In the order of the distance from the output, as Keras writes them."""
    for name, (builder, pixels, expected) in networks.items():
        convolutions = [key for key, (kind, _) in builder.layers.items() if kind == "Conv2D"]
        numbered = [key for key in convolutions if key.startswith("conv2d")]
        order = [
            numbered[int(key[7:])] if key.startswith("conv2d_") else key
            for key in _saved_order(SOURCE_MODELS[f"keras:{name}"])
        ]
        norms = [key.replace("conv2d", "batch_normalization") if key in numbered else f"{key}_bn" for key in order]
        order += [key for key in norms if key in builder.layers] + ["predictions"]
        write(tmp_path / "model.weights.h5", builder, "unnamed3", order)
        checkpoint = convert_file(tmp_path / "model.weights.h5", "keras")
        with torch.no_grad():
            logits = checkpoint.model.double()(pixels.double() / 127.5 - 1)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_other_heads_and_damaged_files(networks: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    builder, *_ = networks["inception_v3"]
    bare = Builder(0)
    bare.layers = {key: value for key, value in builder.layers.items() if key != "predictions"}
    several, own, deeper = Builder(1), Builder(2), Builder(3)
    several.layers = {**builder.layers, "dense": ("Dense", {"kernel": np.zeros((9, 6), "float32")})}
    own.layers = {**bare.layers, "dense_4": builder.layers["predictions"]}
    deeper.layers = {**builder.layers, "conv2d_999": ("Conv2D", {"kernel": np.zeros((1, 1, 8, 8), "float32")})}
    for model, message in (
        (bare, "include_top=False"),
        (several, "has the dense layers dense, predictions"),
        (deeper, "unexpected conv2d_94.kernel"),
    ):
        write(tmp_path / "model.h5", model, "weights2")
        assert (
            main.main(
                ["convert", str(tmp_path / "model.h5"), "--from", "keras", "--out", str(tmp_path / "x.safetensors")]
            )
            == 1
        )
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    write(tmp_path / "own.h5", own, "weights2")
    assert read_keras(tmp_path / "own.h5").keys() >= {"predictions.kernel", "predictions.bias"}

    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "text.keras").write_text("not a zip")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    for name in ("text.h5", "text.keras", "empty.keras"):
        with pytest.raises(ValueError, match="damaged, or not a Keras file"):
            read_keras(tmp_path / name)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["values"] = np.zeros(3, "float32")
    with pytest.raises(ValueError, match="contains no convolution layers"):
        read_keras(tmp_path / "other.h5")
    with pytest.raises(ValueError, match="googlenet convert .*text.h5 --from keras --out text.safetensors"):
        googlenet.load(tmp_path / "text.h5")
