"""Text for the page: every character can be seen, and none changes how others are drawn.

The page writes text as text and never as markup. So markup in a token is harmless. Characters that a browser does not
draw, or that reorder other characters, are written as escapes: `\\x00`, `\\u202e`, `\\ud800`.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Any

import msgspec

# Control characters, halves of surrogate pairs, format characters (direction of writing, zero width), and separators of
# lines and paragraphs.
_ESCAPED = frozenset({"Cc", "Cs", "Cf", "Zl", "Zp"})


def visible(text: str) -> str:
    """The text with an escape for each character that cannot be seen. Line breaks and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        _escape(char) if char not in "\n\t" and unicodedata.category(char) in _ESCAPED else char for char in text
    )


def encoded(content: Any) -> bytes:
    """JSON in which every text is visible, and numbers that JSON does not have are null.

    Args:
        content: lists, tuples, dictionaries with text keys, texts, numbers, booleans and None.
    """
    return msgspec.json.encode(cleaned(content))


def cleaned(content: Any) -> Any:
    """The same content; see `encoded`."""
    if isinstance(content, str):
        return visible(content)
    if isinstance(content, dict):
        return {visible(key): cleaned(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [cleaned(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content


def _escape(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
