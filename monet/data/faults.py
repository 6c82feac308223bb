"""Words for what is wrong with a file's content, shared by the readers of all formats."""

from __future__ import annotations

from monet.data.sources import Skipped, TextFile


def too_long(where: str, what: str, max_bytes: int) -> str:
    """Message: a text or line exceeds the limit."""
    return f"{where}: the {what} is longer than max_document_bytes {max_bytes}; raise that if it is meant to be"


def broken(file: TextFile, what: str, error: Exception, skipped: Skipped) -> None:
    """Report a fault of the file's content; an OSError with an errno is one of the disk and is raised again."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    skipped.problem("broken", f"{file.path}: broken or truncated {what} ({reason})")
