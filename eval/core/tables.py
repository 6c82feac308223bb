"""Read Arrow and parquet files of unknown origin as tables, in bounded memory, without instructions to `datasets`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from monet.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BYTES = 1 << 30
_ROWS_AT_A_TIME = 16  # a page of few bytes can repeat a long text many times
_BUFFER = 1 << 20


def read_parquet(path: Path) -> pa.Table:
    """All rows of a parquet file.

    The table has no metadata. In metadata, a file can declare a column as images, and `datasets` would then open the
    address that a row names.

    Raises:
        DataError: the content is larger than `MAX_BYTES`; this is found before the content is in memory.
        pyarrow.ArrowException, OSError: the file is damaged or cannot be read.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
        _refuse_above(path, sum(group.total_byte_size for group in groups))
        return _table(path, file.schema_arrow, file.iter_batches(batch_size=_ROWS_AT_A_TIME, use_threads=False))


def read_arrow(path: Path) -> pa.Table:
    """All rows of an Arrow file or stream. Metadata and errors are as for `read_parquet`."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as source:
        try:
            stream = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            source.seek(0)
            file = pa.ipc.open_file(source)
            return _table(path, file.schema, map(file.get_batch, range(file.num_record_batches)))
        return _table(path, stream.schema, stream)


def _table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    import pyarrow as pa

    taken, size = [], 0
    for batch in batches:
        size += batch.nbytes
        _refuse_above(path, size)
        taken.append(batch)
    plain = pa.schema([field.remove_metadata() for field in schema])
    return pa.Table.from_batches(taken, schema).replace_schema_metadata(None).cast(plain).combine_chunks()


def _refuse_above(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{path}: holds more than {MAX_BYTES} bytes when unpacked; split it into smaller files")
