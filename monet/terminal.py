"""Text from files on its way to a terminal or a page: nothing in it acts, all of it is shown."""

from __future__ import annotations

import logging
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# They reorder what follows, so that a name can look like another.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def clean(text: str) -> str:
    """The text with a replacement mark for each character that no terminal, page or drawing may take.

    These are control characters other than line break and tab (a terminal takes commands that begin with one), halves
    of surrogate pairs, and characters that change the direction of writing.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\ufffd" if char in _REORDERING or (char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cs")) else char
        for char in text
    )


def markup(text: str) -> str:
    """The clean text for rich, which shows brackets in it as they are."""
    from rich.markup import escape

    return escape(clean(text))


@contextmanager
def clean_log(name: str) -> Iterator[None]:
    """Clean what a library's logger says inside the block. Its colours are left out."""

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
    """Clean every warning from now on: warnings quote names and values of files."""
    before = warnings.formatwarning
    if getattr(before, "cleans", False):
        return

    def cleaned(*args: Any, **kwargs: Any) -> str:
        return clean(before(*args, **kwargs))

    cleaned.cleans = True  # pyright: ignore[reportFunctionMemberAccess]
    warnings.formatwarning = cleaned
