"""Several sizes, averaged: recomputed by hand from the network's own answers."""

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
from googlenet.data.dataset import Split
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.evaluation.metrics import Outputs, scores
from googlenet.evaluation.scales import (
    SizeRow,
    Views,
    answer_at_sizes,
    average,
    average_logits,
    best_row,
    check_sizes,
    plot,
    size_row,
)

pytestmark = pytest.mark.cpu

GREY = Preprocess(16, 1, (0.3,), (0.4,))


def pictures(count: int) -> Split:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 1, 20, 20), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count) % 5, [str(n) for n in range(count)])


def views_by_hand(pixels: torch.Tensor, flip: bool, shift: int) -> list[torch.Tensor]:
    """A batch's views, by NumPy."""
    edges = np.pad(pixels.numpy(), ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="edge")
    offsets = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)] if shift else [(0, 0)]
    size = pixels.shape[-1]
    views = []
    for down, right in offsets:
        view = np.roll(edges, (down * shift, right * shift), axis=(2, 3))[
            ..., shift : shift + size, shift : shift + size
        ]
        views += [view, view[..., ::-1]] if flip else [view]
    return [torch.from_numpy(view.copy()) for view in views]


@pytest.mark.parametrize(("flip", "shift"), [(False, 0), (True, 0), (False, 2), (True, 1)])
def test_average_by_hand(flip: bool, shift: int) -> None:
    model, split = googlenet.create("googlenet_d2l", 5, 1).eval(), pictures(9)
    sizes = [12, 16, 30]
    answers = list(answer_at_sizes(model, split, GREY, sizes, flip=flip, shift=shift))
    assert [answer.size for answer in answers] == sizes
    expected = torch.zeros(9, 5)
    with torch.no_grad():
        for size in sizes:
            views = views_by_hand(GREY(split.images, size), flip, shift)
            for view in views:
                expected += model(view).softmax(1) / (len(views) * len(sizes))
    mean = average([answer.outputs for answer in answers])
    torch.testing.assert_close(mean.logits.softmax(1).float(), expected)
    figures = scores(mean)
    loss = -expected.gather(1, split.labels.unsqueeze(1)).log().mean().item()
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)
    assert figures["top1"] == (expected.argmax(1) == split.labels).double().mean().item()


