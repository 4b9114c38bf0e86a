"""Every file, entry and sample that a source encounters is used or excluded for a reason."""

import io
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from googlenet.data.accounting import MAX_REASONS, Accounting
from googlenet.data.dataset import Dataset
from googlenet.data.decode import ImageError
from googlenet.data.sources import LoadOptions, load_dataset

PNG = io.BytesIO()
Image.effect_noise((16, 16), 90).save(PNG, "PNG")
CONTENTS = {"image": PNG.getvalue(), "empty": b"", "damaged": PNG.getvalue()[:-60], "text": b"no image"}
FILE_NAMES = st.sampled_from([
    "1.png", "2.PNG", "é.png", "e\u0301 2.png", "scan", "scan.0", "README", "notes.txt", "photo.HEIC", "raw.CR2",
    ".hidden.png", "._1.png", "Thumbs.db", "a.b.png", "line\nbreak.png", "x.jpg~", "Dr. No", "page.pdf",
])  # fmt: skip
FOLDER_NAMES = st.sampled_from([
    "cat", "dog", "caf\u00e9", "cafe\u0301", " cat ", "__MACOSX", ".ipynb_checkpoints", "@eaDir",
    "train", "val", "test1", "Training", "more",
])  # fmt: skip
FOLDERS = st.lists(FOLDER_NAMES, max_size=3).map(tuple)
FILES = st.dictionaries(st.tuples(FOLDERS, FILE_NAMES), st.sampled_from(sorted(CONTENTS)), max_size=12)
# The link's folder and name, and its target: the root, one of its folders, another folder, or nothing.
LINKS = st.lists(
    st.tuples(FOLDERS, st.sampled_from(["link", "link.png"]), st.sampled_from(["root", "own", "cat", "-"]))
)
LAYOUTS = st.sampled_from([(), ("train",), ("train", "val"), ("Training", "Testing"), ("photos", "photos")])
OPTIONS = {"size": 4, "num_workers": 0, "validation": 0.2}


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def count_files(folder: Path, parents: tuple[Path, ...] = ()) -> int:
    """Count the regular files with os.walk, into linked folders unless these contain the link."""
    count = 0
    for path, folders, files in os.walk(folder):
        count += sum(os.path.isfile(os.path.join(path, name)) for name in files)
        for link in (Path(path, name) for name in folders if os.path.islink(os.path.join(path, name))):
            above = {*parents, *(each.resolve() for each in (link, *Path(path, "x").parents)[1:])}
            if link.resolve() not in {*above, *Path(path).resolve().parents}:
                count += count_files(link, tuple(above))
    return count


def load_or_error(source: str) -> tuple[Dataset | None, str]:
    try:
        return load_dataset(source, LoadOptions(**OPTIONS)), ""
    except ValueError as error:
        return None, str(error)


def check(data: Dataset, root: Path) -> None:
    accounting = data.accounting
    assert accounting.encountered("file") == count_files(root)
    assert len(accounting.lines()) <= MAX_REASONS + 1 + len(accounting.notes)
    for (_, reason), exclusion in accounting.excluded.items():
        assert reason and len(exclusion.examples) == min(3, exclusion.count)
        assert "\n" not in reason + "".join(exclusion.examples)
    assert Accounting.from_dict(accounting.to_dict()).lines() == accounting.lines()


def write_classes(root: Path, layout: tuple[str, ...]) -> None:
    """Write two classes with images, once per split."""
    splits = {(): [()], ("photos", "photos"): [layout]}.get(layout, [(name,) for name in layout])
    for split in splits:
        for name in ("bird", "fish"):
            for number in range(2):
                write(root.joinpath(*split, name, f"{number}.png"), CONTENTS["image"])


