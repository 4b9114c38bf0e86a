"""Tar files in WebDataset format, decoded for each batch; and the conversion of class folders to tar files.

Samples are read in place: a step's images depend on its number alone, and interrupted runs resume at the same image.
"""

import glob
import json
import os
import re
import sys
import tarfile
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...files import clean_name, decode_text, read_text
from ..accounting import Accounting
from ..dataset import Dataset, LoadedSplit, LoadOptions, Split, build_dataset, check_headers
from ..decode import SUFFIXES, printable
from ..disk_cache import cache_path, cached_json, download
from ..image_files import exclude_rejected, identify_suffix, scan_folder
from ..lazy import ByteRanges, LazyImages
from . import SEPARATOR, url_scheme
from .folder import image_tree
from .splits import SPLIT_KEYWORDS, SPLITS

CLASS_FILES = ("classes.json", "classes.txt")
MAX_PARALLEL_DOWNLOADS = 4
SHARD_NAMES = {"train": "train", "validation": "val", "test": "test"}  # of the written shards
INDEX_VERSION = 2  # of the cached indices
KEY_AND_SUFFIX = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)


class Sample(NamedTuple):
    """An image in a tar file: the sample's `key`, its first byte, size in bytes, and label (index or name)."""

    key: str
    start: int
    size: int
    label: int | str


class Shard(NamedTuple):
    """A tar file with its samples in order, its damage, and unusable items: (kind, reason, name, is invalid)."""

    path: Path
    samples: list[Sample]
    problems: list[tuple[str, str, str, bool]]
    damage: str


def load(location: str, options: LoadOptions) -> Dataset:
    """Load tar files in WebDataset format.

    `location` is a folder of .tar files, or paths or http(s) URLs with ``{000..099}`` and, for paths, ``*``; several
    are separated by ``::``. A file with a word such as val or test in its name (see `SPLIT_KEYWORDS`) belongs to that
    split, and these files are also found beside ``train`` paths. Shards at URLs are downloaded to the cache. Class
    names are read from ``classes.json`` or ``classes.txt`` beside the shards; otherwise they are the numeric labels.
    Raises ValueError if shards or webdataset are missing.
    """
    if options.in_memory:
        raise ValueError("shards are not loaded into memory: leave data.in_memory unset, or use a folder")
    locations = find_shards(location)
    if not locations["train"]:
        raise ValueError(f"{location}: no training shards; their names must not contain val or test")
    with ThreadPoolExecutor(MAX_PARALLEL_DOWNLOADS) as pool:
        paths = {split: list(pool.map(_local_path, names)) for split, names in locations.items()}
    accounting = Accounting(strict=options.on_error == "raise")
    class_names, class_file = _read_class_names(locations["train"][0])
    _account_for_files(location, [*(path for files in paths.values() for path in files), *class_file], accounting)
    shards = {split: [index_tar(path) for path in files] for split, files in paths.items()}
    for shard in (shard for items in shards.values() for shard in items):
        for kind, reason, name, invalid in shard.problems:
            accounting.exclude(kind, reason, name, invalid=invalid)
        if shard.damage:
            accounting.warn(f"{printable(shard.path)}: {shard.damage}")
    classes = class_names or _numeric_classes(location, shards["train"])
    if len(classes) < 2:
        found = f"found {len(classes)}. {accounting.reasons()}".rstrip(". ")
        raise ValueError(f"{location}: needs at least two classes; {found}")
    options = options.with_max_value(map(_byte_ranges, shards.values()), cached=True)
    loaded = {
        split: _load_split(items, classes, options.of_split(split), f"{location}|{split}", accounting)
        for split, items in shards.items()
    }
    for split, result in loaded.items():
        if shards[split] and not result.split:
            raise ValueError(f"{location}: no readable {split} image. {accounting.reasons()}".rstrip(". "))
    return build_dataset(f"shards:{location}", classes, loaded, accounting, options)