@given(seed=st.integers(0, 999), views=st.integers(1, 5), scale=st.sampled_from([1.0, 50.0, 3000.0]))
def test_average_is_a_distribution_and_never_worse_than_the_mean_loss(seed: int, views: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = [scale * torch.randn(8, 4, generator=generator) for _ in range(views)]
    mean = average_logits(logits)
    torch.testing.assert_close(mean.exp().sum(1), torch.ones(8, dtype=torch.double))
    assert torch.isfinite(mean).all(), "certain and wrong is a large loss, not an infinite one"
    labels = torch.arange(8) % 4
    losses = [scores(Outputs(view, labels))["loss"] for view in logits]
    # Jensen: the loss of mean probabilities is at most the mean of the losses.
    assert scores(Outputs(mean, labels))["loss"] <= sum(losses) / views + 1e-9
    if views == 1:
        torch.testing.assert_close(mean, logits[0].double().log_softmax(1))


def test_mirrored_answers_the_same_for_a_picture_and_its_mirror() -> None:
    model = Views(googlenet.create("googlenet_d2l", 5, 1).eval(), flip=True, shift=1)
    x = torch.randn(3, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(x.flip(-1)))


def test_rows_count_the_classifier_without_auxiliary_heads() -> None:
    from googlenet.models.summary import summarise

    plain = googlenet.create("googlenet_d2l", 5, 1).eval()
    aided = googlenet.create("googlenet_d2l", 5, 1, aux=True).eval()
    split = pictures(4)
    for flip, shift, times in ((False, 0, 1), (True, 0, 2), (False, 3, 5), (True, 1, 10)):
        (answer,) = answer_at_sizes(aided, split, GREY, [24], flip=flip, shift=shift)
        row = size_row(aided, answer, flip=flip, shift=shift)
        assert row.macs == times * summarise(plain, 24).macs
        assert row.images_per_second == pytest.approx(4 / answer.seconds)


def test_best_row_and_plot() -> None:
    rows = [
        SizeRow(32, 0.8, 0.9, 0.5, 300, 10.0),
        SizeRow(24, 0.8, 0.9, 0.4, 200, 20.0),
        SizeRow(16, 0.7, 1, 0.1, 9, 9),
    ]
    assert best_row(rows).size == 24
    image = Image.open(io.BytesIO(plot(rows, {"top1": 0.85, "top5": 1.0, "loss": 0.3}, "a run")))
    assert image.format == "PNG"
    assert image.width > image.height


def test_sizes_that_cannot_be_are_told_before_anything_is_computed() -> None:
    model = googlenet.create("googlenet", 5, 1)
    check_sizes(model, [31, 64])
    with pytest.raises(ValueError, match="size 30 is too small: this network needs at least 31 pixels"):
        check_sizes(model, [64, 30])
    with pytest.raises(ValueError, match="twice"):
        check_sizes(model, [64, 64])
    check_sizes(model, [31, 64], 30)
    for shift in (-1, 31):
        with pytest.raises(ValueError, match=f"{shift} does not fit into 31 pixels"):
            check_sizes(model, [64, 31], shift)


def test_command_line(smoke_run: Path, tmp_path: Path, fashion_mnist_folder: Path) -> None:
    command = ("evaluate", smoke_run, "--sizes", "12,16", "--split", "validation", "--limit", 80, "--json")
    answer = call(*command, "--out", tmp_path / "plots").json
    assert [row["size"] for row in answer["rows"]] == [12, 16]
    assert {"top1", "top5", "loss", "macs", "images_per_second"} <= answer["rows"][0].keys()
    assert answer["average"]["top1"] == answer["top1"]
    assert (answer["split"], answer["images"]) == ("validation", 80)
    assert Image.open(answer["plot"]).format == "PNG"
    single = call("evaluate", smoke_run, "--size", 12, "--split", "validation", "--limit", 80, "--json").json
    assert {key: single[key] for key in ("top1", "top5", "loss")} == pytest.approx(
        {key: answer["rows"][0][key] for key in ("top1", "top5", "loss")}
    )
    checkpoint = googlenet.load(smoke_run)
    data = load_dataset("fashion-mnist", root=str(fashion_mnist_folder), validation=5000, limit=80)
    with torch.no_grad():
        probabilities = sum(
            checkpoint.model(checkpoint.preprocess(data.validation.images, size)).softmax(1) for size in (12, 16)
        )
    by_hand = (probabilities.argmax(1) == data.validation.labels).double().mean().item()
    assert answer["average"]["top1"] == pytest.approx(by_hand, abs=1e-9)
    best = max(answer["rows"], key=lambda row: (row["top1"], -row["loss"]))
    assert answer["average"]["best_size"] == best["size"]


def test_statistics_are_those_of_each_size(smoke_run: Path, fashion_mnist_folder: Path) -> None:
    command = ("evaluate", smoke_run, "--sizes", "12,16", "--split", "validation", "--limit", 64, "--json")
    answer = call(*command, "--reestimate", 0).json
    data = load_dataset("fashion-mnist", root=str(fashion_mnist_folder), validation=5000, limit=64)
    batch_size = googlenet.load(smoke_run).recipe.batch_size
    assert batch_size >= 64, "one batch, whatever the order of its pictures"
    losses = {}
    for size in (12, 16):
        fresh = googlenet.load(smoke_run)  # update_bn, PyTorch's own, as the reference
        with torch.no_grad():
            update_bn([fresh.preprocess(data.train.images, size)], fresh.model)
            logits = fresh.model.eval()(fresh.preprocess(data.validation.images, size))
        losses[size] = torch.nn.functional.cross_entropy(logits, data.validation.labels).item()
    assert {row["size"]: row["loss"] for row in answer["rows"]} == pytest.approx(losses, rel=1e-4)


def test_predict_averages_from_the_command_line(smoke_run: Path, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.radial_gradient("L").resize((28, 28)).save(picture)
    done = call("predict", smoke_run, picture, "--sizes", "16,20", "--flip", "--shift", 1, "--top", 10, "--json")
    (answer,) = json.loads(done.out)
    checkpoint = googlenet.load(smoke_run)
    expected = torch.zeros(1, 10)
    with torch.no_grad():
        for size in (16, 20):
            pixels, _ = checkpoint.preprocess.read(Image.open(picture), size)
            views = torch.cat(views_by_hand(pixels, flip=True, shift=1))
            expected += checkpoint.model(views).softmax(1).mean(0, keepdim=True) / 2
    found = {guess["label"]: guess["probability"] for guess in answer["top"]}
    assert found == pytest.approx(dict(zip(checkpoint.classes, expected[0].tolist(), strict=True)), abs=1e-6)
    assert "20 px, moved by 1 px, and mirrored" in answer["did"]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ("--sizes 0,16", 1, "size 0 is too small"),
        ("--sizes 16,16", 1, "twice"),
        ("--sizes 16,x", 2, "such as 24,28,32"),
        ("--sizes 16 --size 16", 2, "not allowed"),
        ("--out there", 2, "--sizes"),
        ("--crops 1 --reestimate 2", 2, "--reestimate goes with"),
        ("--reestimate -1", 2, "0 or more"),
        ("--shift 16 --size 16", 1, "16 does not fit into 16 pixels"),
        ("--shift -1", 1, "from 0 to less than the size"),
        ("--shift 1.5", 2, "invalid int"),
    ],
)
def test_wrong_usage(flags: str, code: int, said: str, smoke_run: Path) -> None:
    done = call("evaluate", smoke_run, *flags.split())
    assert (done.code, len(done.err.strip().splitlines()), done.out) == (code, 1, "")
    assert said in done.err
