"""The commands and the code of the documentation, run as written (trainings and evaluations are shortened)."""

import hashlib
import importlib.util
import pkgutil
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import torch
import torchvision

from conftest import BuildOnce, googlenet
from googlenet.cli.main import COMMANDS
from googlenet.config.schema import Recipe
from servers import run_server

ROOT = Path(__file__).parents[1]
# A translation has the same commands and images as the page that it translates, whose commands are run.
TRANSLATIONS = {ROOT / "docs" / f"{name}.zh-CN.md": ROOT / "docs" / f"{name}.md" for name in ("start", "tour")}
# Words that are common elsewhere, and the terms of the Chinese edition of "Dive into Deep Learning" to use instead.
CHINESE_TERMS = {
    "池化": "汇聚", "归一化": "规范化", "丢弃法": "暂退法", "准确率": "精度", "图片": "图像", "步长": "步幅",
    "数据增强": "数据增广", "包围框": "边界框", "锚点框": "锚框", "非极大抑制": "非极大值抑制", "物体检测": "目标检测",
    "轮次": "迭代周期", "拼接": "连结", "精调": "微调", "过度拟合": "过拟合",
}  # fmt: skip
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
SHORT = ["--data.max_samples=120", "--batch_size=32", "--epochs=1", "--min_steps=4"]
FEW_SCENES = ["--data.source=scenes:train=12,test=4", "--data.val_split=0"]


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    lines = "\n".join(code_blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("googlenet ")]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the pages mention."""
    samples = ROOT / "docs" / "samples"
    shutil.copytree(samples, tmp_path / "docs" / "samples")
    for name in ("shoes", "tops"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index, image in enumerate(sorted(samples.iterdir())):
            shutil.copy(image, tmp_path / "photos" / name / f"{index}.png")
    shutil.copy(samples / "bag.png", tmp_path / "new-photo.jpg")
    images = sorted(path.relative_to(tmp_path) for path in (tmp_path / "photos").rglob("*.png"))
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *(f"{path},{path.parts[1]}" for path in images)]))
    network = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "theirs.pth")
    monkeypatch.chdir(tmp_path)
    for code in code_blocks(ROOT / "docs" / "data.md", "python"):
        exec(code, {})
    (write_labels,) = code_blocks(ROOT / "docs" / "multilabel.md", "python")
    exec(write_labels, {})
    return tmp_path


def serve(arguments: list[str], page: Path, workspace: Path) -> None:
    """Start a server, send the page's curl requests, and stop it."""
    with run_server(*arguments[1:], cwd=workspace) as server:
        assert urlopen(f"{server.url}/healthz").status == 200
        for line in "\n".join(code_blocks(page, "sh")).splitlines():
            if line.startswith("curl ") and shutil.which("curl"):
                request = line.replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl --fail --silent ", 1)
                subprocess.run(request, shell=True, check=True, cwd=workspace, stdout=subprocess.DEVNULL)
        server.process.terminate()
        assert server.process.wait(30) == 0


PAGES_WITH_COMMANDS = [page for page in PAGES if commands(page) and page not in TRANSLATIONS]


def split_command(line: str) -> list[str]:
    """Return the arguments of a command, without its name and its comment."""
    return shlex.split(line, comments=True)[1:]


