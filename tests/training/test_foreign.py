"""Other people's files: Caffe's against OpenCV's reader, published weights by name, and the verb that converts."""

import json
import os
import struct
import time
from pathlib import Path
from urllib.error import URLError

import cv2
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

import googlenet
from googlenet import cli
from googlenet.models.caffe import read_caffemodel
from googlenet.models.catalogue import MODELS
from googlenet.models.key_maps import CAFFE_GOOGLENET, ORIGINS
from googlenet.models.weights import keys
from googlenet.training.foreign import (
    PREPROCESS,
    class_names,
    convert_file,
    export_tensors,
    is_published,
    read_tensors,
)
from googlenet.training.recipe import Model, Recipe

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


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    from skimage import data

    arrays = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea()]
    return [Image.fromarray(array) for array in arrays]


@pytest.mark.parametrize("modern", [True, False])
def test_caffe_against_opencv(tmp_path: Path, pictures: list[Image.Image], modern: bool) -> None:
    """A prototxt and a caffemodel of the original network: OpenCV's importer and ours answer alike."""
    net = original_network()
    weights = random_weights(net.shapes)
    # A head that is sure of nothing would agree with anything; this one spreads.
    weights["loss3/classifier"][0] *= 0.02
    proto, model = tmp_path / "deploy.prototxt", tmp_path / "random.caffemodel"
    proto.write_text(net.text)
    model.write_bytes(caffemodel(weights, modern))
    # OpenCV reads the format of 2014 only with a prototxt of its kind; the tensors are the same.
    opencv_model = tmp_path / "modern.caffemodel"
    opencv_model.write_bytes(caffemodel(weights, True))
    theirs = cv2.dnn.readNetFromCaffe(str(proto), str(opencv_model))

    ours = convert_file(model, "caffe")
    assert ours.recipe.model.name == "googlenet"
    assert ours.classes[0] == "tench" and len(ours.classes) == 1000
    for picture in pictures:
        pixels, _ = ours.preprocess.read(picture)
        with torch.no_grad():
            mine = ours.model(pixels).softmax(1)[0].numpy()
        # The same square in Caffe's own terms: bytes, blue first, less the mean.
        square = ours.preprocess.resize(ours.preprocess.square(to_bytes(picture)), 224)[0].numpy()
        bgr = square[::-1] - np.array([104, 117, 123], np.float32).reshape(3, 1, 1)
        theirs.setInput(np.ascontiguousarray(bgr[None]))
        other = theirs.forward().reshape(-1)
        assert 1e-3 < other.max() < 0.9  # neither flat nor certain
        assert abs(mine - other).max() <= 1e-4
        assert mine.argmax() == other.argmax()


def to_bytes(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).unsqueeze(0)


def test_caffe_training_files_bring_their_auxiliary_heads(tmp_path: Path) -> None:
    shapes = dict(original_network(10).shapes)
    for number, channels in ((1, 512), (2, 528)):
        shapes[f"loss{number}/conv"] = (128, channels, 1, 1)
        shapes[f"loss{number}/fc"] = (1024, 2048)
        shapes[f"loss{number}/classifier"] = (10, 1024)
    weights = random_weights(shapes)
    file = tmp_path / "train.caffemodel"
    file.write_bytes(caffemodel(weights, modern=False))
    whole = convert_file(file, "caffe:googlenet")
    assert list(whole.model.aux_heads) == ["inception_4a", "inception_4d"]
    fc = whole.model.aux_heads["inception_4d"].fc1.weight
    assert np.array_equal(fc.detach().numpy(), weights["loss2/fc"][0])
    assert not convert_file(file, "caffe", aux=False).model.aux_heads
    assert whole.classes[3] == "class 3"


