"""What is written on a colour can be read."""

import pytest

from googlenet.insight.drawing import PALETTE, readable_on


def light(colour: str) -> float:
    """Relative luminance, from WCAG 2's definition."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colour", PALETTE)
def test_numbers_on_bars_have_the_contrast_of_wcag(colour: str) -> None:
    text = {"white": 1.0, "black": 0.0}[readable_on(colour)]
    low, high = sorted((text, light(colour)))
    assert (high + 0.05) / (low + 0.05) >= 4.5
