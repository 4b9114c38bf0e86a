"""Where pictures with boxes come from: a name in a recipe -> a data set."""

from pathlib import Path
from typing import Any

from ..data.dataset import Unreadable
from ..data.sources import absolute_source
from .coco import coco_files, read_coco
from .dataset import DetectionDataset
from .files import assemble
from .scenes import Scenes, scenes_folder
from .voc import read_voc, voc_classes, voc_files

SCENES, COCO, VOC = "scenes", "coco:", "voc:"


def load_detection(
    source: str,
    *,
    root: str | None = None,
    validation: float = 0.0,
    channels: int | None = None,
    unreadable: Unreadable = "skip",
    limit: int | None = None,
    seed: int = 0,
) -> DetectionDataset:
    """Read the data set that `source` names.

    ``scenes:train=4000,test=1000,seed=0`` (each part optional) for drawn scenes, kept in the cache; ``coco:PATH``
    for a folder or JSON file in COCO's form (`coco_files`); ``voc:PATH`` for a Pascal VOC folder (`voc_files`).
    `root` is where Fashion-MNIST lies, or what a relative PATH is relative to. The rest is `files.assemble`'s.
    ValueError for an unknown source or data that cannot be used.
    """
    options: dict[str, Any] = {
        "channels": channels, "unreadable": unreadable, "validation": validation, "seed": seed, "limit": limit,
    }  # fmt: skip
    if source == SCENES or source.startswith(f"{SCENES}:"):
        scenes = Scenes.parse(source.removeprefix(SCENES).removeprefix(":"))
        return _coco(scenes_folder(scenes, root), source, **options)
    place = absolute_source(source, root)
    if source.startswith(COCO) and source != COCO:
        return _coco(Path(place.removeprefix(COCO)), place, **options)
    if source.startswith(VOC) and source != VOC:
        folder = Path(place.removeprefix(VOC))
        files = voc_files(folder)
        classes = voc_classes(files["train"])
        if not classes:
            raise ValueError(f"{folder}: no XML file of its training pictures names an object")
        splits = {name: read_voc(folder, paths, classes) for name, paths in files.items()}
        return assemble(place, splits, **options)
    raise ValueError(
        f"unknown source of boxes {source!r}; use scenes, scenes:train=N,test=N,seed=N, coco:PATH or voc:PATH"
    )


def _coco(folder: Path, source: str, **options: Any) -> DetectionDataset:
    files = coco_files(folder)
    path, folders = files["train"]
    splits = {"train": read_coco(path, folders)}
    classes = splits["train"][0].classes
    for name, (path, folders) in files.items():
        if name != "train":
            splits[name] = read_coco(path, folders, classes)
    return assemble(source, splits, **options)