def train(arguments: list[str], workspace: Path, runs: dict[str, str], build_once: BuildOnce) -> None:
    """Copy the run of a training command to the workspace; it is trained once for all pages with this command.

    `runs` maps the run folders of this workspace to a digest of the commands that trained them: a command that starts
    from ``runs/first`` is the same on two pages only if ``runs/first`` is.
    """
    index = arguments.index("--out")
    out, command = arguments[index + 1], arguments[:index] + arguments[index + 2 :]
    digest = hashlib.sha256("\0".join(runs.get(word, word) for word in command).encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        done = googlenet(*command, "--out", folder, cwd=workspace)
        assert done.code == 0, f"{shlex.join(command)}\n{done.err}"

    shutil.copytree(build_once(f"docs-{digest}", build), workspace / out)
    runs[out] = digest


def shorten(arguments: list[str]) -> list[str]:
    """Add flags that make a training or an evaluation short."""
    command = arguments[0]
    if command == "demo":
        return [*arguments, "--recipe=fashion-mnist-smoke"]
    if "train" in arguments[:2] and ("--resume" not in arguments or "auto" in arguments):
        if "--folds" in arguments:
            return [*arguments, *SHORT, "--model.width_mult=0.25"]
        if command == "ensemble":
            return [*arguments, *SHORT, "--num-models=2", "--model.width_mult=0.25"]
        if arguments[1] == "folder":
            return [*arguments, *SHORT, "--model.width_mult=0.25", "--minutes=0.1"]
        if arguments[1].startswith("scenes-"):
            return [*arguments, *SHORT, *FEW_SCENES]
        narrow = not {"--model.init_from", "--model.width_mult"} & set(arguments)
        return [*arguments, *SHORT, *(["--model.width_mult=0.25"] if narrow else [])]
    if command == "tune":
        return [*arguments, "--trials=2"] if "--resume" in arguments else [*arguments, *SHORT, "--trials=1"]
    if command == "evaluate" and ("--max-images" not in arguments or "--crops" in arguments):
        return [*arguments, "--max-images", "20"]
    if command == "explain" and "--max-images" not in arguments:
        return [*arguments, "--max-images", "20"]
    return arguments


# Pages whose commands run with every change. The commands of the other pages are similar and take longer.
FAST_PAGES = {"models.md", "weights.md"}
# Pages whose commands take longest.
RELEASE_PAGES = {
    "cross-validation.md", "data.md", "detection-rcnn.md", "explain.md", "fid.md", "finetune.md", "multi-scale.md",
    "performance.md", "serving.md", "tour.md",
}  # fmt: skip


def _marks(page: Path) -> list[pytest.MarkDecorator]:
    """Return the marks of a page: when its commands are run."""
    if page.name in RELEASE_PAGES:
        return [pytest.mark.release]
    return [] if page.name in FAST_PAGES else [pytest.mark.slow]


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.name, marks=_marks(page)) for page in PAGES_WITH_COMMANDS],
)
def test_commands(page: Path, workspace: Path, build_once: BuildOnce) -> None:
    runs: dict[str, str] = {}
    # Commands of the README that are also on another page run with that page.
    others = [other for other in PAGES_WITH_COMMANDS if other != page and page.name == "README.md"]
    elsewhere = [split_command(line) for other in others for line in commands(other)]
    for line in commands(page):
        arguments = split_command(line)
        if arguments in elsewhere and arguments[0] != "train":
            continue
        if "--ray" in arguments and importlib.util.find_spec("ray") is None:
            continue
        if arguments[0] == "serve":
            serve(arguments, page, workspace)
            continue
        arguments = shorten(arguments)
        is_training = "train" in arguments[:2] and "--out" in arguments
        if is_training and not (workspace / arguments[arguments.index("--out") + 1]).exists():
            train(arguments, workspace, runs, build_once)
            continue
        done = googlenet(*arguments, cwd=workspace)
        assert done.code == 0, f"{line}\n{done.err}"


@pytest.mark.parametrize("page", TRANSLATIONS, ids=lambda page: page.name)
def test_translations_have_the_same_commands_values_and_images(page: Path) -> None:
    original = TRANSLATIONS[page]
    assert commands(page) == commands(original)
    texts = [path.read_text() for path in (page, original)]
    images, headings, values, tables = (
        [re.findall(pattern, text, re.MULTILINE) for text in texts]
        for pattern in (r"!\[[^]]*\]\(([^)]*)\)", r"^(#+ \d*)", r"\d+(?:,\d{3})+|\d\.\d{2,}", r"^\|")
    )
    assert images[0] == images[1]
    assert len(headings[0]) == len(headings[1])
    assert sorted(values[0]) == sorted(values[1])
    assert len(tables[0]) == len(tables[1])
    # Paragraph by paragraph, with the same links apart from the language.
    assert len(texts[0].split("\n\n")) == len(texts[1].split("\n\n"))
    links = [sorted(re.findall(r"\]\(([^)]*)\)", re.sub(r"\.zh-CN|zh\.(?=d2l)", "", text))) for text in texts]
    assert links[0] == links[1]


