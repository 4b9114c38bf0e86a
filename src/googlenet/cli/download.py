"""``googlenet download``: find or download a data set and verify it."""

from .common import make_parser, print_result


def run(argv: list[str]) -> None:
    """Find or download the files and print their paths."""
    parser = make_parser(
        "download",
        "Find a data set on this machine or download it, and verify the SHA-256 digests of its files.",
        "googlenet download fashion-mnist",
    )
    parser.add_argument("name", choices=["fashion-mnist"], help="name of the data set")
    parser.add_argument("--data-root", metavar="DIR", help="folder to search first")
    args = parser.parse_args(argv)

    from ..data.sources.fashion_mnist import find_fashion_mnist, list_files

    root = find_fashion_mnist(args.data_root)
    files = list_files(root)
    document = {"root": str(root), "files": [str(file) for file in files]}
    print_result(args.json, document, [f"verified: {file}" for file in files])
