"""``googlenet scenes generate``: images with labeled boxes to train detectors on."""

from pathlib import Path

from .common import make_parser, print_result


def run(argv: list[str]) -> None:
    """Generate the scenes and print their folder."""
    parser = make_parser(
        "scenes",
        "Generate images of Fashion-MNIST garments on textured backgrounds, with boxes and labels in COCO's format.",
        "googlenet scenes generate --count train=4000,test=1000,seed=0 --out scenes",
    )
    parser.add_argument("action", choices=["generate"])
    parser.add_argument(
        "--count", default="", metavar="train=N,test=N,seed=N",
        help="number of images (default: train=4000,test=1000,seed=0)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="output folder (default: the cache)")
    parser.add_argument("--data-root", metavar="DIR", help="folder to search for Fashion-MNIST first")
    args = parser.parse_args(argv)

    from ..detection.data.scenes import Scenes, scenes_folder, write_scenes

    scenes = Scenes.parse(args.count)
    if args.out:
        folder = Path(args.out)
        files = write_scenes(scenes, folder, args.data_root)
    else:
        folder = scenes_folder(scenes, args.data_root)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
    document = {"root": str(folder), "files": [str(file) for file in files]}
    print_result(args.json, document, [f"scenes: {folder}"])
