"""A file -> its documents, one at a time and in bounded memory, whatever the file claims to hold."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from monet.data.sources import Document, Skipped, TextFile
from monet.errors import DataError

MAX_DOCUMENT_BYTES = 1 << 26
PARQUET = ".parquet"
_BROKEN_ARCHIVE = (EOFError, lzma.LZMAError, zlib.error, OSError)  # gzip, bz2 and Arrow raise OSError
_ROWS_AT_A_TIME = 16  # so many texts of the greatest size must fit in memory
_PARQUET_BUFFER = 1 << 20


def _open_zstandard(path: Path, mode: str) -> Any:
    """zstandard frames through Arrow, which the hub's data sets bring along anyway."""
    import pyarrow

    return io.BufferedReader(_ArrowStream(pyarrow.input_stream(str(path), compression="zstd")))


class _ArrowStream(io.RawIOBase):
    """Arrow's stream for `io`."""

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


def read_documents(
    file: TextFile,
    skipped: Skipped,
    *,
    text_key: str = "text",
    source_key: str = "source",
    max_bytes: int = MAX_DOCUMENT_BYTES,
) -> Iterator[Document]:
    """Documents of one file: each record of a .jsonl or .parquet file, or the whole of any other file as one text.

    Text and .jsonl files may also be compressed (.gz, .xz, .bz2, .zst). Documents without any visible character are
    left out and counted as "empty" whatever the rule for errors: an empty `__init__.py` is no fault.

    Args:
        file: the file to read, UTF-8.
        skipped: collects what is left out; refuses instead unless its rule is "skip".
        text_key: key or column of a record that holds the text.
        source_key: key or column that names its original; where it is absent each record is an original.
        max_bytes: a longer text (for .jsonl: a longer line) is a fault, found before it is in memory.
    Raises:
        DataError: names the file and, where there is one, the line, row or byte.
    """
    opener = _OPENERS.get(file.path.suffix.lower(), open)
    suffixes = [suffix.lower() for suffix in file.path.suffixes]
    if suffixes[-1:] == [PARQUET]:
        documents = _rows(file, skipped, text_key, source_key, max_bytes)
    elif (suffixes[-2:-1] if opener is not open else suffixes[-1:]) == [".jsonl"]:
        documents = _records(file, opener, skipped, text_key, source_key, max_bytes)
    else:
        documents = _text(file, opener, skipped, max_bytes)
    for document in documents:
        if not document.text.strip():
            skipped.counts["empty"] += 1
        elif usable(document.text, document.name, skipped, max_bytes):
            yield document


def usable(text: str, name: str, skipped: Skipped, max_bytes: int) -> bool:
    """Whether a text can be written as UTF-8 and is not too long; a fault otherwise."""
    try:
        size = len(text.encode("utf-8")) if len(text) * 4 > max_bytes or not text.isascii() else len(text)
    except UnicodeEncodeError as error:
        skipped.problem("surrogate", f"{name}: character {error.start} is half of a surrogate pair and no text")
        return False
    if size > max_bytes:
        skipped.problem("too long", _too_long(name, "text", max_bytes))
    return size <= max_bytes


def _too_long(where: str, what: str, max_bytes: int) -> str:
    return f"{where}: the {what} is longer than max_document_bytes {max_bytes}; raise that if it is meant to be"


