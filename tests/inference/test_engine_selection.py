"""``--engine auto``: the fastest engine and precision within the tolerance, and no code of a file is run."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from googlenet.data.calibration import Calibration, read_calibration, write_calibration
from googlenet.data.dataset import LoadOptions
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.devices import cpu_description
from googlenet.evaluation.predictor import Predictor
from googlenet.export.backends import openvino
from googlenet.export.engine import open_exported, supported_precisions
from googlenet.inference import engine_selection
from googlenet.inference.engine_selection import (
    CandidateResult,
    Tolerance,
    compare_probabilities,
    exported_candidates,
    fastest_exported,
    measure_candidates,
    select_fastest,
)
from googlenet.inference.folded import folded_precisions
from googlenet.inference.loading import load_predictor

CLASSES = ("a", "b")


class FakePredictor:
    """Logits that depend on the first pixel, multiplied by a factor: a larger one is a rougher precision."""

    def __init__(self, engine: str, factor: float = 1.0):
        self.name, _, self.precision = engine.partition(":")
        self.classes, self.preprocess, self.min_size = CLASSES, Preprocess(4, 1, (0.5,), (0.5,)), 1
        self.factor = factor

    def predict(self, images: Tensor) -> Tensor:
        first = images[:, 0, 0, 0].float() / 255
        return torch.stack([first * self.factor, 0.5 - 0 * first], dim=1)


def candidates(**factors: float) -> dict[str, Callable[[], Predictor]]:
    names = {name.replace("_", ":"): factor for name, factor in factors.items()}
    return {name: lambda name=name, f=factor: FakePredictor(name, f) for name, factor in names.items()}  # type: ignore[misc]


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8, generator=generator)
    write_calibration(tmp_path, Calibration(images, (images[:, 0, 0, 0] < 128).long()))
    return tmp_path / "calibration.npz"


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of each candidate, instead of measured ones; keys may end with a size, such as ``x:float32 64``."""
    seconds: dict[str, float] = {}

    def median(predictor: Predictor, _: int, size: int | None) -> float:
        name = f"{predictor.name}:{predictor.precision}"
        return seconds.get(f"{name} {size}", seconds[name])

    monkeypatch.setattr(engine_selection, "_median_seconds", median)
    return seconds


@pytest.mark.usefixtures("cache")
def test_fastest_within_the_tolerance(calibration: Path, speeds: dict[str, float]) -> None:
    """A faster precision is used only if its predictions are those of float32, up to the tolerance."""
    speeds |= {"x:float32": 3.0, "y:float32": 2.0, "x:bfloat16": 1.0, "y:int8": 0.5}

    def chosen(engine: str, file: Path | None, **factors: float) -> str:
        predictor = select_fastest(candidates(x_float32=1.0, y_float32=1.0, **factors), engine, file, [factors])
        return f"{predictor.name}:{predictor.precision}"

    assert chosen("auto", calibration) == "y:float32"
    assert chosen("auto", calibration, x_bfloat16=1.001) == "x:bfloat16"
    assert chosen("auto", calibration, x_bfloat16=1.001, y_int8=1.3) == "x:bfloat16", "int8 is too far from float32"
    assert chosen("auto", calibration, x_bfloat16=1.3) == "y:float32"
    assert chosen("auto", calibration, x_bfloat16=math.nan) == "y:float32"
    assert chosen("auto:float32", calibration, x_bfloat16=1.001) == "y:float32"
    assert chosen("auto", None, x_bfloat16=1.0) == "y:float32", "nothing to compare on"
    with pytest.raises(ValueError, match="no engine predicts in int8 within the tolerance"):
        chosen("auto:int8", calibration, y_int8=1.3)
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        chosen("auto:fp8", calibration)


@pytest.mark.usefixtures("cache")
def test_the_speed_depends_on_the_size(calibration: Path, speeds: dict[str, float]) -> None:
    speeds |= {"x:float32": 1.0, "y:float32": 2.0, "x:float32 64": 4.0}
    engines = candidates(x_float32=1.0, y_float32=1.0)
    for size, fastest in ((None, "x"), (64, "y"), (None, "x")):
        assert select_fastest(engines, "auto", calibration, ["files"], size).name == fastest


