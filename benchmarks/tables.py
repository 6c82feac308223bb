"""Prints rows of figures as Markdown, so that the output of a command can be pasted into a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def markdown(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A table whose columns are aligned, so that it is readable as text too.

    Args:
        rows: fields by name; a missing field or None leaves its cell empty.
        columns: shown fields, each with its format; "" means no format.
    """
    lines = [list(columns), *([_cell(row.get(name), form) for name, form in columns.items()] for row in rows)]
    widths = [max(3, *(len(line[n]) for line in lines)) for n in range(len(columns))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, form) if form and isinstance(value, (int, float)) else str(value)
