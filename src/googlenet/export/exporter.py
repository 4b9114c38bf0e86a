"""Export a checkpoint to a folder that does not need this package: files, manifest, examples, parity report."""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoint.format import Checkpoint
from ..data.calibration import select_calibration, write_calibration
from ..data.dataset import Split
from ..detection.data.dataset import Sample, SampleImages
from ..detection.data.dataset import subsample as subsample_images
from ..detection.metrics import evaluate_split
from ..detection.predict import DetectorPredictor
from ..errors import FailedError
from ..evaluation.metrics import classification_metrics
from ..evaluation.multilabel import multilabel_metrics
from ..evaluation.predictor import Predictor, get_thresholds, predict_split
from ..files import package_version, replace_folder
from ..models.folding import FoldedNetwork, fold
from ..models.state_dict import check_finite
from . import detector, parity
from .backends import BACKENDS, Backend, format_of, formats_with
from .detector import ExportableDetector, ExportedDetector, open_exported_detector
from .engine import FLOAT32, INT8, ExportedPredictor, open_exported
from .manifest import MANIFEST_NAME, Manifest, is_exported, write_head
from .quantize import Quantizer, quantizable_layers, quantize, select_calibration_data
from .spec import FEATURES, ExportSpec

PARITY_NAME = "parity.json"
# The metric of the accuracy by task, its name, and how much of it int8 may lose by default.
ACCURACY = {
    "classification": ("top1", "top-1", 0.003),
    "multilabel": ("map", "mAP", 0.003),
    "detection": ("ap", "AP", 0.01),
}
EXAMPLES = Path(__file__).with_name("examples")


class ExportData(NamedTuple):
    """Images to compare with PyTorch on (`sample`), to measure accuracy on (`test`) and to calibrate int8 on (`train`).

    `sample` is uint8 (n, channels, h, w), for a detector a list of (channels, h, w); `test_name` the split and source.
    """

    sample: Tensor | Sequence[Tensor]
    test: Split | Sequence[Sample] | None = None
    test_name: str = ""
    train: Split | Sequence[Sample] | None = None


class QuantizationConfig(NamedTuple):
    """The accuracy that int8 files may lose, and the number of training images that ranges are measured on.

    The accuracy is top-1 or COCO's AP, 0..1; None: that of `ACCURACY`.
    """

    max_accuracy_drop: float | None = None
    calibration_images: int = 300


class ExportOptions(NamedTuple):
    """`int8` (additional files), for classifiers `softmax` (appended) and `fixed_size`, for detectors `sizes`.

    `threads` None: all cores. `sizes` are longer sides in pixels, default those of the recipe; the boxes are merged.
    With `fixed_size` the files take images of the network's own size only.
    """

    softmax: bool = False
    int8: QuantizationConfig | None = None
    threads: int | None = None
    sizes: Sequence[int] = ()
    fixed_size: bool = False


class ExportResult(NamedTuple):
    """A finished folder, its file names, its manifest and the content of its parity report."""

    folder: Path
    files: list[str]
    manifest: Manifest
    parity: dict[str, Any]

    @property
    def max_error(self) -> float:
        """The largest error of all engines."""
        return max(self.manifest.max_error.values())

    @property
    def top1(self) -> float | None:
        """The top-1 accuracy of the float32 files; None if it was not measured."""
        top1: float | None = self.manifest.accuracy.get("float32", {}).get("top1")
        return top1


def export(
    checkpoint: Checkpoint, data: ExportData, out: Path, formats: Sequence[str], options: ExportOptions | None = None
) -> ExportResult:
    """Export a classifier or a detector to the folder `out`, completely or not at all. An older export is replaced.

    `formats` are names of `BACKENDS`. Raises ValueError if `out` contains other files, or for a missing package or
    capability; FailedError if outputs differ too much from PyTorch's, a format does not support the network, or an
    int8 file loses too much accuracy.
    """
    options = options or ExportOptions()
    check_output_dir(out)
    check_capabilities(checkpoint, formats, options)
    check_finite(checkpoint.model.state_dict(), "the network cannot be exported")
    spec: ExportSpec | ExportableDetector
    is_detector = checkpoint.recipe.task == "detection"
    if is_detector:
        spec = detector.exportable_detector(checkpoint, options.sizes)
    else:
        network = fold(checkpoint.model, checkpoint.preprocess, merge=False)
        spec = ExportSpec(network, checkpoint.preprocess, checkpoint.classes, options.softmax, options.fixed_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True) as temporary:
        work = Path(temporary) / "new"
        work.mkdir()
        manifest = _write_files(checkpoint, spec, formats, work)
        report, max_error = _check_parity(checkpoint, data, manifest, work, options)
        manifest = replace(manifest, max_error=max_error)
        if data.test:
            predictor = _open(manifest, work, next(iter(manifest.files)), options.threads)
            print(f"measuring accuracy with {predictor.name}", file=sys.stderr)
            manifest = replace(manifest, accuracy={"float32": _measure(predictor, data)})
        if options.int8:
            manifest = _quantize(checkpoint, data, manifest, work, options)
        if data.train and not is_detector:
            assert isinstance(data.train, Split)
            calibration = select_calibration(data.train, checkpoint.preprocess)
            manifest = replace(manifest, calibration=write_calibration(work, calibration))
        manifest.write(work)
        replace_folder(work, out, Path(temporary) / "old")
    return ExportResult(out, sorted(path.name for path in out.iterdir()), manifest, report)


