"""Files of token ids, mapped into memory; a limited number of them at a time."""

from __future__ import annotations

import mmap
import os
import resource
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import numpy as np

from monet.errors import DataError

_MOST_MAPPED = 4096

# Held while mapped files are looked up. A process may fork while another thread holds it, so a fork waits for it.
_LOOKING_UP = threading.RLock()
os.register_at_fork(before=_LOOKING_UP.acquire, after_in_parent=_LOOKING_UP.release, after_in_child=_LOOKING_UP.release)


class MappedFiles:
    """Files mapped into memory for reading, the most recent ones; each uses one file descriptor of the process.

    Several threads may share it.

    Args:
        limit: maximum number of mapped files; None takes a quarter of the descriptors that the process may still open.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._maps: OrderedDict[Path, np.memmap] = OrderedDict()

    def __reduce__(self) -> Any:
        # a pickled memory map would carry its content into every loader process
        return MappedFiles, (self._limit,)

    def __call__(self, path: Path, dtype: np.dtype, size: int) -> np.ndarray:
        """Return the file's content, as a view.

        Args:
            size: bytes that the file must have; reading past the end of a shorter file would kill the process.
        Raises:
            DataError: the file is missing, or its size has changed.
        """
        with _LOOKING_UP:
            if (found := self._maps.pop(path, None)) is None:
                if (there := path.stat().st_size if path.is_file() else 0) != size:
                    raise other_size(path, there, size)
                found = np.memmap(path, dtype=dtype, mode="r")
            # the array's base is the mapping, which has its own descriptor: no path is looked up
            elif (there := cast(mmap.mmap, found.base).size()) < size:
                raise other_size(path, there, size)
            self._maps[path] = found
            if self._limit is None:
                self._limit = max(2, min(_free_descriptors() // 4, _MOST_MAPPED))
            while len(self._maps) > self._limit:
                self._maps.popitem(last=False)
        return found


def _free_descriptors() -> int:
    """Return the number of descriptors that this process may still open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft - len(os.listdir("/dev/fd"))


def other_size(path: Path, there: int, size: int) -> DataError:
    """The error of a file whose size is not the one that the manifest says, both in bytes."""
    return DataError(
        f"{path}: {there} bytes, but the manifest says {size}; truncated or replaced, prepare the data again"
    )
