"""Reads the documents of a file one at a time, in bounded memory for any content."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from monet.data import limits
from monet.data.documents.faults import broken, too_long
from monet.data.documents.formats import BROKEN_ARCHIVE, FileFormat, kind_of, looks_like_record, opener_of
from monet.data.documents.keys import missing_text, text_at, value_at
from monet.data.documents.sources import Document, Skipped, TextFile
from monet.data.documents.tables import delimited_rows, parquet_rows

MAX_DOCUMENT_BYTES = 1 << 26
NO_SOURCE = "has no source"  # key of a fetched record whose row names no original
END_OF_TEXT = "<|endoftext|>"  # separator between the documents of a text file in many corpora


def read_documents(
    file: TextFile,
    skipped: Skipped,
    *,
    text_key: str = "text",
    source_key: str = "source",
    max_bytes: int = MAX_DOCUMENT_BYTES,
    file_format: FileFormat = "auto",
    separator: str | None = None,
) -> Iterator[Document]:
    """Yield the documents of one file: each record of JSON lines or of a table, or a whole plain text file.

    All formats except parquet may also be compressed (.gz, .xz, .bz2, .zst). Documents without a visible character are
    left out and counted as "empty" under any error rule: an empty `__init__.py` is not a fault.

    Args:
        file: the file to read, UTF-8.
        skipped: collects items that are left out; raises an error unless its rule is "skip".
        text_key: key or column of a record that holds the text; "data.text" is the key "text" inside "data", and
            "title,body" are two keys, see `monet.data.documents.keys.text_at`.
        source_key: key or column that names the original; without it each record is an original.
        max_bytes: a longer text (for JSON lines, CSV and TSV: a longer line) is a fault, found before it is in memory.
        file_format: see `monet.data.documents.formats.kind_of`.
        separator: text between the documents of a plain text file; None reads the file as one document.
    Raises:
        DataError: names the file and, if known, the line, row or byte.
    """
    opener, kind = opener_of(file.path), kind_of(file.path, file_format, text_key)
    if kind == "json array":
        return skipped.problem(
            "JSON array",
            f"{file.path}: a JSON array; write one record per line (jq -c '.[]'), or read such files as plain text "
            "with --format text",
        )
    if kind == "parquet":
        documents = parquet_rows(file, skipped, text_key, source_key, max_bytes)
    elif kind == "jsonl":
        documents = _records(file, opener, skipped, text_key, source_key, max_bytes)
    elif kind == "text":
        record_key = text_key if file_format == "auto" else None
        documents = _texts(file, opener, skipped, max_bytes, separator, record_key)
    else:
        delimiter = "," if kind == "csv" else "\t"
        documents = delimited_rows(file, opener, skipped, delimiter, text_key, source_key, max_bytes)
    for document in documents:
        if not document.text.strip():
            skipped.counts["empty"] += 1
        elif usable(document.text, document.name, skipped, max_bytes):
            yield document


def usable(text: str, name: str, skipped: Skipped, max_bytes: int) -> bool:
    """Return whether a text can be written as UTF-8 and is not too long; otherwise report a fault."""
    try:
        size = len(text.encode("utf-8")) if len(text) * 4 > max_bytes or not text.isascii() else len(text)
    except UnicodeEncodeError as error:
        skipped.problem("surrogate", f"{name}: character {error.start} is half of a surrogate pair, which is not text")
        return False
    if size > max_bytes:
        skipped.problem("too long", too_long(name, "text", max_bytes))
    return size <= max_bytes


def _texts(
    file: TextFile,
    opener: Callable[..., Any],
    skipped: Skipped,
    max_bytes: int,
    separator: str | None,
    record_key: str | None,
) -> Iterator[Document]:
    """Yield a plain text as one document, or as its parts between separators.

    Args:
        record_key: a text whose first line is a JSON object with text under this key is a fault; None allows it.
    """
    number = 0
    try:
        with opener(file.path, "rb") as stream:
            mark = separator.encode() if separator else None
            for number, content in enumerate(_pieces(stream, mark, max_bytes), start=1):
                where = str(file.path) if separator is None else f"{file.path} document {number}"
                if len(content) > max_bytes:
                    hint = "" if separator else "; a file of several documents needs --document_separator"
                    skipped.problem("too long", too_long(where, "text", max_bytes) + hint)
                    continue
                try:
                    text = content.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    byte = f"byte {error.start} (0x{error.object[error.start]:02x})"
                    skipped.problem("undecodable", f"{where}: {byte} is not UTF-8 text")
                    continue
                if "\0" in text:
                    where = f"{where}: NUL at character {text.index(chr(0))}"
                    skipped.problem("undecodable", f"{where}, not a text file")
                    continue
                if number == 1 and record_key and looks_like_record(text.split("\n", 1)[0], record_key):
                    return skipped.problem(
                        "JSON lines",
                        f"{file.path}: looks like JSON lines; rename it to .jsonl or give --format jsonl "
                        "(--format text reads it as plain text)",
                    )
                if separator is None:
                    if text.count(END_OF_TEXT) > 1:
                        skipped.notes[END_OF_TEXT] += 1
                    yield Document(text, file.domain, file.name, file.name)
                elif text.strip():
                    name = f"{file.name}:{number}"
                    yield Document(text.removeprefix("\n").removesuffix("\n"), file.domain, name, name, False)
    except BROKEN_ARCHIVE as error:
        broken(file, "archive" if number == 0 else f"archive after document {number}", error, skipped)


def _pieces(stream: Any, separator: bytes | None, max_bytes: int) -> Iterator[bytes]:
    """Yield the pieces between separators; a longer piece is cut after its first bytes, more than `max_bytes`."""
    if separator is None:
        yield stream.read(max_bytes + 1)
        return
    buffer, is_overlong = b"", False
    while block := stream.read(limits.BLOCK_BYTES):
        *whole, buffer = (buffer + block).split(separator)
        for piece in whole:
            if not is_overlong:
                yield piece
            is_overlong = False
        if len(buffer) > max_bytes + len(separator):
            if not is_overlong:
                yield buffer
            # a separator can start in this block and end in the next
            buffer, is_overlong = buffer[1 - len(separator) :] if len(separator) > 1 else b"", True
    if not is_overlong:
        yield buffer


def _lines(stream: Any, max_bytes: int) -> Iterator[bytes]:
    """Yield lines of at most `max_bytes`; a longer line is cut after max_bytes + 1, and its rest is skipped."""
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
                    skipped.problem("too long", too_long(where, "line", max_bytes))
                    continue
                try:
                    record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError as error:
                    skipped.problem("undecodable", f"{where}: byte {error.start} of the line is not UTF-8 text")
                    continue
                except (ValueError, RecursionError) as error:  # ValueError: also a number with thousands of digits
                    skipped.problem("not JSON", f"{where}: not a JSON record ({error})")
                    continue
                text = text_at(record, text_key) if isinstance(record, dict) else None
                if text is None:
                    skipped.problem("no text", f"{where}: {missing_text(record, text_key)}")
                    continue
                original = value_at(record, source_key)
                name = f"{file.name}:{number}"
                has_source = original is not None and not (file.fetched and record.get(NO_SOURCE))
                yield Document(text, file.domain, name if original is None else str(original), name, has_source)
    except BROKEN_ARCHIVE as error:
        broken(file, f"archive after line {number}", error, skipped)
