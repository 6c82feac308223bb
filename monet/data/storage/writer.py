"""Writes token ids to shards of bounded size, step by step, so that a killed writer can continue."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from monet.data.storage.names import digest_without_sources, name_line
from monet.data.storage.shards import PARTS
from monet.errors import DataError
from monet.files import atomic_write_json, fsync_path, sha256_file

_BUFFERED_TOKENS = 1 << 16
_NOTHING_OPEN = {"shards": 0, "documents": 0, "tokens": 0, "text_bytes": 0, "name_bytes": 0}


class ShardWriter:
    """Writes the documents of one split and domain.

    An open shard grows on the disk; a full shard gets its entry (`shard-00000.json`). `state()` describes the data on
    the disk. A writer made with that description cuts off everything that came later.

    Args:
        folder: folder of the shards; created if missing.
        dtype: dtype of the ids, see `dtype_for`.
        vocab_size: every id must be below this number.
        max_tokens: maximum size of a shard; only a longer document gets a larger, separate shard.
        state: a result of `state()`; None starts again and removes the content of the folder.
    Attributes:
        entries: entries of the finished shards, for the manifest.
    Raises:
        DataError: a file is shorter than the state says.
    """

    def __init__(
        self,
        folder: Path,
        dtype: np.dtype,
        vocab_size: int,
        max_tokens: int,
        state: dict[str, int] | None = None,
    ) -> None:
        self.folder = folder
        self.dtype = dtype
        self.vocab_size = vocab_size
        self.max_tokens = max_tokens
        folder.mkdir(parents=True, exist_ok=True)
        self._open = dict(state or _NOTHING_OPEN)
        self.entries: list[dict[str, Any]] = [
            json.loads((folder / f"{stem_of(number)}.json").read_text(encoding="utf-8"))
            for number in range(self._open["shards"])
        ]
        self._unsynced = False
        self._clear_buffer()
        self._restore()

    def _clear_buffer(self) -> None:
        self._ids: list[np.ndarray] = []
        self._names: list[bytes] = []
        self._buffered = 0

    def _sizes(self) -> dict[str, int]:
        """Return the bytes of each file of the open shard."""
        documents = self._open["documents"]
        sizes = (self._open["tokens"] * self.dtype.itemsize, 8 * (documents + 1), self._open["name_bytes"])
        return dict(zip(PARTS, sizes, strict=True)) if documents else {}

    def _restore(self) -> None:
        stem = stem_of(len(self.entries))
        wanted = {stem + suffix: size for suffix, size in self._sizes().items()}
        finished = {stem_of(number) + suffix for number in range(len(self.entries)) for suffix in (*PARTS, ".json")}
        for path in self.folder.iterdir():
            if path.name in wanted:
                os.truncate(path, min(wanted[path.name], path.stat().st_size))
            elif path.name not in finished:
                path.unlink()
        for name, size in wanted.items():
            path = self.folder / name
            if (found := path.stat().st_size if path.exists() else 0) != size:
                raise DataError(f"{path}: {found} bytes, but {size} were written; start again with --overwrite true")

    def add(self, ids: list[int] | np.ndarray, name: str, text_bytes: int, source: str | None = None) -> None:
        """Append one document, including its eos.

        Args:
            ids: ids of the document.
            name: where its text was read.
            text_bytes: size of its text in UTF-8 bytes.
            source: the source that its text names; None if it names none.
        Raises:
            DataError: an id is not in 0..vocab_size-1; nothing of the document is written.
        """
        array = np.asarray(ids)
        if array.size and (array.max() >= self.vocab_size or array.min() < 0):
            place = int(np.flatnonzero((array < 0) | (array >= self.vocab_size))[0])
            raise DataError(
                f"{name}: token id {array[place]} at token {place} is outside the vocabulary of {self.vocab_size}; "
                "the tokenizer's files do not belong together; use another tokenizer"
            )
        if self._open["documents"] and self._open["tokens"] + array.size > self.max_tokens:
            self.flush()
        self._ids.append(array.astype(self.dtype))
        self._names.append(name_line(name, source))
        self._buffered += array.size
        self._open["documents"] += 1
        self._open["tokens"] += array.size
        self._open["text_bytes"] += text_bytes
        if self._buffered >= _BUFFERED_TOKENS:
            self._spill()

    def _spill(self) -> None:
        """Append the buffered data to the open shard's files."""
        if not self._ids:
            return
        ends = np.cumsum([ids.size for ids in self._ids]) + (self._open["tokens"] - self._buffered)
        first = [0] if self._open["documents"] == len(self._ids) else []
        names = b"".join(self._names)
        parts = (np.concatenate(self._ids).tobytes(), np.array([*first, *ends], dtype="<u8").tobytes(), names)
        for path, content in zip(self._paths(), parts, strict=True):
            with open(path, "ab") as file:
                file.write(content)
        self._open["name_bytes"] += len(names)
        self._unsynced = True
        self._clear_buffer()

    def _paths(self) -> list[Path]:
        return [self.folder / (stem_of(len(self.entries)) + suffix) for suffix in PARTS]

    def state(self) -> dict[str, int]:
        """Flush every added document to the disk, and return the state of the data there."""
        self._spill()
        if self._unsynced:
            for path in [*self._paths(), self.folder]:
                fsync_path(path)
            self._unsynced = False
        return dict(self._open)

    def flush(self) -> None:
        """Finish the open shard; do nothing if it is empty."""
        self._spill()
        if not self._open["documents"]:
            return
        files = {}
        for suffix, path in zip(PARTS, self._paths(), strict=True):
            fsync_path(path)
            files[suffix] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        names = PARTS[-1]
        if (digest := digest_without_sources(self._paths()[-1])) is not None:
            files[names]["names_sha256"] = digest
        entry = {
            "stem": stem_of(len(self.entries)),
            "dtype": self.dtype.name,
            **{key: self._open[key] for key in ("documents", "tokens", "text_bytes")},
            "files": files,
        }
        atomic_write_json(self.folder / f"{entry['stem']}.json", entry)
        self.entries.append(entry)
        self._unsynced = False
        self._open = _NOTHING_OPEN | {"shards": len(self.entries)}


def stem_of(number: int) -> str:
    """Return the name of a shard's files without their suffixes."""
    return f"shard-{number:05d}"
