"""``googlenet export``: the folder, its files in their engines, int8, and its examples where nothing of ours is."""

import json
import shutil
import subprocess
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import googlenet as package
from conftest import BuildOnce, googlenet
from googlenet.cli import main
from googlenet.data.dataset import Split
from googlenet.data.preprocess import Preprocess
from googlenet.data.sources import load_dataset
from googlenet.deployment.asked import outputs
from googlenet.deployment.engines import open_engine
from googlenet.deployment.export import Pictures, Trained, export
from googlenet.deployment.quantise import QUANTISERS, Calibration, calibration, quantise
from googlenet.errors import FailedError
from googlenet.evaluation.metrics import scores
from googlenet.training.checkpoint import Checkpoint
from servers import in_thread, without

QUICK = ("onnxruntime", "openvino", "ncnn")
ENGINES = (pytest.param("torch", marks=pytest.mark.slow), *QUICK)


@pytest.fixture(scope="session")
def folder(smoke_run: Path, build_once: BuildOnce) -> Path:
    """A trained grey network in three formats, with int8."""
    return build_once("exported", lambda out: write(smoke_run, "onnx,openvino,ncnn", out))


@pytest.fixture(scope="session")
def whole(smoke_run: Path, build_once: BuildOnce) -> Path:
    """The same in every format; PyTorch's takes as long as the three others together."""
    return build_once("exported-whole", lambda out: write(smoke_run, "onnx,openvino,ncnn,torch", out))


