"""``googlenet check``: decode every image of a data set, and report what is usable."""

from pathlib import Path
from typing import Any

from .common import make_parser, print_result


def run(argv: list[str]) -> None:
    """Check a data set; ValueError, after the report, if an image cannot be read."""
    parser = make_parser(
        "check",
        "Decode every image of a data set, and report classes, splits, and every image that cannot be read. Exits with "
        "1 if there is any. Training reads headers only before it starts, and replaces such images when it needs them.",
        "googlenet check folder:photos",
    )
    parser.add_argument("data", help="a data source, such as folder:PATH or imagenet:PATH, or the path of a folder")
    parser.add_argument("--data-root", metavar="DIR", help="folder to search for the data first")
    args = parser.parse_args(argv)

    from ..data.sources import SOURCES

    source = args.data if args.data.partition(":")[0] in SOURCES else f"folder:{args.data}"
    document = check_data(source, args.data_root)
    print_result(args.json, document, describe(document))
    if unreadable := len(document["unreadable"]):
        checked = sum(split["images"] for split in document["splits"].values()) + unreadable
        raise ValueError(f"{unreadable:,} of {checked:,} images cannot be read: replace or delete them")


def check_data(source: str, root: str | None) -> dict[str, Any]:
    """Load a source of either task with a full check, and describe it as plain values."""
    from ..data.dataset import LoadOptions
    from ..data.sources import SOURCES, load_dataset
    from ..detection.data.dataset import load_detection_dataset

    options = LoadOptions(root=str(Path(root)) if root else None, validation=0, size=32, in_memory=False)
    is_detection = SOURCES[source.partition(":")[0]].kind == "detection"
    data: Any = load_detection_dataset(source, options) if is_detection else load_dataset(source, options)
    splits = {name: split for name in ("train", "validation", "test") if (split := getattr(data, name))}
    return {
        "source": data.source,
        "classes": list(data.classes),
        "channels": None if is_detection else data.channels,
        "splits": {
            name: {"images": len(split), "labels": count_labels(split, len(data.classes))}
            for name, split in splits.items()
        },
        "accounting": data.accounting.to_dict(),
        "unreadable": data.accounting.unreadable,
        "notes": data.accounting.lines(),
    }


def count_labels(split: Any, num_classes: int) -> list[int]:
    """Return the number of images of each class, or for detection of objects."""
    import torch

    if not hasattr(split, "labels"):
        labels = torch.cat([sample.labels for sample in split])
    elif split.labels.ndim == 2:  # several labels per image: one column per class
        return [int(count) for count in (split.labels > 0).sum(0).tolist()]
    else:
        labels = split.labels
    counts: list[int] = torch.bincount(labels, minlength=num_classes).tolist()
    return counts


def describe(document: dict[str, Any]) -> list[str]:
    """Return the report as lines."""
    colors = {1: ", gray", 3: ", color"}.get(document["channels"], "")
    lines = [f"{document['source']}: {len(document['classes']):,} classes{colors}"]
    for name, split in document["splits"].items():
        pairs = sorted(zip(split["labels"], document["classes"], strict=True))
        (low, smallest), (high, largest) = pairs[0], pairs[-1]
        lines.append(f"{name}: {split['images']:,} images, from {low:,} of {smallest} to {high:,} of {largest}")
    lines += document["notes"]
    return [*lines, *(f"cannot be read: {name}: {reason}" for name, reason in document["unreadable"].items())]
