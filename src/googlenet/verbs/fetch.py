"""``googlenet fetch``: data sets, found or downloaded."""

from .command import answer, verb_parser


def fetch(argv: list[str]) -> None:
    """Find or download a data set."""
    parser = verb_parser("fetch", "Find or download a data set; check its digests.", "googlenet fetch fashion-mnist")
    parser.add_argument("dataset", choices=["fashion-mnist"])
    parser.add_argument("--root", help="the folder to look in first")
    args = parser.parse_args(argv)

    from ..data.fashion_mnist import fetched_files, find_fashion_mnist

    root = find_fashion_mnist(args.root)
    files = [str(path) for path in fetched_files(root)]
    answer(args.json, {"root": str(root), "files": files}, [f"intact: {file}" for file in files])
