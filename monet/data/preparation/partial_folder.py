"""A prepared folder under construction: `OUT.partial` next to OUT, renamed to OUT when it is complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from monet.data.preparation.pipeline import COMMITS, FETCHED, PROGRESS, SCAN, TOKENIZER_NOTES
from monet.data.storage.shards import MANIFEST, TokenShards
from monet.errors import ConfigError, DataError, MonetError
from monet.files import atomic_write_json, fsync_path
from monet.json_text import read_json

_SETTINGS, _LOCK, _REPLACED = "settings.json", ".lock", ".replaced"


def refuse_foreign(out: Path) -> None:
    """Refuse a folder that is not prepared data.

    Raises:
        DataError: names the folder.
    """
    if (out.exists() or out.is_symlink()) and not (out / MANIFEST).is_file():
        raise DataError(f"{out} exists but has no {MANIFEST}, so it is not prepared data; choose another --out")


def make(out: Path, settings: dict[str, Any], work: Callable[[Path], None], *, overwrite: bool) -> bool:
    """Make a prepared folder, unless it already exists.

    Args:
        out: the folder.
        settings: the settings that its manifest records.
        work: fills `OUT.partial`, which holds the work of an earlier start with these settings, if any.
        overwrite: replace finished or partial data with other settings.
    Returns:
        whether there was work to do.
    Raises:
        ConfigError: the settings differ from those of the data in `out`.
        DataError: another process is making the folder.
        MonetError: the disk is full or cannot be written.
    """
    from filelock import FileLock, Timeout

    if _is_done(out, settings, overwrite):
        return False
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(partial / _LOCK, timeout=0):
            if _is_done(out, settings, overwrite):  # another process finished it in the meantime
                shutil.rmtree(partial, ignore_errors=True)
                return False
            _begin(partial, settings, overwrite)
            work(partial)
            _publish(partial, out)
            return True
    except Timeout:
        raise DataError(
            f"{partial}: another preparation of {out} is running; wait for it or choose another --out"
        ) from None
    except OSError as error:
        free = shutil.disk_usage(out.parent).free
        raise MonetError(
            f"{partial}: the preparation stopped: {error} ({free:,} bytes are free there, a quota can leave less); "
            "finished work is kept, run the same command again"
        ) from error


def clear(partial: Path) -> None:
    """Remove the folder's content, except its lock and settings."""
    for child in partial.iterdir():
        if child.name not in (_LOCK, _SETTINGS):
            shutil.rmtree(child) if child.is_dir() else child.unlink()


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """Yield a line for each setting that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name}: {old!r} there, {new!r} requested"


def _refusal(folder: Path, old: Any, new: Any) -> ConfigError:
    found = list(differences(old, new))
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ConfigError(
        f"{folder} was prepared with other settings ({'; '.join(found[:5])}{more}); choose another --out, or "
        "replace it with --overwrite true"
    )


def _is_done(out: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Return whether `out` already holds the requested data.

    Raises:
        DataError, ConfigError: `out` holds something else, and overwrite is false.
    """
    if not out.exists():
        return False
    try:
        old = TokenShards(out).manifest["settings"]
    except DataError:
        if overwrite:
            return False
        raise
    if old != settings and not overwrite:
        raise _refusal(out, old, settings)
    return old == settings


def _begin(partial: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Prepare `partial` for more work: same settings, no half-written files.

    Work with other settings is refused if it is worth keeping; otherwise it is removed.
    """
    old = None
    for name in (_SETTINGS, MANIFEST):
        if (partial / name).is_file():
            old = read_json(partial / name)
    old = old["settings"] if old is not None and "settings" in old else old
    if old != settings:
        if old is not None and not overwrite and _has_work(partial):
            raise _refusal(partial, old, settings)
        for child in partial.iterdir():
            if child.name != _LOCK:
                shutil.rmtree(child) if child.is_dir() else child.unlink()
    for leftover in list(partial.rglob(".*.tmp-*")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    atomic_write_json(partial / _SETTINGS, settings)


def _has_work(partial: Path) -> bool:
    return any(partial.rglob("shard-*.bin")) or any((partial / FETCHED).rglob("part-*.jsonl"))


def _publish(partial: Path, out: Path) -> None:
    """Remove intermediate files and give the folder its final name."""
    shutil.rmtree(partial / FETCHED, ignore_errors=True)
    for path in [
        *(partial / name for name in (_SETTINGS, SCAN, COMMITS, PROGRESS, TOKENIZER_NOTES)),
        *partial.glob("*/*/shard-*.json"),
    ]:
        path.unlink(missing_ok=True)
    for folder, _, _ in os.walk(partial):
        fsync_path(folder)
    replaced = partial / _REPLACED
    if out.exists():
        os.rename(out, replaced)  # a kill must not leave half of the old folder under the final name
    if replaced.is_symlink():
        replaced.unlink()
    elif replaced.exists():
        shutil.rmtree(replaced)
    os.rename(partial, out)
    (out / _LOCK).unlink(missing_ok=True)
    fsync_path(out.parent)
