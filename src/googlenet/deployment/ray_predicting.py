"""Answers for a large folder, by several workers under Ray Data, as Parquet files: resumable, each picture once.

The pictures are taken in parts of a fixed size, in the order of their names. A worker writes a part's file whole or
not at all, under the part's own name. So a part that is computed again (its worker was killed, or the whole run was)
takes the place of itself, and a run that goes on does the parts that have no file yet.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..evaluation.predict import Answer
from ..files import write_atomically

PART = 256  # pictures
PLAN = "plan.json"
EXTRA = "run: pip install 'googlenet[scale]'"

# Paths -> an answer for each, in order.
Answers = Callable[[Sequence[str]], Iterator[Answer]]


class Summary(NamedTuple):
    """What is in the folder at the end: `pictures`, `problems` among them, `parts`, those that were `resumed`."""

    pictures: int
    problems: int
    parts: int
    resumed: int


def predict_in_parts(
    paths: Sequence[str],
    ready: Callable[[], Answers],
    about: dict[str, Any],
    out: Path,
    workers: int,
    part: int = PART,
) -> Summary:
    """Answer every path and leave ``part-00000.parquet`` and so on in `out`, which may hold parts of an earlier try.

    `ready` is called once in each of the `workers` processes and gives what answers; Ray sends it there. `about` says
    what else the answers depend on (the run, the sizes): a folder begun with another `about`, or other paths, is
    refused. ValueError for that, and where Ray is not installed.

    A row has path, label, probability (of the best class), top (list of label and probability), did, problem.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError(f"--ray needs Ray; {EXTRA}") from None
    if not paths:
        raise ValueError("there are no pictures to answer")
    out.mkdir(parents=True, exist_ok=True)
    _check_plan(out, list(paths), about, part)
    parts = [list(paths[start : start + part]) for start in range(0, len(paths), part)]
    left = [{"part": number, "paths": one} for number, one in enumerate(parts) if not part_file(out, number).exists()]
    if left:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False
        data = ray.data.from_items(left, override_num_blocks=len(left))
        done = data.map_batches(
            _Worker,
            fn_constructor_args=(ready, str(out)),
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
        for _ in done.iter_rows():
            pass
    return _counted(out, len(parts), len(parts) - len(left))


def part_file(out: Path, number: int) -> Path:
    """Where the rows of a part are."""
    return out / f"part-{number:05d}.parquet"


class _Worker:
    """One process: its network, and parts one after the other."""

    def __init__(self, ready: Callable[[], Answers], out: str):
        self.answers, self.out = ready(), Path(out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number, paths in zip(batch["part"], batch["paths"], strict=True):
            rows = [_row(answer) for answer in self.answers([str(path) for path in paths])]
            write_atomically(part_file(self.out, int(number)), _parquet(rows))
        return {"part": batch["part"]}


def _row(answer: Answer) -> dict[str, Any]:
    best = answer.top[0] if answer.top else None
    return {
        "path": answer.path,
        "label": best.label if best else None,
        "probability": best.probability if best else None,
        "top": [guess._asdict() for guess in answer.top],
        "did": answer.did,
        "problem": answer.problem,
    }


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    guess = pa.struct([("label", pa.string()), ("probability", pa.float64())])
    schema = pa.schema(
        [("path", pa.string()), ("label", pa.string()), ("probability", pa.float64()), ("top", pa.list_(guess)),
         ("did", pa.string()), ("problem", pa.string())]
    )  # fmt: skip
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
    return buffer.getvalue()


def _check_plan(out: Path, paths: list[str], about: dict[str, Any], part: int) -> None:
    digest = hashlib.sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest()
    plan = {"pictures": len(paths), "paths": digest, "part": part, **about}
    place = out / PLAN
    if not place.exists():
        if any(out.glob("part-*.parquet")):
            raise ValueError(f"{out}: holds parts, and no {PLAN} that says of what; name another folder")
        write_atomically(place, json.dumps(plan, indent=2))
        return
    try:
        begun = json.loads(place.read_text())
    except ValueError:
        raise ValueError(f"{place}: damaged; name another folder") from None
    differing = [key for key in plan if begun.get(key) != plan[key]]
    if differing:
        raise ValueError(f"{out}: was begun with other {', '.join(differing)}; name another folder")


def _counted(out: Path, parts: int, resumed: int) -> Summary:
    import pyarrow.parquet as pq

    pictures = problems = 0
    for number in range(parts):
        found = pq.read_table(part_file(out, number), columns=["problem"])
        pictures += found.num_rows
        problems += found.num_rows - found["problem"].null_count
    return Summary(pictures, problems, parts, resumed)
