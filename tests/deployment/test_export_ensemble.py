"""Several networks in one file: an ensemble says there what it says here."""

from pathlib import Path

import pytest
import torch

import googlenet
from googlenet.data.dataset import Split
from googlenet.data.preprocess import Preprocess
from googlenet.deployment.engines import open_engine
from googlenet.deployment.export import Int8, Pictures, Trained, export, quantisable
from googlenet.deployment.quantise import layer_of
from googlenet.errors import FailedError
from googlenet.models.ensemble import Ensemble
from googlenet.models.fusion import fuse

CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def trained() -> Trained:
    networks = [
        googlenet.create("googlenet_bn", 3, 1, pools="padded", width=0.125 * (1 + number), seed=number)
        for number in range(2)
    ]
    return Trained("googlenet_bn", Ensemble(networks).eval(), Preprocess(24, 1, (0.3,), (0.4,)), CLASSES)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (30, 1, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_fused_says_the_mean_of_its_members(trained: Trained, pixels: torch.Tensor) -> None:
    with torch.inference_mode():
        members = [network(trained.preprocess(pixels, 24)).softmax(1) for network in trained.model.networks]
        found = fuse(trained.model, trained.preprocess)(pixels).exp()
    torch.testing.assert_close(found, torch.stack(members).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_files_and_int8(trained: Trained, pixels: torch.Tensor, tmp_path: Path) -> None:
    # Labels that the network gives itself: int8 has something to lose.
    with torch.inference_mode():
        labels = trained.model(trained.preprocess(pixels, 24)).argmax(1)
    split = Split(pixels, labels, [str(number) for number in range(30)])
    pictures = Pictures(pixels[:4], split, "made pictures", split)
    int8 = Int8(max_drop=0.9, pictures=10)
    done = export(trained, pictures, tmp_path / "out", ["onnx"], int8=int8, threads=1)
    assert done.max_error < 1e-4
    assert done.top1 == 1.0
    answers = open_engine(tmp_path / "out", "onnxruntime:float32", 1)(pixels)
    assert torch.equal(answers.argmax(1), labels)
    small = open_engine(tmp_path / "out", "onnxruntime:int8", 1)(pixels)
    assert (small.exp() - answers.exp()).abs().max() < 0.2


def test_layers_are_called_as_the_files_call_them(trained: Trained, pixels: torch.Tensor) -> None:
    names = dict(fuse(trained.model, trained.preprocess, merge=False).named_parameters())
    assert {layer_of(name) for name in names} == set(quantisable(trained.model))


def test_ncnn_holds_one_network(trained: Trained, pixels: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="export a member"):
        export(trained, Pictures(pixels[:1]), tmp_path / "out", ["ncnn"])
    assert not list(tmp_path.iterdir())
