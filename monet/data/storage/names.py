"""Read and write the lines of `names.jsonl`: where each document was read, and the source that its text names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from monet.errors import DataError


def name_line(name: str, source: str | None) -> bytes:
    """Return the line for one document: the name as a JSON string, or [name, source] if the source is known."""
    content = name if source is None else [name, source]
    # half of a surrogate pair is not valid UTF-8; JSON writes it as a backslash escape
    return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_line(line: bytes, path: Path) -> tuple[str, str | None]:
    """Return the name and the source of one document; the source is None if it is not known.

    Args:
        line: one line of `names.jsonl`.
        path: path of the file, for messages.
    Raises:
        DataError: the line is neither a string nor two strings.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, str):
        return found, None
    if isinstance(found, list) and len(found) == 2 and all(isinstance(part, str) for part in found):
        return found[0], found[1]
    raise DataError(f"{path}: the line {line[:80]!r} names no document; the file is damaged, prepare the data again")


def digest_without_sources(path: Path) -> str | None:
    """Return the SHA-256 that the file would have without sources; None if the file has no sources."""
    digest, has_sources = hashlib.sha256(), False
    with open(path, "rb") as file:
        for line in file:
            name, source = read_line(line, path)
            has_sources |= source is not None
            digest.update(name_line(name, None))
    return digest.hexdigest() if has_sources else None
