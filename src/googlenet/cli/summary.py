"""``googlenet summary``: the layers of a network with parameters and operations."""

from pathlib import Path

from .common import make_parser, print_result


def run(argv: list[str]) -> None:
    """Print the layer table of a network."""
    parser = make_parser(
        "summary",
        "Layer table of a network: output shapes, parameters, multiply-accumulate operations, receptive fields.",
        "googlenet summary googlenet_d2l --size 96 --channels 1 --classes 10",
    )
    parser.add_argument("model", help="a name from `googlenet models`, or a run")
    parser.add_argument("--size", type=int, help="input height and width in pixels (default: the model's)")
    parser.add_argument("--channels", type=int, help="input channels (default 3; a run has its own)")
    parser.add_argument("--classes", type=int, help="number of classes (default 1000; a run has its own)")
    parser.add_argument("--aux", action="store_true", help="with the auxiliary classifiers (a run has its own)")
    args = parser.parse_args(argv)

    from ..checkpoint.load import load
    from ..models.factory import create_model
    from ..models.registry import MODELS, get_model_spec
    from ..models.summary import alexnet_parameters, summary

    # A model's name has priority over a folder of the same name.
    if args.model not in MODELS and Path(args.model).is_dir():
        if args.aux or args.channels is not None or args.classes is not None:
            raise ValueError("a run has its own channels, classes and heads: omit --channels, --classes and --aux")
        checkpoint = load(args.model)
        network, default_size, classes = checkpoint.network, checkpoint.preprocess.size, len(checkpoint.classes)
    else:
        classes = 1000 if args.classes is None else args.classes
        default_size = get_model_spec(args.model).input_size
        network = create_model(args.model, classes, 3 if args.channels is None else args.channels, args.aux)
    size = default_size if args.size is None else args.size
    result = summary(network, size)
    alexnet = alexnet_parameters(classes)
    document = {
        "model": args.model, "size": size, "parameters": result.parameters, "macs": result.macs,
        "alexnet_parameters": alexnet, "alexnet_ratio": round(alexnet / result.parameters, 3),
        "stages": [{"name": name, "output": list(output)} for name, output in result.stages],
        "layers": [row._asdict() for row in result.layers],
    }  # fmt: skip
    lines = [f"{'layer':<20}{'output':<22}{'parameters':>12}{'MACs':>16}{'receptive field':>17}"]
    for row in result.layers:
        shape = " x ".join(str(n) for n in row.output)
        lines.append(f"{row.name:<20}{shape:<22}{row.parameters:>12,}{row.macs:>16,}{row.receptive_field:>17,}")
    lines.append(f"{'total':<42}{result.parameters:>12,}{result.macs:>16,}")
    ratio = f"{alexnet / result.parameters:.2f} times as many"
    lines.append(f"AlexNet with {classes} classes has {alexnet:,} parameters: {ratio}")
    print_result(args.json, document, lines)
