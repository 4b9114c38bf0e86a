"""``googlenet evaluate``: measure a trained network at one or several image sizes, or by the ILSVRC14 protocol."""

import argparse

from .common import CommandParser, add_data_arguments, add_engine_arguments, add_tta_arguments, int_list, make_parser


def run(argv: list[str]) -> None:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_usage(parser, args)

    from ..evaluation.predictor import predictor_device
    from ..inference.loading import load_predictor
    from ..kernels import keep_freed_memory
    from .evaluate_detection import evaluate_detection, unsupported_argument
    from .evaluate_multicrop import evaluate_multicrop
    from .evaluate_multilabel import evaluate_multilabel, unsupported_multilabel_argument
    from .evaluate_sizes import evaluate_sizes

    model = load_predictor(args.run, args.engine, args.threads, size=max(args.sizes) if args.sizes else args.size)
    keep_freed_memory(predictor_device(model.predictor).type)
    if model.task == "detection":
        if message := unsupported_argument(args):
            parser.error(message)
        return evaluate_detection(args, model)
    if model.task == "multilabel":
        if message := unsupported_multilabel_argument(args):
            parser.error(message)
        return evaluate_multilabel(args, model)
    if model.checkpoint is None and (args.sizes or args.crops or args.ensemble or args.precise_bn is not None):
        raise ValueError(
            f"{args.run}: an exported folder is evaluated at one --size, and its normalization is fixed; for --sizes, "
            "--crops, --ensemble and --precise-bn name the run"
        )
    return evaluate_multicrop(args, model) if args.crops or args.ensemble else evaluate_sizes(args, model)


def build_parser() -> CommandParser:
    """Return the argument parser."""
    parser = make_parser(
        "evaluate",
        "Measure a trained network or an ensemble: at one image size, at several sizes and averaged over them, or\n"
        "with the multi-crop protocol of ILSVRC14.",
        "googlenet evaluate runs/demo --sizes 24,28,32 --split validation",
    )
    add = parser.add_argument
    add("run", help="a run, ensemble or exported folder, a .safetensors file, or published weights such as "
        "torchvision:googlenet")  # fmt: skip
    add_data_arguments(parser)
    add_tta_arguments(parser)
    add("--crops", type=int_list, metavar="1,10,144",
        help="average this many crops of each image as in ILSVRC14; 1 is the center crop of the run")  # fmt: skip
    add("--ensemble", nargs="+", default=[], metavar="RUN",
        help="more networks: compare each with the first, and average the probabilities of all")  # fmt: skip
    add("--group", metavar="COLUMN", help="also report the images of each value of a column of the data's table")
    add("--calibrate", action="store_true",
        help="fit a temperature on the validation split and plot the reliability of the evaluated split")  # fmt: skip
    add("--precise-bn", type=int, metavar="N",
        help="with --size or --sizes: recompute the batch normalization statistics at each size from N batches of "
        "training images (0: all)")  # fmt: skip
    add("--out", metavar="DIR", help="folder for plots (default: the run's folder)")
    add_engine_arguments(parser)
    return parser


def check_usage(parser: CommandParser, args: argparse.Namespace) -> None:
    """Exit with status 2 if options contradict each other."""
    multi = args.crops or args.ensemble
    tta = args.sizes or args.tta_flip or args.tta_shift
    precise_bn = args.precise_bn is not None
    for is_wrong, message in (
        (args.out and not (args.sizes or args.calibrate), "--out requires --sizes or --calibrate"),
        (precise_bn and multi, "--precise-bn requires --size or --sizes, without --crops and --ensemble"),
        (precise_bn and args.precise_bn < 0, "--precise-bn must be 0 or more"),
        (args.engine and (args.sizes or multi or precise_bn),
         "--engine cannot be combined with --sizes, --crops, --ensemble and --precise-bn"),
        (args.crops and not set(args.crops) <= {1, 10, 144}, "--crops must be of 1, 10 and 144"),
        (args.crops and tta, "--crops cannot be combined with --sizes, --tta-flip and --tta-shift"),
        (args.ensemble and tta, "--ensemble cannot be combined with --sizes, --tta-flip and --tta-shift"),
        (args.group and multi, "--group cannot be combined with --crops and --ensemble"),
        (args.calibrate and multi, "--calibrate cannot be combined with --crops and --ensemble"),
        (args.calibrate and args.split == "validation",
         "--calibrate fits on the validation split: evaluate another one, such as --split test"),
    ):  # fmt: skip
        if is_wrong:
            parser.error(message)
