"""Detects the format of a file by its name and its first lines: JSON lines, a table, or plain text."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from monet.data.documents.keys import split_keys, text_at
from monet.data.documents.sources import TextFile

FileFormat = Literal["auto", "text", "jsonl", "csv", "tsv"]
Kind = Literal["text", "jsonl", "json array", "csv", "tsv", "parquet"]

BROKEN_ARCHIVE = (EOFError, lzma.LZMAError, zlib.error, OSError)  # gzip, bz2 and Arrow raise OSError
PARQUET = ".parquet"
_BY_SUFFIX: dict[str, Kind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".jsonlines": "jsonl", ".csv": "csv", ".tsv": "tsv", PARQUET: "parquet",
}  # fmt: skip
_WORDS: dict[Kind, str] = {
    "text": "as plain text", "jsonl": "as JSON lines", "json array": "as JSON arrays", "csv": "as CSV tables",
    "tsv": "as TSV tables", "parquet": "as parquet tables",
}  # fmt: skip
_HEAD_BYTES = 1 << 20


def _open_zstandard(path: Path, mode: str) -> Any:
    """Open zstandard files through Arrow, which the `datasets` package already requires."""
    import pyarrow

    return io.BufferedReader(_ArrowStream(pyarrow.input_stream(str(path), compression="zstd")))


class _ArrowStream(io.RawIOBase):
    """Adapts an Arrow stream to `io`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._stream.close()
        super().close()


_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _open_zstandard,
}


def opener_of(path: Path) -> Callable[..., Any]:
    """Return the function that opens a file for reading; it unpacks .gz, .xz, .bz2 and .zst."""
    return _OPENERS.get(path.suffix.lower(), open)


def _suffix(path: Path) -> str:
    """Return the suffix that names the format, without a compression suffix; "" if there is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def kind_of(path: Path, file_format: FileFormat, text_key: str) -> Kind:
    """Return the format in which a file is read.

    Args:
        path: the file; it is opened only if its name ends with .json (or .json.gz and so on).
        file_format: "auto" decides by name and first lines; any other value applies to all files except parquet tables.
        text_key: see `monet.data.documents.keys.text_at`.
    """
    suffix = _suffix(path)
    if suffix == PARQUET:
        return "parquet"
    if file_format != "auto":
        return file_format
    return _kind_of_json(path, text_key) if suffix == ".json" else _BY_SUFFIX.get(suffix, "text")


def _kind_of_json(path: Path, text_key: str) -> Kind:
    """Distinguish JSON lines, an array of records, and a document of another form (such as a program's settings)."""
    try:
        with opener_of(path)(path, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except BROKEN_ARCHIVE:  # the reader of the file reports this
        return "text"
    lines = head.decode("utf-8-sig", "replace").lstrip().splitlines()
    if not lines:
        return "text"
    if lines[0].startswith("["):
        name = split_keys(text_key)[0].rpartition(".")[2]
        return "json array" if f'"{name}"' in head.decode("utf-8", "replace") else "text"
    if looks_like_record(lines[0], text_key):
        return "jsonl"
    is_cut = len(lines) == 1 and len(head) == _HEAD_BYTES
    if is_cut:
        return "jsonl" if lines[0].startswith("{") else "text"
    more = [line for line in lines[1:3] if line.strip()]
    return "jsonl" if more and _record(lines[0]) is not None and more[0].startswith("{") else "text"


def looks_like_record(line: str, text_key: str) -> bool:
    """Return whether a line is a JSON object with text under the key."""
    record = _record(line)
    return record is not None and text_at(record, text_key) is not None


def _record(line: str) -> dict[str, Any] | None:
    if not line.lstrip().startswith("{"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def described(files: Iterable[TextFile], file_format: FileFormat, text_key: str) -> str | None:
    """Return one line with the number of files that are read in each format; None without files."""
    kinds: Counter[Kind] = Counter()
    suffixes: dict[Kind, Counter[str]] = {}
    for file in files:
        kind = kind_of(file.path, file_format, text_key)
        kinds[kind] += 1
        suffixes.setdefault(kind, Counter())[_suffix(file.path) or "no suffix"] += 1
    if not kinds:
        return None
    parts = [
        f"{count:,} {_WORDS[kind]} ({', '.join(name for name, _ in suffixes[kind].most_common(5))})"
        for kind, count in kinds.most_common()
    ]
    return f"files: {'; '.join(parts)}"
