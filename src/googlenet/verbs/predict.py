"""``googlenet predict``: pictures to classes."""

import json
import sys

from ..errors import FailedError
from .asked_run import add_engine, asked_run
from .command import add_sizes, chosen_sizes, verb_parser
from .predict_in_parts import add_ray, predict_in_parts


def predict(argv: list[str]) -> None:
    """Classify pictures."""
    parser = verb_parser(
        "predict",
        "Classify pictures: files, folders, or - for one on standard input.",
        "googlenet predict runs/demo photo.jpg holiday/ --top 3",
    )
    parser.add_argument(
        "run",
        help="a run, ensemble or exported folder, a .safetensors file, or published weights such as "
        "torchvision:googlenet",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture file, a folder, or -")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to name (default 5)")
    add_sizes(parser)
    add_engine(parser)
    add_ray(parser)
    args = parser.parse_args(argv)
    if args.top < 1:
        parser.error("--top must be 1 or more")
    if args.ray != bool(args.out) or (args.workers is not None and (not args.ray or args.workers < 1)):
        parser.error("--ray goes with --out DIR, and --workers, 1 or more, with --ray")

    from ..evaluation.predict import expand, predict_pictures
    from ..evaluation.scales import check_sizes
    from ..training.devices import pick_device

    checkpoint = asked_run(args.run, args.engine, args.threads, "classification")
    sizes = chosen_sizes(args, checkpoint.preprocess.size)
    check_sizes(checkpoint.model, sizes, args.shift)
    if args.ray:
        predict_in_parts(args, sizes)
        return
    answers = predict_pictures(
        checkpoint.model.to(pick_device("auto")),
        checkpoint.preprocess,
        checkpoint.classes,
        expand(args.images),
        top=args.top,
        sizes=sizes,
        flip=args.flip,
        shift=args.shift,
    )
    documents, problems = [], []
    for answer in answers:
        if answer.problem:
            problems.append(answer.problem)
            print(f"googlenet predict: {answer.problem}", file=sys.stderr)
            continue
        documents.append({"path": answer.path, "top": [t._asdict() for t in answer.top], "did": answer.did})
        if not args.json:
            best = "  ".join(f"{t.label} {t.probability:.3f}" for t in answer.top)
            print(f"{answer.path}: {best}\n  ({answer.did})")
    if args.json:
        print(json.dumps(documents, indent=2))
    if problems:
        total = len(problems) + len(documents)
        raise FailedError(f"{len(problems)} of {total} pictures could not be used" if total > 1 else "")
