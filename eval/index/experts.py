"""experts.parquet: one row for each unit of every group, for sorting, filtering and joins in any reader of parquet.

Dims: U units, C labels, F firing tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from monet.eval.index.arrays import Arrays
from monet.eval.index.info import IndexInfo
from monet.eval.index.tables import SQUARE_SCALE, SUM_SCALE
from monet.eval.index.units import KINDS, Units

_ROWS = 1 << 16
SCHEMA = pa.schema(
    [
        ("group", pa.uint16()),
        ("unit", pa.uint32()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("i", pa.uint16()),
        ("j", pa.uint16()),
        ("count", pa.int64()),
        ("rate", pa.float64()),
        ("mean", pa.float64()),
        ("deviation", pa.float64()),
        ("max", pa.float32()),
        ("best_label", pa.string()),
        ("label_ratio", pa.float64()),
        ("label_share", pa.float64()),
        ("label_entropy", pa.float64()),
        ("label_means", pa.list_(pa.float32())),
        ("tokens", pa.list_(pa.int32())),
        ("token_firings", pa.list_(pa.float64())),
        ("token_texts", pa.list_(pa.string())),
        ("token_share", pa.float64()),
        ("token_error", pa.float32()),
        ("distinct_tokens", pa.int32()),
        ("token_entropy", pa.float32()),
    ]
)


def write_experts(
    path: Path, info: IndexInfo, groups: Iterable[tuple[Arrays, Arrays, Arrays]], text_of: Callable[[int], str]
) -> None:
    """Write the table.

    Args:
        path: the file; not atomic, since an index is published as a whole folder.
        info: sizes, labels and numbers of tokens.
        groups: for each group `contexts_of`, `counts_of`, and the firing tokens.
        text_of: text of a token id.
    """
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for group, (contexts, counts, tokens) in enumerate(groups):
            columns = _columns(group, info, contexts, counts, tokens)
            for start in range(0, info.units.per_group, _ROWS):
                rows = slice(start, start + _ROWS)
                table = {name: column[rows] for name, column in columns.items()}
                writer.write_table(_table(table, info.data.labels, text_of), row_group_size=_ROWS)


def _columns(group: int, info: IndexInfo, contexts: Arrays, counts: Arrays, tokens: Arrays) -> dict[str, Any]:
    """Columns as numpy arrays; labels and texts of tokens come later."""
    units = info.units
    count_U = counts["histogram_UY"].astype(np.int64).sum(1)
    total = max(info.num_tokens, 1)
    mean_U = counts["sum_CU"].sum(0) / SUM_SCALE / total
    square_U = counts["square_U"] / SQUARE_SCALE / total
    labels = label_columns(counts["sum_CU"], np.array(info.tokens))
    return {
        "group": np.full(units.per_group, group, np.uint16),
        **_keys(units),
        "count": count_U,
        "rate": count_U / total,
        "mean": mean_U,
        "deviation": np.sqrt(np.maximum(square_U - mean_U**2, 0.0)),
        "max": contexts["weight_UQ"][:, 0],
        **labels,
        "token_UF": tokens["token_UF"],
        "firings_UF": tokens["firings_UF"],
        "token_share": tokens["firings_UF"][:, 0] / np.maximum(count_U, 1),
        "token_error": tokens["error_U"],
        "distinct_tokens": tokens["distinct_U"],
        "token_entropy": tokens["entropy_U"],
    }


def label_columns(sum_CU: NDArray[np.int64], tokens_C: NDArray[np.int64]) -> dict[str, Any]:
    """What the mean weights by label say about each unit.

    Returns:
        best_label: index of the label with the largest mean, the first of equal ones; -1 if the unit never fires.
        label_ratio: largest mean divided by the second; infinite if the second is 0, NaN if the unit never fires.
        label_share: largest mean divided by the sum of the means; NaN if the unit never fires.
        label_entropy: entropy of the means, divided by their sum, in bits; 0 to log2(C).
        mean_UC: float32, the means.
    """
    mean_CU = sum_CU / SUM_SCALE / np.maximum(tokens_C, 1)[:, None]
    ordered_CU = np.sort(mean_CU, axis=0)
    first_U, total_U = ordered_CU[-1], mean_CU.sum(0)
    second_U = ordered_CU[-2] if len(ordered_CU) > 1 else np.zeros_like(first_U)
    fires_U = first_U > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        share_CU = mean_CU / total_U
        entropy_U = -(share_CU * np.log2(np.where(share_CU > 0, share_CU, 1.0))).sum(0)
        return {
            "best_label": np.where(fires_U, mean_CU.argmax(0), -1),
            "label_ratio": first_U / second_U,
            "label_share": first_U / total_U,
            "label_entropy": entropy_U,
            "mean_UC": mean_CU.T.astype(np.float32),
        }


def _keys(units: Units) -> dict[str, Any]:
    pair_N = np.arange(units.pairs)
    key_E, none_E, none_N = np.arange(units.keys), np.full(units.keys, -1), np.zeros(units.pairs, np.int8)
    return {
        "unit": np.arange(units.per_group, dtype=np.uint32),
        "kind": np.concatenate([none_N, np.repeat(np.array([1, 2], np.int8), units.keys)]),
        "i": np.concatenate([pair_N // units.keys, key_E, none_E]),
        "j": np.concatenate([pair_N % units.keys, none_E, key_E]),
    }


def _table(rows: dict[str, Any], labels: list[str], text_of: Callable[[int], str]) -> pa.Table:
    """Arrow columns; numbers that mean "none" become null."""
    texts: dict[int, str] = {}
    kept_UF = rows["token_UF"] >= 0
    token_X = rows["token_UF"][kept_UF]
    for token in np.unique(token_X).tolist():
        texts[token] = text_of(token)
    begin_U1 = pa.array(np.concatenate([[0], np.cumsum(kept_UF.sum(1))]).astype(np.int32))
    best_U = rows["best_label"]
    means_UC = rows["mean_UC"]
    width_U1 = pa.array((np.arange(len(means_UC) + 1) * means_UC.shape[1]).astype(np.int32))
    found = {
        "kind": pa.DictionaryArray.from_arrays(pa.array(rows["kind"]), list(KINDS)),
        "best_label": pa.array(labels).take(pa.array(best_U, mask=best_U < 0)),
        "label_means": pa.ListArray.from_arrays(width_U1, pa.array(means_UC.reshape(-1))),
        "tokens": pa.ListArray.from_arrays(begin_U1, pa.array(token_X)),
        "token_firings": pa.ListArray.from_arrays(begin_U1, pa.array(rows["firings_UF"][kept_UF])),
        "token_texts": pa.ListArray.from_arrays(begin_U1, pa.array([texts[token] for token in token_X.tolist()])),
    }
    for name in ("i", "j"):
        found[name] = pa.array(rows[name], SCHEMA.field(name).type, mask=rows[name] < 0)
    found["distinct_tokens"] = pa.array(rows["distinct_tokens"], mask=rows["distinct_tokens"] < 0)
    for name in ("label_ratio", "label_share", "label_entropy", "token_entropy"):
        found[name] = pa.array(rows[name], mask=np.isnan(rows[name]))
    columns = [found[name] if name in found else pa.array(rows[name]) for name in SCHEMA.names]
    return pa.table(columns, schema=SCHEMA)