@settings(max_examples=60)
@given(LAYOUTS, FILES, LINKS)
def test_folders(layout: tuple[str, ...], files: dict[tuple[tuple[str, ...], str], str], links: list[tuple]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        write_classes(root, layout)
        for (folders, name), content in files.items():
            write(root.joinpath(*folders, name), CONTENTS[content])
        for folders, name, target in links:
            folder = root.joinpath(*folders)
            folder.mkdir(parents=True, exist_ok=True)
            targets = {"root": root, "own": folder, "cat": Path(scratch, "cat"), "-": root / "nowhere"}
            write(targets["cat"] / "linked.png", CONTENTS["image"])
            if not os.path.lexists(folder / name):
                (folder / name).symlink_to(targets[target])
        data, error = load_or_error(f"folder:{root}")
        if data is None:
            # A random folder may be ambiguous or have a class without an image: one line names it.
            assert error.startswith(str(root)) and "\n" not in error
            return
        check(data, root)
        splits = (data.train, data.validation, data.test)
        assert data.accounting.used["file"] == sum(map(len, splits))
        assert len({name for split in splits for name in split.names}) == sum(map(len, splits))


ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(["1.png", "1", "val\\2.png", "gone.png", "scan", "e\u0301.png", "sub/3.png", "bad.png"]),
        st.sampled_from(["0", "1", "n01440764", "n01443537", "n99999999"]),
    ),
    unique_by=lambda entry: entry[0].rpartition("\\")[2].partition(".")[0],
    min_size=1,
)


@settings(max_examples=40)
@given(ENTRIES, FILES, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.sampled_from(["\n", "\r\n", "\r"]))
def test_lists(
    entries: list[tuple[str, str]], files: dict[tuple[tuple[str, ...], str], str], encoding: str, line_end: str
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for synset in ("n01440764", "n01443537"):
            write(root / "train" / synset / "1.png", CONTENTS["image"])
        for name in ("1.png", "2.png", "scan", "e\u0301.png", "sub/3.png", "unlisted.png", "notes.md"):
            write(root / "val" / name, CONTENTS["image"])
        write(root / "val" / "bad.png", CONTENTS["damaged"])
        for (folders, name), content in files.items():
            write(root.joinpath("extra", *folders, name), CONTENTS[content])
        write(root / "val.txt", "".join(f"{name} {label}{line_end}" for name, label in entries).encode(encoding))
        data, error = load_or_error(f"imagenet:{root}")
        if data is None:
            assert "none of its images" in error or "no readable image" in error
            return
        check(data, root)
        assert data.accounting.encountered("entry") == len(entries)
        splits = (data.train, data.validation, data.test)
        assert data.accounting.used["file"] == sum(map(len, splits)) + 1, "the images and the list"


MEMBERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["1.png", "1.cls", "2.PNG", "2.cls", "a.b.png", "x/3.png", "x/3.json", "README", "4.txt", "._1.png"]
        ),
        st.sampled_from([b"0", b"1", b"7", b"", b'{"label": 1}', CONTENTS["image"], CONTENTS["damaged"]]),
    )
)


@pytest.mark.slow
@settings(max_examples=40)
@given(MEMBERS, FILES, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_shards(members: list[tuple[str, bytes]], files: dict[tuple[tuple[str, ...], str], str], encoding: str) -> None:
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(Path(scratch, "cache")))
        root = Path(scratch, "shards")
        valid = [(f"v{n}.{suffix}", content) for n in range(2) for suffix, content in (
            ("png", CONTENTS["image"]), ("cls", str(n).encode()))]  # fmt: skip
        write(root / "classes.txt", "a\nb\n".encode(encoding))
        for (folders, name), content in files.items():
            write(root.joinpath(*folders, name), CONTENTS[content])
        with tarfile.open(root / "train-0.tar", "w") as archive:
            for name, content in [*valid, *members]:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        data = load_dataset(f"shards:{root}", LoadOptions(**OPTIONS | {"validation": 0}))
        check(data, root)
        accounting = data.accounting
        assert accounting.used["file"] == 2 and accounting.used["sample"] == len(data.train)
        # A sample is a series of members with one key and different suffixes.
        samples, unnamed, last, suffixes = 0, 0, None, set[str]()
        for name, _ in [*valid, *members]:
            folder, _, file = name.rpartition("/")
            stem, dot, suffix = file.partition(".")
            if not stem or not dot:
                unnamed += 1
                continue
            if (folder, stem) != last or suffix.lower() in suffixes:
                samples, last, suffixes = samples + 1, (folder, stem), set()
            suffixes.add(suffix.lower())
        assert (accounting.encountered("sample"), accounting.encountered("tar member")) == (samples, unnamed)


