"""Files on disk: written atomically, and read without executing code."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import googlenet
from googlenet.checkpoint.format import Checkpoint, load_strictly, write_checkpoint
from googlenet.checkpoint.train_state import read_train_state, write_train_state
from googlenet.files import write_atomically


def test_round_trip(smoke_run: Path, tmp_path: Path) -> None:
    first = googlenet.load(smoke_run)
    write_checkpoint(tmp_path / "copy.safetensors", first)
    again = googlenet.load(tmp_path / "copy.safetensors")
    assert (again.preprocess, again.classes, again.recipe, again.metrics) == (
        first.preprocess,
        first.classes,
        first.recipe,
        first.metrics,
    )
    x = torch.randn(4, 1, 16, 16)
    assert torch.equal(first.model(x), again.model(x))


def test_damaged_files_are_reported(smoke_run: Path, tmp_path: Path) -> None:
    content = (smoke_run / "model.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 5, 200, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
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


class Malicious:
    """Unpickling this would write a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))


def test_code_in_a_pickle_is_not_executed(smoke_run: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for name in ("evil.safetensors", "state.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Malicious(mark)))
    torch.save({"step": Malicious(mark)}, tmp_path / "zip.safetensors")
    for name in ("evil.safetensors", "zip.safetensors"):
        with pytest.raises(ValueError, match="damaged, or not"):
            googlenet.load(tmp_path / name)
    with pytest.raises(ValueError, match="not a training state"):
        read_train_state(tmp_path)
    torch.save({"step": Malicious(mark)}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="not a training state"):
        read_train_state(tmp_path)
    assert not mark.exists()


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    write_train_state(tmp_path, {"step": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_train_state(tmp_path, {"step": 2})
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}
    with pytest.raises(ValueError, match="not a training state"):
        read_train_state(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, "text")
    assert path.read_text() == "text"


def test_mismatched_weights_are_listed(smoke_run: Path) -> None:
    tensors = load_file(smoke_run / "model.safetensors")
    model = googlenet.create_model("googlenet_bn", 10, 1, width_mult=0.25)
    renamed = {k.replace("classifier", "fc"): v for k, v in tensors.items()}
    with pytest.raises(ValueError, match=r"missing classifier.bias; missing classifier.weight; unexpected fc.bias"):
        load_strictly(model, renamed, "file")
    with pytest.raises(ValueError, match=r"classifier.weight is \(10, 256\), not \(4, 256\)"):
        load_strictly(googlenet.create_model("googlenet_bn", 4, 1, width_mult=0.25), tensors, "file")
    assert isinstance(googlenet.load(smoke_run), Checkpoint)
