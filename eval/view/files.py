"""The files of the page: HTML, ES modules and CSS. They are served unchanged; nothing is built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).with_name("page")
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def files() -> Iterator[tuple[str, bytes, str]]:
    """Name, content and media type of each file."""
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in _KINDS:
            yield path.name, path.read_bytes(), _KINDS[path.suffix]
