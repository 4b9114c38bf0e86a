"""``googlenet models`` and ``googlenet summary``: the networks, counted."""

from pathlib import Path

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
    parser.add_argument("model", help="a name that `googlenet models` lists, or a run")
    parser.add_argument("--size", type=int, help="input height and width in pixels (default: the model's own)")
    parser.add_argument("--channels", type=int, help="input channels (default 3; a run has its own)")
    parser.add_argument("--classes", type=int, help="number of classes (default 1000; a run has its own)")
    parser.add_argument("--aux", action="store_true", help="with the auxiliary classifiers (a run has its own)")
    args = parser.parse_args(argv)

    from ..models.catalogue import MODELS, create, spec
    from ..models.summary import alexnet_parameters, summarise
    from ..training.checkpoint import load

    # A name is a name, whatever lies in the folder that it is asked in.
    if args.model not in MODELS and Path(args.model).is_dir():
        if args.aux or args.channels is not None or args.classes is not None:
            raise ValueError("a run has its own channels, classes and heads: leave out --channels, --classes, --aux")
        run = load(args.model)
        network, usual, classes = run.network, run.preprocess.size, len(run.classes)
    else:
        classes = 1000 if args.classes is None else args.classes
        usual = spec(args.model).input_size
        network = create(args.model, classes, 3 if args.channels is None else args.channels, args.aux)
    size = usual if args.size is None else args.size
    counted = summarise(network, size)
    alexnet = alexnet_parameters(classes)
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
        f"AlexNet, for {classes} classes too, has {alexnet:,} parameters: "
        f"{alexnet / counted.parameters:.2f} times as many"
    )
    answer(args.json, document, lines)
