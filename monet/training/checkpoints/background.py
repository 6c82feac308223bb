"""Writes checkpoints in a background thread: one at a time, awaited at the end, failures raised."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from typing_extensions import override

from monet.training.checkpoints.states import Own


class BackgroundCheckpointIO(CheckpointIO):
    """Copies a checkpoint's tensors to the CPU and writes them in a thread while training continues.

    At most one checkpoint is being written; the next one waits for it. The next call of `poll`, `finish` or
    `save_checkpoint` raises an error from the thread.

    Args:
        io: writes the folder; publishes the whole folder or nothing.
    """

    def __init__(self, io: CheckpointIO) -> None:
        self.io = io
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy now, write later.

        Raises:
            CheckpointError: the previous checkpoint could not be written.
        """
        self.finish()
        copy = {
            key: value if isinstance(value, Own) else apply_to_collection(value, Tensor, _copied)
            for key, value in checkpoint.items()
        }
        self._thread = threading.Thread(target=self._write, args=(copy, path), name=f"writes {path}")
        self._thread.start()

    @property
    def ranks(self) -> Any:
        """The ranks that write together, see `FolderCheckpointIO`."""
        return getattr(self.io, "ranks", None)

    @ranks.setter
    def ranks(self, ranks: Any) -> None:
        self.io.ranks = ranks  # type: ignore[attr-defined]

    def _write(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        try:
            self.io.save_checkpoint(checkpoint, path)
        except BaseException as error:
            self._error = error

    @property
    def is_idle(self) -> bool:
        """Return whether nothing is being written; never raises."""
        return self._thread is None or not self._thread.is_alive()

    def poll(self) -> bool:
        """Return whether nothing is being written; raises the error of the last write, once."""
        if not self.is_idle:
            return False
        self._thread = None
        if (error := self._error) is not None:
            self._error = None
            raise error
        return True

    def finish(self) -> None:
        """Wait for the current write; raises its error, once."""
        if self._thread is not None:
            self._thread.join()
        self.poll()

    @override
    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.io.load_checkpoint(*args, **kwargs)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        self.io.remove_checkpoint(path)

    @override
    def teardown(self) -> None:
        if self._thread is not None:  # the run fails elsewhere: let the write end, its own error is secondary
            self._thread.join()
        self.io.teardown()


def _copied(tensor: Tensor) -> Tensor:
    # a meta tensor represents a tensor that another rank writes
    return tensor.detach() if tensor.is_meta else tensor.detach().to("cpu", copy=True)
