"""Words for what is wrong with a file's content, shared by the readers of all formats."""

from __future__ import annotations

from collections.abc import Sequence

from monet.data.sources import Skipped, TextFile


def too_long(where: str, what: str, max_bytes: int) -> str:
    """Message: a text or line exceeds the limit."""
    return f"{where}: the {what} is longer than max_document_bytes {max_bytes}; raise that if it is meant to be"


def no_key(text_key: str, keys: Sequence[str]) -> str:
    """Message: none of a record's keys, or of a table's columns, is the text's."""
    return f"no key {text_key!r} among {sorted(keys)[:10]}; name the right one with --text_key"


def broken(file: TextFile, what: str, error: Exception, skipped: Skipped) -> None:
    """Report a fault of the file's content; an OSError with an errno is one of the disk and is raised again."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    skipped.problem("broken", f"{file.path}: broken or truncated {what} ({reason})")
