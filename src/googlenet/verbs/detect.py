"""``googlenet detect``: pictures to boxes."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FailedError
from .command import verb_parser, whole_numbers

if TYPE_CHECKING:
    from ..detection.predict import Found

# Okabe and Ito's palette, told apart by colour-blind readers too; a class has always the same.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


def detect(argv: list[str]) -> None:
    """Find objects on pictures."""
    parser = verb_parser(
        "detect",
        "Find the objects on pictures, files or folders: boxes, classes and scores; with --out, drawn.",
        "googlenet detect runs/scenes photo.jpg holiday/ --out drawn",
    )
    parser.add_argument("run", help="the folder or the .safetensors file of a run with task: detection")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture file or a folder")
    parser.add_argument("--out", metavar="DIR", help="draw the boxes, into a PNG for each picture")
    parser.add_argument(
        "--score", type=float, default=0.3, metavar="S", help="leave out boxes that score less, 0..1 (default 0.3)"
    )
    parser.add_argument(
        "--sizes", type=whole_numbers, metavar="A,B,...",
        help="the pictures' longer side in pixels; of several the boxes are merged (default: the run's own)",
    )  # fmt: skip
    parser.add_argument(
        "--coco", metavar="FILE",
        help="write COCO's results form too: image_id is the number that is the file's name if all names are "
        "different numbers, else the file's place in the order from 1; category_id is the class's place",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if not 0 <= args.score < 1:
        parser.error("--score must be in [0, 1)")
    if args.sizes and min(args.sizes) < 1:
        parser.error("--sizes must be 1 or more")

    from ..detection.predict import detect_files
    from ..evaluation.predict import expand
    from ..files import write_atomically
    from ..training.checkpoint import load
    from ..training.devices import pick_device

    checkpoint = load(args.run, task="detection")
    folder = _folder(args.out)
    if args.coco and not Path(args.coco).resolve().parent.is_dir():
        raise ValueError(f"{args.coco}: there is no folder {Path(args.coco).resolve().parent}")
    sizes = args.sizes or checkpoint.recipe.detection.sizes or ()
    paths = list(expand(args.images))
    documents, results, problems, names = [], [], [], set[str]()
    ids = image_ids(paths)
    model = checkpoint.model.to(pick_device("auto"))
    for image_id, found in zip(ids, detect_files(model, checkpoint.preprocess, paths, sizes), strict=True):
        if found.problem:
            problems.append(found.problem)
            print(f"googlenet detect: {found.problem}", file=sys.stderr)
            continue
        kept = found._replace(detections=found.detections.above(args.score))
        boxes = _boxes(kept, checkpoint.classes)
        documents.append({"path": found.path, "boxes": boxes})
        results += _results(kept, image_id)
        drawn = _draw(kept, checkpoint.classes, folder, names) if folder else None
        if not args.json:
            print(f"{found.path}: {len(boxes)} objects{f', drawn in {drawn}' if drawn else ''}")
            for box in boxes:
                left, top, right, bottom = box["xyxy"]
                print(f"  {box['label']:<20}{box['score']:.3f}  {left:.0f},{top:.0f} to {right:.0f},{bottom:.0f}")
    if args.coco:
        write_atomically(Path(args.coco), json.dumps(results))
    if args.json:
        print(json.dumps(documents, indent=2))
    if problems:
        total = len(problems) + len(documents)
        raise FailedError(f"{len(problems)} of {total} pictures could not be used" if total > 1 else "")


def _folder(out: str | None) -> Path | None:
    """Where drawn pictures go, made; None where none are asked for."""
    if out is None:
        return None
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: a file; name a folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _boxes(found: "Found", classes: tuple[str, ...]) -> list[dict[str, Any]]:
    boxes, scores, labels = (values.tolist() for values in found.detections)
    return [
        {"xyxy": [round(side, 2) for side in box], "label": classes[label], "score": round(score, 4)}
        for box, score, label in zip(boxes, scores, labels, strict=True)
    ]


def image_ids(paths: list[str]) -> list[int]:
    """Return one different COCO image id for each path: the number that is its name, else its place from 1.

    The names are taken only if all of them are different numbers: an id that two images share would join their boxes.
    """
    stems = [Path(path).stem for path in paths]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))


def _results(found: "Found", image_id: int) -> list[dict[str, Any]]:
    from ..detection.coco import results_of

    return results_of(image_id, found.detections)


def _draw(found: "Found", classes: tuple[str, ...], folder: Path, names: set[str]) -> Path:
    """The picture with its boxes, written; pictures of one name in several folders get numbers."""
    import io

    from PIL import Image

    from ..detection.report import drawn_boxes
    from ..files import write_atomically

    assert found.pixels is not None
    scores, labels = found.detections.scores.tolist(), found.detections.labels.tolist()
    texts = [f"{classes[label]} {score:.2f}" for score, label in zip(scores, labels, strict=True)]
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    image = drawn_boxes(found.pixels, found.detections.boxes, texts, colours, side=512)
    stem, number = Path(found.path).stem, 1
    name = stem
    while name in names:
        number += 1
        name = f"{stem}-{number}"
    names.add(name)
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, "PNG")
    path = folder / f"{name}.png"
    write_atomically(path, content.getvalue())
    return path