@pytest.mark.parametrize(
    "page", [*TRANSLATIONS, *sorted((ROOT / "notebooks" / "sources").glob("*.md"))], ids=lambda page: page.name
)
def test_chinese_pages_use_the_terms_of_the_book(page: Path) -> None:
    """The words of the Chinese edition of "Dive into Deep Learning", and like there no spaces around Latin words."""
    text = page.read_text()
    assert not {word: term for word, term in CHINESE_TERMS.items() if word in text}
    assert not re.findall(r".{,9}[\u4e00-\u9fff] [\w`].{,9}|.{,9}[\w`] [\u4e00-\u9fff].{,9}", text)


def test_readme_python(smoke_run: Path) -> None:
    (code,) = code_blocks(ROOT / "README.md", "python")
    names: dict[str, Any] = {
        "pixels": torch.randn(2, 3, 64, 64),
        "images": torch.zeros(3, 1, 28, 28, dtype=torch.uint8),
    }
    exec(code.replace("runs/first", str(smoke_run)), names)
    assert names["logits"].shape == (2, 10)
    assert len(names["names"]) == 3


@pytest.mark.parametrize("name", ["explain.md", "export.md", "fid.md", "models.md", "weights.md"])
def test_python_of_pages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in code_blocks(ROOT / "docs" / name, "python"):
        exec(code, {})


@pytest.mark.slow
def test_detection_python(trained: Any) -> None:
    (code,) = code_blocks(ROOT / "docs" / "detection.md", "python")
    names: dict[str, Any] = {"pixels": torch.zeros(1, 40, 60, dtype=torch.uint8)}
    exec(code.replace("runs/scenes", str(trained("scenes-smoke", "--epochs=1"))), names)
    assert len(names["detections"]) == 1


def test_images_are_drawn_from_the_code() -> None:
    """If this fails after a change of tables or layers, run python docs/diagrams.py."""
    spec = importlib.util.spec_from_file_location("diagrams", ROOT / "docs" / "diagrams.py")
    assert spec
    assert spec.loader
    diagrams = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagrams)
    images = ROOT / "docs" / "images"
    files = [*(images / "blocks").glob("*.svg"), images / "architecture.svg"]
    assert {str(file.relative_to(images)): file.read_text() for file in files} == diagrams.all_images()


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: page.name)
def test_links_and_images_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name}: broken link {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name}: no section {anchor} in {target}"


def test_readme_links_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in PAGES[1:]:
        assert f"({page.relative_to(ROOT)})" in readme, page.name


# Files of an exported folder and of a run that look like recipe keys.
FILE_SUFFIXES = {"json", "onnx", "xml", "bin", "ncnn", "pt2", "int8", "safetensors", "yaml"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "architecture.md"], ids=lambda page: page.name)
def test_recipe_keys_exist(page: Path) -> None:
    """Every `group.key` of the text is a recipe key; architecture.md has modules with such names."""
    groups = {field.name for field in fields(Recipe) if is_dataclass(field.default_factory)}
    recipe = asdict(Recipe())
    for group, key in re.findall(r"`(?:--)?([a-z]+)\.([a-z_0-9]+)\b(?!\()", page.read_text()):
        if group in groups and key not in FILE_SUFFIXES:
            assert key in recipe[group], f"{page.name}: unknown recipe key {group}.{key}"


def test_modules_of_the_architecture_page_exist() -> None:
    """Every `package.module` and `package.module.name` of the page exists, and the page lists every package."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    source = ROOT / "src" / "googlenet"
    packages = {path.parent.name for path in source.glob("*/__init__.py")}
    names = [name for name in re.findall(r"`([a-z_]+(?:\.\w+)+)", page) if name.partition(".")[0] in packages]
    assert len(names) > 15
    for name in names:
        found = pkgutil.resolve_name(f"googlenet.{name}")
        assert found is not None, name
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page):
        assert (source / path).is_file(), path
    for package in packages:
        assert f"| `{package}` |" in page, package


def test_commands_and_benchmarks_exist() -> None:
    """Every `googlenet COMMAND` and `make bench-NAME` of the pages exists."""
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"(?:^|`|\$ |-m )googlenet ([a-z]+)", text, re.MULTILINE):
            assert name in COMMANDS, f"{page.name}: googlenet {name}"
        for name in re.findall(r"make bench-([a-z]\w*)", text):
            assert (ROOT / "benchmarks" / f"{name}.py").is_file(), f"{page.name}: make bench-{name}"
