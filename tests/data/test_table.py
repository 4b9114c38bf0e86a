"""Tables of images: formats, columns, splits, folds, paths, and what is excluded."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import googlenet
from googlenet.data.accounting import Accounting
from googlenet.data.decode import ImageError
from googlenet.data.sources import LoadOptions, load_dataset
from googlenet.data.table_file import find_column, read_table, sort_classes

OPTIONS = LoadOptions(size=8, num_workers=0)
LEVELS = {"cat": 40, "dog": 120, "eel": 200}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with photos/0.png .. photos/11.png, whose gray level tells the class (number modulo 3)."""
    (tmp_path / "photos").mkdir()
    for number in range(12):
        level = list(LEVELS.values())[number % 3]
        Image.new("RGB", (9, 7), (level, level, number)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def rows_of(count: int = 12, name: str = "photos/{}.png") -> list[dict[str, Any]]:
    splits = ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    return [
        {
            "path": name.format(n),
            "label": list(LEVELS)[n % 3],
            "split": splits[n],
            "fold": n % 2,
            "patient": f"p{n // 3}",
        }
        for n in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pandas.DataFrame(rows)
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t")
        case ".parquet":
            frame.to_parquet(path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_formats(photos: Path, suffix: str, in_memory: bool) -> None:
    file = write(photos / f"labels.{suffix}", rows_of())
    options = LoadOptions(size=8, num_workers=0, in_memory=in_memory)
    data = load_dataset(f"table:{file}", options)
    assert data.classes == tuple(LEVELS)
    assert data.fold_column == "fold"
    assert [len(split) for split in (data.train, data.validation, data.test)] == [6, 3, 3]
    for split in (data.train, data.validation, data.test):
        pixels = next(iter(split.pixels([np_range(len(split))])))
        assert pixels[:, 0, 4, 4].tolist() == [list(LEVELS.values())[label] for label in split.labels]
        # The columns are those of the image's own row.
        numbers = pixels[:, 2, 4, 4].tolist()
        assert split.columns["path"].tolist() == [f"photos/{number}.png" for number in numbers]
        assert split.columns["patient"].tolist() == [f"p{number // 3}" for number in numbers]
        assert [Path(name).stem for name in split.names] == [str(number) for number in numbers]
    assert data.accounting.used == {"entry": 12, "file": 12}
    assert not data.skipped


def np_range(count: int) -> Any:
    import torch

    return torch.arange(count)


def test_columns_by_usual_names_or_given(photos: Path) -> None:
    rows = [{"Image ID": n, "Diagnosis": "x" if n % 2 else "y", "age": n, "kFold": n % 3} for n in range(12)]
    data = load_dataset(f"table:{write(photos / 'a.csv', rows)}", OPTIONS)
    assert data.classes == ("x", "y") and data.fold_column == "kFold"
    given = LoadOptions(size=8, label_column="age", fold_column="Diagnosis", validation=0)
    data = load_dataset(f"table:{photos / 'a.csv'}", given)
    assert data.classes == tuple(map(str, range(12))), "integers are ordered by value"
    assert data.fold_column == "Diagnosis"
    # The only column without another role has the labels.
    rows = [{"file": f"{n}.png", "weather": "sun" if n % 2 else "rain", "set": "train"} for n in range(12)]
    assert load_dataset(f"table:{write(photos / 'b.csv', rows)}", OPTIONS).classes == ("rain", "sun")


def test_a_fold_is_held_out(photos: Path) -> None:
    file = write(
        photos / "labels.csv", [row | {"split": "test" if n == 11 else "train"} for n, row in enumerate(rows_of())]
    )
    data = load_dataset(f"table:{file}", LoadOptions(size=8, validation_fold="1"))
    assert set(data.validation.columns["fold"]) == {"1"} and set(data.train.columns["fold"]) == {"0"}
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 5, 1)
    with pytest.raises(ValueError, match=r"no row has the fold '7' in 'fold'; folds: 0, 1"):
        load_dataset(f"table:{file}", LoadOptions(size=8, validation_fold="7"))
    rows = [{key: row[key] for key in ("path", "label")} for row in rows_of()]
    with pytest.raises(ValueError, match="data.validation_fold needs a column of folds: --data.fold_column"):
        load_dataset(f"table:{write(photos / 'b.csv', rows)}", LoadOptions(size=8, validation_fold="1"))


def test_paths(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Relative to the table, absolute, outside its folder, with backslashes, and as file names without suffix."""
    outside = tmp_path_factory.mktemp("outside") / "o.png"
    Image.new("RGB", (9, 7), (200, 200, 99)).save(outside)
    (photos / "photos" / "sub").mkdir()
    for name in ("0.png", "café.png"):
        Image.new("RGB", (9, 7), (40, 40, 55)).save(photos / "photos" / "sub" / name)
    named = [
        "photos/0.png",
        "./photos/1.png",
        str(photos / "photos" / "2.png"),
        "photos\\3.png",
        "4",
        "5.png",
        "/6.png",
    ]
    named += [str(outside), "sub/0.png", "cafe\u0301.png", "sub\\0", "nothing.png", "", "../photos/9.png", "0"]
    rows = [{"path": name, "label": "ab"[n % 2]} for n, name in enumerate(named)]
    data = load_dataset(f"table:{write(photos / 'labels.csv', rows)}", LoadOptions(size=8, validation=0))
    used = {text: Path(name).name for text, name in zip(data.train.columns["path"], data.train.names, strict=True)}
    assert used == {
        text: Path(text.replace("\\", "/")).name for text in named[:4]
    } | {"4": "4.png", "5.png": "5.png", "/6.png": "6.png", str(outside): "o.png", "sub/0.png": "0.png",
         "cafe\u0301.png": "café.png"}  # fmt: skip
    excluded = {
        reason: exclusion.count for (kind, reason), exclusion in data.accounting.excluded.items() if kind == "entry"
    }
    assert excluded == {
        "lists the image of an earlier row again": 1, "its image does not exist": 2, "no image in column 'path'": 1,
        "names several images: give the path": 1,
    }  # fmt: skip


def test_every_row_and_image_is_accounted_for(photos: Path) -> None:
    rows = rows_of(10)
    rows += [
        {"path": "photos/10.png", "label": "", "split": "test", "fold": "", "patient": ""},
        {"path": "photos/3.png", "label": "cat", "split": "test", "fold": "", "patient": ""},
        {"path": "photos/broken.png", "label": "cat", "split": "train", "fold": "", "patient": ""},
        {"path": "photos/gone.png", "label": "cat", "split": "train", "fold": "", "patient": ""},
        {"path": "photos/11.png", "label": "fox", "split": "test", "fold": "", "patient": ""},
    ]
    rows[0]["split"] = "later"
    (photos / "photos" / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (5, 5)).save(photos / "photos" / "unlisted.png")
    (photos / "notes.txt").write_text("not an image")
    file = write(photos / "labels.csv", rows)
    with file.open("a") as lines:
        lines.write("photos/1.png,cat\n\n")
    data = load_dataset(f"table:{file}", OPTIONS)
    reasons = {(kind, reason): exclusion.count for (kind, reason), exclusion in data.accounting.excluded.items()}
    broken = next(reason for kind, reason in reasons if kind == "file" and "not an image" in reason)
    assert reasons == {
        ("entry", "does not have 5 fields"): 1, ("entry", "no label"): 1, ("entry", "its image does not exist"): 1,
        ("entry", "lists the image of an earlier row again"): 1, ("entry", "of a class without training images"): 1,
        ("entry", "unknown split 'later': use train, validation or test"): 1,
        ("file", "in no used row of labels.csv"): 4, ("file", broken): 1,
    }  # fmt: skip
    assert data.accounting.encountered("entry") == 16, "all lines but the header and the empty one"
    assert data.accounting.encountered("file") == 14, "the images, and the file that claims to be one"
    with pytest.raises(ImageError, match="line 16: photos/gone.png: its image does not exist|unknown split|5 fields"):
        load_dataset(f"table:{file}", LoadOptions(size=8, on_error="raise"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n", "has no rows"),
        ("", "an empty file"),
        ("path,label,label\n1.png,a,b\n", "two columns have the name 'label'; rename one"),
        ("a,b,c\n1,2,3\n", "which column has the image? Choose one with --data.image_column; the columns are a, b, c"),
        (
            "path,x,y1\n1.png,2,3\n",
            "which column has the label? Choose one with --data.label_column; the columns are x, y1",
        ),
        ("path,label\n1.png,a\n2.png,a\n", "needs at least two classes in column 'label'; found 1"),
        ("path,label,split\n1.png,a,x\n2.png,b,y\n", "needs at least two classes in column 'label'; found 0. 1 entry"),
        ("path,label\n/nothing/1.png,a\n/nothing/2.png,b\n", "found 0. 2 entries excluded: its image does not exist"),
        ('path,label\n1.png,"a' + "x" * 200_000, "line 2 cannot be read (field larger than field limit (131072))"),
        ("<!DOCTYPE html>\n<html></html>", "an HTML page instead of the file: download it again"),
    ],
)
def test_invalid_tables(photos: Path, text: str, message: str) -> None:
    file = photos / "labels.csv"
    file.write_text(text)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        load_dataset(f"table:{file}", OPTIONS)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_invalid_files(photos: Path) -> None:
    for name, content in {"a.parquet": b"PAR1 not parquet", "b.xlsx": b"x", "c.jsonl": b"[1]\nnothing\n"}.items():
        (photos / name).write_bytes(content)
    for name, message in {
        "a.parquet": "not a Parquet file", "b.xlsx": "a table must be a file with the suffix .csv, .tsv, ",
        "c.jsonl": "has no rows. 2 entries excluded: not a JSON object", "none.csv": "no such file",
        "": "a folder; name a file in it",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message) as raised:
            load_dataset(f"table:{photos / name}", OPTIONS)
        assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=r"no column 'labl' \(did you mean label\?\); the columns are path, label"):
        load_dataset(f"table:{write(photos / 'd.csv', rows_of())}", LoadOptions(size=8, label_column="labl"))
    write(photos / "e.jsonl", [{"path": f"photos/{n}.png", "label": ["a", "b"]} for n in range(3)])
    with pytest.raises(ValueError, match="but an image has one class: choose another --data.label_column"):
        load_dataset(f"table:{photos / 'e.jsonl'}", OPTIONS)


def test_columns_of_a_source_without_columns(photos: Path) -> None:
    with pytest.raises(ValueError, match="has no columns, so data.label_column does not apply"):
        load_dataset(f"folder:{photos}", LoadOptions(label_column="x"))


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(
    st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6),
    st.sampled_from([(".csv", ","), (".csv", ";"), (".tsv", "\t")]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_any_text_is_read_as_written(
    tmp_path: Path, rows: list[tuple[str, ...]], form: tuple[str, str], encoding: str, end: str
) -> None:
    """Python's own writer is the reference, with any delimiter, encoding and line end; empty rows are left out."""
    file = tmp_path / f"t{form[0]}"
    with file.open("w", newline="", encoding=encoding) as stream:
        csv.writer(stream, delimiter=form[1], lineterminator=end).writerows([("path", "label", "x y"), *rows])
    expected = [row for row in rows if any(row)]
    if not expected:
        with pytest.raises(ValueError, match="has no rows"):
            read_table(file, Accounting())
        return
    table = read_table(file, Accounting())
    assert list(table.columns) == ["path", "label", "x y"]
    assert list(zip(*table.columns.values(), strict=True)) == expected


@settings(max_examples=20)
@given(st.lists(st.one_of(st.integers(-(10**6), 10**6).map(str), st.text(max_size=4)), min_size=1, max_size=6))
def test_classes_are_unique_and_ordered(names: list[str]) -> None:
    classes = sort_classes(names)
    assert set(classes) == set(names) and len(set(classes)) == len(classes)
    if all(name.lstrip("-").isascii() and name.lstrip("-").isdigit() for name in names):
        assert [int(name) for name in classes] == sorted(int(name) for name in set(names))
    else:
        assert list(classes) == sorted(set(names))


def test_the_first_usual_name_wins() -> None:
    assert find_column(["id", "Label", "File-Name", "CLASS"], "image", None, "t") == "File-Name"
    assert find_column(["id", "CLASS", "Label"], "label", None, "t") == "Label"
    assert find_column(["id"], "split", None, "t") is None


def test_missing_values_of_other_formats(photos: Path) -> None:
    """Parquet stores integers with missing values as floats: 1.0 is class 1."""
    rows = [{"path": f"photos/{n}.png", "label": None if n == 3 else float(n % 2)} for n in range(8)]
    data = load_dataset(f"table:{write(photos / 'a.parquet', rows)}", OPTIONS)
    assert data.classes == ("0", "1")
    assert data.accounting.excluded["entry", "no label"].count == 1
    assert np.isin(data.train.columns["label"].astype(float), [0.0, 1.0]).all()


@pytest.mark.slow
def test_train_and_evaluate(photos: Path) -> None:
    """The options of the columns reach training and evaluation, and the recipe of the run has them."""
    file = write(
        photos / "labels.csv", [{("was" if k == "label" else k): v for k, v in row.items()} for row in rows_of()]
    )
    run = photos.parent / f"{photos.name}-run"
    flags = ["--image-size", 32, "--epochs", 1, "--batch_size", 4, "--model.width_mult", 0.25, "--data.val_split", 0]
    done = googlenet("train", "fashion-mnist-smoke", "--data", f"table:{file}", "--data.label_column", "was",
                     "--data.validation_fold", 0, *flags, "--out", run)  # fmt: skip
    assert done.code == 0, done.err
    text = (run / "recipe.yaml").read_text()
    assert "label_column: was" in text and "validation_fold: '0'" in text
    for split, count in (("validation", 6), ("test", 3)):
        done = googlenet("evaluate", run, "--split", split, "--json")
        assert done.code == 0, done.err
        assert done.json["images"] == count
    assert json.loads((run / "environment.json").read_text())["data"]["used"] == {"entry": 12, "file": 12}