def test_cached_choice(
    calibration: Path, speeds: dict[str, float], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured once for the same files, images, processor and versions; a damaged cache is measured again."""
    speeds |= {"x:float32": 3.0, "x:bfloat16": 1.0}
    engines = candidates(x_float32=1.0, x_bfloat16=1.0)

    def chosen(key: object = "files", file: Path | None = calibration) -> str:
        return select_fastest(engines, "auto", file, [key]).precision

    assert chosen() == "bfloat16"
    speeds["x:bfloat16"] = 9.0
    assert chosen() == "bfloat16", "from the cache"
    assert chosen("other files") == "float32"
    monkeypatch.setattr(engine_selection, "cpu_description", lambda: "another processor")
    assert chosen() == "float32"
    monkeypatch.setattr(engine_selection, "cpu_description", cpu_description)
    for file in (cache / "googlenet" / "engines").iterdir():
        file.write_text('{"x:float32": [1]}')
    assert chosen() == "float32"
    write_calibration(
        calibration.parent, Calibration(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2).long())
    )
    speeds["x:bfloat16"] = 1.0
    assert chosen() == "bfloat16", "other images are measured again"


def test_processor_is_described() -> None:
    """The key of the cache tells processors apart by their features, not by the name of the architecture only."""
    lines = cpu_description().splitlines()
    assert len(lines) > 3
    if Path("/proc/cpuinfo").exists() and "flags" in Path("/proc/cpuinfo").read_text():
        assert any("sse2" in line for line in lines)


def test_differences() -> None:
    reference = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1])
    assert compare_probabilities(reference, reference, labels) == (0.0, 0.0)
    other = torch.tensor([[0.4, 0.6], [0.3, 0.7], [0.9, 0.1]], dtype=torch.float64)
    assert compare_probabilities(other, reference, labels) == pytest.approx((1 / 3, 0.1))
    better = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.4, 0.6]], dtype=torch.float64)
    assert compare_probabilities(better, reference, labels) == pytest.approx((-1 / 3, 0.5 / 3))
    assert compare_probabilities(other * math.nan, reference, labels)[1] == math.inf
    for num_correct in range(1, 501):  # one of 500 images is the tolerance exactly, whatever the accuracy
        labels = torch.cat([torch.zeros(num_correct), torch.ones(500 - num_correct)]).long()
        reference = torch.tensor([[0.6, 0.4]], dtype=torch.float64).repeat(500, 1)
        other = reference.clone()
        other[0] = torch.tensor([0.4, 0.6])
        assert CandidateResult(1.0, *compare_probabilities(other, reference, labels)).is_within(Tolerance())
    assert not CandidateResult(1.0, None, None).is_within(Tolerance())
    assert CandidateResult(1.0, 0.002, 0.005).is_within(Tolerance())
    assert not CandidateResult(1.0, 0.0021, 0.0).is_within(Tolerance())
    assert not CandidateResult(1.0, 0.0, 0.0051).is_within(Tolerance())


@pytest.mark.usefixtures("cache")
def test_exported_folder(exported_folder: Path, tmp_path: Path) -> None:
    """The files are measured on the folder's calibration images; a changed file is an error."""
    calibration = read_calibration(exported_folder / "calibration.npz")
    assert calibration is not None and calibration.images.shape[1:] == (1, 16, 16)
    results = measure_candidates(exported_candidates(exported_folder, 1), calibration)
    assert {"onnxruntime:float32", "onnxruntime:int8", "openvino:float32", "openvino:int8"} <= set(results)
    # The error of uniform predictions. int8 is nearer; without VNNI instructions its sums saturate in 16 bits.
    logits = open_exported(exported_folder, "onnxruntime:float32", 1).predict(calibration.images)
    chance = logits.softmax(1).amax(1).mean().item() - 1 / logits.shape[1]
    for name, result in results.items():
        assert result.seconds > 0 and result.top1_drop is not None and result.probability_error is not None
        if name.endswith("float32"):
            assert (result.top1_drop, result.probability_error) == (0, 0)
        else:
            assert 0 < result.probability_error < chance
    predictor = load_predictor(
        str(exported_folder),
        "auto:int8" if results["openvino:int8"].is_within(Tolerance()) else "auto:float32",
        1,
        task="classification",
    ).predictor
    assert predictor.precision in ("int8", "float32")
    shutil.copytree(exported_folder, tmp_path / "copy")
    (tmp_path / "copy" / "calibration.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match="missing or changed"):
        fastest_exported(tmp_path / "copy", "auto", 1)


def test_code_in_a_file_is_not_run(exported_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's file can contain code: it is opened only if its engine is named."""
    folder = tmp_path / "folder"
    shutil.copytree(exported_folder, folder)
    manifest = json.loads((folder / "model.json").read_text())
    manifest["engines"]["torch"] = {"files": ["model.pt2"], "sha256": {"model.pt2": "0" * 64}}
    (folder / "model.json").write_text(json.dumps(manifest))

    def load(*_: object) -> None:
        raise AssertionError("the file was opened")

    monkeypatch.setattr(torch.export, "load", load)
    assert not any(name.startswith("torch") for name in exported_candidates(folder, 1))
    manifest["engines"] = {"torch": manifest["engines"]["torch"]}
    (folder / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="--engine torch can run code"):
        fastest_exported(folder, "auto", 1)


@pytest.mark.slow
def test_reduced_precision(exported_folder: Path, smoke_run: Path) -> None:
    """bfloat16 differs from float32 by its rounding; an unsupported precision is named with those that exist."""
    images = torch.randint(0, 256, (8, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="onnxruntime does not compute in bfloat16 on this processor; it has float32"):
        open_exported(exported_folder, "onnxruntime:bfloat16", 1)
    with pytest.raises(ValueError, match="unknown precision 'float8'"):
        open_exported(exported_folder, "openvino:float8", 1)
    for engine, supported in (("openvino", supported_precisions("openvino")), ("torch", folded_precisions())):
        if "bfloat16" not in supported:
            with pytest.raises(ValueError, match="does not compute in bfloat16"):
                load_predictor(str(smoke_run), f"{engine}:bfloat16", 1, task="classification")
            continue
        reduced = load_predictor(str(smoke_run), f"{engine}:bfloat16", 1, task="classification").predictor
        full = load_predictor(str(smoke_run), f"{engine}:float32", 1, task="classification").predictor
        assert (reduced.precision, full.precision) == ("bfloat16", "float32")
        difference = (reduced.predict(images) - full.predict(images)).abs().max()
        # A sum of products of numbers with 8 significant bits, over 20 layers.
        assert 0 < difference < 0.15 * full.predict(images).abs().max()


def test_limited_instructions(exported_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO reports the precisions of the processor, whose instructions oneDNN must not use then."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert supported_precisions("openvino") == folded_precisions() == ["float32"]
    with pytest.raises(ValueError, match="openvino does not compute in bfloat16 on this processor; it has float32"):
        open_exported(exported_folder, "openvino:bfloat16", 1)


def test_damaged_calibration_images(tmp_path: Path) -> None:
    assert read_calibration(tmp_path / "calibration.npz") is None
    for content in (b"", b"PK\x03\x04", b"no"):
        (tmp_path / "calibration.npz").write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            read_calibration(tmp_path / "calibration.npz")
    for images, labels in ((np.zeros((2, 1, 4, 4)), np.zeros(2)), (np.zeros((2, 4, 4), np.uint8), np.zeros(2))):
        np.savez(tmp_path / "calibration.npz", images=images, labels=labels)
        with pytest.raises(ValueError, match="not calibration images"):
            read_calibration(tmp_path / "calibration.npz")


def test_a_run_has_calibration_images(smoke_run: Path, cache: Path) -> None:
    """Held-out images as they enter the network; `auto` of the run compares precisions on them."""
    calibration = read_calibration(smoke_run / "calibration.npz")
    assert calibration is not None and calibration.images.dtype == torch.uint8
    assert calibration.images.shape == (500, 1, 16, 16) and calibration.labels.unique().tolist() == list(range(10))
    predictor = load_predictor(str(smoke_run), task="classification").predictor
    validation = load_dataset("fashion-mnist", LoadOptions(validation=5000)).validation
    first = predictor.preprocess.resize(validation.images[:1], 16).round()
    assert torch.equal(calibration.images[:1].float(), first)


@pytest.mark.usefixtures("cache")
def test_measuring_keeps_the_number_of_threads(
    calibration: Path, speeds: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch's candidates set the threads of the process, but the chosen engine is another; the choice is told."""
    speeds |= {"x:float32": 1.0, "torch:float32": 2.0}

    def open_torch() -> Predictor:
        torch.set_num_threads(3)
        return FakePredictor("torch:float32")

    engines: dict[str, Callable[[], Predictor]] = {"torch:float32": open_torch, **candidates(x_float32=1.0)}
    before = torch.get_num_threads()
    try:
        assert select_fastest(engines, "auto", calibration, ["threads"]).name == "x"
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)
    assert "engine: x:float32, the fastest of 2 within the tolerance" in capsys.readouterr().err
    assert select_fastest(engines, "auto", None, ["threads"]).name == "x"
    assert "the fastest of 2 in float32 (no calibration images" in capsys.readouterr().err


def test_static_shapes_are_bounded() -> None:
    """OpenVINO compiles a shape that is requested often; of many shapes, the last ones are kept."""
    compiled: list[tuple[int, ...]] = []

    def compile_static(shape: tuple[int, ...]) -> str:
        compiled.append(shape)
        return f"static {shape}"

    models = openvino._StaticModels("dynamic", compile_static)
    for size in range(3 * openvino.MAX_COUNTED_SHAPES):
        assert models.get((size,)) == "dynamic", "a shape that is requested once is not compiled"
    assert not compiled and len(models.num_calls) <= openvino.MAX_COUNTED_SHAPES
    shapes = [(1, size) for size in range(openvino.MAX_STATIC_SHAPES + 3)]
    for shape in shapes:
        answers = [models.get(shape) for _ in range(openvino.COMPILE_AFTER_CALLS + 2)]
        assert answers[0] == "dynamic" and answers[-1] == f"static {shape}"
    assert compiled == shapes, "each once"
    assert list(models.models) == shapes[-openvino.MAX_STATIC_SHAPES :]
