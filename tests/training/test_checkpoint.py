"""Files on disk: whole or not at all, and never executed."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import googlenet
from googlenet.files import write_atomically
from googlenet.training.checkpoint import (
    Checkpoint,
    load_state,
    load_strictly,
    save_state,
    save_weights,
)


def test_round_trip(smoke_run: Path, tmp_path: Path) -> None:
    first = googlenet.load(smoke_run)
    save_weights(tmp_path / "copy.safetensors", first)
    again = googlenet.load(tmp_path / "copy.safetensors")
    assert (again.preprocess, again.classes, again.recipe, again.metrics) == (
        first.preprocess,
        first.classes,
        first.recipe,
        first.metrics,
    )
    x = torch.randn(4, 1, 16, 16)
    assert torch.equal(first.model(x), again.model(x))


def test_damaged_files_are_told(smoke_run: Path, tmp_path: Path) -> None:
    whole = (smoke_run / "model.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.safetensors: damaged"):
            googlenet.load(cut)
    save_file({"w": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="another program"):
        googlenet.load(tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="no such file"):
        googlenet.load(tmp_path / "missing")
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "recipe.yaml").touch()
    with pytest.raises(ValueError, match="--resume"):
        googlenet.load(tmp_path / "young")


class Malice:
    """Unpickling this would write a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))


def test_code_in_a_pickle_is_never_run(smoke_run: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for name in ("evil.safetensors", "state.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Malice(mark)))
    torch.save({"step": Malice(mark)}, tmp_path / "zip.safetensors")
    for name in ("evil.safetensors", "zip.safetensors"):
        with pytest.raises(ValueError, match="damaged, or not"):
            googlenet.load(tmp_path / name)
    with pytest.raises(ValueError, match="not a state of ours"):
        load_state(tmp_path)
    torch.save({"step": Malice(mark)}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="not a state of ours"):
        load_state(tmp_path)
    assert not mark.exists()


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    save_state(tmp_path, {"step": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_state(tmp_path, {"step": 2})
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}
    with pytest.raises(ValueError, match="not a state of ours"):
        load_state(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, "text")
    assert path.read_text() == "text"


def test_weights_that_do_not_fit_are_listed(smoke_run: Path) -> None:
    tensors = load_file(smoke_run / "model.safetensors")
    model = googlenet.create("googlenet_bn", 10, 1, width=0.25)
    renamed = {k.replace("classifier", "fc"): v for k, v in tensors.items()}
    with pytest.raises(ValueError, match=r"missing classifier.bias; missing classifier.weight; unexpected fc.bias"):
        load_strictly(model, renamed, "file")
    with pytest.raises(ValueError, match=r"classifier.weight is \(10, 256\), not \(4, 256\)"):
        load_strictly(googlenet.create("googlenet_bn", 4, 1, width=0.25), tensors, "file")
    assert isinstance(googlenet.load(smoke_run), Checkpoint)
