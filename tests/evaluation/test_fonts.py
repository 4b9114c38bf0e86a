"""Names in any script appear in figures, without formulas and without placeholders."""

import io
import warnings

import numpy as np
import pytest
import torch
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from PIL import Image

from googlenet.detection.report import draw_boxes
from googlenet.evaluation import fonts
from googlenet.evaluation.plots import legend_label, new_figure, style_axes, to_png, to_svg
from googlenet.explain.plotting import DisplayImage, draw_cam, draw_gradcam, draw_sizes

IMAGE = DisplayImage("$^$", torch.zeros(1, 8, 8))
NAMES = ["5$ or 10$", "100$^$", "_background", "__init__", "é ü ñ", "猫", "قطة", "😀", r"\$x\$", "{", "a\nb", "_$_"]


@pytest.fixture(autouse=True)
def no_warnings() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def texts_of(names: list[str]) -> list[str]:
    """Return the texts of the legend of a chart with a line per name."""
    figure = new_figure(4, 3)
    axis = figure.subplots()
    for name in names:
        axis.plot([0, 1], [1, 2], label=legend_label(name))
    legend = axis.legend()
    style_axes(axis)
    assert to_png(figure).startswith(b"\x89PNG")
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("name", NAMES)
def test_legends_show_every_name(name: str) -> None:
    expected = name if fonts.is_drawable(name.replace("\n", "")) else fonts.escape_undrawable(name)
    assert texts_of([name, "plain"]) == [expected, "plain"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_analyses_draw_every_name(name: str) -> None:
    maps = torch.rand(1, 4, 4)
    image = IMAGE._replace(name=name)
    draw_cam(image, [f"{name}\nlogit 1"], maps)
    draw_gradcam(image, f"{name}, p 0.5", [(name, maps[0], maps[0])])
    draw_sizes(image, [8, 16], {name: [0.1, 0.2], "other": [0.2, 0.1]}, 8)


def test_dollars_are_drawn_as_they_are() -> None:
    """The text "a$b$" is as wide as "a", "b" and two dollar signs; as a formula it would have no dollar signs."""

    def ink(text: str) -> int:
        figure = new_figure(3, 1)
        figure.text(0.1, 0.4, text)
        return int((np.asarray(Image.open(io.BytesIO(to_png(figure))).convert("L")) < 128).sum())

    assert ink("a$b$") > ink("ab") + 10
    assert ink("$^$") > ink("^") + 10


def test_log_axes_have_plain_labels() -> None:
    from googlenet.explain.gradient_norms import GradientNorms
    from googlenet.explain.plotting import draw_gradients

    norms = GradientNorms(0, 1.0, ["a", "b"], [0.1, 0.2], [0.001, 0.1])
    assert draw_gradients({"_x$": [norms]}).startswith(b"\x89PNG")


def test_names_without_a_font_are_numbers_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    default = findfont("DejaVu Sans")
    monkeypatch.setattr(fonts, "_fonts", lambda: [("DejaVu Sans", default)])
    fonts._font_of.cache_clear()
    names = ["cat", "猫", "犬", "é"]
    try:
        assert fonts.drawn_names(names, [0, 1, 3]) == {0: "cat", 1: "class 1", 3: "é"}
        assert fonts.numbers_note(names, range(4)).endswith("class 1: 猫, class 2: 犬.")
        assert fonts.numbers_note(names, [0, 3]) == ""
        assert fonts.font_file(["猫"]) is None
        assert texts_of(["猫", "犬x"]) == ["\\u732b", "\\u72acx"]
    finally:
        fonts._font_of.cache_clear()


def test_a_fallback_font_is_found() -> None:
    """The fallback has the characters that the default font lacks."""
    default = FT2Font(findfont("DejaVu Sans")).get_charmap()
    others = [code for _, path in fonts._fonts()[1:] for code in FT2Font(path).get_charmap() if code not in default]
    characters = [chr(code) for code in others if chr(code).isalpha()][:3]
    if not characters:
        pytest.skip("no installed font has characters that the default one lacks")
    for character in characters:
        assert fonts.is_drawable(character)
        assert len(fonts.font_families([character])) == 2
        assert ord(character) in FT2Font(fonts.font_file([character])).get_charmap()
        assert texts_of([character]) == [character]


@pytest.mark.parametrize("text", ["猫", "é", "Ж", "_a$", "cat"])
def test_boxes_have_text_in_any_script(text: str) -> None:
    canvas = torch.zeros(3, 300, 300, dtype=torch.uint8)
    box = torch.tensor([[10.0, 100.0, 290.0, 290.0]])
    drawn, empty = (draw_boxes(canvas, box, [label], ["#ffffff"]) for label in (text, " "))
    assert int((drawn != empty).sum()) > 10


def test_svg_has_no_formula() -> None:
    figure = new_figure(3, 1)
    figure.text(0.1, 0.4, "5$ or 10$")
    assert "<svg" in to_svg(figure)
