"""``googlenet fid``, `googlenet.fid` and `googlenet.FID` with a small network."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import googlenet as package
from conftest import Called, googlenet
from googlenet.checkpoint.format import write_checkpoint
from googlenet.config.schema import ModelConfig, Recipe
from googlenet.fidelity import engines, networks
from googlenet.fidelity import features as feature_files
from googlenet.fidelity.compare import METRICS
from googlenet.fidelity.engines import PRECISIONS
from googlenet.fidelity.modes import MODES
from googlenet.fidelity.report import realism_of
from googlenet.fidelity.statistics import frechet_distance, moments_of
from googlenet.fidelity.stats_file import read_stats

NUM_IMAGES = 26


def color_statistics(pixels: Tensor) -> Tensor:
    """Features that need no network: mean and spread of each channel."""
    return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], dim=1)


color_statistics.side = 16  # type: ignore[attr-defined]


def random_images(seed: int, count: int = NUM_IMAGES, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    top = torch.randint(60, 256, (count, 1, 1, 1), generator=generator)
    return (torch.rand(count, 3, size, size, generator=generator) * top).to(torch.uint8)


def write_images(folder: Path, images: Tensor, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03}{suffix}")
    return folder


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write_images(tmp_path / "real", random_images(0))


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    return write_images(tmp_path / "fake", random_images(1))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with initial weights."""
    return write_network(tmp_path_factory.mktemp("network") / "network.safetensors", seed=0)


def write_network(path: Path, seed: int) -> Path:
    model = package.create("googlenet_d2l", 10, 3, width_mult=0.25, seed=seed).eval()
    recipe = Recipe(model=ModelConfig(name="googlenet_d2l", width_mult=0.25))
    preprocess = package.Preprocess(32, 3, (0.5,) * 3, (0.25,) * 3)
    write_checkpoint(path, package.Checkpoint(model, preprocess, tuple("abcdefghij"), recipe, {}))
    return path


def one_line(done: Called, code: int = 1) -> str:
    assert done.code == code
    assert len(done.err.strip().splitlines()) == 1, done.err
    return done.err


def test_the_lists_of_the_command_are_those_of_the_package() -> None:
    from googlenet.cli import fid

    assert (tuple(METRICS), tuple(MODES), PRECISIONS) == (fid.METRICS, fid.MODES, fid.PRECISIONS)


@pytest.mark.slow
def test_all_metrics_of_folders(real: Path, fake: Path, network: Path, cache: Path) -> None:
    arguments = ["fid", real, fake, "--features", network, "--engine", "torch"]
    document = googlenet(*arguments, "--metrics", "all", "--json").json
    assert document["fid"] > 0 and document["kid"]["sd"] >= 0 and document["inception_score"]["mean"] >= 1
    assert {"fid_infinity", "precision", "recall", "density", "coverage"} <= document.keys()
    assert (document["like"], document["engine"], document["images"]) == (
        "clean-fid", "torch", {"real": NUM_IMAGES, "generated": NUM_IMAGES},
    )  # fmt: skip
    # The features are read from the cache: the images are not decoded again.
    before = {path: path.stat().st_mtime_ns for path in (cache / "googlenet" / "fid").glob("*.f32")}
    done = googlenet(*arguments)
    assert f"{document['fid']:.6g}" in done.out and "clean-fid" in done.out
    assert len(before) == 2
    assert googlenet(*arguments, "--no-cache", "--json").json["fid"] == document["fid"]


def test_the_document_contains_every_value(real: Path, fake: Path) -> None:
    result = package.fid(str(real), str(fake), features=color_statistics, metrics=["fid", "kid", "prdc"])
    document = result.to_dict()
    assert {name: document[name] for name in result.values} == result.values
    assert {name: document[name] for name in result.settings} == result.settings


