"""Contrast of text on the colors of the palette."""

import pytest

from googlenet.explain.plotting import text_color
from googlenet.palette import PALETTE


def luminance(color: str) -> float:
    """Relative luminance as defined by WCAG 2."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("color", PALETTE)
def test_text_has_the_minimum_contrast_of_wcag(color: str) -> None:
    text = {"white": 1.0, "black": 0.0}[text_color(color)]
    low, high = sorted((text, luminance(color)))
    assert (high + 0.05) / (low + 0.05) >= 4.5