def test_damaged_caffe_files(tmp_path: Path) -> None:
    file = tmp_path / "a.caffemodel"
    file.write_text("layer { name: 'text' }")
    with pytest.raises(ValueError, match="a.caffemodel"):
        read_caffemodel(file)
    whole = caffemodel(random_weights({"one": (2, 3, 1, 1)}), True)
    file.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="damaged"):
        read_caffemodel(file)
    short = field(100, field(1, b"one") + field(7, field(5, struct.pack("<3f", 1, 2, 3)) + field(7, field(1, b"\4"))))
    file.write_bytes(short)
    with pytest.raises(ValueError, match=r"one: 3 numbers do not fill a blob of \(4,\)"):
        read_caffemodel(file)
    file.write_bytes(field(1, b"GoogleNet"))
    with pytest.raises(ValueError, match="no layer has weights"):
        read_caffemodel(file)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def test_torchvisions_published_weights_by_name(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, the line says which file to put where; with a file there, it is the network that torchvision has."""

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no connection")

    monkeypatch.setattr("torch.hub.urlopen", unreachable, raising=False)
    picture = cache / "photo.png"
    Image.new("RGB", (300, 200), (200, 30, 90)).save(picture)
    assert cli.main(["predict", "torchvision:googlenet", str(picture), "--json"]) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    place = cache / "torch" / "hub" / "checkpoints" / "googlenet-1378be20.pth"
    assert f"put it at {place}" in line and "https://download.pytorch.org/models/googlenet-1378be20.pth" in line

    theirs = torchvision.models.googlenet(weights=None, aux_logits=True, transform_input=True, init_weights=False)
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(theirs.state_dict(), place)
    assert cli.main(["predict", "torchvision:googlenet", str(picture), "--json", "--top", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)[0]["top"][0]
    assert answer["label"] in class_names(1000)

    checkpoint = googlenet.load("torchvision:googlenet")
    assert not checkpoint.model.aux_heads  # published untrained
    theirs.eval()
    pixels = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    transforms = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    crop = pixels[:, :, 16:240, 16:240]
    with torch.no_grad():
        wanted = theirs(transforms(pixels))
        mine = checkpoint.model(checkpoint.preprocess(pixels))
        torch.testing.assert_close(checkpoint.preprocess.square(pixels), crop)
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)

    # The converted copy answers when the file is gone; a newer file is converted again.
    inputs = checkpoint.preprocess(pixels)
    place.rename(place.with_suffix(".away"))
    with torch.no_grad():
        assert torch.equal(googlenet.load("torchvision:googlenet").model(inputs), mine)
        theirs.fc.bias += 1.0
        torch.save(theirs.state_dict(), place)
        later = time.time() + 60
        os.utime(place, (later, later))
        torch.testing.assert_close(googlenet.load("torchvision:googlenet").model(inputs), mine + 1.0)


def test_timms_published_weights_by_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from safetensors.torch import save_file

    monkeypatch.setattr("timm.create_model", lambda *_, **__: (_ for _ in ()).throw(OSError("no connection")))
    with pytest.raises(ValueError, match="cannot be fetched.*put it at") as refused:
        googlenet.load("timm:inception_v4.tf_in1k")
    place = Path(str(refused.value).rsplit("put it at ", 1)[1])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "cache"))
    theirs = timm.create_model("inception_v4").eval()
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(theirs.state_dict(), place)
    checkpoint = googlenet.load("timm:inception_v4.tf_in1k")
    assert checkpoint.recipe.model.name == "inception_v4"
    assert checkpoint.preprocess.interpolation == "bicubic"
    x = torch.randn(1, 3, 80, 90)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.model(x), theirs(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet18", "torchvision:googlenet, torchvision:inception_v3"),
        ("timm:inception_v9.tf_in1k", "timm:inception_v4"),
        ("timm:inception_v4.secret", "timm has no weights"),
        ("torchvision:googlenet.V9", "it has IMAGENET1K_V1"),
    ],
)
def test_unknown_published_names(cache: Path, name: str, said: str) -> None:
    assert is_published(name)
    with pytest.raises(ValueError, match=said):
        googlenet.load(name)


def test_every_origin_has_its_pixels() -> None:
    assert PREPROCESS.keys() == ORIGINS.keys()
    for name, origin in ORIGINS.items():
        assert PREPROCESS[name].size == MODELS[origin.model].input_size


def test_convert_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=4)
    file, ours, back = (str(tmp_path / name) for name in ("theirs.pth", "ours.safetensors", "back.pth"))
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.state_dict().items()}}, file)
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\ncow\npig\n")
    command = ["convert", file, "--from", "torchvision", "--to", ours, "--classes", str(names), "--json"]
    assert cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["keys"] == 364
    assert document["parameters"] == sum(p.numel() for p in theirs.parameters())
    assert document["model"] == "googlenet_torchvision"
    checkpoint = googlenet.load(ours)
    assert checkpoint.classes == ("cat", "dog", "cow", "pig")

    assert cli.main(["convert", ours, "--as", "torchvision", "--to", back]) == 0
    returned = torch.load(back, weights_only=True)
    expected = theirs.state_dict()
    assert returned.keys() == expected.keys()
    assert all(torch.equal(returned[key], expected[key]) for key in expected)

    bare = str(tmp_path / "bare.pth")
    assert cli.main(["convert", ours, "--as", "torchvision", "--to", bare, "--no-aux"]) == 0
    assert len(torch.load(bare, weights_only=True)) == 344
    capsys.readouterr()
    assert cli.main(["convert", ours, "--as", "timm", "--to", back]) == 1
    assert "can be written for torchvision:googlenet" in capsys.readouterr().err
    assert cli.main(["convert", file, "--from", "timm", "--to", ours]) == 1
    assert "not the weights of a" in capsys.readouterr().err
    assert cli.main(["convert", file, "--from", "mxnet", "--to", ours]) == 1
    assert "torchvision, timm, fid, caffe, pretrainedmodels" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "none.pth"), "--from", "timm", "--to", ours]) == 1
    assert "no such file" in capsys.readouterr().err
    for wrong in (
        ["--to", "x.onnx", "--from", "timm"],
        ["--to", ours],
        ["--from", "timm"],
        ["--to", ours, "--as", "timm", "--classes", str(names)],
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["convert", file, *wrong])
        assert stop.value.code == 2


@pytest.mark.parametrize("variant", [{"stem_stride": 2}, {"pools": "padded"}, {"pyramid": (1, 2, 4)}, {"width": 0.5}])
def test_another_network_is_not_written_as_theirs(variant: dict[str, object]) -> None:
    """Of the same shapes or not, it would compute something else there."""
    model = googlenet.create("googlenet_torchvision", 3, **variant)
    recipe = Recipe(model=Model(name="googlenet_torchvision", **variant))
    kept = googlenet.Checkpoint(model, PREPROCESS["torchvision:googlenet"], ("a", "b", "c"), recipe, {})
    with pytest.raises(ValueError, match=f"network has {next(iter(variant))}"):
        export_tensors(kept, "torchvision")


def test_pickles_that_hold_code_are_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(ValueError, match="could run code"):
        read_tensors(file)
    for content, said in ((b"", "damaged"), (b"PK\3\4 no", "damaged"), (b"<html><body>404", "damaged, or not")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_tensors(file)
    torch.save([1, 2], file)
    with pytest.raises(ValueError, match="no state dict"):
        read_tensors(file)


def test_caffes_names_are_the_prototxts() -> None:
    layers = {key.rsplit(".", 1)[0] for key in keys(CAFFE_GOOGLENET, aux=False).values()}
    assert layers == original_network().shapes.keys()
