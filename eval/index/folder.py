"""The folder of an index under construction: `OUT.partial`, in which a killed pass left its work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from filelock import FileLock
from typing_extensions import Self

from monet.errors import CheckpointError, ConfigError
from monet.eval.core.appended import acquire_at_once
from monet.eval.index.info import INFO, IndexInfo
from monet.files import atomic_write_json, begin_directory, publish_directory
from monet.json_text import read_json

ANSWERS = "answers"  # answers of servers about the experts, by prompt; see `monet.eval.explain.server`
_SETTINGS, _LOCK = "settings.json", ".lock"


def identity(info: IndexInfo) -> dict[str, Any]:
    """Everything that an index depends on, without the names of folders."""
    found = msgspec.to_builtins(info)
    for name in ("tokens", "windows", "excluded", "text", "files"):
        del found[name]
    del found["model"]["name"], found["data"]["folder"]
    return found


class WorkFolder:
    """A place for the work on an index. Use it as a context manager: it holds a lock while it is open.

    Args:
        out: the folder of the finished index.
        info: what the index is made from. A finished index made from the same is kept.
        key: further values that the work depends on, JSON-able.
        overwrite: replace other work, and another index.

    Attributes:
        path: folder of the work.
        finished: the index that exists already; None if there is work to do.

    Raises:
        ConfigError: `out` or the work was made from something else, or another process is at work.
    """

    def __init__(self, out: Path, info: IndexInfo, key: dict[str, Any], overwrite: bool) -> None:
        self.out, self.path = out, out.with_name(f"{out.name}.partial")
        self._identity, self._key, self._overwrite = identity(info), {**identity(info), **key}, overwrite
        self.finished: IndexInfo | None = None

    def __enter__(self) -> Self:
        self.finished = self._existing()
        if self.finished is not None:
            return self
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / _LOCK)
        acquire_at_once(self._lock, f"{self.path}: another process makes this index; wait, or choose another --out")
        try:
            settings = self.path / _SETTINGS
            old = read_json(settings) if settings.is_file() else None
            if old is not None and old != self._key:
                if not self._overwrite:
                    raise ConfigError(self._refusal(self.path, old, self._key))
                for child in self.path.iterdir():
                    if child.name != _LOCK:
                        child.unlink()
            atomic_write_json(settings, self._key)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.finished is None:
            self._lock.release()
            if error is None:
                shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def publishing(self) -> Iterator[Path]:
        """Yield an empty folder; it becomes the index when the block ends without error."""
        temporary = begin_directory(self.out) if not self.out.exists() else begin_directory(self._beside())
        try:
            yield temporary
            if self.out.exists():
                if (self.out / ANSWERS).is_dir():  # they may have cost money, and are right for any index
                    shutil.copytree(self.out / ANSWERS, temporary / ANSWERS)
                shutil.rmtree(self.out)
            publish_directory(temporary, self.out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _beside(self) -> Path:
        return self.out.with_name(f"{self.out.name}.new")

    def _existing(self) -> IndexInfo | None:
        if not self.out.exists():
            return None
        if not (self.out / INFO).is_file():
            raise ConfigError(f"{self.out} exists and is no index; choose another --out")
        try:
            old = IndexInfo.load(self.out)
        except CheckpointError:
            if self._overwrite:
                return None
            raise
        if identity(old) == self._identity:
            return old
        if not self._overwrite:
            raise ConfigError(self._refusal(self.out, identity(old), self._identity))
        return None

    def _refusal(self, folder: Path, old: Any, new: Any) -> str:
        from monet.data.preparation.partial_folder import differences

        found = list(differences(old, new))
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return (
            f"{folder} belongs to an index with other content ({'; '.join(found[:3])}{more}); choose another --out, or "
            "replace it with --overwrite true"
        )
