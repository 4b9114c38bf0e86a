"""``googlenet models``: list the networks."""

from .common import make_parser, print_result


def run(argv: list[str]) -> None:
    """Print the registry of networks."""
    from ..models.registry import MODELS

    args = make_parser("models", "List the networks.", "googlenet models --json").parse_args(argv)
    rows = [{"name": name, **spec._asdict()} for name, spec in MODELS.items()]
    for row in rows:
        del row["module"]
    width = max(map(len, MODELS)) + 2
    header = f"{'name':<{width}}{'parameters':>12}{'MACs':>16}{'input':>7}{'min':>6}  paper"
    layout = f"{{name:<{width}}}{{parameters:>12,}}{{macs:>16,}}{{input_size:>7}}{{min_size:>6}}  {{paper}}"
    lines = [layout.format(**row) for row in rows]
    note = "For 1000 classes and RGB images of the input size, without auxiliary heads. Sizes in pixels."
    print_result(args.json, rows, [header, *lines, note])
