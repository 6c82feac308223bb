"""Tables -> documents: rows of parquet, CSV and TSV files, in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from typing import Any

from monet.data.faults import broken, no_key, too_long
from monet.data.formats import BROKEN_ARCHIVE
from monet.data.sources import Document, Skipped, TextFile
from monet.errors import DataError

_ROWS_AT_A_TIME = 16  # so many texts of the greatest size must fit in memory
_PARQUET_BUFFER = 1 << 20


def parquet_rows(
    file: TextFile, skipped: Skipped, text_key: str, source_key: str, max_bytes: int
) -> Iterator[Document]:
    """Rows of a parquet file, read page by page: a row group of any size takes the memory of its largest page."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file.path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as table:
            schema = table.schema_arrow
            if not _has_column(schema, text_key):
                raise DataError(
                    f"{file.path}: no column {text_key!r} among {schema.names}; name the right one with --text_key"
                )
            columns = [text_key, source_key] if _has_column(schema, source_key) else [text_key]
            if twice := [key for key in columns if schema.names.count(key) > 1]:
                raise DataError(
                    f"{file.path}: {schema.names.count(twice[0])} columns are named {twice[0]!r}; rename one"
                )
            batches = table.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns, use_threads=False)
            for batch in batches:
                originals = _column(batch, source_key) if len(columns) == 2 else [None] * len(batch)
                for text, original in zip(_column(batch, text_key), originals, strict=True):
                    number += 1
                    where = f"{file.path} row {number}"
                    if hasattr(text, "as_buffer") and text.is_valid and text.as_buffer().size > max_bytes:
                        skipped.problem("too long", too_long(where, "text", max_bytes))
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
        broken(file, f"parquet file after row {number}", error, skipped)


def _has_column(schema: Any, key: str) -> bool:
    """Whether a schema has a column, or a field inside columns of structs ("data.text")."""
    import pyarrow

    if key in schema.names:
        return True
    first, *rest = key.split(".")
    if not rest or schema.names.count(first) != 1:
        return False
    kind = schema.field(first).type
    for part in rest:
        if not pyarrow.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return False
        kind = kind.field(part).type
    return True


def _column(batch: Any, key: str) -> Any:
    from pyarrow import compute

    if key in batch.schema.names:
        return batch.column(key)
    first, *rest = key.split(".")
    return compute.struct_field(batch.column(first), rest)  # pyright: ignore[reportAttributeAccessIssue]


def delimited_rows(
    file: TextFile,
    opener: Callable[..., Any],
    skipped: Skipped,
    delimiter: str,
    text_key: str,
    source_key: str,
    max_bytes: int,
) -> Iterator[Document]:
    """Rows of a CSV or TSV file whose first row names the columns; fields in double quotes can hold line breaks."""
    # a limit of the whole process; never lowered, since another reader may need it
    csv.field_size_limit(max(csv.field_size_limit(), min(max_bytes, 1 << 62)))
    number = 0
    try:
        with opener(file.path, "rb") as stream:
            # strict: a stray quote is a fault, it would swallow the rows behind it
            rows = csv.reader(_decoded(stream, max_bytes), delimiter=delimiter, strict=True)
            header = next(rows, None)
            if header is None:
                return
            if text_key not in header:
                raise DataError(
                    f"{file.path}: {no_key(text_key, header)}, or read such files as plain text with --format text"
                )
            text_column = header.index(text_key)
            source_column = header.index(source_key) if source_key in header else None
            for number, row in enumerate(rows, start=1):
                if not row:
                    continue
                where = f"{file.path} row {number}"
                if len(row) != len(header):
                    skipped.problem("no text", f"{where}: {len(row)} fields where the header names {len(header)}")
                    continue
                name = f"{file.name}:{number}"
                source = name if source_column is None else row[source_column]
                if any("\udc80" <= letter <= "\udcff" for letter in row[text_column]):
                    skipped.problem("undecodable", f"{where}: the text is not UTF-8")
                    continue
                yield Document(row[text_column], file.domain, source or name, name)
    except _LineTooLong:
        skipped.problem("too long", too_long(f"{file.path} row {number + 1}", "line", max_bytes))
    except csv.Error as error:
        format_name = "CSV" if delimiter == "," else "TSV"
        skipped.problem("broken", f"{file.path} row {number + 1}: not {format_name} ({error})")
    except BROKEN_ARCHIVE as error:
        broken(file, f"archive after row {number}", error, skipped)


class _LineTooLong(Exception):
    pass


def _decoded(stream: Any, max_bytes: int) -> Iterator[str]:
    """Lines as text; bytes that are no UTF-8 become surrogates, so that the row can be named."""
    is_first = True
    while line := stream.readline(max_bytes + 1):
        if len(line) > max_bytes:
            raise _LineTooLong
        yield line.decode("utf-8-sig" if is_first else "utf-8", "surrogateescape")
        is_first = False
