"""Makes text from files safe for a terminal or a page: no character of it is a command, and all of it is shown."""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# These characters reorder the text after them, so that one name can look like another.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def clean(text: str) -> str:
    """The text with a replacement mark for each character that no terminal, page or drawing may receive.

    These are control characters other than line break and tab (terminal commands begin with one), halves of surrogate
    pairs, and characters that change the direction of writing.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\ufffd" if char in _REORDERING or (char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs")) else char
        for char in text
    )


def markup(text: str) -> str:
    """The clean text, escaped for rich so that brackets are shown unchanged."""
    from rich.markup import escape

    return escape(clean(text))


@contextmanager
def clean_log(name: str) -> Iterator[None]:
    """Clean the messages of a library's logger inside the block. Its colours are removed."""

    def cleaned(record: logging.LogRecord) -> bool:
        record.msg, record.args = clean(_COLOUR.sub("", record.getMessage())), ()
        return True

    logger = logging.getLogger(name)
    logger.addFilter(cleaned)
    try:
        yield
    finally:
        logger.removeFilter(cleaned)


def clean_warnings() -> None:
    """Clean every warning from now on: warnings quote names and values from files."""
    before = warnings.formatwarning
    if getattr(before, "cleans", False):
        return

    def cleaned(*args: Any, **kwargs: Any) -> str:
        return clean(before(*args, **kwargs))

    cleaned.cleans = True  # pyright: ignore[reportFunctionMemberAccess]
    warnings.formatwarning = cleaned
