"""Exported detectors in ONNX Runtime and OpenVINO: float32, bfloat16 and int8, and the engine that is selected."""

import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

import googlenet
from conftest import googlenet as command
from exported_folders import noise
from googlenet.data.preprocess import Preprocess, _pixel_moments
from googlenet.detection.metrics import evaluate_split
from googlenet.detection.predict import DetectorPredictor
from googlenet.errors import FailedError
from googlenet.export.backends.openvino import precisions
from googlenet.export.detector import MAX_BOX_ERROR, MAX_SCORE_ERROR, compare, open_exported_detector
from googlenet.export.exporter import ExportData, ExportOptions, QuantizationConfig, export
from googlenet.export.manifest import read_manifest, verify_files
from googlenet.export.quantize import PREDICTION_LAYERS, quantizable_nodes
from googlenet.inference import engine_selection
from googlenet.inference.loading import load_predictor


@pytest.mark.slow
def test_float32_files_equal_pytorch(detector_run: Path, detector_data: ExportData, exported_detector: Path) -> None:
    checkpoint = googlenet.load(detector_run)
    reference = DetectorPredictor(checkpoint.model, checkpoint.preprocess, checkpoint.classes)
    images = [noise(30, 200, 1), noise(170, 90, 2), noise(64, 64, 3), torch.full((3, 1, 1), 200, dtype=torch.uint8)]
    assert sum(len(found.boxes) for found in reference.predict(images)) > 50
    for engine in ("onnxruntime:float32", "openvino:float32"):
        parity = compare(open_exported_detector(exported_detector, engine, 1), reference, images)
        assert parity.max_error <= MAX_BOX_ERROR and parity.max_score_error <= MAX_SCORE_ERROR, engine
    report = json.loads((exported_detector / "parity.json").read_text())
    assert {row["engine"] for row in report["rows"]} == {"onnxruntime", "openvino"}


@pytest.mark.slow
def test_the_manifest_has_ap_checksums_and_sizes(
    detector_run: Path, detector_data: ExportData, exported_detector: Path
) -> None:
    manifest = read_manifest(exported_detector)
    assert list(manifest.files) == ["onnxruntime", "openvino", "onnxruntime:int8", "openvino:int8"]
    for entry in manifest.files:
        verify_files(exported_detector, manifest, entry)
    assert manifest.sizes == (64,) and set(manifest.accuracy) == {"float32", "onnxruntime:int8", "openvino:int8"}
    checkpoint = googlenet.load(detector_run)
    reference = DetectorPredictor(checkpoint.model, checkpoint.preprocess, checkpoint.classes)
    assert detector_data.test is not None
    expected = evaluate_split(reference, detector_data.test).metrics.summary  # type: ignore[arg-type]
    assert manifest.accuracy["float32"]["ap"] == pytest.approx(expected["ap"], abs=0.02) and expected["ap"] > 0.5
    for entry in ("onnxruntime:int8", "openvino:int8"):
        metrics = manifest.accuracy[entry]
        measured = evaluate_split(
            open_exported_detector(exported_detector, entry, 1), detector_data.test
        ).metrics.summary  # type: ignore[arg-type]
        assert metrics["ap"] == pytest.approx(measured["ap"], abs=1e-9)
        assert (metrics["images"], metrics["on"]) == (6, "test of noise")
        drop = manifest.int8["engines"][entry.partition(":")[0]]["accuracy_drop"]
        assert drop == pytest.approx(manifest.accuracy["float32"]["ap"] - metrics["ap"])


