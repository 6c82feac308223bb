"""The table of experts as columns in memory: what browsing sorts and filters.

One number of each column takes 4 or 8 bytes, so a million units take about 130 MB. No unit is a Python object. Rows are
in the order of the index: row n is unit n % U of routing group n // U.

Dims: N rows, U units of a group, F firing tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

from monet.errors import CheckpointError
from monet.eval.index import info as names
from monet.eval.index.firing import FIRING_TOKENS
from monet.eval.index.index import Index
from monet.eval.index.units import KINDS, Unit

pc: Any = pyarrow.compute  # it makes its functions when it is imported

# Columns that can be sorted and filtered by a range, with their types in memory.
NUMBERS: dict[str, Any] = {
    "count": np.int64,
    "rate": np.float32,
    "mean": np.float32,
    "deviation": np.float32,
    "max": np.float32,
    "label_ratio": np.float32,
    "label_share": np.float32,
    "label_entropy": np.float32,
    "token_share": np.float32,
    "token_error": np.float32,
    "distinct_tokens": np.float32,
    "token_entropy": np.float32,
}
_ROWS = 1 << 16


class Columns:
    """Columns of all units of an index.

    Args:
        index: the index.

    Attributes:
        number: the columns of `NUMBERS`, (N,) each; NaN stands for "none".
        group_N: uint16.
        kind_N: int8, place in `KINDS`.
        label_N: int16, place of the best label in the index's labels; -1 for none.
        token_NF: int32, the most frequent firing tokens; -1 in empty places.
        firings_NF: float32, their firings.

    Raises:
        CheckpointError: the table has another number of rows than the model has units.
    """

    def __init__(self, index: Index) -> None:
        units = index.units
        file = pq.ParquetFile(index.folder / names.EXPERTS)
        N = units.groups * units.per_group
        if file.metadata.num_rows != N:
            raise CheckpointError(
                f"{index.folder / names.EXPERTS} has {file.metadata.num_rows} rows, but the model has {N} units; run "
                "`monet index` again"
            )
        self.units = units
        self.number = {name: np.empty(N, dtype) for name, dtype in NUMBERS.items()}
        self.group_N, self.kind_N = np.empty(N, np.uint16), np.empty(N, np.int8)
        self.label_N = np.empty(N, np.int16)
        self.token_NF = np.full((N, FIRING_TOKENS), -1, np.int32)
        self.firings_NF = np.zeros((N, FIRING_TOKENS), np.float32)
        kinds, labels = pa.array(KINDS), pa.array(index.info.data.labels, pa.string())
        begin = 0
        columns = ["group", "kind", "best_label", "tokens", "token_firings", *NUMBERS]
        for batch in file.iter_batches(_ROWS, columns=columns, use_threads=False):
            rows = slice(begin, begin + len(batch))
            begin += len(batch)
            self.group_N[rows] = batch.column("group").to_numpy()
            self.kind_N[rows] = _places(batch.column("kind"), kinds)
            self.label_N[rows] = _places(batch.column("best_label"), labels)
            for name, dtype in NUMBERS.items():
                self.number[name][rows] = batch.column(name).to_numpy(zero_copy_only=False).astype(dtype)
            tokens, firings = batch.column("tokens"), batch.column("token_firings")
            _fill(self.token_NF[rows], tokens)
            _fill(self.firings_NF[rows], firings)
        pa.default_memory_pool().release_unused()

    def __len__(self) -> int:
        return len(self.group_N)

    def unit(self, row: int) -> Unit:
        """The unit of a row."""
        return self.units.unit(row // self.units.per_group, row % self.units.per_group)

    def row(self, unit: Unit) -> int:
        """The row of a unit."""
        return unit.group * self.units.per_group + unit.number

    @property
    def bytes(self) -> int:
        """Memory of the columns."""
        parts = [*self.number.values(), self.group_N, self.kind_N, self.label_N, self.token_NF, self.firings_NF]
        return sum(part.nbytes for part in parts)


def _places(column: Any, values: pa.Array) -> NDArray[np.int16]:
    """Place of each entry in `values`; -1 for null."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return pc.fill_null(pc.index_in(column, values), -1).to_numpy(zero_copy_only=False).astype(np.int16)


def _fill(table_XF: NDArray[Any], column: Any) -> None:
    """Write lists of at most F values into the first places of each row."""
    offsets = column.offsets.to_numpy()
    length_X = np.diff(offsets)
    row = np.repeat(np.arange(len(length_X)), length_X)
    place = np.arange(len(row)) - np.repeat(offsets[:-1] - offsets[0], length_X)
    table_XF[row, place] = column.flatten().to_numpy(zero_copy_only=False)
