"""``googlenet detect``: detect objects on images."""

import argparse
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import add_engine_arguments, int_list, make_parser, warn, writable_folder
from .predict import raise_for_unreadable

if TYPE_CHECKING:
    from ..detection.predict import ImageDetections, ObjectDetector

# Height or width of a drawing in pixels, at least: smaller images are enlarged.
DRAWING_SIDE = 512


def run(argv: list[str]) -> None:
    """Detect objects on images."""
    parser = make_parser(
        "detect",
        "Detect objects on images, files or folders: boxes, classes and scores; with --out, drawn.",
        "googlenet detect runs/scenes photo.jpg holiday/ --out drawn",
    )
    add = parser.add_argument
    add("run", help="a run with task: detection, its .safetensors file, or an exported folder")
    add("images", nargs="+", metavar="IMAGE", help="an image file or a folder")
    add("--out", metavar="DIR", help="write each image with its boxes drawn, as PNG")
    add("--score-threshold", type=float, default=0.3, metavar="S",
        help="print and draw boxes with a score above S only, 0..1 (default: 0.3)")  # fmt: skip
    add("--sizes", type=int_list, metavar="A,B,...",
        help="the images' longer side in pixels; the boxes of several sizes are merged (default: those of the "
        "run)")  # fmt: skip
    add("--save-coco-json", metavar="FILE",
        help="also write COCO's results format, with all boxes above the run's own threshold. Without --annotations "
        "image_id is the file name if all names are different numbers, else the position of the file, from 1, and "
        "category_id is the class index plus 1")  # fmt: skip
    add("--annotations", metavar="FILE",
        help="with --save-coco-json: take the image and category ids of this COCO annotation file")  # fmt: skip
    add_engine_arguments(parser)
    args = parser.parse_args(argv)
    if not 0 <= args.score_threshold < 1:
        parser.error("--score-threshold must be in [0, 1)")
    if args.sizes and min(args.sizes) < 1:
        parser.error("--sizes must be 1 or more")
    if args.annotations and not args.save_coco_json:
        parser.error("--annotations requires --save-coco-json FILE")

    from ..detection.predict import with_sizes
    from ..files import write_atomically
    from ..inference.loading import load_predictor
    from ..inference.predict import expand_paths

    model = load_predictor(args.run, args.engine, args.threads, task="detection")
    detector = with_sizes(model.predictor, args.sizes) if args.sizes else model.predictor
    if args.save_coco_json and not Path(args.save_coco_json).resolve().parent.is_dir():
        raise ValueError(f"{args.save_coco_json}: no such folder: {Path(args.save_coco_json).resolve().parent}")
    paths = expand_paths(args.images)
    results, errors = _detect(args, detector, model.predictor.classes, paths)
    if args.save_coco_json:
        write_atomically(Path(args.save_coco_json), json.dumps(results))
    raise_for_unreadable(errors, len(paths))


def _detect(
    args: argparse.Namespace, detector: "ObjectDetector", classes: tuple[str, ...], paths: list[str]
) -> tuple[list[dict[str, Any]], int]:
    """Detect, print and draw; return COCO's results, and the number of images that could not be read."""
    from ..detection.data.coco import coco_results
    from ..detection.predict import detect_files
    from ..evaluation.progress import track

    ids, category_ids = coco_ids(args.annotations, paths, classes)
    folder = writable_folder(args.out) if args.out else None
    documents, results, errors, names = [], [], 0, set[str]()
    images = track(detect_files(detector, paths), len(paths), "images")
    for image_id, image in zip(ids, images, strict=True):
        if image.error:
            errors += 1
            warn("detect", image.error)
            continue
        if image_id is not None:
            results += coco_results(image_id, image.detections, category_ids)
        image = image._replace(detections=image.detections.above(args.score_threshold))
        rows = zip(*(values.tolist() for values in image.detections), strict=True)
        boxes = [
            {"xyxy": [round(edge, 2) for edge in box], "label": classes[label], "score": round(score, 4)}
            for box, score, label in rows
        ]
        documents.append({"path": image.path, "boxes": boxes})
        drawing = _draw(image, classes, folder, names) if folder else None
        if not args.json:
            print(f"{image.path}: {len(boxes)} objects{f', drawn in {drawing}' if drawing else ''}")
            for box in boxes:
                left, top, right, bottom = box["xyxy"]
                print(f"  {box['label']:<20}{box['score']:.3f}  {left:.0f},{top:.0f} to {right:.0f},{bottom:.0f}")
    if args.json:
        print(json.dumps(documents, indent=2))
    return results, errors


def coco_ids(
    annotations: str | None, paths: list[str], classes: tuple[str, ...]
) -> tuple[Sequence[int | str | None], list[int | str] | None]:
    """Return the image id of each path, and the category ids of the classes, of an annotation file if there is one.

    An image that it does not list has no id. Raises ValueError for two images with one id, or a missing category.
    """
    if not annotations:
        return image_ids(paths), None
    from ..detection.data.coco import CocoIds

    known = CocoIds.read(Path(annotations))
    if missing := [name for name in classes if name not in known.categories]:
        raise ValueError(f"{annotations}: no category called {missing[0]}, which is a class of the detector")
    ids, first = [known.image_id(path) for path in paths], dict[int | str, str]()
    for path, image_id in zip(paths, ids, strict=True):
        if image_id is None:
            warn("detect", f"{path}: not listed in {annotations}: left out of the COCO results")
        elif image_id in first:
            raise ValueError(f"{path}: its id in {annotations}, {image_id}, is also that of {first[image_id]}")
        else:
            first[image_id] = path
    return ids, [known.categories[name] for name in classes]


def image_ids(paths: list[str]) -> list[int]:
    """Return a unique COCO image id for each path: the number that is the file's name, else its position, from 1.

    Names are used only if all are different numbers: two images with one id would share their boxes.
    """
    stems = [Path(path).stem for path in paths]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return numbers if len(set(numbers)) == len(paths) else list(range(1, len(paths) + 1))


def _draw(image: "ImageDetections", classes: tuple[str, ...], folder: Path, names: set[str]) -> Path:
    """Write an image with its boxes. Images of the same name get numbers; `names` are those in use."""
    from PIL import Image

    from ..detection.report import draw_boxes
    from ..files import write_atomically
    from ..palette import BOX_COLORS

    assert image.pixels is not None
    scores, labels = image.detections.scores.tolist(), image.detections.labels.tolist()
    texts = [f"{classes[label]} {score:.2f}" for score, label in zip(scores, labels, strict=True)]
    colors = [BOX_COLORS[label % len(BOX_COLORS)] for label in labels]
    drawing = draw_boxes(image.pixels, image.detections.boxes, texts, colors, min_side=DRAWING_SIDE)
    stem = Path(image.path).stem
    candidates = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    name = next(name for name in candidates if name not in names)
    names.add(name)
    Image.fromarray(drawing.permute(1, 2, 0).numpy()).save(content := io.BytesIO(), "PNG")
    path = folder / f"{name}.png"
    write_atomically(path, content.getvalue())
    return path
