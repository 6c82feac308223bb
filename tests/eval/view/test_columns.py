"""The columns equal the table of experts."""

import numpy as np
import pyarrow.parquet as pq

from monet.eval.index.units import KINDS
from monet.eval.view.columns import NUMBERS, Columns


def test_columns_are_the_table(store):
    columns, index = store.columns, store.index
    rows = pq.read_table(index.folder / "experts.parquet").to_pylist()
    assert len(columns) == len(rows)
    for name in NUMBERS:
        wanted = np.array([np.nan if row[name] is None else row[name] for row in rows], np.float64)
        np.testing.assert_allclose(columns.number[name].astype(np.float64), wanted, rtol=1e-6)
    for n, row in enumerate(rows):
        unit = columns.unit(n)
        assert (unit.group, unit.number, unit.i, unit.j) == (row["group"], row["unit"], row["i"], row["j"])
        assert columns.row(unit) == n and KINDS[columns.kind_N[n]] == row["kind"]
        labels = [*index.info.data.labels, None]
        assert labels[columns.label_N[n]] == row["best_label"]
        kept = len(row["tokens"])
        assert columns.token_NF[n, :kept].tolist() == row["tokens"] and (columns.token_NF[n, kept:] == -1).all()
        assert columns.firings_NF[n, :kept].tolist() == row["token_firings"]


def test_a_million_units_would_take_some_hundred_megabytes(store):
    columns = Columns(store.index)
    assert columns.bytes / len(columns) < 128