@pytest.mark.slow
def test_int8_ends_before_the_last_convolutions(exported_detector: Path) -> None:
    graph = onnx.load(exported_detector / "model.int8.onnx").graph
    producer = {output: node for node in graph.node for output in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len({node.name for node in convolutions}) == len(convolutions) == 78
    for node in convolutions:
        source = producer[node.input[0]].op_type
        assert (source != "DequantizeLinear") == bool(PREDICTION_LAYERS.search(node.name)), node.name
    quantized = Counter(producer[node.input[0]].op_type for node in graph.node if node.op_type == "QuantizeLinear"
                        if node.input[0] in producer)  # fmt: skip
    assert not set(quantized) & {"Sigmoid", "Exp", "NonMaxSuppression", "TopK", "MatMul"}
    size = (exported_detector / "model.int8.bin").stat().st_size
    assert size < 0.7 * (exported_detector / "model.bin").stat().st_size


@pytest.mark.slow
def test_precisions(detector_run: Path, exported_detector: Path) -> None:
    """Scores differ a little from float32 in bfloat16 and int8; each engine says what it computes in."""
    checkpoint = googlenet.load(detector_run)
    images = [noise(90, 60, 20), noise(64, 120, 21)]
    reference = DetectorPredictor(checkpoint.model, checkpoint.preprocess, checkpoint.classes).predict(images)
    names = ["onnxruntime:int8", "openvino:int8"] + ["openvino:bfloat16"] * ("bfloat16" in precisions())
    for name in names:
        detector = open_exported_detector(exported_detector, name, 1)
        assert (f"{detector.name}:{detector.precision}", detector.sizes) == (name, (64,))
        for found, expected in zip(detector.predict(images), reference, strict=True):
            count = min(len(found.scores), len(expected.scores), 5)
            difference = (found.scores[:count] - expected.scores[:count]).abs().max()
            assert count and 0 < difference < 0.15, name
    with pytest.raises(ValueError, match="does not compute in bfloat16"):
        open_exported_detector(exported_detector, "onnxruntime:bfloat16")


@pytest.mark.release
def test_limited_instructions(exported_detector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO would end with a segmentation fault."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")
    with pytest.raises(ValueError, match="OpenVINO does not run detectors with ONEDNN_MAX_CPU_ISA=AVX2; unset it"):
        open_exported_detector(exported_detector, "openvino:float32", 1)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_int8_that_loses_too_much_is_refused(
    detector_run: Path,
    detector_data: ExportData,
    tmp_path: Path,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
    exported_detector: Path,
) -> None:
    """The file of the other test, whose AP differs from that of float32, is refused if nothing may be lost."""
    from googlenet.export import backends

    backend = backends.BACKENDS[engine]
    int8 = read_manifest(exported_detector).files[f"{backend.engine}:int8"]

    def write(out: Path, *_: object) -> list[str]:
        for name in read_manifest(exported_detector).files[backend.engine] if out.name == "new" else ():
            (out / name).write_bytes((exported_detector / name).read_bytes())
        return list(read_manifest(exported_detector).files[backend.engine])

    def quantize(out: Path, *_: object) -> list[str]:
        for name in int8:
            (out / name).write_bytes((exported_detector / name).read_bytes())
        return list(int8)

    checkpoint = googlenet.load(detector_run)
    detector = DetectorPredictor(checkpoint.model, checkpoint.preprocess, checkpoint.classes)
    accuracy = read_manifest(exported_detector).accuracy
    drop = accuracy["float32"]["ap"] - accuracy[f"{backend.engine}:int8"]["ap"]
    assert drop > 0.001 and detector.sizes == ()
    monkeypatch.setattr(backend.module, "write_detector", lambda spec, out: write(out))
    monkeypatch.setattr(backend.module, "quantize", quantize)
    with pytest.raises(FailedError, match=rf"int8 for {backend.engine} loses {drop:.4f} of AP on test of noise, more"):
        export(
            checkpoint, detector_data, tmp_path / "out", [engine], ExportOptions(int8=QuantizationConfig(drop / 2, 2))
        )
    assert not (tmp_path / "out").exists()
    empty = detector_data._replace(test=[sample._replace(boxes=sample.boxes[:0], labels=sample.labels[:0],
                                                crowd=sample.crowd[:0], areas=sample.areas[:0])
                                for sample in detector_data.test or ()])  # fmt: skip
    with pytest.raises(ValueError, match="int8 needs test images with objects"):
        export(checkpoint, empty, tmp_path / "out", [engine], ExportOptions(int8=QuantizationConfig(0.5, 2)))


@pytest.mark.slow
def test_auto_is_the_fastest_in_float32(exported_detector: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for fastest in ("onnxruntime", "openvino"):
        monkeypatch.setattr(
            engine_selection, "_detector_seconds",
            lambda detector, fastest=fastest: 0.001 if detector.name == fastest else 1.0,
        )  # fmt: skip
        # Another number of threads: a measurement is cached.
        threads = {"onnxruntime": 1, "openvino": 2}[fastest]
        predictor = load_predictor(str(exported_detector), "auto", threads).predictor
        assert (predictor.name, predictor.precision) == (fastest, "float32")
        assert load_predictor(str(exported_detector), None, threads).predictor.name == fastest
        assert load_predictor(str(exported_detector), "auto:int8", threads).predictor.precision == "int8"
    with pytest.raises(ValueError, match="unknown precision 'int3'"):
        load_predictor(str(exported_detector), "auto:int3")
    # Some processors compute in float16.
    monkeypatch.setattr("googlenet.export.backends.openvino.precisions", lambda: ["float32"])
    with pytest.raises(ValueError, match="auto:float16: no installed engine has a file for float16"):
        load_predictor(str(exported_detector), "auto:float16")


@pytest.mark.slow
def test_commands(exported_detector: Path, detector_run: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(noise(60, 90, 1).permute(1, 2, 0).numpy()).save(image := tmp_path / "a.png")
    arguments = (image, "--score-threshold", "0.1", "--json")
    expected = command("detect", detector_run, *arguments).json[0]["boxes"]
    assert expected
    for engine in ("onnxruntime:float32", "openvino:float32"):
        boxes = command("detect", exported_detector, *arguments, "--engine", engine, "--threads", "1").json[0]["boxes"]
        assert [box["label"] for box in boxes] == [box["label"] for box in expected]
        assert [box["score"] for box in boxes] == pytest.approx([box["score"] for box in expected], abs=2e-4)
    assert command("detect", detector_run, *arguments, "--engine", "auto").json[0]["boxes"] == expected
    for target in (exported_detector, detector_run):
        refused = command("predict", target, image)
        assert refused.code == 1 and "googlenet detect" in refused.err and refused.err.count("\n") == 1
    for engine, message in (("openvino", "googlenet export"), ("onnxruntime:int8", "--format onnx,openvino")):
        refused = command("detect", detector_run, image, "--engine", engine)
        assert refused.code == 1 and message in refused.err


@pytest.mark.parametrize("channels", [1, 3])
def test_tracing_does_not_poison_the_normalization(channels: int) -> None:
    """Export as the first use of a preprocessing, as in a new process: later uses have real values."""
    preprocess = Preprocess(8, channels, (0.25,) * channels, (0.5 + channels / 7,) * channels)

    class Normalize(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return preprocess.normalize(pixels)

    _pixel_moments.cache_clear()
    pixels = torch.randint(0, 256, (2, channels, 8, 8), dtype=torch.uint8)
    program = torch.export.export(Normalize(), (pixels,))
    expected = (pixels.double() / 255 - 0.25) / (0.5 + channels / 7)
    torch.testing.assert_close(preprocess.normalize(pixels).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(program.module()(pixels).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("copies", [1, 2])
def test_quantizable_nodes(copies: int) -> None:
    """pixels -> resize -> conv -> add -> relu -> class and box convolutions -> decode, once or at two sizes."""
    inputs: dict[str, list[str]] = {}
    for copy in range(copies):
        mark = f"/{copy}" if copy else ""
        inputs |= {f"resize{mark}": [], f"conv{mark}": [f"resize{mark}"], f"add{mark}": [f"conv{mark}"]}
        inputs |= {f"relu{mark}": [f"add{mark}"]}
        inputs |= {f"head.{name}{mark}": [f"relu{mark}"] for name in ("cls_logits", "bbox_reg", "bbox_ctrness")}
        inputs |= {f"head.cls_logits{mark}/bias": [f"head.cls_logits{mark}"]}
        inputs |= {f"decode{mark}": [f"head.cls_logits{mark}/bias", f"head.bbox_reg{mark}"], f"size{mark}": []}
    convolutions = [name for name in inputs if name.startswith(("conv", "head"))]
    expected = {name for name in inputs if name.startswith(("conv", "add"))}
    assert quantizable_nodes(inputs, convolutions) == expected
