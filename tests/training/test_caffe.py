"""Caffe's GoogLeNet: files written here, read by OpenCV's importer and by ours."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from caffe_files import caffemodel, field, original_network, random_weights
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from googlenet.models.caffe import read_caffemodel
from googlenet.models.key_maps import CAFFE_GOOGLENET
from googlenet.models.weights import keys
from googlenet.training.foreign import convert_file


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


def test_caffes_names_are_the_prototxts() -> None:
    layers = {key.rsplit(".", 1)[0] for key in keys(CAFFE_GOOGLENET, aux=False).values()}
    assert layers == original_network().shapes.keys()
