"""Reads documents from the rows of parquet, CSV and TSV files, in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from typing import Any

from monet.data.documents.faults import broken, too_long
from monet.data.documents.formats import BROKEN_ARCHIVE
from monet.data.documents.keys import joined, no_key, not_text, split_keys
from monet.data.documents.sources import Document, Skipped, TextFile
from monet.errors import DataError

_ROWS_AT_A_TIME = 16  # this number of texts of the maximum size must fit in memory
_PARQUET_BUFFER = 1 << 20


def parquet_rows(
    file: TextFile, skipped: Skipped, text_key: str, source_key: str, max_bytes: int
) -> Iterator[Document]:
    """Read a parquet file page by page, so that a row group of any size takes the memory of its largest page only."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(file.path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as table:
            schema = table.schema_arrow
            keys = split_keys(text_key, schema.names)
            if absent := [key for key in keys if not _has_column(schema, key)]:
                raise DataError(
                    f"{file.path}: no column {absent[0]!r} among {schema.names}; name the right one with --text_key"
                )
            columns = [*keys, source_key] if _has_column(schema, source_key) else keys
            if twice := [key for key in columns if schema.names.count(key) > 1]:
                raise DataError(
                    f"{file.path}: {schema.names.count(twice[0])} columns are named {twice[0]!r}; rename one"
                )
            batches = table.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns, use_threads=False)
            for batch in batches:
                originals = [None] * len(batch) if columns is keys else _column(batch, source_key)
                for original, *texts in zip(originals, *(_column(batch, key) for key in keys), strict=True):
                    number += 1
                    where = f"{file.path} row {number}"
                    if any(
                        hasattr(text, "as_buffer") and text.is_valid and text.as_buffer().size > max_bytes
                        for text in texts
                    ):
                        skipped.problem("too long", too_long(where, "text", max_bytes))
                        continue
                    try:
                        values = [text.as_py() for text in texts]
                        source = None if original is None else original.as_py()
                    except UnicodeDecodeError as error:
                        skipped.problem(
                            "undecodable", f"{where}: byte {error.start} of its text or source is not UTF-8"
                        )
                        continue
                    if (value := joined(values)) is None:
                        skipped.problem("no text", f"{where}: {not_text(dict(zip(keys, values, strict=True)))}")
                        continue
                    name = f"{file.name}:{number}"
                    yield Document(
                        value, file.domain, name if source is None else str(source), name, source is not None
                    )
    except (pyarrow.ArrowException, OSError) as error:
        broken(file, f"parquet file after row {number}", error, skipped)


def _has_column(schema: Any, key: str) -> bool:
    """Return whether a schema has a column, or a field inside struct columns ("data.text")."""
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
    """Read a CSV or TSV file whose first row names the columns; fields in double quotes can contain line breaks."""
    # the limit applies to the whole process; never lower it, because another reader may need it
    csv.field_size_limit(max(csv.field_size_limit(), min(max_bytes, 1 << 62)))
    number = 0
    try:
        with opener(file.path, "rb") as stream:
            # strict: a stray quote is an error; otherwise it would swallow the following rows
            rows = csv.reader(_decoded(stream, max_bytes), delimiter=delimiter, strict=True)
            header = next(rows, None)
            if header is None:
                return
            keys = split_keys(text_key, header)
            if absent := [key for key in keys if key not in header]:
                raise DataError(
                    f"{file.path}: {no_key(absent[0], header)}, or read such files as plain text with --format text"
                )
            text_columns = [header.index(key) for key in keys]
            source_column = header.index(source_key) if source_key in header else None
            for number, row in enumerate(rows, start=1):
                if not row:
                    continue
                where = f"{file.path} row {number}"
                if len(row) != len(header):
                    skipped.problem("no text", f"{where}: {len(row)} fields, but the header names {len(header)}")
                    continue
                name = f"{file.name}:{number}"
                source = name if source_column is None else row[source_column]
                text = joined([row[column] for column in text_columns]) or ""
                if any("\udc80" <= letter <= "\udcff" for letter in text):
                    skipped.problem("undecodable", f"{where}: the text is not UTF-8")
                    continue
                has_source = source_column is not None and source != ""
                yield Document(text, file.domain, source or name, name, has_source)
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
    """Yield lines as text; invalid UTF-8 bytes become surrogates, so that the message can name the row."""
    is_first = True
    while line := stream.readline(max_bytes + 1):
        if len(line) > max_bytes:
            raise _LineTooLong
        yield line.decode("utf-8-sig" if is_first else "utf-8", "surrogateescape")
        is_first = False
