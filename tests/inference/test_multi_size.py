"""Several sizes and test-time augmentation, against averages of the network's own predictions."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.optim.swa_utils import update_bn

import googlenet
from conftest import googlenet as call
from googlenet.data.dataset import Dataset, Split
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.evaluation.metrics import Predictions, average_predictions, classification_metrics
from googlenet.evaluation.predictor import NetworkPredictor
from googlenet.inference.multi_size import (
    SizeRow,
    best_row,
    check_sizes,
    evaluate_at_sizes,
    plot_sizes,
    size_row,
)
from googlenet.inference.tta import TTA, TTAPredictor
from googlenet.models.ensemble import average_logits
from googlenet.models.summary import summary

pytestmark = pytest.mark.cpu

GRAY = Preprocess(16, 1, (0.3,), (0.4,))
CLASSES = ("a", "b", "c", "d", "e")


def make_split(count: int) -> Split:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 1, 20, 20), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 5, [str(n) for n in range(count)])


def fashion_mnist(folder: Path, max_images: int) -> Dataset:
    return load_dataset("fashion-mnist", LoadOptions(root=str(folder), validation=5000, max_samples=max_images))


def predictor(aux: bool = False) -> NetworkPredictor:
    return NetworkPredictor(googlenet.create_model("googlenet_d2l", 5, 1, aux=aux).eval(), GRAY, CLASSES)


def numpy_views(pixels: torch.Tensor, tta: TTA) -> list[torch.Tensor]:
    """Return the views of a batch, computed by NumPy."""
    shift = tta.shift
    edges = np.pad(pixels.numpy(), ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="edge")
    offsets = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)] if shift else [(0, 0)]
    size = pixels.shape[-1]
    views = []
    for down, right in offsets:
        rolled = np.roll(edges, (down * shift, right * shift), axis=(2, 3))
        view = rolled[..., shift : shift + size, shift : shift + size]
        views += [view, view[..., ::-1]] if tta.flip else [view]
    return [torch.from_numpy(view.copy()) for view in views]


@pytest.mark.parametrize("tta", [TTA(), TTA(flip=True), TTA(shift=2), TTA(flip=True, shift=1)], ids=repr)
def test_average_over_sizes_and_views(tta: TTA) -> None:
    network, split, sizes = predictor(), make_split(9), [12, 16, 30]
    results = list(evaluate_at_sizes(network, split, sizes, tta))
    assert [result.size for result in results] == sizes
    expected = torch.zeros(9, 5)
    with torch.no_grad():
        for size in sizes:
            views = numpy_views(GRAY(split.images, size), tta)
            assert len(views) == tta.num_views
            for view in views:
                expected += network.model(view).softmax(1) / (len(views) * len(sizes))
    average = average_predictions([result.predictions for result in results])
    torch.testing.assert_close(average.logits.softmax(1).float(), expected)
    metrics = classification_metrics(average)
    loss = -expected.gather(1, split.labels.unsqueeze(1)).log().mean().item()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["top1"] == (expected.argmax(1) == split.labels).double().mean().item()


@given(seed=st.integers(0, 999), views=st.integers(1, 5), scale=st.sampled_from([1.0, 50.0, 3000.0]))
def test_average_is_a_distribution_and_its_loss_at_most_the_mean_loss(seed: int, views: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = [scale * torch.randn(8, 4, generator=generator) for _ in range(views)]
    mean = average_logits(logits)
    torch.testing.assert_close(mean.exp().sum(1), torch.ones(8, dtype=torch.double))
    assert torch.isfinite(mean).all(), "the loss of confident errors is large, but finite"
    labels = torch.arange(8) % 4
    losses = [classification_metrics(Predictions(view, labels))["loss"] for view in logits]
    # Jensen's inequality: the loss of the mean probabilities is at most the mean of the losses.
    assert classification_metrics(Predictions(mean, labels))["loss"] <= sum(losses) / views + 1e-9
    if views == 1:
        torch.testing.assert_close(mean, logits[0].double().log_softmax(1))


def test_predictions_of_flipped_images_are_equal() -> None:
    augmented = TTAPredictor(predictor(), TTA(flip=True, shift=1))
    images = 255 * torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(augmented.predict(images), augmented.predict(images.flip(-1)))


def test_rows_do_not_count_auxiliary_heads() -> None:
    plain, with_heads = predictor().model, predictor(aux=True)
    split = make_split(4)
    for tta, num_views in ((TTA(), 1), (TTA(flip=True), 2), (TTA(shift=3), 5), (TTA(flip=True, shift=1), 10)):
        (result,) = evaluate_at_sizes(with_heads, split, [24], tta)
        row = size_row(with_heads.model, result, tta)
        assert row.macs == num_views * summary(plain, 24).macs
        assert row.images_per_second == pytest.approx(4 / result.seconds)


def test_best_row_and_plot() -> None:
    rows = [
        SizeRow(32, 0.8, 0.9, 0.5, 300, 10.0),
        SizeRow(24, 0.8, 0.9, 0.4, 200, 20.0),
        SizeRow(16, 0.7, 1, 0.1, 9, 9),
    ]
    assert best_row(rows).size == 24
    image = Image.open(io.BytesIO(plot_sizes(rows, {"top1": 0.85, "top5": 1.0, "loss": 0.3}, "a run")))
    assert image.format == "PNG"
    assert image.width > image.height


def test_check_sizes() -> None:
    check_sizes(31, [31, 64])
    with pytest.raises(ValueError, match="size 30 is too small: this network needs at least 31 pixels"):
        check_sizes(31, [64, 30])
    with pytest.raises(ValueError, match="duplicate size"):
        check_sizes(31, [64, 64])
    check_sizes(31, [31, 64], 30)
    for shift in (-1, 31):
        with pytest.raises(ValueError, match=f"less than the size of 31 pixels, not {shift}"):
            check_sizes(31, [64, 31], shift)


def test_evaluate_at_several_sizes(smoke_run: Path, tmp_path: Path, fashion_mnist_folder: Path) -> None:
    flags = ("--split", "validation", "--max-images", 80, "--json")
    document = call("evaluate", smoke_run, "--sizes", "12,16", *flags, "--out", tmp_path / "plots").json
    assert [row["size"] for row in document["rows"]] == [12, 16]
    assert {"top1", "top5", "loss", "macs", "images_per_second"} <= document["rows"][0].keys()
    assert document["average"]["top1"] == document["top1"]
    assert (document["split"], document["images"]) == ("validation", 80)
    assert Image.open(document["plot"]).format == "PNG"
    single = call("evaluate", smoke_run, "--size", 12, *flags).json
    assert {key: single[key] for key in ("top1", "top5", "loss")} == pytest.approx(
        {key: document["rows"][0][key] for key in ("top1", "top5", "loss")}
    )
    checkpoint = googlenet.load(smoke_run)
    validation = fashion_mnist(fashion_mnist_folder, 80).validation
    with torch.no_grad():
        probabilities = sum(
            checkpoint.model(checkpoint.preprocess(validation.images, size)).softmax(1) for size in (12, 16)
        )
    expected = (probabilities.argmax(1) == validation.labels).double().mean().item()
    assert document["average"]["top1"] == pytest.approx(expected, abs=1e-9)
    best = max(document["rows"], key=lambda row: (row["top1"], -row["loss"]))
    assert document["average"]["best_size"] == best["size"]


def test_precise_bn_at_each_size(smoke_run: Path, fashion_mnist_folder: Path) -> None:
    flags = ("--sizes", "12,16", "--split", "validation", "--max-images", 64, "--json")
    document = call("evaluate", smoke_run, *flags, "--precise-bn", 0).json
    data = fashion_mnist(fashion_mnist_folder, 64)
    assert googlenet.load(smoke_run).recipe.batch_size >= 64, "one batch, so the order of its images does not matter"
    losses = {}
    for size in (12, 16):
        checkpoint = googlenet.load(smoke_run)
        with torch.no_grad():
            update_bn([checkpoint.preprocess(data.train.images, size)], checkpoint.model)
            logits = checkpoint.model.eval()(checkpoint.preprocess(data.validation.images, size))
        losses[size] = torch.nn.functional.cross_entropy(logits, data.validation.labels).item()
    assert {row["size"]: row["loss"] for row in document["rows"]} == pytest.approx(losses, rel=1e-4)


def test_predict_averages_sizes_and_views(smoke_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.radial_gradient("L").resize((28, 28)).save(path)
    flags = ("--sizes", "16,20", "--tta-flip", "--tta-shift", 1, "--top-k", 10, "--json")
    (prediction,) = json.loads(call("predict", smoke_run, path, *flags).out)
    checkpoint = googlenet.load(smoke_run)
    expected = torch.zeros(1, 10)
    with torch.no_grad():
        for size in (16, 20):
            pixels, _ = checkpoint.preprocess.from_pil(Image.open(path), size)
            views = torch.cat(numpy_views(pixels, TTA(flip=True, shift=1)))
            expected += checkpoint.model(views).softmax(1).mean(0, keepdim=True) / 2
    probabilities = {row["label"]: row["probability"] for row in prediction["top"]}
    assert probabilities == pytest.approx(dict(zip(checkpoint.classes, expected[0].tolist(), strict=True)), abs=1e-6)
    assert "20 px" in prediction["preprocessing"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ("--sizes 0,16", 1, "size 0 is too small"),
        ("--sizes 16,16", 1, "duplicate size"),
        ("--sizes 16,x", 2, "such as 24,28,32"),
        ("--sizes 16 --size 16", 2, "not allowed"),
        ("--out folder", 2, "--sizes"),
        ("--crops 1 --precise-bn 2", 2, "--precise-bn requires"),
        ("--precise-bn -1", 2, "0 or more"),
        ("--tta-shift 16 --size 16", 1, "less than the size of 16 pixels, not 16"),
        ("--tta-shift -1", 1, "at least 0"),
        ("--tta-shift 1.5", 2, "invalid int"),
    ],
)
def test_error_messages(flags: str, code: int, message: str, smoke_run: Path) -> None:
    result = call("evaluate", smoke_run, *flags.split())
    assert (result.code, len(result.err.strip().splitlines()), result.out) == (code, 1, "")
    assert message in result.err
