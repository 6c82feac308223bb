"""What was found out about a tensor's values, kept beside its memory for whoever reads the same values later.

The layers of a routing group get the same gates, each as a view of its own, so the views' memory carries the note: it
goes when that memory goes, and counts for nothing once torch has counted a write to it. Compiled graphs hand memory
from one tensor to the next without counting, so under torch.compile, in operators that a graph calls, and while a CUDA
graph is captured, nothing is noted or read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTE = "monet_notes"
_local = threading.local()


def note(tensor: Tensor, name: str, value: Any) -> None:
    """Keep `value` with the tensor's memory; it must be no view of that memory."""
    if (key := _key(tensor)) is not None:
        storage: Any = tensor.untyped_storage()
        notes = storage.__dict__.setdefault(_ATTRIBUTE, {})
        notes[name] = (key, value)


def noted(tensor: Tensor, name: str) -> Any:
    """What was noted of the values of this tensor; None where nothing was, or they may have changed since."""
    if (key := _key(tensor)) is None:
        return None
    found, value = tensor.untyped_storage().__dict__.get(_ATTRIBUTE, {}).get(name, (None, None))
    return value if found == key else None


def forget(tensor: Tensor) -> None:
    """Drop the notes on a tensor's memory."""
    tensor.untyped_storage().__dict__.pop(_ATTRIBUTE, None)


@contextlib.contextmanager
def nothing_noted() -> Iterator[None]:
    """No notes are taken or read inside the block."""
    before = getattr(_local, "off", False)
    _local.off = True
    try:
        yield
    finally:
        _local.off = before


def _key(tensor: Tensor) -> tuple[Any, ...] | None:
    """Which values of the memory a dense tensor is, whatever its shape; None if writes to it go uncounted."""
    if torch.compiler.is_compiling() or getattr(_local, "off", False) or tensor.is_inference():
        return None
    # What a CUDA graph captures is run again with other values; what it makes has no values before it is run.
    if not tensor.is_contiguous() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    return tensor._version, tensor.storage_offset(), tensor.numel(), tensor.dtype
