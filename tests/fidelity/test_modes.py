"""The preparation of images: known values, and the functions of clean-fid and torch-fidelity themselves.

benchmarks/fid.py compares the values of all three tools on folders.
"""

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

import googlenet as package
from googlenet.checkpoint.interop.convert import to_external_state_dict
from googlenet.checkpoint.interop.key_maps import SOURCE_MODELS
from googlenet.fidelity.metrics import Head, inception_score, kernel_inception_distance, manifold_metrics
from googlenet.fidelity.modes import MODES, resize_bilinear, resize_pil_bicubic, resize_tf1_bilinear
from googlenet.fidelity.networks import load_fid_network
from googlenet.fidelity.statistics import frechet_distance, moments_of

SCIPY_HAS_DISP = "disp" in inspect.signature(scipy.linalg.sqrtm).parameters
SIZES = [(28, 28), (64, 48), (299, 299), (400, 300), (301, 7)]


def pixels(height: int, width: int, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng([height, width])
    return generator.integers(0, 256, (height, width, channels)).astype(np.uint8)


def row(*values: int) -> np.ndarray:
    return np.array(values, np.uint8).reshape(1, -1, 1)


def test_tensorflow_does_not_center_pixels() -> None:
    # Output pixel i is at 0.75 i of the input: 0, 0.75, 1.5, 2.25, and there is no fourth pixel.
    assert resize_tf1_bilinear(row(0, 100, 200), 4)[0, 0].tolist() == [0, 75, 150, 200]


def test_pytorch_centers_pixels() -> None:
    # Output pixel i is at (i + 0.5) / 2 - 0.5 of the input.
    assert resize_bilinear(row(0, 100), 4)[0, 0].tolist() == [0, 25, 75, 100]


def test_pillow_filters_and_clips() -> None:
    stripes = row(0, 255).repeat(64, axis=1).repeat(64, axis=0)
    reduced = resize_pil_bicubic(stripes, 16)[0]
    # The bicubic filter overshoots next to an edge, which is clipped.
    assert reduced.min() == 0 and reduced.max() == 255
    fine = np.tile(row(0, 255), (100, 50, 1))
    # Without antialiasing, reducing stripes of one pixel gives other stripes; with it a gray area, but for the border.
    assert resize_pil_bicubic(fine, 20)[0, 4:-4, 4:-4].std() < 3 < 60 < resize_tf1_bilinear(fine, 30)[0].std()


@pytest.mark.parametrize("size", SIZES)
def test_pillow_rounds_to_the_same_pixels(size: tuple[int, int]) -> None:
    # In a range in which the filter does not overshoot: 8-bit pixels are also clipped after each direction.
    image = pixels(*size) // 2 + 64
    rounded = np.asarray(Image.fromarray(image).resize((99, 99), Image.Resampling.BICUBIC), np.float32)
    # Pillow rounds 8-bit pixels after each of the two directions.
    assert np.abs(resize_pil_bicubic(image, 99).permute(1, 2, 0).numpy() - rounded).max() <= 1.5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_pixels_stay_in_range(size: tuple[int, int], mode: Any) -> None:
    result = mode.resize(pixels(*size), 75)
    assert result.shape == (3, 75, 75) and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 255


@pytest.mark.parametrize("size", SIZES)
def test_clean_fid_resizes_equally(size: tuple[int, int]) -> None:
    resize = pytest.importorskip("cleanfid.resize", reason="clean-fid is not installed").build_resizer("clean")
    image = pixels(*size)
    assert torch.equal(resize_pil_bicubic(image, 299), torch.from_numpy(resize(image)).permute(2, 0, 1))


@pytest.mark.parametrize("size", SIZES)
def test_torch_fidelity_resizes_equally(size: tuple[int, int]) -> None:
    module = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow", reason="torch-fidelity is missing")
    image = pixels(*size)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(batch, (299, 299), align_corners=False)
    assert torch.equal(resize_tf1_bilinear(image, 299), expected[0])


def feature_sets(size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(size, size, generator=generator)
    real, fake = torch.randn(300, size, generator=generator), torch.randn(260, size, generator=generator) * 1.05 + 0.2
    return (real @ mixing).relu(), (fake @ mixing).relu()


def test_torch_fidelity_computes_the_same_metrics() -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    real, fake = feature_sets()
    statistics = [metric_fid.fid_features_to_statistics(features) for features in (fake, real)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    # It computes the means in float32.
    value = frechet_distance(moments_of(real).gaussian(), moments_of(fake).gaussian())
    assert value == pytest.approx(expected, rel=1e-4)
    kid = metric_kid.kid_features_to_metric(fake, real, kid_subset_size=100, verbose=False)
    ours = kernel_inception_distance(real, fake, subset_size=100)
    # It computes the kernel in float32.
    assert ours.mean == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-4)
    assert ours.sd == pytest.approx(kid["kernel_inception_distance_std"], rel=1e-4)
    score = metric_isc.isc_features_to_metric(fake)
    identity = Head(torch.eye(fake.shape[1]))
    assert inception_score(fake, identity).mean == pytest.approx(score["inception_score_mean"], rel=1e-6)
    assert inception_score(fake, identity).sd == pytest.approx(score["inception_score_std"], rel=1e-6)
    both = metric_prc.prc_features_to_metric(fake, real, verbose=False)
    manifold = manifold_metrics(real, fake)
    assert (manifold.precision, manifold.recall) == pytest.approx((both["precision"], both["recall"]), rel=1e-6)


def test_clean_fid_computes_the_same_metrics() -> None:
    fid = pytest.importorskip("cleanfid.fid", reason="clean-fid is not installed")
    real, fake = feature_sets()
    value = frechet_distance(moments_of(real).gaussian(), moments_of(fake).gaussian())
    if SCIPY_HAS_DISP:  # SciPy 1.18 removed the argument, with which clean-fid calls `sqrtm`.
        # It computes the means in float32.
        assert value == pytest.approx(fid.fid_from_feats(real.numpy(), fake.numpy()), rel=1e-4)
    np.random.seed(2020)
    expected = fid.kernel_distance(real.numpy(), fake.numpy(), max_subset_size=100)
    assert kernel_inception_distance(real, fake, subset_size=100).mean == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the file of pytorch-fid and torch-fidelity."""
    path = tmp_path_factory.mktemp("weights") / "pt_inception-2015-12-05-6726825d.pth"
    model = package.create("inception_v3_fid", 1008, aux=False)
    external = to_external_state_dict(SOURCE_MODELS["fid:inception_v3"], model.state_dict(), "inception_v3_fid")
    torch.save({key: value.contiguous() for key, value in external.items()}, path)
    return path


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.slow
def test_pytorch_fid_computes_the_same_features(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inception = pytest.importorskip("pytorch_fid.inception", reason="pytorch-fid is not installed")
    monkeypatch.setenv("TORCH_HOME", os.fspath(weights.parent))
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(weights))
    image = pixels(64, 48)
    with torch.no_grad():
        (expected,) = inception.InceptionV3([3]).eval()(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    mode = MODES["pytorch-fid"]
    ours = load_fid_network(weights, mode).compute(mode.resize(image, 299)[None])
    # The layers are folded, and float32 rounds differently.
    assert relative_error(ours, expected.flatten(1)) < 1e-5


@pytest.mark.slow
def test_torch_fidelity_and_clean_fid_compute_the_same_features(weights: Path, tmp_path: Path) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="torch-fidelity is missing")
    network = module.FeatureExtractorInceptionV3(
        "x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    image = pixels(64, 48)
    with torch.no_grad():
        features, logits = network(torch.from_numpy(image).permute(2, 0, 1)[None])
    mode = MODES["torch-fidelity"]
    ours = load_fid_network(weights, mode)
    computed = ours.compute(mode.resize(image, 299)[None])
    assert relative_error(computed, features) < 1e-5
    assert ours.head is not None
    assert relative_error(ours.head.logits(computed), logits) < 1e-5


@pytest.mark.slow
def test_an_archive_of_torchscript_is_the_same_network(weights: Path, tmp_path: Path) -> None:
    mode = MODES["clean-fid"]
    expected = load_fid_network(weights, mode)
    assert expected.module is not None

    class Layers(torch.nn.Module):
        """The network of normalized pixels, as in the archive of clean-fid."""

        def __init__(self, network: torch.nn.Module):
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x * 128 + 128)[0]

    class Archive(torch.nn.Module):
        def __init__(self, layers: torch.nn.Module, weight: torch.Tensor):
            super().__init__()
            self.layers = layers
            self.output = torch.nn.Linear(2048, 1008)
            self.output.weight.data = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    assert expected.head is not None
    path, example = tmp_path / "inception-2015-12-05.pt", torch.zeros(1, 3, 299, 299)
    layers = torch.jit.trace(Layers(expected.module).eval(), example)
    torch.jit.script(Archive(layers, expected.head.weight)).save(str(path))
    archive = load_fid_network(path, mode)
    image = mode.resize(pixels(64, 48), 299)[None]
    assert relative_error(archive.compute(image), expected.compute(image)) < 1e-5
    assert archive.head is not None and torch.equal(archive.head.weight, expected.head.weight)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="inception-2015-12-05.pt"):
        load_fid_network(path, mode)
