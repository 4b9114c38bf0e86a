"""Replacing folders with rollback, and pruning caches."""

import os
import time
from pathlib import Path

import pytest
import torch

import googlenet
from googlenet.config.schema import Recipe
from googlenet.files import CACHE_GRACE_S, CACHE_MAX_AGE_S, prune_cache, replace_folder
from googlenet.inference import engine_selection


def folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


@pytest.mark.parametrize("failures", [1, 2])
def test_a_failed_replacement_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Whichever of the two renames fails."""
    new, target = folder(tmp_path / "new", "new"), folder(tmp_path / "target", "old")
    rename, calls = Path.rename, []

    def failing(self: Path, other: Path) -> Path:
        calls.append(self)
        if len(calls) == failures:
            raise OSError("disk error")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk error"):
        replace_folder(new, target, tmp_path / "backup")
    assert (target / "file").read_text() == "old"
    monkeypatch.undo()
    replace_folder(new, target, tmp_path / "backup")
    assert ((target / "file").read_text(), (tmp_path / "backup" / "file").read_text()) == ("new", "old")


def test_pruning_by_size_and_age(tmp_path: Path) -> None:
    now = time.time()
    entries = {"expired": CACHE_MAX_AGE_S + 60, "oldest": 9e4, "kept": 8e4, "older": 7e4, "recent": CACHE_GRACE_S / 2}
    for name, age in entries.items():
        path = tmp_path / name
        if name == "oldest":
            (folder(path, "x" * 60) / "more").write_text("x" * 40)
        else:
            path.write_text("x" * 100)
        os.utime(path, (now - age, now - age))
    prune_cache(tmp_path, 10_000_000, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"oldest", "kept", "older", "recent"}
    os.utime(tmp_path / "oldest", (now - 9e4, now - 9e4))
    size = sum(file.stat().st_size for path in tmp_path.iterdir() for file in (path, *path.glob("*")))
    prune_cache(tmp_path, size - 1, tmp_path / "kept")
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "older", "recent"}
    prune_cache(tmp_path, 0, tmp_path / "kept")
    assert {path.name for path in tmp_path.iterdir()} == {"kept", "recent"}
    prune_cache(tmp_path / "missing", 0, tmp_path)


@pytest.mark.parametrize("winner", ["other", "damaged", "none"])
def test_two_processes_export_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winner: str) -> None:
    """The files of the first one stay, because it may have opened them; a damaged folder is replaced."""
    model = googlenet.create("googlenet_d2l", 2, 1, width_mult=0.25)
    preprocess = googlenet.Preprocess(32, 1, (0.5,), (0.5,))
    checkpoint = googlenet.Checkpoint(model, preprocess, ("a", "b"), Recipe(), {})
    target = tmp_path / "cache" / "digest"

    def export(_: object, __: object, out: Path, *___: object) -> object:
        folder(out, "ours")
        (out / "model.json").write_text("ours")
        if winner != "none":
            folder(target, "theirs")
        if winner == "other":
            (target / "model.json").write_text("theirs")
        return type("Result", (), {"folder": out})

    monkeypatch.setattr(engine_selection, "export", export)
    engine_selection._export_to_cache(checkpoint, target, ["onnx"], None)
    assert (target / "model.json").read_text() == ("theirs" if winner == "other" else "ours")
    assert [path.name for path in target.parent.iterdir()] == ["digest"]
    assert torch.is_tensor(next(model.parameters()))
