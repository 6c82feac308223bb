"""Messages about faulty file contents, shared by the readers of all formats."""

from __future__ import annotations

from monet.data.documents.sources import Skipped, TextFile


def too_long(where: str, what: str, max_bytes: int) -> str:
    """Return the message for a text or line that exceeds the limit."""
    return f"{where}: the {what} is longer than max_document_bytes {max_bytes}; raise the limit if this is intended"


def broken(file: TextFile, what: str, error: Exception, skipped: Skipped) -> None:
    """Report a fault in the file's content; raise an OSError with an errno again, because it is a fault of the disk."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    skipped.problem("broken", f"{file.path}: broken or truncated {what} ({reason})")
