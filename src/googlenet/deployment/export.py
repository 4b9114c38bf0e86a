"""A trained network -> a folder that needs nothing of ours: files, description, examples, parity report."""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.dataset import Split
from ..data.preprocess import Preprocess
from ..errors import FailedError
from ..evaluation.metrics import scores
from ..models.ensemble import Ensemble, networks_of
from ..models.fusion import fuse
from ..models.network import Network
from . import parity
from .asked import outputs
from .description import NAME, Description, digest
from .engine import Engine
from .engines import open_engine
from .formats import FORMATS
from .order import Order
from .quantise import QUANTISERS, calibration, quantise

EXAMPLES = Path(__file__).parent / "examples"
PARITY = "parity.json"


class Trained(NamedTuple):
    """What is exported: a network, or several that answer as one, by its catalogue name.

    And how its pictures are made and its classes called.
    """

    name: str
    model: Network | Ensemble
    preprocess: Preprocess
    classes: tuple[str, ...]


class Pictures(NamedTuple):
    """What an export is checked on: `sample` uint8 (n, channels, h, w), and `test` with its name and its source.

    Without a `test` no accuracy is measured. `calibration` are training pictures, for int8.
    """

    sample: Tensor
    test: Split | None = None
    about: str = ""
    calibration: Split | None = None


class Int8(NamedTuple):
    """How int8 files are made: top-1 that they may lose, and the training pictures that their ranges are of."""

    max_drop: float = 0.003
    pictures: int = 300


class Exported(NamedTuple):
    """A finished folder; `files` by name, `max_error` the largest of all engines, `top1` None where not measured."""

    folder: Path
    files: list[str]
    max_error: float
    top1: float | None
    description: Description


