"""``googlenet models`` and ``googlenet summary``: the networks, counted."""

from .command import answer, verb_parser


def models(argv: list[str]) -> None:
    """List the networks of the family."""
    from ..models.catalogue import MODELS

    args = verb_parser("models", "List the networks of the family.", "googlenet models --json").parse_args(argv)
    rows = [
        {key: value for key, value in entry._asdict().items() if key != "home"} | {"name": name}
        for name, entry in MODELS.items()
    ]
    wide = max(map(len, MODELS)) + 2
    head = f"{'name':<{wide}}{'parameters':>12}{'multiply-adds':>16}{'input':>7}{'least':>7}  paper"
    table = [
        f"{r['name']:<{wide}}{r['parameters']:>12,}{r['macs']:>16,}{r['input_size']:>7}{r['min_size']:>7}"
        f"  {r['paper']}"
        for r in rows
    ]
    note = "Counted for 1000 classes, RGB, at the input size, without auxiliary heads. Sizes in pixels."
    answer(args.json, rows, [head, *table, note])


def summary(argv: list[str]) -> None:
    """Count a network layer by layer."""
    parser = verb_parser(
        "summary",
        "Layer table of a network: output shapes, parameters, multiply-adds, receptive fields.",
        "googlenet summary googlenet_d2l --size 96 --channels 1 --classes 10",
    )
    parser.add_argument("model", help="a name that `googlenet models` lists")
    parser.add_argument("--size", type=int, help="input height and width in pixels (default: the model's own)")
    parser.add_argument("--channels", type=int, default=3, help="input channels (default 3)")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes (default 1000)")
    parser.add_argument("--aux", action="store_true", help="with the auxiliary classifiers")
    args = parser.parse_args(argv)

    from ..models.catalogue import create, spec
    from ..models.summary import alexnet_parameters, summarise

    size = spec(args.model).input_size if args.size is None else args.size
    counted = summarise(create(args.model, args.classes, args.channels, args.aux), size)
    alexnet = alexnet_parameters(args.classes)
    document = {
        "model": args.model,
        "size": size,
        "parameters": counted.parameters,
        "macs": counted.macs,
        "alexnet_parameters": alexnet,
        "alexnet_ratio": round(alexnet / counted.parameters, 3),
        "stages": [{"name": name, "output": list(output)} for name, output in counted.stages],
        "layers": [row._asdict() for row in counted.rows],
    }
    head = f"{'layer':<20}{'output':<22}{'parameters':>12}{'multiply-adds':>16}{'receptive field':>17}"
    lines = [head]
    for row in counted.rows:
        shape = " x ".join(str(n) for n in row.output)
        lines.append(f"{row.name:<20}{shape:<22}{row.parameters:>12,}{row.macs:>16,}{row.receptive_field:>17,}")
    lines.append(f"{'total':<42}{counted.parameters:>12,}{counted.macs:>16,}")
    lines.append(
        f"AlexNet, for {args.classes} classes too, has {alexnet:,} parameters: "
        f"{alexnet / counted.parameters:.2f} times as many"
    )
    answer(args.json, document, lines)