def model_name(checkpoint: Checkpoint) -> str:
    """Return the name of the checkpoint's network in `models.registry`."""
    return checkpoint.recipe.model.name or "googlenet"


def check_output_dir(out: Path) -> None:
    """Raise ValueError if `out` contains something else than an export."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file; name a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not is_exported(out):
        raise ValueError(f"{out}: contains files that are not an export; name another folder with --out")


def check_capabilities(checkpoint: Checkpoint, formats: Sequence[str], options: ExportOptions) -> None:
    """Raise ValueError unless the formats support what is to be exported."""
    if checkpoint.recipe.task == "detection":
        if set(formats) - set(formats_with("detection")):
            raise ValueError(f"detectors are exported with --format {', '.join(formats_with('detection'))}")
        if options.softmax or options.fixed_size:
            raise ValueError("--softmax and --fixed-size are options of classifiers, and this network detects objects")
    elif checkpoint.thresholds and options.softmax:
        raise ValueError("--softmax is for one label per image; the probability of a label is the sigmoid of its logit")
    elif options.sizes:
        raise ValueError("--sizes is an option of detectors; an exported classifier takes images of any size")
    if options.int8 and not set(formats) & set(formats_with("int8")):
        raise ValueError(f"--int8 requires --format with one of {', '.join(formats_with('int8'))}")


def _write_files(
    checkpoint: Checkpoint, spec: ExportSpec | ExportableDetector, formats: Sequence[str], work: Path
) -> Manifest:
    """Write each format with its example, and the manifest."""
    files: dict[str, Sequence[str]] = {}
    for backend in (backend for name, backend in BACKENDS.items() if name in formats):
        print(f"exporting to {backend.title}", file=sys.stderr)
        if isinstance(spec, ExportableDetector):
            files[backend.engine] = backend.module.write_detector(spec, work)
        else:
            files[backend.engine] = backend.module.write(spec, work)
        # The example predict_ENGINE.py or detect_ENGINE.py needs the engine, numpy and Pillow only.
        kind = "detect" if spec.output == "boxes" else "predict"
        template = Template((EXAMPLES / f"{kind}.py.template").read_text(encoding="utf-8"))
        example = template.substitute(backend._asdict(), manifest=MANIFEST_NAME, code=backend.module.EXAMPLE)
        (work / f"{kind}_{backend.engine}.py").write_text(example, encoding="utf-8")
    packages = sorted({"googlenet", *files} - {"torch"})
    versions = {name: version for name in packages if (version := package_version(name))}
    network = spec.network if isinstance(spec, ExportSpec) and FEATURES in spec.output_names else None
    head = write_head(work, network.classifier.weight) if isinstance(network, FoldedNetwork) else {}
    manifest = Manifest(
        model_name(checkpoint), checkpoint.preprocess, checkpoint.classes, spec.min_size, spec.dynamic_size,
        spec.output, files, head=head, versions={"torch": torch.__version__, **versions},
        sizes=spec.sizes if isinstance(spec, ExportableDetector) else (), thresholds=checkpoint.thresholds,
    )  # fmt: skip
    manifest.write(work)
    return manifest


def _check_parity(
    checkpoint: Checkpoint, data: ExportData, manifest: Manifest, work: Path, options: ExportOptions
) -> tuple[dict[str, Any], dict[str, float]]:
    """Compare all files with PyTorch and write the report; return it, and the largest error of each engine."""
    rows = _compare(checkpoint, data, manifest, work, options)
    for row in rows:
        if not row.within_bounds:
            values = ", ".join(f"{key} {value}" for key, value in row._asdict().items() if key != "engine")
            raise FailedError(
                f"the file for {row.engine} differs too much from PyTorch ({values}); nothing was written; "
                f"leave {format_of(row.engine)} out of --format"
            )
    precision = "in float32 or, if its rounding exceeds the bound, float64"
    report = {
        "compared": manifest.output,
        "reference": f"the network in PyTorch {torch.__version__}, {precision}",
        "images": len(data.sample),
        "bound": detector.MAX_BOX_ERROR if manifest.output == "boxes" else parity.MAX_ERROR,
        "rows": [row._asdict() for row in rows],
    }
    (work / PARITY_NAME).write_text(json.dumps(report, indent=2) + "\n")
    engines = dict.fromkeys(row.engine for row in rows)
    return report, {name: max(row.max_error for row in rows if row.engine == name) for name in engines}


def _compare(
    checkpoint: Checkpoint, data: ExportData, manifest: Manifest, work: Path, options: ExportOptions
) -> Sequence[parity.ParityRow | detector.DetectionParity]:
    model, preprocess = checkpoint.model, checkpoint.preprocess
    if manifest.output == "boxes":
        sizes = tuple(options.sizes or checkpoint.recipe.detection.test_sizes or ())
        reference = DetectorPredictor(model, preprocess, checkpoint.classes, sizes)
        engines = [detector.open_exported_detector(work, name, options.threads) for name in manifest.files]
        return [detector.compare(engine, reference, list(data.sample)) for engine in engines]
    assert isinstance(data.sample, Tensor)
    predictors = {name: open_exported(work, name, options.threads) for name in manifest.files}
    shapes = parity.parity_shapes(preprocess.size, manifest.min_size, manifest.dynamic_size)
    return parity.compare((model.cpu().float(), preprocess), predictors, data.sample, shapes, options.softmax)


def _open(manifest: Manifest, work: Path, engine: str, threads: int | None) -> ExportedPredictor | ExportedDetector:
    open_files = open_exported_detector if manifest.output == "boxes" else open_exported
    return open_files(work, engine, threads)


def _measure(predictor: Predictor | ExportedDetector, data: ExportData) -> dict[str, Any]:
    """Return the metrics on the test set, their number of images and its name."""
    assert data.test is not None
    if isinstance(predictor, ExportedDetector):
        assert not isinstance(data.test, Split)
        metrics = {**evaluate_split(predictor, data.test).metrics.summary, "images": len(data.test)}
    else:
        assert isinstance(data.test, Split)
        predictions, thresholds = predict_split(predictor, data.test), get_thresholds(predictor)
        metrics = multilabel_metrics(predictions, thresholds) if thresholds else classification_metrics(predictions)
    return {**metrics, "on": data.test_name}


def _quantize(
    checkpoint: Checkpoint, data: ExportData, manifest: Manifest, work: Path, options: ExportOptions
) -> Manifest:
    """Write the int8 files; return the manifest with them and their accuracy."""
    config, (metric, title, default_drop) = options.int8, ACCURACY[checkpoint.recipe.task]
    if data.test is None or not data.train:
        raise ValueError("int8 needs training images and a test set; name them with --data")
    if metric not in manifest.accuracy["float32"]:
        raise ValueError(f"int8 needs test images with objects, and {data.test_name} has none; name others with --data")
    assert config
    max_drop = default_drop if config.max_accuracy_drop is None else config.max_accuracy_drop
    if isinstance(data.train, Split):
        calibration = select_calibration_data(data.train, checkpoint.preprocess, config.calibration_images)
        inputs: Sequence[Tensor] = torch.split(calibration.calibration_images, 1)
        layers = quantizable_layers(checkpoint.model)
    else:
        samples = subsample_images(data.train, config.calibration_images)
        calibration, inputs = None, SampleImages(samples, checkpoint.preprocess.channels)
    engines = dict[str, Any]()
    for backend in (backend for backend in BACKENDS.values() if backend.int8 and backend.engine in manifest.files):
        engine = backend.engine
        print(f"int8 for {engine}", file=sys.stderr)
        quantizer = _quantizer(backend, manifest, work, inputs, options.threads)
        if calibration is None:
            files, details = backend.module.quantize(work, inputs, None), dict[str, Any]()
        else:
            result = quantize(quantizer, calibration, layers, max_drop)
            files = result.files
            details = {"float_layers": result.float_layers, "validation_drop": result.validation_drop}
        metrics = _measure(quantizer.open(files), data)
        drop = manifest.accuracy["float32"][metric] - metrics[metric]
        if drop > max_drop:
            raise FailedError(
                f"int8 for {engine} loses {drop:.4f} of {title} on {data.test_name}, more than --max-accuracy-drop "
                f"{max_drop:g}; nothing was written"
            )
        engines[engine] = {**details, "accuracy_drop": drop}
        manifest = replace(
            manifest,
            files={**manifest.files, engine + INT8: files},
            accuracy={**manifest.accuracy, engine + INT8: metrics},
        )
    summary = {"calibration_images": len(inputs), "max_accuracy_drop": max_drop, "engines": engines}
    return replace(manifest, int8=summary)


def _quantizer(
    backend: Backend, manifest: Manifest, work: Path, inputs: Sequence[Tensor], threads: int | None
) -> Quantizer:
    """Return the quantizer of a backend; it describes the files that it opens in a temporary manifest."""

    def open_files(files: Sequence[str]) -> Any:
        replace(manifest, files={backend.engine: files or manifest.files[backend.engine]}).write(work)
        return _open(manifest, work, backend.engine + FLOAT32, threads)

    return Quantizer(backend.engine, lambda layers: backend.module.quantize(work, inputs, layers), open_files)
