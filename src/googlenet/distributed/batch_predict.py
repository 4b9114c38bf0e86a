"""Classify many image files with several Ray workers. The results are Parquet files; an interrupted job can resume.

The paths are split into shards of a fixed size. A worker writes a shard's file atomically, under a name that depends on
the shard's index only, so a retried shard replaces the same file. A resumed job computes the shards without a file.
"""

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..evaluation.predictor import predictor_device
from ..export.manifest import MANIFEST_NAME, file_sha256, is_exported
from ..files import write_atomically
from ..inference.loading import load_predictor
from ..inference.predict import Prediction, PredictOptions, predict_images
from ..kernels import keep_freed_memory

SHARD_SIZE = 256  # images
JOB_FILE = "job.json"


class Job(NamedTuple):
    """What predicts (see `load_predictor`) and how."""

    run: str
    engine: str | None = None
    options: PredictOptions = PredictOptions()


class Summary(NamedTuple):
    """Number of images, of images with an error, of shards, and of shards that existed before."""

    images: int
    errors: int
    shards: int
    resumed: int


def predict_sharded(paths: Sequence[str], job: Job, out: Path, workers: int, shard_size: int = SHARD_SIZE) -> Summary:
    """Predict all images with `workers` processes, and write ``shard-00000.parquet`` and so on to `out`.

    The rows have path, label and probability of the most probable class, top (a list of label and probability),
    preprocessing, error. Raises ValueError if Ray is not installed, or if `out` belongs to another job.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("--ray requires Ray; run: pip install 'googlenet[scale]'") from None
    if not paths:
        raise ValueError("no images")
    out.mkdir(parents=True, exist_ok=True)
    _check_job(out, paths, job, shard_size)
    shards = [list(paths[start : start + shard_size]) for start in range(0, len(paths), shard_size)]
    pending = [
        {"shard": index, "paths": shard} for index, shard in enumerate(shards) if not shard_file(out, index).exists()
    ]
    if pending:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False
        results = ray.data.from_items(pending, override_num_blocks=len(pending)).map_batches(
            _Worker, fn_constructor_args=(job, str(out)), batch_size=1, num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )  # fmt: skip
        results.materialize()
    return _summarize(out, len(shards), len(shards) - len(pending))


def shard_file(out: Path, index: int) -> Path:
    """Return the file of a shard."""
    return out / f"shard-{index:05d}.parquet"


class _Worker:
    """Predict shards in one process, with one thread."""

    def __init__(self, job: Job, out: str):
        torch.set_num_threads(1)
        threads = 1 if job.engine or is_exported(Path(job.run)) else None
        self.predictor = load_predictor(job.run, job.engine, threads, task="classification").predictor
        keep_freed_memory(predictor_device(self.predictor).type)
        self.options, self.out = job.options, Path(out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for index, paths in zip(batch["shard"], batch["paths"], strict=True):
            predictions = predict_images(self.predictor, [str(path) for path in paths], self.options)
            rows = [_to_row(prediction) for prediction in predictions]
            write_atomically(shard_file(self.out, int(index)), _to_parquet(rows))
        return {"shard": batch["shard"]}


def _to_row(prediction: Prediction) -> dict[str, Any]:
    top = [item._asdict() for item in prediction.top]
    best = top[0] if top else {"label": None, "probability": None}
    preprocessing, error = prediction.preprocessing, prediction.error
    labels = prediction.labels
    return {
        "path": prediction.path, **best, "top": top, "labels": labels, "preprocessing": preprocessing, "error": error
    }  # fmt: skip


def _to_parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    item = pa.struct([("label", pa.string()), ("probability", pa.float64())])
    schema = pa.schema(
        [("path", pa.string()), ("label", pa.string()), ("probability", pa.float64()), ("top", pa.list_(item)),
         ("labels", pa.list_(pa.string())),
         ("preprocessing", pa.string()), ("error", pa.string())]
    )  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue()


def _check_job(out: Path, paths: Sequence[str], job: Job, shard_size: int) -> None:
    """Write the description of the job to `out`, or compare it with that of the interrupted job."""
    digest = hashlib.sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest()
    top_k, sizes, tta = job.options
    settings = {
        "run": job.run, "run_sha256": content_digest(Path(job.run)), "engine": job.engine, "top_k": top_k,
        "sizes": list(sizes), "tta": str(tta),
        "images": len(paths), "paths_sha256": digest, "shard_size": shard_size,
    }  # fmt: skip
    file = out / JOB_FILE
    if not file.exists():
        if any(out.glob("shard-*.parquet")):
            raise ValueError(f"{out}: contains shards but no {JOB_FILE}; use another folder")
        write_atomically(file, json.dumps(settings, indent=2))
        return
    try:
        saved = json.loads(file.read_text())
    except ValueError:
        raise ValueError(f"{file}: damaged; use another folder") from None
    differences = [key for key in settings if saved.get(key) != settings[key]]
    if differences:
        raise ValueError(f"{out}: belongs to a job with other {', '.join(differences)}; use another folder")


def content_digest(path: Path) -> str:
    """Return a SHA-256 of the weights and descriptions in a run, ensemble, export or file; of the name if none."""
    names = ("*.safetensors", "*/*.safetensors", MANIFEST_NAME)  # the manifest has the digests of an export's files
    files = sorted({file for name in names for file in path.glob(name)}) if path.is_dir() else [path]
    digests = [file_sha256(file) for file in files if file.is_file()]
    return hashlib.sha256("".join(digests or [str(path)]).encode()).hexdigest()


def _summarize(out: Path, shards: int, resumed: int) -> Summary:
    import pyarrow.parquet as pq

    columns = [pq.read_table(shard_file(out, index), columns=["error"])["error"] for index in range(shards)]
    images = sum(len(column) for column in columns)
    return Summary(images, images - sum(column.null_count for column in columns), shards, resumed)
