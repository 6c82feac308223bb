"""Neighbours among chosen units, all at once: the measures of `Expert.neighbours`, as products of matrices.

Dims: X units of one group and kind, W windows, C labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from monet.eval.index.index import Index
from monet.eval.index.units import Unit

_EMPTY = 2**32 - 1
_ROWS = 512


def neighbours(index: Index, units: Sequence[Unit], count: int) -> list[dict[str, list[list[Any]]]]:
    """The most similar units among some units, of the same group and kind.

    Args:
        index: the index.
        units: the units.
        count: neighbours of each unit and measure.

    Returns:
        For each unit, lists of name and similarity by measure: contexts, labels, and key for experts.
    """
    found: list[dict[str, list[list[Any]]]] = [{} for _ in units]
    sets: dict[tuple[int, str], list[int]] = defaultdict(list)
    for n, unit in enumerate(units):
        sets[unit.group, unit.kind].append(n)
    for (group, kind), places in sets.items():
        number_X = np.array([units[n].number for n in places])
        shared = _Shared(index.context_windows(group)[number_X], index.means(group)[:, number_X])
        for begin in range(0, len(places), _ROWS):
            rows = np.arange(begin, min(begin + _ROWS, len(places)))
            labels_RX = shared.labels(rows)
            measures = {"contexts": shared.contexts(rows), "labels": labels_RX}
            if kind == "pair":
                first_X, second_X = np.divmod(number_X, index.units.keys)
                same_RX = (first_X[rows, None] == first_X) | (second_X[rows, None] == second_X)
                measures["key"] = np.where(same_RX, labels_RX, -1.0)
            for by, similar_RX in measures.items():
                similar_RX[np.arange(len(rows)), rows] = -1.0
                order_RK = np.argsort(-similar_RX, axis=1, kind="stable")[:, :count]
                for r, row in enumerate(rows.tolist()):
                    found[places[row]][by] = [
                        [units[places[k]].name, float(f"{similar_RX[r, k]:.3g}")]
                        for k in order_RK[r].tolist()
                        if similar_RX[r, k] > 0
                    ]
    return found


class _Shared:
    """Windows of the strongest contexts, and mean weights by label, of X units."""

    def __init__(self, window_XQ: NDArray[np.uint32], mean_CX: NDArray[np.float64]) -> None:
        kept_XQ = window_XQ != _EMPTY
        self._size_X = kept_XQ.sum(1)
        windows, column = np.unique(window_XQ[kept_XQ], return_inverse=True)
        row = np.repeat(np.arange(len(window_XQ)), self._size_X)
        shape = (len(window_XQ), len(windows))
        self._in_XW = sparse.csr_array((np.ones(len(row), np.float32), (row, column)), shape=shape)
        length_X = np.linalg.norm(mean_CX, axis=0)
        self._direction_CX = mean_CX / np.maximum(length_X, 1e-300)

    def contexts(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Jaccard of the windows, (rows, X)."""
        common_RX = np.asarray((self._in_XW[rows] @ self._in_XW.T).todense(), np.float64)
        return common_RX / np.maximum(self._size_X[rows, None] + self._size_X - common_RX, 1)

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Cosine of the mean weights, (rows, X)."""
        return self._direction_CX[:, rows].T @ self._direction_CX