def test_the_three_modes_differ_and_equal_the_formula(real: Path, fake: Path) -> None:
    values = {}
    for like, mode in MODES.items():
        result = package.fid(str(real), str(fake), features=color_statistics, like=like)
        arrays = ([np.array(Image.open(path)) for path in sorted(folder.iterdir())] for folder in (real, fake))
        first, second = (color_statistics(torch.stack([mode.resize(a, 16) for a in each])) for each in arrays)
        expected = frechet_distance(moments_of(first).gaussian(), moments_of(second).gaussian())
        # Means are computed in float32 for batches of different sizes.
        assert result.fid == pytest.approx(expected, rel=1e-4)
        values[like] = result.fid
    assert len({round(value, 6) for value in values.values()}) == 3


def test_sets_in_python_are_equal_to_folders(real: Path, fake: Path) -> None:
    expected = package.fid(str(real), str(fake), features=color_statistics).fid
    images, others = random_images(0), random_images(1)
    options: dict[str, Any] = {"features": color_statistics}
    # Batches of other sizes round differently in float32.
    assert package.fid(images, others, **options).fid == pytest.approx(expected, rel=1e-4)
    batches = [others[:10], others[10:]]
    assert package.fid(images, batches, **options).fid == pytest.approx(expected, rel=1e-4)
    floats = package.fid(images.float() / 255, others.float() / 255, max_value=1.0, **options)
    assert floats.fid == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_statistics_are_saved_and_compared(real: Path, fake: Path, tmp_path: Path, network: Path, cache: Path) -> None:
    file, options = tmp_path / "real.npz", ["--features", network, "--engine", "torch"]
    assert googlenet("fid", real, *options, "--save-stats", file).code == 0
    expected = googlenet("fid", real, fake, *options, "--json").json["fid"]
    assert googlenet("fid", file, fake, *options, "--json").json["fid"] == pytest.approx(expected, rel=1e-12)
    with np.load(file) as arrays:
        statistics = {"mu": arrays["mu"], "sigma": arrays["sigma"]}  # what pytorch-fid and clean-fid write
    np.savez(tmp_path / "other-tool.npz", **statistics)
    done = googlenet("fid", tmp_path / "other-tool.npz", fake, *options, "--json")
    assert done.json["fid"] == pytest.approx(expected, rel=1e-8)
    assert "does not record its network" in done.err
    assert "made with --like clean-fid" in one_line(
        googlenet("fid", file, fake, *options, "--like", "pytorch-fid", "--json")
    )
    write_network(tmp_path / "other.safetensors", seed=1)
    error = one_line(
        googlenet("fid", file, fake, "--features", tmp_path / "other.safetensors", "--engine", "torch", "--json")
    )
    assert "statistics of another network" in error
    # Digests of the FID network differ between modes, too: the mode is named, not the network.
    record = read_stats(file).record
    assert record is not None
    with pytest.raises(ValueError, match="made with --like clean-fid"):
        read_stats(file).check(replace(record, like="pytorch-fid", digest="other"))
    both = googlenet("fid", file, file, "--json").json
    assert both["fid"] == pytest.approx(0, abs=1e-9) and both["engine"] == "files", "no network is needed"
    assert "KID needs the images" in one_line_at_end(googlenet("fid", file, fake, *options, "--metrics", "kid"))


