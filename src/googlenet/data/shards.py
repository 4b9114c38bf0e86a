"""Tar files in webdataset's form -> a data set that is read from the disk as it is used; and a folder -> tar files.

Each sample is read in place, so a step's pictures are a function of its number, as with any other source, and a run
that was interrupted goes on at the same picture.
"""

import json
import os
import re
import shutil
import sys
import tempfile
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from .assembly import assemble
from .checked import Read, checked_split
from .dataset import Dataset, Split, Unreadable
from .folder import SPLITS, picture_tree, printable
from .pictures import PictureError
from .preprocess import Fit, Preprocess
from .stream import Places, Stream
from .tar_index import Index, fetch, index_tar, webdataset

BETWEEN = "::"
CLASSES = ("classes.json", "classes.txt")
AT_ONCE = 4
WORDS = {"val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
PREFIX = {"train": "train", "validation": "val", "test": "test"}


def load_shards(
    place: str,
    *,
    validation: float,
    size: int,
    fit: Fit = "crop",
    channels: int | None = None,
    unreadable: Unreadable = "skip",
    seed: int = 0,
    workers: int = 0,
) -> Dataset:
    """The samples of the tar files that `place` names, decoded by `workers` processes when they are used.

    `place` is a folder of .tar files, or paths or http(s) URLs with ``{000..099}`` and, for paths, ``*``; several are
    joined by ``::``. A file with the word val, valid, validation or test in its name is of that split; those beside
    ``train`` paths are found without being named. Shards at URLs are first brought into the cache, whole. Class
    names are read from ``classes.json`` or ``classes.txt`` beside the shards, else they are the numbers. The other
    arguments are those of `load_folder`; samples that cannot be used are skipped or refused like its files. Raises
    ValueError for a place without shards, for a missing library, and for labels that no class has.
    """
    shards = find_shards(place)
    if not shards["train"]:
        raise ValueError(f"{place}: no training shards there; their names must not say val or test")
    local = {split: _on_disk(paths) for split, paths in shards.items()}
    names = _class_names(shards["train"][0])
    indices = {split: [(path, index_tar(path)) for path in paths] for split, paths in local.items()}
    classes = names or _numbers(place, [index for _, index in indices["train"]])
    if len(classes) < 2:
        raise ValueError(f"{place}: needs two classes at least; found {len(classes)}")
    kept = channels or 3
    geometry = Preprocess(size, kept, (0.0,) * kept, (1.0,) * kept, fit=fit)
    read = {
        split: _read(found, classes, geometry, unreadable, workers, f"{place}|{split}")
        for split, found in indices.items()
    }
    skipped = tuple(chain.from_iterable(found.skipped for found in read.values()))
    for split, found in read.items():
        if shards[split] and not found.split:
            raise ValueError(f"{place}: no {split} picture that can be read. {'; '.join(skipped[:3])}".rstrip(". "))
    data = assemble(
        f"shards:{place}", classes, read, skipped, channels=channels, validation=validation, seed=seed
    )  # fmt: skip
    if data.validation and not shards["validation"]:
        held, count = len(data.validation.labels), len(read["train"].split.labels)
        print(
            f"{place}: no validation shards; {held:,} of the {count:,} training pictures are held out",
            file=sys.stderr,
        )
    return data


def absolute_shards(place: str, root: str | None = None) -> str:
    """`place` with its paths made absolute; `root` is what they are relative to."""
    return BETWEEN.join(
        part if _scheme(part) else str(Path(root or "", Path(part).expanduser()).absolute())
        for part in place.split(BETWEEN)
    )


def find_shards(place: str) -> dict[str, list[str]]:
    """The paths and URLs of each split's shards; ValueError where there are none, or of a kind that is not read."""
    expand = webdataset().shardlists.expand_urls
    found: list[str] = []
    for part in place.split(BETWEEN):
        if _scheme(part) not in ("", "http", "https"):
            raise ValueError(f"{part}: shards are read from paths and from http:// or https:// URLs")
        if Path(part).is_dir():
            here = sorted(glob(os.path.join(glob_escape(part), "*.tar")))
            if not here:
                raise ValueError(f"{part}: no .tar file in this folder")
        else:
            try:
                named = expand(part)
            except (AssertionError, ValueError):
                raise ValueError(f"{part}: not a pattern of shards; write train-{{000..099}}.tar") from None
            here = [path for name in named for path in (sorted(glob(name)) if "*" in name else [name])]
            missing = [path for path in here if not _scheme(path) and not Path(path).is_file()]
            if missing or not here:
                first = missing[0] if missing else part
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                raise ValueError(f"{first}: no such shard{more}")
        found += here
    shards = {split: [path for path in found if _split(path) == split] for split in SPLITS}
    for split in ("validation", "test"):
        shards[split] = shards[split] or _beside(shards["train"], split)
    return shards


def glob_escape(path: str) -> str:
    """`path` as a pattern that matches nothing else."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _scheme(part: str) -> str:
    """``https`` of a URL, ``pipe`` of pipe:..., nothing of a path."""
    return re.match(r"(?:(\w+):(?=//)|(pipe|file):|)", part).expand(r"\1\2") if part else ""  # type: ignore[union-attr]


def _split(path: str) -> str:
    words = re.split("[^a-z]+", path.rpartition("/")[2].lower())
    return next((WORDS[word] for word in words if word in WORDS), "train")


def _beside(train: Sequence[str], split: str) -> list[str]:
    """The shards of another split in the folders of training shards whose names say train."""
    starts = {path.rpartition("train")[0] for path in train if "train" in Path(path).name and not _scheme(path)}
    words = [word for word, which in WORDS.items() if which == split]
    return sorted({
        path
        for start in starts
        for word in words
        for path in glob(f"{glob_escape(start)}{word}*.tar")
        if _split(path) == split
    })  # fmt: skip


def _on_disk(shards: Sequence[str]) -> list[Path]:
    """The shards as files: those at URLs brought into the cache first, a few at once."""

    def one(shard: str) -> Path:
        path = fetch(shard) if _scheme(shard) else Path(shard)
        if path is None:
            raise ValueError(f"{shard}: no such shard on the server")
        return path

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, shards))


def _class_names(shard: str) -> tuple[str, ...]:
    """The names in the classes file beside `shard`; none where there is no such file."""
    for name in CLASSES:
        if _scheme(shard):
            path = fetch(urllib.parse.urljoin(shard, name))
        else:
            path = Path(shard).parent / name
        if path is None or not path.is_file():
            continue
        try:
            text = path.read_text()
            names = json.loads(text) if name.endswith(".json") else text.split("\n")
        except ValueError as error:
            raise ValueError(f"{path}: cannot be read ({error})") from None
        if isinstance(names, dict):
            names = [names.get(str(number)) for number in range(len(names))]
        names = (
            [name.strip() if isinstance(name, str) else name for name in names] if isinstance(names, list) else [None]
        )
        while names and names[-1] == "":
            names.pop()
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise ValueError(f"{path}: must list each class once: a line each, a JSON list, or {{'0': name, ...}}")
        return tuple(names)
    return ()


def _numbers(place: str, indices: Sequence[Index]) -> tuple[str, ...]:
    labels = {sample.label for index in indices for sample in index.samples}
    if words := sorted(label for label in labels if isinstance(label, str)):
        raise ValueError(
            f"{place}: labels are names, such as {words[0]!r}: list all in a classes.txt beside the shards"
        )
    return tuple(str(number) for number in range(max((int(label) for label in labels), default=-1) + 1))


def _read(
    shards: Sequence[tuple[Path, Index]],
    classes: tuple[str, ...],
    geometry: Preprocess,
    unreadable: Unreadable,
    workers: int,
    source: str,
) -> Read:
    """The samples of a split that can be used."""
    numbers = {name: number for number, name in enumerate(classes)} | {n: n for n in range(len(classes))}
    rows, labels, names, problems = [], [], [], []
    for number, (path, index) in enumerate(shards):
        problems += index.problems
        for sample in index.samples:
            name = f"{printable(path.name)}/{sample.key}"
            if sample.label in numbers:
                rows.append((number, sample.start, sample.size))
                labels.append(numbers[sample.label])
                names.append(name)
            else:
                problems.append(f"{name}: no class {sample.label!r} among the {len(classes)}")
    if problems and unreadable == "refuse":
        raise PictureError(problems[0])
    file, start, size = np.array(rows, np.int64).reshape(-1, 3).T
    paths = np.array([os.fsencode(path) for path, _ in shards], np.bytes_)
    stream = Stream(Places(paths, file.astype(np.int32), start, size), geometry, workers)
    read = checked_split(Split(stream, torch.tensor(labels, dtype=torch.int64), names), unreadable, source)
    return read._replace(skipped=[*problems, *read.skipped])


def write_shards(folder: str | Path, out: str | Path, per_shard: int = 1000, seed: int = 0) -> list[Path]:
    """Pack a class-per-folder tree (see `load_folder`) into tar files that ``shards:OUT`` reads; returns their paths.

    Writes ``train-000000.tar``, ... (``val-...``, ``test-...`` where the tree has them), `per_shard` pictures
    each, and ``classes.json``. Files are packed as they are, in an order drawn from `seed`, so that whoever reads a
    shard from its beginning meets all classes. The same tree gives the same bytes. `out` appears whole or not at all;
    ValueError where it is there already, for a tree that cannot be used, and for a `per_shard` under 1.
    """
    target, tree = Path(out), picture_tree(Path(folder))
    if per_shard < 1:
        raise ValueError(f"per_shard must be 1 or more, not {per_shard}")
    if target.exists():
        raise ValueError(f"{target}: exists already; name another folder")
    wds = webdataset()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        for split, files in tree.files.items():
            if not files:
                continue
            order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
            # The library prints what it writes, and takes its pattern for a format.
            pattern = f"{partial}/{PREFIX[split]}".replace("%", "%%") + "-%06d.tar"
            with wds.ShardWriter(
                pattern, maxcount=per_shard, maxsize=float("inf"), verbose=0, encoder=False, mtime=0
            ) as writer:
                for number, row in enumerate(order):
                    path, label = files[row]
                    suffix = path.suffix.lower().removeprefix(".")
                    writer.write({"__key__": f"{number:08d}", suffix: path.read_bytes(), "cls": str(label).encode()})
        names = [printable(name) for name in tree.classes]
        (partial / CLASSES[0]).write_text(json.dumps(names, indent=2) + "\n")
        os.chmod(partial, 0o755)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return sorted(target.glob("*.tar"))
