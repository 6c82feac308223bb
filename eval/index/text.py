"""windows.parquet: the windows that an index read, with their labels, documents and token ids.

The file makes an index complete: contexts name a window and a position, and this file has the window. Rows are in the
order of the window numbers, in row groups of `ROWS` windows.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from monet.errors import CheckpointError, ConfigError
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.core.inputs import Batch, LabelledData
from monet.files import atomic_path

ROWS = 1024
SCHEMA = pa.schema(
    [
        ("window", pa.uint32()),
        ("label", pa.string()),
        ("document", pa.string()),
        ("source", pa.string()),
        ("tokens", pa.int32()),
        ("ids", pa.list_(pa.int32())),
        ("position_ids", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Window:
    """One window of the text.

    Attributes:
        number: number of the window in its data.
        label: its label.
        document: the document in which it begins.
        source: the source of this document; None if it is not known.
        tokens: number of its counted tokens.
        ids: token ids.
        position_ids: position of each token in its document, if documents do not attend to each other; otherwise None.
    """

    number: int
    label: str
    document: str
    source: str | None
    tokens: int
    ids: list[int]
    position_ids: list[int] | None


def rows_of(data: LabelledData, batches: Iterator[Batch], exclusion: Exclusion) -> Iterator[dict[str, Any]]:
    """The rows of some batches without pads.

    Args:
        data: the whole text, for labels and sources.
        batches: windows to describe; they may be a part of the text.
        exclusion: tokens that do not count.
    """
    sources = _sources(data)
    for batch in batches:
        positions_BT = batch.position_ids_BT
        for row, number in enumerate(batch.index_B.tolist()):
            ids_T = batch.input_ids_BT[row]
            place_T = np.arange(len(ids_T)) if positions_BT is None else positions_BT[row].numpy()
            counted_T = exclusion.counted(ids_T, batch.input_ids_BT.new_tensor(place_T))
            yield {
                "window": number,
                "label": data.labels[int(batch.label_B[row])],
                "document": batch.document_B[row],
                "source": sources.get(number),
                "tokens": int(counted_T.sum()),
                "ids": ids_T.tolist(),
                "position_ids": None if positions_BT is None else place_T.tolist(),
            }


def _sources(data: LabelledData) -> dict[int, str | None]:
    """The source of each window; sources come by label, in the order of the windows."""
    waiting = {label: iter(found) for label, found in data.window_sources().items()}
    if not any(any(source is not None for source in found) for found in data.window_sources().values()):
        return {}
    found: dict[int, str | None] = {}
    for batch in data.batches(64):
        for number, label in zip(batch.index_B.tolist(), batch.label_B.tolist(), strict=True):
            found[number] = next(waiting[data.labels[label]])
    return found


def write_windows(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write rows from several tables in the order of their window numbers.

    Raises:
        CheckpointError: a window occurs twice.
    """
    table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    window_W = table.column("window").to_numpy()
    if len(np.unique(window_W)) != len(window_W):
        raise CheckpointError("two parts hold the same window, so its tokens would count twice; merge different parts")
    table = table.take(pa.array(np.argsort(window_W, kind="stable"))).combine_chunks()
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for start in range(0, len(table), ROWS):
            writer.write_table(table.slice(start, ROWS))


def table_of(rows: Iterator[dict[str, Any]]) -> pa.Table:
    """Rows as a table; column by column in pieces of `ROWS`, which take less memory than Python objects."""
    pieces, waiting = [], defaultdict(list)
    for row in rows:
        for name, value in row.items():
            waiting[name].append(value)
        if len(waiting["window"]) == ROWS:
            pieces.append(pa.table(dict(waiting), schema=SCHEMA))
            waiting.clear()
    if waiting:
        pieces.append(pa.table(dict(waiting), schema=SCHEMA))
    return pa.concat_tables(pieces) if pieces else SCHEMA.empty_table()


class WindowTexts:
    """Reads windows by number, a row group at a time."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        self.number_W: NDArray[np.int64] = self._file.read(["window"]).column("window").to_numpy().astype(np.int64)
        self._group: Callable[[int], pa.Table] = functools.lru_cache(maxsize=8)(self._read)

    def __getitem__(self, number: int) -> Window:
        """A window.

        Raises:
            ConfigError: the index has no such window.
        """
        place = int(np.searchsorted(self.number_W, number))
        if place == len(self.number_W) or self.number_W[place] != number:
            raise ConfigError(f"window {number} is not in the index, which has {len(self.number_W)} windows")
        row = self._group(place // ROWS).slice(place % ROWS, 1).to_pylist()[0]
        return Window(number, *(row[name] for name in SCHEMA.names[1:]))

    def keep(self, size: int) -> None:
        """Read windows into memory, from the first, so that later reads of them are quick.

        Args:
            size: bytes that the windows may take.
        """
        groups, kept = [], 0
        for group in range(self._file.num_row_groups):
            table = self._read(group)
            kept += table.nbytes
            if kept > size:
                break
            groups.append(table)
        rest = functools.lru_cache(maxsize=8)(self._read)
        self._group = lambda group: groups[group] if group < len(groups) else rest(group)

    def flat_ids(self, path: Path) -> FlatIds:
        """All token ids in one array, in a temporary file."""
        lengths, begin = [], 0
        with open(path, "wb") as file:
            for group in range(self._file.num_row_groups):
                column = self._file.read_row_group(group, ["ids"]).column("ids").combine_chunks()
                lengths.append(np.diff(column.offsets.to_numpy()))
                file.write(column.flatten().to_numpy(zero_copy_only=False).astype(np.int32).tobytes())
        length_W = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        begin_W = np.cumsum(length_W, dtype=np.int64) - length_W
        total = begin + int(length_W.sum())
        ids = np.memmap(path, np.int32, "r", shape=(total,)) if total else np.zeros(0, np.int32)
        return FlatIds(self.number_W, begin_W, ids)

    def _read(self, group: int) -> pa.Table:
        return self._file.read_row_group(group)


@dataclass(frozen=True)
class FlatIds:
    """Token ids of all windows, for fast access to many places.

    Args:
        number_W: window numbers, ascending.
        begin_W: place of each window's first token.
        ids: int32, all tokens.
    """

    number_W: NDArray[np.int64]
    begin_W: NDArray[np.int64]
    ids: NDArray[np.int32]

    def at(self, window: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.int32]:
        """The ids at places that exist."""
        return self.ids[self.begin_W[np.searchsorted(self.number_W, window)] + position]