def test_an_interrupted_computation_continues(
    real: Path, fake: Path, network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["fid", real, fake, "--features", network, "--engine", "torch", "--json"]
    expected = googlenet(*arguments, "--no-cache").json["fid"]
    original, computed = feature_files.pixel_batches, 0

    def interrupted(*args: Any) -> Iterator[Tensor]:
        for index, batch in enumerate(original(*args)):
            if index == 2:
                raise KeyboardInterrupt
            yield batch

    def counted(*args: Any) -> Iterator[Tensor]:
        nonlocal computed
        for batch in original(*args):
            computed += len(batch)
            yield batch

    monkeypatch.setattr(feature_files, "pixel_batches", interrupted)
    assert googlenet(*arguments).code == 130
    (partial,) = (cache / "googlenet" / "fid").glob("*.partial")
    with partial.open("ab") as file:
        file.write(b"half a row")
    monkeypatch.setattr(feature_files, "pixel_batches", counted)
    assert googlenet(*arguments).json["fid"] == expected
    assert computed == 2 * NUM_IMAGES - 16, "two batches of 8 were computed before"


def test_streaming_equals_the_comparison_of_sets() -> None:
    images, others = random_images(0), random_images(1)
    expected = package.fid(images, others, features=color_statistics).fid
    metric = package.FID(features=color_statistics)
    for start in range(0, NUM_IMAGES, 8):
        metric.update(images[start : start + 8], real=True)
        metric.update(others[start : start + 8])
    assert metric.compute() == pytest.approx(expected, rel=1e-9)
    restored = package.FID(features=color_statistics)
    restored.load_state_dict(metric.state_dict())
    assert restored.compute() == metric.compute()
    metric.reset()
    with pytest.raises(ValueError, match="no fake images"):
        metric.compute()
    metric.update(others)
    assert metric.compute() == pytest.approx(expected, rel=1e-4)
    reference = package.FID(images, features=color_statistics)
    reference.update(others)
    assert reference.compute() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="the real images are those given"):
        reference.update(images, real=True)


def test_merged_parts_equal_the_whole() -> None:
    images, others = random_images(0), random_images(1)
    whole, *parts = (package.FID(features=color_statistics) for _ in range(3))
    for metric, rows in ((whole, slice(None)), (parts[0], slice(0, 8)), (parts[1], slice(8, None))):
        metric.update(images[rows], real=True)
        metric.update(others[rows])
    parts[0].merge(parts[1])
    assert parts[0].compute() == pytest.approx(whole.compute(), rel=1e-9)
    with pytest.raises(ValueError, match="other settings"):
        whole.merge(package.FID(features=color_statistics, like="pytorch-fid"))


