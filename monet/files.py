"""Atomic writes, hashes and manifests: a file is either whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monet.errors import CheckpointError
from monet.json_text import read_json

MANIFEST_NAME = "MANIFEST.json"


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path to write a file to; it gets the final name only if the block ends without error."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(final)
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, final)
        fsync_path(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write bytes so that no reader sees a half-written file."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def atomic_write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write UTF-8 text so that no reader sees a half-written file."""
    atomic_write_bytes(path, content.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write indented JSON (no NaN) so that no reader sees a half-written file."""
    atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder to fill; it gets the final name only if the block ends without error.

    Raises:
        FileExistsError: `path` already exists; no file of the user is overwritten.
    """
    temporary = begin_directory(path)
    try:
        yield temporary
        publish_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def begin_directory(path: str | os.PathLike[str]) -> Path:
    """Make a temporary folder next to `path`, to be filled and then published as `path`.

    Raises:
        FileExistsError: `path` already exists.
    """
    final = Path(path)
    if final.exists():
        raise FileExistsError(f"{final} exists already; choose another name or remove it first")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_sibling(final)
    temporary.mkdir()
    return temporary


def publish_directory(temporary: Path, path: str | os.PathLike[str]) -> None:
    """Flush a filled folder to the disk and give it its final name."""
    final = Path(path)
    for folder, _, names in os.walk(temporary):
        for name in names:
            fsync_path(Path(folder, name))
        fsync_path(folder)
    os.rename(temporary, final)
    fsync_path(final.parent)


def refuse_links_out(folder: str | os.PathLike[str], paths: Iterable[Path]) -> None:
    """Refuse links that would put the content of files from elsewhere into a copy of a folder.

    Links to files in the folder are allowed, and so are links into `blobs`, where the Hugging Face cache keeps content.

    Args:
        folder: the folder that is copied.
        paths: files and links in it.
    Raises:
        CheckpointError: a link leads elsewhere; the message names the link and its target.
    """
    root = Path(folder).resolve()
    blobs = root.parent.parent / "blobs"
    for path in paths:
        target = path.resolve()
        if not (target.is_relative_to(root) or (root.parent.name == "snapshots" and target.parent == blobs)):
            raise CheckpointError(f"{path} is a link to {target}, outside its folder; replace the link by the file")


def manifest_entries(directory: str | os.PathLike[str], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of a folder's files, which are first flushed to the disk."""
    root, entries = Path(directory), {}
    for name in names:
        fsync_path(root / name)
        entries[name] = {"bytes": (root / name).stat().st_size, "sha256": sha256_file(root / name)}
    return entries


def write_manifest(directory: str | os.PathLike[str], entries: dict[str, dict[str, Any]] | None = None) -> None:
    """Record size and SHA-256 of files below `directory` in its MANIFEST.json.

    Args:
        directory: the folder.
        entries: result of `manifest_entries`; None computes them for every file in the folder.
    """
    root = Path(directory)
    if entries is None:
        paths = [path for path in root.rglob("*") if path.is_file() and path.name != MANIFEST_NAME]
        entries = manifest_entries(root, (str(path.relative_to(root)) for path in paths))
    atomic_write_json(root / MANIFEST_NAME, {"files": dict(sorted(entries.items()))})


def verify_manifest(directory: str | os.PathLike[str], *, full: bool = False, unread: str | None = None) -> None:
    """Check a folder against its MANIFEST.json: names and sizes, and with `full` also the hashes.

    Args:
        directory: the folder.
        full: compare hashes.
        unread: prefix of file names that will not be read; the hashes of these files are not compared.

    Raises:
        CheckpointError: the message names the folder, the file and the difference.
    """
    root = Path(directory)
    try:
        files = read_json(root / MANIFEST_NAME)["files"]
        # a flipped bit can leave valid JSON of another structure
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise CheckpointError(
            f"{root}: no {MANIFEST_NAME}, so the folder was never completed; use another one"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{root}: unreadable {MANIFEST_NAME} ({error!r})") from None
    for name, (size, digest) in expected.items():
        path = root / name
        if not path.is_file():
            raise CheckpointError(f"{root}: {name} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes where the manifest says {size}")
        is_read = unread is None or not name.startswith(unread)
        if full and is_read and sha256_file(path) != digest:
            raise CheckpointError(f"{path}: content differs from the manifest's SHA-256")
