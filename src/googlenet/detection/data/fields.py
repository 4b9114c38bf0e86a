"""Text, numbers, flags and ids as annotation programs write them."""

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from typing import Any

from ...files import clean_name, decode_text

# Programs name an encoding but write its extension with more characters (see the WHATWG's Encoding standard).
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "x-sjis": "cp932", "windows-31j": "cp932"}
# Encodings of lists, which do not declare theirs: the first that decodes to known names.
LIST_ENCODINGS = ("utf-8", "gb18030", "cp932", "cp1252", "latin-1")
_DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)""")


def decode_marked(data: bytes) -> str | None:
    """Decode text with a byte order mark, and UTF-16 and UTF-32 without one; None for other encodings.

    Raises ValueError if the text is damaged.
    """
    return None if json.detect_encoding(data) == "utf-8" else decode_text(data)


def parse_xml(data: bytes) -> ElementTree.Element:
    """Parse XML in the encoding of its byte order mark or its declaration; ValueError with the reason.

    The parser itself knows no encoding with several bytes per character but UTF-8 and UTF-16.
    """
    try:
        text = decode_marked(data)
        if text is None:
            declared = _DECLARATION.match(data)
            name = declared[1].decode().lower().replace("shift-jis", "shift_jis") if declared else "utf-8"
            text = data.decode(SUPERSETS.get(name, name))
        return ElementTree.fromstring(text)
    except LookupError as error:
        raise ValueError(f"broken XML file: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"broken XML file: not in its declared encoding, {error.encoding}") from None
    except ElementTree.ParseError as error:
        raise ValueError(f"broken XML file: {error.msg.partition(':')[0]}") from None


def decode_list(data: bytes, is_known: Callable[[str], bool]) -> list[str]:
    """Return the lines of a list of names without empty ones, in the encoding in which most lines are known names."""
    marked = decode_marked(data)
    texts = [] if marked is None else [marked]
    if marked is None:
        for encoding in LIST_ENCODINGS:
            try:
                texts.append(data.decode(encoding))
            except UnicodeDecodeError:
                continue
            if texts[-1].isascii():
                break
    candidates = [[line for line in map(clean_name, text.splitlines()) if line] for text in texts]
    if len(candidates) == 1:
        return candidates[0]
    return max(candidates, key=lambda lines: sum(map(is_known, lines)))


def printable_name(value: Any) -> str:
    """Return a value of an annotation file for a message, on one line and without lone surrogates."""
    return " ".join(str(value).encode(errors="backslashreplace").decode().split())


def parse_number(value: Any) -> float | None:
    """Return a finite number, also one that is written as text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def parse_numbers(values: Any, count: int) -> tuple[float, ...] | None:
    """Return `count` finite numbers; None for anything else."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != count:
        return None
    numbers = [number for number in map(parse_number, values) if number is not None]
    return tuple(numbers) if len(numbers) == count else None


def parse_int(value: Any) -> int | None:
    """Return an integer, also one that is written as text or as 3.0; None for anything else."""
    number = parse_number(value)
    return int(number) if number is not None and number.is_integer() else None


def parse_flag(value: Any) -> bool | None:
    """Return a flag of 0, 1, true or false as a number, a bool or text; missing is false; None for anything else."""
    if value is None or str(value).strip() == "":
        return False
    number = float(value) if isinstance(value, bool) else parse_number(value)
    if number in (0, 1):
        return bool(number)
    return {"true": True, "false": False}.get(str(value).strip().lower())


def parse_id(value: Any) -> str | None:
    """Return an id as text, so that 7, 7.0 and "7" are equal; None if it is missing."""
    if (
        value is None
        or isinstance(value, bool | list | dict)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else clean_name(value) or None
