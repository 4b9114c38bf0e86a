"""``googlenet evaluate --crops`` and ``--with``: the paper's table, and several runs beside each other."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .command import answer, chosen_sizes
from .data_of_run import data_of_run, few, split_of

if TYPE_CHECKING:
    from ..data.dataset import Split
    from ..evaluation.metrics import Outputs
    from ..training.checkpoint import Checkpoint


def by_protocol(args: argparse.Namespace, checkpoints: "list[Checkpoint]") -> None:
    """The paper's table: one network and all of them, by the number of crops; and the runs beside each other."""
    from ..data.loader import evaluation_batches
    from ..evaluation.figures import figures
    from ..evaluation.metrics import collect
    from ..evaluation.progress import Progress, counted
    from ..evaluation.protocol import Member, crop_outputs, layout, table, together
    from ..evaluation.scales import check_sizes
    from ..evaluation.significance import mcnemar, right
    from ..models.ensemble import networks_of
    from ..training.devices import pick_device

    first, runs = checkpoints[0], [args.run, *args.others]
    for path, other in zip(args.others, checkpoints[1:], strict=True):
        if other.classes != first.classes:
            raise ValueError(f"{path} knows the classes {few(other.classes)}, {args.run} {few(first.classes)}")
    device, kinds = pick_device("auto"), args.crops or [1]
    networks, run_of = [], []
    for run, checkpoint in enumerate(checkpoints):
        base = chosen_sizes(args, checkpoint.preprocess.size)[0]
        check_sizes(checkpoint.model, [base])
        for network in networks_of(checkpoint.model):
            networks.append((Member(network.to(device).eval(), checkpoint.preprocess), base))
            run_of.append(run)
    made: dict[Any, tuple[str, Split]] = {}

    def pictures(member: Member, base: int) -> "tuple[str, Split]":
        """Those of the first run's split, made as this network wants them."""
        wanted = (member.preprocess, base)
        if wanted not in made:
            made.clear()
            like = replace(first, preprocess=member.preprocess)
            data = data_of_run(like, base, source=args.data, root=args.root, limit=args.limit, whole=bool(args.crops))
            made[wanted] = split_of(data, args.split)
        return made[wanted]

    answers: dict[int, list[Outputs]] = {crops: [] for crops in kinds}
    name, split = pictures(*networks[0])
    with Progress(len(networks) * len(split.labels) * sum(kinds)) as progress:
        for number, (member, base) in enumerate(networks, start=1):
            _, split = pictures(member, base)
            for crops in kinds:
                progress.at(f"network {number} of {len(networks)}, {crops} crop{'s' if crops > 1 else ''}")
                if crops == 1:
                    batches = counted(evaluation_batches(split, member.preprocess, base), progress.advance)
                    found = collect(member.model, batches, device)
                else:
                    found = crop_outputs(member, split, base, crops, args.average, progress.advance)
                answers[crops].append(found)

    asked = table(answers, args.average)
    document = {
        **figures(asked[-1].outputs, first.classes),
        "split": name,
        "average": args.average,
        "table": [{**each.cell._asdict(), "interval": list(each.cell.interval)} for each in asked],
    }
    lines = [f"{name}, {document['images']:,} pictures", *layout([each.cell for each in asked])]
    if len(asked) > 1:
        test = mcnemar(right(asked[0].outputs), right(asked[-1].outputs))
        document["gain"] = {"top1": asked[-1].cell.top1 - asked[0].cell.top1, **test._asdict()}
        lines.append(f"the first cell against the last: {test}")
    document["mcnemar"] = []
    for crops, each in answers.items() if len(runs) > 1 else ():
        by_run = [
            together([one for one, owner in zip(each, run_of, strict=True) if owner == run], args.average)
            for run in range(len(runs))
        ]
        for path, theirs in zip(args.others, by_run[1:], strict=True):
            test = mcnemar(right(by_run[0]), right(theirs))
            document["mcnemar"].append({"run": path, "crops": crops, **test._asdict()})
            lines.append(f"{args.run} against {path}, {crops} crop{'s' if crops > 1 else ''}: {test}")
    answer(args.json, document, lines)