def _account_for_files(location: str, used: Sequence[Path], accounting: Accounting) -> None:
    """Count the shards and the file with the class names, and exclude all other files in the folders of `location`."""
    accounting.use("file", len(set(used)))
    for folder in (Path(item) for item in location.split(SEPARATOR) if not url_scheme(item) and Path(item).is_dir()):
        tree = scan_folder(folder)
        for item in tree.all_rejected():
            if item.path not in used:
                exclude_rejected(item._replace(reason="not a shard", invalid=False), accounting)
        for path in tree.walk():
            accounting.exclude("file", "not a shard", printable(path))


def find_shards(location: str) -> dict[str, list[str]]:
    """Find the paths and URLs of each split's shards; ValueError for a missing file or an unsupported URL."""
    shards = [path for item in location.split(SEPARATOR) for path in _expand(item)]
    splits = {split: [path for path in shards if _split_of(path) == split] for split in SPLITS}
    for split in ("validation", "test"):
        splits[split] = splits[split] or _sibling_shards(splits["train"], split)
    return splits


def _expand(item: str) -> list[str]:
    """List the shards of a folder, a path with ``*`` or ``{000..099}``, or a URL."""
    expand_urls = import_webdataset().shardlists.expand_urls
    if url_scheme(item) not in ("", "http", "https"):
        raise ValueError(f"{item}: shards are read from paths and from http:// or https:// URLs")
    if Path(item).is_dir():
        paths = sorted(glob.glob(os.path.join(glob.escape(item), "*.tar")))
        if not paths:
            raise ValueError(f"{item}: no .tar file in this folder")
        return paths
    try:
        names = expand_urls(item)
    except (AssertionError, ValueError):
        raise ValueError(f"{item}: not a pattern of shards such as train-{{000..099}}.tar") from None
    paths = [path for name in names for path in (sorted(glob.glob(name)) if "*" in name else [name])]
    missing = [path for path in paths if not url_scheme(path) and not Path(path).is_file()]
    if missing or not paths:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"{missing[0] if missing else item}: no such shard{more}")
    return paths


def _split_of(path: str) -> str:
    words = re.split("[^a-z]+", path.rpartition("/")[2].lower())
    return next((SPLIT_KEYWORDS[word] for word in words if SPLIT_KEYWORDS.get(word, "train") != "train"), "train")


def _sibling_shards(train: Sequence[str], split: str) -> list[str]:
    """Find the shards of another split beside training shards whose names contain train."""
    prefixes = {path.rpartition("train")[0] for path in train if "train" in Path(path).name and not url_scheme(path)}
    keywords = [word for word, name in SPLIT_KEYWORDS.items() if name == split]
    return sorted({
        path
        for prefix in prefixes
        for keyword in keywords
        for path in glob.glob(f"{glob.escape(prefix)}{keyword}*.tar")
        if _split_of(path) == split
    })  # fmt: skip


def _cached_download(url: str) -> Path | None:
    """Return the cached file of `url`, downloaded on the first call; None if the server does not have it."""
    address, _, query = url.partition("?")
    base, _, name = address.rpartition("/")
    path = cache_path("shards", f"{base}|{query}".encode(), "") / name
    return path if path.exists() or download(url, path) else None


def _local_path(shard: str) -> Path:
    """Return a shard as a file, which is downloaded to the cache if it is at a URL."""
    path = _cached_download(shard) if url_scheme(shard) else Path(shard)
    if path is None:
        raise ValueError(f"{shard}: no such shard on the server")
    return path


def index_tar(path: Path) -> Shard:
    """Index a tar file in WebDataset format, where the files of a sample share the name before the first dot.

    A sample has an image, and a label in ``cls``, or in ``json`` as ``label`` or ``cls``. The index is cached until
    the file changes. Raises ValueError if the file is not an uncompressed tar file.
    """
    status = path.stat()
    key = f"{INDEX_VERSION}|{path.absolute()}|{status.st_size}|{status.st_mtime_ns}"
    samples, problems, damage = cached_json("indices", os.fsencode(key), lambda: _read_index(path))
    return Shard(path, [Sample(*sample) for sample in samples], problems, damage)


