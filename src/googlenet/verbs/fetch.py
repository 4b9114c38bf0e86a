"""``googlenet fetch``: data sets, found or downloaded or drawn."""

from pathlib import Path

from .command import answer, verb_parser


def fetch(argv: list[str]) -> None:
    """Find, download or draw a data set."""
    parser = verb_parser(
        "fetch",
        "Find or download a data set and check its digests; or draw scenes of garments, in COCO's form.",
        "googlenet fetch fashion-mnist",
    )
    parser.add_argument("dataset", choices=["fashion-mnist", "scenes"])
    parser.add_argument("--root", help="the folder to look in first for Fashion-MNIST")
    parser.add_argument("--to", metavar="DIR", help="of scenes: the folder to write (default: the cache)")
    parser.add_argument(
        "--scenes", metavar="train=N,test=N,seed=N", help="of scenes: how many (default: train=4000,test=1000,seed=0)"
    )
    args = parser.parse_args(argv)
    if args.dataset == "fashion-mnist" and (args.to or args.scenes):
        parser.error("--to and --scenes are for scenes")
    root, files = _scenes(args.root, args.to, args.scenes or "") if args.dataset == "scenes" else _garments(args.root)
    lines = [f"intact: {file}" for file in files] if args.dataset == "fashion-mnist" else [f"scenes: {root}"]
    answer(args.json, {"root": str(root), "files": [str(file) for file in files]}, lines)


def _garments(root: str | None) -> tuple[Path, list[Path]]:
    from ..data.fashion_mnist import fetched_files, find_fashion_mnist

    found = find_fashion_mnist(root)
    return found, list(fetched_files(found))


def _scenes(root: str | None, to: str | None, asked: str) -> tuple[Path, list[Path]]:
    from ..detection.scenes import Scenes, scenes_folder, write_scenes

    scenes = Scenes.parse(asked)
    if to is None:
        folder = scenes_folder(scenes, root)
        return folder, sorted(path for path in folder.rglob("*") if path.is_file())
    return Path(to), write_scenes(scenes, Path(to), root)
