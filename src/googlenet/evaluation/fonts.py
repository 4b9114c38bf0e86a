"""Names in any script in drawings: fonts that have the characters, and numbers for names that no font can draw."""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from matplotlib import font_manager, ft2font

DEFAULT_FAMILY = "DejaVu Sans"
# Right-to-left scripts and combining marks need a text layout engine.
HAS_LAYOUT = hasattr(ft2font, "__libraqm_version__")


@cache
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(ft2font.FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # for example, a font of color bitmaps
        return frozenset()


@cache
def _fonts() -> list[tuple[str, str]]:
    """Return the family and the file of the regular fonts, the default one first; without fonts of placeholders."""
    entries = [
        (font.name, font.fname) for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight in (400, "normal", "regular", "book")
        and "Last Resort" not in font.name and not font.name.startswith(("cm", "STIX"))
    ]  # fmt: skip
    default = (DEFAULT_FAMILY, font_manager.findfont(DEFAULT_FAMILY))
    return list(dict.fromkeys([default, *sorted(entries)]))


def _needs_layout(character: str) -> bool:
    return unicodedata.bidirectional(character) in ("R", "AL", "AN") or unicodedata.category(character) in ("Mn", "Mc")


@lru_cache(maxsize=4096)
def _font_of(character: str) -> tuple[str, str] | None:
    if not character.isprintable() or (_needs_layout(character) and not HAS_LAYOUT):
        return None
    return next((font for font in _fonts() if ord(character) in _characters(font[1])), None)


def is_drawable(text: str) -> bool:
    """Return whether the fonts of this machine have all characters of a name."""
    return all(_font_of(character) for character in text)


def font_families(texts: Iterable[str]) -> list[str]:
    """Return the families, the default one first, that together have the characters of the texts."""
    fonts = [_font_of(character) for character in sorted(set("".join(texts)) - {"\n"})]
    return list(dict.fromkeys([DEFAULT_FAMILY, *(font[0] for font in fonts if font)]))


def font_file(texts: Iterable[str]) -> str | None:
    """Return the file of one font with all characters of the texts; None if no font has them all."""
    characters = {ord(character) for character in "".join(texts)}
    return next((path for _, path in _fonts() if characters <= _characters(path)), None)


def escape_undrawable(text: str) -> str:
    """Replace characters that no font has by escapes such as ``\\u732b``."""
    characters = (c if c == "\n" or _font_of(c) else c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(characters)


def drawn_names(names: Sequence[str], indices: Iterable[int]) -> dict[int, str]:
    """Return the text of each class in a figure: its name, or "class 3" if the fonts cannot draw it."""
    return {index: names[index] if is_drawable(names[index]) else f"class {index}" for index in indices}


def numbers_note(names: Sequence[str], indices: Iterable[int]) -> str:
    """Return the names of the classes that drawings show as numbers, such as " class 3: ..."; else an empty string."""
    drawn = drawn_names(names, indices)
    numbered = ", ".join(f"{text}: {names[index]}" for index, text in drawn.items() if text != names[index])
    return f" Names without a font on this machine: {numbered}." if numbered else ""
