"""Token ids -> shards of bounded size, written piece by piece, so that a killed writer goes on where it stood."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from monet.data.names import digest_without_sources, name_line
from monet.data.shards import PARTS
from monet.errors import DataError
from monet.files import atomic_write_json, fsync_path, sha256_file

_BUFFERED_TOKENS = 1 << 16
_NOTHING_OPEN = {"shards": 0, "documents": 0, "tokens": 0, "text_bytes": 0, "name_bytes": 0}


class ShardWriter:
    """Writes the documents of one split and domain.

    An open shard grows on the disk; a full one gets its entry (`shard-00000.json`). `state()` describes what is on the
    disk, and a writer made with that description cuts off everything that came after it.

    Args:
        folder: where the shards go; made when missing.
        dtype: of the ids, see `dtype_for`.
        vocab_size: ids must lie below.
        max_tokens: a shard is closed before it exceeds this; only a longer document has a larger shard, to itself.
        state: what `state()` returned; None begins anew, and removes what is in the folder.
    Attributes:
        entries: of the finished shards, for the manifest.
    Raises:
        DataError: a file is shorter than its description.
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
        """Bytes of each part of the open shard."""
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
                raise DataError(f"{path}: {found} bytes where {size} were written; begin anew with --overwrite true")

    def add(self, ids: list[int] | np.ndarray, name: str, text_bytes: int, source: str | None = None) -> None:
        """Append one document, its eos included.

        Args:
            ids: of the document.
            name: where its text was read.
            text_bytes: of its text in UTF-8.
            source: that its text names; None where it names none.
        Raises:
            DataError: an id does not lie in 0..vocab_size-1; nothing of the document is written.
        """
        array = np.asarray(ids)
        if array.size and (array.max() >= self.vocab_size or array.min() < 0):
            place = int(np.flatnonzero((array < 0) | (array >= self.vocab_size))[0])
            raise DataError(
                f"{name}: token id {array[place]} at token {place} is outside the vocabulary of {self.vocab_size}; "
                "the tokenizer's files do not belong together"
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
        """Append what is buffered to the open shard's files."""
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
        """What is on the disk now, every document that was added included; flushed to the disk."""
        self._spill()
        if self._unsynced:
            for path in [*self._paths(), self.folder]:
                fsync_path(path)
            self._unsynced = False
        return dict(self._open)

    def flush(self) -> None:
        """Finish the open shard; does nothing when it is empty."""
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
    """Name of a shard's files without their suffixes."""
    return f"shard-{number:05d}"
