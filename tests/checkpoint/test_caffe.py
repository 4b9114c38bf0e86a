"""Caffe's GoogLeNet: generated files, read by OpenCV's importer and by this package."""

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

from googlenet.checkpoint.interop.caffe import read_caffemodel
from googlenet.checkpoint.interop.convert import key_map
from googlenet.checkpoint.interop.key_maps import SOURCE_MODELS
from googlenet.checkpoint.interop.pretrained import convert_file


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    from skimage import data

    arrays = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea()]
    return [Image.fromarray(array) for array in arrays]


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.slow
def test_caffe_against_opencv(tmp_path: Path, images: list[Image.Image], modern: bool) -> None:
    """A prototxt and a caffemodel of the original network give the same probabilities in OpenCV."""
    net = original_network()
    weights = random_weights(net.shapes)
    # Smaller weights of the classifier give probabilities that are neither flat nor certain.
    weights["loss3/classifier"][0] *= 0.02
    proto, model = tmp_path / "deploy.prototxt", tmp_path / "random.caffemodel"
    proto.write_text(net.text)
    model.write_bytes(caffemodel(weights, modern))
    # OpenCV reads the format of 2014 only with a prototxt of that format; the tensors are the same.
    opencv_model = tmp_path / "modern.caffemodel"
    opencv_model.write_bytes(caffemodel(weights, True))
    opencv = cv2.dnn.readNetFromCaffe(str(proto), str(opencv_model))

    checkpoint = convert_file(model, "caffe")
    assert checkpoint.recipe.model.name == "googlenet"
    assert checkpoint.classes[0] == "tench" and len(checkpoint.classes) == 1000
    for image in images:
        pixels, _ = checkpoint.preprocess.from_pil(image)
        with torch.no_grad():
            probabilities = checkpoint.model(pixels).softmax(1)[0].numpy()
        # Caffe's preprocessing: bytes in the order BGR minus the mean.
        square = checkpoint.preprocess.resize(checkpoint.preprocess.center_crop(to_bytes(image)), 224)[0].numpy()
        bgr = square[::-1] - np.array([104, 117, 123], np.float32).reshape(3, 1, 1)
        opencv.setInput(np.ascontiguousarray(bgr[None]))
        expected = opencv.forward().reshape(-1)
        assert 1e-3 < expected.max() < 0.9  # neither flat nor certain
        assert abs(probabilities - expected).max() <= 1e-4
        assert probabilities.argmax() == expected.argmax()


def to_bytes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).unsqueeze(0)


def test_auxiliary_heads_of_training_files(tmp_path: Path) -> None:
    shapes = dict(original_network(10).shapes)
    for number, channels in ((1, 512), (2, 528)):
        shapes[f"loss{number}/conv"] = (128, channels, 1, 1)
        shapes[f"loss{number}/fc"] = (1024, 2048)
        shapes[f"loss{number}/classifier"] = (10, 1024)
    weights = random_weights(shapes)
    file = tmp_path / "train.caffemodel"
    file.write_bytes(caffemodel(weights, modern=False))
    checkpoint = convert_file(file, "caffe:googlenet")
    assert list(checkpoint.model.aux_heads) == ["inception_4a", "inception_4d"]
    fc = checkpoint.model.aux_heads["inception_4d"].fc1.weight
    assert np.array_equal(fc.detach().numpy(), weights["loss2/fc"][0])
    assert not convert_file(file, "caffe", aux=False).model.aux_heads
    assert checkpoint.classes[3] == "class 3"


def test_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "a.caffemodel"
    file.write_text("layer { name: 'text' }")
    with pytest.raises(ValueError, match="a.caffemodel"):
        read_caffemodel(file)
    complete = caffemodel(random_weights({"conv": (2, 3, 1, 1)}), True)
    file.write_bytes(complete[:-20])
    with pytest.raises(ValueError, match="damaged"):
        read_caffemodel(file)
    short = field(100, field(1, b"conv") + field(7, field(5, struct.pack("<3f", 1, 2, 3)) + field(7, field(1, b"\4"))))
    file.write_bytes(short)
    with pytest.raises(ValueError, match=r"conv: 3 values do not fit a blob of shape \(4,\)"):
        read_caffemodel(file)
    file.write_bytes(field(1, b"GoogleNet"))
    with pytest.raises(ValueError, match="contains no weights"):
        read_caffemodel(file)


def test_layer_names_are_those_of_the_prototxt() -> None:
    layers = {key.rsplit(".", 1)[0] for key in key_map(SOURCE_MODELS["caffe:googlenet"], aux=False).values()}
    assert layers == original_network().shapes.keys()
