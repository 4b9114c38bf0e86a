"""``googlenet explain``: visualize and analyze a trained network."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..explain import ANALYSES, run_analysis
from .common import CommandParser, add_data_arguments, check_writable, int_list, make_parser, print_result

if TYPE_CHECKING:
    from ..checkpoint.format import Checkpoint
    from ..data.preprocess import Preprocess
    from ..explain.context import AnalysisResult, ExplainContext, ExplainData, InputImage

DEFAULT_METHODS = ["cam", "sizes"]
REPORT = "report.html"


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    needs_image = [name for name in args.methods if ANALYSES[name].needs_image]
    if needs_image and not args.images:
        parser.error(f"{' and '.join(needs_image)} require an image: name one, or select others with --methods")

    from ..checkpoint.format import single_label_only
    from ..checkpoint.load import load
    from ..devices import pick_device
    from ..evaluation.progress import track

    folder = check_writable(args.out)
    if args.report and not (Path(args.run) / REPORT).is_file():
        raise ValueError(f"{args.run}/{REPORT}: no such file; --report requires the folder of a finished run")
    checkpoint = load(args.run, task="classification")
    for name in args.methods:
        if ANALYSES[name].single_label:
            single_label_only(checkpoint.recipe, args.run, f"--methods {name}")
    checkpoint.network.to(pick_device("auto"))
    context = build_context(args, checkpoint)
    results = {name: run_analysis(name, context) for name in track(args.methods, len(args.methods), "analyses", True)}
    subtitle = f"googlenet explain, {checkpoint.recipe.model.name} at {context.size} px"
    files = write_files(args, folder, results, subtitle)
    lines = [line for result in results.values() for line in (f"{result.title}:", *(f"  {x}" for x in result.lines))]
    document = {name: result.document for name, result in results.items()}
    print_result(args.json, {"files": files, **document}, [*lines, *(f"written: {file}" for file in files)])


def build_parser() -> CommandParser:
    """Return the argument parser; its help lists the analyses."""
    methods = "\n".join(f"  {name:<11}{analysis.help}" for name, analysis in ANALYSES.items())
    parser = make_parser(
        "explain",
        "Analyze what a network sees in images and what its parts contribute; write PNG images and explain.html to\n"
        f"a folder. Methods:\n{methods}",
        "googlenet explain runs/demo photo.jpg --out explained --methods cam,gradcam",
    )
    add = parser.add_argument
    add("run", help="a run folder, a .safetensors file, or published weights such as torchvision:googlenet")
    add("images", nargs="*", metavar="IMAGE", help="an image file, a folder, or - (standard input)")
    add("--out", required=True, metavar="DIR", help="output folder")
    add("--methods", type=method_list, default=DEFAULT_METHODS, metavar="A,B,...",
        help=f"the methods, or all (default: {','.join(DEFAULT_METHODS)})")  # fmt: skip
    add("--stage", metavar="NAME", help="the layer for gradcam (default: every stage) and units")
    add("--class", dest="label", metavar="NAME", help="the class for cam and gradcam (default: the most probable)")
    add("--size", type=int, help="height and width in pixels (default: that of the run)")
    add("--sizes", type=int_list, metavar="A,B,...", help="the image sizes for sizes")
    add_data_arguments(parser, max_images=2000)
    add("--report", action="store_true", help="also add the results to the report.html of the run")
    return parser


def method_list(text: str) -> list[str]:
    """Parse an argument such as "cam,sizes"."""
    names = list(ANALYSES) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in ANALYSES]:
        raise argparse.ArgumentTypeError(f"must be of {', '.join(ANALYSES)}, or all, not {unknown[0]!r}")
    return list(dict.fromkeys(names))


def build_context(args: argparse.Namespace, checkpoint: "Checkpoint") -> "ExplainContext":
    """Read the images and check the options; the data set is read when an analysis needs it."""
    from ..evaluation.predictor import NetworkPredictor, Predictor
    from ..explain.context import ExplainContext, ExplainData, check_options
    from ..explain.size_sweep import FACTORS
    from ..inference.datasets import load_eval_dataset, select_split
    from ..inference.loading import LoadedModel
    from ..inference.multi_size import check_sizes

    size = checkpoint.preprocess.size if args.size is None else args.size
    for sizes in ([size], args.sizes):
        if sizes:
            check_sizes(checkpoint.network.min_size, sizes)
    check_options(checkpoint, args.stage, args.label)
    largest = max(size, *(args.sizes or (round(checkpoint.preprocess.size * max(FACTORS)),)))
    images = read_images(args.images, checkpoint.preprocess, largest)

    def load_data() -> "ExplainData":
        predictor: Predictor = NetworkPredictor(checkpoint.network, checkpoint.preprocess, checkpoint.classes)
        model = LoadedModel.of(predictor, checkpoint)
        data = load_eval_dataset(model, max(size, model.stored_size), args.data, args.data_root, args.max_images)
        return ExplainData(data.train, *select_split(data, args.split))

    return ExplainContext(checkpoint, images, load_data, size, args.sizes, args.stage, args.label)


def read_images(names: list[str], preprocess: "Preprocess", largest: int) -> "list[InputImage]":
    """Read image files, folders and standard input, to be resized to at most `largest`; equal names are numbered."""
    from ..data.decode import decode_pixels
    from ..explain.context import InputImage
    from ..inference.predict import STDIN, expand_paths

    images: dict[str, InputImage] = {}
    for path in expand_paths(names):
        is_stdin = path == STDIN
        source, name = (sys.stdin.buffer.read(), "standard-input") if is_stdin else (Path(path), Path(path).stem)
        label, min_size = "standard input" if is_stdin else None, preprocess.min_decode_size(largest)
        image = decode_pixels(source, preprocess.channels, label, min_size, max_value=preprocess.max_value)
        candidates = (name, *(f"{name}-{number}" for number in range(2, len(images) + 2)))
        name = next(candidate for candidate in candidates if candidate not in images)
        images[name] = InputImage(path, name, image.pixels.unsqueeze(0))
    return list(images.values())


def write_files(
    args: argparse.Namespace, folder: Path, results: "dict[str, AnalysisResult]", subtitle: str
) -> list[str]:
    """Write the images and explain.html, and update the report of the run with ``--report``; return the paths."""
    from ..evaluation.report import render
    from ..explain.context import insert_sections, result_sections
    from ..files import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    images = [image for result in results.values() for image in result.images]
    contents: dict[Path, bytes | str] = {folder / image.file: image.png for image in images}
    title, sections = f"Analysis of {Path(args.run).name}", result_sections(results)
    contents[folder / "explain.html"] = render("page.html", title=title, subtitle=subtitle, sections=sections)
    if args.report:
        report = Path(args.run) / REPORT
        contents[report] = insert_sections(report.read_text(encoding="utf-8"), results)
    for path, content in contents.items():
        write_atomically(path, content)
    return [str(path) for path in contents]