def _read_index(path: Path) -> tuple[list[Sample], list[tuple[str, str, str, bool]], str]:
    members: list[tarfile.TarInfo] = []
    samples: list[Sample] = []
    problems: list[tuple[str, str, str, bool]] = []
    shard, damage = printable(path), ""
    try:
        with tarfile.open(path, "r:") as tar:
            try:
                members.extend(tar)
            except tarfile.TarError as error:
                damage = f"damaged after {len(members)} files, the others are lost ({error})"
            for key, files in _group_by_key(members):
                name = f"{shard}/{printable(key)}"
                if not files:
                    problems.append(("tar member", "not a file named KEY.SUFFIX", name, False))
                    continue
                try:
                    image = _find_image(files)
                    samples.append(Sample(key, image.offset_data, image.size, _read_label(tar, files)))
                except (ValueError, tarfile.TarError) as error:
                    problems.append(("sample", str(error), name, True))
    except tarfile.TarError:
        raise ValueError(
            f"{path}: not a tar file, or a compressed one; decompress it, because shards are read in place"
        ) from None
    return samples, problems, damage


def _group_by_key(members: Sequence[tarfile.TarInfo]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Yield the key of each sample and its files by suffix; no files for a member that belongs to no sample.

    As in webdataset, the files of a sample follow each other, and the key ends at the first dot of the file's name.
    """
    current, files = "", dict[str, tarfile.TarInfo]()
    for member in members:
        if member.isdir():
            continue
        match = KEY_AND_SUFFIX.fullmatch(member.name) if member.isreg() else None
        key, suffix = (match[1], match[2].lower()) if match else (member.name, "")
        if files and (key != current or suffix in files):
            yield current, files
            files = {}
        if suffix:
            current = key
            files[suffix] = member
        else:
            yield key, {}
    if files:
        yield current, files


def _find_image(files: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    """Return the image of a sample; ValueError if it has none."""
    image = next((files[suffix] for suffix in files if f".{suffix}" in SUFFIXES), None)
    if image is None:
        if dotted := next((suffix for suffix in files if f".{suffix.rpartition('.')[2]}" in SUFFIXES), None):
            # The suffix of the message is that of all samples of the kind, so they are one reason.
            kind = dotted.rpartition(".")[2]
            raise ValueError(
                f"no image: a key ends at the first dot of the name, so the suffix is not .{kind} but starts at that "
                "dot; replace the other dots"
            )
        raise ValueError("no image next to its label: the files of a sample must follow each other in the tar file")
    return image


def _read_label(tar: tarfile.TarFile, files: dict[str, tarfile.TarInfo]) -> int | str:
    label: Any = None
    if "cls" in files:
        label = decode_text(_read_member(tar, files["cls"])).strip()
    elif "json" in files:
        try:
            metadata = json.loads(decode_text(_read_member(tar, files["json"])))
        except (ValueError, RecursionError):
            raise ValueError("invalid json") from None
        if isinstance(metadata, dict):
            label = next((metadata[key] for key in ("label", "cls") if key in metadata), None)
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ValueError("no label next to its image: neither cls nor a json with label")
    if isinstance(label, str):
        label = clean_name(label)
    return int(label) if isinstance(label, str) and re.fullmatch(r"\d{1,9}", label) else label


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # a regular file
    return file.read()


def _read_class_names(shard: str) -> tuple[tuple[str, ...], list[Path]]:
    """Read the class names beside `shard`; return them and their file, both empty if no file lists them."""
    for name in CLASS_FILES:
        path = _cached_download(urllib.parse.urljoin(shard, name)) if url_scheme(shard) else Path(shard).parent / name
        if path is None or not path.is_file():
            continue
        text = read_text(path)
        try:
            names = json.loads(text) if name.endswith(".json") else text.rstrip().split("\n")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON ({error})") from None
        if isinstance(names, dict):
            names = [names.get(str(index)) for index in range(len(names))]
        items = names if isinstance(names, list) else [None]
        valid = [clean_name(item) for item in items if isinstance(item, str) and item.strip()]
        classes = tuple(dict.fromkeys(valid))
        if len(classes) < len(items):
            raise ValueError(f"{path}: must list each class once: a line each, a JSON list, or {{'0': name, ...}}")
        return classes, [path]
    return (), []


def _numeric_classes(location: str, shards: Sequence[Shard]) -> tuple[str, ...]:
    labels = {sample.label for shard in shards for sample in shard.samples}
    if names := sorted(label for label in labels if isinstance(label, str)):
        raise ValueError(
            f"{location}: labels are names, such as {names[0]!r}: list all in a classes.txt beside the shards"
        )
    return tuple(str(number) for number in range(max((int(label) for label in labels), default=-1) + 1))


def _byte_ranges(shards: Sequence[Shard]) -> ByteRanges:
    """Return the positions of all samples."""
    rows = [(file, sample.start, sample.size) for file, shard in enumerate(shards) for sample in shard.samples]
    files, starts, sizes = np.array(rows, np.int64).reshape(-1, 3).T
    return ByteRanges(np.array([os.fsencode(s.path) for s in shards], np.bytes_), files.astype(np.int32), starts, sizes)


def _load_split(
    shards: Sequence[Shard], classes: tuple[str, ...], options: LoadOptions, cache_key: str, accounting: Accounting
) -> LoadedSplit:
    """Return the usable samples of a split."""
    class_indices = {name: index for index, name in enumerate(classes)} | {n: n for n in range(len(classes))}
    rows, labels, names = [], [], []
    for file, shard in enumerate(shards):
        for sample in shard.samples:
            name = f"{printable(shard.path.name)}/{printable(sample.key)}"
            if sample.label in class_indices:
                rows.append((file, sample.start, sample.size))
                labels.append(class_indices[sample.label])
                names.append(name)
            else:
                label = f"{name}: {sample.label!r}"
                accounting.exclude("sample", f"label not among the {len(classes)} classes", label, invalid=True)
    files, starts, sizes = np.array(rows, np.int64).reshape(-1, 3).T
    paths = np.array([os.fsencode(shard.path) for shard in shards], np.bytes_)
    ranges = ByteRanges(paths, files.astype(np.int32), starts, sizes)
    images = LazyImages(ranges, options.storage, options.workers, full_size=options.full_size)
    split = Split(images, torch.tensor(labels, dtype=torch.int64), names)
    return check_headers(split, "sample", cache_key, accounting)


def write_shards(folder: str | Path, out: str | Path, per_shard: int = 1000, seed: int = 0) -> list[Path]:
    """Pack class folders (see `folder.load`) into tar files for ``shards:OUT``; return their paths.

    Writes ``train-000000.tar``, ... (and ``val-...``, ``test-...`` for these splits) of `per_shard` images each, and
    ``classes.json``. Files are stored unchanged, in a random order drawn from `seed`, so that a sequential reader of
    a shard sees all classes. The bytes are reproducible, and `out`, which must not exist, appears when it is complete.
    Files that are not used are named on standard error.
    """
    target, tree = Path(out), image_tree(Path(folder))
    if per_shard < 1:
        raise ValueError(f"per_shard must be 1 or more, not {per_shard}")
    if target.exists():
        raise ValueError(f"{target}: exists already; choose another folder")
    shard_writer = import_webdataset().ShardWriter
    for line in tree.accounting.lines():
        print(line, file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        partial = Path(scratch, "shards")
        partial.mkdir()
        for split, files in tree.files.items():
            if not files:
                continue
            order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed)).tolist()
            # webdataset formats the pattern with %, so a % in the path is escaped.
            pattern = f"{partial}/{SHARD_NAMES[split]}".replace("%", "%%") + "-%06d.tar"
            with shard_writer(pattern, per_shard, float("inf"), verbose=0, encoder=False, mtime=0) as writer:
                for number, index in enumerate(order):
                    path, label = files[index]
                    suffix = identify_suffix(path).removeprefix(".")
                    writer.write({"__key__": f"{number:08d}", suffix: path.read_bytes(), "cls": str(label).encode()})
        (partial / CLASS_FILES[0]).write_text(json.dumps(tree.classes, indent=2) + "\n")
        partial.replace(target)
    return sorted(target.glob("*.tar"))


def import_webdataset() -> Any:
    """Import webdataset; ValueError with the installation command if it is missing."""
    try:
        import webdataset
    except ImportError:
        raise ValueError("shards require webdataset: pip install 'googlenet[scale]'") from None
    return webdataset