def _broken(file: TextFile, what: str, error: Exception, skipped: Skipped) -> None:
    """A fault of the file's content; an OSError with an errno is one of the disk and is raised again."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    skipped.problem("broken", f"{file.path}: broken or truncated {what} ({reason})")


def _text(file: TextFile, opener: Callable[..., Any], skipped: Skipped, max_bytes: int) -> Iterator[Document]:
    try:
        with opener(file.path, "rb") as stream:
            content: bytes = stream.read(max_bytes + 1)
        if len(content) > max_bytes:
            return skipped.problem("too long", _too_long(str(file.path), "text", max_bytes))
        text = content.decode("utf-8-sig")
    except _BROKEN_ARCHIVE as error:
        return _broken(file, "archive", error, skipped)
    except UnicodeDecodeError as error:
        return skipped.problem(
            "undecodable", f"{file.path}: byte {error.start} (0x{error.object[error.start]:02x}) is not UTF-8 text"
        )
    if "\0" in text:
        return skipped.problem("undecodable", f"{file.path}: NUL at character {text.index(chr(0))}, not a text file")
    yield Document(text, file.domain, file.name, file.name)


def _lines(stream: Any, max_bytes: int) -> Iterator[bytes]:
    """Lines of at most `max_bytes`; of a longer one the first max_bytes + 1, its rest is passed over."""
    while line := stream.readline(max_bytes + 1):
        yield line
        while len(line) > max_bytes and not line.endswith(b"\n"):
            line = stream.readline(max_bytes + 1)


def _records(
    file: TextFile, opener: Callable[..., Any], skipped: Skipped, text_key: str, source_key: str, max_bytes: int
) -> Iterator[Document]:
    number = 0
    try:
        with opener(file.path, "rb") as stream:
            for number, line in enumerate(_lines(stream, max_bytes), start=1):
                if not line.strip():
                    continue
                where = f"{file.path}:{number}"
                if len(line) > max_bytes:
                    skipped.problem("too long", _too_long(where, "line", max_bytes))
                    continue
                try:
                    record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as error:
                    skipped.problem("undecodable", f"{where}: byte {error.start} of the line is not UTF-8 text")
                    continue
                except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
                    skipped.problem("not JSON", f"{where}: not a JSON record ({error})")
                    continue
                text = record.get(text_key) if isinstance(record, dict) else None
                if not isinstance(text, str):
                    skipped.problem("no text", f"{where}: {_missing_text(record, text_key)}")
                    continue
                original = record.get(source_key)
                name = f"{file.name}:{number}"
                yield Document(text, file.domain, name if original is None else str(original), name)
    except _BROKEN_ARCHIVE as error:
        _broken(file, f"archive after line {number}", error, skipped)


def _missing_text(record: object, text_key: str) -> str:
    if not isinstance(record, dict):
        return f"the record is {type(record).__name__}, not an object with the key {text_key!r}"
    if text_key in record:
        return f"the value of {text_key!r} is {type(record[text_key]).__name__}, not text"
    return f"no key {text_key!r} among {sorted(record)[:10]}; name the right one with --text_key"


def _rows(file: TextFile, skipped: Skipped, text_key: str, source_key: str, max_bytes: int) -> Iterator[Document]:
    """Rows of a parquet file, read page by page: a row group of any size takes the memory of its largest page."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file.path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as table:
            names = table.schema_arrow.names
            if text_key not in names:
                raise DataError(
                    f"{file.path}: no column {text_key!r} among {names}; name the right one with --text_key"
                )
            columns = [text_key, source_key] if source_key in names else [text_key]
            if twice := [key for key in columns if names.count(key) > 1]:
                raise DataError(f"{file.path}: {names.count(twice[0])} columns are named {twice[0]!r}; rename one")
            batches = table.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns, use_threads=False)
            for batch in batches:
                originals = batch.column(source_key) if len(columns) == 2 else [None] * len(batch)
                for text, original in zip(batch.column(text_key), originals, strict=True):
                    number += 1
                    where = f"{file.path} row {number}"
                    if hasattr(text, "as_buffer") and text.is_valid and text.as_buffer().size > max_bytes:
                        skipped.problem("too long", _too_long(where, "text", max_bytes))
                        continue
                    try:
                        value = text.as_py()
                        source = None if original is None else original.as_py()
                    except UnicodeDecodeError as error:
                        skipped.problem(
                            "undecodable", f"{where}: byte {error.start} of its text or source is not UTF-8"
                        )
                        continue
                    if not isinstance(value, str):
                        skipped.problem("no text", f"{where}: {text_key!r} is {type(value).__name__}, not text")
                        continue
                    name = f"{file.name}:{number}"
                    yield Document(value, file.domain, name if source is None else str(source), name)
    except (pyarrow.ArrowException, OSError) as error:
        _broken(file, f"parquet file after row {number}", error, skipped)