def test_reasons_are_grouped() -> None:
    accounting = Accounting()
    for number in range(5):
        message = f"damaged image (image file is truncated ({number} bytes not processed))"
        accounting.exclude_unreadable("file", f"/x/{number}.png: {message}", f"/x/{number}.png")
        message = f"/x/{number}0.png: {number}x9 pixels are more than the 100 allowed; resize it first"
        accounting.exclude_unreadable("file", message, f"/x/{number}0.png")
    assert [(reason, item.count) for (_, reason), item in accounting.excluded.items()] == [
        ("damaged image", 5), ("pixels are more than the 100 allowed; resize it first", 5),
    ]  # fmt: skip
    assert "/x/0.png: image file is truncated (0 bytes not processed)" in accounting.lines()[0]
    assert "/x/10.png: 1x9" in accounting.lines()[1]


def test_few_lines_are_printed() -> None:
    accounting = Accounting(notes=["a note"])
    for number in range(MAX_REASONS + 3):
        for _ in range(40 - number):
            accounting.exclude("file", f"unsupported suffix .{number}", "x")
    lines = accounting.lines()
    assert len(lines) == MAX_REASONS + 2 and lines[-1] == "a note"
    assert lines[-2].startswith(f"{28 + 27 + 26} more excluded for 3 other reasons")


@pytest.mark.parametrize(("name", "content", "raises"), [
    ("notes.txt", b"x", False), ("README", b"x", False), ("x.pdf", b"%PDF-1.4", False), (".DS_Store", b"", False),
    ("x.HEIC", b"x", True), ("x.nef", b"x", True), ("x.png", b"x", True), ("scan", CONTENTS["damaged"], True),
])  # fmt: skip
def test_only_files_that_claim_to_be_images_raise(tmp_path: Path, name: str, content: bytes, raises: bool) -> None:
    write_classes(tmp_path, ())
    write(tmp_path / "bird" / name, content)
    options = LoadOptions(**OPTIONS, on_error="raise")
    if raises:
        with pytest.raises(ImageError, match=rf"bird/{name}: ") as error:
            load_dataset(f"folder:{tmp_path}", options)
        assert "\n" not in str(error.value)
    else:
        assert load_dataset(f"folder:{tmp_path}", options).accounting.num_excluded("file") == 1


def test_without_usable_images_the_error_lists_the_reasons(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.nef", b"x")
    write(tmp_path / "b" / "x.txt", b"x")
    with pytest.raises(ValueError, match=r"no readable image.*convert it to JPEG.*unsupported suffix .txt"):
        load_dataset(f"folder:{tmp_path}", LoadOptions(**OPTIONS))
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ValueError, match=r"at least two folders.*found 1.*unsupported suffix .txt"):
        load_dataset(f"folder:{tmp_path}", LoadOptions(**OPTIONS))


def test_labels_count_the_used_images(tmp_path: Path) -> None:
    write_classes(tmp_path, ("train", "val"))
    data = load_dataset(f"folder:{tmp_path}", LoadOptions(**OPTIONS))
    assert Counter(data.train.labels.tolist()) == {0: 2, 1: 2} and torch.equal(
        data.train.labels, data.validation.labels
    )
    assert data.accounting.used == {"file": 8} and not data.accounting.lines()