def export(
    trained: Trained,
    pictures: Pictures,
    out: Path,
    formats: Sequence[str],
    *,
    softmax: bool = False,
    int8: Int8 | None = None,
    threads: int | None = None,
) -> Exported:
    """Write `trained` in every one of `formats` into the folder `out`, whole or not at all.

    An older export at `out` is replaced. ValueError where something else is there or a package is missing;
    FailedError where a file's answers differ by more than `parity.BOUND`, a format cannot say the network, or an int8
    file loses too much.
    """
    check_place(out)
    order = Order(fuse(trained.model, trained.preprocess, merge=False), trained.preprocess.size, softmax)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        files: dict[str, Sequence[str]] = {}
        for name, entry in FORMATS.items():
            if name in formats:
                print(f"writing {name}", file=sys.stderr)
                files[entry.engine] = entry.write(order, work)
        description = _described(trained, order, files, work)
        description.write(work)
        description = _compared(trained, pictures, description, work, threads)
        if pictures.test:
            first = next(iter(files))
            print(f"measuring accuracy with {first}", file=sys.stderr)
            found = scores(outputs(open_engine(work, first, threads), pictures.test))
            description = replace(description, accuracy={"float32": {**found, "on": pictures.about}})
        if int8:
            description = _quantised(trained, pictures, description, work, int8, threads)
        description.write(work)
        for engine in files:
            shutil.copy(EXAMPLES / f"predict_{engine}.py", work)
        work.chmod(0o755)
        _replace(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    names = sorted(path.name for path in out.iterdir())
    top1 = description.accuracy["float32"]["top1"] if description.accuracy else None
    return Exported(out, names, max(description.max_error.values()), top1, description)


def quantisable(model: Network | Ensemble) -> list[str]:
    """The layers that may be left in float32, as `quantise.layer_of` calls them."""
    if isinstance(model, Ensemble):
        return [
            f"networks.{number}.{name}"
            for number, network in enumerate(networks_of(model))
            for name in quantisable(network)
        ]
    trunk = (name for name, layer in model.trunk.named_children() if next(layer.parameters(), None) is not None)
    return [*trunk, "classifier"]


def check_place(out: Path) -> None:
    """ValueError where `out` holds something else than an export."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: a file; name a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / NAME).exists():
        raise ValueError(f"{out}: holds something that is not an export; name another folder with --out")


def _described(trained: Trained, order: Order, files: dict[str, Sequence[str]], work: Path) -> Description:
    packages = {"googlenet", *files} - {"torch"}
    return Description(
        trained.name,
        trained.preprocess,
        trained.classes,
        order.least,
        order.any_size,
        order.softmax,
        files,
        digests={file: digest(work / file) for names in files.values() for file in names},
        versions={"torch": torch.__version__, **{name: metadata.version(name) for name in sorted(packages)}},
    )


def _compared(
    trained: Trained, pictures: Pictures, description: Description, work: Path, threads: int | None
) -> Description:
    """Write the parity report; the description with its largest differences."""
    engines = {name: open_engine(work, name, threads) for name in description.files}
    sides = parity.shapes(trained.preprocess.size, description.min_size, description.any_size)
    rows = parity.compare(
        trained.model.cpu().float(), trained.preprocess, engines, pictures.sample, sides, description.softmax
    )
    worst = parity.largest(rows)
    for engine, error in worst.items():
        if not error <= parity.BOUND:
            raise FailedError(
                f"the file for {engine} answers other than the network by {error:.2g}, more than {parity.BOUND:g}; "
                "nothing was written; leave its format out of --to"
            )
    report: dict[str, Any] = {
        "compared": "probabilities" if description.softmax else "logits",
        "against": f"the network in PyTorch {torch.__version__}, normalised outside, in float32 or, where "
        "that rounds too coarsely, float64",
        "pictures": len(pictures.sample),
        "bound": parity.BOUND,
        "rows": [row._asdict() for row in rows],
    }
    (work / PARITY).write_text(json.dumps(report, indent=2) + "\n")
    return replace(description, max_error=worst)


def _quantised(
    trained: Trained, pictures: Pictures, description: Description, work: Path, int8: Int8, threads: int | None
) -> Description:
    """Write the int8 files; the description with them, and with what they lose on the whole test set."""
    if pictures.test is None or pictures.calibration is None:
        raise ValueError("int8 needs training pictures and a test set; name them with --data")
    made = calibration(pictures.calibration, trained.preprocess, int8.pictures)
    layers = quantisable(trained.model)
    exact = description

    def opened(engine: str, files: Sequence[str]) -> Engine:
        """The engine with other files in the place of its own, described for the time being."""
        known = {file: digest(work / file) for file in files}
        trial = replace(
            exact, files={engine: files or exact.files[engine]}, digests={**exact.digests, **known}
        )  # fmt: skip
        trial.write(work)
        return open_engine(work, f"{engine}:float32", threads)

    kept: dict[str, Any] = {}
    for engine in (name for name in exact.files if name in QUANTISERS):
        print(f"int8 for {engine}", file=sys.stderr)
        done = quantise(engine, work, made, layers, int8.max_drop, opened)
        found = scores(outputs(opened(engine, done.files), pictures.test))
        drop = exact.accuracy["float32"]["top1"] - found["top1"]
        if drop > int8.max_drop:
            raise FailedError(
                f"int8 for {engine} loses {drop:.4f} of top-1 on {pictures.about}, more than --max-drop "
                f"{int8.max_drop:g}; nothing was written"
            )
        key = f"{engine}:int8"
        kept[engine] = {"left_in_float32": done.kept, "drop": drop, "drop_on_training_pictures": done.judged_drop}
        description = replace(
            description,
            files={**description.files, key: done.files},
            digests={**description.digests, **{file: digest(work / file) for file in done.files}},
            accuracy={**description.accuracy, key: {**found, "on": pictures.about}},
        )
    about = {"ranges_of": f"{len(made.ranges)} training pictures", "max_drop": int8.max_drop, "engines": kept}
    return replace(description, int8=about)


def _replace(work: Path, out: Path) -> None:
    """Put the folder `work` at `out`; what was there is gone only when the new one stands."""
    if not out.exists():
        work.rename(out)
        return
    old = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old."))
    out.rename(old / out.name)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)