def test_classes_of_files_and_what_is_not_read(real: Path, fake: Path) -> None:
    write_images(real / "more", random_images(2, 3))
    (real / "notes.txt").write_text("x")
    Image.new("RGBA", (20, 10), (255, 0, 0, 9)).save(real / "a.png")
    write_images(real, random_images(3, 1), ".jpg")
    recursive = package.fid(str(real), str(fake), features=color_statistics)
    assert recursive.num_real == NUM_IMAGES + 5
    text = "\n".join([*recursive.warnings, *recursive.notes])
    for expected in (
        "below 2,048", "2 different sizes", "not square", "transparency, which is ignored", "enlarged to 16 px",
        "JPEG artifacts", "notes.txt",
    ):  # fmt: skip
        assert expected in text
    flat = package.fid(str(real), str(fake), features=color_statistics, like="pytorch-fid")
    assert flat.num_real == NUM_IMAGES + 2
    assert "not read by pytorch-fid" in "\n".join(flat.notes)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("missing", "no such folder"),
        ("empty", "no images; name a folder with bmp, jpeg, jpg, pgm, png, ppm, tif, tiff, webp files"),
        ("one", "a covariance needs 2 or more"),
        ("truncated", "000.png: damaged image"),
        ("truncated.npz", "damaged or not an .npz file"),
        ("other.npz", "no mu and sigma"),
        ("nan.npz", "not finite"),
        ("missing.npz", "no such file"),
        ("fashion-mnist@tset", "no split 'tset'"),
        ("folder:missing", "no such folder"),
    ],
)
def test_sets_that_cannot_be_used(
    source: str,
    expected: str,
    fake: Path,
    tmp_path: Path,
    network: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_images(Path("one"), random_images(0, 1))
    write_images(Path("truncated"), random_images(0, 3))
    content = Path("truncated", "000.png").read_bytes()
    Path("truncated", "000.png").write_bytes(content[: len(content) // 2])
    np.savez("whole.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez("nan.npz", mu=np.full(4, np.nan), sigma=np.eye(4))
    np.savez("other.npz", weights=np.zeros(4))
    Path("truncated.npz").write_bytes(Path("whole.npz").read_bytes()[:200])
    done = googlenet("fid", source, fake, "--features", network, "--engine", "torch", "--json")
    assert expected in one_line(done)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (torch.rand(4, 3, 8, 8), "max_value"),
        (torch.rand(4, 3, 8, 8) - 0.5, "max_value"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "channels precede height"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "unsqueeze"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "no images"),
        (torch.full((4, 3, 8, 8), float("nan")), "not nan"),
    ],
)
def test_tensors_that_cannot_be_used(images: Tensor, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        package.fid(random_images(0), images, features=color_statistics)
    with pytest.raises(ValueError, match=expected):
        package.FID(features=color_statistics).update(images)


def test_features_that_are_not_finite_or_of_another_shape() -> None:
    def broken(pixels: Tensor) -> Tensor:
        return pixels.mean((2, 3)) / 0

    with pytest.raises(ValueError, match="the batches are empty"):
        package.fid(random_images(0), [], features=color_statistics)
    with pytest.raises(ValueError, match="batches must be tensors"):
        package.fid(random_images(0), [[random_images(1)]], features=color_statistics)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="not finite"):
        package.fid(random_images(0), random_images(1), features=broken)
    with pytest.raises(ValueError, match=r"returned \(8, 3, 1, 1\)"):
        package.fid(random_images(0), random_images(1), features=lambda pixels: pixels.mean((2, 3), keepdim=True))


def test_options_that_cannot_be_used(real: Path, fake: Path, network: Path, tmp_path: Path, cache: Path) -> None:
    assert "name the generated images" in one_line(googlenet("fid", real), 2)
    assert "did you mean" in one_line(googlenet("fid", real, fake, "--metrics", "kidd"), 2)
    with pytest.raises(ValueError, match="unknown option 'liek'"):
        package.fid(str(real), str(fake), liek="clean-fid")
    with pytest.raises(ValueError, match="unknown metric 'fidd'"):
        package.fid(str(real), str(fake), metrics=["fidd"])
    run = ["--features", network]
    assert "name it so" in one_line(googlenet("fid", real, *run, "--save-stats", tmp_path / "x.txt"), 2)
    assert "--weights is the file of fid-inception-v3" in one_line(googlenet("fid", real, fake, *run, "--weights", "x"))
    assert "no such file" in one_line(googlenet("fid", real, fake, "--weights", tmp_path / "x.pth"))
    assert "unknown engine" in one_line(googlenet("fid", real, fake, *run, "--engine", "tensorrt"))


def test_without_a_connection_the_error_says_what_to_download(
    real: Path, fake: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "FID_URL", "http://127.0.0.1:9/weights.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(cache))
    error = one_line(googlenet("fid", real, fake))
    assert "http://127.0.0.1:9/weights.pth elsewhere and store it at" in error and networks.FID_FILE in error
    stored = cache / "googlenet" / "weights" / networks.FID_FILE
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(b"other bytes")
    assert "not the published weights (SHA-256 differs)" in one_line(googlenet("fid", real, fake))
    monkeypatch.setattr(networks, "FID_SHA256", hashlib.sha256(b"other bytes").hexdigest())
    error = one_line(googlenet("fid", real, fake))
    assert str(stored) in error and "SHA-256" not in error, "the file is accepted now, and cannot be read"


def test_json_is_the_only_output(real: Path, fake: Path, network: Path, cache: Path) -> None:
    done = googlenet("fid", real, fake, "--features", network, "--engine", "torch", "--json")
    document = json.loads(done.out)
    assert document["warnings"] and "below 2,048" in done.err


@pytest.mark.slow
def test_fid_by_class_and_the_report(tmp_path: Path, network: Path, cache: Path) -> None:
    for side, seed in (("real", 0), ("fake", 10)):
        for index, name in enumerate(("ant", "bee", "one")):
            write_images(tmp_path / side / name, random_images(seed + index, 9 if name != "one" else 1))
    report = tmp_path / "report.html"
    options = ["--features", network, "--engine", "torch"]
    arguments = ["fid", tmp_path / "real", tmp_path / "fake", *options]
    done = googlenet(*arguments, "--by-class", "--report", report, "--json")
    document = done.json
    assert document["by_class"].keys() == {"ant", "bee"} and document["classes_left_out"] == ["one"]
    for name, row in document["by_class"].items():
        alone = googlenet("fid", tmp_path / "real" / name, tmp_path / "fake" / name, *options, "--json").json
        # Batches of other images round differently in float32.
        assert row["fid"] == pytest.approx(alone["fid"], rel=1e-3)
        assert (row["real"], row["generated"]) == (9, 9)
    mean = sum(row["fid"] for row in document["by_class"].values()) / 2
    assert document["mean_fid_of_classes"] == pytest.approx(mean)
    page = report.read_text()
    assert page.count("<b>generated</b>") == 16 and page.count("<b>real</b>") == 16 * 5
    assert "realism" in page and str(tmp_path / "fake") in page and "data:image/png" in page
    assert "left out" in googlenet(*arguments, "--by-class").out
    flat = write_images(tmp_path / "flat", random_images(0, 6))
    assert "no labels" in one_line_at_end(googlenet("fid", flat, tmp_path / "fake", *options, "--by-class"))
    assert "no such folder" in one_line(googlenet(*arguments, "--report", tmp_path / "missing" / "report.html"))


def one_line_at_end(done: Called) -> str:
    assert done.code == 1
    return done.err.strip().splitlines()[-1]


def test_a_lower_precision_states_its_bias(
    real: Path, fake: Path, network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch emulates bfloat16 on processors without it.
    monkeypatch.setattr(engines, "folded_precisions", lambda: ["float32", "bfloat16"])
    options = ["--features", network, "--engine", "torch", "--precision", "bfloat16", "--json"]
    document = googlenet("fid", real, fake, *options).json
    bias = document["precision_bias"]
    assert bias["images"] == NUM_IMAGES and document["network_precision"] == "bfloat16"
    # The sample is the whole set: its value in bfloat16 is that of the comparison, by the other method.
    assert bias["fid"] == pytest.approx(document["fid"], rel=1e-5)
    exact = googlenet("fid", real, fake, "--features", network, "--engine", "torch", "--json").json["fid"]
    assert bias["fid_float32"] == pytest.approx(exact, rel=1e-3)
    assert bias["fid"] != bias["fid_float32"]


def test_realism_is_the_largest_ratio_of_radius_and_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(40, 5, generator=generator), torch.randn(12, 5, generator=generator) * 2
    result = realism_of(real, fake)
    among = torch.cdist(real.double(), real.double()).sort(dim=1).values[:, 3]
    among[among > among.median()] = 0
    distances = torch.cdist(fake.double(), real.double())
    torch.testing.assert_close(result.scores, (among / distances).amax(1))
    torch.testing.assert_close(result.distances, distances.sort(dim=1).values[:, :5])


@pytest.mark.parametrize(
    "engine",
    [pytest.param("onnxruntime", marks=pytest.mark.slow), pytest.param("openvino", marks=pytest.mark.release)],
)
def test_engines_compute_the_same_features(engine: str, network: Path, cache: Path) -> None:
    pytest.importorskip(engine)
    pytest.importorskip("onnxscript")
    images, others = random_images(0), random_images(1)
    expected = package.fid(images, others, features=str(network), engine="torch")
    result = package.fid(images, others, features=str(network), engine=engine)
    assert result.settings["engine"] == engine
    # float32 in another order of operations.
    assert result.fid == pytest.approx(expected.fid, rel=1e-3)
    int8 = package.fid(images, others, features=str(network), engine=engine, precision="int8")
    bias = int8.values["precision_bias"]
    assert bias["fid_float32"] == pytest.approx(expected.fid, rel=1e-3)
    assert int8.fid != expected.fid and int8.fid == pytest.approx(expected.fid, rel=0.5)