def write(run: Path, formats: str, out: Path) -> None:
    done = googlenet(
        "export", run, "--to", formats, "--int8", "--max-drop", "0.1", "--calibration", "60",
        "--limit", "200", "--threads", "1", "--out", out, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["max_error"] < 1e-4
    assert {Path(file).name for file in done.json["files"]} == {path.name for path in out.iterdir()}
    assert done.json["top1"] == json.loads((out / "model.json").read_text())["accuracy"]["float32"]["top1"]


def folder_of(request: pytest.FixtureRequest, engine: str) -> Path:
    found: Path = request.getfixturevalue("whole" if engine == "torch" else "folder")
    return found


@pytest.fixture(scope="module")
def test_pictures() -> Split:
    return load_dataset("fashion-mnist", validation=0, limit=100).test


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """By Pillow, as the examples do it."""
    small = [Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return torch.from_numpy(np.stack([np.asarray(picture)[None] for picture in small]))


def as_trained(run: Checkpoint, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return run.network(run.preprocess.normalise(pixels.float()))


@pytest.mark.parametrize("name", ENGINES)
def test_engines_answer_as_the_network(
    name: str, request: pytest.FixtureRequest, smoke_run: Path, test_pictures: Split
) -> None:
    """At other sizes and batches than the file was traced with, and from several threads at once."""
    folder = folder_of(request, name)
    run = package.load(smoke_run)
    engine = open_engine(folder, f"{name}:float32", threads=1)
    assert (engine.name, engine.classes, engine.preprocess) == (name, run.classes, run.preprocess)
    for height, width, count in ((16, 16, 7), (28, 28, 1), (23, 31, 3)):
        pixels = test_pictures.images.repeat(1, 1, 2, 2)[:count, :, :height, :width]
        expected = as_trained(run, pixels)
        torch.testing.assert_close(engine(pixels), expected, rtol=1e-5, atol=1e-4)
    for _ in range(20):  # often enough to be compiled for the shape, where an engine does so
        again = engine(pixels)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-4)
    parts = torch.split(test_pictures.images[:40], 5)
    found: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda place=place, part=part: found.update({place: engine(part)}))
        for place, part in enumerate(parts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = torch.cat([found[place] for place in range(len(parts))])
    torch.testing.assert_close(together, as_trained(run, test_pictures.images[:40]), rtol=1e-5, atol=1e-4)


def test_the_parity_report_has_every_engine_size_and_batch(folder: Path) -> None:
    rows = json.loads((folder / "parity.json").read_text())["rows"]
    cases = {(row["engine"], row["height"], row["width"], row["batch"]) for row in rows}
    sides = [(16, 16), (2, 2), (17, 27)]
    assert cases == {(name, *side, batch) for name in QUICK for side in sides for batch in (1, 7)}
    assert max(row["max_error"] for row in rows) < 1e-4


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_int8(name: str, folder: Path, smoke_run: Path, test_pictures: Split) -> None:
    """The int8 file answers unless float32 is asked for; it is smaller, and its accuracy is written down."""
    about = json.loads((folder / "model.json").read_text())
    pixels = resized(test_pictures.images, 16)
    found = open_engine(folder, name, 1)(pixels)
    assert torch.equal(found, open_engine(folder, f"{name}:int8", 1)(pixels))
    gap = (found - open_engine(folder, f"{name}:float32", 1)(pixels)).abs()
    assert gap.max() > 1e-3
    # The smoke run's network is hardly trained, and far from robust; a good one loses nothing (docs/deploy.md).
    right = scores(outputs(open_engine(folder, name, 1), load_dataset("fashion-mnist", validation=0, limit=200).test))
    assert right["top1"] == about["accuracy"][f"{name}:int8"]["top1"] > 0.2
    sizes = [
        sum((folder / file).stat().st_size for file in about["engines"][key]["files"])
        for key in (name, f"{name}:int8")
    ]
    assert sizes[1] < 0.5 * sizes[0]
    lost = about["int8"]["engines"][name]["drop"]
    assert lost == about["accuracy"]["float32"]["top1"] - about["accuracy"][f"{name}:int8"]["top1"]


def test_int8_puts_the_layers_that_hurt_most_back_to_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose int8 layers each disturb the logits by a known amount, ten classes and a hundred pictures."""
    hurt = {"conv1": 0.0, "inception_3a": 3.0, "inception_4a": 0.5, "inception_5b": 2.0, "classifier": 1.0}
    labels = torch.arange(100) % 10
    exact = torch.nn.functional.one_hot(labels, 10).float()
    # Ten pictures each are right by a margin of 1, 2, ..., 10: noise beyond its margin makes a picture wrong.
    exact *= 1 + (torch.arange(100) // 10).float().unsqueeze(1)
    written: list[list[str]] = []

    def write(folder: Path, pictures: torch.Tensor, kept: list[str]) -> list[str]:
        written.append(list(kept))
        return [f"but {','.join(kept)}"]

    def opened(engine: str, files: list[str]) -> object:
        if not files:
            return lambda part: exact[part[:, 0, 0, 0].long()]
        kept = files[0].removeprefix("but ").split(",")
        noise = sum(value for layer, value in hurt.items() if layer not in kept)
        wrong = noise * torch.nn.functional.one_hot((labels + 1) % 10, 10)
        return lambda part: (exact + wrong)[part[:, 0, 0, 0].long()]

    monkeypatch.setitem(QUANTISERS, "onnxruntime", write)
    rows = torch.arange(100).view(-1, 1, 1, 1)
    chosen = Calibration(rows[:5], rows, labels)
    # All int8: noise 6.5, so margins 1 to 6 are wrong: 0.6. Without 3a it is 3.5, without 5b too 1.5: 0.1.
    made = quantise("onnxruntime", tmp_path, chosen, list(hurt), 0.14, opened)
    assert (made.kept, made.judged_drop) == (["inception_3a", "inception_5b"], pytest.approx(0.1))
    assert written[0] == [] and written[-1] == ["inception_3a", "inception_5b"]
    assert sorted(written[1:6]) == sorted([layer] for layer in hurt), "each is measured alone, once"
    # Three quarters of what may be lost: 0.1 is within 0.14, and not within 0.13.
    assert quantise("onnxruntime", tmp_path, chosen, list(hurt), 0.13, opened).kept[2:] == ["classifier"]


def test_int8_that_loses_too_much_is_refused(folder: Path, smoke_run: Path, tmp_path: Path) -> None:
    data = load_dataset("fashion-mnist", validation=0, limit=60)
    made = calibration(data.train, package.load(smoke_run).preprocess, 20)
    assert len(made.ranges) == 20 and len(made.judged) == 40
    work = tmp_path / "lossy"
    shutil.copytree(folder, work)

    def opened(engine: str, files: list[str]) -> object:
        return open_engine(folder, f"{engine}:{'int8' if files else 'float32'}", 1)

    with pytest.raises(FailedError, match="1 of 1 layers in float32"):
        quantise("onnxruntime", work, made, ["classifier"], -2.0, opened)


@pytest.mark.parametrize("name", ENGINES)
def test_examples_need_nothing_of_ours(
    name: str, request: pytest.FixtureRequest, test_pictures: Split, tmp_path: Path
) -> None:
    """A copy of the folder, elsewhere, names 100 pictures as the engine does here (PyTorch, which is slow, 25)."""
    folder = folder_of(request, name)
    shutil.copytree(folder, tmp_path / "copy")
    files = []
    images = test_pictures.images[: 25 if name == "torch" else 100]
    for number, pixels in enumerate(images):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels[0].numpy()).save(files[-1])
    refused = {"googlenet", *(() if name == "torch" else ("torch",))}
    command = without(refused, tmp_path / "copy" / f"predict_{name}.py")
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = [line.split(": ")[1].rsplit(" ", 1)[0] for line in done.stdout.splitlines()]
    engine = open_engine(folder, f"{name}:float32", 1)
    small = resized(images, engine.preprocess.size)
    assert named == [engine.classes[place] for place in engine(small).argmax(1).tolist()]


@pytest.mark.slow
def test_predict_and_evaluate_ask_engines(
    whole: Path,
    smoke_run: Path,
    test_pictures: Split,
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of an exported folder and of a run; `auto` measures once and remembers."""
    Image.fromarray(test_pictures.images[0, 0].numpy()).save(tmp_path / "picture.png")

    def said(*arguments: object) -> object:
        assert main([str(word) for word in arguments] + ["--json"]) == 0
        return json.loads(capsys.readouterr().out)

    (expected,) = said("predict", smoke_run, tmp_path / "picture.png")
    for place, engine in ((whole, "onnxruntime:float32"), (smoke_run, "torch"), (smoke_run, "onnxruntime")):
        (found,) = said("predict", place, tmp_path / "picture.png", "--engine", engine, "--threads", 1)
        assert [top["label"] for top in found["top"]] == [top["label"] for top in expected["top"]]
        np.testing.assert_allclose(
            [top["probability"] for top in found["top"]], [top["probability"] for top in expected["top"]], atol=0.02
        )
    exact = said("evaluate", smoke_run, "--limit", 200)
    found = said("evaluate", whole, "--limit", 200, "--threads", 1)  # auto
    assert abs(found["top1"] - exact["top1"]) < 0.05
    (kept,) = (cache / "googlenet" / "engines").iterdir()
    chosen = json.loads(kept.read_text())
    assert set(chosen["seconds"]) == {"torch", "onnxruntime:int8", "openvino:int8", "ncnn"}
    kept.write_text(json.dumps({"engine": "ncnn"}))
    assert open_engine(whole, "auto", 1).name == "ncnn"


@pytest.mark.slow
def test_colours_softmax_and_normalisation_across_channels(test_pictures: Split, tmp_path: Path) -> None:
    """The paper's own network, in colour, with softmax inside: parity is what `export` holds it to."""
    grey = test_pictures.images[:7].repeat(1, 1, 2, 2)
    pictures = torch.cat([grey, 255 - grey, grey.flip(-1)], dim=1)
    preprocess = Preprocess(40, 3, (123 / 255, 117 / 255, 104 / 255), (1 / 255,) * 3)
    model = package.create("googlenet", 5, width=0.25).eval()
    trained = Trained("googlenet", model, preprocess, tuple("abcde"))
    done = export(
        trained, Pictures(pictures), tmp_path / "out", ["onnx", "openvino", "ncnn"], softmax=True, threads=1
    )
    assert done.max_error < 1e-4 and done.top1 is None
    for name in ("onnxruntime", "openvino", "ncnn"):
        logits = open_engine(done.folder, name, 1)(pictures)
        torch.testing.assert_close(logits.exp().sum(1), torch.ones(7))
        torch.testing.assert_close(logits.exp(), as_probabilities(model, preprocess, pictures), rtol=1e-5, atol=1e-4)


def as_probabilities(model: torch.nn.Module, preprocess: Preprocess, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(preprocess.normalise(pixels.float())).softmax(1)


def test_what_is_refused(folder: Path, smoke_run: Path, tmp_path: Path) -> None:
    """In one line, and nothing half-written."""
    with pytest.raises(ValueError, match="uint8 pixels"):
        open_engine(folder, "onnxruntime", 1)(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="did you mean openvino"):
        open_engine(folder, "openvin")
    with pytest.raises(ValueError, match="not an exported folder"):
        open_engine(smoke_run)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.xml").write_text("<net/>")
    with pytest.raises(ValueError, match="is not the file that was exported"):
        open_engine(tmp_path / "copy", "openvino:float32")
    about = json.loads((tmp_path / "copy" / "model.json").read_text())
    del about["engines"]["ncnn"]
    (tmp_path / "copy" / "model.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="export with --to ncnn"):
        open_engine(tmp_path / "copy", "ncnn")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert main(["export", str(smoke_run), "--to", "onnx", "--out", str(tmp_path / "mine")]) == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(smoke_run), "--to", "coreml", "--out", str(tmp_path / "new")])
    assert stopped.value.code == 2 and not (tmp_path / "new").exists()


def test_served(folder: Path, test_pictures: Split, tmp_path: Path) -> None:
    """A server of the folder answers as `predict` does from it."""
    paths = [tmp_path / f"{row}.png" for row in range(6)]
    for path, pixels in zip(paths, test_pictures.images, strict=False):
        Image.fromarray(pixels[0].numpy()).resize((90, 70)).save(path)
    done = googlenet("predict", folder, *paths, "--engine", "onnxruntime", "--json")
    with in_thread(folder, engine="onnxruntime") as url:
        files = [("image", path.read_bytes()) for path in paths]
        answer = httpx.post(f"{url}/v1/predict", files=files, timeout=30).json()
    for right, found in zip(done.json, answer["images"], strict=True):
        assert [one["label"] for one in found["top"]] == [one["label"] for one in right["top"]]
        shares = [one["probability"] for one in right["top"]]
        assert [one["probability"] for one in found["top"]] == pytest.approx(shares, abs=1e-6)
