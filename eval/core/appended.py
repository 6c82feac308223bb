"""A file of lines that grows while a command works, so that a killed command continues after the last whole line."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

from filelock import BaseFileLock, FileLock, Timeout
from typing_extensions import Self

from monet.errors import ConfigError


def acquire_at_once(lock: BaseFileLock, in_use: str) -> None:
    """Take a lock, or refuse.

    Args:
        lock: the lock to take; the caller releases it.
        in_use: the message if another process has it.

    Raises:
        ConfigError: another process has the lock.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(in_use) from None


class AppendedFile(ABC):
    """A file that one process at a time appends to, as a context manager. It holds a lock while it is open.

    Args:
        path: the file; its folder is made.
        in_use: the message if another process has the file open.

    Raises:
        ConfigError: another process has the file open.
    """

    def __init__(self, path: Path, in_use: str) -> None:
        self.path, self._in_use = path, in_use
        self._lock = FileLock(path.with_suffix(".lock"))

    @abstractmethod
    def _whole_bytes(self) -> int:
        """Read the file, which may be missing; return how many of its bytes are whole lines that stay."""

    def _first_line(self) -> bytes:
        """The first line of a new file, with its end."""
        return b""

    def _acquire(self) -> None:
        acquire_at_once(self._lock, self._in_use)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            whole = self._whole_bytes()
            self._file = open(self.path, "r+b" if self.path.exists() else "wb")
            self._file.truncate(whole)
            self._file.seek(whole)
            if not whole:
                self._file.write(self._first_line())
                self._file.flush()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._file.fileno())
            self._file.close()
        finally:
            self._lock.release()
